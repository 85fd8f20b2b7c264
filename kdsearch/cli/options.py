"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Storage = Annotated[
    str,
    typer.Option(
        envvar="OPTUNA_STORAGE", help="An Optuna storage URL, journal:PATH or grpc://HOST:PORT.", show_envvar=True
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the study [default: the only one in the storage].")]
DataDir = Annotated[
    str | None,
    typer.Option(envvar="KDSEARCH_DATA_DIR", help="Where data sets lie or are downloaded to [default: cache folder]."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[
    str,
    typer.Option(help="Convolutions train in float32, bfloat16 or auto: the study's own, in a new one the faster."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on stdout.")]
PlotlyJs = Annotated[str, typer.Option(help="inline (one offline page) or cdn (a small one).")]
ReportPath = Annotated[Path | None, typer.Option(help="Where the report goes [default: reports/NAME.html].")]
