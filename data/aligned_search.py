"""Search for the PSS where the cyclic prefix has already told when symbols begin: some hundred times fewer trials.

    timings = symbol_timings(spectrum, low_hz, high_hz, 15e3)                 # data/cyclic_prefix.py
    candidates = aligned_candidates(part, lte_signal(), timings[0], centers)  # for hits_of

The prefix gives the start of each symbol within a few samples, the receiver's clock error, and where the subcarriers
lie. It does not tell which symbol is the first of a slot. So each symbol is compared with the three sequences of the
PSS, the primary synchronisation signal, at all whole subcarriers, by one FFT for each sequence and delay. Needs numpy,
data/sync_search.py and data/sync_signals.py.
"""

import numpy as np

from data.sync_search import Candidates, smooth_size, strongest, tune
from data.sync_signals import HALF, SIZE

BLOCK_SECONDS = 0.5e-3  # the pattern of symbols repeats after it
# Parts of a symbol that it may begin later than the prefix says. Mostly it begins earlier: multipath and the soft edges
# of symbols hide the start of a prefix, by up to 2.5 microseconds on generated carriers. Three of these lost cells.
DELAYS = np.arange(-3, 3) * 0.014
CACHED = 65_536  # samples that are correlated at a time; they fit the processor's cache
KEPT = 400  # peaks before those that belong to one are joined


def symbol_starts(spacing_hz, extended):
    """When the symbols of half a millisecond begin behind their prefixes, float (symbols,), in seconds.

    TS 36.211 clause 6.12, TS 38.211 clause 5.3.1.
    """
    count = round((6 if extended else 7) * spacing_hz / 15e3)
    prefix = np.full(count, (1 / 4 if extended else 144 / 2048) / spacing_hz)
    prefix[0] += 0 if extended else 16 / 30.72e6
    return np.cumsum(prefix) + np.arange(count) / spacing_hz


def aligned_candidates(spectrum, signal, timing, centers):
    """Peaks of the PSS at the frequencies of a SymbolTiming that lie near the Centers: Candidates, or None.

    Args: frequencies of `timing` count from where those of `spectrum` and `centers` do.
    """
    spacing = signal.spacing_hz
    reach = centers.reach + spacing  # as far as the search without timing finds cells
    low, high = timing.low_hz - HALF / 2 * spacing, timing.high_hz + HALF / 2 * spacing  # the edges are rough
    near = (centers.hz + reach >= low) & (centers.hz - reach <= high)
    if not near.any():
        return None
    first, last = max((centers.hz - reach)[near].min(), low), min((centers.hz + reach)[near].max(), high)

    # Samples whose FFT over one symbol has a bin for each subcarrier
    size = HALF * smooth_size(int(np.ceil(((last - first) / spacing + SIZE) / HALF)))
    middle = timing.offset_hz + spacing * np.round(((first + last) / 2 - timing.offset_hz) / spacing)
    samples, center = tune(spectrum, middle, size * spacing)
    hz = center + spacing * np.fft.fftfreq(size, 1 / size)
    wanted = (np.abs(hz[:, None] - centers.hz[near]) <= reach[near]).any(1)
    wanted &= (hz >= low) & (hz <= high)
    if not wanted.any():
        return None

    # Symbols, cut out half a prefix early: (periods, half milliseconds of one, symbols of one, size)
    early = (1 / 8 if timing.extended else 72 / 2048) / spacing
    at = symbol_starts(spacing, timing.extended) - early
    blocks = round(signal.period / (SIZE * spacing) / BLOCK_SECONDS)
    periods = int(np.ceil((len(samples) / (size * spacing) / BLOCK_SECONDS + 1) / blocks))
    number = np.arange(periods * blocks).reshape(periods, blocks) - 1
    start = timing.start_s - spectrum.delay + number * BLOCK_SECONDS * (1 + timing.drift)
    start = np.round((start[..., None] + at) * size * spacing).astype(int)
    replicas = _replicas(signal, size, early * spacing + DELAYS)
    height, delay = _heights(samples, start, replicas, np.flatnonzero(wanted), spectrum.fft)
    best = np.argpartition(height, -min(KEPT, height.size), None)[-KEPT:]
    root, block, symbol, column = np.unravel_index(best, height.shape)

    # As candidates
    begin = timing.start_s - spectrum.delay + (block - 1) * BLOCK_SECONDS * (1 + timing.drift) + at[symbol] + early
    lag = np.round((begin + DELAYS[delay.ravel()[best]] / spacing) * SIZE * spacing).astype(int) % signal.period
    drift = np.full(len(best), timing.drift)
    return strongest(Candidates(height.ravel()[best], root, lag, hz[wanted][column], drift), spacing)


def _replicas(signal, size, late):
    """The middle of the PSS, as in the search without timing, in `size` samples of one symbol: complex64 (3, D, size).

    It begins parts `late` (D,) of a symbol after the samples do. Conjugate, to be multiplied with the samples.
    """
    full = np.zeros((3, SIZE), complex)
    full[:, signal.bins] = signal.primary
    bins = np.arange(-HALF // 2, HALF // 2)
    lines = np.zeros((3, len(late), size), complex)
    lines[..., bins] = full[:, None, bins] * np.exp(-2j * np.pi * np.outer(late, bins))
    return np.conj(np.fft.ifft(lines, norm="forward")).astype(np.complex64)


def _heights(samples, start, replicas, bins, fft):
    """How well symbols match the PSS around subcarriers, in standard deviations of noise; the best delay of each.

    The squared correlation is compared with the energy on the subcarriers of the PSS, and summed over periods.

    Args: start int (periods, blocks, symbols), where symbols begin; replicas (3, D, size); bins int (B,).
    Returns: float32 and int8, both (3, blocks, symbols, B).
    """
    size = replicas.shape[-1]
    part = bins if len(bins) < 0.7 * size else slice(None)  # copying most of them takes longer than computing all
    there = (start >= 0) & (start + size <= len(samples))
    count = there.sum(0)[..., None]  # (blocks, symbols, 1)
    height = np.full((3, *start.shape[1:], len(bins) if part is bins else size), -np.inf, np.float32)
    delay = np.zeros(height.shape, np.int8)
    step = max(1, round(CACHED / (size * start.shape[0] * start.shape[2])))
    for first in range(0, start.shape[1], step):  # a few half milliseconds at a time fit the processor's cache
        block = slice(first, first + step)
        periods = np.flatnonzero(there[:, block].any((1, 2)))
        if not len(periods):
            continue
        at = np.where(there, start, 0)[periods, block]
        windows = samples[at[..., None] + np.arange(size)] * there[periods, block][..., None]
        weight = _one_over_energy(fft(windows))[..., part]
        for root in range(3):
            for i, replica in enumerate(replicas[root]):
                match = fft(windows * replica)[..., part]
                power = np.square(match.real) + np.square(match.imag)
                power *= weight
                total = power.sum(0)  # (blocks, symbols, B)
                better = total > height[root, block]
                np.copyto(height[root, block], total, where=better)
                np.copyto(delay[root, block], i, where=better)
    height -= count
    height /= np.sqrt(np.maximum(count, 1, dtype=np.float32))
    return (height, delay) if part is bins else (height[..., bins], delay[..., bins])


def _one_over_energy(spectrum):
    """1 over the energy of the HALF subcarriers around each, float32 (..., size)."""
    size = spectrum.shape[-1]
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    around = np.concatenate([power[..., -HALF // 2 :], power, power[..., : HALF // 2]], -1)
    total = np.cumsum(around, -1, dtype=float)
    energy = total[..., HALF - 1 : HALF - 1 + size]
    energy[..., 1:] -= total[..., : size - 1]  # of subcarriers q - 32 .. q + 31
    return (1 / np.maximum(energy, 1e-3 * energy.mean() + 1e-30)).astype(np.float32)
