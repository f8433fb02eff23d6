// separable_conv2d on Hopper: what the dispatching launcher of separable_conv2d asks of the warp-specialised kernel.
#pragma once
#include <cstddef>

#include "cuda/context.h"
#include "separable_conv2d.h"

namespace ik::cuda {

// null: the kernel runs; else the reason, static text.
const char* separable_sm90_unsupported(const SeparableForward& args, const Context& context);
size_t separable_sm90_workspace_bytes(const SeparableForward& args, bool statistics, const Context& context);
// The tiles to choose from, in pixels across and output channels; a cluster's blocks share the depthwise part.
struct SeparableSm90Tile {
  int columns, channels;
};
int separable_sm90_tiles();
SeparableSm90Tile separable_sm90_tile(int index);
constexpr int kSeparableSm90MaxCluster = 3;
struct SeparableSm90Choice {
  int tile, cluster;
};
SeparableSm90Choice separable_sm90_choice(const SeparableForward& args, const Context& context);
void separable_sm90_forward_tiled(const SeparableForward& args, int tile, int cluster, const Context& context);

void separable_sm90_forward(const SeparableForward& args, void* workspace, const Context& context);
// y = z = product + shift, and the mean and biased variance [K] of z over N, P and Q.
void separable_sm90_forward_statistics(const SeparableForward& args, float* mean, float* var, void* workspace,
                                       const Context& context);

}  // namespace ik::cuda
