"""The Triton operators in torch's dispatcher: schemas, rules of torch.library, and reasons where they cannot run."""

import pytest
import torch
from operator_cases import conv_case, separable_case

import inception_kernels as ik
from inception_kernels import _extension, backends
from inception_kernels.triton import register

OPERATORS = [schema.partition("(")[0] for schema in register.SCHEMAS]
# Options that only the compiled operators have, and what they are by default.
OF_THE_COMPILED = {f"{name}_backward": {"float32_weights": False} for name in ("conv2d_bn_act", "separable_conv2d")}


def arguments(schema: torch.FunctionSchema) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in schema.arguments]


@pytest.mark.skipif(not _extension.available, reason="the compiled operators are not built")
@pytest.mark.parametrize("name", OPERATORS)
def test_schemas_are_those_of_the_compiled_operators(name: str) -> None:
    ours = getattr(torch.ops.inception_kernels_triton, name).default._schema
    theirs = getattr(torch.ops.inception_kernels, name).default._schema
    assert arguments(ours) == arguments(theirs)[: len(ours.arguments)]
    assert {a.name: a.default_value for a in theirs.arguments[len(ours.arguments) :]} == OF_THE_COMPILED.get(name, {})
    assert [str(r.type) for r in ours.returns] == [str(r.type) for r in theirs.returns]


def leaves(case):
    return {name: t.requires_grad_(not name.startswith("running")) for name, t in case.tensors.items()}


def test_opcheck_of_a_dense_convolution() -> None:
    t = leaves(conv_case(C=8, K=16, N=1, H=4, W=5, window=(1, 3), padding=(0, 1)))
    norm = (t["bn_weight"], t["bn_bias"], t["running_mean"], t["running_var"])
    call = (t["x"], t["weight"], *norm, None, None, [1, 1], [0, 1], [1, 1], "relu", 1e-5)
    torch.library.opcheck(torch.ops.inception_kernels_triton.conv2d_bn_act.default, call)


def test_opcheck_of_a_separable_convolution_in_training() -> None:
    t = leaves(separable_case(C=8, K=16, N=2, H=4, W=5, padding=1))
    call = (
        t["x"], t["depthwise_weight"], t["pointwise_weight"], t["bn_weight"], t["bn_bias"], None, None, None,
        [1, 1], [1, 1], [1, 1], "relu", "none", "relu", 1e-5,
    )  # fmt: skip
    torch.library.opcheck(torch.ops.inception_kernels_triton.separable_conv2d_training.default, call)


def test_reasons_where_the_kernels_cannot_run() -> None:
    x = torch.zeros(1, 8, 3, 3)
    assert backends.can_run_triton(x, "conv2d_bn_act") is None
    assert "float64" in str(backends.can_run_triton(x.double(), "conv2d_bn_act"))
    assert "no Triton kernel" in str(backends.can_run_triton(x, "pointwise_depthwise_conv2d"))
    with backends.use_backend("triton"), pytest.raises(backends.BackendUnavailableError, match="float64"):
        ik.conv2d_bn_act(x.double(), torch.zeros(4, 8, 1, 1).double())
