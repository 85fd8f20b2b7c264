"""Recipes of networks and their training, and the teacher, as a study file gives them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdsearch.spec.dimensions import Model, Number

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
    def _schedule_free(self) -> Self:
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

    def described(self) -> dict[str, Any]:
        """Return the specification as JSON without unset optional keys, so that older fingerprints stay valid."""
        optional = ("family", "build", "options", "mean", "std", "size", "recipe")
        described = self.model_dump(mode="json")
        return {key: value for key, value in described.items() if key not in optional or value not in (None, {})}
