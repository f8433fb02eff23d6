"""Interleaved timing: every implementation of a case has its turn in every round, so that drift hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]

_LEAST_ROUNDS = 3
# A call that is so many times slower than the fastest implementation's, and takes longer than a slot, is not repeated.
_BEYOND_DOUBT = 10.0
# A first call that takes so long does not do so for what only first calls do.
_LONG_SECONDS = 1.0


@dataclass(frozen=True)
class Timing:
    """Milliseconds per call over all samples."""

    median: float
    p10: float
    p90: float
    samples: int


class CpuClock:
    """`block_seconds`: a sample is the mean of as many calls as fill this time. Long enough that the clock and the loop
    (30 ns) do not show, short enough that most samples fall between two interruptions by other processes.
    """

    block_seconds = 2e-4

    def seconds(self, call: Call, count: int) -> float:
        """Seconds per call of `count` calls in a row."""
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count


class CudaClock:
    """A block is long, so that calls queue up as they do in use and launches overlap with the kernels before."""

    block_seconds = 5e-3

    def seconds(self, call: Call, count: int) -> float:
        """Seconds per call of `count` calls in a row, between two events on the current stream."""
        import torch

        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the values lie, interpolated linearly.

    Raises:
        ValueError: no values, or `share` outside [0, 1].
    """
    if not values:
        raise ValueError("expected at least one value, got none")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"expected a share in [0, 1], got {share}")
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def summarize(seconds: Sequence[float]) -> Timing:
    return Timing(
        statistics.median(seconds) * 1e3,
        quantile(seconds, 0.1) * 1e3,
        quantile(seconds, 0.9) * 1e3,
        len(seconds),
    )


def geometric_mean(values: Sequence[float]) -> float:
    """Raises ValueError on no values or on one that is not above zero."""
    if not values or min(values) <= 0:
        raise ValueError(f"expected values above zero, got {list(values)}")
    return statistics.geometric_mean(values)


def interleave(
    calls: Mapping[str, Call],
    rounds: int,
    slot_seconds: float,
    clock: CpuClock | CudaClock,
    between: Callable[[], object] = lambda: None,
    limit_seconds: float | None = None,
) -> dict[str, list[float]]:
    """Seconds per call, sample by sample, of each of `calls`.

    In each round every implementation runs for about `slot_seconds`; the order rotates by one from round to round.
    A slot of short calls starts with one that is not counted, because the implementation before has left its own data
    in the caches. `between` runs before each slot. No round begins after `limit_seconds`, but three always run. Whose
    call takes ten times as long as another's, and longer than a slot, has one sample, from before the first round:
    PyTorch's bfloat16 takes up to minutes for an image of a network where it has no kernels for the processor.
    """
    once = {}
    for name, call in calls.items():
        first = clock.seconds(call, 1)  # allocates
        if first < _LONG_SECONDS:
            first = clock.seconds(call, 1)
        # The shortest of a few: a call that was interrupted would give this implementation shorter slots than others.
        few = [clock.seconds(call, 1) for _ in range(4)] if first < slot_seconds else []
        once[name] = max(min([first, *few]), 1e-8)
    slow = max(slot_seconds, _BEYOND_DOUBT * min(once.values(), default=0.0))
    samples = {name: [once[name]] if once[name] > slow else [] for name in calls}
    names = [name for name in calls if not samples[name]]
    begun = time.monotonic()
    for turn in range(rounds):
        if limit_seconds is not None and turn >= _LEAST_ROUNDS and time.monotonic() - begun > limit_seconds:
            break
        shift = turn % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            between()
            block = max(1, round(clock.block_seconds / once[name]))
            blocks = max(1, round(slot_seconds / (block * once[name])))
            if once[name] < slot_seconds:
                clock.seconds(calls[name], 1)
            samples[name].extend(clock.seconds(calls[name], block) for _ in range(blocks))
    return samples


def harness_overhead_seconds() -> float:
    """What the timing loop itself adds to one call."""
    return min(CpuClock().seconds(lambda: None, 10000) for _ in range(5))
