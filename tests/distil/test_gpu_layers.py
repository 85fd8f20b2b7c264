from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdsearch.distil import lean
from kdsearch.distil.lean import own_kernels
from kdsearch.distil.step import Format
from tests.distil.test_step import RECIPES, outcome

triton = pytest.importorskip("triton")
VERSION = tuple(map(int, triton.__version__.split(".")[:2]))


@pytest.mark.slow
@pytest.mark.skipif(VERSION < (3, 7), reason="the interpreter of Triton 3.6 does not work with NumPy 2.4")
def test_the_kernels_are_torchs_layers_in_tritons_interpreter():
    tests = Path(__file__).with_name("interpreted_gpu_layers.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(tests)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout
    assert "6 passed" in ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
def test_the_kernels_compile_without_a_gpu(architecture, tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kdsearch.distil import gpu_layers

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    values = {
        "tile_rows": gpu_layers.ROWS, "tile_channels": gpu_layers.CHANNELS, "most_parts": gpu_layers.PARTS,
        "kernel": 3, "stride": 2, "padding": 1, "windows": 2, "size": gpu_layers.POOLED,
    }  # fmt: skip
    kinds = {"images": "*bf16", "grads": "*bf16", "out": "*bf16", "chosen": "*i8", "momentum": "fp32", "eps": "fp32"}
    whole = {"rows", "channels", "per", "parts", "per_program", *gpu_layers.SIZES}
    for kernel in (
        gpu_layers._moments, gpu_layers._normalise, gpu_layers._gradient_sums, gpu_layers._gradient, gpu_layers._pool,
        gpu_layers._unpool,
    ):  # fmt: skip
        fixed = {name: values[name] for name in kernel.arg_names if name in values}
        signature = {
            name: "constexpr" if name in fixed else kinds.get(name, "i32" if name in whole else "*fp32")
            for name in kernel.arg_names
        }
        made = triton.compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", architecture, 32))
        assert "cubin" in made.asm


def test_where_triton_does_not_run_torchs_layers_do(monkeypatch):
    from kdsearch.distil import gpu_layers

    def fail(device: torch.device) -> None:
        raise RuntimeError("x" * 300 + "\nFailed to find C compiler")

    own_kernels.cache_clear()
    monkeypatch.setattr(gpu_layers, "check", fail)
    with pytest.warns(UserWarning, match="Triton does not run: x+ Failed to find C compiler$"):
        assert own_kernels(torch.device("cuda", 0)) is None
    own_kernels.cache_clear()


@pytest.mark.cuda
def test_they_run_here():
    assert own_kernels(torch.device("cuda", 0)) is not None


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["c1", "c6"])
def test_a_step_with_them_is_near_that_with_torchs_layers(name, monkeypatch):
    """From the same weights, in bfloat16: as near as two trainings of the same kernels with other rounding."""
    from kdsearch import spec
    from kdsearch.experiments.train_bench.paper_budget import student

    config = spec.load(spec.shipped("cifar10")).anchors[name].config
    shown = torch.randn(100, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    found = []
    for own in (True, False):
        if not own:
            monkeypatch.setattr(lean, "own_kernels", lambda device: None)
        torch.manual_seed(0)
        network = student(config).cuda().to(memory_format=torch.channels_last).train()
        with lean.Lean(network, Format(True, torch.channels_last)) as steps, torch.autocast("cuda", torch.bfloat16):
            assert len(steps._own) == (sum(type(each) in (nn.BatchNorm2d, nn.MaxPool2d) for each in network.modules())
                                       if own else 0)  # fmt: skip
            steps.cast()
            loss = F.cross_entropy(network(shown).float(), torch.arange(100, device="cuda") % 10)
            loss.backward()
            steps.collect()
        assert all("forward" not in vars(module) for module in network.modules())
        gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        moments = torch.cat([b.flatten() for n, b in network.named_buffers() if "running" in n])
        found.append((loss.item(), gradients, moments))
    (loss, gradients, moments), (plain, expected, means) = found
    assert loss == pytest.approx(plain, rel=1e-2)
    assert (gradients - expected).norm() < 0.3 * expected.norm()
    assert (moments - means).norm() < 0.02 * means.norm()


@pytest.mark.cuda
def test_a_training_with_them_is_near_that_with_torchs_layers(monkeypatch):
    ours = outcome(RECIPES["deck"], "cuda")
    monkeypatch.setattr(lean, "own_kernels", lambda device: None)
    assert ours[0] == pytest.approx(outcome(RECIPES["deck"], "cuda")[0], rel=3e-2)
