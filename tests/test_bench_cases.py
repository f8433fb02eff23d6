"""What the benchmarks measure: the layers of the networks, bounded subsets, who is raced."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_cases import BUILDERS, LOSS

from inception_kernels.bench import Config
from inception_kernels.bench.cases import cases
from inception_kernels.bench.config import LAYER_OPERATORS, OPERATORS
from inception_kernels.bench.contenders import contenders
from inception_kernels.models.layers import distinct_layers, distinct_pairs

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("small_probe")


def test_cases_are_the_layers_of_the_models() -> None:
    config = Config(batches=(1,), dtypes=("float32",), passes=("inference",))
    found = cases(config)
    names = {case.name for case in found}
    for network in config.networks:
        assert network in names
        for spec in distinct_layers(network):
            assert f"{network} {dataclasses.replace(spec, adds_residual=False)}" in names
        for chained in distinct_pairs(network):
            assert f"{network} {chained}" in names
    assert [case.kind for case in found[:2]] == ["network", "network"]


def test_segments_suite_measures_both_implementations(tmp_path: Path) -> None:
    out = tmp_path / "segments.json"
    chosen = "1-float32-16-spatial_first"
    command = ["bench_segments.py", "-q", "-k", chosen, "--benchmark-max-time=0.01", f"--benchmark-json={out}"]
    # A worker of pytest-xdist would write no JSON, and the suite would take itself for one.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *command],
        cwd=ROOT / "benchmarks", env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    found = json.loads(out.read_text())["benchmarks"]
    assert {each["extra_info"]["backend"] for each in found} == {"reference", "automatic"}
    assert len({each["extra_info"]["gflop"] for each in found}) == 1


def test_every_operator_has_cases_and_a_suite() -> None:
    assert sorted(BUILDERS) == sorted(OPERATORS)
    for operator in OPERATORS:
        text = (ROOT / "benchmarks" / f"bench_{operator}.py").read_text()
        assert f'OPERATOR = "{operator}"' in text and f"def bench_{operator}(" in text
        assert cases(Config(kinds=("operator",), operators=(operator,), batches=(1,), passes=("inference",)))
    assert {case.operator for case in cases(Config(kinds=("operator",)))} == set(LAYER_OPERATORS)


def test_cases_of_the_operators_that_no_network_has() -> None:
    common = {"kinds": ("operator",), "batches": (3,), "dtypes": ("float32",), "passes": ("inference", "training")}
    losses = cases(Config(operators=(LOSS,), layers=2, **common))
    assert [case.input_shape for case in losses] == [(3, 100_000), (3, 17_000)] * 2
    assert [case.work[0] for case in losses[::2]] == [(3e5, 1.2e6), (9e5, 3.6e6)]
    assert losses[0].build()(torch.zeros(3, 100_000)).item() == pytest.approx(math.log(100_000))

    found = cases(Config(operators=("pointwise_depthwise_conv2d",), networks=("xception",), **common))
    assert len({case.name for case in found}) == len(found) / 2 > 5
    largest = next(case for case in found if case.name == "xception pointwise first 728->728 3x3 @19")
    assert largest is found[0]
    assert largest.work[0][0] == 3 * 19 * 19 * 728 * (728 + 9)
    module = found[0].build()
    assert sum(each.numel() for each in module.parameters()) == 728 * (728 + 9 + 2)


def test_cases_of_the_pools() -> None:
    common = {"kinds": ("operator",), "batches": (2,), "dtypes": ("float32",), "passes": ("inference",)}
    found = cases(Config(operators=("max_pool2d", "avg_pool2d"), **common))
    assert [(case.operator, case.name.split()[0]) for case in found].count(("max_pool2d", "inception_v3")) == 4
    assert [(case.operator, case.name.split()[0]) for case in found].count(("avg_pool2d", "xception")) == 0
    largest = next(case for case in found if case.name == "xception 128 3x3 stride 2 @147")
    assert largest.input_shape == (2, 128, 147, 147)
    assert largest.work == ((2 * 128 * 74 * 74 * 9, 4 * 2 * 128 * (147 * 147 + 74 * 74)),)
    assert largest.build()(torch.zeros(1, 1, 147, 147)).shape == (1, 1, 74, 74)


def test_network_work_is_that_of_the_papers() -> None:
    found = cases(Config(batches=(1, 2), kinds=("network",), dtypes=("float32",), passes=("inference", "training")))
    gmac = {(case.name, case.batch, case.pass_): sum(macs for macs, _ in case.work) / 1e9 for case in found}
    assert gmac["inception_v3", 1, "inference"] == pytest.approx(5.71, abs=0.01)
    assert gmac["xception", 1, "inference"] == pytest.approx(8.36, abs=0.01)
    assert gmac["xception", 2, "training"] == pytest.approx(6 * gmac["xception", 1, "inference"])


def test_quick_is_a_subset_that_is_bounded() -> None:
    quick = Config().quick()
    assert quick.batches == (1,)
    assert quick.max_seconds is not None
    everything = {(case.name, case.dtype, case.pass_) for case in cases(Config())}
    assert {(case.name, case.dtype, case.pass_) for case in cases(quick)} < everything


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("networks", ("vgg",), "inception_v3"),
        ("dtypes", ("int8",), "float32"),
        ("passes", ("backward",), "training"),
        ("operators", ("conv3d",), "separable_conv2d"),
        ("batches", (0,), "above zero"),
        ("rounds", 0, "above zero"),
    ],
)
def test_config_names_what_it_expected(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Config(), **{field: value})


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected backends out of eager.*got caffe"):
        contenders(Config(backends=("caffe",)))
    assert [each.name for each in contenders(Config(backends=("openvino",)))] == ["eager", "openvino"]


def test_all_baselines_of_each_device_are_raced() -> None:
    cpu = {each.name for each in contenders(Config())}
    assert {"eager", "channels_last", "torch.compile", "openvino", "onnxruntime", "inception_kernels"} <= cpu
    gpu = {each.name for each in contenders(Config(device="cuda", tune=True))}
    assert {"eager", "channels_last", "cuda_graph", "max_autotune", "inception_kernels:tuned"} <= gpu
