"""What a group of coupled channels is worth: scores by which utils/dependency_graph.py chooses what leaves.

    scores = group_scores(model, graph.groups, "taylor", (loss_of(model(x), y) for x, y in batches))
    plan = graph.plan(0.5, scores)

Every criterion is aggregated in one way: each index of each parameter that belongs to a unit has a value, the values
of a unit are added up over all its members (weights that make the channel, norms, weights that read it), and the sum
goes through the criterion's last function. So Taylor's score is its estimate of what removing the whole unit changes.
Needs torch only.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

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
