"""ResNets for small images, made of torchvision's blocks (He et al., arXiv 1512.03385)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.resnet import BasicBlock

from kdsearch.networks import Family, Shape
from kdsearch.networks.cpu_layers import OnCpu

DIMENSIONS = ("width", "blocks", "stride")


class _Stem(OnCpu, nn.Sequential):
    """Convolution, batch norm, ReLU and max-pool."""

    def on_cpu(self, images: Tensor) -> Tensor:
        """Return the output with ReLU last, on a fourth of the values: it and its gradients are the same bit by bit."""
        convolution, norm, relu, pool = self
        output: Tensor = relu(pool(norm(convolution(images))))
        return output


def _stem(channels: int, width: int) -> nn.Conv2d:
    """Return the ImageNet stem's convolution adapted to 32x32 input: 3x3 with stride 1; the max-pool after it stays."""
    return nn.Conv2d(channels, width, 3, stride=1, padding=1, bias=False)


class StudentResNet(nn.Module):
    """A ResNet of basic blocks with any base width, blocks a stage and first stride.

    Args:
        channels: of the image.
        classes: of the output.
        width: channels of the first stage; each later stage doubles them.
        blocks: blocks of each stage; a stage of 0 blocks is left out, and the classifier takes the width of the
            last stage kept.
        stride: of the first stage's first block; later stages have 2.
    """

    def __init__(self, channels: int, classes: int, *, width: int, blocks: Sequence[int], stride: int) -> None:
        super().__init__()
        self.stem = _Stem(
            _stem(channels, width),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages: list[nn.Module] = []
        inputs = width
        for index, count in enumerate(blocks):
            if count > 0:
                outputs = width * 2**index
                stages.append(_stage(inputs, outputs, count, stride if index == 0 else 2))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():  # the initialisation of torchvision's ResNet
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (batch, classes), from images, (batch, channels, height, width)."""
        logits: Tensor = self.classifier(self.pool(self.stages(self.stem(images))).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, count: int, stride: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(count - 1)))


def build(architecture: Mapping[str, Any], shape: Shape, classes: int) -> nn.Module:
    """Build the deck's CIFAR-10 student: `width`, `blocks` and `stride` as in `StudentResNet`."""
    return StudentResNet(shape[0], classes, **{name: architecture[name] for name in DIMENSIONS})


def build_resnet50(shape: Shape, classes: int) -> nn.Module:
    """Build the deck's CIFAR-10 teacher: torchvision's ResNet50 with the stem changed for small images."""
    network: nn.Module = resnet50(weights=None, num_classes=classes)
    network.conv1 = _stem(shape[0], 64)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


FAMILY = Family(DIMENSIONS, build, whole=DIMENSIONS, stages=("blocks",))
