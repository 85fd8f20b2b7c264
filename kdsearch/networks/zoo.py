"""Published networks as students by name: torchvision's classifiers, and timm's where it is installed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.errors import StudyFileError
from kdsearch.networks import Family, Shape, has_layer
from kdsearch.spec import StudySpec, choices, ends

NONE, IMAGENET = "none", "imagenet"
SCALED = ("mobilenet_v2", "mobilenet_v3_", "mnasnet")  # prefixes of torchvision's networks that take a width
MNASNET = {"mnasnet0_5": 0.5, "mnasnet0_75": 0.75, "mnasnet1_0": 1.0, "mnasnet1_3": 1.3}
COLOURS = 3  # input channels of published networks
NAMED = 8  # most names listed in an error

Make = Callable[[Mapping[str, Any], int], nn.Module]
"""Builds a network of three channels, without published weights, from an architecture and the number of classes."""


def takes_width(architecture: Mapping[str, Any]) -> bool:
    """Whether torchvision can build the named network with a width multiplier."""
    return str(architecture["name"]).startswith(SCALED)


def blank(make: Make, architecture: Mapping[str, Any], classes: int) -> nn.Module:
    """Build a network on the meta device, for counting and trial runs: it holds no weights."""
    try:
        with torch.device("meta"):
            return make(architecture, classes)
    except (NotImplementedError, RuntimeError):  # RegNet computes its stages' widths with tensors, which meta lacks
        with torch.device("cpu"):
            network: nn.Module = make(architecture, classes).to("meta")
            return network


def _torchvision(architecture: Mapping[str, Any], classes: int) -> nn.Module:
    from torchvision import models

    name = architecture["name"]
    width = float(architecture.get("width_mult", 1.0))
    if name in MNASNET:
        network: nn.Module = models.MNASNet(MNASNET[name] * width, num_classes=classes)
        return network
    given = {"width_mult": width} if takes_width(architecture) and width != 1 else {}
    network = models.get_model(name, weights=None, num_classes=classes, **given)
    return network


@cache
def _torchvision_weights(name: str) -> dict[str, Tensor]:
    """Weights for ImageNet's 1,000 classes, downloaded where torch's cache does not hold them."""
    from torchvision import models

    try:
        state: dict[str, Tensor] = models.get_model_weights(name).DEFAULT.get_state_dict(
            progress=False, check_hash=True, map_location="cpu"
        )
    except (OSError, RuntimeError, EOFError, AttributeError, ValueError) as error:  # an HTTP error is an OSError
        raise _not_there(name, error, f"put its file into {torch.hub.get_dir()}/checkpoints") from None
    return state


def _timm(architecture: Mapping[str, Any], classes: int) -> nn.Module:
    import timm

    network: nn.Module = timm.create_model(architecture["name"], pretrained=False, num_classes=classes)
    return network


@cache
def _timm_weights(name: str) -> dict[str, Tensor]:
    import timm

    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # the hub's client raises many types
        raise _not_there(name, error, "fill the cache of huggingface_hub") from None


def _not_there(name: str, error: Exception, remedy: str) -> StudyFileError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return StudyFileError(
        f'space.weights = "{IMAGENET}" needs weights that can be downloaded: {reason}',
        got=name,
        remedy=f'connect to the network, {remedy}, or set weights = "{NONE}"',
    )


def head(network: nn.Module) -> str:
    """Return the name of the layer that computes the logits: the last nn.Linear, else the last convolution."""
    kind = nn.Linear if has_layer(network, nn.Linear) else nn.Conv2d
    names: list[str] = [name for name, module in network.named_modules() if isinstance(module, kind)]
    return names[-1]


def load_published(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load published weights into all of a network but the layer that computes the logits.

    Raises:
        StudyFileError: the weights do not fit the network.
    """
    last = head(network)
    kept = {key: value for key, value in state.items() if not key.startswith(f"{last}.")}
    own = network.state_dict()
    lacking = [key for key in own if key not in kept and not key.startswith(f"{last}.")]
    odd = [key for key, value in kept.items() if key not in own or own[key].shape != value.shape]
    if lacking or odd:
        raise StudyFileError(
            f"published weights must fit their network ({(lacking + odd)[0]} does not)",
            got=name,
            remedy=f'set weights = "{NONE}"',
        )
    with torch.no_grad():
        for key, value in kept.items():
            own[key].copy_(value)


def take_channels(network: nn.Module, channels: int) -> None:
    """Change the first convolution to another number of input channels; grey images give the same output as in colour.

    Each new channel has the sum of the old channels' weights, divided by the number of new channels.

    Raises:
        StudyFileError: the network does not begin with a convolution of three channels.
    """
    if channels == COLOURS:
        return
    convolutions = ((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    path, first = next(convolutions, ("", None))
    if first is None or first.in_channels != COLOURS or first.groups != 1:
        raise StudyFileError(
            "a network must begin with a convolution to take other images than colour ones",
            got=f"{type(network).__name__} and {channels} channels",
            remedy="choose another name, or colour images",
        )
    changed = copy.copy(first)
    changed._parameters = dict(first._parameters)
    total = first.weight.detach().sum(1, keepdim=True) / channels
    changed.in_channels = channels
    changed.weight = nn.Parameter(total.repeat(1, channels, 1, 1))
    network.set_submodule(path, changed)


@cache
def _works(make: Make, name: str, width: float | None, shape: Shape, classes: int) -> str:
    """Return why a network cannot be trained on images of a shape; empty where it can. Computes shapes only."""
    given = {"name": name} if width is None else {"name": name, "width_mult": width}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a network that is only built for a trial run
            network = blank(make, given, classes)
            take_channels(network, shape[0])
            logits = network(torch.zeros(2, *shape, device="meta"))
            if not isinstance(logits, Tensor) or logits.shape != (2, classes):
                return "it does not make logits of each image alone"
    except StudyFileError as error:
        return error.rule
    except Exception as error:  # networks fail in many ways on images that are too small for them
        return " ".join(str(error).split())[:160] or type(error).__name__
    return ""


@dataclass(frozen=True)
class Zoo:
    """A library's networks as a family of students.

    Attributes:
        library: the name of the library, of the family, and of the extra of kdsearch that installs it.
        make: builds a network.
        names: returns the names that a space may hold.
        weights: returns published weights by name.
    """

    library: str
    make: Make
    names: Callable[[], list[str]]
    weights: Callable[[str], dict[str, Tensor]]

    def build(self, architecture: Mapping[str, Any], shape: Shape, classes: int) -> nn.Module:
        """Build the network `name`, with the width `width_mult` where it has one, and with `weights` where wanted.

        With weights "imagenet" the layer that computes the logits is a new one, for the study's classes.

        Raises:
            StudyFileError: the weights cannot be downloaded.
        """
        self._require()
        if torch.get_default_device().type == "meta":
            network = blank(self.make, architecture, classes)
        else:
            network = self.make(architecture, classes)
            if architecture.get("weights", NONE) == IMAGENET:
                load_published(network, self.weights(architecture["name"]), architecture["name"])
        take_channels(network, shape[0])
        return network

    def check(self, spec: StudySpec, shape: Shape, classes: int) -> None:
        """Refuse names, widths and weights that cannot be built, trained on images of a shape, or downloaded.

        Raises:
            StudyFileError: a value is refused; the message names the key.
        """
        self._require()
        names, weights = choices(spec.space["name"]), choices(spec.space.get("weights", NONE))
        self._check_words(names, weights)
        if IMAGENET in weights:
            self._check_imagenet(spec)
        features = max(ends(spec.space.get("feature_weight", 0)))
        narrowest = min(ends(spec.space["width_mult"])) if "width_mult" in spec.space else None
        for name in map(str, names):
            width = narrowest if takes_width({"name": name}) else None
            if reason := _works(self.make, name, width, shape, classes):
                images = "x".join(map(str, shape))
                raise StudyFileError(
                    f"a student must take the study's images, {images}: {reason}",
                    got=f"space.name = {name}",
                    remedy="drop it, or set a larger image_size under [data]",
                )
            if features > 0 and not has_layer(blank(self.make, {"name": name}, classes), nn.Linear):
                raise StudyFileError(
                    "feature_weight needs students that end in an nn.Linear, whose input is their embedding",
                    got=f"space.name = {name}, which ends in a convolution",
                    remedy="set feature_weight to 0, or drop that name",
                )
            if IMAGENET in weights:
                self.weights(name)

    def _require(self) -> None:
        if find_spec(self.library) is None:
            raise StudyFileError(
                f"the student family {self.library} needs {self.library}",
                got="not installed",
                remedy=f"pip install 'kdsearch[{self.library}]'",
            )

    def _check_words(self, names: list[Any], weights: list[Any]) -> None:
        known = self.names()
        for name in names:
            if name not in known:
                near = get_close_matches(str(name), known, n=3, cutoff=0.4) or known[:NAMED]
                raise StudyFileError(
                    f"space.name must be a classifier of {self.library}", got=name, remedy=f"such as {', '.join(near)}"
                )
        for value in weights:
            if value not in (NONE, IMAGENET):
                rule = f'space.weights must be "{IMAGENET}" or "{NONE}"'
                raise StudyFileError(rule, got=value, remedy="choose one of these")

    def _check_imagenet(self, spec: StudySpec) -> None:
        if any(value != 1 for value in choices(spec.space.get("width_mult", 1))):
            raise StudyFileError(
                f'weights = "{IMAGENET}" are published for width_mult = 1 alone',
                got=f"space.width_mult = {spec.space['width_mult']}",
                remedy=f'drop width_mult, or set weights = "{NONE}"',
            )
        if spec.student.recipe.init != "torch":
            raise StudyFileError(
                f'weights = "{IMAGENET}" would be overwritten by another init',
                got=f"student.recipe.init = {spec.student.recipe.init}",
                remedy="drop init",
            )


@cache
def _torchvision_names() -> list[str]:
    from torchvision import models

    return [str(name) for name in models.list_models(module=models)]


@cache
def _timm_names() -> list[str]:
    import timm

    return [str(name) for name in (*timm.list_models(), *timm.list_pretrained())]


def _family(zoo: Zoo, *dimensions: str) -> Family:
    optional = frozenset(dimensions) - {"name"}
    conditional = {"width_mult": takes_width} if "width_mult" in dimensions else {}
    return Family(
        dimensions, zoo.build, names=("name", "weights"), stages=(), optional=optional, conditional=conditional,
        check=zoo.check,
    )  # fmt: skip


TORCHVISION = _family(
    Zoo("torchvision", _torchvision, _torchvision_names, _torchvision_weights), "name", "width_mult", "weights"
)
TIMM = _family(Zoo("timm", _timm, _timm_names, _timm_weights), "name", "weights")
