from __future__ import annotations

from pathlib import Path

from kdsearch.data.download import _remove_empty


def test_empty_folders_of_a_failed_download_are_removed_up_to_the_data_folder(tmp_path: Path):
    inside = tmp_path / "data" / "MNIST" / "raw"
    inside.mkdir(parents=True)
    _remove_empty(inside, tmp_path / "data")
    assert [*tmp_path.iterdir()] == []


def test_folders_that_hold_anything_stay(tmp_path: Path):
    inside = tmp_path / "data" / "MNIST" / "raw"
    inside.mkdir(parents=True)
    (tmp_path / "data" / "other").touch()
    _remove_empty(inside, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["other"]
