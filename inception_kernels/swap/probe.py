"""Prove on numbers that a group's fused form does what its modules do, before it is planned.

Both run in float64 on a small random input, in evaluation and in training, with parameters and buffers replaced
for the call (`torch.func.functional_call`), so that the model is not touched. What symbolic matching got wrong,
an unexpected epsilon or a subclass that does more than it shows, is found here.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import backends
from ..backends import BackendUnavailableError
from .atoms import Activation, Group
from .layers import FunctionStep
from .runtime import FusedLayer, Parts

_TOLERANCE = 1e-9  # float64 against float64, relative to the largest value: rounding, not structure


def parts_of(group: Group) -> Parts:
    members = tuple(module for unit in group.units for _, module in unit.members)
    return Parts(
        None if group.depthwise is None else group.depthwise.module,
        group.conv.module,
        None if group.norm is None else group.norm.module,
        members,
    )


def layer_of(group: Group, path: str) -> FusedLayer:
    return FusedLayer(path, group.operator, group.input_activation, group.mid_activation, group.activation)


class _Calls(nn.Module):
    """The group's calls, one after the other."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.children_called = nn.ModuleList([unit.module for unit in group.units if unit.module is not None])
        self.steps: list[Any] = []
        for unit in group.units:
            atom = unit.atoms[0] if unit.atoms else None
            if unit.module is not None:
                self.steps.append(unit.module)
            elif isinstance(atom, Activation):
                function = FunctionStep(atom.kind, atom.inplace)
                self.steps.append(lambda x, function=function: function(self, x))

    def forward(self, x: Tensor, fused: FusedLayer | None, parts: Parts) -> Tensor:
        if fused is not None:
            return fused(x, parts)
        for step in self.steps:
            x = step(x)
        return x


# What may differ between groups that behave alike.
_SIZES = ("training", "in_channels", "out_channels", "num_features", "groups", "output_padding")


def probe_key(group: Group) -> tuple[Any, ...]:
    """Groups with equal keys behave alike but for their channel counts: the smallest one is probed."""

    def describe(module: nn.Module) -> tuple[Any, ...]:
        own = sorted(
            (name, repr(value))
            for name, value in vars(module).items()
            if name not in _SIZES and (value is None or isinstance(value, int | float | str | bool | tuple))
        )
        present = [name for name, tensor in (module._parameters | module._buffers).items() if tensor is not None]
        return (type(module), *own, *present)

    modules = [describe(module) for unit in group.units for _, module in unit.members]
    atoms = [
        (atom.kind, atom.inplace)
        for unit in group.units
        if unit.module is None
        for atom in unit.atoms or []
        if isinstance(atom, Activation)
    ]
    return (group.operator, tuple(modules), tuple(atoms), group.input_activation, group.activation)


def size(group: Group) -> int:
    return sum(convolution.module.weight.numel() for convolution in group.convolutions)


def probe(group: Group) -> str | None:
    """None where fused and original agree, else what differs."""
    calls, parts, layer = _Calls(group), parts_of(group), layer_of(group, group.path)
    window = group.convolutions[0].module
    spans = [d * (k - 1) + 1 for d, k in zip(window.dilation, window.kernel_size, strict=True)]
    image = [span + 2 * stride + 1 for span, stride in zip(spans, window.stride, strict=True)]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, window.in_channels, *image, generator=generator, dtype=torch.float64)
    x = x.to(window.weight.device)
    before = {module: module.training for module in calls.modules()}
    try:
        for training in (False, True):
            for module in calls.modules():
                module.training = training
            reason = _compare(calls, parts, layer, x)
            if reason is not None:
                return f"probe in {'training' if training else 'evaluation'}: {reason}"
    finally:
        for module, training in before.items():
            module.training = training
    return None


def _compare(calls: _Calls, parts: Parts, layer: FusedLayer, x: Tensor) -> str | None:
    results, states = [], []
    for fused in (None, layer):
        state = {
            name: (tensor.detach().double() if tensor.is_floating_point() else tensor.detach().clone())
            for name, tensor in (*calls.named_parameters(), *calls.named_buffers())
        }
        # .double() of a float64 tensor is that tensor, and training writes into buffers.
        state = {name: tensor.clone() if "running" in name else tensor for name, tensor in state.items()}
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), _backend_for(layer, x):
            try:
                results.append(functional_call(calls, state, (x.clone(), fused, parts)))
            except (RuntimeError, ValueError, TypeError) as error:
                if isinstance(error, BackendUnavailableError):
                    raise
                return f"{'fused' if fused else 'original'} raises {type(error).__name__}: {error}"
        states.append(state)
    layer.drop_cache()
    difference = _difference(results[0], results[1])
    if difference is not None:
        return f"fused and original results differ by {difference}"
    for name, value in states[0].items():
        difference = _difference(value, states[1][name])
        if difference is not None:
            return f"{name.removeprefix('children_called.')} differs by {difference} after a fused call"
    return None


def _backend_for(layer: FusedLayer, x: Tensor) -> contextlib.AbstractContextManager[None]:
    """A forced backend without float64 does not matter here: the structure is the same on the reference."""
    lacks_float64 = (
        backends.decide(layer.operator, x)[0] is None and backends.decide(layer.operator, x.float())[0] is not None
    )
    return backends.use_backend("reference") if lacks_float64 else contextlib.nullcontext()


def _difference(expected: Tensor, actual: Tensor) -> str | None:
    if expected.shape != actual.shape:
        return f"shape: {tuple(expected.shape)} and {tuple(actual.shape)}"
    if expected.numel() == 0:
        return None
    error = (expected.double() - actual.double()).abs().max().item()
    scale = max(expected.double().abs().max().item(), 1.0)
    return None if error <= _TOLERANCE * scale else f"{error:.2e} (largest value {scale:.2e})"
