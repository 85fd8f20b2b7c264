"""The plain loop that ours is timed against: a DataLoader and a step, as a careful PyTorch user would write them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from kdsearch.data import ImageSet, Split
from kdsearch.experiments.slides.deck import RAMP_EPOCHS, School, Settings
from kdsearch.spec import Recipe


def asks_teacher(school: School, settings: Settings) -> bool:
    """Whether the deck's own loop ran the teacher in each step: on CIFAR-10, for rows with a teacher."""
    return school.dataset == "cifar10" and settings.temperature is not None


def transform(split: Split) -> torchvision.transforms.Compose:
    """Return `Split.prepare` as torchvision transforms: Normalize only where it changes anything."""
    steps: list[object] = [torchvision.transforms.ToTensor()]
    mean, std = (value * split.top / 255.0 for value in (split.mean, split.std))  # ToTensor divides by 255
    if (mean, std) != (0.0, 1.0):
        channels = split.shape[0]
        steps.append(torchvision.transforms.Normalize([mean] * channels, [std] * channels))
    return torchvision.transforms.Compose(steps)


class Pictures(Dataset[tuple[Tensor, int | Tensor]]):
    """Images as torchvision's data sets provide them: from memory through Pillow, transformed one by one.

    The teacher's outputs, (count, classes), are returned in place of the labels where they are given.
    """

    def __init__(self, data: ImageSet, split: Split, outputs: Tensor | None) -> None:
        pixels = data.images[:].cpu().permute(0, 2, 3, 1).contiguous().numpy()
        self._pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        self._targets: Sequence[int] | Tensor = data.labels.tolist() if outputs is None else outputs.cpu()
        self._transform = transform(split)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        return self._transform(Image.fromarray(self._pixels[index])), self._targets[index]


def optimizer_for(network: nn.Module, recipe: Recipe, batch_size: int) -> torch.optim.Optimizer:
    """Return the recipe's optimiser with torch's defaults: not fused."""
    lr = recipe.rate_for(batch_size)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), lr=lr, eps=recipe.epsilon, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        network.parameters(), lr=lr, momentum=recipe.momentum, nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )  # fmt: skip


class PlainLoop:
    """Trains a student by a row's recipe, one plain epoch at a time.

    On CIFAR-10 the teacher runs in the loop, in evaluation mode and without gradients; on MNIST its outputs were
    computed beforehand and are loaded with the images. Nothing of `kdsearch.distil` is used, in particular no loss.

    Args:
        student: trained in place.
        school: images, teacher, its outputs and the deck's recipe.
        settings: of the row.
        workers: processes of the loader; 0: none.
        order: of the images in every epoch; None: shuffled, alike in every run.
        epoch: number of the first one, from 1: the weight of the teacher in CIFAR-10 rows grows with it.
        bf16: whether forward passes run under autocast to bfloat16, as ours do on CUDA; else float32.
    """

    def __init__(
        self,
        student: nn.Module,
        school: School,
        settings: Settings,
        *,
        workers: int,
        order: Sequence[int] | None = None,
        epoch: int = 1,
        bf16: bool = False,
    ) -> None:
        self._student, self._settings, self._next, self._bf16 = student, settings, epoch, bf16
        self._teacher = school.teacher.network.eval() if asks_teacher(school, settings) else None
        self._soft_only = school.dataset == "mnist"
        data = school.split.train
        self._device = data.labels.device
        self._optimizer = optimizer_for(student, school.deck.student.recipe, settings.batch_size)
        self._loader = DataLoader(
            Pictures(data, school.split, school.answers.logits if self._soft_only else None),
            batch_size=settings.batch_size,
            shuffle=order is None,
            sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self._device.type == "cuda",
            drop_last=len(data) % settings.batch_size == 1,  # as ours: batch norm fails on a single image
            generator=torch.Generator().manual_seed(0),
        )

    def epoch(self) -> float:
        """Train one epoch and return the mean loss of its batches."""
        self._student.train()
        total = torch.zeros((), device=self._device)
        for images, target in self._loader:
            images = images.to(self._device, non_blocking=True)
            target = target.to(self._device, non_blocking=True)
            loss = self._loss(images, target)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            total += loss.detach()
        self._next += 1
        return (total / len(self._loader)).item()

    def _forward(self, network: nn.Module, images: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            logits: Tensor = network(images)
        return logits.float()

    def _loss(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the deck's loss; `target` is teacher outputs on MNIST, (batch, classes), else labels, (batch,)."""
        logits = self._forward(self._student, images)
        temperature = self._settings.temperature
        if self._soft_only:
            assert temperature is not None
            soft = F.softmax(target / (self._settings.teacher_temperature or temperature), dim=1)
            return F.cross_entropy(logits / temperature, soft)
        loss = F.cross_entropy(logits, target)
        if self._teacher is None:
            return loss
        assert temperature is not None
        with torch.no_grad():
            outputs = self._forward(self._teacher, images)
        student, teacher = F.log_softmax(logits / temperature, dim=1), F.softmax(outputs / temperature, dim=1)
        distance = F.kl_div(student, teacher, reduction="batchmean") * temperature**2
        return loss + min(1.0, (self._next - 1) / RAMP_EPOCHS) * distance
