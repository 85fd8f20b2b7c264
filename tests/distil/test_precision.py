from __future__ import annotations

import json

import pytest
import torch
from helpers.trainings import lesson
from torch import nn

from kdsearch import networks
from kdsearch.data import ImageSet
from kdsearch.distil import precision
from kdsearch.distil.train import Run
from kdsearch.errors import KdsearchError
from kdsearch.spec import Augment, Recipe
from kdsearch.system import machine

CPU = torch.device("cpu")
SHAPE = (3, 8, 8)


def student() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return networks.student_family("resnet").build({"width": 8, "blocks": [1, 0, 0, 0], "stride": 2}, SHAPE, 4)


def choose(wanted: str = "auto", *, device: torch.device = CPU, build=student) -> precision.Choice:
    return precision.choose(wanted, device=device, kind="resnet", shape=SHAPE, build=build)


@pytest.fixture
def has_bf16(own_cache, monkeypatch):
    """A CPU that says it has the instructions; what steps take is set by calling it."""
    monkeypatch.setattr(machine, "bf16_instructions", lambda: ["avx512_bf16"])
    timed: list[str] = []

    def take(**seconds: float) -> list[str]:
        def step_seconds(network, device, shape, name):
            timed.append(name)
            return seconds[name]

        monkeypatch.setattr(precision, "step_seconds", step_seconds)
        return timed

    return take


@pytest.mark.parametrize(("bfloat16", "expected"), [(0.5, "bfloat16"), (0.97, "float32"), (10.0, "float32")])
def test_timed_steps_decide_where_the_cpu_has_the_instructions(has_bf16, bfloat16, expected):
    has_bf16(float32=1.0, bfloat16=bfloat16)
    choice = choose()
    assert choice.name == expected
    assert not choice.given
    assert "avx512_bf16" in choice.why
    assert f"{1 / bfloat16:.2f} times as fast" in choice.why


def test_it_is_timed_once_and_kept(has_bf16):
    timed = has_bf16(float32=1.0, bfloat16=0.5)
    first = choose()
    count = len(timed)
    assert set(timed) == {"float32", "bfloat16"}
    has_bf16(float32=1.0, bfloat16=2.0)
    assert choose() == first
    assert len(timed) == count
    assert [entry["precision"] for entry in precision.kept().values()] == ["bfloat16"]
    kinds = json.loads(precision.file().read_text())
    assert all(key.startswith("resnet 3x8x8, ") and torch.__version__ in key for key in kinds)


def test_the_quickest_step_of_each_counts(own_cache, monkeypatch):
    monkeypatch.setattr(machine, "bf16_instructions", lambda: ["amx_bf16"])
    taken = iter([1.0, 3.0, 1.1, 0.8])  # float32, bfloat16, and again: other work ran beside the first bfloat16
    monkeypatch.setattr(precision, "step_seconds", lambda *_: next(taken))
    assert choose().name == "bfloat16"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', '{"x": {"precision": "float8", "float32": 1}}'])
def test_a_broken_file_is_as_none(has_bf16, own_cache, text):
    has_bf16(float32=1.0, bfloat16=0.5)
    own_cache.mkdir()
    precision.file().write_text(text)
    assert choose().name == "bfloat16"
    assert len(precision.kept()) == 1


def test_without_instructions_nothing_is_timed_nor_built(own_cache, monkeypatch):
    monkeypatch.setattr(machine, "bf16_instructions", list)
    built: list[str] = []
    choice = choose(build=lambda: built.append("a student") or student())
    assert (choice.name, built, precision.kept()) == ("float32", [], {})
    assert "timed" not in choice.why


def test_dense_students_stay_in_float32(has_bf16):
    timed = has_bf16(float32=1.0, bfloat16=0.1)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert choose(build=lambda: dense).name == "float32"
    assert not timed
    assert precision.trained_in(dense, CPU, "bfloat16") == "float32"
    assert precision.trained_in(student(), CPU, "bfloat16") == "bfloat16"


def test_a_student_that_fails_is_left_to_its_trials(has_bf16):
    has_bf16(float32=1.0, bfloat16=0.5)

    def broken() -> nn.Module:
        raise RuntimeError("too small")

    assert choose(build=broken).name == "float32"
    assert precision.kept() == {}


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_what_is_named_is_taken(has_bf16, name):
    timed = has_bf16(float32=1.0, bfloat16=1.0)
    choice = choose(name)
    assert (choice.name, choice.given) == (name, True)
    assert not timed


def test_an_unknown_one_is_refused():
    with pytest.raises(KdsearchError, match=r"--precision must be known.*float16.*auto, float32, bfloat16"):
        choose("float16")


@pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_on_cuda_it_is_bfloat16_where_there_is_any(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert choose(device=torch.device("cuda")).name == expected


def test_a_study_keeps_its_own():
    auto, given = precision.Choice("bfloat16", "timed"), precision.Choice("bfloat16", "set", given=True)
    assert precision.adopted(auto, None, CPU) == auto
    assert precision.adopted(auto, {"precision": "float32"}, CPU).name == "float32"
    assert precision.adopted(auto, {}, CPU).name == "float32"  # made before it was kept
    assert precision.adopted(given, {"precision": "float32"}, CPU) == given  # which the definition's check refuses


def test_bfloat16_without_instructions_is_said_to_be_slow(monkeypatch):
    monkeypatch.setattr(machine, "bf16_instructions", list)
    bf16 = precision.Choice("bfloat16", "as the study was begun")
    assert "ten times as long" in precision.warnings(bf16, CPU)[0]
    assert precision.warnings(precision.Choice("float32", ""), CPU) == []
    monkeypatch.setattr(machine, "bf16_instructions", lambda: ["avx512_bf16"])
    assert precision.warnings(bf16, CPU) == []


def test_a_real_step_is_timed_in_both():
    for name in ("float32", "bfloat16"):
        assert 0 < precision.step_seconds(student(), CPU, SHAPE, name) < 60


def test_a_training_in_bfloat16_learns_as_the_one_in_float32_does():
    """Images of a class are brighter in one channel."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 3
    images = torch.randint(0, 100, (96, *SHAPE), generator=generator)
    images[torch.arange(96), labels] += 100
    data = ImageSet(images.to(torch.uint8), labels)
    recipe = Recipe(optimizer="sgd", lr=0.05, momentum=0.9, augment=Augment(flip=True, shift=1, views=3))
    ends = {}
    for name in ("float32", "bfloat16"):
        network = student()
        what = lesson(data, epochs=3, precision=name)
        losses = [record.loss for record in Run(network, what, recipe, validate=lambda _: 0.0)]
        assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
        assert all(parameter.isfinite().all() for parameter in network.parameters())
        assert losses[-1] < 0.5 * losses[0]
        ends[name] = losses
    assert ends["bfloat16"] != ends["float32"]
    assert ends["bfloat16"] == pytest.approx(ends["float32"], rel=0.1, abs=0.02)
