"""Format figures for people (missing values, None or NaN, become a dash) and for JSON; rows as dictionaries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "–"
TRIALS_NAMED = 5  # of the trials that a pruned one could not beat


def missing(value: object) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: object) -> float:
    """Return a finite number as a float, anything else (text, bool, None, infinity) as NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return math.nan
    return float(value)


def percent(fraction: object, digits: int = 2) -> str:
    """Format 0.9759 as "97.59 %"."""
    value = number(fraction)
    return NOTHING if math.isnan(value) else f"{100 * value:.{digits}f} %"


def points(fraction: object) -> str:
    """Format a difference of two accuracies in percentage points with its sign: "+1.20"."""
    value = number(fraction)
    return NOTHING if math.isnan(value) else f"{100 * value:+.2f}"


def ratio(value: object) -> str:
    """Format a ratio with about three digits: "4.21", "14.2", "139"."""
    x = number(value)
    if math.isnan(x):
        return NOTHING
    return f"{x:.2f}" if abs(x) < 9.995 else f"{x:.1f}" if abs(x) < 99.95 else f"{x:,.0f}"


microseconds = ratio  # a time an image has about three digits too


def sittings(row: Mapping[str, Any]) -> str:
    """Say how many sittings a trial's ratio is from: ", over 3 sittings"; empty where that is not known."""
    n = number(row["sittings"])
    return f", {'of one sitting' if n == 1 else f'over {n:.0f} sittings'}" if n >= 1 else ""


def times(row: Mapping[str, Any]) -> str:
    """Format a trial's microseconds: "0.52 µs an image, 12.1 µs one alone"; empty where they were not measured."""
    named = {"microseconds": "µs an image", "microseconds_1": "µs one alone"}
    return ", ".join(f"{microseconds(row[name])} {title}" for name, title in named.items() if not missing(row[name]))


def interval(value: object, low: object, high: object) -> str:
    """Format a ratio with its interval where it has one: "14.2 (13.8 to 14.6)"."""
    if missing(low) or missing(high) or low == high:
        return ratio(value)
    return f"{ratio(value)} ({ratio(low)} to {ratio(high)})"


def ratio_of(row: Mapping[str, Any]) -> str:
    """Format the ratio of a trial, or of a confirmed one, with its interval where it has one."""
    return interval(row["ratio"], row["ratio_low"], row["ratio_high"])


def span(fraction: object, low: object, high: object) -> str:
    """Format an accuracy with its interval where it has one: "97.02 % (96.72 to 97.32)"."""
    if math.isnan(number(low)) or math.isnan(number(high)):
        return percent(fraction)
    return f"{percent(fraction)} ({100 * number(low):.2f} to {100 * number(high):.2f})"


def count(value: object) -> str:
    """Format a whole number with separators: "39,760"."""
    x = number(value)
    return NOTHING if math.isnan(x) else f"{round(x):,}"


def many(n: float, word: str) -> str:
    """Format a number of things: "1 trial", "1,340 trials"."""
    return f"{n:,.0f} {word}{'' if n == 1 else 's'}"


def size(octets: object) -> str:
    """Format bytes as "159 kB" or "1.2 MB" (powers of ten)."""
    x = number(octets)
    if math.isnan(x):
        return NOTHING
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if x >= scale:
            return f"{x / scale:.3g} {unit}" if x < 999.5 * scale else f"{x / scale:,.0f} {unit}"
    return f"{x:.0f} B"


def seconds(value: object) -> str:
    """Format a duration: "0.82 s", "12.4 s", "3 min 12 s"."""
    x = number(value)
    if math.isnan(x):
        return NOTHING
    minutes, rest = divmod(round(x), 60)
    return f"{minutes:,} min {rest} s" if minutes else f"{x:.3g} s"


def setting(value: object) -> str:
    """Format one value of a configuration: short floats, lists in brackets."""
    if missing(value):
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(setting, value)) + "]"
    return str(value)


def configuration(config: Mapping[str, Any]) -> str:
    """Format a configuration on one line: "width 300, temperature 3.5"."""
    return ", ".join(f"{key.replace('_', ' ')} {setting(value)}" for key, value in config.items())


def flat(nested: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten a nested dictionary to (dotted key, text) pairs, for a table of two columns."""
    rows: list[tuple[str, str]] = []
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)))
    return rows


def pruning(reason: object) -> str:
    """Say why a trial ended early, from the stored text or mapping (`step`, `at`, `forecast`, `trials`, ...).

    "at epoch 3: it could hope for 93.10 % by epoch 20, which would not beat trials 4, 7". Without a forecast,
    as when a budget was spent, the stored sentence is returned.
    """
    if not isinstance(reason, Mapping):
        return "" if missing(reason) else str(reason)
    text = str(reason.get("reason") or "stopped by the pruner")
    if not math.isnan(number(reason.get("forecast"))):
        text = f"it could hope for {percent(reason['forecast'])}"
        text += "" if missing(reason.get("at")) else f" by epoch {reason['at']}"
        text += f", which would {_unbeaten(reason.get('trials'))}"
    step = number(reason.get("step"))
    if math.isnan(step):
        return text
    return f"at epoch {step:.0f}: {text}" if step >= 1 else f"before its first epoch: {text}"


def _unbeaten(trials: object) -> str:
    if not isinstance(trials, list | tuple) or not trials:
        return "add too little for the epochs it takes"
    more = len(trials) - TRIALS_NAMED
    named = ", ".join(map(str, trials[:TRIALS_NAMED])) + (f" and {more} more" if more > 0 else "")
    return f"not beat {'trial' if len(trials) == 1 else 'trials'} {named}"


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a frame as dictionaries with text keys."""
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def by(frame: pd.DataFrame, name: str) -> dict[int, dict[str, Any]]:
    """Return the rows of a frame by the trial's number, which is in the column `name`."""
    return {int(row[name]): row for row in records(frame)}


def plain(value: Any) -> Any:
    """Return a value in types that strict JSON knows: numpy scalars unwrapped, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
