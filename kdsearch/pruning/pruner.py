"""Pruning on several objectives at once, and the calls that stand in for the methods of Trial that refuse."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from optuna import Study, Trial
from optuna.pruners import BasePruner
from optuna.trial import BaseTrial, FrozenTrial

from kdsearch import pareto
from kdsearch.pruning import forecast
from kdsearch.pruning.forecast import Forecast
from kdsearch.pruning.history import Curve, Floats, History, Stack
from kdsearch.pruning.scale import Scale, make_scale
from kdsearch.records import Attr

Values = Sequence[float | None]


@dataclass(frozen=True)
class Verdict:
    """What a pruner thinks of a running trial.

    Attributes:
        action: "go" on; "prune": hopeless, its best checkpoint is dominated; "stop": more steps add nothing, but its
            best checkpoint stands on the front.
        reason: None for "go", else `step` (of the decision), `at` (the last step forecast), `forecast` (the best value
            of the observed objective that it may hope for by then), `trials` (numbers of those it could not beat) and
            `reason`, a sentence.
    """

    action: Literal["go", "prune", "stop"]
    reason: dict[str, Any] | None = None


GO = Verdict("go")


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

    Hopeless: its best checkpoint is dominated and forecast to stay so. The reason is stored with the trial (attribute
    `pruned_by`). The caller raises `optuna.TrialPruned`.
    """
    found = _verdict(trial)
    if found.action == "prune" and found.reason is not None:
        trial.set_user_attr(Attr.PRUNED_BY, found.reason)
    return found.action == "prune"


def should_stop(trial: Trial) -> bool:
    """Whether more steps would add nothing to the front, although the trial's best checkpoint stands on it.

    The caller returns that checkpoint's values, so that the trial is COMPLETE and stays in `study.best_trials`. The
    step (attribute `stopped_at`) and the reason (`stopped_by`) are stored with the trial.
    """
    found = _verdict(trial)
    if found.action == "stop" and found.reason is not None:
        trial.set_user_attr(Attr.STOPPED_AT, found.reason["step"])
        trial.set_user_attr(Attr.STOPPED_BY, found.reason)
    return found.action == "stop"


def _verdict(trial: Trial) -> Verdict:
    study = trial.study
    verdict = getattr(study.pruner, "verdict", None)
    if verdict is None:
        frozen = study.get_trials(deepcopy=False)[trial.number]
        return Verdict("prune") if study.pruner.prune(study, frozen) else GO
    found: Verdict = verdict(study, trial)  # which reads the storage itself, where it has to
    return found


class ParetoPruner(BasePruner):
    """Stops a trial that can no longer add enough to the front, on all objectives at once.

    For studies with two or more objectives of which one is observed step by step (an accuracy) and the others are known
    when the trial starts (a ratio); trials call `kdsearch.report`, `kdsearch.should_prune` and `kdsearch.should_stop`.

    After each step, the trials most like this one are found: in parameters, in known objectives and in the error at the
    same step. Its error is forecast to fall as it fell for the luckier of them (beyond a trial's last step, as a power
    law). The forecast's gain in hypervolume, a step, is compared with what the study's recent trials gained a step: a
    trial that promises less than a share `pace` of that is not worth its steps (the marginal value theorem of foraging:
    Charnov, Theoretical Population Biology 1976). As the study gains less and less, less is enough, so the front's
    resolution has no floor.

    Args:
        optimism: quantile, 0 to 1, of the neighbours' progress that a trial is credited with.
        neighbours: how many similar trials are asked.
        pace: share of the study's present gain a step that a trial must promise; 0: anything above no gain.
        max_steps: steps of a whole trial, or the name of the parameter that says so for each trial; None: the longest
            curve seen.
        log: indices of the objectives to be taken on a log scale; None: the known ones that are positive and span a
            factor of ten.
        reference: where hypervolume is counted from, one an objective in its own unit; None: a little worse than
            the worst seen.
        ideal: the best possible value of the observed objective; None: 1 where values from 0 to 1 are maximised, 0
            where positive ones are minimised, else a little better than the best seen.
        exempt: trials with a user attribute of this name are never pruned or stopped.

    Raises:
        ValueError: a number lies outside its range.
    """

    def __init__(
        self,
        *,
        optimism: float = 0.9,
        neighbours: int = 10,
        pace: float = 0.1,
        max_steps: int | str | None = None,
        log: Sequence[int] | None = None,
        reference: Sequence[float] | None = None,
        ideal: float | None = None,
        exempt: str = Attr.ANCHOR,
    ) -> None:
        if not 0 <= optimism <= 1:
            raise ValueError(f"optimism must be a quantile from 0 to 1 (got {optimism})")
        if neighbours < 1 or not pace >= 0:
            raise ValueError(f"neighbours must be at least 1 and pace at least 0 (got {neighbours} and {pace})")
        self._optimism, self._neighbours, self._pace = optimism, neighbours, pace
        self._max_steps = max_steps
        self._log, self._reference, self._ideal = log, reference, ideal
        self._exempt = exempt
        self._lock = threading.Lock()  # for study.optimize(n_jobs=...)
        self._forget(None)

    def _forget(self, study: Study | None) -> None:
        self._study = study
        self._history = History()
        self._said: dict[int, tuple[int, Verdict]] = {}  # by trial: step and verdict, for asked twice is answered alike

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_lock", "_study", "_history", "_said")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
        self._forget(None)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is hopeless: see the class."""
        return self.verdict(study, trial).action == "prune"

    def verdict(self, study: Study, trial: BaseTrial) -> Verdict:
        """Whether the trial should go on, and why not."""
        curve = trial.user_attrs.get(Attr.CURVE, {})
        step = max(map(int, curve), default=-1)
        if trial.user_attrs.get(self._exempt) is not None or step < 0:
            return GO
        with self._lock:
            if study is not self._study:
                self._forget(study)
            said = self._said.get(trial.number)
            if said is None or said[0] != step:
                self._history.update(study, trial.number)
                said = self._said[trial.number] = (step, self._judge(step))
        return said[1]

    def _judge(self, step: int) -> Verdict:
        history, own = self._history, self._history.own
        others = history.curves()
        if own is None or not len(own.steps) or not len(others):
            return GO
        point = forecast.own_point(history)
        if np.isnan(point).any():
            return GO  # a known objective that was never told
        scale = self._scale(np.vstack([others.points, point]), others, own)
        hope = forecast.optimistic(
            history,
            scale,
            last_step=self._length(own, others),
            neighbours=self._neighbours,
            optimism=self._optimism,
        )
        if hope is None:
            return GO
        everyone = scale.transform(np.vstack([others.points, point]))
        front = everyone[pareto.members(everyone)]
        hoped = np.tile(point, (len(hope.steps), 1))
        hoped[:, scale.observed] = hope.values
        gains = pareto.gains(front, scale.transform(hoped), scale.reference) / (hope.steps - own.steps[-1])
        if gains.max() > self._pace * forecast.pace(history, scale):
            return GO
        return _no_hope(scale, others, point, hope, step)

    def _length(self, own: Curve, others: Stack) -> int:
        longest = max(int(others.last.max()), int(own.steps[-1]))
        if isinstance(self._max_steps, str):
            return int(own.params.get(self._max_steps, longest))
        return longest if self._max_steps is None else self._max_steps

    def _scale(self, points: Floats, others: Stack, own: Curve) -> Scale:
        assert self._history.observed is not None
        return make_scale(
            points,
            self._history.sign,
            self._history.observed,
            lowest=float(min(np.nanmin(others.best), own.best[0])),
            log=self._log,
            reference=self._reference,
            ideal=self._ideal,
        )


def _no_hope(scale: Scale, others: Stack, point: Floats, hope: Forecast, step: int) -> Verdict:
    """Hopeless, or finished early on the front; with the reason."""
    standing = not any(pareto.dominates(other, point.tolist()) for other in others.points.tolist())
    hoped = point.copy()
    hoped[scale.observed] = hope.values.max()
    beaten_by = others.number[(others.points >= hoped).all(axis=1)].tolist()
    value = float(scale.sign[scale.observed] * hoped[scale.observed])
    at = int(hope.steps[-1])
    if beaten_by:
        named = ", ".join(map(str, beaten_by[:3])) + (f" and {len(beaten_by) - 3} more" if len(beaten_by) > 3 else "")
        why = f"it may hope for {value:.4g} by step {at}, which would not beat trial {named}"
    else:
        why = f"it may hope for {value:.4g} by step {at}, which would add too little for the steps it takes"
    reason = {"step": step, "at": at, "forecast": value, "trials": beaten_by, "reason": f"at step {step}, {why}"}
    return Verdict("stop" if standing else "prune", reason)
