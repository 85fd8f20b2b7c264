"""Lemmas 1 and 2 of the deck: evidence for a report, from exact arithmetic and from a simulated larger problem.

`kdsearch.experiments.claims.lemmas` has the definitions. Simulated losses are in nats.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from kdsearch.experiments.claims import lemmas
from kdsearch.experiments.claims.lemmas import Problem, Teachers
from kdsearch.stats import NORMAL

SIZES = (10, 30, 100, 300)
INPUTS, LABELS = 40, 10  # of a simulated problem
DRAWS = 4000  # with 1000 the intervals are sometimes too short: squares are skewed
LARGE_SAMPLE = 1000  # examples that the better of the independent teachers is fitted on
SMOOTHING = 0.1  # added to each label's count: with ten labels, one example in total for each input
AGREES = 4.0  # standard errors: with a 95 % interval one row in twenty would disagree with a correct formula

EMPIRICAL = "variance of the empirical risk"
BAYES = "variance of the Bayes-distilled risk"
GAP = "difference of the two variances"
LARGE = f"squared error, teacher fitted on {LARGE_SAMPLE} other examples"
TWIN = "squared error, teacher fitted on N other examples"
OWN = "squared error, teacher fitted on S itself"
MEMORISED = "squared error, teacher that memorises S"
FITTED = (OWN, MEMORISED)

Floats = NDArray[np.float64]
Numbers = dict[str, Fraction]
"""The exact numbers of an example, by what they are."""


@dataclass(frozen=True)
class World:
    """A finite problem in floating point, for sampling.

    Args:
        inputs: (inputs,), q(x).
        labels: (inputs, labels), p*(y|x).
        losses: (inputs, labels), l(y, f(x)).
    """

    inputs: Floats
    labels: Floats
    losses: Floats

    @property
    def risk(self) -> float:
        """Return R = E_x[p*(x)' l(f(x))]."""
        return float(self.inputs @ (self.labels * self.losses).sum(axis=1))


@dataclass(frozen=True)
class Row:
    """One simulated quantity at one sample size.

    Args:
        quantity: what was estimated, in words.
        size: N.
        estimate: mean over the draws.
        low, high: its 95 % interval (normal approximation: 1.96 standard errors of the mean over draws).
        expected: value of the formula. For a teacher fitted on S, the formula as if another sample had been used.
        bound: Lemma 2's bound, likewise; None where there is none.
    """

    quantity: str
    size: int
    estimate: float
    low: float
    high: float
    expected: float
    bound: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the formula's value is within 4 standard errors of the estimate."""
        return abs(self.estimate - self.expected) <= AGREES * (self.high - self.low) / (2 * NORMAL)


def make_world(generator: np.random.Generator) -> World:
    """Return a random problem: p* a softmax, f a softmax half like it, l the log-loss, unequal input probabilities."""
    logits = generator.normal(0.0, 2.0, (INPUTS, LABELS))
    other = 0.5 * logits + generator.normal(0.0, 1.0, (INPUTS, LABELS))
    inputs = generator.normal(0.0, 0.5, INPUTS)
    return World(softmax(inputs), softmax(logits, axis=-1), -np.log(softmax(other, axis=-1)))


def draw(generator: np.random.Generator, world: World, size: int, draws: int) -> Floats:
    """Return (draws, inputs, labels): counts of each example in each sample; risks do not depend on the order."""
    chances = (world.inputs[:, None] * world.labels).ravel()
    counts = generator.multinomial(size, chances / chances.sum(), size=draws)
    return counts.reshape(draws, *world.labels.shape).astype(np.float64)


def fit(counts: Floats, smoothing: float) -> Floats:
    """Return (draws, inputs, labels): each sample's label frequencies after adding a constant to every count.

    Smoothing 0 gives the maximum-likelihood teacher, which memorises S and is uniform at inputs that S lacks.
    """
    raised = counts + smoothing
    totals = raised.sum(axis=2, keepdims=True)
    return np.where(totals > 0, raised / np.where(totals > 0, totals, 1.0), 1.0 / counts.shape[2])


def distilled_risks(world: World, counts: Floats, teachers: Floats) -> Floats:
    """Return (draws,): R~ of each sample under its teacher; teachers (draws or 1, inputs, labels)."""
    shares = counts.sum(axis=2)
    risks: Floats = (shares * (teachers * world.losses).sum(axis=2)).sum(axis=1) / shares.sum(axis=1)
    return risks


def _row(quantity: str, size: int, values: Floats, expected: float, bound: float | None = None) -> Row:
    estimate, error = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    return Row(quantity, size, estimate, estimate - NORMAL * error, estimate + NORMAL * error, expected, bound)


def _deviations(risks: Floats) -> Floats:
    """Return (draws,): squared deviations whose mean is the unbiased estimate of the variance."""
    squares: Floats = (risks - risks.mean()) ** 2 * (len(risks) / (len(risks) - 1))
    return squares


def simulate_variances(generator: np.random.Generator, world: World, size: int, draws: int) -> list[Row]:
    """Simulate Lemma 1 at sample size N: Var R^, Var R^_* and, on the same samples, their difference."""
    first = (world.labels * world.losses).sum(axis=1)
    within = float(world.inputs @ ((world.labels * world.losses**2).sum(axis=1) - first**2)) / size
    between = float(world.inputs @ (first - world.risk) ** 2) / size
    counts = draw(generator, world, size, draws)
    empirical = _deviations((counts * world.losses).sum(axis=(1, 2)) / size)
    bayes = _deviations(distilled_risks(world, counts, world.labels[None]))
    return [
        _row(EMPIRICAL, size, empirical, between + within),
        _row(BAYES, size, bayes, between),
        _row(GAP, size, empirical - bayes, within),
    ]


def _if_independent(world: World, teachers: Floats, size: int) -> tuple[float, float]:
    """Return E[Delta^2] and Lemma 2's bound for an S independent of the drawn teachers (draws, inputs, labels)."""
    soft = (teachers * world.losses).sum(axis=2)
    means = soft @ world.inputs
    variances = ((soft - means[:, None]) ** 2) @ world.inputs / size
    # |E p_t - p*|^2 + tr Cov p_t is E|p_t - p*|^2
    distance = float((((teachers - world.labels) ** 2).sum(axis=2) @ world.inputs).mean())
    constant = float((world.losses**2).sum(axis=1)[world.inputs > 0].max())
    expected = float((variances + (means - world.risk) ** 2).mean())
    return expected, float(variances.mean()) + constant * distance


def simulate_errors(generator: np.random.Generator, world: World, size: int, draws: int) -> list[Row]:
    """Simulate Lemma 2 at sample size N: E[Delta^2] for teachers fitted on other examples, and for two fitted on S.

    Teachers are label frequencies with 0.1 added to every count (0 for the one that memorises); each draw has a fresh
    sample and fresh teachers. The formula and the bound average over those same teachers, so they have a sampling
    error too, smaller than that of the estimate.
    """
    counts = draw(generator, world, size, draws)
    teachers = {
        LARGE: fit(draw(generator, world, LARGE_SAMPLE, draws), SMOOTHING),
        TWIN: fit(draw(generator, world, size, draws), SMOOTHING),
        OWN: fit(counts, SMOOTHING),
        MEMORISED: fit(counts, 0.0),
    }
    rows = []
    for quantity, tables in teachers.items():
        errors = (distilled_risks(world, counts, tables) - world.risk) ** 2
        rows.append(_row(quantity, size, errors, *_if_independent(world, tables, size)))
    return rows


@dataclass(frozen=True)
class LemmaOne:
    """Evidence for Lemma 1.

    Args:
        problems: number of random problems enumerated.
        ties: those of them where the two variances are equal.
        all_equal: whether in each, exactly, both means are R and the difference of variances is the formula's, which is
            0 if and only if no label matters.
        bits, tied: of two examples, `lemmas.BITS` and `lemmas.TIED`.
        rows: the simulation's.
        holds: whether all were equal, every row agrees, and each simulated difference has its interval above 0.
    """

    problems: int
    ties: int
    all_equal: bool
    bits: Numbers
    tied: Numbers
    rows: tuple[Row, ...]
    holds: bool


@dataclass(frozen=True)
class LemmaTwo:
    """Evidence for Lemma 2.

    Args:
        problems: number of random problems enumerated, with random teachers independent of the sample.
        all_within: whether in each E[Delta^2] is at most the bound, exactly.
        all_equal: whether in each Var R~ is E_T Var_x[p_t' l] / N + Var_T E_x[p_t' l], exactly.
        closest: the greatest of their E[Delta^2] / bound.
        bits: of an example with independent teachers, `lemmas.BITS`.
        fitted: of two examples whose teacher memorises S, `lemmas.COINS_ZERO_ONE` and `COINS_LOG_LOSS`; formula and
            bound as if it had been fitted on another sample.
        exceeded: whether in one of these E[Delta^2] is above that bound.
        rows: the simulation's; those in `FITTED` have a teacher fitted on S.
        holds: whether the lemma held for independent teachers, exactly and in every simulated row.
    """

    problems: int
    all_within: bool
    all_equal: bool
    closest: float
    bits: Numbers
    fitted: tuple[Numbers, Numbers]
    exceeded: bool
    rows: tuple[Row, ...]
    holds: bool


def _variances(problem: Problem, size: int) -> Numbers:
    empirical, bayes = lemmas.empirical(problem, size), lemmas.bayes_distilled(problem, size)
    return {
        "true risk": lemmas.true_risk(problem),
        "mean of the empirical risk": lemmas.mean(empirical),
        "mean of the Bayes-distilled risk": lemmas.mean(bayes),
        EMPIRICAL: lemmas.variance(empirical),
        BAYES: lemmas.variance(bayes),
        GAP: lemmas.variance(empirical) - lemmas.variance(bayes),
        "formula": lemmas.predicted_gap(problem, size),
    }


def lemma_one(seed: int, *, problems: int = 100, sizes: Sequence[int] = SIZES, draws: int = DRAWS) -> LemmaOne:
    """Enumerate random problems and the named ones, and simulate a larger one at each of the sizes N."""
    source, generator = random.Random(seed), np.random.default_rng(seed)
    ties, all_equal = 0, True
    for _ in range(problems):
        problem, _ = lemmas.random_problem(source)
        risk, mean, bayes_mean, _, _, gap, formula = _variances(problem, source.randint(1, 3)).values()
        ties += gap == 0
        all_equal &= mean == bayes_mean == risk and gap == formula
        all_equal &= (gap == 0) == lemmas.is_label_irrelevant(problem)
    world = make_world(generator)
    rows = tuple(row for size in sizes for row in simulate_variances(generator, world, size, draws))
    simulated = all(row.agrees and (row.low > 0 or row.quantity != GAP) for row in rows)
    bits, tied = _variances(lemmas.BITS, 2), _variances(lemmas.TIED, 2)
    return LemmaOne(problems, ties, all_equal, bits, tied, rows, all_equal and simulated)


def _errors(problem: Problem, teachers: Teachers, size: int, outcomes: lemmas.Outcomes) -> Numbers:
    return {
        "variance of the distilled risk": lemmas.variance(outcomes),
        "formula": lemmas.independent_variance(problem, teachers, size),
        "mean squared error": lemmas.squared_error(outcomes, lemmas.true_risk(problem)),
        "bound": lemmas.bound(problem, teachers, size).total,
    }


def _independent(problem: Problem, teachers: Teachers, size: int) -> Numbers:
    return _errors(problem, teachers, size, lemmas.distilled(problem, teachers, size))


def _fitted(problem: Problem, size: int) -> Numbers:
    return _errors(problem, lemmas.memorising_teachers(problem, size), size, lemmas.fitted(problem, size))


def lemma_two(seed: int, *, problems: int = 60, sizes: Sequence[int] = SIZES, draws: int = DRAWS) -> LemmaTwo:
    """Test Lemma 2 as `lemma_one` does Lemma 1, with random teachers and with teachers that memorise S."""
    source, generator = random.Random(seed), np.random.default_rng(seed)
    checked = [_independent(*lemmas.random_problem(source), source.randint(1, 3)) for _ in range(problems)]
    all_within = all(found["mean squared error"] <= found["bound"] for found in checked)
    all_equal = all(found["variance of the distilled risk"] == found["formula"] for found in checked)
    fitted = _fitted(lemmas.COINS_ZERO_ONE, 1), _fitted(lemmas.COINS_LOG_LOSS, 1)
    world = make_world(generator)
    rows = tuple(row for size in sizes for row in simulate_errors(generator, world, size, draws))
    lawful = [row for row in rows if row.quantity not in FITTED]
    shares = [float(found["mean squared error"] / found["bound"]) for found in checked if found["bound"]]
    return LemmaTwo(
        problems=problems,
        all_within=all_within,
        all_equal=all_equal,
        closest=max(shares, default=0),
        bits=_independent(lemmas.BITS, lemmas.BITS_TEACHERS, 2),
        fitted=fitted,
        exceeded=any(numbers["mean squared error"] > numbers["bound"] for numbers in fitted),
        rows=rows,
        holds=all_within and all_equal and all(row.agrees and row.high <= (row.bound or 0) for row in lawful),
    )
