"""Search for the PSS where the cyclic prefix has already told when symbols begin: some hundred times fewer trials.

    timings = symbol_timings(spectrum, low_hz, high_hz, 15e3)                     # data/cyclic_prefix.py
    candidates = aligned_candidates(part, lte_signal(), timings[0], centers)      # for hits_of

The prefix gives the start of each symbol within a few samples, the receiver's clock error, and where the subcarriers
lie. PSS: the primary synchronisation signal, which comes in known symbols of half a millisecond. So each of these
symbols is compared with the three sequences at all whole subcarriers, by one FFT for each sequence and delay. Needs
numpy, data/sync_search.py and data/sync_signals.py.
"""

import numpy as np

from data.sync_search import Candidates, smooth_size, strongest, tune
from data.sync_signals import HALF, SIZE

BLOCK_SECONDS = 0.5e-3  # the pattern of symbols repeats after it
DELAYS = np.arange(-3, 4) * 0.01  # parts of a symbol that it may begin later than the prefix says
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

    Frequencies of `timing` count from where those of `spectrum` and `centers` do.
    """
    spacing = signal.spacing_hz
    reach = centers.reach + spacing / 2
    near = (centers.hz + reach >= timing.low_hz) & (centers.hz - reach <= timing.high_hz)
    if not near.any():
        return None
    first, last = (centers.hz - reach)[near].min(), (centers.hz + reach)[near].max()

    # Samples whose FFT over one symbol has a bin for each subcarrier
    size = HALF * smooth_size(int(np.ceil(((last - first) / spacing + SIZE) / HALF)))
    middle = timing.offset_hz + spacing * np.round(((first + last) / 2 - timing.offset_hz) / spacing)
    samples, center = tune(spectrum, middle, size * spacing)
    hz = center + spacing * np.fft.fftfreq(size, 1 / size)
    wanted = (np.abs(hz[:, None] - centers.hz[near]) <= reach[near]).any(1)
    wanted &= (hz >= timing.low_hz) & (hz <= timing.high_hz)
    if not wanted.any():
        return None

    # Symbols that may hold the PSS, cut out half a prefix early, (periods, half milliseconds of one, symbols, size)
    extended = timing.extended and len(signal.extended_symbols) > 0
    symbols = np.array(signal.extended_symbols if extended else signal.symbols)
    early = (1 / 8 if extended else 72 / 2048) / spacing
    at = symbol_starts(spacing, extended)[symbols] - early
    blocks = round(signal.period / (SIZE * spacing) / BLOCK_SECONDS)
    periods = int(np.ceil((len(samples) / (size * spacing) / BLOCK_SECONDS + 1) / blocks))
    number = np.arange(periods * blocks).reshape(periods, blocks) - 1
    start = timing.start_s - spectrum.delay + number * BLOCK_SECONDS * (1 + timing.drift)
    start = np.round((start[..., None] + at) * size * spacing).astype(int)
    there = (start >= 0) & (start + size <= len(samples))
    count = there.sum(0)
    start = np.clip(start, 0, len(samples) - size)

    # Energy at each subcarrier's share of the PSS, summed over periods, the best delay of each
    sums, delay = _sums(samples[start[..., None] + np.arange(size)] * there[..., None], signal, early * spacing)
    height = (sums - count[..., None]) / np.sqrt(np.maximum(count, 1))[..., None]  # (3, blocks, symbols, size)
    height[..., ~wanted] = -np.inf
    best = np.argpartition(height, -min(KEPT, height.size), None)[-KEPT:]
    best = best[np.isfinite(height.ravel()[best])]
    root, block, symbol, bin_ = np.unravel_index(best, height.shape)

    # As candidates
    begin = timing.start_s - spectrum.delay + (block - 1) * BLOCK_SECONDS * (1 + timing.drift) + at[symbol] + early
    lag = np.round((begin + DELAYS[delay.ravel()[best]] / spacing) * SIZE * spacing).astype(int) % signal.period
    drift = np.full(len(best), timing.drift)
    return strongest(Candidates(height.ravel()[best], root, lag, hz[bin_], drift), spacing)


def _sums(windows, signal, early):
    """Squared correlation of windows with the PSS, against their energy there: summed over periods, 1 each in noise.

    Args: windows (periods, blocks, symbols, size), which begin a part `early` of a symbol before a symbol does.
    Returns: float32 (3, blocks, symbols, size) for each subcarrier as the PSS's centre; index of the best of DELAYS.
    """
    # The middle of the PSS, as in the search without timing
    size = windows.shape[-1]
    full = np.zeros((3, SIZE), complex)
    full[:, signal.bins] = signal.primary
    bins = np.arange(-HALF // 2, HALF // 2)
    sequence = full[:, bins]  # (3, HALF)

    spectrum = np.fft.fft(windows)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    total = np.cumsum(np.concatenate([power[..., -HALF // 2 :], power, power[..., : HALF // 2]], -1), -1, dtype=float)
    total = np.concatenate([np.zeros((*total.shape[:-1], 1)), total], -1)
    energy = total[..., HALF : HALF + size] - total[..., :size]  # of bins q - 32 .. q + 31
    weight = (1 / np.maximum(energy, 1e-3 * energy.mean() + 1e-30)).astype(np.float32)

    best = np.full((3, *windows.shape[1:]), -1, np.float32)
    delay = np.zeros(best.shape, np.int8)
    for root in range(3):
        for i, late in enumerate(DELAYS):
            line = np.zeros(size, complex)
            line[bins] = sequence[root] * np.exp(-2j * np.pi * bins * (early + late))
            replica = np.conj(np.fft.ifft(line, norm="forward")).astype(np.complex64)
            match = np.fft.fft(windows * replica)
            total = ((np.square(match.real) + np.square(match.imag)) * weight).sum(0)  # (blocks, symbols, size)
            better = total > best[root]
            best[root][better], delay[root][better] = total[better], i
    return best, delay
