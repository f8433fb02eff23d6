"""Build the extension with AddressSanitizer and UndefinedBehaviorSanitizer and run the CPU operators' tests with it.

python -m tools.sanitize                          # every case of every operator (an hour on a small machine)
python -m tools.sanitize --sample 0.02 --seed 1   # a random part of them
python -m tools.sanitize tests/test_separable_conv2d.py -k core_geometry

Tensors come from the sanitizer's allocator, so that a kernel's access beyond one is reported too. Needs g++ and its
sanitizer libraries; everything is built under build/sanitize, the installed package stays as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "sanitize"
COPIED = ("csrc", "build_backend", "inception_kernels", "setup.py", "pyproject.toml", "README.md")
TESTS = tuple(
    f"tests/test_{name}.py"
    for name in ("conv2d_bn_act", "separable_conv2d", "asymmetric_pair", "pointwise_depthwise_conv2d",
                 "label_smoothing_cross_entropy", "max_pool2d", "avg_pool2d", "memory", "nonfinite", "determinism",
                 "winograd", "run_program")
)  # fmt: skip
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1 -O1"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sanitize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=float, default=1.0, help="the part of the cases to run")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--compiler", default=os.environ.get("CXX", "g++"))
    options, pytest_arguments = parser.parse_known_args(arguments)
    libraries = sanitizer_libraries(options.compiler)
    build(options.compiler)
    return run(libraries, pytest_arguments, options.sample, options.seed)


def sanitizer_libraries(compiler: str) -> list[Path]:
    """The runtimes of this compiler, which the interpreter must load before anything else."""
    found = []
    for name in ("libasan.so", "libubsan.so"):
        answer = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = Path(answer.stdout.strip())
        if not path.is_absolute():
            raise SystemExit(f"{compiler} has no {name}: install its sanitizer libraries, or name another --compiler")
        found.append(path.resolve())
    return found


def build(compiler: str) -> None:
    for name in COPIED:
        source, target = ROOT / name, FOLDER / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)  # keeps times: only changes compile
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    environment = os.environ | {
        "CXX": compiler, "CXXFLAGS": FLAGS, "LDFLAGS": "-fsanitize=address,undefined", "IK_BUILD": "cpu"
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=FOLDER, env=environment, check=True
    )


def run(libraries: Sequence[Path], arguments: Sequence[str], sample: float, seed: int) -> int:
    environment = os.environ | {
        "LD_PRELOAD": " ".join(map(str, libraries)),
        # The interpreter itself leaks; a report must end the run, as a failed test might be expected to.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
        "PYTHONPATH": os.pathsep.join([str(FOLDER), str(ROOT)]),
        "IK_SANITIZE_SAMPLE": f"{sample}:{seed}",
    }
    given = [str(Path(a).resolve()) if Path(a.split("::")[0]).exists() else a for a in arguments]
    paths = [a for a in given if Path(a.split("::")[0]).exists()] or [str(ROOT / name) for name in TESTS]
    options = [a for a in given if a not in paths]
    command = [
        sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider",
        "-p", "tools.sanitize.sample", *options, *paths,
    ]  # fmt: skip
    # From the build's folder: an interpreter looks for packages where it was started.
    return subprocess.run(command, cwd=FOLDER, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
