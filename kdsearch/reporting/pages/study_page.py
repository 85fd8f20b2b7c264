"""A study's report as one page that works offline: what to ship, how sure that is, and where the figures come from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from markupsafe import Markup, escape

from kdsearch.reporting import choice, controls, formatting, runtimes
from kdsearch.reporting.choice import ship
from kdsearch.reporting.collect import CONFIG, StudyData, collect, configuration
from kdsearch.reporting.figures import curves, space_figures
from kdsearch.reporting.figures import front as figures
from kdsearch.reporting.formatting import by, count, missing, percent, ratio, ratio_of, records, seconds, size
from kdsearch.reporting.pages import document, text
from kdsearch.reporting.pages.assets import Library, packed, templates
from kdsearch.reporting.pages.document import Document, Fold, Grid, Section
from kdsearch.reporting.pages.one_trial import command
from kdsearch.reporting.verdict import SHIP, details, effort, headline, looks, picks
from kdsearch.system.files import write_text

# functions of `formatting` that the templates use
FILTERS = ("percent", "ratio", "interval", "span", "count", "size", "seconds", "setting", "configuration")
Rows = Sequence[Mapping[str, Any]]


def write(
    data: StudyData,
    path: Path | str,
    *,
    plotlyjs: Library = "inline",
    form: text.Format = "html",
    refresh: int | None = None,
) -> Path:
    """Write the report as one file, atomically, and return its path; its folder is created where it is missing.

    Args:
        data: of a study; it may hold no trials.
        path: where the file goes.
        plotlyjs: see `assets.checked`.
        form: "html", "md", "csv" (every trial) or "json".
        refresh: seconds after which a browser reloads the page; None: never.

    Raises:
        KdsearchError: the file cannot be written, or `plotlyjs` is unknown.
    """
    path = Path(path)
    others = {"md": as_markdown, "csv": text.as_csv, "json": text.as_json}
    write_text(path, others[form](data) if form in others else render(data, plotlyjs=plotlyjs, refresh=refresh))
    return path


def write_report(study: optuna.Study, path: Path | str, *, storage: str = "", plotlyjs: Library = "inline") -> Path:
    """Write the report of a study from a script or a notebook, as `kdsearch report` does.

    Args:
        study: of kdsearch's two objectives; it may hold no trials.
        path: where the file goes.
        storage: the storage's URL, for the commands that the page shows; a password in it is masked.
        plotlyjs: "inline" puts plotly.js into the page, compressed (2 MB, no network); "cdn" links to it.

    Returns:
        The path.

    Raises:
        KdsearchError: the study has other objectives, or the file cannot be written.
    """
    return write(collect(study, storage_url=storage), path, plotlyjs=plotlyjs)


def render(data: StudyData, *, plotlyjs: Library = "inline", refresh: int | None = None) -> str:
    """Render the page as HTML; the options are those of `write`."""
    return document.html(page(data), plotlyjs, refresh=refresh)


def as_markdown(data: StudyData) -> str:
    """Render the page as Markdown, without the table of every trial."""
    return document.markdown(page(data))


def page(data: StudyData) -> Document:
    """Return the report of a study; text from the study is escaped here, so that no backtick of it means code."""
    rows = {number: row | {"config": configuration(row)} for number, row in by(data.trials, "number").items()}
    front = [rows[number] for number in data.front["number"]]
    confirmed = by(data.confirmed, "trial")
    worth = controls.sentence(data) or ("Whether the teacher was worth it was not tried." if front else "")
    on = f" on {data.dataset}" if data.dataset and data.dataset != data.name else ""
    sections = [
        *_picks(data, confirmed),
        *_figure(data),
        *_front(data, front, confirmed),
        *_controls(data, worth_trying=bool(front)),
        *_runtimes(data),
        *_slides(data),
        *_what_mattered(data),
        *_curves(data),
        *_time(data),
        *_every_trial(data, [*rows.values()]),
        *_failed([row for row in rows.values() if row["state"] == "FAIL"]),
        _teacher(data.teacher or {}),
        _provenance(data),
    ]
    return Document(
        title=escape(f"Study {data.name}{on}"),
        verdict=escape(headline(data)),
        lead=[escape(said) for said in (details(data), worth, _counts(data)) if said],
        sections=sections,
    )


def _counts(data: StudyData) -> str:
    states = ", ".join(f"{number} {state}" for state, number in data.counts.items() if number)
    said = [f"Trials: {'; '.join(filter(None, [states, effort(data)]))}."] if states else []
    if data.hypervolume is not None and data.counts["complete"]:
        said.append(f"Hypervolume {data.hypervolume:.4f}.")
    return " ".join(said)


def _rendered(template: str, **values: Any) -> Markup:
    environment = templates(**{name: getattr(formatting, name) for name in FILTERS})
    environment.tests["present"] = lambda value: not missing(value)
    return Markup(environment.get_template(template).render(**values))


def _link(number: Any) -> str:
    return formatting.NOTHING if missing(number) else Markup('<a href="#trial-{0}">{0}</a>').format(int(number))


def _picks(data: StudyData, confirmed: Mapping[int, Mapping[str, Any]]) -> Iterator[Section]:
    chosen = picks(data)
    if not chosen:
        return
    faster = "fewer operations" if data.cost == "flops" else "as fast as the teacher"
    commands = {pick.row["number"]: command(data, pick.row["number"]) for pick in chosen}
    cards = _rendered("picks.html.j2", picks=chosen, confirmed=confirmed, commands=commands, faster=faster, ship=SHIP)
    rows = [
        [pick.title + " (confirmed)" * (shown is not pick.row), _link(pick.row["number"]), ratio(shown["ratio"]),
         percent(shown["test_accuracy"]), escape(formatting.configuration(pick.config)), escape(pick.why)]
        for pick in chosen
        for shown in [confirmed.get(pick.row["number"], pick.row)]
    ]  # fmt: skip
    if confirmed:
        sure = Markup(
            "<strong>{}</strong> Confirmed students were trained on the whole training set to the epoch that the "
            "search chose; their ratios were timed again."
        ).format(text.order(data))
    else:
        sure = Markup(
            "<strong>This front has not been confirmed with new seeds</strong>: <code>{}</code> does that."
        ).format(command(data, None))
    note = Markup(
        "How sure: the search, the pruner and the choice of epoch saw the validation set only, so its accuracies are "
        "the best of many looks and flatter. The test set was scored once a trial, at the epoch that validation chose, "
        "and chose neither epoch nor front. {} In the search each student was trained with one seed. {}"
    ).format(looks(data, ship(data)), sure)
    header = ("Pick", "Trial", "Ratio", "Test", "Parameters of the search", "Why")
    yield Section("", html=cards, grid=Grid(header, rows))
    yield Section("", note=note)


def _figure(data: StudyData) -> Iterator[Section]:
    finished = data.counts["complete"] + data.counts["pruned"]
    published = data.anchors["published_ratio"].notna().any()
    if not (finished or data.teacher or published):
        return
    said = ["The front is chosen by validation accuracy and ratio, so its line need not fall evenly in test accuracy."]
    if data.cost == "flops":
        said.append("Ratios count operations; nothing was timed.")
    else:
        said.append("Whiskers: 95 % interval of the ratio, over sittings.")
    if published:
        said.append(
            "A published ratio is another machine’s timing: compare speed with the filled points only; published "
            "points exist for test accuracy alone."
        )
    if hidden := figures.below(data):
        lie, them = ("s lie", "them") if hidden > 1 else (" lies", "it")
        said.append(f"{hidden} trial{lie} below the view: zoom out to see {them}.")
    title = "Accuracy against inference ratio"
    yield Section(title, figure=figures.front(data), plot="front", caption=" ".join(said))


def _front(data: StudyData, front: Rows, confirmed: Mapping[int, Mapping[str, Any]]) -> Iterator[Section]:
    if not front:
        return
    timed, alone = (bool(data.trials[name].notna().any()) for name in ("microseconds", "microseconds_1"))
    said = ["Students that no other student of this study beats in both validation accuracy and ratio, slowest first."]
    if timed:
        said.append("Ratios are over all sittings of a student’s timing.")
        if data.timed_batch is not None:
            of_one = ", and of one image alone" if alone else ""
            said.append(f"µs: the student’s time an image at batch {count(data.timed_batch)}{of_one}.")
        said.append(choice.timing_sentence(data))
    if "***" in data.storage:
        said.append("The storage’s password is hidden: put it in place of ***.")

    def cells(row: Mapping[str, Any]) -> Iterator[str]:
        anchor = Markup(" <strong>({})</strong>").format(row["anchor"]) if row["anchor"] else Markup()
        yield _link(row["number"])
        yield escape(formatting.configuration(row["config"])) + anchor
        yield from (percent(row[name]) for name in ("test_accuracy", "accuracy"))
        yield ratio_of(row)
        yield from [formatting.microseconds(row["microseconds"])] * timed
        yield from [formatting.microseconds(row["microseconds_1"])] * alone
        if sure := confirmed.get(row["number"]):
            yield from (formatting.span(sure["test_accuracy"], sure["test_low"], sure["test_high"]), ratio_of(sure))
        elif confirmed:
            yield from (formatting.NOTHING, formatting.NOTHING)
        yield from (count(row["parameters"]), size(row["bytes"]), count(row["best_epoch"]))

    header = ["Trial", "Parameters of the search", "Test", "Validation", "Ratio"]
    header += [*["µs"] * timed, *["µs alone"] * alone, *["Confirmed test", "Confirmed ratio"] * bool(confirmed)]
    header += ["Weights", "Size", "Epoch"]
    below = [command(data, row["number"]) for row in front]
    grid = Grid(header, [[*cells(row)] for row in front], below=below, titled=True)
    yield Section("The front", note=escape(" ".join(filter(None, said))), grid=grid)


def _controls(data: StudyData, *, worth_trying: bool) -> Iterator[Section]:
    if data.controls:
        told = Markup("<strong>{}</strong> {}").format(controls.sentence(data), controls.note(data))
        header = [name.capitalize() for name in controls.COLUMNS]
        yield Section(
            "Was the teacher worth it?",
            [told],
            figure=controls.figure(data),
            plot="controls",
            caption="Lines: the front of the distilled students, and that of the same students on labels alone.",
            note="Each confirmed student again without the teacher: same seeds, architecture, epochs, batch size and "
            "rate, so gains are paired by seed. Intervals are over seeds, on this one test set. Students that the "
            "search taught with labels alone have no control.",
            grid=Grid(header, [[*map(escape, row)] for row in controls.rows(data)], titled=True),
        )
    elif worth_trying:
        how = "Whether the teacher was worth it was not tried: <code>{}</code> trains each confirmed student again "
        yield Section("", note=Markup(how + "without it.").format(command(data, None, "--control")))


def _runtimes(data: StudyData) -> Iterator[Section]:
    told = runtimes.view(data)
    if not told:
        return
    rows = [
        [_link(row["number"]) + ("" if row["on_front"] else " (not on the front)"), percent(row["test_accuracy"]),
         *map(escape, row["cells"])]
        for row in told["rows"]
    ]  # fmt: skip
    yield Section(
        "Runtimes",
        [escape(told["sentence"])],
        figure=runtimes.figure(data),
        plot="runtimes",
        caption="A line a student, with its trial’s number: where lines cross, students change places. Whiskers: 95 % "
        "interval of the ratio.",
        note="Teacher time / student time, both in the same runtime on the same device. Torch times the network; ONNX "
        "Runtime and exported files go from bytes to logits.",
        grid=Grid(["Trial", "Test", *map(escape, told["titles"])], rows, titled=True),
        folds=[Fold("How each was measured", facts=told["what"])],
    )


def _slides(data: StudyData) -> Iterator[Section]:
    if data.anchors.empty:
        return
    published = bool(data.anchors["published_ratio"].notna().any())
    recipe = bool(data.anchors["recipe_ratio"].notna().any())
    said = "The slides publish no figures for this data set; their configurations are run here all the same. "
    if published:
        said = "Published accuracies and ratios are the slides’, from another machine. "
    if recipe:
        said += "“By the deck’s recipe” is the mean over seeds of `kdsearch slides`, in the same storage. "
    said += (
        "“Best” is the trial of this study with the best validation accuracy among those at least as fast as the row "
        "is here; the gain is in points of test accuracy."
    )

    def cells(row: Mapping[str, Any]) -> Iterator[str]:
        itself = not missing(row["best_trial"]) and row["best_trial"] == row["trial"]
        yield escape(row["anchor"])
        if published:
            yield from (percent(row["published_accuracy"]), ratio(row["published_ratio"]))
            yield seconds(row["published_seconds"])
        if recipe:
            yield from (percent(row["recipe_test_accuracy"]), ratio(row["recipe_ratio"]))
        yield from (_link(row["trial"]), percent(row["test_accuracy"]), ratio(row["ratio"]))
        yield "itself" if itself else _link(row["best_trial"])
        yield from (percent(row["best_test_accuracy"]), ratio(row["best_ratio"]))
        yield formatting.NOTHING if itself else formatting.points(row["gain"])

    header = ["Row", *["Test", "Ratio", "Teaching time"] * published, *["Test", "Ratio"] * recipe]
    header += ["Trial", "Test", "Ratio", "Trial", "Test", "Ratio", "Gain"]
    groups = [("", 1), *[("As published", 3)] * published, *[("By the deck’s recipe", 2)] * recipe]
    groups += [("In this study", 3), ("Best at least as fast", 4)]
    grid = Grid(header, [[*cells(row)] for row in records(data.anchors)], groups=groups, titled=True)
    yield Section("The slides’ configurations", note=said, grid=grid)


def _what_mattered(data: StudyData) -> Iterator[Section]:
    title = "What mattered"
    found = space_figures.importances(data.stored)
    if len(found):
        rows = [
            [escape(row["parameter"].replace("_", " ")), percent(row["accuracy"], 0), percent(row["ratio"], 0)]
            for row in records(found)
        ]
        grid = Grid(("Parameter", "For accuracy", "For the ratio"), rows, titled=True)
        yield Section(
            title,
            figure=space_figures.importance_bars(found),
            plot="importances",
            caption="How much of each objective’s spread among the complete trials a parameter explains (random "
            "forest, mean decrease of impurity). A search that draws one value more often than others makes these "
            "rough.",
            folds=[Fold("The importances as a table", grid=grid)],
        )
        title = ""
    slices = space_figures.slices(data) if data.counts["complete"] + data.counts["pruned"] else None
    if slices:
        caption = "Validation accuracy against one parameter at a time: the buttons choose it."
        yield Section(title, figure=slices, plot="slices", caption=caption)


def _curves(data: StudyData) -> Iterator[Section]:
    if len(data.curves):
        yield Section(
            "Learning curves",
            figure=curves.learning_curves(data),
            plot="curves",
            caption="Validation accuracy after each epoch. Front members in colour, slowest first; pruned trials are "
            "dotted and end in a cross: the table below says why each was stopped. A trial that is selected here or in "
            "the front’s figure is drawn over the others. The lowest twentieth of the points may lie below the view.",
        )
    if len(data.history):
        yield Section(
            "Hypervolume",
            figure=curves.hypervolume(data),
            plot="hypervolume",
            caption="Area that the front covers over (log10 of how many times fewer validation errors than at "
            f"{percent(data.floor, 1)} accuracy, log10 ratio), from that accuracy and ratio 1; higher is better. The "
            "search and the pruner go by references of their own. A flat end means that the last trials added nothing.",
        )


def _time(data: StudyData) -> Iterator[Section]:
    if data.spent:
        total = sum(data.spent.values())
        spent = sorted(data.spent.items(), key=lambda item: -item[1])
        rows = [(work, f"{seconds(each)} ({percent(each / total, 0)})") for work, each in spent]
        yield Section("Where the time went", facts=rows)


def _every_trial(data: StudyData, rows: Rows) -> Iterator[Section]:
    if rows:
        keys = [key.removeprefix(CONFIG) for key in data.trials.columns if key.startswith(CONFIG)]
        table = _rendered("trials.html.j2", data=data, trials=rows, keys=keys, csv=packed(text.as_csv(data)))
        yield Section("Every trial", html=table, anchor="every-trial")


def _failed(rows: Rows) -> Iterator[Section]:
    if rows:
        cells = [
            [_link(row["number"]), escape(formatting.configuration(row["config"])),
             escape(row["reason"] or "no reason was stored")]
            for row in rows
        ]  # fmt: skip
        yield Section("Failed trials", grid=Grid(("Trial", "Parameters of the search", "Reason"), cells, titled=True))


def _teacher(teacher: Mapping[str, Any]) -> Section:
    if not teacher:
        return Section("Teacher", ["The study holds no teacher yet."])
    said = {
        "test accuracy": percent(teacher.get("accuracy")),
        "validation accuracy": percent(teacher.get("validation_accuracy")),
        "weights": count(teacher.get("parameters")),
        "size": size(teacher.get("bytes")),
        "training": seconds(teacher.get("seconds") or None),
    }
    known = {"accuracy", "validation_accuracy", "parameters", "bytes", "seconds"}
    rest = {key: value for key, value in teacher.items() if key not in known and value != ""}
    facts = [(title, value) for title, value in said.items() if value != formatting.NOTHING]
    return Section("Teacher", facts=[*formatting.flat(rest), *facts])


def _provenance(data: StudyData) -> Section:
    finished = data.trials["finished"].dropna()
    said = {"objectives": data.stand_ins, "command": data.command, "storage": data.storage, "study": data.name,
            "data set": data.dataset}  # fmt: skip
    if len(finished):
        first, last = (f"{moment(finished):%Y-%m-%d %H:%M}" for moment in (min, max))
        said["trials ended"] = f"{first} to {last}"
    facts = [*((key, str(value)) for key, value in said.items() if value), *formatting.flat(data.environment)]
    what = "The study’s definition: what must stay the same for trials to be comparable"
    folds = [Fold(what, facts=formatting.flat(data.definition))] if data.definition else []
    if data.study_file:
        folds.append(Fold("The study file", code=json.dumps(data.study_file, indent=2, default=str)))
    return Section("Where this comes from", facts=facts, folds=folds)
