"""Checkpoints of trainings, written atomically from time to time, from which interrupted trainings resume."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from kdsearch.distil.train import State
from kdsearch.errors import KdsearchError
from kdsearch.system import files, machine

EVERY = 60.0  # seconds of training between two writes, which happen at the ends of epochs
SLOW_EPOCH = 10.0  # seconds; a student with shorter epochs is trained anew instead
UNUSED_DAYS = 30  # age at which an unused checkpoint is removed
STRUCTURE = "structure"  # in the metadata: the state as JSON, with names in place of tensors
NAME = "name"  # in the metadata: identifies the training
TENSOR, PAIRS = "tensor", "pairs"

Begun = TypeVar("Begun")


def folder() -> Path:
    """Return the folder of this machine's checkpoints."""
    return machine.cache_folder() / "checkpoints"


def digest(*parts: object) -> str:
    """Return a hash of JSON values that determine a training, 16 hexadecimal digits: it names what is kept of it."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def save(path: Path, state: State, name: str) -> None:
    """Write a state atomically.

    Args:
        path: of a safetensors file.
        state: nested dicts and lists of tensors and JSON values; a tuple is read back as a list.
        name: identifies the training; `load` requires the same.

    Raises:
        KdsearchError: the file cannot be written; the old one stays.
        TypeError: the state holds another type.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(state, tensors))  # which fills `tensors`
    files.save_tensors(path, tensors, {STRUCTURE: structure, NAME: name})


def load(path: Path, name: str, device: torch.device) -> State:
    """Read a state that `save` wrote under this name, with its tensors on a device.

    Raises:
        ValueError: the file is broken or has another name.
        OSError: it cannot be read.
    """
    tensors, metadata = files.load_tensors(path, device)
    if metadata.get(NAME) != name:
        raise ValueError(f"it is of {metadata.get(NAME)}")
    state = _unpack(json.loads(metadata[STRUCTURE]), tensors)
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    return state


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the value as JSON with its tensors collected; dicts as pairs, because their keys may be numbers."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, Mapping):
        return {PAIRS: [[key, _pack(each, tensors)] for key, each in value.items()]}
    return [_pack(each, tensors) for each in value] if isinstance(value, list | tuple) else value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        return {key: _unpack(each, tensors) for key, each in value[PAIRS]}
    return [_unpack(each, tensors) for each in value] if isinstance(value, list) else value


class Checkpoint:
    """The checkpoint of a training.

    Args:
        name: names the file; trainings with equal names must be the same.
        warn: gets one line about a broken file, or once about one that cannot be written: the training goes on.
        least: minimum seconds of an epoch for anything to be written.
        path: of the file; None: named after the training, in `folder`.
    """

    def __init__(
        self, name: str, warn: Callable[[str], object], *, least: float = 0.0, path: Path | None = None
    ) -> None:
        self._name, self._warn, self._least = name, warn, least
        self.path = path or folder() / f"{name}.safetensors"
        self._written = time.monotonic()
        self._works = True

    def resume(self, begin: Callable[[State | None], Begun], device: torch.device) -> Begun:
        """Begin a training from the checkpoint, or from the beginning if it is missing or broken.

        Args:
            begin: begins the training from a state written by `keep`, or from None; if the state does not fit, it
                raises ValueError, KeyError or TypeError and changes nothing.
            device: of the state's tensors.
        """
        if self.path.is_file():
            try:
                return begin(load(self.path, self._name, device))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = " ".join(str(error).split())[:120]
                self._warn(f"a broken checkpoint is ignored: the training starts over ({self.path}: {reason})")
        return begin(None)

    def keep(self, state: Callable[[], State], seconds: float) -> None:
        """Write the state, made only then, at the end of an epoch of that many seconds, at most once a minute."""
        if not self._works or seconds < self._least or time.monotonic() - self._written < EVERY:
            return
        try:
            save(self.path, state(), self._name)
            _sweep(self.path.parent)
        except (KdsearchError, TypeError, RuntimeError) as error:  # RuntimeError: tensors that share memory
            self._works = False
            self._warn(f"no checkpoint is kept, so an interruption loses this training: {error}")
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file when the training has ended."""
        with suppress(OSError):
            self.path.unlink()


def _sweep(place: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for path in place.glob("*.safetensors"):
        with suppress(OSError):  # another process may have removed it
            if path.stat().st_mtime < oldest:
                path.unlink()
