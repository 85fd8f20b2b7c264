from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from kdsearch import storage
from kdsearch.system import mounts

MOUNTINFO = r"""24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 24 0:22 / /proc rw,nosuid - proc proc rw
60 24 0:52 / /home rw,relatime shared:30 - nfs4 files:/export/home rw,vers=4.2,addr=10.0.0.2
61 60 8:2 / /home/ann/scratch rw,relatime master:3 shared:31 - xfs /dev/sdb1 rw
62 24 0:53 / /mnt/lab\040data rw - cifs //lab/data rw,vers=3.0
63 24 0:54 / /mnt/box rw - ext4 /dev/sdc1 rw
64 24 0:55 / /mnt/box rw - fuse.sshfs ann@box: rw,user_id=1000
"""
MOUNT = """/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
//ann@lab._smb._tcp.local/data on /Volumes/lab data (smbfs, nodev, nosuid, mounted by ann)
files:/export on /Volumes/home (nfs)
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/k.db", "ext4"),
        ("/home/ann/k.db", "nfs4"),
        ("/home/ann/scratch/k.db", "xfs"),
        ("/homes/k.db", "ext4"),
        ("/mnt/lab data/k.db", "cifs"),
        ("/mnt/box/k.db", "fuse.sshfs"),
    ],
)
def test_the_deepest_and_last_mount_counts(path: str, kind: str):
    assert mounts.kind_of(Path(path), list(mounts.parsed_mountinfo(MOUNTINFO))) == kind


def test_macs_mounts_are_read():
    assert list(mounts.parsed_mount(MOUNT)) == [
        (Path("/"), "apfs"), (Path("/Volumes/lab data"), "smbfs"), (Path("/Volumes/home"), "nfs"),
    ]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux tells it")
def test_this_machines_mounts_agree_with_the_devices_that_stat_sees():
    points = dict(mounts.parsed_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8")))
    assert points[Path("/proc")] == "proc"
    assert all(os.path.ismount(point) for point in points if point in (Path("/"), Path("/proc")))
    assert mounts.shared_kind(Path("/proc/none.db")) is None


def test_only_sqlite_is_warned_of(monkeypatch: pytest.MonkeyPatch):
    assert storage.warning("journal:/home/k.log") is None
    assert storage.warning("postgresql://db/kd") is None
    monkeypatch.setattr(mounts, "SHARED", {mounts.kind_of(Path.cwd(), _here())})
    line = storage.warning("sqlite:///k.db")
    assert line is not None
    assert "may lose trials" in line
    assert "journal:" in line


def _here() -> list[tuple[Path, str]]:
    if sys.platform == "linux":
        return list(mounts.parsed_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8")))
    return list(mounts.parsed_mount(MOUNT))
