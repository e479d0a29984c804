"""Small networks that pruning tools get wrong: each must prune to exactly the dense network with those channels zeroed.

    python -m pytest tests/test_micro_cases.py

Each case states by hand which groups there are and how many units they have; what is not listed is fixed.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from experiments.pruner_table import randomise
from utils.dependency_graph import DependencyGraph, prune


class Net(nn.Module):
    """Layers given by keyword, and a forward given as a function of (net, x)."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter) or isinstance(layer, nn.Module):
                setattr(self, name, layer)
            else:
                self.register_buffer(name, layer)

    def forward(self, x):
        return self.run(self, x)


def conv(i, o, k=3, **options):
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def as_double(model):
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.to(torch.complex128) if tensor.is_complex() else tensor.data.double()
    return model


def exact(model, x, ratio=0.5, seed=0):
    """Prune random units; the error against a dense copy zeroed here, by hand. Returns error, graph, plan, pruned."""
    model = randomise(as_double(model), seed).eval()
    x = x.double() if x.is_floating_point() else x
    graph = DependencyGraph(model, x)
    generator = torch.Generator().manual_seed(seed)
    plan = graph.plan(ratio, {g.name: torch.rand(g.size, generator=generator) for g in graph.groups})
    pruned, zeroed = prune(model, plan).eval(), copy.deepcopy(model)
    tensors = dict(zeroed.named_parameters()) | dict(zeroed.named_buffers())
    for name, axis, indices in plan.remove:
        if name != "b.parametrizations.weight.original1" or axis:  # a direction has no length to set to zero
            tensors[name].data.index_fill_(axis, torch.tensor(indices), 0.0)
    with torch.no_grad():
        want, got, before = zeroed(x), pruned(x), model(x)
    pairs = zip(want, got, strict=True) if isinstance(want, tuple) else [(want, got)]
    error = max(float((a - b).abs().max()) for a, b in pairs)
    if plan.remove:  # otherwise equality says nothing
        assert not torch.allclose(want[0], before[0], rtol=1e-4, atol=1e-6)
    return error, graph, plan, pruned


def quantised(w):
    scale = w.abs().max() / 7
    return torch.clamp(w / scale, -7, 7).round() * scale


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 64) / 64

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Blur(nn.Module):
    """A filter for each channel, as timm.layers.BlurPool2d has it. groups: written in the code; None: as wide as x."""

    def __init__(self, channels, groups):
        super().__init__()
        self.count = groups
        self.register_buffer("filt", torch.rand(channels, 1, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.filt.expand(x.shape[1], -1, -1, -1), groups=self.count or x.shape[1])


class Hooked(nn.Module):
    """Registers at its first call what collects its first layer's output at each call, as transformers does."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.ready = conv(3, 6), conv(6, 6), False

    def forward(self, x):
        found = []
        if not self.ready:
            self.a.register_forward_hook(lambda _, inputs, output: self.kept.append(output))
        self.ready, self.kept = True, found
        return torch.cat([self.b(self.a(x)), *found], 1).view(len(x), -1, *x.shape[2:])


class Remembers(nn.Module):
    """Keeps what it has computed for the next call in eval mode, as attention with learned biases does in timm."""

    def __init__(self, channels):
        super().__init__()
        self.bias, self.kept = nn.Parameter(torch.rand(2 * channels)), {}

    def forward(self, x):
        if self.training:
            return x + self.half()
        if "half" not in self.kept:
            self.kept["half"] = self.half()
        return x + self.kept["half"]

    def half(self):
        return self.bias.view(2, -1, 1, 1)[0]


def one_place(y, value):
    y[:, :, 2] = value
    return y


def inside_zeros(y):
    larger = torch.zeros(2, y.shape[1], 10, 10, dtype=y.dtype)
    larger[:, :, 1:-1, 1:-1] = y
    return larger


def ramp(y):
    table = torch.zeros(8, 1, 1, dtype=y.dtype)
    for k in range(8):
        table[k] = k
    return table


def shuffle(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def tied_weights():
    net = Net(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4))
    net.b.weight = nn.Parameter(net.b.weight.detach().clone())
    net.d = conv(8, 8)
    net.d.weight = net.b.weight
    net.run = lambda m, x: m.c(m.d(m.b(m.a(x).relu()).relu()))
    return net


def autoencoder():
    return Net(lambda m, x: F.linear(F.linear(x.flatten(1), m.w).relu(), m.w.t()), w=nn.Parameter(torch.randn(10, 48)))


IMAGE, ROW = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(1)), torch.randn(2, 3, 16)
TILE = IMAGE[:, :, :4, :4]
CASES = {
    "concatenation with the network input": (
        lambda: Net(lambda m, x: m.b(torch.cat([x, m.a(x).relu()], 1)), a=conv(3, 8), b=conv(11, 4)),
        {"a": 8},
    ),
    "residual to the input": (
        lambda: Net(lambda m, x: m.c(x + m.b(m.a(x).relu())), a=conv(3, 8), b=conv(8, 3), c=conv(3, 4)),
        {"a": 8},
    ),
    "residual of three": (
        lambda: Net(
            lambda m, x: m.d(m.c(m.a(x)) + m.a(x) + m.b(x)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 8), d=conv(8, 2)
        ),
        {"a": 8},
    ),
    "channel shuffle before a grouped convolution": (
        lambda: Net(lambda m, x: m.c(m.b(shuffle(m.a(x), 2))), a=conv(3, 16), b=conv(16, 16, groups=4), c=conv(16, 4)),
        {"a": 2, "b": 4},  # index j mod 8 is tied by the shuffle, then index mod 4 of the shuffled ones by the groups
    ),
    "channel shuffle before a depthwise convolution": (
        lambda: Net(lambda m, x: m.c(m.b(shuffle(m.a(x), 2))), a=conv(3, 16), b=conv(16, 16, groups=16), c=conv(16, 4)),
        {"a": 8},
    ),
    "depthwise with multiplier": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 6), b=conv(6, 18, groups=6), c=conv(18, 4)),
        {"a": 6},
    ),
    "depthwise by a function, its number of groups in the code": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 6), b=Blur(6, 6), c=conv(6, 4)),
        {},
    ),
    "depthwise by a function, as many groups as channels": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 6), b=Blur(6, None), c=conv(6, 4)),
        {"a": 6},
    ),
    "no first tokens, put before the others": (
        lambda: Net(
            lambda m, x: m.b(torch.cat([(y := m.a(x))[:, :0], 2 * y[:, 0:]], 1)),
            a=nn.Linear(16, 6),
            b=nn.Linear(6, 4),
        ),
        {"a": 6},
    ),
    "as many answers as there are scores above a threshold": (
        lambda: Net(lambda m, x: (y := m.b(m.a(x)).flatten())[y > 0.2], a=conv(3, 6), b=conv(6, 4)),
        {"a": 6},
    ),
    "a tensor without channels that is turned in place": (
        lambda: Net(lambda m, x: m.b(m.a(x) * torch.zeros(8).add_(2).unsqueeze_(0)), a=conv(3, 6), b=conv(6, 4)),
        {"a": 6},
    ),
    "dropout of channels by a function": (
        lambda: Net(lambda m, x: m.b(F.dropout2d(m.a(x), 0.5, m.training)), a=conv(3, 6), b=conv(6, 4)),
        {"a": 6},
    ),
    "hooks that the first run registers": (
        lambda: Net(lambda m, x: m.c(m.a(x).relu()), a=Hooked(), c=conv(12, 4)),
        {"a.a": 6, "a.b": 6},
    ),
    "a layer that remembers what it computed in eval mode": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x)).relu()), a=conv(3, 6), b=Remembers(6), c=conv(6, 4)),
        {"a": 6},
    ),
    "transposed depthwise": (
        lambda: Net(
            lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 6), b=nn.ConvTranspose2d(6, 12, 2, groups=6), c=conv(12, 4)
        ),
        {"a": 6},
    ),
    "grouped convolution": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 12), b=conv(12, 8, groups=4), c=conv(8, 4)),
        {"a": 3, "b": 2},
    ),
    "transposed convolution": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x)).relu()), a=conv(3, 6), b=nn.ConvTranspose2d(6, 10, 2), c=conv(10, 4)),
        {"a": 6, "b": 10},
    ),
    "grouped transposed convolution": (
        lambda: Net(
            lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 12), b=nn.ConvTranspose2d(12, 6, 2, groups=2), c=conv(6, 4)
        ),
        {"a": 6, "b": 3},
    ),
    "chunk": (
        lambda: Net(lambda m, x: m.b(torch.mul(*m.a(x).chunk(2, 1))), a=conv(3, 12), b=conv(6, 4)),
        {"a": 6},
    ),
    "equal split by a size from the tensor": (
        lambda: Net(lambda m, x: m.b(sum((y := m.a(x)).split(y.shape[1] // 3, 1))), a=conv(3, 12), b=conv(4, 4)),
        {"a": 4},
    ),
    "equal split by a size written in the code": (
        lambda: Net(lambda m, x: m.b(m.a(x).split(4, 1)[1]), a=conv(3, 12), b=conv(4, 4)),
        {},
    ),
    "uneven split": (
        lambda: Net(
            lambda m, x: (m.b((y := m.a(x).split([4, 8], 1))[0]), m.c(y[1])), a=conv(3, 12), b=conv(4, 4), c=conv(8, 4)
        ),
        {},
    ),
    "slices": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x)[:, :6]).relu()), a=conv(3, 12), b=conv(6, 5), c=conv(5, 4)),
        {"b": 5},
    ),
    "every second channel": (
        lambda: Net(lambda m, x: m.b(m.a(x)[:, ::2]), a=conv(3, 12), b=conv(6, 4)),
        {},
    ),
    "softmax over channels": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x)).softmax(1)), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)),
        {"a": 8},
    ),
    "softmax over positions": (
        lambda: Net(lambda m, x: m.b(m.a(x).flatten(2).softmax(2).unflatten(2, (8, 8))), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "mean over channels": (
        lambda: Net(
            lambda m, x: m.c(m.b(m.a(x)) * m.b(m.a(x)).mean(1, True)), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)
        ),
        {"a": 8},
    ),
    "maximum over channels": (
        lambda: Net(lambda m, x: m.a(x).relu().amax(1), a=conv(3, 8)),
        {"a": 8},  # a zero is never the only largest of numbers >= 0
    ),
    "maximum over channels of either sign": (
        lambda: Net(lambda m, x: m.a(x).amax(1), a=conv(3, 8)),
        {},
    ),
    "GroupNorm": (
        lambda: Net(lambda m, x: m.c(m.n(m.b(m.a(x)))), a=conv(3, 8), b=conv(8, 8), n=nn.GroupNorm(4, 8), c=conv(8, 4)),
        {"a": 8},
    ),
    "LayerNorm over features": (
        lambda: Net(
            lambda m, x: m.c(m.n(m.b(m.a(x)))),
            a=nn.Linear(16, 9),
            b=nn.Linear(9, 8),
            n=nn.LayerNorm(8),
            c=nn.Linear(8, 5),
        ),
        {"a": 9},
    ),
    "InstanceNorm": (
        lambda: Net(lambda m, x: m.c(m.n(m.a(x))), a=conv(3, 8), n=nn.InstanceNorm2d(8, affine=True), c=conv(8, 4)),
        {"a": 8},
    ),
    "batch norm without parameters": (
        lambda: Net(lambda m, x: m.c(m.n(m.a(x))), a=conv(3, 8), n=nn.BatchNorm2d(8, affine=False), c=conv(8, 4)),
        {"a": 8},
    ),
    "a feature map that is also an output": (
        lambda: Net(lambda m, x: (y := m.b(m.a(x).relu()), m.c(y)), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)),
        {"a": 8},
    ),
    "weight shared by two layers": (tied_weights, {"a": 8}),
    "weight used as its own transpose": (autoencoder, {"w": 10}),
    "module called twice": (
        lambda: Net(lambda m, x: m.c(m.b(m.b(m.a(x)).relu())), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)),
        {"a": 8},
    ),
    "scale parameter": (
        lambda: Net(lambda m, x: m.b(m.a(x) * m.s), a=conv(3, 8), s=nn.Parameter(torch.randn(8, 1, 1)), b=conv(8, 4)),
        {"a": 8},
    ),
    "scale buffer": (
        lambda: Net(lambda m, x: m.b(m.a(x) * m.s + m.s), a=conv(3, 8), s=torch.randn(1, 8, 1, 1), b=conv(8, 4)),
        {"a": 8},
    ),
    "division by a parameter": (
        lambda: Net(
            lambda m, x: m.b(m.a(x) / m.s), a=conv(3, 8), s=nn.Parameter(torch.rand(8, 1, 1) + 1), b=conv(8, 4)
        ),
        {},
    ),
    "a constant that is no parameter": (
        lambda: Net(lambda m, x: m.b(m.a(x) * torch.arange(8.0).view(8, 1, 1).to(x)), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "PReLU": (
        lambda: Net(lambda m, x: m.b(m.p(m.a(x))), a=conv(3, 8), p=nn.PReLU(8), b=conv(8, 4)),
        {"a": 8},
    ),
    "flatten after pooling": (
        lambda: Net(
            lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x).relu(), 2).flatten(1)), a=conv(3, 8), b=nn.Linear(32, 5)
        ),
        {"a": 8},
    ),
    "flatten to a size written in the code": (
        lambda: Net(lambda m, x: m.b(F.max_pool2d(m.a(x), 4).view(-1, 32)), a=conv(3, 8), b=nn.Linear(32, 5)),
        {},
    ),
    "zeros of a width read from the tensor": (
        lambda: Net(
            lambda m, x: m.b(torch.cat([(y := m.a(x)), torch.zeros(2, y.shape[1], 8, 8).to(x)], 1)),
            a=conv(3, 8),
            b=conv(16, 4),
        ),
        {},
    ),
    "padding of channels": (
        lambda: Net(
            lambda m, x: m.c(F.pad(m.a(x), (0, 0, 0, 0, 2, 2)) + m.b(x)), a=conv(3, 8), b=conv(3, 12), c=conv(12, 4)
        ),
        {"a": 8},
    ),
    "1-D convolutions": (
        lambda: Net(
            lambda m, x: m.d(F.max_pool1d(m.n(m.a(x)).relu(), 2)).flatten(1),
            a=nn.Conv1d(3, 8, 3),
            n=nn.BatchNorm1d(8),
            d=nn.Conv1d(8, 4, 3),
        ),
        {"a": 8},
    ),
    "3-D convolutions": (
        lambda: Net(lambda m, x: m.b(m.a(x[:, None]).relu()), a=nn.Conv3d(1, 6, 3, padding=1), b=nn.Conv3d(6, 2, 3)),
        {"a": 6},
    ),
    "unused parameters": (
        lambda: Net(lambda m, x: m.b(m.a(x)), a=conv(3, 8), b=conv(8, 4), c=conv(8, 8), s=nn.Parameter(torch.randn(8))),
        {"a": 8},
    ),
    "squeeze and excitation": (
        lambda: Net(
            lambda m, x: m.c((y := m.a(x)) * m.e(m.s(y.mean((2, 3), True)).relu()).sigmoid()),
            a=conv(3, 8),
            s=conv(8, 4, 1),
            e=conv(4, 8, 1),
            c=conv(8, 4),
        ),
        {"a": 8, "s": 4},
    ),
    "fake quantisation by the tensor's own maximum": (
        lambda: Net(
            lambda m, x: F.conv2d(F.conv2d(x, quantised(m.a.weight), m.a.bias).relu(), quantised(m.b.weight), m.b.bias),
            a=conv(3, 8),
            b=conv(8, 4),
        ),
        {"a": 8},
    ),
    "maximum of the flattened weight": (
        lambda: Net(
            lambda m, x: F.conv2d(m.a(x), m.b.weight / m.b.weight.view(-1).abs().max()), a=conv(3, 8), b=conv(8, 4)
        ),
        {"a": 8},
    ),
    "maximum of a signed weight": (
        lambda: Net(lambda m, x: F.conv2d(m.a(x), m.b.weight / m.b.weight.max()), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "weight standardisation": (
        lambda: Net(
            lambda m, x: F.conv2d(m.a(x), m.b.weight - m.b.weight.mean((1, 2, 3), True)), a=conv(3, 8), b=conv(8, 4)
        ),
        {},
    ),
    "weight through a sigmoid": (
        lambda: Net(lambda m, x: F.conv2d(m.a(x).sigmoid(), m.b.weight.sigmoid()), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "weight through a sigmoid, on channels that are zero": (
        lambda: Net(lambda m, x: F.conv2d(m.a(x), m.b.weight.sigmoid()), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "custom autograd function that keeps the shape": (
        lambda: Net(lambda m, x: m.b(Straight.apply(m.a(x))), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "unknown operation": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x)).sort(1)[0]), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)),
        {"a": 8},
    ),
    "unknown operation whose result has no channels": (
        lambda: Net(
            lambda m, x: m.b(x) * (y := m.a(x)).median(1, keepdim=True)[0] + m.c(y),
            a=conv(3, 8),
            b=conv(3, 4),
            c=conv(8, 4),
        ),
        {},
    ),
    "split into pieces that go different ways": (
        lambda: Net(
            lambda m, x: m.b((y := m.a(x).chunk(2, 1))[0]) + m.c(y[1]), a=conv(3, 12), b=conv(6, 4), c=conv(6, 4)
        ),
        {"a": 6},
    ),
    "attention scaled by a width read from the tensor": (
        lambda: Net(
            lambda m, x: m.o((((q := m.q(x)) @ m.k(x).transpose(1, 2)) / q.shape[-1] ** 0.5).softmax(-1) @ m.v(x)),
            q=nn.Linear(16, 8),
            k=nn.Linear(16, 8),
            v=nn.Linear(16, 6),
            o=nn.Linear(6, 5),
        ),
        {"v": 6},
    ),
    "pixel shuffle": (
        lambda: Net(lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), a=conv(3, 24), b=conv(6, 4)),
        {"a": 6},
    ),
    "a number that follows another layer's width": (
        lambda: Net(
            lambda m, x: m.d(m.b(m.a(x)) / m.c(x).shape[1]), a=conv(3, 8), b=conv(8, 8), c=conv(3, 8), d=conv(8, 4)
        ),
        {"a": 8, "b": 8},  # c is only asked for its width
    ),
    "division by the width": (
        lambda: Net(lambda m, x: m.c(m.b((y := m.a(x)) / y.shape[1])), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)),
        {"b": 8},
    ),
    "scale by out_channels": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x) * m.a.out_channels**-0.5)), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)),
        {"b": 8},
    ),
    "length of a weight": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x) * len(m.a.weight))), a=conv(3, 8), b=conv(8, 8), c=conv(8, 4)),
        {"b": 8},
    ),
    "clamp to a share of the width": (
        lambda: Net(lambda m, x: m.b((y := m.a(x)).clamp(max=y.shape[1] / 20)), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "rolled by a share of the width": (
        lambda: Net(lambda m, x: m.b((y := m.a(x)).roll(y.shape[1] // 4, 2)), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "batch norm with an eps of the width": (
        lambda: Net(
            lambda m, x: m.b(F.batch_norm(y := m.a(x), m.n.running_mean, m.n.running_var, eps=y.shape[1] / 8)),
            a=conv(3, 8),
            n=nn.BatchNorm2d(8),
            b=conv(8, 4),
        ),
        {},
    ),
    "filled with a share of the width": (
        lambda: Net(
            lambda m, x: m.b((y := m.a(x)) + torch.full((8, 8), y.shape[1] / 8).to(y)), a=conv(3, 8), b=conv(8, 4)
        ),
        {},
    ),
    "width in a tensor of its own": (
        lambda: Net(
            lambda m, x: m.b((y := m.a(x)) * torch.tensor(float(y.shape[1])).to(y)), a=conv(3, 8), b=conv(8, 4)
        ),
        {},
    ),
    "a place that follows the width": (
        lambda: Net(lambda m, x: m.b((y := m.a(x)) * y[:, :, y.shape[1] // 4, None]), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "another path at another width": (
        lambda: Net(lambda m, x: m.b(y if (y := m.a(x)).shape[1] > 5 else y.sigmoid()), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "another path where two widths are equal": (
        lambda: Net(
            lambda m, x: m.c(y if (y := m.a(x)).shape[1] - m.b(x).shape[1] in (0, 5) else y.sigmoid()) + m.d(m.b(x)),
            a=conv(3, 9),
            b=conv(3, 9),
            c=conv(9, 4),
            d=conv(9, 4),
        ),
        None,  # one of the two must stay
    ),
    "a path that looks at the class of a layer": (
        lambda: Net(
            lambda m, x: m.b(m.act(m.a(x)) if type(m.act) is nn.ReLU else m.a(x).sort(1)[0]),
            a=conv(3, 8),
            act=nn.ReLU(),
            b=conv(8, 4),
        ),
        {"a": 8},
    ),
    "random numbers in new memory": (
        lambda: Net(
            lambda m, x: m.b((y := m.a(x)) * y.new_empty((2, 1, 1, 1)).bernoulli_(1.0)), a=conv(3, 8), b=conv(8, 4)
        ),
        {"a": 8},
    ),
    "new zeros of the same shape": (
        lambda: Net(lambda m, x: m.b((y := m.a(x)) + y.new_zeros(y.shape)), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "one of two views has its size written in the code": (
        lambda: Net(
            lambda m, x: m.c(m.a(x).view(2, 8, 64).view(2, 8, 8, 8)) + m.d((y := m.b(x)).view(2, y.shape[1], 8, 8)),
            a=conv(3, 8),
            b=conv(3, 8),
            c=conv(8, 4),
            d=conv(8, 4),
        ),
        {"b": 8},
    ),
    "transformer encoder layer": (
        lambda: Net(
            lambda m, x: m.o(m.t(m.a(x))),
            a=nn.Linear(16, 8),
            t=nn.TransformerEncoderLayer(8, 2, 12, batch_first=True),
            o=nn.Linear(8, 4),
        ),
        {"t.linear1": 12},
    ),
    "product of two activations without a scale": (
        lambda: Net(
            lambda m, x: m.o((m.q(x) @ m.k(x).transpose(1, 2)).softmax(-1) @ m.v(x)),
            q=nn.Linear(16, 8),
            k=nn.Linear(16, 8),
            v=nn.Linear(16, 6),
            o=nn.Linear(6, 5),
        ),
        {"q": 8, "v": 6},
    ),
    "product of two sigmoids": (
        lambda: Net(
            lambda m, x: (m.q(x).sigmoid() @ m.k(x).sigmoid().transpose(1, 2)).softmax(-1),
            q=nn.Linear(16, 8),
            k=nn.Linear(16, 8),
        ),
        {},
    ),
    "attention in one operation": (
        lambda: Net(
            lambda m, x: m.o(F.scaled_dot_product_attention(m.q(x)[:, None], m.k(x)[:, None], m.v(x)[:, None])[:, 0]),
            q=nn.Linear(16, 8),
            k=nn.Linear(16, 8),
            v=nn.Linear(16, 8),
            o=nn.Linear(8, 5),
        ),
        {},  # the scale follows the width of q and k, and at another width of v torch takes another path
    ),
    "embedding": (
        lambda: Net(lambda m, x: m.b(m.e((x > 0).long())), e=nn.Embedding(2, 8), b=nn.Linear(8, 4)),
        {"e": 8},
    ),
    "L2 norm over channels": (
        lambda: Net(lambda m, x: m.b(F.normalize(m.a(x), dim=1)), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "sum over channels": (
        lambda: Net(lambda m, x: m.b((y := m.a(x).relu()) * y.sum(1, True)), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "sum over channels that are not zero": (
        lambda: Net(lambda m, x: m.b((y := m.a(x).sigmoid()) * y.sum(1, True)), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "sum over channels of which a place was written": (
        lambda: Net(lambda m, x: m.b((y := one_place(m.a(x), 1.0)) * y.sum(1, True)), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "circular padding": (
        lambda: Net(lambda m, x: m.b(m.a(x)), a=conv(3, 8), b=nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular")),
        {"a": 8},
    ),
    "grid_sample": (
        lambda: Net(
            lambda m, x: m.b(F.grid_sample(m.a(x), x.permute(0, 2, 3, 1)[..., :2].tanh(), align_corners=False)),
            a=conv(3, 8),
            b=conv(8, 4),
        ),
        {"a": 8},
    ),
    "nearest-exact": (
        lambda: Net(lambda m, x: m.b(F.interpolate(m.a(x), (5, 11), mode="nearest-exact")), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "places by a table": (
        lambda: Net(
            lambda m, x: m.b(m.a(x)[:, :, [3, 1, 0]].index_select(3, torch.tensor([2, 2, 5]))),
            a=conv(3, 8),
            b=conv(8, 4),
        ),
        {"a": 8},
    ),
    "channels by a table": (
        lambda: Net(lambda m, x: m.b(m.a(x)[:, [3, 1, 0, 2, 4, 5, 7, 6]]), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "gather of places": (
        lambda: Net(lambda m, x: m.b((y := m.a(x)).gather(2, y.argsort(2))), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "sort of places": (
        lambda: Net(lambda m, x: m.b(m.a(x).sort(3)[0].topk(4, 2)[0]), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "unfold and fold": (
        lambda: Net(
            lambda m, x: m.b(F.fold(F.unfold(m.a(x), 3, padding=1) * 0.5, (8, 8), 3, padding=1)),
            a=conv(3, 8),
            b=conv(8, 4),
        ),
        {"a": 8},
    ),
    "patches of places": (
        lambda: Net(lambda m, x: m.b(m.a(x).unfold(2, 3, 2).amax(-1)), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "max_unpool": (
        lambda: Net(
            lambda m, x: m.b(F.max_unpool2d(*F.max_pool2d(m.a(x), 2, return_indices=True), 2)),
            a=conv(3, 8),
            b=conv(8, 4),
        ),
        {"a": 8},
    ),
    "places written into": (
        lambda: Net(lambda m, x: m.b(one_place(m.a(x), 1.0)), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "written into zeros": (
        lambda: Net(lambda m, x: m.b(inside_zeros(m.a(x))), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "a table written into zeros, of which a part is taken": (
        lambda: Net(lambda m, x: m.b(m.a(x) + ramp(m.a(x))), a=conv(3, 8), b=conv(8, 4)),
        {},
    ),
    "gated linear unit": (
        lambda: Net(lambda m, x: m.b(F.glu(m.a(x), 1)), a=conv(3, 12), b=conv(6, 4)),
        {"a": 6},
    ),
    "gated linear unit over places": (
        lambda: Net(lambda m, x: m.b(F.glu(m.a(x), 3)), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "Fourier transform of places": (
        lambda: Net(lambda m, x: m.b(torch.fft.irfft2(torch.fft.rfft2(m.a(x)) * 0.5)), a=conv(3, 8), b=conv(8, 4)),
        {"a": 8},
    ),
    "complex convolution": (
        lambda: Net(
            lambda m, x: torch.view_as_real(m.b(m.a(torch.complex(x, -x)))),
            a=conv(3, 8, dtype=torch.complex64),
            b=conv(8, 4, dtype=torch.complex64),
        ),
        {"a": 8},
    ),
    "spectral_norm": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=spectral_norm(conv(8, 6)), c=conv(6, 4)),
        {"a": 8, "b": 6},
    ),
    "weight_norm": (
        lambda: Net(lambda m, x: m.c(m.b(m.a(x))), a=conv(3, 8), b=weight_norm(conv(8, 6)), c=conv(6, 4)),
        {"a": 8, "b": 6},
    ),
    "recurrent layer": (
        lambda: Net(
            lambda m, x: m.b(m.r(m.a(x))[0]), a=nn.Linear(16, 6), r=nn.GRU(6, 5, batch_first=True), b=nn.Linear(5, 4)
        ),
        None,  # which of its sizes are free differs between versions of torch; it must be exact
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_micro_case_is_exact_and_its_groups_are_those_counted_by_hand(name):
    make, groups = CASES[name]
    model = make()
    first = next(iter(model.children()), None)
    x = (
        ROW
        if isinstance(first, (nn.Linear, nn.Conv1d))
        else TILE
        if name == "weight used as its own transpose"
        else IMAGE
    )
    error, graph, plan, _ = exact(model, x)
    assert error < 1e-9
    if groups is not None:
        assert {g.name: g.size for g in graph.groups} == groups
        assert {g["name"]: g["kept"] for g in plan.groups} == {n: max(1, size // 2) for n, size in groups.items()}
