"""What travels between the rooms of the house, and the names under which it is stored with a trial."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

Precision = Literal["float32", "bfloat16"]
"""What convolutions compute in while a network is trained or a teacher asked; weights and losses are float32."""

METRICS = ("accuracy", "ratio")
"""Names of the two objectives, in their order: validation accuracy (a fraction) and teacher time / student time."""


FOREIGN = "kdsearch:"
"""Begins the names of all attributes that the pruner writes into studies of other people."""


class Attr:
    """Names of the user attributes of a trial."""

    ANCHOR = "anchor"  # the slide row: "m1", "c5"
    CURVE = "curve"  # {"1": [validation accuracy, ratio], ...} keyed by epoch (see search.pruner)
    TRIAL = "trial"  # whose curve it is: Optuna's retry callback copies attributes to the next trial
    EXEMPT = "exempt"  # any value but None: never pruned nor stopped
    PROPOSED_BY = "proposed_by"  # "model" or "sampler" (see search.proposals)
    AUDIT = "audit"  # {"never_pruned": why, "would_end": step or None} of a trial drawn to check the pruner
    CONFIG = "config"  # the whole configuration, fixed dimensions too
    SEED = "seed"  # of the student's initialisation and training
    PRECISION = "precision"  # that the student was trained in (see Precision); missing: the usual one of its device
    BEST_EPOCH = "best_epoch"  # the epoch that validation chose
    ACCURACY = "accuracy"  # validation accuracy at that epoch, a fraction; also of pruned trials
    TEST_ACCURACY = "test_accuracy"  # test accuracy at that epoch, a fraction
    AGAINST_TEACHER = "against_teacher"  # counts of test images by who is right (see AgainstTeacher)
    RATIO = "ratio"
    RATIO_LOW = "ratio_low"
    RATIO_HIGH = "ratio_high"
    TIMING = "timing"  # a Timing as a dict
    TIMING_KEY = "timing_key"  # equal keys share one timing
    PARAMETERS = "parameters"
    BYTES = "bytes"
    TRAIN_SECONDS = "train_seconds"
    LOSSES = "losses"  # mean training loss of each epoch
    FAIL_REASON = "fail_reason"
    FAILED_BY = "failed_by"  # "memory" or "loss" where its own configuration made it fail (see search.failures)
    WORKER = "worker"  # who runs it (see search.workers.liveness)
    BEAT = "beat"  # counted up while it runs
    RETRY_OF = "retry_of"  # the number of the handed-back trial whose parameters it runs again
    RESUMED = "resumed"  # epochs of its curve that the handed-back trial trained, from whose checkpoint it went on
    PRUNED_BY = "pruned_by"  # why the pruner gave the trial up (see pruning.pruner.Verdict)
    STOPPED_AT = "stopped_at"  # the step after which a trial on the front was ended early
    STOPPED_BY = "stopped_by"  # why it was
    WEIGHTS = "weights"  # {"file": ..., "digest": ...} of a trial that stood on the front when it ended
    # of the slides' trainings alone:
    ROW = "row"  # of the deck: "m1", "c5"
    READING = "reading"  # of what the deck leaves open: "stated", "published"
    REPEAT = "repeat"  # counted from 0; it decides the seed
    PAIRS = "pairs"  # seconds a batch: the teacher's, and the student's, timed in turn
    INT8 = "int8"  # of an int8 row: accuracy in training, seconds and bytes of the same student in float


HANDED_BACK = "handed back: "
"""Begins the reason of a trial that failed through no fault of its own: its parameters are run again."""

INTERRUPTED = f"{HANDED_BACK}interrupted"


class StudyAttr:
    """Names of the user attributes of a study."""

    KIND = "kind"  # "slides" where it holds the slides' rows; searches have none
    DEFINITION = "definition"  # what must stay the same for trials to be comparable
    STUDY_FILE = "study_file"  # the study's specification as a dict
    TEACHER = "teacher"  # TeacherFacts as a dict
    OPTIONS = "options"  # how the search is run (see search.options), for the workers that join it
    ENVIRONMENT = "environment"  # versions, device, threads
    COMMAND = "command"  # the command line that ran last
    EXPORTED = "exported:"  # begins exported:NUMBER:FORMAT, what an exported file reached in its own runtime
    CARRIED = (
        "carried:"  # begins carried:NUMBER, the fingerprints of the folders made for a device (export.device_folder)
    )
    MEASURED = "measured:"  # begins measured:NUMBER:SETUP, a ratio in another runtime or device (reporting.measured)
    SITTINGS = "sittings:"  # begins sittings:DIGEST, the later timings of an architecture (see kdsearch.sittings)
    CONFIRMED = "confirmed:"  # begins the names under which a trial's confirmation is kept, its number follows
    CONTROL = "control:"  # the same of the student trained on labels alone, the control of distillation
    REPEATS = "confirm_repeats"  # the repeats that confirmation was begun with, and what they were raised to
    SPENT = "spent"  # begins the names under which each process keeps its seconds by kind of work (see search.clock)


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of training.

    Attributes:
        epoch: counted from 1.
        loss: mean training loss over the epoch's batches.
        accuracy: validation accuracy after the epoch, a fraction.
        seconds: wall-clock seconds of the epoch's training; validation and asking the teacher are left out.
        asking: wall-clock seconds of asking the teacher before it.
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float
    asking: float = 0.0


@dataclass(frozen=True)
class Timing:
    """An inference ratio, teacher / student, with its 95 % interval.

    Attributes:
        ratio: median of the paired ratios (for counted operations, their quotient).
        low, high: 95 % interval of the median: of this sitting, and so too narrow for another one.
        teacher_seconds, student_seconds: median seconds a batch (operations a batch for `flops`).
        batch: images a batch.
        pairs: how many pairs were timed; 0 for a quotient that has no noise.
        kind: how it was taken: "latency", "flops".
        eager_ratio: on CUDA, where `ratio` is of replayed graphs, the ratio of eager calls.
        teacher_seconds_1, student_seconds_1: median seconds of one image alone, a batch of 1; None where not timed.
    """

    ratio: float
    low: float
    high: float
    teacher_seconds: float
    student_seconds: float
    batch: int
    pairs: int
    kind: str
    eager_ratio: float | None = None
    teacher_seconds_1: float | None = None
    student_seconds_1: float | None = None


@dataclass(frozen=True)
class TeacherFacts:
    """What the report says of a teacher.

    Attributes:
        family: name in the registry of teachers.
        fingerprint: hash of data, recipe and seed (or of the weights that were given).
        accuracy: test accuracy, a fraction.
        validation_accuracy: a fraction; None where it was trained on the whole training set.
        parameters, bytes: size of the network.
        seconds: wall-clock seconds of its training; 0 where weights were given.
        precision: that it was trained in; empty where weights were given, or where it was trained before this was kept.
    """

    family: str
    fingerprint: str
    accuracy: float
    validation_accuracy: float | None
    parameters: int
    bytes: int
    seconds: float
    precision: Precision | Literal[""] = ""


def was_handed_back(user_attrs: dict[str, Any]) -> bool:
    """Whether a trial that failed did so because its worker was killed or interrupted."""
    return str(user_attrs.get(Attr.FAIL_REASON)).startswith(HANDED_BACK)


Config = dict[str, Any]
"""A configuration: architecture (`width`, `blocks`, `stride`) and distillation (`temperature`, `loss_weight`,
`epochs`, `batch_size`, and where the space has them `feature_weight` and `lr`). `temperature` is missing where the
loss weight is 0: it would have no effect."""

OPTIONAL = ("feature_weight", "lr")
"""Keys that a space may leave out: then the feature weight is 0, and the rate that of the students' recipe."""

DISTILLATION = ("loss_weight", "temperature", "epochs", "batch_size", *OPTIONAL)
"""The keys of a configuration that say how a student is taught; all others are its architecture."""


def architecture(config: Config) -> Config:
    """The part of a configuration that decides the student's time and size."""
    return {key: value for key, value in config.items() if key not in DISTILLATION}


@dataclass(frozen=True)
class AgainstTeacher:
    """Test images by who is right, teacher and student: all that a paired bound of their difference needs.

    Attributes:
        both, teacher, student, neither: images that both classify rightly, the teacher alone, the student alone, none.
    """

    both: int
    teacher: int
    student: int
    neither: int

    @property
    def images(self) -> int:
        """Of the test set."""
        return self.both + self.teacher + self.student + self.neither

    def stored(self) -> list[int]:
        """As plain JSON."""
        return [self.both, self.teacher, self.student, self.neither]


def against_teacher(stored: object) -> AgainstTeacher | None:
    """Stored counts; None where they are missing or malformed."""
    if not isinstance(stored, list | tuple) or len(stored) != 4:
        return None
    sound = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in stored)
    return AgainstTeacher(*stored) if sound and sum(stored) else None


@dataclass(frozen=True)
class ConfirmedRun:
    """A student trained once more, on the whole training set with a seed of its own.

    Attributes:
        seed: of its weights and its training.
        test_accuracy: after the epoch that the search chose, a fraction.
        ratio, ratio_low, ratio_high: timed anew, with the 95 % interval of that timing.
        seconds: wall-clock seconds of the training.
        against_teacher: counts of test images by who is right; None in runs made before they were kept.
    """

    seed: int
    test_accuracy: float
    ratio: float
    ratio_low: float
    ratio_high: float
    seconds: float
    against_teacher: AgainstTeacher | None = None

    def stored(self) -> dict[str, Any]:
        """As plain JSON."""
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        counts = self.against_teacher
        return kept | {"against_teacher": None if counts is None else counts.stored()}


def confirmed_runs(stored: object) -> list[ConfirmedRun]:
    """The runs that a study keeps of a trial's confirmation; what is malformed falls out, for a storage is anybody's.

    Args:
        stored: the value of an attribute whose name begins with `StudyAttr.CONFIRMED`.
    """
    runs = stored.get("runs") if isinstance(stored, dict) else None
    found = map(_confirmed_run, runs if isinstance(runs, list) else [])
    seeds: dict[int, ConfirmedRun] = {}
    for run in found:
        if run is not None:
            seeds.setdefault(run.seed, run)  # a seed counts once
    return list(seeds.values())


def _confirmed_run(stored: object) -> ConfirmedRun | None:
    names = [field.name for field in fields(ConfirmedRun) if field.default is MISSING]
    if not isinstance(stored, dict) or not all(_is_number(stored.get(name)) for name in names):
        return None
    counts = against_teacher(stored.get("against_teacher"))
    run = ConfirmedRun(**{name: stored[name] for name in names}, against_teacher=counts)
    sound = isinstance(run.seed, int) and 0 <= run.test_accuracy <= 1 and 0 < run.ratio_low <= run.ratio_high
    return run if sound and run.ratio > 0 else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Progress:
    """Receives what happens; this base class ignores it all."""

    def warning(self, text: str) -> None:
        """A line that must not be missed."""

    def note(self, text: str) -> None:
        """A line that is good to know."""

    def teacher_started(self, family: str, epochs: int) -> None:
        """A teacher's training begins."""

    def resumed(self, what: str, done: int, epochs: int) -> None:
        """An interrupted training, "teacher cnn" or "trial 7", goes on after `done` of its epochs."""

    def teacher_batch(self, done: float) -> None:
        """A share `done` of the teacher's training is over."""

    def teacher_finished(self, accuracy: float, seconds: float) -> None:
        """A teacher stands, with its test accuracy."""

    def study_started(self, done: int, total: int | None, unit: str = "trials") -> None:
        """A study that holds `done` (finished) "trials", "epochs" or "runs" goes on to `total`; None: for a time."""

    def study_finished(self, spent: str) -> None:
        """A run is over; `spent` says where its time went: "training 94 %, timing 3 %"."""

    def trial_started(self, number: int, anchor: str | None, config: Config) -> None:
        """A trial begins."""

    def trial_epoch(self, number: int, record: EpochRecord, epochs: int) -> None:
        """A trial finished an epoch."""

    def trial_finished(self, number: int, state: str, text: str, *, counted: bool) -> None:
        """A trial ended; `counted` tells whether it is one of the study's finished trials."""
