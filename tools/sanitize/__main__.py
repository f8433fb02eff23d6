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
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.variant import Variant

TESTS = ("conv2d_bn_act", "separable_conv2d", "asymmetric_pair", "pointwise_depthwise_conv2d",
         "label_smoothing_cross_entropy", "max_pool2d", "avg_pool2d", "memory", "nonfinite", "determinism",
         "winograd", "weight_winograd", "strassen", "run_program")  # fmt: skip
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1 -O1"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sanitize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=float, default=1.0, help="the part of the cases to run")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--compiler", default=os.environ.get("CXX", "g++"))
    options, pytest_arguments = parser.parse_known_args(arguments)
    sanitized = Variant(
        name="sanitize",
        flags=FLAGS,
        link_flags="-fsanitize=address,undefined",
        compiler=options.compiler,
        tests=TESTS,
        environment={
            "LD_PRELOAD": " ".join(map(str, sanitizer_libraries(options.compiler))),
            # The interpreter itself leaks; a report must end the run, as a failed test might be expected to.
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=0",
            "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
        },
    )
    sanitized.build()
    return sanitized.test(pytest_arguments, options.sample, options.seed)


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


if __name__ == "__main__":
    sys.exit(main())
