from __future__ import annotations

import base64
import gzip
import io
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial
from plotly.offline import get_plotlyjs

from kdsearch.errors import KdsearchError
from kdsearch.reporting.collect import StudyData, collect
from kdsearch.reporting.pages import assets, one_trial, study_page, text

HOSTILE = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Text outside of script and style elements, script elements, and the headings in their order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.inside, self.text, self.headings = "", "", []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, text):
        if self.inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + text)
        elif self.inside != "style":
            self.text += text
            if self.inside == "h2":
                self.headings[-1] += text

    def block(self, name: str) -> str:
        return next(body for attrs, body in self.scripts if attrs.get("id") == name)


def test_the_page_is_in_the_order_of_the_questions(data: StudyData):
    read = Reader(study_page.render(data, plotlyjs="cdn"))
    assert read.headings == [
        "Accuracy against inference ratio", "The front", "The slides’ configurations", "What mattered",
        "Learning curves", "Hypervolume", "Every trial", "Failed trials", "Teacher", "Where this comes from",
    ]  # fmt: skip
    text = read.text
    assert text.index("Ship trial 4: 20.0 times as fast as the teacher") < text.index("Most accurate")
    assert "This front has not been confirmed with new seeds: kdsearch confirm --name mnist" in text
    assert "another machine" in text


def test_the_front_table_holds_figures_and_a_command_that_a_shell_reads_back(make_trial, make_study):
    name = "it's; rm -rf $HOME"
    found = collect(make_study([make_trial([0.9], 50.0)], name=name), storage_url="postgresql://a:b@h/d")
    text = Reader(study_page.render(found, plotlyjs="cdn")).text
    line = one_trial.command(found, 0)
    assert line in text
    assert shlex.split(line) == [
        "kdsearch", "train", "--trial", "0", "--name", name, "--storage", "postgresql://a:***@h/d"
    ]  # fmt: skip
    assert "put it in place of ***" in text
    for figure in ("90.00 %", "50.0 (49.0 to 51.0)", "238,510", "954 kB", "width 300, loss weight 0.5, epochs 3"):
        assert figure in text


def test_the_slides_table_compares(data: StudyData):
    source = study_page.render(data, plotlyjs="cdn")
    row = re.search(r'<tr><th scope="row">m2</th>.*?</tr>', source)
    assert row
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", row[0])]
    assert cells == [
        "97.24 %", "139", "1 min 36 s", "1", "96.10 %", "100", "3", "96.90 %", "100", "+0.80"
    ]  # fmt: skip


def test_a_confirmed_front_says_what_stands_and_by_the_decks_recipe_what_was_measured(complete, gather):
    text = Reader(study_page.render(gather(complete), plotlyjs="cdn")).text
    assert "Confirmed: 92.0 (87.1 to 97.1)x, 96.40 % (95.41 to 97.39) test" in text
    assert "Confirmed with 1 to 3 seeds" in text
    assert "92.0x as fast as the teacher\n96.40 % test, confirmed" in text
    assert "In the search: 100x, 96.90 %" in text
    assert "has not been confirmed" not in text
    assert "By the deck’s recipe" in text
    assert "training2 min 0 s (92 %)" in text


def test_a_thousand_trials_fit_into_a_page_that_can_be_sent(make_trial, gather):
    import random

    draw = random.Random(0)
    configs = [
        {"width": draw.choice([8, 50, 300]), "loss_weight": draw.random(), "temperature": draw.uniform(1, 20),
         "epochs": 6, "batch_size": draw.choice([16, 64])}
        for _ in range(1000)
    ]  # fmt: skip
    trials = [
        make_trial([draw.uniform(0.8, 0.98) for _ in range(6)], draw.uniform(10, 1000), config=config)
        for config in configs
    ]
    assert len(study_page.render(gather(trials))) < 2_500_000


def test_every_trial_that_ended_early_says_why_and_the_page_what_was_spent(make_trial, gather):
    stopped = {"step": 1, "at": 3, "forecast": 0.5, "trials": [], "reason": ""}
    trials = [make_trial([0.9], 50.0, stopped_by=stopped), make_trial([0.8, 0.8, 0.8], 9.0)]
    text = Reader(study_page.render(gather(trials), plotlyjs="cdn")).text
    assert "stopped at epoch 1: it could hope for 50.00 % by epoch 3, which would add too little" in text
    assert "Trials: 2 complete; spent 4 epochs on 2 trials; pruning saved 2 of 6 planned epochs." in text


def test_a_study_without_published_figures_says_so(make_trial, gather):
    found = gather([make_trial([0.9], 50.0, anchor="m1")], file="digits")
    text = Reader(study_page.render(found, plotlyjs="cdn")).text
    assert "publish no figures for this data set" in text
    assert "As published" not in text


def test_hostile_text_stays_text(make_trial, gather):
    trial = make_trial([0.9], 50.0, anchor=HOSTILE, config={HOSTILE: HOSTILE})
    failed = create_trial(state=TrialState.FAIL, user_attrs={"fail_reason": HOSTILE})
    stored = {HOSTILE: HOSTILE, "classes": 10, "nested": {HOSTILE: [HOSTILE]}}
    attrs = dict.fromkeys(("environment", "definition", "teacher"), stored) | {"command": HOSTILE}
    source = study_page.render(gather([trial, failed], attrs, name=HOSTILE), plotlyjs="cdn")
    read = Reader(source)
    assert HOSTILE not in source
    assert source.count("<script") == 6  # three figures' data, the table as CSV, plotly.js and the page's own
    assert "<" not in read.block("front-data")
    assert f"Study {HOSTILE}" in read.text
    assert HOSTILE in json.dumps(json.loads(read.block("front-data")))


def test_a_figures_json_cannot_end_its_element():
    class Raw:
        def to_json(self) -> str:  # Plotly's own writer escapes too: here it does not
            return '{"a": "</script><!-- & \u2028"}'

    text = assets.figure_json(Raw())  # type: ignore[arg-type]
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!-- & \u2028"}


def test_plotly_is_packed_into_the_page_whole(data: StudyData):
    source = study_page.render(data)
    packed = Reader(source).block("plotlyjs")
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    assert len(source) < 2_500_000
    assert "https://" not in source.replace(packed, "")


def test_the_linked_page_is_small_and_names_what_it_loads(data: StudyData):
    source = study_page.render(data, plotlyjs="cdn")
    assert len(source) < 100_000
    (script,) = [attrs for attrs, _ in Reader(source).scripts if "src" in attrs]
    assert script["src"].startswith("https://cdn.plot.ly/plotly-")
    assert script["integrity"].startswith("sha256-")


@pytest.mark.parametrize(
    ("states", "said"),
    [([], "This study has no trials yet"), ([TrialState.FAIL], "All trials failed (1 failed)"),
     ([TrialState.RUNNING], "No trial is complete yet"), ([TrialState.COMPLETE], "2.00 times as fast as the teacher")],
)  # fmt: skip
@pytest.mark.parametrize("bare", [True, False])
def test_a_study_at_its_beginning_gives_a_page(gather, states, said, bare):
    values = {TrialState.COMPLETE: [0.5, 2.0]}
    trials = [create_trial(state=state, values=values.get(state)) for state in states]
    found = gather(trials, bare=bare)
    text = Reader(study_page.render(found, plotlyjs="cdn")).text
    assert said in text
    assert ("The study holds no teacher yet" in text) == bare
    assert "nan" not in text.lower()


def test_a_bare_empty_study_carries_no_plotly(gather):
    assert len(study_page.render(gather([], bare=True))) < 20_000


def test_write_makes_the_folder_and_leaves_nothing_beside(data: StudyData, tmp_path: Path):
    path = study_page.write(data, tmp_path / "reports" / "mnist.html", plotlyjs="cdn")
    assert path.read_text(encoding="utf-8") == study_page.render(data, plotlyjs="cdn")
    assert [file.name for file in path.parent.iterdir()] == ["mnist.html"]


def test_a_report_that_cannot_be_written_leaves_the_old_one(data: StudyData, tmp_path: Path, no_room):
    path = tmp_path / "mnist.html"
    path.write_text("before")
    with no_room(), pytest.raises(KdsearchError, match=r"must be writable: File too large.*mnist\.html.*free space"):
        study_page.write(data, path, plotlyjs="cdn")
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["mnist.html"]


def test_a_folder_in_the_way_is_one_clean_error(data: StudyData, tmp_path: Path):
    (tmp_path / "there").mkdir()
    with pytest.raises(KdsearchError, match="must be writable"):
        study_page.write(data, tmp_path / "there", plotlyjs="cdn")
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_an_unknown_way_to_get_plotly_is_refused(data: StudyData):
    with pytest.raises(KdsearchError, match="inline or cdn"):
        study_page.render(data, plotlyjs="none")  # type: ignore[arg-type]


def test_the_csv_holds_every_trial(data: StudyData):
    data.trials.loc[0, "reason"] = "=1+2"
    frame = pd.read_csv(io.StringIO(text.as_csv(data)))
    assert frame["reason"][0] == "'=1+2"
    assert [*frame["number"]] == [*range(7)]
    assert frame["config.blocks"][4] == "[2, 2, 0, 0]"
    assert frame["test_accuracy"][3] == 0.969
    assert "the loss must be finite" in frame["reason"][6]


def test_the_json_is_strict_and_holds_what_the_page_says(complete, gather):
    found = json.loads(text.as_json(gather(complete)), parse_constant=lambda name: pytest.fail(name))
    assert found["picks"] == {"To ship": 4, "Most accurate": 4, "Knee": 3, "Fastest": 0}
    assert [row["trial"] for row in found["confirmed"]] == [3, 4]
    assert found["confirmed"][1]["test_low"] is None  # one repeat has no interval
    assert found["seconds"] == {"training": 120.0, "timing": 10.0}
    assert found["order"].startswith("Confirmed with 1 to 3 seeds")


def test_the_markdown_has_the_tables_of_the_page(complete, gather):
    found = study_page.as_markdown(gather(complete))
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
