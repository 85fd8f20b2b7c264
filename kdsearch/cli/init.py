"""`kdsearch init`: a study file to edit."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from kdsearch.errors import KdsearchError

SEED = "seed = 0\n"


def init(
    file: Annotated[Path, typer.Argument(help="The study file to write.")] = Path("study.toml"),
    dataset: Annotated[str, typer.Option(help="Whose shipped study file to begin with.")] = "digits",
    teacher: Annotated[
        str | None,
        typer.Option(help="A function that builds your teacher, such as torchvision.models:resnet18."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented study file to edit, for `kdsearch optimize --study FILE`."""
    from kdsearch import spec
    from kdsearch.system.files import write_whole

    if file.exists() and not force:
        raise KdsearchError("the file must not exist yet", got=file, remedy="give another name, or --force")
    text = spec.shipped(dataset).read_text(encoding="utf-8")
    if dataset.startswith("folder:"):
        text = text.replace('name = "folder"', f"name = {json.dumps(dataset)}")
    if teacher is not None:
        text = _with_teacher(text, teacher, dataset)
    write_whole(file, lambda beside: beside.write_text(text, encoding="utf-8"))
    print(f"{file}: edit it, then run `kdsearch optimize --study {shlex.quote(str(file))}`")


def _with_teacher(text: str, build: str, dataset: str) -> str:
    """A study file with the user's teacher in place of its family; num_classes where it is a torchvision model.

    Raises:
        KdsearchError: the function does not read as one, or a folder of images cannot be counted.
    """
    from kdsearch import spec

    before, header, rest = text.partition("[teacher]")
    _, _, rest = rest.partition(SEED)
    lines = [f"{header}                          # your own: a function that returns an nn.Module"]
    lines += [f"build = {json.dumps(build)}"]
    if build.startswith("torchvision.models:"):
        lines += [f"options = {{ num_classes = {_classes(dataset)} }}"]
    kept = [line for line in rest.splitlines(keepends=True) if not line.startswith(("# build", "# options"))]
    changed = f"{before}{chr(10).join(lines)}\n{SEED}{''.join(kept)}"
    spec.parse(changed, source="--teacher")
    return changed


def _classes(dataset: str) -> int:
    """How many classes a data set has: a folder's are counted."""
    kind, _, path = dataset.partition(":")
    if kind != "folder" or not path:
        return 10
    from kdsearch.data.listing import list_folder

    return len(list_folder(Path(path).expanduser()).train.classes)
