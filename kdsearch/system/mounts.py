"""The file system that a file lies on, and whether other machines share it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SHARED = {
    "9p", "afs", "afpfs", "beegfs", "ceph", "cifs", "fhgfs", "fuse.ceph", "fuse.glusterfs", "fuse.juicefs",
    "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "panfs", "smb3", "smbfs", "vboxsf", "virtiofs", "webdav", "wekafs",
}  # fmt: skip
ESCAPED = re.compile(r"\\([0-7]{3})")


def shared_kind(path: Path) -> str | None:
    """Return the kind of network file system of a path, existing or not; None if it is local or unknown."""
    try:
        if sys.platform == "darwin":
            text = subprocess.run(["/sbin/mount"], capture_output=True, text=True, timeout=5, check=True).stdout
            mounts = list(parsed_mount(text))
        else:
            text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
            mounts = list(parsed_mountinfo(text))
    except (OSError, subprocess.SubprocessError):
        return None
    kind = kind_of(path.resolve(), mounts)
    return kind if kind in SHARED else None


def kind_of(path: Path, mounts: list[tuple[Path, str]]) -> str | None:
    """Return the file system of a path: that of the deepest mount point above it, the last one if there are several.

    Args:
        path: absolute, without links.
        mounts: mount points and their file systems, in the order of mounting.
    """
    above = [
        (len(point.parts), number, kind) for number, (point, kind) in enumerate(mounts) if path.is_relative_to(point)
    ]
    return max(above)[2] if above else None


def parsed_mountinfo(text: str) -> Iterator[tuple[Path, str]]:
    """Yield mount points and file systems of Linux's /proc/self/mountinfo (proc(5): the kind follows a lone hyphen)."""
    for line in text.splitlines():
        words = line.split(" ")
        if "-" in words[6:]:
            point = ESCAPED.sub(lambda code: chr(int(code[1], 8)), words[4])
            yield Path(point), words[words.index("-", 6) + 1]


def parsed_mount(text: str) -> Iterator[tuple[Path, str]]:
    """Yield mount points and file systems of macOS's `mount`: "//ann@server/share on /Volumes/share (smbfs, nodev)"."""
    for line in text.splitlines():
        if found := re.fullmatch(r".* on (/.*) \((\w+)[,)].*", line):
            yield Path(found[1]), found[2]
