"""Change the widths of a whole network: cut every layer by the same share, or zero-pad channels to a multiple.

    student = cut_evenly(model.eval(), 299_000, torch.zeros(1, 3, 64, 64))
    wide = zero_pad_channels(pruned.eval(), torch.zeros(1, 3, 64, 64))      # widths in multiples of 16

The even cut is the plainest pruning: every layer loses the same share of its channels, the weakest first. Zero-padding
is its opposite. A zero-padded channel is 0 in the layers that make it and in those that read it, so the network
computes the same. Inference engines keep channels in blocks (ONNX Runtime: 16 floats of AVX-512). They compute a
narrower layer as if it filled its last block, and have to rearrange the result first.
Needs torch, and dependency_graph.py (with channel_trace.py) and importance.py beside it.
"""

import torch
from torch import nn

from utils.dependency_graph import DependencyGraph, PruneError, duplicate, like, prune, tensors_of
from utils.importance import group_scores


def cut_evenly(model: nn.Module, target: int, inputs: torch.Tensor, multiple: int = 8, floor: int = 8) -> nn.Module:
    """A copy with at most `target` parameters, found by bisection of the share that leaves.

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


@torch.no_grad()
def zero_pad_channels(model: nn.Module, inputs: torch.Tensor, multiple: int = 16) -> nn.Module:
    """A copy of `model` whose groups of channels have their width rounded up to a multiple.

    Groups whose channels lie more than once, or beside others, on an axis (flattened or concatenated) stay as they are.

    Args:
        model: any network that DependencyGraph can follow, in evaluation mode; it is not touched.
        inputs: an example, float (N, 3, H, W).
        multiple: of the new widths.

    Raises:
        PruneError: the model can't be followed.
    """
    found = tensors_of(model)
    new = {name: tensor.detach() for name, (tensor, _, _) in found.items()}
    for group in DependencyGraph(model, inputs).groups:
        missing = -group.size % multiple
        if all(new[m.tensor].shape[m.axis] == len(m.indices) == group.size for m in group.members):
            for m in group.members:
                shape = [missing if axis == m.axis else n for axis, n in enumerate(new[m.tensor].shape)]
                new[m.tensor] = torch.cat([new[m.tensor], new[m.tensor].new_zeros(shape)], m.axis)
    return duplicate(model, {id(found[name][0]): like(found[name][0], tensor) for name, tensor in new.items()})
