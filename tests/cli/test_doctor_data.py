"""`kdsearch doctor --dataset`: what a folder of images holds, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from helpers.commands import Run, refused
from PIL import Image


def told(kdsearch: Run, dataset: str) -> dict[str, tuple[str, str]]:
    done = kdsearch("doctor", "--dataset", dataset, "--json")
    assert done.code == 0, done.err
    return {each["what"]: (each["found"], each["remedy"]) for each in json.loads(done.out)}


def test_a_sound_folder_has_nothing_to_do(kdsearch: Run, photos: Path) -> None:
    found = told(kdsearch, f"folder:{photos}")
    assert found["training classes"] == ("3: red 40, green 40, blue 40", "")
    assert found["test classes"][0].startswith("3: ")
    assert found["sizes"] == ("all 8x8", "")
    assert found["modes"] == ("150 RGB", "")
    wrong = ("unreadable", "in train and in another part", "under two classes", "twice in a class")
    assert [found[what] for what in wrong] == [("none", "")] * 4
    assert found["skipped"] == ("nothing", "")
    assert not [remedy for _, remedy in found.values() if remedy]


def test_what_is_wrong_with_a_folder_is_counted_and_named(kdsearch: Run, photos: Path) -> None:
    train, test = photos / "train", photos / "test"
    with Image.open(train / "red" / "0.png") as image:
        image.save(test / "red" / "copy.bmp")  # the same pixels in another file
    shutil.copy(train / "red" / "1.png", train / "blue" / "other.png")
    shutil.copy(train / "green" / "1.png", train / "green" / "again.png")
    (train / "red" / "cut.png").write_bytes((train / "red" / "2.png").read_bytes()[:60])
    (train / "red" / "notes.txt").write_text("no image")
    (train / "red" / "._3.png").write_text("hidden")
    Image.fromarray(np.full((20, 30), 7, dtype=np.uint8)).save(train / "red" / "grey.png")
    found = told(kdsearch, f"folder:{photos}")
    assert found["in train and in another part"][0] == "1: train/red/0.png = test/red/copy.bmp"
    assert "remove" in found["in train and in another part"][1]
    across = found["under two classes"][0]
    assert across.startswith("1: ")
    assert "blue/other.png" in across
    assert "red/1.png" in across
    assert found["twice in a class"][0] == "1: train/green/1.png = train/green/again.png"
    assert found["unreadable"][0].startswith("1: train/red/cut.png: ")
    assert found["sizes"][0] == "8x8 to 30x20 pixels; 8x8 in 99%; median shorter side 8"
    assert "1 L (grey becomes colour)" in found["modes"][0]
    assert "1 hidden (train/red/._3.png)" in found["skipped"][0]
    assert "notes.txt" in found["skipped"][0]
    assert found["skipped"][1]


def test_a_folder_that_a_study_refuses_is_no_traceback(kdsearch: Run, tmp_path: Path) -> None:
    found = told(kdsearch, f"folder:{tmp_path / 'nowhere'}")
    [(text, remedy)] = found.values()
    assert text.startswith("refused: class folders must be there")
    assert "PATH/train/CLASS/" in remedy
    refused(kdsearch("doctor", "--dataset", "flowers"), "flowers", "folder:PATH")
    refused(kdsearch("doctor", "--dataset", "folder"), "needs its path")


def test_other_data_sets_are_found_or_not(kdsearch: Run) -> None:
    assert told(kdsearch, "digits") == {"data: digits": ("embedded", "")}
    assert "not in" in told(kdsearch, "mnist")["data: mnist"][0]
