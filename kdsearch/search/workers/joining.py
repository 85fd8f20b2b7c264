"""A worker that joins a study with nothing but its storage and its name."""

from __future__ import annotations

import dataclasses

from optuna import Study

from kdsearch import storage
from kdsearch.distil import precision, teacher
from kdsearch.records import Progress
from kdsearch.search import failures, options
from kdsearch.search.definition import check_definition
from kdsearch.search.plan import rejoin
from kdsearch.search.study import PRUNERS, check_options, warn_of_slowness, work
from kdsearch.search.workers import live_view
from kdsearch.storage import retrying


@failures.naming_broken_devices()
def join(
    url: str,
    name: str,
    *,
    data_dir: str | None = None,
    device: str = "auto",
    timeout: float | None = None,
    progress: Progress | None = None,
    publish: live_view.Publish | None = None,
) -> Study:
    """Runs trials of a study until it is done; what `kdsearch worker` does.

    Args:
        url: of a storage that this machine reaches.
        name: of a study that `kdsearch optimize` has started there.
        data_dir: where data sets lie on this machine.
        device: as of `study.optimize`.
        timeout: seconds after which this worker begins no trial; None: the study's.
        progress: told of what happens; None: nobody is.
        publish: writes the live view, should this worker be the one that keeps it; None: it never is.

    Raises:
        KdsearchError: there is no such study, or this machine's data, teacher or device are not its own.
    """
    progress = progress or Progress()
    study = storage.load_study(retrying.patient(storage.open_storage(url), progress.warning), name)
    found = options.stored(study)
    check_options(found)  # a storage is anybody's
    if timeout is not None:
        found = dataclasses.replace(found, timeout=timeout)
    plan = rejoin(study, url=url, data_dir=data_dir, device=device)
    check_definition(study, plan)
    budget = found.budget()
    if not budget.over(study.get_trials(deepcopy=False)):
        study.pruner = PRUNERS[found.pruner](plan)
        warn_of_slowness(plan, budget, progress)
        for note in precision.warnings(plan.precision, plan.device):
            progress.warning(note)
        known = teacher.obtain(plan.spec.teacher, plan.split, precision=plan.precision.name, progress=progress)
        try:
            with live_view.kept(study, publish, progress) as between:
                work(study, plan, known, found, budget=budget, progress=progress, between=between)
        finally:
            storage.fold(study._storage)
    return study
