"""LTE and 5G NR cells, found by their synchronisation signals, which nothing else on the air sends.

    cells = lte_cells(samples, sample_rate=19.2e6, centers_hz=0.0, capture_hz=1815.3e6)
    cells = lte_cells(samples, 61.44e6, lte_centers(-9.2e6, 8.9e6, 2655e6), 2655e6)   # edges from a spectrogram
    cells = nr_cells(samples, 61.44e6, (-20e6, 20e6), capture_hz=3550e6)

Samples must be as received, never repeated or mended. The search has two steps, as in a phone (TS 36.211 clause 6.11,
TS 38.211 clause 7.4.2). The primary signal (PSS) gives time, frequency and one of three roots; the secondary signal
(SSS) gives the rest of the identity. Peaks of the correlation with the PSS are only candidates, since strong
interference has peaks too. A cell is found when its SSS stands out from the 335 other words of the SSS. False alarms
and detection are in docs/cell_search.md, measured by experiments/cell_search_trials.py. A frame here is LTE's radio
frame of 10 ms. Needs numpy and data/sync_signals.py, sync_search.py and aligned_search.py.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.aligned_search import aligned_candidates
from data.sync_search import (
    THRESHOLD,
    Centers,
    Hypotheses,
    Spectrum,
    hits_of,
    make_hypotheses,
    search,
    spectrum_around,
    without_glitches,
)
from data.sync_signals import HALF, LTE_RASTER_HZ, SIZE, lte_signal, nr_raster, nr_signal

NO_CELL = 10.5, 1.1  # location and scale of the highest statistic in searches without a cell
LEAST_SECONDS = 0.5e-3  # PSS, SSS and what is between them; less can't show a cell

LTE_PIECE_SECONDS = 0.08  # longer recordings are searched piece by piece, since the clock's error adds up
LTE_QUICK_SECONDS = 0.0103  # two half frames of 5 ms, and the symbols that begin at their end
LTE_REACH, LTE_REACH_HZ = 60e-6, 160e3  # largest frequency error: share of the carrier frequency; at least so many Hz
LTE_EDGE_HZ = 0.2e6  # so much of the PSS's .47 MHz on each side of its centre must lie in the capture
SAME_CENTRE_HZ = 5e3  # cells of one carrier: their clocks, Doppler, and the error of the measurement
LTE_USUAL_HZ = 2e9  # carrier frequency for the clock's error where it is not known
NR_SECONDS = 0.0404  # two periods of 20 ms, and the block that begins at their end
NR_REACH, NR_REACH_HZ = 20e-6, 10e3  # as LTE_REACH
NR_USUAL_HZ = 3e9  # as LTE_USUAL_HZ


class LteCell(NamedTuple):
    """A cell that was found, with statistic > THRESHOLD unless a lower one was asked for."""

    cell_id: int  # 0 .. 503
    duplex: str  # "FDD" or "TDD"
    prefix: str  # cyclic prefix, "normal" or "extended"
    offset_hz: float  # measured centre of the carrier against the capture's centre
    start_s: float  # when one radio frame begins; they repeat every 10 ms
    statistic: float  # energy of the SSS over the mean of the other 335 words


class NrCell(NamedTuple):
    """A cell that was found by one of its SS/PBCH blocks."""

    cell_id: int  # 0 .. 1007
    spacing_hz: float  # subcarrier spacing of the block, 15e3 or 30e3
    offset_hz: float  # measured frequency of the block's reference (subcarrier 120) against the capture's centre
    raster_hz: float  # nearest point of the synchronisation raster, absolute; nan if the capture's centre is unknown
    start_s: float  # time of the strongest block's PSS
    statistic: float


def false_alarm_rate(statistic):
    """Chance that a search without a cell gives this statistic or more: 1 in 14,000 at THRESHOLD.

    A Gumbel distribution, fitted by moments to the worst kind of emission in docs/cell_search.md.
    """
    location, scale = NO_CELL
    return -np.expm1(-np.exp((location - np.asarray(statistic)) / scale))


def _apart(frequencies, distance_hz):
    """Frequencies that are farther than distance_hz from all that were kept before them, ascending."""
    kept = []
    for hz in frequencies:
        if all(abs(hz - other) > distance_hz for other in kept):
            kept.append(hz)
    return sorted(kept)


def best_of_each(cells):
    """One cell for each identity, the one with the highest statistic; sorted by that."""
    best = {}
    for cell in sorted(cells, key=lambda cell: -cell.statistic):
        best.setdefault(cell.cell_id, cell)
    return list(best.values())


def on_the_raster(cells: list[LteCell]) -> list[LteCell]:
    """Without cells between the possible carriers of a stronger cell, which was found: there are none.

    Carriers lie on a raster of 100 kHz (TS 36.104 clause 5.7.2), and clocks of base stations err by .05 to .25 ppm
    (clause 6.5.1). So another cell has the same centre, or one that is 100 kHz or more away. A cell's own data, under
    wrong frequencies and times, resemble other words at times.

    Args: cells sorted by their statistic, the highest first.
    """
    kept = []
    for cell in cells:
        away = [abs(cell.offset_hz - other.offset_hz) for other in kept if other.statistic > THRESHOLD]
        if not any(SAME_CENTRE_HZ < hz < LTE_RASTER_HZ - SAME_CENTRE_HZ for hz in away):
            kept.append(cell)
    return kept


def _aligned(spectrum, signal, timings, centers, threshold):
    """Hits near the Centers at the timings, and others at the same frequencies and any time."""
    hits = []
    for timing in timings:
        candidates = aligned_candidates(spectrum, signal, timing, centers)
        if candidates is not None:
            hits += hits_of(spectrum, signal, candidates, threshold)
    found = _apart([hit.hz for hit in hits if hit.statistic > THRESHOLD], signal.spacing_hz)
    if found:
        hypotheses = make_hypotheses(found, centers, signal, spectrum.seconds)
        hits += search(spectrum, signal, hypotheses, threshold)
    return hits


def _checked(samples, sample_rate, signal):
    samples, least = np.asarray(samples, np.complex64), (len(signal.bins) + 1) * signal.spacing_hz
    if samples.ndim != 1:
        raise ValueError(f"samples of shape {samples.shape}; one row of complex samples is needed")
    if not sample_rate >= least:
        raise ValueError(f"{sample_rate / 1e6:g} MS/s do not show a PSS of {least / 1e6:g} MHz")
    if not np.isfinite(samples.sum()):
        samples = np.where(np.isfinite(samples), samples, 0)
    return samples


# ---- LTE ------------------------------------------------------------------------------------------------------------


def lte_cells(
    samples: np.ndarray,
    sample_rate: float,
    centers_hz: float | Sequence[float] = 0.0,
    capture_hz: float | None = None,
    least: float = THRESHOLD,
) -> list[LteCell]:
    """LTE cells, highest statistic first; empty where none stands out. TS 36.211 clause 6.11.

    Args:
        samples: complex64 (n,), as received. Any 5.3 ms hold a PSS and its SSS.
        centers_hz: centre or possible centres of a carrier against the capture's centre, see lte_centers. A cell may
            lie beside by 60 ppm of its frequency, or by 160 kHz if that is more.
        capture_hz: frequency of the capture's centre.
        least: threshold of the statistic. Trials set a lower one, to see words that do not stand out.
    Raises: ValueError if the sample rate is too low for a PSS.
    """
    signal = lte_signal()
    samples = without_glitches(_checked(samples, sample_rate, signal))
    if len(samples) < LEAST_SECONDS * sample_rate:
        return []

    # Frequencies at which the centres may appear, in steps of half a subcarrier
    hz = np.unique(np.asarray(centers_hz, float))
    centers = _lte_centers(hz, capture_hz)
    low, high = (hz - centers.reach).min(), (hz + centers.reach).max()
    steps = np.arange(low, high + 1, signal.spacing_hz / 2)
    near = (np.abs(steps[:, None] - hz) <= centers.reach).any(1)
    steps = steps[near & (np.abs(steps) < sample_rate / 2 - LTE_EDGE_HZ)]
    if len(steps) == 0:
        return []
    nearest = np.abs(steps[:, None] - hz).argmin(1)
    quick = Hypotheses(steps, (hz[nearest] - steps) / centers.on_air[nearest])

    # Piece by piece
    pieces = -(-len(samples) // round(LTE_PIECE_SECONDS * sample_rate))
    more = np.log(pieces)  # as many chances for a false alarm
    cells = []
    for piece in range(pieces):
        start, stop = (number * len(samples) // pieces for number in (piece, piece + 1))
        width = high - low + HALF * signal.spacing_hz
        spectrum = spectrum_around(samples[start:stop], sample_rate, (low + high) / 2, width, signal.spacing_hz)
        # Two half frames show strong cells. Then all half frames are searched: at the frequencies of
        # the strong cells, whose carriers may have more cells, or everywhere if there are none.
        hits = search(spectrum, signal, quick, least + more, LTE_QUICK_SECONDS)
        if spectrum.seconds > LTE_QUICK_SECONDS:
            found = _apart([hit.hz for hit in hits if hit.statistic > THRESHOLD + more], signal.spacing_hz)
            hypotheses = make_hypotheses(found or steps, centers, signal, spectrum.seconds)
            hits += search(spectrum, signal, hypotheses, least + more)
        cells += [_lte_cell(hit, start / sample_rate + spectrum.delay) for hit in hits]
    return on_the_raster(best_of_each(cells))


def lte_cells_aligned(
    spectrum: Spectrum,
    centers_hz: Sequence[float],
    capture_hz: float | None,
    timings: Sequence,
    least: float = THRESHOLD,
) -> list[LteCell]:
    """As lte_cells, where a cyclic prefix of 15 kHz has told when symbols begin; this is much faster.

    Args:
        spectrum: of the samples around the centres, of up to 80 ms.
        timings: SymbolTiming objects of data/cyclic_prefix.py. Cells are found whose carriers have one of these, and
            others on the same frequencies.
    All frequencies but capture_hz count from the capture's centre.
    """
    if spectrum.seconds < LEAST_SECONDS:
        return []
    centers = _lte_centers(np.unique(np.asarray(centers_hz, float)), capture_hz)
    hits = _aligned(spectrum, lte_signal(), timings, centers, least)
    return on_the_raster(best_of_each([_lte_cell(hit, spectrum.delay) for hit in hits]))


def _lte_centers(hz, capture_hz):
    on_air = hz + capture_hz if capture_hz else np.full(len(hz), LTE_USUAL_HZ)
    return Centers(hz, on_air, np.maximum(LTE_REACH_HZ, LTE_REACH * on_air))


def _lte_cell(hit, start_s):
    # Where the PSS begins in its frame, in samples at 1.92 MS/s and the order of lte_signal's places.
    in_frame = (832, 832, 1920 + 284, 1920 + 352)[hit.place]
    first_half, identity = hit.word < 168, hit.word % 168
    start = (hit.lag - in_frame - (0 if first_half else 9600)) % 19200
    return LteCell(
        cell_id=3 * identity + hit.root,
        duplex=("FDD", "FDD", "TDD", "TDD")[hit.place],
        prefix=("normal", "extended")[hit.place % 2],
        offset_hz=float(hit.hz),
        start_s=start_s + start / 1.92e6,
        statistic=hit.statistic,
    )


# ---- NR -------------------------------------------------------------------------------------------------------------


def nr_cells(
    samples: np.ndarray,
    sample_rate: float,
    band_hz: tuple[float, float],
    capture_hz: float | None = None,
    *,
    spacing_hz: float | None = None,
    blind_seconds: float | None = None,
    least: float = THRESHOLD,
) -> list[NrCell]:
    """NR cells, highest statistic first; empty where none stands out. TS 38.211 clause 7.4.2.

    Looks for SS/PBCH blocks of 15 and 30 kHz (above 3 GHz only 30 kHz, TS 38.104 table 5.4.3.3-1) at the points of the
    synchronisation raster whose PSS lies inside the band. A cell may lie beside a point by 20 ppm or 10 kHz.

    Args:
        samples: complex64 (n,), as received. 20.4 ms hold a block if blocks come every 20 ms; at most 40.4 ms are used.
        band_hz: edges of the band against the capture's centre; the part outside the capture is left out.
        capture_hz: frequency of the capture's centre; without it only a blind search is possible.
        spacing_hz: subcarrier spacing if it is known, 15e3 or 30e3.
        blind_seconds: search all frequencies of the band instead, for at most so long; a MHz takes about .2 s.
        least: as in lte_cells.
    Raises: ValueError if the sample rate is too low for a PSS, or capture_hz is missing in a search that is not blind.
    """
    if capture_hz is None and blind_seconds is None:
        raise ValueError("the synchronisation raster needs the capture's centre frequency; give it or blind_seconds")
    deadline = np.inf if blind_seconds is None else time.monotonic() + blind_seconds
    cells = []
    samples = without_glitches(_checked(samples, sample_rate, nr_signal(15e3))[: round(NR_SECONDS * sample_rate)])
    if len(samples) < LEAST_SECONDS * sample_rate:
        return []
    for spacing in (15e3, 30e3) if spacing_hz is None else (spacing_hz,):
        # Where blocks may be
        signal = nr_signal(spacing)
        width = SIZE * spacing
        inside = sample_rate / 2 - 0.35 * width  # a PSS that the capture's edge cuts can be found
        low, high = max(band_hz[0] + width / 2, -inside), min(band_hz[1] - width / 2, inside)
        centers = nr_centers(low, high, capture_hz, spacing, blind_seconds is not None)
        if len(centers.hz) == 0:
            continue

        spectrum = spectrum_around(samples, sample_rate, (low + high) / 2, high - low + width, spacing)

        # Hypotheses around these, in steps of half a subcarrier
        steps = np.ceil(centers.reach / (spacing / 2))
        around = [hz + np.arange(-n, n + 1) * spacing / 2 for hz, n in zip(centers.hz, steps, strict=True)]
        hypotheses = make_hypotheses(np.unique(np.round(np.concatenate(around), -3)), centers, signal, spectrum.seconds)
        hits = search(spectrum, signal, hypotheses, least, deadline=deadline)
        cells += [_nr_cell(hit, spacing, capture_hz, spectrum.delay) for hit in hits]
    return best_of_each(cells)


def nr_cells_aligned(
    spectrum: Spectrum,
    band_hz: tuple[float, float],
    capture_hz: float | None,
    timings: Sequence,
    least: float = THRESHOLD,
) -> list[NrCell]:
    """As nr_cells, where a cyclic prefix has told the spacing and when symbols begin; this is much faster.

    Args: as of lte_cells_aligned; 20.4 ms hold a block if blocks come every 20 ms. Without capture_hz blocks may be at
    all frequencies of the band.
    """
    if spectrum.seconds < LEAST_SECONDS or not timings:
        return []
    spacing = timings[0].spacing_hz
    half, inside = SIZE * spacing / 2, spectrum.rate / 2 - 0.35 * SIZE * spacing
    low = max(band_hz[0] + half, spectrum.center_hz - inside)
    high = min(band_hz[1] - half, spectrum.center_hz + inside)
    centers = nr_centers(low, high, capture_hz, spacing, capture_hz is None)
    if len(centers.hz) == 0:
        return []
    hits = _aligned(spectrum, nr_signal(spacing), timings, centers, least)
    return best_of_each([_nr_cell(hit, spacing, capture_hz, spectrum.delay) for hit in hits])


def nr_centers(low, high, capture_hz, spacing, blind=False):
    """Centers that blocks may have between low and high, against the capture's centre, in Hz."""
    if blind:
        hz = np.arange(low, high, 10 * spacing)
        return Centers(hz, np.full(len(hz), capture_hz or NR_USUAL_HZ), np.full(len(hz), 5 * spacing))
    on_air = nr_raster(capture_hz + low, capture_hz + high)
    if spacing == 15e3:
        on_air = on_air[on_air < 3e9]
    return Centers(on_air - capture_hz, on_air, np.maximum(NR_REACH * on_air, NR_REACH_HZ))


def _nr_cell(hit, spacing, capture_hz, delay):
    raster = np.nan
    if capture_hz is not None:
        on_air = capture_hz + hit.hz
        points = nr_raster(on_air - 1.5e6, on_air + 1.5e6)
        raster = float(points[np.argmin(np.abs(points - on_air))])
    start = hit.lag / (SIZE * spacing) + delay
    return NrCell(3 * hit.word + hit.root, spacing, float(hit.hz), raster, start, hit.statistic)
