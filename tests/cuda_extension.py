"""`_C_cuda` as nvcc builds it, compiled once for all tests that look at it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.cubin_gates import compiler

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path) -> None:
    """Both extensions under `folder`; their objects stay in build/, where the gates find them and nobody waits twice."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={"TORCH_CUDA_ARCH_LIST": "8.0;9.0a", **os.environ, "IK_BUILD": "cuda"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "and _C_cuda (" in done.stdout
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("ptxas")]
    assert not compiler.parse_remarks("\n".join(said))
