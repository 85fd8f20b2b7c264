from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from helpers.commands import PHOTOS_STUDY, Run
from PIL import Image

from kdsearch.data import pictures


def files(folder: Path) -> list[Path]:
    """Pictures of every kind that is read in its own way."""
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    images = {
        "turned.jpg": (Image.fromarray(noise[..., :3]), {"exif": turned}),
        "clear.png": (Image.fromarray(noise), {}),
        "clear.webp": (Image.fromarray(noise), {"lossless": True}),
        "grey.png": (Image.fromarray(noise[..., 0]), {}),
        "half.png": (Image.fromarray(noise[..., :2].copy(), "LA"), {}),
        "palette.png": (Image.fromarray(noise[..., :3]).quantize(16), {"transparency": 3}),
        "frames.gif": (
            Image.fromarray(noise[..., :3]),
            {"save_all": True, "append_images": [Image.new("RGB", (30, 20))]},
        ),
        "inks.jpg": (Image.fromarray(noise[..., :3]).convert("CMYK"), {}),
        "deep.png": (Image.fromarray(noise[..., 0].astype(np.uint16) * 16), {}),
        "number.tif": (Image.fromarray(random.random((20, 30), dtype=np.float32)), {}),
    }  # fmt: skip
    folder.mkdir()
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [folder / name for name in images]


@pytest.mark.slow
@pytest.mark.usefixtures("few_pairs")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_cards_script_gives_the_predictions_of_the_exported_file(kdsearch: Run, photos: Path, tmp_path: Path):
    (tmp_path / "f.toml").write_text(PHOTOS_STUDY)
    deep = np.full((8, 8), 4_000, dtype=np.uint16)
    deep[:4] = 10
    Image.fromarray(deep).save(photos / "train" / "red" / "deep.png")
    study = ("--storage", f"journal:{tmp_path / 'k.log'}")
    options = ("--study", "f.toml", "--cost", "flops", "--seed", "0", "--trials", "1", "--device", "cpu")
    assert kdsearch("optimize", "--dataset", "folder:photos", *options, *study).code == 0
    assert kdsearch("export", "--trial", "0", "--out", "shipped", *study).code == 0
    card = (tmp_path / "shipped" / "trial-0.md").read_text(encoding="utf-8")
    for words in ("RGB", "upright", "resized to 8 x 8 whatever its aspect", "BILINEAR", "over white", "255 / 4,095"):
        assert words in card
    [script] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (tmp_path / "shipped" / "read.py").write_text(script)
    paths = files(tmp_path / "new")
    ran = subprocess.run(
        [sys.executable, "read.py", *map(str, paths)],
        cwd=tmp_path / "shipped",
        capture_output=True,
        text=True,
        check=True,
    )
    session = onnxruntime.InferenceSession(tmp_path / "shipped" / "trial-0.onnx")
    scale = pictures.Scale(integers=4_095)
    for path, line in zip(paths, ran.stdout.splitlines(), strict=True):
        image = pictures.read(path, 8, scale)
        assert not isinstance(image, str)
        logits = session.run(None, {"images": image.transpose(2, 0, 1)[None]})[0][0]
        name, chosen, *numbers = line.split(" ")
        assert name == str(path)
        assert chosen == ["blue", "green", "red"][logits.argmax()]
        np.testing.assert_allclose([float(number) for number in numbers], logits, rtol=1e-5)
