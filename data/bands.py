"""Bands in a frame's labels: found in columns, cut at gaps, fitted with the channels of the standards.

    bands = find_bands(label)                                # label: int (C,), a class for each column of a spectrogram
    bands = whole_bands(bands, power, floor, channels)       # power: float (C,), each column's mean over time
    more = unclaimed(label, power, floor)                    # strong bands that the network calls noise
    labels = fit_channels(logits, levels, channels)          # one frame: (classes, H, W), (H, W) -> int64 (H, W)
    predict = predictor(logits_of, levels_of, channels)      # the same for batches of pictures

A band is a run of columns of one class. The network makes two kinds of mistakes: it calls four LTE carriers side by
side one NR carrier, although the gaps between them are visible; and it calls one part of a carrier LTE and the other
part NR. So bands are joined and cut first.

Then channels are fitted. A 20 MHz channel holds 18.015 MHz of LTE, 18.36 MHz of NR at 30 kHz, or 19.08 MHz of NR at
15 kHz (TS 36.104 table 5.6-1, TS 38.104 table 5.3.2-1). Under full load this width is nearly all that tells them apart.
The network's last features are 16 columns apart and can't measure tenths of a column; the mean power over time can. It
gives the two half-power points of each band. Bayes' rule combines two things: how well each standard channel fits the
distance between these points, and what the network says of technology and width. A band that fits a channel gets the
channel's width. A band that fits none stays as the network has it: its carrier is sparsely scheduled, or it holds
several carriers. Needs torch and numpy.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch

MIN_COLUMNS = 4  # of 240 kHz: .96 MHz, the narrowest LTE channel has 1.4 MHz
MAX_GAP = 2  # columns of noise inside one carrier; a wider gap parts two carriers
GAP_SHARE = 0.4  # a gap keeps at most this share of its sides' rise over the floor in dB
GAP_LEAST_DB = 3.0  # and lies at least so far below both sides
CLEAR_DB = 6.0  # above this rise a guard band is always visible
STEEP = 0.45  # share of a gap's depth by which power falls within two columns at its sides; a fade falls slowly
SIDE = 10  # columns on each side of a gap from which the side's level is taken
WIDEST_GAP = 25  # columns, 6 MHz: the guard bands of two channels of 100 MHz
EDGE_DB = 4.0  # a piece ends where it falls so far below its middle; smoothed, the first column outside lies 4.8 below
FITS = 1.6  # columns of 240 kHz by which a piece's width may differ from a standard channel's occupied width
STRONG_DB = 5.0  # mean over time over the floor; weaker columns prove nothing
SKIRT, SKIRT_DB = 20, 25.0  # within so many columns of a column that is so much stronger, power is its leakage
PEAK_DB, PEAK_RANGE_DB = 15.0, 20.0  # level of a clearly strong column, and how far below it the same emission may fade
LINE_DB = 6.0  # a column that rises so far above its neighbours is a line: DC, a spur, a tone

Channels = Sequence[tuple[int, float, float]]  # class, width, occupied width; both in columns
Band = tuple[int, int, int]  # class, first column, column behind the last


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
    low = rise[first:stop] < np.maximum(GAP_SHARE * np.median(rise[first:stop]), 0.5)  # dB
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
    """The network's bands, joined where they touch without a gap, then cut at gaps between standard channels.

    Sparsely scheduled NR has gaps inside one carrier. So a band is cut only if each piece is as wide as the occupied
    band of some channel.
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
    """Whether a band belongs to the touching bands before it: they have one level, and no gap where they meet."""
    first, seam, stop = group[0][1], group[-1][2], band[2]
    sides = [np.quantile(rise[part], 0.75) for part in (slice(first, seam), slice(band[1], stop))]
    low, high = max(first + 3, seam - SIDE), min(stop - 3, band[1] + SIDE)  # without the carrier's own edges
    lowest = rise[low:high].min() if low < high else min(sides)
    if abs(sides[0] - sides[1]) >= GAP_LEAST_DB or lowest < min(sides) - max(GAP_LEAST_DB, 0.5 * min(sides)):
        return False
    # Two carriers side by side have guard bands between them. These are visible if both carriers are strong.
    width = stop - first
    narrow = min(seam - first, stop - band[1]) < 0.25 * width  # a sliver of the other technology
    fits = any(abs(width - whole) <= 0.05 * whole + 1 for _, whole, _ in channels)
    return bool(min(sides) > CLEAR_DB or min(sides) > 1 and (narrow or fits))


def _pieces(rise, kind, first, stop, channels):
    """A band cut at its gaps; uncut if a piece that the capture's edge does not cut is no standard channel's width."""
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


def widest_peak(power: np.ndarray, floor: float) -> int | None:
    """Columns of the widest stretch nearly as strong as a band's peak, power (C,); None if no column is clearly strong.

    The network joins frequency hops, carriers of 200 kHz, or a keyed tone and its skirts to one wide band.
    """
    rise = 10 * np.log10(np.maximum(power, 1e-3 * floor) / floor)
    if rise.max() < PEAK_DB:
        return None
    high = rise > max(STRONG_DB, rise.max() - PEAK_RANGE_DB)
    cuts = np.flatnonzero(np.diff(np.pad(high.astype(int), 1)))
    return int((cuts[1::2] - cuts[::2]).max())


def unclaimed(label: np.ndarray, power: np.ndarray, floor: float) -> list[tuple[int, int]]:
    """Strong bands among the columns that the network calls noise: [(first column, behind the last)].

    Args: label int (C,), power (C,), floor of the noise in the same units.
    """
    if not floor > 0:
        return []
    free = label == 0
    for side in (-2, -1, 1, 2):  # the edges of a carrier are no band of their own
        free &= np.roll(label == 0, side)
    padded = np.pad(power, SKIRT, mode="edge")
    nearby = np.lib.stride_tricks.sliding_window_view(padded, 2 * SKIRT + 1).max(1)
    strong = free & (rise_db(power, floor) > STRONG_DB) & (power > nearby * 10 ** (-SKIRT_DB / 10))
    closed = strong.copy()
    for gap in range(1, MAX_GAP + 1):  # grow together over narrow gaps
        closed[gap:-gap] |= strong[: -2 * gap] & strong[2 * gap :]
    cuts = np.flatnonzero(np.diff(np.pad(closed.astype(int), 1)))
    return [(int(a), int(b)) for a, b in zip(cuts[::2], cuts[1::2], strict=True) if b - a >= MIN_COLUMNS]


def find_bands(label: np.ndarray) -> list[tuple[int, int, int]]:
    """Classes of columns, int (C,) -> [(class, first column, behind the last)] of the carriers, ascending.

    Runs of one technology are joined over gaps of up to MAX_GAP columns of noise, and over slivers of the other
    technology. A band that is then narrower than MIN_COLUMNS joins a wider band that it touches, or is dropped.
    """
    cuts = [0, *(np.flatnonzero(np.diff(label)) + 1).tolist(), len(label)]
    bands = []
    for first, stop in zip(cuts, cuts[1:], strict=False):
        kind = int(label[first])
        if kind == 0:
            continue
        before = next((i for i in reversed(range(len(bands))) if bands[i][0] == kind), None)
        if before is not None:
            gap = slice(bands[before][2], first)
            allowed = MIN_COLUMNS - 1 if label[gap].any() else MAX_GAP
            if gap.stop - gap.start <= min(allowed, bands[before][2] - bands[before][1] + stop - first):
                bands[before:] = [(kind, bands[before][1], stop)]
                continue
        bands.append((kind, first, stop))
    wide = [list(band) for band in bands if band[2] - band[1] >= MIN_COLUMNS]
    for _, first, stop in (band for band in bands if band[2] - band[1] < MIN_COLUMNS):
        for band in wide:
            if band[2] == first:
                band[2] = stop
                break
            if band[1] == stop:
                band[1] = first
                break
    return [tuple(band) for band in wide]


# ---- standard channels ----------------------------------------------------------------------------------------------

# In columns of 240 kHz and in dB. The values were chosen on 1,440 generated field frames that the network had not been
# trained on, and on NR signals from another library. BIAS and both SPREADs were fitted to 2,100 isolated carriers by
# maximum likelihood.
BIAS = -0.1  # of the distance between half-power points against the occupied bandwidth: fading narrows it
SPREAD = 0.47  # its standard deviation for a carrier far above the noise
SPREAD_TIMES_RISE = 1.0  # divided by the rise in dB it is the part of the standard deviation that noise adds
ANYTHING = 0.1, 0.03  # share of bands with a distance of no channel, and the probability of each column of it there
WIDTH_SPREAD = 2.0, 0.03  # standard deviation of the network's own width: columns, and share of the channel's width
TRUST = 1.2  # factor of the network's log odds between technologies
LEAST_RISE_DB = 1.0  # the edges of a weaker carrier can't be measured
CLEAR_RISE_DB = 10.0  # at the picture's edge: what rises by less may be a carrier that goes on, and a filter's slope
SINGLE_LOOK_DB = 5.57  # standard deviation of the power of Gaussian noise, measured once, in dB


def predictor(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    levels_of: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
    channels: Channels,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pictures (B, 3, H, W) -> class numbers int64 (B, H, W) on the CPU.

    Args:
        logits_of: pictures -> float (B, classes, H, W).
        levels_of: pictures -> levels (B, H, W), colormap; None for unknown colours, where nothing is fitted.
        channels: see fit_channels.
    """

    def predict(images: torch.Tensor) -> torch.Tensor:
        labels = []
        for frame, image in zip(logits_of(images), images, strict=True):
            levels, colormap = levels_of(image[None])  # frame by frame: the rest of the batch has no influence
            if colormap is None:
                labels.append(frame.argmax(0).cpu())
            else:
                labels.append(fit_channels(frame, levels[0], channels))
        return torch.stack(labels)

    return predict


def fit_channels(logits: torch.Tensor, levels: torch.Tensor, channels: Channels) -> torch.Tensor:
    """Class numbers int64 (H, W) of one frame, on the CPU.

    Args:
        logits: float (classes, H, W) of a segmentation network; class 0 is noise. Their argmax is the starting point.
        levels: (H, W), colormap indices of the picture: equal steps in dB, of any size.
        channels: (class, width, occupied width) of the standard channels, both in columns.
    """
    logits = logits.float().cpu()
    labels = logits.argmax(0)
    belief = logits.log_softmax(0).mean(1).numpy()  # (classes, W)
    bands = find_bands(belief.argmax(0))
    power = column_power(levels.cpu().numpy().astype(float), belief.argmax(0) == 0)
    for i, (kind, edges) in enumerate(fit_bands(bands, belief, power, channels)):
        _, start, end = bands[i]
        band = labels[:, start:end]
        band[band != 0] = kind
        if edges:
            below = bands[i - 1][2] if i else 0
            above = bands[i + 1][1] if i + 1 < len(bands) else len(power)
            low, high = int(np.floor(edges[0])), int(np.floor(edges[1])) + 1
            labels[:, max(min(low, start), below) : min(max(high, end), above)] = 0
            labels[:, max(low, below) : min(high, above)] = kind
    return labels


def fit_bands(
    bands: Sequence[Band], belief: np.ndarray, power: np.ndarray, channels: Channels
) -> list[tuple[int, tuple[float, float] | None]]:
    """For each band its class, and the lower and upper edge of the channel that fits it, in columns, or None.

    Args:
        bands: (class, first column, behind the last), ascending, as find_bands gives them.
        belief: float (classes, W), log probabilities of each column.
        power: float (W,), each column's mean power over time. A band that reaches the first or last column goes on
            outside the picture, unless its power rises clearly inside and a whole channel fits there.
    """
    found = []
    for kind, start, end in bands:
        measured = _half_power(power, start, end)
        at_edge = start < 2 or end > len(power) - 2
        if measured and at_edge and measured[2] < CLEAR_RISE_DB:
            measured = None
        mean_belief = belief[:, start:end].mean(1)  # (classes,)
        channel = None
        if measured:
            widest = max(occupied for k, _, occupied in channels if k == kind)
            # A band too wide for one channel of its technology is the other technology's, or holds several carriers.
            if measured[1] - measured[0] <= 1.1 * widest or not _parted(power, *measured):
                channel = _channel(kind, end - start, *measured, mean_belief, channels)
        if not channel:
            found.append((kind, None))
            continue
        fitted, width, fits = channel
        middle = (measured[0] + measured[1]) / 2
        edges = middle - width / 2, middle + width / 2
        if at_edge and not (fits and 0 <= edges[0] and edges[1] <= len(power)):
            found.append((kind, None))  # it goes on outside, and what was measured is a filter's edge
        else:
            found.append((fitted, edges if fits else None))
    return found


def column_power(levels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Levels (H, W) in unknown steps of dB -> each column's mean power over time, (W,); noise: bool (W,), its columns.

    Noise tells the size of a step: its power in dB has a standard deviation of 5.57 dB. Where the picture's lowest
    level hides the noise, the steadiest carriers take its place, for they are Gaussian as well.
    """
    spread = levels.std(0)  # in steps
    steps = np.median(spread[noise]) if noise.any() else 0.0
    if steps < 3 and not noise.all():  # the lowest level hides the noise
        steps = np.quantile(spread[~noise], 0.2)
    db_of_step = np.clip(SINGLE_LOOK_DB / max(steps, 1.0), 0.1, 1.0)
    return (10 ** (db_of_step * levels / 10)).mean(0)


def _half_power(power: np.ndarray, start: int, end: int) -> tuple[float, float, float] | None:
    """(Lower, upper half-power point in columns; the smaller rise of both edges in dB) of a band, or None."""
    n, middle = len(power), (start + end) // 2
    low, high = _rising_edge(power, start, middle), _rising_edge(power[::-1], n - end, n - middle)
    if low is None or high is None or min(low[1], high[1]) < LEAST_RISE_DB:
        return None
    return low[0], n - high[0], min(low[1], high[1])


def _rising_edge(power: np.ndarray, start: int, middle: int) -> tuple[float, float] | None:
    """(Place in columns where power has risen half of the way up from the dip near `start`, whole rise in dB), or None.

    A column's centre is at its number + .5. The dip is sought within 5 columns of `start`, the plateau 3 to 13 columns
    inside the band.
    """
    outside = np.arange(max(start - 5, 0), min(start + 5, middle))
    inside = power[start + 3 : min(start + 13, middle)]
    if len(outside) < 3 or len(inside) < 2:
        return None
    smooth = np.convolve(np.pad(power, 1, mode="edge"), np.ones(3) / 3, "valid")
    dip = outside[smooth[outside].argmin()]
    floor, plateau = smooth[dip], np.median(inside)
    if not 0 < floor < plateau:
        return None
    rise = 10 * np.log10(plateau / floor)
    db, half = 10 * np.log10(np.maximum(power, floor / 10)), 10 * np.log10((floor + plateau) / 2)
    for i in range(dip, min(dip + 16, middle - 1)):
        if db[i] < half <= db[i + 1] and db[i + 2] > half - min(1, rise / 4):  # a single column may be a spur
            return i + 0.5 + (half - db[i]) / (db[i + 1] - db[i]), rise
    return None


def _parted(power: np.ndarray, low: float, high: float, rise: float) -> bool:
    """Whether power dips between the half-power points, as at a guard band: by a tenth of the rise, 1 dB at least."""
    inside = power[int(np.ceil(low)) + 1 : int(high) - 1]
    smooth = np.convolve(inside, np.ones(3) / 3, "valid")
    return bool(smooth.min() < np.median(inside) * 10 ** (-max(1, rise / 10) / 10))


def _channel(
    kind: int,
    columns: int,
    low: float,
    high: float,
    rise: float,
    belief: np.ndarray,
    channels: Channels,
) -> tuple[int, float, bool] | None:
    """(class, channel width in columns, whether that channel fits) of a band; None if no channel is nearly as wide.

    The prior: technologies are equally likely, and so are the subcarrier spacings of one channel width.
    """
    spacings = Counter((k, width) for k, width, _ in channels)
    spread = np.hypot(SPREAD, SPREAD_TIMES_RISE / rise)
    share, density = ANYTHING
    total, best = Counter(), {}
    for k, width, occupied in channels:
        z = (high - low - occupied - BIAS) / spread
        measured = (1 - share) * np.exp(-0.5 * z**2) / (spread * np.sqrt(2 * np.pi))
        seen = np.exp(-0.5 * ((columns - width) / (WIDTH_SPREAD[0] + WIDTH_SPREAD[1] * width)) ** 2)
        prior = seen * np.exp(TRUST * (belief[k] - belief[kind])) / spacings[k, width]
        posterior = (measured + share * density) * prior
        total[k] += posterior
        if posterior > best.get(k, (0,))[0]:
            best[k] = posterior, width, bool(measured > share * density)
    winner = max(total, key=total.get)
    return (winner, *best[winner][1:]) if winner in best else None
