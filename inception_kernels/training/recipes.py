"""The training recipes of the two papers, and the torch objects that carry them out.

"Rethinking": Szegedy et al., arXiv:1512.00567, section 8. "Xception": Chollet, arXiv:1610.02357, sections 4.2 to 4.5.
"Released code": TensorFlow's ImageNet training code for Inception, which fills in what the paper does not print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import Optimizer
from torch.optim.swa_utils import AveragedModel

from inception_kernels.nn import LabelSmoothingCrossEntropy
from inception_kernels.training.rmsprop import RMSPropTF

OPTIMIZERS = ("rmsprop", "sgd")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. ``dataclasses.replace(recipe, learning_rate=...)`` makes variants.

    Attributes:
        name: of the recipe.
        optimizer: "rmsprop" (TensorFlow's, :class:`RMSPropTF`) or "sgd".
        learning_rate: the first one.
        learning_rate_factor: multiplies the learning rate after every ``decay_epochs`` or ``decay_images``.
        decay_epochs, decay_images: exactly one of them is given.
        momentum: of either optimizer.
        square_decay, eps: of RMSProp.
        weight_decay: L2, on weights of convolutions and linear layers.
        clip_norm: largest norm of all gradients together; None does not clip.
        label_smoothing: epsilon of the mixture with the uniform prior.
        auxiliary_weight: factor of the auxiliary classifier's loss, where the network has one.
        dropout: before the last linear layer.
        average_decay: of the running average of the parameters that is evaluated; None evaluates the parameters.
        batch_size, epochs, image_size: of the published run.
        sources: where each number comes from.

    Raises:
        ValueError: no such optimizer, or not exactly one of decay_epochs and decay_images.
    """

    name: str
    optimizer: str
    learning_rate: float
    learning_rate_factor: float
    decay_epochs: float | None = None
    decay_images: int | None = None
    momentum: float = 0.0
    square_decay: float = 0.9
    eps: float = 1.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    label_smoothing: float = 0.0
    auxiliary_weight: float = 0.0
    dropout: float = 0.0
    average_decay: float | None = None
    batch_size: int = 32
    epochs: int = 100
    image_size: int = 299
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if (self.decay_epochs is None) == (self.decay_images is None):
            raise ValueError(
                "expected exactly one of decay_epochs and decay_images, got "
                f"{self.decay_epochs!r} and {self.decay_images!r}"
            )


def inception_v3_imagenet() -> Recipe:
    """Inception-v3 on ImageNet: RMSProp, learning rate 0.045 x 0.94 every two epochs, clipping 2.0, smoothing 0.1."""
    return Recipe(
        name="inception_v3_imagenet",
        optimizer="rmsprop",
        learning_rate=0.045,
        learning_rate_factor=0.94,
        decay_epochs=2,
        momentum=0.9,
        square_decay=0.9,
        eps=1.0,
        weight_decay=4e-5,
        clip_norm=2.0,
        label_smoothing=0.1,
        auxiliary_weight=0.4,
        dropout=0.5,
        average_decay=0.9999,
        batch_size=32,
        epochs=100,
        image_size=299,
        sources={
            "optimizer, square_decay, eps, learning_rate, clip_norm, batch_size, epochs": "Rethinking, section 8",
            "label_smoothing": "Rethinking, section 7",
            "image_size": "Rethinking, section 6",
            "momentum, auxiliary_weight, average_decay": "released code; the paper has no numbers",
            "weight_decay, dropout": "Xception, section 4.3, on Inception-v3",
        },
    )


def xception_imagenet() -> Recipe:
    """Xception on ImageNet: SGD with momentum 0.9, 0.045 x 0.94 every two epochs, weight decay 1e-5, dropout 0.5."""
    return Recipe(
        name="xception_imagenet",
        optimizer="sgd",
        learning_rate=0.045,
        learning_rate_factor=0.94,
        decay_epochs=2,
        momentum=0.9,
        weight_decay=1e-5,
        dropout=0.5,
        average_decay=0.9999,
        sources={
            "optimizer, momentum, learning_rate": "Xception, section 4.2",
            "weight_decay, dropout": "Xception, section 4.3; no auxiliary tower there",
            "average": "Xception, section 4.2: Polyak averaging; its decay is that of the released Inception code",
            "image_size": "Xception, figure 5",
            "batch_size, epochs": "not printed; those of Rethinking, section 8",
        },
    )


def xception_jft() -> Recipe:
    """Xception on JFT: RMSProp with momentum 0.9, learning rate 0.001 x 0.9 every 3 million images, no dropout."""
    return Recipe(
        name="xception_jft",
        optimizer="rmsprop",
        learning_rate=0.001,
        learning_rate_factor=0.9,
        decay_images=3_000_000,
        momentum=0.9,
        square_decay=0.9,
        eps=1e-10,
        weight_decay=1e-5,
        average_decay=0.9999,
        sources={
            "optimizer, momentum, learning_rate": "Xception, section 4.2",
            "square_decay, eps": "not printed; TensorFlow's defaults",
            "weight_decay, dropout": "Xception, section 4.3",
            "average": "Xception, section 4.2: Polyak averaging; its decay is that of the released Inception code",
            "batch_size, epochs": "not printed; those of Rethinking, section 8",
        },
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe for recipe in (inception_v3_imagenet, xception_imagenet, xception_jft)
}


def build_optimizer(recipe: Recipe, parameters: nn.Module | Iterable[Tensor]) -> Optimizer:
    """The recipe's optimizer.

    Given a module, weight decay holds for tensors of two or more dimensions (weights of convolutions and linear
    layers), not for batch norm and biases, as in the released code. Given tensors, it holds for all of them.
    """
    if isinstance(parameters, nn.Module):
        trained = [parameter for parameter in parameters.parameters() if parameter.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in trained if parameter.dim() > 1]},
            {"params": [parameter for parameter in trained if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
    else:
        groups = [{"params": list(parameters)}]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return RMSPropTF(
        groups, recipe.learning_rate, recipe.square_decay, recipe.momentum, recipe.eps, recipe.weight_decay
    )


def build_scheduler(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int, batch_size: int) -> StepLR:
    """The learning rate as a staircase. Call its ``step()`` after every step of the optimizer, not every epoch.

    Args:
        steps_per_epoch: optimizer steps in one pass over the data.
        batch_size: images per optimizer step, of all processes together.

    Raises:
        ValueError: a number smaller than one.
    """
    for name, value in (("steps_per_epoch", steps_per_epoch), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if recipe.decay_epochs is not None:
        steps = recipe.decay_epochs * steps_per_epoch
    else:
        assert recipe.decay_images is not None
        steps = recipe.decay_images / batch_size
    return StepLR(optimizer, step_size=max(1, round(steps)), gamma=recipe.learning_rate_factor)


def clip_gradients(recipe: Recipe, parameters: Iterable[Tensor]) -> Tensor | None:
    """Scale all gradients together down to the recipe's norm. Returns their norm before, or None without clipping."""
    if recipe.clip_norm is None:
        return None
    return nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)


def build_average(recipe: Recipe, model: nn.Module) -> AveragedModel | None:
    """A running average of parameters and batch statistics to evaluate with, or None where the recipe has none.

    Call ``average.update_parameters(model)`` after every step. The first call copies; the n-th after it uses the decay
    ``min(average_decay, (1 + n) / (10 + n))``, as the released code does, so that the average forgets its start.
    """
    if recipe.average_decay is None:
        return None
    limit = recipe.average_decay

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        count = int(updates)
        decay = min(limit, (1 + count) / (10 + count))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value.to(mean.dtype), 1 - decay)
            else:
                mean.copy_(value)  # a count of batches

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


class RecipeLoss(nn.Module):
    """Label-smoothing cross entropy of the logits, plus the auxiliary classifier's with the recipe's weight.

    ``loss(outputs, target)`` takes logits ``[N, K]`` or a pair (logits, auxiliary logits) as
    :class:`inception_kernels.models.InceptionOutputs`; target is int64 ``[N]``.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.auxiliary_weight = recipe.auxiliary_weight
        self.cross_entropy = LabelSmoothingCrossEntropy(recipe.label_smoothing)

    def forward(self, outputs: Tensor | tuple[Tensor, Tensor], target: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            return self.cross_entropy(outputs, target)
        logits, auxiliary = outputs
        return self.cross_entropy(logits, target) + self.auxiliary_weight * self.cross_entropy(auxiliary, target)
