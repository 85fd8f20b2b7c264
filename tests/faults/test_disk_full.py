"""A disk that is full while the report, the cache and the storage are written: a real one, of a few megabytes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import disks
from helpers.commands import Result, Run, refused
from test_storage_files import count

from kdsearch.data import ImageSet
from kdsearch.distil import answers
from kdsearch.distil.teacher import Teacher
from kdsearch.errors import KdsearchError
from kdsearch.records import HANDED_BACK
from kdsearch.search.plan import Plan
from kdsearch.search.workshop import Workshop
from kdsearch.spec import Augment

pytestmark = pytest.mark.slow
SMALL = ["--train-size", "200", "--max-epochs", "2", "--device", "cpu", "--cost", "flops", "--seed", "1"]
FULL = "No space left on device"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 megabytes."""
    with disks.small(tmp_path / "disk", kilobytes=32 * 1024) as folder:
        yield folder


def command(*words: str) -> subprocess.Popen[str]:
    own = [sys.executable, "-m", "kdsearch", *words]
    return subprocess.Popen(own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err)


def errors(result: Result) -> list[str]:
    """The lines that say what went wrong; there is no traceback."""
    assert "Traceback" not in result.err
    return [line for line in result.err.splitlines() if line.startswith("kdsearch: error: ")]


def test_a_report_for_which_there_is_no_room_leaves_the_old_one(kdsearch: Run, disk: Path):
    assert kdsearch("optimize", *SMALL, "--trials", "2", "--report", str(disk / "r.html")).code == 0
    before = (disk / "r.html").read_bytes()
    ballast = disks.fill(disk, leave=100_000)
    refused(kdsearch("report", "--report", str(disk / "r.html"), "--json"), FULL, "r.html", "free space")
    assert (disk / "r.html").read_bytes() == before
    assert {path.name for path in disk.iterdir()} == {"r.html", ballast.name}
    ballast.unlink()
    assert kdsearch("report", "--report", str(disk / "r.html"), "--json").code == 0


def test_a_sqlite_study_goes_on_after_space_is_made(kdsearch: Run, disk: Path, tmp_path: Path):
    file = disk / "kd.db"
    words = ["optimize", *SMALL, "--storage", f"sqlite:///{file}", "--report", str(tmp_path / "r.html")]
    process = command(*words, "--trials", "400")
    deadline = time.monotonic() + 90
    while not file.exists() or finished(file) < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ballast = disks.fill(disk)
    result = ended(process)
    assert result.code == 1
    (line,) = errors(result)
    assert "the storage must stay reachable: database or disk is full; run the same command again" in line
    before = rows(file)
    assert len(before) >= 3
    ballast.unlink()
    again = kdsearch(*words, "--trials", str(len(before) + 3))
    assert (again.code, errors(again)) == (0, [])
    assert before.items() <= rows(file).items()
    assert sorted(path.name for path in disk.iterdir()) == ["kd.db", "kd.db-weights"]
    assert count(file) >= len(before) + 3
    connection = sqlite3.connect(file)
    told = connection.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'fail_reason'").fetchall()
    connection.close()
    assert all(HANDED_BACK in reason for (reason,) in told)


def finished(file: Path) -> int:
    return len(rows(file))


def rows(file: Path) -> dict[int, tuple]:
    """The finished trials of a file by number, with their values."""
    connection = sqlite3.connect(file, timeout=30)
    try:
        found = connection.execute(
            "SELECT number, group_concat(value) FROM trials JOIN trial_values USING (trial_id)"
            " WHERE state = 'COMPLETE' GROUP BY number"
        )
        return dict(found.fetchall())
    except sqlite3.OperationalError:  # it is being made
        return {}
    finally:
        connection.close()


def test_a_cache_for_which_there_is_no_room_is_one_line(
    kdsearch: Run, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["optimize", *SMALL, "--trials", "2", "--storage", f"sqlite:///{tmp_path}/kd.db"]
    words += ["--report", str(tmp_path / "r.html")]
    ballast = disks.fill(disk, leave=20_000)
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(disk / "cache"))
    (line,) = errors(kdsearch(*words))
    assert FULL in line
    assert "cache/answers" in line  # the first that is written: the teacher's answers to the test images
    assert [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"] == [ballast]


def test_a_cache_that_may_only_be_read_is_one_line(kdsearch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(folder))
    with disks.read_only(folder):
        result = kdsearch("optimize", *SMALL, "--trials", "2")
    assert result.code == 1
    (line,) = errors(result)
    assert "the folder must be writable" in line
    assert "KDSEARCH_CACHE_DIR" in line


def test_answers_that_find_no_room_leave_the_table_that_was_kept(noise: ImageSet, disk: Path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    augment = Augment(flip=True, shift=1)

    def table() -> answers.ViewAnswers:
        return answers.ViewAnswers(network, noise, lambda x: x.float() / 255, augment, folder=disk, name="t")

    first = table()
    everything = torch.arange(40)
    first.fill(everything, torch.zeros(40, dtype=torch.int64))
    first.keep(now=True)
    (path,) = disk.glob("*.views.safetensors")
    before = path.read_bytes()
    ballast = disks.fill(disk)
    first.fill(everything, torch.ones(40, dtype=torch.int64))
    with pytest.raises(KdsearchError, match=rf"must be writable: .*{FULL}"):
        first.keep(now=True)
    assert path.read_bytes() == before
    assert int(table().known.sum()) == 40
    ballast.unlink()
    first.keep(now=True)  # nothing was forgotten
    assert int(table().known.sum()) == 80


def test_a_student_is_worth_more_than_answers_that_cannot_be_kept(plan: Plan, teacher: Teacher):
    told: list[str] = []
    workshop = Workshop(plan.spec, plan.split, teacher, "flops")

    class Full:
        def keep(self, *, now: bool = False) -> None:
            raise KdsearchError(f"the file must be writable: {FULL}", got="t.views.safetensors")

    vars(workshop)["answers"] = Full()
    workshop.keep(told=told.append)
    assert told == [f"the teacher's answers were not kept: the file must be writable: {FULL} (got t.views.safetensors)"]
