"""A trained network as a file that runs without the code that built it: torch.export's .pt2, or ONNX.

Segmentation networks, in float:

    model = Deployed(network, mean, std).eval()
    light = fold_batch_norm(streamline(model, images), images)    # copies that compute the same, faster
    export(light, images, "student.onnx")                    # any batch size, height and width of `images`
    logits = load_exported("student.onnx")(images)
    wrong, ties = different_labels(model, logits, images)

A quantised VGG10 (models/vgg10.py), with integer weights and their scales:

    export_integer_onnx(network, "fmp.onnx")    # input "frames" float (N, 2, samples), output "logits" float (N, 24)
    logits = run_integer_onnx("fmp.onnx", frames)
    wrong = different_answers(network, "fmp.onnx", frames)

Needs torch, and cost.py and runs.py beside it; .onnx files need the packages onnx, onnxscript and onnxruntime.
"""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from utils import runs
from utils.cost import latency

Predict = Callable[[torch.Tensor], torch.Tensor]  # images (N, ...) -> logits float (N, C, H, W)


class ExportError(ValueError):
    """A network that can't be exported as asked; the message names the fault and the remedy."""


class Deployed(nn.Module):
    """A network with the normalisation of its input: pictures uint8 (N, 3, H, W) -> logits float (N, C, H, W).

    Args:
        network: takes (picture / 255 - mean) / std and gives {"out": logits}.
        mean, std: one number for each of the three colours.
    """

    def __init__(self, network: nn.Module, mean: tuple, std: tuple):
        super().__init__()
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))  # (3, 1, 1)
        self.network = network
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", -mean / std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.float() * self.scale + self.shift)["out"]


class Streamlined(nn.Module):
    """What `streamline` makes of a Deployed network: for pictures of one size, uint8 (N, 3, H, W) -> (N, C, H, W)."""

    def __init__(self, network: nn.Module, mean: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor):
        super().__init__()
        self.network = network  # its first convolution divides by the deviation
        self.register_buffer("mean", mean)  # (3, 1, 1), of values in 0..255
        self.register_buffer("rows", rows)  # (H, h), bilinear enlargement along one axis
        self.register_buffer("columns", columns)  # (w, W)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.network.backbone(images.float() - self.mean)
        coarse = self.network.classifier(features["out"] if "out" in features else features)  # (N, C, h, w)
        return self.rows @ coarse @ self.columns


@torch.no_grad()
def streamline(model: Deployed, images: torch.Tensor) -> Streamlined:
    """A copy in evaluation mode that computes the same with operations that inference engines have fast code for.

    Two matrix products replace the last enlargement, and average pooling of a known size replaces pooling to one pixel.
    The first convolution also divides by the standard deviation.

    Args:
        model: around one of torchvision's segmentation networks, which enlarge their classifier's logits.
        images: as the model takes them; the copy is for their height and width.

    Raises:
        ExportError: outputs differ.
    """
    network, coarse, pooled = copy.deepcopy(model.network).eval(), [], {}
    hooks = [network.classifier.register_forward_hook(lambda _, inputs, output: coarse.append(output.shape[2:]))]
    for layer in network.modules():
        if isinstance(layer, nn.AdaptiveAvgPool2d) and layer.output_size in (1, (1, 1)):
            hooks.append(layer.register_forward_pre_hook(lambda pool, x: pooled.update({pool: x[0].shape[2:]})))
    network(images.float() * model.scale + model.shift)
    for hook in hooks:
        hook.remove()
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in pooled:
                setattr(parent, name, nn.AvgPool2d(tuple(pooled[child])))
    first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    first.weight = nn.Parameter(first.weight * model.scale)  # (out, 3, kh, kw) by (3, 1, 1)
    rows, columns = (_enlargement(n, big) for n, big in zip(coarse[0], images.shape[2:], strict=True))
    light = Streamlined(network, -model.shift / model.scale, rows, columns.T).eval()
    _check_same(model(images), light(images), "the network can't be streamlined")
    return light


def _enlargement(small: int, large: int) -> torch.Tensor:
    """Bilinear enlargement of a line of pixels as a matrix, float (large, small)."""
    return F.interpolate(torch.eye(small)[None, None], (large, small), mode="bilinear", align_corners=False)[0, 0]


def _check_same(before: torch.Tensor, after: torch.Tensor, otherwise: str, tolerance: float = 1e-4) -> None:
    """Raises ExportError if outputs differ by more than `tolerance` of the largest."""
    error, largest = (after - before).abs().max().item(), before.abs().max().item()
    if not error <= tolerance * max(1.0, largest):
        raise ExportError(f"{otherwise}: outputs differ by {error:g} of {largest:g}")


@torch.no_grad()
def fold_batch_norm(model: nn.Module, images: torch.Tensor, tolerance: float = 1e-4) -> nn.Module:
    """A copy in evaluation mode in which batch norms are folded into the convolutions directly before them.

    The model runs on `images` to see which layers belong together. Afterwards both must give the same.

    Args:
        model: images -> logits, a tensor.
        images: any input that the model takes.
        tolerance: of the outputs, relative to the largest one.

    Raises:
        ExportError: the outputs differ, as where a convolution's result is also used without its batch norm.
    """
    folded = copy.deepcopy(model).eval()
    before = copy.deepcopy(model).eval()(images)
    outputs, pairs, hooks = [], [], []  # `outputs` keeps tensors alive, so that no identity is given out twice

    def remember(layer, inputs, output):
        outputs.append((layer, output))

    def look_up(norm, inputs):
        pairs.extend((layer, norm) for layer, output in outputs if output is inputs[0])

    for layer in folded.modules():
        if isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_hook(remember))
        elif isinstance(layer, nn.BatchNorm2d):
            hooks.append(layer.register_forward_pre_hook(look_up))
    folded(images)
    for hook in hooks:
        hook.remove()
    for convolution, norm in pairs:
        statistics_ = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        convolution.weight, convolution.bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics_)
    absorbed = {id(norm) for _, norm in pairs}
    for parent in list(folded.modules()):
        for name, child in parent.named_children():
            if id(child) in absorbed:
                setattr(parent, name, nn.Identity())
    _check_same(before, folded(images), "batch norms can't be folded into this network", tolerance)
    return folded


def export(model: nn.Module, images: torch.Tensor, path: str | Path) -> None:
    """Write a network for inputs like `images`, with any number of them, as FILE.pt2 or FILE.onnx; whole or not at all.

    Raises:
        ExportError: another suffix, the packages for .onnx are missing, or the file can't be written.
    """
    path = Path(path)
    images = images[:1].repeat(2, *[1] * (images.dim() - 1))  # a batch of one would be taken for a constant
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    if path.suffix == ".pt2":
        with torch.no_grad():
            program = torch.export.export(model.eval(), (images,), dynamic_shapes=shapes)
        _write(path, lambda file: torch.export.save(program, file))
    elif path.suffix == ".onnx":
        _need("onnx", "onnxscript", "onnxruntime")
        program = torch.onnx.export(
            model.eval(), (images,), dynamo=True, dynamic_shapes=shapes, verbose=False,
            input_names=["images"], output_names=["logits"],
        )  # fmt: skip
        _write(path, lambda file: file.write(program.model_proto.SerializeToString()))
    else:
        raise ExportError(f"{path}: choose a name that ends in .pt2 or .onnx")


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """runs.write_whole with an error of this module; what kills left of earlier exports to `path` goes first."""
    try:
        for left in path.parent.iterdir() if path.parent.is_dir() else ():
            if left.name.startswith(f".{path.name}.") and runs.LEFT_BEHIND.fullmatch(left.name):
                left.unlink()
        runs.write_whole(path, write)
    except OSError as error:
        raise ExportError(f"{path}: can't be written ({error.strerror or error}); choose another place") from error


def load_exported(path: str | Path) -> Predict:
    """The network of `export` as a function; .onnx files run in ONNX Runtime with as many threads as torch has."""
    path = Path(path)
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@torch.no_grad()
def different_labels(original: Predict, other: Predict, images: torch.Tensor, tie: float = 1e-3) -> tuple[int, int]:
    """Pixels to which two networks give different classes, and how many more of them are ties.

    A tie is a pixel whose two best logits differ by less than `tie` in the original: rounding may decide there.
    Images go in batches of 1, 2, 3, ..., so a fixed batch size would be noticed.
    """
    wrong = ties = start = 0
    for size in range(1, len(images) + 1):
        batch = images[start : start + size]
        if not len(batch):
            break
        start += size
        ours, theirs = original(batch), other(batch)  # (B, C, H, W)
        best = ours.topk(2, 1).values
        close = best[:, 0] - best[:, 1] < tie
        different = ours.argmax(1) != theirs.argmax(1)
        wrong, ties = wrong + int((different & ~close).sum()), ties + int((different & close).sum())
    return wrong, ties


def export_and_compare(
    model: nn.Module,
    light: nn.Module,
    images: torch.Tensor,
    path: str | Path,
    others: dict[str, Predict],
    runs: int = 30,
) -> dict:
    """Export, read back, and compare with the model: labels on all images, speed on the first.

    Args:
        model: images -> logits (N, C, H, W).
        light: the same function after `streamline` and `fold_batch_norm`; the file holds this one.
        images: (N, ...).
        path: FILE.pt2 or FILE.onnx.
        others: to be timed as well; ratios refer to the first of them.
        runs: timed calls of each.

    Returns:
        Plain values: {"file", "bytes", "images", "pixels", "different", "different_ties", "latency"}.

    Raises:
        ExportError: as `export`, or more than one pixel of 100,000 got another label that is no tie.
    """
    path = Path(path)
    export(light, images, path)
    exported = load_exported(path)
    wrong, ties = different_labels(model, exported, images)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    networks = others | {"this one, eager": model, "this one, channels_last": last, path.name: exported}
    times = latency(networks, images[:1], threads=torch.get_num_threads(), runs=runs, channels_last=False)
    pixels = len(images) * model(images[:1])[0, 0].numel()
    if wrong > 1e-5 * pixels:
        raise ExportError(f"{path} labels {wrong} of {pixels} pixels differently: don't use it")
    times.pop("conditions")
    facts = {"file": path.name, "bytes": path.stat().st_size, "images": len(images), "pixels": pixels}
    return facts | {"different": wrong, "different_ties": ties, "latency": times}


def _need(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f".onnx needs {', '.join(missing)}: pip install onnx onnxscript onnxruntime, or choose .pt2")


# ---- a quantised VGG10 with integer weights -------------------------------------------------------------------------
# Every weight lies in the file as int8 codes with one scale (DequantizeLinear), the last bias as int32; a value between
# layers is round(clip(x / scale)) * scale, as in training. ONNX Runtime adds in another order than PyTorch: logits
# differ in their last digits, and where a value lies on the edge of two codes by a step.

TINY = 1e-10  # least threshold, as in models/fake_quant.py: a layer whose output died gives zeros, not NaN


class _Graph:
    """Nodes and constants of a graph that grows by one operation after the other."""

    def __init__(self):
        from onnx import helper, numpy_helper

        self.helper, self.to_proto = helper, numpy_helper.from_array
        self.nodes, self.constants = [], []

    def constant(self, value: Tensor | float) -> str:
        name = f"c{len(self.constants)}"
        tensor = torch.as_tensor(value, dtype=torch.float32 if isinstance(value, float) else None)
        self.constants.append(self.to_proto(tensor.detach().cpu().numpy(), name))
        return name

    def add(self, operation: str, *inputs: str, **attributes) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def quantise(self, x: str, scale: float, low: float, high: float) -> str:
        scale = self.constant(float(scale))
        x = self.add("Clip", self.add("Div", x, scale), self.constant(float(low)), self.constant(float(high)))
        return self.add("Mul", self.add("Round", x), scale)  # Round is half to even, as torch.round

    def layer(self, x: str, layer: nn.Module, input_scale: float) -> str:
        """Convolution (N, C, 1, L) or dense layer (N, C) with weights from integer codes."""
        weight_scale = float(layer.weight_scale())
        weight = self.add("DequantizeLinear", self.constant(layer.weight_codes()), self.constant(weight_scale))
        if layer.weight.dim() > 2:
            return self.add("Conv", x, weight, pads=[0, 1, 0, 1], kernel_shape=list(layer.kernel_size))
        if layer.bias is None:
            return self.add("Gemm", x, weight, transB=1)
        scale = input_scale * weight_scale
        codes = self.constant(torch.round(layer.bias.detach() / scale).to(torch.int32))
        return self.add("Gemm", x, weight, self.add("DequantizeLinear", codes, self.constant(scale)), transB=1)

    def norm(self, x: str, norm: nn.Module) -> str:
        parts = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return self.add("BatchNormalization", x, *map(self.constant, parts), epsilon=norm.eps)


@torch.no_grad()
def export_integer_onnx(network: nn.Module, path: str | Path) -> None:
    """Write a VGG10 (models/vgg10.py), pruned or not; the file is there whole or not at all.

    Raises:
        ExportError: onnx is missing, or the file can't be written.
    """
    _need("onnx")
    import onnx
    from onnx import TensorProto

    graph, n = _Graph(), 2 ** (network.input.bits - 1)
    x, scale = graph.quantise("frames", network.input.scale, -n, n - 1), network.input.scale
    x = graph.add("Unsqueeze", x, graph.constant(torch.tensor([2])))  # (N, 2, 1, L)
    for number, block in enumerate([*network.features, *network.dense]):
        if number == len(network.features):
            x = graph.add("Flatten", x)  # (N, C * L / 128)
        top = 2**block.activation.bits - 1
        x = graph.norm(graph.layer(x, block.layer, scale), block.norm)
        scale = float(block.activation.threshold.abs().clamp(min=TINY)) / top
        x = graph.quantise(x, scale, 0, top)
        if block.pool:
            x = graph.add("MaxPool", x, kernel_shape=[1, 2], strides=[1, 2])
    x = graph.add("Identity", graph.layer(x, network.output, scale))
    graph.nodes[-1].output[0] = "logits"
    shapes = [("frames", ["N", 2, network.samples]), ("logits", ["N", network.output.weight.shape[0]])]
    frames, logits = (graph.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes)
    whole = graph.helper.make_graph(graph.nodes, "vgg10", [frames], [logits], graph.constants)
    model = graph.helper.make_model(whole, opset_imports=[graph.helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    _write(Path(path), lambda file: file.write(model.SerializeToString()))


def run_integer_onnx(path: str | Path, frames: Tensor) -> Tensor:
    """Logits (N, 24) of frames float32 (N, 2, samples), by ONNX Runtime with one thread.

    Raises:
        ExportError: onnxruntime is missing.
    """
    _need("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"frames": frames.contiguous().numpy()})[0])


@torch.no_grad()
def different_answers(network: nn.Module, path: str | Path, frames: Tensor) -> int:
    """How many of the frames float32 (N, 2, samples) get another label from the file than from the network."""
    return int((run_integer_onnx(path, frames).argmax(1) != network(frames).argmax(1)).sum())
