from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.trainings import by_labels, equal, lesson, prepare
from torch import Tensor, nn

from kdsearch.data import ImageSet
from kdsearch.distil.optimizer import schedule
from kdsearch.distil.train import Batch, Lesson, Run
from kdsearch.errors import TrialError
from kdsearch.spec import Augment, Recipe
from kdsearch.system import machine


def network(*, norm: bool = False) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(8) if norm else nn.Dropout(0.2)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), middle, nn.ReLU(), nn.Linear(8, 2))


def taught(what: Lesson, recipe: Recipe | None = None, **kind) -> tuple[list, dict[str, Tensor]]:
    """Records without their seconds, and the weights."""
    student = network(**kind)
    records = list(Run(student, what, recipe or Recipe(), validate=lambda _: 0.5))
    return [(r.epoch, r.loss, r.accuracy) for r in records], student.state_dict()


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True)])
def test_the_same_seed_gives_the_same_weights_bit_by_bit_and_another_others(noise, recipe):
    first, again, other = (taught(lesson(noise, seed=seed), recipe) for seed in (0, 0, 1))
    assert first[0] == again[0]
    assert equal(first[1], again[1])
    assert not equal(first[1], other[1])


def test_the_global_generator_neither_matters_nor_moves(noise):
    torch.manual_seed(1)
    first = taught(lesson(noise))[1]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert equal(first, taught(lesson(noise))[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_shorter_training_is_the_beginning_of_a_longer_one(noise):
    short, long = taught(lesson(noise, epochs=2))[0], taught(lesson(noise, epochs=4))[0]
    assert long[:2] == short


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush denormals")
def test_numbers_too_small_for_the_exponent_are_zero_in_a_step_and_only_there(noise):
    seen: list[bool] = []

    def look(*_: object) -> bool:
        seen.append(bool((torch.full((64,), 1e-40) * 1.0).any()))
        return True

    list(Run(network(), lesson(noise, on_step=look), Recipe(), validate=lambda _: 0.5))
    assert set(seen) == {False}
    assert look()
    assert seen[-1]


def test_an_epoch_is_trained_when_it_is_asked_for(noise):
    student, steps = network(), []
    epochs = Run(student, lesson(noise, on_step=steps.append), Recipe(), validate=lambda _: 0.5)
    assert steps == []
    assert next(epochs).epoch == 1
    assert steps == [0, 1, 2]
    assert next(epochs).epoch == 2
    assert steps == [0, 1, 2, 3, 4, 5]


def test_records_hold_epoch_loss_accuracy_and_seconds(noise):
    accuracies = iter([0.25, 0.75])
    records = list(Run(network(), lesson(noise), Recipe(), validate=lambda _: next(accuracies)))
    assert [(r.epoch, r.accuracy) for r in records] == [(1, 0.25), (2, 0.75)]
    assert all(r.seconds > 0 and 0 < r.loss < 2 for r in records)


class Watcher:
    """A loss that writes down what a training shows it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.epochs: list[int] = []

    def __call__(self, batch: Batch) -> Tensor:
        shown = batch.logits.detach()[:, 0].round().int().tolist()
        # image, label and teacher's row belong together
        assert shown == batch.labels.tolist() == batch.teacher_logits[:, 0].tolist()
        self.batches.append(shown)
        self.epochs.append(int(batch.epoch))
        return batch.logits.sum()


def watched(count: int, batch_size: int, epochs: int = 2) -> Watcher:
    watcher, student = Watcher(), nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    nn.init.ones_(student[1].weight)
    what = lesson(
        ImageSet(torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(count)),
        prepare=lambda images: images.float(), loss=watcher, epochs=epochs, batch_size=batch_size,
        teacher_logits=torch.arange(count)[:, None].expand(count, 2),
    )  # fmt: skip
    list(Run(student, what, Recipe(lr=1e-30), validate=lambda _: 0.5))
    return watcher


def test_every_image_is_seen_once_an_epoch_in_another_order():
    batches = watched(40, 16).batches
    assert [len(batch) for batch in batches] == [16, 16, 8] * 2
    first, second = [*itertools.chain(*batches[:3])], [*itertools.chain(*batches[3:])]
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != list(range(40))


def test_a_last_batch_of_one_image_is_left_out_and_another_image_each_time():
    batches = watched(33, 16, epochs=12).batches
    assert [len(batch) for batch in batches] == [16, 16] * 12
    left_out = [(set(range(33)) - {*a, *b}).pop() for a, b in zip(batches[::2], batches[1::2], strict=True)]
    assert len(set(left_out)) > 3


def test_a_batch_larger_than_the_data_is_the_data():
    assert [len(batch) for batch in watched(5, 64).batches] == [5, 5]
    assert [len(batch) for batch in watched(1, 64).batches] == [1, 1]


def test_batch_norm_takes_every_batch(noise):
    records, _ = taught(lesson(noise.subset(torch.arange(33))), norm=True)
    assert all(math.isfinite(loss) for _, loss, _ in records)


def test_a_tiny_set_is_learnt_by_heart(noise):
    records, weights = taught(lesson(noise, epochs=150), Recipe(lr=1e-2), norm=True)
    student = network(norm=True)
    student.load_state_dict(weights)
    assert records[0][1] > 0.5
    assert (student.eval()(prepare(noise.images)).argmax(1) == noise.labels).float().mean() > 0.95


def test_views_are_drawn_for_the_training(noise):
    plain, augmented = taught(lesson(noise)), taught(lesson(noise), Recipe(augment=Augment(flip=True, shift=1)))
    assert not equal(plain[1], augmented[1])


def test_a_loss_that_is_not_finite_ends_the_training(noise):
    epochs = Run(network(), lesson(noise, epochs=5), Recipe(optimizer="sgd", lr=1e30), validate=lambda _: 0.5)
    with pytest.raises(TrialError, match=r"training loss must be finite: epoch 1 \(got (nan|inf)\); lower"):
        list(epochs)


def test_weights_that_are_not_finite_end_the_training(noise):
    # one step an epoch: its loss is taken before the step that ruins the weights
    what = lesson(noise, epochs=1, batch_size=40)
    with pytest.raises(TrialError, match="finite"):
        list(Run(network(), what, Recipe(optimizer="sgd", lr=1e300), validate=lambda _: 0.5))


def test_the_schedule_sets_the_rate_of_each_step():
    """SGD on a loss of slope 1: each step moves the weight by its rate."""
    weight = nn.Linear(1, 1, bias=False)
    places: list[float] = []

    def slope(batch: Batch) -> Tensor:
        places.append(weight.weight.item())
        return batch.logits.mean()

    ones = ImageSet(torch.ones(8, 1, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    what = lesson(ones, prepare=lambda images: images.float(), loss=slope, batch_size=2, epochs=3)
    recipe = Recipe(optimizer="sgd", lr=0.5, lr_batch=1, schedule="onecycle")
    list(Run(weight, what, recipe, validate=lambda _: 0.5))
    places.append(weight.weight.item())
    moved = [before - after for before, after in itertools.pairwise(places)]
    assert moved == pytest.approx([2 * 0.5 * schedule(recipe, step, 12) for step in range(12)], abs=1e-6)


def test_a_training_has_its_own_number_of_threads_and_puts_the_others_back(noise):
    seen = []

    def loss(batch: Batch) -> Tensor:
        seen.append(torch.get_num_threads())
        return by_labels(batch)

    def validate(_: nn.Module) -> float:
        seen.append(torch.get_num_threads())
        return 0.5

    with machine.threads(2):
        for _ in Run(network(), lesson(noise, loss=loss, threads=1), Recipe(), validate=validate):
            assert torch.get_num_threads() == 2
        assert set(seen) == {1}
        seen.clear()
        list(Run(network(), lesson(noise, loss=loss), Recipe(), validate=validate))
        assert set(seen) == {2}


def test_the_loss_is_told_the_epoch():
    assert watched(20, 16, epochs=3).epochs == [1, 1, 2, 2, 3, 3]


def test_a_loss_of_embeddings_sees_the_classifiers_input_and_trains_its_companion(noise):
    student, companion, seen = network(), nn.Linear(8, 3, bias=False), []
    before = companion.weight.detach().clone()

    def loss(batch: Batch) -> Tensor:
        seen.append(batch)
        return by_labels(batch) + companion(batch.embedding).square().mean()

    norms = torch.arange(40.0)
    what = lesson(noise, loss=loss, teacher_norms=norms, companion=companion, epochs=1)
    list(Run(student, what, Recipe(lr=1e-2), validate=lambda _: 0.5))
    assert [tuple(batch.embedding.shape) for batch in seen] == [(16, 8), (16, 8), (8, 8)]
    assert sorted(torch.cat([batch.teacher_norms for batch in seen]).tolist()) == norms.tolist()
    assert not torch.equal(companion.weight, before)
    assert not student[-1]._forward_pre_hooks


def test_logits_of_images_as_they_are_are_refused_where_other_views_are_shown(noise):
    """Stale logits of another view are a known trap (haitongli/knowledge-distillation-pytorch#23)."""
    plain = lesson(noise, teacher_logits=torch.zeros(40, 2))
    with pytest.raises(ValueError, match=r"each of 2 views of 40 images \(got shape \(40, 2\)\)"):
        next(Run(network(), plain, Recipe(augment=Augment(flip=True)), validate=lambda _: 0.5))
    of_views = lesson(noise, teacher_logits=torch.zeros(40, 2, 2))
    next(Run(network(), of_views, Recipe(augment=Augment(flip=True)), validate=lambda _: 0.5))
    with pytest.raises(ValueError, match="each of 1 views"):
        next(Run(network(), of_views, Recipe(), validate=lambda _: 0.5))


def test_the_views_of_an_epoch_are_told_before_they_are_shown(noise):
    told, shown = [], []

    def loss(batch: Batch) -> Tensor:
        shown.append(batch.teacher_logits[:, 0].clone())
        return by_labels(batch)

    known = torch.arange(40 * 2.0).view(40, 2, 1).expand(40, 2, 2)
    what = lesson(noise, loss=loss, teacher_logits=known, before_epoch=lambda *each: told.append(each), epochs=2)
    list(Run(network(), what, Recipe(augment=Augment(flip=True)), validate=lambda _: 0.5))
    expected = [known[order, drawn][:, 0] for order, drawn in told]
    assert len(told) == 2
    assert torch.equal(torch.cat(shown), torch.cat(expected))


def test_an_epochs_seconds_leave_out_the_asking_of_the_teacher(noise, monkeypatch):
    """Time passes in that call alone."""
    clock = [0.0]
    monkeypatch.setattr("kdsearch.distil.train.time.perf_counter", lambda: clock[0])

    def ask(order, drawn):
        clock[0] += 5.0

    record = next(Run(network(), lesson(noise, before_epoch=ask), Recipe(), validate=lambda _: 0.5))
    assert (record.seconds, record.asking) == (0.0, 5.0)
