from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from kdsearch import data
from kdsearch.cli import doctor
from kdsearch.data import decoded, folder, pictures
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """A cache of its own, that keeps what was decoded quickly too."""
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv(decoded.LIMIT, raising=False)
    monkeypatch.setattr(decoded, "WORTH_SECONDS", 0.0)
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def reads(monkeypatch) -> list[Path]:
    """The files that were decoded."""
    found: list[Path] = []
    read = pictures.read
    monkeypatch.setattr(pictures, "read", lambda path, *how: found.append(path) or read(path, *how))
    return found


def load(photos: Path, **changes) -> data.Dataset:
    return data.load(DataSpec(name=f"folder:{photos}", image_size=8, **changes), photos)


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.safetensors"))


def test_a_folder_is_decoded_once(photos: Path, cache: Path, reads: list[Path]):
    first = load(photos)
    assert len(reads) == 150
    again = load(photos)
    assert len(reads) == 150
    assert len(kept(cache)) == 1
    for part in ("train", "test"):
        one, other = getattr(first, part), getattr(again, part)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert one.images.dtype == other.images.dtype == torch.uint8


def _forge(first: Path, second: Path) -> None:
    before = first.stat()
    first.write_bytes(second.read_bytes()[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {  # of a class's first files
    "added": lambda first, _: Image.new("RGB", (8, 8)).save(first.with_name("new.png")),
    "removed": lambda first, _: first.unlink(),
    "renamed": lambda first, _: first.rename(first.with_name("zz.png")),
    "moved to another class": lambda first, _: first.rename(first.parents[1] / "blue" / "zz.png"),
    "another size": lambda first, _: Image.new("RGB", (8, 8)).save(first),
    "same size, later": lambda first, _: first.write_bytes(first.read_bytes()),
    "same size, time put back": _forge,
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_is_noticed(photos: Path, cache: Path, reads: list[Path], how: str):
    load(photos)
    reads.clear()
    time.sleep(0.02)  # a file system's clock has ticks
    CHANGES[how](*sorted((photos / "train" / "red").iterdir())[:2])
    found = load(photos)
    assert len(reads) >= 149
    assert torch.equal(found.train.images, folder.decode_files(folder.list_classes(photos / "train").paths, 8))


def test_another_size_or_decoder_is_another_file(photos: Path, cache: Path, reads: list[Path], monkeypatch):
    load(photos)
    assert data.load(DataSpec(name=f"folder:{photos}", image_size=4), photos).train.images.shape[-1] == 4
    monkeypatch.setattr(pictures, "version", lambda: "a later one")
    load(photos)
    assert (len(reads), len(kept(cache))) == (450, 3)


@pytest.mark.parametrize("damage", ["cut", "empty", "changed byte"])
def test_a_broken_file_is_decoded_again(photos: Path, cache: Path, reads: list[Path], damage: str):
    whole = load(photos)
    (path,) = kept(cache)
    content = path.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    path.unlink()  # not in place: the first load may have it mapped
    path.write_bytes({"cut": content[:-50], "empty": b"", "changed byte": changed}[damage])
    assert torch.equal(load(photos).train.images, whole.train.images)
    assert len(reads) == 300
    load(photos)
    assert len(reads) == 300


def sets(tmp_path: Path, count: int) -> list[list[Path]]:
    found = []
    for number in range(count):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(bytes([number]))
        found.append([path])
    return found


def of(number: int, size: int = 1_000_000):
    return lambda: torch.full((size,), number, dtype=torch.uint8)


def test_all_together_are_bounded_and_the_one_unused_for_longest_goes(tmp_path: Path, cache: Path, monkeypatch):
    monkeypatch.setenv(decoded.LIMIT, "0.0025")
    paths = sets(tmp_path, 3)
    decoded.load(paths[0], of(0), "")
    (first,) = kept(cache)
    decoded.load(paths[1], of(1), "")
    (second,) = set(kept(cache)) - {first}
    for path, age in ((first, 20), (second, 10)):
        os.utime(path, (time.time() - age, time.time() - age))
    decoded.load(paths[0], of(9), "")  # now it was used last
    decoded.load(paths[2], of(2), "")
    assert first.exists()
    assert not second.exists()
    assert len(kept(cache)) == 2
    assert decoded.load(paths[0], of(9), "")[0] == 0
    assert decoded.load(paths[1], of(1), "")[0] == 1
    assert sum(size for _, size, _ in decoded.kept()) <= 2_500_000


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path: Path, cache: Path, monkeypatch):
    (paths,) = sets(tmp_path, 1)
    monkeypatch.setenv(decoded.LIMIT, "0")
    assert decoded.load(paths, of(3), "")[0] == 3
    monkeypatch.setenv(decoded.LIMIT, "0.0005")
    decoded.load(paths, of(3), "")
    assert kept(cache) == []


def test_what_is_decoded_quickly_is_not_kept(tmp_path: Path, cache: Path, monkeypatch):
    monkeypatch.setattr(decoded, "WORTH_SECONDS", 60.0)
    (paths,) = sets(tmp_path, 1)
    decoded.load(paths, of(3), "")
    assert kept(cache) == []


@pytest.mark.parametrize("given", ["much", "-1", "inf", "nan"])
def test_a_bound_that_is_no_number_is_refused(tmp_path: Path, cache: Path, monkeypatch, given: str):
    monkeypatch.setenv(decoded.LIMIT, given)
    with pytest.raises(DataError, match=rf"KDSEARCH_DECODED_GB must be a number.*\(got {given}\)"):
        decoded.load(sets(tmp_path, 1)[0], of(1), "")


def test_an_error_goes_on_and_leaves_nothing(photos: Path, cache: Path):
    (photos / "train" / "red" / "broken.png").write_bytes(b"no image")
    for _ in range(2):
        with pytest.raises(DataError, match="1 of 151 are not"):
            load(photos)
    assert kept(cache) == []


def test_a_cache_that_cannot_be_written_keeps_nobody_from_reading(tmp_path: Path, cache: Path):
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    assert decoded.load(sets(tmp_path, 1)[0], of(4), "")[0] == 4


def test_relative_paths_go_by_the_folder_they_start_from(tmp_path: Path, cache: Path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    one = decoded.fingerprint([Path("x.png")], "")
    monkeypatch.chdir(tmp_path / "b")
    assert decoded.fingerprint([Path("x.png")], "") != one
    assert decoded.fingerprint([tmp_path / "x.png"], "") == decoded.fingerprint([tmp_path / "x.png"], "")


def test_doctor_says_how_much_is_kept_and_where(tmp_path: Path, cache: Path):
    decoded.load(sets(tmp_path, 1)[0], of(1, 60_000_000), "")
    (found,) = [each for each in doctor.examine(str(tmp_path)) if each.what == "decoded images kept"]
    assert found.found == f"1 file, 0.1 of at most 4 GB (KDSEARCH_DECODED_GB), in {cache}"


SCRIPT = """
import sys
from pathlib import Path
from kdsearch.data import decoded, folder, pictures
decoded.WORTH_SECONDS = 0.0
read = pictures.read
pictures.read = lambda path, *how: print("decoded") or read(path, *how)
folder.read_files(folder.list_classes(Path(sys.argv[1]) / "train").paths, 8)
"""


@pytest.mark.slow
def test_processes_that_start_at_once_decode_once(photos: Path, cache: Path):
    words = [sys.executable, "-c", SCRIPT, str(photos)]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("decoded") for text in said) == 120
