from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch import spec
from kdsearch.errors import StudyFileError
from kdsearch.networks import check_families
from kdsearch.spec import Range, Stages, dimension_holds

STUDIES = ("cifar10", "digits", "folder", "mnist")

# The deck's tables: row, hidden, temperature, epochs, batch, accuracy %, training s, ratio
MNIST = """
m1 50 3.5 3 32 95.97 30.998 315.332
m2 300 3.5 3 16 97.24 95.715 138.753
m3 300 3.5 3 64 97.12 48.421 129.564
m4 300 3.5 2 32 96.17 25.108 126.174
m5 300 10 3 32 96.87 64.573 123.326
m6 300 1 3 32 96.98 65.171 123.264
m7 300 3.5 3 32 97.26 64.854 119.127
m8 300 3.5 5 32 97.23 247.926 116.654
m9 600 3.5 3 32 97.21 103.010 38.005
"""
# row, blocks, stride, loss weight, accuracy %, training s, ratio; all: width 64, T 4, 10 epochs, batch 100
CIFAR10 = """
c1 2222 1 0.5 79.3 400 6.58
c2 1111 1 0.5 79.1 275 8.53
c3 2200 1 0.5 78.6 370 7.81
c4 1100 1 0.5 79.4 340 9.85
c5 1111 2 0.5 77.6 280 11.60
c6 1111 4 0.5 79.9 405 9.94
c7 1111 2 0 75.8 330 10.84
"""
MNIST_ROWS = [line.split() for line in MNIST.split("\n") if line]
CIFAR10_ROWS = [line.split() for line in CIFAR10.split("\n") if line]


def mlp_row(hidden, temperature, epochs, batch):
    return {
        "width": int(hidden), "temperature": float(temperature), "loss_weight": 1.0, "epochs": int(epochs),
        "batch_size": int(batch),
    }  # fmt: skip


def published(anchor):
    return anchor.published.accuracy, anchor.published.seconds, anchor.published.ratio


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_is_valid_and_fits_its_families(name):
    check_families(spec.load(spec.shipped(name)))


def test_no_shipped_study_is_left_untested():
    assert tuple(sorted(path.stem for path in spec.studies_folder().glob("*.toml"))) == STUDIES


def test_the_mnist_anchors_are_the_decks_rows_with_its_figures():
    anchors = spec.load(spec.shipped("mnist")).anchors
    assert list(anchors) == [row[0] for row in MNIST_ROWS]
    for name, *row in MNIST_ROWS:
        assert anchors[name].config == mlp_row(*row[:4])
        assert published(anchors[name]) == tuple(map(float, row[4:]))


def test_the_digits_anchors_are_the_same_rows_without_figures():
    anchors = spec.load(spec.shipped("digits")).anchors
    assert {name: a.config for name, a in anchors.items()} == {name: mlp_row(*row[:4]) for name, *row in MNIST_ROWS}
    assert all(anchor.published is None for anchor in anchors.values())


def test_the_cifar10_anchors_are_the_decks_rows_with_its_figures():
    anchors = spec.load(spec.shipped("cifar10")).anchors
    assert list(anchors) == [row[0] for row in CIFAR10_ROWS]
    for name, blocks, stride, weight, *figures in CIFAR10_ROWS:
        expected = {
            "width": 64, "blocks": [int(b) for b in blocks], "stride": int(stride), "loss_weight": float(weight),
            "epochs": 10, "batch_size": 100,
        }  # fmt: skip
        if float(weight) > 0:
            expected["temperature"] = 4.0
        assert anchors[name].config == expected
        assert published(anchors[name]) == tuple(map(float, figures))


@pytest.mark.parametrize("name", STUDIES)
def test_a_dump_reads_back_as_the_same_study(name):
    loaded = spec.load(spec.shipped(name)).limited(train_size=100, max_epochs=2)
    assert spec.from_dict(loaded.model_dump(mode="json")) == loaded


TYPO_IN_ANCHOR = "batch_size = 32, publishd = { accuracy = 9.0, ratio = 1.0, seconds = 1.0 } }\nm2"


EPOCHS = "epochs = { low = 1, high = 30 }"


@pytest.mark.parametrize(
    ("old", "new", "key", "remedy"),
    [
        ("lr = 2e-3", "lrr = 2e-3", "teacher.recipe.lrr", "check its spelling"),
        ("[latency]", "[latencyy]", "latency is missing", "add it"),
        ("[student]", "surplus = 1\n[student]", "teacher.recipe.surplus", "check its spelling or remove it"),
        (EPOCHS, "epochs = { low = 30, high = 1 }", "space.epochs", "swap them"),
        (EPOCHS, "epochs = { low = 1, hihg = 30 }", "space.epochs", "add it"),
        (EPOCHS, "epochs = { low = 1, high = 4 }", "anchors.m8.epochs", "widen space.epochs"),
        (EPOCHS, "epochs = { low = 1.0, high = 30.0 }", "epochs", "drop the decimal points"),
        (EPOCHS, "epochs = { low = 0, high = 30 }", "epochs must lie between 1", "narrow it"),
        ("low = 0.0, high = 1.0", "low = 0.0, high = 1.5", "loss_weight must lie between 0 and 1", "narrow it"),
        ("low = 1.0, high = 20.0", "low = 0.0, high = 20.0", "space.temperature", "raise low or drop log"),
        ("high = 20.0, log", "high = 20.0, step = 0, log", "space.temperature.step", "correct it"),
        ("m1 = { width = 50", "m1 = { width = 51", "anchors.m1.width", "widen space.width or move"),
        ("m1 = { width = 50, ", "m1 = { ", "anchors.m1 lacks width", "sets every dimension"),
        ("m1 = { width = 50, ", "m1 = { width = 50, depth = 2, ", "anchors.m1 must not have depth", "every dimension"),
        ("batch_size = 32 }\nm2", TYPO_IN_ANCHOR, "anchors.m1 must not have publishd", "every dimension"),
        ("batch_size = 32 }\nm2", 'batch_size = "32" }\nm2', "anchors.m1.batch_size", "widen space.batch_size"),
        ("batch_size = 32 }\nm2", "batch_size = 32.0 }\nm2", "anchors.m1.batch_size", "widen space.batch_size"),
        ('family = "cnn"\n', "", "teacher: family is missing", "add it"),
        ("batch_size = [16, 32, 64, 128, 256, 512]\n", "", "batch_size is missing", "give it a range"),
        ("batch_size = [16, 32, 64, 128, 256, 512]\n", "batch_size = []\n", "space.batch_size", "correct it"),
        ("lr = 2e-3", 'lr = "fast"', "teacher.recipe.lr", "correct it"),
        ("lr = 2e-3", "lr = -2e-3", "teacher.recipe.lr", "correct it"),
        ("validation = 0.25", "validation = 1.0", "data.validation", "correct it"),
        ("split_seed = 0", "split_seed = 0.5", "data.split_seed", "correct it"),
        ("split_seed = 0", "split_seed = -1", "data.split_seed", "correct it"),
        ("split_seed = 0", "split_seed = 4294967296", "data.split_seed", "correct it"),
        ("threads = 1", "threads = 0", "student.threads", "correct it"),
        ("threads = 1", "threads = true", "student.threads", "correct it"),
        ('optimizer = "adam"', 'optimizer = "adamw"', "teacher.recipe.optimizer", "correct it"),
        ("[data]", "[data", "must be valid TOML", "correct that line"),
        ("[data]", "[data]\nname = 'x'", "must be valid TOML", "correct that line"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_key_and_remedy(digits_text, old, new, key, remedy):
    assert old in digits_text
    with pytest.raises(StudyFileError) as caught:
        spec.parse(digits_text.replace(old, new, 1), source="my.toml")
    line = str(caught.value)
    assert line.startswith("my.toml")
    assert "\n" not in line
    assert key in line
    assert remedy in line


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(StudyFileError, match=r"No such file.*nothing.toml.*kdsearch init"):
        spec.load(tmp_path / "nothing.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe4'")
    with pytest.raises(StudyFileError, match="not UTF-8"):
        spec.load(tmp_path / "latin.toml")
    with pytest.raises(StudyFileError, match="directory"):
        spec.load(tmp_path)


def test_a_data_set_without_a_shipped_file_is_refused():
    assert spec.shipped("folder:/some/where").name == "folder.toml"
    with pytest.raises(StudyFileError, match="choose one of cifar10, digits, folder, mnist"):
        spec.shipped("imagenet")


def test_limits_cap_students_anchors_and_teacher():
    whole = spec.load(spec.shipped("digits"))
    limited = whole.limited(train_size=100, max_epochs=3)
    assert limited.data.train_size == 100
    assert limited.teacher.recipe.epochs == 3
    assert limited.longest == 3
    assert (limited.space["epochs"].low, limited.space["epochs"].high) == (1, 3)
    assert [a.config["epochs"] for a in limited.anchors.values()] == [3, 3, 3, 2, 3, 3, 3, 3, 3]
    assert whole.longest == 30
    assert whole.limited() == whole


def test_limits_that_exceed_the_study_change_nothing_but_the_size():
    whole = spec.load(spec.shipped("mnist"))
    assert whole.limited(max_epochs=1000) == whole


def test_published_figures_survive_a_limit():
    whole = spec.load(spec.shipped("mnist"))
    limited = whole.limited(max_epochs=1)
    assert [a.published for a in limited.anchors.values()] == [a.published for a in whole.anchors.values()]


@pytest.mark.parametrize("option", ["train_size", "max_epochs"])
def test_limits_below_one_are_refused(option):
    with pytest.raises(StudyFileError, match=rf"--{option.replace('_', '-')} must be at least 1 \(got 0\)"):
        spec.load(spec.shipped("digits")).limited(**{option: 0})


@pytest.mark.parametrize("epochs", ["[2, 3, 5, 30]", "{ low = 1, high = 31, step = 2 }", "{ low = 2, high = 30 }", "5"])
@pytest.mark.parametrize("top", [1, 2, 4])
def test_a_limited_study_is_a_valid_study(digits_text, epochs, top):
    before, _, anchors = digits_text.replace(EPOCHS, f"epochs = {epochs}").partition("m1 = ")
    five_epochs = anchors[anchors.index("m8 = ") :].splitlines()[0]
    limited = spec.parse(before + five_epochs, source="x").limited(max_epochs=top)
    assert spec.from_dict(limited.model_dump(mode="json")) == limited  # its anchor lies in its space
    assert limited.longest <= top


def test_the_rate_is_scaled_with_the_batch_for_sgd_and_with_its_root_for_adam():
    assert spec.Recipe(lr=0.1).rate_for(512) == 0.1
    assert spec.Recipe(optimizer="sgd", lr=0.1, lr_batch=100).rate_for(400) == pytest.approx(0.4)
    assert spec.Recipe(optimizer="adam", lr=0.1, lr_batch=100).rate_for(400) == pytest.approx(0.2)
    assert spec.Recipe(optimizer="adam", lr=0.1, lr_batch=32).rate_for(32) == 0.1


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Range(low=1, high=3), [1, 3], [0, 4, 1.5, 2.0, "2", True, None, [2]]),
        (Range(low=0.0, high=1.0), [0, 0.3, 1.0], [-0.1, 1.1, float("nan")]),
        (Range(low=0.0, high=1.0, step=0.05), [0.15, 0.35, 0.95, 1.0], [0.07, 0.951]),
        (Range(low=2, high=8, step=3), [2, 5, 8], [3, 4, 7]),
        (Range(low=1.0, high=20.0, log=True), [1, 3.5, 20], [0.5, 20.5]),
        ([16, 32, 64], [16, 64], [17, "16", 48, 16.0]),
        ([1.0, 2.0], [1, 2.0], [True, 3]),
        ([0.5, 1], [0.5, 1, 1.0], [True, 0.7]),
        ([1, 2], [1, 2], [True, 1.0]),
        (["a", "b"], ["a"], ["c", 1]),
        (7, [7], [8, 7.0]),
        (0.0, [0, 0.0], [False]),
        (Stages(low=0, high=3, stages=2), [[1, 0], (2, 3)], [[True, 0], [1.0, 0]]),
    ],
)
def test_a_dimension_holds_what_may_come_from_it(dimension, inside, outside):
    assert all(dimension_holds(dimension, value) for value in inside)
    assert not any(dimension_holds(dimension, value) for value in outside)


@given(st.lists(st.integers(-1, 4), max_size=5))
def test_stages_start_above_zero_and_end_at_the_first_zero(blocks):
    top = len(blocks)
    while top and blocks[top - 1] == 0:
        top -= 1
    allowed = len(blocks) == 4 and top >= 1 and all(1 <= b <= 3 for b in blocks[:top])
    assert Stages(low=0, high=3, stages=4).holds(blocks) == allowed


def test_stages_with_a_low_above_zero_have_no_empty_stage():
    assert Stages(low=1, high=2, stages=2).holds([1, 2])
    assert not Stages(low=1, high=2, stages=2).holds([1, 0])


def test_whole_numbers_are_sampled_where_no_decimal_point_is_written():
    assert Range(low=1, high=30).integer
    assert not Range(low=1.0, high=30).integer
    assert not Range(low=1, high=30, step=0.5).integer


def test_the_shipped_space_has_the_sizes_that_the_deck_uses():
    mlp = spec.load(spec.shipped("mnist")).space
    assert {50, 300, 600} <= set(mlp["width"])
    assert (min(mlp["width"]), max(mlp["width"])) == (8, 1200)
    resnet = tomllib.loads(spec.shipped("cifar10").read_text())["space"]
    assert (min(resnet["width"]), max(resnet["width"])) == (16, 64)
    assert resnet["stride"] == [1, 2, 4]
    assert 100 in resnet["batch_size"]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("width = [8,", "width = [-8,", "width must be above 0"),
        ("width = [8,", "width = [0,", "width must be above 0"),
        ("lr = 2e-3", "lr = inf", "teacher.recipe.lr"),
        ("low = 0.0, high = 1.0, step = 0.05", "low = nan, high = 1.0", "space.loss_weight"),
        ("low = 0.0, high = 1.0, step = 0.05", "low = 0.0, high = 1.0, step = 0.3", "step must divide the range"),
    ],
)
def test_values_that_no_training_can_use_are_refused(digits_text, old, new, key):
    assert old in digits_text
    with pytest.raises(StudyFileError, match=key):
        spec.parse(digits_text.replace(old, new, 1), source="x.toml")


def with_features(text: str, dimension: str) -> str:
    return text.replace("[space]\n", f"[space]\nfeature_weight = {dimension}\n")


def test_anchors_have_no_feature_weight_where_the_space_has_one(digits_text):
    found = spec.parse(with_features(digits_text, "{ low = 0.0, high = 4.0 }"), source="x")
    assert {anchor.config["feature_weight"] for anchor in found.anchors.values()} == {0.0}
    assert all("feature_weight" not in anchor.config for anchor in spec.parse(digits_text, source="x").anchors.values())


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ("-1.0", "feature_weight must lie between 0 and 1e.06"),
        ("{ low = 1.0, high = 4.0 }", r"anchors.m1.feature_weight lies outside the space \(got 0.0\)"),
    ],
)
def test_a_feature_weight_that_cannot_be_is_refused(digits_text, dimension, message):
    with pytest.raises(StudyFileError, match=message):
        spec.parse(with_features(digits_text, dimension), source="x")


def test_anchors_have_the_recipes_rate_where_the_space_has_one(digits_text):
    found = spec.parse(
        digits_text.replace("[space]\n", "[space]\nlr = { low = 1e-4, high = 1e-1, log = true }\n"), source="x"
    )
    assert {anchor.config["lr"] for anchor in found.anchors.values()} == {1e-3}
    assert spec.from_dict(found.model_dump(mode="json")) == found
    with pytest.raises(StudyFileError, match=r"anchors.m1.lr lies outside the space \(got 0.001\)"):
        spec.parse(digits_text.replace("[space]\n", "[space]\nlr = [0.1, 0.2]\n"), source="x")
    with pytest.raises(StudyFileError, match="lr must lie between 1e-09 and 1000"):
        spec.parse(digits_text.replace("[space]\n", "[space]\nlr = 0.0\n"), source="x")


def test_a_stored_study_without_the_key_reads_loss_weight_and_temperature_as_it_did(digits_text):
    new = spec.parse(digits_text, source="x")
    stored = new.model_dump(mode="json")
    assert new.distillation == stored.pop("distillation") == 2
    assert spec.from_dict(stored).distillation == 1


def test_what_the_report_asks_is_checked(digits_text):
    found = spec.parse(digits_text + "\n[report]\nwithin = 0.5\n", source="x")
    assert (found.report.within, found.report.floor) == (0.5, None)
    with pytest.raises(StudyFileError, match=r"report\.within"):
        spec.parse(digits_text + "\n[report]\nwithin = 0\n", source="x")


def test_a_stored_study_keeps_anchors_that_were_once_taken(digits_text):
    stored = spec.parse(digits_text, source="x").model_dump(mode="json")
    stored["anchors"]["m1"]["batch_size"] = 32.0
    assert spec.from_dict(stored).anchors["m1"].config["batch_size"] == 32


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("ratio = 315.332", "ratio = 1e308", "anchors.m1.published.ratio"),
        ("ratio = 315.332", "ratio = 1e-300", "anchors.m1.published.ratio"),
        ("seconds = 30.998", "seconds = 1e300", "anchors.m1.published.seconds"),
        ("high = 1.0, step = 0.05", "high = 1e308, step = 0.05", "space.loss_weight.high"),
        ("high = 1.0, step = 0.05", "high = 1.0, step = 1e-320", "space.loss_weight.step"),
    ],
)
def test_numbers_that_would_overflow_are_refused(old, new, key):
    text = (spec.study_file.studies_folder() / "mnist.toml").read_text()
    assert old in text
    with pytest.raises(StudyFileError, match=rf"x: {key}: Input should be (less|greater) than"):
        spec.parse(text.replace(old, new), source="x")


@pytest.mark.parametrize("damaged", [None, "{}", [], {}, {"data": 1}])
def test_a_damaged_stored_study_file_is_one_line(digits_text, damaged):
    whole = spec.parse(digits_text, source="x").model_dump(mode="json")
    stored = {**whole, "space": damaged} if isinstance(damaged, dict) else damaged
    with pytest.raises(StudyFileError, match="the stored study file must be whole: ") as refused:
        spec.from_dict(stored)
    assert "\n" not in str(refused.value)


def test_nesterov_needs_a_momentum():
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        spec.Recipe(optimizer="sgd", nesterov=True)
    assert spec.Recipe(optimizer="sgd", nesterov=True, momentum=0.9).nesterov
