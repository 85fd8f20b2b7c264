"""Losses of response- and feature-based distillation: pure functions of logits and embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Mix:
    """How a loss weight and a temperature are read.

    Attributes:
        level: whether the weights of both terms always sum to 2, so that the loss weight does not change the step size;
            the deck's sum to 2 only at a = 1/2, and to 1 at the ends.
        softmax_temperature: of the softmax through which the teacher was trained: its logits are divided by it before
            they are softened.
    """

    level: bool = False
    softmax_temperature: float = 1.0


DECK = Mix()


def weights(loss_weight: float, *, level: bool = False) -> tuple[float, float]:
    """Return the weights of cls_loss and div_loss, min(1, 2(1 - a)) and min(1, 2a), with `level` scaled to sum to 2.

    a = 0 is training without a teacher, a = 1/2 the deck's CIFAR-10 loss (cls + div) in either form, a = 1 its MNIST
    loss (the teacher alone). Under SGD doubling the loss doubles the learning rate, so a search over weights with
    unequal sums is also a search over rates.

    Raises:
        ValueError: a is outside [0, 1].
    """
    if not 0.0 <= loss_weight <= 1.0:
        raise ValueError(f"loss_weight must lie in [0, 1] (got {loss_weight})")
    labels, teacher = min(1.0, 2.0 * (1.0 - loss_weight)), min(1.0, 2.0 * loss_weight)
    scale = 2.0 / (labels + teacher) if level else 1.0
    return scale * labels, scale * teacher


def cls_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy with the labels, mean over the batch.

    Args:
        logits: (batch, classes).
        labels: (batch,), int64.
    """
    return F.cross_entropy(logits, labels)


def div_loss(logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Return T^2 KL(teacher_T || student_T), mean over the batch (Hinton, Vinyals, Dean, arXiv 1503.02531).

    The factor T^2 keeps the gradient's size comparable across temperatures; `batchmean` divides by the batch size only,
    not by the classes.

    Args:
        logits, teacher_logits: (batch, classes), student's and teacher's.
        temperature: T > 0.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def soft_cross_entropy(
    logits: Tensor, teacher_logits: Tensor, temperature: float, *, teacher_temperature: float | None = None
) -> Tensor:
    """Return the cross-entropy of softmax(student / T) with the teacher's softmax, mean over the batch.

    This is the deck's MNIST loss. It has no factor T^2, so at one T its gradient is that of `div_loss` divided by T^2:
    equivalent under Adam, but not under SGD.

    Args:
        logits, teacher_logits: (batch, classes), student's and teacher's.
        temperature: T > 0.
        teacher_temperature: of the teacher's softmax; None: T.
    """
    target = F.softmax(teacher_logits / (teacher_temperature or temperature), dim=1)
    return F.cross_entropy(logits / temperature, target)


def nd_loss(embedding: Tensor, teacher_norms: Tensor, centres: Tensor) -> Tensor:
    """Return the ND loss 1 - s.c / max(|s|, |t|), mean over the batch (Wang et al., arXiv 2305.17007).

    It is 0 exactly if the embedding s points at its class's centre c and is at least as long as the teacher's embedding
    t of the same image.

    Args:
        embedding: (batch, features), the student's before its classifier, mapped to the teacher's width.
        teacher_norms: (batch,), |t| of each image.
        centres: (batch, features), unit vectors: the direction of the teacher's mean embedding of the image's class.
    """
    along = (embedding * centres).sum(1)
    longest = torch.maximum(torch.linalg.vector_norm(embedding, dim=1), teacher_norms)
    return (1.0 - along / longest.clamp_min(torch.finfo(longest.dtype).tiny)).mean()


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None,
    *,
    loss_weight: float,
    temperature: float | None,
    mix: Mix = DECK,
) -> Tensor:
    """Return the sum of cls_loss and div_loss with their `weights`; a term of weight 0 is not computed.

    Args:
        logits: (batch, classes), the student's.
        labels: (batch,), int64; unused for a = 1.
        teacher_logits: (batch, classes); unused for a = 0.
        loss_weight: a in [0, 1].
        temperature: T > 0; unused for a = 0.
        mix: how loss weight and temperature are read.

    Raises:
        ValueError: a is outside [0, 1], or a > 0 without teacher logits or temperature.
    """
    label_weight, teacher_weight = weights(loss_weight, level=mix.level)
    if teacher_weight == 0:
        return label_weight * cls_loss(logits, labels)
    if teacher_logits is None or temperature is None:
        raise ValueError(f"loss_weight {loss_weight} needs teacher logits and a temperature")
    ordinary = teacher_logits if mix.softmax_temperature == 1 else teacher_logits / mix.softmax_temperature
    if label_weight == 0:
        return teacher_weight * div_loss(logits, ordinary, temperature)
    return label_weight * cls_loss(logits, labels) + teacher_weight * div_loss(logits, ordinary, temperature)
