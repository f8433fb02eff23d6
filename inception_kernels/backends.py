"""Which backend runs an operator, why, and what has run.

A backend is an implementation of every operator: ``cuda`` (CUDA C++), ``triton``, ``cpu`` (host kernels) or
``reference`` (plain PyTorch: cuDNN or oneDNN). Each has one predicate, ``can_run_<backend>``, that returns None or the
reason why it cannot run a call. The automatic choice takes the first that can and logs every reason at DEBUG; a backend
that was forced with :func:`use_backend` raises with the same reason.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import _extension, cuda_kernels
from .cuda_kernels import Shapes
from .triton import _counters as triton_counters
from .triton import runtime as triton_runtime
from .triton import tuning as triton_tuning

logger = logging.getLogger("inception_kernels")

BACKENDS = ("cuda", "triton", "cpu", "reference")


class BackendUnavailableError(RuntimeError):
    """A backend was forced that cannot run this call; the message is the predicate's reason."""


@dataclass(frozen=True)
class Choice:
    """What ran the last call of an operator in this thread, and why the backends before it did not.

    `selections`: of the Triton kernels that it launched, the configuration of each and why.
    """

    operator: str
    backend: str
    reasons: dict[str, str] = field(default_factory=dict)
    selections: tuple[triton_tuning.Selection, ...] = ()


def can_run_cuda(x: Tensor | None = None, operator: str | None = None, shapes: Shapes | None = None) -> str | None:
    """None where the CUDA kernels can run this operator on x, else the reason.

    Without x: whether this installation and this machine have them. ``shapes``: see :func:`cuda_kernels.declined`.
    """
    return cuda_kernels.missing() if x is None else cuda_kernels.declined(x, operator, shapes)


def can_run_triton(x: Tensor | None = None, operator: str | None = None, shapes: Shapes | None = None) -> str | None:
    """None where a Triton kernel can run this operator on x, else the reason. Without x: whether Triton is there."""
    reason = triton_runtime.missing()
    if reason is not None:
        return reason
    if operator == "pointwise_depthwise_conv2d":
        return "pointwise_depthwise_conv2d has no Triton kernel"
    if not triton_runtime.interpreted() and not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if x is None:
        return None
    if x.dtype == torch.float64:
        return "the Triton kernels have no float64"
    if triton_runtime.interpreted():
        return None if x.device.type == "cpu" else "under TRITON_INTERPRET=1 the input has to be on the CPU"
    if x.device.type != "cuda":
        return f"the input is on {x.device.type}, not on a CUDA device"
    capability = torch.cuda.get_device_capability(x.device)
    if capability < (8, 0):
        return f"the Triton kernels need compute capability 8.0, this device has {capability[0]}.{capability[1]}"
    return None


def can_run_cpu(x: Tensor | None = None, operator: str | None = None, shapes: Shapes | None = None) -> str | None:
    """None where the host kernels can run on x, else the reason. Without x: whether this installation has them."""
    if not _extension.available:
        return _extension.reason
    if x is not None and x.device.type != "cpu":
        return f"the input is on {x.device.type}, not on the CPU"
    return None


def can_run_reference(x: Tensor | None = None, operator: str | None = None, shapes: Shapes | None = None) -> str | None:
    """Plain PyTorch runs wherever the tensor is."""
    return None


_predicates = {
    "cuda": can_run_cuda,
    "triton": can_run_triton,
    "cpu": can_run_cpu,
    "reference": can_run_reference,
}
# The order of the automatic choice, by the input's device. CUDA's kernels wait until they are proven on the kind of GPU
# (cuda_kernels.unproven), Triton's for a measurement: before, they run where use_backend asks for them, and in the
# layers that `tune` found them fastest for (preferring).
_preference = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "reference")}

_forced: str | None = None
_reference_calls: Counter[str] = Counter()
_reference_lock = threading.Lock()
_thread = threading.local()


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force one backend for every operator of this process (all threads) inside the ``with`` block.

    Args:
        name: "cuda", "triton", "cpu" or "reference".

    Raises:
        ValueError: no such backend.
        BackendUnavailableError: the installation has no such backend; a call it cannot run raises the same later.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    reason = _predicates[name]()
    if reason is not None:
        raise BackendUnavailableError(f"backend {name} cannot run: {reason}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


@contextmanager
def preferring(name: str) -> Iterator[None]:
    """In this thread and block, let the automatic choice ask this backend first; one that is forced stays forced."""
    before = getattr(_thread, "preferred", None)
    _thread.preferred = name
    try:
        yield
    finally:
        _thread.preferred = before


def forced() -> str | None:
    """The backend in force through :func:`use_backend`, or None."""
    return _forced


def available() -> dict[str, str | None]:
    """Every backend with None where this installation has it, else the reason why not."""
    return {name: predicate() for name, predicate in _predicates.items()}


def choose(operator: str, x: Tensor, shapes: Shapes | None = None) -> str:
    """The backend that runs this call. Counts the reference; compiled kernels count themselves.

    ``shapes``: see :func:`cuda_kernels.declined`.
    """
    name, reasons = decide(operator, x, shapes)
    if name is None:
        raise BackendUnavailableError(f"backend {_forced} cannot run {operator}: {reasons[str(_forced)]}")
    if not torch.compiler.is_compiling():
        record(operator, name, reasons)
    return name


def decide(operator: str, x: Tensor, shapes: Shapes | None = None) -> tuple[str | None, dict[str, str]]:
    """What :func:`choose` would choose, None where a forced backend cannot, and why not those before it."""
    order = (_forced,) if _forced is not None else _order(x)
    reasons: dict[str, str] = {}
    forward_mode = _forward_mode()
    for name in order:
        reason = forward_mode if name != "reference" else None
        reason = reason or _predicates[name](x, operator, shapes)
        if reason is None and name == "cuda" and _forced is None:
            reason = cuda_kernels.unproven(x, operator)
        if reason is None:
            return name, reasons
        reasons[name] = reason
    return None, reasons


def _forward_mode() -> str | None:
    """Why only the reference, plain PyTorch, can run: an operator without a tangent would be taken for a constant."""
    if torch.compiler.is_compiling():
        return None
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    if forward_ad._current_level < 0 and all(t.key() != torch._C._functorch.TransformType.Jvp for t in transforms):
        return None
    return "forward-mode differentiation is active, and the operators have no derivative for it"


def _order(x: Tensor) -> tuple[str, ...]:
    order = _preference.get(x.device.type, ("reference",))
    preferred = None if torch.compiler.is_compiling() else getattr(_thread, "preferred", None)
    return order if preferred is None else (preferred, *order)


def record(operator: str, name: str, reasons: dict[str, str]) -> None:
    """Note a choice that was made without :func:`choose`, for :func:`last_choice`, or by it."""
    _thread.last = (operator, name, reasons)
    if name == "triton":
        triton_tuning.begin()
    if name == "reference":
        with _reference_lock:
            _reference_calls[f"{operator}.forward.reference"] += 1
    for rejected, reason in reasons.items():
        logger.debug("%s: not on %s: %s", operator, rejected, reason)


def last_choice() -> Choice | None:
    """The choice made for this thread's last eager call of an operator; None before the first."""
    last = getattr(_thread, "last", None)
    if last is None:
        return None
    operator, name, reasons = last
    return Choice(operator, name, reasons, triton_tuning.selections() if name == "triton" else ())


def counters() -> dict[str, int]:
    """How often each kernel ran since the start or the last :func:`reset_counters`.

    Keys are ``<operator>.<direction>.<variant>``; compiled kernels count themselves where they run, so these numbers
    are evidence, under torch.compile too. Layout conversions count as ``layout.*``.
    """
    counts: Counter[str] = Counter()
    for line in _counted().splitlines():
        name, _, count = line.rpartition("=")
        counts[name] += int(count)
    counts.update(triton_counters.counters())
    with _reference_lock:
        counts.update(_reference_calls)
    return dict(counts)


def _counted() -> str:
    """One line ``name=count`` for each kernel of each extension; conversions of the layout count in both."""
    lines = ""
    if _extension.available:
        lines += torch.ops.inception_kernels._counted_kernels()
    if _extension.cuda_available:
        lines += torch.ops.inception_kernels._counted_cuda_kernels()
    return lines


def reset_counters() -> None:
    """Set every counter back to zero."""
    if _extension.available:
        torch.ops.inception_kernels._reset_counted_kernels()
    if _extension.cuda_available:
        torch.ops.inception_kernels._reset_counted_cuda_kernels()
    triton_counters.reset_counters()
    with _reference_lock:
        _reference_calls.clear()


def cpu_isa() -> str:
    """The instruction set that the host kernels use: "portable", "avx2", "avx512", "avx512bf16" or "amx"."""
    return torch.ops.inception_kernels._cpu_isa()


def best_cpu_isa() -> str:
    """The best instruction set that this machine offers to the host kernels."""
    return torch.ops.inception_kernels._best_cpu_isa()


def set_cpu_isa(name: str) -> None:
    """Lower the instruction set of the host kernels (tests, comparisons); IK_CPU_ISA does it at the start.

    Weights that were prepared before belong to the old setting and are refused afterwards.

    Raises:
        RuntimeError: no such instruction set, or this machine does not have it.
    """
    global _isa_changes
    torch.ops.inception_kernels._set_cpu_isa(name)
    _isa_changes += 1


_isa_changes = 0


def isa_changes() -> int:
    """How often :func:`set_cpu_isa` was called: weights that were prepared before the last call are stale."""
    return _isa_changes
