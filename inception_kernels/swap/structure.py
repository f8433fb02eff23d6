"""From modules to units and atoms: what each module's forward calls, in order (see `atoms`)."""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import fx, nn

from . import checks
from .atoms import Activation, Atom, Conv, Norm, Unit, activation_of
from .layers import Swapped
from .trace import Traced, chain, functional_activation, readers, trace

# Their result is new memory, never a view of the argument.
_FRESH = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Linear, nn.ConvTranspose2d)


@dataclass
class Calls:
    """How a container calls its children: in a chain, in a graph, or unknown (`reason`)."""

    units: list[Unit] | None = None
    graphs: list[fx.Graph] = field(default_factory=list)
    reason: str = ""


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


class Structure:
    """Reads the modules of one model once and remembers what it found."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.paths: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self.paths.setdefault(id(module), []).append(path)
        self._calls: dict[int, Calls] = {}
        self._atoms: dict[int, list[Atom] | None] = {}
        self._convolutional: set[int] = set()
        for module in model.modules():
            if any(isinstance(child, nn.Conv2d | nn.BatchNorm2d) for child in module.modules()):
                self._convolutional.add(id(module))

    def has_convolution(self, module: nn.Module) -> bool:
        return id(module) in self._convolutional

    def calls(self, module: nn.Module, path: str) -> Calls:
        """How `module.forward` calls its children; units carry full paths."""
        if id(module) not in self._calls:
            self._calls[id(module)] = self._read_calls(module, path)
        return self._calls[id(module)]

    def _read_calls(self, module: nn.Module, path: str) -> Calls:
        if type(module).forward is nn.Sequential.forward:
            return Calls([self._unit(child, _join(path, name)) for name, child in module._modules.items() if child])
        if type(module).forward in (nn.ModuleList.forward, nn.ModuleDict.forward, nn.Module.forward):
            return Calls(reason=f"{type(module).__name__} has no forward: its parent calls the children")
        if "forward" in vars(module):
            return Calls(reason=f"the forward of {type(module).__name__} was replaced on the instance")
        traces: list[Traced] = [trace(module, training) for training in (False, True)]
        graphs = []
        for traced in traces:
            if traced.graph is None:
                return Calls(
                    reason=f"{type(module).__name__}.forward cannot be followed symbolically ({traced.reason})"
                )
            graphs.append(traced.graph)
        chains = [chain(graph) for graph in graphs]
        if all(found is not None for found in chains):
            units = [[self._unit_of_call(module, path, node) for node in found or []] for found in chains]
            if self._same(units[0], units[1]):
                return Calls(units[0], graphs)
        return Calls(None, graphs)

    @staticmethod
    def _same(a: list[Unit], b: list[Unit]) -> bool:
        def key(unit: Unit) -> tuple[object, ...]:
            return (id(unit.module), None if unit.module is not None else unit.atoms)

        return len(a) == len(b) and all(key(x) == key(y) for x, y in zip(a, b, strict=True))

    def _unit_of_call(self, module: nn.Module, path: str, node: fx.Node) -> Unit:
        if node.op == "call_module":
            return self.unit_of_node(module, path, node)
        activation = functional_activation(node)
        assert activation is not None  # chain() admits no other call
        return Unit(None, None, [Activation(*activation)], fresh=not activation[1])

    def unit_of_node(self, module: nn.Module, path: str, node: fx.Node) -> Unit:
        return self._unit(module.get_submodule(str(node.target)), _join(path, str(node.target)))

    def _unit(self, module: nn.Module, path: str) -> Unit:
        atoms = self.atoms(module, path)
        activation = activation_of(module)
        fresh = type(module) in _FRESH or (activation is not None and not activation[1]) or bool(atoms)
        if activation is not None and activation[1]:
            fresh = False
        return Unit(path, module, atoms, fresh)

    def atoms(self, module: nn.Module, path: str) -> list[Atom] | None:
        """The steps of a call of `module`, or None where it does anything else."""
        if id(module) not in self._atoms:
            self._atoms[id(module)] = None  # a module that contains itself has no finite list
            self._atoms[id(module)] = self._read_atoms(module, path)
        return self._atoms[id(module)]

    def _read_atoms(self, module: nn.Module, path: str) -> list[Atom] | None:
        if isinstance(module, Swapped):
            return None
        if isinstance(module, nn.Conv2d):
            return [Conv(module, path)]
        if isinstance(module, nn.BatchNorm2d):
            return self._norm_atoms(module, path)
        activation = activation_of(module)
        if activation is not None:
            return [Activation(*activation, path=path)]
        if type(module) is nn.Identity:
            return []
        if not self.has_convolution(module) and type(module).forward is not nn.Sequential.forward:
            return None
        units = self.calls(module, path).units
        if units is None or checks.instance_reason(module) is not None:
            return None
        atoms: list[Atom] = []
        for unit in units:
            if unit.atoms is None:
                return None
            atoms += unit.atoms
        return atoms

    def _norm_atoms(self, norm: nn.BatchNorm2d, path: str) -> list[Atom] | None:
        """Batch norm, then whatever supported activations a subclass adds in its own forward."""
        atoms: list[Atom] = [Norm(norm, path)]
        if type(norm).forward is nn.BatchNorm2d.forward:
            return atoms
        # Only in evaluation: in training the trace would count a batch. The numerical probe covers training.
        graph = trace(norm, training=False).graph
        if graph is None:
            return None
        node = next((n for n in graph.nodes if n.op == "call_function" and n.target is F.batch_norm), None)
        if node is None or not isinstance(node.args[0], fx.Node) or node.args[0].op != "placeholder":
            return None
        while True:
            following = readers(node)
            if len(following) != 1:
                return None
            node = following[0]
            if node.op == "output":
                return atoms
            function = functional_activation(node)
            if function is not None:
                atoms.append(Activation(*function))
                continue
            if node.op != "call_module":
                return None
            added = self._unit(norm.get_submodule(str(node.target)), _join(path, str(node.target))).atoms
            if added is None:
                return None
            atoms += added
