"""A teacher from the user's own function, named in the study file: checked, and adapted to the study's images."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch.errors import TeacherError, shown
from kdsearch.spec import TeacherSpec


class Adapted(nn.Module):
    """A network with its images resized and normalised as it expects: as `[teacher]` says, else as given.

    Args:
        inner: the network.
        spec: `[teacher]` of a study.
        given: mean and standard deviation that the images are normalised with, the same in all channels.
    """

    def __init__(self, inner: nn.Module, spec: TeacherSpec, given: tuple[float, float]) -> None:
        super().__init__()
        self.inner, self._size = inner, spec.size
        mean, std = given
        means, stds = (torch.tensor(part, dtype=torch.float32) for part in (spec.mean or [mean], spec.std or [std]))
        self.scale: Tensor
        self.shift: Tensor
        # one multiplication and one addition: (x std + mean - means) / stds
        self.register_buffer("scale", (std / stds)[:, None, None], persistent=False)
        self.register_buffer("shift", ((mean - means) / stds)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes), from a study's images, (batch, channels, height, width).

        Images of one channel are repeated to as many as `mean` has.
        """
        changed = images * self.scale + self.shift
        if self._size is not None:
            changed = F.interpolate(changed, (self._size, self._size), mode="bilinear", antialias=True)
        logits: Tensor = self.inner(changed)
        return logits


class Logarithm(nn.Module):
    """Turns a network that ends in a softmax into one with logits.

    The logarithm of a softmax differs from its logits by a constant in each row, which leaves the softmax the same.

    Args:
        inner: the network; its outputs are probabilities.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes); a probability of 0 is replaced by the smallest normal number."""
        probabilities: Tensor = self.inner(images)
        return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def core(network: nn.Module) -> nn.Module:
    """Return the network that owns the weights, without the modules that adapt its input and output."""
    while isinstance(network, Adapted | Logarithm):
        network = network.inner
    return network


FAILURES = (Exception, SystemExit)  # of a user's code: a script that ends the program must not end kdsearch
ALIKE = 0.01  # of the largest logit: two passes that differ by more do so not by rounding


@contextmanager
def _contained() -> Iterator[None]:
    """Undo what a user's code changes of this process: torch's default type and gradients, the current folder."""
    kind, gradients, here = torch.get_default_dtype(), torch.is_grad_enabled(), os.getcwd()
    try:
        yield
    finally:
        torch.set_default_dtype(kind)
        torch.set_grad_enabled(gradients)
        os.chdir(here)


def reason(error: BaseException) -> str:
    """Say in a line why a user's code failed."""
    ends = "it ends the program, " if isinstance(error, SystemExit) else ""
    return f"{ends}{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def find(build: str) -> Any:
    """Return the function that "package.module:function" names; modules in the current folder are found, too.

    Raises:
        TeacherError: it does not exist or cannot be imported.
    """
    module, _, path = build.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last, so that it shadows no installed package
    remedy = "correct [teacher] build, or install what it needs"
    arguments, sys.argv = sys.argv, [module]  # which are not the module's to parse
    try:
        with _contained():
            found: Any = import_module(module)
    except FAILURES as error:
        if isinstance(error, SystemExit):
            remedy = 'put the part of the module that runs as a script under `if __name__ == "__main__":`'
        raise TeacherError(f"teacher.build must be importable: {reason(error)}", got=build, remedy=remedy) from None
    finally:
        sys.argv = arguments
    for name in path.split("."):
        if not hasattr(found, name):
            raise TeacherError(f"teacher.build must name what {module} holds", got=build, remedy=remedy)
        found = getattr(found, name)
    if not callable(found):
        raise TeacherError(
            "teacher.build must name a function or a class", got=f"{build}, a {type(found).__name__}", remedy=remedy
        )
    return found


def construct(spec: TeacherSpec) -> nn.Module:
    """Call the teacher's function with its options.

    Raises:
        TeacherError: the function fails or returns no `nn.Module`.
    """
    assert spec.build is not None
    function = find(spec.build)
    given = ", ".join(f"{key} = {value!r}" for key, value in spec.options.items()) or "no options"
    try:
        with _contained():
            network = function(**spec.options)
    except FAILURES as error:
        raise TeacherError(
            f"teacher.build must take the teacher's options: {reason(error)}",
            got=f"{spec.build} with {given}",
            remedy="correct [teacher.options]",
        ) from None
    if not isinstance(network, nn.Module):
        raise TeacherError(
            "teacher.build must return an nn.Module",
            got=f"{spec.build}, which returns a {type(network).__name__}",
            remedy="name a function that returns one",
        )
    if any(parameter.dtype == torch.float64 for parameter in network.parameters()):
        network.float()
    return network


def adapted(network: nn.Module, spec: TeacherSpec, given: tuple[float, float]) -> nn.Module:
    """Return a teacher `Adapted` to the input that the study file specifies; unchanged where it specifies none."""
    return network if spec.mean is None and spec.size is None else Adapted(network, spec, given)


def noise(shape: tuple[int, int, int]) -> Tensor:
    """Return two images of noise, the same each time, on which a network is tried."""
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def with_logits(network: nn.Module, title: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Check that a network makes `classes` logits of each image of a batch; wrap one with a softmax in a `Logarithm`.

    Raises:
        TeacherError: the network fails on images of that shape, its output has another form, or what it returns for an
            image depends on the rest of the batch.
    """
    if network.eval() is not network:
        raise TeacherError(
            "the teacher's train() must return the network, as torch's does", got=title, remedy="end it by return self"
        )
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    images = "x".join(map(str, shape))
    try:
        with torch.no_grad():
            # noise: black images may give logits that are all 0; drawn for each pass, which may change it in place
            logits, again, alone = (network(noise(shape)[:count].to(device)) for count in (2, 2, 1))
    except FAILURES as error:
        raise TeacherError(
            f"the teacher must take the study's images, {images}: {reason(error)}",
            got=title,
            remedy="set [teacher] size, and mean and std of as many channels as it takes",
        ) from None
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 2:
        made = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TeacherError(
            "the teacher must make logits, (batch, classes), of images",
            got=f"{shown(str(made))} of 2 images from {title}",
            remedy="let [teacher] build return a network that does",
        )
    if logits.shape[1] != classes:
        raise TeacherError(
            f"the teacher must have the data's number of classes, {classes}",
            got=f"{logits.shape[1]} from {title}",
            remedy=f"set it, often as num_classes = {classes} in [teacher.options]",
        )
    if alone.shape != logits[:1].shape:
        raise TeacherError(
            "the teacher must make logits, (1, classes), of one image, too",
            got=f"{tuple(alone.shape)} from {title}",
            remedy="see where its forward() squeezes or flattens",
        )
    if alike(logits, again) and not alike(logits[:1], alone):
        raise TeacherError(
            "a teacher's logits of an image must not depend on the rest of the batch",
            got=title,
            remedy="normalise by statistics of the training set (track_running_stats = True), not of the batch",
        )
    return Logarithm(network) if _are_probabilities(logits) else network


def alike(logits: Tensor, others: Tensor, tolerance: float = ALIKE) -> bool:
    """Return whether two passes' logits are the same but for rounding, relative to the largest finite one."""
    first, second = (each.detach().float().nan_to_num(posinf=0.0, neginf=0.0) for each in (logits, others))
    return bool((first - second).abs().max() <= tolerance * second.abs().max())


def _are_probabilities(outputs: Tensor) -> bool:
    outputs = outputs.float()
    return bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < 1e-3).all())
