"""What tests of trainings share: lessons, states to compare, damage to files."""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.data import ImageSet
from kdsearch.distil.loss import cls_loss
from kdsearch.distil.train import Batch, Lesson
from kdsearch.spec import StudentSpec, TeacherSpec


def prepare(images: Tensor) -> Tensor:
    return images.float() / 255


def by_labels(batch: Batch) -> Tensor:
    return cls_loss(batch.logits, batch.labels)


def lesson(data: ImageSet, **changes) -> Lesson:
    usual = {"prepare": prepare, "loss": by_labels, "teacher_logits": None, "epochs": 2, "batch_size": 16, "seed": 0}
    return Lesson(data, **{**usual, **changes})


def with_recipe(spec: StudentSpec | TeacherSpec, **changes) -> StudentSpec | TeacherSpec:
    return spec.model_copy(update={"recipe": spec.recipe.model_copy(update=changes)})


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def damaged(whole: bytes) -> dict[str, bytes]:
    """Files that a disk may leave in place of a whole one."""
    return {"truncated": whole[: len(whole) // 2], "empty": b"", "changed byte": whole[:-1] + bytes([whole[-1] ^ 1])}
