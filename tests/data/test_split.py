from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdsearch import data
from kdsearch.data.base import Dataset, ImageSet, fingerprint, stratified
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec

CPU = torch.device("cpu")


def numbered(per_class: int, classes: int = 3) -> Dataset:
    """Images whose only pixel tells them apart: (count, 1, 1, 1)."""
    count = per_class * classes
    assert count < 256
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    images = ImageSet(pixels, torch.arange(count) % classes)
    return Dataset("numbered", tuple("abc"[:classes]), train=images, test=images.subset(torch.arange(5)))


def split(dataset: Dataset, **changes) -> data.Split:
    return data.split(dataset, DataSpec(name="numbered", **{"validation": 0.2, **changes}), CPU)


def ids(images: ImageSet) -> list[int]:
    return images.images.flatten().tolist()


def test_the_parts_are_disjoint_and_complete_and_the_test_set_stays_whole():
    parts = split(numbered(20))
    assert sorted(ids(parts.train) + ids(parts.validation)) == list(range(60))
    assert len(parts.validation) == 12
    assert ids(parts.test) == [0, 1, 2, 3, 4]


def test_images_keep_their_labels():
    parts = split(numbered(20), train_size=30)
    for part in (parts.train, parts.validation):
        assert part.labels.tolist() == [number % 3 for number in ids(part)]


@pytest.mark.parametrize("train_size", [None, 30])
def test_every_class_has_its_share_in_each_part(train_size):
    parts = split(numbered(20), train_size=train_size)
    assert torch.bincount(parts.train.labels).tolist() == [16 if train_size is None else 10] * 3
    assert torch.bincount(parts.validation.labels).tolist() == [4] * 3


def test_the_split_follows_its_seed_alone():
    first, again, other = split(numbered(20)), split(numbered(20)), split(numbered(20), split_seed=1)
    assert ids(first.validation) == ids(again.validation) != ids(other.validation)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_training_size_draws_that_many_and_no_more_validation_images():
    parts = split(numbered(60), train_size=9)
    assert (len(parts.train), len(parts.validation)) == (9, 9)
    whole = split(numbered(60))
    assert set(ids(parts.train)) < set(ids(whole.train))
    assert set(ids(parts.validation)) < set(ids(whole.validation))


def test_a_training_size_leaves_the_held_out_images_alone():
    assert ids(split(numbered(20), train_size=30).validation) == ids(split(numbered(20)).validation)


@pytest.mark.parametrize(("per_class", "changes"), [(20, {"train_size": 2}), (2, {}), (20, {"validation": 0.001})])
def test_a_part_without_every_class_is_refused(per_class, changes):
    with pytest.raises(DataError, match="at least one image of every class"):
        split(numbered(per_class), **changes)


def test_one_pixel_or_one_label_changes_the_fingerprint():
    part = numbered(3).train
    pixel, label = part.images.clone(), part.labels.clone()
    pixel[4] += 1
    label[4] = (label[4] + 1) % 3
    prints = {fingerprint([p]) for p in (part, ImageSet(pixel, part.labels), ImageSet(part.images, label))}
    assert len(prints) == 3
    assert fingerprint([ImageSet(part.images.clone(), part.labels.clone())]) == fingerprint([part])
    assert fingerprint([ImageSet(part.images.view(-1, 1, 3, 1), part.labels)]) != fingerprint([part])


@pytest.mark.parametrize(("top", "mean", "std"), [(255.0, 0.0, 1.0), (16.0, 0.0, 1.0), (255.0, 0.5, 0.5)])
def test_prepare_scales_and_normalises(top, mean, std):
    parts = split(dataclasses.replace(numbered(20), top=top, mean=mean, std=std))
    image = torch.randint(256, (4, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    expected = (image.numpy().astype(np.float64) / top - mean) / std
    prepared = parts.prepare(image)
    assert prepared.dtype == torch.float32
    np.testing.assert_allclose(prepared.numpy(), expected, atol=1e-5)
    assert torch.equal(image, before)


def test_an_example_batch_repeats_the_images_where_they_are_too_few():
    parts = split(dataclasses.replace(numbered(20), top=1.0))
    shown: Tensor = parts.example(30)
    assert shown.shape == (30, 1, 1, 1)
    assert shown.flatten().tolist() == (ids(parts.validation) * 3)[:30]


def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"got imagenet\); choose one of cifar10, digits, folder, mnist"):
        data.load(DataSpec(name="imagenet"), tmp_path)
    with pytest.raises(DataError, match="imagenet"):
        data.check_name("imagenet")
    data.check_name("folder:/anywhere")


def test_a_data_set_of_another_package_is_checked():
    whole = numbered(20)
    data.check(whole, "theirs")
    train, test = whole.train, whole.test
    other_size, shorts = test.images.expand(-1, 3, -1, -1), test.labels.int()
    wrong = [
        (None, "a Dataset"),
        (dataclasses.replace(whole, classes=("a",)), "at least two classes"),
        (dataclasses.replace(whole, classes=("a", "b")), "train labels from 0 to 1"),
        (dataclasses.replace(whole, train=ImageSet(train.images.float(), train.labels)), "train images of bytes"),
        (dataclasses.replace(whole, train=ImageSet(train.images[:, 0], train.labels)), "train images of bytes"),
        (dataclasses.replace(whole, test=ImageSet(test.images, test.labels[1:])), "an int64 label for each test image"),
        (dataclasses.replace(whole, test=ImageSet(test.images, shorts)), "an int64 label for each test image"),
        (dataclasses.replace(whole, test=test.subset(torch.arange(0))), "test images"),
        (dataclasses.replace(whole, test=ImageSet(test.images, test.labels - 1)), "test labels from 0 to 2"),
        (dataclasses.replace(whole, test=ImageSet(other_size, test.labels)), "training images' size"),
    ]
    for dataset, rule in wrong:
        with pytest.raises(DataError, match=rule) as caught:
            data.check(dataset, "theirs")
        assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.lists(st.integers(2, 8), min_size=2, max_size=5), st.integers(0, 40), st.integers(0, 99))
def test_a_draw_and_its_rest_hold_every_class(counts, more, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    count = min(len(counts) + more, len(labels) - len(counts))
    drawn, rest = stratified(labels, count, seed, "a part")
    assert len(drawn) == count
    assert sorted([*drawn.tolist(), *rest.tolist()]) == [*range(len(labels))]
    for part in (drawn, rest):
        assert labels[part].unique().tolist() == [*range(len(counts))]
