"""Why a module cannot take part in a fusion: each function returns None or the reason."""

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from .atoms import DTYPES, is_depthwise, numeric_padding

_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}


def instance_reason(module: nn.Module) -> str | None:
    """Anything attached to this one module that a fused call would bypass."""
    name = type(module).__name__
    for attribute, label in _HOOKS.items():
        hooks = getattr(module, attribute)
        if hooks:
            kinds = ", ".join(sorted({type(hook).__name__ for hook in hooks.values()}))
            return f"{name} has a {label} ({kinds}) that a fused call would not run"
    if is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"{name} is parametrized ({names})"
    if "forward" in vars(module):
        return f"the forward of this {name} was replaced on the instance"
    return None


def tensor_reason(tensor: torch.Tensor | None, what: str) -> str | None:
    if tensor is None:
        return None
    if is_lazy(tensor):
        return f"{what} is not initialised (lazy module): run the model once, then swap"
    if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer):
        return f"{what} is a {type(tensor).__name__}, not a plain tensor"
    if tensor.is_meta:
        return f"{what} is on the meta device: load weights first"
    if tensor.dtype not in DTYPES:
        return f"{what} is {tensor.dtype}: the operators take float32, bfloat16, float16 and float64"
    if tensor.layout != torch.strided:
        return f"{what} has layout {tensor.layout}"
    return None


def convolution_reason(conv: nn.Conv2d, paths: list[str]) -> str | None:
    """`paths`: every place in the model where this convolution object sits."""
    name = type(conv).__name__
    if isinstance(conv, nn.modules.lazy.LazyModuleMixin) and conv.has_uninitialized_params():
        return f"{name} is not initialised (lazy module): run the model once, then swap"
    reason = instance_reason(conv)
    if reason is not None:
        return reason
    if type(conv).__module__.startswith(("torch.ao.", "torch.nn.quantized", "torch.nn.intrinsic")):
        return f"{type(conv).__module__}.{name} belongs to a quantization flow"
    if type(conv).forward is not nn.Conv2d.forward or type(conv)._conv_forward is not nn.Conv2d._conv_forward:
        return f"{name} has a forward of its own (dynamic padding, weight standardisation or the like)"
    if len(paths) > 1:
        return f"shared: the same convolution object is {' and '.join(paths)}"
    for tensor, what in ((conv.weight, "weight"), (conv.bias, "bias")):
        reason = tensor_reason(tensor, what)
        if reason is not None:
            return reason
    if conv.padding_mode != "zeros":
        return f"padding_mode={conv.padding_mode!r}: the operators pad with zeros"
    if numeric_padding(conv) is None:
        return f"padding='same' with window {tuple(conv.kernel_size)} pads the two sides differently"
    if conv.groups != 1 and not is_depthwise(conv):
        return (
            f"grouped convolution ({conv.groups} groups, {conv.in_channels} -> {conv.out_channels} channels): "
            "neither dense nor depthwise"
        )
    return None


def norm_reason(norm: nn.BatchNorm2d, paths: list[str]) -> str | None:
    reason = instance_reason(norm)
    if reason is not None:
        return reason
    if len(paths) > 1:
        return f"shared: the same batch norm object is {' and '.join(paths)}"
    for what in ("weight", "bias", "running_mean", "running_var"):
        reason = tensor_reason(getattr(norm, what), f"batch norm {what}")
        if reason is not None:
            return reason
    return None
