"""The benchmark harness: statistics, turns, roofline, rows, withheld numbers, report and README tables.

No assertion depends on how long anything takes.
"""

import csv
import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from inception_kernels import backends, roofline, source_hash
from inception_kernels.bench import Config, Row, columns, environment, harness, memory, render, report, terminal, timing
from inception_kernels.bench.cases import cases
from inception_kernels.bench.config import LAYER_OPERATORS, OPERATORS
from inception_kernels.bench.contenders import Eager, OnnxRuntime, OpenVino, Ours, contenders
from inception_kernels.bench.contenders.base import Baseline, Prepared, Unfit
from inception_kernels.bench.contenders.compiled import Compiled
from inception_kernels.bench.plain import PlainConv, PlainLoss, PlainPair, PlainPointwiseDepthwise, PlainSeparable
from inception_kernels.bench.problem import Case, Problem
from inception_kernels.bench.row import (
    FAILED,
    LEFT_OUT,
    NOT_APPLICABLE,
    NOT_INSTALLED,
    OK,
    OURS,
    WITHHELD,
    from_document,
    to_document,
)
from inception_kernels.models.layers import distinct_layers, distinct_pairs

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's roofline from tiny probes: these tests do not look at speed."""
    monkeypatch.setattr(roofline, "_PRODUCTS", {"cpu": ((16, 16, 16),)})
    monkeypatch.setattr(roofline, "_COPIES", {"cpu": (2**12, 2**14)})
    monkeypatch.setattr(roofline.measure, "__defaults__", ("cpu", ("float32", "bfloat16"), 1e-4))


def conv(channels: tuple[int, int] = (6, 10), kernel: tuple[int, int] = (1, 3)) -> PlainConv:
    padding = (kernel[0] // 2, kernel[1] // 2)
    return PlainConv(channels, kernel, (1, 1), padding, (1, 1), "relu", 1e-3)


def separable() -> PlainSeparable:
    return PlainSeparable((6, 10), (3, 3), (1, 1), (1, 1), (1, 1), "relu", "none", 1e-5)


def pair() -> PlainPair:
    return PlainPair(conv((6, 8), (1, 3)), conv((8, 10), (3, 1)))


def pointwise_first() -> PlainPointwiseDepthwise:
    return PlainPointwiseDepthwise((6, 10), (3, 3), (1, 1), "relu", "relu", 1e-3)


LOSS = "label_smoothing_cross_entropy"
IMAGE_BUILDERS = {
    "conv2d_bn_act": conv,
    "separable_conv2d": separable,
    "asymmetric_pair": pair,
    "pointwise_depthwise_conv2d": pointwise_first,
}
BUILDERS = {**IMAGE_BUILDERS, LOSS: lambda: PlainLoss(2, 11)}


def small_case(operator: str = "conv2d_bn_act", dtype: str = "float32", pass_: str = "inference") -> Case:
    return Case(
        name=f"small {operator}",
        kind="operator",
        operator=operator,
        batch=2,
        dtype=dtype,
        pass_=pass_,
        input_shape=(2, 11) if operator == LOSS else (2, 6, 7, 7),
        build=BUILDERS[operator],
        layers=((1000.0, 500.0),),
    )


CONFIG = Config(rounds=2, slot_seconds=1e-4, dtypes=("float32", "bfloat16"))


class Wrong(Baseline):
    """Eager PyTorch whose answer is a little off, or not a number, at one element."""

    def __init__(self, name: str, value: float) -> None:
        self.name = name
        self.value = value

    def prepare(self, problem: Problem) -> Prepared:
        right = Eager().prepare(problem)

        def outputs() -> list[torch.Tensor]:
            found = right.outputs()
            found[-1].view(-1)[3] += self.value
            return found

        return dataclasses.replace(right, outputs=outputs)


class Broken(Baseline):
    name = "broken"

    def prepare(self, problem: Problem) -> Prepared:
        raise RuntimeError("no kernel for this\nand a second line")


class Missing(Baseline):
    name = "missing"

    def unfit(self, case: Case) -> Unfit:
        return Unfit(NOT_INSTALLED, "missing is not installed: pip install missing")

    def prepare(self, problem: Problem) -> Prepared:
        raise AssertionError("not installed, so never prepared")


def measured(*extra: Baseline, case: Case | None = None, config: Config = CONFIG) -> dict[str, Row]:
    rows = harness.run(config, cases=[case or small_case()], contenders=[Eager(), *extra])
    assert len(rows) == 1 + len(extra)
    return {row.backend: row for row in rows}


# Statistics and turns


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


def test_harness_overhead_is_a_small_positive_number() -> None:
    assert timing.harness_overhead_seconds() > 0


# Roofline

MACHINE = roofline.Roofline({"float32": 100e9, "bfloat16": 1000e9}, {2**20: 64e9, 2**24: 16e9})


def test_bandwidth_is_interpolated_between_sizes() -> None:
    assert MACHINE.bandwidth(1) == 64e9
    assert MACHINE.bandwidth(2**30) == 16e9
    assert MACHINE.bandwidth(2**22) == pytest.approx(40e9)
    with pytest.raises(ValueError, match="measured copy"):
        roofline.Roofline({"float32": 1.0}).bandwidth(1)


def test_floor_is_the_longer_time_and_says_which() -> None:
    assert MACHINE.floor(50e9, 2**20, "float32") == roofline.Floor(1.0, "arithmetic")
    memory_bound = MACHINE.floor(1.0, 2**24, "float32")
    assert memory_bound.bound == "memory"
    assert memory_bound.seconds == pytest.approx(2**24 / 16e9)
    with pytest.raises(KeyError, match="float16"):
        MACHINE.floor(1.0, 1.0, "float16")


def test_network_floor_adds_layers() -> None:
    layers = [(50e9, 1.0), (1.0, float(2**24))]
    total = MACHINE.network_floor(layers, "float32")
    assert total.bound == "arithmetic"
    assert total.seconds == pytest.approx(1.0 + 2**24 / 16e9)


def test_best_of_two_probes_and_round_trip() -> None:
    other = roofline.Roofline({"float32": 120e9, "float16": 5e9}, {2**20: 50e9})
    best = MACHINE.best_of(other)
    assert best.product == {"float32": 120e9, "bfloat16": 1000e9, "float16": 5e9}
    assert best.copy == {2**20: 64e9, 2**24: 16e9}
    assert roofline.Roofline.from_dict(json.loads(json.dumps(best.to_dict()))) == best
    assert "GFLOP/s" in best.summary()


def test_probe_measures_something() -> None:
    probed = roofline.measure("cpu", ("float32", "bfloat16"))
    assert set(probed.product) == {"float32", "bfloat16"}
    assert all(rate > 0 for rate in (*probed.product.values(), *probed.copy.values()))


# Cases and problems


def test_cases_are_the_layers_of_the_models() -> None:
    config = Config(batches=(1,), dtypes=("float32",), passes=("inference",))
    found = cases(config)
    names = {case.name for case in found}
    for network in config.networks:
        assert network in names
        for spec in distinct_layers(network):
            assert f"{network} {dataclasses.replace(spec, adds_residual=False)}" in names
        for chained in distinct_pairs(network):
            assert f"{network} {chained}" in names
    assert [case.kind for case in found[:2]] == ["network", "network"]


def test_segments_suite_measures_both_implementations(tmp_path: Path) -> None:
    out = tmp_path / "segments.json"
    chosen = "1-float32-16-spatial_first"
    command = ["bench_segments.py", "-q", "-k", chosen, "--benchmark-max-time=0.01", f"--benchmark-json={out}"]
    # A worker of pytest-xdist would write no JSON, and the suite would take itself for one.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *command],
        cwd=ROOT / "benchmarks", env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = json.loads(out.read_text())["benchmarks"]
    assert {each["extra_info"]["backend"] for each in found} == {"reference", "automatic"}
    assert len({each["extra_info"]["gflop"] for each in found}) == 1


def test_every_operator_has_cases_and_a_suite() -> None:
    assert sorted(BUILDERS) == sorted(OPERATORS)
    for operator in OPERATORS:
        text = (ROOT / "benchmarks" / f"bench_{operator}.py").read_text()
        assert f'OPERATOR = "{operator}"' in text and f"def bench_{operator}(" in text
        assert cases(Config(kinds=("operator",), operators=(operator,), batches=(1,), passes=("inference",)))
    assert {case.operator for case in cases(Config(kinds=("operator",)))} == set(LAYER_OPERATORS)


def test_cases_of_the_operators_that_no_network_has() -> None:
    common = {"kinds": ("operator",), "batches": (3,), "dtypes": ("float32",), "passes": ("inference", "training")}
    losses = cases(Config(operators=(LOSS,), layers=2, **common))
    assert [case.input_shape for case in losses] == [(3, 100_000), (3, 17_000)] * 2
    assert [case.work[0] for case in losses[::2]] == [(3e5, 1.2e6), (9e5, 3.6e6)]
    assert losses[0].build()(torch.zeros(3, 100_000)).item() == pytest.approx(math.log(100_000))

    found = cases(Config(operators=("pointwise_depthwise_conv2d",), networks=("xception",), **common))
    assert len({case.name for case in found}) == len(found) / 2 > 5
    largest = next(case for case in found if case.name == "xception pointwise first 728->728 3x3 @19")
    assert largest is found[0]
    assert largest.work[0][0] == 3 * 19 * 19 * 728 * (728 + 9)
    module = found[0].build()
    assert sum(each.numel() for each in module.parameters()) == 728 * (728 + 9 + 2)


def test_network_work_is_that_of_the_papers() -> None:
    found = cases(Config(batches=(1, 2), kinds=("network",), dtypes=("float32",), passes=("inference", "training")))
    gmac = {(case.name, case.batch, case.pass_): sum(macs for macs, _ in case.work) / 1e9 for case in found}
    assert gmac["inception_v3", 1, "inference"] == pytest.approx(5.71, abs=0.01)
    assert gmac["xception", 1, "inference"] == pytest.approx(8.36, abs=0.01)
    assert gmac["xception", 2, "training"] == pytest.approx(6 * gmac["xception", 1, "inference"])


def test_quick_is_a_subset_that_is_bounded() -> None:
    quick = Config().quick()
    assert quick.batches == (1,)
    assert quick.max_seconds is not None
    everything = {(case.name, case.dtype, case.pass_) for case in cases(Config())}
    assert {(case.name, case.dtype, case.pass_) for case in cases(quick)} < everything


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("networks", ("vgg",), "inception_v3"),
        ("dtypes", ("int8",), "float32"),
        ("passes", ("backward",), "training"),
        ("operators", ("conv3d",), "separable_conv2d"),
        ("batches", (0,), "above zero"),
        ("rounds", 0, "above zero"),
    ],
)
def test_config_names_what_it_expected(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Config(), **{field: value})


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected backends out of eager.*got caffe"):
        contenders(Config(backends=("caffe",)))
    assert [each.name for each in contenders(Config(backends=("openvino",)))] == ["eager", "openvino"]


def test_all_baselines_of_each_device_are_raced() -> None:
    cpu = {each.name for each in contenders(Config())}
    assert {"eager", "channels_last", "torch.compile", "openvino", "onnxruntime", "inception_kernels"} <= cpu
    gpu = {each.name for each in contenders(Config(device="cuda", tune=True))}
    assert {"eager", "channels_last", "cuda_graph", "max_autotune", "inception_kernels:tuned"} <= gpu


# Running


@pytest.mark.parametrize("pass_", ["inference", "training"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operator", sorted(BUILDERS))
def test_our_operators_are_right_in_the_harness(operator: str, dtype: str, pass_: str) -> None:
    ours = Ours(backend=None if backends.available()["cpu"] is None else "reference")
    rows = measured(Eager("channels_last", channels_last=True), ours, case=small_case(operator, dtype, pass_))  # type: ignore[arg-type]
    row = rows["inception_kernels"]
    assert row.status == OK, row.reason
    assert row.role == OURS
    assert row.error is not None and row.error_allowed is not None and row.error <= row.error_allowed
    assert row.speedup["eager"] == pytest.approx(rows["eager"].median_ms / row.median_ms)  # type: ignore[operator]
    assert ".forward." in row.ran
    assert row.autocast == (pass_ == "training" and dtype == "bfloat16")


def test_a_row_holds_everything() -> None:
    row = measured()["eager"]
    assert row.status == OK
    assert row.p10_ms <= row.median_ms <= row.p90_ms  # type: ignore[operator]
    assert row.gflop == pytest.approx(2 * row.gmac) == pytest.approx(2e-6)  # type: ignore[operator]
    assert row.tflops == pytest.approx(row.gflop / row.median_ms)  # type: ignore[operator]
    assert row.intensity == pytest.approx(2 * 1000 / (500 * 4))
    assert row.roofline_percent is not None and row.roofline_percent > 0
    assert row.bound in ("arithmetic", "memory")
    assert row.peak_memory_mib is not None and row.peak_memory_mib >= 2 * 10 * 49 * 4 / 2**20
    assert row.shape == "2x6x7x7"
    where = row.environment
    assert where is not None
    assert where.versions["torch"] == torch.__version__
    assert where.source_hash == source_hash.current_hashes()["cpu"]
    assert where.threads == torch.get_num_threads()
    assert set(where.roofline_start["product"]) == {"float32", "bfloat16"} == set(where.roofline_end["product"])
    assert where.commit and where.device and where.isa and where.clock and where.started


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("pass_", ["inference", "training"])
def test_no_green_test_no_number(value: float, pass_: str) -> None:
    rows = measured(Wrong("wrong", value), case=small_case(pass_=pass_))
    row = rows["wrong"]
    assert row.status == WITHHELD
    assert row.median_ms is None and row.tflops is None and row.speedup == {}
    assert "float64" in row.reason
    assert rows["eager"].status == OK
    assert row.error is not None  # the error is shown, the time is not


def test_ours_is_judged_by_twice_the_eager_error_and_a_baseline_less_strictly() -> None:
    class OursWrong(Wrong):
        role = OURS

    slightly = 1e-5
    rows = measured(Wrong("baseline", slightly), OursWrong("ours", slightly))
    assert rows["baseline"].status == OK
    assert rows["ours"].status == WITHHELD
    eager, ours, baseline = rows["eager"], rows["ours"], rows["baseline"]
    assert ours.error_allowed == pytest.approx(2 * eager.error + 4 * torch.finfo(torch.float32).eps)  # type: ignore[operator]
    assert baseline.error_allowed == pytest.approx(10 * ours.error_allowed)  # type: ignore[operator]


def test_peers_that_fail_or_are_missing_have_rows() -> None:
    rows = measured(Broken(), Missing())
    assert (rows["broken"].status, rows["broken"].reason) == (FAILED, "RuntimeError: no kernel for this")
    assert rows["missing"].status == NOT_INSTALLED
    assert "pip install" in rows["missing"].reason


def test_a_wrong_number_of_gradients_is_a_failure() -> None:
    class Short(Wrong):
        def prepare(self, problem: Problem) -> Prepared:
            right = Eager().prepare(problem)
            return dataclasses.replace(right, outputs=lambda: right.outputs()[:-1])

    rows = measured(Short("short", 0.0), case=small_case(pass_="training"))
    assert rows["short"].status == FAILED
    assert "expected 5 tensors" in rows["short"].reason


def test_a_limit_leaves_rows_and_not_gaps() -> None:
    config = dataclasses.replace(CONFIG, max_seconds=1e-9)
    rows = harness.run(config, cases=[small_case(), small_case("separable_conv2d")], contenders=[Eager(), Missing()])
    assert len(rows) == 4
    assert {row.status for row in rows} == {LEFT_OUT}
    assert "limit" in rows[0].reason
    text = report.markdown(rows)
    assert "2 cases without any time: left out: the run's limit" in text
    assert "small separable_conv2d" in text


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cpu"):
        harness.run(dataclasses.replace(CONFIG, device="cuda"))


def test_threads_are_pinned_and_put_back() -> None:
    before = torch.get_num_threads()
    rows = measured(config=dataclasses.replace(CONFIG, threads=1))
    assert rows["eager"].environment is not None and rows["eager"].environment.threads == 1
    assert torch.get_num_threads() == before


def test_everyone_gets_the_same_values() -> None:
    first, second = Problem(small_case()), Problem(small_case())
    assert torch.equal(first.x, second.x)
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True))
    y = torch.zeros(2, 10, 7, 7)
    assert torch.equal(first.grad(y), first.grad(y.to(memory_format=torch.channels_last)))


@pytest.mark.slow
def test_a_networks_half_precision_error_is_meaningful() -> None:
    """With the statistics that the harness sets, fifty layers of random weights keep the signal above the rounding."""
    case = next(
        each
        for each in cases(Config(kinds=("network",), batches=(1,), image_size=107))
        if (each.name, each.dtype, each.pass_) == ("inception_v3", "bfloat16", "inference")
    )
    problem = Problem(case)
    eager = Eager().prepare(problem)
    with problem.mode():
        error = problem.error(eager.outputs())
    assert torch.isfinite(problem.truth[0]).all()
    assert 0 < error < 0.1


# Peers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operator", sorted(IMAGE_BUILDERS))
def test_openvino_computes_the_same(operator: str, dtype: str) -> None:
    pytest.importorskip("openvino", reason="a peer, optional: pip install openvino")
    row = measured(OpenVino(), case=small_case(operator, dtype))["openvino"]
    assert row.status in (OK, WITHHELD), row.reason
    assert row.error is not None and row.error < 0.05
    assert row.layout == "channels-last"


def test_onnx_runtime_computes_the_same() -> None:
    for module in ("onnxruntime", "onnx", "onnxscript"):
        pytest.importorskip(module, reason="a peer, optional: pip install onnxruntime onnx onnxscript")
    row = measured(OnnxRuntime(), case=small_case("separable_conv2d"))["onnxruntime"]
    assert row.status == OK, row.reason


def test_peers_that_do_not_train_say_so() -> None:
    for case in (small_case(pass_="training"), small_case(LOSS)):
        rows = measured(OpenVino(), OnnxRuntime(), case=case)
        for name in ("openvino", "onnxruntime"):
            assert rows[name].status in (NOT_APPLICABLE, NOT_INSTALLED)
            assert rows[name].reason


def test_peers_that_are_not_installed_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    gone = {"openvino", "onnxruntime"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in gone else real(name, *rest))
    rows = measured(OpenVino(), OnnxRuntime())
    assert rows["openvino"].status == rows["onnxruntime"].status == NOT_INSTALLED
    assert "peers" in rows["openvino"].reason


def test_compiled_training_can_be_left_out() -> None:
    row = measured(Compiled(training=False), case=small_case(pass_="training"))["torch.compile"]
    assert row.status == LEFT_OUT


@pytest.mark.slow
def test_compiled_computes_the_same() -> None:
    row = measured(Compiled())["torch.compile"]
    assert row.status == OK, row.reason


# Memory


def test_peak_is_what_is_alive_at_once() -> None:
    def call() -> torch.Tensor:
        first = torch.ones(2**18)  # 1 MiB
        second = first + 1  # 2 MiB alive
        del first
        return second + 1  # 2 MiB alive

    profiled = memory.profile(call, "cpu")
    assert profiled.method == memory.TORCH_ALLOCATOR
    assert 2 * 2**20 <= profiled.peak_bytes < 2.1 * 2**20
    assert "aten::add" in profiled.ran


def test_profiling_is_silent_and_other_messages_pass(capfd: pytest.CaptureFixture[str]) -> None:
    import os

    memory.profile(lambda: os.write(2, b"kept\n"), "cpu")
    assert capfd.readouterr().err == "kept\n"


def test_resident_growth_sees_memory_outside_torch() -> None:
    block = b"x" * 2**26  # freed before the measurement: what is resident already must not hide the growth
    del block
    # The best of three: other threads of this process may give memory back meanwhile.
    grown = [memory.resident_growth(lambda: b"x" * 2**26) for _ in range(3)]
    assert None in grown or max(each for each in grown if each is not None) >= 0.9 * 2**26


# Rows


def test_rows_survive_json(tmp_path: Path) -> None:
    rows = list(measured(Broken(), Missing()).values())
    report.save(rows, tmp_path / "rows.json")
    assert report.load(tmp_path / "rows.json") == rows
    assert report.load(tmp_path) == rows
    assert len(to_document(rows)["environments"]) == 1


def test_rows_of_another_schema_are_refused(tmp_path: Path) -> None:
    document = to_document(measured().values())
    with pytest.raises(ValueError, match="schema 1, got schema 0"):
        from_document({**document, "schema": 0})
    document["rows"][0]["surprise"] = 1
    with pytest.raises(ValueError, match="surprise too many"):
        from_document(document)
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(ValueError, match=r"bad\.json does not hold benchmark rows"):
        report.load(tmp_path / "bad.json")


def test_a_row_is_consistent() -> None:
    row = measured()["eager"]
    with pytest.raises(ValueError, match="expected a status"):
        dataclasses.replace(row, status="fine")
    with pytest.raises(ValueError, match="a reason and no time"):
        dataclasses.replace(row, status=WITHHELD, reason="wrong")
    with pytest.raises(ValueError, match="expected a time"):
        dataclasses.replace(row, median_ms=None)


# Source hashes


def checkout(root: Path) -> Path:
    for name in ("csrc/ops.cpp", "csrc/common/types.h", "csrc/cpu/amx/conv.cpp", "csrc/cuda/conv.cuh"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"// {name}\n")
    (root / "inception_kernels").mkdir(exist_ok=True)
    return root


def test_a_change_of_a_kernel_changes_only_its_family(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    before = source_hash.source_hashes(root)
    (root / "csrc/cuda/conv.cuh").write_text("// faster\n")
    after = source_hash.source_hashes(root)
    assert after["cpu"] == before["cpu"] and after["cuda"] != before["cuda"]
    (root / "csrc/common/types.h").write_text("// wider\n")
    last = source_hash.source_hashes(root)
    assert last["cpu"] != after["cpu"] and last["cuda"] != after["cuda"]
    (root / "csrc/common/types.h").write_bytes(b"// wider\r\n")
    assert source_hash.source_hashes(root) == last


def test_an_installed_package_knows_its_hashes(tmp_path: Path) -> None:
    package = tmp_path / "inception_kernels"
    package.mkdir()
    with pytest.raises(FileNotFoundError, match="pip install"):
        source_hash.current_hashes(package)
    (package / source_hash.BUILD_INFO).write_text('{"source_hashes": {"cpu": "1", "cuda": "2"}}')
    assert source_hash.current_hashes(package) == {"cpu": "1", "cuda": "2"}
    assert not source_hash.built_from_other_sources(package)
    checkout(tmp_path)
    assert source_hash.built_from_other_sources(package)


def test_environment_names_the_machine() -> None:
    commit, dirty = environment.git_state()
    assert commit and isinstance(dirty, bool)
    where = environment.capture("cpu")
    assert where.device_type == "cpu" and where.versions["onednn"]
    assert environment.slug(where).endswith(f"{where.cores}c")
    assert all(each.isalnum() or each == "-" for each in environment.slug(where))


# Report


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """A small run of every kind of row, times made up so that pictures have something to show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "_PRODUCTS", {"cpu": ((16, 16, 16),)})
        patch.setattr(roofline, "_COPIES", {"cpu": (2**12, 2**14)})
        template = harness.run(CONFIG, cases=[small_case()], contenders=[Eager()])[0]
    made = []
    for kind, name in (("operator", "conv2d_bn_act"), ("network", "xception")):
        for dtype in ("float32", "bfloat16"):
            common = dataclasses.replace(template, kind=kind, operator=name, case=f"a {name}", dtype=dtype)
            other = dataclasses.replace(common, backend="channels_last", median_ms=8.0, speedup={"eager": 2.0})
            ours = dataclasses.replace(common, backend="inception_kernels", role=OURS, median_ms=4.0)
            ours = dataclasses.replace(ours, speedup={"eager": 4.0, "channels_last": 0.5})
            missing = dataclasses.replace(
                common, backend="missing", status=NOT_INSTALLED, reason="pip install | it", median_ms=None, speedup={}
            )
            made += [dataclasses.replace(common, median_ms=16.0), other, missing, ours]
    return made


def test_report_writes_every_format(rows: list[Row], tmp_path: Path) -> None:
    written = report.write(rows, tmp_path / "deep" / "report")
    assert {path.name for path in written} == {"rows.json", "rows.csv", "report.md", "roofline.png", "speedup.png"}
    assert report.load(written[0]) == rows
    with written[1].open(newline="") as file:
        sheet = list(csv.DictReader(file))
    assert len(sheet) == len(rows)
    assert sheet[0]["environment.versions.torch"] == torch.__version__
    assert {"pass", "dtype", "median_ms", "speedup.eager", "environment.source_hash"} <= set(sheet[0])
    text = written[2].read_text()
    assert "not installed: pip install \\| it" in text
    assert "![roofline](roofline.png)" in text
    assert "Roofline at the end" in text
    for picture in written[3:]:
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_report_without_matplotlib_says_so(rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.delitem(__import__("sys").modules, "inception_kernels.bench.plots", raising=False)
    monkeypatch.delattr("inception_kernels.bench.plots", raising=False)
    written = report.write(rows, tmp_path)
    assert [path.suffix for path in written] == [".json", ".csv", ".md"]
    assert "matplotlib is not installed" in written[2].read_text()


def test_geometric_means_count_losses_too(rows: list[Row]) -> None:
    means = dict(columns.geometric_means(rows))
    found = means["operators, inference, float32, inception_kernels"]
    assert found == {
        "eager": (pytest.approx(4.0), 1),
        "channels_last": (pytest.approx(0.5), 1),
        "fastest": (pytest.approx(0.5), 1),
    }


def test_terminal_shows_all_rows_and_no_progress_in_a_file(rows: list[Row], tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w") as file:
        console = Console(file=file, width=200)
        with terminal.progress(console) as progress:
            progress.step(0, 1, "unseen")
        terminal.show(rows, console)
    text = (tmp_path / "out.txt").read_text()
    assert "unseen" not in text
    assert text.count("inception_kernels ") >= 4
    assert "not installed: pip install" in text
    assert "0.50x" in text
    assert "Geometric mean" in text


# README tables

README = """before
<!-- bench:networks-cpu -->
old
<!-- /bench:networks-cpu -->
<!-- bench:operators-cpu -->
<!-- /bench:operators-cpu -->
<!-- bench:networks-gpu -->
<!-- /bench:networks-gpu -->
after
"""


def test_render_fills_tables_and_says_what_is_not_measured(rows: list[Row]) -> None:
    assert rows[0].environment is not None
    hashes = {"cpu": rows[0].environment.source_hash, "cuda": "x"}
    text = render.render(README, rows, hashes)
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old" not in text and "stale" not in text
    assert "| xception" not in text and "| a xception | inference | 2 | float32 | 16.0 | 8.00 | **4.00** |" in text
    assert "<!-- bench:networks-gpu -->\nnot measured\n<!-- /bench:networks-gpu -->" in text
    assert "| 4.00x | 0.50x | 0.50x | 1 |" in text  # the loss stays in
    assert render.render(text, rows, hashes) == text
    assert render.render(text, [], hashes).count("not measured") == 3


def test_render_marks_rows_of_changed_kernels(rows: list[Row]) -> None:
    text = render.render(README, rows, {"cpu": "changed", "cuda": "x"})
    assert "**4.00** (stale)" in text
    assert render.is_stale(rows[0], "changed")


def test_render_refuses_unknown_and_open_markers(rows: list[Row]) -> None:
    with pytest.raises(ValueError, match=r"networks-cpu.*got speed"):
        render.render("<!-- bench:speed -->\n<!-- /bench:speed -->", rows, {})
    with pytest.raises(ValueError, match="expected an end"):
        render.render("<!-- bench:networks-cpu -->\n", rows, {})


def test_update_changes_the_file_only_when_asked(rows: list[Row], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    assert not render.update(readme, rows, {}, check=True)
    assert readme.read_text() == README
    assert not render.update(readme, rows, {})
    assert render.update(readme, rows, {}, check=True)


def test_readme_is_up_to_date() -> None:
    """After a kernel or a row has changed: python -m inception_kernels bench --render benchmarks/results"""
    committed = report.load(ROOT / "benchmarks" / "results")
    assert render.update(ROOT / "README.md", committed, source_hash.current_hashes(), check=True)
