"""Each rewriting of a captured graph: the same numbers in float64, applied where it should be and only there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import randomize_batch_norm
from torch import Tensor, fx, nn

from inception_kernels.graph.capture import capture
from inception_kernels.graph.passes import PASSES, apply_passes
from inception_kernels.graph.passes.commute_pool import commute_pool
from inception_kernels.graph.passes.fold_into_consumer import fold_into_consumer
from inception_kernels.graph.passes.fuse_input_activation import fuse_input_activation
from inception_kernels.graph.passes.fuse_into_producer import fuse_into_producer
from inception_kernels.graph.passes.fuse_separable import fuse_separable
from inception_kernels.graph.passes.gather_channels import gather_channels
from inception_kernels.graph.passes.merge_siblings import merge_siblings


class Model(nn.Module):
    """A function of an image and of the layers that it is given."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(C: int, K: int, window: int = 1, **options) -> nn.Conv2d:
    return nn.Conv2d(C, K, window, **{"bias": False} | options)


def captured(model: nn.Module, x: Tensor) -> fx.GraphModule:
    torch.manual_seed(0)
    return capture(randomize_batch_norm(model.double().eval()), (x,), {}).graph


def kinds(graph: fx.GraphModule) -> Counter[str]:
    called = [graph.get_submodule(str(node.target)) for node in graph.graph.nodes if node.op == "call_module"]
    return Counter(type(module).__name__ for module in called)


def apply(passes: list, model: nn.Module, channels: int = 8, size: int = 9) -> tuple[list[int], Counter[str]]:
    """How often each pass changed the graph, and the steps that are left; the numbers are those of the model."""
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    graph = captured(model, x)
    changed = [each(graph) for each in passes]
    graph.recompile()
    with torch.no_grad():
        expected, (actual,) = model(x), graph(x)
    assert (actual - expected).abs().max() <= 1e-12 * expected.abs().max()
    return changed, kinds(graph)


FUSE = [fuse_separable, fuse_into_producer]


def test_batch_norm_and_activation_move_into_the_convolution():
    model = Model(lambda m, x: F.relu(m.bn(m.conv(x))), conv=conv(8, 12, 3, bias=True), bn=nn.BatchNorm2d(12))
    assert apply([fuse_into_producer], model) == ([2], {"Convolution": 1})


def test_batch_norm_that_someone_else_reads_around_stays():
    model = Model(lambda m, x: (y := m.conv(x)) + m.bn(y), conv=conv(8, 12), bn=nn.BatchNorm2d(12))
    changed, left = apply([fuse_into_producer], model)
    assert left == {"Convolution": 1, "Elementwise": 1}
    assert changed == [1]  # the sum moves into the batch norm's step


def test_an_activation_before_the_batch_norm_stays_before_it():
    model = Model(lambda m, x: m.bn(F.relu(m.conv(x))), conv=conv(8, 12), bn=nn.BatchNorm2d(12))
    assert apply([fuse_into_producer], model) == ([1], {"Convolution": 1, "Elementwise": 1})


def test_a_sum_moves_into_one_of_its_convolutions():
    model = Model(
        lambda m, x: F.relu(F.max_pool2d(x, 3, 1, 1) + m.bn(m.conv(x))), conv=conv(8, 8), bn=nn.BatchNorm2d(8)
    )
    assert apply([fuse_into_producer], model) == ([3], {"Convolution": 1, "MaxPool": 1})


def test_a_tensor_added_to_itself_stays():
    model = Model(lambda m, x: (y := m.conv(x)) + y, conv=conv(8, 8))
    assert apply([fuse_into_producer], model) == ([0], {"Convolution": 1, "Elementwise": 1})


def test_batch_norm_of_a_sum_stays_behind_it():
    model = Model(lambda m, x: m.bn(m.conv(x) + x), conv=conv(8, 8), bn=nn.BatchNorm2d(8))
    assert apply([fuse_into_producer], model) == ([1], {"Convolution": 1, "Elementwise": 1})


@pytest.mark.parametrize("middle", ["nothing", "relu", "bn", "bn_relu", "relu_bn"])
def test_depthwise_and_pointwise_become_separable(middle):
    steps = {"relu": F.relu, "bn": lambda y: model.bn(y)}

    def forward(m: Model, x: Tensor) -> Tensor:
        y = m.dw(x)
        for step in middle.split("_") if middle != "nothing" else ():
            y = steps[step](y)
        return m.pw(y)

    model = Model(forward, dw=conv(8, 8, 3, padding=1, groups=8, bias=True), pw=conv(8, 5), bn=nn.BatchNorm2d(8))
    changed, left = apply([fuse_separable], model)
    if middle == "relu_bn":  # a batch norm between the activation and the 1 x 1 is not of that form
        assert (changed, left["Depthwise"]) == ([0], 1)
    else:
        assert (changed, left) == ([1], {"Separable": 1})


def test_a_depthwise_result_that_is_read_twice_stays():
    model = Model(lambda m, x: m.pw(y := m.dw(x)) + y, dw=conv(8, 8, 3, padding=1, groups=8), pw=conv(8, 8))
    changed, left = apply([fuse_separable], model)
    assert (changed, left["Depthwise"]) == ([0], 1)


def test_an_activation_that_only_separable_convolutions_read():
    model = Model(lambda m, x: m.pw(m.dw(F.relu(x))) + x, dw=conv(8, 8, 3, padding=1, groups=8), pw=conv(8, 8))
    changed, left = apply([*FUSE, fuse_input_activation], model)
    assert (changed, left) == ([1, 1, 1], {"Separable": 1})
    model = Model(lambda m, x: m.pw(m.dw(y := F.relu(x))) + y, dw=conv(8, 8, 3, padding=1, groups=8), pw=conv(8, 8))
    changed, left = apply([*FUSE, fuse_input_activation], model)
    assert (changed, left) == ([1, 1, 0], {"Separable": 1, "Elementwise": 1})


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("ceil_mode", [True, False])
def test_an_average_pool_moves_behind_the_pointwise(count_include_pad, ceil_mode):
    pool = nn.AvgPool2d((3, 2), 1, (1, 0), ceil_mode, count_include_pad)
    model = Model(
        lambda m, x: F.relu(m.bn(m.conv(m.pool(x)))), pool=pool, conv=conv(8, 3, bias=True), bn=nn.BatchNorm2d(3)
    )
    assert apply([fuse_into_producer, commute_pool], model) == ([2, 1], {"AveragePool": 1, "Convolution": 1})


@pytest.mark.parametrize(
    ("pool", "point"),
    [
        (nn.AvgPool2d(3, 2), conv(8, 3)),  # a stride: fewer pixels behind it
        (nn.AvgPool2d(3, 1), conv(8, 9)),  # wider behind the 1 x 1
        (nn.AvgPool2d(3, 1), conv(8, 3, 3)),  # no 1 x 1
        (nn.AvgPool2d(3, 1), conv(8, 3, padding=1)),  # its padding is not the pool's
        (nn.MaxPool2d(3, 1), conv(8, 3)),
    ],
)
def test_pools_that_stay(pool, point):
    changed, _ = apply([commute_pool], Model(lambda m, x: m.point(m.pool(x)), pool=pool, point=point))
    assert changed == [0]


def test_siblings_are_merged():
    def forward(m: Model, x: Tensor) -> Tensor:
        a, b, c = F.relu(m.a(x)), F.relu(m.b(x)), F.relu(m.c(x))
        return torch.cat([a, m.b3(b), m.c3(c)], 1)

    model = Model(forward, a=conv(8, 4), b=conv(8, 5, bias=True), c=conv(8, 6), b3=conv(5, 7, 3, padding=1),
                  c3=conv(6, 3, 3, padding=1))  # fmt: skip
    changed, left = apply([fuse_into_producer, merge_siblings], model)
    # `a` goes straight into the concatenation.
    assert (changed, left) == ([3, 1], {"Convolution": 4, "Slice": 2, "Concatenate": 1})


def test_siblings_with_different_activations_or_windows_stay():
    model = Model(
        lambda m, x: m.b3(F.relu(m.a(x))) + m.b3(m.b(x)) + m.c(m.b3(m.d(x))),
        a=conv(8, 8), b=conv(8, 8), b3=conv(8, 8, 3), c=conv(8, 8), d=conv(8, 8, 3, padding=1),
    )  # fmt: skip
    changed, _ = apply([fuse_into_producer, merge_siblings], model)
    assert changed[1] == 0


def test_channels_scaled_one_by_one_are_folded_into_the_first_convolution():
    def forward(m: Model, x: Tensor) -> Tensor:
        channels = [x[:, c].unsqueeze(1) * (0.5 + c) + (0.1 * c - 0.3) for c in range(3)]
        return F.relu(m.bn(m.conv(torch.cat(channels, 1))))

    model = Model(forward, conv=conv(3, 6, 3, stride=2), bn=nn.BatchNorm2d(6))
    passes = [fuse_into_producer, gather_channels, fold_into_consumer]
    changed, left = apply(passes, model, channels=3)
    assert (changed[1:], left) == ([1, 1], {"Convolution": 1})


def test_channels_in_another_order_stay():
    def forward(m: Model, x: Tensor) -> Tensor:
        return torch.cat([x[:, c].unsqueeze(1) * (1.0 + c) for c in (2, 1, 0)], 1)

    changed, left = apply([gather_channels], Model(forward), channels=3)
    assert (changed, left["Concatenate"]) == ([0], 1)


def test_a_shift_in_front_of_padding_stays():
    model = Model(lambda m, x: m.conv(m.bn(x)), conv=conv(8, 4, 3, padding=1), bn=nn.BatchNorm2d(8))
    assert apply([fold_into_consumer], model) == ([0], {"Elementwise": 1, "Convolution": 1})


def test_all_passes_are_tested_here():
    assert all(globals().get(each.__name__) is each for each in PASSES)


def test_all_of_them_say_what_they_did():
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64)
    model = Model(lambda m, x: F.relu(m.bn(m.conv(x))), conv=conv(8, 12, 3), bn=nn.BatchNorm2d(12))
    assert apply_passes(captured(model, x)) == {each.__name__: 2 * (each is fuse_into_producer) for each in PASSES}
