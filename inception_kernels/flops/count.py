"""Run a model once and write down the work of every operator."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inception_kernels.flops.report import FlopReport, LayerCost

# Allocate or relabel memory without moving data.
_FREE = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh", "as_strided_"}


def count(
    model: nn.Module, example_input: torch.Tensor, dtype: torch.dtype | None = None, name: str | None = None
) -> FlopReport:
    """Multiply-adds, parameters and memory traffic of one forward pass in evaluation mode, per operator call.

    Works for plain models and for models with fused operators swapped in: a fused operator is one row, and the
    intermediate tensors that it does not write are not in its bytes. Bytes are the least that the sequence of
    operators can move: each reads its inputs and weights once and writes its outputs once, whatever a cache saves;
    views are free and integer outputs (a max pool's indices) are left out.

    Args:
        model: runs as it is, in evaluation mode and without gradients; its mode is restored. Put model and input on
            the meta device to count without computing.
        example_input: what the model takes, such as `[N, C, H, W]`.
        dtype: count bytes as if every floating-point tensor had this type; None takes each tensor's own.
        name: for the report; default the class name.

    Raises:
        TypeError: `model` is no `torch.nn.Module`, `example_input` no tensor, or `dtype` not of floating point.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(example_input, torch.Tensor):
        raise TypeError(f"example_input: expected a torch.Tensor, got {type(example_input).__name__}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(f"dtype: expected a floating-point type, got {dtype}")
    recorder = _Recorder(model, dtype)
    with _evaluation(model), torch.no_grad():
        if example_input.device.type != "meta":
            model(example_input)  # swapped layers fold and pack their weights in the first call
        with recorder:
            model(example_input)
    return FlopReport(
        model=name or type(model).__name__,
        input_shape=tuple(example_input.shape),
        dtype=dtype or example_input.dtype,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        rows=tuple(recorder.rows),
    )


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Recorder(TorchDispatchMode):
    """Sees every operator below autograd, with the tensors that it reads and writes."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # imports Triton: not before somebody counts

        self._formulas = flop_registry
        self.rows: list[LayerCost] = []
        self._dtype = dtype
        self._module_names = {id(module): path for path, module in model.named_modules()}
        self._parameters = {id(p): p for p in model.parameters()}  # a view of a parameter maps to the parameter
        self._owners = {id(p): path.rpartition(".")[0] for path, p in model.named_parameters()}
        self._views: list[torch.Tensor] = []  # kept alive so that their ids stay theirs
        self._counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        base_name = func._schema.name.rpartition("::")[2]
        if func.is_view:
            parameter = self._parameters.get(id(args[0]))
            if parameter is not None:
                self._views += outputs
                self._parameters.update((id(view), parameter) for view in outputs)
        elif outputs and base_name not in _FREE and not base_name.endswith("_pack"):  # packing: not in every pass
            self._record(func, args, kwargs or {}, result, outputs)
        return result

    def _record(self, func: Any, args: Any, kwargs: Any, result: Any, outputs: list[torch.Tensor]) -> None:
        inputs = {id(leaf): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        prepacked = func._schema.name.endswith("_prepacked")
        read = [t for t in inputs.values() if not (prepacked and t.dtype == torch.uint8)]
        written = [t for t in outputs if t.is_floating_point()]
        traffic = sum(self._bytes(t) for t in [*read, *written])
        packed = _packed_weight_elements(func, args, kwargs) if prepacked else 0
        traffic += packed * (self._dtype or outputs[0].dtype).itemsize
        formula = self._formulas.get(func.overloadpacket)
        flops = formula(*args, **kwargs, out_val=result) if formula is not None else 0
        path, params = self._attribute(inputs)
        if prepacked:
            params += self._prepared_parameters(packed, inputs)
        first = next((tuple(t.shape) for key, t in inputs.items() if key not in self._parameters), ())
        operator = func._schema.name.replace("::", ".")
        self.rows.append(LayerCost(path, operator, first, tuple(outputs[0].shape), flops // 2, params, traffic))

    def _bytes(self, tensor: torch.Tensor) -> int:
        elements = prod(
            size if stride else 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )  # an expanded dimension is stored once
        dtype = self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype
        return elements * dtype.itemsize

    def _attribute(self, inputs: dict[int, torch.Tensor]) -> tuple[str, int]:
        """The layer's path and its parameters that no earlier row has counted."""
        used = [self._parameters[key] for key in inputs if key in self._parameters]
        path = self._owners[id(used[0])] if used else self._running_module()
        fresh = {id(parameter): parameter.numel() for parameter in used if id(parameter) not in self._counted}
        self._counted.update(fresh)
        return path, sum(fresh.values())

    def _prepared_parameters(self, weights: int, inputs: dict[int, torch.Tensor]) -> int:
        """Of a prepared layer, which reads copies: the weights and the vectors of the folded batch norm."""
        packed, *vectors = [tensor for tensor in inputs.values() if tensor.dtype == torch.uint8 or tensor.dim() == 1]
        if id(packed) in self._counted:
            return 0
        self._counted.add(id(packed))
        return weights + sum(vector.numel() for vector in vectors if vector.dtype != torch.uint8)

    def _running_module(self) -> str:
        """Path of the innermost module whose method is on the call stack.

        Not through module hooks: they would make a swapped model run its original modules.
        """
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            path = self._module_names.get(id(frame.f_locals.get("self")))
            if path is not None:
                return path
            frame = frame.f_back
        return ""


def _packed_weight_elements(func: Any, args: Any, kwargs: Any) -> int:
    """Elements of the weights that packed buffers stand for, without the padding of the packing."""
    values = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    if "window" in values:
        k, c, r, s = values["window"]
        return c * r * s + k * c
    return sum(prod(shape) for name, shape in values.items() if name.startswith("weight_shape"))
