"""What every operator demands of its arguments, said before any backend starts.

The compiled operators repeat the part that keeps memory safe (``csrc/common/checks.cpp``), for those who call them
through ``torch.ops`` directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ACTIVATIONS = ("none", "relu", "relu6", "elu", "silu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

Pair = tuple[int, int]
IntOrPair = int | Sequence[int]


def describe(value: object) -> str:
    """``float32 [2, 3, 8, 8] on cpu`` for a tensor, the type's name for anything else."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {value.device}"
    return f"{type(value).__name__} {value!r}"


def pair(value: IntOrPair, name: str, smallest: int) -> Pair:
    """An integer or two of them, (height, width), each at least ``smallest``."""
    if type(value) is tuple and len(value) == 2:
        first, second = value
        if type(first) is int and type(second) is int and first >= smallest and second >= smallest:
            return first, second
    both = (value, value) if isinstance(value, (int, torch.SymInt)) else value
    if isinstance(both, str) or not isinstance(both, Sequence) or len(both) != 2:
        raise ValueError(f"{name}: expected an integer or two, got {value!r}")
    for one in both:
        if isinstance(one, bool) or not isinstance(one, (int, torch.SymInt)):
            raise TypeError(f"{name}: expected integers, got {value!r}")
        if one < smallest:
            raise ValueError(f"{name}: expected integers >= {smallest}, got {value!r}")
    return both[0], both[1]


def activation(name: str, argument: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"{argument}: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return name


def flag(value: bool, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {describe(value)}")
    return value


def number(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    return float(value)


def epsilon(value: float, training: bool) -> float:
    """Added to a variance that may be zero in training."""
    eps = number(value, "eps")
    if not (eps > 0 if training else eps >= 0):
        wanted = "a positive number in training" if training else "a number of at least 0"
        raise ValueError(f"eps: expected {wanted}, got {value!r}")
    return eps


def dense(tensor: Tensor, name: str) -> None:
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "a quantized" if tensor.is_quantized else f"a {tensor.layout}"
        raise TypeError(f"{name}: expected a dense (strided) tensor, got {kind} one")


def activations(x: Tensor, name: str = "x") -> None:
    """[N, C, H, W], dense, of a supported dtype, with at least one channel and one pixel (N may be 0)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor [N, C, H, W], got {describe(x)}")
    dense(x, name)
    if x.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {describe(x)}")
    if x.dim() != 4:
        raise ValueError(f"{name}: expected 4 dimensions [N, C, H, W], got {describe(x)}")
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{name}: expected C, H and W of at least 1 (only N may be 0), got {describe(x)}")


def same_dtype_and_device(tensor: Tensor | None, x: Tensor, name: str, *, floating: bool = False) -> None:
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {describe(tensor)}")
    dense(tensor, name)
    if tensor.dtype != x.dtype and not (floating and tensor.is_floating_point()):
        raise TypeError(f"{name}: expected the input's dtype {x.dtype}, got {describe(tensor)}")
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected the input's device {x.device}, got {describe(tensor)}")


def weight(tensor: Tensor, x: Tensor, expected: tuple[int | str, ...], name: str, *, autocast: bool = False) -> None:
    """A weight whose integer dimensions are these; strings name the free ones, which must be at least 1.

    With `autocast` any floating-point dtype will do: it becomes x's later.
    """
    if tensor is None:
        raise TypeError(f"{name}: expected a tensor, got None")
    same_dtype_and_device(tensor, x, name, floating=autocast)
    ok = tensor.dim() == len(expected) and all(
        size == want if isinstance(want, (int, torch.SymInt)) else size > 0
        for size, want in zip(tensor.shape, expected, strict=True)
    )
    if not ok:
        shape = ", ".join(str(want) for want in expected)
        raise ValueError(f"{name}: expected [{shape}] for the input {describe(x)}, got {describe(tensor)}")


def vector(tensor: Tensor | None, length: int, x: Tensor, name: str) -> None:
    """A per-channel vector of x's dtype; with a 16-bit x float32 is as good (batch norm often stays there)."""
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor [{length}], got {describe(tensor)}")
    dense(tensor, name)
    if tensor.dtype != x.dtype and not (tensor.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16)):
        wanted = x.dtype if x.dtype in (torch.float32, torch.float64) else f"{x.dtype} or torch.float32"
        raise TypeError(f"{name}: expected {wanted} for an input of {x.dtype}, got {describe(tensor)}")
    if tensor.dim() != 1 or tensor.shape[0] != length:
        raise ValueError(f"{name}: expected [{length}], got {describe(tensor)}")
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected the input's device {x.device}, got {describe(tensor)}")


def batch_norm(
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    length: int,
    x: Tensor,
    training: bool,
    suffix: str = "",
) -> bool:
    """Check one batch norm's vectors. Returns whether there is a batch norm at all."""
    named = {
        f"bn_weight{suffix}": bn_weight,
        f"bn_bias{suffix}": bn_bias,
        f"running_mean{suffix}": running_mean,
        f"running_var{suffix}": running_var,
    }
    for name, tensor in named.items():
        vector(tensor, length, x, name)
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"expected running_mean{suffix} and running_var{suffix} together, got only one of them")
    present = any(tensor is not None for tensor in named.values())
    if present and not training and running_mean is None:
        raise ValueError(
            f"expected running_mean{suffix} and running_var{suffix} in evaluation, got None; "
            "pass them, or training=True to use batch statistics"
        )
    for name in (f"running_mean{suffix}", f"running_var{suffix}"):
        tensor = named[name]
        if tensor is not None and tensor.requires_grad:
            raise ValueError(f"{name}: expected a buffer, got a tensor that requires a gradient")
    return present


def output_size(image: Sequence[int], window: Sequence[int], stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """(P, Q) of a convolution over an image of (H, W); the window must fit into the padded image."""
    sizes = []
    for axis in (0, 1):
        padded = image[axis] + 2 * padding[axis]
        span = dilation[axis] * (window[axis] - 1) + 1
        if span > padded:
            raise ValueError(
                f"expected a window no larger than the padded input, got a window of {span} (dilation included) over "
                f"{padded} along {'HW'[axis]}"
            )
        sizes.append((padded - span) // stride[axis] + 1)
    return sizes[0], sizes[1]


def residual(tensor: Tensor | None, x: Tensor, expected: tuple[int, int, int, int]) -> None:
    if tensor is None:
        return
    same_dtype_and_device(tensor, x, "residual")
    if tuple(tensor.shape) != expected:
        raise ValueError(f"residual: expected the output's shape {list(expected)}, got {describe(tensor)}")


def several_values_per_channel(x: Tensor, size: Pair) -> None:
    """Batch statistics of one value are undefined; torch.nn.functional.batch_norm refuses them as well."""
    if x.shape[0] * size[0] * size[1] == 1:
        raise ValueError(
            "training: expected more than one value per channel for the batch statistics, got one "
            f"(N x P x Q = 1 x 1 x 1 for x {describe(x)}); use a larger batch or training=False"
        )
