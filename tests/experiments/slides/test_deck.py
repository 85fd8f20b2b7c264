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
from kdsearch.errors import KdsearchError
from kdsearch.experiments.slides import deck
from kdsearch.experiments.slides.deck import Dataset, choose, rows

# The deck's second table: row, blocks, stride, distilled, images of each class, accuracy %, training s, ratio
CIFAR10 = """
c1 2222 1 yes all 79.3 400 6.58
c2 1111 1 yes all 79.1 275 8.53
c3 2200 1 yes all 78.6 370 7.81
c4 1100 1 yes all 79.4 340 9.85
c5 1111 2 yes all 77.6 280 11.60
c6 1111 4 yes all 79.9 405 9.94
c7 1111 2 no all 75.8 330 10.84
c8 1111 2 yes 500 61.2 60 10.33
c9 1111 2 no 500 56.0 60 9.79
"""


def test_the_cifar10_rows_are_those_of_the_deck():
    found = rows("cifar10")
    lines = [line.split() for line in CIFAR10.split("\n") if line]
    assert list(found) == [line[0] for line in lines] + ["cq"]
    for name, blocks, stride, distilled, images, accuracy, seconds, ratio in lines:
        stated, published = found[name].readings["stated"], found[name].published
        assert stated.architecture == {"width": 64, "blocks": [int(b) for b in blocks], "stride": int(stride)}
        assert stated.temperature == (4.0 if distilled == "yes" else None)
        assert stated.per_class == (None if images == "all" else int(images))
        assert (stated.epochs, stated.batch_size, stated.bits) == (10, 100, None)
        assert (published.accuracy, published.seconds, published.ratio) == tuple(map(float, (accuracy, seconds, ratio)))


def test_what_the_published_code_built_in_c3_and_c4():
    found = rows("cifar10")
    assert found["c3"].readings["published"].architecture["blocks"] == [2, 2, 1, 1]
    assert found["c4"].readings["published"].architecture["blocks"] == [1, 1, 1, 1]
    others = [row for name, row in found.items() if name not in ("c3", "c4")]
    assert all(row.readings["stated"] == row.readings["published"] for row in others)


def test_the_mnist_rows_are_the_study_files_with_three_times_the_epochs_as_published():
    found = rows("mnist")
    assert list(found) == [f"m{n}" for n in range(1, 10)] + ["mq"]
    for name, epochs in {"m1": 3, "m4": 2, "m8": 5}.items():
        assert found[name].readings["stated"].epochs == epochs
        assert found[name].readings["published"].epochs == 3 * epochs
        assert f"{epochs} stated, {3 * epochs} published" in found[name].open
    assert found["m9"].readings["stated"].architecture == {"width": 600}
    assert (found["m1"].published.accuracy, found["m1"].published.ratio) == (95.97, 315.332)


def test_in_m5_and_m6_the_published_teacher_keeps_its_temperature():
    for name, temperature in {"m5": 10.0, "m6": 1.0, "m7": 3.5}.items():
        stated, published = (rows("mnist")[name].readings[reading] for reading in ("stated", "published"))
        assert (stated.temperature, stated.teacher_temperature) == (temperature, None)
        assert published.temperature == temperature
        assert published.teacher_temperature == (3.5 if name != "m7" else None)


def test_the_int8_rows_are_like_a_row_and_publish_nothing():
    for dataset, like in {"mnist": "m7", "cifar10": "c5"}.items():
        found = rows(dataset)
        int8 = found[f"{dataset[0]}q"]
        stated, usual = int8.readings["stated"], found[like].readings["stated"]
        assert (stated.architecture, stated.epochs, stated.bits) == (usual.architecture, usual.epochs, 8)
        assert int8.published is None


def chosen(*asked: str | None) -> list[tuple[str, str]]:
    return [(job.row.name, job.reading) for job in choose(*asked)]


def test_rows_are_chosen_by_name_once_each():
    assert chosen("mnist", "m7, m1,m7", "stated") == [("m7", "stated"), ("m1", "stated")]
    assert len(chosen("mnist", None, "stated")) == 10
    assert chosen("mnist", "m1", "both") == [("m1", "stated"), ("m1", "published")]
    assert chosen("mnist", "m1,mq", "published") == [("m1", "published"), ("mq", "stated")]  # mq has one reading


def test_c3_and_c4_are_run_in_both_readings_whatever_is_asked():
    both = [("c3", "stated"), ("c3", "published")]
    assert [chosen("cifar10", "c3", reading) for reading in ("stated", "published", "both")] == [both] * 3
    assert chosen("cifar10", "c1,c8", "both") == [("c1", "stated"), ("c8", "stated")]  # they differ in nothing
    assert len(chosen("cifar10", None, "stated")) == 12


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("digits", None, "stated"), r"rows on mnist and cifar10 \(got digits\); choose one of the two"),
        (("mnist", "m1,c5", "stated"), r"rows of the slides on mnist \(got c5\); choose among m1,m2"),
        (("mnist", ",", "stated"), r"\(got none\)"),
        (("mnist", "m1", "literal"), r"--reading must be known \(got literal\)"),
    ],
)
def test_what_is_no_row_is_refused(asked, message):
    with pytest.raises(KdsearchError, match=message):
        choose(*asked)


def batch(epoch: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(6, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    return Batch(student, torch.randint(10, (6,), generator=generator), teacher, torch.tensor(epoch))


def loss(dataset: Dataset, name: str, what: Batch, reading: str = "stated") -> Tensor:
    (job,) = [job for job in choose(dataset, name, "both") if job.reading == reading]
    return deck.DECKS[dataset].loss(job.settings)(what)


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
    assert deck.first_of_each_class(labels, 2).tolist() == [0, 1, 2, 4, 5]
    assert deck.first_of_each_class(labels, None).tolist() == list(range(8))


def test_keras_recipe_is_adam_with_its_epsilon_and_glorots_weights():
    student, teacher = (
        deck.DECKS["mnist"].student.recipe,
        deck.teacher_spec("mnist", max_epochs=None).recipe,
    )
    for recipe in (student, teacher):
        assert (recipe.optimizer, recipe.lr, recipe.epsilon, recipe.init) == ("adam", 1e-3, 1e-7, "glorot")
        assert recipe.lr_batch is None  # the deck's rate is one for all batch sizes
    assert (teacher.epochs, teacher.batch_size, teacher.temperature) == (1, 32, 3.5)


def test_weights_replace_the_training_of_cifar10s_teacher():
    shipped, given = (deck.teacher_spec("cifar10", max_epochs=None, weights=file) for file in (None, "w.st"))
    assert shipped.recipe is not None
    assert (given.recipe, given.weights, given.family) == (None, "w.st", shipped.family)


def test_cifar10s_recipe_is_sgd_at_a_constant_rate_without_augmentation():
    recipe = deck.DECKS["cifar10"].student.recipe
    assert (recipe.optimizer, recipe.lr, recipe.momentum, recipe.nesterov) == ("sgd", 0.1, 0.9, True)
    assert (recipe.weight_decay, recipe.schedule) == (5e-4, "constant")
    assert (recipe.augment.flip, recipe.augment.shift) == (False, 0)
    assert (deck.DECKS["cifar10"].batch, deck.DECKS["cifar10"].to_host) == (100, True)


def test_a_reduced_row_trains_on_the_first_images_of_each_class_and_their_answers(school):
    whole = rows("mnist")["m7"].readings["stated"]
    few = dataclasses.replace(whole, per_class=3)
    chosen = deck.first_of_each_class(school.split.train.labels, 3)
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
    held = deck.teacher_split("mnist", digits, cpu, train_size=None)
    everything = deck.teacher_split("cifar10", digits, cpu, train_size=None)
    assert (len(held.train), len(held.validation)) == (1078, 269)
    assert (len(everything.train), len(everything.validation)) == (1347, 0)
    assert len(deck.teacher_split("cifar10", digits, cpu, train_size=100).train) == 100
