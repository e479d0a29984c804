"""utils/cost.py against hand arithmetic. Run: python -m pytest tests/test_cost.py"""

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import segmentation
from utils.cost import after, count, latency, saved_bytes
from utils.dependency_graph import DependencyGraph, prune

IMAGE = torch.randn(2, 6, 9, 10)


class Functional(nn.Module):
    """Attention written out: two products of matrices, no layer."""

    def forward(self, x):  # (B, L, C)
        return torch.softmax(x @ x.transpose(1, 2), -1) @ x


class Fused(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


CASES = {  # layer, input, MACs by hand
    "conv": (nn.Conv2d(6, 8, 3, padding=1), IMAGE, 2 * 8 * 9 * 10 * 6 * 9),
    "conv, stride 2": (nn.Conv2d(6, 8, 3, 2, 1), IMAGE, 2 * 8 * 5 * 5 * 6 * 9),
    "grouped": (nn.Conv2d(6, 8, (1, 3), groups=2), IMAGE, 2 * 8 * 9 * 8 * 3 * 3),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), IMAGE, 2 * 12 * 7 * 8 * 9),
    "transposed": (nn.ConvTranspose2d(6, 8, 2, 2), IMAGE, 2 * 6 * 9 * 10 * 8 * 4),
    "grouped transposed": (nn.ConvTranspose2d(6, 8, 2, 2, groups=2), IMAGE, 2 * 6 * 9 * 10 * 4 * 4),
    "1-D": (nn.Conv1d(6, 4, 3), IMAGE[..., 0], 2 * 4 * 7 * 6 * 3),
    "linear": (nn.Linear(10, 7), IMAGE, 2 * 6 * 9 * 10 * 7),
    "linear without bias on a row": (nn.Linear(10, 7, bias=False), IMAGE[0, 0, 0], 10 * 7),
    "matmul": (Functional(), IMAGE[0], 2 * 6 * 9 * 9 * 10),
    "fused attention": (Fused(), IMAGE, 2 * 2 * 6 * 9 * 9 * 10),
    "no product": (nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2)), IMAGE, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_macs_equal_hand_arithmetic(name):
    layer, x, macs = CASES[name]
    found = count(layer, x)
    assert found.macs == macs
    assert found.parameters == sum(p.numel() for p in layer.parameters())


def test_parts_add_up_and_shared_weights_count_once():
    first, second = nn.Conv2d(6, 6, 1, bias=False), nn.Conv2d(6, 6, 1, bias=False)
    second.weight = first.weight
    model = nn.Sequential(nn.Sequential(first, second), nn.Conv2d(6, 6, 1), first)
    found = count(model, IMAGE)
    one = 2 * 90 * 36
    assert found.parameters == 36 + 42 and found.macs == 4 * one
    assert found.of["0"] == (36, 2 * one) and found.of["1"] == (42, one) and found.of["0.0"].macs == 2 * one


def test_counting_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)).train()
    model[0].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count(model, (IMAGE,))
    assert model.training and model[1].training and not model[0].training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_deeplabv3_mobilenet_has_the_published_figures():
    with torch.device("meta"):  # no weights to draw
        model = segmentation.build("deeplabv3_mobilenet_v3_large")
    found = count(model, torch.zeros(1, 3, 256, 256, device="meta"))
    assert found.parameters == pytest.approx(11.02e6, rel=1e-3)
    assert found.macs == pytest.approx(2.457e9, rel=1e-3)
    assert found.of["classifier.0"].macs == pytest.approx(1846e6, rel=1e-3)


def test_saved_bytes_are_those_of_the_file(tmp_path):
    data = {"state_dict": nn.Linear(30, 40).state_dict(), "kind": "segmentation"}
    torch.save(data, tmp_path / "file.pt")
    assert abs(saved_bytes(data) - (tmp_path / "file.pt").stat().st_size) < 500  # the archive holds its own name


def test_latency_alternates_and_its_ratio_is_that_of_known_times():
    calls, threads = [], torch.get_num_threads()

    def sleeper(name, seconds):
        def call(x):
            assert x.is_contiguous(memory_format=torch.channels_last) and torch.get_num_threads() == 1
            calls.append(name)
            time.sleep(seconds)

        return call

    times = latency(
        {"slow": sleeper("slow", 0.02), "fast": sleeper("fast", 0.005)}, IMAGE, threads=1, runs=5, warm_up=1
    )
    assert calls == ["slow", "fast"] * 6
    assert times["slow"]["speed_up"] == 1 and 2 < times["fast"]["speed_up"] < 4.5
    assert times["slow"]["low_ms"] <= times["slow"]["median_ms"] <= times["slow"]["high_ms"]
    assert times["conditions"] == {"threads": 1, "batch": 2, "shape": [2, 6, 9, 10], "runs": 5, "channels_last": True}
    assert torch.get_num_threads() == threads


def test_latency_ends_soon_on_a_slow_machine():
    times = latency({"slow": lambda x: time.sleep(0.02)}, IMAGE, runs=50, warm_up=0, limit=0.01)
    assert times["conditions"]["runs"] == 3


def test_latency_does_not_change_the_network():
    model = nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)).train()
    latency({"model": model}, IMAGE, runs=2)
    assert model.training and model[0].weight.is_contiguous()
    assert model[1].num_batches_tracked == 0


def test_a_plans_predicted_cost_is_the_cost_of_the_pruned_network():
    model = segmentation.build("lraspp_mobilenet_v3_large").eval()
    x = torch.randn(1, 3, 64, 64)
    plan = DependencyGraph(model, x).plan(0.5)
    left = count(prune(model, plan), x)
    assert after(plan, model, count(model, x)) == left[:2]
