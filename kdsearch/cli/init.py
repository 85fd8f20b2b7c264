"""`kdsearch init`: a study file to edit, fitted to a folder of images."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kdsearch.cli.options import DataDir, lazy_imports
from kdsearch.errors import KdsearchError
from kdsearch.system import files

with lazy_imports():
    from kdsearch import spec
    from kdsearch.data import folder, listing
    from kdsearch.system import machine

SEED = "seed = 0\n"
RESNET18 = "torchvision.models:resnet18"
SIZES = (32, 48, 64, 96, 128, 160, 224)
MOST_ON_CPU = 64  # pixels: four times as many cost about four times the time
ZOO_FROM = 64  # pixels: published networks make an image 32 times smaller
BATCHES = (16, 32, 64, 100, 128, 256, 512)
STEPS = 10  # of an epoch, at least
BATCH_PIXELS = 2**20  # of a batch in training, at most: 256 images of 64x64
FEW = 5_000  # training images: fewer teach a ResNet50 little
FEW_HELD_OUT = 300  # validation images: fewer move by more than 0.3 points with one image
ZOO = """name = ["mobilenet_v3_small", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet0_5",
        "efficientnet_b0", "resnet18", "regnet_y_400mf"]    # or any other classifier of torchvision
width_mult = [0.5, 0.75, 1.0]                           # channels, of those that have it; dropped for the others
weights = "none"                                        # or "imagenet", downloaded once: then without width_mult
"""


def init(
    file: Annotated[Path, typer.Argument(help="The study file to write.")] = Path("study.toml"),
    dataset: Annotated[str, typer.Option(help="Whose shipped study file to begin with.")] = "digits",
    teacher: Annotated[
        str | None,
        typer.Option(help="A function that builds your teacher, such as torchvision.models:resnet18."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Write a commented study file for `kdsearch optimize --study FILE`; of folder:PATH, fitted to its images.

    It says what it chose, and why.
    """
    if file.exists() and not force:
        raise KdsearchError("the file must not exist yet", got=file, remedy="give another name, or --force")
    text = spec.shipped(dataset).read_text(encoding="utf-8")
    images = _look(dataset, data_dir, needed=teacher is not None)
    lines: list[str] = []
    build, classes = teacher, 10
    if dataset.startswith("folder:"):
        text = text.replace('name = "folder"', f"name = {json.dumps(dataset)}")
        lines = ["the folder is not there: nothing was looked at, and the values are those for 32x32 images"]
    if images is not None:
        choice = choose(images)
        text, lines = fitted(text, choice), choice.reasons
        build, classes = choice.teacher if teacher is None else teacher, images.classes
    if build is not None:
        text = _with_teacher(text, build, classes)
    if teacher is not None:
        lines = [line for line in lines if not line.startswith("teacher")]
    spec.parse(text, source="the study file")
    files.write_whole(file, lambda beside: beside.write_text(text, encoding="utf-8"))
    for line in lines:
        print(line)
    print(f"{file}: edit it, then run `kdsearch optimize --study {shlex.quote(str(file))}`")


@dataclass(frozen=True)
class Images:
    """What a study's values are chosen by."""

    classes: int  # how many
    train: int  # training images
    held_out: bool  # whether there are validation images already
    side: int  # the median of the shorter sides, in pixels
    gpu: bool  # whether torch sees a CUDA device


@dataclass(frozen=True)
class Choice:
    """Values of a study file, each with its reason."""

    size: int  # height and width that images are resized to
    validation: float  # share of the training images
    batches: list[int]  # sizes for students; the teacher has the largest of them up to 128
    epochs: int  # of the longest student's training
    teacher_epochs: int
    teacher: str | None  # the function that builds it; None: the shipped ResNet50
    zoo: bool  # whether students are published networks
    timed: int  # images a batch when teacher and student are timed
    reasons: list[str]


def _look(dataset: str, data_dir: str | None, *, needed: bool) -> Images | None:
    """What lies in a folder of images; None of other data sets, and where a folder that is not needed is not there.

    Raises:
        DataError: a study would refuse the folder.
    """
    if not dataset.startswith("folder:"):
        return None
    import torch

    root = folder.locate(spec.DataSpec(name=dataset), machine.data_folder(data_dir))
    if not root.is_dir() and not needed:
        return None
    layout = listing.list_folder(root)
    paths = layout.train.paths
    side = listing.shorter_side(listing.heads(paths)) or SIZES[0]
    held_out = "validation" in layout.parts
    return Images(len(layout.train.classes), len(paths), held_out, side, torch.cuda.is_available())


def choose(images: Images) -> Choice:
    """Values for a study of these images, by rules of thumb that the reasons name."""
    size, of_size = _size(images)
    share = 0.2 if not images.held_out and 0.1 * images.train < FEW_HELD_OUT else 0.1
    left = images.train if images.held_out else round(images.train * (1 - share))
    batches = [b for b in BATCHES if b == BATCHES[0] or (b * STEPS <= left and b * size**2 <= BATCH_PIXELS)]
    epochs = 15 if left >= 10_000 else 20 if left >= 3_000 else 30
    teacher_epochs = 30 if left >= 3_000 else 40
    small = images.train < FEW or size >= ZOO_FROM
    zoo, timed = size >= ZOO_FROM, 100 if size <= 64 else 16
    held = "its own validation images" if images.held_out else f"{round(images.train * share):,} validation images"
    reasons = [
        f"image_size = {size}: {of_size}",
        f"validation = {share:g}: {held}" + (f", for a tenth would be {images.train // 10:,}" if share > 0.1 else ""),
        f"batch_size = {batches}: at least {STEPS} steps an epoch of {left:,} images, and at most "
        f"{BATCH_PIXELS // size**2:,} images of {size}x{size} at once, for memory",
        f"epochs up to {epochs}, the teacher's {teacher_epochs}: {left:,} images are {left // batches[0]:,} steps of "
        f"{batches[0]} an epoch" + (", few" if left < 3_000 else ""),
        f"teacher {RESNET18}: " + (f"fewer than {FEW:,} images teach a ResNet50 little" if images.train < FEW else
                                   f"a ResNet50 with a 3x3 stem takes long at {size}x{size}") if small else
        f"teacher resnet50 with a 3x3 stem: for {images.train:,} images of {size}x{size}",
        "students of the family torchvision: published networks, made for images this large" if zoo else
        f"students of the family resnet: a 3x3 stem, for images as small as {size}x{size}",
        f"latency batch = {timed}: images that are timed at once",
    ]  # fmt: skip
    return Choice(size, share, batches, epochs, teacher_epochs, RESNET18 if small else None, zoo, timed, reasons)


def _size(images: Images) -> tuple[int, str]:
    """Height and width to resize to, and why."""
    fitting = max((size for size in SIZES if size <= images.side), default=SIZES[0])
    half = f"the median shorter side is {images.side} pixels"
    if images.side < SIZES[0]:
        return SIZES[0], f"{half}, and smaller images than this are enlarged for the networks' sake"
    if fitting > MOST_ON_CPU and not images.gpu:
        return MOST_ON_CPU, f"{half}, but without a GPU larger images take long; {fitting} is the most that they give"
    return fitting, half


def fitted(text: str, choice: Choice) -> str:
    """The shipped study file of a folder with other values, its comments as they are."""
    values = {
        r"image_size = 32 (.*)to 32x32": rf"image_size = {choice.size} \g<1>to {choice.size}x{choice.size}",
        r"validation = 0\.1 ": f"validation = {choice.validation:g} ",
        r"epochs = 30\n": f"epochs = {choice.teacher_epochs}\n",
        r"batch_size = 128\n": f"batch_size = {max(b for b in choice.batches if b <= 128)}\n",
        r"(?m)^batch = 100 ": f"batch = {choice.timed} ",
        r"epochs = \{ low = 1, high = 15 \}": f"epochs = {{ low = 1, high = {choice.epochs} }}",
        r"batch_size = \[.*\]": f"batch_size = {choice.batches}",
    }
    if choice.zoo:
        values |= {
            r'family = "resnet"  .*': 'family = "torchvision"             # its classifiers by name, see [space]',
            r"(?m)^width = .*\nblocks = .*\nstride = .*\n": ZOO,
        }
    for pattern, value in values.items():
        text, count = re.subn(pattern, value, text)
        assert count == 1, f"the shipped study file has another form: {pattern} is there {count} times"
    return text


def _with_teacher(text: str, build: str, classes: int) -> str:
    """A study file with the user's teacher in place of its family; num_classes where it is a torchvision model."""
    before, header, rest = text.partition("[teacher]")
    _, _, rest = rest.partition(SEED)
    lines = [f"{header}                          # your own: a function that returns an nn.Module"]
    lines += [f"build = {json.dumps(build)}"]
    if build.startswith("torchvision.models:"):
        lines += [f"options = {{ num_classes = {classes} }}"]
    kept = [line for line in rest.splitlines(keepends=True) if not line.startswith(("# build", "# options"))]
    changed = f"{before}{chr(10).join(lines)}\n{SEED}{''.join(kept)}"
    spec.parse(changed, source="--teacher")
    return changed
