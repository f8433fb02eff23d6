"""Several processes that torchrun starts do what one process does with as many parts per step."""

import csv
import subprocess
import sys

import pytest
import torch
from training_runs import patterns, save_pictures, small_net

from inception_kernels import cli
from inception_kernels.training import checkpoint
from inception_kernels.training.distributed import Processes, processes
from inception_kernels.training.recipes import xception_jft
from inception_kernels.training.trainer import Options, Trainer

# The command as torchrun starts it, in a process whose threads are asked for at its end.
COMMAND = """
import pathlib, sys
from inception_kernels import cli
status = cli.main(sys.argv[1:])
threads = [name.read_text().strip() for name in pathlib.Path("/proc/self/task").glob("*/comm")]
left = [name for name in threads if "gloo" in name]
sys.exit(f"threads of gloo are left: {left}" if left else status)
"""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_are_one_with_two_parts(tmp_path):
    """Bit for bit: halving a loss and adding two halves is exact, and no dropout draws random numbers."""
    pytest.importorskip("PIL", reason="needs pillow")
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    save_pictures(tmp_path / "data", train=8, val=3)
    words = "train --recipe xception_jft --width 0.05 --image-size 32 --batch-size 8 --threads 1 --epochs 2"
    arguments = [*words.split(), "--data", str(tmp_path / "data")]
    two, one = tmp_path / "two", tmp_path / "one"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "command.py"
    script.write_text(COMMAND)
    command = [*torchrun, str(script), *arguments, "--output", str(two)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2/2") == 1, "every process prints"
    assert cli.main([*arguments, "--accumulate", "2", "--output", str(one)]) == 0
    states = [checkpoint.load(folder / "checkpoint.pt") for folder in (two, one)]
    assert len(states[0]["random"]) == 2
    for name, value in states[0]["model"].items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):  # those of a process's own parts
            assert torch.equal(value, states[1]["model"][name]), name
    steps = [list(csv.DictReader((folder / "steps.csv").open())) for folder in (two, one)]
    assert [row["loss"] for row in steps[0]] == [row["loss"] for row in steps[1]]
    assert len(steps[0]) == 4
    for row in states[0]["epochs"]:  # six validation images, three in each process
        assert round(row["val_accuracy"] * 6, 9).is_integer()


def test_parts_of_a_batch_average_their_gradients():
    """Each part has its own batch statistics; the gradient is the mean over the parts."""
    gradients = []
    for parts in (1, 2):
        net = small_net(dropout=0.0).eval()  # running statistics: then parts and whole have one gradient
        trainer = Trainer(net, patterns(), xception_jft(), Options(epochs=1, batch_size=8, accumulate=parts))
        images, labels = next(iter(trainer._training_batches()))
        trainer._step(images, labels, 0.0)
        gradients.append([parameter.grad for parameter in net.parameters()])
    for whole, halves in zip(*gradients, strict=True):
        torch.testing.assert_close(halves, whole)


def test_batches_that_cannot_be_divided():
    for batch_size, parts in ((9, 2), (4, 4)):
        with pytest.raises(ValueError, match=rf"1 process\(es\) x {parts} part\(s\) .* got {batch_size}"):
            Trainer(small_net(), patterns(), xception_jft(), Options(epochs=1, batch_size=batch_size, accumulate=parts))


def test_another_number_of_processes_is_refused(tmp_path):
    options = Options(epochs=1, batch_size=8, checkpoint=tmp_path / "checkpoint.pt")
    trainer = Trainer(small_net(), patterns(), xception_jft(), options)
    trainer.run(lambda: True)
    state = checkpoint.load(tmp_path / "checkpoint.pt")
    state["random"] = state["random"] * 3
    checkpoint.save(tmp_path / "checkpoint.pt", state)
    with pytest.raises(ValueError, match=r"expected 3 process\(es\) as before, got 1"):
        trainer.restore(tmp_path / "checkpoint.pt")


def test_one_process_communicates_nothing():
    with processes("cpu") as mine:
        assert mine == Processes(torch.device("cpu")) and mine.is_first
        assert mine.gather(3) == [3] and mine.sum(torch.tensor(2)) == 2
        net = small_net()
        assert mine.parallel(net) is net
    assert not torch.distributed.is_initialized()


def test_devices_that_do_not_exist():
    with pytest.raises(ValueError, match="expected cpu or cuda, got 'tpu'"), processes("tpu"):
        pass
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no GPU"), processes("cuda"):
            pass
