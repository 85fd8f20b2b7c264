from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdsearch import networks
from kdsearch.distil import frozen, step
from kdsearch.networks.custom import Adapted
from kdsearch.networks.resnet import build_resnet50

FLOAT = step.Format(False, torch.contiguous_format)


def trained_looking(network: nn.Module) -> nn.Module:
    """With statistics and scales as training leaves them: those of a new network fold to nearly nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            module.running_mean = torch.rand(size, generator=generator) - 0.5
            module.running_var = 0.5 + torch.rand(size, generator=generator)
            module.weight.data = 0.5 + torch.rand(size, generator=generator)
            module.bias.data = torch.rand(size, generator=generator) - 0.5
    return network.eval()


def resnet() -> nn.Module:
    architecture = {"width": 8, "blocks": [1, 1, 1, 0], "stride": 1}
    return trained_looking(networks.student_family("resnet").build(architecture, (3, 16, 16), 4))


def images(count: int = 12) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


class Looks(nn.Module):
    """A network that torch.fx cannot follow: its flow hangs on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = resnet()

    def forward(self, shown: Tensor) -> Tensor:
        return self.inner(shown) if shown.mean() > 0 else self.inner(-shown)


class Twice(nn.Module):
    """One convolution and its norm used twice: each use would be folded, into the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.classifier = nn.Linear(3, 4)

    def forward(self, shown: Tensor) -> Tensor:
        once = self.norm(self.conv(shown))
        return self.classifier(self.norm(self.conv(once)).mean((2, 3)))


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(resnet, id="a student's family"),
        pytest.param(lambda: trained_looking(build_resnet50((3, 16, 16), 4)), id="resnet50", marks=pytest.mark.slow),
        pytest.param(
            lambda: Adapted(resnet(), given=(0.5, 0.25), wanted=([0.4] * 3, [0.2] * 3), size=20).eval(), id="adapted"
        ),
    ],
)
def test_a_folded_network_answers_as_it_did(network):
    plain = network()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    folded = frozen.folded(plain, images(4))
    assert norms(folded) == 0
    assert norms(plain) > 0
    for ours, theirs in zip(
        *(frozen.logits_and_embedding(one, images(), FLOAT) for one in (folded, plain)), strict=True
    ):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
        assert ours.shape == theirs.shape
    assert all(torch.equal(plain.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("network", [Looks, Twice])
def test_a_network_that_cannot_be_folded_answers_itself(network):
    torch.manual_seed(0)
    plain = trained_looking(network())
    assert frozen.folded(plain, images(4)) is plain


def test_without_batch_norm_there_is_nothing_to_fold():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    assert frozen.folded(plain, images(4)) is plain


def test_in_bfloat16_the_answers_are_the_plain_ones_but_for_rounding():
    plain = resnet()
    exact = frozen.ready(plain, images(4), "float32", fold=False)(images(64))
    rounded = frozen.ready(plain, images(4), "bfloat16")(images(64))
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert 1e-5 < error < 2**-5  # 2^-9 a rounding, through 11 layers
