"""`python -m inception_kernels flops`."""

import argparse
import json
from fractions import Fraction
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from inception_kernels import models
from inception_kernels.flops.count import count
from inception_kernels.flops.papers import SEPARABLE_EXAMPLES, asymmetric, factorizations, separable_cost_ratio
from inception_kernels.flops.report import FlopReport

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="inception_v3, xception, torchvision:NAME, timm:NAME or package.module:callable; may be repeated "
        "(default: inception_v3 and xception)",
    )
    parser.add_argument("--image-size", type=_positive, default=299, metavar="PIXELS")
    parser.add_argument("--batch", type=_positive, default=1, metavar="N")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="for the bytes (default: float32)")
    parser.add_argument("--all", action="store_true", help="a line for each operator without multiply-adds too")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the numbers there as well")


def run(args: argparse.Namespace) -> int:
    """Print the tables; 0. Raises ValueError for an unknown model, OSError where the JSON cannot be written."""
    names = args.model or ["inception_v3", "xception"]
    reports = [_report(name, args.image_size, args.batch, getattr(torch, args.dtype)) for name in names]
    console = Console() if Console().is_terminal else Console(width=160)
    for report in reports:
        console.print(report.to_table(all_rows=args.all))
        console.print(
            f"{report.model}: {report.macs / 1e9:.2f} GMAC, {report.flops / 1e9:.2f} GFLOP, "
            f"{report.parameters / 1e6:.2f} M parameters, {report.bytes / 1e6:.1f} MB moved, "
            f"{report.intensity:.1f} FLOP/byte\n"
        )
    console.print(papers_table())
    if args.json is not None:
        document = {"reports": [report.to_dict() for report in reports], "papers": papers_dict()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=2) + "\n")
        console.print(f"wrote {args.json}")
    return 0


def papers_table() -> Table:
    """The papers' own arithmetic."""
    table = Table(title="The papers' arithmetic (equal channel counts)", title_justify="left")
    for heading in ("factorization", "multiply-adds left", "gain", "saved", "source"):
        table.add_column(heading)
    for item in factorizations():
        table.add_row(
            str(item), str(item.cost_ratio), f"{item.gain} = {float(item.gain):.2f}x", _percent(item.saved), item.source
        )
    table.add_row("n x n -> 1xn + nx1", "2/n", "n/2", "1 - 2/n", "Rethinking, section 3.2, any n")
    table.add_section()
    for channels, window in SEPARABLE_EXAMPLES:
        ratio = separable_cost_ratio(channels, window)
        table.add_row(
            f"separable {window}x{window}, K = {channels}",
            str(ratio),
            f"{float(1 / ratio):.2f}x",
            _percent(1 - ratio),
            "1/K + 1/(R S): MobileNets, section 3.1; layers of Xception, figure 5",
        )
    return table


def papers_dict() -> dict[str, object]:
    """The same for JSON, fractions as strings, with n x n -> 1xn + nx1 for n = 2 to 11."""
    return {
        "factorizations": [
            {
                "factorization": str(item),
                "cost_ratio": str(item.cost_ratio),
                "gain": str(item.gain),
                "saved": float(item.saved),
                "source": item.source,
            }
            for item in [*factorizations(), *(asymmetric(n) for n in range(2, 12) if n not in (3, 7))]
        ],
        "separable": [
            {"out_channels": channels, "window": window, "cost_ratio": str(separable_cost_ratio(channels, window))}
            for channels, window in SEPARABLE_EXAMPLES
        ],
    }


def _report(name: str, image_size: int, batch: int, dtype: torch.dtype) -> FlopReport:
    model = models.load(name).to("meta")
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if convolution is None:
        raise ValueError(f"model {name!r} has no torch.nn.Conv2d: flops counts image models")
    image = torch.empty(batch, convolution.in_channels, image_size, image_size, device="meta")
    return count(model, image, dtype=dtype, name=name)


def _percent(share: Fraction) -> str:
    return f"{float(share) * 100:.0f} %"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {value}")
    return value
