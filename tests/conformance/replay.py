"""All cases, recordings of a GPU on disk, and running a case on the host."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import host_cuda
import numpy as np
import torch

from conformance import arithmetic, copies, products
from conformance.case import Case, Words

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "recorded"  # <device>.npz, written by `make gpu`
SOURCES = (HERE / "conformance.cu", HERE / "conformance_sm90.cu")


def all_cases(seed: int = 0) -> list[Case]:
    groups = (products.cases, copies.cases, arithmetic.cases)
    return [case for make in groups for case in make(np.random.default_rng(seed))]


def recordings() -> list[Path]:
    return sorted(FOLDER.glob("*.npz"))


def recorded(case: Case, got: Words) -> Case:
    return dataclasses.replace(case, expected=got)


def save(path: Path, cases: Iterable[Case]) -> None:
    """`expected` of each case is what the device did."""
    arrays: dict[str, Any] = {}
    index = []
    for number, case in enumerate(cases):
        index.append({**_facts(case), "initial": case.initial is not None})
        arrays[f"input{number}"], arrays[f"output{number}"] = case.input, case.expected
        if case.initial is not None:
            arrays[f"initial{number}"] = case.initial
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, index=np.array(json.dumps(index)), **arrays)


def load(path: Path) -> Iterator[Case]:
    with np.load(path) as arrays:
        for number, facts in enumerate(json.loads(str(arrays["index"]))):
            initial = arrays[f"initial{number}"] if facts.pop("initial") else None
            numbers = tuple(facts.pop("numbers"))
            given, wanted = arrays[f"input{number}"], arrays[f"output{number}"]
            yield Case(**facts, numbers=numbers, input=given, expected=wanted, initial=initial)


def _facts(case: Case) -> dict[str, Any]:
    return {field: getattr(case, field) for field in ("label", "name", "sm", "numbers", "tolerance")}


def load_host() -> host_cuda.Host:
    host = host_cuda.build("conformance", SOURCES, HERE / "bind_conformance.cpp", checked=False)
    host.context(sm=90)
    return host


def run_on_host(host: host_cuda.Host, case: Case) -> Words:
    given, result = tensors(case)
    host.run(case.name, list(case.numbers), given, result)
    return result.numpy().view(np.uint32)


def tensors(case: Case, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """The input, and the output as it is before the run."""
    before = np.zeros_like(case.expected) if case.initial is None else case.initial
    given, result = (torch.from_numpy(words.astype(np.uint32).view(np.int32)) for words in (case.input, before))
    return given.to(device), result.clone().to(device)
