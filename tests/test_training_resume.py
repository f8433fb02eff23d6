"""A run that is stopped, or killed, and goes on ends in the same bits as one that never stopped."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from training_runs import patterns, save_pictures, small_net

from inception_kernels import cli
from inception_kernels.training import checkpoint
from inception_kernels.training.log import CsvLog
from inception_kernels.training.recipes import inception_v3_imagenet
from inception_kernels.training.trainer import Options, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS_PER_EPOCH = 3


def trainer(folder, seed=0, **settings) -> Trainer:
    options = Options(epochs=3, batch_size=8, seed=seed, checkpoint=folder / "checkpoint.pt", checkpoint_steps=2)
    return Trainer(small_net(), patterns(), inception_v3_imagenet(), options, settings={"seed": seed, **settings})


def assert_same(ours, theirs, path=""):
    """Bit for bit, but for how long things took."""
    assert type(ours) is type(theirs), path
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), path
        for key in ours:
            if key != "seconds":
                assert_same(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), path
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{path}/{index}")
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), path
    else:
        assert ours == theirs, path


@pytest.mark.parametrize("stops", [(1,), (STEPS_PER_EPOCH,), (STEPS_PER_EPOCH + 2,), (2, 5, 7)], ids=str)
def test_stopped_and_continued(tmp_path, stops):
    whole = trainer(tmp_path / "whole")
    expected = whole.run()
    for stop in stops:
        part = trainer(tmp_path / "parts")
        if stop != stops[0]:
            part.restore(tmp_path / "parts" / "checkpoint.pt")
        assert not part.run(lambda part=part, stop=stop: part.position.step == stop).finished
    torch.manual_seed(1234)  # a new process has other random numbers
    last = trainer(tmp_path / "parts")
    last.restore(tmp_path / "parts" / "checkpoint.pt")
    result = last.run()
    assert result.finished and len(result.epochs) == 3
    assert torch.equal(result.evaluation.confusion, expected.evaluation.confusion)
    for one, other in zip(result.epochs, expected.epochs, strict=True):
        assert_same({**one}, {**other})
    assert_same(last.state(), whole.state())
    assert_same(*(checkpoint.load(tmp_path / name / "checkpoint.pt") for name in ("parts", "whole")))


def test_the_state_matters(tmp_path):
    """The comparison above sees another dropout, order or augmentation."""
    states = []
    for seed in (0, 1):
        run = trainer(tmp_path / str(seed), seed=seed)
        run.run()
        states.append(run.state()["model"]["fc.weight"])
    assert not torch.equal(*states)


def test_a_finished_run_only_evaluates(tmp_path):
    whole = trainer(tmp_path)
    expected = whole.run()
    again = trainer(tmp_path)
    again.restore(tmp_path / "checkpoint.pt")
    result = again.run()
    assert result.finished and torch.equal(result.evaluation.confusion, expected.evaluation.confusion)


def test_other_settings_are_refused(tmp_path):
    trainer(tmp_path, width=0.5).run(lambda: True)
    with pytest.raises(ValueError, match=r"width \(expected 0.5, got 0.25\)"):
        trainer(tmp_path, width=0.25).restore(tmp_path / "checkpoint.pt")


def test_files_that_are_no_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(ValueError, match="found no file"):
        checkpoint.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="expected a checkpoint of this trainer"):
        checkpoint.load(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"another file of torch\.save"):
        checkpoint.load(path)
    checkpoint.save(path, {"format": 99})
    with pytest.raises(ValueError, match="expected format 1, got 99"):
        checkpoint.load(path)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"value": 1})
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoint.save(path, {"value": lambda: None})
    assert checkpoint.load(path)["value"] == 1


def test_logs_go_on_after_the_last_checkpoint(tmp_path):
    log = CsvLog(tmp_path)
    for step in (1, 2, 3):
        log.step({"step": step, "epoch": 0, "loss": step / 3, "gradient_norm": None})
    log.close()
    with (tmp_path / "steps.csv").open("a") as file:
        file.write("4,0,0.0")  # killed while writing
    log = CsvLog(tmp_path, last_step=2)
    log.step({"step": 3, "epoch": 0, "loss": 0.5})
    log.close()
    with (tmp_path / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    assert [float(row["loss"]) for row in rows] == [1 / 3, 2 / 3, 0.5] and rows[0]["gradient_norm"] == ""
    (tmp_path / "steps.csv").write_text("other,columns\n")
    with pytest.raises(ValueError, match=r"steps\.csv: expected the columns step,.* got other,columns"):
        CsvLog(tmp_path, last_step=2)


def columns(path, without) -> list[dict[str, str]]:
    with path.open() as file:
        return [{key: value for key, value in row.items() if key != without} for row in csv.DictReader(file)]


def test_killed_from_outside_and_continued(tmp_path):
    """SIGKILL, which no process can see coming, in the middle of an epoch."""
    pytest.importorskip("PIL", reason="needs pillow")
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    save_pictures(tmp_path / "data")

    def arguments(output: str, epochs: int) -> list[str]:
        words = f"train --model xception --width 0.05 --image-size 32 --batch-size 4 --threads 1 --epochs {epochs}"
        return [*words.split(), "--data", str(tmp_path / "data"), "--checkpoint-steps", "3", "--output", output]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "inception_kernels", *arguments(str(killed), 1000)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (killed / "checkpoint.pt").exists():
            assert process.poll() is None and time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    epochs = checkpoint.load(killed / "checkpoint.pt")["position"]["epoch"] + 2
    assert cli.main([*arguments(str(killed), epochs), "--resume"]) == 0
    assert cli.main(arguments(str(whole), epochs)) == 0
    assert_same(*(checkpoint.load(folder / "checkpoint.pt") for folder in (killed, whole)))
    for name, without in (("steps.csv", "images_per_second"), ("epochs.csv", "seconds")):
        assert columns(killed / name, without) == columns(whole / name, without)
    assert all(os.path.getsize(killed / name) > 5000 for name in ("curves.png", "confusion.png"))
