from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

from kdsearch import networks
from kdsearch.networks.resnet import StudentResNet


def student(blocks, *, width: int = 8, stride: int = 1, channels: int = 3) -> StudentResNet:
    return StudentResNet(channels, 10, width=width, blocks=blocks, stride=stride)


def with_small_stem(network: nn.Module) -> nn.Module:
    network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    return network


def test_the_decks_baseline_is_resnet18_with_a_small_stem():
    ours, theirs = student([2, 2, 2, 2], width=64), with_small_stem(resnet18(num_classes=10))
    assert networks.parameters(ours) == networks.parameters(theirs)
    # torchvision's modules in their order, so its weights fit ours one by one
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    assert all(a.shape == b.shape for a, b in pairs)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_the_teacher_is_resnet50_with_a_small_stem():
    teacher = networks.build_teacher("resnet50", (3, 32, 32), 10).eval()
    assert networks.parameters(teacher) == networks.parameters(with_small_stem(resnet50(num_classes=10)))
    stem = teacher.conv1
    assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == ((3, 3), (1, 1), (1, 1), None)
    sizes = {}
    for name in ("conv1", "maxpool", "layer1", "layer4"):
        getattr(teacher, name).register_forward_hook(lambda m, i, out, name=name: sizes.update({name: out.shape[1:]}))
    with torch.no_grad():
        assert teacher(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert sizes == {"conv1": (64, 32, 32), "maxpool": (64, 16, 16), "layer1": (256, 16, 16), "layer4": (2048, 2, 2)}


@pytest.mark.parametrize(
    ("blocks", "features"), [([2, 2, 2, 2], 64), ([1, 1, 0, 0], 16), ([3, 0, 0, 0], 8), ([1, 2, 1, 0], 32)]
)
def test_a_stage_of_no_blocks_is_left_out(blocks, features):
    network = student(blocks)
    assert network.classifier.in_features == features
    assert [len(stage) for stage in network.stages] == [b for b in blocks if b]


def test_leaving_stages_out_leaves_the_first_ones_as_they_are():
    whole, short = student([2, 2, 1, 1]), student([2, 2, 0, 0])
    per_stage = [networks.parameters(stage) for stage in whole.stages]
    stem = networks.parameters(whole.stem)
    assert networks.parameters(short) == stem + sum(per_stage[:2]) + 16 * 10 + 10


@pytest.mark.parametrize(("stride", "size"), [*itertools.product([1, 2, 4], [8, 32])])
def test_every_stride_runs_on_small_images(stride, size):
    network = student([1, 1, 1, 1], stride=stride, channels=1)
    assert network(torch.zeros(2, 1, size, size)).shape == (2, 10)
    side = network.stages[0](network.stem(torch.zeros(2, 1, size, size))).shape[-1]
    assert side == -(-size // 2 // stride)


def test_later_stages_halve_the_image_whatever_the_stride():
    network = student([2, 1, 1, 1], stride=1).eval()
    sides, images = [], network.stem(torch.zeros(1, 3, 32, 32))
    for stage in network.stages:
        images = stage(images)
        sides.append(tuple(images.shape[1:]))
    assert sides == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (64, 2, 2)]


def test_the_family_builds_what_its_architecture_says():
    family = networks.student_family("resnet")
    assert family.dimensions == ("width", "blocks", "stride")
    built = family.build({"width": 16, "blocks": [1, 1, 0, 0], "stride": 2}, (1, 8, 8), 3)
    assert networks.parameters(built) == networks.parameters(
        StudentResNet(1, 3, width=16, blocks=[1, 1, 0, 0], stride=2)
    )
