"""Calls without the generic wrapper of torch.library.register_autograd, which costs more than a small layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def training_call(
    operator: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any], weights: tuple[int, ...]
) -> Callable[..., Any]:
    """`operator` with the gradient that `setup` and `backward` define, as they are registered for it.

    All arguments must be given, by position, the first being x. Those at `weights` may have another floating-point
    dtype, as under autocast, and become x's; `backward` finds what they had in `ctx.weight_dtypes`, in order (absent
    where they had x's). Under torch.compile and function transforms the operator itself is called, so that it stays one
    node in their graphs.
    """

    def in_dtype_of_x(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        dtype = inputs[0].dtype
        if all(inputs[i].dtype == dtype for i in weights):
            return inputs
        return tuple(value.to(dtype) if i in weights else value for i, value in enumerate(inputs))

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Any) -> Any:
            inputs = in_dtype_of_x(given)
            if inputs is not given:
                ctx.weight_dtypes = [given[i].dtype for i in weights]
            output = below_autograd(operator, *inputs)
            setup(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return backward(ctx, *gradients)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
            return operator(*in_dtype_of_x(inputs))
        return Gradient.apply(*inputs)

    return call


def below_autograd(operator: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """The operator where nothing records it: within an autograd function, for one."""
    if torch.compiler.is_compiling():
        return operator(*inputs, **options)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*inputs, **options)


def float32_weights(ctx: Any, x: torch.Tensor, namespace: str) -> dict[str, bool]:
    """Asks a backward operator that can, the CPU's, not to round the gradients of float32 weights to 16 bits."""
    dtypes = getattr(ctx, "weight_dtypes", None)
    if dtypes is None or x.dtype.itemsize != 2 or not x.is_cpu or namespace != "inception_kernels":
        return {}
    return {"float32_weights": True} if all(dtype == torch.float32 for dtype in dtypes) else {}


def in_weight_dtypes(ctx: Any, gradients: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The gradients of a training call's weights in the dtypes that the caller's weights had."""
    dtypes = getattr(ctx, "weight_dtypes", None)
    if dtypes is None:
        return gradients
    return [each if each is None else each.to(dtype) for each, dtype in zip(gradients, dtypes, strict=True)]


def gradient_operator(operator: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """An operator of a backward pass; recorded only for a second derivative, which it refuses."""
    return operator(*inputs, **options) if torch.is_grad_enabled() else below_autograd(operator, *inputs, **options)
