"""Compile the Triton kernels for GPUs that are not here and read them: python -m tools.triton_gates --table"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping

from rich.console import Console
from rich.progress import Progress

from tools.cubin_gates.binaries import MissingTool
from tools.triton_gates import cases, compiler, table
from tools.triton_gates.capture import DEVICES, Launch
from tools.triton_gates.read import Reading, violations

_SECONDS_BETWEEN_LINES = 30.0
_ORDER = ("90", "80", "100")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.triton_gates", description=__doc__)
    parser.add_argument("--arch", action="append", choices=list(DEVICES), help="default: all")
    parser.add_argument("--batch", action="append", type=int, help=f"default: {cases.BATCHES}")
    parser.add_argument(
        "--case", default="", metavar="RE", help="only cases whose text contains this regular expression"
    )
    parser.add_argument("--kernel", default="", metavar="RE", help="only kernels whose name contains this")
    parser.add_argument("--chosen", action="store_true", help="only kernels that run without a measurement")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile (default: 1)")
    parser.add_argument("--list", action="store_true", help="count the distinct kernels and compile nothing")
    parser.add_argument("--table", action="store_true", help="write the tables into benchmarks/")
    parser.add_argument("--kept", action="store_true", help="compile nothing: take what earlier runs have compiled")
    options = parser.parse_args(arguments)
    if options.table and (options.arch or options.batch or options.case or options.kernel or options.chosen):
        parser.error("--table is of all kernels: leave out --arch, --batch, --case, --kernel and --chosen")
    wanted = cases.matching(options.case, batches=tuple(options.batch or cases.BATCHES))
    launches = _launches(wanted, options.arch or list(DEVICES), options.kernel, options.chosen)
    if options.list:
        return 0
    try:
        found = compiler.kept(launches) if options.kept else _compile(launches, options.jobs)
    except MissingTool as error:
        print(error, file=sys.stderr)
        return 1
    readings = [each for each in found.values() if each is not None]
    if options.table:
        table.write(readings, len(found))
    elif readings and not options.chosen:  # a kernel is compared with those that were not chosen
        print(table.render(readings, table.header(len(found), len(readings))))
    broken = sum(bool(list(violations(each))) for each in readings)
    print(f"{len(readings)} of {len(found)} kernels read, {broken} not as they must be", file=sys.stderr)
    return 1 if broken else 0


def _launches(wanted: list[cases.Case], architectures: list[str], kernel: str, chosen: bool) -> list[Launch]:
    """Of each kernel one, the most telling first, with a line about each architecture."""
    found: dict[str, Launch] = {}
    for arch in architectures:
        for case in wanted:
            launches = [each for each in cases.launches(case, arch) if re.search(kernel, each.name)]
            compiler.distinct(launches, found)
        if chosen:
            found = {key: launch for key, launch in found.items() if launch.chosen}
        names = Counter(launch.name for launch in found.values() if launch.arch == arch)
        print(f"sm_{arch}: {names.total()} kernels: {dict(names.most_common())}", file=sys.stderr, flush=True)
    return sorted(found.values(), key=lambda launch: (not launch.chosen, _ORDER.index(launch.arch)))


def _compile(launches: list[Launch], jobs: int) -> Mapping[str, Reading | None]:
    """Each distinct kernel's reading by its key; what is not as it must be is printed as it is found."""
    found: dict[str, Reading] = {}
    begun = printed = time.monotonic()
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("compile", total=len(launches))
        for count, (key, reading) in enumerate(compiler.readings(launches, jobs), 1):
            if key not in found:
                found[key] = reading
                for sentence in violations(reading):
                    print(sentence, file=sys.stderr, flush=True)
            progress.advance(task)
            now = time.monotonic()
            if progress.disable and now - printed > _SECONDS_BETWEEN_LINES:
                printed = now
                print(f"{count} of {len(launches)} after {now - begun:.0f} s", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
