"""Channel pruning that is exact: find the channels of a network that must leave together, and take them out.

    python -m utils.dependency_graph resnet18          # groups of a torchvision model; what is fixed, and why

    graph = DependencyGraph(model, images)             # runs copies of the model once in eval and once in train mode
    plan = graph.plan(0.5, scores)                     # data: print it, save it, carry it out again later
    pruned = prune(model, plan)                        # a new model; the dense one is not touched
    error = verify(model, pruned, plan, images)        # equals the dense model with those channels set to zero

Every index of every axis of a parameter or buffer is an *atom*. While the model runs, utils/channel_trace.py follows
the atoms through its operations. An operation that needs channels to agree, such as an addition, ties their atoms. One
that would compute something else without a channel freezes it: it can't leave. An unknown operation freezes all it
touches. Atoms that are tied are a *unit*, kept or removed whole. Units that touch the same tensor axes are a *group*.
Last, the model runs at half width. An operation whose result then has another shape than predicted depends on a size
written in the code, and freezes its channels too.

"Set to zero" means every removed entry of every parameter and buffer, in the layers that produce the channel and in
those that consume it. Needs torch, and channel_trace.py beside it.
"""

import argparse
import contextlib
import copy
import inspect
import json
import math
import os
import sys
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from utils.channel_trace import FIXED, MOVES, Axis, Trace, alike, run

CONVOLUTION = nn.modules.conv._ConvNd
FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)  # of code that cannot run at half width


class PruneError(ValueError):
    """A model that cannot be followed, or a plan that does not fit; the message names the cause and the remedy."""


class Member(NamedTuple):
    """The part of one tensor axis that belongs to a group."""

    tensor: str
    axis: int
    role: str  # "in": the layer sums over it; "out": the layer makes it; "both": it passes (norm, depthwise, scale)
    indices: Tensor  # (n,) int64 along the axis
    units: Tensor  # (n,) int64, the unit of each index, 0 .. size-1


class Span(NamedTuple):
    """The atoms start .. stop-1 of one tensor axis."""

    tensor: str
    axis: int
    role: str
    start: int
    stop: int


class Group(NamedTuple):
    """`size` units that can leave independently of each other; at least one stays."""

    name: str  # the first layer that makes these channels
    size: int
    members: list[Member]
    layers: list[str]


@dataclass
class Plan:
    """What leaves, in indices of the dense model. Plain data: needs neither graph nor model."""

    remove: list  # of [tensor, axis, indices]
    shapes: dict  # of these tensors in the dense model
    groups: list  # of {"name", "size", "asked": ratio, "kept": units}
    notes: list  # where a request could not be met, and why

    def __str__(self):
        rows = [f"{g['name']:<44}{g['size']:>6} ->{g['kept']:>6}   (to lose {g['asked']:.0%})" for g in self.groups]
        return "\n".join(rows + [f"note: {note}" for note in self.notes])

    def save(self, path):
        """Write JSON; a file that is there is replaced at once or not at all."""
        Path(f"{path}.tmp").write_text(json.dumps(asdict(self)))
        os.replace(f"{path}.tmp", path)

    @classmethod
    def load(cls, path):
        """Read what `save` wrote. Raises PruneError."""
        try:
            return cls(**json.loads(Path(path).read_text()))
        except (ValueError, TypeError) as error:
            raise PruneError(f"{path} is not a pruning plan ({error}): write one with Plan.save") from None


class DependencyGraph:
    """The groups of a model, found by running copies of it on example inputs: a tensor, a tuple, or a dict by keyword.

    groups: list[Group]. Raises PruneError if the model cannot be followed.
    """

    def __init__(self, model, example_inputs):
        traced, self._spans, self._atoms, count = workbench(model, {}), [], [], 1
        found = tensors_of(traced)
        self._shapes = {name: [*tensor.shape] for name, (tensor, _, _) in found.items()}
        self._layers = {name: layers for name, (_, _, layers) in found.items()}
        self._paths = {path for path, _ in model.named_modules()}
        axes = {name: [None] * tensor.dim() for name, (tensor, _, _) in found.items()}
        for name, (tensor, module, _) in found.items():
            for axis, n in enumerate(tensor.shape[:2] if isinstance(module, CONVOLUTION) else tensor.shape):
                if n > 1:
                    axes[name][axis] = torch.arange(count, count + n)
                    self._spans.append(Span(name, axis, role_of(name, module, axis), count, count + n))
                    self._atoms.append(axes[name][axis])
                    count += n
        self._starts = torch.tensor([span.start for span in self._spans])
        self._trace = Trace([(found[name][0], axes[name]) for name in found])
        outputs, self._modes = run(traced, example_inputs, self._trace)
        for leaf in tree_leaves(outputs):
            if not isinstance(leaf, (Tensor, int, float, str, bool, type(None))):
                raise PruneError(f"cannot see into an output of type {type(leaf).__name__}: return tensors or dicts")
            self._trace.freeze("model output", *(self._trace.of(leaf) if isinstance(leaf, Tensor) else []))
        for span, atoms in zip(self._spans, self._atoms, strict=True):
            if id(found[span.tensor][0]) not in self._trace.seen:
                self._trace.freeze("never used", Axis(atoms))
        self._solve(count)
        while self._freeze_literal_size(model, example_inputs):
            self._solve(count)

    def _solve(self, count):
        """Tied atoms -> units -> groups. count: number of atoms. An atom's root stands for its unit."""
        whole = {id(atoms): k for k, atoms in enumerate(self._atoms)}  # axes tied as a whole are found as a whole
        kinds = [(whole.get(id(a)), whole.get(id(b))) for a, b in self._trace.edges]
        block = connected(len(whole), *torch.tensor([(0, 0), *(k for k in kinds if None not in k)]).T)
        self._block = block.tolist()  # of an axis: the first one that it is tied to
        same = torch.arange(count)
        lengths = torch.tensor([span.stop - span.start for span in self._spans], dtype=torch.int64)
        same[1:] += (self._starts[block] - self._starts).repeat_interleave(lengths)
        edges = [pair for pair, k in zip(self._trace.edges, kinds, strict=True) if None in k]
        a, b = same[torch.cat([torch.stack(pair) for pair in edges] or [torch.ones(2, 1, dtype=torch.int64)], 1)]
        fixed = (a == FIXED) | (b == FIXED)
        self._trace.freezes["tied to a channel that is no parameter's"] = [a[fixed], b[fixed]]
        root = self._root = connected(count, a[~fixed], b[~fixed])[same]
        free = torch.ones(count, dtype=torch.bool)
        free[root[torch.cat([root[:1], *(atoms for each in self._trace.freezes.values() for atoms in each)])]] = False
        free = free[root]
        atoms = (free & (same == torch.arange(count))).nonzero().flatten()  # one for all axes of a block
        places, order = (root[atoms] * len(self._spans) + self._span(atoms)).sort(stable=True)
        pairs = places.unique_consecutive()  # which unit is on which axis
        codes = torch.randint(2**62, self._starts.shape, generator=torch.Generator().manual_seed(0))
        kind = torch.zeros(count, dtype=torch.int64)  # of a root: units on the same set of axes have the same sum
        kind.index_add_(0, pairs // len(self._spans), codes[pairs % len(self._spans)])
        units = root[free].unique()
        kinds, kind[units], sizes = kind[units].unique(return_inverse=True, return_counts=True)
        units = units[kind[units].argsort(stable=True)].split(sizes.tolist())
        number = torch.zeros(count, dtype=torch.int64)  # of a root within its group
        for of_group in units:
            number[of_group] = torch.arange(len(of_group))
        places, order = (kind[root[atoms]] * len(self._spans) + self._span(atoms)).sort(stable=True)
        atoms, (places, counts) = atoms[order], places.unique_consecutive(return_counts=True)
        indices = (atoms - self._starts[self._span(atoms)]).split(counts.tolist())
        numbers = number[root[atoms]].split(counts.tolist())
        members, axes = [[] for _ in units], {}
        for span, first in enumerate(self._block):
            axes.setdefault(first, []).append(span)
        for place, *parts in zip(places.tolist(), indices, numbers, strict=True):
            k, first = divmod(place, len(self._spans))
            for span in axes[first]:
                members[k].append((self._spans[span].role != "out", span, Member(*self._spans[span][:3], *parts)))
        self.groups, self._units = [], {}  # units: {group name: the root of each}
        for entries, of_group in sorted(zip(members, units, strict=True), key=lambda pair: min(pair[0])[:2]):
            name = self._layers[min(entries)[2].tensor][0]
            while name in self._units:
                name += "'"
            of_name = [member for _, _, member in sorted(entries, key=lambda entry: entry[1])]
            layers = dict.fromkeys(layer for member in of_name for layer in self._layers[member.tensor])
            self.groups.append(Group(name, len(of_group), of_name, list(layers)))
            self._units[name] = of_group

    def _span(self, atoms):
        return torch.bucketize(atoms, self._starts, right=True) - 1

    def _freeze_literal_size(self, model, inputs):
        """Run a copy of half the width and freeze the first operation that does not follow; False if all do."""
        half = {g.name: range(min(g.size - 1, max(2, g.size // 2)), g.size) for g in self.groups}
        sizes = {(name, axis): self._shapes[name][axis] - len(cut) for name, axis, cut in self.make_plan(half).remove}
        miniature, stays, log, finished = workbench(model, sizes), ~self._gone(half), self._trace.log, False
        narrow, widths = Trace([(tensor, []) for tensor, *_ in tensors_of(miniature).values()]), {}
        with contextlib.suppress(*FAILURES):
            run(miniature, inputs, narrow, self._modes)
            finished = True
        wrong = (k for k, pair in enumerate(zip(log, narrow.log, strict=False)) if not alike(*pair, stays, widths))
        wrong = next(wrong, None)
        if finished and wrong is None and len(log) == len(narrow.log):
            return False
        wrong = min(len(narrow.log), len(log) - 1) if wrong is None else wrong  # that which failed
        name, labels, outputs = log[wrong]
        if name in MOVES:  # all of its kind, to save rounds: attention splits its heads in every block
            labels = [axis for step in log if (step[0], len(step[1])) == (name, len(labels)) for axis in step[1]]
        labels = [axis for axis in labels if not stays[axis.atoms].all()]
        if not labels:  # it makes a tensor, as torch.zeros(n, x.shape[1]); x is one that has this size
            sizes = {n for shape, _ in outputs for n in shape}
            known = [axis for _, _, out in log[:wrong] for _, axes in out for axis in axes or [] if axis]
            labels = [axis for axis in known if axis.atoms.shape[-1] in sizes and not stays[axis.atoms].all()]
        if not labels:
            raise PruneError(f"cannot follow {name}: it depends on the width of layers that it does not take as input")
        self._trace.freeze(f"{name}: a size written in the code", *labels)
        return True

    def _gone(self, units):
        """(atoms,) bool: which leave with the given units, {group name: numbers}."""
        gone = torch.zeros(len(self._root), dtype=torch.bool)
        for name, numbers in units.items():
            gone[self._units[name][torch.tensor([*numbers], dtype=torch.int64)]] = True
        return gone[self._root]

    @property
    def frozen(self):
        """What can't leave: {(tensor, axis, role): {why: how many indices}}."""
        result = {}
        for why, atoms in self._trace.freezes.items():
            hit = torch.zeros(len(self._root), dtype=torch.bool)
            hit[self._root[torch.cat(atoms)]] = True
            spans, counts = self._span(hit[self._root][1:].nonzero().flatten() + 1).unique(return_counts=True)
            for span, n in zip(spans.tolist(), counts.tolist(), strict=True):
                result.setdefault(self._spans[span][:3], {})[why] = n
        return result

    def __str__(self):
        rows = [f"{g.name:<40}{g.size:>6} units, {len(g.members)} axes of {', '.join(g.layers)}" for g in self.groups]
        fixed = [f"{name} axis {axis}: " + ", ".join(f"{why} ({n})" for why, n in reasons.items())
                 for (name, axis, _), reasons in self.frozen.items()]  # fmt: skip
        return "\n".join([f"{len(rows)} groups", *rows, f"{len(fixed)} fixed axes, and why (indices)", *fixed])

    def make_plan(self, units, groups=(), notes=()):
        """The plan by which the given units leave: {group name: unit numbers}."""
        gone, indices = self._gone(units), {}
        for k in set(self._block):
            indices[k] = gone[self._atoms[k]].nonzero().flatten().tolist()
        cuts = [[s.tensor, s.axis, indices[k]] for s, k in zip(self._spans, self._block, strict=True) if indices[k]]
        return Plan(cuts, {name: self._shapes[name] for name, _, _ in cuts}, list(groups), list(notes))

    def plan(self, ratio, scores=None, ratios=None, multiple=1, floor=1, protect_inputs=(), protect_outputs=()):
        """Choose what leaves: of each group the units with the lowest scores.

        Args:
            ratio: share of each group's units to remove, 0 to 1.
            scores: {group name: (size,) tensor}, as utils/importance.py makes them. Without them the last units leave.
            ratios: {layer path or group name: ratio}; the longest path decides, instead of `ratio`. A group whose
                channels are made by layers of different ratios takes the smallest.
            multiple, floor: units kept are rounded to the nearest multiple, never to none, and are `floor` at least.
            protect_inputs, protect_outputs: paths of layers whose inputs or outputs keep their width.

        What was not done as asked is in the plan's notes. Raises PruneError for names and ratios that make no sense.
        """
        ratios, protected = ratios or {}, {"in": protect_inputs, "out": protect_outputs}
        for name, value in [("", ratio), *ratios.items(), *((path, 0) for path in (*protect_inputs, *protect_outputs))]:
            if (name not in self._paths and name not in self._units) or not 0 <= value <= 1:
                raise PruneError(f"{name!r}, ratio {value}: name a layer or group of the model, and a ratio of 0 to 1")

        def inside(layer, paths):
            return [path for path in paths if path in ("", layer) or layer.startswith(f"{path}.")]

        def asked_by(layer):
            return ratios[max(paths, key=len)] if (paths := inside(layer, ratios)) else ratio

        units, rows, notes = {}, [], []
        for g in self.groups:
            touched = {(m.role, layer) for m in g.members for layer in self._layers[m.tensor]}
            makers = sorted({layer for role, layer in touched if role == "out"}) or g.layers
            asked = ratios.get(g.name, min(map(asked_by, makers)))
            if g.name not in ratios and len(set(map(asked_by, makers))) > 1:
                notes.append(f"{g.name}: made by {', '.join(makers)}, so the smallest of their ratios, {asked:.0%}")
            if any(inside(layer, protected[s]) for role, layer in touched for s in protected if role in (s, "both")):
                asked = 0
            wanted = g.size * (1 - asked)
            kept = max(1, math.ceil(wanted / multiple - 0.5)) * multiple
            kept = min(g.size, max(kept, floor)) if asked else g.size
            if abs(kept - wanted) > multiple / 2:
                notes.append(f"{g.name}: {kept} of {g.size} units stay instead of {wanted:.1f}")
            if kept < g.size:
                order = range(g.size)[::-1] if scores is None else scores[g.name].argsort(stable=True).tolist()
                units[g.name] = order[: g.size - kept]
            rows.append({"name": g.name, "size": g.size, "asked": asked, "kept": kept})
        for (name, _, role), why in self.frozen.items():
            layer = self._layers[name][0]
            if name.endswith("weight") and role == "out" and asked_by(layer):
                notes.append(f"{layer}: {max(why.values())} output channels can't leave: {', '.join(why)}")
        return self.make_plan(units, rows, notes)


def tensors_of(model):
    """Every parameter and buffer once, by its first name: {name: (tensor, its module, [paths of its layers])}."""
    names, found = {}, {}
    for path, module in model.named_modules():
        for key, tensor in (module._parameters | module._buffers).items():
            if tensor is not None:
                name = names.setdefault(id(tensor), f"{path}.{key}" if path else key)
                found.setdefault(name, (tensor, module, []))[2].append(path.split(".parametrizations.")[0] or key)
    return found


def role_of(name, module, axis):
    """`Member.role` of a tensor's axis."""
    conv = isinstance(module, CONVOLUTION)
    if not (conv or isinstance(module, nn.Linear)) or conv and 1 < module.groups == module.in_channels:
        return "both"
    return "in" if name.endswith("weight") and axis == (0 if conv and module.transposed else 1) else "out"


def connected(n, a, b):
    """For each of n atoms the smallest that it is tied to, directly or through others: (n,) int64. a, b: the pairs."""
    root = torch.arange(n)
    while len(a):
        a, b = root[a], root[b]
        a, b = a[a != b], b[a != b]
        root.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(root, root[root]):
            root = root[root]
    return root


def workbench(model, sizes):
    """A copy to run and to mark. Parameters share the model's memory, unless they are narrowed; buffers do not.

    sizes: {(name, axis): how many entries to keep}. Memory is laid out so that operations are those that the code
    names (no as_strided).
    """
    swaps = {}
    for name, (old, _, _) in tensors_of(model).items():
        tensor = old.detach()
        for axis in range(old.dim()):
            if (name, axis) in sizes:
                tensor = tensor.narrow(axis, 0, sizes[name, axis])
        tensor = tensor if isinstance(old, nn.Parameter) else tensor.clone()
        swaps[id(old)] = like(old, tensor.contiguous().view(-1).view(tensor.shape))  # strides of size 1 too
    return duplicate(model, swaps)


def like(old, tensor):
    """`tensor` as a parameter if `old` is one."""
    return nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor


def prune(model, plan):
    """A copy of the model without what the plan removes. Raises PruneError if the plan does not fit."""
    found = tensors_of(model)
    new, keeps = {name: tensor.detach() for name, (tensor, _, _) in found.items()}, {}
    for name, shape in plan.shapes.items():
        if name not in found or [*found[name][0].shape] != shape:
            raise PruneError(f"the plan is for another model: it expects a tensor {name} of shape {shape}")
    for name, axis, indices in plan.remove:
        n = new[name].shape[axis]
        if id(indices) not in keeps:  # a list that many axes share is looked at once
            keep = torch.ones(n, dtype=torch.bool).index_fill_(0, torch.tensor(indices), False)
            keeps[id(indices)] = keep.nonzero().flatten()
        new[name] = new[name].index_select(axis, keeps[id(indices)].to(new[name].device))
    swaps = {}
    for name, tensor in new.items():
        old = found[name][0]
        swaps[id(old)] = like(old, tensor if name in plan.shapes else tensor.clone())
    return duplicate(model, swaps)


def duplicate(model, swaps):
    """copy.deepcopy with {id of a tensor: what takes its place}, several times faster; layers fit their tensors."""
    modules = [module for module in model.modules() if not hasattr(module, "__deepcopy__")]
    memo = swaps | {id(module): module.__new__(type(module)) for module in modules}
    for module in modules:
        new = vars(memo[id(module)])
        for key, value in vars(module).items():  # most of it is numbers and empty tables
            kind = type(value)
            if value is None or kind in (bool, int, str):
                new[key] = value
            elif kind in (dict, OrderedDict) and all(id(item) in memo for item in value.values()):
                new[key] = kind((name, memo[id(item)]) for name, item in value.items())
            elif kind in (tuple, list, set) and all(type(item) is int for item in value):
                new[key] = kind(value)
            else:
                new[key] = copy.deepcopy(value, memo)
        refit(memo[id(module)])
    return copy.deepcopy(model, memo)


def refit(module):
    """Derive the sizes that a layer holds as attributes from its tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, CONVOLUTION):
        multiplier, first, rest = module.out_channels // module.in_channels, *weight.shape[:2]
        if 1 < module.groups == module.in_channels:  # depthwise
            module.groups = first if module.transposed else first // multiplier
        rest *= module.groups
        module.in_channels, module.out_channels = (first, rest) if module.transposed else (rest, first)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = [t for t in (weight, module.running_mean) if t is not None]
        module.num_features = len(sized[0]) if sized else module.num_features
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(weight)


def verify(dense, pruned, plan, inputs, dtype=torch.float64, tolerance=1e-9):
    """The largest difference in eval mode between the pruned model and the dense one with the removed entries zeroed.

    Copies of both run in `dtype`. Raises PruneError if they differ by more than tolerance * max(1, largest output).
    """
    zeroed, pruned = (copy.deepcopy(model).to(dtype) for model in (dense, pruned))
    found = tensors_of(zeroed)
    for name, axis, indices in plan.remove:
        tensor = found[name][0].detach()
        if tensor.is_floating_point():
            tensor.index_fill_(axis, torch.tensor(indices, device=tensor.device), 0)
    inputs = tree_map(lambda v: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v, inputs)
    want, got = (run(model, inputs, contextlib.nullcontext())[0][0] for model in (zeroed, pruned))
    want, got = ([t for t in tree_leaves(outputs) if isinstance(t, Tensor)] for outputs in (want, got))
    if [t.shape for t in want] != [t.shape for t in got]:
        raise PruneError("the pruned model's outputs have other shapes than the dense model's")
    error = max((float((a - b).abs().max()) for a, b in zip(want, got, strict=True)), default=0.0)
    largest = max((float(t.abs().max()) for t in want), default=0.0)
    if not error <= tolerance * max(1, largest):  # nor if it is not a number
        raise PruneError(f"the pruned model differs from the dense one by {error:g}; the largest output is {largest:g}")
    return error


@torch.no_grad()
def zero_pad_channels(model: nn.Module, inputs: torch.Tensor, multiple: int = 16) -> nn.Module:
    """A copy of `model` whose groups of channels have their width rounded up to a multiple.

    A zero-padded channel is 0 in the layers that make it and in those that read it, so the network computes the same.
    Inference engines keep channels in blocks (ONNX Runtime: 16 floats of AVX-512). They compute a narrower layer as if
    it filled its last block, and have to rearrange the result first. Groups whose channels lie more than once, or
    beside others, on an axis (flattened or concatenated) stay as they are.

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


def main():
    from torchvision import models

    parser = argparse.ArgumentParser(description="Print the groups of coupled channels of a torchvision model.")
    parser.add_argument("model", choices=models.list_models(), metavar="MODEL", help="such as resnet18")
    parser.add_argument("--size", type=int, default=224, help="height and width of the example image")
    args = parser.parse_args()
    takes = inspect.signature(models.get_model_builder(args.model)).parameters
    model = models.get_model(args.model, **{key: None for key in ("weights", "weights_backbone") if key in takes})
    try:
        print(DependencyGraph(model, torch.randn(1, 3, args.size, args.size)))
    except PruneError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
