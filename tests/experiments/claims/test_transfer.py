from __future__ import annotations

import pytest
import torch

from kdsearch import data
from kdsearch.experiments.claims.lab import transfer_set


@pytest.fixture
def split(lab) -> data.Split:
    return lab.split


def test_halves_share_no_image_and_hold_all(split):
    first, second = transfer_set("first half", split), transfer_set("second half", split)
    assert len(first) + len(second) == len(split.train)
    assert abs(len(first) - len(second)) <= 1
    rows = torch.cat([first.images, second.images]).flatten(1)
    assert sorted(rows.tolist()) == sorted(split.train.images.flatten(1).tolist())
    assert (first.labels.bincount() - second.labels.bincount()).abs().max() <= 1


def test_a_tenth_is_stratified(split):
    tenth = transfer_set("tenth", split)
    assert len(tenth) == len(split.train) // 10
    assert tenth.labels.bincount().min() >= 12


def test_without_a_class_everything_else_is_there(split):
    found = transfer_set("without a class", split)
    assert 3 not in found.labels
    assert len(found) == int((split.train.labels != 3).sum())


@pytest.mark.parametrize("which", ["noise", "photographs"])
def test_unreal_images_are_as_many_in_the_same_range_and_always_the_same(split, which):
    found, again = transfer_set(which, split), transfer_set(which, split)
    assert found.images.shape == split.train.images.shape
    assert found.images.dtype == torch.uint8
    assert 0 <= int(found.images.min()) < int(found.images.max()) <= 16
    assert torch.equal(found.images, again.images)
    different = len(found.images.flatten(1).unique(dim=0)) / len(found)
    assert different > {"noise": 0.99, "photographs": 0.5}[which]  # a sky of 8x8 pixels is often all white


def test_noise_is_uniform_and_photographs_are_smooth(split):
    noise, pictures = (transfer_set(which, split).images.float() for which in ("noise", "photographs"))
    assert noise.flatten().int().bincount(minlength=17).float().std() < 0.03 * noise.numel() / 17
    rough = [(x[..., 1:] - x[..., :-1]).abs().mean().item() for x in (noise, pictures)]
    assert rough[1] < rough[0] / 3
