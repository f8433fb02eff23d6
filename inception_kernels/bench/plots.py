"""Two pictures: layers under the measured roofline, and our speed-up per network over each baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # before pyplot: files only, whatever display there is

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from inception_kernels.bench import columns
from inception_kernels.bench.row import BASELINE, OK, OURS, Environment, Row
from inception_kernels.roofline import Roofline

# Okabe and Ito's palette: told apart by the colour-blind too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_MARKERS = {"separable_conv2d": "o", "conv2d_bn_act": "s", "asymmetric_pair": "D"}
_MARKERS |= {"pointwise_depthwise_conv2d": "^", "label_smoothing_cross_entropy": "v"}
_MARKERS |= {"max_pool2d": "P", "avg_pool2d": "X"}
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "font.size": 10,
    "figure.dpi": 110,
    "savefig.dpi": 160,
}


def write(rows: Sequence[Row], folder: Path) -> list[Path]:
    """roofline.png and speedup.png, each only where there are rows for it."""
    written = []
    with plt.rc_context(_STYLE):
        for name, draw in (("roofline.png", _roofline), ("speedup.png", _speedup)):
            figure = draw(rows)
            if figure is not None:
                figure.savefig(folder / name, bbox_inches="tight")
                plt.close(figure)
                written.append(folder / name)
    return written


def _roofline(rows: Sequence[Row]) -> plt.Figure | None:
    """One panel per dtype and pass. A line joins each layer's fastest baseline (hollow) with ours (filled)."""
    timed = [row for row in rows if row.kind == "operator" and row.status == OK and row.tflops and row.intensity]
    panels = sorted({(row.pass_, row.dtype) for row in timed}, key=lambda each: (each[0], _DTYPE_ORDER.index(each[1])))
    if not panels or timed[0].environment is None:
        return None
    where = timed[0].environment
    machine = Roofline.from_dict(where.roofline_start).best_of(Roofline.from_dict(where.roofline_end))
    columns_, lines = min(2, len(panels)), -(-len(panels) // 2)
    figure, axes = plt.subplots(lines, columns_, figsize=(5.6 * columns_, 4.4 * lines), squeeze=False)
    for axis, (pass_, dtype) in zip(axes.flat, panels, strict=False):
        members = [row for row in timed if (row.pass_, row.dtype) == (pass_, dtype)]
        _draw_roof(axis, machine, dtype, members)
        _draw_layers(axis, members)
        axis.set_title(f"{dtype}, {pass_}")
        axis.set_xlabel("arithmetic intensity [FLOP / byte]")
        axis.set_ylabel("performance [GFLOP/s]")
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    _layer_legend(figure, timed)
    figure.suptitle(f"Layers under the measured roofline\n{where.device}, {_threads(where)}", fontsize=11)
    figure.tight_layout()
    return figure


_DTYPE_ORDER = ("float32", "bfloat16", "float16", "float64")


def _draw_roof(axis: Axes, machine: Roofline, dtype: str, members: Sequence[Row]) -> None:
    intensities = [row.intensity for row in members if row.intensity]
    peak = machine.product[dtype]
    slow, fast = machine.copy[max(machine.copy)], max(machine.copy.values())
    x = np.geomspace(min([*intensities, peak / fast]) / 2, max(intensities) * 2, 200)  # both ridges are inside
    for bandwidth, label, style in ((slow, "memory", "-"), (fast, "cache", "--")):
        y = np.minimum(peak, bandwidth * x) / 1e9
        axis.loglog(x, y, style, color="0.35", linewidth=1.4, zorder=1)
        at = x[0] * 1.15
        if bandwidth * at < peak:
            text = f"{label} {bandwidth / 1e9:.0f} GB/s"
            slope = (at, bandwidth * at / 1e9)
            axis.annotate(text, slope, (7, -7), textcoords="offset points", va="top", fontsize=8, color="0.3")
    axis.annotate(
        f"product {peak / 1e9:,.0f} GFLOP/s",
        (x[-1], peak / 1e9),
        (0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color="0.3",
    )
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        side.set_minor_formatter(NullFormatter())


def _draw_layers(axis: Axes, members: Sequence[Row]) -> None:
    for case in columns.by_case(members):
        marker = _MARKERS.get(case[0].operator, "o")
        others = [row for row in case if row.role == BASELINE]
        mine = [row for row in case if row.role == OURS]
        best = min(others, key=_milliseconds) if others else None
        ours = min(mine, key=_milliseconds) if mine else None
        points = [row for row in (best, ours) if row is not None]
        x = [row.intensity or 1.0 for row in points]
        y = [1e3 * (row.tflops or 0.0) for row in points]
        axis.plot(x, y, "-", color="0.7", linewidth=0.8, zorder=2)
        if best is not None:
            axis.plot(x[0], y[0], marker, color=_COLOURS[1], markerfacecolor="white", markersize=6, zorder=3)
        if ours is not None:
            axis.plot(x[-1], y[-1], marker, color=_COLOURS[0], markersize=6, zorder=4)


def _layer_legend(figure: plt.Figure, rows: Sequence[Row]) -> None:
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=_COLOURS[0], label="inception_kernels"),
        plt.Line2D(
            [], [], marker="o", linestyle="", color=_COLOURS[1], markerfacecolor="white", label="fastest baseline"
        ),
    ]
    used = {row.operator for row in rows}
    for operator, marker in _MARKERS.items():
        if operator in used:
            handles.append(plt.Line2D([], [], marker=marker, linestyle="", color="0.4", label=operator))
    figure.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles), frameon=False, fontsize=9
    )


def _threads(where: Environment) -> str:
    return f"{where.threads} thread{'' if where.threads == 1 else 's'}"


def _milliseconds(row: Row) -> float:
    return row.median_ms or float("inf")


def _speedup(rows: Sequence[Row]) -> plt.Figure | None:
    """A panel per pass; a group per network, batch and dtype; a bar per baseline."""
    ours = [row for row in rows if row.kind == "network" and row.role == OURS and row.status == OK and row.speedup]
    passes = sorted({row.pass_ for row in ours})
    if not ours or ours[0].environment is None:
        return None
    names = list(dict.fromkeys(name for row in ours for name in row.speedup))
    groups = {pass_: [row for row in ours if row.pass_ == pass_] for pass_ in passes}
    widest = max(map(len, groups.values()))
    figure, axes = plt.subplots(
        len(passes), 1, figsize=(max(6.5, 1.1 + 2.0 * widest), 3.4 * len(passes)), squeeze=False
    )
    for axis, pass_ in zip(axes.flat, passes, strict=True):
        _draw_bars(axis, groups[pass_], names)
        axis.set_title(pass_)
    where = ours[0].environment
    handles = [plt.Rectangle((0, 0), 1, 1, color=_COLOURS[i % len(_COLOURS)]) for i in range(len(names))]
    figure.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(names), frameon=False)
    figure.suptitle(f"Speed-up of inception_kernels over each baseline\n{where.device}, {_threads(where)}", fontsize=11)
    figure.tight_layout()
    return figure


def _draw_bars(axis: Axes, members: Sequence[Row], names: Sequence[str]) -> None:
    width = 0.8 / len(names)
    top = max(ratio for row in members for ratio in row.speedup.values())
    for place, row in enumerate(members):
        for index, name in enumerate(names):
            if name not in row.speedup:
                continue  # the legend names it; the table says why it has no time
            ratio = row.speedup[name]
            at = place + (index - (len(names) - 1) / 2) * width
            axis.bar(at, ratio, width * 0.92, color=_COLOURS[index % len(_COLOURS)])
            note = axis.annotate(
                f"{ratio:.2f}", (at, ratio), (0, 3), textcoords="offset points", ha="center", fontsize=7.5
            )
            note.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})  # legible across the line at 1
    axis.axhline(1.0, color="black", linewidth=1.0)
    axis.set_ylim(0, top * 1.15)
    axis.set_xticks(range(len(members)))
    suffix = {row.backend for row in members if row.backend != "inception_kernels"}
    axis.set_xticklabels(
        [f"{row.case}\nbatch {row.batch}, {row.dtype}" + (f"\n{row.backend}" if suffix else "") for row in members]
    )
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("speed-up (above 1: faster)")
