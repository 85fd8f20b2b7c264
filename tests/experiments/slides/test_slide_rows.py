from __future__ import annotations

import pytest

from kdsearch.errors import KdsearchError
from kdsearch.experiments.slides.rows import choose, rows

# The deck's second table: row, blocks, stride, distilled, images of each class, accuracy %, training s, ratio
CIFAR10 = """
c1 2222 1 yes all 79.3 400 6.58
c2 1111 1 yes all 79.1 275 8.53
c3 2200 1 yes all 78.6 370 7.81
c4 1100 1 yes all 79.4 340 9.85
c5 1111 2 yes all 77.6 280 11.60
c6 1111 4 yes all 79.9 405 9.94
c7 1111 2 no all 75.8 330 10.84
c8 1111 2 yes 500 61.2 60 10.33
c9 1111 2 no 500 56.0 60 9.79
"""


def test_the_cifar10_rows_are_those_of_the_deck():
    found = rows("cifar10")
    lines = [line.split() for line in CIFAR10.split("\n") if line]
    assert list(found) == [line[0] for line in lines] + ["cq"]
    for name, blocks, stride, distilled, images, accuracy, seconds, ratio in lines:
        stated, published = found[name].readings["stated"], found[name].published
        assert stated.architecture == {"width": 64, "blocks": [int(b) for b in blocks], "stride": int(stride)}
        assert stated.temperature == (4.0 if distilled == "yes" else None)
        assert stated.per_class == (None if images == "all" else int(images))
        assert (stated.epochs, stated.batch_size, stated.bits) == (10, 100, None)
        assert (published.accuracy, published.seconds, published.ratio) == tuple(map(float, (accuracy, seconds, ratio)))


def test_what_the_published_code_built_in_c3_and_c4():
    found = rows("cifar10")
    assert found["c3"].readings["published"].architecture["blocks"] == [2, 2, 1, 1]
    assert found["c4"].readings["published"].architecture["blocks"] == [1, 1, 1, 1]
    others = [row for name, row in found.items() if name not in ("c3", "c4")]
    assert all(row.readings["stated"] == row.readings["published"] for row in others)


def test_the_mnist_rows_are_the_study_files_with_three_times_the_epochs_as_published():
    found = rows("mnist")
    assert list(found) == [f"m{n}" for n in range(1, 10)] + ["mq"]
    for name, epochs in {"m1": 3, "m4": 2, "m8": 5}.items():
        assert found[name].readings["stated"].epochs == epochs
        assert found[name].readings["published"].epochs == 3 * epochs
        assert f"{epochs} stated, {3 * epochs} published" in found[name].open
    assert found["m9"].readings["stated"].architecture == {"width": 600}
    assert (found["m1"].published.accuracy, found["m1"].published.ratio) == (95.97, 315.332)


def test_in_m5_and_m6_the_published_teacher_keeps_its_temperature():
    for name, temperature in {"m5": 10.0, "m6": 1.0, "m7": 3.5}.items():
        stated, published = (rows("mnist")[name].readings[reading] for reading in ("stated", "published"))
        assert (stated.temperature, stated.teacher_temperature) == (temperature, None)
        assert published.temperature == temperature
        assert published.teacher_temperature == (3.5 if name != "m7" else None)


def test_the_int8_rows_are_like_a_row_and_publish_nothing():
    for dataset, like in {"mnist": "m7", "cifar10": "c5"}.items():
        found = rows(dataset)
        int8 = found[f"{dataset[0]}q"]
        stated, usual = int8.readings["stated"], found[like].readings["stated"]
        assert (stated.architecture, stated.epochs, stated.bits) == (usual.architecture, usual.epochs, 8)
        assert int8.published is None


def chosen(*asked: str | None) -> list[tuple[str, str]]:
    return [(job.row.name, job.reading) for job in choose(*asked)]


def test_rows_are_chosen_by_name_once_each():
    assert chosen("mnist", "m7, m1,m7", "stated") == [("m7", "stated"), ("m1", "stated")]
    assert len(chosen("mnist", None, "stated")) == 10
    assert chosen("mnist", "m1", "both") == [("m1", "stated"), ("m1", "published")]
    assert chosen("mnist", "m1,mq", "published") == [("m1", "published"), ("mq", "stated")]  # mq has one reading


def test_c3_and_c4_are_run_in_both_readings_whatever_is_asked():
    both = [("c3", "stated"), ("c3", "published")]
    assert [chosen("cifar10", "c3", reading) for reading in ("stated", "published", "both")] == [both] * 3
    assert chosen("cifar10", "c1,c8", "both") == [("c1", "stated"), ("c8", "stated")]  # they differ in nothing
    assert len(chosen("cifar10", None, "stated")) == 12


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("digits", None, "stated"), r"rows on mnist and cifar10 \(got digits\); choose one of the two"),
        (("mnist", "m1,c5", "stated"), r"rows of the slides on mnist \(got c5\); choose among m1,m2"),
        (("mnist", ",", "stated"), r"\(got none\)"),
        (("mnist", "m1", "literal"), r"--reading must be known \(got literal\)"),
    ],
)
def test_what_is_no_row_is_refused(asked, message):
    with pytest.raises(KdsearchError, match=message):
        choose(*asked)
