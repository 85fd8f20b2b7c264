"""The cost of a study: epochs trained, epochs that the pruner saved, and the pruner's mistakes by its audit."""

from __future__ import annotations

from kdsearch.records import Attr
from kdsearch.reporting.collect import CONFIG, StudyData
from kdsearch.reporting.formatting import number

PLANNED = CONFIG + "epochs"


def effort(data: StudyData) -> str:
    """Describe effort: "spent 412 epochs on 57 trials; pruning saved 288 of 700 planned epochs"; empty if untrained.

    With audited trials also: "of 7 trials that were never pruned, to check this, 4 would have been ended, and 1 of
    these came to the front later".

    Spent epochs include those of failed, killed and running trials; planned ones are of finished trials only, and
    epochs that an exhausted budget cut off do not count as saved by pruning.
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
    saved = f"pruning saved {finished['saved'].sum():,.0f} of {planned.sum():,.0f} planned epochs"
    return "; ".join([spent, saved, *audit(data)])


def audit(data: StudyData) -> list[str]:
    """Describe the pruner's mistakes that the never-pruned trials reveal; empty without such trials."""
    finished = data.trials[data.trials["state"] == "COMPLETE"].set_index("number")
    audits = {
        trial.number: trial.user_attrs[Attr.AUDIT]
        for trial in data.stored
        if trial.number in finished.index and isinstance(trial.user_attrs.get(Attr.AUDIT), dict)
    }
    if not audits:
        return []
    ended = {trial: number(audit.get("would_end")) for trial, audit in audits.items()}
    ended = {trial: step for trial, step in ended.items() if step == step}
    late = [t for t, step in ended.items() if finished["on_front"][t] and finished["best_epoch"][t] > step]
    never = (
        f"of {_many(len(audits), 'trial')} that were never pruned, to check this, {len(ended)} would have been ended"
    )
    return [f"{never}, and {len(late)} of these came to the front later"]


def _many(count: float, word: str) -> str:
    return f"{count:,.0f} {word}" if count == 1 else f"{count:,.0f} {word}s"
