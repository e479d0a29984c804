"""From a frame of 40 ms of I/Q samples to the picture and the labels of the Spectrum Sensing data, 256x256 pixels.

    picture = spectrogram_image(iq)         # uint8 (256, 256, 3), RGB
    labels = channel_mask(carriers)         # uint8 (256, 256), 0 noise, 127 NR, 255 LTE

The picture follows the published generator, that of MathWorks. A Hann window of 256 samples moves in steps of 246
samples. Each position of the window is a snapshot; its power spectral density P has 4096 frequencies. 10 log10(P + eps)
is scaled from minimum and maximum of the whole spectrogram to 0..255, the colormap index. The result is resized to
256x256 pixels by nearest neighbour, flipped so that the end of the frame is in the top row, and coloured with MATLAB's
colormap parula.

Only 256 of the 9990 snapshots and 256 of the 4096 frequencies are shown. Still, minimum and maximum must be those of
all 41 million values: with those of the shown values every colour would change.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch

SAMPLE_RATE = 61.44e6  # Hz
FRAME_SAMPLES = 2_457_600  # 40 ms
SIZE = 256  # pixels, both axes
HZ_PER_PIXEL = SAMPLE_RATE / SIZE  # 240 kHz
WINDOW, HOP, NFFT = 256, 246, 4096
SNAPSHOTS = (FRAME_SAMPLES - (WINDOW - HOP)) // HOP  # 9990
EPS = np.finfo(np.float64).eps  # the published generator adds it before the logarithm: no level is below -156.5 dB
MINIMUM_STRIDE = 8  # one snapshot of eight is searched for the minimum, see `level_range`
LABELS = {"NR": 127, "LTE": 255}  # values in the file of labels
LABELS_WITH_UNKNOWN = {"NR": 85, "LTE": 170, "unknown": 255}  # of the later release, which has a fourth class

# MATLAB's parula in 64 steps, R2017a and later.
_PARULA_64 = """
.2422 .1504 .6603 .2504 .1650 .7076 .2578 .1818 .7511 .2647 .1978 .7952 .2706 .2147 .8364 .2751 .2342 .8710
.2783 .2559 .8991 .2803 .2782 .9221 .2813 .3006 .9414 .2810 .3228 .9579 .2795 .3447 .9717 .2760 .3667 .9829
.2699 .3892 .9906 .2602 .4123 .9952 .2440 .4358 .9988 .2206 .4603 .9973 .1963 .4847 .9892 .1834 .5074 .9798
.1786 .5289 .9682 .1764 .5499 .9520 .1687 .5703 .9359 .1540 .5902 .9218 .1460 .6091 .9079 .1380 .6276 .8973
.1248 .6459 .8883 .1113 .6635 .8763 .0952 .6798 .8598 .0689 .6948 .8394 .0297 .7082 .8163 .0036 .7203 .7917
.0067 .7312 .7660 .0433 .7411 .7394 .0964 .7500 .7120 .1408 .7584 .6842 .1717 .7670 .6554 .1938 .7758 .6251
.2161 .7843 .5923 .2470 .7918 .5567 .2906 .7973 .5188 .3406 .8008 .4789 .3909 .8029 .4354 .4456 .8024 .3909
.5044 .7993 .3480 .5616 .7942 .3045 .6174 .7876 .2612 .6720 .7793 .2227 .7242 .7698 .1910 .7738 .7598 .1646
.8203 .7498 .1535 .8634 .7406 .1596 .9035 .7330 .1774 .9393 .7288 .2100 .9728 .7298 .2394 .9956 .7434 .2371
.9970 .7659 .2199 .9952 .7893 .2028 .9892 .8136 .1885 .9786 .8386 .1766 .9676 .8639 .1643 .9610 .8890 .1537
.9597 .9135 .1423 .9628 .9373 .1265 .9691 .9606 .1064 .9769 .9839 .0805
"""


def _parula():
    """The colormap in 256 steps, interpolated linearly: uint8 (256, 3)."""
    steps = np.array(_PARULA_64.split(), float).reshape(64, 3)
    fine = [np.interp(np.linspace(0, 63, 256), np.arange(64), steps[:, channel]) for channel in range(3)]
    return np.round(255 * np.stack(fine, 1)).astype(np.uint8)


PARULA = _parula()  # uint8 (256, 3), RGB of each colormap index

# Nearest-neighbour resize takes, for each pixel, the snapshot whose centre is nearest; of two equally near the later.
_ROWS = np.floor((np.arange(SIZE) + 0.5) * SNAPSHOTS / SIZE).astype(int)
# A centred 4096-point spectrum has the frequencies -2047 to 2048, in bins of 15 kHz. Every 16th is shown, from number 8
# (counted from 0) on, which is frequency -2039.
_FIRST_HZ = (8 - NFFT / 2 + 1) * SAMPLE_RATE / NFFT


class _Grid(NamedTuple):
    """How a spectrogram is computed from samples that hold only its middle `columns`, at a rate of 240 kHz a column.

    A window of 256 samples at 61.44 MS/s has as many samples as columns then, and covers the same time.
    """

    columns: int
    nfft: int  # 16 frequencies a column
    starts: np.ndarray  # first sample of each snapshot, int (9990,)
    window: np.ndarray  # Hann, float32 (columns,)
    psd: float  # factor from |FFT|^2 to power per Hz
    phases: np.ndarray  # complex64 (16, columns): the window, times a shift by k / 16 of a bin of the short FFT
    to_first: np.ndarray  # complex64 (columns,): a shift by which the short FFT gives exactly the shown frequencies


@functools.cache
def _grid(columns):
    rate, ratio = columns * HZ_PER_PIXEL, SIZE / columns
    nfft, n = NFFT // WINDOW * columns, np.arange(columns)
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * (n * ratio + (ratio - 1) / 2) / (WINDOW - 1))).astype(np.float32)
    psd = 1 / (rate * float(np.sum(hann.astype(np.float64) ** 2)))
    phases = (hann * np.exp(-2j * np.pi * np.arange(NFFT // WINDOW)[:, None] * n / nfft)).astype(np.complex64)
    first_hz = _FIRST_HZ + (SIZE - columns) // 2 * HZ_PER_PIXEL
    to_first = np.exp(-2j * np.pi * first_hz * n / rate).astype(np.complex64)
    starts = np.round(np.arange(SNAPSHOTS) * HOP / ratio).astype(int)
    return _Grid(columns, nfft, starts, hann, psd, phases, to_first)


def _grid_of(iq):
    return _grid(len(iq) * SIZE // FRAME_SAMPLES)


def _power(segments, nfft):
    """|FFT|^2 of windowed segments, zero-padded to nfft: complex64 (n, columns) -> float32 tensor (n, nfft)."""
    spectrum = torch.fft.fft(torch.from_numpy(segments), n=nfft)
    return (spectrum.real * spectrum.real).addcmul_(spectrum.imag, spectrum.imag)


def _snapshots(iq, rows):
    """Samples of the chosen snapshots, (len(rows), columns), not windowed."""
    grid = _grid_of(iq)
    every = np.lib.stride_tricks.sliding_window_view(iq, grid.columns)
    if grid.columns == SIZE and isinstance(rows, slice):
        return every[::HOP][rows]  # a view, no copy
    return every[grid.starts[rows]]


def shown_power(iq):
    """Power spectral density at each pixel of the picture, with the first snapshot in row 0.

    Args: iq, complex64 (2457600,).  Returns: float32 (256, 256), power per Hz; columns have ascending frequency.
    (Samples that hold the middle M columns only, complex64 (9600 M,) at M x 240 kHz, give these: float32 (256, M).)
    """
    grid = _grid_of(iq)
    windowed = _snapshots(iq, _ROWS) * grid.window * grid.to_first
    return _power(windowed, grid.columns).numpy() * np.float32(grid.psd)


def _extremes(snapshots, phases, pick):
    """Smallest or largest |FFT|^2 of each snapshot, over 256 frequencies for each row of `phases`.

    One FFT that is zero-padded from 256 to 256 p samples has the same values as p FFTs of 256 samples, each shifted by
    another p-th of a bin. The second way is three times faster. The blocks are small enough for the processor's cache.

    Args: snapshots, complex64 (n, 256), not windowed; phases, complex64 (p, 256), with the window; pick, np.min or
    np.max.
    Returns: float32 (n,).
    """
    found = np.empty(len(snapshots), np.float32)
    block = max(1, 128 * SIZE // phases.size)
    for i in range(0, len(snapshots), block):
        spectrum = torch.fft.fft(torch.from_numpy(snapshots[i : i + block, None] * phases))  # (block, p, 256)
        parts = torch.view_as_real(spectrum).numpy().reshape(len(spectrum), -1)  # (block, p * 256 * 2)
        parts *= parts
        found[i : i + block] = pick(parts[:, ::2] + parts[:, 1::2], axis=1)
    return found


def _snapshot_maxima(iq):
    """The largest |FFT|^2 of each snapshot at two frequencies a column: float32 (9990,)."""
    phases = _grid_of(iq).phases
    return _extremes(_snapshots(iq, slice(None)), phases[:: len(phases) // 2], np.max)


def _snapshot_minima(iq):
    """The smallest |FFT|^2 of each eighth snapshot at all frequencies: float32 (1249,)."""
    return _extremes(_snapshots(iq, slice(None, None, MINIMUM_STRIDE)), _grid_of(iq).phases, np.min)


def level_range(iq, exact=False):
    """Smallest and largest 10 log10(P + eps) of the whole spectrogram, in dB.

    exact=True computes all 9990 x 4096 values. The default is about twenty times faster:

    - Maximum: all snapshots are computed at 512 frequencies, then the 64 strongest ones at all 4096.
    - Minimum: one snapshot of eight is computed. Near zero the values P of noise have a constant density. So the
      smallest of N values is distributed as an eighth of the smallest of N / 8 values.

    Args: iq, complex64 (2457600,).
    """
    grid = _grid_of(iq)

    def power(rows):
        return _power(_snapshots(iq, rows) * grid.window, grid.nfft)

    if exact:
        blocks = [power(slice(i, i + 512)) for i in range(0, SNAPSHOTS, 512)]
        low, high = min(float(b.min()) for b in blocks), max(float(b.max()) for b in blocks)
    else:
        # The few snapshots that decide are computed again by one zero-padded FFT: values near zero depend on rounding.
        strongest = np.argpartition(_snapshot_maxima(iq), -64)[-64:]
        weakest = MINIMUM_STRIDE * np.argpartition(_snapshot_minima(iq), 16)[:16]
        high = float(power(strongest).max())
        low = float(power(weakest).min()) / MINIMUM_STRIDE
    return 10 * np.log10(low * grid.psd + EPS), 10 * np.log10(high * grid.psd + EPS)


def robust_level_range(iq):
    """Smallest and largest level in dB for frames with a receiver's faults, which a few snapshots cannot change.

    Maximum: the tenth strongest of the 9990 snapshots. Minimum: the median over the snapshots of their smallest values,
    divided by ten. That is 46 dB below the noise, and hardly one of the 65,536 pixels is lower. Where that median is 0,
    since most of the frame is silent, both levels are that of eps.

    Args: iq, complex64 (2457600,).
    """
    psd = _grid_of(iq).psd
    return _robust_range(_snapshot_maxima(iq) * np.float32(psd), _snapshot_minima(iq) * np.float32(psd))


def _robust_range(maxima, minima):
    high, low = float(np.partition(maxima, -10)[-10]), float(np.median(minima)) / 10
    return tuple(10 * np.log10(value) for value in ((low, high) if low > 0 else (EPS, EPS)))


def spectrogram_levels(iq, exact=False, robust=False):
    """Colormap index of each pixel, uint8 (256, 256). Row 0 is the END of the frame; columns have ascending frequency.

    Args: iq, complex64 (2457600,), one frame at 61.44 MS/s; exact, see `level_range`; robust, use `robust_level_range`
    instead, for a frame with a receiver's faults.
    Raises: ValueError for another number of samples.
    """
    if iq.shape != (FRAME_SAMPLES,):
        raise ValueError(f"a frame has {FRAME_SAMPLES} samples, this one has shape {iq.shape}")
    iq = np.ascontiguousarray(iq, np.complex64)
    low, high = robust_level_range(iq) if robust else level_range(iq, exact)
    return _indices(shown_power(iq), low, high)[::-1]  # the first snapshot goes to the bottom


def _indices(power, low, high):
    """Colormap indices of power per Hz between two levels in dB."""
    level = (10 * np.log10(power + EPS) - low) / max(high - low, 1e-9)
    return np.round(255 * np.clip(level, 0, 1)).astype(np.uint8)


class _UnitNoise(NamedTuple):
    """What a picture needs to know of 40 ms of white noise of 1 power per Hz."""

    shown: np.ndarray  # float32 (256, 256)
    maxima: np.ndarray  # float32 (9990,), of each snapshot
    minima: np.ndarray  # float32 (1249,)
    range: tuple[float, float]  # smallest and largest power


@functools.cache
def _unit_noise():
    pairs = np.random.default_rng(0).standard_normal((FRAME_SAMPLES, 2), np.float32)
    iq = (pairs * np.float32(np.sqrt(SAMPLE_RATE / 2))).view(np.complex64)[:, 0]
    psd = np.float32(_grid(SIZE).psd)
    low, high = (10 ** (level / 10) for level in level_range(iq))
    return _UnitNoise(shown_power(iq), _snapshot_maxima(iq) * psd, _snapshot_minima(iq) * psd, (low, high))


def middle_levels(iq, floor, robust=False):
    """Colormap index of each pixel of a frame of which the middle M columns are given, amid white noise.

    The result is distributed as that of `spectrogram_levels` for a frame that was widened to 61.44 MHz with noise, in a
    time in proportion to M. The noise beside the middle is the same in each call, scaled to its floor: the lowest and
    the highest level of all 41 million values come from the values of the middle and of this noise.

    Args:
        iq: complex64 (9600 M,) at M x 240 kHz. Its outer two columns on each side should hold noise of this floor,
            since a window's leakage comes from there.
        floor: power per Hz of the noise.
        robust: see `spectrogram_levels`.

    Returns: uint8 (256, 256), row 0 is the END of the frame; power per Hz, float32 (256, M), with the same rows.
    """
    noise, grid = _unit_noise(), _grid_of(iq)
    if robust:
        maxima = np.maximum(_snapshot_maxima(iq) * np.float32(grid.psd), np.float32(floor) * noise.maxima)
        minima = np.minimum(_snapshot_minima(iq) * np.float32(grid.psd), np.float32(floor) * noise.minima)
        low, high = _robust_range(maxima, minima)
    else:
        beside = [10 * np.log10(floor * value + EPS) for value in noise.range]
        low, high = level_range(iq)
        low, high = min(low, beside[0]), max(high, beside[1])
    middle = shown_power(iq)
    whole, first = np.float32(floor) * noise.shown, (SIZE - grid.columns) // 2
    whole[:, first : first + grid.columns] = middle
    return _indices(whole, low, high)[::-1], middle[::-1]


def spectrogram_image(iq, exact=False, robust=False):
    """The picture of one frame, uint8 (256, 256, 3), RGB. Arguments as for `spectrogram_levels`."""
    return PARULA[spectrogram_levels(iq, exact, robust)]


def mask_columns(low_hz, high_hz):
    """First and last column, both included, of the label of a channel from low_hz to high_hz (baseband).

    For a channel outside the band the last column is before the first.
    """
    first, last = (int(np.floor((SAMPLE_RATE / 2 + hz) / HZ_PER_PIXEL)) for hz in (low_hz, high_hz))
    return max(first, 0), max(-1, min(last, SIZE - 1))


def channel_mask(carriers, labels=LABELS):
    """Labels of one frame, uint8 (256, 256): 0 noise, 127 NR, 255 LTE.

    A label covers the whole channel bandwidth of its carrier over the whole time, also where nothing is sent.

    Args: carriers, dicts with "technology" ("NR" or "LTE"), "center_hz" (baseband) and "bandwidth_hz"; labels, the
    value of each technology.
    """
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for carrier in carriers:
        half = carrier["bandwidth_hz"] / 2
        first, last = mask_columns(carrier["center_hz"] - half, carrier["center_hz"] + half)
        mask[:, first : last + 1] = labels[carrier["technology"]]
    return mask
