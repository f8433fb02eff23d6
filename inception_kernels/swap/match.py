"""Find the runs of calls that one operator can replace, and why each other convolution cannot be."""

import re
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from . import checks
from .atoms import (
    Activation,
    Atom,
    Conv,
    Group,
    Norm,
    Unit,
    is_depthwise,
    is_pointwise,
)
from .layers import Swapped
from .structure import Structure
from .trace import readers, sole_tensor_argument

_SEPARABLE = re.compile(r"(?P<input>A?)D(?P<mid>A?)P(?P<norm>N?)(?P<output>A?)")
_DENSE = re.compile(r"[CP](?P<norm>N?)(?P<output>A?)")
_LONGEST = 8  # calls in one group: act, dw, act, pw, bn, act and a few identities


@dataclass
class Site:
    """A place in the model where groups are executed.

    `chain`: the forward of `module` is a chain of calls and is replaced; its children stay as they are.
    `calls`: the forward of `module` is arbitrary; the first call of the group computes it, the others pass on.
    """

    kind: str
    path: str
    module: nn.Module
    units: list[Unit]  # chain: every call; calls: those of the one group
    groups: list[Group]


@dataclass
class Found:
    sites: list[Site] = field(default_factory=list)
    declined: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)  # convolution path -> reason
    present: list[Swapped] = field(default_factory=list)  # swapped before


class Matcher:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.structure = Structure(model)
        self.found = Found()
        self._reasons: dict[int, str] = {}  # convolution id -> the most specific reason so far
        self._claimed: set[int] = set()

    def run(self) -> Found:
        for module in self.model.modules():
            if isinstance(module, Swapped):
                self.found.present.append(module)
                self._claimed.update(id(member) for member in module.swapped_members())
        self._visit(self.model, "")
        return self.found

    # -- one unit or run of units

    def _letter(self, atom: Atom) -> str:
        if isinstance(atom, Activation):
            return "A"
        paths = self.structure.paths.get(id(atom.module), [atom.path])
        if isinstance(atom, Norm):
            return "x" if checks.norm_reason(atom.module, paths) else "N"
        reason = checks.convolution_reason(atom.module, paths)
        if reason is not None:
            self._reasons[id(atom.module)] = reason
            return "x"
        if is_depthwise(atom.module):
            return "D"
        return "P" if is_pointwise(atom.module) else "C"

    def _match(self, units: list[Unit]) -> Group | None:
        """A group made of exactly these units."""
        if any(unit.atoms is None for unit in units):
            return None
        atoms = [atom for unit in units for atom in unit.atoms or []]
        letters = "".join(self._letter(atom) for atom in atoms)
        self._blame_followers(atoms, letters)
        activations = [atom.kind for atom in atoms if isinstance(atom, Activation)]
        convolutions = [atom for atom in atoms if isinstance(atom, Conv)]
        norm = next((atom for atom in atoms if isinstance(atom, Norm)), None)
        separable, dense = _SEPARABLE.fullmatch(letters), _DENSE.fullmatch(letters)
        if separable is not None:
            parts = [name for name in ("input", "mid", "output") if separable[name]]
            named = dict(zip(parts, activations, strict=True))
            return Group(
                "separable_conv2d",
                units,
                convolutions[0],
                convolutions[1],
                norm,
                input_activation=named.get("input", "none"),
                mid_activation=named.get("mid", "none"),
                activation=named.get("output", "none"),
            )
        if dense is not None and (dense["norm"] or dense["output"]):
            kind = activations[0] if activations else "none"
            return Group("conv2d_bn_act", units, None, convolutions[0], norm, activation=kind)
        return None

    def _blame_followers(self, atoms: list[Atom], letters: str) -> None:
        """Where what directly follows a convolution cannot be fused, that is why the convolution is not."""
        for before, atom, letter in zip(atoms, atoms[1:], letters[1:], strict=False):
            if letter != "x" or not isinstance(before, Conv) or isinstance(atom, Activation):
                continue
            paths = self.structure.paths.get(id(atom.module), [atom.path])
            check = checks.norm_reason if isinstance(atom, Norm) else checks.convolution_reason
            self._reasons.setdefault(id(before.module), f"{atom.path}: {check(atom.module, paths)}")  # type: ignore[arg-type]

    def _blocked(self, units: list[Unit], allow_calls: int) -> str | None:
        """What is attached to any module that the units run."""
        for unit in units:
            for path, module in unit.members:
                reason = checks.instance_reason(module)
                if reason is not None:
                    return f"{path}: {reason}"
                # A conv or batch norm under two names, or called twice, is somebody else's step as well.
                if self._calls_of.get(id(module), 0) > allow_calls and isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                    return f"{path} is called {self._calls_of[id(module)]} times in one forward"
        return None

    _calls_of: dict[int, int]

    def _count_calls(self, modules: list[nn.Module]) -> None:
        self._calls_of = {}
        for module in modules:
            for member in module.modules():
                self._calls_of[id(member)] = self._calls_of.get(id(member), 0) + 1

    def _longest(self, units: list[Unit], start: int) -> Group | None:
        """The longest group that starts at `start` of a run of calls, each the only reader of the one before."""
        first = units[start].atoms
        if not first:
            return None  # an identity may hand on a tensor that others read
        if isinstance(first[0], Activation) and first[0].inplace:
            before = units[start - 1] if start else None
            hooked = before is not None and any(checks.instance_reason(m) for _, m in before.members)
            if before is None or not before.fresh or hooked:
                return None  # the tensor that it changes in place may have other readers
        note = ""
        for stop in range(min(len(units), start + _LONGEST), start, -1):
            group = self._match(units[start:stop])
            if group is None:
                continue
            blocked = self._blocked(group.units, allow_calls=1)
            if blocked is None:
                if note:
                    group.notes.append(f"shorter than it could be: {note}")
                return group
            note = blocked
            for convolution in group.convolutions:
                self._reasons.setdefault(id(convolution.module), blocked)
        return None

    # -- the walk over the model

    def _visit(self, module: nn.Module, path: str) -> None:
        if id(module) in self._claimed:
            return
        if _is_foreign(module):
            self._decline_foreign(module, path)
            return
        if isinstance(module, nn.Conv2d):
            self._decline(module, path)
            return
        if not isinstance(module, Swapped) and any(True for _ in module.children()):
            self._search(module, path)
        for name, child in module.named_children():
            self._visit(child, f"{path}.{name}" if path else name)

    def _search(self, module: nn.Module, path: str) -> None:
        if not self.structure.has_convolution(module):
            return
        calls = self.structure.calls(module, path)
        if calls.units is not None and not any(id(unit.module) in self._claimed for unit in calls.units):
            self._search_chain(module, path, calls.units)
        elif calls.graphs:
            self._search_graph(module, path, calls.graphs)
        self._explain_children(module, path, calls.reason)

    def _claim(self, units: list[Unit]) -> None:
        for unit in units:
            self._claimed.update(id(member) for _, member in unit.members)

    def _search_chain(self, module: nn.Module, path: str, units: list[Unit]) -> None:
        self._count_calls([unit.module for unit in units if unit.module is not None])
        groups, start = [], 0
        while start < len(units):
            group = self._longest(units, start)
            if group is None:
                start += 1
            else:
                groups.append(group)
                start += len(group.units)
        if not groups:
            return
        # A child whose own forward is the whole group is the better place: it also serves direct calls.
        own = [group for group in groups if not self._is_one_container(group)]
        if own:
            self.found.sites.append(Site("chain", path, module, units, own))
            for group in own:
                self._claim(group.units)

    def _is_one_container(self, group: Group) -> bool:
        real = [unit for unit in group.units if unit.atoms != []]
        return len(real) == 1 and real[0].module is not None and any(True for _ in real[0].module.children())

    def _search_graph(self, module: nn.Module, path: str, graphs: list[fx.Graph]) -> None:
        per_mode = [self._groups_of_graph(module, path, graph) for graph in graphs]
        called = [{str(node.target) for node in graph.nodes if node.op == "call_module"} for graph in graphs]
        for key, group in {**per_mode[0], **per_mode[-1]}.items():
            relative = [unit.path[len(path) + 1 if path else 0 :] for unit in group.units if unit.path]
            consistent = all(
                key in groups or not names & set(relative) for groups, names in zip(per_mode, called, strict=True)
            )
            if not consistent:
                for convolution in group.convolutions:
                    self._reasons.setdefault(
                        id(convolution.module),
                        f"{type(module).__name__}.forward differs between training and evaluation",
                    )
                continue
            self.found.sites.append(Site("calls", path, module, group.units, [group]))
            self._claim(group.units)

    def _groups_of_graph(self, module: nn.Module, path: str, graph: fx.Graph) -> dict[tuple[int, ...], Group]:
        nodes = [node for node in graph.nodes if node.op == "call_module"]
        self._count_calls([module.get_submodule(str(node.target)) for node in nodes])
        groups: dict[tuple[int, ...], Group] = {}
        taken: set[fx.Node] = set()
        for node in nodes:
            if node in taken:
                continue
            run = [node]
            while True:
                following = readers(run[-1])
                if len(following) != 1 or following[0].op != "call_module" or len(run) == _LONGEST:
                    break
                if sole_tensor_argument(following[0]) is not run[-1] or following[0].kwargs:
                    break
                run.append(following[0])
            if run[0].kwargs or sole_tensor_argument(run[0]) is None or len(run[0].args) != 1:
                continue
            units = [self.structure.unit_of_node(module, path, call) for call in run]
            if any(id(unit.module) in self._claimed for unit in units[:1]):
                continue
            starts_with_convolution = isinstance(units[0].atoms[0] if units[0].atoms else None, Conv)
            group = self._longest(units, 0) if starts_with_convolution else None
            if group is None or self._is_one_container(group):
                continue
            shared = [u for u in group.units[1:] if self._calls_of.get(id(u.module), 0) > 1]
            while group is not None and shared:  # a follower that others call too cannot be made to pass on
                group = self._longest(units[: units.index(shared[0])], 0)
                shared = (
                    [] if group is None else [u for u in group.units[1:] if self._calls_of.get(id(u.module), 0) > 1]
                )
            if group is None or self._is_one_container(group):
                continue
            groups[tuple(id(unit.module) for unit in group.units)] = group
            taken.update(run[: len(group.units)])
        return groups

    # -- reasons

    def _explain_children(self, module: nn.Module, path: str, reason: str) -> None:
        """Reasons for convolutions that `module` calls itself and that no group took."""
        for child in module.children():
            if isinstance(child, nn.Conv2d) and id(child) not in self._claimed and reason:
                self._reasons.setdefault(id(child), reason)

    def _decline(self, convolution: nn.Conv2d, path: str) -> None:
        own = checks.convolution_reason(convolution, self.structure.paths.get(id(convolution), [path]))
        reason = own or self._reasons.get(id(convolution))
        if reason is None and is_depthwise(convolution):
            reason = (
                "depthwise convolution whose result does not go straight (or through one activation) into a 1x1 "
                "convolution: another kernel"
            )
        if reason is None:
            reason = "nothing to fuse: neither a batch norm nor a supported activation is the only reader of its result"
        self.found.declined[path] = (convolution, reason)

    def _decline_foreign(self, module: nn.Module, path: str) -> None:
        if not isinstance(module, torch.jit.ScriptModule):
            self.found.declined[path] = (module, _foreign_reason(module))
            return
        for name, child in module.named_modules(prefix=path):
            kind = getattr(child, "original_name", type(child).__name__)
            if "Conv" in kind and not any(True for _ in child.children()):
                self.found.declined[name] = (child, _foreign_reason(child))


def _is_foreign(module: nn.Module) -> bool:
    return _foreign_reason(module) != ""


def _foreign_reason(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript module: its graph is compiled and has no modules to swap; build the model in Python"
    if type(module).__module__.startswith(("torch.ao.nn.", "torch.nn.quantized", "torch.nn.intrinsic")):
        if isinstance(module, nn.Conv2d) or "Conv" in type(module).__name__:
            return f"{type(module).__module__}.{type(module).__name__} belongs to a quantization flow"
    return ""
