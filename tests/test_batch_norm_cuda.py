"""The CUDA kernels of batch norm, executed on the host: statistics, normalise + activation, and their gradient."""

import host_cuda
import pytest
import torch
from oracle import ACTIVATIONS, Sum, activate, assert_as_accurate_as_torch, near_kink

from inception_kernels.models.layers import distinct_layers

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}

SHAPES = {  # N, K, P, Q
    "packets": (2, 64, 5, 7),
    "many_groups": (1, 520, 3, 4),
    "one_packet_several_tiles": (1, 8, 47, 45),
    "odd_channels": (3, 17, 5, 6),
    "three_channels": (2, 3, 9, 11),
    "one_channel": (2, 1, 4, 5),
    "one_pixel_each": (5, 40, 1, 1),
    "few_lanes_idle": (1, 72, 13, 3),
}
# So many channels that one tile holds all pixels: threads take one round after the other, the last of them ragged.
SEVERAL_ROUNDS = {
    "three_rounds": (1, 32769, 13, 10),
    "two_rounds": (2, 32769, 7, 5),
}
LAYOUTS = ("dense", "channel_slice", "unaligned_slice", "spatial_slice")


@pytest.fixture(scope="module")
def host():
    return host_cuda.load("batch_norm", checked=True)


def in_layout(t: torch.Tensor, layout: str) -> torch.Tensor:
    """The values of `t` with adjacent channels, inside a larger tensor of NaN."""
    N, K, P, Q = t.shape
    margins = {
        "dense": (0, 0, 0, 0),
        "channel_slice": (16, 8, 0, 0),
        "unaligned_slice": (3, 1, 0, 0),
        "spatial_slice": (0, 0, 1, 2),
    }
    more, first, above, left = margins[layout]
    sizes = (N, K + more, P + 2 * above, Q + 2 * left)
    whole = torch.full(sizes, float("nan"), dtype=t.dtype).contiguous(memory_format=torch.channels_last)
    part = whole[:, first : first + K, above : above + P, left : left + Q]
    part.copy_(t)
    return part


def empty(*sizes: int, dtype: torch.dtype, layout: str = "dense") -> torch.Tensor:
    return in_layout(torch.full(sizes, float("nan"), dtype=dtype), layout)


def vector(K: int) -> torch.Tensor:
    return torch.full((K,), float("nan"))


def workspace(size: int) -> torch.Tensor:
    return torch.full((size,), 0xFF, dtype=torch.uint8)


def sizes_of(shape: str | tuple[int, ...]) -> tuple[int, ...]:
    return (SHAPES | SEVERAL_ROUNDS)[shape] if isinstance(shape, str) else shape


def random_activations(shape, dtype: torch.dtype, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = sizes_of(shape)
    means = offset * torch.randn(1, sizes[1], 1, 1, generator=generator)
    return (torch.randn(sizes, generator=generator) + means).to(dtype)


# ---- parameters


@pytest.mark.parametrize("K", [37, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fold_batch_norm(host, dtype, K):
    eps = 1e-3
    generator = torch.Generator().manual_seed(3)
    draw = {name: torch.rand(K, generator=generator) + 0.5 for name in ("gamma", "beta", "mean", "var", "bias")}
    given = {name: t.to(DTYPES[dtype]) for name, t in draw.items()}
    wanted = {name: vector(K) for name in ("scale", "shift", "rstd", "mean", "gamma", "beta")}
    host.fold_batch_norm(K, *given.values(), eps, wanted)
    exact = {name: t.double() for name, t in given.items()}
    rstd = (exact["var"] + eps).rsqrt()
    scale = exact["gamma"] * rstd
    shift = (exact["bias"] - exact["mean"]) * scale + exact["beta"]
    for name, value in {**exact, "scale": scale, "shift": shift, "rstd": rstd}.items():
        if name in wanted:
            assert torch.equal(wanted[name], value.float()), name


def test_fold_batch_norm_without_parameters_and_with_strides(host):
    K = 9
    bias = torch.stack([torch.arange(K).float(), torch.full((K,), float("nan"))], dim=-1)[:, 0]
    scale, shift = vector(K), vector(K)
    host.fold_batch_norm(K, None, None, None, None, bias, 1e-5, {"scale": scale, "shift": shift})
    assert torch.equal(scale, torch.ones(K)) and torch.equal(shift, bias)


# ---- statistics


def check_statistics(z: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> None:
    exact_var, exact_mean = torch.var_mean(z.double(), dim=(0, 2, 3), correction=0)
    torch_var, torch_mean = torch.var_mean(z.float(), dim=(0, 2, 3), correction=0)
    count = z.numel() // z.shape[1]
    centred = z.double() - exact_mean.view(1, -1, 1, 1)
    assert_as_accurate_as_torch(mean, exact_mean, [torch_mean], name="mean", total=Sum.of(z.double(), 1 / count))
    assert_as_accurate_as_torch(
        var, exact_var, [torch_var], name="var", total=Sum.of(centred.square(), 1 / count), compute_dtype=torch.float32
    )


def run_statistics(host, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, var = vector(z.shape[1]), vector(z.shape[1])
    host.batch_statistics(z, mean, var, workspace(host.batch_statistics_workspace_bytes(z)))
    return mean, var


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_batch_statistics(host, name, dtype):
    z = in_layout(random_activations(name, DTYPES[dtype]), "dense")
    check_statistics(z, *run_statistics(host, z))


@pytest.mark.parametrize("name", SEVERAL_ROUNDS)
def test_batch_statistics_in_several_rounds(host, name):
    z = in_layout(random_activations(name, torch.bfloat16, offset=2.0), "dense")
    check_statistics(z, *run_statistics(host, z))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_batch_statistics_of_slices(host, layout):
    z = in_layout(random_activations("packets", torch.bfloat16), layout)
    check_statistics(z, *run_statistics(host, z))


def test_statistics_far_from_zero(host):
    """A variance that squares of the values themselves would lose."""
    z = in_layout(random_activations("one_packet_several_tiles", torch.float32, offset=30.0), "dense")
    check_statistics(z, *run_statistics(host, z))


@pytest.mark.parametrize("schedule", host_cuda.SCHEDULES)
def test_statistics_have_the_same_bits_in_every_schedule(host, schedule):
    z = in_layout(random_activations("packets", torch.bfloat16), "dense")
    expected = run_statistics(host, z)
    for ours, same in zip(run_statistics(host.on(schedule), z), expected, strict=True):
        assert torch.equal(ours, same)


TILINGS = {  # N, P, Q, then the box
    "runs_of_pixels": ((1, 1, 700), (1, 1, 128)),
    "boxes": ((3, 9, 7), (1, 4, 4)),
    "several_images": ((5, 3, 4), (2, 3, 4)),
    "one_tile": ((1, 1, 50), (1, 1, 64)),
    "two_sections": ((1, 1, 2100), (1, 1, 2)),
    "eighteen_sections": ((1, 1, 17500), (1, 1, 1)),
}


@pytest.mark.parametrize("K", [5, 40])
@pytest.mark.parametrize("name", TILINGS)
def test_combine_statistics(host, name, K):
    sizes, box = TILINGS[name]
    z = torch.randn(*sizes, K, generator=torch.Generator().manual_seed(7)) + 5
    tiles = [
        part
        for images in z.split(box[0], dim=0)
        for rows in images.split(box[1], dim=1)
        for part in rows.split(box[2], dim=2)
    ]
    moments = [torch.var_mean(tile.double(), dim=(0, 1, 2), correction=0) for tile in tiles]
    counts = [tile.numel() // K for tile in tiles]
    partial = torch.stack(
        [torch.stack([mean, var * count]) for (var, mean), count in zip(moments, counts, strict=True)]
    ).float()
    mean, var = vector(K), vector(K)
    shape = ([*sizes, K], list(box))
    host.combine_statistics(partial, *shape, mean, var, workspace(host.combine_statistics_workspace_bytes(*shape)))
    check_statistics(z.permute(0, 3, 1, 2), mean, var)


def test_statistics_with_nan_and_infinity(host):
    z = in_layout(random_activations("packets", torch.float32), "dense")
    z[0, 3, 2, 2] = float("nan")
    z[1, 5, 1, 1] = float("inf")
    mean, var = run_statistics(host, z)
    bad = torch.zeros(z.shape[1], dtype=torch.bool)
    bad[[3, 5]] = True
    assert torch.equal(~torch.isfinite(mean), bad) and torch.equal(torch.isnan(var), bad)


# ---- forward


def forward(t: dict, dtype: torch.dtype, activation: str) -> torch.Tensor:
    u = t["z"].to(dtype)
    if "scale" in t:
        u = u * t["scale"].to(dtype).view(1, -1, 1, 1)
    if "shift" in t:
        u = u + t["shift"].to(dtype).view(1, -1, 1, 1)
    if "residual" in t:
        u = u + t["residual"].to(dtype)
    return activate(u, activation)


def check_forward(host, tensors: dict, activation: str, layout: str = "dense") -> None:
    z = tensors["z"]
    y = empty(*z.shape, dtype=z.dtype, layout=layout)
    host.scale_shift_act(z, tensors.get("scale"), tensors.get("shift"), tensors.get("residual"), activation, y)
    exact = forward(tensors, torch.float64, activation)
    assert_as_accurate_as_torch(y, exact, [forward(tensors, z.dtype, activation)], name="y")


def forward_case(shape, dtype: torch.dtype, residual: bool, layout: str = "dense") -> dict:
    generator = torch.Generator().manual_seed(11)
    K = sizes_of(shape)[1]
    case = {
        "z": in_layout(random_activations(shape, dtype), layout),
        "scale": torch.rand(K, generator=generator) * 2 + 0.5,
        "shift": torch.randn(K, generator=generator),
    }
    if residual:
        case["residual"] = in_layout(random_activations(shape, dtype, seed=1), layout)
    return case


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_scale_shift_act(host, name, dtype):
    index = list(SHAPES).index(name)
    check_forward(host, forward_case(name, DTYPES[dtype], residual=index % 2 == 0), ACTIVATIONS[index % 5])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_forward(host, activation, dtype):
    case = forward_case("packets", DTYPES[dtype], residual=True)
    case["z"] = case["z"] * 4
    check_forward(host, case, activation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scale_shift_act_of_slices(host, layout):
    check_forward(host, forward_case("packets", torch.bfloat16, residual=True, layout=layout), "relu", layout)


def test_activation_alone(host):
    case = {"z": in_layout(random_activations("packets", torch.bfloat16), "dense")}
    check_forward(host, case, "silu")


# ---- backward

VECTORS = ("grad_gamma", "grad_beta", "grad_z_sum")


def backward_case(shape, dtype: torch.dtype, norm: bool, residual: bool, layout: str = "dense") -> dict:
    generator = torch.Generator().manual_seed(13)
    K = sizes_of(shape)[1]
    case = {
        "grad_y": in_layout(random_activations(shape, dtype, seed=2), layout),
        "z": in_layout(random_activations(shape, dtype, seed=3, offset=1.0), layout),
    }
    if residual:
        case["residual"] = in_layout(random_activations(shape, dtype, seed=4), layout)
    if norm:
        case["gamma"] = torch.rand(K, generator=generator) + 0.5
        case["beta"] = torch.randn(K, generator=generator)
        var, mean = torch.var_mean(case["z"].double(), dim=(0, 2, 3), correction=0)
        case["mean"] = mean.float()
        case["rstd"] = (var + 1e-3).rsqrt().float()
    return case


def channels(t: torch.Tensor) -> torch.Tensor:
    return t.view(1, -1, 1, 1)


def preactivation(case: dict, dtype: torch.dtype) -> torch.Tensor:
    u = case["z"].to(dtype)
    if "mean" in case:
        parts = (channels(case[name].to(dtype)) for name in ("mean", "rstd", "gamma", "beta"))
        mean, rstd, gamma, beta = parts
        u = (u - mean) * rstd * gamma + beta
    return u + case["residual"].to(dtype) if "residual" in case else u


def expected_gradients(case: dict, training: bool, activation: str, dtype: torch.dtype) -> dict:
    """From the definitions, in `dtype`; sums over pixels always in the accumulation type."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    u = preactivation(case, wide).requires_grad_()
    activate(u, activation).backward(case["grad_y"].to(wide))
    grad_u = u.grad
    count = grad_u.numel() // grad_u.shape[1]
    out = {"grad_residual": grad_u.to(dtype), "grad_beta": grad_u.sum((0, 2, 3))}
    scale = channels((case["gamma"] * case["rstd"].to(wide)) if "mean" in case else torch.ones(u.shape[1]).to(wide))
    grad_z = grad_u * scale
    if "mean" in case:
        normalised = (case["z"].to(wide) - channels(case["mean"].to(wide))) * channels(case["rstd"].to(wide))
        out["grad_gamma"] = (grad_u * normalised).sum((0, 2, 3))
        if training:
            grad_z = grad_z - scale / count * (channels(out["grad_beta"]) + normalised * channels(out["grad_gamma"]))
    out["grad_z"] = grad_z.to(dtype)
    out["grad_z_sum"] = torch.zeros_like(out["grad_beta"]) if training else grad_z.sum((0, 2, 3))
    return out


def run_backward(host, case: dict, training: bool, activation: str, wanted: dict) -> dict:
    norm = {name: case[name] for name in ("mean", "rstd", "gamma", "beta") if name in case}
    space = workspace(host.bn_act_backward_workspace_bytes(case["grad_y"]))
    host.bn_act_backward(case["grad_y"], case["z"], case.get("residual"), norm, training, activation, wanted, space)
    return wanted


def all_gradients(case: dict, layout: str = "dense") -> dict:
    sizes, dtype = case["z"].shape, case["z"].dtype
    vectors = {name: vector(sizes[1]) for name in VECTORS if name != "grad_gamma" or "mean" in case}
    return {"grad_z": empty(*sizes, dtype=dtype, layout=layout), "grad_residual": empty(*sizes, dtype=dtype), **vectors}


def check_backward(host, case: dict, training: bool, activation: str, layout: str = "dense") -> None:
    dtype = case["z"].dtype
    near = near_kink(preactivation(case, torch.float64), activation, torch.float32)
    case["grad_y"] = in_layout(case["grad_y"].masked_fill(near, 0), layout)
    ours = run_backward(host, case, training, activation, all_gradients(case, layout))
    exact = expected_gradients(case, training, activation, torch.float64)
    torchs = expected_gradients(case, training, activation, dtype)
    grad_u = exact["grad_residual"]
    factor = (case["gamma"] * case["rstd"]).max().item() if "mean" in case else 1.0
    normalised = torch.ones_like(grad_u)
    if "mean" in case:
        normalised = (case["z"].double() - channels(case["mean"])) * channels(case["rstd"])
    totals = {
        "grad_beta": Sum.of(grad_u),
        "grad_gamma": Sum.of(grad_u * normalised),
        "grad_z_sum": Sum.of(grad_u, factor),
    }
    for name, got in ours.items():
        assert_as_accurate_as_torch(
            got, exact[name], [torchs[name]], name=name, total=totals.get(name), compute_dtype=torch.float32
        )


MODES = {"eval": False, "train": True}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_bn_act_backward(host, name, dtype, mode):
    index = list(SHAPES).index(name)
    case = backward_case(name, DTYPES[dtype], norm=True, residual=index % 2 == 1)
    check_backward(host, case, MODES[mode], ACTIVATIONS[(index + 1) % 5])


@pytest.mark.parametrize("mode", MODES)
def test_bn_act_backward_in_several_rounds(host, mode):
    case = backward_case("two_rounds", torch.bfloat16, norm=True, residual=False)
    check_backward(host, case, MODES[mode], "relu")


@pytest.mark.parametrize("norm", [False, True], ids=["no_bn", "bn"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation_backward(host, activation, norm):
    case = backward_case("packets", torch.float32, norm=norm, residual=True)
    case["residual"] = case["residual"] * 4
    check_backward(host, case, norm, activation)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bn_act_backward_of_slices(host, layout, mode):
    case = backward_case("packets", torch.bfloat16, norm=True, residual=True, layout=layout)
    check_backward(host, case, MODES[mode], "relu", layout)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wanted", [("grad_z",), ("grad_residual",), ("grad_gamma",), ("grad_beta", "grad_z_sum")])
def test_only_the_wanted_gradients(host, wanted, mode):
    """Each subset of gradients has the very bits it has when all are asked for."""
    case = backward_case("packets", torch.bfloat16, norm=True, residual=True)
    everything = run_backward(host, case, MODES[mode], "elu", all_gradients(case))
    some = {name: t for name, t in all_gradients(case).items() if name in wanted}
    for name, got in run_backward(host, case, MODES[mode], "elu", some).items():
        assert torch.equal(got, everything[name]), name


@pytest.mark.parametrize("schedule", host_cuda.SCHEDULES)
def test_gradients_have_the_same_bits_in_every_schedule(host, schedule):
    case = backward_case("few_lanes_idle", torch.float16, norm=True, residual=False)
    expected = run_backward(host, case, True, "relu", all_gradients(case))
    for name, got in run_backward(host.on(schedule), case, True, "relu", all_gradients(case)).items():
        assert torch.equal(got, expected[name]), name


def test_empty_batch(host):
    z = torch.empty(0, 8, 3, 3, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    host.scale_shift_act(z, None, None, None, "relu", z.clone())
    sums = {name: vector(8) for name in ("grad_beta", "grad_z_sum")}
    run_backward(host, {"grad_y": z, "z": z}, False, "relu", sums)
    for name, got in sums.items():
        assert torch.equal(got, torch.zeros(8)), name


# ---- every layer of the networks

LAYER_DTYPES = tuple(DTYPES)
LAYERS = sorted(
    {
        (layer.out_channels, *layer.output_size)
        for network in ("inception_v3", "xception")
        for layer in distinct_layers(network)
    }
)


@pytest.fixture(params=LAYERS, ids=lambda sizes: "x".join(map(str, sizes)))
def layer_sizes(request):
    sizes = request.param
    return (1 if sizes[1] > 20 else 2, *sizes)


def test_statistics_of_the_networks_layers(host, layer_sizes, layer_dtype):
    z = in_layout(random_activations(layer_sizes, DTYPES[layer_dtype]), "dense")
    check_statistics(z, *run_statistics(host, z))


def test_forward_of_the_networks_layers(host, layer_sizes, layer_dtype):
    check_forward(host, forward_case(layer_sizes, DTYPES[layer_dtype], residual=False), "relu")


def test_backward_of_the_networks_layers(host, layer_sizes, layer_dtype):
    case = backward_case(layer_sizes, DTYPES[layer_dtype], norm=True, residual=False)
    check_backward(host, case, True, "relu")
