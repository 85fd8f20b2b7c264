"""Compare anytime recipes with one-cycle schedules that are planned for each length, on one student."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from torch import nn

from kdsearch.distil import lesson
from kdsearch.distil.answers import Answers, ViewAnswers
from kdsearch.errors import KdsearchError, TrialError
from kdsearch.measure import accuracy
from kdsearch.records import Config, Progress
from kdsearch.reporting import formatting
from kdsearch.reporting.figures import style
from kdsearch.reporting.pages import document
from kdsearch.reporting.pages.assets import Library
from kdsearch.reporting.pages.document import Document, Grid, Section
from kdsearch.search.plan import Plan
from kdsearch.search.workshop import Workshop
from kdsearch.spec import Recipe, StudySpec, dimension_holds
from kdsearch.stats import Interval, mean_interval
from kdsearch.system import machine

SCHEDULE_FREE, ONE_CYCLE = "schedule-free", "one-cycle"
POWER = 8.0  # exponent of the weight average: its window is about the last ninth of the steps
# schedule-free SGD's rate is that of its inner iterate, without momentum's factor of 1 / (1 - 0.9)
SCHEDULE_FREE_FACTOR = 10.0
LIMITS = {"--epochs": (1, 10**6), "--rates": (1e-9, 1e100)}  # larger multiples of a rate are not finite
RECIPES: dict[str, dict[str, Any]] = {
    "last weights": {"schedule": "constant"},
    "averaged": {"schedule": "constant", "averaging": POWER},
    SCHEDULE_FREE: {"optimizer": "schedulefree", "nesterov": False},
    ONE_CYCLE: {"schedule": "onecycle"},
}
HOW = (
    "A pruner compares students epoch by epoch, and every checkpoint may be the one that is shipped: so a recipe is "
    "judged by the accuracy it has after each of several lengths. `one-cycle` is planned for one length, so it is "
    "trained anew for each: the others are trained once, and scored on the way. That makes it the hardest rival and "
    "no choice for a search.",
    f"`averaged` takes the weights' running average with power {POWER:g}, about the last ninth of the steps so far; "
    "`schedule-free` is its authors' SGD, its learning rate ten times the others' as it lacks momentum's factor, batch "
    "norm's statistics computed again from 20 batches at each epoch's end.",
    "Each recipe tries every learning rate and keeps the one with the highest mean validation accuracy over all "
    "lengths; what is shown is test accuracy. A training whose loss did not stay finite counts as 0 from there on.",
)


@dataclass(frozen=True)
class Options:
    """The student, lengths, rates and seeds to compare."""

    config: Config  # the student's, in full; its number of epochs is ignored
    lengths: Sequence[int]  # epochs at which a training may end
    rates: Sequence[float]  # multiples of the study file's learning rate, each tried by every recipe
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
        KdsearchError: the anchor does not exist, the text is no JSON object, a value is outside the space, or one that
            has an effect is missing.
    """
    anchors = {name: anchor.config for name, anchor in spec.anchors.items()}
    usual = next(iter(anchors.values()), None)
    config = usual if given is None else anchors.get(given)
    if config is None and given is not None:
        with contextlib.suppress(json.JSONDecodeError):
            changes = json.loads(given)
            config = (usual or {}) | changes if isinstance(changes, dict) else None
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
    if lacking := sorted(spec.effective(config) - {"epochs"} - set(config)):
        raise KdsearchError(
            "--student must set every dimension that has an effect",
            got=f"no {', '.join(lacking)}",
            remedy="give every key of the space",
        )
    return config


def recipe_for(name: str, base: Recipe, rate: float) -> Recipe:
    """Return a recipe of `RECIPES` at a multiple of the rate of a base, which gives everything else."""
    scaled = base.model_copy(update={"lr": rate * base.lr, "averaging": None})
    changes = RECIPES[name]
    if name == SCHEDULE_FREE:
        changes = changes | {"lr": SCHEDULE_FREE_FACTOR * scaled.lr, "momentum": scaled.momentum or 0.9}
    return Recipe.model_validate(scaled.model_dump() | changes)


def measure(plan: Plan, options: Options, progress: Progress | None = None) -> list[Outcome]:
    """Train the student by every recipe, at every rate, from every seed.

    Raises:
        KdsearchError: lengths, rates or seeds are empty, or one is below 1 (rates: not above 0) or above `LIMITS`.
    """
    for option, values in {"--epochs": options.lengths, "--rates": options.rates}.items():
        low, high = LIMITS[option]
        if not values or min(values) < low:
            raise KdsearchError(f"{option} must be numbers above 0", got=list(values), remedy="give 1,2,4 for instance")
        if max(values) > high:
            raise KdsearchError(f"{option} must be at most {high:g}", got=max(values), remedy="give 1,2,4 for instance")
    progress = progress or Progress()
    taught = Workshop.open(plan, progress).answers if lesson.needs_teacher(options.config) else None
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
        line = f"{name}, rate x {rate:g}: test accuracy {outcomes[-1][1]:.2%}"
        progress.trial_finished(number, "FAIL" if missing else "COMPLETE", line, counted=True)
    return found


def _jobs(options: Options) -> Iterator[tuple[str, float, int, int]]:
    """Yield recipe, rate, seed and length of every training; a one-cycle schedule needs one training a length."""
    for seed in options.seeds:
        for rate in options.rates:
            for name in RECIPES:
                for length in options.lengths if name == ONE_CYCLE else [max(options.lengths)]:
                    yield name, rate, seed, length


def _training(
    plan: Plan, config: Config, recipe: Recipe, seed: int, answers: Answers | ViewAnswers | None
) -> Iterator[tuple[float, float]]:
    """Yield validation and test accuracy after each epoch, until the training ends or diverges."""
    split = plan.split
    student_spec = plan.spec.student.model_copy(update={"recipe": recipe})
    student = lesson.build(student_spec, config, seed=seed, split=split)

    def score(network: nn.Module) -> float:
        return accuracy(network, split.validation, split.prepare)

    epochs = lesson.teach(
        student, config, seed=machine.derive_seed("recipes", seed), data=split.train, prepare=split.prepare,
        answers=answers, student_spec=student_spec, mix=lesson.mix_of(plan.spec), precision=plan.precision.name,
        validate=score,
    )  # fmt: skip
    try:
        for record in epochs:
            yield record.accuracy, accuracy(student, split.test, split.prepare)
    except TrialError:
        return
    finally:
        if answers is not None:
            answers.keep()


def _validation(found: Sequence[Outcome], recipe: str, rate: float) -> float:
    """Return the mean validation accuracy over lengths and seeds."""
    return statistics.fmean(one.accuracy for one in found if (one.recipe, one.rate) == (recipe, rate))


def best_rate(found: Sequence[Outcome], recipe: str) -> float:
    """Return the rate with the highest mean validation accuracy over lengths and seeds: a search has a single rate."""
    rates = sorted({one.rate for one in found if one.recipe == recipe})
    return max(rates, key=lambda rate: _validation(found, recipe, rate))


def best_anytime(found: Sequence[Outcome]) -> str:
    """Return the recipe other than one-cycle with the highest mean validation accuracy, each at its best rate."""
    names = [name for name in RECIPES if name != ONE_CYCLE]
    return max(names, key=lambda name: _validation(found, name, best_rate(found, name)))


def scores(found: Sequence[Outcome], recipe: str, epochs: int) -> list[float]:
    """Return test accuracies after some epochs at the recipe's best rate, one a seed."""
    wanted = recipe, best_rate(found, recipe), epochs
    return [one.test_accuracy for one in found if (one.recipe, one.rate, one.epochs) == wanted]


def _score(found: Sequence[Outcome], recipe: str, epochs: int) -> Interval:
    """Return the mean of `scores`, without an interval for a single seed."""
    values = scores(found, recipe, epochs)
    return mean_interval(values) if len(values) > 1 else Interval(values[0], values[0], values[0], 1)


def _shown(found: Sequence[Outcome], recipe: str, epochs: int) -> str:
    score = _score(found, recipe, epochs)
    return formatting.percent(score.mean) if score.n == 1 else formatting.span(score.mean, score.low, score.high)


def result(found: Sequence[Outcome], options: Options, plan: Plan, *, command: str) -> dict[str, Any]:
    """Return what `--json` prints and `bench-recipes.json` holds; accuracies are fractions."""
    best = best_anytime(found)
    gaps = [_score(found, ONE_CYCLE, n).mean - _score(found, best, n).mean for n in options.lengths]
    return {
        "best": best,
        "recipes": {
            name: {
                "rate": best_rate(found, name),
                "test_accuracy": {str(n): _score(found, name, n).mean for n in options.lengths},
            }
            for name in RECIPES
        },
        "less_than_one_cycle": statistics.fmean(gaps),  # over lengths
        "options": asdict(options),
        "data": {"name": plan.spec.data.name, "train": len(plan.split.train), "validation": len(plan.split.validation)},
        "recipe": plan.spec.student.recipe.model_dump(mode="json"),
        "outcomes": [asdict(one) for one in found],
        "environment": machine.environment(plan.device),
        "command": command,
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def report(found: Sequence[Outcome], options: Options, made: dict[str, Any]) -> Document:
    """Return the page's text, figure and tables."""
    best, gap = made["best"], made["less_than_one_cycle"]
    verdict = (
        f"Of the recipes that may stop at any epoch, `{best}` does best here; over all lengths it stays "
        f"{100 * abs(gap):.2f} points {'below' if gap >= 0 else 'above'} a one-cycle rate planned for each."
    )
    header = ("recipe", "rate", *(f"{n} epoch{'s' if n > 1 else ''}" for n in options.lengths))
    lengths = [
        [name, f"x {best_rate(found, name):g}", *(_shown(found, name, n) for n in options.lengths)] for name in RECIPES
    ]
    rates = [
        [name, *(formatting.percent(_validation(found, name, rate)) for rate in options.rates)] for name in RECIPES
    ]
    data, recipe = made["data"], made["recipe"]
    facts = [
        f"Made by `{made['command']}` on {made['made']}.",
        document.versions(made["environment"]),
        f"Student: {formatting.configuration(options.config)}.",
        f"Data: {data['name']}, {data['train']:,} training images, {data['validation']:,} for validation.",
        f"The study file's recipe: {', '.join(f'{key} {value}' for key, value in recipe.items())}.",
        f"{len(options.seeds)} seed(s) each; rates tried: {', '.join(f'x {rate:g}' for rate in options.rates)}.",
    ]
    sections = [
        Section("Test accuracy by length", figure=figure(found, options), grid=Grid(header, lengths),
                note="Mean over seeds, with its 95 % interval (Student's t) where there are several."),
        Section("How it was measured", HOW),
        Section("Every rate", grid=Grid(("recipe", *(f"rate x {rate:g}" for rate in options.rates)), rates),
                note="Mean validation accuracy over lengths and seeds."),
    ]  # fmt: skip
    return Document("Bench of recipes", verdict, facts, sections)


def figure(found: Sequence[Outcome], options: Options) -> go.Figure:
    """Draw mean test accuracy against epochs, a line a recipe."""
    drawn = go.Figure()
    for name, colour, symbol in zip(RECIPES, style.CYCLE, style.SYMBOLS, strict=False):
        means = [_score(found, name, n) for n in options.lengths]
        drawn.add_scatter(
            x=list(options.lengths), y=style.rounded(100 * mean.mean for mean in means), name=name,
            mode="lines+markers", line={"color": colour, "dash": "dash" if name == ONE_CYCLE else "solid"},
            marker={"symbol": symbol, "size": 9},
            error_y={"array": style.rounded(100 * (mean.high - mean.mean) for mean in means), "visible": True},
        )  # fmt: skip
    x_axis = {"title": {"text": "epochs of training"}, "tickvals": list(options.lengths)}
    drawn.update_layout(style.layout(x_axis, {"title": {"text": style.TITLES["test_accuracy"]}}, height=380, rows=2))
    return drawn


def write(
    found: Sequence[Outcome], options: Options, made: dict[str, Any], folder: Path, *, plotlyjs: Library = "inline"
) -> Path:
    """Write `bench-recipes.html`, `.md` and `.json`, each atomically, and return the page's path.

    Raises:
        KdsearchError: a file cannot be written.
    """
    return document.write(report(found, options, made), folder, "bench-recipes", plotlyjs=plotlyjs, result=made)


def text(found: Sequence[Outcome], options: Options, made: dict[str, Any]) -> str:
    """Return a line a recipe, for a terminal."""
    lines = [
        f"{name:<14} rate x {best_rate(found, name):g}: "
        + ", ".join(f"{n}: {_shown(found, name, n)}" for n in options.lengths)
        for name in RECIPES
    ]
    return "\n".join([*lines, f"best at every epoch: {made['best']}"])
