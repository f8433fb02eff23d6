// The training half of every operator: batch statistics, normalise + activation, and their gradient.
#pragma once
#include <cstddef>

#include "common/types.h"
#include "cuda/context.h"

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

// All pointers are device memory; nothing waits for the device, and all memory is the caller's.
namespace cuda {

// A vector per channel in a dtype of its own: float32, bfloat16 or float16. Data null = not given.
struct ParameterView {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stride = 1;
};

struct BatchNormParameters {
  ParameterView gamma, beta, mean, var;  // [K]; gamma null = 1, beta null = 0; mean and var null = no BN
  ParameterView bias;                    // [K]: the convolution's; null = 0
};

// float [K] each; null = not wanted.
struct BatchNormVectors {
  float* scale;  // gamma / sqrt(var + eps)
  float* shift;  // (bias - mean) * scale + beta
  float* rstd;   // 1 / sqrt(var + eps)
  float* mean;   // the parameters themselves
  float* gamma;
  float* beta;
};

void fold_batch_norm(int64_t K, const BatchNormParameters& given, double eps, const BatchNormVectors& wanted,
                     const Context& context);

// What the tiles of one pass over z [N, P, Q, K] found: boxes of tile_n images, tile_p rows and tile_q columns, cut off
// at the far ends. A kernel whose tiles are runs of pixels says N = P = 1 and counts the pixels in Q.
struct StatisticsTiles {
  const float* partial;  // [tiles in n][in p][in q][2][K]: mean, and the sum of squared deviations from it
  int64_t N, P, Q, K;
  int64_t tile_n, tile_p, tile_q;
  const float* counts = nullptr;  // [tiles]: their pixels, where they are not boxes; tile_n, tile_p and tile_q are 1
  int64_t tiles = 0;              // with counts: how many, else 0
};

size_t combine_statistics_workspace_bytes(const StatisticsTiles& tiles);
// mean [K] and biased variance [K], by Chan's formula in a fixed order.
void combine_statistics(const StatisticsTiles& tiles, float* mean, float* var, void* workspace, const Context& context);

size_t batch_statistics_workspace_bytes(int64_t N, int64_t P, int64_t Q, int64_t K);
void batch_statistics(int64_t N, int64_t P, int64_t Q, int64_t K, DType dtype, const NhwcInput& z, float* mean,
                      float* var, void* workspace, const Context& context);

void scale_shift_act(const ScaleShiftAct& args, const Context& context);

size_t bn_act_backward_workspace_bytes(const BnActBackward& args);
void bn_act_backward(const BnActBackward& args, void* workspace, const Context& context);

}  // namespace cuda
}  // namespace ik
