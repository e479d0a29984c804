"""Carriers, the rows of the table: from a network's labels and the samples' evidence to rows, and over many frames.

    found = find_carriers(view, proofs)                                # rows of one frame: Carrier objects
    merge(carriers, found)                                             # frame by frame, in place
    rows = join(carriers)
    share_of_recording(rows, shown)                                    # shown: how many samples show which frequencies
    Calibration.beside(Path("weights/seg_student.pt")).apply(rows, with_samples=True)
    print(table(rows))
    for event, row in Tracker(calibration, with_samples=True).step(carriers, first, rate): ...  # while samples arrive

The file follows a frame: columns of the spectrogram become bands (data/bands.py), a band gets its edges, level,
evidence (data/evidence.py), name and confidence, and becomes one row, or several where cells show several carriers. A
cell is a base station's, known by its synchronisation signals. A row's ground is the kind of evidence behind its name.
Then rows of many frames become one row a carrier. A column is 240 kHz wide; a frame has 40 ms. Needs numpy, data/,
data/bands.py and utils/runs.py.
"""

import csv
import io
import itertools
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.bands import MIN_COLUMNS, STRONG_DB, find_bands, fit_bands, lines, unclaimed, whole_bands, widest_peak
from data.evidence import (
    SAME_CENTER_HZ,
    WEAKEST_DB,
    Evidence,
    FrameEvidence,
    Proofs,
    apart,
    cells_plain,
    judge,
    nothing_there,
)
from data.lte_nr import LTE_RB, standard_channels
from data.spectrogram import HZ_PER_PIXEL, SIZE
from data.spectrum_sensing import CLASSES
from utils.runs import RunError

# A row of one frame
ACTIVE_DB = 2.0  # mean level over the floor from which on a carrier counts as active
LTE_HZ = tuple(LTE_RB)  # channel widths
WIDEST_HZ = {"LTE": 20.5e6, "NR": 101e6}  # no standard has wider channels; half a megahertz for the network's edges
# Occupied at the least: 1.08 MHz by LTE (6 resource blocks), 2.7 MHz by NR (15, in a 3 MHz channel); less a column.
NARROWEST_HZ = {"LTE": 0.9e6, "NR": 2.5e6}
SILENT_COLUMNS = 6  # 1.44 MHz: wider than the guard band of a 20 MHz LTE channel, and than a fade
SILENT_DB = 2.5  # a silent column's highest level over the floor is less than that,
STRONG_PEAK_DB = 10.0  # and the highest levels of a quarter of the band's columns are more than that
GUARD_SHARE = 0.05  # of an LTE channel's width, on each side
SAME_EDGE_HZ = 0.3e6  # edges that agree
SIDE_BY_SIDE_HZ = 1.5e6  # times the number of carriers in one band: the most that their edges and gaps may miss in all
MOST_SIDE_BY_SIDE = 6  # carriers; six widths each are 46,656 combinations to try

# Rows over time
SAME_HZ = 0.5e6  # edges that differ by no more from frame to frame are one carrier's
GROUNDS = ("cell", "prefix", "refuted", "unproven")  # what a row's technology rests on; the first outweigh the others


@dataclass(frozen=True)
class View:
    """A frame as the network labels it. Rows are time, the last row first; columns are ascending frequency."""

    start: int  # number of the first sample that no frame before has had
    count: int  # of such samples
    center_hz: float | None
    span_hz: float  # width of the capture
    column_hz: float
    picture: np.ndarray  # uint8 (256, C, 3)
    probability: np.ndarray  # float32 (3, 256, C), softmax
    power: np.ndarray | None  # float32 (256, C) in any unit; None where it can't be told
    floor: float = math.nan  # the noise's mean, in the unit of `power`; nan where it is not known
    look: FrameEvidence | None = None  # finds evidence in the samples as received; None for a picture
    rows: slice = field(default_factory=lambda: slice(0, SIZE))  # rows of these samples; the others repeat some
    labelled_s: float = 0.0  # time of the frames labelled before; evidence is searched anew after a while of it

    @property
    def columns(self) -> int:
        return self.probability.shape[2]

    @property
    def origin_hz(self) -> float:
        """Frequency of the capture's centre; 0 where it is not known, so that frequencies count from it."""
        return self.center_hz or 0.0


class FittedBand(NamedTuple):
    """A band of columns, with the standard channel that fits."""

    kind: int  # class; 0: the network calls it noise
    first: int  # column
    stop: int  # behind the last column
    edges: tuple[float, float] | None = None  # of the channel that fits, in columns
    fits_nr: bool = False  # whether the occupied width alone says NR


@dataclass
class Carrier:
    """A row of the table, of one frame or merged over many. Frequencies in Hz, absolute or from the centre."""

    technology: str  # "LTE", "NR" or "other"
    lower_hz: float
    upper_hz: float
    absolute: bool
    active: float | None  # share of time more than ACTIVE_DB above the floor
    confidence: float  # the network's mean probability until Calibration.apply
    cut_below: bool = False  # reaches the capture's edge: the true edge lies beyond
    cut_above: bool = False
    weight: int = 1  # new samples of the frames that have this row
    runs: list = field(default_factory=list)  # [first sample, samples] of each unbroken appearance
    level_db: float | None = None  # mean power over the floor
    seen: int = 1  # frames
    ground: str = "unproven"  # one of GROUNDS
    evidence: str = "-"  # in words
    cells: dict = field(default_factory=dict)  # identity: plain values of what was found

    @property
    def width_hz(self) -> float:
        return self.upper_hz - self.lower_hz

    @property
    def calibration_ground(self) -> str:
        """Ground, but "other" for a row that neither the network nor any evidence has named."""
        return "other" if self.technology == "other" and self.ground == "unproven" else self.ground

    def times_s(self, sample_rate: float | None, first_sample: int = 0) -> tuple[float | None, float | None]:
        """When it was first and last there, in seconds from the recording's first sample; None without a rate in Hz."""
        if not sample_rate or not self.runs:
            return None, None
        first, last = self.runs[0][0], sum(self.runs[-1])
        return (first - first_sample) / sample_rate, (last - first_sample) / sample_rate

    def comment(self) -> str:
        """What a reader of an annotation should know beside edges and name."""
        parts = [f"confidence {self.confidence:.2f}"]
        parts += [] if self.active is None else [f"active {100 * self.active:.0f} % of the time"]
        cut = ["lower"] * self.cut_below + ["upper"] * self.cut_above
        parts += [f"goes on beyond the capture's {' and '.join(cut)} edge"] if cut else []
        return ", ".join([*parts, f"evidence: {self.evidence}"])

    def signal_detail(self) -> dict:
        """The same in the words of SigMF's extension `signal`, as far as it has any; {} for a row without a name."""
        if self.technology == "other":
            return {}
        detail = {"type": "digital", "standard": "5G NR" if self.technology == "NR" else "LTE"}
        detail |= {"carrier_variant": "multi_carrier", "multiplexing": "ofdm", "multiple_access": "ofdma"}
        duplex = {cell["duplex"].lower() for cell in self.cells.values() if "duplex" in cell}
        detail |= {"duplexing": duplex.pop()} if len(duplex) == 1 else {}
        return detail | ({} if self.cut_below or self.cut_above else {"channel_bw": self.width_hz})

    def plain(self, sample_rate: float | None, first_sample: int = 0) -> dict:
        """For result.json, in Hz, seconds and shares of 1; see `times_s`."""
        first_s, last_s = self.times_s(sample_rate, first_sample)
        return {
            "technology": self.technology,
            "lower_hz": self.lower_hz,
            "upper_hz": self.upper_hz,
            "center_hz": (self.lower_hz + self.upper_hz) / 2,
            "bandwidth_hz": self.width_hz,
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
            "first_s": first_s,
            "last_s": last_s,
        }


# ---- rows of one frame ----------------------------------------------------------------------------------------------


def find_carriers(view: View, proofs: Proofs | None = None) -> list[Carrier]:
    """The rows of one frame: bands of the network, and with `proofs` what the samples prove of them.

    A row is as wide as the standard channel that fits. If none fits, it is as wide as the network sees it, from the
    centre of the first column to that of the last: a channel's edge may lie anywhere in its outermost column.
    """
    proofs = proofs if view.look else None  # a picture has no samples

    # Columns: the class that is most probable on average over time names each, and columns of noise tell the floor
    label = view.probability.mean(1).argmax(0)  # (C,)
    view = replace(view, floor=noise_floor(view, label))
    label = without_silence(label, view.power, view.floor)

    # Bands of the network; with samples also strong ones that it calls noise
    bands = fitted_bands(view, label)
    if proofs:
        bands += [FittedBand(0, *edges) for edges in unclaimed(label, view.power.mean(0), view.floor)]

    # Rows. Where there are none, a carrier may fill the capture, with no noise to stand out from. Then the whole
    # capture is tried as one band without a floor, and becomes a row if its samples prove a carrier.
    rows = [row for band in bands for row in carriers_of_band(view, band, proofs)]
    if proofs and not rows:
        whole = FittedBand(0, 0, len(label))
        found = carriers_of_band(replace(view, floor=math.nan), whole, proofs)
        rows = [row for row in found if row.ground in ("cell", "prefix")]
    return without_overlaps(rows)


def noise_floor(view: View, label: np.ndarray) -> float:
    """Mean power of the columns that are noise, label int (C,); the view's own floor where there are too few."""
    if view.power is None or (label == 0).sum() < MIN_COLUMNS:
        return view.floor
    return float(np.median(view.power[:, label == 0])) / math.log(2)  # exponentially distributed: median to mean


def without_silence(label: np.ndarray, power: np.ndarray | None, floor: float) -> np.ndarray:
    """Call those columns noise, int (C,), that the network gives to LTE although no LTE can be there.

    LTE sends reference signals over its whole channel in every downlink subframe (TS 36.211, 6.10.1). So a wide
    stretch that stays at the noise all the time, while the band rises at least 10 dB above it, lies between carriers.
    These keep their guard bands. NR has no such signals and is left alone.
    """
    if power is None or len(power) < SIZE // 2 or not floor > 0:
        return label
    # Each column's highest level, the 97% quantile over time, in dB over that of noise
    peak = 10 * np.log10(np.quantile(power, 0.97, axis=0) / (floor * math.log(1 / 0.03)))
    label = label.copy()
    for kind, first, stop in find_bands(label):
        inside = peak[first:stop]
        if CLASSES[kind] != "LTE" or np.percentile(inside, 75) < STRONG_PEAK_DB:
            continue
        silent = [run[1:] for run in find_bands((inside < SILENT_DB).astype(int)) if run[2] - run[1] >= SILENT_COLUMNS]
        cuts = [0, *(column for stretch in silent for column in stretch), len(inside)]
        label[first:stop] = 0
        for start, end in zip(cuts[::2], cuts[1::2], strict=True):
            guard = int(GUARD_SHARE * (end - start))
            label[first + max(0, start - guard) : first + min(len(inside), end + guard)] = kind
    return label


def fitted_bands(view: View, label: np.ndarray) -> list[FittedBand]:
    """Bands among the columns, label int (C,), ascending; channels are fitted where columns are 240 kHz wide."""
    bands = find_bands(label)
    if view.power is None or abs(view.column_hz / HZ_PER_PIXEL - 1) >= 0.01:
        return [FittedBand(*band) for band in bands]
    power = view.power.mean(0)  # (C,)
    channels = standard_channels(CLASSES, view.column_hz)
    bands = whole_bands(bands, power, view.floor, channels)
    belief = np.log(view.probability.clip(1e-6)).mean(1)  # (3, C)
    fits = fit_bands(bands, belief, power, channels)
    fits_by_width = fit_bands(bands, np.zeros_like(belief), power, channels)  # whatever the network believes
    found = []
    for (_, first, stop), (kind, edges), (kind_by_width, fit) in zip(bands, fits, fits_by_width, strict=True):
        fits_nr = CLASSES[kind_by_width] == "NR" and fit is not None
        found.append(FittedBand(kind, first, stop, edges, fits_nr))
    return found


def without_overlaps(rows: list[Carrier]) -> list[Carrier]:
    """Rows of one frame, ascending; where two overlap they meet in the middle."""
    rows = sorted(rows, key=lambda row: (row.lower_hz, row.upper_hz))
    for below, above in itertools.pairwise(rows):
        if below.upper_hz > above.lower_hz:
            below.upper_hz = above.lower_hz = (below.upper_hz + above.lower_hz) / 2
    return [row for row in rows if row.upper_hz > row.lower_hz]


# ---- rows of one band -----------------------------------------------------------------------------------------------


def carriers_of_band(view: View, band: FittedBand, proofs: Proofs | None) -> list[Carrier]:
    """Rows of one band: one, or one for each LTE carrier in it whose cells show that there are several."""
    row = row_with_edges(view, band)
    row.active, row.level_db = activity_and_level(view, band)
    evidence = evidence_of(view, row, proofs) if proofs else None
    row.technology, row.ground, row.evidence = name_of(view, band, row, evidence)
    row.confidence = network_probability(view, band, row, evidence)
    if row.ground != "cell":
        return [row]
    row.cells = cells_plain(evidence, view.center_hz)
    return rows_by_cell(view, band, row, evidence, proofs)


def row_with_edges(view: View, band: FittedBand) -> Carrier:
    """A row without a name: at the edges of the channel that fits, or else in the middle of the outermost columns.

    A band that reaches the capture's edge goes on beyond it, and its row ends there, unless a channel fits inside.
    """
    edges = band.edges or (band.first + 0.5, band.stop - 0.5)  # columns
    lower, upper = (view.origin_hz + (edge - view.columns / 2) * view.column_hz for edge in edges)
    below, above = (not band.edges and cut for cut in (band.first <= 1, band.stop >= view.columns - 1))
    return Carrier(
        technology="other",
        lower_hz=view.origin_hz - view.span_hz / 2 if below else lower,
        upper_hz=view.origin_hz + view.span_hz / 2 if above else upper,
        absolute=view.center_hz is not None,
        active=None,
        confidence=0.0,
        cut_below=below,
        cut_above=above,
        weight=view.count,
        runs=[[view.start, view.count]],
    )


def activity_and_level(view: View, band: FittedBand) -> tuple[float | None, float | None]:
    """Share of time above the floor, and mean power over the floor in dB, both without lines; None where unknown."""
    if view.power is None or not view.floor > 0:
        return None, None
    power = view.power[view.rows, band.first : band.stop]  # (rows, columns)
    clean = power[:, ~lines(power.mean(0))]
    clean = clean if clean.shape[1] else power
    active = float((clean.mean(1) > view.floor * 10 ** (ACTIVE_DB / 10)).mean())
    return active, float(10 * np.log10(max(clean.mean() / view.floor, 1e-3)))


def evidence_of(view: View, row: Carrier, proofs: Proofs) -> Evidence:
    """What the samples prove of a row, or proved a short time ago."""
    level_db = row.level_db
    if row.active and level_db < WEAKEST_DB:
        level_db = None  # bursts, whose mean may lie at the floor; a band of unknown level is searched all the same
    edges = row.lower_hz - view.origin_hz, row.upper_hz - view.origin_hz
    return proofs.of(view.look, view.labelled_s, *edges, cut=row.cut_below or row.cut_above, level_db=level_db)


def name_of(view: View, band: FittedBand, row: Carrier, evidence: Evidence | None) -> tuple[str, str, str]:
    """(Technology, ground, words for the table) of a row with edges and level; without evidence the network's name."""
    name, ground, words = CLASSES[band.kind] if band.kind else "other", "unproven", "-"

    # What the evidence says; and what can't be a carrier whatever the network calls it
    if evidence:
        name, ground, words = judge(name, evidence, band.fits_nr, view.center_hz)
        if ground == "unproven" and name != "other":
            if too_narrow(view, band, row, NARROWEST_HZ[name]):
                name, ground, words = "other", "refuted", f"narrower than any {name} channel"
            elif row.level_db is not None and row.level_db < WEAKEST_DB and nothing_there(evidence):
                name, words = "other", "no more than the noise floor"

    # A band wider than any channel of its technology is not printed as one carrier of it
    if ground != "cell" and row.width_hz > WIDEST_HZ.get(name, math.inf):
        name = "NR" if name == "LTE" and row.width_hz < WIDEST_HZ["NR"] else "other"
    return name, ground, words


def too_narrow(view: View, band: FittedBand, row: Carrier, least_hz: float) -> bool:
    """Whether a band, or all that stands out in it, is narrower than `least_hz`, as no channel is."""
    if row.width_hz < least_hz and not row.cut_below and not row.cut_above:
        return True
    if view.power is None or not view.floor > 0:
        return False
    widest = widest_peak(view.power[:, band.first : band.stop].mean(0), view.floor)
    strong = view.power[:, [0, -1]].mean(0) > view.floor * 10 ** (STRONG_DB / 10)  # the capture's outermost columns
    goes_on = (row.cut_below and strong[0]) or (row.cut_above and strong[1])
    return widest is not None and not goes_on and (widest - 1) * view.column_hz < least_hz


def network_probability(view: View, band: FittedBand, row: Carrier, evidence: Evidence | None) -> float:
    """Mean softmax probability of the row's name, "other" being noise; with an unproven prefix, of LTE and NR."""
    of_classes = view.probability[:, :, band.first : band.stop]  # (3, rows, columns)
    if row.technology == "other":
        return float(of_classes[0].mean())
    prefix = evidence.prefix if evidence else None
    if row.ground == "unproven" and prefix and prefix.outcome == "prefix":
        return float(1 - of_classes[0].mean())
    return float(of_classes[CLASSES.index(row.technology)].mean())


# ---- several LTE carriers in one band -------------------------------------------------------------------------------


def rows_by_cell(view: View, band: FittedBand, row: Carrier, evidence: Evidence, proofs: Proofs) -> list[Carrier]:
    """The row of a band with cells, or a row for each LTE carrier that they show and for what lies beside these."""
    if row.technology != "LTE":
        return [row]
    too_wide = row.width_hz > WIDEST_HZ["LTE"]
    groups = apart(evidence.lte)
    centers = [view.origin_hz + float(np.mean([cell.offset_hz for cell in group])) for group in groups]
    channels = channels_side_by_side(row, centers)
    if not channels and too_wide:
        channels = channels_in_wide_band(row, centers)
    if not channels:
        return [row]

    rows = rows_beside(view, band, channels, proofs) if too_wide else []
    for (low, high), group in zip(channels, groups, strict=True):
        cells = cells_plain(Evidence(lte=tuple(group)), view.center_hz)
        rows.append(
            replace(
                row,
                lower_hz=max(low, view.origin_hz - view.span_hz / 2),
                upper_hz=min(high, view.origin_hz + view.span_hz / 2),
                cut_below=row.cut_below and low <= row.lower_hz + SAME_EDGE_HZ,
                cut_above=row.cut_above and high >= row.upper_hz - SAME_EDGE_HZ,
                evidence=", ".join(cell["words"] for cell in cells.values()),
                cells=cells,
                runs=[[view.start, view.count]],
            )
        )
    return rows


def channels_side_by_side(row: Carrier, centers: list[float]) -> list[tuple[float, float]]:
    """Edges in Hz of LTE channels with these centres that fill a row's band side by side; empty where none do.

    The widths are those of the standard for which the channels do not overlap, leave little between them and end where
    the band ends.
    """
    if not 2 <= len(centers) <= MOST_SIDE_BY_SIDE:
        return []
    best, found = SIDE_BY_SIDE_HZ * len(centers), []
    for widths in itertools.product(LTE_HZ, repeat=len(centers)):
        edges = [(center - width / 2, center + width / 2) for center, width in zip(centers, widths, strict=True)]
        between = [above[0] - below[1] for below, above in itertools.pairwise(edges)]
        if min(between) < -SAME_EDGE_HZ:
            continue
        left_below, left_above = edges[0][0] - row.lower_hz, row.upper_hz - edges[-1][1]  # negative: beyond the band
        missed = max(left_below, 0.0 if row.cut_below else -left_below)
        missed += max(left_above, 0.0 if row.cut_above else -left_above)
        missed += sum(max(gap, 0.0) for gap in between)
        if missed < best:
            best, found = missed, edges
    return found


def channels_in_wide_band(row: Carrier, centers: list[float]) -> list[tuple[float, float]]:
    """Edges in Hz of the channels with these centres in a band that is wider than any LTE channel.

    Other carriers lie in such a band whose cells were not found. A channel is the widest of the standard that stays in
    the band and leaves the next centre its own half; at least the narrowest.
    """
    channels = []
    for i, center in enumerate(centers):
        below = (center - centers[i - 1]) / 2 if i else center - (row.lower_hz - SAME_EDGE_HZ)
        above = (centers[i + 1] - center) / 2 if i + 1 < len(centers) else row.upper_hz + SAME_EDGE_HZ - center
        fitting = [width for width in LTE_HZ if width / 2 <= min(below, above) + SAME_EDGE_HZ]
        half = max(fitting, default=min(LTE_HZ)) / 2
        channels.append((center - half, center + half))
    return channels


def rows_beside(view: View, band: FittedBand, channels: list[tuple[float, float]], proofs: Proofs) -> list[Carrier]:
    """Rows of the parts of a band that lie outside the channels of its LTE cells."""
    zero = view.columns / 2 - view.origin_hz / view.column_hz
    edges = [zero + hz / view.column_hz for channel in channels for hz in channel]  # in columns
    ends = [band.first, *(min(max(round(edge), band.first), band.stop) for edge in edges), band.stop]
    free = [(first, stop) for first, stop in zip(ends[::2], ends[1::2], strict=True) if stop - first >= MIN_COLUMNS]
    rows = []
    for first, stop in free:
        rows += carriers_of_band(view, FittedBand(band.kind, first, stop), proofs)
    return rows


# ---- rows over time -------------------------------------------------------------------------------------------------


def merge(carriers: list[Carrier], found: list[Carrier]) -> None:
    """Add the rows of a frame to the rows of the frames before it, in place; values become means weighted by time."""
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
    """Put rows together that are one carrier's by their mean edges and never appeared at the same time.

    A carrier whose evidence came late had another name before. That row goes into the row with the better ground. Rows
    of one cell with other edges are one carrier, too, as where it fills the capture; the longer row's edges stay.
    """
    rows = []
    for new in sorted(carriers, key=lambda carrier: (GROUNDS.index(carrier.ground), -carrier.weight)):
        apart = [row for row in rows if not _meet(row.runs, new.runs)]
        if old := next((row for row in apart if _joins(row, new)), None):
            _absorb(old, new)
        elif old := next((row for row in apart if _of_one_cell(row, new)), None):
            edges = {name: getattr(old, name) for name in ("lower_hz", "upper_hz", "cut_below", "cut_above")}
            _absorb(old, new)
            for name, value in edges.items():
                setattr(old, name, value)
        else:
            rows.append(new)
    return rows


def share_of_recording(carriers: list[Carrier], shown: dict[tuple[float | None, float], int]) -> None:
    """Make `active` a share of all samples that could show the carrier, not only of the frames with the carrier.

    Args:
        carriers: changed in place.
        shown: {(centre frequency or None, width), in Hz, of a part of the spectrum: samples that show it}.
    """
    for carrier in carriers:
        middle, total = (carrier.lower_hz + carrier.upper_hz) / 2, 0
        for (center, span), samples in shown.items():
            if (center is not None) == carrier.absolute and abs(middle - (center or 0.0)) <= span / 2:
                total += samples
        if carrier.active is not None:
            carrier.active *= carrier.weight / max(total, carrier.weight)


def _apart_hz(a: Carrier, b: Carrier) -> float:
    return max(abs(a.lower_hz - b.lower_hz), abs(a.upper_hz - b.upper_hz))


def _joins(old: Carrier, new: Carrier) -> bool:
    """Whether both rows are one carrier's. The technologies may differ if the old row has the better ground."""
    if old.technology != new.technology and GROUNDS.index(old.ground) >= GROUNDS.index(new.ground):
        return False
    return old.absolute == new.absolute and _near(old, new)


def _same(a: Carrier, b: Carrier) -> bool:
    return (a.technology, a.absolute) == (b.technology, b.absolute) and _near(a, b)


def _of_one_cell(a: Carrier, b: Carrier) -> bool:
    """Whether both rows were proven by one cell: the same identity at the same centre."""
    common = a.cells.keys() & b.cells.keys()
    distances = [abs(a.cells[cell]["center_hz"] - b.cells[cell]["center_hz"]) for cell in common]
    return a.absolute == b.absolute and min(distances, default=np.inf) < SAME_CENTER_HZ


def _near(a: Carrier, b: Carrier) -> bool:
    """Whether edges lie near each other, or both rows share more than half of what they cover together."""
    common = min(a.upper_hz, b.upper_hz) - max(a.lower_hz, b.lower_hz)
    whole = max(a.upper_hz, b.upper_hz) - min(a.lower_hz, b.lower_hz)
    return _apart_hz(a, b) <= SAME_HZ or common > whole / 2


def _meet(a: list, b: list) -> bool:
    """Whether two lists of [first sample, samples] have a sample in common."""
    runs = sorted(a + b)
    return any(start + count > after for (start, count), (after, _) in zip(runs, runs[1:], strict=False))


def _absorb(old: Carrier, new: Carrier) -> None:
    """Make old the mean of both rows, weighted by time."""
    # Edges; an edge that one row has seen and the other has not is taken from the one
    total = old.weight + new.weight
    for edge, cut in (("lower_hz", "cut_below"), ("upper_hz", "cut_above")):
        if getattr(old, cut) and not getattr(new, cut):
            setattr(old, edge, getattr(new, edge))
            setattr(old, cut, False)
        elif getattr(old, cut) == getattr(new, cut):
            setattr(old, edge, (old.weight * getattr(old, edge) + new.weight * getattr(new, edge)) / total)

    # Shares and level
    for name in ("active", "confidence"):
        a, b = getattr(old, name), getattr(new, name)
        setattr(old, name, None if a is None or b is None else (old.weight * a + new.weight * b) / total)
    if old.level_db is not None and new.level_db is not None:  # of powers
        power = old.weight * 10 ** (old.level_db / 10) + new.weight * 10 ** (new.level_db / 10)
        old.level_db = 10 * math.log10(power / total)

    # The better ground; new cells of the same ground are added
    if GROUNDS.index(new.ground) < GROUNDS.index(old.ground):
        old.ground, old.evidence = new.ground, new.evidence
    elif new.ground == old.ground == "cell":
        more = [cell["words"] for identity, cell in new.cells.items() if identity not in old.cells]
        old.evidence = ", ".join([old.evidence, *more])
    old.cells = new.cells | old.cells

    # Time
    old.weight, old.seen = total, old.seen + new.seen
    if old.runs and len(new.runs) == 1 and new.runs[0][0] > sum(old.runs[-1]):  # the usual case, quick after hours
        old.runs.append(new.runs[0])
        return
    if old.runs and len(new.runs) == 1 and new.runs[0][0] == sum(old.runs[-1]):
        old.runs[-1] = [old.runs[-1][0], old.runs[-1][1] + new.runs[0][1]]
        return
    runs = []
    for start, count in sorted(old.runs + new.runs):
        if runs and sum(runs[-1]) == start:
            runs[-1][1] += count
        else:
            runs.append([start, count])
    old.runs = runs


# ---- confidence -----------------------------------------------------------------------------------------------------
# The network's mean softmax probability is not the chance of being right: the network is sure of signals that it has
# never seen, and wrong. `python -m experiments.confidence` counts how often rows of each ground are right, and writes
# the file beside the network. "Unproven" rows and pictures have a logistic curve of the network's probability (Platt
# 1999), the other grounds one share.

LEAST = 0.5  # an unproven row with a lower confidence is "other"


@dataclass(frozen=True)
class Calibration:
    """The chance that a row is right, for each ground."""

    # {ground: (offset, slope)}: logit(confidence) = offset + slope * logit(network's probability)
    curves: dict[str, tuple[float, float]] = field(default_factory=dict)

    @classmethod
    def beside(cls, weights: Path) -> "Calibration":
        """The calibration beside a network's file. Without it a row's confidence stays the network's probability.

        Raises: RunError for a damaged file.
        """
        path = weights.with_suffix(".calibration.json")
        if not path.exists():
            return cls()
        try:
            curves = json.loads(path.read_text())["curves"]
            return cls({ground: (float(offset), float(slope)) for ground, (offset, slope) in curves.items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path}: damaged ({error}); make it with python -m experiments.confidence") from error

    def confidence(self, ground: str, probability: float) -> float:
        """Confidence, 0 to 1, of a row with this ground and this mean probability of the network."""
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


# ---- while samples arrive -------------------------------------------------------------------------------------------

CONFIRMED_FRAMES = 3  # in which an unproven row must have been seen; proof confirms a row at once
LOST_SECONDS = 1.0  # without a carrier after which it is lost,
LOST_FRAMES = 5  # and so many labelled frames, where most are dropped
FORGOTTEN_SECONDS = 60.0  # after which a row that was never confirmed is forgotten


@dataclass
class _There:
    """A carrier that is confirmed and not lost."""

    row: Carrier  # of the list of all rows
    end: int  # number behind the last sample in which it was seen
    frame: int  # in which it was last seen


class Tracker:
    """Which carriers have come and gone, for a reader who can't wait for the end."""

    def __init__(self, calibration: Calibration, with_samples: bool):
        self.calibration, self.with_samples = calibration, with_samples
        self.there: list[_There] = []
        self.frames, self.events = 0, 0  # so far

    def step(self, carriers: list[Carrier], end: int, sample_rate: float) -> list[tuple[str, Carrier]]:
        """Events ("confirmed" or "lost", row with its calibrated confidence) after a frame's rows have been merged.

        Args:
            carriers: the rows of all frames so far; old ones that were never confirmed are taken out.
            end: number behind the frame's last sample.
            sample_rate: Hz.
        """
        self.frames += 1
        events = []
        for carrier in (carrier for carrier in carriers if sum(carrier.runs[-1]) >= end):
            known = next((one for one in self.there if one.row is carrier or _twins(one.row, carrier)), None)
            if known:
                known.end, known.frame = end, self.frames
            elif row := self._confirmed(carrier):
                events += self._lose(lambda one, new=carrier: _near(one.row, new) and one.row.absolute == new.absolute)
                self.there.append(_There(carrier, end, self.frames))
                events.append(("confirmed", row))
        quiet = LOST_SECONDS * sample_rate
        events += self._lose(lambda one: end - one.end >= quiet and self.frames - one.frame >= LOST_FRAMES)
        old = end - FORGOTTEN_SECONDS * sample_rate
        carriers[:] = [row for row in carriers if row.ground != "unproven" or sum(row.runs[-1]) > old or self._has(row)]
        self.events += len(events)
        return events

    def _has(self, carrier):
        return any(one.row is carrier for one in self.there)

    def _lose(self, gone):
        lost = [one for one in self.there if gone(one)]
        self.there = [one for one in self.there if not gone(one)]
        return [("lost", self._calibrated(one.row)) for one in lost]

    def _calibrated(self, carrier):
        row = replace(carrier, runs=[list(run) for run in carrier.runs])
        self.calibration.apply([row], self.with_samples)
        return row

    def _confirmed(self, carrier):
        """The row to be printed, or None while it may be chance."""
        if carrier.technology == "other" or (carrier.ground == "unproven" and carrier.seen < CONFIRMED_FRAMES):
            return None
        row = self._calibrated(carrier)
        return row if row.technology != "other" else None


def _twins(a: Carrier, b: Carrier) -> bool:
    """Whether rows that overlap show a cell in common: then they are one carrier, whose edges were seen differently."""
    return bool(a.cells.keys() & b.cells.keys()) and min(a.upper_hz, b.upper_hz) > max(a.lower_hz, b.lower_hz)


# ---- what people read -----------------------------------------------------------------------------------------------


def table(carriers: list[Carrier], sample_rate: float | None = None, first_sample: int = 0) -> str:
    """Lines for people; times need the sample rate in Hz and the number of the recording's first sample."""
    found = [_line(carrier, *carrier.times_s(sample_rate, first_sample)) for carrier in carriers]
    if found:
        found.insert(0, table_head())
    if all(carrier.technology == "other" for carrier in carriers):
        found.append("no LTE or NR carrier found")
    if not all(carrier.absolute for carrier in carriers):
        found.append("frequencies are relative to the capture's centre; --center-frequency HZ makes them absolute")
    return "\n".join(found)


def table_of_several(found: list[tuple[str, list[Carrier], float, int]]) -> str:
    """One table of several recordings: for each its name, carriers, sample rate in Hz and number of first sample."""
    width = max(len(name) for name, *_ in found)
    lines = [f"{'':{width}}  {table_head()}"]
    for name, carriers, *clock in found:
        lines += [f"{name:{width}}  {_line(carrier, *carrier.times_s(*clock))}" for carrier in carriers]
        if all(carrier.technology == "other" for carrier in carriers):
            lines.append(f"{name:{width}}  no LTE or NR carrier found")
    if not all(carrier.absolute for _, carriers, *_ in found for carrier in carriers):
        lines.append("some frequencies are relative to the capture's centre; --center-frequency HZ makes them absolute")
    return "\n".join(lines)


def table_head() -> str:
    head = f"{'':5}  {'lower MHz':>12}  {'upper MHz':>12}  {'centre MHz':>12}  {'width MHz':>9}  level  seen  active"
    return head + f"  {'from s':>8}  {'to s':>8}  confidence  evidence"


def event_line(event: str, carrier: Carrier, time_s: float, clock: tuple[float, int]) -> str:
    """A line for a carrier that came or went; clock: sample rate in Hz and number of the first sample."""
    return f"{time_s:8.2f} s  {event:9}  " + _line(carrier, *carrier.times_s(*clock))


def comma_separated(rows: list[dict], head: bool = True) -> str:
    """CSV of rows as Carrier.plain makes them, without cells and runs, which are lists; with `head` names first."""
    names = [name for name in Carrier("", 0, 0, False, None, 0).plain(None) if name not in ("cells", "runs")]
    names = [name for name in (rows[0] if rows else ()) if name in ("recording", "event", "time_s")] + names
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _line(c: Carrier, first_s: float | None, last_s: float | None) -> str:
    """A carrier's line of the table; "<=" and ">=" where the capture cuts it."""
    cut = c.cut_below or c.cut_above
    cells = [
        f"{c.technology:5}",
        f"{'<=' * c.cut_below + f'{c.lower_hz / 1e6:.2f}':>12}",
        f"{'>=' * c.cut_above + f'{c.upper_hz / 1e6:.2f}':>12}",
        f"{(c.lower_hz / 1e6 + c.upper_hz / 1e6) / 2:12.2f}",
        f"{'>=' * cut + f'{c.upper_hz / 1e6 - c.lower_hz / 1e6:.2f}':>9}",
        f"{'-' if c.level_db is None else f'{c.level_db:.0f} dB':>5}",
        f"{c.seen:4}",
        f"{'-' if c.active is None else f'{100 * c.active:.0f} %':>6}",
        f"{'-' if first_s is None else f'{first_s:.3f}':>8}",
        f"{'-' if last_s is None else f'{last_s:.3f}':>8}",
        f"{c.confidence:10.2f}",
        c.evidence,
    ]
    return "  ".join(cells) + ", reaches the capture's edge" * cut
