"""LTE and 5G NR cells by their synchronisation signals, which nothing else on the air sends.

    cells = lte_cells(samples, sample_rate=19.2e6, centers_hz=0.0, capture_hz=1815.3e6)
    cells = lte_cells(samples, 61.44e6, lte_centers(-9.2e6, 8.9e6, 2655e6), 2655e6)   # edges from a spectrogram
    cells = nr_cells(samples, 61.44e6, -20e6, 20e6, capture_hz=3550e6)

Samples go in as received, never repeated or mended. Two steps, as in a phone (TS 36.211 clause 6.11, TS 38.211 clause
7.4.2): the primary signal (PSS) gives time, frequency and a third of the identity; the secondary one (SSS) the rest.
Correlation peaks of the PSS are candidates only, for strong interference has them as well. A cell is found when its
SSS stands out from the 335 other words of the SSS. `THRESHOLD` was chosen by experiments/cell_search_trials.py. Needs
numpy and data/sequences.py.
"""

import time
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np

from data.sequences import lte_pss, lte_sss, nr_pss, nr_sss

SIZE = 128  # FFT size; a symbol of 15 kHz has 128 samples at 1.92 MS/s, one of 30 kHz at 3.84 MS/s
PREFIX = 9  # samples of a normal cyclic prefix; the first of half a millisecond is one longer at 15 kHz
THRESHOLD = 22.0
LTE_PIECE_SECONDS = 0.08  # longer recordings are searched piece by piece: by then a clock's error is no longer known
LTE_RASTER_HZ = 100e3  # TS 36.104 clause 5.7.2
CANDIDATES = 24  # peaks of the PSS whose SSS is tried
GROUP = 15  # frequency offsets correlated together; beyond, samples of one part of the replica no longer add up
SMOOTH = 7  # subcarriers over which the channel is taken as constant, some 100 kHz at 15 kHz


class LteCell(NamedTuple):
    """A cell that was found. It stands out if statistic > THRESHOLD, which is so for all that lte_cells returns."""

    cell_id: int  # 0 .. 503
    duplex: str  # "FDD" or "TDD"
    prefix: str  # cyclic prefix, "normal" or "extended"
    offset_hz: float  # measured centre of the carrier against the capture's centre
    start_s: float  # when the first radio frame of the recording (or one 10 ms before) begins
    statistic: float  # energy of the SSS over the mean of the other 335 words


class NrCell(NamedTuple):
    """A cell that was found by one of its SS/PBCH blocks."""

    cell_id: int  # 0 .. 1007
    spacing_hz: float  # subcarrier spacing of the block, 15e3 or 30e3
    offset_hz: float  # measured frequency of the block's reference (subcarrier 120) against the capture's centre
    raster_hz: float  # nearest point of the synchronisation raster, absolute; nan in a blind search
    start_s: float  # time of the strongest block's PSS
    statistic: float


class SyncSignal(NamedTuple):
    """What a search must know of PSS and SSS. Times in samples at 128 * spacing_hz."""

    spacing_hz: float
    bins: np.ndarray  # int (B,): FFT bins of the sequences
    primary: np.ndarray  # complex (3, B)
    replicas: np.ndarray  # complex64 (3, 128): the PSS in time
    words: np.ndarray  # float (3, 2, 336, B): SSS in periods of even and odd number, if the first is number 0
    places: tuple  # SSS against PSS
    period: int
    stride: int  # lags of the correlation are this far apart
    part: int  # samples of the replica that are correlated as one
    step_hz: float  # frequency hypotheses
    width_hz: float


class Candidates(NamedTuple):
    """Peaks of the folded PSS correlation, arrays (C,)."""

    strength: np.ndarray  # in standard deviations
    root: np.ndarray
    lag: np.ndarray  # sample of the first period at which the PSS begins
    offset_hz: np.ndarray  # against the frequency to which the samples were tuned
    drift: np.ndarray  # periods are longer by this factor less 1


class Spectrum(NamedTuple):
    """Part of a capture's spectrum: FFT bins complex128 (M,) at `rate` around center_hz."""

    bins: np.ndarray
    rate: float
    center_hz: float
    seconds: float  # of samples; the rest of M / rate are zeros
    delay: float  # seconds by which the filter is late


# ---- what is sent ---------------------------------------------------------------------------------------------------


def _in_time(primary, bins):
    spectrum = np.zeros((3, SIZE), complex)
    spectrum[:, bins] = primary
    replicas = np.fft.ifft(spectrum, axis=1)
    return (replicas / np.linalg.norm(replicas, axis=1, keepdims=True)).astype(np.complex64)


@cache
def lte_signal():
    """LTE's PSS and SSS as a SyncSignal; places: FDD normal, FDD extended, TDD normal, TDD extended prefix."""
    bins = np.r_[-31:0, 1:32] % SIZE
    primary = np.array([lte_pss(n) for n in range(3)])
    words = np.array([[[lte_sss(n, root, half) for n in range(168)] for half in (0, 5)] for root in range(3)])
    first, second = words[:, 0], words[:, 1]  # (3, 168, 62)
    words = np.stack([np.concatenate([first, second], 1), np.concatenate([second, first], 1)], 1)
    # FDD: SSS one symbol before the PSS. TDD: three, the PSS being in the next subframe, whose first prefix is longer.
    places = (-(SIZE + PREFIX), -(SIZE + 32), -(3 * (SIZE + PREFIX) + 1), -3 * (SIZE + 32))
    return SyncSignal(15e3, bins, primary, _in_time(primary, bins), words, places, 9600, 2, 8, 7.5e3, 0.95e6)


@cache
def nr_signal(spacing_hz):
    """NR's PSS and SSS as a SyncSignal; blocks of 20 resource blocks, PSS and SSS in subcarriers 56 to 182."""
    bins = np.arange(56 - 120, 183 - 120) % SIZE
    primary = np.array([nr_pss(n) for n in range(3)])
    words = np.array([[nr_sss(n, root) for n in range(336)] for root in range(3)])
    words = np.stack([words, words], 1)  # (3, 2, 336, 127)
    places = (2 * (SIZE + PREFIX),)
    period = round(20e-3 * SIZE * spacing_hz)
    replicas = _in_time(primary, bins)
    return SyncSignal(spacing_hz, bins, primary, replicas, words, places, period, 1, 16, spacing_hz / 2, 128 * spacing_hz)


def lte_centers(low_hz, high_hz, capture_hz=None, slack_hz=0.5e6):
    """Centres that an LTE carrier may have whose edges were seen at low_hz and high_hz: float (n,).

    All frequencies but capture_hz are against the capture's centre. Points of the 100 kHz raster within slack_hz of
    the middle; without capture_hz the raster is taken to go through the capture's centre.
    """
    origin, middle = capture_hz or 0.0, (low_hz + high_hz) / 2
    first = np.ceil((origin + middle - slack_hz) / LTE_RASTER_HZ - 1e-6)
    last = np.floor((origin + middle + slack_hz) / LTE_RASTER_HZ + 1e-6)
    return np.arange(first, last + 1) * LTE_RASTER_HZ - origin


def nr_raster(low_hz, high_hz):
    """Points of the synchronisation raster within absolute low_hz .. high_hz: float (n,). TS 38.104 clause 5.4.3.1."""
    below = np.add.outer(np.arange(1, 2500) * 1.2e6, np.array([1, 3, 5]) * 50e3).ravel()
    above = 3000e6 + np.arange(14757) * 1.44e6
    raster = np.concatenate([below, above])
    return raster[(raster >= low_hz) & (raster <= high_hz)]


# ---- from the capture to samples at 128 * spacing_hz ------------------------------------------------------------------


def _without_glitches(samples, block=1024):
    """complex64 (n,), samples 10 times stronger than the rms of the others in their block of 1024 being 0."""
    whole = len(samples) // block * block
    power = np.square(samples[:whole].real) + np.square(samples[:whole].imag)
    power = power.reshape(-1, block)
    highest = power.max(1)
    bad = np.flatnonzero(highest > 100 * (power.sum(1) - highest) / (block - 1))
    if len(bad) == 0:
        return samples
    samples = samples.copy()
    blocks = samples[:whole].reshape(-1, block)
    blocks[bad] = np.where(power[bad] > 0.1 * highest[bad, None], 0, blocks[bad])
    return samples


def _decimate(samples, sample_rate, center_hz, width_hz):
    """Samples around center_hz at the sample rate over an integer, at least twice width_hz where the capture allows.

    A polyphase filter as one matrix product.  Returns: (complex128 (m,), rate, delay in seconds).
    """
    factor = max(1, int(sample_rate / (2 * width_hz)))
    phase = -2j * np.pi * center_hz / sample_rate
    if factor == 1:
        return samples * np.exp(phase * np.arange(len(samples))), sample_rate, 0.0
    columns = 8  # taps a phase
    n = np.arange(columns * factor)
    taps = np.sinc((n - (len(n) - 1) / 2) / factor) * np.kaiser(len(n), 5.65)  # stop band -60 dB
    taps = (taps / taps.sum() * np.exp(phase * n)).astype(np.complex64)
    rows = len(samples) // factor
    products = samples[: rows * factor].reshape(rows, factor) @ taps.reshape(columns, factor).T  # (rows, columns)
    out = sum(products[k : rows - columns + 1 + k, k] for k in range(columns))
    out = out * np.exp(phase * factor * np.arange(len(out)))
    return out, sample_rate / factor, (len(n) - 1) / 2 / sample_rate


def _smooth_size(n):
    """Smallest number from n on whose prime factors are 2, 3 and 5: its FFT is fast."""
    powers = np.multiply.outer(2 ** np.arange(30), np.multiply.outer(3 ** np.arange(12), 5 ** np.arange(9))).ravel()
    return int(powers[powers >= n].min())


def _spectrum(samples, sample_rate, center_hz, width_hz, spacing_hz):
    """Spectrum of a part of the capture without lines, its length such that SIZE * spacing_hz fits it exactly."""
    samples, rate, delay = _decimate(samples, sample_rate, center_hz, width_hz)
    ratio = Fraction(SIZE * spacing_hz / rate).limit_denominator(100_000)
    size = ratio.denominator * _smooth_size(-(-len(samples) // ratio.denominator))
    bins = _without_lines(np.fft.fft(samples, size), size / rate)
    return Spectrum(bins, rate, center_hz, len(samples) / rate, delay)


def _without_lines(bins, seconds):
    """Scale lines down that stand 15 dB over the spectrum around them, as those of DC and spurs do.

    Powers are summed over 200 Hz: synchronisation and reference signals repeat after 5 and 10 ms, so that finer bins
    would show lines of their own.
    """
    width = max(1, round(200 * seconds))
    cells = len(bins) // width
    around = 100  # cells, 20 kHz
    power = np.square(bins.real) + np.square(bins.imag)
    power = power[: cells * width].reshape(cells, width).sum(1)
    groups = max(1, cells // around)
    level = np.median(power[: groups * around].reshape(groups, -1), 1)
    level = level[np.minimum(np.arange(cells) // around, groups - 1)]
    lines = np.flatnonzero(power > 30 * level)
    if len(lines):
        scale = np.sqrt(level[lines] / power[lines])
        bins[: cells * width].reshape(cells, width)[lines] *= scale[:, None]
    return bins


def _tune(spectrum, center_hz, signal):
    """Samples at SIZE * spacing_hz around center_hz, complex64 (n,), and the centre to the next bin."""
    size, width = len(spectrum.bins), spectrum.rate / len(spectrum.bins)
    out_size = round(SIZE * signal.spacing_hz / width)
    shift = round((center_hz - spectrum.center_hz) / width)
    half = min(int(signal.width_hz / 2 / width), out_size // 2)
    line = np.arange(-half, half)
    inside = np.abs(line + shift) < size / 2
    bins = np.zeros(out_size, complex)
    bins[line[inside]] = spectrum.bins[(line + shift)[inside]]
    samples = np.fft.ifft(bins) * (out_size / size)
    samples = samples[: int(spectrum.seconds * SIZE * signal.spacing_hz)]
    return samples.astype(np.complex64), spectrum.center_hz + shift * width


# ---- primary signal -------------------------------------------------------------------------------------------------


def _correlate(samples, signal, offsets):
    """Correlation with the PSS over local amplitude, float32 (3, F, T) in 0 .. 1; lags `signal.stride` apart.

    Args: samples complex64 (n,); offsets (F,) in Hz. Parts of the replica are correlated once, then added up with the
    phases of each offset: two matrix products instead of an FFT for each offset.
    """
    part, stride = signal.part, signal.stride
    parts, lags = SIZE // part, (len(samples) - SIZE) // stride + 1
    starts = lags + (SIZE - part) // stride  # of parts
    shifted = np.empty((part, starts), np.complex64)
    for i in range(part):
        shifted[i] = samples[i : i + (starts - 1) * stride + 1 : stride]
    chips = np.conj(signal.replicas).reshape(3 * parts, part)
    partial = (chips @ shifted).reshape(3, parts, starts)
    phases = -2 * np.pi * np.outer(offsets, (np.arange(parts) + 0.5) * part) / (SIZE * signal.spacing_hz)
    turn = np.exp(1j * phases).astype(np.complex64)  # (F, parts)
    out = np.empty((3, len(offsets), lags), np.float32)
    row, column = partial.strides[1:]
    for root in range(3):
        # Row p begins p parts later: lag t needs part p's correlation at t + p * part. A view, no copy.
        late = np.lib.stride_tricks.as_strided(
            partial[root], (parts, lags), (row + part // stride * column, column), writeable=False
        )
        np.abs(turn @ late, out=out[root])
    energy = np.cumsum(np.square(samples.real) + np.square(samples.imag), dtype=float)
    energy = np.concatenate([[0], energy])
    energy = (energy[SIZE:] - energy[:-SIZE])[::stride][:lags]  # (T,)
    energy = np.maximum(energy, 1e-3 * energy.mean() + 1e-30)  # silence is no signal
    out *= (1 / np.sqrt(energy)).astype(np.float32)
    return out


def _fold(correlation, signal, drifts):
    """Sum over periods, in standard deviations from the mean: float32 (3, P, L) of P pairs (row of F, drift)."""
    length = signal.period // signal.stride
    lags = correlation.shape[2]
    out = np.zeros((3, len(drifts), min(length, lags)), np.float32)
    periods = -(-lags // length)
    count = np.zeros((len(drifts), out.shape[2]), np.float32)
    for pair, (row, drift) in enumerate(drifts):
        for m in range(periods):
            start = round(m * length * (1 + drift))
            stop = min(start + out.shape[2], lags)
            if stop > start:
                out[:, pair, : stop - start] += correlation[:, row, start:stop]
                count[pair, : stop - start] += 1
    some = correlation[:, :, :: max(1, lags // 4096)]
    mean, deviation = float(some.mean()), float(some.std())
    count = np.maximum(count, 1)
    out -= mean * count
    out /= np.sqrt(count) * np.float32(deviation + 1e-30)
    return out


def _peaks(folded, signal, offsets, drifts, count):
    """The `count` highest peaks as Candidates; a lag beside a peak's at nearly its frequency is no further peak."""
    columns = min(10 * count, folded.shape[2])
    lags = np.argpartition(folded.max((0, 1)), -columns)[-columns:]
    folded = folded[:, :, lags]
    hz = np.array([offsets[row] for row, _ in drifts])
    found = []
    for _ in range(count):
        root, pair, column = np.unravel_index(np.argmax(folded), folded.shape)
        found.append((folded[root, pair, column], root, lags[column] * signal.stride, hz[pair], drifts[pair][1]))
        near = np.abs(hz - hz[pair]) < 1.5 * signal.spacing_hz
        folded[root, near[:, None] & (np.abs(lags - lags[column]) * signal.stride <= 4)] = -np.inf
    return Candidates(*(np.array(values) for values in zip(*found, strict=True)))


# ---- secondary signal -----------------------------------------------------------------------------------------------


def _symbols(samples, starts, hz, signal):
    """FFT of the symbols that begin at starts, int (C, M), moved by hz (C,): complex (C, M, B)."""
    time = np.arange(SIZE) / (SIZE * signal.spacing_hz)
    moved = samples[starts[..., None] + np.arange(SIZE)] * np.exp(-2j * np.pi * hz[:, None, None] * time)
    return np.fft.fft(moved)[..., signal.bins]


def _secondary(samples, signal, candidates):
    """How far each word of the SSS stands out, and the offset to some 100 Hz: float (C, places, 336), (C, places).

    The channel is taken from the PSS beside, smoothed over the subcarriers; only phases are used, so that no line and
    no strong period outweighs the rest. All periods are added coherently. The statistic of a word is its energy over
    the mean of the other words': about exponential for noise, and emissions that repeat raise both.
    """
    rate, periods = SIZE * signal.spacing_hz, -(-len(samples) // signal.period)
    number = np.arange(periods)
    primary = candidates.lag[:, None] + np.round(number * signal.period * (1 + candidates.drift[:, None])).astype(int)
    last = len(samples) - SIZE
    received = primary <= last  # (C, M)
    primary = np.clip(primary, 0, last)

    # Frequency: phase from the first half of the PSS to the second.
    hz = candidates.offset_hz
    replica = np.conj(signal.replicas[candidates.root])[:, None]  # (C, 1, 128)
    turned = np.exp(-2j * np.pi * hz[:, None, None] * np.arange(SIZE) / rate)
    chips = samples[primary[..., None] + np.arange(SIZE)] * replica * turned
    halves = chips.reshape(*primary.shape, 2, SIZE // 2).sum(-1) * received[..., None]  # (C, M, 2)
    turn = np.angle((halves[..., 1] * np.conj(halves[..., 0])).sum(1))
    hz = hz + np.clip(turn / np.pi * rate / SIZE, -signal.step_hz, signal.step_hz)

    channel = _symbols(samples, primary, hz, signal) * np.conj(signal.primary[candidates.root])[:, None]
    total = np.cumsum(np.pad(channel, ((0, 0), (0, 0), (SMOOTH // 2 + 1, SMOOTH // 2))), -1)
    channel = total[..., SMOOTH:] - total[..., :-SMOOTH]  # (C, M, B)

    statistic = np.empty((len(hz), len(signal.places), signal.words.shape[2]))
    fine = np.empty((len(hz), len(signal.places)))
    for place, distance in enumerate(signal.places):
        starts = primary + distance
        there = received & (starts >= 0) & (starts <= last)
        phases = _symbols(samples, np.clip(starts, 0, last), hz, signal) * np.conj(channel)
        phases /= np.abs(phases) + 1e-30
        phases *= there[..., None]
        even, odd = phases[:, ::2].sum(1), phases[:, 1::2].sum(1)  # (C, B)
        words = signal.words[candidates.root]  # (C, 2, 336, B)
        sums = np.einsum("cwb,cb->cw", words[:, 0], even) + np.einsum("cwb,cb->cw", words[:, 1], odd)
        power = np.square(sums.real) + np.square(sums.imag)  # (C, 336)
        best = power.argmax(1)
        strongest = power.max(1, keepdims=True)
        others = power.sum(1, keepdims=True) - power - np.where(power < strongest, strongest, 0)
        statistic[:, place] = power / (others / (power.shape[1] - 2) + 1e-30)
        turn = np.angle(sums[np.arange(len(hz)), best] * np.exp(-2j * np.pi * hz * distance / rate))
        fine[:, place] = hz + turn / (2 * np.pi) * rate / distance
    return statistic, fine


# ---- search ---------------------------------------------------------------------------------------------------------


class _Hit(NamedTuple):
    """A word of the SSS that stands out."""

    statistic: float
    root: int
    word: int
    place: int
    lag: int
    hz: float  # against the capture's centre


def _hypotheses(signal, centers, reaches, carriers, seconds):
    """Frequencies to search and their clock errors, in groups: lists of (Hz (F,), [(row of F, drift)]).

    Args: centers, reaches, carriers, float (n,): possible centres, how far beside each a cell is looked for, and the
    frequency on the air, whose error is the sample clock's as well.
    """
    step = signal.step_hz
    grid = np.arange(np.floor((centers - reaches).min() / step), np.ceil((centers + reaches).max() / step) + 1) * step
    away = grid[:, None] - centers  # (grid, n)
    inside = np.abs(away) <= reaches + step / 2
    grid, away, inside = (values[inside.any(1)] for values in (grid, away, inside))
    lag = signal.stride / (SIZE * signal.spacing_hz)
    finest = lag / max(seconds - signal.period / (SIZE * signal.spacing_hz), lag)  # drift of one lag over the samples
    groups = []
    for first in range(0, len(grid), GROUP):
        rows = slice(first, first + GROUP)
        if grid[rows][-1] - grid[rows][0] > GROUP * step:  # a gap between rasters' points
            parts = np.split(np.arange(len(grid))[rows], np.flatnonzero(np.diff(grid[rows]) > 1.5 * step) + 1)
        else:
            parts = [np.arange(len(grid))[rows]]
        for part in parts:
            drifts = []
            for row, index in enumerate(part):
                # A frequency measured too high means clocks too slow, so fewer samples a period.
                steps = np.unique(np.round(-away[index][inside[index]] / carriers[inside[index]] / finest))
                drifts += [(row, float(count * finest)) for count in steps]
            groups.append((grid[part], drifts))
    return groups


def _search(spectrum, signal, groups, threshold, deadline=None):
    """Words of the SSS whose statistic is above the threshold, as _Hit, strongest first."""
    tuned, peaks = [], []
    for number, (frequencies, drifts) in enumerate(groups):
        if deadline is not None and time.monotonic() > deadline:
            break
        samples, center = _tune(spectrum, (frequencies[0] + frequencies[-1]) / 2, signal)
        if len(samples) < 2 * SIZE:
            break
        offsets = frequencies - center
        folded = _fold(_correlate(samples, signal, offsets), signal, drifts)
        found = _peaks(folded, signal, offsets, drifts, CANDIDATES)
        tuned.append((samples, center))
        peaks += [(strength, number, i, found) for i, strength in enumerate(found.strength)]
    peaks = sorted(peaks, key=lambda peak: -peak[0])[:CANDIDATES]

    hits = []
    for number in sorted({peak[1] for peak in peaks}):
        rows = [peak[2] for peak in peaks if peak[1] == number]
        found = next(peak[3] for peak in peaks if peak[1] == number)
        candidates = Candidates(*(values[rows] for values in found))
        samples, center = tuned[number]
        statistic, hz = _secondary(samples, signal, candidates)
        for c, place, word in np.argwhere(statistic > threshold):
            hits.append(
                _Hit(
                    float(statistic[c, place, word]),
                    int(candidates.root[c]),
                    int(word),
                    int(place),
                    int(candidates.lag[c]),
                    float(hz[c, place] + center),
                )
            )
    return sorted(hits, reverse=True)


def _best_of_each(cells):
    """One entry for each identity, the one with the highest statistic, strongest first."""
    best = {}
    for cell in sorted(cells, key=lambda cell: -cell.statistic):
        best.setdefault(cell.cell_id, cell)
    return list(best.values())


LTE_REACH_PPM, LTE_REACH_HZ = 60e-6, 160e3  # receivers of a television stick's kind are off by that
UNKNOWN_CARRIER_HZ = 2e9  # for the clock's error where the capture's frequency is not known


def lte_cells(
    samples: np.ndarray,
    sample_rate: float,
    centers_hz: float | Sequence[float] = 0.0,
    capture_hz: float | None = None,
    threshold: float = THRESHOLD,
) -> list[LteCell]:
    """LTE cells, the strongest first; empty where none stands out. TS 36.211 clause 6.11.

    Args:
        samples: complex64 (n,), as received, from 5 ms on.
        centers_hz: centre or possible centres of a carrier against the capture's centre, see lte_centers. A cell may
            lie beside by 60 ppm of its frequency, or 160 kHz if that is more.
        capture_hz: frequency of the capture's centre.
        threshold: for trials.
    Raises: ValueError if the samples are too slow for a PSS or too few.
    """
    signal = lte_signal()
    samples, count = _checked(samples, sample_rate, signal)
    centers = np.atleast_1d(np.asarray(centers_hz, float))
    carriers = centers + capture_hz if capture_hz else np.full(len(centers), UNKNOWN_CARRIER_HZ)
    reaches = np.maximum(LTE_REACH_HZ, LTE_REACH_PPM * carriers)
    low, high = (centers - reaches).min(), (centers + reaches).max()
    pieces = -(-len(samples) // round(LTE_PIECE_SECONDS * sample_rate))
    cells = []
    for piece in range(pieces):
        start, stop = (piece * len(samples) // pieces, (piece + 1) * len(samples) // pieces)
        spectrum = _spectrum(
            samples[start:stop], sample_rate, (low + high) / 2, high - low + signal.width_hz, signal.spacing_hz
        )
        groups = _hypotheses(signal, centers, reaches, carriers, spectrum.seconds)
        for hit in _search(spectrum, signal, groups, threshold + np.log(pieces)):
            cells.append(_lte_cell(hit, start / sample_rate + spectrum.delay))
    return _best_of_each(cells)


def _lte_cell(hit, start_s):
    # Begin of the PSS in its frame, samples at 1.92 MS/s, in the order of lte_signal's places.
    in_frame = (832, 832, 1920 + 284, 1920 + 352)[hit.place]
    first_half, identity = hit.word < 168, hit.word % 168
    start = (hit.lag - in_frame - (0 if first_half else 9600)) % 19200
    return LteCell(
        cell_id=3 * identity + hit.root,
        duplex=("FDD", "FDD", "TDD", "TDD")[hit.place],
        prefix=("normal", "extended")[hit.place % 2],
        offset_hz=hit.hz,
        start_s=start_s + start / 1.92e6,
        statistic=hit.statistic,
    )


def _checked(samples, sample_rate, signal):
    samples = np.asarray(samples, np.complex64)
    if sample_rate < signal.width_hz:
        raise ValueError(f"{sample_rate / 1e6:g} MS/s are too few for a PSS of {signal.width_hz / 1e6:g} MHz")
    if len(samples) < 5e-3 * sample_rate:
        raise ValueError(f"{1e3 * len(samples) / sample_rate:.1f} ms are too short for a cell search; 5 ms are needed")
    return _without_glitches(samples), len(samples)
