"""Device, seeds and threads, and the environment (machine and versions) of a measurement."""

from __future__ import annotations

import gc
import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

import platformdirs
import torch

from kdsearch.errors import DeviceError

CPU = Path("/proc/cpuinfo")
# names there of bfloat16 instructions for convolutions and conversions: three of x86, two of Arm
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16")
# glibc's malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD, in that order
MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1, -2: 64 * 2**20}


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` stands for.

    Raises:
        DeviceError: the name is none of these, or the machine has no such device.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not there):
        return torch.device("cpu")
    if name in ("auto", "cuda"):
        name = "cuda:0"
    kind, _, number = name.partition(":")
    if kind != "cuda" or not number.isdigit():
        raise DeviceError("--device must be auto, cpu, cuda or cuda:N", got=name, remedy="choose one of these")
    if int(number) >= there:
        raise DeviceError(
            f"--device must exist: torch {torch.__version__} sees {there} CUDA devices here",
            got=name,
            remedy="use --device cpu, or repair the driver (see `nvidia-smi`)",
        )
    return torch.device(name)


def device_model(device: torch.device) -> str:
    """Return the model of a device, as quoted beside measurements."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def cpu_model() -> str:
    """Return the processor's name and core counts as the system reports them."""
    named = (line.partition(":")[2].strip() for line in _lines(CPU) if line.startswith("model name"))
    return f"{next(named, platform.processor() or platform.machine())} ({platform.machine()})"


@cache
def bf16_instructions() -> list[str]:
    """Return the CPU's bfloat16 instructions by their names in the system, else in torch."""
    for line in _lines(CPU):
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            there = set(value.split())
            return [name for name in BF16_FLAGS if name in there]
    # torch's own list, which only some versions of it have
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return [name for name in BF16_FLAGS if capabilities.get(name)]


def environment(device: torch.device) -> dict[str, str | int]:
    """Return versions, device and threads, to be stored beside a measurement."""
    packages = ("kdsearch", "torch", "torchvision", "optuna", "numpy")
    versions: dict[str, str | int] = {name: package_version(name) for name in packages}
    return versions | {
        "torch": torch.__version__,  # with its build tag, which the package's metadata lack
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_model": device_model(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
    }


def package_version(name: str) -> str:
    """Return the installed version of a package, or "not installed"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed from printable values: equal values give equal seeds on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def fresh_seed() -> int:
    """Return a seed from the operating system."""
    return int.from_bytes(os.urandom(4), "big")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run the body with torch's global generators seeded, and restore their states."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Run the body with that many CPU threads per operation; None: as many as there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def keep_freed_memory() -> bool:
    """Tell glibc, for this process, to keep freed memory; return whether that was possible.

    glibc maps a large block anew each time, and the system clears its pages when they are touched: with gradients of a
    hundred megabytes that is a third of a step of the MNIST teacher.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all(mallopt(option, value) == 1 for option, value in MALLOC_OPTIONS.items())


@contextmanager
def denormals_flushed() -> Iterator[None]:
    """Take numbers too small for float32's exponent for 0 within a context, in this thread, where its CPU can.

    Adam's averages for an image's border, which is seldom anything but 0, decay to such numbers, and an Intel core
    computes with them so slowly that half of a step of an MNIST student was theirs.
    """
    before = sys.float_info.min / 4 == 0.0  # else a denormal
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def free_memory() -> int | None:
    """Return the bytes that the system, its control group and `KDSEARCH_MEMORY_GB` all allow; None if unknown."""
    found = [int(row.split()[1]) * 1024 for row in _lines(Path("/proc/meminfo")) if row.startswith("MemAvailable:")]
    limit, used = (_lines(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit and used and limit[0].isdigit():
        found.append(max(0, int(limit[0]) - int(used[0])))
    return min([*found, *_granted()], default=None)


def _granted() -> list[int]:
    text = os.environ.get("KDSEARCH_MEMORY_GB", "")
    try:
        granted = [int(float(text) * 1e9)] if text else []
    except (ValueError, OverflowError):
        granted = [0]
    if granted and granted[0] <= 0:
        raise DeviceError("KDSEARCH_MEMORY_GB must be a number above 0", got=text, remedy="correct it or unset it")
    return granted


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


@cache
def side_stream(index: int) -> torch.cuda.Stream:
    """The one stream beside the usual one of a CUDA device, for captures: each stream keeps a workspace of cuBLAS.

    `side_stream.cache_clear()` gives a new one, after a capture that failed on it.
    """
    return torch.cuda.Stream(torch.device("cuda", index))


@contextmanager
def capture(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Iterator[None]:
    """Captures the body's kernels in a graph, without the collector: what it frees may end a capture.

    Nothing is collected before it: that takes 0.1 s in a process that has loaded torch, and a trial captures thrice.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            yield
    finally:
        if enabled:
            gc.enable()


def cuda_index(device: torch.device) -> int:
    """The number of a CUDA device, of the current one where it has none."""
    return torch.cuda.current_device() if device.index is None else device.index


def float32_arithmetic(device: torch.device) -> str:
    """What torch computes float32 networks in on a device: on CUDA, TF32 or not, of convolutions and of products."""
    if device.type != "cuda":
        return "float32"
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    settings = convolutions.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    kinds = ("ieee" if kind == "none" else kind for kind in settings)
    return "float32 (convolutions {}, products {})".format(*kinds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cache_folder() -> Path:
    """Return the cache folder, which keeps teachers: `KDSEARCH_CACHE_DIR`, else the user's cache folder."""
    return Path(os.environ.get("KDSEARCH_CACHE_DIR") or platformdirs.user_cache_dir("kdsearch"))


def data_folder(given: str | None = None) -> Path:
    """Return the folder of data sets: the given one, else `KDSEARCH_DATA_DIR`, else `data` in the cache folder."""
    return Path(given or os.environ.get("KDSEARCH_DATA_DIR") or cache_folder() / "data").expanduser()


@cache
def sources_digest(*names: str) -> str:
    """Return a hash of some of the package's sources, 16 hexadecimal digits: kept results of other code do not count.

    Args:
        names: relative to the package, as "distil" or "pareto.py".
    """
    found = hashlib.sha256()
    root = Path(__file__).parents[1]
    for name in names:
        for path in sorted((root / name).rglob("*.py")) or [root / name]:
            found.update(path.read_bytes())
    return found.hexdigest()[:16]
