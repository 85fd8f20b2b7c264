from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from helpers.recording import Recorder
from optuna import Study
from safetensors.torch import load_file
from torch import Tensor, nn

from kdsearch.data import repeated
from kdsearch.errors import KdsearchError
from kdsearch.export import formats, model_card, ship
from kdsearch.records import Attr, Progress, StudyAttr, confirmed_runs
from kdsearch.search import weights
from kdsearch.search.confirm import confirm
from kdsearch.search.study import optimize
from kdsearch.search.workshop import Workshop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_pairs")]


@pytest.fixture
def study(study_file: Path, url: str) -> Study:
    return optimize(
        study=study_file, trials=2, storage=url, train_size=200, max_epochs=2, cost="flops", device="cpu", seed=0
    )


def export(study: Study, url: str, out: Path, kind: str) -> dict[str, Any]:
    number = max(study.best_trials, key=lambda trial: trial.values[0]).number
    return ship.export(study, number, kind=kind, out=out, url=url, data_dir=None, progress=Progress())


@pytest.mark.parametrize("kind", formats.KINDS)
def test_a_file_scores_as_torch_does_and_a_corrupt_one_is_not_left(
    study: Study, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    found = export(study, url, tmp_path / "out", kind)
    assert found["weights"] == "kept weights, of the search"
    lost = found["search_test_accuracy"] - found["test_accuracy"]
    assert lost <= formats.INT8_POINTS if kind == formats.INT8 else abs(lost) <= formats.POINTS
    assert found["format"] == kind
    assert Path(found["file"]).name == f"trial-{found['trial']}.{formats.ENDINGS[kind]}"
    assert found["low"] <= found["ratio"] <= found["high"]
    real = formats.write

    def corrupt(network: nn.Module, *rest: Any) -> None:
        with torch.no_grad():
            other = copy.deepcopy(network)
            for parameter in other.parameters():
                parameter.copy_(parameter.flip(0))  # negated, a network that is nearly linear still works
        real(other, *rest)

    monkeypatch.setattr(formats, "write", corrupt)
    with pytest.raises(
        KdsearchError, match="may lose at most 1 point" if kind == formats.INT8 else "must predict as torch does"
    ):
        export(study, url, tmp_path / "bad", kind)
    assert list((tmp_path / "bad").iterdir()) == []


def test_the_card_says_what_the_files_reached_and_leaves_out_what_is_not_theirs(study: Study, url: str, tmp_path: Path):
    out = tmp_path / "out"
    found = {kind: export(study, url, out, kind) for kind in ("onnx", "safetensors")}
    number = found["onnx"]["trial"]
    text = (out / f"trial-{number}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# Trial {number} of study digits\n")
    for kind, each in found.items():
        assert f"- SHA-256: {hashlib.sha256((out / f'trial-{number}.{kind}').read_bytes()).hexdigest()}" in text
        assert f"- test accuracy there: {100 * each['test_accuracy']:.2f} % (" in text
    assert found["onnx"]["runtime"] == f"onnxruntime {onnxruntime.__version__}"
    assert f"- ONNX opset: {found['onnx']['opset']}" in text
    assert "counted operations" in text
    assert "- classes, in this order: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in text
    assert json.loads((out / "classes.json").read_text()) == [str(digit) for digit in range(10)]
    assert text.endswith(f"## Licence\n\n{model_card.LICENCE}\n")

    runs = [{"seed": 1, "test_accuracy": 0.5, "ratio": 2.0, "ratio_low": 1.9, "ratio_high": 2.1, "seconds": 1.0}]
    study.set_user_attr(f"{StudyAttr.CONFIRMED}{number}", {"trial": number, "epochs": 1, "runs": runs})
    (out / f"trial-{number}.onnx").write_bytes(b"another")
    export(study, url, out, "pt2")
    text = (out / f"trial-{number}.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## File")] == [
        f"## File `trial-{number}.{kind}`" for kind in ("pt2", "safetensors")
    ]
    assert "mean test accuracy: 50.00 %" in text


def test_what_was_confirmed_is_what_is_exported(study: Study, url: str, tmp_path: Path):
    (trial,) = [trial for trial in study.trials if trial.number == 1]
    confirm(study, [trial], repeats=2, device="cpu", url=url)
    first, _ = confirmed_runs(study.user_attrs[f"{StudyAttr.CONFIRMED}1"])
    assert first.test_accuracy != trial.user_attrs[Attr.TEST_ACCURACY]

    def shipped(progress: Progress) -> dict[str, Any]:
        return ship.export(study, 1, kind="safetensors", out=tmp_path, url=url, data_dir=None, progress=progress)

    found = shipped(Progress())
    assert found["weights"] == "kept weights, of the first confirmation run"
    assert found["test_accuracy"] == pytest.approx(first.test_accuracy)
    kept = load_file(found["file"])
    (path,) = weights.folder(url, study.study_name).glob("confirmed-1-*.safetensors")
    path.unlink()
    again = shipped(heard := Recorder())
    assert "trial 1 is trained again" in heard.warnings[0]
    assert again["weights"] == "trained again, of the first confirmation run"
    for name, tensor in load_file(again["file"]).items():
        assert torch.equal(tensor, kept[name])


@pytest.mark.parametrize("kind", ["pt2", "safetensors"])
def test_the_images_timed_are_those_of_the_search(workshop: Workshop, kind: str):
    seen: list[Tensor] = []

    def student(images: Tensor) -> Tensor:
        seen.append(images)
        return images

    timing = formats.timed(workshop, kind, student)
    batch = workshop.spec.latency.batch
    assert timing.batch == batch
    assert torch.equal(seen[0], repeated(workshop.split.validation.images, batch))
    assert len(seen[0].unique(dim=0)) == len(workshop.split.validation.images[:batch].unique(dim=0)) > 1
