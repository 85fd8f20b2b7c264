from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.recording import Recorder

from kdsearch.errors import KdsearchError
from kdsearch.experiments.search_bench import comparison, page, tables
from kdsearch.experiments.search_bench import run as search
from kdsearch.experiments.search_bench.problems import FAMILIES, Family
from kdsearch.experiments.search_bench.replay import METHODS, Arm, Run, replay
from kdsearch.experiments.search_bench.run import Measured, arms
from kdsearch.records import Progress

SEEDS = (0, 1, 2)
COMPARED = [Arm("random", "all", method) for method in METHODS] + [Arm("tpe", "all", "none"), search.DEFAULT]


@pytest.fixture(scope="module")
def measured(table_of):
    found = []
    for number in range(3):
        curves = (np.array(table_of().accuracy) ** (1 + 0.1 * number)).tolist()
        table = table_of(curves, name=f"made-{number}")
        runs = {arm.key: [replay(table, arm, seed=seed, budget=40) for seed in SEEDS] for arm in COMPARED}
        found.append(Measured(problem=table, seeds=SEEDS, budget=40, arms=runs))
    return found


def made(table, steps, arm="random/all/none", budget=100):
    runs = [Run(Arm(*arm.split("/")), seed, best_trials=s, checkpoints=s) for seed, s in enumerate(steps)]
    return Measured(problem=table, seeds=tuple(range(len(steps))), budget=budget, arms={arm: runs})


def test_rules_and_proposals_are_crossed_in_full_and_what_ships_is_an_arm():
    plain, full = arms(full=False, sampled=True), arms(full=True, sampled=True)
    rivals = {arm.method for arm in search.RIVALS}
    assert {arm.method for arm in plain if arm.sampler == "random"} == set(METHODS) - {"resume"} - rivals
    assert Arm("tpe", "all", "resume") in full
    tpe = {arm.method for arm in plain if (arm.sampler, arm.epochs) == ("tpe", "all")}
    assert tpe == {*search.CHOICES} | rivals
    assert search.SHIPPED in plain
    assert search.SHIPPED not in arms(full=False, sampled=False)
    assert {arm.sampler for arm in full} == {"random", "tpe", "nsga2", "gp"}
    assert len({arm.key for arm in full}) == len(full)


def test_what_is_measured_may_fall_and_never_looks_ahead(table):
    best = table.best
    found = made(table, [[(10, 0.5 * best), (30, 0.96 * best), (60, 0.9 * best)], [(20, 0.94 * best)]])
    assert comparison.shares(found, "random/all/none") == pytest.approx(
        np.array([[0.5, 0.5, 0.96, 0.9], [0.0, 0.94, 0.94, 0.94]])
    )
    assert comparison.epochs_to(found, "random/all/none", 0.95).tolist() == [30, 100]
    assert comparison.band(found, "random/all/none", [5, 10])[0] == pytest.approx([0, 0.25])


def test_the_paired_test_counts_and_says_which_way():
    ours, other = np.linspace(0.9, 1.0, 12), np.linspace(0.9, 1.0, 12) - 0.01
    other[0] = ours[0]
    found = comparison.paired(ours, other)
    assert (found["wins"], found["ties"], found["losses"]) == (11, 1, 0)
    assert found["p"] < 0.01
    assert comparison.paired(other, ours)["losses"] == 11
    assert comparison.paired(ours, ours)["p"] == 1.0


def test_mean_ranks_are_over_tasks_with_an_interval():
    values = {"a": np.full((6, 4), 0.9), "b": np.full((6, 4), 0.8), "c": np.full((6, 4), 0.8)}
    values["b"][0] = 1.0
    found = comparison.mean_ranks(values)
    assert [entry["rank"] for entry in found["a"]] == pytest.approx([7 / 6] * 4)
    assert found["a"][0]["low"] <= 7 / 6 <= found["a"][0]["high"] < found["c"][0]["low"]
    assert found["c"][0]["rank"] == pytest.approx((5 * 2.5 + 3) / 6)


def test_every_pair_is_tested_with_the_task_as_the_unit(measured):
    found = comparison.summarise(measured)
    assert len(found["pairs"]) == len(COMPARED) * (len(COMPARED) - 1) / 2
    for pair in found["pairs"]:
        for test in pair["tests"]:
            assert test["wins"] + test["ties"] + test["losses"] == len(measured)
    alone = comparison.summarise(measured[:1])
    assert {pair["unit"] for pair in alone["pairs"]} == {"seeds"}
    printed = json.loads(json.dumps(found, allow_nan=False))
    assert set(printed["tasks"]) == {"made-0", "made-1", "made-2"}
    assert set(printed["ranks"]) == {arm.key for arm in COMPARED}


def test_bars_say_which_way_it_went(table):
    key = Arm("random", "all", "pruner").key, Arm("random", "all", "none").key

    def judged(better):
        arms = {k: made(table, [[(1, value * table.best)]] * 8, k).arms[k] for k, value in better.items()}
        for number, run in enumerate(arms[key[0]]):
            run.checkpoints = [(1, run.checkpoints[0][1] + 1e-6 * number)]
        (bar,) = comparison.bars([Measured(table, tuple(range(8)), 100, arms)])
        return bar

    assert judged({key[0]: 0.9, key[1]: 0.8}).met
    assert not judged({key[0]: 0.8, key[1]: 0.9}).met
    assert "0/0/8" in judged({key[0]: 0.8, key[1]: 0.9}).figure


def of_two(table, ours, theirs):
    """Two problems: by arm, the default and plain TPE, the shares of the best at which their replays end."""
    found = []
    for name, *shares in zip("ab", ours, theirs, strict=True):
        arms = {}
        for key, ends in zip((search.DEFAULT.key, comparison.TPE), shares, strict=True):
            arms |= made(table, [[(10, end * table.best / 2), (50, end * table.best)] for end in ends], key).arms
        found.append(Measured(dataclasses.replace(table, name=name), tuple(range(len(shares[0]))), 100, arms))
    return found


def test_a_task_on_which_the_default_ends_below_is_named_where_there_are_seeds_enough(table):
    high, low = np.linspace(0.8, 0.9, 8).tolist(), np.linspace(0.7, 0.75, 8).tolist()
    bar, soon = comparison.bars(of_two(table, [high, low], [low, high]))
    assert "worse on b (p = 0.0078, Holm 0.016)" in bar.figure
    assert not bar.met
    assert "never on 1 of 2" in soon.figure
    bar, _ = comparison.bars(of_two(table, [high, high], [low, low]))
    assert bar.figure.endswith("worse on none")
    assert bar.met
    bar, _ = comparison.bars(of_two(table, [high[:6], low[:6]], [low[:6], high[:6]]))
    assert "worse on" not in bar.figure  # p of six seeds is 0.03 at least: never significant among two


def test_how_soon_an_arm_is_where_another_one_ends(table):
    ours = made(table, [[(10, 0.2), (20, 0.5)], [(30, 0.4)], [(40, 0.6)]], search.DEFAULT.key).arms
    theirs = made(table, [[(60, 0.5)], [(90, 0.5)], [(20, 0.6)]], comparison.TPE).arms
    found = Measured(table, (0, 1, 2), 100, ours | theirs)
    assert comparison.sooner(found, search.DEFAULT.key, comparison.TPE).tolist() == [3.0, 0.0, 0.5]


def test_arms_are_chosen_by_name():
    every = arms(full=False, sampled=True)
    assert search.chosen(every, None) == every
    assert search.chosen(every, ["tpe/all/ours", "random/all/none"]) == [search.DEFAULT, Arm("random", "all", "none")]
    with pytest.raises(KdsearchError, match=r"--arms must name arms of every problem: random/all/none, .*got gp/all"):
        search.chosen(every, ["tpe/all/ours", "gp/all/none"])


def test_the_reports_show_ranks_pairs_bars_and_facts(measured, tmp_path):
    found = comparison.summarise(measured)
    path = page.write(measured, found, tmp_path / "new", ["kdsearch", "bench", "search"], plotlyjs="cdn")
    text, marked = path.read_text(), path.with_suffix(".md").read_text()
    judged = comparison.bars(measured)
    assert f"**{sum(bar.met for bar in judged)} of {len(judged)} bars are met.**" in marked
    for piece in (text, marked):
        assert "kdsearch bench search" in piece
        assert "Mean ranks" in piece
        assert "Every pair" in piece
        assert "made-2: best trials" in piece
    for block in (block for block in marked.split("\n\n") if block.startswith("|")):
        assert len({line.count("|") for line in block.strip().splitlines()}) == 1


def test_the_figure_draws_the_medians(measured):
    drawn = page.figure(measured[0])
    named = {trace.name: trace for trace in drawn.data if trace.name}
    ours = named["our proposals and ParetoPruner: the default"]
    assert ours.y[-1] == pytest.approx(np.median(comparison.shares(measured[0], search.DEFAULT.key)[:, -1]), abs=1e-4)


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


def test_names_stand_for_several_problems(tmp_path):
    space = {"hyperparameters": [{"name": "OpenML_task_id", "choices": ["a", "b", "c"]}]}
    (tmp_path / "config_space.json").write_text(json.dumps(space))
    assert search.expanded(["families"]) == [f"family:{name}" for name in FAMILIES]
    assert search.expanded([f"lcbench:{tmp_path}"]) == [f"lcbench:{tmp_path}:b"]
    assert search.expanded([f"lcbench-tuning:{tmp_path}"]) == [f"lcbench:{tmp_path}:a", f"lcbench:{tmp_path}:c"]
    assert search.expanded([f"lcbench:{tmp_path}:3945"]) == [f"lcbench:{tmp_path}:3945"]
    with pytest.raises(KdsearchError, match="lcbench:PATH must be a folder"):
        search.expanded(["lcbench:nowhere"])
    with pytest.raises(KdsearchError, match="a family must be one of"):
        search.problem("family:nobody")


@pytest.mark.slow
def test_processes_give_what_one_process_gives_and_what_is_kept_is_not_run_again(table, tmp_path, monkeypatch):
    path, kept = tmp_path / "small.json.gz", tmp_path / "cache" / "kept.jsonl"
    rows = [
        {"config": config, "ratio": ratio, "accuracy": accuracy, "seconds": [1.0] * 9}
        for config, ratio, accuracy in zip(table.configs, table.ratio.tolist(), table.accuracy.tolist(), strict=True)
    ]
    tables.save(path, table.provenance, rows)
    monkeypatch.setattr(search, "arms", lambda **options: [Arm("random", "all", "none"), search.DEFAULT])
    told = Recorder()
    options = {"seeds": [4, 3], "budget": 20, "full": False, "jobs": 2, "kept": kept}
    (found,) = search.measure([str(path)], progress=told, **options)
    assert found.seeds == (3, 4)
    for arm in (Arm("random", "all", "none"), search.DEFAULT):
        for run, seed in zip(found.arms[arm.key], found.seeds, strict=True):
            alone = replay(table, arm, seed=seed, budget=20)
            assert (run.seed, run.spent, run.checkpoints) == (seed, alone.spent, alone.checkpoints)
    assert [total for _, total, _ in told.totals] == [len(told.lines)] == [2]
    with kept.open("a") as file:
        file.write('{"key": "cut amid')
    monkeypatch.setattr(search, "ProcessPoolExecutor", NoPool)
    (again,) = search.measure([str(path)], progress=Progress(), **options)
    assert {key: [dataclasses.asdict(run) for run in runs] for key, runs in again.arms.items()} == {
        key: [dataclasses.asdict(run) for run in runs] for key, runs in found.arms.items()
    }


class NoPool:
    """In place of a pool, where nothing is to be run."""

    def __init__(self, *args, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_a_family_measures_what_it_says():
    family = Family("power-law")
    run = replay(family, Arm("random", "all", "none"), seed=0, budget=24 * 10)
    assert 0 < run.checkpoints[-1][1] < family.best


def test_results_are_kept_by_the_code_that_decides_them():
    root = Path(search.machine.__file__).parents[1]
    decided = [path for room in search.DECIDE for path in sorted((root / room).rglob("*.py")) or [root / room]]
    names = {path.relative_to(root).as_posix() for path in decided}
    assert {
        "pareto.py",
        "spec/dimensions.py",
        "system/machine.py",
        "pruning/pruner.py",
        "search/sampling/proposals.py",
        "experiments/search_bench/replay.py",
    } <= names
    arm = Arm("random", "all", "none")
    assert search.machine.sources_digest(*search.DECIDE) in search._key("family:power-law", arm, 0, 9)
    own = search.machine.sources_digest(*search.DECIDE_PEERS)
    assert own in search._key("family:power-law", search.PEERS["primo"], 0, 9)
    assert {"experiments/search_bench/peers.py", "experiments/search_bench/problems.py"} <= set(search.DECIDE_PEERS)


def test_results_of_a_table_are_kept_by_its_content(monkeypatch, tmp_path):
    arm = Arm("random", "all", "none")
    monkeypatch.setattr(search.tables, "FOLDER", tmp_path)
    file = tmp_path / "digits.json.gz"
    file.write_bytes(b"one")
    before = search._key("digits", arm, 0, 9)
    file.write_bytes(b"another")
    assert search._key("digits", arm, 0, 9) != before
