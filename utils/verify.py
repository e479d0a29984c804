"""Is a pruned network the dense one with the removed channels set to zero? A check that knows nothing of the pruner.

    error = verify(model, pruned, plan, images)

Both networks are called as anybody would call them, in eval mode and in train mode. Nothing here is shared with the
tracer (utils/channel_trace.py), so that a fault there can't hide itself. "Set to zero" means every removed entry of
every parameter and buffer, in the layers that produce the channel and in those that consume it; of a layer under
weight_norm the length, for a direction of zeros has no length. Needs torch only.
"""

import copy
import random

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FIXED_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # stay in eval mode
COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
SINGLE = 1e-4  # tolerance where a model can run in float32 only


class PruneError(ValueError):
    """A model that cannot be followed, or a plan that does not fit; the message names the cause and the remedy."""


class Constant(TorchDispatchMode):
    """Random numbers of any distribution become 1/2, dropout masks 1: their number follows the width."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(result, Tensor) and result.is_floating_point():
            result.fill_(1 if "bernoulli" in str(func) else 0.5)
        if "native_dropout" in str(func):
            return args[0].clone(), torch.ones_like(result[1])
        return result


def verify(dense, pruned, plan, inputs, dtype=torch.float64, tolerance=1e-9, eval_only=False):
    """The largest difference between the pruned model and the dense one with the removed entries zeroed.

    Copies of both run in `dtype`, in eval mode and in train mode (batch norm fixed, random numbers constant); a model
    that can't run in float64 runs as it is, to a tolerance of 1e-4.

    Args:
        dense, pruned: the models; neither is touched.
        plan: what `prune` was given.
        inputs: example inputs: a tensor, a tuple, or a dict by keyword.
        tolerance: of the largest difference, relative to max(1, largest output).
        eval_only: leave out train mode.

    Raises:
        PruneError: they differ by more, unless the plan names groups that are not exact; the outputs differ in shape or
            are not finite; or the models can't run.
    """
    zeroed, pruned = copy.deepcopy(dense), copy.deepcopy(pruned)
    zero(zeroed, plan)
    if plan.inexact:
        tolerance = float("inf")
    try:
        return largest_difference(converted(zeroed, dtype), converted(pruned, dtype), cast(inputs, dtype), tolerance,
                                  eval_only)  # fmt: skip
    except PruneError:
        raise
    except Exception as error:  # of anybody's model
        if dtype != torch.float64:
            raise PruneError(f"the models cannot be run in {dtype} ({first_line(error)})") from error
    try:
        return largest_difference(zeroed, pruned, inputs, max(tolerance, SINGLE), eval_only)
    except PruneError:
        raise
    except Exception as error:
        hint = "" if eval_only else ": if it is train mode that needs targets, give eval_only=True"
        raise PruneError(f"the models cannot be run on these inputs ({first_line(error)}){hint}") from error


def zero(model, plan):
    """Set what the plan removes to zero, in place."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, axis, indices in plan.remove:
        if name not in tensors or tensors[name].dim() <= axis or max(indices, default=0) >= tensors[name].shape[axis]:
            raise PruneError(f"the plan is for another model: it removes from axis {axis} of {name}")
        tensor, owner = tensors[name].detach(), model.get_submodule(name.rpartition(".")[0])
        norm = getattr(owner, "0", None)  # a ParametrizationList: original0 is the length, original1 the direction
        direction = type(norm).__name__ == "_WeightNorm" and name.endswith("original1") and axis == norm.dim
        if (tensor.is_floating_point() or tensor.is_complex()) and not direction:
            tensor.index_fill_(axis, torch.tensor(indices, device=tensor.device), 0)


def converted(model, dtype):
    """A copy whose real numbers have this dtype and whose complex ones have as many bits."""
    model = copy.deepcopy(model)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = cast(tensor.data, dtype)
    return model


def cast(values, dtype):
    def to(value):
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            return value
        return value.to(COMPLEX.get(dtype, value.dtype) if value.is_complex() else dtype)

    return tree_map(to, values)


def largest_difference(zeroed, pruned, inputs, tolerance, eval_only):
    largest = 0.0
    for training in (False,) if eval_only else (False, True):
        where = "in train mode" if training else "in eval mode"
        want, got = (outputs_of(model, inputs, training) for model in (zeroed, pruned))
        if [t.shape for t in want] != [t.shape for t in got]:
            raise PruneError(f"the pruned model's outputs have other shapes than the dense model's {where}")
        if not all(t.isfinite().all() for t in want):
            raise PruneError(f"the dense model's outputs {where} are not all finite: verify on other inputs")
        error = max((float((a - b).abs().max()) for a, b in zip(want, got, strict=True) if len(a.flatten())), default=0)
        size = max((float(t.abs().max()) for t in want if len(t.flatten())), default=0.0)
        if not error <= tolerance * max(1, size):  # nor if it is not a number
            text = f"the pruned model differs from the dense one by {error:g} {where}"
            raise PruneError(f"{text}; the largest output is {size:g}")
        largest = max(largest, error)
    return largest


def outputs_of(model, inputs, training):
    """All tensors that a model returns; random states stay as they were."""
    inputs = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, inputs)
    for module in model.modules():
        module.training = training and not isinstance(module, FIXED_LAYERS)
    state = random.getstate()
    try:
        with torch.no_grad(), torch.random.fork_rng({p.device for p in model.parameters() if p.is_cuda}):
            random.seed(0)
            torch.manual_seed(0)
            if training:
                with Constant():
                    outputs = call(model, inputs)
            else:
                outputs = call(model, inputs)
    finally:
        random.setstate(state)
    return [t.to(torch.float64) if t.dtype == torch.bool else t for t in tree_leaves(outputs) if isinstance(t, Tensor)]


def call(model, inputs):
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*([inputs] if isinstance(inputs, Tensor) else inputs))


def first_line(error):
    return str(error).strip().partition("\n")[0]
