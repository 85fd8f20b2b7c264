from __future__ import annotations

import datetime
import json

import optuna
import plotly.graph_objects as go
import pytest
from optuna_dashboard import get_note, save_note
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects

from kdsearch.reporting.dashboard.figure import front
from kdsearch.reporting.dashboard.note import DEFAULT_TRIALS, FIGURE, FIGURE_KEY, MARK, Page, note
from kdsearch.search import budget

NOW = datetime.datetime(2026, 11, 25, 12, tzinfo=datetime.UTC)
URL = "postgresql://ann:secret@db/kd"


def figure_of(study: optuna.Study) -> go.Figure:
    objects = get_plotly_graph_objects(study._storage.get_study_system_attrs(study._study_id))
    assert list(objects) == [FIGURE]
    return go.Figure(json.loads(objects[FIGURE]))


def test_the_dashboard_reads_our_figure_and_note_which_are_one_piece_each(typical):
    Page(URL)(typical, False)
    drawn = {trace.name: trace for trace in figure_of(typical).data}
    assert list(drawn["front"].text) == ["0", "3", "4"][::-1]
    assert drawn["front"].x == (20.0, 100.0, 300.0)
    assert drawn["teacher"].y == (97.0,)
    assert get_note(typical).startswith("**Runs until 50 trials")
    attributes = typical._storage.get_study_system_attrs(typical._study_id)
    assert sum(key.startswith(("dashboard:plot_data", "dashboard:note_str")) for key in attributes) == 2


def test_pieces_of_another_writer_are_emptied(typical):
    typical._storage.set_study_system_attr(typical._study_id, f"{FIGURE_KEY}1", "rest of a longer figure")
    save_note(typical, "x" * 3000 + MARK)
    Page(URL)(typical, True)
    figure_of(typical)
    assert get_note(typical).startswith("**The run is over.**")


def test_a_note_of_somebodys_own_stays(typical):
    save_note(typical, "mine")
    Page(URL)(typical, True)
    assert get_note(typical) == "mine"
    figure_of(typical)


def test_the_default_number_of_trials_is_the_searchs():
    assert DEFAULT_TRIALS == budget.DEFAULT_TRIALS


def test_a_thousand_trials_make_a_small_figure(make_trial, gather):
    trials = [make_trial([0.5 + i / 4000, 0.4], 1000.0 - 0.5 * i) for i in range(1000)]
    data = gather(trials[:60] + [make_trial([0.3], 10.0 + i) for i in range(940)])
    assert len(front(data)) < 16_000
    assert len(note(data, options={}, over=False, now=NOW)) < 8_000


@pytest.mark.parametrize("bare", [True, False])
def test_a_study_without_trials_has_a_figure_and_a_note(make_study, bare):
    study = make_study([], bare=bare)
    Page(URL)(study, False)
    figure_of(study)
    assert "No trial" in get_note(study)


def test_the_estimate_goes_by_the_last_trials(typical, gather):
    data = gather(typical)  # a trial a minute, 6 of them finished
    assert "about 4 min 0 s left" in note(data, options={"trials": 10}, over=False, now=NOW)
    assert "left" not in note(data, options={"timeout": 90}, over=False, now=NOW)
    assert "1 min 30 s at most" in note(data, options={"timeout": 90}, over=False, now=NOW)


def test_a_hostile_command_stays_text(typical, gather):
    typical.set_user_attr("command", "kdsearch optimize --name '``<img src=x onerror=alert(1)>\n# a'")
    text = note(gather(typical), options={}, over=False, now=NOW)
    assert "``` kdsearch optimize --name '``<img src=x onerror=alert(1)> # a' ```" in text
