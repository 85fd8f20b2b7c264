"""Images in a file instead of memory: the same data set, the same training, the same figures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kdsearch import data, networks
from kdsearch.data import ImageSet, Split, Stored, folder, stored
from kdsearch.distil import answers, train
from kdsearch.distil.loss import cls_loss
from kdsearch.errors import DataError, DeviceError, KdsearchError
from kdsearch.measure.accuracy import accuracy, batch_of, logits
from kdsearch.spec import Augment, DataSpec, Recipe
from kdsearch.system import files, machine

CPU = torch.device("cpu")
SMALL = "0.00001"  # GB: nothing fits


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded" / "large"


def opened(photos: Path, monkeypatch: pytest.MonkeyPatch, memory: str = "") -> Split:
    monkeypatch.setenv("KDSEARCH_MEMORY_GB", memory)
    spec = DataSpec(name=f"folder:{photos}", image_size=16, validation=0.25)
    return data.split(data.load(spec, photos.parent), spec, CPU)


@pytest.fixture
def both(photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Split, Split]:
    """The same folder in memory and in a file."""
    return opened(photos, monkeypatch), opened(photos, monkeypatch, SMALL)


def test_a_folder_that_does_not_fit_is_the_same_data_set(both: tuple[Split, Split]) -> None:
    memory, file = both
    assert isinstance(memory.train.images, Tensor)
    assert isinstance(file.train.images, Stored)
    assert file.fingerprint == memory.fingerprint
    assert file.shape == memory.shape
    for part in ("train", "validation", "test"):
        ours, theirs = getattr(memory, part), getattr(file, part)
        assert torch.equal(theirs.images[:], ours.images)
        assert torch.equal(theirs.labels, ours.labels)
        assert torch.equal(torch.cat(list(theirs.images.split(7))), ours.images)
        chosen = torch.tensor([3, 0, 3])
        assert torch.equal(theirs.images[chosen], ours.images[chosen])
        assert torch.equal(theirs.subset(chosen).images[:], ours.subset(chosen).images)
    assert any("do not fit into memory" in note for note in file.notes)
    assert torch.equal(file.undivided().train.images[:], memory.undivided().train.images)
    assert torch.equal(file.example(50), memory.example(50))
    empty = file.train.images.select(torch.arange(0))
    assert (len(empty), empty[:].shape) == (0, (0, 3, 16, 16))


def test_it_is_one_safetensors_file_with_a_digest(both: tuple[Split, Split]) -> None:
    """The form of `files.save_tensors`: what reads decoded images whole reads this file."""
    images = both[1].train.images
    assert isinstance(images, Stored)
    tensors, metadata = files.load_tensors(images.file.path, CPU)  # checks the digest
    assert set(tensors) == {"images"}
    assert tensors["images"].shape == images.file.shape
    assert metadata["images_of"].endswith("photos")
    assert torch.equal(load_file(images.file.path)["images"][images.rows], both[0].train.images)


def lesson(split: Split, table: Tensor | None = None) -> train.Lesson:
    return train.Lesson(
        split.train, split.prepare, lambda batch: cls_loss(batch.logits, batch.labels), table, epochs=2, batch_size=16,
        seed=1,
    )  # fmt: skip


def test_a_training_from_a_file_is_the_one_from_memory(both: tuple[Split, Split]) -> None:
    weights = []
    for split in both:
        torch.manual_seed(0)
        network = networks.student_family("resnet").build(
            {"width": 8, "blocks": [1], "stride": 2}, split.shape, len(split.classes)
        )
        records = list(
            train.Run(
                network, lesson(split), Recipe(averaging=8.0, augment=Augment(flip=True, shift=1)),
                validate=lambda made, split=split: accuracy(made, split.validation, split.prepare),
            )
        )  # fmt: skip
        weights.append(([record.loss for record in records], [record.accuracy for record in records]))
        scores = logits(network, split.test.images, split.prepare)
        weights[-1] += (scores,)
    assert weights[0][:2] == weights[1][:2]
    assert torch.equal(weights[0][2], weights[1][2])


def test_a_teacher_answers_alike(both: tuple[Split, Split], tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    asked = [answers.ask(teacher, split.train, split.prepare) for split in both]
    assert torch.equal(asked[0].logits, asked[1].logits)
    tables = []
    for number, split in enumerate(both):
        table = answers.ViewAnswers(
            teacher, split.train, split.prepare, Augment(flip=True), folder=tmp_path / str(number), name="x"
        )
        order = torch.arange(len(split.train))
        table.fill(order, order % 2)
        tables.append(table.logits)
    assert torch.equal(tables[0], tables[1])


def test_it_is_decoded_once_and_again_where_anything_changed(
    photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    decode = folder.decode_each
    monkeypatch.setattr(folder, "decode_each", lambda paths, *rest: counted.append(len(paths)) or decode(paths, *rest))
    opened(photos, monkeypatch, SMALL)
    opened(photos, monkeypatch, SMALL)
    assert counted == [150]
    before = opened(photos, monkeypatch, SMALL)
    os.utime(photos / "train" / "red" / "0.png", ns=(1, 1))
    opened(photos, monkeypatch, SMALL)
    assert counted == [150, 150]
    assert len(list(own_cache.glob("*.safetensors"))) == 1  # the old file is gone, and whoever has it open reads on
    assert before.train.images[:].shape == (90, 3, 16, 16)


@pytest.mark.parametrize("how", ["cut", "rubbish", "empty"])
def test_a_broken_file_is_made_anew(photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    whole = opened(photos, monkeypatch, SMALL).fingerprint
    [path] = own_cache.glob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-1], "rubbish": b"\xff" * 100, "empty": b""}[how])
    assert opened(photos, monkeypatch, SMALL).fingerprint == whole
    assert path.read_bytes() == content


def test_a_file_that_is_cut_while_it_is_read_is_one_line(
    photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = opened(photos, monkeypatch, SMALL)
    [path] = own_cache.glob("*.safetensors")
    with path.open("rb+") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"must stay whole.*it was cut short"):
        list(train.Run(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), lesson(split), Recipe(), validate=lambda _: 0))


def test_an_interrupted_decoding_leaves_no_file(photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "train" / "red" / "39.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 150 are not"):
        opened(photos, monkeypatch, SMALL)
    assert not [path for path in own_cache.iterdir() if path.suffix != ".lock"]


def test_a_disk_without_room_is_one_line(photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(DataError, match=r"150 images of 3x16x16 .* need 0.1 GB of disk .*0.0 GB free.*KDSEARCH_CACHE"):
        opened(photos, monkeypatch, SMALL)
    assert not list(own_cache.glob("*.safetensors"))


def test_a_cache_that_cannot_be_written_is_one_line(photos: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(KdsearchError, match="writable"):
        opened(photos, monkeypatch, SMALL)


def test_memory_is_what_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDSEARCH_MEMORY_GB", "0.5")
    assert machine.free_memory() == 500_000_000
    for text in ("much", "-1", "inf"):
        monkeypatch.setenv("KDSEARCH_MEMORY_GB", text)
        with pytest.raises(DeviceError, match="KDSEARCH_MEMORY_GB"):
            machine.free_memory()


def test_images_fit_with_as_much_again_for_training() -> None:
    needed = 2 * 1000 * 3 * 32**2
    assert folder.fits(1000, 32, 2 * needed)
    assert not folder.fits(1000, 32, 2 * needed - 1)
    assert folder.fits(10**9, 32, None)


@pytest.mark.parametrize(("size", "batch"), [(8, 500), (32, 500), (64, 500), (128, 128), (224, 41), (512, 16)])
def test_large_images_are_scored_in_small_batches(size: int, batch: int) -> None:
    assert batch_of(torch.zeros(1, 3, size, size, dtype=torch.uint8)) == batch


def test_images_of_two_files_cannot_be_joined(tmp_path: Path) -> None:
    kept = []
    for name in "ab":
        rows = (torch.full((1, 2, 2), value, dtype=torch.uint8).numpy() for value in range(3))
        kept.append(Stored(stored.write(tmp_path / name, (3, 1, 2, 2), lambda rows=rows: rows, {})))
    labels = torch.arange(3)
    assert torch.equal(kept[0].joined(kept[0])[:][:, 0, 0, 0], torch.tensor([0, 1, 2, 0, 1, 2]))
    with pytest.raises(ValueError, match="one file"):
        ImageSet(kept[0], labels).joined(ImageSet(kept[1], labels))
    with pytest.raises(ValueError, match="first dimension"):
        kept[0].index_select(1, labels)
