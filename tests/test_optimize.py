"""`optimize`: networks that people run, against float64; shapes, layouts, threads, and what is refused."""

from __future__ import annotations

import copy
import threading
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_accurate, needs_kernels, randomize_batch_norm
from swap_models import Branches, Residual
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import inception_kernels as ik
from inception_kernels import backends, models
from inception_kernels.graph import CaptureError
from inception_kernels.graph.module import KEPT_SHAPES

pytestmark = needs_kernels


def evaluate(model: nn.Module, x: Tensor):
    with torch.no_grad():
        return model(x)


def prepared(name: str, x: Tensor, **options) -> nn.Module:
    torch.manual_seed(0)
    return randomize_batch_norm(models.load(name, **options), example_input=x).eval()


def check(model: nn.Module, fast: nn.Module, x: Tensor) -> None:
    exact = pytree.tree_leaves(evaluate(copy.deepcopy(model).double(), x.double()))
    nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
    plain = pytree.tree_leaves(evaluate(nhwc, x.contiguous(memory_format=torch.channels_last)))
    ours = pytree.tree_leaves(fast(x))
    assert len(ours) == len(exact)
    for actual, baseline, wide in zip(ours, plain, exact, strict=True):
        assert_as_accurate(actual, baseline, wide)


OURS = [("inception_v3", 107, 85, 0), ("xception", 71, 7, 34)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("name", "size", "dense", "separable"), OURS)
def test_the_two_networks(name, size, dense, separable, dtype):
    x = torch.randn(2, 3, size, size)
    model, x = prepared(name, x).to(dtype), x.to(dtype)
    fast = ik.optimize(model, example_input=x)
    report = fast.report
    assert report.programs == 1
    assert not report.declined
    assert (report.steps["Convolution"], report.steps.get("Separable", 0)) == (dense, separable)
    backends.reset_counters()
    check(model, fast, x)
    ran: Counter[str] = Counter()
    for kernel, count in backends.counters().items():
        ran[kernel.split(".")[0]] += count
    assert (ran["conv2d_bn_act"], ran["separable_conv2d"]) == (dense, separable)


THIRD_PARTY = [
    pytest.param("torchvision:inception_v3", 107, 1, {"transform_input": True, "aux_logits": False, "init_weights": False},
                 id="torchvision", marks=pytest.mark.third_party("torchvision")),
    pytest.param("torchvision:googlenet", 71, 1, {"aux_logits": False, "init_weights": False}, id="googlenet",
                 marks=pytest.mark.third_party("torchvision")),
    *(
        pytest.param(f"timm:{name}", size, 1, {}, id=name, marks=pytest.mark.third_party("timm", "torchvision"))
        for name, size in (("legacy_xception", 71), ("xception41", 71), ("xception41p", 71), ("inception_v4", 107))
    ),
    pytest.param("pretrainedmodels:xception", 71, 1, {"num_classes": 1000, "pretrained": None}, id="cadene",
                 marks=pytest.mark.third_party("pretrainedmodels")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "size", "programs", "options"), THIRD_PARTY)
def test_models_of_others(name, size, programs, options):
    x = torch.randn(2, 3, size, size)
    model = prepared(name, x, **options)
    fast = ik.optimize(model, example_input=x)
    assert (fast.report.programs, fast.report.declined) == (programs, {})
    check(model, fast, x)


@pytest.mark.third_party("segmentation_models_pytorch")
def test_a_segmentation_model_with_operators_that_have_no_step():
    import segmentation_models_pytorch as smp

    x = torch.randn(2, 3, 64, 64)
    torch.manual_seed(0)
    model = smp.DeepLabV3Plus("tu-xception41", encoder_weights=None)
    randomize_batch_norm(model, example_input=x).eval()
    fast = ik.optimize(model, example_input=x)
    assert len(fast.report.declined) == 3
    assert all("upsample_bilinear2d" in reason for reason in fast.report.declined.values())
    assert "upsample_bilinear2d" in str(fast)
    check(model, fast, x)
    check(model, fast, torch.randn(3, 3, 64, 64))  # captured again: an operator may hold the batch size
    check(model, fast, torch.randn(1, 3, 96, 64))


@pytest.mark.third_party("pytorch_fid")
def test_fid(monkeypatch):
    from pytorch_fid import inception

    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: {})
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *args, **kwargs: None)
    x = torch.rand(2, 3, 96, 96)
    torch.manual_seed(0)
    model = inception.InceptionV3([0, 1, 2, 3], resize_input=False)
    randomize_batch_norm(model, example_input=x).eval()
    fast = ik.optimize(model, example_input=x)
    assert not fast.report.declined
    check(model, fast, x)


# ---- shapes and layouts


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, nn.Module]:
    x = torch.randn(2, 3, 23, 23)
    torch.manual_seed(0)
    model = randomize_batch_norm(Branches(), example_input=x).eval()
    return model, ik.optimize(model, example_input=x)


@pytest.mark.parametrize("shape", [(1, 3, 23, 23), (5, 3, 23, 23), (2, 3, 31, 19)])
def test_other_sizes(small, shape):
    check(*small, torch.randn(shape))


def test_an_empty_batch(small):
    assert small[1](torch.randn(0, 3, 23, 23)).shape == (0, 5)


def test_layouts_threads_and_batches_give_the_same_bits(small):
    _, fast = small
    x = torch.randn(4, 3, 23, 23)
    y = fast(x)
    assert torch.equal(fast(x.contiguous(memory_format=torch.channels_last)), y)
    assert torch.equal(fast(torch.randn(4, 5, 23, 23).copy_(F.pad(x, (0, 0, 0, 0, 1, 1)))[:, 1:4]), y)
    assert torch.equal(torch.cat([fast(image) for image in x.split(1)]), y)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 2)
        assert torch.equal(fast(x), y)
    finally:
        torch.set_num_threads(threads)


def test_calls_from_several_threads(small):
    _, fast = small
    x = [torch.randn(2, 3, 23, 23) for _ in range(4)]
    expected = [fast(each) for each in x]
    results: list[list[Tensor]] = [[] for _ in x]

    def work(i: int) -> None:
        results[i] = [fast(x[i]) for _ in range(20)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(x))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(y, want) for got, want in zip(results, expected, strict=True) for y in got)
    assert all(len(got) == 20 for got in results)


class Structured(nn.Module):
    """Several inputs and outputs, a constant among them; a size of the image in a window."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("bias", torch.randn(4, 1, 1))

    def forward(self, x: Tensor, other: Tensor, scale: float = 2.0) -> dict[str, object]:
        y = self.conv(x) + self.conv(other)
        pooled = F.avg_pool2d(y, x.shape[2:])
        return {"y": y * scale + self.bias, "pooled": pooled, "constant": self.bias, "none": None, "number": 3}


def test_many_sizes_do_not_pile_up():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()).eval()
    fast = ik.optimize(model, torch.randn(1, 3, 8, 8))
    for size in range(9, 8 + KEPT_SHAPES):
        check(model, fast, torch.randn(1, 3, size, size))
    fast(torch.randn(2, 3, 8, 8))  # the oldest, used again
    before = fast.report.programs
    with pytest.warns(UserWarning, match="keeps 8 input shapes"):
        check(model, fast, torch.randn(1, 3, 30, 30))
    assert fast.report.programs == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast(torch.randn(1, 3, 8, 8))
    with pytest.warns(UserWarning, match="captured again"):
        check(model, fast, torch.randn(1, 3, 9, 9))


def test_structured_inputs_and_outputs():
    model = Structured().eval()
    for size in (8, 11):
        x = {"x": torch.randn(2, 3, size, size), "other": torch.randn(2, 3, size, size)}
        fast = ik.optimize(model, example_input=x)
        for other in (size, size + 2):
            x = {"x": torch.randn(2, 3, other, other), "other": torch.randn(2, 3, other, other)}
            with torch.no_grad():
                expected = model(**x)
            actual = fast(**x)
            assert actual["none"] is None
            assert actual["number"] == 3
            for name in ("y", "pooled", "constant"):
                torch.testing.assert_close(actual[name], expected[name])


# ---- what it is, and what it is not


def test_it_is_a_snapshot():
    x = torch.randn(2, 3, 43, 43)
    model = randomize_batch_norm(Residual(), example_input=x).eval()
    fast = ik.optimize(model, example_input=x)
    before = fast(x)
    with torch.no_grad():
        model.fc.bias.add_(1)
        model.bn1.running_mean.add_(1)
    assert torch.equal(fast(x), before)
    assert fast(torch.randn(2, 3, 51, 51)).shape == (2, 5)
    assert not list(fast.parameters())
    assert not fast.training
    assert fast.eval() is fast
    with pytest.raises(RuntimeError, match="for inference only"):
        fast.train()
    with pytest.raises(RuntimeError, match="snapshot"):
        fast.double()
    with pytest.raises(RuntimeError, match="no gradients"):
        fast(x.requires_grad_())
    with torch.no_grad():
        assert torch.equal(fast(x), before)


def test_bad_arguments():
    x = torch.randn(1, 3, 23, 23)
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got function"):
        ik.optimize(lambda x: x, example_input=x)
    with pytest.raises(ValueError, match=r"call model\.eval"):
        ik.optimize(Branches(), example_input=x)
    with pytest.raises(ValueError, match=r"on the CPU, got stem\.conv\.weight on meta"):
        ik.optimize(Branches().eval().to("meta"), example_input=x)
    with pytest.raises(TypeError, match="at least one tensor"):
        ik.optimize(Branches().eval(), example_input=())


def test_a_model_that_cannot_be_captured():
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"torch.export cannot capture Branch"):
        ik.optimize(Branch().eval(), example_input=torch.randn(1, 3, 4, 4))


def test_a_model_that_changes_itself():
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * self.calls

    with pytest.raises(CaptureError, match="changes calls"):
        ik.optimize(Counter().eval(), example_input=torch.randn(1, 3, 4, 4))


def test_profile(small):
    times = small[1].profile(torch.randn(2, 3, 23, 23), repeats=3)
    assert [time.kind for time in times].count("Convolution") == 5
    assert all(time.milliseconds > 0 for time in times)
    with pytest.raises(ValueError, match="repeats"):
        small[1].profile(torch.randn(2, 3, 23, 23), repeats=0)
