"""Make a table: train random configurations of a study to the end and store every epoch's accuracy."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import optuna
import torch

from kdsearch import networks
from kdsearch.errors import KdsearchError, TrialError
from kdsearch.experiments.search_bench import tables
from kdsearch.experiments.search_bench.tables import Row
from kdsearch.records import Config, Progress
from kdsearch.search import space
from kdsearch.search.plan import Plan, make_plan
from kdsearch.search.run_options import Request
from kdsearch.search.workshop import Workshop
from kdsearch.system import files, machine, signals

TOLD = 20  # architectures timed between two lines of progress
FRUITLESS, FRUITLESS_EACH = 200, 20  # draws in a row without a new configuration that end it, and more for each found
ACCURACY_DIGITS, SECONDS_DIGITS = 5, 4  # more would be noise and enlarge the file

_workshop: Workshop  # of a worker process


def configurations(plan: Plan, *, count: int, epochs: int, seed: int) -> list[Config]:
    """Return distinct configurations drawn at random from a study's space, all of them `epochs` long.

    Raises:
        KdsearchError: the space holds fewer, as far as many draws show.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize"] * 2, sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn: dict[str, Config] = {}
    fruitless = 0  # draws since the last new one
    while len(drawn) < count:
        if fruitless >= FRUITLESS + len(drawn) * FRUITLESS_EACH:
            raise KdsearchError(
                "--count must be at most the number of different configurations in the study's space",
                got=f"{count}; {len(drawn)} were found",
                remedy="lower it, or widen [space]",
            )
        config = space.draw(study.ask(), plan.spec) | {"epochs": epochs}
        new = drawn.setdefault(json.dumps(config, sort_keys=True), config) is config
        fruitless = 0 if new else fruitless + 1
    return list(drawn.values())


def _begin(asked: Request) -> None:
    """Make a worker's workshop with one thread: two such workers beat one with two threads on small networks."""
    global _workshop
    signals.end_with_parent()
    torch.set_num_threads(1)
    _workshop = Workshop.open(make_plan(asked))


def _row(index: int, config: Config, seed: int) -> tuple[int, Row]:
    own = machine.derive_seed("table", seed, index)
    student = _workshop.build(config, own)
    row: Row = {"config": config, "parameters": networks.parameters(student), "accuracy": [], "test": [], "seconds": []}
    try:
        with _workshop.gate.working():
            for record in _workshop.teach(student, config, own):
                row["accuracy"].append(round(record.accuracy, ACCURACY_DIGITS))
                row["test"].append(round(_workshop.glance(student, _workshop.split.test), ACCURACY_DIGITS))
                row["seconds"].append(round(record.seconds, SECONDS_DIGITS))
    except TrialError as error:
        row["failed"] = str(error)
    return index, row


class Partial:
    """Timings and finished rows in a file beside the table, from which an interrupted run continues.

    A finished table of the same options continues, too, with more configurations.
    """

    def __init__(self, out: Path, wanted: dict[str, Any]) -> None:
        self.path = out.with_name(out.name + ".partial")
        self.rows: dict[int, Row] = {}
        self.ratios: dict[str, dict[str, float]] = {}  # by `Workshop.timing_key`
        if out.is_file():
            table = tables.read(out)
            self._check({key: table["provenance"].get(key) for key in wanted}, wanted, out)
            self.rows = dict(enumerate(table["rows"]))
        self.least = len(self.rows)  # of the table to be written
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        if lines:
            self._check(json.loads(lines[0]), wanted, self.path)
        for line in lines[1:]:
            if line.endswith("}"):  # else the last line was cut while it was written
                found = json.loads(line)
                if "timed" in found:
                    self.ratios[found.pop("timed")] = found
                else:
                    self.rows[found.pop("index")] = found
        if any("test" not in row and "failed" not in row for row in self.rows.values()):
            raise KdsearchError(
                "a table that was begun must hold test accuracies to go on",
                got=self.path if lines else out,
                remedy="remove that file to start over, or give another --out",
            )
        files.check_folder(out.parent)
        written = [wanted, *({"timed": key, **ratio} for key, ratio in self.ratios.items()),
                   *({"index": index, **row} for index, row in self.rows.items())]  # fmt: skip
        self.path.write_text("".join(json.dumps(line) + "\n" for line in written), encoding="utf-8")

    @staticmethod
    def _check(made: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
        if made != wanted:
            raise KdsearchError(
                "a table that was begun must go on with the same options",
                got=path,
                remedy="remove that file to start over, or give another --out",
            )

    def add(self, index: int, row: Row) -> None:
        """Store a finished row."""
        self.rows[index] = row
        self._write({"index": index, **row})

    def time(self, workshop: Workshop, configs: list[Config], progress: Progress) -> None:
        """Measure each architecture once, in this process and before any worker starts."""
        for row in self.rows.values():
            self.ratios.setdefault(
                workshop.timing_key(row["config"]), {key: row[key] for key in ("ratio", "low", "high")}
            )
        missing = {workshop.timing_key(config): config for config in configs}
        missing = {key: config for key, config in missing.items() if key not in self.ratios}
        for number, (key, config) in enumerate(missing.items()):
            if number % TOLD == 0:
                progress.note(f"timing architectures against the teacher: {number} of {len(missing)}")
            timing = workshop.measure(workshop.build(config, 0))
            self.ratios[key] = {"ratio": timing.ratio, "low": timing.low, "high": timing.high}
            self._write({"timed": key, **self.ratios[key]})

    def _write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def tabulate(
    out: Path, asked: Request, *, count: int, epochs: int, workers: int, seed: int, progress: Progress
) -> Path:
    """Train random configurations of a study to their end and write their curves as a table.

    Args:
        out: the table's file, `NAME.json.gz`, which may be there with fewer rows; finished ones are kept in
            `NAME.json.gz.partial` until all are done.
        asked: the study.
        count, epochs: number of distinct configurations, and the length of each.
        workers: processes, of one CPU thread each.
        seed: of the configurations, and with their index of each training.
        progress: notified of rows.

    Raises:
        KdsearchError: as in `make_plan`; or the rows of an earlier run have other options.
    """
    plan = make_plan(asked)
    workshop = Workshop.open(plan, progress)
    wanted = {"study_file": plan.spec.model_dump(mode="json", exclude={"anchors"}), "epochs": epochs, "seed": seed}
    partial = Partial(out, wanted)
    configs = configurations(plan, count=count, epochs=epochs, seed=seed)
    partial.time(workshop, configs, progress)
    progress.study_started(len(partial.rows), count)
    missing = [(index, config) for index, config in enumerate(configs) if index not in partial.rows]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(asked,)) as pool:
        futures = [pool.submit(_row, index, config, seed) for index, config in missing]
        for future in as_completed(futures):
            index, row = future.result()
            partial.add(index, row | partial.ratios[workshop.timing_key(row["config"])])
            line = row.get("failed") or f"accuracy {row['accuracy'][-1]:.2%} at the end"
            progress.trial_finished(index, "FAIL" if "failed" in row else "COMPLETE", line, counted=True)
    provenance = wanted | {
        "teacher": dataclasses.asdict(workshop.teacher.facts),
        "images": {"train": len(plan.split.train), "validation": len(plan.split.validation)},
        "classes": len(plan.split.classes),
        "environment": machine.environment(plan.device) | {"precision": str(plan.precision)},
        "workers": workers,
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    tables.save(out, provenance, [partial.rows[index] for index in range(max(count, partial.least))])
    partial.path.unlink()
    return out
