"""PEP 517 and 660 hooks: setuptools' own, plus torch as a requirement only where the target has none."""

from __future__ import annotations

from typing import Any

from setuptools import build_meta
from setuptools.build_meta import build_editable, build_sdist, build_wheel, get_requires_for_build_sdist

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


# Installers ask for metadata before they download dependencies: the moment to say what is missing.


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Any = None) -> str:
    _require_everything()
    return build_meta.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(metadata_directory: str, config_settings: Any = None) -> str:
    _require_everything()
    return build_meta.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def _require_everything() -> None:
    toolchain.require_setuptools()
    toolchain.require_toolchain()
    torch_lookup.require_torch()
