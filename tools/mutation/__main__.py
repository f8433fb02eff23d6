"""Mutation test of the CUDA kernels, executed on the host by the tests of their operators.

python -m tools.mutation --output tools/mutation/results.json      # everything (hours on a small machine); goes on
                                                                        # where it was interrupted
python -m tools.mutation --op batch_norm --sample 0.1 --seed 3          # a quick look
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import host_cuda  # noqa: E402

from tools.mutation import equivalent, results  # noqa: E402
from tools.mutation.overlay import Overlay  # noqa: E402
from tools.mutation.session import Session, Verdict  # noqa: E402
from tools.mutation.sites import Site, find_sites  # noqa: E402

# Instructions and launches are the machine's, not a kernel's.
NOT_KERNELS = {"primitives.cuh", "wgmma.cuh", "launch.h", "launch_device.h"}
OPERATORS = tuple(
    path.name.removeprefix("bind_").removesuffix(".cpp")
    for path in sorted((host_cuda.CSRC / "host_cuda").glob("bind_*.cpp"))
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.mutation", description=__doc__)
    parser.add_argument("--op", action="append", choices=OPERATORS, help="only the kernels that this operator executes")
    parser.add_argument("--file", action="append", help="only mutants of these files of csrc/cuda")
    parser.add_argument("--sample", type=float, default=1.0, help="the part of the index mutants to test")
    parser.add_argument("--limit", type=int, help="at most so many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", default="", help="pytest -k expression")
    parser.add_argument("--suite", type=float, default=600, help="processor seconds of tests that take part")
    parser.add_argument("--budget", type=float, default=60, help="of them for one mutant, the quick ones first")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutation")
    parser.add_argument("--output", type=Path, help="a JSON file; mutants that it holds as found are not tested again")
    options = parser.parse_args(arguments)
    operators = options.op or OPERATORS
    if len(operators) > 1 and options.output is None:
        parser.error("several operators need an --output that collects their results")
    sites = {op: numbered_sites(op) for op in OPERATORS}
    overlay = prepared_overlay(sites, operators, options.folder)
    if len(operators) == 1:
        verdicts = test_operator(operators[0], sites[operators[0]], overlay, options, ())
    else:
        for i, op in enumerate(operators):
            later = {number for other in operators[i + 1 :] for number in sites[other]}
            test_in_child(op, sites[op], overlay, options, later)
        verdicts = results.load(options.output)
    print(results.summary(verdicts))
    return 0 if results.lowest_score(verdicts) >= results.REQUIRED else 1


def prepared_overlay(sites: dict[str, dict[int, Site]], operators: Sequence[str], folder: Path) -> Overlay:
    """With the mutants of all operators, whatever is tested of them: they share sources, and the next run finds its
    libraries."""
    overlay = Overlay(folder, {number: site for mine in sites.values() for number, site in mine.items()})
    overlay.prepare(sorted({kernel for op in operators for kernel in kernels_of(op)}))
    return overlay


def test_in_child(
    op: str, sites: dict[int, Site], overlay: Overlay, options: argparse.Namespace, later: set[int]
) -> None:
    """Libraries and pytest's state are a process's own."""
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=test_operator, args=(op, sites, overlay, options, later))
    child.start()
    child.join()


def test_operator(
    op: str, sites: dict[int, Site], overlay: Overlay, options: argparse.Namespace, later: Collection[int]
) -> dict[str, Verdict]:
    """`later`: mutants that another operator's tests still get: what these do not execute is not counted yet."""
    own = {number: site for number, site in sites.items() if number in overlay.sites}
    awaited = {site.key for number, site in own.items() if number in later}
    known = results.of_present_sources(results.load(options.output), [*overlay.sites.values(), *overlay.dropped])
    population = len(known.keys() | {site.key for site in overlay.sites.values()})
    chosen = choose(own, options, known)
    again = {site.key for site in chosen.values()}
    known = {key: verdict for key, verdict in known.items() if verdict.executed or key not in again}
    refused = f"{len(sites) - len(own)} would not compile, being of numbers or pointers"
    print(f"{op}: {len(chosen)} of {len(own)} mutants; {refused}", flush=True)

    def progress(verdict: Verdict) -> None:
        if verdict.executed or verdict.site.key not in awaited:
            known[verdict.site.key] = results.better(known.get(verdict.site.key), verdict)
        results.save(options.output, known, population)
        outcome = verdict.found_by or ("SURVIVED" if verdict.executed else "not executed")
        print(f"{outcome:36s} {verdict.seconds:6.1f} s  {verdict.site.line:4d} {verdict.site.key}", flush=True)

    session = Session(op, chosen, options.jobs, options.suite, options.budget, progress)
    session.run([str(ROOT / "tests" / f"test_{op}_cuda.py"), *(["-k", options.tests] if options.tests else [])])
    return known


def numbered_sites(op: str) -> dict[int, Site]:
    """A file's numbers do not depend on the other files."""
    most = 1 << 9
    names = sorted(path.name for path in (host_cuda.CSRC / "cuda").iterdir())
    numbered: dict[int, Site] = {}
    for name in sources_of(op):
        sites = find_sites(host_cuda.CSRC / "cuda" / name, f"cuda/{name}")
        numbered |= dict(enumerate(sites[:most], start=most * names.index(name)))
    return numbered


def choose(sites: dict[int, Site], options: argparse.Namespace, known: dict[str, Verdict]) -> dict[int, Site]:
    """Every synchronisation and a fixed sample of the rest, without what is found or equivalent. In the order of the
    draw, so that a run that is cut short has tested a smaller sample."""
    excused = equivalent.load()
    drawn = {}
    for number, site in sites.items():
        if options.file and Path(site.file).name not in options.file:
            continue
        verdict = known.get(site.key)
        tested = verdict is not None and bool(verdict.found_by)
        draw = 0.0 if site.kind == "synchronisation" else random.Random(f"{options.seed}{site.key}").random()
        if draw < options.sample and not tested and not excused.reason(site):
            drawn[number] = draw
    order = sorted(drawn, key=lambda number: (drawn[number], number))
    return {number: sites[number] for number in order[: options.limit]}


def kernels_of(op: str) -> list[Path]:
    text = (ROOT / "tests" / f"test_{op}_cuda.py").read_text()
    stems = [op, *(also for also in OPERATORS if f'"{also}"' in text)]
    return sorted({path for stem in stems for path in (host_cuda.CSRC / "cuda").glob(f"{stem}*.cu")})


def sources_of(op: str) -> list[str]:
    """The files of csrc/cuda that the operator's own kernels are made of."""
    names = set()
    for kernel in sorted((host_cuda.CSRC / "cuda").glob(f"{op}*.cu")):
        command = [*host_cuda.compiler(), *host_cuda.kernel_flags(checked=False), "-MM", str(kernel)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        paths = [Path(name) for name in listing.replace("\\\n", " ").split(":", 1)[1].split()]
        names |= {path.name for path in paths if path.parent == host_cuda.CSRC / "cuda"}
    return sorted(names - NOT_KERNELS)


if __name__ == "__main__":
    sys.exit(main())
