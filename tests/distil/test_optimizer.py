from __future__ import annotations

import copy
import re

import pytest
import torch
from helpers.trainings import lesson
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdsearch import spec
from kdsearch.data import ImageSet
from kdsearch.distil.optimizer import Averaged, make_optimizer, schedule
from kdsearch.distil.train import Run
from kdsearch.errors import StudyFileError
from kdsearch.measure import accuracy
from kdsearch.spec import Recipe


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


ONE_CYCLE = Recipe(schedule="onecycle")


@pytest.mark.parametrize("total", [5, 100, 1000])
def test_one_cycle_starts_low_peaks_after_a_fifth_and_ends_near_zero(total):
    shares = [schedule(ONE_CYCLE, step, total) for step in range(total)]
    peak = shares.index(max(shares))
    assert shares[0] == pytest.approx(0.04)
    assert (peak, shares[peak]) == (total // 5, pytest.approx(1))
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert 0 < shares[-1] <= 1.25 / total * 1.0001


@pytest.mark.parametrize("total", [1, 2, 3, 4, 7])
def test_one_cycle_holds_for_any_length(total):
    assert all(0 < schedule(ONE_CYCLE, step, total) <= 1 for step in range(total))


def test_a_constant_schedule_is_constant():
    assert {schedule(Recipe(), step, 10) for step in range(10)} == {1.0}


def test_the_optimizer_is_the_recipes():
    sgd = make_optimizer(
        network(), Recipe(optimizer="sgd", lr=0.1, lr_batch=100, momentum=0.9, nesterov=True, weight_decay=5e-4), 200
    )
    assert isinstance(sgd, torch.optim.SGD)
    group = sgd.param_groups[0]
    assert [group[key] for key in ("lr", "momentum", "nesterov", "weight_decay")] == [0.2, 0.9, True, 5e-4]
    adam = make_optimizer(network(), Recipe(lr=0.1, lr_batch=25, weight_decay=0.01), 100)
    assert isinstance(adam, torch.optim.Adam)
    assert [adam.param_groups[0][key] for key in ("lr", "weight_decay")] == [0.2, 0.01]


def laid(tensor: Tensor) -> list[bool]:
    return [tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last), tensor.is_contiguous()]


@pytest.mark.parametrize(("name", "theirs"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)])
def test_steps_on_weights_laid_out_channels_last_are_those_of_torch(name, theirs):
    recipe = Recipe(optimizer=name, lr=0.1, momentum=0.9 if name == "sgd" else 0.0, weight_decay=1e-3)
    layers = nn.Conv2d(8, 16, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(8, 4, 1), nn.Linear(4, 2)
    ours = nn.ModuleList(layers).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(ours)
    options = {"lr": 0.1, "weight_decay": 1e-3} | ({"momentum": 0.9} if name == "sgd" else {"eps": recipe.epsilon})
    optimizers = make_optimizer(ours, recipe, 100), theirs(plain.parameters(), **options)
    for step in range(4):
        for network, optimizer in zip((ours, plain), optimizers, strict=True):
            for place, weight in enumerate(network.parameters()):
                drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(10 * step + place))
                weight.grad = None if step == 1 and place == 0 else torch.empty_like(weight).copy_(drawn)
            optimizer.step()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert laid(one) == laid(other) == laid(one.grad)
        kept = optimizers[0].state[one]
        for key, value in optimizers[1].state[other].items():
            torch.testing.assert_close(kept[key], value, rtol=1e-5, atol=1e-6)
            assert laid(kept[key]) == laid(value)


def test_a_step_returns_its_closures_loss_and_one_that_fails_leaves_the_weights_as_they_were(monkeypatch):
    layer = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(layer, Recipe(optimizer="sgd", lr=1e-3, momentum=0.9), 100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = layer(torch.ones(1, 4, 3, 3)).square().sum()
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "_fused_sgd_", fail)
    before = layer.weight.detach().clone()
    with pytest.raises(MemoryError):
        optimizer.step()
    assert torch.equal(layer.weight, before)
    assert layer.weight.shape == layer.weight.grad.shape == (8, 4, 3, 3)
    assert optimizer.state[layer.weight]["momentum_buffer"].shape == (8, 4, 3, 3)


@given(
    places=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12),
    power=st.floats(0, 20),
    every=st.integers(1, 3),
)
def test_the_average_is_the_weighted_mean_of_what_was_taken_in(places, power, every):
    """a_t as a sum: the weight of the i-th is c_i times the product of 1 - c_j over all later ones."""
    weight = nn.Linear(1, 1, bias=False)
    averaged = Averaged(weight, power, every)
    for step in range(len(places) * every):
        nn.init.constant_(weight.weight, places[step // every])
        averaged.step()
    expected, mass = 0.0, 1.0
    for t in range(len(places), 0, -1):
        c = (power + 1) / (t + power)
        expected, mass = expected + mass * c * places[t - 1], mass * (1 - c)
    averaged.show()
    assert weight.weight.item() == pytest.approx(expected, abs=1e-3)
    assert mass == pytest.approx(0)
    if power == 0:
        assert expected == pytest.approx(sum(places) / len(places), abs=1e-6)


def test_showing_and_hiding_leave_the_training_as_it_was():
    student = network()
    held = {key: value.clone() for key, value in student.state_dict().items()}
    averaged = Averaged(student, 1.0, 1)
    for parameter in student.parameters():
        nn.init.normal_(parameter)
    averaged.step()
    live = {key: value.clone() for key, value in student.state_dict().items()}
    nn.init.zeros_(student[1].weight)
    live["1.weight"] = torch.zeros_like(live["1.weight"])
    for _ in range(2):  # twice is once
        averaged.show()
    assert not torch.equal(student[1].weight, live["1.weight"])
    assert not torch.equal(student[1].weight, held["1.weight"])
    for _ in range(2):
        averaged.hide()
    assert all(torch.equal(value, live[key]) for key, value in student.state_dict().items())


def learns(recipe: Recipe) -> list[float]:
    """Accuracy on a set that can be learnt, after each epoch."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    images = torch.randint(0, 200, (64, 1, 4, 4), generator=generator) + 50 * labels.view(-1, 1, 1, 1)
    data = ImageSet(images.to(torch.uint8), labels)

    def prepare(shown: Tensor) -> Tensor:
        return shown.float() / 128 - 1

    torch.manual_seed(0)
    what = lesson(data, prepare=prepare, epochs=60)
    records = Run(network(), what, recipe, validate=lambda shown: accuracy(shown, data, prepare))
    return [record.accuracy for record in records]


@pytest.mark.parametrize("recipe", [
    Recipe(optimizer="sgd", lr=0.05, momentum=0.9),
    Recipe(optimizer="sgd", lr=0.05, momentum=0.9, averaging=8),
    Recipe(lr=1e-2, averaging=0),
    Recipe(optimizer="schedulefree", lr=0.5, momentum=0.9),
], ids=["last", "averaged", "adam-averaged", "schedule-free"])  # fmt: skip
def test_every_recipe_learns(recipe):
    assert learns(recipe)[-1] > 0.9


def test_an_average_does_not_change_the_training_that_it_watches(noise):
    """Losses are of the weights that the training goes on with."""
    losses = []
    for averaging in (None, 8.0):
        torch.manual_seed(1)
        recipe = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, averaging=averaging)
        run = Run(network(), lesson(noise, epochs=4), recipe, validate=lambda _: 0.5)
        losses.append([record.loss for record in run])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("recipe", "rule"), [
    ('optimizer = "schedulefree"', "needs a momentum"),
    ('optimizer = "schedulefree"\nmomentum = 0.9\nnesterov = true', "no nesterov"),
    ('optimizer = "schedulefree"\nmomentum = 0.9\nschedule = "onecycle"', "constant schedule"),
    ('optimizer = "schedulefree"\nmomentum = 0.9\naveraging = 8.0', "no averaging"),
    ("averaging = -1.0", "greater than or equal to 0"),
])  # fmt: skip
def test_what_makes_no_recipe_is_refused(recipe, rule):
    digits = re.sub(r'\nschedule = "constant".*', "", spec.shipped("digits").read_text())
    text = digits.replace('[student.recipe]\noptimizer = "adam"\nlr = 1e-3', f"[student.recipe]\n{recipe}")
    assert text != digits
    with pytest.raises(StudyFileError, match=rule):
        spec.parse(text, source="it")


def test_batch_norms_statistics_are_averaged_too():
    student = network()
    averaged = Averaged(student, 0.0, 1)
    norm = student[2]
    for value in (1.0, 3.0):
        norm.running_mean.fill_(value)
        averaged.step()
    averaged.show()
    assert norm.running_mean.tolist() == pytest.approx([2.0] * 8)
