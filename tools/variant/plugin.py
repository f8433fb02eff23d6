"""A pytest plugin: runs against one variant's build only, and takes a random part of the cases."""

from __future__ import annotations

import os
import random

import pytest

import inception_kernels


def pytest_sessionstart(session: pytest.Session) -> None:
    folder = os.environ["IK_VARIANT_FOLDER"]
    if not inception_kernels.__file__.startswith(folder):
        raise pytest.UsageError(f"expected the package under {folder}, got {inception_kernels.__file__}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, seed = os.environ["IK_VARIANT_SAMPLE"].split(":")
    generator = random.Random(int(seed))
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        (kept if generator.random() < float(part) else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept
