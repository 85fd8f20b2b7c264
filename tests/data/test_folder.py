from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdsearch import data
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec


def paint(path: Path, colour, *, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, two images each in train, one in test."""
    for part, count in (("train", 2), ("test", 1)):
        for number in range(count):
            paint(tmp_path / part / "cat" / f"{number}.png", (200, 10, 0))
            paint(tmp_path / part / "dog" / f"{number}.png", (0, 10, 200))
    return tmp_path


def load(root: Path, **changes) -> data.Dataset:
    return data.load(DataSpec(name=f"folder:{root}", **changes), Path("unused"))


def test_class_folders_become_images_and_labels(root: Path):
    loaded = load(root, image_size=8)
    assert loaded.classes == ("cat", "dog")
    assert loaded.train.images.shape == (4, 3, 8, 8)
    assert loaded.train.labels.tolist() == [0, 0, 1, 1]
    assert loaded.test.labels.tolist() == [0, 1]
    assert loaded.train.images[0, :, 0, 0].tolist() == [200, 10, 0]
    assert loaded.train.images[2, :, 7, 7].tolist() == [0, 10, 200]


def test_without_a_size_images_are_32x32(root: Path):
    assert load(root).train.images.shape == (4, 3, 32, 32)


def test_height_and_width_are_not_mixed_up(root: Path):
    picture = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(picture).save(root / "train" / "cat" / "0.png")
    assert np.array_equal(load(root, image_size=9).train.images[0].permute(1, 2, 0).numpy(), picture)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("L", 90, [90] * 3), ("RGBA", (9, 8, 7, 255), [9, 8, 7]), ("1", 1, [255] * 3), ("P", 0, None)],
)
def test_images_of_any_mode_become_colour(root: Path, mode, colour, expected):
    paint(root / "train" / "cat" / "0.png", colour, mode=mode)
    image = load(root, image_size=4).train.images[0]
    assert image.shape == (3, 4, 4)
    if expected is not None:
        assert image[:, 2, 2].tolist() == expected


def test_other_files_and_hidden_folders_are_passed_over(root: Path):
    (root / "train" / "cat" / "notes.txt").write_text("x")
    (root / "train" / ".cache").mkdir()
    assert len(load(root).train) == 4


def test_one_class_is_refused(tmp_path: Path):
    paint(tmp_path / "train" / "cat" / "0.png", 0)
    with pytest.raises(DataError, match=r"at least two classes.*got 1 in"):
        load(tmp_path)


def test_a_class_without_images_is_named(root: Path):
    (root / "train" / "eel").mkdir()
    with pytest.raises(DataError, match=r"must hold images \(got .*eel\)"):
        load(root)


@pytest.mark.parametrize("damage", ["no image", "truncated", "empty"])
def test_an_unreadable_image_is_named(root: Path, damage: str):
    path = root / "train" / "dog" / "1.png"
    whole = path.read_bytes()
    path.write_bytes({"no image": b"hello", "truncated": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(DataError, match=r"must be readable.*got .*dog/1.png\); replace or remove it") as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_train_and_test_must_have_the_same_classes(root: Path):
    paint(root / "test" / "eel" / "0.png", 0)
    with pytest.raises(DataError, match=r"same classes \(got eel in test only\)"):
        load(root)


@pytest.mark.parametrize("name", ["folder", "folder:"])
def test_a_folder_needs_its_path(name: str):
    with pytest.raises(DataError, match=r"give --dataset folder:PATH"):
        data.load(DataSpec(name=name), Path("unused"))


def test_a_path_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"must be there \(got .*nowhere\)"):
        load(tmp_path / "nowhere")


def test_sixteen_bits_are_scaled_and_not_clipped(root: Path):
    deep = np.full((4, 4), 32_896, dtype=np.uint16)  # 128 * 257
    Image.fromarray(deep).save(root / "train" / "cat" / "0.png")
    assert load(root, image_size=4).train.images[0].unique().tolist() == [128]


def test_what_is_transparent_shows_white(root: Path):
    paint(root / "train" / "cat" / "0.png", (10, 20, 30, 0), mode="RGBA")
    assert load(root).train.images[0].unique().tolist() == [255]


def test_a_photograph_is_turned_upright(root: Path):
    picture = Image.new("RGB", (4, 4), (0, 0, 0))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(root / "train" / "cat" / "0.png", exif=exif)
    image = load(root, image_size=4).train.images[0]
    assert image[:, 3, 3].tolist() == [255, 0, 0]
    assert image[:, 0, 0].tolist() == [0, 0, 0]


def test_all_unreadable_images_are_counted(root: Path):
    for path in (root / "train" / "cat" / "0.png", root / "test" / "dog" / "0.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="2 of 6 are not"):
        load(root)


def test_without_a_test_folder_the_test_set_is_a_share_by_class(tmp_path: Path):
    for name in ("cat", "dog"):
        for number in range(10):
            paint(tmp_path / "train" / name / f"{number}.png", (number, 0, 0))
    first, second = load(tmp_path), load(tmp_path, split_seed=5)
    assert (len(first.train), first.test.labels.bincount().tolist()) == (16, [2, 2])
    assert first.test.images.equal(second.test.images)
    assert "4 of its 20 images" in first.notes[0]


def test_uneven_classes_are_told(root: Path):
    for number in range(5):
        paint(root / "train" / "cat" / f"more{number}.png", 0)
    assert "7 training images of cat, 2 of dog" in load(root).notes[0]
