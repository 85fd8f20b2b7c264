"""`kdsearch init --teacher`, and a study with the teacher that it brings."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers.commands import Run, refused

from kdsearch import spec

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
    assert (written.teacher.recipe, written.student, written.space) == (
        shipped.teacher.recipe,
        shipped.student,
        shipped.space,
    )


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
        "batch_size = 128": "batch_size = 8",
        "validation = 0.1 ": "validation = 0.3 ",
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
    refused(kdsearch("optimize", "--study", "wrong.toml", *search[2:], "--name", "wrong"), "number of classes, 3")
