"""Everything that a run needs to go on as if it had never stopped, in one file."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write the state, so that the file holds either the old state or the new one, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(path.suffix + ".partial")
    with beside.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a state: tensors and plain values only, so that a file from elsewhere runs no code.

    Raises:
        ValueError: there is no such file, it is no checkpoint of ours, or of another version.
    """
    if not path.is_file():
        raise ValueError(f"{path}: expected a checkpoint, found no file")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: expected a checkpoint of this trainer: {error}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"{path}: expected a checkpoint of this trainer, got another file of torch.save")
    if state["format"] != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT}, got {state['format']}; read it with the version it is from"
        )
    return state


def check_settings(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raise ValueError that lists the settings in which a run differs from the one that it should continue."""
    differences = [
        f"{name} (expected {saved.get(name)!r}, got {asked.get(name)!r})"
        for name in sorted(saved.keys() | asked.keys())
        if saved.get(name) != asked.get(name)
    ]
    if differences:
        raise ValueError(f"{path}: cannot go on with other settings: {'; '.join(differences)}")


def random_state() -> dict[str, torch.Tensor]:
    """The state of torch's global random numbers in this process, which dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, torch.Tensor]) -> None:
    """What `random_state` returned."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
