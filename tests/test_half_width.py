"""What the pruner's runs leave out because it cannot matter.  pytest tests/test_half_width.py"""

import pytest
import torch
from torch import nn

from utils import dependency_graph
from utils.dependency_graph import DependencyGraph

X = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(0))


# ---- what is left out because it cannot matter -----------------------------------------------------------------------


def counted(monkeypatch, model):
    """(graph, how often the model ran in full, how often beside a log)."""
    runs = {"run": 0, "replay": 0}
    for name in runs:
        real = getattr(dependency_graph, name)

        def count(*args, name=name, real=real, **options):
            runs[name] += 1
            return real(*args, **options)

        monkeypatch.setattr(dependency_graph, name, count)
    return DependencyGraph(model, X), runs["run"], runs["replay"]


class Plain(nn.Module):
    """Layers only; `look` may read a width."""

    def __init__(self, look=lambda m, x: x):
        super().__init__()
        self.a, self.n, self.b, self.look = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), look

    def forward(self, x):
        return self.b(self.look(self, self.n(self.a(x)).relu()))


LOOKS = {
    "shape": lambda m, x: x * (1 if x.shape[1] > 5 else 2),
    "len": lambda m, x: x * (len(m.a.weight) / 8),
    "numel": lambda m, x: x * (m.a.bias.numel() / 8),
    "attribute": lambda m, x: x * (m.n.num_features / 8),
    "out_channels": lambda m, x: x if m.a.out_channels == 8 else x.sigmoid(),
    "size": lambda m, x: x.sigmoid() if x.size()[1] > 5 else x,
}


@pytest.mark.parametrize("name", LOOKS)
def test_a_width_that_the_code_reads_is_followed_at_half_width(name, monkeypatch):
    graph, _, beside = counted(monkeypatch, Plain(LOOKS[name]))
    assert beside and not graph.groups


def test_half_width_is_left_out_where_nobody_reads_a_width(monkeypatch):
    graph, full, beside = counted(monkeypatch, Plain())
    assert [(g.name, g.size) for g in graph.groups] == [("a", 8)] and (full, beside) == (1, 0)


def test_train_mode_is_traced_only_where_it_takes_other_steps(monkeypatch):
    same = Plain(lambda m, x: nn.functional.dropout(x, 0.0, m.training))
    assert counted(monkeypatch, same)[1:] == (1, 1)
    monkeypatch.undo()
    other = Plain(lambda m, x: x.sort(1)[0] if m.training else x)
    graph, full, _ = counted(monkeypatch, other)
    assert full == 2 and not graph.groups
    monkeypatch.undo()
    weight = Plain(lambda m, x: nn.functional.conv2d(x, m.a.weight[:, :1].expand(8, 8, 1, 1)) if m.training else x)
    assert counted(monkeypatch, weight)[1] == 2


class Answer(Plain):
    """In training it hands out its features too, without any other step."""

    def forward(self, x):
        x = self.n(self.a(x)).relu()
        return (self.b(x), x) if self.training else self.b(x)


def test_what_only_training_hands_out_is_fixed():
    assert not DependencyGraph(Answer(), X).groups
    assert [g.name for g in DependencyGraph(Answer(), X, eval_only=True).groups] == ["a"]
