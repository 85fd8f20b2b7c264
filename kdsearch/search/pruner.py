"""Pruning on two objectives at once, and the two calls that stand in for the methods of Trial that refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna import Study, Trial
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from kdsearch import pareto
from kdsearch.records import Attr

Values = Sequence[float | None]


def report(trial: Trial, values: Values, step: int) -> None:
    """Tells the pruner where a trial stands; `Trial.report` refuses where there are several objectives.

    The curve is kept in one user attribute, for intermediate values in the storage break Optuna's TPE sampler on
    studies with several objectives.

    Args:
        trial: the running trial.
        values: one an objective, in the order of the study's directions; None for what is not observed yet, so
            `(None, ratio)` at step 0 and `(accuracy, ratio)` from step 1 on.
        step: counted up; a step told twice keeps the last values.

    Raises:
        ValueError: the number of values is not that of the study's objectives.
    """
    expected = len(trial.study.directions)
    if len(values) != expected:
        raise ValueError(f"values must hold one for each of the {expected} objectives (got {len(values)})")
    curve = dict(trial.user_attrs.get(Attr.CURVE, {}))
    curve[str(step)] = [None if value is None else float(value) for value in values]
    trial.set_user_attr(Attr.CURVE, curve)


def should_prune(trial: Trial) -> bool:
    """Whether the study's pruner calls the trial hopeless; `Trial.should_prune` refuses with several objectives.

    The reason is stored with the trial (attribute `pruned_by`). The caller raises `optuna.TrialPruned`.
    """
    study = trial.study
    frozen = study.get_trials(deepcopy=False)[trial.number]
    if not isinstance(study.pruner, ParetoPruner):
        return study.pruner.prune(study, frozen)
    reason = study.pruner.reason(study, frozen)
    if reason is not None:
        trial.set_user_attr(Attr.PRUNED_BY, reason)
    return reason is not None


def best_so_far(
    curve: dict[str, list[float | None]], directions: Sequence[StudyDirection], step: int
) -> list[tuple[float, ...]]:
    """The non-dominated checkpoints of a curve up to a step, every objective turned so that more is better."""
    signs = [1.0 if direction == StudyDirection.MAXIMIZE else -1.0 for direction in directions]
    points = [
        tuple(sign * value for sign, value in zip(signs, values, strict=True) if value is not None)
        for at, values in curve.items()
        if int(at) <= step and None not in values
    ]
    return [points[index] for index in pareto.front(points)]


class ParetoPruner(BasePruner):
    """Prunes a trial that another dominates at the same step, on all objectives at once.

    For studies with two or more objectives whose trials call `kdsearch.report` and `kdsearch.should_prune`. A trial
    is hopeless at step t when each of its checkpoints up to t is dominated by another trial's checkpoint up to t:
    someone at least as fast is already more accurate (or as accurate and faster). So a trial whose best checkpoint is
    on the front is never pruned.

    A measured accuracy is noisy, so the rival may have to be better by more than that noise: `margin`.

    Args:
        margin: one an objective, in its units: a checkpoint counts as dominated only if it still is when it is made
            better by so much. None: 0 for all.
        warm_up: no trial is pruned before this step.
        exempt: trials with a user attribute of this name are never pruned.
    """

    def __init__(self, *, margin: Sequence[float] | None = None, warm_up: int = 1, exempt: str = Attr.ANCHOR) -> None:
        self._margin = margin
        self._warm_up = warm_up
        self._exempt = exempt

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is hopeless: see the class."""
        return self.reason(study, trial) is not None

    def reason(self, study: Study, trial: FrozenTrial) -> dict[str, Any] | None:
        """Why the trial is hopeless, or None.

        Returns:
            `step`, `trial` (the number of the one that dominates its last non-dominated checkpoint)
            and a sentence, `reason`.
        """
        curve = trial.user_attrs.get(Attr.CURVE, {})
        step = max(map(int, curve), default=0)
        if self._exempt in trial.user_attrs or step < self._warm_up:
            return None
        own = best_so_far(curve, study.directions, step)
        if not own:
            return None
        beaten_by: FrozenTrial | None = None
        for point in own:
            beaten_by = self._dominator(study, trial, point, step)
            if beaten_by is None:
                return None
        assert beaten_by is not None  # own is not empty
        return {
            "step": step,
            "trial": beaten_by.number,
            "reason": f"at step {step}, trial {beaten_by.number} was already better and no worse in any objective",
        }

    def _dominator(self, study: Study, trial: FrozenTrial, point: tuple[float, ...], step: int) -> FrozenTrial | None:
        margin = self._margin or [0.0] * len(point)
        hoped = tuple(value + slack for value, slack in zip(point, margin, strict=True))
        for other in study.get_trials(deepcopy=False):
            curve = other.user_attrs.get(Attr.CURVE)
            if other.number == trial.number or not curve or other.state == TrialState.FAIL:
                continue  # a failed trial's checkpoints will not stand on the front
            if any(pareto.dominates(rival, hoped) for rival in best_so_far(curve, study.directions, step)):
                return other
        return None
