from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers.recording import Recorder
from optuna.trial import TrialState

import kdsearch
from kdsearch import pareto, spec
from kdsearch.errors import DataError, DefinitionError, DeviceError, KdsearchError, RunError, StudyFileError
from kdsearch.pruning.pruner import ParetoPruner, Verdict
from kdsearch.records import Attr, EpochRecord, Progress, StudyAttr, was_handed_back
from kdsearch.reporting.collect import collect
from kdsearch.reporting.pages import study_page
from kdsearch.search import budget as budgets
from kdsearch.search import failures
from kdsearch.search import plan as plans
from kdsearch.search import study as search
from kdsearch.search.budget import Budget, epochs_spent, finished_count, seconds_spent
from kdsearch.search.definition import open_study
from kdsearch.search.run_options import Request
from kdsearch.search.space import enqueue_missing
from kdsearch.search.trial import Objective
from kdsearch.search.workers import slots
from kdsearch.search.workshop import Workshop
from kdsearch.storage import load_study, open_storage

COMPLETE, FAIL, PRUNED = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED


def optimize(study_file: Path | str, url: str, trials: int | None, **changes: Any) -> optuna.Study:
    usual = {"train_size": 200, "max_epochs": 2, "device": "cpu", "cost": "flops", "seed": 0, "sampler": "random"}
    return kdsearch.optimize(study=study_file, storage=url, trials=trials, **{**usual, **changes})


def outcome(study: optuna.Study) -> list[tuple]:
    """All that a repetition must repeat."""
    return [(t.number, t.state, t.params, t.values, t.user_attrs[Attr.CURVE]) for t in study.trials]


def broken(study_file: Path) -> Path:
    """The same study with a rate at which every loss becomes infinite."""
    text = study_file.read_text()
    path = study_file.with_name("broken.toml")
    path.write_text(text.replace("lr = 1e-3", "lr = 1e30"))
    return path


def without_anchors(study_file: Path, epochs: int) -> Path:
    """The same study with a fixed number of epochs and no anchors."""
    text = study_file.read_text().partition("[anchors]")[0]
    assert "epochs = { low = 1, high = 30 }" in text
    path = study_file.with_name("fixed.toml")
    path.write_text(text.replace("epochs = { low = 1, high = 30 }", f"epochs = {epochs}"))
    return path


class Clock(Progress):
    """Stands in for the module `time`: a second passes with every epoch."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def trial_epoch(self, number: int, record: EpochRecord, epochs: int) -> None:
        self.now += 1


def test_a_study_ends_with_exactly_as_many_trials_and_again_at_once(study_file, url):
    study = optimize(study_file, url, 5)
    assert finished_count(study.trials) == len(study.trials) == 5
    heard = Recorder()
    again = optimize(study_file, url, 5, progress=heard)
    assert outcome(again) == outcome(study)
    assert heard.started == []
    assert [t.number for t in again.best_trials] == [t.number for t in study.best_trials]


def test_a_larger_number_extends_the_study(study_file, url):
    optimize(study_file, url, 3)
    heard = Recorder()
    study = optimize(study_file, url, 5, progress=heard)
    assert heard.totals == [(3, 5, "trials")]
    assert [number for number, _ in heard.started] == [3, 4]
    assert finished_count(study.trials) == 5
    assert len(optimize(study_file, url, 2).trials) == 5  # a smaller one takes nothing away


def test_the_anchors_run_first_and_are_complete(study_file, url):
    study = optimize(study_file, url, 4)
    assert [t.user_attrs.get(Attr.ANCHOR) for t in study.trials] == ["m1", "m2", None, None]
    assert [t.state for t in study.trials[:2]] == [COMPLETE] * 2
    anchors = spec.load(study_file).limited(max_epochs=2).anchors
    assert [t.user_attrs[Attr.CONFIG] for t in study.trials[:2]] == [a.config for a in anchors.values()]


def test_anchors_are_never_pruned_whatever_comes_before(study_file, url):
    # the anchors wait behind four trials; m1 with its batches of 32 is then dominated by a better one
    plan = plans.make_plan(
        Request(study=study_file, storage=url, train_size=200, max_epochs=2, device="cpu", cost="flops")
    )
    study = open_study(plan, open_storage(url))
    for _ in range(4):
        study.enqueue_trial({"width": 50, "loss_weight": 0.0, "epochs": 2, "batch_size": 16})
    study = optimize(study_file, url, 6)
    assert [t.user_attrs.get(Attr.ANCHOR) for t in study.trials] == [None] * 4 + ["m1", "m2"]
    assert [t.state for t in study.trials[4:]] == [COMPLETE] * 2
    assert len(study.trials[4].user_attrs[Attr.CURVE]) == 3


def test_fewer_trials_than_anchors_run_the_first_ones_and_say_so(url):
    heard = Recorder()
    study = optimize(spec.shipped("digits"), url, 2, progress=heard, max_epochs=1)
    assert [t.user_attrs[Attr.ANCHOR] for t in study.trials] == ["m1", "m2"]
    assert heard.warnings[0] == "--trials 2 is fewer than the anchors: m3, m4, m5, m6, m7, m8, m9 will not run"


def test_the_best_trials_are_the_front_of_all_checkpoints(study_file, url):
    study = optimize(study_file, url, 40, candidates=1)
    found = [tuple(values) for t in study.trials for step, values in t.user_attrs[Attr.CURVE].items() if step != "0"]
    assert {tuple(t.values) for t in study.best_trials} == {found[i] for i in pareto.front(found)}
    assert Counter(t.state for t in study.trials)[PRUNED] > 0
    assert study.metric_names == ["accuracy", "ratio"]
    for trial in study.trials:
        trained = max(map(int, trial.user_attrs[Attr.CURVE]))
        early = trial.state == PRUNED or Attr.STOPPED_AT in trial.user_attrs
        assert (trained < trial.user_attrs[Attr.CONFIG]["epochs"]) == early


def test_without_a_pruner_every_trial_is_complete(study_file, url):
    study = optimize(study_file, url, 8, pruner="none")
    assert {t.state for t in study.trials} == {COMPLETE}


def test_the_same_seed_repeats_the_study_exactly(study_file, tmp_path):
    first, again, other = (
        outcome(optimize(study_file, f"journal:{tmp_path}/{name}.log", 5, seed=seed, sampler="tpe"))
        for name, seed in [("a", 3), ("b", 3), ("c", 4)]
    )
    assert first == again != other


def test_a_resumed_study_equals_an_uninterrupted_one(study_file, tmp_path):
    whole = optimize(study_file, f"journal:{tmp_path}/a.log", 6)
    for trials in (1, 3, 6):  # the first part ends before the last anchor
        parts = optimize(study_file, f"journal:{tmp_path}/b.log", trials)
    assert outcome(parts) == outcome(whole)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp"])
def test_a_resumed_study_equals_an_uninterrupted_one_once_the_sampler_has_learnt(study_file, tmp_path, sampler):
    whole = optimize(study_file, f"journal:{tmp_path}/a.log", 18, sampler=sampler)
    for trials in (11, 18):
        parts = optimize(study_file, f"journal:{tmp_path}/b.log", trials, sampler=sampler)
    assert outcome(parts) == outcome(whole)
    assert {t.state for t in whole.trials} <= {COMPLETE, PRUNED}


def test_a_trial_whose_process_was_killed_does_not_count_and_an_anchor_runs_again(study_file, url):
    optimize(study_file, url, 1)
    interrupted = load_study(open_storage(url), "digits")
    enqueue_missing(interrupted, spec.load(study_file).limited(max_epochs=2), at_most=2)
    killed = interrupted.ask()  # takes m2 and never ends
    assert killed.user_attrs == {Attr.ANCHOR: "m2"}
    killed.set_user_attr(Attr.WORKER, {**slots.myself(), "started": 0})  # its number is another process's now
    study = optimize(study_file, url, 4)
    assert study.trials[killed.number].state == FAIL
    assert was_handed_back(study.trials[killed.number].user_attrs)
    assert finished_count(study.trials) == 4
    assert Counter(t.user_attrs.get(Attr.ANCHOR) for t in study.trials if t.state == COMPLETE)["m2"] == 1


def test_a_loss_that_is_not_finite_fails_trials_and_five_in_a_row_end_the_run(study_file, url):
    heard = Recorder()
    with pytest.raises(RunError, match=r"5 trials in a row failed.*training loss must be finite.*run the same command"):
        optimize(broken(study_file), url, 8, progress=heard)
    study = load_study(open_storage(url), "digits")
    assert [t.state for t in study.trials if t.state != TrialState.WAITING] == [FAIL] * 5
    assert all("training loss must be finite" in t.user_attrs[Attr.FAIL_REASON] for t in study.trials[:5])
    assert [state for _, state, counted in heard.finished if not counted] == ["FAIL"] * 5
    assert Counter(t.user_attrs.get(Attr.ANCHOR) for t in study.trials[:5]) == {"m1": 3, "m2": 2}


def test_failures_leave_finished_trials_alone_and_the_study_goes_on(study_file, url, plan, teacher, monkeypatch):
    monkeypatch.setattr(failures, "OWN_IN_A_ROW", failures.IN_A_ROW)
    done = outcome(optimize(study_file, url, 3))
    own = plans.make_plan(
        Request(study=study_file, storage=url, train_size=200, max_epochs=2, device="cpu", cost="flops")
    )
    bad = Objective(
        Workshop(spec.load(broken(study_file)).limited(max_epochs=2), plan.split, teacher, "flops"), seed=0,
        progress=Progress(),
    )  # fmt: skip
    study = open_study(own, open_storage(url))
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    with pytest.raises(RunError):
        search.run(study, bad, own, budget=Budget(trials=6), progress=Progress())
    assert outcome(study)[:3] == done
    later = optimize(study_file, url, 6)
    assert outcome(later)[:3] == done
    assert finished_count(later.trials) == 6
    assert Counter(t.state for t in later.trials)[FAIL] == 5


@pytest.mark.usefixtures("few_pairs")
@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"train_size": 150}, r"data.train_size: 200 -> 150"),
        ({"max_epochs": 1}, r"epochs: 2 -> 1"),
        pytest.param({"cost": "latency"}, r"cost: flops -> latency; device_model: nothing -> ", marks=pytest.mark.slow),
    ],
)
def test_another_definition_under_the_same_name_is_refused_with_the_difference(study_file, url, changes, shown):
    before = outcome(optimize(study_file, url, 1))
    with pytest.raises(DefinitionError, match=rf"must stay the same \(.*{shown}.*got digits\); choose another --name"):
        optimize(study_file, url, 2, **changes)
    study = load_study(open_storage(url), "digits")
    assert outcome(study) == before
    assert study.user_attrs[StudyAttr.STUDY_FILE]["data"]["train_size"] == 200
    assert len(optimize(study_file, url, 1, name="other", **changes).trials) == 1


def test_another_space_or_recipe_or_seed_is_another_definition(study_file, url):
    optimize(study_file, url, 1)
    text = study_file.read_text()
    for old, new, shown in [
        ("lr = 1e-3", "lr = 1e-2", r"student.recipe.lr: 0.001 -> 0.01"),
        ("split_seed = 0", "split_seed = 1", r"data.split_seed: 0 -> 1"),
        ("seed = 0\n\n[teacher", "seed = 1\n\n[teacher", r"teacher.seed: 0 -> 1"),
        ("low = 1.0, high = 20.0", "low = 1.0, high = 30.0", r"space.temperature.high: 20.0 -> 30.0"),
    ]:
        assert old in text
        study_file.write_text(text.replace(old, new))
        with pytest.raises(DefinitionError, match=shown):
            optimize(study_file, url, 2)


def test_anchors_are_no_part_of_the_definition(study_file, url):
    optimize(study_file, url, 2)
    study_file.write_text(study_file.read_text().partition("m2 = ")[0])
    assert len(optimize(study_file, url, 3).trials) == 3


def test_samplers_and_pruners_may_change_on_the_way(study_file, url):
    optimize(study_file, url, 3)
    assert len(optimize(study_file, url, 4, sampler="nsga2", pruner="none", seed=9).trials) == 4


def test_a_study_not_made_by_kdsearch_is_refused_and_left_alone(study_file, url):
    optuna.create_study(storage=open_storage(url), study_name="digits", directions=["maximize"] * 2)
    with pytest.raises(DefinitionError, match=r"must have been made by kdsearch \(got digits\)"):
        optimize(study_file, url, 1)
    assert load_study(open_storage(url), "digits").user_attrs == {}


def test_no_time_runs_nothing(study_file, url):
    study = optimize(study_file, url, 3, timeout=0)
    assert finished_count(study.trials) == 0
    assert not any(t.state.is_finished() for t in study.trials)


def test_an_epochs_budget_is_spent_to_the_last_epoch_and_lifts_the_number_of_trials(study_file, url):
    heard = Recorder()
    limits = {"epochs_budget": 7, "pruner": "none"}
    study = optimize(without_anchors(study_file, 2), url, None, progress=heard, **limits)
    assert heard.totals == [(0, 7, "epochs")]
    assert [t.state for t in study.trials] == [COMPLETE] * 4
    assert [max(map(int, t.user_attrs[Attr.CURVE])) for t in study.trials] == [2, 2, 2, 1]
    last = study.trials[-1].user_attrs
    assert (last[Attr.STOPPED_AT], last[Attr.BEST_EPOCH]) == (1, 1)
    assert last[Attr.STOPPED_BY] == {"step": 1, "reason": "the epochs budget was spent"}
    assert study.trials[-1].values == last[Attr.CURVE]["1"]
    assert not any(Attr.STOPPED_AT in t.user_attrs for t in study.trials[:-1])

    again = Recorder()
    optimize(without_anchors(study_file, 2), url, None, progress=again, **limits)
    assert again.started == again.totals == []
    study = optimize(without_anchors(study_file, 2), url, 5, epochs_budget=100, pruner="none")
    assert (len(study.trials), epochs_spent(study.trials)) == (5, 9)  # whichever comes first


def test_an_anchor_is_trained_to_its_end_whatever_the_budget(study_file, url):
    study = optimize(study_file, url, None, epochs_budget=1)
    begun = [t for t in study.trials if t.state != TrialState.WAITING]
    assert [(t.user_attrs[Attr.ANCHOR], t.state) for t in begun] == [("m1", COMPLETE)]
    assert epochs_spent(study.trials) == 2
    assert Attr.STOPPED_AT not in begun[0].user_attrs


def test_when_the_time_is_over_the_running_trial_ends_with_its_epoch(study_file, url, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budgets, "time", clock)
    study = optimize(without_anchors(study_file, 2), url, None, timeout=3, pruner="none", progress=clock)
    assert [max(map(int, t.user_attrs[Attr.CURVE])) for t in study.trials] == [2, 1]
    assert study.trials[1].state == COMPLETE
    assert study.trials[1].user_attrs[Attr.STOPPED_BY] == {"step": 1, "reason": "the timeout had passed"}


def test_when_the_time_is_over_an_anchor_goes_on_to_its_end(study_file, url, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budgets, "time", clock)
    study = optimize(study_file, url, None, timeout=1, progress=clock)
    assert [t.user_attrs[Attr.ANCHOR] for t in study.trials if t.state == COMPLETE] == ["m1"]
    assert epochs_spent(study.trials) == 2


def test_the_epochs_may_be_fixed_and_the_pruner_knows_how_many_either_way(study_file, url):
    file = without_anchors(study_file, 2)
    study = optimize(file, url, 3)
    assert {t.user_attrs[Attr.CONFIG]["epochs"] for t in study.trials} == {2}
    assert not any("epochs" in t.params for t in study.trials)
    assert spec.load(file).longest == 2
    assert spec.load(file).limited(max_epochs=1).space["epochs"] == 1
    fixed, sampled = (
        search.pareto_pruner(plans.make_plan(Request(study=path, train_size=200, device="cpu", cost="flops")))
        for path in (file, study_file)
    )
    assert (fixed._max_steps, sampled._max_steps) == (2, "epochs")


def test_an_anchor_of_other_epochs_than_the_fixed_ones_is_refused(study_file, url):
    study_file.write_text(study_file.read_text().replace("epochs = { low = 1, high = 30 }", "epochs = 2"))
    with pytest.raises(StudyFileError, match=r"anchors\.m1\.epochs lies outside the space"):
        optimize(study_file, url, 1)


def test_a_trial_refused_before_its_first_epoch_is_told_and_does_not_count(study_file, url, monkeypatch):
    class Refusing(ParetoPruner):
        def verdict(self, study, trial):
            if trial.number != 1 or Attr.ANCHOR in trial.user_attrs:
                return Verdict("go")
            reason = {"step": 0, "at": 2, "forecast": 0.5, "trials": [0], "reason": "it would not beat trial 0"}
            return Verdict("prune", reason)

    monkeypatch.setitem(search.PRUNERS, "refusing", lambda plan: Refusing())
    heard = Recorder()
    study = optimize(without_anchors(study_file, 1), url, 2, pruner="refusing", progress=heard)
    assert [t.state for t in study.trials] == [COMPLETE, PRUNED, COMPLETE]
    assert heard.finished[1] == (1, "PRUNED", False)
    assert heard.lines[1] == "not trained: it would not beat trial 0"
    assert (finished_count(study.trials), epochs_spent(study.trials)) == (2, 2)
    found = collect(study, storage_url=url)
    assert (found.counts["pruned"], found.counts["untrained"]) == (0, 1)
    assert "before its first epoch: it could hope for 50.00 %" in study_page.render(found, plotlyjs="cdn")


def test_a_study_holds_what_the_report_needs(study_file, url):
    attrs = optimize(study_file, url, 1, command="kdsearch optimize").user_attrs
    assert spec.from_dict(attrs[StudyAttr.STUDY_FILE]) == spec.load(study_file).limited(train_size=200, max_epochs=2)
    assert attrs[StudyAttr.TEACHER]["family"] == "cnn"
    assert attrs[StudyAttr.ENVIRONMENT]["classes"] == 10
    assert attrs[StudyAttr.ENVIRONMENT]["sampler"] == "random"
    assert attrs[StudyAttr.COMMAND] == "kdsearch optimize"
    json.dumps(attrs)


@pytest.mark.slow
def test_any_optuna_reads_a_studys_database(study_file, tmp_path):
    url = f"sqlite:///{tmp_path}/kd.db"
    study = optimize(study_file, url, 3)
    plain = optuna.load_study(study_name="digits", storage=url)
    assert [t.number for t in plain.best_trials] == [t.number for t in study.best_trials]


@pytest.mark.parametrize(
    ("changes", "error", "line"),
    [
        ({"dataset": "imagenet"}, DataError, r"data set must be known \(got imagenet\)"),
        ({"sampler": "cmaes"}, KdsearchError, r"--sampler must be known \(got cmaes\); choose one of tpe, nsga2"),
        ({"pruner": "median"}, KdsearchError, r"--pruner must be known \(got median\); choose one of pareto, none"),
        ({"cost": "energy"}, KdsearchError, r"--cost must be known \(got energy\); choose one of flops, latency"),
        ({"trials": 0}, KdsearchError, r"--trials must be at least 1 \(got 0\)"),
        ({"epochs_budget": 0}, KdsearchError, r"--epochs-budget must be at least 1 \(got 0\)"),
        ({"timeout": -1.0}, KdsearchError, r"--timeout must be at least 0 \(got -1.0\)"),
        ({"train_size": 0}, StudyFileError, r"--train-size must be at least 1"),
        ({"train_size": 3}, DataError, r"training set must hold at least one image of every class"),
        ({"device": "cuda:99"}, DeviceError, r"--device must exist"),
        ({"study": "no.toml"}, StudyFileError, r"No such file"),
        ({"study": spec.shipped("mnist"), "dataset": "digits"}, DefinitionError, r"must name the same data set"),
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_made(tmp_path, changes, error, line):
    url = f"sqlite:///{tmp_path}/kd.db"
    usual = {"trials": 1, "device": "cpu", "cost": "flops", "storage": url}
    with pytest.raises(error, match=line):
        kdsearch.optimize(**{**usual, **changes})
    assert [*tmp_path.iterdir()] == []


def test_the_name_and_the_storage_have_their_defaults(monkeypatch, tmp_path):
    limits = {"train_size": 200, "max_epochs": 1, "device": "cpu", "cost": "flops"}
    plan = plans.make_plan(Request(**limits))
    assert (plan.name, plan.url, plan.spec.data.name) == ("digits", "sqlite:///kdsearch.db", "digits")
    monkeypatch.setenv("OPTUNA_STORAGE", "journal:here.log")
    assert plans.make_plan(Request(**limits)).url == "journal:here.log"
    assert plans.make_plan(Request(**limits, storage="sqlite:///x.db", name="n")).url == "sqlite:///x.db"


def test_a_folder_gives_its_name_to_the_study():
    chosen = plans.read_spec("folder:/data/cats", None)
    assert chosen.data.name == "folder:/data/cats"
    assert chosen.student.family == "resnet"


def test_an_epochs_seconds_are_those_of_training_alone(study_file, url):
    study = optimize(study_file, url, 3)
    for trial in study.trials:
        seconds = search.epoch_seconds(trial)
        assert seconds * search.epochs_run(trial) == pytest.approx(trial.user_attrs[Attr.TRAIN_SECONDS])
    study.enqueue_trial({})
    assert search.epoch_seconds(study.trials[-1]) is None


def test_promise_counts_by_the_second_where_an_epoch_may_take_twenty_times_another(plan):
    resnet = plan.spec.student.model_copy(update={"family": "resnet"})
    wide = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"student": resnet}))
    assert not search.counts_seconds(plan, Budget(trials=3))
    assert search.counts_seconds(wide, Budget(trials=3))
    assert not search.counts_seconds(wide, Budget(epochs=30))  # what is spent is epochs
    on_a_gpu = dataclasses.replace(plan, device=torch.device("cuda"))
    assert search.counts_seconds(on_a_gpu, Budget(epochs=30))


def test_with_a_timeout_promise_counts_by_the_second(study_file, url, monkeypatch):
    made = []
    plain = search.make_sampler
    monkeypatch.setattr(
        search, "make_sampler", lambda *args, **options: made.append(options) or plain(*args, **options)
    )
    optimize(study_file, url, 2)
    optimize(study_file, url, 3, timeout=60)
    assert [options["by_time"] for options in made] == [False, True]


def test_augmented_students_are_taught_the_views_that_they_see(study_file, url, tmp_path, monkeypatch):
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path / "cache"))
    text = study_file.read_text(encoding="utf-8")
    study_file.write_text(text.replace("lr_batch = 32", "augment = { flip = true, shift = 1 }"), encoding="utf-8")
    study = optimize(study_file, url, 2)
    assert [t.state for t in study.trials] == [COMPLETE] * 2
    kept = list((tmp_path / "cache" / "answers").glob("*-flip1-shift1-pool2.views.safetensors"))
    assert len(kept) == 1
    again = optimize(study_file, f"journal:{tmp_path / 'again.log'}", 2)
    losses = [[t.user_attrs[Attr.LOSSES] for t in each.trials] for each in (study, again)]
    assert losses[0] == losses[1]  # from a full table as from an empty one


def test_where_the_time_went_is_told_and_adds_up_over_runs(study_file, url):
    class Told(Recorder):
        spent: str = ""

        def study_finished(self, spent: str) -> None:
            self.spent = spent

    told = Told()
    study = optimize(study_file, url, 3, progress=told)
    assert "training" in told.spent
    assert "storage and the rest" in told.spent
    first = seconds_spent(study)
    second = seconds_spent(optimize(study_file, url, 5))
    assert all(second[work] >= first[work] for work in first)
    assert second["training"] > first["training"] > 0


def test_a_study_of_convolutions_says_that_a_cpu_takes_hours(plan):
    heard = Recorder()
    search.warn_of_slowness(plan, heard)
    assert heard.warnings == []  # digits take minutes
    student = plan.spec.student.model_copy(update={"family": "resnet"})
    wide = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"student": student}))
    search.warn_of_slowness(wide, heard)
    assert heard.warnings == [
        "digits takes hours on a CPU: --dry-run estimates how many, --train-size and --max-epochs make a first look "
        "shorter"
    ]
    search.warn_of_slowness(dataclasses.replace(wide, device=torch.device("cuda")), heard)
    assert len(heard.warnings) == 1


def test_a_study_whose_students_rate_falls_says_that_pruning_misleads(plan):
    heard = Recorder()
    search.warn_of_schedule(plan, "pareto", heard)
    assert heard.warnings == []
    recipe = plan.spec.student.recipe.model_copy(update={"schedule": "onecycle"})
    student = plan.spec.student.model_copy(update={"recipe": recipe})
    falling = dataclasses.replace(plan, spec=plan.spec.model_copy(update={"student": student}))
    search.warn_of_schedule(falling, "none", heard)
    assert heard.warnings == []
    search.warn_of_schedule(falling, "pareto", heard)
    (line,) = heard.warnings
    assert line.startswith("the students' learning rate falls to their last epoch (schedule onecycle)")


def test_a_study_begun_before_the_loss_was_a_key_goes_on_with_its_own(study_file, url):
    study = optimize(study_file, url, 1)
    stored = dict(study.user_attrs[StudyAttr.DEFINITION])
    assert stored.pop("distillation") == 2
    study.set_user_attr(StudyAttr.DEFINITION, stored)
    again = optimize(study_file, url, 2)
    assert again.user_attrs[StudyAttr.DEFINITION] == stored
    assert again.user_attrs[StudyAttr.STUDY_FILE]["distillation"] == 1
    assert finished_count(again.trials) == 2
    named = study_file.with_name("named.toml")
    named.write_text("distillation = 2\n" + Path(study_file).read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(DefinitionError, match="distillation: nothing -> 2"):
        optimize(named, url, 3)
