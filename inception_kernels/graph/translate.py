"""PyTorch operators as steps: one function per operator, which says why not where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from .steps import (
    AveragePool,
    Concatenate,
    Convolution,
    Depthwise,
    Elementwise,
    Flatten,
    MaxPool,
    Slice,
)

aten = torch.ops.aten
Shapes = dict[fx.Node, tuple[int, ...]]
Steps = tuple[list[nn.Module], list[Any]]  # one after the other; the inputs of the first

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Declined(Exception):
    """Why an operator stays PyTorch's."""


def translate(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Shapes, dtypes: set[torch.dtype], value: Any
) -> Steps:
    """The steps that compute a call, none where it does nothing, and the inputs of the first. Raises `Declined`.

    Args:
        args, kwargs: of the call, with nodes of the new graph for activations and tensors for constants.
        shapes, dtypes: of the activations.
        value: what the call returns, as a fake tensor.
    """
    if not isinstance(target, torch._ops.OpOverload):
        raise Declined(f"{target} is no operator")
    function = _TRANSLATIONS.get(target.overloadpacket)
    if function is None:
        raise Declined(f"{target} has no step")
    first = value[0] if isinstance(value, tuple | list) else value
    if not isinstance(first, Tensor) or first.dtype not in _DTYPES:
        raise Declined(f"{target} does not return a float32, bfloat16, float16 or float64 tensor")
    if dtypes - {first.dtype}:
        raise Declined(f"{target} makes {first.dtype} of {', '.join(sorted(map(str, dtypes)))}")
    arguments = _by_name(target, args, kwargs)
    try:
        return function(arguments, shapes)
    except Declined as declined:
        raise Declined(f"{target}: {declined}") from None


def _by_name(target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call, defaults included."""
    named = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(args):
            named[argument.name] = args[position]
        elif argument.name in kwargs:
            named[argument.name] = kwargs[argument.name]
        else:
            named[argument.name] = argument.default_value if argument.has_default_value() else None
    return named


def _image(value: Any, shapes: Shapes) -> fx.Node:
    if not isinstance(value, fx.Node):
        raise Declined("its input is a constant")
    shape = shapes.get(value, ())
    if len(shape) != 4:
        raise Declined(f"its input is {list(shape)}, not [N, C, H, W]")
    if 0 in shape[1:]:
        raise Declined(f"its input has no values: {list(shape)}")
    return value


def _constant(value: Any, what: str) -> Tensor | None:
    if value is None or isinstance(value, Tensor):
        return value
    raise Declined(f"{what} is computed by the model, not a parameter")


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _vector(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.double()


def _conv2d(a: dict[str, Any], shapes: Shapes) -> Steps:
    x = _image(a["input"], shapes)
    weight, bias = _constant(a["weight"], "the weight"), _constant(a["bias"], "the bias")
    assert weight is not None
    if isinstance(a["padding"], str):
        raise Declined("padding is a word")
    stride, padding, dilation = _pair(a["stride"]), _pair(a["padding"]), _pair(a["dilation"])
    groups, channels = a["groups"], shapes[x][1]
    if groups == 1:
        return [Convolution(weight, stride, padding, dilation, shift=_vector(bias))], [x]
    if groups == channels == weight.shape[0]:
        return [Depthwise(weight, _vector(bias), stride, padding, dilation)], [x]
    raise Declined(f"grouped convolution ({groups} groups, {channels} -> {weight.shape[0]} channels)")


def _batch_norm(a: dict[str, Any], shapes: Shapes) -> Steps:
    x = _image(a["input"], shapes)
    if a.get("training"):
        raise Declined("it uses batch statistics")
    mean, var = _constant(a["running_mean"], "running_mean"), _constant(a["running_var"], "running_var")
    if mean is None or var is None:
        raise Declined("it has no running statistics")
    weight, bias = _constant(a["weight"], "its weight"), _constant(a["bias"], "its bias")
    scale = (var.double() + a["eps"]).rsqrt()
    offset = float((mean.double() * scale).abs().max())
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    return [Elementwise(scale, shift, offset=offset)], [x]


def _activation(kind: str) -> Callable[..., Steps]:
    def translated(a: dict[str, Any], shapes: Shapes) -> Steps:
        if kind == "elu" and (a["alpha"], a["scale"], a["input_scale"]) != (1, 1, 1):
            raise Declined("alpha is not 1")
        if kind == "relu6" and (a.get("min_val", 0), a.get("max_val", 6)) != (0, 6):
            raise Declined("it does not clamp to [0, 6]")
        return [Elementwise(activation=kind)], [_image(next(iter(a.values())), shapes)]

    return translated


def _max_pool(a: dict[str, Any], shapes: Shapes) -> Steps:
    x, window = _image(a["self"], shapes), _pair(a["kernel_size"])
    stride = _pair(a["stride"]) if a["stride"] else window
    return [MaxPool(window, stride, _pair(a["padding"]), _pair(a["dilation"]), a["ceil_mode"])], [x]


def _average_pool(a: dict[str, Any], shapes: Shapes) -> Steps:
    x, window = _image(a["self"], shapes), _pair(a["kernel_size"])
    stride = _pair(a["stride"]) if a["stride"] else window
    if a["divisor_override"] is not None and a["divisor_override"] < 0:
        raise Declined("it divides by a negative number")
    pool = AveragePool(
        window, stride, _pair(a["padding"]), a["ceil_mode"], a["count_include_pad"], a["divisor_override"]
    )
    return [pool], [x]


def _adaptive_average_pool(a: dict[str, Any], shapes: Shapes) -> Steps:
    x, size = _image(a["self"], shapes), _pair(a["output_size"])
    if size != (1, 1):
        raise Declined(f"its output is {list(size)}, not one pixel")
    return [AveragePool(None)], [x]


def _mean(a: dict[str, Any], shapes: Shapes) -> Steps:
    x = _image(a["self"], shapes)
    if sorted(d % 4 for d in a.get("dim") or ()) != [2, 3] or a["dtype"] is not None:
        raise Declined("it is not over height and width")
    return [AveragePool(None)] if a["keepdim"] else [AveragePool(None), Flatten()], [x]


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor) and value.numel() == 1 and value.dim() <= 4:
        value = value.item()
    return float(value) if isinstance(value, int | float) else None


def _everywhere(x: fx.Node, shapes: Shapes, value: float) -> Tensor:
    return torch.full((shapes[x][1],), value, dtype=torch.float64)


def _addition(a: dict[str, Any], shapes: Shapes) -> Steps:
    x, number = _image(a["self"], shapes), _number(a["other"])
    if number is not None:
        return [Elementwise(shift=_everywhere(x, shapes, number * a["alpha"]))], [x]
    y = _image(a["other"], shapes)
    if shapes[x] != shapes[y]:
        raise Declined(f"it broadcasts {list(shapes[x])} and {list(shapes[y])}")
    if a["alpha"] != 1:
        raise Declined("alpha is not 1")
    return [Elementwise()], [x, y]


def _scaling(a: dict[str, Any], shapes: Shapes) -> Steps:
    x, factor = _image(a["self"], shapes), _number(a["other"])
    if factor is None:
        raise Declined("its factor is not a constant number")
    return [Elementwise(_everywhere(x, shapes, factor))], [x]


def _subtraction(a: dict[str, Any], shapes: Shapes) -> Steps:
    x, number = _image(a["self"], shapes), _number(a["other"])
    if number is None:
        raise Declined("what it subtracts is not a constant number")
    return [Elementwise(shift=_everywhere(x, shapes, -number * a["alpha"]))], [x]


def _channel(a: dict[str, Any], shapes: Shapes) -> Steps:
    """x[:, c].unsqueeze(1), as torchvision's `transform_input` takes the channels of an image."""
    picked = a["self"]
    if not isinstance(picked, fx.Node) or picked.target is not aten.select.int:
        raise Declined("it is not of one channel of an image")
    x, dim, channel = picked.args
    if dim != 1 or a["dim"] % 4 != 1:
        raise Declined("it is not of one channel of an image")
    image = _image(x, shapes | {n: tuple(n.meta["val"].shape) for n in picked.all_input_nodes if "val" in n.meta})
    assert isinstance(channel, int)
    return [Slice(channel % image.meta["val"].shape[1], 1)], [image]


def _concatenation(a: dict[str, Any], shapes: Shapes) -> Steps:
    inputs = [_image(tensor, shapes) for tensor in a["tensors"]]
    if a["dim"] % 4 != 1:
        raise Declined(f"it is along dimension {a['dim']}, not the channels")
    return [Concatenate()], inputs


def _flatten(a: dict[str, Any], shapes: Shapes) -> Steps:
    x = _image(a["self"], shapes)
    N, C, H, W = shapes[x]
    sizes = list(a["size"] if "size" in a else a["shape"])
    if sizes not in ([N, C], [-1, C], [N, -1]) or (H, W) != (1, 1):
        raise Declined(f"it gives {list(shapes[x])} the sizes {sizes}")
    return [Flatten()], [x]


def _linear(a: dict[str, Any], shapes: Shapes) -> Steps:
    x = a["input"]
    if not isinstance(x, fx.Node) or not isinstance(x.meta.get("step"), Flatten):
        raise Declined("its input is not one pixel of every channel")
    weight, bias = _constant(a["weight"], "the weight"), _constant(a["bias"], "the bias")
    assert weight is not None
    return [Convolution(weight[:, :, None, None], shift=_vector(bias)), Flatten()], [x.args[0]]


def _identity(a: dict[str, Any], shapes: Shapes) -> Steps:
    """Copies, and dropout in evaluation."""
    if a.get("train"):
        raise Declined("it drops elements at random")
    return [], [next(iter(a.values()))]


_TRANSLATIONS: dict[Any, Callable[..., Steps]] = {
    aten.conv2d: _conv2d,
    aten.batch_norm: _batch_norm,
    aten._native_batch_norm_legit_no_training: _batch_norm,
    aten.relu: _activation("relu"),
    aten.relu6: _activation("relu6"),
    aten.hardtanh: _activation("relu6"),
    aten.elu: _activation("elu"),
    aten.silu: _activation("silu"),
    aten.max_pool2d: _max_pool,
    aten.avg_pool2d: _average_pool,
    aten.adaptive_avg_pool2d: _adaptive_average_pool,
    aten.mean: _mean,
    aten.add: _addition,
    aten.sub: _subtraction,
    aten.mul: _scaling,
    aten.unsqueeze: _channel,
    aten.cat: _concatenation,
    aten.view: _flatten,
    aten._unsafe_view: _flatten,
    aten.reshape: _flatten,
    aten.linear: _linear,
    aten.clone: _identity,
    aten.dropout: _identity,
    aten.contiguous: _identity,
}
