from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kdsearch.errors import TeacherError
from kdsearch.networks import custom
from kdsearch.spec import TeacherSpec


def wanted(build: str, **changes: object) -> TeacherSpec:
    return TeacherSpec.model_validate({"build": build, "weights": "w.safetensors", **changes})


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        ("no.such:thing", {}, "must be importable"),
        ("torch.nn:Nothing", {}, "must name what torch.nn holds"),
        ("math:pi", {}, "must name a function or a class"),
        ("builtins:dict", {}, "must return an nn.Module"),
        ("torch.nn:Linear", {"inputs": 3}, "must take the teacher's options"),
    ],
)
def test_a_function_that_is_none_is_refused_in_one_line(build: str, options: dict[str, int], words: str) -> None:
    with pytest.raises(TeacherError, match=words) as caught:
        custom.construct(wanted(build, options=options))
    assert "\n" not in str(caught.value)


SCRIPT = """
import argparse, sys
argparse.ArgumentParser().parse_args()  # sees no argument of kdsearch's command
def build():
    raise SystemExit(4)
if {ends}:
    sys.exit(0)
"""


@pytest.mark.parametrize(
    ("ends", "words"),
    [(True, r'must be importable: it ends the program, SystemExit: 0 .*if __name__ == "__main__"'),
     (False, "must take the teacher's options: it ends the program, SystemExit: 4")],
)  # fmt: skip
def test_a_script_that_ends_the_program_is_refused(
    ends: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"script_that_ends_{ends}"
    (tmp_path / f"{name}.py").write_text(SCRIPT.format(ends=ends))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", ["kdsearch", "optimize", "--study", "mine.toml"])
    with pytest.raises(TeacherError, match=words):
        custom.construct(wanted(f"{name}:build"))
    assert sys.argv[1] == "optimize"


def test_another_number_of_classes_is_refused() -> None:
    network = custom.construct(wanted("torchvision.models:resnet18", options={"num_classes": 4}))
    assert custom.with_logits(network, "mine", (3, 32, 32), 4) is network
    with pytest.raises(TeacherError, match=r"number of classes, 3 \(got 4 from mine\).*num_classes = 3"):
        custom.with_logits(network, "mine", (3, 32, 32), 3)


def test_the_input_is_what_the_teacher_is_used_to() -> None:
    spec = wanted("x:y", mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.2], size=8)
    pixels = torch.full((1, 1, 4, 4), 0.6)
    seen = custom.adapted(nn.Identity(), spec, (0.5, 0.5))((pixels - 0.5) / 0.5)
    assert seen.shape == (1, 3, 8, 8)
    torch.testing.assert_close(seen[0, :, 5, 5], torch.tensor([1.0, 1.6, 1.5]))


def test_a_softmax_inside_is_noticed_and_logarithms_are_taken() -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    network = custom.with_logits(nn.Sequential(inner, nn.Softmax(1)), "mine", (3, 2, 2), 3)
    assert isinstance(network, custom.Logarithm)
    images = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.log_softmax(inner(images), 1)
    torch.testing.assert_close(network(images), expected)
    adapted = custom.adapted(network.inner, wanted("x:y", size=4), (0.5, 0.5))
    assert custom.core(custom.Logarithm(adapted)) is network.inner


@pytest.mark.parametrize("last", [nn.Identity(), nn.LogSoftmax(1), nn.Sigmoid(), nn.ReLU()])
def test_other_ends_are_taken_as_logits(last: nn.Module) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), last)
    assert custom.with_logits(network, "mine", (3, 2, 2), 3) is network
