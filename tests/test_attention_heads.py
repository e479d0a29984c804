"""Attention heads leave whole, and norms' widths on request.  pytest tests/test_attention_heads.py"""

import copy

import pytest
import torch
from torch import nn

from experiments.pruner_table import random_scores, randomise
from tests.conftest import kept, zeroed
from utils.dependency_graph import DependencyGraph, Plan, PruneError, prune, verify

X = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(0))


# ---- attention heads -----------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Heads of 4 channels, q, k and v apart or fused; `scores` does without the operation that has it all."""

    def __init__(self, heads=6, fused=False, scores=False):
        super().__init__()
        self.heads, self.fused, self.scores = heads, fused, scores
        self.attn_dim = 4 * heads  # follows the number of heads
        makers = {"qkv": 12 * heads} if fused else dict.fromkeys("qkv", 4 * heads)
        self.make = nn.ModuleDict({name: nn.Linear(10, width) for name, width in makers.items()})
        self.out = nn.Linear(4 * heads, 10)

    def forward(self, x):  # x (B, N, 10)
        b, n, _ = x.shape
        if self.fused:
            q, k, v = self.make["qkv"](x).reshape(b, n, 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (self.make[name](x).view(b, n, self.heads, 4).transpose(1, 2) for name in "qkv")
        if self.scores:
            y = ((q @ k.transpose(-2, -1)) / 2).softmax(-1) @ v
        else:
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, self.attn_dim))


class Block(nn.Module):
    """Pixels as tokens, attention, one answer an image."""

    def __init__(self, attention, norm=False):
        super().__init__()
        self.stem, self.attn, self.head = nn.Linear(3, 10), attention, nn.Linear(10, 2)
        self.norm = nn.LayerNorm(10) if norm else nn.Identity()

    def forward(self, x):
        x = self.stem(x.flatten(2).transpose(1, 2))  # (B, 64, 10)
        return self.head(self.norm(x + self.attn(x)).mean(1))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("heads", [2, 3, 6])  # 2: as many as images in the batch; 3: as many as parts in qkv
def test_heads_leave_whole_with_the_same_head_of_q_k_v_and_the_output(fused, scores, heads, tmp_path):
    model = randomise(Block(Attention(heads, fused, scores)), 0)
    graph = DependencyGraph(model, X, heads={"attn": "heads"})
    sizes = {g.name: g.size for g in graph.groups}
    assert sizes == {"stem": 10, "attn.make.qkv" if fused else "attn.make.q": heads}
    group = next(g for g in graph.groups if g.name.startswith("attn"))
    assert {m.tensor: len(m.indices) for m in group.members}["attn.out.weight"] == 4 * heads
    plan = graph.plan(0.5, random_scores(graph, 1))
    plan.save(tmp_path / "plan.json")
    pruned = prune(model, Plan.load(tmp_path / "plan.json"))
    left = kept(plan)[group.name]
    assert pruned.attn.heads == left < heads and pruned.attn.attn_dim == 4 * left
    assert model.attn.heads == heads and pruned.attn.out.in_features == 4 * left
    with torch.no_grad():  # by hand, for verify would set the attributes of nothing
        want, got = zeroed(model, plan).double()(X.double()), copy.deepcopy(pruned).double()(X.double())
    assert (want - got).abs().max() < 1e-12 and verify(model, pruned, plan, X) < 1e-12


def test_heads_stay_where_nobody_names_them():
    graph = DependencyGraph(randomise(Block(Attention(fused=True)), 0), X)
    assert {g.name: g.size for g in graph.groups} == {"stem": 10}


@pytest.mark.parametrize(
    "model, heads, message",
    [(lambda: Block(nn.MultiheadAttention(10, 2)), {"attn": "num_heads"}, "computes its head size itself"),
     (lambda: Block(Attention()), {"attn": "number"}, "no whole number 'number'"),
     (lambda: Block(Attention()), {"nowhere": "heads"}, "'nowhere' has no whole number")],
)  # fmt: skip
def test_heads_that_cannot_leave_are_refused_in_one_sentence(model, heads, message):
    with pytest.raises(PruneError, match=message):
        DependencyGraph(model(), X, heads=heads)


# ---- approximate ---------------------------------------------------------------------------------------------------


def test_widths_of_norms_leave_when_asked_and_what_that_changes_is_told():
    model = randomise(Block(Attention(), norm=True), 0)
    heads = {"attn": "heads"}
    assert "stem" not in {g.name for g in DependencyGraph(model, X, heads=heads).groups}
    graph = DependencyGraph(model, X, heads=heads, approximate=True)
    assert graph.inexact == {"stem": ["native_layer_norm: other statistics"]}
    plan = graph.plan(0.5)
    pruned = prune(model, plan)
    assert plan.inexact == ["stem"] and pruned.norm.normalized_shape == (5,)
    with torch.no_grad():
        want = zeroed(model, plan).double()(X.double()) - copy.deepcopy(pruned).double()(X.double())
    assert verify(model, pruned, plan, X) == pytest.approx(float(want.abs().max()))  # reported, not refused
    alone = graph.inexactness(model, X)
    assert list(alone) == ["stem"] and alone["stem"] > 1e-3
    exact = graph.plan(0, ratios={"attn.make.q": 0.5})
    assert not exact.inexact and verify(model, prune(model, exact), exact, X) < 1e-12


def test_group_norm_loses_a_channel_of_each_group():
    model = randomise(nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 2, 1)), 0)
    assert not DependencyGraph(model, X).groups
    graph = DependencyGraph(model, X, approximate=True)
    assert [(g.name, g.size, g.channels) for g in graph.groups] == [("0", 4, 3)] and list(graph.inexact) == ["0"]
    pruned = prune(model, graph.plan(0.5))
    assert pruned[1].num_channels == 6 and pruned(X).shape == (2, 2, 8, 8)
