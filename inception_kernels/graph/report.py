"""What an optimised network is made of, in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from .partition import Action, Segment
from .passes._graph import step_of
from .steps import Depthwise, Flatten, Slice, Step

_UNFUSED_DEPTHWISE = "depthwise convolution that does not go straight into a 1 x 1: no kernel in a program"


@dataclass
class StepTime:
    """One step of a program: `name` in the graph, what it is, and its milliseconds."""

    name: str
    kind: str
    detail: str
    milliseconds: float


@dataclass
class GraphReport:
    """`passes`: how often each changed the graph. `steps`: how many of each kind. `declined`: call -> reason."""

    programs: int = 0
    passes: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        steps = ", ".join(f"{count} {name}" for name, count in self.steps.items())
        passes = ", ".join(f"{name} {count}" for name, count in self.passes.items())
        lines = [f"{self.programs} program(s): {steps}", f"passes: {passes}"]
        if self.declined:
            lines.append("PyTorch operators:")
            lines += [f"  {name}: {reason}" for name, reason in self.declined.items()]
        else:
            lines.append("PyTorch operators: none")
        return "\n".join(lines)


def describe(networks: list[tuple[fx.GraphModule, list[Action], dict[str, str], dict[str, int]]]) -> GraphReport:
    """Of the first network: the others are the same model at other sizes."""
    report = GraphReport()
    for graph, actions, torch_calls, changed in networks[:1]:
        report.passes = changed
        counts: Counter[str] = Counter()
        for action in actions:
            if isinstance(action, Segment):
                report.programs += 1
                counts.update(type(step).__name__ for node in action.nodes if (step := step_of(graph, node, Step)))
            else:
                _declined(graph, action, torch_calls, report)
        report.steps = dict(counts)
    return report


def _declined(graph: fx.GraphModule, node: fx.Node, reasons: dict[str, str], report: GraphReport) -> None:
    module: Any = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, Flatten | Slice):
        return  # views
    report.declined[node.name] = _UNFUSED_DEPTHWISE if isinstance(module, Depthwise) else reasons.get(node.name, "")
