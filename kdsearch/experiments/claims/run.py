"""Test the claims one after another; claims 2 and 3 also from the rows that `kdsearch slides` stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from optuna import Study

from kdsearch import storage
from kdsearch.errors import KdsearchError
from kdsearch.experiments.claims.arms import EXPERIMENTS, percent
from kdsearch.experiments.claims.findings import Finding, corrected, effect
from kdsearch.experiments.claims.lab import MARGIN, SEEDS, Lab
from kdsearch.experiments.slides.run import KIND, stored
from kdsearch.records import Attr, StudyAttr


def choose(only: str | None) -> list[int]:
    """Return the claims' numbers.

    Args:
        only: numbers separated by commas; None: all nine.

    Raises:
        KdsearchError: one is not a number from 1 to 9.
    """
    known = [str(number) for number in EXPERIMENTS]
    words = known if only is None else [word.strip() for word in only.split(",")]
    wrong = [word for word in words if word not in known]
    if wrong:
        raise KdsearchError("--only must name claims 1 to 9", got=", ".join(wrong), remedy="give numbers as 1,4")
    return sorted({int(word) for word in words})


def slides_of_cifar10(url: str) -> Study | None:
    """Return the study that `kdsearch slides --dataset cifar10` stored, if it exists; a search of that name is none.

    Raises:
        StorageError: the storage cannot be reached.
    """
    path, name = storage.file_of(url), "slides-cifar10"
    if path is not None and not path.exists():
        return None
    backend = storage.open_storage(url, log=False)
    if name not in storage.study_names(backend):
        return None
    study = storage.load_study(backend, name)
    return study if study.user_attrs.get(StudyAttr.KIND) == KIND else None


def run(lab: Lab, numbers: Sequence[int], *, cifar10_rows: Study | None) -> list[Finding]:
    """Test claims in their order; return the findings, with verdicts corrected for nine claims.

    Args:
        lab: trains the students.
        numbers: of the claims.
        cifar10_rows: the slides' rows on CIFAR-10, if measured.

    Raises:
        KdsearchError: a training diverged.
    """
    on_cifar10 = findings_on_cifar10(cifar10_rows)
    found: list[Finding] = []
    lab.progress.study_started(0, None)
    for number in numbers:
        found.append(EXPERIMENTS[number](lab))
        found += [one for one in on_cifar10 if one.number == number]
    return corrected(found)


ROWS = ("c5", "c7", "c8", "c9")
TEXTS = {
    2: "With the KD loss the ideal student gains on the full training set (77.6 against 75.8).",
    3: "It gains more on the reduced training set (61.2 against 56.0): a teacher makes up for missing data.",
}
OF_SLIDES = {
    2: f"Rows c5 and c7 by the deck's recipe, paired by seed: c5 more than {MARGIN:g} points better.",
    3: f"Rows c8 and c9 against c5 and c7: (c8 - c9) - (c5 - c7) more than {MARGIN:g} points.",
}


def cifar10_accuracies(study: Study | None) -> dict[str, list[float]]:
    """Return the rows' test accuracies, a fraction for each repeat that all four have; none unless at full size."""
    definition = {} if study is None else study.user_attrs.get(StudyAttr.DEFINITION, {})
    limits = definition.get("max_epochs"), definition.get("width"), definition.get("data", {}).get("train_size")
    there = {} if study is None or limits != (None, None, None) else stored(study)
    repeats = sorted({repeat for _, _, repeat in there})
    whole = [r for r in repeats if all((row, "stated", r) in there for row in ROWS)]
    return {row: [there[row, "stated", repeat].user_attrs[Attr.TEST_ACCURACY] for repeat in whole] for row in ROWS}


def findings_on_cifar10(study: Study | None) -> list[Finding]:
    """Return claims 2 and 3 on CIFAR-10; "not measured" with fewer than five repeats of the four rows."""
    found = cifar10_accuracies(study)
    repeats = len(found["c5"])
    if repeats < SEEDS:
        said = f"The storage holds {repeats} of the {SEEDS} repeats of rows c5, c7, c8 and c9 that a verdict needs."
        return [Finding(n, TEXTS[n], "cifar10", OF_SLIDES[n], said=said, decided="not measured") for n in TEXTS]
    gain = effect("c5 - c7", found["c5"], found["c7"], margin=MARGIN)
    few, full = np.subtract(found["c8"], found["c9"]), np.subtract(found["c5"], found["c7"])
    more = effect("(c8 - c9) - (c5 - c7)", few, full, margin=MARGIN)
    arms = {row: percent(values) for row, values in found.items()}
    return [
        Finding(2, TEXTS[2], "cifar10", OF_SLIDES[2], [gain], arms={row: arms[row] for row in ("c5", "c7")}),
        Finding(3, TEXTS[3], "cifar10", OF_SLIDES[3], [more], arms=arms),
    ]
