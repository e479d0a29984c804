"""utils/kd_losses.py against loops written from the papers. Run: python -m pytest tests/test_kd_losses.py"""

import math

import numpy as np
import pytest
import torch

from utils import kd_losses

SHAPE = 2, 3, 4, 6
ALL = [kd_losses.pixel_kd, kd_losses.channel_wise, kd_losses.dist, kd_losses.pairwise, kd_losses.attention]


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))


def softmax(values) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def kl(p, q, weights=None) -> float:
    terms = [a * math.log(a / b) for a, b in zip(p, q, strict=True)]
    return sum(w * term for w, term in zip(weights or [1] * len(terms), terms, strict=True))


@pytest.mark.parametrize("weights", [None, [0.29, 1.0, 2.02]])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_pixel_kd_is_the_mean_divergence_of_pixels(maps, temperature, weights):
    student, teacher = (m.numpy() / temperature for m in maps)
    n, _, h, w = SHAPE
    places = [(i, y, x) for i in range(n) for y in range(h) for x in range(w)]
    total = sum(kl(softmax(teacher[i, :, y, x]), softmax(student[i, :, y, x]), weights) for i, y, x in places)
    ours = kd_losses.pixel_kd(*maps, temperature, None if weights is None else torch.tensor(weights))
    assert ours.item() == pytest.approx(temperature**2 * total / len(places), rel=1e-6)


def test_conditional_pixel_kd_counts_the_pixels_alone_where_the_teacher_names_the_label(maps):
    student, teacher = (m.numpy() for m in maps)
    n, c, h, w = SHAPE
    places = [(i, y, x) for i in range(n) for y in range(h) for x in range(w)]
    labels = torch.arange(n * h * w).view(n, h, w) % c
    labels[0, 0, 0] = 255
    right = [(i, y, x) for i, y, x in places if teacher[i, :, y, x].argmax() == labels[i, y, x]]
    total = sum(kl(softmax(teacher[i, :, y, x]), softmax(student[i, :, y, x])) for i, y, x in right)
    assert 0 < len(right) < len(places) / 2
    assert kd_losses.pixel_kd(*maps, labels=labels).item() == pytest.approx(total / len(places), rel=1e-6)


def test_channel_wise_is_the_mean_divergence_of_channels_over_places(maps):
    student, teacher = (m.numpy() / 4 for m in maps)
    n, c = SHAPE[:2]
    pairs = [(i, k) for i in range(n) for k in range(c)]
    total = sum(kl(softmax(teacher[i, k].ravel()), softmax(student[i, k].ravel())) for i, k in pairs)
    assert kd_losses.channel_wise(*maps).item() == pytest.approx(16 * total / (n * c))


def test_dist_is_one_minus_correlation_over_classes_and_over_pixels(maps):
    n, c, h, w = SHAPE
    q, p = (
        np.array([softmax(m[i, :, y, x].tolist()) for i in range(n) for y in range(h) for x in range(w)]) for m in maps
    )  # (N H W, C)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    intra = np.mean([1 - np.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(c)])
    assert kd_losses.dist(*maps).item() == pytest.approx(inter + intra)
    assert kd_losses.dist(*maps, beta=2, gamma=0.5).item() == pytest.approx(2 * inter + 0.5 * intra)


def test_pairwise_compares_the_cosines_of_places_whatever_the_number_of_channels(maps):
    student, teacher = maps[0][:, :2], maps[1]

    def cosines(image: np.ndarray) -> np.ndarray:
        c, h, w = image.shape
        pooled = [
            [image[k, y : y + 2, x : x + 2].max() for k in range(c)] for y in range(0, h, 2) for x in range(0, w, 2)
        ]
        return np.array([[np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a in pooled] for b in pooled])

    expected = np.mean([(cosines(s) - cosines(t)) ** 2 for s, t in zip(student.numpy(), teacher.numpy(), strict=True)])
    assert kd_losses.pairwise(student, teacher).item() == pytest.approx(expected)


def test_attention_compares_where_the_energy_lies_whatever_the_number_of_channels(maps):
    student, teacher = maps[0][:, :2], maps[1]

    def energy(image: np.ndarray) -> np.ndarray:
        values = np.array([sum(v * v for v in place) / len(place) for place in image.reshape(len(image), -1).T])
        return values / math.sqrt(sum(values**2))

    expected = np.mean([sum((energy(s) - energy(t)) ** 2) for s, t in zip(*map(torch.Tensor.numpy, (student, teacher)),
                                                                          strict=True)])  # fmt: skip
    assert kd_losses.attention(student, teacher).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", ALL)
def test_equal_maps_cost_nothing_and_others_something(maps, loss):
    assert loss(maps[0], maps[0]).item() == pytest.approx(0, abs=1e-9) and loss(*maps).item() > 1e-4
    if loss is kd_losses.pixel_kd:
        assert loss(maps[0], maps[0], 2.0, torch.tensor([0.29, 1.0, 2.02])).item() == 0


@pytest.mark.parametrize("loss", ALL)
def test_a_larger_picture_of_the_same_content_costs_the_same(maps, loss):
    wide = [m.repeat(1, 1, 3, 2) for m in maps]
    more = [m.repeat(3, 1, 1, 1) for m in maps]
    assert loss(*wide).item() == pytest.approx(loss(*maps).item()) == pytest.approx(loss(*more).item())


@pytest.mark.parametrize("loss", ALL)
def test_following_the_gradient_brings_the_student_closer(maps, loss):
    student = maps[0].clone().requires_grad_()
    before = loss(student, maps[1])
    (gradient,) = torch.autograd.grad(before, student)
    assert loss(student - 1e-3 * gradient / gradient.norm(), maps[1]) < before


def test_maps_that_cannot_be_compared_are_refused(maps):
    for loss in ALL:
        with pytest.raises(kd_losses.DistillationError, match="differ in size"):
            loss(maps[0], maps[1][..., :3])
    with pytest.raises(kd_losses.DistillationError):
        kd_losses.pixel_kd(maps[0][:, :2], maps[1])


def test_every_loss_has_a_default_weight():
    assert kd_losses.WEIGHT.keys() == {"pixel", "cwd", "dist", "pairwise", "attention"}
