"""Multiply-adds of this package's operators, from shapes.

One MAC is one multiplication with its addition; 1 MAC = 2 FLOP. Convention of the papers and of
`torch.utils.flop_counter`: every window position counts in full, also where it lies on padding; batch norm,
activations, residual additions and biases count nothing; what a backward pass recomputes counts nothing.

`registration.py` registers the formulas there. For plain PyTorch convolutions its own formula stays; in torch 2.13
that one counts the weight gradient of a depthwise convolution C times too high (it ignores the groups).
"""

from collections.abc import Callable, Sequence
from math import prod

from inception_kernels.graph.encode import multiply_adds

Pair = int | Sequence[int]


def _pair(value: Pair) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)


def output_size(size: Pair, window: Pair, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1) -> tuple[int, int]:
    """`(P, Q)` of a convolution over `(H, W)`. Raises ValueError where the window exceeds the padded input."""
    sizes = []
    for extent, taps, step, border, gap in zip(
        _pair(size), _pair(window), _pair(stride), _pair(padding), _pair(dilation), strict=True
    ):
        room = extent + 2 * border - gap * (taps - 1) - 1
        if room < 0:
            raise ValueError(
                f"expected a window within the padded input, got {taps} taps with dilation {gap} "
                f"over {extent} + 2 x {border}"
            )
        sizes.append(room // step + 1)
    return sizes[0], sizes[1]


def conv2d_macs(
    x: Sequence[int], weight: Sequence[int], stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1
) -> int:
    """N P Q K (C / groups) R S, for shapes `x` `[N, C, H, W]` and `weight` `[K, C / groups, R, S]`."""
    p, q = output_size(x[2:], weight[2:], stride, padding, dilation)
    return x[0] * p * q * prod(weight)


def conv2d_backward_macs(
    x: Sequence[int],
    weight: Sequence[int],
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    grad_x: bool = True,
    grad_weight: bool = True,
) -> int:
    """Each of the two gradients takes as many multiply-adds as the convolution itself."""
    return (int(grad_x) + int(grad_weight)) * conv2d_macs(x, weight, stride, padding, dilation)


def separable_conv2d_macs(
    x: Sequence[int],
    depthwise_weight: Sequence[int],
    pointwise_weight: Sequence[int],
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> int:
    """N P Q C (R S + K), for `x` `[N, C, H, W]`, weights `[C, 1, R, S]` and `[K, C, 1, 1]`."""
    p, q = output_size(x[2:], depthwise_weight[2:], stride, padding, dilation)
    return x[0] * p * q * (prod(depthwise_weight) + prod(pointwise_weight))


def separable_conv2d_backward_macs(
    x: Sequence[int],
    depthwise_weight: Sequence[int],
    pointwise_weight: Sequence[int],
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    grad_x: bool = True,
    grad_depthwise_weight: bool = True,
    grad_pointwise_weight: bool = True,
    grad_depthwise_bias: bool = False,
) -> int:
    """Sum over the gradients asked for.

    The gradients of `x`, of the depthwise weight and of the depthwise bias each need the gradient through the
    pointwise convolution, counted once.
    """
    p, q = output_size(x[2:], depthwise_weight[2:], stride, padding, dilation)
    through_pointwise = grad_x or grad_depthwise_weight or grad_depthwise_bias
    pointwise = (int(through_pointwise) + int(grad_pointwise_weight)) * prod(pointwise_weight)
    depthwise = (int(grad_x) + int(grad_depthwise_weight)) * prod(depthwise_weight)
    return x[0] * p * q * (pointwise + depthwise)


def asymmetric_pair_macs(
    x: Sequence[int],
    weight1: Sequence[int],
    weight2: Sequence[int],
    stride1: Pair = 1,
    stride2: Pair = 1,
    padding1: Pair = 0,
    padding2: Pair = 0,
) -> int:
    """Both convolutions, for `x` `[N, C, H, W]`, weights `[M, C, R1, S1]` and `[K, M, R2, S2]`.

    What a kernel recomputes at tile borders to keep the intermediate on chip does not count.
    """
    middle = output_size(x[2:], weight1[2:], stride1, padding1)
    second = conv2d_macs((x[0], weight1[0], *middle), weight2, stride2, padding2)
    return conv2d_macs(x, weight1, stride1, padding1) + second


def asymmetric_pair_backward_macs(
    x: Sequence[int],
    weight1: Sequence[int],
    weight2: Sequence[int],
    stride1: Pair = 1,
    stride2: Pair = 1,
    padding1: Pair = 0,
    padding2: Pair = 0,
    grad_x: bool = True,
) -> int:
    """All gradients; `grad_x=False` leaves out that of the input, which the first layer of a network does not need."""
    first = conv2d_macs(x, weight1, stride1, padding1)
    both = asymmetric_pair_macs(x, weight1, weight2, stride1, stride2, padding1, padding2)
    return 2 * both - (0 if grad_x else first)


# Below, the operators' schemas (csrc/ops.cpp) with tensors replaced by shapes, but in a program; one MAC is two FLOP.


def _conv2d_bn_act(x, weight, bn_weight, bn_bias, mean, var, bias, residual, stride, padding, dilation, *_, **__):
    return 2 * conv2d_macs(x, weight, stride, padding, dilation)


def _conv2d_bn_act_training(x, weight, bn_weight, bn_bias, bias, residual, stride, padding, dilation, *_, **__):
    return 2 * conv2d_macs(x, weight, stride, padding, dilation)


def _conv2d_bn_act_backward(
    grad_y, x, weight, bn_weight, bn_bias, mean, var, bias, residual, z, stride, padding, dilation,
    activation, training, eps, output_mask, *_, **__,
):  # fmt: skip
    return 2 * conv2d_backward_macs(x, weight, stride, padding, dilation, output_mask[0], output_mask[1])


def _conv2d_bn_act_prepacked(x, packed, scale, shift, residual, weight_shape, stride, padding, dilation, *_, **__):
    return 2 * conv2d_macs(x, weight_shape, stride, padding, dilation)


def _separable_conv2d(
    x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, mean, var, depthwise_bias, bias, residual,
    stride, padding, dilation, *_, **__,
):  # fmt: skip
    return 2 * separable_conv2d_macs(x, depthwise_weight, pointwise_weight, stride, padding, dilation)


def _separable_conv2d_training(
    x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, depthwise_bias, bias, residual,
    stride, padding, dilation, *_, **__,
):  # fmt: skip
    return 2 * separable_conv2d_macs(x, depthwise_weight, pointwise_weight, stride, padding, dilation)


def _separable_conv2d_backward(
    grad_y, x, depthwise_weight, pointwise_weight, bn_weight, bn_bias, mean, var, depthwise_bias, bias, residual, z,
    stride, padding, dilation, input_activation, mid_activation, activation, training, eps, output_mask, *_, **__,
):  # fmt: skip
    grad_x, grad_depthwise, grad_pointwise, _, _, grad_depthwise_bias, *_ = output_mask
    return 2 * separable_conv2d_backward_macs(
        x, depthwise_weight, pointwise_weight, stride, padding, dilation,
        grad_x, grad_depthwise, grad_pointwise, grad_depthwise_bias,
    )  # fmt: skip


def _separable_conv2d_prepacked(
    x, packed_depthwise, packed_pointwise, depthwise_bias, scale, shift, residual, window,
    stride, padding, dilation, *_, **__,
):  # fmt: skip
    k, c, r, s = window
    return 2 * separable_conv2d_macs(x, (c, 1, r, s), (k, c, 1, 1), stride, padding, dilation)


def _asymmetric_pair(
    x, weight1, bn_weight1, bn_bias1, mean1, var1, bias1, weight2, bn_weight2, bn_bias2, mean2, var2, bias2,
    stride1, stride2, padding1, padding2, *_, **__,
):  # fmt: skip
    return 2 * asymmetric_pair_macs(x, weight1, weight2, stride1, stride2, padding1, padding2)


def _asymmetric_pair_prepacked(
    x, packed1, scale1, shift1, weight_shape1, packed2, scale2, shift2, weight_shape2,
    stride1, stride2, padding1, padding2, *_, **__,
):  # fmt: skip
    return 2 * asymmetric_pair_macs(x, weight_shape1, weight_shape2, stride1, stride2, padding1, padding2)


def _pointwise_depthwise_conv2d(
    x, pointwise_weight, depthwise_weight, bn_weight, bn_bias, mean, var, stride, padding, dilation, *_, **__
):
    middle = (x[0], pointwise_weight[0], *x[2:])
    return 2 * (conv2d_macs(x, pointwise_weight) + conv2d_macs(middle, depthwise_weight, stride, padding, dilation))


def _run_program(inputs, program, constants, output_sizes, *_, **__):
    return 2 * multiply_adds(program)


FORMULAS: dict[str, Callable[..., int]] = {
    "conv2d_bn_act": _conv2d_bn_act,
    "conv2d_bn_act_training": _conv2d_bn_act_training,
    "conv2d_bn_act_backward": _conv2d_bn_act_backward,
    "conv2d_bn_act_prepacked": _conv2d_bn_act_prepacked,
    "separable_conv2d": _separable_conv2d,
    "separable_conv2d_training": _separable_conv2d_training,
    "separable_conv2d_backward": _separable_conv2d_backward,
    "separable_conv2d_prepacked": _separable_conv2d_prepacked,
    "asymmetric_pair": _asymmetric_pair,
    "asymmetric_pair_prepacked": _asymmetric_pair_prepacked,
    "pointwise_depthwise_conv2d": _pointwise_depthwise_conv2d,
    "run_program": _run_program,
    "time_program": _run_program,
}
FROM_VALUES = {_run_program}  # the geometry is in the program's numbers, not in shapes
