"""The command line: `python -m inception_kernels` and the console script `inception-kernels`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from inception_kernels import flops, info
from inception_kernels._version import __version__
from inception_kernels.bench import commands as bench
from inception_kernels.swap import commands as swap
from inception_kernels.training import command as train

_COMMANDS = (
    ("info", "versions, backends and why one is missing, instruction sets, suggestions", info.add_arguments, info.run),
    ("bench", "race operators and networks against PyTorch and its peers", bench.add_arguments, bench.run),
    ("verify", "swap a model and compare it with float64", swap.add_verify_arguments, swap.run_verify),
    ("plan", "what a swap would do to a model, and why not more", swap.add_plan_arguments, swap.run_plan),
    (
        "flops",
        "multiply-adds, bytes and intensity per layer, and the papers' arithmetic",
        flops.add_arguments,
        flops.run,
    ),
    (
        "train",
        "train one of the two networks as its paper does, on digits or on folders of images",
        train.add_arguments,
        train.run,
    ),
)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inception-kernels", description="Fused convolution kernels for the Inception family."
    )
    parser.add_argument("--version", action="version", version=f"inception_kernels {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log every choice; show where an error was raised")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, summary, add_arguments, run in _COMMANDS:
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        add_arguments(command)
        command.set_defaults(run=run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 2, and one line on stderr, for what the user can mend."""
    args = make_parser().parse_args(argv)
    if args.verbose:
        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("inception_kernels").setLevel(logging.DEBUG)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Who read the output, `head` say, has seen enough. What is still buffered must not fail once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if args.verbose:
            raise
        print(f"inception-kernels {args.command}: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"inception-kernels {args.command}: interrupted", file=sys.stderr)
        return 130


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
