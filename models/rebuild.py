"""A network as plain data, and back: what a checkpoint of any torchvision model holds, pruned or not.

    data = describe(model, "torchvision.models.resnet50", {"num_classes": 10})
    torch.save(data, "model.pt")                                        # tensors and plain values only
    model = rebuild(torch.load("model.pt", weights_only=True))          # no pruner, no pickled classes

The file names the function that builds the network (its factory) and the arguments. `rebuild` calls this function
without any pretrained weights, gives every layer the sizes that were stored, and loads the tensors. So it restores a
network whose channels were cut, by whatever tool. Before it builds anything that takes memory, `check` compares all of
the file with the network as it would be: names, types, shapes, layers' sizes, finite numbers.
Needs torch, torchvision for its models, and ModelError of models/__init__.py.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable

import torch
from torch import nn

from models import ModelError

LIBRARY_CLASSES = {"BertModel", "ConvNextModel", "DetrModel", "MobileViTModel", "SegformerForSemanticSegmentation",
                   "SegformerModel", "T5Model", "ViTForImageClassification", "ViTModel", "Wav2Vec2Model",
                   "WhisperModel"}  # of transformers; a file can name no other  # fmt: skip
FACTORIES: dict[str, Callable[..., nn.Module]] = {}  # networks of this package; @register fills it


def register(function: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator: checkpoints may then name a function of models/<file>.py as "models.<file>.<function>"."""
    FACTORIES[f"{function.__module__}.{function.__qualname__}"] = function
    return function


def find_factory(name: str) -> Callable[..., nn.Module]:
    """The function that builds a network.

    Args:
        name: "torchvision.models.resnet50", "torchvision.models.segmentation.lraspp_mobilenet_v3_large" (only the last
            part counts: torchvision's own register is asked, so no other code can be named), "timm.<model>" of timm's
            register, "transformers.<class>" of LIBRARY_CLASSES with the arguments of its configuration, or
            "models.<file>.<function>" for a function marked with `register`.

    Raises:
        ModelError: the name is none of these, or its library is not installed.
    """
    if not isinstance(name, str):
        raise ModelError(f"a {type(name).__name__} names no network: name torchvision.models.<name>")
    first, _, rest = name.partition(".")
    file = rest.partition(".")[0]
    if name not in FACTORIES and first == "models" and file.isidentifier():
        if importlib.util.find_spec(f"models.{file}") is not None:
            importlib.import_module(f"models.{file}")  # a file of this package; importing it registers its functions
    if name in FACTORIES:
        return FACTORIES[name]
    if first == "torchvision":
        from torchvision.models import get_model_builder

        try:
            return get_model_builder(name.rpartition(".")[2])
        except ValueError as error:
            raise ModelError(f"torchvision has no model {name!r}: list_models() names those it has") from error
    if first in ("timm", "transformers"):
        return _library_factory(first, rest)
    raise ModelError(f"unknown network {name!r}: name torchvision.models.<name>, or register it in models/rebuild.py")


def _library_factory(library: str, name: str) -> Callable[..., nn.Module]:
    """The factory of a network of timm's register, or of a class of transformers that is on the list."""
    if importlib.util.find_spec(library) is None:
        raise ModelError(f"the network {library}.{name} needs {library}: pip install {library}")
    module = importlib.import_module(library)
    if library == "timm":
        if not module.is_model(name):
            raise ModelError(f"timm has no model {name!r}: timm.list_models() names those it has")
        return lambda **arguments: module.create_model(name, **{**arguments, "pretrained": False})
    if name not in LIBRARY_CLASSES:
        raise ModelError(f"transformers.{name} is not on the list of networks in models/rebuild.py: add it there")

    def make(**arguments) -> nn.Module:
        model = getattr(module, name)
        return model(model.config_class(**arguments))

    return make


def build(factory: str, arguments: dict) -> nn.Module:
    """Call a factory without pretrained weights. Nothing is downloaded, and torch's random state stays as it was."""
    function = find_factory(factory)
    accepted = inspect.signature(function).parameters
    without = {name: None for name in ("weights", "weights_backbone") if name in accepted}
    try:
        with torch.random.fork_rng(devices=[]):  # initial values are overwritten: a load must not shift later draws
            return function(**{**arguments, **without})
    except ModelError:
        raise
    except Exception as error:  # of a factory's own code, which may raise anything where an argument is odd
        text = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ModelError(f"{factory} can't be built with {str(arguments)[:200]}: {text}") from error


def describe(model: nn.Module, factory: str, arguments: dict) -> dict:
    """All that `rebuild` needs, as tensors and plain values.

    Args:
        model: a network that the factory built; its layers may have been shrunk in place since.
        factory: a name for `find_factory`.
        arguments: keyword arguments of the factory, plain values.

    Returns:
        {"factory", "arguments", "shapes": {tensor: list of sizes} where they differ from the factory's network,
        "attributes": {layer: {attribute: plain value}} where they differ (in_channels, groups, kernel_size, momentum),
        "state_dict"}. The tensors are the model's own, not copies.

    Raises:
        ModelError: the model has other layers than the factory's network.
    """
    original_shapes, original_attributes = _as_built(factory, arguments)
    layers, state = dict(model.named_modules()), model.state_dict()
    odd = sorted(layers.keys() ^ original_attributes.keys()) or sorted(state.keys() ^ original_shapes.keys())
    if odd:
        raise ModelError(f"the model is not what {factory} builds ({odd[0]!r}): give the factory's real arguments")
    shapes = {n: list(tensor.shape) for n, tensor in state.items() if list(tensor.shape) != original_shapes[n]}
    attributes = {}
    for name, layer in layers.items():
        before, now = original_attributes[name], _plain_attributes(layer)
        changed = {key: value for key, value in now.items() if key in before and before[key] != value}
        if changed:
            attributes[name] = changed
    return {
        "factory": factory,
        "arguments": dict(arguments),
        "shapes": shapes,
        "attributes": attributes,
        "state_dict": dict(state),
    }


def rebuild(data: dict) -> nn.Module:
    """The network that `describe` described, in train mode on the CPU; float32 unless all of the file is float64.

    Args:
        data: result of `describe`, other keys are ignored.

    Raises:
        ModelError: a key is missing, or tensors, shapes and layers don't belong together.
    """
    check(data)
    model, state = build(data["factory"], data["arguments"]), data["state_dict"]
    layers = dict(model.named_modules())
    for name, changed in data["attributes"].items():
        for key, value in changed.items():
            setattr(layers[name], key, value)
    _resize(layers, data["shapes"], state)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():  # shares memory with the model
            tensor.copy_(state[name])
    return model


def check(data: dict) -> None:
    """Compare a file with the network that `rebuild` would make of it, which is built without memory for its tensors.

    Networks of timm and transformers are built with memory: their code needs it.

    Raises:
        ModelError: a key is missing or of another type, the factory refuses the arguments, or tensors, shapes and
            layers don't belong together, or a number is not finite.
    """
    parts = {"factory": str, "arguments": dict, "shapes": dict, "attributes": dict, "state_dict": dict}
    if missing := [key for key in parts if key not in data]:
        raise ModelError(f"not a saved network: {', '.join(missing)} missing; save it with models.rebuild.describe")
    for key, kind in parts.items():
        if not isinstance(data[key], kind) or (kind is dict and not all(isinstance(name, str) for name in data[key])):
            raise ModelError(f"not a saved network: {key} is damaged; save it with models.rebuild.describe")
    factory, state, shapes = data["factory"], data["state_dict"], data["shapes"]
    model = _skeleton(factory, data["arguments"])
    own = model.state_dict()
    if odd := sorted(own.keys() ^ state.keys()):
        raise ModelError(f"tensor {odd[0]!r} belongs to the file or to {factory}, not to both")
    for name, shape in shapes.items():
        held = list(state[name].shape) if isinstance(state.get(name), torch.Tensor) else None
        if held is None or not isinstance(shape, (list, tuple)) or not _are(shape, held):
            raise ModelError(f"tensor {name!r} isn't {str(shape)[:80]} as the file states: the file is damaged")
    for name, tensor in state.items():
        check_tensor(name, tensor, own[name], own[name].dim() if name in shapes else own[name].shape)
    layers = dict(model.named_modules())
    for name, changed in data["attributes"].items():
        if name not in layers or not isinstance(changed, dict):
            raise ModelError(f"{factory} has no layer {name!r}: the file belongs to another version")
        _check_attributes(name, layers[name], changed, state)
    for name, layer in layers.items():
        _check_vectors(name, layer, state)


def check_tensor(name: str, tensor, own: torch.Tensor, shape: torch.Size | int) -> None:
    """ModelError unless a stored tensor can take the place of a network's `own`: type, shape, finite numbers.

    Args:
        shape: that it has, or how many dimensions, each 1 or more.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
        raise ModelError(f"tensor {name!r} is no tensor: the file is damaged")
    if tensor.dim() != shape if isinstance(shape, int) else tensor.shape != shape:
        wanted = f"of {shape} dimensions" if isinstance(shape, int) else str(list(shape))
        raise ModelError(f"tensor {name!r} is {list(tensor.shape)}, not {wanted} as the network has it")
    floating = own.is_floating_point() and tensor.is_floating_point()
    if tensor.dtype != own.dtype and not floating:
        raise ModelError(f"tensor {name!r} is of type {tensor.dtype}, not {own.dtype}: the file is damaged")
    if 0 in tensor.shape and 0 not in own.shape:
        raise ModelError(f"tensor {name!r} is {list(tensor.shape)}: a layer without channels computes nothing")
    if not tensor.isfinite().all():
        raise ModelError(f"tensor {name!r} holds NaN or infinity: the training went wrong, or the file is damaged")
    if name.endswith(("running_var", "num_batches_tracked")) and tensor.numel() and tensor.min() < 0:
        raise ModelError(f"tensor {name!r} is below 0: the file is damaged")


def _skeleton(factory: str, arguments: dict) -> nn.Module:
    """The network of a factory without memory for its tensors, where its code can do without."""
    if factory.startswith(("timm.", "transformers.")):
        return build(factory, arguments)
    try:
        with torch.device("meta"):
            return build(factory, arguments)
    except ModelError:  # some read the numbers that they were initialised with, as torchvision's RegNet
        return build(factory, arguments)


def _check_attributes(name: str, layer: nn.Module, changed: dict, state: dict) -> None:
    """ModelError unless a layer can have such attributes. `layer` gets them: it is of a skeleton."""
    before, weight = _plain_attributes(layer), state.get(f"{name}.weight" if name else "weight")
    if odd := [key for key in changed if key not in before]:
        raise ModelError(f"{type(layer).__name__} has no {name}.{odd[0]}: the file belongs to another version")
    if isinstance(changed.get("groups"), int):
        layer.groups = changed["groups"]
    sizes = {} if weight is None else _sizes(layer, list(weight.shape))
    for key, value in changed.items():
        if key in sizes:
            possible = _are(value if isinstance(value, (list, tuple)) else [value], sizes[key])
        else:
            possible = _possible(value, before[key], 0 if key == "padding" else 1)
        if not possible:
            raise ModelError(f"{name}.{key} can't be {str(value)[:80]!r}: the file is damaged")
        setattr(layer, key, value)


def _are(values: list | tuple, sizes: list[int]) -> bool:
    """Whether values, which may be anything, are these whole numbers: a tensor can't be compared with one."""
    return all(type(value) is int for value in values) and list(values) == sizes


def _sizes(layer: nn.Module, shape: list[int]) -> dict[str, list[int]]:
    """Attributes of a layer that repeat the shape of its weight. A pruner may leave them as they were."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        inner = [shape[1] * layer.groups]
        ends = {"in_channels": shape[:1], "out_channels": inner} if layer.transposed else {"in_channels": inner}
        return {"out_channels": shape[:1], "kernel_size": shape[2:]} | ends
    if isinstance(layer, nn.Linear):
        return {"in_features": shape[1:], "out_features": shape[:1]}
    if isinstance(layer, nn.Embedding):
        return {"num_embeddings": shape[:1], "embedding_dim": shape[1:]}
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return {"num_features": shape}
    return {"normalized_shape": shape, "num_channels": shape} if isinstance(layer, (nn.LayerNorm, nn.GroupNorm)) else {}


def _possible(value, before, least: int) -> bool:
    """Whether an attribute that the factory makes `before` can be `value` in a network whose layers were cut.

    Whole numbers (groups, strides, padding, bits, heads) only fall, to `least` if they were above 0. Shares, rates and
    epsilons are finite and not below 0. Texts stay.
    """
    if isinstance(before, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(before)
        return same and all(_possible(a, b, least) for a, b in zip(value, before, strict=True))
    if isinstance(before, (bool, str)):
        return type(value) is type(before) and (isinstance(before, bool) or value == before)
    if isinstance(before, int):
        return type(value) is int and min(least, before) <= value <= before
    if value is None:
        return True
    top = 1.0 if before is None else max(1.0, abs(before))  # a momentum of None is a plain mean
    return type(value) in (int, float) and (0 if (before or 0) >= 0 else -top) <= value <= top


def _check_vectors(name: str, layer: nn.Module, state: dict) -> None:
    """ModelError unless a layer's bias and statistics have as many numbers as it has channels, and groups divide it."""
    weight = state.get(f"{name}.weight" if name else "weight")
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    if weight is None or not isinstance(layer, kinds):
        return
    groups, channels = getattr(layer, "groups", getattr(layer, "num_groups", 1)), len(weight)
    if getattr(layer, "transposed", False):
        channels = weight.shape[1] * groups
    vectors = [state.get(f"{name}.{part}") for part in ("bias", "running_mean", "running_var")]
    if groups < 1 or channels % groups or any(len(vector) != channels for vector in vectors if vector is not None):
        raise ModelError(f"{name or 'a layer'}: {channels} channels don't fit its groups or bias: the file is damaged")


def _as_built(factory: str, arguments: dict) -> tuple[dict, dict]:
    """Shape of every tensor and plain attributes of every layer; remembered, because training saves often."""
    key = f"{factory} {sorted(arguments.items())}"
    if key not in _BUILT:
        model = build(factory, arguments)
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        _BUILT[key] = shapes, {name: _plain_attributes(layer) for name, layer in model.named_modules()}
    return _BUILT[key]


_BUILT: dict[str, tuple[dict, dict]] = {}


def _resize(layers: dict[str, nn.Module], shapes: dict, state: dict) -> None:
    """Put an empty tensor of the stored shape in place of every one that differs; tied ones stay tied.

    The network is float64 if all of the file is; else each tensor has the type that the factory gives it.
    """
    double = all(tensor.dtype == torch.float64 for tensor in state.values() if tensor.is_floating_point())
    renewed = {}
    for layer_name, layer in layers.items():
        for table in (layer._parameters, layer._buffers):
            for key, old in table.items():
                name = f"{layer_name}.{key}" if layer_name else key
                if old is None or name not in state:
                    continue
                stored = state[name]
                dtype = torch.float64 if double and old.is_floating_point() else old.dtype
                if name not in shapes and dtype == old.dtype:
                    continue
                if id(old) not in renewed:
                    empty = torch.empty(stored.shape, dtype=dtype)
                    new = nn.Parameter(empty, old.requires_grad) if isinstance(old, nn.Parameter) else empty
                    renewed[id(old)] = (new, old)  # keeping `old` alive keeps its id from being given out again
                table[key] = renewed[id(old)][0]


def _plain_attributes(layer: nn.Module) -> dict:
    """Public attributes that are numbers, strings, None, or tuples and lists of them; `training` is no property."""

    def plain(value) -> bool:
        if isinstance(value, (tuple, list)):
            return all(plain(item) for item in value)
        return value is None or isinstance(value, (bool, int, float, str))

    return {key: value for key, value in vars(layer).items() if key[0] != "_" and key != "training" and plain(value)}
