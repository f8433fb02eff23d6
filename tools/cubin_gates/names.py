"""Names of kernels for people."""

from __future__ import annotations

import subprocess


def demangle(names: list[str]) -> list[str]:
    try:
        done = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return names
    return [_shorter(name) for name in done.stdout.splitlines()]


def _shorter(name: str) -> str:
    for prefix in ("ik::cuda::", "(anonymous namespace)::"):
        name = name.replace(prefix, "")
    return name.removeprefix("void ")
