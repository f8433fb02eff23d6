// conv2d_bn_act on Hopper. The operator's launchers of csrc/conv2d_bn_act.h choose between this kernel and the others.
#pragma once
#include <cstddef>

#include "conv2d_bn_act.h"
#include "cuda/context.h"

namespace ik::cuda {

// Null where the kernel can run, else the reason: static text.
const char* conv2d_sm90_unsupported(const Conv2dForward& args, const Context& context);
size_t conv2d_sm90_workspace_bytes(const Conv2dForward& args, bool statistics, const Context& context);
void conv2d_sm90_forward(const Conv2dForward& args, void* workspace, const Context& context);
void conv2d_sm90_forward_statistics(const Conv2dForward& args, float* mean, float* var, void* workspace,
                                    const Context& context);

// The tiles that there are kernels for. A launch chooses for itself; tests and benchmarks may ask for one.
struct ConvSm90Tile {
  int pixels;
  int channels;
  bool statistics;  // also exists with the statistics of y
};
int conv2d_sm90_tiles();
ConvSm90Tile conv2d_sm90_tile(int index);
int conv2d_sm90_choice(const Conv2dForward& args, bool statistics, const Context& context);
// Predicted, of a forward pass without statistics.
double conv2d_sm90_clocks(const Conv2dForward& args, const Context& context);
// partial: null, or [runs of half a tile's pixels][2][K] for mean and squared deviations of y.
void conv2d_sm90_forward_tiled(const Conv2dForward& args, int tile, float* partial, const Context& context);

}  // namespace ik::cuda
