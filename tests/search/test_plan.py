from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import torch

from kdsearch.distil import answers, precision
from kdsearch.errors import DefinitionError, KdsearchError, StudyFileError
from kdsearch.records import Attr, Progress, StudyAttr
from kdsearch.search import confirm, retrain
from kdsearch.search.plan import Plan, as_begun, build_student, make_plan
from kdsearch.search.run_options import Request
from kdsearch.search.study import join, optimize
from kdsearch.storage import open_storage
from kdsearch.system import machine

TINY = {"train_size": 200, "max_epochs": 2, "device": "cpu", "cost": "flops"}
STUDENT = """
[student]
family = "resnet"
threads = 1

[student.recipe]
optimizer = "sgd"
lr = 0.1
momentum = 0.9
augment = { flip = true, shift = 1 }

[latency]
batch = 8
cuda_batch = 64

[space]
width = [4]
blocks = { low = 0, high = 1, stages = 2 }
stride = [1]
loss_weight = { low = 0.0, high = 1.0 }
temperature = 4.0
epochs = { low = 1, high = 6 }
batch_size = [64]

[anchors]
a = { width = 4, blocks = [1, 0], stride = 1, loss_weight = 0.5, temperature = 4.0, epochs = 3, batch_size = 64 }
b = { width = 4, blocks = [1, 1], stride = 1, loss_weight = 0.0, epochs = 1, batch_size = 64 }
"""


@pytest.fixture
def convolutional(tmp_path: Path, digits_text: str) -> Path:
    """Tiny ResNets of 8x8 digits with flips and shifts, taught by the shipped teacher of digits."""
    path = tmp_path / "convolutional.toml"
    path.write_text(digits_text.partition("[student]")[0] + STUDENT, encoding="utf-8")
    return path


def test_a_student_that_does_not_fit_in_memory_is_one_line(plan: Plan):
    with pytest.raises(StudyFileError, match=r"must fit in memory \(got {'width': 1000000000000}\); lower"):
        build_student(plan.spec, plan.split, {"width": 10**12})


def run(study: Path, url: str, **changes) -> optuna.Study:
    return optimize(study=study, storage=url, name="s", seed=0, pruner="none", **{**TINY, "trials": 2, **changes})


def made_before(url: str) -> None:
    """Takes out of a study what studies did not hold before there were pools and precisions."""
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    for name in (StudyAttr.DEFINITION, StudyAttr.STUDY_FILE):
        kept = json.loads(json.dumps(study.user_attrs[name]))
        kept["student"]["recipe"]["augment"].pop("views", None)
        kept["latency"].pop("cuda_batch", None)
        kept.pop("precision", None)
        study.set_user_attr(name, kept)


def test_a_pool_has_as_many_views_as_the_longest_training_has_epochs(convolutional):
    def pool(**changes) -> int | None:
        return make_plan(Request(study=convolutional, **{**TINY, **changes})).spec.student.recipe.augment.views

    assert pool(max_epochs=None) == 6
    assert pool() == TINY["max_epochs"]
    text = convolutional.read_text()
    convolutional.write_text(text.replace("shift = 1 }", "shift = 1, views = 4 }"))
    assert pool() == pool(max_epochs=None) == 4
    convolutional.write_text(text.replace("shift = 1 }", "shift = 0 }"))
    assert pool(max_epochs=None) == 2  # there are no more
    convolutional.write_text(text.replace("flip = true, shift = 1", "flip = false"))
    assert pool() is None


def test_more_views_than_there_are_are_refused(convolutional):
    convolutional.write_text(convolutional.read_text().replace("shift = 1 }", "shift = 1, views = 19 }"))
    with pytest.raises(KdsearchError, match=r"augment: views must be at most the 18 that there are \(got 19\)"):
        make_plan(Request(study=convolutional, **TINY))


@pytest.mark.slow
def test_a_study_in_bfloat16_is_searched_confirmed_and_trained_again_in_it(convolutional, url):
    """This CPU may be slow at it, but has it."""
    study = run(convolutional, url, precision="bfloat16")
    assert study.user_attrs[StudyAttr.DEFINITION]["precision"] == "bfloat16"
    assert study.user_attrs[StudyAttr.DEFINITION]["student"]["recipe"]["augment"]["views"] == 2
    said = study.user_attrs[StudyAttr.ENVIRONMENT]["precision"]
    assert said == "convolutions trained in bfloat16 (set by --precision); ratios are of float32"
    assert [trial.user_attrs[Attr.PRECISION] for trial in study.trials] == ["bfloat16"] * 2
    assert all(0 < trial.values[0] <= 1 for trial in study.trials)
    again = run(convolutional, url, trials=3)  # auto: the study's own, though nothing here would choose it
    assert [trial.user_attrs[Attr.PRECISION] for trial in again.trials] == ["bfloat16"] * 3
    with pytest.raises(DefinitionError, match=r"precision must stay the same \(bfloat16\) \(got float32\)"):
        run(convolutional, url, precision="float32")
    student = retrain.retrain(again, 0, device="cpu")
    assert student.accuracy == again.trials[0].user_attrs[Attr.ACCURACY]
    other = retrain.retrain(again, 0, device="cpu", precision="float32")
    states = (student.network.state_dict(), other.network.state_dict())
    assert any(not torch.equal(value, states[1][key]) for key, value in states[0].items())
    confirm.confirm(again, confirm.choose(again, "0"), repeats=1, device="cpu")
    assert again.user_attrs["confirmed:0"]["environment"]["precision"] == "bfloat16"
    confirm.confirm(again, confirm.choose(again, "0"), repeats=2, device="cpu", precision="float32")
    assert again.user_attrs["confirmed:0"]["changes"] == ["precision: bfloat16 -> float32"]


def test_a_worker_without_instructions_joins_in_the_studys_precision_and_is_warned(convolutional, url, monkeypatch):
    run(convolutional, url, precision="bfloat16", trials=1)

    class Said(Progress):
        lines: list[str] = []  # noqa: RUF012

        def warning(self, text: str) -> None:
            self.lines.append(text)

    monkeypatch.setattr(machine, "bf16_instructions", list)
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    kept = {**study.user_attrs[StudyAttr.OPTIONS], "trials": 2}
    study.set_user_attr(StudyAttr.OPTIONS, kept)
    joined = join(url, "s", device="cpu", progress=Said())
    assert [trial.user_attrs[Attr.PRECISION] for trial in joined.trials] == ["bfloat16"] * 2
    assert any("ten times as long" in line for line in Said.lines)


def test_a_study_made_before_pools_and_precisions_goes_on_as_it_was(convolutional, url, monkeypatch):
    monkeypatch.setattr(machine, "bf16_instructions", list)  # else timed steps decide, and under load by chance
    run(convolutional, url, trials=1)
    made_before(url)
    monkeypatch.setattr(machine, "bf16_instructions", lambda: ["avx512_bf16"])
    monkeypatch.setattr(precision, "step_seconds", lambda *args: {"float32": 1.0, "bfloat16": 0.5}[args[-1]])
    study = run(convolutional, url)  # a new study would train in bfloat16, from a pool of 2 views
    kept = study.user_attrs[StudyAttr.STUDY_FILE]
    assert "views" not in kept["student"]["recipe"]["augment"]
    assert "cuda_batch" not in kept["latency"]
    assert [trial.user_attrs[Attr.PRECISION] for trial in study.trials] == ["float32"] * 2
    assert "precision" not in study.user_attrs[StudyAttr.DEFINITION]
    with pytest.raises(DefinitionError, match="precision must stay the same"):
        run(convolutional, url, precision="bfloat16")
    text = convolutional.read_text()
    convolutional.write_text(text.replace("shift = 1 }", "shift = 1, views = 5 }"))
    with pytest.raises(DefinitionError, match=r"student\.recipe\.augment\.views: nothing -> 5"):
        run(convolutional, url)


def test_a_begun_study_of_this_version_changes_nothing(convolutional):
    plan = make_plan(Request(study=convolutional, **TINY))
    stored = plan.spec.model_dump(mode="json") | {"precision": "float32"}
    again = as_begun(plan, stored)
    assert again.spec == plan.spec
    assert again.precision.name == "float32"


def test_a_timing_takes_the_batch_of_the_device_that_is_timed(convolutional):
    latency = make_plan(Request(study=convolutional, **TINY)).spec.latency
    assert (latency.batch_on("cpu"), latency.batch_on("cuda")) == (8, 64)
    assert latency.model_copy(update={"cuda_batch": None}).batch_on("cuda") == 8


def test_the_teacher_answers_what_a_confirmation_adds_alone(convolutional, url):
    """A pool of 2 views of 200 images in the search; the confirmation asks for the validation images' alone."""
    text = convolutional.read_text()
    convolutional.write_text(text.replace("shift = 1 }", "shift = 2 }"))  # that no other test asks for
    study = run(convolutional, url)
    asked: list[int] = []
    plan = make_plan(Request(study=convolutional, **TINY))
    original = answers.ViewAnswers._ask_for

    def counted(self, indices, wanted):
        asked.extend(indices.tolist())
        original(self, indices, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers.ViewAnswers, "_ask_for", counted)
        confirm.confirm(study, confirm.choose(study, "0"), repeats=1, device="cpu")
    assert 0 < len(asked) <= 2 * len(plan.split.validation)
    assert min(asked) >= len(plan.split.train)
