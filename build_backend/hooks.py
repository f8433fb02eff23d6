"""PEP 517 and 660 hooks: setuptools' own, plus torch as a build requirement only where the target has none."""

from __future__ import annotations

from typing import Any

from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from build_backend import toolchain, torch_lookup

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    toolchain.require_toolchain()
    if torch_lookup.find_torch() is not None:
        return []
    if torch_lookup.inside_uv_isolation():
        raise SystemExit(torch_lookup.explain_missing())
    return [torch_lookup.REQUIREMENT]


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return get_requires_for_build_wheel(config_settings)
