"""What this machine has and lacks for kdsearch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from kdsearch import data, networks
from kdsearch.data import decoded, listing, pictures
from kdsearch.data.folder import locate
from kdsearch.distil import checkpoint, precision
from kdsearch.errors import DataError, StudyFileError
from kdsearch.measure import COSTS
from kdsearch.spec import DataSpec
from kdsearch.system import machine, plugins

PACKAGES = (
    "kdsearch", "torch", "torchvision", "optuna", "optuna-dashboard", "pandas", "plotly", "typer", "scikit-learn",
    "safetensors",
)  # fmt: skip
CLASSES = 12  # named in a line
SHOWN = 3  # files named in a line
FILES = {"mnist": ("MNIST/raw/train-images-idx3-ubyte",), "cifar10": ("cifar-10-batches-py", "cifar10/train")}
TWINS = {  # findings about images of the same pixels, in the order of `listing.twins`, and what to do about each
    "in train and in another part": "remove them from one part: what was trained on is known by heart",
    "under two classes": "remove the wrong one: no network can name both",
    "twice in a class": "remove one, if it is no other picture",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at, what is there, and what to do where it is missing: nothing where all is well."""

    what: str
    found: str
    remedy: str = ""


def examine(data_dir: str | None = None) -> list[Finding]:
    """Versions, device, data sets and folders of this machine; `data_dir` as in `machine.data_folder`."""
    folder = machine.data_folder(data_dir)
    return [
        *(_package(name, name) for name in PACKAGES),
        *(_package(name, "'kdsearch[int8]'") for name in ("onnxruntime", "torchao")),
        _device(),
        *_precision(),
        *(_dataset(name, folder) for name in data.BUILT_IN if name != "folder"),
        *_plugins(),
        *_kept(),
    ]


def examine_data(dataset: str, data_dir: str | None = None) -> list[Finding]:
    """What a data set holds; of `folder:PATH` every image is decoded, as a study would.

    Raises:
        DataError: the data set is unknown, or the folder has no path.
    """
    data.check_name(dataset)
    folder = machine.data_folder(data_dir)
    if dataset.partition(":")[0] != "folder":
        return [_dataset(dataset, folder)]
    root = locate(DataSpec(name=dataset), folder)
    try:
        return list(_folder(listing.list_folder(root)))
    except DataError as error:
        got = "" if error.got is None else f": {error.got}"
        return [Finding(f"data: {root}", f"refused: {error.rule}{got}", error.remedy)]


def _folder(layout: listing.Layout) -> Iterator[Finding]:
    """What the images of a folder are like, and what is wrong with them."""
    yield Finding("folder", layout.summary())
    for name, part in layout.parts.items():
        yield _classes(name, part)
    scale, notes = pictures.scale_of(layout.paths)
    looked = listing.look(layout.paths, scale)
    yield Finding("sizes", listing.sizes_in_words(looked))
    yield Finding("modes", "; ".join([listing.modes_in_words(looked), *notes]))
    broken = [f"{each.path.relative_to(layout.root)}: {each.reason}" for each in looked if each.reason]
    yield Finding("unreadable", _some(broken), "replace or remove them: a study refuses them" if broken else "")
    yield Finding("skipped", *_skipped(layout))
    for (what, remedy), groups in zip(TWINS.items(), listing.twins(layout, looked), strict=True):
        found = _some([" = ".join(str(path.relative_to(layout.root)) for path in group) for group in groups])
        yield Finding(what, found, remedy if groups else "")


def _classes(name: str, part: listing.Listing) -> Finding:
    """The classes of a part with their numbers of images, the commonest first."""
    counts = sorted(((count, label) for label, count in part.counts.items()), reverse=True)
    words = [f"{label} {count:,}" for count, label in counts[:CLASSES]]
    more = f", ... {counts[-1][1]} {counts[-1][0]:,}" if len(counts) > CLASSES else ""
    return Finding(f"{name} classes", f"{len(counts)}: {', '.join(words)}{more}")


def _skipped(layout: listing.Layout) -> tuple[str, str]:
    """What a study would not use and why, and what to do about it."""
    by_reason: dict[str, list[Path]] = {}
    for path, reason in layout.skipped:
        by_reason.setdefault(reason, []).append(path)
    words = [
        f"{len(paths):,} {reason} ({', '.join(str(path.relative_to(layout.root)) for path in paths[:SHOWN])}"
        f"{', ...' * (len(paths) > SHOWN)})"
        for reason, paths in by_reason.items()
    ]
    return "; ".join(words) or "nothing", "see that nothing is missing" if set(by_reason) - {listing.HIDDEN} else ""


def _some(words: list[str]) -> str:
    if not words:
        return "none"
    return f"{len(words):,}: {'; '.join(words[:SHOWN])}{'; ...' * (len(words) > SHOWN)}"


def _package(name: str, wanted: str) -> Finding:
    version = machine.package_version(name)
    return Finding(name, version, f"pip install {wanted}" if version == "not installed" else "")


def _device() -> Finding:
    cpu = f"cpu: {machine.cpu_model()}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        return Finding("device", f"{cpu}; no CUDA device", "minutes for digits and MNIST, hours for CIFAR-10")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("device", "; ".join([*names, cpu]))


def _precision() -> Iterator[Finding]:
    """The CPU's bfloat16 instructions, and what timed steps of each kind of network chose between it and float32."""
    instructions = ", ".join(machine.bf16_instructions()) or "no instructions: convolutions are trained in float32"
    yield Finding("bfloat16 on the CPU", instructions)
    for kind, timed in precision.kept().items():
        yield Finding(f"precision: {kind}", f"{timed['precision']}: {precision.in_words(timed)}")


def _plugins() -> Iterator[Finding]:
    """What other packages offer; each is loaded, and one that is broken or not used is named."""
    own = {"students": networks.STUDENTS, "teachers": networks.TEACHERS, "datasets": data.BUILT_IN, "costs": COSTS}
    for kind, ours in own.items():
        for plugin in plugins.offered(kind):
            what, found, remedy = f"{plugins.KINDS[kind]}: {plugin.name}", f"from {plugin.origin}", ""
            if plugin.name in ours:
                remedy = "is not used: kdsearch has one of that name"
            else:
                try:
                    plugins.load(plugin)
                except StudyFileError as error:
                    found, remedy = f"{found}, broken", str(error)
            yield Finding(what, found, remedy)


def _kept() -> Iterator[Finding]:
    """What lies in the cache folder."""
    teachers = machine.cache_folder() / "teachers"
    yield Finding("teachers kept", f"{len([*teachers.glob('*.safetensors')])} in {teachers}")
    sizes = [path.stat().st_size for path in checkpoint.folder().glob("*.safetensors")]
    yield Finding("checkpoints kept", f"{len(sizes)}, {sum(sizes) / 1e9:.1f} GB, in {checkpoint.folder()}")
    sizes = [size for _, size, _ in decoded.kept()]
    files = f"{len(sizes)} {'file' if len(sizes) == 1 else 'files'}"
    size = f"{sum(sizes) / 1e9:.1f} of at most {decoded.bound() / 1e9:.4g} GB ({decoded.LIMIT})"
    yield Finding("decoded images kept", f"{files}, {size}, in {decoded.folder()}")


def _dataset(name: str, folder: Path) -> Finding:
    if name not in FILES:
        return Finding(f"data: {name}", "embedded")
    for path in (folder / file for file in FILES[name]):
        if path.exists():
            return Finding(f"data: {name}", str(path))
    remedy = "is downloaded on first use, or name its folder with --data-dir or KDSEARCH_DATA_DIR"
    return Finding(f"data: {name}", f"not in {folder}", remedy)
