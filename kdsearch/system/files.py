"""Atomic writes: a file is written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdsearch.errors import KdsearchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DIGEST = "digest"  # in the metadata of tensors: safetensors detects a short file, but not a changed byte
SQLITE = b"SQLite format 3\0"  # how such a file begins
SAFETENSORS = 8  # bytes of the header's length, with which such a file begins
JOURNAL = b'{"op_code":'  # how a journal of Optuna begins
STALE_SECONDS = 3600  # age from which a temporary file is no longer being written


@contextmanager
def _writable(what: str, path: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KdsearchError(
            f"the {what} must be writable: {error.strerror or error}", got=path, remedy=remedy
        ) from None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: `write` writes a temporary file beside it, which is renamed; missing folders are made.

    Raises:
        KdsearchError: it cannot be written, or would replace a database; the old file stays.
    """
    check_no_database(path)
    with _writable("file", path, "free space or choose another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(
                    file.fileno()
                )  # before the rename: a machine that stops leaves no empty file of the final name
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes files readable by their owner only
            temporary.replace(path)
            _sweep(path)
        finally:
            temporary.unlink(missing_ok=True)


def check_no_database(path: Path) -> None:
    """Refuse to replace a sqlite database or a journal of Optuna: a storage of studies named by mistake.

    Raises:
        KdsearchError: the file is one.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(len(SQLITE))
    except OSError:  # none there, or none that can be read
        return
    if begins == SQLITE or begins.startswith(JOURNAL):
        raise KdsearchError(
            "an output must not replace a database", got=path, remedy="name another file; this one may hold studies"
        )


def check_output(path: Path, *, tensors: bool = False) -> None:
    """Check, before the work whose result it will hold, that `write_whole` can write a file; nothing is left behind.

    Args:
        path: of the file.
        tensors: whether it is for `save_tensors`: then it may replace safetensors and empty files only.

    Raises:
        KdsearchError: it cannot be written, or would replace a database or another kind of file.
    """
    check_no_database(path)
    with _writable("file", path, "choose another folder or name"):
        if path.exists() and not path.is_file():
            raise KdsearchError("an output must be a regular file", got=path, remedy="name a file in a folder")
        if tensors and path.exists() and not _holds_tensors(path):
            raise KdsearchError(
                "weights must not replace a file that is not safetensors", got=path, remedy="name another file"
            )
        folder = next(parent for parent in path.parents if parent.exists())
        tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.").close()


def _holds_tensors(path: Path) -> bool:
    """Return whether a file begins as safetensors do, with the length of a header in JSON, or is empty."""
    with path.open("rb") as file:
        begins = file.read(SAFETENSORS + 1)
    header = int.from_bytes(begins[:SAFETENSORS], "little")
    return not begins or (begins[SAFETENSORS:] == b"{" and SAFETENSORS + header <= path.stat().st_size)


def fitting(name: str, *, allowed: str = r"\w.-", longest: int = 100) -> str:
    """Return a name for a file: the name itself, or its `hashed` form if it has other characters or is too long.

    Different names stay different; `longest`, in bytes, leaves room for endings.
    """
    fits = re.fullmatch(f"[{allowed}]+", name) and len(name.encode()) <= longest
    return name if fits else hashed(name, allowed=allowed, longest=longest)


def hashed(name: str, *, allowed: str, longest: int) -> str:
    """Return a name cut to allowed characters and at most `longest` bytes, followed by a hash of the whole name."""
    plain = re.sub(f"[^{allowed}]+", "_", name).encode()[:longest].decode(errors="ignore")
    return f"{plain}-{short_hash(name)}"


def short_hash(text: str) -> str:
    """Return a hash of a text; 8 hexadecimal digits."""
    return hashlib.blake2b(text.encode(errors="backslashreplace"), digest_size=4).hexdigest()


def check_folder(path: Path) -> None:
    """Make a folder if it is missing and check that a file can be written there, before any work is done.

    Raises:
        KdsearchError: it cannot be written to.
    """
    with _writable("folder", path, "choose another folder"):
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()


def _sweep(path: Path) -> None:
    """Remove temporary files of this file that killed writers left behind."""
    now = path.stat().st_mtime  # the file system's clock, which may differ from this machine's
    for beside in path.parent.iterdir():
        if beside.name.startswith(f".{path.name}."):
            with suppress(OSError):  # another writer has just renamed its own
                if now - beside.stat().st_mtime > STALE_SECONDS:
                    beside.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Run the body while no other process does so for the same file; missing folders are made.

    Raises:
        KdsearchError: the folder cannot be written to.
    """
    from filelock import FileLock

    lock = FileLock(path.with_suffix(".lock"))
    with _writable("folder", path.parent, "free space or name another cache with KDSEARCH_CACHE_DIR"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically with its line ends unchanged; lone surrogates are escaped as `\\ud800`.

    Raises:
        KdsearchError: it cannot be written; the old file stays.
    """
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n"))


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors, by name and on any device, as safetensors, atomically; their digest is added to the metadata.

    Tensors that share memory, as tied weights do, are written once each, for the format refuses shared memory.

    Raises:
        KdsearchError: it cannot be written; the old file stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    owners = Counter(value.untyped_storage().data_ptr() for value in plain.values())
    plain = {k: v.clone() if owners[v.untyped_storage().data_ptr()] > 1 else v for k, v in plain.items()}

    def save(beside: Path) -> None:
        try:
            save_file(plain, beside, metadata=metadata | {DIGEST: digest(plain)})
        except SafetensorError as error:  # for example a full disk, which write_whole reports as such
            raise OSError(str(error)) from None

    write_whole(path, save)


def load_tensors(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file that `save_tensors` wrote: tensors by name on a device, and the metadata.

    Raises:
        ValueError: the file is cut short, was not written by `save_tensors`, or its tensors do not match their digest.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- not a mapping
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if metadata.pop(DIGEST, None) not in (None, digest(found)):  # None: written by an earlier version, without digests
        raise ValueError("its checksum is wrong")
    return {key: value.to(device) for key, value in found.items()}, metadata


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors on the CPU, with their names, types and shapes; 32 hexadecimal digits."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for key in sorted(tensors):
        value = tensors[key].contiguous()
        found.update(_named(key, value.dtype, tuple(value.shape)))
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def blank_digest(key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> hashlib.blake2b:
    """Return the hash of one tensor before its bytes; updated with the bytes it equals that of `digest`."""
    return hashlib.blake2b(_named(key, dtype, shape), digest_size=16)


def _named(key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    return repr((key, dtype, shape)).encode()
