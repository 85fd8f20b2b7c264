from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers.trainings import by_labels, equal
from helpers.trainings import lesson as lesson_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from kdsearch import networks
from kdsearch.data import ImageSet, views
from kdsearch.distil import step
from kdsearch.distil.loss import cls_loss, distillation_loss, nd_loss
from kdsearch.distil.step import EAGER_STEPS, Steps, format_for
from kdsearch.distil.train import Batch, Lesson, Run
from kdsearch.errors import TrialError
from kdsearch.spec import Augment, Recipe
from kdsearch.system import machine

RECIPES = {
    "deck": Recipe(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "views": Recipe(optimizer="sgd", lr=0.1, momentum=0.9, augment=Augment(flip=True, shift=1), schedule="onecycle"),
    "adam": Recipe(lr=1e-3, schedule="onecycle"),
    "averaged": Recipe(optimizer="sgd", lr=0.05, momentum=0.9, averaging=8.0),
}


def student(device: str = "cpu", *, width: int = 8, stride: int = 2) -> nn.Module:
    architecture = {"width": width, "blocks": [1, 1, 0, 0], "stride": stride}
    with torch.device(device):
        return networks.student_family("resnet").build(architecture, (3, 8, 8), 4)


def loss(batch: Batch) -> Tensor:
    """Looks at all that a batch has; the teacher's share grows with the epoch, as in the deck's CIFAR-10 recipe."""
    ramp = (batch.epoch / 10).clamp(max=1.0)
    taught = distillation_loss(batch.logits, batch.labels, batch.teacher_logits, loss_weight=0.5, temperature=4.0)
    features = nd_loss(batch.embedding, batch.teacher_norms, torch.ones_like(batch.embedding))
    return cls_loss(batch.logits, batch.labels) + ramp * (taught + features)


def lesson(recipe: Recipe, device: str, *, make=torch.rand, **changes) -> Lesson:
    shown = views.count(recipe.augment)
    seen = (70, shown) if shown > 1 else (70,)
    # an empty tensor's values are never looked at where tensors are fake
    pixels = torch.empty if make is torch.empty else lambda *size, **kind: torch.randint(0, 256, size, **kind)
    images = pixels(70, 3, 8, 8, dtype=torch.uint8, device=device)
    logits, norms = make(*seen, 4, device=device), make(*seen, device=device)
    usual = {"loss": loss, "teacher_logits": logits, "teacher_norms": norms, "epochs": 3}
    return lesson_of(ImageSet(images, torch.zeros(70, dtype=torch.int64, device=device)), **{**usual, **changes})


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_step_waits_for_its_device(device, recipe, monkeypatch):
    """With tensors that hold no values, whatever would read one fails: so no step can bring one to the host.

    Needs no GPU: fake tensors say of CUDA what its kernels would return. Autograd's engine and fused optimisers alone
    want a real one, and are left out there.
    """
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)  # swaps storages, which fake ones cannot
    if device == "cuda":
        monkeypatch.setattr("kdsearch.distil.lean.own_kernels", lambda device: None)  # fake tensors have no addresses
        monkeypatch.setattr(Tensor, "backward", lambda self: None)
        for optimizer in (torch.optim.SGD, torch.optim.Adam):
            monkeypatch.setattr(optimizer, "step", lambda self, *_: None)
    with FakeTensorMode(allow_non_fake_inputs=False):
        training = Run(student(device), lesson(recipe, device, make=torch.empty), recipe)
        batch = torch.empty(16, dtype=torch.int64, device=device)
        for _ in range(3):
            training._step(*training._ready(batch, batch))
        assert training._total.device.type == device
        assert all(group["lr"].device.type == device for group in training._optimizer.param_groups)
        with pytest.raises(DataDependentOutputException):  # so that this test can fail
            training._total.item()


class Replayed(Steps):
    """On a CPU, all that the host does around a graph; what replays is the step, from the graph's own tensors."""

    captured = resets = 0

    def __init__(self, take, **kind) -> None:
        super().__init__(take, **kind)
        self._wanted = True
        self.replays = 0

    def _aside(self, call) -> None:
        call()

    def _waits(self, call) -> bool:
        call()
        return False

    def reset(self) -> None:
        Replayed.resets += 1

    def _capture(self) -> bool:
        Replayed.captured += 1
        self._graph = self
        return True

    def replay(self) -> None:
        self.replays += 1
        self._take(*self._read)


def outcome(recipe: Recipe, device: str, **changes) -> tuple[list[float], dict[str, Tensor]]:
    torch.manual_seed(0)
    taught, what = student().to(device), lesson(recipe, device, **changes)
    records = list(Run(taught, what, recipe, validate=lambda _: 0.5))
    return [record.loss for record in records], taught.state_dict()


@pytest.fixture
def replayed(monkeypatch) -> type[Replayed]:
    """Counts what trainings capture and drop from here on."""
    for count in ("captured", "resets"):
        monkeypatch.setattr(Replayed, count, 0)
    return Replayed


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_host_around_a_graph_takes_every_step_once(recipe, replayed, monkeypatch):
    plain_losses, plain = outcome(recipe, "cpu")
    monkeypatch.setattr("kdsearch.distil.train.Steps", replayed)
    losses, weights = outcome(recipe, "cpu")
    assert losses == plain_losses
    assert equal(weights, plain)
    assert replayed.captured == 1


def of_two(taken: list[list[int]]) -> Replayed:
    """Steps of two images, whose indices they write down."""
    return Replayed(
        lambda chosen, _: taken.append(chosen.tolist()), batch_size=2, device=torch.device("cpu"), capture=True
    )


def test_a_batch_of_another_size_is_taken_as_it_is():
    taken: list[list[int]] = []
    steps = of_two(taken)
    batches = [[number, number + 1] for number in range(EAGER_STEPS + 2)] + [[9], [7, 8]]
    for batch in batches:
        steps(torch.tensor(batch), torch.zeros(len(batch), dtype=torch.int64))
    assert taken == batches
    assert steps.replays == 3


def two(steps: Steps, count: int) -> None:
    for number in range(count):
        steps(torch.tensor([number, number + 1]), torch.zeros(2, dtype=torch.int64))


def test_a_closed_training_has_no_graph_and_goes_on_as_it_is(replayed):
    taken: list[list[int]] = []
    steps = of_two(taken)
    two(steps, EAGER_STEPS + 1)
    steps.close()
    steps.close()
    two(steps, 2)
    assert (steps.resets, steps.replays, len(taken)) == (1, 1, EAGER_STEPS + 3)


@pytest.mark.parametrize("ending", ["the last epoch", "an error", "an interruption", "closed"])
def test_a_graph_is_dropped_however_its_training_ends(ending, replayed, monkeypatch):
    monkeypatch.setattr("kdsearch.distil.train.Steps", replayed)

    def validate(_: nn.Module) -> float:
        if ending == "an interruption":
            raise KeyboardInterrupt
        return 0.5

    changes = {"loss": lambda batch: batch.logits.sum() * torch.nan} if ending == "an error" else {}
    run = Run(student(), lesson(RECIPES["deck"], "cpu", **changes), RECIPES["deck"], validate=validate)
    with suppress(TrialError, KeyboardInterrupt):
        next(run)
        assert (replayed.captured, replayed.resets) == (1, 0)
        if ending == "closed":
            run.close()
        else:
            list(run)
    assert replayed.captured == replayed.resets


def test_a_training_is_freed_without_the_collector(monkeypatch):
    """Its graph's memory would else stay until the collector runs, which counts objects and not bytes."""
    gc.collect()
    gc.disable()
    try:
        recipe = RECIPES["averaged"]
        run = Run(student(), lesson(recipe, "cpu"), recipe, validate=lambda _: 0.5)
        next(run)
        held = [weakref.ref(each) for each in (run, run._steps, run._network)]
        del run
        assert [each() for each in held] == [None] * 3
    finally:
        gc.enable()


class Cuda:
    """What `torch.cuda` tells and is told, where there is none; a capture fails with the error, if there is one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.error, self.mode, self.streams = error, "default", [object()]
        self.called: list[str] = []
        self.made = Mock()  # streams
        cuda, told = self, self.called.append
        made = Mock(**{f"{name}.side_effect": partial(told, name) for name in ("replay", "reset")})
        generator = Mock(**{
            "clone_state.return_value": "clone",
            "graphsafe_set_state.side_effect": lambda state: told(f"generator: {state}"),
        })  # fmt: skip

        @contextmanager
        def stream(which: object) -> Iterator[None]:
            cuda.streams.append(which)
            yield
            cuda.streams.pop()

        @contextmanager
        def graph(made: Mock, *, stream: object, capture_error_mode: str) -> Iterator[None]:
            assert not gc.isenabled()
            cuda.streams.append(stream)
            yield
            if cuda.error is not None:
                raise cuda.error  # torch then leaves the capture's stream as the current one
            cuda.streams.pop()

        def set_mode(mode: str) -> None:
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
            cuda.mode = mode

        names = {
            "Stream": self.made, "CUDAGraph": lambda: made, "stream": stream, "graph": graph,
            "default_generators": [generator], "current_stream": Mock(), "current_device": lambda: 0,
            "set_stream": lambda which: cuda.streams.pop(), "set_device": lambda device: None,
            "synchronize": lambda device=None: told("synchronize"),
            "get_sync_debug_mode": lambda: cuda.mode, "set_sync_debug_mode": set_mode,
        }  # fmt: skip
        for name, value in names.items():
            monkeypatch.setattr(torch.cuda, name, value)
        end = "_cuda_endAllocateToPool"
        monkeypatch.setattr(torch._C, end, lambda index, pool: told(f"allocator: {index}"), raising=False)
        machine.side_stream.cache_clear()

    def steps(self, take) -> Steps:
        """Steps of two images that take themselves for CUDA's; their indices lie on the CPU."""
        steps = Steps(take, batch_size=2, device=torch.device("cpu"), capture=True)
        steps._device, steps._wanted = torch.device("cuda", 0), True
        return steps


@pytest.fixture
def own_streams() -> Iterator[None]:
    machine.side_stream.cache_clear()
    yield
    machine.side_stream.cache_clear()


@pytest.mark.usefixtures("own_streams")
def test_all_trainings_of_a_process_share_one_stream_beside_the_usual_one(monkeypatch):
    cuda = Cuda(monkeypatch)
    for _ in range(3):
        steps = cuda.steps(lambda chosen, drawn: None)
        two(steps, EAGER_STEPS + 2)
        steps.close()
    assert cuda.made.call_count == 1
    assert cuda.called == ["replay", "replay", "synchronize", "reset"] * 3
    assert gc.isenabled()


@pytest.mark.usefixtures("own_streams")
def test_a_step_that_waits_is_found_by_an_eager_one_and_never_captured(monkeypatch):
    cuda = Cuda(monkeypatch, RuntimeError("nothing must be captured"))
    taken: list[int] = []

    def take(chosen: Tensor, drawn: Tensor) -> None:
        taken.append(int(chosen[0]))
        if cuda.mode == "warn":
            warnings.warn("called a synchronizing CUDA operation (Triggered internally at x.cpp:1)", stacklevel=1)

    steps = cuda.steps(take)
    with pytest.warns(UserWarning, match="cannot be captured in a CUDA graph runs as it is: it waits") as caught:
        two(steps, EAGER_STEPS + 4)
    assert len(caught) == 1
    assert taken == list(range(EAGER_STEPS + 4))
    assert cuda.mode == "default"
    assert cuda.called == []


@pytest.mark.usefixtures("own_streams")
@pytest.mark.parametrize("kind", [RuntimeError, torch.OutOfMemoryError])
def test_after_a_capture_that_failed_the_process_is_whole_and_the_training_goes_on(kind, monkeypatch):
    cuda = Cuda(monkeypatch, kind("CUDA error: operation not permitted when stream is capturing\nmore"))
    taken: list[int] = []
    steps = cuda.steps(lambda chosen, drawn: taken.append(int(chosen[0])))
    if kind is torch.OutOfMemoryError:
        with pytest.raises(torch.OutOfMemoryError):
            two(steps, EAGER_STEPS + 1)
    else:
        with pytest.warns(UserWarning, match=r"operation not permitted when stream is capturing$") as caught:
            two(steps, EAGER_STEPS + 2)
        assert len(caught) == 1
        assert taken == [0, 1, 2, 3, 3, 4]  # the captured one is of the graph's own inputs, and is not taken on CUDA
    assert cuda.called == ["allocator: 0", "generator: clone", "synchronize"]
    assert len(cuda.streams) == 1
    assert gc.isenabled()
    two(cuda.steps(lambda chosen, drawn: None), 1)
    assert cuda.made.call_count == 2


def test_formats():
    dense = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    cpu = torch.device("cpu")
    assert format_for(dense, cpu) == step.Format(False, torch.contiguous_format)
    assert format_for(student(width=16), cpu) == step.Format(False, torch.channels_last)


def test_channels_stay_first_where_onednn_would_break_the_process():
    cpu, narrow = torch.device("cpu"), student(width=4)
    assert format_for(narrow, cpu).memory is torch.contiguous_format
    assert format_for(narrow, torch.device("cuda"), "bfloat16").memory is torch.channels_last
    for safe in (nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, stride=2), nn.Conv2d(16, 8, 1, stride=2)):
        assert format_for(safe, cpu).memory is torch.channels_last


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_narrow_student_trains_on_a_processor_with_avx2(threads):
    """In a process of its own, which oneDNN ended: 4 channels through a strided 1x1 convolution, channels last."""
    code = f"""
import torch
from tests.distil.test_step import RECIPES, by_labels, lesson, student
from kdsearch.distil.train import Run
torch.manual_seed(0)
what = lesson(RECIPES["deck"], "cpu", loss=by_labels, teacher_norms=None, threads={threads})
for record in Run(student(width=4, stride=1), what, RECIPES["deck"], validate=lambda _: 0.5):
    print(record.epoch)
"""
    helpers = {"PYTHONPATH": str(Path(__file__).parents[1])}
    environment = {**os.environ, **helpers, "ONEDNN_MAX_CPU_ISA": "AVX2", "MALLOC_CHECK_": "3"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert ended.stdout.split() == ["1", "2", "3"], ended.stderr


def test_on_cuda_convolutions_compute_in_bfloat16_and_dense_networks_do_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    cuda = torch.device("cuda")
    assert format_for(student(), cuda).bf16
    assert not format_for(nn.Linear(4, 2), cuda).bf16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert not format_for(student(), cuda).bf16


@pytest.mark.cuda
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_captured_training_is_the_plain_one(recipe, monkeypatch):
    """In float32: the kernels are the same, but atomics may add in another order."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    torch.cuda.reset_peak_memory_stats()
    graphed, plain = outcome(recipe, "cuda"), outcome(recipe, "cuda", capture=False)
    assert graphed[0] == pytest.approx(plain[0], rel=1e-3)
    for key, value in plain[1].items():
        torch.testing.assert_close(graphed[1][key], value, rtol=1e-2, atol=1e-3)


@pytest.mark.cuda
def test_a_captured_training_in_bfloat16_is_near_the_plain_one():
    graphed, plain = (outcome(RECIPES["deck"], "cuda", capture=capture) for capture in (True, False))
    assert graphed[0] == pytest.approx(plain[0], rel=2e-2)


@pytest.mark.cuda
def test_dropout_draws_anew_in_every_replay():
    drawn: list[Tensor] = []
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4)).cuda()
    kept = torch.zeros((), device="cuda")

    def seen(batch: Batch) -> Tensor:
        kept.copy_(batch.logits.detach().sum())
        return by_labels(batch)

    what = lesson(Recipe(lr=1e-30), "cuda", loss=seen, teacher_norms=None, batch_size=70, epochs=EAGER_STEPS + 4)
    for _ in Run(network, what, Recipe(lr=1e-30), validate=lambda _: 0.5):
        drawn.append(kept.clone())
    assert len({float(each) for each in drawn}) == len(drawn)


@pytest.mark.cuda
def test_a_network_that_waits_for_the_device_runs_as_it_is():
    class Waits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = student()

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(images) * float(images.sum().isfinite())

    torch.manual_seed(0)
    network = Waits().cuda()
    what = lesson(RECIPES["deck"], "cuda", loss=by_labels, teacher_norms=None)
    with pytest.warns(UserWarning, match="cannot be captured"):
        records = list(Run(network, what, RECIPES["deck"], validate=lambda _: 0.5))
    assert len(records) == 3


@pytest.mark.cuda
def test_a_failed_capture_leaves_a_process_that_captures_and_draws():
    def take(chosen: Tensor, drawn: Tensor) -> None:
        kept.copy_(torch.rand(4, device="cuda"))
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()

    def take_all(steps: Steps) -> None:
        batch = torch.zeros(2, dtype=torch.int64, device="cuda")
        for _ in range(EAGER_STEPS + 2):
            steps(batch, batch)

    kept = torch.zeros(4, device="cuda")
    steps = Steps(take, batch_size=2, device=torch.device("cuda"), capture=True)
    with pytest.warns(UserWarning, match="cannot be captured"):
        take_all(steps)
    first = torch.rand(4, device="cuda")
    assert not torch.equal(first, torch.rand(4, device="cuda"))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    again = Steps(lambda chosen, drawn: kept.copy_(torch.rand(4, device="cuda")), batch_size=2,
                  device=torch.device("cuda"), capture=True)  # fmt: skip
    take_all(again)
    assert again._graph is not None


@pytest.mark.cuda
def test_an_epoch_waits_for_the_device_only_at_its_end():
    recipe = RECIPES["views"]
    training = Run(student().cuda(), lesson(recipe, "cuda"), recipe)
    with warnings.catch_warnings(), machine.seeded(0, torch.device("cuda")):
        warnings.simplefilter("ignore")
        training.epoch(1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            with pytest.raises(RuntimeError, match="synchroniz"):
                torch.zeros(1, device="cuda").item()
            batch = torch.zeros(16, dtype=torch.int64, device="cuda")
            training._steps(*training._ready(batch, batch))
        finally:
            torch.cuda.set_sync_debug_mode("default")
