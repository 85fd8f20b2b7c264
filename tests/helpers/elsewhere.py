"""Figures that were measured outside of a search, for tests of what shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdsearch.reporting.measured import Measured


def measured(trial: int, ratio: float, spread: float = 0.01, **changes: Any) -> Measured:
    """A ratio in ONNX Runtime here, with an interval of so much each way."""
    told: dict[str, Any] = {
        "source": "here", "runtime": "ONNX Runtime", "version": "onnxruntime 1.32.0", "device": "a CPU", "provider": "",
        "threads": 1, "batch": 1000, "teacher_seconds": 0.5, "student_seconds": 0.5 / ratio, "date": "2026-11-25T12:00",
    }  # fmt: skip
    low, high = (1 - spread) * ratio, (1 + spread) * ratio
    return Measured(trial=trial, ratio=ratio, low=low, high=high, **(told | changes))


def confirmed(
    trial: int, tests: Sequence[float], ratios: Sequence[float], *, epochs: Any = 3, counts: Sequence[Any] = ()
) -> dict[str, Any]:
    """What a study holds of a trial's confirmation: a run a seed; `counts` are of test images by who is right."""
    runs = [
        {"seed": seed, "test_accuracy": test, "ratio": ratio, "ratio_low": 0.9 * ratio, "ratio_high": 1.1 * ratio,
         "seconds": 1.0, "against_teacher": counts[seed] if counts else None}
        for seed, (test, ratio) in enumerate(zip(tests, ratios, strict=True))
    ]  # fmt: skip
    return {"trial": trial, "epochs": epochs, "runs": runs}


TORCH = {"runtime": "torch", "version": "torch 2.15.0"}
PI = {"source": "device", "device": "Raspberry Pi 5", "threads": 4}
# of typical's front, 4, 3 and 0 in the search's order: torch keeps it, ONNX Runtime and the device do not
MEASURED = (
    measured(4, 19.0, **TORCH), measured(3, 95.0, **TORCH), measured(0, 290.0, **TORCH),
    measured(4, 25.0), measured(3, 60.0, 0.1), measured(0, 55.0, 0.1),
    measured(3, 40.0, **PI), measured(0, 30.0, **PI),
)  # fmt: skip
