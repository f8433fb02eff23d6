"""Who runs a call: forced backends, automatic choice, counters, instruction sets; and empty batches on each."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from instruction_sets import ISA_FLAGS, runs_here
from operator_cases import DTYPES, MAKERS, OPERATORS, call, evaluate_on, in_layout, run
from oracle import COMPOSITIONS

import inception_kernels as ik
from inception_kernels import backends
from inception_kernels.backends import BackendUnavailableError

TESTS = Path(__file__).parent


def python(program: str, isa: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"IK_CPU_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


# ---- forced and automatic choice


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_forced_backend_is_the_one_that_runs(operator, backend):
    case = MAKERS[operator]()
    backends.reset_counters()
    run(case, backend)
    counts = {n: c for n, c in backends.counters().items() if c and not n.startswith("layout.")}
    assert counts
    assert all(name.split(".")[2].startswith(backend) for name in counts), counts
    choice = backends.last_choice()
    assert (choice.operator, choice.backend) == (operator, backend)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests what happens without a GPU")
def test_forced_backend_that_cannot_run_says_why(operator, backend):
    case = MAKERS[operator](training=True)
    before = {n: t.clone() for n, t in case.tensors.items()}
    backends.reset_counters()
    with pytest.raises(BackendUnavailableError, match=backend) as error:
        run(case, backend)
    assert len(str(error.value)) > len(backend) + 20, f"no reason: {error.value}"
    assert not any(backends.counters().values()), "something ran"
    assert all(torch.equal(t, before[n]) for n, t in case.tensors.items())


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match="abacus"), backends.use_backend("abacus"):
        pass


def test_use_backend_nests_and_is_restored_after_an_error():
    case = MAKERS["conv2d_bn_act"]()
    with backends.use_backend("reference"):
        with backends.use_backend("cpu"):
            ik.conv2d_bn_act(**case.tensors, **case.options)
            assert backends.last_choice().backend == "cpu"
        ik.conv2d_bn_act(**case.tensors, **case.options)
        assert backends.last_choice().backend == "reference"
    with pytest.raises(RuntimeError, match="on purpose"), backends.use_backend("reference"):
        raise RuntimeError("on purpose")
    ik.conv2d_bn_act(**case.tensors, **case.options)
    assert backends.last_choice().reasons.keys() <= {"cuda", "triton", "cpu", "reference"}


def test_available_gives_a_reason_for_each_that_is_not():
    available = backends.available()
    assert set(available) == {"cuda", "triton", "cpu", "reference"}
    assert available["reference"] is None
    assert available["cpu"] is None, available["cpu"]
    if not torch.cuda.is_available():
        assert available["cuda"]


def test_automatic_choice_logs_each_reason(caplog):
    case = MAKERS["separable_conv2d"]()
    with caplog.at_level(logging.DEBUG, logger="inception_kernels"):
        run(case)
    choice = backends.last_choice()
    assert choice.operator == "separable_conv2d"
    assert choice.backend in backends.available()
    assert choice.backend not in choice.reasons
    for backend, reason in choice.reasons.items():
        assert reason
        assert any(backend in record.getMessage() for record in caplog.records), f"{backend} not logged"


def test_counters_count_and_reset():
    case = MAKERS["conv2d_bn_act"]()
    backends.reset_counters()
    assert not any(backends.counters().values())
    for times in (1, 2, 3):
        run(case, "reference")
        assert backends.counters()["conv2d_bn_act.forward.reference"] == times
    snapshot = backends.counters()
    run(case, "reference")
    assert snapshot["conv2d_bn_act.forward.reference"] == 3, "counters() must return a copy"
    backends.reset_counters()
    assert not any(backends.counters().values())


def test_conversion_of_the_memory_format_is_counted():
    case = MAKERS["conv2d_bn_act"]()
    backends.reset_counters()
    run(case.but(x=in_layout(case.tensors["x"], "channels_last")), "cpu")
    assert not any(n.startswith("layout.") and c for n, c in backends.counters().items())
    run(case.but(x=in_layout(case.tensors["x"], "contiguous")), "cpu")
    assert backends.counters()["layout.to_channels_last"] == 1
    assert backends.counters()["layout.to_contiguous"] == 1


# ---- instruction sets


@pytest.mark.parametrize("isa", ISA_FLAGS)
def test_every_instruction_set_of_this_machine(isa):
    """The core subset of the operator tests in a process of its own per instruction set."""
    if not runs_here(isa):
        pytest.skip(f"this processor has no {isa}")
    selection = (
        "test_core and cpu and (f32 or bf16) and "
        "(1x7 or 3x3_stride2 or prime_sizes or c1 or k1 or dilated or 1x1_wide_k or wide or middle or thread_count)"
    )
    names = ("conv2d_bn_act", "separable_conv2d", "asymmetric_pair", "nonfinite", "determinism")
    files = [str(TESTS / f"test_{name}.py") for name in names]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", "-k", selection, *files],
        env=os.environ | {"IK_CPU_ISA": isa}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@pytest.mark.parametrize("isa", ISA_FLAGS)
def test_kernels_of_the_instruction_set_in_force_run(isa):
    if not runs_here(isa):
        pytest.skip(f"this processor has no {isa}")
    program = """
import torch, inception_kernels as ik
from inception_kernels import backends
x, w = torch.randn(1, 64, 8, 8), torch.randn(64, 64, 3, 3)
with ik.use_backend("cpu"):
    ik.conv2d_bn_act(x, w, padding=1)
    ik.conv2d_bn_act(x.bfloat16(), w.bfloat16(), padding=1)
    ik.separable_conv2d(x, torch.randn(64, 1, 3, 3), torch.randn(64, 64, 1, 1), padding=1)
    low = [torch.randn(64, 1, 3, 3).bfloat16(), torch.randn(64, 64, 1, 1).bfloat16()]
    ik.separable_conv2d(x.bfloat16(), *low, padding=1)
print(sorted(n for n, c in backends.counters().items() if c and ".forward.cpu_" in n))
"""
    result = python(program, isa)
    assert result.returncode == 0, result.stderr
    assert f"cpu_{isa}_" in result.stdout, result.stdout
    above = [other for other in list(ISA_FLAGS)[list(ISA_FLAGS).index(isa) + 1 :] if f"cpu_{other}_" in result.stdout]
    assert not above, result.stdout


def test_unknown_instruction_set_is_refused():
    """A typo must not run as something else."""
    program = """
import torch, inception_kernels as ik
with ik.use_backend("cpu"):
    ik.conv2d_bn_act(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
"""
    result = python(program, "avx9000")
    assert result.returncode != 0, "IK_CPU_ISA=avx9000 was accepted"
    assert "avx9000" in result.stderr and "portable" in result.stderr, result.stderr[-500:]


def test_nothing_but_the_triton_backend_needs_triton():
    program = """
import sys
sys.modules["triton"] = None  # an import of it raises
import torch, inception_kernels as ik
ik.conv2d_bn_act(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
assert "inception_kernels.triton.register" not in sys.modules
assert "Triton is not installed" in ik.backends.available()["triton"]
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


# ---- empty batches


@pytest.mark.parametrize("mode", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_empty_batch_gives_an_empty_result_with_gradients(operator, backend, dtype, layout, mode):
    """As PyTorch: the output is [0, K, P, Q], parameters get zero gradients, running statistics stay as they are."""
    full = MAKERS[operator](N=1, dtype=DTYPES[dtype], bias=True, training=mode)
    P, Q = call(COMPOSITIONS[operator], full.cast(torch.float64).but(training=False)).shape[2:]
    case = full.but(x=in_layout(full.tensors["x"], layout)[:0])
    if operator != "asymmetric_pair":
        case = case.but(residual=torch.empty(0, 6, P, Q, dtype=DTYPES[dtype]))
    outcome = evaluate_on(backend, case, torch.empty(0, 6, P, Q, dtype=DTYPES[dtype]))
    assert outcome.y.shape == (0, 6, P, Q)
    assert outcome.y.dtype == DTYPES[dtype]
    for name, t in case.tensors.items():
        if name in outcome.statistics:
            assert torch.equal(outcome.statistics[name], t), name
        else:
            assert outcome.grads[name].shape == t.shape, name
            assert (outcome.grads[name] == 0).all(), name


# ---- forward-mode differentiation


@pytest.mark.parametrize("operator", MAKERS)
def test_forward_mode_is_the_references(operator):
    """An operator without a tangent would be taken for a constant."""
    case = MAKERS[operator]().cast(torch.float64)
    x = case.tensors["x"]

    def ours(x):
        return call(OPERATORS[operator], case.but(x=x))

    def plain(x):
        return call(COMPOSITIONS[operator], case.but(x=x))

    tangent = torch.randn_like(x)
    expected = torch.func.jvp(plain, (x,), (tangent,))
    torch.testing.assert_close(torch.func.jvp(ours, (x,), (tangent,)), expected)
    assert "forward-mode" in backends.last_choice().reasons["cpu"]
    with torch.autograd.forward_ad.dual_level():
        dual = ours(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, expected[1])


def test_forward_mode_through_the_loss():
    logits, target = torch.randn(4, 10), torch.arange(4)
    losses = (
        lambda x: ik.label_smoothing_cross_entropy(x, target, smoothing=0.1),
        lambda x: torch.nn.functional.cross_entropy(x, target, label_smoothing=0.1),
    )
    ours, plain = (torch.func.jvp(loss, (logits,), (torch.ones_like(logits).cumsum(1),)) for loss in losses)
    torch.testing.assert_close(ours, plain)
