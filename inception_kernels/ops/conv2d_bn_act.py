from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _extension, backends, reference
from . import _checks as check
from ._aliasing import separate_memory
from ._autograd import (
    EvaluationCall,
    TrainingCall,
    float32_weights,
    gradient_operator,
    in_weight_dtypes,
    keeps_raw_output,
)
from ._common import (
    autocast_dtype,
    cast,
    empty_activations,
    memory_format_of,
    namespace,
    refuse_double_backward,
    shape_numbers,
    wanted,
)
from .update_running_statistics import update_running_statistics

_NAME = "conv2d_bn_act"


def conv2d_bn_act(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: check.IntOrPair = 1,
    padding: check.IntOrPair = 0,
    dilation: check.IntOrPair = 1,
    activation: str = "relu",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Dense convolution, batch normalization, residual and activation in one operator.

    ``activation(BN(conv(x) + bias) + residual)``: the unit of Inception-v3 (Szegedy et al. 2016, sections 2 and 3) with
    any window, the asymmetric 1 x n and n x 1 ones of section 3.2 among them.

    Args:
        x: ``[N, C, H, W]``, float32, float64, bfloat16 or float16; channels-last is native, other layouts are
            converted.
        weight: ``[K, C, R, S]`` of x's dtype; under autocast of any floating-point dtype, which its gradient has.
        bn_weight, bn_bias: ``[K]`` or None (1 and 0), of x's dtype, or float32 where x has 16 bits (as all vectors).
        running_mean, running_var: ``[K]``. Evaluation normalises with them; training updates them in place (with the
            unbiased variance), or leaves them out when None. Without any batch-norm argument BN is skipped.
        bias: ``[K]``, the convolution's own, or None.
        residual: ``[N, K, P, Q]`` of x's dtype, added after BN, or None.
        stride, padding, dilation: integers or (height, width). Padding is with zeros.
        activation: "none", "relu", "relu6", "elu" or "silu".
        training: normalise with the statistics of this batch.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance; torchvision's Inception-v3 uses 1e-3.

    Returns:
        ``[N, K, P, Q]`` of x's dtype in x's memory format, where
        ``P = (H + 2 padding - dilation (R - 1) - 1) // stride + 1``, Q likewise. Accumulated in float32 (float64 for
        float64). Empty for N = 0. On the CPU 3 x 3, 5 x 5, 1 x 7 and 7 x 1 windows of stride 1 go by Winograd's
        algorithm where it pays (not in float64). Errors are then relative to the largest value nearby, typically those
        of storing the result in 16 bits and less than twice those of PyTorch's channels-last format in float32 (2.1
        times for images one or two pixels across under a window of seven); an infinite weight gives NaN. Where a
        gradient through BN is wanted, the convolution's raw output is kept for it, rounded to x's dtype, in evaluation
        too.

    Raises:
        TypeError: an argument that is no tensor, or has the wrong dtype or layout.
        ValueError: a wrong shape, device or number, a window larger than the padded input, one value per channel in
            training, or running statistics that share memory with another argument. Nothing has run or changed then.
        BackendUnavailableError: a backend forced with ``use_backend`` cannot run this call.
    """
    dtype = autocast_dtype(x) if isinstance(x, Tensor) else None
    if dtype is not None:
        x, residual = cast(x, dtype), cast(residual, dtype)
    check.activations(x)
    check.weight(weight, x, ("K", x.shape[1], "R", "S"), "weight", autocast=dtype is not None)
    stride, padding, dilation = (
        check.pair(stride, "stride", 1),
        check.pair(padding, "padding", 0),
        check.pair(dilation, "dilation", 1),
    )
    check.activation(activation, "activation")
    check.flag(training, "training")
    momentum, eps = check.number(momentum, "momentum"), check.epsilon(eps, training)
    channels = weight.shape[0]
    has_bn = check.batch_norm(bn_weight, bn_bias, running_mean, running_var, channels, x, training)
    check.vector(bias, channels, x, "bias")
    size = check.output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    check.residual(residual, x, (x.shape[0], channels, *size))
    batch_statistics = has_bn and training
    if batch_statistics:
        check.several_values_per_channel(x, size)
        separate_memory(
            {"running_mean": running_mean, "running_var": running_var},
            {"x": x, "weight": weight, "bn_weight": bn_weight, "bn_bias": bn_bias, "bias": bias, "residual": residual},
        )

    backend = backends.choose(_NAME, x, lambda: shape_numbers(x.shape, weight.shape, stride, padding, dilation))
    keeps = not batch_statistics and keeps_raw_output(
        backend, x, (weight, bn_bias, bias, residual), bn_weight, running_mean, activation
    )
    if backend == "reference" or not (batch_statistics or keeps):
        weight = cast(weight, dtype)  # the others do so themselves
    if backend == "reference":
        return reference.conv2d_bn_act(
            x, weight, bn_weight, bn_bias, running_mean, running_var, bias, residual,
            stride, padding, dilation, activation, training, momentum, eps,
        )  # fmt: skip
    kernels = namespace(backend)
    if keeps:
        return evaluation_calls[kernels.name](
            x, weight, bn_weight, bn_bias, running_mean, running_var, bias, residual,
            stride, padding, dilation, activation, eps,
        )  # fmt: skip
    if not batch_statistics:
        return kernels.conv2d_bn_act(
            x, weight, bn_weight, bn_bias, running_mean, running_var, bias, residual,
            stride, padding, dilation, activation, eps,
        )  # fmt: skip
    return training_calls[kernels.name](
        partial(
            update_running_statistics,
            running_mean, running_var, momentum, x.shape[0] * size[0] * size[1], backend in ("cuda", "cpu"),
        ),
        x, weight, bn_weight, bn_bias, bias, residual, stride, padding, dilation, activation, eps,
    )  # fmt: skip


# ---- fakes


def _output(x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    size = check.output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    return empty_activations(x, (x.shape[0], weight.shape[0], *size), memory_format_of(x))


def accumulation_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def training_outputs(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = torch.empty_like(y, memory_format=torch.channels_last)
    mean = x.new_empty((y.shape[1],), dtype=accumulation_dtype(x))
    return y, z, mean, torch.empty_like(mean)


def of_vector(like: Tensor | None, needed: bool, x: Tensor) -> Tensor:
    """The gradient of a vector as the compiled backward allocates it: empty where not asked for."""
    if like is None or not needed:
        return x.new_empty((0,), dtype=accumulation_dtype(x))
    return torch.empty_like(like)


def in_own_format(like: Tensor | None, needed: bool, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A gradient in the memory format of what it belongs to: activations, and the weight of a dense convolution."""
    if like is None or not needed:
        return x.new_empty((0,))
    return empty_activations(x, like.shape, memory_format_of(like), dtype)


def _fake(
    x, weight, bn_weight, bn_bias, running_mean, running_var, bias, residual,
    stride, padding, dilation, activation, eps,
):  # fmt: skip
    return _output(x, weight, stride, padding, dilation)


def _fake_training(x, weight, bn_weight, bn_bias, bias, residual, stride, padding, dilation, activation, eps):
    return training_outputs(x, _output(x, weight, stride, padding, dilation))


def _fake_backward(
    grad_y, x, weight, bn_weight, bn_bias, mean, var, bias, residual, z,
    stride, padding, dilation, activation, training, eps, output_mask, float32_weights=False,
):  # fmt: skip
    return (
        in_own_format(x, output_mask[0], x),
        in_own_format(weight, output_mask[1], x, torch.float32 if float32_weights else None),
        of_vector(bn_weight, output_mask[2], x),
        of_vector(bn_bias, output_mask[3], x),
        of_vector(bias, output_mask[4], x),
        in_own_format(residual, output_mask[5], x),
    )


def _fake_prepacked(x, packed, scale, shift, residual, weight_shape, stride, padding, dilation, activation):
    size = check.output_size(x.shape[2:], weight_shape[2:], stride, padding, dilation)
    return empty_activations(x, (x.shape[0], weight_shape[0], *size), torch.channels_last)


# ---- autograd


def _setup(ctx, inputs, output):
    x, weight, bn_weight, bn_bias, running_mean, running_var, bias, residual, *options = inputs
    ctx.save_for_backward(x, weight, bn_weight, bn_bias, running_mean, running_var, bias, residual, None)
    ctx.options = options


def _setup_training(ctx, inputs, output):
    x, weight, bn_weight, bn_bias, bias, residual, *options = inputs
    _, z, mean, var = output
    ctx.save_for_backward(x, weight, bn_weight, bn_bias, mean, var, bias, residual, z)
    ctx.options = options
    ctx.set_materialize_grads(False)  # zeros of z's size, which nobody reads


def _evaluation(
    kernels, x, weight, bn_weight, bn_bias, mean, var, bias, residual, stride, padding, dilation, activation, eps
):
    nothing = None, None, None, None
    z = kernels.conv2d_bn_act(x, weight, *nothing, bias, None, stride, padding, dilation, "none", eps)
    return kernels.batch_norm(z, bn_weight, bn_bias, mean, var, residual, activation, eps), z


def _gradients(kernels, ctx, grad_y: Tensor, mask: list[bool], training: bool) -> list[Tensor | None]:
    x, weight, bn_weight, bn_bias, mean, var, bias, residual, z = ctx.saved_tensors
    stride, padding, dilation, activation, eps = ctx.options
    gradients = gradient_operator(
        kernels.conv2d_bn_act_backward,
        grad_y, x, weight, bn_weight, bn_bias, mean, var, bias, residual, z,
        stride, padding, dilation, activation, training, eps, mask,
        **float32_weights(ctx, x, kernels.name),
    )  # fmt: skip
    grad_x, grad_weight, *others = wanted(gradients, mask)
    return [grad_x, *in_weight_dtypes(ctx, [grad_weight]), *others]


def _backward(kernels, ctx, grad_y):
    needs = ctx.needs_input_grad
    mask = [needs[0], needs[1], needs[2], needs[3], needs[6], needs[7]]
    x, weight, bn_weight, bn_bias, bias, residual = _gradients(kernels, ctx, grad_y, mask, False)
    return x, weight, bn_weight, bn_bias, None, None, bias, residual, *[None] * 5


def _backward_training(kernels, ctx, grad_y, *ignored):
    if grad_y is None:
        return (None,) * 11
    mask = list(ctx.needs_input_grad[:6])
    return *_gradients(kernels, ctx, grad_y, mask, True), *[None] * 5


training_calls: dict[str, TrainingCall] = {}  # by namespace
evaluation_calls: dict[str, EvaluationCall] = {}  # those that keep the raw output


def register(name: str) -> None:
    """Fakes and gradients of the operators of one namespace."""
    kernels = getattr(torch.ops, name)
    torch.library.register_fake(f"{name}::conv2d_bn_act", _fake)
    torch.library.register_fake(f"{name}::conv2d_bn_act_training", _fake_training)
    torch.library.register_fake(f"{name}::conv2d_bn_act_backward", _fake_backward)
    torch.library.register_autograd(f"{name}::conv2d_bn_act", partial(_backward, kernels), setup_context=_setup)
    backward_training = partial(_backward_training, kernels)
    torch.library.register_autograd(f"{name}::conv2d_bn_act_training", backward_training, setup_context=_setup_training)
    training_calls[name] = TrainingCall(
        kernels.conv2d_bn_act_training, _setup_training, backward_training, tensors=6, weights=(1,)
    )
    evaluation_calls[name] = EvaluationCall(
        partial(_evaluation, kernels), partial(_backward, kernels), tensors=8, weights=(1,)
    )
    torch.library.register_autograd(f"{name}::conv2d_bn_act_backward", refuse_double_backward(_NAME))


if _extension.available:
    register("inception_kernels")
    torch.library.register_fake("inception_kernels::conv2d_bn_act_prepacked", _fake_prepacked)
