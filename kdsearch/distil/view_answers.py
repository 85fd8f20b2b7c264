"""A teacher's answers to the augmented views of images: asked once each, as they are drawn, and kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from kdsearch.data import ImageSet, views
from kdsearch.distil import answers, frozen
from kdsearch.distil.answers import Answers, Prepare
from kdsearch.distil.frozen import Ask
from kdsearch.errors import KdsearchError
from kdsearch.records import Precision
from kdsearch.spec import Augment
from kdsearch.system import files, machine

KEEP_SECONDS = 300.0  # between two writes of a table that can have 200 MB, where nothing much was asked meanwhile
ASKED_SECONDS = 10.0  # of asking that are not to be lost, nor done by another worker again: then the table is written
WRITE_SHARE = 20.0  # times what a write took, in seconds of asking, before the next


class ViewAnswers:
    """What a frozen teacher says of the views of its images, a view at a time as they are drawn.

    A student is shown one of finitely many views, and reads that very view's logits: no teacher runs in a step, and
    none of its answers is of another view. Filling as views are drawn never asks more than a teacher in the loop would,
    and in a long search it asks each view once. Processes that share the folder find each other's answers there.

    Attributes:
        logits: (count, views, classes), float16: 14 MB for CIFAR-10 with pools of 15 views, 162 MB with all views of
            flips and shifts of 4 pixels. The second axis is the place in the pool, where there are pools.
        norms: (count, views), float32, lengths of the embeddings.
        known: (count, views), bool: which views were asked.

    Args:
        ask: asks the teacher, of `frozen.ready`.
        data: images and labels.
        prepare: from images of bytes to the network's input.
        augment: whose views there are.
        classes: how many logits there are.
        path: where the table is kept.
        plain: gives the teacher's answers to the images as they are; asked for the centres alone.
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
        self._asking = 0.0  # seconds since the last write
        self._write_seconds = 0.0  # of the last write
        self._kept_at = time.monotonic()
        self._seen: float | None = None  # when the file that was merged last had been written
        with files.locked(path):
            self._merge()

    @cached_property
    def centres(self) -> Tensor:
        """(classes, features), float32: as of `Answers`, of the images as they are."""
        return self._plain().centres

    def fill(self, order: Tensor, drawn: Tensor, *, between: Callable[[], None] = lambda: None) -> None:
        """Asks the teacher for those of these views that nobody asked before.

        Args:
            order: (images,), int64: which images.
            drawn: (images,), int64: which view of each, its place in the pool where there are pools.
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
                with suppress(KdsearchError):  # `keep` says so after the trial
                    self.keep(now=True)

    def _ask_for(self, indices: Tensor, wanted: Tensor) -> None:
        """Asks for a batch of views and waits for the device."""
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
        """Writes the table together with what other processes have kept meanwhile, if it has grown.

        Args:
            now: else only where the last time is minutes ago.

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
        """Takes over what the table of this table's first images knows, if there is one; their pools are the same."""
        with files.locked(path):
            self._merge(path)
        self._asked = bool(self.known.any())

    def _look(self) -> None:
        """Takes over what another process has written since this one looked."""
        if _written(self._path) not in (None, self._seen):
            with files.locked(self._path):
                self._merge()

    def _merge(self, path: Path | None = None) -> None:
        """Takes over what a file, by default this table's own, knows beyond the table; a broken one is as none."""
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
    """When a file was written; None where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def obtain(
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
    """The table of a teacher's answers to views, with what was kept of it.

    Args:
        network: the teacher, on the images' device.
        data, prepare, augment: as of `ViewAnswers`.
        folder: of the cache.
        name: of the teacher, its fingerprint; the file is named after it, the images, the precision and the views.
        precision: of the teacher's convolutions; None: the usual one of the device.
        begins: images that the data begin with and that may have a table of their own; None: there are none.
    """

    def path(images: ImageSet) -> Path:
        pool = "" if augment.views is None else f"-pool{augment.views}"
        kind = f"flip{int(augment.flip)}-shift{augment.shift}{pool}"
        return folder / f"{answers.named(name, network, images, precision)}-{kind}.views.safetensors"

    example = prepare(data.images[: frozen.EXAMPLES])
    ask = frozen.ready(network, example, precision)
    with torch.no_grad():
        classes = ask(example[:1])[0].shape[1]
    plain = partial(answers.obtain, network, data, prepare, folder=folder, name=name, precision=precision)
    table = ViewAnswers(ask, data, prepare, augment, classes=classes, path=path(data), plain=plain)
    if begins is not None:
        table.adopt(path(begins))
    return table
