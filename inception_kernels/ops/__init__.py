"""The operators: validation, choice of the backend, and the rules that autograd and the compiler need."""

from . import (  # noqa: F401  (registers what operators without a public function need)
    avg_pool2d,
    batch_norm,
    max_pool2d,
    run_program,
)
from .asymmetric_pair import asymmetric_pair
from .conv2d_bn_act import conv2d_bn_act
from .label_smoothing_cross_entropy import label_smoothing_cross_entropy
from .pointwise_depthwise_conv2d import pointwise_depthwise_conv2d
from .separable_conv2d import separable_conv2d

__all__ = [
    "asymmetric_pair",
    "conv2d_bn_act",
    "label_smoothing_cross_entropy",
    "pointwise_depthwise_conv2d",
    "separable_conv2d",
]
