"""Checkpoints of tensors and plain values: written whole or not at all, read without running foreign code.

    save("runs/demo/last.pt", {"state_dict": model.state_dict(), "rng": rng_state(), "epoch": 3})
    data = load("runs/demo/last.pt")
    set_rng_state(data["rng"])

A file that is handed on lies beside a JSON with its SHA-256 (`save_weights`); `load` checks it. Torch and utils/runs.py
only.
"""

import hashlib
import json
import os
import pickle
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from utils.runs import first_process, rank_and_world


class CheckpointError(ValueError):
    """A checkpoint that can't be read or written; the message names the file, the fault and the remedy."""


def save(path: str | Path, data: dict) -> None:
    """Write a dictionary of tensors and plain values; at no moment does `path` hold half a file.

    Of several processes (torch.distributed) only the first one writes.

    Raises:
        CheckpointError: a value is neither tensor nor plain, or the disk refuses; a file at `path` stays as it was.
    """
    fault = _first_object(data)
    if fault:
        raise CheckpointError(f"{path}: {fault} is no tensor or plain value, convert it before saving")
    if rank_and_world()[0] == 0:
        _write(Path(path), lambda file: torch.save(data, file))


def save_weights(path: str | Path, data: dict, facts: dict) -> None:
    """Write weights to be handed on: in half precision, and `facts` with the file's SHA-256 as JSON beside it.

    Args:
        path: FILE.pt; the JSON becomes FILE.json.
        data: has "state_dict", a dictionary of tensors; the other values are kept.
        facts: plain values for the JSON: figures, seed, command.
    """
    path = Path(path)
    # The old JSON goes first: a kill in between leaves weights without a sum rather than with a wrong one.
    path.with_suffix(".json").unlink(missing_ok=True)
    save(path, {**data, "state_dict": halve(data["state_dict"])})
    facts = {**facts, "file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
    text = json.dumps(facts, indent=2) + "\n"
    _write(path.with_suffix(".json"), lambda file: file.write(text.encode()))


def halve(state_dict: dict) -> dict:
    """Matrices and kernels as float16. Vectors (biases, batch-norm statistics) stay: small, and of any range."""
    wide = {name for name, tensor in state_dict.items() if tensor.is_floating_point() and tensor.dim() > 1}
    return {name: tensor.half() if name in wide else tensor for name, tensor in state_dict.items()}


def restored(kind: Callable, values: dict, path: str | Path):
    """kind(**values): a dataclass from the values that `path` holds of it. CheckpointError: it has other fields."""
    try:
        return kind(**values)
    except TypeError as error:
        raise CheckpointError(f"{path}: holds the state of another version ({error}); choose another --out") from None


def load(path: str | Path, device: str | torch.device = "cpu", kind: str | None = None) -> dict:
    """Read a dictionary of tensors and plain values (weights_only=True), checked against FILE.json where that exists.

    Args:
        path: of the file.
        device: where its tensors go.
        kind: which network it must hold, such as "segmentation"; its own "kind" says so.

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, of another kind, or not what the JSON describes.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; train one, or name another file")
    _check_sum(path)
    try:
        data = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint of this repository, or damaged ({reason})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a {type(data).__name__}, not a checkpoint of this repository")
    if kind and data.get("kind") != kind:
        found = data.get("kind", "other")
        raise CheckpointError(f"{path}: {found} network, not a {kind} network; name another file, or train one")
    return data


def load_shared(path: str | Path) -> dict:
    """What the first process loads, in all of them: only its machine need have the run's folder. RunError: see load."""
    return first_process(lambda: load(path), CheckpointError)


def load_last(folder: Path, resume: bool) -> dict | None:
    """last.pt of a run's folder if the run goes on and has one, in all processes. RunError: it can't be read."""
    path = folder / "last.pt"
    return first_process(lambda: load(path) if resume and path.exists() else None, CheckpointError)


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


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Temporary file in the same folder, flushed to disk, then renamed: readers see the old file or the new one."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise CheckpointError(f"{path}: can't be written ({error}); free some space or choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _check_sum(path: Path) -> None:
    """Compare a file with the SHA-256 of the JSON beside it; without a JSON there is nothing to compare."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return
    try:
        expected = json.loads(beside.read_text())["sha256"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{beside}: has no readable sha256; fetch it again together with {path.name}") from error
    if sha256(path) != expected:
        raise CheckpointError(
            f"{path}: differs from the SHA-256 in {beside.name}; fetch it again (git checkout), "
            f"or delete {beside.name} if you replaced the weights on purpose"
        )


def _first_object(value, name: str = "data") -> str | None:
    """Name of the first value that torch.load(weights_only=True) would refuse, or None."""
    if isinstance(value, dict):
        parts = [(key, f"a key of {name}") for key in value]
        parts += [(item, f"{name}[{key!r}]") for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(item, f"{name}[{i}]") for i, item in enumerate(value)]
    else:
        plain = value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, torch.Tensor)
        return None if plain else name
    return next((fault for item, item_name in parts if (fault := _first_object(item, item_name))), None)
