"""VGG10, quantised: the modulation of 1024 samples of I and Q, as in ITU's "lightning-fast modulation" challenge.

    model = VGG10(bits=4)                               # float (N, 2, 1024) -> logits (N, 24)
    model = VGG10((4, 3, 3, 3, 3, 3, 3, 2, 3, 4), 4)    # weights of another width in each layer
    model = from_brevitas(torch.load("pretrained_VGG10_w8a8_20.pth", map_location="cpu", weights_only=True))

Seven convolutions of kernel 3, each followed by batch norm, quantised ReLU and max-pool 2, then three dense layers
(O'Shea, Roy and Clancy 2018, arXiv:1712.04578; quantised as in github.com/Xilinx/brevitas-radioml-challenge-21).
In eval mode with one thread the logits equal those of Brevitas 0.6.0 bit for bit. Inside, the samples are an image one
pixel high, because PyTorch's fast code for channels-last convolution, norm and pooling is two-dimensional.

Under `torch.autocast(device, torch.bfloat16)` convolutions, norm and pooling run in bfloat16, the quantisers in
float32. Use it for training where the processor is fast at it. Never use it for evaluation: it changes codes.
The network needs fake_quant.py. models/rebuild.py is needed by @register, `from_checkpoint` and `to_checkpoint` only.
"""

import torch
from torch import nn
from torch.nn import functional as F

from models import ModelError
from models.fake_quant import QuantConv2d, QuantInput, QuantLinear, QuantReLU
from models.rebuild import check_tensor, describe, rebuild, register

CONVOLUTIONS, LAYERS = 7, 10  # the dense layers are three

Widths = int | tuple[int, ...]  # one number of bits for all ten layers, or ten in the order of computation


class Block(nn.Module):
    """Convolution or dense layer, batch norm, quantised ReLU, and with `pool` a max-pool of 2 along the last axis."""

    def __init__(self, layer: nn.Module, norm: nn.Module, bits: int, pool: bool):
        super().__init__()
        self.layer, self.norm, self.activation = layer, norm, QuantReLU(bits)
        self.pool, self.pool_first = pool, True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.with_scale(x)[0]

    def with_scale(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, C, 1, L) -> (N, C', 1, L // 2), or (N, C) -> (N, C'); and the scale of the result, for a bias."""
        x = self.norm(self.layer(x))
        if not self.pool:
            return self.activation.quantise(x)
        # The quantised ReLU is monotone, so pooling first gives equal values with half of the work. Two things
        # change: of two values with the same code the other one may get the gradient, and the percentile of the
        # initial steps would miss the values that lost. So training pools first only after the initial steps and if
        # asked to, evaluation only where no gradient is wanted.
        first = self.pool_first and self.activation.learning if self.training else not torch.is_grad_enabled()
        if first:
            return self.activation.quantise(pool(x))
        x, scale = self.activation.quantise(x)
        return pool(x), scale


def pool(x: torch.Tensor) -> torch.Tensor:
    """The larger of two neighbours, (N, C, 1, L) -> (N, C, 1, L // 2)."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():  # an exported graph keeps its single operation
        return F.max_pool2d(x, (1, 2))
    return F.max_pool1d(x.squeeze(2), 2).unsqueeze(2)  # without gradients 40 times as fast on a CPU, equal bit for bit


@register
class VGG10(nn.Module):
    """Float (N, 2, L) with about unit power -> logits float32 (N, num_classes).

    Args:
        bits: width of weights and activations, 2 to 8; one number, or one for the weights of each of the ten layers.
        activation_bits: width of activations and input where it differs from the weights'; one number, or one for what
            each of the ten layers reads: the first is the input's, the others those of the nine activations.
        filters: channels of the convolutions, one number or seven.
        dense: neurons of the two hidden dense layers, one number or two.
        num_classes: neurons of the last layer.
        samples: L, a multiple of 128.
        learned_steps: learn the weights' scales (LSQ) instead of taking them from the largest weight.
        pool_first: in training, pool before the quantised ReLU. Values are equal, a step is a sixth faster, and
            gradients differ where values round to the same code. Accuracy after a short training is the same (python -m
            experiments.vgg10_speed --data-file FILE).

    Raises:
        ModelError: a bit width outside 2 to 8, another number of widths than one or ten, or sizes that don't fit
            together.
    """

    def __init__(
        self,
        bits: Widths = 8,
        activation_bits: Widths | None = None,
        filters: int | tuple[int, ...] = 64,
        dense: int | tuple[int, int] = 128,
        num_classes: int = 24,
        samples: int = 1024,
        learned_steps: bool = False,
        pool_first: bool = True,
    ):
        super().__init__()
        filters = (filters,) * CONVOLUTIONS if isinstance(filters, int) else tuple(filters)
        dense = (dense,) * 2 if isinstance(dense, int) else tuple(dense)
        if len(filters) != CONVOLUTIONS or len(dense) != 2 or min(filters + dense) < 1:
            raise ModelError(f"filters {filters}, dense {dense}: give one number, or seven and two, all above zero")
        if samples < 1 or samples % 2**CONVOLUTIONS:
            raise ModelError(f"samples {samples}: choose a multiple of {2**CONVOLUTIONS}, it is halved seven times")
        self.samples, self.pool_first = samples, pool_first
        written, read = per_layer(bits), per_layer(bits if activation_bits is None else activation_bits)
        widths = [
            {"weight_bits": of_weight, "input_bits": of_input, "learned_step": learned_steps}
            for of_weight, of_input in zip(written, read, strict=True)
        ]
        self.input = QuantInput(read[0])
        self.features = nn.ModuleList()
        for i, (before, after) in enumerate(zip((2, *filters), filters, strict=False)):
            conv = QuantConv2d(before, after, (1, 3), padding=(0, 1), bias=False, **widths[i])
            self.features.append(Block(conv, nn.BatchNorm2d(after), read[i + 1], pool=True))
        self.dense = nn.ModuleList()
        channels = (filters[-1] * samples // 2**CONVOLUTIONS, *dense)
        for i, (before, after) in enumerate(zip(channels, dense, strict=False), CONVOLUTIONS):
            linear = QuantLinear(before, after, bias=False, **widths[i])
            self.dense.append(Block(linear, nn.BatchNorm1d(after), read[i + 1], pool=False))
        self.output = QuantLinear(dense[-1], num_classes, **widths[-1])
        for block in self.features:
            block.pool_first = pool_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 3 or x.shape[1] != 2 or x.shape[2] != self.samples:
            raise ModelError(f"input of shape {tuple(x.shape)}: expected (N, 2, {self.samples}), I and Q")
        # Channels last is faster; evaluation keeps the order of additions that Brevitas has.
        order = torch.channels_last if self.training else torch.contiguous_format
        x = self.input(x).unsqueeze(2).contiguous(memory_format=order)  # (N, 2, 1, L)
        for block in self.features:
            x = block(x)  # (N, filters, 1, L / 2), ... , (N, filters, 1, L / 128)
        x = self.dense[0](x.flatten(1))  # (N, filters * L / 128), channel by channel
        x, scale = self.dense[1].with_scale(x)  # (N, dense)
        return self.output(x, scale).float()

    @property
    def bits(self) -> Widths:
        """Width of the weights: one number if all layers have it, else ten."""
        return one_if_equal(tuple(layer.weight_bits for layer in self.layers().values()))

    @property
    def activation_bits(self) -> Widths:
        """Width of what the layers read, input first: one number if it is the same everywhere, else ten."""
        activations = [block.activation for block in (*self.features, *self.dense)]
        return one_if_equal((self.input.bits, *(activation.bits for activation in activations)))

    @property
    def learning(self) -> bool:
        """Whether all thresholds are past their initial steps; then a training step asks the GPU for no number."""
        return all(block.activation.learning for block in (*self.features, *self.dense))

    def learn_weight_steps(self) -> None:
        """Learn the weights' scales from now on (LSQ); their first values follow from the present weights."""
        for layer in self.layers().values():
            layer.learn_step()

    @torch.no_grad()
    def on_codes(self) -> "VGG10":
        """Put each weight on code * scale, in place; returns the network, which computes the same.

        Rounding the weights to float16 then changes no code. Of weights as training leaves them some lie between two
        codes; in a network of two and three bits such a change of 121 codes cost .009 of accuracy.
        """
        for layer in self.layers().values():
            layer.weight.copy_(layer.quantised_weight())
        return self

    def requantised(self, bits: Widths, activation_bits: Widths | None = None) -> "VGG10":
        """A copy of other bit widths with the same weights, norms and thresholds; it needs a little training.

        Args:
            bits, activation_bits: as VGG10 takes them.
        """
        widths = {"bits": bits, "activation_bits": bits if activation_bits is None else activation_bits}
        other = VGG10(**{**self.arguments(), **widths})
        other.load_state_dict(self.state_dict())
        for before, layer in zip(self.layers().values(), other.layers().values(), strict=True):
            if layer.weight_step is not None and layer.weight_bits != before.weight_bits:
                layer.learn_step()  # the step of another bit width doesn't fit
        return other

    def layers(self) -> dict[str, QuantConv2d | QuantLinear]:
        """The ten layers with weights by name, in the order of computation.

        Each has weight_bits, input_bits, weight_codes() and quantised_weight(), which utils/cost.py needs.
        """
        return {n: m for n, m in self.named_modules() if isinstance(m, (QuantConv2d, QuantLinear))}

    def weights(self) -> dict[str, nn.Parameter]:
        """The weight tensors of those layers by their names in the state dict."""
        return {f"{name}.weight": layer.weight for name, layer in self.layers().items()}

    def arguments(self) -> dict:
        """Plain values; VGG10(**arguments) has the present shapes, even after channels have been cut in place."""
        return {
            "bits": self.bits,
            "activation_bits": self.activation_bits,
            "filters": tuple(block.layer.weight.shape[0] for block in self.features),
            "dense": tuple(block.layer.weight.shape[0] for block in self.dense),
            "num_classes": self.output.weight.shape[0],
            "samples": self.samples,
            "learned_steps": self.output.weight_step is not None,
            "pool_first": self.pool_first,
        }


def per_layer(bits: Widths) -> tuple[int, ...]:
    """Ten widths, of one number (alone or in a list) or of ten.

    Raises:
        ModelError: another number of them. The layers check the widths themselves.
    """
    widths = tuple(bits) if isinstance(bits, (tuple, list)) else (bits,)
    widths = widths * LAYERS if len(widths) == 1 else widths
    if len(widths) != LAYERS:
        raise ModelError(f"{len(widths)} bit widths: give one number, or {LAYERS}, one for each layer")
    return widths


def one_if_equal(widths: tuple[int, ...]) -> Widths:
    """The inverse of `per_layer`."""
    return widths[0] if len(set(widths)) == 1 else widths


def key_map() -> dict[str, str]:
    """Name in the challenge's checkpoint: name here; 65 of each, so the map can be turned round.

    There everything is one nn.Sequential: input 0, then convolution, norm, activation, pool from 1 to 28, flatten 29,
    then dense layer, norm, activation from 30 to 35, and the last layer 36.
    """
    threshold = "act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value"
    blocks = {1 + 4 * i: f"features.{i}" for i in range(CONVOLUTIONS)} | {30 + 3 * i: f"dense.{i}" for i in range(2)}
    names = {"36.weight": "output.weight", "36.bias": "output.bias"}
    for first, block in blocks.items():
        names[f"{first}.weight"] = f"{block}.layer.weight"
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            names[f"{first + 1}.{key}"] = f"{block}.norm.{key}"
        names[f"{first + 2}.{threshold}"] = f"{block}.activation.threshold"
    return names


def from_brevitas(state: dict[str, torch.Tensor], bits: Widths = 8, activation_bits: Widths | None = None) -> VGG10:
    """The network of a checkpoint of the challenge, in eval mode.

    Args:
        state: its 65 tensors; of any width, number of filters and classes.
        bits: the checkpoint doesn't hold it: 8 for pretrained_VGG10_w8a8_20.pth.
        activation_bits: where it differs from the weights'.

    Raises:
        ModelError: other keys or shapes.
    """
    names = key_map()
    if odd := sorted(names.keys() ^ state.keys(), key=str):
        where = "missing" if odd[0] in names else "unknown"
        raise ModelError(f"not a VGG10 checkpoint of the challenge: {len(odd)} keys differ, {odd[0]!r} is {where}")
    weights = [state[key] for key, name in names.items() if name.endswith("layer.weight")]
    try:
        sizes = {
            "filters": tuple(len(weight) for weight in weights[:CONVOLUTIONS]),
            "dense": tuple(len(weight) for weight in weights[CONVOLUTIONS:]),
            "num_classes": len(state["36.weight"]),
            "samples": weights[CONVOLUTIONS].shape[1] // len(weights[CONVOLUTIONS - 1]) * 2**CONVOLUTIONS,
        }
    except (IndexError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ModelError(f"not a VGG10 checkpoint of the challenge: a tensor has the wrong shape ({error})") from error
    with torch.device("meta"):  # takes no memory, whatever a damaged file claims
        expected = VGG10(bits, activation_bits, **sizes).state_dict()
    wide = {}
    for key, name in names.items():
        tensor = state[key]
        wide[name] = tensor.unsqueeze(2) if getattr(tensor, "ndim", 0) == 3 else tensor  # (O, I, 3) -> (O, I, 1, 3)
        check_tensor(key, wide[name], expected[name], expected[name].shape)
    model = VGG10(bits, activation_bits, **sizes)
    own = model.state_dict() | wide
    for name in own:
        if name.endswith("activation.steps"):
            own[name] = torch.tensor(QuantReLU().initial_steps)  # a stored threshold is a learned one
    model.load_state_dict(own)
    return model.eval()


def from_checkpoint(data: dict, bits: int = 8) -> VGG10:
    """The network of a loaded file of this repository or of the challenge.

    Args:
        data: models.rebuild.describe and "kind": "modulation", or the challenge's 65 tensors.
        bits: for the challenge's files, which don't hold it.

    Raises:
        ModelError: neither of them.
    """
    if "kind" not in data:
        return from_brevitas(data, bits)
    if data["kind"] != "modulation":
        raise ModelError(f"a {data['kind']} network, not a modulation network; name a file that holds a VGG10")
    network = rebuild(data)
    if not isinstance(network, VGG10):
        raise ModelError(f"{data['factory']} is no modulation network; name a file that holds a VGG10")
    return network


def to_checkpoint(model: VGG10) -> dict:
    """Tensors and plain values from which `from_checkpoint` makes an equal network, pruned or not."""
    return describe(model, "models.vgg10.VGG10", model.arguments()) | {"kind": "modulation"}


def to_brevitas(model: VGG10) -> dict[str, torch.Tensor]:
    """The inverse of `from_brevitas`: 65 tensors under the challenge's names, copies.

    Raises:
        ModelError: learned weight steps, for which the challenge's network has no place.
    """
    if model.arguments()["learned_steps"]:
        raise ModelError("learned weight steps have no place in a Brevitas checkpoint of the challenge")
    own = model.state_dict()
    state = {key: own[name].clone() for key, name in key_map().items()}
    return {key: tensor.squeeze(2) if tensor.dim() == 4 else tensor for key, tensor in state.items()}
