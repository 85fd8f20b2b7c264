"""Repeated timing of the front's students, between trials and at the study's end, until each has three sittings.

A timing depends on its sitting: on other load of the machine and on memory placement. So the sittings of a student are
apart in time, with trials or timings of others in between. They do not use fresh processes, each of which would import
torch and load the data for seconds; with several workers there are several processes anyway.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from optuna import Study
from optuna.trial import FrozenTrial

from kdsearch import sittings
from kdsearch.records import Attr, Progress
from kdsearch.search.budget import Clock
from kdsearch.search.workshop import Workshop, timing_key
from kdsearch.sittings import Sitting
from kdsearch.spec import StudySpec
from kdsearch.system import signals

SHARE = 0.05  # of a process's time that sittings between trials may take
APART = 3.0  # minimum seconds between the starts of two sittings of a student,
APART_SHARE, MOST_APART = 0.05, 60.0  # and at least this share of the run so far, because a machine's load drifts

Lacking = dict[str, tuple[FrozenTrial, Sequence[Sitting]]]
"""By timing key: a trial of an architecture and its sittings."""


class Retimer:
    """Times the front's students again, one worker at a time per device.

    The study's trials hold the first sittings, its attributes the later ones.
    """

    def __init__(self, study: Study, workshop: Workshop, clock: Clock, progress: Progress) -> None:
        self._study, self._workshop, self._clock, self._progress = study, workshop, clock, progress
        self._begin, self._spent = time.monotonic(), 0.0
        self._failed: set[str] = set()

    def between(self) -> None:
        """Take one sitting between two trials, unless sittings have taken more than `SHARE` of the time."""
        if self._spent > SHARE * (time.monotonic() - self._begin):
            return
        todo = self._lacking()
        key = next(iter(todo), None)
        if key is not None and self._wait(todo[key][1]) <= 0:
            self._sit(key, *todo[key])

    def finish(self) -> None:
        """Take sittings until each front member has `sittings.LEAST` of them."""
        while todo := self._lacking():
            key, (trial, before) = next(iter(todo.items()))
            if (wait := self._wait(before)) > 0:
                signals.pause(wait)
                continue  # another worker may have timed it meanwhile
            self._sit(key, trial, before)

    def _lacking(self) -> Lacking:
        shop = self._workshop
        found = lacking(self._study, shop.spec, shop.cost, shop.device)
        return {key: each for key, each in found.items() if key not in self._failed}

    def _wait(self, before: Sequence[Sitting]) -> float:
        """Return the seconds until a student may have its next sitting."""
        apart = max(APART, min(MOST_APART, APART_SHARE * (time.monotonic() - self._begin)))
        return min(apart, _last(before) + apart - time.time())

    def _sit(self, key: str, trial: FrozenTrial, before: Sequence[Sitting]) -> None:
        begin, workshop = time.monotonic(), self._workshop
        try:
            student = workshop.build(trial.user_attrs[Attr.CONFIG], trial.user_attrs[Attr.SEED])
            with self._clock.spent_on("timing"), workshop.quiet():
                # one sitting at a time on a device: another worker may have timed it during the wait
                if 1 + len(sittings.later(self._study.user_attrs, key)) == len(before):
                    timing = workshop.measure(student)
                    with signals.shield():
                        sittings.add(self._study, key, timing)
        except (RuntimeError, ValueError) as error:  # a failed timing must not cost the trained study
            self._failed.add(key)
            self._progress.warning(f"trial {trial.number} could not be timed again: {' '.join(str(error).split())}")
        self._spent += time.monotonic() - begin


def lacking(study: Study, spec: StudySpec, cost: str, device: torch.device) -> Lacking:
    """Return the front's students that this machine is to time again, fewest sittings first, then the oldest.

    Architectures timed on another device or torch than this machine's are left out.
    """
    if cost == "flops":
        return {}
    found = sittings.lacking(study.get_trials(deepcopy=False), study.user_attrs)
    ours = {
        key: each
        for key, each in found.items()
        if key == timing_key(each[0].user_attrs[Attr.CONFIG], spec, cost, device)
    }
    return dict(sorted(ours.items(), key=lambda item: (len(item[1][1]), _last(item[1][1]))))


def _last(before: Sequence[Sitting]) -> float:
    return max(sitting.at for sitting in before)
