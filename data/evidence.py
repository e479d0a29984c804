"""What the samples of a frame prove about a band that the network found: cells, a cyclic prefix, or neither.

    look = FrameEvidence(samples, sample_rate, center_hz, floor)     # samples as received, up to 40 ms
    evidence = look.of(low_hz, high_hz)                              # edges against the capture's centre
    technology, ground, words = judge("NR", evidence, fits_nr=False)

A picture can't tell LTE from other OFDM, nor a receiver's filter from a carrier. The samples can. The synchronisation
signals of a cell are proof. Every OFDM symbol of LTE and NR has a cyclic prefix at a known lag; a band that is strong
enough to show a prefix and has none is neither LTE nor NR. docs/evidence.md has the rules and how often they are
wrong. A frame is up to 40 ms of samples. Needs torch for its FFT, and the searches of data/ that it imports.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from data.block_screen import cell_power, possible_blocks
from data.cell_search import (
    LteCell,
    NrCell,
    best_of_each,
    lte_cells,
    lte_cells_aligned,
    nr_cells,
    nr_cells_aligned,
    nr_centers,
)
from data.cyclic_prefix import PrefixEvidence, band_samples, cyclic_prefix, frame_spectrum, symbol_timings
from data.sync_search import Spectrum, smooth_size, without_lines
from data.sync_signals import SIZE, lte_centers

PSS_HZ = 1.1e6  # width of LTE's synchronisation signals with the guard beside them
NR_SECONDS = 0.0204  # one period of SS/PBCH blocks
SCREENED_HZ = 5e6  # in a wider band without a prefix NR blocks are searched only where their power would be
RASTER_SLACK_HZ = 1e3  # for centres at the very edge of what is searched
BLOCK_HZ = 2e6  # the narrowest band in which a block is searched; at 15 kHz its PSS has 127 subcarriers, 1.905 MHz
PIECE_HZ = 5e6  # least width of the pieces in which a prefix is sought where the whole band shows none
BESIDE_HZ = 1.4e6  # taken on each side of a possible centre: the receiver's error, PSS and SSS, and room for the filter
SLACK_HZ = 0.5e6  # how far the centre of a whole band may lie from the middle of the network's edges
LTE_WIDEST_HZ = 20.5e6  # a channel of 20 MHz as the network sees it
NARROW_HZ = 3e6  # a band that the capture's edge cuts is searched for LTE cells without a prefix only if so narrow
PART_HZ = 0.96e6  # what is cut out of a frame is a multiple of this wide: half the rate of an FFT over a PSS at 15 kHz
NARROWEST_HZ = 0.9e6  # no channel is narrower than 1.4 MHz; a network's band may miss a column on either side
WEAKEST_DB = 0.5  # nothing is looked for in a band whose level over the floor is lower
GUESS_MARGIN = 4.0  # factor on the energy that a missing prefix needs as proof, where the floor is a guess
LEAST_ENERGY = 100.0  # Hz s, see PrefixEvidence: less is no burst; an SS/PBCH block (3.6 MHz, .29 ms) at 0 dB has 250
SYNC_SECONDS = 0.0105  # two half frames: an LTE downlink has sent its synchronisation signals twice by then
SYNC_DB = 6.0  # level over the floor from which on these signals are found (docs/cell_search.md: detection by SNR)
SAME_EDGE_HZ = 0.5e6  # edges of one carrier differ by less from frame to frame
SAME_CENTER_HZ = 0.3e6  # cells whose centres lie nearer than that share one carrier


@dataclass(frozen=True)
class Evidence:
    """What was found in one band."""

    lte: tuple[LteCell, ...] = ()
    nr: tuple[NrCell, ...] = ()
    prefix: PrefixEvidence | None = None  # None where the band is too narrow, or was too weak to be looked at
    sync_due: bool = False  # whether an LTE downlink here would have shown its synchronisation signals
    whole: bool = False  # whether both edges lie in the capture

    @property
    def proven(self) -> str | None:
        """The technology that is proven, by a cell or by a prefix of 30 kHz, which LTE does not have; or None.

        A prefix of 60 kHz is no proof: it is so rare on the air that chirps are more likely. Two of 1,000 chirps that
        were tuned to mimic a prefix showed 60 kHz, none showed 30 kHz.
        """
        if self.lte or self.nr:
            lte, nr = (max((cell.statistic for cell in cells), default=0) for cells in (self.lte, self.nr))
            return "LTE" if lte >= nr else "NR"
        if self.prefix and self.prefix.outcome == "prefix" and self.prefix.spacing_hz == 30e3:
            return "NR"
        return None


def judge(technology: str, evidence: Evidence, fits_nr: bool, center_hz: float | None = None) -> tuple[str, str, str]:
    """What a band is, on what ground, and in words.

    Args: technology, the network's, "LTE", "NR" or "other"; fits_nr, whether the occupied width is an NR channel's;
    center_hz, of the capture.
    Returns: technology; ground, one of "cell", "prefix", "unproven" and "refuted"; words for the table.
    """
    prefix = evidence.prefix
    if evidence.lte or evidence.nr:
        return evidence.proven, "cell", ", ".join(cell["words"] for cell in cells_plain(evidence, center_hz).values())
    if prefix is None or prefix.outcome == "unknown":
        return technology, "unproven", "unproven" if technology != "other" else "-"
    if prefix.outcome == "none":
        return "other", "refuted", "no LTE or NR prefix"
    if prefix.spacing_hz == 30e3:
        return "NR", "prefix", "prefix 30 kHz"
    if prefix.spacing_hz == 60e3:
        return technology, "unproven", "prefix 60 kHz, unproven"
    if evidence.sync_due and not fits_nr:
        return "other", "refuted", "prefix 15 kHz, no LTE or NR cell"
    if technology == "other":
        technology = "NR" if evidence.sync_due else "LTE"  # a due LTE cell would have been found
    elif evidence.whole and not fits_nr:
        technology = "LTE"  # no NR channel is as wide
    return technology, "unproven", "prefix 15 kHz, unproven"


def nothing_there(evidence: Evidence) -> bool:
    """Whether a band at the noise floor in the mean holds no burst either, not even one SS/PBCH block."""
    return evidence.prefix is None or evidence.prefix.energy < LEAST_ENERGY


def cells_plain(evidence: Evidence, center_hz: float | None) -> dict[str, dict]:
    """{identity: plain values and words for the table} of the cells found, the strongest first.

    Frequencies count from the capture's centre, or are absolute where that is known. The words name the cells' centres
    where these differ: then carriers lie inside one another.
    """
    cells = evidence.lte if evidence.proven == "LTE" else evidence.nr
    offsets = [cell.offset_hz for cell in cells]
    differ = isinstance(cells[0], LteCell) and max(offsets) - min(offsets) > SAME_CENTER_HZ if cells else False
    found = {}
    for cell in cells:
        center = cell.offset_hz + (center_hz or 0.0)
        values = {"cell_id": cell.cell_id, "center_hz": center, "statistic": cell.statistic}
        if isinstance(cell, LteCell):
            values |= {"technology": "LTE", "duplex": cell.duplex, "prefix": cell.prefix}
            about = [cell.duplex] + ["extended prefix"] * (cell.prefix == "extended")
        else:
            values |= {"technology": "NR", "spacing_hz": cell.spacing_hz}
            about = [f"SSB of {cell.spacing_hz / 1e3:.0f} kHz at {center / 1e6:.2f} MHz"]
        about += [f"centre {center / 1e6:.2f} MHz"] * differ
        found[f"{values['technology']} {cell.cell_id}"] = values | {"words": f"cell {cell.cell_id} {', '.join(about)}"}
    return found


def fast_fft(values: np.ndarray) -> np.ndarray:
    """np.fft.fft, by torch."""
    return torch.fft.fft(torch.from_numpy(values)).numpy()


class FrameEvidence:
    """Evidence in up to 40 ms of samples."""

    def __init__(
        self,
        samples: np.ndarray,
        sample_rate: float,
        center_hz: float | None,
        floor: float | None,
        guess: float | None = None,
        blind_seconds: float | None = None,
    ):
        """
        Args:
            samples: complex64 (n,), as received.
            center_hz: of the capture, for the synchronisation raster.
            floor: power per Hz of the noise, None where it is not known.
            guess: the likely floor then; a missing prefix needs GUESS_MARGIN times the energy to be proof.
            blind_seconds: without center_hz NR cells are searched in each band for so long; None: not at all.
        """
        self.samples, self.sample_rate, self.center_hz, self.floor = samples, sample_rate, center_hz, floor
        self.guess = guess if floor is None else None
        self.blind_seconds = blind_seconds

    @cached_property
    def spectrum(self):
        return frame_spectrum(self.samples, self.sample_rate, fast_fft)

    @cached_property
    def cells(self):
        return cell_power(self.samples[: round(NR_SECONDS * self.sample_rate)], self.sample_rate, fast_fft)

    def _lines(self, low_hz, high_hz):
        """Lines of a part of the frame's spectrum, in the order of an FFT around its middle: (lines, rate, middle)."""
        lines, rate = self.spectrum
        width = rate / len(lines)  # of a line
        first, stop = (int(np.clip(round(hz / width), -len(lines) // 2, len(lines) // 2)) for hz in (low_hz, high_hz))
        unit = max(1, round(PART_HZ / width))  # such sizes keep all later transforms fast
        size = unit * smooth_size(-(-(stop - first) // unit))
        if size <= len(lines):
            first = int(np.clip(first - (size - (stop - first)) // 2, -len(lines) // 2, len(lines) // 2 - size))
            stop = first + size
        stop -= (stop - first) % 2
        middle = (first + stop) // 2
        above, below = (lines[np.arange(*ends) % len(lines)] for ends in ((middle, stop), (first, middle)))
        return np.concatenate([above, below]), (stop - first) * width, middle * width

    def around(self, low_hz: float, high_hz: float) -> tuple[np.ndarray, float, float]:
        """Samples of a part of the capture, cut out of the frame's spectrum: (complex64 (n,), rate, centre in Hz)."""
        part, rate, middle = self._lines(low_hz, high_hz)
        samples = torch.fft.ifft(torch.from_numpy(part)).numpy()
        return samples * np.float32(rate / self.sample_rate), rate, middle

    def part(self, low_hz: float, high_hz: float) -> Spectrum:
        """Spectrum of a part of the capture, for a search for cells."""
        part, rate, middle = self._lines(low_hz, high_hz)
        seconds = len(self.samples) / self.sample_rate
        return Spectrum(without_lines(part, seconds), rate, middle, seconds, 0.0, fast_fft)

    def prefix(self, low_hz: float, high_hz: float) -> PrefixEvidence | None:
        """The cyclic prefix in a band; None where the band is too narrow.

        The phase of the correlation depends on a carrier's centre. So several carriers in one band may cancel each
        other: where the whole band shows no prefix, its pieces are looked at.
        """
        try:
            whole = self._prefix(low_hz, high_hz)
        except ValueError:
            return None
        count = int((high_hz - low_hz) // PIECE_HZ)
        if whole.outcome == "prefix" or count < 2:
            return whole
        edges = np.linspace(low_hz, high_hz, count + 1)
        pieces = [self._prefix(low, high) for low, high in zip(edges, edges[1:], strict=False)]
        found = [evidence for evidence in pieces if evidence.outcome == "prefix"]
        return max(found, key=lambda evidence: max(evidence.contrast.values()), default=whole)

    @property
    def likely_floor(self):
        return self.floor if self.floor is not None else self.guess

    def _prefix(self, low_hz, high_hz):
        evidence = cyclic_prefix(band_samples(self.spectrum, low_hz, high_hz), self.likely_floor)
        if self.floor is None and evidence.outcome == "none" and evidence.energy < GUESS_MARGIN * evidence.enough:
            return evidence._replace(outcome="unknown")
        return evidence

    def of(self, low_hz: float, high_hz: float, cut: bool = False, level_db: float | None = None) -> Evidence:
        """Evidence in a band: its prefix, then the cells that are possible with this prefix.

        Args:
            low_hz, high_hz: edges against the capture's centre.
            cut: whether the carrier goes on outside the capture.
            level_db: mean power of the band over the floor, None where it is not known.
        """
        if high_hz - low_hz < NARROWEST_HZ or (level_db is not None and level_db < WEAKEST_DB):
            return Evidence()
        half = self.sample_rate / 2
        low_hz, high_hz = max(low_hz, -half), min(high_hz, half)

        # Prefix
        prefix = self.prefix(low_hz, high_hz)
        outcome = prefix.outcome if prefix else "unknown"
        spacing = prefix.spacing_hz if prefix and prefix.spacing_hz in (15e3, 30e3) else None
        timings = symbol_timings(self.spectrum, low_hz, high_hz, spacing, self.likely_floor) if spacing else []

        # Cells. In a wide band without a prefix only the middle is searched: the whole band would take a second.
        lte, nr = [], []
        if outcome == "unknown" and (not cut or high_hz - low_hz <= NARROW_HZ) or spacing == 15e3:
            lte = self._lte(low_hz, high_hz, cut, spacing == 15e3, timings)
        if not lte and (self.center_hz or self.blind_seconds) and outcome != "none":
            nr = self._nr(low_hz, high_hz, spacing, timings)

        # Whether an LTE cell would have been found
        middle = (low_hz + high_hz) / 2
        whole = not cut and abs(middle) + PSS_HZ / 2 + SLACK_HZ < half
        due = whole and len(self.samples) >= SYNC_SECONDS * self.sample_rate and (level_db or 0) >= SYNC_DB
        return Evidence(tuple(lte), tuple(nr), prefix, bool(due), not cut)

    def _nr(self, low_hz, high_hz, spacing, timings):
        """NR cells at the raster points of a band, with blocks of the prefix's spacing where that is known.

        In a wide band without a prefix most of the time and most frequencies are excluded first.
        """
        if timings:
            part = self.part(low_hz, high_hz)
            part = part._replace(seconds=min(part.seconds, NR_SECONDS))
            return nr_cells_aligned(part, (low_hz, high_hz), self.center_hz, timings)
        if spacing or not self.center_hz or not self.floor or high_hz - low_hz < SCREENED_HZ:
            return self._nr_part(low_hz, high_hz, (0.0, NR_SECONDS), spacing)
        cells = []
        for spacing in (15e3, 30e3):
            half = SIZE * spacing / 2
            centers = nr_centers(low_hz + half, high_hz - half, self.center_hz, spacing)
            if not len(centers.hz):
                continue
            for place in possible_blocks(self.cells, centers.hz, spacing, self.floor):
                edges = place.first_hz - half - RASTER_SLACK_HZ, place.last_hz + half + RASTER_SLACK_HZ
                cells += self._nr_part(*edges, (place.start_s, place.stop_s), spacing)
        return best_of_each(cells)

    def _nr_part(self, low_hz, high_hz, seconds, spacing):
        """NR cells in a part of the frame, seconds: from when to when."""
        samples, rate, middle = self.around(low_hz, high_hz)
        if rate < BLOCK_HZ:
            return []
        known = {"spacing_hz": spacing, "blind_seconds": None if self.center_hz else self.blind_seconds}
        first, stop = (round(time * rate) for time in seconds)
        center_hz, band = self.center_hz and self.center_hz + middle, (low_hz - middle, high_hz - middle)
        cells = nr_cells(samples[first:stop], rate, band, center_hz, **known)
        return [cell._replace(offset_hz=cell.offset_hz + middle, start_s=cell.start_s + first / rate) for cell in cells]

    def _lte(self, low_hz, high_hz, cut, has_prefix, timings):
        """LTE cells around the band's middle, or anywhere in a band that the capture's edge cuts.

        has_prefix: the band has a prefix of 15 kHz, so it is also searched elsewhere if the middle has no cell, or at
        once if it is too wide for one carrier. timings: of its symbols.
        """
        if high_hz - low_hz < PSS_HZ:
            low_hz, high_hz = (low_hz + high_hz - PSS_HZ) / 2, (low_hz + high_hz + PSS_HZ) / 2
        anywhere = max(SLACK_HZ, (high_hz - low_hz - PSS_HZ) / 2)
        several = high_hz - low_hz > LTE_WIDEST_HZ  # carriers; a cell in the middle may not be the only one
        if cut or has_prefix and several:
            slacks = [anywhere]
        elif has_prefix:
            slacks = [SLACK_HZ, anywhere]
        else:
            slacks = [SLACK_HZ]
        for slack in slacks:
            centers = lte_centers(low_hz, high_hz, self.center_hz, slack)
            if not len(centers):
                continue
            edges = centers.min() - BESIDE_HZ, centers.max() + BESIDE_HZ
            if timings:
                cells = lte_cells_aligned(self.part(*edges), centers, self.center_hz, timings)
            else:
                samples, rate, middle = self.around(*edges)
                cells = lte_cells(samples, rate, centers - middle, self.center_hz and self.center_hz + middle)
                cells = [cell._replace(offset_hz=cell.offset_hz + middle) for cell in cells]
            if cells:
                return cells
        return []


def apart(cells: tuple[LteCell, ...]) -> list[list[LteCell]]:
    """LTE cells grouped by carrier, ascending: cells whose centres lie within SAME_CENTER_HZ share a carrier."""
    groups: list[list[LteCell]] = []
    for cell in sorted(cells, key=lambda cell: cell.offset_hz):
        if groups and cell.offset_hz - groups[-1][-1].offset_hz < SAME_CENTER_HZ:
            groups[-1].append(cell)
        else:
            groups.append([cell])
    return groups


class Proofs:
    """Evidence of bands, kept for a while: a second of the recording, or less if nothing was found."""

    def __init__(self, seconds: float = 1.0, unknown_seconds: float = 0.2):
        self.seconds, self.unknown_seconds = seconds, unknown_seconds
        # (lower, upper edge against the capture's centre, this centre, time in s, what was found)
        self.known: list[tuple[float, float, float | None, float, Evidence]] = []

    def of(self, look: FrameEvidence, time_s: float, low_hz: float, high_hz: float, **about) -> Evidence:
        """The result of `look.of(low_hz, high_hz, **about)`, or the one for these edges from a short time ago."""
        for i, (low, high, center, before, evidence) in enumerate(self.known):
            if center == look.center_hz and max(abs(low - low_hz), abs(high - high_hz)) <= SAME_EDGE_HZ:
                known = evidence.proven or (evidence.prefix and evidence.prefix.outcome != "unknown")
                if time_s - before < (self.seconds if known else self.unknown_seconds):
                    return evidence
                del self.known[i]
                break
        evidence = look.of(low_hz, high_hz, **about)
        self.known.append((low_hz, high_hz, look.center_hz, time_s, evidence))
        return evidence
