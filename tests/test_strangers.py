"""What people bring, through the command line: moved folders, teachers that print, studies of other programs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import optuna
import pytest
import torch
from helpers.commands import PHOTOS_STUDY, Run, refused
from safetensors.torch import save_file

import kdsearch as package
from kdsearch.search import run_options
from kdsearch.search.definition import comparable, differences
from kdsearch.storage import load_study, open_storage

LOUD = """
import torch
print("imported")
class Loud(torch.nn.Sequential):
    def forward(self, images):
        print("called")
        return super().forward(images)
def network():
    print("built")
    return Loud(torch.nn.Flatten(), torch.nn.Linear(192, 3))
"""
COLOURED = """
import torch
FACTOR = 1.0
class Coloured(torch.nn.Linear):
    def forward(self, images):
        return FACTOR * super().forward(images.mean((2, 3)))
def network():
    return Coloured(3, 3)
"""
OPTIONS = ("--study", "f.toml", "--cost", "flops", "--seed", "0", "--device", "cpu", "--storage", "journal:k.log")


@pytest.mark.slow
def test_a_folder_of_images_may_move(kdsearch: Run, photos: Path, tmp_path: Path):
    (tmp_path / "f.toml").write_text("\ufeff" + PHOTOS_STUDY, encoding="utf-8")  # with a byte-order mark
    first = kdsearch("optimize", "--dataset", "folder:photos", "--trials", "1", *OPTIONS)
    assert first.code == 0, first.err
    assert "photos holds 120 training images and 30 test images of 3 classes; skipped: nothing" in first.err
    assert kdsearch("optimize", "--dataset", "folder:./photos/", "--trials", "2", *OPTIONS).code == 0
    photos.rename(tmp_path / "moved")
    line = refused(kdsearch("train", "--trial", "0", "--storage", "journal:k.log"), "photos")
    assert "--data-dir" in line
    moved = ("--data-dir", str(tmp_path / "moved"))
    again = kdsearch("train", "--trial", "0", "--storage", "journal:k.log", *moved, "--out", "w.safetensors")
    assert again.code == 0, again.err
    assert kdsearch("optimize", "--dataset", "folder:moved", "--name", "photos", "--trials", "3", *OPTIONS).code == 0
    assert kdsearch("worker", "--name", "photos", "--storage", "journal:k.log", *moved).code == 0
    shutil.copy(tmp_path / "moved/train/red/0.png", tmp_path / "moved/train/red/1.png")
    line = refused(kdsearch("train", "--trial", "0", "--storage", "journal:k.log", *moved), "fingerprint")
    assert "--data-dir" in line


@pytest.mark.slow
def test_a_teacher_that_prints_leaves_json_alone(
    kdsearch: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "loud_teacher.py").write_text(LOUD)
    text = PHOTOS_STUDY.replace('family = "cnn"', 'build = "loud_teacher:network"').replace("lr = 2e-3", "lr = 1e-2")
    (tmp_path / "f.toml").write_text(text.replace("epochs = 3", "epochs = 20"))
    ran = kdsearch("optimize", "--dataset", "folder:photos", "--trials", "1", "--json", *OPTIONS)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["study"] == "photos"
    for word in ("imported", "built", "called"):
        assert word in ran.err
    other = kdsearch("optimize", "--dataset", "folder:photos", "--name", "other", "--trials", "1", *OPTIONS)
    assert "teacher loud_teacher:network: kept from an earlier study" in other.err
    plan = kdsearch("optimize", "--dataset", "folder:photos", "--trials", "1", "--json", "--dry-run", *OPTIONS)
    assert json.loads(plan.out)["data"] == ["photos holds 120 training images and 30 test images of 3 classes; "
                                           "skipped: nothing"]  # fmt: skip


@pytest.mark.slow
def test_a_teacher_whose_code_changed_serves_none_of_its_studys_commands(
    kdsearch: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "coloured.py").write_text(COLOURED)
    channels = torch.eye(3).flip(0).contiguous()  # the classes are blue, green, red
    save_file({"weight": 9 * channels, "bias": torch.zeros(3)}, "c.safetensors")
    given = 'build = "coloured:network"\nweights = "c.safetensors"\n'
    before, after = PHOTOS_STUDY.split("[teacher.recipe]")
    text = before.replace('family = "cnn"\n', given) + "[student]" + after.partition("[student]")[2]
    (tmp_path / "f.toml").write_text(text)
    assert kdsearch("optimize", "--dataset", "folder:photos", "--trials", "2", *OPTIONS).code == 0
    stored = ("--name", "photos", "--storage", "journal:k.log")
    commands = (
        ("confirm", "--repeats", "1"),
        ("train", "--trial", "0"),
        ("export", "--trial", "0", "--out", "shipped"),
        ("worker",),
    )
    study = load_study(open_storage("journal:k.log"), "photos")
    dataclasses.replace(run_options.stored(study), trials=3).store(study)  # so that the worker has something to do
    monkeypatch.setattr(sys.modules["coloured"], "FACTOR", 2.0)
    for words in commands:
        ran = kdsearch(*words, *stored)
        assert (ran.code, ran.out) == (1, ""), words
        assert "a study's teacher must stay the same" in ran.err
    monkeypatch.setattr(sys.modules["coloured"], "FACTOR", 1.0)
    for words in commands:
        ran = kdsearch(*words, *stored)
        assert ran.code == 0, ran.err


@pytest.mark.parametrize(
    ("name", "found"), [("study_file", {"data": 1}), ("study_file", "torn"), ("definition", {"cost": "flops"})]
)
def test_a_damaged_study_is_one_line(kdsearch: Run, name: str, found: object):
    study = optuna.create_study(storage=open_storage("journal:x.log"), study_name="s", directions=["maximize"] * 2)
    whole = {"cost": "flops", "data": {"fingerprint": "a"}, "teacher": {"fingerprint": "b"}}
    for key, value in {"study_file": {}, "definition": whole, name: found}.items():
        study.set_user_attr(key, value)
    attrs = {"config": {"epochs": 1}, "seed": 0, "best_epoch": 1}
    study.add_trial(optuna.create_trial(values=[0.5, 2.0], user_attrs=attrs))
    what = name.replace("_", " ")
    for words in (("train", "--trial", "0"), ("export", "--trial", "0", "--out", "o")):
        refused(kdsearch(*words, "--name", "s", "--storage", "journal:x.log"), f"the stored {what} must be whole")


@pytest.mark.parametrize("names", [None, ["recall", "speed"]])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_study_of_another_program_is_shown_with_its_own_names_and_not_trained(kdsearch: Run, names):
    study = optuna.create_study(storage=open_storage("journal:x.log"), study_name="s", directions=["maximize"] * 2)
    if names:
        study.set_metric_names(names)
    study.add_trial(optuna.create_trial(values=[0.5, 2.0]))
    for words in (("train", "--trial", "0"), ("export", "--trial", "0", "--out", "o"), ("confirm",)):
        refused(kdsearch(*words, "--name", "s", "--storage", "journal:x.log"), "not a study of kdsearch")
    first, second = names or ("values_0", "values_1")
    line = f"accuracy stands for its objective {first}, ratio for its objective {second}"
    assert line in kdsearch("status", "--storage", "journal:x.log").err
    assert line in kdsearch("pick", "--knee", "--storage", "journal:x.log").out
    assert kdsearch("report", "--storage", "journal:x.log", "--format", "md", "--report", "r.md").code == 0
    assert line in Path("r.md").read_text(encoding="utf-8").replace("\\", "")


def test_a_definition_is_compared_without_the_folders_path_and_in_composed_letters():
    old = {"data": {"name": "folder:photos", "classes": ["cafe\u0301"], "fingerprint": "1"}, "cost": "flops"}
    new = {"data": {"name": "folder:/mnt/photos/", "classes": ["caf\xe9"], "fingerprint": "1"}, "cost": "flops"}
    assert differences(comparable(old), comparable(new)) == []
    new["data"]["fingerprint"] = "2"
    assert differences(comparable(old), comparable(new)) == ["data.fingerprint: 1 -> 2"]
    digits = {"data": {"name": "digits"}}
    assert comparable(digits) is digits


def test_optunas_verbosity_is_left_as_it_was(tmp_path: Path, study_file: Path):
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        package.optimize(
            study=study_file, trials=1, storage=f"journal:{tmp_path / 'k.log'}", cost="flops", train_size=200,
            max_epochs=2, device="cpu",
        )  # fmt: skip
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
