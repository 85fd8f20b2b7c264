"""scikit-learn's 1,797 real 8x8 digits (Alpaydin and Kaynak, UCI 1998), embedded: no download."""

from __future__ import annotations

from pathlib import Path

import torch

from kdsearch.data.base import Dataset, ImageSet
from kdsearch.spec import DataSpec

TEST_SHARE = 0.25
TEST_SEED = 0


def load(spec: DataSpec, folder: Path) -> Dataset:
    """Return the digits; a fixed, stratified quarter is the test set, because scikit-learn ships them without one.

    Neither argument is used: both are those of every data set's `load`.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images = torch.from_numpy(raw.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(raw.target).to(torch.int64)
    train, test = train_test_split(
        range(len(labels)), test_size=TEST_SHARE, random_state=TEST_SEED, stratify=raw.target
    )
    whole = ImageSet(images, labels)
    return Dataset(
        name="digits",
        classes=tuple("0123456789"),
        train=whole.subset(torch.tensor(sorted(train))),
        test=whole.subset(torch.tensor(sorted(test))),
        top=16.0,
    )
