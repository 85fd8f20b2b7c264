from __future__ import annotations

import itertools

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch import spec
from kdsearch.search.space import suggest, trial_parameters
from kdsearch.spec import Range, Stages, dimension_holds

CIFAR10 = spec.load(spec.shipped("cifar10")).space
DIGITS = spec.load(spec.shipped("digits")).space


def drawn(space, count=60):
    """Configurations and parameters of random trials."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask() for _ in range(count)]
    return [(suggest(trial, space), trial.params) for trial in trials]


@pytest.mark.parametrize("name", ["cifar10", "digits", "folder", "mnist"])
def test_every_draw_lies_inside_the_space(name):
    space = spec.load(spec.shipped(name)).space
    for config, _ in drawn(space):
        assert set(config) | {"temperature"} == set(space)
        assert all(dimension_holds(space[key], value) for key, value in config.items())


def test_every_dimension_is_sampled():
    configs = [config for config, _ in drawn(CIFAR10, 200)]
    for key in CIFAR10:
        assert len({str(config.get(key)) for config in configs}) > 2, key


def test_the_temperature_is_sampled_where_it_has_an_effect():
    space = {**DIGITS, "loss_weight": [0, 0.5]}
    seen = {(c["loss_weight"] > 0, "temperature" in c, "temperature" in params) for c, params in drawn(space)}
    assert seen == {(True, True, True), (False, False, False)}


def test_blocks_after_a_zero_are_not_sampled():
    for config, params in drawn(CIFAR10):
        blocks = config["blocks"]
        top = blocks.index(0) + 1 if 0 in blocks else 4
        assert [params.get(f"blocks_{i}") for i in range(1, 5)] == blocks[:top] + [None] * (4 - top)


def test_all_numbers_of_blocks_are_reached():
    space = {**CIFAR10, "blocks": Stages(low=0, high=2, stages=2)}
    found = {tuple(config["blocks"]) for config, _ in drawn(space, 100)}
    assert found == {(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)}


def test_a_single_number_is_fixed_and_no_parameter():
    config, params = drawn({**DIGITS, "width": 77}, 1)[0]
    assert config["width"] == 77
    assert "width" not in params


def test_steps_are_round_numbers_and_whole_ranges_whole():
    space = {**DIGITS, "epochs": Range(low=2, high=8, step=3)}
    configs = [config for config, _ in drawn(space, 100)]
    assert {config["loss_weight"] for config in configs} <= {round(0.05 * i, 2) for i in range(21)}
    assert {config["epochs"] for config in configs} == {2, 5, 8}
    assert all(isinstance(config["epochs"], int) for config in configs)


def enqueued(config, space):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    study.enqueue_trial(trial_parameters(config, space))
    return suggest(study.ask(), space)


blocks = st.sampled_from([b for b in itertools.product(range(4), repeat=4) if CIFAR10["blocks"].holds(b)]).map(list)
weight = st.integers(0, 20).map(lambda i: round(0.05 * i, 10))


@given(
    st.fixed_dictionaries(
        {
            "width": st.sampled_from(CIFAR10["width"]), "blocks": blocks, "stride": st.sampled_from([1, 2, 4]),
            "loss_weight": weight, "temperature": st.floats(1, 20), "epochs": st.integers(1, 15),
            "batch_size": st.sampled_from(CIFAR10["batch_size"]),
        }
    )
)  # fmt: skip
def test_an_enqueued_configuration_comes_back(config):
    if config["loss_weight"] == 0:
        del config["temperature"]
    assert enqueued(config, CIFAR10) == config


@pytest.mark.parametrize("name", ["cifar10", "digits", "mnist"])
def test_every_anchor_comes_back_from_the_queue(name):
    study = spec.load(spec.shipped(name))
    for anchor in study.anchors.values():
        assert enqueued(anchor.config, study.space) == anchor.config


def test_a_feature_weight_is_sampled_where_the_space_has_one(digits_text):
    text = digits_text.replace("[space]\n", "[space]\nfeature_weight = { low = 0.0, high = 4.0 }\n")
    space = spec.parse(text, source="x").space
    trial = optuna.trial.FixedTrial(
        {"width": 50, "loss_weight": 0.0, "feature_weight": 1.5, "epochs": 3, "batch_size": 32}
    )
    config = suggest(trial, space)
    assert config == {"width": 50, "loss_weight": 0.0, "feature_weight": 1.5, "epochs": 3, "batch_size": 32}
    assert trial_parameters(config, space) == config
