"""Several workers on one machine: started, watched, restarted if they die, stopped together, and their progress."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

import torch
from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from kdsearch.errors import RunError
from kdsearch.records import Attr, EpochRecord, Progress
from kdsearch.search import failures, space
from kdsearch.search.budget import epochs_run, is_finished, seconds_spent, shares
from kdsearch.search.plan import Plan
from kdsearch.search.run_options import Options
from kdsearch.search.workers import slots
from kdsearch.search.workers.loop import describe, hand_back_abandoned
from kdsearch.system import signals

LOOK = 0.5  # seconds between two looks at the study and its workers
LOST_DEVICES = 2  # times that a worker's GPU failed, after which none takes its place
DEATHS_IN_A_ROW = 5  # of as many processes as there are workers, without a finished trial between them
PARTING = 8.0  # seconds that workers are given to end in order
OURS = "kdsearch: error: "


class Child(NamedTuple):
    """A worker's process, and the file of its stderr; its stdout is discarded."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def last_words(self) -> str:
        """Return the last line of the worker's stderr, and close it."""
        with self.errors:
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().split("\n")
        return lines[-1].strip() or "it said nothing"


class Ended(NamedTuple):
    """A worker that has ended."""

    pid: int
    code: int  # if negative, minus the number of the signal that killed it
    words: str  # the last line of its stderr


def environment(plan: Plan, workers: int, index: int) -> dict[str, str]:
    """Return the environment of worker `index`: its storage, its GPU if there are several, its share of the cores.

    The storage's URL may hold a password, which in a command line would be visible to every user of the machine.
    """
    changed = {"OPTUNA_STORAGE": plan.url}
    if _spreads(plan):
        there = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
        names = there.split(",")
        changed["CUDA_VISIBLE_DEVICES"] = names[index % len(names)]
    if "OMP_NUM_THREADS" not in os.environ:  # on CUDA, too: a worker's host side takes a thread a core
        changed["OMP_NUM_THREADS"] = str(max(1, cores() // workers))
    return {**os.environ, **changed}


def _spreads(plan: Plan) -> bool:
    """Return whether workers share several GPUs: only where the user named none."""
    return plan.any_gpu and torch.cuda.device_count() > 1


def cores() -> int:
    """Return the number of cores available to this process, which a container or a job may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew:
    """The workers of one machine; `seconds_left` returns the rest of the study's timeout, None without one."""

    def __init__(self, plan: Plan, workers: int, seconds_left: Callable[[], float | None]) -> None:
        self._plan, self._seconds_left = plan, seconds_left
        self._children: dict[int, Child | None] = dict.fromkeys(range(workers))

    def start(self, index: int) -> None:
        """Start worker `index` in its own process group, so that Ctrl-C in a terminal reaches only the supervisor."""
        plan, left = self._plan, self._seconds_left()
        device = "cuda" if _spreads(plan) else str(plan.device)
        words = ["worker", f"--name={plan.name}", f"--device={device}", f"--supervisor={os.getpid()}"]
        words += [] if plan.data_dir is None else [f"--data-dir={plan.data_dir}"]
        words += [] if left is None else [f"--timeout={left}"]
        errors = tempfile.TemporaryFile()  # noqa: SIM115 -- the worker's, closed with it
        process = subprocess.Popen(
            [sys.executable, "-m", "kdsearch", *words],
            env=environment(plan, len(self._children), index),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        self._children[index] = Child(process, errors)

    def start_all(self) -> None:
        for index in self._children:
            self.start(index)

    def ended(self) -> list[tuple[int, Ended]]:
        """Return the workers that have ended since the last look, by index."""
        found = []
        for index, child in self._children.items():
            if child is not None and (code := child.process.poll()) is not None:
                self._children[index] = None
                found.append((index, Ended(child.process.pid, code, child.last_words())))
        return found

    @property
    def running(self) -> bool:
        return any(child is not None for child in self._children.values())

    def signal(self, number: int) -> None:
        for child in self._children.values():
            if child is not None and child.process.poll() is None:
                child.process.send_signal(number)

    def stop(self) -> None:
        """Let all workers hand back their trials and end; kill those that take too long."""
        self.signal(signal.SIGTERM)
        end = time.monotonic() + PARTING
        while self.running and time.monotonic() < end:
            self.ended()
            time.sleep(signals.NAP)
        self.signal(signal.SIGKILL)
        for child in self._children.values():
            if child is not None:
                child.process.wait()  # reap it, else it seems to be alive


@contextmanager
def _tidied(study: Study, watch: slots.Watch, progress: Progress) -> Iterator[None]:
    """Hand back after an interruption what a worker could not, because the signal arrived during a query."""
    try:
        yield
    except KeyboardInterrupt:
        with signals.shield():
            hand_back_abandoned(study, study.get_trials(deepcopy=False), watch, progress)
        raise


@contextmanager
def _crew(plan: Plan, workers: int, seconds_left: Callable[[], float | None]) -> Iterator[Crew]:
    """Start the workers, and stop them however the body ends."""
    crew = Crew(plan, workers, seconds_left)
    with signals.at_once(lambda: crew.signal(signal.SIGKILL)):
        try:
            crew.start_all()
            yield crew
        finally:
            with signals.shield():
                crew.stop()


def supervise(
    study: Study,
    plan: Plan,
    options: Options,
    *,
    workers: int,
    progress: Progress,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Run a study with workers until its budget is spent.

    Args:
        study: opened, with its options stored.
        plan: of the study; its teacher is in the cache.
        options, workers: of the run.
        progress: receives the events of all trials of the study, whichever worker runs them.
        between: called between two looks at the workers.

    Raises:
        RunError: a worker reported that it cannot go on, or workers died without finishing anything.
        KeyboardInterrupt: a signal asked this process to end; the workers have handed back their trials.
    """
    budget = options.budget()
    begin, before = time.monotonic(), seconds_spent(study)
    budget.start()
    space.enqueue_missing(study, plan.spec, at_most=budget.trials)
    monitor, watch = Monitor(study, progress), slots.Watch()
    progress.study_started(*budget.progress(study))
    deaths, finished = 0, 0
    lost: Counter[int] = Counter()  # by worker, how often its GPU failed

    def seconds_left() -> float | None:
        return None if options.timeout is None else max(0.0, options.timeout - (time.monotonic() - begin))

    with _tidied(study, watch, progress), _crew(plan, workers, seconds_left) as crew:
        while crew.running:
            signals.pause(LOOK)
            for index, worker in crew.ended():
                lost[index] += _refuse(worker)
                if worker.code == 0 or budget.over(study.get_trials(deepcopy=False)):
                    continue
                retired = lost[index] >= LOST_DEVICES
                _tell(worker, progress, retired=retired)
                if not retired:
                    deaths += 1
                    crew.start(index)
                elif all(lost[each] >= LOST_DEVICES for each in range(workers)):
                    raise RunError(f"no worker is left: {worker.words.removeprefix(OURS)}")
            hand_back_abandoned(study, monitor.look(), watch, progress)
            between()
            if monitor.finished > finished:
                deaths, finished = 0, monitor.finished
            if deaths >= DEATHS_IN_A_ROW * workers:
                raise RunError(
                    f"{deaths} workers died and no trial was finished meanwhile",
                    remedy="look at the system's log (memory?) and run the same command again",
                )
    monitor.look()
    after = seconds_spent(study)
    progress.study_finished(shares({work: after[work] - before[work] for work in after}))


def _refuse(worker: Ended) -> bool:
    """Return whether a worker's GPU failed; raise any other word of its own that it cannot work: no other one could."""
    if worker.code and failures.is_of_device(worker.words):
        return True
    if worker.code and worker.words.startswith(OURS):
        raise RunError(f"a worker cannot go on: {worker.words.removeprefix(OURS)}", remedy="")
    return False


def _tell(worker: Ended, progress: Progress, *, retired: bool) -> None:
    how = signal.Signals(-worker.code).name if worker.code < 0 else worker.words.removeprefix(OURS)
    then = "its GPU failed again, so none takes its place" if retired else "another one takes its place"
    progress.warning(f"worker {worker.pid} died ({how}); {then}")


class Monitor:
    """Reports trials that other processes run as they begin, train and end; not those that have ended before."""

    def __init__(self, study: Study, progress: Progress) -> None:
        self._study, self._progress = study, progress
        self._over = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
        self._epochs: dict[int, int] = {}  # of the running trials
        self.finished = 0  # finished trials since the start of monitoring

    def look(self) -> list[FrozenTrial]:
        """Read the storage and report what is new; return all trials."""
        trials = self._study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.number in self._over or trial.state == TrialState.WAITING:
                continue
            begun = Attr.CONFIG in trial.user_attrs
            if begun:
                self._tell(trial)
            if trial.state == TrialState.FAIL or (begun and trial.state.is_finished()):
                self._end(trial)
        return trials

    def _tell(self, trial: FrozenTrial) -> None:
        config = trial.user_attrs[Attr.CONFIG]
        if trial.number not in self._epochs:
            self._epochs[trial.number] = 0
            self._progress.trial_started(trial.number, trial.user_attrs.get(Attr.ANCHOR), config)
        curve = trial.user_attrs.get(Attr.CURVE, {})
        known = max(self._epochs[trial.number], int(trial.user_attrs.get(Attr.RESUMED, 0)))
        for epoch in range(known + 1, epochs_run(trial) + 1):
            record = EpochRecord(epoch, math.nan, curve[str(epoch)][0], math.nan)
            self._progress.trial_epoch(trial.number, record, config["epochs"])
            self._epochs[trial.number] = epoch

    def _end(self, trial: FrozenTrial) -> None:
        self._over.add(trial.number)
        self._epochs.pop(trial.number, None)
        counted = is_finished(trial)
        self.finished += counted
        self._progress.trial_finished(trial.number, trial.state.name, describe(trial), counted=counted)
