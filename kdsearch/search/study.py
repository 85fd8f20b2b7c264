"""A study: made or found again, checked against its definition, run until its budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import optuna
from optuna import Study
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from kdsearch import runtime, storage
from kdsearch.dimensions import Range
from kdsearch.distil import teacher
from kdsearch.errors import KdsearchError, RunError
from kdsearch.progress import Progress
from kdsearch.records import Attr, StudyAttr
from kdsearch.search import anchors, samplers, space
from kdsearch.search.budget import Budget, epochs_run, is_finished
from kdsearch.search.clock import REST, Clock, TimedSampler, Work, shares
from kdsearch.search.definition import open_study
from kdsearch.search.estimate import estimate
from kdsearch.search.failures import Streak
from kdsearch.search.likely import LikelyRatio
from kdsearch.search.objective import Objective, Workshop
from kdsearch.search.plan import Plan, check_choice, make_plan
from kdsearch.search.proposals import CANDIDATES, ProposalSampler
from kdsearch.search.pruner import ParetoPruner

SLOW_ON_A_CPU = ("resnet",)  # families of students


def pareto(plan: Plan) -> ParetoPruner:
    """The pruner of a plan: it knows how long each trial is going to be."""
    epochs = plan.spec.space["epochs"]
    return ParetoPruner(max_steps="epochs" if isinstance(epochs, Range | list) else plan.spec.longest)


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
        by_time: whether promise counts by the second of training, as it does where seconds are what is spent.
    """
    inner = samplers.make(name, seed)
    if candidates == 1:
        return inner
    return ProposalSampler(
        inner,
        samplers.make("random", None if seed is None else runtime.derive_seed("candidates", seed)),
        partial(space.suggest, space=workshop.spec.space),
        LikelyRatio(workshop),
        steps=lambda config: int(config["epochs"]),
        cost=epoch_seconds if by_time else None,
        candidates=candidates,
    )


def run(study: Study, objective: Objective, plan: Plan, *, budget: Budget, progress: Progress) -> None:
    """Runs trials until the budget lets no new one start.

    Raises:
        RunError: too many trials in a row failed (see `failures.Streak`).
    """
    streak = Streak()
    budget.start()
    progress.study_started(*budget.progress(study))
    while not budget.over(study):
        anchors.enqueue_missing(study, plan.spec, at_most=budget.trials)
        study.optimize(objective, n_trials=1, catch=(Exception,))
        trial = study.get_trials(deepcopy=False)[objective.number]
        progress.trial_finished(trial.number, trial.state.name, describe(trial), counted=is_finished(trial))
        if streak.ends(study, trial):
            raise RunError(
                f"{streak.count} trials in a row failed, the last one with: {trial.user_attrs.get(Attr.FAIL_REASON)}",
                remedy="mend the cause and run the same command again: finished trials are kept",
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


def add_spent(study: Study, seconds: Mapping[Work, float]) -> None:
    """Adds a run's seconds by kind of work to those of earlier runs."""
    before = study.user_attrs.get(StudyAttr.SPENT, {})
    study.set_user_attr(StudyAttr.SPENT, {work: before.get(work, 0.0) + spent for work, spent in seconds.items()})


def describe(trial: FrozenTrial) -> str:
    """A trial's outcome in a few words."""
    found = trial.user_attrs
    if trial.state == TrialState.FAIL:
        return str(found.get(Attr.FAIL_REASON, "no reason stored"))
    ran = epochs_run(trial)
    if ran == 0:
        return f"not trained: {found.get(Attr.PRUNED_BY, {}).get('reason', 'refused by the pruner')}"
    return (
        f"accuracy {found[Attr.ACCURACY]:.2%} (test {found[Attr.TEST_ACCURACY]:.2%}) at epoch {found[Attr.BEST_EPOCH]}"
        f" of {ran}/{found[Attr.CONFIG]['epochs']}, ratio {found[Attr.RATIO]:.4g}"
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
        cost: `latency` (measured) or `flops` (counted operations: deterministic).
        seed: seeds each trial's sampler and training together with the trial's number.
        train_size, max_epochs: less work, for a first look.
        timeout: seconds after which no new trial starts, and the running one ends with its epoch (an anchor is
            trained to its end). The teacher's training does not count.
        command: what to name in the report as the command that ran.
        progress: told of what happens; None: nobody is.

    Returns:
        The study; its `best_trials` are the front of (validation accuracy, inference ratio).

    Raises:
        KdsearchError: what the user can mend, in one line.
    """
    check_choice("--sampler", sampler, samplers.SAMPLERS)
    check_choice("--pruner", pruner, PRUNERS)
    if candidates < 1:
        raise KdsearchError("--candidates must be at least 1", got=candidates, remedy="give a whole number above 0")
    budget = Budget(trials=trials, epochs=epochs_budget, seconds=timeout)
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
    )
    return run_plan(
        plan,
        budget=budget,
        sampler=sampler,
        candidates=candidates,
        pruner=pruner,
        seed=seed,
        command=command,
        progress=progress or Progress(),
    )


def run_plan(
    plan: Plan,
    *,
    budget: Budget,
    sampler: str,
    candidates: int,
    pruner: str,
    seed: int | None,
    command: str | None,
    progress: Progress,
) -> Study:
    """Runs a plan: the study opened, the teacher obtained, trials run; see `optimize`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failed trial is told by us, in one line
    study = open_study(plan, storage.open_storage(plan.url))
    study.pruner = PRUNERS[pruner](plan)
    skipped = [] if budget.trials is None else list(plan.spec.anchors)[budget.trials :]
    if skipped:
        progress.warning(f"--trials {budget.trials} is fewer than the anchors: {', '.join(skipped)} will not run")
    if not budget.over(study):
        warn_of_slowness(plan, budget, progress)
        known = teacher.obtain(plan.spec.teacher, plan.split, progress=progress)
        study.set_user_attr(StudyAttr.TEACHER, vars(known.facts))
        facts = runtime.environment(plan.device) | {
            "classes": len(plan.split.classes),
            "seed": str(seed),
            "sampler": sampler,
            "candidates": candidates,
            "pruner": pruner,
            "data_dir": plan.data_dir or "",
        }
        study.set_user_attr(StudyAttr.ENVIRONMENT, facts)
        if command is not None:
            study.set_user_attr(StudyAttr.COMMAND, command)
        workshop = Workshop(plan.spec, plan.split, known, plan.cost)
        by_time = budget.seconds is not None
        clock = Clock()
        inner = make_sampler(sampler, workshop, candidates=candidates, seed=seed, by_time=by_time)
        study.sampler = TimedSampler(inner, clock)
        objective = Objective(workshop, seed=seed, progress=progress, cut=budget.cut, clock=clock)
        try:
            with clock.spent_on(REST):
                run(study, objective, plan, budget=budget, progress=progress)
        finally:
            workshop.keep(now=True, told=progress.warning)
            add_spent(study, clock.seconds)
            progress.study_finished(shares(clock.seconds))
            storage.fold(study._storage)
    return study
