from __future__ import annotations

import sys
from pathlib import Path

import optuna
import pytest
from helpers.commands import Run, refused
from optuna.trial import TrialState, create_trial

from kdsearch import storage
from kdsearch.measure import onnx
from kdsearch.records import Attr, StudyAttr


@pytest.fixture
def filled(url: str) -> str:
    """Trials 0 to 3: complete, pruned, failed, and failed before it had a configuration."""
    study = optuna.create_study(storage=storage.open_storage(url), study_name="s", directions=["maximize"] * 2)
    study.set_user_attr(StudyAttr.STUDY_FILE, {})
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    for state in states:
        values = [0.9, 2.0] if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, values=values, user_attrs={Attr.CONFIG: {"width": 10}}))
    study.add_trial(create_trial(state=TrialState.FAIL))
    return url


@pytest.mark.parametrize(
    ("number", "words"),
    [
        ("1", ("the trial to export must be complete", "trial 1, PRUNED", "kdsearch pick")),
        ("2", ("the trial to export must be complete", "trial 2, FAIL")),
        ("3", ("the trial must have begun", "trial 3, FAIL")),
        ("4", ("trial", "4")),
    ],
)
def test_a_trial_without_an_end_is_refused(kdsearch: Run, filled: str, number: str, words: tuple[str, ...]):
    refused(kdsearch("export", "--trial", number, "--out", "out", "--storage", filled), *words)
    assert not Path("out").exists()


def test_a_folder_that_cannot_be_had_is_refused_before_any_work(kdsearch: Run, filled: str):
    Path("file").write_text("")
    for out in ("file", "file/below"):
        said = kdsearch("export", "--trial", "0", "--format", "pt2", "--out", out, "--storage", filled)
        refused(said, "the folder must be writable", f"got {out}", "choose another folder")


@pytest.mark.parametrize("name", onnx.NEEDS)
def test_a_missing_package_is_one_line_with_the_command(
    kdsearch: Run, filled: str, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setitem(sys.modules, name, None)
    said = kdsearch("export", "--trial", "0", "--out", "out", "--storage", filled)
    refused(said, "--format onnx needs onnx, onnxscript, onnxruntime", f"no {name}", "pip install 'kdsearch[onnx]'")
    assert not Path("out").exists()


def test_an_unknown_format_and_no_wish_at_all_are_refused(kdsearch: Run, filled: str):
    said = kdsearch("export", "--trial", "0", "--format", "tflite", "--out", "out", "--storage", filled)
    refused(said, "--format must be known", "tflite", "onnx, pt2, safetensors")
    said = kdsearch("export", "--trial", "0", "--format", "pt2", "--int8", "--out", "out", "--storage", filled)
    refused(said, "--int8 is for ONNX", "--format pt2", "leave one of them out")
    said = kdsearch("export", "--trial", "0", "--min-accuracy", "99", "--out", "out", "--storage", filled)
    refused(said, "--trial names the student", "--trial 0 with --min-accuracy", "leave out one of them")
    refused(kdsearch("export", "--out", "out", "--storage", filled), "--within needs test accuracies", "--knee")
