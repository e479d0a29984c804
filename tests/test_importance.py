"""utils/importance.py against loops written out. Run: python -m pytest tests/test_importance.py"""

import math

import pytest
import torch
from torch import nn

from models import segmentation
from utils.dependency_graph import DependencyGraph, Group
from utils.importance import CRITERIA, Entry, Recipe, find_entries, group_scores, ratios_at, set_importance
from utils.training import recalibrate_batch_norm


class Residual(nn.Module):
    """Two convolutions tied by a sum, a norm, a layer that flattens 2 x 2 positions: 4 indices for each unit."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(5), nn.Linear(20, 2)
        for tensor in [*self.norm.parameters(), self.norm.running_mean]:
            nn.init.normal_(tensor)

    def forward(self, x):
        x = self.a(x)
        return self.head((x + self.norm(self.b(x))).flatten(1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def batches():
    torch.manual_seed(1)
    return [torch.randn(4, 3, 2, 2) for _ in range(3)]


def units(network, gradients=None):
    """For each of the 5 channels the weights that leave with it, and their gradients, as flat lists written by hand."""
    for c in range(5):
        picks = {
            "a.weight": lambda t, c=c: [t[c]],
            "a.bias": lambda t, c=c: [t[c]],
            "b.weight": lambda t, c=c: [t[c], t[:, c]],
            "b.bias": lambda t, c=c: [t[c]],
            "norm.weight": lambda t, c=c: [t[c]],
            "norm.bias": lambda t, c=c: [t[c]],
            "head.weight": lambda t, c=c: [t[:, 4 * c : 4 * c + 4]],
        }
        parameters = dict(network.named_parameters())
        weights = [part.flatten() for name, pick in picks.items() for part in pick(parameters[name].detach())]
        slopes = [part.flatten() for name, pick in picks.items() for part in pick(gradients[name])] if gradients else []
        yield torch.cat(weights), torch.cat(slopes) if slopes else None


def losses(network, batches):
    return (network(x).square().mean() for x in batches)


@pytest.mark.parametrize("criterion", ["taylor", "taylor_abs"])
def test_taylor_is_the_mean_over_batches_of_a_sum_over_all_members(network, batches, criterion):
    graph = DependencyGraph(network, batches[0])
    assert [group.size for group in graph.groups] == [5]
    found = group_scores(network, graph.groups, criterion, losses(network, batches))["a"]
    want = torch.zeros(5)
    for x in batches:
        network.zero_grad()
        network(x).square().mean().backward()
        gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
        for c, (w, g) in enumerate(units(network, gradients)):
            want[c] += ((w * g).sum().abs() if criterion == "taylor" else (w * g).abs().sum()) / 3
    network.zero_grad()
    assert torch.allclose(found, want, rtol=1e-4)


@pytest.mark.parametrize("criterion, of_unit", [("l1", lambda w: w.abs().sum()), ("l2", lambda w: w.norm())])
def test_norms_are_those_of_all_weights_of_the_unit(network, batches, criterion, of_unit):
    graph = DependencyGraph(network, batches[0])
    found = group_scores(network, graph.groups, criterion)["a"]
    assert torch.allclose(found, torch.stack([of_unit(w) for w, _ in units(network)]), rtol=1e-5)


def test_bn_is_the_scale_of_the_norm_alone(network, batches):
    graph = DependencyGraph(network, batches[0])
    found = group_scores(network, graph.groups, "bn")["a"]
    assert torch.equal(found, network.norm.weight.detach().abs())


def test_fpgm_gives_the_channel_in_the_middle_the_lowest_score(batches):
    network = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.Conv2d(5, 2, 1))
    directions = torch.tensor([-2.0, -1.0, 0.1, 1.0, 2.0])
    network[0].weight.data = directions.view(5, 1, 1, 1).expand(5, 3, 1, 1).clone()
    network[1].weight.data.fill_(1.0)
    graph = DependencyGraph(network, batches[0])
    scores = group_scores(network, graph.groups, "fpgm")["0"]
    want = (directions[:, None] - directions[None]).abs().sum(1) * 3**0.5
    assert scores.argmin() == 2 and torch.allclose(scores, want, rtol=1e-4)


def test_random_follows_its_seed_and_nothing_else(network, batches):
    groups = DependencyGraph(network, batches[0]).groups
    first = group_scores(network, groups, "random", seed=3)["a"]
    torch.manual_seed(9)
    assert torch.equal(first, group_scores(network, groups, "random", seed=3)["a"])
    assert not torch.equal(first, group_scores(network, groups, "random", seed=4)["a"])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_leaves_weights_gradients_and_buffers_alone(network, batches, criterion):
    graph = DependencyGraph(network, batches[0])
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    scores = group_scores(network, graph.groups, criterion, losses(network, batches))["a"]
    assert scores.shape == (5,) and scores.isfinite().all() and scores.unique().numel() > 1
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_wrong_requests_are_named(network, batches):
    groups = DependencyGraph(network, batches[0]).groups
    with pytest.raises(ValueError, match="hessian"):
        group_scores(network, groups, "hessian")
    with pytest.raises(ValueError, match="loss"):
        group_scores(network, groups, "taylor")


def test_recalibrated_statistics_are_plain_means_over_the_batches(batches):
    network = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, momentum=0.01), nn.Dropout(0.5)).train()
    recalibrate_batch_norm(network, batches)
    maps = [network[0](x).detach() for x in batches]
    assert torch.allclose(network[1].running_mean, torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0), atol=1e-6)
    variances = torch.stack([m.transpose(0, 1).flatten(1).var(1) for m in maps])
    assert torch.allclose(network[1].running_var, variances.mean(0), atol=1e-6)
    assert network[1].momentum == 0.01 and not any(module.training for module in network.modules())


# ---- blocks ----------------------------------------------------------------------------------------------------------


def entries_for(values: list[dict]) -> list[Entry]:
    return [Entry(f"e{i}", [Group(f"e{i}", 100, [], [])], **value) for i, value in enumerate(values)]


@pytest.mark.parametrize("variant", ["coded", "written"])
def test_published_ratios_follow_the_formula(variant):
    recipe = Recipe("published", variant, k=5.0, max_ratio=0.99)
    f1, p, m = [-0.3, 0.1, 0.0], [10.0, 30.0, 60.0], [20.0, 5.0, 75.0]
    entries = entries_for([{"f1": a, "parameters": b, "macs": c} for a, b, c in zip(f1, p, m, strict=True)])
    set_importance(recipe, entries)
    if variant == "coded":
        imp = [0.5 * 75 + 0.3 * 90 + 0.2 * 80, 0.5 * 25 + 0.3 * 70 + 0.2 * 95, 0.3 * 40 + 0.2 * 25]
    else:
        imp = [0.5 * 0.75 + 0.3 * 0.9 + 0.2 * 0.8, 0.5 * 0.25 + 0.3 * 0.7 + 0.2 * 0.95, 0.3 * 0.4 + 0.2 * 0.25]
    f = [math.exp(-5 * value / sum(imp)) for value in imp]
    want = {f"e{i}": round(0.99 * value / max(f), 2) for i, value in enumerate(f)}
    assert ratios_at(recipe, entries, 1 - 0.99) == want


def test_default_keeps_more_of_what_hurts_more_for_what_it_saves():
    recipe = Recipe("default", k=2.0)
    rows = [(0.4, 10.0), (0.1, 10.0), (0.1, 40.0), (-0.2, 40.0)]
    entries = entries_for([{"loss": loss, "parameters": saved, "macs": 1.0} for loss, saved in rows])
    set_importance(recipe, entries)
    value = [entry.importance for entry in entries]
    assert value[0] == 1.0 and value[3] == 0.0 and value[0] > value[1] > value[2] > value[3]
    assert value[1] == pytest.approx(math.log(0.01 / 0.0001) / math.log(0.04 / 0.0001))
    kept = [1 - ratio for ratio in ratios_at(recipe, entries, 0.5).values()]
    assert kept[0] == pytest.approx(0.5) and kept[3] == pytest.approx(0.5 * math.exp(-2))


def test_published_entries_are_blocks_1_to_16_and_aspp_without_residual_widths():
    network = segmentation.build("deeplabv3_mobilenet_v3_large").eval()
    graph = DependencyGraph(network, torch.randn(2, 3, 64, 64))
    published = find_entries(network, graph, "published")
    assert [entry.name for entry in published] == [f"backbone.{i}" for i in range(2, 17)] + ["classifier.0"]
    default = find_entries(network, graph, "default")
    assert {group.name for entry in default for group in entry.groups} == {group.name for group in graph.groups}
    assert "backbone.0 + backbone.1" in {entry.name for entry in default}
