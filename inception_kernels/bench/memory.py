"""Peak memory of one call: the most that is alive at once beyond what was alive before the call.

Weights and inputs exist before the call and do not count; activations, gradients, workspaces and outputs do.

- "torch allocator": every allocation and release that torch's profiler records, exact. For this one call the package's
  operators allocate through torch, not from their pool. What a kernel takes from the system itself, past torch, is not
  seen.
- "cuda allocator": `torch.cuda.max_memory_allocated`.
- "resident set, first call": growth of the process's resident high-water mark over the first call of a library that has
  its own allocator; includes what that library sets up once. Linux only.
- "planned": the buffer that `optimize` planned for the intermediates, which all calls share, and the outputs.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..memory import keep

TORCH_ALLOCATOR = "torch allocator"
CUDA_ALLOCATOR = "cuda allocator"
RESIDENT = "resident set, first call"
PLANNED = "planned"

# Releases of blocks that are older than the recording are not counted, which is what this module promises.
_CHATTER = (
    "SyncActivityProfilerHandler",
    "Memory block of unknown size was allocated before the profiling started",
)


@dataclass(frozen=True)
class Profile:
    """Peak bytes of a call, and the operators that took most of its time."""

    peak_bytes: int
    method: str
    ran: str


def profile(call: Callable[[], object], device: str) -> Profile:
    """Run `call` once under torch's profiler."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    watch = torch.autograd.profiler.profile(profile_memory=True, use_device="cuda" if cuda else None)
    with _through_torch(), _without_chatter(), watch as recorded:
        call()
        if cuda:
            torch.cuda.synchronize()
    ran = _longest(recorded, cuda)
    if cuda:
        return Profile(torch.cuda.max_memory_allocated() - before, CUDA_ALLOCATOR, ran)
    results = recorded.kineto_results
    changes = [] if results is None else [each for each in results.events() if each.name() == "[memory]"]
    alive = peak = 0
    for change in sorted(changes, key=lambda each: each.start_ns()):
        alive += change.nbytes()
        peak = max(peak, alive)
    return Profile(peak, TORCH_ALLOCATOR, ran)


@contextlib.contextmanager
def _through_torch() -> Iterator[None]:
    before = keep(False)
    try:
        yield
    finally:
        keep(before)


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Drop what the profiler says on stderr at every start and stop, which no option turns off; pass on the rest."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            captured.seek(0)
            for line in captured.read().decode(errors="replace").splitlines():
                if not any(each in line for each in _CHATTER):
                    print(line, file=sys.stderr)


def resident_growth(call: Callable[[], object]) -> int | None:
    """How far `call` raises the resident set above its size before; None where Linux's /proc is not there."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not os.access(reset, os.W_OK):
        return None
    gc.collect()
    _release_free_memory()
    reset.write_text("5")  # the high-water mark starts again from here
    before = _status_bytes(status, "VmRSS")
    call()
    return max(0, _status_bytes(status, "VmHWM") - before)


def _release_free_memory() -> None:
    """Give what the C library keeps for reuse back to the system: pages that are resident already would not count."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _status_bytes(status: Path, key: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _longest(recorded: torch.autograd.profiler.profile, cuda: bool, count: int = 3) -> str:
    """The operators (on a GPU the kernels) with the most time of their own."""

    def own(event: object) -> float:
        return getattr(event, "self_device_time_total" if cuda else "self_cpu_time_total")

    events = sorted(recorded.key_averages(), key=own, reverse=True)
    return ", ".join(str(event.key)[:80] for event in events[:count] if own(event) > 0)
