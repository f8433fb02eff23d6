"""Small networks and data sets that the tests of the trainer share."""

import torch
from torch import nn

import inception_kernels as ik
from inception_kernels.training.data import Data, Digits


class SmallNet(nn.Module):
    """Every operator once, and dropout."""

    def __init__(self, classes: int = 4, dropout: float = 0.3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ik.nn.ConvBNAct(1, 8, 3, stride=2, padding=1),
            ik.nn.AsymmetricPair(8, 8, 8, n=3),
            ik.nn.SeparableConv2d(8, 16, input_activation="none", activation="relu"),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.fc = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


def small_net(**options) -> SmallNet:
    torch.manual_seed(7)
    return SmallNet(**options)


def patterns(train: int = 24, val: int = 10, size: int = 8) -> Data:
    """Four classes: which quarter of the image is bright, under noise."""
    generator = torch.Generator().manual_seed(3)

    def draw(count: int) -> Digits:
        labels = [index % 4 for index in range(count)]
        images = 6 * torch.rand(count, 8, 8, generator=generator)
        for image, label in zip(images, labels, strict=True):
            image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 10
        return Digits(images, labels, size)

    return Data(draw(train), draw(val), ("a", "b", "c", "d"), 1)


def save_pictures(root, train: int = 8, val: int = 4, classes: tuple[str, ...] = ("dark", "light")) -> None:
    """A folder for ``--data``: as many noisy pictures per class, whose brightness is the class."""
    from PIL import Image

    generator = torch.Generator().manual_seed(1)
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 128, (36, 40, 3), generator=generator) + 127 * label
                Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{index}.png")
