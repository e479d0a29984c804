"""Shared by all tests: one thread, and a folder of small frames that look a little like spectrograms."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_amc
from data.hdf4 import write_raster
from data.radioml import create_file
from utils import checkpoint

torch.set_num_threads(1)

BANDS = {  # label and colour of each carrier; NR blinks, LTE is steady
    "NR": [(127, (250, 220, 60))],
    "LTE": [(255, (60, 190, 170))],
    "LTE_NR": [(255, (60, 190, 170)), (127, (250, 220, 60))],
    "FIELD": [(127, (250, 220, 60)), (255, (60, 190, 170))],
}
FOLDERS = {"LTE_NR": "LTE_NR/", "FIELD": "FIELD/"}


def write_frames(root, counts: dict[str, int], size: int = 256, seed: int = 0) -> Path:
    """Write `counts` = {"NR": 3, "LTE_NR": 2, ...} frames of size x size pixels in the archive's layout; returns root.

    Each carrier is a bright band on blue noise; FIELD_frame_1 is empty. frames.csv lists them as the generator does.
    """
    root, rows = Path(root), []
    for family, count in counts.items():
        for number in range(1, count + 1):
            rng = np.random.default_rng([seed, len(family), ord(family[0]), number])
            name = f"{FOLDERS.get(family, '')}{family}_frame_{number}"
            image = rng.normal((50, 60, 150), 12, (size, size, 3))
            mask = np.zeros((size, size), np.uint8)
            carriers = [] if (family, number) == ("FIELD", 1) else BANDS[family]
            for slot, (label, colour) in enumerate(carriers):
                room = size // len(carriers)
                width = int(rng.integers(room // 5, room // 2))
                left = slot * room + int(rng.integers(1, room - width))
                active = rng.random(size) < (0.6 if label == 127 else 1.0)
                image[active, left : left + width] = rng.normal(colour, 12, (active.sum(), width, 3))
                mask[:, left : left + width] = label
            snr = 10.0 * (number % 4) if carriers else ""
            rows.append([name, family, number, snr, json.dumps([{"snr_db": snr}] * len(carriers))])
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"{name}.png")
            write_raster(root / f"{name}.hdf", mask)
    with open(root / "frames.csv", "w", newline="") as file:
        csv.writer(file).writerows([["frame", "family", "seed", "snr_db", "carriers"], *rows])
    return root


@pytest.fixture(scope="session")
def frames_dir(tmp_path_factory) -> Path:
    """A set to read, not to change: 6 NR, 6 LTE, 4 LTE_NR and 4 FIELD frames of 256x256 pixels."""
    return write_frames(tmp_path_factory.mktemp("frames"), {"NR": 6, "LTE": 6, "LTE_NR": 4, "FIELD": 4})


@pytest.fixture(scope="session")
def small_frames_dir(tmp_path_factory) -> Path:
    """The same in 128x128 pixels, for tests that train."""
    return write_frames(tmp_path_factory.mktemp("small"), {"NR": 6, "LTE": 6, "LTE_NR": 4, "FIELD": 4}, size=128)


# ---- modulations: a tiny file, a network trained on it, and runs that must not depend on interruptions

AMC_SMALL = ["--batch-size", "16", "--lr", ".01", "--seed", "1"]


@pytest.fixture(scope="session")
def radioml_file(tmp_path_factory) -> Path:
    """All 24 x 26 cells, three frames each: one to train on, one to choose by, one to report.

    A frame is noise around a mean that names its class, so that a network of eight filters learns something at once.
    """
    path = tmp_path_factory.mktemp("radioml") / "tiny.hdf5"
    with create_file(path, 3) as file:
        rng = np.random.default_rng(0)
        mean = np.stack(np.divmod(np.arange(24), 6), axis=1) * (0.8, 0.5) - (1.2, 1.25)  # (24, 2), I and Q
        noise = rng.standard_normal((24, 26 * 3, 1024, 2), np.float32)
        file["X"][:] = (mean[:, None, None] + 0.1 * noise).reshape(-1, 1024, 2)
    return path


@pytest.fixture(scope="session")
def amc_baseline(radioml_file, tmp_path_factory) -> Path:
    """The run folder of a w8a8 network of eight filters, trained for two epochs."""
    folder = tmp_path_factory.mktemp("amc") / "baseline"
    argv = ["--data-file", str(radioml_file), *AMC_SMALL, "--filters", "8", "--dense", "16", "--epochs", "2"]
    assert train_amc.main([*argv, "--schedule", "cosine", "--save-every", "30", "--out", str(folder)]) == 0
    return folder


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in open(folder / "log.jsonl")]


def contents(folder: Path) -> dict:
    """Everything that a modulation run leaves and that must not depend on interruptions."""
    states = {path.name: checkpoint.load(path) for path in sorted(folder.glob("*.pt"))}
    return states | {"log": log_of(folder), "result": json.loads((folder / "result.json").read_text())}


def assert_equal(ours, theirs, name=""):
    """Same structure, plain values equal, tensors bit for bit; commands and speeds may differ."""
    assert type(ours) is type(theirs), name
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"command", "scored_by", "trained_by", "samples_per_second"}:
            assert_equal(ours[key], theirs[key], f"{name}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), name
        for a, b in zip(ours, theirs, strict=True):
            assert_equal(a, b, name)
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), name
    else:
        assert ours == theirs, name


def kill_inside(script, name: str, count: int, argv: list[str]) -> int:
    """Run a script in a child that is killed at the count-th call of script.NAME; the signal that ended it."""
    child = os.fork()
    if child:
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    try:
        inner, left = getattr(script, name), [count]

        def counting(*args, **values):
            left[0] -= 1
            return inner(*args, **values) if left[0] else os.kill(os.getpid(), signal.SIGKILL)

        setattr(script, name, counting)
        script.main(argv)
    finally:
        os._exit(1)
