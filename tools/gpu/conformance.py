"""Run every primitive on this GPU, compare with the plain model, and record what the hardware did.

`<device>.npz` belongs into tests/conformance/recorded/: the tests then hold the host's execution to it for ever after.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from build_backend.toolchain import find_nvcc
from tools.gpu.options import ROOT, Options, parse

sys.path.append(str(ROOT / "tests"))
from conformance import replay
from conformance.case import SM80, SM90, Case, Words, difference

_SECONDS_TO_COMPILE = 300


def main(options: Options) -> int:
    cases = replay.all_cases()
    if options.rehearse:
        return _rehearse(options, cases)
    major, minor = torch.cuda.get_device_capability()
    sm = 10 * major + minor
    library = ctypes.CDLL(str(compile_device(options.output, "90a" if sm == SM90 else str(sm))))
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
    replay.save(options.output / f"{name}.npz", recorded)
    options.write(
        f"{len(recorded)} cases, {len(wrong)} unlike the model", wrong=wrong, keep_in="tests/conformance/recorded"
    )
    return 1 if wrong else 0


def compile_device(folder: Path, arch: str) -> Path:
    """A shared library of the cases for one architecture. Raises RuntimeError with nvcc's messages."""
    compiler = find_nvcc()
    if compiler is None:
        raise RuntimeError("there is no nvcc: install the CUDA toolkit")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "conformance.so"
    hopper = arch == "90a"
    sources = [replay.HERE / "entry.cpp", *(replay.SOURCES if hopper else replay.SOURCES[:1])]
    flags = ["-std=c++20", "-O3", "-shared", "-Xcompiler=-fPIC", f"-gencode=arch=compute_{arch},code=sm_{arch}"]
    flags += [] if hopper else ["-DIK_WITHOUT_SM90"]
    includes = ["-I", str(ROOT / "csrc"), "-I", str(replay.HERE)]
    command = [compiler, *flags, *includes, *map(str, sources), "-o", str(library)]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_SECONDS_TO_COMPILE
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return library


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
            compile_device(options.output / arch, arch)
        compiled = "compiled for sm_80 and sm_90a"
    options.write(f"{len(cases)} cases on the host, {len(wrong)} unlike the model; {compiled}", wrong=wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(parse()))
