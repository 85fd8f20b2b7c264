"""What a run is to do: the study file, the data and the device, checked before any work begins."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from optuna import Study

from kdsearch import data, networks, spec
from kdsearch.errors import DefinitionError, KdsearchError
from kdsearch.measure import COSTS, ONNX, deployed
from kdsearch.measure import cost as find_cost
from kdsearch.records import StudyAttr
from kdsearch.storage import DEFAULT_STORAGE
from kdsearch.system import machine, plugins

DEFAULT_DATASET = "digits"


@dataclass(frozen=True)
class Plan:
    """What a run is to do, checked but with nothing trained yet.

    Attributes:
        spec: the study file with the limits of the command line.
        split: data on the device.
        device: where trials are trained.
        cost: name of a cost (`measure.cost`).
        name: of the Optuna study.
        url: of its storage.
        data_dir: where data sets lie, as given.
    """

    spec: spec.StudySpec
    split: data.Split
    device: torch.device
    cost: str
    name: str
    url: str
    data_dir: str | None = None


def read_spec(dataset: str | None, study: str | Path | None) -> spec.StudySpec:
    """The study file for a data set, a study file's own data set, or both where they agree.

    Raises:
        KdsearchError: an unknown data set, an unusable study file, or one for another data set.
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
    networks.check_whole(loaded)
    return loaded


def check_cost(cost: str) -> None:
    """Refuses a cost that is unknown, or whose packages are missing.

    Raises:
        KdsearchError: it is.
    """
    if cost == ONNX:
        deployed.require(f"--cost {ONNX}")
    else:
        find_cost(cost)


def make_plan(
    *,
    dataset: str | None = None,
    study: str | Path | None = None,
    name: str | None = None,
    storage_url: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    cost: str = "latency",
    train_size: int | None = None,
    max_epochs: int | None = None,
) -> Plan:
    """Checks all that can be checked before work begins, and loads the data.

    Raises:
        KdsearchError: anything is unknown, missing or broken.
    """
    chosen = machine.resolve_device(device)
    check_cost(cost)
    loaded = read_spec(dataset, study).limited(train_size=train_size, max_epochs=max_epochs)
    split = data.split(data.load(loaded.data, machine.data_folder(data_dir)), loaded.data, chosen)
    networks.check_students(loaded, split.shape, len(split.classes))
    title = name or Path(loaded.data.name.replace(":", "/")).name
    url = storage_url or os.environ.get("OPTUNA_STORAGE") or DEFAULT_STORAGE
    return Plan(spec=loaded, split=split, device=chosen, cost=cost, name=title, url=url, data_dir=data_dir)


def check_own(study: Study) -> None:
    """Refuse a study that another program made: its trials are not students of a study file.

    Raises:
        DefinitionError: it is.
    """
    if StudyAttr.STUDY_FILE not in study.user_attrs:
        raise DefinitionError(
            "the study must have been made by kdsearch (`kdsearch optimize`); this is not a study of kdsearch",
            got=study.study_name,
            remedy="name another with --name (`status`, `pick` and `report` show any study)",
        )


def rejoin(study: Study, *, url: str, data_dir: str | None = None, device: str = "auto") -> Plan:
    """The plan of a study that is there, with the data as this machine has them.

    Raises:
        KdsearchError: the study is not of kdsearch, or its data or the device are missing here.
    """
    check_own(study)
    loaded = spec.from_dict(study.user_attrs[StudyAttr.STUDY_FILE])
    networks.check_families(loaded)
    chosen = machine.resolve_device(device)
    split = data.split(data.load(loaded.data, machine.data_folder(data_dir)), loaded.data, chosen)
    cost = study.user_attrs[StudyAttr.DEFINITION]["cost"]
    check_cost(cost)
    return Plan(spec=loaded, split=split, device=chosen, cost=cost, name=study.study_name, url=url, data_dir=data_dir)


def hidden_plugins(plan: Plan) -> list[str]:
    """A line for each package whose plugin this study could seem to use, and does not."""
    used = {
        "datasets": (plan.spec.data.name.partition(":")[0], data.BUILT_IN),
        "students": (plan.spec.student.family, networks.STUDENTS),
        "teachers": (plan.spec.teacher.family, networks.TEACHERS),
        "costs": (plan.cost, COSTS),
    }
    return [line for kind, (name, own) in used.items() if name in own for line in plugins.hidden(kind, {name})]


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Refuses a value that is not among the choices.

    Raises:
        KdsearchError: it is not.
    """
    if value not in choices:
        raise KdsearchError(f"{option} must be known", got=value, remedy=f"choose one of {', '.join(choices)}")
