"""Every CUDA kernel as compiled: no spills, the intended instructions, the pipes; and the committed table is current."""

from __future__ import annotations

import cuda_extension
import pytest

from tools.cubin_gates import binaries, compiler, gates, table
from tools.cubin_gates.report import KernelReport

pytestmark = pytest.mark.slow


def missing_tool() -> str | None:
    try:
        binaries.nvcc()
        binaries.nvdisasm()
        binaries.cuobjdump()
    except binaries.MissingTool as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[KernelReport]:
    reason = missing_tool()
    if reason is not None:
        pytest.skip(reason)
    cuda_extension.build(tmp_path_factory.mktemp("extension"))
    return table.reports()


def test_every_kernel_is_as_it_must_be(kernels: list[KernelReport]) -> None:
    broken = [violation for kernel in kernels for violation in gates.violations(kernel)]
    assert not broken, "\n".join(["", *broken])


def test_every_source_has_kernels_for_each_architecture(kernels: list[KernelReport]) -> None:
    found = {(kernel.source, kernel.arch) for kernel in kernels}
    launchers_only = {source for source in compiler.kernel_sources() if "__global__" not in _text(source)}
    wanted = {
        (source, arch)
        for source in compiler.kernel_sources()
        for arch in compiler.architectures(source)
        if source not in launchers_only
    }
    assert wanted <= found


def test_the_committed_table_is_of_these_sources() -> None:
    assert table.recorded()["sources"] == table.source_hash(), "run `make gates` and commit benchmarks/cuda_kernels.md"


def test_the_committed_table_says_what_the_compiler_does(kernels: list[KernelReport]) -> None:
    version = table.nvcc_version()
    if table.recorded()["nvcc"] != version:
        pytest.skip(f"the table is of nvcc {table.recorded()['nvcc']}, this is {version}")
    assert table.PATH.read_text(encoding="utf-8") == table.render(kernels, version)


def _text(source) -> str:
    return source.read_text(encoding="utf-8")
