from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch import networks
from kdsearch.data import ImageSet
from kdsearch.distil.lean import Lean
from kdsearch.distil.loss import cls_loss
from kdsearch.distil.optimizer import make_optimizer
from kdsearch.distil.train import Lesson, Training
from kdsearch.spec import Recipe

RECIPE = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


def student() -> nn.Module:
    torch.manual_seed(0)
    architecture = {"width": 16, "blocks": [1, 1, 0, 0], "stride": 2}
    return networks.student_family("resnet").build(architecture, (3, 8, 8), 4)


def lesson(**changes) -> Lesson:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48, 3, 8, 8), generator=generator, dtype=torch.uint8)
    usual = {
        "data": ImageSet(images, torch.randint(4, (48,), generator=generator)),
        "prepare": lambda part: part.float() / 255, "loss": lambda batch: cls_loss(batch.logits, batch.labels),
        "teacher_logits": None, "epochs": 1, "batch_size": 16, "seed": 0, "precision": "bfloat16",
    }  # fmt: skip
    return Lesson(**{**usual, **changes})


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
    training = Training(ours, lesson(), RECIPE)
    batches: list[tuple[Tensor, Tensor]] = []
    take = training._steps._take
    training._steps._take = lambda *inputs: (batches.append((inputs[0].clone(), inputs[1].clone())), take(*inputs))
    training.epoch(1)
    plainly(theirs, batches)
    assert len(batches) == 3
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=2**-8, atol=1e-4, msg=name)
    assert ours.stages[0][0].bn1.num_batches_tracked == 3


def test_the_network_is_as_before_after_an_epoch_and_after_an_error():
    def fail(batch):
        raise RuntimeError("no")

    for loss in (lesson().loss, fail):
        network = student()
        before = dict(network.named_parameters())
        training = Training(network, lesson(loss=loss), RECIPE)
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
    with Lean(network, bf16=True) as lean:
        lean.steps = 2
        assert mean.num_batches_tracked is not None
        assert network[2].num_batches_tracked is None
        kinds = [parameter.dtype for parameter in network.parameters() if parameter.ndim > 1]
        assert kinds == [torch.float32, torch.float32]
        assert first.bias.dtype == torch.bfloat16
    assert (int(mean.num_batches_tracked), int(network[2].num_batches_tracked)) == (0, 2)


def test_a_weight_that_a_step_does_not_use_has_no_gradient():
    network = nn.ModuleDict({"used": nn.Linear(4, 2), "other": nn.Linear(4, 2)})
    with Lean(network, bf16=True) as lean, torch.autocast("cpu", torch.bfloat16):
        lean.cast()
        network["used"](torch.ones(1, 4)).sum().backward()
        lean.collect()
    assert network["used"].weight.grad.dtype == torch.float32
    assert torch.equal(network["used"].weight.grad, torch.ones(2, 4))
    assert network["other"].weight.grad is None
    copy.deepcopy(network)
