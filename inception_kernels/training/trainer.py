"""The training loop: epochs with a recipe, evaluated with averaged weights, stopped and continued at will."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from inception_kernels.training import checkpoint
from inception_kernels.training.batches import EvaluationOrder, TrainingOrder, loader
from inception_kernels.training.data import Data
from inception_kernels.training.distributed import Processes
from inception_kernels.training.evaluate import Evaluation, autocast, evaluate
from inception_kernels.training.log import Log, Row
from inception_kernels.training.recipes import (
    Recipe,
    RecipeLoss,
    build_average,
    build_optimizer,
    build_scheduler,
    clip_gradients,
)


@dataclass(frozen=True)
class Options:
    """How long and on what a recipe runs.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per optimizer step, of all processes together.
        accumulate: forward and backward passes per optimizer step, each on an equal part of the batch. Every part has
            its own batch statistics: two parts do what two processes do.
        seed: of the order, the augmentation and dropout.
        precision: "fp32", or "bf16" for autocast.
        workers: processes that read images ahead.
        augment: whether training images are shifted, cropped or flipped.
        channels_last: give the network its images in that layout, which is the fused operators' own.
        checkpoint: where the state is written after every epoch; None writes none.
        checkpoint_steps: write it after as many steps, too.

    Raises:
        ValueError: a number out of range.
    """

    epochs: int
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    precision: str = "fp32"
    workers: int = 0
    augment: bool = True
    channels_last: bool = False
    checkpoint: Path | None = None
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch_size": 2, "accumulate": 1, "seed": 0, "workers": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name}: expected at least {bound}, got {getattr(self, name)}")
        if self.checkpoint_steps is not None and self.checkpoint_steps < 1:
            raise ValueError(f"checkpoint_steps: expected at least 1, got {self.checkpoint_steps}")
        autocast(torch.device("cpu"), self.precision)


@dataclass
class Position:
    """How far a run is, and what it has seen of the epoch: an epoch that is cut in two has the same means."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    images: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    def next_epoch(self) -> Position:
        return Position(self.epoch + 1, 0, self.step)


@dataclass
class Result:
    """What a run found.

    Attributes:
        epochs: one row per epoch so far.
        evaluation: of the last epoch that this run finished, with averaged weights where the recipe has them.
        finished: all epochs are done.
    """

    epochs: list[Row] = field(default_factory=list)
    evaluation: Evaluation | None = None
    finished: bool = False


class Trainer:
    """Trains `model`, in place, as the recipe says.

    Args:
        model: on the device of `processes`; returns logits ``[N, K]``, or a pair with auxiliary logits in training.
        data: images and classes.
        recipe, options: how.
        processes: this process among all.
        logs: are told the numbers; only in the first process.
        settings: plain values that a checkpoint keeps, and that must be the same where it is continued.
        loss: of what the model returns and the labels, instead of the recipe's.

    Raises:
        ValueError: the batch cannot be divided among processes and parts, or is larger than the data set.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        recipe: Recipe,
        options: Options,
        processes: Processes | None = None,
        logs: Sequence[Log] = (),
        settings: dict[str, Any] | None = None,
        loss: nn.Module | None = None,
    ) -> None:
        self.processes = Processes(torch.device("cpu")) if processes is None else processes
        parts = self.processes.world_size * options.accumulate
        if options.batch_size % parts or options.batch_size // parts < 2:
            raise ValueError(
                f"batch size: expected a multiple of {self.processes.world_size} process(es) x {options.accumulate} "
                f"part(s) with at least two images each, got {options.batch_size}"
            )
        self.model, self.data, self.recipe, self.options = model, data, recipe, options
        self.logs = logs if self.processes.is_first else ()
        self.settings = {} if settings is None else settings
        self.steps_per_epoch = len(self._order(0, 0))
        self.network = self.processes.parallel(model)
        self.loss = RecipeLoss(recipe) if loss is None else loss
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(recipe, model)
        self.scheduler = build_scheduler(recipe, self.optimizer, self.steps_per_epoch, options.batch_size)
        self.average = build_average(recipe, model)
        self.position = Position()
        self.result = Result()
        torch.manual_seed(options.seed + self.processes.rank)

    @property
    def best_model(self) -> nn.Module:
        """The model to evaluate and export: the averaged one where the recipe has an average."""
        return self.model if self.average is None else self.average.module

    def run(self, stop: Callable[[], bool] = lambda: False) -> Result:
        """Train to the end, or until `stop()` is true after a step of any process; then the state is written first.

        Raises:
            RuntimeError: the loss is no longer finite.
        """
        while self.position.epoch < self.options.epochs:
            if not self._epoch(stop):
                self._write_checkpoint()
                return self.result
            self._finish_epoch()
        if self.result.evaluation is None:  # all was done before
            self.result.evaluation = self.evaluate(self.best_model)
        self.result.finished = True
        return self.result

    def evaluate(self, model: nn.Module) -> Evaluation:
        """A model on the validation images. Batch statistics are those of the first process, everywhere."""
        self.processes.spread(model.buffers())
        order = EvaluationOrder(len(self.data.val), self.options.batch_size, self.processes.share)
        batches = loader(self.data.val, order, self.options.workers, self._pin)
        prepared = ((self._layout(images), labels) for images, labels in batches)
        return evaluate(model, prepared, len(self.data.classes), self.processes, self.options.precision)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs. Every process has to call it."""
        return {
            "settings": self.settings,
            "classes": list(self.data.classes),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "position": vars(self.position),
            "epochs": self.result.epochs,
            "random": self.processes.gather(checkpoint.random_state()),
        }

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: it is of other settings, classes or another number of processes.
        """
        state = checkpoint.load(path, self.processes.device)
        checkpoint.check_settings(path, state["settings"], self.settings)
        if tuple(state["classes"]) != self.data.classes:
            raise ValueError(f"{path}: expected the classes {state['classes']}, got {list(self.data.classes)}")
        if len(state["random"]) != self.processes.world_size:
            raise ValueError(
                f"{path}: expected {len(state['random'])} process(es) as before, got {self.processes.world_size}"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.position = Position(**state["position"])
        self.result = Result(epochs=list(state["epochs"]))
        checkpoint.set_random_state(state["random"][self.processes.rank])

    def _epoch(self, stop: Callable[[], bool]) -> bool:
        """The rest of this epoch; False where it was stopped."""
        at = self.position
        self.network.train()
        started = time.perf_counter()
        for images, labels in self._training_batches():
            row = self._step(images, labels, started)
            started = time.perf_counter()
            for log in self.logs:
                log.step(row)
            if self._any(stop()):
                return False
            every = self.options.checkpoint_steps
            if every is not None and at.step % every == 0:
                self._write_checkpoint()
        return True

    def _step(self, images: Tensor, labels: Tensor, started: float) -> Row:
        """One optimizer step on this process's share of a batch."""
        device, at = self.processes.device, self.position
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.zero_grad(set_to_none=True)
        totals = torch.zeros(2, dtype=torch.float64, device=device)  # sum of losses, correct answers
        parts = self.options.accumulate
        for part, (x, y) in enumerate(zip(images.chunk(parts), labels.chunk(parts), strict=True)):
            x, y = self._layout(x.to(device, non_blocking=True)), y.to(device, non_blocking=True)
            with self._without_reduction(part < parts - 1), autocast(device, self.options.precision):
                outputs = self.network(x)
                loss = self.loss(outputs, y)
                (loss / parts).backward()
            logits = outputs if isinstance(outputs, Tensor) else outputs[0]
            correct = (logits.detach().argmax(1) == y).sum()
            totals += torch.stack([loss.detach().double() * len(y), correct.double()])
        count = len(labels) * self.processes.world_size
        loss_sum, correct_sum = self.processes.sum(totals).tolist()
        mean = loss_sum / count
        if not abs(mean) < float("inf"):
            raise RuntimeError(
                f"step {at.step + 1}: expected a finite loss, got {mean}; try a learning rate below {rate:g}"
            )
        norm = clip_gradients(self.recipe, self.parameters)
        self.optimizer.step()
        self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        seconds = time.perf_counter() - started
        at.batch, at.step, at.images = at.batch + 1, at.step + 1, at.images + count
        at.loss, at.correct, at.seconds = at.loss + loss_sum, at.correct + int(correct_sum), at.seconds + seconds
        return {
            "step": at.step,
            "epoch": at.epoch,
            "learning_rate": rate,
            "loss": mean,
            "accuracy": correct_sum / count,
            "gradient_norm": None if norm is None else float(norm),
            "images_per_second": count / seconds,
        }

    def _finish_epoch(self) -> None:
        at = self.position
        plain = self.evaluate(self.model)
        averaged = None if self.average is None else self.evaluate(self.average.module)
        row: Row = {
            "epoch": at.epoch,
            "step": at.step,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": at.loss / at.images,
            "train_accuracy": at.correct / at.images,
            "val_loss": plain.loss,
            "val_accuracy": plain.accuracy,
            "averaged_val_loss": None if averaged is None else averaged.loss,
            "averaged_val_accuracy": None if averaged is None else averaged.accuracy,
            "seconds": at.seconds,
        }
        self.result.epochs.append(row)
        self.result.evaluation = plain if averaged is None else averaged
        for log in self.logs:
            log.epoch(row)
        self.position = at.next_epoch()
        self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        if self.options.checkpoint is None:
            return
        state = self.state()
        if self.processes.is_first:
            checkpoint.save(self.options.checkpoint, state)
        self.processes.wait()

    def _order(self, epoch: int, start: int) -> TrainingOrder:
        options = self.options
        return TrainingOrder(
            len(self.data.train), options.batch_size, options.seed, epoch, start, self.processes.share, options.augment
        )

    def _training_batches(self) -> DataLoader[tuple[Tensor, Tensor]]:
        order = self._order(self.position.epoch, self.position.batch)
        return loader(self.data.train, order, self.options.workers, self._pin)

    @property
    def _pin(self) -> bool:
        return self.processes.device.type == "cuda"

    def _layout(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self.options.channels_last else images

    def _without_reduction(self, wanted: bool) -> AbstractContextManager[object]:
        network = self.network
        return network.no_sync() if wanted and isinstance(network, DistributedDataParallel) else nullcontext()

    def _any(self, flag: bool) -> bool:
        """Whether it is true in any process, so that all of them leave a loop together."""
        if self.processes.world_size == 1:
            return flag
        return bool(self.processes.sum(torch.tensor(int(flag), device=self.processes.device)))
