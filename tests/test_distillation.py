"""The distillation loss against its definition and PyTorch, and a network that learns from another one."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_accurate
from torch import Tensor, nn
from training_runs import patterns, small_net

from inception_kernels.training.distillation import DistillationLoss, Distilled, distillation_loss
from inception_kernels.training.recipes import inception_v3_imagenet
from inception_kernels.training.trainer import Options, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def logits(dtype: torch.dtype = torch.float64, scale: float = 3.0, shape: tuple[int, int] = (6, 11)) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(dtype) for _ in range(2)]


def torchs(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_p, log_q = ((each / temperature).log_softmax(1) for each in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def loss_and_gradient(function, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    leaf = student.clone().requires_grad_()
    loss = function(leaf, teacher, temperature)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_definition_and_gradient_of_the_paper(temperature):
    student, teacher = logits()
    p, q = ((each / temperature).exp() for each in (teacher, student))
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    loss, gradient = loss_and_gradient(distillation_loss, student, teacher, temperature)
    torch.testing.assert_close(loss, temperature**2 * (p * (p / q).log()).sum(1).mean())
    # Equation 2 of the paper, (q - p) / T, times T^2, of the mean over the rows.
    torch.testing.assert_close(gradient, temperature * (q - p) / len(q))


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_as_accurate_as_pytorch(dtype, temperature, scale):
    student, teacher = logits(DTYPES[dtype], scale)
    exact = loss_and_gradient(torchs, student.double(), teacher.double(), temperature)
    baseline = loss_and_gradient(torchs, student, teacher, temperature)
    ours = loss_and_gradient(distillation_loss, student, teacher, temperature)
    assert ours[0].dtype == torch.float32
    assert_as_accurate(ours[0].to(student.dtype), baseline[0], exact[0], "loss")
    assert_as_accurate(ours[1], baseline[1], exact[1], "gradient")


def test_nothing_to_learn_from_oneself_and_no_gradient_for_the_teacher():
    student, teacher = logits()
    assert distillation_loss(student, student, 2.0) == 0
    teacher.requires_grad_()
    assert not distillation_loss(student, teacher).requires_grad
    huge = torch.tensor([[1e4, -1e4, 0.0]])
    assert distillation_loss(huge, huge.flip(1)).isfinite()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        distillation_loss(*logits(), temperature)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((3,), (3,)), ((1, 3), (2, 3))])
def test_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="logits"):
        distillation_loss(*map(torch.zeros, shapes))


def test_a_student_learns_and_its_teacher_stays():
    images = patterns()
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4))
    before = copy.deepcopy(teacher.state_dict())
    recipe = replace(inception_v3_imagenet(), label_smoothing=0.0)
    net = Distilled(small_net(dropout=0.0), teacher)
    trainer = Trainer(net, images, recipe, Options(epochs=3, batch_size=8), loss=DistillationLoss(2.0))
    rows = trainer.run().epochs
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert not any(parameter is frozen for parameter in trainer.parameters for frozen in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_labels_play_no_part():
    outputs = tuple(logits())
    loss = DistillationLoss(2.0)
    assert loss(outputs, torch.zeros(6).long()) == loss(outputs, torch.ones(6).long())


def test_evaluation_is_the_students():
    student, teacher = nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4), nn.Dropout())
    net, x = Distilled(student, teacher), torch.randn(2, 3)
    assert torch.equal(net.eval()(x), student(x))
    ours, theirs = net.train()(x)
    assert torch.equal(ours, student(x)) and torch.equal(theirs, teacher[0](x))
    assert not theirs.requires_grad and not teacher.training and student.training
