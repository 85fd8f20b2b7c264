"""Replays of searches on tables: which arms, in how many processes, and what they spend."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache

from kdsearch.errors import KdsearchError
from kdsearch.experiments.search_bench import tables
from kdsearch.experiments.search_bench.replay import ALL, SAMPLED, Arm, Run, replay
from kdsearch.experiments.search_bench.tables import Table
from kdsearch.progress import Progress

REFERENCE_TRIALS = 100
"""Of unpruned TPE: what it spends on so many is the budget, and what it reaches with them is a bar."""
UNPRUNED_TPE = Arm("tpe", SAMPLED, "none")
RANDOM = ("none", "dominance", "moasha", "hub", "pruner", "proposals", "ours", "oracle")
SHORT = ("none", "pruner", "ours")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
WORKERS = 4
SLOW = ("random", "nsga2", "tpe", "gp")  # from quick to slow


def arms(*, full: bool) -> list[Arm]:
    """What is compared: random proposals, and TPE unpruned; with `full`, what is slow, too.

    TPE draws in 20 ms and more, so its hundreds of pruned trials take longer than all else together; GP takes longer.
    """
    found = [Arm("random", ALL, method) for method in RANDOM]
    found += [Arm("random", SAMPLED, method) for method in SHORT]
    found.append(UNPRUNED_TPE)
    if full:
        found += [Arm("tpe", SAMPLED, method) for method in SHORT if method != "none"]
        found += [Arm(sampler, SAMPLED, method) for sampler in ("nsga2", "gp") for method in ("none", "ours")]
        found += [Arm("random", ALL, method, WORKERS) for method in SHORT]
    return found


@dataclass(frozen=True)
class Measured:
    """The replays on one table.

    Attributes:
        table: as it was given.
        seeds: of the replays, ascending.
        budget: epochs of each.
        arms: runs by `Arm.key`, in the order of the seeds.
        tpe: unpruned TPE with its 100 trials and no other limit, in the order of the seeds.
    """

    table: Table
    seeds: tuple[int, ...]
    budget: int
    arms: dict[str, list[Run]]
    tpe: list[Run]


@lru_cache(maxsize=4)
def _table(name: str) -> Table:
    return tables.load(name)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _work(name: str, arm: Arm, seed: int, budget: int | None) -> Run:
    table = _table(name)
    if budget is None:
        return replay(table, arm, seed=seed, trials=REFERENCE_TRIALS)
    return replay(table, arm, seed=seed, budget=budget)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Processes started meanwhile take one thread each for linear algebra, which reads this before any code runs."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def measure(
    names: Sequence[str],
    *,
    seeds: Sequence[int],
    budget: int | None,
    full: bool,
    jobs: int,
    progress: Progress,
) -> list[Measured]:
    """Runs all replays.

    Args:
        names: of tables, or their paths.
        seeds: of the replays.
        budget: epochs of each; None: the median of what unpruned TPE spends on 100 trials, by table.
        full: see `arms`.
        jobs: processes.
        progress: told of arms whose replays are all done.

    Raises:
        KdsearchError: a table cannot be read, or two have one name.
    """
    loaded = {name: _table(name) for name in names}
    if len({table.name for table in loaded.values()}) < len(names):
        got = ", ".join(names)
        raise KdsearchError("--tables must name different tables", got=got, remedy="give each once")
    compared = sorted(arms(full=full), key=lambda arm: -SLOW.index(arm.sampler))  # the slow first: no core idles
    progress.study_started(0, len(names) * (1 + len(compared)))
    context = multiprocessing.get_context("spawn")
    with _single_threaded(), ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        try:
            jobs_tpe = [(name, UNPRUNED_TPE, seed, None) for name in names for seed in seeds]
            tpe = _all(pool, jobs_tpe, progress, f"{REFERENCE_TRIALS} trials")
            budgets = {name: budget or _median_spent(tpe[name, UNPRUNED_TPE]) for name in names}
            jobs_arms = [(name, arm, seed, budgets[name]) for arm in compared for name in names for seed in seeds]
            runs = _all(pool, jobs_arms, progress, "", told=len(names))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    ordered = tuple(sorted(seeds))
    return [
        Measured(table, ordered, budgets[name], {arm.key: runs[name, arm] for arm in arms(full=full)},
                 tpe[name, UNPRUNED_TPE])
        for name, table in loaded.items()
    ]  # fmt: skip


Job = tuple[str, Arm, int, int | None]


def _all(
    pool: ProcessPoolExecutor, jobs: Sequence[Job], progress: Progress, note: str, *, told: int = 0
) -> dict[tuple[str, Arm], list[Run]]:
    """All runs by table and arm, each in the order of the seeds; `told` arms were reported before."""
    waiting: dict[Future[Run], Job] = {pool.submit(_work, *job): job for job in jobs}
    found: dict[tuple[str, Arm], list[Run]] = {}
    missing = Counter((name, arm) for name, arm, _, _ in jobs)
    for future in as_completed(waiting):
        name, arm, _, _ = waiting[future]
        found.setdefault((name, arm), []).append(future.result())
        missing[name, arm] -= 1
        if not missing[name, arm]:
            told += 1
            text = f"{_table(name).name} {arm.key} {note}".rstrip()
            progress.trial_finished(told, "COMPLETE", text, counted=True)
    return {key: sorted(runs, key=lambda run: run.seed) for key, runs in found.items()}


def _median_spent(runs: Sequence[Run]) -> int:
    return round(statistics.median(run.spent for run in runs))
