from __future__ import annotations

import io

import pytest
from rich.console import Console

from kdsearch.cli.progress import ConsoleProgress, front_table
from kdsearch.records import EpochRecord


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(shown: io.StringIO) -> ConsoleProgress:
    return ConsoleProgress(Console(file=shown, width=200))


def run_a_trial(progress: ConsoleProgress, *, epochs: int, counted: bool) -> None:
    progress.trial_started(3, "m1", {"epochs": epochs})
    for epoch in range(1, epochs + 1):
        progress.trial_epoch(3, EpochRecord(epoch, 0.1, 0.5, 1.0), epochs)
    progress.trial_finished(3, "COMPLETE" if counted else "FAIL", "accuracy 50 %", counted=counted)


@pytest.mark.parametrize(
    ("start", "line", "total", "counted", "completed"),
    [
        ((2, 9, "trials"), "the study holds 2 finished trials; going on to 9", 9, True, 3),
        ((2, 9, "trials"), "the study holds 2 finished trials; going on to 9", 9, False, 2),
        ((20, 90, "epochs"), "the study holds 20 epochs of training; going on to 90", 90, True, 24),
        ((20, 90, "epochs"), "the study holds 20 epochs of training; going on to 90", 90, False, 24),
        ((2, None, "trials"), "the study holds 2 finished trials; going on", None, True, 3),
    ],
)
def test_the_bar_counts_finished_trials_or_epochs(progress, shown, start, line, total, counted, completed):
    progress.study_started(*start)
    assert shown.getvalue() == f"{line}\n"
    run_a_trial(progress, epochs=4, counted=counted)
    (bar,) = progress._bars.tasks
    assert (bar.total, bar.completed, bar.description) == (total, completed, start[2])
    assert bar.fields["now"] == ""


def test_a_new_study_starts_without_a_word_and_each_trial_has_its_line(progress, shown):
    progress.study_started(0, 9)
    run_a_trial(progress, epochs=1, counted=True)
    assert shown.getvalue() == "trial 3 (m1)   complete  accuracy 50 %\n"


def test_a_log_is_not_silent_for_longer_than_a_minute(progress, shown, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("kdsearch.cli.progress.time.monotonic", lambda: clock[0])
    progress.line("begins")
    progress.teacher_started("resnet50", 30)
    progress.study_started(0, 9)
    progress.trial_started(3, "c5", {})
    for epoch, clock[0] in enumerate((59.0, 61.0, 100.0, 130.0), start=1):
        progress.trial_epoch(3, EpochRecord(epoch, 0.1, 0.5, 1.0), 4)
    clock[0] = 200.0
    progress.teacher_batch(0.25)
    assert shown.getvalue().splitlines()[2:] == [
        "trial 3 (c5): epoch 2/4, accuracy 50.00%",
        "trial 3 (c5): epoch 4/4, accuracy 50.00%",
        "teacher: 25% of its training",
    ]


def test_the_front_says_after_which_epoch_each_value_was_taken(progress, shown):
    member = {
        "trial": 7, "anchor": None, "ratio": 20.0, "ratio_low": None, "ratio_high": None, "accuracy": 0.5,
        "test_accuracy": None, "params": {"width": 8},
    }  # fmt: skip
    front = [{**member, "best_epoch": 13}, {**member, "best_epoch": None}]
    progress.console.print(front_table({"study": "digits", "hypervolume": 1.5, "front": front}))
    assert "epoch" in shown.getvalue()
    rows = [line for line in shown.getvalue().splitlines() if "50.00%" in line]
    assert "13" in rows[0]
    assert "None" not in rows[1]


def test_a_front_of_numbers_that_are_not_finite_is_shown_without_them():
    member = {"trial": 1, "anchor": None, "ratio": None, "ratio_low": None, "ratio_high": None, "accuracy": None}
    member |= {"test_accuracy": None, "best_epoch": None, "params": {"width": 8}}
    out = io.StringIO()
    Console(file=out, width=200).print(front_table({"study": "s", "hypervolume": None, "front": [member]}))
    assert "width 8" in out.getvalue()
