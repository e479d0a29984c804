"""Readers of data/ for tests/fuzz.py."""

import numpy as np

from data import DataError
from data.hdf4 import read_raster, write_raster
from tests.fuzz import Reader

SHAPE = (24, 32)


def labels() -> np.ndarray:
    """A small mask, uint8 SHAPE, with values of the later release."""
    return np.repeat(np.repeat(np.array([[0, 85, 170, 255]], np.uint8), 8, 1), 24, 0)


def make_hdf4(folder):
    write_raster(folder / "packed.hdf", labels())
    write_raster(folder / "plain.hdf", labels(), compression=None)


def read_hdf4(folder):
    return [read_raster(folder / name) for name in ("packed.hdf", "plain.hdf")]


def wrong_rasters(values, valid):
    for value in values:
        if value.dtype != np.uint8 or value.ndim != 2 or value.size > 1 << 24:
            return f"the raster is {value.dtype} {value.shape}"


READERS = (
    Reader(
        "HDF4",
        make_hdf4,
        read_hdf4,
        (DataError,),
        "uint8 (H, W) with as many pixels as the header says; nothing tells whether pixels are right",
        wrong_rasters,
    ),
)
