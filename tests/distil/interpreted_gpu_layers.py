"""Tests of the kernels in Triton's interpreter, which runs them on a CPU: `test_gpu_layers` runs them in a process of
their own, for Triton must know from its import on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch.distil import gpu_layers as layers

LAST = torch.channels_last


def images(shape: tuple[int, ...], *, seed: int, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator) + mean * torch.randn(shape[1], generator=generator)[:, None, None]
    return drawn.bfloat16().to(memory_format=LAST)


def norm(channels: int) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    module = nn.BatchNorm2d(channels, momentum=0.3)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    return module


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(2, 40), channels=st.integers(1, 40), side=st.integers(1, 5),
    mean=st.sampled_from([0.0, 100.0]), seed=st.integers(0, 9),
)  # fmt: skip
def test_batch_norm_is_that_of_torch_in_higher_precision(count, channels, side, mean, seed):
    """A mean of a hundred deviations costs no digits of the variance."""
    given_images = images((count, channels, side, side), seed=seed, mean=mean)
    grads = images((count, channels, side, side), seed=seed + 10)
    ours, theirs = norm(channels), norm(channels).double()
    own, exact = given_images.clone().requires_grad_(), given_images.double().requires_grad_()
    out = layers.batch_norm(ours, own)
    expected = theirs(exact)
    out.backward(grads)
    expected.backward(grads.double())
    assert out.dtype == torch.bfloat16
    for one, other in [(out.detach(), expected.detach()), (own.grad, exact.grad)]:
        torch.testing.assert_close(one.double(), other, rtol=2**-7, atol=2**-7 * float(1 + other.abs().max()))
    for name in ("weight", "bias"):
        torch.testing.assert_close(
            getattr(ours, name).grad.double(), getattr(theirs, name).grad, rtol=1e-3, atol=1e-3 * count
        )
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name).double(), getattr(theirs, name), rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(
    kernel=st.integers(1, 4), stride=st.integers(1, 4), padding=st.integers(0, 2), height=st.integers(2, 9),
    width=st.integers(2, 9), channels=st.integers(1, 5), seed=st.integers(0, 9),
)  # fmt: skip
def test_max_pooling_is_that_of_torch_with_ties_and_nan(kernel, stride, padding, height, width, channels, seed):
    padding = min(padding, kernel // 2)
    if min(height, width) + 2 * padding < kernel:
        return
    shown = torch.randint(-2, 3, (2, channels, height, width), generator=torch.Generator().manual_seed(seed))
    values = shown.bfloat16().to(memory_format=LAST)
    values[0, 0, 0, 1] = torch.nan
    own, theirs = values.clone().requires_grad_(), values.float().requires_grad_()
    out = layers.max_pool(nn.MaxPool2d(kernel, stride, padding), own)
    expected = F.max_pool2d(theirs, kernel, stride, padding)
    assert torch.equal(out.float().nan_to_num(9), expected.nan_to_num(9))
    grads = torch.randint(-2, 3, expected.shape, generator=torch.Generator().manual_seed(seed + 1))
    out.backward(grads.bfloat16())
    expected.backward(grads.float())
    assert torch.equal(own.grad.float(), theirs.grad)


def without_bias() -> nn.BatchNorm2d:
    """As `nn.BatchNorm2d(4, bias=False)` of newer versions of torch."""
    module = nn.BatchNorm2d(4)
    module.bias = None
    return module


def test_windows_of_minus_infinity_keep_their_gradient():
    values = torch.full((1, 2, 4, 4), -torch.inf).bfloat16().to(memory_format=LAST)
    own, theirs = values.clone().requires_grad_(), values.float().requires_grad_()
    layers.max_pool(nn.MaxPool2d(3, 2, 1), own).sum().backward()
    F.max_pool2d(theirs, 3, 2, 1).sum().backward()
    assert torch.equal(own.grad.float(), theirs.grad)


def test_what_torch_refuses_is_refused():
    small = torch.zeros(1, 2, 1, 1).bfloat16().to(memory_format=LAST)
    for module in (nn.MaxPool2d(2), nn.MaxPool2d(2, padding=2)):
        with pytest.raises(RuntimeError):
            layers.max_pool(module, small)
    with pytest.raises(RuntimeError):
        layers.batch_norm(nn.BatchNorm2d(3), torch.zeros(4, 2, 2, 2).bfloat16().to(memory_format=LAST))
    twice = torch.ones(4, 2, 2, 2).bfloat16().to(memory_format=LAST).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(layers.batch_norm(nn.BatchNorm2d(2), twice).sum(), twice, create_graph=True)


def test_other_layers_and_other_inputs_are_torchs():
    for other in (
        nn.BatchNorm2d(4, affine=False), without_bias(), nn.BatchNorm2d(4, momentum=None), nn.BatchNorm1d(4),
        nn.SyncBatchNorm(4),
        nn.BatchNorm2d(4, track_running_stats=False), nn.MaxPool2d(3, dilation=2), nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True), nn.MaxPool2d((2, 3)), nn.MaxPool2d(12), nn.AvgPool2d(2),
    ):  # fmt: skip
        assert layers.forward_of(other) is None
    module = nn.BatchNorm2d(4)
    exact = torch.randn(2, 4, 3, 3)
    assert torch.equal(layers.batch_norm(module, exact), nn.BatchNorm2d(4)(exact))
    assert int(module.num_batches_tracked) == 1
    trained = module.eval()(exact.bfloat16().to(memory_format=LAST))
    assert torch.equal(layers.batch_norm(module, exact.bfloat16().to(memory_format=LAST)), trained)


def test_the_trial_passes_and_finds_kernels_that_do_not_compute_the_same(monkeypatch):
    layers.check(torch.device("cpu"))
    monkeypatch.setattr(layers, "max_pool", lambda module, images: 2 * module(images))
    with pytest.raises(RuntimeError, match="our kernels of MaxPool2d compute something else than torch"):
        layers.check(torch.device("cpu"))
