"""The options of a search, each with its name, type, default and help: the command line is made from them.

`Options` may change from run to run, and are stored with the study for workers that join it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdsearch.errors import DefinitionError
from kdsearch.records import StudyAttr

if TYPE_CHECKING:
    from optuna import Study

    from kdsearch.search.budget import Budget

CANDIDATES = 240  # drawn for a trial


def option(default: Any, help: str, *, least: float | None = None, env: str | None = None) -> Any:  # noqa: A002
    """Return a dataclass field with what the command line says of it: its least number, a variable that may hold it."""
    return dataclasses.field(default=default, metadata={"help": help, "least": least, "env": env})


@dataclass(frozen=True, kw_only=True)
class Source:
    """A study file's data, and the device they go to."""

    dataset: str | None = option(None, "digits, mnist, cifar10 or folder:PATH (default: digits).")
    study: Path | None = option(None, "A study file (TOML; default: the data set's).")  # noqa: RUF009
    data_dir: str | None = option(
        None, "Where data sets lie or are downloaded to (default: cache folder).", env="KDSEARCH_DATA_DIR"
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    train_size: int | None = option(None, "Train on so many images only.", least=1)


@dataclass(frozen=True, kw_only=True)
class Request(Source):
    """What is searched, and where: what `plan.make_plan` needs."""

    storage: str | None = option(
        None,
        "An Optuna storage URL, journal:PATH or grpc://HOST:PORT (default: sqlite:///kdsearch.db).",
        env="OPTUNA_STORAGE",
    )
    name: str | None = option(None, "Name of the study (default: the data set's).")
    cost: str = option(
        "latency", "latency (measured in torch), onnx (in ONNX Runtime) or flops (counted: deterministic)."
    )
    max_epochs: int | None = option(None, "No training is longer than this.", least=1)
    precision: str = option(
        "auto", "Convolutions train in float32, bfloat16 or auto: the study's own, in a new one the faster."
    )


@dataclass(frozen=True, kw_only=True)
class Options:
    """How it is searched: keys of `samplers.SAMPLERS` and `study.PRUNERS`, and the limits of `Budget`."""

    trials: int | None = option(
        None, "Finished trials the study ends with (default: 50, none beside another limit).", least=1
    )
    epochs_budget: int | None = option(None, "Epochs of training over all trials that the study ends with.", least=1)
    timeout: float | None = option(None, "Seconds after which no trial starts and the running one is cut.", least=0)
    sampler: str = option("tpe", "tpe, nsga2, random or gp.")
    candidates: int = option(
        CANDIDATES, "Drawn for each trial, the most promising is trained; 1: the sampler's own draw.", least=1
    )
    pruner: str = option("pareto", "pareto or none.")
    resume_trials: bool = option(
        False,
        "A trial that the pruner ended may go on from its checkpoint where that promises twice as much as a new one.",
    )
    seed: int | None = option(None, "Makes trials repeatable, with --cost flops the study.")

    def budget(self) -> Budget:
        """Return the study's budget; a KdsearchError if a limit is too low."""
        from kdsearch.search.budget import Budget

        return Budget(trials=self.trials, epochs=self.epochs_budget, seconds=self.timeout)

    def store(self, study: Study) -> None:
        study.set_user_attr(StudyAttr.OPTIONS, dataclasses.asdict(self))


def stored(study: Study) -> Options:
    """Return the options of the run that opened a study last.

    Raises:
        DefinitionError: none are stored, or those of another version of kdsearch.
    """
    found = study.user_attrs.get(StudyAttr.OPTIONS)
    if found is None:
        raise DefinitionError(
            "a study must have been started before workers join it",
            got=study.study_name,
            remedy="run `kdsearch optimize` with this --storage and --name first",
        )
    names = {field.name for field in dataclasses.fields(Options)}
    if not isinstance(found, dict) or not found.keys() <= names:
        raise DefinitionError(
            "a study's options must be ones that this version of kdsearch knows",
            got=study.study_name,
            remedy="join it with the version that started it",
        )
    return Options(**found)
