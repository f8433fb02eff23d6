"""The layer shapes extracted from the models: complete, and consistent with the models' own totals."""

from math import prod

import pytest
import torch
from torch import nn

from inception_kernels import models
from inception_kernels.models.layers import LayerSpec, distinct_layers, distinct_pairs, distinct_pools


def total(layers: list[LayerSpec], quantity) -> int:
    return sum(layer.count * quantity(layer) for layer in layers)


@pytest.mark.parametrize(("name", "occurrences", "distinct"), [("inception_v3", 94, 43), ("xception", 40, 17)])
def test_every_convolution_is_in_one_layer(name, occurrences, distinct):
    layers = distinct_layers(name)
    assert (sum(layer.count for layer in layers), len(layers)) == (occurrences, distinct)
    with torch.device("meta"):
        model = models.load(name).eval()
    heads = {path for layer in layers for path in layer.paths}
    convolutions = {path for path, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    pointwise = {path for path in convolutions if path.endswith(".pointwise")}
    assert heads == {path for path in convolutions - pointwise if not path.startswith("AuxLogits")}


@pytest.mark.parametrize(("name", "gmac"), [("inception_v3", 5.71), ("xception", 8.36)])
def test_the_layers_add_up_to_the_network(name, gmac):
    layers = distinct_layers(name)
    assert total(layers, lambda layer: layer.macs()) / 1e9 == pytest.approx(gmac, abs=0.006)
    with torch.device("meta"):
        model = models.load(name, **({"aux_logits": False} if name == "inception_v3" else {}))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    classifier = sum(parameter.numel() for parameter in model.fc.parameters())
    assert total(layers, lambda layer: layer.parameters) == parameters - classifier


def test_inception_has_34_asymmetric_convolutions_and_their_chains():
    asymmetric = [layer for layer in distinct_layers("inception_v3") if 1 in layer.kernel_size != (1, 1)]
    assert sum(layer.count for layer in asymmetric) == 34
    assert all(layer.activation == "relu" and layer.eps == 1e-3 for layer in asymmetric)
    pairs = distinct_pairs("inception_v3")
    # Three in each of the four 17x17 modules, one in the reduction; the 1x3 and 3x1 at 8x8 are siblings, not chains.
    assert sum(pair.count for pair in pairs) == 13
    assert all(pair.first.kernel_size in ((1, 7), (7, 1)) for pair in pairs)
    assert distinct_pairs("xception") == []


@pytest.mark.parametrize(("name", "maxima", "averages"), [("inception_v3", 4, 9), ("xception", 4, 0)])
def test_every_pool_is_in_one_spec(name, maxima, averages):
    pools = distinct_pools(name)
    with torch.device("meta"):
        model = models.load(name).eval()
    kinds = {"max_pool2d": nn.MaxPool2d, "avg_pool2d": nn.AvgPool2d}
    for pool in pools:
        modules = [model.get_submodule(path) for path in pool.paths]
        assert {type(module) for module in modules} == {kinds[pool.operator]}
        outputs = {module(torch.empty(1, pool.in_channels, pool.height, pool.width)).shape[2:] for module in modules}
        assert outputs == {pool.output_size}
    counts = [sum(pool.count for pool in pools if pool.operator == kind) for kind in kinds]
    assert counts == [maxima, averages]


def test_xception_separable_layers():
    layers = [layer for layer in distinct_layers("xception") if layer.operator == "separable_conv2d"]
    assert sum(layer.count for layer in layers) == 34
    middle = [layer for layer in layers if (layer.in_channels, layer.out_channels, layer.height) == (728, 728, 19)]
    assert sorted((layer.count, layer.adds_residual) for layer in middle) == [(8, True), (17, False)]
    assert {layer.input_activation for layer in middle} == {"relu"}
    first = next(layer for layer in layers if "block1.rep.0.conv1" in layer.paths)
    assert (first.input_activation, first.activation, str(first)) == ("none", "none", "64->128 3x3 @147")
    last = next(layer for layer in layers if "conv4.conv1" in layer.paths)
    assert (last.input_activation, last.activation, last.eps) == ("relu", "relu", 1e-5)


def test_quantities_of_one_layer_by_hand():
    layer = next(layer for layer in distinct_layers("xception") if "block3.rep.4.conv1" in layer.paths)
    assert layer.output_size == (37, 37)
    assert layer.weight_shapes == ((728, 1, 3, 3), (728, 728, 1, 1))
    pixels = 37 * 37
    assert layer.macs(2) == 2 * pixels * 728 * (9 + 728)
    assert layer.backward_macs() == 2 * layer.macs()
    assert layer.parameters == 728 * 9 + 728 * 728 + 2 * 728
    assert layer.bytes(2, torch.bfloat16) == 2 * (2 * 2 * pixels * 728 + layer.parameters)


def test_shapes_match_what_the_model_computes():
    """Run one layer of each operator at a small image size and compare the recorded sizes."""
    for name in ("inception_v3", "xception"):
        with torch.device("meta"):
            model = models.load(name).eval()
        seen = {}
        for path, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda _, inputs, output, path=path, seen=seen: seen.__setitem__(
                        path, (inputs[0].shape, output.shape)
                    )
                )
        model(torch.empty(1, 3, 107, 107, device="meta"))
        for layer in distinct_layers(name, image_size=107):
            for path in layer.paths:
                x, y = seen[path]
                assert x == (1, layer.in_channels, layer.height, layer.width)
                assert tuple(y[2:]) == layer.output_size
                assert prod(y) > 0
