"""Generate a Spectrum Sensing data set: LTE and 5G NR frames in the published archive's layout.

    python -m data.synthetic datasets/spectrum_sensing                                     # 4,500 frames, 20 minutes
    python -m data.synthetic datasets/small --nr 60 --lte 60 --combined 30 --field 120     # a minute or two

Each frame becomes a picture (.png) and a mask (.hdf): NR_ and LTE_ at the root, both together in LTE_NR/, scenes from
the field in FIELD/ (data/frames.py tells what they are). frames.csv beside them lists each frame's carriers and SNR.
Interrupted, the same command goes on where it was. Minutes are for two cores.
"""

import argparse
import csv
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from data import DataError
from data.frames import make_frame
from data.hdf4 import write_raster
from data.spectrogram import FRAME_SAMPLES, SAMPLE_RATE, channel_mask, spectrogram_image

DEFAULT_COUNTS = {"NR": 900, "LTE": 900, "LTE_NR": 900, "FIELD": 1800}
SMALL_COUNTS = {"NR": 60, "LTE": 60, "LTE_NR": 30, "FIELD": 120}  # to train or score on where no data set is given
FEW_COUNTS = {"NR": 5, "LTE": 5, "LTE_NR": 5, "FIELD": 5}  # to look at a network's outputs
COLUMNS = ["frame", "family", "seed", "snr_db", "carriers"]  # of frames.csv


def frame_name(family, index):
    """Path of a frame below the set's root, without suffix."""
    folder = f"{family}/" if family in ("LTE_NR", "FIELD") else ""
    return f"{folder}{family}_frame_{index}"


def _replace(path, write):
    """Call write(temporary path), then rename, so that a file is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    write(temporary)
    os.replace(temporary, path)


def _write_frame(job):
    root, family, index, seed, keep_iq = job
    torch.set_num_threads(1)
    iq, carriers = make_frame(family, index, seed)
    stem = Path(root) / frame_name(family, index)
    mask = channel_mask(carriers)
    _replace(stem.with_suffix(".hdf"), lambda path: write_raster(path, mask, compression="rle"))
    if keep_iq:
        _write_sigmf(stem, iq, carriers)
    # The picture comes last: where it is there, the frame is complete.
    _replace(stem.with_suffix(".png"), lambda path: Image.fromarray(spectrogram_image(iq)).save(path, format="PNG"))
    snr = max((carrier["snr_db"] for carrier in carriers), default="")
    return frame_name(family, index), family, seed, snr, json.dumps(carriers)


def _write_sigmf(stem, iq, carriers):
    """The frame's samples as a SigMF recording, each carrier an annotation."""
    meta = {
        "global": {
            "core:datatype": "cf32_le",
            "core:sample_rate": SAMPLE_RATE,
            "core:version": "1.0.0",
            "core:description": "Synthetic LTE / 5G NR frame",
        },
        "captures": [{"core:sample_start": 0}],
        "annotations": [
            {
                "core:sample_start": 0,
                "core:sample_count": FRAME_SAMPLES,
                "core:freq_lower_edge": carrier["center_hz"] - carrier["bandwidth_hz"] / 2,
                "core:freq_upper_edge": carrier["center_hz"] + carrier["bandwidth_hz"] / 2,
                "core:label": carrier["technology"],
            }
            for carrier in carriers
        ],
    }
    _replace(stem.with_suffix(".sigmf-data"), lambda path: iq.astype("<c8").tofile(path))
    _replace(stem.with_suffix(".sigmf-meta"), lambda path: path.write_text(json.dumps(meta, indent=1)))


def _leave_interrupts_to_the_parent():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_rows(path):
    """Rows of frames.csv by frame; a last row that a kill left unfinished is dropped."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    return {row[0]: row for row in rows if len(row) == len(COLUMNS) and row != COLUMNS and row[4].endswith("]")}


def _write_rows(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def generate(directory, counts=None, seed=0, workers=None, keep_iq=False):
    """Write a data set, going on where an interrupted call stopped.

    Args: counts, frames of each family (DEFAULT_COUNTS); workers, processes (all cores); keep_iq, also write complex64
    SigMF recordings (20 MB a frame).  Raises: DataError when the folder holds frames of another seed.
    """
    if seed < 0 or workers is not None and workers < 1:
        raise DataError(f"seed {seed} and {workers} workers can't be used: a seed is 0 or more, workers are 1 or more")
    root, counts = Path(directory), dict(DEFAULT_COUNTS if counts is None else counts)
    root.mkdir(parents=True, exist_ok=True)
    journal = root / "frames.csv"
    done = _read_rows(journal)
    other = [row for row in done.values() if row[2] != str(seed)]
    if other:
        raise DataError(f"{journal} lists frames of seed {other[0][2]}, not {seed}; choose another folder or that seed")
    jobs = []
    for family, count in counts.items():
        (root / frame_name(family, 0)).parent.mkdir(exist_ok=True)
        for index in range(1, count + 1):
            name = frame_name(family, index)
            complete = name in done and (root / f"{name}.png").exists()
            if not complete or keep_iq and not (root / f"{name}.sigmf-meta").exists():  # written after the data
                jobs.append((str(root), family, index, seed, keep_iq))
    if not jobs:
        return
    _replace(journal, lambda path: _write_rows(path, done.values()))
    processes = min(workers or os.cpu_count(), len(jobs))
    pool = multiprocessing.get_context("spawn").Pool(processes, _leave_interrupts_to_the_parent)
    with pool, journal.open("a", newline="") as file:
        rows = pool.imap(_write_frame, jobs)
        for row in tqdm(rows, total=len(jobs), desc=f"generating {root}", unit="frame"):
            if row[0] not in done:
                csv.writer(file).writerow(row)
                file.flush()  # a row is there only when its frame is complete


def default_set(workers=None, counts=None):
    """Where the scripts find frames if no folder is named: the full set if it is there, else a small one.

    Args: workers, processes (all cores); counts, frames of each family that the caller needs (SMALL_COUNTS). The small
    set grows with them: frames that an earlier call made are kept, and there may be more than asked for.
    """
    full, small = Path("datasets/spectrum_sensing"), Path("datasets/small")
    if full.exists():
        return full
    counts = SMALL_COUNTS if counts is None else counts
    number = sum(counts.values())
    print(f"no {full}, so {number} synthetic frames in {small}: missing ones are made now, about one a second")
    generate(small, counts, workers=workers)
    return small


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", help="folder to write the set to")
    parser.add_argument("--nr", type=int, default=DEFAULT_COUNTS["NR"], help="single-signal NR frames")
    parser.add_argument("--lte", type=int, default=DEFAULT_COUNTS["LTE"], help="single-signal LTE frames")
    parser.add_argument("--combined", type=int, default=DEFAULT_COUNTS["LTE_NR"], help="frames with both")
    parser.add_argument("--field", type=int, default=DEFAULT_COUNTS["FIELD"], help="frames as met in the field")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes, default all cores")
    parser.add_argument("--keep-iq", action="store_true", help="also write SigMF recordings, 20 MB a frame")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    counts = {"NR": args.nr, "LTE": args.lte, "LTE_NR": args.combined, "FIELD": args.field}
    try:
        generate(args.directory, counts, args.seed, args.workers, args.keep_iq)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on where {args.directory} is incomplete", file=sys.stderr)
        return 130
    print(f"{sum(counts.values())} frames in {args.directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
