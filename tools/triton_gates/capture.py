"""What an operator would launch: its host code runs on meta tensors, its launches are noted and go no further."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from inception_kernels.triton import runtime, tuning

DEVICES = {
    "80": runtime.Device((8, 0), 108, 166912),
    "90": runtime.Device((9, 0), 132, 232448),
    "100": runtime.Device((10, 0), 148, 232448),
}


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel.

    `chosen`: it runs where nothing was measured; `taps`: of the window that its loop flattens, as the choice was told;
    `blocks`: of its grid; `sizes`: the run-time integers by name; `bytes`: of all tensors together, each once.
    """

    arch: str
    source: ASTSource
    options: Any  # triton's own, of this target
    target: GPUTarget
    blocks: int
    chosen: bool
    taps: int
    sizes: dict[str, int]
    bytes: int

    @property
    def name(self) -> str:
        return str(self.source.name)

    @property
    def identity(self) -> tuple[object, ...]:
        """What tells it from others in a table."""
        return (
            self.name, self.arch, str(self.constants), self.types, self.options.num_warps, self.options.num_stages,
        )  # fmt: skip

    @property
    def constants(self) -> dict[str, Any]:
        """The compile-time arguments by name."""
        names = self.source.fn.arg_names
        return {names[path[0]]: value for path, value in self.source.constants.items() if names[path[0]].isupper()}

    @property
    def types(self) -> str:
        """Element types of the arguments by pointer and by descriptor, each once, in order."""
        found = re.findall(r"[*<]k?(\w+?\d+)", " ".join(map(str, self.source.signature.values())))
        return " ".join(dict.fromkeys(found))


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)

    def get_current_stream(self, device: int) -> int:
        return 0


def _bytes(arguments: Sequence[Any]) -> int:
    """Of the tensors among them, given as such or by descriptor; several that share memory count once."""
    tensors = (getattr(each, "base", each) for each in arguments)
    sizes = {
        each.untyped_storage()._cdata: each.numel() * each.element_size()
        for each in tensors
        if isinstance(each, Tensor)
    }
    return sum(sizes.values())


@contextlib.contextmanager
def compiling_for(arch: str) -> Iterator[None]:
    """Inside, Triton and the choice of configurations believe in one such device; nothing can be started on it."""
    device = DEVICES[arch]
    drivers: Any = driver
    active = _Driver(10 * device.capability[0] + device.capability[1])
    with mock.patch.object(drivers, "_active", active), mock.patch.object(runtime, "without_gpu", device):
        yield


@contextlib.contextmanager
def collecting(arch: str) -> Iterator[list[Launch]]:
    """Inside, launches of Triton kernels with every configuration that may be chosen are appended to the list."""
    launches: list[Launch] = []
    run: Any = JITFunction.run
    state: dict[str, Any] = {"chosen": True, "taps": 1}

    def note_grid(self: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> Any:
        state["blocks"] = math.prod(grid)
        state["sizes"] = {
            name: value for name, value in zip(self.arg_names, arguments, strict=False) if type(value) is int
        }
        state["bytes"] = _bytes(arguments)
        return run(self, *arguments, grid=grid, warmup=True, **keywords)

    def note_source(
        self: Any, key: Any, signature: Any, device: Any, constants: Any, options: Any, attributes: Any, warmup: Any
    ) -> None:
        target = self.device_caches[device][-3]
        source = ASTSource(self, signature, constants, attributes)
        launches.append(
            Launch(
                arch, source, options, target, state["blocks"], state["chosen"], state["taps"], state["sizes"],
                state["bytes"],
            )
        )  # fmt: skip

    def every_candidate(
        kernel: str, x: Tensor, shape: Any, candidates: Callable[[], Sequence[Any]], cost: Callable[[Any], float],
        launch: Callable[[Any], Tensor], taps: int = 1,
    ) -> Any:  # fmt: skip
        chosen, *others = tuning.order(candidates(), cost, taps)
        before, state["chosen"] = state["chosen"], False
        for each in others:
            state["taps"] = taps
            launch(each)
        state["chosen"], state["taps"] = before, taps
        return chosen  # which the caller launches

    with (
        compiling_for(arch),
        mock.patch.object(JITFunction, "run", note_grid),
        mock.patch.object(JITFunction, "_do_compile", note_source),
        mock.patch.object(tuning, "choose", every_candidate),
    ):
        yield launches
