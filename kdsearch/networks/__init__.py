"""Networks: one file a family, and the registry of students and teachers.

Others use `custom` and `cpu_layers`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from kdsearch.errors import StudyFileError
from kdsearch.networks.custom import construct, find
from kdsearch.records import DISTILLATION, OPTIONAL
from kdsearch.spec import Stages, StudySpec, TeacherSpec, choices, is_whole, largest
from kdsearch.system import plugins

TOP = 10**6  # of whole numbers: a layer of more channels has 10^12 weights, 4 TB
Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

Build = Callable[[Mapping[str, Any], Shape, int], nn.Module]
"""Builds a network, (batch, *shape) -> logits, from an architecture, an image's shape and the number of classes."""

Condition = Callable[[Mapping[str, Any]], bool]
"""Whether a dimension has an effect, given the values of the others."""

Check = Callable[[StudySpec, Shape, int], None]
"""Refuses a study that cannot be built for an image's shape and a number of classes."""


class StudentFamily(Protocol):
    """The interface of an entry point of the group `kdsearch.students`; `Family` implements it.

    A study file's `[space]` then holds `dimensions` beside the keys of distillation, and `build` is called with a value
    of each: a number, a name, or a list of whole numbers for stages. It must build a new network at each call, draw
    weights from torch's global generator only, and accept any number of classes; the network maps (batch, *shape) to
    (batch, classes).

    Optional attributes are those of `Family`: `whole`, `names`, `stages`, `optional`, `conditional`, `check`.
    """

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names in the search space that determine an architecture."""

    @property
    def build(self) -> Build:
        """Builds a network from an architecture, an image's shape and the number of classes."""


@dataclass(frozen=True)
class Family:
    """A family of students.

    Attributes:
        dimensions: names in the search space that determine an architecture.
        build: builds a network.
        whole: those of the dimensions that are whole numbers, each at most `TOP`.
        names: those that are names.
        stages: those that are lists of whole numbers, one a stage; None: not said, so nothing is checked.
        optional: those that a space may leave out; `build` then gets no value of them.
        conditional: those that affect only some architectures, with the condition on the values of the other
            dimensions: where it does not hold, they are not sampled, and `build` gets no value of them.
        check: refuses, with a StudyFileError and before any work begins, a study that cannot be built for images of a
            shape.
    """

    dimensions: tuple[str, ...]
    build: Build
    whole: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    stages: tuple[str, ...] | None = None
    optional: frozenset[str] = frozenset()
    conditional: Mapping[str, Condition] = field(default_factory=dict)
    check: Check | None = None


STUDENTS = {
    "mlp": "kdsearch.networks.mlp:FAMILY",
    "resnet": "kdsearch.networks.resnet:FAMILY",
    "timm": "kdsearch.networks.zoo:TIMM",
    "torchvision": "kdsearch.networks.zoo:TORCHVISION",
}
TEACHERS = {"cnn": "kdsearch.networks.cnn:build", "resnet50": "kdsearch.networks.resnet:build_resnet50"}


def _find(kind: str, own: Mapping[str, str], name: str) -> Any:
    found = plugins.find(kind, name, own)
    if found is None:
        known = ", ".join(plugins.names(kind, own))
        remedy = f"choose one of {known}, or install the package that brings it"
        raise StudyFileError(f"{kind[:-1]}.family must be known", got=name, remedy=remedy)
    return found


def student_family(name: str) -> StudentFamily:
    """Return the family of students of that name.

    Raises:
        StudyFileError: the name is unknown, or its package is broken.
    """
    family: StudentFamily = _find("students", STUDENTS, name)
    return family


def build_teacher(name: str, shape: Shape, classes: int) -> nn.Module:
    """Build an untrained teacher.

    Raises:
        StudyFileError: the family is unknown, or its package is broken.
    """
    network: nn.Module = _find("teachers", TEACHERS, name)(shape, classes)
    return network


def teacher_network(spec: TeacherSpec, shape: Shape, classes: int) -> nn.Module:
    """Build the untrained teacher of a study, from a family or by the user's function.

    Raises:
        StudyFileError: the family is unknown.
        TeacherError: the function cannot be found or fails.
    """
    return construct(spec) if spec.family is None else build_teacher(spec.family, shape, classes)


def check_families(spec: StudySpec) -> None:
    """Refuse a study whose families are unknown, or whose space has other dimensions than its family.

    Raises:
        StudyFileError: a family or a dimension is unknown; the message names the key.
        TeacherError: the teacher's function cannot be found.
    """
    if spec.teacher.family is None:
        find(spec.teacher.title)
    else:
        _find("teachers", TEACHERS, spec.teacher.family)
    family = student_family(spec.student.family)
    wanted = {*family.dimensions, *DISTILLATION}
    may_lack = {*OPTIONAL, *getattr(family, "optional", ())}
    for key in sorted((set(spec.space) ^ wanted) - (may_lack & wanted)):
        raise StudyFileError(
            f"space.{key} is {'missing' if key in wanted else 'no dimension of this student family'}",
            got=f"student.family = {spec.student.family}",
            remedy=f"the space holds {', '.join(sorted(wanted))}",
        )
    for key in sorted(set(family.dimensions) & set(spec.space) - {*getattr(family, "names", ())}):
        if any(isinstance(value, str) for value in choices(spec.space[key])):
            raise StudyFileError(
                f"space.{key} must be numbers in this student family",
                got=spec.space[key],
                remedy="give a range, a list or one number",
            )


def check_stages(spec: StudySpec) -> None:
    """Refuse stages where the family takes none, and anything else where it does: no student could be built.

    Raises:
        StudyFileError: a dimension is of the wrong kind; the message names the key.
    """
    family = student_family(spec.student.family)
    stages: tuple[str, ...] | None = getattr(family, "stages", None)
    if stages is None:
        return
    for key in sorted(set(family.dimensions) & set(spec.space)):
        if isinstance(spec.space[key], Stages) == (key in stages):
            continue
        raise StudyFileError(
            f"space.{key} must {'' if key in stages else 'not '}be stages in this student family",
            got=spec.space[key],
            remedy="write it as { low = 0, high = 3, stages = 4 }" if key in stages else "drop its key stages",
        )


def check_whole(spec: StudySpec) -> None:
    """Refuse fractions in dimensions that are whole numbers, which would be truncated but reported as given, and more
    than `TOP`.

    Raises:
        StudyFileError: a value is fractional or too large; the message names the key.
    """
    for key in getattr(student_family(spec.student.family), "whole", ()):  # optional in another package's family
        if key not in spec.space:
            continue
        if not is_whole(spec.space[key]):
            raise StudyFileError(
                f"space.{key} must be whole numbers in this student family",
                got=spec.space[key],
                remedy="drop the decimal points",
            )
        if largest(spec.space[key]) > TOP:
            raise StudyFileError(f"space.{key} must be at most {TOP}", got=spec.space[key], remedy="lower it")


def conditions(family: str) -> Mapping[str, Condition]:
    """Return the dimensions of a family of students that affect only some architectures, as in `Family`.

    Raises:
        StudyFileError: the family is unknown, or its package is broken.
    """
    found: Mapping[str, Condition] = getattr(student_family(family), "conditional", {})
    return found


def check_students(spec: StudySpec, shape: Shape, classes: int) -> None:
    """Refuse a study whose students cannot be built for images of a shape, where their family can check that.

    Raises:
        StudyFileError: a student cannot be built; the message names the key.
    """
    check: Check | None = getattr(student_family(spec.student.family), "check", None)
    if check is not None:
        check(spec, shape, classes)


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load all weights from a file that stores tensors by name only.

    A state dict of torch also holds the versions of its modules, which a file of tensors does not: torchvision's
    MNASNet refuses one without. The network's own versions are used.

    Raises:
        RuntimeError: the weights do not fit.
    """
    whole = OrderedDict(state)
    whole._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(whole)


def parameters(network: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def size_bytes(network: nn.Module) -> int:
    """Return the bytes of a network's parameters and buffers: the size of its file without the header."""
    tensors = [*network.parameters(), *network.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def has_layer(network: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a network has a layer of a kind."""
    return any(isinstance(module, kind) for module in network.modules())


def classifier(network: nn.Module) -> nn.Linear:
    """Return the layer that computes the logits: the network's last `nn.Linear`, in the order of its modules.

    Raises:
        StudyFileError: the network has none.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise StudyFileError(
            "a network must end in an nn.Linear for its embeddings to be found",
            got=type(network).__name__,
            remedy="set feature_weight to 0, or end the network in one",
        )
    return layers[-1]


def main_logits(output: Any) -> Tensor:
    """Return an output's logits: torchvision's networks with auxiliary heads return a tuple in training."""
    return output if isinstance(output, Tensor) else output.logits  # type: ignore[no-any-return]


def frozen(network: nn.Module) -> nn.Module:
    """Return a network, a ScriptModule too, in evaluation mode and without gradients."""
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def with_embedding(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits, (batch, classes), and the embedding, which is the classifier's input, (batch, features).

    The embedding has no features if the network has no classifier, or never calls it on vectors (a ViT's attention
    applies its layers by their weights, other networks theirs to maps).
    """
    seen: list[Tensor] = []
    handle = None
    if has_layer(network, nn.Linear):
        handle = classifier(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = main_logits(network(images))
    finally:
        if handle is not None:
            handle.remove()
    if seen and seen[-1].ndim == 2 and len(seen[-1]) == len(logits):
        return logits, seen[-1]
    return logits, logits.new_zeros(len(logits), 0)


def glorot_(network: nn.Module) -> None:
    """Draw weights as Keras does by default: Glorot's uniform ones (AISTATS 2010, equation 16), biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
