"""What a network costs: parameters, multiply-accumulates, bytes on disk, milliseconds; and the ITU challenge's score.

    cost = count(model, images)                         # cost.parameters, cost.macs, cost.of["backbone.4"].macs
    times = latency({"dense": dense, "pruned": pruned}, images, threads=1)
    times["pruned"]["median_ms"], times["pruned"]["speed_up"]

    layers = inference_cost(quantised, x)               # by layer
    challenge_score(layers)["score"]                    # 1 for the challenge's 8-bit baseline, less is cheaper

MACs are multiply-accumulates, bops are bit operations: MACs of non-zero weights times weight bits times input bits. The
two parts of the file share nothing. Torch only.
"""

import copy
import io
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# ---- parameters, MACs, bytes, milliseconds -------------------------------------------------------------------------


class Part(NamedTuple):
    """A module together with the modules in it."""

    parameters: int
    macs: int


class Cost(NamedTuple):
    """Of a whole network, and of each of its modules by path."""

    parameters: int  # numbers that training changes; shared ones count once
    macs: int  # multiplications of convolutions and matrix products, padding included
    of: dict[str, Part]


def count(model: nn.Module, inputs: Tensor | tuple) -> Cost:
    """Count parameters and multiply-accumulates (MACs), by one forward in eval mode.

    Convolutions (grouped, transposed) and matrix products (linear layers, attention) count, wherever they are called;
    element-wise operations, norms, pooling and interpolation do not. MACs are for the batch as given.

    Args:
        model: given back in the mode it came in.
        inputs: a tensor, or a tuple of the forward's arguments.
    """
    macs, running, hooks = {}, [], []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: running.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: (running.pop(), None)[1]))
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad(), _MacCounter(running, macs):
            model.eval()(*(inputs if isinstance(inputs, tuple) else (inputs,)))
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    parts = {
        name: Part(sum(parameter.numel() for parameter in module.parameters()), macs.get(name, 0))
        for name, module in model.named_modules()
    }
    return Cost(*parts[""], parts)


def after(plan, model: nn.Module, whole: Cost) -> tuple[int, int]:
    """Parameters and MACs that a pruning plan leaves, without pruning: a layer's MACs are in proportion to its weight.

    Args:
        plan: has `remove`, a list of [tensor name, axis, indices] (utils/dependency_graph.py).
        model: the network that the plan is for; products of two activations (attention) are taken to stay.
        whole: count(model, inputs).
    """
    removed, (parameters, macs) = {}, whole[:2]
    for tensor, axis, indices in plan.remove:
        removed.setdefault(tensor, {})[axis] = len(indices)
    for name, parameter in model.named_parameters():
        n, cut = parameter.numel(), removed.get(name, {})
        kept = math.prod(size - cut.get(axis, 0) for axis, size in enumerate(parameter.shape))
        parameters -= n - kept
        if name.endswith(".weight") and parameter.dim() > 1:
            macs -= whole.of[name.removesuffix(".weight")].macs * (n - kept) // n
    return parameters, macs


class _MacCounter(TorchDispatchMode):
    """Adds the MACs of every operation to all modules that are running, whether layers or functionals call it."""

    def __init__(self, running: list[str], macs: dict[str, int]):
        super().__init__()
        self.running, self.macs = running, macs

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        n = _macs(func.overloadpacket.__name__, args, result)
        for name in set(self.running):
            self.macs[name] = self.macs.get(name, 0) + n
        return result


def _macs(name: str, args: tuple, result) -> int:
    """Multiply-accumulates of one ATen operation."""
    if name == "convolution":
        x, weight, transposed = args[0], args[1], args[6]
        # Every output value sums over one filter, (out, in / groups, kernel); transposed, every input value feeds one.
        return (x if transposed else result).numel() * weight[0].numel()
    if name in ("mm", "bmm", "mv", "dot", "linear"):
        return result.numel() * args[0].shape[-1]
    if name in ("addmm", "baddbmm", "addmv", "addbmm"):
        return result.numel() * args[1].shape[-1] * (args[1].shape[0] if name == "addbmm" else 1)
    if name.startswith("_scaled_dot_product"):  # query (B, heads, L, E), key (B, heads, S, E), value (B, heads, S, V)
        query, key, value = args[:3]
        return query.numel() * key.shape[-2] + query[..., 0].numel() * value.shape[-2] * value.shape[-1]
    return 0


def saved_bytes(data) -> int:
    """Size of the file that torch.save makes of a dictionary of tensors and plain values."""
    file = io.BytesIO()
    torch.save(data, file)
    return file.tell()


def latency(
    models: dict[str, Callable],
    x: Tensor,
    threads: int = 1,
    runs: int = 30,
    warm_up: int = 3,
    channels_last: bool = True,
    limit: float = 20.0,
) -> dict:
    """Milliseconds of a forward in eval mode. Several networks run in turn, so that a busy machine slows all alike.

    Args:
        models: {name: module, or any function of x}; a module is copied, x and the copy are made channels_last.
        x: input, its first axis is the batch.
        threads: of torch; other engines have settings of their own.
        runs, warm_up: timed and untimed forwards of each.
        limit: seconds after which no new round begins, once there are three: a busy machine may be very slow.

    Returns:
        {name: {"median_ms", "low_ms", "high_ms": the quartiles, "speed_up": median over the rounds of the first
        model's time / this one's}, "conditions": {"threads", "batch", "shape", "runs", "channels_last"}}.
    """
    layout = {"memory_format": torch.channels_last if channels_last and x.dim() == 4 else torch.contiguous_format}
    ready = {
        name: copy.deepcopy(model).eval().to(**layout) if isinstance(model, nn.Module) else model
        for name, model in models.items()
    }
    x, before = x.contiguous(**layout), torch.get_num_threads()
    times, began = {name: [] for name in models}, time.perf_counter()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for run in range(-warm_up, runs):
                if run >= 3 and time.perf_counter() - began > limit:
                    break
                for name, model in ready.items():
                    start = time.perf_counter()
                    model(x)
                    if run >= 0:
                        times[name].append(1e3 * (time.perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    result, first = {}, next(iter(times.values()))
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4) if runs > 1 else values * 3
        ratio = statistics.median(a / b for a, b in zip(first, values, strict=True))
        result[name] = {"median_ms": median, "low_ms": low, "high_ms": high, "speed_up": ratio}
    conditions = {
        "threads": threads,
        "batch": len(x),
        "shape": list(x.shape),
        "runs": len(first),
        "channels_last": channels_last,
    }
    return result | {"conditions": conditions}


# ---- the challenge's inference cost --------------------------------------------------------------------------------


BASELINE_BOPS, BASELINE_WEIGHT_BITS = 807_699_904, 1_244_936  # of the challenge's pretrained 8-bit VGG10: score 1


class LayerCost(NamedTuple):
    """One layer of `inference_cost`; `positions` is 1 for a dense layer, the output's length for a convolution."""

    weights: int
    nonzero: int  # of the quantised weight
    positions: int
    input_bits: int
    weight_bits: int

    @property
    def macs(self) -> int:
        return self.nonzero * self.positions

    @property
    def bops(self) -> int:
        return self.macs * self.input_bits * self.weight_bits

    @property
    def memory_bits(self) -> int:
        return self.nonzero * self.weight_bits

    @property
    def of_one_weight(self) -> float:
        """What one non-zero weight of this layer adds to the score."""
        bops = self.positions * self.input_bits * self.weight_bits
        return 0.5 * bops / BASELINE_BOPS + 0.5 * self.weight_bits / BASELINE_WEIGHT_BITS


def inference_cost(model: nn.Module, x: Tensor) -> dict[str, LayerCost]:
    """Cost of every quantised layer, as in ITU's lightning-fast modulation challenge (finn.util.inference_cost).

    One frame. Each non-zero entry of a quantised weight counts once for each output position, also where it meets
    padding. Biases, norms, pooling and activations are free. See `challenge_score` for the sum.

    Args:
        model: its layers with weights have `weight_codes()`, `weight_bits` and `input_bits` (models/fake_quant.py). It
            runs once in eval mode, and is left in the mode that it had.
        x: an input of the right shape, (1, ...).
    """
    found, hooks = {}, []

    def note(name: str, layer: nn.Module, result: Tensor) -> None:
        nonzero, weights = int(layer.weight_codes().count_nonzero()), layer.weight.numel()
        positions = result[0, 0].numel() if layer.weight.dim() > 2 else 1  # (1, C, ..., L_out) or (1, C)
        found[name] = LayerCost(weights, nonzero, positions, layer.input_bits, layer.weight_bits)

    for name, layer in model.named_modules():
        if hasattr(layer, "weight_codes"):
            hooks.append(layer.register_forward_hook(lambda layer, _, result, name=name: note(name, layer, result)))
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()(x[:1])
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    return found


def weight_costs(layers: dict[str, LayerCost]) -> dict[str, float]:
    """What one non-zero weight adds to the score, by the names of the weight tensors."""
    return {f"{name}.weight": layer.of_one_weight for name, layer in layers.items()}


def challenge_score(layers: dict[str, LayerCost]) -> dict:
    """{"weights", "nonzero", "macs", "bops", "weight_bits", "score"}; the score is 1 for the challenge's baseline."""
    names = ("weights", "nonzero", "macs", "bops")
    total = {name: sum(getattr(layer, name) for layer in layers.values()) for name in names}
    total["weight_bits"] = sum(layer.memory_bits for layer in layers.values())
    total["score"] = 0.5 * total["bops"] / BASELINE_BOPS + 0.5 * total["weight_bits"] / BASELINE_WEIGHT_BITS
    return total


def papers_compression(steps: list[dict]) -> float:
    """The compression by the FMP paper's formula, the product of 1 / (1 - p) over the good steps; not a count.

    Args:
        steps: in order; "step" is 0 where nothing was cut, "p" the share that was cut, "good" whether it was kept.
    """
    kept = Counter(step["p"] for step in steps if step["good"] and step["step"])
    return math.prod((1 - p) ** -count for p, count in kept.items())


def cost_table(layers: dict[str, LayerCost]) -> str:
    """The result of `inference_cost` as lines of text; the last two have the sum."""
    head = f"{'layer':18} {'bits':>5} {'weights':>8} {'non-zero':>8} {'macs':>10} {'bops':>11} {'weight bits':>11}"
    head += f" {'score':>8}"
    rows = [head]
    for name, layer in layers.items():
        score = layer.nonzero * layer.of_one_weight
        numbers = f"{layer.weights:8d} {layer.nonzero:8d} {layer.macs:10d} {layer.bops:11d} {layer.memory_bits:11d}"
        widths = f"{layer.weight_bits}x{layer.input_bits}"  # of a weight and of what it multiplies
        rows.append(f"{name:18} {widths:>5} {numbers} {score:8.6f}")
    total = challenge_score(layers)
    numbers = f"{total['weights']:8d} {total['nonzero']:8d} {total['macs']:10d} {total['bops']:11d}"
    rows.append(f"{'all':18} {'':5} {numbers} {total['weight_bits']:11d} {total['score']:8.6f}")
    return "\n".join([*rows, f"bops {total['bops']}, weight bits {total['weight_bits']}, score {total['score']:.6g}"])
