from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kdsearch.errors import KdsearchError
from kdsearch.export import formats
from kdsearch.measure import onnx
from kdsearch.search.workshop import Workshop

pytestmark = pytest.mark.slow  # the first export of a process imports for seconds


def convolutional() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
        )


def test_products_are_integer_the_logits_near_and_the_file_smaller(workshop: Workshop, tmp_path: Path):
    network, split, paths = convolutional().eval(), workshop.split, {}
    for kind in formats.OF_ONNX:
        paths[kind] = tmp_path / formats.ENDINGS[kind]
        formats.write(network, split, kind, paths[kind], {})
    assert onnx.float_products(paths["onnx"], split.test.images[:2])
    assert not onnx.float_products(paths[formats.INT8], split.test.images[:2])
    wanted = onnx.Prepared(network, split)(split.test.images)
    for count in (1, len(wanted)):
        run = formats.load(paths[formats.INT8], split, formats.INT8, threads=1, blank=network)
        found = run(split.test.images[:count])
        assert found.shape == (count, 10)
        assert (found - wanted[:count]).abs().max() < 0.05 * (wanted.max() - wanted.min())
    assert len(set(found[0].tolist())) == 10  # the logits are no integers
    assert paths[formats.INT8].stat().st_size < 0.7 * paths["onnx"].stat().st_size


def test_the_images_to_calibrate_on_are_a_draw_of_the_training_images_that_stays():
    images = torch.arange(600)[:, None, None, None]
    drawn = formats.calibration(images)
    assert torch.equal(drawn, formats.calibration(images))
    assert len(set(drawn.flatten().tolist())) == formats.CALIBRATION
    assert len(formats.calibration(images[:7])) == 7


def test_a_file_that_computes_in_float_is_no_int8_file(workshop: Workshop, tmp_path: Path):
    network = convolutional().eval()
    formats.write(network, workshop.split, "onnx", tmp_path / "float.onnx", {})
    with pytest.raises(KdsearchError, match=r"all its products in integers \(got 1 .*Conv in float, 1 Gemm in float\)"):
        formats.verify(workshop, network, formats.INT8, tmp_path / "float.onnx")
