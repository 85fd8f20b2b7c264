"""The loops that `bench train` times on a row: ours, the plain one and their parts; and the check that they agree."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kdsearch import data, networks, spec
from kdsearch.data import Split
from kdsearch.distil import answers, train
from kdsearch.distil.optimizer import make_optimizer
from kdsearch.distil.step import Format, Steps, format_for
from kdsearch.distil.teacher import Teacher
from kdsearch.distil.train import Batch
from kdsearch.errors import KdsearchError
from kdsearch.experiments.slides.deck import Dataset, School, Settings, teacher_spec
from kdsearch.experiments.train_bench.plain_loop import PlainLoop, asks_teacher
from kdsearch.records import EpochRecord, TeacherFacts
from kdsearch.system import machine

SEED = 0
LATE = 10  # the epoch of the check: on CIFAR-10 the weight of the teacher's term is 0 in the first and 0.9 in the tenth
READY = 8  # batches on the device for the bare steps; a single one would soon be memorised
FEWEST = 100  # images in a draw by class
# How far both loops may differ after a step: the loss, relative, and all parameters, as a share of the step. Inputs
# differ in the last bit (b / 255, b * (1 / 255)), so a ReLU or a max-pool at a tie may decide differently: measured on
# c1, at most 4e-3 of the step, and 2e-6 with identical input. In bfloat16 on an H200 c1 differed by 0.15 of the step,
# as rounding is 2^-8 there: so on CUDA, too, the check is in float32, without TF32 (without cuDNN: 7e-4 and 0.03;
# the teacher's answers, asked beforehand, are bfloat16's).
TOLERANCES = {"cpu": (1e-5, 2e-2), "cuda": (1e-2, 1e-1)}


@dataclass(frozen=True)
class Agreement:
    """The difference between ours and the plain loop after one step."""

    loss: float  # relative
    step: float  # norm of the difference of all parameters over the norm of the step


def open_school(dataset: Dataset, whole: data.Dataset, device: torch.device, *, images: int) -> School:
    """Return a draw of training images and the deck's teacher, untrained: time does not depend on its weights.

    The number of images is drawn by class; where the training set has fewer, they come again from the first one on: a
    step takes its time whatever it shows.
    """
    split = data.whole(whole, device, train_size=min(max(images, FEWEST), len(whole.train)))
    mixed = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(SEED))  # they may come by class
    chosen = mixed[torch.arange(images) % len(mixed)].to(device)
    split = replace(split, train=split.train.subset(chosen))
    network = _untrained_teacher(teacher_spec(dataset, max_epochs=None), split)
    size = networks.parameters(network), networks.size_bytes(network)
    facts = TeacherFacts(type(network).__name__, "untrained", 0.0, None, *size, 0.0)
    said = answers.ask(network, split.train, split.prepare)
    return School(dataset, split, Teacher(network, split.prepare, facts), said)


def _untrained_teacher(wanted: spec.TeacherSpec, split: Split) -> nn.Module:
    """Build the teacher in evaluation mode, after one batch for batch norm, without which outputs may explode."""
    with machine.seeded(SEED, torch.device("cpu")):
        network = networks.teacher_network(wanted, split.shape, len(split.classes))
    network.to(split.train.labels.device).requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over batches seen
    with torch.no_grad():
        network.train()(split.prepare(split.train.images[:FEWEST]))
    return network.eval()


def calls(
    school: School, settings: Settings, student: nn.Module, *, rounds: int, steps: int, workers: int
) -> dict[str, Callable[[], object]]:
    """Return what is timed alternately: each takes `steps` steps a call, with its own copy of the same student.

    Args:
        school: images, of which an epoch is a call; teacher; recipe.
        settings: of the row.
        student: the starting point; not changed.
        rounds: most calls of ours.
        steps: of a call.
        workers: of the plain loop's loader.

    Returns:
        "ours", "plain", "student" (steps on prepared tensors), where the plain loop runs the teacher "teacher" (forward
        passes of prepared batches), and where ours computes in bfloat16 on a CPU "float32", ours in float32.
    """
    plain_bf16 = _plain_bf16(school, student)
    epochs = _ours(school, settings, copy.deepcopy(student), epochs=rounds)
    plain = PlainLoop(copy.deepcopy(student), school, settings, workers=workers, bf16=plain_bf16)
    bare = _bare_steps(school, settings, copy.deepcopy(student))

    def bare_steps() -> None:
        with machine.threads(school.deck.student.threads):
            for _ in range(steps):
                next(bare)

    turns: dict[str, Callable[[], object]] = {
        "ours": lambda: next(epochs),
        "plain": plain.epoch,
        "student": bare_steps,
    }
    if asks_teacher(school, settings):
        turns["teacher"] = lambda: _ask(school, settings, steps)
    if _form(school, student).bf16 and not plain_bf16:
        slower = _ours(replace(school, precision="float32"), settings, copy.deepcopy(student), epochs=rounds)
        turns["float32"] = lambda: next(slower)
    return turns


def _form(school: School, student: nn.Module) -> Format:
    return format_for(student, school.split.train.labels.device, school.precision)


def _plain_bf16(school: School, network: nn.Module) -> bool:
    """Whether the plain loop computes in bfloat16: on CUDA, as ours does; on a CPU it stays in float32."""
    return _form(school, network).bf16 and school.split.train.labels.device.type == "cuda"


def _ours(
    school: School,
    settings: Settings,
    network: nn.Module,
    *,
    epochs: int,
    first: int = 1,
    before_epoch: Callable[[Tensor, Tensor], None] | None = None,
) -> Iterator[EpochRecord]:
    """Train a network by our loop, as `School.teach` does, for `epochs` epochs that the loss counts from `first`."""
    loss = school.deck.loss(settings)
    lesson = replace(
        school.lesson(replace(settings, per_class=None), SEED),  # the school's images are a sample already
        loss=loss if first == 1 else lambda batch: loss(replace(batch, epoch=batch.epoch + (first - 1))),
        epochs=epochs,
        before_epoch=before_epoch,
    )
    return train.Run(network, lesson, school.deck.student.recipe, validate=lambda _: float("nan"))


def _ready(school: School, settings: Settings, form: Format) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return input, labels and the teacher's logits of some batches, on the device and laid out as our loop does."""
    count, shown = READY * settings.batch_size, school.split.train
    parts = school.split.prepare(shown.images[:count]), shown.labels[:count], school.answers.logits[:count]
    batches = zip(*(part.split(settings.batch_size) for part in parts), strict=True)
    return [(form.lay_out(images), labels, logits) for images, labels, logits in batches]


def _bare_steps(school: School, settings: Settings, student: nn.Module) -> Iterator[None]:
    """Steps of our optimiser on batches that are ready, without end: the least that any loop around them can take.

    On CUDA replayed as a graph, as ours are, after a copy to where the graph reads.
    """
    device = school.split.train.labels.device
    optimizer = make_optimizer(student, school.deck.student.recipe, settings.batch_size)
    loss, form = school.deck.loss(settings), _form(school, student)
    student.to(memory_format=form.memory)  # type: ignore[call-overload]
    ready = _ready(school, settings, form)
    epoch, read = torch.ones((), device=device), ready[0]

    def take(*_: Tensor) -> None:
        with form.autocast(device):
            out = student(read[0])
        optimizer.zero_grad(set_to_none=True)
        loss(Batch(out.float(), *read[1:], epoch)).backward()
        optimizer.step()

    student.train()
    steps = Steps(take, batch_size=settings.batch_size, device=device, capture=True)
    if device.type == "cuda":
        read = tuple(each.clone() for each in ready[0])  # type: ignore[assignment]
    try:
        while True:
            for batch in ready:
                if device.type == "cuda":
                    for place, each in zip(read, batch, strict=True):
                        place.copy_(each)
                else:
                    read = batch
                steps(batch[1], batch[1])  # any tensors of its length
                yield
    finally:
        steps.close()


def _ask(school: School, settings: Settings, steps: int) -> None:
    """Run the teacher's forward pass on `steps` batches, as a loop that runs the teacher in each step must."""
    images = school.split.train.images[: settings.batch_size]
    ready, bf16 = school.split.prepare(images), _plain_bf16(school, school.teacher.network)
    with torch.inference_mode(), torch.autocast(ready.device.type, torch.bfloat16, enabled=bf16):
        for _ in range(steps):
            school.teacher.network(ready)


def first_images(school: School, count: int) -> School:
    """Return the school with only its first `count` images, and the teacher's outputs for them."""
    split, said = school.split, school.answers
    chosen = torch.arange(count, device=split.train.labels.device)
    return replace(
        school,
        split=replace(split, train=split.train.subset(chosen)),
        answers=replace(said, logits=said.logits[chosen], norms=said.norms[chosen]),
    )


def check(school: School, settings: Settings, *, plain: Settings | None = None) -> Agreement:
    """Take one step of both loops from the same start, with the same images in the same order, in float32.

    Args:
        school: provides the first batch.
        settings: of the row.
        plain: settings of the plain loop; None: the same.

    Raises:
        KdsearchError: losses or parameters differ by more than rounding (`TOLERANCES`).
    """
    school = replace(school, precision="float32")
    one = first_images(school, settings.batch_size)
    start = school.build(settings, SEED)
    ours, theirs = copy.deepcopy(start), copy.deepcopy(start)
    orders: list[list[int]] = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        taught = _ours(
            one, settings, ours, epochs=1, first=LATE, before_epoch=lambda order, _: orders.append(order.tolist())
        )
        record = next(taught)
        loss = PlainLoop(theirs, one, plain or settings, workers=0, order=orders[0], epoch=LATE).epoch()
    agreement = Agreement(
        loss=abs(record.loss - loss) / abs(loss), step=_distance(ours, theirs) / max(_distance(ours, start), 1e-30)
    )
    most_loss, most_step = TOLERANCES[one.split.train.labels.device.type]
    if not (agreement.loss <= most_loss and agreement.step <= most_step):
        raise KdsearchError(
            f"both loops must take the same step, the losses to {most_loss:g} and the parameters to {most_step:g} of "
            "the step",
            got=f"{agreement.loss:.2g} and {agreement.step:.2g}",
            remedy="this is an error in kdsearch: please report it",
        )
    return agreement


def _distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return torch.stack([(a - b).detach().double().square().sum() for a, b in pairs]).sum().sqrt().item()
