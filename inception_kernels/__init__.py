"""Fused convolution kernels for the Inception family: depthwise-separable and asymmetric convolutions.

The operators are autograd functions over hand-written kernels; :func:`swap` puts them into a model that already exists.
"""

from . import backends, flops, memory, models, nn, reference
from ._version import __version__
from .backends import BackendUnavailableError, use_backend
from .graph import CaptureError, Optimized, optimize
from .ops import (
    asymmetric_pair,
    conv2d_bn_act,
    label_smoothing_cross_entropy,
    pointwise_depthwise_conv2d,
    separable_conv2d,
)
from .swap import Plan, SwapReport, explain, plan, swap, swapped, unswap

__all__ = [
    "BackendUnavailableError",
    "CaptureError",
    "Optimized",
    "Plan",
    "SwapReport",
    "__version__",
    "asymmetric_pair",
    "backends",
    "conv2d_bn_act",
    "explain",
    "flops",
    "label_smoothing_cross_entropy",
    "memory",
    "models",
    "nn",
    "optimize",
    "plan",
    "pointwise_depthwise_conv2d",
    "reference",
    "separable_conv2d",
    "swap",
    "swapped",
    "unswap",
    "use_backend",
]
