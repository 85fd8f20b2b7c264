"""`kdsearch worker`, and how commands that run trials end when they are told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from kdsearch.cli.options import DataDir, Device, Storage
from kdsearch.storage import DEFAULT_STORAGE

if TYPE_CHECKING:
    from kdsearch.cli.progress import ConsoleProgress


@contextmanager
def ending(progress: ConsoleProgress, kept: str = "finished trials") -> Iterator[None]:
    """Runs its body until it ends or SIGTERM or Ctrl-C arrives; then trials are handed back and the exit code says so.

    Raises:
        typer.Exit: with 143 or 130.
    """
    from kdsearch.system import signals

    try:
        with signals.handled():
            yield
    except KeyboardInterrupt:
        progress.warning(f"interrupted: {kept} are kept; the same command goes on")
        number = signals.received()
        raise typer.Exit(130 if number is None else 128 + number) from None


def worker(
    name: Annotated[str, typer.Option(help="Name of a study that `kdsearch optimize` has started.")],
    storage: Storage = DEFAULT_STORAGE,
    data_dir: DataDir = None,
    device: Device = "auto",
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which it begins no trial [default: the study's].")
    ] = None,
    supervisor: Annotated[int | None, typer.Option(hidden=True, help="The process with which it ends.")] = None,
) -> None:
    """Join a study from any machine that reaches its storage, and run trials until it is done."""
    from kdsearch.cli.progress import ConsoleProgress
    from kdsearch.search.workers.joining import join
    from kdsearch.system import signals

    publish = None
    if supervisor is None:  # which keeps the live view itself, and whose workers need not import what draws it
        from kdsearch.reporting.dashboard.publish import Page

        publish = Page(storage)
    with ConsoleProgress() as progress, ending(progress), signals.tied_to(supervisor):
        join(storage, name, data_dir=data_dir, device=device, timeout=timeout, progress=progress, publish=publish)
