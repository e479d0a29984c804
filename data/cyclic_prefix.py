"""Is there an LTE or 5G NR cyclic prefix in a band? The answer needs no knowledge of the data that is sent.

    spectrum = frame_spectrum(samples, sample_rate)              # once for 40 ms
    band = band_samples(spectrum, low_hz=2.5e6, high_hz=12e6)    # once for each band
    evidence = cyclic_prefix(band, floor=noise_power_per_hz)
    evidence.outcome, evidence.spacing_hz                        # "prefix", 15000.0; or "none", None; "unknown", None

Each OFDM symbol begins with a copy of its own end: 66.67 microseconds earlier at 15 kHz subcarrier spacing, 33.33 at
30 kHz, 16.67 at 60 kHz (TS 36.211 clause 6.12, TS 38.211 clause 5.3.1). So the samples are multiplied with those one
lag later. The pattern of the symbols repeats after half a millisecond, so the products are summed over all half
milliseconds. The sum shows boxes where the prefixes are, and a filter with the shape of these boxes finds them. The
filter has zero mean: a signal that correlates all the time (a tone, a comb, pulses with that period) gives nothing. The
same filter at lags nearby shows what chance would give, or a signal that correlates at any lag.

Samples must be as received. Repeated samples correlate at lags of their own, and a filled gap proves nothing. Needs
numpy only.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

SPACINGS = (15e3, 30e3, 60e3)  # Hz
GRID = 60e3  # Hz; rates that are multiples of it have all three lags, and half a millisecond, in whole samples
BLOCK_SECONDS = 0.5e-3
SEGMENT_BLOCKS = 20  # 10 ms are folded as if the receiver's clock were exact

SUBBAND_HZ = 1.92e6  # about; power is measured and limited in each sub-band by itself
MOST_SUBBANDS = 12  # the strongest ones of a wider band
NARROWEST_HZ = 480e3  # of a band: two columns of the spectrogram
CELL_HZ, CELL_LIMIT = 20e3, 2.0  # a cell of the spectrum is limited to so many times its sub-band's median

RANGE_DB = 25  # power that far below the band's strongest moment counts as noise: a strong burst has skirts
LEAST_WEIGHT = 0.02  # weight of what seems to be noise; not 0, since the floor may be wrong
COUNTED_SHARE = 0.5  # time and bandwidth count as energy if the signal has this share of the power
CLOCK_PPM, DRIFT_STEP_SECONDS = 60, 1.2e-6  # a receiver's clock may be off by so much; drifts are tried in such steps

# Lags nearby, relative to the lag. Nearer ones would show the carrier itself: one resource block of 180 kHz has a peak
# 8% of the lag wide. So would farther ones: reference signals on every sixth subcarrier have peaks a sixth of the lag
# away.
CONTROLS = (-0.15, -0.13, -0.11, -0.09, 0.09, 0.11, 0.13, 0.15)
# In deviations of noise:
CANDIDATE = 4.0  # a lower peak is no prefix in any case and is not compared with the lags nearby
CLEAR = 25.0  # for a higher peak three sub-bands are enough to compare with
CHANCE = 3.3  # highest output that noise gives at the eight lags nearby; what is more comes from the signal

# Chosen with experiments/prefix_trials.py, which measures how often these are wrong.
THRESHOLD = 7.0  # deviations from which on there is a prefix
RARE_PENALTY = 1.5  # peaks of extended prefixes and of 60 kHz, which are rare on the air, are divided by this
LEAST_SHARE = 0.75  # of the mean squared correlation, this share must lie inside the time of the prefixes
MOST_OF_ONE = 0.8  # largest share of a peak that may come from one of the half millisecond's prefixes
TIMING_HEIGHT = 5.0  # least height of a peak that tells a timing; where there is a prefix, a wrong one costs time only
MOST_TIMINGS = 8
SAME_SECONDS, SAME_OFFSET = 0.8e-6, 0.1  # timings that differ by less are one; a share of the spacing
ENOUGH = 20_000.0  # Hz s; energy from which on a missing prefix means that there is none


class FrameSpectrum(NamedTuple):
    """lines: complex64 (n,), numpy.fft.fft of n samples; sample_rate: Hz."""

    lines: np.ndarray
    sample_rate: float


class Band(NamedTuple):
    """samples: complex64 (sub-bands, samples); rate: samples a second of each sub-band, a multiple of 60 kHz."""

    samples: np.ndarray
    rate: float


class PrefixEvidence(NamedTuple):
    """What `cyclic_prefix` found.

    outcome: "prefix"; or "none", which proves that the band holds neither LTE nor NR; or "unknown" if the band is too
    weak or too short to tell. energy: (signal / (signal + noise))^2, integrated over time and bandwidth (seconds x Hz);
    0 without a noise floor.
    """

    outcome: str
    spacing_hz: float | None  # 15e3, 30e3 or 60e3
    contrast: dict  # {spacing: height of the peak in deviations}, see `cyclic_prefix`; empty if the band is too short
    energy: float
    enough: float  # energy from which on a missing prefix means "none"
    extended: bool | None = None  # whether it is the extended prefix, 1/4 of a symbol
    offset_hz: float | None = None  # of the subcarriers against multiples of spacing_hz from the capture's centre
    slot_start_s: float | None = None  # start of a half millisecond of the carrier after the first sample, 0 .. .0005


class SymbolTiming(NamedTuple):
    """Where the symbols of a part of a band lie in time and frequency."""

    spacing_hz: float
    start_s: float  # start of a half millisecond of the carrier after the first sample, or of another symbol of it
    offset_hz: float  # of the subcarriers against multiples of spacing_hz from the capture's centre
    drift: float  # share by which half milliseconds last longer
    extended: bool  # whether it is the extended prefix
    low_hz: float  # edges of the part against the capture's centre
    high_hz: float
    height: float  # of the peak, in deviations of noise


class _Peak(NamedTuple):
    height: float  # in deviations; 0 if the rest of the time correlates as the prefixes do
    above_noise: float  # the same without regard to the lags nearby
    extended: bool
    value: complex  # the filter's output; its phase tells where the subcarriers lie
    start: int  # sample at which the half milliseconds begin


def frame_spectrum(samples: np.ndarray, sample_rate: float, fft=np.fft.fft) -> FrameSpectrum:
    """Spectrum of samples, complex (n,), for all bands of a frame; `fft` may be a faster one than NumPy's.

    A single glitch would fill the whole spectrum. So power is limited to ten times the value that one sample in a
    thousand exceeds. Raises ValueError if there are no samples, or some are not finite.
    """
    samples = np.asarray(samples, np.complex64)
    power = np.square(samples.real) + np.square(samples.imag)
    if not len(power) or not np.isfinite(power.sum()):
        raise ValueError("no samples, or NaN, infinite or huge values among them; replace these by 0 first")
    limit = 10 * np.quantile(power[:: max(1, len(power) // 65536)], 0.999)
    high = np.flatnonzero(power > limit)
    if len(high) and limit > 0:
        samples = samples.copy()
        samples[high] *= np.sqrt(limit / power[high])
    return FrameSpectrum(fft(samples), float(sample_rate))


def band_samples(spectrum: FrameSpectrum, low_hz: float, high_hz: float, most: int = MOST_SUBBANDS) -> Band:
    """Samples of low_hz .. high_hz (against the capture's centre) in sub-bands of about 1.92 MHz.

    A cut through the spectrum filters and decimates; sub-bands start at multiples of 60 kHz and have rates on that
    grid. In each sub-band, cells of 20 kHz are limited to 3 dB above the median cell; this removes the receiver's DC,
    spurs and narrow interferers. Of more sub-bands than `most` the strongest are taken: of a band above 24 MHz 12.

    Raises ValueError if the capture has less than 480 kHz of the band.
    """
    lines, rate = spectrum
    seconds = len(lines) / rate
    edges = _subbands(rate, low_hz, high_hz)

    # Lines of the sub-bands, limited, and back to samples
    step = int(edges[1] - edges[0])
    size = round(step * GRID * seconds)  # lines of a sub-band, and its samples
    parts = np.stack([_cut(lines, round(edge * GRID * seconds), size) for edge in edges[:-1]])  # (sub-bands, size)
    if len(parts) > most:
        strength = [np.vdot(part, part).real for part in parts]
        parts = parts[np.sort(np.argsort(strength)[-most:])]
    _limit_cells(parts, max(1, round(CELL_HZ * seconds)))
    parts *= np.float32(size / len(lines))
    return Band(np.fft.ifft(parts, axis=1), step * GRID)


def _subbands(rate, low_hz, high_hz):
    """Edges of the sub-bands of low_hz .. high_hz in steps of GRID, int (sub-bands + 1,)."""
    first = int(np.ceil(max(low_hz, -rate / 2) / GRID))
    width = int(np.floor(min(high_hz, rate / 2) / GRID)) - first
    if width * GRID < NARROWEST_HZ:
        raise ValueError(f"{low_hz:.0f} .. {high_hz:.0f} Hz: the capture has less than {NARROWEST_HZ:.0f} Hz of that")
    count = max(1, round(width * GRID / SUBBAND_HZ))
    step = width // count
    return first + (width - count * step) // 2 + step * np.arange(count + 1)


def _cut(lines, start, size):
    """`size` lines of the spectrum from `start` on, which is negative for negative frequencies."""
    start %= len(lines)
    if start + size <= len(lines):
        return lines[start : start + size]
    return np.concatenate([lines[start:], lines[: start + size - len(lines)]])


def _limit_cells(parts, width):
    """Limit, in place, the power of the cells of `width` lines to CELL_LIMIT times the median of their sub-band."""
    count = parts.shape[1] // width
    cells = parts[:, : count * width].reshape(len(parts), count, width)
    power = (np.square(cells.real) + np.square(cells.imag)).mean(2)  # (sub-bands, cells)
    limit = CELL_LIMIT * np.median(power, axis=1, keepdims=True)
    for i, j in np.argwhere(power > limit):
        cells[i, j] *= np.sqrt(limit[i, 0] / power[i, j])


def cyclic_prefix(band: Band, floor: float | None = None) -> PrefixEvidence:
    """Decide on the cyclic prefix in a band.

    Args:
        band: from `band_samples`; .6 milliseconds at least, better 10 to 40.
        floor: power per Hz of the noise, in the samples' units. Without it a prefix can be found too, but a missing one
            proves nothing.

    The contrast of a spacing is the highest output of the filter at its lag. It is measured in deviations of noise, or
    of the outputs at lags nearby if these are larger. It is 0 if the rest of the time correlates like the time of the
    supposed prefixes, or if one prefix alone makes the output. From THRESHOLD on there is a prefix, and the highest
    contrast tells the spacing.

    "none" is right if the floor is right within 2 dB and the band holds one emission: a carrier below a stronger
    emission is not seen.
    """
    least = round(band.rate * (BLOCK_SECONDS + (1 + max(CONTROLS)) / min(SPACINGS) + 1 / GRID))
    if band.samples.shape[1] < least:
        return PrefixEvidence("unknown", None, {}, 0.0, ENOUGH)
    weighted, energy = _equalise(band, floor)
    peaks = {spacing: _peak(weighted, band.rate, spacing) for spacing in SPACINGS}
    contrast = {spacing: peak.height for spacing, peak in peaks.items()}
    spacing = max(contrast, key=contrast.get)
    if contrast[spacing] < THRESHOLD:
        # A peak is doubtful if it is high over noise and the lags nearby do not explain it.
        doubtful = any(p.above_noise >= THRESHOLD and p.height >= CANDIDATE for p in peaks.values())
        outcome = "none" if energy >= ENOUGH and not doubtful else "unknown"
        return PrefixEvidence(outcome, None, contrast, energy, ENOUGH)
    peak = peaks[spacing]
    offset = -np.angle(peak.value) / (2 * np.pi) * spacing
    start = peak.start / band.rate
    return PrefixEvidence("prefix", spacing, contrast, energy, ENOUGH, peak.extended, float(offset), start)


def symbol_timings(
    spectrum: FrameSpectrum, low_hz: float, high_hz: float, spacing_hz: float, floor: float | None = None
) -> list[SymbolTiming]:
    """Where symbols of this spacing begin in a band with such a prefix, for each part of it, the strongest first.

    Carriers side by side may differ in time, and in frequency modulo the spacing. So the whole band is asked, and each
    run of one to three sub-bands. Runs that agree with a stronger one belong to it: it then reaches over all of them.

    Args: as of band_samples and cyclic_prefix.
    Returns: MOST_TIMINGS at most; empty where no peak is TIMING_HEIGHT deviations high.
    Raises: ValueError as band_samples does.
    """
    edges = _subbands(spectrum.sample_rate, low_hz, high_hz) * GRID
    band = band_samples(spectrum, low_hz, high_hz, most=len(edges))
    weighted, _ = _equalise(band, floor)
    count, lag = len(weighted), round(band.rate / spacing_hz)
    if weighted.shape[1] < round(band.rate * (BLOCK_SECONDS + 1 / spacing_hz)):
        return []
    forms = _box_filters(band.rate, spacing_hz)
    folds = [_fold(row[None], lag, band.rate) for row in weighted]
    seconds = len(folds[0][0]) * SEGMENT_BLOCKS * BLOCK_SECONDS

    # The peak of each run of sub-bands
    runs = {(0, count)} | {(i, i + size) for size in (1, 2, 3) for i in range(count - size + 1)}
    found = []
    for first, stop in sorted(runs):
        folded = sum(fold for fold, _ in folds[first:stop])
        deviation = np.sqrt(sum(deviation**2 for _, deviation in folds[first:stop]))
        height, extended, shifts, start, value = _highest(folded, forms, band.rate)
        if height >= TIMING_HEIGHT * deviation > 0:
            offset = -np.angle(value) / (2 * np.pi) * spacing_hz
            drift = shifts[-1] / band.rate / (seconds - seconds / len(shifts)) if len(shifts) > 1 else 0.0
            about = float(edges[first]), float(edges[stop]), float(height / deviation)
            found.append(SymbolTiming(spacing_hz, start / band.rate, float(offset), float(drift), extended, *about))

    # Those that agree become one
    merged = []
    for timing in sorted(found, key=lambda timing: -timing.height):
        for i, stronger in enumerate(merged):
            if _agree(timing, stronger):
                low, high = min(timing.low_hz, stronger.low_hz), max(timing.high_hz, stronger.high_hz)
                merged[i] = stronger._replace(low_hz=low, high_hz=high)
                break
        else:
            merged.append(timing)
    return merged[:MOST_TIMINGS]


def _agree(a, b):
    """Whether a search at timing b finds the cells of timing a.

    The boxes of the seven prefixes are nearly the same one symbol later. So a peak tells where symbols begin, but not
    which one is the first; times count modulo a symbol.
    """
    pitch = BLOCK_SECONDS / round((6 if b.extended else 7) * b.spacing_hz / 15e3)
    late = (a.start_s - b.start_s + pitch / 2) % pitch - pitch / 2
    beside = (a.offset_hz - b.offset_hz + a.spacing_hz / 2) % a.spacing_hz - a.spacing_hz / 2
    near = abs(late) <= SAME_SECONDS and abs(beside) <= SAME_OFFSET * a.spacing_hz
    return near and a.extended == b.extended


def _equalise(band, floor):
    """(Weighted samples, complex64 (sub-bands, samples); energy as in PrefixEvidence).

    Power is measured over 67 microseconds. Samples are divided by its root, or by their own magnitude if that is more,
    so that bursts, gain steps and pulses count no more than the rest. The weight of a product of two samples is the
    square of the signal's share of the power. The share itself would be best if it were known exactly, but it is off
    by .1.
    """
    # Power of cells, and the signal's share of it
    samples, rate = band
    width = round(rate / GRID)  # a cell is 16.7 microseconds
    count = samples.shape[1] // width
    cells = samples[:, : count * width].reshape(len(samples), count, width)
    magnitude = np.abs(cells)
    power = np.einsum("ijk,ijk->ij", magnitude, magnitude) / width
    padded = np.pad(power, ((0, 0), (1, 2)), mode="edge")
    power = sum(padded[:, i : i + count] for i in range(4)) / 4  # (sub-bands, cells)
    noise = np.float32(max((floor or 0) * rate, power.max() * 10 ** (-RANGE_DB / 10)))
    share = np.maximum(power - noise, 0) / np.maximum(power, np.float32(1e-37))
    energy = 0.0 if floor is None else float(np.square(share[share > COUNTED_SHARE], dtype=float).sum() * width)  # Hz s

    # Weights
    scale = np.sqrt(np.maximum(share * share, np.float32(LEAST_WEIGHT)))[..., None]
    root = np.maximum(np.sqrt(power), np.float32(1e-18))[..., None]  # zeros stay zeros
    weighted = cells * (scale / np.maximum(magnitude, root))
    return weighted.reshape(len(samples), -1), energy


def _peak(weighted, rate, spacing):
    """The filter's highest output at the lag of one subcarrier spacing, as a _Peak."""
    lag = round(rate / spacing)
    forms = _box_filters(rate, spacing)
    folded, deviation = _fold(weighted, lag, rate)
    height, extended, shifts, start, value = _highest(folded, forms, rate)
    height /= max(deviation, 1e-30) * (RARE_PENALTY if spacing == 60e3 else 1)

    # Prefixes correlate, and the rest of the half millisecond does not; the first prefix begins it here
    total = sum(np.roll(row, -move - start) for row, move in zip(folded, shifts, strict=True))
    boxes = forms[extended][0]  # (prefixes, P)
    inside = boxes.sum(0)
    power = np.square(np.abs(total) / max(deviation, 1e-30)) - 1  # 0 in the mean for noise
    within, beyond = (max(float((power * where).sum() / where.sum()), 0.0) for where in (inside, 1 - inside))
    each = (boxes * (total * np.conj(value)).real).sum(1)
    if within < LEAST_SHARE * (within + beyond) or each.max() > MOST_OF_ONE * each.sum():
        return _Peak(0.0, 0.0, extended, value, start)

    # Does the signal correlate like this at lags nearby as well?
    above_noise = height
    if height >= CANDIDATE:
        some = weighted[:: -(-len(weighted) // 3)] if height >= CLEAR else weighted
        heights = []
        for away in {round(lag * part) for part in CONTROLS} - {-1, 0, 1}:
            other, other_deviation = _fold(some, lag + away, rate)
            heights.append(_highest(other, forms, rate)[0] / max(other_deviation, 1e-30))
        excess = max(0.0, (max(heights) / CHANCE) ** 2 - 1)
        height /= np.sqrt(1 + 2 * excess * len(weighted) / len(some))
    return _Peak(float(height), float(above_noise), extended, value, start)


@lru_cache(maxsize=32)
def _box_filters(rate, spacing):
    """{extended: (boxes, filter)} for half a millisecond of P samples.

    boxes: the part of each sample that each prefix covers, float (prefixes, P). filter: conjugate spectrum of the sum
    of the boxes without its mean, with unit energy, complex (P,).
    """
    edges = np.arange(round(rate * BLOCK_SECONDS) + 1) / rate
    symbol, forms = 1 / spacing, {}
    for extended in (False, True):
        count = round((6 if extended else 7) * spacing / 15e3)
        prefix = np.full(count, symbol / 4 if extended else symbol * 144 / 2048)
        prefix[0] += 0 if extended else 16 / 30.72e6
        ends = (np.cumsum(prefix + symbol) - symbol)[:, None]
        covered = np.minimum(edges[1:], ends) - np.maximum(edges[:-1], ends - prefix[:, None])
        boxes = np.clip(covered * rate, 0, 1)
        form = boxes.sum(0) - boxes.sum(0).mean()
        forms[extended] = boxes, np.conj(np.fft.fft(form / np.sqrt(np.square(form).sum())))
    return forms


def _fold(weighted, lag, rate):
    """Products with the samples one lag later, summed over half milliseconds and sub-bands.

    Returns: complex (segments, P), a segment has 10 ms, the last one up to 15 ms; and the standard deviation that a sum
    over all segments would have if the samples were independent.
    """
    period = round(rate * BLOCK_SECONDS)
    blocks = (weighted.shape[1] - lag) // period
    starts = np.arange(0, max(1, blocks - SEGMENT_BLOCKS // 2), SEGMENT_BLOCKS)
    count, folded, power = blocks * period, 0, 0.0
    for row in weighted:  # one by one: they fit the processor's cache
        product = row[:count] * np.conj(row[lag : lag + count])
        power += np.vdot(product, product).real
        folded = folded + np.add.reduceat(product.reshape(blocks, period), starts, axis=0)
    return folded, float(np.sqrt(power / period))


def _highest(folded, forms, rate):
    """The highest output of the filters over all starts and clock errors: (height, extended, shifts, start, value)."""
    segments = len(folded)
    seconds = segments * SEGMENT_BLOCKS * BLOCK_SECONDS
    steps = int(np.ceil(CLOCK_PPM * 1e-6 * seconds / DRIFT_STEP_SECONDS)) if segments > 1 else 0
    spectrum = np.fft.fft(folded)  # (segments, P)
    turn = np.exp(2j * np.pi * np.fft.fftfreq(folded.shape[1]))
    best = (-1.0,)
    for step in range(-steps, steps + 1):
        drift = step * DRIFT_STEP_SECONDS * rate / max(1, segments - 1)  # samples a segment
        shift = np.round(drift * np.arange(segments)).astype(int)
        total = (spectrum * turn ** shift[:, None]).sum(0)
        for extended, (_, form) in forms.items():
            output = np.fft.ifft(total * form)
            start = int(np.abs(output).argmax())
            height = float(abs(output[start])) / (RARE_PENALTY if extended else 1)
            if height > best[0]:
                best = (height, extended, shift, start, complex(output[start]))
    return best
