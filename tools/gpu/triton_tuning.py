"""The configurations of the Triton kernels, measured layer by layer; later steps find them in the run's cache."""

from __future__ import annotations

import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tools.gpu.options import ROOT, Options, parse

_MODULE = "tools.gpu.triton_tuning"


def main(options: Options) -> int:
    if options.rehearse:
        _interpret()
    from inception_kernels.triton import tuning
    from tools.triton_gates import cases

    begun = time.monotonic()
    layers: list[dict[str, Any]] = []
    timer = _rehearsed_timer() if options.rehearse else tuning.device_milliseconds
    for case in _wanted(options):
        if time.monotonic() - begun > options.seconds:
            break
        tuning.begin()
        layer: dict[str, Any] = {"case": str(case), "status": "ok"}
        try:
            with tuning.tuning(timer):
                cases.run(case, options.device)
        except Exception as error:  # one kernel that fails must not hide the others
            layer |= {"status": "failed", "reason": f"{type(error).__name__}: {str(error)[:500]}"}
        layers.append({**layer, "selections": [str(each) for each in tuning.selections()]})
        _write(options, layers)
    return 0 if layers and all(each["status"] == "ok" for each in layers) else 1


def _interpret() -> None:
    """Start again in Triton's interpreter, with the tests' corrections; Triton reads the variable when imported."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        os.environ["TRITON_INTERPRET"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", _MODULE, *sys.argv[1:]])
    sys.path.append(str(ROOT / "tests" / "interpreted"))
    importlib.import_module("interpreter")


def _rehearsed_timer() -> Callable[[Callable[[], object]], float]:
    """Runs what it is to time, and says that each takes a little less than the last: numbers that mean nothing."""
    times = (1.0 / n for n in range(1, 10**6))

    def timer(launch: Callable[[], object]) -> float:
        launch()
        return next(times)

    return timer


def _wanted(options: Options) -> Iterator[Any]:
    """The layers with the most multiply-adds first; passes and batches in order of value."""
    from inception_kernels.models.layers import LayerSpec
    from tools.triton_gates import cases

    if options.rehearse:
        one = (1, 1)
        small = LayerSpec(
            operator="conv2d_bn_act", in_channels=16, out_channels=16, height=4, width=4, kernel_size=(3, 3),
            stride=one, padding=one, dilation=one, input_activation="none", activation="relu", adds_residual=False,
            eps=1e-3, paths=("layer",),
        )  # fmt: skip
        yield cases.Case(small, 1, "forward")
        return
    batches = (32,) if options.quick else (32, 256, 1)
    everything = list(cases.cases(batches, (cases.BF16,)))

    def macs(case: cases.Case) -> int:
        return -case.layer.macs(case.batch) * case.layer.count if case.layer is not None else 0

    passes = ("forward",) if options.quick else ("forward", "training", "backward")
    for what in passes:
        for batch in batches:
            chosen = [case for case in everything if (case.what, case.batch) == (what, batch)]
            yield from sorted(chosen, key=macs)


def _write(options: Options, layers: list[dict[str, Any]]) -> None:
    from inception_kernels.bench import environment
    from inception_kernels.triton import tuning

    entries = tuning.CACHE.read()
    gains = [each["predicted_milliseconds"] / each["milliseconds"] for each in entries.values()]
    gain = f"; the predicted choice takes {statistics.median(gains):.2f} times the fastest's time" if gains else ""
    failed = sum(each["status"] != "ok" for each in layers)
    options.write(f"{len(layers)} layers, {failed} failed, {len(entries)} kernels measured{gain}", layers=layers)
    if options.rehearse:
        return
    folder = environment.slug(environment.capture(options.device))
    rows = [json.dumps({**json.loads(key), **entry}) for key, entry in sorted(entries.items())]
    path = options.kept(f"benchmarks/results/{folder}/triton_tuning.jsonl")
    path.write_text("\n".join([*rows, ""]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(parse()))
