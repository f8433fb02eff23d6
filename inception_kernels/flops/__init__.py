"""How much work a model does: multiply-adds, bytes and arithmetic intensity, per layer and in total.

The formulas of our operators are registered with `torch.utils.flop_counter`, where an operator without one silently
counts zero, as soon as somebody imports it.
"""

from inception_kernels.flops.command import add_arguments, run
from inception_kernels.flops.count import count
from inception_kernels.flops.formulas import (
    asymmetric_pair_backward_macs,
    asymmetric_pair_macs,
    conv2d_backward_macs,
    conv2d_macs,
    separable_conv2d_backward_macs,
    separable_conv2d_macs,
)
from inception_kernels.flops.papers import Factorization, asymmetric, factorizations, separable_cost_ratio, stacked
from inception_kernels.flops.registration import register
from inception_kernels.flops.report import FlopReport, LayerCost

register()

__all__ = [
    "Factorization",
    "FlopReport",
    "LayerCost",
    "add_arguments",
    "asymmetric",
    "asymmetric_pair_backward_macs",
    "asymmetric_pair_macs",
    "conv2d_backward_macs",
    "conv2d_macs",
    "count",
    "factorizations",
    "run",
    "separable_conv2d_backward_macs",
    "separable_conv2d_macs",
    "separable_cost_ratio",
    "stacked",
]
