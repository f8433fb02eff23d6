"""Inception-v3 in plain `torch.nn`: the reference that fused operators are swapped into and measured against.

Paper: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", arXiv:1512.00567. The
module structure is that of section 6 (table 1, figures 5, 6 and 7), the reductions of section 5 (figure 10),
the auxiliary classifier of section 4 with batch norm as in section 8. The paper gives no channel count per
branch; these, the order in which branches are concatenated and the module names are those of the released
ImageNet network as torchvision ports it, so that its checkpoints load strictly. Where that network differs
from the paper it is followed: its stem ends in 1x1 -> 3x3 -> max pool, its 35x35 modules keep one 5x5, and
it has four modules at 17x17.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from inception_kernels.models.width import scaled

Size = int | tuple[int, int]


class InceptionOutputs(NamedTuple):
    """What training with the auxiliary head returns: two `[N, num_classes]` tensors of logits."""

    logits: torch.Tensor
    aux_logits: torch.Tensor


class BasicConv2d(nn.Module):
    """Convolution without bias -> batch norm (eps 1e-3) -> ReLU: `[N, C, H, W]` -> `[N, K, P, Q]`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: int = 1, padding: Size = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class InceptionA(nn.Module):
    """Module at 35x35 (figure 5): 1x1; 5x5; two 3x3; pool. Output 224 + `pool_features` channels at width 1."""

    def __init__(self, in_channels: int, pool_features: int, width: float = 1.0) -> None:
        super().__init__()
        c48, c64, c96, pool = (scaled(c, width) for c in (48, 64, 96, pool_features))
        self.out_channels = c64 + c64 + c96 + pool
        self.branch1x1 = BasicConv2d(in_channels, c64, 1)
        self.branch5x5_1 = BasicConv2d(in_channels, c48, 1)
        self.branch5x5_2 = BasicConv2d(c48, c64, 5, padding=2)
        self.branch3x3dbl_1 = BasicConv2d(in_channels, c64, 1)
        self.branch3x3dbl_2 = BasicConv2d(c64, c96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(c96, c96, 3, padding=1)
        self.branch_pool = BasicConv2d(in_channels, pool, 1)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        point = self.branch1x1(x)
        single = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([point, single, double, self.branch_pool(self.pool(x))], 1)


class InceptionB(nn.Module):
    """Reduction 35x35 -> 17x17 (figure 10): strided 3x3; 3x3 -> strided 3x3; max pool. Adds 480 channels at width 1."""

    def __init__(self, in_channels: int, width: float = 1.0) -> None:
        super().__init__()
        c64, c96, c384 = (scaled(c, width) for c in (64, 96, 384))
        self.out_channels = in_channels + c384 + c96
        self.branch3x3 = BasicConv2d(in_channels, c384, 3, stride=2)
        self.branch3x3dbl_1 = BasicConv2d(in_channels, c64, 1)
        self.branch3x3dbl_2 = BasicConv2d(c64, c96, 3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(c96, c96, 3, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = self.branch3x3(x)
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([single, double, self.pool(x)], 1)


class InceptionC(nn.Module):
    """Module at 17x17, 7x7 windows factorised (section 3.2, figure 6, n = 7). Output 768 channels at width 1."""

    def __init__(self, in_channels: int, channels_7x7: int, width: float = 1.0) -> None:
        super().__init__()
        narrow, c192 = scaled(channels_7x7, width), scaled(192, width)
        self.out_channels = 4 * c192
        self.branch1x1 = BasicConv2d(in_channels, c192, 1)
        self.branch7x7_1 = BasicConv2d(in_channels, narrow, 1)
        self.branch7x7_2 = BasicConv2d(narrow, narrow, (1, 7), padding=(0, 3))
        self.branch7x7_3 = BasicConv2d(narrow, c192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = BasicConv2d(in_channels, narrow, 1)
        self.branch7x7dbl_2 = BasicConv2d(narrow, narrow, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = BasicConv2d(narrow, narrow, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = BasicConv2d(narrow, narrow, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = BasicConv2d(narrow, c192, (1, 7), padding=(0, 3))
        self.branch_pool = BasicConv2d(in_channels, c192, 1)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        point = self.branch1x1(x)
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([point, single, double, self.branch_pool(self.pool(x))], 1)


class InceptionD(nn.Module):
    """Reduction 17x17 -> 8x8: strided 3x3; 1x7 -> 7x1 -> strided 3x3; max pool. Adds 512 channels at width 1."""

    def __init__(self, in_channels: int, width: float = 1.0) -> None:
        super().__init__()
        c192, c320 = scaled(192, width), scaled(320, width)
        self.out_channels = in_channels + c320 + c192
        self.branch3x3_1 = BasicConv2d(in_channels, c192, 1)
        self.branch3x3_2 = BasicConv2d(c192, c320, 3, stride=2)
        self.branch7x7x3_1 = BasicConv2d(in_channels, c192, 1)
        self.branch7x7x3_2 = BasicConv2d(c192, c192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = BasicConv2d(c192, c192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = BasicConv2d(c192, c192, 3, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = self.branch3x3_2(self.branch3x3_1(x))
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([short, long, self.pool(x)], 1)


class InceptionE(nn.Module):
    """Module at 8x8, filter bank fanned out (figure 7): 1x3 and 3x1 side by side. Output 2048 channels at width 1."""

    def __init__(self, in_channels: int, width: float = 1.0) -> None:
        super().__init__()
        c192, c320, c384, c448 = (scaled(c, width) for c in (192, 320, 384, 448))
        self.out_channels = c320 + 4 * c384 + c192
        self.branch1x1 = BasicConv2d(in_channels, c320, 1)
        self.branch3x3_1 = BasicConv2d(in_channels, c384, 1)
        self.branch3x3_2a = BasicConv2d(c384, c384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = BasicConv2d(c384, c384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = BasicConv2d(in_channels, c448, 1)
        self.branch3x3dbl_2 = BasicConv2d(c448, c384, 3, padding=1)
        self.branch3x3dbl_3a = BasicConv2d(c384, c384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = BasicConv2d(c384, c384, (3, 1), padding=(1, 0))
        self.branch_pool = BasicConv2d(in_channels, c192, 1)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        point = self.branch1x1(x)
        single = self.branch3x3_1(x)
        singles = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        doubles = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([point, *singles, *doubles, self.branch_pool(self.pool(x))], 1)


class InceptionAux(nn.Module):
    """Auxiliary classifier on the last 17x17 module (section 4, figure 8), batch-normalised (section 8)."""

    def __init__(self, in_channels: int, num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        c128, c768 = scaled(128, width), scaled(768, width)
        self.conv0 = BasicConv2d(in_channels, c128, 1)
        self.conv1 = BasicConv2d(c128, c768, 5)
        self.fc = nn.Linear(c768, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(self.conv0(F.avg_pool2d(x, kernel_size=5, stride=3)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def _imagenet_to_half(x: torch.Tensor) -> torch.Tensor:
    """From ImageNet's per-channel mean and deviation to mean 0.5, deviation 0.5, which the weights expect."""
    means, deviations = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    channels = [
        x[:, c : c + 1] * (deviation / 0.5) + (mean - 0.5) / 0.5
        for c, (mean, deviation) in enumerate(zip(means, deviations, strict=True))
    ]
    return torch.cat(channels, 1)


class InceptionV3(nn.Module):
    """Inception-v3: `[N, in_channels, H, W]` -> `[N, num_classes]` logits, or `InceptionOutputs`.

    27.16 M parameters with the auxiliary head, 23.83 M without; 5.71 G multiply-adds for one 299x299 image.
    H and W are at least 75, or 299 in training with the auxiliary head, whose 5x5 window needs a 17x17 map.

    Args:
        num_classes: logits per image.
        in_channels: channels of the image.
        aux_logits: build the auxiliary classifier, which runs in training only.
        transform_input: the image is normalised with ImageNet's mean and deviation (RGB); convert it to mean
            0.5, deviation 0.5. Needs `in_channels=3`.
        dropout: probability of dropping a feature before the last linear layer.
        width: factor on every number of channels (`scaled`); 1 is the paper's network.

    Raises:
        ValueError: `transform_input` with `in_channels` other than 3, or a width that is not positive.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        aux_logits: bool = True,
        transform_input: bool = False,
        dropout: float = 0.5,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        if transform_input and in_channels != 3:
            raise ValueError(
                f"transform_input maps RGB statistics: expected in_channels=3, got {in_channels}; "
                "pass transform_input=False"
            )
        self.aux_logits = aux_logits
        self.transform_input = transform_input
        c32, c64, c80, c192 = (scaled(c, width) for c in (32, 64, 80, 192))
        self.Conv2d_1a_3x3 = BasicConv2d(in_channels, c32, 3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(c32, c32, 3)
        self.Conv2d_2b_3x3 = BasicConv2d(c32, c64, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = BasicConv2d(c64, c80, 1)
        self.Conv2d_4a_3x3 = BasicConv2d(c80, c192, 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = InceptionA(c192, pool_features=32, width=width)
        self.Mixed_5c = InceptionA(self.Mixed_5b.out_channels, pool_features=64, width=width)
        self.Mixed_5d = InceptionA(self.Mixed_5c.out_channels, pool_features=64, width=width)
        self.Mixed_6a = InceptionB(self.Mixed_5d.out_channels, width)
        self.Mixed_6b = InceptionC(self.Mixed_6a.out_channels, channels_7x7=128, width=width)
        self.Mixed_6c = InceptionC(self.Mixed_6b.out_channels, channels_7x7=160, width=width)
        self.Mixed_6d = InceptionC(self.Mixed_6c.out_channels, channels_7x7=160, width=width)
        self.Mixed_6e = InceptionC(self.Mixed_6d.out_channels, channels_7x7=192, width=width)
        features = self.Mixed_6e.out_channels
        self.AuxLogits = InceptionAux(features, num_classes, width) if aux_logits else None
        self.Mixed_7a = InceptionD(features, width)
        self.Mixed_7b = InceptionE(self.Mixed_7a.out_channels, width)
        self.Mixed_7c = InceptionE(self.Mixed_7b.out_channels, width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.Mixed_7c.out_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor | InceptionOutputs:
        """Logits `[N, num_classes]`; in training with the auxiliary head `InceptionOutputs` of two such."""
        if self.transform_input:
            x = _imagenet_to_half(x)  # [N, 3, 299, 299]; sizes below are for 299
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [N, 64, 147, 147]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))  # [N, 192, 71, 71]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(x))))  # [N, 288, 35, 35]
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))  # [N, 768, 17, 17]
        aux = self.AuxLogits(x) if self.training and self.AuxLogits is not None else None
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [N, 2048, 8, 8]
        logits = self.fc(torch.flatten(self.dropout(self.avgpool(x)), 1))
        return logits if aux is None else InceptionOutputs(logits, aux)


def inception_v3(
    num_classes: int = 1000,
    in_channels: int = 3,
    aux_logits: bool = True,
    transform_input: bool = False,
    dropout: float = 0.5,
    width: float = 1.0,
) -> InceptionV3:
    """`InceptionV3` with random weights (Kaiming, fan out). Loads torchvision's `inception_v3` state_dict."""
    return InceptionV3(num_classes, in_channels, aux_logits, transform_input, dropout, width)
