"""Every snippet and command of the README runs, and what the documents name exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from inception_kernels import cli

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("console") for line in block.splitlines()]
    return [line for line in lines if line]


def test_python_snippets_run_in_order() -> None:
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks("python")):
        exec(compile(block, f"README.md snippet {number}", "exec"), namespace)


@pytest.mark.third_party("torchvision", "timm")
@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("inception-kernels")])
def test_commands_run(
    command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for what a command writes
    assert cli.main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_make_targets_exist() -> None:
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert targets == ["bench", "test"]
    for target in targets:
        dry = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert dry.returncode == 0, dry.stderr
        assert "inception_kernels bench" in dry.stdout or "pytest" in dry.stdout


def test_remaining_commands_install() -> None:
    """`pip install` lines are what CI and the Makefile run; nothing else may stand in a console block untested."""
    rest = [line for line in commands() if not line.startswith(("inception-kernels", "make "))]
    assert all(line.startswith("pip install ") for line in rest)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    text = document.read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    quoted = re.findall(r"`((?:csrc|inception_kernels|tests|benchmarks|ops)/[\w./]+)`", text)
    for name in (*links, *quoted):
        name = re.sub(r"(?<=[/_])op\.", "conv2d_bn_act.", name)  # "op" stands for any operator
        name = name if not name.startswith("ops/") else f"inception_kernels/{name}"
        assert (ROOT / name).exists(), f"{document.name} names {name}"


def test_console_script_is_the_module() -> None:
    module = subprocess.run(
        [sys.executable, "-m", "inception_kernels", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert module.returncode == 0 and module.stdout.startswith("inception_kernels ")
