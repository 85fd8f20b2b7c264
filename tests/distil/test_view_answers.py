from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.trainings import damaged, prepare, with_recipe
from helpers.trainings import lesson as lesson_of
from torch import nn

from kdsearch.data import ImageSet, views
from kdsearch.distil import answers, lesson
from kdsearch.distil.answers import ViewAnswers
from kdsearch.distil.teacher import Teacher
from kdsearch.distil.train import Batch, Run, _order
from kdsearch.search.plan import Plan
from kdsearch.spec import Augment, Recipe

AUGMENT = Augment(flip=True, shift=1)  # 18 views


class Asked(nn.Module):
    """A teacher that counts the images it was asked of."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 2))
        self.images = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return self.layers(images)


@pytest.fixture
def teacher_net() -> Asked:
    return Asked().eval()


def table(network: nn.Module, data: ImageSet, folder: Path, augment: Augment = AUGMENT, **kind) -> ViewAnswers:
    return ViewAnswers(network, data, prepare, augment, folder=folder, name="t", **kind)


def draw(data: ImageSet, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(data), generator=generator), torch.randint(18, (len(data),), generator=generator)


def test_each_answer_is_the_teachers_to_exactly_that_view(noise, teacher_net, tmp_path):
    found = table(teacher_net, noise, tmp_path)
    order, drawn = draw(noise, 0)
    found.fill(order, drawn)
    shown = views.make(noise.images[order], drawn, AUGMENT)
    with torch.no_grad():
        expected = teacher_net(prepare(shown))
        features = teacher_net.layers[:3](prepare(shown))
    torch.testing.assert_close(found.logits[order, drawn].float(), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.norms[order, drawn], features.norm(dim=1))
    assert int(found.known.sum()) == len(noise)
    assert not found.logits.is_inference()


def test_a_view_is_asked_once(noise, teacher_net, tmp_path):
    found = table(teacher_net, noise, tmp_path)
    before = teacher_net.images
    found.fill(*draw(noise, 0))
    found.fill(*draw(noise, 0))
    assert teacher_net.images - before == len(noise)
    order, drawn = draw(noise, 1)
    new = int((~found.known[order, drawn]).sum())
    found.fill(order, drawn)
    assert teacher_net.images - before == len(noise) + new


def test_what_is_kept_is_found_again_and_two_processes_add_up(noise, teacher_net, tmp_path):
    first, second = table(teacher_net, noise, tmp_path), table(teacher_net, noise, tmp_path)
    first.fill(*draw(noise, 0))
    second.fill(*draw(noise, 1))
    first.keep(now=True)
    second.keep(now=True)
    again = table(teacher_net, noise, tmp_path)
    assert torch.equal(again.known, first.known | second.known)
    assert torch.equal(again.logits[first.known], first.logits[first.known])
    asked = teacher_net.images
    again.fill(*draw(noise, 0))
    again.fill(*draw(noise, 1))
    assert teacher_net.images == asked


def test_nothing_new_is_not_written_and_not_too_often(noise, teacher_net, tmp_path):
    found = table(teacher_net, noise, tmp_path)
    found.keep(now=True)
    found.fill(*draw(noise, 0))
    found.keep()
    assert not list(tmp_path.glob("*.safetensors"))
    found.keep(now=True)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "changed byte"])
def test_a_broken_table_is_filled_anew(noise, teacher_net, tmp_path, damage):
    found = table(teacher_net, noise, tmp_path)
    found.fill(*draw(noise, 0))
    found.keep(now=True)
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(damaged(whole)[damage])
    again = table(teacher_net, noise, tmp_path)
    assert not again.known.any()
    again.fill(*draw(noise, 0))
    again.keep(now=True)
    assert path.read_bytes() == whole


POOL = Augment(flip=True, shift=1, views=5)
FIRST = torch.arange(40), torch.zeros(40, dtype=torch.int64)  # of each image, the first view


def test_other_views_have_a_table_of_their_own(noise, teacher_net, tmp_path):
    others = Augment(flip=False, shift=1), Augment(flip=True, shift=0), POOL, POOL.model_copy(update={"views": 4})
    for augment in (AUGMENT, *others):
        found = table(teacher_net, noise, tmp_path, augment)
        found.fill(*FIRST)
        found.keep(now=True)
    assert len(list(tmp_path.glob("*.safetensors"))) == 5


def test_a_training_from_the_table_is_one_with_the_teacher_in_the_loop(plan: Plan, teacher: Teacher, tmp_path):
    """The student of a lesson with the table against a plain loop that asks the teacher for each batch."""
    spec = with_recipe(plan.spec.student, augment=AUGMENT, lr_batch=None)
    config = {"width": 24, "loss_weight": 0.5, "temperature": 4.0, "epochs": 2, "batch_size": 32}
    found = ViewAnswers(teacher.network, plan.split.train, plan.split.prepare, AUGMENT, folder=tmp_path, name="t")
    student = lesson.build(spec, config, seed=0, split=plan.split)
    shown: list[torch.Tensor] = []
    hook = student.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0].clone()))
    run = lesson.teach(
        student, config, seed=0, data=plan.split.train, prepare=plan.split.prepare, answers=found, student_spec=spec
    )
    losses = [record.loss for record in run]
    hook.remove()
    plain = lesson.build(spec, config, seed=0, split=plan.split)
    optimizer = torch.optim.Adam(plain.parameters(), lr=spec.recipe.lr)
    by_view = {row.numpy().tobytes(): label for row, label in all_views(plan.split)}
    expected: list[float] = []
    for images in shown:
        labels = torch.tensor([by_view[image.numpy().tobytes()] for image in images])
        with torch.no_grad():
            targets = teacher.network(images)
        loss = lesson.distillation_loss(plain(images), labels, targets, loss_weight=0.5, temperature=4.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    half = len(expected) // 2
    assert losses == pytest.approx([sum(expected[:half]) / half, sum(expected[half:]) / half], rel=2e-3)


def all_views(split) -> list[tuple[torch.Tensor, int]]:
    pairs = []
    for view in range(views.count(AUGMENT)):
        made = views.make(split.train.images, torch.full((len(split.train),), view), AUGMENT)
        pairs += list(zip(split.prepare(made), split.train.labels.tolist(), strict=True))
    return pairs


def test_the_images_as_they_are_are_asked_for_the_centres_alone(noise, teacher_net, tmp_path):
    found = table(teacher_net, noise, tmp_path)
    assert teacher_net.images == 1  # which says how many classes there are
    expected = answers.ask(teacher_net, noise, prepare).centres
    asked = teacher_net.images
    torch.testing.assert_close(found.centres, expected)
    assert teacher_net.images == asked + len(noise)
    torch.testing.assert_close(table(teacher_net, noise, tmp_path).centres, expected)
    assert teacher_net.images == asked + len(noise) + 1  # they are kept


def test_the_answers_of_a_pool_are_to_the_views_that_a_training_shows(noise, teacher_net, tmp_path):
    """A step's images by index against the table's rows: one place in the pool, one view."""
    found = table(teacher_net, noise, tmp_path, POOL)
    assert found.logits.shape == (40, 5, 2)
    shown: list[tuple[torch.Tensor, torch.Tensor]] = []

    def loss(batch: Batch) -> torch.Tensor:
        shown[-1] = (shown[-1][0], batch.teacher_logits)
        return batch.logits.sum()

    student = Asked()
    student.register_forward_pre_hook(lambda _, inputs: shown.append((inputs[0].clone(), inputs[0])))
    what = lesson_of(noise, loss=loss, teacher_logits=found.logits, epochs=6, seed=3, before_epoch=found.fill)
    list(Run(student, what, Recipe(augment=POOL), validate=lambda _: 0.0))
    assert len(shown) == 6 * 3
    for images, answered in shown:
        with torch.no_grad():
            torch.testing.assert_close(answered, teacher_net(images), atol=1e-3, rtol=1e-3)
    epochs = [torch.cat([images for images, _ in shown[3 * epoch : 3 * epoch + 3]]) for epoch in range(6)]
    pixels = [{image.numpy().tobytes() for image in epoch} for epoch in epochs]
    assert not set.intersection(*pixels[:2])
    assert len(set.union(*pixels[:5])) == 5 * 40  # random images: no two of their views are alike
    assert pixels[5] == pixels[0]  # the pool is used up


def test_a_whole_training_asks_each_view_of_the_pool_once_whatever_the_order(noise, teacher_net, tmp_path):
    found = table(teacher_net, noise, tmp_path, POOL)
    before = teacher_net.images
    for seed in range(3):
        for epoch in range(1, 8):
            found.fill(*_order(lesson_of(noise, seed=seed), POOL, epoch))
    assert teacher_net.images - before == 5 * 40
    assert found.known.all()


def test_more_images_take_over_the_answers_of_the_first_ones(noise, teacher_net, tmp_path):
    few = ImageSet(noise.images[:25], noise.labels[:25])
    first = table(teacher_net, few, tmp_path, POOL)
    first.fill(torch.arange(25), torch.arange(25) % 5)
    first.keep(now=True)
    found = table(teacher_net, noise, tmp_path, POOL, begins=few)
    asked = teacher_net.images
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    found.fill(order, (torch.arange(40) % 5)[order])
    assert teacher_net.images - asked == 15
    fresh = table(teacher_net, noise, tmp_path / "other", POOL)
    fresh.fill(order, (torch.arange(40) % 5)[order])
    assert torch.equal(found.known, fresh.known)
    torch.testing.assert_close(found.logits, fresh.logits)


def test_another_process_that_has_written_is_not_asked_after(noise, teacher_net, tmp_path):
    first, second = table(teacher_net, noise, tmp_path, POOL), table(teacher_net, noise, tmp_path, POOL)
    first.fill(*FIRST)
    first.keep(now=True)
    asked = teacher_net.images
    second.fill(*FIRST)
    assert teacher_net.images == asked


def test_what_took_long_to_ask_is_written_at_once(noise, teacher_net, tmp_path, monkeypatch):
    found = table(teacher_net, noise, tmp_path, POOL)
    monkeypatch.setattr(answers, "ASKED_SECONDS", 0.0)
    between: list[int] = []
    found.fill(*FIRST, between=lambda: between.append(1))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert between == [1]


def test_answers_of_another_precision_are_others(noise, tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
    for precision in ("float32", "bfloat16"):
        found = table(network, noise, tmp_path, POOL, precision=precision)
        found.fill(*FIRST)
        found.keep(now=True)
    assert sorted("bfloat16" in path.name for path in tmp_path.glob("*.safetensors")) == [False, True]


def test_a_class_that_a_teacher_masks_stays_finite(noise: ImageSet, tmp_path: Path):
    class Masked(Asked):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images).masked_fill(torch.tensor([False, True]), -1e9)

    found = table(Masked().eval(), noise, tmp_path)
    order, drawn = draw(noise, 0)
    found.fill(order, drawn)
    shown = found.logits[order, drawn].float()
    assert shown.isfinite().all()
    assert (shown.softmax(1)[:, 1] == 0).all()
