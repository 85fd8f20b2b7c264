"""What must stay the same for the trials of a study to be comparable, stored with it and checked when it goes on."""

from __future__ import annotations

import json
import time
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import optuna
import torch
from optuna import Study
from optuna.storages import BaseStorage

from kdsearch import storage
from kdsearch.distil import teacher
from kdsearch.distil.precision import Choice, kept_by
from kdsearch.errors import DefinitionError
from kdsearch.records import METRICS, StudyAttr
from kdsearch.search.plan import Plan
from kdsearch.system import machine

DIFFERENCES_SHOWN = 4
BEING_MADE = 0.5  # seconds at most from a study's creation to its definition


def definition(plan: Plan) -> dict[str, Any]:
    """All that must stay the same for two trials of a search to be comparable, as JSON.

    Raises:
        TeacherError: the teacher's weights cannot be read.
    """
    described = plan.spec.model_dump(mode="json", exclude={"anchors", "report"})
    described["data"] |= {"fingerprint": plan.split.fingerprint, "classes": list(plan.split.classes)}
    described["teacher"] |= {"fingerprint": teacher.fingerprint(plan.spec.teacher, plan.split)}
    described["teacher"].pop("weights")  # the fingerprint tells; the same file may move
    described["cost"] = plan.cost
    described["precision"] = plan.precision.name
    if plan.spec.distillation == 1:
        described.pop("distillation")  # as studies have it that were begun before it was a key
    if plan.cost != "flops":
        described["device_model"] = machine.cpu_model() if plan.cost == "onnx" else machine.device_model(plan.device)
    plain: dict[str, Any] = json.loads(json.dumps(described))
    return plain


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines `key: old -> new` for what differs between two definitions."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key, 'nothing')} -> {after.get(key, 'nothing')}" for key in keys]


def comparable(definition: dict[str, Any]) -> dict[str, Any]:
    """A definition without what may differ in the same study: the path of a folder of images, known by fingerprint."""
    data = definition.get("data")
    if not isinstance(data, dict) or not str(data.get("name")).startswith("folder:"):
        return definition
    classes = [unicodedata.normalize("NFC", str(name)) for name in data.get("classes", [])]
    return definition | {"data": data | {"name": "folder", "classes": classes}}


def open_defined(backend: BaseStorage, name: str, wanted: dict[str, Any]) -> Study:
    """Makes a study of our two objectives with a definition, or finds it again.

    Args:
        backend: of the study.
        name: of the study.
        wanted: its definition, plain JSON.

    Raises:
        DefinitionError: a study of another definition has that name.
    """
    if name not in storage.study_names(backend):
        with suppress(optuna.exceptions.DuplicatedStudyError):  # another process was quicker
            return _make(backend, name, wanted)
    study = storage.load_study(backend, name)
    check(study, wanted)
    return study


def _make(backend: BaseStorage, name: str, wanted: dict[str, Any]) -> Study:
    study = optuna.create_study(storage=backend, study_name=name, directions=["maximize"] * len(METRICS))
    study.set_user_attr(StudyAttr.DEFINITION, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(list(METRICS))
    return study


def _stored(study: Study) -> dict[str, Any] | None:
    """A study's definition; one made just now by another process gets a while to be given it."""
    end = time.monotonic() + BEING_MADE
    while (found := study.user_attrs.get(StudyAttr.DEFINITION)) is None and time.monotonic() < end:
        time.sleep(BEING_MADE / 10)
    return found


def check(study: Study, wanted: dict[str, Any], *, remedy: str = "") -> None:
    """Refuses a study whose definition is another one.

    Args:
        study: found in a storage.
        wanted: the definition it should have, plain JSON.
        remedy: what to do where it differs.

    Raises:
        DefinitionError: it differs, or the study is not of kdsearch.
    """
    stored = _stored(study)
    if stored is None:
        raise DefinitionError(
            "a study of this name must have been made by kdsearch",
            got=study.study_name,
            remedy="choose another --name",
        )
    if isinstance(stored, dict) and "precision" not in stored:  # of a study made before it was kept; `begun` sees to it
        wanted = {key: value for key, value in wanted.items() if key != "precision"}
    changed = differences(comparable(stored), comparable(wanted))
    if changed:
        more = f" and {len(changed) - DIFFERENCES_SHOWN} more" if len(changed) > DIFFERENCES_SHOWN else ""
        raise DefinitionError(
            f"a study's definition must stay the same ({'; '.join(changed[:DIFFERENCES_SHOWN])}{more})",
            got=study.study_name,
            remedy=remedy or "choose another --name for the new definition, or the old options",
        )


def begun(backend: BaseStorage, name: str, choice: Choice, device: torch.device) -> dict[str, Any] | None:
    """The definition of the study of that name; None where there is none yet, or it is not of kdsearch.

    Args:
        backend: of the study.
        name: of the study.
        choice: the precision that a run would have.
        device: to train on.

    Raises:
        DefinitionError: the user names another precision than that of a study made before it was kept.
    """
    stored = _stored(storage.load_study(backend, name)) if name in storage.study_names(backend) else None
    if isinstance(stored, dict) and choice.given and choice.name != (own := kept_by(stored, device).name):
        raise DefinitionError(
            f"a study's precision must stay the same ({own})",
            got=choice.name,
            remedy="leave --precision out, or choose another --name",
        )
    return stored if isinstance(stored, dict) else None


def check_definition(study: Study, plan: Plan) -> None:
    """Refuses to join a study with a plan of this machine that is not the study's own.

    Raises:
        DefinitionError: data, teacher or, where time is measured, the model of the device differ.
    """
    remedy = (
        "join from a machine with the study's data (--data-dir names their folder) and device (studies of --cost flops "
        "take any device)"
    )
    check(study, definition(plan), remedy=remedy)


def open_study(plan: Plan, backend: BaseStorage) -> Study:
    """Makes the plan's study, or finds it again.

    Raises:
        DefinitionError: a study of another definition has that name.
        TeacherError: the teacher's weights cannot be read.
    """
    study = open_defined(backend, plan.name, definition(plan))
    study.set_user_attr(StudyAttr.STUDY_FILE, plan.spec.model_dump(mode="json"))
    return study
