from __future__ import annotations

import contextlib
import os
import resource
import sqlite3
from pathlib import Path

import optuna
import pytest
import torch
from safetensors.torch import load_file

from kdsearch.errors import KdsearchError
from kdsearch.storage import open_storage
from kdsearch.system.files import check_output, fitting, load_tensors, save_tensors, write_text, write_whole


def test_missing_folders_are_made_and_nothing_else_is_left(tmp_path: Path):
    path = tmp_path / "a" / "b" / "file.txt"
    write_whole(path, lambda p: p.write_text("whole"))
    assert path.read_text() == "whole"
    assert [*path.parent.iterdir()] == [path]


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def half(p: Path) -> None:
        p.write_text("ha")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_whole(path, half)
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_full_disk_is_one_line_with_a_remedy(tmp_path: Path):
    def full(p: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(KdsearchError, match=r"No space left on device \(got .*file.txt\); free space"):
        write_whole(tmp_path / "file.txt", full)
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KdsearchError, match="must be writable"):
        write_whole(tmp_path / "file" / "x", lambda p: p.write_text(""))


def test_the_file_gets_the_usual_rights(tmp_path: Path):
    path = tmp_path / "file.txt"
    before = os.umask(0o027)
    try:
        write_whole(path, lambda p: p.write_text("x"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_tensors_on_a_full_disk_leave_the_old_file(tmp_path: Path):
    path = tmp_path / "teacher.safetensors"
    save_tensors(path, {"a": torch.ones(3)}, {"of": "old"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system refuses to let the file grow
    try:
        with pytest.raises(KdsearchError, match=r"must be writable.*teacher\.safetensors"):
            save_tensors(path, {"a": torch.zeros(100_000)}, {"of": "new"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(load_file(path)["a"], torch.ones(3))
    assert [*tmp_path.iterdir()] == [path]


def test_a_database_is_not_replaced(tmp_path: Path):
    with contextlib.closing(sqlite3.connect(tmp_path / "studies.db")) as database:
        database.execute("create table kept (number)")
        database.commit()
    before = (tmp_path / "studies.db").read_bytes()
    with pytest.raises(KdsearchError, match=r"must not replace a database \(got .*studies.db\)"):
        write_text(tmp_path / "studies.db", "<html>")
    assert (tmp_path / "studies.db").read_bytes() == before


def test_different_names_are_different_files(tmp_path: Path):
    names = ["a_b", "a b", "a/b", "a\ud800b", "é" * 200, "é" * 201, "köln.2-x"]
    found = [fitting(name) for name in names]
    assert len(set(found)) == len(names)
    assert (found[0], found[-1]) == ("a_b", "köln.2-x")
    for name in found:
        write_text(tmp_path / f"{name}-trial-1000-whole.safetensors", "x")


def test_a_journal_is_not_replaced(tmp_path: Path):
    journal = tmp_path / "kd.log"
    optuna.create_study(storage=open_storage(f"journal:{journal}"))
    with pytest.raises(KdsearchError, match="must not replace a database"):
        write_text(journal, "x")


def test_weights_replace_weights_only(tmp_path: Path):
    weights, study, empty = tmp_path / "a.safetensors", tmp_path / "study.toml", tmp_path / "empty"
    save_tensors(weights, {"a": torch.ones(2)}, {})
    empty.touch()
    for path in (weights, empty, tmp_path / "new" / "b.safetensors"):
        check_output(path, tensors=True)
    assert not (tmp_path / "new").exists()
    for text in ("[data]\nname = 'digits'\n", "x", '12345678{"a": 1}'):
        study.write_text(text)
        with pytest.raises(KdsearchError, match="weights must not replace a file that is not safetensors"):
            check_output(study, tensors=True)
        check_output(study)


def test_an_output_that_cannot_be_written_is_refused_before(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "a.html", tmp_path / f"{'a' * 300}.html", Path("/dev/null")):
        with pytest.raises(KdsearchError):
            check_output(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_tensors_that_share_memory_are_written(tmp_path: Path):
    tied = torch.arange(6.0)
    save_tensors(tmp_path / "w.safetensors", {"a": tied, "b": tied, "c": tied[2:4]}, {})
    found, _ = load_tensors(tmp_path / "w.safetensors", torch.device("cpu"))
    assert {key: value.tolist() for key, value in found.items()} == {"a": [*range(6)], "b": [*range(6)], "c": [2, 3]}


def test_another_writers_file_that_is_gone_is_no_trouble(tmp_path: Path):
    (tmp_path / ".a.txt.other").symlink_to(tmp_path / "renamed meanwhile")
    write_text(tmp_path / "a.txt", "whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
