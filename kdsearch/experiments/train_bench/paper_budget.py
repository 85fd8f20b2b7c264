"""The 100-trial study on an H100 as a budget on paper: parts counted from kernels, bytes and operations.

`python -m kdsearch.experiments.train_bench.paper_budget` prints the tables of reports/README.md. Nothing here is
measured: an operator that torch dispatches takes the longest of its launches, its bytes and its operations, at the data
sheet's full rates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from kdsearch import networks, spec
from kdsearch.data import ImageSet
from kdsearch.distil import train
from kdsearch.distil.loss import cls_loss, distillation_loss
from kdsearch.distil.train import Batch
from kdsearch.measure import latency

TRIALS, TRAIN, VALIDATION, TEST = 100, 45_000, 5_000, 10_000
SHAPE, CLASSES = (3, 32, 32), 10
SITTINGS_OF_THE_FRONT = 20  # a front of ten students that sits twice more

# of an H100 SXM by its data sheet (memory, dense bfloat16) and by what replayed graphs of small kernels take
BYTES_A_SECOND, OPERATIONS_A_SECOND, SECONDS_A_KERNEL = 3.35e12, 990e12, 2.5e-6

KINDS = {"convolution": "convolution", "batch_norm": "batch norm", "fused_": "optimiser", "_copy": "casts"}
NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach")


@dataclass(frozen=True)
class Op:
    """A call of an operator that runs kernels."""

    name: str
    kernels: int  # that CUDA runs for it at least: 1, of a convolution's backward pass 1 for each gradient
    bytes: int  # of the tensors that it reads and writes, each once
    flops: int  # a multiply-add as 2; only of matrix products and convolutions

    @property
    def kind(self) -> str:
        """One of "convolution", "batch norm", "optimiser", "casts" and "rest"."""
        return next((kind for part, kind in KINDS.items() if part in self.name), "rest")

    @property
    def seconds(self) -> float:
        """Least time on an H100: of its launches, its bytes or its operations, whichever is the longest."""
        return max(self.kernels * SECONDS_A_KERNEL, self.bytes / BYTES_A_SECOND, self.flops / OPERATIONS_A_SECOND)


class _Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        views = [each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns]
        marks = name.startswith("_record_function")  # the profiler's, without a kernel
        if name in NOTHING or marks or (views and all(views)):
            return out
        seen = {id(each): each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)}
        size = sum(each.numel() * each.element_size() for each in seen.values())
        count = flop_registry.get(func._overloadpacket)
        flops = int(count(*args, **kwargs, out_val=out)) if count is not None else 0
        kernels = sum(args[-1][:2]) if name == "convolution_backward" else 1
        self.ops.append(Op(name, kernels, size, flops))
        return out


def log(call: Callable[[], object]) -> list[Op]:
    """Return the operators that a call dispatches, backward passes included, in their order."""
    seen = _Log()
    with seen:
        call()
    return seen.ops


def by_kind(ops: Iterable[Op]) -> Counter[str]:
    """Return the number of kernels of each kind."""
    found: Counter[str] = Counter()
    for op in ops:
        found[op.kind] += op.kernels
    return found


def seconds(ops: Iterable[Op]) -> float:
    """Return the least time of operators on an H100."""
    return sum(op.seconds for op in ops)


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
    for module in network.modules():
        module.forward = module.forward  # type: ignore[method-assign]  # so `cpu_layers` leaves it as it is on CUDA
    plain = recipe.model_copy(update={"augment": spec.Augment(), "averaging": None})
    take = train.Run(network, lesson, plain).sample()
    take()  # the optimiser creates its states
    return log(take)


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

    return log(call)


def parts() -> list[tuple[str, str, float]]:
    """Print a line on each counted step, and return the parts of the study: name, how it was counted, least seconds.

    Each trial, anchors included, is taken as a c5 of the space's mean number of epochs, and none as pruned.
    """
    shipped = spec.load(spec.shipped("cifar10"))
    recipe, teacher_recipe = shipped.student.recipe, shipped.teacher.recipe
    assert teacher_recipe is not None
    teacher = networks.build_teacher("resnet50", SHAPE, CLASSES)
    steps = {"teacher": step_of(teacher, teacher_recipe, teacher_recipe.batch_size, taught=False)}
    for name in ("c1", "c5", "c7"):
        config = shipped.anchors[name].config
        steps[name] = step_of(student(config), recipe, config["batch_size"], taught=config["loss_weight"] > 0)
    for name, ops in steps.items():
        print(described(name, ops))
    c5, of_c5, of_teacher = shipped.anchors["c5"].config, seconds(steps["c5"]), seconds(steps["teacher"])
    teacher_steps = teacher_recipe.epochs * math.ceil(TRAIN / teacher_recipe.batch_size)
    span = shipped.space["epochs"]
    assert isinstance(span, spec.Range)
    epochs = (span.low + span.high) / 2
    each = epochs * TRAIN / c5["batch_size"]
    asked = TRAIN * (recipe.augment.views or span.high)
    slow = seconds(forward_of(teacher, 128, bf16=True)) / 128
    scored = VALIDATION * epochs + TEST
    fast = seconds(forward_of(student(c5), 500, bf16=False)) / 500
    sittings = TRIALS + SITTINGS_OF_THE_FRONT
    sitting = latency.sitting_seconds(seconds(forward_of(teacher, 64, bf16=False)) * 1024 / 64, "cuda")
    return [
        ("teacher's training", f"{teacher_steps:,} steps of {1e3 * of_teacher:.2f} ms", teacher_steps * of_teacher),
        ("teacher's answers", f"{asked:,} views of {1e6 * slow:.1f} us", asked * slow),
        ("students' training", f"{TRIALS} trials of {each:,.0f} steps of {1e3 * of_c5:.2f} ms", TRIALS * each * of_c5),
        ("scoring", f"{TRIALS} trials of {scored:,.0f} images of {1e6 * fast:.2f} us", TRIALS * scored * fast),
        ("timing", f"{sittings} sittings of {sitting:.2f} s, none shared", sittings * sitting),
    ]


def described(name: str, ops: list[Op]) -> str:
    """Return a line on a step: its kernels by kind, bytes, operations, and least time."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in by_kind(ops).most_common())
    return (
        f"| {name} | {sum(op.kernels for op in ops)} ({kinds}) | {sum(op.bytes for op in ops) / 1e6:,.0f} MB | "
        f"{sum(op.flops for op in ops) / 1e9:,.1f} G | {1e3 * seconds(ops):.2f} ms |"
    )


def main() -> None:
    """Print both tables."""
    print("| step | kernels | bytes | operations | at least |\n|---|---|---|---|---|")
    found = parts()
    print("\n| part | counted | seconds |\n|---|---|---|")
    for name, how, least in found:
        print(f"| {name} | {how} | {least:.0f} |")
    print(f"| all of these | | {sum(least for _, _, least in found):.0f} |")


if __name__ == "__main__":
    main()
