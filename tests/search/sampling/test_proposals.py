from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState, create_trial

from kdsearch import ParetoPruner, pareto, report
from kdsearch.pruning.history import History
from kdsearch.pruning.scale import make_scale
from kdsearch.records import Attr
from kdsearch.search import resuming
from kdsearch.search.sampling import proposals, samplers
from kdsearch.search.sampling.proposals import Near, ProposalSampler

MAX2 = ["maximize", "maximize"]
STEPS = 4


def suggest(trial):
    """A configuration: of a trial, or of a draft."""
    config = {
        "width": trial.suggest_int("width", 4, 256, log=True),
        "rate": trial.suggest_float("rate", 1e-4, 1.0, log=True),
        "kind": trial.suggest_categorical("kind", ["plain", "soft"]),
    }
    if config["kind"] == "soft":
        config["share"] = trial.suggest_float("share", 0.0, 1.0)  # a conditional parameter
    return config


def ratio(config):
    return 1024 / config["width"]


def accuracies(config):
    """After each step: the wider the better, at the right rate, and a little more with the right share."""
    skill = (1 - 2 / math.sqrt(config["width"])) * math.exp(-((math.log10(config["rate"]) + 2) ** 2))
    skill *= 0.9 if config["kind"] == "plain" else 1 - (config["share"] - 0.7) ** 2
    return [skill * (1 - 0.5 / step) for step in range(1, STEPS + 1)]


def objective(trial):
    config = suggest(trial)
    report(trial, (None, ratio(config)), 0)
    for step, accuracy in enumerate(accuracies(config), 1):
        report(trial, (accuracy, ratio(config)), step)
    return accuracies(config)[-1], ratio(config)


def known_ratios(study, configs):
    return [(ratio(config),) for config in configs]


def proposing(inner="random", seed=0, draw=suggest, known=known_ratios, **options):
    """All trials chosen by the model, of 24 candidates, where the options say nothing else."""
    options = {"compete": False, "candidates": 24, "seed": seed} | options
    return ProposalSampler(
        samplers.make(inner, seed),
        samplers.make("random", seed + 1000),
        draw,
        known,
        steps=lambda config: STEPS,
        **options,
    )


def study_of(sampler, count, directions=MAX2):
    study = optuna.create_study(directions=directions, sampler=sampler)
    study.optimize(objective, n_trials=count)
    return study


def parameters(study):
    return [trial.params for trial in study.trials]


def spread(study):
    """Hypervolume over (accuracy, log10 ratio)."""
    return pareto.hypervolume([(t.values[0], math.log10(t.values[1])) for t in study.trials], (0.0, 0.0))


class Constant(RandomSampler):
    """Draws the same again and again."""

    PARAMETERS = {"width": 16, "rate": 0.01, "kind": "soft", "share": 0.5}  # noqa: RUF012

    def sample_independent(self, study, trial, param_name, param_distribution):
        return self.PARAMETERS[param_name]


def test_only_what_was_drawn_is_proposed():
    drafts = []

    def draw(draft):
        drafts.append(draft)
        return suggest(draft)

    study = study_of(proposing(draw=draw, candidates=6), 12)
    assert len(drafts) == 7 * 6  # five trials are drawn as ever
    assert sum(isinstance(draft, Near) for draft in drafts) == 7 * 2
    offered = [[draft.params for draft in drafts[i : i + 6]] for i in range(0, len(drafts), 6)]
    for trial, choices in zip(study.trials[5:], offered, strict=True):
        assert trial.params in choices
        assert all(trial.distributions[name] == drafts[0].distributions[name] for name in ("width", "rate", "kind"))


def test_enqueued_trials_are_left_alone():
    drafts = []

    def draw(draft):
        drafts.append(draft)
        return suggest(draft)

    study = study_of(proposing(draw=draw), 6)
    drafts.clear()
    wanted = {"width": 7, "rate": 0.5, "kind": "soft", "share": 0.125}
    study.enqueue_trial(wanted)
    study.enqueue_trial({"width": 9})
    study.optimize(objective, n_trials=2)
    assert study.trials[-2].params == wanted
    assert study.trials[-1].params["width"] == 9
    assert drafts == []


def test_with_fewer_than_five_trials_the_inner_sampler_draws():
    alone = study_of(samplers.make("random", 3), 6)
    study = study_of(proposing(seed=3), 6)
    assert parameters(study)[:5] == parameters(alone)[:5]
    assert parameters(study)[5] != parameters(alone)[5]


def test_while_nobody_knows_the_other_objectives_the_inner_sampler_draws():
    sampler = ProposalSampler(
        Constant(),
        RandomSampler(seed=0),
        suggest,
        lambda study, configs: [None] * len(configs),
        steps=lambda config: STEPS,
    )
    assert all(trial.params == Constant.PARAMETERS for trial in study_of(sampler, 8).trials)


def test_a_candidate_of_which_nothing_is_known_is_not_proposed():
    def known(study, configs):
        return [None if config["kind"] == "plain" else (ratio(config),) for config in configs]

    study = study_of(proposing(known=known), 12)
    assert {trial.params["kind"] for trial in study.trials[5:]} == {"soft"}


def test_of_all_widths_those_that_fill_the_front_are_proposed():
    # what is wide enough and no trial has yet; with one wide and one narrow optimum known the gain lies between
    study = optuna.create_study(directions=MAX2, sampler=proposing())
    for width in (4, 8, 128, 256, 200):
        study.enqueue_trial({"width": width, "rate": 0.01, "kind": "soft", "share": 0.7})
    study.optimize(objective, n_trials=11)
    assert sum(8 < trial.params["width"] < 128 for trial in study.trials[5:]) >= 4


@pytest.mark.parametrize("inner", ["random", "tpe", "nsga2"])
def test_a_seed_repeats_the_proposals(inner):
    once = parameters(study_of(proposing(inner, seed=5, candidates=6), 9))
    assert once == parameters(study_of(proposing(inner, seed=5, candidates=6), 9))
    assert once != parameters(study_of(proposing(inner, seed=6, candidates=6), 9))


def test_a_study_that_is_resumed_proposes_what_it_would_have():
    once = study_of(proposing(seed=5), 16)
    study = study_of(proposing(seed=5), 7)
    for count in (2, 6, 1):
        study.sampler = proposing(seed=5)
        study.optimize(objective, n_trials=count)
    assert parameters(study) == parameters(once)


def test_an_objective_to_be_minimised_is_proposed_for_as_well():
    def turned(trial):
        config = suggest(trial)
        loss = 1 - accuracies(config)[-1]
        report(trial, (None, -ratio(config)), 0)
        for step, accuracy in enumerate(accuracies(config), 1):
            report(trial, (1 - accuracy, -ratio(config)), step)
        return loss, -ratio(config)

    losses = {}
    for name, sampler in (
        ("ours", proposing(known=lambda study, configs: [(-ratio(config),) for config in configs])),
        ("random", samplers.make("random", 0)),
    ):
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
        study.optimize(turned, n_trials=20)
        points = [(1 - trial.values[0], -trial.values[1]) for trial in study.trials]
        losses[name] = pareto.hypervolume(points, (0.0, 0.0))
    assert losses["ours"] > losses["random"]


def test_failed_pruned_and_running_trials_are_no_trouble():
    study = optuna.create_study(directions=MAX2, sampler=proposing())
    running = [study.ask() for _ in range(2)]
    for number in range(10):
        trial = study.ask()
        values = objective(trial)
        state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[number % 3]
        study.tell(trial, values if state == TrialState.COMPLETE else None, state)
    report(running[0], (0.5, 3.0), 1)
    report(running[1], (math.nan, 3.0), 1)
    trial = study.ask()
    assert suggest(trial) == trial.params


def learnt(*curves):
    """Return (number, step) of each checkpoint that the model learns from, of (state, first step, checkpoints)."""
    study = optuna.create_study(directions=MAX2)
    for state, first, count in curves:
        steps = range(first, first + count)
        curve = {str(step): [step / 100, 1.0] for step in steps}
        values = [steps[-1] / 100, 1.0] if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, values=values, user_attrs={Attr.CURVE: curve}))
    study.add_trial(create_trial(state=TrialState.RUNNING))
    history = History()
    history.update(study, len(curves))
    rows, columns, used = proposals.learnt(history, history.curves())
    return [(int(row), int(history.grid[column])) for row, column in zip(rows[used], columns[used], strict=True)]


def test_of_whole_trials_the_model_learns_earlier_checkpoints_too():
    whole, ended = (TrialState.COMPLETE, 1, 24), (TrialState.PRUNED, 1, 5)
    assert learnt(whole, ended) == [(0, 1), (0, 3), (0, 6), (0, 12), (0, 24), (1, 5)]
    assert learnt((TrialState.COMPLETE, 1, 2), (TrialState.COMPLETE, 1, 1)) == [(0, 1), (0, 2), (1, 1)]
    assert learnt((TrialState.COMPLETE, 0, 8)) == [(0, 0), (0, 1), (0, 3), (0, 7)]  # steps that count from 0
    assert learnt((TrialState.COMPLETE, 10, 3)) == [(0, 12)]  # its half was before its first checkpoint


def test_the_model_learns_from_the_latest_trials_and_from_the_front(monkeypatch):
    monkeypatch.setattr(proposals, "MOST", 7)
    whole, best = (TrialState.COMPLETE, 1, 4), (TrialState.COMPLETE, 1, 8)
    assert {number for number, _ in learnt(whole, best, whole, whole, whole)} == {1, 3, 4}


@pytest.mark.slow
def test_a_sampler_made_anew_goes_on_alike_though_early_trials_are_left_out(monkeypatch):
    monkeypatch.setattr(proposals, "MOST", 40)
    whole, halved = study_of(proposing(), 60), study_of(proposing(), 41)
    halved.sampler = proposing()
    halved.optimize(objective, n_trials=19)
    assert parameters(halved) == parameters(whole)


def test_a_study_may_be_told_other_parameters_on_the_way():
    study = optuna.create_study(directions=MAX2, sampler=proposing())
    for number in range(6):
        trial = study.ask()
        config = {"width": trial.suggest_int("width", 4, 64, log=True), "rate": 0.01, "kind": "plain"}
        for step, accuracy in enumerate(accuracies(config), 1):
            report(trial, (accuracy, ratio(config)), step)
        trial.suggest_float(f"extra_{number}", 0.0, 1.0)
        study.tell(trial, (accuracies(config)[-1], ratio(config)))
    study.optimize(objective, n_trials=2)
    assert all(suggest(optuna.trial.FixedTrial(trial.params)) == trial.params for trial in study.trials[6:])


@pytest.mark.parametrize("first", [0, 1, 10])
def test_trials_that_all_ended_at_their_first_step_are_no_trouble(first):
    study = optuna.create_study(directions=MAX2, sampler=proposing())
    for _ in range(7):
        trial = study.ask()
        config = suggest(trial)
        report(trial, (accuracies(config)[0], ratio(config)), first)
        study.tell(trial, None, TrialState.PRUNED)
    assert {trial.state for trial in study.trials} == {TrialState.PRUNED}


def test_one_sampler_may_serve_two_studies():
    sampler = proposing()
    first, second = study_of(sampler, 8), study_of(sampler, 8)
    assert parameters(first) == parameters(second)


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["random", "tpe"])
def test_proposals_reach_more_than_random_search_alone(inner):
    ours, alone = (
        [spread(study_of(make(seed), 30)) for seed in range(8)]
        for make in (lambda seed: proposing(inner, seed), lambda seed: samplers.make("random", seed))
    )
    assert np.mean(ours) > 1.02 * np.mean(alone)
    assert sum(one > other for one, other in zip(ours, alone, strict=True)) >= 6


def widths(cost, seed):
    sampler = proposing(seed=seed, cost=cost)
    return [trial.params["width"] for trial in study_of(sampler, 25).trials[10:]]


def test_where_costs_count_the_cheap_are_preferred():
    plain = np.mean([widths(None, seed) for seed in range(4)])
    by_cost = np.mean([widths(lambda trial: float(trial.params["width"]) ** 2, seed) for seed in range(4)])
    assert by_cost < 0.7 * plain


def test_a_cost_that_nobody_knows_changes_nothing():
    assert widths(None, 0) == widths(lambda trial: None, 0)


DISTRIBUTIONS = {
    "width": IntDistribution(4, 512, log=True),
    "odd": IntDistribution(1, 9, step=2),
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "share": FloatDistribution(0.0, 1.0, step=0.125),
    "kind": CategoricalDistribution(["plain", "soft"]),
    "size": CategoricalDistribution([8, 32, 16]),
}


@given(st.integers(0, 2**32 - 1))
def test_a_move_stays_within_the_ranges_and_near_its_parent(seed):
    parent = {"width": 16, "odd": 3, "rate": 0.01, "share": 0.5, "kind": "soft", "size": 16}
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    near = Near(RandomSampler(seed=seed), study, study.ask()._cached_frozen_trial, parent, np.random.default_rng(seed))
    for name, distribution in DISTRIBUTIONS.items():
        value = near._suggest(name, distribution)
        assert distribution._contains(distribution.to_internal_repr(value))
        assert near._suggest(name, distribution) == value  # asked twice, alike
    assert near.params["size"] in (8, 16, 32)
    assert abs(math.log(near.params["rate"] / 0.01)) < 0.6 * math.log(1e4)


def test_a_parameter_that_the_parent_lacks_is_drawn():
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    near = Near(Constant(), study, study.ask()._cached_frozen_trial, {"width": 1000}, np.random.default_rng(0))
    assert near._suggest("width", DISTRIBUTIONS["width"]) == 16  # out of the range now
    assert near._suggest("rate", DISTRIBUTIONS["rate"]) == 0.01


def test_the_model_and_the_sampler_compete():
    study = study_of(proposing(compete=True), 40)
    by = [trial.user_attrs.get(Attr.PROPOSED_BY) for trial in study.trials]
    assert by[:5] == [None] * 5
    assert {"model", "sampler"} == set(by[5:])


@pytest.mark.parametrize(("good", "low", "high"), [("model", 0.6, 0.9), ("sampler", 0.1, 0.4)])
def test_who_gained_lately_proposes_more(good, low, high):
    study = optuna.create_study(directions=MAX2)
    for number in range(24):
        by = "model" if number % 2 else "sampler"
        value = 0.5 + 0.02 * number if by == good else 0.1
        curve = {"0": [None, 3.0], "1": [value, 3.0]}
        study.add_trial(create_trial(values=[value, 3.0], user_attrs={Attr.CURVE: curve, Attr.PROPOSED_BY: by}))
    sampler = proposing(compete=True)
    sampler._history.update(study)
    assert low <= sampler._share_of_model(study, sampler._history.curves()) <= high


def asked(pruner, last):
    """The next trial of a study of 24 trials, of which eleven gained nothing and the last one had this accuracy."""
    study = optuna.create_study(directions=MAX2, sampler=proposing(compete=True), pruner=pruner)
    study.optimize(objective, n_trials=12)
    for accuracy in [0.01] * 11 + [last]:
        curve = {"0": [None, 3.0], "1": [accuracy, 3.0]}
        study.add_trial(create_trial(values=[accuracy, 3.0], user_attrs={Attr.CURVE: curve}))
    trial = study.ask()
    suggest(trial)
    return study.trials[trial.number]


def test_audits_of_a_study_that_stands_still_are_drawn_at_random(monkeypatch):
    pruners = [ParetoPruner(seed=seed) for seed in range(99)]
    audits, not_this = (next(one for one in pruners if one.audits(24) == wanted) for wanted in (True, False))
    assert asked(audits, 0.01).user_attrs[Attr.PROPOSED_BY] == "random"
    for other in (asked(not_this, 0.01), asked(audits, 0.99), asked(optuna.pruners.NopPruner(), 0.01)):
        assert other.user_attrs[Attr.PROPOSED_BY] in ("model", "sampler")
    monkeypatch.setattr(proposals, "FEWEST", 99)
    assert Attr.PROPOSED_BY not in asked(audits, 0.01).user_attrs


class Shelf:
    """Paused trials of which all but the given ones were claimed by others."""

    def __init__(self, numbers, free=None):
        self.numbers, self.free, self.dropped = list(numbers), free, []

    def offered(self):
        return self.numbers

    def take(self, number):
        return self.free is None or number in self.free

    def drop(self, number):
        self.dropped.append(number)


def paused_study(monkeypatch, shelf, margin):
    """Eight whole trials, then eight that ended after their first step, then one more."""
    monkeypatch.setattr(resuming, "MARGIN", margin)
    study = optuna.create_study(directions=MAX2, sampler=proposing(paused=shelf))

    def ended(trial):
        config = suggest(trial)
        trial.set_user_attr(Attr.CONFIG, config)
        report(trial, (None, ratio(config)), 0)
        for step, accuracy in enumerate(accuracies(config)[: STEPS if trial.number < 8 else 1], 1):
            report(trial, (accuracy, ratio(config)), step)
        if trial.number < 8:
            return accuracies(config)[-1], ratio(config)
        raise optuna.TrialPruned

    study.optimize(ended, n_trials=16)
    shelf.numbers = list(range(8, 16))
    trial = study.ask()
    suggest(trial)
    return study, trial


def test_the_most_promising_ended_trial_goes_on_where_nothing_promises_more(monkeypatch):
    study, trial = paused_study(monkeypatch, Shelf([]), margin=-1.0)
    number = resuming.resumed(trial)
    assert 8 <= number < 16
    assert trial.user_attrs[Attr.RESUMES] == number
    assert trial.params == study.trials[number].params
    assert study.trials[trial.number].user_attrs[Attr.PROPOSED_BY] == "resumed"


def test_a_candidate_goes_first_where_it_promises_more(monkeypatch):
    _, trial = paused_study(monkeypatch, Shelf([]), margin=1e9)
    assert resuming.resumed(trial) is None


def test_what_another_worker_has_claimed_is_left_to_it(monkeypatch):
    _, trial = paused_study(monkeypatch, Shelf([], free=[9]), margin=-1.0)
    assert resuming.resumed(trial) == 9
    _, trial = paused_study(monkeypatch, Shelf([], free=[]), margin=-1.0)
    assert resuming.resumed(trial) is None


def test_the_least_promising_lose_their_checkpoints(monkeypatch):
    shelf = Shelf([])
    monkeypatch.setattr(resuming, "MOST", 3)
    paused_study(monkeypatch, shelf, margin=1e9)
    assert len(shelf.dropped) == len(set(shelf.dropped)) == 5


def test_a_trial_at_its_end_promises_nothing(monkeypatch):
    study, _ = paused_study(monkeypatch, Shelf([]), margin=1e9)
    history = History()
    history.update(study)
    points = history.curves().points
    scale = make_scale(points, history.sign, history.observed, lowest=float(points[:, 0].min()))
    promised = resuming.promises(history, scale, study.trials, range(99), lambda config: STEPS)
    assert sorted(promised) == list(range(8, 16))
    assert list(promised.values()) == sorted(promised.values(), reverse=True)
    assert resuming.promises(history, scale, study.trials, range(99), lambda config: 1) == {}
