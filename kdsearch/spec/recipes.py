"""How networks are made and trained, as a study file says it: recipes, and the teacher."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from kdsearch.spec.dimensions import Model, Number

Positive = Annotated[Number, Field(gt=0)]


class Augment(Model):
    """Views of a training image: mirrored or not, shifted by up to `shift` pixels each way (zeros come in).

    `views` is the size of each image's pool: so many of its views, drawn without replacement, of which a training shows
    another one each epoch until all have been shown. In the student's recipe of a study file, None stands for as many
    as the longest training has epochs (`StudySpec.pooled`); elsewhere, and in studies made before there were pools,
    for an independent draw from all views in each epoch.
    """

    flip: bool = False
    shift: Annotated[int, Field(ge=0, le=8)] = 0
    views: Annotated[int, Field(ge=1)] | None = None

    @property
    def different(self) -> int:
        """How many views an image has: with or without a flip, times all shifts (162 for flips and 4 pixels)."""
        return (2 if self.flip else 1) * (2 * self.shift + 1) ** 2

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.views is not None and self.views > self.different:
            raise ValueError(f"views must be at most the {self.different} that there are (got {self.views}); lower it")
        return self

    @model_serializer(mode="wrap")
    def _as_before_pools(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `views` where it is None: definitions and fingerprints made before it was a key stay valid."""
        return {key: value for key, value in handler(self).items() if key != "views" or value is not None}


class Recipe(Model):
    """How a network is trained: optimiser, rate and its schedule, augmentation.

    With `lr_batch`, `lr` is the rate for batches of that size: at another, sgd's is scaled with the size (Goyal et al.,
    arXiv 1706.02677) and adam's with its square root (Malladi et al., arXiv 2205.10287). Without that, a search over
    batch sizes is a search over rates.

    A number for `averaging` takes a running average of the weights for the training's outcome (`optimizer.Averaged`
    has the formula): 0 is their mean, 8 about that of the last ninth of the steps so far, whatever their number. The
    optimiser "schedulefree" is SGD that averages by itself (Defazio et al., arXiv 2405.15682).

    `init` says where training starts: "torch", as the network's modules draw their weights, or "glorot": weights of
    matrices and convolutions uniform as Glorot and Bengio (AISTATS 2010) have them, biases 0, as Keras does.
    """

    optimizer: Literal["adam", "sgd", "schedulefree"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    lr_batch: Annotated[int, Field(ge=1)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    epsilon: Annotated[float, Field(gt=0)] = 1e-8  # adam's; Keras has 1e-7
    init: Literal["torch", "glorot"] = "torch"
    schedule: Literal["constant", "onecycle"] = "constant"
    averaging: Annotated[float, Field(ge=0)] | None = None
    augment: Augment = Augment()

    def rate_for(self, batch_size: int) -> float:
        """The learning rate for batches of a size."""
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
    """A teacher's recipe says its length too; the softmax is of logits / temperature, in training as after it."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0)] = 1.0


Option = int | float | bool | str


class TeacherSpec(Model):
    """The teacher: a family of ours or of a package, or a function of the user's; a recipe, or ready weights.

    `build` names a function as "package.module:function"; it is called with `options` and returns an `nn.Module` from
    images to logits. `mean` and `std` (of each channel, or one for all, of images in [0, 1]) and `size` (pixels of
    height and width) say which input a teacher is used to, where that is not what students see.
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
        """What to call it: its family, or the function that builds it."""
        return self.family or self.build or ""

    @property
    def brought(self) -> bool:
        """Whether it is the user's own: another network, or ready weights."""
        return self.build is not None or self.weights is not None

    def described(self) -> dict[str, Any]:
        """It as JSON, without the keys that most study files leave out: what they had before these keys were known."""
        optional = ("family", "build", "options", "mean", "std", "size", "recipe")
        described = self.model_dump(mode="json")
        return {key: value for key, value in described.items() if key not in optional or value not in (None, {})}
