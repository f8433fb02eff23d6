"""The host's execution of every hardware primitive against a plain model, and against what a GPU recorded."""

from __future__ import annotations

from pathlib import Path

import host_cuda
import numpy as np
import pytest
from conformance import replay
from conformance.case import difference

CASES = {case.label: case for case in replay.all_cases()}
RECORDINGS = replay.recordings()


@pytest.fixture(scope="module")
def host() -> host_cuda.Host:
    try:
        host_cuda.cuda_include()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return replay.load_host()


@pytest.mark.parametrize("label", CASES)
def test_host_does_what_the_model_says(host: host_cuda.Host, label: str) -> None:
    found = difference(CASES[label], replay.run_on_host(host, CASES[label]))
    assert found is None, found


@pytest.mark.parametrize("recording", RECORDINGS, ids=[path.stem for path in RECORDINGS])
def test_host_does_what_a_gpu_did(host: host_cuda.Host, recording: Path) -> None:
    found = {case.label: difference(case, replay.run_on_host(host, case)) for case in replay.load(recording)}
    wrong = {label: each for label, each in found.items() if each is not None}
    assert not wrong, wrong


def test_a_recording_survives_its_file(tmp_path: Path) -> None:
    with_initial = next(case for case in CASES.values() if case.initial is not None)
    some = [CASES["ldmatrix x4 trans"], CASES["mma bf16 normal"], with_initial]
    path = tmp_path / "device.npz"
    replay.save(path, some)
    for before, after in zip(some, replay.load(path), strict=True):
        assert (before.label, before.name, before.numbers) == (after.label, after.name, after.numbers)
        assert before.tolerance == after.tolerance
        assert np.array_equal(before.input, after.input)
        assert np.array_equal(before.expected, after.expected)
        assert (before.initial is None) == (after.initial is None)


def test_all_cases_fit_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "device.npz"
    replay.save(path, CASES.values())
    assert path.stat().st_size < 2**20


@pytest.mark.parametrize("label", ["ldmatrix x4", "mma bf16 normal"])
def test_a_wrong_word_shows(label: str) -> None:
    case = CASES[label]
    got = case.expected.copy()
    got[7] ^= 0x40000000
    assert difference(case, got) is not None
    assert difference(case, case.expected) is None
