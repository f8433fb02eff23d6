#include "cuda/conv2d_bn_act_sm90_kernels.h"

namespace ik::cuda {

const ConvSm90Table conv2d_sm90_bf16 = IK_CONV2D_SM90_TABLE(bf16);

}  // namespace ik::cuda
