"""The slides' configurations as trials that run first and are never pruned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from kdsearch.records import Attr, was_handed_back
from kdsearch.search.space import trial_parameters
from kdsearch.spec import StudySpec

MAX_FAILURES = 3  # of one anchor, after which it is not tried again


def enqueue_missing(
    study: Study, spec: StudySpec, *, at_most: int | None, trials: Sequence[FrozenTrial] | None = None
) -> bool:
    """Enqueue the first `at_most` anchors (None: all) that are neither waiting, running nor complete.

    An anchor that failed three times is not enqueued again; a killed worker does not count as a failure.

    Args:
        study: the study to enqueue them in.
        spec: holds the anchors.
        at_most: how many of the anchors, in their order.
        trials: of the study, if just read; None: they are read here.

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
