from __future__ import annotations

import os
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from kdsearch.data import listing
from kdsearch.errors import DataError


def paint(path: Path, *, form: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (9, 8, 7)).save(path, format=form)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two images in train, one in test."""
    for part, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            for number in range(count):
                paint(tmp_path / part / name / f"{number}.png")
    return tmp_path


def skipped(layout: listing.Layout) -> Counter[str]:
    return Counter(reason for _, reason in layout.skipped)


def names(files: list[Path]) -> list[str]:
    return [path.name for path in files]


def test_images_in_subfolders_of_a_class_count(root: Path):
    paint(root / "train" / "cat" / "session 2" / "day 1" / "0.png")
    layout = listing.list_folder(root)
    assert layout.train.counts == {"cat": 3, "dog": 2}
    assert layout.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert layout.skipped == ()


@pytest.mark.parametrize(("name", "form"), [("a.jfif", "JPEG"), ("a", "PNG"), ("a.photo", "WEBP"), ("a.png", "JPEG")])
def test_an_image_counts_by_its_content(root: Path, name: str, form: str):
    paint(root / "train" / "cat" / name, form=form)
    assert name in names(listing.list_folder(root).train.files["cat"])


def test_what_is_no_image_is_counted_by_reason(root: Path):
    cat = root / "train" / "cat"
    (cat / "notes.txt").write_text("P5 is no image here, nor is BM")
    (cat / "boxes.json").write_text("{}")
    (cat / "paper.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    (cat / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    (cat / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(cat / "pipe.png")
    (root / "train" / "__MACOSX" / "cat").mkdir(parents=True)
    (cat / "@eaDir").mkdir()
    paint(root / "train" / "loose.png")
    paint(root / "unlabelled" / "0.png")
    layout = listing.list_folder(root)
    assert names(layout.train.files["cat"]) == ["0.png", "1.png"]
    assert skipped(layout) == {"hidden": 3, "no image that Pillow reads": 4, "a link to nothing": 1,
                               "in no class folder": 1, "in no part that is used": 1}  # fmt: skip
    line = layout.summary()
    assert "4 training images and 2 test images of 2 classes" in line
    assert "3 hidden (__MACOSX, ._0.png, @eaDir)" in line
    assert "4 no image that Pillow reads (.json, .txt, .eps, ...)" in line
    assert "1 in no part that is used (unlabelled)" in line


def test_nothing_skipped_is_said_too(root: Path):
    assert listing.list_folder(root).summary().endswith("skipped: nothing")


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_a_validation_folder_is_the_validation_part(root: Path, name: str):
    for each in ("cat", "dog"):
        paint(root / name / each / "0.png")
    assert names(listing.list_folder(root).parts["validation"].paths) == ["0.png", "0.png"]


def test_two_validation_folders_are_refused(root: Path):
    for name in ("val", "valid"):
        (root / name).mkdir()
    with pytest.raises(DataError, match=r"one folder of validation images \(got val and valid"):
        listing.list_folder(root)


def test_class_folders_without_parts_are_training_images(root: Path):
    layout = listing.list_folder(root / "train")
    assert layout.train.classes == ("cat", "dog")
    assert [*layout.parts] == ["training"]


def test_a_folder_around_the_folder_of_images_is_refused_with_its_name(root: Path):
    outer = root / "archive"
    outer.mkdir()
    for part in ("train", "test"):
        (root / part).rename(outer / part)
    with pytest.raises(DataError, match=rf"must hold train itself .* give --dataset folder:{outer}"):
        listing.list_folder(root)


def test_a_test_folder_alone_is_refused(root: Path):
    (root / "train").rename(root / "other")
    with pytest.raises(DataError, match="got test and no train"):
        listing.list_folder(root)


@pytest.mark.parametrize("inner", ["red", ""])
@pytest.mark.parametrize("name", ["train", "Training"])
def test_a_class_named_train_is_refused(tmp_path: Path, name: str, inner: str):
    for path in ("bus/0", "car/0", f"{name}/{inner}/0", f"{name}/{inner and 'blue'}/1"):
        paint(tmp_path / f"{path}.png")
    with pytest.raises(
        DataError, match=rf"{name} holds .* one of the classes \(got .*: bus, car\); if it is a class, rename it"
    ):
        listing.list_folder(tmp_path)


def test_classes_named_train_and_test_are_refused(tmp_path: Path):
    for path in ("bus/0", "train/0", "test/0"):
        paint(tmp_path / f"{path}.png")
    with pytest.raises(DataError, match=r"one of the classes \(got .*: bus\)"):
        listing.list_folder(tmp_path)


def test_a_folder_without_images_beside_train_alone_is_skipped(root: Path):
    (root / "test").rename(root / "more")  # its images are in folders inside it
    paint(root / "test1" / "0.png")  # unlabelled, as competitions have them
    (root / "notes").mkdir()
    (root / "notes" / "0.txt").write_text("no image")
    assert skipped(listing.list_folder(root)) == {"in no part that is used": 3}


def test_composed_and_decomposed_names_are_one_class(root: Path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    paint(root / "train" / composed / "0.png")
    paint(root / "train" / decomposed / "1.png")
    paint(root / "test" / decomposed / "0.png")
    layout = listing.list_folder(root)
    assert layout.train.classes == (composed, "cat", "dog")
    assert sorted(names(layout.train.files[composed])) == ["0.png", "1.png"]


def test_the_line_says_which_classes_differ_and_that_it_is_their_case(root: Path):
    (root / "test" / "dog").rename(root / "test" / "Dog")
    with pytest.raises(DataError, match=r"got dog in train only; Dog in test only\); write them in the same case"):
        listing.list_folder(root)


def test_a_class_that_holds_no_image_says_what_it_holds(root: Path):
    (root / "train" / "eel").mkdir()
    (root / "train" / "eel" / "0.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    with pytest.raises(DataError, match=r"must hold images \(got .*eel: 1 no image that Pillow reads \(.heic\)\)"):
        listing.list_folder(root)


def test_links_to_folders_are_followed_and_not_in_a_circle(root: Path):
    outside = paint(root.parent / f"{root.name}-more" / "0.png").parent
    (root / "train" / "cat" / "more").symlink_to(outside)
    (root / "train" / "cat" / "loop").symlink_to(root / "train" / "cat")
    assert listing.list_folder(root).train.counts["cat"] == 3


@pytest.mark.parametrize("target", ["..", "../..", "../dog"])
def test_a_link_to_a_folder_above_or_another_class_is_not_entered(root: Path, target: str):
    (root / "train" / "cat" / "back").symlink_to(target)
    outside = paint(root.parent / f"{root.name}-around" / "0.png").parent
    (outside / "back").symlink_to(root / "train" / "dog")
    (root / "train" / "cat" / "more").symlink_to(outside)
    layout = listing.list_folder(root)
    assert layout.train.counts == {"cat": 3, "dog": 2}
    assert "2 a link to a folder above or another class (back)" in layout.summary()


def test_class_folders_may_be_links(root: Path):
    (root / "train").rename(root / "pool")
    (root / "train").mkdir()
    for name in ("cat", "dog"):
        (root / "train" / name).symlink_to(root / "pool" / name)
    assert listing.list_folder(root).train.counts == {"cat": 2, "dog": 2}


def test_a_folder_without_permission_is_named(root: Path):
    closed = root / "train" / "cat" / "closed"
    closed.mkdir(mode=0)
    own = os.geteuid()
    try:
        if own == 0:  # whom no permission stops
            for folder in (root, *root.parents):
                if Path(tempfile.gettempdir()) in folder.parents:
                    folder.chmod(0o755)
            os.seteuid(65_534)
        with pytest.raises(DataError, match=r"readable: Permission denied \(got .*closed\)"):
            listing.list_folder(root)
    finally:
        os.seteuid(own)


def test_the_order_is_that_of_composed_names(root: Path):
    """A file system that decomposes names must not change which image comes first."""
    for form in ("NFC", "NFD"):
        folder = root / form
        for part in ("a", "b"):
            for name in ("é.png", "f.png", "z.png"):
                paint(folder / part / unicodedata.normalize(form, name))
    orders = [
        [listing.canonical(path.name) for path in listing.list_classes(root / form).paths] for form in ("NFC", "NFD")
    ]
    assert orders[0] == orders[1]
