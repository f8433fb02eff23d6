"""`python -m inception_kernels plan` and `verify`."""

from __future__ import annotations

import argparse
import copy
import importlib.util
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from .. import models
from .apply import swap
from .plan import plan
from .shapes import modes
from .verify import OutputError, SwapVerificationError

_MODEL_HELP = "inception_v3, xception, torchvision:NAME, timm:NAME or package.module:callable"
# torchvision's and timm's own requirements would replace a CPU-only torch by one with CUDA.
_INSTALL = {
    "torchvision": "pip install --no-deps torchvision==0.28.0  (the release for torch 2.13)",
    "timm": "pip install --no-deps timm torchvision && pip install huggingface_hub safetensors pyyaml",
}
_DTYPES = ("float32", "bfloat16", "float16")


def _input_shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected N,C,H,W as in 1,3,299,299, got {text!r}")
    return shape


def load_model(name: str) -> nn.Module:
    """`models.load(name)`; where torchvision or timm is missing the ValueError gives the pip command."""
    source = name.partition(":")[0]
    for package in (source, "torchvision") if source == "timm" else (source,):
        if package in _INSTALL and importlib.util.find_spec(package) is None:
            raise ValueError(f"model {name!r} needs {package}, which is not installed: {_INSTALL[source]}")
    return models.load(name)


def _add_model(parser: argparse.ArgumentParser, batch: int) -> None:
    default = (batch, 3, 299, 299)
    parser.add_argument("model", help=_MODEL_HELP)
    parser.add_argument(
        "--input",
        type=_input_shape,
        default=default,
        metavar="N,C,H,W",
        help=f"shape of the example input (default: {','.join(map(str, default))})",
    )


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `plan`."""
    _add_model(parser, batch=1)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the plan there as well")


def run_plan(args: argparse.Namespace) -> int:
    """Print what `swap` would do to the model; 0. Raises ValueError for an unknown model."""
    model = load_model(args.model).eval()
    result = plan(model, torch.zeros(args.input))
    print(result, end="")
    print(result.summary())
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(result.to_json() + "\n", encoding="utf-8")
        print(f"wrote {args.json}")
    return 0


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `verify`."""
    _add_model(parser, batch=2)
    parser.add_argument(
        "--dtype", action="append", choices=_DTYPES, help="may be repeated (default: float32 and bfloat16)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the input (default: 0)")


def run_verify(args: argparse.Namespace) -> int:
    """Swap the model and compare it with itself unswapped against float64; 0 where every dtype passes, else 1."""
    torch.manual_seed(args.seed)
    model = load_model(args.model).eval()
    x = torch.randn(args.input)
    if args.model.partition(":")[0] in ("inception_v3", "xception", "torchvision", "timm"):
        settle_batch_norm(model, x)  # random weights; a callable brings its own
    table = Table(
        title=f"{args.model}, input {'x'.join(map(str, args.input))}: largest error against float64",
        title_justify="left",
    )
    for name in ("dtype", "fused layers", "swapped", "unswapped", "allowed (2 x unswapped)", "result"):
        table.add_column(name, justify="left" if name in ("dtype", "result") else "right")
    failures = []
    for name in args.dtype or ["float32", "bfloat16"]:
        dtype = getattr(torch, name)
        candidate = copy.deepcopy(model).to(dtype)
        try:
            report = swap(candidate, verify=x.to(dtype))
        except SwapVerificationError as error:
            failures.append(f"{name}: {error}")
            table.add_row(name, "-", "-", "-", "-", "FAILED")
            continue
        for measured in report.verification or []:
            _add_row(table, name, len(report.swapped), measured)
    console = Console() if Console().is_terminal else Console(width=120)
    console.print(table)
    for failure in failures:
        console.print(failure, markup=False)
    return 1 if failures else 0


def _add_row(table: Table, dtype: str, layers: int, error: OutputError) -> None:
    table.add_row(dtype, str(layers), f"{error.swapped:.3e}", f"{error.unswapped:.3e}", f"{error.allowed:.3e}", "ok")


def settle_batch_norm(model: nn.Module, x: torch.Tensor) -> None:
    """Set the running statistics of random weights to those of `x`, so that activations neither vanish nor explode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with modes(model, training=False), torch.no_grad():
        for norm in norms:
            norm.training, norm.momentum = True, 1.0
        try:
            model(x)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
