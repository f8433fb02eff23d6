// The training half of every operator: batch statistics, normalise + activation, and their gradient.
#pragma once
#include "common/types.h"

namespace ik {

struct ScaleShiftAct {
  int64_t N, P, Q, K;
  DType dtype;
  NhwcInput z;         // [N, P, Q, K]
  const void* scale;   // [K], accumulation type
  const void* shift;   // [K], accumulation type
  NhwcInput residual;  // [N, P, Q, K]; data null = none
  Activation activation;
  NhwcOutput y;  // [N, P, Q, K]
};

// y = act(u), u = gamma * (z - mean) * rstd + beta + residual. Without BN pass mean = rstd = null: u = z + residual.
struct BnActBackward {
  int64_t N, P, Q, K;
  DType dtype;
  NhwcInput grad_y;    // [N, P, Q, K]
  NhwcInput z;         // [N, P, Q, K]: the convolution's raw output
  NhwcInput residual;  // [N, P, Q, K]; data null = none
  const void* mean;    // [K], accumulation type, as all vectors here
  const void* rstd;    // [K]: 1 / sqrt(var + eps)
  const void* gamma;   // [K]; null = 1
  const void* beta;    // [K]; null = 0
  bool training;       // mean and rstd depend on z
  Activation activation;
  NhwcOutput grad_z;         // [N, P, Q, K]; may be null
  NhwcOutput grad_residual;  // [N, P, Q, K]; may be null
  void* grad_gamma;          // [K]; may be null
  void* grad_beta;           // [K]; may be null: the sum of grad_u
  void* grad_z_sum;          // [K]; may be null: the sum of grad_z, the gradient of the convolution's bias
};

namespace cpu {

// mean [K] and biased variance [K] over N, P, Q in the accumulation type; fixed order whatever the thread count.
void batch_statistics(int64_t N, int64_t P, int64_t Q, int64_t K, DType dtype, const NhwcInput& z, void* mean,
                      void* var);
void scale_shift_act(const ScaleShiftAct& args);
void bn_act_backward(const BnActBackward& args);

}  // namespace cpu
}  // namespace ik
