"""How a fused layer lives in a model: the class of a module that exists is reassigned to a generated subclass.

That keeps what replacing children or binding a new `forward` loses: the module and parameter objects, state_dict
keys, hooks on the outer module, `isinstance`, deep copies, pickles and DataParallel replicas.

- `ChainForward`: the module's forward is a chain of calls (an `nn.Sequential`, a conv-bn-relu block); the new
  forward runs the planned groups fused and calls the rest. Children stay untouched, so that indexing, slicing or
  calling them directly gives what it always gave.
- `LeadForward`, `FollowForward`: the calling forward is arbitrary Python. The first module of a group computes all
  of it, the others hand their argument on if, and only if, it is the very tensor that their leader just made.
- `PoolForward` (in `pools`): a pool that runs an operator on the CPU.
"""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from copyreg import __newobj__  # type: ignore[attr-defined]
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .caches import DropsCaches
from .runtime import FusedLayer, Parts

SITE = "_ik_site"
_classes: dict[tuple[type[nn.Module], type[Swapped]], type[nn.Module]] = {}
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {"relu": F.relu, "relu6": F.relu6, "elu": F.elu, "silu": F.silu}


def fused_class(base: type[nn.Module], behaviour: type[Swapped]) -> type[nn.Module]:
    """The subclass of `base` with this behaviour; one per pair, made on first use."""
    key = (base, behaviour)
    if key not in _classes:
        metaclass: Any = type(base)
        members = {"__module__": __name__, "_ik_base": base}
        _classes[key] = metaclass(f"Fused{base.__name__}", (behaviour, base), members)
    return _classes[key]


def _rebuild(base: type[nn.Module], behaviour: type[Swapped], *arguments: Any) -> nn.Module:
    cls = fused_class(base, behaviour)
    return cls.__new__(cls, *arguments)


def behaviour_of(module: nn.Module) -> type[Swapped] | None:
    """The behaviour that `fused_class` gave this module's class; None if something subclassed it since."""
    for (_, behaviour), cls in _classes.items():
        if type(module) is cls:
            return behaviour
    return None


def descend(root: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    module: nn.Module | None = root
    for name in names:
        module = None if module is None else module._modules.get(name)
    return module


@dataclass(frozen=True)
class CallStep:
    """Call a child as the original forward does."""

    names: tuple[str, ...]

    def __call__(self, root: nn.Module, x: Any) -> Any:
        child = descend(root, self.names)
        if child is None:  # as nn.Module raises for `self.name`
            raise AttributeError(f"{type(root).__name__!r} object has no attribute {'.'.join(self.names)!r}")
        return child(x)


@dataclass(frozen=True)
class FunctionStep:
    """Call an activation function as the original forward does."""

    kind: str
    inplace: bool

    def __call__(self, root: nn.Module, x: Any) -> Any:
        return _FUNCTIONS[self.kind](x, inplace=self.inplace)


Original = tuple[CallStep | FunctionStep, ...]


@dataclass(frozen=True)
class FusedStep:
    """A group: child paths of its convolutions and batch norm, of everything it bypasses, and the original calls."""

    layer: FusedLayer
    depthwise: tuple[str, ...] | None
    conv: tuple[str, ...]
    norm: tuple[str, ...] | None
    members: tuple[tuple[tuple[str, ...], type[nn.Module]], ...]
    original: Original

    def parts(self, root: nn.Module) -> Parts | None:
        """The modules as they are now; None where one was removed or replaced by another kind."""
        members = []
        for names, kind in self.members:
            module = descend(root, names)
            if module is None or type(module) is not kind:
                return None
            members.append(module)
        depthwise = None if self.depthwise is None else descend(root, self.depthwise)
        norm = None if self.norm is None else descend(root, self.norm)
        return Parts(depthwise, descend(root, self.conv), norm, tuple(members))  # type: ignore[arg-type]

    def __call__(self, root: nn.Module, x: Any) -> Any:
        parts = self.parts(root)
        reason = "a module inside it was replaced" if parts is None else self.layer.blocked(x, parts)
        if parts is not None and reason is None:
            return self.layer(x, parts)
        self.layer.ran_original(reason or "")
        return self.run_original(root, x)

    def run_original(self, root: nn.Module, x: Any) -> Any:
        for step in self.original:
            x = step(root, x)
        return x


@dataclass(frozen=True)
class ChainSite:
    """`children`: names in the module when it was swapped; `append`, `insert` and the like change them."""

    path: str
    steps: tuple[CallStep | FunctionStep | FusedStep, ...]
    children: tuple[str, ...]

    @property
    def layers(self) -> list[FusedLayer]:
        return [step.layer for step in self.steps if isinstance(step, FusedStep)]


class PoolSite:
    """Path and last call of a pool: ("operator" or "original", why). Copies and pickles carry the path only."""

    layers: tuple[()] = ()

    def __init__(self, path: str) -> None:
        self.path = path
        self.last: tuple[str, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "last": None}


_thread = threading.local()  # .made: CallsSite -> [weak reference to the leader's last result, next follower]


class CallsSite:
    """The modules of one group that an arbitrary forward calls one after the other.

    `links`: (parent, name, module) for each module of the group; a replaced child shows there. `scope` is the
    module whose forward makes the calls: a copy that leaves it behind (`copy.deepcopy(model.conv1)`) is no group.
    """

    def __init__(
        self,
        path: str,
        layer: FusedLayer,
        scope: nn.Module,
        parts: Parts,
        followers: list[nn.Module],
        links: list[tuple[nn.Module, str, nn.Module]],
    ) -> None:
        self.path = path
        self.layer = layer
        self.scope: nn.Module | None = scope
        self.parts: Parts | None = parts
        self.followers = followers
        self.links = links
        self.misused = False

    @property
    def layers(self) -> list[FusedLayer]:
        return [self.layer]

    def __deepcopy__(self, memo: dict[int, Any]) -> CallsSite:
        new = CallsSite.__new__(CallsSite)
        memo[id(self)] = new
        if id(self.scope) in memo:
            new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        else:
            new.__dict__.update(self.__dict__, scope=None, parts=None, followers=[], links=[])
            new.layer = copy.deepcopy(self.layer, memo)
        return new

    def _blocked(self, x: Any) -> str | None:
        if self.parts is None:
            return "this is a copy without the modules that follow it"
        if self.misused:
            return "a caller did not run the modules that follow it"
        for parent, name, module in self.links:
            if parent._modules.get(name) is not module:
                return f"module {name} was replaced"
        return self.layer.blocked(x, self.parts)

    def lead(self, x: Any) -> Tensor | None:
        """The result of the whole group, or None where the original modules must run."""
        reason = self._blocked(x)
        if torch.compiler.is_compiling():
            return None if reason is not None else self._run(x)
        pending = self._pending().pop(self, None)
        if pending is not None and pending[1] < len(self.followers):
            self.misused = True
            reason = "a caller did not run the modules that follow it"
            warnings.warn(
                f"{self.path}: its result already included what follows it in the model's forward, and the caller did "
                "not run that. The original modules run from now on; unswap the model to call parts of it directly.",
                RuntimeWarning,
                stacklevel=4,
            )
        if reason is not None:
            self.layer.ran_original(reason)
            return None
        y = self._run(x)
        self._pending()[self] = [weakref.ref(y), 0]
        return y

    def _run(self, x: Tensor) -> Tensor:
        assert self.parts is not None
        return self.layer(x, self.parts)

    def follow(self, follower: nn.Module, x: Any) -> bool:
        """Whether x already holds what `follower` would do to it."""
        if torch.compiler.is_compiling():
            return self._blocked(x) is None
        pending = self._pending().get(self)
        if pending is None or pending[0]() is not x or x is None:
            return False
        if pending[1] >= len(self.followers) or self.followers[pending[1]] is not follower:
            return False
        pending[1] += 1
        return True

    @staticmethod
    def _pending() -> weakref.WeakKeyDictionary[CallsSite, list[Any]]:
        if not hasattr(_thread, "made"):
            _thread.made = weakref.WeakKeyDictionary()
        return _thread.made


class Swapped(DropsCaches):
    """Marks a module whose class was reassigned; its own class is `_ik_base`, its plan `_ik_site`."""

    _ik_base: type[nn.Module]

    @property
    def swapped_site(self) -> ChainSite | CallsSite | PoolSite | None:
        """None in a module made from this class later, as slicing an `nn.Sequential` does: a plain `_ik_base`."""
        return self.__dict__.get(SITE)

    @property
    def swapped_layers(self) -> list[FusedLayer]:
        """The fused layers that are executed here."""
        site = self.swapped_site
        return [] if site is None else list(site.layers)

    def swapped_members(self) -> Iterator[nn.Module]:
        """The modules that belong to the groups executed here."""
        raise TypeError(f"{type(self).__name__} was not made by swap")

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        behaviour = behaviour_of(self)
        if behaviour is None or not isinstance(reduced, tuple) or reduced[0] is not __newobj__:
            return reduced
        # Generated classes have no importable name: name the pair that makes them instead.
        return (_rebuild, (self._ik_base, behaviour, *reduced[1][1:]), *reduced[2:])

    def _caches(self) -> list[FusedLayer]:
        return self.swapped_layers


class ChainForward(Swapped):
    @property
    def fused_steps(self) -> list[FusedStep]:
        site = self.swapped_site
        return [step for step in site.steps if isinstance(step, FusedStep)] if isinstance(site, ChainSite) else []

    def swapped_members(self) -> Iterator[nn.Module]:
        for step in self.fused_steps:
            for names, _ in step.members:
                member = descend(self, names)
                if member is not None:
                    yield member

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        site = self.__dict__.get(SITE)
        if len(args) != 1 or kwargs or site is None or tuple(self._modules) != site.children:
            return super().forward(*args, **kwargs)
        x = args[0]
        for step in site.steps:
            x = step(self, x)
        return x


class _Called(Swapped):
    def swapped_members(self) -> Iterator[nn.Module]:
        yield from self.modules()

    def _group(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CallsSite | None:
        """The group, where this call may belong to it."""
        if len(args) != 1 or kwargs or self.__dict__.get("_is_replica"):
            return None
        if isinstance(args[0], fx.Proxy):
            raise TypeError(
                f"torch.fx cannot trace a swapped {self._ik_base.__name__}: unswap(model), trace, then swap the result"
            )
        return self.__dict__.get(SITE)


class LeadForward(_Called):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        group = self._group(args, kwargs)
        y = None if group is None else group.lead(args[0])
        return super().forward(*args, **kwargs) if y is None else y


class FollowForward(_Called):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        group = self._group(args, kwargs)
        if group is not None and group.follow(self, args[0]):
            return args[0]
        return super().forward(*args, **kwargs)


def _inlined_only(*functions: Any) -> None:
    """Dynamo takes these into the graph of who calls them and never compiles one of them by itself.

    Otherwise, where it cannot compile the forward that calls the modules of a group, it compiles module by module and
    may give up on some: a compiled leader would hand nothing on to an eager follower.
    """
    from torch._C._dynamo import eval_frame  # there without torch._dynamo, which is slow to load

    if not hasattr(eval_frame, "set_code_exec_strategy"):  # 2.11 to 2.14 have it; what torch keeps for itself may go
        return
    skip = eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT)
    for function in functions:
        eval_frame.set_code_exec_strategy(function.__code__, skip)


_inlined_only(
    LeadForward.forward, FollowForward.forward, _Called._group, CallsSite.lead, CallsSite.follow, CallsSite._blocked,
    CallsSite._run, CallsSite._pending, FusedLayer.blocked,
)  # fmt: skip
