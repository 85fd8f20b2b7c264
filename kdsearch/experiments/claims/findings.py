"""What an experiment found: effects with intervals over paired seeds, and verdicts by margins fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kdsearch.stats import Interval, mean_interval

Verdict = Literal["confirmed", "refuted", "undecided", "not measured"]


@dataclass(frozen=True)
class Effect:
    """A difference in points between two arms, seed by seed, and what the claim says of it.

    Attributes:
        name: which arm minus which.
        values: points, one a seed.
        margin: the claim holds if the effect is above it.
        decides: whether the claim's verdict rests on it.
    """

    name: str
    values: Sequence[float]
    margin: float
    decides: bool = True

    @property
    def interval(self) -> Interval:
        """Mean over seeds, with Student's interval."""
        return mean_interval(self.values)

    @property
    def verdict(self) -> Verdict:
        """confirmed where the whole interval is above the margin, refuted where it is below, else undecided."""
        if self.interval.low > self.margin:
            return "confirmed"
        return "refuted" if self.interval.high < self.margin else "undecided"


def effect(name: str, arm: Sequence[float], control: Sequence[float], *, margin: float, decides: bool = True) -> Effect:
    """The effect of an arm against its control.

    Args:
        name: of the effect.
        arm, control: fractions, paired by seed.
        margin: in points.
        decides: see `Effect`.
    """
    return Effect(name, [100 * (a - b) for a, b in zip(arm, control, strict=True)], margin, decides)


@dataclass(frozen=True)
class Finding:
    """A claim and what came of it.

    Attributes:
        number: 1 to 9.
        claim: what the deck says.
        dataset: where it was tried: "digits", "mnist", "cifar10"; "exact" for the lemmas.
        experiment: arms, control and margin, in words.
        effects: of the experiment; none for the lemmas and where nothing was measured.
        said: what came of it, in words; empty where the effects say it all.
        arms: accuracies in percent by arm, one a seed, for the figure.
        decided: the verdict where no effect decides it.
        facts: other figures, for the JSON.
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

    @property
    def verdict(self) -> Verdict:
        """Refuted if any deciding effect is refuted, confirmed if all are confirmed, else undecided."""
        verdicts = {one.verdict for one in self.effects if one.decides}
        if self.decided is not None:
            verdicts.add(self.decided)
        if "not measured" in verdicts or not verdicts:
            return "not measured"
        if "refuted" in verdicts:
            return "refuted"
        return "confirmed" if verdicts == {"confirmed"} else "undecided"


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings as plain data; effects in points."""
    return [
        {
            "claim": one.number,
            "text": one.claim,
            "dataset": one.dataset,
            "experiment": one.experiment,
            "effects": [
                {
                    "name": effect.name,
                    "mean": effect.interval.mean,
                    "low": effect.interval.low,
                    "high": effect.interval.high,
                    "n": effect.interval.n,
                    "values": list(effect.values),
                    "margin": effect.margin,
                    "decides": effect.decides,
                    "verdict": effect.verdict,
                }
                for effect in one.effects
            ],
            "arms": {name: list(values) for name, values in one.arms.items()},
            "said": one.said,
            "facts": dict(one.facts),
            "verdict": one.verdict,
        }
        for one in findings
    ]
