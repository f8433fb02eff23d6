"""`python -m inception_kernels info`: what is installed, what can run here, and what would help."""

from __future__ import annotations

import argparse
import os
import platform

import torch

from inception_kernels import backends, cuda_kernels, source_hash
from inception_kernels._version import __version__

VARIABLES = ("IK_BUILD", "IK_CACHE_DIR", "IK_CPU_ISA")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `info`."""
    parser.add_argument("--kernels", action="store_true", help="only the table of the CUDA kernels, in Markdown")


def run(args: argparse.Namespace) -> int:
    """Print everything; 0."""
    if args.kernels:
        print(cuda_kernels.markdown())
        return 0
    for name, value in facts():
        print(f"{name + ':':<18}{value}")
    print("CUDA kernels, all executed on the host against float64 in the tests:")
    for line in kernels():
        print(f"  {line}")
    found = suggestions()
    if found:
        print("suggestions:")
        for line in found:
            print(f"  - {line}")
    return 0


def facts() -> list[tuple[str, str]]:
    """Name and value of everything that is worth telling."""
    from inception_kernels import tune_cache
    from inception_kernels.bench import environment

    built = source_hash.build_info()
    lines = [
        ("inception_kernels", __version__),
        ("python", f"{platform.python_version()}, {platform.platform()}"),
        *((name, value) for name, value in environment.versions().items()),
    ]
    for name, reason in backends.available().items():
        lines.append((f"backend {name}", "available" if reason is None else f"unavailable: {reason}"))
    lines += [
        ("build", str(built.get("summary", "no record of a build"))),
        ("processor", f"{environment.cpu_model()}, {os.cpu_count()} cores"),
        ("instruction sets", environment.isa()),
        ("threads", str(torch.get_num_threads())),
    ]
    if torch.cuda.is_available():
        lines += [(f"gpu {i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    lines.append(("cache", str(tune_cache.folder())))
    lines += [(name, os.environ[name]) for name in VARIABLES if name in os.environ]
    return lines


def kernels() -> list[str]:
    """One line for each CUDA kernel: whether it is compiled here, and the GPUs it has run on."""
    codes = source_hash.build_info().get("cuda_codes")
    compiled = (
        f"compiled for {', '.join(map(str, codes))}" if isinstance(codes, list) and codes else "not compiled here"
    )
    lines = []
    for each in cuda_kernels.table():
        where = "compiled for sm_90a" if codes and "sm_90 " in each.instructions else compiled
        lines.append(f"{each.kernel:<48}{where}; on hardware: {', '.join(each.runs) or 'not yet'}")
    return lines


def suggestions() -> list[str]:
    """What would make this installation faster or more complete."""
    found = []
    states = backends.available()
    if states["cpu"] is not None:
        found.append("build the host kernels: pip install . with a C++20 compiler on PATH")
    elif backends.cpu_isa() != backends.best_cpu_isa():
        found.append(
            f"IK_CPU_ISA holds the kernels at {backends.cpu_isa()}: this machine has {backends.best_cpu_isa()}"
        )
    if torch.cuda.is_available() and states["cuda"] is not None:
        found.append("build the CUDA kernels: IK_BUILD=cuda pip install . with nvcc on PATH")
    if source_hash.built_from_other_sources():
        found.append("the sources have changed since the kernels were built: install again")
    if torch.get_num_threads() > (os.cpu_count() or 1):
        found.append(f"{torch.get_num_threads()} threads on {os.cpu_count()} cores: use torch.set_num_threads")
    return found
