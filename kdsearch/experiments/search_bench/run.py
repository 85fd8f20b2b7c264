"""Run replays of searches on tables and problems: choose the arms, distribute over processes, cache each result."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import optuna
import torch

from kdsearch.errors import KdsearchError
from kdsearch.experiments.search_bench import peers, tables
from kdsearch.experiments.search_bench.problems import FAMILIES, Family, LCBench, Problem, lcbench_tasks
from kdsearch.experiments.search_bench.replay import ALL, SAMPLED, Arm, Run, replay
from kdsearch.experiments.search_bench.tables import Table
from kdsearch.records import Progress
from kdsearch.system import machine, signals

TRAININGS = 30  # full trainings whose epochs are the default budget of a replay
RULES = ("none", "dominance", "moasha", "hub", "pruner", "pruner-pace-1", "oracle")
CHOICES = ("none", "pruner", "proposals", "ours")  # neither, pruning only, proposals only, both
RIVALS = [
    Arm("tpe", ALL, f"{rule}+proposals") for rule in ("moasha", "dominance")
]  # the strongest: other rules with ours
DEFAULT = Arm("tpe", ALL, "ours")  # `kdsearch optimize` where every trial may have all epochs
SHIPPED = Arm("tpe", SAMPLED, "ours")  # and where the number of epochs is a dimension, as in the shipped study files
PEERS = {method: Arm("own", ALL, method) for method in peers.PACKAGES}
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
WORKERS = 4
BY_SPEED = ("random", "nsga2", "tpe", "own", "gp")  # samplers, fast to slow
FAMILY, LCBENCH, TUNING = "family:", "lcbench:", "lcbench-tuning:"


def arms(*, full: bool, sampled: bool) -> list[Arm]:
    """Return the arms to compare: all rules with random draws, rule x proposals in full with random draws and TPE.

    The strongest rivals are among them: MO-ASHA and same-epoch dominance with our proposals.

    Args:
        full: whether to add NSGA-II, GP (with log-EHVI), resumed trials and four workers.
        sampled: whether the problem can have its number of epochs as a dimension: then the shipped setting is an arm,
            else the peers that are installed are.
    """
    found = [Arm("random", ALL, method) for method in dict.fromkeys((*RULES, *CHOICES))]
    found += [*(Arm("tpe", ALL, method) for method in CHOICES), *RIVALS]
    found += [SHIPPED] if sampled else [PEERS[method] for method in peers.installed()]
    if full:
        found += [Arm(sampler, ALL, method) for sampler in ("nsga2", "gp") for method in ("none", "ours")]
        found += [Arm("random", ALL, method, WORKERS) for method in ("none", "ours")]
        found += [Arm("tpe", ALL, "resume")]
    return found


def chosen(found: Sequence[Arm], names: Sequence[str] | None) -> list[Arm]:
    """Return the arms of some keys, all where None is given.

    Raises:
        KdsearchError: there is no such arm.
    """
    known = {arm.key: arm for arm in found}
    for name in names or ():
        if name not in known:
            raise KdsearchError(f"--arms must name arms of every problem: {', '.join(known)}", got=name,
                                remedy="write them with commas between; see --full, too")  # fmt: skip
    return list(found) if names is None else [known[name] for name in dict.fromkeys(names)]


@dataclass(frozen=True)
class Measured:
    """The replays on one table or problem."""

    problem: Table | Problem
    seeds: tuple[int, ...]  # ascending
    budget: int  # epochs of each
    arms: dict[str, list[Run]]  # by `Arm.key`, in the order of the seeds


def expanded(names: Sequence[str]) -> list[str]:
    """Expand names to single problems: `lcbench:PATH` to the report's tasks, `families` to all families.

    `lcbench:PATH:TASK` is a single task, by its OpenML id.

    Raises:
        KdsearchError: two names are the same, or LCBench's folder cannot be read.
    """
    found: list[str] = []
    for name in names:
        if name == "families":
            found += [FAMILY + family for family in FAMILIES]
        elif name.startswith((LCBENCH, TUNING)):
            place = name.partition(":")[2]
            folder, _, task = place.rpartition(":")
            if folder and task.isdigit():
                found.append(LCBENCH + place)
            else:
                tasks = lcbench_tasks(Path(place), tuning=name.startswith(TUNING))
                found += [f"{LCBENCH}{place}:{task}" for task in tasks]
        else:
            found.append(name)
    if len(set(found)) < len(found):
        raise KdsearchError("--tables must name different tables", got=", ".join(names), remedy="give each once")
    return found


@lru_cache(maxsize=64)
def problem(name: str) -> Table | Problem:
    """Return the table or problem of an expanded name."""
    if name.startswith(FAMILY):
        return Family(name.removeprefix(FAMILY))
    if name.startswith(LCBENCH):
        folder, _, task = name.removeprefix(LCBENCH).rpartition(":")
        return LCBench(Path(folder), task)
    return tables.load(name)


def kept_file() -> Path:
    """Return the cache file of finished replays, from which an interrupted command continues."""
    return machine.cache_folder() / "bench-search.jsonl"


DECIDE_PEERS = (
    *("pareto.py", "records.py", "system/machine.py"),
    *(f"experiments/search_bench/{name}.py" for name in ("peers", "problems", "replay", "tables")),
)
"""Files of the package that determine a peer's replay, which is slow and has nothing of our own search in it."""
DECIDE = ("search", "pruning", "spec", "experiments/search_bench/rivals.py", *DECIDE_PEERS)
"""Rooms and files that determine any other replay."""


def _key(name: str, arm: Arm, seed: int, budget: int) -> str:
    path = tables.file_of(name)
    content = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
    parts = DECIDE_PEERS if arm.method in peers.PACKAGES else DECIDE
    code = [optuna.__version__, machine.sources_digest(*parts)]
    return json.dumps([code, name, content, arm.key, seed, budget, peers.version(arm.method)])


def load_kept(path: Path) -> dict[str, Run]:
    """Return cached runs by key, without unreadable lines, which killed processes leave."""
    found: dict[str, Run] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry: dict[str, Any] = json.loads(line)
                run = entry["run"] | {"arm": Arm(**entry["run"]["arm"])}
                for metric in ("best_trials", "checkpoints", "by_truth"):
                    run[metric] = [tuple(step) for step in run[metric]]
                found[entry["key"]] = Run(**run)
    return found


def _keep(path: Path, key: str, run: Run) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"key": key, "run": dataclasses.asdict(run)}) + "\n")


def _begin() -> None:
    signals.end_with_parent()
    torch.set_num_threads(1)


def _work(name: str, arm: Arm, seed: int, budget: int) -> Run:
    found = problem(name)
    if arm.method in peers.PACKAGES:
        assert not isinstance(found, Table)  # see `arms`
        return peers.search(found, Run(arm, seed), budget)
    return replay(found, arm, seed=seed, budget=budget)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Limit new processes to one thread for linear algebra, through variables that are read before any code runs."""
    before = {name: os.environ[name] for name in THREADS if name in os.environ}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name in THREADS:
            del os.environ[name]
        os.environ.update(before)


Job = tuple[str, Arm, int, int]


def measure(
    names: Sequence[str],
    *,
    seeds: Sequence[int],
    budget: int | None,
    full: bool,
    jobs: int,
    progress: Progress,
    only: Sequence[str] | None = None,
    kept: Path | None = None,
) -> list[Measured]:
    """Run all replays, except those cached by an earlier call of the same code.

    Args:
        names: of tables, their paths, `families`, `family:NAME`, `lcbench:PATH`, `lcbench:PATH:TASK` or
            `lcbench-tuning:PATH`.
        seeds: of the replays.
        budget: epochs of each; None: 30 full trainings.
        full: see `arms`.
        jobs: processes.
        progress: notified of arms whose replays are all done.
        only: keys of the arms to run; None: all.
        kept: file of finished replays; None: no cache.

    Raises:
        KdsearchError: a table cannot be read, two have the same name, or there is no such arm.
    """
    single = expanded(names)
    problems = {name: problem(name) for name in single}
    if len({one.name for one in problems.values()}) < len(single):
        raise KdsearchError("--tables must name different tables", got=", ".join(names), remedy="give each once")
    budgets = {name: budget or TRAININGS * one.epochs for name, one in problems.items()}
    compared = {name: chosen(arms(full=full, sampled=isinstance(one, Table)), only) for name, one in problems.items()}
    ordered = tuple(sorted(seeds))
    everything = [(name, arm, seed, budgets[name]) for name in single for arm in compared[name] for seed in ordered]
    runs = _all(everything, jobs, progress, kept)
    return [
        Measured(one, ordered, budgets[name],
                 {arm.key: [runs[name, arm, seed, budgets[name]] for seed in ordered] for arm in compared[name]})
        for name, one in problems.items()
    ]  # fmt: skip


def _all(everything: Sequence[Job], jobs: int, progress: Progress, kept: Path | None) -> dict[Job, Run]:
    known = {} if kept is None else load_kept(kept)
    keys = {job: _key(*job) for job in everything}
    found = {job: known[key] for job, key in keys.items() if key in known}
    missing = Counter((name, arm) for name, arm, _, _ in everything)
    done = itertools.count(1)
    progress.study_started(0, len(missing))

    def finished(job: Job) -> None:
        missing[job[:2]] -= 1
        if not missing[job[:2]]:
            progress.trial_finished(next(done), "COMPLETE", f"{problem(job[0]).name} {job[1].key}", counted=True)

    for job in found:
        finished(job)
    rest = sorted((job for job in everything if job not in found), key=lambda job: -BY_SPEED.index(job[1].sampler))
    context = multiprocessing.get_context("spawn")
    with (
        _single_threaded(),
        ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin) as pool,
    ):
        try:
            waiting: dict[Future[Run], Job] = {pool.submit(_work, *job): job for job in rest}
            for future in as_completed(waiting):
                job = waiting[future]
                found[job] = future.result()
                if kept is not None:
                    _keep(kept, keys[job], found[job])
                finished(job)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found
