"""Artifacts of a study for optuna-dashboard: the learning curve and the model card of each member of its front."""

from __future__ import annotations

import hashlib
import html
import io
import json
import re
from pathlib import Path

import platformdirs
from optuna import Study
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from kdsearch.errors import KdsearchError
from kdsearch.reporting.collect import StudyData, collect
from kdsearch.reporting.figures.style import BLUE, GREY, padded
from kdsearch.reporting.pages.one_trial import card
from kdsearch.storage import file_of, masked
from kdsearch.system.files import write_text

PREFIX = "artifacts:"  # of Optuna's names for a study's artifacts
OURS = re.compile(r"trial-\d+-(card\.md|curve\.svg)")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 300, 52, 16, 34, 42  # pixels of a curve and its margins


def folder(url: str, given: Path | None = None) -> Path:
    """Return the folder of a storage's artifacts: as given, beside its file, or for a server in the user's data folder.

    Its name holds no password.
    """
    if given is not None:
        return given.expanduser()
    path = file_of(url)
    if path is not None:
        return path.with_name(f"{path.name}.artifacts")
    name = hashlib.blake2b(masked(url).encode(), digest_size=8).hexdigest()
    return Path(platformdirs.user_data_dir("kdsearch")) / "artifacts" / name


class Shelf:
    """Keeps a study's artifacts in step with its front: trials that leave the front lose theirs.

    The storage holds names and identities; the files lie where the dashboard runs, and are written again where a
    storage that several machines share names artifacts whose files this machine lacks. Their folder is created where
    it is missing.

    Raises:
        KdsearchError: the folder cannot be created.
    """

    def __init__(self, url: str, path: Path) -> None:
        self._url, self._path = url, path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KdsearchError(
                f"the folder of artifacts must be writable: {error.strerror}", got=path, remedy="give --artifacts DIR"
            ) from None
        self.store = FileSystemArtifactStore(str(path))

    def fill(self, study: Study) -> int:
        """Bring a study's artifacts up to date and return their number.

        Raises:
            KdsearchError: the study is not one of kdsearch, or the folder cannot be written.
        """
        data = collect(study, storage_url=self._url)
        wanted = {f"trial-{number}-{name}": draw(data, number) for number in data.front["number"]
                  for name, draw in (("card.md", card), ("curve.svg", curve))}  # fmt: skip
        for identity, name in _standing(study).items():
            path = self._path / identity
            if name in wanted:
                content = wanted.pop(name).encode(errors="backslashreplace")
                if not (path.is_file() and path.read_bytes() == content):
                    self.store.write(identity, io.BytesIO(content))
            elif OURS.fullmatch(name):
                # as the dashboard deletes an artifact
                study._storage.set_study_system_attr(study._study_id, PREFIX + identity, json.dumps(None))
                path.unlink(missing_ok=True)
        for name, text in wanted.items():
            beside = self._path / "new" / name  # the name is what the dashboard shows
            write_text(beside, text)
            kind = "text/markdown" if name.endswith(".md") else "image/svg+xml"
            upload_artifact(artifact_store=self.store, file_path=str(beside), study_or_trial=study, mimetype=kind)
            beside.unlink()
        return 2 * len(data.front)


def _standing(study: Study) -> dict[str, str]:
    """Return the file names of a study's artifacts by identity, without those deleted in the dashboard."""
    return {
        key.removeprefix(PREFIX): str(meta.get("filename"))
        for key, value in study._storage.get_study_system_attrs(study._study_id).items()
        if key.startswith(PREFIX) and (meta := json.loads(value)) is not None
    }


def curve(data: StudyData, number: int) -> str:
    """Draw a trial's learning curve as a self-contained SVG picture; without a curve the axes are empty."""
    points = data.curves[data.curves["trial"] == number]
    epochs, percents = [*points["epoch"]], [100 * value for value in points["accuracy"]]
    low, high = padded(min(percents), max(percents)) if percents else (0.0, 100.0)
    longest = max([*epochs, 2])

    def place(epoch: float, percent: float) -> tuple[float, float]:
        x = LEFT + (epoch - 1) / (longest - 1) * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(TOP + (high - percent) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    at = [place(*point) for point in zip(epochs, percents, strict=True)]
    title = f"trial {number} of {data.name}: validation accuracy, %, by epoch"
    body = [_text(LEFT, 20, title if len(title) < 64 else title[:61] + "...", "start")]
    for level in (low, (low + high) / 2, high):
        y = place(1, level)[1]
        body.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="{GREY}" stroke-opacity="0.4"/>')
        body.append(_text(LEFT - 6, y + 4, f"{level:.1f}", "end"))
    body += [_text(place(epoch, low)[0], HEIGHT - 20, str(epoch), "middle") for epoch in sorted({1, longest})]
    pairs = " ".join(f"{x},{y}" for x, y in at)
    body.append(f'<polyline fill="none" stroke="{BLUE}" stroke-width="2" points="{pairs}"/>')
    body += [f'<circle cx="{x}" cy="{y}" r="3" fill="{BLUE}"/>' for x, y in at]
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif">{ground}{"".join(body)}</svg>\n'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    legal = re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd]", "�", text)  # characters that XML allows
    return f'<text x="{x}" y="{y}" font-size="12" fill="#3c424a" text-anchor="{anchor}">{html.escape(legal)}</text>'
