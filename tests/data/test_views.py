from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


POOL = Augment(flip=True, shift=1, views=5)


@settings(max_examples=15)
@given(images=st.integers(1, 40), flip=st.booleans(), shift=st.integers(0, 2), part=st.floats(0, 1))
def test_a_pool_holds_different_views_of_each_image(images, flip, shift, part):
    there = Augment(flip=flip, shift=shift).different
    augment = Augment(flip=flip, shift=shift, views=max(1, round(part * there)))
    drawn = views.pool(images, augment)
    assert drawn is not None
    assert drawn.shape == (images, augment.views) == (images, views.shown(augment))
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < there
    assert all(len(row.unique()) == augment.views for row in drawn)


def test_pools_are_drawn_evenly_and_for_each_image_anew():
    drawn = views.pool(5000, POOL)
    assert drawn is not None
    shares = drawn.long().flatten().bincount(minlength=18) / 5000
    assert shares.min() > 0.24  # expected: 5/18 = 0.278, with a standard deviation of 0.006
    assert shares.max() < 0.31
    assert len(drawn.unique(dim=0)) > 4900


def test_the_pools_of_the_first_images_and_the_first_views_stay(monkeypatch):
    many = views.pool(views.ROWS + 10, POOL)
    few = views.pool(views.ROWS - 10, POOL)
    smaller = views.pool(views.ROWS + 10, POOL.model_copy(update={"views": 2}))
    assert torch.equal(many[: len(few)], few)
    assert torch.equal(many[:, :2], smaller)


def test_without_a_pool_all_views_are_shown():
    assert views.pool(10, Augment(flip=True, shift=1)) is None
    assert views.shown(Augment(flip=True, shift=1)) == 18


@given(size=st.integers(1, 18), seed=st.integers(0, 2**62), first=st.integers(1, 40))
def test_no_view_is_shown_twice_until_all_were(size, seed, first):
    augment = POOL.model_copy(update={"views": size})
    seen = torch.stack([views.places(7, augment, seed=seed, epoch=first + step) for step in range(size)])
    assert torch.equal(seen.sort(dim=0).values, torch.arange(size)[:, None].expand(size, 7))
    assert torch.equal(views.places(7, augment, seed=seed, epoch=first + size), seen[0])


def test_trainings_go_round_the_pool_from_other_starts_and_images_too():
    one, other = (views.places(100, POOL, seed=seed, epoch=1) for seed in (0, 1))
    assert not torch.equal(one, other)
    assert set(one.tolist()) == set(range(5))
    assert torch.equal(one, views.places(100, POOL, seed=0, epoch=1))
