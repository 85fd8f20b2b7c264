"""One trial: a configuration, its ratio before training, its epochs, its best checkpoint."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import takewhile

from optuna import Study, Trial, TrialPruned
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.distil.checkpoint import Checkpoint
from kdsearch.distil.precision import trained_in
from kdsearch.distil.train import Run, State
from kdsearch.pruning import pruner
from kdsearch.records import Attr, Config, EpochRecord, Progress, Timing
from kdsearch.search import failures, space
from kdsearch.search.budget import REST, Clock, epochs_run
from kdsearch.search.resuming import PausedTrials, resumed
from kdsearch.search.weights import Keeper
from kdsearch.search.workshop import Workshop
from kdsearch.system import machine

MAX_REFUSED_IN_A_ROW = 100  # by the pruner, before training; the next trial is then trained, so that a study ends


@dataclass
class Best:
    """The best validated checkpoint so far: the first epoch with the highest accuracy."""

    accuracy: float = -1.0
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def see(self, record: EpochRecord, student: nn.Module) -> None:
        if record.accuracy > self.accuracy:
            self.accuracy, self.epoch = record.accuracy, record.epoch
            self.weights = copy.deepcopy(student.state_dict())


@dataclass
class StudentTraining:
    """A trial's training in progress."""

    run: Run  # yields the remaining epochs
    best: Best = field(default_factory=Best)
    records: list[EpochRecord] = field(default_factory=list)  # with those before an interruption

    def state_dict(self) -> State:
        """Return the state between two epochs from which the training can resume."""
        records = [dataclasses.asdict(record) for record in self.records]
        return {"run": self.run.state_dict(), "best": vars(self.best), "records": records}


class Objective:
    """The objective that Optuna calls for a trial: returns (validation accuracy, inference ratio).

    Args:
        workshop: what all trials share.
        seed: of the study; a trial's training is seeded from (seed, trial number). None: a fresh seed per trial.
        progress: receives the epochs.
        cut: called after each epoch, returns why a spent budget ends the trial now; None: it goes on.
        clock: counts the time.
        keeper: keeps the weights of trials on the front.
        paused: keeps the checkpoints of trials that the pruner ends, and has those that are resumed; None: no trial is.
    """

    def __init__(
        self,
        workshop: Workshop,
        *,
        seed: int | None,
        progress: Progress,
        cut: Callable[[Trial], str | None] = lambda trial: None,
        clock: Clock | None = None,
        keeper: Keeper | None = None,
        paused: PausedTrials | None = None,
    ) -> None:
        self._workshop, self._seed, self._progress, self._cut = workshop, seed, progress, cut
        self._clock, self._keeper, self._paused = clock or Clock(), keeper, paused

    def __call__(self, trial: Trial) -> tuple[float, float]:
        """Run the trial; store the reason of an error before raising it.

        Raises:
            TrialPruned: the pruner called it hopeless, or it added nothing to the complete trial that it resumed.
            BrokenDeviceError: the GPU does not answer any more; no reason was stored, for the trial is to be run again.
        """
        try:
            return self._run(trial)
        except TrialPruned:
            raise
        except Exception as error:
            failures.note(trial, error, self._workshop.device)
            raise

    def _run(self, trial: Trial) -> tuple[float, float]:
        workshop = self._workshop
        config = space.draw(trial, workshop.spec)
        number = resumed(trial)
        before = None if number is None else trial.study.get_trials(deepcopy=False)[number]
        seed = self._seed_for(trial, config) if before is None else before.user_attrs[Attr.SEED]
        self._progress.trial_started(trial.number, trial.user_attrs.get(Attr.ANCHOR), config)
        trial.set_user_attr(Attr.CONFIG, config)
        trial.set_user_attr(Attr.SEED, seed)
        failures.refuse(trial, config)
        student = workshop.build(config, seed)
        trial.set_user_attr(Attr.PARAMETERS, networks.parameters(student))
        trial.set_user_attr(Attr.BYTES, networks.size_bytes(student))
        trial.set_user_attr(Attr.PRECISION, trained_in(student, workshop.device, workshop.precision))
        timing = self._time(trial, student, config)
        pruner.report(trial, (None, timing.ratio), 0, prefix="")
        may_refuse = before is None and refused_in_a_row(trial) < MAX_REFUSED_IN_A_ROW
        if may_refuse and self._judged(pruner.should_prune, trial):
            raise TrialPruned  # before its first epoch
        kept = workshop.checkpoint(config, seed, self._progress.warning)
        with workshop.gate.working():
            best, hopeless = self._train(trial, student, config, seed, timing.ratio, kept)
            student.load_state_dict(best.weights)
            with self._clock.spent_on("scoring"):
                test, counts = workshop.test_with_teacher(student)
        trial.set_user_attr(Attr.TEST_ACCURACY, test)
        trial.set_user_attr(Attr.AGAINST_TEACHER, counts.stored())
        workshop.keep(told=self._progress.warning)
        kept.remove()
        if hopeless or (before is not None and _adds_nothing(trial, before, best)):
            raise TrialPruned
        if self._keeper is not None:
            self._keeper.sweep(trial.study)
            self._keeper.keep(trial, best.weights, (best.accuracy, timing.ratio))
        return best.accuracy, timing.ratio

    def _seed_for(self, trial: Trial, config: Config) -> int:
        """Return the trial's seed, or that of the handed-back trial that it repeats if its checkpoint is here."""
        for seed in handed_back_seeds(trial):
            if self._workshop.checkpoint(config, seed, self._progress.warning).path.is_file():
                return seed
        return machine.fresh_seed() if self._seed is None else machine.derive_seed("trial", self._seed, trial.number)

    def _time(self, trial: Trial, student: nn.Module, config: Config) -> Timing:
        """Return the ratio for the search: the first sitting of this architecture, taken now if there is none."""
        workshop = self._workshop
        key = workshop.timing_key(config)
        timing = known_timing(trial.study, key)
        if timing is not None:
            _keep(trial, key, timing)
            return timing
        with self._clock.spent_on("timing"), workshop.quiet():
            # another worker may have timed this architecture while this one waited
            timing = known_timing(trial.study, key) or workshop.measure(student)
            _keep(trial, key, timing)
        return timing

    def _train(
        self, trial: Trial, student: nn.Module, config: Config, seed: int, ratio: float, kept: Checkpoint
    ) -> tuple[Best, bool]:
        """Train until the end, a prune or a stop; return the best checkpoint and whether the trial is hopeless."""
        training = self._begin(trial, student, config, seed, ratio, kept)
        best, records = training.best, training.records
        hopeless = False
        with closing(training.run):
            for record in self._epochs(training.run):
                records.append(record)
                best.see(record, student)
                pruner.report(trial, (record.accuracy, ratio), record.epoch, prefix="")
                self._progress.trial_epoch(trial.number, record, config["epochs"])
                if record.epoch < config["epochs"]:
                    hopeless = self._judged(pruner.should_prune, trial)
                    if hopeless or self._judged(pruner.should_stop, trial):
                        if self._paused is not None and trial.user_attrs.get(Attr.RESUMES) is None:
                            self._paused.keep(trial.number, training.state_dict())
                        break
                    if self._is_cut(trial, record.epoch):
                        break
                kept.keep(training.state_dict, record.seconds)
        trial.set_user_attr(Attr.LOSSES, [record.loss for record in records])
        trial.set_user_attr(Attr.TRAIN_SECONDS, sum(record.seconds for record in records))
        trial.set_user_attr(Attr.ACCURACY, best.accuracy)
        trial.set_user_attr(Attr.BEST_EPOCH, best.epoch)
        return best, hopeless

    def _begin(
        self, trial: Trial, student: nn.Module, config: Config, seed: int, ratio: float, kept: Checkpoint
    ) -> StudentTraining:
        """Begin a training, or go on from the checkpoint of a handed-back or an ended trial, with its curve."""

        def begin(state: State | None) -> StudentTraining:
            if state is None:
                return StudentTraining(self._workshop.teach(student, config, seed))
            best, records = Best(**state["best"]), [EpochRecord(**each) for each in state["records"]]
            return StudentTraining(self._workshop.teach(student, config, seed, state["run"]), best, records)

        before, source = trial.user_attrs.get(Attr.RESUMES), kept
        if before is not None and self._paused is not None and not kept.path.is_file():
            source = self._paused.checkpoint(before)
        training = source.resume(begin, self._workshop.device)
        done = len(training.records)
        if done:
            trial.set_user_attr(Attr.RESUMED, done)
            if source is kept:
                self._progress.resumed(f"trial {trial.number}", done, config["epochs"])
            else:
                at = f"epoch {done + 1} of {config['epochs']}"
                self._progress.note(f"trial {trial.number} resumes trial {before} at {at}")
        for record in training.records:
            pruner.report(trial, (record.accuracy, ratio), record.epoch, prefix="")
        return training

    def _epochs(self, records: Run) -> Iterator[EpochRecord]:
        """Yield the epochs of a training and count their time; what is not training is validation."""
        gate = self._workshop.gate
        while True:
            before, paused = self._clock.seconds["training"], gate.paused
            with self._clock.spent_on("training"):
                record = next(records, None)
            if record is None:
                return
            waited = gate.paused - paused
            self._clock.move(waited, "training", REST)
            self._clock.move(record.asking, "training", "asking the teacher")
            record = dataclasses.replace(record, seconds=max(0.0, record.seconds - waited))
            self._clock.move(self._clock.seconds["training"] - before - record.seconds, "training", "scoring")
            yield record

    def _judged(self, rule: Callable[..., bool], trial: Trial) -> bool:
        with self._clock.spent_on("search"):
            return rule(trial, prefix="")

    def _is_cut(self, trial: Trial, epoch: int) -> bool:
        """Return whether a spent budget ends the trial here with its best checkpoint; store the reason."""
        reason = self._cut(trial)
        if reason is not None:
            trial.set_user_attr(Attr.STOPPED_AT, epoch)
            trial.set_user_attr(Attr.STOPPED_BY, {"step": epoch, "reason": reason})
        return reason is not None


def _keep(trial: Trial, key: str, timing: Timing) -> None:
    trial.set_user_attr(Attr.TIMING, dataclasses.asdict(timing))
    trial.set_user_attr(Attr.TIMING_KEY, key)
    trial.set_user_attr(Attr.RATIO, timing.ratio)
    trial.set_user_attr(Attr.RATIO_LOW, timing.low)
    trial.set_user_attr(Attr.RATIO_HIGH, timing.high)


def _adds_nothing(trial: Trial, before: FrozenTrial, best: Best) -> bool:
    """Return whether a trial is no better than the complete one that it resumed; store so, as the reason of its end.

    Then it ends PRUNED, so that their common checkpoint stands on the front once.
    """
    if before.state != TrialState.COMPLETE or best.accuracy > before.values[0]:
        return False
    why = f"no epoch since was better than trial {before.number}, which it resumed"
    trial.set_user_attr(Attr.PRUNED_BY, {"step": epochs_run(trial), "trials": [before.number], "reason": why})
    return True


def handed_back_seeds(trial: Trial) -> Iterator[int]:
    """Yield the seeds of the handed-back trials that a trial repeats, the latest first."""
    trials = trial.study.get_trials(deepcopy=False)
    number, seen = trial.user_attrs.get(Attr.RETRY_OF), {trial.number}
    while isinstance(number, int) and 0 <= number < len(trials) and number not in seen:
        seen.add(number)
        found = trials[number].user_attrs
        if isinstance(found.get(Attr.SEED), int):
            yield found[Attr.SEED]
        number = found.get(Attr.RETRY_OF)


def refused_in_a_row(trial: Trial) -> int:
    """Return how many trials just before this one were pruned before their first epoch; running ones do not count."""
    earlier = reversed(trial.study.get_trials(deepcopy=False)[: trial.number])
    ended = (other for other in earlier if other.state.is_finished())
    refused = takewhile(lambda other: other.state == TrialState.PRUNED and epochs_run(other) == 0, ended)
    return sum(1 for _ in refused)


def known_timing(study: Study, key: str) -> Timing | None:
    """Return the timing that the first trial with this key stored, or None."""
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get(Attr.TIMING_KEY) == key:
            return Timing(**trial.user_attrs[Attr.TIMING])
    return None
