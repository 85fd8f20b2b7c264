"""Which precision convolutions are trained in: bfloat16 where the device has it and is faster with it, else float32."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from kdsearch.data import ImageSet
from kdsearch.distil import train
from kdsearch.distil.loss import cls_loss
from kdsearch.distil.step import convolves, format_for, usual_precision
from kdsearch.errors import KdsearchError
from kdsearch.records import Precision
from kdsearch.spec import Recipe
from kdsearch.system import files, machine

Wanted = Literal["auto", "float32", "bfloat16"]
WANTED: tuple[Wanted, ...] = get_args(Wanted)
BATCH, STEPS, ROUNDS = 64, 3, 2  # of what is timed: the quickest step of all rounds counts
FASTER = 1.05  # than float32, at least: else its rounding buys nothing
RECIPE = Recipe(optimizer="sgd", lr=1e-3, momentum=0.9)  # of the timed steps


@dataclass(frozen=True)
class Choice:
    """A precision and where it comes from.

    Attributes:
        name: what convolutions are trained in, and what the teacher's compute in when it is asked.
        why: in words, for the report.
        given: whether the user named it.
    """

    name: Precision
    why: str
    given: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def check(wanted: str) -> None:
    """Refuses a precision that is unknown.

    Raises:
        KdsearchError: it is.
    """
    if wanted not in WANTED:
        raise KdsearchError("--precision must be known", got=wanted, remedy=f"choose one of {', '.join(WANTED)}")


def choose(
    wanted: str, *, device: torch.device, kind: str, shape: tuple[int, int, int], build: Callable[[], nn.Module]
) -> Choice:
    """The precision for networks of a kind on a device; where it has to be timed, once, and kept in the cache.

    Args:
        wanted: "auto", or the precision that the user names: then it is that one.
        device: to train on.
        kind: of networks: the family's name.
        shape: channels, height and width of an image.
        build: makes a network of that kind; called where something has to be timed.

    Raises:
        KdsearchError: `wanted` is unknown.
    """
    check(wanted)
    for name in get_args(Precision):
        if wanted == name:
            return Choice(name, "set by --precision", given=True)
    if device.type != "cpu":
        usual = usual_precision(device)
        return Choice(usual, "the usual one on CUDA" if usual == "bfloat16" else "this GPU has no bfloat16")
    instructions = machine.bf16_instructions()
    if not instructions:
        return Choice("float32", "this CPU has no bfloat16 instructions")
    return _timed_once(device, f"{kind} {'x'.join(map(str, shape))}", shape, build, instructions)


def adopted(choice: Choice, stored: Mapping[str, Any] | None, device: torch.device) -> Choice:
    """The precision of a study that is there, where the user names none; else the choice.

    Args:
        choice: of `choose`.
        stored: the study's definition; None: there is no study yet. One made before it held a precision was trained in
            the usual one of its device.
        device: to train on.
    """
    if stored is None or choice.given:
        return choice
    return kept_by(stored, device)


def kept_by(stored: Mapping[str, Any], device: torch.device) -> Choice:
    """The precision that a study's definition holds, or the usual one of the device where it is older than that."""
    return Choice(stored.get("precision") or usual_precision(device), "as the study was begun")


def warnings(choice: Choice, device: torch.device) -> list[str]:
    """A line where the precision costs time on this machine."""
    if choice.name == "float32" or device.type != "cpu" or machine.bf16_instructions():
        return []
    return [
        "this CPU has no bfloat16 instructions: convolutions in bfloat16 can take ten times as long as in float32 "
        f"(precision {choice})"
    ]


def file() -> Path:
    """Where choices are kept."""
    return machine.cache_folder() / "precision.json"


def kept() -> dict[str, dict[str, Any]]:
    """The choices that were timed, by kind of network and device: "precision", and seconds a step of both."""
    try:
        found = json.loads(file().read_text(encoding="utf-8"))
        return {key: value for key, value in found.items() if value["precision"] in WANTED and _gain(value) > 0}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, ZeroDivisionError):
        return {}


def in_words(timed: Mapping[str, Any]) -> str:
    """What was timed of one entry of `kept`."""
    return f"bfloat16 is {_gain(timed):.2f} times as fast as float32 in a few timed steps"


def _gain(timed: Mapping[str, Any]) -> float:
    return float(timed["float32"]) / float(timed["bfloat16"])


def _timed_once(
    device: torch.device,
    kind: str,
    shape: tuple[int, int, int],
    build: Callable[[], nn.Module],
    instructions: list[str],
) -> Choice:
    key = f"{kind}, {machine.device_model(device)}, torch {torch.__version__}"
    with files.locked(file()):
        timed = kept().get(key)
        if timed is None:
            try:
                network = build()
                if not convolves(network):
                    return Choice("float32", "dense students")
                timed = _compared(network, device, shape)
            except Exception as error:  # the network's own, which its trials will say better
                return Choice("float32", f"steps could not be timed: {type(error).__name__}")
            files.write_text(file(), json.dumps(kept() | {key: timed}, indent=1))
    return Choice(timed["precision"], f"{in_words(timed)}; {', '.join(instructions)}")


def _compared(network: nn.Module, device: torch.device, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Seconds a step in each precision, by turns, and the precision to take."""
    network = network.to(device)
    seconds: dict[Precision, float] = {"float32": float("inf"), "bfloat16": float("inf")}
    for _, name in itertools.product(range(ROUNDS), seconds):
        seconds[name] = min(seconds[name], step_seconds(network, device, shape, name))
    gain = seconds["float32"] / seconds["bfloat16"]
    return {"precision": "bfloat16" if gain >= FASTER else "float32", **{str(k): v for k, v in seconds.items()}}


def step_seconds(network: nn.Module, device: torch.device, shape: tuple[int, int, int], name: Precision) -> float:
    """Seconds of the quickest of a few training steps, on random images; the network is trained a little."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (BATCH * (STEPS + 1), *shape), generator=generator, dtype=torch.uint8)
    data = ImageSet(images, torch.zeros(len(images), dtype=torch.int64)).to(device)
    began: list[float] = []

    def now(step: int) -> None:
        machine.synchronize(device)
        began.append(time.perf_counter())

    lesson = train.Lesson(
        data=data, prepare=lambda part: part.float() / 255, loss=lambda batch: cls_loss(batch.logits, batch.labels),
        teacher_logits=None, epochs=1, batch_size=BATCH, seed=0, capture=False, precision=name, on_step=now,
    )  # fmt: skip
    for _ in train.train(network, lesson, RECIPE, validate=lambda _: 0.0):
        now(STEPS)
    return min(b - a for a, b in itertools.pairwise(began[1:]))


def trained_in(network: nn.Module, device: torch.device, choice: Precision | None) -> Precision:
    """What a network is trained in under a choice: dense ones stay in float32."""
    return format_for(network, device, choice).precision
