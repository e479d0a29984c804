"""Checkpoints of tensors and plain values: written whole or not at all, read without running foreign code.

    save("runs/demo/last.pt", {"state_dict": model.state_dict(), "rng": rng_state(), "epoch": 3})
    data = load("runs/demo/last.pt")
    set_rng_state(data["rng"])

    python -m utils.checkpoint FILE.pt          # writes a checksum into a file that has none, and changes nothing else

Every file holds the SHA-256 of its tensors and values under "checksum"; `load` compares it, wherever the file has
travelled, and says on stderr that an older file has none. A file that is handed on also lies beside a JSON with the
SHA-256 of the whole file (`save_weights`). What may be in a file is told at its door: no value other than tensors and
plain ones, nothing larger than the file itself, no text or number that can't be one of ours; and `resumed` compares the
state of a training with what the training expects. Torch and runs.py only.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import math
import pickle
import random
import sys
import types
import typing
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from utils import runs

VALUES, DEPTH = 1_000_000, 32  # most values of a file, and how deep they may lie in each other
PLAIN = (bool, int, float, str, bytes, type(None))
BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
         "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8}  # of a number, by torch's name of the storage  # fmt: skip


def plain(value, name: str) -> str | None:
    """A form for `misfit`: what JSON can hold, with finite numbers."""
    fits = isinstance(value, (bool, int, str, type(None), list)) or type(value) is float and math.isfinite(value)
    if isinstance(value, dict):
        fits = all(type(key) is str for key in value)
    if not fits:
        return f"{name} holds {str(value)[:40]}"
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((fault for item in inner if (fault := plain(item, name))), None)


ABOUT = {  # what a file says of its network, as far as it does
    "kind": str,
    "classes": list[str],
    "frame_size": [range(8, 2049)] * 2,
    "seed": int,
    "command": str,
    "history": list[str],
    "epoch": int,
    "validation": (dict | float, plain),
    "class_weights_undone": float | None,
    "chosen_by": str,
}
NO_CHECKPOINT = "not a checkpoint of this repository, or damaged"


class CheckpointError(ValueError):
    """A checkpoint that can't be read or written; the message names the file, the fault and the remedy."""


def save(path: str | Path, data: dict) -> None:
    """Write a dictionary of tensors and plain values; at no moment does `path` hold half a file.

    Of several processes (torch.distributed) only the first one writes.

    Raises:
        CheckpointError: a value is neither tensor nor plain, or the disk refuses; a file at `path` stays as it was.
    """
    fault = _first_fault(data)
    if fault:
        raise CheckpointError(f"{path}: {fault}, convert it before saving")
    data = {**data, "checksum": checksum(data)}
    if runs.rank_and_world()[0] == 0:
        _write(Path(path), lambda file: torch.save(data, file))


def save_weights(path: str | Path, data: dict, facts: dict) -> None:
    """Write weights to be handed on: in half precision, and `facts` with the file's SHA-256 as JSON beside it.

    Args:
        path: FILE.pt; the JSON becomes FILE.json.
        data: has "state_dict", a dictionary of tensors; the other values are kept.
        facts: plain values for the JSON: figures, seed, command.
    """
    save_with_facts(Path(path), {**data, "state_dict": halve(data["state_dict"])}, facts)


def save_with_facts(path: Path, data: dict, facts: dict) -> None:
    """Write a checkpoint as it is, and `facts` with its name, size and SHA-256 as JSON beside it."""
    # The old JSON goes first: a kill in between leaves weights without a sum rather than with a wrong one.
    path.with_suffix(".json").unlink(missing_ok=True)
    save(path, data)
    facts = {**facts, "file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
    text = json.dumps(facts, indent=2) + "\n"
    _write(path.with_suffix(".json"), lambda file: file.write(text.encode()))


def halve(state_dict: dict) -> dict:
    """Matrices and kernels as float16. Vectors (biases, batch-norm statistics) stay: small, and of any range."""
    wide = {name for name, tensor in state_dict.items() if tensor.is_floating_point() and tensor.dim() > 1}
    return {name: tensor.half() if name in wide else tensor for name, tensor in state_dict.items()}


def load(
    path: str | Path, device: str | torch.device = "cpu", kind: str | None = None, form: dict | None = None
) -> dict:
    """Read a dictionary of tensors and plain values (weights_only=True), checked against FILE.json where that exists.

    A note on stderr says where a file holds no checksum.

    Args:
        path: of the file.
        device: where its tensors go.
        kind: which network it must hold, such as "segmentation"; its own "kind" says so.
        form: what it must hold beside the network, see `misfit`.

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, of another kind or form, or not what the JSON
            describes.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; train one, or name another file")
    _check_sum(path)
    data = _read(path)
    if "checksum" in data:
        if data.pop("checksum") != checksum(data):
            raise CheckpointError(f"{path}: damaged, its checksum is another; copy it anew, or name another file")
    else:
        print(f"note: {path} holds no checksum; python -m utils.checkpoint {path} adds one", file=sys.stderr)
    if kind and data.get("kind") != kind:
        found = data.get("kind", "other")
        raise CheckpointError(f"{path}: {found} network, not a {kind} network; name another file, or train one")
    about = {key: wish for key, wish in ABOUT.items() if key in data}
    if "kind" in data and (fault := misfit(data, about, "")):
        raise CheckpointError(f"{path}: {NO_CHECKPOINT} ({fault})")
    if fault := misfit(data, form or {}, ""):
        raise CheckpointError(f"{path}: not what such a run writes under this name ({fault}); choose another --out")
    return data if str(device) == "cpu" else _moved(data, device)


def checksum(data: dict) -> str:
    """Hexadecimal SHA-256 of all values: tensors by type, shape and numbers, on whatever device; others by their repr.

    Where a tensor lies in memory makes no difference, nor does the file's format.
    """
    digest = hashlib.sha256()

    def add(value) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, (dict, list, tuple)):
            digest.update(f"{'dict' if isinstance(value, dict) else type(value).__name__}{len(value)}".encode())
            for item in [part for pair in value.items() for part in pair] if isinstance(value, dict) else value:
                add(item)
        else:
            text = repr(value).encode("utf-8", "surrogatepass")
            digest.update(f"{len(text)} ".encode() + text)

    add(data)
    return digest.hexdigest()


def _read(path: Path) -> dict:
    """The dictionary that a file holds, before anything is known of its meaning."""
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                _check_records(file)
            elif file.seek(0, io.SEEK_END) > 2**30:
                raise ValueError("of the old format, and larger than 1 GB")
        data = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise CheckpointError(f"{path}: {NO_CHECKPOINT} (it asks for more memory than there is)") from None
    except Exception as error:  # torch's reader raises whatever a damaged file leads it to; this is its only call
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: {NO_CHECKPOINT} ({reason})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, not a checkpoint of this repository")
    fault = _first_fault(data)
    if fault:
        raise CheckpointError(f"{path}: {NO_CHECKPOINT} ({fault})")
    return data


def load_shared(path: str | Path, *args, **options) -> dict:
    """What the first process loads, in all of them: only its machine need have the run's folder. Arguments as `load`'s.

    RunError: see load.
    """
    return runs.first_process(lambda: load(path, *args, **options), CheckpointError)


def _check_records(file: typing.BinaryIO) -> None:
    """Before torch reads a file: the CRC of each of its records, which torch passes over, and what its tensors claim.

    ValueError, or zipfile's own error: a record is damaged, or packed, or a tensor claims more than the record holds.
    """
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
            raise ValueError("its records are compressed")
        damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the record {damaged} has another CRC")
        pickled = [name for name in records if name.endswith("/data.pkl")]
        if len(pickled) != 1:
            raise ValueError("it has no record data.pkl, or several")
        root = pickled[0].removesuffix("data.pkl")
        _Claims(archive.read(pickled[0]), {n.removeprefix(root): r.file_size for n, r in records.items()}).load()


class _Claims(pickle.Unpickler):
    """Goes through a file's values without making any: every class and function is an empty one."""

    def __init__(self, content: bytes, sizes: dict[str, int]):
        super().__init__(io.BytesIO(content))
        self.sizes = sizes

    def find_class(self, module: str, name: str):
        return type(name, (_Nothing,), {})

    def persistent_load(self, claim) -> "_Nothing":
        """A tensor's memory: ("storage", class, record, device, numbers)."""
        _, kind, record, _, numbers = claim
        width = BYTES.get(kind.__name__.removesuffix("Storage"), 1)
        if not 0 <= numbers * width <= self.sizes.get(f"data/{record}", -1):
            raise ValueError(f"a tensor claims more than its record {record} holds")
        return _Nothing()


class _Nothing(dict):
    """What stands for every object in a first look at a file."""

    def __init__(self, *_, **__):
        super().__init__()

    def __setstate__(self, _):
        pass


def _moved(value, device: str | torch.device):
    """The same values with all tensors on a device."""
    if isinstance(value, dict):
        return type(value)((key, _moved(item, device)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, device) for item in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value


# ---- the state of a training -----------------------------------------------------------------------------------------


def resumed(
    path: str | Path, wanted: bool, form: dict, rebuild: Callable[[dict], torch.nn.Module], kind: str | None = None
) -> dict | None:
    """What a run's last.pt holds, whole and fit to go on from; None if that isn't `wanted` or there is none.

    Of several processes the first one reads it for all.

    Args:
        path: of last.pt.
        wanted: whether the run is asked to go on (--resume).
        form: what the file holds beside the network, {key: form}, see `misfit`. Under "optimizer" it has the state of
            one optimizer over all parameters of the network; `form` needn't name it.
            Under "masks" of `form` are those of the network's weights().
        rebuild: makes the network of the file; its errors are the caller's.
        kind: of the network, as `load` takes it.

    Raises:
        CheckpointError: another file, such as best.pt under this name, or a damaged one.
    """
    return runs.first_process(lambda: _resumed(Path(path), wanted, form, rebuild, kind), CheckpointError)


def _resumed(path: Path, wanted: bool, form: dict, rebuild: Callable, kind: str | None) -> dict | None:
    if not wanted or not path.exists():
        return None
    data = load(path, kind=kind)
    optimizer = {"state": dict, "param_groups": list[dict]}
    if fault := misfit(data, {"optimizer": optimizer} | form, ""):
        raise CheckpointError(
            f"{path}: holds the state of another version, or of no training ({fault}); choose another --out"
        )
    network = rebuild(data)
    if "masks" in form and (fault := _masks_fault(data["masks"], network.weights())):
        raise CheckpointError(f"{path}: its masks are not of its network ({fault}); choose another --out")
    if "average" in form:
        shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
        if {key: tensor.shape for key, tensor in data["average"].items()} != shapes:
            raise CheckpointError(f"{path}: its moving average is not of its network; choose another --out")
    fault = _optimizer_fault(data["optimizer"], list(network.parameters()))
    if fault:
        raise CheckpointError(f"{path}: its optimizer is not of its network ({fault}); choose another --out")
    return data


def restored(kind: type, values: dict):
    """The dataclass that dataclasses.asdict made `values` of, and those within it; `load` has checked the values."""
    fields = {}
    for name, form in typing.get_type_hints(kind).items():
        inner = [one for one in _alternatives(form) if dataclasses.is_dataclass(one)]
        inner = [one for one in inner if isinstance(values[name], dict) and not misfit(values[name], one, name)]
        fields[name] = restored(inner[0], values[name]) if inner else values[name]
    return kind(**fields)


def misfit(value, form, name: str) -> str | None:
    """What is wrong with a value, or None.

    Args:
        value: plain, or a tensor.
        form: int is a whole number, 0 or more; float a finite number; bool, str, dict; torch.Tensor one of finite
            numbers; range(a, b) a whole number in it; list[form] and dict[str, form] have such items, [form] * 4 has
            four; a | b is one of both, (a, b) is both; a dictionary of forms, or a TypedDict, has these keys, and maybe
            more, and lacks only those that may be None; a dataclass is a dictionary of just its fields, each of its
            form or as it is by default; any other class, of this class; a function says what is wrong itself.
        name: of the value, for the sentence.
    """
    origin, inner = typing.get_origin(form), typing.get_args(form)
    if origin in (types.UnionType, typing.Union):
        faults = [misfit(value, one, name) for one in inner]
        return faults[-1 if value is None else 0] if all(faults) else None
    if isinstance(form, types.FunctionType):
        return form(value, name)
    if isinstance(form, tuple):
        return next((fault for one in form if (fault := misfit(value, one, name))), None)
    if isinstance(form, list):
        if not isinstance(value, list) or len(value) != len(form):
            return f"{name} is no list of {len(form)}"
        faults = (misfit(item, wish, name) for item, wish in zip(value, form, strict=True))
        return next(filter(None, faults), None)
    if isinstance(form, dict) or dataclasses.is_dataclass(form) or typing.is_typeddict(form):
        if not isinstance(value, dict):
            return f"{name} is no dictionary"
        wishes = form if isinstance(form, dict) else typing.get_type_hints(form)
        defaults = {}
        if dataclasses.is_dataclass(form):
            if odd := sorted(map(str, value.keys() ^ wishes.keys())):
                return f"{name} has other values, such as {odd[0][:40]}"
            defaults = {field.name: field.default for field in dataclasses.fields(form)}
        for key, wish in wishes.items():
            item, title = value.get(key), f"{name}.{key}".lstrip(".")
            if key in defaults and type(item) is type(defaults[key]) and item == defaults[key]:
                continue
            if fault := misfit(item, wish, title):
                return fault if key in value else f"there is no {title}"
        return None
    if origin in (list, dict):
        if not isinstance(value, origin) or (origin is dict and any(type(key) is not str for key in value)):
            return f"{name} is no {origin.__name__}"
        parts = value.values() if origin is dict else value
        return next((fault for item in parts if (fault := misfit(item, inner[-1], f"an item of {name}"))), None)
    if form is torch.Tensor:
        return None if isinstance(value, torch.Tensor) and bool(value.isfinite().all()) else f"{name} is no tensor"
    if isinstance(form, range) or form is int:
        among = form if isinstance(form, range) else range(2**53)
        return None if type(value) is int and value in among else f"{name} is {str(value)[:40]}"
    if form is float:
        fits = type(value) in (int, float) and math.isfinite(value)
        return None if fits else f"{name} is {str(value)[:40]}"
    return None if isinstance(value, form) else f"{name} is no {form.__name__}"


def within(least: float, most: float) -> Callable[[object, str], str | None]:
    """A form for `misfit`: a number from `least` to `most`."""
    return lambda value, name: (
        misfit(value, float, name) or (None if least <= value <= most else f"{name} is {value}, not {least} to {most}")
    )


def read_facts(path: str | Path, form, remedy: str) -> dict:
    """The object of a JSON file that has a form, see `misfit`. RunError names file, fault and remedy."""
    values = runs.read_json(path, remedy)
    if fault := misfit(values, form, ""):
        raise runs.RunError(f"{path}: damaged ({fault}); {remedy}")
    return values


def like(own: dict) -> Callable[[dict, str], str | None]:
    """A form for `misfit`: the state of something as it is now, such as a scheduler; numbers of it may differ."""

    def differs(value, name: str, expected=own) -> str | None:
        if type(value) is not type(expected) and {type(value), type(expected)} != {int, float}:
            return f"{name} is no {type(expected).__name__}"
        if isinstance(value, dict) and value.keys() != expected.keys():
            return f"{name} has other keys"
        if isinstance(value, (list, tuple)) and len(value) != len(expected):
            return f"{name} has {len(value)} values, not {len(expected)}"
        if isinstance(value, torch.Tensor):
            same = value.shape == expected.shape and value.dtype == expected.dtype
            return None if same and value.isfinite().all() else f"{name} is no such tensor"
        if isinstance(value, float) and not math.isfinite(value) or isinstance(value, int) and value < 0:
            return f"{name} is {value}"
        keys = expected if isinstance(value, dict) else range(len(value)) if isinstance(value, (list, tuple)) else ()
        return next((fault for key in keys if (fault := differs(value[key], f"{name}.{key}", expected[key]))), None)

    return differs


def schedule(value, name: str) -> str | None:
    """A form for `misfit`: the state of a torch.optim.lr_scheduler.LambdaLR over one group of parameters."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    return like(torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0).state_dict())(value, name)


def random_state(value, name: str) -> str | None:
    """A form for `misfit`: what `rng_state` returns, on a machine with any number of CUDA devices; or a list of such.

    A list is of several processes.
    """
    if isinstance(value, list) and value:
        return next((fault for item in value if (fault := random_state(item, name))), None)
    fault = misfit(value, {"python": tuple, "torch": torch.Tensor}, name)
    if fault:
        return fault
    before = rng_state()
    try:  # Python, torch and numpy check what they are given; then all is as it was
        set_rng_state(value)
    except (RuntimeError, TypeError, ValueError, OverflowError, AttributeError, IndexError) as error:
        return f"{name} is no random state ({str(error).splitlines()[0][:80]})"
    finally:
        set_rng_state(before)
    return None


def _masks_fault(masks: dict, weights: dict) -> str | None:
    """Whether masks are of these weights, {name: tensor}: what is wrong, or None."""
    if odd := sorted(map(str, masks.keys() ^ weights.keys())):
        return f"{odd[0][:80]} is in one only"
    for name, mask in masks.items():
        if mask.shape != weights[name].shape or not ((mask == 0) | (mask == 1)).all():
            return f"that of {name} isn't zeros and ones of its shape"
    return None


def _alternatives(form) -> tuple:
    return typing.get_args(form) if typing.get_origin(form) in (types.UnionType, typing.Union) else (form,)


# Of Adam and AdamW, and of SGD: a key of their groups that tells which, the others, and those of a parameter's state
OPTIMIZERS = {
    "betas": ({"lr", "eps", "weight_decay", "amsgrad"}, {"step", "exp_avg", "exp_avg_sq"}),
    "momentum": ({"lr", "dampening", "weight_decay", "nesterov"}, {"momentum_buffer"}),
}


def _optimizer_fault(state: dict, parameters: list[torch.Tensor]) -> str | None:
    """Whether an optimizer of these parameters, in one group, could have such a state: what is wrong, or None."""
    if len(state["param_groups"]) != 1:
        return f"it has {len(state['param_groups'])} groups of parameters, not one"
    group, numbers = state["param_groups"][0], range(len(parameters))
    params = group.get("params")
    if not isinstance(params, list) or any(type(i) is not int for i in params) or params != list(numbers):
        return f"it isn't of {len(parameters)} parameters"
    for key, value in group.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not 0 <= number < math.inf:
                return f"its {key} is {number}"
            if key != "params" and not isinstance(number, (bool, int, float, type(None))):
                return f"its {key} is no number"
    if not (kind := next((kind for kind in OPTIMIZERS if kind in group), None)):
        return "it is neither Adam's nor SGD's"
    options, moments = OPTIMIZERS[kind]
    if odd := sorted(options - group.keys()):
        return f"it lacks {odd[0]}"
    if kind == "betas" and (not isinstance(group[kind], tuple) or len(group[kind]) != 2 or group["amsgrad"]):
        return "its betas are not two, or it is an Adam of another kind"
    fault = misfit(group, {"lr": float}, "it")
    for i, inner in state["state"].items():
        if i not in numbers or type(i) is not int or not isinstance(inner, dict) or inner.keys() != moments:
            return f"the state of parameter {str(i)[:40]} is not {', '.join(sorted(moments))}"
        for key, value in inner.items():
            wish = () if key == "step" else tuple(parameters[i].shape)
            if value is None and key == "momentum_buffer":
                continue
            if not isinstance(value, torch.Tensor) or value.shape != wish or not value.isfinite().all():
                return f"the {key} of parameter {i} is not {list(wish)} finite numbers"
            if key in ("step", "exp_avg_sq") and value.numel() and value.min() < 0:
                return f"the {key} of parameter {i} is below 0"
    return fault


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rng_state() -> dict:
    """Random state of Python, torch and its CUDA devices, and numpy if it is in use, as tensors and plain values."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        kind, keys, position, has_gauss, cached = sys.modules["numpy"].random.get_state()
        state["numpy"] = (kind, keys.tolist(), position, has_gauss, cached)
    return state


def set_rng_state(state: dict) -> None:
    """Put back what `rng_state` returned; CUDA states only where there are as many devices."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    if len(state.get("cuda", [])) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([tensor.cpu() for tensor in state.get("cuda", [])])
    if "numpy" in state:
        import numpy

        kind, keys, *rest = state["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))


def _write(path: Path, write: Callable[[typing.BinaryIO], object]) -> None:
    """runs.write_whole with an error of this module."""
    try:
        runs.write_whole(path, write)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(f"{path}: can't be written ({error}); free some space or choose another place") from error


def _check_sum(path: Path) -> None:
    """Compare a file with the SHA-256 of the JSON beside it; without a JSON there is nothing to compare."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return
    expected = _facts(beside, path).get("sha256")
    if not isinstance(expected, str):
        raise CheckpointError(f"{beside}: has no readable sha256; fetch it again together with {path.name}")
    if sha256(path) != expected:
        raise CheckpointError(
            f"{path}: differs from the SHA-256 in {beside.name}; fetch it again (git checkout), "
            f"or delete {beside.name} if you replaced the weights on purpose"
        )


def _facts(beside: Path, path: Path) -> dict:
    try:
        return runs.read_json(beside, f"fetch it again together with {path.name}")
    except runs.RunError as error:
        raise CheckpointError(str(error)) from error


def _first_fault(data) -> str | None:
    """What in the values has no place in a checkpoint: an object, a number beyond 64 bits, a tensor without memory."""
    seen, todo = 0, [(data, "data", 0)]
    while todo:
        value, name, depth = todo.pop()
        seen += 1
        if seen > VALUES or depth > DEPTH:
            return f"data has more than {VALUES} values, or values more than {DEPTH} deep"
        if isinstance(value, dict):
            todo += [(item, f"{name}[{str(key)[:80]!r}]", depth + 1) for key, item in value.items()]
            todo += [(key, f"a key of {name}", depth + 1) for key in value if type(key) is not str]
        elif type(value) in (list, tuple, torch.Size):
            todo += [(item, f"{name}[{i}]", depth + 1) for i, item in enumerate(value)]
        elif isinstance(value, torch.Tensor):
            fault = _tensor_fault(value)
            if fault:
                return f"{name} is {fault}"
        elif type(value) not in PLAIN:
            return f"{name} is no tensor or plain value"
        elif type(value) is int and value.bit_length() > 64:
            return f"{name} is a whole number beyond 64 bits"
    return None


def _tensor_fault(tensor: torch.Tensor) -> str | None:
    """Ours are ordinary ones: dense, of real or complex numbers in memory, as many as their shape says."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return "no ordinary tensor"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "a tensor whose shape says more than it holds"
    return None


# ---- a checksum for older files --------------------------------------------------------------------------------------


def add_checksum(path: Path) -> str:
    """Write a file anew with a checksum in it; all tensors and values stay, and so do the facts in the JSON beside it.

    Size and SHA-256 of the file, which the JSON names, become those of the new file.

    Returns:
        A sentence that says what was done.

    Raises:
        CheckpointError: it can't be read or written, or differs from its JSON.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; name another file")
    _check_sum(path)
    data, before, beside = _read(path), sha256(path), path.with_suffix(".json")
    if "checksum" in data:
        load(path)
        return f"{path}: has a checksum, and it is right"
    if beside.is_file():
        save_with_facts(path, data, _facts(beside, path))
    else:
        save(path, data)
    return f"{path}: checksum added; SHA-256 was {before}, is {sha256(path)}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a checksum into checkpoints that have none.")
    parser.add_argument("files", type=runs.path, nargs="+", metavar="FILE.pt")
    for path in parser.parse_args(argv).files:
        print(add_checksum(path))
    return 0


if __name__ == "__main__":
    sys.exit(runs.run(main, CheckpointError))
