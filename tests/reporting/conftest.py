from __future__ import annotations

import contextlib
import datetime
import resource
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from helpers.elsewhere import MEASURED, confirmed
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdsearch import spec
from kdsearch.records import Attr, StudyAttr
from kdsearch.reporting.collect import StudyData, collect

URL = "postgresql://ann:secret@db/kd"
BEGIN = datetime.datetime(2026, 11, 22, 10)
TEACHER = {
    "family": "cnn", "fingerprint": "9f3c", "accuracy": 0.97, "validation_accuracy": 0.96,
    "parameters": 27_433_034, "bytes": 109_732_136, "seconds": 255.0,
}  # fmt: skip

MakeTrial = Callable[..., FrozenTrial]
MakeStudy = Callable[..., optuna.Study]
Gather = Callable[..., StudyData]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def no_room() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """The system refuses to let a file grow, as a full disk does."""

    @contextlib.contextmanager
    def limited() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def make_trial() -> MakeTrial:
    """A trial as the search stores it: a curve, its best epoch, a ratio with an interval of 2 % each way."""

    def make(
        accuracies: list[float], ratio: float, *, state: TrialState = TrialState.COMPLETE, test: float | None = None,
        anchor: str | None = None, config: dict[str, Any] | None = None, **attrs: Any,
    ) -> FrozenTrial:  # fmt: skip
        best = max(accuracies)
        stored = {
            Attr.CONFIG: config or {"width": 300, "loss_weight": 0.5, "epochs": 3},
            Attr.CURVE: {"0": [None, ratio], **{str(i): [a, ratio] for i, a in enumerate(accuracies, 1)}},
            Attr.BEST_EPOCH: accuracies.index(best) + 1,
            Attr.ACCURACY: best,
            Attr.TEST_ACCURACY: best if test is None else test,
            Attr.RATIO: ratio,
            Attr.RATIO_LOW: 0.98 * ratio,
            Attr.RATIO_HIGH: 1.02 * ratio,
            Attr.PARAMETERS: 238_510,
            Attr.BYTES: 954_040,
            Attr.TRAIN_SECONDS: 12.5,
            **({Attr.ANCHOR: anchor} if anchor else {}),
            **attrs,
        }
        values = [best, ratio] if state == TrialState.COMPLETE else None
        return create_trial(state=state, values=values, user_attrs=stored)

    return make


@pytest.fixture
def make_study() -> MakeStudy:
    """An in-memory study of these trials, a minute apart; a bare one lacks what a search stores beside."""

    def make(
        trials: list[FrozenTrial], *, name: str = "mnist", bare: bool = False, file: str = "mnist"
    ) -> optuna.Study:
        study = optuna.create_study(directions=["maximize", "maximize"], study_name=name)
        if not bare:
            shipped = spec.load(spec.shipped(file))
            study.set_user_attr(StudyAttr.STUDY_FILE, shipped.model_dump(mode="json"))
            study.set_user_attr(StudyAttr.TEACHER, TEACHER)
            study.set_user_attr(StudyAttr.ENVIRONMENT, {"torch": "2.15.0", "threads": 1, "classes": 10})
            study.set_user_attr(StudyAttr.DEFINITION, {"data": {"fingerprint": "ab12"}, "cost": "latency"})
            study.set_user_attr(StudyAttr.COMMAND, "kdsearch optimize --dataset mnist")
        for minute, trial in enumerate(trials, 1):
            trial.datetime_start = BEGIN
            if trial.state.is_finished():
                trial.datetime_complete = BEGIN + datetime.timedelta(minutes=minute)
            study.add_trial(trial)
        return study

    return make


@pytest.fixture
def gather(make_study: MakeStudy) -> Gather:
    """Collects a study, or one of these trials with these attributes."""

    def make(found: optuna.Study | list[FrozenTrial], attrs: dict[str, Any] | None = None, **named: Any) -> StudyData:
        study = found if isinstance(found, optuna.Study) else make_study(found, **named)
        for name, value in (attrs or {}).items():
            study.set_user_attr(name, value)
        return collect(study, storage_url="sqlite:///x.db")

    return make


@pytest.fixture
def typical(make_trial: MakeTrial, make_study: MakeStudy) -> optuna.Study:
    """Trials 0 to 6: m1, m2 and m9, two more on the front (3, 4), one pruned, one failed."""
    failed = create_trial(
        state=TrialState.FAIL,
        user_attrs={Attr.CONFIG: {"width": 50}, Attr.FAIL_REASON: "the loss must be finite <b>(got nan)</b>"},
    )
    pruned = {"step": 1, "at": 3, "forecast": 0.95, "trials": [1, 3], "reason": "at step 1, a sentence of the pruner"}
    trials = [
        make_trial([0.93, 0.94], 300.0, test=0.941, anchor="m1", config={"width": 50, "epochs": 3}),
        make_trial([0.95, 0.96, 0.955], 100.0, test=0.961, anchor="m2"),
        make_trial([0.95], 40.0, test=0.951, anchor="m9"),
        make_trial([0.95, 0.97], 100.0, test=0.969),
        make_trial([0.90, 0.98], 20.0, test=0.978, config={"blocks": [2, 2, 0, 0], "epochs": 10}),
        make_trial([0.91], 100.0, state=TrialState.PRUNED, test=0.912, pruned_by=pruned),
    ]
    return make_study([*trials, failed])


@pytest.fixture
def data(typical: optuna.Study) -> StudyData:
    return collect(typical, storage_url=URL)


@pytest.fixture
def complete(typical: optuna.Study) -> optuna.Study:
    """The same with what a whole study has: slides by the deck's recipe, confirmed members, runtimes, seconds spent."""
    other = optuna.create_study(storage=typical._storage, study_name="slides-mnist", directions=["maximize"] * 2)
    other.set_user_attr(StudyAttr.KIND, "slides")
    other.set_user_attr(StudyAttr.DEFINITION, {"dataset": "mnist"})
    for row, reading, test, ratio in (
        ("m1", "stated", 0.95, 360.0), ("m1", "stated", 0.96, 370.0), ("m1", "published", 0.99, 360.0),
        ("m2", "stated", 0.97, 75.0),
    ):  # fmt: skip
        attrs = {Attr.ROW: row, Attr.READING: reading, Attr.TEST_ACCURACY: test, Attr.RATIO: ratio}
        other.add_trial(create_trial(values=[test, ratio], user_attrs=attrs))
    for trial, tests, ratios in ((3, (0.96, 0.964, 0.968), (90.0, 92.0, 94.0)), (4, (0.975,), (21.0,))):
        typical.set_user_attr(f"{StudyAttr.CONFIRMED}{trial}", confirmed(trial, tests, ratios, epochs=2))
    for each in MEASURED:
        typical.set_user_attr(each.key, each.stored())
    typical.set_user_attr(f"{StudyAttr.SPENT} one", {"training": 90.0, "timing": 10.0})
    typical.set_user_attr(f"{StudyAttr.SPENT} two", {"training": 30.0, "timing": "much"})
    return typical
