"""The 100-trial study on an H100 as a budget on paper: parts counted from kernels, bytes and operations.

`python -m kdsearch.experiments.train_bench.paper_budget` prints the tables of reports/README.md. Nothing here is
measured: an operator takes the longest of its launches, its bytes and its operations, at the data sheet's full rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch import networks, spec
from kdsearch.data import ImageSet
from kdsearch.distil import train
from kdsearch.distil.loss import cls_loss, distillation_loss
from kdsearch.distil.train import Batch
from kdsearch.experiments.train_bench import kernels
from kdsearch.experiments.train_bench.kernels import Op
from kdsearch.measure import latency

TRIALS, TRAIN, VALIDATION, TEST = 100, 45_000, 5_000, 10_000
SHAPE, CLASSES = (3, 32, 32), 10
SITTINGS_OF_THE_FRONT = 20  # a front of ten students that sits twice more


@dataclass(frozen=True)
class Part:
    """A part of the study.

    Attributes:
        name: what is done.
        how: how its seconds were counted.
        seconds: on an H100, at least.
    """

    name: str
    how: str
    seconds: float


def step_of(network: nn.Module, recipe: spec.Recipe, batch_size: int, *, taught: bool) -> list[Op]:
    """Return the operators of a captured training step in bfloat16, without views: they are made for an epoch.

    Args:
        network: a classifier of CIFAR-10's shape.
        recipe: its augmentation and averaging are left out.
        batch_size: of the step.
        taught: whether the loss has a teacher's term, at a = 1/2 and T = 4.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch_size, *SHAPE), generator=generator, dtype=torch.uint8)

    def loss(batch: Batch) -> Tensor:
        if batch.teacher_logits is None:
            return cls_loss(batch.logits, batch.labels)
        return distillation_loss(batch.logits, batch.labels, batch.teacher_logits, loss_weight=0.5, temperature=4.0)

    lesson = train.Lesson(
        data=ImageSet(images, torch.randint(CLASSES, (batch_size,), generator=generator)),
        prepare=lambda part: part.float() / 255,
        loss=loss,
        teacher_logits=torch.zeros(batch_size, CLASSES) if taught else None,
        epochs=1,
        batch_size=batch_size,
        seed=0,
        precision="bfloat16",
    )
    plain = recipe.model_copy(update={"augment": spec.Augment(), "averaging": None})
    take = train.Run(network, lesson, plain).sample()
    take()  # the optimiser creates its states
    return kernels.log(take)


def student(architecture: Mapping[str, Any]) -> nn.Module:
    """Return an untrained student of the family that the CIFAR-10 study searches."""
    return networks.student_family("resnet").build(architecture, SHAPE, CLASSES)


def forward_of(network: nn.Module, batch_size: int, *, bf16: bool) -> list[Op]:
    """Return the operators of a forward pass in evaluation mode."""
    images = torch.zeros(batch_size, *SHAPE).contiguous(memory_format=torch.channels_last)
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def call() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            network(images)

    return kernels.log(call)


def parts(told: Callable[[str], object] = print) -> list[Part]:
    """Return the parts of the study; `told` gets the counts of the steps.

    Each trial that is no anchor is taken as a c5 of the space's mean number of epochs, and none as pruned.
    """
    shipped = spec.load(spec.shipped("cifar10"))
    recipe, teacher_recipe = shipped.student.recipe, shipped.teacher.recipe
    assert teacher_recipe is not None
    teacher = networks.build_teacher("resnet50", SHAPE, CLASSES)
    of_teacher = step_of(teacher, teacher_recipe, teacher_recipe.batch_size, taught=False)
    teacher_steps = teacher_recipe.epochs * math.ceil(TRAIN / teacher_recipe.batch_size)
    steps = {
        name: step_of(
            student(anchor.config), recipe, anchor.config["batch_size"], taught=anchor.config["loss_weight"] > 0
        )
        for name, anchor in shipped.anchors.items()
        if name in ("c1", "c5", "c7")
    }
    for name, ops in {"teacher": of_teacher, **steps}.items():
        told(described(name, ops))
    c5, of_c5 = shipped.anchors["c5"], kernels.seconds(steps["c5"])
    span = shipped.space["epochs"]
    low, high = (getattr(span, name) for name in ("low", "high"))
    each = (low + high) / 2 * TRAIN / c5.config["batch_size"]
    asked = forward_of(teacher, 128, bf16=True)
    slow, views = kernels.seconds(asked) / 128, recipe.augment.views or high
    scored = VALIDATION * (low + high) / 2 + TEST
    fast = kernels.seconds(forward_of(student(c5.config), 500, bf16=False)) / 500
    sitting = latency.sitting_seconds(kernels.seconds(forward_of(teacher, 64, bf16=False)) * 1024 / 64, "cuda")
    return [
        Part("teacher's training", f"{teacher_steps:,} steps of {1e3 * kernels.seconds(of_teacher):.2f} ms",
             teacher_steps * kernels.seconds(of_teacher)),
        Part("teacher's answers", f"{TRAIN * views:,} views of {1e6 * slow:.1f} us", TRAIN * views * slow),
        Part("students' training", f"{TRIALS} trials of {each:,.0f} steps of {1e3 * of_c5:.2f} ms",
             TRIALS * each * of_c5),
        Part("scoring", f"{TRIALS} trials of {scored:,.0f} images of {1e6 * fast:.2f} us", TRIALS * scored * fast),
        Part("timing", f"{TRIALS + SITTINGS_OF_THE_FRONT} sittings of {sitting:.2f} s, none shared",
             (TRIALS + SITTINGS_OF_THE_FRONT) * sitting),
    ]  # fmt: skip


def described(name: str, ops: list[Op]) -> str:
    """Return a line on a step: its kernels by kind, bytes, operations, and least time."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in kernels.by_kind(ops).most_common())
    size, flops = (sum(getattr(op, what) for op in ops) for what in ("bytes", "flops"))
    return (
        f"| {name} | {sum(op.kernels for op in ops)} ({kinds}) | {size / 1e6:,.0f} MB | {flops / 1e9:,.1f} G | "
        f"{1e3 * kernels.seconds(ops):.2f} ms |"
    )


def main() -> None:
    """Print both tables."""
    print("| step | kernels | bytes | operations | at least |\n|---|---|---|---|---|")
    found = parts()
    print("\n| part | counted | seconds |\n|---|---|---|")
    for part in found:
        print(f"| {part.name} | {part.how} | {part.seconds:.0f} |")
    print(f"| all of these | | {sum(part.seconds for part in found):.0f} |")


if __name__ == "__main__":
    main()
