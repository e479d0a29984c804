"""Carriers out of labelled columns: runs of one class in a frame, the same carrier over many frames, the table.

    bands = find_bands(label)                   # label: int (C,), a class for each column of a spectrogram
    merge(carriers, of_this_frame)              # Carrier objects, frame by frame; memory does not grow with time
    print(table(carriers))

Needs numpy only.
"""

from dataclasses import dataclass, field

import numpy as np

MIN_COLUMNS = 4  # of 240 kHz: .96 MHz, the narrowest LTE channel has 1.4 MHz
MAX_GAP = 2  # columns of noise inside one carrier; a wider gap parts two carriers
SAME_HZ = 0.5e6  # edges that differ by no more from frame to frame are one carrier's


@dataclass
class Carrier:
    """A row of the table, of one frame or merged over many. Frequencies in Hz, absolute or from the centre."""

    technology: str
    lower_hz: float
    upper_hz: float
    absolute: bool
    active: float | None
    confidence: float
    cut_below: bool = False  # reaches the capture's edge: the true edge lies beyond
    cut_above: bool = False
    weight: int = 1  # samples
    runs: list = field(default_factory=list)  # [first sample, samples] of each unbroken appearance

    def plain(self) -> dict:
        """For result.json, in Hz and shares of 1."""
        return {
            "technology": self.technology,
            "lower_hz": self.lower_hz,
            "upper_hz": self.upper_hz,
            "center_hz": (self.lower_hz + self.upper_hz) / 2,
            "bandwidth_hz": self.upper_hz - self.lower_hz,
            "absolute": self.absolute,
            "active": self.active,
            "confidence": self.confidence,
            "reaches_lower_edge": self.cut_below,
            "reaches_upper_edge": self.cut_above,
            "samples": self.weight,
            "runs": [{"sample_start": start, "sample_count": count} for start, count in self.runs],
        }


def find_bands(label: np.ndarray) -> list[tuple[int, int, int]]:
    """Classes of columns, int (C,) -> [(class, first column, behind the last)] of the carriers, ascending.

    Runs of one technology grow together over gaps of up to MAX_GAP columns of noise, and over slivers of the other
    technology. What is then narrower than MIN_COLUMNS joins a wider neighbour that it touches, or is dropped.
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


def merge(carriers: list[Carrier], found: list[Carrier]) -> None:
    """Add a frame's carriers to those of the frames before it, in place; values are means weighted by time."""
    free = list(range(len(carriers)))
    for new in found:
        distance = {
            i: max(abs(carriers[i].lower_hz - new.lower_hz), abs(carriers[i].upper_hz - new.upper_hz))
            for i in free
            if (carriers[i].technology, carriers[i].absolute) == (new.technology, new.absolute)
        }
        best = min(distance, key=distance.get, default=None)
        if best is None or distance[best] > SAME_HZ:
            carriers.append(new)
            continue
        free.remove(best)
        old = carriers[best]
        total = old.weight + new.weight
        for name in ("lower_hz", "upper_hz", "active", "confidence"):
            a, b = getattr(old, name), getattr(new, name)
            setattr(old, name, None if a is None or b is None else (old.weight * a + new.weight * b) / total)
        old.weight = total
        old.cut_below, old.cut_above = old.cut_below or new.cut_below, old.cut_above or new.cut_above
        if sum(old.runs[-1]) == new.runs[0][0]:
            old.runs[-1][1] += new.runs[0][1]
        else:
            old.runs += new.runs


def table(carriers: list[Carrier]) -> str:
    """Lines for people."""
    if not carriers:
        return "no LTE or NR carrier found"
    lines = [f"{'':4}  {'lower MHz':>12}  {'upper MHz':>12}  {'centre MHz':>12}  {'width MHz':>9}  active  confidence"]
    for c in carriers:
        lower, upper, cut = c.lower_hz / 1e6, c.upper_hz / 1e6, c.cut_below or c.cut_above
        line = f"{c.technology:4}  {'<=' * c.cut_below + f'{lower:.2f}':>12}  {'>=' * c.cut_above + f'{upper:.2f}':>12}"
        line += f"  {(lower + upper) / 2:12.2f}  {'>=' * cut + f'{upper - lower:.2f}':>9}"
        line += f"  {'-' if c.active is None else f'{100 * c.active:.0f} %':>6}  {c.confidence:10.2f}"
        lines.append(line + "  reaches the capture's edge" * cut)
    if not all(c.absolute for c in carriers):
        lines.append("frequencies are relative to the capture's centre; --center-frequency HZ makes them absolute")
    return "\n".join(lines)
