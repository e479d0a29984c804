"""Readers of runs, checkpoints, plans and result rows for tests/fuzz.py.

The damage by meaning is saved anew with a checksum that is right, so that what is behind the checksum is tried, too.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import distill_seg
import feedback_magnitude_pruning
import train_amc
import train_seg
from data import DataError
from data.hdf4 import write_raster
from data.radioml import create_file
from data.spectrogram import PARULA
from experiments import compression, magnitude_pruning
from models import ModelError, segmentation
from models.rebuild import describe, rebuild
from models.vgg10 import VGG10, from_checkpoint, to_brevitas, to_checkpoint
from tests.fuzz import NASTY, Reader, damaged_value, nasty
from utils import checkpoint, release
from utils.dependency_graph import DependencyGraph, Plan, PruneError, prune
from utils.kd_losses import DistillationError
from utils.runs import RunError

LRASPP = "lraspp_mobilenet_v3_large"
SHIPPED = Path(__file__).parents[1] / "weights"
ERRORS = (DataError, ModelError, PruneError, DistillationError, checkpoint.CheckpointError, RunError, OSError)


# ---- damage to values of a checkpoint -------------------------------------------------------------------------------


def odd_tensor(value: torch.Tensor, rng: random.Random):
    """A tensor that is not quite the given one."""
    flat = value.detach().clone().contiguous()
    kind = rng.choice(("nan", "shape", "type", "empty", "wide", "negative", "plain", "huge", "sparse"))
    if kind == "nan" and flat.is_floating_point() and flat.numel():
        flat.view(-1)[rng.randrange(flat.numel())] = rng.choice((math.nan, math.inf))
        return flat
    if kind == "negative":
        return -flat - 1 if flat.dtype != torch.bool else flat.logical_not()
    if kind == "type":
        return flat.to(rng.choice((torch.float64, torch.float16, torch.int32, torch.complex64, torch.bool)))
    if kind == "empty":
        return flat.new_empty(rng.choice(((0,), (0, 3), (2**40, 0))))
    if kind == "wide":  # a number that claims to be many
        return flat.new_zeros(1).expand(rng.choice((1000, 4_000_000, 10**12)))
    if kind == "sparse" and flat.dim() == 2:
        return flat.to_sparse()
    if kind == "plain":
        return nasty(rng)
    if kind == "huge" and flat.is_floating_point():
        return flat * 1e30
    return flat.new_zeros(rng.choice(((), (1,), (3, 2, 1), (*flat.shape, 2), (*flat.shape[:-1], 7))))


def damaged(data: dict, rng: random.Random) -> dict:
    """A checkpoint of which one value, plain or a tensor, at any depth, is another, lost, renamed or doubled."""
    places = []

    def walk(node) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    def thawed(value):
        if isinstance(value, dict):
            return {key: thawed(item) for key, item in value.items()}
        return [thawed(item) for item in value] if isinstance(value, list) else value

    data = thawed(data)
    walk(data)
    plain = [(node, key) for node, key in places if not isinstance(node[key], torch.Tensor)]
    node, key = rng.choice(plain if rng.random() < 0.6 else places)
    kind = rng.choice(("other", "other", "other", "lose", "rename", "move"))
    if kind == "lose":
        del node[key]
    elif kind == "rename" and isinstance(node, dict):
        node[rng.choice(("", "x", 7, str(key) + " "))] = node.pop(key)
    elif kind == "move":
        other, at = rng.choice(places)
        node[key] = thawed(other[at])
    else:
        node[key] = odd_tensor(node[key], rng) if isinstance(node[key], torch.Tensor) else nasty(rng)
    return data


def change_values(folder: Path, rng: random.Random, name: str = "*.pt") -> None:
    """Damage a checkpoint by meaning and save it anew, with a right checksum where `save` takes such values."""
    path = rng.choice(sorted(folder.glob(name)))
    with contextlib.suppress(Exception):  # its bytes are damaged already
        data = damaged(torch.load(path, weights_only=True), rng)
        data.pop("checksum", None)
        if not checkpoint._first_fault(data):
            data["checksum"] = checkpoint.checksum(data)
        torch.save(data, path)


def lies(folder: Path, rng: random.Random) -> None:
    """Claims that would take much memory, or another network."""
    path = rng.choice(sorted(folder.glob("*.pt")))
    with contextlib.suppress(Exception):
        data = torch.load(path, weights_only=True)
        data.pop("checksum", None)
        factory = rng.choice(
            ("torchvision.models.vit_h_14", "models.vgg10.VGG10", "torchvision.models.resnet18", "os.x")
        )
        rng.choice((
            lambda: data.update(factory=factory, arguments={}),
            lambda: data["arguments"].update(num_classes=rng.choice((4_000_000, 10**9, 2**62, -1, 0))),
            lambda: data["arguments"].update(filters=rng.choice((10**6, 2**31, (10**9,) * 7, "abc"))),
            lambda: data["arguments"].update(samples=128 * 10**9, dense=rng.choice((10**9, 0, 1.5))),
            lambda: data["attributes"].update({next(iter(data["attributes"]), "input"): {"bits": nasty(rng)}}),
            lambda: data["shapes"].update({rng.choice(list(data["state_dict"])): rng.choice(([10**9], [[]], 3))}),
        ))()  # fmt: skip
        data["checksum"] = checkpoint.checksum(data)
        torch.save(data, path)


# ---- networks -------------------------------------------------------------------------------------------------------


def tiny() -> VGG10:
    torch.manual_seed(0)
    return VGG10((4, 4, 3, 3, 3, 3, 3, 2, 3, 4), 4, filters=2, dense=4, num_classes=24, samples=1024).eval()


def make_network(folder):
    checkpoint.save(
        folder / "net.pt", to_checkpoint(tiny()) | {"classes": ["a"], "seed": 0, "command": "x", "epoch": 1}
    )


def make_brevitas(folder):
    torch.save(to_brevitas(tiny()), folder / "net.pth")


def change_brevitas(folder, rng):
    change_values(folder, rng, "*.pth")


def read_network(folder):
    """The file's values, the network, and its answer to zeros."""
    data = checkpoint.load(next(folder.glob("net.*")))
    network = from_checkpoint(data, bits=4).eval()
    with torch.no_grad():
        return data, network(torch.zeros(1, 2, network.samples))


def wrong_bytes(value, valid):
    """Whatever bytes changed, what was read is what was written."""
    return None if checkpoint.checksum(value[0]) == checkpoint.checksum(valid[0]) else "other values than were saved"


def wrong_answer(value, valid):
    return None if value[1].isfinite().all() else "the network's answer is not finite"


def make_student(folder):
    for name in ("seg_student.pt", "seg_student.json"):
        shutil.copy(SHIPPED / name, folder / name)
    (folder / "seg_student.json").unlink()  # its SHA-256 would tell everything


def read_student(folder):
    data = release.load_segmentation(folder / "seg_student.pt")
    network = rebuild(data).eval()
    with torch.no_grad():
        return data, network(torch.zeros(1, 3, 64, 64))["out"]


# ---- plans ----------------------------------------------------------------------------------------------------------


@functools.cache
def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 4, 1)).eval()


def make_plan(folder):
    DependencyGraph(dense(), torch.zeros(1, 3, 8, 8)).plan(0.5).save(folder / "plan.json")


def read_plan(folder):
    plan = Plan.load(folder / "plan.json")
    return plan, prune(dense(), plan)


def wrong_plan(value, valid):
    plan, network = value
    state = network.state_dict()
    for name, axis, indices in plan.remove:
        if state[name].shape[axis] != plan.shapes[name][axis] - len(indices):
            return f"{name} has {list(state[name].shape)} after {len(indices)} left axis {axis}"
    return None


def change_json(folder: Path, rng: random.Random, name: str = "*.json") -> None:
    """Damage a JSON file by meaning; one that is none already stays as it is."""
    path = rng.choice(sorted(folder.glob(name)))
    with contextlib.suppress(ValueError, RecursionError):
        path.write_text(json.dumps(damaged_value(json.loads(path.read_text()), rng)))


# ---- runs that go on ------------------------------------------------------------------------------------------------


def data_folder() -> Path:
    """Data of the runs: made once, in a folder beside the mutants, which goes when this process ends."""
    if not hasattr(data_folder, "place"):
        data_folder.place = tempfile.TemporaryDirectory(prefix="fuzzdata")
        make_samples(Path(data_folder.place.name) / "tiny.hdf5")
        make_frames(Path(data_folder.place.name) / "frames")
        make_network(Path(data_folder.place.name))
        make_teacher(Path(data_folder.place.name))
    return Path(data_folder.place.name)


def make_samples(path: Path) -> None:
    with create_file(path, 3) as file:
        rng = np.random.default_rng(0)
        mean = np.stack(np.divmod(np.arange(24), 6), axis=1) * (0.8, 0.5) - (1.2, 1.25)  # it names the class
        noise = rng.standard_normal((24, 26 * 3, 1024, 2), np.float32)
        file["X"][:] = (mean[:, None, None] + 0.1 * noise).reshape(-1, 1024, 2)


def make_frames(folder: Path) -> None:
    folder.mkdir()
    for number in range(8):
        rng, lte = np.random.default_rng(number), number % 2
        levels, mask = rng.normal(60, 15, (32, 32)), np.zeros((32, 32), np.uint8)
        levels[:, 8:20] += 120 if lte else 60
        mask[:, 8:20] = 255 if lte else 127
        name = f"{'LTE' if lte else 'NR'}_frame_{number}"
        Image.fromarray(PARULA[levels.clip(0, 255).astype(np.uint8)]).save(folder / f"{name}.png")
        write_raster(folder / f"{name}.hdf", mask)


def make_teacher(folder: Path) -> None:
    torch.manual_seed(0)
    network = segmentation.build(LRASPP)
    about = {"kind": "segmentation", "classes": ["noise", "NR", "LTE"], "seed": 0, "command": "none"}
    checkpoint.save(folder / "teacher.pt", describe(network, *segmentation.factory(LRASPP)) | about)


@dataclasses.dataclass(frozen=True)
class Script:
    """A training that has done one epoch of two, and goes on in --resume."""

    module: object
    options: tuple[str, ...]
    more: tuple[str, ...] = ("--epochs", "2")
    saves: int = 1  # of last.pt, after which it stopped

    def run(self, folder: Path) -> int:
        names = {"{file}": "tiny.hdf5", "{frames}": "frames", "{net}": "net.pt", "{teacher}": "teacher.pt"}
        inputs = {key: data_folder() / name for key, name in names.items()}
        given = [str(inputs.get(option, option)) for option in (*self.options, *self.more)]
        with open(os.devnull, "w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            return self.module.main([*given, "--out", str(folder), "--resume"])

    def make(self, folder: Path) -> None:
        """The folder of a run that stopped after its first epoch."""

        class Enough(Exception):
            pass

        inner, left = checkpoint.save, [self.saves]

        def save(path, data):
            inner(path, data)
            left[0] -= Path(path).name == "last.pt"
            if not left[0]:
                raise Enough

        checkpoint.save, called = save, sys.argv
        sys.argv = ["fuzz.py"]  # the command that the run's files name
        try:
            with contextlib.suppress(Enough):
                self.run(folder)
        finally:
            checkpoint.save, sys.argv = inner, called
        log = folder / "log.jsonl"  # speeds differ from call to call
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        lines = [{key: 1.0 if "per_second" in key else value for key, value in line.items()} for line in lines]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def read(self, folder: Path) -> dict:
        work = Path(tempfile.mkdtemp(prefix="fuzzrun")) / "run"
        try:
            shutil.copytree(folder, work)
            code = self.run(work)
            result = json.loads((work / "result.json").read_text())
            log = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
            return {"code": code, "result": result, "log": log}
        finally:
            shutil.rmtree(work.parent)


def wrong_run(value, valid):
    """A run that went on has its result, and a log without damaged lines that ends with the last epoch."""
    if value["code"]:
        return f"its exit code is {value['code']}"
    epochs = [line.get("epoch") for line in value["log"]]
    if not epochs or epochs[-1] != valid["log"][-1]["epoch"] or any(type(epoch) is not int for epoch in epochs):
        return f"the epochs of its log are {epochs}"
    score = value["result"]["sets"]["test"]["accuracy"]
    return None if type(score) is float and 0 <= score <= 1 else f"its result is {score}"


def change_log(folder, rng):
    """A line of the log is another value, is cut or is no text."""
    path = folder / "log.jsonl"
    lines = path.read_bytes().split(b"\n")
    at = rng.randrange(len(lines))
    odd = json.dumps(rng.choice(NASTY)).encode()
    lines[at] = rng.choice(
        (odd, b'{"epoch": ' + odd + b"}", lines[at][: len(lines[at]) // 2], b"\xff" + lines[at], b"")
    )
    path.write_bytes(b"\n".join(lines))


def swap_checkpoints(folder, rng):
    """best.pt under the name last.pt, or the other way round, or a shipped network."""
    last, best = folder / "last.pt", folder / "best.pt"
    source, target = rng.choice(((best, last), (last, best), (SHIPPED / "amc_fmp.pt", last)))
    if source.exists():
        target.write_bytes(source.read_bytes())


OF_RUNS = (change_values, change_json, change_log, swap_checkpoints)
AMC = ("--data-file", "{file}", "--batch-size", "16", "--epoch-frames", "32", "--seed", "1")
TRAIN_AMC = Script(train_amc, (*AMC, "--filters", "2", "--dense", "4", "--bits", "4"))
FMP = Script(
    feedback_magnitude_pruning,
    (*AMC, "--checkpoint", "{net}", "--threshold", "1e-9", "--bits", "4", "--p", ".9"),
    ("--budget", "2", "--step-epochs", "1"),
    saves=2,
)
SEG = ("--data-dir", "{frames}", "--batch-size", "2")
TRAIN_SEG = Script(train_seg, (*SEG, "--model", LRASPP))
DISTILL_SEG = Script(distill_seg, (*SEG, "--teacher", "{teacher}", "--student", "{teacher}"))


# ---- result rows ----------------------------------------------------------------------------------------------------

ROWS = Path(compression.__file__).parent / "results" / "compression"


def make_rows(folder):
    for name in ("teacher", "ours_299_k_kd_epochs3_seed0", "ours_172_k_kd_epochs3_seed0"):
        row = json.loads((ROWS / f"{name}.json").read_text())
        row = {key: value for key, value in row.items() if key not in ("log", "commands", "before_retraining")}
        (folder / f"{name}.json").write_text(json.dumps(row))


def read_rows(folder):
    with contextlib.redirect_stdout(None):
        compression.main(["--table", "--results", str(folder)])
    return (folder / "miou_macs.png").stat().st_size


def make_amc_rows(folder):
    for seed in (0, 1):
        row = dict.fromkeys(magnitude_pruning.COLUMNS, 0.5) | {"pruning_epochs": 3, "row": "imp-4bit", "seed": seed}
        row |= {"hardware": "a machine", "options": ["--budget", "30"]}
        (folder / f"imp-4bit_seed{seed}.json").write_text(json.dumps(row))


def read_amc_rows(folder):
    return magnitude_pruning.table(folder)


def wrong_table(value, valid):
    numbers = [line.split(" | ")[1:-1] for line in value.splitlines()[2:] if line.startswith("|")]  # the rest is text
    odd = [cell for cells in numbers for cell in cells if "nan" in cell or "inf" in cell]
    return f"the table has a number {odd[0]}" if odd else None


READERS = (
    Reader(
        "checkpoint, bytes", make_network, read_network, ERRORS,
        "the checksum: what is read equals what was saved",
        wrong_bytes,
    ),
    Reader(
        "checkpoint, meaning", make_network, read_network, ERRORS,
        "types, names, shapes, finite numbers: the network computes; other weights or bits under a right checksum, "
        "nothing can tell",
        wrong_answer, (change_values, lies), "",
    ),
    Reader(
        "segmentation checkpoint", make_student, read_student, ERRORS,
        "as above, and classes and frame size", wrong_answer, (change_values, change_values, lies), "", 500,
    ),
    Reader(
        "challenge's checkpoint", make_brevitas, read_network, ERRORS,
        "CRC, the 65 names, shapes that fit, finite numbers; other weights, nothing can tell",
        wrong_answer, (change_brevitas,),
    ),
    Reader(
        "plan.json", make_plan, read_plan, ERRORS,
        "types, names, axes, indices in range and once; other indices in range, nothing can tell but verify",
        wrong_plan, (change_json,),
    ),
    *(
        Reader(
            f"run of {name}", of_script.make, of_script.read, ERRORS,
            "options, checksums, forms; a damaged line of the log drops only itself", wrong_run, OF_RUNS, "*", 500,
        )
        for name, of_script in (
            ("train_amc.py", TRAIN_AMC), ("train_seg.py", TRAIN_SEG), ("distill_seg.py", DISTILL_SEG), ("FMP", FMP),
        )
    ),
    Reader(
        "compression rows", make_rows, read_rows, ERRORS,
        "types and ranges of what the tables show; another figure in range, nothing can tell",
        meanings=(change_json,), most=500,
    ),
    Reader(
        "pruning rows", make_amc_rows, read_amc_rows, ERRORS,
        "types and ranges of what the table shows; another figure in range, nothing can tell",
        wrong_table, (change_json,), most=500,
    ),
)  # fmt: skip
