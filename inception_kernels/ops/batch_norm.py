"""``act(BN(z) + residual)`` with statistics that are given: what follows a raw convolution that a gradient will need.

An operator without a public function: calls in evaluation that keep z make it (`_autograd.keeps_raw_output`).
"""

from __future__ import annotations

import torch

from .. import _extension
from ._common import empty_activations, memory_format_of


def _fake(z, bn_weight, bn_bias, mean, var, residual, activation, eps):
    return empty_activations(z, z.shape, memory_format_of(z))


if _extension.available:
    torch.library.register_fake("inception_kernels::batch_norm", _fake)
