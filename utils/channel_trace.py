"""What each operation of a network does to channels: a traced forward that says which of them belong together.

    with Trace([(weight, [(1, 65), (65, 68)])]) as trace:      # atoms 1..64 are the weight's rows, 65..67 its columns
        output = model(images)
    trace.edges, trace.freezes                                 # pairs of atoms that leave together; atoms that stay

Used by utils/dependency_graph.py, which explains the words and turns the result into groups. Every index of every axis
of a parameter or buffer is an *atom*. Each axis of each live tensor is either None (its size is fixed) or an `Axis`
that names one atom for each index. An operation that needs two channels to agree ties their atoms; one that would
compute something else without a channel freezes them; one not known here freezes all that it touches. Needs torch only.
"""

import functools
import re
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

FIXED = 0  # the atom of a channel that is no parameter's, as those of the picture in cat([picture, features])
SAMPLES = torch.tensor([-50.0, -2.0, -0.3, 0.3, 2.0, 50.0], dtype=torch.float64)
COPIES = {"clone", "_to_copy", "detach", "alias", "lift_fresh"}
POINTWISE = COPIES | {"hardswish", "_prelu_kernel", "bernoulli", "copy", "zeros_like", "ones_like", "full_like",
                      "empty_like", "rand_like", "randn_like"}  # and what torch tags as pointwise  # fmt: skip
VIEWS = {"view", "_unsafe_view", "_reshape_alias"}
MOVES = VIEWS | {"permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "repeat", "flip", "select", "slice",
                 "split", "split_with_sizes", "unsafe_split", "unbind", "pixel_shuffle", "pixel_unshuffle"}  # fmt: skip
QUIET = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # always in eval mode: they tie the same
SPATIAL = re.compile(r"_?(?:adaptive_)?(?:avg_pool|max_pool|upsample_[a-z]+|reflection_pad|replication_pad)([123])d")


class Axis(NamedTuple):
    """What one axis of a live tensor holds."""

    atoms: Tensor  # (n,) int64, one for each index; (k, n) where k labelled axes were flattened into one
    zero: int = 0  # 1: zeroing a unit makes its entries here zero; 2: besides, no other entry is negative; 0: neither


class Trace(TorchDispatchMode):
    """Sees every ATen operation, labels its outputs, and collects ties and freezes.

    edges: pairs of (k,) int64 atoms. freezes: {why: [atoms]}. seen: ids of the tensors used. log: of each operation
    its name, the labels of its inputs, and of each output the shape and the axes (None: not predicted).
    """

    def __init__(self, spans):
        """spans: [(tensor, [its atoms, or None, for each axis])]; the tensors come out as they went in."""
        super().__init__()
        self.edges, self.freezes, self.seen, self.log, self.overwritten = [], {}, set(), [], []
        self.memory = {tensor.untyped_storage().data_ptr() for tensor, _ in spans}
        for tensor, axes in spans:
            tensor._axes = [None if a is None else Axis(a, int(tensor.is_floating_point())) for a in axes]

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # it would double the time of an operation

    def __exit__(self, *error):
        super().__exit__(*error)
        while self.overwritten:
            tensor, before = self.overwritten.pop()
            tensor.copy_(before)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, (name, mutable) = kwargs or {}, name_of(func)
        inputs = tensors_in([*args, *kwargs.values()])
        self.seen.update(map(id, inputs))
        if mutable:
            here = [t for t in inputs if t.untyped_storage().data_ptr() in self.memory]
            self.overwritten += [(t.detach(), t.clone()) for t in here]
        labels = [axis for t in inputs for axis in self.of(t) if axis]
        result = func(*args, **kwargs)
        out = tensors_in([result])
        axes = [[None] * t.dim() for t in out]
        if labels and out:
            given = dict(zip(argument_names(func), args, strict=False)) | kwargs
            call = SimpleNamespace(name=name, func=func, args=args, kwargs=kwargs, given=given, inputs=inputs, out=out)
            axes = self.rule(func, name, labels)(call)
            axes = axes + [None] * (len(out) - len(axes))
        for tensor, known in zip(out, axes, strict=True):
            tensor._axes = known or [None] * tensor.dim()
        if name != "clone":  # depends on strides, so it is not a part of what must repeat at another width
            self.log.append((name, labels, [(t.shape, a) for t, a in zip(out, axes, strict=True)]))
        return result

    def rule(self, func, name, labels):
        simple = name in POINTWISE or torch.Tag.pointwise in func.tags
        if any(axis.atoms.dim() > 1 for axis in labels) and not simple and name not in ("max", "amax"):
            return self.unknown
        if name in MOVES and not func._schema.is_mutable:
            return self.move
        return getattr(self, RULES.get(name, "pointwise" if simple else "mix" if SPATIAL.match(name) else "unknown"))

    def of(self, tensor):
        return [] if tensor is None else getattr(tensor, "_axes", None) or [None] * tensor.dim()

    def freeze(self, why, *axes):
        for axis in filter(None, axes):
            self.freezes.setdefault(why, []).append(axis.atoms.flatten())

    def tie(self, why, a, b):
        """Index i of axis a and index i of axis b leave together or not at all."""
        if not a or not b or a.atoms.shape != b.atoms.shape or a.atoms.dim() > 1:
            self.freeze(f"{why}: with a fixed size", a, b)
        elif a.atoms is not b.atoms:
            self.edges.append((a.atoms, b.atoms))

    def contract(self, why, x, weight):
        """A sum over an axis that both have: exact if zeroing a unit zeroes one of them, as it does for weights."""
        if x and weight and not (x.zero or weight.zero):
            self.freeze(f"{why} of two activations", x, weight)
        self.tie(why, x, weight)

    def merge(self, why, tensors, shape, skip=None):
        """Tie operands that broadcast to `shape`, but for axis `skip`; returns the axes of the result."""
        axes = [None] * len(shape)
        for d in range(-len(shape), 0):
            here = [(self.of(t)[d], t.shape[d]) for t in tensors if t.dim() >= -d and d != skip]
            self.freeze(f"{why}: broadcast", *[axis for axis, n in here if n != shape[d]])
            same = [axis for axis, n in here if n == shape[d]]
            lead = axes[d] = next(filter(None, same), None)
            for axis in same:
                if axis is not lead:
                    self.tie(why, lead, axis)
        return axes

    # The rules. Each ties or freezes and returns the axes of every output; a shorter list leaves the rest unpredicted.

    def unknown(self, call):
        self.freeze(f"{call.name}: not known to keep channels apart", *[a for t in call.inputs for a in self.of(t)])
        return [[None] * t.dim() for t in call.out]

    def convolution(self, call):
        x, w, bias = (self.of(call.given[k]) for k in ("input", "weight", "bias"))
        channels, groups, transposed = call.given["input"].shape[1], call.given["groups"], call.given["transposed"]
        self.freeze("convolution: kernel or map size", *w[2:], *x[2:])
        if 1 < groups == channels:  # depthwise: channel c makes the outputs c*m .. c*m+m-1
            out = x[1] and Axis(x[1].atoms.repeat_interleave(call.out[0].shape[1] // channels))
            self.freeze("convolution: depth multiplier", w[1])
            self.tie("convolution", x[1] if transposed else out, w[0])
        else:  # weight (out, in/groups, ...) or, transposed, (in, out/groups, ...): axis 1 serves every group
            shared = Axis(w[1].atoms.repeat(groups), w[1].zero) if w[1] and groups > 1 else w[1]
            if w[0] and groups > 1:
                self.tie("convolution: groups", w[0], Axis(w[0].atoms[: len(w[0].atoms) // groups].repeat(groups)))
            self.contract("convolution", x[1], w[0] if transposed else shared)
            out = shared if transposed else w[0]
        for axis in bias:
            self.tie("convolution: bias", out, axis)
        return [[x[0], out and Axis(out.atoms), *[None] * (len(x) - 2)]]

    def matmul(self, call):
        """mm, bmm, mv; with an added bias addmm and baddbmm; linear, whose weight is (out, in)."""
        added = call.name in ("addmm", "baddbmm")
        a, b, bias = (*call.args[1:3], call.args[0]) if added else (*call.args, None)[:3]
        left, right = self.of(a), self.of(b)[:: -1 if call.name == "linear" else 1]
        self.contract(call.name, left[-1], right[-2:][0])
        if call.name in ("bmm", "baddbmm"):
            self.tie(call.name, left[0], right[0])
        out = [axis and Axis(axis.atoms) for axis in [*left[:-1], *(right[-1:] if len(right) > 1 else [])]]
        for d, axis in enumerate(reversed(self.of(bias)), 1):
            self.tie(f"{call.name}: bias", out[-d], axis)
        return [out]

    def batch_norm(self, call):
        x = self.of(call.given["input"])
        for key in ("weight", "bias", "running_mean", "running_var"):
            for axis in self.of(call.given.get(key)):
                self.tie("batch_norm", x[1], axis)
        self.freeze("batch_norm: statistics", x[0], *x[2:])
        return [[None, x[1] and Axis(x[1].atoms), *[None] * (len(x) - 2)]]

    def pointwise(self, call):
        axes = self.merge(call.name, call.inputs, call.out[0].shape)
        if call.name not in COPIES:
            axes = [a and Axis(a.atoms, self.zero(call, d)) for d, a in enumerate(axes, -len(axes))]
        return [axes] * len(call.out)

    def zero(self, call, d):
        """`Axis.zero` of the result along axis d, found by trying the operation on zeros and on sample values."""
        axes = [self.of(v)[d] if isinstance(v, Tensor) and v.dim() >= -d else None for v in call.args]
        weights = [axis for axis in axes if axis and axis.zero]
        if not weights:
            return 0
        zeros, signs, certain = list(call.args), list(call.args), call.name != "empty_like"
        for k, (value, axis) in enumerate(zip(call.args, axes, strict=True)):
            if isinstance(value, Tensor) and value.dim():
                sample = SAMPLES.to(value.device).roll(k)
                sample = sample > 0 if value.dtype == torch.bool else sample.to(value.dtype)
                zeros[k] = torch.zeros_like(sample) if axis and axis.zero else sample
                signs[k] = sample.abs() if axis and axis.zero == 2 else sample
                certain &= bool(axis and axis.zero) or value.numel() == 1
        value = tensors_in([call.func(*zeros, **call.kwargs)])[0]
        if not value.isfinite().any():  # a division by a removed channel, its logarithm, ...
            self.freeze(f"{call.name}: not finite for a zeroed channel", *weights)
        if not certain or value.any() or torch.Tag.nondeterministic_seeded in call.func.tags:
            return 0
        return 2 if (tensors_in([call.func(*signs, **call.kwargs)])[0] >= 0).all() else 1

    def mix(self, call):
        """Reductions, softmax, layer norm, pooling: they mix the entries of some axes, and the other axes pass."""
        x, dims = self.of(call.args[0]), call.given.get("dim", call.given.get("dims"))
        if spatial := SPATIAL.match(call.name):
            dims = range(-int(spatial[1]), 0)
        elif "normalized_shape" in call.given:
            dims = range(-len(call.given["normalized_shape"]), 0)
        dims = {d % len(x) for d in ([dims] if isinstance(dims, int) else dims or range(len(x)))}
        for d in dims:  # the largest of numbers >= 0 does not notice zeros
            if x[d] and not (call.name in ("max", "amax") and x[d].zero == 2):
                self.freeze(f"{call.name} over channels", x[d])
        self.freeze(call.name, *[axis for t in call.inputs[1:] for axis in self.of(t)])
        keeps_zero = call.name in ("sum", "mean", "max", "amax", "min", "amin")
        axes = [None if d in dims else a and Axis(a.atoms, a.zero * keeps_zero) for d, a in enumerate(x)]
        return [[a for d, a in enumerate(axes) if t.dim() == len(x) or d not in dims] for t in call.out]

    def cat(self, call):
        tensors, n = [t for t in call.inputs if t.shape != (0,)], call.out[0].dim()
        dim = call.given.get("dim", 0) % n
        if call.name == "stack":
            axes = self.merge("stack", tensors, tensors[0].shape)
            return [[*axes[:dim], None, *axes[dim:]]]
        axes = self.merge("cat", tensors, call.out[0].shape, skip=dim - n)
        if any(self.of(t)[dim] for t in tensors):
            parts = [self.of(t)[dim] or Axis(torch.full((t.shape[dim],), FIXED)) for t in tensors]
            axes[dim] = Axis(torch.cat([part.atoms for part in parts]))
        return [axes]

    def pad(self, call):
        axes, pad = list(self.of(call.args[0])), call.given["pad"]
        for d, ends in enumerate(zip(pad[::2], pad[1::2], strict=True), 1):
            if axes[-d] and min(ends) < 0:
                return self.unknown(call)
            if axes[-d]:
                axes[-d] = Axis(nn.functional.pad(axes[-d].atoms, ends, value=FIXED))
        return [axes]

    def move(self, call):
        """Views, permutations, slices, splits: carried out on the indices of each labelled axis, to see what moves."""
        source, axes = call.inputs[0], [[None] * t.dim() for t in call.out]
        for d, axis in enumerate(self.of(source)):
            if not axis:
                continue
            grid = torch.arange(source.shape[d]).view(-1, *[1] * (source.dim() - d - 1)).expand(source.shape)
            moved = grid.reshape(call.out[0].shape) if call.name in VIEWS else call.func(grid, *call.args[1:])
            lines = [line(part, first=call.name == "pixel_shuffle") for part in tensors_in([moved])]
            if len(torch.cat([rows.flatten() for _, rows in lines]).unique()) < source.shape[d]:
                self.freeze(f"{call.name}: only a part of the channels", axis)
            for known, (target, rows) in zip(axes, lines, strict=True):
                rows = axis.atoms[rows]  # equal channels are in one column: they are tied
                for row in rows[1:]:
                    self.tie(f"{call.name}: split", Axis(rows[0]), Axis(row))
                old = known[target] if target is not None else None
                if old:  # two labelled axes flattened into one
                    both = torch.cat([old.atoms.view(-1, rows.shape[1]), rows[:1]])
                    known[target] = Axis(both, min(old.zero, axis.zero))
                elif target is not None:
                    known[target] = Axis(rows[0], axis.zero)
            for _, rows in lines[1:]:  # the parts of a split; unequal ones freeze
                self.tie(call.name, Axis(axis.atoms[lines[0][1][0]]), Axis(axis.atoms[rows[0]]))
        return axes


def run(model, inputs, mode, modes=(False, True)):
    """The outputs in eval mode and in train mode, seen by a dispatch mode, and the modes (False: eval) that were run.

    One run shows both where no module reads `training`. Torch's random state stays as it was.
    """
    inputs = tree_map(lambda v: v.clone(memory_format=torch.contiguous_format) if isinstance(v, Tensor) else v, inputs)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    args, outputs, asked = [args] if isinstance(args, Tensor) else args, [], set()
    classes = {m: type(m) for m in model.train(False).modules() if not isinstance(m, QUIET)}
    flag = {"training": property(lambda module: bool(asked.add(module)))}  # says False, and keeps who asked
    watched = {c: type(c.__name__, (c,), flag) for c in set(classes.values())}
    with torch.no_grad(), torch.random.fork_rng({p.device for p in model.parameters() if p.is_cuda}):
        for module, cls in classes.items():
            module.__class__ = watched[cls]
        with mode:
            outputs.append(model(*args, **kwargs))
        for module, cls in classes.items():
            module.__class__ = cls
            module.training = True
        if asked and True in modes:
            with mode:
                outputs.append(model(*args, **kwargs))
    return outputs, modes[: len(outputs)]


def alike(step, now, stays, widths):
    """Whether an operation of the narrowed model is that of the dense one, with the shapes that its labels predict.

    widths: {id of atoms: how many stay}, filled here.
    """
    names = {step[0], now[0]}
    if len(names) > 1 and not names <= VIEWS or len(step[2]) != len(now[2]):
        return False
    for (shape, axes), (found, _) in zip(step[2], now[2], strict=True):
        for n, m, axis in zip(shape, found, axes, strict=True) if axes else []:
            if axis and id(axis.atoms) not in widths:
                widths[id(axis.atoms)] = int(stays[axis.atoms].view(-1, n).all(0).sum())
            if m != (widths[id(axis.atoms)] if axis else n):
                return False
    return True


def line(grid, first):
    """(an axis along which the grid's values differ, (k, n) values along it); the last such axis unless `first`."""
    grid = grid[tuple(slice(None if step else 1) for step in grid.stride())]  # size 1 where all are equal
    varying = [d for d in range(grid.dim()) if (grid != grid.narrow(d, 0, 1)).any()]
    if not varying:
        return None, grid.flatten()[:0][None]
    target = varying[0 if first else -1]
    grid = grid[tuple(slice(None if d in varying else 1) for d in range(grid.dim()))]
    return target, grid.movedim(target, -1).reshape(-1, grid.shape[target])


@functools.cache
def name_of(func):
    """(name, whether it writes into an argument); add_ is add."""
    return func.overloadpacket.__name__.rstrip("_"), func._schema.is_mutable


@functools.cache
def argument_names(func):
    return [argument.name for argument in func._schema.arguments]


def tensors_in(values):
    """The tensors among values and in lists among them, in order."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found


RULES = {"convolution": "convolution", "cat": "cat", "stack": "cat", "constant_pad_nd": "pad"}
RULES |= dict.fromkeys(("linear", "mm", "addmm", "bmm", "baddbmm", "mv"), "matmul")
RULES |= dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
                        "_batch_norm_with_update", "cudnn_batch_norm", "miopen_batch_norm"), "batch_norm")  # fmt: skip
RULES |= dict.fromkeys(("_softmax", "_log_softmax", "native_layer_norm", "cumsum", "roll", "sum", "mean", "max",
                        "amax", "min", "amin", "var", "std", "prod", "argmax"), "mix")  # fmt: skip
