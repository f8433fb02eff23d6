"""One run of the benchmark harness: right answers, withheld numbers, peers and memory."""

import dataclasses
import importlib.util
import os

import pytest
import torch
from bench_cases import BUILDERS, CONFIG, IMAGE_BUILDERS, LOSS, Broken, Missing, Wrong, measured, small_case
from helpers import needs_kernels

import inception_kernels as ik
from inception_kernels import backends, source_hash
from inception_kernels.bench import Config, harness, memory, report
from inception_kernels.bench.cases import cases
from inception_kernels.bench.contenders import Eager, OnnxRuntime, OpenVino, Ours
from inception_kernels.bench.contenders.base import Prepared
from inception_kernels.bench.contenders.compiled import Compiled
from inception_kernels.bench.problem import Problem
from inception_kernels.bench.row import FAILED, LEFT_OUT, NOT_APPLICABLE, NOT_INSTALLED, OK, OURS, WITHHELD

pytestmark = pytest.mark.usefixtures("small_probe")


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
    kernel = "max_pool2d." if operator == "max_pool2d" else ".forward."  # it has one of its own for inference
    assert kernel in row.ran
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


@pytest.mark.parametrize("operator", ["conv2d_bn_act", "asymmetric_pair"])
def test_no_gradient_enters_where_rounding_decides_about_a_relu(operator: str) -> None:
    """One output on the other side of the kink has the wrong gradient, in float32 by chance."""
    case = small_case(operator, pass_="training")
    problem = Problem(dataclasses.replace(case, input_shape=(2, 6, 200, 200)))
    truth = problem.truth[0]
    decided = problem.grad(truth) != 0
    assert 0 < (~decided).sum() < 1e-3 * truth.numel()
    smallest = truth[truth > 0].min()
    assert decided[truth > 1e-4 * truth.max()].all() and not decided[truth == smallest].any()
    in_16_bits = Problem(dataclasses.replace(case, dtype="bfloat16"))
    assert (in_16_bits.grad(in_16_bits.truth[0]) != 0).all()


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


@needs_kernels
def test_peak_counts_what_the_operators_return() -> None:
    x = torch.ones(1, 16, 128, 128).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(16, 16, 1, 1)
    before = ik.memory.use()
    profiled = memory.profile(lambda: ik.conv2d_bn_act(x, weight), "cpu")
    assert 2**20 <= profiled.peak_bytes < 1.1 * 2**20
    assert ik.memory.use() == before
    y = ik.conv2d_bn_act(x, weight)  # from the pool again
    assert ik.memory.use().taken == before.taken + 2**20 + 64
    del y


def test_profiling_is_silent_and_other_messages_pass(capfd: pytest.CaptureFixture[str]) -> None:

    memory.profile(lambda: os.write(2, b"kept\n"), "cpu")
    assert capfd.readouterr().err == "kept\n"


def test_resident_growth_sees_memory_outside_torch() -> None:
    block = b"x" * 2**26  # freed before the measurement: what is resident already must not hide the growth
    del block
    # The best of three: other threads of this process may give memory back meanwhile.
    grown = [memory.resident_growth(lambda: b"x" * 2**26) for _ in range(3)]
    assert None in grown or max(each for each in grown if each is not None) >= 0.9 * 2**26
