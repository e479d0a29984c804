"""Bands of a spectrogram before anything is fitted to them: cut where a gap is seen, joined where none is.

    bands = whole_bands(find_bands(label), power, floor, channels)
    more = unclaimed(label, power, floor)                    # strong bands that the network calls noise

A network that has seen few neighbours calls four LTE carriers side by side one NR carrier, though the gaps between
them are in plain sight. And it calls part of one carrier LTE, the other part NR. Power is each column's mean over time.
Needs numpy and utils/carriers.py.
"""

from collections.abc import Sequence

import numpy as np

from utils.carriers import MAX_GAP, MIN_COLUMNS

GAP_SHARE = 0.4  # of the rise in dB over the floor: what a gap keeps at most
GAP_LEAST_DB = 3.0  # that it lies below both sides
CLEAR_DB = 6.0  # rise from which on a guard band could not be overlooked
STEEP = 0.45  # of the rise, within two columns on both sides of a gap; a fade falls slowly
SIDE = 10  # columns to either side of a gap that tell their level
WIDEST_GAP = 25  # columns, 6 MHz: the guard bands of two channels of 100 MHz
EDGE_DB = 4.0  # below the middle of a piece: its edges; the smoothing over three columns takes 4.8 from an outer one
FITS = 1.6  # columns of 240 kHz by which a piece's width may miss a standard channel's
STRONG_DB = 5.0  # over the floor in the mean over time; what is weaker proves nothing
SKIRT, SKIRT_DB = 20, 25.0  # what lies so far below a column so near is that one's skirt: transmitters leak
PEAK_DB, PEAK_RANGE_DB = 15.0, 20.0  # a clearly strong column, and how far below it the same emission may fade
LINE_DB = 6.0  # a column so far above its neighbours is a line: DC, a spur, a tone

Channels = Sequence[tuple[int, float, float]]  # class, width, occupied width; both in columns
Band = tuple[int, int, int]  # class, first column, behind the last


def lines(power: np.ndarray) -> np.ndarray:
    """Columns, bool (C,), that stand LINE_DB above the median of the three on either side."""
    padded = np.pad(power, 3, mode="reflect") if len(power) > 3 else np.pad(power, 3, mode="edge")
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 7), axis=1)
    return power > around * 10 ** (LINE_DB / 10)


def rise_db(power: np.ndarray, floor: float) -> np.ndarray:
    """Each column's power over the floor in dB, (C,): the mean of three columns, lines left out."""
    clean = np.where(lines(power), np.nan, power)
    padded = np.pad(clean, 1, mode="edge")
    window = np.lib.stride_tricks.sliding_window_view(padded, 3)
    counted = np.isfinite(window)
    smooth = np.where(counted, window, 0).sum(1) / np.maximum(counted.sum(1), 1)
    smooth = np.where(counted.any(1), smooth, power)
    return 10 * np.log10(np.maximum(smooth, 1e-3 * floor) / floor)


def gaps(rise: np.ndarray, first: int, stop: int) -> list[tuple[int, int]]:
    """Gaps inside a band, [(first column, behind the last)]: stretches near the floor between two risen sides.

    A channel ends within a column or two, a frequency-selective fade falls over many: a gap has steep sides.
    """
    found = []
    low = rise[first:stop] < np.maximum(GAP_SHARE * np.median(rise[first:stop]), 0.5)
    cuts = np.flatnonzero(np.diff(np.pad(low.astype(int), 1)))
    for start, end in zip(cuts[::2], cuts[1::2], strict=True):
        before, after = rise[max(first, first + start - SIDE) : first + start], rise[first + end : first + end + SIDE]
        after = after[: max(0, stop - first - end)]
        if min(len(before), len(after)) < MIN_COLUMNS or end - start > WIDEST_GAP:
            continue
        bottom, side = rise[first + start : first + end].min(), min(np.median(before), np.median(after))
        steps = before[-2:].max() - rise[first + start], after[:2].max() - rise[first + end - 1]
        steep = min(steps) >= STEEP * (side - bottom)
        if steep and bottom < side - GAP_LEAST_DB and bottom < GAP_SHARE * side:
            found.append((first + int(start), first + int(end)))
    return found


def whole_bands(bands: Sequence[Band], power: np.ndarray, floor: float, channels: Channels) -> list[Band]:
    """The network's bands, touching ones joined where no gap parts them, then cut at gaps between standard channels.

    Sparsely scheduled NR has gaps of its own. So a band is cut only where each piece is as wide as some channel's
    occupied band.
    """
    if not floor > 0:
        return list(bands)
    rise = rise_db(power, floor)
    groups: list[list[Band]] = []
    for band in bands:
        if groups and band[1] - groups[-1][-1][2] <= MAX_GAP and _one_carrier(rise, groups[-1], band, channels):
            groups[-1].append(band)
        else:
            groups.append([band])
    cut: list[Band] = []
    for group in groups:
        columns = {kind: sum(stop - first for k, first, stop in group if k == kind) for kind, _, _ in group}
        cut += _pieces(rise, max(columns, key=columns.get), group[0][1], group[-1][2], channels)
    return cut


def _one_carrier(rise, group, band, channels):
    """Whether a band belongs to the touching ones before it: one level, and no gap where they meet."""
    first, seam, stop = group[0][1], group[-1][2], band[2]
    sides = [np.quantile(rise[part], 0.75) for part in (slice(first, seam), slice(band[1], stop))]
    low, high = max(first + 3, seam - SIDE), min(stop - 3, band[1] + SIDE)  # without the carrier's own edges
    lowest = rise[low:high].min() if low < high else min(sides)
    if abs(sides[0] - sides[1]) >= GAP_LEAST_DB or lowest < min(sides) - max(GAP_LEAST_DB, 0.5 * min(sides)):
        return False
    # Two carriers side by side have guard bands between them, which show where both are strong.
    width = stop - first
    narrow = min(seam - first, stop - band[1]) < 0.25 * width  # a sliver of the other technology
    fits = any(abs(width - whole) <= 0.05 * whole + 1 for _, whole, _ in channels)
    return bool(min(sides) > CLEAR_DB or min(sides) > 1 and (narrow or fits))


def _pieces(rise, kind, first, stop, channels):
    found = gaps(rise, first, stop)
    if not found:
        return [(kind, first, stop)]
    edges = [first, *(edge for gap in found for edge in gap), stop]
    pieces = list(zip(edges[::2], edges[1::2], strict=True))
    last = len(rise)
    for start, end in pieces:
        middle = np.median(rise[start:end])
        inside = np.flatnonzero(rise[start:end] > middle - EDGE_DB)
        width = inside[-1] - inside[0] + 1
        reaches_edge = start <= 1 or end >= last - 1
        if not reaches_edge and not any(abs(width - occupied) <= FITS for _, _, occupied in channels):
            return [(kind, first, stop)]
    return [(kind, start, end) for start, end in pieces]


def narrow_peaks(power: np.ndarray, floor: float) -> int | None:
    """Columns of the widest stretch that rises near a band's peak, power (C,); None where no column is clearly strong.

    A network joins hops, carriers of 200 kHz or a keyed tone and its skirts to one wide band.
    """
    rise = 10 * np.log10(np.maximum(power, 1e-3 * floor) / floor)
    if rise.max() < PEAK_DB:
        return None
    high = rise > max(STRONG_DB, rise.max() - PEAK_RANGE_DB)
    cuts = np.flatnonzero(np.diff(np.pad(high.astype(int), 1)))
    return int((cuts[1::2] - cuts[::2]).max())


def unclaimed(label: np.ndarray, power: np.ndarray, floor: float) -> list[tuple[int, int]]:
    """Strong bands among the columns that a network calls noise: [(first column, behind the last)].

    Args: label int (C,), power (C,), floor of the noise in the same units.
    """
    if not floor > 0:
        return []
    free = label == 0
    for side in (-2, -1, 1, 2):  # a carrier's own edges are no band
        free &= np.roll(label == 0, side)
    padded = np.pad(power, SKIRT, mode="edge")
    nearby = np.lib.stride_tricks.sliding_window_view(padded, 2 * SKIRT + 1).max(1)
    strong = free & (rise_db(power, floor) > STRONG_DB) & (power > nearby * 10 ** (-SKIRT_DB / 10))
    closed = strong.copy()
    for gap in range(1, MAX_GAP + 1):  # grow together over narrow gaps
        closed[gap:-gap] |= strong[: -2 * gap] & strong[2 * gap :]
    cuts = np.flatnonzero(np.diff(np.pad(closed.astype(int), 1)))
    return [(int(a), int(b)) for a, b in zip(cuts[::2], cuts[1::2], strict=True) if b - a >= MIN_COLUMNS]
