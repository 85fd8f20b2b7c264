"""Lemmas 1 and 2 of the deck in exact arithmetic: small problems with known p*, all their samples enumerated.

Both lemmas are from Menon, Rawat, Reddi, Kim, Kumar, "A statistical perspective on distillation", ICML 2021. With a
sample S of N independent examples and a fixed f:

- true risk R = E_x[p*(x)' l(f(x))]
- empirical risk R^: the mean over S of l(y, f(x))
- Bayes-distilled risk R^_*: the mean over S of p*(x)' l(f(x))
- distilled risk R~: the mean over S of p_t(x)' l(f(x)), for a teacher p_t

Every number is a `Fraction`, so that equalities are exact. All risks are in the unit of the loss.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod

Table = tuple[tuple[Fraction, ...], ...]
Teachers = Sequence[tuple[Fraction, Table]]
Sample = tuple[tuple[int, int], ...]
Outcomes = Sequence[tuple[Fraction, Fraction]]


def table(rows: Iterable[Iterable[Fraction | int | str]]) -> Table:
    """Return (inputs, labels) fractions from numbers such as 2 or "1/3"."""
    return tuple(tuple(Fraction(value) for value in row) for row in rows)


def _check_chances(name: str, chances: Sequence[Fraction]) -> None:
    if not all(isinstance(chance, Fraction) for chance in chances):
        raise ValueError(f"{name} must be fractions (a float would make the lemmas' equalities approximate)")
    if any(chance < 0 for chance in chances):
        raise ValueError(f"{name} must not be negative (got {min(chances)})")
    if sum(chances) != 1:
        raise ValueError(f"{name} must sum to 1 (got {sum(chances)})")


@dataclass(frozen=True)
class Problem:
    """A finite problem with known p*, and the losses of one fixed f.

    Args:
        inputs: (inputs,), q(x).
        labels: (inputs, labels), p*(y|x).
        losses: (inputs, labels), l(y, f(x)), in any unit.

    Raises:
        ValueError: the shapes disagree, a value is no fraction, or a distribution has a negative value or a sum other
            than 1.
    """

    inputs: tuple[Fraction, ...]
    labels: Table
    losses: Table

    def __post_init__(self) -> None:
        _check_chances("the inputs' probabilities", self.inputs)
        self.check_table("p*", self.labels)
        self._check_shape("the losses", self.losses)
        if not all(isinstance(loss, Fraction) for row in self.losses for loss in row):
            raise ValueError("the losses must be fractions (a float would make the lemmas' equalities approximate)")

    def _check_shape(self, name: str, rows: Table) -> None:
        inputs, labels = len(self.inputs), len(self.labels[0]) if self.labels else 0
        if (got := [len(row) for row in rows]) != [labels] * inputs:
            raise ValueError(f"{name} must have {inputs} rows of {labels} labels (got rows of {got})")

    def check_table(self, name: str, rows: Table) -> None:
        """Raise ValueError unless a table is a distribution over the problem's labels at each of its inputs."""
        self._check_shape(name, rows)
        for x, row in enumerate(rows):
            _check_chances(f"{name} at input {x}", row)

    def mean(self, values: Sequence[Fraction]) -> Fraction:
        """Return E_x of (inputs,) values."""
        return _dot(self.inputs, values)

    def variance(self, values: Sequence[Fraction]) -> Fraction:
        """Return Var_x of (inputs,) values."""
        return variance(list(zip(self.inputs, values, strict=True)))

    def soft_losses(self, labels: Table) -> list[Fraction]:
        """Return (inputs,): p(x)' l(f(x)), the expected loss under a table of label distributions (inputs, labels)."""
        return [_dot(p, loss) for p, loss in zip(labels, self.losses, strict=True)]


def _dot(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def _distance(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    return sum(((x - y) ** 2 for x, y in zip(a, b, strict=True)), Fraction(0))


def _check_teachers(problem: Problem, teachers: Teachers) -> None:
    _check_chances("the teachers' probabilities", [chance for chance, _ in teachers])
    for _, labels in teachers:
        problem.check_table("a teacher", labels)


def true_risk(problem: Problem) -> Fraction:
    """Return R = E_x[p*(x)' l(f(x))]."""
    return problem.mean(problem.soft_losses(problem.labels))


def samples(problem: Problem, size: int) -> Iterator[tuple[Fraction, Sample]]:
    """Yield every possible sample of a size as (probability, ((x, y), ...)), in order of drawing.

    Raises:
        ValueError: the size is less than 1.
    """
    if size < 1:
        raise ValueError(f"a sample needs at least one example (got {size})")
    chances = {
        (x, y): q * p for x, q in enumerate(problem.inputs) for y, p in enumerate(problem.labels[x]) if q * p > 0
    }
    for sample in product(chances, repeat=size):
        yield prod((chances[example] for example in sample), start=Fraction(1)), sample


def empirical(problem: Problem, size: int) -> Outcomes:
    """Return (probability, R^) of every sample."""
    return [(chance, _average([problem.losses[x][y] for x, y in sample])) for chance, sample in samples(problem, size)]


def _average(losses: list[Fraction]) -> Fraction:
    return sum(losses, Fraction(0)) / len(losses)


def distilled(problem: Problem, teachers: Teachers, size: int) -> Outcomes:
    """Return (probability, R~) of every teacher and sample, drawn independently of one another.

    Args:
        teachers: (probability, (inputs, labels) table p_t) of each.
        size: N.

    Raises:
        ValueError: the teachers' probabilities or a teacher's table are no distributions.
    """
    _check_teachers(problem, teachers)
    outcomes = []
    for chance_teacher, labels in teachers:
        soft = problem.soft_losses(labels)
        for chance_sample, sample in samples(problem, size):
            outcomes.append((chance_teacher * chance_sample, _average([soft[x] for x, _ in sample])))
    return outcomes


def bayes_distilled(problem: Problem, size: int) -> Outcomes:
    """Return (probability, R^_*) of every sample: the only teacher is p* itself."""
    return distilled(problem, [(Fraction(1), problem.labels)], size)


def memorise(problem: Problem, sample: Sample) -> Table:
    """Fit a teacher to a sample: its label frequencies at each input, uniform where the sample lacks the input."""
    labels = len(problem.labels[0])
    rows = []
    for at in range(len(problem.inputs)):
        seen = [y for x, y in sample if x == at]
        rows.append([Fraction(seen.count(y), len(seen)) if seen else Fraction(1, labels) for y in range(labels)])
    return table(rows)


def memorising_teachers(problem: Problem, size: int) -> Teachers:
    """Return the distribution of the teacher that memorises a sample of that size."""
    chances: defaultdict[Table, Fraction] = defaultdict(Fraction)
    for chance, sample in samples(problem, size):
        chances[memorise(problem, sample)] += chance
    return [(chance, labels) for labels, chance in chances.items()]


def fitted(problem: Problem, size: int) -> Outcomes:
    """Return (probability, R~) of every sample distilled by the teacher that memorises it: the two are dependent.

    R~ then equals R^ on every sample, since the teacher's frequencies at x weight exactly the losses that S has there.
    """
    outcomes = []
    for chance, sample in samples(problem, size):
        soft = problem.soft_losses(memorise(problem, sample))
        outcomes.append((chance, _average([soft[x] for x, _ in sample])))
    return outcomes


def mean(outcomes: Outcomes) -> Fraction:
    """Return the expectation of a risk."""
    return sum((chance * risk for chance, risk in outcomes), Fraction(0))


def squared_error(outcomes: Outcomes, centre: Fraction) -> Fraction:
    """Return E[(risk - centre)^2]; about the true risk this is E[Delta^2]."""
    return sum((chance * (risk - centre) ** 2 for chance, risk in outcomes), Fraction(0))


def variance(outcomes: Outcomes) -> Fraction:
    """Return the variance of a risk."""
    return squared_error(outcomes, mean(outcomes))


def predicted_gap(problem: Problem, size: int) -> Fraction:
    """Return Var R^ - Var R^_* by Lemma 1: E_x[Var_{y|x} l(y, f(x))] / N."""
    given_input = [list(zip(p, row, strict=True)) for p, row in zip(problem.labels, problem.losses, strict=True)]
    return problem.mean([variance(losses) for losses in given_input]) / size


def is_label_irrelevant(problem: Problem) -> bool:
    """Whether l(., f(x)) is constant on the support of p*(x) at every possible x: Lemma 1's case of equality."""
    return all(
        len({loss for p, loss in zip(labels, losses, strict=True) if p > 0}) == 1
        for q, labels, losses in zip(problem.inputs, problem.labels, problem.losses, strict=True)
        if q > 0
    )


@dataclass(frozen=True)
class Bound:
    """The right-hand side of Lemma 2, by its terms.

    Args:
        variance: E_T Var_x[p_t' l] / N.
        bias: E_x |E_T p_t(x) - p*(x)|^2.
        spread: E_x tr Cov_T p_t(x).
        constant: c^2 = max over possible x of |l(f(x))|_2^2.
    """

    variance: Fraction
    bias: Fraction
    spread: Fraction
    constant: Fraction

    @property
    def total(self) -> Fraction:
        """Return E_T Var_x[p_t' l] / N + c^2 (bias + spread)."""
        return self.variance + self.constant * (self.bias + self.spread)


def bound(problem: Problem, teachers: Teachers, size: int) -> Bound:
    """Return Lemma 2's bound of E[Delta^2] for teachers independent of S; arguments and errors as in `distilled`.

    Given a teacher, E[Delta^2] is Var_x[p_t' l] / N plus the square of E_x[(p_t - p*)' l], which by Jensen and
    Cauchy-Schwarz is at most c^2 E_x|p_t - p*|^2; the expectation over teachers of that is bias plus spread.
    """
    _check_teachers(problem, teachers)
    bias, spread = [], []
    for x, truth in enumerate(problem.labels):
        centre = [sum((chance * p[x][y] for chance, p in teachers), Fraction(0)) for y in range(len(truth))]
        bias.append(_distance(centre, truth))
        spread.append(sum((chance * _distance(p[x], centre) for chance, p in teachers), Fraction(0)))
    return Bound(
        variance=sum((c * problem.variance(problem.soft_losses(p)) for c, p in teachers), Fraction(0)) / size,
        bias=problem.mean(bias),
        spread=problem.mean(spread),
        constant=max(_dot(row, row) for q, row in zip(problem.inputs, problem.losses, strict=True) if q > 0),
    )


def independent_variance(problem: Problem, teachers: Teachers, size: int) -> Fraction:
    """Return Var R~ for teachers independent of S: E_T Var_x[p_t' l] / N + Var_T E_x[p_t' l] (law of total variance).

    Arguments and errors as in `distilled`.
    """
    within = bound(problem, teachers, size).variance
    means = [(chance, problem.mean(problem.soft_losses(labels))) for chance, labels in teachers]
    return within + variance(means)


def _random_chances(source: random.Random, count: int) -> list[Fraction]:
    weights = [source.randint(0, 3) for _ in range(count)]
    weights[source.randrange(count)] += 1  # so that not all are 0
    return [Fraction(weight, sum(weights)) for weight in weights]


def random_problem(source: random.Random) -> tuple[Problem, Teachers]:
    """Return a problem of 1 to 3 inputs and 2 or 3 labels with 1 to 3 teachers; zeros and ties are frequent."""
    inputs, labels = source.randint(1, 3), source.randint(2, 3)

    def distributions() -> Table:
        return table(_random_chances(source, labels) for _ in range(inputs))

    losses = [[Fraction(source.randint(-3, 3), source.randint(1, 3)) for _ in range(labels)] for _ in range(inputs)]
    problem = Problem(tuple(_random_chances(source, inputs)), distributions(), table(losses))
    return problem, [(chance, distributions()) for chance in _random_chances(source, source.randint(1, 3))]


def coins(inputs: int, losses: tuple[int, int]) -> Problem:
    """Return a problem of equally likely inputs, a fair coin as label at each, and the same two losses at each.

    For unequal losses and enough inputs, a sample of 1 and the teacher that memorises it exceed Lemma 2's bound: the
    teacher is right (uniform) at every input except the one in S, the only one where it is used. For losses (0, 1),
    E[Delta^2] is 1/4 for any number n of inputs, and the bound as if S were another sample is 3 / (4n) - 1 / (4n^2).
    """
    return Problem((Fraction(1, inputs),) * inputs, table([["1/2", "1/2"]] * inputs), table([losses] * inputs))


BITS = Problem(  # log-loss in bits of f(x) = (1/2, 1/4, 1/4) and (1/4, 1/4, 1/2)
    (Fraction(1, 3), Fraction(2, 3)),
    table([["1/2", "1/4", "1/4"], [0, "1/3", "2/3"]]),
    table([[1, 2, 2], [2, 2, 1]]),
)
TIED = Problem(  # f has the same loss for each possible label of an input; the third input never occurs
    (Fraction(1, 2), Fraction(1, 2), Fraction(0)),
    table([["1/4", "3/4", 0], [0, 0, 1], ["1/3", "1/3", "1/3"]]),
    table([[2, 2, 1], [1, 2, 3], [1, 2, 3]]),
)
BITS_TEACHERS: Teachers = (  # one is overconfident at the first input, one is uninformed
    (Fraction(2, 3), table([[1, 0, 0], [0, "1/3", "2/3"]])),
    (Fraction(1, 3), table([["1/3", "1/3", "1/3"]] * 2)),
)
COINS_ZERO_ONE = coins(3, (0, 1))  # 0-1 loss of a classifier that always predicts the first label
COINS_LOG_LOSS = coins(11, (1, 2))  # log-loss of f(x) = (0.618, 0.382), in units of the golden ratio's logarithm
