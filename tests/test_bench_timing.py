"""The benchmark harness: statistics and turns. No assertion depends on how long anything takes."""

import pytest

from inception_kernels.bench import timing


def test_quantile_interpolates_and_refuses_nonsense() -> None:
    values = [4.0, 1.0, 3.0, 2.0, 5.0]
    assert timing.quantile(values, 0.0) == 1.0
    assert timing.quantile(values, 0.5) == 3.0
    assert timing.quantile(values, 0.1) == pytest.approx(1.4)
    assert timing.quantile(values, 0.9) == pytest.approx(4.6)
    with pytest.raises(ValueError, match="at least one value"):
        timing.quantile([], 0.5)
    with pytest.raises(ValueError, match="share in"):
        timing.quantile(values, 1.5)


def test_summary_is_in_milliseconds() -> None:
    summary = timing.summarize([0.001, 0.002, 0.003])
    assert (summary.median, summary.samples) == (pytest.approx(2.0), 3)
    assert summary.p10 < summary.median < summary.p90


def test_geometric_mean() -> None:
    assert timing.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="above zero"):
        timing.geometric_mean([1.0, 0.0])


class CountingClock(timing.CpuClock):
    """Every call takes one millisecond of its own time."""

    def seconds(self, call: timing.Call, count: int) -> float:
        for _ in range(count):
            call()
        return 1e-3


def test_everyone_has_a_turn_in_every_round_and_the_order_rotates() -> None:
    turns: list[str] = []
    calls = {name: lambda name=name: turns.append(name) for name in "abc"}
    marks: list[int] = []
    samples = timing.interleave(calls, 4, 4e-3, CountingClock(), between=lambda: marks.append(len(turns)))
    slots = [turns[start:end] for start, end in zip(marks, [*marks[1:], len(turns)], strict=True)]
    assert [slot[0] for slot in slots] == list("abcbcacababc")
    assert all(len(set(slot)) == 1 for slot in slots)
    # Four calls fill a slot; the one that begins it is not a sample.
    assert {len(slot) for slot in slots} == {5}
    assert {name: len(values) for name, values in samples.items()} == {"a": 16, "b": 16, "c": 16}


def test_a_limit_ends_the_rounds_but_three_always_run() -> None:
    calls = {"a": lambda: None, "b": lambda: None}
    samples = timing.interleave(calls, 9, 1e-3, CountingClock(), limit_seconds=1e-12)
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3}


class SlowClock(timing.CpuClock):
    """Every call takes as long as it returns."""

    def seconds(self, call: timing.Call, count: int) -> float:
        return [call() for _ in range(count)][-1]  # type: ignore[return-value]  # the calls below return their seconds


def test_who_is_slow_beyond_doubt_has_one_sample() -> None:
    calls = {"fast": lambda: 0.5, "slow": lambda: 6.0, "slower": lambda: 4.0, "slowest": lambda: 90.0}
    samples = timing.interleave(calls, 9, 1e-3, SlowClock())
    assert {name: len(values) for name, values in samples.items()} == {
        "fast": 9,
        "slow": 1,
        "slower": 9,
        "slowest": 1,
    }
    assert samples["slowest"] == [90.0]
    # What takes no time to repeat is repeated.
    few = timing.interleave({"fast": lambda: 1e-5, "slow": lambda: 9e-4}, 9, 1e-3, SlowClock())
    assert min(len(values) for values in few.values()) == 9


def test_harness_overhead_is_a_small_positive_number() -> None:
    assert timing.harness_overhead_seconds() > 0
