"""Faults of a receiver, which were not on the air: found in 40 ms of I/Q, reported, and mended for a picture.

    events = find_events(samples, sample_rate)
    mended = mend(samples, events)                     # `samples` stay as they are
    fill_gaps(mended, events, noise_power, rng)
    print("\n".join(notes([events], sample_rate)))

Dropped samples are runs of one value, as drivers write them: zeros, or the last value repeated. A glitch is one to
three samples far above their surroundings. Samples are saturated if more of them have the frame's extreme value than a
value just below it. A gain step scales everything, the noise floor too; a carrier that starts or stops leaves the floor
beside it as it was. A burst over the whole capture raises everything too, but ends within 3 ms; its power can't tell
whether the receiver or a transmitter made it, so it is only noted. A frame is up to 40 ms of samples. Needs numpy only.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

BLOCK = 256  # samples whose energy and extremes are taken together
LEAST_RUN = 16  # samples of one value in a row; more where the recording often repeats a value by chance
MOST_RUNS = 2000  # in 40 ms; with more runs the signal lies below one step of the converter
GLITCH = 100.0  # 20 dB: power of a glitch over the power around it; OFDM and noise stay below 15 dB
MOST_GLITCHES = 20  # in 40 ms; more are pulses that a transmitter sends
SATURATED = 1e-4  # least share of samples at the extreme value
STEP_SECONDS = 0.5e-3  # resolution of the level over time
LOOKS = 16  # FFTs, evenly spread, in such a step; each is one look at the spectrum
LEAST_DB = 1.5  # smallest gain step, and largest difference between levels that changed together
BURST_DB = 6.0  # smallest burst
LONG_STEPS = 6  # 3 ms; a level that lasts less is a burst, not the receiver's gain
MOST_NOISE_DB = 10.0  # largest gain step where all cells look like noise: more is a carrier that starts or stops
MOST_CHANGES = 4  # in 40 ms; a transmitter switches more often, with TDD for example
MENDED = ("dropped", "glitch", "gain")  # kinds that `mend` changes


@dataclass(frozen=True)
class Event:
    """A fault of the receiver; of a burst it can't be told whether the receiver or a transmitter made it."""

    kind: str  # dropped, glitch, saturated, gain, burst or silent
    start: int  # number of the first sample
    count: int  # samples that it lasts; for saturation, samples at the extreme value
    db: float = 0.0  # level of a gain step or burst against the rest of the frame


def find_events(samples: np.ndarray, sample_rate: float) -> list[Event]:
    """Events in complex64 (count,) samples, kind after kind; numbers count from the first of these samples.

    Saturation is not looked for where there are glitches: the glitches have the extreme values then.
    """
    blocks = samples[: len(samples) // BLOCK * BLOCK].view(np.float32).reshape(-1, 2 * BLOCK)
    if not len(blocks):
        return []
    high, low = blocks.max(1), blocks.min(1)  # (B,)
    energy = np.einsum("bi,bi->b", blocks, blocks)  # (B,)
    same = _repeats(samples)
    if same[1 : len(samples)].all():
        return [Event("silent", 0, len(samples))]
    dropped = _dropped(samples, same, (low.min(), high.max()))
    glitches = _glitches(samples, np.maximum(high, -low), energy)
    whole = np.ones(len(blocks), bool)
    for event in dropped:
        whole[event.start // BLOCK : (event.start + event.count - 1) // BLOCK + 1] = False
    saturated = [] if glitches or not whole.any() else _saturated(blocks, low, high, whole)
    return dropped + glitches + saturated + _level_changes(samples, sample_rate, energy, dropped + glitches)


def mend(samples: np.ndarray, events: Iterable[Event]) -> np.ndarray:
    """A copy, complex64 (count,), without gain steps and glitches.

    All samples get the gain of the longest stretch. A glitch becomes the mean of its two neighbours. Gaps stay: first
    measure the floor on what `without_gaps` leaves, then call `fill_gaps`. `events` count from the first sample here.
    """
    mended = samples.copy()
    for event in events:
        part = slice(event.start, event.start + event.count)
        if event.kind == "gain":
            mended[part] *= np.float32(10 ** (-event.db / 20))
        elif event.kind == "glitch":
            mended[part] = np.r_[mended[max(part.start - 1, 0) : part.start], mended[part.stop : part.stop + 1]].mean()
    return mended


def fill_gaps(samples: np.ndarray, events: Iterable[Event], noise_power: float, rng: np.random.Generator) -> None:
    """Put white noise of this mean power where samples were dropped, in place."""
    for event in events:
        if event.kind == "dropped":
            pairs = rng.standard_normal((event.count, 2), np.float32) * np.float32(np.sqrt(noise_power / 2))
            samples[event.start : event.start + event.count] = pairs.view(np.complex64)[:, 0]


def without_gaps(samples: np.ndarray, events: Iterable[Event]) -> np.ndarray:
    """The samples that were not dropped, put together; the noise floor is measured on them."""
    keep = np.ones(len(samples), bool)
    for event in events:
        if event.kind == "dropped":
            keep[event.start : event.start + event.count] = False
    return samples if keep.all() else samples[keep]


def within(events: Iterable[Event], start: int, count: int) -> list[Event]:
    """Events that begin here; of gaps and silence the part that lies here. So frames that overlap report each once."""
    inside = []
    for event in events:
        if event.kind in ("dropped", "silent"):
            first, stop = max(event.start, start), min(event.start + event.count, start + count)
            event = replace(event, start=first, count=stop - first)
        if event.count > 0 and start <= event.start < start + count:
            inside.append(event)
    return inside


# ---- one kind after the other ---------------------------------------------------------------------------------------


def _repeats(samples):
    """Whether sample i equals the one before it: bool (count rounded up to eight,), False at 0 and at the end."""
    same = np.zeros(-(-len(samples) // 8) * 8, bool)
    bits = samples.view(np.uint64)
    np.equal(bits[1:], bits[:-1], out=same[1 : len(samples)])
    return same


def _dropped(samples, same, extremes):
    """Runs of one value among samples that change."""
    # Every run of LEAST_RUN has eight repeats in a row that begin at a multiple of eight.
    eights = np.flatnonzero(same.view(np.uint64) == 0x0101010101010101)
    runs = _stretches(eights)
    if len(runs) > MOST_RUNS:
        return []
    events, end = [], 0
    for first, last in runs:
        start, stop = 8 * int(first), min(8 * int(last) + 8, len(samples))
        while start > end and same[start - 1]:
            start -= 1
        while stop < len(samples) and same[stop]:
            stop += 1
        start = max(start - 1, end)  # the first of the equal values may be a true sample; it counts as dropped too
        around = np.r_[same[max(start - 64, 1) : start], same[stop + 1 : min(stop + 65, len(samples))]]
        chance = float(around.mean()) if len(around) else 1.0
        if chance < 0.2:
            needed = LEAST_RUN
        else:
            needed = LEAST_RUN * 4 if chance < 0.5 else np.inf
        value = samples[start + 1 : start + 2].view(np.float32)
        clipped = np.isin(value, extremes).all() and stop - start < BLOCK
        if stop - start >= needed and not clipped:
            events.append(Event("dropped", start, stop - start))
            end = stop
    return events


def _stretches(numbers):
    """Ascending integers -> [(first, last)] of those that follow each other."""
    if not len(numbers):
        return []
    cuts = np.flatnonzero(np.diff(numbers) > 1)
    return list(zip(numbers[np.r_[0, cuts + 1]], numbers[np.r_[cuts, len(numbers) - 1]], strict=True))


def _glitches(samples, peak, energy):
    """One to three samples GLITCH above the power around them, which also stand above all other samples."""
    found, blocks = {}, set()
    for block in np.flatnonzero(peak**2 > 0.1 * energy):
        first = max(block * BLOCK - BLOCK // 2, 0)
        power = np.abs(samples[first : (block + 1) * BLOCK + BLOCK // 2]) ** 2
        usual = np.median(power) / np.log(2)  # exponentially distributed: median to mean
        runs = _stretches(np.flatnonzero(power > GLITCH * usual))
        if 0 < len(runs) <= 4 and all(last - start < 3 for start, last in runs):
            for start, last in runs:
                found[first + start] = last + 1 - start, power[start : last + 1].max()
                blocks |= {(first + start) // BLOCK, (first + last) // BLOCK}
    others = np.delete(peak, [block for block in blocks if block < len(peak)])
    usual_peak = 2 * others.max() ** 2 if len(others) else 0.0  # of both parts of a sample
    found = {start: count for start, (count, power) in found.items() if power > 2 * usual_peak}
    return [Event("glitch", int(i), int(n)) for i, n in sorted(found.items())] if len(found) <= MOST_GLITCHES else []


def _saturated(blocks, low, high, whole):
    """Values at the extreme, if they are more than twice as many as those up to 3% (or one step) below it.

    whole: bool (B,), blocks without dropped samples, which may have the extreme value too.
    """
    if not whole.all():
        blocks, low, high = blocks[whole], low[whole], high[whole]
    some = blocks[:: max(1, len(blocks) // 1000)]
    extremes, at, below = [], 0, 0
    for extreme, of_block, sign in ((high.max(), high, 1), (low.min(), low, -1)):
        touching = of_block == extreme
        if sign * extreme <= 0 or touching.sum() < 8:
            continue
        size = sign * blocks[touching][:64]
        full = sign * extreme
        next_value = size[size < full].max(initial=-full)  # one step lower, of a coarse converter
        near = min(next_value, full * np.float32(31 / 32))
        extremes.append(extreme)
        at += int((some == extreme).sum())
        below += int((sign * some >= near).sum()) - int((some == extreme).sum())
    if not extremes or at <= 2 * below:
        return []
    parts = blocks[(high == extremes[0]) | (low == extremes[-1])].reshape(-1, 2)  # I and Q
    count = int(np.isin(parts, extremes).any(1).sum())
    return [Event("saturated", 0, count)] if count > SATURATED * blocks.size / 2 else []


def _level_changes(samples, sample_rate, energy, spoilt):
    """Gain steps and bursts over the whole capture; the time of `spoilt`, gaps and glitches, is left out."""
    # Is there any change of level?
    step = int(STEP_SECONDS * sample_rate)
    per_step = max(1, round(step / BLOCK))
    power = energy[: len(energy) // per_step * per_step].reshape(-1, per_step).mean(1)
    power = power[power > 0]
    if len(samples) < 2 * LONG_STEPS * step or power.max() < power.min() * 10 ** (LEAST_DB / 10):
        return []

    # The level that all columns share, in time steps
    looks = _looks(samples, sample_rate, step)
    for event in spoilt:
        looks[event.start // step : (event.start + event.count - 1) // step + 1] = np.nan
    common, agreed = _common_change(looks)
    levels = _levels(common)
    if not levels:
        return []

    # Where it changes for long, and where for a short time
    steps = [(a, b) for a, b in zip(levels, levels[1:], strict=False) if abs(a[2] - b[2]) >= LEAST_DB]
    bursts = _bursts(levels, np.where(agreed, common, -np.inf))
    if len(steps) + len(bursts) > MOST_CHANGES:
        return []
    cuts = [_change(samples, (a[1] - 1) * step, (b[0] + 1) * step) for a, b in steps]
    bursts = [_burst_event(samples, energy, step, burst) for burst in bursts]
    return _gains(looks, cuts, step, len(samples)) + [burst for burst in bursts if burst.db >= BURST_DB]


def _looks(samples, sample_rate, step):
    """Power at LOOKS instants of each time step, columns some 240 kHz wide: float32 (steps, LOOKS, columns)."""
    width = int(np.clip(2 ** round(np.log2(sample_rate / 240e3)), 32, 256))
    first = np.linspace(0, step - width, LOOKS).astype(int)
    index = np.arange(len(samples) // step)[:, None, None] * step + first[:, None] + np.arange(width)
    spectrum = np.fft.fft(samples[index] * np.hanning(width + 1)[:-1].astype(np.float32))
    return spectrum.real**2 + spectrum.imag**2


def _common_change(looks):
    """How many dB all columns together lie above their means over time, and whether they agree: (steps,) each.

    The quietest columns lie between carriers. A gain step changes them, a carrier that starts or stops does not. So
    only they count where the others do not agree with them.
    """
    power = looks.mean(1)  # (steps, columns)
    usual = power[np.isfinite(power[:, 0])].sum(0) / len(power)
    power, usual = power[:, usual > 0], usual[usual > 0]
    if len(usual) < 8:
        return np.zeros(len(power)), np.zeros(len(power), bool)
    order = np.argsort(usual)
    quiet = order[order > 1][: max(4, len(usual) // 25)]  # columns 0 and 1 have the receiver's DC offset
    middle = np.median(10 * np.log10(np.maximum(power, 1e-9 * usual) / usual), 1)
    floor = 10 * np.log10(np.maximum(power[:, quiet].sum(1) / usual[quiet].sum(), 1e-9))
    agreed = np.abs(middle - floor) < LEAST_DB
    common = np.where(agreed, middle, floor)
    for i in np.flatnonzero(np.isnan(common)):  # dropped samples
        common[i] = common[i - 1] if i else 0
    return common, agreed


def _levels(common):
    """Stretches of one level that last LONG_STEPS or more: [(first step, behind the last, dB)], ascending."""
    runs = [[0, 1, common[0]]]
    for i, level in enumerate(common[1:], 1):
        first, stop, mean = runs[-1]
        if abs(level - mean) < LEAST_DB:
            runs[-1] = [first, i + 1, mean + (level - mean) / (i + 1 - first)]
        else:
            runs.append([i, i + 1, level])
    return [tuple(run) for run in runs if run[1] - run[0] >= LONG_STEPS]


def _bursts(levels, common):
    """Time steps that rise above the level before and after them: [(first step, behind the last)]."""
    bursts = []
    for (_, first, before), (stop, _, after) in zip(levels, levels[1:], strict=False):
        if abs(before - after) < LEAST_DB and stop > first and common[first:stop].max() > before + BURST_DB:
            bursts.append((first, stop))
    return bursts


def _gains(looks, cuts, step, count):
    """Gain events: stretches between sample numbers `cuts` whose spectrum is the longest stretch's times a factor.

    The quiet quarter of the columns gives the factor. The low quantiles of all cells of time and frequency must have
    moved by the same factor. More traffic moves them differently, since it takes cells away from the noise.
    """
    if not cuts:
        return []

    # Stretches, the longest first, with their spectra
    edges = [0, *cuts, count]
    stretches = list(zip(edges, edges[1:], strict=False))
    stretches.sort(key=lambda stretch: stretch[0] - stretch[1])
    quiet = np.argsort(np.nanmean(looks, (0, 1)))[: looks.shape[2] // 4]
    levels, quantiles = [], []
    for first, stop in stretches:
        cells = looks[-(-first // step) : stop // step]
        cells = np.maximum(cells[np.isfinite(cells[:, 0, 0])], 1e-30)  # (steps, LOOKS, columns)
        if not len(cells):
            return []
        levels.append(10 * np.log10(cells[..., quiet].mean((0, 1))))
        quantiles.append(10 * np.log10(np.percentile(cells, (5, 15, 30, 95))))

    # Compare each with the longest
    events = []
    for (first, stop), level, found in zip(stretches, levels, quantiles, strict=True):
        db = float(np.median(level - levels[0]))
        moved = (found - quantiles[0])[:3]
        like_noise = min(np.ptp(found), np.ptp(quantiles[0])) < 19  # dB; 17.7 if exponentially distributed
        most = MOST_NOISE_DB if like_noise else np.inf
        if LEAST_DB <= abs(db) <= most and np.abs(moved - db).max() < LEAST_DB:
            events.append(Event("gain", first, stop - first, db))
    return sorted(events, key=lambda event: event.start)


def _burst_event(samples, energy, step, burst):
    """A burst that begins and ends to the sample; burst: (first time step, behind the last)."""
    first, stop = burst[0] * step, min(burst[1] * step, len(samples))
    blocks = slice(first // BLOCK, max(first // BLOCK + 1, stop // BLOCK))
    top = (blocks.start + int(energy[blocks].argmax())) * BLOCK
    begin = _change(samples, max(first - step, 0), top + BLOCK)
    end = _change(samples, top, min(stop + step, len(samples)))
    inside = np.mean(np.abs(samples[begin:end]) ** 2) * BLOCK
    return Event("burst", begin, max(1, end - begin), float(10 * np.log10(inside / np.median(energy))))


def _change(samples, first, stop):
    """The sample from `first` to `stop` at which the power most likely changes, if it is exponentially distributed."""
    total = np.cumsum(np.abs(samples[first:stop]).astype(np.float64) ** 2)
    n = np.arange(1, len(total))
    before, after = total[:-1] / n, (total[-1] - total[:-1]) / (len(total) - n)
    cost = n * np.log(np.maximum(before, 1e-30)) + (len(total) - n) * np.log(np.maximum(after, 1e-30))
    return first + 1 + int(cost.argmin())


# ---- what people read -----------------------------------------------------------------------------------------------

TEXTS = {  # kind: name, what was done
    "dropped": ("dropped samples", "one value repeated; filled with noise for the picture"),
    "glitch": ("glitches", "replaced by the neighbours' mean for the picture"),
    "saturated": ("saturation", "at the extreme value; what looks like weak carriers may be its distortion"),
    "gain": ("gain steps", "the whole spectrum, floor included; levelled for the picture"),
    "burst": ("bursts over the whole capture", "of the receiver or of a transmitter; left as they are"),
    "silent": ("silence", "nothing but one value"),
}


def notes(frames: Iterable[Iterable[Event]], sample_rate: float, offset: int = 0) -> list[str]:
    """One line a kind: how many samples, when and in how many frames, and what was done for the picture.

    Args:
        frames: events of each frame, numbered as the recording's samples are, each in one frame (see `within`).
        sample_rate: Hz.
        offset: number of the recording's first sample, from which times count.
    """
    frames = [list(events) for events in frames]
    lines = []
    for kind, (name, done) in TEXTS.items():
        events = [event for of_frame in frames for event in of_frame if event.kind == kind]
        if not events:
            continue
        number = sum(any(event.kind == kind for event in of_frame) for of_frame in frames)
        count = sum(event.count for event in events)
        what = "" if kind in ("gain", "burst") else f"{count:,} sample{'s' * (count > 1)}"
        if kind not in ("saturated", "silent"):
            what += " at " * bool(what) + ", ".join(_when(event, sample_rate, offset) for event in events[:3])
            what += f" and {len(events) - 3} more" * (len(events) > 3)
        lines.append(f"{name}: {what} in {number} frame{'s' * (number > 1)} ({done})")
    return lines


def _when(event, sample_rate, offset):
    first, last = (1e3 * (n - offset) / sample_rate for n in (event.start, event.start + event.count))
    if event.kind == "gain":
        return f"{event.db:+.1f} dB from {first:.2f} to {last:.2f} ms"
    if event.kind == "burst":
        return f"{event.db:+.1f} dB at {first:.2f} ms for {last - first:.2f} ms"
    return f"{first:.2f} ms"
