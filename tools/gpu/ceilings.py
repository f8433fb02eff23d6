"""What this GPU can do at most: copies by working set, reads from L2, dense products, and launches in a row."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from build_backend.toolchain import find_nvcc
from inception_kernels import roofline
from tools.gpu.device_library import arch_of_device, compile_library
from tools.gpu.options import Options, parse

_SOURCE = Path(__file__).with_suffix(".cu")
_DTYPES = ("bfloat16", "float16", "float32")
_L2_BYTES = 16 * 2**20
_L2_ROUNDS = 8
_LAUNCHES = 200
_SAMPLES = 15


def main(options: Options) -> int:
    if options.rehearse:
        return _rehearse(options)
    begun = time.monotonic()
    data: dict[str, Any] = {}
    library = ctypes.CDLL(str(compile_library([_SOURCE], options.output / "ceilings.so", arch_of_device())))
    data["launch_microseconds"] = _launches(library)
    data["l2_bytes_per_second"] = _l2_rate(library)
    options.write(_summary(data), **data)
    data["roofline"] = roofline.measure("cuda", _DTYPES, seconds=0.1 if options.quick else 0.3).to_dict()
    data["seconds"] = time.monotonic() - begun
    options.write(_summary(data), **data)
    return 0


def _launches(library: ctypes.CDLL) -> dict[str, float]:
    """Microseconds from one kernel to the next: on a stream, in a CUDA graph, and overlapped (sm_90) in either."""
    counter = torch.zeros(1, dtype=torch.int32, device="cuda")
    blocks = torch.cuda.get_device_properties(0).multi_processor_count
    found = {}
    can_overlap = torch.cuda.get_device_capability() >= (9, 0)
    for name, overlapped in (("", 0), (" overlapped", 1)) if can_overlap else (("", 0),):

        def chain(overlapped: int = overlapped) -> None:
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            library.ik_chain(ctypes.c_void_p(counter.data_ptr()), _LAUNCHES, blocks, overlapped, stream)

        found[f"stream{name}"] = 1e6 * _seconds(chain) / _LAUNCHES
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            chain()
        found[f"graph{name}"] = 1e6 * _seconds(graph.replay) / _LAUNCHES
        counter.zero_()
        graph.replay()
        if int(counter) != _LAUNCHES:
            raise RuntimeError(f"expected {_LAUNCHES} kernels one after the other, counted {int(counter)}")
    return found


def _l2_rate(library: ctypes.CDLL) -> float:
    blocks = 2 * torch.cuda.get_device_properties(0).multi_processor_count
    source = torch.zeros(_L2_BYTES, dtype=torch.uint8, device="cuda")
    result = torch.empty(blocks * 256, dtype=torch.int32, device="cuda")

    def read() -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        pointers = (ctypes.c_void_p(source.data_ptr()), ctypes.c_int64(_L2_BYTES), _L2_ROUNDS)
        library.ik_read_all(*pointers, ctypes.c_void_p(result.data_ptr()), blocks, stream)

    return blocks * _L2_ROUNDS * _L2_BYTES / _seconds(read)


def _seconds(call: Callable[[], object]) -> float:
    """The median of single calls between two events."""
    call()
    samples = []
    for _ in range(_SAMPLES):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(samples)


def _summary(data: dict[str, Any]) -> str:
    launches = ", ".join(f"{name} {value:.2f} us" for name, value in data["launch_microseconds"].items())
    text = f"L2 {data['l2_bytes_per_second'] / 1e12:.2f} TB/s; a launch after another: {launches}"
    if "roofline" not in data:
        return text
    return f"{text}; {roofline.Roofline.from_dict(data['roofline']).summary()}"


def _rehearse(options: Options) -> int:
    """The kernels compile, the probes of PyTorch run on the CPU; their rates are not kept."""
    compiled = "not compiled: no nvcc"
    if find_nvcc() is not None:
        for arch in ("80", "90a"):
            compile_library([_SOURCE], options.output / f"ceilings_{arch}.so", arch)
        compiled = "compiled"
    rates = roofline.measure("cpu", ("float32",), seconds=0.01)
    options.write(f"kernels {compiled}; {len(rates.product)} product and {len(rates.copy)} copies probed")
    return 0


if __name__ == "__main__":
    sys.exit(main(parse()))
