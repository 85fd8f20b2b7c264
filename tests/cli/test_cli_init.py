"""`kdsearch init --teacher`, and a study with the teacher that it brings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers.commands import Run, refused
from PIL import Image

from kdsearch import networks, spec
from kdsearch.cli import init

OWN = """
from torch import nn


def network(width, classes):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )
"""


def test_a_torchvision_teacher_gets_as_many_classes_as_there_are_folders(
    kdsearch: Run, photos: Path, tmp_path: Path
) -> None:
    given = ("--dataset", "folder:photos", "--teacher", "torchvision.models:resnet18")
    assert kdsearch("init", "mine.toml", *given).code == 0
    written = spec.load(tmp_path / "mine.toml")
    assert written.data.name == "folder:photos"
    assert (written.teacher.family, written.teacher.build) == (None, "torchvision.models:resnet18")
    assert written.teacher.options == {"num_classes": 3}
    shipped = spec.load(spec.shipped("folder"))
    assert written.student == shipped.student
    assert {key: value for key, value in written.space.items() if value != shipped.space[key]}.keys() == {
        "epochs", "batch_size"
    }  # fmt: skip


def test_a_teacher_of_ones_own_gets_no_options(kdsearch: Run, tmp_path: Path) -> None:
    assert kdsearch("init", "--teacher", "mine:network").code == 0
    written = spec.load(tmp_path / "study.toml")
    assert (written.data.name, written.teacher.build, written.teacher.options) == ("digits", "mine:network", {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--teacher", "no-function"), ("build", "no-function")),
        (("--dataset", "folder:nowhere", "--teacher", "torchvision.models:resnet18"), ("nowhere",)),
    ],
)
def test_a_teacher_that_cannot_be_is_refused_and_nothing_is_written(
    kdsearch: Run, tmp_path: Path, words: tuple[str, ...], said: tuple[str, ...]
) -> None:
    refused(kdsearch("init", *words), *said)
    assert not (tmp_path / "study.toml").exists()


def test_a_folder_is_looked_at_and_each_choice_has_its_reason(kdsearch: Run, photos: Path, tmp_path: Path) -> None:
    done = kdsearch("init", "mine.toml", "--dataset", "folder:photos")
    assert done.code == 0, done.err
    written = spec.load(tmp_path / "mine.toml")
    assert (written.data.image_size, written.data.validation) == (32, 0.2)
    assert (written.teacher.build, written.teacher.options) == (init.RESNET18, {"num_classes": 3})
    assert (written.space["batch_size"], written.student.family) == ([16], "resnet")
    assert written.latency.batch == 100
    for word in ("median shorter side is 8 pixels", "24 validation images", "96 images", "ResNet50 little", "resnet:"):
        assert word in done.out, word
    assert kdsearch("init", "other.toml", "--dataset", "folder:none").code == 0
    assert spec.load(tmp_path / "other.toml").data.image_size == 32


def test_large_photographs_get_published_networks(kdsearch: Run, photos: Path, tmp_path: Path) -> None:
    for path in photos.glob("*/*/*.png"):
        with Image.open(path) as image:
            image.resize((90, 70)).save(path)
    assert kdsearch("init", "mine.toml", "--dataset", "folder:photos").code == 0
    written = spec.load(tmp_path / "mine.toml")
    networks.check_families(written)
    assert (written.data.image_size, written.student.family) == (64, "torchvision")
    assert "squeezenet1_1" in written.space["name"]
    assert (written.space["weights"], written.space["width_mult"]) == ("none", [0.5, 0.75, 1.0])


@pytest.mark.parametrize(
    ("images", "size", "batches", "teacher", "timed"),
    [
        (init.Images(10, 50_000, False, 32, False), 32, 512, None, 100),
        (init.Images(10, 50_000, False, 50, True), 48, 256, None, 100),
        (init.Images(10, 4_000, False, 32, False), 32, 256, init.RESNET18, 100),
        (init.Images(5, 50_000, True, 500, True), 224, 16, init.RESNET18, 16),
        (init.Images(5, 50_000, True, 500, False), 64, 256, init.RESNET18, 100),
        (init.Images(2, 40, False, 20, False), 32, 16, init.RESNET18, 100),
    ],
)
def test_choices_follow_images_and_machine(
    images: init.Images, size: int, batches: int, teacher: str | None, timed: int
) -> None:
    choice = init.choose(images)
    assert (choice.size, max(choice.batches), choice.teacher, choice.timed) == (size, batches, teacher, timed)
    text = init.fitted(spec.shipped("folder").read_text(encoding="utf-8"), choice)
    written = spec.parse(text, source="the test")
    assert (written.data.image_size, written.longest) == (size, choice.epochs)
    assert written.teacher.recipe is not None
    assert written.teacher.recipe.batch_size == min(128, batches)
    assert len(choice.reasons) == 7


@pytest.mark.slow
@pytest.mark.usefixtures("photos")
def test_a_study_with_a_teacher_of_ones_own(kdsearch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # the study adds the current folder
    monkeypatch.delitem(sys.modules, "own_teacher", raising=False)
    (tmp_path / "own_teacher.py").write_text(OWN, encoding="utf-8")
    assert kdsearch("init", "mine.toml", "--dataset", "folder:photos", "--teacher", "own_teacher:network").code == 0
    text = (tmp_path / "mine.toml").read_text(encoding="utf-8")
    options = 'network"\noptions = { width = 16, classes = 3 }\nmean = [0.4]\nstd = [0.3]\nsize = 12'
    for old, new in {
        'network"': options,
        "image_size = 32 ": "image_size = 8 ",
        "batch_size = 16\n": "batch_size = 8\n",
        "validation = 0.2 ": "validation = 0.3 ",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")

    search = ("--study", "mine.toml", "--max-epochs", "5", "--trials", "2", "--cost", "flops")
    done = kdsearch("optimize", *search)
    assert done.code == 0, done.err
    status = json.loads(kdsearch("status", "--name", "photos", "--json").out)
    assert status["trials"]["complete"] + status["trials"]["pruned"] == 2

    # the study's file keeps the function: a worker or a retraining finds it from there
    again = kdsearch("optimize", *search[:2], "--max-epochs", "5", "--trials", "1", "--cost", "flops")
    assert again.code == 0, again.err
    assert "training for" not in again.err  # its teacher was kept

    wrong = text.replace("classes = 3", "classes = 4")
    (tmp_path / "wrong.toml").write_text(wrong, encoding="utf-8")
    other = kdsearch("optimize", "--study", "wrong.toml", *search[2:], "--name", "wrong")
    assert other.code == 1
    *notes, line = other.err.splitlines()  # what the data are comes first
    assert line.startswith("kdsearch: error: ")
    assert "number of classes, 3" in line
    assert all(note.startswith(("data: ", "warning: ")) for note in notes)
