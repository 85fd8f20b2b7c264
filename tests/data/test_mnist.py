from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from kdsearch import data
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec
from kdsearch.system import machine


def write_idx(path: Path, values: np.ndarray) -> None:
    """The IDX format: two zeros, 8 for bytes, the number of dimensions, each dimension, the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """MNIST's four files, with 5 images each."""
    for part in ("train", "t10k"):
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-images-idx3-ubyte", np.zeros((5, 28, 28)))
        write_idx(tmp_path / "MNIST" / "raw" / f"{part}-labels-idx1-ubyte", np.arange(5))
    return tmp_path


def load(folder: Path) -> data.Dataset:
    return data.load(DataSpec(name="mnist"), folder)


def test_another_number_of_images_is_refused(folder: Path):
    with pytest.raises(DataError, match=r"training set must hold 60000 images.*\(got 5 and 5\); delete .*MNIST "):
        load(folder)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("size", [0, 3, 10, 12])
def test_a_truncated_file_is_one_line_with_a_remedy(folder: Path, name: str, size: int):
    path = folder / "MNIST" / "raw" / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"files must be whole.*delete that folder") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_are_named_and_nothing_is_downloaded(folder: Path):
    (folder / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        DataError, match=r"MNIST's files must be whole: Dataset not found\. \(got .*MNIST/raw\); delete"
    ):
        load(folder)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.real_data
def test_the_real_mnist_has_its_counts():
    mnist = load(machine.data_folder())
    assert mnist.train.images.shape == (60_000, 1, 28, 28)
    assert mnist.test.images.shape == (10_000, 1, 28, 28)
    assert mnist.train.images.dtype == torch.uint8
    assert torch.bincount(mnist.train.labels).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949
    ]  # fmt: skip
    assert torch.bincount(mnist.test.labels).sum() == 10_000
