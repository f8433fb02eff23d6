"""Kernels that have not run on this kind of GPU: `tune` tries them, and from then on trusts the right CUDA ones."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import backends, cuda_kernels
from ..ops._common import autocast_dtype
from .runtime import FusedLayer, Parts
from .shapes import modes

logger = logging.getLogger("inception_kernels")

_NAMES = {"cuda": "CUDA", "triton": "Triton"}
_ERROR_RATIO, _FLOOR_ULPS = 2, 4  # against PyTorch's own error, as in the tests


def forced(layer: FusedLayer, parts: Parts, x: Tensor) -> contextlib.AbstractContextManager[None]:
    """The block in which a measurement of the fused layer means its CUDA kernels, where they take the call."""
    return backends.use_backend("cuda") if _on_trial(layer, parts, x) else contextlib.nullcontext()


def passed(layer: FusedLayer, parts: Parts, x: Tensor, original: Callable[[Tensor], Tensor]) -> bool:
    """Whether the layer may run fused: False where its CUDA kernels are further from float64 than they may be.

    Kernels that are right become those of the automatic choice (:func:`cuda_kernels.trust`).
    """
    if not _on_trial(layer, parts, x):
        return True
    if not is_right(layer, parts, x, original, "cuda"):
        return False
    cuda_kernels.trust(layer.operator, autocast_dtype(x) or x.dtype, x.device)
    return True


def takes_triton(layer: FusedLayer, x: Tensor) -> bool:
    """Whether the Triton kernels compete for this layer: on a GPU, where no backend is forced."""
    if x.device.type != "cuda" or backends.forced() is not None:
        return False
    return backends.can_run_triton(x, layer.operator) is None


def is_right(
    layer: FusedLayer, parts: Parts, x: Tensor, original: Callable[[Tensor], Tensor], backend: str
) -> bool:  # fmt: skip
    """Whether the layer on this backend is at most twice as far from float64 as the original; a warning if not."""
    modules = nn.ModuleList(each for each in (parts.depthwise, parts.conv, parts.norm) if each is not None)
    with torch.no_grad(), modes(modules, training=False):
        exact = _in_float64(layer, parts, x)
        allowed = _ERROR_RATIO * _distance(original(x), exact)
        with backends.use_backend(backend):
            error = _distance(layer(x, parts), exact)
    dtype = autocast_dtype(x) or x.dtype
    floor = _FLOOR_ULPS * torch.finfo(dtype).eps * exact.abs().max().item()
    if not error <= max(allowed, floor):  # a NaN fails
        off = (layer.path, _NAMES[backend], error, max(allowed, floor))
        logger.warning("%s: the %s kernel is off by %.3g, allowed is %.3g", *off)
        return False
    return True


def _on_trial(layer: FusedLayer, parts: Parts, x: Tensor) -> bool:
    if x.device.type != "cuda" or backends.forced() is not None:
        return False
    return backends.can_run_cuda(x, layer.operator, lambda: layer.shapes(x, parts)) is None


def _in_float64(layer: FusedLayer, parts: Parts, x: Tensor) -> Tensor:
    doubled = Parts(
        None if parts.depthwise is None else copy.deepcopy(parts.depthwise).double(),
        copy.deepcopy(parts.conv).double(),
        None if parts.norm is None else copy.deepcopy(parts.norm).double(),
        (),
    )
    with backends.use_backend("reference"), torch.autocast(x.device.type, enabled=False):
        return copy.copy(layer)(x.double(), doubled)


def _distance(y: Tensor, exact: Tensor) -> float:
    return (y.double() - exact).abs().max().item()
