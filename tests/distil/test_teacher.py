from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from helpers.recording import Recorder
from safetensors.torch import save_file

from kdsearch import networks
from kdsearch.distil import teacher as teachers
from kdsearch.distil.teacher import Teacher, cached_file, fingerprint, load_weights, obtain
from kdsearch.errors import TeacherError
from kdsearch.search.plan import Plan
from kdsearch.spec import TeacherSpec


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def quick(plan: Plan) -> TeacherSpec:
    """One step of training."""
    recipe = plan.spec.teacher.recipe.model_copy(update={"epochs": 1, "batch_size": 200})
    return plan.spec.teacher.model_copy(update={"recipe": recipe})


def same(a: Teacher, b: Teacher) -> bool:
    states = a.network.state_dict(), b.network.state_dict()
    return all(torch.equal(states[0][key], states[1][key]) for key in states[0])


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
    whole = path.read_bytes()
    if damage == "other facts":
        save_file(trained.network.state_dict(), path, metadata={teachers.FACTS: '{"family": "cnn"}'})
    else:
        changed = whole[:-1] + bytes([whole[-1] ^ 1])
        found = {"truncated": whole[: len(whole) // 2], "empty": b"", "no safetensors": b"x" * 99}
        path.write_bytes((found | {"changed byte": changed})[damage])
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
    idle = quick.model_copy(update={"recipe": quick.recipe.model_copy(update={"lr": 1e-9})})
    heard = Recorder()
    obtain(idle, plan.split, progress=heard)
    [line] = heard.warnings
    assert "better than naming the most frequent class" in line
    assert "train it longer" in line


def test_the_fingerprint_follows_recipe_seed_and_data(plan: Plan):
    spec, split = plan.spec.teacher, plan.split
    shorter = spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"lr": 1e-4})})
    prints = {
        fingerprint(spec, split),
        fingerprint(shorter, split),
        fingerprint(spec.model_copy(update={"seed": 1}), split),
        fingerprint(spec, dataclasses.replace(split, fingerprint="0")),
        fingerprint(spec, dataclasses.replace(split, classes=split.classes[::-1])),
        fingerprint(spec.model_copy(update={"family": "resnet50"}), split),
    }
    assert len(prints) == 6
    assert fingerprint(spec.model_copy(), split) in prints


@pytest.fixture(params=["safetensors", "pt"])
def weights(request: pytest.FixtureRequest, tmp_path: Path, teacher: Teacher) -> Path:
    path = tmp_path / f"weights.{request.param}"
    state = teacher.network.state_dict()
    if request.param == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


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


@pytest.mark.parametrize(("shape", "classes"), [((1, 10, 10), 10), ((1, 8, 8), 5), ((3, 8, 8), 10)])
def test_weights_of_another_shape_are_refused(weights: Path, shape, classes):
    with pytest.raises(TeacherError, match=r"must fit the teacher's network: .*size mismatch") as caught:
        load_weights(networks.build_teacher("cnn", shape, classes), weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x80\x04N.", None])
def test_weights_that_are_none_are_refused_in_one_line(tmp_path: Path, ending: str, content: bytes | None):
    path = tmp_path / f"weights.{ending}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TeacherError, match=r"teacher\.weights must.*weights\.") as caught:
        load_weights(networks.build_teacher("cnn", (1, 8, 8), 10), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("saved", [[1, 2], {"0.weight": 3}, torch.zeros(3)])
def test_a_saved_thing_that_is_no_state_dict_is_refused(tmp_path: Path, saved):
    torch.save(saved, tmp_path / "weights.pt")
    with pytest.raises(TeacherError, match=r"teacher\.weights must"):
        load_weights(networks.build_teacher("cnn", (1, 8, 8), 10), tmp_path / "weights.pt")


def test_missing_weights_are_named(plan: Plan, tmp_path: Path):
    spec = plan.spec.teacher.model_copy(update={"weights": str(tmp_path / "none.safetensors")})
    with pytest.raises(TeacherError, match=r"must be readable: No such file.*none.safetensors\); correct the path"):
        obtain(spec, plan.split)


def test_a_training_that_does_not_stay_finite_is_refused_and_not_kept(plan: Plan, own_cache: Path):
    recipe = plan.spec.teacher.recipe.model_copy(update={"lr": 1e30})
    with pytest.raises(TeacherError, match=r"training must stay finite.*lower lr in \[teacher.recipe\]"):
        obtain(plan.spec.teacher.model_copy(update={"recipe": recipe}), plan.split)
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
