"""Conversion between a search space, a trial and a configuration; anchors are enqueued as trials that run first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import optuna
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from kdsearch import networks
from kdsearch.records import DISTILLATION, Attr, Config, architecture, was_handed_back
from kdsearch.spec import Dimension, Range, Stages, StudySpec

MAX_FAILURES = 3  # of one configuration, after which it is not tried again
DIGITS = 10  # without rounding, a stepped range gives 0.15000000000000002


class Suggester(Protocol):
    """Interface for drawing a configuration: an Optuna trial or a draft of one."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Draw a whole number."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Draw a number."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Draw one of the choices."""


def _suggest(trial: Suggester, name: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Stages):
        return _suggest_stages(trial, name, dimension)
    if isinstance(dimension, list):
        return trial.suggest_categorical(name, dimension)
    if not isinstance(dimension, Range):
        return dimension
    low, high, step = dimension.low, dimension.high, dimension.step
    if dimension.integer:
        return trial.suggest_int(name, int(low), int(high), step=int(step or 1), log=dimension.log)
    value = trial.suggest_float(name, low, high, step=step, log=dimension.log)
    return round(value, DIGITS) if step else value


def _suggest_stages(trial: Suggester, name: str, dimension: Stages) -> list[int]:
    blocks: list[int] = []
    for index in range(dimension.stages):
        if blocks and blocks[-1] == 0:
            blocks.append(0)  # no stage follows one of 0 blocks, so nothing is sampled
        else:
            low = max(1, dimension.low) if index == 0 else dimension.low
            blocks.append(trial.suggest_int(f"{name}_{index + 1}", low, dimension.high))
    return blocks


def suggest(
    trial: Suggester, space: dict[str, Dimension], conditional: Mapping[str, networks.Condition] | None = None
) -> Config:
    """Sample a configuration, without the parameters that would have no effect.

    Stages are sampled as `blocks_1`, `blocks_2`, ...; the temperature only if the loss weight is above 0.

    Args:
        space: `[space]` of a study.
        conditional: see `networks.Family`; None: all dimensions have an effect.
    """
    conditional = conditional or {}
    own = [name for name in architecture(space) if name not in conditional]
    config = {name: _suggest(trial, name, space[name]) for name in own}
    for name, has_effect in conditional.items():
        if name in space and has_effect(config):
            config[name] = _suggest(trial, name, space[name])
    for name in DISTILLATION:
        if name in space and (name != "temperature" or config["loss_weight"] > 0):
            config[name] = _suggest(trial, name, space[name])
    return config


def draw(trial: Suggester, spec: StudySpec) -> Config:
    """Sample a configuration of a study, with the conditions of its student family."""
    return suggest(trial, spec.space, networks.conditions(spec.student.family))


def draws(spec: StudySpec) -> Iterator[Config]:
    """Yield configurations drawn at random from the space, the same ones each time."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    while True:
        yield draw(study.ask(), spec)


def architecture_key(config: Config) -> str:
    """Return a text that two configurations share if their architecture is the same."""
    return json.dumps(architecture(config), sort_keys=True)


def trial_parameters(config: Config, space: dict[str, Dimension]) -> dict[str, Any]:
    """Return the parameters with which `suggest` gives this configuration, for `study.enqueue_trial`."""
    parameters: dict[str, Any] = {}
    for name, value in config.items():
        dimension = space[name]
        if isinstance(dimension, Stages):
            sampled = value[: value.index(0) + 1] if 0 in value else value
            parameters |= {f"{name}_{index}": blocks for index, blocks in enumerate(sampled, start=1)}
        elif isinstance(dimension, Range | list):
            parameters[name] = value
    return parameters


def enqueue_missing(
    study: Study, spec: StudySpec, *, at_most: int | None, trials: Sequence[FrozenTrial] | None = None
) -> bool:
    """Enqueue those of the first `at_most` anchors (None: all) that are neither waiting, running nor complete.

    An anchor that failed three times is not enqueued again; a killed worker does not count as a failure.

    Args:
        trials: of the study, if just read; None: they are read here.

    Returns:
        Whether any was enqueued.
    """
    seen = Counter(
        (trial.user_attrs.get(Attr.ANCHOR), trial.state)
        for trial in (study.get_trials(deepcopy=False) if trials is None else trials)
        if trial.state != TrialState.FAIL or not was_handed_back(trial.user_attrs)
    )
    lacking = [
        name
        for name in list(spec.anchors)[:at_most]
        if not any(seen[name, state] for state in (TrialState.COMPLETE, TrialState.WAITING, TrialState.RUNNING))
        and seen[name, TrialState.FAIL] < MAX_FAILURES
    ]
    for name in lacking:
        parameters = trial_parameters(spec.anchors[name].config, spec.space)
        study.enqueue_trial(parameters, user_attrs={Attr.ANCHOR: name})
    return bool(lacking)
