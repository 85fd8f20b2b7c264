"""Published networks as students: built, refused, drawn, trained to their ends."""

from __future__ import annotations

import re
import sys
import types

import optuna
import pytest
import torch
from helpers.trainings import lesson
from torch import nn

from kdsearch import networks, spec
from kdsearch.data import ImageSet
from kdsearch.distil.train import Run
from kdsearch.errors import StudyFileError
from kdsearch.networks import zoo
from kdsearch.records import architecture
from kdsearch.search import space
from kdsearch.spec import Recipe

NAMES = (
    "mobilenet_v3_small", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_1", "mnasnet0_5", "efficientnet_b0",
    "resnet18", "regnet_y_400mf",
)  # fmt: skip
FAMILY = networks.student_family("torchvision")


def study(lines: str, *, family: str = "torchvision", recipe: str = "") -> spec.StudySpec:
    """The shipped study of a folder with students of the zoo."""
    text = re.sub(r"(?m)^(width|blocks|stride) = .*\n", "", spec.shipped("folder").read_text(encoding="utf-8"))
    text = text.replace('family = "resnet"  ', f'family = "{family}"  ').replace("[space]\n", f"[space]\n{lines}\n")
    return spec.parse(text.replace("[student.recipe]\n", f"[student.recipe]\n{recipe}\n"), source="the test")


def refuse(lines: str, *words: str, shape: networks.Shape = (3, 32, 32), **given: str) -> None:
    with pytest.raises(StudyFileError) as raised:
        checked(study(lines, **given), shape)
    assert all(word in str(raised.value) for word in words), str(raised.value)


def checked(made: spec.StudySpec, shape: networks.Shape = (3, 32, 32)) -> spec.StudySpec:
    networks.check_families(made)
    networks.check_students(made, shape, 3)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (4, 64, 48)])
@pytest.mark.parametrize("name", NAMES)
def test_each_network_makes_logits_of_any_channels(name: str, shape: networks.Shape) -> None:
    network = FAMILY.build({"name": name}, shape, 5)
    for training in (True, False):
        assert network.train(training)(torch.zeros(2, *shape)).shape == (2, 5)


def test_grey_images_give_what_they_gave_as_colour() -> None:
    torch.manual_seed(0)
    colour = FAMILY.build({"name": "squeezenet1_1"}, (3, 32, 32), 3).eval()
    torch.manual_seed(0)
    grey = FAMILY.build({"name": "squeezenet1_1"}, (1, 32, 32), 3).eval()
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(grey(images), colour(images.expand(2, 3, 32, 32)), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "narrower"), [("mobilenet_v3_small", True), ("mnasnet0_5", True), ("resnet18", False)]
)
def test_the_width_counts_where_a_network_has_one(name: str, narrower: bool) -> None:
    whole, half = ({"name": name, "width_mult": width} for width in (1.0, 0.5))
    assert zoo.takes_width(whole) is narrower
    sizes = [networks.parameters(zoo.blank(zoo._torchvision, each, 3)) for each in (whole, half)]
    assert (sizes[1] < 0.7 * sizes[0]) is narrower
    plain = zoo.blank(zoo._torchvision, {"name": name}, 3)
    assert networks.parameters(plain) == sizes[0]


def test_a_width_is_drawn_for_those_that_have_one_alone() -> None:
    made = study('name = ["resnet18", "mobilenet_v3_small"]\nwidth_mult = [0.5, 1.0]')
    trials = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    configs = [space.draw(trials.ask(), made) for _ in range(40)]
    assert {(config["name"], config.get("width_mult")) for config in configs} == {
        ("resnet18", None), ("mobilenet_v3_small", 0.5), ("mobilenet_v3_small", 1.0)
    }  # fmt: skip
    again = spec.from_dict(made.model_dump(mode="json"))
    assert again == made


def test_a_space_may_leave_out_widths_and_weights() -> None:
    config = space.draw(optuna.create_study().ask(), checked(study('name = "shufflenet_v2_x0_5"')))
    assert architecture(config) == {"name": "shufflenet_v2_x0_5"}


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('name = "resnet"', ("space.name must be a classifier of torchvision", "got resnet", "resnet18")),
        ('name = ["resnet18", "fcn_resnet50"]', ("classifier of torchvision", "fcn_resnet50")),
        ("name = 3", ("classifier of torchvision", "got 3")),
        ('name = "vit_b_16"', ("must take the study's images, 3x32x32", "224", "image_size")),
        ('name = "resnet18"\nweights = "yes"', ("space.weights", "yes", '"none"')),
        ('name = "mnasnet1_0"\nwidth_mult = [0.5, 1.0]\nweights = "imagenet"', ("width_mult = 1 alone", "0.5")),
        ('name = "squeezenet1_1"\nfeature_weight = 1.0', ("feature_weight", "squeezenet1_1", "convolution")),
        ('name = "resnet18"\nwidth = 16', ("space.width is no dimension",)),
        ("width_mult = 0.5", ("space.name is missing",)),
        ('name = "mnasnet0_5"\nwidth_mult = "half"', ("space.width_mult must be numbers", "half")),
    ],
)
def test_what_cannot_be_built_is_refused_beforehand(lines: str, words: tuple[str, ...]) -> None:
    refuse(lines, *words)


def test_images_that_are_too_small_are_refused() -> None:
    refuse('name = ["resnet18", "squeezenet1_1"]', "3x16x16", "squeezenet1_1", "image_size", shape=(3, 16, 16))


def test_published_weights_are_not_drawn_over() -> None:
    refuse('name = "resnet18"\nweights = "imagenet"', "init", recipe='init = "glorot"')


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    refuse('name = "shufflenet_v2_x0_5"\nweights = "imagenet"', "can be downloaded", "shufflenet_v2_x0_5", '"none"')


@pytest.mark.parametrize("name", ["squeezenet1_1", "mnasnet0_5"])
def test_published_weights_go_everywhere_but_to_the_classifier(name: str) -> None:
    torch.manual_seed(1)
    published = zoo._torchvision({"name": name}, 1000)
    own = zoo.Zoo("torchvision", zoo._torchvision, lambda: [name], lambda _: published.state_dict())
    network = own.build({"name": name, "weights": "imagenet"}, (3, 32, 32), 4)
    last = zoo.head(network)
    for key, value in network.state_dict().items():
        if not key.startswith(f"{last}."):
            assert torch.equal(value, published.state_dict()[key]), key
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    other = zoo.Zoo("torchvision", zoo._torchvision, lambda: [name], lambda _: {"a": torch.zeros(1)})
    with pytest.raises(StudyFileError, match="published weights must fit"):
        other.build({"name": name, "weights": "imagenet"}, (3, 32, 32), 4)


def test_counting_needs_no_weights() -> None:
    with torch.device("meta"):
        network = FAMILY.build({"name": "regnet_y_400mf", "weights": "imagenet"}, (3, 32, 32), 3)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


def test_weights_without_versions_load() -> None:
    network = zoo._torchvision({"name": "mnasnet0_5"}, 3)
    plain = {key: value + 1 for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="version"):
        network.load_state_dict(plain)
    networks.load_state(network, plain)
    assert all(torch.equal(value, plain[key]) for key, value in network.state_dict().items())


def test_a_batch_of_one_image_at_an_epochs_end_is_left_out() -> None:
    """Batch norm cannot be trained on one value a channel, which is what 32 pixels have come to in the last stage."""
    torch.manual_seed(0)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    network = FAMILY.build({"name": "mobilenet_v3_small", "width_mult": 0.5}, (3, 32, 32), 2)
    what = lesson(ImageSet(images, torch.arange(5) % 2), epochs=1, batch_size=4)
    [record] = Run(network, what, Recipe(averaging=8.0))
    assert record.loss > 0


def test_timm_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "find_spec", lambda name: None)
    refuse('name = "resnet18"', "needs timm", "kdsearch[timm]", family="timm")


def test_timms_networks_keep_the_same_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in where timm is not installed: what is tested is our use of its two functions."""
    zoo._timm_names.cache_clear()
    monkeypatch.setattr(zoo, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "timm", _stand_in())
    made = checked(study('name = ["tiny", "larger"]', family="timm"))
    config = space.draw(optuna.create_study().ask(), made)
    network = networks.student_family("timm").build(config, (1, 32, 32), 4)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 4)
    refuse('name = "huge"', "classifier of timm", "huge", family="timm")
    zoo._timm_names.cache_clear()


def _stand_in() -> types.ModuleType:
    module = types.ModuleType("timm")
    width = {"tiny": 4, "larger": 8}

    def create_model(name: str, *, pretrained: bool, num_classes: int = 1000) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, width[name], 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width[name], num_classes)
        )

    module.create_model = create_model
    module.list_models = module.list_pretrained = lambda: list(width)
    return module
