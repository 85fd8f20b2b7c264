"""A study file (TOML), read, checked and frozen: data, teacher, student family, search space, anchors."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from kdsearch.errors import StudyFileError
from kdsearch.records import Config

Number = int | float


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Range(_Model):
    """An interval to sample from, both ends included: `{ low = 1.0, high = 20.0, log = true }`."""

    low: Number
    high: Number
    log: bool = False
    step: Annotated[Number, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low must not exceed high (got low = {self.low}, high = {self.high}); swap them")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("a log range needs low > 0 and no step; raise low or drop log")
        return self

    @property
    def integer(self) -> bool:
        """Whether whole numbers are sampled: both ends are written without a decimal point."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    def holds(self, value: object) -> bool:
        """Whether the value may come from this range."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.integer and value != int(value):
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-9


class Stages(_Model):
    """A list of whole numbers, one a stage: the first at least 1, nothing after a 0.

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
        """Whether the value is a list that these stages allow."""
        if not isinstance(value, list | tuple) or len(value) != self.stages or not value[0]:
            return False
        inside = all(isinstance(v, int) and (self.low <= v <= self.high) for v in value)
        return inside and all(b == 0 or a > 0 for a, b in itertools.pairwise(value))


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "stages" if "stages" in value else "range"
    if isinstance(value, Range | Stages):
        return type(value).__name__.lower()
    return "list" if isinstance(value, list) else "number"


KINDS = ("range", "stages", "list", "number")
Dimension = Annotated[
    Annotated[Range, Tag("range")]
    | Annotated[Stages, Tag("stages")]
    | Annotated[list[Number], Field(min_length=1), Tag("list")]
    | Annotated[Number, Tag("number")],
    Discriminator(_kind),
]
"""A range, stages, a list to choose from, or one number: then it is fixed and not sampled."""


def dimension_holds(dimension: Dimension, value: object) -> bool:
    """Whether a value may come from a dimension of the search space."""
    if isinstance(dimension, Range | Stages):
        return dimension.holds(value)
    return value in dimension if isinstance(dimension, list) else value == dimension


class Augment(_Model):
    """Views of a training image: mirrored or not, shifted by up to `shift` pixels each way (zeros come in)."""

    flip: bool = False
    shift: Annotated[int, Field(ge=0, le=8)] = 0


class Recipe(_Model):
    """How a network is trained: optimiser, rate and its schedule, augmentation.

    With `lr_batch`, `lr` is the rate for batches of that size: at another, sgd's is scaled with the size (Goyal et al.,
    arXiv 1706.02677) and adam's with its square root (Malladi et al., arXiv 2205.10287). Without that, a search over
    batch sizes is a search over rates.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    lr_batch: Annotated[int, Field(ge=1)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "onecycle"] = "constant"
    augment: Augment = Augment()

    def rate_for(self, batch_size: int) -> float:
        """The learning rate for batches of a size."""
        if self.lr_batch is None:
            return self.lr
        scale = batch_size / self.lr_batch
        return self.lr * (scale if self.optimizer == "sgd" else scale**0.5)


class TeacherRecipe(Recipe):
    """A teacher's recipe says its length too; the softmax is of logits / temperature, in training as after it."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0)] = 1.0


class DataSpec(_Model):
    """The data set and its fixed split."""

    name: str
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    split_seed: int = 0
    image_size: Annotated[int, Field(ge=4)] | None = None
    train_size: Annotated[int, Field(ge=1)] | None = None


class TeacherSpec(_Model):
    """The teacher's family, seed and recipe, or ready weights."""

    family: str
    seed: int = 0
    weights: str | None = None
    recipe: TeacherRecipe


class StudentSpec(_Model):
    """The students' family and recipe."""

    family: str
    recipe: Recipe = Recipe()


class LatencySpec(_Model):
    """How inference is timed: images a batch, and threads on a CPU."""

    batch: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)] = 1


class Published(_Model):
    """What a slide says of a row: accuracy in percent, teacher time / student time, seconds of training."""

    accuracy: Annotated[Number, Field(ge=0, le=100)]
    ratio: Annotated[Number, Field(gt=0)]
    seconds: Annotated[Number, Field(gt=0)]


class Anchor(BaseModel):
    """A configuration of the slides: it is run first and never pruned."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    published: Published | None = None

    @property
    def config(self) -> Config:
        """The configuration alone."""
        return dict(self.model_extra or {})


class StudySpec(_Model):
    """A whole study file."""

    data: DataSpec
    teacher: TeacherSpec
    student: StudentSpec
    latency: LatencySpec
    space: dict[str, Dimension]
    anchors: dict[str, Anchor] = {}

    @field_validator("space")
    @classmethod
    def _distillation_keys(cls, space: dict[str, Dimension]) -> dict[str, Dimension]:
        rules: dict[str, tuple[float, float]] = {
            "loss_weight": (0, 1), "temperature": (1e-6, 1e6), "epochs": (1, 1e6), "batch_size": (1, 1e6)
        }  # fmt: skip
        for key, (low, high) in rules.items():
            if key not in space:
                raise ValueError(f"{key} is missing; give it a range, a list or one number")
            values = list(_ends(space[key]))
            if not values or min(values) < low or max(values) > high:
                raise ValueError(f"{key} must lie between {low:g} and {high:g} (got {space[key]}); narrow it")
            if key in ("epochs", "batch_size") and not all(isinstance(v, int) for v in values):
                raise ValueError(f"{key} must be whole numbers (got {space[key]}); drop the decimal points")
        return space

    @model_validator(mode="after")
    def _anchors_inside(self) -> Self:
        for name, anchor in self.anchors.items():
            config = anchor.config
            expected = set(self.space) - ({"temperature"} if config.get("loss_weight") == 0 else set())
            for key in sorted(expected ^ set(config)):
                word = "lacks" if key in expected else "must not have"
                raise ValueError(f"anchors.{name} {word} {key}; an anchor sets every dimension that has an effect")
            for key, value in config.items():
                if not dimension_holds(self.space[key], value):
                    raise ValueError(
                        f"anchors.{name}.{key} lies outside the space (got {value}); widen space.{key} or move it"
                    )
        return self

    @property
    def longest(self) -> int:
        """Epochs of the longest training in the space."""
        return int(max(_ends(self.space["epochs"])))

    def limited(self, *, train_size: int | None = None, max_epochs: int | None = None) -> StudySpec:
        """The same study with less work, for a first look: students, anchors and teacher alike.

        Args:
            train_size: images to train on.
            max_epochs: no training is longer than this.

        Raises:
            StudyFileError: a limit is below 1.
        """
        for option, value in {"--train-size": train_size, "--max-epochs": max_epochs}.items():
            if value is not None and value < 1:
                raise StudyFileError(f"{option} must be at least 1", got=value, remedy="give a whole number above 0")
        spec = self
        if train_size is not None:
            spec = spec.model_copy(update={"data": spec.data.model_copy(update={"train_size": train_size})})
        if max_epochs is None:
            return spec
        recipe = spec.teacher.recipe
        recipe = recipe.model_copy(update={"epochs": min(recipe.epochs, max_epochs)})
        capped = {
            name: Anchor.model_validate({**a.model_dump(), "epochs": min(a.config["epochs"], max_epochs)})
            for name, a in spec.anchors.items()
        }
        space = {**spec.space, "epochs": _capped(spec.space["epochs"], max_epochs)}
        teacher = spec.teacher.model_copy(update={"recipe": recipe})
        return spec.model_copy(update={"teacher": teacher, "space": space, "anchors": capped})


def _ends(dimension: Dimension) -> Iterator[Number]:
    if isinstance(dimension, Range):
        yield from (dimension.low, dimension.high)
    elif isinstance(dimension, list):
        yield from dimension
    elif not isinstance(dimension, Stages):
        yield dimension


def _capped(dimension: Dimension, top: int) -> Dimension:
    """The part of `epochs` that does not exceed `top`."""
    if isinstance(dimension, Range):
        return dimension.model_copy(update={"low": min(dimension.low, top), "high": min(dimension.high, top)})
    if isinstance(dimension, list):
        return [value for value in dimension if value <= top] or [top]
    return min(dimension, top) if isinstance(dimension, int | float) else dimension


def studies_folder() -> Path:
    """Where the shipped study files lie: in an installed package beside the code, in a checkout at its top."""
    package = Path(__file__).parent
    inside = package / "studies"
    return inside if inside.is_dir() else package.parent / "studies"


def shipped(dataset: str) -> Path:
    """The shipped study file for a data set (`folder:PATH` has one, too).

    Raises:
        StudyFileError: there is none.
    """
    path = studies_folder() / f"{dataset.split(':', 1)[0]}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in studies_folder().glob("*.toml")))
        raise StudyFileError(
            "a data set without --study must have a shipped study file",
            got=dataset,
            remedy=f"choose one of {names} (folder as folder:PATH), or give --study FILE",
        )
    return path


def parse(text: str, *, source: str) -> StudySpec:
    """Checks the text of a study file.

    Args:
        text: TOML.
        source: what to call it in an error.

    Raises:
        StudyFileError: it is no TOML, or breaks a rule; the line names the key.
    """
    try:
        return StudySpec.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{source} must be valid TOML: {error}", remedy="mend that line") from None
    except ValidationError as error:
        raise StudyFileError(f"{source}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """One line for the first broken rule: key, rule, value, remedy."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"] if part not in (*KINDS, "int", "float"))
    if problem["type"] == "extra_forbidden":
        return f"{key} is not a key here (got {problem['input']!r}); check its spelling or remove it"
    if problem["type"] == "missing":
        return f"{key} is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message} (got {problem['input']!r}); correct it"


def load(path: Path | str) -> StudySpec:
    """Reads and checks a study file.

    Raises:
        StudyFileError: it cannot be read or breaks a rule.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise StudyFileError(
            f"a study file must be readable: {reason}",
            got=path,
            remedy="check --study, or make one with `kdsearch init`",
        ) from None
    return parse(text, source=str(path))


def from_dict(data: dict[str, Any]) -> StudySpec:
    """The study that `StudySpec.model_dump(mode="json")` was taken from."""
    return StudySpec.model_validate(data)
