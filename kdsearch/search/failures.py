"""Failed trials: what is stored of them, memory freed after them, and configurations that are not tried again."""

from __future__ import annotations

import gc
import json
import traceback

import torch
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from kdsearch import storage
from kdsearch.errors import KdsearchError, TrialError
from kdsearch.records import HANDED_BACK, Attr, Config, architecture
from kdsearch.search.anchors import MAX_FAILURES

MEMORY, LOSS = "memory", "loss"  # causes that lie in a trial's own configuration
FULL = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # in a RuntimeError of CUDA, the CPU or cuBLAS
IN_A_ROW = 5  # failed trials that end a run
OWN_IN_A_ROW = 50  # the same if their configurations were the cause and other trials succeeded
LONGEST = 200  # characters kept of a message from another library


class RefusedError(TrialError):
    """Raised for a configuration that has failed too often to be trained again.

    Args:
        rule: the error's line.
        by: cause of the earlier failures, `MEMORY` or `LOSS`.
    """

    def __init__(self, rule: str, *, by: str) -> None:
        self.by = by
        super().__init__(rule)


def cause(error: BaseException) -> str | None:
    """Return `MEMORY` or `LOSS` if a trial failed because of its configuration, else None."""
    if isinstance(error, RefusedError):
        return error.by
    if isinstance(error, TrialError):
        return LOSS
    full = isinstance(error, RuntimeError) and any(word in str(error) for word in FULL)
    return MEMORY if full or isinstance(error, torch.OutOfMemoryError | MemoryError) else None


def reason(error: BaseException) -> str:
    """Return why a trial failed, in one line."""
    if isinstance(error, KdsearchError):
        return str(error)
    said = storage.trouble(error)
    if said is not None:
        return f"{HANDED_BACK}the storage failed: {said}"
    text = " ".join(str(error).split())
    short = text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " ..."
    if cause(error) == MEMORY:
        return f"a trial's memory must fit the device ({short}); its memory was freed"
    return f"{type(error).__name__}: {short}"


def note(trial: Trial, error: Exception) -> None:
    """Store why a trial failed, and free what it held."""
    said, own = reason(error), cause(error)
    release(error)
    trial.set_user_attr(Attr.FAIL_REASON, said)
    if own is not None:
        trial.set_user_attr(Attr.FAILED_BY, own)


def release(error: BaseException) -> None:
    """Free the local variables of the frames in an error's traceback: a network, its gradients, a batch.

    A caught error keeps its traceback alive, and with it those variables.
    """
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def failed(study: Study, config: Config) -> list[FrozenTrial]:
    """Return the trials that failed because of a configuration; killed or interrupted ones are left out.

    For memory, configurations of equal architecture and batch size are the same, as nothing else affects it. Anyone may
    write to a storage under our names: trials without a stored configuration are ignored.
    """
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        if isinstance(trial.user_attrs.get(Attr.CONFIG), dict)
        and (by := trial.user_attrs.get(Attr.FAILED_BY)) is not None
        and _decisive(trial.user_attrs[Attr.CONFIG], by) == _decisive(config, by)
    ]


def _decisive(config: Config, by: str) -> Config:
    """Return the part of a configuration that decides whether it fails."""
    if by == MEMORY:
        config = architecture(config) | {"batch_size": config.get("batch_size")}
    plain: Config = json.loads(json.dumps(config))
    return plain


def is_exhausted(study: Study, config: Config) -> bool:
    """Return whether a configuration has failed so often that it is not proposed again."""
    return len(failed(study, config)) >= MAX_FAILURES


def refuse(trial: Trial, config: Config) -> None:
    """Refuse a configuration that has failed too often; an anchor's tries are counted when it is enqueued.

    Raises:
        RefusedError: it has; the error names the failed trials.
    """
    tries = failed(trial.study, config)[:MAX_FAILURES]  # only the first ones were trained; later ones were refused
    if Attr.ANCHOR not in trial.user_attrs and len(tries) == MAX_FAILURES:
        numbers = ", ".join(str(other.number) for other in tries)
        last = tries[-1].user_attrs.get(Attr.FAIL_REASON)
        # memory only if all failed by it, since that also counts against other configurations of the same size
        by = MEMORY if all(other.user_attrs[Attr.FAILED_BY] == MEMORY for other in tries) else LOSS
        raise RefusedError(
            f"a configuration that failed {MAX_FAILURES} times must not be trained again (trials {numbers}: {last})",
            by=by,
        )


class Streak:
    """Counts failed trials in a row and decides whether they end the run.

    Five failures end it, because they probably share a cause. Failures caused by their configurations do not, if other
    trials of the study succeeded; then fifty do, so that the run ends at all.

    Attributes:
        count: failed trials since the last one that did not fail.
    """

    def __init__(self) -> None:
        self.count = 0
        self._weight = 0

    def ends(self, study: Study, trial: FrozenTrial) -> bool:
        """Record a trial that ended; return whether the run has to end."""
        if trial.state != TrialState.FAIL:
            self.count = self._weight = 0
            return False
        own = Attr.FAILED_BY in trial.user_attrs and _any_came_to_its_end(study)
        self.count += 1
        self._weight += 1 if own else OWN_IN_A_ROW // IN_A_ROW
        return self._weight >= OWN_IN_A_ROW


def _any_came_to_its_end(study: Study) -> bool:
    return bool(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))
