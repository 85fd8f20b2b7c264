from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.trainings import equal
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kdsearch.distil.weight_files import load_weights
from kdsearch.errors import TeacherError


def make() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


@pytest.fixture
def taught() -> nn.Module:
    """A network whose weights and statistics are not those that it begins with."""
    network = make()
    with torch.no_grad():
        for number, value in enumerate(network.state_dict().values()):
            value.fill_(number + 1)
    return network


def loaded(tmp_path: Path, saved: Any) -> tuple[nn.Module, list[str]]:
    torch.save(saved, tmp_path / "w.pt")
    network = make()
    return network, load_weights(network, tmp_path / "w.pt")


def same(first: nn.Module, second: nn.Module) -> bool:
    return equal(*(dict(enumerate(network.state_dict().values())) for network in (first, second)))  # names may differ


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "_orig_mod.module.", "module._orig_mod.", "net."]
)
def test_prefixes_of_wrappers_are_removed_with_a_note(tmp_path: Path, taught: nn.Module, prefix: str):
    network, notes = loaded(tmp_path, prefixed(taught.state_dict(), prefix))
    assert same(network, taught)
    assert len(notes) == 1
    assert "was removed" in notes[0]


def test_torchs_own_wrappers_are_undone(tmp_path: Path, taught: nn.Module):
    for wrapped in (torch.compile(taught), AveragedModel(taught), nn.DataParallel(taught)):
        network, notes = loaded(tmp_path, wrapped.state_dict())
        assert same(network, taught), type(wrapped)
        assert notes


def test_a_part_that_was_compiled_is_undone(tmp_path: Path, taught: nn.Module):
    taught[0] = torch.compile(taught[0])
    network, _ = loaded(tmp_path, taught.state_dict())
    assert same(network, taught)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "network"])
def test_a_state_dict_inside_a_checkpoint_is_taken_out(tmp_path: Path, taught: nn.Module, key: str):
    optimizer = torch.optim.SGD(taught.parameters(), lr=0.1)
    beside = {"epoch": 3, "optimizer": optimizer.state_dict(), "best_acc1": np.float64(81.5),
              "best_acc5": torch.tensor(96.0),
              "args": argparse.Namespace(arch="resnet18"), "arch": "resnet18"}  # fmt: skip
    network, notes = loaded(tmp_path, {key: prefixed(taught.state_dict(), "module."), **beside})
    assert same(network, taught)
    assert repr(key) in notes[0]
    assert "module." in notes[1]


def test_a_prefix_of_the_network_itself_stays(tmp_path: Path, taught: nn.Module):
    class Wrapped(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

    torch.save(Wrapped(taught).state_dict(), tmp_path / "w.pt")
    network = Wrapped(make())
    assert load_weights(network, tmp_path / "w.pt") == []
    assert same(network.model, taught)


def test_what_torchs_strict_load_takes_is_taken(tmp_path: Path, taught: nn.Module):
    """Batch counts are missing in weights from before torch 0.4.1, and from other frameworks."""
    state = {key: value for key, value in taught.state_dict().items() if "num_batches" not in key}
    network, notes = loaded(tmp_path, state)
    assert torch.equal(network[4].weight, taught[4].weight)
    assert notes == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {**state, "extra": torch.zeros(1)}, r"not in the network \(1\): extra"),
        (lambda state: {k: v for k, v in state.items() if k != "4.bias"}, r"missing \(1\): 4.bias"),
        (lambda state: {**state, "4.bias": torch.zeros(7)}, r"size mismatch \(1\): 4.bias \(7,\) for \(3,\)"),
        (lambda state: dict.fromkeys(state, torch.zeros(7)), r"size mismatch \(9\): 0.weight .*, 0.bias .*, \.\.\."),
        (lambda state: {"0.weight": 3}, r"teacher\.weights must"),
        (lambda state: [1, 2], r"teacher\.weights must"),
        (lambda state: torch.zeros(3), r"teacher\.weights must"),
        (lambda state: {**state, "module.x": torch.zeros(1)}, r"not in the network \(1\): module.x"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, taught: nn.Module, change: Any, words: str):
    with pytest.raises(TeacherError, match=words) as caught:
        loaded(tmp_path, change(taught.state_dict()))
    assert "\n" not in str(caught.value)


def test_safetensors_are_known_by_their_content(tmp_path: Path, taught: nn.Module):
    save_file(taught.state_dict(), tmp_path / "w.bin")
    network = make()
    load_weights(network, tmp_path / "w.bin")
    assert same(network, taught)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "hold weights: the file is empty .*; download it again"),
        (POINTER, "hold weights, not a Git LFS pointer .*; download it again"),
        (b"<!DOCTYPE html><html>404</html>", "hold weights, not a web page .*; download it again"),
        (b"no weights at all", ""),
        (b"\x80\x04N.", ""),
        (None, "be readable: No such file"),
    ],
)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_what_holds_no_weights_is_named(tmp_path: Path, content: bytes | None, words: str, ending: str):
    path = tmp_path / f"w.{ending}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TeacherError, match=rf"teacher\.weights must {words}") as caught:
        load_weights(make(), path)
    assert f"(got {path})" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_to_be_downloaded_again(
    tmp_path: Path, taught: nn.Module, ending: str, share: float
):
    path = tmp_path / f"w.{ending}"
    save = save_file if ending == "safetensors" else torch.save
    save(taught.state_dict(), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(TeacherError, match=r"cut short or damaged: .*download it again"):
        load_weights(make(), path)


def test_a_whole_pickled_network_is_refused_with_its_class_and_the_remedy(tmp_path: Path, taught: nn.Module):
    with pytest.raises(TeacherError, match=r"it holds torch.nn.*could run code.*save the network's state_dict"):
        loaded(tmp_path, taught)


def test_tied_weights_that_are_stored_once_are_taken(tmp_path: Path):
    def tied() -> nn.Module:
        network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        network[1].weight = network[0].weight
        return network

    first, second = tied(), tied()
    save_model(first, str(tmp_path / "w.safetensors"))
    load_weights(second, tmp_path / "w.safetensors")
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_files_of_torchscript_and_numpy_are_not_called_damaged(tmp_path: Path, taught: nn.Module):
    torch.jit.script(taught).save(str(tmp_path / "script.pt"))
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    for name in ("script.pt", "arrays.npz"):
        with pytest.raises(TeacherError, match="must be safetensors or a state dict"):
            load_weights(taught, tmp_path / name)
