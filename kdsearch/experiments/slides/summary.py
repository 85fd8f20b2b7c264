"""Summarise the stored trainings of each row: accuracy, ratio and time with intervals, beside the published figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from kdsearch.experiments.slides.deck import DECKS, PUBLISHED_TEACHER, Dataset, Job
from kdsearch.experiments.slides.run import Options, stored
from kdsearch.measure.latency import ratios
from kdsearch.records import Attr, StudyAttr
from kdsearch.spec import Published
from kdsearch.stats import (
    TWO_TESTS,
    Interval,
    Spread,
    difference_from_one_run,
    mean_interval,
    median_interval,
    proportion_interval,
    rank_agreement,
    sittings_interval,
    spread,
)

EQUAL = 0.5  # points: the equivalence margin
TEST_IMAGES = 10_000  # of both data sets


@dataclass(frozen=True)
class Int8:
    """Effects of int8 on a student.

    Attributes:
        gain: its time in float / in int8, both in ONNX Runtime: median, low, high.
        trained_accuracy: mean accuracy of the fake-quantised network in training, percent.
        float_ratio: the inference ratio of the same student in float, in ONNX Runtime: median.
        float_bytes: of the file in float.
        float_products: products that did not run in int8.
    """

    gain: tuple[float, float, float]
    trained_accuracy: float
    float_ratio: float
    float_bytes: int
    float_products: int

    @property
    def verdict(self) -> str:
        _, low, high = self.gain
        if low > 1:
            return "faster"
        return "slower" if high < 1 else "even"


@dataclass(frozen=True)
class Measured:
    """The results of a row, in percent and seconds.

    Attributes:
        accuracies: test accuracy of each repeat.
        accuracy: their mean, with the interval over seeds; with one repeat, the interval over test images.
        difference: measured minus published, points, with an interval that counts the published figure as one run; None
            where nothing was published.
        matching: whether two one-sided tests at 5 % show that the difference is within half a point.
        ratio: over the sittings of its repeats, with the interval over them; with one repeat the median of its pairs.
        teacher_seconds, student_seconds: inference of an image, medians.
        seconds: of one training, median.
        scaled: whether the run was smaller than the deck's.
        int8: results of an int8 row; None for others.
    """

    job: Job
    accuracies: Sequence[float]
    accuracy: Interval
    difference: Interval | None
    ratio: tuple[float, float, float]
    teacher_seconds: float
    student_seconds: float
    seconds: float
    parameters: int
    bytes: int
    scaled: bool
    int8: Int8 | None = None
    matching: bool = False

    @property
    def published(self) -> Published:
        """The published figures, for a row that has them."""
        assert self.job.row.published is not None
        return self.job.row.published

    @property
    def verdict(self) -> str:
        """Return "matches" where equivalence within half a point is shown, else higher or lower where 0 is excluded.

        Where neither is shown the row is undecided: an interval that contains 0 does not show equality. An int8 row,
        which has no published figure, is faster, slower or even than in float.
        """
        if self.scaled:
            return "not measured"
        if self.difference is None:
            assert self.int8 is not None
            return self.int8.verdict
        if self.matching:
            return "matches"
        if self.difference.low <= 0 <= self.difference.high:
            return "undecided"
        return "higher" if self.difference.mean > 0 else "lower"


def summarise(study: Study, options: Options) -> list[Measured]:
    """Summarise the rows asked for that have results."""
    there = stored(study)
    pooled = _sittings(there)
    found = []
    for job in options.jobs:
        keys = [(job.row.name, job.reading, repeat) for repeat in range(options.repeats)]
        if attrs := [there[key].user_attrs for key in keys if key in there]:
            found.append(_measured(job, attrs, options, pooled))
    return found


def _measured(job: Job, attrs: list[dict[str, Any]], options: Options, pooled: Spread) -> Measured:
    accuracies = [found[Attr.TEST_ACCURACY] for found in attrs]
    several = len(accuracies) > 1
    accuracy = mean_interval(accuracies) if several else proportion_interval(accuracies[0], TEST_IMAGES)
    published = job.row.published
    difference = difference_from_one_run(accuracies, published.accuracy / 100, TEST_IMAGES) if published else None
    by_teacher, by_student = _seconds(attrs)
    images = DECKS[options.dataset].batch or TEST_IMAGES
    return Measured(
        job=job,
        accuracies=[100 * value for value in accuracies],
        accuracy=_percent(accuracy, len(accuracies)),
        difference=_percent(difference, len(accuracies)) if difference else None,
        ratio=_ratio(attrs, pooled),
        teacher_seconds=statistics.median(by_teacher) / images,
        student_seconds=statistics.median(by_student) / images,
        seconds=statistics.median(found[Attr.TRAIN_SECONDS] for found in attrs),
        parameters=attrs[0][Attr.PARAMETERS],
        bytes=attrs[0][Attr.BYTES],
        scaled=options.scaled,
        int8=_int8(attrs) if job.settings.bits is not None else None,
        matching=published is not None and _matches(accuracies, published.accuracy / 100),
    )


def _sittings(there: Mapping[tuple[str, str, int], FrozenTrial]) -> Spread:
    """Return the spread of an architecture's sittings; rows of equal architecture share theirs, which count once."""
    rows: dict[tuple[str, str], list[float]] = {}
    for (row, reading, _), trial in sorted(there.items(), key=lambda item: item[0]):
        rows.setdefault((row, reading), []).append(_sitting(trial.user_attrs))
    return spread(set(map(tuple, rows.values())))


def _sitting(attrs: Mapping[str, Any]) -> float:
    return statistics.median(ratios(*attrs[Attr.PAIRS]))


def _ratio(attrs: list[dict[str, Any]], pooled: Spread) -> tuple[float, float, float]:
    found = sittings_interval([_sitting(one) for one in attrs], pooled) if len(attrs) > 1 else None
    return median_interval(ratios(*_seconds(attrs))) if found is None else (found.mean, found.low, found.high)


def _matches(accuracies: Sequence[float], published: float) -> bool:
    found = difference_from_one_run(accuracies, published, TEST_IMAGES, confidence=TWO_TESTS)
    return 100 * found.low > -EQUAL and 100 * found.high < EQUAL


def order(measured: Sequence[Measured]) -> Interval | None:
    """Return Kendall's tau between the measured and the published order of rows; None for fewer than three rows.

    Only "stated" readings count: another reading of a row is not another row.
    """
    rows = [one for one in measured if one.difference is not None and one.job.reading == "stated" and not one.scaled]
    if len(rows) < 3:
        return None
    ours, theirs = [list(one.accuracies) for one in rows], [float(one.published.accuracy) for one in rows]
    if len({statistics.fmean(runs) for runs in ours}) < 2 or len(set(theirs)) < 2:
        return None
    return rank_agreement(ours, theirs, spread=[_spread(one) for one in rows])


def _spread(one: Measured) -> float:
    """Return the standard deviation of one run, points: over our seeds, or of a single run over test images."""
    if len(one.accuracies) > 1:
        return float(statistics.stdev(one.accuracies))
    share = one.accuracies[0] / 100
    return 100 * math.sqrt(share * (1 - share) / TEST_IMAGES)


def _seconds(attrs: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Return the teacher's and the student's paired seconds of all repeats."""
    teacher, student = ([seconds for one in attrs for seconds in one[Attr.PAIRS][side]] for side in (0, 1))
    return teacher, student


def _int8(attrs: list[dict[str, Any]]) -> Int8:
    found = [one[Attr.INT8] for one in attrs]
    in_float = [seconds for one in found for seconds in one["float_seconds"]]
    teacher, in_int8 = _seconds(attrs)
    return Int8(
        gain=median_interval(ratios(in_float, in_int8)),
        trained_accuracy=100 * statistics.fmean(one["trained_accuracy"] for one in found),
        float_ratio=statistics.median(ratios(teacher, in_float)),
        float_bytes=found[0]["float_bytes"],
        float_products=max(one["float_products"] for one in found),
    )


def _percent(interval: Interval, n: int) -> Interval:
    return Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high, n)


def teacher(study: Study, dataset: Dataset, measured: Sequence[Measured]) -> dict[str, Any]:
    """Return the teacher's figures: accuracies in percent, size, seconds of training and of inference of an image."""
    facts = dict(study.user_attrs.get(StudyAttr.TEACHER, {}))
    facts["accuracy"] = 100 * facts["accuracy"]
    facts.pop("validation_accuracy", None)
    return facts | {
        "published": {"accuracy": PUBLISHED_TEACHER[dataset]},
        "seconds_per_image": measured[0].teacher_seconds if measured else None,
    }


def as_json(study: Study, options: Options, measured: Sequence[Measured]) -> dict[str, Any]:
    """Return what `--json` prints: accuracies in percent, times in seconds."""
    return {
        "dataset": options.dataset,
        "scaled": options.scaled,
        "rows": [_row_json(one) for one in measured],
        "order": None if (tau := order(measured)) is None else {"kendall_tau": asdict(tau)},
        "teacher": teacher(study, options.dataset, measured),
        "command": study.user_attrs.get(StudyAttr.COMMAND),
        "environment": study.user_attrs.get(StudyAttr.ENVIRONMENT),
    }


def _row_json(one: Measured) -> dict[str, Any]:
    median, low, high = one.ratio
    several = len(one.accuracies) > 1
    published = one.job.row.published
    unpublished = dict.fromkeys(Published.model_fields)
    return {
        "row": one.job.row.name,
        "reading": one.job.reading,
        "open": one.job.row.open,
        "published": published.model_dump() if published else unpublished,
        "measured": {
            "accuracy": asdict(one.accuracy) | {"interval": "seeds" if several else "test images"},
            "accuracies": list(one.accuracies),
            "ratio": {"median": median, "low": low, "high": high},
            "seconds": one.seconds,
            "seconds_per_image": {"teacher": one.teacher_seconds, "student": one.student_seconds},
            "parameters": one.parameters,
            "bytes": one.bytes,
        },
        "difference": published
        and {
            "accuracy": one.difference and asdict(one.difference),
            "ratio": median / published.ratio,
            "seconds": one.seconds - published.seconds,
        },
        "int8": one.int8 and asdict(one.int8),
        "verdict": one.verdict,
    }
