from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.recording import Recorder
from helpers.trainings import damaged, equal, with_recipe
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import GoogLeNetOutputs

from kdsearch import networks
from kdsearch.distil import teacher as teachers
from kdsearch.distil.teacher import Teacher, cached_file, fingerprint, obtain, untrained
from kdsearch.errors import TeacherError
from kdsearch.search.plan import Plan
from kdsearch.spec import TeacherSpec


@pytest.fixture
def quick(plan: Plan) -> TeacherSpec:
    """One step of training."""
    return with_recipe(plan.spec.teacher, epochs=1, batch_size=200)


def same(a: Teacher, b: Teacher) -> bool:
    return equal(a.network.state_dict(), b.network.state_dict())


def test_a_teacher_is_frozen_and_in_evaluation_mode(teacher: Teacher):
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_its_facts_are_measured(plan: Plan, teacher: Teacher):
    with torch.no_grad():
        test = teacher.network(plan.split.prepare(plan.split.test.images)).argmax(1) == plan.split.test.labels
    facts = teacher.facts
    assert facts.accuracy == pytest.approx(test.double().mean().item())
    assert 0.5 < facts.validation_accuracy <= 1
    assert facts.parameters == sum(p.numel() for p in teacher.network.parameters())
    assert (facts.family, facts.bytes) == ("cnn", 4 * facts.parameters)
    assert facts.fingerprint == fingerprint(plan.spec.teacher, plan.split)
    assert facts.seconds > 0


def test_a_teacher_is_trained_once_and_then_found(plan: Plan, quick: TeacherSpec, own_cache: Path):
    first, second = Recorder(), Recorder()
    trained = obtain(quick, plan.split, progress=first)
    found = obtain(quick, plan.split, progress=second)
    assert same(trained, found)
    assert trained.facts == found.facts
    assert (first.teachers, second.teachers) == ([("cnn", 1)], [])
    assert first.shares == [0.0]
    assert cached_file(quick, plan.split).parent.parent == own_cache


def test_training_is_deterministic(plan: Plan, quick: TeacherSpec, own_cache: Path):
    trained = obtain(quick, plan.split)
    cached_file(quick, plan.split).unlink()
    assert same(trained, obtain(quick, plan.split))


@pytest.mark.parametrize("damage", ["truncated", "empty", "no safetensors", "other facts", "changed byte"])
def test_a_broken_file_is_noticed_and_made_again(plan: Plan, quick: TeacherSpec, own_cache: Path, damage: str):
    trained = obtain(quick, plan.split)
    path = cached_file(quick, plan.split)
    if damage == "other facts":
        save_file(trained.network.state_dict(), path, metadata={teachers.FACTS: '{"family": "cnn"}'})
    else:
        path.write_bytes((damaged(path.read_bytes()) | {"no safetensors": b"x" * 99})[damage])
    heard = Recorder()
    assert same(trained, obtain(quick, plan.split, progress=heard))
    [broken] = [line for line in heard.warnings if "kept teacher" in line]
    assert str(path) in broken
    assert "\n" not in broken
    assert heard.teachers == [("cnn", 1)]
    again = Recorder()
    obtain(quick, plan.split, progress=again)
    assert again.teachers == []
    assert not any("kept teacher" in line for line in again.warnings)


def test_a_teacher_that_was_trained_and_is_near_chance_gets_a_warning(plan: Plan, quick: TeacherSpec, own_cache: Path):
    heard = Recorder()
    obtain(with_recipe(quick, lr=1e-9), plan.split, progress=heard)
    [line] = heard.warnings
    assert "better than naming the most frequent class" in line
    assert "train it longer" in line


def test_a_teacher_near_chance_is_refused(plan: Plan, teacher: Teacher):
    teachers.check_accuracy(teacher.facts, plan.split)
    poor = dataclasses.replace(teacher.facts, validation_accuracy=0.11)
    with pytest.raises(TeacherError, match="better than naming the most frequent class"):
        teachers.check_accuracy(poor, plan.split)


def test_the_fingerprint_follows_recipe_seed_and_data(plan: Plan):
    spec, split = plan.spec.teacher, plan.split
    prints = {
        fingerprint(spec, split),
        fingerprint(with_recipe(spec, lr=1e-4), split),
        fingerprint(spec.model_copy(update={"seed": 1}), split),
        fingerprint(spec, dataclasses.replace(split, fingerprint="0")),
        fingerprint(spec, dataclasses.replace(split, classes=split.classes[::-1])),
        fingerprint(spec.model_copy(update={"family": "resnet50"}), split),
    }
    assert len(prints) == 6
    assert fingerprint(spec.model_copy(), split) in prints


@pytest.fixture(params=[("safetensors", save_file), ("pt", torch.save)], ids=["safetensors", "pt"])
def weights(request: pytest.FixtureRequest, tmp_path: Path, teacher: Teacher) -> Path:
    ending, save = request.param
    save(teacher.network.state_dict(), tmp_path / f"weights.{ending}")
    return tmp_path / f"weights.{ending}"


@pytest.mark.usefixtures("own_cache")
def test_ready_weights_are_loaded_and_not_trained(plan: Plan, teacher: Teacher, weights: Path):
    heard = Recorder()
    spec = plan.spec.teacher.model_copy(update={"weights": str(weights)})
    loaded = obtain(spec, plan.split, progress=heard)
    assert same(loaded, teacher)
    assert heard.teachers == []
    assert loaded.facts.seconds == 0
    assert loaded.facts.accuracy == teacher.facts.accuracy


def test_the_same_weights_elsewhere_are_the_same_teacher(plan: Plan, weights: Path, tmp_path: Path):
    spec = plan.spec.teacher.model_copy(update={"weights": str(weights)})
    moved = weights.rename(tmp_path / f"moved{weights.suffix}")
    elsewhere = spec.model_copy(update={"weights": str(moved)})
    first = fingerprint(elsewhere, plan.split)
    moved.write_bytes(moved.read_bytes() + b"x")
    assert fingerprint(elsewhere, plan.split) != first
    with pytest.raises(TeacherError, match="must be readable"):
        fingerprint(spec, plan.split)


def test_missing_weights_are_named(plan: Plan, tmp_path: Path):
    spec = plan.spec.teacher.model_copy(update={"weights": str(tmp_path / "none.safetensors")})
    with pytest.raises(TeacherError, match=r"must be readable: No such file.*none.safetensors\); correct the path"):
        obtain(spec, plan.split)


def test_a_training_that_does_not_stay_finite_is_refused_and_not_kept(plan: Plan, own_cache: Path):
    with pytest.raises(TeacherError, match=r"training must stay finite.*lower lr in \[teacher.recipe\]"):
        obtain(with_recipe(plan.spec.teacher, lr=1e30), plan.split)
    assert [*own_cache.rglob("*.safetensors")] == []


def test_which_test_images_it_classifies_rightly_is_asked_once(plan: Plan, quick: TeacherSpec, own_cache: Path):
    made = obtain(quick, plan.split)
    asked = []
    handle = made.network.register_forward_hook(lambda *_: asked.append(1))
    found = made.hits(plan.split.test)  # asked when its accuracy was measured
    assert not asked
    handle.remove()
    with torch.no_grad():
        plain = made.network(plan.split.prepare(plan.split.test.images)).argmax(1) == plan.split.test.labels
    assert torch.equal(found, plain)
    assert found.double().mean().item() == pytest.approx(made.facts.accuracy)


class Mine(nn.Module):
    """A user's network, whose code says what becomes of its logits."""

    def __init__(self, plan: Plan, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = networks.build_teacher("cnn", plan.split.shape, len(plan.split.classes))
        self._end = end

    def forward(self, images: Tensor) -> Tensor:
        return self._end(self.inner(images))


Brought = Callable[[Callable[[Tensor], Tensor]], TeacherSpec]


@pytest.fixture
def brought(plan: Plan, teacher: Teacher, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Brought:
    """Return a function that changes the user's code and returns the study's `[teacher]`, always the same."""
    save_file({f"inner.{key}": value for key, value in teacher.network.state_dict().items()}, tmp_path / "mine.st")
    module = ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", module)

    def change(end: Callable[[Tensor], Tensor]) -> TeacherSpec:
        module.build = lambda: Mine(plan, end)  # type: ignore[attr-defined]
        return TeacherSpec.model_validate({"build": "mine:build", "weights": str(tmp_path / "mine.st")})

    return change


def plain(logits: Tensor) -> Tensor:
    return logits


def rolled(logits: Tensor) -> Tensor:
    return logits.roll(1, 1)


def test_a_changed_code_is_noticed_and_has_answers_of_its_own(plan: Plan, teacher: Teacher, brought: Brought):
    first = obtain(brought(plain), plan.split)
    before = first.answers(plan.split.train).logits
    heard = Recorder()
    second = obtain(brought(lambda logits: 2 * logits), plan.split, progress=heard)
    torch.testing.assert_close(second.answers(plan.split.train).logits, 2 * before)
    assert "its code computes something else than when it was kept" in " ".join(heard.warnings)
    assert second.facts.fingerprint == first.facts.fingerprint
    again = Recorder()
    assert obtain(brought(lambda logits: 2 * logits), plan.split, progress=again).facts == second.facts
    assert again.warnings == []


def test_a_network_of_random_answers_is_not_made_again_each_time(plan: Plan, brought: Brought):
    def random(logits: Tensor) -> Tensor:
        return logits + torch.rand_like(logits)

    first = obtain(brought(random), plan.split)
    heard = Recorder()
    assert obtain(brought(random), plan.split, progress=heard).facts == first.facts
    assert not any("made again" in line for line in heard.warnings)


def test_a_code_that_was_wrong_and_was_mended_is_taken(plan: Plan, teacher: Teacher, brought: Brought):
    with pytest.raises(TeacherError, match="better than naming the most frequent class"):
        obtain(brought(rolled), plan.split)
    assert obtain(brought(plain), plan.split).facts.accuracy == teacher.facts.accuracy
    with pytest.raises(TeacherError, match="better than naming the most frequent class"):
        obtain(brought(rolled), plan.split)


def test_a_study_keeps_its_teacher(plan: Plan, brought: Brought):
    kept = obtain(brought(plain), plan.split).facts
    changed = obtain(brought(lambda logits: 2 * logits), plan.split).facts
    assert teachers.check_same(kept, kept, given=True) is None
    assert teachers.check_same(changed, dataclasses.replace(kept, probe=[]), given=True) is None  # of an older version
    rounded = dataclasses.replace(kept, probe=[value * 1.001 for value in kept.probe])
    assert teachers.check_same(rounded, kept, given=True) is None
    with pytest.raises(TeacherError, match=r"must stay the same.*put its code back, or choose another --name"):
        teachers.check_same(changed, kept, given=True)
    assert "is not the teacher of the study's earlier trials" in str(teachers.check_same(changed, kept, given=False))


@pytest.mark.parametrize("wrong", [-torch.inf, torch.nan])
def test_logits_that_are_not_finite_are_refused(plan: Plan, brought: Brought, wrong: float):
    def masked(logits: Tensor) -> Tensor:
        return torch.where(torch.arange(10) == 3, wrong, logits)

    with pytest.raises(TeacherError, match=r"logits must be finite \(got NaN or infinite ones for \d+ of \d+ images"):
        obtain(brought(masked), plan.split)


def from_module(monkeypatch: pytest.MonkeyPatch, build: Callable[[], nn.Module]) -> TeacherSpec:
    """A teacher that a user's function builds, trained for an epoch."""
    module = ModuleType("theirs")
    module.build = build  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "theirs", module)
    recipe = {"optimizer": "adam", "lr": 1e-2, "epochs": 2, "batch_size": 32}
    return TeacherSpec.model_validate({"build": "theirs:build", "recipe": recipe})


def small(*last: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), *last)


class InPlace(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.5))


class Several(nn.Sequential):
    """Returns what GoogLeNet does: in training a tuple with the logits of its auxiliary heads, too."""

    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return GoogLeNetOutputs(logits, logits, logits) if self.training else logits


class Double(nn.Sequential):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.double()
        torch.set_default_dtype(torch.float64)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "build",
    [
        lambda: InPlace(*small()),
        lambda: Several(*small()),
        lambda: Double(*small()),
        lambda: torch.jit.script(small()),
        lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)),
    ],
)
def test_what_people_build_is_trained_and_repeats(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, own_cache: Path, build: Callable[[], nn.Module]
):
    spec, heard = from_module(monkeypatch, build), Recorder()
    made = obtain(spec, plan.split, progress=heard)
    assert made.facts.accuracy > 0.5
    assert len(made.facts.probe) == 20
    assert heard.warnings == []
    assert torch.get_default_dtype() == torch.float32
    shutil.rmtree(own_cache / "teachers")
    assert obtain(spec, plan.split).facts.probe == made.facts.probe


class OfBatch(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images - images.mean()) / images.std())


class Squeezed(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).squeeze()


class NoSelf(nn.Sequential):
    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def still() -> nn.Module:
    return small().requires_grad_(False)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: OfBatch(*small()), "must not depend on the rest of the batch"),
        (lambda: Squeezed(*small()), r"of one image, too \(got \(10,\) from"),
        (lambda: NoSelf(*small()), r"train\(\) must return the network"),
        (still, "network must train: RuntimeError"),
    ],
)
def test_what_cannot_be_a_teacher_is_one_line(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, own_cache: Path, build: Callable[[], nn.Module], words: str
):
    with pytest.raises(TeacherError, match=words):
        obtain(from_module(monkeypatch, build), plan.split)


def test_a_network_of_random_answers_is_warned_of(plan: Plan, monkeypatch: pytest.MonkeyPatch, own_cache: Path):
    class Dropping(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(images), 0.3)

    heard = Recorder()
    obtain(from_module(monkeypatch, lambda: Dropping(*small())), plan.split, progress=heard)
    assert "returns other logits each time it is asked" in heard.warnings[0]


def test_channels_that_a_built_in_teacher_does_not_take_are_one_line(plan: Plan):
    spec = TeacherSpec.model_validate(plan.spec.teacher.model_dump() | {"mean": [0.5] * 3, "std": [0.5] * 3})
    with pytest.raises(TeacherError, match="must take the study's images, 1x8x8"):
        untrained(spec, plan.split)
