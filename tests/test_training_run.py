"""Training itself: fused operators against reference ones, the command, its pictures and its errors."""

import io
import os
import signal
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch import nn
from training_runs import patterns, save_pictures, small_net

import inception_kernels as ik
from inception_kernels import cli
from inception_kernels.training import command, data, export, log
from inception_kernels.training.distributed import Processes
from inception_kernels.training.evaluate import evaluate
from inception_kernels.training.recipes import inception_v3_imagenet, xception_imagenet
from inception_kernels.training.terminal import Terminal
from inception_kernels.training.trainer import Options, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


class Rows:
    """A log in memory."""

    def __init__(self) -> None:
        self.steps: list[dict] = []
        self.epochs: list[dict] = []

    def step(self, row) -> None:
        self.steps.append(row)

    def epoch(self, row) -> None:
        self.epochs.append(row)

    def close(self) -> None:
        pass


class InDouble(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.double())


def losses(images, kind: str, seed: int, precision: str = "fp32", steps: int = 8) -> torch.Tensor:
    """Of the first steps from one seed, with the recipe of Inception-v3: "fused", "reference" or "float64"."""
    net = small_net(classes=10, dropout=0.0)
    rows = Rows()
    options = Options(epochs=1, batch_size=64, precision=precision, channels_last=kind == "fused", seed=seed)
    trainer = Trainer(
        InDouble(net) if kind == "float64" else net, images, inception_v3_imagenet(), options, logs=[rows]
    )
    with nullcontext() if kind == "fused" else ik.use_backend("reference"):
        trainer.run(lambda: trainer.position.step == steps)
    return torch.tensor([row["loss"] for row in rows.steps], dtype=torch.float64)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_curves_stay_together(precision):
    """On the digits. The loss itself is float32 near 2.3, which is the floor.

    Each curve is one draw of rounding errors that grow from step to step, hence several, and their root mean squares.
    """
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    images = data.digits(16)
    ik.backends.reset_counters()
    fused, exact, reference = (
        torch.stack([losses(images, kind, seed, precision) for seed in range(3)])
        for kind in ("fused", "float64", "reference")
    )
    assert any(".backward.cpu" in name for name in ik.backends.counters()) or ik.backends.available()["cpu"]
    floor = 4 * torch.finfo(torch.float32).eps * exact.max()
    assert (fused - exact).square().mean().sqrt() <= 2 * (reference - exact).square().mean().sqrt() + floor
    assert len(set(exact.flatten().tolist())) == exact.numel() > 15


def test_same_final_accuracy_on_digits():
    """Within three standard deviations of a difference between two shares p of n digits, and far from chance."""
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    recipe = replace(xception_imagenet(), learning_rate=0.2, average_decay=0.95)
    accuracy = {}
    for backend in ("automatic", "reference"):
        trainer = Trainer(
            small_net(classes=10, dropout=0.0),
            data.digits(16),
            recipe,
            Options(epochs=20, batch_size=32, augment=False),
        )
        with nullcontext() if backend == "automatic" else ik.use_backend("reference"):
            accuracy[backend] = trainer.run().evaluation.accuracy
    share, images = sum(accuracy.values()) / 2, len(data.digits(16).val)
    assert share > 0.95
    assert abs(accuracy["automatic"] - accuracy["reference"]) <= 3 * (2 * share * (1 - share) / images) ** 0.5, accuracy


def test_first_loss_of_the_networks():
    """Whole networks: only the first loss is compared. Flat images tie in max pools, and which wins is rounding."""
    for name, size in (("xception", 32), ("inception_v3", 75)):
        images = patterns(size=size)
        recipe = replace(command.RECIPES[command.DEFAULT_RECIPE[name]](), dropout=0.0)
        found = {}
        for operators in ("fused", "reference", "float64"):
            torch.manual_seed(0)
            net = command.build_model(name, images, recipe, 0.05, size)
            if operators == "fused":
                ik.swap(net, min_swapped=40)
            rows = Rows()
            net = InDouble(net) if operators == "float64" else net
            trainer = Trainer(net, images, recipe, Options(epochs=1, batch_size=16), logs=[rows])
            trainer.run(lambda: True)
            found[operators] = rows.steps[0]["loss"]
        # a mean over 16 images: single rounding errors of 90 layers with batch statistics, not their largest
        assert found["fused"] == pytest.approx(found["float64"], rel=90 * torch.finfo(torch.float32).eps), name
        assert found["reference"] == pytest.approx(found["float64"], rel=90 * torch.finfo(torch.float32).eps), name


def test_a_loss_that_is_not_finite_stops_the_run():
    recipe = replace(inception_v3_imagenet(), learning_rate=1e30, clip_norm=None)
    trainer = Trainer(small_net(), patterns(), recipe, Options(epochs=3, batch_size=8))
    with pytest.raises(
        RuntimeError, match=r"step \d+: expected a finite loss, got nan; try a learning rate below 1e\+30"
    ):
        trainer.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch_size": 1}, "batch_size: expected at least 2, got 1"),
        ({"checkpoint_steps": 0}, "checkpoint_steps: expected at least 1"),
        ({"precision": "fp8"}, "precision: expected fp32 or bf16, got 'fp8'"),
    ],
    ids=str,
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**{"epochs": 1, "batch_size": 8, **options})


def test_evaluation_counts_by_label_and_answer():
    logits = torch.eye(3)[[0, 1, 1, 2, 0]]
    labels = torch.tensor([0, 1, 2, 2, 2])
    net = nn.Identity().train()
    found = evaluate(net, [(logits[:2], labels[:2]), (logits[2:], labels[2:])], 3, Processes(torch.device("cpu")))
    assert found.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 1]]
    assert found.accuracy == 3 / 5 and net.training
    assert found.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))


def test_command_from_folders_to_an_exported_network(tmp_path, capsys):
    pytest.importorskip("PIL", reason="needs pillow")
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    save_pictures(tmp_path / "data")
    output, file = tmp_path / "run", tmp_path / "model.pt2"
    words = "train --model xception --width 0.05 --image-size 32 --batch-size 4 --epochs 3 --precision bf16"
    arguments = [*words.split(), "--data", str(tmp_path / "data"), "--output", str(output), "--export", str(file)]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "epoch 3/3" in printed and "averaged weights" in printed and f"wrote {file}" in printed
    assert {path.name for path in output.iterdir()} >= {"checkpoint.pt", "curves.png", "confusion.png", "steps.csv"}
    loaded = export.load(file)
    assert loaded.classes == ("dark", "light") and (loaded.channels, loaded.size) == (3, 32)
    images = data.load(str(tmp_path / "data"), 32).val
    batch = torch.stack([images[data.Sample(index)][0] for index in range(len(images))])
    assert len(export.predict(loaded, batch)) == 8
    state = torch.load(output / "checkpoint.pt", weights_only=True)["average"]
    model = ik.models.xception(num_classes=2, width=0.05).eval()
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items() if key != "n_averaged"})
    for count in (1, 8):
        with torch.no_grad():
            exact, ours, theirs = (
                model.double()(batch[:count].double()),
                loaded.network(batch[:count]),
                model.float()(batch[:count]),
            )
        floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + floor
    assert cli.main(arguments) == 2
    assert "--resume goes on from it, another --output starts anew" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume", "--learning-rate", "0.01"]) == 2
    assert "learning_rate (expected 0.045, got 0.01)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data nowhere", "nowhere: expected a folder; --data takes 'digits' or a folder"),
        ("--data x --resume", "--resume: expected a checkpoint at"),
        ("--data x --export model.onnx", "--export: expected a file name that ends in .pt2, got model.onnx"),
        ("--data {data} --model inception_v3 --image-size 64", "image size: expected at least 75 pixels for inception_v3"),
        ("--data {data} --image-size 0", "image size: expected at least 32 pixels for xception, got 0"),
        ("--data {data} --image-size 32 --width -1", "width: expected a positive factor, got -1.0"),
        ("--data {data} --image-size 32 --width 0.1 --batch-size 999", "expected at most the 4 training images, got 999"),
        ("--data {data} --device tpu", "expected cpu or cuda, got 'tpu'"),
    ],
)  # fmt: skip
def test_command_says_what_is_wrong(tmp_path, capsys, words, message):
    pytest.importorskip("PIL", reason="needs pillow")
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    save_pictures(tmp_path / "data", train=2, val=1)
    arguments = words.format(data=tmp_path / "data").split()
    assert cli.main(["train", *arguments, "--output", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_auxiliary_classifier_only_where_it_fits():
    images, recipe = patterns(), inception_v3_imagenet()
    assert command.build_model("inception_v3", images, recipe, 0.05, 299).AuxLogits is not None
    assert command.build_model("inception_v3", images, recipe, 0.05, 298).AuxLogits is None


def test_export_without_a_swap_has_only_torch_operators(tmp_path):
    with pytest.raises(ValueError, match="expected an exported model, found no file"):
        export.load(tmp_path / "model.pt2")
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()
    export.save(net, tmp_path / "model.pt2", ("a", "b"), channels=1, size=8)
    assert net.training
    loaded = export.load(tmp_path / "model.pt2")
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded.network(x), net(x))
    torch.export.save(torch.export.export(net.eval(), (x,)), tmp_path / "other.pt2")
    with pytest.raises(ValueError, match="it names no classes"):
        export.load(tmp_path / "other.pt2")


ROW = {
    "epoch": 0, "step": 3, "train_loss": 1.0, "val_loss": 2.0, "val_accuracy": 0.5, "averaged_val_accuracy": None,
    "seconds": 1.0, "loss": 1.0, "images_per_second": 9.0,
}  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_a_bar_only_on_a_terminal(terminal):
    out = io.StringIO()
    view = Terminal(2, 3, console=Console(file=out, force_terminal=terminal, width=120, highlight=False))
    view.step(ROW)
    view.epoch(ROW)
    view.close()
    assert "validation loss 2.0000, accuracy 50.00%" in out.getvalue()
    assert ("9 images/s" in out.getvalue()) == terminal
    assert ("\x1b" in out.getvalue()) == terminal


def test_tensorboard_files_only_where_it_is_installed(tmp_path):
    installed = log.importlib.util.find_spec("tensorboard") is not None
    logs = log.open_logs(tmp_path)
    for each in logs:
        each.step({"step": 1, "epoch": 0, "loss": 1.0})
        each.close()
    assert any(tmp_path.glob("tensorboard/events.*")) == installed
    assert (tmp_path / "steps.csv").read_text().splitlines()[1].startswith("1,0,,1.0")


def test_sigterm_stops_after_a_step():
    before = signal.getsignal(signal.SIGTERM)
    with command._asked_to_stop() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_pictures_of_many_classes(tmp_path):
    plots = pytest.importorskip("inception_kernels.training.plots", reason="needs matplotlib")
    plots.confusion(torch.eye(30, dtype=torch.int64), [f"class {i}" for i in range(30)], tmp_path / "c.png", "title")
    assert (tmp_path / "c.png").stat().st_size > 5000
