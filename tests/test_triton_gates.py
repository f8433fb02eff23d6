"""The Triton kernels compile, for GPUs that are not here, to what they were written for: a sample, and the whole table."""

import inspect
import re
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

pytest.importorskip("triton", reason="Triton has no build for this platform")

import torch
from triton import knobs
from triton.compiler import CompiledKernel
from triton.compiler import compile as compile_source
from triton.runtime.jit import JITFunction

from inception_kernels.triton import tuning
from inception_kernels.triton._weight_gradient import add_pieces
from tools.cubin_gates import binaries
from tools.triton_gates import cases, compiler, table
from tools.triton_gates.capture import DEVICES, Launch, compiling_for
from tools.triton_gates.read import Reading, violations

# Each compiles what runs without a measurement; the first all that tuning may choose.
SAMPLE = (
    r"^160->160 7x1 .* batch 1 forward bf16",
    r"^3->32 .* batch 256 forward bf16",
    r"^128->192 7x1 .* batch 256 training bf16",
    r"^160->160 1x7 .* batch 256 backward fp16",
    r"^64->128 3x3 @147 .*batch 256 training bf16",
    r"^728->728 3x3 @19 .*batch 256 backward bf16",
    r"^192->192 1x7 .* batch 256 forward tf32",
    r"^loss batch 256 backward bf16",
)
OTHERS_STACK = 24  # bytes that other versions of Triton than the table's put there at most (CONTRIBUTING.md)
AGAIN = "`python -m tools.triton_gates --table` compiles what is new"


@pytest.fixture(scope="module", autouse=True)
def _tools(pytestconfig: pytest.Config) -> None:
    try:
        binaries.nvdisasm()
        binaries.cuobjdump()
    except binaries.MissingTool as error:
        if pytestconfig.getoption("--require-third-party"):  # CI installs them
            pytest.fail(str(error))
        pytest.skip(str(error))


def launches_of(pattern: str, arch: str) -> list[Launch]:
    found = cases.matching(pattern)
    assert found, f"expected a case that matches {pattern}"
    return cases.launches(found[0], arch)


def read(launches: list[Launch]) -> list[Reading]:
    return [reading for _, reading in compiler.readings(list(compiler.distinct(launches).values()))]


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("pattern", SAMPLE)
def test_sample(pattern: str, arch: str) -> None:
    launches = launches_of(pattern, arch)
    readings = read([each for each in launches if each.chosen or pattern == SAMPLE[0]])
    assert readings
    held = readings
    if table.versions()["triton"] != table.recorded()["triton"]:
        unspilt = {"stack": 0, "local_accesses": 0}
        held = [replace(each, **unspilt) if each.stack <= OTHERS_STACK else each for each in readings]
    assert not (broken := [sentence for each in held for sentence in violations(each)]), "\n".join(broken)
    if table.versions().items() <= table.recorded().items():
        recorded = {each.identity: each for each in table.recorded_readings()}
        other = [each for each in readings if recorded.get(each.identity, each) != each]
        assert not other, f"the table says something else: python -m tools.triton_gates --table\n{other}"


def test_dense_convolutions_on_hopper_are_bound_by_the_tensor_cores() -> None:
    (reading,) = read([each for each in launches_of(r"^192->192 1x7 .* batch 256 forward bf16", "90") if each.chosen])
    assert reading.name == "_convolution_descriptor"
    assert reading.wgmma > 0
    assert reading.tensor_share == 1.0


# ---- what may be chosen


@pytest.fixture(scope="module")
def everything() -> list[Launch]:
    """All that the layers of both networks may launch."""
    return [launch for arch in DEVICES for case in cases.cases() for launch in cases.launches(case, arch)]


def test_no_window_is_flattened_with_eight_warps_unproven(everything: list[Launch]) -> None:
    """Without a measurement, which compares outputs, at most four run (pytorch#173068)."""
    seen: Counter[tuple[bool, bool]] = Counter()
    for launch in everything:
        many = launch.taps > 1 and launch.options.num_warps > tuning.PROVEN_WARPS
        seen[launch.chosen, many] += 1
        assert not (launch.chosen and many), f"{launch.name} {launch.constants}"
    assert seen[True, False] and seen[False, True], "expected some that only a measurement may choose"


def test_no_result_depends_on_which_program_comes_first(everything: list[Launch]) -> None:
    """No atomics: sums over programs go by a second kernel, in a fixed order."""
    files = {Path(inspect.getfile(launch.source.fn.fn)) for launch in everything}
    assert len(files) > 5
    for path in {each for file in files for each in file.parent.glob("*.py")}:
        assert not re.search(r"\batomic", path.read_text(encoding="utf-8")), path.name


def test_candidates_are_compiled_side_by_side_before_they_are_timed(tmp_path: Path) -> None:
    """And only compiled: there is no device on which they could start."""
    run = JITFunction.run
    partial = torch.empty(2, 64, device="meta")
    elements = [256, 512, 2048]
    together = threading.Barrier(len(elements))

    def launch(elements: int, warmup: bool = False) -> torch.Tensor:
        out = torch.empty(64, device="meta")
        add_pieces.run(partial, out, 64, 2, ELEMENTS=elements, grid=(1,), warmup=warmup)
        return out

    def compile_together(*arguments: object, **keywords: object) -> CompiledKernel:
        together.wait(timeout=60)  # each in a thread of its own, or it breaks
        return compile_source(*arguments, **keywords)

    with compiling_for("90"), mock.patch.object(knobs.cache, "dir", str(tmp_path)):
        kernels = add_pieces.device_caches[90][0]
        with mock.patch.dict(kernels, clear=True):
            with mock.patch.object(add_pieces, "compile", compile_together):
                tuning._compile(elements, launch)
            assert JITFunction.run is run
            assert not together.broken
            assert kernels, "nothing was compiled in the threads"
            for each in elements:  # what a thread could not compile is compiled, or told, now
                launch(each, warmup=True)
            assert len(kernels) == len(elements) and all(kernel.asm["cubin"] for kernel in kernels.values())


# ---- the table


def test_the_table_is_whole_and_of_these_sources(everything: list[Launch]) -> None:
    found = table.recorded()
    assert found.get("sources") == table.versions()["sources"], f"the Triton kernels have changed: {AGAIN}"
    recorded = {each.identity for each in table.recorded_readings()}
    assert recorded == {each.identity for each in everything}, AGAIN
    assert found["recorded"] == found["kernels"] >= len(recorded), AGAIN


@pytest.mark.parametrize("batch", [2, 32, 100])
def test_other_batches_launch_no_other_kernels(batch: int) -> None:
    """So the table holds for every batch: sizes are run-time arguments, and tiles are those of small and large ones."""
    recorded = {each.identity for each in table.recorded_readings()}
    for arch in DEVICES:
        for case in cases.cases((batch,), (cases.BF16,)):
            new = [each for each in cases.launches(case, arch) if each.identity not in recorded]
            assert not new, f"{case}, sm_{arch}: {new[0].name} {new[0].constants} is not in the table"


def test_every_kernel_of_the_table_is_as_it_must_be() -> None:
    readings = table.recorded_readings()
    assert readings
    assert not [sentence for each in readings for sentence in violations(each)]


def test_the_table_for_people_is_of_the_lines() -> None:
    found = table.recorded()
    assert table.PATH.read_text(encoding="utf-8") == table.render(table.recorded_readings(), found)


# ---- the gates themselves


GOOD = Reading(
    name="_convolution_descriptor", arch="90", constants={"BLOCK_M": 128}, types="bf16", warps=8, stages=3,
    shared=200000, registers=168, stack=0, local_accesses=0, instructions={"HGMMA": 8},
    step={"tensor": 512.0, "issue": 200.0}, wgmma=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stack": 8}, "8 bytes of stack"),
        ({"local_accesses": 2}, "2 accesses to local memory"),
        ({"shared": 232449}, "232449 bytes of shared memory, 232448 allowed"),
        ({"arch": "80", "shared": 200000}, "200000 bytes of shared memory, 166912 allowed"),
        ({"wgmma": 0}, "no wgmma"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_a_kernel_that_is_not_as_it_must_be_is_told(change: dict, sentence: str) -> None:
    assert not list(violations(GOOD))
    (told,) = violations(replace(GOOD, **change))
    assert re.search(sentence, told)


def test_results_are_kept_and_a_cut_run_goes_on(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "CACHE", tmp_path / "kept")
    compiled = []
    compile_source = compiler.compile_source
    monkeypatch.setattr(compiler, "compile_source", lambda *a, **k: compiled.append(1) or compile_source(*a, **k))
    launches = list(compiler.distinct(launches_of(r"^loss batch 256 forward", "90")).values())
    first = next(compiler.readings(launches))
    assert len(compiled) == 1
    found = list(compiler.readings(launches))
    assert found[0] == first
    assert len(compiled) == len({key for key, _ in found})
    again = list(compiler.readings(launches, jobs=2))
    assert again == found
