"""The order of the images: a function of seed, epoch and step, so that a run can go on anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from inception_kernels.training.data import ImageSet, Sample


@dataclass(frozen=True)
class Share:
    """The part of every batch that one of several processes takes: a contiguous slice of equal size."""

    rank: int = 0
    world_size: int = 1

    def of(self, batch: Sequence[Sample]) -> list[Sample]:
        size = len(batch) // self.world_size
        return list(batch[self.rank * size : (self.rank + 1) * size])


class TrainingOrder:
    """Full batches of one epoch in random order, from batch `start` on; a remainder is left out.

    Args:
        images: how many images there are.
        batch_size: of all processes together; a multiple of their number.
        seed, epoch: give the order, and with the index the seed of each image's augmentation.
        start: batches to leave out at the beginning.
        share: what this process takes of each batch.
        augment: whether samples have a seed.

    Raises:
        ValueError: batch_size is not a multiple of the number of processes, or exceeds the number of images.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int,
        epoch: int,
        start: int = 0,
        share: Share | None = None,
        augment: bool = True,
    ) -> None:
        self.share = Share() if share is None else share
        if batch_size < 1 or batch_size % self.share.world_size:
            raise ValueError(
                f"batch size: expected a multiple of the {self.share.world_size} process(es), got {batch_size}"
            )
        if batch_size > images:
            raise ValueError(f"batch size: expected at most the {images} training images, got {batch_size}")
        self.images, self.batch_size, self.seed, self.epoch = images, batch_size, seed, epoch
        self.start, self.augment = start, augment

    def __len__(self) -> int:
        return self.images // self.batch_size - self.start

    def __iter__(self) -> Iterator[list[Sample]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.images, generator=generator).tolist()
        for batch in range(self.start, self.images // self.batch_size):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self.share.of([self._sample(index) for index in indices])

    def _sample(self, index: int) -> Sample:
        return Sample(index, f"{self.seed}/{self.epoch}/{index}" if self.augment else None)


class EvaluationOrder:
    """Every image once, in order and without augmentation; a process takes every `world_size`-th one."""

    def __init__(self, images: int, batch_size: int, share: Share | None = None) -> None:
        share = Share() if share is None else share
        self.samples = [Sample(index) for index in range(share.rank, images, share.world_size)]
        self.batch_size = max(1, batch_size // share.world_size)

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[list[Sample]]:
        for first in range(0, len(self.samples), self.batch_size):
            yield self.samples[first : first + self.batch_size]


def loader(
    images: ImageSet, order: TrainingOrder | EvaluationOrder, workers: int = 0, pin_memory: bool = False
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches ``([N, C, H, W] float32, [N] int64)`` in this order; `workers` processes read ahead.

    Draws nothing from torch's global random numbers, so reading does not change what dropout does.
    """
    dataset: Any = images  # read by Sample, which DataLoader's types do not foresee
    sampler: Any = order
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),
    )
