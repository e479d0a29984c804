"""utils/dependency_graph.py: plans, torchvision's models, random networks. Small hard cases: test_micro_cases.py.

python -m pytest tests/test_dependency_graph.py
"""

import copy
import json
import random

import pytest
import torch
from torch import nn

from experiments.pruner_table import RandomGraph, build, random_scores, randomise
from models.rebuild import describe, rebuild
from models.vgg10 import VGG10
from tests.conftest import kept, zeroed
from utils import checkpoint, dependency_graph
from utils.channel_trace import viewed
from utils.dependency_graph import DependencyGraph, Plan, PruneError, prune, verify, zero_pad_channels

QUICK = ["resnet18", "squeezenet1_1", "mobilenet_v3_small"]  # residuals; concatenation; squeeze-and-excitation
MORE = ["shufflenet_v2_x0_5", "googlenet", "mnasnet1_0", "regnet_y_400mf", "deeplabv3_mobilenet_v3_large"]
FACTORIES = {
    "googlenet": ("torchvision.models.googlenet", {"aux_logits": True, "init_weights": False}),
    "deeplabv3_mobilenet_v3_large": (
        "torchvision.models.segmentation.deeplabv3_mobilenet_v3_large",
        {"aux_loss": True},
    ),
}
X = torch.randn(2, 3, 8, 8, generator=torch.manual_seed(0))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", QUICK + [pytest.param(name, marks=pytest.mark.slow) for name in MORE])
def test_half_of_a_torchvision_model_leaves_exactly_and_comes_back_from_a_file(name, tmp_path):
    model, images = build(name)
    graph = DependencyGraph(model, images)
    plan = graph.plan(0.5, random_scores(graph, 0))
    pruned = prune(model, plan)
    with torch.no_grad():
        want, got = zeroed(model, plan).double()(images.double()), copy.deepcopy(pruned).double()(images.double())
        dense = model.double()(images.double())
    want, got, dense = (out["out"] if isinstance(out, dict) else out for out in (want, got, dense))
    assert (want - got).abs().max() < 1e-9 < (want - dense).abs().max()
    assert 0.15 < parameters(pruned) / parameters(model) < 0.5

    factory, arguments = FACTORIES.get(name, (f"torchvision.models.{name}", {}))
    checkpoint.save(tmp_path / "pruned.pt", describe(pruned, factory, arguments))
    loaded = rebuild(checkpoint.load(tmp_path / "pruned.pt"))  # weights_only=True, and no pruner
    for other in (loaded, pruned):
        torch.manual_seed(0)
        other.train()(torch.cat([images, images]))  # auxiliary heads run
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), pruned.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.slow if seed > 9 else ()) for seed in range(30)])
def test_random_network_prunes_exactly(seed):
    model = RandomGraph(seed).double().eval()
    graph = DependencyGraph(model, X.double())
    plan = graph.plan(0.5, random_scores(graph, seed))
    pruned = prune(model, plan)
    with torch.no_grad():
        want, got = zeroed(model, plan)(X.double()), pruned(X.double())
    assert len(want) == len(got)
    for a, b in zip(want, got, strict=True):
        assert (a - b).abs().max() <= 1e-9 * max(1, a.abs().max())
    pruned.train()(X.double())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("training", [False, True])
def test_fake_quantised_vgg10_prunes_exactly_in_whatever_mode_it_comes(bits, training):
    torch.manual_seed(0)
    model = randomise(VGG10(bits, filters=8, dense=12, samples=256), 0).train(training)
    for module in model.modules():
        if hasattr(module, "initial_steps"):
            module.steps.fill_(module.initial_steps)  # trained: thresholds are learned, not measured
            nn.init.constant_(module.threshold, 2.0)
    x = torch.randn(4, 2, 256)
    graph = DependencyGraph(model, x)
    assert [group.size for group in graph.groups] == [8] * 7 + [12] * 2
    plan = graph.plan(0.5, random_scores(graph, 0))
    pruned = prune(model, plan)
    assert pruned.training == model.training == training and pruned.arguments()["filters"] == (4,) * 7
    with torch.no_grad():
        want, got = zeroed(model, plan).eval()(x), pruned.eval()(x)
        assert (want - got).abs().max() < 1e-5 < (want - model.eval()(x)).abs().max()


# ---- plans ---------------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """in -> a 20 -> b 20 (residual to a) -> c 12 -> head 5; batch norm behind each."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 20, 3), nn.Conv2d(20, 20, 1), nn.Conv2d(20, 12, 1)
        self.na, self.nb, self.nc = nn.BatchNorm2d(20), nn.BatchNorm2d(20), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 5)
        randomise(self, 0)

    def forward(self, x):
        x = self.na(self.a(x)).relu()
        x = x + self.nb(self.b(x))
        return self.head(self.nc(self.c(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def chain():
    return Chain().eval()


@pytest.fixture(scope="module")
def graph(chain):
    return DependencyGraph(chain, X)


def test_groups_name_their_members_layers_and_roles(graph):
    assert [(group.name, group.size) for group in graph.groups] == [("a", 20), ("c", 12)]
    roles = {(m.tensor, m.axis): m.role for m in graph.groups[0].members}
    assert roles[("a.weight", 0)] == roles[("b.weight", 0)] == roles[("b.bias", 0)] == "out"
    assert roles[("b.weight", 1)] == roles[("c.weight", 1)] == "in"
    assert roles[("na.running_var", 0)] == "both" and ("head.weight", 1) not in roles
    assert set(graph.groups[0].layers) == {"a", "b", "c", "na", "nb"}
    member = graph.groups[1].members[0]
    assert member.indices.tolist() == member.units.tolist() == list(range(12))


def test_what_is_fixed_is_named_with_its_reason(graph):
    assert set(graph.frozen) == {("a.weight", 1, "in"), ("head.weight", 0, "out"), ("head.bias", 0, "out")}
    assert graph.frozen[("head.weight", 0, "out")] == {"model output": 5}
    text = str(graph)
    assert "2 groups" in text and "head.weight axis 0: model output (5)" in text


def test_the_lowest_scores_leave(graph):
    scores = {"a": torch.arange(20.0).roll(3), "c": -torch.arange(12.0)}
    plan = graph.plan(0.25, scores)
    removed = {(name, axis): indices for name, axis, indices in plan.remove}
    assert removed[("a.weight", 0)] == removed[("c.weight", 1)] == [3, 4, 5, 6, 7]
    assert removed[("c.weight", 0)] == removed[("head.weight", 1)] == [9, 10, 11]


@pytest.mark.parametrize(
    "ratio, multiple, floor, widths",
    [(0.5, 1, 1, (10, 6)), (0.5, 8, 1, (8, 8)), (0.35, 8, 1, (16, 8)), (0.95, 8, 1, (8, 8)), (1.0, 1, 1, (1, 1)),
     (0.9, 1, 5, (5, 5)), (0.0, 8, 1, (20, 12)), (0.1, 8, 1, (16, 8))],
)  # fmt: skip
def test_widths_are_rounded_to_the_nearest_multiple_and_never_to_nothing(graph, ratio, multiple, floor, widths):
    plan = graph.plan(ratio, multiple=multiple, floor=floor)
    assert tuple(kept(plan).values()) == widths


def test_what_was_not_done_as_asked_is_noted(graph):
    assert any("a: 1 of 20 units stay instead of 0.0" in note for note in graph.plan(1.0).notes)
    assert any("head: 5 output channels can't leave: model output" in note for note in graph.plan(0.5).notes)
    notes = graph.plan(0.5, ratios={"b": 0.2}).notes
    assert any(note.startswith("a: made by a, b, so the smallest of their ratios, 20%") for note in notes)
    assert not graph.plan(0.5, ratios={"head": 0}).notes


def test_ratios_of_modules_and_groups_and_protected_sides(graph):
    assert kept(graph.plan(0.5, ratios={"c": 0.75})) == {"a": 10, "c": 3}
    assert kept(graph.plan(0.0, ratios={"a": 0.5})) == {"a": 10, "c": 12}  # the group's name decides
    assert kept(graph.plan(0.5, protect_inputs=["c"])) == {"a": 20, "c": 6}
    assert kept(graph.plan(0.5, protect_outputs=["c"])) == {"a": 10, "c": 12}
    assert kept(graph.plan(0.5, protect_outputs=["na"])) == {"a": 20, "c": 6}
    for wrong in ({"ratio": 1.5}, {"ratio": 0.5, "ratios": {"nothing": 0.5}}, {"ratio": 0.5, "protect_inputs": ["d"]}):
        with pytest.raises(PruneError, match="name a layer"):
            graph.plan(**wrong)


def test_a_plan_is_saved_printed_and_replayed(chain, graph, tmp_path):
    plan = graph.plan(0.5, random_scores(graph, 1))
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan and "a  " in str(plan) and "20 ->    10" in str(plan)
    first, second = prune(chain, plan).state_dict(), prune(chain, again).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    (tmp_path / "bad.json").write_text(json.dumps([1]))
    with pytest.raises(PruneError, match="bad.json is not a pruning plan"):
        Plan.load(tmp_path / "bad.json")
    with pytest.raises(PruneError, match="another model"):
        prune(nn.Conv2d(3, 4, 1), plan)


def test_tracing_and_pruning_leave_model_random_state_and_modes_alone(chain):
    model = copy.deepcopy(chain).train()
    model.nb.eval()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    graph = DependencyGraph(model, X)
    prune(model, graph.plan(0.5))
    assert torch.equal(state, torch.get_rng_state())
    assert model.training and model.na.training and not model.nb.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(hasattr(tensor, "_axes") for tensor in model.state_dict(keep_vars=True).values())


class Restless(nn.Module):
    """Writes into a parameter and, unannounced, into running statistics; a head that only training has."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.c = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Linear(8, 2)

    def forward(self, x):
        self.a.weight.data.mul_(0.5)
        x = nn.functional.batch_norm(self.a(x), self.n.running_mean, self.n.running_var, training=True)
        return (self.b(x), self.c(x.mean((2, 3)).view(-1, 8))) if self.training else self.b(x)


def test_a_model_that_writes_into_itself_is_left_as_it_was_and_its_training_head_is_seen():
    model = Restless()
    before = copy.deepcopy(model.state_dict())
    graph = DependencyGraph(model, X)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not graph.groups and "view: a size written in the code" in graph.frozen[("c.weight", 1, "in")]


def test_memory_format_changes_nothing(graph):
    other = Chain().eval().to(memory_format=torch.channels_last)
    found = DependencyGraph(other, X.contiguous(memory_format=torch.channels_last))
    assert [(g.name, g.size) for g in found.groups] == [(g.name, g.size) for g in graph.groups]


def test_verify_finds_a_wrong_network(chain, graph):
    plan = graph.plan(0.5)
    pruned = prune(chain, plan)
    assert verify(chain, pruned, plan, X) < 1e-12
    with torch.no_grad():
        pruned.c.weight[0, 0] += 1e-3
    with pytest.raises(PruneError, match="differs from the dense one"):
        verify(chain, pruned, plan, X)
    with pytest.raises(PruneError, match="other shapes"):
        verify(chain, nn.Sequential(pruned, nn.Linear(5, 4)), plan, X)


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small"] + [pytest.param(n, marks=pytest.mark.slow) for n in ("shufflenet_v2_x0_5", "resnet18")],
)
def test_channels_of_zeros_change_widths_and_nothing_else(name):
    model, images = build(name)
    wide = zero_pad_channels(model.eval(), images, 24)
    assert parameters(model) < parameters(wide)
    sizes = {group.size % 24 for group in DependencyGraph(wide, images).groups}
    assert sizes == {0} or name.startswith("shuffle")  # there channels are concatenated
    with torch.no_grad():
        want, got = copy.deepcopy(model).double()(images.double()), wide.double()(images.double())
    assert torch.allclose(want, got, rtol=0, atol=1e-12 * want.abs().max())


class Looks(nn.Module):
    """Takes another path for another class of activation."""

    def __init__(self):
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.act(self.a(x))
        return self.b(x) if type(self.act) is nn.ReLU else self.b(x.sort(1)[0])


def test_a_model_that_looks_at_the_class_of_its_layers_is_seen_as_it_is():
    model = Looks()
    assert [(g.name, g.size) for g in DependencyGraph(model, X).groups] == [("a", 8)]
    model.act = nn.Sigmoid()
    assert not DependencyGraph(model, X).groups
    assert "training" not in vars(nn.Module)


class InTraining(nn.Module):
    """Divides by its width, in training only; so does its dropout draw as many numbers as there are channels."""

    def __init__(self, divide):
        super().__init__()
        self.a, self.b, self.divide = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), divide

    def forward(self, x):
        x = nn.functional.dropout(self.a(x), 0.3, self.training)
        return self.b(x / x.shape[1] if self.training and self.divide else x)


def test_verify_looks_at_train_mode_too():
    model = InTraining(divide=False)
    graph = DependencyGraph(model, X)
    plan = graph.plan(0.5)
    assert kept(plan) == {"a": 4} and verify(model, prune(model, plan), plan, X) < 1e-12
    model.divide = True
    with pytest.raises(PruneError, match="in train mode"):
        verify(model, prune(model, plan), plan, X)
    assert verify(model, prune(model, plan), plan, X, eval_only=True) < 1e-12
    frozen = DependencyGraph(model, X).frozen
    assert frozen[("a.weight", 0, "out")] == {"div: a number that depends on a width": 8}


def test_verify_runs_complex_models_models_for_float32_and_refuses_what_is_not_finite(chain, graph):
    class Single(Chain):
        def forward(self, x):
            return super().forward(x.float())

    plan = graph.plan(0.5)
    single = Single().eval()
    assert verify(single, prune(single, plan), plan, X) < 1e-5
    with pytest.raises(PruneError, match="not all finite"):
        verify(chain, prune(chain, plan), plan, X / 0)
    with pytest.raises(PruneError, match="cannot be run"):
        verify(chain, prune(chain, plan), plan, X[:, :2])
    model, x = (
        nn.Sequential(nn.Conv2d(3, 8, 1, dtype=torch.complex64), nn.Conv2d(8, 2, 1, dtype=torch.complex64)),
        X + 1j,
    )
    plan = DependencyGraph(model, x).plan(0.5)
    assert kept(plan) == {"0": 4} and verify(model, prune(model, plan), plan, x) < 1e-12


@pytest.mark.parametrize(
    "scores, message",
    [({"a": torch.ones(20)}, "no entry for group 'c'"),
     ({"a": torch.ones(19), "c": torch.ones(12)}, r"\[19\], not \[20\]"),
     ({"a": torch.ones(20), "c": torch.ones(12, 1)}, r"\[12, 1\]"),
     ({"a": torch.full((20,), torch.nan), "c": torch.ones(12)}, "contain NaN")],
)  # fmt: skip
def test_scores_that_do_not_fit_are_refused(graph, scores, message):
    with pytest.raises(PruneError, match=message):
        graph.plan(0.5, scores)


@pytest.mark.parametrize("wrong", [{"multiple": 0}, {"multiple": -8}, {"multiple": 8.0}, {"floor": 0}, {"floor": True}])
def test_a_multiple_is_a_whole_number_of_channels(graph, wrong):
    with pytest.raises(PruneError, match="whole number of channels"):
        graph.plan(0.5, **wrong)


def test_a_multiple_counts_channels_where_a_unit_is_several():
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 4, 1)).eval()
    graph = DependencyGraph(model, X)  # units of 8 channels, one of each group of the second layer
    assert [(g.name, g.size, g.channels) for g in graph.groups] == [("0", 4, 8), ("1", 4, 8)]
    assert kept(graph.plan(0.5, multiple=8)) == {"0": 2, "1": 2}
    assert kept(graph.plan(0.5, multiple=16)) == {"0": 2, "1": 2}
    plan = graph.plan(0.5, multiple=32, floor=32)
    assert kept(plan) == {"0": 4, "1": 4} and "0: 4 of 4 units stay instead of 2.0" in plan.notes
    assert kept(graph.plan(0.9, floor=16)) == {"0": 2, "1": 2}


def test_a_path_may_be_given_alone(graph):
    assert kept(graph.plan(0.5, protect_inputs="c", protect_outputs="c")) == {"a": 20, "c": 12}


class Targets(Chain):
    def forward(self, x, targets=None):
        if self.training and targets is None:
            raise ValueError("targets should not be None")
        return super().forward(x)


@pytest.mark.parametrize(
    "make, inputs, message",
    [(Targets, X, "eval_only=True"), (lambda: torch.jit.script(nn.Linear(8, 8)), X, "scripted or traced"),
     (nn.ReLU, X, "no parameters"), (lambda: nn.LazyLinear(4), X, "lazy"),
     (lambda: nn.Linear(8, 8, device="meta"), X, "meta"),
     (Chain, X.double(), "cannot run on the example inputs"), (Chain, X[:, :2], "cannot run on the example inputs"),
     (Chain, (X, X), "cannot run on the example inputs")],
)  # fmt: skip
def test_what_cannot_be_followed_is_refused_in_one_sentence(make, inputs, message):
    with pytest.raises(PruneError, match=message) as refused:
        DependencyGraph(make(), inputs)
    assert "\n" not in str(refused.value)


def test_a_model_whose_training_needs_targets_is_pruned_for_evaluation():
    model = Targets()
    plan = DependencyGraph(model, X, eval_only=True).plan(0.5)
    assert kept(plan) == {"a": 10, "c": 6} and verify(model, prune(model, plan), plan, X, eval_only=True) < 1e-12


def test_a_plan_that_removes_nothing_leaves_the_network(chain, graph):
    plan = graph.plan(0.5)
    plan.remove = [[name, axis, []] for name, axis, _ in plan.remove]
    again = prune(chain, plan).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in chain.state_dict().items())


def test_a_plan_of_other_indices_is_refused(chain, graph):
    plan = graph.plan(0.5)
    plan.remove[0][2] = [99]
    for use in (lambda: prune(chain, plan), lambda: verify(chain, chain, plan, X)):
        with pytest.raises(PruneError, match="the plan"):
            use()


def test_a_padding_mask_is_followed_and_python_draws_are_given_back():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.t = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)

        def forward(self, x, mask):
            random.random()
            return self.t(x, src_key_padding_mask=mask)

    random.seed(3)
    first = random.random()
    random.seed(3)
    model, inputs = Encoder(), (X[:, 0], torch.arange(8).expand(2, 8) > 6)
    graph = DependencyGraph(model, inputs)
    plan = graph.plan(0.5)
    assert kept(plan) == {"t.layers.0.linear1": 6, "t.layers.1.linear1": 6}
    assert verify(model, prune(model, plan), plan, inputs) < 1e-12 and random.random() == first


def test_inputs_by_keyword_and_tuple(chain):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x, *, y):
            return {"out": self.b(self.a(x) + self.a(y))}

    model = Two().eval()
    graph = DependencyGraph(model, {"x": X, "y": X})
    plan = graph.plan(0.5)
    assert kept(plan) == {"a": 3}
    assert verify(model, prune(model, plan), plan, {"x": X, "y": X}) < 1e-12


def test_a_view_is_followed_as_torch_carries_it_out():
    random.seed(0)
    for _ in range(300):
        before, after = [1] * random.randint(1, 5), [1] * random.randint(1, 5)
        for factor in random.choices((2, 3), k=6):
            before[random.randrange(len(before))] *= factor
            after[random.randrange(len(after))] *= factor
        axis = random.randrange(len(before))
        grid = torch.arange(before[axis]).view(-1, *[1] * (len(before) - axis - 1)).expand(before)
        assert torch.equal(viewed(grid, torch.Size(after), axis).expand(after), grid.reshape(after))


def test_an_output_that_cannot_be_seen_into_is_refused():
    class Odd(nn.Linear):
        def forward(self, x):
            return object()

    with pytest.raises(PruneError, match="return tensors or dicts"):
        DependencyGraph(Odd(8, 8), X)


def test_the_command_line_prints_the_groups_and_a_sum_of_what_is_fixed(capsys):
    assert dependency_graph.main(["squeezenet1_1", "--size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "features.0 " in printed and "indices of    2 axes: model output" in printed
    assert dependency_graph.main(["tests.test_dependency_graph:Chain", "--inputs", "2x3x8x8", "--all"]) == 0
    assert "head.weight axis 0: model output (5)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, message",
    [(["no_such_model"], "no_such_model"), (["squeezenet1_1", "--size", "8"], "cannot run on the example inputs"),
     (["tests.test_dependency_graph:Targets", "--size", "8"], "eval_only=True"),
     (["nowhere:f"], "cannot build nowhere:f"),
     (["squeezenet1_1", "--inputs", "1x3xa"], "give shapes such as"), (["r3d_18", "--size", "32"], "cannot run")],
)  # fmt: skip
def test_the_command_line_says_in_one_sentence_what_is_wrong(argv, message, capsys):
    try:
        assert dependency_graph.main(argv) == 2
    except SystemExit as stopped:
        assert stopped.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
