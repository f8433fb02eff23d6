"""Other builds of the CPU extension, each in a folder of its own, and the operators' tests on one of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("csrc", "build_backend", "inception_kernels", "setup.py", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Variant:
    """A build under `build/<name>`; the installed package stays as it is."""

    name: str
    flags: str
    """For the compiler."""
    link_flags: str = ""
    compiler: str = "g++"
    tests: tuple[str, ...] = ()
    """Names of the test files, without `test_`, that run where none are given."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Of the tests' process."""

    @property
    def folder(self) -> Path:
        return ROOT / "build" / self.name

    def build(self) -> None:
        for name in COPIED:
            source, target = ROOT / name, self.folder / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)  # keeps times: only changes compile
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        environment = os.environ | {
            "CXX": self.compiler, "CXXFLAGS": self.flags, "LDFLAGS": self.link_flags, "IK_BUILD": "cpu"
        }  # fmt: skip
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=self.folder, env=environment, check=True)

    def test(self, arguments: Sequence[str], sample: float = 1.0, seed: int = 0) -> int:
        """pytest's exit code. sample: the part of the cases that runs; seed: which ones."""
        environment = os.environ | self.environment | {
            "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)]),
            "IK_VARIANT_FOLDER": str(self.folder),
            "IK_VARIANT_SAMPLE": f"{sample}:{seed}",
        }  # fmt: skip
        given = [str(Path(a).resolve()) if Path(a.split("::")[0]).exists() else a for a in arguments]
        paths = [a for a in given if Path(a.split("::")[0]).exists()]
        options = [a for a in given if a not in paths]
        paths = paths or [str(ROOT / "tests" / f"test_{name}.py") for name in self.tests]
        command = [
            sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider",
            "-p", "tools.variant.plugin", *options, *paths,
        ]  # fmt: skip
        # From the build's folder: an interpreter looks for packages where it was started.
        return subprocess.run(command, cwd=self.folder, env=environment).returncode
