from __future__ import annotations

import optuna
import pytest
import torch
from helpers.recording import Recorder

from kdsearch.distil import teacher
from kdsearch.errors import DefinitionError, KdsearchError, StorageError
from kdsearch.records import Attr, EpochRecord, StudyAttr, confirmed_runs
from kdsearch.search import study as searching
from kdsearch.search.confirm import choose, confirm, labels_only, missing, near_front
from kdsearch.search.plan import rejoin
from kdsearch.search.retrain import retrain, taught_to
from kdsearch.search.workshop import Workshop
from kdsearch.system import machine, signals

pytestmark = pytest.mark.usefixtures("teacher")


class Heard(Recorder):
    """Stops the process, as a signal's handler does, in the training after so many whole ones."""

    def __init__(self, *, stop_after: int | None = None) -> None:
        super().__init__()
        self._stop_after = stop_after

    def trial_epoch(self, number: int, record: EpochRecord, epochs: int) -> None:
        if len(self.finished) == self._stop_after:
            raise signals.Stopped
        super().trial_epoch(number, record, epochs)


@pytest.fixture
def study(url: str, study_file) -> optuna.Study:
    """Two anchors of digits, 200 images, 2 epochs, operations counted; the same teacher as the other tests'."""
    return searching.optimize(
        study=study_file, trials=2, train_size=200, max_epochs=2, device="cpu", cost="flops", storage=url, seed=3
    )


def runs(study: optuna.Study, number: int):
    return confirmed_runs(study.user_attrs.get(f"{StudyAttr.CONFIRMED}{number}"))


def everyone(study: optuna.Study):
    return choose(study, ",".join(str(trial.number) for trial in study.trials))


@pytest.mark.slow
def test_a_run_is_of_the_chosen_epoch_with_a_new_seed_and_a_larger_number_goes_on(study):
    chosen = everyone(study)
    heard = Heard()
    confirm(study, chosen, repeats=2, device="cpu", command="kdsearch confirm", progress=heard)
    first = {trial.number: runs(study, trial.number) for trial in chosen}
    for trial in chosen:
        stored = study.user_attrs[f"{StudyAttr.CONFIRMED}{trial.number}"]
        assert set(stored) == {"trial", "epochs", "runs", "environment", "command", "changes", "date"}
        assert (stored["epochs"], stored["command"]) == (trial.user_attrs[Attr.BEST_EPOCH], "kdsearch confirm")
        assert stored["environment"]["torch"] == torch.__version__
        assert max(epoch for number, epoch in heard.epochs if number == trial.number) == stored["epochs"]
        assert [run.ratio for run in first[trial.number]] == [trial.user_attrs[Attr.RATIO]] * 2  # counted operations
    seeds = {run.seed for each in first.values() for run in each}
    assert len(seeds) == 4
    assert not seeds & {trial.user_attrs[Attr.SEED] for trial in study.trials}

    again = Heard()
    confirm(study, chosen, repeats=3, device="cpu", progress=again)
    assert again.totals == [(4, 6, "runs")]
    for trial in chosen:
        assert runs(study, trial.number)[:2] == first[trial.number]
        assert len(runs(study, trial.number)) == 3
    confirm(study, chosen, repeats=2, device="cpu", progress=(idle := Heard()))
    assert idle.totals == []
    assert study.user_attrs[StudyAttr.REPEATS] == [2, 3]
    assert "begun with 2 repeats and is raised to 3" in again.warnings[0]
    for run in runs(study, chosen[0].number):
        counts = run.against_teacher
        assert (counts.both + counts.student) / counts.images == pytest.approx(run.test_accuracy)


@pytest.mark.slow
def test_a_control_is_its_pair_without_the_teacher(study):
    chosen = everyone(study)[:1]
    number, config = chosen[0].number, chosen[0].user_attrs[Attr.CONFIG]
    heard = Heard(stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        confirm(study, chosen, repeats=2, control=True, device="cpu", progress=heard)
    assert [job.control for job in missing(study, chosen, 2, control=True)] == [True, False, True]
    confirm(study, chosen, control=True, device="cpu", progress=(rest := Heard()))  # as many as it was begun with
    assert rest.totals == [(1, 4, "runs")]
    pairs = confirmed_runs(study.user_attrs[f"{StudyAttr.CONTROL}{number}"])
    assert [(run.seed, run.ratio) for run in pairs] == [(run.seed, run.ratio) for run in runs(study, number)]
    plan = rejoin(study, url="", device="cpu")
    workshop = Workshop(plan.spec, plan.split, teacher.obtain(plan.spec.teacher, plan.split), plan.cost)
    student, _ = taught_to(
        workshop.undivided(), labels_only(config), pairs[0].seed, last=chosen[0].user_attrs[Attr.BEST_EPOCH]
    )
    assert workshop.test(student) == pairs[0].test_accuracy
    assert labels_only(config | {"feature_weight": 1.0}) == {
        **{key: value for key, value in config.items() if key != "temperature"},
        "loss_weight": 0.0,
        "feature_weight": 0.0,
    }


def test_a_student_of_labels_alone_is_its_own_control_and_needs_none():
    attrs = {Attr.CONFIG: {"loss_weight": 0.0, "epochs": 1}, Attr.SEED: 1, Attr.BEST_EPOCH: 1}
    study = optuna.create_study(directions=["maximize"] * 2)
    study.add_trial(optuna.trial.create_trial(values=[0.9, 2.0], user_attrs=attrs))
    assert [job.control for job in missing(study, study.trials, 2, control=True)] == [False, False]


def test_the_band_is_the_front_and_what_noise_alone_keeps_off_it():
    study = optuna.create_study(directions=["maximize"] * 2)
    # 400 validation images: a standard error is 1.1 points at 95 %
    for accuracy, ratio in ((0.95, 10.0), (0.9425, 9.0), (0.93, 9.0), (0.9, 50.0), (0.8875, 40.0)):
        attrs = {Attr.BEST_EPOCH: 1}
        study.add_trial(optuna.trial.create_trial(values=[accuracy, ratio], user_attrs=attrs))
    assert near_front(study) == {0, 1, 3, 4}


@pytest.mark.slow
def test_a_stop_loses_the_run_that_runs_alone_and_what_comes_after_is_the_same(study):
    chosen = everyone(study)
    with pytest.raises(KeyboardInterrupt):
        confirm(study, chosen, repeats=2, device="cpu", progress=Heard(stop_after=1))
    assert [len(runs(study, trial.number)) for trial in chosen] == [1, 0]
    assert len(missing(study, chosen, 2)) == 3
    confirm(study, chosen, repeats=2, device="cpu")
    stopped = [[(run.seed, run.test_accuracy) for run in runs(study, trial.number)] for trial in chosen]
    for trial in chosen:
        study.set_user_attr(f"{StudyAttr.CONFIRMED}{trial.number}", {})
    confirm(study, chosen, repeats=2, device="cpu")
    assert stopped == [[(run.seed, run.test_accuracy) for run in runs(study, trial.number)] for trial in chosen]


@pytest.mark.slow
def test_runs_of_other_versions_are_kept_and_told_of(study):
    chosen = everyone(study)[:1]
    confirm(study, chosen, repeats=1, device="cpu")
    key = f"{StudyAttr.CONFIRMED}{chosen[0].number}"
    stored = study.user_attrs[key]
    study.set_user_attr(key, stored | {"environment": stored["environment"] | {"torch": "1.0"}})
    confirm(study, chosen, repeats=2, device="cpu", progress=(heard := Heard()))
    assert len(heard.warnings) == 2  # and that the repeats are raised
    assert f"torch: 1.0 -> {torch.__version__}" in heard.warnings[0]
    assert len(runs(study, chosen[0].number)) == 2
    assert study.user_attrs[key]["changes"] == [f"torch: 1.0 -> {torch.__version__}"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["data", "teacher"])
def test_other_data_or_another_teacher_are_refused(study, part):
    stored = study.user_attrs[StudyAttr.DEFINITION]
    study.set_user_attr(StudyAttr.DEFINITION, stored | {part: stored[part] | {"fingerprint": "other"}})
    chosen = everyone(study)
    with pytest.raises(DefinitionError, match=f"{part}.fingerprint: other"):
        confirm(study, chosen, repeats=1, device="cpu")
    with pytest.raises(DefinitionError, match=f"{part} must be that|{part} must be those"):
        retrain(study, chosen[0].number, whole=True, device="cpu")
    assert not any(key.startswith(StudyAttr.CONFIRMED) for key in study.user_attrs)


@pytest.mark.slow
def test_what_cannot_be_confirmed_is_refused(study):
    for text in ("", "3,", "one", "1;2", "-1"):
        with pytest.raises(KdsearchError, match="--trials must be numbers"):
            choose(study, text)
    with pytest.raises(StorageError, match="trials 0 to 1"):
        choose(study, "7")
    with pytest.raises(KdsearchError, match="--repeats must lie between 1"):
        confirm(study, choose(study), repeats=0)
    study.enqueue_trial({})
    with pytest.raises(StorageError, match=r"must be complete.*trial 2, WAITING"):
        choose(study, "2")
    study.add_trial(optuna.trial.create_trial(values=[0.5, 2.0]))
    with pytest.raises(StorageError, match=r"which epoch validation chose.*trial 3"):
        choose(study, "3")


def test_a_study_without_a_front_or_of_another_program_is_refused():
    study = optuna.create_study(directions=["maximize"] * 2)
    with pytest.raises(DefinitionError, match="made by kdsearch"):
        choose(study)
    study.set_user_attr(StudyAttr.STUDY_FILE, {})
    with pytest.raises(StorageError, match="must have a front"):
        choose(study)


def test_the_whole_training_set_is_both_parts_and_the_teacher_answers_in_its_order(workshop: Workshop):
    whole = workshop.undivided()
    train, held = workshop.split.train, workshop.split.validation
    assert torch.equal(whole.split.train.images, torch.cat([train.images, held.images]))
    assert torch.equal(whole.split.train.labels, torch.cat([train.labels, held.labels]))
    assert len(whole.split.validation) == 0
    prepare = workshop.split.prepare
    with torch.inference_mode():
        expected = workshop.teacher.network(prepare(whole.split.train.images))
    torch.testing.assert_close(whole.answers.logits, expected, rtol=1e-3, atol=1e-3)
    assert len(workshop.answers.logits) == len(train)  # the search's own are not touched


def test_a_student_is_taught_the_prefix_of_its_configurations_training(workshop: Workshop):
    config = {"width": 20, "loss_weight": 0.5, "temperature": 4.0, "epochs": 2, "batch_size": 32}
    whole, heard = workshop.undivided(), []
    student, seconds = taught_to(whole, config, 5, last=1, on_epoch=heard.append)
    assert [record.epoch for record in heard] == [1]
    assert seconds == heard[0].seconds > 0
    other = whole.build(config, 5)
    next(iter(whole.teach(other, config, 5)))
    for name, value in student.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_seeds_are_those_of_trial_and_repeat():
    assert machine.derive_seed("confirm", 3, 1, 0) != machine.derive_seed("confirm", 3, 1, 1)
    assert machine.derive_seed("confirm", 3, 1, 0) != machine.derive_seed("trial", 3, 1)
