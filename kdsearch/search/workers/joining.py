"""A worker that joins a study by its storage and name alone."""

from __future__ import annotations

import dataclasses

from optuna import Study

from kdsearch import storage
from kdsearch.distil import precision
from kdsearch.records import Progress
from kdsearch.search import failures, run_options
from kdsearch.search.definition import check_definition
from kdsearch.search.plan import rejoin
from kdsearch.search.study import PRUNERS, check_options, warn_of_slowness, work
from kdsearch.search.workers import live_view
from kdsearch.search.workshop import Workshop
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
    """Run trials of a study until it is done, as `kdsearch worker` does.

    Args:
        url: of a storage that this machine can reach.
        name: of a study that `kdsearch optimize` has started there.
        data_dir: folder of data sets on this machine.
        device: see `study.optimize`.
        timeout: seconds after which this worker begins no trial; None: the study's.
        progress: receives the events; None: they are ignored.
        publish: writes the live view, while this worker holds its lease; None: this worker never does.

    Raises:
        KdsearchError: there is no such study, or this machine's data, teacher or device are not those of the study.
    """
    progress = progress or Progress()
    study = storage.load_study(retrying.patient(storage.open_storage(url), progress.warning), name)
    found = run_options.stored(study)
    check_options(found)  # anyone may write to a storage
    if timeout is not None:
        found = dataclasses.replace(found, timeout=timeout)
    plan = rejoin(study, url=url, data_dir=data_dir, device=device)
    check_definition(study, plan)
    budget = found.budget()
    if not budget.over(study.get_trials(deepcopy=False)):
        study.pruner = PRUNERS[found.pruner](plan)
        warn_of_slowness(plan, progress)
        for note in precision.warnings(plan.precision, plan.device):
            progress.warning(note)
        workshop = Workshop.open(plan, progress)
        try:
            with live_view.kept(study, publish, progress) as between:
                work(study, plan, workshop, found, budget=budget, progress=progress, between=between)
        finally:
            storage.fold(study._storage)
    return study
