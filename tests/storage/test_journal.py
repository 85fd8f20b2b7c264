from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from kdsearch import storage
from kdsearch.errors import StorageError
from kdsearch.storage import journal

HALF = b'{"op_code":4,"worker_id":"w","study'


@pytest.mark.parametrize("size", [0, 1, journal.BLOCK - 1, journal.BLOCK, 3 * journal.BLOCK])
def test_whole_lines_are_counted_whatever_follows_them(tmp_path: Path, size: int):
    path = tmp_path / "f"
    for begin in (b"", b"one\n", b"one\ntwo\n"):
        path.write_bytes(begin + b"x" * size)
        with path.open("rb") as file:
            assert journal.whole(file.fileno()) == len(begin)


def test_a_half_line_is_taken_back_before_the_next_one(tmp_path: Path):
    url, path = f"journal:{tmp_path}/kd.log", tmp_path / "kd.log"
    study = optuna.create_study(storage=storage.open_storage(url), study_name="s")
    study.tell(study.ask(), 1.0)
    with path.open("ab") as file:
        file.write(HALF)  # what a process leaves that is killed in mid-write
    study = storage.load_study(storage.open_storage(url), "s")
    study.tell(study.ask(), 2.0)
    assert HALF + b"{" not in path.read_bytes()
    assert [trial.value for trial in storage.load_study(storage.open_storage(url), "s").trials] == [1.0, 2.0]


def test_what_the_system_refuses_to_write_leaves_the_lines_before(tmp_path: Path):
    url, path = f"journal:{tmp_path}/kd.log", tmp_path / "kd.log"
    study = optuna.create_study(storage=storage.open_storage(url), study_name="s")
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))  # a part of the line fits
    try:
        with pytest.raises(StorageError, match=r"must stay writable: File too large .*finished trials are kept"):
            study.set_user_attr("a", "b" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    study.set_user_attr("a", "b")
    assert storage.load_study(storage.open_storage(url), "s").user_attrs == {"a": "b"}


@pytest.mark.slow
def test_several_processes_append_to_one_journal(tmp_path: Path):
    code = (
        "import sys, optuna\nfrom kdsearch import storage\n"
        "study = optuna.create_study(storage=storage.open_storage(sys.argv[1]), study_name='s', load_if_exists=True)\n"
        "for _ in range(10): study.tell(study.ask(), 1.0)"
    )
    url = f"journal:{tmp_path}/kd.log"
    running = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0] * 3
    trials = storage.load_study(storage.open_storage(url), "s").trials
    assert [trial.number for trial in trials] == list(range(30))
