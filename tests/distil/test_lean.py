from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.trainings import lesson as lesson_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch import networks
from kdsearch.data import ImageSet
from kdsearch.distil.lean import Lean, unseen
from kdsearch.distil.optimizer import make_optimizer
from kdsearch.distil.step import Format
from kdsearch.distil.train import Lesson, Run
from kdsearch.spec import Recipe
from kdsearch.system import machine

RECIPE = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


def student() -> nn.Module:
    torch.manual_seed(0)
    architecture = {"width": 16, "blocks": [1, 1, 0, 0], "stride": 2}
    return networks.student_family("resnet").build(architecture, (3, 8, 8), 4)


def lesson(**changes) -> Lesson:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(4, (48,), generator=generator)
    return lesson_of(ImageSet(images, labels), epochs=1, precision="bfloat16", **changes)


def plainly(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Train as torch's documentation says: autocast casts weights layer by layer, batch norm counts."""
    network.train().to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, RECIPE, 16)
    for images, labels in batches:
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()


def test_a_lean_step_in_bfloat16_is_that_of_autocast():
    ours, theirs = student(), student()
    training = Run(ours, lesson(), RECIPE)
    batches: list[tuple[Tensor, Tensor]] = []
    take = training._steps._take
    training._steps._take = lambda *inputs: (batches.append((inputs[0].clone(), inputs[1].clone())), take(*inputs))
    training.epoch(1)
    plainly(theirs, batches)
    assert len(batches) == 3
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    # without the instructions torch emulates them and rounds sums otherwise; float32 ends 0.12 away after these steps
    atol = 1e-4 if machine.bf16_instructions() else 0.04
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=2**-8, atol=atol, msg=name)
    assert ours.stages[0][0].bn1.num_batches_tracked == 3


def test_the_network_is_as_before_after_an_epoch_and_after_an_error():
    def fail(batch):
        raise RuntimeError("no")

    for loss in (lesson().loss, fail):
        network = student()
        before = dict(network.named_parameters())
        training = Run(network, lesson(loss=loss), RECIPE)
        if loss is fail:
            with pytest.raises(RuntimeError, match=r"^no$"):
                training.epoch(1)
        else:
            training.epoch(1)
        assert all(parameter is before[name] for name, parameter in network.named_parameters())
        assert all(parameter.dtype == torch.float32 for parameter in before.values())
        assert network.stem[1].num_batches_tracked == (0 if loss is fail else 3)


def test_what_needs_its_count_or_is_shared_or_may_use_its_weight_otherwise_stays_as_it_is():
    class Own(nn.Conv2d):
        pass

    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    mean = nn.BatchNorm2d(4, momentum=None)
    network = nn.Sequential(Own(3, 4, 1), mean, nn.BatchNorm2d(4), nn.Flatten(), first, last)
    with Lean(network, Format(True, torch.channels_last)) as lean:
        lean.steps = 2
        assert mean.num_batches_tracked is not None
        assert network[2].num_batches_tracked is None
        kinds = [parameter.dtype for parameter in network.parameters() if parameter.ndim > 1]
        assert kinds == [torch.float32, torch.float32]
        assert first.bias.dtype == torch.bfloat16
    assert (int(mean.num_batches_tracked), int(network[2].num_batches_tracked)) == (0, 2)


def test_a_weight_that_a_step_does_not_use_has_no_gradient():
    network = nn.ModuleDict({"used": nn.Linear(4, 2), "other": nn.Linear(4, 2)})
    with Lean(network, Format(True, torch.channels_last)) as lean, torch.autocast("cpu", torch.bfloat16):
        lean.cast()
        network["used"](torch.ones(1, 4)).sum().backward()
        lean.collect()
    assert network["used"].weight.grad.dtype == torch.float32
    assert torch.equal(network["used"].weight.grad, torch.ones(2, 4))
    assert network["other"].weight.grad is None
    copy.deepcopy(network)


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 3), padding=st.integers(0, 2), dilation=st.integers(1, 2),
    height=st.integers(1, 6), width=st.integers(1, 6),
)  # fmt: skip
def test_parts_of_a_kernel_that_see_padding_alone_have_no_gradient(kernel, stride, padding, dilation, height, width):
    assume(min(height, width) + 2 * padding > dilation * (kernel - 1))
    layer = nn.Conv2d(1, 1, kernel, stride=stride, padding=padding, dilation=dilation, dtype=torch.float64)
    layer(torch.rand(1, 1, height, width, dtype=torch.float64) + 1).sum().backward()
    rows, columns = unseen(layer, (height, width))
    empty = torch.zeros(kernel, kernel, dtype=torch.bool)
    empty[rows] = True
    empty[:, columns] = True
    assert torch.equal(layer.weight.grad[0, 0] == 0, empty)


def test_what_onednn_leaves_unwritten_is_no_gradient():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8, 2))
    lean = Lean(network, Format(True, torch.contiguous_format))
    with lean:
        lean.cast()
        with torch.autocast("cpu", torch.bfloat16):
            network(torch.rand(4, 3, 2, 2)).float().sum().backward()
        network[0].weight.grad[:, :, 0] = math.nan  # as oneDNN does with memory that held it
        network[0].weight.grad[..., 0] = math.nan
        lean.collect()
    gradient = network[0].weight.grad
    assert torch.isfinite(gradient).all()
    assert not gradient[:, :, 0].any()
    assert gradient[:, :, 1:, 1:].any()
