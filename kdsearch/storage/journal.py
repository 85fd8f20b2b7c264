"""A storage that is one file of lines, each of them whole."""

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
    """Optuna's journal, in which a line that was begun and never ended is taken back.

    A disk that is full, or a process that is killed, leaves a half line at the end. The next line would be written on
    behind it, and nobody could read the file any more.

    Args:
        path: of the file; made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own_lock = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends whole lines, or none.

        Raises:
            StorageError: the file cannot be written; it holds what it held.
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
                remedy="mend that and run the same command again: finished trials are kept",
            ) from None


def append(file: int, text: bytes) -> None:
    """Appends whole lines to a file, or leaves it as long as its own whole lines are.

    Args:
        file: its descriptor, open for reading and writing; the caller has it for itself.
        text: ends with a line's end.

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
    """How many bytes the whole lines of a file take."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def open_journal(path: Path) -> JournalStorage:
    """Opens a journal, or makes it.

    Raises:
        ValueError: the file is no journal.
        OSError: it cannot be read or made.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(1) not in (b"", b"{"):  # before a half line of it is taken back
                raise ValueError(f"{path.name} is no journal of Optuna")
    try:
        return JournalStorage(WholeLines(path))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{path.name} is no journal of Optuna, or broken: {error}") from None
