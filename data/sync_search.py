"""Search for a primary and a secondary synchronisation signal (PSS, SSS) in samples of any rate.

    spectrum = spectrum_around(samples, sample_rate, center_hz, width_hz, signal.spacing_hz)
    hits = search(spectrum, signal, hypotheses, threshold)

The PSS gives time, frequency and one of three roots: its correlation is folded over its period for each hypothesis of
frequency and clock error. Its strongest peaks are candidates. The SSS of each is compared with all its 336 words, and
a word that stands out is a hit. data/cell_search.py makes cells of these. Needs numpy and data/sync_signals.py.
"""

import time
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from data.sync_signals import HALF, SIZE

PART = 8  # samples of the PSS that are correlated as one part,
SPAN = 5  # for frequency hypotheses that lie within so many subcarriers
BLOCK = 8192  # lags that are computed at a time; they fit the processor's cache
PEAKS = 200  # pairs of lag and hypothesis that are kept of a group; several belong to one peak
CANDIDATES = 24  # peaks of the PSS whose SSS is tried
SMOOTH = 7  # subcarriers over which the channel is taken as constant, some 100 kHz at 15 kHz
WORDS, SHARE = 3, 0.05  # most cells with one PSS at one time, and the least energy of one against the strongest
THRESHOLD = 21.0  # of the statistic from which on a cell is found


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
    """Part of a capture's spectrum: FFT bins complex64 (M,) at `rate` around center_hz."""

    bins: np.ndarray
    rate: float
    center_hz: float
    seconds: float  # time that the samples last; zeros follow up to M / rate
    delay: float  # of the filter in seconds
    fft: Callable = np.fft.fft  # or a faster one over the last axis


# ---- from the capture to samples around a frequency -----------------------------------------------------------------


def without_glitches(samples, block=1024, most=16):
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

    A polyphase filter as one matrix product.  Returns: (complex64 (m,), rate, their centre in Hz, delay in seconds).
    """
    factor = max(1, int(sample_rate / (2 * width_hz)))
    phase = -2j * np.pi * center_hz / sample_rate
    if factor == 1:
        return samples, sample_rate, 0.0, 0.0
    columns = 8  # taps a phase
    n = np.arange(columns * factor)
    taps = np.sinc((n - (len(n) - 1) / 2) / factor) * np.kaiser(len(n), 5.65)  # stop band -60 dB
    taps = (taps / taps.sum() * np.exp(phase * n)).astype(np.complex64)
    rows = len(samples) // factor
    products = taps.reshape(columns, factor) @ samples[: rows * factor].reshape(rows, factor).T  # (columns, rows)
    out = sum(products[k, k : rows - columns + 1 + k] for k in range(columns))
    out = out * np.exp(phase * factor * np.arange(len(out))).astype(np.complex64)
    return out, sample_rate / factor, center_hz, (len(n) - 1) / 2 / sample_rate


def smooth_size(n):
    """Smallest number from n on whose prime factors are 2, 3 and 5: its FFT is fast."""
    powers = np.multiply.outer(2 ** np.arange(26), np.multiply.outer(3 ** np.arange(9), 5 ** np.arange(7))).ravel()
    return int(powers[powers >= n].min())


def spectrum_around(samples, sample_rate, center_hz, width_hz, spacing_hz, fft=np.fft.fft):
    """Spectrum of a part of the capture without lines, its length such that HALF * spacing_hz fits it exactly."""
    samples, rate, center_hz, delay = _decimate(samples, sample_rate, center_hz, width_hz)
    ratio = Fraction(HALF * spacing_hz / rate).limit_denominator(100_000)
    size = ratio.denominator * smooth_size(-(-len(samples) // ratio.denominator))
    padded = np.zeros(size, np.complex64)
    padded[: len(samples)] = samples
    bins = without_lines(fft(padded), size / rate)
    return Spectrum(bins, rate, center_hz, len(samples) / rate, delay, fft)


def without_lines(bins, seconds):
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


def tune(spectrum, center_hz, rate):
    """Samples at `rate` around center_hz, complex64 (n,), and their centre in Hz, rounded to a bin."""
    size, width = len(spectrum.bins), spectrum.rate / len(spectrum.bins)
    out_size = round(rate / width)
    shift = round((center_hz - spectrum.center_hz) / width)
    line = np.arange(-(out_size // 2), out_size // 2)
    inside = line[max(0, -size // 2 - shift - line[0]) : max(0, size // 2 - shift - line[0])]
    bins = np.zeros(out_size, np.complex64)
    bins[inside] = np.conj(spectrum.bins[inside + shift])
    samples = np.conj(spectrum.fft(bins)[: int(spectrum.seconds * rate)]) / np.float32(size)  # the inverse FFT
    return samples, spectrum.center_hz + shift * width


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
    samples, center = tune(spectrum, (hypotheses.hz[0] + hypotheses.hz[-1]) / 2, rate)
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


def strongest(candidates, spacing_hz):
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


def make_hypotheses(grid, centers, signal, seconds):
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


def search(spectrum, signal, hypotheses, threshold, seconds=1e3, deadline=np.inf):
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
    candidates = strongest(Candidates(*map(np.concatenate, zip(*found, strict=True))), signal.spacing_hz)
    return hits_of(spectrum, signal, candidates, threshold)


def hits_of(spectrum, signal, candidates, threshold):
    """Hits among Candidates, strongest first."""
    # One tuning is enough for candidates whose sequences lie in its bandwidth, but for a few subcarriers.
    span = max(SPAN, SIZE - len(signal.bins)) * signal.spacing_hz
    hits, left = [], np.argsort(candidates.hz)
    while len(left):
        low = candidates.hz[left[0]]
        near = candidates.hz[left] <= low + span
        group = Candidates(*(values[left[near]] for values in candidates))
        left = left[~near]
        samples, center = tune(spectrum, (low + group.hz.max()) / 2, SIZE * signal.spacing_hz)
        if len(samples) > 4 * SIZE:
            group = group._replace(hz=group.hz - center)
            hits += [hit._replace(hz=hit.hz + center) for hit in _secondary(samples, signal, group, threshold)]
    return sorted(hits, reverse=True)
