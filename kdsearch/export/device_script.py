"""Time a teacher and a student in ONNX Runtime on this device and print the result as one JSON object.

`kdsearch measure --trial N --out DIR` copies this file to DIR/measure.py, beside both networks and a few images. It
needs Python 3.9 or later, onnxruntime and numpy, and nothing of kdsearch. `kdsearch measure --import FILE` reads what
it prints.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import hashlib
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FORMAT, VERSION = "kdsearch device timing", 1
NETWORKS, IMAGES = ("teacher", "student"), "batch.npz"
FILES = (*(f"{name}.onnx" for name in NETWORKS), IMAGES)
SECONDS = tuple(f"{name}_seconds" for name in NETWORKS)
ABOUT = {"study", "trial", "batch", "threads", "expected", "sha256"}

# the method is that of kdsearch/measure/latency.py, which explains it; a test checks that both agree
MIN_PAIRS, MAX_PAIRS, SITTING_SECONDS = 7, 31, 1.5
SITTINGS, APART = 3, 2.0  # of the networks; seconds of rest between them
STUDENT_T = 4.302652729749462  # the two-sided 95 % quantile with SITTINGS - 1 degrees of freedom
SLOW_SECONDS = 0.5
SAMPLE_SECONDS, SAMPLE_SHARE = 0.004, 0.1
WARM_UP_CALLS = 2
CONFIDENCE = 0.95
LONGEST = 200  # characters of a device's name

Call = Callable[[], Any]


class ProblemError(Exception):
    """A problem that the user can fix, in one line."""


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median and its distribution-free 95 % interval from order statistics; below 6 values, their range."""
    ordered = sorted(values)
    n = len(ordered)
    k, tail = 0, 0.0
    while k < n // 2:
        tail += math.comb(n, k) / 2**n
        if 2 * tail > 1 - CONFIDENCE:
            break
        k += 1
    k = max(k, 1)
    return statistics.median(ordered), ordered[k - 1], ordered[n - k]


def seconds_of(call: Call, repeats: int) -> float:
    """Return the seconds of a call, the mean of `repeats` consecutive calls."""
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def once_warm(call: Call) -> float:
    """Return the seconds of a warm call; a slow call is not repeated."""
    for _ in range(WARM_UP_CALLS):
        seconds = seconds_of(call, 1)
        if seconds > SLOW_SECONDS:
            return seconds
    return max(1e-7, min(seconds_of(call, 1) for _ in range(3)))


def compare(teacher: Call, student: Call) -> dict[str, Any]:
    """Return the ratio of two alternating calls: one sitting, with the number of pairs fixed in advance."""
    once = once_warm(teacher), once_warm(student)
    sample = max(SAMPLE_SECONDS, SAMPLE_SHARE * max(once))
    often = [math.ceil(sample / seconds) for seconds in once]
    fit = int(SITTING_SECONDS / sum(times * seconds for times, seconds in zip(often, once)))
    pairs = [
        (seconds_of(teacher, often[0]), seconds_of(student, often[1]))
        for _ in range(max(MIN_PAIRS, min(MAX_PAIRS, fit)))
    ]
    ratio, low, high = median_interval([of_teacher / of_student for of_teacher, of_student in pairs])
    seconds = dict(zip(SECONDS, map(statistics.median, zip(*pairs))))
    return {"ratio": ratio, "low": low, "high": high, **seconds, "pairs": len(pairs)}


def several(take: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Time `SITTINGS` sittings: the geometric mean of their ratios and Student's interval over their logs."""
    timings = [take()]
    while len(timings) < SITTINGS:
        time.sleep(APART)
        timings.append(take())
    logs = [math.log(timing["ratio"]) for timing in timings]
    half = STUDENT_T * math.sqrt(statistics.variance(logs) / len(logs))
    middle = statistics.fmean(logs)
    low, ratio, high = (math.exp(value) for value in (middle - half, middle, middle + half))
    seconds = {name: statistics.median(timing[name] for timing in timings) for name in SECONDS}
    return {"ratio": ratio, "low": low, "high": high, **seconds, "pairs": sum(timing["pairs"] for timing in timings)}


def read_about(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the folder's description by kdsearch and the fingerprint of its files, which must be as it wrote them."""
    try:
        about: dict[str, Any] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if not (set(about) >= ABOUT and set(NETWORKS) <= set(about["expected"])):
            raise ValueError("a key is missing")
        found = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
        changed = [name for name in FILES if found[name] != about["sha256"][name]]
    except OSError as error:
        said = f"{error.filename} must be readable: {error.strerror}; copy the whole folder again"
        raise ProblemError(said) from None
    except (ValueError, KeyError, TypeError):
        raise ProblemError("about.json must be the file that kdsearch wrote; copy the whole folder again") from None
    if changed:
        raise ProblemError(f"{', '.join(changed)} must be what kdsearch wrote; copy the whole folder again")
    return about, fingerprint(found)


def fingerprint(digests: dict[str, str]) -> str:
    """Return one digest of the files' digests."""
    return hashlib.sha256("".join(digests[name] for name in FILES).encode()).hexdigest()


def session(path: Path, provider: str, threads: int) -> Any:
    """Return a network ready to run with a provider."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    if provider not in there:
        raise ProblemError(f"--provider must be one that this onnxruntime has: {', '.join(there)} (got {provider})")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    try:
        ready = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises classes of its own
        raise ProblemError(f"onnxruntime {onnxruntime.__version__} must load {path.name}: {error}") from None
    if ready.get_providers()[0] != provider:  # onnxruntime falls back in silence
        raise ProblemError(f"{provider} must work on this device: onnxruntime fell back to {ready.get_providers()[0]}")
    return ready


def check(name: str, logits: Any, expected: Sequence[int | None]) -> int:
    """Compare predictions with the expected ones (None: nearly a tie, skipped) and return how many were compared."""
    known = [(i, label, int(row.argmax())) for i, (label, row) in enumerate(zip(expected, logits)) if label is not None]
    wrong = [i for i, label, found in known if found != label]
    if wrong:
        raise ProblemError(
            f"the {name} must predict what it does in kdsearch: {len(wrong)} of {len(known)} images differ, "
            f"the first is image {wrong[0]}; nothing was timed"
        )
    return len(known)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Check the folder and both networks' predictions, time them, and return the result to print.

    Raises:
        ProblemError: a package or provider is missing, or the folder or its networks are not as kdsearch wrote them.
    """
    try:
        import numpy as np
        import onnxruntime
    except ImportError as error:
        said = f"onnxruntime and numpy must be installed ({error}); pip install onnxruntime numpy"
        raise ProblemError(said) from None
    about, print_of_files = read_about(folder)
    threads, count = options.threads or about["threads"], options.batch or about["batch"]
    with np.load(folder / IMAGES, allow_pickle=False) as stored:
        images = stored["images"]
    ready = {name: session(folder / f"{name}.onnx", options.provider, threads) for name in NETWORKS}
    compared = [check(name, ready[name].run(None, {"images": images})[0], about["expected"][name]) for name in NETWORKS]
    fed = {"images": images[np.arange(count) % len(images)]}
    print(f"predictions are as expected; timing with --batch {count} --threads {threads} ...", file=sys.stderr)
    calls = [lambda name=name: ready[name].run(None, fed) for name in NETWORKS]
    timing = several(lambda: compare(*calls))
    return {
        "format": FORMAT,
        "version": VERSION,
        "study": about["study"],
        "trial": about["trial"],
        "fingerprint": print_of_files,
        **timing,
        "batch": count,
        "threads": threads,
        "provider": options.provider,
        "providers": ready["student"].get_providers(),
        "onnxruntime": onnxruntime.__version__,
        "compared": min(compared),
        **facts(options.device),
    }


def facts(device: str | None) -> dict[str, str]:
    """Return the device's name, versions and date."""
    name = "".join(sign for sign in device or model() if sign.isprintable())[:LONGEST]
    return {
        "device": name or "unknown",
        "machine": platform.machine() or "unknown",
        "processor": platform.processor(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def model() -> str:
    """Return the device's model where Linux reports it, else its processor."""
    names = []
    with contextlib.suppress(OSError):
        names.append(Path("/proc/device-tree/model").read_text(encoding="utf-8", errors="replace").strip("\0 \n"))
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), "") or platform.processor() or platform.machine()


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0 (got {text})")
    return int(text)


def main(words: Sequence[str] | None = None, folder: Path | None = None) -> int:
    """Run the script and return the exit code."""
    parser = argparse.ArgumentParser(prog="measure.py", description="Time both networks of this folder on this device.")
    parser.add_argument("--out", type=Path, help="write the result there, too")
    parser.add_argument("--batch", type=positive, help="images a batch [default: the study's]")
    parser.add_argument("--threads", type=positive, help="threads inside an operation [default: the study's]")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="of onnxruntime [default: %(default)s]")
    parser.add_argument("--device", help="what the report is to call this device [default: its model]")
    options = parser.parse_args(words)
    try:
        text = json.dumps(measure(options, folder or Path(__file__).resolve().parent), indent=1, allow_nan=False)
        if options.out is not None:
            options.out.write_text(text + "\n", encoding="utf-8")
    except ProblemError as problem:
        print(f"measure.py: error: {' '.join(str(problem).split())}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"measure.py: error: --out must be writable: {error.strerror} (got {options.out})", file=sys.stderr)
        print(text)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
