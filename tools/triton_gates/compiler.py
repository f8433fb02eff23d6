"""Compile what was launched and read it: each distinct kernel once, kept by the text that the compiler was given.

Results lie in build/triton_kernels, one file per kernel, written in one step: a run that is cut short goes on where it
was, runs side by side share what they have, and a changed kernel costs its own compilations only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

import triton
from triton import knobs
from triton.compiler import compile as compile_source
from triton.compiler import make_backend

from tools.cubin_gates.compiler import ROOT
from tools.triton_gates.capture import Launch
from tools.triton_gates.read import Reading, read

CACHE = ROOT / "build" / "triton_kernels"
# Of read(), by architecture: another number where it finds something else in the same machine code.
_READER = {"80": 3, "90": 3, "100": 4}


def distinct(launches: Iterable[Launch], found: dict[str, Launch] | None = None) -> dict[str, Launch]:
    """One launch for each kernel that Triton would compile at run time, added to `found`."""
    found = {} if found is None else found
    for each in launches:
        key = f"{each.arch} {each.source.hash()} {each.options.hash()}"
        if key not in found or (each.chosen and not found[key].chosen):
            found[key] = each
    return found


def readings(launches: Sequence[Launch], jobs: int = 1) -> Iterator[tuple[str, Reading]]:
    """The kernel of each of these launches, in order, with a key of what the compiler sees."""
    if jobs == 1:
        yield from map(_reading, launches)
        return
    # Forked: launches hold functions of Triton's that cannot be sent to another process.
    global _of_workers
    _of_workers = launches
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        yield from pool.map(_work, range(len(launches)), chunksize=2)


def kept(launches: Iterable[Launch]) -> dict[str, Reading | None]:
    """Each distinct kernel's reading by its key where it has been compiled before, else None."""
    return {key: _kept(key) for key in map(_key, launches)}


_of_workers: Sequence[Launch] = ()


def _work(index: int) -> tuple[str, Reading]:
    return _reading(_of_workers[index])


def _key(launch: Launch) -> str:
    """Of the kernel as Triton's front end writes it, the target and the options: names of variables do not matter."""
    from triton._C.libtriton import ir

    backend: Any = make_backend(launch.target)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    generated = launch.source.make_ir(
        launch.target, launch.options, backend.get_codegen_implementation(launch.options), backend.get_module_map(),
        context,
    )  # fmt: skip
    parts = (triton.__version__, str(_READER[launch.arch]), launch.arch, launch.options.hash(), generated.str_nodebug())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _kept(key: str) -> Reading | None:
    path = CACHE / f"{key}.json"
    return Reading(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _reading(launch: Launch) -> tuple[str, Reading]:
    key = _key(launch)
    known = _kept(key)
    if known is not None:
        return key, known
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(knobs.cache, "dir", folder):
        compiled: Any = compile_source(launch.source, target=launch.target, options=launch.options.__dict__)
        reading = read(launch, compiled)
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{key}.json"
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(dataclasses.asdict(reading)), encoding="utf-8")
    partial.replace(path)
    return key, reading
