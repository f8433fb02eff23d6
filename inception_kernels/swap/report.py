"""What `swap` did."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from .records import LayerRecord, draw, render
from .tune import TunedLayer
from .verify import OutputError


@dataclass
class SwapReport:
    """`swapped`, `declined` and `pools` as in the plan; `verification` and `tuning` where they were asked for."""

    model: str
    swapped: list[LayerRecord]
    declined: list[LayerRecord]
    verification: list[OutputError] | None = None
    tuning: list[TunedLayer] = field(default_factory=list)
    pools: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        covered = sum(len(record.convolutions) for record in self.swapped)
        total = covered + sum(len(record.convolutions) for record in self.declined)
        title = f"Swapped {self.model}: {covered} of {total} convolutions in {len(self.swapped)} fused layers"
        parts = [render(title, self.swapped, self.declined)]
        if self.pools:
            parts.append(f"Pools with an operator on the CPU: {', '.join(self.pools)}\n")
        if self.verification is not None:
            parts.append("Verified against float64: " + "; ".join(str(error) for error in self.verification) + "\n")
        if self.tuning:
            parts.append(draw(_tuning_table(self.tuning)))
        return "".join(parts)


def _tuning_table(tuning: list[TunedLayer]) -> Table:
    table = Table(title="Measured on this machine (median)", title_justify="left")
    for name in ("layer", "input", "mode", "fused ms", "triton ms", "original ms", "runs", "from"):
        table.add_column(name, justify="right" if name.endswith("ms") else "left", overflow="fold")
    for tuned in tuning:
        table.add_row(
            tuned.path,
            "x".join(map(str, tuned.input_shape)),
            tuned.mode,
            f"{tuned.fused_ms:.3f}",
            "" if tuned.triton_ms is None else f"{tuned.triton_ms:.3f}",
            f"{tuned.original_ms:.3f}",
            tuned.choice,
            "cache" if tuned.cached else "measured",
        )
    return table
