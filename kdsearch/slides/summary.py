"""What the stored trainings say of each row: accuracy, ratio and time with intervals, beside what was published."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optuna import Study
from optuna.trial import FrozenTrial

from kdsearch.records import Attr, StudyAttr
from kdsearch.slides.recipes import DECKS
from kdsearch.slides.rows import PUBLISHED_TEACHER, Dataset, Job
from kdsearch.slides.run import Options, stored
from kdsearch.stats import Interval, difference_from_one_run, mean_interval, median_interval, proportion_interval

REACH = 1.5  # points below the deck's accuracy at most: then a row counts as reproduced
TEST_IMAGES = 10_000  # of both data sets


@dataclass(frozen=True)
class Measured:
    """A row as measured, in percent and seconds.

    Attributes:
        job: the row in its reading.
        accuracies: test accuracy of each repeat, percent.
        accuracy: their mean, with the interval over seeds; of one repeat, that of the test images alone.
        difference: measured minus published, points, with the interval that one published run leaves.
        ratio: median, low, high of all paired ratios of the row's architecture.
        teacher_seconds, student_seconds: an image of inference, medians.
        seconds: of one training, median.
        parameters, bytes: of the student.
        scaled: whether less was run than the deck ran.
    """

    job: Job
    accuracies: Sequence[float]
    accuracy: Interval
    difference: Interval
    ratio: tuple[float, float, float]
    teacher_seconds: float
    student_seconds: float
    seconds: float
    parameters: int
    bytes: int
    scaled: bool

    @property
    def verdict(self) -> str:
        """matches, higher or lower: whether the interval of the difference in accuracy holds 0.

        Where less was run than the deck ran, the row is not measured.
        """
        if self.scaled:
            return "not measured"
        if self.difference.low <= 0 <= self.difference.high:
            return "matches"
        return "higher" if self.difference.mean > 0 else "lower"

    @property
    def reproduced(self) -> bool:
        """Whether the mean accuracy is within 1.5 points of the published one, or better."""
        return self.difference.mean >= -REACH


def summarise(study: Study, options: Options) -> list[Measured]:
    """The rows asked for, as far as they were measured."""
    there = stored(study)
    found = []
    for job in options.jobs:
        trials = [there.get((job.row.name, job.reading, repeat)) for repeat in range(options.repeats)]
        kept = [trial for trial in trials if trial is not None]
        if kept:
            found.append(_measured(job, kept, options))
    return found


def _measured(job: Job, trials: list[FrozenTrial], options: Options) -> Measured:
    attrs = [trial.user_attrs for trial in trials]
    accuracies = [found[Attr.TEST_ACCURACY] for found in attrs]
    several = len(accuracies) > 1
    accuracy = mean_interval(accuracies) if several else proportion_interval(accuracies[0], TEST_IMAGES)
    difference = difference_from_one_run(accuracies, job.row.published.accuracy / 100, TEST_IMAGES)
    pairs = [pair for found in attrs for pair in zip(*found[Attr.PAIRS], strict=True)]
    images = images_a_batch(options.dataset)
    return Measured(
        job=job,
        accuracies=[100 * value for value in accuracies],
        accuracy=_percent(accuracy, len(accuracies)),
        difference=_percent(difference, len(accuracies)),
        ratio=median_interval([teacher / student for teacher, student in pairs]),
        teacher_seconds=statistics.median(teacher for teacher, _ in pairs) / images,
        student_seconds=statistics.median(student for _, student in pairs) / images,
        seconds=statistics.median(found[Attr.TRAIN_SECONDS] for found in attrs),
        parameters=attrs[0][Attr.PARAMETERS],
        bytes=attrs[0][Attr.BYTES],
        scaled=options.scaled,
    )


def images_a_batch(dataset: Dataset) -> int:
    """Images of a timing's batch."""
    return DECKS[dataset].batch or TEST_IMAGES


def _percent(interval: Interval, n: int) -> Interval:
    return Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high, n)


def teacher(study: Study, dataset: Dataset, measured: Sequence[Measured]) -> dict[str, Any]:
    """The teacher: accuracies in percent, size, seconds of its training and of an image's inference."""
    facts = dict(study.user_attrs.get(StudyAttr.TEACHER, {}))
    facts["accuracy"] = 100 * facts["accuracy"]
    facts.pop("validation_accuracy", None)
    return facts | {
        "published": {"accuracy": PUBLISHED_TEACHER[dataset]},
        "seconds_per_image": measured[0].teacher_seconds if measured else None,
    }


def as_json(study: Study, options: Options, measured: Sequence[Measured]) -> dict[str, Any]:
    """What `--json` prints: accuracies in percent, times in seconds."""
    return {
        "dataset": options.dataset,
        "scaled": options.scaled,
        "rows": [_row_json(one) for one in measured],
        "teacher": teacher(study, options.dataset, measured),
        "command": study.user_attrs.get(StudyAttr.COMMAND),
        "environment": study.user_attrs.get(StudyAttr.ENVIRONMENT),
    }


def _row_json(one: Measured) -> dict[str, Any]:
    median, low, high = one.ratio
    several = len(one.accuracies) > 1
    return {
        "row": one.job.row.name,
        "reading": one.job.reading,
        "open": one.job.row.open,
        "published": one.job.row.published.model_dump(),
        "measured": {
            "accuracy": asdict(one.accuracy) | {"interval": "seeds" if several else "test images"},
            "accuracies": list(one.accuracies),
            "ratio": {"median": median, "low": low, "high": high},
            "seconds": one.seconds,
            "seconds_per_image": {"teacher": one.teacher_seconds, "student": one.student_seconds},
            "parameters": one.parameters,
            "bytes": one.bytes,
        },
        "difference": {
            "accuracy": asdict(one.difference),
            "ratio": median / one.job.row.published.ratio,
            "seconds": one.seconds - one.job.row.published.seconds,
        },
        "verdict": one.verdict,
    }
