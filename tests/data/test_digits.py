from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from kdsearch import data
from kdsearch.search.plan import Plan
from kdsearch.spec import DataSpec


def test_the_digits_are_scikit_learns_in_two_stratified_parts(tmp_path):
    digits = data.load(DataSpec(name="digits"), tmp_path)
    assert (len(digits.train), len(digits.test)) == (1347, 450)
    assert digits.train.images.shape == (1347, 1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert int(digits.train.images.max()) == digits.top == 16
    assert all(40 <= count <= 50 for count in torch.bincount(digits.test.labels).tolist())
    parts = torch.cat([digits.train.images, digits.test.images]).flatten(1).tolist()
    assert sorted(parts) == sorted(load_digits().data.tolist())
    assert [*tmp_path.iterdir()] == []


def test_the_tiny_plan_is_as_large_as_it_says(plan: Plan):
    assert len(plan.split.train) == 200
    assert len(plan.split.validation) == 200
    assert len(plan.split.test) == 450
    assert plan.split.shape == (1, 8, 8)
    assert 0 <= float(plan.split.example(10).min()) < float(plan.split.example(10).max()) <= 1
