from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdsearch import data
from kdsearch.data.cifar10 import CLASSES
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec
from kdsearch.system import machine


def draw(folder: Path, *, size: int = 32, classes: tuple[str, ...] = CLASSES) -> Path:
    """Class folders with an image each; its grey level is ten times its label."""
    for part in ("train", "test"):
        for label, name in enumerate(classes):
            path = folder / "cifar10" / part / name / "0001.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(np.full((size, size, 3), 10 * label, dtype=np.uint8)).save(path)
    return folder


def load(folder: Path) -> data.Dataset:
    return data.load(DataSpec(name="cifar10"), folder)


def test_class_folders_are_read_in_the_order_of_the_labels(tmp_path: Path):
    loaded = load(draw(tmp_path))
    assert loaded.classes == CLASSES
    assert loaded.train.images.shape == loaded.test.images.shape == (10, 3, 32, 32)
    assert loaded.train.images[:, 0, 0, 0].tolist() == [10 * label for label in loaded.train.labels.tolist()]
    assert (loaded.mean, loaded.std) == (0.5, 0.5)


def test_images_of_another_size_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"32x32 colour images.*\(3, 16, 16\)"):
        load(draw(tmp_path, size=16))


def test_other_classes_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="use --dataset folder:PATH for other images"):
        load(draw(tmp_path, classes=("cat", "dog")))


def test_images_of_mixed_sizes_are_refused(tmp_path: Path):
    draw(tmp_path)
    Image.new("RGB", (16, 32)).save(tmp_path / "cifar10" / "train" / "cat" / "0002.png")
    with pytest.raises(DataError, match=r"must have one size \(got 2 sizes"):
        load(tmp_path)


def test_broken_batches_are_one_line_with_a_remedy(tmp_path: Path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"broken")
    with pytest.raises(DataError, match="cifar-10-batches-py") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.real_data
def test_the_real_cifar10_has_its_counts():
    cifar10 = load(machine.data_folder())
    assert cifar10.train.images.shape == (50_000, 3, 32, 32)
    assert cifar10.test.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(cifar10.train.labels).tolist() == [5_000] * 10
    assert torch.bincount(cifar10.test.labels).tolist() == [1_000] * 10
    means = cifar10.train.images.float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-4, rtol=0)  # as published
