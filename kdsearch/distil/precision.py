"""Choice of the training precision of convolutions: bfloat16 if the device supports it and is faster, else float32."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from kdsearch import networks
from kdsearch.data import ImageSet
from kdsearch.distil import train
from kdsearch.distil.loss import cls_loss
from kdsearch.distil.step import format_for, usual_precision
from kdsearch.errors import KdsearchError
from kdsearch.records import Precision
from kdsearch.spec import Recipe
from kdsearch.system import files, machine

WANTED = ("auto", *get_args(Precision))
BATCH, STEPS, ROUNDS = 64, 3, 2  # of a timed run: the fastest step of all rounds counts
FASTER = 1.05  # minimum speed-up over float32: below it bfloat16's rounding is not worth it
RECIPE = Recipe(optimizer="sgd", lr=1e-3, momentum=0.9)  # of the timed steps


@dataclass(frozen=True)
class Choice:
    """A precision of convolutions in training, and of the teacher's when it is asked.

    Attributes:
        name: of the precision.
        why: the reason in words, for the report.
        given: whether the user named it.
    """

    name: Precision
    why: str
    given: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def check(wanted: str) -> None:
    """Refuse an unknown precision.

    Raises:
        KdsearchError: it is unknown.
    """
    if wanted not in WANTED:
        raise KdsearchError("--precision must be known", got=wanted, remedy=f"choose one of {', '.join(WANTED)}")


def choose(
    wanted: str, *, device: torch.device, kind: str, shape: tuple[int, int, int], build: Callable[[], nn.Module]
) -> Choice:
    """Return the precision for a kind of network on a device; if timing decides, it is timed once and cached.

    Args:
        wanted: "auto", or the precision that the user names, which is then used.
        device: for training.
        kind: the family's name.
        shape: channels, height and width of an image.
        build: makes a network of that kind; called only if timing is needed.

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
    """Return the precision of a stored study's definition, if there is one and the user names none; else the choice."""
    return choice if stored is None or choice.given else kept_by(stored, device)


def kept_by(stored: Mapping[str, Any], device: torch.device) -> Choice:
    """Return the precision in a study's definition, else the device's default: the study is older than that key."""
    return Choice(stored.get("precision") or usual_precision(device), "as the study was begun")


def warnings(choice: Choice, device: torch.device) -> list[str]:
    """Return warnings where the precision costs time on this machine."""
    if choice.name == "float32" or device.type != "cpu" or machine.bf16_instructions():
        return []
    return [
        "this CPU has no bfloat16 instructions: convolutions in bfloat16 can take ten times as long as in float32 "
        f"(precision {choice})"
    ]


def file() -> Path:
    """Return the file of cached choices."""
    return machine.cache_folder() / "precision.json"


def kept() -> dict[str, dict[str, Any]]:
    """Return the timed choices by kind of network and device: "precision", and seconds per step of both."""
    try:
        found = json.loads(file().read_text(encoding="utf-8"))
        return {key: value for key, value in found.items() if value["precision"] in WANTED and _gain(value) > 0}
    except (OSError, ValueError, AttributeError, KeyError, TypeError, ZeroDivisionError):
        return {}


def in_words(timed: Mapping[str, Any]) -> str:
    """Describe the timing of an entry of `kept`."""
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
                if not networks.has_layer(network, nn.Conv2d):
                    return Choice("float32", "dense students")
                timed = _compared(network, device, shape)
            except Exception as error:  # the network's own error, which its trials report better
                return Choice("float32", f"steps could not be timed: {type(error).__name__}")
            files.write_text(file(), json.dumps(kept() | {key: timed}, indent=1))
    return Choice(timed["precision"], f"{in_words(timed)}; {', '.join(instructions)}")


def _compared(network: nn.Module, device: torch.device, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Time steps in each precision alternately; return the seconds per step and the faster precision."""
    network = network.to(device)
    names: tuple[Precision, ...] = get_args(Precision)
    rounds = [[step_seconds(network, device, shape, name) for name in names] for _ in range(ROUNDS)]
    seconds: dict[str, float] = dict(zip(names, map(min, *rounds), strict=True))
    return {"precision": "bfloat16" if _gain(seconds) >= FASTER else "float32", **seconds}


def step_seconds(network: nn.Module, device: torch.device, shape: tuple[int, int, int], name: Precision) -> float:
    """Return the seconds of the fastest of a few training steps on random images; this changes the network."""
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
    for _ in train.Run(network, lesson, RECIPE):
        now(STEPS)
    return min(b - a for a, b in itertools.pairwise(began[1:]))


def trained_in(network: nn.Module, device: torch.device, choice: Precision | None) -> Precision:
    """Return the training precision of a network under a choice: dense networks stay in float32."""
    return format_for(network, device, choice).precision
