from __future__ import annotations

import numpy as np
import pytest
import torch

from kdsearch.data import views
from kdsearch.spec import Augment


def plain_view(image: np.ndarray, view: int, augment: Augment) -> np.ndarray:
    """One view of one image, (channels, height, width), a pixel at a time."""
    side = 2 * augment.shift + 1
    flipped, rest = divmod(view, side**2)
    down, right = rest // side - augment.shift, rest % side - augment.shift
    _, height, width = image.shape
    result = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            shifted_column = width - 1 - column if flipped else column  # shifted, then mirrored
            source_row, source_column = row - down, shifted_column - right
            if 0 <= source_row < height and 0 <= source_column < width:
                result[:, row, column] = image[:, source_row, source_column]
    return result


def image_of(*shape: int) -> torch.Tensor:
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("augment", "count"),
    [(Augment(), 1), (Augment(flip=True), 2), (Augment(shift=1), 9), (Augment(flip=True, shift=4), 162)],
)
def test_views_are_flips_times_shifts(augment, count):
    assert views.count(augment) == count


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 4, 4), (2, 3, 1)])
@pytest.mark.parametrize("augment", [Augment(flip=True, shift=2), Augment(shift=1), Augment(flip=True)])
def test_every_view_is_that_of_a_plain_loop(shape, augment):
    image = image_of(*shape)
    count = views.count(augment)
    made = views.make(image.expand(count, *shape), torch.arange(count), augment)
    for view in range(count):
        np.testing.assert_array_equal(made[view].numpy(), plain_view(image.numpy(), view, augment), err_msg=str(view))


@pytest.mark.parametrize("augment", [Augment(flip=True, shift=1), Augment(shift=3), Augment(flip=True), Augment()])
def test_the_middle_view_is_the_image(augment):
    images = image_of(4, 3, 5, 5)
    middle = (2 * augment.shift + 1) ** 2 // 2
    made = views.make(images, torch.full((4,), middle), augment)
    assert torch.equal(made, images)
    assert made.dtype == images.dtype


def test_the_views_of_an_image_all_differ():
    augment = Augment(flip=True, shift=2)
    count = views.count(augment)
    made = views.make(image_of(1, 5, 5).expand(count, 1, 5, 5), torch.arange(count), augment)
    assert len(made.flatten(1).unique(dim=0)) == count


def test_each_image_of_a_batch_gets_its_own_view():
    augment = Augment(flip=True, shift=1)
    images, chosen = image_of(3, 2, 4, 5), torch.tensor([0, 17, 4])
    made = views.make(images, chosen, augment)
    for image, view, expected in zip(made, chosen, images, strict=True):
        np.testing.assert_array_equal(image.numpy(), plain_view(expected.numpy(), int(view), augment))


def test_prepared_images_can_be_viewed_too():
    images = image_of(2, 3, 4, 4)
    chosen = torch.tensor([3, 11])
    augment = Augment(flip=True, shift=1)
    assert torch.equal(views.make(images.float(), chosen, augment), views.make(images, chosen, augment).float())
