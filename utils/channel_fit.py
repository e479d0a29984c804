"""What a carrier's exact width tells: its technology and its channel's edges, where a network is unsure of both.

    labels = fit_channels(logits, levels, channels)          # one frame: (classes, H, W), (H, W) -> int64 (H, W)
    predict = predictor(logits_of, levels_of, channels)      # the same for batches of pictures

A 20 MHz channel holds 18.015 MHz of LTE, 18.36 MHz of NR at 30 kHz, 19.08 MHz at 15 kHz (TS 36.104 table 5.6-1, TS
38.104 table 5.3.2-1). Under full load little else tells them apart, and a network that looks at cells of 16 columns
does not measure tenths of a column. So: time averages of power give the two half-power points of each band that the
network found, and Bayes' rule weighs how well each standard channel fits the distance between them against what the
network says of technology and width. A band that fits is drawn as wide as that channel; one that fits none, of a
sparsely scheduled carrier or of several side by side, stays as the network has it.
Needs torch and numpy, and find_bands of utils/carriers.py.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch

from utils.carriers import find_bands

# In columns of 240 kHz, and dB; chosen on 1,440 generated field frames that the network had not been trained on, and on
# NR by other people's code. BIAS and SPREADs are of 2,100 isolated carriers, by maximum likelihood.
BIAS = -0.1  # of the distance between half-power points against the occupied bandwidth: fading takes from the edges
SPREAD = 0.47  # its standard deviation where the carrier stands far above the noise
SPREAD_TIMES_RISE = 1.0  # and what is added to it, times the rise in dB, where it does not
ANYTHING = 0.1, 0.03  # share of bands whose distance says nothing, and the density over columns they have then
WIDTH_SPREAD = 2.0, 0.03  # of the network's own width: columns, and share of the channel's
TRUST = 1.2  # factor of the network's log odds between technologies
LEAST_RISE_DB = 1.0  # a weaker carrier has no edges to be measured
SINGLE_LOOK_DB = 5.57  # standard deviation of one look at Gaussian noise's power in dB

Channels = Sequence[tuple[int, float, float]]  # class, width, occupied width; both in columns
Band = tuple[int, int, int]  # class, first column, behind the last


def predictor(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    levels_of: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
    channels: Channels,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pictures (B, 3, H, W) -> class numbers int64 (B, H, W) on the CPU.

    Args:
        logits_of: pictures -> float (B, classes, H, W).
        levels_of: pictures -> levels (B, H, W), palette; without palette (unknown colours) nothing is fitted.
        channels: see fit_channels.
    """

    def predict(images: torch.Tensor) -> torch.Tensor:
        labels = []
        for frame, image in zip(logits_of(images), images, strict=True):
            levels, palette = levels_of(image[None])  # each on its own, so that neighbours do not decide
            labels.append(frame.argmax(0).cpu() if palette is None else fit_channels(frame, levels[0], channels))
        return torch.stack(labels)

    return predict


def fit_channels(logits: torch.Tensor, levels: torch.Tensor, channels: Channels) -> torch.Tensor:
    """Class numbers int64 (H, W) of one frame, on the CPU.

    Args:
        logits: float (classes, H, W) of a segmentation network; class 0 is noise, their argmax is the starting point.
        levels: (H, W), colour numbers of the picture, in equal steps of dB of any size.
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
        power: float (W,), each column's mean power over time. A band that reaches their end has an edge beyond it.
    """
    found = []
    for kind, start, end in bands:
        measured = _half_power(power, start, end) if 2 <= start and end <= len(power) - 2 else None
        odds = belief[:, start:end].mean(1)  # (classes,)
        channel = None
        if measured:
            widest = max(occupied for k, _, occupied in channels if k == kind)
            # Too wide for one channel of this technology: another's, or several side by side.
            if measured[1] - measured[0] <= 1.1 * widest or not _parted(power, *measured):
                channel = _channel(kind, end - start, *measured, odds, channels)
        if not channel:
            found.append((kind, None))
            continue
        kind, width, fits = channel
        middle = (measured[0] + measured[1]) / 2
        found.append((kind, (middle - width / 2, middle + width / 2) if fits else None))
    return found


def column_power(levels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Levels (H, W) in unknown steps of dB -> each column's mean power over time, (W,); noise: bool (W,), which are.

    A level's size follows from noise: one look at it scatters by 5.57 dB. Where the picture's floor hides the noise,
    the steadiest carriers, Gaussian as well, take its place.
    """
    spread = levels.std(0)
    step = np.median(spread[noise]) if noise.any() else 0.0
    if step < 3 and not noise.all():
        step = np.quantile(spread[~noise], 0.2)
    db = np.clip(SINGLE_LOOK_DB / max(step, 1.0), 0.1, 1.0)  # a level
    return (10 ** (db * levels / 10)).mean(0)


def _half_power(power: np.ndarray, start: int, end: int) -> tuple[float, float, float] | None:
    """Half-power points of the band from column `start` to before `end`, and the smaller rise in dB; None without."""
    n, middle = len(power), (start + end) // 2
    low, high = _rising_edge(power, start, middle), _rising_edge(power[::-1], n - end, n - middle)
    if low is None or high is None or min(low[1], high[1]) < LEAST_RISE_DB:
        return None
    return low[0], n - high[0], min(low[1], high[1])


def _rising_edge(power: np.ndarray, start: int, middle: int) -> tuple[float, float] | None:
    """Where power, going up in frequency, has risen half of the way from the dip near `start`; and by how many dB."""
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
    """Whether power falls by a tenth of its rise in dB, a dB at least, between the half-power points: a guard band?"""
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

    Technologies are equally likely beforehand, and so are the subcarrier spacings of one channel width.
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
