"""How much work a model does: multiply-adds, bytes and arithmetic intensity, per layer and in total."""

from inception_kernels.flops.formulas import (
    asymmetric_pair_backward_macs,
    asymmetric_pair_macs,
    conv2d_backward_macs,
    conv2d_macs,
    separable_conv2d_backward_macs,
    separable_conv2d_macs,
)

__all__ = [
    "asymmetric_pair_backward_macs",
    "asymmetric_pair_macs",
    "conv2d_backward_macs",
    "conv2d_macs",
    "separable_conv2d_backward_macs",
    "separable_conv2d_macs",
]
