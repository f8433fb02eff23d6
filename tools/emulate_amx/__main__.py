"""Build the extension with the tile instructions of AMX emulated in AVX-512 and run the bf16 tests with its kernels.

python -m tools.emulate_amx                                   # every bf16 case of every operator (two minutes)
python -m tools.emulate_amx tests/test_separable_conv2d.py -k "bf16 and core_geometry"

Needs a processor with AVX-512 BF16, which these kernels use for everything but the tiles. Says nothing about speed.
Everything is built under build/emulate_amx, the installed package stays as it is.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from tools.variant import Variant

EMULATED = Variant(
    name="emulate_amx",
    flags="-DIK_EMULATE_AMX -O1",
    compiler=os.environ.get("CXX", "g++"),
    tests=("conv2d_bn_act", "separable_conv2d", "asymmetric_pair", "nonfinite", "determinism", "winograd",
           "weight_winograd", "run_program", "optimize", "properties", "backends"),
    environment={"IK_CPU_ISA": "amx", "IK_EMULATED_AMX": "1"},
)  # fmt: skip
SELECTION = ("-k", "(bf16 or amx) and not reference and not triton")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.emulate_amx", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _, given = parser.parse_known_args(arguments)
    EMULATED.build()
    return EMULATED.test(given or SELECTION)


if __name__ == "__main__":
    sys.exit(main())
