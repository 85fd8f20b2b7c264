"""The slides' configurations as ordinary trials that run first and are never pruned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from kdsearch.records import Attr, was_handed_back
from kdsearch.search.space import trial_parameters
from kdsearch.spec import StudySpec

MAX_FAILURES = 3  # of one anchor; then it is not tried again


def enqueue_missing(
    study: Study, spec: StudySpec, *, at_most: int | None, trials: Sequence[FrozenTrial] | None = None
) -> bool:
    """Enqueues the first `at_most` anchors (None: all) as far as they are neither waiting, running nor complete.

    One that failed three times is not enqueued again; that its worker was killed is no failure of its own.

    Args:
        study: of the anchors.
        spec: names them.
        at_most: so many.
        trials: of the study, as just read; None: they are read here.

    Returns:
        Whether any was enqueued.
    """
    enqueued = False
    states: dict[str, Counter[TrialState]] = {}
    for trial in study.get_trials(deepcopy=False) if trials is None else trials:
        name = trial.user_attrs.get(Attr.ANCHOR)
        if name is not None and not was_handed_back(trial.user_attrs):
            states.setdefault(name, Counter())[trial.state] += 1
    for name, anchor in list(spec.anchors.items())[:at_most]:
        seen = states.get(name, Counter())
        there = (TrialState.COMPLETE, TrialState.WAITING, TrialState.RUNNING)
        if any(seen[state] for state in there) or seen[TrialState.FAIL] >= MAX_FAILURES:
            continue
        study.enqueue_trial(trial_parameters(anchor.config, spec.space), user_attrs={Attr.ANCHOR: name})
        enqueued = True
    return enqueued
