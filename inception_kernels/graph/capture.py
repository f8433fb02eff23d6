"""From a module to the graph of what it computes for inputs of one shape: `torch.export`, without its parameters as
inputs, and with steps of ours (`steps`) in place of the operators that have one."""

from __future__ import annotations

import operator
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree
from torch.utils._sympy.numbers import int_oo

from .translate import Declined, aten, translate

# torch.export changes the state of the process.
_exporting = threading.Lock()
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


class CaptureError(RuntimeError):
    """The model cannot be captured; the message says why."""


@dataclass
class Captured:
    """`graph` maps the tensors among the flattened inputs to the tensors among the flattened outputs."""

    graph: fx.GraphModule
    in_spec: Any
    out_spec: Any
    outputs: list[Any]  # per flattened output: its number among the graph's, or a constant in a tuple
    torch_calls: dict[str, str]  # node of the graph -> why it stays a PyTorch operator


def capture(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Captured:
    try:
        program = _export(model, args, kwargs)
    except Exception as error:  # torch.export raises many kinds; each says what in the model it cannot follow
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__}: {type(error).__name__}: {first}"
        ) from error
    return _import(program)


def is_free_of_batch_sizes(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the model, called with batches of two and more, computes the same for every size of a batch.

    For torch.export, with an unknown in its place: it must be asked for nothing but to keep images apart in a view.
    """
    shapes = torch.export.ShapesCollection()
    for tensor in pytree.tree_leaves((args, kwargs)):
        if isinstance(tensor, Tensor) and tensor.dim() > 0:
            shapes[tensor] = {0: torch.export.Dim.AUTO}
    try:
        program = _export(model, args, kwargs, shapes)
    except Exception:  # it does not say so
        return False
    inputs = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.name in inputs and isinstance(value, Tensor) and value.dim() > 0:
            if not isinstance(value.shape[0], torch.SymInt):
                return False  # the model asked for this one size
        for source in node.all_input_nodes:
            if isinstance(source.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat):
                view: Any = node.args[1] if node.target in _VIEWS else ()
                if [size for size in view if size is source] != [source] or view[0] is not source:
                    return False
    return all(sizes.lower <= 2 and sizes.upper == int_oo for sizes in program.range_constraints.values())


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any = None) -> Any:
    with _exporting, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes).run_decompositions({})


def _import(program: torch.export.ExportedProgram) -> Captured:
    signature = program.graph_signature
    constants: dict[str, Any] = {}
    for spec in signature.input_specs:
        if isinstance(spec.arg, ConstantArgument):  # a number among the arguments
            constants[spec.arg.name] = spec.arg.value
        elif spec.kind == InputKind.USER_INPUT:
            continue
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert spec.target is not None
            held = program.state_dict if spec.target in program.state_dict else program.constants
            constants[spec.arg.name] = held[spec.target].detach()
        else:
            raise CaptureError(f"the model has an input of kind {spec.kind.name}, expected tensors")
    for spec in signature.output_specs:
        if spec.kind != OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"the model changes {spec.target} when it is called ({spec.kind.name}): not an inference"
            )

    importer = _Importer(program.graph_module, constants)
    for node in program.graph_module.graph.nodes:
        importer.visit(node)
    graph, outputs = importer.finish()
    return Captured(graph, program.call_spec.in_spec, program.call_spec.out_spec, outputs, importer.torch_calls)


class _Importer:
    def __init__(self, source: fx.GraphModule, constants: dict[str, Any]) -> None:
        self.source = source
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.constants = constants
        self.values: dict[fx.Node, Any] = {}  # a node of the new graph, or a constant tensor
        self.torch_calls: dict[str, str] = {}
        self.outputs: list[Any] = []

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if node.name in self.constants:
                self.values[node] = self.constants[node.name]
            else:
                self.values[node] = self.graph.placeholder(node.name)
                self.values[node].meta.update(node.meta)
        elif node.op == "get_attr":
            value = getattr(self.source, str(node.target))
            if not isinstance(value, Tensor):
                raise CaptureError(f"the model holds {type(value).__name__} {node.target}: expected tensors")
            self.values[node] = value
        elif node.op == "output":
            self._output(node.args[0])
        elif node.target is operator.getitem and isinstance(self.values.get(node.args[0]), _Single):  # type: ignore[arg-type]
            self.values[node] = self.values[node.args[0]].value  # type: ignore[index]
        else:
            self._call(node)

    def _call(self, node: fx.Node) -> None:
        if node.target is aten.as_strided.default:
            raise CaptureError("the model calls as_strided, which depends on how memory is laid out")
        args = fx.map_arg(node.args, lambda n: self.values[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: self.values[n])
        shapes = {
            self.values[n]: tuple(n.meta["val"].shape)
            for n in node.all_input_nodes
            if isinstance(self.values[n], fx.Node) and isinstance(n.meta.get("val"), Tensor)
        }
        dtypes = {n.meta["val"].dtype for n in node.all_input_nodes if self.values[n] in shapes}
        try:
            modules, inputs = translate(node.target, args, dict(kwargs), shapes, dtypes, node.meta.get("val"))
            for module in modules:
                inputs = [self._step(module, inputs, node)]
            several = isinstance(node.meta.get("val"), tuple | list)
            self.values[node] = _Single(inputs[0]) if several else inputs[0]
        except Declined as declined:
            args = pytree.tree_map_only(Tensor, self._attribute, args)
            kwargs = pytree.tree_map_only(Tensor, self._attribute, kwargs)
            self.values[node] = self.graph.create_node("call_function", node.target, args, kwargs, node.name)
            self.values[node].meta.update(node.meta)
            self.torch_calls[self.values[node].name] = str(declined)

    def _step(self, module: nn.Module, inputs: list[Any], node: fx.Node) -> fx.Node:
        name = f"{node.name}_{type(module).__name__.lower()}"
        self.root.add_module(name, module)
        value = self.graph.create_node("call_module", name, tuple(inputs), {}, node.name)
        value.meta["step"] = module
        return value

    def _attribute(self, tensor: Tensor) -> fx.Node:
        name = f"constant_{len(self.root._buffers)}"
        self.root.register_buffer(name, tensor, persistent=False)
        return self.graph.get_attr(name)

    def _output(self, returned: Any) -> None:
        values: list[fx.Node] = []
        for value in returned:
            new = self.values[value] if isinstance(value, fx.Node) else (value,)
            if isinstance(new, Tensor):
                new = self._attribute(new)
            if isinstance(new, fx.Node) and value.target is aten.clone.default:
                new = self._own(new, alone=sum(self.values.get(other) is new for other in returned) == 1)
            if isinstance(new, fx.Node):
                self.outputs.append(len(values))
                values.append(new)
            else:
                self.outputs.append(new)
        self.graph.output(tuple(values))

    def _own(self, value: fx.Node, alone: bool) -> fx.Node:
        """A copy that is returned does not share memory with an input or with what else is returned."""
        if value.op != "placeholder" and alone:
            return value
        copied = self.graph.call_function(aten.clone.default, (value,))
        copied.meta.update(value.meta)
        self.torch_calls[copied.name] = "a copy of an input or of another output"
        return copied

    def finish(self) -> tuple[fx.GraphModule, list[Any]]:
        graph = fx.GraphModule(self.root, self.graph)
        graph.graph.eliminate_dead_code()
        graph.delete_all_unused_submodules()
        return graph, self.outputs


class _Single:
    """The one tensor of interest of an operator that returns several."""

    def __init__(self, value: fx.Node) -> None:
        self.value = value
