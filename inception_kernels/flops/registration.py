"""The formulas' place in `torch.utils.flop_counter`, where an operator without one counts zero, silently.

Importing that module imports Triton where it is installed. So the package does not: the formulas are registered when
somebody else imports it, as everybody must who counts.
"""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

from inception_kernels import _extension
from inception_kernels.flops.formulas import FORMULAS, FROM_VALUES

_COUNTER = "torch.utils.flop_counter"


def _register(counter: ModuleType) -> None:
    for name, formula in FORMULAS.items():
        operator = getattr(torch.ops.inception_kernels, name)
        counter.register_flop_formula(operator, get_raw=formula in FROM_VALUES)(formula)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the counter's module as the other finders do; once it has run, the formulas are registered."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _COUNTER:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Now where the counter's module is there, else as soon as it is. Without compiled operators nothing counts."""
    if not _extension.available:
        return
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _AfterImport())
