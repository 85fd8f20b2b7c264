"""What this machine has and lacks for kdsearch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from kdsearch import data, networks
from kdsearch.data import decoded
from kdsearch.distil import checkpoint
from kdsearch.errors import StudyFileError
from kdsearch.measure import COSTS
from kdsearch.system import machine, plugins

PACKAGES = (
    "kdsearch",
    "torch",
    "torchvision",
    "optuna",
    "optuna-dashboard",
    "pandas",
    "plotly",
    "typer",
    "scikit-learn",
    "safetensors",
)
EXTRAS = {"int8": ("onnxruntime", "torchao")}  # fmt: skip
FILES = {"mnist": ("MNIST/raw/train-images-idx3-ubyte",), "cifar10": ("cifar-10-batches-py", "cifar10/train")}


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: its name.
        found: what is there.
        remedy: what to do where it is missing; empty where all is well.
    """

    what: str
    found: str
    remedy: str = ""


def examine(data_dir: str | None = None) -> list[Finding]:
    """Versions, device, data sets and folders of this machine.

    Args:
        data_dir: where data sets lie; see `runtime.data_folder`.
    """
    findings = [_package(name, name) for name in PACKAGES]
    findings += [_package(name, f"'kdsearch[{extra}]'") for extra, names in EXTRAS.items() for name in names]
    findings.append(_device())
    folder = machine.data_folder(data_dir)
    findings += [_dataset(name, folder) for name in data.BUILT_IN if name != "folder"]
    findings += _plugins()
    teachers = machine.cache_folder() / "teachers"
    kept = len(list(teachers.glob("*.safetensors"))) if teachers.is_dir() else 0
    findings.append(Finding("teachers kept", f"{kept} in {teachers}"))
    sizes = [path.stat().st_size for path in checkpoint.folder().glob("*.safetensors")]
    findings.append(Finding("checkpoints kept", f"{len(sizes)}, {sum(sizes) / 1e9:.1f} GB, in {checkpoint.folder()}"))
    images = decoded.kept()
    size = f"{images.size / 1e9:.1f} of at most {images.limit / 1e9:.4g} GB ({decoded.LIMIT})"
    files = f"{images.count} {'file' if images.count == 1 else 'files'}"
    findings.append(Finding("decoded images kept", f"{files}, {size}, in {images.place}"))
    return findings


def _package(name: str, wanted: str) -> Finding:
    version = machine.package_version(name)
    return Finding(name, version, f"pip install {wanted}" if version == "not installed" else "")


def _device() -> Finding:
    cpu = f"cpu: {machine.cpu_model()}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        return Finding("device", f"{cpu}; no CUDA device", "fine for digits and MNIST; CIFAR-10 wants a GPU")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("device", "; ".join([*names, cpu]))


def _plugins() -> list[Finding]:
    """What other packages offer; each is loaded, and one that is broken or not used is named."""
    own = {"students": networks.STUDENTS, "teachers": networks.TEACHERS, "datasets": data.BUILT_IN, "costs": COSTS}
    findings: list[Finding] = []
    for kind, ours in own.items():
        unused = {line.split(" is not used")[0] for line in plugins.hidden(kind, ours)}
        for plugin in plugins.offered(kind):
            what = f"{plugins.KINDS[kind]}: {plugin.name}"
            if f"the {plugins.KINDS[kind]} {plugin.name} of {plugin.origin}" in unused:
                remedy = "is not used: kdsearch has one of that name"
                findings.append(Finding(what, f"from {plugin.origin}", remedy))
                continue
            try:
                plugins.load(plugin)
                findings.append(Finding(what, f"from {plugin.origin}"))
            except StudyFileError as error:
                findings.append(Finding(what, f"from {plugin.origin}, broken", str(error)))
    return findings


def _dataset(name: str, folder: Path) -> Finding:
    if name not in FILES:
        return Finding(f"data: {name}", "embedded")
    for file in FILES[name]:
        if (folder / file).exists():
            return Finding(f"data: {name}", str(folder / file))
    remedy = "is downloaded on first use, or name its folder with --data-dir or KDSEARCH_DATA_DIR"
    return Finding(f"data: {name}", f"not in {folder}", remedy)
