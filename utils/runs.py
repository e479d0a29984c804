"""A run's folder: config.json, log.jsonl, result.json; how a script stops, and which exit code a shell sees.

    if __name__ == "__main__":
        sys.exit(run(main, DataError, ModelError))

Exit codes: 0 for done, 2 for a known fault (one sentence on stderr), 130 for a stop by Ctrl-C or SIGTERM, 141 where
nobody reads the output any more (`... | head`). The end of this file has thin torch.distributed helpers. They are
no-ops for one process.

    rank, world, device = join_processes("cpu")          # gloo on CPUs, nccl on CUDA devices

A run's folder is locked while the run lives (flock on FOLDER/.lock, which the kernel releases whatever ends it), and
every file in it is written beside its place and then renamed.

Torch only, and only where a function needs it: a script that has parsed its arguments and opened its files with this
module's errors imports torch, which takes seconds, afterwards.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import fcntl
import json
import math
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TextIO

if TYPE_CHECKING:
    import torch

# Options that do not change what a run computes: a resumed run may have others.
FREE = ("command", "data_dir", "data_file", "device", "more_frames", "out", "resume")
FREE += ("save_every", "save_weights", "workers")


class RunError(ValueError):
    """A run that can't start or go on as asked; the message names the fault and the remedy."""


# ---- what an option may be -------------------------------------------------------------------------------------------
# Types for argparse, which names the option in its message and ends with exit code 2.


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""
    return _within(int, "whole number", least, most)


def real(least: float = -math.inf, most: float = math.inf, above: float = -math.inf) -> Callable[[str], float]:
    """A finite number from `least` to `most` and, where it is given, greater than `above`."""
    return _within(float, "number", least, most, above)


def weights_file(text: str) -> Path:
    """A name for shipped weights; their JSON is written beside them."""
    if not text.endswith(".pt"):
        raise argparse.ArgumentTypeError(f"{text} does not end in .pt")
    return Path(text)


def path(text: str) -> Path:
    """A file or folder. An empty text, such as an unset variable of a shell, would name the present folder."""
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} names no file or folder")
    return Path(text)


def words(text: str) -> str:
    """A text that is not empty."""
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} has no letters that can be printed")
    return text


def device(text: str) -> str:
    """cpu, or a device that this machine has: cuda, cuda:1, mps. Torch is imported for the latter only."""
    if text == "cpu":
        return text
    found = re.fullmatch(r"(cuda|mps)(:[0-9]{1,4})?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no device: choose cpu, cuda, cuda:1 or mps")
    import torch

    backend = torch.cuda if found[1] == "cuda" else torch.mps
    there = backend.device_count()
    if int((found[2] or ":0")[1:]) >= there:
        raise argparse.ArgumentTypeError(f"{text}: {there} such devices can be used here: try --device cpu")
    return text


def _within(kind, name, least, most, above=-math.inf):
    def parse(text: str):
        value = kind(text)  # argparse says which option has no number
        if not (math.isfinite(value) and least <= value <= most and value > above):
            limits = [f"above {above:g}"] * (above > -math.inf) + [f"from {least:g}"] * (least > -math.inf)
            limits += [f"to {most:g}"] * (most < (2**31 - 1 if kind is int else math.inf))
            raise argparse.ArgumentTypeError(f"{text} is no {name} {' '.join(limits)}".rstrip())
        return value

    parse.__name__ = name
    return parse


count, seed, processes = whole(1), whole(0), whole(1, 1024)
positive, weight = real(above=0, most=1e15), real(0, 1e6)


def fill_in(args: argparse.Namespace, defaults: dict) -> None:
    """Set the options that were not given: those that are None."""
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def config_of(args: argparse.Namespace, **facts) -> dict:
    """What config.json holds: every option as a plain value (a path as text), then `facts`, then the command line."""

    def plain(value):
        if isinstance(value, list):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    options = {name: plain(value) for name, value in vars(args).items()}
    return options | facts | {"command": command()}


def decisive(config: dict, *free: str) -> tuple[str, ...]:
    """The keys of a run's config that a resumed run must have in common with it: all but FREE and `free`."""
    return tuple(key for key in config if key not in FREE + free)


def start(folder: str | Path, config: dict, resume: bool, must_match: tuple[str, ...]) -> Path:
    """Make a run's folder with its config.json, or check that a resumed run was started with the same options.

    A folder holds a run once a checkpoint is in it. Before that, config.json may be from a start that failed, and is
    written again. The folder is locked from now on; what a killed run left half written is removed.

    Args:
        folder: of the run.
        config: plain values.
        resume: go on with what is there, if anything is.
        must_match: keys of `config` that change the result; a resumed run keeps them.

    Raises:
        RunError: another process has the folder, it holds a run and `resume` is not set, or the run was started with
            other values.
    """
    folder = Path(folder)
    lock(folder)
    path = folder / "config.json"
    begun = any(folder.glob("*.pt"))
    if begun and not resume:
        raise RunError(f"{folder} holds a run: go on with --resume, or choose another folder with --out")
    if begun:
        before = read_json(path, "start again with another --out")
        for key in must_match:
            if before.get(key) != config[key]:
                raise RunError(
                    f"{folder} was started with {key} = {before.get(key)}, not {config[key]}: "
                    "resume with the same options, or choose another folder with --out"
                )
    else:
        write_json(path, config)
    return folder


_locked: dict[Path, int] = {}  # the folder of this process's run, and the open file that holds its lock
# Names that write_whole gives
LEFT_BEHIND = re.compile(r"\..+\.(pt|pt2|onnx|json|jsonl|png|csv)\.([a-z0-9_]{8}|[0-9]+)")


def lock(folder: Path | None) -> None:
    """Make a folder and keep other processes out of it until this one ends, or locks another; None is no folder.

    Raises:
        RunError: another process has it, or it can't be written.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        if place in _locked:
            return
        while _locked:
            os.close(_locked.popitem()[1])
        file = os.open(place / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise RunError(f"{folder}: another process works in it; wait, or choose another with --out") from error
            print(f"note: {folder} can't be locked ({error.strerror}): start no second run in it", file=sys.stderr)
            return
        _locked[place] = file
        for left in [*folder.iterdir(), *folder.glob("pictures/.*")]:
            if LEFT_BEHIND.fullmatch(left.name) and left.is_file():
                left.unlink()
    except OSError as error:
        raise RunError(f"{folder}: can't be written ({error.strerror}); choose another folder with --out") from error


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk and rename it: readers see the old file or the new.

    Folders are made. OSError, or what `write` raises: the file at `path` stays as it was, and nothing lies beside it.
    """
    path, temporary = Path(path), None
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, values: dict) -> None:
    """Write plain values; a reader sees the old file or the new one, never half of it. RunError: the disk refuses."""
    text = json.dumps(values, indent=2) + "\n"
    try:
        write_whole(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise RunError(f"{path}: can't be written ({error.strerror}); choose another folder") from error


def read_json(path: str | Path, remedy: str) -> dict:
    """The object that a JSON file holds. RunError, which ends with the remedy: missing, no UTF-8 text, or no object."""
    try:
        values = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, or a number of 5000 digits
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise RunError(f"{path}: missing or damaged ({reason}); {remedy}") from error
    if not isinstance(values, dict):
        raise RunError(f"{path}: damaged (holds a {type(values).__name__}, not an object); {remedy}")
    return values


# Of several processes only the first one speaks and writes the log.


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line at once."""
    if rank_and_world()[0] == 0:
        print(text, file=file, flush=True)


def log(folder: str | Path, **values) -> None:
    """Append one line to log.jsonl."""
    if rank_and_world()[0] > 0:
        return
    path = Path(folder) / "log.jsonl"
    before = path.read_bytes() if path.exists() else b""
    before += b"\n" if before and not before.endswith(b"\n") else b""  # a kill of an older version leaves half a line
    write_whole(path, lambda file: file.write(before + json.dumps(values).encode() + b"\n"))


def tell(folder: str | Path, line: dict, **more) -> None:
    """An epoch's line: printed, and with `more` in log.jsonl."""
    log(folder, **line, **more)
    say("  ".join(f"{key} {value:.4g}" for key, value in line.items()))


def read_log(folder: str | Path, least: int = 0) -> list[dict | None]:
    """The lines of log.jsonl, from the oldest; None for one that is damaged. Empty if there is no log.

    A line is whole if it is a JSON object whose epoch is a whole number, `least` or more, and whose losses, rates and
    scores are finite or null. What it says beyond that, nothing can check.
    """

    def finite(value) -> bool:
        if isinstance(value, (dict, list)):
            return all(map(finite, value.values() if isinstance(value, dict) else value))
        return not isinstance(value, float) or math.isfinite(value)

    def parsed(line: bytes) -> dict | None:
        try:
            values = json.loads(line.decode("utf-8"))
            whole = isinstance(values, dict) and finite(values)
        except (ValueError, RecursionError):
            return None
        return values if whole and type(values.get("epoch")) is int and values["epoch"] >= least else None

    path = Path(folder) / "log.jsonl"
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [parsed(line) for line in (lines[:-1] if lines and not lines[-1] else lines)]


def _keep(folder: str | Path, lines: list[dict | None]) -> int:
    """Write log.jsonl anew with the lines that are whole; how many these are."""
    path, whole = Path(folder) / "log.jsonl", [line for line in lines if line is not None]
    if len(whole) < len(lines):
        print(f"note: {path}: {len(lines) - len(whole)} damaged lines are left out", file=sys.stderr)
    if path.exists():
        text = "".join(f"{json.dumps(line)}\n" for line in whole)
        write_whole(path, lambda file: file.write(text.encode()))
    return len(whole)


def cut_log(folder: str | Path, epochs: int) -> None:
    """Drop lines of epochs that a resumed run will do again, and lines that are damaged."""
    if rank_and_world()[0] > 0:
        return
    lines = read_log(folder)
    if lines and lines[-1] is None:
        lines.pop()  # what a kill of an older version left unfinished
    _keep(folder, [line for line in lines if line is None or line["epoch"] <= epochs])


def check_loss(value: float, epoch: int, step: int, folder: Path) -> None:
    """RunError where a loss is not finite; epoch and step count from 0."""
    if not math.isfinite(value):
        raise RunError(
            f"the loss is {value} in epoch {epoch + 1}, step {step + 1}: try a smaller --lr; "
            f"{folder}/last.pt, if there, is from before"
        )


def keep_lines(folder: str | Path, count: int) -> int:
    """Keep the first lines of log.jsonl: drop what was logged after the state that a resumed run goes on from.

    Returns:
        How many lines there are now: `count`, less those that are damaged or missing.
    """
    return _keep(folder, read_log(folder)[:count])


def hardware(device: str | torch.device = "cpu") -> str:
    """Processor, threads and, for CUDA, the GPU: every reported speed needs them."""
    import torch

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    text = f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.cpu._is_amx_tile_supported():
        text += ", AMX"
    if torch.device(device).type == "cuda":
        text += f", {torch.cuda.get_device_name(device)}"
    return text


def command() -> str:
    """The command line without folders of this machine: of a module as `python -m` takes it, or of torchrun."""
    main, given = sys.modules["__main__"], Path(sys.argv[0]).name
    spec = getattr(main, "__spec__", None)
    module = spec is not None and given == Path(main.__file__).name
    start = ["python"]
    if rank_and_world()[1] > 1:
        counts = {"nnodes": os.environ.get("GROUP_WORLD_SIZE"), "nproc-per-node": os.environ.get("LOCAL_WORLD_SIZE")}
        start = ["torchrun", *(f"--{name}={count}" for name, count in counts.items() if count not in (None, "1"))]
    return shlex.join([*start, *(["-m", spec.name] if module else [given]), *sys.argv[1:]])


def provenance(data: dict, device: torch.device) -> dict:
    """Where a saved network comes from: which command trained it, how it was chosen, and what scores it now."""
    import torch

    facts = {"network": data["factory"], "trained_by": data.get("command")}
    facts |= {key: data.get(key) for key in ("seed", "epoch", "validation", "class_weights_undone")}
    return facts | {"scored_by": command(), "hardware": hardware(device), "torch": torch.__version__}


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a flag that a loop looks at after each step. A second signal stops at once.

    with StopSignal() as stop:
        for batch in batches:
            step(batch)
            if stop.requested: save and leave
    """

    def __enter__(self) -> StopSignal:
        self.requested = False
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def run(main: Callable[[], int | None], *errors: type[Exception]) -> int:
    """Call a script's main function and return the exit code; `errors` and RunError become one sentence on stderr."""

    def stop(number, frame):
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # a shell's background job ignores Ctrl-C
            signal.signal(number, stop)
    try:
        return main() or 0
    except (RunError, *errors) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 141
    except OSError as error:  # a folder that can't be written, a full disk
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}; choose another folder, or make room there", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped before the end; nothing is half written", file=sys.stderr)
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- several processes ----------------------------------------------------------------------------------------------


class Processes(NamedTuple):
    """Which process this is, of how many, and the device that it computes on."""

    rank: int
    world: int
    device: torch.device


def join_processes(device: str) -> Processes:
    """Meet the other processes that torchrun has started, if any.

    RunError: there is no such device here, or only a part of torchrun's variables is set.
    """
    import torch
    import torch.distributed as dist

    world = int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"--device {device} can't be used here ({reason}): try --device cpu") from error
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False  # scores are float32's; training has bfloat16
    if world == 1:
        return Processes(0, 1, torch.device(device))
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise RunError(
            f"WORLD_SIZE is {world} and {missing[0]} is not set: start it with torchrun, or unset WORLD_SIZE"
        )
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    atexit.register(dist.destroy_process_group)
    return Processes(dist.get_rank(), world, torch.device(device))


def alone() -> None:
    """RunError: torchrun has started several processes of a script that runs as one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise RunError(f"{Path(sys.argv[0]).name} runs as one process: start it with python, not torchrun")


def single_process(device: str) -> torch.device:
    """The device of a script that runs as one process. RunError: torchrun started it, or there is no such device."""
    alone()
    return join_processes(device).device


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) without torchrun."""
    if "torch" not in sys.modules:  # nobody has joined any process
        return 0, 1
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def first_process(action: Callable[[], object], *errors: type[Exception]) -> object:
    """Let rank 0 do something while the others wait. All return its value, or raise one of `errors` as RunError.

    A single process just does it, and its errors stay what they are.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return action()
    value, fault = None, None
    if dist.get_rank() == 0:
        try:
            value = action()
        except errors as error:
            fault = str(error)
    told = [value, fault]
    dist.broadcast_object_list(told)
    value, fault = told
    if fault:
        raise RunError(fault)
    return value


def in_turn(action: Callable[[], object], *errors: type[Exception]) -> object:
    """Let every process do what writes a file where it is missing, and return what it gives.

    Rank 0 comes first, then one process of each other machine, then all others. So nothing is written twice, whether
    the machines share a disk or not. One of `errors` in any process ends all of them, as RunError.
    """
    rank, world = rank_and_world()
    if world == 1:
        return action()
    turn = 0 if rank == 0 else 1 if os.environ.get("LOCAL_RANK") == "0" else 2
    value = fault = None
    for present in range(3):
        if present == turn:
            try:
                value = action()
            except errors as error:
                fault = str(error)
        faults = [text for text in gather(fault) if text]
        if faults:
            raise RunError(faults[0])
    return value


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor of all processes, in place."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def mean_over_processes(values: list[float]) -> list[float]:
    """Means over the processes, so that all of them see the same loss and stop together."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        return values
    return (sum_over_processes(torch.tensor(values, dtype=torch.float64)) / dist.get_world_size()).tolist()


def gather(value) -> list:
    """The plain values of all processes, by rank."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
