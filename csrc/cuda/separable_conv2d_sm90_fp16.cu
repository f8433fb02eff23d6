#include "cuda/separable_conv2d_sm90_kernels.h"

namespace ik::cuda::separable_sm90 {

const Table kernels_fp16 = IK_SEPARABLE_SM90_TABLE(fp16);

}  // namespace ik::cuda::separable_sm90
