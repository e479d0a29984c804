"""A quantised VGG10 as an ONNX file with integer weights and their scales, for ONNX Runtime.

    export(network, "fmp.onnx")                 # input "frames" float (N, 2, samples), output "logits" float (N, 24)
    logits = run("fmp.onnx", frames)
    wrong = different_labels(network, "fmp.onnx", frames)

Every weight lies in the file as int8 codes with one scale (DequantizeLinear), the last bias as int32; a value between
layers is round(clip(x / scale)) * scale, as in training. ONNX Runtime adds in another order than PyTorch: logits differ
in their last digits, and where a value lies on the edge of two codes by a step. Needs torch; the packages onnx for
`export`, onnxruntime for `run`.
"""

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor, nn

TINY = 1e-10  # least threshold, as in models/fake_quant.py: a layer whose output died gives zeros, not NaN


class ExportError(ValueError):
    """A network that can't be exported; the message names the fault and the remedy."""


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ExportError(f"the package {package} is missing: pip install {package}")


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
def export(network: nn.Module, path: str | Path) -> None:
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
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    try:
        temporary.write_bytes(model.SerializeToString())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ExportError(f"{path}: can't be written ({error.strerror}); choose another folder") from error


def run(path: str | Path, frames: Tensor) -> Tensor:
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
def different_labels(network: nn.Module, path: str | Path, frames: Tensor) -> int:
    """How many of the frames float32 (N, 2, samples) the file names otherwise than the network; errors as `run`."""
    return int((run(path, frames).argmax(1) != network(frames).argmax(1)).sum())
