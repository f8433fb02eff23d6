"""The modules of "Rethinking the Inception Architecture for Computer Vision" (arXiv:1512.00567), one class per figure.

They are built from the fused operators through :mod:`inception_kernels.nn`; under ``use_backend("reference")`` the same
modules run in plain PyTorch. The paper prints no channel counts for single branches: the defaults are those of the
released ImageNet network, and every count is an argument, so that any width can be built. Every convolution is
followed by BN (eps 1e-3) and ReLU. Inputs are ``[N, C, H, W]``; ``out_channels`` of a module tells what it makes.
The network itself, in plain ``torch.nn`` with the released structure: :mod:`inception_kernels.models.inception_v3`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inception_kernels.models.factorization import SmallWindows
from inception_kernels.nn import AsymmetricPair, ConvBNAct


class _Pool(nn.Module):
    """The pooling branch of figures 4 to 7: 3 x 3 average at stride 1, then 1 x 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.average = nn.AvgPool2d(3, stride=1, padding=1)
        self.point = ConvBNAct(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.average(x))


class _Concatenation(nn.Module):
    """Branches that read one input, concatenated along the channels."""

    def __init__(self, branches: dict[str, nn.Module], out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.branches = nn.ModuleDict(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches.values()], 1)


class InceptionOriginal(_Concatenation):
    """Figure 4: the module of GoogLeNet that the paper starts from. 1x1; 1x1 -> 3x3; 1x1 -> 5x5; pool -> 1x1.

    Args:
        in_channels: C.
        point, single, double, pool: output channels of the four branches; ``single`` and ``double`` are (after the
            1 x 1, at the end).
    """

    def __init__(
        self,
        in_channels: int,
        point: int = 64,
        single: tuple[int, int] = (64, 96),
        double: tuple[int, int] = (48, 64),
        pool: int = 32,
    ) -> None:
        branches = {
            "point": ConvBNAct(in_channels, point, 1),
            "single": nn.Sequential(ConvBNAct(in_channels, single[0], 1), ConvBNAct(*single, 3, padding=1)),
            "stacked": nn.Sequential(ConvBNAct(in_channels, double[0], 1), ConvBNAct(*double, 5, padding=2)),
            "pooled": _Pool(in_channels, pool),
        }
        super().__init__(branches, point + single[-1] + double[-1] + pool)


class InceptionA(_Concatenation):
    """Figure 5: the 5 x 5 of figure 4 as two 3 x 3. 1x1; 1x1 -> 3x3; 1x1 -> 3x3 -> 3x3; pool -> 1x1. For 35 x 35 grids.

    Args:
        in_channels: C.
        point, single, double, pool: output channels; ``single`` is (after the 1 x 1, at the end), ``double`` (after the
            1 x 1, between, at the end).
        mid_activation: between the two 3 x 3; "none" for the ablation of figure 2.
    """

    def __init__(
        self,
        in_channels: int,
        point: int = 64,
        single: tuple[int, int] = (48, 64),
        double: tuple[int, int, int] = (64, 96, 96),
        pool: int = 64,
        mid_activation: str = "relu",
    ) -> None:
        reduced, between, last = double
        branches = {
            "point": ConvBNAct(in_channels, point, 1),
            "single": nn.Sequential(ConvBNAct(in_channels, single[0], 1), ConvBNAct(*single, 3, padding=1)),
            "stacked": nn.Sequential(
                ConvBNAct(in_channels, reduced, 1),
                SmallWindows(reduced, last, 5, mid_channels=between, mid_activation=mid_activation),
            ),
            "pooled": _Pool(in_channels, pool),
        }
        super().__init__(branches, point + single[-1] + last + pool)


class InceptionB(_Concatenation):
    """Figure 6: n x n as 1 x n -> n x 1, once and twice in a row. For 17 x 17 grids, where the paper chose n = 7.

    Args:
        in_channels: C.
        n: odd length of the asymmetric windows.
        mid: channels inside of the two asymmetric branches.
        out: output channels of each of the four branches.
    """

    def __init__(self, in_channels: int, n: int = 7, mid: int = 128, out: int = 192) -> None:
        branches = {
            "point": ConvBNAct(in_channels, out, 1),
            "single": nn.Sequential(ConvBNAct(in_channels, mid, 1), AsymmetricPair(mid, mid, out, n)),
            "stacked": nn.Sequential(
                ConvBNAct(in_channels, mid, 1),
                AsymmetricPair(mid, mid, mid, n),
                AsymmetricPair(mid, mid, out, n),
            ),
            "pooled": _Pool(in_channels, out),
        }
        super().__init__(branches, 4 * out)


class _Fan(nn.Module):
    """The expanded filter bank of figure 7: 1 x 3 and 3 x 1 side by side on one input, concatenated."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.wide = ConvBNAct(in_channels, out_channels, (1, 3), padding=(0, 1))
        self.high = ConvBNAct(in_channels, out_channels, (3, 1), padding=(1, 0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.wide(x), self.high(x)], 1)


class InceptionC(_Concatenation):
    """Figure 7: filter bank fanned out, for high-dimensional representations on 8 x 8 grids (section 2, principle 2).

    1x1; 1x1 -> (1x3, 3x1); 1x1 -> 3x3 -> (1x3, 3x1); pool -> 1x1.

    Args:
        in_channels: C.
        point, pool: output channels of these branches.
        single: (after the 1 x 1, of each half of the fan).
        double: (after the 1 x 1, after the 3 x 3, of each half of the fan).
    """

    def __init__(
        self,
        in_channels: int,
        point: int = 320,
        single: tuple[int, int] = (384, 384),
        double: tuple[int, int, int] = (448, 384, 384),
        pool: int = 192,
    ) -> None:
        reduced, between, last = double
        branches = {
            "point": ConvBNAct(in_channels, point, 1),
            "single": nn.Sequential(ConvBNAct(in_channels, single[0], 1), _Fan(*single)),
            "stacked": nn.Sequential(
                ConvBNAct(in_channels, reduced, 1), ConvBNAct(reduced, between, 3, padding=1), _Fan(between, last)
            ),
            "pooled": _Pool(in_channels, pool),
        }
        super().__init__(branches, point + 2 * single[-1] + 2 * last + pool)


class GridReduction(_Concatenation):
    """Figure 10: halves the grid and expands the filter bank at once, cheaply and without a bottleneck (section 5).

    1x1 -> 3x3 at stride 2; 1x1 -> 3x3 -> 3x3 at stride 2; max pool at stride 2. No padding: H becomes (H - 3) // 2 + 1.

    Args:
        in_channels: C; the pooling branch passes all of them on.
        single: (after the 1 x 1, at the end).
        double: (after the 1 x 1, between, at the end).
    """

    def __init__(
        self, in_channels: int, single: tuple[int, int] = (192, 320), double: tuple[int, int, int] = (64, 96, 96)
    ) -> None:
        reduced, between, last = double
        branches = {
            "single": nn.Sequential(ConvBNAct(in_channels, single[0], 1), ConvBNAct(*single, 3, stride=2)),
            "stacked": nn.Sequential(
                ConvBNAct(in_channels, reduced, 1),
                ConvBNAct(reduced, between, 3, padding=1),
                ConvBNAct(between, last, 3, stride=2),
            ),
            "pooled": nn.MaxPool2d(3, stride=2),
        }
        super().__init__(branches, single[-1] + last + in_channels)


class PoolThenExpand(nn.Module):
    """Figure 9, left: pool first, then expand with a convolution. Cheap, but a representational bottleneck (section 5).

    Args:
        in_channels, out_channels: k and, in the paper's comparison, 2 k.
        kernel_size: odd window of the convolution, which stands for the Inception module of the figure.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.pool = nn.MaxPool2d(3, stride=2)
        self.expand = ConvBNAct(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.pool(x))


class ExpandThenPool(nn.Module):
    """Figure 9, right: expand on the full grid, then pool. No bottleneck, but costly (section 5).

    2 d^2 k^2 multiply-adds on a d x d grid where the left side takes 2 (d/2)^2 k^2.

    Args:
        in_channels, out_channels, kernel_size: as :class:`PoolThenExpand`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.expand = ConvBNAct(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.expand(x))


class AuxiliaryClassifier(nn.Module):
    """Figure 8: the side head on the last 17 x 17 module, with BN, which makes it a regularizer (section 4).

    5 x 5 average pool at stride 3 -> 1x1 -> a window that covers what is left -> linear. H and W are at least 5.

    Args:
        in_channels: C.
        num_classes: logits.
        channels: after the 1 x 1 and before the linear layer.
        window: of the second convolution; 5 covers the 5 x 5 that a 17 x 17 grid is pooled to.

    Output ``[N, num_classes]``.
    """

    def __init__(
        self, in_channels: int, num_classes: int = 1000, channels: tuple[int, int] = (128, 768), window: int = 5
    ) -> None:
        super().__init__()
        self.reduce = ConvBNAct(in_channels, channels[0], 1)
        self.cover = ConvBNAct(*channels, window)
        self.fc = nn.Linear(channels[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cover(self.reduce(F.avg_pool2d(x, 5, stride=3)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


__all__ = [
    "AuxiliaryClassifier",
    "ExpandThenPool",
    "GridReduction",
    "InceptionA",
    "InceptionB",
    "InceptionC",
    "InceptionOriginal",
    "PoolThenExpand",
]
