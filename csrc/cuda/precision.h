// Whether float32 products may use TF32, by PyTorch's own flag for convolutions.
#pragma once

namespace ik::cuda {

// torch.backends.cudnn.conv.fp32_precision == "tf32" at this moment, so in compiled graphs as in eager mode.
bool allows_tf32();

}  // namespace ik::cuda
