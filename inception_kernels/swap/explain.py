"""`explain`: what each layer of a swapped model did in its last call."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table
from torch import nn

from .layers import FollowForward, PoolSite, Swapped
from .plan import analyze
from .pools import KINDS
from .records import LayerRecord, draw
from .runtime import FusedLayer


@dataclass(frozen=True)
class LayerState:
    """One fused layer.

    `ran`: "prepared" (folded weights, packed once), "operator", "original" (the modules it replaces; `reasons` says
    why), or "not called yet". `reasons`: why each backend before `backend` did not run. `converted`: the input was
    not channels-last and was copied. `tuned`: what `tune` chose per mode. `configurations`: of the Triton kernels that
    ran, and why each was chosen.
    """

    path: str
    operator: str
    ran: str
    backend: str = ""
    reasons: dict[str, str] = field(default_factory=dict)
    converted: bool = False
    tuned: dict[str, str] = field(default_factory=dict)
    configurations: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PoolState:
    """One pool. `ran`: "operator" (the CPU's), "original" (`reason` says why), or "not called yet"."""

    path: str
    operator: str
    ran: str
    reason: str = ""


@dataclass
class Explanation:
    model: str
    layers: list[LayerState]
    declined: list[LayerRecord]
    pools: list[PoolState] = field(default_factory=list)

    @property
    def conversions(self) -> int:
        """Layers that had to convert their input to channels-last."""
        return sum(layer.converted for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        if not self.layers:
            return f"{self.model} has no fused layers: swap(model) puts them in, plan(model) says which\n"
        table = Table(
            title=f"{self.model}: {len(self.layers)} fused layers, {self.conversions} layout conversion(s)",
            title_justify="left",
        )
        for name in ("layer", "operator", "last call", "backend", "input layout", "why / tuned"):
            table.add_column(name, overflow="fold")
        for layer in self.layers:
            why = [f"{name}: {reason}" for name, reason in layer.reasons.items()]
            why += [f"tuned for {mode}: {choice}" for mode, choice in layer.tuned.items()]
            why += layer.configurations
            table.add_row(
                layer.path or "(model)",
                layer.operator,
                layer.ran,
                layer.backend,
                "converted" if layer.converted else "",
                "; ".join(why),
            )
        for pool in self.pools:
            backend = {"operator": "cpu", "original": "torch"}.get(pool.ran, "")
            table.add_row(pool.path, pool.operator, pool.ran, backend, "", pool.reason)
        for record in self.declined:
            table.add_row(record.path, "declined", "original", "torch", "", record.reason)
        return draw(table)


def explain(model: nn.Module) -> Explanation:
    """Per fused layer and pool of `model`: what ran in its last call, every fallback and its reason, conversions.

    Calls under `torch.compile` leave no trace here; `backends.counters()` counts them. Raises TypeError where
    `model` is not a module.
    """
    analysis = analyze(model, probed=False)
    layers = [
        _state(layer)
        for module in model.modules()
        if isinstance(module, Swapped) and not isinstance(module, FollowForward)
        for layer in module.swapped_layers
    ]
    pools = [
        PoolState(module.swapped_site.path, KINDS[module._ik_base], *(module.swapped_site.last or ("not called yet",)))
        for module in model.modules()
        if isinstance(module, Swapped) and isinstance(module.swapped_site, PoolSite)
    ]
    return Explanation(type(model).__name__, layers, analysis.plan.declined, pools)


def _state(layer: FusedLayer) -> LayerState:
    last = layer.last
    if last is None:
        return LayerState(layer.path, layer.operator, "not called yet", tuned=dict(layer.choices))
    return LayerState(
        layer.path,
        layer.operator,
        last.ran,
        last.backend,
        dict(last.reasons),
        last.converted,
        dict(layer.choices),
        [str(selection) for selection in last.selections],
    )
