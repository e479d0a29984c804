"""Which weights stay: scores, masks, and cuts of single weights or of whole filters.

    masks = ones(weights)                                           # {name: bool tensor}, weights: {name: tensor}
    scored = scores(weights, alive(weights, masks), "lamp")         # what each weight is worth
    masks = remove(scored, alive(weights, masks), 0.2)              # a fifth of those that are left goes
    apply_masks(weights, masks)                                     # after pruning, and after every optimizer step

A score says how much a weight is worth; the lowest of all layers together go first (unstructured, global):

    magnitude   |w|                                                 as in Feedback Magnitude Pruning
    lamp        w^2 / sum of the w^2 of its layer that are not smaller (Lee 2021, arXiv:2010.07611)
    cost        w^2 / what the weight adds to the challenge's score (utils.cost.weight_costs)
    lamp-cost   the lamp score / the same

`cut_weights` and `cut_filters` do all of this for a quantised network. They need utils/cost.py and
utils/dependency_graph.py; the rest of the file needs torch only.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import nn

from utils.cost import LayerCost, inference_cost, weight_costs
from utils.dependency_graph import DependencyGraph, prune

SCORES = ("magnitude", "lamp", "cost", "lamp-cost")
Tensors = dict[str, torch.Tensor]


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
