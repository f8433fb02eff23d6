"""Build, check and measure the CUDA kernels on this machine's GPU."""

from __future__ import annotations

import argparse
import sys
import tarfile
from pathlib import Path

from tools.gpu import runner
from tools.gpu.steps import PARTS, STEPS, chosen

_QUICK_LIMIT_SECONDS = 570.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__, epilog=_epilog(),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("output", type=Path, help="folder for results: summary.md, steps.json and one folder per step")
    parser.add_argument("--quick", action="store_true", help="fewer shapes; all steps within ten minutes")
    parser.add_argument(
        "--parts", default="", metavar="LIST", help="parts or steps, separated by commas (default: all)"
    )
    parser.add_argument("--limit", type=float, metavar="S", help="seconds for the whole run (--quick: 570)")
    parser.add_argument("--resume", action="store_true", help="keep the steps that ended well in OUTPUT before")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="also pack the results into this .tar.gz")
    parser.add_argument(
        "--rehearse", action="store_true", help="without a GPU, on tiny shapes: no results, only a test"
    )
    options = parser.parse_args(arguments)
    try:
        steps = chosen(options.parts)
    except ValueError as error:
        parser.error(str(error))
    limit = options.limit or (_QUICK_LIMIT_SECONDS if options.quick else None)
    settings = runner.Settings(options.output.resolve(), options.quick, options.rehearse, options.resume, limit)
    outcomes = runner.run(steps, settings)
    if options.archive is not None:
        with tarfile.open(options.archive, "w:gz") as archive:
            archive.add(settings.output, arcname="gpu")
    print(f"wrote {settings.output / runner.SUMMARY}")
    return 0 if all(each.status == runner.OK for each in outcomes) else 1


def _epilog() -> str:
    rows = [f"  {step.name:<12} {step.part:<9} {step.summary}" for step in STEPS]
    return "\n".join([f"parts: {', '.join(PARTS)}", "steps, in order:", *rows])


if __name__ == "__main__":
    sys.exit(main())
