"""Channel pruning that is exact: find the channels of a network that must leave together, and take them out.

    python -m utils.dependency_graph resnet18          # groups of a model; what is fixed, and why

    graph = DependencyGraph(model, images)             # runs a copy of the model, in eval and in train mode
    plan = graph.plan(0.5, scores)                     # data: print it, save it, carry it out again later
    pruned = prune(model, plan)                        # a new model; the dense one is not touched
    error = verify(model, pruned, plan, images)        # equals the dense model with those channels set to zero

Every index of every axis of a parameter or buffer is an *atom*. While the model runs, utils/channel_trace.py follows
the atoms through its operations. An operation that needs channels to agree, such as an addition, ties their atoms. One
that would compute something else without a channel freezes it: it can't leave. An unknown operation freezes all it
touches. Atoms that are tied are a *unit*, kept or removed whole. Units that touch the same tensor axes are a *group*.
Last, where the model's code may know how wide a layer is, the model runs at about half width. A step whose result has
another shape than predicted depends on a size written in the code, and freezes its channels. A step with another number
among its arguments, or another step, freezes the groups whose width is to blame. docs/PRUNER.md explains all this on a
small network.

Needs torch, and channel_trace.py and verify.py beside it.
"""

import argparse
import contextlib
import copy
import gc
import importlib.util
import inspect
import json
import math
import os
import sys
from collections import Counter, OrderedDict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from utils.channel_trace import CONVOLUTION, FIXED, LITERAL, NORM, Axis, Replay, Trace, replay, run, walk
from utils.verify import PruneError, first_line, verify

__all__ = ["DependencyGraph", "Group", "Member", "Plan", "PruneError", "prune", "verify"]


HEAD_COUNTS, HEAD_WIDTHS = ("num_attention_heads", "num_heads", "n_heads"), ("attn_dim", "all_head_size", "inner_dim")
PLAIN, TABLES = {type(None), bool, int, str, float}, {dict, OrderedDict, set, list, tuple}  # what modules mostly hold


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
    attributes: list = field(default_factory=list)  # of [path of a layer, attribute, value]: fewer heads
    inexact: list = field(default_factory=list)  # groups that are cut though a norm's statistics change

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
        if not isinstance(self.attributes, list) or not all(
            isinstance(row, list) and len(row) == 3 and type(row[0]) is type(row[1]) is str and whole(row[2], 1, 2**40)
            for row in self.attributes
        ):
            return "attributes is no list of layer, attribute and number"
        texts = self.notes + self.inexact if isinstance(self.inexact, list) else [None]
        return None if all(isinstance(text, str) for text in texts) else "a note or an inexact group is no text"


@contextlib.contextmanager
def without_collection():
    """Python does not look for garbage meanwhile, which takes as long as the work itself where much is in memory."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class DependencyGraph:
    """The groups of a model, found by running copies of it on example inputs: a tensor, a tuple, or a dict by keyword.

    eval_only: leave out train mode, for models that need targets there; what only training uses is then frozen.
    heads: {path of an attention layer: the attribute that holds its number of heads}; without it that of timm's and
    transformers' layers. Heads leave whole. approximate: the widths of layer norms and group norms may change, which is
    not exact; `inexact` names the groups, and `inexactness` measures them.
    groups: list[Group]. Raises PruneError if the model cannot be followed.
    """

    @without_collection()
    def __init__(self, model, example_inputs, eval_only=False, heads=None, approximate=False):
        refuse(model)
        bench, self._spans, self._atoms, count = Bench(model), [], [], 1
        found = bench.found
        self._shapes = {name: [*tensor.shape] for name, (tensor, _, _) in found.items()}
        self._layers = {name: layers for name, (_, _, layers) in found.items()}
        self._paths = walk(model)
        axes = {name: [None] * tensor.dim() for name, (tensor, _, _) in found.items()}
        for name, (tensor, module, _) in found.items():
            for axis, n in enumerate(tensor.shape[:2] if isinstance(module, CONVOLUTION) else tensor.shape):
                if n > 1:
                    axes[name][axis] = torch.arange(count, count + n)
                    self._spans.append(Span(name, axis, role_of(name, module, axis), count, count + n))
                    self._atoms.append(axes[name][axis])
                    count += n
        self._axes = {(span.tensor, span.axis): k for k, span in enumerate(self._spans)}
        self._starts = torch.tensor([span.start for span in self._spans], dtype=torch.int64)
        self._lengths = torch.tensor([span.stop - span.start for span in self._spans], dtype=torch.int64)
        self._trace = Trace({name: tensor for name, (tensor, _, _) in found.items()}, axes, approximate)
        self._heads = {}  # {path: (attributes that hold the number of heads or a multiple, their values)}
        for path, attribute in (find_heads(self._paths) if heads is None else heads).items():
            self._heads[path] = head_counts(self._paths, path, attribute)
            listen_to_heads(bench, path, self._heads[path][attribute], self._trace)
        width_matters = self._trace_modes(bench, example_inputs, eval_only)
        for span, atoms in zip(self._spans, self._atoms, strict=True):
            if id(found[span.tensor][0]) not in self._trace.seen:
                self._trace.freeze("never used", Axis(atoms))
        self._solve()
        while width_matters and (wrong := self._replay(bench, example_inputs, [group.name for group in self.groups])):
            self._freeze_widths(wrong, bench, example_inputs)
            self._solve()
        del self._trace.log, self._logs

    def _trace_modes(self, bench, inputs, eval_only):
        """Trace eval mode, and train mode where that takes other steps. Whether the code may know how wide a layer is.

        self._logs: [(training, log)] of the modes that differ to the model.
        """
        outputs, asked, width = self._traced(bench, inputs, False)
        self._freeze_outputs(outputs)
        self._logs = [(False, self._trace.log)]
        if asked and not eval_only:
            again = Replay(bench.reset({}), self._trace.log)
            results = replay(bench.model, inputs, True, again)
            if again.wrong:
                self._trace.log = []
                results = self._traced(bench, inputs, True)
            self._freeze_outputs(results[0])
            self._logs.append((True, self._trace.log))
            width = width or results[2]
        return width

    def _freeze_outputs(self, outputs):
        for leaf in tree_leaves(outputs):
            if not isinstance(leaf, (Tensor, int, float, str, bool, type(None))):
                raise PruneError(f"cannot see into an output of type {type(leaf).__name__}: return tensors or dicts")
            self._trace.freeze("model output", *(self._trace.of(leaf) if isinstance(leaf, Tensor) else []))

    def _traced(self, bench, inputs, training):
        """`run` with errors in one sentence."""
        bench.reset({})
        try:
            return run(bench.model, inputs, self._trace, training)
        except PruneError:
            raise
        except Exception as error:  # of the model's own code, which may raise anything
            text = f"{type(error).__name__}: {first_line(error)}"
            if training:
                hint = "if its training needs targets, give eval_only=True"
                raise PruneError(f"the model cannot run in train mode ({text}): {hint}") from error
            hint = "give as many inputs, of the shape and dtype, as its forward takes"
            raise PruneError(f"the model cannot run on the example inputs ({text}): {hint}") from error

    def _solve(self):
        """Tied atoms -> blocks -> units -> groups.

        An example, b(a(x)) with a = Linear(1, 2) and b = Linear(2, 1); axes of size 1 have no atoms:

            a.weight axis 0     atoms 1 2
            a.bias axis 0       atoms 3 4     tied to 1 2 where the bias is added
            b.weight axis 1     atoms 5 6     tied to 1 2 where b reads what a makes

        Blocks: the three axes are tied as wholes, index by index. They are one block, in which atoms 1, 3 and 5 have
        position 1, and 2, 4 and 6 position 2. Position 0 is that of FIXED.
        Units: no other atoms are tied, so each position is a unit of its own. Nothing is frozen, so both are free.
        Groups: both units lie in the same blocks, so they are one group of size 2.
        Members: each axis of the block is one. Its index 0 is of unit 0, its index 1 of unit 1.
        """
        free = self._join_units(self._join_axes())
        units = self._root[free]
        pairs = (units * len(self._leaders) + self._place[free]).unique()  # which unit lies in which block
        of_group, group, number = self._alike(pairs // len(self._leaders), pairs % len(self._leaders))
        place, order = (group[units] * len(self._leaders) + self._place[free]).sort(stable=True)
        place, counts = place.unique_consecutive(return_counts=True)
        positions = free[order].split(counts.tolist())
        members = [[] for _ in of_group]
        for at, here in zip(place.tolist(), positions, strict=True):
            k, block = divmod(at, len(self._leaders))
            indices, numbers = here - self._begin[block], number[self._root[here]]
            for span in self._blocks[block]:
                name, axis, role, *_ = self._spans[span]
                members[k].append((role != "out", span, Member(name, axis, role, indices, numbers)))
        self.groups, self._units = [], {}  # units: {group name: the root of each}
        for entries, roots in sorted(zip(members, of_group, strict=True), key=lambda pair: min(pair[0])[:2]):
            name = self._layers[min(entries)[2].tensor][0]
            while name in self._units:
                name += "'"
            found = [member for _, _, member in sorted(entries, key=lambda entry: entry[1])]
            layers = dict.fromkeys(layer for member in found for layer in self._layers[member.tensor])
            self.groups.append(Group(name, len(roots), found, list(layers)))
            self._units[name] = roots

    def _join_axes(self):
        """Blocks of axes that are tied as wholes, and the positions of atoms. Returns the other ties, atoms (2, n)."""
        axis_of = {id(atoms): k for k, atoms in enumerate(self._atoms)}
        ends = [(axis_of.get(id(a)), axis_of.get(id(b))) for a, b in self._trace.edges]
        wholes = torch.tensor([pair for pair in ends if None not in pair], dtype=torch.int64).view(-1, 2)
        leader = connected(len(self._spans), *wholes.T)  # of an axis: the first one of its block
        self._leaders, block = leader.unique(return_inverse=True)
        self._blocks = [[] for _ in self._leaders]  # the axes of each
        for span, k in enumerate(block.tolist()):
            self._blocks[k].append(span)
        sizes, lengths = self._lengths[self._leaders], self._lengths
        self._begin = 1 + sizes.cumsum(0) - sizes  # the first position of each block
        shift = (self._begin[block] - self._starts).repeat_interleave(lengths)
        self._position = torch.arange(len(shift) + 1)
        self._position[1:] += shift
        self._place = torch.cat([torch.tensor([-1]), torch.arange(len(sizes)).repeat_interleave(sizes)])
        rest = [torch.stack(pair) for pair, known in zip(self._trace.edges, ends, strict=True) if None in known]
        return torch.cat([torch.zeros(2, 0, dtype=torch.int64), *rest], 1)

    def _join_units(self, ties):
        """Of each position its unit, which is the smallest position tied to it. Returns the positions that are free."""
        a, b = self._position[ties]
        fixed = (a == FIXED) | (b == FIXED)
        self._trace.freezes["tied to a channel that is no parameter's"] = [ties[:, fixed].flatten()]
        self._root = connected(len(self._place), a[~fixed], b[~fixed])
        stays = torch.zeros(len(self._place), dtype=torch.bool)
        stays[FIXED] = True
        for atoms in self._trace.freezes.values():
            stays[self._root[self._position[torch.cat(atoms)]]] = True
        return (~stays[self._root]).nonzero().flatten()

    def _alike(self, units, places):
        """Units that lie in the same blocks: ([units of each group], group of each unit, number within its group).

        units, places: (n,) int64, each pair once, sorted by unit.
        """
        codes = torch.randint(2**62, (len(self._leaders),), generator=torch.Generator().manual_seed(0))
        sums = torch.zeros(len(self._place), dtype=torch.int64).index_add_(0, units, codes[places])
        units = units.unique_consecutive()
        _, group, sizes = sums[units].unique(return_inverse=True, return_counts=True)
        of_group = units[group.argsort(stable=True)].split(sizes.tolist())
        number = torch.zeros(len(self._place), dtype=torch.int64)
        for roots in of_group:
            number[roots] = torch.arange(len(roots))
        return of_group, torch.zeros_like(number).index_copy_(0, units, group), number

    def _replay(self, bench, inputs, names):
        """{(run, step): what goes wrong} when the groups are about half as wide, odd where they can."""
        cut = {g.name: range(narrow_width(g.size), g.size) for g in self.groups if g.name in names}
        plan = self.make_plan(cut)
        sizes = {(name, axis): self._shapes[name][axis] - len(gone) for name, axis, gone in plan.remove}
        wrong, stays = {}, ~self._gone(cut)[self._position]
        for number, (training, log) in enumerate(self._logs if sizes else ()):
            narrow = Replay(bench.reset(sizes, plan.attributes), log, stays)
            replay(bench.model, inputs, training, narrow)
            wrong |= {(number, k): why for k, why in narrow.wrong.items()}
        return wrong

    def _freeze_widths(self, wrong, bench, inputs):
        """Freeze what must keep its width, that no step goes wrong."""
        stays = ~self._gone({g.name: range(1, g.size) for g in self.groups})[self._position]
        steps, literal = {key: self._logs[key[0]][1][key[1]] for key in wrong}, False
        for key, why in wrong.items():  # a literal size: it concerns the channels that the operation takes
            free = [axis for axis in steps[key].labels if not stays[axis.atoms].all()]
            if why == LITERAL and free:
                self._trace.freeze(f"{steps[key].name}: {why}", *free)
                literal = True
        if literal:
            return
        near = {key: self._groups_at(step.labels) for key, step in steps.items()}
        for key, names in self._culprits(near, lambda names: self._replay(bench, inputs, names)).items():
            for name in names:
                member = next(g for g in self.groups if g.name == name).members[0]
                atoms = self._atoms[self._axes[member.tensor, member.axis]][member.indices]
                self._trace.freeze(f"{steps[key].name}: {wrong[key]}", Axis(atoms))

    def _groups_at(self, axes):
        """The names of the groups that have channels on these axes."""
        here = torch.zeros(len(self._root), dtype=torch.bool)
        for axis in axes:
            here[self._root[self._position[axis.atoms]]] = True
        return {name for name, roots in self._units.items() if here[roots].any()}

    def _culprits(self, near, narrowed):
        """{step: groups whose width makes it go wrong}. near: {step: the groups in what it takes}, asked first.

        The others are found by narrowing half of the groups at a time. Run (bit, value) narrows the groups whose number
        has this bit. A step that a single group puts wrong is wrong in the runs of its bits and right in the others, so
        all steps are settled together.
        """
        names = [group.name for group in self.groups]
        bits = (len(names) - 1).bit_length()
        asked = set().union(*near.values())
        if len(asked) <= bits:
            alone = {name: narrowed([name]) for name in asked}
            if found := {k: s for k, some in near.items() if (s := {name for name in some if k in alone[name]})}:
                return found
        left = {k: set(names) for k in near}
        for bit in range(bits):
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
        """(positions,) bool: which leave with the given units, {group name: numbers}."""
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
            hit[self._root[self._position[torch.cat(atoms)]]] = True
            blocks, counts = self._place[hit[self._root].nonzero().flatten()].unique(return_counts=True)
            for block, n in zip(blocks.tolist(), counts.tolist(), strict=True):
                for span in self._blocks[block] if block >= 0 else ():
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
        gone, cuts = self._gone(units), {}
        for block, begin in enumerate(self._begin.tolist()):
            size = int(self._lengths[self._leaders[block]])
            if indices := gone[begin : begin + size].nonzero().flatten().tolist():
                cuts |= dict.fromkeys(self._blocks[block], indices)  # one list for all axes of a block
        remove = [[*self._spans[k][:2], cuts[k]] for k in sorted(cuts)]
        attributes = []
        for path, atoms in self._trace.split_heads.items():
            left = int((~gone[self._position[atoms]]).sum())
            if left < len(atoms):
                attributes += [[path, key, n * left // len(atoms)] for key, n in self._heads[path].items()]
        shapes = {name: self._shapes[name] for name, _, _ in remove}
        inexact = [name for name in self.inexact if len(units.get(name, ()))]
        return Plan(remove, shapes, list(groups), list(notes), attributes, inexact)

    @property
    def inexact(self):
        """{group that is exact only approximately: [why]}; empty unless approximate=True."""
        result = {}
        for why, atoms in self._trace.inexact.items():
            hit = torch.zeros(len(self._root), dtype=torch.bool)
            hit[self._root[self._position[torch.cat([torch.zeros(0, dtype=torch.int64), *atoms])]]] = True
            for name, roots in self._units.items():
                if hit[roots].any():
                    result.setdefault(name, []).append(why)
        return result

    def inexactness(self, model, inputs):
        """{inexact group: the largest difference of the outputs of `verify` when half of this group leaves alone}."""
        plans = {name: self.plan(0, ratios={name: 0.5}) for name in self.inexact}
        return {name: verify(model, prune(model, plan), plan, inputs) for name, plan in plans.items()}

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
    names, found, layers = {}, {}, walk(model)
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
    modules = [*model.modules()]
    if any(isinstance(m, torch.jit.ScriptModule) for m in modules):
        raise PruneError("the model is scripted or traced: give the module that it was made from")
    tensors = [t for m in modules for t in (m._parameters | m._buffers).values() if t is not None]
    kinds = {cls.__module__ for kind in {type(m) for m in modules} for cls in kind.__mro__}
    for bad, what in [
        (any(isinstance(t, nn.parameter.UninitializedTensorMixin) for t in tensors), "is lazy: run it once before"),
        (any(t.is_meta for t in tensors), "has tensors on the meta device: load its weights before"),
        (any(t.is_quantized for t in tensors) or any(".ao.nn.quantized" in kind for kind in kinds),
         "is quantised: prune it before"),
        (not any(isinstance(t, nn.Parameter) for t in tensors), "has no parameters: there is nothing to prune"),
    ]:  # fmt: skip
        if bad:
            raise PruneError(f"the model {what}")


class Bench:
    """A copy of a model to run and to mark, again and again; what a run leaves in its modules goes before the next.

    Parameters share the model's memory; buffers do not. Memory is laid out so that operations are those that the code
    names (no as_strided). found: as `tensors_of`.
    """

    def __init__(self, model):
        swaps = {}
        for old, _, _ in tensors_of(model).values():
            tensor = old.detach() if isinstance(old, nn.Parameter) else old.detach().clone()
            swaps[id(old)] = like(old, tensor.contiguous().view(-1).view(tensor.shape))  # strides of size 1 too
        self.model = duplicate(model, swaps)
        self.model.train(False)
        self.found = tensors_of(self.model)
        modules = walk(self.model).values()
        self._saved = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in modules]
        self._tables = None

    def reset(self, sizes, attributes=()):
        """Make the model as it was, but with these sizes: {(tensor, axis): n}. Returns the tensors, as `found`.

        attributes: as Plan's.
        """
        if self._tables is None:
            kinds = TABLES - {tuple}
            own = {id(value): value for m, *_ in self._saved for value in vars(m).values() if type(value) in kinds}
            self._tables = [(table, table.copy() if table else ()) for table in own.values()]
        narrow = {}
        for (name, axis), n in sizes.items():
            narrow[name] = narrow.get(name, self.found[name][0].detach()).narrow(axis, 0, n)
        swaps = {}
        for name, tensor in narrow.items():
            old = self.found[name][0]
            swaps[id(old)] = like(old, tensor.clone(memory_format=torch.contiguous_format))
        for module, as_it_was, parameters, buffers in self._saved:
            vars(module).clear()
            vars(module).update(as_it_was)
            module.__dict__["_parameters"] = {key: swaps.get(id(t), t) for key, t in parameters.items()}
            module.__dict__["_buffers"] = {key: swaps.get(id(t), t) for key, t in buffers.items()}
            if swaps and any(id(t) in swaps for t in (*parameters.values(), *buffers.values())):
                refit(module)
        for table, as_it_was in self._tables:  # as a cache that a run filled, or the hooks that it registered
            if table or as_it_was:
                table.clear()
                table.extend(as_it_was) if type(table) is list else table.update(as_it_was)
        set_attributes(self.model, attributes)
        return {name: (swaps.get(id(tensor), tensor), *rest) for name, (tensor, *rest) in self.found.items()}


def like(old, tensor):
    """`tensor` as a parameter if `old` is one."""
    return nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor


@without_collection()
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
            keep = torch.ones(n, dtype=torch.bool).index_fill_(0, torch.tensor(indices, dtype=torch.int64), False)
            keeps[id(indices)] = keep.nonzero().flatten()
        new[name] = new[name].index_select(axis, keeps[id(indices)].to(new[name].device))
    swaps = {}
    for name, tensor in new.items():
        old = found[name][0]
        swaps[id(old)] = like(old, tensor if name in plan.shapes else tensor.clone())
    pruned = duplicate(model, swaps)
    set_attributes(pruned, plan.attributes)
    return pruned


def set_attributes(model, attributes):
    """Set [path of a layer, attribute, value] of each."""
    modules = walk(model) if attributes else {}
    for path, key, value in attributes:
        if path not in modules or not hasattr(modules[path], key):
            raise PruneError(f"the plan is for another model: it expects a layer {path} with an attribute {key}")
        setattr(modules[path], key, value)


def find_heads(modules):
    """{path: attribute with the number of heads} of the attention layers of timm and transformers among modules."""
    found = {}
    for path, module in modules.items():
        if type(module).__module__.partition(".")[0] in ("timm", "transformers"):
            counts = [key for key in HEAD_COUNTS if isinstance(vars(module).get(key), int)]
            if counts and "attention" in type(module).__name__.lower():
                found[path] = counts[0]
    return found


def head_counts(modules, path, attribute):
    """{attribute: value} of an attention layer: its number of heads, and the widths that follow it. PruneError."""
    module = modules.get(path)
    if isinstance(module, nn.MultiheadAttention):
        raise PruneError(f"{path} is nn.MultiheadAttention, which computes its head size itself: its heads can't leave")
    if module is None or type(getattr(module, attribute, None)) is not int:
        raise PruneError(f"heads: {path!r} has no whole number {attribute!r}: name a layer and its number of heads")
    widths = {key: value for key, value in vars(module).items() if key in HEAD_WIDTHS and type(value) is int}
    return {attribute: getattr(module, attribute)} | widths


def listen_to_heads(bench, path, count, trace):
    """Tell the trace which attention layer is running."""
    module = walk(bench.model)[path]
    module.register_forward_pre_hook(lambda *_: trace.heads.append((path, count)))
    module.register_forward_hook(lambda *_: trace.heads.pop() and None)


def duplicate(model, swaps):
    """copy.deepcopy with {id of a tensor: what takes its place}, several times faster; layers fit their tensors."""
    modules = [module for module in walk(model).values() if not hasattr(module, "__deepcopy__")]
    memo = swaps | {id(module): module.__new__(type(module)) for module in modules}
    for module in modules:
        new = memo[id(module)].__dict__
        for key, value in module.__dict__.items():  # most of it is numbers and empty tables
            kind = type(value)
            if kind in PLAIN:
                new[key] = value
            elif kind in TABLES and not value:
                new[key] = kind()
            elif kind in (dict, OrderedDict) and all([id(item) in memo for item in value.values()]):
                new[key] = kind([(name, memo[id(item)]) for name, item in value.items()])
            elif kind in (tuple, list, set) and all([type(item) is int for item in value]):
                new[key] = kind(value)
            else:
                new[key] = copy.deepcopy(value, memo)
        refit(memo[id(module)])
    return copy.deepcopy(model, memo)


def refit(module):
    """Derive the sizes that a layer holds as attributes from its tensors."""
    sizes, weight = vars(module), module._parameters.get("weight")
    if isinstance(module, CONVOLUTION):
        weight, multiplier = module.weight, sizes["out_channels"] // sizes["in_channels"]
        first, rest = weight.shape[:2]
        if 1 < sizes["groups"] == sizes["in_channels"]:  # depthwise
            sizes["groups"] = first if sizes["transposed"] else first // multiplier
        rest *= sizes["groups"]
        sizes["in_channels"], sizes["out_channels"] = (first, rest) if sizes["transposed"] else (rest, first)
    elif isinstance(module, nn.Linear):
        sizes["out_features"], sizes["in_features"] = module.weight.shape
    elif isinstance(module, NORM):
        sized = [t for t in (weight, sizes["_buffers"].get("running_mean")) if t is not None]
        sizes["num_features"] = len(sized[0]) if sized else sizes["num_features"]
    elif isinstance(module, nn.PReLU):
        sizes["num_parameters"] = len(module.weight)
    elif isinstance(module, nn.LayerNorm) and weight is not None:
        sizes["normalized_shape"] = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        sizes["num_channels"] = len(weight)


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
