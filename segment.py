"""Find LTE and 5G NR carriers in a radio recording.

    python segment.py capture.sigmf-meta                                   # table, runs/segment/, one picture a frame
    python segment.py capture.sigmf-meta --annotate                        # and write them into the metadata
    python segment.py capture.bin --datatype ci8 --sample-rate 19.2e6 --center-frequency 1815.3e6
    python segment.py spectrogram.png                                      # 256x256 pixels of 240 kHz x 156 us

Processing takes about 1 s per 40 ms of 61.44 MHz on one core. A frame is 40 ms of the recording. The network labels the
pixels of its spectrogram. Neighbouring columns whose most probable class, on average over time, is the same technology
are a band. Then the samples are searched for evidence (docs/evidence.md), and a band becomes one or more carriers, the
rows of the table. Edges are those of the channel, guard bands included, right to about 240 kHz. `active` is the share
of time in which a carrier's mean level is more than 2 dB above the noise. `confidence` is the chance that the row is
right, measured with experiments/confidence.py. The folder --out gets the pictures and result.json.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import DataError
from data.augment import colormap_index
from data.evidence import FrameEvidence, Proofs
from data.recording import Frame, FrameNotes, Recording, columns, open_recording, read_meta
from data.spectrogram import FRAME_SAMPLES, HZ_PER_PIXEL, PARULA, SAMPLE_RATE, SIZE, shown_power, spectrogram_image
from data.spectrum_sensing import CLASSES
from models import ModelError
from models.rebuild import rebuild
from models.segmentation import logits
from utils import checkpoint, pictures
from utils.carriers import Calibration, Carrier, View, find_carriers, join, merge, share_of_recording, table
from utils.release import load_segmentation, shipped
from utils.runs import RunError, command, run, write_json

GENERATOR = "spectrum sensing, segment.py"  # core:generator of our annotations


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help=".sigmf-meta, bare I/Q samples, or a spectrogram .png")
    parser.add_argument("--datatype", help="of bare samples: ci8, cu8, ci16_le, cf32_le")
    parser.add_argument("--sample-rate", type=float, metavar="HZ", help="of bare samples; of a picture its width")
    parser.add_argument("--center-frequency", type=float, metavar="HZ", help="on the air, of the capture's centre")
    parser.add_argument("--channel", type=int, default=0, help="of a recording with several, from 0")
    parser.add_argument(
        "--checkpoint", type=Path, default=shipped("seg_student.pt"), help="default weights/seg_student.pt"
    )
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

    # Recording, or the picture of one; network
    recording, picture = None, None
    if args.recording.suffix.lower() == ".png":
        if args.annotate:
            raise RunError(f"{args.recording}: a picture can't be annotated; leave --annotate out")
        picture, notes = read_picture(args.recording)
    else:
        recording = open_recording(args.recording, args.datatype, args.sample_rate, args.center_frequency, args.channel)
        notes = list(recording.notes)
        meta_path = metadata_path(recording)
        if args.annotate and not recording.meta_path and meta_path.exists():
            raise RunError(f"{meta_path.name} is there already: name it instead of {args.recording.name}")
    logits_of = load_network(args.checkpoint, args.device)
    calibration = Calibration.beside(args.checkpoint)

    # Frame by frame: picture and labels, bands, evidence and rows; rows are merged with those of the frames before
    frame_notes = FrameNotes()
    if recording:
        count = len(recording)
        frames = (frame_notes.add(frame) for frame in recording.frames())
        views = (label_frame(frame, logits_of, args.blind_search) for frame in frames)
    else:
        count = 1
        views = [label_picture(picture, logits_of, args.sample_rate or SAMPLE_RATE, args.center_frequency)]
        notes.append("a picture has no samples: the evidence is -, the network alone decides")
    proofs = None if args.no_evidence else Proofs()
    carriers = []
    shown = Counter()  # {(centre, width) in Hz of a part of the spectrum: samples that show it}
    remove_pictures(args.out)
    for number, view in enumerate(tqdm(views, total=count, unit="frame", file=sys.stderr)):
        found = find_carriers(view, proofs)
        merge(carriers, found)
        shown[view.center_hz, view.span_hz] += view.count
        if args.pictures is None or number < args.pictures:
            save_picture(view, found, args.out / f"frame_{number:05d}.png")

    # The whole recording: one row a carrier, with its share of all time and a calibrated confidence
    carriers = join(carriers)
    share_of_recording(carriers, shown)
    calibration.apply(carriers, with_samples=recording is not None and not args.no_evidence)
    carriers.sort(key=lambda carrier: (not carrier.absolute, carrier.lower_hz, carrier.upper_hz))

    # Table, JSON, annotations
    clock = (recording.sample_rate, recording.offset) if recording else (None, 0)  # turn sample numbers into seconds
    if recording:
        notes += frame_notes.lines(recording)
    print(table(carriers, *clock))
    for note in notes:
        print(f"note: {note}")
    result = {
        "recording": args.recording.name,
        "frames": count,
        "checkpoint": str(args.checkpoint),
        "command": command(),
        "notes": notes,
        "carriers": [carrier.plain(*clock) for carrier in carriers],
    }
    write_json(args.out / "result.json", result)
    if args.annotate:
        write_json(meta_path, with_annotations(recording, carriers))
        print(f"{meta_path}: annotated")
    return 0


# ---- from a frame to its labels -------------------------------------------------------------------------------------


def load_network(path: Path, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A segmentation network on the device, as a function: pictures uint8 (N, 3, H, W) -> logits (N, 3, H, W)."""
    data = load_segmentation(path)
    try:
        model = rebuild(data).to(device, memory_format=torch.channels_last).eval()
    except (RuntimeError, AssertionError) as error:  # what torch raises for a device that it lacks
        raise RunError(f"--device {device} can't be used ({str(error).splitlines()[0]}); try --device cpu") from error
    return partial(logits, model, size=data.get("frame_size"))


@torch.inference_mode()
def class_probabilities(logits_of: Callable, picture: np.ndarray) -> np.ndarray:
    """uint8 (256, 256, 3) -> softmax probability of each class, float32 (3, 256, 256)."""
    image = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]  # (1, 3, 256, 256)
    return logits_of(image)[0].float().softmax(0).cpu().numpy()


def label_frame(frame: Frame, logits_of: Callable, blind_seconds: float | None = None) -> View:
    """Label a frame of a recording. The view has the recording's own columns only: the noise beside a narrow capture,
    which the network sees too, is cut off here.

    blind_seconds: for how long NR cells are searched in a band where the centre frequency is not known.
    """
    width = columns(frame.sample_rate)
    picture, power = np.zeros((SIZE, width, 3), np.uint8), np.zeros((SIZE, width), np.float32)
    probability, weight = np.zeros((len(CLASSES), SIZE, width), np.float32), np.zeros(width, np.float32)

    # Pieces of 256 columns overlap in a wide capture. The network's probabilities are averaged there, with more weight
    # for columns far from a piece's edge; the picture is the piece's in which a column lies farthest from the edge.
    from_edge = 1 + np.minimum(np.arange(SIZE), SIZE - 1 - np.arange(SIZE))
    farthest = np.zeros(width, int)
    for column, iq in frame.pieces():
        first = column + width // 2  # the capture's columns are numbered from 0
        here = slice(max(0, first), min(width, first + SIZE))  # in the capture
        there = slice(here.start - first, here.stop - first)  # in the piece
        image = spectrogram_image(iq, robust=frame.mended is not None)
        probability[:, :, here] += class_probabilities(logits_of, image)[:, :, there] * from_edge[there]
        weight[here] += from_edge[there]
        better = np.flatnonzero(from_edge[there] > farthest[here])
        picture[:, here.start + better] = image[:, there.start + better]
        power[:, here.start + better] = shown_power(iq)[::-1][:, there.start + better]  # last row first, as the picture
        farthest[here.start + better] = from_edge[there.start + better]

    # A floor of kind "even" counts as measured: nothing stands above it, so a missing prefix proves nothing then.
    floor = frame.floor if frame.floor > 0 else None
    measured = floor if frame.floor_kind != "guessed" else None
    look = FrameEvidence(
        frame.samples, frame.sample_rate, frame.center_hz, floor=measured, guess=floor, blind_seconds=blind_seconds
    )
    return View(
        start=frame.new_start,
        count=frame.new_count,
        center_hz=frame.center_hz,
        span_hz=frame.sample_rate,
        column_hz=HZ_PER_PIXEL,
        picture=picture,
        probability=probability / weight,
        power=power,
        floor=frame.floor,
        look=look,
        rows=frame.new_rows,
    )


def read_picture(path: Path) -> tuple[np.ndarray, list[str]]:
    """A spectrogram as uint8 (256, 256, 3), and a note if it was scaled."""
    try:
        with Image.open(path) as image:
            size, picture = image.size, image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.NEAREST)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is no readable picture ({error}); name a .png or a recording") from error
    odd = f"the picture has {size[0]}x{size[1]} pixels and was scaled to {SIZE}x{SIZE}"
    return np.array(picture), [] if size == (SIZE, SIZE) else [odd]


def label_picture(picture: np.ndarray, logits_of: Callable, span_hz: float, center_hz: float | None) -> View:
    """Label a spectrogram uint8 (256, 256, 3) that comes as a picture.

    How many dB a step of its colormap is, is not known. The spread of the noise tells it.
    """
    probability = class_probabilities(logits_of, picture)
    index, _ = colormap_index(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None], torch.from_numpy(PARULA))
    noise = index[0].numpy()[:, probability.mean(1).argmax(0) == 0]  # colormap indices in the columns of noise
    # The middle half of exponentially distributed power spans 10 log10(ln 4 / ln (4/3)) = 6.83 dB, a ratio of 10^.683.
    middle_half = np.subtract(*np.percentile(noise, (75, 25))) if noise.size else 0
    power = 10 ** (index[0].numpy() * (0.683 / middle_half)) if middle_half > 0 else None
    return View(0, FRAME_SAMPLES, center_hz, span_hz, span_hz / SIZE, picture, probability, power)


# ---- files that are written -----------------------------------------------------------------------------------------


def remove_pictures(folder: Path) -> None:
    """Delete the pictures of an earlier call, which would otherwise lie beside the new table."""
    try:
        for old in folder.glob("frame_[0-9][0-9][0-9][0-9][0-9].png"):
            old.unlink()
    except OSError as error:
        raise RunError(f"{folder}: can't be changed ({error.strerror}); choose another folder with --out") from error


def save_picture(view: View, carriers: list[Carrier], path: Path) -> None:
    """The frame's spectrogram, and beside it the labels of its pixels, with a bar above for each of its carriers."""
    bars = []
    for carrier in carriers:
        kind = CLASSES.index(carrier.technology) if carrier.technology in CLASSES else None
        text = f"{carrier.technology} {carrier.confidence:.2f}"
        bars.append(pictures.Bar(carrier.lower_hz, carrier.upper_hz, kind, text))
    image = torch.from_numpy(view.picture[view.rows]).permute(2, 0, 1)  # (3, H, C)
    labels = torch.from_numpy(view.probability[:, view.rows].argmax(0))  # (H, C)
    low_hz, title = view.origin_hz - view.span_hz / 2, f"from sample {view.start} (below) on, MHz"
    try:
        pictures.save(pictures.labelled_spectrogram(image, labels, low_hz, view.span_hz, bars, title), path)
    except OSError as error:
        raise RunError(f"{path}: can't be written ({error.strerror}); choose another folder with --out") from error


def metadata_path(recording: Recording) -> Path:
    """The recording's .sigmf-meta, there or to be written."""
    return recording.meta_path or recording.path.with_name(recording.path.name + ".sigmf-meta")


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
