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
from .conv2d_bn_act import in_own_format, of_vector, training_outputs
from .update_running_statistics import update_running_statistics

_NAME = "separable_conv2d"


def separable_conv2d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    bn_weight: Tensor | None = None,
    bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    residual: Tensor | None = None,
    stride: check.IntOrPair = 1,
    padding: check.IntOrPair = 0,
    dilation: check.IntOrPair = 1,
    depthwise_bias: Tensor | None = None,
    bias: Tensor | None = None,
    input_activation: str = "none",
    mid_activation: str = "none",
    activation: str = "none",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Depthwise-separable convolution with everything around it in one operator.

    ``activation(BN(pointwise(mid_activation(depthwise(input_activation(x))))) + residual)``: the unit of Xception
    (Chollet 2017, section 2 and figure 5), where the input activation is ReLU and there is none in the middle
    (section 4.7). The depthwise result never exists as a tensor.

    Args:
        x: ``[N, C, H, W]``, float32, float64, bfloat16 or float16; channels-last is native, other layouts are
            converted.
        depthwise_weight: ``[C, 1, R, S]`` of x's dtype; under autocast of any floating-point dtype, as its gradient.
        pointwise_weight: ``[K, C, 1, 1]``, likewise.
        bn_weight, bn_bias: ``[K]`` or None (1 and 0), of x's dtype, or float32 where x has 16 bits (as all vectors).
        running_mean, running_var: ``[K]``. Evaluation normalises with them; training updates them in place (with the
            unbiased variance), or leaves them out when None. Without any batch-norm argument BN is skipped.
        residual: ``[N, K, P, Q]`` of x's dtype, added after BN, or None.
        stride, padding, dilation: of the depthwise part; integers or (height, width). Zeros pad the activated input.
        depthwise_bias, bias: ``[C]`` and ``[K]``, or None.
        input_activation, mid_activation, activation: "none", "relu", "relu6", "elu" or "silu".
        training: normalise with the statistics of this batch.
        momentum: weight of this batch in the running statistics.
        eps: added to the variance.

    Returns:
        ``[N, K, P, Q]`` of x's dtype in x's memory format, with P and Q as for :func:`conv2d_bn_act`. Empty for N = 0.
        Where a gradient through BN is wanted, the raw output before BN is kept for it, rounded to x's dtype, in
        evaluation too.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`conv2d_bn_act`.
    """
    dtype = autocast_dtype(x) if isinstance(x, Tensor) else None
    if dtype is not None:
        x, residual = cast(x, dtype), cast(residual, dtype)
    check.activations(x)
    autocast = dtype is not None
    check.weight(depthwise_weight, x, (x.shape[1], 1, "R", "S"), "depthwise_weight", autocast=autocast)
    check.weight(pointwise_weight, x, ("K", x.shape[1], 1, 1), "pointwise_weight", autocast=autocast)
    stride, padding, dilation = (
        check.pair(stride, "stride", 1),
        check.pair(padding, "padding", 0),
        check.pair(dilation, "dilation", 1),
    )
    check.activation(input_activation, "input_activation")
    check.activation(mid_activation, "mid_activation")
    check.activation(activation, "activation")
    check.flag(training, "training")
    momentum, eps = check.number(momentum, "momentum"), check.epsilon(eps, training)
    channels = pointwise_weight.shape[0]
    has_bn = check.batch_norm(bn_weight, bn_bias, running_mean, running_var, channels, x, training)
    check.vector(depthwise_bias, x.shape[1], x, "depthwise_bias")
    check.vector(bias, channels, x, "bias")
    size = check.output_size(x.shape[2:], depthwise_weight.shape[2:], stride, padding, dilation)
    check.residual(residual, x, (x.shape[0], channels, *size))
    batch_statistics = has_bn and training
    if batch_statistics:
        check.several_values_per_channel(x, size)
        separate_memory(
            {"running_mean": running_mean, "running_var": running_var},
            {
                "x": x, "depthwise_weight": depthwise_weight, "pointwise_weight": pointwise_weight,
                "bn_weight": bn_weight, "bn_bias": bn_bias, "depthwise_bias": depthwise_bias, "bias": bias,
                "residual": residual,
            },
        )  # fmt: skip

    backend = backends.choose(
        _NAME,
        x,
        lambda: shape_numbers(
            x.shape, (pointwise_weight.shape[0], x.shape[1], *depthwise_weight.shape[2:]), stride, padding, dilation
        ),
    )
    parameters = depthwise_weight, pointwise_weight, bn_bias, depthwise_bias, bias, residual
    keeps = not batch_statistics and keeps_raw_output(backend, x, parameters, bn_weight, running_mean, activation)
    if backend == "reference" or not (batch_statistics or keeps):  # the others do so themselves
        depthwise_weight, pointwise_weight = cast(depthwise_weight, dtype), cast(pointwise_weight, dtype)
    if backend == "reference":
        return reference.separable_conv2d(
            x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, running_mean, running_var, residual,
            stride, padding, dilation, depthwise_bias, bias, input_activation, mid_activation, activation,
            training, momentum, eps,
        )  # fmt: skip
    kernels = namespace(backend)
    if keeps:
        return evaluation_calls[kernels.name](
            x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, running_mean, running_var,
            depthwise_bias, bias, residual,
            stride, padding, dilation, input_activation, mid_activation, activation, eps,
        )  # fmt: skip
    if not batch_statistics:
        return kernels.separable_conv2d(
            x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, running_mean, running_var,
            depthwise_bias, bias, residual, stride, padding, dilation,
            input_activation, mid_activation, activation, eps,
        )  # fmt: skip
    return training_calls[kernels.name](
        partial(
            update_running_statistics,
            running_mean, running_var, momentum, x.shape[0] * size[0] * size[1], backend in ("cuda", "cpu"),
        ),
        x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, depthwise_bias, bias, residual,
        stride, padding, dilation, input_activation, mid_activation, activation, eps,
    )  # fmt: skip


# ---- fakes


def _output(x: Tensor, depthwise: Tensor, pointwise: Tensor, stride: Any, padding: Any, dilation: Any) -> Tensor:
    size = check.output_size(x.shape[2:], depthwise.shape[2:], stride, padding, dilation)
    return empty_activations(x, (x.shape[0], pointwise.shape[0], *size), memory_format_of(x))


def _fake(
    x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, running_mean, running_var,
    depthwise_bias, bias, residual, stride, padding, dilation, input_activation, mid_activation, activation, eps,
):  # fmt: skip
    return _output(x, depthwise_weight, pointwise_weight, stride, padding, dilation)


def _fake_training(
    x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, depthwise_bias, bias, residual,
    stride, padding, dilation, input_activation, mid_activation, activation, eps,
):  # fmt: skip
    return training_outputs(x, _output(x, depthwise_weight, pointwise_weight, stride, padding, dilation))


def _of_weight(weight: Tensor, needed: bool, dtype: torch.dtype) -> Tensor:
    return weight.new_empty(weight.shape if needed else (0,), dtype=dtype)  # contiguous


def _fake_backward(
    grad_y, x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, mean, var, depthwise_bias, bias,
    residual, z, stride, padding, dilation, input_activation, mid_activation, activation, training, eps,
    output_mask, float32_weights=False,
):  # fmt: skip
    weight_dtype = torch.float32 if float32_weights else x.dtype
    return (
        in_own_format(x, output_mask[0], x),
        _of_weight(depthwise_weight, output_mask[1], weight_dtype),
        _of_weight(pointwise_weight, output_mask[2], weight_dtype),
        of_vector(bn_weight, output_mask[3], x),
        of_vector(bn_bias, output_mask[4], x),
        of_vector(depthwise_bias, output_mask[5], x),
        of_vector(bias, output_mask[6], x),
        in_own_format(residual, output_mask[7], x),
    )


def _fake_prepacked(
    x, packed_depthwise, packed_pointwise, depthwise_bias, scale, shift, residual,
    window, stride, padding, dilation, input_activation, mid_activation, activation,
):  # fmt: skip
    size = check.output_size(x.shape[2:], window[2:], stride, padding, dilation)
    return empty_activations(x, (x.shape[0], window[0], *size), torch.channels_last)


# ---- autograd


def _setup(ctx, inputs, output):
    x, depthwise, pointwise, bn_weight, bn_bias, mean, var, depthwise_bias, bias, residual, *options = inputs
    ctx.save_for_backward(x, depthwise, pointwise, bn_weight, bn_bias, mean, var, depthwise_bias, bias, residual, None)
    ctx.options = options


def _setup_training(ctx, inputs, output):
    x, depthwise, pointwise, bn_weight, bn_bias, depthwise_bias, bias, residual, *options = inputs
    _, z, mean, var = output
    ctx.save_for_backward(x, depthwise, pointwise, bn_weight, bn_bias, mean, var, depthwise_bias, bias, residual, z)
    ctx.options = options
    ctx.set_materialize_grads(False)  # zeros of z's size, which nobody reads


def _evaluation(
    kernels, x, depthwise, pointwise, bn_weight, bn_bias, mean, var, depthwise_bias, bias, residual,
    stride, padding, dilation, input_activation, mid_activation, activation, eps,
):  # fmt: skip
    z = kernels.separable_conv2d(
        x, depthwise, pointwise, None, None, None, None, depthwise_bias, bias, None,
        stride, padding, dilation, input_activation, mid_activation, "none", eps,
    )  # fmt: skip
    return kernels.batch_norm(z, bn_weight, bn_bias, mean, var, residual, activation, eps), z


def _gradients(kernels, ctx, grad_y: Tensor, mask: list[bool], training: bool) -> list[Tensor | None]:
    *geometry, input_activation, mid_activation, activation, eps = ctx.options
    gradients = gradient_operator(
        kernels.separable_conv2d_backward,
        grad_y, *ctx.saved_tensors, *geometry, input_activation, mid_activation, activation, training, eps, mask,
        **float32_weights(ctx, grad_y, kernels.name),
    )  # fmt: skip
    grad_x, *grad_weights = wanted(gradients, mask)
    return [grad_x, *in_weight_dtypes(ctx, grad_weights[:2]), *grad_weights[2:]]


def _backward(kernels, ctx, grad_y):
    needs = ctx.needs_input_grad
    mask = [*needs[:5], *needs[7:10]]
    gradients = _gradients(kernels, ctx, grad_y, mask, False)
    return *gradients[:5], None, None, *gradients[5:], *[None] * 7


def _backward_training(kernels, ctx, grad_y, *ignored):
    if grad_y is None:
        return (None,) * 15
    return *_gradients(kernels, ctx, grad_y, list(ctx.needs_input_grad[:8]), True), *[None] * 7


training_calls: dict[str, TrainingCall] = {}  # by namespace
evaluation_calls: dict[str, EvaluationCall] = {}  # those that keep the raw output


def register(name: str) -> None:
    """Fakes and gradients of the operators of one namespace."""
    kernels = getattr(torch.ops, name)
    torch.library.register_fake(f"{name}::separable_conv2d", _fake)
    torch.library.register_fake(f"{name}::separable_conv2d_training", _fake_training)
    torch.library.register_fake(f"{name}::separable_conv2d_backward", _fake_backward)
    torch.library.register_autograd(f"{name}::separable_conv2d", partial(_backward, kernels), setup_context=_setup)
    backward_training = partial(_backward_training, kernels)
    torch.library.register_autograd(
        f"{name}::separable_conv2d_training", backward_training, setup_context=_setup_training
    )
    training_calls[name] = TrainingCall(
        kernels.separable_conv2d_training, _setup_training, backward_training, tensors=8, weights=(1, 2)
    )
    evaluation_calls[name] = EvaluationCall(
        partial(_evaluation, kernels), partial(_backward, kernels), tensors=10, weights=(1, 2)
    )
    torch.library.register_autograd(f"{name}::separable_conv2d_backward", refuse_double_backward(_NAME))


if _extension.available:
    register("inception_kernels")
    torch.library.register_fake("inception_kernels::separable_conv2d_prepacked", _fake_prepacked)
