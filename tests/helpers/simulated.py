"""`python simulated.py URL TRIALS SECONDS WORKERS`: workers whose trials train nothing and take that long.

Each is a process of its own, forked once the packages are imported, and opens the study. When all have it says "ready",
and they begin when a line comes: what is timed after is the storage and the claims. It says "done" when all have ended.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import time
from multiprocessing.synchronize import Barrier

import optuna
from optuna.samplers import RandomSampler

from kdsearch import storage
from kdsearch.pruning import pruner
from kdsearch.records import Attr, Progress
from kdsearch.search.budget import Budget
from kdsearch.search.definition import open_study
from kdsearch.search.plan import Plan, make_plan
from kdsearch.search.run_options import Request
from kdsearch.search.workers.loop import run
from kdsearch.storage import retrying

NAME = "simulated"
LONGEST = 120.0  # seconds that one waits for the others


def work(plan: Plan, trials: int, seconds: float, together: Barrier) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = open_study(plan, retrying.patient(storage.open_storage(plan.url)))
    study.sampler = RandomSampler()

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        value = trial.suggest_float("x", 0, 1)
        time.sleep(seconds)
        pruner.report(trial, (value, 1 - value), 1, prefix="")
        for name in (Attr.ACCURACY, Attr.TEST_ACCURACY, Attr.RATIO):
            trial.set_user_attr(name, value)
        trial.set_user_attr(Attr.BEST_EPOCH, 1)
        trial.set_user_attr(Attr.CONFIG, {"epochs": 1})
        return value, 1 - value

    together.wait(LONGEST)  # ready
    together.wait()
    run(study, objective, plan, budget=Budget(trials=trials), progress=Progress())  # type: ignore[arg-type]


def main(url: str, trials: int, seconds: float, workers: int) -> None:
    plan = make_plan(Request(dataset="digits", train_size=200, max_epochs=2, device="cpu", cost="flops", name=NAME))
    plan = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"anchors": {}}), url=url)
    forks = multiprocessing.get_context("fork")
    together = forks.Barrier(workers + 1)
    processes = [forks.Process(target=work, args=(plan, trials, seconds, together)) for _ in range(workers)]
    for process in processes:
        process.start()
    together.wait(LONGEST)
    print("ready", flush=True)
    sys.stdin.readline()
    together.wait()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(1)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
