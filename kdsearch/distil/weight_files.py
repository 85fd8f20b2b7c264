"""Weight files as people save them: bare or in a checkpoint, with wrappers' prefixes, intact or broken."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdsearch.errors import TeacherError

WRAPPERS = (  # keys that hold a state dict, the averaged one last
    "state_dict", "model_state_dict", "model", "network", "net", "weights", "state_dict_ema", "model_ema", "ema",
)  # fmt: skip
PREFIXES = ("module.", "model.", "network.", "net.")  # of DataParallel, Lightning and the like
COMPILED = "_orig_mod."  # of torch.compile, anywhere in a key
AVERAGED = "n_averaged"  # AveragedModel of torch.optim.swa_utils stores this counter, beside "module."
KEYS_SHOWN = 3  # in the error about weights that do not fit
AGAIN = "download it again"


def load_weights(network: nn.Module, path: Path) -> list[str]:
    """Load weights into a network, from safetensors or a torch file (`weights_only`).

    A state dict inside a checkpoint is extracted, and wrappers' prefixes are removed from its keys; torch's strict
    `load_state_dict` decides whether it fits.

    Returns:
        Lines about what was unwrapped.

    Raises:
        TeacherError: the file cannot be read or does not fit the network.
    """
    own = network.state_dict()
    state, notes = _unwrapped(_read(path), set(own))
    if isinstance(state, Mapping):
        state = {**_tied(own, state), **state}
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = _misfits(network, state) or " ".join(str(error).split())[:200]
        raise TeacherError(
            f"teacher.weights must fit the teacher's network: {reason}",
            got=path,
            remedy="give weights of this very network, with this number of classes",
        ) from None
    return notes


def _tied(own: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the missing tensors that a network shares with present ones: safetensors' `save_model` leaves them out."""
    there = {(own[key].data_ptr(), own[key].shape): state[key] for key in own if key in state and _is_real(own[key])}
    missing = [key for key in own if key not in state and _is_real(own[key])]
    found = {key: there.get((own[key].data_ptr(), own[key].shape)) for key in missing}
    return {key: value for key, value in found.items() if value is not None}


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() > 0


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open the weights' file.

    Raises:
        TeacherError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise TeacherError(
            f"teacher.weights must be readable: {error.strerror}",
            got=path,
            remedy="correct the path in the study file",
        ) from None


def _read(path: Path) -> Any:
    """Return the contents of a weight file, on the CPU."""
    with opened(path) as file:
        head = file.read(64)
    _check_download(head, path)
    try:
        if path.suffix == ".safetensors" or head[8:9] == b"{":  # eight bytes of length, then JSON
            return load_file(path)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, EOFError, OSError) as error:
        raise _broken(path, error) from None
    except RuntimeError as error:
        # PK: of a zip file, as torch writes
        kind = _broken if head.startswith(b"PK") and not _is_anothers(path) else _foreign
        raise kind(path, error) from None
    except Exception as error:  # unpickling may raise anything
        raise _foreign(path, error) from None


def _is_anothers(path: Path) -> bool:
    """Return whether a file is a whole zip file of TorchScript or numpy."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith(("constants.pkl", ".npy")) for name in archive.namelist())


def _check_download(head: bytes, path: Path) -> None:
    """Refuse what a failed download leaves in place of weights."""
    if not head:
        raise TeacherError("teacher.weights must hold weights: the file is empty", got=path, remedy=AGAIN)
    if head.startswith(b"version https://git-lfs"):
        remedy = f"{AGAIN} (`git lfs pull`, or the file's download link)"
        raise TeacherError("teacher.weights must hold weights, not a Git LFS pointer", got=path, remedy=remedy)
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise TeacherError("teacher.weights must hold weights, not a web page", got=path, remedy=AGAIN)


def _harmless() -> list[Any]:
    """Return the types that training scripts save beside weights and whose unpickling runs no code."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")}
    names = [f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")]
    return [*((scalar, name) for name in names), np.dtype, *kinds, argparse.Namespace]


def _broken(path: Path, error: Exception) -> TeacherError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return TeacherError(
        f"teacher.weights must be whole, and the file is cut short or damaged: {reason}", got=path, remedy=AGAIN
    )


def _foreign(path: Path, error: Exception) -> TeacherError:
    held = "torch cannot read it" if isinstance(error, pickle.UnpicklingError) else type(error).__name__
    with suppress(Exception):  # it is not a torch file
        if others := torch.serialization.get_unsafe_globals_in_checkpoint(path):
            held = f"it holds {', '.join(others[:KEYS_SHOWN])}, and loading that could run code"
    return TeacherError(
        f"teacher.weights must be safetensors or a state dict: {held}",
        got=path,
        remedy="save the network's state_dict() alone, with safetensors.torch.save_file or torch.save",
    )


def _unwrapped(state: Any, own: set[str]) -> tuple[Any, list[str]]:
    """Return a checkpoint's state dict without the prefixes that wrappers add to the `own` keys, and what was done."""
    notes = []
    while isinstance(state, Mapping):  # tensors may stand beside the wrapped ones: the best accuracy so far, say
        inside = next((key for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inside is None:
            break
        state = state[inside]
        notes.append(f"teacher.weights: taken from {inside!r} of the checkpoint")
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        return state, notes
    removed = []
    if any(COMPILED in key for key in state) and not any(COMPILED in key for key in own):
        state = {key.replace(COMPILED, ""): value for key, value in state.items()}
        removed.append(COMPILED)
    if AVERAGED in state and AVERAGED not in own:
        state = {key: value for key, value in state.items() if key != AVERAGED}
    while prefix := _common(state, own):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        removed.append(prefix)
    if removed:
        notes.append(f"teacher.weights: the prefix {' and '.join(removed)} was removed from the names of its weights")
    return state, notes


def _common(state: Mapping[str, Any], own: set[str]) -> str | None:
    """Return a wrapper's prefix that all keys have and none of the network's own."""
    for prefix in PREFIXES:
        if state and all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in own):
            return prefix
    return None


def _misfits(network: nn.Module, state: Any) -> str:
    """Describe how a state dict does not fit a network, with the first keys named; empty if unknown."""
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        return ""
    own = network.state_dict()
    changed = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = {
        "size mismatch": changed,
        "missing": [key for key in own if key not in state],
        "not in the network": [key for key in state if key not in own],
    }
    return "; ".join(
        f"{what} ({len(keys)}): {', '.join(keys[:KEYS_SHOWN])}{', ...' * (len(keys) > KEYS_SHOWN)}"
        for what, keys in problems.items()
        if keys
    )
