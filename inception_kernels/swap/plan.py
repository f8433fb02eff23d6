"""`plan`: what `swap` would do to a model, without doing it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .layers import Swapped
from .match import Found, Matcher, Site
from .pools import pools_of
from .probe import probe, probe_key, size
from .records import LayerRecord, declined_record, render, swapped_record
from .shapes import convolution_shapes


@dataclass
class Plan:
    """Every convolution of a model: in `swapped` (to be swapped, or swapped already) or in `declined`.

    Take records out of `swapped` to leave those layers alone, and pass the plan to `swap`. `pools`: paths of the pools
    that are to run an operator in training steps on the CPU.
    """

    model: str
    swapped: list[LayerRecord] = field(default_factory=list)
    declined: list[LayerRecord] = field(default_factory=list)
    pools: list[str] = field(default_factory=list)

    @property
    def convolutions(self) -> int:
        """Convolutions of the model."""
        return sum(len(record.convolutions) for record in (*self.swapped, *self.declined))

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "convolutions": self.convolutions,
            "swapped": [record.to_dict() for record in self.swapped],
            "declined": [record.to_dict() for record in self.declined],
            "pools": list(self.pools),
        }

    def to_json(self) -> str:
        """The plan as JSON text; the keys of a record are the attributes of `LayerRecord`."""
        return json.dumps(self.to_dict(), indent=2)

    def summary(self) -> str:
        covered = sum(len(record.convolutions) for record in self.swapped)
        return (
            f"{covered} of {self.convolutions} convolutions in {len(self.swapped)} fused layers, "
            f"{len(self.declined)} declined"
        )

    def __str__(self) -> str:
        return render(f"Plan for {self.model}: {self.summary()}", self.swapped, self.declined, _FOOTER)


_FOOTER = (
    "Predicted gain: bytes moved by the separate operators / bytes moved by the fused one, in inference. Not measured: "
    "tune= measures."
)


@dataclass
class Analysis:
    """A plan with the places in the model that it is about."""

    plan: Plan
    sites: list[Site]
    records: dict[int, LayerRecord]  # id of the group


def plan(model: nn.Module, example_input: Any = None) -> Plan:
    """Say for every convolution of `model` whether `swap` would fuse it, into what, or why not. Changes nothing.

    Args:
        model: any `torch.nn.Module`.
        example_input: a tensor, or a tuple, list or dictionary of arguments. One evaluation pass with it fills in
            the shapes, from which the predicted gain follows.

    Returns:
        A `Plan`; print it, or `.to_json()`.

    Raises:
        TypeError: `model` is not a module.
    """
    return analyze(model, example_input).plan


def analyze(model: nn.Module, example_input: Any = None, probed: bool = True) -> Analysis:
    """`plan` with its sites. `probed=False` leaves out the numerical proof, for a plan that has had it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = Matcher(model).run()
    if probed:
        _reject_what_differs(found)
    inputs: dict[int, torch.Size] = {}
    outputs: dict[int, torch.Size] = {}
    if example_input is not None:
        inputs, outputs = convolution_shapes(model, example_input)
    result = Plan(type(model).__name__)
    records = {}
    for module in found.present:
        result.swapped += already_swapped(module)
    for site in found.sites:
        for group in site.groups:
            whole = site.kind == "chain" and len(site.groups) == 1 and len(group.units) == len(site.units)
            record = swapped_record(group, site.path if whole else group.path, inputs, outputs)
            records[id(group)] = record
            result.swapped.append(record)
    order = {path: index for index, (path, _) in enumerate(model.named_modules())}
    result.pools = pools_of(model) if result.swapped else []
    result.swapped.sort(key=lambda record: order.get(record.convolutions[0], len(order)))
    for path, (unfused, reason) in found.declined.items():
        record = declined_record(path, unfused, reason)
        record.input_shape = list(inputs[id(unfused)]) if id(unfused) in inputs else None
        result.declined.append(record)
    result.declined.sort(key=lambda record: order.get(record.path, len(order)))
    return Analysis(result, found.sites, records)


def already_swapped(module: Swapped) -> list[LayerRecord]:
    return list(module.__dict__.get("_ik_records", []))


def _reject_what_differs(found: Found) -> None:
    """Decline the groups whose fused form is not, on numbers, what their modules do."""
    verdicts: dict[tuple[Any, ...], str | None] = {}
    groups = [group for site in found.sites for group in site.groups]
    for group in sorted(groups, key=size):
        key = probe_key(group)
        if key not in verdicts:
            verdicts[key] = probe(group)
        reason = verdicts[key]
        if reason is not None:
            for convolution in group.convolutions:
                found.declined[convolution.path] = (convolution.module, reason)
    for site in found.sites:
        site.groups = [group for group in site.groups if verdicts[probe_key(group)] is None]
    found.sites = [site for site in found.sites if site.groups]
