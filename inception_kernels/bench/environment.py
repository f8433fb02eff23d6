"""Where and with what a run is made."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from inception_kernels import backends, source_hash
from inception_kernels._version import __version__
from inception_kernels.bench.row import Environment

_PEERS = ("triton", "openvino", "onnxruntime")
_CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "asimd", "sve")


def capture(device: str) -> Environment:
    """Everything of `row.Environment` but the roofline."""
    kind = torch.device(device).type
    commit, dirty = git_state()
    return Environment(
        commit=commit,
        dirty=dirty,
        package=__version__,
        device=torch.cuda.get_device_name(device) if kind == "cuda" else cpu_model(),
        device_type=kind,
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        isa=compute_capability(device) if kind == "cuda" else isa(),
        clock=_gpu_clock() if kind == "cuda" else _cpu_clock(),
        driver=_nvidia_smi("driver_version") if kind == "cuda" else "none",
        os=platform.platform(),
        python=platform.python_version(),
        versions=versions(),
        flags=flags(),
        source_hash=_kernel_hash("cuda" if kind == "cuda" else "cpu"),
        started=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _kernel_hash(family: str) -> str:
    try:
        return source_hash.current_hashes()[family]
    except FileNotFoundError:
        return "not recorded"  # an installation whose build kept no record: its rows are stale from the start


def git_state() -> tuple[str, bool]:
    """The commit of the checkout that holds the package and whether it is changed; else the version, unchanged."""
    folder = Path(__file__).parent
    answers = []
    for command in (
        ("rev-parse", "--short=12", "HEAD"),
        ("status", "--porcelain", "--untracked-files=no", "--", "."),
    ):
        root = folder.parent.parent
        try:
            done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=30)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return f"version {__version__}", False
        if done.returncode != 0 or not (root / "csrc").exists():
            return f"version {__version__}", False
        answers.append(done.stdout.strip())
    return answers[0], bool(answers[1])


def versions() -> dict[str, str]:
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    found = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "cudnn": str(cudnn) if cudnn else "none",
        "onednn": "yes" if torch.backends.mkldnn.is_available() else "none",
    }
    for name in _PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def flags() -> dict[str, str]:
    """Switches that change what runs, the same for every implementation of a run."""
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn.allow_tf32": str(torch.backends.cudnn.allow_tf32),
        "cudnn.benchmark": str(torch.backends.cudnn.benchmark),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
    }


def isa() -> str:
    """The instruction sets in force: our kernels', torch's, and what the machine offers."""
    ours = backends.cpu_isa() if backends.can_run_cpu() is None else "none"
    offered = sorted(set(_cpuinfo("flags", "Features").split()) & set(_CPU_FLAGS))
    return f"kernels {ours}, torch {torch.backends.cpu.get_cpu_capability()}, machine {' '.join(offered) or 'unknown'}"


def compute_capability(device: str) -> str:
    """`sm_90` for compute capability 9.0: tells on which GPUs a kernel has run (kernel_record.py)."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def cpu_model() -> str:
    """The processor's name; where that names no processor, as on many virtual machines, its family and model too."""
    name = _cpuinfo("model name")
    if not name:
        return platform.processor() or platform.machine()
    if any(each.isdigit() for each in name):
        return name
    numbers = [
        f"{key} {number}"
        for key, number in (("family", _cpuinfo("cpu family")), ("model", _cpuinfo("model")))
        if number
    ]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def slug(environment: Environment) -> str:
    """A folder name for the device: its words and, of a CPU, the number of cores."""
    name = "".join(each if each.isalnum() else " " for each in environment.device.replace("(R)", " ")).split()
    cores = [f"{environment.cores}c"] if environment.device_type == "cpu" else []
    amx = ["amx"] if environment.device_type == "cpu" and "amx_bf16" in environment.isa else []
    return "-".join(each.lower() for each in [*name, *amx, *cores])


def _cpuinfo(*keys: str) -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in keys:
                return value.strip()
    return ""


def _cpu_clock() -> str:
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    kept = governor.read_text().strip() if governor.exists() else "not readable"
    mhz = _cpuinfo("cpu MHz")
    return f"governor {kept}, {float(mhz):.0f} MHz" if mhz else f"governor {kept}"


def _gpu_clock() -> str:
    return _nvidia_smi("clocks.sm,clocks.mem,clocks.max.sm")


def _nvidia_smi(query: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"not readable ({type(error).__name__})"
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "not readable"
