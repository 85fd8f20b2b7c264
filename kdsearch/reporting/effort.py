"""What a study spent: epochs of training, and how many the pruner saved."""

from __future__ import annotations

from kdsearch.reporting.collect import CONFIG, StudyData
from kdsearch.reporting.formatting import number

PLANNED = CONFIG + "epochs"


def effort(data: StudyData) -> str:
    """In words: "spent 412 epochs on 57 trials; pruning saved 288 of 700 planned epochs"; empty if nothing was trained.

    Failed, killed and running trials have spent, too; what was planned is of the finished ones, and what a spent budget
    cut was not saved by pruning.
    """
    trained = data.trials[data.trials["epochs_run"] > 0]
    if trained.empty:
        return ""
    spent = f"spent {_many(trained['epochs_run'].sum(), 'epoch')} on {_many(len(trained), 'trial')}"
    finished = trained[trained["state"].isin(["COMPLETE", "PRUNED"])]
    if PLANNED not in finished:
        return spent
    planned = finished[PLANNED].map(number)
    if planned.isna().any() or not finished["saved"].sum() > 0:
        return spent
    return f"{spent}; pruning saved {finished['saved'].sum():,.0f} of {planned.sum():,.0f} planned epochs"


def _many(count: float, word: str) -> str:
    return f"{count:,.0f} {word}" if count == 1 else f"{count:,.0f} {word}s"
