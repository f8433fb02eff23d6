"""Compare a swapped model with itself unswapped, both against float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .layers import Swapped
from .shapes import modes, run

# Errors below this many units in the last place of the largest output are rounding, whatever PyTorch's own is.
_FLOOR_ULP = 4


class SwapVerificationError(RuntimeError):
    """A swapped model is less accurate than allowed. The swap was undone."""


@dataclass(frozen=True)
class OutputError:
    """Largest absolute errors of one output against float64, and what was allowed."""

    output: int
    dtype: str
    swapped: float
    unswapped: float
    allowed: float
    largest: float

    @property
    def ok(self) -> bool:
        return self.swapped <= self.allowed

    def __str__(self) -> str:
        return (
            f"output {self.output} ({self.dtype}): error {self.swapped:.3e} swapped, {self.unswapped:.3e} unswapped, "
            f"allowed {self.allowed:.3e}, largest value {self.largest:.3e}"
        )


@dataclass(frozen=True)
class Expected:
    """Outputs of the unswapped model in float64, in its own dtype, and in that on channels-last tensors.

    PyTorch's own rounding depends on the layout, and the fused layers compute in channels-last: the larger of the
    two errors is PyTorch's own.
    """

    exact: list[Tensor]
    unswapped: list[Tensor]
    channels_last: list[Tensor]


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    with modes(model, training=False), torch.no_grad():
        result = run(model, inputs)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def unswapped_errors(model: nn.Module, inputs: Any) -> Expected:
    """Run a copy of `model` without fused layers in evaluation, as it is and in float64."""
    from .apply import unswap  # apply needs this module

    plain = copy.deepcopy(model)
    if any(isinstance(module, Swapped) for module in plain.modules()):
        unswap(plain)
    outputs = _outputs(plain, inputs)
    if not outputs:
        raise ValueError("verify: the model returned no floating-point tensor to compare")
    plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    channels_last = _outputs(plain, tree_map(_channels_last, inputs))
    return Expected(_outputs(plain.double(), tree_map(_double, inputs)), outputs, channels_last)


def _channels_last(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.dim() != 4:
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def verify_model(model: nn.Module, inputs: Any, expected: Expected) -> list[OutputError]:
    """Errors of the swapped `model`, each at most twice the unswapped model's.

    Raises:
        SwapVerificationError: an output differs in shape, is not finite where the other is, or exceeds the bound.
    """
    outputs = _outputs(model, inputs)
    if len(outputs) != len(expected.exact):
        raise SwapVerificationError(f"expected {len(expected.exact)} outputs, got {len(outputs)}")
    errors = []
    references = zip(outputs, expected.unswapped, expected.channels_last, expected.exact, strict=True)
    for index, (actual, plain, nhwc, exact) in enumerate(references):
        if actual.shape != exact.shape or actual.dtype != plain.dtype:
            raise SwapVerificationError(
                f"output {index}: expected {plain.dtype} {tuple(exact.shape)}, got {actual.dtype} {tuple(actual.shape)}"
            )
        if actual.numel() == 0:
            continue
        own = max((other.double() - exact).abs().max().item() for other in (plain, nhwc))
        largest = exact.abs().max().item()
        allowed = max(2 * own, _FLOOR_ULP * torch.finfo(actual.dtype).eps * largest)
        error = (actual.double() - exact).abs().max().item()
        errors.append(OutputError(index, str(actual.dtype).removeprefix("torch."), error, own, allowed, largest))
    failed = [error for error in errors if not error.ok]
    if failed:
        raise SwapVerificationError(
            "the swapped model is less accurate than twice the unswapped one; the swap was undone: "
            + "; ".join(str(error) for error in failed)
        )
    return errors
