"""`python -m inception_kernels bench`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inception_kernels.bench.config import DTYPES, KINDS, NETWORKS, OPERATORS, PASSES, Config, usual_dtypes

_DEFAULT = Config()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `bench`. Lists are separated by commas."""
    what = parser.add_argument_group("what to measure (lists separated by commas)")
    what.add_argument(
        "--quick", action="store_true", help="batch 1, two layers per operator, about five minutes on two cores"
    )
    for name, default, allowed in (
        ("kinds", _DEFAULT.kinds, KINDS),
        ("networks", _DEFAULT.networks, NETWORKS),
        ("operators", _DEFAULT.operators, OPERATORS),
        ("passes", _DEFAULT.passes, PASSES),
    ):
        usual = "all" if default == allowed else ",".join(default)
        text = f"out of {', '.join(allowed)} (default: {usual})"
        what.add_argument(f"--{name}", type=_words, default=default, metavar="LIST", help=text)
    text = f"out of {', '.join(DTYPES)} (default: float32 and, where PyTorch has fast kernels for it, bfloat16)"
    what.add_argument("--dtypes", type=_words, default=None, metavar="LIST", help=text)
    what.add_argument("--batches", type=_numbers, default=None, metavar="LIST", help="(default: 1,8; --quick: 1)")
    what.add_argument("--layers", type=int, default=None, metavar="N", help="at most N layers per operator")
    what.add_argument("--backends", type=_words, default=(), metavar="LIST", help="race only these and eager")
    what.add_argument("--tune", action="store_true", help="race the swap tuned per shape, too")
    how = parser.add_argument_group("how")
    how.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    how.add_argument("--threads", type=int, default=None, metavar="N", help="for everyone (default: torch's choice)")
    how.add_argument("--rounds", type=int, default=_DEFAULT.rounds, metavar="N", help="turns that each one has")
    how.add_argument(
        "--max-seconds", type=float, default=None, metavar="S", help="start no case after S seconds (--quick: 270)"
    )
    out = parser.add_argument_group("output")
    out.add_argument("--output", type=Path, default=None, metavar="DIR", help="write JSON, CSV, Markdown and plots")
    out.add_argument("--save", type=Path, default=None, metavar="DIR", help="keep the rows as DIR/<device>/*.json")
    out.add_argument(
        "--render", type=Path, default=None, metavar="DIR", help="measure nothing: rows of DIR into README"
    )
    out.add_argument("--readme", type=Path, default=Path("README.md"), help="for --render (default: README.md)")
    out.add_argument("--check", action="store_true", help="with --render: change nothing, exit 1 where it would")


def run(args: argparse.Namespace) -> int:
    """Measure and report, or render. Returns the exit status.

    Raises:
        ValueError: a choice that does not exist; rows that cannot be read.
    """
    if args.render is not None:
        return _render(args)
    from inception_kernels.bench import environment, harness, report, terminal

    config = _config(args)
    console = terminal.make_console()
    with terminal.progress(console) as progress:
        rows = harness.run(config, progress=progress)
    terminal.show(rows, console)
    if set(config.dtypes) < set(_DEFAULT.dtypes) and args.dtypes is None:
        print(
            "bfloat16 is not measured: PyTorch has no kernels for it on this processor (on x86 they need AVX-512), but "
            "loops that take up to minutes for an image. --dtypes float32,bfloat16 measures it all the same.",
            file=sys.stderr,
        )
    if args.output is not None:
        for path in report.write(rows, args.output):
            print(f"wrote {path}")
    if args.save is not None and rows and rows[0].environment is not None:
        folder = args.save / environment.slug(rows[0].environment)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{_name(args)}.json"
        report.save(rows, path)
        print(f"wrote {path}")
    return 0


def _name(args: argparse.Namespace) -> str:
    """Of a file of rows: `quick`, or `full-network-training` where a part was asked for."""
    parts = [
        "-".join(chosen)
        for chosen, everything in ((args.kinds, _DEFAULT.kinds), (args.passes, _DEFAULT.passes))
        if set(chosen) != set(everything)
    ]
    return "-".join(["quick" if args.quick else "full", *parts])


def _render(args: argparse.Namespace) -> int:
    from inception_kernels import source_hash
    from inception_kernels.bench import render, report

    if not args.render.is_dir():
        raise ValueError(f"expected a folder with rows, got {args.render}")
    current = render.update(args.readme, report.load(args.render), source_hash.current_hashes(), args.check)
    print(f"{args.readme} " + ("is up to date" if current else "is out of date" if args.check else "was rendered"))
    return 1 if args.check and not current else 0


def _config(args: argparse.Namespace) -> Config:
    config = Config(
        kinds=args.kinds,
        networks=args.networks,
        operators=args.operators,
        batches=args.batches or _DEFAULT.batches,
        dtypes=args.dtypes or usual_dtypes(args.device),
        passes=args.passes,
        backends=args.backends,
        device=args.device,
        threads=args.threads,
        layers=args.layers,
        tune=args.tune,
        rounds=args.rounds,
        max_seconds=args.max_seconds,
    )
    return config.quick(args.batches, args.layers) if args.quick else config


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers separated by commas, got {text!r}") from None
