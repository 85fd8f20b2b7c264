"""A teacher's answers to images: logits, embedding norms and class centres, computed once and cached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch.data import ImageSet, fingerprint
from kdsearch.distil import frozen
from kdsearch.distil.step import format_for
from kdsearch.records import Precision
from kdsearch.system import files

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
