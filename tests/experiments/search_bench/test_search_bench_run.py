from __future__ import annotations

import json
import os

import numpy as np
import pytest
from helpers.recording import Recorder

from kdsearch.errors import KdsearchError
from kdsearch.experiments.search_bench import comparison, page, tables
from kdsearch.experiments.search_bench import run as search
from kdsearch.experiments.search_bench.replay import METHODS, Arm, Run, replay
from kdsearch.experiments.search_bench.run import Measured, arms
from kdsearch.progress import Progress

SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def measured(table_of):
    table = table_of()
    return Measured(
        table=table,
        seeds=SEEDS,
        budget=40,
        arms={arm.key: [replay(table, arm, seed=seed, budget=40) for seed in SEEDS] for arm in arms(full=False)},
        tpe=[replay(table, search.UNPRUNED_TPE, seed=seed, trials=10) for seed in SEEDS],
    )


def made(table, steps, arm="random/all/none", budget=100):
    runs = [Run(Arm(*arm.split("/")), seed, best_trials=s, checkpoints=s) for seed, s in enumerate(steps)]
    return Measured(table=table, seeds=tuple(range(len(steps))), budget=budget, arms={arm: runs}, tpe=[])


def test_plain_arms_are_those_promised_and_full_adds_to_them():
    plain, full = arms(full=False), arms(full=True)
    assert {arm.method for arm in plain if (arm.sampler, arm.epochs) == ("random", "all")} == set(METHODS)
    sampled = [(arm.sampler, arm.method) for arm in plain if arm.epochs == "sampled"]
    assert sampled == [("random", "none"), ("random", "pruner"), ("random", "ours"), ("tpe", "none")]
    more = [arm for arm in full if arm not in plain]
    assert {arm.sampler for arm in more} == {"random", "tpe", "nsga2", "gp"}
    assert {arm.workers for arm in more} == {1, 4}
    for arm in full:
        if arm.method != "none":
            assert Arm(arm.sampler, arm.epochs, "none", arm.workers) in full


def test_a_seed_that_never_gets_there_counts_as_the_budget(table):
    best = table.best
    found = made(table, [[(10, 0.5 * best), (30, 0.96 * best)], [(20, 0.94 * best)], [(7, best)]])
    assert comparison.epochs_to(found, "random/all/none", 0.95).tolist() == [30, 100, 7]
    assert comparison.reach(found, "random/all/none", 0.95) == pytest.approx(2 / 3)
    assert comparison.finals(found, "random/all/none") == pytest.approx([0.96, 0.94, 1.0])


def test_the_speedup_is_a_ratio_of_medians_with_an_interval_around_it():
    base, ours = np.array([100.0, 200, 300, 400, 500]), np.array([50.0, 100, 100, 100, 250])
    found = comparison.speedup(base, ours)
    assert found["ratio"] == 3.0
    assert found["low"] < 3.0 < found["high"]
    assert found == comparison.speedup(base, ours)
    assert comparison.speedup(2 * ours, ours) == {"ratio": 2.0, "low": 2.0, "high": 2.0}  # paired: no spread


def test_the_paired_test_counts_and_tells_which_way():
    ours, other = np.linspace(0.9, 1.0, 12), np.linspace(0.9, 1.0, 12) - 0.01
    other[0] = ours[0]
    found = comparison.paired(ours, other)
    assert (found["wins"], found["ties"], found["losses"]) == (11, 1, 0)
    assert found["p"] < 0.01
    assert found["difference"] == pytest.approx(0.01)
    assert comparison.paired(other, ours)["losses"] == 11
    assert comparison.paired(ours, ours)["p"] == 1.0


def test_a_band_is_of_shares_at_the_epochs_asked_for(table):
    found = made(table, [[(10, 0.5 * table.best)], [(10, table.best)]])
    assert comparison.band(found, "random/all/none", [5, 10]).tolist() == [[0, 0.75], [0, 0.625], [0, 0.875]]


def test_the_summary_has_the_shape_that_json_promises(measured):
    found = comparison.summarise(measured)
    printed = json.loads(page.as_json({"made": found}))["tables"]["made"]
    assert set(printed["speedup"]) == {"0.95", "0.98"}
    assert {"ours", "none"} <= set(printed["reach_99"])
    assert set(printed["epochs_to_tpe_final"]) == {"ours", "tpe"}
    none, ours = (np.median(comparison.epochs_to(measured, f"random/all/{m}", 0.95)) for m in ("none", "ours"))
    assert printed["speedup"]["0.95"] == none / ours
    assert set(printed["arms"]) == set(measured.arms)
    assert printed["seeds"] == list(SEEDS)


def test_epochs_to_tpes_final_are_paired_by_seed(measured):
    finals = [run.best_trials[-1] for run in measured.tpe]
    found = comparison.summarise(measured)["epochs_to_tpe_final"]
    assert found["tpe"] == np.median([epochs for epochs, _ in finals])
    own = []
    for run, (_, volume) in zip(measured.arms["random/all/ours"], finals, strict=True):
        own.append(next((e for e, v in run.best_trials if v >= volume - 1e-12), measured.budget))
    assert found["ours"] == np.median(own)


def test_bars_are_met_exactly_where_the_figures_say_so(measured):
    found = comparison.summarise(measured)
    kinder = json.loads(json.dumps(found))
    for method, ratio in (("pruner", 1.5), ("ours", 2.0)):
        for share in ("0.95", "0.98"):
            kinder["arms"][f"random/all/{method}"]["speedup"][share]["ratio"] = ratio
    kinder["reach_99"] |= {"ours": 0.5, "none": 0.5}
    kinder["epochs_to_tpe_final"] = {"ours": 50, "tpe": 100}
    for rival in ("moasha", "hub"):
        kinder["paired"][rival] |= {"wins": 3, "losses": 1, "p": 0.04}
    assert all(bar.met for bar in comparison.bars(measured, kinder))
    harder = json.loads(json.dumps(kinder))
    for method in ("pruner", "ours"):
        for share in ("0.95", "0.98"):
            harder["arms"][f"random/all/{method}"]["speedup"][share]["ratio"] -= 0.01
    harder["reach_99"]["ours"] = 0.4
    harder["epochs_to_tpe_final"]["ours"] = 51
    harder["paired"]["moasha"]["p"] = 0.06
    harder["paired"]["hub"] |= {"wins": 1, "losses": 3}
    assert not any(bar.met for bar in comparison.bars(measured, harder))
    assert len(comparison.bars(measured, found)) == 8


def test_mnist_has_the_harder_bar(measured, table):
    found = comparison.summarise(measured)
    found["epochs_to_tpe_final"] = {"ours": 40, "tpe": 100}
    study = {**table.provenance["study_file"], "data": {"name": "mnist", "split_seed": 0}}
    other = Measured(
        table=tables.Table("m", {"study_file": study}, table.configs, table.accuracy, table.ratio, table.seconds),
        seeds=SEEDS, budget=40, arms={}, tpe=[],
    )  # fmt: skip
    assert [bar.met for bar in comparison.bars(measured, found) if "TPE" in bar.what] == [True]
    assert [bar.met for bar in comparison.bars(other, found) if "TPE" in bar.what] == [False]


def test_the_reports_show_bars_figure_and_facts(measured, tmp_path):
    found = {measured.table.name: comparison.summarise(measured)}
    words = ["kdsearch", "bench", "search", "--seeds", "4"]
    path = page.write([measured], found, tmp_path / "new", words, plotlyjs="cdn")
    text, marked = path.read_text(), path.with_suffix(".md").read_text()
    assert path.name == "bench-search.html"
    assert len(text) < 300_000
    assert text.count("<script") >= 1
    assert "cdn" in text
    assert "figure-1-data" in text
    for piece in (text, marked):
        assert "kdsearch bench search --seeds 4" in piece
        assert "split_seed 1" in piece
        assert "oracle" in piece
    judged = comparison.bars(measured, found["made"])
    verdict = f"{sum(bar.met for bar in judged)} of 8 bars are met."
    assert f'<p class="verdict">{verdict}</p>' in text
    assert f"**{verdict}**" in marked
    for word, mark in (("met", "good"), ("not met", "bad")):
        count = sum(bar.met == (word == "met") for bar in judged)
        assert text.count(f'<span class="mark {mark}">{word}</span>') == count
    for bar in judged:
        assert f"| {bar.figure} | {'met' if bar.met else 'not met'} |" in marked
    tables_in_it = [block for block in marked.split("\n\n") if block.startswith("|")]
    assert len(tables_in_it) == 6
    for block in tables_in_it:
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1


def test_the_figure_draws_the_medians(measured):
    drawn = page.figure(measured)
    named = {trace.name: trace for trace in drawn.data if trace.name}
    assert len(named) == len(page.DRAWN)
    ours = named["ParetoPruner and better proposals"]
    assert ours.x[-1] == measured.budget
    assert ours.y[-1] == pytest.approx(np.median(comparison.finals(measured, "random/all/ours")), abs=1e-4)


def test_a_figures_lines_stand_out_from_both_grounds():
    for _, title, colour, _ in page.DRAWN:
        for ground in ("#ffffff", "#14171b"):
            assert contrast(colour, ground) >= 3, title


def contrast(one, other):
    """Of two colours, as WCAG counts it."""

    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


def test_one_table_twice_is_refused():
    with pytest.raises(KdsearchError, match="different tables"):
        search.measure(["digits", "digits"], seeds=[0], budget=9, full=False, jobs=1, progress=Progress())


def test_threads_are_put_back_as_they_were(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with search._single_threaded():
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


@pytest.mark.slow
def test_processes_give_what_one_process_gives(table, tmp_path):
    path = tmp_path / "small.json.gz"
    rows = [
        {"config": config, "ratio": ratio, "accuracy": accuracy, "seconds": [1.0] * 9}
        for config, ratio, accuracy in zip(table.configs, table.ratio.tolist(), table.accuracy.tolist(), strict=True)
    ]
    tables.save(path, table.provenance, rows)
    told = Recorder()
    (found,) = search.measure([str(path)], seeds=[4, 3], budget=20, full=False, jobs=2, progress=told)
    assert found.seeds == (3, 4)
    for arm in arms(full=False):
        for run, seed in zip(found.arms[arm.key], found.seeds, strict=True):
            alone = replay(table, arm, seed=seed, budget=20)
            assert (run.seed, run.spent, run.best_trials) == (seed, alone.spent, alone.best_trials)
    assert [run.trials for run in found.tpe] == [100, 100]
    assert [total for _, total, _ in told.totals] == [len(told.lines)] == [1 + len(arms(full=False))]
    assert [number for number, _, _ in told.finished] == list(range(1, len(told.lines) + 1))
