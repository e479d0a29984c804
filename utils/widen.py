"""The opposite of pruning: channels of zeros, so that widths suit an inference engine's vectors. Nothing else changes.

    wide = widen(pruned.eval(), torch.zeros(1, 3, 64, 64))      # widths in multiples of 16

A new channel is 0 in the layers that make it and in those that read it, so whatever an activation makes of it reaches
nothing. Engines that keep channels in blocks (ONNX Runtime: 16 floats of AVX-512) compute a narrower layer as if it
were as wide, and rearrange its result first. Needs torch, and dependency_graph.py (with channel_trace.py) beside it.
"""

import torch
from torch import nn

from utils.dependency_graph import DependencyGraph, duplicate, like, tensors_of


@torch.no_grad()
def widen(model: nn.Module, inputs: torch.Tensor, multiple: int = 16) -> nn.Module:
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
