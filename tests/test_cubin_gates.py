"""The reader of machine code: listings, loops, pipes, comments, occupancy. No compiler is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tools.cubin_gates import annotations, compiler, control_flow, gates, launches, pipes, report
from tools.cubin_gates.disassembly import Instruction, Kernel, Resources, parse
from tools.cubin_gates.occupancy import blocks_per_multiprocessor

# An outer loop around a wait that polls out of line and an inner loop with a product.
LISTING = """
	.target	sm_90a
//--------------------- .nv.info.kernel --------------------------
	//----- nvinfo : EIATTR_REGCOUNT
        /*0004*/ 	.word	0x00000040
	//----- nvinfo : EIATTR_MAX_THREADS
        /*04fc*/ 	.word	0x00000180
        /*0500*/ 	.word	0x00000001
//--------------------- .text.kernel --------------------------
.text.kernel:
	//## File "/src/k.cu", line 3
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
	//## File "/src/p.cuh", line 9 inlined at "/src/k.cu", line 5
	//## File "/src/k.cu", line 5
        /*0010*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR8], R0 ;
        /*0020*/              @!P0 BRA `(.L_x_9) ;
.L_x_2:
	//## File "/src/k.cu", line 7
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12], R24, UP0 ;
        /*0040*/                   LDS.128 R4, [R2] ;
        /*0050*/               @P1 BRA `(.L_x_3) ;
        /*0060*/                   IADD3 R2, R2, 0x10, RZ ;
        /*0070*/                   IADD3 R2, R2, 0x10, RZ ;
.L_x_3:
        /*0080*/                   @!PT LDS RZ, [RZ] ;
        /*0090*/               @P2 BRA `(.L_x_2) ;
	//## File "/src/k.cu", line 5
        /*00a0*/                   IADD3 R3, R3, 0x1, RZ ;
        /*00b0*/               @P3 BRA `(.L_x_1) ;
        /*00c0*/                   EXIT ;
.L_x_9:
        /*00d0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR8], R0 ;
        /*00e0*/              @!P0 BRA `(.L_x_9) ;
        /*00f0*/                   BRA `(.L_x_2) ;
.L_x_10:
        /*0100*/                   BRA `(.L_x_10);
"""


@pytest.fixture
def kernel() -> Kernel:
    (found,) = parse(LISTING)
    return found


def instruction(text: str) -> Instruction:
    return Instruction(text, "", ())


def test_a_listing_is_read(kernel: Kernel) -> None:
    assert kernel.name == "kernel" and kernel.max_threads == 384
    wait = kernel.instructions[1]
    assert wait.opcode == "SYNCS.PHASECHK.TRANS64.TRYWAIT" and wait.name == "SYNCS"
    assert wait.lines == (("/src/p.cuh", 9), ("/src/k.cu", 5))
    branch = kernel.instructions[2]
    assert branch.predicate == "!P0" and branch.target == ".L_x_9"
    assert not next(each for each in kernel.instructions if each.predicate == "!PT").is_executed


def test_loops_are_found_and_polling_is_none(kernel: Kernel) -> None:
    flow = control_flow.analyse(kernel)
    assert len(flow.loops) == 2
    outer, inner = flow.loops
    assert inner.blocks < outer.blocks and outer.inner == [inner]

    def names(loop: control_flow.Loop) -> list[str]:
        return [each.name for each in flow.heaviest_path(loop, lambda each: (1.0,))]

    # The longer way through the branch, without what is never executed.
    assert names(inner) == ["HGMMA", "LDS", "BRA", "IADD3", "IADD3", "BRA"]
    # Its own instructions alone; those that poll out of line are left out.
    assert names(outer) == ["SYNCS", "BRA", "IADD3", "BRA"]


@pytest.mark.parametrize(
    ("text", "arch", "expected"),
    [
        ("HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4], R24", "90a", {"tensor": 128, "memory": 20}),
        ("HGMMA.64x256x16.F32.BF16 R24, R4, gdesc[UR4], R24", "90a", {"tensor": 128, "memory": 16}),
        ("HGMMA.64x64x8.F32.TF32 R24, gdesc[UR4], R24", "90a", {"tensor": 32, "memory": 8}),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", "80", {"tensor": 8}),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", "90a", {"tensor": 4}),
        ("HMMA.1688.F32.TF32 R4, R8, R12, R4", "80", {"tensor": 8}),
        ("FFMA R4, R5, R6, R4", "80", {"fma": 2}),
        ("FFMA R4, R5, R6, R4", "90a", {"fma": 1}),
        ("IMAD.MOV.U32 R4, RZ, RZ, R5", "90a", {"fma": 1, "fma_heavy": 2}),
        ("LDSM.16.M88.4 R4, [R8]", "80", {"lsu": 1, "memory": 4}),
        ("LDGSTS.E.BYPASS.128 [R4], [R8.64]", "80", {"lsu": 1, "memory": 4}),
        ("STS.64 [R4], R8", "80", {"lsu": 1, "memory": 2}),
        ("MUFU.EX2 R4, R5", "80", {"special": 8}),
        ("UIADD3 UR4, UR5, 0x1, URZ", "90a", {"uniform": 2}),
        ("LOP3.LUT R4, R5, R6, RZ, 0xc0, !PT", "80", {"alu": 2}),
        ("BAR.SYNC.DEFER_BLOCKING 0x0", "80", {}),
    ],
)
def test_clocks_of_an_instruction(text: str, arch: str, expected: dict[str, float]) -> None:
    assert pipes.clocks(instruction(text), arch) == {"issue": 1, **expected}


def test_an_unknown_product_is_not_counted_as_nothing() -> None:
    with pytest.raises(ValueError, match="known shape"):
        pipes.clocks(instruction("HMMA.9999.F32 R4, R8, R12, R4"), "80")


def test_warps_share_sub_partitions_or_the_multiprocessor() -> None:
    clocks = pipes.of_block({**dict.fromkeys(pipes.PIPES, 0.0), "fma": 10.0, "lsu": 3.0}, 8)
    assert clocks["fma"] == 20 and clocks["lsu"] == 24


def test_comments_name_the_next_loop(tmp_path: Path) -> None:
    source = tmp_path / "k.cuh"
    source.write_text(
        "// gate: product warps=8\n#pragma unroll 1\nfor (;;) {\n}\nfor (;;) {}  // gate: copy warps=2 trips=7/2\n"
    )
    product, copy = annotations.read_annotations(source)
    assert (product.name, product.line, product.warps, product.trips) == ("product", 3, 8, 1)
    assert (copy.name, copy.line, copy.warps, copy.trips) == ("copy", 5, 2, 3.5)


def test_a_wrong_comment_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "wrong.cuh"
    source.write_text("// gate: product threads=8\nfor (;;) {}\n")
    with pytest.raises(ValueError, match="expected warps= or trips=, got threads"):
        annotations.read_annotations(source)


def test_blocks_that_fit() -> None:
    assert blocks_per_multiprocessor("90a", 168, 384, 200 * 1024) == 1
    assert blocks_per_multiprocessor("90a", 168, 384, 228 * 1024) == 0
    assert blocks_per_multiprocessor("80", 128, 128, 0) == 4
    assert blocks_per_multiprocessor("80", 32, 1024, 48 * 1024) == 2


def test_hopper_files_are_compiled_for_hopper_alone() -> None:
    assert compiler.architectures(Path("conv_sm90_bf16.cu")) == ("90a",)
    assert compiler.architectures(Path("conv.cu")) == ("80", "90a")


def test_remarks_of_ptxas_are_kept() -> None:
    log = "ptxas info    : 0 bytes gmem\nptxas info    : (C7510) Potential Performance Loss: wgmma serialized in 'k'\n"
    assert len(compiler.parse_remarks(log)) == 1


def made(**changes: object) -> report.KernelReport:
    step = {**dict.fromkeys(pipes.PIPES, 0.0), "tensor": 100.0, "memory": 90.0}
    facts = dict(
        source=Path("conv2d_sm90.cu"),
        arch="90a",
        mangled="k",
        name="conv2d_sm90_kernel",
        resources=Resources(registers=128, stack=0, shared=2048),
        threads=384,
        opcodes={"HGMMA": 8, "UTMALDG": 2},
        loops=(),
        step=step,
        remarks=(),
    )
    return report.KernelReport(**{**facts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, None),
        ({"resources": Resources(128, 8, 0)}, "8 bytes of stack"),
        ({"opcodes": {"HGMMA": 8, "UTMALDG": 2, "LDL": 3}}, "3 accesses to local memory"),
        ({"threads": None}, "no __launch_bounds__"),
        ({"threads": 1024}, "1024 x 128 registers"),
        ({"resources": Resources(128, 0, 300000)}, "298976 bytes of shared memory, 232448 allowed"),
        ({"register_limits": (240, 24), "resources": Resources(168, 0, 0)}, None),
        ({"register_limits": (240, 24), "resources": Resources(160, 0, 0)}, "asks for 504 registers"),
        ({"opcodes": {"HGMMA": 8}}, "without wgmma and TMA"),
        ({"opcodes": {"HMMA": 8}}, "without wgmma and TMA"),
        ({"source": Path("conv2d.cu")}, "wgmma outside"),
        ({"source": Path("conv2d.cu"), "opcodes": {"HMMA": 8}}, "without cp.async"),
        ({"remarks": ("wgmma serialized",)}, "wgmma serialized"),
        ({"step": {**dict.fromkeys(pipes.PIPES, 0.0), "tensor": 100.0, "alu": 110.0}}, "alu takes 1.10 times"),
    ],
)
def test_gates(changes: dict[str, object], text: str | None) -> None:
    found = list(gates.violations(made(**changes)))
    assert len(found) == (text is not None), found
    assert text is None or text in found[0]


@pytest.mark.parametrize(("dynamic", "fits"), [(231424, True), (231425, False)])
def test_dynamic_shared_memory_counts(monkeypatch: pytest.MonkeyPatch, dynamic: int, fits: bool) -> None:
    kernel = made()  # 1024 bytes of its own
    monkeypatch.setattr(launches, "recorded", lambda: {"90a": {kernel.name: dynamic}})
    assert bool(list(gates.violations(kernel))) != fits


def test_launches_are_recorded_by_name_and_architecture(tmp_path: Path) -> None:
    path = tmp_path / "launches.json"
    name = "_ZN2ik4cuda1kIfEEvv"
    launches.record(path, {(name, 166912): 100, (name, 232448): 50, (name, 101376): 70})
    launches.record(path, {(name, 166912): 80, (name, 232448): 60})
    assert launches.read(path) == {"80": {"k<float>": 100}, "90a": {"k<float>": 60}}


def test_a_loop_around_the_named_one_does_not_take_its_place() -> None:
    def loop(**clocks: float) -> report.LoopReport:
        every = {**dict.fromkeys(pipes.PIPES, 0.0), **clocks}
        return report.LoopReport("product", "k.cu", 7, 0, 8, 1.0, {}, every)

    outer, inner = loop(tensor=10.0, issue=900.0), loop(tensor=100.0, issue=20.0)
    for loops in ([outer, inner], [inner, outer]):
        assert report._step(loops)["tensor"] == 100 and report._step(loops)["issue"] == 20


def test_an_unrolled_loop_counts_as_its_instructions(kernel: Kernel, tmp_path: Path) -> None:
    source = tmp_path / "k.cu"
    source.write_text("\n\n\n\n// gate: product\n#pragma unroll\nfor (;;) {\n}\n")
    lines = {"/src/k.cu": str(source)}
    for index, each in enumerate(kernel.instructions):
        moved = tuple((lines.get(file, file), line) for file, line in each.lines)
        kernel.instructions[index] = replace(each, lines=moved)
    flow = control_flow.analyse(kernel)
    flow.loops = []  # as if there were no branch back
    (found,) = report._unrolled(flow, "90a", 4)
    assert found.name == "product" and found.opcodes == {"IADD3": 2, "BRA": 2, "HGMMA": 1, "LDS": 1}
