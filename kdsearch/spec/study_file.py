"""A study file (TOML), read, checked and frozen: data, recipes, teacher, student family, search space, anchors."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from kdsearch.errors import StudyFileError
from kdsearch.records import OPTIONAL, Config
from kdsearch.spec.dimensions import KINDS, Dimension, Model, Number, capped, dimension_holds, ends, nearest_below

STORED = "stored"  # context of a study that was checked when it began
Positive = Annotated[Number, Field(gt=0)]


class Augment(Model):
    """Views of a training image: flipped or not, shifted by up to `shift` pixels each way and padded with zeros.

    `views` is the size of each image's pool: that many of its views, drawn without replacement. Each epoch shows
    another one until all have been shown. In the student's recipe of a study file, None means as many as the longest
    training has epochs (`StudySpec.pooled`); elsewhere, and in studies made before there were pools, None means an
    independent draw from all views in each epoch.
    """

    newer: ClassVar[tuple[str, ...]] = ("views",)
    flip: bool = False
    shift: Annotated[int, Field(ge=0, le=8)] = 0
    views: Annotated[int, Field(ge=1)] | None = None

    @property
    def different(self) -> int:
        """Number of views of an image: with or without a flip, times all shifts (162 for flips and 4 pixels)."""
        return (2 if self.flip else 1) * (2 * self.shift + 1) ** 2

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.views is not None and self.views > self.different:
            raise ValueError(f"views must be at most the {self.different} that there are (got {self.views}); lower it")
        return self


class Recipe(Model):
    """How a network is trained: optimiser, learning rate and schedule, augmentation.

    With `lr_batch`, `lr` is the rate for batches of that size: for another size, SGD's is scaled with the size (Goyal
    et al., arXiv 1706.02677) and Adam's with its square root (Malladi et al., arXiv 2205.10287). Without it, a search
    over batch sizes would also be a search over rates.

    With `averaging`, the training's outcome is a running average of the weights (formula in `optimizer.Averaged`): 0 is
    their mean, 8 about the mean of the last ninth of the steps so far. The optimiser "schedulefree" is SGD with
    averaging of its own (Defazio et al., arXiv 2405.15682).

    `init` is the initialisation: "torch" keeps the weights that the network's modules draw, "glorot" draws weights of
    matrices and convolutions uniformly (Glorot and Bengio, AISTATS 2010) and sets biases to 0, as Keras does.
    """

    optimizer: Literal["adam", "sgd", "schedulefree"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    lr_batch: Annotated[int, Field(ge=1)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    epsilon: Annotated[float, Field(gt=0)] = 1e-8  # Adam's; Keras uses 1e-7
    init: Literal["torch", "glorot"] = "torch"
    schedule: Literal["constant", "onecycle"] = "constant"
    averaging: Annotated[float, Field(ge=0)] | None = None
    augment: Augment = Augment()

    def rate_for(self, batch_size: int) -> float:
        """Return the learning rate for batches of a size."""
        if self.lr_batch is None:
            return self.lr
        scale = batch_size / self.lr_batch
        return self.lr * (scale**0.5 if self.optimizer == "adam" else scale)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum (got 0); 0.9 is usual")
        if self.optimizer != "schedulefree":
            return self
        if self.schedule != "constant" or self.averaging is not None:
            raise ValueError("schedulefree takes a constant schedule and no averaging; drop them")
        if not self.momentum or self.nesterov:
            raise ValueError(f"schedulefree needs a momentum and no nesterov (got {self.momentum:g}); 0.9 is usual")
        return self


class TeacherRecipe(Recipe):
    """A teacher's recipe, with its length; the softmax is of logits / temperature, in training and afterwards."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0)] = 1.0


Option = int | float | bool | str


class TeacherSpec(Model):
    """The teacher: a built-in or plugin family, or a function of the user's; with a recipe, or with given weights.

    `build` names a function as "package.module:function"; it is called with `options` and returns an `nn.Module` from
    images to logits. `mean` and `std` (per channel, or one for all, of images in [0, 1]) and `size` (height and width
    in pixels) describe the teacher's input if it differs from the students'.
    """

    family: str | None = None
    build: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")] | None = None
    options: dict[str, Option] = Field(default_factory=dict)
    mean: Annotated[list[Number], Field(min_length=1)] | None = None
    std: Annotated[list[Positive], Field(min_length=1)] | None = None
    size: Annotated[int, Field(ge=4)] | None = None
    seed: int = 0
    weights: str | None = None
    recipe: TeacherRecipe | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.family is None and self.build is None:
            raise ValueError("family is missing; add it, or build")
        if self.family is not None and self.build is not None:
            raise ValueError(f"family and build exclude each other (got {self.family} and {self.build}); drop one")
        if self.options and self.build is None:
            raise ValueError("options are those of build; add build or drop them")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together; give both or none")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must be as long (got {self.mean} and {self.std}); give one of each channel")
        if self.weights is None and self.recipe is None:
            raise ValueError("recipe is missing; add [teacher.recipe], or weights")
        return self

    @property
    def title(self) -> str:
        """Display name: the family, or the function that builds it."""
        return self.family or self.build or ""

    @property
    def brought(self) -> bool:
        """Whether the user brought it: a network or weights of their own."""
        return self.build is not None or self.weights is not None

    def with_recipe(self, changes: Mapping[str, Any]) -> Self:
        """Return the same teacher with some keys of its recipe replaced, and checked; one with weights has none."""
        if self.recipe is None:
            return self
        recipe = TeacherRecipe.model_validate(self.recipe.model_dump() | dict(changes))
        return self.model_copy(update={"recipe": recipe})

    def described(self) -> dict[str, Any]:
        """Return the specification as JSON without unset optional keys, so that older fingerprints stay valid."""
        optional = ("family", "build", "options", "mean", "std", "size", "recipe")
        described = self.model_dump(mode="json")
        return {key: value for key, value in described.items() if key not in optional or value not in (None, {})}


class DataSpec(Model):
    """The data set and its fixed split; `test` is the share of a folder's images to test on if it has no test set."""

    name: str
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(gt=0, lt=1)] | None = None
    split_seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    image_size: Annotated[int, Field(ge=4)] | None = None
    train_size: Annotated[int, Field(ge=1)] | None = None


class StudentSpec(Model):
    """The students' family and recipe, and the CPU threads of their training (None: torch's default)."""

    family: str
    threads: Annotated[int, Field(ge=1)] | None = None
    recipe: Recipe = Recipe()


class LatencySpec(Model):
    """How inference is timed: batch size, an optional other batch size on CUDA (`cuda_batch`), and CPU threads."""

    newer: ClassVar[tuple[str, ...]] = ("cuda_batch",)
    batch: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)] = 1
    cuda_batch: Annotated[int, Field(ge=1)] | None = None

    def batch_on(self, device_type: str) -> int:
        """Return the batch size on a device type, "cpu" or "cuda"."""
        return self.batch if device_type == "cpu" or self.cuda_batch is None else self.cuda_batch


class ReportSpec(Model):
    """What the report requires of a student to ship; not part of a study's definition, so it may change at any time.

    `within` is how many points of test accuracy below the teacher's are acceptable, and `floor` the accuracy in percent
    from which hypervolume counts (None: see `reporting.collect`).
    """

    within: Annotated[Number, Field(gt=0, le=100)] = 1.0
    floor: Annotated[Number, Field(ge=0, lt=100)] | None = None


class Published(Model):
    """A slide's figures of a row: accuracy in percent, teacher time / student time, seconds of training."""

    accuracy: Annotated[Number, Field(ge=0, le=100)]
    ratio: Annotated[Number, Field(ge=1e-6, le=1e6)]  # figures cannot have axes of any length
    seconds: Annotated[Number, Field(gt=0, le=1e9)]


class Anchor(BaseModel):
    """A configuration of the slides, run first and never pruned."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)
    published: Published | None = None

    @property
    def config(self) -> Config:
        """The configuration alone."""
        return dict(self.model_extra or {})


class StudySpec(Model):
    """A whole study file.

    `distillation` says how loss weight and temperature are read. 2: term weights always sum to 2, and the teacher's
    logits are divided by its own temperature first. 1, for studies begun before the key existed: the deck's weights,
    and the teacher's logits as they are.
    """

    data: DataSpec
    teacher: TeacherSpec
    student: StudentSpec
    latency: LatencySpec
    space: dict[str, Dimension]
    anchors: dict[str, Anchor] = Field(default_factory=dict)
    report: ReportSpec = ReportSpec()
    distillation: Literal[1, 2] = 2

    @field_validator("space")
    @classmethod
    def _distillation_keys(cls, space: dict[str, Dimension]) -> dict[str, Dimension]:
        rules: dict[str, tuple[float, float]] = {
            "loss_weight": (0, 1), "temperature": (1e-6, 1e6), "epochs": (1, 1e6), "batch_size": (1, 1e6),
            "feature_weight": (0, 1e6), "lr": (1e-9, 1e3),
        }  # fmt: skip
        for key, (low, high) in rules.items():
            if key not in space:
                if key in OPTIONAL:
                    continue
                raise ValueError(f"{key} is missing; give it a range, a list or one number")
            values = list(ends(space[key]))
            if not values or min(values) < low or max(values) > high:
                raise ValueError(f"{key} must lie between {low:g} and {high:g} (got {space[key]}); narrow it")
            if key in ("epochs", "batch_size") and not all(isinstance(v, int) for v in values):
                raise ValueError(f"{key} must be whole numbers (got {space[key]}); drop the decimal points")
        for key in set(space) - set(rules):
            if min(ends(space[key]), default=1) <= 0:
                raise ValueError(f"{key} must be above 0 (got {space[key]}); raise it")
        return space

    @model_validator(mode="before")
    @classmethod
    def _optional_in_anchors(cls, raw: Any) -> Any:
        """Give an anchor the defaults of the optional keys that it omits: the slides' rows do not have them."""

        def part(of: Any, key: str) -> Any:  # nothing has been checked yet
            return of.get(key) if isinstance(of, dict) else None

        space, named = part(raw, "space"), part(raw, "anchors")
        if not isinstance(space, dict) or not isinstance(named, dict):
            return raw
        rate = part(part(part(raw, "student"), "recipe"), "lr")
        usual = {"feature_weight": 0.0, "lr": Recipe().lr if rate is None else rate}
        usual = {key: value for key, value in usual.items() if key in space}
        filled = {name: usual | anchor if isinstance(anchor, dict) else anchor for name, anchor in named.items()}
        return raw | {"anchors": filled}

    def effective(self, config: Config) -> set[str]:
        """Return the dimensions that have an effect in a configuration: without a teacher temperature has none."""
        return set(self.space) - ({"temperature"} if config.get("loss_weight") == 0 else set())

    @model_validator(mode="after")
    def _anchors_inside(self, info: ValidationInfo) -> Self:
        for name, anchor in self.anchors.items():
            config = anchor.config
            expected = self.effective(config)
            for key in sorted(expected ^ set(config)):
                word = "lacks" if key in expected else "must not have"
                raise ValueError(f"anchors.{name} {word} {key}; an anchor sets every dimension that has an effect")
            for key, value in config.items():
                if info.context != STORED and not dimension_holds(self.space[key], value):
                    raise ValueError(
                        f"anchors.{name}.{key} lies outside the space (got {value}); widen space.{key} or move it"
                    )
        return self

    @property
    def longest(self) -> int:
        """Epochs of the longest training in the space."""
        return int(max(ends(self.space["epochs"])))

    def pooled(self) -> StudySpec:
        """Return the study with a pool of views; its size defaults to the epochs of the longest training."""
        augment = self.student.recipe.augment
        if augment.views is not None or augment.different == 1:
            return self
        return self.with_augment(augment.model_copy(update={"views": min(self.longest, augment.different)}))

    def with_augment(self, augment: Augment) -> StudySpec:
        """Return the same study with another augmentation of the students' images."""
        recipe = self.student.recipe.model_copy(update={"augment": augment})
        return self.model_copy(update={"student": self.student.model_copy(update={"recipe": recipe})})

    def limited(self, *, train_size: int | None = None, max_epochs: int | None = None) -> StudySpec:
        """Return the same study with less work, for a first look: students, anchors and teacher alike.

        Raises:
            StudyFileError: a limit is below 1.
        """
        for option, value in {"--train-size": train_size, "--max-epochs": max_epochs}.items():
            if value is not None and value < 1:
                raise StudyFileError(f"{option} must be at least 1", got=value, remedy="give a whole number above 0")
        changed: dict[str, Any] = {}
        if train_size is not None:
            changed["data"] = self.data.model_copy(update={"train_size": train_size})
        if max_epochs is not None:
            epochs = capped(self.space["epochs"], max_epochs)
            changed["space"] = self.space | {"epochs": epochs}
            changed["anchors"] = {
                name: Anchor.model_validate({**a.model_dump(), "epochs": nearest_below(epochs, a.config["epochs"])})
                for name, a in self.anchors.items()
            }
            if recipe := self.teacher.recipe:
                recipe = recipe.model_copy(update={"epochs": min(recipe.epochs, max_epochs)})
                changed["teacher"] = self.teacher.model_copy(update={"recipe": recipe})
        return self.model_copy(update=changed)


def studies_folder() -> Path:
    """Return the folder of the shipped study files: beside an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "studies"
    return inside if inside.is_dir() else package.parent / "studies"


def shipped(dataset: str) -> Path:
    """Return the shipped study file for a data set (`folder:PATH` has one, too).

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
    """Return the study of a study file's text; `source` names the file in errors.

    Raises:
        StudyFileError: it is not TOML, or breaks a rule; the line names the key.
    """
    try:
        return StudySpec.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{source} must be valid TOML: {error}", remedy="correct that line") from None
    except ValidationError as error:
        raise StudyFileError(f"{source}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """Return one line for the first broken rule: key, rule, value, remedy."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"] if part not in (*KINDS, "int", "float"))
    if problem["type"] == "extra_forbidden":
        return f"{key} is not a key here (got {problem['input']!r}); check its spelling or remove it"
    if problem["type"] == "missing":
        return f"{key} is missing; add it"
    message = (f"{key}: " if key else "") + problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return message
    return f"{message} (got {problem['input']!r}); correct it"


def load(path: Path | str) -> StudySpec:
    """Read and check a study file.

    Raises:
        StudyFileError: it cannot be read or breaks a rule.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # some Windows editors start a file with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise StudyFileError(
            f"a study file must be readable: {reason}",
            got=path,
            remedy="check --study, or make one with `kdsearch init`",
        ) from None
    return parse(text, source=str(path))


def from_dict(data: object) -> StudySpec:
    """Return the study from `StudySpec.model_dump(mode="json")` of this version or an older one.

    Older ones took anchors such as 32.0 among [16, 32], so what an anchor holds is not checked again.

    Raises:
        StudyFileError: the stored data are damaged, or of a newer version.
    """
    try:
        return StudySpec.model_validate({"distillation": 1} | data if isinstance(data, dict) else data, context=STORED)
    except ValidationError as error:
        raise StudyFileError(f"the stored study file must be whole: {_first_problem(error)}") from None
