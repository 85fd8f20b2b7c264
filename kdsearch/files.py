"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kdsearch.errors import KdsearchError

if TYPE_CHECKING:
    from torch import Tensor


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
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's file is its owner's alone
        temporary.replace(path)
    except OSError as error:
        raise KdsearchError(
            f"the file must be writable: {error.strerror or error}",
            got=path,
            remedy="free space or choose another folder",
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text whole or not at all, its line ends as they are.

    Raises:
        KdsearchError: it cannot be written; the old file stays.
    """
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8", newline="\n"))


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors as safetensors, whole or not at all.

    Args:
        path: where the file goes; missing folders are made.
        tensors: by name, on any device.
        metadata: of the file's header.

    Raises:
        KdsearchError: it cannot be written; the old file stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def save(beside: Path) -> None:
        try:
            save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, beside, metadata=metadata)
        except SafetensorError as error:  # a full disk, for one, which write_whole is to see as what it is
            raise OSError(str(error)) from None

    write_whole(path, save)
