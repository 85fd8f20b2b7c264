"""Checkpoints of trainings: written whole or not at all now and then, read again where a training was interrupted."""

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

EVERY = 60.0  # seconds of training between two writes, at the ends of epochs
SLOW_EPOCH = 10.0  # seconds; a student whose epochs are shorter is trained anew instead
UNUSED_DAYS = 30  # after which a checkpoint that no training has gone on from is removed
STRUCTURE = "structure"  # in the metadata: the state as JSON, with names in place of its tensors
NAME = "name"  # in the metadata: what the checkpoint is of
TENSOR, PAIRS = "tensor", "pairs"

Begun = TypeVar("Begun")


def folder() -> Path:
    """Where this machine keeps checkpoints."""
    return machine.cache_folder() / "checkpoints"


def digest(*parts: object) -> str:
    """A hash of what decides a training, 16 hexadecimal digits: equal parts name the same checkpoint.

    Args:
        parts: of what JSON holds.
    """
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


def save(path: Path, state: State, name: str) -> None:
    """Writes a state, whole or not at all.

    Args:
        path: of a safetensors file.
        state: nested dicts and lists of tensors and of what JSON holds; a tuple is read as a list.
        name: what it is of; `load` asks for the same.

    Raises:
        KdsearchError: the file cannot be written; the old one stays.
        TypeError: the state holds something else.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_pack(state, tensors))
    files.save_tensors(path, tensors, {STRUCTURE: structure, NAME: name})


def load(path: Path, name: str, device: torch.device) -> State:
    """Reads a state that `save` wrote.

    Args:
        path: of the file.
        name: what it has to be of.
        device: where its tensors go.

    Raises:
        ValueError: the file is broken or of something else.
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
    """The value as JSON with its tensors put aside; dicts as pairs, for their keys may be numbers."""
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
    """The checkpoint of one training.

    Args:
        name: names the file; whatever has the same name would train the same way.
        warn: told, in one line, of a broken file, or once of one that cannot be written: a training is worth more.
        least: seconds that an epoch has to take for anything to be written.
    """

    def __init__(self, name: str, warn: Callable[[str], object], *, least: float = 0.0) -> None:
        self._name, self._warn, self._least = name, warn, least
        self.path = folder() / f"{name}.safetensors"
        self._written = time.monotonic()
        self._works = True

    def resume(self, begin: Callable[[State | None], Begun], device: torch.device) -> Begun:
        """Begins a training from the checkpoint or, where there is none or it is broken, from the beginning.

        Args:
            begin: begins the training from a state that `keep` wrote, or from None; where the state does not fit it
                raises ValueError, KeyError or TypeError with nothing changed.
            device: where the state's tensors go.
        """
        if self.path.is_file():
            try:
                return begin(load(self.path, self._name, device))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                reason = " ".join(str(error).split())[:120]
                self._warn(f"a broken checkpoint is ignored: the training starts anew ({self.path}: {reason})")
        return begin(None)

    def keep(self, state: Callable[[], State], seconds: float) -> None:
        """Writes the state at an epoch's end, once a minute at most.

        Args:
            state: makes it; called where it is written.
            seconds: that the epoch took.
        """
        if not self._works or seconds < self._least or time.monotonic() - self._written < EVERY:
            return
        try:
            save(self.path, state(), self._name)
            _sweep(self.path.parent)
        except (KdsearchError, TypeError, RuntimeError) as error:  # RuntimeError: tensors that share their memory
            self._works = False
            self._warn(f"no checkpoint is kept, so an interruption loses this training: {error}")
        self._written = time.monotonic()

    def remove(self) -> None:
        """Removes the file: the training has come to its end."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def _sweep(place: Path) -> None:
    """Removes what no training has gone on from for long."""
    oldest = time.time() - UNUSED_DAYS * 24 * 3600
    for path in place.glob("*.safetensors"):
        with suppress(OSError):  # another process may have removed it
            if path.stat().st_mtime < oldest:
                path.unlink()
