"""Compare anytime recipes with one-cycle schedules that are planned for each length, on one student."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from kdsearch.distil import lesson
from kdsearch.distil.answers import Answers, ViewAnswers
from kdsearch.errors import KdsearchError, TrialError
from kdsearch.measure import accuracy
from kdsearch.records import Config, Progress
from kdsearch.search.plan import Plan
from kdsearch.search.workshop import Workshop
from kdsearch.spec import Recipe, StudySpec, dimension_holds
from kdsearch.system import machine

ONE_CYCLE = "one-cycle"
POWER = 8.0  # exponent of the weight average: its window is about the last ninth of the steps
# schedule-free SGD's rate is that of its inner iterate, without momentum's factor of 1 / (1 - 0.9)
SCHEDULE_FREE_FACTOR = 10.0


def _last(recipe: Recipe) -> dict[str, Any]:
    return {"schedule": "constant"}


def _averaged(recipe: Recipe) -> dict[str, Any]:
    return {"schedule": "constant", "averaging": POWER}


def _schedule_free(recipe: Recipe) -> dict[str, Any]:
    return {"optimizer": "schedulefree", "lr": SCHEDULE_FREE_FACTOR * recipe.lr, "nesterov": False,
            "momentum": recipe.momentum or 0.9}  # fmt: skip


def _one_cycle(recipe: Recipe) -> dict[str, Any]:
    return {"schedule": "onecycle"}


RECIPES: dict[str, Callable[[Recipe], dict[str, Any]]] = {
    "last weights": _last,
    "averaged": _averaged,
    "schedule-free": _schedule_free,
    ONE_CYCLE: _one_cycle,
}


@dataclass(frozen=True)
class Options:
    """The student, lengths, rates and seeds to compare.

    Attributes:
        config: the student's full configuration; its number of epochs is ignored.
        lengths: epochs at which a training may end.
        rates: multiples of the study file's learning rate, each tried by every recipe.
        seeds: of trainings.
    """

    config: Config
    lengths: Sequence[int]
    rates: Sequence[float]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Outcome:
    """A student's accuracy after some epochs of a training.

    Attributes:
        recipe: key of `RECIPES`.
        rate: multiple of the study file's learning rate.
        seed: of the training.
        epochs: so far; for a one-cycle schedule, its planned length.
        accuracy, test_accuracy: validation and test, fractions; 0 where the training diverged.
    """

    recipe: str
    rate: float
    seed: int
    epochs: int
    accuracy: float
    test_accuracy: float


def student_config(spec: StudySpec, given: str | None) -> Config:
    """Return the student to train: an anchor of the study file, or an anchor changed by a JSON object.

    Args:
        spec: the study file, with one anchor at least.
        given: an anchor's name or a JSON object of keys that replace the first anchor's; None: the first anchor.

    Raises:
        KdsearchError: the anchor does not exist, the text is no JSON object, or a value is outside the space.
    """
    anchors = {name: anchor.config for name, anchor in spec.anchors.items()}
    usual = next(iter(anchors.values()), None)
    if given is None or given in anchors:
        config = usual if given is None else anchors[given]
    else:
        try:
            changes = json.loads(given)
        except json.JSONDecodeError:
            changes = None
        config = {**(usual or {}), **changes} if isinstance(changes, dict) else None
    if config is None:
        raise KdsearchError(
            "--student must be an anchor of the study file or a JSON object",
            got=given,
            remedy=f"choose one of {', '.join(anchors)}" if anchors else "give an object with every key of the space",
        )
    if config.get("loss_weight") == 0:
        config.pop("temperature", None)
    for key, value in config.items():
        if key not in spec.space or not dimension_holds(spec.space[key], value):
            raise KdsearchError(
                "--student must lie in the study's space", got=f"{key} = {value}", remedy=f"see space.{key}"
            )
    return config


def recipe_for(name: str, base: Recipe, rate: float) -> Recipe:
    """Return a recipe by name.

    Args:
        name: key of `RECIPES`.
        base: the study file's recipe, which provides everything else.
        rate: multiple of its learning rate.
    """
    scaled = base.model_copy(update={"lr": rate * base.lr, "averaging": None})
    return Recipe.model_validate(scaled.model_dump() | RECIPES[name](scaled))


def measure(plan: Plan, options: Options, progress: Progress | None = None) -> list[Outcome]:
    """Train the student by every recipe, at every rate, from every seed.

    Args:
        plan: study file and data.
        options: what to compare.
        progress: notified of each training.

    Raises:
        KdsearchError: lengths, rates or seeds are empty, or one is below 1 (rates: not above 0).
    """
    for option, values, low in (("--epochs", options.lengths, 1), ("--rates", options.rates, 1e-9)):
        if not values or min(values) < low:
            raise KdsearchError(f"{option} must be numbers above 0", got=list(values), remedy="give 1,2,4 for instance")
    progress = progress or Progress()
    taught = _answers(plan, options.config, progress)
    jobs = list(_jobs(options))
    found: list[Outcome] = []
    progress.study_started(0, len(jobs))
    for number, (name, rate, seed, length) in enumerate(jobs):
        progress.trial_started(number, name, {"rate": rate, "epochs": length})
        recipe = recipe_for(name, plan.spec.student.recipe, rate)
        outcomes = list(_training(plan, {**options.config, "epochs": length}, recipe, seed, taught))
        missing = length - len(outcomes)
        outcomes += [(0.0, 0.0)] * missing
        kept = [length] if name == ONE_CYCLE else options.lengths
        found += [Outcome(name, rate, seed, epochs, *outcomes[epochs - 1]) for epochs in kept]
        text = f"{name}, rate x {rate:g}: test accuracy {outcomes[-1][1]:.2%}"
        progress.trial_finished(number, "COMPLETE" if not missing else "FAIL", text, counted=True)
    return found


def _jobs(options: Options) -> Iterator[tuple[str, float, int, int]]:
    """Yield recipe, rate, seed and length of every training; a one-cycle schedule needs one training a length."""
    for seed in options.seeds:
        for rate in options.rates:
            for name in RECIPES:
                for length in options.lengths if name == ONE_CYCLE else [max(options.lengths)]:
                    yield name, rate, seed, length


def _answers(plan: Plan, config: Config, progress: Progress) -> Answers | ViewAnswers | None:
    """Return the teacher's outputs, where the student's loss uses them."""
    if not lesson.needs_teacher(config):
        return None
    return Workshop.open(plan, progress).answers


def _training(
    plan: Plan, config: Config, recipe: Recipe, seed: int, answers: Answers | ViewAnswers | None
) -> Iterator[tuple[float, float]]:
    """Yield validation and test accuracy after each epoch, until the training ends or diverges."""
    split = plan.split
    student_spec = plan.spec.student.model_copy(update={"recipe": recipe})
    student = lesson.build(student_spec, config, seed=seed, split=split)
    trial_seed = machine.derive_seed("recipes", seed)

    def score(network: nn.Module) -> float:
        return accuracy(network, split.validation, split.prepare)

    epochs = lesson.teach(
        student, config, seed=trial_seed, data=split.train, prepare=split.prepare, answers=answers,
        student_spec=student_spec, mix=lesson.mix_of(plan.spec), precision=plan.precision.name, validate=score,
    )  # fmt: skip
    try:
        for record in epochs:
            yield record.accuracy, accuracy(student, split.test, split.prepare)
    except TrialError:
        return
    finally:
        if answers is not None:
            answers.keep()


def best_rate(found: Sequence[Outcome], recipe: str) -> float:
    """Return the rate with the highest mean validation accuracy over lengths and seeds: a search has a single rate."""
    rates = {one.rate for one in found if one.recipe == recipe}
    return max(sorted(rates), key=lambda rate: statistics.fmean(_of(found, recipe, rate, "accuracy")))


def _of(found: Sequence[Outcome], recipe: str, rate: float, what: str, epochs: int | None = None) -> list[float]:
    chosen = [one for one in found if (one.recipe, one.rate) == (recipe, rate) and epochs in (None, one.epochs)]
    return [getattr(one, what) for one in sorted(chosen, key=lambda one: (one.seed, one.epochs))]


def scores(found: Sequence[Outcome], recipe: str, epochs: int | None = None) -> list[float]:
    """Return test accuracies at the recipe's best rate, by seed and, without `epochs`, by length too."""
    return _of(found, recipe, best_rate(found, recipe), "test_accuracy", epochs)


def best_anytime(found: Sequence[Outcome]) -> str:
    """Return the recipe other than one-cycle with the highest mean validation accuracy, each at its best rate."""
    return max(
        (name for name in RECIPES if name != ONE_CYCLE),
        key=lambda name: statistics.fmean(_of(found, name, best_rate(found, name), "accuracy")),
    )
