"""Measure each distinct fused layer against the modules that it replaces, and let the faster one run."""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _extension, backends
from .._version import __version__
from ..source_hash import current_hashes
from ..triton import tuning as triton_tuning
from ..tune_cache import TuneCache
from . import trial
from .layers import CallsSite, ChainForward, LeadForward, Swapped
from .runtime import FusedLayer, Parts, record_inputs
from .shapes import modes, run

_ROUNDS = 15
_SECONDS = 0.5  # per layer and mode; at least three rounds
_FIELDS = ("fused_ms", "original_ms")


def _is_measurement(entry: Any) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), int | float) and math.isfinite(entry[name]) and entry[name] > 0 for name in _FIELDS
    )


_TRITON = "triton_ms"
CACHE = TuneCache("swap_tune.json", _is_measurement)


@dataclass(frozen=True)
class TunedLayer:
    """One layer's measurement: medians in milliseconds, and which of them runs from now on.

    `fused_ms` is of the automatic choice's kernels; `triton_ms` is None where Triton cannot run the layer.
    """

    path: str
    input_shape: list[int]
    dtype: str
    mode: str  # "inference" or "training"
    fused_ms: float
    original_ms: float
    choice: str  # "fused", "triton" or "original"
    cached: bool
    triton_ms: float | None = None


@dataclass(frozen=True)
class _Candidate:
    layer: FusedLayer
    parts: Callable[[], Parts | None]
    original: Callable[[Tensor], Tensor]


def tune_layers(model: nn.Module, inputs: Any) -> list[TunedLayer]:
    """Run `model` once on `inputs`, then measure each distinct layer and set what it runs.

    Inference is measured in evaluation without gradients; where the model is training, forward and backward as well.
    """
    candidates = {id(candidate.layer): candidate for candidate in _candidates(model)}
    for candidate in candidates.values():
        candidate.layer.choices = {}
    with modes(model, training=False), torch.no_grad(), record_inputs() as seen:
        run(model, inputs)
    known = CACHE.read()
    machine = _machine(seen[0][1].device) if seen else {}
    measured: dict[str, dict[str, float]] = {}
    tuned = []
    done: set[tuple[int, str]] = set()
    for mode in ("inference", "training") if model.training else ("inference",):
        for layer, x in seen:
            candidate = candidates[id(layer)]
            parts = candidate.parts()
            if parts is None or (id(layer), mode) in done:
                continue
            done.add((id(layer), mode))
            key = json.dumps({**machine, "mode": mode, **_signature(layer, parts, x)}, sort_keys=True)
            names = (*_FIELDS, *((_TRITON,) if trial.takes_triton(layer, x) else ()))
            cached = key in known and all(name in known[key] for name in names)
            if not cached:
                with modes(model, training=mode == "training"), triton_tuning.tuning():
                    measured[key] = known[key] = _measure(candidate, parts, x, mode)
            layer.choices[mode] = _fastest(known[key], names, candidate, parts, x)
            dtype = str(x.dtype).removeprefix("torch.")
            times = known[key]
            tuned.append(
                TunedLayer(
                    layer.path, list(x.shape), dtype, mode, times["fused_ms"], times["original_ms"],
                    layer.choices[mode], cached, times.get(_TRITON) if _TRITON in names else None,
                )
            )  # fmt: skip
    if measured:
        CACHE.add(measured)
    return tuned


def _fastest(
    times: dict[str, float], names: tuple[str, ...], candidate: _Candidate, parts: Parts, x: Tensor
) -> str:  # fmt: skip
    """The fastest that is right: "fused", "triton" or "original"."""
    for name in sorted(names, key=lambda name: (times[name], name)):
        if name == "original_ms":
            break
        if name == "fused_ms" and trial.passed(candidate.layer, parts, x, candidate.original):
            return "fused"
        if name == _TRITON and trial.is_right(candidate.layer, parts, x, candidate.original, "triton"):
            return "triton"
    return "original"


def _candidates(model: nn.Module) -> Iterator[_Candidate]:
    for module in model.modules():
        if isinstance(module, ChainForward):
            for step in module.fused_steps:
                yield _Candidate(
                    step.layer,
                    partial(step.parts, module),
                    partial(step.run_original, module),
                )
        elif isinstance(module, LeadForward) and isinstance(site := module.swapped_site, CallsSite):
            chain: list[Swapped] = [module, *site.followers]  # type: ignore[list-item]
            yield _Candidate(site.layer, partial(getattr, site, "parts"), partial(_call_bases, chain))


def _call_bases(chain: list[Swapped], x: Tensor) -> Tensor:
    for module in chain:
        x = module._ik_base.forward(module, x)
    return x


def _machine(device: torch.device) -> dict[str, Any]:
    """Everything that a measurement depends on besides the layer."""
    try:
        kernels = current_hashes().get(device.type, __version__)
    except FileNotFoundError:
        kernels = __version__
    machine: dict[str, Any] = {
        "torch": torch.__version__,
        "kernels": kernels,
        "backend": backends.forced() or "auto",
        "device": device.type,
    }
    if device.type == "cuda":
        machine["name"] = torch.cuda.get_device_name(device)
    else:
        machine["name"] = _cpu_name()
        machine["isa"] = backends.cpu_isa() if _extension.available else "none"
        machine["threads"] = torch.get_num_threads()
    return machine


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _signature(layer: FusedLayer, parts: Parts, x: Tensor) -> dict[str, Any]:
    window = parts.conv if parts.depthwise is None else parts.depthwise
    return {
        "operator": layer.operator,
        "activations": [layer.input_activation, layer.mid_activation, layer.activation],
        "norm": parts.norm is not None,
        "bias": [window.bias is not None, parts.conv.bias is not None],
        "input": list(x.shape),
        "channels_last": x.is_contiguous(memory_format=torch.channels_last),
        "dtype": str(x.dtype),
        "autocast": torch.is_autocast_enabled(x.device.type),
        "weights": [list(window.weight.shape), list(parts.conv.weight.shape)],
        "geometry": [list(window.stride), str(window.padding), list(window.dilation)],
    }


def _measure(candidate: _Candidate, parts: Parts, x: Tensor, mode: str) -> dict[str, float]:
    """Interleaved medians of all that can run. Statistics of the batch norm are put back afterwards."""
    norm = parts.norm
    kept = [] if norm is None else [(buffer, buffer.clone()) for buffer in norm.buffers()]
    layer = candidate.layer
    contenders: dict[str, Callable[[Tensor], Tensor]] = {
        "fused_ms": partial(_on_backend, partial(trial.forced, layer, parts, x), layer, parts),
        "original_ms": candidate.original,
    }
    if trial.takes_triton(layer, x):
        contenders[_TRITON] = partial(_on_backend, partial(backends.use_backend, "triton"), layer, parts)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    try:
        start = 0.0
        for round_ in range(-1, _ROUNDS):  # round -1 warms up: Triton's kernels are compiled and tuned there
            start = start if round_ > 0 else time.perf_counter()
            for name, contender in contenders.items():
                elapsed = _time(contender, parts, x, mode)
                if round_ >= 0:
                    times[name].append(elapsed)
            if round_ >= 2 and time.perf_counter() - start > _SECONDS:
                break
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
        layer.drop_cache()
    return {name: statistics.median(values) * 1e3 for name, values in times.items()}


def _on_backend(
    chosen: Callable[[], AbstractContextManager[None]], layer: FusedLayer, parts: Parts, x: Tensor
) -> Tensor:  # fmt: skip
    with chosen():
        return layer(x, parts)


def _time(contender: Callable[[Tensor], Tensor], parts: Parts, x: Tensor, mode: str) -> float:
    if mode == "inference":
        with torch.no_grad():
            _synchronize(x)
            start = time.perf_counter()
            contender(x)
            _synchronize(x)
            return time.perf_counter() - start
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        weights = [t for t in parts.tensors() if t is not None and t.requires_grad]
        _synchronize(x)
        start = time.perf_counter()
        y = contender(leaf)
        torch.autograd.grad(y, [leaf, *weights], torch.ones_like(y), allow_unused=True)
        _synchronize(x)
        return time.perf_counter() - start


def _synchronize(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
