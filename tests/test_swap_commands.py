"""`plan` and `verify` of the command line."""

import argparse
import json

import pytest

from inception_kernels.swap import commands


def parse(which: str, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    getattr(commands, f"add_{which}_arguments")(parser)
    return parser.parse_args(arguments)


def test_plan_prints_and_writes_json(capsys, tmp_path):
    path = tmp_path / "plans" / "plan.json"
    arguments = parse("plan", "xception", "--input", "1,3,43,43", "--json", str(path))
    assert commands.run_plan(arguments) == 0
    output = capsys.readouterr().out
    assert "74 of 74 convolutions in 40 fused layers, 0 declined" in output
    assert "block4.rep.1" in output
    assert len(json.loads(path.read_text())["swapped"]) == 40


def test_plan_of_any_callable(capsys):
    assert commands.run_plan(parse("plan", "swap_models:Residual", "--input", "2x3x21x21")) == 0
    assert "6 fused layers" in capsys.readouterr().out


def test_verify_passes(capsys):
    assert commands.run_verify(parse("verify", "swap_models:Residual", "--input", "2,3,21,21")) == 0
    output = capsys.readouterr().out
    assert output.count(" ok ") == 2
    assert "bfloat16" in output


def test_verify_fails_where_the_swap_is_wrong(capsys, monkeypatch):
    from inception_kernels.swap.runtime import FusedLayer

    call = FusedLayer.__call__
    monkeypatch.setattr(
        FusedLayer, "__call__", lambda self, x, parts: call(self, x, parts) + 1 * (x.dtype.itemsize < 8)
    )
    arguments = parse("verify", "swap_models:Residual", "--input", "2,3,21,21", "--dtype", "float32")
    assert commands.run_verify(arguments) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_missing_package_names_the_pip_command(package, monkeypatch):
    find_spec = commands.importlib.util.find_spec
    monkeypatch.setattr(
        commands.importlib.util, "find_spec", lambda name, *rest: None if name == package else find_spec(name, *rest)
    )
    with pytest.raises(ValueError, match=f"needs {package}, which is not installed: pip install --no-deps"):
        commands.load_model(f"{package}:anything")


@pytest.mark.parametrize("text", ["1,3,299", "a,b,c,d", "0,3,9,9", ""])
def test_input_shape_is_checked(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected N,C,H,W"):
        commands._input_shape(text)
