"""The setuptools command that builds `_C` and, where it can, `_C_cuda`, and sums up in one line."""

from __future__ import annotations

import json
import os
import platform
import runpy
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from build_backend import ninja_build, sources, toolchain, torch_lookup

ROOT = Path(__file__).resolve().parent.parent
CPU, CUDA = "inception_kernels._C", "inception_kernels._C_cuda"

# The oldest LibTorch whose stable ABI the sources use (2.11) and the oldest Python (3.10).
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030a0000", "-DNDEBUG"]
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden"]


def extensions() -> list[Extension]:
    """Extensions by name only: their sources need flags per folder, which `BuildExt` knows."""
    wanted = [CPU]
    if toolchain.build_mode() == "cuda" and not sources.cuda_sources(ROOT):
        raise SystemExit("IK_BUILD=cuda has nothing to build: csrc/cuda has no .cu file, use IK_BUILD=cpu.")
    if why_not_cuda() is None:
        wanted.append(CUDA)
    return [Extension(name, [], py_limited_api=True) for name in wanted]


def object_folder() -> Path:
    """One folder for editable and for wheel builds, so that the second of them compiles nothing."""
    return ROOT / "build" / f"native-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"


class BuildExt(build_ext):
    def run(self) -> None:
        self.tools = toolchain.require_toolchain()
        self.torch = torch_lookup.require_torch()
        super().run()
        self._record()
        print(self.summary())

    def build_extension(self, ext: Extension) -> None:
        cuda = ext.name == CUDA
        files = sources.cuda_sources(ROOT) if cuda else sources.cpu_sources(ROOT, toolchain.is_x86())
        if not files:
            raise SystemExit(f"{ext.name} has no sources under {ROOT / 'csrc'}: the checkout is incomplete.")
        folder = object_folder()
        steps = [self._compile_step(file, folder) for file in files]
        target = Path(self.get_ext_fullpath(ext.name))
        linked = folder / target.name
        ninja_build.build(steps, self._link_step(steps, linked, cuda), folder, ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a running process keeps the old file
        shutil.copy2(linked, target)

    def summary(self) -> str:
        flags = sources.read_isa_flags(ROOT / "csrc" / "cpu" / "isa_flags.txt")
        isas = ", ".join(sources.built_isas(flags, toolchain.is_x86()))
        built = f"_C ({isas}; {' '.join(self.tools.cxx)}; torch {self.torch.version})"
        reason = why_not_cuda()
        if reason is None:
            archs = ", ".join(toolchain.cuda_codes())
            return f"inception_kernels: built {built} and _C_cuda ({archs}; {self.tools.cuda})."
        return f"inception_kernels: built {built}; not _C_cuda: {reason}."

    def _record(self) -> None:
        """What was built from which sources, and where it has run: for `info`, benchmarks and the choice of kernels."""
        package = Path(self.get_ext_fullpath(CPU)).parent
        hashes = runpy.run_path(str(ROOT / "inception_kernels" / "source_hash.py"))
        kernels = runpy.run_path(str(ROOT / "inception_kernels" / "kernel_record.py"))
        reason = why_not_cuda()
        record = {
            "source_hashes": hashes["source_hashes"](ROOT),
            "summary": self.summary(),
            "why_not_cuda": reason,
            "cuda_codes": [] if reason else toolchain.cuda_codes(),
            "cuda_kernels": kernels["kernel_names"](ROOT),
            "hardware_runs": kernels["hardware_runs"](ROOT),
        }
        (package / hashes["BUILD_INFO"]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def _compile_step(self, file: sources.Source, folder: Path) -> ninja_build.Step:
        output = folder / file.path.with_name(file.path.name + ".o")
        depfile = output.with_suffix(".d")
        includes = ["-Icsrc", "-isystem", str(self.torch.include), "-isystem", toolchain.python_include()]
        if file.path.suffix == ".cu":
            assert self.tools.nvcc is not None
            # No torch headers: device code has a plain C interface.
            host = [f"-ccbin={self.tools.cxx[0]}", "-Icsrc"]
            command = [self.tools.nvcc, *host, *NVCC_FLAGS, *toolchain.cuda_arch_flags(file.path)]
        else:
            command = [*self.tools.cxx, *CXX_FLAGS, *DEFINES, *includes, *file.flags]
            command += shlex.split(os.environ.get("CXXFLAGS", ""))
        command += ["-MD", "-MF", str(depfile), "-c", str(file.path), "-o", str(output)]
        return ninja_build.Step(command, [file.path], output, depfile)

    def _link_step(self, steps: list[ninja_build.Step], output: Path, cuda: bool) -> ninja_build.Step:
        objects = [step.output for step in steps]
        # No rpath: `import torch` comes first and brings the libraries, wherever they are then.
        rest = [*map(str, objects), "-o", str(output), f"-L{self.torch.lib}", "-ltorch", "-ltorch_cpu"]
        if cuda:
            assert self.tools.nvcc is not None
            # The static runtime, so that the object loads on a machine without CUDA.
            command = [self.tools.nvcc, f"-ccbin={self.tools.cxx[0]}", "-shared", "-cudart=static", *rest]
        else:
            mac = platform.system() == "Darwin"
            shared = ["-bundle", "-undefined", "dynamic_lookup"] if mac else ["-shared"]
            command = [*self.tools.cxx, *shared, *rest, *shlex.split(os.environ.get("LDFLAGS", ""))]
        return ninja_build.Step(command, objects, output)


def why_not_cuda() -> str | None:
    """None where this build has CUDA kernels, else the reason why it has none."""
    mode = toolchain.build_mode()
    if mode == "cpu":
        return "IK_BUILD=cpu"
    if toolchain.find_nvcc() is None:
        return "nvcc not found"
    if not sources.cuda_sources(ROOT):
        return "csrc/cuda has no .cu file"
    torch = torch_lookup.find_torch()
    if mode == "auto" and torch is not None and torch.cuda is None:
        return f"torch {torch.version} is no CUDA build and cannot use it (IK_BUILD=cuda builds it all the same)"
    return None
