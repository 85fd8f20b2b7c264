from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.trainings import equal, with_recipe
from torch import nn

from kdsearch.distil import lesson
from kdsearch.distil.answers import Answers
from kdsearch.distil.loss import Mix
from kdsearch.distil.teacher import Teacher
from kdsearch.search.plan import Plan

CONFIG = {"width": 24, "loss_weight": 0.5, "temperature": 4.0, "epochs": 2, "batch_size": 32}


@pytest.fixture(scope="module")
def known(plan: Plan, teacher: Teacher) -> Answers:
    return teacher.answers(plan.split.train)


def taught(plan: Plan, known: Answers | None, seed: int = 0, **changes) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a student."""
    config = {**CONFIG, **changes}
    student = lesson.build(plan.spec.student, config, seed=seed, split=plan.split)
    records = lesson.teach(
        student, config, seed=seed, data=plan.split.train, prepare=plan.split.prepare, answers=known,
        student_spec=plan.spec.student,
    )  # fmt: skip
    return [record.loss for record in records], student.state_dict()


def test_a_feature_weight_of_zero_is_no_feature_weight(plan: Plan, known: Answers):
    assert equal(taught(plan, known)[1], taught(plan, known, feature_weight=0.0)[1])


def test_a_feature_weight_changes_the_training_and_leaves_no_map_in_the_student(plan: Plan, known: Answers):
    losses, weights = taught(plan, known, feature_weight=2.0)
    plain_losses, plain = taught(plan, known)
    assert weights.keys() == plain.keys()
    assert not equal(weights, plain)
    assert losses[0] > plain_losses[0]  # the term is not negative, and far from 0 at the start
    assert equal(weights, taught(plan, known, feature_weight=2.0)[1])


def test_features_can_be_learnt_without_labels_or_logits_weight(plan: Plan, known: Answers):
    config = {"loss_weight": 0.0, "feature_weight": 1.0}
    assert lesson.needs_teacher(config)
    assert not lesson.needs_teacher({"loss_weight": 0.0, "feature_weight": 0.0})
    assert not lesson.needs_teacher({"loss_weight": 0.0})
    assert not equal(taught(plan, known, **config)[1], taught(plan, None, loss_weight=0.0)[1])


def test_the_map_is_trained_and_makes_the_term_small(plan: Plan, known: Answers):
    losses, _ = taught(plan, known, loss_weight=0.0, feature_weight=5.0, epochs=12)
    assert losses[-1] < 0.6 * losses[0]


def test_equal_widths_need_no_map(known: Answers):
    width = known.centres.shape[1]
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, 10))
    assert isinstance(lesson.feature_map(student, known, seed=0), nn.Identity)
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Linear(3, 10))
    assert lesson.feature_map(narrow, known, seed=0).weight.shape == (width, 3)


def test_keras_weights_are_uniform_with_biases_of_zero(plan: Plan):
    student = lesson.build(with_recipe(plan.spec.student, init="glorot"), {"width": 1200}, seed=0, split=plan.split)
    limit = (6 / (64 + 1200)) ** 0.5
    weight, bias = student[1].weight, student[1].bias
    assert 0.99 * limit < weight.abs().max().item() <= limit
    assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert not bias.any()


def test_a_configurations_rate_takes_the_place_of_the_recipes(plan: Plan, known: Answers):
    spec = with_recipe(plan.spec.student, lr=5e-3)
    assert lesson.recipe_of(plan.spec.student, {**CONFIG, "lr": 5e-3}) == spec.recipe
    assert lesson.recipe_of(spec, CONFIG) == spec.recipe
    assert not equal(taught(plan, known, lr=5e-3)[1], taught(plan, known)[1])
    assert equal(taught(plan, known, lr=1e-3)[1], taught(plan, known)[1])


def test_a_study_says_how_its_loss_is_read(plan: Plan):
    assert lesson.mix_of(plan.spec) == Mix(level=True, softmax_temperature=3.5)
    assert lesson.mix_of(plan.spec.model_copy(update={"distillation": 1})) == Mix()
    ready = plan.spec.teacher.model_copy(update={"recipe": None})
    assert lesson.mix_of(plan.spec.model_copy(update={"teacher": ready})).softmax_temperature == 1.0


def test_a_batch_larger_than_the_training_set_is_the_whole_set(plan: Plan, known: Answers):
    recipe = plan.spec.student.recipe.model_copy(update={"optimizer": "sgd", "lr_batch": 32})
    ours = dataclasses.replace(
        plan, spec=plan.spec.model_copy(update={"student": plan.spec.student.model_copy(update={"recipe": recipe})})
    )
    images = len(plan.split.train)
    assert equal(taught(ours, known, batch_size=10 * images)[1], taught(ours, known, batch_size=images)[1])
