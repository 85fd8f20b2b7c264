"""Study definitions: what must stay the same for a study's trials to be comparable; stored, and checked on resuming."""

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
BEING_MADE = 0.5  # maximum seconds between a study's creation and its definition


def definition(plan: Plan) -> dict[str, Any]:
    """Return all that must stay the same for two trials of a search to be comparable, as JSON.

    Raises:
        TeacherError: the teacher's weights cannot be read.
    """
    described = plan.spec.model_dump(mode="json", exclude={"anchors", "report"})
    described["data"] |= {"fingerprint": plan.split.fingerprint, "classes": list(plan.split.classes)}
    described["teacher"] |= {"fingerprint": teacher.fingerprint(plan.spec.teacher, plan.split)}
    described["teacher"].pop("weights")  # the fingerprint identifies the weights; their file may move
    described["cost"] = plan.cost
    described["precision"] = plan.precision.name
    if plan.spec.distillation == 1:
        described.pop("distillation")  # studies begun before it was a key do not have it
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
    """Return lines `key: old -> new` for differences between two definitions."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{key}: {before.get(key, 'nothing')} -> {after.get(key, 'nothing')}" for key in keys]


def comparable(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a definition without the path of a folder of images, which may change: its fingerprint identifies it."""
    data = definition.get("data")
    if not isinstance(data, dict) or not str(data.get("name")).startswith("folder:"):
        return definition
    classes = [unicodedata.normalize("NFC", str(name)) for name in data.get("classes", [])]
    return definition | {"data": data | {"name": "folder", "classes": classes}}


def open_defined(backend: BaseStorage, name: str, wanted: dict[str, Any]) -> Study:
    """Create a study of our two objectives with a definition, or open the existing one.

    Raises:
        DefinitionError: a study of another definition has that name.
    """
    if name not in storage.study_names(backend):
        with suppress(optuna.exceptions.DuplicatedStudyError):  # another process was faster
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
    """Return a study's definition; None for another program's study, whose attribute of that name may be anything.

    Wait a moment if another process has just created the study.
    """
    end = time.monotonic() + BEING_MADE
    while (found := study.user_attrs.get(StudyAttr.DEFINITION)) is None and time.monotonic() < end:
        time.sleep(BEING_MADE / 10)
    return found if isinstance(found, dict) else None


def check(study: Study, wanted: dict[str, Any], *, remedy: str = "") -> None:
    """Refuse a study with another definition.

    Raises:
        DefinitionError: it differs, and the error says `remedy`; or the study was not made by kdsearch.
    """
    stored = _stored(study)
    if stored is None:
        raise DefinitionError(
            "a study of this name must have been made by kdsearch",
            got=study.study_name,
            remedy="choose another --name",
        )
    if "precision" not in stored:  # made before precision was stored; `begun` handles it
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
    """Return the definition of the study of that name; None if it does not exist or was not made by kdsearch.

    Raises:
        DefinitionError: `choice` names another precision than that of a study made before precision was stored.
    """
    stored = _stored(storage.load_study(backend, name)) if name in storage.study_names(backend) else None
    if stored is None:
        return None
    if choice.given and choice.name != (own := kept_by(stored, device).name):
        raise DefinitionError(
            f"a study's precision must stay the same ({own})",
            got=choice.name,
            remedy="leave --precision out, or choose another --name",
        )
    return stored


def open_study(plan: Plan, backend: BaseStorage) -> Study:
    """Create the plan's study, or open the existing one.

    Raises:
        DefinitionError: a study of another definition has that name.
        TeacherError: the teacher's weights cannot be read.
    """
    study = open_defined(backend, plan.name, definition(plan))
    study.set_user_attr(StudyAttr.STUDY_FILE, plan.spec.model_dump(mode="json"))
    return study
