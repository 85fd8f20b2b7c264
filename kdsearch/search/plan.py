"""The plan of a run: the study file, the data and the device, checked before any work begins."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from optuna import Study
from torch import nn

from kdsearch import data, networks, spec
from kdsearch.distil import precision as precisions
from kdsearch.distil import teacher
from kdsearch.distil.precision import Choice
from kdsearch.errors import DefinitionError, KdsearchError, StudyFileError
from kdsearch.measure import COSTS, ONNX, onnx
from kdsearch.measure import cost as find_cost
from kdsearch.records import Config, StudyAttr, architecture
from kdsearch.search import failures, space
from kdsearch.search.run_options import Request
from kdsearch.storage import DEFAULT_STORAGE
from kdsearch.system import machine, plugins

DEFAULT_DATASET = "digits"


@dataclass(frozen=True)
class Plan:
    """The plan of a run, checked, with nothing trained yet."""

    spec: spec.StudySpec  # the study file with the limits of the command line
    split: data.Split  # on the device
    device: torch.device  # that trials are trained on
    cost: str  # name of a cost (`measure.cost`)
    name: str  # of the Optuna study
    url: str  # of its storage
    data_dir: str | None  # as given
    precision: Choice  # that convolutions are trained in
    any_gpu: bool  # no GPU was named, so that workers share all that are there; `cuda:N` is that one alone


def read_spec(dataset: str | None, study: str | Path | None) -> spec.StudySpec:
    """Return the study file for a data set, or a study file with its own data set, or both if they agree.

    Raises:
        KdsearchError: the data set is unknown, or the study file is unusable or for another data set.
    """
    if dataset is not None:
        data.check_name(dataset)
    loaded = spec.load(study or spec.shipped(dataset or DEFAULT_DATASET))
    if dataset is not None and dataset != loaded.data.name:
        if dataset.partition(":")[0] != loaded.data.name.partition(":")[0]:
            raise DefinitionError(
                "--dataset and the study file must name the same data set",
                got=f"{dataset} and {loaded.data.name}",
                remedy="drop --dataset or choose another --study",
            )
        loaded = loaded.model_copy(update={"data": loaded.data.model_copy(update={"name": dataset})})
    data.check_name(loaded.data.name)
    networks.check_families(loaded)
    networks.check_stages(loaded)
    networks.check_whole(loaded)
    return loaded


def check_cost(cost: str) -> None:
    """Refuse a cost that is unknown, or whose packages are missing (KdsearchError)."""
    if cost == ONNX:
        onnx.require(f"--cost {ONNX}")
    else:
        find_cost(cost)


def make_plan(asked: Request) -> Plan:
    """Check all that can be checked before work begins, and load the data.

    What the study file leaves open is filled in: the pool of views that students see, and the precision of convolutions
    in training, which may take some seconds to time if it is not cached.

    Raises:
        KdsearchError: anything is unknown, missing or broken.
    """
    chosen = machine.resolve_device(asked.device)
    check_cost(asked.cost)
    precisions.check(asked.precision)
    loaded = read_spec(asked.dataset, asked.study)
    loaded = loaded.limited(train_size=asked.train_size, max_epochs=asked.max_epochs).pooled()
    split = data.split(data.load(loaded.data, machine.data_folder(asked.data_dir)), loaded.data, chosen)
    networks.check_students(loaded, split.shape, len(split.classes))
    if asked.cost == ONNX:
        remedy = f"choose another --cost, or {onnx.REWRITE}"
        onnx.check_teacher(teacher.untrained(loaded.teacher, split), split, f"--cost {ONNX}", remedy=remedy)
    return Plan(
        spec=loaded,
        split=split,
        device=chosen,
        cost=asked.cost,
        name=asked.name or Path(loaded.data.name.replace(":", "/")).name,
        url=asked.storage or os.environ.get("OPTUNA_STORAGE") or DEFAULT_STORAGE,
        data_dir=asked.data_dir,
        precision=choose_precision(asked.precision, loaded, split, chosen),
        any_gpu=_names_none(asked.device, chosen),
    )


def _names_none(given: str, chosen: torch.device) -> bool:
    """Whether a device as given leaves it open which GPU is meant."""
    return chosen.type == "cuda" and given in ("auto", "cuda")


def check_own(study: Study) -> None:
    """Refuse a study that another program made (DefinitionError): its trials are not students of a study file."""
    if StudyAttr.STUDY_FILE not in study.user_attrs:
        raise DefinitionError(
            "the study must have been made by kdsearch (`kdsearch optimize`); this is not a study of kdsearch",
            got=study.study_name,
            remedy="name another with --name (`status`, `pick` and `report` show any study)",
        )


def choose_precision(wanted: str, loaded: spec.StudySpec, split: data.Split, device: torch.device) -> Choice:
    """Return the precision for a study's students, timing the first anchor or, without anchors, a random student.

    Raises:
        KdsearchError: `wanted` is unknown.
    """

    def student() -> nn.Module:
        anchored = (anchor.config for anchor in loaded.anchors.values())
        return build_student(loaded, split, next(chain(anchored, space.draws(loaded))))

    return precisions.choose(wanted, device=device, kind=loaded.student.family, shape=split.shape, build=student)


def build_student(loaded: spec.StudySpec, split: data.Split, config: Config) -> nn.Module:
    """Return an untrained student on the default device, of any weights: to be counted or timed.

    Raises:
        StudyFileError: it does not fit in memory.
    """
    family = networks.student_family(loaded.student.family)
    try:
        return family.build(architecture(config), split.shape, len(split.classes))
    except RuntimeError as error:
        if failures.cause(error) != failures.MEMORY:
            raise
        raise StudyFileError(
            "a student must fit in memory", got=architecture(config), remedy="lower these dimensions of [space]"
        ) from None


def as_begun(plan: Plan, stored: Mapping[str, Any]) -> Plan:
    """Return a plan with the settings of the stored definition of its study, unless the user overrides them.

    A study made before there were pools of views continues with draws from all views; one made before `cuda_batch` with
    the batch size that it was timed with; one made before `distillation` with its own loss; and the precision stays.
    """
    loaded = plan.spec
    augment = loaded.student.recipe.augment
    all_views = loaded.with_augment(augment.model_copy(update={"views": None}))
    if "views" not in _part(stored, "student", "recipe", "augment") and all_views.pooled() == loaded:
        loaded = all_views
    if "cuda_batch" not in _part(stored, "latency"):
        loaded = loaded.model_copy(update={"latency": loaded.latency.model_copy(update={"cuda_batch": None})})
    if "distillation" not in {*loaded.model_fields_set, *stored}:
        loaded = loaded.model_copy(update={"distillation": 1})
    choice = precisions.adopted(plan.precision, stored, plan.device)
    return dataclasses.replace(plan, spec=loaded, precision=choice)


def _part(stored: object, *keys: str) -> Mapping[str, Any]:
    """Return a part of a stored definition, which may have any form; empty if it is missing or not a mapping."""
    for key in keys:
        stored = stored.get(key) if isinstance(stored, Mapping) else None
    return stored if isinstance(stored, Mapping) else {}


def rejoin(
    study: Study, *, url: str, data_dir: str | None = None, device: str = "auto", precision: str = "auto"
) -> Plan:
    """Return the plan of an existing study, with the data on this machine; the precision "auto" is the study's.

    Raises:
        KdsearchError: the study was not made by kdsearch, or its data or the device are missing here.
    """
    check_own(study)
    definition = _whole(study.user_attrs.get(StudyAttr.DEFINITION))
    loaded = spec.from_dict(study.user_attrs[StudyAttr.STUDY_FILE])
    networks.check_families(loaded)
    chosen = machine.resolve_device(device)
    split = data.split(data.load(loaded.data, machine.data_folder(data_dir)), loaded.data, chosen)
    cost = definition["cost"]
    check_cost(cost)
    precisions.check(precision)
    own = precisions.kept_by(definition, chosen)
    choice = own if precision == "auto" else choose_precision(precision, loaded, split, chosen)
    return Plan(
        spec=loaded, split=split, device=chosen, cost=cost, name=study.study_name, url=url, data_dir=data_dir,
        precision=choice, any_gpu=_names_none(device, chosen),
    )  # fmt: skip


def _whole(stored: object) -> Mapping[str, Any]:
    """Return a study's stored definition, if it holds what is read of it without asking (else DefinitionError)."""
    found = _part(stored)
    read = (found.get("cost"), *(_part(found, key).get("fingerprint") for key in ("data", "teacher")))
    if not all(isinstance(value, str) for value in read):
        raise DefinitionError("the stored definition must be whole", got=stored, remedy="restore a copy of the storage")
    return found


def hidden_plugins(plan: Plan) -> list[str]:
    """Return a line for each plugin that this study might seem to use, but does not."""
    used = {
        "datasets": (plan.spec.data.name.partition(":")[0], data.BUILT_IN),
        "students": (plan.spec.student.family, networks.STUDENTS),
        "teachers": (plan.spec.teacher.family, networks.TEACHERS),
        "costs": (plan.cost, COSTS),
    }
    return [line for kind, (name, own) in used.items() if name in own for line in plugins.hidden(kind, {name})]


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Refuse a value that is not among the choices (KdsearchError)."""
    if value not in choices:
        raise KdsearchError(f"{option} must be known", got=value, remedy=f"choose one of {', '.join(choices)}")
