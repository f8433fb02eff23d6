"""The command line: every subcommand, its help, and one clear line where the user made a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inception_kernels import _version, backends, cli, roofline
from inception_kernels.bench import Config, harness, report
from inception_kernels.bench.contenders import Eager
from inception_kernels.bench.plain import PlainConv
from inception_kernels.bench.problem import Case

COMMANDS = ("info", "bench", "verify", "plan", "flops", "train")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inception_kernels", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One case, one implementation and a probe that takes no time."""
    monkeypatch.setattr(roofline, "_PRODUCTS", {"cpu": ((16, 16, 16),)})
    monkeypatch.setattr(roofline, "_COPIES", {"cpu": (2**12, 2**14)})

    def one_case(config: object) -> list[Case]:
        def build() -> PlainConv:
            return PlainConv((4, 4), (1, 3), (1, 1), (0, 1), (1, 1), "relu", 1e-3)

        work = ((100.0, 100.0),)
        return [Case("tiny", "operator", "conv2d_bn_act", 1, "float32", "inference", (1, 4, 5, 5), build, work)]

    monkeypatch.setattr(harness, "default_cases", one_case)
    monkeypatch.setattr(harness, "default_contenders", lambda config: [Eager()])


def test_help_lists_the_commands_and_needs_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"inception-kernels {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert _version.__version__ in capsys.readouterr().out


def test_info_in_its_own_process() -> None:
    done = run("info")
    assert done.returncode == 0, done.stderr
    for name in ("torch:", "processor:", "threads:", "cache:", "build:", "instruction sets:"):
        assert name in done.stdout
    for name, reason in backends.available().items():
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"backend {name}:"))
        assert ("available" if reason is None else reason) in line


def test_info_suggests_a_build_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = dict.fromkeys(("cuda", "triton", "cpu"), "not built") | {"reference": None}
    monkeypatch.setattr(backends, "available", lambda: missing)
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert "backend cpu:      unavailable: not built" in text
    assert "pip install ." in text


def test_flops_in_its_own_process() -> None:
    done = run("flops", "--model", "xception")
    assert done.returncode == 0, done.stderr
    assert "8.3" in done.stdout and "GMAC" in done.stdout


def test_a_reader_may_stop_early() -> None:
    command = [sys.executable, "-m", "inception_kernels", "info", "--kernels"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_plan_prints_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    assert cli.main(["plan", "xception", "--input", "1,3,71,71", "--json", str(path)]) == 0
    assert "separable_conv2d" in capsys.readouterr().out
    assert json.loads(path.read_text())


@pytest.mark.slow
def test_verify(capsys: pytest.CaptureFixture[str]) -> None:
    if backends.available()["cpu"] is not None:
        pytest.skip(f"the host kernels are not here: {backends.available()['cpu']}")
    assert cli.main(["verify", "xception", "--input", "1,3,71,71", "--dtype", "float32"]) == 0
    assert "float32" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_bench_measures_reports_and_keeps_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, kept = tmp_path / "report", tmp_path / "results"
    arguments = ["bench", "--quick", "--rounds", "1", "--output", str(folder), "--save", str(kept)]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "tiny" in text and "eager" in text and "Roofline at the start" in text
    assert {"rows.json", "rows.csv", "report.md"} <= {path.name for path in folder.iterdir()}
    (saved,) = kept.rglob("*.json")
    assert saved.name == "quick.json"
    assert report.load(saved) == report.load(folder / "rows.json")
    assert cli.main(["bench", "--rounds", "1", "--save", str(kept), "--kinds", "network", "--passes", "inference"]) == 0
    assert {path.name for path in kept.rglob("*.json")} == {"quick.json", "full-network-inference.json"}


def test_bench_options_reach_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(harness, "run", lambda config, progress: seen.append(config) or [])
    arguments = "bench --networks xception --kinds network --batches 2,4 --dtypes bfloat16 --passes training"
    assert cli.main([*arguments.split(), "--threads", "1", "--tune", "--backends", "eager,openvino"]) == 0
    assert cli.main(["bench", "--quick", "--batches", "3", "--layers", "1"]) == 0
    full, quick = seen
    assert (full.networks, full.kinds, full.batches) == (("xception",), ("network",), (2, 4))
    assert (full.dtypes, full.passes, full.threads, full.tune) == (("bfloat16",), ("training",), 1, True)
    assert full.backends == ("eager", "openvino")
    assert (quick.batches, quick.layers, quick.compile_training) == ((3,), 1, False)


@pytest.mark.parametrize("fast", [True, False])
def test_bench_leaves_out_bfloat16_where_pytorch_has_no_kernels(
    fast: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(harness, "run", lambda config, progress: seen.append(config) or [])
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    assert cli.main(["bench", "--quick"]) == 0
    assert ("bfloat16 is not measured" in capsys.readouterr().err) is not fast
    assert cli.main(["bench", "--dtypes", "float32,bfloat16"]) == 0
    assert capsys.readouterr().err == ""
    assert [config.dtypes for config in seen] == [
        ("float32", "bfloat16") if fast else ("float32",),
        ("float32", "bfloat16"),
    ]


def test_bench_renders_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench:networks-gpu -->\nold\n<!-- /bench:networks-gpu -->\n")
    arguments = ["bench", "--render", str(tmp_path), "--readme", str(readme)]
    assert cli.main([*arguments, "--check"]) == 1
    assert "out of date" in capsys.readouterr().out
    assert cli.main(arguments) == 0
    assert "not measured" in readme.read_text()
    assert cli.main([*arguments, "--check"]) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "no_such_model"], "package.module:callable"),
        (["plan", "no_such_module:thing"], "no_such_module"),
        (["flops", "--model", "vgg"], "inception_v3"),
        (["bench", "--networks", "vgg"], "inception_v3, xception"),
        (["bench", "--dtypes", "int4"], "float32"),
        (["bench", "--backends", "caffe"], "openvino"),
        (["bench", "--render", "no_such_folder"], "no_such_folder"),
        (["bench", "--threads", "0"], "above zero"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert captured.err.startswith(f"inception-kernels {arguments[0]}: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    "arguments", [[], ["race"], ["plan"], ["bench", "--batches", "one"], ["plan", "xception", "--input", "3,3"]]
)
def test_arguments_that_do_not_parse_have_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_mistake_in_a_process_of_its_own_shows_no_traceback() -> None:
    done = run("plan", "no_such_model")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no_such_model" in done.stderr


def test_verbose_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no_such_model"):
        cli.main(["--verbose", "plan", "no_such_model"])


def test_interrupt_is_not_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(harness, "run", interrupted)
    assert cli.main(["bench"]) == 130
    assert "interrupted" in capsys.readouterr().err
