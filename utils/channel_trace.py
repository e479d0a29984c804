"""What each operation of a network does to channels: a traced forward that says which of them belong together.

    trace = Trace({"weight": weight}, {"weight": [rows, columns]})     # atoms 1..64 are its rows, 65..67 its columns
    outputs, *_ = run(model, images, trace, training=False)
    trace.edges, trace.freezes                                 # pairs of atoms that leave together; atoms that stay

Used by utils/dependency_graph.py, which explains the words and turns the result into groups. Every index of every axis
of a parameter or buffer is an *atom*. Each axis of each live tensor is either None (its size is fixed) or an `Axis`
that names one atom for each index. An operation that needs two channels to agree ties their atoms; one that would
compute something else without a channel freezes them; one not known here freezes all that it touches. Needs torch only.
"""

import contextlib
import functools
import math
import random
import re
import sys
from enum import IntEnum
from itertools import compress
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

FIXED = 0  # the atom of a channel that is no parameter's, as those of the picture in cat([picture, features])
SAMPLES = torch.tensor([-50.0, -2.0, -0.3, 0.3, 2.0, 50.0], dtype=torch.float64)
COPIES = {"clone", "_to_copy", "detach", "alias", "lift_fresh"}
POINTWISE = COPIES | {"hardswish", "_prelu_kernel", "bernoulli", "copy", "fill", "zeros_like", "ones_like", "full_like",
                      "empty_like", "rand_like", "randn_like"}  # and what torch tags as pointwise  # fmt: skip
VIEWS = {"view", "_unsafe_view", "_reshape_alias"}
MOVES = VIEWS | {"permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "repeat", "flip", "select", "slice",
                 "split", "split_with_sizes", "unsafe_split", "unbind", "pixel_shuffle", "pixel_unshuffle"}  # fmt: skip
QUIET = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # always in eval mode: they tie the same
DROPS = {"torchvision.ops.stochastic_depth.StochasticDepth", "timm.layers.drop.DropPath",
         "torch.nn.modules.activation.MultiheadAttention"}  # so are these, themselves  # fmt: skip
CONVOLUTION, NORM = nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase
SIZES_OF = {"in_channels": CONVOLUTION, "out_channels": CONVOLUTION, "groups": CONVOLUTION, "num_features": NORM,
            "in_features": nn.Linear, "out_features": nn.Linear, "num_parameters": nn.PReLU}  # fmt: skip
SLOW = {"convolution", "mm", "addmm", "bmm", "baddbmm", "_native_batch_norm_legit_no_training", "native_layer_norm"}
PLAIN = set(
    """
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul batch_norm layer_norm relu relu6
hardtanh hardswish hardsigmoid silu mish gelu elu leaky_relu prelu sigmoid tanh softmax dropout dropout2d clamp add iadd
radd sub isub mul imul rmul div truediv cat mean sum amax flatten adaptive_avg_pool1d adaptive_avg_pool2d avg_pool2d
adaptive_max_pool2d max_pool2d boolean_dispatch interpolate pad permute transpose contiguous clone detach float double
to type_as dim is_floating_point dtype device ndim requires_grad layout is_cuda is_sparse is_nested is_quantized
is_complex
""".split()
)  # functions of torch
SPATIAL = re.compile(r"_?(?:adaptive_)?(?:avg_pool|max_pool|upsample_[a-z_]+|reflection_pad|replication_pad)([123])d")
SUMS = {"sum", "linalg_vector_norm", "norm"}  # they do not notice zeros
FLAT = SUMS | {"max", "amax"}  # they take two labelled axes that were flattened into one
UNIFORM = {"empty", "zeros", "ones", "full", "rand", "randn", "new_empty", "new_zeros", "new_ones", "new_full"}
LITERAL = "a size written in the code"
SPLITS = {"split", "split_with_sizes", "unsafe_split", "unbind"}
KEEP_ZERO = {"sort", "topk", "cumsum", "roll", "_fft_r2c", "_fft_c2r", "_fft_c2c"}
FAILURES = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)  # of code that cannot run at half width
SIZES = {"size", "split_size", "split_sizes", "repeats", "groups", "normalized_shape", "N", "C"}  # show in the shapes


class Zero(IntEnum):
    """What is known of a tensor's entries at a channel whose unit is set to zero in the weights. More is larger."""

    UNKNOWN = 0
    ZERO = 1  # they are zero
    POSITIVE = 2  # they are zero, and no entry of the other channels is negative


class Axis(NamedTuple):
    """What one axis of a live tensor holds."""

    atoms: Tensor  # (n,) int64, one for each index; (k, n) where k labelled axes were flattened into one
    zero: Zero = Zero.UNKNOWN

    def at_most(self, zero):
        """The same channels, of which no more is known than `zero`."""
        return Axis(self.atoms, min(self.zero, zero))


class Blank:
    """An axis along which all entries are equal, or drawn alike: it may take the labels of an axis that it meets."""

    def __bool__(self):
        return False


BLANK = Blank()


class Step(NamedTuple):
    """What a trace remembers of one operation."""

    name: str
    numbers: list  # the Python numbers and constant tensors among the arguments, but for sizes
    labels: list  # the labelled axes of the inputs
    out: list  # of each output the shape, the axes (None: not predicted) and whether it is contiguous
    sources: list  # which tensors go in: names of parameters, (step, output) of what was computed
    place: tuple = ()  # of a view: the line of code that asks for it, and the shape
    data: object = None  # what follows the data, not a width: a Python value, or of each output whole numbers or None


class Watch(TorchDispatchMode):
    """Sees every ATen operation and undoes what the model writes into its own tensors.

    tensors: {name: tensor}. memory: their data pointers.
    """

    def __init__(self, tensors):
        super().__init__()
        self.tensors, self.overwritten, self.listener = tensors, [], Listener()
        self.memory = {pointer(t) for t in tensors.values()}

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # it would double the time of an operation

    def __enter__(self):
        for name, tensor in self.tensors.items():
            tensor._from = name
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        while self.overwritten:
            tensor, before = self.overwritten.pop()
            tensor.copy_(before)

    def keep(self, inputs):
        """Remember what an operation that writes is about to overwrite."""
        here = [t for t in inputs if pointer(t) in self.memory]
        self.overwritten += [(t.detach(), t.clone()) for t in here]

    def numbers(self, func, args, kwargs, inputs):
        """The numbers among the arguments of an operation, sizes left out, and those of tensors made outside torch."""
        found = []
        if func is torch.ops.aten.slice.Tensor and whole(*args):
            return found
        for value in [*compress(args, no_sizes(func)), *[kwargs[key] for key in kwargs if key not in SIZES]]:
            if not isinstance(value, Tensor):
                found += numbers_of(value)
        for tensor in inputs:
            if not hasattr(tensor, "_axes") and tensor.numel() <= 4096:
                found += tensor.flatten().tolist()
        return found


class Trace(Watch):
    """Labels the outputs of every operation, and collects ties and freezes.

    edges: pairs of (k,) int64 atoms. freezes: {why: [atoms]}. seen: ids of the tensors used. log: [Step].
    heads: of the attention layers that are running (path, number of heads); split_heads: {path: an atom of each head}.
    approximate: let the widths of layer norm and group norm change; inexact: {why: [atoms]} that this concerns.
    """

    def __init__(self, tensors, axes, approximate=False):
        """tensors: {name: tensor}. axes: {name: its atoms, or None, for each axis}."""
        super().__init__(tensors)
        self.edges, self.freezes, self.seen, self.log = [], {}, set(), []
        self.blanks = {}  # {data pointer: [(strides, shape, axes)] of the uniform tensors in that memory}
        self.views = {}  # {data pointer: lists of axes in that memory that have zeros}
        self.zeros = {}  # what `zero` found
        self.heads, self.split_heads, self.approximate, self.inexact = [], {}, approximate, {}
        for name, tensor in tensors.items():
            number = tensor.is_floating_point() or tensor.is_complex()
            tensor._axes = [None if a is None else Axis(a, Zero(number)) for a in axes[name]]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, (name, mutable) = kwargs or {}, name_of(func)
        inputs = tensors_in([*args, *kwargs.values()])
        self.seen.update(map(id, inputs))
        if not self.listener.inside:  # code that nobody hears, as a script's
            self.listener.width = True
        numbers = self.numbers(func, args, kwargs, inputs)
        if mutable:
            self.keep(inputs)
            self.written(func, name, args, inputs)
        labels = [axis for t in inputs for axis in self.of(t) if axis]
        result = func(*args, **kwargs)
        out = tensors_in([result])
        axes = [[None] * t.dim() for t in out]
        if name in UNIFORM:
            axes = [self.uniform(t, inputs) for t in out]
        elif labels and out:
            given = dict(zip(argument_names(func), args, strict=False)) | kwargs
            call = SimpleNamespace(name=name, func=func, args=args, kwargs=kwargs, given=given, inputs=inputs, out=out)
            axes = self.rule(func, name, labels)(call)
            axes = axes + [None] * (len(out) - len(axes))
        elif mutable:  # uniform memory stays so, as far as `written` left it
            axes = axes if name in MOVES else [self.of(t) for t in out]
        elif name in MOVES and inputs:  # views of uniform memory are uniform, and so is what is expanded
            blank = {(n, size) for n, size, axis in sizes_of(inputs[0], self.of(inputs[0])) if axis is BLANK}
            axes = [[BLANK if n == 0 or (n, size) in blank else None for n, size, _ in sizes_of(t, a)]
                    for t, a in zip(out, axes, strict=True)]  # fmt: skip
        if mutable:
            self.no_longer_zero(out, axes)
        for tensor, known in zip(out, axes, strict=True):
            tensor._axes = known or [None] * tensor.dim()
            for axis in tensor._axes:
                if axis is BLANK:
                    self.blanks.setdefault(pointer(tensor), []).append((tensor.stride(), tensor.shape, tensor._axes))
                    break
                if axis and axis.zero:
                    self.views.setdefault(pointer(tensor), []).append(tensor._axes)
                    break
        if name == "clone":  # depends on strides, so it is not a part of what must repeat at another width
            out[0]._from = source_of(inputs[0])
            return result
        place = (*caller(), out[0].shape) if name in VIEWS else ()
        data = result
        if out:
            data = [None if t.is_floating_point() or t.is_complex() else t.clone() for t in out]
        shapes = [(t.shape, a, t.is_contiguous()) for t, a in zip(out, axes, strict=True)]
        sources = [source_of(t) for t in inputs]
        for k, tensor in enumerate(out):
            tensor._from = len(self.log), k
        self.log.append(Step(name, numbers, labels, shapes, sources, place, None if mutable else data))
        return result

    def uniform(self, tensor, inputs):
        """Axes of a tensor that new_zeros and its like make: those of the input, if the shape is the input's."""
        axes = [BLANK if n > 1 else None for n in tensor.shape]
        if inputs and inputs[0].shape == tensor.shape:
            axes = [Axis(a.atoms) if a else blank for a, blank in zip(self.of(inputs[0]), axes, strict=True)]
        return axes

    def written(self, func, name, args, inputs):
        """An operation writes into its first argument: memory that was uniform takes the labels of what is copied."""
        target = inputs[0] if inputs else None
        if target is None or torch.Tag.nondeterministic_seeded in func.tags:
            return  # random numbers, all drawn alike
        if len(inputs) == 1 and target.untyped_storage().nbytes() == target.numel() * target.element_size():
            return  # by a number, all of the memory
        blanks = self.blanks.pop(pointer(target), ())
        source = inputs[1] if name == "copy" and len(inputs) > 1 else None
        found = {}  # {(stride, size) of an axis: its label}
        for d, axis in enumerate(self.of(source)[::-1], 1):
            if axis and d <= target.dim() and source.shape[-d] == target.shape[-d]:
                found[target.stride(-d), target.shape[-d]] = axis
        for strides, shape, axes in blanks:
            for d, (at, axis) in enumerate(zip(zip(strides, shape, strict=True), axes, strict=True)):
                if axis is BLANK:
                    axes[d] = Axis(found[at].atoms) if at in found else None

    def no_longer_zero(self, out, axes):
        """Axes of weights whose memory was written into keep no more zeros than what was written."""
        for tensor, known in zip(out, axes, strict=True):
            kept = min([axis.zero for axis in known or [] if axis], default=Zero.UNKNOWN)
            for other in self.views.get(pointer(tensor), ()) if kept < Zero.POSITIVE else ():
                other[:] = [axis.at_most(kept) if axis else axis for axis in other]

    def rule(self, func, name, labels):
        simple = name in POINTWISE or torch.Tag.pointwise in func.tags
        if any(axis.atoms.dim() > 1 for axis in labels) and not simple and name not in FLAT:
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

    def tie_rows(self, why, rows):
        """rows (k, n): the k channels of each column leave together."""
        self.tie(why, Axis(rows[:1].expand_as(rows).flatten()), Axis(rows.flatten()))

    def contract(self, why, x, weight):
        """A sum over an axis that both have: exact if zeroing a unit zeroes one of them, as it does for weights."""
        if x and weight and not (x.zero or weight.zero):
            self.freeze(f"{why} of two activations", x, weight)
        self.tie(why, x, weight)

    def merge(self, why, tensors, shape, skip=None):
        """Tie operands that broadcast to `shape`, but for axis `skip`; returns the axes of the result."""
        axes = [None] * len(shape)
        for d in range(-len(shape), 0):
            here = [(self.of(t), t.shape[d]) for t in tensors if t.dim() >= -d and d != skip]
            label = next((known[d] for known, n in here if known[d] and n == shape[d]), None)
            for known, n in here:
                if known[d] is BLANK and label and n == shape[d]:
                    known[d] = Axis(label.atoms)
            here = [(known[d], n) for known, n in here]
            self.freeze(f"{why}: broadcast", *[axis for axis, n in here if n != shape[d]])
            same = [axis for axis, n in here if n == shape[d]]
            lead = axes[d] = next(filter(None, same), same[0] if same and all(a is BLANK for a in same) else None)
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
        silent = Zero(all(axis and axis.zero for axis in bias))  # a channel without weights and bias is zero
        channels, groups, transposed = call.given["input"].shape[1], call.given["groups"], call.given["transposed"]
        self.freeze("convolution: kernel or map size", *w[2:], *x[2:])
        if 1 < groups == channels:  # depthwise: channel c makes the outputs c*m .. c*m+m-1
            multiplier = call.out[0].shape[1] // channels
            out = x[1] and Axis(x[1].atoms.repeat_interleave(multiplier), w[0].zero if w[0] else Zero.UNKNOWN)
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
        return [[x[0], out and out.at_most(silent), *[None] * (len(x) - 2)]]

    def matmul(self, call):
        """mm, bmm, mv, dot; with an added bias addmm and baddbmm; linear, whose weight is (out, in)."""
        added = call.name in ("addmm", "baddbmm")
        a, b, bias = (*call.args[1:3], call.args[0]) if added else (*call.args, None)[:3]
        left, right = self.of(a), self.of(b)[:: -1 if call.name == "linear" else 1]
        self.contract(call.name, left[-1], right[-2:][0])
        if call.name in ("bmm", "baddbmm"):
            self.tie(call.name, left[0], right[0])
        out = [*left[:-1], *(right[-1:] if len(right) > 1 else [])]
        silent = [Zero.ZERO] * len(out) if bias is None else [Zero(bool(a and a.zero)) for a in self.of(bias)]
        silent = [Zero.UNKNOWN] * (len(out) - len(silent)) + silent
        out = [axis and axis.at_most(zero) for axis, zero in zip(out, silent, strict=True)]
        for d, axis in enumerate(reversed(self.of(bias)), 1):
            self.tie(f"{call.name}: bias", out[-d], axis)
        return [out]

    def batch_norm(self, call):
        x = self.of(call.given["input"])
        for key in ("weight", "bias", "running_mean", "running_var"):
            for axis in self.of(call.given.get(key)):
                self.tie("batch_norm", x[1], axis)
        self.freeze("batch_norm: statistics", x[0], *x[2:])
        scale = [axis for key in ("weight", "bias") for axis in self.of(call.given.get(key))]
        silent = all(axis and axis.zero for axis in scale) if scale else x[1] and x[1].zero
        out = [None, x[1] and Axis(x[1].atoms, Zero(bool(silent))), *[None] * (len(x) - 2)]
        return [out, *[[None] for t in call.out[1:] if t.numel() == 0]]  # no statistics come out in eval mode

    def pointwise(self, call):
        axes = self.merge(call.name, call.inputs, call.out[0].shape)
        if call.name not in COPIES:
            axes = [Axis(a.atoms, self.zero(call, d)) if a else a for d, a in enumerate(axes, -len(axes))]
        return [axes] * len(call.out)

    def zero(self, call, d):
        """`Axis.zero` of the result along axis d, found by trying the operation on zeros and on sample values."""
        axes = [self.of(v)[d] if isinstance(v, Tensor) and v.dim() >= -d else None for v in call.args]
        weights = [axis for axis in axes if axis and axis.zero]
        if not weights:
            return Zero.UNKNOWN
        key = [(v.dtype, a and a.zero, v.numel() == 1) if isinstance(v, Tensor) else repr(v)
               for v, a in zip(call.args, axes, strict=True)]  # fmt: skip
        key = None if any(t.dim() == 0 for t in call.inputs) else (call.func, *key, repr(call.kwargs.keys()))
        if key not in self.zeros or key is None:
            self.zeros[key] = self.try_zeros(call, axes)
        found, finite = self.zeros[key]
        if not finite:  # a division by a removed channel, its logarithm, ...
            self.freeze(f"{call.name}: not finite for a zeroed channel", *weights)
        return found

    def try_zeros(self, call, axes):
        """(what `zero` returns, whether the result for zeros is finite)."""
        zeros, signs, certain = list(call.args), list(call.args), call.name != "empty_like"
        for k, (value, axis) in enumerate(zip(call.args, axes, strict=True)):
            if isinstance(value, Tensor) and value.dim():
                sample = SAMPLES.to(value.device).roll(k)
                sample = sample > 0 if value.dtype == torch.bool else sample.to(value.dtype)
                zeros[k] = torch.zeros_like(sample) if axis and axis.zero else sample
                signs[k] = sample.abs() if axis and axis.zero == Zero.POSITIVE else sample
                certain &= bool(axis and axis.zero) or value.numel() == 1
        kwargs = {k: v.new_empty(0) if k == "out" else v for k, v in call.kwargs.items()}
        value = tensors_in([call.func(*zeros, **kwargs)])[0]
        finite = bool(value.isfinite().any())
        certain |= call.name == "mul" or call.name == "div" and bool(axes[0] and axes[0].zero)  # 0 y = 0, 0 / y = 0
        if not certain or not finite or value.any() or torch.Tag.nondeterministic_seeded in call.func.tags:
            return Zero.UNKNOWN, finite
        if value.is_complex():
            return Zero.ZERO, True
        positive = (tensors_in([call.func(*signs, **kwargs)])[0] >= 0).all()
        return Zero.POSITIVE if positive else Zero.ZERO, True

    def mix(self, call):
        """Reductions, softmax, layer norm, pooling: they mix the entries of some axes, and the other axes pass."""
        x, dims = self.of(call.args[0]), call.given.get("dim", call.given.get("dims"))
        if spatial := SPATIAL.match(call.name):
            dims = range(-int(spatial[1]), 0)
        elif "normalized_shape" in call.given:
            dims = range(-len(call.given["normalized_shape"]), 0)
        dims = {d % len(x) for d in ([dims] if isinstance(dims, int) else dims or range(len(x)))}
        order = call.given.get("ord", call.given.get("p", 2))
        for d in dims:  # the largest of numbers >= 0 does not notice zeros, nor does a sum
            unseen = call.name in SUMS and (2 if order is None else order) >= 0 or call.name in ("max", "amax")
            if x[d] and not (unseen and x[d].zero >= (Zero.ZERO if call.name in SUMS else Zero.POSITIVE)):
                self.freeze(f"{call.name} over channels", x[d])
        if call.name != "linalg_vector_norm":  # its other tensor is `out`
            self.freeze(call.name, *[axis for t in call.inputs[1:] for axis in self.of(t)])
        same_sign = call.name in SUMS | {"sum", "mean", "max", "amax", "min", "amin"} or bool(spatial)
        keeps = Zero.POSITIVE if same_sign and "bicubic" not in call.name else Zero(call.name in KEEP_ZERO)
        axes = [None if d in dims else a and a.at_most(keeps) for d, a in enumerate(x)]
        return [[a for d, a in enumerate(axes) if t.dim() == len(x) or d not in dims] for t in call.out]

    def normalise(self, call):
        """Layer norm and group norm. What leaves changes the statistics, so widths stay unless asked otherwise."""
        x, (w, bias) = self.of(call.args[0]), (self.of(call.given[key]) for key in ("weight", "bias"))
        if not self.approximate or not w:
            return self.mix(call) if call.name == "native_layer_norm" else self.unknown(call)
        d = 1 if call.name == "native_group_norm" else len(x) - 1
        self.freeze(f"{call.name} over other axes", *(x[d + 1 :] if d == 1 else x[len(x) - len(w) : d]), *w[:-1])
        for axis in (w[-1], *bias[-1:]):
            self.tie(call.name, x[d], axis)
        axis = x[d] and Axis(x[d].atoms, Zero(all(a and a.zero for a in (w[-1], *bias[-1:]))))
        if axis and call.given.get("group", 1) > 1:  # a channel of each group leaves, so that groups stay equal
            rows = axis.atoms.view(call.given["group"], -1)
            self.tie_rows("group norm", rows)
        self.inexact.setdefault(f"{call.name}: other statistics", []).extend([axis.atoms] if axis else [])
        return [[*x[:d], axis, *[None] * (len(x) - d - 1)]]

    def attention(self, call):
        """softmax(q k / sqrt(E)) v, q (N, H, L, E), k (N, H, S, E), v (N, H, S, Ev): samples and heads pass, and Ev."""
        q, k, v = (self.of(tensor) for tensor in call.args[:3])
        for d in (0, 1):
            for other in (k, v):
                if q[d] or other[d]:
                    self.tie("attention", q[d], other[d])
        rest = [axis for tensor in call.inputs[3:] for axis in self.of(tensor)]
        self.freeze("attention: scale or places", q[3], *k[2:], v[2], *rest)
        return [[q[0], v[1] and v[1].at_most(Zero.ZERO), q[2], v[3]]]

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

    def places(self, call):
        """Picks or repeats entries of some axes by a table: index, index_select, unfold, index_put."""
        x, tables = self.of(call.args[0]), call.given.get("indices")
        if tables is None:
            dims = [call.given.get("dim", call.given.get("dimension")) % len(x)]
        else:
            dims = [d + k for d, t in enumerate(tables) if t is not None for k in range(t.dim() if is_mask(t) else 1)]
        rest = [axis for t in call.inputs[1:] for axis in self.of(t)]
        if call.name == "index_put" and (call.given["values"].numel() > 1 or len(tables) > len(x)):
            return self.unknown(call)
        self.freeze(f"{call.name} of channels", *[x[d] for d in dims], *rest)
        return [[axis and Axis(axis.atoms) for axis in x]] if call.name == "index_put" else self.move(call)

    def gather(self, call):
        x, dim = call.args[0], call.given["dim"] % max(1, call.args[0].dim())
        self.freeze("gather of channels", self.of(x)[dim], self.of(call.given["index"])[dim])
        axes = self.merge("gather", [x, call.given["index"]], call.out[0].shape, skip=dim - x.dim())
        zeros = [axis.zero if axis else Zero.UNKNOWN for axis in self.of(x)]
        return [[axis and Axis(axis.atoms, zero) for axis, zero in zip(axes, zeros, strict=True)]]

    def sample(self, call):
        """grid_sample and max_unpool: channels of the first tensor pass, its places are mixed."""
        x, other = self.of(call.args[0]), self.of(call.args[1])
        pair = [[x[d], other[d]] for d in (range(2) if "unpool" in call.name else range(1))]
        for a, b in pair:
            if a or b:
                self.tie(call.name, a, b)
        self.freeze(call.name, *x[2:], *other[len(pair) :])
        return [[*[a and a.at_most(Zero.ZERO) for a in x[:2]], *[None] * (call.out[0].dim() - 2)]]

    def columns(self, call):
        """F.unfold makes each channel k adjacent ones, a patch; F.fold puts them back."""
        x, k = self.of(call.args[0]), call.given["kernel_size"][0] * call.given["kernel_size"][1]
        d = len(x) - (3 if call.name == "im2col" else 2)  # the batch may be missing
        self.freeze(call.name, *x[d + 1 :])
        if x[d] and call.name == "im2col":
            axis = Axis(x[d].atoms.repeat_interleave(k), x[d].zero)
        elif x[d]:
            rows = x[d].atoms.view(-1, k).T
            for row in rows[1:]:
                self.tie("fold", Axis(rows[0]), Axis(row))
            axis = Axis(rows[0], x[d].zero).at_most(Zero.ZERO)
        return [[*x[:d], x[d] and axis, *[None] * (call.out[0].dim() - d - 1)]]

    def embedding(self, call):
        """Rows of a table: its columns pass."""
        table, indices = (self.of(tensor) for tensor in call.args[:2])
        self.freeze("embedding: rows of the table", table[0])
        return [[*indices, table[1]]]

    def glu(self, call):
        axes = list(self.of(call.args[0]))
        d = call.given.get("dim", -1) % len(axes)
        if axes[d]:
            a, b = (Axis(part, axes[d].zero) for part in axes[d].atoms.chunk(2))
            self.tie("glu", a, b)
            axes[d] = a
        return [[axis and axis.at_most(Zero.ZERO) for axis in axes]]

    def complex(self, call):
        """Views of complex numbers as pairs, and back: the last axis comes or goes."""
        axes = self.of(call.args[0])
        self.freeze(call.name, *axes[call.out[0].dim() :])
        return [[*axes, None, None][: call.out[0].dim()]]

    def weight_norm(self, call):
        """g v / |v|: a norm over all axes but one does not notice what is zero, and g silences its own axis."""
        v, g, dim = self.of(call.args[0]), self.of(call.args[1]), call.given.get("dim", 0)
        self.tie("weight_norm", v[dim], g[dim])
        self.freeze("weight_norm", *[a for d, a in enumerate(v) if d != dim and a and not a.zero])
        return [v, g]

    def move(self, call):
        """Views, permutations, slices, splits: carried out on the indices of each labelled axis, to see what moves."""
        source, axes = call.inputs[0], [[None] * t.dim() for t in call.out]
        for d, axis in enumerate(self.of(source)):
            if not axis:
                continue
            grid = torch.arange(source.shape[d]).view(-1, *[1] * (source.dim() - d - 1)).expand(source.shape)
            moved = viewed(grid, call.out[0].shape, d) if call.name in VIEWS else call.func(grid, *call.args[1:])
            heads = self.heads[-1][1] if self.heads and call.name in VIEWS else None
            parts = [once(part, grid, d) for part in tensors_in([moved])]
            if len(torch.cat([part.flatten() for part in parts]).unique()) < source.shape[d]:
                self.freeze(f"{call.name}: only a part of the channels", axis)
            lines = [line(axis.atoms, part, call.name == "pixel_shuffle", heads) for part in parts]
            for known, (target, rows) in zip(axes, lines, strict=True):
                if len(rows) > 1:  # equal channels are in one column: they are tied
                    self.tie_rows(f"{call.name}: split", rows)
                if heads == rows.shape[1] < rows.numel():
                    self.split_heads.setdefault(self.heads[-1][0], rows[0])
                old = known[target] if target is not None else None
                if old:  # two labelled axes flattened into one
                    both = torch.cat([old.atoms.view(-1, rows.shape[1]), rows[:1]])
                    known[target] = Axis(both, min(old.zero, axis.zero))
                elif target is not None:
                    known[target] = Axis(rows[0], axis.zero)
            for _, rows in lines[1:]:  # the parts of a split; unequal ones freeze
                self.tie(call.name, Axis(lines[0][1][0]), Axis(rows[0]))
        return axes


class Asked:
    """Stands in for an attribute of modules while a model runs, and remembers that somebody asked for it."""

    def __init__(self):
        self.values, self.asked = {}, False  # values: {id of a module: what it is told}

    def __get__(self, module, owner):
        self.asked = self.asked or not called_by_layer()
        return self.values.get(id(module))


def called_by_layer():
    """Whether torch's convolution layers are the caller's caller: they only hand on what they are told."""
    return sys._getframe(2).f_code.co_filename.endswith("torch/nn/modules/conv.py")


class Listener(TorchFunctionMode):
    """Hears every function that a model calls. width: whether its code may know how wide a layer is.

    It may if it reads a size, or calls what is not in PLAIN, whose results are as wide as their labels say.
    """

    def __init__(self):
        super().__init__()
        self.width, self.inside = False, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.__name__
        name = func.__self__.__name__ if name == "__get__" else name.strip("_")
        own = name.startswith("conv") and not called_by_layer()  # its number of groups may stand in the code
        if not self.width and (own or name not in PLAIN):
            self.width = any(any(getattr(t, "_axes", ())) for t in tensors_in([*args, *kwargs.values()]))
        self.inside += 1
        try:
            return func(*args, **kwargs)
        finally:
            self.inside -= 1


@contextlib.contextmanager
def undisturbed(devices):
    """Random states stay as they were, and attention takes its path of single operations."""
    fast, state = torch.backends.mha.get_fastpath_enabled(), random.getstate()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            random.seed(0)
            yield
    finally:
        random.setstate(state)
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def overheard(modules, training):
    """While it lasts, modules are told the mode, and who asks for the mode or for a width is noted: {attribute: Asked}.

    Modules keep their classes, for a model may look at them: their own attribute goes, so that the class's is found.
    """
    owners, kinds, gone = {"training": nn.Module} | SIZES_OF, {}, []
    asked = {key: Asked() for key in owners}
    for module in modules:
        kind = type(module)
        if kind not in kinds:
            kinds[kind] = [key for key, owner in owners.items() if issubclass(kind, owner)]
            if issubclass(kind, QUIET) or f"{kind.__module__}.{kind.__name__}" in DROPS:
                kinds[kind].remove("training")
        attributes = module.__dict__
        for key in kinds[kind]:
            if key in attributes:
                value = attributes.pop(key)
                gone.append((attributes, key, value))
                asked[key].values[id(module)] = training if key == "training" else value
    for key, owner in owners.items():
        setattr(owner, key, asked[key])
    try:
        yield asked
    finally:
        for key, owner in owners.items():
            delattr(owner, key)
        for attributes, key, value in gone:
            attributes.setdefault(key, value)


def call(model, inputs):
    """model(inputs): a tensor, a tuple, or a dict by keyword. The inputs are copied."""
    inputs = tree_map(lambda v: v.clone(memory_format=torch.contiguous_format) if isinstance(v, Tensor) else v, inputs)
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*([inputs] if isinstance(inputs, Tensor) else inputs))


def run(model, inputs, mode, training):
    """Call a model under a dispatch mode: (outputs, whether it asked for `training`, whether it may know a width)."""
    devices = {tensor.device for tensor in mode.tensors.values() if tensor.is_cuda}
    with undisturbed(devices), overheard(walk(model).values(), training) as asked:
        with mode.listener, mode:
            outputs = call(model, inputs)
    width = mode.listener.width or any(answer.asked for key, answer in asked.items() if key != "training")
    return outputs, asked["training"].asked, width


class Stop(Exception):
    """The model takes another path at another width."""


class Replay(Watch):
    """Runs a narrowed model beside the log of the dense one. wrong: {step: what is wrong with it}.

    Nobody looks at the values: what takes long is not computed, as its shape is certain. Where a result has not the
    shape that the labels predict, zeros of that shape take its place, and the run goes on.
    """

    def __init__(self, found, log, stays=None):
        """found: {name: (tensor, ...)} of the model. stays: (atoms,) bool, which are there; None: all."""
        super().__init__({name: tensor for name, (tensor, *_) in found.items()})
        self.log, self.stays, self.step, self.wrong, self.widths = log, stays, 0, {}, {}
        for tensor in self.tensors.values():
            tensor._axes = getattr(tensor, "_axes", ())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, (name, mutable) = kwargs or {}, name_of(func)
        inputs = tensors_in([*args, *kwargs.values()])
        if mutable:
            self.keep(inputs)
        if name == "clone":
            result = func(*args, **kwargs)
            result._axes, result._from = getattr(inputs[0], "_axes", ()), source_of(inputs[0])
            return result
        k, self.step = self.step, self.step + 1
        step = self.log[k] if k < len(self.log) else Step("nothing", [], [], [], [])
        if name != step.name and not {name, step.name} <= VIEWS or [*map(source_of, inputs)] != step.sources:
            self.wrong[k] = "another path"
            raise Stop
        if not same(self.numbers(func, args, kwargs, inputs), step.numbers):
            self.wrong[k] = "a number that depends on a width"
        shapes = [self.predicted(shape, axes) for shape, axes, _ in step.out]
        certain = name in SLOW and (name != "convolution" or groups_fit(args))
        if certain and all(contiguous for _, _, contiguous in step.out) and None not in shapes:
            out = [inputs[0].new_zeros(shape) for shape in shapes]
            result = out[0] if len(out) == 1 else tuple(out)
        else:
            result = self.compute(func, args, kwargs, step)
            out = tensors_in([result])
        if len(out) != len(shapes) or any(s not in (None, t.shape) for t, s in zip(out, shapes, strict=True)):
            self.wrong.setdefault(k, LITERAL)
            if mutable or None in shapes or not shapes:
                raise Stop
            like = inputs[0] if inputs else out[0]
            out = [like.new_zeros(shape) for shape in shapes]
            result = out[0] if isinstance(result, Tensor) or len(out) == 1 and name not in SPLITS else out
        for i, tensor in enumerate(out):
            tensor._axes, tensor._from = step.out[i][1] or (), (k, i)
        return result

    def compute(self, func, args, kwargs, step):
        """The operation's result, None if it fails; masks, indices and numbers are those of the dense model."""
        try:
            result = func(*args, **kwargs)
        except FAILURES:
            result = None
        return result if step.data is None else given_data(result, step)

    def predicted(self, shape, axes):
        """The shape that the labels predict for this width, None if they predict nothing."""
        if axes is None or self.stays is None:
            return None if axes is None else shape
        sizes = list(shape)
        for d, axis in enumerate(axes):
            if axis:
                if id(axis.atoms) not in self.widths:
                    self.widths[id(axis.atoms)] = int(self.stays[axis.atoms].view(-1, shape[d]).all(0).sum())
                sizes[d] = self.widths[id(axis.atoms)]
        return torch.Size(sizes)


def groups_fit(args):
    """Whether a convolution's number of groups, which may stand in the code, fits its input and its weight."""
    x, weight, *_, transposed, _, groups = args
    read = weight.shape[0] if transposed else weight.shape[1] * groups
    return x.shape[1] == read and weight.shape[0] % groups == 0


def replay(model, inputs, training, narrow):
    """Run a model beside the log in `narrow`, a Replay, whose `wrong` is filled: (outputs or None, as `run`)."""
    try:
        results = run(model, inputs, narrow, training)
        if narrow.step < len(narrow.log):
            narrow.wrong.setdefault(narrow.step, "another path")
        return results
    except Stop:
        return None
    except Exception:  # of the model's code, or of a reshape, which fails before it is an operation
        log = narrow.log
        k = min(narrow.step, len(log) - 1)
        views = [j for j, step in enumerate(log) if step.place and step.place == log[k].place]
        for j in views or [k]:  # the same line asks for the same shape in every block
            narrow.wrong.setdefault(j, LITERAL if views else "another path")
        return None


def walk(model):
    """{path: module}, each once, in the order of model.named_modules() and several times as fast."""
    found, seen, ahead = {}, set(), [("", model)]
    while ahead:
        path, module = ahead.pop()
        if module is not None and id(module) not in seen:
            seen.add(id(module))
            found[path] = module
            inside = [(f"{path}.{key}" if path else key, child) for key, child in module._modules.items()]
            ahead += inside[::-1]
    return found


def source_of(tensor):
    """Where a tensor comes from: a parameter's name, (step, output) of what was computed, None for all else."""
    return getattr(tensor, "_from", None)


def same(a, b):
    """Whether two lists hold the same numbers; nan is nan."""
    return a == b or len(a) == len(b) and all(x == y or x != x and y != y for x, y in zip(a, b, strict=True))


def whole(x, dim=0, start=None, end=None, step=1):
    """Whether a slice leaves all as it is."""
    return not start and (end is None or end >= x.shape[dim]) and step == 1


def given_data(result, step):
    """The result of an operation with the dense model's whole numbers, where no axis of them is narrower."""
    if not isinstance(step.data, list):
        return step.data
    parts = [result] if isinstance(result, Tensor) else list(result or ())
    if len(parts) != len(step.data) or all(known is None for known in step.data):
        return result
    for k, (known, (_, axes, _)) in enumerate(zip(step.data, step.out, strict=True)):
        if known is not None and (known.shape == parts[k].shape or not any(axes or ())):
            parts[k] = known.clone()
    return parts[0] if isinstance(result, Tensor) else parts


def sizes_of(tensor, axes):
    """(stride, size, axis) of every axis."""
    return zip(tensor.stride(), tensor.shape, axes, strict=True)


def is_mask(table):
    return table.dtype in (torch.bool, torch.uint8)


def caller():
    """(code, line) of the nearest frame that is not torch's own or this file's."""
    frame = sys._getframe(2)
    while frame.f_back and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return frame.f_code, frame.f_lineno


def pointer(tensor):
    return tensor.untyped_storage().data_ptr()


def numbers_of(value):
    """The numbers in an argument, tensors left out."""
    if isinstance(value, (int, float, complex)):
        return [value]
    return [n for item in value for n in numbers_of(item)] if isinstance(value, (list, tuple)) else []


def once(part, grid, d):
    """A part of the grid, size 1 along axes that repeat the same memory.

    Of a part without values, such as the first 0 tokens, axis d stays as it is, if it is there.
    """
    if not part.numel() and part.dim() == grid.dim() and part.shape[d] == grid.shape[d]:
        part = grid
    return part[tuple(slice(None if step else 1) for step in part.stride())]


def line(atoms, grid, first, heads=None):
    """(an axis along which the grid's atoms differ, (k, n) atoms along it). grid: indices of atoms.

    It is the last such axis; the first if asked; one of size `heads` before the last, as in (B, N, 3, heads, dim).
    """
    for values in (atoms[grid], grid):  # where all atoms are one, their indices differ
        varying = [d for d in range(grid.dim()) if (values != values.narrow(d, 0, 1)).any()] if grid.numel() else []
        if varying:
            break
    else:
        return None, atoms[:0][None]
    target = next((d for d in varying[-2::-1] if grid.shape[d] == heads), varying[0 if first else -1])
    grid = grid[tuple(slice(None if d in varying else 1) for d in range(grid.dim()))]
    return target, atoms[grid.movedim(target, -1).reshape(-1, grid.shape[target])]


def viewed(grid, shape, d):
    """grid.reshape(shape), but size 1 along the axes that have nothing to do with axis d, the only one that varies.

    Where products of leading sizes agree, both shapes part: (B, N, heads, dim) -> (B * N, heads * dim) is two views.
    """
    if not grid.numel():
        return grid.reshape(shape)
    i = k = end = to = 0
    while end <= d:
        i, k, end, to = end, to, end + 1, to + 1
        while (a := math.prod(grid.shape[i:end])) != (b := math.prod(shape[k:to])):
            end, to = end + (a < b), to + (a > b)
    here = grid[(0,) * i + (...,) + (0,) * (grid.dim() - end)].reshape(shape[k:to])
    return here.view(*[1] * len(shape[:k]), *here.shape, *[1] * len(shape[to:]))


@functools.cache
def name_of(func):
    """(name, whether it writes into an argument); add_ is add."""
    return func.overloadpacket.__name__.rstrip("_"), func._schema.is_mutable


@functools.cache
def no_sizes(func):
    """Of each argument whether it is something else than a size."""
    return [name not in SIZES for name in argument_names(func)]


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
RULES |= dict.fromkeys(("linear", "mm", "addmm", "bmm", "baddbmm", "mv", "dot", "vdot"), "matmul")
RULES |= dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
                        "_batch_norm_with_update", "cudnn_batch_norm", "miopen_batch_norm"), "batch_norm")  # fmt: skip
RULES |= dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "sum", "mean", "max", "amax", "min", "amin",
                        "var", "std", "prod", "argmax", "argmin", "median", *SUMS, *KEEP_ZERO), "mix")  # fmt: skip
RULES |= dict.fromkeys(("index", "index_select", "unfold", "index_put"), "places")
RULES |= dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d", "max_unpool2d", "max_unpool3d"), "sample")
RULES |= dict.fromkeys(("im2col", "col2im"), "columns")
RULES |= dict.fromkeys(("view_as_real", "view_as_complex", "real", "imag"), "complex")
RULES |= dict.fromkeys(("native_layer_norm", "native_group_norm"), "normalise")
RULES |= dict.fromkeys(("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
                        "_scaled_dot_product_efficient_attention"), "attention")  # fmt: skip
RULES |= {"gather": "gather", "glu": "glu", "embedding": "embedding", "_weight_norm_interface": "weight_norm"}
