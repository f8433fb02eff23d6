"""Compile the Triton kernels for GPUs that are not here and read them: python -m tools.triton_gates --table"""

from __future__ import annotations

import argparse
import re
import sys

from rich.progress import track

from tools.triton_gates import cases, table
from tools.triton_gates.capture import DEVICES
from tools.triton_gates.read import Reading, read, violations


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.triton_gates", description=__doc__)
    parser.add_argument("--arch", action="append", choices=list(DEVICES), help="default: all")
    parser.add_argument("--batch", action="append", type=int, help=f"default: {cases.BATCHES}")
    parser.add_argument("--layer", default="", help="only layers whose text contains this regular expression")
    parser.add_argument("--table", action="store_true", help="write benchmarks/triton_kernels.md (an hour)")
    options = parser.parse_args(arguments)
    chosen = [
        case for case in cases.cases(tuple(options.batch or cases.BATCHES)) if re.search(options.layer, str(case.layer))
    ]
    readings: dict[object, Reading] = {}
    broken = []
    for arch in options.arch or list(DEVICES):
        kernels = (
            kernel
            for case in track(chosen, f"sm_{arch}", disable=not sys.stderr.isatty())
            for kernel in cases.compile_case(case, arch)
        )
        for kernel in (*kernels, *cases.compile_loss(arch)):
            if kernel.identity not in readings:
                readings[kernel.identity] = reading = read(kernel)
                broken += list(violations(reading))
    if options.table:
        table.write(list(readings.values()))
    else:
        print(table.render(list(readings.values())))
    print("\n".join(broken) or f"{len(readings)} kernels are as they must be", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
