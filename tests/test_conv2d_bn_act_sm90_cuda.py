"""The Hopper kernel of conv2d_bn_act, executed on the host: against float64, under the checker and in several schedules."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import host_cuda
import pytest
import torch
import torch.nn.functional as F
from helpers import assert_as_accurate
from host_cuda import SCHEDULES, Host
from oracle import ACTIVATIONS, activate, assert_as_accurate_as_torch
from torch import Tensor

from inception_kernels.models.layers import distinct_layers

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
OWN_CHOICE = -1


@dataclass(frozen=True)
class Case:
    """One convolution. `slice_of`: y is that many channels into a wider tensor; likewise x and the residual."""

    N: int
    C: int
    H: int
    W: int
    K: int
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    residual: bool = False
    activation: str = "relu"
    scale: bool = True
    shift: bool = True
    slice_of: int = 0

    @property
    def geometry(self) -> list[tuple[int, int]]:
        return [self.window, self.stride, self.padding, self.dilation]


RAGGED = {
    "pointwise": Case(1, 64, 8, 8, 64),
    "three_by_three": Case(1, 64, 9, 7, 64, (3, 3), padding=(1, 1), residual=True),
    "wide_row": Case(2, 96, 5, 17, 40, (1, 7), padding=(0, 3)),
    "tall_column": Case(2, 72, 17, 5, 136, (7, 1), padding=(3, 0)),
    "stride_two": Case(2, 64, 11, 10, 48, (3, 3), stride=(2, 2), residual=True),
    "stride_two_pointwise": Case(3, 40, 9, 9, 72, stride=(2, 2), activation="none"),
    "strides_differ": Case(1, 48, 10, 13, 64, (3, 2), stride=(3, 1), padding=(1, 1)),
    "dilated": Case(1, 32, 12, 11, 32, (3, 3), padding=(2, 3), dilation=(2, 3)),
    "padding_beyond_window": Case(1, 64, 4, 5, 32, (3, 1), padding=(3, 2)),
    "five_by_five": Case(1, 48, 7, 7, 64, (5, 5), padding=(2, 2)),
    "eight_channels": Case(2, 8, 6, 6, 8, (3, 3), padding=(1, 1)),
    "narrow_slices_in_pairs": Case(1, 160, 9, 9, 96, (1, 3), padding=(0, 1)),
    "narrow_slices_odd": Case(1, 96, 6, 7, 64, (3, 3), padding=(1, 1)),
    "channels_end_inside_a_slice": Case(1, 80, 8, 8, 64, (3, 3)),
    "more_steps_than_stages": Case(1, 728, 5, 5, 104, residual=True),
    "one_pixel": Case(5, 64, 3, 3, 24, (3, 3)),
    "one_pixel_image": Case(3, 128, 1, 1, 64),
    "many_tiles": Case(3, 32, 19, 19, 200, residual=True),
    "concatenated": Case(2, 64, 7, 9, 32, (1, 3), padding=(0, 1), residual=True, slice_of=112),
    "no_scale": Case(1, 64, 6, 6, 64, scale=False),
    "no_shift": Case(1, 64, 6, 6, 64, shift=False, activation="none"),
}


@functools.cache
def host(checked: bool) -> Host:
    loaded = host_cuda.load("conv2d_bn_act_sm90", checked=checked, also=("batch_norm",))
    loaded.context(sm=90, multiprocessors=2)
    return loaded


@contextlib.contextmanager
def multiprocessors(on: Host, count: int) -> Iterator[None]:
    on.context(sm=90, multiprocessors=count)
    try:
        yield
    finally:
        on.context(sm=90, multiprocessors=2)


def activations(sizes: tuple[int, ...], dtype: torch.dtype, wider: int, fill: Tensor | None = None) -> Tensor:
    """Channels-last, inside `wider` NaN channels (0: on its own)."""
    N, C, H, W = sizes
    whole = torch.full((N, max(C, wider), H, W), float("nan"), dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    first = (max(C, wider) - C) // 2 // 8 * 8
    part = whole[:, first : first + C]
    if fill is not None:
        part.copy_(fill)
    return part


@dataclass
class Problem:
    case: Case
    x: Tensor
    weight: Tensor
    scale: Tensor | None
    shift: Tensor | None
    residual: Tensor | None
    y: Tensor

    @property
    def packed(self) -> Tensor:
        """[K][R * S][C], as conv2d_pack writes it where C is a multiple of 8."""
        return self.weight.permute(0, 2, 3, 1).contiguous()

    def evaluate(self, dtype: torch.dtype) -> Tensor:
        """In plain torch calls, each result rounded to `dtype`."""
        _, stride, padding, dilation = self.case.geometry
        z = F.conv2d(self.x.to(dtype), self.weight.to(dtype), None, stride, padding, dilation)
        if self.scale is not None:
            z = z * self.scale.to(dtype)[:, None, None]
        if self.shift is not None:
            z = z + self.shift.to(dtype)[:, None, None]
        if self.residual is not None:
            z = z + self.residual.to(dtype)
        return activate(z, self.case.activation)

    def tensors(self) -> tuple[object, ...]:
        return (
            self.x, self.packed, self.scale, self.shift, self.residual, self.case.activation, self.y,
            self.case.geometry,
        )  # fmt: skip

    def check(self) -> None:
        exact, torchs = self.evaluate(torch.float64), self.evaluate(self.y.dtype)
        assert_as_accurate_as_torch(self.y, exact, [torchs], name="y")


def problem(case: Case, dtype: torch.dtype, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    R, S = case.window

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator)

    x = activations((case.N, case.C, case.H, case.W), dtype, case.slice_of, normal(case.N, case.C, case.H, case.W))
    weight = (normal(case.K, case.C, R, S) / (case.C * R * S) ** 0.5).to(dtype)
    meta = torch.empty(x.shape, device="meta")
    outputs = F.conv2d(meta, weight.to("meta").float(), None, case.stride, case.padding, case.dilation).shape
    return Problem(
        case, x, weight,
        normal(case.K).abs() + 0.5 if case.scale else None,
        normal(case.K) if case.shift else None,
        activations(outputs, dtype, case.slice_of, normal(*outputs)) if case.residual else None,
        activations(outputs, dtype, case.slice_of),
    )  # fmt: skip


def run(case: Case, dtype: torch.dtype, *, on: Host, tile: int = OWN_CHOICE) -> Problem:
    given = problem(case, dtype)
    assert on.unsupported(*given.tensors()) == ""
    on.forward(*given.tensors(), tile)
    given.check()
    return given


@pytest.mark.parametrize("name", RAGGED)
def test_ragged_shapes(name: str) -> None:
    run(RAGGED[name], torch.bfloat16, on=host(True))


@pytest.mark.parametrize("name", RAGGED)
def test_ragged_shapes_in_half_precision(name: str) -> None:
    run(RAGGED[name], torch.float16, on=host(False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", range(12))
def test_every_tile(tile: int, dtype: str) -> None:
    """One block goes many times through its ring."""
    case = Case(2, 160, 13, 12, 264, (2, 1), padding=(1, 0), residual=True)
    on = host(dtype == "bf16")
    with multiprocessors(on, 1):
        run(case, DTYPES[dtype], on=on, tile=tile)


def test_tiles_are_all_tested() -> None:
    assert len(host(True).tiles()) == 12


@pytest.mark.parametrize(("tile", "K"), [(0, 520), (7, 136)])
def test_small_images_in_tiles_both_ways(tile: int, K: int) -> None:
    """Tiles that begin inside an image and inside the channels, quick enough for every mutant."""
    case = Case(7, 8, 9, 5, K, (2, 1), padding=(1, 0))
    with multiprocessors(host(True), 1):
        run(case, torch.bfloat16, on=host(True), tile=tile)


@pytest.mark.parametrize("schedule", SCHEDULES[1:], ids=str)
@pytest.mark.parametrize("name", ["more_steps_than_stages", "narrow_slices_odd", "many_tiles"])
def test_schedules(name: str, schedule: host_cuda.Schedule) -> None:
    run(RAGGED[name], torch.bfloat16, on=host(True).on(schedule))


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, residual: bool) -> None:
    case = Case(1, 32, 6, 7, 40, (1, 3), padding=(0, 1), residual=residual, activation=activation)
    run(case, torch.float16, on=host(True))


def test_neighbours_of_a_slice_are_untouched() -> None:
    given = run(RAGGED["concatenated"], torch.bfloat16, on=host(True))
    whole = given.y._base
    assert whole is not None and whole.shape[1] > given.y.shape[1]
    first = given.y.storage_offset() % whole.shape[1]
    inside = torch.zeros(whole.shape[1], dtype=torch.bool)
    inside[first : first + given.y.shape[1]] = True
    assert whole[:, ~inside].isnan().all() and not whole[:, inside].isnan().any()


@pytest.mark.parametrize("C", [64, 96])
def test_nan_and_infinity_stay_inside_their_windows(C: int) -> None:
    case = Case(1, C, 6, 6, 32, (3, 3), padding=(1, 1))
    given = problem(case, torch.bfloat16)
    given.x[0, 5, 2, 2] = float("nan")
    given.x[0, 7, 5, 5] = float("inf")
    host(True).forward(*given.tensors(), OWN_CHOICE)
    expected = given.evaluate(torch.float64)
    assert torch.equal(given.y.isnan(), expected.isnan())
    assert torch.equal(given.y.isinf(), expected.isinf())


def test_images_do_not_depend_on_their_batch() -> None:
    case = RAGGED["three_by_three"]
    together = problem(replace(case, N=3), torch.bfloat16)
    host(True).forward(*together.tensors(), OWN_CHOICE)
    for tile in (0, 7):
        alone = problem(case, torch.bfloat16)
        alone.weight, alone.scale, alone.shift = together.weight, together.scale, together.shift
        alone.x.copy_(together.x[2:])
        alone.residual = together.residual[2:] if together.residual is not None else None
        host(True).forward(*alone.tensors(), tile)
        assert torch.equal(alone.y, together.y[2:])


def test_empty_batch() -> None:
    given = problem(Case(0, 64, 6, 6, 32, (3, 3)), torch.bfloat16)
    assert host(True).unsupported(*given.tensors()) == ""
    host(True).forward(*given.tensors(), OWN_CHOICE)


# ---- statistics


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case",
    [
        Case(2, 64, 9, 9, 72, (3, 3), padding=(1, 1), scale=False, activation="none"),
        Case(1, 64, 3, 3, 24, (3, 3), scale=False, shift=False, activation="none"),
        Case(3, 32, 17, 17, 192, (1, 3), padding=(0, 1), scale=False, activation="none"),
        Case(1, 32, 24, 24, 328, scale=False, activation="none", slice_of=400),
    ],
    ids=["ragged", "one_pixel", "many_pixels", "two_tiles_wide"],
)
def test_statistics(case: Case, dtype: str) -> None:
    given = problem(case, DTYPES[dtype])
    if given.shift is not None:
        given.shift += 3  # a mean far from zero: sums of squares would cancel
    check_statistics(given, host(dtype == "bf16"))


def check_statistics(given: Problem, on: Host) -> None:
    case = given.case
    mean, var = torch.full((2, case.K), float("nan"))
    workspace = torch.empty(on.workspace_bytes(given.x, given.y, case.geometry, True), dtype=torch.uint8)
    on.forward_statistics(given.x, given.packed, given.shift, given.y, case.geometry, mean, var, workspace)
    given.check()

    stored = given.y.double()
    single = given.y.float().contiguous()
    ours = {"mean": mean, "var": var}
    exact = {"mean": stored.mean((0, 2, 3)), "var": stored.var((0, 2, 3), unbiased=False)}
    torchs = {"mean": single.mean((0, 2, 3)), "var": single.var((0, 2, 3), unbiased=False)}
    for name in ours:
        assert_as_accurate_as_torch(ours[name], exact[name], [torchs[name]], name=name)


@pytest.mark.parametrize("tile", range(12))
def test_statistics_of_every_tile(tile: int) -> None:
    rows, columns, exists = host(True).tiles()[tile]
    if not exists:
        assert (rows, columns) == (256, 192)
        return
    case = Case(1, 32, 17, 19, 264, scale=False, activation="none")
    given = problem(case, torch.bfloat16)
    partial = torch.full((-(-17 * 19 // (rows // 2)), 2, case.K), float("nan"))
    host(True).forward_partial_statistics(
        given.x, given.packed, given.shift, given.y, case.geometry, partial, tile
    )  # fmt: skip
    given.check()
    stored = given.y.float().permute(0, 2, 3, 1).reshape(-1, case.K)
    for run_of_pixels, found in zip(stored.split(rows // 2), partial, strict=True):
        baseline, exact = moments(run_of_pixels), moments(run_of_pixels.double())
        for name, *values in zip(("mean", "deviations"), found, baseline, exact, strict=True):
            assert_as_accurate(*values, name)


@pytest.mark.parametrize(("tile", "K"), [(2, 64), (6, 232)])
def test_statistics_of_the_groups_of_a_part_of_a_tile(tile: int, K: int) -> None:
    """Groups of 32 channels: those that the channels fill to the last, and one more for the last eight."""
    given = problem(Case(1, 8, 5, 5, K, scale=False, activation="none"), torch.bfloat16)
    partial = torch.full((1, 2, K), float("nan"))
    host(True).forward_partial_statistics(
        given.x, given.packed, given.shift, given.y, given.case.geometry, partial, tile
    )  # fmt: skip
    given.check()
    stored = given.y.float().permute(0, 2, 3, 1).reshape(-1, K)
    for name, *values in zip(
        ("mean", "deviations"), partial[0], moments(stored), moments(stored.double()), strict=True
    ):
        assert_as_accurate(*values, name)


def moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sum of squared differences of [pixels, K]."""
    mean = pixels.mean(0)
    return mean, (pixels - mean).square().sum(0)


# ---- what the kernel leaves to others


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"C": 12}, "multiples of 8"),
        ({"K": 20}, "multiples of 8"),
        ({"stride": (9, 1)}, "im2col"),
        ({"padding": (129, 0), "window": (3, 3)}, "im2col"),
        ({"dilation": (1, 130), "padding": (0, 130), "window": (1, 3)}, "im2col"),
    ],
)
def test_unsupported_shapes(change: dict[str, object], reason: str) -> None:
    given = problem(replace(Case(1, 16, 12, 12, 16), **change), torch.bfloat16)  # type: ignore[arg-type]
    assert reason in host(True).unsupported(*given.tensors())


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case(1 << 11, 8, 1 << 10, 1 << 10, 8), "2^31 output pixels"),
        (Case(1 << 10, 8, 1 << 10, 1 << 10, 1 << 14), "2^31 tiles"),
        (Case(1 << 10, 8, 1 << 10, 1 << 10, 1 << 12), ""),
    ],
)
def test_unsupported_sizes(case: Case, reason: str) -> None:
    x, y = (
        torch.empty(case.N, channels, case.H, case.W, dtype=torch.bfloat16, device="meta").to(
            memory_format=torch.channels_last
        )
        for channels in (case.C, case.K)
    )
    answer = host(True).unsupported(x, None, None, None, None, "relu", y, case.geometry)
    assert reason in answer and bool(reason) == bool(answer)


def test_unsupported_layouts() -> None:
    def reason(given: Problem) -> str:
        return str(host(True).unsupported(*given.tensors()))

    case = Case(2, 16, 6, 6, 16, residual=True)
    shifted = problem(case, torch.bfloat16)
    wide = activations((2, 24, 6, 6), torch.bfloat16, 0)
    shifted.x = wide[:, 4:20]
    assert "pixels of x" in reason(shifted)
    shifted = problem(case, torch.bfloat16)
    shifted.y = wide[:, 4:20]
    assert "pixels of y" in reason(shifted)
    cropped = problem(case, torch.bfloat16)
    cropped.y = activations((2, 16, 8, 8), torch.bfloat16, 0)[:, :, 1:7, 1:7]
    assert "rows of y" in reason(cropped)
    cropped = problem(case, torch.bfloat16)
    cropped.residual = activations((2, 16, 8, 8), torch.bfloat16, 0)[:, :, 1:7, 1:7]
    assert "rows of the residual" in reason(cropped)
    in_float32 = problem(case, torch.float32)
    assert "16-bit" in reason(in_float32)


def test_cropped_and_single_pixel_inputs_run() -> None:
    case = Case(2, 16, 6, 6, 16, (3, 3))
    given = problem(case, torch.bfloat16)
    larger = activations((2, 16, 9, 8), torch.bfloat16, 0)
    larger[:, :, 2:8, 1:7] = given.x
    given.x = larger[:, :, 2:8, 1:7]
    host(True).forward(*given.tensors(), OWN_CHOICE)
    given.check()

    pixel = problem(Case(3, 16, 1, 1, 16), torch.bfloat16)
    pixel.x = pixel.x.contiguous()  # strides of the single row and column are 1
    assert host(True).unsupported(*pixel.tensors()) == ""
    host(True).forward(*pixel.tensors(), OWN_CHOICE)
    pixel.check()


# ---- the networks' layers


LAYER_DTYPES = tuple(DTYPES)
LAYERS = {
    str(layer): Case(
        1, layer.in_channels, layer.height, layer.width, layer.out_channels,
        layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        residual=layer.adds_residual, activation=layer.activation,
    )
    for network in ("inception_v3", "xception")
    for layer in distinct_layers(network)
    if layer.operator == "conv2d_bn_act" and layer.in_channels % 8 == 0
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_networks(name: str, layer_dtype: str) -> None:
    on = host(True)
    with multiprocessors(on, 132):
        run(LAYERS[name], DTYPES[layer_dtype], on=on)


def test_statistics_of_the_networks_layers(some_layer: str, layer_dtype: str) -> None:
    case = replace(LAYERS[some_layer], residual=False, activation="none", scale=False)
    on = host(True)
    with multiprocessors(on, 132):
        check_statistics(problem(case, DTYPES[layer_dtype]), on)
