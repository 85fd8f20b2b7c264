"""A Progress that remembers what it was told."""

from __future__ import annotations

from kdsearch.records import Config, EpochRecord, Progress


class Recorder(Progress):
    """Keeps every call.

    Attributes:
        warnings: their texts.
        teachers: (family, epochs) of each teacher whose training began.
        shares: of the teacher's training that were over.
        totals: (done, total, unit) of each start of a study.
        started: (number, anchor) of each trial.
        epochs: (number, epoch) of each epoch.
        finished: (number, state, counted) of each trial.
        lines: the texts of finished trials.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.teachers: list[tuple[str, int]] = []
        self.shares: list[float] = []
        self.totals: list[tuple[int, int | None, str]] = []
        self.started: list[tuple[int, str | None]] = []
        self.epochs: list[tuple[int, int]] = []
        self.finished: list[tuple[int, str, bool]] = []
        self.lines: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def teacher_started(self, family: str, epochs: int) -> None:
        self.teachers.append((family, epochs))

    def teacher_batch(self, done: float) -> None:
        self.shares.append(done)

    def study_started(self, done: int, total: int | None, unit: str = "trials") -> None:
        self.totals.append((done, total, unit))

    def trial_started(self, number: int, anchor: str | None, config: Config) -> None:
        self.started.append((number, anchor))

    def trial_epoch(self, number: int, record: EpochRecord, epochs: int) -> None:
        self.epochs.append((number, record.epoch))

    def trial_finished(self, number: int, state: str, text: str, *, counted: bool) -> None:
        self.finished.append((number, state, counted))
        self.lines.append(text)
