"""What one module does to its input, as far as the operators can do it: convolution, batch norm, activation.

A module is described by the list of these steps ("atoms") that its `forward` performs one after the other, or
by None where it does anything else. Atoms hold the module that owns the parameters, so structure is matched
whatever the attributes are called.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

ACTIVATION_TYPES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.ELU: "elu",
    nn.SiLU: "silu",
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Conv:
    module: nn.Conv2d
    path: str


@dataclass(frozen=True)
class Norm:
    module: nn.BatchNorm2d
    path: str


@dataclass(frozen=True)
class Activation:
    """`path` is None where `forward` calls a function; `inplace` changes what other readers of x see."""

    kind: str
    inplace: bool
    path: str | None = None


Atom = Conv | Norm | Activation


@dataclass
class Unit:
    """One call in a forward: of a module (`module`, its `path`) or of an activation function.

    `atoms` is None where the call does something that the operators cannot.
    """

    path: str | None
    module: nn.Module | None
    atoms: list[Atom] | None
    fresh: bool = False  # the result never shares memory with the argument

    @property
    def members(self) -> list[tuple[str, nn.Module]]:
        """Every module that the call runs."""
        if self.module is None or self.path is None:
            return []
        return list(self.module.named_modules(prefix=self.path))


@dataclass
class Group:
    """Consecutive calls that one operator replaces."""

    operator: str
    units: list[Unit]
    depthwise: Conv | None
    conv: Conv
    norm: Norm | None
    input_activation: str = "none"
    mid_activation: str = "none"
    activation: str = "none"
    notes: list[str] = field(default_factory=list)

    @property
    def convolutions(self) -> list[Conv]:
        return [self.conv] if self.depthwise is None else [self.depthwise, self.conv]

    @property
    def path(self) -> str:
        """The first call with a convolution in it: what a reader of the model would call this layer."""
        for unit in self.units:
            if unit.path is not None and any(isinstance(atom, Conv) for atom in unit.atoms or []):
                return unit.path
        return self.conv.path


def activation_of(module: nn.Module) -> tuple[str, bool] | None:
    """(name, inplace) of a supported activation module, None for any other module."""
    kind = ACTIVATION_TYPES.get(type(module))
    if kind is None or (isinstance(module, nn.ELU) and module.alpha != 1.0):
        return None
    return kind, bool(getattr(module, "inplace", False))


def is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels


def is_pointwise(conv: nn.Conv2d) -> bool:
    return (
        conv.groups == 1
        and tuple(conv.kernel_size) == (1, 1)
        and tuple(conv.stride) == (1, 1)
        and numeric_padding(conv) == (0, 0)
    )


def numeric_padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """(height, width) padding on each side; None where "same" pads the two sides differently."""
    if isinstance(conv.padding, str):
        if conv.padding == "valid":
            return 0, 0
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return None if any(t % 2 for t in total) else (total[0] // 2, total[1] // 2)
    return conv.padding[0], conv.padding[1]


def batch_counter(norm: nn.BatchNorm2d) -> torch.Tensor | None:
    """What the next batch is counted in; None where none is."""
    if not (norm.training and norm.track_running_stats):
        return None
    # nn.Module.__getattr__ formats a message on the way to a buffer: this is asked in every step.
    return norm._buffers.get("num_batches_tracked")


def frozen(settings: tuple[object, ...]) -> tuple[object, ...]:
    """To be compared with later settings: a list, which may change in place, equals none."""
    return tuple(tuple(each) if isinstance(each, list) else each for each in settings)
