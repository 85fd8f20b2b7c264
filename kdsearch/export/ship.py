"""Export a trial's student as one file, then load it in its own runtime, score it on the test set and time it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from kdsearch import networks
from kdsearch.data import Split
from kdsearch.distil import teacher
from kdsearch.errors import KdsearchError
from kdsearch.export import formats, model_card
from kdsearch.measure import onnx
from kdsearch.records import Attr, Progress, StudyAttr
from kdsearch.search import weights
from kdsearch.search.confirm import to_ship
from kdsearch.search.plan import check_choice, rejoin
from kdsearch.search.retrain import check_data, find_trial, retrain
from kdsearch.search.workshop import Workshop
from kdsearch.system import files, machine


def export(
    study: Study, number: int, *, kind: str, out: Path, url: str, data_dir: str | None, progress: Progress
) -> dict[str, Any]:
    """Export a trial's student as one file, and delete the file if it is not as good in its own runtime.

    `classes.json`, the names of the classes, and the model card, `trial-NUMBER.md`, are written beside it.

    Args:
        study: made by kdsearch.
        number: of a complete trial.
        kind: one of `formats.KINDS`.
        out: folder of the file.
        url: of the study's storage, beside which weights are kept.
        data_dir: where data sets lie.
        progress: notified when the student has to be trained again.

    Returns:
        What is stored as the study's attribute `exported:NUMBER:FORMAT`.

    Raises:
        KdsearchError: the format is unknown, the trial is not complete, a package is missing, the folder cannot be
            written, or the file failed its verification.
    """
    check_choice("--format", kind, formats.KINDS)
    if kind in formats.OF_ONNX:
        onnx.require("--format onnx")
    trial, shop, student, source = opened(study, number, out=out, url=url, data_dir=data_dir, progress=progress)
    path = out / f"trial-{number}.{formats.ENDINGS[kind]}"
    found = _written(path, student, shop, kind, about(study, number, shop.split))
    if formats.UNTIMED in found:
        progress.warning(f"not timed: {found[formats.UNTIMED]}")
    found |= {"trial": number, "format": kind, "weights": source}
    found |= {"device": machine.cpu_model(), "threads": shop.spec.latency.threads}
    found |= {"search_ratio": trial.values[1], "search_test_accuracy": trial.user_attrs[Attr.TEST_ACCURACY]}
    study.set_user_attr(f"{StudyAttr.EXPORTED}{number}:{kind}", found)
    files.write_text(out / "classes.json", json.dumps(list(shop.split.classes)) + "\n")
    files.write_text(out / f"trial-{number}.md", model_card.text(study, number, url=url, folder=out, split=shop.split))
    return found


def opened(
    study: Study,
    number: int,
    *,
    out: Path,
    url: str,
    data_dir: str | None,
    progress: Progress,
    with_teacher: str | None = None,
) -> tuple[FrozenTrial, Workshop, nn.Module, str]:
    """Return the trial, its workshop with the teacher, its student on the CPU, and the source of the student's weights.

    The student of a confirmed trial is that of its first confirmation run, trained on training and validation images:
    it is what the confirmed figures describe.

    Arguments as in `export`; `with_teacher` names the command that exports the teacher, too.

    Raises:
        KdsearchError: the trial is not complete, the folder cannot be written, data differ from the study's, or the
            teacher must be exported and cannot.
    """
    trial = find_trial(study, number)
    if trial.state != TrialState.COMPLETE:
        raise KdsearchError(
            "the trial to export must be complete",
            got=f"trial {number}, {trial.state.name}",
            remedy="see `kdsearch pick`",
        )
    files.check_folder(out)
    plan = rejoin(study, url=url, data_dir=data_dir, device="cpu")
    check_data(study, plan)
    if with_teacher is not None:
        network = teacher.untrained(plan.spec.teacher, plan.split)
        onnx.check_teacher(network, plan.split, with_teacher, remedy=onnx.REWRITE)
    shop = Workshop.rejoin(study, plan, progress)
    seed, kept, of = trial.user_attrs[Attr.SEED], weights.named(trial), "of the search"
    confirmed = to_ship(study, trial)
    if confirmed is not None:
        seed, kept, of = *confirmed, "of the first confirmation run"
    student = shop.build(trial.user_attrs[Attr.CONFIG], seed)
    try:
        networks.load_state(student, weights.load(url, study.study_name, kept))
    except (KdsearchError, RuntimeError) as error:
        progress.warning(f"trial {trial.number} is trained again: {error}")
        whole = confirmed is not None
        again = retrain(study, number, whole=whole, seed=seed, data_dir=data_dir, device="cpu", progress=progress)
        return trial, shop, again.network, f"trained again, {of}"
    return trial, shop, student, f"kept weights, {of}"


def about(study: Study, number: int, split: Split) -> dict[str, Any]:
    """Return the metadata that a file carries."""
    scaling = {"top": split.top, "mean": split.mean, "std": split.std}
    return {"study": study.study_name, "trial": number, "classes": list(split.classes), **scaling}


def _written(path: Path, student: nn.Module, shop: Workshop, kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the file, name it once it is verified, and return its results."""
    found: dict[str, Any] = {}

    def make(beside: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"student.{kind}"
            formats.write(student, shop.split, kind, file, facts)
            found.update(formats.verify(shop, student, kind, file))
            beside.write_bytes(file.read_bytes())

    files.write_whole(path, make)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    exporter = f"torch {torch.__version__}"
    versions = {"exporter": exporter, "runtime": exporter}
    if kind in formats.OF_ONNX:
        versions |= {"runtime": onnx.version(), "opset": str(onnx.opset(path))}
    return found | versions | {"file": str(path), "bytes": path.stat().st_size, "sha256": digest}
