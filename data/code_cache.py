"""Frames as the integers that a quantised network reads: a cache beside the file, a quarter of its size.

    frames = open_cache(open_frames(FILE), bits=8)          # int8 codes, written by the first call
    verify_cache(open_frames(FILE), bits=8)                 # compare all of it with the source

A cache holds the integers (codes) that the quantised network's input layer makes of samples: x * 2^(bits - 2), clamped
to -2^(bits - 1) .. 2^(bits - 1) - 1 and rounded. `radioml.batches` gives code * scale, which the input layer leaves as
it is. Each bit width needs its own cache.
"""

import fcntl
import json
import math
import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import DataError
from data.radioml import BLOCK, Frames, Seals


def encode(x: np.ndarray, bits: int) -> np.ndarray:
    """Quantise samples of any shape to int8 codes, with +-2 as full scale, exactly as models.fake_quant.QuantInput."""
    n = 2 ** (bits - 1)
    return np.rint(np.clip(x * np.float32(n / 2), -n, n - 1)).astype(np.int8)


def open_cache(frames: Frames, bits: int, directory: str | Path | None = None) -> Frames:
    """The same frames as int8 codes of one bit width, from the file FILE.codesBITS, which the first call writes.

    Writing shows a progress bar and continues after an interruption. At its end the file is read back and compared with
    the checksums in FILE.codesBITS.json. Opening compares size and 256 frames with the source; a block of 4096 frames
    is compared with its checksum when it is first read. A cache of another source, or without checksums, is replaced.

    Args:
        frames: from `open_frames`, or `from_arrays` with a path.
        bits: 2 to 8, of the network's input.
        directory: where the cache is; None for the folder of the file.

    Raises:
        DataError: no path, a sample that is not a number, no space, no permission, or another process is writing.
    """
    if frames.path is None or frames.scale is not None or not 2 <= bits <= 8:
        raise DataError("a cache needs frames with samples and a path, and 2 to 8 bits")
    target = Path(directory or frames.path.parent) / f"{frames.path.name}.codes{bits}"
    samples = frames.x.shape[1] if frames.x.shape[2] == 2 else frames.x.shape[2]
    shape = (len(frames), 2, samples)
    probe = np.linspace(0, len(frames) - 1, min(256, len(frames))).astype(np.int64)
    expected = encode(frames.samples(probe).numpy(), bits)
    source = zlib.crc32(expected)
    sums = _noted(target, source, shape)
    good = _fits(target, shape) and len(sums) == -(-len(frames) // BLOCK)
    if not (good and np.array_equal(np.memmap(target, np.int8, "r", shape=shape)[probe], expected)):
        try:
            sums = _write_cache(frames, bits, target, shape, source)
        except OSError as error:
            raise DataError(f"{target}: can't be written ({error}); free some space or name another folder") from error
    codes = np.memmap(target, np.int8, "r", shape=shape)
    return replace(frames, x=codes, scale=2.0 ** (2 - bits), seals=Seals(sums, BLOCK))


def verify_cache(frames: Frames, bits: int, directory: str | Path | None = None) -> None:
    """Compare a whole cache with its checksums and with the source. Raises DataError if they differ."""
    target = Path(directory or frames.path.parent) / f"{frames.path.name}.codes{bits}"
    cache = open_cache(frames, bits, directory)
    codes, sums = cache.x, cache.seals.sums
    for number, start in enumerate(tqdm(range(0, len(frames), BLOCK), f"verify {target.name}", unit="block")):
        block = np.ascontiguousarray(codes[start : start + BLOCK])
        source = encode(frames.samples(np.arange(start, start + len(block))).numpy(), bits)
        if zlib.crc32(block) != sums[number] or not np.array_equal(block, source):
            raise DataError(f"{target}: differs from its source in the {BLOCK} frames from {start} on; delete it")


def _noted(target: Path, source: int, shape: tuple) -> list[int]:
    """The checksums in a cache's notes, one for each block; none of another source, and none of damaged notes."""
    try:
        notes = json.loads(_facts(target).read_bytes())
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(notes, dict) or notes.get("source") != source or notes.get("shape") != list(shape):
        return []
    sums = notes.get("crc32")
    good = isinstance(sums, list) and all(type(one) is int and 0 <= one < 1 << 32 for one in sums)
    return sums if good else []


def _write_cache(frames: Frames, bits: int, target: Path, shape: tuple, source: int) -> list[int]:
    """Append block by block to TARGET.part, noting each block's checksum; read it back; rename it to TARGET.

    source: checksum of some frames. What was written of another source is not used. Returns the checksums.
    """
    part, facts = target.with_name(target.name + ".part"), _facts(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(frames), BLOCK)
    with open(part, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{part}: another process is writing it; wait until it has finished") from error
        # Which blocks an interrupted call has written.
        sums = _noted(target, source, shape)
        bytes_a_frame = shape[1] * shape[2]
        sums = sums[: _intact(part, sums, BLOCK * bytes_a_frame)]
        file.truncate(len(sums) * BLOCK * bytes_a_frame)
        # Write the others.
        for start in tqdm(starts[len(sums) :], target.name, len(starts), initial=len(sums), unit="block"):
            rows = np.arange(start, min(start + BLOCK, len(frames)))
            codes = encode(frames.samples(rows).numpy(), bits)
            file.write(codes)
            file.flush()
            sums.append(zlib.crc32(codes))
            temporary = facts.with_suffix(".tmp")
            temporary.write_text(json.dumps({"source": source, "shape": shape, "bits": bits, "crc32": sums}))
            os.replace(temporary, facts)
        # Read all of it back.
        os.fsync(file.fileno())
        if _intact(part, sums, BLOCK * bytes_a_frame) < len(sums):
            raise DataError(f"{part}: differs from what was written when read back; check the disk and run it again")
        os.replace(part, target)
        return sums


def _intact(path: Path, sums: list[int], block_bytes: int) -> int:
    """The number of blocks, counted from the start of a file, that have the given checksums."""
    with open(path, "rb") as file:
        for number, expected in enumerate(sums):
            if zlib.crc32(file.read(block_bytes)) != expected:
                return number
    return len(sums)


def _facts(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _fits(target: Path, shape: tuple) -> bool:
    return target.is_file() and target.stat().st_size == math.prod(shape)
