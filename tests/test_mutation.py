"""The mutation test of the CUDA kernels: where it mutates, and that a fixed handful of mutants is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import host_cuda
import pytest

from tools.mutation.overlay import Overlay
from tools.mutation.sites import apply_sites, find_sites

ROOT = Path(__file__).resolve().parent.parent

KERNEL = """\
constexpr int kRows = 4 * 8;
__global__ void kernel(const float* x, float* y, int n) {
  IK_SHARED(float, s, [kRows]);  // a < b
  for (int i = threadIdx.x; i < n; i += blockDim.x) s[i] = x[i ^ 1];
  if (n > 0) __syncthreads();
  y[n - 1] = n > 2 && x[0] > 0 ? s[kRows * n] : 0;
}
void launch(int n) { IK_LAUNCH(kernel, dim3(n + 1), dim3(32), 0); }
"""


def test_sites_are_in_device_code_only(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cuh"
    source.write_text(KERNEL)
    changes = [(site.line, site.change) for site in find_sites(source, "kernel.cuh")]
    assert changes == [
        (4, "< to <="),
        (4, "+= to += 1 +"),
        (4, "^ 1 dropped"),
        (5, "> to >="),
        (5, "delete __syncthreads()"),
        (6, "- to +"),
        (6, "> to >="),
        (6, "right side of && dropped"),
        (6, "> to >= (2)"),
        (6, "* n to * (n + 1)"),
    ]


def test_mutants_are_put_in_behind_their_numbers(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cuh"
    source.write_text(KERNEL)
    sites = find_sites(source, "kernel.cuh")
    deletion = next((7, site) for site in sites if site.kind == "synchronisation")
    exclusive = next((8, site) for site in sites if site.change == "^ 1 dropped")
    text = apply_sites(source, [deletion, exclusive])
    assert "if (n > 0) ik_mutant(7) ? void() : __syncthreads();" in text
    assert "x[i ^ ik_mutation::zero<8>(1)]" in text


def test_a_line_loses_only_the_mutants_that_do_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "const float deviation = j < valid ? values[i] - mean[i] : 0.0f;"
    kernels = host_cuda.CSRC / "cuda" / "batch_norm.cu"
    sites = find_sites(kernels.with_suffix(".cuh"), "cuda/batch_norm.cuh")
    overlay = Overlay(tmp_path, {number: site for number, site in enumerate(sites) if site.source == line})
    monkeypatch.setattr(host_cuda, "options", host_cuda.options)
    overlay.prepare([kernels])
    assert [site.change for site in overlay.sites.values()] == ["< to <="]
    assert [site.change for site in overlay.dropped] == ["- to +"]


def test_a_sample_of_mutants_is_found(tmp_path: Path) -> None:
    output = tmp_path / "mutants.json"
    command = [sys.executable, "-m", "tools.mutation", "--op", "batch_norm", "--limit", "30", "--seed", "7"]
    result = subprocess.run(
        [*command, "--jobs", "2", "--output", str(output), "--folder", str(tmp_path / "sources")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(output.read_text())["tested"] >= 20
