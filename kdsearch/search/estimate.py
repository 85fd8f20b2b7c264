"""The plan of a run with estimated times, from a few timed steps and forward passes; nothing is trained to its end.

The seconds of a training step and of a forward pass are measured for some configurations, spread over the search
space, with their own batch sizes. A linear model with four non-negative terms (a constant per layer, an update per
parameter, operations, values written) extrapolates them to all others (`Pace`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from scipy.optimize import nnls
from torch import Tensor, nn

from kdsearch.data import views
from kdsearch.distil import answers, lesson, teacher, train
from kdsearch.distil.loss import distillation_loss
from kdsearch.distil.step import EAGER_STEPS, format_for
from kdsearch.measure import ONNX, latency
from kdsearch.measure.accuracy import BATCH
from kdsearch.networks import cpu_layers
from kdsearch.records import Config, TeacherFacts
from kdsearch.search import space
from kdsearch.search.budget import Budget
from kdsearch.search.plan import Plan, build_student
from kdsearch.search.run_options import CANDIDATES
from kdsearch.search.study import counts_seconds
from kdsearch.search.workshop import Workshop
from kdsearch.sittings import LEAST as SITTINGS
from kdsearch.spec import Recipe
from kdsearch.system import machine

DRAWS = 100  # configurations that represent a sampler's draws
MEASURED, LEAST = 10, 5  # configurations whose steps are timed, and how many at least whatever the time
SECONDS = 10.0  # after which no further configuration is timed
WARM_UP = {"cpu": 1, "cuda": EAGER_STEPS + 1}  # steps that are not counted
STEPS = {"cpu": 6, "cuda": 4 * EAGER_STEPS}  # timed steps
ENOUGH_STEPS, ENOUGH_SECONDS = 2, 1.0  # of timed steps, if a step takes long
MOST_OPERATIONS = 4e10  # of a timed batch's forward pass on a CPU: more would take minutes at the same cost per image
ASKED = {"cpu": 100, "cuda": BATCH}  # images in the timed passes of teacher and students
FRONT = 10  # approximate number of front members that are timed again
SLOW_CALL = 0.3  # seconds of a teacher's call, from which a sitting's length is known without taking one
TRIAL_SECONDS, EPOCH_SECONDS = 0.4, 0.04  # search and storage per trial and per epoch (MNIST's 100 trials: 56 s)
# of the planned training, saved by pruning in 100 trials: where promise counts by the epoch, and where by the second
# (epochs weighted by operations: trainings that cost most are given up soonest; 48 % on a CPU, 46 % on a GPU)
PRUNED_SHARE = {False: 344 / 897, True: 0.47}
PRUNING_SEEN = {
    False: "MNIST's 100 trials, reports/examples/mnist.md",
    True: "CIFAR-10's 100 trials, epochs weighted by operations, reports/examples/cifar10.md",
}


class _Enough(Exception):  # noqa: N818 -- not an error: ends a training of which enough steps have been timed
    pass


def step_seconds(network: nn.Module, plan: Plan, batch: int, recipe: Recipe) -> float:
    """Return the mean seconds of an optimiser step in training, after a warm-up; this changes the network."""
    warm, most = WARM_UP[plan.device.type], STEPS[plan.device.type]
    shown_images = batch * (warm + most + 1)  # the last batch only ends the step before it
    part = plan.split.train.subset(torch.arange(shown_images, device=plan.device) % len(plan.split.train))
    shown = views.shown(recipe.augment)
    seen = (len(part), shown) if views.count(recipe.augment) > 1 else (len(part),)
    ends: list[float] = []

    def on_step(step: int) -> None:
        if step >= warm:
            ends.append(_now(plan.device))
        if len(ends) > most or (len(ends) > ENOUGH_STEPS and ends[-1] - ends[0] > ENOUGH_SECONDS):
            raise _Enough  # before the epoch ends: a few steps may diverge, which only a trial may be judged by

    lesson = train.Lesson(
        data=part,
        prepare=plan.split.prepare,
        loss=lambda batch: distillation_loss(
            batch.logits, batch.labels, batch.teacher_logits, loss_weight=0.5, temperature=4.0
        ),
        teacher_logits=torch.zeros((), device=plan.device).expand(*seen, len(plan.split.classes)),
        epochs=1,
        batch_size=batch,
        seed=0,
        precision=plan.precision.name,
        on_step=on_step,
    )
    with contextlib.suppress(_Enough):
        next(train.Run(network, lesson, recipe, validate=lambda _: 0.0))
    return statistics.fmean(b - a for a, b in itertools.pairwise(ends))


def _now(device: torch.device) -> float:
    machine.synchronize(device)
    return time.perf_counter()


def call_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the mean seconds of a warm call: of a few calls, or of one that takes long."""
    count, passed = 0, 0.0
    with torch.inference_mode():
        call()
        begin = _now(device)
        while passed <= ENOUGH_SECONDS / 4 and count < STEPS["cuda"]:
            call()
            count, passed = count + 1, _now(device) - begin
    return passed / count


@dataclass(frozen=True)
class Size:
    """The quantities that determine a network's seconds."""

    layers: int
    parameters: int
    operations: float  # of a forward pass of one image, as are the values: activations that the layers write
    values: float


def size_of(network: nn.Module, image: Tensor) -> Size:
    """Count the size of a network, which is left in evaluation mode, on an image: (1, channels, height, width)."""
    leaves = [module for module in network.modules() if not list(module.children())]
    operations = values = 0.0

    def count(module: nn.Module, _: object, output: object) -> None:
        nonlocal operations, values
        if isinstance(output, Tensor):
            weight = getattr(module, "weight", None)
            values += output.numel()
            if isinstance(weight, Tensor) and weight.ndim > 1:  # a product for each value of a kernel or row
                operations += 2.0 * output.numel() * weight[0].numel()

    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    with torch.no_grad():
        network.eval()(image)
    for hook in hooks:
        hook.remove()
    return Size(len(leaves), sum(each.numel() for each in network.parameters()), operations, values)


def sizes_of(plan: Plan) -> Callable[[Config], Size]:
    """Return a function that counts the size of a configuration's student, each architecture once."""
    image = torch.zeros(1, *plan.split.shape)

    @cache
    def counted(key: str) -> Size:
        built = partial(build_student, plan.spec, plan.split, json.loads(key))
        try:
            with torch.device("meta"):
                return size_of(built(), image.to("meta"))
        except Exception:  # a plugin's family may need real weights
            return size_of(built(), image)

    return lambda config: counted(space.architecture_key(config))


@dataclass(frozen=True)
class Pace:
    """A linear model of the seconds of a step or pass in a network's size and batch, fitted to measurements."""

    terms: tuple[float, ...]  # seconds per layer, parameter, operation and value; none below 0

    @staticmethod
    def _row(size: Size, batch: int) -> list[float]:
        return [size.layers, size.parameters, batch * size.operations, batch * size.values]

    @classmethod
    def fitted(cls, measured: Sequence[tuple[Size, int, float]]) -> Pace:
        """Fit a pace to (size, batch, seconds) of each measurement by least squares of relative errors."""
        rows = np.array([cls._row(size, batch) for size, batch, _ in measured])
        scale = np.maximum(rows.max(axis=0), 1e-30)  # rescale the columns, else the solver takes small ones for zero
        seconds = np.array([each for *_, each in measured])
        terms, _ = nnls(rows / scale / seconds[:, None], np.ones(len(measured)))
        return cls(tuple((terms / scale).tolist()))

    def seconds(self, size: Size, batch: int) -> float:
        return sum(term * amount for term, amount in zip(self.terms, self._row(size, batch), strict=True))


@dataclass(frozen=True)
class Paces:
    """Paces of a plan's students in training and in scoring."""

    step: Pace
    score: Pace


def spread(configs: Sequence[Config], sizes: Callable[[Config], Size], count: int) -> list[Config]:
    """Return different configurations spread from the least to the most work per step, these two first.

    Configurations of equal architecture and batch size count as one.
    """
    different = {(space.architecture_key(config), config["batch_size"]): config for config in configs}.values()
    ordered = sorted(different, key=lambda config: config["batch_size"] * sizes(config).operations)
    places = dict.fromkeys(round(share * (len(ordered) - 1)) for share in _shares(count))
    return [ordered[place] for place in places]


def _shares(count: int) -> list[float]:
    """Return 0, 1, 1/2, 1/4, 3/4, 1/8, ..., of which every prefix is evenly spread."""
    halves = (odd / 2**power for power in itertools.count(1) for odd in range(1, 2**power, 2))
    return list(itertools.islice(itertools.chain((0.0, 1.0), halves), count))


def measure(plan: Plan, configs: Sequence[Config], sizes: Callable[[Config], Size]) -> Paces:
    """Time the steps and passes of some of these configurations, with their own batch sizes if that is not too slow."""
    steps: list[tuple[Size, int, float]] = []
    scores: list[tuple[Size, int, float]] = []
    passed = ASKED[plan.device.type]
    begin = time.perf_counter()
    for config in spread(configs, sizes, MEASURED):
        if len(steps) >= LEAST and time.perf_counter() - begin > SECONDS:
            break
        size, batch = sizes(config), min(int(config["batch_size"]), len(plan.split.train))
        batch = affordable(batch, size, plan.device)
        student = build_student(plan.spec, plan.split, config).to(plan.device)
        form = format_for(student, plan.device, plan.precision.name)
        with machine.threads(plan.spec.student.threads):
            steps.append((size, batch, step_seconds(student, plan, batch, plan.spec.student.recipe)))
            with form.choosing(plan.device), cpu_layers.faster(student):
                once = call_seconds(partial(student.eval(), plan.split.example(passed)), plan.device)
            scores.append((size, passed, once))
    return Paces(Pace.fitted(steps), Pace.fitted(scores))


def training_seconds(plan: Plan, config: Config, pace: Pace, size: Size) -> float:
    """Return the seconds of training a configuration to its end."""
    batch = min(int(config["batch_size"]), len(plan.split.train))
    whole, rest = divmod(len(plan.split.train), batch)
    epoch = whole * pace.seconds(size, batch) + (pace.seconds(size, rest) if rest > 1 else 0.0)
    return float(config["epochs"]) * epoch


def scoring_seconds(plan: Plan, config: Config, pace: Pace, size: Size) -> float:
    """Return the seconds of scoring the validation images after each epoch and the test images once."""
    scored = int(config["epochs"]) * len(plan.split.validation) + len(plan.split.test)
    passed = ASKED[plan.device.type]
    return scored / passed * pace.seconds(size, passed)


def teacher_seconds(plan: Plan, network: nn.Module) -> float:
    """Return the seconds until the teacher is trained: 0 if it is cached from an earlier study."""
    spec, split = plan.spec.teacher, plan.split
    if teacher.cached_file(spec, split).is_file():
        return 0.0
    batch = split.example(ASKED[plan.device.type])
    scored = (len(split.validation) + len(split.test)) / len(batch)
    seconds = scored * call_seconds(partial(network.eval(), batch), plan.device)
    recipe = spec.recipe
    if spec.weights is not None or recipe is None:
        return seconds
    size = min(recipe.batch_size, len(split.train))
    steps = math.ceil(len(split.train) / size) * recipe.epochs
    timed = affordable(size, size_of(network, batch[:1]), plan.device)
    step = step_seconds(teacher.untrained(spec, split), plan, timed, recipe) * size / timed
    return seconds + step * steps


def affordable(batch: int, size: Size, device: torch.device) -> int:
    """Return how many images of a batch a step is timed on: on a CPU no more than would take seconds."""
    return batch if device.type != "cpu" else max(2, min(batch, int(MOST_OPERATIONS / max(size.operations, 1.0))))


def answers_seconds(plan: Plan, network: nn.Module, configs: Sequence[Config]) -> float:
    """Return the seconds of asking the teacher once for each answer: 0 if all are cached or no student needs them."""
    augment = plan.spec.student.recipe.augment
    if not any(map(lesson.needs_teacher, configs)) or teacher.has_answered(
        plan.spec.teacher, plan.split, augment, network, plan.precision.name
    ):
        return 0.0
    asked = len(plan.split.train) * views.shown(augment)
    batch = plan.split.example(ASKED[plan.device.type])
    ask = answers.ready(network, batch[: answers.EXAMPLES], plan.precision.name)
    return asked / len(batch) * call_seconds(lambda: ask(batch), plan.device)


def timing_seconds(plan: Plan, network: nn.Module, config: Config) -> float:
    """Return the seconds of timing teacher and student once for an architecture."""
    if plan.cost == "flops":
        return 0.1
    student = build_student(plan.spec, plan.split, config).to(plan.device)
    batch = plan.spec.latency.batch_on("cpu" if plan.cost == ONNX else plan.device.type)
    with machine.threads(plan.spec.latency.threads):
        once = call_seconds(partial(network.eval(), plan.split.example(batch)), plan.device)
    if once > SLOW_CALL and plan.cost != ONNX:
        return latency.sitting_seconds(once, plan.device.type)
    facts = TeacherFacts("", "", 0.0, None, 0, 0, 0.0)
    workshop = Workshop(plan.spec, plan.split, teacher.Teacher(network, plan.split.prepare, facts), plan.cost)
    begin = time.perf_counter()
    workshop.measure(student)
    return time.perf_counter() - begin


def within(budget: Budget, anchors: Sequence[Config], epochs: float) -> tuple[list[Config], float]:
    """Return the anchors that a budget of trials and epochs pays for and the number of drawn trials, without pruning.

    Each anchor is trained to its end, a drawn trial for `epochs` on average; a budget's seconds are ignored.
    """
    left = math.inf if budget.epochs is None else float(budget.epochs)
    paid: list[Config] = []
    for config in anchors[: budget.trials]:
        if left <= 0:
            break
        paid.append(config)
        left -= config["epochs"]
    trials = math.inf if budget.trials is None else budget.trials - len(paid)
    return paid, max(0.0, min(trials, left / epochs))


def _weights(configs: Sequence[Config], candidates: int, by_seconds: bool) -> list[float]:
    """Return how often each of these configurations, drawn uniformly from the space, is trained.

    Where promise counts by the second, the choice among candidates prefers trainings of many epochs: those of
    CIFAR-10's 100 trials planned 1.29 and 1.30 times the operations of uniform draws, on a CPU and on a GPU; weights in
    proportion to the epochs would give 1.3. Elsewhere it prefers trainings of many steps. Of 1 to 10 epochs, two
    studies of MNIST's 100 trials had 7.5 and 9.0 on average; of 1 to 30, those of digits' 20 and 50 trials had 18
    and 23. An epoch of digits' 20 trials had 42 steps, one of a uniform draw 21. Weights in proportion to the steps
    would give 7.0 and 20.3 epochs, and 43 steps per epoch.
    """
    often = [
        config["epochs"] / (1 if by_seconds else config["batch_size"]) if candidates > 1 else 1.0 for config in configs
    ]
    return [each / sum(often) for each in often]


def _different(anchors: Sequence[Config], drawn: Sequence[Config], count: float) -> int:
    """Return the number of different architectures among the anchors and `count` drawn ones."""
    found = {space.architecture_key(config) for config in [*anchors, *drawn[: math.ceil(count)]]}
    return len(found) + (round(count) - len(drawn) if count > len(drawn) and len(found) > len(drawn) / 2 else 0)


def parts(plan: Plan, budget: Budget, *, candidates: int = CANDIDATES) -> dict[str, float]:
    """Return the seconds, by kind of work, of one process that runs all trials of a budget without pruning.

    The kinds are `teacher`, `answers` (of the teacher), `training`, `timing`, `scoring`, and `search` with the storage.
    """
    drawn = list(itertools.islice(space.draws(plan.spec), DRAWS))
    weights = _weights(drawn, candidates, counts_seconds(plan, budget))
    epochs = sum(weight * config["epochs"] for weight, config in zip(weights, drawn, strict=True))
    anchors, count = within(budget, [anchor.config for anchor in plan.spec.anchors.values()], epochs)
    shares = [(1.0, config) for config in anchors]
    if count:
        shares += [(count * weight, config) for weight, config in zip(weights, drawn, strict=True)]
    configs = [config for _, config in shares]
    sizes = sizes_of(plan)
    paces = measure(plan, configs, sizes)
    network = teacher.untrained(plan.spec.teacher, plan.split)
    different = _different(anchors, drawn, count)
    again = 0 if plan.cost == "flops" else (SITTINGS - 1) * min(FRONT, different)
    sittings = different + again  # the front's members are timed again (see `search.retime`)
    middle = sorted(configs, key=lambda config: sizes(config).operations)[len(configs) // 2]
    return {
        "teacher": teacher_seconds(plan, network),
        "answers": answers_seconds(plan, network, configs),
        "training": sum(n * training_seconds(plan, each, paces.step, sizes(each)) for n, each in shares),
        "timing": sittings * timing_seconds(plan, network, middle),
        "scoring": sum(n * scoring_seconds(plan, each, paces.score, sizes(each)) for n, each in shares),
        "search": sum(n * (TRIAL_SECONDS + EPOCH_SECONDS * each["epochs"]) for n, each in shares),
    }


def _seconds(plan: Plan, budget: Budget, candidates: int) -> dict[str, float]:
    """Return the seconds by kind of work; a run limited by time alone takes that time."""
    if budget.seconds is not None and budget.trials is None and budget.epochs is None:
        own = teacher_seconds(plan, teacher.untrained(plan.spec.teacher, plan.split))
        return {"teacher": own, "trials": budget.seconds, "all": own + budget.seconds}
    seconds = parts(plan, budget, candidates=candidates)
    trials = sum(seconds.values()) - seconds["teacher"]
    limit = math.inf if budget.seconds is None else budget.seconds
    return seconds | {"all": seconds["teacher"] + min(trials, limit)}


def pruning_saves(seconds: dict[str, float], budget: Budget, pruner: str, share: float) -> float:
    """Return the seconds that pruning is expected to save: 0 if they are spent on more trials instead.

    This is an expectation, not measured in this study: the share of planned training saved in an example study.
    """
    if pruner == "none" or budget.trials is None or budget.epochs is not None or budget.seconds is not None:
        return 0.0
    return share * (seconds["training"] + seconds["scoring"])


def estimate(plan: Plan, budget: Budget, *, candidates: int = CANDIDATES, pruner: str = "pareto") -> dict[str, Any]:
    """Return the plan of a new study's run as plain data, its times in seconds.

    Returns:
        `study`, `dataset`, `data` (lines on what was read), `images`, `device`, `precision`, `trials`, `epochs_budget`
        and `timeout` (None if there is no limit), `anchors`, `space`, `seconds` and `pruning`. `seconds` are those of
        `parts` and their sum, limited by the timeout; if only the timeout limits the run, `trials` covers all but the
        teacher. `pruning` holds the `seconds` that it is expected to save, which are included in `seconds`, and where
        that `share` was seen.
    """
    seconds = _seconds(plan, budget, candidates)
    split, by_seconds = plan.split, counts_seconds(plan, budget)
    return {
        "study": plan.name,
        "dataset": plan.spec.data.name,
        "data": [*([split.summary] if split.summary else []), *split.notes],
        "images": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
        "device": f"{plan.device} ({machine.device_model(plan.device)})",
        "cost": plan.cost,
        "precision": str(plan.precision),
        "trials": budget.trials,
        "epochs_budget": budget.epochs,
        "timeout": budget.seconds,
        "anchors": list(plan.spec.anchors)[: budget.trials],
        "space": {
            key: value.model_dump(exclude_defaults=True) if isinstance(value, BaseModel) else value
            for key, value in plan.spec.space.items()
        },
        "seconds": {key: round(value, 1) for key, value in seconds.items()},
        "pruning": {
            "seconds": round(pruning_saves(seconds, budget, pruner, PRUNED_SHARE[by_seconds]), 1),
            "share": round(PRUNED_SHARE[by_seconds], 2),
            "seen": f"as in {PRUNING_SEEN[by_seconds]}",
        },
    }
