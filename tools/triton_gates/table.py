"""The committed tables: what became of each kernel, with the hash of the sources that it belongs to.

benchmarks/triton_kernels.jsonl has a line per distinct kernel, benchmarks/triton_kernels.md a row per tile for people.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import triton

from inception_kernels.source_hash import source_hashes
from tools.cubin_gates.compiler import ROOT
from tools.triton_gates import layers
from tools.triton_gates.read import Reading

LINES = ROOT / "benchmarks" / "triton_kernels.jsonl"
PATH = ROOT / "benchmarks" / "triton_kernels.md"
_HEADER = """# The Triton kernels as compiled

Read from the machine code, without a GPU; `python -m tools.triton_gates --table` writes this file and the line per
kernel in `triton_kernels.jsonl`, and the tests hold both to the sources. Nothing here was measured. Every layer of
Inception-v3 and Xception, every configuration that may be chosen for it, forward, training and backward.
"Tensor share":
tensor clocks of a turn of the main loop over those of its busiest pipe, lowest to highest among the variants of a tile
(epilogues, precisions); of sm_100's pipes no rates are known.
"""
_COLUMNS = (
    "kernel", "sm", "tile", "warps", "stages", "variants", "registers", "shared memory", "spills", "tensor share"
)  # fmt: skip
_LAYERS = """## The layers, forward, bf16, batch 256

What runs without a measurement. "At best": the least time that instructions and memory allow by the data sheets of the
A100 and the H100, kernel by kernel: turns of the main loop times the clocks of its busiest pipe, or every tensor once
over the memory's rate. On sm_100 the pipes are the four schedulers, and the tensor cores at their peak (B200): a floor
that its kernels will be further from. "Peak": the share of the tensor cores' peak that this is. Predictions, to compare
kernels with.
"""
_LAYER_COLUMNS = (
    "layer", "sm", "kernels", "tile", "warps", "registers", "shared memory", "products", "instructions a turn",
    "busiest pipe", "bound by", "at best, us", "peak",
)  # fmt: skip
_PRODUCTS = ("HGMMA", "HMMA", "UTCHMMA")
_TILE = (
    "BLOCK_M", "BLOCK_H", "BLOCK_W", "BLOCK_K", "BLOCK_K0", "BLOCK_K1", "BLOCK_C", "BLOCK", "PIXELS", "ROWS",
    "COLUMNS", "CHANNELS", "ELEMENTS",
)  # fmt: skip


def header(kernels: int, recorded: int) -> dict[str, Any]:
    """`kernels` that may be chosen, `recorded` ones of them."""
    return {**versions(), "kernels": kernels, "recorded": recorded}


def versions() -> dict[str, str]:
    return {"triton": triton.__version__, "sources": source_hashes(ROOT)["triton"]}


def recorded(path: Path = LINES) -> dict[str, Any]:
    """The header of the committed table; empty where there is none."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as file:
        return dict(json.loads(file.readline()))


def recorded_readings(path: Path = LINES) -> list[Reading]:
    rows = path.read_text(encoding="utf-8").splitlines()[1:]
    return [Reading(**json.loads(row)) for row in rows]


def write(readings: Sequence[Reading], kernels: int, lines: Path = LINES, path: Path = PATH) -> None:
    """Of `kernels` that may be chosen; where fewer have a reading, the table says so."""
    found = header(kernels, len(readings))
    rows = sorted(json.dumps(dataclasses.asdict(each), separators=(",", ":")) for each in readings)
    lines.write_text("\n".join([json.dumps(found), *rows, ""]), encoding="utf-8")
    path.write_text(render(recorded_readings(lines), found), encoding="utf-8")


def render(readings: Sequence[Reading], found: dict[str, Any]) -> str:
    """One row per kernel, architecture and tile: the range over its variants. `found` is the header."""
    groups: dict[tuple[Any, ...], list[Reading]] = defaultdict(list)
    for reading in readings:
        groups[_group(reading)].append(reading)
    rows = [_row(key, groups[key]) for key in sorted(groups)]
    return "\n".join(
        [
            _HEADER,
            f"Triton {found['triton']}, sources {found['sources']}, "
            f"{found['recorded']} of {found['kernels']} kernels recorded.",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            "|---|" + "---:|" * (len(_COLUMNS) - 1),
            *rows,
            "",
            _LAYERS,
            *_layer_tables(readings),
        ]
    )


def _layer_tables(readings: Sequence[Reading]) -> Iterator[str]:
    for network, members in itertools.groupby(layers.rows(readings), lambda row: row.network):
        yield f"### {network}\n"
        yield f"| {' | '.join(_LAYER_COLUMNS)} |"
        yield "|---|" + "---:|" * (len(_LAYER_COLUMNS) - 1)
        for row in members:
            yield _layer_row(row)
        yield ""


def _layer_row(row: layers.Row) -> str:
    """Its kernels side by side, separated by semicolons."""
    readings = [bound.reading for bound in row.bounds]
    columns = (
        [each.name.strip("_") for each in readings],
        [_tile(each) for each in readings],
        [each.warps for each in readings],
        [each.registers for each in readings],
        [each.shared for each in readings],
        [next((each.instructions[name] for name in _PRODUCTS if name in each.instructions), "-") for each in readings],
        [f"{each.step['issue'] * 4 / each.warps:.0f}" if each.step else "-" for each in readings],
        [bound.pipe for bound in row.bounds],
        [bound.by for bound in row.bounds],
    )
    cells = ["; ".join(map(str, column)) for column in columns]
    return f"| {' | '.join([str(row.layer), row.arch, *cells, f'{row.microseconds:.1f}', f'{row.share:.2f}'])} |"


def _group(reading: Reading) -> tuple[Any, ...]:
    stages = reading.constants.get("STAGES", reading.stages)
    return reading.name, int(reading.arch), _tile(reading), reading.warps, stages


def _tile(reading: Reading) -> str:
    return "x".join(str(reading.constants[name]) for name in _TILE if name in reading.constants)


def _row(key: tuple[Any, ...], readings: Sequence[Reading]) -> str:
    shares = [each.tensor_share for each in readings if each.tensor_share is not None]
    cells = (
        *key,
        len(readings),
        _range([each.registers for each in readings]),
        max(each.shared for each in readings),
        sum(bool(each.stack or each.local_accesses) for each in readings),
        _range([f"{share:.2f}" for share in shares]) if shares else "-",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _range(values: Sequence[Any]) -> str:
    least, most = min(values), max(values)
    return str(least) if least == most else f"{least} - {most}"
