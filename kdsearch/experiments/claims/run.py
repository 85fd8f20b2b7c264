"""Test the claims one after another."""

from __future__ import annotations

from collections.abc import Sequence

from optuna import Study

from kdsearch import storage
from kdsearch.errors import KdsearchError
from kdsearch.experiments.claims import from_slides, theory
from kdsearch.experiments.claims.arms import EXPERIMENTS
from kdsearch.experiments.claims.findings import Finding, corrected
from kdsearch.experiments.claims.lab import Lab

CLAIMS = range(1, 10)


def choose(only: str | None) -> list[int]:
    """Return the claims' numbers.

    Args:
        only: numbers separated by commas; None: all nine.

    Raises:
        KdsearchError: one is not a number from 1 to 9.
    """
    words = [str(number) for number in CLAIMS] if only is None else [word.strip() for word in only.split(",")]
    wrong = [word for word in words if word not in {str(number) for number in CLAIMS}]
    if wrong:
        raise KdsearchError("--only must name claims 1 to 9", got=", ".join(wrong), remedy="give numbers as 1,4")
    return sorted({int(word) for word in words})


def slides_of_cifar10(url: str) -> Study | None:
    """Return the study that `kdsearch slides --dataset cifar10` stored, if it exists.

    Raises:
        StorageError: the storage cannot be reached.
    """
    backend = storage.open_storage(url, log=False)
    name = "slides-cifar10"
    return storage.load_study(backend, name) if name in storage.study_names(backend) else None


def run(lab: Lab, numbers: Sequence[int], *, cifar10_rows: Study | None) -> list[Finding]:
    """Test claims in their order.

    Args:
        lab: trains the students.
        numbers: of the claims.
        cifar10_rows: the slides' rows on CIFAR-10, if measured.

    Raises:
        KdsearchError: a training diverged.

    Returns:
        The findings, with verdicts corrected for nine claims.
    """
    on_cifar10 = {one.number: one for one in from_slides.findings(cifar10_rows)}
    lemmas = {5: theory.claim_5, 6: theory.claim_6}
    found: list[Finding] = []
    lab.progress.study_started(0, None)
    for number in numbers:
        if number in lemmas:
            found.append(lemmas[number](seed=0))
            continue
        found.append(EXPERIMENTS[number](lab))
        if number in on_cifar10:
            found.append(on_cifar10[number])
    return corrected(found)
