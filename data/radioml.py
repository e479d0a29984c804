"""Read RadioML 2018.01A and files like it: 24 modulations at 26 signal-to-noise ratios, larger than memory.

    frames = open_frames("GOLD_XYZ_OSC.0001_1024.hdf5")     # 2,555,904 frames, 21.4 GB; nothing is read yet
    frames = open_cache(frames, bits=8)                     # of code_cache.py: the same as int8 codes, 5.2 GB
    parts = split(frames)                                   # the challenge's test frames; train, validation
    for x, label in batches(frames, parts["train"], 256, shuffle=True):
        ...                                                 # float32 (256, 2, 1024), int64 (256,)

The set (O'Shea, Roy and Clancy 2018, arXiv:1712.04578; CC BY-NC-SA 4.0) must be fetched from deepsig.ai. Its file has
the datasets X, float32 (N, 1024, 2), I and Q; Y, integers (N, 24), one-hot; Z, integers (N, 1), SNR in dB. A frame is
one row: 1024 samples of one modulation. Frames are ordered by modulation, then by SNR. A cell is one modulation at one
SNR; it has 4096 frames, and fewer in the files that modulations.py generates. The file classes.txt of the set has the
names in a wrong order; that of MODULATIONS is right, and Y is compared with it. Attributes are not read.

A process needs about 100 MB for the tables, and a batch; the file is mapped.
"""

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from data import DataError
from data.hdf5 import open_hdf5, rows_of
from data.on_device import fits, read_ahead
from data.values import all_numbers, no_numbers

MODULATIONS = (
    "OOK", "4ASK", "8ASK", "BPSK", "QPSK", "8PSK", "16PSK", "32PSK", "16APSK", "32APSK", "64APSK", "128APSK",
    "16QAM", "32QAM", "64QAM", "128QAM", "256QAM", "AM-SSB-WC", "AM-SSB-SC", "AM-DSB-WC", "AM-DSB-SC", "FM",
    "GMSK", "OQPSK",
)  # fmt: skip
SNRS = tuple(range(-20, 31, 2))  # dB
SAMPLES = 1024  # of a frame
CELLS = len(MODULATIONS) * len(SNRS)
OTHER_LAYOUTS = "for other layouts see radioml.from_arrays"
BLOCK = 4096  # frames in a step when a whole file is read: 32 MB
MOST_FRAMES, MOST_CHUNK = 1 << 26, 1 << 29  # of a file that is believed: half a terabyte; bytes of a chunk in memory


class Seals:
    """Checksums of a cache, one for each `block` frames, and which blocks were compared with them already."""

    def __init__(self, sums: list[int], block: int):
        self.sums, self.block = sums, block
        self.seen = np.zeros(len(sums), bool)

    def compare(self, codes: np.ndarray, rows: np.ndarray, path: Path) -> None:
        """Compare the blocks of these rows, unless that was done. DataError: one differs; path is the source's."""
        for number in np.unique(rows // self.block).tolist():
            if not self.seen[number]:
                start = number * self.block
                if zlib.crc32(np.ascontiguousarray(codes[start : start + self.block])) != self.sums[number]:
                    name = getattr(codes, "filename", None) or f"the cache of {path}"
                    raise DataError(f"{name}: damaged in the {self.block} frames from {start} on; delete it")
                self.seen[number] = True


@dataclass(frozen=True, eq=False)
class Frames(Dataset):
    """Frames on disk as a torch data set: [i] -> (float32 (2, L), label), [array of i] -> a batch of both.

    x: float32 (N, L, 2) or (N, 2, L), or int8 codes (N, 2, L); a memory map, array, h5py dataset, or tensor.
    labels: int64 (N,), index into `classes`.
    snrs: int64 (N,), dB.
    path: the file, None for arrays.
    scale: value of one code; None if `x` holds samples.
    seals: checksums of the codes, if `x` is a cache's; a block is compared with its own when it is first read.
    """

    x: np.ndarray | h5py.Dataset | torch.Tensor
    labels: np.ndarray
    snrs: np.ndarray
    classes: tuple[str, ...] = MODULATIONS
    path: Path | None = None
    scale: float | None = None
    seals: Seals | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index) -> tuple[torch.Tensor, torch.Tensor]:
        rows = np.atleast_1d(np.asarray(index))
        x, label = self.samples(rows), torch.from_numpy(self.labels[rows])
        return (x, label) if np.ndim(index) else (x[0], label[0])

    def samples(self, rows: np.ndarray) -> torch.Tensor:
        """Frames as float32 (len(rows), 2, L), in the order of `rows`. Ascending rows are read fastest."""
        return self.decoded(self.raw(rows))

    def raw(self, rows: np.ndarray) -> torch.Tensor:
        """Frames as they are stored, in the order of `rows`: a copy of x[rows], on the CPU unless x is elsewhere.

        Raises DataError for samples that are no numbers (data/values.py), codes that differ from their checksum, and a
        file that cannot be read.
        """
        if isinstance(self.x, torch.Tensor):  # checked when they were loaded
            return self.x[torch.from_numpy(rows).to(self.x.device)]
        x = rows_of(self.x, rows, self.path) if isinstance(self.x, h5py.Dataset) else np.take(self.x, rows, axis=0)
        if self.seals is not None:
            self.seals.compare(self.x, rows, self.path)
        if x.dtype.kind == "f" and not all_numbers(x):
            bad = rows[no_numbers(x).any((1, 2))][0]
            where = f"{self.path}: " if self.path else ""
            raise DataError(f"{where}frame {bad} holds a sample that isn't a number; fetch the file again")
        return torch.from_numpy(x)

    def decoded(self, x: torch.Tensor) -> torch.Tensor:
        """Stored frames, (B, L, 2) or (B, 2, L), as float32 (B, 2, L) on the same device."""
        if x.shape[2] == 2:
            x = x.transpose(1, 2)  # (B, L, 2) -> (B, 2, L)
        x = x.to(torch.float32).contiguous()
        return x if self.scale is None else x.mul_(self.scale)


def open_frames(path: str | Path) -> Frames:
    """Open and check a file in the original layout. Its samples are mapped, not read.

    Raises:
        DataError: no such file, not HDF5, truncated, damaged, a dataset missing, other shapes, dtypes or order.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; fetch RadioML 2018.01A, or run python -m data.modulations {path}")
    with open_hdf5(path, close=False) as file:
        if missing := [name for name in "XYZ" if not isinstance(file.get(name), h5py.Dataset)]:
            found = ", ".join(file) or "nothing"
            raise DataError(f"{path}: has no dataset {missing[0]} but {found}; {OTHER_LAYOUTS}")
        x = file["X"]
        count = _check_shapes(path, file)
        labels, snrs = _original_order(count // CELLS)
        _check_order(path, file["Y"], file["Z"], labels, snrs)
        # Map the samples. A compressed or chunked file has no offset: h5py reads it, so slowly that a cache is worth it
        offset = x.id.get_offset()
        if offset is not None:
            x = np.memmap(path, np.float32, "r", offset, x.shape)
            file.close()
    return Frames(x, labels, snrs, MODULATIONS, path)


def _check_shapes(path: Path, file: h5py.File) -> int:
    """The number of frames, after shapes and dtypes of X, Y and Z were compared with the original's."""
    count = file["X"].shape[0] if file["X"].shape else 0
    expected = {"X": ((count, SAMPLES, 2), "f"), "Y": ((count, len(MODULATIONS)), "iu"), "Z": ((count, 1), "i")}
    for name, (shape, kinds) in expected.items():
        dtype = file[name].dtype
        if file[name].shape != shape or dtype.kind not in kinds or (name == "X" and dtype != np.dtype("<f4")):
            wanted = "float32" if name == "X" else "int64"
            original = f"RadioML 2018.01A has {wanted} {shape}"
            raise DataError(f"{path}: {name} is {dtype} {file[name].shape}, {original}; {OTHER_LAYOUTS}")
        if math.prod(file[name].chunks or ()) * dtype.itemsize > MOST_CHUNK:
            raise DataError(f"{path}: {name} has chunks of {file[name].chunks}, which are too large; store it anew")
    if count == 0 or count % CELLS or count > MOST_FRAMES:
        raise DataError(f"{path}: {count} frames don't make {CELLS} equal cells of 24 modulations at 26 SNRs")
    return count


def from_arrays(x, labels, snrs=None, classes: tuple[str, ...] = MODULATIONS, path: str | Path | None = None) -> Frames:
    """Use frames of your own, in any order. split, batches and open_cache work as with the original file.

        x = np.load("x.npy", mmap_mode="r")     # or an h5py dataset; it is not read as a whole
        frames = from_arrays(x, np.load("label.npy"), np.load("snr.npy"), ("BPSK", "QPSK"), "x.npy")

    Args:
        x: complex64 (N, L), or float32 (N, L, 2) or (N, 2, L): I and Q, at about unit power.
        labels: integers (N,) below len(classes), or one-hot (N, len(classes)).
        snrs: integers (N,) or (N, 1), dB; None if unknown, which counts as 0 dB.
        classes: names in the order of the labels.
        path: the file that x comes from; needed for a cache only.

    Raises:
        DataError: shapes, dtypes or labels that don't fit.
    """
    where = f"{path}: " if path else ""
    if x.dtype == np.complex64 and len(x.shape) == 2 and isinstance(x, np.ndarray):
        x = x.view(np.float32).reshape(*x.shape, 2)
    if x.dtype != np.float32 or len(x.shape) != 3 or 2 not in x.shape[1:]:
        raise DataError(f"{where}x is {x.dtype} {x.shape}, expected complex64 (N, L) or float32 (N, L, 2) or (N, 2, L)")
    labels = np.asarray(labels)
    labels = labels.argmax(1) if labels.ndim == 2 and labels.shape[1] == len(classes) else labels
    snrs = np.zeros(len(x), np.int64) if snrs is None else np.asarray(snrs)
    if labels.shape != (len(x),) or snrs.size != len(x):
        raise DataError(f"{where}{len(x)} frames, but labels {labels.shape} and SNRs {snrs.shape}: give one for each")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"{where}labels must be integers from 0 to {len(classes) - 1}, the places in `classes`")
    return Frames(x, labels.astype(np.int64), snrs.reshape(-1).astype(np.int64), tuple(classes), path and Path(path))


def create_file(path: str | Path, frames_per_cell: int) -> h5py.File:
    """Create a file in the original layout with Y and Z. X is empty, for the caller to write; the caller closes it."""
    labels, snrs = _original_order(frames_per_cell)
    file = h5py.File(path, "w")
    # Without fill_time HDF5 would write zeros to all of X when its first frames are written.
    file.create_dataset("X", (len(labels), SAMPLES, 2), np.float32, fill_time="never")
    one_hot = file.create_dataset("Y", (len(labels), len(MODULATIONS)), np.int64)
    for start in range(0, len(labels), 2**16):
        one_hot[start : start + 2**16] = labels[start : start + 2**16, None] == np.arange(len(MODULATIONS))
    file["Z"] = snrs[:, None]
    return file


def split(frames: Frames, validation: float = 0.05, seed: int = 2018) -> dict[str, np.ndarray]:
    """Split frames into "train", "validation" and "test": rows, int64, ascending.

    The test part is that of the ITU challenge: the rows of each cell (one class at one SNR) are shuffled by numpy's
    RandomState(2018), and the first tenth, rounded up, is the test part; 255,840 frames of the original file. The
    validation part comes next in the same lists. So it is taken from what the challenge trains on.

    Args:
        frames: of any file; the rows of a cell are shuffled in the file's order.
        validation: share of each cell, rounded up.
        seed: of the shuffling; 2018 is the challenge's.

    Raises:
        DataError: a cell has too few frames for three parts.
    """
    random = np.random.RandomState(seed)
    order = np.lexsort((frames.snrs, frames.labels))  # by label, then SNR; stable
    keys = np.stack([frames.labels[order], frames.snrs[order]])
    edges = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(0)) + 1
    parts = {"train": [], "validation": [], "test": []}
    for rows in np.split(order, edges):
        random.shuffle(rows)
        tested, validated = (math.ceil(len(rows) * share) for share in (0.1, validation))
        if tested + validated >= len(rows):
            name, snr = frames.classes[frames.labels[rows[0]]], frames.snrs[rows[0]]
            raise DataError(f"{len(rows)} frames of {name} at {snr} dB are too few for three parts; get at least three")
        parts["test"].append(rows[:tested])
        parts["validation"].append(rows[tested : tested + validated])
        parts["train"].append(rows[tested + validated :])
    return {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}


def select(
    frames: Frames, rows: np.ndarray, classes: Iterable[str] | None = None, snrs: Iterable[int] | None = None
) -> np.ndarray:
    """Those of `rows` whose class and SNR in dB are among the given ones. None means all.

    Raises:
        DataError: a class or SNR that the frames don't have.
    """
    keep = np.ones(len(rows), bool)
    if classes is not None:
        classes = list(classes)
        if unknown := [name for name in classes if name not in frames.classes]:
            raise DataError(f"unknown class {unknown[0]!r}: choose among {', '.join(frames.classes)}")
        keep &= np.isin(frames.labels[rows], [frames.classes.index(name) for name in classes])
    if snrs is not None:
        snrs, present = list(snrs), np.unique(frames.snrs)
        if unknown := [snr for snr in snrs if snr not in present]:
            raise DataError(f"no frame has {unknown[0]} dB: choose among {', '.join(map(str, present))}")
        keep &= np.isin(frames.snrs[rows], snrs)
    return rows[keep]


def batches(
    frames: Frames,
    rows: np.ndarray,
    batch_size: int,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One pass over `rows`: yields samples float32 (B, 2, L) and labels int64 (B,) on `device`.

    The last batch may be smaller. Frames that `resident` has put on the device are gathered there. Otherwise a thread
    reads the next batch while the caller uses the current one; for CUDA it goes there as it is stored, codes as int8.

    Args:
        shuffle: use a random order, drawn from `generator` or torch's own; otherwise the order of `rows`.
    """
    device = torch.device(device)
    if shuffle:
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    if shuffle:
        parts = [np.sort(part) for part in parts]  # ascending rows are read faster
    if isinstance(frames.x, torch.Tensor) and parts:
        order = np.concatenate(parts)
        places, labels = (torch.from_numpy(values).to(device) for values in (order, frames.labels[order]))
        for place, label in zip(places.split(batch_size), labels.split(batch_size), strict=True):
            yield frames.decoded(frames.x[place]), label
        return
    decoded_first = device.type == "cpu"

    def read(part: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return frames[part] if decoded_first else (frames.raw(part), torch.from_numpy(frames.labels[part]))

    for x, label in read_ahead(read, parts, device):
        yield x if decoded_first else frames.decoded(x), label


def resident(frames: Frames, device: torch.device) -> Frames:
    """The same frames with `x` as a tensor on a CUDA device, if it fits there; else, and on a CPU, `frames` itself."""
    bytes_of_all = math.prod(frames.x.shape) * frames.x.dtype.itemsize
    return loaded(frames, device) if device.type == "cuda" and fits(bytes_of_all, device) else frames


def loaded(frames: Frames, device: torch.device) -> Frames:
    """The same frames with `x` as a tensor on the device."""
    some = frames.raw(np.arange(min(1, len(frames))))
    x = torch.empty(frames.x.shape, dtype=some.dtype, device=device)
    for start in range(0, len(frames), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(frames)))
        x[start : start + len(rows)] = frames.raw(rows)
    return replace(frames, x=x)


def fingerprint(frames: Frames) -> str:
    """A text that differs between files: the number of frames and a CRC-32 of 64 of them."""
    probe = np.linspace(0, len(frames) - 1, min(64, len(frames))).astype(np.int64)
    return f"{len(frames)} frames, {zlib.crc32(frames.samples(probe).numpy()):08x}"


def _original_order(frames_per_cell: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and SNRs, int64 (N,), in the original order: by modulation, then by SNR."""
    labels = np.repeat(np.arange(len(MODULATIONS)), len(SNRS) * frames_per_cell)
    snrs = np.tile(np.repeat(np.array(SNRS), frames_per_cell), len(MODULATIONS))
    return labels, snrs


def _check_order(path: Path, y: h5py.Dataset, z: h5py.Dataset, labels: np.ndarray, snrs: np.ndarray) -> None:
    """Compare all of Z, and Y at both ends of each cell (all of Y takes half a gigabyte), with the original order."""
    if len(odd := np.flatnonzero(z[:, 0] != snrs)):
        raise DataError(
            f"{path}: Z is {z[odd[0], 0]} dB in row {odd[0]}, RadioML 2018.01A has {snrs[odd[0]]} dB there; "
            "frames in another order go through radioml.from_arrays"
        )
    size = len(labels) // CELLS
    ends = np.unique(np.concatenate([np.arange(0, len(labels), size), np.arange(size - 1, len(labels), size)]))
    one_hot = y[ends]
    odd = ends[(one_hot != (labels[ends, None] == np.arange(len(MODULATIONS)))).any(1)]
    if len(odd):
        raise DataError(
            f"{path}: Y in row {odd[0]} isn't {MODULATIONS[labels[odd[0]]]}, place {labels[odd[0]]} of 24; "
            "frames in another order go through radioml.from_arrays"
        )
