"""How many frames a second can be read from a file larger than a gigabyte, shuffled, in batches?

    python -m experiments.radioml_speed                                     # 2 GB in the temporary folder, 3 minutes
    python -m experiments.radioml_speed --data-file GOLD_XYZ_OSC.0001_1024.hdf5 --out runs/speed    # the real set

Four ways are compared: h5py frame by frame, h5py with sorted batches, the original file and its cache of codes
(data/radioml.py). Each draws its own frames at random and gives float32 (256, 2, 1024). Warm: the file is in the
system's cache, as far as there is memory. Cold: its pages were given back just before (posix_fadvise; the host of a
virtual machine may still hold them). A resource limit holds private memory below 2 GB: a way that needs more fails. The
ways are measured in turn, --rounds times; the table has the medians.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm import tqdm

from data import DataError
from data.code_cache import open_cache
from data.radioml import CELLS, Frames, batches, create_file, open_frames, split
from utils import runs

PRIVATE_BYTES = 2 * 2**30


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-file", type=runs.path, help="in the original layout; default: one of noise is written")
    parser.add_argument(
        "--out", type=runs.path, help="folder of the generated file and the cache; default: a temporary one"
    )
    parser.add_argument("--frames-per-cell", type=runs.count, default=410, help="of the generated file; 410 are 2.1 GB")
    parser.add_argument("--batch-size", type=runs.count, default=256)
    parser.add_argument(
        "--batches", type=runs.count, default=200, help="measured in each row and round; h5py gets fewer"
    )
    parser.add_argument("--rounds", type=runs.count, default=5)
    parser.add_argument("--seed", type=runs.seed, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (PRIVATE_BYTES, PRIVATE_BYTES))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        path = args.data_file or write_noise(folder / "noise.hdf5", args.frames_per_cell)
        frames = open_frames(path)
        print(f"{len(frames)} frames, {path.stat().st_size / 1e9:.2f} GB, batches of {args.batch_size}, one thread")
        begin = time.perf_counter()
        codes = open_cache(frames, bits=8, directory=folder)
        print(f"cache of 8-bit codes written and read back: {len(frames) / (time.perf_counter() - begin):.0f} frames/s")
        begin = time.perf_counter()
        rows = split(frames)["train"]
        print(f"split: {time.perf_counter() - begin:.2f} s")
        measure(frames, codes, rows, args.batch_size, args.batches, args.rounds, args.seed)
    print(f"private memory stayed below {PRIVATE_BYTES / 2**30:.0f} GB")


def measure(
    frames: Frames, codes: Frames, rows: np.ndarray, batch_size: int, count: int, rounds: int, seed: int
) -> None:
    """Print warm and cold frames/s of each way to read `count` batches."""
    random, files = np.random.default_rng(seed), (frames.path, Path(codes.x.filename))
    file = h5py.File(frames.path)
    ways: dict[str, tuple[Callable[[np.ndarray], None], int]] = {
        "h5py, frame by frame": (lambda chosen: frame_by_frame(file["X"], chosen, batch_size), 8),
        "h5py, sorted batches": (lambda chosen: sorted_batches(file["X"], chosen, batch_size), 8),
        "original (memory map)": (lambda chosen: drain(frames, chosen, batch_size), 1),
        "cache of codes": (lambda chosen: drain(codes, chosen, batch_size), 1),
    }
    speeds = {(name, state): [] for name in ways for state in ("warm", "cold")}
    for _ in tqdm(range(rounds), "rounds"):
        for (name, state), found in speeds.items():
            read, fewer = ways[name]
            chosen = random.choice(rows, min(batch_size * count // fewer, len(rows)), replace=False)
            give_back(files) if state == "cold" else read(chosen)
            begin = time.perf_counter()
            read(chosen)
            found.append(len(chosen) / (time.perf_counter() - begin))
    print(f"{'frames/s, shuffled':24s} {'warm':>9s} {'cold':>9s}")
    for name in ways:
        warm, cold = (statistics.median(speeds[name, state]) for state in ("warm", "cold"))
        print(f"{name:24s} {warm:9.0f} {cold:9.0f}")


def drain(frames: Frames, rows: np.ndarray, batch_size: int) -> None:
    for x, _ in batches(frames, rows, batch_size):
        assert x.dtype == torch.float32


def frame_by_frame(x: h5py.Dataset, rows: np.ndarray, batch_size: int) -> None:
    """What a data set class with one frame per __getitem__ does, stacked as a loader does."""
    for start in range(0, len(rows), batch_size):
        torch.stack([torch.from_numpy(x[row]).T for row in rows[start : start + batch_size]])


def sorted_batches(x: h5py.Dataset, rows: np.ndarray, batch_size: int) -> None:
    for start in range(0, len(rows), batch_size):
        torch.from_numpy(x[np.sort(rows[start : start + batch_size])]).transpose(1, 2).contiguous()


def give_back(paths: tuple[Path, ...]) -> None:
    """Ask the system to forget the pages of these files."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def write_noise(path: Path, frames_per_cell: int) -> Path:
    """A file in the original layout; one block of noise, over and over."""
    noise = np.random.default_rng(0).standard_normal((CELLS, 1024, 2), dtype=np.float32)
    with create_file(path, frames_per_cell) as file:
        for number in tqdm(range(frames_per_cell), path.name):
            file["X"][number * CELLS : (number + 1) * CELLS] = noise
    return path


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
