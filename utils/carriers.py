"""Carriers of a recording: rows of single frames put together over time, their confidence, the printed table.

    merge(carriers, of_this_frame)                                     # Carrier objects, frame by frame
    rows = join(carriers)
    Calibration.beside(Path("weights/seg_student.pt")).apply(rows, with_samples=True)
    print(table(rows))

Needs the standard library only.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

SAME_HZ = 0.5e6  # edges that differ by no more from frame to frame are one carrier's
GROUNDS = ("cell", "prefix", "refuted", "unproven")  # what a row's technology rests on; the first outweigh the others


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
    level_db: float | None = None  # mean power over the floor
    seen: int = 1  # frames
    ground: str = "unproven"  # one of GROUNDS
    evidence: str = "-"  # in words
    cells: dict = field(default_factory=dict)  # identity: plain values of what was found

    @property
    def calibration_ground(self) -> str:
        """Ground, but "other" for a row that neither the network nor any evidence has named."""
        return "other" if self.technology == "other" and self.ground == "unproven" else self.ground

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
            "level_db": self.level_db,
            "frames_seen": self.seen,
            "ground": self.ground,
            "evidence": self.evidence,
            "cells": list(self.cells.values()),
            "samples": self.weight,
            "runs": [{"sample_start": start, "sample_count": count} for start, count in self.runs],
        }


def merge(carriers: list[Carrier], found: list[Carrier]) -> None:
    """Add a frame's carriers to those of the frames before it, in place; values are means weighted by time."""
    free = list(range(len(carriers)))
    for new in found:
        distance = {i: _apart_hz(carriers[i], new) for i in free if _same(carriers[i], new)}
        best = min(distance, key=distance.get, default=None)
        if best is None:
            carriers.append(new)
        else:
            free.remove(best)
            _absorb(carriers[best], new)


def join(carriers: list[Carrier]) -> list[Carrier]:
    """Rows that have become one carrier's, by the means of their edges, put together; at no time were both there.

    Where the evidence came late, a carrier had another name before: that row goes into the one with better ground.
    """
    rows = []
    for new in sorted(carriers, key=lambda carrier: (GROUNDS.index(carrier.ground), -carrier.weight)):
        old = next((row for row in rows if _joins(row, new) and not _meet(row.runs, new.runs)), None)
        if old is None:
            rows.append(new)
        else:
            _absorb(old, new)
    return rows


def share_of_recording(carriers: list[Carrier], seen: dict[tuple[float | None, float], int]) -> None:
    """Make `active`, so far of the frames that a carrier was found in, the share of all samples that could show it.

    Args:
        carriers: changed in place.
        seen: {(centre frequency or None, width) in Hz of what was received: samples}.
    """
    for carrier in carriers:
        middle, total = (carrier.lower_hz + carrier.upper_hz) / 2, 0
        for (center, span), samples in seen.items():
            if (center is not None) == carrier.absolute and abs(middle - (center or 0.0)) <= span / 2:
                total += samples
        if carrier.active is not None:
            carrier.active *= carrier.weight / max(total, carrier.weight)


def _apart_hz(a: Carrier, b: Carrier) -> float:
    return max(abs(a.lower_hz - b.lower_hz), abs(a.upper_hz - b.upper_hz))


def _joins(old: Carrier, new: Carrier) -> bool:
    """Whether both are one carrier's rows; with different technologies if the old one's has better ground."""
    if old.technology != new.technology and GROUNDS.index(old.ground) >= GROUNDS.index(new.ground):
        return False
    return old.absolute == new.absolute and _near(old, new)


def _same(a: Carrier, b: Carrier) -> bool:
    return (a.technology, a.absolute) == (b.technology, b.absolute) and _near(a, b)


def _near(a: Carrier, b: Carrier) -> bool:
    """Edges that lie near each other, or more than half of what both cover in common."""
    common = min(a.upper_hz, b.upper_hz) - max(a.lower_hz, b.lower_hz)
    whole = max(a.upper_hz, b.upper_hz) - min(a.lower_hz, b.lower_hz)
    return _apart_hz(a, b) <= SAME_HZ or common > whole / 2


def _meet(a: list, b: list) -> bool:
    """Whether two lists of [first sample, samples] have a sample in common."""
    runs = sorted(a + b)
    return any(start + count > after for (start, count), (after, _) in zip(runs, runs[1:], strict=False))


def _absorb(old: Carrier, new: Carrier) -> None:
    """Make old the mean of both, weighted by time; of an edge that only one has seen, that one's."""
    total = old.weight + new.weight
    for edge, cut in (("lower_hz", "cut_below"), ("upper_hz", "cut_above")):
        if getattr(old, cut) and not getattr(new, cut):
            setattr(old, edge, getattr(new, edge))
            setattr(old, cut, False)
        elif getattr(old, cut) == getattr(new, cut):
            setattr(old, edge, (old.weight * getattr(old, edge) + new.weight * getattr(new, edge)) / total)
    for name in ("active", "confidence"):
        a, b = getattr(old, name), getattr(new, name)
        setattr(old, name, None if a is None or b is None else (old.weight * a + new.weight * b) / total)
    if old.level_db is not None and new.level_db is not None:  # of powers
        power = old.weight * 10 ** (old.level_db / 10) + new.weight * 10 ** (new.level_db / 10)
        old.level_db = 10 * math.log10(power / total)
    if GROUNDS.index(new.ground) < GROUNDS.index(old.ground):
        old.ground, old.evidence = new.ground, new.evidence
    elif new.ground == old.ground == "cell":
        more = [cell["words"] for identity, cell in new.cells.items() if identity not in old.cells]
        old.evidence = ", ".join([old.evidence, *more])
    old.cells = new.cells | old.cells
    old.weight, old.seen = total, old.seen + new.seen
    runs = []
    for start, count in sorted(old.runs + new.runs):
        if runs and sum(runs[-1]) == start:
            runs[-1][1] += count
        else:
            runs.append([start, count])
    old.runs = runs


def table(carriers: list[Carrier], sample_rate: float | None = None, first_sample: int = 0) -> str:
    """Lines for people; times need the sample rate in Hz and the number of the recording's first sample."""
    if not any(c.technology != "other" for c in carriers):
        nothing = "no LTE or NR carrier found"
        if not carriers:
            return nothing
    else:
        nothing = None
    head = f"{'':5}  {'lower MHz':>12}  {'upper MHz':>12}  {'centre MHz':>12}  {'width MHz':>9}  level  seen  active"
    lines = [head + f"  {'from s':>8}  {'to s':>8}  confidence  evidence"]
    for c in carriers:
        lower, upper, cut = c.lower_hz / 1e6, c.upper_hz / 1e6, c.cut_below or c.cut_above
        line = f"{c.technology:5}  {'<=' * c.cut_below + f'{lower:.2f}':>12}  {'>=' * c.cut_above + f'{upper:.2f}':>12}"
        line += f"  {(lower + upper) / 2:12.2f}  {'>=' * cut + f'{upper - lower:.2f}':>9}"
        line += f"  {'-' if c.level_db is None else f'{c.level_db:.0f} dB':>5}  {c.seen:4}"
        line += f"  {'-' if c.active is None else f'{100 * c.active:.0f} %':>6}"
        times = ["-", "-"]
        if sample_rate and c.runs:
            ends = c.runs[0][0] - first_sample, sum(c.runs[-1]) - first_sample
            times = [f"{end / sample_rate:.3f}" for end in ends]
        line += f"  {times[0]:>8}  {times[1]:>8}  {c.confidence:10.2f}  {c.evidence}"
        lines.append(line + ", reaches the capture's edge" * cut)
    if nothing:
        lines.append(nothing)
    if not all(c.absolute for c in carriers):
        lines.append("frequencies are relative to the capture's centre; --center-frequency HZ makes them absolute")
    return "\n".join(lines)


# ---- confidence -----------------------------------------------------------------------------------------------------
# The network's mean softmax probability is no probability of being right: on what it has never seen it is confidently
# wrong. `python -m experiments.confidence` counts, for each ground that a row rests on, how often rows are right, and
# writes the file beside the network: a logistic curve of the network's probability for "unproven" rows and for
# pictures, a share for the others (Platt 1999).

LEAST = 0.5  # an unproven row less likely than that is "other"


@dataclass(frozen=True)
class Calibration:
    """curves: {ground: (offset, slope)} of logit(p) = offset + slope * logit(network's probability)."""

    curves: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def beside(cls, weights: Path) -> "Calibration":
        """Of the file beside a network; without one a row's confidence stays the network's probability.

        Raises: ValueError for a damaged file.
        """
        path = weights.with_suffix(".calibration.json")
        if not path.exists():
            return cls()
        try:
            curves = json.loads(path.read_text())["curves"]
            return cls({ground: (float(offset), float(slope)) for ground, (offset, slope) in curves.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: damaged ({error}); make it with python -m experiments.confidence") from error

    def confidence(self, ground: str, probability: float) -> float:
        """Of a row with that ground and the network's mean probability, 0 to 1."""
        if ground not in self.curves:
            return probability
        offset, slope = self.curves[ground]
        return 0.5 * (1 + math.tanh((offset + slope * logit(probability)) / 2))  # the logistic function

    def apply(self, carriers: list[Carrier], with_samples: bool) -> None:
        """Set each row's confidence, and call unproven rows below LEAST "other"; in place.

        with_samples: False for a picture, whose rows keep the network's name.
        """
        for carrier in carriers:
            ground = carrier.calibration_ground if with_samples else "picture"
            carrier.confidence = self.confidence(ground, carrier.confidence)
            unproven = with_samples and carrier.ground == "unproven" and carrier.technology != "other"
            if unproven and carrier.confidence < LEAST:
                carrier.evidence = f"{carrier.evidence} {carrier.technology} ({carrier.confidence:.2f})"
                carrier.technology, carrier.confidence = "other", 1 - carrier.confidence


def logit(probability: float) -> float:
    clipped = min(max(probability, 1e-3), 1 - 1e-3)
    return math.log(clipped / (1 - clipped))
