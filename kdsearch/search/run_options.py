"""Options of a search that may change from run to run, stored with the study for workers that join it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from optuna import Study

from kdsearch.errors import DefinitionError
from kdsearch.records import StudyAttr
from kdsearch.search.budget import Budget
from kdsearch.search.sampling.proposals import CANDIDATES


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `kdsearch optimize`, beside the plan.

    Attributes:
        trials, epochs_budget, timeout: the limits of `Budget`.
        sampler: key of `samplers.SAMPLERS`.
        candidates: number drawn per trial.
        pruner: key of `study.PRUNERS`.
        seed: of the study, or None.
    """

    trials: int | None = None
    epochs_budget: int | None = None
    timeout: float | None = None
    sampler: str = "tpe"
    candidates: int = CANDIDATES
    pruner: str = "pareto"
    seed: int | None = None

    def budget(self) -> Budget:
        """Return the study's budget.

        Raises:
            KdsearchError: a limit is too low.
        """
        return Budget(trials=self.trials, epochs=self.epochs_budget, seconds=self.timeout)

    def store(self, study: Study) -> None:
        """Store the options with a study."""
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
