"""Calls without the generic wrapper of torch.library.register_autograd, which costs more than a small layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def training_call(
    operator: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any], weights: tuple[int, ...]
) -> Callable[..., Tensor]:
    """The training operator with the gradient that `setup` and `backward` define, as they are registered for it.

    Call it with `use_statistics`, which gets the batch's mean and variance while nothing is recorded, and all of the
    operator's arguments by position, the first being x; it returns y alone. Arguments at `weights` may have another
    floating-point dtype, as under autocast, and become x's; `backward` finds what they had in `ctx.weight_dtypes`, in
    order (absent where they had x's). Under torch.compile and function transforms the operator itself is called, so
    that it stays one node in their graphs.
    """

    def in_dtype_of_x(inputs: Sequence[Any]) -> Sequence[Any]:
        dtype = inputs[0].dtype
        for i in weights:
            if inputs[i].dtype != dtype:
                return tuple(value.to(dtype) if j in weights else value for j, value in enumerate(inputs))
        return inputs

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs_and_use: Any) -> Tensor:
            *given, use_statistics = inputs_and_use  # last, so that the operator's arguments keep their positions
            inputs = in_dtype_of_x(given)
            if inputs is not given:
                ctx.weight_dtypes = [given[i].dtype for i in weights]
            output = below_autograd(operator, *inputs)
            setup(ctx, inputs, output)
            y, _, mean, var = output
            use_statistics(mean, var)
            return y

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return *backward(ctx, *gradients), None

    apply = super(torch.autograd.Function, Gradient).apply

    def call(use_statistics: Callable[[Tensor, Tensor], None], *inputs: Any) -> Tensor:
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
            y, _, mean, var = operator(*in_dtype_of_x(inputs))
            with torch.no_grad():
                use_statistics(mean, var)
            return y
        return apply(*inputs, use_statistics)

    return call


def below_autograd(operator: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """The operator where nothing records it: within an autograd function, for one."""
    if torch.compiler.is_compiling():
        return operator(*inputs, **options)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*inputs, **options)


def float32_weights(ctx: Any, x: Tensor, namespace: str) -> dict[str, bool]:
    """Asks a backward operator that can, the CPU's, not to round the gradients of float32 weights to 16 bits."""
    dtypes = getattr(ctx, "weight_dtypes", None)
    if dtypes is None or x.dtype.itemsize != 2 or not x.is_cpu or namespace != "inception_kernels":
        return {}
    return {"float32_weights": True} if all(dtype == torch.float32 for dtype in dtypes) else {}


def in_weight_dtypes(ctx: Any, gradients: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients of a training call's weights in the dtypes that the caller's weights had."""
    dtypes = getattr(ctx, "weight_dtypes", None)
    if dtypes is None:
        return gradients
    return [each if each is None else each.to(dtype) for each, dtype in zip(gradients, dtypes, strict=True)]


def gradient_operator(operator: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """An operator of a backward pass; recorded only for a second derivative, which it refuses."""
    return operator(*inputs, **options) if torch.is_grad_enabled() else below_autograd(operator, *inputs, **options)
