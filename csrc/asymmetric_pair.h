// asymmetric_pair: 1 x n -> scale, shift, act -> n x 1 -> scale, shift, act (or the other order), intermediate in
// cache.
#pragma once
#include <cstddef>

#include "common/types.h"

namespace ik {

struct PairForward {
  ConvShape first;   // [N, C, H, W] -> [N, first.K, first.P(), first.Q()]
  ConvShape second;  // second.C == first.K, second.H == first.P(), second.W == first.Q()
  DType dtype;
  NhwcInput x;
  const void* first_packed_weight;  // written by cpu::conv2d_pack
  const void* first_scale;          // [first.K], accumulation type; null = 1
  const void* first_shift;          // null = 0
  Activation first_activation;
  const void* second_packed_weight;
  const void* second_scale;  // [second.K]
  const void* second_shift;
  Activation second_activation;
  NhwcOutput y;  // [N, P, Q, second.K]
};

namespace cpu {

void asymmetric_pair_forward(const PairForward& args);

}  // namespace cpu

// All pointers are device memory, packed weights are those of cuda::conv2d_pack, scales and shifts are float.
namespace cuda {

struct Context;

// Null where the operator can run, else the reason: static text.
const char* asymmetric_pair_unsupported(const PairForward& args, const Context& context);
// Null where one kernel runs and holds the intermediate on chip. Else two of conv2d_bn_act run, with the intermediate
// in the workspace, and this is why.
const char* asymmetric_pair_split_reason(const PairForward& args, const Context& context);
size_t asymmetric_pair_workspace_bytes(const PairForward& args, const Context& context);
void asymmetric_pair_forward(const PairForward& args, void* workspace, const Context& context);

}  // namespace cuda
}  // namespace ik
