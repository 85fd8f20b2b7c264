"""The page of the slides: published and measured figures row by row, as HTML, Markdown and JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from optuna import Study

from kdsearch.experiments.slides import summary
from kdsearch.experiments.slides.deck import DECKS
from kdsearch.experiments.slides.run import Options, stored
from kdsearch.experiments.slides.summary import EQUAL, Measured, as_json
from kdsearch.records import StudyAttr
from kdsearch.reporting import formatting
from kdsearch.reporting.figures import style
from kdsearch.reporting.pages import assets, document
from kdsearch.reporting.pages.document import Document, Grid, Mark, Section

MARKS: dict[str, Mark] = {
    "matches": "good", "higher": "good", "lower": "bad", "undecided": "unsure",
    "not measured": "unsure",
    "faster": "good", "even": "unsure", "slower": "bad",
}  # fmt: skip
TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]  # of the ratio's axis
ROW_AXIS = {"title": {"text": "row"}, "type": "category"}


def write(
    study: Study, options: Options, measured: Sequence[Measured], folder: Path, *, plotlyjs: str = "inline"
) -> Path:
    """Write `slides-DATASET.html`, `.md` and `.json`, each atomically; return the page's path.

    Args:
        measured: of `summary.summarise`.
        folder: created where it is missing.
        plotlyjs: "inline" or "cdn".

    Raises:
        KdsearchError: a file cannot be written, or `plotlyjs` is neither.
    """
    way = assets.checked(plotlyjs)
    name = f"slides-{options.dataset}"
    result = as_json(study, options, measured)
    return document.write(report(study, options, measured), folder, name, plotlyjs=way, result=result)


def label(one: Measured) -> str:
    """Return a row's name, with its reading where that is not "stated"."""
    return one.job.row.name + ("" if one.job.reading == "stated" else " (published reading)")


def interval(low: float, high: float, form: str) -> str:
    return f"{low:{form}} to {high:{form}}"


def report(study: Study, options: Options, measured: Sequence[Measured]) -> Document:
    """Return the page's text, tables and figures."""
    teacher = summary.teacher(study, options.dataset, measured)
    known = [one for one in measured if one.difference is not None]
    sections = [
        *(_published_sections(options, known) if known else []),
        *_int8_sections(measured),
        _open_section(measured),
        Section("Teacher", grid=_teacher_grid(teacher), text=[DECKS[options.dataset].text]),
    ]
    title = {"mnist": "The slides on MNIST", "cifar10": "The slides on CIFAR-10"}[options.dataset]
    return Document(title, _verdict(options, measured), _facts(study, options), sections)


def _published_sections(options: Options, known: Sequence[Measured]) -> list[Section]:
    """Return the sections of rows that have published figures."""
    return [
        Section(
            "Accuracy",
            _accuracy_text(options, known),
            _accuracy_figure(known),
            "Filled: each training of ours. Open: as published, one training.",
            _accuracy_grid(known),
        ),
        Section(
            "Speed and time",
            _speed_text(options),
            _ratio_figure(known),
            "Median of the paired ratios with its 95 % interval, and the published ratio of another machine.",
            _speed_grid(known),
        ),
    ]


def _int8_sections(measured: Sequence[Measured]) -> list[Section]:
    rows = [
        [
            label(one),
            f"{one.accuracy.mean:.2f}",
            interval(one.accuracy.low, one.accuracy.high, ".2f"),
            f"{one.int8.trained_accuracy:.2f}",
            f"{one.ratio[0]:.1f} ({interval(one.ratio[1], one.ratio[2], '.1f')})",
            f"{one.int8.float_ratio:.1f}",
            f"{one.int8.gain[0]:.2f}x ({interval(one.int8.gain[1], one.int8.gain[2], '.2f')})",
            f"{formatting.size(one.bytes)} / {formatting.size(one.int8.float_bytes)}",
            str(one.int8.float_products),
            one.verdict,
        ]
        for one in measured
        if one.int8 is not None
    ]
    if not rows:
        return []
    header = (
        "row", "accuracy, %", "95 % interval", "in training, %", "ratio in int8", "ratio in float", "float / int8 time",
        "file, int8 / float", "float products", "int8 is",
    )  # fmt: skip
    text = (
        "The deck names a quantized algorithm and gives no figure for it. Here the teacher's last feature map is "
        "quantised to 8 bits (Wei et al., arXiv 1805.02152), and the student is trained with quantisation in the loop "
        "and deployed as an ONNX file that ONNX Runtime runs in int8, one thread of this CPU. Accuracy is that of the "
        "file; teacher, float student and int8 student are timed there in turn. Weights have 7 bits, for processors "
        "without VNNI overflow with 8."
    )
    return [Section("The deck's quantised algorithm", [text], grid=Grid(header, rows, MARKS))]


def _verdict(options: Options, measured: Sequence[Measured]) -> str:
    if not measured:
        return "No row was measured yet."
    if options.scaled:
        return "This run is smaller than the deck's: it shows that the program runs, and measures no row."
    known = [one for one in measured if one.difference is not None]
    if not known:
        return "No row that has a published figure was measured."
    counts = Counter(one.verdict for one in known)
    return (
        f"{counts['matches']} of {len(known)} rows are shown to match the deck's accuracy within {EQUAL} points; "
        f"higher: {counts['higher']}, lower: {counts['lower']}, undecided: {counts['undecided']}."
    )


def _accuracy_text(options: Options, measured: Sequence[Measured]) -> list[str]:
    text = [
        "Test accuracy after the last epoch, in percent; nothing was chosen by it. The interval of the mean is "
        "Student's t over seeds (of a single training: Wilson's, over the test images). The difference is measured "
        "minus published, and its 95 % interval takes the published figure for one training with the spread of ours. A "
        f"row matches where two one-sided tests at 5 % show that the difference is smaller than {EQUAL} points either "
        "way; it is higher or lower where the interval excludes 0, else undecided. All rows share one teacher, so its "
        "own luck is in every row.",
    ]
    tau = summary.order(measured)
    if tau is not None:
        text.append(
            f"The order of the {tau.n} rows as the deck states them, ours against the published one: Kendall's tau "
            f"{tau.mean:.2f} (95 % interval {tau.low:.2f} to {tau.high:.2f}, bootstrap over seeds and the noise of one "
            "published run); 1 is the same order, 0 none in common."
        )
    if options.scaled:
        text.append("There are no verdicts: this run trained less than the deck.")
    text += [
        f"{label(one)} comes out {-one.difference.mean:.2f} points lower. {_why(one)}"
        for one in measured
        if one.difference is not None and one.verdict == "lower"
    ]
    return text


def _why(one: Measured) -> str:
    if one.job.reading == "stated" and one.job.row.open:
        return f"The deck leaves open here: {one.job.row.open}; the published figure may be of the other choice."
    return "Nothing that the deck leaves open explains it."


def _accuracy_grid(measured: Sequence[Measured]) -> Grid:
    header = ("row", "published, %", "measured, %", "95 % interval", "trainings", "difference", "its interval", "")
    rows = [
        [
            label(one),
            f"{one.published.accuracy:.2f}",
            f"{one.accuracy.mean:.2f}",
            interval(one.accuracy.low, one.accuracy.high, ".2f"),
            str(len(one.accuracies)),
            f"{one.difference.mean:+.2f}",
            interval(one.difference.low, one.difference.high, "+.2f"),
            one.verdict,
        ]
        for one in measured
        if one.difference is not None
    ]
    return Grid(header, rows, MARKS)


def _accuracy_figure(measured: Sequence[Measured]) -> go.Figure | None:
    if not measured:
        return None
    values = [value for one in measured for value in one.accuracies]
    published = [one.published.accuracy for one in measured]
    figure = go.Figure()
    figure.add_scatter(
        x=[label(one) for one in measured for _ in one.accuracies], y=style.rounded(values),
        name="measured, each training", mode="markers", marker={"color": style.BLUE, "size": 8, "opacity": 0.75},
    )  # fmt: skip
    _add_published(figure, measured, published, "published")
    y_range = style.padded(min(values + published), max(values + published))
    y_axis = {"title": {"text": "test accuracy, %"}, "range": y_range}
    figure.update_layout(style.layout(ROW_AXIS, y_axis, 400, rows=1))
    return figure


def _add_published(figure: go.Figure, measured: Sequence[Measured], values: Sequence[float], name: str) -> None:
    figure.add_scatter(
        x=[label(one) for one in measured], y=values, name=name, mode="markers",
        marker={"color": style.ORANGE, "size": 12, "symbol": "diamond-open", "line": {"width": 2}},
    )  # fmt: skip


def _speed_text(options: Options) -> list[str]:
    deck = DECKS[options.dataset]
    batch = "the whole test set as one batch" if deck.batch is None else f"batches of {deck.batch} test images"
    back = ", the prediction brought back to the host" if deck.to_host else ""
    return [
        f"Inference as the deck timed it: {batch}{back}, eager, one thread on a CPU. Teacher and student are timed in "
        "turn, anew in each repeat, and rows of one architecture share the timing, so they tie. A published ratio is "
        "one timing on another machine: no error bar. "
        + (
            "The published training time of MNIST is of a three-fold cross-validation: not comparable with ours, "
            "which is of one training."
            if options.dataset == "mnist"
            else "The published training time includes asking the teacher in every step."
        )
    ]


def _speed_grid(measured: Sequence[Measured]) -> Grid:
    header = (
        "row", "ratio published", "ratio measured", "95 % interval", "teacher, us an image", "student, us an image",
        "training published, s", "training measured, s", "parameters", "size",
    )  # fmt: skip
    rows = [
        [
            label(one),
            f"{one.published.ratio:.2f}",
            f"{one.ratio[0]:.2f}",
            interval(one.ratio[1], one.ratio[2], ".2f"),
            f"{1e6 * one.teacher_seconds:.1f}",
            f"{1e6 * one.student_seconds:.2f}",
            f"{one.published.seconds:.0f}",
            f"{one.seconds:.1f}",
            f"{one.parameters:,}",
            formatting.size(one.bytes),
        ]
        for one in measured
    ]
    return Grid(header, rows)


def _ratio_figure(measured: Sequence[Measured]) -> go.Figure | None:
    if not measured:
        return None
    figure = go.Figure()
    figure.add_scatter(
        x=[label(one) for one in measured], y=style.rounded(one.ratio[0] for one in measured), name="measured",
        mode="markers", marker={"color": style.BLUE, "size": 9},
        error_y={
            "type": "data", "symmetric": False,
            "array": style.rounded(one.ratio[2] - one.ratio[0] for one in measured),
            "arrayminus": style.rounded(one.ratio[0] - one.ratio[1] for one in measured),
        },
    )  # fmt: skip
    _add_published(figure, measured, [one.published.ratio for one in measured], "published, another machine")
    y_axis = {"title": {"text": "inference ratio"}, "type": "log", "tickvals": TICKS}
    figure.update_layout(style.layout(ROW_AXIS, y_axis, 380, rows=1))
    return figure


def _open_section(measured: Sequence[Measured]) -> Section:
    title = "What the deck leaves open"
    rows = dict.fromkeys((one.job.row.name, one.job.row.open) for one in measured if one.job.row.open)
    if not rows:
        return Section(title, ["Nothing, in the rows of this page."])
    text = "`--reading stated` runs a row as the deck states it, `published` as its authors' published code ran it."
    return Section(title, [text], grid=Grid(("row", "open"), list(rows)))


def _teacher_grid(teacher: dict[str, Any]) -> Grid:
    per_image = teacher["seconds_per_image"]
    rows = [
        ["family", str(teacher["family"])],
        ["test accuracy, measured", f"{teacher['accuracy']:.2f} %"],
        ["test accuracy, published", f"{teacher['published']['accuracy']:.2f} %"],
        ["training", formatting.seconds(teacher["seconds"]) if teacher["seconds"] else "none: its weights were given"],
        ["inference, microseconds an image", "-" if per_image is None else f"{1e6 * per_image:.1f}"],
        ["parameters", f"{teacher['parameters']:,}"],
        ["size", formatting.size(teacher["bytes"])],
        ["fingerprint", str(teacher["fingerprint"])],
    ]
    return Grid(("", "teacher"), rows)


def _facts(study: Study, options: Options) -> list[str]:
    environment = study.user_attrs.get(StudyAttr.ENVIRONMENT, {})
    ends = [trial.datetime_complete for trial in stored(study).values() if trial.datetime_complete is not None]
    facts = [f"Made by `{study.user_attrs.get(StudyAttr.COMMAND, 'a script')}`.", document.versions(environment)]
    if (kept := environment.get("precision")) is not None:
        facts.append(f"Convolutions are trained in {kept}; dense students and all ratios in float32.")
    facts.append(
        f"Seeds: repeat r is seeded from (slides, r), r = 0 to {options.repeats - 1}; rows of a repeat are paired."
    )
    if ends:
        facts.append(f"Trainings ended {min(ends):%Y-%m-%d %H:%M} to {max(ends):%Y-%m-%d %H:%M}.")
    if options.dataset == "cifar10":
        facts.append("Data: CIFAR-10; where it was read from class folders of JPEG files, a lossy copy.")
    less = {"training images": options.train_size, "epochs": options.max_epochs, "width": options.width}
    limits = ", ".join(f"at most {value} {key}" for key, value in less.items() if value is not None)
    return [*facts, f"Less than the deck: {limits}."] if limits else facts


def text(measured: Sequence[Measured]) -> str:
    """Return a line a row, for a terminal."""
    return "\n".join(map(_line, measured))


def _line(one: Measured) -> str:
    found = (
        f"{label(one):<24} accuracy {one.accuracy.mean:6.2f} % "
        f"({interval(one.accuracy.low, one.accuracy.high, '.2f')}), "
        f"ratio {one.ratio[0]:.4g} ({interval(one.ratio[1], one.ratio[2], '.4g')})"
    )
    if one.int8 is not None:
        return f"{found}; int8 is {one.int8.gain[0]:.2f} times as fast as float: {one.verdict}"
    return f"{found}; published {one.published.accuracy:.2f} % and {one.published.ratio:.4g}: {one.verdict}"
