"""A cache of decoded images as tensor files: a folder of 60,000 JPEGs is decoded once, not at each worker's start."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import Tensor

from kdsearch.errors import DataError, KdsearchError
from kdsearch.system import files, machine

LIMIT = "KDSEARCH_DECODED_GB"  # environment variable: the bound on all files together, in GB; 0: no cache
LIMIT_GB = 4.0
DECODING = "decoding"  # name of the lock that the decoding process holds
WORTH_SECONDS = 0.5  # shorter decodings are not cached


def folder() -> Path:
    return machine.cache_folder() / "decoded"


def load(paths: Sequence[Path], decode: Callable[[], Tensor], key: str) -> Tensor:
    """Return what `decode` makes of image files, from the cache or decoded now.

    A file that was added, removed, renamed, reordered or changed invalidates the entry: its key is made of the path,
    size and times (of content and of metadata) of each file. Processes that need the same images at once wait for the
    first one.

    Args:
        paths: of the files, in order.
        decode: reads them; on the CPU. Its exceptions pass through, and nothing is cached.
        key: everything else that determines the result: a size, versions of decoders.

    Raises:
        DataError: the cache's bound is no number.
    """
    limit = bound()
    path = folder() / f"{fingerprint(paths, key)}.safetensors"
    if (found := _read(path)) is not None:
        return found
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked(folder() / DECODING))
        except KdsearchError:  # images can be read without a writable cache
            return decode()
        if (found := _read(path)) is not None:  # another process may have decoded them meanwhile
            return found
        begin = time.perf_counter()
        decoded = decode()
        if decoded.nbytes <= limit and time.perf_counter() - begin >= WORTH_SECONDS:
            with suppress(KdsearchError):  # a full disk: the images are decoded again next time
                files.save_tensors(path, {"images": decoded}, {})
                _make_room(path, limit)
        return decoded


def fingerprint(paths: Sequence[Path], key: str) -> str:
    """Return a hash of files' metadata, without opening them, and of a key; 32 hexadecimal digits."""
    base = "" if not paths or paths[0].is_absolute() else os.getcwd()  # all are of one folder
    digest = hashlib.blake2b(json.dumps([key, base]).encode(), digest_size=16)
    for path in paths:
        name = str(path)
        try:
            found = os.stat(name)
            facts = f"{name}\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}\0"
        except OSError:
            facts = f"{name}\0missing\0"  # the decoder reports the error
        digest.update(facts.encode(errors="surrogateescape"))
    return digest.hexdigest()


def bound() -> int:
    """Return the bytes that all files together may take: `KDSEARCH_DECODED_GB`, else 4 GB.

    Raises:
        DataError: the variable is no number of at least 0.
    """
    given = os.environ.get(LIMIT) or str(LIMIT_GB)
    with suppress(ValueError):
        if 0 <= (limit := float(given)) < float("inf"):
            return int(limit * 1e9)
    raise DataError(f"{LIMIT} must be a number of GB, at least 0", got=given, remedy="correct or unset it")


def kept() -> list[tuple[float, int, Path]]:
    """Return time of last use, bytes and path of each file, the least recently used first."""
    found = []
    for path in folder().glob("*.safetensors"):
        with suppress(OSError):  # another process may have removed it
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    return sorted(found)


def _read(path: Path) -> Tensor | None:
    """Return the images of a file and mark it as used now; None where it is missing or broken."""
    try:
        images = files.load_tensors(path, torch.device("cpu"))[0]["images"]
    except (OSError, ValueError, KeyError):
        return None
    with suppress(OSError):
        os.utime(path)
    return images


def _make_room(new: Path, limit: int) -> None:
    """Delete the least recently used files, except a new one, until all fit."""
    found = kept()
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= limit:
            return
        if path != new:
            with suppress(OSError):
                path.unlink()
            total -= size
