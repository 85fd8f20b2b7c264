"""Records that pass between packages, and the attribute names under which they are stored."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import MISSING, asdict, astuple, dataclass, field, fields
from typing import Any, Literal

# of convolutions in training and when a teacher is asked; weights and losses are float32
Precision = Literal["float32", "bfloat16"]
# names of the two objectives, in order: validation accuracy (a fraction) and teacher time / student time
METRICS = ("accuracy", "ratio")
FOREIGN = "kdsearch:"  # prefix of all attributes that the pruner writes into studies not made by kdsearch


class Attr:
    """Names of the user attributes of a trial."""

    ANCHOR = "anchor"  # the slide row: "m1", "c5"
    CURVE = "curve"  # {"1": [validation accuracy, ratio], ...} keyed by epoch (see pruning.pruner)
    TRIAL = "trial"  # number of the trial with this curve: Optuna's retry callback copies attributes to the next trial
    EXEMPT = "exempt"  # any value but None: never pruned or stopped
    PROPOSED_BY = "proposed_by"  # "model", "sampler", "random" or "resumed" (see search.sampling.proposals)
    AUDIT = "audit"  # {"never_pruned": why, "would_end": step or None} of a trial drawn to check the pruner
    CONFIG = "config"  # the whole configuration, fixed dimensions included
    SEED = "seed"  # of the student's initialisation and training
    PRECISION = "precision"  # precision of the student's training (see Precision); missing: the device's default
    BEST_EPOCH = "best_epoch"  # the epoch that validation chose
    ACCURACY = "accuracy"  # validation accuracy at that epoch, a fraction; also of pruned trials
    TEST_ACCURACY = "test_accuracy"  # test accuracy at that epoch, a fraction
    AGAINST_TEACHER = "against_teacher"  # counts of test images by who classifies them rightly (see AgainstTeacher)
    RATIO = "ratio"
    RATIO_LOW = "ratio_low"
    RATIO_HIGH = "ratio_high"
    TIMING = "timing"  # a Timing as a dict
    TIMING_KEY = "timing_key"  # trials with equal keys share one timing
    PARAMETERS = "parameters"
    BYTES = "bytes"
    TRAIN_SECONDS = "train_seconds"
    LOSSES = "losses"  # mean training loss of each epoch
    FAIL_REASON = "fail_reason"
    FAILED_BY = "failed_by"  # "memory" or "loss" if its configuration made it fail (see search.failures)
    WORKER = "worker"  # the process that runs it (see search.workers.slots)
    BEAT = "beat"  # counter that grows while the trial runs
    RETRY_OF = "retry_of"  # number of the handed-back trial whose parameters it runs again
    RESUMED = "resumed"  # epochs of its curve that another trial trained, from whose checkpoint it went on
    RESUMES = "resumes"  # number of the trial, ended by the pruner, that it goes on with and whose curve it begins with
    PRUNED_BY = "pruned_by"  # why the pruner pruned it (see pruning.pruner.Verdict)
    STOPPED_AT = "stopped_at"  # the step after which a trial on the front was stopped early
    STOPPED_BY = "stopped_by"  # why it was stopped
    WEIGHTS = "weights"  # {"file": ..., "digest": ...} of a trial that stood on the front when it ended
    # only in trainings of the slides' rows:
    ROW = "row"  # row of the deck: "m1", "c5"
    READING = "reading"  # interpretation of what the deck leaves open: "stated", "published"
    REPEAT = "repeat"  # counted from 0; it decides the seed
    PAIRS = "pairs"  # seconds per batch of teacher and student, timed in turn
    INT8 = "int8"  # of an int8 row: accuracy in training, seconds and bytes of the same student in float


FIXED = "fixed_params"  # Optuna's system attribute of an enqueued trial
# prefix of the failure reason of a trial whose worker was killed or interrupted: its parameters are run again
HANDED_BACK = "handed back: "
INTERRUPTED = f"{HANDED_BACK}interrupted"


class StudyAttr:
    """Names of the user attributes of a study."""

    KIND = "kind"  # "slides" if it holds the slides' rows; searches have none
    DEFINITION = "definition"  # what must stay the same for trials to be comparable
    STUDY_FILE = "study_file"  # the study's specification as a dict
    TEACHER = "teacher"  # TeacherFacts as a dict
    OPTIONS = "options"  # how the search is run (see search.run_options), read by workers that join it
    ENVIRONMENT = "environment"  # versions, device, threads
    COMMAND = "command"  # the last command line
    EXPORTED = "exported:"  # prefix of exported:NUMBER:FORMAT, measurements of an exported file in its own runtime
    CARRIED = "carried:"  # prefix of carried:NUMBER, fingerprints of folders made for a device (export.device_folder)
    MEASURED = "measured:"  # prefix of measured:NUMBER:SETUP, a ratio in another runtime or device (reporting.measured)
    SITTINGS = "sittings:"  # prefix of sittings:DIGEST, the later timings of an architecture (see kdsearch.sittings)
    CONFIRMED = "confirmed:"  # prefix of confirmed:NUMBER, the runs of a trial's confirmation
    CONTROL = "control:"  # the same for the student trained on labels alone, the control of distillation
    REPEATS = "confirm_repeats"  # planned number of confirmation runs, and later increases
    SPENT = "spent"  # prefix of the names of each process's seconds by kind of work (see search.budget)


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of training."""

    epoch: int  # counted from 1
    loss: float  # mean training loss over the epoch's batches
    accuracy: float  # validation accuracy after the epoch, a fraction
    seconds: float  # wall-clock seconds of the epoch's training, without validation and without asking the teacher
    asking: float = 0.0  # wall-clock seconds of asking the teacher before the epoch


@dataclass(frozen=True)
class Timing:
    """An inference ratio, teacher time / student time, with its 95 % interval."""

    ratio: float  # median of the paired ratios (for counted operations, their quotient)
    low: float  # with `high` the median's 95 % interval within this sitting, too narrow for another sitting
    high: float
    teacher_seconds: float  # median of a batch, as the student's; operations, where they are counted
    student_seconds: float
    batch: int  # images
    pairs: int  # number of timed pairs; 0 for a quotient without noise
    kind: str  # method of measurement: "latency", "flops"
    eager_ratio: float | None = None  # on CUDA, where `ratio` is of replayed graphs, the ratio of eager calls
    teacher_seconds_1: float | None = None  # median for a single image (a batch of 1); None where not timed
    student_seconds_1: float | None = None


@dataclass(frozen=True)
class TeacherFacts:
    """Facts about a teacher, for the report."""

    family: str  # name in the registry of teachers
    fingerprint: str  # hash of data, recipe and seed (or of the given weights)
    accuracy: float  # test accuracy, a fraction
    validation_accuracy: float | None  # a fraction; None if it was trained on the whole training set
    parameters: int
    bytes: int
    seconds: float  # wall-clock seconds of its training; 0 if weights were given
    precision: Precision | Literal[""] = ""  # of its training; empty if weights were given, or before this was stored
    # its logits of two images of noise, one image after the other, by which a change of its code is noticed; empty if
    # the user did not bring it
    probe: list[float] = field(default_factory=list)

    @property
    def answers_name(self) -> str:
        """Name of its answers in the cache: the fingerprint, and what else its code has a part in."""
        if not self.probe:
            return self.fingerprint
        return f"{self.fingerprint}-{hashlib.blake2b(json.dumps(self.probe).encode(), digest_size=8).hexdigest()}"


def was_handed_back(user_attrs: dict[str, Any]) -> bool:
    """Return whether a failed trial failed because its worker was killed or interrupted."""
    return str(user_attrs.get(Attr.FAIL_REASON)).startswith(HANDED_BACK)


# architecture (`width`, `blocks`, `stride`) and distillation (`temperature`, missing if the loss weight is 0, where it
# has no effect, `loss_weight`, `epochs`, `batch_size`, and if the space has them `feature_weight` and `lr`)
Config = dict[str, Any]
# keys that a space may omit: the feature weight is then 0, and the learning rate that of the students' recipe
OPTIONAL = ("feature_weight", "lr")
# keys of a configuration that describe the training of a student; all others describe its architecture
DISTILLATION = ("loss_weight", "temperature", "epochs", "batch_size", *OPTIONAL)


def architecture(config: Config) -> Config:
    """Return the part of a configuration that decides the student's time and size."""
    return {key: value for key, value in config.items() if key not in DISTILLATION}


@dataclass(frozen=True)
class AgainstTeacher:
    """Counts of test images that both, only one of them, or neither classifies rightly: the input of paired bounds."""

    both: int
    teacher: int
    student: int
    neither: int

    @property
    def images(self) -> int:
        """Number of test images."""
        return sum(self.stored())

    def stored(self) -> list[int]:
        """Return the counts as plain JSON."""
        return list(astuple(self))


def against_teacher(stored: object) -> AgainstTeacher | None:
    """Return stored counts; None if they are missing or malformed."""
    if not isinstance(stored, list | tuple) or len(stored) != 4:
        return None
    sound = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in stored)
    return AgainstTeacher(*stored) if sound and sum(stored) else None


@dataclass(frozen=True)
class ConfirmedRun:
    """One more training of a student, on the whole training set with a seed of its own."""

    seed: int  # of its weights and training
    test_accuracy: float  # after the epoch that the search chose, a fraction
    ratio: float  # from a new timing, as its 95 % interval
    ratio_low: float
    ratio_high: float
    seconds: float  # wall-clock seconds of the training
    against_teacher: AgainstTeacher | None = None  # None in runs made before these counts were stored

    def stored(self) -> dict[str, Any]:
        """Return the run as plain JSON."""
        counts = self.against_teacher
        return asdict(self) | {"against_teacher": counts and counts.stored()}


def confirmed_runs(stored: object) -> list[ConfirmedRun]:
    """Return the confirmation runs in an attribute of a study; malformed ones are skipped, as anyone may write them."""
    runs = stored.get("runs") if isinstance(stored, dict) else None
    seeds: dict[int, ConfirmedRun] = {}
    for run in map(_confirmed_run, runs if isinstance(runs, list) else []):
        if run is not None:
            seeds.setdefault(run.seed, run)  # a seed counts once
    return list(seeds.values())


def _confirmed_run(stored: object) -> ConfirmedRun | None:
    names = [field.name for field in fields(ConfirmedRun) if field.default is MISSING]
    if not isinstance(stored, dict) or not all(is_number(stored.get(name)) for name in names):
        return None
    counts = against_teacher(stored.get("against_teacher"))
    run = ConfirmedRun(**{name: stored[name] for name in names}, against_teacher=counts)
    sound = isinstance(run.seed, int) and 0 <= run.test_accuracy <= 1 and 0 < run.ratio_low <= run.ratio_high
    return run if sound and run.ratio > 0 else None


def is_number(value: object) -> bool:
    """Return whether a stored value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Progress:
    """Receives the events of a run; this base class ignores them all."""

    def warning(self, text: str) -> None:
        """Report a line that must not be missed."""

    def note(self, text: str) -> None:
        """Report a line of information."""

    def teacher_started(self, family: str, epochs: int) -> None:
        """Report that a teacher's training starts."""

    def resumed(self, what: str, done: int, epochs: int) -> None:
        """Report that an interrupted training, "teacher cnn" or "trial 7", resumes after `done` of its epochs."""

    def teacher_batch(self, done: float) -> None:
        """Report that a share `done` of the teacher's training is complete."""

    def teacher_finished(self, accuracy: float, seconds: float) -> None:
        """Report that a teacher is trained, with its test accuracy."""

    def study_started(self, done: int, total: int | None, unit: str = "trials") -> None:
        """Report that a study with `done` "trials", "epochs" or "runs" continues to `total` (None: a time limit)."""

    def study_finished(self, spent: str) -> None:
        """Report the end of a run; `spent` says where its time went: "training 94 %, timing 3 %"."""

    def trial_started(self, number: int, anchor: str | None, config: Config) -> None:
        """Report that a trial starts."""

    def trial_epoch(self, number: int, record: EpochRecord, epochs: int) -> None:
        """Report that a trial finished an epoch."""

    def trial_finished(self, number: int, state: str, text: str, *, counted: bool) -> None:
        """Report the end of a trial; `counted` says whether it is one of the study's finished trials."""
