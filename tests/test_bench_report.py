"""Rows as a report, on a terminal and in the README."""

import csv
import dataclasses
import re
from pathlib import Path

import pytest
import torch
from bench_cases import CONFIG, small_case
from rich.console import Console

from inception_kernels import roofline, source_hash
from inception_kernels.bench import Row, columns, harness, render, report, terminal
from inception_kernels.bench.contenders import Eager
from inception_kernels.bench.row import LEFT_OUT, NOT_APPLICABLE, NOT_INSTALLED, OURS

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("small_probe")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """A small run of every kind of row, times made up so that pictures have something to show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roofline, "_PRODUCTS", {"cpu": ((16, 16, 16),)})
        patch.setattr(roofline, "_COPIES", {"cpu": (2**12, 2**14)})
        template = harness.run(CONFIG, cases=[small_case()], contenders=[Eager()])[0]
    made = []
    for kind, name in (("operator", "conv2d_bn_act"), ("network", "xception")):
        for dtype in ("float32", "bfloat16"):
            common = dataclasses.replace(template, kind=kind, operator=name, case=f"a {name}", dtype=dtype)
            other = dataclasses.replace(common, backend="channels_last", median_ms=8.0, speedup={"eager": 2.0})
            ours = dataclasses.replace(common, backend="inception_kernels", role=OURS, median_ms=4.0)
            ours = dataclasses.replace(ours, speedup={"eager": 4.0, "channels_last": 0.5})
            missing = dataclasses.replace(
                common, backend="missing", status=NOT_INSTALLED, reason="pip install | it", median_ms=None, speedup={}
            )
            made += [dataclasses.replace(common, median_ms=16.0), other, missing, ours]
    return made


def test_report_writes_every_format(rows: list[Row], tmp_path: Path) -> None:
    written = report.write(rows, tmp_path / "deep" / "report")
    assert {path.name for path in written} == {"rows.json", "rows.csv", "report.md", "roofline.png", "speedup.png"}
    assert report.load(written[0]) == rows
    with written[1].open(newline="") as file:
        sheet = list(csv.DictReader(file))
    assert len(sheet) == len(rows)
    assert sheet[0]["environment.versions.torch"] == torch.__version__
    assert {"pass", "dtype", "median_ms", "speedup.eager", "environment.source_hash"} <= set(sheet[0])
    text = written[2].read_text()
    assert "not installed: pip install \\| it" in text
    assert "![roofline](roofline.png)" in text
    assert "Roofline at the end" in text
    for picture in written[3:]:
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_report_without_matplotlib_says_so(rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.delitem(__import__("sys").modules, "inception_kernels.bench.plots", raising=False)
    monkeypatch.delattr("inception_kernels.bench.plots", raising=False)
    written = report.write(rows, tmp_path)
    assert [path.suffix for path in written] == [".json", ".csv", ".md"]
    assert "matplotlib is not installed" in written[2].read_text()


def test_the_speedup_at_the_floor_is_that_of_a_row_at_100_percent(rows: list[Row]) -> None:
    row = next(row for row in rows if row.speedup and row.roofline_percent)
    fastest = min(row.speedup.values())
    half = dataclasses.replace(row, roofline_percent=50.0)
    assert columns.speedup_at_floor(half) == pytest.approx(2 * fastest)
    for unknown in ({"roofline_percent": None}, {"speedup": {}}):
        assert columns.speedup_at_floor(dataclasses.replace(row, **unknown)) is None


def test_geometric_means_count_losses_too(rows: list[Row]) -> None:
    means = dict(columns.geometric_means(rows))
    found = means["operators, inference, float32, inception_kernels"]
    assert found == {
        "eager": (pytest.approx(4.0), 1),
        "channels_last": (pytest.approx(0.5), 1),
        "fastest": (pytest.approx(0.5), 1),
    }


def test_terminal_shows_all_rows_and_no_progress_in_a_file(rows: list[Row], tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w") as file:
        console = Console(file=file, width=200)
        with terminal.progress(console) as progress:
            progress.step(0, 1, "unseen")
        terminal.show(rows, console)
    text = (tmp_path / "out.txt").read_text()
    assert "unseen" not in text
    assert text.count("inception_kernels ") >= 4
    assert "not installed: pip install" in text
    assert "0.50x" in text
    assert "Geometric mean" in text


README = """before
<!-- bench:summary-cpu -->
<!-- /bench:summary-cpu -->
<!-- bench:networks-cpu -->
old
<!-- /bench:networks-cpu -->
<!-- bench:operators-cpu -->
<!-- /bench:operators-cpu -->
<!-- bench:networks-gpu -->
<!-- /bench:networks-gpu -->
after
"""


def test_render_fills_tables_and_says_what_is_not_measured(rows: list[Row]) -> None:
    assert rows[0].environment is not None
    hashes = {"cpu": rows[0].environment.source_hash, "cuda": "x"}
    text = render.render(README, rows, hashes)
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "old" not in text and "stale" not in text
    assert "| xception" not in text and "| a xception | inference | 2 | float32 | 16.0 | 8.00 | **4.00** |" in text
    assert "<!-- bench:networks-gpu -->\nnot measured\n<!-- /bench:networks-gpu -->" in text
    assert "| 4.00x | 0.50x | 0.50x | 1 |" in text  # the loss stays in
    assert render.render(text, rows, hashes) == text
    assert render.render(text, [], hashes).count("not measured") == 4


def test_render_has_no_lines_of_what_takes_no_layers(rows: list[Row]) -> None:
    ours = [row for row in rows if row.role == OURS and row.kind == "operator"]
    others = [
        dataclasses.replace(
            row, backend="inception_kernels:optimize", status=NOT_APPLICABLE, reason="no", median_ms=None, speedup={}
        )
        for row in ours
    ]
    hashes = {"cpu": "", "cuda": ""}
    assert render.render(README, [*rows, *others], hashes) == render.render(README, rows, hashes)
    left_out = [dataclasses.replace(row, status=LEFT_OUT, reason="time", median_ms=None, speedup={}) for row in ours]
    kept = [row for row in rows if row.role != OURS]
    assert "| conv2d_bn_act | inference | 2 | float32 | not measured |" in render.render(
        README, [*kept, *left_out], hashes
    )


def test_render_marks_rows_of_changed_kernels(rows: list[Row]) -> None:
    text = render.render(README, rows, {"cpu": "changed", "cuda": "x"})
    assert "**4.00** (stale)" in text
    assert render.is_stale(rows[0], "changed")


def test_the_summary_has_one_line_per_network_with_every_way_to_use_the_package(rows: list[Row]) -> None:
    ours = [row for row in rows if row.kind == "network" and row.role == OURS]
    faster = {"eager": 8.0, "channels_last": 1.25, "openvino": 1.125}
    others = [dataclasses.replace(row, backend="inception_kernels:optimize", speedup=faster) for row in ours]
    step = dataclasses.replace(ours[0], pass_="training", speedup={"eager": 3.0, "torch.compile": 1.5})
    slow = dataclasses.replace(ours[0], case="not compared", median_ms=1.0, speedup={})
    assert rows[0].environment is not None
    day = rows[0].environment.started[:10]
    before = dataclasses.replace(rows[0].environment, started=f"{day}T00:00:00+00:00", commit="before")
    again = [dataclasses.replace(row, environment=before, speedup={"channels_last": 9.0}) for row in ours]
    text = render.render(README, [*rows, *others, step, slow, *again], {"cpu": rows[0].environment.source_hash})
    summary = text[: text.index("<!-- /bench:summary-cpu -->")]
    assert "| network | batch | dtype | `swap`, inference | `optimize`, inference | `swap`, training step |" in summary
    assert "| a xception | 2 | float32 | 0.50x / 0.50x | 1.25x / 1.12x | - / 1.50x |" in summary
    assert "| a xception | 2 | bfloat16 | 0.50x / 0.50x | 1.25x / 1.12x | not measured |" in summary
    assert "not compared" not in summary
    assert "9.00x" not in summary and "commit before" not in summary  # of two times with the same kernels the later one


def test_rows_of_earlier_kernels_are_folded_away_behind_present_ones(rows: list[Row]) -> None:
    environment = rows[0].environment
    assert environment is not None
    earlier = dataclasses.replace(environment, source_hash="earlier", commit="earlier")
    old = [dataclasses.replace(row, environment=earlier) for row in rows]
    text = render.render(README, [*old, *rows], {"cpu": environment.source_hash})
    tables = re.findall(r"<!-- bench:([a-z]+)-cpu -->\n(.*?)<!-- /bench", text, re.DOTALL)
    assert [name for name, _ in tables] == ["summary", "networks", "operators"]
    assert "stale" not in tables[0][1] and "<details>" not in tables[0][1]
    for _, table in tables[1:]:
        present, folded = table.split("<details><summary>Measured with earlier kernels (stale)</summary>\n\n")
        assert "commit earlier" not in present and "commit earlier" in folded
        assert folded.endswith("\n</details>\n") and folded.count("commit") == 1
    only_old = render.render(README, old, {"cpu": environment.source_hash})
    assert "<details>" not in only_old and "0.50x / 0.50x (stale)" in only_old


def test_render_refuses_unknown_and_open_markers(rows: list[Row]) -> None:
    with pytest.raises(ValueError, match=r"networks-cpu.*got speed"):
        render.render("<!-- bench:speed -->\n<!-- /bench:speed -->", rows, {})
    with pytest.raises(ValueError, match="expected an end"):
        render.render("<!-- bench:networks-cpu -->\n", rows, {})


def test_update_changes_the_file_only_when_asked(rows: list[Row], tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    assert not render.update(readme, rows, {}, check=True)
    assert readme.read_text() == README
    assert not render.update(readme, rows, {})
    assert render.update(readme, rows, {}, check=True)


def test_readme_is_up_to_date() -> None:
    """After a kernel or a row has changed: python -m inception_kernels bench --render benchmarks/results"""
    committed = report.load(ROOT / "benchmarks" / "results")
    assert render.update(ROOT / "README.md", committed, source_hash.current_hashes(), check=True)
