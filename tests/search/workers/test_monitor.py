from __future__ import annotations

import math

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdsearch.records import Attr, Config, EpochRecord, Progress
from kdsearch.search.workers.loop import describe
from kdsearch.search.workers.supervisor import Monitor

COMPLETE, FAIL, PRUNED, RUNNING = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING
CONFIG = {"width": 8, "epochs": 3}
SCORES = {Attr.ACCURACY: 0.9, Attr.TEST_ACCURACY: 0.875, Attr.BEST_EPOCH: 2, Attr.RATIO: 12.5, Attr.CONFIG: CONFIG}
SAID = "accuracy 90.00% (test 87.50%) at epoch 2"


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.all: list[tuple] = []

    def trial_started(self, number: int, anchor: str | None, config: Config) -> None:
        self.all.append(("started", number, anchor, config))

    def trial_epoch(self, number: int, record: EpochRecord, epochs: int) -> None:
        assert math.isnan(record.loss)  # a storage does not hold it yet
        self.all.append(("epoch", number, record.epoch, record.accuracy, epochs))

    def trial_finished(self, number: int, state: str, text: str, *, counted: bool) -> None:
        self.all.append(("finished", number, state, text, counted))

    def new(self) -> list[tuple]:
        """What came since the last time."""
        found, self.all = self.all, []
        return found


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(directions=["maximize"] * 2)


def curve(epochs: int) -> dict[str, list[float | None]]:
    return {"0": [None, 12.5]} | {str(epoch): [0.5 + epoch / 10, 12.5] for epoch in range(1, epochs + 1)}


def trial(state: TrialState, epochs: int = 0, **attrs: object) -> FrozenTrial:
    values = [0.9, 12.5] if state == COMPLETE else None
    return create_trial(state=state, values=values, user_attrs={Attr.CURVE: curve(epochs), **attrs})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (trial(FAIL, fail_reason="no memory"), "no memory"),
        (trial(FAIL, 2, **SCORES), "no reason stored"),
        (trial(PRUNED, pruned_by={"reason": "too slow"}), "not trained: too slow"),
        (trial(PRUNED), "not trained: refused by the pruner"),
        (trial(COMPLETE, 3, **SCORES), f"{SAID} of 3/3, ratio 12.5"),
        (trial(PRUNED, 2, **SCORES), f"{SAID} of 2/3, ratio 12.5"),
    ],
)
def test_an_outcome_in_a_few_words(given: FrozenTrial, text: str):
    assert describe(given) == text


def test_epochs_that_a_trial_took_over_from_a_checkpoint_are_not_told_again(study: optuna.Study):
    told = Told()
    monitor = Monitor(study, told)
    study.add_trial(trial(RUNNING, 3, **{Attr.CONFIG: CONFIG, Attr.RESUMED: 2}))
    monitor.look()
    assert [event[:3] for event in told.new()] == [("started", 0, None), ("epoch", 0, 3)]


def test_a_trial_is_told_as_it_begins_trains_and_ends_each_thing_once(study: optuna.Study):
    told = Told()
    monitor = Monitor(study, told)
    running = study.ask()
    monitor.look()
    assert told.new() == []  # its configuration is not chosen yet
    running.set_user_attr(Attr.ANCHOR, "m1")
    running.set_user_attr(Attr.CONFIG, CONFIG)
    monitor.look()
    assert told.new() == [("started", 0, "m1", CONFIG)]
    running.set_user_attr(Attr.CURVE, curve(2))
    monitor.look()
    monitor.look()
    assert told.new() == [("epoch", 0, 1, 0.6, 3), ("epoch", 0, 2, 0.7, 3)]
    for name, value in SCORES.items():
        running.set_user_attr(name, value)
    running.set_user_attr(Attr.CURVE, curve(3))
    study.tell(running, [0.9, 12.5])
    assert [found.number for found in monitor.look()] == [0]
    monitor.look()
    text = f"{SAID} of 3/3, ratio 12.5"
    assert told.new() == [("epoch", 0, 3, 0.8, 3), ("finished", 0, "COMPLETE", text, True)]
    assert monitor.finished == 1


def test_what_ended_before_the_watch_is_not_told_and_what_ran_then_is(study: optuna.Study):
    told = Told()
    study.add_trials([trial(COMPLETE, 2, **SCORES), trial(FAIL), trial(RUNNING, 1, **SCORES)])
    monitor = Monitor(study, told)
    monitor.look()
    assert told.new() == [("started", 2, None, CONFIG), ("epoch", 2, 1, 0.6, 3)]
    assert monitor.finished == 0


def test_trials_that_begin_and_end_between_two_looks_are_told_whole_and_only_those_that_count_are_counted(
    study: optuna.Study,
):
    told = Told()
    monitor = Monitor(study, told)
    study.add_trials(
        [
            trial(PRUNED, 1, **SCORES),
            trial(PRUNED, **SCORES),  # before its first epoch
            trial(FAIL, 1, **SCORES, fail_reason="the loss"),
            trial(FAIL, fail_reason="died before it chose"),
            create_trial(state=TrialState.WAITING, user_attrs={Attr.CONFIG: CONFIG}),
        ]
    )
    monitor.look()
    found = told.new()
    assert [each[:2] for each in found] == [
        ("started", 0), ("epoch", 0), ("finished", 0), ("started", 1), ("finished", 1), ("started", 2), ("epoch", 2),
        ("finished", 2), ("finished", 3),
    ]  # fmt: skip
    assert [(each[2], each[4]) for each in found if each[0] == "finished"] == [
        ("PRUNED", True), ("PRUNED", False), ("FAIL", False), ("FAIL", False)
    ]  # fmt: skip
    assert [each[3] for each in found if each[:2] == ("finished", 3)] == ["died before it chose"]
    assert monitor.finished == 1
    monitor.look()
    assert told.new() == []
