"""The page of `bench train`: our loop's images a second beside the plain one's, and its ceiling."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch

from kdsearch.experiments.train_bench.loops import TOLERANCES
from kdsearch.experiments.train_bench.run import WARM_UPS, Measured
from kdsearch.reporting import formatting
from kdsearch.reporting.figures import style
from kdsearch.reporting.pages import document
from kdsearch.reporting.pages.assets import Library
from kdsearch.reporting.pages.document import Document, Grid, Section
from kdsearch.system import machine

KEYS = ("kdsearch", "torch", "torchvision", "numpy", "python", "platform", "device_model", "cores")
SHARE_BAR = 0.95  # of the ceiling, on a CPU with CIFAR-10, where the plain loop runs the teacher
SPEEDUP_BARS = {"m7": 3.0}  # on a CPU
RATE_BARS = {("c1", 100): 60e3, ("c5", 100): 100e3, ("c1", 512): 100e3, ("c5", 512): 250e3}  # images/s on an H100
BF16_BARS = {"c1": 1.4, "c2": 1.4, "c5": 1.4}  # speed-up over ours in float32, on a CPU with bfloat16 instructions
BF16_SPEEDUP_BARS = {"c5": 5.0}  # speed-up over the plain loop in float32 there
CPU_BATCHES = {"cifar10": 100, "mnist": 32}  # batch sizes at which the bars apply on a CPU
HOW = (
    "Ours is the epoch loop that trains every student: the whole set as one tensor on the device, the teacher's logits "
    "asked before, a fused optimiser. The plain loop has a data set that gives one image at a time through Pillow, "
    "torchvision's ToTensor and Normalize, a shuffling DataLoader with workers that stay, and torch's optimiser as it "
    "comes. On CIFAR-10 it asks the teacher in each step without gradients; on MNIST the teacher's outputs were "
    "computed beforehand and come with the images, as the deck has it. Both: same batch, same student, same start, "
    "same precision (float32; on CUDA convolutions under autocast to bfloat16); no loss is read before the epoch's "
    "end. Ours keeps convolutions channels last, and on CUDA replays its step as a graph. Where ours computes "
    "convolutions in bfloat16 on a CPU, the plain loop and the teacher that it asks stay in float32, and ours in "
    "float32 is timed beside them.",
    "A round times both and their parts in turn, a sample each; the speed-up is the median of the ratios of a round. "
    "Ceiling: (teacher + student) / student where the plain loop asks the teacher, else plain / student; student is a "
    "step of our optimiser on batches that are ready on the device, on CUDA replayed as "
    "a graph like ours, but with torch's own layers, of which ours computes some faster; "
    "teacher a forward pass for inference. Reading "
    "images and waiting for workers cost the plain loop on CIFAR-10 time beyond the ceiling's, so more than 100 % of "
    "it is possible.",
    "The teacher is untrained, of the deck's family: its weights change no time. The setting that keeps freed memory "
    "with glibc holds for the whole process, so the plain loop gains by it, too.",
)


@dataclass(frozen=True)
class Bar:
    """A requirement on a figure of the row `name`: the compared quantity, bar and figure as text, whether it is met."""

    name: str
    what: str
    bar: str
    figure: str
    met: bool


def bars(row: Measured, device: torch.device) -> list[Bar]:
    """Return the bars that apply to a row on a device at its batch size."""
    speedup = row.speedup[0]
    if device.type == "cuda":
        least = RATE_BARS.get((row.name, row.batch)) if "H100" in machine.device_model(device) else None
        rate = f"images/s at batch {row.batch}", least, row.images_a_second("ours")
        return _at_least(row, [rate], "{:,.0f}".format)
    if row.batch != CPU_BATCHES[row.dataset]:
        return []
    if "teacher" not in row.seconds:
        return _at_least(row, [("times the plain loop", SPEEDUP_BARS.get(row.name), speedup)])
    share = speedup / row.ceiling
    found = [Bar(row.name, "share of the ceiling", f"{SHARE_BAR:.0%}", f"{share:.1%}", share >= SHARE_BAR)]
    if row.against_float32 is None:
        return found
    return found + _at_least(row, [
        ("times ours in float32", BF16_BARS.get(row.name), row.against_float32[0]),
        ("times the plain loop in float32", BF16_SPEEDUP_BARS.get(row.name), speedup),
    ])  # fmt: skip


def _at_least(
    row: Measured,
    figures: Sequence[tuple[str, float | None, float]],
    form: Callable[[float], str] = formatting.ratio,
) -> list[Bar]:
    """Return the bars of figures, each a quantity with its least value and its measured one; None: there is no bar."""
    return [
        Bar(row.name, what, form(least), form(figure), figure >= least)
        for what, least, figure in figures
        if least is not None
    ]


def as_json(row: Measured) -> dict[str, Any]:
    """Return a row of the result: rates in images/s, times in seconds a step."""
    speedup, low, high = row.speedup
    return {
        "ours": row.images_a_second("ours"),
        "plain": row.images_a_second("plain"),
        "speedup": speedup,
        "low": low,
        "high": high,
        "ceiling": row.ceiling,
        "share_of_ceiling": speedup / row.ceiling,
        "batch": row.batch,
        "precision": row.precision,
        "against_float32": row.against_float32,
        "losses_agree_to": row.agreement.loss,
        "steps_agree_to": row.agreement.step,
        "steps": row.steps,
        "threads": dict(zip(("ours", "plain"), row.threads, strict=True)),
        "workers": row.workers,
        "seconds": {which: list(spent) for which, spent in row.seconds.items()},
    }


def result(
    measured: Sequence[Measured], device: torch.device, *, command: str, load: float | None = None
) -> dict[str, Any]:
    """Return what `--json` prints and `bench-train.json` holds; `load` is the machine's load average before the run."""
    return {
        "rows": {row.name: as_json(row) for row in measured},
        "bars": [asdict(bar) for row in measured for bar in bars(row, device)],
        "device": machine.device_model(device),
        "environment": machine.environment(device),
        "load": load,
        "command": command,
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def write(found: dict[str, Any], measured: Sequence[Measured], folder: Path, *, plotlyjs: Library = "inline") -> Path:
    """Write `bench-train.html`, `.md` and `.json` from a `result`, each atomically, and return the page's path.

    Raises:
        KdsearchError: a file cannot be written.
    """
    return document.write(report(found, measured), folder, "bench-train", plotlyjs=plotlyjs, result=found)


def report(found: dict[str, Any], measured: Sequence[Measured]) -> Document:
    """Return the page's text, figure and tables."""
    sections = [Section("Images a second", grid=_rates(measured),
                        note="Medians over rounds. Of the ceiling: speed-up / ceiling.")]  # fmt: skip
    if found["bars"]:
        header = ("row", "what", "bar", "figure", "")
        rows = [[b["name"], b["what"], b["bar"], b["figure"], "met" if b["met"] else "not met"] for b in found["bars"]]
        sections.append(Section("Bars", grid=Grid(header, rows, marks={"met": "good", "not met": "bad"})))
    sections += [
        Section("Round by round", figure=figure(measured), caption="A point a round; the bar is the row's ceiling."),
        Section("How it was measured", HOW),
        Section("Milliseconds a step", grid=_times(measured)),
        _same_step(found, measured),
    ]
    gains = ", ".join(f"{formatting.ratio(row.speedup[0])} on {row.name}" for row in measured)
    verdict = f"Our epoch loop's images a second, as a multiple of the plain loop's: {gains}."
    return Document("Bench of the training loop", verdict, _facts(found, measured), sections)


def _rates(measured: Sequence[Measured]) -> Grid:
    header = ("row", "batch", "ours", "plain", "speed-up (95 %)", "ceiling", "of the ceiling")
    rows = [
        [
            row.name,
            str(row.batch),
            f"{row.images_a_second('ours'):,.0f}",
            f"{row.images_a_second('plain'):,.0f}",
            formatting.interval(*row.speedup),
            formatting.ratio(row.ceiling),
            formatting.percent(row.speedup[0] / row.ceiling, 1),
        ]
        for row in measured
    ]
    return Grid(header, rows)


def _times(measured: Sequence[Measured]) -> Grid:
    parts = ("ours", "student", "plain", "teacher")
    rows = []
    for row in measured:
        took = {which: 1e3 * statistics.median(spent) for which, spent in row.seconds.items()}
        rows.append([row.name, *(f"{took[which]:.4g}" if which in took else "-" for which in parts)])
    return Grid(("row", "ours", "student alone", "plain", "teacher"), rows)


def _same_step(found: dict[str, Any], measured: Sequence[Measured]) -> Section:
    loss, step = TOLERANCES["cpu" if found["environment"]["device"] == "cpu" else "cuda"]
    text = (
        "Before the timing, one step of each from the same start with the same images in the same order, in epoch 10, "
        f"where the teacher weighs most. Refused where the losses differ by more than {loss:g} of the loss, or all "
        f"parameters together by more than {step:g} of the step's length."
    )
    rows = [[row.name, f"{row.agreement.loss:.1e}", f"{row.agreement.step:.1e}"] for row in measured]
    return Section("Both take the same step", [text], grid=Grid(("row", "losses differ by", "steps differ by"), rows))


def _facts(found: dict[str, Any], measured: Sequence[Measured]) -> list[str]:
    load = found["load"]
    return [
        f"Made by `{found['command']}` on {found['made']}.",
        document.versions(found["environment"], KEYS),
        *([] if load is None else [f"Load average of the machine before the start: {load:.2f}."]),
        *(
            f"{row.name}: convolutions of ours in {row.precision}{_against(row)}; {row.steps} steps a sample, "
            f"{_counted(len(row.seconds['ours']), 'round')} after {WARM_UPS} that warm up; threads {row.threads[0]} in "
            f"ours and in the student alone, {row.threads[1]} in the plain loop and the teacher; "
            f"{_counted(row.workers, 'worker')} in the plain loop's DataLoader."
            for row in measured
        ),
    ]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _against(row: Measured) -> str:
    """Format our speed-up over float32, where ours computes in another precision."""
    gain = row.against_float32
    return "" if gain is None else f", {formatting.interval(*gain)} times as fast as in float32"


def figure(measured: Sequence[Measured]) -> go.Figure:
    """Draw each round's speed-up by row, and the row's ceiling."""
    drawn = go.Figure()
    names = [row.name for row in measured for _ in row.seconds["ours"]]
    ratios = [ratio for row in measured for ratio in row.rounds_over("plain", "ours")]
    drawn.add_scatter(
        x=names, y=style.rounded(ratios), mode="markers", name="plain / ours, a round",
        marker={"color": style.BLUE, "size": 9, "opacity": 0.7},
    )  # fmt: skip
    ceilings = [row.ceiling for row in measured]
    drawn.add_scatter(
        x=[row.name for row in measured], y=style.rounded(ceilings), mode="markers", name="ceiling",
        marker={"color": style.ORANGE, "size": 30, "symbol": "line-ew", "line": {"width": 3, "color": style.ORANGE}},
    )  # fmt: skip
    x_axis = {"title": {"text": "row of the slides"}, "type": "category", "range": [-0.6, len(measured) - 0.4]}
    y_axis = {"title": {"text": "times the plain loop's images/s"}, "range": [0, 1.1 * max([*ratios, *ceilings])]}
    drawn.update_layout(style.layout(x_axis, y_axis, height=340, rows=1))
    return drawn


def text(measured: Sequence[Measured], device: torch.device) -> str:
    """Return a line a row and a line a bar, for a terminal."""
    lines = [
        f"{row.name:<4} batch {row.batch}: ours {row.images_a_second('ours'):,.0f} images/s, plain "
        f"{row.images_a_second('plain'):,.0f}, speed-up {formatting.interval(*row.speedup)} of at most "
        f"{formatting.ratio(row.ceiling)}; {row.precision}{_against(row)}"
        for row in measured
    ]
    lines += [
        f"{'met' if bar.met else 'NOT MET':<8} {bar.name}: {bar.what} {bar.figure} (bar: {bar.bar})"
        for row in measured
        for bar in bars(row, device)
    ]
    return "\n".join(lines)
