// Registration of the operators that run on more than one device: each extension calls it for its own dispatch key.
#pragma once
#include <torch/csrc/stable/library.h>

namespace ik {

using Library = torch::stable::detail::StableLibrary;

void register_conv2d_bn_act(Library& m);
void register_separable_conv2d(Library& m);
void register_asymmetric_pair(Library& m);
void register_batch_norm(Library& m);
void register_update_running_statistics(Library& m);

}  // namespace ik
