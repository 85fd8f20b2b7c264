"""One dimension of a search space: a range, stages, a list of choices, or a fixed number or name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_serializer, model_validator

Number = int | float
MOST = 1e12  # beyond it numbers of steps overflow
Text = Annotated[str, Field(min_length=1, max_length=200)]


class Model(BaseModel):
    """Base of all parts of a study file: frozen, unknown keys refused, no conversion of types.

    Keys in `newer` are left out of a dump if they are None: definitions and fingerprints made before there were such
    keys stay valid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    newer: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _dumped(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if key not in self.newer or value is not None}


class Range(Model):
    """A closed interval to sample from: `{ low = 1.0, high = 20.0, log = true }`."""

    low: Annotated[Number, Field(ge=-MOST, le=MOST)]
    high: Annotated[Number, Field(ge=-MOST, le=MOST)]
    log: bool = False
    step: Annotated[Number, Field(ge=1e-9, le=MOST)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must not exceed high (got low = {self.low}, high = {self.high}); swap them")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a log range needs low > 0 and no step; raise low or drop log")
        if not self.holds(self.high):
            raise ValueError(f"step must divide the range (got {self.step} in {self.low} to {self.high}); move high")
        return self

    @property
    def integer(self) -> bool:
        """Whether whole numbers are sampled: both ends are written without a decimal point."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    def holds(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.integer and not isinstance(value, int):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-9


class Stages(Model):
    """A list of whole numbers, one per stage: the first at least 1, only zeros after a 0.

    `{ low = 0, high = 3, stages = 4 }` gives [2, 2, 0, 0] or [1, 3, 2, 1], never [0, ...] or [1, 0, 1, 0].
    """

    low: Annotated[int, Field(ge=0)]
    high: Annotated[int, Field(ge=1)]
    stages: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must not exceed high (got low = {self.low}, high = {self.high}); swap them")
        return self

    def holds(self, value: object) -> bool:
        if not isinstance(value, list | tuple) or len(value) != self.stages or not value[0]:
            return False
        inside = all(type(v) is int and self.low <= v <= self.high for v in value)
        return inside and all(b == 0 or a > 0 for a, b in itertools.pairwise(value))


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "stages" if "stages" in value else "range"
    if isinstance(value, Range | Stages):
        return type(value).__name__.lower()
    if isinstance(value, list):
        return "names" if value and isinstance(value[0], str) else "list"
    return "name" if isinstance(value, str) else "number"


KINDS = ("range", "stages", "list", "names", "number", "name")
Dimension = Annotated[
    Annotated[Range, Tag("range")]
    | Annotated[Stages, Tag("stages")]
    | Annotated[list[Number], Field(min_length=1), Tag("list")]
    | Annotated[list[Text], Field(min_length=1), Tag("names")]
    | Annotated[Number, Tag("number")]
    | Annotated[Text, Tag("name")],
    Discriminator(_kind),
]
"""A range, stages, a list of numbers or names to choose from, or a single number or name, which is not sampled."""


def dimension_holds(dimension: Dimension, value: object) -> bool:
    """Return whether a value may come from a dimension of the search space; 32.0 and true are no whole numbers."""
    if isinstance(dimension, Range | Stages):
        return dimension.holds(value)
    options = dimension if isinstance(dimension, list) else [dimension]
    fractions = any(isinstance(option, float) for option in options)  # then 1 and 1.0 are both meant as numbers
    kinds = {int, float} if fractions else {int, *map(type, options)}
    return value in options and type(value) in kinds


def ends(dimension: Dimension) -> Iterator[Number]:
    """Yield the least and largest value of a range, or all numbers of a list; nothing for stages and names."""
    if isinstance(dimension, Range):
        yield from (dimension.low, dimension.high)
    elif isinstance(dimension, list):
        yield from (value for value in dimension if not isinstance(value, str))
    elif not isinstance(dimension, Stages | str):
        yield dimension


def choices(dimension: Dimension) -> list[Number | str]:
    """Return the values of a list, or the one fixed value; the ends of a range; nothing for stages."""
    if isinstance(dimension, list):
        return list(dimension)
    return [dimension] if isinstance(dimension, str) else list(ends(dimension))


def largest(dimension: Dimension) -> Number:
    """Return the largest number of a dimension, for stages that of one; 0 for names."""
    return dimension.high if isinstance(dimension, Stages) else max(ends(dimension), default=0)


def is_whole(dimension: Dimension) -> bool:
    """Return whether all values of a dimension are whole numbers."""
    if isinstance(dimension, Range):
        return dimension.integer
    return all(float(value).is_integer() for value in ends(dimension))


def capped(dimension: Dimension, top: int) -> Dimension:
    """Return the part of a dimension of whole numbers that is at most `top`, or `top` if there is none."""
    if isinstance(dimension, list):
        below: list[Number] = [value for value in ends(dimension) if value <= top] or [top]
        return below
    if not isinstance(dimension, Range):
        return min(dimension, top) if isinstance(dimension, int | float) else dimension
    if dimension.low > top:
        return dimension.model_copy(update={"low": top, "high": top})
    high = min(dimension.high, top)
    steps = math.floor((high - dimension.low) / (dimension.step or 1))
    return dimension.model_copy(update={"high": dimension.low + steps * (dimension.step or 1)})


def nearest_below(dimension: Dimension, value: int) -> Any:
    """Return the largest whole number of a dimension that is at most `value`, else its smallest."""
    whole = list(ends(capped(dimension, value)))
    return max(whole) if dimension_holds(dimension, max(whole)) else min(ends(dimension))
