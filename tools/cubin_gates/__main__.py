"""Compile CUDA sources and print what became of their kernels: python -m tools.cubin_gates csrc/cuda/x.cu"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from tools.cubin_gates import binaries, compiler, gates, report, table
from tools.cubin_gates.text import kernel_text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.cubin_gates", description=__doc__)
    parser.add_argument("sources", nargs="*", type=Path, help=".cu files (default: all of csrc/cuda)")
    parser.add_argument("--table", action="store_true", help="write benchmarks/cuda_kernels.md")
    parser.add_argument(
        "--check", action="store_true", help="print only what breaks a gate, and exit 1 if anything does"
    )
    parser.add_argument("--arch", action="append", choices=[compiler.SM80, compiler.SM90A])
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this regular expression")
    parser.add_argument("--shared", type=int, default=0, help="bytes of dynamic shared memory, for the occupancy")
    parser.add_argument("--loops", choices=["main", "all"], default="main", help="all: also loops without arithmetic")
    parser.add_argument("-D", dest="defines", action="append", default=[], help="a macro for nvcc, NAME or NAME=VALUE")
    options = parser.parse_args(arguments)
    sources = options.sources or compiler.kernel_sources()
    jobs = [(source, arch) for source in sources for arch in options.arch or compiler.architectures(source)]
    try:
        if options.table:
            table.write()
            return 0
        if options.check:
            return _check()
        cubins = compiler.cubins(jobs, tuple(f"-D{each}" for each in options.defines))
        for cubin in cubins:
            for remark in cubin.remarks or ():
                print(f"{cubin.source.name} sm_{cubin.arch}: {remark}")
            for each in report.report(cubin):
                if re.search(options.kernel, each.name):
                    print(kernel_text(each, options.shared, options.loops == "all"))
    except (binaries.MissingTool, compiler.CompileError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _check() -> int:
    broken = [violation for kernel in table.reports() for violation in gates.violations(kernel)]
    print("\n".join(broken) or "all kernels are as they must be")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
