"""What `flops.count` returns: rows and totals, as a table or as JSON."""

import json
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class LayerCost:
    """One operator call. Sizes in elements, `bytes` of memory traffic, `macs` multiply-adds (0: only moves data)."""

    path: str
    operator: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    params: int
    bytes: int

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def shape(self) -> str:
        return f"{_by(self.input_shape)} -> {_by(self.output_shape)}"


@dataclass(frozen=True)
class FlopReport:
    """Every operator call of one forward pass, in order.

    `parameters` counts the whole model, including what the pass does not use (an auxiliary head); a row's `params`
    are those that it reads and no earlier row has.
    """

    model: str
    input_shape: tuple[int, ...]
    dtype: torch.dtype
    parameters: int
    rows: tuple[LayerCost, ...]

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def flops(self) -> int:
        return 2 * self.macs

    @property
    def params(self) -> int:
        """Parameters that the pass uses."""
        return sum(row.params for row in self.rows)

    @property
    def bytes(self) -> int:
        """Memory traffic if every operator reads its inputs and weights once and writes its outputs once."""
        return sum(row.bytes for row in self.rows)

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    def to_table(self, all_rows: bool = False) -> Table:
        """A rich table. Operators without multiply-adds are one line together, or each its own with `all_rows`."""
        shape, dtype = _by(self.input_shape), str(self.dtype).removeprefix("torch.")
        table = Table(title=f"{self.model}, input {shape}, {dtype}", title_justify="left")
        for heading in ("layer", "operator", "shape"):
            table.add_column(heading, overflow="fold")
        for heading in ("GMAC", "GFLOP", "params", "MB", "FLOP/byte"):
            table.add_column(heading, justify="right", no_wrap=True)

        def numbers(cost: "LayerCost | FlopReport") -> list[str]:
            return [
                f"{cost.macs / 1e9:.4f}",
                f"{cost.flops / 1e9:.4f}",
                f"{cost.params:,}",
                f"{cost.bytes / 1e6:.2f}",
                f"{cost.intensity:.1f}",
            ]

        shown = [row for row in self.rows if all_rows or row.macs]
        for row in shown:
            table.add_row(row.path or "(model)", row.operator, row.shape, *numbers(row))
        rest = [row for row in self.rows if not all_rows and not row.macs]
        if rest:
            moved = LayerCost("", "", (), (), 0, sum(row.params for row in rest), sum(row.bytes for row in rest))
            table.add_row(f"{len(rest)} without multiply-adds", *_kinds(rest), *numbers(moved))
        table.add_section()
        table.add_row("total", "", f"{self.parameters:,} parameters in the model", *numbers(self), style="bold")
        return table

    def to_dict(self) -> dict[str, object]:
        """Plain numbers and strings."""
        return {
            "model": self.model,
            "input_shape": list(self.input_shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "parameters": self.parameters,
            "total": _numbers(self),
            "rows": [
                {
                    "path": row.path,
                    "operator": row.operator,
                    "input_shape": list(row.input_shape),
                    "output_shape": list(row.output_shape),
                    **_numbers(row),
                }
                for row in self.rows
            ],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        console = Console(width=160)
        with console.capture() as capture:
            console.print(self.to_table())
        return capture.get()


def _numbers(cost: LayerCost | FlopReport) -> dict[str, float]:
    return {
        "macs": cost.macs,
        "flops": cost.flops,
        "params": cost.params,
        "bytes": cost.bytes,
        "intensity": cost.intensity,
    }


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _kinds(rows: list[LayerCost]) -> tuple[str, str]:
    names = sorted({row.operator.removeprefix("aten.") for row in rows})
    return ", ".join(names), ""
