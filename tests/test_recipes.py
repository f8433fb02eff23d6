"""The papers' optimizers, schedules and averages against their formulas."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inception_kernels.models import InceptionOutputs
from inception_kernels.training.recipes import (
    RECIPES,
    Recipe,
    RecipeLoss,
    build_average,
    build_optimizer,
    build_scheduler,
    clip_gradients,
    inception_v3_imagenet,
    xception_imagenet,
    xception_jft,
)
from inception_kernels.training.rmsprop import RMSPropTF


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


def step_once(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    optimizer.step()


# ---- TensorFlow's RMSProp


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("eps", [1.0, 1e-10])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_rmsprop_by_hand(weight_decay, eps, momentum):
    """Three steps of one number, with the formula of TensorFlow's ApplyRMSProp written out."""
    gradients = [0.5, -2.0, 0.25]
    parameter = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
    optimizer = RMSPropTF([parameter], 0.045, 0.9, momentum, eps, weight_decay)
    value, mean_square, velocity = 1.5, 1.0, 0.0
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        g = gradient + weight_decay * value
        mean_square = mean_square * 0.9 + g * g * 0.1
        velocity = momentum * velocity + 0.045 * g / math.sqrt(mean_square + eps)
        value -= velocity
        assert parameter.item() == pytest.approx(value, rel=1e-14)


def test_epsilon_is_inside_of_the_root():
    """A first step from a square average of 1 with gradient 1: lr / sqrt(2), where torch.optim.RMSprop has lr / 2."""
    steps = []
    for optimizer_type, options in (
        (RMSPropTF, {"decay": 0.9, "eps": 1.0}),
        (torch.optim.RMSprop, {"alpha": 0.9, "eps": 1.0}),
    ):
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.ones(1)
        optimizer = optimizer_type([parameter], lr=1.0, **options)
        if optimizer_type is torch.optim.RMSprop:
            optimizer.state[parameter] = {"step": torch.zeros(()), "square_avg": torch.ones(1)}
        optimizer.step()
        steps.append(-parameter.item())
    assert steps == pytest.approx([1 / math.sqrt(2), 1 / 2])


def test_rmsprop_is_torchs_where_the_two_agree():
    """Without epsilon and momentum, from a square average of zero, both are the same."""
    models = [small_model(), small_model()]
    optimizers = [
        RMSPropTF(models[0].parameters(), 0.01, 0.9, eps=0.0, initial_square_average=0.0),
        torch.optim.RMSprop(models[1].parameters(), 0.01, 0.9, eps=0.0),
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        for _ in range(3):
            step_once(model, optimizer)
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rmsprop_state_goes_on_after_loading():
    model = small_model()
    optimizer = build_optimizer(inception_v3_imagenet(), model)
    step_once(model, optimizer)
    other = copy.deepcopy(model)
    resumed = build_optimizer(inception_v3_imagenet(), other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step_once(model, optimizer)
    step_once(other, resumed)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_rmsprop_takes_a_closure_and_leaves_parameters_without_gradient():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = RMSPropTF([used, unused])

    def closure():
        optimizer.zero_grad()
        loss = used.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert (used != 1).all()
    assert (unused == 1).all()
    assert unused not in optimizer.state


@pytest.mark.parametrize(
    "bad",
    [{"lr": -1}, {"decay": 1.0}, {"momentum": -0.1}, {"eps": -1}, {"weight_decay": -1}, {"lr": math.nan}],
    ids=str,
)
def test_rmsprop_says_what_it_expects(bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected"):
        RMSPropTF([nn.Parameter(torch.ones(1))], **bad)


def test_rmsprop_refuses_sparse_gradients():
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, 0.0, 0.0]).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        RMSPropTF([parameter]).step()


# ---- recipes


def test_numbers_of_the_papers():
    inception, xception, jft = inception_v3_imagenet(), xception_imagenet(), xception_jft()
    for recipe in (inception, xception):
        assert (recipe.learning_rate, recipe.learning_rate_factor, recipe.decay_epochs) == (0.045, 0.94, 2)
    assert (inception.optimizer, inception.square_decay, inception.eps) == ("rmsprop", 0.9, 1.0)
    assert (inception.clip_norm, inception.label_smoothing) == (2.0, 0.1)
    assert (xception.optimizer, xception.momentum, xception.weight_decay, xception.dropout) == ("sgd", 0.9, 1e-5, 0.5)
    assert (jft.optimizer, jft.momentum, jft.dropout) == ("rmsprop", 0.9, 0.0)
    assert (jft.learning_rate, jft.learning_rate_factor, jft.decay_images) == (0.001, 0.9, 3_000_000)
    assert set(RECIPES) == {"inception_v3_imagenet", "xception_imagenet", "xception_jft"}
    assert all(build().name == name and build().sources for name, build in RECIPES.items())


def test_a_recipe_is_checked():
    with pytest.raises(ValueError, match="optimizer: expected one of rmsprop, sgd"):
        dataclasses.replace(xception_jft(), optimizer="adam")
    with pytest.raises(ValueError, match="exactly one of decay_epochs"):
        dataclasses.replace(xception_jft(), decay_epochs=2)
    with pytest.raises(ValueError, match="exactly one of decay_epochs"):
        Recipe("none", "sgd", 0.1, 0.9)


@pytest.mark.parametrize("name", RECIPES)
def test_weight_decay_is_on_weights_only(name):
    recipe, model = RECIPES[name](), small_model()
    optimizer = build_optimizer(recipe, model)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {id(p): recipe.weight_decay if p.dim() > 1 else 0.0 for p in model.parameters()}
    everywhere = build_optimizer(recipe, model.parameters())
    assert [group["weight_decay"] for group in everywhere.param_groups] == [recipe.weight_decay]


def test_frozen_parameters_are_left_out():
    model = small_model()
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(xception_imagenet(), model)
    assert all(p is not model[0].weight for group in optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize(
    ("name", "steps_per_epoch", "batch_size", "staircase"),
    [
        ("inception_v3_imagenet", 10, 32, 20),
        ("xception_imagenet", 7, 64, 14),
        ("xception_jft", 10, 100_000, 30),
        ("xception_jft", 10, 10**9, 1),
    ],
)
def test_learning_rate_is_a_staircase(name, steps_per_epoch, batch_size, staircase):
    recipe, model = RECIPES[name](), small_model()
    optimizer = build_optimizer(recipe, model)
    scheduler = build_scheduler(recipe, optimizer, steps_per_epoch, batch_size)
    rates = []
    for _ in range(2 * staircase + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [recipe.learning_rate * recipe.learning_rate_factor ** (i // staircase) for i in range(len(rates))]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("bad", [{"steps_per_epoch": 0, "batch_size": 1}, {"steps_per_epoch": 1, "batch_size": 0}])
def test_scheduler_says_what_it_expects(bad):
    recipe = xception_imagenet()
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        build_scheduler(recipe, build_optimizer(recipe, small_model()), **bad)


def test_gradients_are_clipped_together():
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients(xception_imagenet(), parameters) is None
    assert parameters[1].grad.item() == 4
    assert clip_gradients(inception_v3_imagenet(), parameters).item() == pytest.approx(5)
    assert math.hypot(parameters[0].grad[0], parameters[1].grad[0]) == pytest.approx(2, rel=1e-5)


def test_running_average_of_parameters_and_statistics():
    recipe, model = xception_imagenet(), small_model()
    average = build_average(recipe, model)
    optimizer = build_optimizer(recipe, model)
    expected = None
    for update in range(4):
        step_once(model, optimizer)
        average.update_parameters(model)
        state = {name: t.detach().clone() for name, t in model.state_dict().items() if t.is_floating_point()}
        if expected is None:
            expected = state
        else:
            decay = min(recipe.average_decay, (1 + update) / (10 + update))
            expected = {name: decay * expected[name] + (1 - decay) * state[name] for name in state}
    found = average.module.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert found["1.num_batches_tracked"] == 4
    assert build_average(dataclasses.replace(recipe, average_decay=None), model) is None


def test_loss_with_and_without_the_auxiliary_classifier():
    recipe = inception_v3_imagenet()
    loss = RecipeLoss(recipe)
    logits, auxiliary = torch.randn(2, 6, 9, requires_grad=True).unbind()
    target = torch.randint(0, 9, (6,))
    main = F.cross_entropy(logits, target, label_smoothing=0.1)
    torch.testing.assert_close(loss(logits, target), main)
    side = F.cross_entropy(auxiliary, target, label_smoothing=0.1)
    torch.testing.assert_close(loss(InceptionOutputs(logits, auxiliary), target), main + 0.4 * side)
