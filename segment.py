"""Find LTE and 5G NR carriers in a radio recording.

    python segment.py capture.sigmf-meta                                   # table, runs/segment/, one picture a frame
    python segment.py capture.sigmf-meta --annotate                        # and write them into the metadata
    python segment.py capture.bin --datatype ci8 --sample-rate 19.2e6 --center-frequency 1815.3e6
    python segment.py spectrogram.png                                      # 256x256 pixels of 240 kHz x 156 us

About a second for each 40 ms of 61.44 MHz on one core. The network labels pixels; a carrier is a run of columns that a
frame's majority of time gives one technology. Edges mean the channel, guard bands included, to 240 kHz. `active` is the
share of time in which a carrier's mean level is 2 dB above the noise, `confidence` the mean softmax probability.
"""

import argparse
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

from data import DataError
from data.augment import colour_index
from data.evidence import WEAKEST_DB, Evidence, FrameEvidence, Proofs, apart, cells_plain, judge, nothing_there
from data.lte_nr import LTE_RB, standard_channels
from data.recording import Frame, FrameNotes, Recording, columns, open_recording, read_meta
from data.spectrogram import FRAME_SAMPLES, HZ_PER_PIXEL, PARULA, SAMPLE_RATE, SIZE, shown_power, spectrogram_image
from data.spectrum_sensing import CLASSES
from models import ModelError
from models.rebuild import rebuild
from models.segmentation import logits
from utils import checkpoint, pictures
from utils.bands import MIN_COLUMNS, STRONG_DB, find_bands, fit_bands, lines, narrow_peaks, unclaimed, whole_bands
from utils.carriers import Calibration, Carrier, join, merge, share_of_recording, table
from utils.runs import RunError, command, run, write_json

GENERATOR = "spectrum sensing, segment.py"  # core:generator of our annotations
WEIGHTS = ("weights/seg_student.pt", "weights/seg_teacher.pt")
ACTIVE_DB = 2.0
OTHER_COLOUR = (120, 120, 120)
LTE_HZ = tuple(LTE_RB)  # channel widths
SAME = 0.3e6  # Hz; edges that agree
SIDE_BY_SIDE_HZ = 1.5e6  # a carrier: by how much edges and gaps of several in one band may miss
WIDEST_HZ = {"LTE": 20.5e6, "NR": 101e6}  # no standard has wider channels; half a megahertz for the network's edges
NARROWEST_HZ = {"LTE": 0.9e6, "NR": 2.5e6}  # 1.08 and 2.7 MHz are occupied at the least; edges may miss a column
SILENT_COLUMNS = 6  # 1.44 MHz: more than the guard band of a 20 MHz LTE channel, or than a fade is wide


@dataclass(frozen=True)
class View:
    """What the network makes of 40 ms: rows are time, the last row first; columns ascending frequency."""

    start: int  # first sample that no view before has had
    count: int  # and how many such there are
    center_hz: float | None
    span_hz: float  # width of the capture
    column_hz: float
    picture: np.ndarray  # uint8 (256, C, 3)
    probability: np.ndarray  # float32 (3, 256, C)
    power: np.ndarray | None  # float32 (256, C), relative to any unit
    floor: float = math.nan  # of `power`, where no column is noise
    look: FrameEvidence | None = None  # the samples as received; None for a picture
    rows: slice = field(default_factory=lambda: slice(0, SIZE))  # of these samples; the others show some once more


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help=".sigmf-meta, bare I/Q samples, or a spectrogram .png")
    parser.add_argument("--datatype", help="of bare samples: ci8, cu8, ci16_le, cf32_le")
    parser.add_argument("--sample-rate", type=float, metavar="HZ")
    parser.add_argument("--center-frequency", type=float, metavar="HZ")
    parser.add_argument("--channel", type=int, default=0, help="of a recording with several, from 0")
    parser.add_argument("--checkpoint", type=Path, help=f"default {WEIGHTS[0]} or else {WEIGHTS[1]}")
    parser.add_argument("--out", type=Path, default=Path("runs/segment"))
    parser.add_argument("--annotate", action="store_true", help="write the carriers into the SigMF metadata")
    parser.add_argument(
        "--blind-search", type=float, metavar="SECONDS", help="look for NR cells though no centre frequency is known"
    )
    parser.add_argument("--no-evidence", action="store_true", help="let the network decide alone")
    parser.add_argument("--pictures", type=int, metavar="N", help="at most so many, of the first frames; default all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    if args.sample_rate is not None and not 0 < args.sample_rate < math.inf:
        parser.error(f"--sample-rate {args.sample_rate:g} is no rate")
    if args.blind_search is not None and not 0 < args.blind_search < math.inf:
        parser.error(f"--blind-search {args.blind_search:g} is no time in seconds")
    if args.center_frequency is not None and not math.isfinite(args.center_frequency):
        parser.error(f"--center-frequency {args.center_frequency:g} is no frequency")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    # Recording and network
    recording = None
    if args.recording.suffix.lower() == ".png":
        if args.annotate:
            raise RunError(f"{args.recording}: a picture can't be annotated; leave --annotate out")
        picture, notes = read_picture(args.recording)
    else:
        recording = open_recording(args.recording, args.datatype, args.sample_rate, args.center_frequency, args.channel)
        notes = list(recording.notes)
        meta_path = recording.meta_path or recording.path.with_name(recording.path.name + ".sigmf-meta")
        if args.annotate and not recording.meta_path and meta_path.exists():
            raise RunError(f"{meta_path.name} is there already: name it instead of {args.recording.name}")
    logits_of, weights = load_network(args.checkpoint, args.device)
    calibration = Calibration.beside(weights)

    # 40 ms at a time
    told, proofs = FrameNotes(), Proofs()
    if recording:
        views = (look_at(told.add(frame), logits_of) for frame in recording.frames())
    else:
        views = iter([look_at_picture(picture, logits_of, args.sample_rate or SAMPLE_RATE, args.center_frequency)])
        notes.append("a picture has no samples: the evidence is -, the network alone decides")
    carriers, seen, frames = [], Counter(), 0
    remove_pictures(args.out)
    for view in tqdm(views, total=len(recording) if recording else 1, unit="frame", file=sys.stderr):
        if view.look:
            view.look.blind_seconds = args.blind_search
        found = find_carriers(view, None if args.no_evidence else proofs)
        merge(carriers, found)
        seen[view.center_hz, view.span_hz] += view.count
        if args.pictures is None or frames < args.pictures:
            save_picture(overlay(view, found), args.out / f"frame_{frames:05d}.png")
        frames += 1
    carriers = join(carriers)
    share_of_recording(carriers, seen)
    calibration.apply(carriers, with_samples=recording is not None and not args.no_evidence)
    carriers.sort(key=lambda carrier: (not carrier.absolute, carrier.lower_hz, carrier.upper_hz))

    # Report
    if recording:
        notes += told.lines(recording)
    print(table(carriers, recording.sample_rate if recording else None, recording.offset if recording else 0))
    for note in notes:
        print(f"note: {note}")
    result = {"recording": args.recording.name, "frames": frames, "checkpoint": str(weights), "command": command()}
    result |= {"notes": notes, "carriers": [carrier.plain() | times_of(carrier, recording) for carrier in carriers]}
    write_json(args.out / "result.json", result)
    if args.annotate:
        write_json(meta_path, with_annotations(recording, carriers))
        print(f"{meta_path}: annotated")
    return 0


def times_of(carrier: Carrier, recording: Recording | None) -> dict:
    """When a carrier was first and last there, in seconds from the recording's start."""
    if recording is None or not carrier.runs:
        return {"first_s": None, "last_s": None}
    ends = {"first_s": carrier.runs[0][0], "last_s": sum(carrier.runs[-1])}
    return {name: (end - recording.offset) / recording.sample_rate for name, end in ends.items()}


def load_network(path: Path | None, device: str) -> tuple[Callable, Path]:
    """What gives pictures uint8 (N, 3, H, W) their logits, on the device, and the file it came from."""
    if path is None:
        found = [file for name in WEIGHTS if (file := Path(__file__).parent / name).is_file()]
        if not found:
            raise RunError(f"no {' or '.join(WEIGHTS)} here: train one with train_seg.py and name it with --checkpoint")
        path = found[0]
    data = checkpoint.load(path)
    if data.get("kind", "segmentation") != "segmentation":
        raise ModelError(f"{path}: is a network for {data['kind']}, not for segmentation; name another --checkpoint")
    try:
        model = rebuild(data).to(device, memory_format=torch.channels_last).eval()
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that it lacks
        raise RunError(f"--device {device} can't be used ({str(error).splitlines()[0]}); try --device cpu") from error
    return partial(logits, model, size=data.get("frame_size")), path


@torch.inference_mode()
def predict(logits_of: Callable, picture: np.ndarray) -> np.ndarray:
    """uint8 (256, 256, 3) -> softmax probability of each class, float32 (3, 256, 256)."""
    image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]  # (1, 3, 256, 256)
    return logits_of(image)[0].float().softmax(0).cpu().numpy()


def look_at(frame: Frame, logits_of: Callable) -> View:
    """Label a frame of a recording. Columns that the recording does not have never leave this function."""
    width = columns(frame.sample_rate)
    probability, weight = np.zeros((len(CLASSES), SIZE, width), np.float32), np.zeros(width, np.float32)
    picture, power = np.zeros((SIZE, width, 3), np.uint8), np.zeros((SIZE, width), np.float32)
    from_edge = 1 + np.minimum(np.arange(SIZE), SIZE - 1 - np.arange(SIZE))
    nearest = np.zeros(width, int)  # distance of a column from the edge of the piece that shows it
    for column, iq in frame.pieces():
        first = column + width // 2  # the capture's columns are numbered from 0
        here = slice(max(0, first), min(width, first + SIZE))
        there = slice(here.start - first, here.stop - first)
        image = spectrogram_image(iq, robust=frame.mended is not None)
        probability[:, :, here] += predict(logits_of, image)[:, :, there] * from_edge[there]
        weight[here] += from_edge[there]
        better = np.flatnonzero(from_edge[there] > nearest[here])
        shown = shown_power(iq)[::-1]
        for whole, part in ((picture, image), (power, shown)):
            whole[:, here.start + better] = part[:, there.start + better]
        nearest[here.start + better] = from_edge[there.start + better]
    return View(
        frame.new_start,
        frame.new_count,
        frame.center_hz,
        frame.sample_rate,
        HZ_PER_PIXEL,
        picture,
        probability / weight,
        power,
        frame.floor,
        FrameEvidence(
            frame.samples,
            frame.sample_rate,
            frame.center_hz,
            frame.floor if frame.floor_kind != "guessed" and frame.floor > 0 else None,
            frame.floor if frame.floor > 0 else None,
        ),
        frame.new_rows,
    )


def read_picture(path: Path) -> tuple[np.ndarray, list[str]]:
    """A spectrogram as uint8 (256, 256, 3), and what is odd about it."""
    try:
        with Image.open(path) as image:
            size, picture = image.size, image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.NEAREST)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is no readable picture ({error}); name a .png or a recording") from error
    odd = f"the picture has {size[0]}x{size[1]} pixels and was scaled to {SIZE}x{SIZE}"
    return np.array(picture), [] if size == (SIZE, SIZE) else [odd]


def look_at_picture(picture: np.ndarray, logits_of: Callable, span_hz: float, center_hz: float | None) -> View:
    """Label a spectrogram that comes as a picture; its level in dB is told by the spread of its noise."""
    probability = predict(logits_of, picture)
    index, _ = colour_index(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None], torch.from_numpy(PARULA))
    noise = index[0].numpy()[:, probability.mean(1).argmax(0) == 0]
    # In dB, the middle half of exponentially distributed power spans 10 log10(ln 4 / ln (4/3)) = 6.8.
    quarter = np.subtract(*np.percentile(noise, (75, 25))) if noise.size else 0
    power = 10 ** (index[0].numpy() * (0.683 / quarter)) if quarter > 0 else None
    return View(0, FRAME_SAMPLES, center_hz, span_hz, span_hz / SIZE, picture, probability, power)


def find_carriers(view: View, proofs: Proofs | None = None) -> list[Carrier]:
    """The rows of one frame: bands of the network, and with `proofs` what the samples prove of them.

    A row is as wide as the standard channel that fits, or else as the network sees it. Then a channel's edges lie, on
    average, in the middle of its outermost columns.
    """
    label = view.probability.mean(1).argmax(0)  # (C,): the vote over time
    floor = view.floor
    if view.power is not None and (label == 0).sum() >= MIN_COLUMNS:
        floor = float(np.median(view.power[:, label == 0])) / math.log(2)  # exponentially distributed: median to mean
    label = without_silence(label, view.power, floor)

    # Bands, and the channels that fit them
    bands, power = find_bands(label), None
    fits, fits_nr = [(kind, None) for kind, _, _ in bands], [False] * len(bands)
    if view.power is not None and abs(view.column_hz / HZ_PER_PIXEL - 1) < 0.01:
        power, channels = view.power.mean(0), standard_channels(CLASSES, view.column_hz)
        bands = whole_bands(bands, power, floor, channels)
        belief = np.log(view.probability.clip(1e-6)).mean(1)  # (3, C)
        fits = fit_bands(bands, belief, power, channels)
        by_width = fit_bands(bands, np.zeros_like(belief), power, channels)
        fits_nr = [CLASSES[kind] == "NR" and edges is not None for kind, edges in by_width]

    # Rows
    rows = []
    for (_, first, stop), (kind, edges), nr in zip(bands, fits, fits_nr, strict=True):
        rows += carriers_of_band(view, (kind, first, stop), edges, floor, nr, proofs)
    if proofs and view.look and power is not None:
        for first, stop in unclaimed(label, power, floor):
            rows += carriers_of_band(view, (0, first, stop), None, floor, False, proofs)
    if proofs and view.look and not rows:  # a carrier that fills the capture leaves no noise to stand out from
        found = carriers_of_band(view, (0, 0, len(label)), None, math.nan, False, proofs)
        rows += [row for row in found if row.ground in ("cell", "prefix")]
    rows.sort(key=lambda row: (row.lower_hz, row.upper_hz))
    for below, above in zip(rows, rows[1:], strict=False):  # rows of one frame do not overlap
        if below.upper_hz > above.lower_hz:
            below.upper_hz = above.lower_hz = (below.upper_hz + above.lower_hz) / 2
    return [row for row in rows if row.upper_hz > row.lower_hz]


def carriers_of_band(
    view: View,
    band: tuple[int, int, int],
    edges: tuple[float, float] | None,
    floor: float,
    fits_nr: bool,
    proofs: Proofs | None,
) -> list[Carrier]:
    """Rows of one band: one, or one for each LTE carrier in it whose cells show that there are several.

    Args: band, class (0: the network calls it noise), first column, behind the last; edges of the channel that fits, in
    columns, or None; floor of view.power; fits_nr, whether the occupied width alone says NR.
    """
    kind, first, stop = band
    center, columns = view.center_hz or 0.0, view.probability.shape[2]
    below, above = first <= 1, stop >= columns - 1
    lower, upper = (center + (edge - columns / 2) * view.column_hz for edge in edges or (first + 0.5, stop - 0.5))
    lower = center - view.span_hz / 2 if below else lower
    upper = center + view.span_hz / 2 if above else upper

    # Level, and the share of time above the floor, without lines
    active = level_db = None
    if view.power is not None and floor > 0:
        power = view.power[view.rows, first:stop]  # (rows, columns)
        clean = power[:, ~lines(power.mean(0))]
        clean = clean if clean.shape[1] else power
        active = float((clean.mean(1) > floor * 10 ** (ACTIVE_DB / 10)).mean())
        level_db = float(10 * np.log10(max(clean.mean() / floor, 1e-3)))

    # Evidence
    name, evidence, words, ground = CLASSES[kind] if kind else "other", Evidence(), "-", "unproven"
    if proofs and view.look:
        time = view.start / view.look.sample_rate
        # Bursts may leave the mean at the floor; `of` looks at them where no level is given.
        about = {"cut": below or above, "level_db": None if active and level_db < WEAKEST_DB else level_db}
        evidence = proofs.of(view.look, time, lower - center, upper - center, **about)
        name, ground, words = judge(name, evidence, fits_nr, view.center_hz)
        if ground == "unproven" and name != "other":
            if too_narrow(view, band, floor, NARROWEST_HZ[name], upper - lower):
                name, ground, words = "other", "refuted", f"narrower than any {name} channel"
            elif level_db is not None and level_db < WEAKEST_DB and nothing_there(evidence):
                name, words = "other", "no more than the noise floor"
    if ground != "cell" and upper - lower > WIDEST_HZ.get(name, math.inf):
        name = "NR" if name == "LTE" and upper - lower < WIDEST_HZ["NR"] and ground != "refuted" else "other"
    probability = float(view.probability[CLASSES.index(name) if name != "other" else 0, :, first:stop].mean())
    if name != "other" and ground == "unproven" and evidence.prefix and evidence.prefix.outcome == "prefix":
        probability = float(1 - view.probability[0, :, first:stop].mean())
    row = partial(
        Carrier,
        name,
        absolute=view.center_hz is not None,
        active=active,
        confidence=probability,
        weight=view.count,
        level_db=level_db,
        ground=ground,
    )
    whole = {"lower_hz": lower, "upper_hz": upper, "cut_below": below, "cut_above": above}
    cells = cells_plain(evidence, view.center_hz) if ground == "cell" else {}
    parts = lte_carriers(evidence, lower, upper, center, (below, above)) if name == "LTE" and ground == "cell" else []
    if len(parts) < 2 and name == "LTE" and ground == "cell" and upper - lower > WIDEST_HZ["LTE"]:
        parts = lte_channels(evidence, lower, upper, center)
    elif len(parts) < 2:
        return [row(**whole, evidence=words, cells=cells, runs=[[view.start, view.count]])]
    rows = beside(view, band, parts, floor, proofs) if upper - lower > WIDEST_HZ["LTE"] else []
    for low, high, inside in parts:
        own = cells_plain(Evidence(lte=tuple(inside)), view.center_hz)
        cut = {"cut_below": below and low <= lower + SAME, "cut_above": above and high >= upper - SAME}
        said = ", ".join(cell["words"] for cell in own.values())
        edge = {"lower_hz": max(low, center - view.span_hz / 2), "upper_hz": min(high, center + view.span_hz / 2)}
        rows.append(row(**edge, **cut, evidence=said, cells=own, runs=[[view.start, view.count]]))
    return rows


def too_narrow(view: View, band: tuple[int, int, int], floor: float, least_hz: float, width_hz: float) -> bool:
    """Whether a band, or all that stands out in it, is narrower than `least_hz`, as no channel is."""
    _, first, stop = band
    columns = view.probability.shape[2]
    if width_hz < least_hz and first > 1 and stop < columns - 1:
        return True
    if view.power is None or not floor > 0:
        return False
    widest = narrow_peaks(view.power[:, first:stop].mean(0), floor)
    edges = view.power[:, [0, -1]].mean(0) > floor * 10 ** (STRONG_DB / 10)  # what reaches the capture's edge goes on
    reaches = (first <= 1 and edges[0]) or (stop >= columns - 1 and edges[1])
    return widest is not None and not reaches and (widest - 1) * view.column_hz < least_hz


def lte_carriers(
    evidence: Evidence, lower: float, upper: float, center: float, cut: tuple[bool, bool]
) -> list[tuple[float, float, list]]:
    """LTE carriers side by side in one band: [(lower edge, upper edge, cells)]; empty where they can't be.

    The cells give the centres. The widths are those of the standard for which the channels do not overlap, leave little
    between them and end where the band ends.
    """
    groups = apart(evidence.lte)
    if not 2 <= len(groups) <= 6:
        return []
    middles = [center + float(np.mean([cell.offset_hz for cell in group])) for group in groups]
    best, found = SIDE_BY_SIDE_HZ * len(groups), []
    for widths in itertools.product(LTE_HZ, repeat=len(groups)):
        edges = [(middle - width / 2, middle + width / 2) for middle, width in zip(middles, widths, strict=True)]
        between = [above[0] - below[1] for below, above in zip(edges, edges[1:], strict=False)]
        if min(between) < -SAME:
            continue
        inside, outside = edges[0][0] - lower, upper - edges[-1][1]  # positive where the band goes on beyond
        missed = max(inside, 0.0 if cut[0] else -inside) + max(outside, 0.0 if cut[1] else -outside)
        missed += sum(max(gap, 0.0) for gap in between)
        if missed < best:
            best, found = missed, edges
    return [(*edge, group) for edge, group in zip(found, groups, strict=True)] if found else []


def lte_channels(evidence: Evidence, lower: float, upper: float, center: float) -> list[tuple[float, float, list]]:
    """The channels of the cells found in a band that is wider than any LTE channel, as `lte_carriers` gives them.

    Other carriers lie in such a band whose cells were not found. A channel is the widest of the standard that stays in
    the band and leaves the next centre its own half; at least the narrowest.
    """
    groups = apart(evidence.lte)
    middles = [center + float(np.mean([cell.offset_hz for cell in group])) for group in groups]
    ends = [lower - SAME, *middles, upper + SAME]
    channels = []
    for i, (middle, group) in enumerate(zip(middles, groups, strict=True), 1):
        below = middle - ends[i - 1] if i == 1 else (middle - ends[i - 1]) / 2
        above = ends[i + 1] - middle if i == len(groups) else (ends[i + 1] - middle) / 2
        fitting = [width for width in LTE_HZ if width / 2 <= min(below, above) + SAME]
        half = max(fitting, default=min(LTE_HZ)) / 2
        channels.append((middle - half, middle + half, group))
    return channels


def beside(
    view: View, band: tuple[int, int, int], channels: list[tuple[float, float, list]], floor: float, proofs: Proofs
) -> list[Carrier]:
    """Rows of what a band holds outside the channels of its LTE cells."""
    kind, first, stop = band
    zero = view.probability.shape[2] / 2 - (view.center_hz or 0.0) / view.column_hz
    edges = [zero + hz / view.column_hz for low, high, _ in channels for hz in (low, high)]  # in columns
    ends = [first, *(min(max(round(edge), first), stop) for edge in edges), stop]
    free = [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if b - a >= MIN_COLUMNS]
    return [row for a, b in free for row in carriers_of_band(view, (kind, a, b), None, floor, False, proofs)]


def without_silence(label: np.ndarray, power: np.ndarray | None, floor: float) -> np.ndarray:
    """Call those columns noise, int (C,), that the network gives to LTE although no LTE can be there.

    LTE sends reference signals over its whole channel in every downlink subframe (TS 36.211, 6.10.1). So a wide
    stretch that stays at the noise all the time, while the band rises at least 10 dB above it, lies between carriers.
    These keep the guard band, 5% of a channel, that belongs to them. NR has no such signals and is left alone.
    """
    if power is None or len(power) < SIZE // 2 or not floor > 0:
        return label
    peak = 10 * np.log10(np.quantile(power, 0.97, axis=0) / (floor * math.log(1 / 0.03)))  # dB; 0 for noise
    label = label.copy()
    for kind, first, stop in find_bands(label):
        inside = peak[first:stop]
        if CLASSES[kind] != "LTE" or np.percentile(inside, 75) < 10:
            continue
        silent = [run[1:] for run in find_bands((inside < 2.5).astype(int)) if run[2] - run[1] >= SILENT_COLUMNS]
        label[first:stop] = 0
        cuts = [0, *(column for stretch in silent for column in stretch), len(inside)]
        for start, end in zip(cuts[::2], cuts[1::2], strict=True):
            guard = int(0.05 * (end - start))
            label[first + max(0, start - guard) : first + min(len(inside), end + guard)] = kind
    return label


def overlay(view: View, carriers: list[Carrier]) -> Image.Image:
    """The spectrogram, and its labels: colours are pixels' classes, bars above them the carriers; MHz below."""
    picture = view.picture[view.rows]
    rows, width = picture.shape[:2]
    label = torch.from_numpy(view.probability[:, view.rows].argmax(0))
    grey = np.broadcast_to(picture.mean(2, keepdims=True), picture.shape)
    painted = np.where(label[..., None] > 0, 0.5 * grey + 0.5 * pictures.COLOURS[label].numpy(), grey).astype(np.uint8)

    wide, high, top, gap = width * math.ceil(400 / width), rows * 2, 24, 12
    low = (view.center_hz or 0.0) - view.span_hz / 2
    canvas = Image.new("RGB", (2 * wide + 3 * gap, top + high + 20), "white")
    draw = ImageDraw.Draw(canvas)
    for left, part in ((gap, picture), (wide + 2 * gap, painted)):
        canvas.paste(Image.fromarray(part).resize((wide, high), Image.Resampling.NEAREST), (left, top))
        for tick, anchor in enumerate(("la", "ma", "ma", "ma", "ra")):
            x, hz = left + round(tick / 4 * (wide - 1)), low + tick / 4 * view.span_hz
            draw.line((x, top + high, x, top + high + 4), fill="black")
            draw.text((x, top + high + 6), f"{hz / 1e6:.2f}", fill="black", anchor=anchor)
    for c in carriers:
        first, stop = (wide + 2 * gap + (hz - low) / view.span_hz * wide for hz in (c.lower_hz, c.upper_hz))
        known = c.technology in CLASSES
        colour = tuple(pictures.COLOURS[CLASSES.index(c.technology)].tolist()) if known else OTHER_COLOUR
        draw.rectangle((first, top - 6, stop, top - 2), fill=colour)
        draw.text(((first + stop) / 2, 3), f"{c.technology} {c.confidence:.2f}", fill="black", anchor="ma")
    draw.text((gap, 3), f"from sample {view.start} (below) on, MHz", fill="black")
    return canvas


def remove_pictures(folder: Path) -> None:
    """Those of an earlier recording would stand beside the new table."""
    try:
        for old in folder.glob("frame_[0-9][0-9][0-9][0-9][0-9].png"):
            old.unlink()
    except OSError as error:
        raise RunError(f"{folder}: can't be changed ({error.strerror}); choose another folder with --out") from error


def save_picture(picture: Image.Image, path: Path) -> None:
    try:
        pictures.save(picture, path)
    except OSError as error:
        raise RunError(f"{path}: can't be written ({error.strerror}); choose another folder with --out") from error


def with_annotations(recording: Recording, carriers: list[Carrier]) -> dict:
    """The recording's metadata, as it is on disk now, with our annotations in place of those of an earlier run."""
    if recording.meta_path:
        meta = read_meta(recording.meta_path)
    else:  # SigMF calls bare samples a non-conforming dataset; its metadata names the file
        known = {"core:datatype": recording.datatype, "core:sample_rate": recording.sample_rate}
        named = {"core:version": "1.0.0", "core:dataset": recording.path.name}
        center = recording.captures[0].center_hz
        capture = {"core:sample_start": 0} | ({} if center is None else {"core:frequency": center})
        meta = {"global": known | named, "captures": [capture], "annotations": []}
    ours = []
    for carrier in carriers:
        active = "" if carrier.active is None else f", active {100 * carrier.active:.0f} % of the time"
        for start, count in carrier.runs:
            ours.append(
                {
                    "core:sample_start": start,
                    "core:sample_count": count,
                    "core:freq_lower_edge": carrier.lower_hz,
                    "core:freq_upper_edge": carrier.upper_hz,
                    "core:label": carrier.technology,
                    "core:generator": GENERATOR,
                    "core:comment": f"confidence {carrier.confidence:.2f}{active}, evidence: {carrier.evidence}",
                }
            )
    kept = [entry for entry in meta["annotations"] if entry.get("core:generator") != GENERATOR]
    return meta | {"annotations": sorted(kept + ours, key=lambda entry: entry.get("core:sample_start", 0))}


if __name__ == "__main__":
    sys.exit(run(main, DataError, ModelError, checkpoint.CheckpointError))
