"""Read the MathWorks "Spectrum Sensing with Deep Learning to Identify 5G and LTE Signals" data and sets like it.

    python -m data.spectrum_sensing download DIR    # the published archive, about 10 GB of free space
    python -m data.spectrum_sensing check DIR       # counts frames and pixels of a set on disk

A frame is a spectrogram NAME.png with its labels NAME.hdf (an HDF4 raster, see data/hdf4.py). Its parameters are in
NAME.mat in the archive, and in a line of frames.csv in a generated set:

    NR_frame_1.png            one 5G NR carrier        (the archive keeps everything below TrainingData/)
    LTE_frame_1.png           one LTE carrier
    LTE_NR/LTE_NR_frame_1.png one carrier of each: the challenge set
    FIELD/FIELD_frame_1.png   generated: any number of carriers, as a receiver meets them
    OTHER/OTHER_frame_1.png   generated: what is neither LTE nor NR, alone, beside carriers and across them
    anything else             frames of your own, never trained on

The files of labels hold 0 for noise, 127 for NR and 255 for LTE. A later release of the archive holds 0, 85, 170, and
255 for unknown, which loss and metrics ignore; so do OTHER frames, whatever the rest of the set holds. In this file
"mask" and "labels" of a frame mean the same.
"""

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import VisionDataset
from tqdm import tqdm

from data import DataError, exit_code, place
from data.download import extract, fetch
from data.hdf4 import read_raster
from data.png import png_size, read_png
from data.snrs import known_snrs
from data.writing import MARKER, refuse_unfinished

URL = "https://www.mathworks.com/supportfiles/spc/SpectrumSensing/SpectrumSenseTrainingDataNetwork.tar.gz"
SPACE = 10e9  # bytes of the archive and its contents together

CLASSES = ("noise", "NR", "LTE")
IGNORE = 255  # pixels of the class "unknown"
LABEL_VALUES = {
    "three": {0: 0, 127: 1, 255: 2},
    "four": {0: 0, 85: 1, 170: 2, 255: IGNORE},  # 255 i / 3
}
OWN = "OWN"  # the family of frames that are in no folder of a known one
FOLDERS = {"NR": ".", "LTE": ".", "LTE_NR": "LTE_NR", "FIELD": "FIELD", "OTHER": "OTHER"}  # of each family


@dataclass(frozen=True)
class Frame:
    """One spectrogram with its labels on disk; nothing is decoded yet."""

    name: str  # relative POSIX path without suffix, such as "LTE_NR/LTE_NR_frame_3"; TrainingData/ is left out
    family: str  # a key of FOLDERS, or OWN
    png: Path
    hdf: Path
    labels: str = "three"  # a key of LABEL_VALUES, for masks whose own values do not tell which release they are of
    snr_db: float | None = None  # of the strongest carrier, see data/snrs.py; None if it is not known


def find_frames(root) -> list[Frame]:
    """Every frame below `root`, in lexicographic order of the relative path of its .png, with its SNR.

    No picture is decoded. Raises DataError for a folder that is missing or holds no frame, for a .png without .hdf or
    an .hdf without .png, for two frames of one name, for a set whose generation was interrupted, and for SNRs that
    cannot be understood (data/snrs.py).
    """
    # Files by name.
    root = Path(root)
    paths = {}
    for path in root.rglob("*"):
        if path.name == MARKER:
            refuse_unfinished(path)
        name = path.relative_to(root).as_posix().removeprefix("TrainingData/")
        if path.suffix in (".png", ".hdf") and not any(part.startswith(".") for part in name.split("/")):
            if paths.setdefault(name, path) != path:
                raise DataError(f"{path} and {paths[name]} are both {name}; keep one of the two sets in {root}")
    # Pairs of picture and labels.
    frames = []
    for name in sorted(paths):
        stem, partner = name[:-4], name[:-4] + (".hdf" if name.endswith(".png") else ".png")
        if partner not in paths:
            raise DataError(f"{paths[name]} has no {Path(partner).name} beside it; complete the frame or remove it")
        if name.endswith(".png"):
            frames.append(Frame(stem, family_of(stem), paths[name], paths[partner]))
    if not frames:
        raise DataError(
            f"{root} holds no frames (NAME.png beside NAME.hdf); fetch the archive with "
            f"`python -m data.spectrum_sensing download {root}` or make a set with `python -m data.synthetic {root}`"
        )
    labels = _release([frame for frame in frames if frame.family != "OTHER"])
    frames = [replace(frame, labels="four" if frame.family == "OTHER" else labels) for frame in frames]
    return with_snrs(root, frames)


def with_snrs(root, frames: list[Frame]) -> list[Frame]:
    """The same frames with their SNRs, which are read now. Raises DataError as data/snrs.py does."""
    snrs = known_snrs(root, [frame.name for frame in frames], [frame.png for frame in frames])
    return [replace(frame, snr_db=snr) for frame, snr in zip(frames, snrs, strict=True)]


def family_of(name: str) -> str:
    """A frame's family by its name, such as "FIELD/FIELD_frame_1"."""
    folder, _, file = name.rpartition("/")
    family = file.rpartition("_frame_")[0]
    return family if FOLDERS.get(family) == (folder or ".") else OWN


def _release(frames: list[Frame]) -> str:
    """Which release a set's labels are of, a key of LABEL_VALUES.

    255 is LTE in one release and unknown in the other, so a mask is needed that has a value of one release alone.
    """
    for frame in sorted(frames, key=lambda frame: frame.family != "NR"):  # a mask with NR has one: look there first
        values = set(np.unique(read_raster(frame.hdf)).tolist())
        if values & {127, 85, 170}:
            return "three" if 127 in values else "four"
    return "three"


def read_mask(frame: Frame) -> np.ndarray:
    """Class of each pixel, uint8 (H, W): 0 noise, 1 NR, 2 LTE, 255 to be ignored.

    Raises DataError for a file that cannot be read, or one with values of neither release.
    """
    raster = read_raster(frame.hdf)
    counts = np.bincount(raster.ravel(), minlength=256)
    labels = "three" if counts[127] else "four" if counts[85] or counts[170] else frame.labels
    classes = LABEL_VALUES[labels]
    foreign = set(np.flatnonzero(counts).tolist()) - set(classes)
    if foreign:
        raise DataError(
            f"{frame.hdf} has the label value {min(foreign)}, and this set knows {', '.join(map(str, classes))}; "
            "replace the file by a mask of these releases"
        )
    table = np.zeros(256, np.uint8)
    table[list(classes)] = list(classes.values())
    return table[raster]


def read_frame(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Spectrogram, uint8 (3, H, W), RGB, and the class of each pixel, uint8 (H, W).

    Raises DataError if one of the two cannot be read, or if their sizes differ.
    """
    mask, size = read_mask(frame), png_size(frame.png)
    if size != mask.shape:  # before the pixels are decoded
        raise DataError(
            f"{frame.png} is {_size(size)} and its mask {frame.hdf.name} {_size(mask.shape)} pixels; "
            "replace one of them"
        )
    image = read_png(frame.png).transpose(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    return image, mask


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]}"


class SpectrumSensing(VisionDataset):
    """Frames on disk as a torchvision data set: [i] is (image uint8 (3, H, W), mask int64 (H, W)).

    frames: the part of the set to use, such as split(find_frames(root))["train"]; all frames if None.
    transforms: called as transforms(image, mask), so that both change together; returns both.
    """

    def __init__(self, root, frames: list[Frame] | None = None, transforms=None):
        super().__init__(root, transforms=transforms)
        self.frames = find_frames(root) if frames is None else list(frames)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int):
        image, mask = read_frame(self.frames[index])
        image, mask = torch.from_numpy(image.copy()), torch.from_numpy(mask).long()
        return (image, mask) if self.transforms is None else self.transforms(image, mask)


def read_tensors(frames: list[Frame], progress: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode frames by threads: images uint8 (N, 3, H, W) and masks uint8 (N, H, W). 4,500 frames take 1.2 GB.

    Raises DataError as read_frame does, for frames of different sizes, and for an empty list.
    """
    if not frames:
        raise DataError("there are no frames to read; choose a folder with more frames")
    height, width = read_mask(frames[0]).shape
    images = torch.empty((len(frames), 3, height, width), dtype=torch.uint8)
    masks = torch.empty((len(frames), height, width), dtype=torch.uint8)
    to_images, to_masks = images.numpy(), masks.numpy()  # the same memory; numpy copies without starting threads

    def decode(index: int) -> None:
        image, mask = read_frame(frames[index])
        if mask.shape != (height, width):
            raise DataError(
                f"{frames[index].png} is {_size(mask.shape)} and {frames[0].png} {width}x{height} pixels; "
                "keep frames of one size in a set"
            )
        to_images[index], to_masks[index] = image, mask

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        jobs = pool.map(decode, range(len(frames)))
        for _ in tqdm(jobs, "frames", len(frames), unit="frame", disable=not progress, file=sys.stderr):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, the remaining frames are not decoded
    return images, masks


def split(
    frames: list[Frame], seed: int = 42, train_on_combined: float = 0.0, more: Sequence[Frame] = ()
) -> dict[str, list[Frame]]:
    """Split frames into 80 percent for training, 10 for validation and 10 for test, as the reference code does.

    NR, LTE and FIELD frames are sorted by name and shuffled as `torch.utils.data.random_split` with seed 42 does it.
    (The reference code has NR and LTE frames only, and no test part: its last 20 percent are halved here.) OTHER frames
    are split alike, but by themselves: with or without them, the rest of a set is split the same way.

    Args:
        frames: in any order.
        seed: of the shuffling.
        train_on_combined: share of the LTE_NR frames, 0 to 1, that moves from "combined" to "train".
        more: frames of other folders, which all join "train".

    Returns:
        {"train": ..., "validation": ..., "test": ..., "combined": LTE_NR frames, the challenge set}, and "own" if
        there are frames of no known family.

    Raises:
        DataError: a frame of `more` is in `frames`, too, or the share is not from 0 to 1.
    """
    both = {frame.png.resolve() for frame in frames} & {frame.png.resolve() for frame in more}
    if both:
        raise DataError(f"{min(both)} is a frame of the set itself; name another folder with more frames to train on")
    if not 0 <= train_on_combined <= 1:
        raise DataError(f"--train-on-combined is a share from 0 to 1, not {train_on_combined}")
    frames = sorted(frames, key=lambda frame: frame.name + ".png")
    single = [frame for frame in frames if frame.family in ("NR", "LTE", "FIELD")]
    others = [frame for frame in frames if frame.family == "OTHER"]
    combined = [frame for frame in frames if frame.family == "LTE_NR"]
    own = [frame for frame in frames if frame.family == OWN]

    def shuffled(frames: list[Frame]) -> list[Frame]:  # the order of random_split, without its warning of empty parts
        order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed)).tolist()
        return [frames[i] for i in order]

    def shares(frames: list[Frame]) -> tuple[list[Frame], list[Frame], list[Frame]]:
        order, first = shuffled(frames), int(0.8 * len(frames))
        half = first + (len(frames) - first) // 2
        return order[:first], order[first:half], order[half:]

    combined, moved = shuffled(combined), round(train_on_combined * len(combined))
    train, validation, test = (part + other for part, other in zip(shares(single), shares(others), strict=True))
    parts = {
        "train": train + combined[:moved] + list(more),
        "validation": validation,
        "test": test,
        "combined": combined[moved:],
    }
    return parts | ({"own": own} if own else {})


def class_counts(masks: torch.Tensor) -> np.ndarray:
    """Number of pixels of each class, int64 (3,), in masks (N, H, W) of any integer type, without ignored pixels."""
    counts = sum(torch.bincount(mask.flatten(), minlength=len(CLASSES))[: len(CLASSES)] for mask in masks)
    return counts.cpu().numpy()


def class_weights(masks: torch.Tensor) -> torch.Tensor:
    """Weight of each class in the loss, float32 (3,): median(count) / count, as MathWorks and the reference code.

    On the archive they are about 0.29, 1.0 and 2.02. A class without pixels has weight 0 and no part in the median.

    Args: masks, (N, H, W) of any integer type, of the training part.
    Raises: DataError, if no pixel has a known label.
    """
    counts = class_counts(masks)
    present = counts > 0
    if not present.any():
        raise DataError("the labels of all training frames are unknown, in every pixel; add frames with labels")
    weights = np.zeros(len(CLASSES), np.float32)
    weights[present] = np.median(counts[present]) / counts[present]
    return torch.from_numpy(weights)


def check(root) -> str:
    """Read every mask of a set. Returns a table: number of frames and share of each class by family."""
    counts, pixels = Counter(), Counter()
    for frame in tqdm(find_frames(root), "masks", unit="frame", file=sys.stderr):
        counts[frame.family] += 1
        mask = torch.from_numpy(read_mask(frame))
        pixels.update({(frame.family, c): n for c, n in enumerate(class_counts(mask[None]).tolist())})
    lines = ["family   frames  " + "".join(f"{name:>7}" for name in CLASSES)]
    for family in sorted(counts):
        total = max(1, sum(pixels[family, c] for c in range(len(CLASSES))))
        shares = "".join(f"{pixels[family, c] / total:7.3f}" for c in range(len(CLASSES)))
        lines.append(f"{family:8} {counts[family]:6}  {shares}")
    return "\n".join(lines)


def download(root, url: str = URL) -> list[Frame]:
    """Fetch the archive and unpack it into `root`, unless frames are there already. Returns the frames.

    Raises DataError as data/download.py does, with a hint at synthetic sets.
    """
    root = Path(root)
    work = root / ".download"  # on the same disk, so that contents can be renamed into place
    pending = work.exists() and any(work.iterdir())
    if pending or next(root.rglob("*_frame_*.png"), None) is None:
        try:
            if not (work / "extracted").exists():
                fetch(url, work / "archive.tar.gz", SPACE if url == URL else None)
            extract(work / "archive.tar.gz", root, SPACE if url == URL else None)
        except DataError as error:
            raise DataError(f"{error}, or make a synthetic set: `python -m data.synthetic {root}`") from None
        shutil.rmtree(work)
    return find_frames(root)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["download", "check"])
    parser.add_argument("directory", type=place, metavar="DIR", help="folder of the set")
    parser.add_argument("--url", default=URL, help="a mirror of the archive (.tar.gz); default: %(default)s")
    args = parser.parse_args(argv)

    def work() -> None:
        if args.action == "download":
            print(f"{args.directory} holds {len(download(args.directory, args.url)):,} frames")
        else:
            print(check(args.directory))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
