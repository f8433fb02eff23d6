"""Run every primitive on this GPU, compare with the plain model, and record what the hardware did.

`<device>.npz` belongs into tests/conformance/recorded/: the tests then hold the host's execution to it for ever after.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import torch

from build_backend.toolchain import find_nvcc
from tools.gpu.device_library import arch_of_device, compile_library
from tools.gpu.options import ROOT, Options, parse

sys.path.append(str(ROOT / "tests"))
from conformance import replay
from conformance.case import SM80, SM90, Case, Words, difference


def main(options: Options) -> int:
    cases = replay.all_cases()
    if options.rehearse:
        return _rehearse(options, cases)
    major, minor = torch.cuda.get_device_capability()
    sm = 10 * major + minor
    library = ctypes.CDLL(str(_compile(options.output / "conformance.so", arch_of_device())))
    library.ik_conformance_run.restype = ctypes.c_char_p
    recorded, wrong = [], {}
    for case in cases:
        if case.sm == SM90 and sm != SM90:
            continue
        got = _run(library, case, sm)
        recorded.append(replay.recorded(case, got))
        found = difference(case, got)
        if found is not None:
            wrong[case.label] = found
            print(f"{case.label}: {found}", flush=True)
    name = torch.cuda.get_device_name().lower().replace(" ", "-")
    replay.save(options.kept(f"tests/conformance/recorded/{name}.npz"), recorded)
    options.write(f"{len(recorded)} cases, {len(wrong)} unlike the model", wrong=wrong)
    return 1 if wrong else 0


def _compile(library: Path, arch: str) -> Path:
    hopper = arch == "90a"
    sources = [replay.HERE / "entry.cpp", *(replay.SOURCES if hopper else replay.SOURCES[:1])]
    flags = ["-I", str(replay.HERE), *([] if hopper else ["-DIK_WITHOUT_SM90"])]
    return compile_library(sources, library, arch, flags)


def _run(library: ctypes.CDLL, case: Case, sm: int) -> Words:
    given, result = replay.tensors(case, "cuda")
    numbers = (ctypes.c_int * len(case.numbers))(*case.numbers)
    pointers = (ctypes.c_void_p(given.data_ptr()), ctypes.c_void_p(result.data_ptr()))
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    torch.cuda.synchronize()
    failure = library.ik_conformance_run(case.name.encode(), numbers, len(numbers), *pointers, sm, processors)
    if failure is not None:
        raise RuntimeError(f"{case.label}: {failure.decode()}")
    torch.cuda.synchronize()
    return result.cpu().numpy().view(np.uint32)


def _rehearse(options: Options, cases: list[Case]) -> int:
    """On the host instead of the GPU; the device's library is compiled where there is a compiler."""
    host = replay.load_host()
    wrong = [case.label for case in cases if difference(case, replay.run_on_host(host, case)) is not None]
    compiled = "not compiled for a device: no nvcc"
    if find_nvcc() is not None:
        for arch in (str(SM80), "90a"):
            _compile(options.output / f"conformance_{arch}.so", arch)
        compiled = "compiled for sm_80 and sm_90a"
    options.write(f"{len(cases)} cases on the host, {len(wrong)} unlike the model; {compiled}", wrong=wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(parse()))
