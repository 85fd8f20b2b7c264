"""Import the results of a device folder's script: check them, and store them with the study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna import Study

from kdsearch.errors import KdsearchError
from kdsearch.export.device_script import FORMAT, VERSION
from kdsearch.records import Attr, StudyAttr
from kdsearch.reporting.measured import (
    DEVICE,
    FIGURES,
    LONGEST,
    Measured,
    is_figure,
    is_whole,
    parsed,
)
from kdsearch.storage import load_trial

LARGEST = 100_000  # bytes: the script prints about one thousand
TEXTS = ("device", "provider", "onnxruntime", "date", "machine", "system", "python", "fingerprint", "study")
COUNTS = ("trial", "batch", "threads", "pairs")
CPU = "CPUExecutionProvider"
AGAIN = "run measure.py again and import what it prints"


def take(study: Study, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Store the results of files once all are valid; a result that is stored already changes nothing.

    Args:
        study: the study that the devices' folders were made from.
        paths: of files that `measure.py` wrote.

    Returns:
        The stored results, each with `new` (whether it was not stored before) and `search_ratio`.

    Raises:
        KdsearchError: a file is broken or belongs to another study; nothing is stored.
    """
    found = [_measured(study, read(path), path) for path in paths]
    told = []
    for each in found:
        new = study.user_attrs.get(each.key) != each.stored()
        if new:
            study.set_user_attr(each.key, each.stored())
        ratio = load_trial(study, each.trial).user_attrs.get(Attr.RATIO)
        told.append(each.stored() | {"new": new, "search_ratio": ratio})
    return told


def read(path: Path) -> dict[str, Any]:
    """Read a file's JSON object and check the type and range of every value.

    Raises:
        KdsearchError: the file is not a result of `measure.py`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise KdsearchError(f"--import must name a file to read: {error.strerror}", got=path) from None
    try:
        found = json.loads(raw.decode("utf-8")) if len(raw) <= LARGEST else None
    except (ValueError, RecursionError):
        raise _refusal("be JSON", path) from None
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        raise _refusal("be what measure.py prints", path)
    if found.get("version") != VERSION:
        said = str(found.get("version"))[:20]
        raise _refusal(f"be of version {VERSION}, not {said}", path, "import it with the kdsearch that made the folder")
    for name in COUNTS:
        if not is_whole(found.get(name), least=0 if name == "trial" else 1):
            raise _refusal(f"hold a whole number as {name}", path)
    for name in FIGURES:
        if not is_figure(found.get(name)):
            raise _refusal(f"hold a finite number above 0 as {name}", path)
    for name in TEXTS:
        if not _is_text(found.get(name), longest=LARGEST if name == "study" else LONGEST):
            raise _refusal(f"hold a printable text of at most {LONGEST} characters as {name}", path)
    if not found["low"] <= found["ratio"] <= found["high"]:
        raise _refusal("hold a ratio within its interval", path)
    return dict(found)


def _is_text(value: object, *, longest: int) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        return False
    return value.isprintable() or longest == LARGEST  # a study's name is only compared: any characters may be in it


def _refusal(rule: str, path: Path, remedy: str = AGAIN) -> KdsearchError:
    return KdsearchError(f"a file to import must {rule}", got=path, remedy=remedy)


def _measured(study: Study, found: dict[str, Any], path: Path) -> Measured:
    """Convert a valid file's object to a measurement of a trial of this study.

    Raises:
        KdsearchError: the file belongs to another study or trial, or its networks were not exported from this study.
    """
    number = found["trial"]
    if found["study"] != study.study_name:
        raise _refusal(f"be of study {study.study_name}, not {found['study'][:LONGEST]}", path, "give its --name")
    stored = study.user_attrs.get(f"{StudyAttr.CARRIED}{number}")
    if not isinstance(stored, Mapping) or found["fingerprint"] not in stored:
        raise _refusal(
            f"be of networks that `kdsearch measure --trial {number}` wrote for this study",
            path,
            f"carry a new folder to the device: `kdsearch measure --trial {number} --out DIR`",
        )
    load_trial(study, number)
    provider = "" if found["provider"] == CPU else found["provider"]
    version = f"onnxruntime {found['onnxruntime']}, {found['system']} {found['machine']}, Python {found['python']}"
    measured = parsed(
        {name: found[name] for name in ("trial", "device", "threads", "batch", *FIGURES, "date")}
        | {"source": DEVICE, "runtime": "ONNX Runtime", "version": version[:LONGEST], "provider": provider}
    )
    assert measured is not None, "all of it was checked"
    return measured
