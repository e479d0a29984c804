"""Channel pruning that is exact: find the channels of a network that must leave together, and take them out.

    python -m utils.dependency_graph resnet18          # groups of a model; what is fixed, and why

    graph = DependencyGraph(model, images)             # runs copies of the model once in eval and once in train mode
    plan = graph.plan(0.5, scores)                     # data: print it, save it, carry it out again later
    pruned = prune(model, plan)                        # a new model; the dense one is not touched
    error = verify(model, pruned, plan, images)        # equals the dense model with those channels set to zero

Every index of every axis of a parameter or buffer is an *atom*. While the model runs, utils/channel_trace.py follows
the atoms through its operations. An operation that needs channels to agree, such as an addition, ties their atoms. One
that would compute something else without a channel freezes it: it can't leave. An unknown operation freezes all it
touches. Atoms that are tied are a *unit*, kept or removed whole. Units that touch the same tensor axes are a *group*.
Last, the model runs at about half width. A step whose result has another shape than predicted depends on a size written
in the code, and freezes its channels. A step with another number among its arguments, or another step, freezes the
groups whose width is to blame. docs/PRUNER.md explains all this on a small network.

Needs torch, and channel_trace.py and verify.py beside it.
"""

import argparse
import copy
import importlib.util
import inspect
import json
import math
import os
import sys
from collections import Counter, OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from utils.channel_trace import FIXED, Axis, Trace, replay, run
from utils.verify import PruneError, first_line, verify

__all__ = ["DependencyGraph", "Group", "Member", "Plan", "PruneError", "prune", "verify"]

CONVOLUTION = nn.modules.conv._ConvNd


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

    @property
    def channels(self):
        """How many channels of the layers that make them a unit is."""
        makers = [m for m in self.members if m.role == "out"] or self.members
        return math.gcd(*(len(m.indices) // self.size for m in makers))


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
        """Read what `save` wrote. Raises PruneError: no such file, no plan, or one whose parts don't fit together."""
        try:
            plan = cls(**json.loads(Path(path).read_text("utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise PruneError(f"{path} is not a pruning plan ({first_line(error)}): write one with Plan.save") from None
        if fault := plan.fault():
            raise PruneError(f"{path} is not a pruning plan ({fault}): write one with Plan.save")
        return plan

    def fault(self):
        """What in the plan is of another type, or can't be carried out on a model of its shapes; or None."""

        def whole(value, least, most):
            return type(value) is int and least <= value <= most

        if not isinstance(self.shapes, dict):
            return "shapes is no object"
        for name, shape in self.shapes.items():
            if not isinstance(shape, list) or not all(whole(size, 0, 2**40) for size in shape):
                return f"the shape of {name} is no list of sizes"
        if not isinstance(self.remove, list) or not all(isinstance(row, list) and len(row) == 3 for row in self.remove):
            return "remove is no list of tensor, axis and indices"
        for name, axis, indices in self.remove:
            if not isinstance(name, str) or name not in self.shapes or not whole(axis, 0, len(self.shapes[name]) - 1):
                return f"it removes from axis {str(axis)[:20]} of {str(name)[:80]}, whose shape it does not have"
            size = self.shapes[name][axis]
            if not isinstance(indices, list) or not all(whole(index, 0, size - 1) for index in indices):
                return f"it removes what is not an index of the {size} of {name} axis {axis}"
            if len(set(indices)) < len(indices) or len(indices) == size:
                return f"it removes an index of {name} axis {axis} twice, or all of them"
        if len({(name, axis) for name, axis, _ in self.remove}) < len(self.remove):
            return "it removes from the same axis twice"
        if not isinstance(self.groups, list) or not isinstance(self.notes, list):
            return "groups or notes is no list"
        for group in self.groups:
            if not isinstance(group, dict) or {"name", "size", "asked", "kept"} - group.keys():
                return "a group is no object with name, size, asked and kept"
            asked, size = group["asked"], group["size"]
            if not isinstance(group["name"], str) or not whole(size, 1, 2**40) or not whole(group["kept"], 1, size):
                return f"the group {str(group['name'])[:80]} has no sizes"
            if type(asked) not in (int, float) or not 0 <= asked <= 1:
                return f"the group {group['name'][:80]} asks for a share of {str(asked)[:20]}"
        return None if all(isinstance(note, str) for note in self.notes) else "a note is no text"


class DependencyGraph:
    """The groups of a model, found by running copies of it on example inputs: a tensor, a tuple, or a dict by keyword.

    eval_only: leave out train mode, for models that need targets there; what only training uses is then frozen.
    groups: list[Group]. Raises PruneError if the model cannot be followed.
    """

    def __init__(self, model, example_inputs, eval_only=False):
        refuse(model)
        self._modes = (False,) if eval_only else (False, True)
        traced, self._spans, self._atoms, count = workbench(model), [], [], 1
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
        self._starts = torch.tensor([span.start for span in self._spans], dtype=torch.int64)
        self._trace = Trace([(found[name][0], axes[name]) for name in found])
        bench = Bench(traced, found)
        outputs, self._modes = self._run(bench, example_inputs)
        for leaf in tree_leaves(outputs):
            if not isinstance(leaf, (Tensor, int, float, str, bool, type(None))):
                raise PruneError(f"cannot see into an output of type {type(leaf).__name__}: return tensors or dicts")
            self._trace.freeze("model output", *(self._trace.of(leaf) if isinstance(leaf, Tensor) else []))
        for span, atoms in zip(self._spans, self._atoms, strict=True):
            if id(found[span.tensor][0]) not in self._trace.seen:
                self._trace.freeze("never used", Axis(atoms))
        self._solve(count)
        while wrong := self._replay(bench, example_inputs, [group.name for group in self.groups]):
            self._freeze_widths(wrong, bench, example_inputs)
            self._solve(count)
        del self._trace.log[:]

    def _run(self, bench, inputs):
        """`run` with errors in one sentence."""
        try:
            return run(bench.model, inputs, self._trace, self._modes)
        except PruneError:
            raise
        except Exception as error:  # of the model's own code, which may raise anything
            text = f"{type(error).__name__}: {first_line(error)}"
            if vars(bench.model).get("training"):
                hint = "if its training needs targets, give eval_only=True"
                raise PruneError(f"the model cannot run in train mode ({text}): {hint}") from error
            hint = "give as many inputs, of the shape and dtype, as its forward takes"
            raise PruneError(f"the model cannot run on the example inputs ({text}): {hint}") from error

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

    def _replay(self, bench, inputs, names):
        """{step: what goes wrong} when these groups are narrowed to about half, an odd number where it can be."""
        cut = {g.name: range(narrow_width(g.size), g.size) for g in self.groups if g.name in names}
        sizes = {(name, axis): self._shapes[name][axis] - len(gone) for name, axis, gone in self.make_plan(cut).remove}
        return replay(bench.narrowed(sizes), inputs, self._trace.log, ~self._gone(cut), self._modes) if sizes else {}

    def _freeze_widths(self, wrong, bench, inputs):
        """Freeze what must keep its width, that no step of the log goes wrong."""
        log, stays = self._trace.log, ~self._gone({g.name: range(1, g.size) for g in self.groups})
        literal = {}
        for k, why in wrong.items():  # a literal size: it concerns the channels that the operation takes
            free = [axis for axis in log[k].labels if not stays[axis.atoms].all()]
            if "size" in why and free:
                literal[k] = free
        for k, free in literal.items():
            self._trace.freeze(f"{log[k].name}: {wrong[k]}", *free)
        if literal:
            return
        blamed = self._culprits(wrong, lambda names: self._replay(bench, inputs, names))
        for k, names in blamed.items():
            for name in names:
                self._trace.freeze(f"{log[k].name}: {wrong[k]}", Axis(self._units[name]))

    def _culprits(self, wrong, narrowed):
        """{step: the groups whose width makes it go wrong}, found by narrowing half of the groups at a time.

        Run (bit, value) narrows the groups whose number has this bit. A step that a single group puts wrong is wrong in
        the runs of its bits and right in the others, so all steps are settled together.
        """
        names = [group.name for group in self.groups]
        left = {k: set(names) for k in wrong}
        for bit in range((len(names) - 1).bit_length()):
            for value in (0, 1):
                part = {name for k, name in enumerate(names) if k >> bit & 1 == value}
                found = narrowed(part)
                for k in left.keys() - found.keys():
                    left[k] -= part
        unclear = set().union(*(of_step for of_step in left.values() if len(of_step) > 1))
        alone = {name: narrowed([name]) for name in unclear}
        left = {k: {n for n in some if k in alone.get(n, (k,))} or some for k, some in left.items()}
        for k in [k for k, some in left.items() if not some]:  # it takes two, as in `if a.shape == b.shape`
            low, high = 0, len(names)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if k in narrowed(names[:middle]) else (middle, high)
            left[k] = {names[high - 1]}
        return left

    def _gone(self, units):
        """(atoms,) bool: which leave with the given units, {group name: numbers}."""
        gone = torch.zeros(len(self._root), dtype=torch.bool)
        for name, numbers in units.items():
            gone[self._units[name][torch.tensor([*numbers], dtype=torch.int64)]] = True
        return gone[self._root]

    def _check_scores(self, scores):
        """Raise PruneError unless there is a number for every unit of every group."""
        for g in self.groups if scores is not None else ():
            if g.name not in scores:
                raise PruneError(f"scores have no entry for group {g.name!r}: give one of {g.size} numbers")
            if tuple(scores[g.name].shape) != (g.size,):
                raise PruneError(f"scores of {g.name!r} have shape {[*scores[g.name].shape]}, not [{g.size}]")
            if scores[g.name].isnan().any():
                raise PruneError(f"scores of {g.name!r} contain NaN: the lowest of them is not known")

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

    def summary(self):
        """The groups, and for each reason how many axes and indices it fixes."""
        axes, indices = Counter(), Counter()
        for reasons in self.frozen.values():
            axes.update(reasons.keys())
            indices.update(reasons)
        rows = [f"{n:>6} indices of {axes[why]:>4} axes: {why}" for why, n in indices.most_common()]
        return "\n".join([*self._rows(), f"{len(self.frozen)} fixed axes; --all names them", *rows])

    def _rows(self):
        rows = [f"{g.name:<40}{g.size:>6} units, {len(g.members)} axes of {', '.join(g.layers)}" for g in self.groups]
        return [f"{len(rows)} groups", *rows]

    def __str__(self):
        fixed = [f"{name} axis {axis}: " + ", ".join(f"{why} ({n})" for why, n in reasons.items())
                 for (name, axis, _), reasons in self.frozen.items()]  # fmt: skip
        return "\n".join([*self._rows(), f"{len(fixed)} fixed axes, and why (indices)", *fixed])

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
            multiple, floor: the channels that a layer makes of a group are rounded to the nearest multiple, never to
                none, and are `floor` at least. A unit may be several channels: of a grouped convolution, of a split.
            protect_inputs, protect_outputs: paths of layers whose inputs or outputs keep their width.

        What was not done as asked is in the plan's notes. Raises PruneError for names, ratios, multiples and scores
        that make no sense.
        """
        protect_inputs, protect_outputs = (
            [paths] if isinstance(paths, str) else paths for paths in (protect_inputs, protect_outputs)
        )
        ratios, protected = ratios or {}, {"in": protect_inputs, "out": protect_outputs}
        for what, value in (("multiple", multiple), ("floor", floor)):
            if type(value) is not int or value < 1:
                raise PruneError(f"{what} {value!r}: give a whole number of channels, 1 or more")
        self._check_scores(scores)
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
            wanted, channels = g.size * (1 - asked), g.channels
            step = multiple // math.gcd(multiple, channels)  # units
            kept = max(1, math.ceil(wanted / step - 0.5)) * step
            kept = min(g.size, max(kept, -(-floor // channels))) if asked else g.size
            if abs(kept - wanted) > step / 2 or (kept == g.size and wanted < kept - 0.5):
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
    """Every parameter and buffer once, by its first name: {name: (tensor, its layer, [paths of its layers])}.

    The layer of a parametrised weight is the one that uses it.
    """
    names, found, layers = {}, {}, dict(model.named_modules())
    for path, module in layers.items():
        owner = path.split(".parametrizations.")[0]
        for key, tensor in (module._parameters | module._buffers).items():
            if tensor is not None:
                name = names.setdefault(id(tensor), f"{path}.{key}" if path else key)
                found.setdefault(name, (tensor, layers[owner], []))[2].append(owner or key)
    return found


def role_of(name, module, axis):
    """`Member.role` of a tensor's axis."""
    conv, parametrised = isinstance(module, CONVOLUTION), ".parametrizations." in name
    if not (conv or isinstance(module, nn.Linear)) or conv and 1 < module.groups == module.in_channels:
        return "both"
    if parametrised and ".weight.original" not in name:  # as the vectors of spectral_norm
        return "both"
    weight = name.endswith("weight") or parametrised
    return "in" if weight and axis == (0 if conv and module.transposed else 1) else "out"


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


def narrow_width(n):
    """Of n units: about half, odd so that other numbers divide it, at least two, because size 1 broadcasts."""
    return max(1, min(n - 1, max(2, (n // 2 - 1) | 1)))


def refuse(model):
    """Raise PruneError for models that cannot be copied, run or cut."""
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise PruneError("the model is scripted or traced: give the module that it was made from")
    tensors = [t for m in model.modules() for t in (m._parameters | m._buffers).values() if t is not None]
    kinds = {cls.__module__ for m in model.modules() for cls in type(m).__mro__}
    for bad, what in [
        (any(isinstance(t, nn.parameter.UninitializedTensorMixin) for t in tensors), "is lazy: run it once before"),
        (any(t.is_meta for t in tensors), "has tensors on the meta device: load its weights before"),
        (any(t.is_quantized for t in tensors) or any(".ao.nn.quantized" in kind for kind in kinds),
         "is quantised: prune it before"),
        (not any(True for _ in model.parameters()), "has no parameters: there is nothing to prune"),
    ]:  # fmt: skip
        if bad:
            raise PruneError(f"the model {what}")


def workbench(model):
    """A copy to run and to mark. Parameters share the model's memory; buffers do not.

    Memory is laid out so that operations are those that the code names (no as_strided).
    """
    swaps = {}
    for old, _, _ in tensors_of(model).values():
        tensor = old.detach() if isinstance(old, nn.Parameter) else old.detach().clone()
        swaps[id(old)] = like(old, tensor.contiguous().view(-1).view(tensor.shape))  # strides of size 1 too
    return duplicate(model, swaps)


class Bench:
    """A model that can be narrowed again and again; what its runs leave in its modules goes away before the next."""

    def __init__(self, model, found):
        self.model, self._found = model, found
        self._saved = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in model.modules()]

    def narrowed(self, sizes):
        """The model with these sizes: {(tensor, axis): n}."""
        swaps = {}
        for name, (old, _, _) in self._found.items():
            cuts = [(axis, sizes[name, axis]) for axis in range(old.dim()) if (name, axis) in sizes]
            if cuts:
                tensor = old.detach()
                for axis, n in cuts:
                    tensor = tensor.narrow(axis, 0, n)
                swaps[id(old)] = like(old, tensor.clone(memory_format=torch.contiguous_format))
        for module, attributes, parameters, buffers in self._saved:
            vars(module).clear()
            vars(module).update(attributes)
            module._parameters = {key: swaps.get(id(t), t) for key, t in parameters.items()}
            module._buffers = {key: swaps.get(id(t), t) for key, t in buffers.items()}
            if any(id(t) in swaps for t in parameters.values()) or any(id(t) in swaps for t in buffers.values()):
                refit(module)
        return self.model


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
        if not 0 <= min(indices, default=0) <= max(indices, default=0) < n:
            raise PruneError(f"the plan does not fit: it removes index {max(indices)} of the {n} of {name} axis {axis}")
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


def find_model(name):
    """A model without pretrained weights: of torchvision, of timm where it is installed, or "module:function"."""
    module, _, function = name.partition(":")
    try:
        if function:
            sys.path.insert(0, "")
            return getattr(importlib.import_module(module), function)()
        from torchvision import models

        if name in models.list_models():
            takes = inspect.signature(models.get_model_builder(name)).parameters
            return models.get_model(name, **{key: None for key in ("weights", "weights_backbone") if key in takes})
        if importlib.util.find_spec("timm"):
            return importlib.import_module("timm").create_model(name)
    except Exception as error:  # of anybody's factory
        raise PruneError(f"cannot build {name} ({type(error).__name__}: {first_line(error)})") from error
    raise PruneError(f"no model {name!r} in torchvision, and timm is not installed: give its name or module:function")


def example(text):
    """A random tensor: "1x3x64x64" is float32, "2x16:int64" whole numbers of 0 and 1."""
    shape, _, dtype = text.partition(":")
    values = torch.randn([int(n) for n in shape.split("x")])
    return values.gt(0).to(getattr(torch, dtype)) if dtype else values


def side(text):
    """A type for argparse: pixels along a side of an image."""
    if not 1 <= int(text) <= 8192:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 8192")
    return int(text)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Print the groups of coupled channels of a model, and what is fixed.")
    parser.add_argument("model", metavar="MODEL", help="of torchvision or timm, such as resnet18, or module:function")
    parser.add_argument("--size", type=side, default=224, help="height and width of the example image, default 224")
    parser.add_argument("--inputs", nargs="+", metavar="SHAPE", help="instead: 1x3x16x64x64, or 1x16:int64")
    parser.add_argument("--eval-only", action="store_true", help="do not run train mode, which may need targets")
    parser.add_argument("--all", action="store_true", help="every fixed axis, not only a sum by reason")
    args = parser.parse_args(argv)
    try:
        inputs = tuple(map(example, args.inputs or [f"1x3x{args.size}x{args.size}"]))
    except (ValueError, AttributeError, TypeError, RuntimeError):
        parser.error(f"--inputs {' '.join(args.inputs or [])} --size {args.size}: give shapes such as 1x3x64x64")
    try:
        model = find_model(args.model)
        graph = DependencyGraph(model, inputs, eval_only=args.eval_only)
    except PruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(graph if args.all else graph.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
