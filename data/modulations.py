"""Generate a set like RadioML 2018.01A: 24 modulations at 26 signal-to-noise ratios, in frames of 1024 samples.

    python -m data.modulations datasets/radioml.hdf5 --frames-per-cell 100     # 62,400 frames, 0.5 GB, a minute

The file has the layout of the original, and radioml.py reads both: X float32 (N, 1024, 2), Y one-hot int64 (N, 24), Z
int64 (N, 1) in dB, ordered by modulation, then by SNR. If the command is interrupted, run it again: it continues where
it stopped. The frames depend on the seed, not on the number of workers.

Several machines share the work: with --part 2/3 and otherwise the same options one of them writes
radioml.part2of3.hdf5, with a third of the cells (a class at an SNR). Copy the parts into one folder and run the command
there once more, without --part: it copies their cells, makes those that are missing, and writes the file that a single
machine would have written, byte for byte. The parts can be deleted then.

What a frame is made of, and where each setting comes from, stands in data/modulators.py.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from tqdm import tqdm

from data import SEED, WORKERS, DataError, exit_code, place, ranged
from data.hdf5 import open_hdf5
from data.modulators import DELAY_SPREAD, WINDOW, make_frames
from data.radioml import CELLS, MODULATIONS, SAMPLES, SNRS, create_file
from data.workers import as_worker, interrupts_ignored, locked
from data.writing import WHOLE, Part, parts_beside, told, write_whole
from data.writing import part as part_of

# For scripts that are given no file, see `default_file`. Numbers are frames of each class at each SNR.
KNOWN_FILES = "datasets/GOLD_XYZ_OSC.0001_1024.hdf5", "datasets/radioml.hdf5"
SMALL_FILE, SMALL_FRAMES = Path("datasets/radioml_small.hdf5"), 40
FEW_FILE, FEW_FRAMES = Path("datasets/radioml_few.hdf5"), 4  # enough to compare the outputs of two networks
BATCH = 256  # frames made at once


class Job(NamedTuple):
    """A cell to write: one class at one SNR."""

    path: Path
    offset: int  # bytes before its frames in the file
    frames_per_cell: int
    cell: int
    seed: int
    delay_spread: float


def _write_cell(job: Job) -> int:
    """Write the frames of one cell to their place in the file. Returns the cell's number."""
    path, offset, frames_per_cell, cell, seed, delay_spread = job
    torch.set_num_threads(1)
    x = np.memmap(path, np.float32, "r+", offset, (frames_per_cell, SAMPLES, 2))
    modulation, snr = MODULATIONS[cell // len(SNRS)], SNRS[cell % len(SNRS)]
    rng = np.random.default_rng([seed, cell])
    for start in range(0, frames_per_cell, BATCH):
        count = min(BATCH, frames_per_cell - start)
        x[start : start + count] = make_frames(modulation, snr, count, rng, delay_spread)
    return cell


def _begin(part: Path, journal: Path, settings: dict) -> tuple[int, set[int]]:
    """Create the unfinished file or continue with it. Returns where X starts in it, in bytes, and finished cells."""
    begun, done = _read_journal(journal) if part.exists() else (None, set())
    if begun is not None and begun != settings:
        raise DataError(f"{part} was begun with other options: repeat those, or delete it and {journal}")
    if begun is None:
        with told(part):
            with _create(part, settings) as file:
                file.attrs["generator"] = np.bytes_(json.dumps(settings))  # of fixed length, so not in a heap
                file["X"][-1] = 0  # so that HDF5 decides where X is in the file
            with open(part, "r+b") as file:  # reserve the space now: a memory map cannot report a full disk
                os.posix_fallocate(file.fileno(), 0, part.stat().st_size)
    lines = [json.dumps(settings), *map(str, sorted(done))]
    write_whole(journal, lambda path: path.write_text("\n".join(lines) + "\n"))  # without damaged lines
    with open_hdf5(part) as file:
        return file["X"].id.get_offset(), done


def _create(path: Path, settings: dict) -> h5py.File:
    """An empty file: in the original layout, or of a part, X alone with the frames of its cells."""
    if "part" not in settings:
        return create_file(path, settings["frames_per_cell"])
    frames = len(Part(*settings["part"]).taken(range(CELLS))) * settings["frames_per_cell"]
    file = h5py.File(path, "w")
    file.create_dataset("X", (frames, SAMPLES, 2), np.float32, fill_time="never")
    return file


def _parts_of(path: Path, settings: dict) -> dict[Path, Part]:
    """The parts that lie beside a file's place. DataError: one has other frames."""
    found = {}
    for own in parts_beside(path):
        made = json.loads(_made_with(own) or "{}")
        found[own] = Part(*made.pop("part", WHOLE))
        if made != settings:
            raise DataError(f"{own} has other frames: repeat its options, or move it away")
    return found


def _join(parts: dict[Path, Part], unfinished: Path, offset: int, frames_per_cell: int) -> set[int]:
    """Copy the cells of the parts to their places in the unfinished file; their numbers."""
    shape = frames_per_cell, SAMPLES, 2
    size, done = 4 * math.prod(shape), set()
    for own, part in parts.items():
        with open_hdf5(own) as source:
            start = source["X"].id.get_offset()
        for i, cell in enumerate(part.taken(range(CELLS))):
            frames = np.memmap(own, np.float32, "r", start + i * size, shape)
            np.memmap(unfinished, np.float32, "r+", offset + cell * size, shape)[:] = frames
            done.add(cell)
    return done


def _read_journal(path: Path) -> tuple[dict | None, set[int]]:
    """The settings in the first line of a journal, and the finished cells in the others.

    A damaged line counts as none, so a cell is made again; without settings, None, the whole file is begun anew.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # without an incomplete last line
    try:
        settings = json.loads(lines[0]) if lines else None
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        return None, set()
    cells = {int(line) for line in lines[1:] if line.isdigit() and len(line) < 6}
    return settings, {cell for cell in cells if cell < CELLS}


def generate(
    path: str | Path,
    frames_per_cell: int,
    seed: int = 0,
    workers: int | None = None,
    delay_spread: float = DELAY_SPREAD,
    part: Part = WHOLE,
) -> None:
    """Write a file in the original layout, or a part of it. It exists under its name only when complete.

    What an earlier, interrupted call has written is kept, and what parts beside it hold is copied.

    Args:
        path: the file.
        frames_per_cell: frames of each class at each SNR; the original has 4096.
        seed: of all frames.
        workers: number of processes, one for each core by default; the frames do not depend on it.
        delay_spread: of Rayleigh taps, in samples.
        part: which part; it is written beside the file's place, see Part.beside.

    Raises:
        DataError: an argument is out of range, or a file with other options exists.
    """
    # Are the options possible, and is there work to do?
    path = Path(path)
    settings = {"frames_per_cell": frames_per_cell, "seed": seed, "delay_spread": delay_spread}
    cells = part.taken(range(CELLS))
    if part != WHOLE:
        path, settings = part.beside(path), settings | {"part": list(part)}
    if frames_per_cell < 1 or seed < 0 or not 0 <= delay_spread < WINDOW or workers is not None and workers < 1:
        limits = f"seed 0 or more, delay spread from 0 to less than {WINDOW}"
        raise DataError(f"frames per cell and workers must be 1 or more, {limits}")
    if path.exists():
        if _made_with(path) == json.dumps(settings):
            return
        raise DataError(f"{path} is there already and has other frames; delete it or name another file")

    # Generate the missing cells.
    parts = _parts_of(path, settings) if part == WHOLE else {}
    unfinished, journal, lock = (path.with_name(f".{path.name}.{end}") for end in ("part", "done", "lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()  # a file of its own, since HDF5 locks its files itself
    with locked(lock):
        offset, done = _begin(unfinished, journal, settings)
        done |= _join(parts, unfinished, offset, frames_per_cell)
        size = 8 * SAMPLES * frames_per_cell  # of a cell, bytes
        places = [(cell, offset + i * size) for i, cell in enumerate(cells) if cell not in done]
        jobs = [Job(unfinished, place, frames_per_cell, cell, seed, delay_spread) for cell, place in places]
        processes = min(workers or os.cpu_count(), len(jobs) or 1)
        worker = partial(as_worker, os.getpid())
        with interrupts_ignored():
            pool = multiprocessing.get_context("spawn").Pool(processes, worker) if processes > 1 else nullcontext()
        whole, before = len(cells) * frames_per_cell, len(done) * frames_per_cell
        bar = tqdm(desc=str(path), total=whole, initial=before, unit="frame")
        with pool, told(journal), journal.open("a") as file, bar:
            for cell in pool.imap_unordered(_write_cell, jobs) if processes > 1 else map(_write_cell, jobs):
                file.write(f"{cell}\n")  # only complete cells are listed
                file.flush()
                bar.update(frames_per_cell)
        os.replace(unfinished, path)
        journal.unlink()
        lock.unlink()


def _made_with(path: Path) -> str | None:
    """The settings that a file was generated with, as JSON; None for other files."""
    if not h5py.is_hdf5(path):
        return None
    with open_hdf5(path) as file:
        told = file.attrs.get("generator")
        return told.decode() if isinstance(told, bytes) else told


def default_file(workers: int | None = None, few: bool = False) -> Path:
    """File of frames for a script that is given none: the original or a full generated set, else a small one.

    few: if there is none of these, 2,496 frames are enough, which are generated in seconds.
    """
    for path in map(Path, (*KNOWN_FILES, SMALL_FILE)):
        if path.exists():
            return path
    path, frames, time = (FEW_FILE, FEW_FRAMES, "seconds") if few else (SMALL_FILE, SMALL_FRAMES, "half a minute")
    if not path.exists():
        print(f"neither {' nor '.join(KNOWN_FILES)} exists: generating {path}, {time}", flush=True)
        generate(path, frames, workers=workers)
    return path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=place, help="HDF5 file to write")
    parser.add_argument(
        "--frames-per-cell",
        type=ranged(int, 1, 10**6),
        default=100,
        help="of each class and SNR; the original has 4096",
    )
    parser.add_argument(
        "--delay-spread", type=ranged(float, 0, 1024), default=DELAY_SPREAD, help="of Rayleigh taps, samples"
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--workers", type=WORKERS, default=None, help="processes, default all cores")
    parser.add_argument("--part", type=part_of, default=WHOLE, metavar="I/N", help="make the I-th of N parts")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    def work() -> None:
        generate(args.file, args.frames_per_cell, args.seed, args.workers, args.delay_spread, args.part)
        file = args.file if args.part == WHOLE else args.part.beside(args.file)
        print(f"{len(args.part.taken(range(CELLS))) * args.frames_per_cell} frames in {file}")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
