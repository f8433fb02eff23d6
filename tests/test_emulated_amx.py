"""The AMX kernels on processors that need not have tiles: a build of its own emulates them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from instruction_sets import runs_here

ROOT = Path(__file__).parents[1]


# No other processor can execute these kernels: what surrounds their tiles is AVX-512 BF16, emulated or not.
@pytest.mark.skipif(not runs_here("avx512bf16"), reason="this processor has no AVX-512 BF16")
def test_bf16_on_emulated_tiles():
    result = subprocess.run(
        [sys.executable, "-m", "tools.emulate_amx"], cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) > 300, result.stdout[-500:]


# The emulated tiles themselves are AVX-512.
@pytest.mark.skipif(not runs_here("avx512"), reason="this processor has no AVX-512")
def test_tiles_without_a_scope_are_an_error(tmp_path):
    """The emulation notices what would end the process on AMX, too."""
    source = tmp_path / "tiles.cpp"
    source.write_text("""#include "cpu/amx/emulated_tiles.h"
int main(int count, char**) {
  if (count == 1) ik::cpu::amx::EmulatedTiles::of_thread().configure();
  _tile_zero(0);
}
""")
    program = tmp_path / "tiles"
    flags = ["-std=c++20", "-mavx512f", f"-I{ROOT / 'csrc'}"]
    subprocess.run([os.environ.get("CXX", "g++"), *flags, str(source), "-o", str(program)], check=True, timeout=120)
    assert subprocess.run([program], check=False, timeout=60).returncode == 0
    failed = subprocess.run([program, "unconfigured"], capture_output=True, text=True, check=False, timeout=60)
    assert failed.returncode != 0
    assert "outside of a TileScope" in failed.stderr
