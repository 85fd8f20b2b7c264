"""Studies: created, opened or joined, checked against their definition, run until the budget is spent."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna import Study
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from kdsearch import storage
from kdsearch.distil import precision as precisions
from kdsearch.distil import teacher
from kdsearch.errors import KdsearchError
from kdsearch.pruning.pruner import ParetoPruner
from kdsearch.records import Attr, Config, Progress, StudyAttr, TeacherFacts
from kdsearch.search import failures, run_options, space
from kdsearch.search.budget import REST, Budget, Clock, TimedSampler, epochs_run, shares
from kdsearch.search.definition import begun, check, definition, open_study
from kdsearch.search.plan import Plan, as_begun, check_choice, hidden_plugins, make_plan, rejoin
from kdsearch.search.resuming import PausedTrials
from kdsearch.search.retime import Retimer, lacking
from kdsearch.search.run_options import CANDIDATES, Options, Request
from kdsearch.search.sampling import samplers
from kdsearch.search.sampling.proposals import ProposalSampler
from kdsearch.search.sampling.surrogate import LikelyRatio
from kdsearch.search.trial import Objective
from kdsearch.search.weights import Keeper, folder
from kdsearch.search.workers import live_view, slots
from kdsearch.search.workers.loop import run
from kdsearch.search.workers.supervisor import supervise
from kdsearch.search.workshop import Workshop
from kdsearch.spec import Range
from kdsearch.storage import retrying
from kdsearch.system import machine

CONVOLUTIONAL = ("resnet", "timm", "torchvision")  # student families of which an epoch may take 20 times another's


def pareto_pruner(plan: Plan) -> ParetoPruner:
    """Return the pruner of a plan, which knows the length of each trial."""
    epochs = plan.spec.space["epochs"]
    longest = "epochs" if isinstance(epochs, Range | list) else plan.spec.longest
    return ParetoPruner(max_steps=longest, log=[1], ideal=1.0, exempt=Attr.ANCHOR, prefix="")


PRUNERS: dict[str, Callable[[Plan], optuna.pruners.BasePruner]] = {
    "pareto": pareto_pruner,
    "none": lambda plan: optuna.pruners.NopPruner(),
}


def epoch_seconds(trial: FrozenTrial) -> float | None:
    """Return a trial's seconds of training per epoch, or None if it has not ended."""
    seconds, epochs = trial.user_attrs.get(Attr.TRAIN_SECONDS), epochs_run(trial)
    return None if seconds is None or not epochs else seconds / epochs


def make_sampler(
    name: str,
    workshop: Workshop,
    *,
    candidates: int,
    seed: int | None,
    by_time: bool = False,
    paused: PausedTrials | None = None,
) -> BaseSampler:
    """Return the sampler of that name; with candidates, in a `ProposalSampler` (for `by_time` see `counts_seconds`)."""
    least = samplers.least_batch(workshop.spec, workshop.device)
    inner = samplers.make(name, seed)
    random = samplers.make("random", None if seed is None else machine.derive_seed("candidates", seed))
    if least is not None:
        inner, random = (samplers.LargeBatches(each, least, seed) for each in (inner, random))
    if candidates == 1:
        return inner
    likely = LikelyRatio(workshop)

    def known(study: Study, configs: Sequence[Config]) -> list[tuple[float] | None]:
        values = likely(study, configs)  # a member of the front, an anchor perhaps, may be moved to a small batch
        small = [least is not None and config["batch_size"] < least for config in configs]
        return [None if each else value for each, value in zip(small, values, strict=True)]

    return ProposalSampler(
        inner,
        random,
        partial(space.draw, spec=workshop.spec),
        known,
        steps=lambda config: int(config["epochs"]),
        cost=epoch_seconds if by_time else None,
        candidates=candidates,
        paused=paused,
        seed=seed,
        log=[1],
        ideal=1.0,
    )


def counts_seconds(plan: Plan, budget: Budget) -> bool:
    """Return whether a candidate's promise counts by the second of training instead of by the epoch.

    It does where seconds are what is spent, on CUDA, where an epoch's time is set by its steps, and for convolutional
    students, of which an epoch of the largest takes 20 times that of the smallest; unless the budget is of epochs.
    """
    if budget.seconds is not None or plan.device.type == "cuda":
        return True
    return budget.epochs is None and plan.spec.student.family in CONVOLUTIONAL


def warn_of_slowness(plan: Plan, progress: Progress) -> None:
    """Say that a study of convolutional students takes hours on a CPU, and which options tell or shorten them."""
    if plan.device.type == "cpu" and plan.spec.student.family in CONVOLUTIONAL:
        progress.warning(
            f"{plan.spec.data.name} takes hours on a CPU: --dry-run estimates how many, "
            "--train-size and --max-epochs make a first look shorter"
        )


def warn_of_schedule(plan: Plan, pruner: str, progress: Progress) -> None:
    """Say that pruning misleads where rates fall late: early ranks are wrong there (the bench's family rank-flips)."""
    schedule = plan.spec.student.recipe.schedule
    if schedule != "constant" and pruner != "none":
        progress.warning(
            f"the students' learning rate falls to their last epoch (schedule {schedule}), so early epochs say little: "
            "--pruner none trains each to its end; a constant schedule with averaging may be cut anywhere"
        )


def optimize(
    *,
    dataset: str | None = None,
    study: str | Path | None = None,
    trials: int | None = None,
    epochs_budget: int | None = None,
    storage: str | None = None,
    name: str | None = None,
    data_dir: str | None = None,
    device: str = "auto",
    sampler: str = "tpe",
    candidates: int = CANDIDATES,
    pruner: str = "pareto",
    cost: str = "latency",
    resume_trials: bool = False,
    seed: int | None = None,
    train_size: int | None = None,
    max_epochs: int | None = None,
    timeout: float | None = None,
    workers: int = 1,
    precision: str = "auto",
    command: str | None = None,
    progress: Progress | None = None,
) -> Study:
    """Search for students worth deploying, as `kdsearch optimize` does, from a script or a notebook.

    Args:
        dataset: `digits`, `mnist`, `cifar10` or `folder:PATH`; None: the study file's, else digits.
        study: a study file; None: the shipped one for the data set.
        trials: number of finished trials (COMPLETE or PRUNED) that ends the study; None: 50, or no such limit if
            `epochs_budget` or `timeout` is given.
        epochs_budget: epochs of training over all trials that end the study, including anchors, pruned, failed and
            killed trials. A trial running at that moment is cut, and counts with its best checkpoint; an anchor is
            trained to its end.
        storage: an Optuna storage URL or `journal:PATH`; None: `OPTUNA_STORAGE`, else `sqlite:///kdsearch.db`.
        name: of the Optuna study; None: the data set's.
        data_dir: folder of data sets; None: `KDSEARCH_DATA_DIR`, else the user's cache folder.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        sampler: `tpe`, `nsga2`, `random` or `gp`.
        candidates: number drawn per trial, of which the most promising is trained (`ProposalSampler`); 1: the sampler's
            own draw.
        pruner: `pareto` or `none`.
        cost: `latency` (measured in torch), `onnx` (in ONNX Runtime on the CPU) or `flops` (counted: deterministic).
        resume_trials: whether a trial that the pruner ended may go on from its checkpoint, where that promises twice
            as much hypervolume an epoch as a new one.
        seed: with the trial's number, seeds each trial's sampling and training.
        train_size, max_epochs: upper limits, for a first look with less work.
        timeout: seconds after which no new trial starts, and the running one ends after its epoch (an anchor is trained
            to its end). The teacher's training does not count.
        workers: number of processes on this machine that run trials; 1: only this one.
        precision: of convolutions in training: `float32`, `bfloat16`, or `auto`: bfloat16 on CUDA and on CPUs that have
            instructions for it and are faster with it; an existing study keeps its own. Ratios are timed in float32.
        command: command line to name in the report.
        progress: receives the events; None: they are ignored.

    Returns:
        The study; its `best_trials` are the front of (validation accuracy, inference ratio).

    Raises:
        KdsearchError: an error that the user can fix, in one line.
    """
    given = dict(locals())
    options = Options(**_of(Options, given))
    check_options(options)
    before = optuna.logging.get_verbosity()
    try:
        plan = make_plan(Request(**_of(Request, given)))
        return run_plan(plan, options, workers=workers, command=command, progress=progress or Progress())
    finally:
        optuna.logging.set_verbosity(before)  # restore the level of the caller's own studies


def _of(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: given[field.name] for field in dataclasses.fields(kind)}


def check_options(options: Options) -> None:
    """Refuse options with which no study can be run.

    Raises:
        KdsearchError: a name is unknown or a number too low.
    """
    check_choice("--sampler", options.sampler, samplers.SAMPLERS)
    check_choice("--pruner", options.pruner, PRUNERS)
    if options.candidates < 1:
        raise KdsearchError(
            "--candidates must be at least 1", got=options.candidates, remedy="give a whole number above 0"
        )
    options.budget()


@failures.naming_broken_devices()
def run_plan(
    plan: Plan,
    options: Options,
    *,
    workers: int = 1,
    command: str | None,
    progress: Progress,
    publish: live_view.Publish | None = None,
) -> Study:
    """Run a plan: open the study, obtain the teacher, run trials here or in workers (see `optimize`, `live_view`)."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # we report a failed trial ourselves, in one line
    budget = options.budget()
    backend = retrying.patient(storage.open_storage(plan.url), progress.warning)
    stored = begun(backend, plan.name, plan.precision, plan.device)
    if stored is not None:
        plan = as_begun(plan, stored)
    if plan.split.summary:
        progress.note(f"data: {plan.split.summary}")
    least = samplers.least_batch(plan.spec, plan.device)
    if least is not None:
        progress.note(f"batch sizes below {least} are left to anchors: on a GPU they only make an epoch longer")
    slow = precisions.warnings(plan.precision, plan.device)
    for note in (storage.warning(plan.url), *plan.split.notes, *hidden_plugins(plan), *slow):
        if note is not None:
            progress.warning(note)
    # check a user's teacher first: the definition stores its fingerprint, and a wrong one would stay there
    own = plan.spec.teacher
    kept = own.brought and own.weights is None and teacher.cached_file(own, plan.split).is_file()
    workshop = Workshop.open(plan, progress) if own.brought else None
    if workshop is not None and kept and stored is None:
        progress.note(
            f"teacher {own.title}: kept from an earlier study, test accuracy {workshop.teacher.facts.accuracy:.2%}; a "
            "change of its code is noticed only where the same weights give other logits"
        )
    study = open_study(plan, backend)
    if workshop is not None:
        workshop.check_teacher(study, progress)
    options.store(study)
    study.pruner = PRUNERS[options.pruner](plan)
    if options.resume_trials and (options.candidates == 1 or options.pruner == "none"):
        progress.warning("--resume-trials has no effect without proposals (--candidates 1) or pruning (--pruner none)")
    skipped = [] if budget.trials is None else list(plan.spec.anchors)[budget.trials :]
    if skipped:
        progress.warning(f"--trials {budget.trials} is fewer than the anchors: {', '.join(skipped)} will not run")
    over = budget.over(study.get_trials(deepcopy=False))
    if over and not (lacking(study, plan.spec, plan.cost, plan.device) and is_at_hand(plan)):
        return study
    if not over:
        warn_of_slowness(plan, progress)
        warn_of_schedule(plan, options.pruner, progress)
    workshop = workshop or Workshop.open(plan, progress)
    if not over:
        describe_run(study, plan, workshop.teacher.facts, options, workers=workers, command=command)
    try:
        with live_view.kept(study, publish, progress) as between:
            if workers > 1 and not over:
                supervise(study, plan, options, workers=workers, progress=progress, between=between)
            else:
                work(study, plan, workshop, options, budget=budget, progress=progress, between=between)
    finally:
        storage.fold(study._storage)
    return study


def is_at_hand(plan: Plan) -> bool:
    """Return whether the teacher is available without training."""
    return plan.spec.teacher.brought or teacher.cached_file(plan.spec.teacher, plan.split).is_file()


def describe_run(
    study: Study, plan: Plan, teacher_facts: TeacherFacts, options: Options, *, workers: int, command: str | None
) -> None:
    """Store with a study what its report says of the run."""
    study.set_user_attr(StudyAttr.TEACHER, vars(teacher_facts))
    facts = machine.environment(plan.device) | {
        "classes": len(plan.split.classes),
        "seed": str(options.seed),
        "sampler": options.sampler,
        "candidates": options.candidates,
        "pruner": options.pruner,
        "data_dir": plan.data_dir or "",
        "workers": workers,
        "precision": f"convolutions trained in {plan.precision}; ratios are of float32",
    }
    study.set_user_attr(StudyAttr.ENVIRONMENT, facts)
    if command is not None:
        study.set_user_attr(StudyAttr.COMMAND, command)


def work(
    study: Study,
    plan: Plan,
    workshop: Workshop,
    options: Options,
    *,
    budget: Budget,
    progress: Progress,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Run trials in this process until the study is done, possibly beside other workers (see `loop.run`).

    Raises:
        RunError: too many trials in a row failed (see `failures.Streak`).
        KeyboardInterrupt: a signal asked the process to end; its trial is handed back.
    """
    counted = Clock()
    place = folder(plan.url, plan.name)
    resumes = options.resume_trials and options.candidates > 1  # proposals choose what is resumed
    paused = PausedTrials(place / "paused", progress.warning) if resumes else None
    inner = make_sampler(
        options.sampler, workshop, candidates=options.candidates, seed=options.seed,
        by_time=counts_seconds(plan, budget), paused=paused,
    )  # fmt: skip
    study.sampler = TimedSampler(inner, counted)
    keeper = Keeper(place, progress)
    objective = Objective(
        workshop, seed=options.seed, progress=progress, cut=budget.cut, clock=counted, keeper=keeper, paused=paused
    )
    retimer = Retimer(study, workshop, counted, progress)

    def also_time() -> None:
        retimer.between()
        if paused is not None:
            paused.sweep(study.get_trials(deepcopy=False))
        between()

    try:
        with counted.spent_on(REST):
            run(study, objective, plan, budget=budget, progress=progress, between=also_time)
            retimer.finish()
    finally:
        workshop.keep(now=True, told=progress.warning)
        keeper.sweep(study)
        run_name = f"{slots.worker_name(slots.myself())} {uuid.uuid4().hex[:8]}"  # several runs may be active
        study.set_user_attr(f"{StudyAttr.SPENT} {run_name}", dict(counted.seconds))
        progress.study_finished(shares(counted.seconds))


@failures.naming_broken_devices()
def join(
    url: str,
    name: str,
    *,
    data_dir: str | None = None,
    device: str = "auto",
    timeout: float | None = None,
    progress: Progress | None = None,
    publish: live_view.Publish | None = None,
) -> Study:
    """Run trials of a study until it is done, as `kdsearch worker` does.

    Args:
        url: of a storage that this machine can reach.
        name: of a study that `kdsearch optimize` has started there.
        data_dir, device: see `optimize`.
        timeout: seconds after which this worker begins no trial; None: the study's.
        progress: receives the events; None: they are ignored.
        publish: writes the live view, while this worker holds its lease; None: this worker never does.

    Raises:
        KdsearchError: there is no such study, or this machine's data, teacher or device are not those of the study.
    """
    progress = progress or Progress()
    backend = retrying.patient(storage.open_storage(url, make=False), progress.warning)
    study = storage.load_study(backend, name)
    found = run_options.stored(study)
    check_options(found)  # anyone may write to a storage
    if timeout is not None:
        found = dataclasses.replace(found, timeout=timeout)
    plan = rejoin(study, url=url, data_dir=data_dir, device=device)
    remedy = (
        "join from a machine with the study's data (--data-dir names their folder) and device (studies of --cost flops "
        "take any device)"
    )
    check(study, definition(plan), remedy=remedy)
    budget = found.budget()
    if budget.over(study.get_trials(deepcopy=False)):
        return study
    study.pruner = PRUNERS[found.pruner](plan)
    warn_of_slowness(plan, progress)
    for note in precisions.warnings(plan.precision, plan.device):
        progress.warning(note)
    workshop = Workshop.rejoin(study, plan, progress)
    try:
        with live_view.kept(study, publish, progress) as between:
            work(study, plan, workshop, found, budget=budget, progress=progress, between=between)
    finally:
        storage.fold(study._storage)
    return study
