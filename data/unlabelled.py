"""Read frames without their labels, for training on unlabelled pictures.

frames = find_pictures("my_recordings")         # as data.spectrum_sensing.find_frames, but no mask is needed
images = read_pictures(frames)                  # uint8 (N, 3, H, W)
parts, sets = find_parts("my_recordings", [], label_free=True)
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import DataError
from data.hdf4 import read_raster
from data.png import png_size, read_png
from data.spectrum_sensing import Frame, family_of, find_frames, split, with_snrs
from data.writing import MARKER, refuse_unfinished


def find_pictures(root) -> list[Frame]:
    """Every NAME.png below `root` in lexicographic order, each as a Frame whose mask may be missing.

    Names, families and order are those of find_frames, so that data.spectrum_sensing.split gives the same parts.
    Raises DataError if there is no picture, if the set's generation was interrupted, or for damaged SNRs.
    """
    root, frames = Path(root), {}
    for path in root.rglob(MARKER):
        refuse_unfinished(path)
    for path in root.rglob("*.png"):
        name = path.relative_to(root).as_posix().removeprefix("TrainingData/").removesuffix(".png")
        if not any(part.startswith(".") for part in name.split("/")):
            frames[f"{name}.png"] = Frame(name, family_of(name), path, path.with_suffix(".hdf"))
    if not frames:
        raise DataError(f"{root} holds no frame NAME.png; make some with `python -m data.synthetic {root}`")
    return with_snrs(root, [frames[name] for name in sorted(frames)])


def read_pictures(frames: list[Frame], progress: bool = True) -> torch.Tensor:
    """Decode the pictures of frames: uint8 (N, 3, H, W), RGB.

    Raises DataError for an empty list, a picture that cannot be read, and pictures of different sizes.
    """
    if not frames:
        raise DataError("there are no frames to read; choose a folder with more frames")
    size = png_size(frames[0].png)
    images = np.empty((len(frames), 3, *size), np.uint8)
    for i, frame in enumerate(tqdm(frames, "frames", unit="frame", disable=not progress, file=sys.stderr)):
        if png_size(frame.png) != size:  # before the pixels are decoded
            raise DataError(f"{frame.png} and {frames[0].png} differ in size; keep frames of one size in a set")
        images[i] = read_png(frame.png).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    return torch.from_numpy(images)


def with_release(frames: list[Frame]) -> list[Frame]:
    """The same frames with `labels` set from their masks, as find_frames sets it. Every frame must have a mask."""
    values = set()
    for frame in (frame for frame in frames if frame.family != "OTHER"):
        values |= set(np.unique(read_raster(frame.hdf)).tolist())
    labels = "four" if values & {85, 170} and 127 not in values else "three"
    return [replace(frame, labels="four" if frame.family == "OTHER" else labels) for frame in frames]


def find_parts(folder: Path, more: list[Path], label_free: bool) -> tuple[dict, dict]:
    """The parts of a set, by data.spectrum_sensing.split, and those of them that can be scored: {name: frames}.

    Args:
        folder: of the set.
        more: further folders to train on.
        label_free: frames need no mask; those without one are not scored.

    Raises:
        DataError: there are too few frames.
    """
    find = find_pictures if label_free else find_frames
    parts = split(find(folder), more=[frame for other in more for frame in find(other)])
    if not parts["validation"] or not parts["test"]:
        raise DataError(f"{folder}: too few frames to split, 10 single-signal ones are needed")
    sets = {name: parts[name] for name in ("test", "combined", "own") if parts.get(name)}
    if label_free:
        labelled = {name: [frame for frame in frames if frame.hdf.exists()] for name, frames in sets.items()}
        sets = {name: with_release(frames) for name, frames in labelled.items() if frames}
    return parts, sets
