"""The one epoch loop: a generator that yields each epoch's record; whoever drives it prints, prunes, saves or stops."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.data import ImageSet, Stored, views
from kdsearch.distil.optimizer import load_optimizer, make_optimizer, schedule, set_rate, shown_weights
from kdsearch.distil.step import Format, Steps, format_for
from kdsearch.errors import TrialError
from kdsearch.records import EpochRecord, Precision
from kdsearch.spec import Augment, Recipe
from kdsearch.system import machine


@dataclass(frozen=True)
class Batch:
    """What the loss of a batch may look at.

    Attributes:
        logits: (batch, classes), the student's.
        labels: (batch,), int64.
        teacher_logits: (batch, classes), or None where the lesson has none.
        epoch: (), counted from 1: a tensor, so that a captured step sees it change.
        embedding: (batch, features), the input of the student's classifier; None where the lesson has no teacher norms.
        teacher_norms: (batch,), lengths of the teacher's embeddings, or None.
    """

    logits: Tensor
    labels: Tensor
    teacher_logits: Tensor | None
    epoch: Tensor
    embedding: Tensor | None = None
    teacher_norms: Tensor | None = None


Loss = Callable[[Batch], Tensor]
"""From a batch to a scalar."""

Method = TypeVar("Method", bound=Callable[..., object])

State = dict[str, Any]
"""A training's state: dicts and lists of tensors and plain values."""


@dataclass(frozen=True)
class Lesson:
    """What a network is taught with.

    Attributes:
        data: images and labels on their device.
        prepare: from images of bytes to the network's input.
        loss: the loss of a batch.
        teacher_logits: (count, classes) in the order of `data`, where the recipe augments (count, views, classes) with
            as many views as are shown (`views.shown`), or None.
        teacher_norms: (count,) or (count, views), lengths of the teacher's embeddings, or None: then no loss sees an
            embedding.
        before_epoch: told the order of the images, (count,), and the view of each, its place in the pool where there is
            one, before they are used; or None.
        companion: what is trained along with the network and thrown away after, such as a map between embeddings.
        epochs, batch_size: length and step of the training.
        seed: of the order of images and views, and of dropout.
        threads: CPU threads inside an operation; None: as many as torch takes.
        capture: whether a step may be captured in a CUDA graph: it may where the network never waits for the device.
        precision: that convolutions compute in; None: the usual one of the device.
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
    capture: bool = True
    precision: Precision | None = None
    on_step: Callable[[int], None] = lambda step: None

    @property
    def steps(self) -> int:
        """Optimiser steps an epoch; a last batch of one image is left out, for batch norm cannot take it."""
        whole, rest = divmod(len(self.data), self.batch_size)
        return max(1, whole + (rest > 1))


def _order(lesson: Lesson, augment: Augment, epoch: int) -> tuple[Tensor, Tensor]:
    """A permutation of the images, and a view for each place in it; drawn on the CPU, so alike on every device.

    A view is given by its place in the image's pool, where there are pools.
    """
    generator = torch.Generator().manual_seed(machine.derive_seed("order", lesson.seed, epoch))
    order = torch.randperm(len(lesson.data), generator=generator)
    if augment.views is None:
        drawn = torch.randint(views.count(augment), (len(lesson.data),), generator=generator)
    else:
        drawn = views.places(len(lesson.data), augment, seed=lesson.seed, epoch=epoch)[order]
    device = lesson.data.labels.device
    return order.to(device), drawn.to(device)


def _of(table: Tensor | None, chosen: Tensor, drawn: Tensor | None) -> Tensor | None:
    """The teacher's rows of images or, where they were drawn, of their views, float32."""
    if table is None:
        return None
    return table.index_select(0, chosen) if drawn is None else table[chosen, drawn].float()


def forward(
    network: nn.Module,
    images: Tensor,
    lesson: Lesson,
    chosen: Tensor,
    drawn: Tensor | None,
    epoch: Tensor,
    form: Format,
) -> Batch:
    """A forward pass, with all that the lesson's loss may look at, float32.

    Args:
        network: in training mode.
        images: (batch, channels, height, width), its input.
        lesson: what it is taught with.
        chosen: (batch,), int64: which images of the lesson's data these are.
        drawn: (batch,), int64: which view of each, None where the recipe does not augment.
        epoch: (), counted from 1.
        form: how the network computes.
    """
    labels = lesson.data.labels.index_select(0, chosen)
    targets, norms = (_of(table, chosen, drawn) for table in (lesson.teacher_logits, lesson.teacher_norms))
    with form.autocast(images.device):
        if norms is None:
            return Batch(network(form.lay_out(images)).float(), labels, targets, epoch)
        logits, embedding = networks.with_embedding(network, form.lay_out(images))
    return Batch(logits.float(), labels, targets, epoch, embedding.float(), norms)


def _alive(method: weakref.WeakMethod[Method]) -> Method:
    """A method of an object that is there: it is what calls."""
    found = method()
    assert found is not None
    return found


class Training:
    """A training under way: network, optimiser, and what a step writes for the host to read at an epoch's end.

    Args:
        network: on the lesson's device; its weights are laid out anew.
        lesson: data, loss and length.
        recipe: optimiser, rate and augmentation.
    """

    def __init__(self, network: nn.Module, lesson: Lesson, recipe: Recipe) -> None:
        self._lesson, self._recipe = lesson, recipe
        self._device = lesson.data.labels.device
        self._augmented = views.count(recipe.augment) > 1
        pool = views.pool(len(lesson.data), recipe.augment)
        self._pool = None if pool is None else pool.to(self._device)
        self._form = format_for(network, self._device, lesson.precision)
        self.asking = 0.0  # seconds of asking the teacher before the last epoch
        self._network = network.to(memory_format=self._form.memory)  # type: ignore[call-overload]
        self._optimizer = make_optimizer(network, recipe, lesson.batch_size, lesson.companion)
        self._epoch = torch.zeros((), device=self._device)
        self._total = torch.zeros((), device=self._device)
        # schedule-free SGD counts its steps on the host; a network may say that it waits for the device itself
        capture = lesson.capture and recipe.optimizer != "schedulefree" and getattr(network, "capturable", True)
        # weakly: else only the cyclic collector would free the training, and the memory of its graph with it
        take, inputs = weakref.WeakMethod(self._step), weakref.WeakMethod(self._inputs)
        self._steps = Steps(
            lambda *batch: _alive(take)(*batch), batch_size=lesson.batch_size, device=self._device, capture=capture
        )
        # images that lie in a file are fetched beside the steps, into the place that a captured step reads
        self._fetched: Tensor | None = None
        if isinstance(lesson.data.images, Stored):
            size = (lesson.batch_size, *lesson.data.images.shape[1:])
            self._fetched = torch.zeros(size, dtype=torch.uint8, device=self._device)
        self._shown = shown_weights(self._optimizer, network, recipe, lesson.steps, lambda count: _alive(inputs)(count))

    def close(self) -> None:
        """Drops the captured step; what was trained stays."""
        self._steps.close()

    def epoch(self, epoch: int) -> float:
        """Trains an epoch, counted from 1; the mean loss of its batches, NaN where a weight is not finite.

        The network then holds the weights that stand for the training so far; no host waits for the device before.
        """
        lesson, recipe = self._lesson, self._recipe
        order, drawn = _order(lesson, recipe.augment, epoch)
        begin = time.perf_counter()
        if lesson.before_epoch is not None:
            lesson.before_epoch(order, drawn)
        self.asking = time.perf_counter() - begin
        self._shown.hide()
        self._network.train()
        self._epoch.fill_(epoch)
        self._total.zero_()
        steps = lesson.steps
        parts = [slice(step * lesson.batch_size, (step + 1) * lesson.batch_size) for step in range(steps)]
        for step, fetched in enumerate(self._fetch(order, parts)):
            done = (epoch - 1) * steps + step
            lesson.on_step(done)
            if recipe.schedule != "constant":
                share = schedule(recipe, done, lesson.epochs * steps)
                set_rate(self._optimizer, share * recipe.rate_for(lesson.batch_size))
            if self._fetched is not None and fetched is not None:
                self._fetched[: len(fetched)].copy_(fetched, non_blocking=True)
            self._steps(order[parts[step]], drawn[parts[step]])
            self._shown.step()
        self._shown.show()
        finite = torch.stack([parameter.isfinite().all() for parameter in self._network.parameters()]).all()
        return torch.where(finite, self._total / steps, torch.nan).item()  # the epoch's only wait for the device

    def _fetch(self, order: Tensor, parts: list[slice]) -> Iterator[Tensor | None]:
        """The images of each batch, read ahead, where they lie in a file; None where a step finds them in memory."""
        images = self._lesson.data.images
        if not isinstance(images, Stored):
            return iter([None] * len(parts))
        places = order.cpu()  # once an epoch
        return images.batches(places[part] for part in parts)

    def _images(self, chosen: Tensor, drawn: Tensor, fetched: Tensor | None = None) -> Tensor:
        """The network's input for views of images."""
        # index_select: several times as fast as images[chosen] on a CPU
        shown = self._lesson.data.images.index_select(0, chosen) if fetched is None else fetched[: len(chosen)]
        which = drawn if self._pool is None else self._pool[chosen, drawn].long()
        return self._lesson.prepare(views.make(shown, which, self._recipe.augment))

    def _step(self, chosen: Tensor, drawn: Tensor) -> None:
        """Views, forward, loss, backward, optimiser; nothing here waits for the device."""
        which = drawn if self._augmented else None
        images = self._images(chosen, drawn, self._fetched)
        batch = forward(self._network, images, self._lesson, chosen, which, self._epoch, self._form)
        loss = self._lesson.loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._total += loss.detach()

    def state_dict(self) -> State:
        """All that the next epoch depends on but its number: weights, optimiser, averages; taken between two epochs."""
        return {
            "weights": self._tensors(),
            "optimizer": self._optimizer.state_dict(),
            "shown": self._shown.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Goes on from a state of `state_dict`, in place.

        Raises:
            ValueError: it is of another network or recipe; nothing was changed.
        """
        own, given = self._tensors(), state["weights"]
        if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in given.items()}:
            raise ValueError("the state must be of this network")
        if set(state["shown"]) != set(self._shown.state_dict()):
            raise ValueError("the state must be of this recipe")
        load_optimizer(self._optimizer, state["optimizer"])
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(given[name])
        self._shown.load_state_dict(state["shown"])

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the network and its companion by name, buffers that no file holds included."""
        modules = {"network": self._network, "companion": self._lesson.companion or nn.Identity()}
        return {
            f"{prefix}.{name}": tensor.detach()
            for prefix, module in modules.items()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }

    def _inputs(self, count: int) -> list[Tensor]:
        """At most so many batches of inputs, the same ones each time."""
        order, drawn = _order(self._lesson, self._recipe.augment, 0)
        taken = min(count, self._lesson.steps) * self._lesson.batch_size
        parts = (each[:taken].split(self._lesson.batch_size) for each in (order, drawn))
        return [self._form.lay_out(self._images(*part)) for part in zip(*parts, strict=True)]


def _check_views(lesson: Lesson, recipe: Recipe) -> None:
    """Refuses logits of images as they are for a recipe that shows other views: they would be stale."""
    many = views.shown(recipe.augment)
    expected = (len(lesson.data), many) if views.count(recipe.augment) > 1 else (len(lesson.data),)
    for table, rank in ((lesson.teacher_logits, len(expected) + 1), (lesson.teacher_norms, len(expected))):
        if table is not None and (table.ndim != rank or tuple(table.shape[: len(expected)]) != expected):
            raise ValueError(
                f"the teacher's answers must be of each of {many} views of {len(lesson.data)} images "
                f"(got shape {tuple(table.shape)})"
            )


class Run(Iterator[EpochRecord]):
    """A training as an iterator: an epoch is trained when its record is asked for.

    Between two epochs its state can be taken; a run of the same network, lesson and recipe that is given that state
    goes on from there and ends, on a CPU, with the same weights bit by bit.

    Args:
        network, lesson, recipe, validate: as of `train`.
        state: of `state_dict`, on any device; None: from the beginning.

    Attributes:
        done: epochs so far.

    Raises:
        ValueError: as of `train`.
    """

    def __init__(
        self,
        network: nn.Module,
        lesson: Lesson,
        recipe: Recipe,
        *,
        validate: Callable[[nn.Module], float],
        state: State | None = None,
    ) -> None:
        _check_views(lesson, recipe)
        self._network, self._lesson, self._validate = network, lesson, validate
        self._device = lesson.data.labels.device
        if self._device.type == "cpu":
            machine.keep_freed_memory()
        self._training = Training(network, lesson, recipe)
        self.done = 0
        if state is not None:
            self._training.load_state_dict(state["training"])
            self.done = int(state["epoch"])

    def __next__(self) -> EpochRecord:
        """Trains an epoch; after the last one, or an error, the captured step and its memory are dropped.

        Raises:
            TrialError: the loss or the weights are not finite.
        """
        if self.done >= self._lesson.epochs:
            raise StopIteration
        ended = True
        try:
            record = self._next()
            ended = self.done >= self._lesson.epochs
        finally:
            if ended:
                self.close()
        return record

    def close(self) -> None:
        """Drops the captured step, where no further epoch is wanted; one that is asked for is trained without it."""
        self._training.close()

    def _next(self) -> EpochRecord:
        lesson = self._lesson
        epoch = self.done + 1
        start = time.perf_counter()
        seed = machine.derive_seed("epoch", lesson.seed, epoch)
        with machine.threads(lesson.threads), machine.seeded(seed, self._device):
            loss = self._training.epoch(epoch)
        seconds = time.perf_counter() - start - self._training.asking  # the epoch has waited for the device
        if not math.isfinite(loss):
            raise TrialError(
                f"the weights and the training loss must be finite: epoch {epoch}",
                got=loss,
                remedy="lower the recipe's lr",
            )
        with machine.threads(lesson.threads):
            accuracy = self._validate(self._network)
        self.done = epoch
        return EpochRecord(epoch, loss, accuracy, seconds, self._training.asking)

    def state_dict(self) -> State:
        """The state between two epochs; its tensors are those that the training goes on with, no copies.

        `checkpoint.save` writes it, `copy.deepcopy` keeps it. The order of images and views, dropout and the learning
        rate follow from the seed and the epoch's number, so no generator's state is part of it.
        """
        return {"epoch": self.done, "training": self._training.state_dict()}


def train(
    network: nn.Module,
    lesson: Lesson,
    recipe: Recipe,
    *,
    validate: Callable[[nn.Module], float],
    state: State | None = None,
) -> Run:
    """Trains a network, an epoch each time the next record is asked for.

    Args:
        network: on the lesson's device; trained in place.
        lesson: data, loss and length.
        recipe: optimiser, rate and augmentation.
        validate: accuracy of the network on the validation set, a fraction.
        state: of a run that stopped (`Run.state_dict`), to go on from; None: from the beginning.

    Returns:
        An iterator over the record of each epoch that is left, from epoch 1 on without a state.

    Raises:
        TrialError: the loss or the weights are not finite.
        ValueError: the lesson's teacher's logits or norms are not of every view that the recipe shows, or the state is
            of another network or recipe; nothing was changed then.
    """
    return Run(network, lesson, recipe, validate=validate, state=state)
