// asymmetric_pair on Hopper. The operator's launchers of csrc/asymmetric_pair.h choose between this kernel and others.
#pragma once
#include "asymmetric_pair.h"
#include "cuda/context.h"

namespace ik::cuda {

// Null where the kernel can run, else the reason: static text.
const char* asymmetric_pair_sm90_unsupported(const PairForward& args, const Context& context);
// Predicted. Both of these: of a pair that is supported and not empty.
double asymmetric_pair_sm90_clocks(const PairForward& args, const Context& context);
void asymmetric_pair_sm90_forward(const PairForward& args, const Context& context);

// The output channels of a tile that there are kernels for. A launch chooses for itself; tests may ask for one.
int asymmetric_pair_sm90_tiles();
int asymmetric_pair_sm90_tile_channels(int index);
void asymmetric_pair_sm90_forward_tiled(const PairForward& args, int tile, const Context& context);

}  // namespace ik::cuda
