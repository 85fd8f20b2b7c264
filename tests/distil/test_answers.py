from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.trainings import damaged, prepare
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch import networks, spec
from kdsearch.data import ImageSet
from kdsearch.distil import answers, lesson, step
from kdsearch.distil.teacher import Teacher
from kdsearch.errors import StudyFileError
from kdsearch.measure import accuracy
from kdsearch.networks.custom import Adapted
from kdsearch.networks.resnet import build_resnet50
from kdsearch.search.plan import Plan


def two_layers() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))


def test_the_logits_are_the_networks_over_the_training_set(plan: Plan, teacher: Teacher):
    found = teacher.answers(plan.split.train)
    with torch.no_grad():
        expected = teacher.network(plan.split.prepare(plan.split.train.images))
    torch.testing.assert_close(found.logits, expected)
    assert found.logits.shape == (200, 10)
    assert not found.logits.requires_grad
    assert not found.logits.is_inference()  # autograd may read it: the answers enter a loss


@pytest.mark.parametrize("batch", [7, 500])
def test_norms_and_centres_are_those_of_a_plain_loop(noise: ImageSet, monkeypatch, batch: int):
    monkeypatch.setattr(answers, "batch_of", lambda images: batch)
    network = two_layers().eval()
    with torch.no_grad():
        embeddings = network[:3](prepare(noise.images))
    found = answers.ask(network, noise, prepare)
    for index, embedding in enumerate(embeddings):
        assert found.norms[index].item() == pytest.approx(embedding.pow(2).sum().sqrt().item(), rel=1e-5)
    for label in range(2):
        mean = torch.stack([e for e, y in zip(embeddings, noise.labels, strict=True) if y == label]).mean(0)
        torch.testing.assert_close(found.centres[label], mean / mean.norm())


def test_what_was_asked_once_is_kept(noise: ImageSet, tmp_path: Path, monkeypatch):
    first = answers.obtain(two_layers(), noise, prepare, folder=tmp_path, name="t")
    monkeypatch.setattr(answers, "ask", None)
    again = answers.obtain(two_layers(), noise, prepare, folder=tmp_path, name="t")
    assert all(torch.equal(vars(first)[key], vars(again)[key]) for key in vars(first))


def test_other_images_and_other_teachers_are_asked_anew(noise: ImageSet, tmp_path: Path):
    other = ImageSet(noise.images.flip(0), noise.labels)
    answers.obtain(two_layers(), noise, prepare, folder=tmp_path, name="t")
    answers.obtain(two_layers(), other, prepare, folder=tmp_path, name="t")
    answers.obtain(two_layers(), noise, prepare, folder=tmp_path, name="u")
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("damage", ["truncated", "empty", "changed byte"])
def test_a_broken_file_is_made_again(noise: ImageSet, tmp_path: Path, damage: str):
    first = answers.obtain(two_layers(), noise, prepare, folder=tmp_path, name="t")
    (path,) = tmp_path.glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(damaged(whole)[damage])
    assert torch.equal(answers.obtain(two_layers(), noise, prepare, folder=tmp_path, name="t").logits, first.logits)
    assert path.read_bytes() == whole


def test_the_teachers_embedding_makes_its_logits(plan: Plan, teacher: Teacher):
    """The centres, used as a classifier on the teacher's own directions, are about as accurate as the teacher."""
    found = teacher.answers(plan.split.train)
    seen = []
    hook = teacher.network[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    known = accuracy(teacher.network, plan.split.test, plan.split.prepare)
    hook.remove()
    nearest = (F.normalize(torch.cat(seen), dim=1) @ found.centres.T).argmax(1) == plan.split.test.labels
    assert nearest.float().mean().item() > known - 0.1


def test_a_teacher_without_a_classifier_teaches_its_logits(noise: ImageSet, tmp_path: Path):
    network = nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten())
    for _ in range(2):  # asked, then from the cache
        found = answers.obtain(network, noise, prepare, folder=tmp_path, name="t")
        with torch.no_grad():
            torch.testing.assert_close(found.logits, network(prepare(noise.images)))
        assert (found.norms.tolist(), found.centres.shape) == ([0.0] * 40, (2, 0))
    student = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(StudyFileError, match=r"teacher must end in an nn.Linear .*; set feature_weight to 0"):
        lesson.feature_map(student, found, seed=0)


SPEC, LOOK = spec.load(spec.shipped("digits")).teacher, {"mean": [0.4] * 3, "std": [0.2] * 3, "size": 20}
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
        pytest.param(lambda: Adapted(resnet(), SPEC.model_copy(update=LOOK), (0.5, 0.25)).eval(), id="adapted"),
    ],
)
def test_a_folded_network_answers_as_it_did(network):
    plain = network()
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    folded = answers.folded(plain, images(4))
    assert norms(folded) == 0
    assert norms(plain) > 0
    for ours, theirs in zip(
        *(answers.logits_and_embedding(one, images(), FLOAT) for one in (folded, plain)), strict=True
    ):
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
        assert ours.shape == theirs.shape
    assert all(torch.equal(plain.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("network", [Looks, Twice])
def test_a_network_that_cannot_be_folded_answers_itself(network):
    torch.manual_seed(0)
    plain = trained_looking(network())
    assert answers.folded(plain, images(4)) is plain


def test_without_batch_norm_there_is_nothing_to_fold():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    assert answers.folded(plain, images(4)) is plain


def test_in_bfloat16_the_answers_are_the_plain_ones_but_for_rounding():
    plain = resnet()
    exact = answers.ready(plain, images(4), "float32", fold=False)(images(64))
    rounded = answers.ready(plain, images(4), "bfloat16")(images(64))
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert 1e-5 < error < 2**-5  # 2^-9 a rounding, through 11 layers
