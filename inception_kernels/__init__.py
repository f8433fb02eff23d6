"""Fused convolution kernels for the Inception family: depthwise-separable and asymmetric convolutions.

The operators are autograd functions over hand-written kernels; :func:`swap` puts them into a model that already exists.
"""

from . import backends, flops, models, nn, reference
from ._version import __version__
from .backends import BackendUnavailableError, use_backend
from .ops import asymmetric_pair, conv2d_bn_act, label_smoothing_cross_entropy, separable_conv2d

__all__ = [
    "BackendUnavailableError",
    "__version__",
    "asymmetric_pair",
    "backends",
    "conv2d_bn_act",
    "flops",
    "label_smoothing_cross_entropy",
    "models",
    "nn",
    "reference",
    "separable_conv2d",
    "use_backend",
]
