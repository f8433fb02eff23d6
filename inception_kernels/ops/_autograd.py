"""Calls without the generic wrapper of torch.library.register_autograd, which costs more than a small layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def training_call(
    operator: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`operator` with the gradient that `setup` and `backward` define, as they are registered for it.

    All arguments must be given, by position. Under torch.compile and function transforms the operator itself is
    called, so that it stays one node in their graphs.
    """

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = below_autograd(operator, *inputs)
            setup(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return backward(ctx, *gradients)

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
            return operator(*inputs)
        return Gradient.apply(*inputs)

    return call


def below_autograd(operator: Callable[..., Any], *inputs: Any) -> Any:
    """The operator where nothing records it: within an autograd function, for one."""
    if torch.compiler.is_compiling():
        return operator(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*inputs)


def gradient_operator(operator: Callable[..., Any], *inputs: Any) -> Any:
    """An operator of a backward pass; recorded only for a second derivative, which it refuses."""
    return operator(*inputs) if torch.is_grad_enabled() else below_autograd(operator, *inputs)
