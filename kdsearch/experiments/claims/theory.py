"""Claims 5 and 6, the lemmas: in exact arithmetic on problems with a known p*(x), and by simulation."""

from __future__ import annotations

import dataclasses
from typing import Any

from kdsearch.experiments.claims.findings import Finding, Verdict
from kdsearch.experiments.claims.simulation import (
    BAYES,
    EMPIRICAL,
    FITTED,
    LARGE,
    MEMORISED,
    OWN,
    TWIN,
    Example,
    Row,
    lemma_one,
    lemma_two,
)


def _verdict(holds: bool) -> Verdict:
    return "confirmed" if holds else "refuted"


def _rows(rows: tuple[Row, ...]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(row) for row in rows]


def _number(example: Example, name: str) -> str:
    """Format an example's number as a fraction and in decimals."""
    number = next(number for number in example.numbers if number.name == name)
    return f"{number.exact} ({number.value:.4g})"


def claim_5(seed: int) -> Finding:
    """Test Lemma 1: the Bayes-distilled risk has no larger variance than the empirical one."""
    found = lemma_one(seed)
    bits, tied = found.examples
    return Finding(
        5,
        "Lemma 1: Var[Bayes-distilled risk] <= Var[empirical risk], with equality where the loss is the same for every "
        "label in the support of p*(x).",
        "exact",
        f"All samples of {found.problems} random finite problems enumerated in fractions, and a problem of 40 inputs "
        "and 10 labels simulated. Control: the identity Var R^ - Var R^_* = E_x[Var_{y|x} l] / N, which must hold "
        "exactly.",
        said=(
            f"The identity {'holds' if found.all_equal else 'fails'} in exact arithmetic, and the gap is 0 where the "
            f"lemma says so ({found.ties} problems). Example: Var R^ = {_number(bits, EMPIRICAL)}, "
            f"Var R^_* = {_number(bits, BAYES)}; with losses that no label changes both are "
            f"{_number(tied, EMPIRICAL)}. Both risks have the same mean, so the deck's words 'Bayes's risk is lesser' "
            "hold for the variance only."
        ),
        decided=_verdict(found.holds),
        facts={"all_equal": found.all_equal, "problems": found.problems, "simulated": _rows(found.rows)},
    )


def claim_6(seed: int) -> Finding:
    """Test Lemma 2: the distilled risk's squared error is bounded by variance, bias and spread of the teacher."""
    found = lemma_two(seed)
    (bits,), fitted = found.examples, found.fitted[0]
    own = [row for row in found.rows if row.quantity in FITTED]
    beyond = sum(row.estimate > (row.bound or 0) for row in own)
    return Finding(
        6,
        "Lemma 2: E[(distilled risk - true risk)^2] <= "
        "Var[p_t(x)' l(f(x))] / N + O(|E[p_t(x)] - p*(x)|^2 + Var[p_t(x)]).",
        "exact",
        f"All teachers and samples of {found.problems} random finite problems enumerated in fractions, and a larger "
        "problem simulated. Control: teachers trained independently of the sample, for which the bound must hold with "
        "the constant c^2 = sup |l(f(x))|^2, against teachers fitted on the sample itself.",
        said=(
            f"With independent teachers the bound {'holds' if found.all_within else 'fails'} in exact arithmetic (at "
            f"the closest, the error is {found.closest:.0%} of it; example: {_number(bits, 'mean squared error')} "
            f"under {_number(bits, 'bound')}). "
            "A teacher fitted on the sample itself breaks the variance identity: one that memorises it gives the "
            f"empirical risk back, with all its variance ({_number(fitted, 'variance of the distilled risk')} "
            f"where the formula says {_number(fitted, 'formula')}), and its error is "
            f"{_number(fitted, 'mean squared error')} beside a bound of {_number(fitted, 'bound')} taken as if it were "
            "independent. In the simulation "
            f"{beyond} of {len(own)} such errors are beyond that bound."
        ),
        decided=_verdict(found.holds),
        facts={
            "all_within": found.all_within, "all_equal": found.all_equal, "problems": found.problems,
            "closest": found.closest, "exceeded_by_a_fitted_teacher": found.exceeded, "simulated": _rows(found.rows),
        },
    )  # fmt: skip


SHOWN = {
    5: (EMPIRICAL, BAYES),
    6: (LARGE, TWIN, OWN, MEMORISED),
}
"""The quantities that the figures of the two lemmas show against N."""
