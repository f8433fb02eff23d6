"""The operator for the running statistics of a batch norm, against float64 and PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_accurate, needs_kernels

from inception_kernels.ops.update_running_statistics import fits, run, update_running_statistics

pytestmark = needs_kernels
OP = getattr(torch.ops.inception_kernels, "update_running_statistics", None)


def statistics(K, dtype=torch.float32):
    g = torch.Generator().manual_seed(K)
    mean, var, running_mean, running_var = (torch.rand(K, generator=g, dtype=torch.float64) for _ in range(4))
    return [t.to(dtype) for t in (running_mean, running_var, mean, var)]


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.5, 0.9997, 1.0])
@pytest.mark.parametrize("K", [1, 17, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_float64(dtype, K, momentum):
    running_mean, running_var, mean, var = statistics(K, dtype)
    wide = [t.double().clone() for t in (running_mean, running_var, mean, var)]
    baseline = running_mean.lerp(mean, momentum), running_var.lerp(var * (7 / 6), momentum)
    batches = torch.tensor(6)
    run(running_mean, running_var, batches, momentum, 7, mean, var)
    exact = [wide[0] + momentum * (wide[2] - wide[0]), wide[1] + momentum * (wide[3] * 7 / 6 - wide[1])]
    for got, theirs, truth in zip((running_mean, running_var), baseline, exact, strict=True):
        assert_as_accurate(got, theirs, truth)
    assert batches == 7


def test_as_batch_norm_does():
    running_mean, running_var, *_ = statistics(5)
    theirs = running_mean.clone(), running_var.clone()
    truths = running_mean.double(), running_var.double()
    x = torch.randn(3, 5, 4, 6, generator=torch.Generator().manual_seed(1))
    F.batch_norm(x, *theirs, training=True, momentum=0.2)
    F.batch_norm(x.double(), *truths, training=True, momentum=0.2)
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    update_running_statistics(running_mean, running_var, 0.2, 3 * 4 * 6, True, mean, var)
    for got, baseline, truth in zip((running_mean, running_var), theirs, truths, strict=True):
        assert_as_accurate(got, baseline, truth)


def test_the_ends_are_exact():
    for momentum, index in ((0.0, 0), (1.0, 2)):
        values = statistics(33)
        before = [t.clone() for t in values]
        run(values[0], values[1], None, momentum, 2**40, *values[2:])
        assert torch.equal(values[0], before[index])


def test_counts_as_a_write():
    running_mean, running_var, mean, var = statistics(4)
    batches = torch.tensor(0)
    leaf = mean.clone().requires_grad_()
    y = (leaf * running_mean).sum()
    run(running_mean, running_var, batches, 0.1, 9, mean, var)
    assert [t._version for t in (running_mean, running_var, batches, mean, var)] == [1, 1, 1, 0, 0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_what_does_not_fit_takes_pytorchs_operators():
    running_mean, running_var, mean, var = statistics(6)
    for like in (torch.bfloat16, torch.float64):
        own = running_mean.to(like), running_var.to(like)
        assert not fits(own, None, mean)
        update_running_statistics(*own, 0.5, 10, True, mean, var)
        before = running_mean.to(like)
        exact = 0.5 * before.double() + 0.5 * mean.double()
        assert_as_accurate(own[0], before.to(mean.dtype).lerp(mean, 0.5).to(like), exact)
    spaced = torch.zeros(12)[::2], torch.ones(12)[::2]
    assert not fits(spaced, None, mean)
    update_running_statistics(*spaced, 1.0, 10, True, mean, var)
    assert torch.equal(spaced[0], mean)
    assert not fits((running_mean, running_var), torch.tensor(0.0), mean)
    assert not fits((running_mean, None), None, mean)
    update_running_statistics(None, None, 0.1, 10, True, mean, var)
    update_running_statistics(running_mean, running_var, 0.1, 0, True, mean, var)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.__setitem__(0, torch.zeros(3)), r"running_mean: expected .* got float32 \[3\]"),
        (lambda a: a.__setitem__(1, a[1].double()), r"running_var: expected .* got float64"),
        (lambda a: a.__setitem__(1, torch.zeros(8)[::2]), "running_var: expected a contiguous"),
        (lambda a: a.__setitem__(2, torch.tensor(1.0)), "batches: expected one int64"),
        (lambda a: a.__setitem__(2, torch.tensor([1, 2])), "batches: expected one int64"),
        (lambda a: a.__setitem__(3, a[3].half()), "mean: expected a vector of float32 or float64"),
        (lambda a: a.__setitem__(4, a[4][:, None]), "var: expected"),
        (lambda a: a.__setitem__(6, 1), "count: expected more than one value per channel, got 1"),
    ],
)
def test_refuses(change, message):
    running_mean, running_var, mean, var = statistics(4)
    arguments = [running_mean, running_var, torch.tensor(1), mean, var, 0.1, 8]
    change(arguments)
    before = [a.clone() for a in arguments[:3]]
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments)
    for tensor, was in zip(arguments, before, strict=False):
        assert torch.equal(tensor, was)


def test_opcheck():
    running_mean, running_var, mean, var = statistics(4)
    torch.library.opcheck(OP.default, (running_mean, running_var, torch.tensor(1), mean, var, 0.1, 8))
    torch.library.opcheck(OP.default, (running_mean, running_var, None, mean, var, 0.1, 8))
