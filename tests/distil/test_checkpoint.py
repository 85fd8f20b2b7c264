from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from helpers.recording import Recorder
from helpers.trainings import damaged, equal, lesson, with_recipe
from safetensors.torch import load_file
from safetensors.torch import save as as_bytes
from torch import Tensor, nn

from kdsearch.data import ImageSet
from kdsearch.distil import checkpoint
from kdsearch.distil.loss import cls_loss
from kdsearch.distil.teacher import cached_file, fingerprint, obtain
from kdsearch.distil.train import Batch, Run
from kdsearch.search.plan import Plan
from kdsearch.spec import Augment, Recipe, TeacherSpec

CPU = torch.device("cpu")
EPOCHS = 5
AUGMENT = Augment(flip=True, shift=1)
RECIPES = {
    "adam": Recipe(lr=1e-2, augment=AUGMENT),
    "adam, averaged": Recipe(lr=1e-2, averaging=2.0),
    "sgd, one cycle": Recipe(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, schedule="onecycle"),
    "sgd, averaged": Recipe(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-2, averaging=8.0, augment=AUGMENT),
    "schedulefree": Recipe(optimizer="schedulefree", lr=0.1, momentum=0.9, augment=AUGMENT),
}


class Net(nn.Module):
    """Convolution (so channels last), batch norm, dropout, and a buffer that no file of weights holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.deep, self.drop = nn.Conv2d(6, 4, 3), nn.Dropout(0.2)
        self.head = nn.Linear(16, 2)
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        hidden = self.deep(self.norm(self.conv(images)).relu()).relu() + 1e-3 * self.seen
        return self.head(self.drop(hidden.flatten(1)))


def begun(noise: ImageSet, recipe: Recipe, state=None) -> tuple[Run, nn.Module, nn.Module]:
    """A run from the first weights, with a companion that the loss uses."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network, companion = Net(), nn.Linear(2, 2)

    def loss(batch: Batch) -> Tensor:
        return cls_loss(companion(batch.logits), batch.labels) / batch.epoch

    what = lesson(noise, loss=loss, epochs=EPOCHS, batch_size=12, seed=3, companion=companion)
    run = Run(network, what, recipe, validate=lambda own: own.head.weight.sum().item(), state=state)
    return run, network, companion


def everything(network: nn.Module, companion: nn.Module) -> dict[str, Tensor]:
    parts = (*network.named_parameters(), *network.named_buffers(), *companion.named_parameters("companion"))
    return {name: tensor.detach().clone() for name, tensor in parts}


def scores(records) -> list[tuple[int, float, float]]:
    return [(record.epoch, record.loss, record.accuracy) for record in records]


@pytest.mark.parametrize("done", [1, 3, EPOCHS])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_run_goes_on_from_its_file_bit_by_bit(noise: ImageSet, tmp_path: Path, recipe: Recipe, done: int):
    whole, *nets = begun(noise, recipe)
    records = scores(whole)
    expected = everything(*nets)

    first, *_ = begun(noise, recipe)
    before = scores(next(first) for _ in range(done))
    checkpoint.save(tmp_path / "state.safetensors", first.state_dict(), "this")
    second, *others = begun(noise, recipe, checkpoint.load(tmp_path / "state.safetensors", "this", CPU))
    assert second.done == done
    assert before + scores(second) == records
    assert equal(everything(*others), expected)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_a_state_kept_in_memory_is_that_of_its_moment(noise: ImageSet, recipe: Recipe):
    run, *nets = begun(noise, recipe)
    next(run)
    state = copy.deepcopy(run.state_dict())
    rest = scores(run)
    resumed, *others = begun(noise, recipe, state)
    assert scores(resumed) == rest
    assert equal(everything(*nets), everything(*others))


@pytest.mark.parametrize("other", ["network", "recipe", "optimizer"])
def test_a_state_of_something_else_is_refused_and_changes_nothing(noise: ImageSet, other: str):
    run, *_ = begun(noise, RECIPES["adam"])
    next(run)
    state = copy.deepcopy(run.state_dict())
    if other == "network":
        state["training"]["weights"]["network.head.weight"] = torch.zeros(2, 17)
    if other == "recipe":
        state["training"]["shown"] = {"average": []}
    if other == "optimizer":
        state["training"]["optimizer"]["param_groups"] = []
    fresh, *nets = begun(noise, RECIPES["adam"])
    with pytest.raises(ValueError, match="must be of this"):
        fresh._load(state["training"])
    _, *untouched = begun(noise, RECIPES["adam"])
    assert equal(everything(*nets), everything(*untouched))


def test_a_file_keeps_keys_types_and_values(tmp_path: Path):
    state = {
        "number": 0.1 + 0.2, "none": None, "flag": True, "list": [1, "two", {3: torch.arange(3)}],
        "nan": float("inf"), "scalar": torch.tensor(2.5), "bytes": torch.zeros(0, 2, dtype=torch.uint8),
    }  # fmt: skip
    checkpoint.save(tmp_path / "a.safetensors", state, "one")
    found = checkpoint.load(tmp_path / "a.safetensors", "one", CPU)
    tensors = [found.pop("scalar"), found.pop("bytes"), found["list"][2].pop(3)]
    assert [each.tolist() for each in tensors] == [2.5, [], [0, 1, 2]]
    assert tensors[1].shape == (0, 2)
    assert found == {"number": 0.1 + 0.2, "none": None, "flag": True, "list": [1, "two", {}], "nan": float("inf")}
    with pytest.raises(ValueError, match="it is of one"):
        checkpoint.load(tmp_path / "a.safetensors", "another", CPU)


def test_equal_parts_name_the_same_checkpoint():
    assert checkpoint.digest({"a": 1, "b": 2.5}, 3) == checkpoint.digest({"b": 2.5, "a": 1}, 3)
    assert checkpoint.digest({"a": 1}, 3) != checkpoint.digest({"a": 1}, 4)


class Heard(Recorder):
    def __init__(self, stop: float = 2.0) -> None:
        super().__init__()
        self.stop = stop
        self.went_on: list[tuple[str, int, int]] = []

    def teacher_batch(self, done: float) -> None:
        if done >= self.stop:
            raise KeyboardInterrupt

    def resumed(self, what: str, done: int, epochs: int) -> None:
        self.went_on.append((what, done, epochs))


def test_nothing_is_written_before_a_minute_or_of_short_epochs(own_cache: Path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    kept, quick = checkpoint.Checkpoint("a", print), checkpoint.Checkpoint("b", print, least=10.0)
    for now[0] in (30.0, 59.0):
        kept.keep(lambda: {"x": 1}, 20.0)
    assert not kept.path.exists()
    now[0] = 61.0
    kept.keep(lambda: {"x": 1}, 20.0)
    quick.keep(lambda: {"x": 1}, 9.0)
    assert (kept.path.exists(), quick.path.exists()) == (True, False)
    quick.keep(lambda: {"x": 1}, 11.0)
    assert quick.path.exists()
    now[0] = 100.0
    kept.keep(lambda: {"x": 2}, 20.0)
    assert checkpoint.load(kept.path, "a", CPU) == {"x": 1}
    kept.remove()
    assert not kept.path.exists()


def test_a_checkpoint_that_cannot_be_written_costs_one_warning(own_cache: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    said: list[str] = []
    kept = checkpoint.Checkpoint("a", said.append)
    for _ in range(2):
        kept.keep(lambda: {"x": object()}, 1.0)
    own_cache.mkdir()
    (own_cache / "checkpoints").write_text("a file in the way")
    other = checkpoint.Checkpoint("b", said.append)
    for _ in range(2):
        other.keep(lambda: {"x": 1}, 1.0)
    assert len(said) == 2
    assert all("no checkpoint is kept" in line and "\n" not in line for line in said)


def test_old_checkpoints_are_removed(own_cache: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    old, young, now = (checkpoint.Checkpoint(name, print) for name in ("old", "young", "now"))
    for each, days in ((old, 31), (young, 29)):
        each.keep(lambda: {"x": 1}, 1.0)
        then = time.time() - days * 24 * 3600
        os.utime(each.path, (then, then))
    now.keep(lambda: {"x": 1}, 1.0)
    assert [each.path.exists() for each in (old, young, now)] == [False, True, True]


def interrupted(plan: Plan, monkeypatch) -> tuple[TeacherSpec, str, Path]:
    """A teacher of two epochs of one step, interrupted after the first: its checkpoint's name and file."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    spec = with_recipe(plan.spec.teacher, epochs=2, batch_size=200)
    with pytest.raises(KeyboardInterrupt):
        obtain(spec, plan.split, progress=Heard(stop=0.5))
    name = f"teacher-{fingerprint(spec, plan.split)}-usual"
    return spec, name, checkpoint.folder() / f"{name}.safetensors"


def weights(spec: TeacherSpec, plan: Plan) -> bytes:
    """Of the finished teacher, as bytes that no clock is part of."""
    return as_bytes(load_file(cached_file(spec, plan.split)))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [None, "truncated", "empty", "other", "misfit"])
def test_a_broken_checkpoint_is_ignored_with_one_line(plan: Plan, own_cache: Path, monkeypatch, damage: str | None):
    spec, name, path = interrupted(plan, monkeypatch)
    if damage in ("truncated", "empty"):
        path.write_bytes(damaged(path.read_bytes())[damage])
    if damage == "other":
        checkpoint.save(path, {"run": {}}, "teacher-another")
    if damage == "misfit":
        checkpoint.save(path, {"run": {"training": {}}, "seconds": 1.0}, name)
    heard = Heard()
    obtain(spec, plan.split, progress=heard)
    resumed = weights(spec, plan)
    assert not path.exists()
    if damage is None:
        assert (heard.warnings, heard.went_on) == ([], [("teacher cnn", 1, 2)])
    else:
        assert heard.went_on == []
        [line] = heard.warnings
        assert str(path) in line
        assert "\n" not in line
    cached_file(spec, plan.split).unlink()
    obtain(spec, plan.split)
    assert weights(spec, plan) == resumed


@pytest.mark.slow
def test_a_teachers_seconds_are_those_of_all_its_parts(plan: Plan, own_cache: Path, monkeypatch):
    spec, name, path = interrupted(plan, monkeypatch)
    state = checkpoint.load(path, name, CPU)
    assert state["seconds"] > 0
    checkpoint.save(path, state | {"seconds": 1000.0}, name)
    assert 1000.0 < obtain(spec, plan.split).facts.seconds < 1100.0


SCRIPT = """
import os, signal, sys, torch
from kdsearch.distil import checkpoint, teacher
from kdsearch.records import Progress
from kdsearch.search.plan import make_plan
from kdsearch.search.run_options import Request
from kdsearch.system import signals

number, share = int(sys.argv[1]), float(sys.argv[2])
checkpoint.EVERY = 0.0
torch.set_num_threads(1)

class Killing(Progress):
    def teacher_batch(self, done):
        if done >= share:
            os.kill(os.getpid(), number)

    def resumed(self, what, done, epochs):
        print(what, done, epochs)

plan = make_plan(Request(dataset="digits", train_size=200, max_epochs=4, device="cpu", cost="flops"))
with signals.handled():
    teacher.obtain(plan.spec.teacher, plan.split, progress=Killing())
print(teacher.cached_file(plan.spec.teacher, plan.split))
"""


def trained(cache: Path, number: int, share: float) -> subprocess.CompletedProcess[str]:
    """The teacher in a process of its own, which a signal hits at that share of the training."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(int(number)), str(share)],
        env={**os.environ, "KDSEARCH_CACHE_DIR": str(cache)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_a_teacher_that_was_killed_ends_as_if_it_had_not_been(tmp_path: Path):
    whole = trained(tmp_path / "whole", signal.SIGKILL, 2.0)
    assert whole.returncode == 0, whole.stderr
    cut = tmp_path / "cut"
    assert trained(cut, signal.SIGKILL, 0.4).returncode == -signal.SIGKILL
    assert list((cut / "checkpoints").glob("teacher-*.safetensors"))
    ended = trained(cut, signal.SIGTERM, 0.8)
    assert ended.returncode not in (0, -signal.SIGTERM)
    assert "teacher cnn 1 4" in ended.stdout
    last = trained(cut, signal.SIGKILL, 2.0)
    assert last.returncode == 0, last.stderr
    assert "teacher cnn 3 4" in last.stdout
    assert equal(*(load_file(run.stdout.split()[-1]) for run in (whole, last)))
    assert not list((cut / "checkpoints").glob("*"))
