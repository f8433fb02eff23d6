"""Race operators or networks against PyTorch with the package's own harness; rows in the format of benchmarks/results.

Cases run in small groups, and the rows are written after each: a run that is cut short keeps what it has.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence

from inception_kernels.bench import Config, environment, harness, report
from inception_kernels.bench.cases import cases
from inception_kernels.bench.problem import Case
from inception_kernels.bench.row import OK, OURS, Row
from tools.gpu.options import Options, parse

_OURS = ("inception_kernels:cuda", "inception_kernels:cuda_graph", "inception_kernels:triton")
_EAGER = ("eager", "channels_last", "cuda_graph")
_COMPILED = ("torch.compile", "max_autotune")


def main(options: Options) -> int:
    rows: list[Row] = []
    begun = time.monotonic()
    for config, group in _groups(options):
        left = options.seconds - (time.monotonic() - begun)
        if left <= 0:
            break
        rows += harness.run(dataclasses.replace(config, max_seconds=left), cases=group)
        _write(options, rows)
    return 0 if rows else 1


def _groups(options: Options) -> Iterator[tuple[Config, Sequence[Case]]]:
    for config in _configs(options):
        wanted = cases(config)
        size = 1 if options.what == "networks" else 8
        for start in range(0, len(wanted), size):
            yield config, wanted[start : start + size]


def _configs(options: Options) -> list[Config]:
    """What to measure, the most telling first."""
    kinds = ("network",) if options.what == "networks" else ("operator",)
    base = Config(kinds=kinds, device=options.device, rounds=7, slot_seconds=0.02, case_seconds=5.0)
    if options.rehearse:
        tiny = dataclasses.replace(base, image_size=71, networks=("xception",), dtypes=("float32",), layers=1)
        backends = ("eager", "channels_last", "inception_kernels")
        return [dataclasses.replace(tiny, passes=("inference",), batches=(1,), rounds=1, backends=backends)]
    base = dataclasses.replace(base, dtypes=("bfloat16",), backends=(*_EAGER, *_OURS))
    inference = dataclasses.replace(base, passes=("inference",), batches=(32,))
    training = dataclasses.replace(base, passes=("training",), batches=(32,))
    if options.what == "networks":
        everyone = (*_EAGER, *_COMPILED, *_OURS)
        compiled = dataclasses.replace(inference, backends=everyone)
        quick = [dataclasses.replace(inference, batches=(256, 1)), compiled]
        rest = [dataclasses.replace(compiled, batches=(1, 256)), dataclasses.replace(training, backends=everyone)]
        others = [dataclasses.replace(inference, dtypes=("float16", "float32"))]
        return quick if options.quick else [*quick, *rest, *others]
    quick = [inference]
    rest = [
        dataclasses.replace(inference, batches=(1, 256)),
        training,
        dataclasses.replace(inference, backends=(*_EAGER, *_COMPILED, *_OURS), layers=6),
        dataclasses.replace(inference, dtypes=("float16", "float32"), layers=6),
    ]
    return quick if options.quick else [*quick, *rest]


def _write(options: Options, rows: Sequence[Row]) -> None:
    timed = [row for row in rows if row.status == OK]
    ours = [row for row in timed if row.role == OURS]
    summary = f"{len(rows)} rows, {len(timed)} timed, {len(ours)} of them ours"
    if options.rehearse:  # times of tiny shapes on a CPU are no results
        options.write(summary)
        return
    assert rows[0].environment is not None
    folder = environment.slug(rows[0].environment)
    report.save(rows, options.kept(f"benchmarks/results/{folder}/{options.what}.json"))
    options.write(summary)


if __name__ == "__main__":
    sys.exit(main(parse()))
