"""Xception in plain `torch.nn`: the reference that fused operators are swapped into and measured against.

Paper: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357. Layers,
channel counts and the place of every ReLU are those of figure 5; nothing stands between depthwise and
pointwise convolution (section 4.7); residuals can be left out as in section 4.6. Module names
(`block4.rep.1.conv1.weight`), the batch norm's eps of 1e-5 and the centred padding of the max pools are
those of the PyTorch port that timm keeps as `legacy_xception`, so that its checkpoints, Cadene's and
FaceForensics' load strictly.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from inception_kernels.models.width import scaled

_MID_ACTIVATIONS = {"none": None, "relu": F.relu, "elu": F.elu}


class SeparableConv2d(nn.Module):
    """Depthwise 3x3 (padding 1), then pointwise 1x1, no bias: `[N, C, H, W]` -> `[N, K, H, W]`.

    `mid_activation`, "none", "relu" or "elu", stands between the two; the paper finds "none" best (section 4.7).
    """

    def __init__(self, in_channels: int, out_channels: int, mid_activation: str = "none") -> None:
        super().__init__()
        if mid_activation not in _MID_ACTIVATIONS:
            raise ValueError(f"mid_activation: expected none, relu or elu, got {mid_activation!r}")
        self.mid_activation = mid_activation
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mid = self.conv1(x)
        activation = _MID_ACTIVATIONS[self.mid_activation]
        return self.pointwise(mid if activation is None else activation(mid))


class Block(nn.Module):
    """One residual module of figure 5: `[N, C, H, W]` -> `[N, K, P, Q]`.

    `rep` holds ReLU -> separable convolution -> batch norm for each of `channels`, then a strided max pool
    where `stride` is not 1. The shortcut is a strided 1x1 convolution with batch norm where the shape
    changes, otherwise the input.

    Args:
        in_channels: C.
        channels: outputs of each separable convolution; the last one is K.
        stride: of the max pool and of the shortcut.
        leading_relu: the first separable convolution has a ReLU before it (all blocks but the first).
        residual: add the shortcut.
        mid_activation: of the separable convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, ...],
        stride: int = 1,
        leading_relu: bool = True,
        residual: bool = True,
        mid_activation: str = "none",
    ) -> None:
        super().__init__()
        out_channels = channels[-1]
        self.residual = residual
        self.skip: nn.Conv2d | None = None
        if residual and (out_channels != in_channels or stride != 1):
            self.skip = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.skipbn = nn.BatchNorm2d(out_channels)
        rep: list[nn.Module] = []
        for index, width in enumerate(channels):
            if index > 0 or leading_relu:
                rep.append(nn.ReLU(inplace=index > 0))  # the shortcut reads what the first ReLU reads
            rep += [SeparableConv2d(in_channels, width, mid_activation), nn.BatchNorm2d(width)]
            in_channels = width
        if stride != 1:
            rep.append(nn.MaxPool2d(3, stride, padding=1))
        self.rep = nn.Sequential(*rep)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.rep(x)
        if not self.residual:
            return y
        return y + (x if self.skip is None else self.skipbn(self.skip(x)))


class Xception(nn.Module):
    """Xception: `[N, in_channels, H, W]` -> `[N, num_classes]` logits (figure 5).

    22.86 M parameters, 8.36 G multiply-adds for one 299x299 image. Images are normalised with mean 0.5 and
    deviation 0.5 and are at least 7 pixels high and wide; 299 is the paper's size.

    Args:
        num_classes: logits per image.
        in_channels: channels of the image.
        dropout: probability of dropping a feature before the last linear layer; the paper trains ImageNet
            with 0.5 and JFT with none (section 4.3).
        residuals: shortcuts around the twelve blocks; without them the network is that of section 4.6.
        width: factor on every number of channels (rounded to a multiple of 8); 1 is the paper's network.
        mid_activation: between depthwise and pointwise convolutions: "none", "relu" or "elu" (section 4.7).
        fully_connected: units of linear layers with ReLU before the classifier; the paper's larger variant on JFT
            has (4096, 4096) (section 4.1).

    Raises:
        ValueError: width is not positive, or there is no such activation.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.0,
        residuals: bool = True,
        width: float = 1.0,
        mid_activation: str = "none",
        fully_connected: Sequence[int] = (),
    ) -> None:
        super().__init__()
        c32, c64, c128, c256, c728 = (scaled(c, width) for c in (32, 64, 128, 256, 728))
        c1024, c1536, c2048 = (scaled(c, width) for c in (1024, 1536, 2048))
        # Entry flow; sizes are for 299.
        self.conv1 = nn.Conv2d(in_channels, c32, 3, stride=2, bias=False)  # [N, 32, 149, 149]
        self.bn1 = nn.BatchNorm2d(c32)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c32, c64, 3, bias=False)  # [N, 64, 147, 147]
        self.bn2 = nn.BatchNorm2d(c64)
        self.act2 = nn.ReLU(inplace=True)
        block = partial(Block, residual=residuals, mid_activation=mid_activation)
        self.block1 = block(c64, (c128, c128), stride=2, leading_relu=False)  # 74x74
        self.block2 = block(c128, (c256, c256), stride=2)  # 37x37
        self.block3 = block(c256, (c728, c728), stride=2)  # 19x19
        # Middle flow: eight equal blocks.
        for index in range(4, 12):
            setattr(self, f"block{index}", block(c728, (c728, c728, c728)))
        # Exit flow.
        self.block12 = block(c728, (c728, c1024), stride=2)  # [N, 1024, 10, 10]
        self.conv3 = SeparableConv2d(c1024, c1536, mid_activation)
        self.bn3 = nn.BatchNorm2d(c1536)
        self.act3 = nn.ReLU(inplace=True)
        self.conv4 = SeparableConv2d(c1536, c2048, mid_activation)
        self.bn4 = nn.BatchNorm2d(c2048)
        self.act4 = nn.ReLU(inplace=True)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        features = [c2048, *fully_connected]
        self.hidden = nn.Sequential()
        for before, after in pairwise(features):
            self.hidden.extend([nn.Linear(before, after), nn.ReLU(inplace=True)])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(features[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[N, num_classes]`."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        for index in range(1, 13):
            x = getattr(self, f"block{index}")(x)
        x = self.act3(self.bn3(self.conv3(x)))
        x = self.act4(self.bn4(self.conv4(x)))
        return self.fc(self.dropout(self.hidden(torch.flatten(self.global_pool(x), 1))))


def xception(
    num_classes: int = 1000,
    in_channels: int = 3,
    dropout: float = 0.0,
    residuals: bool = True,
    width: float = 1.0,
    mid_activation: str = "none",
    fully_connected: Sequence[int] = (),
) -> Xception:
    """Build `Xception` with random weights (Kaiming, fan out). Loads timm's `legacy_xception` state_dict."""
    return Xception(num_classes, in_channels, dropout, residuals, width, mid_activation, fully_connected)
