"""Executes the CUDA kernels of csrc/cuda on the CPU, with or without the checker.

host = host_cuda.load("conv2d_bn_act", checked=True)
host.context(sm=90, multiprocessors=2)
for schedule in host_cuda.SCHEDULES:
    host.on(schedule).forward(...)    # functions of csrc/host_cuda/bind_conv2d_bn_act.cpp; reports raise KernelReport
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "host_cuda"


@dataclass(frozen=True)
class Schedule:
    """The order of threads between synchronisation points (0 ascending, 1 descending, else a seed), and whether
    asynchronous copies happen as late as the waits allow or at once."""

    order: int = 0
    lazy: bool = True


SCHEDULES = (Schedule(0, True), Schedule(1, False), Schedule(2, True), Schedule(3, False))


@dataclass(frozen=True)
class Options:
    """Sources in front of csrc/, and what else they need: the mutation test's."""

    include: Path | None = None
    kernel_flags: tuple[str, ...] = ()
    more_sources: tuple[Path, ...] = ()
    always_checked: bool = False  # one build for all tests


options = Options()


class CompileError(RuntimeError):
    pass


class KernelReport(AssertionError):
    """What the checker found; `reports` holds one line each: kind, source line, detail."""

    def __init__(self, reports: Sequence[str]) -> None:
        super().__init__("\n" + "\n".join(reports))
        self.reports = list(reports)


@dataclass(frozen=True)
class Launched:
    """A kernel by its mangled name, as it was launched."""

    kernel: str
    threads: int
    shared: int  # bytes of dynamic shared memory
    shared_limit: int  # of a block of the device


most_shared: dict[tuple[str, int], int] = {}  # of each kernel and limit, in this process
executes = True  # otherwise launches are recorded and checked, and no kernel runs


class Host:
    """The functions of one bind_<op>.cpp; each call is one checked run. `launched`: the kernels of the last one."""

    def __init__(
        self, module: ModuleType, checked: bool, schedule: Schedule = SCHEDULES[0], executes: bool = True
    ) -> None:
        self._module = module
        self.checked = checked
        self.schedule = schedule
        self.executes = executes
        self.launched: list[Launched] = []

    def on(self, schedule: Schedule) -> Host:
        return Host(self._module, self.checked, schedule)

    def launching_only(self) -> Host:
        """Launches are recorded and checked, the kernels do not run."""
        return Host(self._module, self.checked, self.schedule, executes=False)

    def context(self, sm: int = 80, multiprocessors: int = 2, allow_tf32: bool = False) -> None:
        self._module.set_context(sm, multiprocessors, allow_tf32)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._module, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            self._module.begin(self.schedule.order, self.schedule.lazy, self.checked, self.executes and executes)
            try:
                result = function(*args, **kwargs)
            finally:
                reports = self._module.end()
                self.launched = [Launched(*each) for each in self._module.launched()]
                for each in self.launched:
                    key = each.kernel, each.shared_limit
                    most_shared[key] = max(each.shared, most_shared.get(key, 0))
            if reports:
                raise KernelReport(reports)
            return result

        return run


@functools.cache
def load(op: str, checked: bool = True, also: tuple[str, ...] = ()) -> Host:
    """csrc/cuda/<op>*.cu (and those of `also`) with csrc/host_cuda/bind_<op>.cpp."""
    kernels = sorted({path for stem in (op, *also) for path in (CSRC / "cuda").glob(f"{stem}*.cu")})
    if not kernels:
        raise FileNotFoundError(f"no kernels csrc/cuda/{op}*.cu")
    return build(op, kernels, CSRC / "host_cuda" / f"bind_{op}.cpp", checked)


def build(name: str, kernels: Sequence[Path], binding: Path, checked: bool) -> Host:
    checked = checked or options.always_checked
    module_name = f"host_cuda_{name}_{'checked' if checked else 'fast'}"
    common = common_flags()
    python = [
        f"-isystem{sysconfig.get_path('include')}",
        f"-isystem{pybind_include()}",
        f"-DIK_HOST_MODULE={module_name}",
    ]
    jobs = [(in_front(kernel), kernel_flags(checked)) for kernel in kernels]
    jobs.append((binding, [*common, "-O1", "-fvisibility=hidden", *python]))
    jobs += [(source, [*common, "-O3"]) for source in [*runtime_sources(), *options.more_sources]]
    BUILD.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: compile_object(*job), jobs))
    library = link(module_name, objects)
    return Host(load_module(module_name, library), checked)


def in_front(source: Path) -> Path:
    """The source that takes this one's place, if there is one."""
    if options.include is None or not source.is_relative_to(CSRC):
        return source
    other = options.include / source.relative_to(CSRC)
    return other if other.exists() else source


def common_flags() -> list[str]:
    include = [f"-I{CSRC}", f"-isystem{cuda_include()}"]
    return ["-std=c++20", "-g1", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", *vector_flags(), *include]


def kernel_flags(checked: bool) -> list[str]:
    flags = ["-O1", *CHECKED_FLAGS] if checked else ["-O2"]
    in_front_of_all = [f"-I{options.include}"] if options.include else []
    return ["-x", "c++", *in_front_of_all, *common_flags(), "-ffp-contract=off", *flags, *options.kernel_flags]


# The sanitizers' own runtimes are not linked: the hooks that they put into the kernels are ours.
CHECKED_FLAGS = ["-fsanitize=thread,alignment,bounds", "--param", "tsan-instrument-func-entry-exit=0"]


def runtime_sources() -> list[Path]:
    runtime = [path for path in (CSRC / "host_cuda").glob("*.cpp") if not path.name.startswith("bind_")]
    return [*sorted(runtime), CSRC / "common" / "counters.cpp"]


def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CXX", "g++"))
    if not shutil.which(command[0]):
        raise FileNotFoundError("executing CUDA kernels on the host needs g++: install it, or name it in CXX")
    return command


@functools.cache
def vector_flags() -> list[str]:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return ["-mavx2", "-mfma", "-mf16c"] if all(f" {name} " in flags for name in ("avx2", "fma", "f16c")) else []


@functools.cache
def cuda_include() -> Path:
    """The folder of vector_types.h and cuda_bf16.h: a CUDA toolkit's, or the one of NVIDIA's Python packages."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    candidates = [Path(home) / "include" for home in homes if home]
    candidates += [Path(nvcc).resolve().parent.parent / "include"] if nvcc else []
    candidates += [Path("/usr/local/cuda/include")]
    for entry in sys.path:
        candidates += sorted(Path(entry or ".").glob("nvidia/*/include"))
    for folder in candidates:
        if (folder / "cuda_bf16.h").exists() and (folder / "vector_types.h").exists():
            return folder
    raise FileNotFoundError(
        "executing CUDA kernels on the host needs CUDA's headers: install a CUDA toolkit and set CUDA_HOME, "
        "or pip install nvidia-cuda-runtime nvidia-cuda-crt nvidia-cuda-cccl"
    )


def pybind_include() -> str:
    import pybind11

    return str(pybind11.get_include())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compile_object(source: Path, flags: Sequence[str]) -> Path:
    """Compiles unless an object exists whose command, source and headers are the same."""
    command = [*compiler(), *flags]
    key = hashlib.sha256("\0".join([str(source), *command]).encode()).hexdigest()[:16]
    target = BUILD / f"{source.stem}-{key}.o"
    record = target.with_suffix(".json")
    with locked(target):
        if target.exists() and record.exists() and is_current(json.loads(record.read_text())):
            return target
        depfile = target.with_suffix(".d")
        call = [*command, "-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(target)]
        result = subprocess.run(call, capture_output=True, text=True)
        if result.returncode:
            raise CompileError(f"{shlex.join(call)}\n{result.stderr}")
        names = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        record.write_text(json.dumps({name: digest(Path(name)) for name in names}))
    return target


def is_current(record: dict[str, str]) -> bool:
    return all(Path(name).exists() and digest(Path(name)) == value for name, value in record.items())


def link(name: str, objects: Sequence[Path]) -> Path:
    key = hashlib.sha256("\0".join(f"{path}{digest(path)}" for path in objects).encode()).hexdigest()[:16]
    folder = BUILD / f"{name}-{key}"
    folder.mkdir(exist_ok=True)
    library = folder / f"{name}.so"
    with locked(library):
        if not library.exists():
            call = [*compiler(), "-shared", "-o", str(library), *map(str, objects), "-lpthread", "-ldl"]
            subprocess.run(call, check=True)
    return library


def load_module(name: str, library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
