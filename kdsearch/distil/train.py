"""The one epoch loop: a generator that yields each epoch's record; whoever drives it prints, prunes, saves or stops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsearch import networks, runtime
from kdsearch.data import ImageSet, views
from kdsearch.errors import TrialError
from kdsearch.records import EpochRecord
from kdsearch.spec import Augment, Recipe


@dataclass(frozen=True)
class Batch:
    """What the loss of a batch may look at.

    Attributes:
        logits: (batch, classes), the student's.
        labels: (batch,), int64.
        teacher_logits: (batch, classes), or None where the lesson has none.
        epoch: counted from 1.
        embedding: (batch, features), the input of the student's classifier; None where the lesson has no teacher norms.
        teacher_norms: (batch,), lengths of the teacher's embeddings, or None.
    """

    logits: Tensor
    labels: Tensor
    teacher_logits: Tensor | None
    epoch: int
    embedding: Tensor | None = None
    teacher_norms: Tensor | None = None


Loss = Callable[[Batch], Tensor]
"""From a batch to a scalar."""

ONE_CYCLE_START = 0.04  # share of the top rate at the first step
ONE_CYCLE_WARM_UP = 0.2  # share of the steps until the top rate


@dataclass(frozen=True)
class Lesson:
    """What a network is taught with.

    Attributes:
        data: images and labels on their device.
        prepare: from images of bytes to the network's input.
        loss: the loss of a batch.
        teacher_logits: (count, classes) in the order of `data`, where the recipe augments (count, views, classes), or
            None.
        teacher_norms: (count,) or (count, views), lengths of the teacher's embeddings, or None: then no loss sees an
            embedding.
        before_epoch: told the order of the images, (count,), and the view of each, before they are used; or None.
        companion: what is trained along with the network and thrown away after, such as a map between embeddings.
        epochs, batch_size: length and step of the training.
        seed: of the order of images and views, and of dropout.
        threads: CPU threads inside an operation; None: as many as torch takes.
        on_step: told, before each step, how many steps are done.
    """

    data: ImageSet
    prepare: Callable[[Tensor], Tensor]
    loss: Loss
    teacher_logits: Tensor | None
    epochs: int
    batch_size: int
    seed: int
    teacher_norms: Tensor | None = None
    before_epoch: Callable[[Tensor, Tensor], None] | None = None
    companion: nn.Module | None = None
    threads: int | None = None
    on_step: Callable[[int], None] = lambda step: None

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch; a last batch of one image is left out, for batch norm cannot take it."""
        whole, rest = divmod(len(self.data), self.batch_size)
        return max(1, whole + (rest > 1))


def make_optimizer(
    network: nn.Module, recipe: Recipe, batch_size: int, companion: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The recipe's optimiser for batches of a size, fused: one kernel for all parameters."""
    lr = recipe.rate_for(batch_size)
    parameters = [*network.parameters(), *(companion.parameters() if companion is not None else ())]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, eps=recipe.epsilon, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def schedule(recipe: Recipe, step: int, total: int) -> float:
    """The share of the learning rate that a step uses, counted from 0.

    One-cycle: linear from 4 % of the top rate to it over the first fifth, then linear to 0 (Smith and Topin, arXiv
    1708.07120, with straight lines).
    """
    if recipe.schedule == "constant":
        return 1.0
    top = ONE_CYCLE_WARM_UP * total
    if step < top:
        return ONE_CYCLE_START + (1.0 - ONE_CYCLE_START) * step / top
    return (total - step) / (total - top)


def _order(lesson: Lesson, augment: Augment, epoch: int) -> tuple[Tensor, Tensor]:
    """A permutation of the images, and a view for each place in it; drawn on the CPU, so alike on every device."""
    generator = torch.Generator().manual_seed(runtime.derive_seed("order", lesson.seed, epoch))
    order = torch.randperm(len(lesson.data), generator=generator)
    drawn = torch.randint(views.count(augment), (len(lesson.data),), generator=generator)
    device = lesson.data.labels.device
    return order.to(device), drawn.to(device)


def _of(table: Tensor | None, chosen: Tensor, drawn: Tensor | None) -> Tensor | None:
    """The teacher's rows of images or, where they were drawn, of their views, float32."""
    if table is None:
        return None
    return table.index_select(0, chosen) if drawn is None else table[chosen, drawn].float()


def forward(
    network: nn.Module, images: Tensor, lesson: Lesson, chosen: Tensor, drawn: Tensor | None, epoch: int
) -> Batch:
    """A forward pass, with all that the lesson's loss may look at.

    Args:
        network: in training mode.
        images: (batch, channels, height, width), its input.
        lesson: what it is taught with.
        chosen: (batch,), int64: which images of the lesson's data these are.
        drawn: (batch,), int64: which view of each, None where the recipe does not augment.
        epoch: counted from 1.
    """
    labels = lesson.data.labels.index_select(0, chosen)
    targets, norms = (_of(table, chosen, drawn) for table in (lesson.teacher_logits, lesson.teacher_norms))
    if norms is None:
        return Batch(network(images), labels, targets, epoch)
    logits, embedding = networks.with_embedding(network, images)
    return Batch(logits, labels, targets, epoch, embedding, norms)


def _epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    lesson: Lesson,
    recipe: Recipe,
    epoch: int,
    order: Tensor,
    drawn: Tensor,
) -> float:
    """Trains one epoch; the mean loss of its batches, NaN where a weight is not finite."""
    augmented = views.count(recipe.augment) > 1
    total = torch.zeros((), device=order.device)
    steps = lesson.steps
    for step in range(steps):
        lesson.on_step((epoch - 1) * steps + step)
        part = slice(step * lesson.batch_size, (step + 1) * lesson.batch_size)
        batch = order[part]
        # index_select: several times as fast as images[batch] on a CPU
        images = views.make(lesson.data.images.index_select(0, batch), drawn[part], recipe.augment)
        if recipe.schedule != "constant":
            share = schedule(recipe, (epoch - 1) * steps + step, lesson.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = share * recipe.rate_for(lesson.batch_size)
        which = drawn[part] if augmented else None
        loss = lesson.loss(forward(network, lesson.prepare(images), lesson, batch, which, epoch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
    finite = torch.stack([parameter.isfinite().all() for parameter in network.parameters()]).all()
    return torch.where(finite, total / steps, torch.nan).item()  # the epoch's only wait for the device


def _check_views(lesson: Lesson, recipe: Recipe) -> None:
    """Refuses logits of images as they are for a recipe that shows other views: they would be stale."""
    many = views.count(recipe.augment)
    expected = (len(lesson.data), many) if many > 1 else (len(lesson.data),)
    for table, rank in ((lesson.teacher_logits, len(expected) + 1), (lesson.teacher_norms, len(expected))):
        if table is not None and (table.ndim != rank or tuple(table.shape[: len(expected)]) != expected):
            raise ValueError(
                f"the teacher's answers must be of each of {many} views of {len(lesson.data)} images "
                f"(got shape {tuple(table.shape)})"
            )


def train(
    network: nn.Module, lesson: Lesson, recipe: Recipe, *, validate: Callable[[nn.Module], float]
) -> Iterator[EpochRecord]:
    """Trains a network, an epoch each time the next record is asked for.

    Args:
        network: on the lesson's device; trained in place.
        lesson: data, loss and length.
        recipe: optimiser, rate and augmentation.
        validate: accuracy of the network on the validation set, a fraction.

    Yields:
        The record of each epoch, from epoch 1 on.

    Raises:
        TrialError: the loss or the weights are not finite.
        ValueError: the lesson's teacher's logits or norms are not of every view that the recipe shows.
    """
    _check_views(lesson, recipe)
    optimizer = make_optimizer(network, recipe, lesson.batch_size, lesson.companion)
    device = lesson.data.labels.device
    if device.type == "cpu":
        runtime.keep_freed_memory()
    for epoch in range(1, lesson.epochs + 1):
        start = time.perf_counter()
        order, drawn = _order(lesson, recipe.augment, epoch)
        if lesson.before_epoch is not None:
            lesson.before_epoch(order, drawn)
        network.train()
        seed = runtime.derive_seed("epoch", lesson.seed, epoch)
        with runtime.threads(lesson.threads), runtime.seeded(seed, device):
            loss = _epoch(network, optimizer, lesson, recipe, epoch, order, drawn)
        seconds = time.perf_counter() - start  # _epoch has waited for the device
        if not math.isfinite(loss):
            raise TrialError(
                f"the weights and the training loss must be finite: epoch {epoch}",
                got=loss,
                remedy="lower the recipe's lr",
            )
        with runtime.threads(lesson.threads):
            accuracy = validate(network)
        yield EpochRecord(epoch, loss, accuracy, seconds)
