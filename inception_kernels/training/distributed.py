"""One process, or several that torchrun started: the same few calls for both."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from inception_kernels.training.batches import Share


@dataclass(frozen=True)
class Processes:
    """This process among all, and the device that it computes on. With one process nothing is communicated."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def share(self) -> Share:
        return Share(self.rank, self.world_size)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order of rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with those of the first process."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world_size > 1:
            dist.barrier()

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model, or with several processes one whose backward averages the gradients over all of them."""
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """What torchrun's environment says: gloo between CPUs, NCCL between GPUs, one GPU per process on each machine.

    Leaving the block ends the threads of gloo, provided that nothing outside it holds a model of `parallel` any more:
    one of them may drop a tensor late, and where Python has begun to exit by then, that aborts the process.

    Raises:
        ValueError: no such device.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("device: expected one that torch can use, got cuda; this torch sees no GPU")
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(where)
    elif device == "cpu":
        where = torch.device("cpu")
    else:
        raise ValueError(f"device: expected cpu or cuda, got {device!r}")
    if world_size == 1:
        yield Processes(where)
        return
    # DistributedDataParallel imports this; its default arguments keep for ever a group that exists by then.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=world_size)
    try:
        yield Processes(where, rank, world_size)
    finally:
        gc.collect()  # models, whose references go in circles, hold the group
        dist.destroy_process_group()
