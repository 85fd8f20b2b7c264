"""Claims 2 and 3 on CIFAR-10, from the rows that `kdsearch slides --dataset cifar10` stored."""

from __future__ import annotations

from optuna import Study

from kdsearch.experiments.claims.arms import percent
from kdsearch.experiments.claims.findings import Finding, effect
from kdsearch.experiments.claims.lab import MARGIN, SEEDS
from kdsearch.experiments.slides.run import stored
from kdsearch.records import Attr, StudyAttr

ROWS = ("c5", "c7", "c8", "c9")
TEXTS = {
    2: "With the KD loss the ideal student gains on the full training set (77.6 against 75.8).",
    3: "It gains more on the reduced training set (61.2 against 56.0): a teacher makes up for missing data.",
}
EXPERIMENTS = {
    2: f"Rows c5 and c7 by the deck's recipe, paired by seed: c5 more than {MARGIN:g} points better.",
    3: f"Rows c8 and c9 against c5 and c7: (c8 - c9) - (c5 - c7) more than {MARGIN:g} points.",
}


def accuracies(study: Study | None) -> dict[str, list[float]]:
    """Return the rows' test accuracies, a fraction for each repeat that all four have; empty unless at full size.

    Args:
        study: of `kdsearch slides --dataset cifar10` at the deck's size, or None.
    """
    if study is None:
        return {}
    definition = study.user_attrs.get(StudyAttr.DEFINITION, {})
    scaled = any(definition.get(key) is not None for key in ("max_epochs", "width"))
    if scaled or definition.get("data", {}).get("train_size") is not None:
        return {}
    there = stored(study)
    repeats = sorted({repeat for _, _, repeat in there})
    whole = [r for r in repeats if all((row, "stated", r) in there for row in ROWS)]
    return {
        row: [there[row, "stated", repeat].user_attrs[Attr.TEST_ACCURACY] for repeat in whole] for row in ROWS if whole
    }


def findings(study: Study | None) -> list[Finding]:
    """Return claims 2 and 3 on CIFAR-10; "not measured" with fewer than five repeats of the four rows."""
    found = accuracies(study)
    if len(found.get("c5", [])) < SEEDS:
        repeats = len(found.get("c5", []))
        said = f"The storage holds {repeats} of the {SEEDS} repeats of rows c5, c7, c8 and c9 that a verdict needs."
        return [Finding(n, TEXTS[n], "cifar10", EXPERIMENTS[n], said=said, decided="not measured") for n in TEXTS]
    gain = effect("c5 - c7", found["c5"], found["c7"], margin=MARGIN)
    few = [a - b for a, b in zip(found["c8"], found["c9"], strict=True)]
    full = [a - b for a, b in zip(found["c5"], found["c7"], strict=True)]
    more = effect("(c8 - c9) - (c5 - c7)", few, full, margin=MARGIN)
    arms = {row: percent(values) for row, values in found.items()}
    return [
        Finding(2, TEXTS[2], "cifar10", EXPERIMENTS[2], [gain], arms={row: arms[row] for row in ("c5", "c7")}),
        Finding(3, TEXTS[3], "cifar10", EXPERIMENTS[3], [more], arms=arms),
    ]
