"""The training loop: an iterator over epochs, whose consumer prints, prunes, saves or stops."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.data import ImageSet, Stored, views
from kdsearch.distil.lean import Lean
from kdsearch.distil.optimizer import load_optimizer, make_optimizer, schedule, set_rate, shown_weights
from kdsearch.distil.step import Steps, format_for
from kdsearch.errors import TrialError
from kdsearch.records import EpochRecord, Precision
from kdsearch.spec import Augment, Recipe
from kdsearch.system import machine

BLOCK = 2**26  # values of images that are prepared at once on CUDA: 256 MB, 218 batches of 100 CIFAR-10 images


@dataclass(frozen=True)
class Batch:
    """The inputs of a batch's loss.

    Attributes:
        logits: (batch, classes), the student's.
        labels: (batch,), int64.
        teacher_logits: (batch, classes), or None if the lesson has none.
        epoch: (), counted from 1: a tensor, so that a captured step sees it change.
        embedding: (batch, features), the input of the student's classifier; None if the lesson has no teacher norms.
        teacher_norms: (batch,), norms of the teacher's embeddings, or None.
    """

    logits: Tensor
    labels: Tensor
    teacher_logits: Tensor | None
    epoch: Tensor
    embedding: Tensor | None = None
    teacher_norms: Tensor | None = None


State = dict[str, Any]
"""A training's state: dicts and lists of tensors and JSON values."""


@dataclass(frozen=True)
class Lesson:
    """The data, loss and length of a network's training.

    Attributes:
        data: images and labels on their device.
        prepare: preprocessing, from image bytes to the network's input.
        loss: a scalar for each batch.
        teacher_logits: (count, classes) in the order of `data` or, if the recipe augments, (count, views, classes) with
            as many views as are shown (`views.shown`), or None.
        teacher_norms: (count,) or (count, views), norms of the teacher's embeddings, or None: then losses get no
            embedding.
        before_epoch: called before each epoch with the order of the images, (count,), and the view of each (its place
            in the pool, if there is one); or None.
        companion: a module trained together with the network and discarded afterwards, such as a map between
            embeddings.
        epochs, batch_size: length and step of the training.
        seed: of the order of images and views, and of dropout.
        threads: CPU threads per operation; None: torch's default.
        capture: whether a step may be captured in a CUDA graph, which requires that the network never waits for the
            device.
        precision: of convolutions; None: the device's default.
        on_step: called before each step with the number of steps done.
    """

    data: ImageSet
    prepare: Callable[[Tensor], Tensor]
    loss: Callable[[Batch], Tensor]
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
        """Optimiser steps per epoch; a last batch of one image is left out, as batch norm does not accept it."""
        whole, rest = divmod(len(self.data), self.batch_size)
        return max(1, whole + (rest > 1))


def _order(lesson: Lesson, augment: Augment, epoch: int) -> tuple[Tensor, Tensor]:
    """Return a permutation of the images and a view for each (its place in the image's pool, if there are pools).

    They are drawn on the CPU, so equal on every device.
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
    if table is None:
        return None
    return table.index_select(0, chosen) if drawn is None else table[chosen, drawn].float()


Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""What a step reads: the network's input, labels, and the teacher's logits and norms if the lesson has them."""


def _check_views(lesson: Lesson, recipe: Recipe) -> None:
    """Refuse teacher logits of unaugmented images if the recipe augments: they would belong to other inputs."""
    many = views.shown(recipe.augment)
    expected = (len(lesson.data), many) if views.count(recipe.augment) > 1 else (len(lesson.data),)
    for table, rank in ((lesson.teacher_logits, len(expected) + 1), (lesson.teacher_norms, len(expected))):
        if table is not None and (table.ndim != rank or tuple(table.shape[: len(expected)]) != expected):
            raise ValueError(
                f"the teacher's answers must be of each of {many} views of {len(lesson.data)} images "
                f"(got shape {tuple(table.shape)})"
            )


class Run(Iterator[EpochRecord]):
    """The training of a network, an iterator: each record requested trains an epoch.

    Between two epochs its state can be taken; a run of the same network, lesson and recipe that resumes from it ends,
    on a CPU, with bitwise the same weights.

    Args:
        network: on the lesson's device; trained in place, its memory layout is changed.
        lesson: data, loss and length.
        recipe: optimiser, rate and augmentation.
        validate: returns the network's accuracy on the validation set, a fraction; NaN where it does not matter.
        state: from `state_dict`, on any device; None: from the beginning.

    Attributes:
        done: number of epochs so far.

    Raises:
        ValueError: the lesson lacks teacher logits or norms for some of the recipe's views, or the state belongs to
            another network or recipe; nothing was changed then.
    """

    def __init__(
        self,
        network: nn.Module,
        lesson: Lesson,
        recipe: Recipe,
        *,
        validate: Callable[[nn.Module], float] = lambda network: math.nan,
        state: State | None = None,
    ) -> None:
        _check_views(lesson, recipe)
        self._lesson, self._recipe, self._validate = lesson, recipe, validate
        self._device = lesson.data.labels.device
        if self._device.type == "cpu":
            machine.keep_freed_memory()
        self._augmented = views.count(recipe.augment) > 1
        pool = views.pool(len(lesson.data), recipe.augment)
        self._pool = None if pool is None else pool.to(self._device)
        self._form = format_for(network, self._device, lesson.precision)
        self._asking = 0.0  # seconds of asking the teacher before the last epoch
        self._network = network.to(memory_format=self._form.memory)  # type: ignore[call-overload]
        self._lean = Lean(network, self._form)
        self._optimizer = make_optimizer(network, recipe, lesson.batch_size, lesson.companion)
        self._epoch = torch.zeros((), device=self._device)
        self._total = torch.zeros((), device=self._device)
        # schedule-free SGD counts its steps on the host; a network may declare that it waits for the device
        capture = lesson.capture and recipe.optimizer != "schedulefree" and getattr(network, "capturable", True)
        # weakly: else only the cyclic collector would free the training, and the memory of its graph with it
        own = weakref.proxy(self)
        self._steps = Steps(
            lambda *batch: own._step(*batch), batch_size=lesson.batch_size, device=self._device, capture=capture
        )
        self._shown = shown_weights(self._optimizer, network, recipe, lesson.steps, lambda count: own._inputs(count))
        self.done = 0
        if state is not None:
            self._load(state["training"])
            self.done = int(state["epoch"])

    def __next__(self) -> EpochRecord:
        """Train an epoch; after the last one, or an error, the captured step and its memory are dropped.

        Raises:
            TrialError: the loss or the weights are not finite.
        """
        if self.done >= self._lesson.epochs:
            raise StopIteration
        with ExitStack() as ending:
            ending.callback(self.close)
            record = self._next()
            if self.done < self._lesson.epochs:
                ending.pop_all()
        return record

    def close(self) -> None:
        """Drop the captured step, where no further epoch is wanted; one that is asked for is trained without it."""
        self._steps.close()

    def _next(self) -> EpochRecord:
        lesson = self._lesson
        epoch = self.done + 1
        start = time.perf_counter()
        seed = machine.derive_seed("epoch", lesson.seed, epoch)
        with machine.threads(lesson.threads), machine.seeded(seed, self._device):
            loss = self.epoch(epoch)
        seconds = time.perf_counter() - start - self._asking  # the epoch has waited for the device
        if not math.isfinite(loss):
            raise TrialError(
                f"the weights and the training loss must be finite: epoch {epoch}",
                got=loss,
                remedy="lower the recipe's lr",
            )
        with machine.threads(lesson.threads):
            accuracy = self._validate(self._network)
        self.done = epoch
        return EpochRecord(epoch, loss, accuracy, seconds, self._asking)

    def epoch(self, epoch: int) -> float:
        """Train an epoch, counted from 1; return the mean loss of its batches, NaN if a weight is not finite.

        Afterwards the network holds the weights that represent the training so far. The host waits for the device once.
        """
        lesson, recipe = self._lesson, self._recipe
        order, drawn = _order(lesson, recipe.augment, epoch)
        begin = time.perf_counter()
        if lesson.before_epoch is not None:
            lesson.before_epoch(order, drawn)
        self._asking = time.perf_counter() - begin
        self._shown.hide()
        self._network.train()
        self._epoch.fill_(epoch)
        self._total.zero_()
        steps = lesson.steps
        with self._lean, machine.denormals_flushed():
            for step, inputs in enumerate(self._batches(order, drawn)):
                done = (epoch - 1) * steps + step
                lesson.on_step(done)
                if recipe.schedule != "constant":
                    share = schedule(recipe, done, lesson.epochs * steps)
                    set_rate(self._optimizer, share * recipe.rate_for(lesson.batch_size))
                self._steps(*inputs)
                self._lean.steps += 1
                self._shown.step()
        self._shown.show()
        finite = torch.stack([parameter.isfinite().all() for parameter in self._network.parameters()]).all()
        return torch.where(finite, self._total / steps, torch.nan).item()  # the epoch's only wait for the device

    def _batches(self, order: Tensor, drawn: Tensor) -> Iterator[Inputs]:
        """Yield the inputs of each step, made for many at once on CUDA, where a step is bound by its kernels.

        On a CPU they are made step by step: its caches fit a batch. Images in a file are read ahead, batch by batch.
        """
        size, steps = self._lesson.batch_size, self._lesson.steps
        images = self._lesson.data.images
        if isinstance(images, Stored):
            parts = [slice(step * size, (step + 1) * size) for step in range(steps)]
            places = order.cpu()  # once per epoch
            for part, fetched in zip(parts, images.batches(places[part] for part in parts), strict=True):
                yield self._ready(order[part], drawn[part], fetched.to(self._device, non_blocking=True))
            return
        block = max(1, BLOCK // (size * math.prod(images.shape[1:]))) if self._device.type == "cuda" else 1
        for first in range(0, steps, block):
            part = slice(first * size, min(first + block, steps) * size)
            ready = self._ready(order[part], drawn[part])
            split = (repeat(None) if each is None else each.split(size) for each in ready)
            yield from zip(*split, strict=False)  # type: ignore[misc]

    def _ready(self, chosen: Tensor, drawn: Tensor, fetched: Tensor | None = None) -> Inputs:
        """Return the inputs of steps on the drawn views of the chosen images; `fetched` are these if not in memory."""
        lesson, which = self._lesson, drawn if self._augmented else None
        targets, norms = (_of(table, chosen, which) for table in (lesson.teacher_logits, lesson.teacher_norms))
        return self._images(chosen, drawn, fetched), lesson.data.labels.index_select(0, chosen), targets, norms

    def _images(self, chosen: Tensor, drawn: Tensor, fetched: Tensor | None = None) -> Tensor:
        # index_select is several times as fast as images[chosen] on a CPU
        shown = self._lesson.data.images.index_select(0, chosen) if fetched is None else fetched
        which = drawn if self._pool is None else self._pool[chosen, drawn].long()
        return self._form.lay_out(self._lesson.prepare(views.make(shown, which, self._recipe.augment)))

    def sample(self) -> Callable[[], None]:
        """Return a call that takes a whole step on the first images, to count its kernels or time it alone."""
        chosen = torch.arange(self._lesson.batch_size, device=self._device)
        inputs = self._ready(chosen, torch.zeros_like(chosen))

        def take() -> None:
            with self._lean, machine.denormals_flushed():
                self._network.train()
                self._step(*inputs)

        return take

    def _forward(self, images: Tensor, labels: Tensor, targets: Tensor | None, norms: Tensor | None) -> Batch:
        with self._form.autocast(self._device):
            if norms is None:
                return Batch(networks.main_logits(self._network(images)).float(), labels, targets, self._epoch)
            logits, embedding = networks.with_embedding(self._network, images)
        return Batch(logits.float(), labels, targets, self._epoch, embedding.float(), norms)

    def _step(self, *inputs: Any) -> None:
        """Take a step: forward, loss, backward, optimiser; without waiting for the device."""
        self._lean.cast()
        loss = self._lesson.loss(self._forward(*inputs))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._lean.collect()
        self._optimizer.step()
        self._total += loss.detach()

    def state_dict(self) -> State:
        """Return the state between two epochs; its tensors are not copied.

        `checkpoint.save` writes it, `copy.deepcopy` keeps it. The order of images and views, dropout and the learning
        rate follow from the seed and the epoch's number, so no generator's state is needed.
        """
        training = {
            "weights": self._tensors(),
            "optimizer": self._optimizer.state_dict(),
            "shown": self._shown.state_dict(),
        }
        return {"epoch": self.done, "training": training}

    def _load(self, state: State) -> None:
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
        """Return parameters and buffers of network and companion, non-persistent buffers included."""
        modules = {"network": self._network, "companion": self._lesson.companion or nn.Identity()}
        return {
            f"{prefix}.{name}": tensor.detach()
            for prefix, module in modules.items()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }

    def _inputs(self, count: int) -> list[Tensor]:
        """Return up to `count` input batches, the same ones each time."""
        order, drawn = _order(self._lesson, self._recipe.augment, 0)
        taken = min(count, self._lesson.steps) * self._lesson.batch_size
        parts = (each[:taken].split(self._lesson.batch_size) for each in (order, drawn))
        return list(map(self._images, *parts))
