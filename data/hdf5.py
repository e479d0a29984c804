"""Open HDF5 files that may be damaged: what h5py raises, when it opens them or later, becomes one sentence.

    with open_hdf5(path) as file:
        ...
    frames = rows_of(dataset, np.array([3, 1]), path)

What is here catches errors, not hangs: HDF5 1.14 searches a damaged heap without an end for the text of an attribute,
so readers leave attributes alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from data import DataError

ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)  # h5py's, of damaged files


@contextmanager
def open_hdf5(path: Path, close: bool = True) -> Iterator[h5py.File]:
    """An HDF5 file to read from. DataError: it is none, or it is damaged where the block reads it.

    close: at the end of the block; otherwise only after an error.
    """
    file = None
    try:
        with _told(path):
            file = h5py.File(path, "r")
            yield file
    except BaseException:
        close = True
        raise
    finally:
        if file is not None and close:
            file.close()


def rows_of(dataset: h5py.Dataset, rows: np.ndarray, path: Path | None) -> np.ndarray:
    """dataset[rows] in the order of `rows`, which may have repeats. DataError: the file at `path` is damaged there."""
    unique, back = np.unique(rows, return_inverse=True)  # h5py needs ascending rows without repeats
    with _told(path):
        return dataset[unique][back]


@contextmanager
def _told(path):
    try:
        yield
    except DataError:
        raise
    except ERRORS as error:
        reason = " ".join(str(error).split())
        if "truncated" in reason:
            raise DataError(f"{path}: truncated, only {path.stat().st_size} bytes are there; fetch it again") from error
        raise DataError(f"{path}: not a readable HDF5 file ({reason}); unpack or fetch it again") from error
