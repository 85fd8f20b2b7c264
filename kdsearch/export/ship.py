"""A trial's student as one file, loaded again in its own runtime, scored on the test set and timed there."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from optuna import Study
from optuna.trial import TrialState
from torch import Tensor, nn

from kdsearch import files, runtime
from kdsearch.distil import teacher
from kdsearch.errors import DefinitionError, KdsearchError
from kdsearch.measure import deployed, latency
from kdsearch.measure.accuracy import BATCH
from kdsearch.measure.quiet import Gate
from kdsearch.progress import Progress
from kdsearch.records import Attr, StudyAttr, Timing
from kdsearch.search import keep
from kdsearch.search.objective import Workshop
from kdsearch.search.plan import check_choice, rejoin
from kdsearch.search.retrain import find_trial, retrain

FORMATS = ("onnx", "pt2", "safetensors")
POINTS = 0.001  # of accuracy that a file may differ by from the network in torch, a fraction
TIE = 1e-3  # two largest logits this close, relative to the largest, may change places

Run = Callable[[Tensor], Tensor]
"""From images, (batch, channels, height, width), uint8, to logits."""


def export(
    study: Study, number: int, *, kind: str, out: Path, url: str, data_dir: str | None, progress: Progress
) -> dict[str, Any]:
    """Writes a trial's student as one file, which is gone again where it is not as good in its own runtime.

    Args:
        study: made by kdsearch.
        number: of a complete trial.
        kind: one of `FORMATS`.
        out: folder of the file.
        url: of the study's storage, beside which weights are kept.
        data_dir: where data sets lie.
        progress: told where the student has to be trained again.

    Returns:
        What is stored as the study's attribute `exported:NUMBER:FORMAT`.

    Raises:
        KdsearchError: an unknown format, a trial that is not complete, a missing package, or a file that failed.
    """
    check_choice("--format", kind, FORMATS)
    if kind == "onnx":
        deployed.require("--format onnx")
    trial = find_trial(study, number)
    if trial.state != TrialState.COMPLETE:
        raise KdsearchError(
            "the trial to export must be complete",
            got=f"trial {number}, {trial.state.name}",
            remedy="see `kdsearch pick`",
        )
    plan = rejoin(study, url=url, data_dir=data_dir, device="cpu")
    if plan.split.fingerprint != study.user_attrs[StudyAttr.DEFINITION]["data"]["fingerprint"]:
        raise DefinitionError("the data must be those of the study", remedy="name their folder with --data-dir")
    shop = Workshop(plan.spec, plan.split, teacher.obtain(plan.spec.teacher, plan.split, progress=progress), plan.cost)
    student = shop.build(trial.user_attrs[Attr.CONFIG], trial.user_attrs[Attr.SEED])
    try:
        student.load_state_dict(keep.load(url, study.study_name, trial))
        source = "kept weights"
    except (KdsearchError, RuntimeError) as error:
        progress.warning(f"trial {number} is trained again: {error}")
        student = retrain(study, number, data_dir=data_dir, device="cpu", progress=progress).network
        source = "trained again"
    facts = {"study": study.study_name, "trial": number, "classes": list(plan.split.classes),
             "top": plan.split.top, "mean": plan.split.mean, "std": plan.split.std}  # fmt: skip
    path = out / f"trial-{number}.{kind}"
    found: dict[str, Any] = {}

    def make(beside: Path) -> None:  # nothing gets its name before it is verified
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"student.{kind}"
            write(student, shop, kind, file, facts)
            found.update(verify(shop, student, kind, file))
            beside.write_bytes(file.read_bytes())

    files.write_whole(path, make)
    files.write_text(out / "classes.json", json.dumps(facts["classes"]) + "\n")
    found |= {"trial": number, "format": kind, "file": str(path), "bytes": path.stat().st_size, "weights": source}
    found |= {"search_ratio": trial.values[1], "search_test_accuracy": trial.user_attrs[Attr.TEST_ACCURACY]}
    study.set_user_attr(f"{StudyAttr.EXPORTED}:{number}:{kind}", found)
    return found


def write(network: nn.Module, shop: Workshop, kind: str, path: Path, facts: dict[str, Any]) -> None:
    """Writes a network: ONNX and pt2 take images of bytes, safetensors holds the weights alone."""
    wrapped = deployed.Prepared(network, shop.split).eval()
    example = shop.split.test.images[:2]
    if kind == "onnx":
        from kdsearch.measure import onnx

        onnx.write(wrapped, example, path, metadata={"kdsearch": json.dumps(facts)})
    elif kind == "pt2":
        program = torch.export.export(wrapped, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, path, extra_files={"kdsearch.json": json.dumps(facts)})
    else:
        files.save_tensors(path, network.state_dict(), {"kdsearch": json.dumps(facts)})


def load(path: Path, kind: str, shop: Workshop, blank: Callable[[], nn.Module]) -> Run:
    """A file in its own runtime; `blank` builds the network that safetensors are loaded into."""
    if kind == "onnx":
        from kdsearch.measure import onnx

        ready = onnx.session(path, threads=shop.spec.latency.threads)
        return lambda images: torch.from_numpy(ready.run(None, {"images": images.numpy()})[0])
    if kind == "pt2":
        run: Run = torch.export.load(path).module()
        return run
    network = blank()
    network.load_state_dict(files.load_tensors(path, torch.device("cpu"))[0])
    return deployed.Prepared(network, shop.split).eval()


def verify(shop: Workshop, student: nn.Module, kind: str, path: Path) -> dict[str, Any]:
    """Loads a file, scores it on the whole test set against torch and times it against the teacher exported alike.

    Raises:
        KdsearchError: it does not load, or its predictions or its accuracy are others.
    """
    import copy

    test = shop.split.test
    blank = copy.deepcopy(student)
    for parameter in blank.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.inference_mode():
        wanted = torch.cat([deployed.Prepared(student, shop.split).eval()(p) for p in test.images.split(BATCH)])
        try:
            run = load(path, kind, shop, lambda: blank)
            logits = torch.cat([run(part) for part in test.images.split(BATCH)])
        except Exception as error:
            raise KdsearchError(
                f"the exported file must load and run: {' '.join(str(error).split())[:200]}", remedy="it was deleted"
            ) from None
        scores = [(each.argmax(1) == test.labels).double().mean().item() for each in (wanted, logits)]
        top = wanted.topk(2, dim=1).values
        clear = (top[:, 0] - top[:, 1]) > TIE * top.abs().amax(1).clamp(min=1)
        changed = int(((wanted.argmax(1) != logits.argmax(1)) & clear).sum())
        if changed or abs(scores[0] - scores[1]) > POINTS:
            raise KdsearchError(
                f"the exported file must predict as torch does: {changed} of {len(test)} test images differ, "
                f"accuracy {scores[1]:.2%} against {scores[0]:.2%}",
                remedy="it was deleted",
            )
        timing = _timed(shop, kind, run)
    return {"test_accuracy": scores[1], "torch_test_accuracy": scores[0], **dataclasses.asdict(timing),
            "runtime": deployed.version() if kind == "onnx" else f"torch {torch.__version__}"}  # fmt: skip


def _timed(shop: Workshop, kind: str, student: Run) -> Timing:
    batch = shop.split.validation.images[:1].repeat(shop.spec.latency.batch, 1, 1, 1)
    with tempfile.TemporaryDirectory() as folder, runtime.threads(shop.spec.latency.threads):
        path = Path(folder) / f"teacher.{kind}"
        write(shop.teacher.network, shop, kind, path, {})
        run = load(path, kind, shop, lambda: shop.teacher.network)
        with Gate(torch.device("cpu")).alone():
            return latency.steady(
                lambda: latency.compare(lambda: run(batch), lambda: student(batch), batch=len(batch), kind=kind)
            )
