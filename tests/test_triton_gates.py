"""The Triton kernels compile, for GPUs that are not here, to what they were written for: a sample of tools.triton_gates."""

import re

import pytest

pytest.importorskip("triton", reason="Triton has no build for this platform")

from inception_kernels.models.layers import LayerSpec, distinct_layers
from tools.cubin_gates import binaries
from tools.triton_gates import cases
from tools.triton_gates.read import read, violations

SAMPLE = (
    ("inception_v3", r"^3->32 ", "forward"),
    ("inception_v3", r"^128->192 7x1", "training"),
    ("inception_v3", r"^160->160 1x7", "backward"),
    ("inception_v3", r"^160->160 7x1", "tiles"),
    ("xception", r"^64->128 3x3 @147", "training"),
    ("xception", r"^728->728 3x3 @19", "backward"),
)


def layer_named(network: str, pattern: str) -> LayerSpec:
    return next(layer for layer in distinct_layers(network) if re.search(pattern, str(layer)))


@pytest.fixture(scope="module", autouse=True)
def _tools(pytestconfig: pytest.Config) -> None:
    try:
        binaries.nvdisasm()
        binaries.cuobjdump()
    except binaries.MissingTool as error:
        if pytestconfig.getoption("--require-third-party"):  # CI installs them
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.mark.parametrize("arch", ["80", "90", "100"])
@pytest.mark.parametrize(("network", "pattern", "what"), SAMPLE, ids=[f"{n}-{p}-{w}" for n, p, w in SAMPLE])
def test_sample(network: str, pattern: str, what: str, arch: str) -> None:
    kernels = cases.compile_case(cases.Case(layer_named(network, pattern), 256, what), arch)
    assert kernels
    broken = [sentence for kernel in kernels for sentence in violations(read(kernel))]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("arch", ["80", "90", "100"])
def test_loss(arch: str) -> None:
    kernels = cases.compile_loss(arch)
    assert {kernel.name for kernel in kernels} == {"_forward", "_sum_rows", "_backward"}
    assert not [sentence for kernel in kernels for sentence in violations(read(kernel))]


def test_dense_convolutions_on_hopper_are_bound_by_the_tensor_cores() -> None:
    (kernel,) = cases.compile_case(cases.Case(layer_named("inception_v3", r"^192->192 1x7"), 256, "forward"), "90")
    reading = read(kernel)
    assert kernel.name == "_convolution_descriptor"
    assert reading.wgmma > 0
    assert reading.tensor_share == 1.0
