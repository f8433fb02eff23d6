"""The CUDA extension without a GPU: its operators over kernels that execute on the host, and the extension itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cuda_extension
import pytest
import torch

from build_backend import toolchain
from inception_kernels import cuda_kernels, kernel_record

TESTS = Path(__file__).parent
ROOT = TESTS.parent
ARCHITECTURES = (80, 90)


def run_operators_on_the_host(sm: int, record: Path) -> set[str]:
    """tests/host_cuda_operators.py as on this architecture, in a process of its own. Returns the kernels that ran."""
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "hosted_operators"]
    python_path = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [*command, str(TESTS / "host_cuda_operators.py")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=3000,
        env=os.environ | {"IK_TEST_SM": str(sm), "IK_TEST_RECORD": str(record), "PYTHONPATH": python_path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout
    return set(record.read_text().split())


@pytest.mark.slow
def test_every_kernel_is_right_on_the_host_through_its_operator(tmp_path):
    """Which lets the support table say so of each."""
    ran = set().union(*(run_operators_on_the_host(sm, tmp_path / str(sm)) for sm in ARCHITECTURES))
    names = set(kernel_record.kernel_names(ROOT))
    assert names
    assert names <= ran, f"never executed: {sorted(names - ran)}"


def test_the_hosts_part_of_a_call_is_measured():
    done = subprocess.run(
        [sys.executable, "-m", "tools.host_time", "--repeats", "3"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^(\w+), (\w+)((?: +[\d.]+){3})$", done.stdout, re.MULTILINE)
    assert [row[:2] for row in rows] == [
        (operator, dtype) for operator in ("conv2d_bn_act", "separable_conv2d") for dtype in ("float32", "bfloat16")
    ]
    assert all(float(time) > 0 for row in rows for time in row[2].split())


def test_the_table_in_the_documents_is_the_one_of_the_sources():
    """`inception-kernels info --kernels` prints it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    written = text.partition("<!-- cuda-kernels -->\n")[2].partition("\n<!-- /cuda-kernels -->")[0]
    assert written == cuda_kernels.markdown(ROOT)


# ---- the extension as nvcc builds it


@pytest.fixture(scope="module")
def extension(tmp_path_factory) -> Path:
    """A folder with the package and `_C_cuda` in it, built against this torch."""
    if toolchain.find_nvcc() is None:
        pytest.skip("_C_cuda cannot be built here: there is no nvcc")
    folder = tmp_path_factory.mktemp("extension")
    cuda_extension.build(folder)
    package = folder / "inception_kernels"
    for path in (ROOT / "inception_kernels").rglob("*.py"):
        target = package / path.relative_to(ROOT / "inception_kernels")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return folder


def run_beside(extension: Path, program: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(extension)}
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", program],
        cwd=extension, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_cuda_extension_loads_and_registers_beside_any_torch(extension):
    output = run_beside(
        extension,
        """
import torch
from inception_kernels import _extension, backends
assert _extension.cuda_available, _extension.cuda_reason
for name in ("conv2d_bn_act", "separable_conv2d", "asymmetric_pair", "batch_norm", "update_running_statistics"):
    for op in (name, name + "_training", name + "_backward", name + "_pack", name + "_prepacked"):
        if hasattr(torch.ops.inception_kernels, op):
            found = torch._C._dispatch_has_kernel_for_dispatch_key(f"inception_kernels::{op}", "CUDA")
            print(op, found)
            assert found, op
assert torch.ops.inception_kernels._counted_cuda_kernels() == ""
if not torch.cuda.is_available():
    print(backends.can_run_cuda())
""",
    )
    assert "separable_conv2d_backward True" in output
    if not torch.cuda.is_available():
        assert "CUDA" in output.splitlines()[-1], output


@pytest.mark.slow
def test_only_the_stable_abi_is_used_and_no_cuda_library_is_needed(extension):
    (library,) = (extension / "inception_kernels").glob("_C_cuda*.so")
    assert library.name == "_C_cuda.abi3.so"
    symbols = subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", library], capture_output=True, text=True, check=True
    )
    unstable = [line for line in symbols.stdout.splitlines() if re.search(r"\b(at|c10|torch)::|\bcud", line)]
    assert unstable == []


@pytest.mark.slow
def test_precision_follows_pytorchs_flags(extension):
    run_beside(
        extension,
        """
import torch
import inception_kernels
allows = torch.ops.inception_kernels._cuda_allows_tf32
assert allows() == (torch.backends.cudnn.conv.fp32_precision == "tf32")
for allowed in (False, True, False):
    torch.backends.cudnn.allow_tf32 = allowed
    assert allows() == allowed
for precision in ("tf32", "ieee", "tf32"):
    torch.backends.cudnn.conv.fp32_precision = precision
    assert allows() == (precision == "tf32")
""",
    )


@pytest.mark.slow
def test_declines_by_shape_without_a_device(extension):
    run_beside(
        extension,
        """
import torch
import inception_kernels
declines = torch.ops.inception_kernels._cuda_declines
dense, wide = [1, 8, 9, 9, 8, 3, 3, 1, 1, 1, 1, 1, 1], [1, 8, 19, 19, 8, 9, 9, 1, 1, 4, 4, 1, 1]
assert declines("conv2d_bn_act", "float32", dense, 80) == ""
assert declines("conv2d_bn_act", "float64", dense, 80) == "float64 runs on the reference backend"
assert "8.0" in declines("conv2d_bn_act", "bfloat16", dense, 75)
assert "window" in declines("separable_conv2d", "bfloat16", wide, 90)
assert declines("separable_conv2d", "bfloat16", dense, 90) == ""
for wrong in (("conv2d_bn_act", "float32", dense[:5], 80), ("abacus", "float32", dense, 80)):
    try:
        declines(*wrong)
    except RuntimeError:
        continue
    raise AssertionError(wrong)
""",
    )
