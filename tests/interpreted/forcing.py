"""Force the configurations that predictions would not choose for small shapes."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from inception_kernels.triton import tuning


@contextmanager
def forced(**configurations: Any) -> Iterator[Counter[str]]:
    """Inside, the named kernels run as they are told, all others as they choose; yields how often each was told."""
    told: Counter[str] = Counter()
    original = tuning.choose

    def choose(kernel: str, *arguments: Any, **keywords: Any) -> Any:
        if kernel in configurations:
            told[kernel] += 1
            return configurations[kernel]
        return original(kernel, *arguments, **keywords)

    with mock.patch.object(tuning, "choose", choose):
        yield told
    assert set(told) == set(configurations), f"told {dict(told)} of {set(configurations)}"
