from __future__ import annotations

import copy
import dataclasses
import importlib.util

import optuna
import pytest
import torch
from helpers.recording import Recorder

from kdsearch.errors import KdsearchError
from kdsearch.experiments.slides import run, training
from kdsearch.experiments.slides.deck import School, choose
from kdsearch.records import Attr, Progress
from kdsearch.system import machine


def test_each_training_is_a_trial_with_what_the_report_needs(slides, options):
    study = slides(options)
    found = run.stored(study)
    assert sorted(found) == sorted(
        (row, reading, repeat) for row in ("m1", "m7") for reading in ("stated", "published") for repeat in (0, 1)
    )
    trial = found["m1", "stated", 0]
    attrs = trial.user_attrs
    assert trial.values == [attrs[Attr.TEST_ACCURACY], attrs[Attr.RATIO]]
    assert attrs[Attr.PARAMETERS] == 64 * 50 + 50 + 50 * 10 + 10
    assert attrs[Attr.BYTES] == 4 * attrs[Attr.PARAMETERS]
    assert len(attrs[Attr.LOSSES]) == 3
    assert attrs[Attr.LOSSES][-1] < attrs[Attr.LOSSES][0]
    assert attrs[Attr.TRAIN_SECONDS] > 0
    assert [len(seconds) for seconds in attrs[Attr.PAIRS]] == [2, 2]
    assert len(found["m1", "published", 0].user_attrs[Attr.LOSSES]) == 9


def test_nothing_is_run_twice_and_more_repeats_go_on(slides, options):
    study = slides(options)
    heard = Recorder()
    slides(options, heard)
    assert (len(study.trials), heard.totals, heard.lines) == (8, [(8, 8, "trials")], [])
    slides(dataclasses.replace(options, repeats=3), heard)
    assert (len(study.trials), heard.totals[-1], len(heard.lines)) == (12, (8, 12, "trials"), 4)


def test_a_shorter_reading_is_the_beginning_of_a_longer_one(slides, options):
    found = run.stored(slides(options))
    for row in ("m1", "m7"):
        short, long = (found[row, reading, 1].user_attrs[Attr.LOSSES] for reading in ("stated", "published"))
        assert long[: len(short)] == short


def test_rows_of_a_repeat_are_paired_by_seed_and_equal_architectures_by_timing(slides, options):
    more = dataclasses.replace(options, jobs=choose("mnist", "m1,m7,m8", "stated"))
    found = run.stored(slides(more))
    seeds = {
        repeat: {found[row, "stated", repeat].user_attrs[Attr.SEED] for row in ("m1", "m7", "m8")} for repeat in (0, 1)
    }
    assert [len(each) for each in seeds.values()] == [1, 1]
    assert seeds[0] != seeds[1]
    pairs = {key: trial.user_attrs[Attr.PAIRS] for key, trial in found.items()}
    assert pairs["m7", "stated", 0] == pairs["m8", "stated", 0]
    assert pairs["m7", "stated", 0] != pairs["m7", "stated", 1]
    assert pairs["m7", "stated", 0] != pairs["m1", "stated", 0]


def test_the_same_seed_gives_the_same_accuracy(slides, options, tmp_path):
    once = dataclasses.replace(options, repeats=1)
    again = dataclasses.replace(once, url=f"journal:{tmp_path / 'again.log'}")
    first, second = run.stored(slides(once)), run.stored(slides(again))
    assert [t.values[0] for t in first.values()] == [t.values[0] for t in second.values()]


def test_less_work_narrows_and_shortens(options):
    job = choose("cifar10", "c5", "stated")[0]
    small = dataclasses.replace(options, dataset="cifar10", jobs=[job], max_epochs=2, width=8)
    assert small.scaled
    assert (small.settings(job).epochs, small.settings(job).architecture["width"]) == (2, 8)
    assert not options.scaled
    assert options.settings(options.jobs[0]) == options.jobs[0].settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeats": 0}, r"--repeats must lie between 1 and 1000 \(got 0\)"),
        ({"width": 8}, r"--width narrows the CIFAR-10 students .*\(got 8 on mnist\); leave it out"),
        ({"teacher": "w.st"}, r"--teacher replaces the CIFAR-10 teacher.*\(got w.st on mnist\); leave it out"),
        ({"train_size": 0}, r"--train-size must be at least 1"),
        ({"max_epochs": -1}, r"--max-epochs must be at least 1"),
    ],
)
def test_options_that_cannot_be_run_are_refused(options, changes, message):
    with pytest.raises(KdsearchError, match=message):
        run.check(dataclasses.replace(options, **changes))


def test_an_int8_row_without_its_packages_is_refused_with_the_remedy(options, monkeypatch):
    monkeypatch.setattr(training, "NEEDS", ("torchao", "no_such_package"))
    run.check(options)
    with pytest.raises(
        KdsearchError, match=r"no no_such_package\); pip install 'kdsearch\[int8\]', or leave the row out"
    ):
        run.check(dataclasses.replace(options, jobs=choose("mnist", "mq", "stated")))


def test_where_no_row_was_named_an_int8_row_without_its_packages_is_left_out(options, monkeypatch):
    everything = dataclasses.replace(options, jobs=choose("mnist", None, "stated"))
    heard = Recorder()
    assert run.without_missing(everything, heard) == everything
    monkeypatch.setattr(training, "NEEDS", ("torchao", "no_such_package"))
    assert [job.row.name for job in run.without_missing(everything, heard).jobs] == [f"m{n}" for n in range(1, 10)]
    assert heard.warnings == ["the int8 row is left out: no no_such_package; pip install 'kdsearch[int8]' brings them"]


def test_what_two_processes_ran_counts_once(slides, options):
    study = slides(dataclasses.replace(options, repeats=1))
    first = run.stored(study)["m1", "stated", 0]
    study.add_trial(
        optuna.trial.create_trial(values=[0.0, 1.0], user_attrs=first.user_attrs | {Attr.TEST_ACCURACY: 0.0})
    )
    assert run.stored(study)["m1", "stated", 0].number == first.number


@pytest.mark.slow
def test_an_int8_row_is_deployed_in_int8(slides, options):
    trial = run.stored(slides(dataclasses.replace(options, jobs=choose("mnist", "m7,mq", "stated"), repeats=1)))
    int8, usual = trial["mq", "stated", 0].user_attrs, trial["m7", "stated", 0].user_attrs
    assert int8[Attr.INT8]["float_products"] == 0
    assert int8[Attr.BYTES] < int8[Attr.INT8]["float_bytes"] / 2
    assert abs(int8[Attr.TEST_ACCURACY] - int8[Attr.INT8]["trained_accuracy"]) < 0.01
    assert abs(int8[Attr.TEST_ACCURACY] - usual[Attr.TEST_ACCURACY]) < 0.06
    assert int8[Attr.PARAMETERS] == usual[Attr.PARAMETERS]
    assert int8[Attr.RATIO] > 1


def test_timing_uses_one_thread_and_puts_the_others_back(school, monkeypatch):
    seen = []

    def timed(*_, **__):
        seen.append(torch.get_num_threads())
        return [1.0], [1.0]

    monkeypatch.setattr(training, "eager_pairs", timed)
    with machine.threads(2):
        training.time(school, choose("mnist", "m1", "stated")[0].settings)
        assert torch.get_num_threads() == 2
    assert seen == [1]


@pytest.mark.cuda
@pytest.mark.slow
def test_rows_run_on_cuda(school, options, monkeypatch):
    cuda = torch.device("cuda")
    split = school.split
    moved = dataclasses.replace(
        split, train=split.train.to(cuda), validation=split.validation.to(cuda), test=split.test.to(cuda)
    )
    teacher = dataclasses.replace(school.teacher, network=copy.deepcopy(school.teacher.network).to(cuda))
    there = School("mnist", moved, teacher, teacher.answers(moved.train))
    study = optuna.create_study(directions=["maximize"] * 2)
    in_int8 = all(importlib.util.find_spec(name) for name in training.NEEDS)  # an image with a GPU may lack them
    few = dataclasses.replace(options, jobs=choose("mnist", "m7,mq" if in_int8 else "m7", "stated"), repeats=1)
    run.run_all(study, few, there, run.missing(study, few), Progress())
    here = training.in_float(school, few.jobs[0].settings, machine.derive_seed("slides", 0), [[1.0], [1.0]], print)
    found = run.stored(study)
    assert abs(found["m7", "stated", 0].values[0] - here[Attr.TEST_ACCURACY]) < 0.02
    assert not in_int8 or found["mq", "stated", 0].user_attrs[Attr.INT8]["float_products"] == 0
