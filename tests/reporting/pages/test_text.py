from __future__ import annotations

import io
import json

import pandas as pd
import pytest

from kdsearch.errors import KdsearchError
from kdsearch.reporting.collect import StudyData, collect
from kdsearch.reporting.pages import study_page, text

URL = "sqlite:///x.db"


def test_the_csv_holds_every_trial(data: StudyData):
    frame = pd.read_csv(io.StringIO(text.as_csv(data)))
    assert [*frame["number"]] == [*range(7)]
    assert frame["config.blocks"][4] == "[2, 2, 0, 0]"
    assert frame["test_accuracy"][3] == 0.969
    assert "the loss must be finite" in frame["reason"][6]


def test_the_json_is_strict_and_holds_what_the_page_says(complete):
    found = json.loads(text.as_json(collect(complete, storage_url=URL)), parse_constant=lambda name: pytest.fail(name))
    assert found["picks"] == {"To ship": 4, "Most accurate": 4, "Knee": 3, "Fastest": 0}
    assert [row["trial"] for row in found["confirmed"]] == [3, 4]
    assert found["confirmed"][1]["test_low"] is None  # one repeat has no interval
    assert found["seconds"] == {"training": 120.0, "timing": 10.0}
    assert found["order"].startswith("Confirmed with 1 to 3 seeds")


def test_the_markdown_has_the_tables_of_the_page(complete):
    found = study_page.as_markdown(collect(complete, storage_url=URL))
    assert found.startswith("# Study mnist\n\n**Ship trial 4: 21.0 times as fast")
    assert "| 96.40 % (95.41 to 97.39) | 92.0 (87.1 to 97.1) | 238,510 |" in found
    assert "| 97.50 % | 21.0 | 238,510 |" in found
    assert "| m1 | 95.97 % | 315 | 31 s | 95.50 % | 365 | 0 | 94.10 % | 300 | itself | 94.10 % | 300 | – |" in found
    assert "trains each confirmed student again" in found
    assert "Every trial" not in found


@pytest.mark.parametrize("form", ["md", "csv", "json"])
def test_a_format_is_what_is_written(data: StudyData, tmp_path, form):
    path = study_page.write(data, tmp_path / "r", form=form)
    made = {"md": study_page.as_markdown, "csv": text.as_csv, "json": text.as_json}[form](data)
    assert path.read_text(encoding="utf-8") == made


def test_an_unknown_format_is_refused():
    with pytest.raises(KdsearchError, match=r"--format must be html, md, csv or json \(got pdf\)"):
        text.checked("pdf")
