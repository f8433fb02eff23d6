"""ONNX Runtime's CPU provider: inference, exported with torch.onnx, inputs and outputs bound and not copied."""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings

import torch
from torch import Tensor, nn

from inception_kernels.bench import memory
from inception_kernels.bench.contenders.base import Baseline, Prepared, Unfit
from inception_kernels.bench.problem import Case, Problem
from inception_kernels.bench.row import NOT_APPLICABLE, NOT_INSTALLED


class OnnxRuntime(Baseline):
    name = "onnxruntime"

    def unfit(self, case: Case) -> Unfit | None:
        missing = [name for name in ("onnxruntime", "onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            return Unfit(
                NOT_INSTALLED,
                f"{' and '.join(missing)} not installed: pip install 'inception-kernels[peers]'",
            )
        if case.training:
            return Unfit(NOT_APPLICABLE, "ONNX Runtime does not train here")
        if len(case.input_shape) != 4:
            return Unfit(NOT_APPLICABLE, "ONNX Runtime is raced on images only")
        reason = _no_convolution(case.dtype)
        return None if reason is None else Unfit(NOT_APPLICABLE, reason)

    def prepare(self, problem: Problem) -> Prepared:
        session = _session(_export(problem.copy_of_module(), problem.x))
        binding = session.io_binding()
        x = problem.x.numpy()  # alive as long as the binding reads it
        binding.bind_cpu_input(session.get_inputs()[0].name, x)
        binding.bind_output(session.get_outputs()[0].name)

        def call(x: object = x) -> None:
            session.run_with_iobinding(binding)

        peak = memory.resident_growth(call)

        def outputs() -> list[Tensor]:
            call()
            return [torch.from_numpy(binding.copy_outputs_to_cpu()[0])]

        return Prepared(
            call,
            outputs,
            layout="contiguous",
            ran=lambda: "MLAS",
            peak_bytes=peak,
            memory_method=memory.RESIDENT,
            torch_profiler=False,
        )


def _export(module: nn.Module, x: Tensor) -> bytes:
    # The exporter warns about itself, and logs each operator of a torchvision that is not installed.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad():
            program = torch.onnx.export(module, (x,), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def _session(model: bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its threads spin while it runs, as it wants, but not into the next implementation's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@functools.cache
def _no_convolution(dtype: str) -> str | None:
    """Ask the provider with one small convolution whether it has them in this dtype."""
    if dtype == "float32":
        return None
    module = nn.Conv2d(4, 4, 3).to(getattr(torch, dtype)).eval()
    try:
        _session(_export(module, torch.zeros(1, 4, 5, 5, dtype=getattr(torch, dtype))))
    except Exception as error:  # the runtime's own exception types have no common base
        return f"the CPU provider has no {dtype} convolution ({type(error).__name__})"
    return None
