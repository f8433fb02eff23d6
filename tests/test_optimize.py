"""`optimize`: networks that people run, against float64; shapes, layouts, threads, and what is refused."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
from inception_kernels.graph import module as graph_module
from inception_kernels.graph.module import KEPT_SHAPES

pytestmark = needs_kernels


def evaluate(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(*args, **kwargs)


def evaluate_in_double(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    args, kwargs = pytree.tree_map(lambda leaf: leaf.double() if isinstance(leaf, Tensor) else leaf, (args, kwargs))
    return evaluate(copy.deepcopy(model).double(), *args, **kwargs)


def prepared(name: str, x: Tensor, **options) -> nn.Module:
    torch.manual_seed(0)
    return randomize_batch_norm(models.load(name, **options), example_input=x).eval()


def assert_all_as_accurate(ours: Any, plain: Any, exact: Any) -> None:
    """Every tensor of a result; the rest must be equal."""
    leaves, spec = pytree.tree_flatten(ours)
    assert spec == pytree.tree_structure(plain) == pytree.tree_structure(exact)
    for actual, baseline, wide in zip(leaves, pytree.tree_leaves(plain), pytree.tree_leaves(exact), strict=True):
        if isinstance(baseline, Tensor):
            assert_as_accurate(actual, baseline, wide)
        else:
            assert actual == baseline


def check(model: nn.Module, fast: nn.Module, x: Tensor) -> None:
    nhwc = copy.deepcopy(model).to(memory_format=torch.channels_last)
    plain = evaluate(nhwc, x.contiguous(memory_format=torch.channels_last))
    assert_all_as_accurate(fast(x), plain, evaluate_in_double(model, x))


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


class Function(nn.Module):
    """A function of its own layers and the inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def conv(channels: int = 3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, 4, 3, padding=1)


def same_as_pytorch(model: nn.Module, *calls: tuple[Any, ...]) -> nn.Module:
    """Optimised for the first call, right in all of them."""
    model.eval()
    fast = ik.optimize(model, calls[0])
    for inputs in calls:
        assert_all_as_accurate(fast(*inputs), evaluate(model, *inputs), evaluate_in_double(model, *inputs))
    return fast


def test_new_sizes_from_several_threads():
    """torch.export is for one thread at a time."""
    fast = ik.optimize(nn.Sequential(conv(), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8))
    inputs = [torch.randn(batch, 3, size, 9) for size in (5, 6, 7) for batch in (1, 2)]
    with ThreadPoolExecutor(len(inputs)) as pool:
        results = list(pool.map(fast, inputs))
    for x, y in zip(inputs, results, strict=True):
        assert torch.equal(fast(x), y)
    assert fast(torch.randn(2, 3, 10, 10)).shape == (2, 4, 10, 10)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.conv(x) * (1.0 * x.shape[0]),
        lambda m, x: (m.conv(x), x.shape[0]),
        lambda m, x: m.conv(x) if x.shape[0] < 3 else m.conv(x).relu(),
        lambda m, x: m.conv(x).sum((2, 3)) / x.shape[0],
    ],
    ids=["factor", "output", "branch", "in a PyTorch call"],
)
def test_results_that_depend_on_the_batch_size(function):
    same_as_pytorch(Function(function, conv=conv()), *((torch.randn(N, 3, 6, 5),) for N in (2, 5, 1, 3, 2)))


def test_batches_that_broadcast():
    model = Function(lambda m, x, y: m.conv(x) + m.conv(y), conv=conv())
    batches = ((1, 1), (2, 2), (3, 3), (1, 2), (2, 1), (3, 1))
    same_as_pytorch(model, *((torch.randn(N, 3, 6, 5), torch.randn(M, 3, 6, 5)) for N, M in batches))


def test_a_graph_without_the_batch_size_is_captured_twice(monkeypatch):
    captures = []
    capture = graph_module.capture
    monkeypatch.setattr(graph_module, "capture", lambda *args: captures.append(1) or capture(*args))
    same_as_pytorch(nn.Sequential(conv(), nn.ReLU()), *((torch.randn(N, 3, 6, 5),) for N in (1, 2, 3, 4, 1, 2)))
    assert len(captures) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.conv(x).flatten(1),
        lambda m, x: m.conv(x).view(x.shape[0], -1),
        lambda m, x: m.conv(x).permute(0, 2, 3, 1).contiguous().view(x.shape[0], -1),
        lambda m, x: F.relu(m.conv(x)).view(x.shape[0], 2, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
        lambda m, x: m.conv(x).mean(),
        lambda m, x: x[:, 0].unsqueeze(1),
        lambda m, x: (x[:, 1].unsqueeze(1), m.conv(x)[:, 2].unsqueeze(1)[:, 0].unsqueeze(1)),
        lambda m, x: F.max_pool2d(torch.cat([x[:, :0], m.conv(x)], 1), 2),
        lambda m, x: F.avg_pool2d(m.conv(x), 2, divisor_override=-3),
        lambda m, x: m.conv(x) + m.conv(x).double(),
        lambda m, x: torch.cat([m.conv(x), m.conv(x).double()], 1),
        lambda m, x: (m.conv(x).relu(), F.max_pool2d(m.conv(x).double(), 2).relu()),
        lambda m, x: m.conv(x) * torch.full((1,), 2.0, dtype=torch.float64),
        lambda m, x: m.conv(x) * torch.full((1, 1, 1, 1, 1), 2.0),
        lambda m, x: m.conv((((x * 50).to(torch.uint8) * (1 / 255)) - 0.5).to(x.dtype)),
    ],
)
def test_what_stays_with_pytorch(function):
    same_as_pytorch(Function(function, conv=conv()), (torch.randn(2, 3, 6, 6),), (torch.randn(3, 3, 6, 6),))


def test_arguments_that_are_no_tensors():
    model = Function(lambda m, x, factor, other: m.conv(x) * factor, conv=conv())
    x = torch.randn(2, 3, 6, 6)
    same_as_pytorch(model, (x, 2.0, None), (x, 3.0, None), (x, 3.0, 1))


def test_copies_have_memory_of_their_own():
    x = torch.randn(1, 3, 6, 6)

    def function(m, x):
        y = m.conv(x)
        return x.clone(), y, y.clone(), y.clone()

    results = same_as_pytorch(Function(function, conv=conv()), (x,))(x)
    assert len({t.data_ptr() for t in (x, *results)}) == 5


def test_as_strided_is_refused():
    model = Function(lambda m, x: m.conv(x).as_strided((2, 2), (1, 2)), conv=conv()).eval()
    with pytest.raises(CaptureError, match="as_strided"):
        ik.optimize(model, torch.randn(1, 3, 6, 6))


def test_a_batch_norm_far_from_zero_is_not_folded_into_the_next_convolution():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(32)
    norm.running_mean.fill_(10)
    model = nn.Sequential(norm, nn.Conv2d(32, 8, 3)).eval()
    x = torch.randn(2, 32, 12, 12) + 10
    fast = ik.optimize(model, x)
    assert fast.report.passes["fold_into_consumer"] == 0
    check(model, fast, x)


def test_programs_of_a_network_share_their_weights():
    """PyTorch's calls between them, here the grouped convolutions, make many programs."""
    grouped = [nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=2)) for _ in range(4)]
    x = torch.randn(1, 16, 8, 8)
    fast = ik.optimize(nn.Sequential(*grouped).eval(), x)
    programs = [program for program, _ in fast.programs(x)]
    assert len(programs) == 4
    assert len({program.constants.data_ptr() for program in programs}) == 1


@pytest.mark.parametrize("again", [copy.deepcopy, lambda fast: pickle.loads(pickle.dumps(fast))])
def test_copies_and_files_capture_again(small, again):
    model, fast = small
    check(model, again(fast), torch.randn(2, 3, 23, 23))


def test_under_autocast(small):
    _, fast = small
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="not in autocast's"):
        fast(torch.randn(2, 3, 23, 23))


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


def test_plans_of_batch_sizes_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(graph_module, "KEPT_PLANS", 3)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()).eval()
    fast = ik.optimize(model, torch.randn(2, 3, 8, 8))
    for batch in (*range(1, 9), 2, 8):
        check(model, fast, torch.randn(batch, 3, 8, 8))
    assert {len(network._plans) for network in fast._networks.values()} == {3}


def test_structured_inputs_and_outputs():
    model = Structured().eval()
    for size in (8, 11):
        x = {"x": torch.randn(2, 3, size, size), "other": torch.randn(2, 3, size, size)}
        fast = ik.optimize(model, example_input=x)
        for other in (size, size + 2):
            x = {"x": torch.randn(2, 3, other, other), "other": torch.randn(2, 3, other, other)}
            assert_all_as_accurate(fast(**x), evaluate(model, **x), evaluate_in_double(model, **x))


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
