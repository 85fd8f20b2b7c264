"""Pruning on several objectives at once, and replacements for the methods of Trial that refuse several objectives."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from optuna import Study
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import BaseTrial, FrozenTrial

from kdsearch import pareto
from kdsearch.pruning import forecast, settings
from kdsearch.pruning.history import Curve, Floats, History, Stack, continued, stored_curve
from kdsearch.pruning.scale import LEAST_ERROR, Scale, make_scale
from kdsearch.records import FOREIGN, Attr


@dataclass(frozen=True)
class Verdict:
    """A pruner's decision on a running trial.

    Attributes:
        action: "go" on; "prune": hopeless, its best checkpoint is dominated; "stop": more steps add nothing, but its
            best checkpoint is on the front.
        reason: None for "go", else `step` (of the decision), `at` (the last step forecast), `forecast` (the best value
            of the observed objective expected by then), `trials` (numbers of those it could not beat) and `reason`, a
            sentence.
    """

    action: Literal["go", "prune", "stop"]
    reason: dict[str, Any] | None = None


GO = Verdict("go")
NAMED_BY = 10  # ended trials, by which one should have the parameter that `max_steps` names
AUDIT_MOST = 1 / 3  # of all steps, by audited trials: beyond it no more are begun
NOTHING = 1e-12  # of the hypervolume: a gain per step within the rounding error of sums of products


_warned: weakref.WeakKeyDictionary[Study, set[str]] = weakref.WeakKeyDictionary()


def _warn_once(study: Study, kind: str, text: str) -> None:
    if kind not in _warned.setdefault(study, set()):
        _warned[study].add(kind)
        warnings.warn(f"kdsearch: {text}", UserWarning, stacklevel=4)


def report(trial: BaseTrial, values: Sequence[float | None], step: int, *, prefix: str = FOREIGN) -> None:
    """Report a trial's values to the pruner; `Trial.report` refuses several objectives.

    The curve is stored in one user attribute, because intermediate values break Optuna's TPE sampler on studies with
    several objectives. On a trial without a study (FrozenTrial, FixedTrial) this does nothing.

    Args:
        trial: the running one.
        values: one per objective, in the order of the study's directions; None if not observed yet, so `(None, ratio)`
            at step 0 and `(accuracy, ratio)` from step 1 on.
        step: any whole number, increasing within the trial; a step reported twice keeps the last values.
        prefix: of the attributes' names; empty in `kdsearch`'s own studies.

    Raises:
        KdsearchError: the study has one objective.
        ValueError: the number of values is not that of the objectives, or the step is not a whole number.
    """
    study = getattr(trial, "study", None)
    if study is None:
        return
    settings.refuse_one_objective(study)
    expected = len(study.directions)
    if len(values) != expected:
        raise ValueError(f"values must hold one for each of the {expected} objectives (got {len(values)})")
    if not float(step).is_integer():
        raise ValueError(f"step must be a whole number (got {step})")
    attrs = trial.user_attrs
    curve = dict(attrs.get(prefix + Attr.CURVE, {}))
    if prefix and attrs.get(prefix + Attr.TRIAL) != trial.number:  # the first report, or a retry with copied attributes
        curve = {}
        trial.set_user_attr(prefix + Attr.TRIAL, trial.number)
    row = [None if value is None else float(value) for value in values]
    _check_order(study, curve, int(step), row)
    curve[str(int(step))] = row
    trial.set_user_attr(prefix + Attr.CURVE, curve)


def _check_order(study: Study, curve: dict[str, Any], step: int, row: list[float | None]) -> None:
    last = max(map(int, curve), default=step)
    before = curve.get(str(step))
    repeated = before is not None and any(a is not None and b != a and a == a for a, b in zip(before, row, strict=True))
    if step < last or repeated:
        got = f"{step} after {last}" if step < last else f"{step} twice"
        _warn_once(
            study,
            "steps",
            f"steps must count up within a trial (got {got}), else trials are not pruned in time; report each step "
            "once, with a counter that never starts over, such as the epoch",
        )


def should_prune(trial: BaseTrial, *, prefix: str = FOREIGN) -> bool:
    """Return whether the study's pruner calls the trial hopeless; `Trial.should_prune` refuses several objectives.

    Hopeless means that its best checkpoint is dominated and forecast to stay so. The reason is stored with the trial
    (attribute `kdsearch:pruned_by`). The caller raises `optuna.TrialPruned`. False on a trial without a study
    (FrozenTrial, FixedTrial). `prefix` is that of `report`.

    Raises:
        KdsearchError: several objectives change from step to step, or the study has one and a `ParetoPruner`.
    """
    found = _verdict(trial)
    if found.action == "prune" and found.reason is not None:
        trial.set_user_attr(prefix + Attr.PRUNED_BY, found.reason)
    return found.action == "prune"


def should_stop(trial: BaseTrial, *, prefix: str = FOREIGN) -> bool:
    """Return whether more steps would add nothing to the front, although the trial's best checkpoint is on it.

    The caller returns that checkpoint's values, so that the trial is COMPLETE and stays in `study.best_trials`. The
    step (attribute `kdsearch:stopped_at`) and the reason (`kdsearch:stopped_by`) are stored with the trial. False on a
    trial without a study. `prefix` is that of `report`.

    Raises:
        KdsearchError: several objectives change from step to step, or the study has one and a `ParetoPruner`.
    """
    found = _verdict(trial)
    if found.action == "stop" and found.reason is not None:
        trial.set_user_attr(prefix + Attr.STOPPED_AT, found.reason["step"])
        trial.set_user_attr(prefix + Attr.STOPPED_BY, found.reason)
    return found.action == "stop"


def _verdict(trial: BaseTrial) -> Verdict:
    study = getattr(trial, "study", None)
    if study is None:
        return GO
    verdict = getattr(study.pruner, "verdict", None)
    if verdict is None:
        _warn_of_pruner(study)
        frozen = study.get_trials(deepcopy=False)[trial.number]
        return Verdict("prune") if study.pruner.prune(study, frozen) else GO
    found: Verdict = verdict(study, trial)  # which reads the storage if it has to
    return found


def _warn_of_pruner(study: Study) -> None:
    """Warn that Optuna's own pruners need intermediate values, which studies with several objectives do not have."""
    kind = type(study.pruner)
    if len(study.directions) < 2:
        return
    if isinstance(study.pruner, NopPruner) or not kind.__module__.startswith("optuna.pruners"):
        return
    _warn_once(
        study,
        "pruner",
        f"the study's pruner is {kind.__name__}, which never prunes where there are several objectives; set "
        "`study.pruner = kdsearch.ParetoPruner()`, not wrapped in another pruner, after create_study and load_study",
    )


class ParetoPruner(BasePruner):
    """Stops trials that can no longer add enough to the front, on all objectives at once.

    For studies with two or more objectives of which one is observed step by step (an accuracy) and the others are known
    when the trial starts (a ratio); trials call `kdsearch.report`, `kdsearch.should_prune` and `kdsearch.should_stop`.
    The observed objective is the one whose values change within a trial, at any index; until one has changed, nothing
    is pruned.

    After each step, the most similar trials are selected: by parameters, known objectives and the error at the same
    step. The hypervolume per step that this trial would gain if its error fell as theirs did, and as much faster or
    slower as the trend over all whole trials says, is compared with what the study's recent trials gained per step. A
    trial whose gain is below a share `pace` of that, both on average and in an optimistic case, is not worth its steps
    (the marginal value theorem of foraging: Charnov, Theoretical Population Biology 1976). The required gain falls with
    the study's own, so the front's resolution has no floor.

    An audit measures whether pruning is right: some trials, drawn at random beforehand, are never pruned (attribute
    `kdsearch:audit`). In forecasts, one that would have been ended represents all that were; the more of them gained
    later, the more optimistic the forecast and the lower the required gain.

    Args:
        optimism: quantile, 0 to 1, of the neighbours' progress that is the optimistic case.
        neighbours: number of similar trials used.
        pace: share of the study's present gain per step that a trial must promise in the long run; 0: any gain is
            enough, from the start. The default is cautious; 1 ends more trials, for a study that is limited by steps or
            seconds and not by trials.
        max_steps: steps of a whole trial, or the name of the parameter that holds them; None: the longest curve seen.
        log: indices of the objectives on a log scale; None: none, and a known objective most of whose values lie near
            one end of its range is compared by rank.
        reference: reference point of the hypervolume, one value per objective in its own unit; None: slightly worse
            than the worst seen.
        ideal: the best possible value of the observed objective; None: slightly better than the best seen.
        exempt: name of a user attribute; trials that have it (with any value but None) are never pruned or stopped;
            None: `kdsearch:exempt`.
        audit: share of trials that are never pruned, one in each round(1 / share), twice that at the start; none are
            drawn while audited trials have taken more than a third of all steps. 0: none.
        seed: of the audit's draws.
        prefix: of the names of the attributes that the pruner writes.

    Without `log`, `reference` and `ideal`, units do not matter: any increasing affine map of an objective leaves every
    decision unchanged.

    A trial whose last observed value is NaN has diverged and is hopeless, unless a trial of the study has recovered
    from NaN before. Infeasible trials (Optuna's constraints) do not count as rivals.

    Raises:
        ValueError: a setting is not a number or outside its range.
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
        exempt: str | None = None,
        audit: float = 1 / 8,
        seed: int = 0,
        prefix: str = FOREIGN,
    ) -> None:
        if not 0 <= optimism <= 1:
            raise ValueError(f"optimism must be a quantile from 0 to 1 (got {optimism})")
        neighbours = settings.whole("neighbours", neighbours)
        if neighbours < 1 or not pace >= 0:
            raise ValueError(f"neighbours must be at least 1 and pace at least 0 (got {neighbours} and {pace})")
        if not 0 <= audit <= 1:
            raise ValueError(f"audit must be a share from 0 to 1 (got {audit})")
        self._optimism, self._neighbours, self._pace = optimism, neighbours, pace
        self._max_steps = settings.length(max_steps)
        self._units: dict[str, Any] = settings.units(log, reference, ideal)
        self._exempt = prefix + Attr.EXEMPT if exempt is None else exempt
        self._audit, self._seed, self._prefix = audit, settings.whole("seed", seed), prefix
        self._lock = threading.Lock()  # for study.optimize(n_jobs=...)
        self._forget(None)

    def _forget(self, study: Study | None) -> None:
        self._study = study
        self._history = History()
        self._said: dict[int, tuple[int, Verdict]] = {}  # by trial: step and verdict, repeated if asked again
        self._audits: dict[int, dict[str, Any]] = {}  # by trial: the stored record of its audit; empty: not audited

    def __getstate__(self) -> dict[str, Any]:
        forgotten = ("_lock", "_study", "_history", "_said", "_audits")
        return {key: value for key, value in vars(self).items() if key not in forgotten}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()
        self._forget(None)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return self.verdict(study, trial).action == "prune"

    def verdict(self, study: Study, trial: BaseTrial) -> Verdict:
        """Decide whether the trial goes on, and if not, why.

        Raises:
            KdsearchError: several objectives change from step to step, or the study has one.
            ValueError: `log` or `reference` does not fit the study's objectives.
        """
        settings.refuse_one_objective(study)
        curve = stored_curve(trial)
        if trial.user_attrs.get(self._exempt) is not None or not curve:
            return GO
        step = max(map(int, curve))
        with self._lock:
            if study is not self._study:
                settings.check_fit(len(study.directions), self._units["log"], self._units["reference"])
                self._forget(study)
            said = self._said.get(trial.number)
            if said is None or said[0] != step:
                self._history.update(study, trial.number)
                said = self._said[trial.number] = (step, self._audited(study, trial, step))
        return said[1]

    def audits(self, number: int) -> bool:
        """Return whether the trial of that number was drawn for the audit, before it starts."""
        return drawn(number, self._audit, self._seed)

    def _audited(self, study: Study, trial: BaseTrial, step: int) -> Verdict:
        """Return the verdict; store with a trial that is never pruned that it would have been ended."""
        if trial.number not in self._audits:
            self._audits[trial.number] = self._begin_audit(study, trial)
        audit = self._audits[trial.number]
        if not audit:
            return self._judge(study, step)
        if audit["would_end"] is None and self._judge(study, step).action != "go":
            audit["would_end"] = step
            self._store_audit(study, trial, audit)
        return GO

    def _begin_audit(self, study: Study, trial: BaseTrial) -> dict[str, Any]:
        """Return the record stored with an audited trial; empty for one that is not audited."""
        stored = trial.user_attrs.get(self._prefix + Attr.AUDIT)
        if isinstance(stored, dict) and stored.get("trial") == trial.number:
            return dict(stored)
        curves = self._history.curves()
        enough = curves.last[curves.audited].sum() > AUDIT_MOST * int(curves.last.sum())
        if enough or continued(trial) is not None or not self.audits(trial.number):
            return {}
        audit = {"trial": trial.number, "never_pruned": "drawn at random to check the pruner", "would_end": None}
        self._store_audit(study, trial, audit)
        return audit

    def _store_audit(self, study: Study, trial: BaseTrial, audit: dict[str, Any]) -> None:
        name = self._prefix + Attr.AUDIT
        if isinstance(trial, FrozenTrial):  # whose own method would store nothing
            study._storage.set_trial_user_attr(trial._trial_id, name, dict(audit))
        else:
            trial.set_user_attr(name, dict(audit))

    def _judge(self, study: Study, step: int) -> Verdict:
        history, own = self._history, self._history.own
        others, observed = history.curves(), history.observed
        if own is None or observed is None or not others.feasible.any():
            return GO
        if own.diverged and not history.recovers:
            why = f"at step {step}, its value is NaN, from which no trial recovered"
            return _ended(others, own, observed, {"step": step, "trials": [], "reason": why})
        if not len(own.steps):
            return GO
        point = forecast.own_point(history)
        if np.isnan(point).any():
            return GO  # a known objective that was never reported
        lowest = float(min(np.nanmin(others.best), own.best[0]))
        points = np.vstack([others.points, point])
        scale = make_scale(points, history.sign, observed, lowest=lowest, **self._units)
        self._warn_of_ideal(study, scale, others, own)
        last_step = self._length(own, others)
        hope = forecast.forecast(history, scale, last_step=last_step, neighbours=self._neighbours)
        if hope is None:
            return GO
        bar = forecast.demanded(history, self._pace) * forecast.pace(history, scale)
        mistaken = forecast.mistaken(history, scale, bar)
        optimistic = hope.quantile(1 - (1 - self._optimism) * (1 - mistaken))
        seen = np.vstack([others.points[others.feasible], point])
        everyone = scale.transform(seen)
        front = everyone[pareto.members(everyone)]
        nothing = NOTHING * pareto.volume(front, scale.reference)
        ends = not forecast.promise(history, scale, hope, front, optimistic) > max(bar * (1 - mistaken), nothing)
        self._warn_of_length(study, own, others, ends=ends)
        if not ends:
            return GO
        self._warn_of_reference(study, scale, seen, everyone)
        point[observed] = max(float(optimistic.max()), own.reported)
        return _no_hope(scale, others, own, point, int(hope.steps[-1]), step)

    def _length(self, own: Curve, others: Stack) -> int:
        longest = _longest(own, others)
        if isinstance(self._max_steps, str):
            return int(own.params.get(self._max_steps, longest))
        return longest if self._max_steps is None else self._max_steps

    def _warn_of_length(self, study: Study, own: Curve, others: Stack, *, ends: bool) -> None:
        """Warn of a name in `max_steps` that no trial has, not before that matters: other trials may have it."""
        name = self._max_steps
        if not isinstance(name, str) or name in self._history.distributions:
            return
        if ends or len(self._history.ended) >= NAMED_BY:
            _warn_once(
                study,
                "max_steps",
                f"max_steps must be the trials' last step or name a parameter that holds it (got {name!r}, which no "
                f"trial has so far), else the longest curve seen is used instead (now up to step "
                f"{_longest(own, others)}); correct the name, or give a number",
            )

    def _warn_of_ideal(self, study: Study, scale: Scale, others: Stack, own: Curve) -> None:
        """Warn of an `ideal` that a reported value is better than, by more than rounding."""
        told = self._units["ideal"]
        if told is None:
            return
        best = max(float(others.reported[:, scale.observed].max()), own.reported)
        if best - scale.ideal > LEAST_ERROR * scale.unit:
            _warn_once(
                study,
                "ideal",
                f"ideal must be the best possible value of the observed objective (got {told}, and a trial reported "
                f"{scale.sign[scale.observed] * best}), else good trials are ended; give a value that none can "
                "pass, or leave it out",
            )

    def _warn_of_reference(self, study: Study, scale: Scale, seen: Floats, everyone: Floats) -> None:
        """Warn, when a trial is ended, of a `reference` that none of the points (as reported, transformed) beats."""
        told = self._units["reference"]
        if told is None or (everyone > scale.reference).all(axis=1).any():
            return
        best = ", ".join(f"{value:g}" for value in scale.sign * seen.max(axis=0))
        _warn_once(
            study,
            "reference",
            f"reference must be worse than some trial in every objective (got {', '.join(f'{v:g}' for v in told)}, and "
            f"the best value seen of each is {best}), else no trial counts and most are ended; give the worst values "
            "that still matter, or leave it out",
        )


def _longest(own: Curve, others: Stack) -> int:
    return max(int(others.last.max()), int(own.steps[-1]))


def drawn(number: int, share: float, seed: int) -> bool:
    """Return whether a trial is drawn for the audit: one in each 1 / share trials, twice as often at first.

    Args:
        number: of the trial.
        share: of trials; 0: none.
        seed: of the draws, one for each block of trials.
    """
    if share <= 0:
        return False
    block = max(1, round(1 / share))
    if number < 2 * block:
        block = max(1, block // 2)
    random = np.random.default_rng([seed % 2**32, block, number // block])
    return int(random.integers(block)) == number % block


def _ended(others: Stack, own: Curve, observed: int, reason: dict[str, Any]) -> Verdict:
    """Return "stop" if the trial's best checkpoint, as reported, is on the front that Optuna shows, else "prune"."""
    reported = own.known.copy()
    reported[observed] = own.reported
    rivals = others.reported[others.feasible].tolist()
    on_front = len(own.steps) > 0 and not any(pareto.dominates(other, reported.tolist()) for other in rivals)
    return Verdict("stop" if on_front else "prune", reason)


def _no_hope(scale: Scale, others: Stack, own: Curve, hoped: Floats, at: int, step: int) -> Verdict:
    """End a trial that at a later step, `at`, may hope for the point `hoped`, which adds too little to the front."""
    beaten_by = others.number[(others.reported >= hoped).all(axis=1) & others.feasible].tolist()
    value = float(scale.sign[scale.observed] * hoped[scale.observed])
    named = ", ".join(map(str, beaten_by[:3])) + (f" and {len(beaten_by) - 3} more" if len(beaten_by) > 3 else "")
    would = f"not beat trial {named}" if beaten_by else "add too little for the steps it takes"
    why = f"at step {step}, it may hope for {value:.4g} by step {at}, which would {would}"
    reason = {"step": step, "at": at, "forecast": value, "trials": beaten_by, "reason": why}
    return _ended(others, own, scale.observed, reason)
