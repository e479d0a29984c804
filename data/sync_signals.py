"""Synchronisation signals of LTE and 5G NR as a search needs them, and where in the spectrum they may be.

    signal = nr_signal(30e3)
    centers = lte_centers(-9.2e6, 8.9e6, capture_hz=2655e6)     # edges from a spectrogram

PSS and SSS: primary and secondary synchronisation signal (TS 36.211 clause 6.11, TS 38.211 clause 7.4.2). Needs numpy
and data/sequences.py.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

from data.sequences import lte_pss, lte_sss, nr_pss, nr_sss

SIZE = 128  # FFT size for PSS and SSS; a symbol of 15 kHz has 128 samples at 1.92 MS/s, one of 30 kHz at 3.84 MS/s
HALF = 64  # FFT size for the search of the PSS: its middle 62 or 64 subcarriers are enough
PREFIX = 9  # samples of 128 in a normal cyclic prefix; at 15 kHz the first of half a millisecond is one longer
LTE_RASTER_HZ = 100e3  # TS 36.104 clause 5.7.2


class SyncSignal(NamedTuple):
    """PSS and SSS as a search needs them. Times in samples at SIZE * spacing_hz."""

    spacing_hz: float
    bins: np.ndarray  # int (B,): FFT bins of the sequences
    primary: np.ndarray  # complex (3, B)
    replicas: np.ndarray  # complex64 (3, HALF): the middle of the PSS in time, at HALF * spacing_hz
    words: np.ndarray  # complex64 (3, 336, 2, B): SSS in periods of even and of odd number, from 0
    places: np.ndarray  # where the SSS may begin, in samples after the PSS begins; negative: before it
    period: int  # samples from one PSS to the next: 5 ms of LTE, 20 ms of NR


def _in_time(primary, bins):
    """Middle of the PSS in time, complex64 (3, HALF), of energy 1."""
    spectrum = np.zeros((3, SIZE), complex)
    spectrum[:, bins] = primary
    replicas = np.fft.ifft(np.concatenate([spectrum[:, : HALF // 2], spectrum[:, -HALF // 2 :]], 1))
    return (replicas / np.linalg.norm(replicas, axis=1, keepdims=True)).astype(np.complex64)


@cache
def lte_signal():
    """LTE's PSS and SSS as a SyncSignal; places: FDD normal, FDD extended, TDD normal, TDD extended prefix."""
    bins = np.r_[-31:0, 1:32] % SIZE
    primary = np.array([lte_pss(n) for n in range(3)])
    words = np.array([[lte_sss(np.arange(168), root, half) for half in (0, 5)] for root in range(3)])  # (3, 2, 168, 62)
    words = words.swapaxes(1, 2)
    words = np.concatenate([words, words[:, :, ::-1]], 1)  # the first period may be the frame's second half
    # FDD: SSS one symbol before the PSS. TDD: three, the PSS being in the next subframe, whose first prefix is longer.
    places = np.array([-(SIZE + PREFIX), -(SIZE + 32), -(3 * (SIZE + PREFIX) + 1), -3 * (SIZE + 32)])
    return SyncSignal(15e3, bins, primary, _in_time(primary, bins), words.astype(np.complex64), places, 9600)


@cache
def nr_signal(spacing_hz):
    """NR's PSS and SSS as a SyncSignal; blocks of 20 resource blocks, PSS and SSS in subcarriers 56 to 182."""
    bins = np.arange(56 - 120, 183 - 120) % SIZE
    primary = np.array([nr_pss(n) for n in range(3)])
    words = np.array([[[nr_sss(n, root)] * 2 for n in range(336)] for root in range(3)])
    places, period = np.array([2 * (SIZE + PREFIX)]), round(20e-3 * SIZE * spacing_hz)
    return SyncSignal(spacing_hz, bins, primary, _in_time(primary, bins), words.astype(np.complex64), places, period)


def lte_centers(low_hz, high_hz, capture_hz=None, slack_hz=0.5e6):
    """Centres that an LTE carrier may have whose edges were seen at low_hz and high_hz: float (n,).

    All frequencies but capture_hz are against the capture's centre. Points of the 100 kHz raster within slack_hz of
    the middle; without capture_hz the raster is taken to go through the capture's centre.
    """
    origin, middle = capture_hz or 0.0, (low_hz + high_hz) / 2
    first = np.ceil((origin + middle - slack_hz) / LTE_RASTER_HZ - 1e-6)
    last = np.floor((origin + middle + slack_hz) / LTE_RASTER_HZ + 1e-6)
    return np.arange(first, last + 1) * LTE_RASTER_HZ - origin


@cache
def _nr_raster():
    below = np.add.outer(np.arange(1, 2500) * 1.2e6, np.array([1, 3, 5]) * 50e3).ravel()
    return np.concatenate([below, 3000e6 + np.arange(14757) * 1.44e6])


def nr_raster(low_hz, high_hz):
    """Points of the synchronisation raster within absolute low_hz .. high_hz: float (n,). TS 38.104 clause 5.4.3.1."""
    raster = _nr_raster()
    return raster[np.searchsorted(raster, low_hz) : np.searchsorted(raster, high_hz, "right")]
