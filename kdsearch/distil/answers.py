"""A teacher's answers to images and to their augmented views: computed once, as they are asked for, and cached."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch.data import ImageSet, fingerprint, views
from kdsearch.distil import frozen
from kdsearch.distil.frozen import Ask
from kdsearch.distil.step import format_for
from kdsearch.errors import KdsearchError
from kdsearch.records import Precision
from kdsearch.spec import Augment
from kdsearch.system import files, machine

Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Answers:
    """The answers of a frozen teacher to images.

    Attributes:
        logits: (count, classes), float32, in the images' order.
        norms: (count,), float32: norms of the embeddings, the inputs of its classifier; 0 if it has no classifier.
        centres: (classes, features), float32: unit vectors, the directions of each class's mean embedding; without
            features if it has no classifier.
    """

    logits: Tensor
    norms: Tensor
    centres: Tensor

    def fill(self, order: Tensor, drawn: Tensor, *, between: Callable[[], None] = lambda: None) -> None:
        """Do nothing: an image has a single view, and all were asked."""

    def keep(self, *, now: bool = False) -> None:
        """Do nothing: the answers are stored already."""


def ask(
    network: nn.Module, data: ImageSet, prepare: Prepare, *, precision: Precision | None = None, fold: bool = True
) -> Answers:
    """Compute a teacher's answers in evaluation mode.

    Args:
        network: on the images' device; left in evaluation mode.
        data: images, and the labels for the class centres.
        prepare: preprocessing, from image bytes to the network's input.
        precision, fold: see `frozen.ready`.
    """
    asked = frozen.ready(network, prepare(data.images[: frozen.EXAMPLES]), precision, fold=fold)
    size = frozen.batch_size(data)
    parts: list[tuple[Tensor, Tensor]] = []
    sums: Tensor | None = None
    with torch.inference_mode():
        for images, labels in zip(data.images.split(size), data.labels.split(size), strict=True):
            logits, embedding = asked(prepare(images))
            if sums is None:
                sums = embedding.new_zeros(logits.shape[1], embedding.shape[1], dtype=torch.float64)
            sums.index_add_(0, labels, embedding.double())
            parts.append((logits, torch.linalg.vector_norm(embedding, dim=1)))
    assert sums is not None, "there must be images"
    # the direction of a mean is that of the sum; clones, as tensors made in inference mode cannot be trained with
    return Answers(
        logits=torch.cat([logits for logits, _ in parts]).clone(),
        norms=torch.cat([norms for _, norms in parts]).clone(),
        centres=F.normalize(sums, dim=1).float().clone(),
    )


def named(name: str, network: nn.Module, data: ImageSet, precision: Precision | None) -> str:
    """Return the prefix of a file of a teacher's answers, which differ by precision."""
    form = format_for(network, data.labels.device, precision)
    return f"{name}-{fingerprint([data])}" + ("-bfloat16" if form.bf16 else "")


def kept_file(network: nn.Module, data: ImageSet, precision: Precision | None, *, folder: Path, name: str) -> Path:
    """Return the file of the answers to these images in the cache."""
    return folder / f"{named(name, network, data, precision)}.answers.safetensors"


def obtain(
    network: nn.Module,
    data: ImageSet,
    prepare: Prepare,
    *,
    folder: Path,
    name: str,
    precision: Precision | None = None,
    fold: bool = True,
) -> Answers:
    """Return a teacher's answers from the cache, else compute and cache them.

    Args:
        network: the teacher, on the images' device.
        data: images and labels.
        prepare: preprocessing, from image bytes to the network's input.
        folder: of the cache.
        name: fingerprint of the teacher; names the file, together with the images and the precision.
        precision, fold: see `frozen.ready`.

    Raises:
        KdsearchError: the cache cannot be written.
    """
    path = kept_file(network, data, precision, folder=folder, name=name)
    with files.locked(path):
        kept = _from_cache(path, data.labels.device)
        if kept is not None and len(kept.logits) == len(data):
            return kept
        asked = ask(network, data, prepare, precision=precision, fold=fold)
        files.save_tensors(path, vars(asked), {})
        return asked


def _from_cache(path: Path, device: torch.device) -> Answers | None:
    """Return the answers in a file; None if it is missing or broken, then they are computed again."""
    try:
        return Answers(**files.load_tensors(path, device)[0]) if path.is_file() else None
    except (OSError, ValueError, TypeError):
        return None


KEEP_SECONDS = 300.0  # between two writes of a table of up to 200 MB, if little was asked meanwhile
ASKED_SECONDS = 10.0  # of asking that must not be lost or repeated by another worker: then the table is written
WRITE_SHARE = 20.0  # seconds of asking before the next write, as a multiple of the last write's duration


class ViewAnswers:
    """Table of a frozen teacher's answers to views of its images, filled as views are drawn.

    A student sees one of finitely many views and reads that view's own logits: no teacher runs in a training step. The
    teacher is never asked more than it would be in the training loop, and in a long search only once per view.
    Processes that share the folder share the answers.

    Attributes:
        logits: (count, views, classes), float16: 14 MB for CIFAR-10 with pools of 15 views, 162 MB with all views of
            flips and shifts of 4 pixels. The second axis is the place in the pool, if there are pools.
        norms: (count, views), float32, norms of the embeddings.
        known: (count, views), bool: which views have been asked.

    Args:
        ask: computes the teacher's answers, from `frozen.ready`.
        data: images and labels.
        prepare: preprocessing, from image bytes to the network's input.
        augment: defines the views.
        classes: number of logits.
        path: file of the table.
        plain: returns the teacher's answers to the unaugmented images; used only for the centres.
    """

    def __init__(
        self,
        ask: Ask,
        data: ImageSet,
        prepare: Prepare,
        augment: Augment,
        *,
        classes: int,
        path: Path,
        plain: Callable[[], Answers],
    ) -> None:
        self._ask, self._data, self._prepare, self._augment, self._path = ask, data, prepare, augment, path
        self._plain = plain
        count, device = views.shown(augment), data.labels.device
        pool = views.pool(len(data), augment)
        self._pool = None if pool is None else pool.to(device)
        self.logits = torch.zeros(len(data), count, classes, dtype=torch.float16, device=device)
        self.norms = torch.zeros(len(data), count, device=device)
        self.known = torch.zeros(len(data), count, dtype=torch.bool, device=device)
        self._asked = False
        self._asking = 0.0  # seconds of asking since the last write
        self._write_seconds = 0.0  # duration of the last write
        self._kept_at = time.monotonic()
        self._seen: float | None = None  # modification time of the file that was merged last
        with files.locked(path):
            self._merge()

    @cached_property
    def centres(self) -> Tensor:
        """Class centres of the unaugmented images, (classes, features), float32 (see `Answers`)."""
        return self._plain().centres

    def fill(self, order: Tensor, drawn: Tensor, *, between: Callable[[], None] = lambda: None) -> None:
        """Ask the teacher for those of these views that have not been asked before.

        Args:
            order: (images,), int64: indices of images.
            drawn: (images,), int64: the view of each, its place in the pool if there are pools.
            between: called before each batch.
        """
        if self.known[order, drawn].all():
            return
        self._look()
        new = ~self.known[order, drawn]
        chosen, which = order[new], drawn[new]
        size = frozen.batch_size(self._data)
        for indices, wanted in zip(chosen.split(size), which.split(size), strict=True):
            between()
            begin = time.monotonic()
            self._ask_for(indices, wanted)
            self._asking += time.monotonic() - begin
            if self._asking > max(ASKED_SECONDS, WRITE_SHARE * self._write_seconds):
                with suppress(KdsearchError):  # `keep` reports it after the trial
                    self.keep(now=True)

    def _ask_for(self, indices: Tensor, wanted: Tensor) -> None:
        """Ask for a batch of views and wait for the device."""
        which = wanted if self._pool is None else self._pool[indices, wanted].long()
        with torch.no_grad():
            images = views.make(self._data.images[indices], which, self._augment)
            logits, embedding = self._ask(self._prepare(images))
            self.logits[indices, wanted] = logits.half()
            self.norms[indices, wanted] = torch.linalg.vector_norm(embedding, dim=1)
        self.known[indices, wanted] = True
        self._asked = True
        machine.synchronize(self.known.device)

    def keep(self, *, now: bool = False) -> None:
        """Write the table, merged with what other processes have written meanwhile, if it has grown.

        Args:
            now: whether to write even if the last write is less than minutes ago.

        Raises:
            KdsearchError: it cannot be written.
        """
        if not self._asked or not (now or time.monotonic() - self._kept_at > KEEP_SECONDS):
            return
        begin = time.monotonic()
        with files.locked(self._path):
            self._merge()
            tensors = {"logits": self.logits, "norms": self.norms, "known": self.known}
            files.save_tensors(self._path, tensors, {})
            self._seen = _written(self._path)
        self._asked, self._asking, self._kept_at = False, 0.0, time.monotonic()
        self._write_seconds = self._kept_at - begin

    def adopt(self, path: Path) -> None:
        """Copy the answers from the table of this data's first images, if there is one; their pools are the same."""
        with files.locked(path):
            self._merge(path)
        self._asked = bool(self.known.any())

    def _look(self) -> None:
        """Merge what another process has written since the last look."""
        if _written(self._path) not in (None, self._seen):
            with files.locked(self._path):
                self._merge()

    def _merge(self, path: Path | None = None) -> None:
        """Merge a file, by default this table's own; a broken one is ignored."""
        source = path or self._path
        if not source.is_file():
            return
        if path is None:
            self._seen = _written(source)
        try:
            kept, _ = files.load_tensors(source, self.known.device)
            count = len(kept["known"])
            if kept["logits"].shape[1:] != self.logits.shape[1:] or count > len(self.known):
                return
            theirs = kept["known"] & ~self.known[:count]
            self.logits[:count][theirs], self.norms[:count][theirs] = kept["logits"][theirs], kept["norms"][theirs]
            self.known[:count] |= theirs
        except (OSError, ValueError, KeyError, RuntimeError, IndexError):
            return


def _written(path: Path) -> float | None:
    """Return a file's modification time; None if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def obtain_views(
    network: nn.Module,
    data: ImageSet,
    prepare: Prepare,
    augment: Augment,
    *,
    folder: Path,
    name: str,
    precision: Precision | None = None,
    begins: ImageSet | None = None,
) -> ViewAnswers:
    """Return the table of a teacher's answers to views, with those kept on disk.

    Args:
        network: the teacher, on the images' device.
        data, prepare, augment: see `ViewAnswers`.
        folder: of the cache.
        name: fingerprint of the teacher; names the file, together with the images, the precision and the views.
        precision: of the teacher's convolutions; None: the device's default.
        begins: images at the beginning of the data that may have a table of their own; None: none.
    """

    def path(images: ImageSet) -> Path:
        pool = "" if augment.views is None else f"-pool{augment.views}"
        kind = f"flip{int(augment.flip)}-shift{augment.shift}{pool}"
        return folder / f"{named(name, network, images, precision)}-{kind}.views.safetensors"

    example = prepare(data.images[: frozen.EXAMPLES])
    ask = frozen.ready(network, example, precision)
    with torch.no_grad():
        classes = ask(example[:1])[0].shape[1]
    plain = partial(obtain, network, data, prepare, folder=folder, name=name, precision=precision)
    table = ViewAnswers(ask, data, prepare, augment, classes=classes, path=path(data), plain=plain)
    if begins is not None:
        table.adopt(path(begins))
    return table
