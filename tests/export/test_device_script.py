from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.export import device_script as script
from kdsearch.measure import latency
from kdsearch.records import Timing
from kdsearch.stats import median_interval

SOURCE = Path(script.__file__).read_text(encoding="utf-8")
FIGURES = ("ratio", "low", "high", "teacher_seconds", "student_seconds", "pairs")


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=70))
def test_its_interval_is_kdsearchs_own(values: list[float]):
    assert script.median_interval(values) == median_interval(values)


class Clock:
    """Time that passes only in calls, so that two measurements of the same calls can be the same to the last bit."""

    def __init__(self, seed: int) -> None:
        self.now, self._random = 0.0, random.Random(seed)

    def call(self, seconds: float, noise: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds * self._random.uniform(1 - noise, 1 + noise)

        return run


@pytest.mark.parametrize("noise", [0.01, 0.5])
@pytest.mark.parametrize(("teacher", "student"), [(1e-3, 1e-5), (0.2, 0.01), (0.9, 0.3), (3.0, 0.7), (1e-4, 2e-4)])
def test_it_times_the_same_pairs_as_the_search(
    monkeypatch: pytest.MonkeyPatch, teacher: float, student: float, noise: float
):
    found = []
    for compare in (script.compare, lambda *calls: latency.compare(*calls, batch=1, kind="onnx")):
        clock = Clock(7)
        monkeypatch.setattr(time, "perf_counter", lambda clock=clock: clock.now)
        found.append(compare(clock.call(teacher, noise), clock.call(student, noise)))
    monkeypatch.undo()
    here, there = found[0], dataclasses.asdict(found[1])
    assert here == {name: there[name] for name in FIGURES}
    assert script.MIN_PAIRS <= here["pairs"] <= script.MAX_PAIRS
    assert here["pairs"] == script.MIN_PAIRS or teacher <= 0.2


def test_its_sittings_are_joined_as_kdsearch_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "APART", 0.0)
    monkeypatch.setattr(latency, "APART", 0.0)
    timings = [Timing(ratio, ratio, ratio, 2 * ratio, 2.0, 1, 9, "onnx") for ratio in (30.0, 20.0, 25.0)]
    one, other = iter(timings), iter(timings)
    mine = script.several(lambda: dataclasses.asdict(next(one)))
    theirs = dataclasses.asdict(latency.several(lambda: next(other)))
    assert mine == {name: pytest.approx(theirs[name], rel=1e-9) for name in FIGURES}


def test_it_is_python_of_39_and_needs_numpy_and_onnxruntime_alone():
    tree = ast.parse(SOURCE, feature_version=(3, 9))
    names = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One whose networks are none."""
    for name in script.FILES:
        (tmp_path / name).write_bytes(name.encode())
    np.savez(tmp_path / script.IMAGES, images=np.zeros((2, 1, 2, 2), np.uint8))
    digests = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in script.FILES}
    about: dict[str, Any] = {"study": "s", "trial": 3, "batch": 4, "threads": 1, "sha256": digests}
    about["expected"] = {"teacher": [0, None], "student": [0, 1]}
    (tmp_path / "about.json").write_text(json.dumps(about))
    return tmp_path


def failed(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> str:
    """The one line that the script says."""
    assert script.main(words, folder) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("measure.py: error: ")
    assert said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize("name", script.FILES)
def test_a_file_that_changed_on_the_way_is_named(capsys: pytest.CaptureFixture[str], folder: Path, name: str):
    with (folder / name).open("ab") as file:
        file.write(b"x")
    assert f"error: {name} must be what kdsearch wrote; copy the whole folder again" in failed(capsys, folder)
    (folder / name).unlink()
    assert f"{name} must be readable: No such file" in failed(capsys, folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sha256": 3}', '{"sha256": {}}', "\udcff"])
def test_an_about_that_is_not_ours_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path, text: str):
    (folder / "about.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert "about.json must be the file that kdsearch wrote" in failed(capsys, folder)


@pytest.mark.parametrize("key", ["study", "trial", "batch", "threads", "expected"])
def test_an_about_that_lacks_a_value_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path, key: str):
    about = json.loads((folder / "about.json").read_text())
    del about[key]
    (folder / "about.json").write_text(json.dumps(about))
    assert "about.json must be the file that kdsearch wrote" in failed(capsys, folder)


def test_what_onnxruntime_cannot_do_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path):
    assert "must load teacher.onnx" in failed(capsys, folder)
    said = failed(capsys, folder, "--provider", "TPUExecutionProvider")
    assert "one that this onnxruntime has: " in said
    assert "CPUExecutionProvider" in said
    assert "(got TPUExecutionProvider)" in said


@pytest.mark.parametrize("name", ["numpy", "onnxruntime"])
def test_a_missing_package_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, name: str
):
    monkeypatch.setitem(sys.modules, name, None)
    assert "pip install onnxruntime numpy" in failed(capsys, folder)


@pytest.mark.parametrize("words", [("--batch", "0"), ("--threads", "-1"), ("--batch", "many"), ("--batch", "²")])
def test_a_number_that_is_none_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], folder: Path, words: tuple[str, str]
):
    with pytest.raises(SystemExit) as ended:
        script.main(words, folder)
    assert ended.value.code == 2
    assert "must be a whole number above 0" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "said"), [("Pi\x1b[2J\n5", "Pi[2J5"), ("x" * 300, "x" * 200), ("\n", "unknown")])
def test_a_devices_name_is_printable_and_short(given: str, said: str):
    found = script.facts(given)
    assert found["device"] == said
    assert all(value.isprintable() for value in found.values())
    assert script.facts(None)["device"]


def test_predictions_are_compared_but_for_ties():
    logits = np.array([[3.0, 1.0], [1.0, 1.001], [0.0, 2.0]])
    assert script.check("student", logits, [0, None, 1]) == 2
    with pytest.raises(
        script.ProblemError, match=r"the student must predict .*1 of 2 images differ, the first is image 2"
    ):
        script.check("student", logits, [0, None, 0])
