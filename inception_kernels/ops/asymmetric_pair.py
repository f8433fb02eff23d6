from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import _extension, backends, reference
from ..reference.asymmetric_pair import NO_BATCH_NORM, BatchNorm
from . import _checks as check
from ._aliasing import separate_memory
from ._common import autocast_dtype, cast, empty_activations, memory_format_of, namespace, shape_numbers, wanted
from .conv2d_bn_act import conv2d_bn_act

_NAME = "asymmetric_pair"
_NO_DILATION = (1, 1)


def asymmetric_pair(
    x: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    bn1: BatchNorm | None = None,
    bn2: BatchNorm | None = None,
    bias1: Tensor | None = None,
    bias2: Tensor | None = None,
    stride1: check.IntOrPair = 1,
    stride2: check.IntOrPair = 1,
    padding1: check.IntOrPair = 0,
    padding2: check.IntOrPair = 0,
    mid_activation: str = "relu",
    activation: str = "relu",
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """An n x n convolution factorised in space: 1 x n -> BN -> act -> n x 1 -> BN -> act, or the other order.

    Szegedy et al. 2016, section 3.2 and figure 3. In evaluation the intermediate stays in cache and never exists as a
    tensor. Training normalises the intermediate with statistics of the whole batch, so there it must exist, and the
    call is two of :func:`conv2d_bn_act`.

    Args:
        x: ``[N, C, H, W]``, as for :func:`conv2d_bn_act`.
        weight1, weight2: ``[M, C, R1, S1]`` and ``[K, M, R2, S2]`` of x's dtype; any two windows work.
        bn1, bn2: ``(bn_weight, bn_bias, running_mean, running_var)``, each ``[M]`` or ``[K]`` or None; None = no BN.
        bias1, bias2: ``[M]`` and ``[K]``, or None.
        stride1, stride2, padding1, padding2: integers or (height, width); for 1 x 7 -> 7 x 1 "same" padding is
            ``padding1=(0, 3), padding2=(3, 0)``.
        mid_activation, activation: after the first and the second convolution.
        training, momentum, eps: as for :func:`conv2d_bn_act`, for both.

    Returns:
        ``[N, K, P, Q]`` of x's dtype in x's memory format.

    Raises:
        TypeError, ValueError, BackendUnavailableError: as :func:`conv2d_bn_act`.
    """
    dtype = autocast_dtype(x) if isinstance(x, Tensor) else None
    if dtype is not None:
        x = cast(x, dtype)
    check.activations(x)
    autocast = dtype is not None
    check.weight(weight1, x, ("M", x.shape[1], "R", "S"), "weight1", autocast=autocast)
    check.weight(weight2, x, ("K", weight1.shape[0], "R", "S"), "weight2", autocast=autocast)
    stride1, stride2 = check.pair(stride1, "stride1", 1), check.pair(stride2, "stride2", 1)
    padding1, padding2 = check.pair(padding1, "padding1", 0), check.pair(padding2, "padding2", 0)
    check.activation(mid_activation, "mid_activation")
    check.activation(activation, "activation")
    check.flag(training, "training")
    momentum, eps = check.number(momentum, "momentum"), check.epsilon(eps, training)
    first, second = _four(bn1, "bn1"), _four(bn2, "bn2")
    has_bn = check.batch_norm(*first, weight1.shape[0], x, training, suffix=" of bn1")
    has_bn |= check.batch_norm(*second, weight2.shape[0], x, training, suffix=" of bn2")
    check.vector(bias1, weight1.shape[0], x, "bias1")
    check.vector(bias2, weight2.shape[0], x, "bias2")
    size = _sizes(x, weight1, weight2, stride1, stride2, padding1, padding2)
    if training and has_bn:
        check.several_values_per_channel(x, size[0])
        check.several_values_per_channel(x, size[1])
        separate_memory(
            {
                "running_mean1": first[2], "running_var1": first[3],
                "running_mean2": second[2], "running_var2": second[3],
            },
            {
                "x": x, "weight1": weight1, "weight2": weight2, "bn_weight1": first[0], "bn_bias1": first[1],
                "bn_weight2": second[0], "bn_bias2": second[1], "bias1": bias1, "bias2": bias2,
            },
        )  # fmt: skip
        mid = conv2d_bn_act(x, weight1, *first, bias1, None, stride1, padding1, 1, mid_activation, True, momentum, eps)
        return conv2d_bn_act(mid, weight2, *second, bias2, None, stride2, padding2, 1, activation, True, momentum, eps)

    weight1, weight2 = cast(weight1, dtype), cast(weight2, dtype)  # conv2d_bn_act does so itself

    def shapes() -> tuple[int, ...]:
        intermediate = (x.shape[0], weight1.shape[0], *size[0])
        return (
            *shape_numbers(x.shape, weight1.shape, stride1, padding1, _NO_DILATION),
            *shape_numbers(intermediate, weight2.shape, stride2, padding2, _NO_DILATION),
        )

    backend = backends.choose(_NAME, x, shapes)
    if backend == "reference":
        return reference.asymmetric_pair(
            x, weight1, weight2, bn1, bn2, bias1, bias2, stride1, stride2, padding1, padding2,
            mid_activation, activation, False, momentum, eps,
        )  # fmt: skip
    return namespace(backend).asymmetric_pair(
        x, weight1, *first, bias1, weight2, *second, bias2, stride1, stride2, padding1, padding2,
        mid_activation, activation, eps,
    )  # fmt: skip


def _four(bn: BatchNorm | None, name: str) -> BatchNorm:
    if bn is None:
        return NO_BATCH_NORM
    if not isinstance(bn, (tuple, list)) or len(bn) != 4:
        raise ValueError(
            f"{name}: expected (bn_weight, bn_bias, running_mean, running_var) or None, got {check.describe(bn)}"
        )
    return bn[0], bn[1], bn[2], bn[3]


def _sizes(x, weight1, weight2, stride1, stride2, padding1, padding2) -> tuple[check.Pair, check.Pair]:
    """(height, width) of the intermediate and of the output."""
    mid = check.output_size(x.shape[2:], weight1.shape[2:], stride1, padding1, _NO_DILATION)
    return mid, check.output_size(mid, weight2.shape[2:], stride2, padding2, _NO_DILATION)


def _fake(
    x, weight1, bn_weight1, bn_bias1, running_mean1, running_var1, bias1,
    weight2, bn_weight2, bn_bias2, running_mean2, running_var2, bias2,
    stride1, stride2, padding1, padding2, mid_activation, activation, eps,
):  # fmt: skip
    size = _sizes(x, weight1, weight2, stride1, stride2, padding1, padding2)[1]
    return empty_activations(x, (x.shape[0], weight2.shape[0], *size), memory_format_of(x))


def _fake_prepacked(
    x, packed1, scale1, shift1, weight_shape1, packed2, scale2, shift2, weight_shape2,
    stride1, stride2, padding1, padding2, mid_activation, activation,
):  # fmt: skip
    mid = check.output_size(x.shape[2:], weight_shape1[2:], stride1, padding1, _NO_DILATION)
    size = check.output_size(mid, weight_shape2[2:], stride2, padding2, _NO_DILATION)
    return empty_activations(x, (x.shape[0], weight_shape2[0], *size), torch.channels_last)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:13])
    ctx.options = inputs[13:]


def _backward(kernels, ctx, grad_y):
    """The intermediate is computed again; then the gradients of two convolutions."""
    x, weight1, *vectors1, weight2, gamma2, beta2, mean2, var2, bias2 = ctx.saved_tensors
    gamma1, beta1, mean1, var1, bias1 = vectors1
    stride1, stride2, padding1, padding2, mid_activation, activation, eps = ctx.options
    needs = ctx.needs_input_grad
    mid = kernels.conv2d_bn_act(
        x, weight1, gamma1, beta1, mean1, var1, bias1, None,
        stride1, padding1, _NO_DILATION, mid_activation, eps,
    )  # fmt: skip
    first_needed = any(needs[:7])
    mask2 = [first_needed, needs[7], needs[8], needs[9], needs[12], False]
    second = kernels.conv2d_bn_act_backward(
        grad_y, mid, weight2, gamma2, beta2, mean2, var2, bias2, None, None,
        stride2, padding2, _NO_DILATION, activation, False, eps, mask2,
    )  # fmt: skip
    grad_mid, grad_weight2, grad_gamma2, grad_beta2, grad_bias2, _ = wanted(second, mask2)
    mask1 = [needs[0], needs[1], needs[2], needs[3], needs[6], False]
    first: list[Tensor | None] = [None] * 6
    if first_needed:
        gradients = kernels.conv2d_bn_act_backward(
            grad_mid, x, weight1, gamma1, beta1, mean1, var1, bias1, None, None,
            stride1, padding1, _NO_DILATION, mid_activation, False, eps, mask1,
        )  # fmt: skip
        first = wanted(gradients, mask1)
    grad_x, grad_weight1, grad_gamma1, grad_beta1, grad_bias1, _ = first
    return (
        grad_x, grad_weight1, grad_gamma1, grad_beta1, None, None, grad_bias1,
        grad_weight2, grad_gamma2, grad_beta2, None, None, grad_bias2, *[None] * 7,
    )  # fmt: skip


def register(name: str) -> None:
    """The fake and the gradient of one namespace's operator."""
    kernels = getattr(torch.ops, name)
    torch.library.register_fake(f"{name}::{_NAME}", _fake)
    torch.library.register_autograd(f"{name}::{_NAME}", partial(_backward, kernels), setup_context=_setup)


if _extension.available:
    register("inception_kernels")
    torch.library.register_fake("inception_kernels::asymmetric_pair_prepacked", _fake_prepacked)
