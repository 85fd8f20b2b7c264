from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdsearch.errors import DeviceError
from kdsearch.system import machine

CPU = torch.device("cpu")


def test_cpu_is_always_there():
    assert machine.resolve_device("cpu") == CPU


def test_sources_have_a_digest_that_follows_them():
    one, folder = machine.sources_digest("pareto.py"), machine.sources_digest("pruning")
    assert one == hashlib.sha256(Path(machine.__file__).parents[1].joinpath("pareto.py").read_bytes()).hexdigest()[:16]
    assert len({one, folder, machine.sources_digest("pruning", "pareto.py")}) == 3
    with pytest.raises(FileNotFoundError):
        machine.sources_digest("a room that moved")


@pytest.mark.parametrize("name", ["tpu", "", "cuda:x", "cpu:0", "CUDA", "cuda:-1"])
def test_a_device_of_another_name_is_refused(name):
    with pytest.raises(DeviceError, match="must be auto, cpu, cuda or cuda:N"):
        machine.resolve_device(name)


def test_a_device_that_is_not_there_is_refused_with_a_remedy():
    with pytest.raises(DeviceError, match=r"got cuda:99\); use --device cpu"):
        machine.resolve_device("cuda:99")


@pytest.mark.cuda
def test_auto_is_the_first_cuda_device():
    assert machine.resolve_device("auto") == machine.resolve_device("cuda") == torch.device("cuda:0")
    assert machine.device_model(torch.device("cuda:0")) == torch.cuda.get_device_name(0)


def test_seeds_depend_on_every_part_and_stay_as_they_are():
    assert machine.derive_seed("a", 1) == machine.derive_seed("a", 1)
    parts = [("a", 1), ("a", 2), ("b", 1), ("a", "1"), ("a", 1, None), ("a",)]
    seeds = {machine.derive_seed(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert machine.derive_seed("trial", 0, 0) == 902259711619352577  # a new value would break stored studies


def test_seeded_repeats_and_puts_the_global_generator_back():
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with machine.seeded(5, CPU):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_are_put_back_even_after_an_error():
    before = torch.get_num_threads()

    seen = []

    def fail() -> None:
        with machine.threads(before + 1):
            seen.append(torch.get_num_threads())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_the_environment_names_versions_device_and_threads():
    found = machine.environment(CPU)
    assert torch.__version__.startswith(found["torch"])
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert found["device_model"] == machine.cpu_model()
    assert "not installed" not in found.values()
    assert machine.package_version("no-such-package-at-all") == "not installed"


def test_folders_come_from_the_argument_then_the_environment(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("KDSEARCH_CACHE_DIR", str(tmp_path))
    assert machine.cache_folder() == tmp_path
    assert machine.data_folder() == tmp_path / "data"
    monkeypatch.setenv("KDSEARCH_DATA_DIR", "~/sets")
    assert machine.data_folder() == Path.home() / "sets"
    assert machine.data_folder("here") == Path("here")


@pytest.mark.parametrize("before", [False, True])
def test_denormals_are_flushed_within_and_as_before_after(before: bool):
    def flushed() -> bool:
        return not (torch.full((64,), 1e-40) * 1.0).any().item()

    if not torch.set_flush_denormal(before):
        pytest.skip("this CPU cannot")
    try:
        with machine.denormals_flushed():
            assert flushed()
            with machine.denormals_flushed():
                assert flushed()
            assert flushed()
        assert flushed() == before
        with pytest.raises(ValueError, match="no"), machine.denormals_flushed():
            raise ValueError("no")
        assert flushed() == before
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept_by_the_process():
    code = """
import torch
from pathlib import Path
from kdsearch.system import machine
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6
def kept():
    before = resident()
    torch.ones(25_000_000)
    return resident() - before
first = kept()
assert machine.keep_freed_memory()
print(first, kept())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    without, megabytes = map(float, done.stdout.split())
    assert without < 50
    assert megabytes > 90


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile amx_bf16", ["avx512_bf16", "amx_bf16"]),
        ("flags\t\t: fpu avx2 avx_ne_convert", ["avx_ne_convert"]),
        ("Features\t: fp asimd sve i8mm bf16", ["bf16"]),
        ("flags\t\t: fpu avx2 avx512f", []),
    ],
)
def test_bfloat16_instructions_are_those_that_the_system_names(monkeypatch, line, expected):
    monkeypatch.setattr(machine, "_lines", lambda path: ["processor\t: 0", line])
    machine.bf16_instructions.cache_clear()
    assert machine.bf16_instructions() == expected
    machine.bf16_instructions.cache_clear()


def test_where_the_system_names_none_torch_is_asked(monkeypatch):
    monkeypatch.setattr(machine, "_lines", lambda path: [])
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    machine.bf16_instructions.cache_clear()
    assert machine.bf16_instructions() == ["amx_bf16"]
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    machine.bf16_instructions.cache_clear()
    assert machine.bf16_instructions() == []
    machine.bf16_instructions.cache_clear()
