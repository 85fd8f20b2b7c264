"""Trials that fail by their own configuration: memory that is not there, losses that are not finite."""

from __future__ import annotations

import dataclasses
import gc
import re
from collections import Counter
from pathlib import Path

import optuna
import pytest
import torch
from helpers import greedy
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import OperationalError

from kdsearch import networks, storage
from kdsearch.distil.teacher import obtain
from kdsearch.errors import KdsearchError, RunError
from kdsearch.records import HANDED_BACK, INTERRUPTED, Attr, Progress
from kdsearch.search import failures
from kdsearch.search.budget import Budget
from kdsearch.search.plan import Plan, make_plan
from kdsearch.search.run_options import Request
from kdsearch.search.sampling.surrogate import LikelyRatio
from kdsearch.search.space import trial_parameters
from kdsearch.search.study import optimize
from kdsearch.search.trial import Objective
from kdsearch.search.workers import loop
from kdsearch.search.workshop import Workshop

COMPLETE, FAIL, PRUNED = TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED
NARROW = {"width": 50, "loss_weight": 0.5, "temperature": 4.0, "epochs": 1, "batch_size": 32}
WIDE = NARROW | {"width": 300}
USUAL = {"train_size": 200, "max_epochs": 1, "device": "cpu", "cost": "flops", "seed": 0, "sampler": "random"}


@pytest.fixture(params=[True, False], ids=["the system's", "as CUDA's"])
def out_of_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family of students, known by the name `greedy`."""
    monkeypatch.setitem(networks.STUDENTS, "greedy", "helpers.greedy:FAMILY")
    monkeypatch.setattr(greedy, "made", [])
    monkeypatch.setattr(greedy, "real", request.param)


def changed(workshop: Workshop, **student: object) -> Workshop:
    """The same workshop with other students."""
    spec = workshop.spec.model_copy(update={"student": workshop.spec.student.model_copy(update=student)})
    return Workshop(spec, workshop.split, workshop.teacher, "flops")


def run(workshop: Workshop, *configs: dict, study: optuna.Study | None = None, anchor: str | None = None):
    study = study or optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    for config in configs:
        attrs = {Attr.ANCHOR: anchor} if anchor else {}
        study.enqueue_trial(trial_parameters(config, workshop.spec.space), user_attrs=attrs)
    study.optimize(Objective(workshop, seed=0, progress=Progress()), n_trials=len(configs), catch=(Exception,))
    return study


def too_fast(workshop: Workshop) -> Workshop:
    """With a rate at which every loss becomes infinite."""
    return changed(workshop, recipe=workshop.spec.student.recipe.model_copy(update={"lr": 1e30}))


def reasons(study: optuna.Study) -> list[str]:
    return [str(trial.user_attrs.get(Attr.FAIL_REASON)) for trial in study.trials]


@pytest.mark.usefixtures("out_of_memory")
def test_a_trial_without_memory_fails_alone_with_a_short_reason_and_holds_nothing(workshop: Workshop):
    study = run(changed(workshop, family="greedy"), WIDE, NARROW)
    failed, done = study.trials
    assert (failed.state, done.state) == (FAIL, COMPLETE)
    assert failed.user_attrs[Attr.FAILED_BY] == failures.MEMORY
    reason = failed.user_attrs[Attr.FAIL_REASON]
    assert reason.startswith("a trial's memory must fit the device (")
    assert "memory" in reason.removeprefix("a trial's memory")
    assert len(reason) < 300
    assert "\n" not in reason


@pytest.mark.usefixtures("out_of_memory")
def test_a_failed_trials_student_is_freed_though_its_error_is_kept(workshop: Workshop):
    objective = Objective(changed(workshop, family="greedy"), seed=0, progress=Progress())
    study = optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    study.enqueue_trial(trial_parameters(WIDE, workshop.spec.space))
    gc.disable()
    try:
        with pytest.raises(RuntimeError) as kept:  # its traceback holds every function on the way
            objective(study.ask())
        held = [student() for student in greedy.made if student() is not None]
    finally:
        gc.enable()
    assert greedy.made
    assert held == []
    assert kept.value.__traceback__ is not None


@pytest.mark.cuda
def test_memory_of_the_gpu_comes_back_after_a_trial_that_wanted_too_much(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(networks.STUDENTS, "greedy", "helpers.greedy:FAMILY")
    there = make_plan(Request(dataset="digits", train_size=200, max_epochs=1, device="cuda", cost="flops"))
    known = Workshop(there.spec, there.split, obtain(there.spec.teacher, there.split), "flops")
    own = changed(known, family="greedy")
    run(own, NARROW)
    before = torch.cuda.memory_allocated()
    study = run(own, WIDE, NARROW)
    assert [trial.state for trial in study.trials] == [FAIL, COMPLETE]
    assert "CUDA out of memory" in reasons(study)[0]
    assert torch.cuda.memory_allocated() <= before + (1 << 20)


def test_a_loss_that_is_not_finite_fails_one_trial(workshop: Workshop):
    (failed,) = run(too_fast(workshop), NARROW).trials
    assert failed.state == FAIL
    assert failed.user_attrs[Attr.FAILED_BY] == failures.LOSS
    assert "training loss must be finite" in failed.user_attrs[Attr.FAIL_REASON]


def test_a_configuration_that_failed_three_times_is_not_trained_again(workshop: Workshop):
    study = run(too_fast(workshop), *[NARROW] * 4, NARROW | {"width": 75})
    assert [trial.state for trial in study.trials] == [FAIL] * 5
    found = reasons(study)
    assert all("training loss must be finite: epoch 1" in reason for reason in found)
    assert found[3].startswith("a configuration that failed 3 times must not be trained again (trials 0, 1, 2: the we")
    assert [Attr.PARAMETERS in trial.user_attrs for trial in study.trials] == [True, True, True, False, True]
    study = run(workshop, NARROW, study=study)  # it would train well now; it has had its tries all the same
    assert reasons(study)[5] == found[3]  # not a refusal that quotes another one
    assert [trial.user_attrs[Attr.FAILED_BY] for trial in study.trials] == [failures.LOSS] * 6


def failed_by(*causes: str) -> optuna.Study:
    """A study in which a configuration failed by these, a trial each."""
    study = optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    study.add_trials(
        [create_trial(state=FAIL, user_attrs={Attr.CONFIG: NARROW, Attr.FAILED_BY: cause}) for cause in causes]
    )
    return study


def test_what_is_refused_for_its_memory_is_stored_so_and_counts_against_its_size_alone(workshop: Workshop):
    study = run(workshop, NARROW, study=failed_by(*[failures.MEMORY] * 3))
    assert study.trials[3].user_attrs[Attr.FAILED_BY] == failures.MEMORY
    assert reasons(study)[3].startswith("a configuration that failed 3 times")
    assert failures.is_exhausted(study, NARROW | {"loss_weight": 1.0})
    assert not failures.is_exhausted(study, NARROW | {"batch_size": 16})


def test_what_is_refused_for_more_than_its_memory_leaves_others_of_its_size_their_tries(workshop: Workshop):
    study = run(workshop, *[NARROW] * 3, study=failed_by(failures.LOSS, failures.LOSS, failures.MEMORY))
    assert [trial.user_attrs[Attr.FAILED_BY] for trial in study.trials[3:]] == [failures.LOSS] * 3
    assert len(failures.failed(study, NARROW | {"loss_weight": 1.0})) == 1


def test_whatever_a_storage_holds_in_the_place_of_a_configuration_no_other_one_failed(workshop: Workshop):
    study = optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    for config in (None, 7, "width", [NARROW], {}, {"width": {"a": [1]}}):
        for cause in (failures.MEMORY, failures.LOSS, ["loss"], 7):
            attrs = {Attr.CONFIG: config, Attr.FAILED_BY: cause, Attr.RATIO: 2.0 if config == 7 else None}
            study.add_trials([create_trial(state=FAIL, user_attrs=attrs) for _ in range(3)])
    assert not failures.is_exhausted(study, NARROW)
    assert LikelyRatio(workshop)(study, [NARROW]) == [None]  # for want of a timing
    assert run(workshop, NARROW, study=study).trials[-1].state == COMPLETE


def test_no_candidate_is_one_that_failed_three_times(workshop: Workshop):
    study = run(workshop, NARROW | {"width": 8})
    likely = LikelyRatio(workshop)
    assert None not in likely(study, [NARROW])
    run(too_fast(workshop), *[NARROW] * 3, study=study)
    first, second = likely(study, [NARROW, NARROW | {"width": 75}])
    assert first is None
    assert second is not None


@pytest.mark.parametrize("reason", [INTERRUPTED, f"{HANDED_BACK}process 7 died", "RuntimeError: a bug", None])
def test_kills_interruptions_and_other_errors_do_not_count_against_a_configuration(workshop: Workshop, reason):
    study = optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    attrs = {Attr.CONFIG: NARROW} | ({Attr.FAIL_REASON: reason} if reason else {})
    study.add_trials([create_trial(state=FAIL, user_attrs=attrs) for _ in range(3)])
    assert not failures.is_exhausted(study, NARROW)
    assert run(workshop, NARROW, study=study).trials[3].state == COMPLETE


def test_an_anchors_tries_are_counted_where_it_is_enqueued(workshop: Workshop):
    study = run(too_fast(workshop), *[NARROW] * 3)
    assert run(workshop, NARROW, study=study, anchor="m1").trials[3].state == COMPLETE


@pytest.mark.slow
@pytest.mark.usefixtures("out_of_memory")
@pytest.mark.parametrize("candidates", [1, 24])
def test_a_study_comes_to_its_end_though_most_configurations_find_no_memory(
    study_file: Path, url: str, candidates: int
):
    text = study_file.read_text().replace('family = "mlp"', 'family = "greedy"').partition("m2 = ")[0]
    text = re.sub(r"(?m)^width = .*$", "width = [50, 300]", text)
    study_file.write_text(re.sub(r"(?m)^batch_size = .*$", "batch_size = 32", text))
    study = optimize(study=study_file, storage=url, trials=12, candidates=candidates, name="s", **USUAL)
    states = Counter(trial.state for trial in study.trials)
    assert states[COMPLETE] + states[PRUNED] == 12
    assert states[FAIL] >= 3
    tried = Counter(t.params["width"] for t in study.trials if Attr.PARAMETERS in t.user_attrs and t.state == FAIL)
    assert max(tried.values()) <= failures.MAX_FAILURES
    assert {t.params["width"] for t in study.trials if t.state != FAIL} == {50}


def test_few_failures_in_a_row_end_a_run_and_many_where_they_are_the_configurations_own():
    study = optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    own = create_trial(state=FAIL, user_attrs={Attr.FAILED_BY: failures.LOSS})
    other, done = create_trial(state=FAIL), create_trial(state=COMPLETE, values=[0.5, 2.0])

    def ended(*trials: optuna.trial.FrozenTrial) -> int | None:
        streak = failures.Streak()
        return next((index for index, trial in enumerate(trials, 1) if streak.ends(study, trial)), None)

    assert ended(*[own] * 60) == 5  # nothing has ever worked here
    study.add_trial(done)
    assert ended(*[own] * 60) == 50
    assert ended(*[other] * 60) == 5
    assert ended(*[own] * 40, done, *[own] * 40) is None
    assert ended(*[own] * 20, other, other, other) == 23


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), failures.MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), failures.MEMORY),
        (RuntimeError("CUDA error: out of memory"), failures.MEMORY),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOCATION_FAILED"), failures.MEMORY),
        (MemoryError(), failures.MEMORY),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (OSError(28, "No space left on device"), None),
        (KdsearchError("the file must be writable"), None),
        (RunError("five in a row"), None),
    ],
)
def test_what_is_a_configurations_own_fault(error: Exception, cause: str | None):
    assert failures.cause(error) == cause


ILLEGAL = (
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported at some "
    "other API call, so the stacktrace below might be incorrect.\nCompile with `TORCH_USE_CUDA_DSA`."
)
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "words",
    [
        ILLEGAL,
        "CUDA error: device-side assert triggered",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: unspecified launch failure",
    ],
)
def test_a_gpu_that_answers_nothing_any_more_is_named_in_one_line(words: str):
    ended = failures.broken(RuntimeError(words))
    assert ended is not None
    assert str(ended).startswith(f"{failures.BROKEN} (got {words.splitlines()[0]}); look at")
    assert failures.is_of_device(f"kdsearch: error: {ended}")
    around = ValueError("while its generator was put back")
    around.__context__ = RuntimeError(words)
    assert failures.broken(around) is not None


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory"), RuntimeError("a bug"), ValueError("x")])
def test_other_errors_leave_the_gpu_as_it_was(error: Exception, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert failures.broken(error, CUDA) is None
    assert not failures.is_of_device(str(error))


def test_a_gpu_that_fails_under_another_name_is_found_by_asking_it(monkeypatch: pytest.MonkeyPatch):
    def synchronize(device: torch.device) -> None:
        raise RuntimeError("CUDA error: unknown error")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    first = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`")
    assert "CUBLAS_STATUS_EXECUTION_FAILED" in str(failures.broken(first, CUDA))
    assert failures.broken(first, torch.device("cpu")) is None


def test_a_reason_is_stored_before_memory_is_freed(monkeypatch: pytest.MonkeyPatch):
    def empty_cache() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)
    study = optuna.create_study()
    trial = study.ask()
    with pytest.raises(RuntimeError, match="illegal"):
        failures.note(trial, RuntimeError("CUDA error: out of memory"), torch.device("cpu"))
    stored = study.trials[0].user_attrs
    assert stored[Attr.FAILED_BY] == failures.MEMORY
    assert stored[Attr.FAIL_REASON].startswith("a trial's memory must fit")


@pytest.mark.parametrize("again", [False, True])
def test_a_trial_on_a_gpu_that_fails_is_handed_back_once_and_its_worker_ends(
    workshop: Workshop, plan: Plan, again: bool, monkeypatch: pytest.MonkeyPatch
):
    study = optuna.create_study(directions=["maximize"] * 2, pruner=optuna.pruners.NopPruner())
    study.enqueue_trial(trial_parameters(NARROW, workshop.spec.space))

    def fails(*_: object) -> None:
        raise RuntimeError(ILLEGAL)

    monkeypatch.setattr(Workshop, "teach", fails)
    objective = Objective(changed(workshop), seed=0, progress=Progress())
    plan = dataclasses.replace(plan, spec=workshop.spec.model_copy(update={"anchors": {}}))
    for _ in range(1 + again):
        with pytest.raises(failures.BrokenDeviceError, match="illegal memory access"):
            loop.run(study, objective, plan, budget=Budget(trials=1), progress=Progress())
    first, second = study.trials
    assert first.state == FAIL
    assert first.user_attrs[Attr.FAIL_REASON].startswith(f"{HANDED_BACK}{failures.BROKEN}")
    assert second.user_attrs[Attr.RETRY_OF] == 0
    assert second.state == (FAIL if again else TrialState.WAITING)
    assert not again or second.user_attrs[Attr.FAIL_REASON].startswith(failures.BROKEN)


def test_a_storage_that_failed_hands_the_trial_back():
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = OperationalError("INSERT", {}, Exception("database or disk is full"))
    assert failures.reason(error) == f"{HANDED_BACK}the storage failed: database or disk is full"
    tripped = AssertionError("Should not reach.")
    tripped.__context__ = error
    assert storage.trouble(tripped) == "database or disk is full"
    assert storage.trouble(AssertionError("another")) is None
