"""A student and its lesson from a configuration: the distillation loss, with a feature loss if it has a weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.data import ImageSet, Split
from kdsearch.distil import train
from kdsearch.distil.answers import Answers, Prepare, ViewAnswers
from kdsearch.distil.loss import DECK, Mix, distillation_loss, nd_loss
from kdsearch.distil.train import Batch, Lesson
from kdsearch.errors import StudyFileError
from kdsearch.records import Config, Precision, architecture
from kdsearch.spec import Recipe, StudentSpec, StudySpec
from kdsearch.system import machine


def build(spec: StudentSpec, config: Config, *, seed: int, split: Split) -> nn.Module:
    """Return an untrained student on the split's device; equal seeds give equal weights on every device.

    Raises:
        StudyFileError: the family is unknown.
    """
    family = networks.student_family(spec.family)
    with machine.seeded(machine.derive_seed("weights", seed), torch.device("cpu")):
        student = family.build(architecture(config), split.shape, len(split.classes))
        if spec.recipe.init == "glorot":
            networks.glorot_(student)
    return student.to(split.train.labels.device)


def needs_teacher(config: Config) -> bool:
    """Return whether a configuration's loss uses the teacher."""
    return bool(config["loss_weight"] > 0 or config.get("feature_weight", 0) > 0)


def mix_of(spec: StudySpec) -> Mix:
    """Return how the study's specification reads loss weight and temperature (`StudySpec.distillation`)."""
    if spec.distillation == 1:
        return DECK
    recipe = spec.teacher.recipe
    return Mix(level=True, softmax_temperature=1.0 if recipe is None else float(recipe.temperature))


def recipe_of(spec: StudentSpec, config: Config) -> Recipe:
    """Return the students' recipe, with the configuration's learning rate if it has one."""
    return spec.recipe.model_copy(update={"lr": config["lr"]}) if "lr" in config else spec.recipe


def feature_map(student: nn.Module, answers: Answers | ViewAnswers, *, seed: int) -> nn.Module:
    """Return a map from the student's embeddings to the teacher's width: the identity or, in training only, linear.

    Raises:
        StudyFileError: the student or the teacher has no classifier to take embeddings from.
    """
    inputs, outputs = networks.classifier(student).in_features, answers.centres.shape[1]
    if outputs == 0:
        raise StudyFileError(
            "a teacher must end in an nn.Linear for its features to be learnt",
            remedy="set feature_weight to 0, or choose another teacher",
        )
    if inputs == outputs:
        return nn.Identity()
    with machine.seeded(machine.derive_seed("map", seed), torch.device("cpu")):
        mapping = nn.Linear(inputs, outputs, bias=False)
    return mapping.to(answers.centres.device)


def teach(
    student: nn.Module,
    config: Config,
    *,
    seed: int,
    data: ImageSet,
    prepare: Prepare,
    answers: Answers | ViewAnswers | None,
    student_spec: StudentSpec,
    precision: Precision | None = None,
    mix: Mix = DECK,
    validate: Callable[[nn.Module], float] = lambda network: math.nan,
    on_step: Callable[[int], None] = lambda step: None,
    state: train.State | None = None,
) -> train.Run:
    """Return the training of a student as its configuration says, one epoch per step of the iterator.

    The loss is `distillation_loss`, plus `feature_weight` times `nd_loss` if that weight is above 0.

    Args:
        student: from `build`; trained in place.
        config: a complete configuration.
        seed, data, prepare, precision: see `Lesson`.
        answers: the teacher's, to these images or, if the recipe augments, to their views; None where `needs_teacher`
            is False.
        student_spec: `[student]` of a study.
        mix: how loss weight and temperature are read.
        validate, state: see `Run`.
        on_step: called before each step, and before each batch that the teacher is asked, with the number of steps
            done.

    Raises:
        TrialError: the loss or the weights are not finite.
        ValueError: the state is of another student.
        StudyFileError: the feature weight is above 0 and a network has no classifier.
    """
    weight = config.get("feature_weight", 0)
    if not needs_teacher(config):
        answers = None
    mapping = feature_map(student, answers, seed=seed) if weight > 0 and answers is not None else None

    def loss(batch: Batch) -> Tensor:
        total = distillation_loss(
            batch.logits,
            batch.labels,
            batch.teacher_logits,
            loss_weight=config["loss_weight"],
            temperature=config.get("temperature"),
            mix=mix,
        )
        if mapping is None:
            return total
        assert answers is not None
        assert batch.embedding is not None
        assert batch.teacher_norms is not None
        features = nd_loss(mapping(batch.embedding), batch.teacher_norms, answers.centres[batch.labels])
        return total + float(weight) * features

    done = 0  # steps, reported while the teacher is asked, too

    def counted(step: int) -> None:
        nonlocal done
        done = step
        on_step(step)

    lesson = Lesson(
        data=data,
        prepare=prepare,
        loss=loss,
        teacher_logits=answers.logits if answers is not None and config["loss_weight"] > 0 else None,
        teacher_norms=answers.norms if mapping is not None and answers is not None else None,
        before_epoch=partial(answers.fill, between=lambda: on_step(done)) if answers is not None else None,
        companion=mapping,
        epochs=config["epochs"],
        batch_size=min(config["batch_size"], len(data)),  # the rate is scaled for what a step really holds
        seed=seed,
        threads=student_spec.threads,
        precision=precision,
        on_step=counted,
    )
    return train.Run(student, lesson, recipe_of(student_spec, config), validate=validate, state=state)
