"""Generate a Spectrum Sensing data set: LTE and 5G NR frames in the published archive's layout.

    python -m data.synthetic datasets/spectrum_sensing                                     # 4,500 frames, 20 minutes
    python -m data.synthetic datasets/small --nr 60 --lte 60 --combined 30 --field 120     # a minute or two

Each frame becomes a picture (.png) and its labels (.hdf). NR_ and LTE_ frames are at the root, frames with both in
LTE_NR/, frames as a receiver meets them outside a laboratory in FIELD/, and with --other N frames with what is neither
LTE nor NR in OTHER/ (see data/frames.py). frames.csv lists the carriers and the SNR of each frame. If the command is
interrupted, run it again: it continues where it stopped. The times are for two cores.

Several machines share the work: with --part 1/3, 2/3, 3/3 and otherwise the same options each makes a part, in a folder
of its own. Copy them into one folder and run the command there once more, without --part. It makes what is missing and
writes frames.csv; the folder then equals one that a single machine made, byte for byte.
"""

import argparse
import csv
import json
import multiprocessing
import os
import sys
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from data import SEED, WORKERS, DataError, exit_code, place, ranged
from data.frames import labelled_frame
from data.spectrogram import FRAME_SAMPLES, LABELS, SAMPLE_RATE, spectrogram_image
from data.spectrum_sensing import FOLDERS
from data.values import MOST_DB
from data.workers import as_worker, interrupts_ignored, locked
from data.writing import (
    FOLDER,
    MARKER,
    WHOLE,
    begin,
    finish,
    part,
    parts_beside,
    remove_leftovers,
    told,
    write_pair,
    write_whole,
)

DEFAULT_COUNTS = {"NR": 900, "LTE": 900, "LTE_NR": 900, "FIELD": 1800, "OTHER": 0}
SMALL_COUNTS = {"NR": 60, "LTE": 60, "LTE_NR": 30, "FIELD": 120}  # for scripts that are given no data set
FEW_COUNTS = {"NR": 5, "LTE": 5, "LTE_NR": 5, "FIELD": 5}  # enough to compare the outputs of two networks
OPTIONS = {"NR": "--nr", "LTE": "--lte", "LTE_NR": "--combined", "FIELD": "--field", "OTHER": "--other"}
COLUMNS = ["frame", "family", "seed", "snr_db", "carriers"]  # of frames.csv


def frame_name(family, index):
    """Path of a frame within the set, without suffix, such as "LTE_NR/LTE_NR_frame_3"."""
    folder = "" if FOLDERS[family] == "." else f"{FOLDERS[family]}/"
    return f"{folder}{family}_frame_{index}"


def _write_frame(job):
    """Make one frame and write its files; runs in a worker process. Returns its row of frames.csv."""
    root, family, index, seed, keep_iq = job
    torch.set_num_threads(1)
    iq, carriers, mask = labelled_frame(family, index, seed)
    stem = Path(root) / frame_name(family, index)
    if keep_iq:
        _write_sigmf(stem, iq, carriers)
    write_pair(stem, spectrogram_image(iq), mask)  # last: if the picture exists, the frame is complete
    snr = max((carrier["snr_db"] for carrier in carriers if carrier["technology"] in LABELS), default="")
    return frame_name(family, index), family, seed, snr, json.dumps(carriers)


def _write_sigmf(stem, iq, carriers):
    """Write the frame's samples as a SigMF recording with an annotation for each carrier."""
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
                "core:label": carrier.get("kind", carrier["technology"]),
            }
            for carrier in carriers
        ],
    }
    write_whole(stem.with_suffix(".sigmf-data"), lambda path: iq.astype("<c8").tofile(path))
    write_whole(stem.with_suffix(".sigmf-meta"), lambda path: path.write_text(json.dumps(meta, indent=1)))


def _read_rows(path):
    """Rows of frames.csv, {frame: row}. Damaged ones are left out, so that their frames are made again."""
    rows = {}
    for line in path.read_bytes().split(b"\n") if path.exists() else []:  # a row is a line, as the generator writes it
        try:
            row = next(csv.reader([line.decode("utf-8").rstrip("\r")], strict=True), [])
            if _is_row(row):
                rows[row[0]] = row
        except (ValueError, csv.Error, RecursionError):
            continue
    return rows


def _is_row(row):
    """Whether a row is one of the generator's; ValueError for what is no number and no JSON where it is expected."""
    if len(row) != len(COLUMNS) or row == COLUMNS:
        return False
    name, family, seed, snr_db, carriers = row
    index = name.rpartition("_")[2]
    known = family in FOLDERS and index.isascii() and index.isdigit() and name == frame_name(family, int(index))
    return known and int(seed) >= 0 and abs(float(snr_db or 0)) <= MOST_DB and isinstance(json.loads(carriers), list)


def _write_rows(path, rows):
    """Write frames.csv in the order of the families and numbers, whatever the order in which frames were made."""
    order = list(FOLDERS)
    rows = sorted(rows, key=lambda row: (order.index(row[1]), int(row[0].rpartition("_")[2])))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])


def generate(directory, counts=None, seed=0, workers=None, keep_iq=False, part=WHOLE):
    """Write a data set, or a part of it. Frames that an earlier, interrupted call has completed are kept.

    Until it is complete, the folder says that it is not (data/writing.py), and find_frames refuses it.

    Args: counts, {family: number of frames}, DEFAULT_COUNTS if None; workers, number of processes, one for each core if
    None; keep_iq, also write SigMF recordings (complex64, 20 MB a frame); part, a data.writing.Part: only its frames
    are made, and the folder stays unfinished.
    Raises: DataError if the folder holds frames of another seed or another process writes it, for a negative seed or no
    workers, or if the disk refuses.
    """
    if seed < 0 or workers is not None and workers < 1:
        raise DataError(f"seed {seed} with {workers} workers can't be used; a seed is 0 or more, workers are 1 or more")
    root, counts = Path(directory), dict(DEFAULT_COUNTS if counts is None else counts)
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        remove_leftovers({(root / frame_name(family, 0)).parent for family in FOLDERS})
        _generate(root, counts, seed, workers, keep_iq, part)


def _generate(root, counts, seed, workers, keep_iq, part):
    # What is there already.
    journal = root / "frames.csv"
    parts = parts_beside(journal)
    done = {name: row for path in (*parts, journal) for name, row in _read_rows(path).items()}
    seeds = {row[2] for row in done.values()} - {str(seed)}
    if seeds:
        raise DataError(f"{journal} lists frames of seed {min(seeds)}, not {seed}; choose another folder or that seed")

    # What is missing.
    jobs = []
    for family, index in part.taken([(family, 1 + i) for family, count in counts.items() for i in range(count)]):
        name = frame_name(family, index)
        complete = name in done and all((root / f"{name}.{end}").exists() for end in ("png", "hdf"))
        if not complete or keep_iq and not (root / f"{name}.sigmf-meta").exists():  # written after the data
            jobs.append((str(root), family, index, seed, keep_iq))
    if jobs or part != WHOLE:
        begin(root, _command(counts, seed, keep_iq), counts)
    if jobs:
        _generate_missing(journal if part == WHOLE else part.beside(journal), done, jobs, workers)
    if part == WHOLE and (parts or (root / MARKER).exists()):
        done |= _read_rows(journal)
        write_whole(journal, lambda path: _write_rows(path, done.values()))
        for path in parts:
            path.unlink()
        finish(root)


def _generate_missing(journal, done, jobs, workers):
    """Do the jobs, and add a row to the journal for each frame that is not among `done`, in the order of the jobs."""
    root = journal.parent
    for family in {job[1] for job in jobs}:
        (root / frame_name(family, 0)).parent.mkdir(exist_ok=True)
    write_whole(journal, lambda path: _write_rows(path, done.values()))
    processes = min(workers or os.cpu_count(), len(jobs))
    worker = partial(as_worker, os.getpid())
    with interrupts_ignored():
        pool = multiprocessing.get_context("spawn").Pool(processes, worker)
    with pool, told(journal), journal.open("a", newline="", encoding="utf-8") as file:
        rows = pool.imap(_write_frame, jobs)
        for row in tqdm(rows, total=len(jobs), desc=f"generating {root}", unit="frame"):
            if row[0] not in done:
                csv.writer(file).writerow(row)
                file.flush()  # only complete frames have a row


def _command(counts, seed, keep_iq):
    """The command that makes such a set; FOLDER is in the place of its folder."""
    options = [word for family, option in OPTIONS.items() for word in (option, str(counts.get(family, 0)))]
    options += ["--seed", str(seed), *(["--keep-iq"] if keep_iq else [])]
    return ["python", "-m", "data.synthetic", FOLDER, *options]


def default_set(workers=None, counts=None):
    """Folder of frames for a script that is given none: the full set if it exists, else a small generated one.

    Args: workers, as for `generate`; counts, frames of each family that the caller needs, SMALL_COUNTS if None. Only
    missing frames of the small set are made. It may hold more frames than asked for.
    """
    full, small = Path("datasets/spectrum_sensing"), Path("datasets/small")
    if full.exists():
        return full
    counts = SMALL_COUNTS if counts is None else counts
    number = sum(counts.values())
    print(f"{full} does not exist: {number} synthetic frames in {small} are used, missing ones made (one a second)")
    generate(small, counts, workers=workers)
    return small


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=place, help="folder to write the set to")
    parser.add_argument(
        "--nr", type=ranged(int, 0, 10**7), default=DEFAULT_COUNTS["NR"], help="frames with an NR carrier"
    )
    parser.add_argument(
        "--lte", type=ranged(int, 0, 10**7), default=DEFAULT_COUNTS["LTE"], help="frames with an LTE carrier"
    )
    parser.add_argument(
        "--combined", type=ranged(int, 0, 10**7), default=DEFAULT_COUNTS["LTE_NR"], help="frames with both"
    )
    parser.add_argument(
        "--field", type=ranged(int, 0, 10**7), default=DEFAULT_COUNTS["FIELD"], help="frames as a receiver meets them"
    )
    parser.add_argument(
        "--other", type=ranged(int, 0, 10**7), default=DEFAULT_COUNTS["OTHER"], help="frames with what is neither"
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--workers", type=WORKERS, default=None, help="processes, default all cores")
    parser.add_argument("--keep-iq", action="store_true", help="also write SigMF recordings, 20 MB a frame")
    parser.add_argument("--part", type=part, default=WHOLE, metavar="I/N", help="make the I-th of N parts")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    counts = {"NR": args.nr, "LTE": args.lte, "LTE_NR": args.combined, "FIELD": args.field, "OTHER": args.other}

    def work() -> None:
        generate(args.directory, counts, args.seed, args.workers, args.keep_iq, args.part)
        whole = sum(counts.values())
        made = len(args.part.taken(range(whole)))
        print(f"{made} frames in {args.directory}" + (f", of the {whole} of the set" if made < whole else ""))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
