from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from helpers.recording import Recorder

from kdsearch.distil.loss import cls_loss, div_loss
from kdsearch.distil.train import Batch
from kdsearch.errors import KdsearchError
from kdsearch.experiments.claims import arms, page, run
from kdsearch.experiments.claims import lab as labs
from kdsearch.experiments.claims.lab import Arm, Lab, describe
from kdsearch.records import Attr, Progress
from kdsearch.reporting.pages.document import escaped
from kdsearch.storage import open_storage


def accuracies(lab: Lab, arm: Arm, **about) -> list[float]:
    return lab.scores(arm, **about).mean(axis=2).ravel().tolist()


def test_an_arm_is_trained_once_a_seed(lab):
    lab.progress = Recorder()
    first = accuracies(lab, arms.LABELS)
    assert (accuracies(lab, arms.LABELS), len(lab.progress.lines)) == (first, 2)
    accuracies(lab, arms.TEACHER)
    assert len(lab.progress.lines) == 4
    assert lab.progress.lines[0].startswith("test accuracy ")
    assert describe(Arm(teacher="half")) == (
        "the teacher alone by the teacher of the first half, T 3.5, images: all, width 300"
    )


def test_accuracies_are_those_of_the_test_set_and_recalls_those_of_a_class(lab):
    (accuracy, _), recalls = accuracies(lab, arms.LABELS), []
    for label in range(10):
        recalls.append(accuracies(lab, arms.LABELS, label=label)[0])
    counts = lab.split.test.labels.bincount().double()
    assert accuracy == pytest.approx((torch.tensor(recalls).double() * counts).sum().item() / len(lab.split.test))


def test_labels_alone_never_ask_the_teacher(lab):
    lab._teachers["whole", 0] = None
    lab.teachers = 3
    assert len(accuracies(lab, arms.LABELS)) == 6  # a seed's student stands beside each teacher
    assert len(lab._scores) == 2


def test_seeds_differ_and_repeat(lab, monkeypatch, tmp_path):
    first = accuracies(lab, arms.LABELS)
    lab._scores.clear()
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path / "other"))
    assert accuracies(lab, arms.LABELS) == first
    weights = [lab._build(300, seed)[1].weight for seed in (0, 1)]
    assert not torch.equal(*weights)


def test_an_interrupted_command_goes_on_where_it_stopped(lab, monkeypatch):
    class Impatient(Recorder):
        def trial_finished(self, number: int, state: str, text: str, *, counted: bool) -> None:
            super().trial_finished(number, state, text, counted=counted)
            raise KeyboardInterrupt

    def again(progress: Recorder) -> Lab:
        return dataclasses.replace(lab, progress=progress, _scores={}, _images={}, _known={})

    with pytest.raises(KeyboardInterrupt):
        again(Impatient()).scores(arms.TEACHER)
    second = Recorder()
    found = again(second).scores(arms.TEACHER)
    assert len(second.started) == 1  # of two seeds
    assert second.lines[0].endswith(", kept by an earlier run")
    assert "kept" not in second.lines[1]
    assert second.started[0][0] == second.finished[1][0]  # one number for a student's start and end
    third = Recorder()
    assert (again(third).scores(arms.TEACHER) == found).all()
    assert not third.started
    monkeypatch.setattr(labs, "DECIDE", ("distil",))  # other sources
    other = Recorder()
    assert (again(other).scores(arms.TEACHER) == found).all()
    assert len(other.started) == 2


def test_several_teachers_each_teach_every_seed(lab, teacher):
    lab.teachers = 2
    other = dataclasses.replace(teacher.facts, fingerprint="another")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    lab._teachers["whole", 1] = dataclasses.replace(teacher, network=network, facts=other)
    taught, labels = lab.scores(arms.TEACHER), lab.scores(arms.LABELS)
    assert taught.shape == labels.shape == lab.teacher_scores().shape == (2, 2, len(lab.split.test))
    assert (labels[0] == labels[1]).all()
    assert (taught[0] != taught[1]).any()
    found = arms.claim_4(lab)
    assert found.effects[0].teachers == 2
    assert len(found.effects[0].values) == 4
    assert found.effects[0].images_error > 0


def test_a_teacher_that_is_no_better_than_labels_tests_no_claim(lab):
    right, wrong = np.ones((1, 2, 50)), np.zeros((1, 2, 50))
    wrong[..., :3] = 1
    assert arms.worth_learning_from(right, wrong)[1] is None
    better, verdict = arms.worth_learning_from(wrong, right)
    assert (better.decides, verdict) == (False, "not testable with this teacher")
    found = dataclasses.replace(arms.claim_4(lab), decided=verdict)
    assert found.verdict == "not testable with this teacher"


def test_the_decks_mixture_takes_labels_of_real_images_and_the_teacher_on_others(lab):
    other = lab.images("noise")
    answers = torch.randn(len(other), 10, generator=torch.Generator().manual_seed(0))
    config = {"temperature": 4.0, "epochs": 1, "batch_size": 64}
    found = labs.mixture(lab.split, other, answers, config, 0)
    real = len(lab.split.train)
    assert len(found.data) == 2 * real
    assert (found.data.labels[real:] == labs.NO_LABEL).all()
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, labs.NO_LABEL, 7, labs.NO_LABEL])
    batch = Batch(logits, labels, answers[:4], torch.tensor(1))
    seen = labels >= 0
    expected = 2 * cls_loss(logits[seen], labels[seen]) + 2 * div_loss(logits[~seen], answers[:4][~seen], 4.0)
    torch.testing.assert_close(found.loss(batch), expected / 32)


@pytest.mark.parametrize("number", [2, 3, 4, 7, 8, 9])
def test_each_experiment_compares_its_arm_with_its_control(lab, number):
    found = arms.EXPERIMENTS[number](lab)
    assert found.number == number
    assert found.effects
    assert all(len(effect.values) == 2 for effect in found.effects)
    names = list(found.arms)
    assert all(0 <= value <= 100 for values in found.arms.values() for value in values)
    if number in (2, 4, 9):  # one arm, one control: the effect is their difference
        arm, control = (found.arms[name] for name in names[:2])
        assert found.effects[0].values == pytest.approx([a - b for a, b in zip(arm, control, strict=True)])
    if number == 3:
        a, b, c, d = (found.arms[name] for name in names)
        expected = [(p - q) - (r - s) for p, q, r, s in zip(a, b, c, d, strict=True)]
        assert found.effects[0].values == pytest.approx(expected)


@pytest.mark.usefixtures("few_pairs")
def test_claim_1_needs_speed_and_accuracy(lab):
    found = arms.claim_1(lab)
    ratio = found.facts["ratio"]
    expected = "confirmed" if ratio["low"] >= 10 else "refuted" if ratio["high"] < 10 else "undecided"
    assert found.decided in (expected, "not testable with this teacher")
    slow = dataclasses.replace(found, decided="refuted")
    assert slow.verdict == "refuted"


def test_without_hard_labels_a_class_never_shown_has_no_recall(lab):
    found = arms.claim_9(lab)
    assert found.arms["recall of 3, hard labels"] == [0.0, 0.0]


def test_on_cifar10_nothing_is_measured_without_its_rows():
    found = run.findings_on_cifar10(None)
    assert [(one.number, one.verdict) for one in found] == [(2, "not measured"), (3, "not measured")]
    assert "0 of the 5 repeats" in found[0].said


def rows_of_cifar10(*, repeats: int = 5, **definition):
    import optuna

    study = optuna.create_study(directions=["maximize"] * 2)
    study.set_user_attr("definition", {"data": {"train_size": None}, "max_epochs": None, "width": None} | definition)
    base = {"c5": 0.776, "c7": 0.758, "c8": 0.612, "c9": 0.560}
    for repeat in range(repeats):
        for row, value in base.items():
            attrs = {
                Attr.ROW: row, Attr.READING: "stated", Attr.REPEAT: repeat,
                Attr.TEST_ACCURACY: value + 0.0005 * repeat * (row == "c5"),
            }  # fmt: skip
            study.add_trial(optuna.trial.create_trial(values=[value, 10.0], user_attrs=attrs))
    return study


def test_on_cifar10_the_slides_rows_decide():
    gain, more = run.findings_on_cifar10(rows_of_cifar10())
    assert gain.effects[0].interval.mean == pytest.approx(1.9)
    assert more.effects[0].interval.mean == pytest.approx(5.2 - 1.9)
    assert (gain.verdict, more.verdict) == ("confirmed", "confirmed")


def test_looking_for_the_slides_rows_makes_no_storage(tmp_path):
    assert run.slides_of_cifar10(f"sqlite:///{tmp_path}/nothere.db") is None
    assert not list(tmp_path.iterdir())


def test_a_search_of_the_name_of_the_slides_rows_holds_none(url):
    import optuna

    study = optuna.create_study(storage=open_storage(url), study_name="slides-cifar10", directions=["maximize"] * 2)
    assert run.slides_of_cifar10(url) is None
    study.set_user_attr("kind", "slides")
    assert run.slides_of_cifar10(url).study_name == "slides-cifar10"


@pytest.mark.parametrize("changes", [{"repeats": 4}, {"width": 8}, {"max_epochs": 1}, {"data": {"train_size": 500}}])
def test_on_cifar10_too_few_repeats_or_a_smaller_run_measure_nothing(changes):
    assert {one.verdict for one in run.findings_on_cifar10(rows_of_cifar10(**changes))} == {"not measured"}


@pytest.mark.parametrize(("asked", "numbers"), [(None, list(range(1, 10))), ("4", [4]), ("9, 1,9", [1, 9])])
def test_claims_are_chosen_by_number(asked, numbers):
    assert run.choose(asked) == numbers


@pytest.mark.parametrize("asked", ["0", "10", "1,x", ""])
def test_what_is_no_claim_is_refused(asked):
    with pytest.raises(KdsearchError, match="--only must name claims 1 to 9"):
        run.choose(asked)


def test_fewer_than_five_seeds_give_no_verdict():
    rest = {"teachers": 1, "data_dir": None, "device": "cpu", "progress": Progress()}
    with pytest.raises(KdsearchError, match=r"at least 5 paired seeds \(got 4\); raise --seeds"):
        labs.open_lab("digits", seeds=4, **rest)
    with pytest.raises(KdsearchError, match=r"tried on digits or mnist \(got cifar10\)"):
        labs.open_lab("cifar10", seeds=5, **rest)


@pytest.mark.slow
def test_the_lemmas_hold_and_say_so(lab):
    first, second = arms.claim_5(lab), arms.claim_6(lab)
    assert (first.verdict, second.verdict) == ("confirmed", "confirmed")
    assert "holds in exact arithmetic" in first.said
    assert "holds in exact arithmetic" in second.said
    assert {row["quantity"] for row in second.facts["simulated"]} >= set(page.SHOWN[6])


@pytest.mark.slow
def test_the_page_holds_each_claim_with_its_figure_and_verdict(lab, tmp_path):
    findings = run.run(lab, [2, 5, 9], cifar10_rows=None)
    assert [(one.number, one.dataset) for one in findings] == [
        (2, "digits"), (2, "cifar10"), (5, "exact"), (9, "digits")
    ]  # fmt: skip
    path = page.write(lab, findings, tmp_path, command="kdsearch claims", plotlyjs="cdn")
    marked = path.with_suffix(".md").read_text(encoding="utf-8")
    assert "4 experiments on 3 claims" in marked
    assert "## Changes after the first run" in marked
    for one in findings:
        assert escaped(one.claim) in marked
        assert f"Verdict: {one.verdict}." in marked
    assert path.read_text(encoding="utf-8").count('class="plot"') == 3
    drawn = page.report(lab, findings, "kdsearch claims").sections
    lines, points = drawn[1].figure.data[:2], drawn[1].figure.data[2:]
    assert [len(line.x) for line in lines] == [2, 2]  # a line a seed, joining two arms
    assert [len(arm.y) for arm in points] == [2, 2]  # a point a seed
    assert len(drawn[3].figure.data) == 4  # two quantities, points and line each
    assert page.text(findings).count("\n") == 3
    assert set(page.result(lab, findings, "x")) == {
        "dataset", "seeds", "teachers", "changes", "claims", "command", "environment", "made"
    }  # fmt: skip


def test_an_ordinary_teachers_logits_are_in_units_of_its_own_temperature(lab):
    raw, ordinary = (lab._answers(dataclasses.replace(arms.TEACHER, ordinary=each)) for each in (False, True))
    torch.testing.assert_close(ordinary.logits * 3.5, raw.logits)
    assert arms.BOTH.ordinary
