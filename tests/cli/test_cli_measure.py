from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.commands import Result, Run, refused
from helpers.processes import SHORT
from optuna.trial import TrialState, create_trial
from rich.console import Console

from kdsearch import storage
from kdsearch.cli import export
from kdsearch.export import device_script
from kdsearch.measure import onnx
from kdsearch.records import Attr, StudyAttr


@pytest.fixture
def filled(url: str) -> str:
    """Trials 0 to 2: complete, pruned, and failed before it had a configuration."""
    study = optuna.create_study(storage=storage.open_storage(url), study_name="s", directions=["maximize"] * 2)
    study.add_trial(create_trial(values=[0.9, 2.0], user_attrs={Attr.CONFIG: {"width": 10}}))
    study.add_trial(create_trial(state=TrialState.PRUNED, user_attrs={Attr.CONFIG: {"width": 10}}))
    study.add_trial(create_trial(state=TrialState.FAIL))
    return url


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--trial", "0"), ("--trial and --out go together", "--trial alone", "give both")),
        (("--out", "d"), ("--trial and --out go together", "--out alone")),
        (("--import", "x", "--trial", "0"), ("--import goes with neither --trial nor --out",)),
        (("--import", "x", "--out", "d"), ("--import goes with neither --trial nor --out",)),
        (("--trial", "7", "--out", "d"), ("--trial must be in the study", "trials 0 to 2", "got 7")),
        (("--trial", "1", "--out", "d"), ("must be complete", "trial 1, PRUNED")),
        (("--trial", "2", "--out", "d"), ("this is not a study of kdsearch", "got s")),
        (("--trial", "0", "--out", "study.log"), ("the folder must be writable", "got study.log", "another folder")),
        (("--import", "nowhere.json"), ("--import must name a file to read", "nowhere.json")),
        (("--import", "study.log"), ("a file to import must be JSON", "study.log", "run measure.py again")),
        (("--trials", "0", "--trial", "0"), ("--trials goes with neither --trial nor --import", "give it alone")),
        (("--trials", "0", "--import", "x"), ("--trials goes with neither --trial nor --import",)),
        (("--trials", "0", "--out", "d"), ("--trials goes with neither",)),
        ((), ("the study must have been made by kdsearch", "got s")),
    ],
)
def test_what_cannot_be_is_one_line(kdsearch: Run, filled: str, words: tuple[str, ...], said: tuple[str, ...]):
    refused(kdsearch("measure", *words, "--storage", filled), *said)
    assert not Path("d").exists()


@pytest.mark.parametrize("name", onnx.NEEDS)
@pytest.mark.parametrize("words", [(), ("--trial", "0", "--out", "d")])
def test_a_missing_package_is_one_line_with_the_command(
    kdsearch: Run, filled: str, monkeypatch: pytest.MonkeyPatch, name: str, words: tuple[str, ...]
):
    monkeypatch.setitem(sys.modules, name, None)
    said = kdsearch("measure", *words, "--storage", filled)
    refused(said, "kdsearch measure needs onnx, onnxscript, onnxruntime", f"no {name}", "pip install 'kdsearch[onnx]'")
    assert not Path("d").exists()


def test_what_is_not_there_to_be_timed_is_one_line(kdsearch: Run, url: str):
    study = optuna.create_study(storage=storage.open_storage(url), study_name="s", directions=["maximize"] * 2)
    study.set_user_attr(StudyAttr.STUDY_FILE, {})
    refused(kdsearch("measure", "--storage", url), "must have a front", "run `kdsearch optimize` first")
    refused(kdsearch("measure", "--trials", "a", "--storage", url), "--trials must be numbers with commas", "got a")
    refused(kdsearch("measure", "--trials", "4", "--storage", url), "which holds no trials", "got 4")


def test_the_table_shows_names_as_they_are():
    ratios = {"the search": {"ratio": 2.0, "low": 2.0, "high": 2.0}, "torch": {"ratio": 3.0, "low": 2.5, "high": 3.5}}
    found = {"study": "[red]\x1b[2J", "device": "[b]CPU", "columns": ["the search", "torch", "ONNX Runtime"]}
    found["trials"] = [{"trial": 4, "test_accuracy": 0.9, "ratios": ratios}]
    out = io.StringIO()
    Console(file=out, width=120).print(export._table(found))
    assert r"[red]\x1b[2J: ratios on [b]CPU" in out.getvalue()
    assert "4 │ 90.00 % │       2.00 │ 3.00 (2.50 to 3.50) │" in out.getvalue()


def on_the_device(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the folder's script where numpy and onnxruntime are all that is installed: -S hides the rest."""
    installed = folder.parent / "installed"
    installed.mkdir(exist_ok=True)
    for name in ("numpy", "onnxruntime"):
        package = Path(str(find_spec(name).origin)).parent  # type: ignore[union-attr]
        for path in (package, package.with_name(f"{name}.libs")):
            if path.exists() and not (installed / path.name).exists():
                (installed / path.name).symlink_to(path)
    command = [sys.executable, "-S", "-s", str(folder / "measure.py"), *words]
    alone = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        command, cwd=folder.parent, env=alone, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs", "teacher")
def test_from_the_front_here_to_a_device_and_back_into_the_report(
    kdsearch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    front = json.loads(kdsearch("optimize", "--trials", "2", *SHORT, "--json").out)["front"]
    number = front[0]["trial"]
    _here(kdsearch("measure", "--json"), front)

    told = kdsearch("measure", "--trial", str(number), "--out", "device", "--json")
    found = json.loads(told.out)
    names = {path.name for path in (tmp_path / "device").iterdir()}
    assert names == {"measure.py", "teacher.onnx", "student.onnx", "batch.npz", "about.json", "README.txt"}
    assert (found["study"], found["trial"], found["folder"]) == ("digits", number, "device")

    done = on_the_device(tmp_path / "device", "--out", "device.json", "--batch", "100", "--device", "<b>Pi</b>")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert json.loads((tmp_path / "device.json").read_text()) == printed
    assert (printed["study"], printed["trial"], printed["fingerprint"]) == ("digits", number, found["fingerprint"])
    assert (printed["batch"], printed["threads"]) == (100, 1)
    assert printed["providers"] == ["CPUExecutionProvider"]
    assert 0 < printed["low"] <= printed["ratio"] <= printed["high"]
    assert printed["compared"] > 0

    assert f"trial {number} on <b>Pi</b>: ratio " in kdsearch("measure", "--import", "device.json").out
    assert "the study held it already" in kdsearch("measure", "--import", "device.json").out
    foreign = tmp_path / "foreign.json"
    foreign.write_text(json.dumps(printed | {"fingerprint": "0" * 64}))
    refused(
        kdsearch("measure", "--import", "device.json", "--import", "foreign.json"), "be of networks that", "foreign"
    )
    assert kdsearch("report", "--report", "r.html").code == 0
    assert "&lt;b&gt;Pi&lt;/b&gt;" in (tmp_path / "r.html").read_text()

    with monkeypatch.context() as patch:  # quick, and what was measured is not lost with its file
        patch.setattr(device_script, "MAX_PAIRS", 15)
        capsys.readouterr()
        assert device_script.main(("--out", "nowhere/device.json", "--batch", "20"), tmp_path / "device") == 1
    printed, errors = capsys.readouterr()
    assert json.loads(printed)["fingerprint"] == found["fingerprint"]
    assert "measure.py: error: --out must be writable: No such file or directory (got nowhere/device.json)" in errors

    _another_student(tmp_path / "device")
    done = on_the_device(tmp_path / "device")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the student must predict what it does in kdsearch" in done.stderr


def _here(said: Result, front: list[dict[str, Any]]) -> None:
    """Both runtimes of every member of the front, on stdout alone."""
    found = json.loads(said.out)
    assert found["columns"] == ["the search", "torch", "ONNX Runtime"]
    assert [row["trial"] for row in found["trials"]] == [member["trial"] for member in front]
    for row, member in zip(found["trials"], front, strict=True):
        assert row["test_accuracy"] == member["test_accuracy"]
        assert row["ratios"]["the search"]["ratio"] == member["ratio"]
        for name in ("torch", "ONNX Runtime"):
            ratio, low, high = (row["ratios"][name][key] for key in ("ratio", "low", "high"))
            assert 1 < low <= ratio <= high  # the teacher is by far the slower one
    attrs = optuna.load_study(study_name="digits", storage=storage.open_storage(storage.DEFAULT_STORAGE)).user_attrs
    assert sum(key.startswith(StudyAttr.MEASURED) for key in attrs) == 2 * len(front)


def _another_student(folder: Path) -> None:
    """Puts the teacher in the student's place, and says that it belongs there."""
    shutil.copy(folder / "teacher.onnx", folder / "student.onnx")
    about = json.loads((folder / "about.json").read_text())
    about["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in device_script.FILES}
    (folder / "about.json").write_text(json.dumps(about))
