"""A study of published networks: searched, reported, exported in every form."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
from helpers.commands import Run

SPACE = """name = ["shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5"]
width_mult = [0.5, 1.0]
"""
TEACHER = """
from torch import nn


def network(classes):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes)
    )
"""


@pytest.fixture
def study(kdsearch: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A study file of the zoo with a small teacher."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "zoo_teacher", raising=False)
    (tmp_path / "zoo_teacher.py").write_text(TEACHER, encoding="utf-8")
    assert kdsearch("init", "zoo.toml", "--dataset", "folder:photos", "--teacher", "zoo_teacher:network").code == 0
    text = (tmp_path / "zoo.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^width = .*\nblocks = .*\nstride = .*\n", SPACE, text)
    text = text.replace('family = "resnet"  ', 'family = "torchvision"  ').replace("shift = 4", "shift = 0")
    text = text.replace('zoo_teacher:network"', 'zoo_teacher:network"\noptions = { classes = 3 }')
    (tmp_path / "zoo.toml").write_text(text, encoding="utf-8")
    return text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No complete tensor found in the group")  # torch.export, of channels that are split
def test_a_study_of_published_networks_goes_from_files_to_every_form(kdsearch: Run, study: str, tmp_path: Path) -> None:
    search = ("--study", "zoo.toml", "--max-epochs", "6", "--trials", "3", "--cost", "flops", "--seed", "1")
    done = kdsearch("optimize", *search)
    assert done.code == 0, done.err
    assert kdsearch("report", "--format", "csv", "--report", "zoo.csv").code == 0
    rows = list(csv.DictReader((tmp_path / "zoo.csv").read_text(encoding="utf-8").splitlines()))
    names = {row["config.name"] for row in rows}
    assert names <= {"shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5"}
    for row in rows:
        assert bool(row["config.width_mult"]) is (row["config.name"] != "shufflenet_v2_x0_5")
    assert {row["state"] for row in rows} <= {"COMPLETE", "PRUNED"}
    assert kdsearch("report", "--report", "zoo.html").code == 0
    assert rows[0]["config.name"] in (tmp_path / "zoo.html").read_text(encoding="utf-8")
    complete = [row["number"] for row in rows if row["state"] == "COMPLETE"]
    for form in ("onnx", "pt2", "safetensors"):
        exported = kdsearch("export", "--trial", complete[0], "--format", form, "--out", "shipped", "--json")
        assert exported.code == 0, exported.err
        assert json.loads(exported.out)["changed"] == 0


@pytest.mark.usefixtures("study")
def test_weights_that_are_not_there_end_a_study_before_its_teacher(
    kdsearch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    path = tmp_path / "zoo.toml"
    text = path.read_text(encoding="utf-8").replace("width_mult = [0.5, 1.0]", 'weights = ["none", "imagenet"]')
    path.write_text(text, encoding="utf-8")
    done = kdsearch("optimize", "--study", "zoo.toml", "--trials", "1")
    assert done.code == 1
    line = done.err.splitlines()[-1]  # after torch's own, of a download that begins
    assert line.startswith("kdsearch: error: ")
    assert 'space.weights = "imagenet"' in line
    assert "can be downloaded" in line
    assert "training for" not in done.err
