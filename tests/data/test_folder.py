from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from kdsearch import data
from kdsearch.data import folder, pictures
from kdsearch.errors import DataError
from kdsearch.spec import DataSpec
from kdsearch.system import machine


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


def test_small_images_are_decoded_in_one_thread_and_large_ones_in_several_alike(tmp_path: Path, monkeypatch):
    paths = [tmp_path / f"{number}.png" for number in range(folder.PROBED + 3)]
    for number, path in enumerate(paths):
        paint(path, (number, 0, 0))
    found, pools = [], []
    pool = folder.ThreadPoolExecutor
    monkeypatch.setattr(folder, "ThreadPoolExecutor", lambda *about: pools.append(about) or pool(*about))
    for small in (60.0, 0.0):
        monkeypatch.setattr(folder, "SMALL", small)
        found.append(folder.decode_files(paths, 4))
        assert len(pools) == len(found) - 1
    assert torch.equal(*found)
    assert found[0][:, 0, 0, 0].tolist() == list(range(len(paths)))


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


def test_test_images_that_were_trained_on_are_told(root: Path):
    for name in ("cat", "dog"):
        paint(root / "test" / name / "0.png", (1, 2, 3))
    assert not any("equal a training image" in note for note in load(root).notes)
    shutil.copy(root / "train" / "dog" / "1.png", root / "test" / "dog" / "again.png")
    assert any("1 of 3 test images equal a training image" in note for note in load(root).notes)


def test_uneven_classes_are_told(root: Path):
    for number in range(5):
        paint(root / "train" / "cat" / f"more{number}.png", 0)
    assert "7 training images of cat, 2 of dog" in load(root).notes[0]


def grey(path: Path, values, dtype) -> None:
    """A grey file of more than 8 bits with these values, a row each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(np.array(values, dtype)[:, None], len(values), 1)).save(path)


@pytest.mark.parametrize(
    ("ending", "dtype", "top", "expected"),
    [
        ("png", np.uint16, 200, 255), ("png", np.uint16, 1_000, 1_023), ("png", np.uint16, 4_000, 4_095),
        ("png", np.uint16, 16_000, 16_383), ("png", np.uint16, 60_000, 65_535), ("tif", np.int32, 255, 255),
        ("tif", np.float32, 0.9, 1.0), ("tif", np.float32, 250.0, 255.0), ("tif", np.float32, 65_000.0, 65_535.0),
    ],
)  # fmt: skip
def test_deep_images_are_scaled_by_the_range_of_the_whole_set(root: Path, ending: str, dtype, top, expected):
    grey(root / "train" / "cat" / f"dark.{ending}", [0, top / 8, top / 4, top / 2], dtype)
    grey(root / "test" / "dog" / f"bright.{ending}", [0, top / 4, top / 2, top], dtype)
    loaded = load(root, image_size=4)
    assert loaded.scale is not None
    assert (loaded.scale.floats if dtype is np.float32 else loaded.scale.integers) == expected
    dark, bright = loaded.train.images[2, 0, :, 0], loaded.test.images[-1, 0, :, 0]
    for image, shares in ((dark, [0, 1 / 8, 1 / 4, 1 / 2]), (bright, [0, 1 / 4, 1 / 2, 1])):
        stored = np.array([share * top for share in shares], dtype).astype(float)
        assert image.tolist() == np.rint(stored * 255 / expected).astype(int).tolist()
    unusual = expected != (1.0 if dtype is np.float32 else 65_535)
    assert any("becomes 255, in all of them" in note for note in loaded.notes) is unusual


def test_numbers_that_no_depth_holds_are_refused(root: Path):
    grey(root / "train" / "cat" / "0.tif", [0, 1, 70_000], np.int32)
    with pytest.raises(DataError, match="must lie between 0 and 65535, not 0 and 70000"):
        load(root)
    grey(root / "train" / "cat" / "0.tif", [-5, 1, 7], np.int32)
    with pytest.raises(DataError, match="must lie between 0 and 255, not -5 and 7"):
        load(root)
    grey(root / "train" / "cat" / "0.tif", [0.0, float("nan")], np.float32)
    with pytest.raises(DataError, match="not nan and nan"):
        load(root)


def deep_colour(path: Path, value: int) -> None:
    """A PNG of 4x4 pixels of 16 bits a channel, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = (b"\x00" + struct.pack(">3H", value, value // 2, 0) * 4) * 4
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def test_deep_colour_must_use_its_range(root: Path):
    path = root / "train" / "cat" / "0.png"
    deep_colour(path, 60_000)
    assert load(root, image_size=4).train.images[0, :, 0, 0].tolist() == [60_000 >> 8, 30_000 >> 8, 0]
    for value in (4_095, 255):
        deep_colour(path, value)
        with pytest.raises(DataError, match=r"16-bit colour .* no value above .* save them with 8 bits a channel"):
            load(root)


def test_images_that_show_nothing_get_a_warning(root: Path):
    flat = [note for note in load(root).notes if "nearly constant" in note]
    assert flat == [f"4 of 4 {flat[0].partition('4 of 4 ')[2]}"]
    for number, path in enumerate(sorted(root.glob("train/*/*.png"))[:2]):
        Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) + number).save(path)
    assert not any("nearly constant" in note for note in load(root).notes)


def test_a_validation_folder_is_the_validation_set(root: Path):
    for name, colour in (("cat", (1, 2, 3)), ("dog", (4, 5, 6))):
        paint(root / "val" / name / "0.png", colour)
    loaded = load(root)
    parts = data.split(loaded, DataSpec(name="folder", validation=0.5), torch.device("cpu"))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (4, 2, 2)
    assert parts.validation.images[:, 0, 0, 0].tolist() == [1, 4]
    assert data.whole(loaded, torch.device("cpu")).train.labels.tolist() == [0, 0, 1, 1, 0, 1]
    small = data.split(loaded, DataSpec(name="folder", train_size=2), torch.device("cpu"))
    assert small.train.labels.tolist() == [0, 1]


def test_a_class_with_too_few_images_is_named_with_how_many_it_needs(root: Path):
    paint(root / "train" / "eel" / "0.png", 0)
    paint(root / "test" / "eel" / "0.png", 0)
    with pytest.raises(DataError, match=r"at least 2 training images, one each for .* \(got eel has 1\)"):
        load(root)
    shutil.rmtree(root / "test")
    with pytest.raises(
        DataError, match=r"at least 3 .*training and validation and test \(got cat has 2, dog has 2, eel"
    ):
        load(root)


def test_three_images_of_a_class_are_enough_for_one_in_each_part(tmp_path: Path):
    for name, count in (("ant", 40), ("bee", 40), ("cat", 3)):
        for number in range(count):
            paint(tmp_path / "train" / name / f"{number}.png", (number, 0, 0))
    parts = data.split(load(tmp_path), DataSpec(name="folder", validation=0.1), torch.device("cpu"))
    for part in (parts.train, parts.validation, parts.test):
        assert part.labels.bincount(minlength=3).tolist()[2] == 1


def test_what_was_read_and_skipped_is_summed_up(root: Path):
    (root / "train" / "cat" / "notes.txt").write_text("x")
    assert load(root).summary == (
        f"{root} holds 4 training images and 2 test images of 2 classes; skipped: 1 no image that Pillow reads (.txt)"
    )


def test_the_path_is_a_hint_and_a_named_data_folder_comes_first(root: Path, tmp_path_factory: pytest.TempPathFactory):
    def found(name: str, named: Path) -> Path:
        return folder.locate(DataSpec(name=f"folder:{name}"), named).resolve()

    elsewhere, usual = tmp_path_factory.mktemp("elsewhere"), machine.data_folder(None)
    assert found(f"{root}/", usual) == root
    assert found("gone/photos", root) == root  # the folder itself
    (elsewhere / "photos").mkdir()
    assert found("gone/photos", elsewhere) == elsewhere / "photos"
    assert found(str(root), elsewhere) == root  # which holds neither
    assert found(str(elsewhere), root) == root
    with pytest.raises(DataError, match="name their folder with --data-dir"):
        data.load(DataSpec(name="folder:gone/photos"), usual)


def test_what_stands_in_the_place_of_an_image_is_named(root: Path):
    path = root / "train" / "dog" / "1.png"
    for content, words in {
        b"": "it is empty",
        b"<!DOCTYPE html><html>": "it is a web page",
        b"version https://git-lfs.github.com/spec/v1\n": "it is a Git LFS pointer",
    }.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            load(root)


def test_broken_exif_data_do_not_hide_an_image(root: Path):
    picture = Image.new("RGB", (4, 4), (9, 90, 200))
    picture.save(root / "train" / "cat" / "a.jpg", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x05\x01\x12\x00")
    assert load(root).train.images[2, 2].float().mean().item() == pytest.approx(200, abs=8)


def test_class_names_that_differ_in_case_only_get_a_line(root: Path):
    for part in ("train", "test"):
        (root / part / "dog").rename(root / part / "Cat")
    assert any("differ in case only: Cat and cat" in note for note in load(root).notes)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(tmp_path: Path, orientation: int):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(pictures.read(tmp_path / "a.png", 8), expected)


def test_a_photograph_with_broken_tags_beside_its_orientation_is_turned(tmp_path: Path):
    """Pillow's issues 8548 and 8605: a place of 0/0 degrees, which exif_transpose cannot write anew."""
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    place = struct.pack("<HHII", 0x8825, 4, 1, 38)
    latitude = struct.pack("<H", 1) + struct.pack("<HHII", 2, 5, 3, 56) + bytes(4)
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<H", 2) + orientation + place + bytes(4) + latitude
    picture = Image.new("RGB", (16, 16), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 8, 8))
    picture.save(tmp_path / "a.jpg", exif=exif + bytes(24))
    image = pictures.read(tmp_path / "a.jpg", 16)
    assert not isinstance(image, str)
    assert image[2, 13].min() > 200
    assert image[2, 2].max() < 50


@pytest.mark.parametrize(("classes", "noted"), [(("1", "2", "10"), True), (("01", "02", "10"), False)])
def test_numbers_in_the_order_of_text_get_a_line(tmp_path: Path, classes: tuple[str, ...], noted: bool):
    for name in classes:
        for number in range(6):
            paint(tmp_path / "train" / name / f"{number}.png", 0)
    loaded = load(tmp_path)
    assert any("in the order of text" in note for note in loaded.notes) is noted
    assert loaded.classes == tuple(sorted(classes))


def test_pictures_that_pillow_does_not_read_get_a_warning(root: Path):
    for number in range(3):
        (root / "train" / "cat" / f"IMG_{number}.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic")
    assert any("(3 .heic): convert them to JPEG or PNG" in note for note in load(root).notes)


def test_an_image_of_too_many_pixels_says_what_to_do(root: Path):
    Image.new("1", (20_000, 9_000)).save(root / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match=r"more pixels than Pillow decodes \(178,956,970\): make it smaller"):
        load(root)


def test_names_that_are_not_utf8_are_names(root: Path):
    odd = os.fsdecode(b"caf\xe9")
    for part in ("train", "test"):
        (root / part / "cat").rename(root / part / odd)
    (root / "train" / odd / "0.png").rename(root / "train" / odd / os.fsdecode(b"\xff.png"))
    loaded = load(root)
    assert loaded.classes == (odd, "dog")
    assert len(loaded.train) == 4
