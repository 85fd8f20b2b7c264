"""scikit-learn's digits, told apart as even or odd."""

import dataclasses
from pathlib import Path

from kdsearch.data import Dataset, ImageSet, digits
from kdsearch.spec import DataSpec


def load(spec: DataSpec, folder: Path) -> Dataset:
    """The digits with two classes."""
    whole = digits.load(spec, folder)
    train, test = (ImageSet(part.images, part.labels % 2) for part in (whole.train, whole.test))
    return dataclasses.replace(whole, name=spec.name, classes=("even", "odd"), train=train, test=test)
