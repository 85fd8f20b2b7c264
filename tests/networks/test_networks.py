from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from kdsearch import networks, spec
from kdsearch.errors import StudyFileError
from kdsearch.networks import mlp

MNIST = (1, 28, 28)


def layer(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


@pytest.mark.parametrize("shape", [MNIST, (1, 8, 8), (3, 12, 9)])
def test_the_decks_teacher_has_its_layers_and_fits_the_size_of_the_image(shape):
    channels, height, width = shape
    teacher = networks.build_teacher("cnn", shape, 10)
    flat = 32 * (height - 2) * (width - 2)
    by_hand = layer(9 * channels, 32) + layer(flat, 1200) + layer(1200, 1200) + layer(1200, 10)
    assert networks.parameters(teacher) == by_hand
    assert by_hand == 27_413_130 or shape != MNIST
    assert teacher(torch.zeros(2, *shape)).shape == (2, 10)
    assert [m.p for m in teacher.modules() if isinstance(m, torch.nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize(("width", "count"), [(300, 238_510), (50, 39_760)])
def test_the_decks_student_has_one_hidden_layer(width, count):
    student = networks.student_family("mlp").build({"width": width}, MNIST, 10)
    assert networks.parameters(student) == layer(784, width) + layer(width, 10) == count
    assert networks.size_bytes(student) == 4 * count
    assert student(torch.zeros(2, *MNIST)).shape == (2, 10)


def test_bytes_count_buffers_too():
    norm = torch.nn.BatchNorm1d(3)  # weight, bias, mean, variance of 3 floats, and a 64-bit counter
    assert networks.parameters(norm) == 6
    assert networks.size_bytes(norm) == 4 * 3 * 4 + 8


def test_unknown_families_are_refused_with_the_known_ones():
    with pytest.raises(StudyFileError, match=r"student.family must be known \(got vit\); choose one of mlp, resnet"):
        networks.student_family("vit")
    with pytest.raises(StudyFileError, match=r"teacher.family must be known \(got vit\); choose one of cnn, resnet50"):
        networks.build_teacher("vit", MNIST, 10)


@pytest.fixture
def digits() -> spec.StudySpec:
    return spec.load(spec.shipped("digits"))


def test_a_dimension_that_the_family_lacks_is_refused(digits: spec.StudySpec):
    extra = digits.model_copy(update={"space": {**digits.space, "depth": 3}})
    with pytest.raises(StudyFileError, match=r"space.depth is no dimension.*student.family = mlp"):
        networks.check_families(extra)


def test_a_dimension_that_the_family_needs_is_missed(digits: spec.StudySpec):
    space = {key: value for key, value in digits.space.items() if key != "width"}
    with pytest.raises(StudyFileError, match=r"space.width is missing.*the space holds batch_size, epochs"):
        networks.check_families(digits.model_copy(update={"space": space}))


def of_widths(digits: spec.StudySpec, width: object) -> spec.StudySpec:
    return spec.from_dict({**digits.model_dump(mode="json"), "space": {**digits.space, "width": width}, "anchors": {}})


@pytest.mark.parametrize("width", [[8.5], 8.5, {"low": 8.0, "high": 16.0}])
def test_fractions_of_a_whole_number_are_refused(digits: spec.StudySpec, width):
    with pytest.raises(StudyFileError, match=r"space.width must be whole numbers .*drop the decimal points"):
        networks.check_whole(of_widths(digits, width))


@pytest.mark.parametrize("width", [[8, 10**9], 10**6 + 1, {"low": 8, "high": 10**12}])
def test_whole_numbers_that_no_layer_can_have_are_refused(digits: spec.StudySpec, width):
    with pytest.raises(StudyFileError, match=r"space.width must be at most 1000000 .*lower it"):
        networks.check_whole(of_widths(digits, width))


STAGES = {"low": 0, "high": 2, "stages": 2}


def resnet_of(digits: spec.StudySpec, **dimensions: object) -> spec.StudySpec:
    made = digits.model_dump(mode="json") | {"student": {"family": "resnet"}, "anchors": {}}
    return spec.from_dict(made | {"space": made["space"] | {"width": 8, "blocks": STAGES, "stride": 1} | dimensions})


@pytest.mark.parametrize("blocks", [[1, 2], 1, {"low": 1, "high": 2}])
def test_what_is_not_stages_is_refused_where_a_family_takes_stages(digits: spec.StudySpec, blocks):
    networks.check_stages(resnet_of(digits))
    with pytest.raises(StudyFileError, match=r"space.blocks must be stages .*stages = 4"):
        networks.check_stages(resnet_of(digits, blocks=blocks))


def test_stages_are_refused_where_a_family_takes_none(digits: spec.StudySpec):
    for made in (of_widths(digits, STAGES), resnet_of(digits, width=STAGES)):
        with pytest.raises(StudyFileError, match=r"space.width must not be stages .*drop its key stages"):
            networks.check_stages(made)


def test_a_family_that_does_not_say_where_it_takes_stages_may_take_them_anywhere(digits, monkeypatch):
    monkeypatch.setattr(networks, "student_family", lambda _: networks.Family(("width",), build=mlp.build))
    networks.check_stages(of_widths(digits, STAGES))
    networks.check_stages(of_widths(digits, 8))


@pytest.mark.parametrize("width", [[8, 16.0], 8, {"low": 8, "high": 16, "step": 4}])
def test_whole_numbers_are_taken(digits: spec.StudySpec, width):
    networks.check_whole(of_widths(digits, width))


@pytest.mark.parametrize("part", ["teacher", "student"])
def test_a_family_that_nobody_knows_is_refused_before_any_work(digits: spec.StudySpec, part: str):
    changed = getattr(digits, part).model_copy(update={"family": "vit"})
    with pytest.raises(StudyFileError, match=f"{part}.family"):
        networks.check_families(digits.model_copy(update={part: changed}))


def test_a_family_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        networks.student_family("mlp").dimensions = ()


def test_a_network_without_a_linear_layer_has_no_embedding():
    with pytest.raises(StudyFileError, match=r"end in an nn.Linear .* \(got Flatten\); set feature_weight to 0"):
        networks.classifier(nn.Flatten())


@pytest.mark.parametrize("family", ["cnn", "resnet50"])
def test_the_classifier_makes_the_logits_from_the_embedding(family):
    network = networks.build_teacher(family, (3, 32, 32), 10).eval()
    with torch.no_grad():
        images = torch.rand(2, 3, 32, 32)
        logits, embedding = networks.with_embedding(network, images)
        torch.testing.assert_close(networks.classifier(network)(embedding), logits)
        torch.testing.assert_close(network(images), logits)


class Mean(nn.Linear):
    """A classifier of an image's mean colour."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.mean((2, 3)))


class Attention(nn.Module):
    """A network whose only linear layer, the attention's, is applied by its weights and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = images.flatten(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)


class OnMaps(nn.Linear):
    """A network whose linear layer sees a map's places, one after another."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).mean((1, 2))


@pytest.mark.parametrize(
    "network", [Mean(3, 10), Attention(), OnMaps(4, 10), nn.Sequential(nn.Conv2d(3, 10, 4), nn.Flatten())]
)
def test_a_network_without_a_vector_before_its_classifier_has_an_embedding_without_features(network: nn.Module):
    network.eval()
    images = torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        logits, embedding = networks.with_embedding(network, images)
        torch.testing.assert_close(network(images), logits)
    assert embedding.shape == (2, 0)
