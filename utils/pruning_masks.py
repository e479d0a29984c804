"""Which weights stay: scores, masks, cuts of weights, filters and bits, and the feedback that chooses the next cut.

    masks = ones(weights)                                           # {name: bool tensor}, weights: {name: tensor}
    scored = scores(weights, alive(weights, masks), "lamp")         # what each weight is worth
    masks = remove(scored, alive(weights, masks), 0.2)              # a fifth of those that are left goes
    apply_masks(weights, masks)                                     # after pruning, and after every optimizer step

A score says how much a weight is worth; the lowest of all layers together go first (unstructured, global):

    magnitude   |w|                                                 as in Feedback Magnitude Pruning
    lamp        w^2 / sum of the w^2 of its layer that are not smaller (Lee 2021, arXiv:2010.07611)
    cost        w^2 / what the weight adds to the challenge's score (utils.cost.weight_costs)
    lamp-cost   the lamp score / the same

`cut_weights` and `cut_filters` do all of this for a quantised network; `take_weight_bit` and `take_activation_bit`
narrow one of its layers. `Series` and `Moves` are two kinds of feedback:

    feedback = Moves(list(MOVES), dict(p))                          # or Series(["unstructured"])
    smaller = feedback.next(model, cuts, probe)                     # then train it, and judge it
    feedback.note(good, score, cuts)                                # a bad one is given up; again

From the cuts on they need utils/cost.py and utils/dependency_graph.py; the rest of the file needs torch only.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import torch
from torch import nn

from utils.cost import LayerCost, challenge_score, inference_cost, weight_costs
from utils.dependency_graph import DependencyGraph, prune

SCORES = ("magnitude", "lamp", "cost", "lamp-cost")
MOVES = ("prune", "weight-bit", "activation-bit", "filters")
LEAST_SHARE = {"unstructured": 0.05, "structured": 0.01, "prune": 0.02, "filters": 0.01}  # default of --min-p
LEAST_BITS = 2
PROBED_LAYERS = 4  # of each kind of bit: those that save most
GROW_AFTER = 2  # successes in a row of a share that was divided, after which it is multiplied again
LONGEST = 3  # times --step-epochs: steps after failures

Tensors = dict[str, torch.Tensor]
Probe = Callable[[nn.Module], tuple[float, float]]  # network -> accuracy before any training, its standard error


def ones(weights: Tensors) -> Tensors:
    """Masks that keep every weight."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def nonzero_masks(weights: Tensors) -> Tensors:
    """Masks that keep what is not zero: with them a pruned network stays as sparse as it is."""
    return {name: weight != 0 for name, weight in weights.items()}


@torch.no_grad()
def apply_masks(weights: Tensors, masks: Tensors) -> None:
    """Set the masked weights to zero, in place."""
    for name, weight in weights.items():
        weight.mul_(masks[name])


def alive(codes: Tensors, masks: Tensors) -> Tensors:
    """Masks of the weights that count: not masked, and not zero in `codes` (integer codes or the weights)."""
    return {name: masks[name] & (code != 0) for name, code in codes.items()}


@torch.no_grad()
def scores(weights: Tensors, kept: Tensors, kind: str, costs: dict[str, float] | None = None) -> Tensors:
    """What each weight is worth. Weights that aren't in `kept` have no part in a layer's sums; ignore their scores.

    Args:
        weights: float, by name.
        kept: bool, by name, see `alive`.
        kind: one of SCORES.
        costs: by name, what one weight of that tensor costs; for the two kinds with "cost".

    Raises:
        ValueError: an unknown kind, or costs missing.
    """
    if kind not in SCORES or ("cost" in kind and not costs):
        raise ValueError(f"score {kind!r}: choose among {', '.join(SCORES)}; those with cost need `costs`")
    result = {}
    for name, weight in weights.items():
        score = weight.detach().abs()
        if kind != "magnitude":
            score = score.square()
        if kind.startswith("lamp"):
            score = _lamp(score * kept[name])
        result[name] = score / costs[name] if "cost" in kind else score
    return result


def _lamp(square: torch.Tensor) -> torch.Tensor:
    """Each square divided by the sum of those that are not smaller; any shape."""
    values, order = square.flatten().double().sort()
    total = values.flip(0).cumsum(0).flip(0).clamp(min=1e-300)  # above 0 where a layer has only zeros
    result = torch.empty_like(values)
    result[order] = values / total
    return result.view(square.shape)


def remove(scored: Tensors, kept: Tensors, share: float) -> Tensors:
    """Masks without the lowest `share` (0 to 1) of the weights in `kept`, over all tensors together.

    Weights that aren't in `kept` are masked too. The best weight of every tensor stays, because a layer without weights
    would pass nothing on; otherwise exactly that share goes.
    """
    flat = torch.cat([scored[name][mask].double() for name, mask in kept.items()])
    tops = []  # the best weight of each tensor is spared
    start = 0
    for mask in kept.values():
        n = int(mask.sum())
        if n:
            tops.append(start + int(flat[start : start + n].argmax()))
        start += n
    gone = round(share * len(flat))
    flat[tops] = torch.inf
    stays = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    stays[flat.argsort(stable=True)[: min(gone, len(flat) - len(tops))]] = False
    masks = {}
    for (name, mask), part in zip(kept.items(), stays.split([int(m.sum()) for m in kept.values()]), strict=True):
        masks[name] = mask.clone()
        masks[name][mask] = part
    return masks


def cut(masks: Tensors, removed: list) -> Tensors:
    """Masks for a network that lost whole channels: shorter along the axes that were cut.

    Args:
        masks: of the network before, bool by tensor name.
        removed: [tensor, axis, indices] of every cut, as in dependency_graph.Plan.remove.
    """
    masks = dict(masks)
    for name, axis, indices in removed:
        if name in masks:
            keep = torch.ones(masks[name].shape[axis], dtype=torch.bool)
            keep[indices] = False
            masks[name] = masks[name].index_select(axis, keep.nonzero().flatten().to(masks[name].device))
    return masks


def unit_scores(group, weights: Tensors, masks: Tensors, costs: dict[str, float] | None = None) -> torch.Tensor:
    """What each filter or neuron of a group is worth: mean |w| of its own weights over the mean |w| of their tensor.

    Args:
        group: of a dependency graph: `size` units, and `members` with tensor, axis, role, indices and units; role
            "out" are a unit's own weights, "in" those that read it.
        costs: by name, what one weight costs; if given, worth is divided by the cost of the unit's weights of both
            roles.

    Returns:
        float (size,).
    """
    worth, price = torch.zeros(group.size), torch.zeros(group.size)
    for tensor, axis, role, indices, units in group.members:
        if tensor in weights:
            weight = weights[tensor].detach().abs().transpose(0, axis).flatten(1)  # (channels, all else)
            if role == "out":
                worth.index_add_(0, units, (weight.mean(1) / weight.mean().clamp(min=1e-12))[indices])
            if costs:
                left = masks[tensor].transpose(0, axis).flatten(1).sum(1)
                price.index_add_(0, units, left[indices] * costs[tensor])
    return worth / price.clamp(min=1e-12) if costs else worth


def lowest_units(worth: Tensors, share: float) -> dict[str, list[int]]:
    """The lowest `share` of the units of all groups, {group: unit numbers}.

    No group loses more than twice the share, so that none is emptied at once; the best unit of each stays.

    Args:
        worth: float (units,) of each group, as `unit_scores` gives it, comparable between groups.
    """
    if not worth:  # as of a network whose layers have one filter each
        return {}
    places = [(name, i) for name, values in worth.items() for i in range(len(values))]
    flat = torch.cat([values.double() for values in worth.values()])
    room = {name: min(math.ceil(2 * share * len(v)), len(v) - 1) for name, v in worth.items()}
    units: dict[str, list[int]] = {}
    left = round(share * len(flat))
    for place in flat.argsort(stable=True).tolist():
        name, i = places[place]
        if left and room[name]:
            units.setdefault(name, []).append(i)
            left, room[name] = left - 1, room[name] - 1
    return units


# ---- cuts of a quantised network


class Pruned(NamedTuple):
    """A network and the masks that keep it sparse: bool, by the names of the weights; False is pruned.

    The network is a models.vgg10.VGG10, or has its `samples`, `layers()` and `weights()`.
    """

    network: nn.Module
    masks: Tensors

    def to(self, device: torch.device | str) -> "Pruned":
        return Pruned(self.network.to(device), {name: mask.to(device) for name, mask in self.masks.items()})


def cut_weights(model: Pruned, p: float, score: str, count_zeros: bool = False) -> Pruned | None:
    """Set a share of the remaining weights to zero, in place: those with the lowest scores of all layers.

    A weight that rounds to zero at a cut is masked with them. A masked weight never comes back; one that only rounded
    to zero may grow again before the next cut, and counts as remaining then.

    Args:
        p: share of the remaining weights, 0 to 1.
        score: one of SCORES.
        count_zeros: weights that round to zero count as remaining, as in the published code.

    Returns:
        The same network with its new masks; None if nothing can be cut.
    """
    network, masks = model
    codes = {f"{name}.weight": layer.weight_codes() for name, layer in network.layers().items()}
    kept = masks if count_zeros else alive(codes, masks)
    scored = scores(network.weights(), kept, score, weight_costs(cost_of(network)))
    smaller = remove(scored, kept, p)
    if all(torch.equal(smaller[name], kept[name]) for name in smaller):
        return None
    apply_masks(network.weights(), smaller)
    return Pruned(network, smaller)


def cut_filters(model: Pruned, p: float, score: str) -> Pruned | None:
    """Take a share of all filters and hidden neurons out of a copy of the network; other weights stay as they are.

    Args:
        p: share of filters and neurons, 0 to 1.
        score: one of SCORES; it matters whether "cost" is in it, see `unit_scores`.

    Returns:
        A smaller network and its masks, on the CPU; None if nothing can be cut.

    Raises:
        PruneError: the network has a layer that the dependency graph doesn't know.
    """
    network, masks = Pruned(copy.deepcopy(model.network), model.masks).to("cpu")
    weights, costs = network.weights(), weight_costs(cost_of(network)) if "cost" in score else None
    graph = DependencyGraph(network, torch.zeros(2, 2, network.samples))
    worth = {group.name: unit_scores(group, weights, masks, costs) for group in graph.groups}
    units = lowest_units(worth, p)
    if not units:
        return None
    plan = graph.make_plan(units)
    return Pruned(prune(network, plan), cut(masks, plan.remove))


def cost_of(network: nn.Module) -> dict[str, LayerCost]:
    """The challenge's cost by layer, see utils.cost.inference_cost."""
    device = next(network.parameters()).device
    return inference_cost(network, torch.zeros(1, 2, network.samples, device=device))


def take_weight_bit(model: Pruned, layer: str) -> Pruned:
    """A copy in which the weights of one layer have a bit less.

    Where the scale is max|w| / (n - 1), few bits make coarse steps: the layer's weights are clamped at the share of
    max|w| with which the codes are nearest to the weights (least squares).

    Args:
        layer: a name in network.layers().
    """
    network = _narrower(model.network, weights=layer)
    narrow = network.layers()[layer]
    if narrow.weight_step is None:
        _clip(narrow)
    return Pruned(network, model.masks)


def take_activation_bit(model: Pruned, layer: str) -> Pruned:
    """A copy in which what one layer reads has a bit less; the threshold stays, so the steps are twice as wide.

    Args:
        layer: a name in network.layers(), not the first: the input's width stays.
    """
    return Pruned(_narrower(model.network, activations=layer), model.masks)


def _narrower(network: nn.Module, weights: str = "", activations: str = "") -> nn.Module:
    layers = network.layers().items()
    bits = tuple(layer.weight_bits - (name == weights) for name, layer in layers)
    read = tuple(layer.input_bits - (name == activations) for name, layer in layers)
    return network.requantised(bits, read).to(next(network.parameters()).device)


@torch.no_grad()
def _clip(layer: nn.Module) -> None:
    weight, best = layer.weight.clone(), (math.inf, layer.weight)
    for share in torch.linspace(1, 0.3, 15).tolist():
        bound = share * weight.abs().max()
        layer.weight.copy_(weight.clamp(-bound, bound))
        error = float((layer.quantised_weight() - weight).square().sum())
        if error < best[0]:
            best = error, layer.weight.clone()
    layer.weight.copy_(best[1])


# ---- feedback


class Row(TypedDict):
    """What a step came to, in result.json and in a run's state. Moves have more: what the probes said."""

    step: int
    method: str
    p: float
    nonzero: int
    compression: float
    paper_formula: float
    bops: int
    weight_bits: int
    score: float
    validation: float
    epochs: int
    good: bool


class Cuts(NamedTuple):
    """The options that decide what is cut; feedback_magnitude_pruning.py describes them."""

    method: str  # "imp" ends at its first failure, "fmp" divides p by n
    n: float
    p: float
    min_p: float | None  # None: LEAST_SHARE
    score: str
    replay_faults: bool = False

    def least(self, kind: str) -> float:
        return self.min_p or LEAST_SHARE[kind]


@dataclass
class Series:
    """The published feedback: methods one after the other, a smaller share p after each failure. Plain values."""

    methods: list[str]  # that are not exhausted, of "structured" and "unstructured"; the first is in use
    p: float | None = None  # share of the next cut; None: the method begins, and takes its first share

    stretch = 1  # every step may take as many epochs

    def lowers(self, score: float) -> bool:
        """As published, a step is good whatever it came to."""
        return True

    def note(self, good: bool, score: float, cuts: Cuts) -> None:
        """What the step came to: p falls after a failure. 0 is below every least share: IMP ends."""
        if not good:
            self.p = self.p / cuts.n if cuts.method == "fmp" else 0.0

    def next(self, model: Pruned, cuts: Cuts, probe: Probe) -> Pruned | None:
        """Cut; None if no method can take its share."""
        while self.methods:
            structured = self.methods[0] == "structured"
            if self.p is None:  # a method begins; whole filters go in smaller shares, as published
                self.p = cuts.p / cuts.n if structured else cuts.p
            if self.p >= cuts.least(self.methods[0]):
                if structured:
                    smaller = cut_filters(model, self.p, cuts.score)
                else:
                    smaller = cut_weights(model, self.p, cuts.score, cuts.replay_faults)
                if smaller:
                    return smaller
            self.methods, self.p = self.methods[1:], None  # p is too small for it, or it has nothing left to cut
        return None

    def facts(self) -> dict:
        """Of the latest cut."""
        return {"method": self.methods[0], "p": self.p}


@dataclass
class Moves:
    """Feedback that chooses among moves, and goes back when one fails. Plain values.

    A move prunes a share of the weights, takes a bit from the weights of a layer or from what it reads, or removes a
    share of the filters. Before each step all moves are probed, a bit in the PROBED_LAYERS layers that would save most:

        gain    1 - score after / score before, counted. Bits are counted as if no weight rounded to zero: those that do
                may grow again.
        lost    accuracy lost on validation frames, before training but with the statistics of batch norm measured anew
                (EagleEye, Li 2020, arXiv:2007.02491: so measured it tells which network recovers)

    The move with the greatest gain / max(lost, standard error of the probe) is tried: losses below the noise are equal.
    Why a ratio: the accuracy that may be lost is the budget of the whole run, and the score is what it buys. The probe
    only orders the moves. Whether one is kept is decided after training.

    A move that failed is not repeated at once. A share is divided by n; after GROW_AFTER successes in a row it is
    multiplied again, up to its first value, so one noisy failure doesn't halve it for good. A bit, or a share that
    can't be divided, rests: after its k-th failure in a row until k other moves have succeeded, because training and
    pruning change what the layer can bear. After failures steps may take more epochs, so the last steps of a run are
    the longest. It ends when every move rests.
    """

    kinds: list[str]  # of MOVES
    shares: dict[str, float]  # of "prune" and "filters", the next ones
    wins: dict[str, int] = field(default_factory=dict)  # of a share since its last failure or growth
    failed: dict[str, int] = field(default_factory=dict)  # of a move, failures in a row
    rests: dict[str, int] = field(default_factory=dict)  # of a move, successes of others it waits for
    stretch: int = 1  # a step may take so many times the usual epochs
    score: float = math.inf  # of the latest network that was kept
    chosen: dict = field(default_factory=dict)  # the move that is being tried, and what the probes said

    @classmethod
    def begin(cls, kinds: list[str], cuts: Cuts) -> "Moves":
        return cls(kinds, {"prune": cuts.p, "filters": cuts.p / cuts.n})

    def lowers(self, score: float) -> bool:
        """Whether it is cheaper than the latest network that was kept: weights that rounded to zero may be back."""
        return score < self.score

    def note(self, good: bool, score: float, cuts: Cuts) -> None:
        """What the step came to."""
        if good:
            self.score = score
        if not self.chosen:  # the step without a cut
            return
        name, kind = self.chosen["move"], self.chosen["method"]
        self.stretch = 1 if good else min(self.stretch + 1, LONGEST)
        if good:
            self.failed.pop(name, None)
            self.rests = {other: left - 1 for other, left in self.rests.items() if left > 1}
            if kind in self.shares:
                self._won(kind, cuts)
            return
        self.wins[kind] = 0
        if kind in self.shares and self.shares[kind] / cuts.n >= cuts.least(kind):
            self.shares[kind] /= cuts.n
        else:
            self.failed[name] = self.failed.get(name, 0) + 1
            self.rests[name] = self.failed[name]

    def _won(self, kind: str, cuts: Cuts) -> None:
        self.wins[kind] = self.wins.get(kind, 0) + 1
        if self.wins[kind] >= GROW_AFTER:
            first = cuts.p if kind == "prune" else cuts.p / cuts.n
            self.shares[kind], self.wins[kind] = min(self.shares[kind] * cuts.n, first), 0

    def next(self, model: Pruned, cuts: Cuts, probe: Probe) -> Pruned | None:
        """The network after the best move, not trained yet; None if no move is left. `model` stays as it is."""
        device = next(model.network.parameters()).device
        before, noise = probe(copy.deepcopy(model.network))
        best, smaller, probed = None, None, {}
        for move, gain, candidate in self._candidates(model, cuts):
            candidate = candidate.to(device)
            lost = before - probe(candidate.network)[0]
            name = " ".join(text for text in (move["method"], move["layer"]) if text)
            probed[name] = [gain, lost]
            worth = gain / max(lost, noise)
            if gain > 0 and (best is None or worth > best):
                best, smaller = worth, candidate
                self.chosen = {"move": name, **move, "gain": gain, "lost": lost, "noise": noise, "probed": probed}
        return smaller

    def _candidates(self, model: Pruned, cuts: Cuts) -> Iterator[tuple[dict, float, Pruned]]:
        """Every move that doesn't rest: its facts, its gain, and the network after it."""
        layers = cost_of(model.network)
        now = challenge_score(layers)["score"]
        for kind in ("prune", "filters"):
            if kind in self.kinds and kind not in self.rests:
                p = self.shares[kind]
                whole = Pruned(copy.deepcopy(model.network), model.masks)
                cut = cut_weights(whole, p, cuts.score) if kind == "prune" else cut_filters(model, p, cuts.score)
                if cut:
                    gain = 1 - challenge_score(cost_of(cut.network))["score"] / now
                    yield {"method": kind, "layer": "", "p": p}, gain, cut
        for kind, take in (("weight-bit", take_weight_bit), ("activation-bit", take_activation_bit)):
            gains = self._bit_gains(kind, layers, now) if kind in self.kinds else {}
            for layer in sorted(gains, key=gains.get, reverse=True)[:PROBED_LAYERS]:
                yield {"method": kind, "layer": layer, "p": 0.0}, gains[layer], take(model, layer)

    def _bit_gains(self, kind: str, layers: dict[str, LayerCost], now: float) -> dict[str, float]:
        """What a bit less would save, by layers that have one to give and don't rest."""
        gains = {}
        for name, layer in list(layers.items())[kind == "activation-bit" :]:  # the input's width stays
            if kind == "weight-bit":
                narrow = layer._replace(weight_bits=layer.weight_bits - 1)
            else:
                narrow = layer._replace(input_bits=layer.input_bits - 1)
            if min(narrow.weight_bits, narrow.input_bits) >= LEAST_BITS and f"{kind} {name}" not in self.rests:
                gains[name] = 1 - challenge_score({**layers, name: narrow})["score"] / now
        return gains

    def facts(self) -> dict:
        """Of the latest move: `probed` has gain and lost of all that were probed."""
        return {key: value for key, value in self.chosen.items() if key != "move"}


def feedback_of(values: dict) -> Series | Moves:
    """The inverse of dataclasses.asdict for both."""
    return (Moves if "kinds" in values else Series)(**values)
