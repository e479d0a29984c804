"""Layers that train with the rounding of integer hardware: weights and activations have 2 to 8 bits, but stay float32.

    layer, activation = QuantConv1d(64, 64, 3, padding=1, bias=False, weight_bits=4), QuantReLU(bits=4)
    y = activation(layer(x))                            # y is code * scale, codes 0 .. 15

The arithmetic is that of Brevitas 0.6.0 (github.com/Xilinx/brevitas) with its per-tensor quantisers, equal bit for bit
in eval mode: x / scale, clamp, round half to even, times scale. With n = 2^(bits - 1):

    input        scale 2 / n                        codes -n .. n - 1
    weight       scale max|w| / (n - 1)             codes -(n - 1) .. n - 1, the gradient flows through max|w| too
    activation   scale |threshold| / (2^bits - 1)   codes 0 .. 2^bits - 1, no gradient outside; threshold is learned
    bias         scale of the input * scale of the weight

The gradient passes the rounding unchanged (straight-through estimator, Bengio 2013, arXiv:1308.3432). The learned
weight step, a scale that is a parameter, is LSQ (Esser 2020, arXiv:1902.08153). Quantisers compute in float32 under
autocast too. The file needs torch, and ModelError of models/__init__.py.
"""

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models import ModelError

TINY = 1e-10  # lower bound of max|w|, step and threshold: a layer whose weights are all zero gives zeros, not NaN


class _Round(torch.autograd.Function):
    """Round half to even; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class _ScaleGradient(torch.autograd.Function):
    """Identity; the gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


class _QuantisedReLU(torch.autograd.Function):
    """relu, / scale, clamp to 0..top, round, * scale, in few passes over memory.

    With the backward that autograd derives there are about ten passes over the largest tensors of the network; this one
    makes four.
    """

    @staticmethod
    def forward(ctx, x, scale, top):
        ratio = x / scale
        y = torch.clamp(ratio, 0, top).round_().mul_(scale)  # the clamp at 0 is the ReLU
        ctx.save_for_backward(ratio, y, scale)
        ctx.top = top
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        ratio, y, scale = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(gradient, ratio, 0, ctx.top)  # zero at the bounds and beyond
        # y = round(clamp(ratio)) * scale, d ratio / d scale = -ratio / scale
        of_scale = _dot(gradient, y) / scale - _dot(inside, ratio)
        return inside, of_scale.reshape(scale.shape), None


class _OfAllProcesses(torch.autograd.Function):
    """(M,) of each process -> (processes, M) in all of them; gradients are added up over the processes."""

    @staticmethod
    def forward(ctx, own):
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum of products without a temporary tensor. Training tensors lie in memory as (N, H, W, C): none is copied."""
    a, b = (tensor.movedim(1, -1).reshape(-1) if tensor.dim() > 1 else tensor for tensor in (a, b))
    return torch.dot(a, b)


def _full_precision(x: torch.Tensor) -> torch.Tensor:
    """Half precision, which autocast may have made, becomes float32; other types stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_bits(bits: int, what: str = "bits") -> int:
    """Returns `bits`; ModelError unless it is a whole number from 2 to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ModelError(f"{what} {bits!r}: choose a whole number from 2 to 8")
    return bits


class QuantInput(nn.Module):
    """Fixed quantiser of the network's input: any shape; values beyond -limit .. limit are clamped.

    Args:
        bits: 2 to 8.
        limit: full scale, in the input's unit.
    """

    def __init__(self, bits: int = 8, limit: float = 2.0):
        super().__init__()
        self.bits, self.limit = check_bits(bits), limit

    @property
    def scale(self) -> float:
        return self.limit / 2 ** (self.bits - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = 2 ** (self.bits - 1)
        return _Round.apply(torch.clamp(_full_precision(x) / self.scale, -n, n - 1)) * self.scale

    def extra_repr(self) -> str:
        return f"bits={self.bits}, limit={self.limit}"


class QuantReLU(nn.Module):
    """ReLU and quantiser in one, any shape (N, C, ...) -> the same, float32, codes 0 .. 2^bits - 1 times `scale`.

    `threshold` is the largest value that the codes can express. In the first `initial_steps` training steps it is not
    learned: each step uses the 99.999th percentile of its own ReLU output, and `threshold` is their running mean. The
    buffer `steps` counts those done, so training from a checkpoint equals training that never stopped. With several
    processes (torch.distributed) the percentile is that of their joint output; all batches must be equally large.

    Args:
        bits: 2 to 8.
        initial_steps: training steps with the percentile.
        percentile: of the ReLU output, in percent.
        momentum: weight of the newest percentile in the running mean; the first one counts fully.
    """

    def __init__(self, bits: int = 8, initial_steps: int = 30, percentile: float = 99.999, momentum: float = 0.1):
        super().__init__()
        self.bits, self.initial_steps, self.percentile, self.momentum = bits, initial_steps, percentile, momentum
        self.threshold = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("steps", torch.tensor(0))
        self._learning = False
        check_bits(bits)

    @property
    def learning(self) -> bool:
        """Whether the initial steps are over. Once they are, the buffer is not read again: a GPU waits at each read."""
        if self.steps.is_cpu or not self._learning:
            self._learning = int(self.steps) >= self.initial_steps
        return self._learning

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._learning = False  # the loaded state may be an earlier one

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quantise(x)[0]

    def quantise(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(values, scale); scale is a tensor without dimensions. The bias of the next layer needs it."""
        x = _full_precision(x)
        threshold = self.threshold.abs() if self.learning or not self.training else self._observe(x)
        scale = threshold.clamp(min=TINY) / (2**self.bits - 1)
        return _QuantisedReLU.apply(x, scale, float(2**self.bits - 1)), scale

    def _observe(self, x: torch.Tensor) -> torch.Tensor:
        """This batch's percentile, with its gradient; running mean and number of steps are updated."""
        positive = F.relu(x).flatten()
        world = dist.get_world_size() if dist.is_initialized() else 1
        total = positive.numel() * world
        k = math.floor(0.01 * self.percentile * total + 0.5)
        if world == 1:
            threshold = positive.kthvalue(k).values
        else:  # the k-th smallest of all is the least of the total - k + 1 largest, and these are among each one's own
            largest = total - k + 1
            own = positive.topk(min(largest, positive.numel())).values
            threshold = _OfAllProcesses.apply(own).flatten().topk(largest).values[-1]
        with torch.no_grad():
            if self.steps == 0:
                self.threshold.copy_(threshold)
            else:
                self.threshold.mul_(1 - self.momentum).add_(self.momentum * threshold)
            self.steps += 1
        return threshold

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class _QuantisedWeight:
    """What the three layers share: a mixin, to be named before nn.Conv1d, nn.Conv2d or nn.Linear.

    Arguments beside those of torch's layer:
        weight_bits: 2 to 8.
        input_bits: width of what the layer reads, for counting costs only; 32 is unquantised.
        learned_step: learn the weight's scale (LSQ) instead of taking max|w| / (n - 1).
    """

    def __init__(self, *args, weight_bits: int = 8, input_bits: int = 32, learned_step: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight_bits, self.input_bits = check_bits(weight_bits, "weight_bits"), input_bits
        self.register_parameter("weight_step", None)
        if learned_step:
            self.learn_step()

    @torch.no_grad()
    def learn_step(self) -> None:
        """Make the weight's scale a parameter, `weight_step`; at first 2 mean|w| / sqrt(n - 1) of the non-zero."""
        weight = self.weight[:0] if self.weight.is_meta else self.weight[self.weight != 0].abs()  # meta has no numbers
        top = 2 ** (self.weight_bits - 1) - 1
        step = 2 * weight.mean() / math.sqrt(top) if len(weight) else self.weight.new_tensor(1.0)
        self.weight_step = nn.Parameter(step)

    def weight_scale(self) -> torch.Tensor:
        """The distance between neighbouring codes, a tensor without dimensions."""
        top = 2 ** (self.weight_bits - 1) - 1
        if self.weight_step is None:
            return self.weight.abs().max().clamp(min=TINY) / top
        factor = 1 / math.sqrt(self.weight.numel() * top)  # keeps the step's updates as small as the weights' (LSQ 2.2)
        return _ScaleGradient.apply(self.weight_step, factor).abs().clamp(min=TINY)

    def _codes(self, scale: torch.Tensor) -> torch.Tensor:
        top = 2 ** (self.weight_bits - 1) - 1
        # Where the scale is max|w| / top, the largest weight lies on the bound, or beyond it by a rounding error.
        # Whether clamp passes its gradient makes no difference: the part that is lost here passes through the scale.
        return _Round.apply(torch.clamp(self.weight / scale, -top, top))

    def quantised_weight(self) -> torch.Tensor:
        """The weight that the layer computes with, shaped as `weight`, differentiable; code * scale."""
        scale = self.weight_scale()
        return self._codes(scale) * scale

    @torch.no_grad()
    def weight_codes(self) -> torch.Tensor:
        """int8, shaped as `weight`, in +-(n - 1). Integer hardware can leave out the zeros."""
        return self._codes(self.weight_scale()).to(torch.int8)

    def _weight_and_bias(self, input_scale: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Quantised weight and bias; without the scale of the input the bias stays as it is."""
        scale = self.weight_scale()
        weight = self._codes(scale) * scale
        if self.bias is None or input_scale is None:
            return weight, self.bias
        scale = input_scale * scale
        return weight, _Round.apply(self.bias / scale) * scale

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}, learned_step={self.weight_step is not None}"


class QuantConv1d(_QuantisedWeight, nn.Conv1d):
    """nn.Conv1d, (N, C, L) -> (N, C', L'), with a quantised weight; see the mixin for its arguments.

    Raises:
        ModelError: a bit width outside 2 to 8.
    """

    def forward(self, x: torch.Tensor, input_scale: torch.Tensor | None = None) -> torch.Tensor:
        return self._conv_forward(x, *self._weight_and_bias(input_scale))


class QuantConv2d(_QuantisedWeight, nn.Conv2d):
    """nn.Conv2d, (N, C, H, W) -> (N, C', H', W'), with a quantised weight; see the mixin for its arguments.

    Raises:
        ModelError: a bit width outside 2 to 8.
    """

    def forward(self, x: torch.Tensor, input_scale: torch.Tensor | None = None) -> torch.Tensor:
        return self._conv_forward(x, *self._weight_and_bias(input_scale))


class QuantLinear(_QuantisedWeight, nn.Linear):
    """nn.Linear, (..., C) -> (..., C'), with a quantised weight; see the mixin for its arguments.

    Raises:
        ModelError: a bit width outside 2 to 8.
    """

    def forward(self, x: torch.Tensor, input_scale: torch.Tensor | None = None) -> torch.Tensor:
        return F.linear(x, *self._weight_and_bias(input_scale))
