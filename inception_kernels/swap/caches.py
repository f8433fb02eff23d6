"""Modules that keep copies of their weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


class DropsCaches(nn.Module):
    """Forgets them where weights are about to change or move, so that they take no memory then."""

    def _caches(self) -> Iterable[Any]:
        """The `FusedLayer`s and `PreparedCache`s of this module, without its children's."""
        return ()

    def _drop_caches(self) -> None:
        for cache in self._caches():
            cache.drop_cache()

    def train(self, mode: bool = True) -> Any:
        self._drop_caches()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._drop_caches()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drop_caches()
        super()._load_from_state_dict(*args, **kwargs)
