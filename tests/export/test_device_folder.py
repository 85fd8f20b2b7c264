from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import torch

from kdsearch.errors import KdsearchError
from kdsearch.export import device_folder
from kdsearch.records import StudyAttr


def test_predictions_that_are_nearly_a_tie_are_not_expected():
    logits = torch.tensor([[5.0, 1.0, 0.0], [5.0, 4.9, 0.0], [-1.0, -2.0, -100.0], [0.1, 0.2, 0.0]])
    assert device_folder.labels(logits) == [0, None, None, 1]


@pytest.mark.parametrize("stored", [None, 3, ["a"]])
def test_the_study_keeps_every_fingerprint_and_when_it_was_first_made(stored: object):
    study = optuna.create_study(directions=["maximize"] * 2)
    key = f"{StudyAttr.CARRIED}5"
    if stored is not None:
        study.set_user_attr(key, stored)
    device_folder._remember(study, 5, "a")
    first = study.user_attrs[key]
    assert list(first) == ["a"]
    device_folder._remember(study, 5, "a")
    assert study.user_attrs[key] == first
    device_folder._remember(study, 5, "b")
    assert list(study.user_attrs[key]) == ["a", "b"]


def test_the_readme_names_the_commands_and_obeys_no_name():
    name = "it's\x1b[2J\nrm -rf"
    text = device_folder.READ_ME.format(study=name, trial=3, batch=1000, threads=2)
    assert "python measure.py --out device.json" in text
    assert "kdsearch measure --import device.json" in text
    assert all(line.isprintable() for line in text.split("\n"))
    assert json.dumps(text)
    assert not any(line.startswith("rm") for line in text.split("\n"))


def test_other_files_in_its_folder_are_not_replaced(tmp_path: Path):
    device_folder.check_free(tmp_path / "new")
    (tmp_path / "measure.py").touch()
    with pytest.raises(KdsearchError, match="must not be replaced: measure"):
        device_folder.check_free(tmp_path)
    (tmp_path / "about.json").touch()
    device_folder.check_free(tmp_path)
