"""A teacher's answers to images: logits, lengths of its embeddings and their mean directions, asked once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch import networks
from kdsearch.data import ImageSet, fingerprint
from kdsearch.distil.step import format_for
from kdsearch.measure.accuracy import BATCH
from kdsearch.system import files

Prepare = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Answers:
    """What a frozen teacher says of images.

    Attributes:
        logits: (count, classes), float32, in the images' order.
        norms: (count,), float32: lengths of the embeddings, the inputs of its classifier; 0 if it has none.
        centres: (classes, features), float32: unit vectors, the directions of the mean embedding of each class. No
            features if it has no classifier.
    """

    logits: Tensor
    norms: Tensor
    centres: Tensor

    def fill(self, order: Tensor, drawn: Tensor) -> None:
        """Nothing to do: an image has one view, and all were asked."""

    def keep(self, *, now: bool = False) -> None:
        """Nothing to do: what was asked is kept already."""


def logits_and_embedding(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """A teacher's logits, (batch, classes), and its embeddings, (batch, features): of no features if it has none.

    Both are float32; on CUDA a convolutional teacher computes them in bfloat16, as students are trained.
    """
    form = format_for(network, images.device)
    with form.autocast(images.device):
        if networks.has_classifier(network):
            logits, embedding = networks.with_embedding(network, form.lay_out(images))
            return logits.float(), embedding.float()
        logits = network(form.lay_out(images)).float()
    return logits, logits.new_zeros(len(logits), 0)


def ask(network: nn.Module, data: ImageSet, prepare: Prepare) -> Answers:
    """Asks a teacher, in evaluation mode.

    Args:
        network: on the images' device; left in evaluation mode.
        data: images and the labels that the centres go by.
        prepare: from images of bytes to the network's input.
    """
    network.eval()
    parts: list[tuple[Tensor, Tensor]] = []
    sums: Tensor | None = None
    with torch.inference_mode():
        for images, labels in zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True):
            logits, embedding = logits_and_embedding(network, prepare(images))
            if sums is None:
                sums = embedding.new_zeros(logits.shape[1], embedding.shape[1], dtype=torch.float64)
            sums.index_add_(0, labels, embedding.double())
            parts.append((logits, torch.linalg.vector_norm(embedding, dim=1)))
    assert sums is not None, "there must be images"
    # a mean's direction is its sum's; clones, for what inference mode made cannot be trained with
    return Answers(
        logits=torch.cat([logits for logits, _ in parts]).clone(),
        norms=torch.cat([norms for _, norms in parts]).clone(),
        centres=F.normalize(sums, dim=1).float().clone(),
    )


def kept_file(data: ImageSet, *, folder: Path, name: str) -> Path:
    """Where the answers to these images are kept, by the teacher's name."""
    return folder / f"{name}-{fingerprint([data])}.answers.safetensors"


def obtain(network: nn.Module, data: ImageSet, prepare: Prepare, *, folder: Path, name: str) -> Answers:
    """A teacher's answers: from the cache, else asked for and kept there.

    Args:
        network: the teacher, on the images' device.
        data: images and labels.
        prepare: from images of bytes to the network's input.
        folder: of the cache.
        name: of the teacher, its fingerprint; the file is named after it and the images.

    Raises:
        KdsearchError: the cache cannot be written.
    """
    path = kept_file(data, folder=folder, name=name)
    with files.locked(path):
        kept = _from_cache(path, data.labels.device)
        if kept is not None and len(kept.logits) == len(data):
            return kept
        asked = ask(network, data, prepare)
        files.save_tensors(path, vars(asked), {})
        return asked


def _from_cache(path: Path, device: torch.device) -> Answers | None:
    """What the file holds; None where there is none or it is broken: then the teacher is asked again."""
    try:
        return Answers(**files.load_tensors(path, device)[0]) if path.is_file() else None
    except (OSError, ValueError, TypeError):
        return None
