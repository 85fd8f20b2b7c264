"""Choose the trial of a study to ship and explain the choice in a sentence; works without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdsearch import pareto
from kdsearch.errors import KdsearchError
from kdsearch.reporting import formatting
from kdsearch.reporting.choice import Standing, fastest, ship
from kdsearch.reporting.collect import TIMED, StudyData, configuration
from kdsearch.reporting.formatting import plain, records
from kdsearch.reporting.verdict import knee, looks, none_within, sentence, worth
from kdsearch.search.run_options import option

EXACT = 1e-12  # tolerance: 100 * 0.975 may be below 97.5 by a last bit


@dataclass(frozen=True)
class Wish:
    """Requirements on the student to ship; all that are given must hold.

    Without `knee` the fastest is taken where an accuracy is required, and the most accurate where none is. `within` is
    tested by `reporting.choice.ship`; a wish without any requirement stands for the study's own `within`.
    """

    min_accuracy: float | None = option(None, "Validation accuracy at least, in percent (97.5).")
    min_ratio: float | None = option(None, "Teacher time / student time at least.", least=0)
    max_parameters: int | None = option(None, "Parameters at most.", least=1)
    knee: bool = option(False, "Take what gives up least on accuracy and ratio together.")
    within: float | None = option(
        None, "Points of test accuracy below the teacher's at most, shown at 95 % (default: the study's, 1.0)."
    )

    @property
    def tested(self) -> bool:
        """Whether the student's distance to the teacher has to be tested."""
        return self.within is not None or self == Wish()

    def check(self) -> None:
        """Refuse requirements that exclude each other, or an accuracy that is no percentage.

        Raises:
            KdsearchError: a requirement is invalid.
        """
        if self.knee and self.within is not None:
            raise KdsearchError("--knee and --within exclude each other", remedy="leave one of them out")
        if self.within is not None and not 0 < self.within <= 100:
            raise KdsearchError(
                "--within must be points of accuracy, above 0 and at most 100",
                got=f"{self.within:g}",
                remedy="write 1 for one percentage point",
            )
        if self.min_accuracy is not None and not 1 < self.min_accuracy <= 100:
            raise KdsearchError(
                "--min-accuracy must be in percent, above 1 and at most 100",
                got=f"{self.min_accuracy:g}",
                remedy="write 97.5 for 97.5 %",
            )

    def shortfalls(self, row: Mapping[str, Any]) -> list[float]:
        """Return by how much a row of `StudyData.trials` misses each requirement, relative to it; 0 where it is met."""
        found = []
        if self.min_accuracy is not None:
            found.append(1 - 100 * row["accuracy"] / self.min_accuracy)
        if self.min_ratio is not None:
            found.append(1 - row["ratio"] / self.min_ratio)
        if self.max_parameters is not None:
            found.append(row["parameters"] / self.max_parameters - 1)
        return [math.inf if math.isnan(value) else value if value > EXACT else 0.0 for value in found]

    def __str__(self) -> str:
        asked = []
        if self.min_accuracy is not None:
            asked.append(f"at least {self.min_accuracy:g} % validation accuracy")
        if self.min_ratio is not None:
            asked.append(f"a ratio of at least {self.min_ratio:g}")
        if self.max_parameters is not None:
            asked.append(f"at most {self.max_parameters:,} parameters")
        return " and ".join(asked)


@dataclass(frozen=True)
class Choice:
    """The trial chosen to ship."""

    number: int
    why: str  # one sentence with figures
    row: dict[str, Any]  # its own of `StudyData.trials`
    standing: Standing | None = None  # how far it is below the teacher, where that was required


def choose(data: StudyData, wish: Wish) -> Choice:
    """Return the trial that meets a wish, by validation accuracy; only `within` uses the test accuracy.

    Of the complete trials that meet it, those dominated by another of them are dropped. Where the fastest is wanted,
    trials whose ratios timing cannot tell apart count as equally fast, and the most accurate of them is taken.

    Raises:
        KdsearchError: no trial meets the wish; the message names the nearest.
    """
    wish.check()
    complete = data.trials[data.trials["state"] == "COMPLETE"]
    rows = records(complete)
    if not rows:
        raise KdsearchError(
            "a choice needs a complete trial", got=data.name, remedy="run `kdsearch optimize` with more trials"
        )
    fitting = [row for row in rows if not any(wish.shortfalls(row))]
    if not fitting:
        nearest = min(rows, key=lambda row: (sum(wish.shortfalls(row)), -row["accuracy"], row["number"]))
        raise KdsearchError(
            f"no trial has {wish}", got=f"nearest: {figures(nearest)}", remedy="ask for less, or search on"
        )
    best = [fitting[i] for i in pareto.front([(row["accuracy"], row["ratio"]) for row in fitting])]
    if wish.tested:
        shown = {row["number"] for row in best} | set(data.runs)
        return _tested(data, wish, [row for row in fitting if row["number"] in shown])
    tied: list[int] = []
    if wish.knee:
        number = knee(complete[complete["number"].isin([row["number"] for row in best])])
        row = next(row for row in best if row["number"] == number)
    elif wish.min_accuracy is not None:
        row = fastest(best)
        tied = [int(other["number"]) for other in best if other["ratio"] > row["ratio"]]
    else:
        row = max(best, key=lambda row: (row["accuracy"], row["ratio"], -row["number"]))
    return Choice(int(row["number"]), _why(row, wish, len(fitting), tied), row)


def _tested(data: StudyData, wish: Wish, rows: list[dict[str, Any]]) -> Choice:
    found = ship(data, within=wish.within, rows=rows)
    if found.chosen is None:
        near = found.nearest
        if near is None:
            raise KdsearchError(
                "--within needs test accuracies of the teacher and of students", got=data.name,
                remedy="choose by --min-accuracy, --min-ratio, --max-parameters or --knee",
            )  # fmt: skip
        remedy = "raise --within, confirm with more seeds, or search on" if found.faster else "search smaller students"
        raise KdsearchError(none_within(data, found), got=sentence(data, near), remedy=remedy)
    row = next(row for row in rows if row["number"] == found.chosen.row["number"])
    asked = f" with {wish}" if str(wish) else ""
    points = f"{found.within:g} point{'' if found.within == 1 else 's'}"
    why = (
        f"Trial {row['number']}: {worth(data, row)} It is the fastest{asked} shown to be within {points} "
        f"of the teacher. {looks(data, found)}"
    )
    return Choice(int(row["number"]), why, row, found.chosen)


def figures(row: Mapping[str, Any]) -> str:
    """Format the figures of a row of `StudyData.trials`."""
    times = f"{text}, " if (text := formatting.times(row)) else ""
    return (
        f"trial {row['number']} with {formatting.percent(row['accuracy'])} validation accuracy, "
        f"{formatting.percent(row['test_accuracy'])} test accuracy, {times}"
        f"ratio {formatting.interval(row['ratio'], row['ratio_low'], row['ratio_high'])} "
        f"and {formatting.count(row['parameters'])} parameters"
    )


def _why(row: Mapping[str, Any], wish: Wish, fitting: int, tied: list[int]) -> str:
    if wish.knee:
        kind = "gives up least on accuracy and ratio together"
    else:
        kind = "is the fastest" if wish.min_accuracy is not None else "is the most accurate by validation"
    asked = f" of the {fitting} with {wish}" if str(wish) else f" of the {fitting} complete trials"
    if tied:
        slower = f"{'trial' if len(tied) == 1 else 'trials'} {', '.join(map(str, tied))}"
        asked += f", for timing cannot tell it from {slower} and it is more accurate"
    aside = "" if row["on_front"] else ", though others dominate it that do not fulfil this"
    return f"{figures(row)} {kind}{asked}{aside}".replace("trial", "Trial", 1) + "."


def result(data: StudyData, choice: Choice) -> dict[str, Any]:
    """Return what `kdsearch pick --json` prints: strict JSON, accuracies as fractions."""
    row = choice.row
    names = ("accuracy", "test_accuracy", *TIMED, "parameters", "on_front")
    found = {"study": data.name, "trial": choice.number, **{name: row[name] for name in names}}
    if choice.standing is not None:
        of = choice.standing
        found |= {name: of.row[name] for name in ("test_accuracy", *TIMED) if name in of.row}
        found |= {"below_teacher": of.below, "below_bound": of.bound, "paired": of.paired, "seeds": of.seeds}
    return {key: plain(value) for key, value in (found | {"params": configuration(row), "why": choice.why}).items()}
