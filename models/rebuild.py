"""A network as plain data, and back: what a checkpoint of any torchvision model holds, pruned or not.

    data = describe(model, "torchvision.models.resnet50", {"num_classes": 10})
    torch.save(data, "model.pt")                                        # tensors and plain values only
    model = rebuild(torch.load("model.pt", weights_only=True))          # no pruner, no pickled classes

The file names the function that builds the network (its factory) and the arguments. `rebuild` calls this function
without any pretrained weights, gives every layer the sizes that were stored, and loads the tensors. So it restores a
network whose channels were cut, by whatever tool.
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
    except TypeError as error:
        raise ModelError(f"{factory} can't be built with {arguments}: {error}") from error


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
    """The network that `describe` described, in train mode on the CPU; half precision tensors become float32.

    Args:
        data: result of `describe`, other keys are ignored.

    Raises:
        ModelError: a key is missing, or tensors, shapes and layers don't belong together.
    """
    missing = [key for key in ("factory", "arguments", "shapes", "attributes", "state_dict") if key not in data]
    if missing:
        raise ModelError(f"not a saved network: {', '.join(missing)} missing; save it with models.rebuild.describe")
    model, state = build(data["factory"], data["arguments"]), data["state_dict"]
    odd = sorted(model.state_dict().keys() ^ state.keys())
    if odd:
        raise ModelError(f"tensor {odd[0]!r} belongs to the file or to {data['factory']}, not to both")
    for name, shape in data["shapes"].items():
        if name not in state or list(state[name].shape) != list(shape):
            raise ModelError(f"tensor {name!r} isn't {list(shape)} as the file states: the file is damaged")
    layers = dict(model.named_modules())
    for name, changed in data["attributes"].items():
        for key, value in changed.items():
            if name not in layers or key not in _plain_attributes(layers[name]):
                raise ModelError(f"{data['factory']} has no {name}.{key}: the file belongs to another version")
            setattr(layers[name], key, value)
    _resize(layers, data["shapes"], state)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():  # shares memory with the model
            if tensor.shape != state[name].shape:
                raise ModelError(f"tensor {name!r} is {list(state[name].shape)}, not {list(tensor.shape)} as stated")
            tensor.copy_(state[name])
    return model


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
    """Put an empty tensor of the stored shape and dtype in place of every one that differs; tied ones stay tied."""
    renewed = {}
    for layer_name, layer in layers.items():
        for table in (layer._parameters, layer._buffers):
            for key, old in table.items():
                name = f"{layer_name}.{key}" if layer_name else key
                if old is None or name not in state:
                    continue
                stored = state[name]
                dtype = old.dtype if stored.dtype in (torch.float16, torch.bfloat16) else stored.dtype
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
