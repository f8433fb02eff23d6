"""From the Inception module to the depthwise-separable convolution, step by step.

Paper: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357, sections 1 and 3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inception_kernels import ops
from inception_kernels.nn import batch_norm_arguments, count_batch
from inception_kernels.reference._parts import activate, bn_residual_act

ORDERS = ("pointwise_first", "spatial_first")


class SegmentedConv2d(nn.Module):
    """1 x 1 over all channels and k x k within segments of the channels: the spectrum of section 1.2.

    With ``segments=1`` the spatial part is a regular convolution, with one segment per channel a depthwise one, and
    figure 3 shows three segments, the equivalent of a simplified Inception module. Two orders:

    - "pointwise_first": 1 x 1 -> act -> k x k in segments -> BN -> act. With one segment per output channel this is the
      "extreme" Inception module (figure 4).
    - "spatial_first": k x k in segments -> act -> 1 x 1 -> BN -> act. With one segment per input channel this is the
      depthwise-separable convolution of Xception, where nothing stands in the middle (section 4.7).

    What is fused: with one segment per channel "spatial_first" is one ``separable_conv2d``, and "pointwise_first" one
    ``pointwise_depthwise_conv2d``, which without a gradient is one kernel; every 1 x 1 and every one-segment k x k is a
    ``conv2d_bn_act``. No fused operator covers a grouped convolution with more than one segment otherwise: that part,
    with the BN and activation behind it, runs on PyTorch.

    Args:
        in_channels, out_channels: C and K. The k x k part has K channels with "pointwise_first", else C.
        segments: divides the channels of the k x k part; 1 to their number.
        kernel_size, stride: of the k x k part; odd, padded by ``kernel_size // 2``.
        order: "pointwise_first" or "spatial_first".
        mid_activation: between the two parts: "none", "relu" or "elu" in the paper; also "relu6", "silu".
        activation: at the end.
        batch_norm: whether a BN follows the second part.
        eps: of the BN.

    Input ``[N, C, H, W]``, output ``[N, K, P, Q]``. Children ``pointwise``, ``spatial`` and ``bn`` hold the parameters.

    Raises:
        ValueError: segments do not divide the channels, kernel_size is even, or there is no such order.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        segments: int,
        kernel_size: int = 3,
        stride: int = 1,
        order: str = "pointwise_first",
        mid_activation: str = "none",
        activation: str = "none",
        batch_norm: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if order not in ORDERS:
            raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")
        channels = out_channels if order == "pointwise_first" else in_channels
        if segments < 1 or channels % segments:
            raise ValueError(
                f"segments: expected a divisor of the {channels} channels of the k x k part, got {segments}"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd length, got {kernel_size}")
        self.order, self.segments = order, segments
        self.mid_activation, self.activation = mid_activation, activation
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.spatial = nn.Conv2d(channels, channels, kernel_size, stride, kernel_size // 2, groups=segments, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=eps) if batch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        bn: dict[str, Any] = {} if self.bn is None else batch_norm_arguments(self.bn)
        y = self._normalised(x, bn)
        count_batch(self.bn)
        return y

    def _normalised(self, x: Tensor, bn: dict[str, Any]) -> Tensor:
        if self.order == "pointwise_first" and self.segments == self.spatial.out_channels > 1:
            return ops.pointwise_depthwise_conv2d(
                x, self.pointwise.weight, self.spatial.weight, stride=self.spatial.stride, padding=self._padding,
                mid_activation=self.mid_activation, activation=self.activation, **bn,
            )  # fmt: skip
        if self.order == "pointwise_first":
            mid = ops.conv2d_bn_act(x, self.pointwise.weight, activation=self.mid_activation)
            return self._spatial(mid, self.activation, bn)
        if self.segments == self.spatial.in_channels:
            return ops.separable_conv2d(
                x, self.spatial.weight, self.pointwise.weight, stride=self.spatial.stride, padding=self._padding,
                mid_activation=self.mid_activation, activation=self.activation, **bn,
            )  # fmt: skip
        mid = self._spatial(x, self.mid_activation, {})
        return ops.conv2d_bn_act(mid, self.pointwise.weight, activation=self.activation, **bn)

    @property
    def _padding(self) -> tuple[int, int]:
        return self.spatial.kernel_size[0] // 2, self.spatial.kernel_size[1] // 2

    def _spatial(self, x: Tensor, activation: str, bn: dict[str, Any]) -> Tensor:
        spatial = self.spatial
        if self.segments == 1:
            return ops.conv2d_bn_act(
                x, spatial.weight, stride=spatial.stride, padding=self._padding, activation=activation, **bn
            )
        z = F.conv2d(x, spatial.weight, None, spatial.stride, self._padding, groups=self.segments)
        if not bn:
            return activate(z, activation)
        return bn_residual_act(z, residual=None, activation=activation, **bn)


class SimplifiedInception(nn.Module):
    """Figure 2: towers of one 1 x 1 and one 3 x 3 convolution each, no pooling, concatenated.

    Args:
        in_channels: C.
        out_channels: K, shared equally between the towers.
        towers: divides K; three in the figure.
        kernel_size: odd window of the spatial convolutions.
        mid_activation, activation: after the 1 x 1 and after the 3 x 3.

    Input ``[N, C, H, W]``, output ``[N, K, H, W]``. No BN, as in the figure.

    Raises:
        ValueError: towers do not divide K, or kernel_size is even.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        towers: int = 3,
        kernel_size: int = 3,
        mid_activation: str = "none",
        activation: str = "none",
    ) -> None:
        super().__init__()
        if towers < 1 or out_channels % towers:
            raise ValueError(f"towers: expected a divisor of the {out_channels} output channels, got {towers}")
        self.out_channels = out_channels
        self.towers = nn.ModuleList(
            SegmentedConv2d(
                in_channels,
                out_channels // towers,
                1,
                kernel_size,
                mid_activation=mid_activation,
                activation=activation,
                batch_norm=False,
            )
            for _ in range(towers)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([tower(x) for tower in self.towers], 1)

    @torch.no_grad()
    def as_segments(self) -> SegmentedConv2d:
        """Figure 3: the same function as one large 1 x 1 and a k x k within as many segments as there are towers."""
        first = self.towers[0]
        if not isinstance(first, SegmentedConv2d):
            raise TypeError(f"towers: expected SegmentedConv2d, got {type(first).__name__}")
        merged = SegmentedConv2d(
            first.pointwise.in_channels,
            self.out_channels,
            len(self.towers),
            first.spatial.kernel_size[0],
            mid_activation=first.mid_activation,
            activation=first.activation,
            batch_norm=False,
        ).to(first.pointwise.weight)
        for name in ("pointwise", "spatial"):
            weights = [getattr(tower, name).weight for tower in self.towers]
            getattr(merged, name).weight.copy_(torch.cat(weights))
        return merged.train(self.training)


class ExtremeInception(SegmentedConv2d):
    """Figure 4: 1 x 1 first, then one spatial convolution per channel: ``SegmentedConv2d`` with K segments.

    Args:
        in_channels, out_channels, kernel_size, stride, mid_activation, activation, batch_norm, eps: as
            :class:`SegmentedConv2d`. An Inception module has a ReLU in the middle, a depthwise-separable convolution
            usually none (section 1.2): here the default is "relu".
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        mid_activation: str = "relu",
        activation: str = "none",
        batch_norm: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(
            in_channels, out_channels, out_channels, kernel_size, stride, "pointwise_first", mid_activation, activation,
            batch_norm, eps,
        )  # fmt: skip


__all__ = ["ORDERS", "ExtremeInception", "SegmentedConv2d", "SimplifiedInception"]
