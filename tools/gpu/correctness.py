"""Every operator, shape and dtype against float64, by the tests' own rule, with counters proving which kernel ran."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from inception_kernels import backends
from inception_kernels.bench import environment, report
from tools.gpu import cases
from tools.gpu.options import RESULT, ROOT, Options, parse


@dataclass(frozen=True)
class Precision:
    """`tf32`: whether PyTorch's convolutions, and so ours, may use it."""

    name: str
    dtype: torch.dtype
    tf32: bool = False


_PRECISIONS = (
    Precision("bfloat16", torch.bfloat16),
    Precision("float16", torch.float16),
    Precision("float32", torch.float32),
    Precision("float32 with TF32", torch.float32, tf32=True),
)
_BATCH, _QUICK_BATCH = 3, 1
_WRITE_EVERY_SECONDS = 5.0
_CONTINUE = "continue"
_TRITON = "triton"  # `what` is empty for the CUDA kernels or this, and _CONTINUE after a lost device


def main(options: Options) -> int:
    backend = _backend(options)
    reason = backends.available()[backend]
    if reason is not None:
        options.write(f"the {backend} kernels are not there: {reason}")
        return 1
    wanted = list(_calls(options))
    begun = written = time.monotonic()
    rows: list[dict[str, Any]] = _earlier_rows(options)
    for call, precision in wanted[len(rows) :]:
        if time.monotonic() - begun > options.seconds:
            break
        torch.backends.cudnn.allow_tf32 = precision.tf32
        rows.append(_row(call, precision, options.device, backend))
        if rows[-1]["status"] == "wrong":
            print(f"{rows[-1]['case']} {rows[-1]['dtype']}: {rows[-1]['reason']}", flush=True)
            if options.device == "cuda" and not _device_answers():
                _write(options, rows, len(wanted))
                _start_again(options, time.monotonic() - begun)
        if time.monotonic() - written > _WRITE_EVERY_SECONDS:
            written = time.monotonic()
            _write(options, rows, len(wanted))
    _write(options, rows, len(wanted))
    return 0 if all(row["status"] != "wrong" for row in rows) else 1


def _backend(options: Options) -> str:
    if _TRITON not in options.what:
        return "cpu" if options.rehearse else "cuda"
    if options.rehearse:  # in Triton's interpreter, with the tests' corrections of it
        if os.environ.get("TRITON_INTERPRET") != "1":  # read when Triton is imported, which torch may have done
            os.environ["TRITON_INTERPRET"] = "1"
            os.execv(sys.executable, [sys.executable, "-m", "tools.gpu.correctness", *sys.argv[1:]])
        sys.path.append(str(ROOT / "tests" / "interpreted"))
        importlib.import_module("interpreter")
    return _TRITON


def _calls(options: Options) -> list[tuple[cases.Call, Precision]]:
    """The odd ones in every precision first, then the networks' layers."""
    if options.rehearse:
        return list(itertools.product(list(cases.ragged())[:4], _PRECISIONS[:1]))
    odd = itertools.product(cases.ragged(), _PRECISIONS)
    layers = itertools.product(cases.layers(_QUICK_BATCH if options.quick else _BATCH), _PRECISIONS)
    return [*odd, *layers]


def _row(call: cases.Call, precision: Precision, device: str, backend: str) -> dict[str, Any]:
    row: dict[str, Any] = {"case": call.name, "dtype": precision.name, "training": call.training}
    backends.reset_counters()
    try:
        call.check(precision.dtype, device, backend)
        row["status"] = "right"
    except backends.BackendUnavailableError as error:
        row |= {"status": "declined", "reason": str(error)}
    except Exception as error:  # a launch that fails must not hide the other cases
        row |= {"status": "wrong", "reason": f"{type(error).__name__}: {str(error)[:500]}"}
    row["kernels"] = {name: count for name, count in backends.counters().items() if count}
    return row


def _write(options: Options, rows: list[dict[str, Any]], wanted: int) -> None:
    counts = Counter(row["status"] for row in rows)
    kernels = sorted({name for row in rows for name in row["kernels"]})
    verdicts = ", ".join(f"{counts[status]} {status}" for status in ("right", "wrong", "declined"))
    options.write(f"{len(rows)} of {wanted} calls: {verdicts}; {len(kernels)} kernels ran", kernels=kernels, rows=rows)
    if options.rehearse:
        return
    where = environment.capture(options.device)
    major, minor = torch.cuda.get_device_capability()
    hardware = {"sm": 10 * major + minor, "device": where.device, "source_hash": where.source_hash}
    document = {"hardware": hardware, "environment": dataclasses.asdict(where), "rows": rows}
    name = f"triton_{report.CORRECTNESS}" if _TRITON in options.what else report.CORRECTNESS
    path = options.kept(f"benchmarks/results/{environment.slug(where)}/{name}")
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _device_answers() -> bool:
    """After an illegal access every later call of the process fails, too."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _start_again(options: Options, spent: float) -> None:
    """This step in a fresh process, from the next case on."""
    what = options.what if _CONTINUE in options.what else options.what + _CONTINUE
    arguments = [what, "--output", str(options.output), "--seconds", f"{max(options.seconds - spent, 1):g}"]
    flags = ["--quick"] if options.quick else []
    os.execv(sys.executable, [sys.executable, "-m", "tools.gpu.correctness", *arguments, *flags])


def _earlier_rows(options: Options) -> list[dict[str, Any]]:
    if _CONTINUE not in options.what:
        return []
    rows: list[dict[str, Any]] = json.loads((options.output / RESULT).read_text(encoding="utf-8"))["rows"]
    return rows


if __name__ == "__main__":
    sys.exit(main(parse()))
