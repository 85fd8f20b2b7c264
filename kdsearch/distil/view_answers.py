"""A teacher's answers to the augmented views of images: asked once each, as they are drawn, and kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from kdsearch.data import ImageSet, fingerprint, views
from kdsearch.distil import answers
from kdsearch.distil.answers import Answers, Prepare
from kdsearch.measure.accuracy import batch_of
from kdsearch.spec import Augment
from kdsearch.system import files

KEEP_SECONDS = 300.0  # between two writes of a table that can have 200 MB


class ViewAnswers:
    """What a frozen teacher says of every view of its images, a view at a time as they are drawn.

    A student is shown one of finitely many views, and reads that very view's logits: no teacher runs in a step, and
    none of its answers is of another view. Filling as views are drawn never asks more than a teacher in the loop would,
    and in a long search it asks each view once.

    Attributes:
        logits: (count, views, classes), float16: 162 MB for CIFAR-10 with flips and shifts of 4 pixels.
        norms: (count, views), float32, lengths of the embeddings.
        known: (count, views), bool: which views were asked.

    Args:
        network: the teacher, on the images' device.
        data: images and labels.
        prepare: from images of bytes to the network's input.
        augment: whose views there are.
        classes: how many logits there are.
        path: where the table is kept.
        plain: gives the teacher's answers to the images as they are; asked for the centres alone.
    """

    def __init__(
        self,
        network: nn.Module,
        data: ImageSet,
        prepare: Prepare,
        augment: Augment,
        *,
        classes: int,
        path: Path,
        plain: Callable[[], Answers],
    ) -> None:
        self._network, self._data, self._prepare, self._augment, self._path = network, data, prepare, augment, path
        self._plain = plain
        count, device = views.count(augment), data.labels.device
        self.logits = torch.zeros(len(data), count, classes, dtype=torch.float16, device=device)
        self.norms = torch.zeros(len(data), count, device=device)
        self.known = torch.zeros(len(data), count, dtype=torch.bool, device=device)
        self._asked = False
        self._kept_at = time.monotonic()
        with files.locked(path):
            self._merge()

    @cached_property
    def centres(self) -> Tensor:
        """(classes, features), float32: as of `Answers`, of the images as they are."""
        return self._plain().centres

    def fill(self, order: Tensor, drawn: Tensor) -> None:
        """Asks the teacher for those of these views that it was not asked before.

        Args:
            order: (images,), int64: which images.
            drawn: (images,), int64: which view of each.
        """
        new = ~self.known[order, drawn]
        chosen, which = order[new], drawn[new]
        self._network.eval()
        with torch.no_grad():
            size = batch_of(self._data.images)
            for indices, wanted in zip(chosen.split(size), which.split(size), strict=True):
                images = views.make(self._data.images[indices], wanted, self._augment)
                logits, embedding = answers.logits_and_embedding(self._network, self._prepare(images))
                self.logits[indices, wanted] = logits.half()
                self.norms[indices, wanted] = torch.linalg.vector_norm(embedding.float(), dim=1)
        self.known[chosen, which] = True
        self._asked |= len(chosen) > 0

    def keep(self, *, now: bool = False) -> None:
        """Writes the table together with what other processes have kept meanwhile, if it has grown.

        Args:
            now: else only where the last time is minutes ago.

        Raises:
            KdsearchError: it cannot be written.
        """
        if not self._asked or not (now or time.monotonic() - self._kept_at > KEEP_SECONDS):
            return
        with files.locked(self._path):
            self._merge()
            tensors = {"logits": self.logits, "norms": self.norms, "known": self.known}
            files.save_tensors(self._path, tensors, {})
        self._asked, self._kept_at = False, time.monotonic()

    def _merge(self) -> None:
        """Takes over what the file knows and this table does not; a broken file is as none."""
        if not self._path.is_file():
            return
        try:
            kept, _ = files.load_tensors(self._path, self.known.device)
            theirs = kept["known"] & ~self.known
            if kept["logits"].shape != self.logits.shape:
                return
            self.logits[theirs], self.norms[theirs] = kept["logits"][theirs], kept["norms"][theirs]
            self.known |= theirs
        except (OSError, ValueError, KeyError, RuntimeError):
            return


def obtain(
    network: nn.Module, data: ImageSet, prepare: Prepare, augment: Augment, *, folder: Path, name: str
) -> ViewAnswers:
    """The table of a teacher's answers to views, with what was kept of it.

    Args:
        network, data, prepare, augment: as of `ViewAnswers`.
        folder: of the cache.
        name: of the teacher, its fingerprint; the file is named after it, the images and the views.
    """
    kind = f"flip{int(augment.flip)}-shift{augment.shift}"
    path = folder / f"{name}-{fingerprint([data])}-{kind}.views.safetensors"
    with torch.no_grad():
        classes = network.eval()(prepare(data.images[:1])).shape[1]
    plain = partial(answers.obtain, network, data, prepare, folder=folder, name=name)
    return ViewAnswers(network, data, prepare, augment, classes=classes, path=path, plain=plain)
