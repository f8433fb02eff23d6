// The CPU's implementations of the operators that other devices share; the rest register themselves.
#include "operators.h"

STABLE_TORCH_LIBRARY_IMPL(inception_kernels, CPU, m) {
  ik::register_conv2d_bn_act(m);
  ik::register_separable_conv2d(m);
  ik::register_asymmetric_pair(m);
  ik::register_batch_norm(m);
  ik::register_update_running_statistics(m);
}
