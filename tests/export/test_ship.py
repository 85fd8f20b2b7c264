from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna import Study
from torch import nn

from kdsearch.errors import KdsearchError
from kdsearch.export import ship
from kdsearch.progress import Progress
from kdsearch.search.study import optimize

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_pairs")]


@pytest.fixture
def study(study_file: Path, url: str) -> Study:
    return optimize(study=study_file, trials=2, storage=url, train_size=200, max_epochs=2, cost="flops", device="cpu")


def export(study: Study, url: str, out: Path, kind: str) -> dict[str, Any]:
    number = study.best_trials[0].number
    return ship.export(study, number, kind=kind, out=out, url=url, data_dir=None, progress=Progress())


@pytest.mark.parametrize("kind", ship.FORMATS)
def test_a_file_scores_as_torch_does_and_a_corrupt_one_is_not_left(
    study: Study, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    found = export(study, url, tmp_path / "out", kind)
    assert found["weights"] == "kept weights"
    assert found["test_accuracy"] == pytest.approx(found["search_test_accuracy"], abs=ship.POINTS)
    assert found["low"] <= found["ratio"] <= found["high"]
    real = ship.write

    def corrupt(network: nn.Module, *rest: Any) -> None:
        with torch.no_grad():
            other = copy.deepcopy(network)
            for parameter in other.parameters():
                parameter.neg_()
        real(other, *rest)

    monkeypatch.setattr(ship, "write", corrupt)
    with pytest.raises(KdsearchError, match="must predict as torch does"):
        export(study, url, tmp_path / "bad", kind)
    assert list((tmp_path / "bad").iterdir()) == []


def test_an_unknown_format_is_one_line(study: Study, url: str, tmp_path: Path):
    with pytest.raises(KdsearchError, match="--format must be known"):
        export(study, url, tmp_path, "tflite")
