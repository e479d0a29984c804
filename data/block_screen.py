"""When and where in a band may an SS/PBCH block of NR be? A block is a burst; where none is, none need be searched.

    cells = cell_power(samples, sample_rate)                             # once for a frame
    places = possible_blocks(cells, centers_hz, 30e3, floor=noise_power_per_hz)

Only for frequencies at the noise floor most of the time. A block raises the power of its 127 middle subcarriers and
four symbols (TS 38.211 clause 7.4.3) by its SNR. At the SNR from which blocks are found, that is seven deviations of
noise (docs/cell_search.md). Needs numpy.
"""

from typing import NamedTuple

import numpy as np

CELL_HZ = 60e3  # of the grid of cells on which power is measured, which are 1 / CELL_HZ long
SUBCARRIERS, SYMBOLS = 120, 4 * (1 + 144 / 2048)  # the part of a block whose power is summed; symbols with prefixes
# In deviations of noise. A block of -4 dB a resource element has 8, one of -6 dB 5.5; of 10 blocks nine are found at -4
# dB and seven at -6 (docs/cell_search.md).
LEAST_EXCESS = 4.0
QUIET_DB = 1.0  # frequencies whose median over time lies higher over the floor are searched all the time
MOST_TIME = 0.25  # so are those with bursts in more than this share of the time
BESIDE = 1.5  # what is searched before and after a burst, in lengths of a block
TOGETHER_HZ = 0.4e6  # centres that lie nearer are screened as one: three raster points span .2 MHz


class Cells(NamedTuple):
    """power: float32 (time, frequency) per Hz, ascending frequency; sample_rate: Hz; seconds: of a cell."""

    power: np.ndarray
    sample_rate: float
    seconds: float


class Place(NamedTuple):
    """Centres first_hz .. last_hz, from start_s to stop_s."""

    first_hz: float
    last_hz: float
    start_s: float
    stop_s: float


def cell_power(samples: np.ndarray, sample_rate: float, fft=np.fft.fft) -> Cells:
    """Power of samples, complex64 (n,), in cells of 60 kHz and 16.7 microseconds; fft may be a faster one."""
    size = round(sample_rate / CELL_HZ)
    blocks = samples[: len(samples) // size * size].reshape(-1, size)
    lines = fft(blocks) if len(blocks) else blocks
    power = np.square(lines.real) + np.square(lines.imag)
    return Cells(np.fft.fftshift(power, axes=1) / np.float32(size * sample_rate), sample_rate, size / sample_rate)


def possible_blocks(cells: Cells, centers_hz: np.ndarray, spacing_hz: float, floor: float) -> list[Place]:
    """Places in which a block of this subcarrier spacing around one of the centres, ascending, is not excluded.

    Args: floor, power per Hz of the noise. Where much is above it, the whole time is returned.
    """
    # Means over the time and width of a block against the median at these frequencies
    count, size = cells.power.shape
    width = cells.sample_rate / size
    long, wide = round(SYMBOLS / spacing_hz / cells.seconds), round(SUBCARRIERS * spacing_hz / width)
    everywhere = Place(centers_hz[0], centers_hz[-1], 0.0, count * cells.seconds)
    if count <= 4 * long or size <= wide:
        return [everywhere]
    columns = np.round(centers_hz / width + size / 2 - wide / 2).astype(int).clip(0, size - wide)
    part = slice(columns.min(), columns.max() + wide)
    power = cells.power[:, part]
    median = np.median(power, axis=0) / np.float32(np.log(2))  # of noise, whose power is exponentially distributed
    smooth = np.convolve(np.pad(median, wide // 2, mode="edge"), np.full(wide, 1 / wide), "valid")[: len(median)]
    total = np.pad(power / np.maximum(smooth, np.float32(1e-37)), ((1, 0), (1, 0))).cumsum(0, dtype=float).cumsum(1)

    # Place by place; neighbours that need the whole time become one
    places, stretches = [], np.flatnonzero(np.diff(centers_hz, prepend=-np.inf) > TOGETHER_HZ)
    for first, stop in zip(stretches, [*stretches[1:], len(centers_hz)], strict=True):
        left = columns[first:stop] - part.start
        box = total[:, left + wide] - total[:, left]
        excess = ((box[long:] - box[:-long]) / (long * wide) - 1).max(1) * np.sqrt(long * wide)
        hot = np.flatnonzero(excess > LEAST_EXCESS)
        loud = smooth[left + wide // 2].max() > floor * 10 ** (QUIET_DB / 10)
        if loud or len(hot) > MOST_TIME * len(excess):
            if places and places[-1][2:] == everywhere[2:] and places[-1].last_hz == centers_hz[first - 1]:
                places[-1] = places[-1]._replace(last_hz=centers_hz[stop - 1])
            else:
                places.append(everywhere._replace(first_hz=centers_hz[first], last_hz=centers_hz[stop - 1]))
            continue
        for run in np.split(hot, np.flatnonzero(np.diff(hot) > 2 * BESIDE * long) + 1) if len(hot) else ():
            start = max(0.0, run[0] - BESIDE * long) * cells.seconds
            end = min(count, run[-1] + (1 + BESIDE) * long) * cells.seconds
            places.append(Place(centers_hz[first], centers_hz[stop - 1], start, end))
    return places
