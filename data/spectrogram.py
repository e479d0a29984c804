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
_HANN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / (WINDOW - 1))).astype(np.float32)
_PSD = 1 / (SAMPLE_RATE * float(np.sum(_HANN.astype(np.float64) ** 2)))  # factor from |FFT|^2 to power per Hz
_PHASES = (  # (16, 256): the window, times a shift by k / 16 of a bin of the 256-point FFT
    _HANN * np.exp(-2j * np.pi * np.arange(NFFT // WINDOW)[:, None] * np.arange(WINDOW) / NFFT)
).astype(np.complex64)
# A shift by which the 256-point FFT gives exactly the 256 frequencies that are shown.
_TO_FIRST = np.exp(-2j * np.pi * _FIRST_HZ * np.arange(WINDOW) / SAMPLE_RATE).astype(np.complex64)


def _power(segments, nfft):
    """|FFT|^2 of windowed segments, zero-padded to nfft: complex64 (n, 256) -> float32 tensor (n, nfft)."""
    spectrum = torch.fft.fft(torch.from_numpy(segments), n=nfft)
    return (spectrum.real * spectrum.real).addcmul_(spectrum.imag, spectrum.imag)


def _every_snapshot(iq):
    """The samples of every snapshot, (9990, 256), not windowed; a view, no copy."""
    return np.lib.stride_tricks.sliding_window_view(iq, WINDOW)[::HOP]


def _snapshots(iq, rows):
    """Windowed samples of the chosen snapshots, complex64 (len(rows), 256)."""
    return _every_snapshot(iq)[rows] * _HANN


def shown_power(iq):
    """Power spectral density at each pixel of the picture, with the first snapshot in row 0.

    Args: iq, complex64 (2457600,).  Returns: float32 (256, 256), power per Hz; columns have ascending frequency.
    """
    return _power(_snapshots(iq, _ROWS) * _TO_FIRST, WINDOW).numpy() * np.float32(_PSD)


def _extremes(snapshots, phases, pick):
    """Smallest or largest |FFT|^2 of each snapshot, over 256 frequencies for each row of `phases`.

    One FFT that is zero-padded from 256 to 256 p samples has the same values as p FFTs of 256 samples, each shifted by
    another p-th of a bin. The second way is three times faster. The blocks are small enough for the processor's cache.

    Args: snapshots, complex64 (n, 256), not windowed; phases, complex64 (p, 256), with the window; pick, np.min or
    np.max.
    Returns: float32 (n,).
    """
    found = np.empty(len(snapshots), np.float32)
    block = max(1, 128 // len(phases))
    for i in range(0, len(snapshots), block):
        spectrum = torch.fft.fft(torch.from_numpy(snapshots[i : i + block, None] * phases))  # (block, p, 256)
        parts = torch.view_as_real(spectrum).numpy().reshape(len(spectrum), -1)  # (block, p * 256 * 2)
        parts *= parts
        found[i : i + block] = pick(parts[:, ::2] + parts[:, 1::2], axis=1)
    return found


def _snapshot_maxima(iq):
    """The largest |FFT|^2 of each snapshot at 512 frequencies: float32 (9990,)."""
    return _extremes(_every_snapshot(iq), _PHASES[:: len(_PHASES) // 2], np.max)


def _snapshot_minima(iq):
    """The smallest |FFT|^2 of each eighth snapshot at 4096 frequencies: float32 (1249,)."""
    return _extremes(_every_snapshot(iq)[::MINIMUM_STRIDE], _PHASES, np.min)


def level_range(iq, exact=False):
    """Smallest and largest 10 log10(P + eps) of the whole spectrogram, in dB.

    exact=True computes all 9990 x 4096 values. The default is about twenty times faster:

    - Maximum: all snapshots are computed at 512 frequencies, then the 64 strongest ones at all 4096.
    - Minimum: one snapshot of eight is computed. Near zero the values P of noise have a constant density. So the
      smallest of N values is distributed as an eighth of the smallest of N / 8 values.

    Args: iq, complex64 (2457600,).
    """
    if exact:
        blocks = [_power(_snapshots(iq, slice(i, i + 512)), NFFT) for i in range(0, SNAPSHOTS, 512)]
        low, high = min(float(b.min()) for b in blocks), max(float(b.max()) for b in blocks)
    else:
        # The few snapshots that decide are computed again by one zero-padded FFT: values near zero depend on rounding.
        strongest = np.argpartition(_snapshot_maxima(iq), -64)[-64:]
        weakest = MINIMUM_STRIDE * np.argpartition(_snapshot_minima(iq), 16)[:16]
        high = float(_power(_snapshots(iq, strongest), NFFT).max())
        low = float(_power(_snapshots(iq, weakest), NFFT).min()) / MINIMUM_STRIDE
    return 10 * np.log10(low * _PSD + EPS), 10 * np.log10(high * _PSD + EPS)


def robust_level_range(iq):
    """Smallest and largest level in dB for frames with a receiver's faults, which a few snapshots cannot change.

    Maximum: the tenth strongest of the 9990 snapshots. Minimum: the median over the snapshots of their smallest values,
    divided by ten. That is 46 dB below the noise, and hardly one of the 65,536 pixels is lower. Where that median is 0,
    since most of the frame is silent, both levels are that of eps.

    Args: iq, complex64 (2457600,).
    """
    high = float(np.partition(_snapshot_maxima(iq), -10)[-10]) * _PSD
    low = float(np.median(_snapshot_minima(iq))) / 10 * _PSD
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
    level = (10 * np.log10(shown_power(iq) + EPS) - low) / max(high - low, 1e-9)
    return np.round(255 * np.clip(level, 0, 1)).astype(np.uint8)[::-1]  # the first snapshot goes to the bottom


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
