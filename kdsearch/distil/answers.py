"""A teacher's answers to images and to their augmented views: computed fast and once, as asked for, and cached."""

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

from kdsearch import networks
from kdsearch.data import ImageSet, fingerprint, views
from kdsearch.distil.step import Format, format_for
from kdsearch.errors import KdsearchError, TeacherError
from kdsearch.measure.accuracy import batch_of
from kdsearch.networks import cpu_layers
from kdsearch.records import Precision
from kdsearch.spec import Augment
from kdsearch.system import files, machine

Prepare = Callable[[Tensor], Tensor]

Ask = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Function from a network's input to logits, (batch, classes), and embeddings, (batch, features), both float32."""

EXACT = 1e-3  # tolerance of a folded network's outputs, relative to the largest one
EXAMPLES = 8  # images on which a folded network is checked
LARGEST = torch.finfo(torch.half).max
KEEP_SECONDS = 300.0  # between two writes of a table of up to 200 MB, if little was asked meanwhile
ASKED_SECONDS = 10.0  # of asking that must not be lost or repeated by another worker: then the table is written
WRITE_SHARE = 20.0  # seconds of asking before the next write, as a multiple of the last write's duration


def ready(network: nn.Module, example: Tensor, precision: Precision | None = None, *, fold: bool = True) -> Ask:
    """Return a function that computes a network's answers as fast as its format allows, equal but for rounding.

    Args:
        network: on the example's device; put in evaluation mode, otherwise unchanged.
        example: (images, channels, height, width), part of its input.
        precision: of its convolutions; None: the device's default.
        fold: whether a copy with folded batch norm may be used; must be False if weights are quantised.
    """
    network.eval()
    asked = folded(network, example[:EXAMPLES]) if fold else network
    return partial(logits_and_embedding, asked, form=format_for(network, example.device, precision))


def logits_and_embedding(network: nn.Module, images: Tensor, form: Format) -> tuple[Tensor, Tensor]:
    """Return a network's float32 logits, (batch, classes), and embeddings, (batch, features) (see `with_embedding`)."""
    with form.autocast(images.device), cpu_layers.faster(network):
        logits, embedding = networks.with_embedding(network, form.lay_out(images))
    return logits.float(), embedding.float()


def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of a network in evaluation mode, its batch norm folded into convolutions and weights channels last.

    The network itself is returned if folding is impossible: it has no batch norm, torch.fx cannot trace it (control
    flow on tensor values), or the copy's outputs for the example, part of its input, differ.
    """
    if not networks.has_layer(network, nn.modules.batchnorm._BatchNorm):
        return network
    plain = Format(False, torch.contiguous_format)
    try:
        # not a stable torch API; a failure only costs speed
        from torch.fx.experimental.optimization import fuse

        copy: nn.Module = fuse(network)
        copy = copy.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.no_grad():
            pairs = zip(*(logits_and_embedding(one, example, plain) for one in (network, copy)), strict=True)
            same = all(_near(ours, theirs) for theirs, ours in pairs)
    except Exception:
        return network
    return copy if same else network


def _near(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs are equal but for rounding; False if any value is not finite."""
    if one.shape != other.shape:
        return False
    return one.numel() == 0 or bool((one - other).abs().max() <= EXACT * other.abs().max())


def _batch_size(data: ImageSet) -> int:
    size = batch_of(data.images)
    return size if data.labels.device.type == "cpu" else 4 * size


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
        precision, fold: see `ready`.
    """
    asked = ready(network, prepare(data.images[:EXAMPLES]), precision, fold=fold)
    size = _batch_size(data)
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
    _check_finite([logits for logits, _ in parts])
    # the direction of a mean is that of the sum; clones, as tensors made in inference mode cannot be trained with
    return Answers(
        logits=torch.cat([logits for logits, _ in parts]).clone(),
        norms=torch.cat([norms for _, norms in parts]).clone(),
        centres=F.normalize(sums, dim=1).float().clone(),
    )


def _check_finite(parts: list[Tensor]) -> None:
    """Refuse logits of (images, classes) that no loss can be taken of."""
    wrong = sum(int((~part.isfinite()).any(1).sum()) for part in parts)
    if wrong:
        raise TeacherError(
            "the teacher's logits must be finite",
            got=f"NaN or infinite ones for {wrong:,} of {sum(map(len, parts)):,} images",
            remedy="correct the network; for a class that it excludes let it return a low number, such as -100",
        )


def _stem(name: str, network: nn.Module, data: ImageSet, precision: Precision | None) -> str:
    form = format_for(network, data.labels.device, precision)
    return f"{name}-{fingerprint([data])}" + ("-bfloat16" if form.bf16 else "")


def kept_file(network: nn.Module, data: ImageSet, precision: Precision | None, *, folder: Path, name: str) -> Path:
    """Return the file of the answers to these images in the cache."""
    return folder / f"{_stem(name, network, data, precision)}.answers.safetensors"


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
        network, data, prepare, precision, fold: see `ask`.
        folder: of the cache.
        name: fingerprint of the teacher; names the file, together with the images and the precision.

    Raises:
        KdsearchError: the cache cannot be written.
    """
    path = kept_file(network, data, precision, folder=folder, name=name)
    with files.locked(path):
        with suppress(OSError, ValueError, TypeError):  # of a missing or broken file
            kept = Answers(**files.load_tensors(path, data.labels.device)[0])
            if len(kept.logits) == len(data):
                return kept
        asked = ask(network, data, prepare, precision=precision, fold=fold)
        files.save_tensors(path, vars(asked), {})
        return asked


class ViewAnswers:
    """Table of a frozen teacher's answers to views of its images, filled as views are drawn.

    A student sees one of finitely many views and reads that view's own logits: no teacher runs in a training step. The
    teacher is never asked more than it would be in the training loop, and in a long search only once per view.
    Processes that share the folder share the answers.

    Attributes:
        logits: (count, views, classes), float16: 14 MB for CIFAR-10 with pools of 15 views, 146 MB with all views of
            flips and shifts of 4 pixels. The second axis is the place in the pool, if there are pools.
        norms: (count, views), float32, norms of the embeddings.
        known: (count, views), bool: which views have been asked.

    Args:
        network, data, prepare, precision: see `ask`.
        augment: defines the views.
        folder, name: see `obtain`; the views name the file, too.
        begins: the first images of the data, if these have a table of their own, whose answers are then taken over.
    """

    def __init__(
        self,
        network: nn.Module,
        data: ImageSet,
        prepare: Prepare,
        augment: Augment,
        *,
        folder: Path,
        name: str,
        precision: Precision | None = None,
        begins: ImageSet | None = None,
    ) -> None:
        def file(images: ImageSet) -> Path:
            pool = "" if augment.views is None else f"-pool{augment.views}"
            kind = f"flip{int(augment.flip)}-shift{augment.shift}{pool}"
            return folder / f"{_stem(name, network, images, precision)}-{kind}.views.safetensors"

        self._data, self._prepare, self._augment, self._path = data, prepare, augment, file(data)
        self._plain = partial(obtain, network, data, prepare, folder=folder, name=name, precision=precision)
        example = prepare(data.images[:EXAMPLES])
        self._ask = ready(network, example, precision)
        with torch.no_grad():
            classes = self._ask(example[:1])[0].shape[1]
        count, device = views.shown(augment), data.labels.device
        pool = views.pool(len(data), augment)
        self._pool = None if pool is None else pool.to(device)
        self.logits = torch.zeros(len(data), count, classes, dtype=torch.float16, device=device)
        self.norms = torch.zeros(len(data), count, device=device)
        self.known = torch.zeros(len(data), count, dtype=torch.bool, device=device)
        self._asking = 0.0  # seconds of asking since the last write
        self._write_seconds = 0.0  # duration of the last write
        self._kept_at = time.monotonic()
        self._seen: float | None = None  # modification time of this table's file when it was merged last
        self._look()
        self._asked = False
        if begins is not None:  # its pools are the same
            with files.locked(file(begins)):
                self._merge(file(begins))
            self._asked = bool(self.known.any())

    @cached_property
    def centres(self) -> Tensor:
        """Those of the unaugmented images (see `Answers`)."""
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
        if _written(self._path) not in (None, self._seen):  # by another process
            self._look()
        new = ~self.known[order, drawn]
        chosen, which = order[new], drawn[new]
        size = _batch_size(self._data)
        for indices, wanted in zip(chosen.split(size), which.split(size), strict=True):
            between()
            begin = time.monotonic()
            self._ask_for(indices, wanted)
            self._asking += time.monotonic() - begin
            if self._asking > max(ASKED_SECONDS, WRITE_SHARE * self._write_seconds):
                with suppress(KdsearchError):  # `keep` reports it after the trial
                    self.keep(now=True)

    def _ask_for(self, indices: Tensor, wanted: Tensor) -> None:
        which = wanted if self._pool is None else self._pool[indices, wanted].long()
        with torch.no_grad():
            images = views.make(self._data.images[indices], which, self._augment)
            logits, embedding = self._ask(self._prepare(images))
            _check_finite([logits])
            self.logits[indices, wanted] = logits.clamp(-LARGEST, LARGEST).half()  # a class masked by -1e9 stays finite
            self.norms[indices, wanted] = torch.linalg.vector_norm(embedding, dim=1)
        self.known[indices, wanted] = True
        self._asked = True
        machine.synchronize(self.known.device)

    def keep(self, *, now: bool = False) -> None:
        """Write the table, merged with what other processes have written meanwhile, if it has grown.

        Unless `now` is set, this happens only minutes after the last write.

        Raises:
            KdsearchError: it cannot be written.
        """
        if not self._asked or not (now or time.monotonic() - self._kept_at > KEEP_SECONDS):
            return
        begin = time.monotonic()
        with files.locked(self._path):
            self._merge(self._path)
            files.save_tensors(self._path, {"logits": self.logits, "norms": self.norms, "known": self.known}, {})
            self._seen = _written(self._path)
        self._asked, self._asking, self._kept_at = False, 0.0, time.monotonic()
        self._write_seconds = self._kept_at - begin

    def _look(self) -> None:
        with files.locked(self._path):
            self._seen = _written(self._path)
            self._merge(self._path)

    def _merge(self, path: Path) -> None:
        """Merge a file; a broken one is ignored, as is a missing one."""
        with suppress(OSError, ValueError, KeyError, RuntimeError, IndexError):
            kept, _ = files.load_tensors(path, self.known.device)
            count = len(kept["known"])
            if kept["logits"].shape[1:] != self.logits.shape[1:] or count > len(self.known):
                return
            theirs = kept["known"] & ~self.known[:count]
            self.logits[:count][theirs], self.norms[:count][theirs] = kept["logits"][theirs], kept["norms"][theirs]
            self.known[:count] |= theirs


def _written(path: Path) -> float | None:
    with suppress(OSError):
        return path.stat().st_mtime
    return None
