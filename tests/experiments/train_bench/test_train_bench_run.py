from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kdsearch import data, spec
from kdsearch.data import ImageSet
from kdsearch.distil.optimizer import make_optimizer
from kdsearch.distil.step import Steps
from kdsearch.distil.teacher import Teacher
from kdsearch.errors import KdsearchError
from kdsearch.experiments.slides.deck import School, Settings
from kdsearch.experiments.train_bench import loops, plain_loop, run
from kdsearch.experiments.train_bench import page as train_page
from kdsearch.records import Progress
from kdsearch.search.plan import Plan
from kdsearch.system.machine import data_folder

BATCH = 20
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def mnist(plan: Plan, teacher: Teacher) -> School:
    """The MNIST rows' recipe on 200 digits."""
    return School("mnist", plan.split, teacher, teacher.answers(plan.split.train))


@pytest.fixture(scope="module")
def cifar10(mnist: School) -> School:
    """The CIFAR-10 rows' recipe on the same digits and with their teacher."""
    return replace(mnist, dataset="cifar10")


def settings(name: str, **changes: object) -> Settings:
    """A row with small batches, and narrow where it is a ResNet."""
    _, row = run.choose([name])[name]
    narrow = {"width": 4} if name.startswith("c") else {}
    return replace(row, batch_size=BATCH, architecture=row.architecture | narrow, **changes)


def school_of(name: str, mnist: School, cifar10: School) -> School:
    return cifar10 if name.startswith("c") else mnist


def test_the_plain_loop_sees_what_ours_sees(mnist: School, noise: ImageSet) -> None:
    for top, mean, std in ((16.0, 0.0, 1.0), (255.0, 0.0, 1.0), (255.0, 0.5, 0.5), (200.0, 0.25, 2.0)):
        split = replace(mnist.split, train=noise, top=top, mean=mean, std=std)
        pictures = plain_loop.Pictures(noise, split, None)
        assert len(pictures) == len(noise)
        images = torch.stack([pictures[index][0] for index in range(len(noise))])
        torch.testing.assert_close(images, split.prepare(noise.images), rtol=1e-6, atol=1e-6)
        assert [pictures[index][1] for index in range(len(noise))] == noise.labels.tolist()


def test_pictures_have_colours_and_give_the_teachers_outputs(mnist: School) -> None:
    colours = ImageSet(torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    split = replace(mnist.split, train=colours, top=255.0, mean=0.5, std=0.5)
    outputs = torch.randn(6, 10)
    image, said = plain_loop.Pictures(colours, split, outputs)[4]
    torch.testing.assert_close(image, split.prepare(colours.images)[4], rtol=1e-6, atol=1e-6)
    assert torch.equal(torch.as_tensor(said), outputs[4])


@pytest.mark.parametrize("name", ["m7", "m5", "c1", "c5", "c7"])
def test_both_loops_take_the_same_step(name: str, mnist: School, cifar10: School) -> None:
    agreement = loops.check(school_of(name, mnist, cifar10), settings(name))
    assert agreement.loss <= loops.TOLERANCES["cpu"][0]
    assert agreement.step <= loops.TOLERANCES["cpu"][1]


@pytest.mark.parametrize("name", ["m7", "c5"])
def test_another_temperature_is_found_out(name: str, mnist: School, cifar10: School) -> None:
    ours = settings(name)
    assert ours.temperature is not None
    with pytest.raises(KdsearchError, match="both loops must take the same step"):
        loops.check(school_of(name, mnist, cifar10), ours, plain=replace(ours, temperature=1.05 * ours.temperature))


def test_another_optimiser_is_found_out(mnist: School, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of the first step agree then; the parameters do not."""
    monkeypatch.setattr(plain_loop, "optimizer_for", lambda network, *_: torch.optim.SGD(network.parameters(), lr=1e-3))
    with pytest.raises(KdsearchError, match="both loops must take the same step"):
        loops.check(mnist, settings("m7"))


def test_the_plain_loop_learns_and_asks_the_teacher_where_the_deck_did(mnist: School, cifar10: School) -> None:
    asked = []
    handle = mnist.teacher.network.register_forward_hook(lambda *_: asked.append(1))
    try:
        for school, row, times in ((mnist, "m7", 0), (cifar10, "c5", 10), (cifar10, "c7", 0)):
            loop = plain_loop.PlainLoop(school.build(settings(row), 0), school, settings(row), workers=0)
            first, second = loop.epoch(), loop.epoch()
            assert second < first
            assert len(asked) == 2 * times
            asked.clear()
    finally:
        handle.remove()


def test_the_optimisers_are_those_of_the_recipe(mnist: School, cifar10: School) -> None:
    for school, row in ((mnist, "m7"), (cifar10, "c1")):
        network = school.build(settings(row), 0)
        recipe = school.deck.student.recipe
        theirs = plain_loop.optimizer_for(network, recipe, BATCH)
        ours = make_optimizer(network, recipe, BATCH)
        assert isinstance(ours, type(theirs))
        assert theirs.defaults | {"fused": True} == ours.defaults


@pytest.mark.parametrize(("row", "parts"), [("m7", {"ours", "plain", "student"}), ("c7", {"ours", "plain", "student"}),
                                            ("c5", {"ours", "plain", "student", "teacher"})])  # fmt: skip
def test_a_row_is_measured_in_rounds(row: str, parts: set[str], mnist: School, cifar10: School) -> None:
    few = loops.first_images(school_of(row, mnist, cifar10), 2 * BATCH)
    found = run.measure_row(row, few, settings(row), samples=2, workers=0)
    assert found.seconds.keys() == parts
    assert {len(spent) for spent in found.seconds.values()} == {2}
    assert (found.batch, found.steps) == (BATCH, 2)
    assert found.threads == (1, 1)
    low, high = found.speedup[1:]
    assert 0 < low <= found.speedup[0] <= high
    assert found.ceiling > 0


def made(row: str = "m7", **changes: object) -> run.Measured:
    """A row of whole numbers."""
    seconds = {"ours": [1.0, 2.0, 2.0], "plain": [4.0, 4.0, 8.0], "student": [1.0, 1.0, 1.0]}
    one = run.Measured(row, "cifar10" if row[0] == "c" else "mnist", 32, 10, (1, 2), 1, seconds,
                         loops.Agreement(1e-7, 1e-6))  # fmt: skip
    return replace(one, **changes)


def test_figures_are_medians_of_rounds() -> None:
    one = made()
    assert (one.images_a_second("ours"), one.images_a_second("plain")) == (16, 8)
    assert one.speedup == (4, 2, 4)
    assert one.ceiling == 4
    asked = made("c1", seconds=one.seconds | {"teacher": [1.0, 2.0, 3.0]})
    assert asked.ceiling == 3


def test_a_school_of_a_draw_has_a_teacher_that_says_something_finite() -> None:
    digits = data.load(spec.DataSpec(name="digits"), data_folder())
    school = loops.open_school("mnist", digits, CPU, images=60)
    assert len(school.split.train) == 60
    assert school.answers.logits.shape == (60, 10)
    assert school.answers.logits.isfinite().all()
    assert not any(parameter.requires_grad for parameter in school.teacher.network.parameters())


def test_more_images_than_there_are_come_again() -> None:
    digits = data.load(spec.DataSpec(name="digits"), data_folder())
    count = len(digits.train)
    split = loops.open_school("mnist", digits, CPU, images=count + 20).split
    assert len(split.train) == count + 20
    assert torch.equal(split.train.images[:20], split.train.images[count:])
    assert torch.equal(split.train.labels[:20], split.train.labels[count:])


def test_the_ceiling_is_of_captured_steps_where_ours_are(cifar10: School, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Steps] = []

    class Seen(Steps):
        closed = False

        def __init__(self, take: object, **kind: object) -> None:
            super().__init__(take, **kind)
            assert kind["capture"]
            made.append(self)

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(loops, "Steps", Seen)
    row = settings("c5")
    student = cifar10.build(row, 0)
    before = [each.detach().clone() for each in student.parameters()]
    bare = loops._bare_steps(cifar10, row, student)
    for _ in range(loops.READY + 1):
        next(bare)
    assert any(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))
    bare.close()
    assert [each.closed for each in made] == [True]


@pytest.mark.slow
def test_the_untrained_resnet50_does_not_explode() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (200, 3, 32, 32), generator=generator, dtype=torch.uint8)
    fake = ImageSet(images, torch.arange(200) % 10)
    whole = data.Dataset("cifar10", tuple("abcdefghij"), fake, fake, mean=0.5, std=0.5)
    logits = loops.open_school("cifar10", whole, CPU, images=20).answers.logits
    assert 0 < logits.abs().max() < 100


def test_rows_are_of_both_data_sets_with_all_their_images() -> None:
    chosen = run.choose(["c8", "m7"])
    assert [dataset for dataset, _ in chosen.values()] == ["cifar10", "mnist"]
    assert chosen["c8"][1].per_class is None


@pytest.mark.parametrize("names", [[], ["c1", "x1"], ["cq"], ["mq"]])
def test_other_rows_are_refused(names: list[str]) -> None:
    with pytest.raises(KdsearchError, match="--rows must name rows"):
        run.choose(names)


def test_a_busy_machine_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(Exception):  # noqa: N818
        pass

    class Watcher(Progress):
        def warning(self, text: str) -> None:
            raise Told(text)

    monkeypatch.setattr(run, "load", lambda: 1.5)
    with pytest.raises(Told, match="load average"):
        run.measure(run.Options(names=["m7"], device="cpu"), Watcher())


def test_the_result_is_json_of_this_form() -> None:
    found = json.loads(json.dumps(train_page.result([made()], CPU, command="kdsearch bench train"), allow_nan=False))
    assert {"rows", "bars", "device", "environment", "load", "command", "made"} == found.keys()
    row = found["rows"]["m7"]
    assert {"ours", "plain", "speedup", "low", "high", "ceiling", "share_of_ceiling", "batch",
            "losses_agree_to"} <= row.keys()  # fmt: skip
    assert (row["ours"], row["plain"], row["speedup"], row["share_of_ceiling"]) == (16, 8, 4, 1)
    assert row["threads"] == {"ours": 1, "plain": 2}


def test_bars_hold_at_their_batch_alone() -> None:
    (bar,) = train_page.bars(made(), CPU)
    assert (bar.name, bar.figure, bar.met) == ("m7", "4.00", True)
    assert train_page.bars(made(batch=64), CPU) == []
    assert train_page.bars(made("m1"), CPU) == []
    asked = made("c1", batch=100, seconds=made().seconds | {"teacher": [4.0, 4.0, 4.0]})
    (bar,) = train_page.bars(asked, CPU)
    assert (bar.bar, bar.figure, bar.met) == ("95%", "80.0%", False)


def test_the_page_says_where_its_figures_come_from(tmp_path) -> None:
    rows = [made(), made("c1", batch=100, seconds=made().seconds | {"teacher": [4.0, 4.0, 4.0]})]
    found = train_page.result(rows, CPU, command="kdsearch bench train --rows m7,c1", load=0.25)
    page = train_page.write(found, rows, tmp_path, plotlyjs="cdn")
    assert json.loads((tmp_path / "bench-train.json").read_text()) == found
    told = (tmp_path / "bench-train.md").read_text()
    for text in ("kdsearch bench train --rows m7,c1", f"torch {torch.__version__}", "4.00 (2.00 to 4.00)",
                 "threads 1 in ours", "before the start: 0.25", "1 worker in", "| not met |", "80.0 %"):  # fmt: skip
        assert text in told
    assert "bench-train" in page.name
    assert "NOT MET  c1: share of the ceiling 80.0%" in train_page.text(rows, CPU)


def test_in_bfloat16_ours_is_timed_beside_ours_in_float32_and_a_plain_loop_in_float32(cifar10: School) -> None:
    row = settings("c5")
    school = replace(loops.first_images(cifar10, 2 * BATCH), precision="bfloat16")
    measured = run.measure_row("c5", school, row, samples=1, workers=0)
    assert measured.precision == "bfloat16"
    assert measured.seconds.keys() == {"ours", "plain", "student", "teacher", "float32"}
    assert measured.agreement.loss < 1e-5  # both take the step in float32
    plain = run.measure_row("c5", replace(school, precision="float32"), row, samples=1, workers=0)
    assert plain.against_float32 is None
    assert "float32" not in plain.seconds


def test_bars_in_bfloat16() -> None:
    seconds = made().seconds | {"teacher": [4.0, 4.0, 4.0]}
    ours = [3 * spent / 2 for spent in seconds["ours"]]
    row = replace(made("c5", batch=100, seconds=seconds | {"float32": ours}), precision="bfloat16")
    assert row.against_float32 == pytest.approx((1.5, 1.5, 1.5))
    _, gain, speedup = train_page.bars(row, CPU)
    assert (gain.what, gain.figure, gain.met) == ("times ours in float32", "1.50", True)
    assert (speedup.what, speedup.bar, speedup.met) == ("times the plain loop in float32", "5.00", False)
    assert "; bfloat16, 1.50" in train_page.text([row], CPU)
