"""Which configuration of a kernel runs: the fastest measured on this device, else the cheapest by prediction.

Measurements are made inside ``tuning()`` only, kept on disk (``tune_cache``) and found again by device, dtype, shape,
versions and the hash of the kernels' sources. Imports nothing of Triton before it chooses.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from .._version import __version__
from ..source_hash import current_hashes
from ..tune_cache import TuneCache
from .runtime import interpreted

logger = logging.getLogger("inception_kernels")

Value = int | float | str | bool
Launch = Callable[[], object]
Timer = Callable[[Launch], float]


class Configuration(Protocol):
    """A frozen dataclass of plain values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def warps(self) -> int: ...


C = TypeVar("C", bound=Configuration)

# Flattened loops over a window's taps and channels have come out wrong with more (pytorch#173068).
PROVEN_WARPS = 4
# Only the best predicted are worth the time that compiling and measuring takes.
_MOST_CANDIDATES = 12
_WARMUP_MS, _REPEAT_MS = 5, 25
# Tiles add in different orders; beyond this share of the largest output a kernel is wrong and not just rounded.
_TOLERANCE = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9, torch.float32: 2.0**-12}


@dataclass(frozen=True)
class Selection:
    """What was chosen for one launch, and why; `milliseconds` is None where nothing was measured."""

    kernel: str
    configuration: Any
    why: str
    milliseconds: float | None = None

    def __str__(self) -> str:
        values = dataclasses.asdict(self.configuration).items()
        return f"{self.kernel}({', '.join(f'{name}={value}' for name, value in values)}): {self.why}"


def _is_measurement(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("configuration"), dict):
        return False
    time = entry.get("milliseconds")
    return isinstance(time, int | float) and math.isfinite(time) and time > 0 and isinstance(entry.get("of"), int)


CACHE = TuneCache("triton_tune.json", _is_measurement)

_lock = threading.Lock()
_thread = threading.local()
_selected: dict[tuple[Any, ...], Selection] = {}
_on_disk: dict[str, dict[str, Any]] | None = None
_timer: Timer | None = None


def device_milliseconds(launch: Launch) -> float:
    """The median time of a launch on the GPU, its L2 cache emptied before each."""
    from triton.testing import do_bench

    return float(do_bench(launch, warmup=_WARMUP_MS, rep=_REPEAT_MS, return_mode="median"))


@contextmanager
def tuning(timer: Timer = device_milliseconds) -> Iterator[None]:
    """Inside, every launch of a kernel whose shape has not been measured on this device measures its candidates."""
    global _timer
    before, _timer = _timer, timer
    try:
        yield
    finally:
        _timer = before


def choose(
    kernel: str, x: Tensor, shape: Mapping[str, Value], candidates: Callable[[], Sequence[C]],
    cost: Callable[[C], float], launch: Callable[[C], Tensor], taps: int = 1,
) -> C:  # fmt: skip
    """The configuration that runs `kernel` for this shape and x's dtype and device.

    Args:
        shape: all that the best choice depends on, besides dtype and device.
        candidates: those that can run, pruned by shape and shared memory; asked for once a shape.
        cost: predicted, lower is better.
        launch: runs the kernel and returns its output, the same tensor in every call; it may be called many times.
        taps: of the window that the kernel's loop goes through together with the channels; 1 for no such loop.

    Raises:
        RuntimeError: there is no candidate, or none of those that were tried fits the device.
    """
    key = (kernel, x.dtype, x.device, *shape.items())
    selection = _selected.get(key)
    if selection is None or (selection.milliseconds is None and _may_measure(x)):
        selection = _select(kernel, x, shape, list(candidates()), cost, launch, taps)
        with _lock:
            _selected[key] = selection
    _note(selection)
    chosen: C = selection.configuration
    return chosen


def selections() -> tuple[Selection, ...]:
    """Those of this thread since :func:`begin`, each once, in order."""
    return tuple(dict.fromkeys(getattr(_thread, "notes", ())))


def begin() -> None:
    """An operator's call begins: :func:`selections` are of it from now on."""
    _thread.notes = []


def forget() -> None:
    """Choose and read the cache anew from now on, as in a new process."""
    global _on_disk
    with _lock:
        _selected.clear()
        _on_disk = None


def needs_proof(configuration: Configuration, taps: int) -> bool:
    """Whether it may run only after its output was compared on this device (see PROVEN_WARPS)."""
    return taps > 1 and configuration.warps > PROVEN_WARPS


def order(candidates: Sequence[C], cost: Callable[[C], float], taps: int = 1) -> list[C]:
    """By predicted cost; first the best of those that need no proof, which runs where nothing was measured.

    Raises:
        ValueError: each of them needs proof, so that there is none to compare with.
    """
    ranked = sorted(candidates, key=cost)
    safe = next((each for each in ranked if not needs_proof(each, taps)), None)
    if safe is None:
        raise ValueError(
            f"expected a configuration of at most {PROVEN_WARPS} warps for a flattened loop of {taps} taps, "
            f"got {ranked}"
        )
    return [safe, *(each for each in ranked if each is not safe)]


def _note(selection: Selection) -> None:
    notes = getattr(_thread, "notes", None)
    if notes is None:
        notes = _thread.notes = []
    if len(notes) < 64:  # of an operator's call; without one, as in a backward pass, nobody empties the list
        notes.append(selection)


def _may_measure(x: Tensor) -> bool:
    if _timer is None or getattr(_thread, "compiles", False):
        return False
    if _timer is not device_milliseconds:
        return True
    return x.is_cuda and not torch.cuda.is_current_stream_capturing()


def _select(
    kernel: str, x: Tensor, shape: Mapping[str, Value], candidates: list[C], cost: Callable[[C], float],
    launch: Callable[[C], Tensor], taps: int,
) -> Selection:  # fmt: skip
    if not candidates:
        raise RuntimeError(f"{kernel} has no configuration for {_text(shape)}: use_backend('reference') runs it")
    ranked = order(candidates, cost, taps)
    key = json.dumps({**_circumstances(x), "kernel": kernel, **shape}, sort_keys=True)
    entry = _known().get(key)
    found = None if entry is None else _stored(entry, candidates)
    if entry is not None and found is not None:
        why = f"measured before, {entry['milliseconds']:.4g} ms, fastest of {entry['of']}"
        return Selection(kernel, found, why, entry["milliseconds"])
    if not _may_measure(x):
        why = "the only one" if len(ranked) == 1 else f"predicted from counts, of {len(ranked)}"
        return Selection(kernel, ranked[0], why)
    times = _measure(kernel, shape, ranked, launch)
    chosen, milliseconds = min(times, key=lambda each: each[1])
    _keep(
        key,
        {
            "configuration": dataclasses.asdict(chosen),
            "milliseconds": milliseconds,
            "of": len(times),
            "predicted_milliseconds": times[0][1],
        },
    )
    return Selection(kernel, chosen, f"measured, {milliseconds:.4g} ms, fastest of {len(times)}", milliseconds)


def _measure(
    kernel: str, shape: Mapping[str, Value], ranked: list[C], launch: Callable[[C], Tensor]
) -> list[tuple[C, float]]:
    """(candidate, milliseconds) of the first that runs and the best of the others, where they agree with it."""
    assert _timer is not None
    tried = ranked[:_MOST_CANDIDATES]
    _compile(tried, launch)
    times: list[tuple[C, float]] = []
    expected: Tensor | None = None
    for candidate in tried:
        y = _output(kernel, candidate, launch)
        if y is None:
            continue
        if expected is None:
            expected = y.clone()
        if _agree(y, expected):
            times.append((candidate, _timer(functools.partial(launch, candidate))))
        else:
            logger.warning("%s is wrong as %s for %s: never chosen", kernel, candidate, _text(shape))
        y.fill_(torch.nan)  # so that the next cannot leave it as it is and pass
    if not times:
        raise RuntimeError(
            f"none of the best {_MOST_CANDIDATES} configurations of {kernel} fits this device for {_text(shape)}: "
            "use_backend('reference') runs it"
        )
    return times


def _compile(tried: Sequence[C], launch: Callable[[C], Tensor]) -> None:
    """All of them at once, on as many threads as there are processors; this thread's launches start nothing meanwhile.

    What does not compile is tried again, and told, when its turn comes.
    """
    from triton.runtime._async_compile import AsyncCompileMode
    from triton.runtime.errors import OutOfResources
    from triton.runtime.jit import JITFunction

    if interpreted():
        return
    thread, run = threading.get_ident(), JITFunction.run

    def compile_only(self: Any, *arguments: Any, warmup: bool, **keywords: Any) -> Any:
        return run(self, *arguments, warmup=warmup or threading.get_ident() == thread, **keywords)

    try:
        _thread.compiles = True
        JITFunction.run = compile_only
        with ThreadPoolExecutor() as pool, AsyncCompileMode(pool, ignore_errors=True):
            for candidate in tried:
                with suppress(OutOfResources):
                    launch(candidate)
    finally:
        JITFunction.run = run
        _thread.compiles = False


def _output(kernel: str, candidate: C, launch: Callable[[C], Tensor]) -> Tensor | None:
    """What it wrote, or None where it needs more of a multiprocessor than this device has."""
    from triton.runtime.errors import OutOfResources

    try:
        return launch(candidate)
    except OutOfResources as error:
        logger.warning("%s does not fit this device as %s: %s", kernel, candidate, error)
        return None


def _agree(y: Tensor, expected: Tensor) -> bool:
    limit = _TOLERANCE[y.dtype] * expected.float().nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    return torch.allclose(y.float(), expected.float(), rtol=0.0, atol=limit, equal_nan=True)


def _keep(key: str, entry: dict[str, Any]) -> None:
    _known()[key] = entry
    CACHE.add({key: entry})


def _known() -> dict[str, dict[str, Any]]:
    global _on_disk
    if _on_disk is None:
        _on_disk = CACHE.read()
    return _on_disk


def _stored(entry: dict[str, Any], candidates: Sequence[C]) -> C | None:
    """The candidate that an entry names; None where it is none of them any more."""
    return next((each for each in candidates if dataclasses.asdict(each) == entry["configuration"]), None)


def _circumstances(x: Tensor) -> dict[str, Any]:
    """All that a measurement depends on besides kernel and shape."""
    return {"dtype": str(x.dtype).removeprefix("torch."), **_device(x.device), **_versions()}


@functools.cache
def _device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {"device": properties.name, "sm": 10 * properties.major + properties.minor}


@functools.cache
def _versions() -> dict[str, str]:
    import triton

    try:
        sources = current_hashes().get("triton", __version__)
    except FileNotFoundError:
        sources = __version__
    versions = {"torch": torch.__version__, "inception_kernels": __version__, "sources": sources}
    return {**versions, "triton": triton.__version__, "cuda": torch.version.cuda or "none"}


def _text(shape: Mapping[str, Value]) -> str:
    return ", ".join(f"{name}={value}" for name, value in shape.items())
