"""A fixed handful of mutants of the CUDA kernels: the tests of their operator notice nearly all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("op", ["batch_norm"])
def test_sample_of_mutants(op: str, tmp_path: Path) -> None:
    output = tmp_path / "mutants.json"
    command = [sys.executable, "-m", "tools.mutation", "--op", op, "--limit", "30", "--seed", "7", "--jobs", "2"]
    result = subprocess.run(
        [*command, "--output", str(output), "--folder", str(tmp_path / "sources")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(output.read_text())["tested"] >= 20
