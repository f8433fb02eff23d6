"""Rows of the benchmarks: consistent, kept, and of known sources on a known machine."""

import dataclasses
from pathlib import Path

import pytest
from bench_cases import Broken, Missing, measured

from inception_kernels import source_hash
from inception_kernels.bench import environment, report
from inception_kernels.bench.row import WITHHELD, from_document, to_document

pytestmark = pytest.mark.usefixtures("small_probe")


def test_rows_survive_json(tmp_path: Path) -> None:
    rows = list(measured(Broken(), Missing()).values())
    report.save(rows, tmp_path / "rows.json")
    assert report.load(tmp_path / "rows.json") == rows
    assert report.load(tmp_path) == rows
    assert len(to_document(rows)["environments"]) == 1


def test_rows_of_another_schema_are_refused(tmp_path: Path) -> None:
    document = to_document(measured().values())
    with pytest.raises(ValueError, match="schema 1, got schema 0"):
        from_document({**document, "schema": 0})
    document["rows"][0]["surprise"] = 1
    with pytest.raises(ValueError, match="surprise too many"):
        from_document(document)
    (tmp_path / "bad.json").write_text("[")
    with pytest.raises(ValueError, match=r"bad\.json does not hold benchmark rows"):
        report.load(tmp_path / "bad.json")


def test_a_row_is_consistent() -> None:
    row = measured()["eager"]
    with pytest.raises(ValueError, match="expected a status"):
        dataclasses.replace(row, status="fine")
    with pytest.raises(ValueError, match="a reason and no time"):
        dataclasses.replace(row, status=WITHHELD, reason="wrong")
    with pytest.raises(ValueError, match="expected a time"):
        dataclasses.replace(row, median_ms=None)


def checkout(root: Path) -> Path:
    for name in ("csrc/ops.cpp", "csrc/common/types.h", "csrc/cpu/amx/conv.cpp", "csrc/cuda/conv.cuh"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"// {name}\n")
    (root / "inception_kernels").mkdir(exist_ok=True)
    return root


def test_a_change_of_a_kernel_changes_only_its_family(tmp_path: Path) -> None:
    root = checkout(tmp_path)
    before = source_hash.source_hashes(root)
    (root / "csrc/cuda/conv.cuh").write_text("// faster\n")
    after = source_hash.source_hashes(root)
    assert after["cpu"] == before["cpu"] and after["cuda"] != before["cuda"]
    (root / "csrc/common/types.h").write_text("// wider\n")
    last = source_hash.source_hashes(root)
    assert last["cpu"] != after["cpu"] and last["cuda"] != after["cuda"]
    (root / "csrc/common/types.h").write_bytes(b"// wider\r\n")
    assert source_hash.source_hashes(root) == last


def test_an_installed_package_knows_its_hashes(tmp_path: Path) -> None:
    package = tmp_path / "inception_kernels"
    package.mkdir()
    with pytest.raises(FileNotFoundError, match="pip install"):
        source_hash.current_hashes(package)
    (package / source_hash.BUILD_INFO).write_text('{"source_hashes": {"cpu": "1", "cuda": "2"}}')
    assert source_hash.current_hashes(package) == {"cpu": "1", "cuda": "2"}
    assert not source_hash.built_from_other_sources(package)
    checkout(tmp_path)
    assert source_hash.built_from_other_sources(package)


def test_environment_names_the_machine() -> None:
    commit, dirty = environment.git_state()
    assert commit and isinstance(dirty, bool)
    where = environment.capture("cpu")
    assert where.device_type == "cpu" and where.versions["onednn"]
    assert environment.slug(where).endswith(f"{where.cores}c")
    assert all(each.isalnum() or each == "-" for each in environment.slug(where))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model name": "AMD EPYC", "cpu family": "25", "model": "17"}, "AMD EPYC (family 25, model 17)"),
        ({"model name": "AMD EPYC 9654", "cpu family": "25", "model": "17"}, "AMD EPYC 9654"),
        ({"model name": "Neoverse"}, "Neoverse"),
    ],
)
def test_processors_of_one_name_are_told_apart(monkeypatch, fields, expected) -> None:
    monkeypatch.setattr(environment, "_cpuinfo", lambda *keys: fields.get(keys[0], ""))
    assert environment.cpu_model() == expected
