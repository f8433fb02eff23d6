"""Properties that hold for every geometry: hypothesis chooses sizes, windows and options, float64 judges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from operator_cases import (
    DTYPES,
    LAYOUTS,
    Case,
    check,
    conv_case,
    in_layout,
    output_size,
    pair_case,
    run,
    separable_case,
)
from oracle import ACTIVATIONS

settings.register_profile(
    "ci", max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("ci")

pytestmark = pytest.mark.usefixtures("poisoned_memory")

small = st.integers(1, 12)
channels = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 32, 33, 48, 63, 65]))
activations = st.sampled_from(ACTIVATIONS)
dtypes = st.sampled_from(list(DTYPES.values()))
layouts = st.sampled_from(LAYOUTS)


@st.composite
def geometries(draw: Any) -> dict[str, Any]:
    window = (draw(st.integers(1, 5)), draw(st.integers(1, 7)))
    geometry = {
        "N": draw(st.integers(1, 3)), "C": draw(channels), "H": draw(small), "W": draw(small), "K": draw(channels),
        "window": window,
        "stride": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "padding": (draw(st.integers(0, 4)), draw(st.integers(0, 4))),
        "dilation": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
    }  # fmt: skip
    options = {name: geometry[name] for name in ("window", "stride", "padding", "dilation")}
    P, Q = output_size(geometry["H"], geometry["W"], **options)
    assume(P >= 1 and Q >= 1)
    geometry["training"] = draw(st.booleans()) and geometry["N"] * P * Q > 3
    return geometry


def drawn_tensors(data: Any, case: Case) -> Case:
    changes = {"x": in_layout(case.tensors["x"], data.draw(layouts, "layout of x"))}
    if "residual" in case.tensors:
        changes["residual"] = in_layout(case.tensors["residual"], data.draw(layouts, "layout of residual"))
    return case.but(**changes)


@given(data=st.data())
def test_conv2d_bn_act(data):
    geometry = data.draw(geometries())
    flags = {name: data.draw(st.booleans(), name) for name in ("bn", "bias", "residual")}
    case = conv_case(
        **geometry, **flags, dtype=data.draw(dtypes), activation=data.draw(activations),
        seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    check(drawn_tensors(data, case), "cpu", grad_layout=data.draw(layouts, "layout of the gradient"))


@given(data=st.data())
def test_separable_conv2d(data):
    geometry = data.draw(geometries())
    flags = {name: data.draw(st.booleans(), name) for name in ("bn", "bias", "residual", "depthwise_bias")}
    acts = {name: data.draw(activations, name) for name in ("input_activation", "mid_activation", "activation")}
    case = separable_case(**geometry, **flags, **acts, dtype=data.draw(dtypes), seed=data.draw(st.integers(0, 99)))
    check(drawn_tensors(data, case), "cpu", grad_layout=data.draw(layouts, "layout of the gradient"))


@given(data=st.data())
def test_asymmetric_pair(data):
    n, m = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    windows = ((1, n), (m, 1)) if data.draw(st.booleans(), "1xn first") else ((n, 1), (1, m))
    padding1 = (data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
    padding2 = (data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3)))
    N, H, W = data.draw(st.integers(1, 3)), data.draw(small), data.draw(small)
    P1, Q1 = output_size(H, W, windows[0], 1, padding1)
    assume(P1 >= 1 and Q1 >= 1)
    P, Q = output_size(P1, Q1, windows[1], 1, padding2)
    assume(P >= 1 and Q >= 1)
    case = pair_case(
        N=N, C=data.draw(channels), H=H, W=W, M=data.draw(channels), K=data.draw(channels), windows=windows,
        padding1=padding1, padding2=padding2, bn=data.draw(st.booleans(), "bn"), bias=data.draw(st.booleans(), "bias"),
        training=data.draw(st.booleans(), "training") and N * min(P * Q, P1 * Q1) > 3, dtype=data.draw(dtypes),
        mid_activation=data.draw(activations), activation=data.draw(activations), seed=data.draw(st.integers(0, 99)),
    )  # fmt: skip
    check(drawn_tensors(data, case), "cpu", grad_layout=data.draw(layouts, "layout of the gradient"))


@given(data=st.data())
def test_padding_is_the_same_as_zeros_around_the_input(data):
    geometry = data.draw(geometries()) | {"training": False}
    case = conv_case(**geometry, dtype=torch.float64)
    (top, left) = geometry["padding"]
    padded = torch.nn.functional.pad(case.tensors["x"], (left, left, top, top))
    explicit = run(case.but(x=padded, padding=0), "cpu")
    torch.testing.assert_close(run(case, "cpu"), explicit, rtol=1e-12, atol=1e-12)


@given(data=st.data())
def test_a_stride_picks_from_the_dense_result(data):
    geometry = data.draw(geometries()) | {"training": False}
    case = separable_case(**geometry, dtype=torch.float64, mid_activation="relu")
    dense = run(case.but(stride=1), "cpu")
    (down, across) = geometry["stride"]
    torch.testing.assert_close(run(case, "cpu"), dense[:, :, ::down, ::across], rtol=1e-12, atol=1e-12)


@given(data=st.data())
def test_channels_of_a_separable_convolution_are_independent(data):
    """With a pointwise identity, a change in one input channel shows in that output channel only."""
    C = data.draw(channels)
    case = separable_case(N=1, C=C, H=5, W=6, K=C, padding=1, bn=False, dtype=data.draw(dtypes))
    eye = torch.eye(C, dtype=case.tensors["x"].dtype).view(C, C, 1, 1)
    case = case.but(pointwise_weight=eye)
    changed = data.draw(st.integers(0, C - 1))
    x = case.tensors["x"].clone()
    x[:, changed] += 1
    before, after = run(case, "cpu"), run(case.but(x=x), "cpu")
    others = [c for c in range(C) if c != changed]
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.equal(before[:, changed], after[:, changed])


@given(data=st.data())
def test_output_channels_do_not_depend_on_each_other(data):
    """The first K' rows of the weight give the first K' output channels, bit for bit."""
    geometry = data.draw(geometries()) | {"training": False}
    case = conv_case(**geometry, dtype=data.draw(dtypes), bn=False)
    keep = data.draw(st.integers(1, geometry["K"]))
    part = run(case.but(weight=case.tensors["weight"][:keep]), "cpu")
    assert torch.equal(part, run(case, "cpu")[:, :keep])
