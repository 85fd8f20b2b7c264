"""Results of an experiment: effects with intervals over teachers, seeds and images, and verdicts by fixed margins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from kdsearch.stats import TWO_TESTS, Crossed, Interval, crossed, holm

Verdict = Literal["confirmed", "refuted", "undecided", "not measured", "not testable with this teacher"]
UNTESTABLE: Verdict = "not testable with this teacher"
LEVEL = 0.05  # significance level of a verdict, both directions together
CLAIMS = 9  # of the deck: verdicts are corrected for this many tests, whichever were run


@dataclass(frozen=True)
class Effect:
    """A difference in points between two arms, paired by teacher and seed, and the margin that the claim requires.

    Attributes:
        name: which arm minus which.
        values: points, one a pair, grouped by teacher.
        margin: the claim holds if the effect is above it.
        decides: whether the claim's verdict depends on it.
        teachers: number of teachers in the pairs.
        images_error: standard error over test images, points; 0: not known.
    """

    name: str
    values: Sequence[float]
    margin: float
    decides: bool = True
    teachers: int = 1
    images_error: float = 0.0

    @property
    def crossed(self) -> Crossed:
        """Return the mean with its error over teachers, seeds and test images."""
        return crossed(np.reshape(self.values, (self.teachers, -1)).tolist(), self.images_error)

    @property
    def interval(self) -> Interval:
        return self.crossed.interval()

    @property
    def equivalent(self) -> bool:
        """Whether two one-sided tests at 5 % each show the effect to be smaller than the margin either way."""
        inner = self.crossed.interval(TWO_TESTS)
        return -abs(self.margin) < inner.low and inner.high < abs(self.margin)

    @property
    def verdict(self) -> Verdict:
        """Return "confirmed" where the whole interval is above the margin, "refuted" below it, else "undecided"."""
        if self.interval.low > self.margin:
            return "confirmed"
        return "refuted" if self.interval.high < self.margin else "undecided"


def effect(name: str, arm: ArrayLike, control: ArrayLike, *, margin: float, decides: bool = True) -> Effect:
    """Return the effect of an arm against its control.

    Args:
        arm, control: (teachers, seeds, test images), each image's contribution to an accuracy, paired; a side with one
            teacher or one seed is broadcast. Or (seeds,), fractions: then there is no error over images.
        margin: in points.

    Raises:
        ValueError: the shapes do not fit.
    """
    left, right = (np.asarray(side, dtype=np.float64) for side in (arm, control))
    if left.ndim == right.ndim == 1:
        if left.shape != right.shape:
            raise ValueError(f"arm and control must be paired (got {len(left)} and {len(right)})")
        left, right = left[None, :, None], right[None, :, None]
    gaps = 100 * (left - right)
    over_images = gaps.mean(axis=(0, 1))
    images = len(over_images)
    error = float(over_images.std(ddof=1) / np.sqrt(images)) if images > 1 else 0.0
    values = gaps.mean(axis=2)
    return Effect(name, values.ravel().tolist(), margin, decides, teachers=len(values), images_error=error)


@dataclass(frozen=True)
class Finding:
    """A claim and its result.

    Attributes:
        claim: the deck's statement.
        dataset: "digits", "mnist" or "cifar10"; "exact" for the lemmas.
        experiment: arms, control and margin, in words.
        effects: of the experiment; none for the lemmas and where nothing was measured.
        said: the result in words; empty where the effects suffice.
        arms: accuracies in percent by arm, one a seed, for the figure.
        decided: the verdict where no effect decides it.
        facts: other figures, for the JSON.
        adjusted: p of its verdict after Holm's correction over the nine claims; None: no test, or not corrected yet.
    """

    number: int
    claim: str
    dataset: str
    experiment: str
    effects: Sequence[Effect] = ()
    said: str = ""
    arms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    decided: Verdict | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    adjusted: float | None = None

    @property
    def p(self) -> float | None:
        """Return p of the likelier verdict, counting both directions; None where no effect decides.

        Confirmed requires all effects above their margins, hence the largest p; refuted requires any below, hence the
        smallest times their number.
        """
        above = [one.crossed.above(one.margin) for one in self.effects if one.decides]
        if not above:
            return None
        refuted = min(1.0, len(above) * min(1 - p for p in above))
        return min(1.0, 2 * min(max(above), refuted))

    @property
    def verdict(self) -> Verdict:
        """Return "refuted" if any deciding effect is refuted, "confirmed" if all are confirmed, else "undecided".

        A verdict whose p exceeds 5 % after Holm's correction is undecided.
        """
        raw = self._uncorrected
        resting = self.adjusted is not None and self.adjusted > LEVEL and raw in ("confirmed", "refuted")
        return "undecided" if resting else raw

    @property
    def _uncorrected(self) -> Verdict:
        verdicts = {one.verdict for one in self.effects if one.decides}
        if self.decided is not None:
            verdicts.add(self.decided)
        if "not measured" in verdicts or not verdicts:
            return "not measured"
        if UNTESTABLE in verdicts:
            return UNTESTABLE
        if "refuted" in verdicts:
            return "refuted"
        return "confirmed" if verdicts == {"confirmed"} else "undecided"


def corrected(findings: Sequence[Finding]) -> list[Finding]:
    """Apply Holm's correction over the nine claims; findings without a test stay unchanged."""
    tested = {index: p for index, one in enumerate(findings) if (p := one.p) is not None}
    adjusted = dict(zip(tested, holm(list(tested.values()), tests=CLAIMS), strict=True))
    return [replace(one, adjusted=adjusted.get(index)) for index, one in enumerate(findings)]


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Convert findings to plain data; effects are in points."""
    return [
        {
            "claim": one.number,
            "text": one.claim,
            "dataset": one.dataset,
            "experiment": one.experiment,
            "effects": [
                {
                    "name": effect.name,
                    **asdict(effect.interval),
                    "values": list(effect.values),
                    "margin": effect.margin,
                    "decides": effect.decides,
                    "verdict": effect.verdict,
                    "equivalent": effect.equivalent,
                    "teachers": effect.teachers,
                    "images_error": effect.images_error,
                }
                for effect in one.effects
            ],
            "arms": {name: list(values) for name, values in one.arms.items()},
            "said": one.said,
            "facts": dict(one.facts),
            "p_adjusted": one.adjusted,
            "verdict": one.verdict,
        }
        for one in findings
    ]
