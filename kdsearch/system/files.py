"""Files written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kdsearch.errors import KdsearchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DIGEST = "digest"  # in the metadata of tensors: safetensors itself tells a short file, but not a changed byte
STALE_SECONDS = 3600  # after which nobody writes a file beside its place any more


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file whole or not at all: beside its place first, then moved there.

    Args:
        path: where the file goes; missing folders are made.
        write: writes the file at the path it is given.

    Raises:
        KdsearchError: it cannot be written; the old file stays.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # before it gets its name: a machine that stops leaves no empty file there
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's file is its owner's alone
        temporary.replace(path)
        _sweep(path)
    except OSError as error:
        raise KdsearchError(
            f"the file must be writable: {error.strerror or error}",
            got=path,
            remedy="free space or choose another folder",
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_folder(path: Path) -> None:
    """Makes a folder where there is none and sees that a file can be written there, before work goes into one.

    Raises:
        KdsearchError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise KdsearchError(
            f"the folder must be writable: {error.strerror or error}", got=path, remedy="choose another folder"
        ) from None


def _sweep(path: Path) -> None:
    """Removes what writers of this file left beside it that were killed in mid-write."""
    now = path.stat().st_mtime  # of the file system's own clock
    for beside in path.parent.iterdir():
        if beside.name.startswith(f".{path.name}.") and now - beside.stat().st_mtime > STALE_SECONDS:
            beside.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Runs its body while no other process does so for the same file; missing folders are made.

    Raises:
        KdsearchError: nothing can be written there.
    """
    from filelock import FileLock

    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise KdsearchError(
            f"the folder must be writable: {error.strerror or error}",
            got=path.parent,
            remedy="free space or name another cache with KDSEARCH_CACHE_DIR",
        ) from None
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all, its line ends as they are; half a character is written out as `\\ud800`.

    Raises:
        KdsearchError: it cannot be written; the old file stays.
    """
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n"))


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors as safetensors, whole or not at all.

    Args:
        path: where the file goes; missing folders are made.
        tensors: by name, on any device.
        metadata: of the file's header, to which their digest is added.

    Raises:
        KdsearchError: it cannot be written; the old file stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}

    def save(beside: Path) -> None:
        try:
            save_file(plain, beside, metadata=metadata | {DIGEST: digest(plain)})
        except SafetensorError as error:  # a full disk, for one, which write_whole is to see as what it is
            raise OSError(str(error)) from None

    write_whole(path, save)


def load_tensors(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads what `save_tensors` wrote: tensors by name on a device, and the metadata.

    Raises:
        ValueError: the file is cut short, or is none of ours, or any byte of its tensors is another than was written.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = dict(file.metadata() or {})
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 -- no mapping
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if metadata.pop(DIGEST, None) not in (None, digest(found)):  # None: of an earlier version, which had no digests
        raise ValueError("its checksum is wrong")
    return {key: value.to(device) for key, value in found.items()}, metadata


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash of tensors on the CPU, with their names, types and shapes; 32 hexadecimal digits."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for key in sorted(tensors):
        value = tensors[key].contiguous()
        found.update(_named(key, value.dtype, tuple(value.shape)))
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def blank_digest(key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> hashlib.blake2b:
    """The hash of one tensor before its bytes: updated with those, it becomes that of `digest`."""
    found = hashlib.blake2b(digest_size=16)
    found.update(_named(key, dtype, shape))
    return found


def _named(key: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    return repr((key, dtype, shape)).encode()
