"""Load the compiled operators. Without them the package works on the reference backend, and says once why."""

from __future__ import annotations

import importlib
import warnings

import torch  # first: the extensions link its libraries and find them already loaded

from .source_hash import build_info

# Of csrc/ops.cpp, those without a leading underscore.
OPERATORS = frozenset(
    {
        "asymmetric_pair",
        "asymmetric_pair_prepacked",
        "avg_pool2d",
        "batch_norm",
        "conv2d_bn_act",
        "conv2d_bn_act_backward",
        "conv2d_bn_act_pack",
        "conv2d_bn_act_prepacked",
        "conv2d_bn_act_training",
        "label_smoothing_cross_entropy",
        "label_smoothing_cross_entropy_backward",
        "max_pool2d",
        "max_pool2d_backward",
        "max_pool2d_training",
        "pointwise_depthwise_conv2d",
        "run_program",
        "separable_conv2d",
        "separable_conv2d_backward",
        "separable_conv2d_pack",
        "separable_conv2d_prepacked",
        "separable_conv2d_training",
        "time_program",
        "update_running_statistics",
    }
)


def _load(name: str) -> str | None:
    """Import an extension, which registers its operators. Returns None, or the reason why it is not there."""
    try:
        importlib.import_module(f"inception_kernels.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"inception_kernels.{name}":
            raise
        why = build_info().get("why_not_cuda") if name == "_C_cuda" else None
        return f"this installation was built without {name}" + (f": {why}" if why else "")
    except ImportError as error:
        return f"{name} does not load: {error}"
    return None


def _outdated() -> str | None:
    """The reason where an editable installation's library is older than its Python."""
    missing = sorted(name for name in OPERATORS if not hasattr(torch.ops.inception_kernels, name))
    if not missing:
        return None
    return f"_C was built from older sources and has no operator {', '.join(missing)}: build it again"


reason: str | None = _load("_C") or _outdated()
available: bool = reason is None

cuda_reason: str | None = _load("_C_cuda") if available else reason
cuda_available: bool = cuda_reason is None

if not available:
    warnings.warn(
        f"inception_kernels runs on the reference backend only: {reason}. "
        "Build the kernels with `pip install .` (README, Install).",
        RuntimeWarning,
        stacklevel=2,
    )
