"""A layer's floor on a machine, and the probes of the machine."""

import json

import pytest
import torch

from inception_kernels import roofline

pytestmark = pytest.mark.usefixtures("small_probe")


MACHINE = roofline.Roofline({"float32": 100e9, "bfloat16": 1000e9}, {2**20: 64e9, 2**24: 16e9})


def test_bandwidth_is_interpolated_between_sizes() -> None:
    assert MACHINE.bandwidth(1) == 64e9
    assert MACHINE.bandwidth(2**30) == 16e9
    assert MACHINE.bandwidth(2**22) == pytest.approx(40e9)
    with pytest.raises(ValueError, match="measured copy"):
        roofline.Roofline({"float32": 1.0}).bandwidth(1)


def test_floor_is_the_longer_time_and_says_which() -> None:
    assert MACHINE.floor(50e9, 2**20, "float32") == roofline.Floor(1.0, "arithmetic")
    memory_bound = MACHINE.floor(1.0, 2**24, "float32")
    assert memory_bound.bound == "memory"
    assert memory_bound.seconds == pytest.approx(2**24 / 16e9)
    with pytest.raises(KeyError, match="float16"):
        MACHINE.floor(1.0, 1.0, "float16")


def test_network_floor_adds_layers() -> None:
    layers = [(50e9, 1.0), (1.0, float(2**24))]
    total = MACHINE.network_floor(layers, "float32")
    assert total.bound == "arithmetic"
    assert total.seconds == pytest.approx(1.0 + 2**24 / 16e9)


def test_best_of_two_probes_and_round_trip() -> None:
    other = roofline.Roofline({"float32": 120e9, "float16": 5e9}, {2**20: 50e9})
    best = MACHINE.best_of(other)
    assert best.product == {"float32": 120e9, "bfloat16": 1000e9, "float16": 5e9}
    assert best.copy == {2**20: 64e9, 2**24: 16e9}
    assert roofline.Roofline.from_dict(json.loads(json.dumps(best.to_dict()))) == best
    assert "GFLOP/s" in best.summary()


def test_all_products_of_the_probe_are_the_same_product() -> None:
    a, b = torch.randn(37, 12), torch.randn(12, 20)
    by_matrices, by_convolution = roofline._products(a, b)
    torch.testing.assert_close(by_matrices(), a @ b)
    torch.testing.assert_close(by_convolution()[0, :, :, 0].t(), a @ b)


def test_probe_measures_something() -> None:
    probed = roofline.measure("cpu", ("float32", "bfloat16"))
    assert set(probed.product) == {"float32", "bfloat16"}
    assert all(rate > 0 for rate in (*probed.product.values(), *probed.copy.values()))


def probe(monkeypatch: pytest.MonkeyPatch, seconds: dict[torch.dtype, float]) -> list[torch.Size]:
    """Products that take so long, the second three times as long; returns the sizes for which the second was called."""
    called: list[torch.Size] = []

    def second(shape: torch.Size, dtype: torch.dtype) -> float:
        called.append(shape)
        return 3 * seconds[dtype]

    monkeypatch.setattr(roofline, "_PRODUCTS", {"cpu": ((16, 16, 16), (32, 32, 32))})
    monkeypatch.setattr(
        roofline, "_products", lambda a, b: [lambda: seconds[a.dtype], lambda: second(a.shape, a.dtype)]
    )
    monkeypatch.setattr(roofline, "_cpu_seconds", lambda call, count: call())
    monkeypatch.setattr(roofline, "_copy_rate", lambda *_: 1e9)
    return called


def test_a_product_that_takes_longer_than_its_time_is_called_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    called = probe(monkeypatch, {torch.float32: 100.0})
    assert roofline.measure("cpu", ("float32",), seconds=0.25).product == {"float32": pytest.approx(2 * 16**3 / 100)}
    assert called == [(16, 16)] * 2


def test_sixteen_bits_are_multiplied_in_float32_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    called = probe(monkeypatch, {torch.float32: 1e-3, torch.bfloat16: 50.0, torch.float16: 1e-4})
    product = roofline.measure("cpu", ("bfloat16", "float16"), seconds=0.25).product
    assert product == {"bfloat16": pytest.approx(2 * 32**3 / 1e-3), "float16": pytest.approx(2 * 32**3 / 1e-4)}
    assert (32, 32) in called
