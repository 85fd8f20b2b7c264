"""`python simulated.py URL TRIALS SECONDS`: a worker whose trials train nothing and take that long.

It opens the study, says "ready", and begins when a line comes: what is timed after is the storage and the claims.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import optuna
from optuna.samplers import RandomSampler

from kdsearch import patience, storage
from kdsearch.progress import Progress
from kdsearch.records import Attr
from kdsearch.search import pruner
from kdsearch.search.budget import Budget
from kdsearch.search.definition import open_study
from kdsearch.search.loop import run
from kdsearch.search.plan import make_plan

NAME = "simulated"


def main(url: str, trials: int, seconds: float) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    plan = make_plan(dataset="digits", train_size=200, max_epochs=2, device="cpu", cost="flops", name=NAME)
    plan = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"anchors": {}}), url=url)
    study = open_study(plan, patience.patient(storage.open_storage(url)))
    study.sampler = RandomSampler()

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        value = trial.suggest_float("x", 0, 1)
        time.sleep(seconds)
        pruner.report(trial, (value, 1 - value), 1)
        for name in (Attr.ACCURACY, Attr.TEST_ACCURACY, Attr.RATIO):
            trial.set_user_attr(name, value)
        trial.set_user_attr(Attr.BEST_EPOCH, 1)
        trial.set_user_attr(Attr.CONFIG, {"epochs": 1})
        return value, 1 - value

    print("ready", flush=True)
    sys.stdin.readline()
    run(study, objective, plan, budget=Budget(trials=trials), progress=Progress())  # type: ignore[arg-type]
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
