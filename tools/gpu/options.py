"""What every step is told, and how it answers."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULT = "result.json"
KEEP = "keep"  # what to commit: copy it over the repository


@dataclass(frozen=True)
class Options:
    """`seconds` is the time this step has: one that can stop early should."""

    output: Path
    quick: bool
    rehearse: bool
    seconds: float
    what: str = ""

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def kept(self, path: str) -> Path:
        """Where to put a file that belongs into the repository at `path`: the run's folder `keep` is laid out alike."""
        file = self.output.parent / KEEP / path
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def write(self, summary: str, **data: Any) -> None:
        """The step's result so far; replaces what it wrote before. `summary` is one line for people."""
        self.output.mkdir(parents=True, exist_ok=True)
        partial = self.output / f"{RESULT}.partial"
        partial.write_text(json.dumps({"summary": summary, **data}, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.output / RESULT)


def parse(arguments: list[str] | None = None) -> Options:
    """The command line of a step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", default="")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--seconds", type=float, default=600.0)
    found = parser.parse_args(arguments)
    return Options(found.output, found.quick, found.rehearse, found.seconds, found.what)
