"""OpenVINO's CPU plugin: inference at a pinned precision and thread count, tensors shared and not copied."""

from __future__ import annotations

import importlib.util
import warnings

import torch
from torch import Tensor

from inception_kernels.bench import memory
from inception_kernels.bench.contenders.base import Baseline, Prepared, Unfit
from inception_kernels.bench.problem import Case, Problem
from inception_kernels.bench.row import NOT_APPLICABLE, NOT_INSTALLED

_VIEWS = {"bfloat16": torch.int16}  # dtypes that numpy has no name for pass as bits


class OpenVino(Baseline):
    name = "openvino"

    def unfit(self, case: Case) -> Unfit | None:
        if importlib.util.find_spec("openvino") is None:
            return Unfit(NOT_INSTALLED, "openvino is not installed: pip install 'inception-kernels[peers]'")
        if case.training:
            return Unfit(NOT_APPLICABLE, "OpenVINO does not train")
        if len(case.input_shape) != 4:
            return Unfit(NOT_APPLICABLE, "OpenVINO is raced on images only")
        if case.dtype == "float64":
            return Unfit(NOT_APPLICABLE, "OpenVINO's CPU plugin computes float64 in float32")
        return None

    def prepare(self, problem: Problem) -> Prepared:
        import openvino as ov

        element = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16, "float16": ov.Type.f16}[problem.case.dtype]
        # Values that the dtype holds exactly, so converting through float32 loses nothing.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it traces with torch.jit
            model = ov.convert_model(problem.copy_of_module().float(), example_input=problem.x.float())
        model.reshape(list(problem.x.shape))
        compiled = ov.Core().compile_model(_with_tensor_types(ov, model, element), "CPU", _options(ov, element))
        request = compiled.create_infer_request()
        given = problem.x.permute(0, 2, 3, 1).contiguous()
        request.set_input_tensor(_share(ov, given, element))

        def call(given: Tensor = given) -> None:  # the request reads this tensor's memory and does not own it
            request.infer()

        peak = memory.resident_growth(call)

        def outputs() -> list[Tensor]:
            call()
            return [_to_torch(request.get_output_tensor(), problem.case)]

        return Prepared(
            call,
            outputs,
            layout="channels-last",
            ran=lambda: _primitives(compiled),
            peak_bytes=peak,
            memory_method=memory.RESIDENT,
            torch_profiler=False,
        )


def _with_tensor_types(ov, model, element):
    """Tensors come and go in the dtype and, where they are images, channels-last: its fastest way on a CPU."""
    process = ov.preprocess.PrePostProcessor(model)
    for node, rank in ((process.input(), 4), (process.output(), len(model.output().partial_shape))):
        node.tensor().set_element_type(element)
        if rank == 4:
            node.tensor().set_layout(ov.Layout("NHWC"))
            node.model().set_layout(ov.Layout("NCHW"))
    return process.build()


def _options(ov, element):
    import openvino.properties as properties
    import openvino.properties.hint as hint

    return {
        hint.inference_precision: element,
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        hint.enable_cpu_pinning: False,  # torch's threads, which run in turn with these, are not pinned either
        properties.inference_num_threads: torch.get_num_threads(),
    }


def _share(ov, tensor: Tensor, element):
    view = _VIEWS.get(str(tensor.dtype).removeprefix("torch."))
    if view is None:
        return ov.Tensor(tensor.numpy(), shared_memory=True)
    return ov.Tensor(tensor.view(view).numpy(), list(tensor.shape), element)


def _to_torch(tensor, case: Case) -> Tensor:
    view = _VIEWS.get(case.dtype)
    if view is None:
        result = torch.from_numpy(tensor.data.copy())
    else:
        import numpy

        result = torch.from_numpy(tensor.data.view(numpy.int16).copy()).view(case.torch_dtype)
    return result.permute(0, 3, 1, 2) if result.ndim == 4 else result


def _primitives(compiled) -> str:
    """The convolution primitives that the plugin chose."""
    found = set()
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        if "primitiveType" in info and "onvolution" in str(
            info["layerType"].astype(str) if "layerType" in info else ""
        ):
            found.add(info["primitiveType"].astype(str))
    return ", ".join(sorted(found))
