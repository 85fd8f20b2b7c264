"""Write the folder to copy to a real device, with a script that times both networks, and import its results."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna import Study
from torch import Tensor, nn

from kdsearch.data import Split, repeated
from kdsearch.errors import KdsearchError
from kdsearch.export import formats, ship
from kdsearch.export.device_script import FILES, IMAGES, NETWORKS, fingerprint
from kdsearch.export.device_script import FORMAT as RESULT_FORMAT
from kdsearch.export.device_script import VERSION as RESULT_VERSION
from kdsearch.measure import onnx
from kdsearch.records import Attr, Progress, StudyAttr
from kdsearch.reporting.measured import DEVICE, FIGURES, LONGEST, Measured, is_figure, is_whole, parsed
from kdsearch.storage import load_trial
from kdsearch.system import files

MOST_IMAGES = 100  # in the folder; the script repeats them to fill the batch: time does not depend on their content
CLOSE = 0.05  # of the largest logit: predictions nearer to a tie may change on a device that computes in 16 bits
SCRIPT, ABOUT, README = "measure.py", "about.json", "README.txt"
FORMAT, VERSION = "kdsearch device folder", 1


def write(
    study: Study, number: int, *, out: Path, url: str, data_dir: str | None, progress: Progress
) -> dict[str, Any]:
    """Write a trial's folder for a device, and store its fingerprint, by which `import_results` recognises its results.

    Args:
        study, number, url, data_dir, progress: as in `ship.export`.
        out: the folder, created where it is missing; an earlier one of this function is replaced.

    Returns:
        `study`, `trial`, `folder`, `fingerprint` and `bytes` (the size of all files).

    Raises:
        KdsearchError: the trial is not complete, a package is missing, the folder cannot be written or holds other
            files of these names, or a network predicts something else in ONNX Runtime.
    """
    onnx.require("kdsearch measure")
    check_free(out)
    _, shop, student, _ = ship.opened(
        study, number, out=out, url=url, data_dir=data_dir, progress=progress, with_teacher="kdsearch measure"
    )
    how, told = shop.spec.latency, {"study": study.study_name, "trial": number}
    about: dict[str, Any] = {"format": FORMAT, "version": VERSION, **told, "batch": how.batch, "threads": how.threads}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        networks = {"teacher": shop.teacher.network, "student": student}
        expected = _written(folder, networks, shop.split, how.batch, ship.about(study, number, shop.split))
        digests = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in FILES}
        print_of_files = fingerprint(digests)
        about |= {"expected": expected, "sha256": digests, "fingerprint": print_of_files}
        (folder / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
        (folder / README).write_text(READ_ME.format(**about), encoding="utf-8")
        (folder / SCRIPT).write_bytes(resources.files("kdsearch.export").joinpath("device_script.py").read_bytes())
        size = _moved(folder, out)
    _remember(study, number, print_of_files)
    return told | {"folder": str(out), "fingerprint": print_of_files, "bytes": size}


def check_free(out: Path) -> None:
    """Refuse a folder with files that would be replaced, unless a folder for a device was written there before."""
    there = [name for name in (*FILES, SCRIPT, README) if (out / name).exists()]
    if there and not (out / ABOUT).exists():
        rule = f"files that are not of a folder for a device must not be replaced: {', '.join(there)}"
        raise KdsearchError(rule, got=out, remedy="name another folder")


def _written(
    folder: Path, networks: dict[str, nn.Module], split: Split, batch: int, facts: dict[str, Any]
) -> dict[str, list[int | None]]:
    """Write both networks and the images; return each network's predictions, None where one is nearly a tie."""
    images = repeated(split.validation.images, min(batch, MOST_IMAGES, len(split.validation)))
    np.savez_compressed(folder / IMAGES, images=images.numpy())
    expected = {}
    for name in NETWORKS:
        path = folder / f"{name}.onnx"
        formats.write(networks[name], split, "onnx", path, facts)
        with torch.inference_mode():
            expected[name] = labels(onnx.Prepared(networks[name], split).eval()(images))
        there = onnx.logits(onnx.session(path), images).argmax(1).tolist()
        if any(wanted not in (None, found) for wanted, found in zip(expected[name], there, strict=True)):
            raise KdsearchError(
                f"the {name} must predict in ONNX Runtime what it does in torch",
                remedy="this is an error in kdsearch: please report it",
            )
    return expected


def labels(logits: Tensor) -> list[int | None]:
    """Return predictions from logits, (count, classes); None for near ties, which a device may decide differently."""
    top = logits.topk(2, dim=1).values
    clear = (top[:, 0] - top[:, 1]) > CLOSE * logits.abs().amax(1)
    return [label if sure else None for label, sure in zip(logits.argmax(1).tolist(), clear.tolist(), strict=True)]


def _moved(folder: Path, out: Path) -> int:
    """Copy the files, each atomically, and return their total size in bytes."""
    size = 0
    for name in (*FILES, SCRIPT, README, ABOUT):
        source = folder / name
        files.write_whole(out / name, partial(shutil.copyfile, source))
        size += source.stat().st_size
    return size


def _remember(study: Study, number: int, found: str) -> None:
    """Add a fingerprint to the study's known ones: an older folder may still be on a device."""
    key = f"{StudyAttr.CARRIED}{number}"
    stored = study.user_attrs.get(key)
    before = stored if isinstance(stored, dict) else {}
    if found not in before:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        study.set_user_attr(key, before | {found: now})


READ_ME = """Times trial {trial} of study {study!r} against its teacher on this device.

Needs Python 3.9 or later with onnxruntime and numpy:

    pip install onnxruntime numpy
    python measure.py --out device.json

As in the study, it takes --batch {batch} and --threads {threads} (of a CPU); give others to change them.
--provider names another execution provider of onnxruntime, --device what the report is to call this device.

Then, where the study is:

    kdsearch measure --import device.json
"""

LARGEST = 100_000  # bytes: the script prints about one thousand
TEXTS = ("device", "provider", "onnxruntime", "date", "machine", "system", "python", "fingerprint", "study")
COUNTS = ("trial", "batch", "threads", "pairs")
CPU = "CPUExecutionProvider"
AGAIN = "run measure.py again and import what it prints"


def import_results(study: Study, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Store the results of files once all are valid; a result that is stored already changes nothing.

    Returns:
        The stored results, each with `new` (whether it was not stored before) and `search_ratio`.

    Raises:
        KdsearchError: a file is broken or belongs to another study; nothing is stored.
    """
    found = [_measured(study, _read_results(path), path) for path in paths]
    told = []
    for each in found:
        new = study.user_attrs.get(each.key) != each.stored()
        if new:
            study.set_user_attr(each.key, each.stored())
        ratio = load_trial(study, each.trial).user_attrs.get(Attr.RATIO)
        told.append(each.stored() | {"new": new, "search_ratio": ratio})
    return told


def _read_results(path: Path) -> dict[str, Any]:
    """Read a file's JSON object and check the type and range of every value."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise KdsearchError(f"--import must name a file to read: {error.strerror}", got=path) from None
    try:
        found = json.loads(raw.decode("utf-8")) if len(raw) <= LARGEST else None
    except (ValueError, RecursionError):
        raise _refusal("be JSON", path) from None
    if not isinstance(found, Mapping) or found.get("format") != RESULT_FORMAT:
        raise _refusal("be what measure.py prints", path)
    if found.get("version") != RESULT_VERSION:
        said = str(found.get("version"))[:20]
        raise _refusal(
            f"be of version {RESULT_VERSION}, not {said}", path, "import it with the kdsearch that made the folder"
        )
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
    """Convert a valid file's object to a measurement of a trial of this study."""
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
