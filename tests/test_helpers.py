"""The tests' own tools."""

import pytest
import torch
from helpers import assert_as_accurate, randomize_batch_norm
from torch import nn

from inception_kernels import models


def test_random_batch_norm_keeps_activations_sane_and_the_mode():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 139, 139)
    model = models.xception().train()
    model.block3.eval()
    randomize_batch_norm(model, seed=5, example_input=x)
    assert model.training and not model.block3.training and model.block4.training
    features = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, inputs, output, path=path: features.__setitem__(path, output.std()))
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 139, 139))
    assert len(features) == 40
    assert all(0.2 < value < 5 for value in features.values()), features


def test_random_batch_norm_is_reproducible():
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        states.append(randomize_batch_norm(models.inception_v3(aux_logits=False), seed=5).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["Conv2d_1a_3x3.bn.running_mean"], torch.zeros(32))


@pytest.mark.usefixtures("poisoned_memory")
def test_poisoned_memory():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = torch.ones(3, dtype=dtype)
        for made in (torch.empty(3, dtype=dtype), torch.empty_like(x), x.new_empty(3), torch.empty_strided((3,), (2,))):
            assert made.isnan().all()


def test_tolerance_is_twice_the_baseline_plus_a_floor():
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    baseline = torch.tensor([1.0, 2.01])
    assert_as_accurate(torch.tensor([1.019, 2.0]), baseline, exact)
    assert_as_accurate(torch.tensor([1.0, 2.0 + 2.0**-21]), torch.tensor([1.0, 2.0]), exact)
    with pytest.raises(AssertionError, match=r"error 3\.000e-02, PyTorch's own x 2 2\.000e-02"):
        assert_as_accurate(torch.tensor([1.03, 2.0]), baseline, exact)
    with pytest.raises(AssertionError, match="not finite"):
        assert_as_accurate(torch.tensor([float("nan"), 2.0]), baseline, exact)
    with pytest.raises(AssertionError, match=r"expected torch\.float32, got torch\.float64"):
        assert_as_accurate(exact, baseline, exact)
