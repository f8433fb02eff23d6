"""Whole networks for inference: `optimize(model, example_input=x)`, and `torch.compile(backend="inception_kernels")`.

`capture` turns a model into a graph of `steps` (`translate` knows PyTorch's operators), `passes` rewrite it,
`partition` separates what PyTorch has to run, `layout` decides where every value lives and what runs side by side,
`encode` writes that down for the operator `run_program`, and `module` keeps it all per input shape.
"""

from .capture import CaptureError
from .compile_backend import CompiledGraph, compiled_graphs, register_if_loaded
from .module import Optimized, optimize
from .report import GraphReport, StepTime

register_if_loaded()

__all__ = ["CaptureError", "CompiledGraph", "GraphReport", "Optimized", "StepTime", "compiled_graphs", "optimize"]
