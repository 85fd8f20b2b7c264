from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdsearch import data
from kdsearch.distil.train import Batch
from kdsearch.experiments.slides import deck_recipes
from kdsearch.experiments.slides.rows import Dataset, choose, rows


def batch(epoch: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    return Batch(student, torch.randint(10, (6,), generator=generator), teacher, torch.tensor(epoch))


def loss(dataset: Dataset, name: str, what: Batch, reading: str = "stated") -> Tensor:
    (job,) = [job for job in choose(dataset, name, "both") if job.reading == reading]
    return deck_recipes.DECKS[dataset].loss(job.settings)(what)


def test_mnist_students_learn_from_the_teachers_softmax_alone():
    what = batch()
    expected = -(F.softmax(what.teacher_logits / 3.5, 1) * F.log_softmax(what.logits / 3.5, 1)).sum(1).mean()
    torch.testing.assert_close(loss("mnist", "m7", what), expected)
    other = Batch(what.logits, (what.labels + 1) % 10, what.teacher_logits, what.epoch)
    assert torch.equal(loss("mnist", "m7", what), loss("mnist", "m7", other))


def test_in_the_published_reading_of_m5_the_teachers_temperature_is_its_own():
    what = batch()
    expected = -(F.softmax(what.teacher_logits / 3.5, 1) * F.log_softmax(what.logits / 10, 1)).sum(1).mean()
    torch.testing.assert_close(loss("mnist", "m5", what, "published"), expected)
    assert not torch.equal(loss("mnist", "m5", what), expected)


@pytest.mark.parametrize(("epoch", "weight"), [(1, 0.0), (2, 0.1), (10, 0.9), (11, 1.0), (40, 1.0)])
def test_the_cifar10_loss_ramps_the_teachers_weight(epoch, weight):
    what = batch(epoch)
    labelled = F.cross_entropy(what.logits, what.labels)
    soft = F.softmax(what.teacher_logits / 4, 1)
    divergence = 16 * (soft * (soft.log() - F.log_softmax(what.logits / 4, 1))).sum(1).mean()
    torch.testing.assert_close(loss("cifar10", "c5", what), labelled + weight * divergence)


def test_without_the_kd_loss_the_teacher_is_not_looked_at():
    what = batch(9)
    nothing = Batch(what.logits, what.labels, None, torch.tensor(9))
    assert torch.equal(loss("cifar10", "c7", nothing), F.cross_entropy(what.logits, what.labels))


def test_the_first_of_each_class_in_their_order():
    labels = torch.tensor([1, 0, 1, 1, 0, 2, 0, 1])
    assert deck_recipes.first_of_each_class(labels, 2).tolist() == [0, 1, 2, 4, 5]
    assert deck_recipes.first_of_each_class(labels, None).tolist() == list(range(8))


def test_keras_recipe_is_adam_with_its_epsilon_and_glorots_weights():
    student, teacher = (
        deck_recipes.DECKS["mnist"].student.recipe,
        deck_recipes.teacher_spec("mnist", max_epochs=None).recipe,
    )
    for recipe in (student, teacher):
        assert (recipe.optimizer, recipe.lr, recipe.epsilon, recipe.init) == ("adam", 1e-3, 1e-7, "glorot")
        assert recipe.lr_batch is None  # the deck's rate is one for all batch sizes
    assert (teacher.epochs, teacher.batch_size, teacher.temperature) == (1, 32, 3.5)


def test_weights_replace_the_training_of_cifar10s_teacher():
    shipped, given = (deck_recipes.teacher_spec("cifar10", max_epochs=None, weights=file) for file in (None, "w.st"))
    assert shipped.recipe is not None
    assert (given.recipe, given.weights, given.family) == (None, "w.st", shipped.family)


def test_cifar10s_recipe_is_sgd_at_a_constant_rate_without_augmentation():
    recipe = deck_recipes.DECKS["cifar10"].student.recipe
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.nesterov) == ("sgd", 0.1, 0.9, True)
    assert (recipe.weight_decay, recipe.schedule) == (5e-4, "constant")
    assert (recipe.augment.flip, recipe.augment.shift) == (False, 0)
    assert (deck_recipes.DECKS["cifar10"].batch, deck_recipes.DECKS["cifar10"].to_host) == (100, True)


def test_a_reduced_row_trains_on_the_first_images_of_each_class_and_their_answers(school):
    whole = rows("mnist")["m7"].readings["stated"]
    few = dataclasses.replace(whole, per_class=3)
    chosen = deck_recipes.first_of_each_class(school.split.train.labels, 3)
    small = dataclasses.replace(
        school,
        split=dataclasses.replace(school.split, train=school.split.train.subset(chosen)),
        answers=dataclasses.replace(school.answers, logits=school.answers.logits[chosen]),
    )
    losses = [
        [record.loss for record in place.teach(place.build(whole, 0), settings, seed=1)]
        for place, settings in ((school, few), (small, whole), (school, whole))
    ]
    assert len(chosen) == 30
    assert losses[0] == losses[1] != losses[2]


def test_nothing_is_scored_on_the_way(school):
    settings = rows("mnist")["m4"].readings["stated"]
    records = list(school.teach(school.build(settings, seed=0), settings, seed=0))
    assert [record.epoch for record in records] == [1, 2]
    assert all(math.isnan(record.accuracy) for record in records)


def test_mnists_teacher_sees_four_fifths_and_cifar10s_everything(plan):
    digits = data.load(plan.spec.data.model_copy(update={"train_size": None}), Path("unused"))
    cpu = torch.device("cpu")
    held = deck_recipes.teacher_split("mnist", digits, cpu, train_size=None)
    everything = deck_recipes.teacher_split("cifar10", digits, cpu, train_size=None)
    assert (len(held.train), len(held.validation)) == (1078, 269)
    assert (len(everything.train), len(everything.validation)) == (1347, 0)
    assert len(deck_recipes.teacher_split("cifar10", digits, cpu, train_size=100).train) == 100
