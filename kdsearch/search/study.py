"""A study: made or found again, checked against its definition, run until its budget is spent."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import optuna
from optuna import Study
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from kdsearch import storage
from kdsearch.distil import precision as precisions
from kdsearch.distil import teacher
from kdsearch.errors import KdsearchError
from kdsearch.pruning.pruner import ParetoPruner
from kdsearch.records import Attr, Config, Progress, StudyAttr
from kdsearch.search import clock, failures, space
from kdsearch.search.budget import Budget, epochs_run
from kdsearch.search.definition import begun, open_study
from kdsearch.search.estimate import estimate
from kdsearch.search.options import Options
from kdsearch.search.plan import Plan, as_begun, check_choice, hidden_plugins, make_plan
from kdsearch.search.retime import Retimer, lacking
from kdsearch.search.sampling import samplers
from kdsearch.search.sampling.proposals import CANDIDATES, ProposalSampler
from kdsearch.search.sampling.ratio_guess import LikelyRatio
from kdsearch.search.trial import Objective, Workshop
from kdsearch.search.weights import Keeper, folder
from kdsearch.search.workers import live_view, liveness
from kdsearch.search.workers.loop import run
from kdsearch.search.workers.supervisor import supervise
from kdsearch.spec import Range
from kdsearch.storage import retrying
from kdsearch.system import machine

SLOW_ON_A_CPU = ("resnet", "timm", "torchvision")  # families of students


def pareto(plan: Plan) -> ParetoPruner:
    """The pruner of a plan: it knows how long each trial is going to be."""
    epochs = plan.spec.space["epochs"]
    longest = "epochs" if isinstance(epochs, Range | list) else plan.spec.longest
    return ParetoPruner(max_steps=longest, log=[1], ideal=1.0, exempt=Attr.ANCHOR, prefix="")


PRUNERS: dict[str, Callable[[Plan], optuna.pruners.BasePruner]] = {
    "pareto": pareto,
    "none": lambda plan: optuna.pruners.NopPruner(),
}


def epoch_seconds(trial: FrozenTrial) -> float | None:
    """Seconds of training an epoch of a trial took, or None where it has not ended."""
    seconds, epochs = trial.user_attrs.get(Attr.TRAIN_SECONDS), epochs_run(trial)
    return None if seconds is None or not epochs else seconds / epochs


def make_sampler(
    name: str, workshop: Workshop, *, candidates: int, seed: int | None, by_time: bool = False
) -> BaseSampler:
    """The sampler of that name; with candidates, around it the choice of the most promising of several.

    Args:
        name: key of `samplers.SAMPLERS`.
        workshop: of the study.
        candidates: drawn for a trial.
        seed: of the study.
        by_time: whether promise counts by the second of training, as it does where seconds are what is spent; on CUDA
            it always does: an epoch there takes a time that is set by its steps, not by its operations.
    """
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
        cost=epoch_seconds if by_time or workshop.device.type == "cuda" else None,
        candidates=candidates,
        share=1 / candidates,
        seed=seed,
        log=[1],
        ideal=1.0,
    )


def warn_of_slowness(plan: Plan, budget: Budget, progress: Progress) -> None:
    """Says beforehand how long a study of convolutional students takes on a CPU, and what makes it shorter."""
    if plan.device.type != "cpu" or plan.spec.student.family not in SLOW_ON_A_CPU:
        return
    hours = estimate(plan, budget)["seconds"]["all"] / 3600
    progress.warning(
        f"{plan.spec.data.name} wants a GPU: here, on a CPU, this takes about {hours:.1f} h without pruning; "
        "--train-size and --max-epochs make a first look shorter"
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
    seed: int | None = None,
    train_size: int | None = None,
    max_epochs: int | None = None,
    timeout: float | None = None,
    workers: int = 1,
    precision: str = "auto",
    command: str | None = None,
    progress: Progress | None = None,
) -> Study:
    """Searches for students worth deploying; what `kdsearch optimize` does, from a script or a notebook.

    Args:
        dataset: `digits`, `mnist`, `cifar10` or `folder:PATH`; None: the study file's, else digits.
        study: a study file; None: the shipped one for the data set.
        trials: the study ends when it holds this many finished trials (COMPLETE or PRUNED); None: 50, or no such limit
            where `epochs_budget` or `timeout` is given.
        epochs_budget: the study ends when all its trials together have trained for this many epochs: anchors, pruned,
            failed and killed trials included. A trial that runs then is cut, and counts with its best checkpoint; an
            anchor is trained to its end.
        storage: an Optuna storage URL or `journal:PATH`; None: `OPTUNA_STORAGE`, else `sqlite:///kdsearch.db`.
        name: of the Optuna study; None: the data set's.
        data_dir: where data sets lie; None: `KDSEARCH_DATA_DIR`, else the user's cache folder.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        sampler: `tpe`, `nsga2`, `random` or `gp`.
        candidates: drawn for each trial, of which the most promising is trained (`ProposalSampler`); 1: the sampler's
            own draw.
        pruner: `pareto` or `none`.
        cost: `latency` (measured in torch), `onnx` (in ONNX Runtime on the CPU) or `flops` (counted: deterministic).
        seed: seeds each trial's sampler and training together with the trial's number.
        train_size, max_epochs: less work, for a first look.
        timeout: seconds after which no new trial starts, and the running one ends with its epoch (an anchor is
            trained to its end). The teacher's training does not count.
        workers: processes on this machine that run trials; 1: this one does.
        precision: that convolutions are trained in: `float32`, `bfloat16`, or `auto`: bfloat16 on CUDA and on CPUs that
            have instructions for it and are faster with it; a study keeps its own. Ratios are timed in float32.
        command: what to name in the report as the command that ran.
        progress: told of what happens; None: nobody is.

    Returns:
        The study; its `best_trials` are the front of (validation accuracy, inference ratio).

    Raises:
        KdsearchError: what the user can mend, in one line.
    """
    options = Options(
        trials=trials,
        epochs_budget=epochs_budget,
        timeout=timeout,
        sampler=sampler,
        candidates=candidates,
        pruner=pruner,
        seed=seed,
    )
    check_options(options)
    plan = make_plan(
        dataset=dataset,
        study=study,
        name=name,
        storage_url=storage,
        data_dir=data_dir,
        device=device,
        cost=cost,
        train_size=train_size,
        max_epochs=max_epochs,
        precision=precision,
    )
    before = optuna.logging.get_verbosity()
    try:
        return run_plan(plan, options, workers=workers, command=command, progress=progress or Progress())
    finally:
        optuna.logging.set_verbosity(before)  # the caller's own studies log as they did


def check_options(options: Options) -> None:
    """Refuses options that no study can be run with.

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
    """Runs a plan: the study opened, the teacher obtained, trials run here or by workers; see `optimize` and `live`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failed trial is told by us, in one line
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
    # the user's own is looked at first: a study's definition holds its fingerprint, and a wrong one would stay there
    known = _teacher(plan, progress) if plan.spec.teacher.brought else None
    study = open_study(plan, backend)
    options.store(study)
    study.pruner = PRUNERS[options.pruner](plan)
    skipped = [] if budget.trials is None else list(plan.spec.anchors)[budget.trials :]
    if skipped:
        progress.warning(f"--trials {budget.trials} is fewer than the anchors: {', '.join(skipped)} will not run")
    over = budget.over(study.get_trials(deepcopy=False))
    if not over or (lacking(study, plan.spec, plan.cost, plan.device) and is_at_hand(plan)):
        if not over:
            warn_of_slowness(plan, budget, progress)
        known = known or _teacher(plan, progress)
        if not over:
            describe_run(study, plan, known, options, workers=workers, command=command)
        try:
            with live_view.kept(study, publish, progress) as between:
                if workers > 1 and not over:
                    supervise(study, plan, options, workers=workers, progress=progress, between=between)
                else:
                    work(study, plan, known, options, budget=budget, progress=progress, between=between)
        finally:
            storage.fold(study._storage)
    return study


def is_at_hand(plan: Plan) -> bool:
    """Whether the teacher need not be trained."""
    return plan.spec.teacher.brought or teacher.cached_file(plan.spec.teacher, plan.split).is_file()


def _teacher(plan: Plan, progress: Progress) -> teacher.Teacher:
    return teacher.obtain(plan.spec.teacher, plan.split, precision=plan.precision.name, progress=progress)


def describe_run(
    study: Study, plan: Plan, known: teacher.Teacher, options: Options, *, workers: int, command: str | None
) -> None:
    """Keeps with a study what its report says of the run."""
    study.set_user_attr(StudyAttr.TEACHER, vars(known.facts))
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
    known: teacher.Teacher,
    options: Options,
    *,
    budget: Budget,
    progress: Progress,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Runs trials in this process until the study is done, beside whoever else does; see `loop.run`.

    Raises:
        RunError: too many trials in a row failed (see `failures.Streak`).
        KeyboardInterrupt: the process was told to end; its trial is handed back.
    """
    workshop = Workshop(plan.spec, plan.split, known, plan.cost, plan.precision.name)
    counted = clock.Clock()
    by_time = budget.seconds is not None
    inner = make_sampler(options.sampler, workshop, candidates=options.candidates, seed=options.seed, by_time=by_time)
    study.sampler = clock.TimedSampler(inner, counted)
    keeper = Keeper(folder(plan.url, plan.name), progress)
    objective = Objective(workshop, seed=options.seed, progress=progress, cut=budget.cut, clock=counted, keeper=keeper)
    retimer = Retimer(study, workshop, counted, progress)

    def also_time() -> None:
        retimer.between()
        between()

    try:
        with counted.spent_on(clock.REST):
            run(study, objective, plan, budget=budget, progress=progress, between=also_time)
            retimer.finish()
    finally:
        workshop.keep(now=True, told=progress.warning)
        keeper.sweep(study)
        clock.keep(study, f"{liveness.name(liveness.myself())} {uuid.uuid4().hex[:8]}", counted.seconds)
        progress.study_finished(clock.shares(counted.seconds))
