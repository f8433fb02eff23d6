"""Calls without the generic wrapper of torch.library.register_autograd, which costs more than a small layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class TrainingCall:
    """A training operator with the gradient that `setup` and `backward` define, as they are registered for it.

    Its first `tensors` arguments are tensors, the first of them x, the others options. The tensors at `weights` may
    have another floating-point dtype, as under autocast, and become x's; `backward` finds what they had in
    `ctx.weight_dtypes`, in order (absent where they had x's).
    """

    def __init__(
        self,
        operator: Callable[..., Any],
        setup: Callable[..., None],
        backward: Callable[..., Any],
        tensors: int,
        weights: tuple[int, ...],
    ) -> None:
        self._operator, self._tensors, self._weights = operator, tensors, weights

        class Gradient(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *given: Any) -> Tensor:
                *inputs, options, use_statistics = given
                dtype = inputs[0].dtype
                for i in weights:
                    if inputs[i].dtype != dtype:
                        ctx.weight_dtypes = self._to_dtype_of_x(inputs)
                        break
                inputs += options
                with torch._C._AutoDispatchBelowAutograd():
                    output = operator(*inputs)
                setup(ctx, inputs, output)
                y, _, mean, var = output
                use_statistics(mean, var)
                return y

            @staticmethod
            def backward(ctx: Any, *gradients: Any) -> Any:
                return *backward(ctx, *gradients)[:tensors], None, None

        self.apply: Callable[..., Tensor] = super(torch.autograd.Function, Gradient).apply
        """(*tensors, options, use_statistics): as a call, outside torch.compile and function transforms."""

    def _to_dtype_of_x(self, tensors: list[Any]) -> list[torch.dtype]:
        """In place; returns what the weights had."""
        given = [tensors[i].dtype for i in self._weights]
        for i in self._weights:
            tensors[i] = tensors[i].to(tensors[0].dtype)
        return given

    def __call__(self, use_statistics: Callable[[Tensor, Tensor], None], *inputs: Any) -> Tensor:
        """y alone. `use_statistics` gets the batch's mean and variance while nothing is recorded.

        Under torch.compile and function transforms the operator itself is called, so that it stays one node in their
        graphs.
        """
        tensors, options = list(inputs[: self._tensors]), inputs[self._tensors :]
        if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
            self._to_dtype_of_x(tensors)
            y, _, mean, var = self._operator(*tensors, *options)
            with torch.no_grad():
                use_statistics(mean, var)
            return y
        return self.apply(*tensors, options, use_statistics)


def keeps_raw_output(
    backend: str, x: Tensor, parameters: Sequence[Tensor | None], bn_weight: Tensor | None, mean: Tensor | None,
    activation: str,
) -> bool:  # fmt: skip
    """Whether a call in evaluation, whose gradient needs the convolution's raw output, keeps it.

    Else the gradient computes it again: under torch.compile and function transforms, without a batch norm, and by
    Triton. `parameters`: all that may require a gradient beside x and `bn_weight`.
    """
    if mean is None or backend not in ("cpu", "cuda") or not torch.is_grad_enabled():
        return False
    of_norm = bn_weight is not None and bn_weight.requires_grad
    if not of_norm and (activation == "none" or not any(t is not None and t.requires_grad for t in (x, *parameters))):
        return False
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is None


class EvaluationCall(TrainingCall):
    """The same with statistics that are given, among the `tensors`: what `keeps_raw_output` is about.

    `operator` returns y and the raw output; `backward` finds the tensors and the raw output saved, and `ctx.options`.
    """

    def __init__(
        self, operator: Callable[..., Any], backward: Callable[..., Any], tensors: int, weights: tuple[int, ...]
    ) -> None:
        def setup(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs[:tensors], output[1])
            ctx.options = inputs[tensors:]

        super().__init__(lambda *inputs: (*operator(*inputs), None, None), setup, backward, tensors, weights)

    def __call__(self, *inputs: Any) -> Tensor:
        return self.apply(*inputs[: self._tensors], inputs[self._tensors :], lambda mean, var: None)


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
