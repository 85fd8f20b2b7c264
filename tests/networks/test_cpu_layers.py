from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch import networks
from kdsearch.networks import cpu_layers
from kdsearch.networks.cpu_layers import _Convolution, axis, conv2d, faster


def maps(*shape: int, seed: int = 0, kind: torch.dtype = torch.float64) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(kind, memory_format=torch.channels_last)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)), kernels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)), paddings=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    few=st.booleans(), last=st.booleans(),
)  # fmt: skip
def test_a_convolution_and_its_gradients_are_those_of_torch(sizes, kernels, strides, paddings, few, last):
    assume(all(size + 2 * padding >= kernel for size, kernel, padding in zip(sizes, kernels, paddings, strict=True)))
    images, weight = maps(2, 3, *sizes), maps(4, 3, *kernels, seed=1)
    if not last:
        images = images.contiguous()
    rows, columns = (axis(*one) for one in zip(sizes, kernels, strides, paddings, strict=True))
    results = []
    for convolve in (
        lambda *given: _Convolution.apply(*given, rows, columns, few),
        lambda *given: F.conv2d(*given, stride=strides, padding=paddings),
    ):
        inputs = [images.clone().requires_grad_(), weight.clone().requires_grad_()]
        output = convolve(*inputs)
        output.backward(maps(*output.shape, seed=2))
        results.append([output.detach(), *(each.grad for each in inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("amx", [False, True])
def test_products_are_for_small_maps_and_large_weights_alone(monkeypatch, amx):
    monkeypatch.setattr(cpu_layers, "_has_amx", lambda: amx)

    def taken(channels: int, size: int, kernel: int = 3, kind: torch.dtype = torch.bfloat16) -> bool:
        one = axis(size, kernel, 1, kernel // 2)
        with torch.no_grad():
            return conv2d(maps(1, channels, size, size, kind=kind), maps(channels, channels, kernel, kernel, kind=kind),
                          one, one) is not None  # fmt: skip

    assert taken(4, 1)  # one place
    assert taken(4, 1, kind=torch.float32)
    assert taken(256, 2)
    assert taken(256, 2, kind=torch.float32)
    assert taken(96, 2) is amx
    assert not taken(96, 2, kind=torch.float32)
    assert not taken(16, 2)
    assert not taken(256, 4)  # without gradients
    wide = axis(4, 3, 1, 1)
    weight = maps(128, 128, 3, 3, kind=torch.bfloat16).requires_grad_()
    assert (conv2d(maps(1, 128, 4, 4, kind=torch.bfloat16), weight, wide, wide) is not None) is amx


def test_a_network_computes_the_same_within_and_is_as_before_after():
    torch.manual_seed(0)
    plain = networks.student_family("resnet").build({"width": 32, "blocks": [1, 1, 1, 1], "stride": 4}, (3, 16, 16), 4)
    plain.stages.append(nn.Conv2d(256, 8, 1))  # with a bias
    plain.classifier = nn.Linear(8, 4)
    ours = copy.deepcopy(plain)
    images = maps(6, 3, 16, 16, kind=torch.float32)
    with faster(ours):
        inside = [module for module in ours.modules() if "forward" in vars(module)]
        ours(images).square().mean().backward()
        with torch.autocast("cpu", torch.bfloat16):
            low = ours(images)
    plain(images).square().mean().backward()
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(images)
    assert low.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected.float(), rtol=0.05, atol=0.05)
    assert len(inside) == 1 + sum(isinstance(module, nn.Conv2d) for module in plain.modules())  # and the stem
    assert not any("forward" in vars(module) for module in ours.modules())
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_layers_of_another_kind_stay_as_they_are():
    class Own(nn.Conv2d):
        pass

    others = [
        Own(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv1d(4, 4, 1),
    ]  # fmt: skip
    network = nn.ModuleList([*others, nn.Conv2d(4, 4, 3)])
    with faster(network):
        assert [module for module in network if "forward" in vars(module)] == [network[-1]]
        with pytest.raises(RuntimeError, match=r"must match|should be the same|expected"):
            network[-1](torch.ones(1, 4, 3, 3, dtype=torch.float64))  # torch's own error
        assert network[-1](input=torch.ones(4, 3, 3)).shape == (4, 1, 1)
        assert network[-1](torch.ones(0, 4, 3, 3)).shape == (0, 4, 1, 1)


def test_a_context_that_fails_leaves_the_layers_as_they_were():
    network = nn.Sequential(nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="no"), faster(network):
        raise ValueError("no")
    assert "forward" not in vars(network[0])


def test_a_stem_that_pools_before_relu_gives_the_same_bit_by_bit():
    torch.manual_seed(0)
    stem = (
        networks.student_family("resnet").build({"width": 16, "blocks": [1, 0, 0, 0], "stride": 1}, (3, 8, 8), 4).stem
    )
    results = []
    for step in (stem, stem.on_cpu):
        stem.zero_grad()
        images = maps(4, 3, 8, 8, kind=torch.float32).round().requires_grad_()  # with ties
        output = step(images)
        output.backward(maps(*output.shape, seed=1, kind=torch.float32))
        results.append([output.detach(), images.grad, *(weight.grad for weight in stem.parameters())])
    for plain, ours in zip(*results, strict=True):
        assert torch.equal(plain, ours)
        assert plain.any()


@pytest.mark.parametrize("learns", [True, False])
def test_an_output_may_be_changed_in_place(learns):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, padding=1, bias=False).requires_grad_(learns)
    results = []
    for context in (faster(layer), nullcontext()):
        layer.zero_grad()
        images = maps(2, 8, 1, 1, kind=torch.float32).requires_grad_()
        with context:
            output = layer(images)
            output += images
            output.relu_().sum().backward()
        results.append([output.detach(), images.grad, *([layer.weight.grad] if learns else [])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def changed(layer: nn.Conv2d, **attributes: object) -> nn.Conv2d:
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        changed(nn.Conv2d(4, 4, 1), weight=nn.Parameter(torch.ones(4, 4, 3, 3))),  # other than its kernel_size
        changed(nn.Conv2d(4, 4, 3, padding=1), stride=1, padding=1),
        nn.Conv2d(4, 4, (1, 7), padding=(0, 3)),
        nn.Conv2d(4, 4, (7, 2), padding=(3, 1), stride=(3, 2)),
        nn.Conv2d(4, 4, 3, padding=1, dtype=torch.complex64),
    ],
    ids=["weight", "numbers", "wide", "uneven", "complex"],
)
@pytest.mark.parametrize("size", [(1, 3), (1, 40), (4, 4)])
@pytest.mark.parametrize("last", [True, False])
def test_unusual_layers_compute_what_torch_does(layer, size, last):
    results = []
    for context in (faster(layer), nullcontext()):
        layer.zero_grad()
        images = maps(2, 4, *size, kind=torch.float32).to(layer.weight.dtype)
        images = images.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        images.requires_grad_()
        try:
            with context:
                output = layer(images)
        except RuntimeError as error:
            results.append(str(error))
            continue
        output.abs().sum().backward()
        results.append([output.detach(), images.grad, layer.weight.grad.clone()])
    ours, theirs = results
    if isinstance(theirs, str):
        assert ours == theirs  # torch's own error
        return
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert ours[0].shape[1] == 1 or last or ours[0].is_contiguous()


def test_a_network_that_views_its_maps_channels_first_still_can():
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 256, 1, stride=4), nn.Conv2d(256, 256, 3, padding=1)

        def forward(self, images):
            return self.second(self.first(images)).view(len(images), -1)

    network, images = Viewing(), torch.rand(2, 3, 8, 8)
    expected = network(images)
    with faster(network):
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


def test_a_module_with_a_name_like_ours_keeps_its_own_forward():
    class Theirs(nn.Linear):
        on_cpu = True

    network = Theirs(2, 2)
    with faster(network):
        assert "forward" not in vars(network)
