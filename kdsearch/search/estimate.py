"""What a run is going to do and how long it may take, measured on a few batches; nothing is trained."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import optuna
import torch

from kdsearch import networks
from kdsearch.data import views
from kdsearch.distil import teacher, train
from kdsearch.distil.loss import distillation_loss
from kdsearch.distil.step import EAGER_STEPS
from kdsearch.measure import latency
from kdsearch.records import Config, architecture
from kdsearch.search import space
from kdsearch.search.budget import Budget
from kdsearch.search.plan import Plan
from kdsearch.spec import Recipe
from kdsearch.system import machine

SECONDS = 8.0  # spent on seeing what a trial costs, of anchors and of configurations drawn from the space alike
STEPS = {"cpu": 2, "cuda": 4 * EAGER_STEPS}  # optimiser steps timed of each configuration; most of a graph's replays
MIN_BATCH, MAX_BATCH = 16, 128  # a larger batch costs about as much an image
SLOW_IMAGE = 0.005  # seconds of training: then a large batch would take long, and a medium one is timed in its place
MEDIUM_BATCH = 48


def seconds_per_image(network: torch.nn.Module, plan: Plan, batch_size: int, recipe: Recipe) -> float:
    """Seconds of training an image, of a few optimiser steps; the network is changed."""
    small = _seconds_per_image(network, plan, min(batch_size, MIN_BATCH), recipe)
    batch = min(batch_size, MAX_BATCH, len(plan.split.train))
    if batch <= MIN_BATCH:
        return small
    timed = min(batch, MEDIUM_BATCH) if small > SLOW_IMAGE else batch
    return in_batches_of(batch, {MIN_BATCH: small, timed: _seconds_per_image(network, plan, timed, recipe)})


def in_batches_of(size: int, measured: dict[int, float]) -> float:
    """Seconds an image in batches of a size, of those in a smaller batch and in one that is larger, by batch size.

    A step costs a constant, which is much where a network has many weights (a ResNet18's update and its weights'
    gradients take two thirds of a step of 16 images of 32x32), and a part of each image.
    """
    small, large = min(measured), max(measured)
    if size == large:
        return measured[large]
    each = max(0.0, (large * measured[large] - small * measured[small]) / (large - small))
    constant = max(0.0, large * (measured[large] - each))
    return each + constant / size


def _seconds_per_image(network: torch.nn.Module, plan: Plan, batch: int, recipe: Recipe) -> float:
    images = batch * (STEPS[plan.device.type] + 1)
    part = plan.split.train.subset(torch.arange(images, device=plan.device) % len(plan.split.train))
    shown = views.count(recipe.augment)
    seen = (len(part), shown) if shown > 1 else (len(part),)
    guess = torch.zeros(*seen, len(plan.split.classes), device=plan.device)
    ends: list[float] = []
    lesson = train.Lesson(
        data=part,
        prepare=plan.split.prepare,
        loss=lambda batch: distillation_loss(
            batch.logits, batch.labels, batch.teacher_logits, loss_weight=0.5, temperature=4.0
        ),
        teacher_logits=guess,
        epochs=1,
        batch_size=batch,
        seed=0,
        on_step=lambda step: ends.append(_now(plan.device)),
    )
    for _ in train.train(network, lesson, recipe, validate=lambda _: 0.0):
        ends.append(_now(plan.device))
    return statistics.median(b - a for a, b in itertools.pairwise(ends)) / batch


def _now(device: torch.device) -> float:
    machine.synchronize(device)
    return time.perf_counter()


def teacher_seconds(plan: Plan) -> float:
    """Seconds until the teacher stands: 0 if it is kept from an earlier study."""
    if teacher.cached_file(plan.spec.teacher, plan.split).is_file():
        return 0.0
    network = teacher.untrained(plan.spec.teacher, plan.split)
    once = forward_seconds(network, plan)
    asked = once * (len(plan.split.train) + len(plan.split.validation) + len(plan.split.test))
    recipe = plan.spec.teacher.recipe
    if plan.spec.teacher.weights is not None or recipe is None:
        return asked
    step = seconds_per_image(network, plan, recipe.batch_size, recipe)
    return step * len(plan.split.train) * recipe.epochs + asked


def forward_seconds(network: torch.nn.Module, plan: Plan) -> float:
    """Seconds of inference an image."""
    batch = plan.split.example(min(4 * MIN_BATCH, plan.spec.latency.batch))
    network.eval()
    with torch.inference_mode():
        network(batch)
        begin = _now(plan.device)
        network(batch)
    return (_now(plan.device) - begin) / len(batch)


def trial_seconds(plan: Plan, config: Config) -> float:
    """Seconds of training and scoring a configuration to its end."""
    family = networks.student_family(plan.spec.student.family)
    student = family.build(architecture(config), plan.split.shape, len(plan.split.classes)).to(plan.device)
    with machine.threads(plan.spec.student.threads):
        step = seconds_per_image(student, plan, config["batch_size"], plan.spec.student.recipe)
        once = forward_seconds(student, plan)
    epochs = int(config["epochs"])
    scored = epochs * len(plan.split.validation) + len(plan.split.test)
    return step * len(plan.split.train) * epochs + once * scored


def _mean_seconds(plan: Plan, configs: list[Config]) -> float:
    """Mean seconds of a trial, of as many of the configurations as a short while allows."""
    measured: list[float] = []
    begin = time.perf_counter()
    for config in configs:
        measured.append(trial_seconds(plan, config))
        if time.perf_counter() - begin > SECONDS:
            break
    return statistics.mean(measured) if measured else 0.0


def timing_seconds(plan: Plan, configs: list[Config]) -> float:
    """Seconds of timing teacher and student, once for each architecture among the configurations."""
    if plan.cost == "flops":
        return 0.0
    with machine.threads(plan.spec.latency.threads):
        once = forward_seconds(teacher.untrained(plan.spec.teacher, plan.split), plan) * plan.spec.latency.batch
    different = {json.dumps(architecture(config)) for config in configs}
    return len(different) * (2 * latency.MIN_PAIRS * once + 0.2)


def views_seconds(plan: Plan, epochs: int) -> float:
    """Seconds of asking the teacher for the views that so many epochs draw, each once.

    Of V views an image, E draws show V (1 - (1 - 1/V)^E) different ones on average.
    """
    count = views.count(plan.spec.student.recipe.augment)
    different = count * (1 - (1 - 1 / count) ** epochs)
    return forward_seconds(teacher.untrained(plan.spec.teacher, plan.split), plan) * len(plan.split.train) * different


def draw(plan: Plan) -> Iterator[Config]:
    """Configurations drawn at random from the space, always the same ones."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=optuna.samplers.RandomSampler(seed=0))
    while True:
        yield space.draw(study.ask(), plan.spec)


def within(budget: Budget, anchors: list[Config], drawn: Iterator[Config]) -> tuple[list[Config], list[Config]]:
    """The anchors and the drawn configurations that a budget of trials and epochs pays for without pruning.

    The last one drawn has the epochs that were left; an anchor is trained to its end.
    """
    left = math.inf if budget.epochs is None else float(budget.epochs)
    paid: tuple[list[Config], list[Config]] = ([], [])
    for index, config in enumerate(itertools.chain(anchors, drawn)):
        if left <= 0 or index == budget.trials:
            break
        is_anchor = index < len(anchors)
        epochs = int(config["epochs"] if is_anchor else min(config["epochs"], left))
        paid[0 if is_anchor else 1].append({**config, "epochs": epochs})
        left -= epochs
    return paid


def _seconds(plan: Plan, budget: Budget) -> dict[str, float]:
    """Seconds by what they are spent on; a run that only its time ends takes that time."""
    seconds = {"teacher": teacher_seconds(plan)}
    if budget.seconds is not None and budget.trials is None and budget.epochs is None:
        seconds["trials"] = budget.seconds
        return seconds | {"all": sum(seconds.values())}
    anchors, drawn = within(budget, [anchor.config for anchor in plan.spec.anchors.values()], draw(plan))
    seconds["timing"] = timing_seconds(plan, anchors + drawn)
    seconds["training"] = sum(_mean_seconds(plan, configs) * len(configs) for configs in (anchors, drawn))
    if views.count(plan.spec.student.recipe.augment) > 1:
        seconds["views"] = views_seconds(plan, sum(config["epochs"] for config in anchors + drawn))
    spent = sum(seconds.values()) - seconds["teacher"]
    trials = min(spent, math.inf if budget.seconds is None else budget.seconds)
    return seconds | {"all": seconds["teacher"] + trials}


def estimate(plan: Plan, budget: Budget) -> dict[str, Any]:
    """The plan of a run as plain data, its times in seconds.

    Args:
        plan: a checked plan.
        budget: what a new study may spend.

    Returns:
        `study`, `dataset`, `data` (lines on what was read), `images`,
        `device`, `trials`, `epochs_budget` and `timeout` (None where there is no limit),
        `anchors`, `space` and `seconds`: of the teacher, timing, training (if no trial were pruned), the teacher's
        answers to augmented views (where there are any) and in all, which the timeout limits; where nothing else does,
        `trials` stands for the last three.
    """
    seconds = _seconds(plan, budget)
    split = plan.split
    return {
        "study": plan.name,
        "dataset": plan.spec.data.name,
        "data": [*([split.summary] if split.summary else []), *split.notes],
        "images": {"train": len(split.train), "validation": len(split.validation), "test": len(split.test)},
        "device": f"{plan.device} ({machine.device_model(plan.device)})",
        "cost": plan.cost,
        "trials": budget.trials,
        "epochs_budget": budget.epochs,
        "timeout": budget.seconds,
        "anchors": list(plan.spec.anchors)[: budget.trials],
        "space": {key: _in_words(value) for key, value in plan.spec.space.items()},
        "seconds": {key: round(value, 1) for key, value in seconds.items()},
    }


def _in_words(dimension: Any) -> Any:
    return dimension.model_dump(exclude_defaults=True) if hasattr(dimension, "model_dump") else dimension
