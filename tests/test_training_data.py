"""Images and their order: what is read, what is refused, and that nothing depends on where a run starts."""

import builtins

import pytest
import torch

from inception_kernels.training import data
from inception_kernels.training.batches import EvaluationOrder, Share, TrainingOrder, loader
from inception_kernels.training.data import Sample


@pytest.fixture
def pictures(tmp_path):
    """root/train and root/val with two classes; the class is the colour."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow")
    for split, count in (("train", 3), ("val", 2)):
        for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                image.new("RGB", (40 + index, 30), colour).save(folder / f"{index}.png")
    return tmp_path


def test_digits():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    digits = data.load("digits", 16)
    assert (len(digits.train), len(digits.val), len(digits.classes)) == (1438, 359, 10)
    image, label = digits.train[Sample(3)]
    assert image.shape == (1, 16, 16) and image.dtype == torch.float32 and label == digits.train.labels[3]
    assert image.min() >= -1 and image.max() <= 1
    assert set(digits.val.labels) == set(range(10))
    moved = digits.train[Sample(3, "a")][0]
    assert torch.equal(moved, digits.train[Sample(3, "a")][0])
    assert any(not torch.equal(moved, digits.train[Sample(3, seed)][0]) for seed in "bcd")


def test_digits_name_the_package_to_install(monkeypatch):
    original = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ValueError, match="pip install scikit-learn"):
        data.digits(8)


def test_folder(pictures):
    images = data.load(str(pictures), 16)
    assert images.classes == ("blue", "red") and images.channels == 3
    assert list(images.train.labels) == [0, 0, 0, 1, 1, 1] and len(images.val) == 4
    for sample in (Sample(5), Sample(5, "seed")):
        image, label = images.train[sample]
        assert label == 1 and image.shape == (3, 16, 16)
        assert torch.equal(image[0], torch.ones(16, 16)) and torch.equal(image[2], -torch.ones(16, 16))


def test_central_square_without_augmentation(pictures):
    from PIL import Image

    picture = Image.new("RGB", (64, 32))
    picture.paste((255, 255, 255), (16, 0, 48, 32))  # the central square
    picture.save(pictures / "val" / "red" / "0.png")
    image, _ = data.folder(pictures, 28).val[Sample(2)]
    assert torch.equal(image, torch.ones(3, 28, 28))


def test_missing_folders(tmp_path, pictures):
    with pytest.raises(ValueError, match="nowhere: expected a folder"):
        data.load(str(tmp_path / "nowhere"), 16)
    (pictures / "val").rename(pictures / "test")
    with pytest.raises(ValueError, match=r"val: expected a folder; .*val/<class>"):
        data.folder(pictures, 16)


def test_train_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="expected one folder per class, got none"):
        data.folder(tmp_path, 16)


def test_empty_class_and_unknown_class(pictures):
    (pictures / "train" / "green").mkdir()
    with pytest.raises(ValueError, match=r"green: expected images .*remove an empty class"):
        data.folder(pictures, 16)
    (pictures / "train" / "green").rmdir()
    (pictures / "val" / "violet").mkdir()
    with pytest.raises(ValueError, match=r"one of the 2 classes of train \(blue, red\), got 'violet'"):
        data.folder(pictures, 16)


@pytest.mark.parametrize("content", [b"", b"no image", "cut"], ids=["empty", "text", "cut"])
def test_unreadable_image_is_named(pictures, content):
    path = pictures / "train" / "red" / "1.png"
    path.write_bytes(path.read_bytes()[:60] if content == "cut" else content)
    images = data.folder(pictures, 16)
    with pytest.raises(ValueError, match=r"red/1\.png: expected a readable image"):
        images.train[Sample(4)]


def test_label_that_is_no_class():
    good = data.Digits(torch.zeros(3, 8, 8), [0, 1, 1], 8)
    bad = data.Digits(torch.zeros(3, 8, 8), [0, 2, 1], 8)
    with pytest.raises(ValueError, match="val: expected labels from 0 to 1, got 2 for image 1"):
        data.Data(good, bad, ("a", "b"), 1)
    with pytest.raises(ValueError, match="train: expected images, got none"):
        data.Data(data.Digits(torch.zeros(0, 8, 8), [], 8), good, ("a", "b"), 1)


def test_order_has_every_image_at_most_once_and_differs_by_epoch():
    epochs = [[sample for batch in TrainingOrder(10, 3, seed=1, epoch=epoch) for sample in batch] for epoch in (0, 1)]
    for samples in epochs:
        assert len({sample.image for sample in samples}) == 9
        assert len({sample.seed for sample in samples}) == 9
    assert epochs[0] != epochs[1]
    assert list(TrainingOrder(10, 3, 1, 0)) != list(TrainingOrder(10, 3, 2, 0))


def test_order_goes_on_where_it_stopped():
    whole = list(TrainingOrder(32, 4, seed=5, epoch=2))
    rest = TrainingOrder(32, 4, seed=5, epoch=2, start=3)
    assert list(rest) == whole[3:] and len(rest) == 5


def test_processes_share_every_batch():
    whole = list(TrainingOrder(20, 4, seed=5, epoch=0))
    parts = [list(TrainingOrder(20, 4, 5, 0, share=Share(rank, 2))) for rank in (0, 1)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole
    found = [sample.image for rank in range(3) for batch in EvaluationOrder(10, 4, Share(rank, 3)) for sample in batch]
    assert sorted(found) == list(range(10))
    with pytest.raises(ValueError, match=r"multiple of the 3 process\(es\), got 4"):
        TrainingOrder(20, 4, 5, 0, share=Share(0, 3))
    with pytest.raises(ValueError, match="at most the 3 training images, got 4"):
        TrainingOrder(3, 4, 0, 0)


def test_loader_leaves_the_global_random_numbers_alone():
    images = data.Digits(torch.rand(9, 8, 8), [0] * 9, 8)
    before = torch.get_rng_state()
    batches = list(loader(images, TrainingOrder(9, 4, 0, 0)))
    assert torch.equal(before, torch.get_rng_state())
    assert [tuple(image.shape) for image, _ in batches] == [(4, 1, 8, 8)] * 2
    assert batches[0][1].dtype == torch.int64


def test_workers_read_the_same_images():
    images = data.Digits(torch.rand(8, 8, 8), list(range(8)), 8)
    alone = list(loader(images, TrainingOrder(8, 4, 0, 0)))
    helped = list(loader(images, TrainingOrder(8, 4, 0, 0), workers=1))
    for (a, i), (b, j) in zip(alone, helped, strict=True):
        assert torch.equal(a, b) and torch.equal(i, j)
