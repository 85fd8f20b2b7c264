from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdsearch.distil.loss import Mix, cls_loss, distillation_loss, div_loss, nd_loss, soft_cross_entropy, weights

temperatures = st.floats(1.0, 20.0)
seeds = st.integers(0, 2**32 - 1)


def logits_of(seed: int, batch: int = 5, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits and labels, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(classes, (batch,), generator=generator)


def plain_divergence(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 KL(teacher || student), a number at a time."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        s_sum = sum(math.exp(x / temperature) for x in s)
        t_sum = sum(math.exp(x / temperature) for x in t)
        for x, y in zip(s, t, strict=True):
            p, q = math.exp(y / temperature) / t_sum, math.exp(x / temperature) / s_sum
            total += p * math.log(p / q)
    return temperature**2 * total / len(student)


def loss(student, labels, teacher, a, temperature=2.0, **mix):
    return distillation_loss(student, labels, teacher, loss_weight=a, temperature=temperature, mix=Mix(**mix))


@given(seeds, temperatures)
def test_divergence_is_that_of_a_plain_loop_and_nothing_for_equal_logits(seed, temperature):
    student, teacher, _ = logits_of(seed)
    found = div_loss(student, teacher, temperature).item()
    assert found == pytest.approx(plain_divergence(student, teacher, temperature), rel=1e-9)
    assert found >= 0
    assert div_loss(student, student, temperature).item() == pytest.approx(0, abs=1e-12)
    assert div_loss(student, student + 7, temperature).item() == pytest.approx(0, abs=1e-9)


def test_divergence_has_the_teacher_as_its_target():
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert div_loss(unsure, sure, 1.0).item() == pytest.approx(math.log(2), abs=2e-3)  # KL(sure || unsure)
    assert div_loss(sure, unsure, 1.0).item() > 3


@given(seeds, temperatures)
def test_doubling_the_batch_changes_nothing(seed, temperature):
    student, teacher, labels = logits_of(seed)
    once = loss(student, labels, teacher, 0.5, temperature)
    twice = loss(student.repeat(2, 1), labels.repeat(2), teacher.repeat(2, 1), 0.5, temperature)
    torch.testing.assert_close(once, twice)


def test_classes_that_nobody_believes_in_change_nothing():
    student, teacher, _ = logits_of(0)
    nobody = torch.full((5, 4), -1e4, dtype=torch.float64)
    wider = div_loss(torch.cat([student, nobody], 1), torch.cat([teacher, nobody], 1), 2.0)
    torch.testing.assert_close(wider, div_loss(student, teacher, 2.0))  # not divided by the classes


@given(seeds)
def test_weight_zero_is_cross_entropy_and_does_not_look_at_the_teacher(seed):
    student, _, labels = logits_of(seed)
    expected = F.cross_entropy(student, labels)
    assert torch.equal(loss(student, labels, None, 0.0, None), expected)
    assert torch.equal(loss(student, labels, torch.full_like(student, math.nan), 0.0), expected)
    assert torch.equal(cls_loss(student, labels), expected)


@given(seeds, temperatures)
def test_weight_one_is_the_teacher_alone_and_does_not_look_at_labels(seed, temperature):
    student, teacher, labels = logits_of(seed)
    expected = div_loss(student, teacher, temperature)
    assert torch.equal(loss(student, labels, teacher, 1.0, temperature), expected)
    assert torch.equal(loss(student, torch.full_like(labels, -7), teacher, 1.0, temperature), expected)


@pytest.mark.parametrize(
    ("a", "expected"), [(0, (1, 0)), (0.25, (1, 0.5)), (0.5, (1, 1)), (0.75, (0.5, 1)), (1, (0, 1))]
)
def test_the_weights_of_both_terms(a, expected):
    assert weights(a) == pytest.approx(expected)


@given(st.floats(0, 1))
def test_level_weights_sum_to_two_and_keep_the_mix(a):
    labels, teacher = weights(a, level=True)
    assert labels + teacher == pytest.approx(2.0)
    plain = weights(a)
    assert labels * plain[1] == pytest.approx(teacher * plain[0])


@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_where_the_teacher_says_what_the_labels_say_the_step_does_not_depend_on_the_weight(seed, a, b):
    student, _, labels = logits_of(seed)
    sure = 1e3 * F.one_hot(labels, student.shape[1]).double()  # a teacher whose softmax is the labels
    steps = []
    for weight in (a, b):
        network = torch.nn.Linear(student.shape[1], student.shape[1]).double()
        torch.nn.init.eye_(network.weight)
        torch.nn.init.zeros_(network.bias)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        loss(network(student), labels, sure, weight, 1.0, level=True).backward()
        optimizer.step()
        steps.append(network.weight.detach().clone())
    torch.testing.assert_close(*steps)


@given(seeds, temperatures)
def test_one_half_is_the_decks_sum_of_both_in_either_form(seed, temperature):
    student, teacher, labels = logits_of(seed)
    plain = loss(student, labels, teacher, 0.5, temperature)
    assert torch.equal(plain, loss(student, labels, teacher, 0.5, temperature, level=True))
    torch.testing.assert_close(plain, cls_loss(student, labels) + div_loss(student, teacher, temperature))


@given(seeds, temperatures, st.floats(1.0, 5.0), st.floats(0, 1))
def test_a_teacher_trained_through_a_softened_softmax_gives_ordinary_logits(seed, temperature, own, a):
    student, teacher, labels = logits_of(seed)
    found = loss(student, labels, own * teacher, a, temperature, softmax_temperature=own)
    torch.testing.assert_close(found, loss(student, labels, teacher, a, temperature))


@given(seeds, st.floats(0, 1), temperatures)
def test_any_weight_mixes_the_two_terms(seed, a, temperature):
    student, teacher, labels = logits_of(seed)
    label_weight, teacher_weight = min(1, 2 * (1 - a)), min(1, 2 * a)
    expected = label_weight * cls_loss(student, labels) + teacher_weight * div_loss(student, teacher, temperature)
    torch.testing.assert_close(loss(student, labels, teacher, a, temperature), expected)


def gradient(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    student = student.clone().requires_grad_()
    div_loss(student, teacher, temperature).backward()
    return student.grad


def test_the_gradient_is_that_of_hinton_and_others():
    student, teacher, _ = logits_of(1)
    temperature = 3.0
    expected = temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1)) / len(student)
    torch.testing.assert_close(gradient(student, teacher, temperature), expected)


def test_at_a_high_temperature_logits_are_matched():
    # Hinton, Vinyals, Dean, section 2.1: the gradient tends to (student - teacher) / classes for zero-mean logits
    student, teacher, _ = logits_of(2)
    student, teacher = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    limit = (student - teacher) / student.shape[1] / len(student)
    errors = [float((gradient(student, teacher, t) - limit).norm() / limit.norm()) for t in (5, 50, 500)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_the_loss_does_not_train_the_teachers_logits_into_anything():
    student, teacher, labels = logits_of(3)
    student.requires_grad_()
    loss(student, labels, teacher, 0.5).backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("a", [-0.01, 1.01, math.nan])
def test_a_weight_out_of_range_is_refused(a):
    student, teacher, labels = logits_of(0)
    with pytest.raises(ValueError, match=r"loss_weight must lie in \[0, 1\]"):
        loss(student, labels, teacher, a)


def test_a_weight_above_zero_needs_teacher_and_temperature():
    student, teacher, labels = logits_of(0)
    for given_teacher, temperature in ((None, 2.0), (teacher, None)):
        with pytest.raises(ValueError, match="needs teacher logits and a temperature"):
            loss(student, labels, given_teacher, 0.5, temperature)


@given(seeds, temperatures)
def test_soft_cross_entropy_is_divergence_without_its_factor_plus_the_teachers_entropy(seed, temperature):
    student, teacher, _ = logits_of(seed)
    soft = F.softmax(teacher / temperature, 1)
    entropy = -(soft * soft.log()).sum(1).mean()
    found = soft_cross_entropy(student.requires_grad_(), teacher, temperature)
    torch.testing.assert_close(found, div_loss(student, teacher, temperature) / temperature**2 + entropy)
    found.backward()
    torch.testing.assert_close(student.grad * temperature**2, gradient(student.detach(), teacher, temperature))


def test_the_teacher_may_have_a_temperature_of_its_own():
    student, teacher, _ = logits_of(3)
    expected = -(F.softmax(teacher / 3.5, 1) * F.log_softmax(student / 10, 1)).sum(1).mean()
    torch.testing.assert_close(soft_cross_entropy(student, teacher, 10.0, teacher_temperature=3.5), expected)


def embeddings_of(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embedding, centres = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    norms = 3 * torch.rand(5, generator=generator, dtype=torch.float64)
    return embedding, norms, F.normalize(centres, dim=1)


@given(seeds)
def test_the_feature_loss_is_that_of_a_plain_loop(seed):
    embedding, norms, centres = embeddings_of(seed)
    total = 0.0
    for s, t, c in zip(embedding.tolist(), norms.tolist(), centres.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(s, c, strict=True))
        total += 1 - dot / max(math.sqrt(sum(a * a for a in s)), t)
    found = nd_loss(embedding, norms, centres).item()
    assert found == pytest.approx(total / 5, rel=1e-9)
    assert -1e-12 <= found <= 2 + 1e-12


@given(seeds, st.floats(1.0, 5.0))
def test_the_feature_loss_is_zero_for_long_embeddings_in_the_right_direction(seed, longer):
    _, norms, centres = embeddings_of(seed)
    assert nd_loss(centres * (norms * longer)[:, None], norms, centres).item() == pytest.approx(0, abs=1e-12)
    assert nd_loss(centres * (norms * 0.5)[:, None], norms, centres).item() == pytest.approx(0.5)


def test_the_feature_loss_of_nothing_is_finite():
    zero = torch.zeros(2, 3, requires_grad=True)
    loss_of_nothing = nd_loss(zero, torch.zeros(2), torch.eye(3)[:2])
    loss_of_nothing.backward()
    assert loss_of_nothing.item() == 1.0
    assert zero.grad.isfinite().all()
