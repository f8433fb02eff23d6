"""Labelled images: scikit-learn's handwritten digits, or a folder per class on disk.

Images come out as float32 ``[C, size, size]`` with mean 0.5 and deviation 0.5 taken out, so within -1 and 1, as both
papers' released networks expect. A data set is stateless: everything random about a sample follows from the seed that
is asked for, so that a training run can stop and go on anywhere.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


class Sample(NamedTuple):
    """Which image, and the seed of its augmentation: None leaves it as in evaluation."""

    image: int
    seed: str | None = None


class ImageSet(Protocol):
    """Images that are read by `Sample`: ``images[Sample(3)] -> ([C, size, size], label)``."""

    labels: Sequence[int]

    def __len__(self) -> int: ...

    def __getitem__(self, sample: Sample) -> tuple[Tensor, int]: ...


@dataclass(frozen=True)
class Data:
    """Two sets with the same classes.

    Raises:
        ValueError: a set without images, or a label that is none of the classes.
    """

    train: ImageSet
    val: ImageSet
    classes: tuple[str, ...]
    channels: int

    def __post_init__(self) -> None:
        for name, images in (("train", self.train), ("val", self.val)):
            if not len(images):
                raise ValueError(f"{name}: expected images, got none")
            check_labels(images.labels, len(self.classes), name)


def check_labels(labels: Sequence[int], classes: int, name: str) -> None:
    """Raise ValueError that names the first label outside ``0 .. classes - 1``."""
    for index, label in enumerate(labels):
        if not 0 <= label < classes:
            raise ValueError(f"{name}: expected labels from 0 to {classes - 1}, got {label} for image {index}")


class Digits:
    """8x8 digits ``[M, 8, 8]`` of 0..16, enlarged bilinearly; augmented by a shift of up to an eighth of the width."""

    def __init__(self, images: Tensor, labels: Sequence[int], size: int) -> None:
        self.images, self.labels, self.size = images, labels, size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: Sample) -> tuple[Tensor, int]:
        image = self.images[sample.image] / 8 - 1
        large = F.interpolate(image[None, None], size=self.size, mode="bilinear", align_corners=False)[0]
        if sample.seed is not None:
            large = _shift(large, random.Random(sample.seed), self.size // 8)
        return large, self.labels[sample.image]


def _shift(image: Tensor, rng: random.Random, most: int) -> Tensor:
    down, right = rng.randint(-most, most), rng.randint(-most, most)
    moved = torch.full_like(image, -1.0)
    height, width = image.shape[-2:]
    source = image[:, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    moved[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = source
    return moved


def digits(size: int) -> Data:
    """1797 handwritten digits that come with scikit-learn, one channel; a fixed fifth of them is for validation.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ValueError(
            "--data digits: expected scikit-learn, which brings the images, and it is not installed: "
            "pip install scikit-learn"
        ) from error
    loaded = load_digits()
    images, labels = torch.tensor(loaded.images, dtype=torch.float32), loaded.target.tolist()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = len(labels) // 5
    val, train = (
        Digits(images[part], [labels[i] for i in part], size) for part in (order[:held_out], order[held_out:])
    )
    return Data(train, val, tuple(map(str, range(10))), channels=1)


class Folder:
    """Files with labels, read as RGB.

    Augmented by a crop of 8 to 100 % of the area with an aspect of 3/4 to 4/3, and a flip; without, the central square
    of 7/8 of the short side.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int], size: int) -> None:
        self.files, self.labels, self.size = files, labels, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, sample: Sample) -> tuple[Tensor, int]:
        import numpy as np
        from PIL import Image

        path = self.files[sample.image]
        rng = None if sample.seed is None else random.Random(sample.seed)
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path}: expected a readable image: {error}") from error
        width, height = image.size
        box = _centre(width, height) if rng is None else _random_crop(width, height, rng)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        if rng is not None and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float().div_(127.5).sub_(1), self.labels[sample.image]


Box = tuple[float, float, float, float]  # left, upper, right, lower


def _centre(width: int, height: int) -> Box:
    side = min(width, height) * 7 / 8
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def _random_crop(width: int, height: int, rng: random.Random) -> Box:
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        aspect = (3 / 4) ** rng.uniform(-1, 1)
        crop = max(1.0, (area * aspect) ** 0.5), max(1.0, (area / aspect) ** 0.5)
        if crop[0] <= width and crop[1] <= height:
            left, upper = rng.uniform(0, width - crop[0]), rng.uniform(0, height - crop[1])
            return left, upper, left + crop[0], upper + crop[1]
    return _centre(width, height)


def folder(root: Path, size: int) -> Data:
    """``root/train/<class>/*`` and ``root/val/<class>/*``; the classes are the folders of train, in order of name.

    Raises:
        ValueError: a folder is missing, a class has no image, val has a class that train lacks; while reading: a file
            that is no image, by name.
    """
    missing = [path for path in (root, root / "train", root / "val") if not path.is_dir()]
    if missing:
        raise ValueError(
            f"{missing[0]}: expected a folder; --data takes 'digits' or a folder with train/<class>/* and val/<class>/*"
        )
    if importlib.util.find_spec("PIL") is None:
        raise ValueError(f"{root}: expected pillow to read images, and it is not installed: pip install pillow")
    classes = tuple(sorted(path.name for path in (root / "train").iterdir() if path.is_dir()))
    if not classes:
        raise ValueError(f"{root / 'train'}: expected one folder per class, got none")
    return Data(_read_split(root / "train", classes, size), _read_split(root / "val", classes, size), classes, 3)


def _read_split(root: Path, classes: tuple[str, ...], size: int) -> Folder:
    found = sorted(path.name for path in root.iterdir() if path.is_dir())
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise ValueError(
            f"{root / unknown[0]}: expected one of the {len(classes)} classes of train "
            f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}), got {unknown[0]!r}"
        )
    files: list[Path] = []
    labels: list[int] = []
    for name in found:
        images = sorted(path for path in (root / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        if not images:
            raise ValueError(f"{root / name}: expected images ({' '.join(SUFFIXES)}), got none; remove an empty class")
        files += images
        labels += [classes.index(name)] * len(images)
    return Folder(files, labels, size)


def load(source: str, size: int) -> Data:
    """`digits`, or the path of a folder (:func:`folder`)."""
    return digits(size) if source == "digits" else folder(Path(source), size)
