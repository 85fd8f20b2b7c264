from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdsearch.data import ImageSet
from kdsearch.distil import answers, frozen, lesson
from kdsearch.distil.teacher import Teacher
from kdsearch.errors import StudyFileError
from kdsearch.measure import accuracy
from kdsearch.search.plan import Plan


def two_layers() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2))


def prepare(images):
    return images.float() / 255


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
    monkeypatch.setattr(frozen, "batch_of", lambda images: batch)
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
    damaged = {"truncated": whole[: len(whole) // 2], "empty": b"", "changed byte": whole[:-1] + bytes([whole[-1] ^ 1])}
    path.write_bytes(damaged[damage])
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
