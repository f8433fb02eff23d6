"""One large window replaced by a stack of smaller ones that see the same pixels, with the fused operators.

Paper: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567, section 3.
The multiply-adds of each are in :mod:`inception_kernels.flops.papers`; n x n as 1 x n -> n x 1 (section 3.2, figure 3)
is :class:`inception_kernels.nn.AsymmetricPair`.
"""

from __future__ import annotations

from torch import Tensor, nn

from inception_kernels.nn import AsymmetricPair, ConvBNAct


class SmallWindows(nn.Module):
    """n x n as (n - 1) / 2 convolutions of 3 x 3: 5 x 5 as two, 7 x 7 as three (section 3.1, figure 1).

    Every convolution is followed by BN. The paper keeps a ReLU between the factors; its ablation (figure 2) compares
    with a linear first factor, which ``mid_activation="none"`` builds.

    Args:
        in_channels, out_channels: before and after; the factors between have ``mid_channels``.
        n: odd length of the window that is replaced, at least 3.
        mid_channels: default ``out_channels``.
        mid_activation: "relu", or "none" for the linear variant; also "relu6", "elu", "silu".
        activation: after the last factor.
        stride: of the last factor.

    Input ``[N, C, H, W]``, output ``[N, K, P, Q]`` as an n x n convolution with padding ``n // 2`` at stride 1.

    Raises:
        ValueError: n is even or smaller than 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n: int = 5,
        mid_channels: int | None = None,
        mid_activation: str = "relu",
        activation: str = "relu",
        stride: int = 1,
    ) -> None:
        super().__init__()
        if n < 3 or n % 2 == 0:
            raise ValueError(f"n: expected an odd length of at least 3, got {n}")
        factors = (n - 1) // 2
        between = out_channels if mid_channels is None else mid_channels
        channels = [in_channels, *[between] * (factors - 1), out_channels]
        self.factors = nn.Sequential(
            *[
                ConvBNAct(
                    channels[i],
                    channels[i + 1],
                    3,
                    stride=stride if i == factors - 1 else 1,
                    padding=1,
                    activation=activation if i == factors - 1 else mid_activation,
                )
                for i in range(factors)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.factors(x)


class TwoByTwo(nn.Module):
    """3 x 3 as two convolutions of 2 x 2: the alternative that section 3.2 finds inferior.

    It saves 11 % of the multiply-adds, where 1 x 3 -> 3 x 1 saves 33 %. The first factor pads by one pixel on all
    sides and the second by none, so the output has the size of the input and each pixel sees its 3 x 3 surroundings.

    Args:
        in_channels, out_channels, mid_channels: channels; ``mid_channels`` defaults to ``out_channels``.
        mid_activation, activation: after the first and the second factor.

    Input ``[N, C, H, W]``, output ``[N, K, H, W]``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mid_channels: int | None = None,
        mid_activation: str = "relu",
        activation: str = "relu",
    ) -> None:
        super().__init__()
        between = out_channels if mid_channels is None else mid_channels
        self.first = ConvBNAct(in_channels, between, 2, padding=1, activation=mid_activation)
        self.second = ConvBNAct(between, out_channels, 2, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


__all__ = ["AsymmetricPair", "SmallWindows", "TwoByTwo"]
