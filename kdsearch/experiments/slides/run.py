"""Run the deck's rows: each (row, reading, repeat) is trained once and stored in an Optuna study of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdsearch import data, spec, storage
from kdsearch.distil import lesson
from kdsearch.distil import precision as precisions
from kdsearch.distil import teacher as teachers
from kdsearch.distil.precision import Choice
from kdsearch.errors import KdsearchError
from kdsearch.experiments.slides import deck, training
from kdsearch.experiments.slides.deck import Dataset, Job, School, Settings
from kdsearch.records import Attr, Precision, Progress, StudyAttr
from kdsearch.search.definition import begun, open_defined
from kdsearch.system import machine

KIND = "slides"
MAX_REPEATS = 1000


@dataclass(frozen=True)
class Options:
    """The rows to run, and how to reduce the work.

    Attributes:
        repeats: number of seeds of each row.
        url: of the storage.
        name: of the Optuna study.
        device, precision: as in `optimize`.
        train_size, max_epochs: limits for a quick, reduced run; None: full size.
        width: channels of the CIFAR-10 students' first stage; None: the deck's 64.
        teacher: file of the CIFAR-10 teacher's weights; None: it is trained.
    """

    dataset: Dataset
    jobs: Sequence[Job]
    repeats: int
    url: str
    name: str
    data_dir: str | None = None
    device: str = "auto"
    train_size: int | None = None
    max_epochs: int | None = None
    width: int | None = None
    precision: str = "auto"
    teacher: str | None = None

    @property
    def scaled(self) -> bool:
        """Whether the run is smaller than the deck's, so that its figures cannot be compared with the published."""
        return (self.train_size, self.max_epochs, self.width) != (None, None, None)

    @property
    def teacher_spec(self) -> spec.TeacherSpec:
        return deck.teacher_spec(self.dataset, max_epochs=self.max_epochs, weights=self.teacher)

    def settings(self, job: Job) -> Settings:
        """Return a row's settings, reduced as the options ask."""
        found = job.settings
        if self.max_epochs is not None:
            found = dataclasses.replace(found, epochs=min(found.epochs, self.max_epochs))
        if self.width is not None:
            found = dataclasses.replace(found, architecture=found.architecture | {"width": self.width})
        return found


def without_missing(options: Options, progress: Progress) -> Options:
    """Return the options without int8 rows where their packages are missing, after a warning."""
    lacking = training.missing()
    if not lacking:
        return options
    progress.warning(f"the int8 row is left out: no {', '.join(lacking)}; pip install 'kdsearch[int8]' brings them")
    return dataclasses.replace(options, jobs=[job for job in options.jobs if job.settings.bits is None])


def check(options: Options) -> None:
    """Raise KdsearchError where a number is out of its range, or an int8 row lacks its packages."""
    if not 1 <= options.repeats <= MAX_REPEATS:
        raise KdsearchError(
            f"--repeats must lie between 1 and {MAX_REPEATS}", got=options.repeats, remedy="give a number in that range"
        )
    if options.width is not None and (options.dataset != "cifar10" or options.width < 1):
        raise KdsearchError(
            "--width narrows the CIFAR-10 students and must be at least 1",
            got=f"{options.width} on {options.dataset}",
            remedy="leave it out",
        )
    if options.teacher is not None and options.dataset != "cifar10":
        raise KdsearchError(
            "--teacher replaces the CIFAR-10 teacher, for which the deck gives no recipe",
            got=f"{options.teacher} on {options.dataset}",
            remedy="leave it out",
        )
    if any(job.settings.bits is not None for job in options.jobs):
        training.require()
    for option, value in {"--train-size": options.train_size, "--max-epochs": options.max_epochs}.items():
        if value is not None and value < 1:
            raise KdsearchError(f"{option} must be at least 1", got=value, remedy="give a whole number above 0")


def run(options: Options, *, command: str, progress: Progress) -> Study:
    """Run the trainings that the study does not hold yet.

    Args:
        options: what to run.
        command: the command line to show in the report.
        progress: notified of each training.

    Returns:
        The study, with a COMPLETE trial for each training; its values are test accuracy (a fraction) and ratio.

    Raises:
        KdsearchError: options are invalid, data are missing, the storage cannot be reached, the study has another
            definition, or a training diverged.
    """
    check(options)
    precisions.check(options.precision)
    device = machine.resolve_device(options.device)
    backend = storage.open_storage(options.url)
    whole = data.load(spec.DataSpec(name=options.dataset), machine.data_folder(options.data_dir))
    seen = deck.teacher_split(options.dataset, whole, device, train_size=options.train_size)
    choice = precision(options, seen)
    choice = precisions.adopted(choice, begun(backend, options.name, choice, device), device)
    study = open_defined(backend, options.name, definition(options, seen, choice.name))
    study.set_user_attr(StudyAttr.KIND, KIND)
    study.set_user_attr(StudyAttr.COMMAND, command)
    if todo := missing(study, options):
        split = data.whole(whole, device, train_size=options.train_size)
        teacher = teachers.obtain(options.teacher_spec, seen, precision=choice.name, progress=progress)
        school = School(options.dataset, split, teacher, teacher.answers(split.train), choice.name)
        for note in precisions.warnings(choice, device):
            progress.warning(note)
        study.set_user_attr(StudyAttr.TEACHER, vars(teacher.facts))
        study.set_user_attr(StudyAttr.ENVIRONMENT, machine.environment(device) | {"precision": str(choice)})
        try:
            run_all(study, options, school, todo, progress)
        finally:
            storage.fold(backend)
    return study


def precision(options: Options, split: data.Split) -> Choice:
    """Return the precision of the deck's students on this device, where no stored study determines it."""
    student = deck.DECKS[options.dataset].student
    settings = next(iter(deck.rows(options.dataset).values())).readings["stated"]
    return precisions.choose(
        options.precision, device=split.train.labels.device, kind=student.family, shape=split.shape,
        build=lambda: lesson.build(student, settings.architecture, seed=0, split=split),
    )  # fmt: skip


def definition(options: Options, split: data.Split, precision: Precision) -> dict[str, Any]:
    """Return as JSON what must be equal for two trainings to appear in one table; `split` has the teacher's data."""
    return {
        "kind": KIND,
        "dataset": options.dataset,
        "data": {"fingerprint": split.fingerprint, "train_size": options.train_size},
        "teacher": {"fingerprint": teachers.fingerprint(options.teacher_spec, split)},
        "student": deck.DECKS[options.dataset].student.model_dump(mode="json"),
        "max_epochs": options.max_epochs,
        "width": options.width,
        "precision": precision,
        "device_model": machine.device_model(split.train.labels.device),
    }


def stored(study: Study) -> dict[tuple[str, str, int], FrozenTrial]:
    """Return finished trainings by row, reading and repeat; of duplicates by two processes, the first counts."""
    found: dict[tuple[str, str, int], FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        attrs = trial.user_attrs
        found.setdefault((attrs[Attr.ROW], attrs[Attr.READING], attrs[Attr.REPEAT]), trial)
    return found


def missing(study: Study, options: Options) -> list[tuple[Job, int]]:
    """Return the trainings that the study does not hold yet, all rows of a repeat before the next repeat."""
    there = stored(study)
    return [
        (job, repeat)
        for repeat in range(options.repeats)
        for job in options.jobs
        if (job.row.name, job.reading, repeat) not in there
    ]


def run_all(study: Study, options: Options, school: School, todo: list[tuple[Job, int]], progress: Progress) -> None:
    """Run trainings, of `missing`, and add each to the study once it is complete.

    Raises:
        KdsearchError: a training diverged.
    """
    total = len(options.jobs) * options.repeats
    progress.study_started(total - len(todo), total)
    for number, (job, repeat) in enumerate(todo, start=total - len(todo)):
        progress.trial_started(number, f"{job.row.name}, {job.reading}, repeat {repeat}", {})
        settings = options.settings(job)
        seed = machine.derive_seed("slides", repeat)  # shared by the rows of a repeat, so that they are paired
        on_epoch = partial(progress.trial_epoch, number, epochs=settings.epochs)
        # trainings of one architecture and arithmetic share one timing in a repeat
        key = json.dumps([settings.architecture, settings.bits, repeat], sort_keys=True)
        if settings.bits is not None:
            progress.note(f"the teacher's answers with features of {settings.bits} bits are made once, then kept")
            found = training.in_int8(school, settings, seed, on_epoch)
        else:
            pairs = known_pairs(study, key) or training.time(school, settings)
            found = training.in_float(school, settings, seed, pairs, on_epoch)
        shared = {Attr.ROW: job.row.name, Attr.READING: job.reading, Attr.REPEAT: repeat, Attr.SEED: seed}
        about = {Attr.CONFIG: dataclasses.asdict(settings), Attr.TIMING_KEY: key}
        study.add_trial(_trial(school.dataset, shared | about | found))
        text = f"test accuracy {found[Attr.TEST_ACCURACY]:.2%}, ratio {found[Attr.RATIO]:.4g}"
        progress.trial_finished(number, "COMPLETE", f"{text}, {found[Attr.TRAIN_SECONDS]:.1f} s", counted=True)


def known_pairs(study: Study, key: str) -> training.Pairs | None:
    """Return the paired seconds that the first training with this key stored, or None."""
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return next((one.user_attrs[Attr.PAIRS] for one in trials if one.user_attrs[Attr.TIMING_KEY] == key), None)


def _trial(dataset: Dataset, attrs: dict[str, Any]) -> FrozenTrial:
    distributions: dict[str, BaseDistribution] = {
        Attr.ROW: CategoricalDistribution(list(deck.rows(dataset))),
        Attr.READING: CategoricalDistribution(list(deck.READINGS)),
        Attr.REPEAT: IntDistribution(0, MAX_REPEATS - 1),
    }
    return create_trial(
        values=[attrs[Attr.TEST_ACCURACY], attrs[Attr.RATIO]],
        params={name: attrs[name] for name in distributions},
        distributions=distributions,
        user_attrs=attrs,
    )
