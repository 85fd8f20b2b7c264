"""Writers that are killed in mid-write, and files that are not what they should be."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdsearch import data
from kdsearch.distil.teacher import load_weights
from kdsearch.errors import DataError, TeacherError
from kdsearch.networks import student_family
from kdsearch.spec import DataSpec
from kdsearch.system.files import STALE_SECONDS, load_tensors, save_tensors, write_text

HALF = """
import sys
from pathlib import Path
from kdsearch.system.files import write_whole

def half(beside):
    beside.write_text("ha")
    print("half", flush=True)
    sys.stdin.readline()
    beside.write_text("all")

write_whole(Path(sys.argv[1]), half)
"""


@pytest.mark.slow
def test_a_writer_that_is_killed_leaves_the_old_file_and_its_litter_goes_in_time(tmp_path: Path):
    path = tmp_path / "report.html"
    write_text(path, "old")
    with subprocess.Popen([sys.executable, "-c", HALF, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"half\n"
        writer.kill()
    assert path.read_text() == "old"
    (litter,) = set(tmp_path.iterdir()) - {path}
    assert litter.read_text() == "ha"
    write_text(path, "new")
    assert litter.exists()  # somebody may be writing it now
    past = path.stat().st_mtime - STALE_SECONDS - 1
    os.utime(litter, (past, past))
    other = tmp_path / ".report.htm.x"
    other.write_text("of another file")
    os.utime(other, (past, past))
    write_text(path, "newer")
    assert set(tmp_path.iterdir()) == {path, other}
    assert path.read_text() == "newer"


@pytest.mark.parametrize("place", [0, 7, 300, -1])
def test_no_byte_of_kept_tensors_changes_unseen(tmp_path: Path, place: int):
    path = tmp_path / "t.safetensors"
    tensors = {"a": torch.arange(300), "b": torch.tensor(True), "c": torch.zeros(0, 3), "d": torch.ones(2).bfloat16()}
    save_tensors(path, tensors, {"of": "mine"})
    found, metadata = load_tensors(path, torch.device("cpu"))
    assert metadata == {"of": "mine"}
    assert all(torch.equal(found[key], value) and found[key].dtype == value.dtype for key, value in tensors.items())
    whole = bytearray(path.read_bytes())
    whole[place] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r".") as noticed:
        load_tensors(path, torch.device("cpu"))
    assert type(noticed.value) is ValueError


class Writes:
    """Pickled, it opens a file for writing when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("how", ["torch.save", "pickle"])
def test_weights_that_would_run_code_are_refused_and_do_not_run_it(tmp_path: Path, how: str):
    weights, victim = tmp_path / "weights.pt", tmp_path / "victim"
    if how == "pickle":
        weights.write_bytes(pickle.dumps({"1.weight": Writes(victim)}))
    else:
        torch.save({"1.weight": Writes(victim)}, weights)
    network = student_family("mlp").build({"width": 8}, (1, 8, 8), 10)
    with pytest.raises(TeacherError, match=r"must be safetensors or a state dict.*weights.pt"):
        load_weights(network, weights)
    assert not victim.exists()
    pickle.loads(pickle.dumps(Writes(victim))).close()  # loaded without care it would have
    assert victim.exists()


def test_downloaded_files_with_a_wrong_checksum_are_named_and_never_unpickled(tmp_path: Path):
    folder, victim = tmp_path / "cifar-10-batches-py", tmp_path / "victim"
    folder.mkdir()
    for name in (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({"data": Writes(victim)}))
    with pytest.raises(DataError, match=r"files must be whole: .*cifar-10-batches-py\); delete that folder and run"):
        data.load(DataSpec(name="cifar10"), tmp_path)
    assert not victim.exists()
