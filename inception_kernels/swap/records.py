"""One line of a plan or a report, and what a fusion is predicted to save."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from .atoms import Group


@dataclass
class LayerRecord:
    """One group of convolutions that is swapped, or one convolution that is not.

    Attributes:
        path: the layer in the model.
        convolutions: paths of its convolutions (two for a separable one).
        operator: the fused operator; None where declined.
        weight_shapes: of `convolutions`, in order.
        input_shape, output_shape: `[N, C, H, W]`; None without an example input or where it did not run.
        dtype: of the weight.
        activations: input, mid and output activation of the fused operator.
        reason: why it was declined; "" where swapped.
        gain: predicted ratio of the bytes that the separate operators move to those that the fused one moves, in
            inference; without shapes per output pixel, weights left out. A prediction, not a measurement.
        notes: anything else worth knowing.
    """

    path: str
    convolutions: list[str]
    operator: str | None
    weight_shapes: list[list[int]]
    dtype: str
    input_shape: list[int] | None = None
    output_shape: list[int] | None = None
    activations: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    gain: float | None = None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def declined_record(path: str, module: nn.Module, reason: str) -> LayerRecord:
    weight = getattr(module, "weight", None)
    known = isinstance(weight, torch.Tensor) and not nn.parameter.is_lazy(weight)
    return LayerRecord(
        path,
        [path],
        None,
        [list(weight.shape)] if known else [],  # type: ignore[union-attr]
        _dtype_name(weight),
        reason=reason,
    )


def swapped_record(
    group: Group, path: str, inputs: dict[int, torch.Size], outputs: dict[int, torch.Size]
) -> LayerRecord:
    first, last = group.convolutions[0].module, group.convolutions[-1].module
    input_shape, output_shape = inputs.get(id(first)), outputs.get(id(last))
    return LayerRecord(
        path,
        [convolution.path for convolution in group.convolutions],
        group.operator,
        [list(convolution.module.weight.shape) for convolution in group.convolutions],
        _dtype_name(last.weight),
        None if input_shape is None else list(input_shape),
        None if output_shape is None else list(output_shape),
        activations={
            "input": group.input_activation,
            "mid": group.mid_activation,
            "output": group.activation,
        },
        gain=predicted_gain(group, input_shape, output_shape),
        notes=list(group.notes),
    )


def _dtype_name(tensor: object) -> str:
    return str(tensor.dtype).removeprefix("torch.") if isinstance(tensor, torch.Tensor) else "unknown"


def predicted_gain(group: Group, input_shape: torch.Size | None, output_shape: torch.Size | None) -> float:
    """Elements read and written by the separate operators over those of the fused one."""
    last = group.conv.module
    window = group.convolutions[0].module
    weights = 0
    if input_shape is not None and output_shape is not None:
        read, written = input_shape.numel(), output_shape.numel()
        middle = written // last.out_channels * last.in_channels
        weights = sum(convolution.module.weight.numel() for convolution in group.convolutions)
    else:
        read = window.in_channels * window.stride[0] * window.stride[1]
        written, middle = last.out_channels, last.in_channels
    fused = read + written + weights
    separate = fused
    if group.depthwise is not None:
        separate += 2 * middle
    separate += 2 * read * (group.input_activation != "none")
    separate += 2 * middle * (group.mid_activation != "none")
    separate += 2 * written * ((group.norm is not None) + (group.activation != "none"))
    return separate / fused


def _shape(values: list[int] | None) -> str:
    return "x".join(map(str, values)) if values else "-"


def render(title: str, swapped: Iterable[LayerRecord], declined: Iterable[LayerRecord], footer: str = "") -> str:
    """The table that `print` shows."""
    table = Table(title=title, title_justify="left", caption=footer or None, caption_justify="left")
    for name, justify in (
        ("layer", "left"), ("operator", "left"), ("weight", "left"), ("input", "left"), ("dtype", "left"),
        ("predicted gain (bytes)", "right"), ("reason / notes", "left"),
    ):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for record in (*swapped, *declined):
        table.add_row(
            record.path or "(model)",
            record.operator or "declined",
            " + ".join(_shape(shape) for shape in record.weight_shapes) or "-",
            _shape(record.input_shape),
            record.dtype,
            "-" if record.gain is None else f"{record.gain:.2f}x",
            "; ".join(filter(None, (record.reason, *record.notes))),
        )
    return draw(table)


def draw(table: Table) -> str:
    """Text of a table as wide as the terminal, or wide enough for paths where there is none."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
