"""The CUDA kernels: which there are, on which GPUs each has run, which calls they take, and when they are chosen.

A kernel is proven on an architecture once a committed result of a GPU of that architecture shows it right against
float64. The automatic choice takes proven kernels, and those that ``tune`` has measured on this machine and found right
and faster; :func:`inception_kernels.use_backend` takes any.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import _extension, kernel_record, source_hash

Shapes = Callable[[], tuple[int, ...]]

OPERATORS = ("conv2d_bn_act", "separable_conv2d", "asymmetric_pair")
OLDEST_ARCHITECTURE = 80

_DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "f16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
    "f32": torch.float32,
}


# ---- which calls they take


def missing() -> str | None:
    """None where this installation and this machine have CUDA kernels, else the reason."""
    if not _extension.cuda_available:
        return _extension.cuda_reason
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is no CUDA build"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"


def declined(x: Tensor, operator: str | None, shapes: Shapes | None) -> str | None:
    """None where the kernels take this call, else the reason.

    ``shapes`` gives N, C, H, W, K, R, S, stride, padding and dilation of the convolution, or of both in turn. Under
    torch.compile they may be symbols, so there the operator itself raises with the reason when it runs.
    """
    if not _extension.cuda_available:
        return _extension.cuda_reason
    if x.device.type != "cuda":
        return f"the input is on {x.device.type}, not on a CUDA device"
    if operator is not None and operator not in OPERATORS:
        return f"{operator} has no CUDA kernels"
    if x.dtype == torch.float64:
        return "float64 runs on the reference backend"
    sm = architecture(x.device)
    if sm < OLDEST_ARCHITECTURE:
        return f"the CUDA kernels need compute capability 8.0, this device has {sm // 10}.{sm % 10}"
    if operator is None or shapes is None or torch.compiler.is_compiling():
        return None
    return _declined_shapes(operator, str(x.dtype).removeprefix("torch."), shapes(), sm) or None


@functools.lru_cache(maxsize=4096)
def _declined_shapes(operator: str, dtype: str, shapes: tuple[int, ...], sm: int) -> str:
    return torch.ops.inception_kernels._cuda_declines(operator, dtype, shapes, sm)


def architecture(device: torch.device) -> int:
    """80 for compute capability 8.0, and so on."""
    if torch.compiler.is_compiling():  # a constant of the graph
        return _query_architecture(device)
    found = _architectures.get(device)
    if found is None:
        found = _architectures[device] = _query_architecture(device)
    return found


_architectures: dict[torch.device, int] = {}


def _query_architecture(device: torch.device) -> int:
    properties = torch.cuda.get_device_properties(device)
    return properties.major * 10 + properties.minor


# ---- where they have run


@dataclass(frozen=True)
class Support:
    """One kernel: its counter's name, the GPUs it is made for, and those it has run on with right results."""

    kernel: str
    operator: str
    direction: str
    instructions: str
    precision: str
    runs: tuple[str, ...]


def table(root: Path | None = None) -> list[Support]:
    """Every kernel of the checkout or, in an installed package, of the sources that it was built from."""
    names, runs = _record(root)
    found = []
    for name in names:
        operator, direction, variant = name.split(".")
        if variant == "cuda_aten":
            continue  # PyTorch's own
        ran = tuple(sorted({_description(run) for run in runs if run["kernel"] == name}))
        instructions = "sm_90 (wgmma, TMA)" if "_sm90_" in variant else "sm_80 and later"
        found.append(Support(name, operator, direction, instructions, variant.rpartition("_")[2], ran))
    return found


def markdown(root: Path | None = None) -> str:
    """The table, one line for the kernels that differ in precision only."""
    lines = [
        "| operator | pass | made for | precision | executed on the host, against float64 | run on hardware |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    groups: dict[tuple[str, ...], list[Support]] = {}
    for each in table(root):
        stem = each.kernel.rpartition("_")[0]
        groups.setdefault((each.operator, each.direction, each.instructions, stem), []).append(each)
    for (operator, direction, instructions, stem), kernels in groups.items():
        special = " (by rows)" if stem.endswith("_rows") else ""
        precisions = ", ".join(each.precision for each in kernels)
        ran = sorted({f"{each.precision}: {run}" for each in kernels for run in each.runs})
        state = "; ".join(ran) or "not yet"
        lines.append(f"| `{operator}` | {direction}{special} | {instructions} | {precisions} | yes | {state} |")
    return "\n".join(lines)


def _description(run: dict[str, Any]) -> str:
    current = source_hash.current_hashes().get("cuda")
    stale = "" if run["source_hash"] == current else ", before later changes"
    return f"{run['device']} (sm_{run['sm']}{stale})"


def _record(root: Path | None) -> tuple[list[str], list[dict[str, Any]]]:
    root = root or Path(__file__).parent.parent
    if (root / "csrc" / "cuda").exists():
        return kernel_record.kernel_names(root), kernel_record.hardware_runs(root)
    built: dict[str, Any] = source_hash.build_info()
    return built.get("cuda_kernels", []), built.get("hardware_runs", [])


# ---- when they are chosen

Proven = tuple[str, torch.dtype, int]


def _proven(runs: Iterable[dict[str, Any]]) -> set[Proven]:
    """Operator, dtype and architecture of the runs on hardware."""
    found = set()
    for run in runs:
        match = re.fullmatch(r"(\w+)\.forward\.cuda_(?:\w+_)?([a-z]+\d+)", run["kernel"])
        if match is not None and match[2] in _DTYPES:
            found.add((match[1], _DTYPES[match[2]], int(run["sm"])))
    return found


_trusted: set[Proven] = _proven(_record(None)[1]) if _extension.cuda_available else set()


def trust(operator: str, dtype: torch.dtype, device: torch.device) -> None:
    """Let the automatic choice of this process take the kernels of this operator and dtype on this kind of GPU."""
    _trusted.add((operator, dtype, architecture(device)))


def unproven(x: Tensor, operator: str) -> str | None:
    """None where the automatic choice may take the kernels of this operator for x, which is on a GPU; else why not."""
    sm = architecture(x.device)
    if (operator, x.dtype, sm) in _trusted:
        return None
    return (
        f"{operator} in {str(x.dtype).removeprefix('torch.')} has no committed run on hardware of sm_{sm}: "
        "`tune` measures it here, use_backend('cuda') runs it"
    )
