from __future__ import annotations

import torch
from torch import nn

from kdsearch.data import ImageSet
from kdsearch.measure.accuracy import accuracy, logits


def pixels(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).float()


def test_accuracy_is_the_share_of_labels_with_the_largest_logit():
    images = torch.tensor([[9, 0, 0], [0, 9, 0], [0, 0, 9], [5, 6, 0]], dtype=torch.uint8).view(4, 3, 1, 1)
    assert accuracy(nn.Identity(), ImageSet(images, torch.tensor([0, 1, 2, 0])), pixels) == 0.75


def test_accuracy_of_many_images_is_exact():
    labels = torch.arange(1501) % 2
    images = torch.stack([1 - labels, labels], dim=1).view(-1, 2, 1, 1).to(torch.uint8)
    wrong = labels.clone()
    wrong[:7] = 1 - wrong[:7]
    assert accuracy(nn.Identity(), ImageSet(images, wrong), pixels) == 1494 / 1501


def test_logits_are_those_of_the_whole_set_in_evaluation_mode():
    images = torch.randint(256, (1203, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    found = logits(network, images, pixels)
    assert not network.training
    torch.testing.assert_close(found, network(pixels(images)).detach())
    assert not found.is_inference()  # autograd may read it: the cached logits enter a loss
