"""Failed trials: what is stored of them, memory freed after them, and configurations that are not tried again."""

from __future__ import annotations

import gc
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from kdsearch import storage
from kdsearch.errors import KdsearchError, RunError, TrialError
from kdsearch.records import HANDED_BACK, Attr, Config, architecture
from kdsearch.search.space import MAX_FAILURES

MEMORY, LOSS = "memory", "loss"  # what fails a trial by its own configuration
# in a RuntimeError: of CUDA, the CPU, cuBLAS and cuDNN
FULL = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "ALLOCATION_FAILED")
# what CUDA says once and, to this process, at every call from then on (cudaGetErrorString)
STICKY = (
    "illegal memory access",
    "device-side assert",
    "ECC error",
    "unspecified launch failure",
    "misaligned address",
    "illegal instruction",
    "invalid program counter",
    "hardware stack error",
    "launch timed out",
    "busy or unavailable",
    "no CUDA-capable device",
)
MISSING = "--device must exist"  # how a device that is gone is refused
BROKEN = "the GPU must go on working"
IN_A_ROW = 5  # failed trials that end a run
OWN_IN_A_ROW = 50  # as many where each failed by its own configuration and other trials of the study did not fail
LONGEST = 200  # characters of somebody else's message


class RefusedError(TrialError):
    """Raised for a configuration that has failed too often, `by` `MEMORY` or `LOSS`, to be trained again."""

    def __init__(self, rule: str, *, by: str) -> None:
        self.by = by
        super().__init__(rule)


class BrokenDeviceError(RunError):
    """The GPU answers nothing any more, to this process at least: it ends, and others go on."""


def is_of_device(line: str) -> bool:
    """Whether the last line of a process says that its GPU does not work."""
    return any(words in line for words in (BROKEN, MISSING)) or _is_sticky(line)


def _is_sticky(text: str) -> bool:
    return "CUDA" in text and any(words in text for words in STICKY)


def broken(error: BaseException, device: torch.device | None = None) -> BrokenDeviceError | None:
    """Return the error that ends this process, in one line, if an error has left CUDA unusable for it; else None.

    Args:
        error: as it was caught; one that came of another is looked at with it.
        device: asked whether it still answers, for the first call that meets a failure may name it otherwise
            (CUBLAS_STATUS_EXECUTION_FAILED); None: the error's words decide.
    """
    for seen in _chain(error):
        if isinstance(seen, BrokenDeviceError):
            return seen
        if isinstance(seen, RuntimeError) and _is_sticky(str(seen)):
            return _broken(seen)
    if isinstance(error, RuntimeError) and device is not None and device.type == "cuda" and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            return _broken(error)
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _broken(error: BaseException) -> BrokenDeviceError:
    said = str(error).strip().partition("\n")[0][:LONGEST]
    return BrokenDeviceError(BROKEN, got=said, remedy="look at `nvidia-smi`, and run the same command again")


@contextmanager
def naming_broken_devices() -> Iterator[None]:
    """Run the body, outside of any trial; a GPU that fails in it is named in one line, a `BrokenDeviceError`."""
    try:
        yield
    except RuntimeError as error:
        if (named := broken(error)) is not None:
            raise named from error
        raise


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


def note(trial: Trial, error: Exception, device: torch.device) -> None:
    """Store why a trial failed, and then free what it held: what frees memory may fail, too.

    Raises:
        BrokenDeviceError: the device does not answer any more, so nothing is to be freed; nothing was stored.
    """
    ended = broken(error, device)
    if ended is not None:
        raise ended from error
    trial.set_user_attr(Attr.FAIL_REASON, reason(error))
    own = cause(error)
    if own is not None:
        trial.set_user_attr(Attr.FAILED_BY, own)
    release(error)


def release(error: BaseException) -> None:
    """Free the local variables of the frames in an error's traceback: a network, its gradients, a batch.

    A caught error keeps its traceback alive, and with it those variables.
    """
    for seen in _chain(error):
        traceback.clear_frames(seen.__traceback__)
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
    if by == MEMORY:
        config = architecture(config) | {"batch_size": config.get("batch_size")}
    plain: Config = json.loads(json.dumps(config))
    return plain


def is_exhausted(study: Study, config: Config) -> bool:
    """Return whether a configuration has failed so often that it is not proposed again."""
    return len(failed(study, config)) >= MAX_FAILURES


def refuse(trial: Trial, config: Config) -> None:
    """Refuse a configuration that has failed too often with a `RefusedError` that names the failed trials.

    An anchor's tries are counted when it is enqueued.
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
    """

    def __init__(self) -> None:
        self.count = 0  # failed trials since the last one that did not fail
        self._weight = 0

    def ends(self, study: Study, trial: FrozenTrial) -> bool:
        """Record a trial that ended; return whether the run has to end."""
        if trial.state != TrialState.FAIL:
            self.count = self._weight = 0
            return False
        own = Attr.FAILED_BY in trial.user_attrs and bool(
            study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        )
        self.count += 1
        self._weight += 1 if own else OWN_IN_A_ROW // IN_A_ROW
        return self._weight >= OWN_IN_A_ROW
