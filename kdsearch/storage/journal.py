"""A journal storage in one file, whose lines are whole even after a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from kdsearch.errors import StorageError

BLOCK = 4096


class WholeLines(JournalFileBackend):
    """Optuna's journal, with an incomplete last line removed before the next write.

    A full disk or a killed process leaves half a line at the end. Appending to it would make the file unreadable.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own_lock = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append whole lines, or none.

        Raises:
            StorageError: the file cannot be written; its contents are unchanged.
        """
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        try:
            self._own_lock.acquire()
            try:
                with self._path.open("r+b") as file:
                    append(file.fileno(), text)
            finally:
                self._own_lock.release()
        except OSError as error:
            raise StorageError(
                f"the storage must stay writable: {error.strerror or error}",
                got=f"journal:{self._path}",
                remedy="fix that and run the same command again: finished trials are kept",
            ) from None


def append(file: int, text: bytes) -> None:
    """Append whole lines to a file; on failure truncate it to its own whole lines.

    Args:
        file: descriptor, open for reading and writing, locked by the caller.
        text: bytes that end with a newline.

    Raises:
        OSError: it cannot be written.
    """
    size = whole(file)
    os.ftruncate(file, size)
    try:
        done = 0
        while done < len(text):
            done += os.pwrite(file, text[done:], size + done)
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise


def whole(file: int) -> int:
    """Return the length in bytes of a file's whole lines."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def open_journal(path: Path) -> JournalStorage:
    """Open a journal, or make it.

    Raises:
        ValueError: the file is not a journal.
        OSError: it cannot be read or made.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(1) not in (b"", b"{"):  # check before half a line is removed from another program's file
                raise ValueError(f"{path.name} is no journal of Optuna")
    try:
        return JournalStorage(WholeLines(path))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path.name} is no journal of Optuna, or broken: {error}") from None
