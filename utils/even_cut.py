"""The plainest pruning: every layer loses the same share of its channels, the weakest first.

    student = cut_evenly(model.eval(), 299_000, torch.zeros(1, 3, 64, 64))

Needs torch, and dependency_graph.py (with channel_trace.py) and importance.py beside it.
"""

import torch
from torch import nn

from utils.dependency_graph import DependencyGraph, PruneError, prune
from utils.importance import group_scores


def cut_evenly(model: nn.Module, target: int, inputs: torch.Tensor, multiple: int = 8, floor: int = 8) -> nn.Module:
    """A copy with at most `target` parameters, found by bisection of the share that leaves.

    Args:
        model: any network that DependencyGraph can follow; it is not touched.
        target: parameters.
        inputs: an example, float (N, 3, H, W).
        multiple, floor: of the widths that stay. Multiples of 8 let inference engines use their fast code.

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
    """How many numbers training moves."""
    return sum(parameter.numel() for parameter in model.parameters())
