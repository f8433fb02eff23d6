"""Small models with the structures that a swap meets, and how gradients are compared."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class BasicConv2d(nn.Module):
    """Convolution, batch norm and a ReLU that is a function."""

    def __init__(self, in_channels: int, out_channels: int, window=3, inplace: bool = True, **options) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, window, bias=False, **options)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = self.bn(x)
        return F.relu(x, inplace=self.inplace)


class Branches(nn.Module):
    """A small Inception: a pair of asymmetric windows beside a 1x1, concatenated, then pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = BasicConv2d(3, 8, stride=2)
        self.left_1 = BasicConv2d(8, 6, (1, 5), padding=(0, 2))
        self.left_2 = BasicConv2d(6, 8, (5, 1), padding=(2, 0))
        self.right = BasicConv2d(8, 4, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([self.left_2(self.left_1(x)), self.right(x)], 1)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Separable(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, **options) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False, **options)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.conv1(x))


class Block(nn.Module):
    """Xception's residual block; `shared_relu` is one object for every place, as in Cadene's port."""

    def __init__(
        self, in_channels: int, out_channels: int, first_inplace: bool = False, shared_relu: bool = False
    ) -> None:
        super().__init__()
        self.skip = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
        self.skipbn = nn.BatchNorm2d(out_channels)
        relu = nn.ReLU(inplace=True)
        self.rep = nn.Sequential(
            nn.ReLU(inplace=first_inplace),
            Separable(in_channels, out_channels),
            nn.BatchNorm2d(out_channels),
            relu if shared_relu else nn.ReLU(inplace=True),
            Separable(out_channels, out_channels),
            nn.BatchNorm2d(out_channels),
            relu if shared_relu else nn.ReLU(inplace=True),
            Separable(out_channels, out_channels),
            nn.BatchNorm2d(out_channels),
            nn.MaxPool2d(3, 2, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.rep(x)
        y += self.skipbn(self.skip(x))
        return y


class Residual(nn.Module):
    """A small Xception: stem and tail are attributes that the model's forward calls one by one."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.act1 = nn.ReLU(inplace=True)
        self.block = Block(8, 12, **options)
        self.conv3 = Separable(12, 16)
        self.bn3 = nn.BatchNorm2d(16)
        self.act3 = nn.ReLU(inplace=True)
        self.fc = nn.Linear(16, 5)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.act1(x)
        x = self.block(x)
        return self.act3(self.bn3(self.conv3(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def conv_bn(conv: nn.Module, norm: nn.Module | None = None, *more: nn.Module) -> nn.Sequential:
    """conv -> batch norm -> `more` (ReLU where there is none) in a Sequential."""
    norm = nn.BatchNorm2d(getattr(conv, "out_channels", 8)) if norm is None else norm
    parts = [("conv", conv), ("bn", norm)]
    parts += [(f"more{index}", module) for index, module in enumerate(more or (nn.ReLU(),))]
    return nn.Sequential(OrderedDict(parts))


def gradient_distances(model: nn.Module, plain: nn.Module, exact: nn.Module) -> tuple[float, float]:
    """How far the whole gradients of `model` and `plain` are from that of `exact`, relative to its length.

    One vector of all parameters: rounding of one layer reaches all those before it, and a single small gradient may
    be near exact by luck. That each gradient is the right one is tested in float64.
    """
    wide = torch.cat([parameter.grad.flatten() for parameter in exact.parameters()])
    ours, theirs = (
        (
            (torch.cat([parameter.grad.flatten() for parameter in candidate.parameters()]) - wide).norm() / wide.norm()
        ).item()
        for candidate in (model, plain)
    )
    return ours, theirs


def assert_gradients_as_accurate(model: nn.Module, plain: nn.Module, exact: nn.Module) -> None:
    """The whole gradient's distance from float64: at most twice that of PyTorch in the same dtype and layout."""
    ours, theirs = gradient_distances(model, plain, exact)
    floor = 4 * torch.finfo(next(model.parameters()).dtype).eps
    assert ours <= 2 * theirs + floor, f"ours {ours:.3e}, PyTorch's {theirs:.3e}"
