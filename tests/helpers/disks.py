"""Real disks that are full or may only be read, for tests; mounted by root, or by sudo without a password."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path


def as_root(*words: str) -> None:
    """Runs a command as root.

    Raises:
        subprocess.CalledProcessError: it failed, or nobody here may be root.
    """
    subprocess.run([*([] if os.geteuid() == 0 else ["sudo", "-n"]), *words], check=True, capture_output=True)


@contextlib.contextmanager
def small(folder: Path, *, kilobytes: int) -> Iterator[Path]:
    """A file system of its own, of that size, mounted at a folder."""
    folder.mkdir()
    as_root("mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=777", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        as_root("umount", "-l", str(folder))


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Takes all the room there is but some bytes; deleting the file that this returns gives it back."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    with ballast.open("r+b") as file:
        file.truncate(max(0, ballast.stat().st_size - leave))
    return ballast


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """A folder in which nobody, root included, can write."""
    if os.geteuid() != 0:
        folder.chmod(0o555)
        try:
            yield folder
        finally:
            folder.chmod(0o755)
        return
    as_root("mount", "--bind", str(folder), str(folder))
    try:
        as_root("mount", "-o", "remount,ro,bind", str(folder))
        yield folder
    finally:
        as_root("umount", "-l", str(folder))
