"""Decoded images kept as one file of tensors: a folder of 60,000 JPEGs is decoded once, not by each worker's start."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdsearch.errors import DataError, KdsearchError
from kdsearch.system import files, machine

LIMIT = "KDSEARCH_DECODED_GB"  # names the bound on all files together, in GB; 0: nothing is kept
LIMIT_GB = 4.0
DECODING = "decoding"  # names the lock of who decodes
WORTH_SECONDS = 0.5  # of decoding; what takes less is decoded each time

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Kept:
    """What this machine keeps of decoded images.

    Attributes:
        place: the folder.
        count: of the files.
        size, limit: bytes of all files, and how many they may take.
    """

    place: Path
    count: int
    size: int
    limit: int


def folder() -> Path:
    """Where decoded images are kept."""
    return machine.cache_folder() / "decoded"


def load(paths: Sequence[Path], decode: Callable[[], Tensors], key: str) -> Tensors:
    """What `decode` makes of image files: from the cache, else decoded now and kept.

    A file that was added, removed, renamed, reordered or changed is noticed: the kept tensors go by the path, size and
    times (of the last change of content, and of anything) of each file. Processes that want the same images at once
    wait for the first one.

    Args:
        paths: of the files, in order.
        decode: reads them; on the CPU. What it raises goes on, and nothing is kept.
        key: of all else that decides what it returns: a size, versions of decoders.

    Raises:
        DataError: the bound on the cache is no number.
    """
    limit = bound()
    path = folder() / f"{fingerprint(paths, key)}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked(folder() / DECODING))
        except KdsearchError:  # a cache that cannot be written keeps nobody from reading images
            return decode()
        found = _read(path)  # another process may have decoded them meanwhile
        if found is not None:
            return found
        begin = time.perf_counter()
        decoded = decode()
        size = sum(tensor.nbytes for tensor in decoded.values())
        if size <= limit and time.perf_counter() - begin >= WORTH_SECONDS:
            with suppress(KdsearchError):  # a full disk: the images are decoded again next time
                files.save_tensors(path, decoded, {})
                _bound(path, limit)
        return decoded


def fingerprint(paths: Sequence[Path], key: str) -> str:
    """Hash of files as the system knows them, none of them opened, and of a key; 32 hexadecimal digits."""
    base = "" if all(path.is_absolute() for path in paths[:1]) else os.getcwd()
    digest = hashlib.blake2b(json.dumps([key, base]).encode(), digest_size=16)
    for path in paths:
        name = str(path)
        try:
            found = os.stat(name)
            facts = f"{name}\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0"
        except OSError:
            facts = f"{name}\0missing\0"  # its reader says what is wrong
        digest.update(facts.encode(errors="surrogateescape"))
    return digest.hexdigest()


def bound() -> int:
    """Bytes that all files together may take: `KDSEARCH_DECODED_GB`, else 4 GB.

    Raises:
        DataError: the variable is no number of 0 or more.
    """
    given = os.environ.get(LIMIT) or str(LIMIT_GB)
    try:
        limit = float(given)
        if not 0 <= limit < float("inf"):
            raise ValueError
    except ValueError:
        raise DataError(
            f"{LIMIT} must be a number of GB, at least 0", got=given, remedy="correct or unset it"
        ) from None
    return int(limit * 1e9)


def kept() -> Kept:
    """What is kept on this machine.

    Raises:
        DataError: the bound on the cache is no number.
    """
    sizes = [size for _, size, _ in _files(folder())]
    return Kept(folder(), len(sizes), sum(sizes), bound())


def _read(path: Path) -> Tensors | None:
    """The tensors of a file, marked as used now; None where there is none or it is broken."""
    try:
        tensors, _ = files.load_tensors(path, torch.device("cpu"))
    except (OSError, ValueError):
        return None
    with suppress(OSError):
        os.utime(path)
    return tensors


def _files(place: Path) -> list[tuple[float, int, Path]]:
    """Time of last use, bytes and path of each file, the one unused for longest first."""
    found: list[tuple[float, int, Path]] = []
    for path in place.glob("*.safetensors"):
        with suppress(OSError):  # another process may have removed it
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    return sorted(found)


def _bound(new: Path, limit: int) -> None:
    """Removes the files that were unused for longest until all fit; a new one stays."""
    found = _files(new.parent)
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= limit:
            return
        if path != new:
            with suppress(OSError):
                path.unlink()
            total -= size
