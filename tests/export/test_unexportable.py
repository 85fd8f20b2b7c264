"""A teacher that torch cannot export: it can be searched with, its students are exported, ONNX costs are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import Run, refused

NETWORKS = """
from torch import nn

class Branching(nn.Sequential):
    def forward(self, images):
        logits = super().forward(images)
        return logits * 0 if logits.max().item() > 1e9 else logits

class Uncopied(nn.Sequential):
    def __deepcopy__(self, memo):
        raise TypeError("cannot copy")

def build(kind):
    return kind(nn.Flatten(), nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))

def branching():
    return build(Branching)

def uncopied():
    return build(Uncopied)
"""
TINY = ("--trials", "1", "--train-size", "400", "--max-epochs", "3", "--device", "cpu")
NAMED = "a teacher that can be exported to ONNX"


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
@pytest.mark.parametrize(("name", "reason"), [("branching", "Could not guard on data"), ("uncopied", "cannot copy")])
def test_its_students_are_exported_untimed_and_what_needs_it_in_onnx_is_refused(
    kdsearch: Run, study_file: Path, url: str, name: str, reason: str
):
    module = f"unexportable_{name}"
    study_file.with_name(f"{module}.py").write_text(NETWORKS)
    text = study_file.read_text().replace('family = "cnn"', f'build = "{module}:{name}"')
    study_file.write_text(text)
    optimize = ("optimize", "--study", str(study_file), *TINY, "--storage", url)
    refused(kdsearch(*optimize, "--cost", "onnx"), f"--cost onnx needs {NAMED}", reason, "choose another --cost")
    found = kdsearch(*optimize, "--cost", "flops")
    assert found.code == 0, found.err
    for words in ((), ("--trial", "0", "--out", "d")):
        refused(kdsearch("measure", "--storage", url, *words), f"kdsearch measure needs {NAMED}", reason)

    export = ("export", "--trial", "0", "--out", "out", "--storage", url, "--format")
    said = kdsearch(*export, "onnx")
    told = f"not timed: the teacher cannot be exported: {reason}"
    assert said.code == 0
    assert said.err.count(told) == 1
    assert said.err.startswith("warning: ")
    assert len(said.err.splitlines()) == 1
    assert told in said.out
    assert "; ratio in the search" in said.out
    assert f"- ratio there: {told}" in Path("out/trial-0.md").read_text()
    stored = json.loads(kdsearch(*export, "pt2", "--json").out)
    assert stored["untimed"].startswith(f"the teacher cannot be exported: {reason}")
    assert stored["ratio"] is stored["teacher_seconds"] is None
    assert stored["test_images"] > 0
    assert {path.name for path in Path("out").iterdir()} == {
        "classes.json", "trial-0.md", "trial-0.onnx", "trial-0.pt2"
    }  # fmt: skip
    assert kdsearch("report", "--storage", url).code == 0
