"""The choice of a Triton kernel's configuration, with kernels and clocks that are made up: no GPU takes part."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton has no build for this platform")

from triton.runtime.errors import OutOfResources

from inception_kernels.triton import tuning

X = torch.zeros(2, 8, 3, 3)
SHAPE = {"C": 8, "K": 16}


@dataclass(frozen=True)
class Tile:
    m: int
    warps: int = 4


SMALL, MEDIUM, LARGE, WIDE = Tile(16), Tile(64), Tile(128), Tile(256, warps=8)
TILES = [LARGE, WIDE, SMALL, MEDIUM]


class Kernel:
    """Fills its output with 1; counts its launches. `times` are the milliseconds that a clock made for it tells."""

    def __init__(
        self, times: dict[Tile, float], wrong: tuple[Tile, ...] = (), too_large: tuple[Tile, ...] = ()
    ) -> None:
        self.times, self.wrong, self.too_large = times, wrong, too_large
        self.launched: list[Tile] = []
        self.y = torch.empty(4)

    def __call__(self, tile: Tile) -> Tensor:
        self.launched.append(tile)
        if tile in self.too_large:
            raise OutOfResources(300000, 232448, "shared memory")
        return self.y if tile in self.wrong else self.y.fill_(1.0)

    def clock(self, launch: Callable[[], object]) -> float:
        launch()
        return self.times[self.launched[-1]]

    def choose(self, taps: int = 1, tiles: list[Tile] = TILES, x: Tensor = X, **shape: int) -> Tile:
        sizes = {**SHAPE, **shape}
        return tuning.choose("made_up", x, sizes, lambda: tiles, lambda tile: float(tile.m), self, taps)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("IK_CACHE_DIR", str(tmp_path / "cache"))
    tuning.forget()
    tuning.begin()
    yield tmp_path / "cache" / "triton_tune.json"
    tuning.forget()


def fastest(*tiles: Tile) -> dict[Tile, float]:
    return {tile: 1.0 + tiles.index(tile) for tile in tiles}


def test_without_a_measurement_the_least_predicted_cost_decides() -> None:
    kernel = Kernel({})
    assert kernel.choose() == SMALL
    assert not kernel.launched
    assert "predicted" in tuning.selections()[0].why


def test_the_fastest_is_chosen_and_remembered(cache: Path) -> None:
    kernel = Kernel(fastest(MEDIUM, SMALL, LARGE, WIDE))
    with tuning.tuning(kernel.clock):
        assert kernel.choose() == MEDIUM
        launches = len(kernel.launched)
        assert kernel.choose() == MEDIUM
    assert len(kernel.launched) == launches, "expected one measurement a shape"
    assert kernel.choose() == MEDIUM, "expected the measurement to hold outside of tuning, too"
    (entry,) = json.loads(cache.read_text()).values()
    assert entry == {
        "configuration": {"m": 64, "warps": 4}, "milliseconds": 1.0, "of": 4, "predicted_milliseconds": 2.0,
    }  # fmt: skip


def test_a_new_process_finds_the_measurement() -> None:
    kernel = Kernel(fastest(LARGE, MEDIUM, SMALL, WIDE))
    with tuning.tuning(kernel.clock):
        kernel.choose()
    tuning.forget()
    fresh = Kernel({})
    assert fresh.choose() == LARGE
    assert not fresh.launched
    assert "measured before" in tuning.selections()[-1].why


def test_a_predicted_choice_is_measured_once_tuning_begins() -> None:
    kernel = Kernel(fastest(LARGE, MEDIUM, SMALL, WIDE))
    assert kernel.choose() == SMALL
    with tuning.tuning(kernel.clock):
        assert kernel.choose() == LARGE


@pytest.mark.parametrize("other", [{"K": 32}, {"x": X.half()}], ids=["shape", "dtype"])
def test_another_shape_or_dtype_is_measured_anew(other: dict) -> None:
    kernel = Kernel(fastest(LARGE, MEDIUM, SMALL, WIDE))
    with tuning.tuning(kernel.clock):
        kernel.choose()
        before = len(kernel.launched)
        kernel.choose(**other)
    assert len(kernel.launched) == 2 * before


def test_keys_hold_everything_a_measurement_depends_on(cache: Path) -> None:
    kernel = Kernel(fastest(*TILES))
    with tuning.tuning(kernel.clock):
        kernel.choose()
    key = json.loads(next(iter(json.loads(cache.read_text()))))
    assert {"device", "dtype", "kernel", "C", "K", "torch", "triton", "cuda", "inception_kernels", "sources"} == set(
        key
    )


def test_a_configuration_that_is_no_more_is_measured_again() -> None:
    kernel = Kernel(fastest(LARGE, MEDIUM, SMALL, WIDE))
    with tuning.tuning(kernel.clock):
        kernel.choose()
        tuning.forget()
        assert kernel.choose(tiles=[SMALL, MEDIUM]) == MEDIUM


@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", '{"a": 3}', '{"a": {"configuration": {}, "milliseconds": "fast", "of": 2}}', "\x00\xff"],
)
def test_a_damaged_cache_is_said_and_replaced(cache: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    cache.parent.mkdir()
    cache.write_text(content, encoding="latin-1")
    kernel = Kernel(fastest(LARGE, MEDIUM, SMALL, WIDE))
    with tuning.tuning(kernel.clock):
        assert kernel.choose() == LARGE
    assert len(json.loads(cache.read_text())) == 1
    is_readable = content.startswith('{"a"')  # only the entry is damaged: it is dropped
    assert is_readable or "measuring again" in caplog.text


def test_a_candidate_that_is_wrong_is_never_chosen(caplog: pytest.LogCaptureFixture) -> None:
    """It writes nothing: what the memory held before, the right result of another, must not pass for its own."""
    kernel = Kernel(fastest(LARGE, MEDIUM, SMALL, WIDE), wrong=(LARGE,))
    with tuning.tuning(kernel.clock):
        assert kernel.choose() == MEDIUM
    assert "wrong as Tile(m=128" in caplog.text


def test_a_candidate_that_does_not_fit_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel(fastest(LARGE, MEDIUM, SMALL, WIDE), too_large=(LARGE, SMALL))
    with tuning.tuning(kernel.clock):
        assert kernel.choose() == MEDIUM
    assert "shared memory" in caplog.text


def test_where_nothing_fits_the_error_names_the_way_out() -> None:
    kernel = Kernel({}, too_large=tuple(TILES))
    with tuning.tuning(kernel.clock), pytest.raises(RuntimeError, match=r"C=8, K=16.*use_backend\('reference'\)"):
        kernel.choose()
    with pytest.raises(RuntimeError, match=r"no configuration for C=8, K=16.*use_backend\('reference'\)"):
        kernel.choose(tiles=[])


def test_on_a_flattened_window_eight_warps_run_only_once_proven() -> None:
    """pytorch#173068: such loops have come out wrong. Tuning compares the output with four warps'."""
    tiles = [Tile(16, warps=8), LARGE]
    unproven = Kernel({})
    assert unproven.choose(tiles=tiles) == tiles[0], "a 1x1 window has no such loop"
    assert unproven.choose(tiles=tiles, taps=9, K=32) == LARGE
    right = Kernel(fastest(*tiles))
    with tuning.tuning(right.clock):
        assert right.choose(tiles=tiles, taps=9, K=32) == tiles[0]
    wrong = Kernel(fastest(*tiles), wrong=(tiles[0],))
    with tuning.tuning(wrong.clock):
        assert wrong.choose(tiles=tiles, taps=9, K=64) == LARGE
    with pytest.raises(ValueError, match="at most 4 warps"):
        unproven.choose(tiles=tiles[:1], taps=9, K=128)


def test_only_the_best_predicted_are_tried() -> None:
    tiles = [Tile(m) for m in range(1, 40)]
    kernel = Kernel(dict.fromkeys(tiles, 1.0))
    with tuning.tuning(kernel.clock):
        kernel.choose(tiles=tiles)
    assert set(kernel.launched) == set(tiles[:12])


def test_without_a_gpu_nothing_is_measured() -> None:
    kernel = Kernel({})
    with tuning.tuning():
        assert kernel.choose() == SMALL
    assert not kernel.launched


def test_a_choice_tells_what_and_why() -> None:
    Kernel({}).choose()
    assert str(tuning.selections()[0]) == "made_up(m=16, warps=4): predicted from counts, of 4"
    tuning.begin()
    assert not tuning.selections()
