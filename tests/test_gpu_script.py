"""`.ci/gpu` with a stand-in for the interpreter: what it runs, when it stops, and how the next call goes on."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PIECES = ["tests", "study", "bench-rows", "bench-512", "bench-alone", "bench-first", "bench-second", "slides",
          "recipes", "tables"]  # fmt: skip
INTERPRETER = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in *"$SLOW"*) [ -n "$SLOW" ] && sleep 30 ;; esac
case "$*" in *"$BAD"*) [ -n "$BAD" ] && { echo "kdsearch: error: a bad day" >&2; exit 1; } ;; esac
case "$*" in "- "*) echo "$2" ;; esac
echo ran
"""


class Machine:
    """A machine that is lent: its folders, and calls of the script on it."""

    def __init__(self, home: Path) -> None:
        self.home, self.work, self.out, self.log = home, home / "work", home / "out", home / "log"
        home.mkdir(exist_ok=True)
        (home / "data").mkdir(exist_ok=True)
        self.python = home / "python"
        self.python.write_text(INTERPRETER)
        self.python.chmod(0o755)

    def call(self, *pieces: str, **changed: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        own = {
            "OUT": self.out, "KDSEARCH_GPU_WORK": self.work, "KDSEARCH_GPU_PYTHON": self.python, "LOG": self.log,
            "KDSEARCH_DATA_DIR": self.home / "data", "SMALL": "1", "SLOW": "", "BAD": "",
        }  # fmt: skip
        environment = {**os.environ, **{name: str(value) for name, value in own.items()}, **changed}
        return subprocess.run(
            [str(ROOT / ".ci" / "gpu"), *pieces], env=environment, capture_output=True, text=True, timeout=60
        )

    @property
    def ran(self) -> list[str]:
        return self.log.read_text().splitlines()

    @property
    def done(self) -> list[str]:
        return sorted(path.name for path in (self.work / "kept" / "done").iterdir())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine")


def test_one_call_runs_all_pieces_in_their_order_and_brings_back_one_archive(machine: Machine):
    ended = machine.call()
    assert ended.returncode == 0, ended.stderr
    assert machine.done == sorted(PIECES)
    told = [line.split("] ")[1].split(":")[0] for line in ended.stdout.splitlines() if "]" in line]
    assert [name for name in told if name not in ("bench-first", "bench-second")] == [
        name for name in PIECES if name not in ("bench-first", "bench-second")
    ]
    assert sorted(path.name for path in machine.out.iterdir()) == ["gpu.tar.gz.0", "summary.txt"]
    with tarfile.open(fileobj=BytesIO((machine.out / "gpu.tar.gz.0").read_bytes())) as archive:
        names = archive.getnames()
    assert {f"kept/{name}.out" for name in PIECES} <= set(names)
    assert not any("cache" in name or "data" in name for name in names)


def test_what_was_done_is_not_done_again(machine: Machine):
    machine.call("slides", "recipes")
    ended = machine.call("slides", "tables")
    assert "slides: done before" in ended.stdout
    assert not any(" slides " in words for words in machine.ran)
    assert any("tabulate" in words for words in machine.ran)


def test_a_fresh_machine_goes_on_from_what_came_back(machine: Machine, tmp_path: Path):
    machine.call("slides")
    fresh = Machine(tmp_path / "fresh")
    fresh.work.mkdir()
    with tarfile.open(fileobj=BytesIO((machine.out / "gpu.tar.gz.0").read_bytes())) as archive:
        archive.extractall(fresh.work, filter="data")
    assert "slides: done before" in fresh.call("slides").stdout


def test_no_work_begins_after_the_clock_and_all_that_was_found_comes_back(machine: Machine):
    ended = machine.call("slides", "recipes", STOP="0")
    assert ended.returncode == 0
    assert "slides: no time is left; the next call begins it" in ended.stdout
    assert machine.done == []
    assert (machine.out / "gpu.tar.gz.0").is_file()


def test_what_runs_too_long_is_told_to_end_and_is_not_done(machine: Machine):
    ended = machine.call("slides", "recipes", STOP="2", SLOW="slides")
    assert "slides: ended by the clock; the next call goes on" in ended.stdout
    assert "recipes: no time is left" in ended.stdout
    assert machine.done == []


def test_a_study_that_the_clock_ended_has_a_report_if_that_fits(machine: Machine):
    assert "\nran" not in machine.call("study", STOP="0").stdout  # no study was begun
    assert "\nran" in machine.call("study", STOP="2", SLOW="optimize").stdout
    assert "\nran" not in machine.call("study", STOP="2", GRACE="4", SLOW="cifar10-gpu").stdout  # it would take 30 s


def test_a_piece_that_fails_is_named_and_the_others_run(machine: Machine):
    ended = machine.call("slides", "recipes", BAD="slides")
    assert ended.returncode == 1
    assert "slides: FAILED with code 1: kdsearch: error: a bad day" in ended.stdout
    assert machine.done == ["recipes"]


def test_an_unknown_piece_is_answered_with_the_pieces_there_are(machine: Machine):
    ended = machine.call("slides", "tabels")
    assert ended.returncode == 2
    assert "learning curves for bench search" in ended.stdout
    assert not machine.work.exists()


def test_a_full_run_has_the_lines_of_a_small_one():
    """`SMALL` changes options alone: each command stands once in the script."""
    text = (ROOT / ".ci" / "gpu").read_text()
    for line in re.findall(r"(?m)^.*SMALL:-.*$", text):
        assert re.search(r"device=cpu|few=\(|; then$", line), line
    commands = re.findall(r"(?m)^[^#\n]*\bonce (\S+) [$\"]", text)
    assert sorted(commands) == sorted(PIECES)


@pytest.fixture
def wheels() -> ModuleType:
    spec = importlib.util.spec_from_file_location("wheels", ROOT / ".ci" / "wheels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


IMAGE = {"python": "3.12.3", "torch": "2.11.0", "numpy": "2.5.2"}


def put(folder: Path, name: str, *lines: str, tag: str = "py3-none-any") -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as wheel:
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join([f"Name: {name}", "Version: 1.0", *lines, "", ""]))


@pytest.mark.parametrize(
    ("lines", "tag", "problem"),
    [
        (["Requires-Dist: numpy<3", "Requires-Python: >=3.10"], "py3-none-any", None),
        (["Requires-Dist: numpy<2.5"], "py3-none-any", "one needs numpy<2.5 (got 2.5.2)"),
        (["Requires-Dist: torch>=2.12"], "py3-none-any", "one needs torch>=2.12 (got 2.11.0)"),
        (["Requires-Dist: torch>=2.12; extra == 'gpu'"], "py3-none-any", None),
        (["Requires-Dist: numpy<2; python_version < '3.12'"], "py3-none-any", None),
        (["Requires-Dist: other>=2"], "py3-none-any", "one needs other>=2 (got 1.0)"),
        (["Requires-Dist: elsewhere>=2"], "py3-none-any", None),
        (["Requires-Python: >=3.13"], "py3-none-any", "one needs python>=3.13 (got 3.12.3)"),
        ([], "cp312-cp312-manylinux2014_x86_64", None),
        ([], "cp39-abi3-manylinux2014_x86_64", None),
        ([], "cp311-cp311-manylinux2014_x86_64", "one-1.0-cp311-cp311-manylinux2014_x86_64.whl must be for Python 3."),
    ],
)
def test_wheels_are_held_against_the_image(wheels: ModuleType, tmp_path: Path, lines, tag, problem):
    put(tmp_path, "other")
    put(tmp_path, "one", *lines, tag=tag)
    found = wheels.problems(tmp_path, IMAGE, ["torch>=2.11,<2.16", "numpy>=1.26"])
    assert [line[: len(problem or "")] for line in found] == ([] if problem is None else [problem])


def test_the_projects_own_needs_are_held_against_the_image(wheels: ModuleType, tmp_path: Path):
    assert wheels.problems(tmp_path, IMAGE, []) == [f"there must be wheels in {tmp_path}"]
    put(tmp_path, "optuna")
    assert wheels.problems(tmp_path, IMAGE, ["optuna>=5"]) == ["the project needs optuna>=5 (got 1.0)"]
