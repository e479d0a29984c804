"""LTE and 5G NR cells, found by their synchronisation signals, which nothing else on the air sends.

    cells = lte_cells(samples, sample_rate=19.2e6, centers_hz=0.0, capture_hz=1815.3e6)
    cells = lte_cells(samples, 61.44e6, lte_centers(-9.2e6, 8.9e6, 2655e6), 2655e6)   # edges from a spectrogram
    cells = nr_cells(samples, 61.44e6, (-20e6, 20e6), capture_hz=3550e6)

Samples must be as received, never repeated or mended. The search has two steps, as in a phone (TS 36.211 clause 6.11,
TS 38.211 clause 7.4.2). The primary signal (PSS) gives time, frequency and one of three roots; the secondary signal
(SSS) gives the rest of the identity. Peaks of the correlation with the PSS are only candidates, since strong
interference has peaks too. A cell is found when its SSS stands out from the 335 other words of the SSS. False alarms
and detection are in docs/cell_search.md, measured by experiments/cell_search_trials.py. A frame here is LTE's radio
frame of 10 ms. Needs numpy and data/sequences.py.
"""

import time
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np

from data.sequences import lte_pss, lte_sss, nr_pss, nr_sss

SIZE = 128  # FFT size for PSS and SSS; a symbol of 15 kHz has 128 samples at 1.92 MS/s, one of 30 kHz at 3.84 MS/s
HALF = 64  # FFT size for the search of the PSS: its middle 62 or 64 subcarriers are enough
PREFIX = 9  # samples of 128 in a normal cyclic prefix; at 15 kHz the first of half a millisecond is one longer
PART = 8  # samples of the PSS that are correlated as one part,
SPAN = 5  # for frequency hypotheses that lie within so many subcarriers
BLOCK = 8192  # lags that are computed at a time; they fit the processor's cache
PEAKS = 200  # pairs of lag and hypothesis that are kept of a group; several belong to one peak
CANDIDATES = 24  # peaks of the PSS whose SSS is tried
SMOOTH = 7  # subcarriers over which the channel is taken as constant, some 100 kHz at 15 kHz
WORDS, SHARE = 3, 0.05  # most cells with one PSS at one time, and the least energy of one against the strongest
THRESHOLD = 21.0  # of the statistic from which on a cell is found
NO_CELL = 10.5, 1.1  # location and scale of the highest statistic in searches without a cell
LEAST_SECONDS = 0.5e-3  # PSS, SSS and what is between them; less can't show a cell

LTE_PIECE_SECONDS = 0.08  # longer recordings are searched piece by piece, since the clock's error adds up
LTE_QUICK_SECONDS = 0.0103  # two half frames of 5 ms, and the symbols that begin at their end
LTE_REACH, LTE_REACH_HZ = 60e-6, 160e3  # largest frequency error: share of the carrier frequency; at least so many Hz
LTE_EDGE_HZ = 0.2e6  # so much of the PSS's .47 MHz on each side of its centre must lie in the capture
LTE_USUAL_HZ = 2e9  # carrier frequency for the clock's error where it is not known
LTE_RASTER_HZ = 100e3  # TS 36.104 clause 5.7.2
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


class SyncSignal(NamedTuple):
    """PSS and SSS as a search needs them. Times in samples at SIZE * spacing_hz."""

    spacing_hz: float
    bins: np.ndarray  # int (B,): FFT bins of the sequences
    primary: np.ndarray  # complex (3, B)
    replicas: np.ndarray  # complex64 (3, HALF): the middle of the PSS in time, at HALF * spacing_hz
    words: np.ndarray  # complex64 (3, 336, 2, B): SSS in periods of even and of odd number, from 0
    places: np.ndarray  # where the SSS may begin, in samples after the PSS begins; negative: before it
    period: int  # samples from one PSS to the next: 5 ms of LTE, 20 ms of NR


class Candidates(NamedTuple):
    """Peaks of the folded PSS correlation, arrays (C,)."""

    strength: np.ndarray  # in standard deviations
    root: np.ndarray
    lag: np.ndarray  # sample of the first period at which the PSS begins, at SIZE * spacing_hz
    hz: np.ndarray  # against the capture's centre
    drift: np.ndarray  # share by which periods last longer


class Hit(NamedTuple):
    """A word of the SSS that stands out."""

    statistic: float
    root: int  # of the PSS, 0 to 2
    word: int  # 0 to 335, index in SyncSignal.words
    place: int  # index in SyncSignal.places
    lag: int  # as in Candidates
    hz: float  # against the capture's centre


class Spectrum(NamedTuple):
    """Part of a capture's spectrum: FFT bins complex128 (M,) at `rate` around center_hz."""

    bins: np.ndarray
    rate: float
    center_hz: float
    seconds: float  # time that the samples last; zeros follow up to M / rate
    delay: float  # of the filter in seconds


# ---- signals that are sent ------------------------------------------------------------------------------------------


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


# ---- from the capture to samples around a frequency -----------------------------------------------------------------


def _without_glitches(samples, block=1024, most=16):
    """complex64 (n,) with glitches set to 0.

    A glitch is up to 16 samples in 1024, of which one has 12 times the mean amplitude of the others. A burst has more
    samples.
    """
    whole = len(samples) // block * block
    level = np.abs(samples[:whole]).reshape(-1, block)
    highest = level.max(1)
    bad = np.flatnonzero(highest > 12 * (level.sum(1) - highest) / (block - 1))
    glitch = level[bad] > highest[bad, None] / 3
    few = glitch.sum(1) <= most
    if not few.any():
        return samples
    samples = samples.copy()
    blocks = samples[:whole].reshape(-1, block)
    blocks[bad[few]] = np.where(glitch[few], 0, blocks[bad[few]])
    return samples


def _decimate(samples, sample_rate, center_hz, width_hz):
    """Samples around center_hz at the sample rate over an integer, at least twice width_hz where the capture allows.

    A polyphase filter as one matrix product.  Returns: (complex128 (m,), rate, their centre in Hz, delay in seconds).
    """
    factor = max(1, int(sample_rate / (2 * width_hz)))
    phase = -2j * np.pi * center_hz / sample_rate
    if factor == 1:
        return samples.astype(complex), sample_rate, 0.0, 0.0
    columns = 8  # taps a phase
    n = np.arange(columns * factor)
    taps = np.sinc((n - (len(n) - 1) / 2) / factor) * np.kaiser(len(n), 5.65)  # stop band -60 dB
    taps = (taps / taps.sum() * np.exp(phase * n)).astype(np.complex64)
    rows = len(samples) // factor
    products = taps.reshape(columns, factor) @ samples[: rows * factor].reshape(rows, factor).T  # (columns, rows)
    out = sum(products[k, k : rows - columns + 1 + k] for k in range(columns))
    out = out * np.exp(phase * factor * np.arange(len(out)))
    return out, sample_rate / factor, center_hz, (len(n) - 1) / 2 / sample_rate


def _smooth_size(n):
    """Smallest number from n on whose prime factors are 2, 3 and 5: its FFT is fast."""
    powers = np.multiply.outer(2 ** np.arange(26), np.multiply.outer(3 ** np.arange(9), 5 ** np.arange(7))).ravel()
    return int(powers[powers >= n].min())


def _spectrum(samples, sample_rate, center_hz, width_hz, spacing_hz):
    """Spectrum of a part of the capture without lines, its length such that HALF * spacing_hz fits it exactly."""
    samples, rate, center_hz, delay = _decimate(samples, sample_rate, center_hz, width_hz)
    ratio = Fraction(HALF * spacing_hz / rate).limit_denominator(100_000)
    size = ratio.denominator * _smooth_size(-(-len(samples) // ratio.denominator))
    bins = _without_lines(np.fft.fft(samples, size), size / rate)
    return Spectrum(bins, rate, center_hz, len(samples) / rate, delay)


def _without_lines(bins, seconds):
    """Scale lines down, as of DC and spurs, that stand 15 dB over the spectrum around them.

    Powers are summed over 200 Hz. Finer bins would show lines of synchronisation and reference signals, which repeat
    after 5 and 10 ms.
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


def _tune(spectrum, center_hz, rate):
    """Samples at `rate` around center_hz, complex64 (n,), and their centre in Hz, rounded to a bin."""
    size, width = len(spectrum.bins), spectrum.rate / len(spectrum.bins)
    out_size = round(rate / width)
    shift = round((center_hz - spectrum.center_hz) / width)
    line = np.arange(-(out_size // 2), out_size // 2)
    inside = line[max(0, -size // 2 - shift - line[0]) : max(0, size // 2 - shift - line[0])]
    bins = np.zeros(out_size, complex)
    bins[inside] = spectrum.bins[inside + shift]
    samples = np.fft.ifft(bins)[: int(spectrum.seconds * rate)] * (out_size / size)
    return samples.astype(np.complex64), spectrum.center_hz + shift * width


# ---- primary signal -------------------------------------------------------------------------------------------------


def _correlate(samples, replicas, offsets):
    """Correlation with the PSS over the local amplitude: float32 (3, F, T) in 0 .. 1.

    Parts of the replica are correlated once, then added up with the phases of each offset: two matrix products take
    the place of one FFT for each offset.

    Args: samples complex64 (n,); replicas (3, HALF); offsets (F,), in cycles a sample.
    """
    # Local amplitude
    parts, lags = HALF // PART, len(samples) - HALF + 1
    energy = np.cumsum(np.square(samples.real) + np.square(samples.imag), dtype=float)
    energy = np.concatenate([energy[HALF - 1 : HALF], energy[HALF:] - energy[:-HALF]])  # (T,)
    energy = np.maximum(energy, 1e-3 * energy.mean() + 1e-30)  # silence is no signal
    scale = (1 / np.sqrt(energy)).astype(np.float32)

    # Parts, and the phases that add them up
    chips = np.conj(replicas).reshape(3 * parts, PART)
    turn = np.exp(-2j * np.pi * np.outer(offsets, (np.arange(parts) + 0.5) * PART)).astype(np.complex64)  # (F, parts)
    out = np.empty((3, len(offsets), lags), np.float32)
    for first in range(0, lags, BLOCK):
        block = slice(first, min(first + BLOCK, lags))
        count = block.stop - first
        starts = count + HALF - PART  # of parts
        shifted = np.stack([samples[first + i : first + i + starts] for i in range(PART)])
        partial = (chips @ shifted).reshape(3, parts, starts)
        row, column = partial.strides[1:]
        for root in range(3):
            # Lag t needs the correlation of part p at t + p * PART. This is a view with row p moved; nothing is copied.
            late = np.lib.stride_tricks.as_strided(partial[root], (parts, count), (row + PART * column, column))
            out[root, :, block] = np.abs(turn @ late) * scale[block]
    return out


def _fold(correlation, rows, drifts, length):
    """Sum over periods of `length` lags: float32 (3, P, length), and the number of periods (length,).

    Args: correlation (3, F, T); rows (P,), which of F; drifts (P,), the share by which periods last longer.
    """
    lags = correlation.shape[2]
    length = min(length, lags)
    periods = -(-lags // length)
    count = np.minimum((lags - 1 - np.arange(length)) // length + 1, periods)
    if periods == 1:
        return correlation[:, rows], count
    out = np.zeros((3, len(rows), length), np.float32)
    for pair, (row, drift) in enumerate(zip(rows, drifts, strict=True)):
        for m in range(periods):
            start = round(m * length * (1 + drift))
            stop = min(start + length, lags)
            if stop > start:
                out[:, pair, : stop - start] += correlation[:, row, start:stop]
    return out, count


def _primary(spectrum, signal, hypotheses, seconds):
    """Candidates for Hypotheses that lie within SPAN subcarriers, from the first `seconds`."""
    rate = HALF * signal.spacing_hz
    samples, center = _tune(spectrum, (hypotheses.hz[0] + hypotheses.hz[-1]) / 2, rate)
    samples = samples[: int(seconds * rate)]
    if len(samples) < 2 * HALF:
        return None
    hz, rows = np.unique(hypotheses.hz, return_inverse=True)
    correlation = _correlate(samples, signal.replicas, (hz - center) / rate)
    folded, count = _fold(correlation, rows, hypotheses.drift, signal.period * HALF // SIZE)  # (3, P, L)

    # Peaks, in standard deviations: first the best lags, then the best hypotheses and roots there
    some = correlation[:, :, :: max(1, correlation.shape[2] // 1024)]
    mean, deviation = some.mean() * count, (some.std() + 1e-30) * np.sqrt(count)
    highest = (folded.max((0, 1)) - mean) / deviation
    lags = np.argpartition(highest, -min(PEAKS, len(highest)))[-PEAKS:]
    folded = (folded[:, :, lags] - mean[lags]) / deviation[lags]
    best = np.argpartition(folded, -min(PEAKS, folded.size), None)[-PEAKS:]
    root, pair, column = np.unravel_index(best, folded.shape)
    strength, lag = folded.ravel()[best], lags[column] * SIZE // HALF
    return Candidates(strength, root, lag, hypotheses.hz[pair], hypotheses.drift[pair])


def _strongest(candidates, spacing_hz):
    """The strongest peaks, CANDIDATES at most; what lies beside a peak in time and frequency belongs to it."""
    table, found = np.array(candidates, float), []  # (5, n)
    while table.size and len(found) < CANDIDATES:
        peak = table[:, np.argmax(table[0])]
        found.append(peak)
        _, root, lag, hz, _ = np.abs(table - peak[:, None])
        table = table[:, (root > 0) | (lag > 4) | (hz >= 1.5 * spacing_hz)]
    strength, root, lag, hz, drift = np.array(found).T
    return Candidates(strength, root.astype(int), lag.astype(int), hz, drift)


# ---- secondary signal -----------------------------------------------------------------------------------------------


def _symbols(samples, starts, hz, signal):
    """FFT of the symbols that begin at starts, int (C, ...), with hz (C,) taken out: complex (C, ..., B)."""
    time = np.arange(SIZE) / (SIZE * signal.spacing_hz)
    turn = np.exp(-2j * np.pi * hz.reshape(-1, *[1] * starts.ndim) * time)
    moved = samples[starts[..., None] + np.arange(SIZE)] * turn
    return np.fft.fft(moved)[..., signal.bins]


def _secondary(samples, signal, candidates, threshold):
    """Words of the SSS that stand out, a list of Hit; hz exact to some 100 Hz. Samples at SIZE * spacing_hz.

    Only phases are used, so that no line and no strong period outweighs the rest. All periods are added coherently. The
    statistic of a word is its energy over the mean energy of the other words. It is about exponentially distributed
    for noise; an emission that repeats raises both energies.
    """
    # The channel, from the PSS of each period, smoothed over the subcarriers
    rate, periods = SIZE * signal.spacing_hz, -(-len(samples) // signal.period)
    last = len(samples) - SIZE
    begin = np.round(np.arange(periods) * signal.period * (1 + candidates.drift[:, None])).astype(int)
    primary = candidates.lag[:, None] + begin  # (C, M)
    shift, hz = _refine(samples, signal, candidates, primary)
    primary, lag = primary + shift[:, None], candidates.lag + shift
    received = (primary >= 0) & (primary <= last)
    primary = np.clip(primary, 0, last)
    channel = _symbols(samples, primary, hz, signal) * np.conj(signal.primary[candidates.root])[:, None]
    total = np.cumsum(np.pad(channel, ((0, 0), (0, 0), (SMOOTH // 2 + 1, SMOOTH // 2))), -1)
    channel = total[..., SMOOTH:] - total[..., :-SMOOTH]  # (C, M, B)

    # Phases of the SSS at all places that it may have against the PSS, added up over even and over odd periods
    places = signal.places
    starts = primary[:, None] + places[:, None]  # (C, places, M)
    there = received[:, None] & (starts >= 0) & (starts <= last)
    phases = _symbols(samples, np.clip(starts, 0, last), hz, signal) * np.conj(channel)[:, None]  # (C, places, M, B)
    phases *= there[..., None] / (np.abs(phases) + 1e-30)
    sums, count = ([values[:, :, parity::2].sum(2) for parity in (0, 1)] for values in (phases, there))
    sums, count = np.stack(sums, 2).astype(np.complex64), np.stack(count, 2)  # (C, places, 2, B): even, odd periods

    # Compare with all words of the candidates' roots
    hits = []
    for root in set(candidates.root.tolist()):
        rows = candidates.root == root
        words = signal.words[root]  # (336, 2, B)
        rest, least = sums[rows], 0.0
        for _ in range(WORDS):
            match = rest.reshape(-1, words[0].size) @ words.reshape(len(words), -1).T
            match = match.reshape(*rest.shape[:2], -1)  # (c, places, 336)
            power = np.square(match.real) + np.square(match.imag)
            best, strongest = power.argmax(2), power.max(2)
            statistic = strongest * (power.shape[2] - 1) / (power.sum(2) - strongest + 1e-30) * (strongest > least)
            best_match = np.take_along_axis(match, best[..., None], 2)[..., 0]  # (c, places)
            turn = np.angle(best_match * np.exp(-2j * np.pi * hz[rows, None] * places / rate))
            fine = hz[rows, None] + turn / (2 * np.pi) * rate / places
            for c, place in np.argwhere(statistic > threshold):
                where = (root, int(best[c, place]), int(place), int(lag[rows][c]))
                hits.append(Hit(float(statistic[c, place]), *where, float(fine[c, place])))
            if statistic.max() < THRESHOLD:
                break
            # Words resemble each other: take the strongest out before the next one is looked for. The channel is not
            # known exactly, so a part stays behind that may resemble another word: hence the least energy.
            least = np.maximum(least, SHARE * strongest)
            amplitude = best_match / np.maximum(count[rows].sum(2) * len(signal.bins), 1)
            rest = rest - words[best] * (count[rows] * amplitude[..., None])[..., None].astype(np.complex64)
    return hits


def _refine(samples, signal, candidates, primary):
    """Shift in samples (C,) and frequency (C,) at which the whole PSS fits best, near those that its middle gave.

    The phase from the first half of the symbol to the second gives the frequency. Args: primary int (C, M), the sample
    at which each PSS begins.
    """
    spectrum = np.zeros((len(candidates.root), SIZE), complex)
    spectrum[:, signal.bins] = signal.primary[candidates.root]
    time = np.arange(SIZE) / (SIZE * signal.spacing_hz)
    replica = np.conj(np.fft.ifft(spectrum) * np.exp(2j * np.pi * candidates.hz[:, None] * time))  # (C, 128)
    shifts, products = np.array([0, -1, 1]), []
    for shift in shifts:
        starts = np.clip(primary + shift, 0, len(samples) - SIZE)
        chips = samples[starts[..., None] + np.arange(SIZE)] * replica[:, None]  # (C, M, 128)
        halves = chips.reshape(*starts.shape, 2, SIZE // 2).sum(-1)
        inside = starts == primary + shift
        products.append((halves[..., 1] * np.conj(halves[..., 0]) * inside).sum(1))
    products = np.array(products)  # (3, C)
    best = np.abs(products).argmax(0)
    turn = np.angle(products[best, np.arange(len(best))])
    return shifts[best], candidates.hz + np.clip(turn / np.pi, -0.5, 0.5) * signal.spacing_hz


# ---- search ---------------------------------------------------------------------------------------------------------


class Hypotheses(NamedTuple):
    """Where a cell may be, sorted by frequency: Hz against the capture's centre (P,), drift of its periods (P,)."""

    hz: np.ndarray
    drift: np.ndarray

    def between(self, first, last):
        inside = (self.hz >= first) & (self.hz <= last)
        return Hypotheses(self.hz[inside], self.drift[inside])


class Centers(NamedTuple):
    """Where a carrier or a block may be, arrays (n,) in Hz."""

    hz: np.ndarray  # against the capture's centre
    on_air: np.ndarray  # absolute frequency, which the clock's error is a share of
    reach: np.ndarray  # how far beside hz a receiver may show it


def _hypotheses(grid, centers, signal, seconds):
    """Hypotheses for the frequencies of `grid` (F,) at which some centre may appear, in a search over `seconds`.

    A receiver whose clock is slow measures frequencies too high and periods too short, by the same share.
    """
    lag = 1 / (HALF * signal.spacing_hz)
    finest = lag / max(seconds - signal.period / (SIZE * signal.spacing_hz), lag)  # moves the last period by one lag
    grid = np.asarray(grid)
    away = grid[:, None] - centers.hz  # (F, n)
    row, column = np.nonzero(np.abs(away) <= centers.reach + signal.spacing_hz / 2)
    steps = np.round(-away[row, column] / centers.on_air[column] / finest)
    row, steps = np.unique(np.stack([row, steps]), axis=1)
    return Hypotheses(grid[row.astype(int)], steps * finest)


def _search(spectrum, signal, hypotheses, threshold, seconds=1e3, deadline=np.inf):
    """Hits among hypotheses, strongest first; PSS candidates come from the first `seconds` only.

    deadline: on the clock of time.monotonic; frequencies that are not reached by then are left out.
    """
    # PSS, for a group of hypotheses at a time
    found, first = [], -np.inf
    while len(rest := hypotheses.between(first, np.inf).hz) and (not found or time.monotonic() < deadline):
        group = hypotheses.between(rest[0], rest[0] + SPAN * signal.spacing_hz)
        found.append(_primary(spectrum, signal, group, seconds))
        first = np.nextafter(group.hz[-1], np.inf)
    found = [candidates for candidates in found if candidates is not None]
    if not found:
        return []
    candidates = _strongest(Candidates(*map(np.concatenate, zip(*found, strict=True))), signal.spacing_hz)

    # SSS. One tuning is enough for candidates whose sequences lie in its bandwidth, but for a few subcarriers.
    span = max(SPAN, SIZE - len(signal.bins)) * signal.spacing_hz
    hits, left = [], np.argsort(candidates.hz)
    while len(left):
        low = candidates.hz[left[0]]
        near = candidates.hz[left] <= low + span
        group = Candidates(*(values[left[near]] for values in candidates))
        left = left[~near]
        samples, center = _tune(spectrum, (low + group.hz.max()) / 2, SIZE * signal.spacing_hz)
        if len(samples) > 4 * SIZE:
            group = group._replace(hz=group.hz - center)
            hits += [hit._replace(hz=hit.hz + center) for hit in _secondary(samples, signal, group, threshold)]
    return sorted(hits, reverse=True)


def _apart(frequencies, distance_hz):
    """Frequencies that are farther than distance_hz from all that were kept before them, ascending."""
    kept = []
    for hz in frequencies:
        if all(abs(hz - other) > distance_hz for other in kept):
            kept.append(hz)
    return sorted(kept)


def _best_of_each(cells):
    """One cell for each identity, the one with the highest statistic; sorted by that."""
    best = {}
    for cell in sorted(cells, key=lambda cell: -cell.statistic):
        best.setdefault(cell.cell_id, cell)
    return list(best.values())


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
    samples = _without_glitches(_checked(samples, sample_rate, signal))
    if len(samples) < LEAST_SECONDS * sample_rate:
        return []

    # Frequencies at which the centres may appear, in steps of half a subcarrier
    hz = np.unique(np.asarray(centers_hz, float))
    on_air = hz + capture_hz if capture_hz else np.full(len(hz), LTE_USUAL_HZ)
    centers = Centers(hz, on_air, np.maximum(LTE_REACH_HZ, LTE_REACH * on_air))
    low, high = (hz - centers.reach).min(), (hz + centers.reach).max()
    grid = np.arange(low, high + 1, signal.spacing_hz / 2)
    grid = grid[(np.abs(grid[:, None] - hz) <= centers.reach).any(1) & (np.abs(grid) < sample_rate / 2 - LTE_EDGE_HZ)]
    if len(grid) == 0:
        return []
    nearest = np.abs(grid[:, None] - hz).argmin(1)
    quick = Hypotheses(grid, (hz[nearest] - grid) / on_air[nearest])

    # Piece by piece
    pieces = -(-len(samples) // round(LTE_PIECE_SECONDS * sample_rate))
    more = np.log(pieces)  # as many chances for a false alarm
    cells = []
    for piece in range(pieces):
        start, stop = (number * len(samples) // pieces for number in (piece, piece + 1))
        width = high - low + HALF * signal.spacing_hz
        spectrum = _spectrum(samples[start:stop], sample_rate, (low + high) / 2, width, signal.spacing_hz)
        # Two half frames show strong cells. Then all half frames are searched: at the frequencies of the strong cells,
        # whose carriers may have more cells, or everywhere if there are none.
        hits = _search(spectrum, signal, quick, least + more, LTE_QUICK_SECONDS)
        if spectrum.seconds > LTE_QUICK_SECONDS:
            found = _apart([hit.hz for hit in hits if hit.statistic > THRESHOLD + more], signal.spacing_hz)
            hypotheses = _hypotheses(found or grid, centers, signal, spectrum.seconds)
            hits += _search(spectrum, signal, hypotheses, least + more)
        cells += [_lte_cell(hit, start / sample_rate + spectrum.delay) for hit in hits]
    return _best_of_each(cells)


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
    samples = _without_glitches(_checked(samples, sample_rate, nr_signal(15e3))[: round(NR_SECONDS * sample_rate)])
    if len(samples) < LEAST_SECONDS * sample_rate:
        return []
    for spacing in (15e3, 30e3) if spacing_hz is None else (spacing_hz,):
        # Where blocks may be
        signal = nr_signal(spacing)
        width = SIZE * spacing
        inside = sample_rate / 2 - 0.35 * width  # a PSS that the capture's edge cuts can be found
        low, high = max(band_hz[0] + width / 2, -inside), min(band_hz[1] - width / 2, inside)
        centers = _nr_centers(low, high, capture_hz, spacing, blind_seconds is not None)
        if len(centers.hz) == 0:
            continue

        # Hypotheses around these, in steps of half a subcarrier
        spectrum = _spectrum(samples, sample_rate, (low + high) / 2, high - low + width, spacing)
        steps = np.ceil(centers.reach / (spacing / 2))
        grid = [hz + np.arange(-n, n + 1) * spacing / 2 for hz, n in zip(centers.hz, steps, strict=True)]
        hypotheses = _hypotheses(np.unique(np.round(np.concatenate(grid), -3)), centers, signal, spectrum.seconds)
        hits = _search(spectrum, signal, hypotheses, least, deadline=deadline)
        cells += [_nr_cell(hit, spacing, capture_hz, spectrum.delay) for hit in hits]
    return _best_of_each(cells)


def _nr_centers(low, high, capture_hz, spacing, blind):
    """Centers of blocks between low and high, against the capture's centre."""
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
