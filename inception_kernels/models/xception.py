"""Xception in plain `torch.nn`: the reference that fused operators are swapped into and measured against.

Paper: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", arXiv:1610.02357. Layers,
channel counts and the place of every ReLU are those of figure 5; nothing stands between depthwise and
pointwise convolution (section 4.7); residuals can be left out as in section 4.6. Module names
(`block4.rep.1.conv1.weight`), the batch norm's eps of 1e-5 and the centred padding of the max pools are
those of the PyTorch port that timm keeps as `legacy_xception`, so that its checkpoints, Cadene's and
FaceForensics' load strictly.
"""

import torch
from torch import nn


class SeparableConv2d(nn.Module):
    """Depthwise 3x3 (padding 1), then pointwise 1x1, no bias: `[N, C, H, W]` -> `[N, K, H, W]`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pointwise(self.conv1(x))


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
    """

    def __init__(
        self,
        in_channels: int,
        channels: tuple[int, ...],
        stride: int = 1,
        leading_relu: bool = True,
        residual: bool = True,
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
            rep += [SeparableConv2d(in_channels, width), nn.BatchNorm2d(width)]
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
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0, residuals: bool = True
    ) -> None:
        super().__init__()
        # Entry flow; sizes are for 299.
        self.conv1 = nn.Conv2d(in_channels, 32, 3, stride=2, bias=False)  # [N, 32, 149, 149]
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)  # [N, 64, 147, 147]
        self.bn2 = nn.BatchNorm2d(64)
        self.act2 = nn.ReLU(inplace=True)
        self.block1 = Block(64, (128, 128), stride=2, leading_relu=False, residual=residuals)  # 74x74
        self.block2 = Block(128, (256, 256), stride=2, residual=residuals)  # 37x37
        self.block3 = Block(256, (728, 728), stride=2, residual=residuals)  # 19x19
        # Middle flow: eight equal blocks.
        for index in range(4, 12):
            setattr(self, f"block{index}", Block(728, (728, 728, 728), residual=residuals))
        # Exit flow.
        self.block12 = Block(728, (728, 1024), stride=2, residual=residuals)  # [N, 1024, 10, 10]
        self.conv3 = SeparableConv2d(1024, 1536)
        self.bn3 = nn.BatchNorm2d(1536)
        self.act3 = nn.ReLU(inplace=True)
        self.conv4 = SeparableConv2d(1536, 2048)
        self.bn4 = nn.BatchNorm2d(2048)
        self.act4 = nn.ReLU(inplace=True)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)
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
        return self.fc(self.dropout(torch.flatten(self.global_pool(x), 1)))


def xception(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0, residuals: bool = True) -> Xception:
    """Build `Xception` with random weights (Kaiming, fan out). Loads timm's `legacy_xception` state_dict."""
    return Xception(num_classes, in_channels, dropout, residuals)
