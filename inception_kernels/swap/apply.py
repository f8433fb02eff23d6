"""`swap`, `unswap`, `swapped`: put a plan into a model, take it out, and keep either all of it or nothing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .atoms import Activation, Group, Unit
from .layers import (
    SITE,
    CallsSite,
    CallStep,
    ChainForward,
    ChainSite,
    FollowForward,
    FunctionStep,
    FusedStep,
    LeadForward,
    PoolSite,
    Swapped,
    behaviour_of,
    fused_class,
)
from .match import Site
from .plan import Analysis, Plan, analyze
from .pools import PoolForward
from .probe import layer_of, parts_of
from .records import LayerRecord
from .report import SwapReport
from .tune import tune_layers
from .verify import unswapped_errors, verify_model

RECORDS = "_ik_records"


class SwapError(RuntimeError):
    """A swap that was asked for more than it can do. The model is as it was."""


def swap(
    model: nn.Module,
    *,
    plan: Plan | None = None,
    example_input: Any = None,
    strict: bool = False,
    min_swapped: int = 0,
    verify: Any = None,
    tune: Any = None,
) -> SwapReport:
    """Put the fused operators into `model`, in place; it trains and infers as before.

    Parameters, buffers, state_dict keys, optimizer state, `isinstance`, hooks on outer modules, deep copies and
    `torch.save` keep working. Fused layers return channels-last tensors whatever came in, so that only the first
    one converts. In evaluation without gradients each layer keeps a folded copy of its weights, which is dropped when
    a parameter or statistic changes, on `train()`, `load_state_dict` and `to()`. A hook or parametrization added
    later turns the layers around it back into the original modules; `explain` says so. The operators have no second
    derivative, and TorchScript cannot compile them: `unswap` first. `nn.MaxPool2d` and `nn.AvgPool2d` of a model with
    fused layers run operators of their own in training steps on the CPU, where those do exactly the same.

    Args:
        model: the module to change.
        plan: of this model; by default a new one. Layers that it does not list as swapped are left alone.
        example_input: fills in the shapes of the report.
        strict: raise where any convolution is declined.
        min_swapped: raise where fewer layers are swapped; with the default, none at all warns.
        verify: an input; compare the swapped and the unswapped model with the model in float64 on it.
        tune: an input; measure for each distinct layer whether fused or original is faster here, cached on disk.

    Returns:
        A `SwapReport`. Swapping a swapped model changes nothing and reports the same layers.

    Raises:
        SwapError: `strict` or `min_swapped` is not met.
        SwapVerificationError: `verify` found an error more than twice the unswapped model's.
        ValueError: `plan` does not fit the model.
        TypeError: `model` is not a module.
        The model is unchanged whenever this raises.
    """
    analysis = analyze(model, example_input, probed=plan is None)
    if plan is not None:
        _restrict(analysis, plan)
    declined = analysis.plan.declined
    if strict and declined:
        lines = "\n".join(f"  {record.path or '(model)'}: {record.reason}" for record in declined)
        raise SwapError(f"strict=True: {len(declined)} convolution(s) cannot be swapped:\n{lines}")
    total = len(analysis.plan.swapped)
    if total < min_swapped:
        raise SwapError(
            f"min_swapped={min_swapped}: only {total} layer(s) of {analysis.plan.model} can be swapped; "
            "print(plan(model)) says why each other one cannot"
        )
    if total == 0:
        warnings.warn(
            f"nothing was swapped: none of the {len(declined)} convolution(s) of {analysis.plan.model} can be fused; "
            "print(plan(model)) says why",
            UserWarning,
            stacklevel=2,
        )
    exact = unswapped_errors(model, verify) if verify is not None else None
    done: list[nn.Module] = []
    try:
        for site in analysis.sites:
            _apply_site(model, site, analysis, done)
        for path in analysis.plan.pools:
            pool = model.get_submodule(path)
            if not isinstance(pool, Swapped):
                _reassign(pool, PoolForward, PoolSite(path), [], done)
        verification = None if exact is None else verify_model(model, verify, exact)
        tuning = [] if tune is None else tune_layers(model, tune)
    except BaseException:
        for module in reversed(done):
            _restore(module)
        raise
    return SwapReport(
        analysis.plan.model, analysis.plan.swapped, declined, verification, tuning, pools=analysis.plan.pools
    )


def _restrict(analysis: Analysis, plan: Plan) -> None:
    """Keep of a new analysis what the given plan lists as swapped."""
    wanted = {(tuple(record.convolutions), record.operator) for record in plan.swapped}
    present = {(tuple(record.convolutions), record.operator) for record in analysis.plan.swapped}
    lost = wanted - present | {((path,), "pool") for path in set(plan.pools) - set(analysis.plan.pools)}
    if lost:
        reasons = {record.path: record.reason for record in analysis.plan.declined}
        lines = "\n".join(
            f"  {' + '.join(paths)}: {'; '.join(reasons.get(path, 'not found in this model') for path in paths)}"
            for paths, _ in sorted(lost)
        )
        raise ValueError(f"the plan does not fit this model (any more); make a new one with plan(model):\n{lines}")
    for site in analysis.sites:
        for group in list(site.groups):
            record = analysis.records[id(group)]
            if (tuple(record.convolutions), record.operator) not in wanted:
                site.groups.remove(group)
                analysis.plan.swapped.remove(record)
    analysis.plan.pools = list(plan.pools) if analysis.plan.swapped else []
    shapes = {tuple(record.convolutions): record for record in plan.swapped}
    for record in analysis.plan.swapped:
        planned = shapes.get(tuple(record.convolutions))
        if planned is not None and record.input_shape is None:
            record.input_shape, record.output_shape = planned.input_shape, planned.output_shape
            record.gain = planned.gain
    declined = {record.path for record in analysis.plan.declined}
    analysis.plan.declined += [record for record in plan.declined if record.path not in declined]
    analysis.sites = [site for site in analysis.sites if site.groups]


def _names(path: str, root: str) -> tuple[str, ...]:
    relative = path[len(root) + 1 :] if root else path
    return tuple(relative.split(".")) if relative else ()


def _step(unit: Unit, root: str) -> CallStep | FunctionStep:
    if unit.path is not None:
        return CallStep(_names(unit.path, root))
    (activation,) = unit.atoms or []
    assert isinstance(activation, Activation)
    return FunctionStep(activation.kind, activation.inplace)


def _fused_step(group: Group, record: LayerRecord, root: str) -> FusedStep:
    return FusedStep(
        layer_of(group, record.path),
        None if group.depthwise is None else _names(group.depthwise.path, root),
        _names(group.conv.path, root),
        None if group.norm is None else _names(group.norm.path, root),
        tuple((_names(path, root), type(module)) for unit in group.units for path, module in unit.members),
        tuple(_step(unit, root) for unit in group.units),
    )


def _apply_site(model: nn.Module, site: Site, analysis: Analysis, done: list[nn.Module]) -> None:
    records = [analysis.records[id(group)] for group in site.groups]
    if site.kind == "chain":
        first = {id(group.units[0]): group for group in site.groups}
        inside = {id(unit) for group in site.groups for unit in group.units}
        steps: list[CallStep | FunctionStep | FusedStep] = []
        for unit in site.units:
            if id(unit) in first:
                group = first[id(unit)]
                steps.append(_fused_step(group, analysis.records[id(group)], site.path))
            elif id(unit) not in inside:
                steps.append(_step(unit, site.path))
        _reassign(
            site.module, ChainForward, ChainSite(site.path, tuple(steps), tuple(site.module._modules)), records, done
        )
        return
    (group,) = site.groups
    modules = [unit.module for unit in group.units if unit.module is not None]
    calls = CallsSite(
        records[0].path,
        layer_of(group, records[0].path),
        site.module,
        parts_of(group),
        modules[1:],
        [link for unit in group.units for path, _ in unit.members for link in [_link(model, path)]],
    )
    _reassign(modules[0], LeadForward, calls, records, done)
    for follower in modules[1:]:
        _reassign(follower, FollowForward, calls, [], done)


def _link(model: nn.Module, path: str) -> tuple[nn.Module, str, nn.Module]:
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name, model.get_submodule(path)


def _reassign(
    module: nn.Module,
    behaviour: type[Swapped],
    site: ChainSite | CallsSite | PoolSite,
    records: list[LayerRecord],
    done: list[nn.Module],
) -> None:
    cls = fused_class(type(module), behaviour)
    module.__dict__[SITE] = site
    module.__dict__[RECORDS] = records
    done.append(module)
    module.__class__ = cls


def _restore(module: nn.Module) -> None:
    base = module._ik_base if isinstance(module, Swapped) else None
    if base is not None:
        module.__class__ = base
    module.__dict__.pop(SITE, None)
    module.__dict__.pop(RECORDS, None)


def unswap(model: nn.Module) -> int:
    """Take every fused layer out of `model`: classes, results and bits are what they were before `swap`.

    Returns the number of fused layers taken out; 0 where there was none.

    Raises:
        SwapError: something subclassed a swapped module since (a parametrization): remove it first. Nothing changes.
    """
    modules = [module for module in model.modules() if isinstance(module, Swapped)]
    for module in modules:
        if behaviour_of(module) is None:
            raise SwapError(
                f"a swapped {module._ik_base.__name__} became a {type(module).__name__} since: remove that "
                "(torch.nn.utils.parametrize.remove_parametrizations), then unswap"
            )
    layers = sum(len(module.swapped_layers) for module in modules if not isinstance(module, FollowForward))
    for module in modules:
        _restore(module)
    return layers


@contextmanager
def swapped(model: nn.Module, **options: Any) -> Iterator[SwapReport]:
    """`swap(model, **options)` inside the `with` block, `unswap` after it; a model swapped before stays swapped."""
    before = {module for module in model.modules() if isinstance(module, Swapped)}
    report = swap(model, **options)
    try:
        yield report
    finally:
        for module in model.modules():
            if isinstance(module, Swapped) and module not in before:
                _restore(module)
