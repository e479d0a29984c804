"""Which channels of a network leave: scores of single units, and shares of whole blocks.

    scores = group_scores(model, graph.groups, "taylor", (loss_of(model(x), y) for x, y in batches))
    plan = graph.plan(0.5, scores)                                              # half of every group

    entries = find_entries(model, graph, recipe.preset)                         # or some blocks more than others:
    ...                                                                         # cut each alone, note what it changes
    set_importance(recipe, entries)
    plan = choose_plan(recipe, graph, entries, scores, parameters_left, 299e3)

    student = cut_evenly(model.eval(), 299_000, torch.zeros(1, 3, 64, 64))      # the plainest: every layer alike

A unit is a channel with all that leaves with it: the weights that make it, norms, and the weights that read it
(utils/dependency_graph.py). Every criterion adds up the values of these weights, and the sum goes through the
criterion's last function, such as the absolute value. So Taylor's score estimates what removing the whole unit changes.
Needs torch, and dependency_graph.py (with channel_trace.py) beside it.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.dependency_graph import DependencyGraph, Group, Plan, PruneError, prune

TOLERANCE = 0.02  # of a target

# ---- units -----------------------------------------------------------------------------------------------------------

CRITERIA = {
    "taylor": "|sum w g|, the loss's first-order change (Molchanov 2019, arXiv:1906.10771); mean over batches",
    "taylor_abs": "sum |w g|; mean over batches",
    "l1": "sum |w|",
    "l2": "root of sum w^2",
    "bn": "sum |scale| of the batch norms (Liu 2017, arXiv:1708.06519); 0 in groups without one",
    "fpgm": "sum of distances to the other channels (He 2019, arXiv:1811.00250)",
    "random": "uniform, from the seed",
}


def group_scores(model: nn.Module, groups: list, criterion: str, losses: Iterable[Tensor] = (), seed: int = 0) -> dict:
    """Scores of all units of all groups; the lowest are to leave first.

    Args:
        model: the network that the groups are of; neither its parameters nor their .grad change.
        groups: DependencyGraph.groups: objects with name, size and members (tensor, axis, role, indices, units).
        criterion: a key of CRITERIA.
        losses: for Taylor: scalars that depend on the model's parameters, one for each batch. A generator is best: the
            graph of one batch is freed before the next is made.
        seed: for "random".

    Returns:
        {group name: float32 (size,)}.

    Raises:
        ValueError: unknown criterion, or Taylor without a loss.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}: choose one of {', '.join(CRITERIA)}")
    parameters = dict(model.named_parameters())
    total, batches = {group.name: torch.zeros(group.size) for group in groups}, 0
    if criterion == "random":
        generator = torch.Generator().manual_seed(seed)
        return {group.name: torch.rand(group.size, generator=generator) for group in groups}
    for gradients in _gradients(parameters, losses) if criterion.startswith("taylor") else [{}]:
        batches += 1
        for group in groups:
            total[group.name] += _unit_sums(parameters, gradients, group, criterion)
    if not batches:
        raise ValueError(f"{criterion} needs the loss of one batch at least")
    return {name: values / batches for name, values in total.items()}


def _gradients(parameters: dict[str, nn.Parameter], losses: Iterable[Tensor]):
    """For each loss {name: gradient}; a parameter that the loss does not depend on has none."""
    learned = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    for loss in losses:
        found = torch.autograd.grad(loss, list(learned.values()), allow_unused=True)
        yield {name: g for name, g in zip(learned, found, strict=True) if g is not None}


def _unit_sums(parameters: dict, gradients: dict, group, criterion: str) -> Tensor:
    """The criterion of each unit of a group from one batch: float32 (size,)."""
    sums = torch.zeros(group.size)
    for member in group.members:
        weight, gradient = parameters.get(member.tensor), gradients.get(member.tensor)
        if weight is None or (criterion.startswith("taylor") and gradient is None):
            continue  # a buffer, or a layer that only runs in train mode
        if criterion == "bn" and not (weight.dim() == 1 and member.tensor.endswith("weight")):
            continue
        values = _index_values(weight.detach(), gradient, member.axis, criterion)  # (n,) along the axis
        sums.index_add_(0, member.units, values.cpu().float()[member.indices])
    if criterion == "taylor":
        return sums.abs()
    return sums.sqrt() if criterion == "l2" else sums


def _index_values(weight: Tensor, gradient: Tensor | None, axis: int, criterion: str) -> Tensor:
    """One value for each index of an axis."""
    if criterion in ("taylor", "taylor_abs"):
        weight = weight * gradient
    rows = weight.movedim(axis, 0).reshape(weight.shape[axis], -1)  # (n, all that belongs to one index)
    if criterion == "taylor":
        return rows.sum(1)
    if criterion == "l2":
        return rows.square().sum(1)
    if criterion == "fpgm":
        return torch.cdist(rows, rows).sum(1)
    return rows.abs().sum(1)


# ---- blocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How much of each block leaves; prune_seg.py has the formulas of both presets."""

    preset: str  # "default" or "published"
    variant: str = "coded"  # or "written": of the published formula
    k: float = 2.0  # how much an entry's importance decides
    max_ratio: float = 0.99  # of channels that leave, for the published preset without a target
    multiple: int = 8  # widths that stay are multiples of it
    floor: int = 8  # channels of a layer that stay at least
    of_macs: bool = False  # the target is of MACs, not of parameters


@dataclass
class Entry:
    """Channels that get one ratio: those that a block makes alone, or those that several blocks make together."""

    name: str
    groups: list[Group]
    loss: float = 0.0  # change by the probe
    miou: float = 0.0
    f1: float = 0.0
    parameters: float = 0.0  # percent of the network's that the probe's cut saves
    macs: float = 0.0
    importance: float = 0.0  # n of the formulas in prune_seg.py
    ratio: float = 0.0  # share of its channels that left

    @property
    def channels(self) -> int:
        return sum(group.size for group in self.groups)


def find_entries(network: nn.Module, graph: DependencyGraph, preset: str) -> list[Entry]:
    """Groups by the blocks whose layers make their channels, in the order of the network.

    A block is a child of one of the network's children, such as backbone.3. With the preset "published" the residual
    widths, the first block and the last layers are left out.

    Raises:
        PruneError: nothing can be cut.
    """
    blocks = [f"{part}.{name}" for part, module in network.named_children() for name, _ in module.named_children()]
    heads = [part for part, _ in network.named_children() if part != "backbone"]
    fixed = {blocks[0]} | {block for block in blocks if block.partition(".")[0] in heads and not block.endswith(".0")}
    members = {}
    for group in graph.groups:
        tensors = [member.tensor for member in group.members if member.role == "out"] or [group.members[0].tensor]
        makers = [block for block in blocks if any(tensor.startswith(f"{block}.") for tensor in tensors)]
        if preset == "default" or (len(makers) == 1 and makers[0] not in fixed):
            members.setdefault(tuple(makers), []).append(group)
    entries = [Entry(" + ".join(makers), groups) for makers, groups in members.items()]
    if not entries:
        raise PruneError("no channel of this network can be cut; python -m utils.dependency_graph MODEL tells why")
    return entries


def set_importance(recipe: Recipe, entries: list[Entry]) -> None:
    """The n of each entry, from what its probe has changed and saved; see the formulas in prune_seg.py."""
    if recipe.preset == "default":
        # A loss that fell, or rose by less than 1 % of the largest rise, counts as that: a logarithm needs more than 0
        most = max(max(entry.loss for entry in entries), 1e-6)
        saved = [max(entry.macs if recipe.of_macs else entry.parameters, 1e-6) for entry in entries]
        values = [math.log(max(e.loss, 0.01 * most) / s) for e, s in zip(entries, saved, strict=True)]
        low, high = min(values), max(values)
        for entry, value in zip(entries, values, strict=True):
            entry.importance = (value - low) / max(high - low, 1e-9)
        return
    change = sum(abs(entry.f1) for entry in entries) or 1.0
    parameters, macs = sum(entry.parameters for entry in entries), sum(entry.macs for entry in entries)
    values = []
    for entry in entries:
        if recipe.variant == "coded":
            terms = 100 * abs(entry.f1) / change, 100 - entry.parameters, 100 - entry.macs
        else:
            terms = abs(entry.f1) / change, 1 - entry.parameters / parameters, 1 - entry.macs / macs
        values.append(sum(weight * term for weight, term in zip((0.5, 0.3, 0.2), terms, strict=True)))
    for entry, value in zip(entries, values, strict=True):
        entry.importance = value / sum(values)


def ratios_at(recipe: Recipe, entries: list[Entry], t: float) -> dict[str, float]:
    """{group: share of its channels to remove}; the larger t, the larger the network that stays."""
    if recipe.preset == "default":
        ratios = [1 - min(1.0, t * math.exp(recipe.k * (entry.importance - 1))) for entry in entries]
    else:
        factors = [math.exp(-recipe.k * entry.importance) for entry in entries]
        ratios = [round((1 - t) * factor / max(factors), 2) for factor in factors]
    return {group.name: ratio for entry, ratio in zip(entries, ratios, strict=True) for group in entry.groups}


def choose_plan(
    recipe: Recipe,
    graph: DependencyGraph,
    entries: list[Entry],
    scores: dict,
    left: Callable[[Plan], int],
    goal: float | None,
) -> Plan:
    """The plan that meets a goal within 2%; without a goal, the one of recipe.max_ratio.

    Args:
        graph: of the network as it is now; ratios are of the widths that `entries` remember.
        entries: with their importance set.
        scores: of `group_scores`.
        left: the parameters or MACs that a plan leaves.
        goal: how many are to be left.

    Raises:
        PruneError: no widths in steps of recipe.multiple meet the goal.
    """
    before = {group.name: group.size for entry in entries for group in entry.groups}
    sizes = {group.name: group.size for group in graph.groups}  # smaller after a first cut, absent at one channel

    def plan_at(t: float, more: dict[str, float]) -> Plan:
        """`more`: widths of some groups, instead of those that t gives."""
        widths = {name: before[name] * (1 - ratio) for name, ratio in ratios_at(recipe, entries, t).items()} | more
        ratios = {name: max(0.0, 1 - width / sizes[name]) for name, width in widths.items() if name in sizes}
        return graph.plan(0, scores, ratios, recipe.multiple, recipe.floor)

    if not goal:
        return plan_at(1 - recipe.max_ratio, {})

    # Is it in reach? With the preset's highest t all channels stay, whatever n is
    low, high = 0.0, math.exp(recipe.k) if recipe.preset == "default" else 1.0
    unit = "MACs" if recipe.of_macs else "parameters"
    least, most = left(plan_at(low, {})), left(plan_at(high, {}))
    if not least * (1 - TOLERANCE) <= goal <= most * (1 + TOLERANCE):
        raise PruneError(
            f"a target of {goal:.4g} {unit} is out of reach: with this preset the network can have {least} to {most}; "
            "choose a target in between, or change --floor and --multiple"
        )

    # The largest t that does not exceed it
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if left(plan_at(middle, {})) <= goal else (low, middle)

    # Widths move in steps, so give single groups one step more, the most valuable first, while the target allows.
    more, plan = {}, plan_at(low, {})
    for group in (g for entry in sorted(entries, key=lambda entry: -entry.importance) for g in entry.groups):
        kept = next((row["kept"] for row in plan.groups if row["name"] == group.name), math.inf) + recipe.multiple
        if kept <= sizes.get(group.name, 0) and left(plan) < goal * (1 - TOLERANCE / 4):
            wider = plan_at(low, more | {group.name: kept})
            if left(wider) <= goal * (1 + TOLERANCE / 4):
                more, plan = more | {group.name: kept}, wider
    if abs(left(plan) - goal) > TOLERANCE * goal:
        raise PruneError(
            f"{left(plan)} is the nearest to {goal:.4g} {unit} in steps of {recipe.multiple} channels: "
            "choose a smaller --multiple"
        )
    return plan


def note_ratios(entries: list[Entry], plans: list[Plan]) -> None:
    """Write into each entry the share of its channels that has left after all plans."""
    kept = {}
    for plan in plans:
        kept |= {group["name"]: group["kept"] for group in plan.groups}
    for entry in entries:
        entry.ratio = 1 - sum(kept[group.name] for group in entry.groups) / entry.channels


# ---- every layer by the same share ----------------------------------------------------------------------------------


def cut_evenly(model: nn.Module, target: int, inputs: torch.Tensor, multiple: int = 8, floor: int = 8) -> nn.Module:
    """A copy with at most `target` parameters: every layer loses the same share of its channels, the weakest first.

    Args:
        model: any network that DependencyGraph can follow; it is not touched.
        target: parameters.
        inputs: an example, float (N, 3, H, W).
        multiple, floor: widths that stay are multiples of `multiple`, and `floor` at least. Multiples of 8 let
            inference engines use their fast code.

    Raises:
        PruneError: the model can't be followed, or is larger than the target even with `floor` channels everywhere.
    """
    graph = DependencyGraph(model, inputs)
    scores = group_scores(model, graph.groups, "l2")

    def cut(share: float) -> nn.Module:
        return prune(model, graph.plan(share, scores, multiple=multiple, floor=floor))

    low, high = 0.0, 1.0
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (middle, high) if parameters(cut(middle)) > target else (low, middle)
    smaller = cut(high)
    if parameters(smaller) > target:
        raise PruneError(f"{parameters(smaller)} parameters stay, more than {target}: choose a larger target")
    return smaller


def parameters(model: nn.Module) -> int:
    """How many parameters a model has."""
    return sum(parameter.numel() for parameter in model.parameters())
