from __future__ import annotations

import json

import numpy as np
import pytest

from kdsearch import pareto
from kdsearch.errors import KdsearchError
from kdsearch.experiments.search_bench import tables

ROW = {"config": {"width": 8, "epochs": 2}, "ratio": 10.0, "accuracy": [0.5, 0.7], "seconds": [1.0, 1.0]}


def test_a_table_is_read_as_it_was_written_but_for_failed_rows(tmp_path):
    path = tmp_path / "mine.json.gz"
    other = ROW | {"ratio": 100.0, "accuracy": [0.4, 0.3]}
    tables.save(path, {"epochs": 2}, [ROW, ROW | {"failed": "the loss is not finite", "accuracy": [0.1]}, other])
    table = tables.load(str(path))
    assert (table.name, table.provenance, table.epochs) == ("mine", {"epochs": 2}, 2)
    assert table.configs == [ROW["config"]] * 2
    assert table.accuracy.tolist() == [[0.5, 0.7], [0.4, 0.3]]
    assert table.ratio.tolist() == [10.0, 100.0]


def test_reference_and_best_come_from_final_and_from_all_checkpoints(tmp_path):
    path = tmp_path / "mine.json.gz"
    tables.save(path, {}, [ROW, ROW | {"ratio": 100.0, "accuracy": [0.4, 0.3]}])
    table = tables.load(str(path))
    assert table.reference == (0.3, 1.0)
    assert table.best == pytest.approx((0.4 - 0.3) * (2 - 1))  # the slow row adds nothing: it is on the edge


def test_the_same_rows_give_the_same_file(tmp_path):
    for name in ("a", "b"):
        tables.save(tmp_path / f"{name}.json.gz", {}, [ROW])
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_an_unknown_table_is_refused_with_the_known_ones():
    with pytest.raises(KdsearchError, match=r"must exist \(got nothing\); choose one of .*digits"):
        tables.load("nothing")


@pytest.mark.parametrize("content", [b"no gzip", b""])
def test_a_broken_table_is_refused(tmp_path, content):
    path = tmp_path / "broken.json.gz"
    path.write_bytes(content)
    with pytest.raises(KdsearchError, match="must be readable"):
        tables.load(str(path))


def test_a_table_with_rows_of_unequal_length_is_refused(tmp_path):
    path = tmp_path / "uneven.json.gz"
    tables.save(path, {}, [ROW, ROW | {"accuracy": [0.4]}])
    with pytest.raises(KdsearchError, match="must be readable"):
        tables.load(str(path))


@pytest.mark.parametrize(("name", "rows", "epochs"), [("digits", 450, 30), ("mnist", 300, 10)])
def test_the_shipped_tables_are_as_large_as_promised(name, rows, epochs):
    if name not in tables.shipped():
        pytest.fail(f"{name} does not ship")
    table = tables.load(name)
    assert len(table.configs) >= rows
    assert table.epochs == epochs
    assert len({json.dumps(config, sort_keys=True) for config in table.configs}) == len(table.configs)
    assert np.isfinite(table.accuracy).all()
    assert (table.ratio > 0).all()
    points = list(zip(table.accuracy.max(axis=1).tolist(), np.log10(table.ratio).tolist(), strict=True))
    assert table.best == pareto.hypervolume(points, table.reference) > 0
    assert table.provenance["study_file"]["data"]["name"] == name


def test_the_shipped_tables_are_small():
    assert sum(path.stat().st_size for path in tables.FOLDER.iterdir()) < 2_000_000
