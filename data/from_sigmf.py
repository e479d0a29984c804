"""Annotated SigMF recordings become frames to train on: the way back from segment.py.

    python segment.py capture.sigmf-meta --annotate                  # rows become annotations
    ...                                                              # correct them in any SigMF editor
    python -m data.from_sigmf capture.sigmf-meta datasets/mine       # pictures and labels of each 40 ms
    python train_seg.py --checkpoint weights/seg_teacher.pt --more-frames datasets/mine --out runs/mine
    python segment.py other.sigmf-meta --checkpoint runs/mine/best.pt

core:label says what a stretch of time and frequency holds: LTE, NR, other (neither of them) or unknown (not to be
learned from). What has no annotation is noise, so give every carrier that you see a row. A carrier's edges are those of
its channel, guard bands included. The pictures are those that segment.py shows its network; labels lie beside them in
the layout of data/spectrum_sensing.py (as "anything else"), with the values 0 noise, 85 NR, 170 LTE and 255 unknown.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import DataError, exit_code, place, ranged
from data.hdf4 import read_raster
from data.recording import Frame
from data.recording_formats import Recording, open_recording
from data.sigmf import number
from data.spectrogram import HZ_PER_PIXEL, PARULA, SIZE, mask_columns
from data.workers import locked
from data.writing import FOLDER, begin, finish, remove_leftovers, write_pair

NOISE, NR, LTE, UNKNOWN = 0, 85, 170, 255
NAMES = {"lte": LTE, "nr": NR, "5g nr": NR, "5g": NR, "other": NOISE, "noise": NOISE, "unknown": UNKNOWN}
SHOWN = {"noise or other": NOISE, "NR": NR, "LTE": LTE, "unknown": UNKNOWN}
ORDER = (NOISE, NR, LTE, UNKNOWN)  # where annotations overlap, the later of these stays


def write_frames(recording: Recording, folder: Path, most: int = 250) -> Counter:
    """Write pictures and labels of a recording's frames; those of an earlier call for a recording of this name go.

    Args:
        recording: with its metadata.
        folder: of the frames, made if it isn't there.
        most: of its frames; more are thinned out evenly.

    Returns: pixels of each label value; of key "frames", the pictures.
    Raises: DataError for a label that is not known, or an unwritable folder.
    """
    marks = annotations_of(recording)
    name = recording.path.name.removesuffix(".sigmf-data")
    counts = Counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if old.suffix in (".png", ".hdf") and old.name.startswith(f"{name}_frame_"):
                old.unlink()
        numbers = np.unique(np.linspace(0, len(recording) - 1, min(most, len(recording))).round().astype(int))
        for index in tqdm(numbers.tolist(), name, unit="frame", file=sys.stderr):
            (frame,) = recording.frames(index, index + 1)
            for column, levels, _ in frame.spectrograms():
                mask = mask_of(frame, column, marks)
                write_pair(folder / f"{name}_frame_{index:05d}_{column + SIZE // 2:+05d}", PARULA[levels], mask)
                counts.update(dict(zip(*(part.tolist() for part in np.unique(mask, return_counts=True)), strict=True)))
                counts["frames"] += 1
    except OSError as error:
        raise DataError(f"{folder}: can't be written ({error.strerror}); choose another folder") from error
    return counts


def annotations_of(recording: Recording) -> list[tuple[int, int, float, float, int]]:
    """(first sample, sample behind the last, lower and upper edge in Hz, label value), in the order of painting.

    An annotation without edges covers the whole capture, one without a count the rest of the recording. Annotations
    without a label say nothing about carriers and are left out.
    """
    named = recording.meta_path or recording.path
    end = recording.offset + max(capture.start + capture.count for capture in recording.captures)
    marks = []
    for entry in recording.meta["annotations"]:
        label = entry.get("core:label")
        if label is None:
            continue
        value = NAMES.get(str(label).strip().lower())
        if value is None:
            raise DataError(f"{named}: the label {label!r} is unknown; call it LTE, NR, other or unknown")
        start = number(named, entry, "core:sample_start", 0, whole=True)
        count = number(named, entry, "core:sample_count", whole=True)
        low, high = number(named, entry, "core:freq_lower_edge"), number(named, entry, "core:freq_upper_edge")
        low, high = (-np.inf if low is None else low), (np.inf if high is None else high)
        if low > high:
            raise DataError(f"{named}: the annotation {label!r} at {start} has its upper edge first; exchange them")
        marks.append((start, end if count is None else start + count, low, high, value))
    return sorted(marks, key=lambda mark: ORDER.index(mark[4]))


def mask_of(frame: Frame, column: int, marks: list) -> np.ndarray:
    """Label values of the picture whose first column is `column`, uint8 (256, 256), the frame's end in row 0.

    What lies outside the capture is noise, as it is in the picture. A frame of less than 40 ms is repeated there.
    """
    whole = max(round(frame.sample_rate * 0.04), len(frame.samples))
    middle = ((SIZE - 0.5 - np.arange(SIZE)) / SIZE * whole).astype(int)  # sample in the middle of each row
    time = frame.start + middle % len(frame.samples)
    shift, half = (column + SIZE // 2) * HZ_PER_PIXEL, frame.sample_rate / 2
    mask = np.full((SIZE, SIZE), NOISE, np.uint8)
    for start, stop, low, high, value in marks:
        low, high = (edge - (frame.center_hz or 0.0) for edge in (low, high))
        low, high = max(low, -half), min(high, half - 1)
        if high > low:
            first, last = mask_columns(low - shift, high - shift)
            mask[(time >= start) & (time < stop), first : last + 1] = value
    return mask


def label_values(folder: Path) -> set[int]:
    """All values in the files of labels below a folder."""
    return {int(value) for path in folder.rglob("*.hdf") for value in np.unique(read_raster(path))}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=place, nargs="+", help=".sigmf-meta, or samples with metadata beside them")
    parser.add_argument("folder", type=place, help="for pictures and labels")
    parser.add_argument(
        "--most", type=ranged(int, 1, 10**9), default=250, metavar="N", help="frames of a recording, evenly spread"
    )
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse_args(argv)
    return exit_code(lambda: convert(args.recordings, args.folder, args.most))


def convert(paths: list[Path], folder: Path, most: int) -> None:
    """Write frames of annotated recordings to a folder, at most so many of each, and print what they show."""
    recordings = [open_recording(path) for path in paths]
    names = Counter(recording.path.name for recording in recordings)
    for recording in recordings:
        if names[recording.path.name] > 1:
            raise DataError(f"{recording.path}: another recording has this name; rename one of them")
        annotations_of(recording)
    if label_values(folder) - set(ORDER):
        raise DataError(f"{folder}: holds frames of another set; choose another folder")
    command = ["python", "-m", "data.from_sigmf", *map(str, paths), FOLDER, "--most", str(most)]
    counts = Counter()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: can't be written ({error.strerror}); choose another folder") from error
    with locked(folder):
        begin(folder, command, {recording.path.name: min(most, len(recording)) for recording in recordings})
        remove_leftovers([folder])
        for recording in recordings:
            if not annotations_of(recording):
                print(f"{recording.path}: has no annotation, so all of it is taught as noise")
            counts += write_frames(recording, folder, most)
        finish(folder)
    if label_values(folder) == {NOISE, UNKNOWN}:
        raise DataError(f"{folder}: has unknown but no LTE or NR, so 255 would be LTE; add a recording of one")
    pixels = counts.total() - counts["frames"]
    shares = ", ".join(f"{name} {100 * counts[value] / pixels:.1f} %" for name, value in SHOWN.items())
    print(f"{counts['frames']} pictures in {folder}; of their pixels {shares}")


if __name__ == "__main__":
    sys.exit(main())
