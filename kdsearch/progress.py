"""What a long piece of work tells whoever watches; the command line shows it, a library user may ignore it."""

from __future__ import annotations

from kdsearch.records import Config, EpochRecord


class Progress:
    """Receives what happens; this base class ignores it all."""

    def warning(self, text: str) -> None:
        """A line that must not be missed."""

    def note(self, text: str) -> None:
        """A line that is good to know."""

    def teacher_started(self, family: str, epochs: int) -> None:
        """A teacher's training begins."""

    def teacher_batch(self, done: float) -> None:
        """A share `done` of the teacher's training is over."""

    def teacher_finished(self, accuracy: float, seconds: float) -> None:
        """A teacher stands, with its test accuracy."""

    def study_started(self, done: int, total: int | None, unit: str = "trials") -> None:
        """A study that holds `done` (finished) "trials", "epochs" or "runs" goes on to `total`; None: for a time."""

    def study_finished(self, spent: str) -> None:
        """A run is over; `spent` says where its time went: "training 94 %, timing 3 %"."""

    def trial_started(self, number: int, anchor: str | None, config: Config) -> None:
        """A trial begins."""

    def trial_epoch(self, number: int, record: EpochRecord, epochs: int) -> None:
        """A trial finished an epoch."""

    def trial_finished(self, number: int, state: str, text: str, *, counted: bool) -> None:
        """A trial ended; `counted` tells whether it is one of the study's finished trials."""
