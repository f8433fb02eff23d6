"""Record the machine: device, driver, clocks, compilers, libraries, kernel sources."""

from __future__ import annotations

import dataclasses
import platform
import shutil
import subprocess
import sys
from typing import Any

import torch

from build_backend.toolchain import find_nvcc
from inception_kernels.bench import environment
from tools.gpu.options import Options, parse

_TOOLS = ("compute-sanitizer", "ncu", "cuobjdump", "nvdisasm", "ninja", "g++")
_QUERY = (
    "name,driver_version,vbios_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,mig.mode.current"
)


def main(options: Options) -> int:
    record: dict[str, Any] = {
        "python": f"{platform.python_version()} at {sys.executable}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
        "nvcc": _first_line([find_nvcc() or "nvcc", "--version"], -1),
        "nvidia-smi": _first_line(["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv,noheader"]),
        "tools": {name: shutil.which(name) or "not installed" for name in _TOOLS},
    }
    if not options.rehearse:
        if not torch.cuda.is_available():
            options.write("this torch sees no GPU", **record)
            return 1
        record["device"] = _device()
    record["run"] = dataclasses.asdict(environment.capture(options.device))
    options.write(f"{record['run']['device']}, torch {torch.__version__}, {record['nvcc']}", **record)
    return 0


def _device() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    names = (
        "name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size",
        "shared_memory_per_block_optin", "shared_memory_per_multiprocessor", "regs_per_multiprocessor",
    )  # fmt: skip
    return {name: getattr(properties, name) for name in names if hasattr(properties, name)}


def _first_line(command: list[str], index: int = 0) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not readable ({type(error).__name__})"
    lines = done.stdout.strip().splitlines()
    return lines[index] if lines else f"not readable (exit status {done.returncode})"


if __name__ == "__main__":
    sys.exit(main(parse()))
