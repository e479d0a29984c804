"""From frames of samples to rows: the network labels a frame's picture, its samples tell the rest.

    logits_of = load_network(Path("weights/seg_student.pt"), "cpu")
    for result in label(recording.frames(), logits_of, Settings()):              # one frame after the other
        merge(carriers, result.rows)
    for results in label_recordings([recording], [Settings()], workers=4): ...   # the same results on several cores

A network sees 256 columns of 240 kHz. A narrower capture lies in the middle of them, with noise beside it; a wider one
is cut in pieces. The results of a frame are small enough to pass between processes. Needs numpy, torch, data/, models/,
utils/carriers.py, utils/pictures.py and utils/release.py.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from data.augment import colormap_index
from data.evidence import FrameEvidence, Proofs
from data.png import read_png
from data.recording import Frame, FrameNotes, columns
from data.recording_formats import FRAME_SECONDS, Recording
from data.spectrogram import FRAME_SAMPLES, HZ_PER_PIXEL, PARULA, SIZE
from data.spectrum_sensing import CLASSES
from models.rebuild import rebuild
from models.segmentation import logits
from utils import pictures
from utils.carriers import Carrier, View, find_carriers
from utils.checkpoint import CheckpointError
from utils.release import load_segmentation
from utils.runs import RunError

# Evidence is kept for a second of the recording. It is forgotten after each 25 frames, so that these can be labelled
# by any process, with the same results.
SHARE_FRAMES = 25


@dataclass(frozen=True)
class Settings:
    """How frames are labelled; plain values, which a worker process gets too."""

    checkpoint: Path = Path("weights/seg_student.pt")
    device: str | None = None  # default: cuda if there is one
    evidence: bool = True
    blind_seconds: float | None = None  # for how long NR cells are searched where no centre frequency is known
    pictures: int = 0  # of the first frames, written to `out`
    out: Path = Path("runs/segment")
    waterfall_rows: int = 16  # of each frame


class FrameResult(NamedTuple):
    """What is known of a frame."""

    rows: list[Carrier]
    start: int  # number of the first sample that no frame before has had
    count: int  # of such samples
    center_hz: float | None
    span_hz: float
    notes: FrameNotes
    levels: np.ndarray  # float32 (rows, pictures.WATERFALL_COLUMNS), power per Hz, both axes ascending


def label(frames: Iterable[Frame], logits_of: Callable, settings: Settings, first: int = 0) -> Iterator[FrameResult]:
    """Label frames, the first of which has number `first` in its recording, a multiple of SHARE_FRAMES."""
    proofs = None
    for number, frame in enumerate(frames, first):
        if settings.evidence and (number - first) % SHARE_FRAMES == 0:
            proofs = Proofs()
        view = replace(label_frame(frame, logits_of, settings.blind_seconds), labelled_s=FRAME_SECONDS * number)
        rows = find_carriers(view, proofs)
        if number < settings.pictures:
            save_overlay(view, rows, settings.out / f"frame_{number:05d}.png")
        new = frame.samples[frame.overlap :]
        levels = pictures.levels_over_time(new, settings.waterfall_rows) * np.float32(frame.unit**2 / frame.sample_rate)
        notes = FrameNotes().add(frame)
        yield FrameResult(rows, view.start, view.count, view.center_hz, view.span_hz, notes, levels)


def load_network(path: Path, device: str | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """A segmentation network on the device, as a function: pictures uint8 (N, 3, H, W) -> logits (N, 3, H, W).

    Raises: RunError for a file that holds none, or a device that is not there.
    """
    try:
        data = load_segmentation(path)
    except CheckpointError as error:
        raise RunError(str(error)) from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
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
    power = np.zeros((SIZE, width), np.float32)
    probability, weight = np.zeros((len(CLASSES), SIZE, width), np.float32), np.zeros(width, np.float32)

    # Pieces of 256 columns overlap in a wide capture. The network's probabilities are averaged there, with more weight
    # for columns far from a piece's edge; the power is the piece's in which a column lies farthest from the edge.
    from_edge = 1 + np.minimum(np.arange(SIZE), SIZE - 1 - np.arange(SIZE))
    farthest, images = np.zeros(width, int), []
    for column, levels, piece_power in frame.spectrograms():
        first = column + width // 2  # the capture's columns are numbered from 0
        here = slice(max(0, first), min(width, first + SIZE))  # in the capture
        there = slice(here.start - first, here.stop - first)  # in the piece
        image = PARULA[levels]
        probability[:, :, here] += class_probabilities(logits_of, image)[:, :, there] * from_edge[there]
        weight[here] += from_edge[there]
        better = np.flatnonzero(from_edge[there] > farthest[here])
        beside = (SIZE - piece_power.shape[1]) // 2  # columns of noise
        power[:, here.start + better] = piece_power[:, there.start + better - beside]
        farthest[here.start + better] = from_edge[there.start + better]
        images.append(image[:, there])
    picture = images[0] if len(images) == 1 else picture_of(power)  # each piece has a colour scale of its own

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


def picture_of(power: np.ndarray) -> np.ndarray:
    """Power (H, C) in parula colours, uint8 (H, C, 3); from 1% of the pixels to the strongest on a scale of dB."""
    db = 10 * np.log10(np.maximum(power, 1e-30))
    low, high = np.percentile(db, 1), db.max()
    return PARULA[np.round(255 * np.clip((db - low) / max(high - low, 1e-9), 0, 1)).astype(np.uint8)]


# ---- a spectrogram that comes as a picture --------------------------------------------------------------------------


def read_picture(path: Path) -> tuple[np.ndarray, list[str]]:
    """A spectrogram as uint8 (256, 256, 3), and a note if it was scaled."""
    pixels = read_png(path)
    height, width, _ = pixels.shape
    if (height, width) == (SIZE, SIZE):
        return pixels.copy(), []
    scaled = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.NEAREST)
    return np.array(scaled), [f"the picture has {width}x{height} pixels and was scaled to {SIZE}x{SIZE}"]


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


def save_overlay(view: View, carriers: list[Carrier], path: Path) -> None:
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


# ---- several processes ----------------------------------------------------------------------------------------------


def label_recordings(
    recordings: Sequence[Recording], settings: Sequence[Settings], workers: int
) -> Iterator[Iterator[FrameResult]]:
    """The results of each recording's frames, in order, and the same for any number of processes.

    Read all of one recording's results before those of the next. With several processes they share the frames of all
    recordings, 25 at a time, so one long recording and many short ones both keep them busy.

    Args:
        settings: of each recording; all with the same checkpoint and device.
        workers: number of processes; 1 is this one.
    """
    shares = [(i, first) for i, recording in enumerate(recordings) for first in range(0, len(recording), SHARE_FRAMES)]
    workers = min(workers, len(shares))
    if workers <= 1:
        logits_of = load_network(settings[0].checkpoint, settings[0].device)
        for recording, own in zip(recordings, settings, strict=True):
            yield label(recording.frames(), logits_of, own)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with context.Pool(workers, _begin_worker, (recordings, settings)) as pool:
        results = pool.imap(_label_share, shares)
        for recording in recordings:
            its_shares = range(0, len(recording), SHARE_FRAMES)
            yield chain.from_iterable(next(results) for _ in its_shares)


def _begin_worker(recordings, settings):
    """Load the network once in each process; Ctrl-C is the parent's to answer."""
    global _share
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    logits_of = load_network(settings[0].checkpoint, settings[0].device)

    def _share(i, first):
        frames = recordings[i].frames(first, min(first + SHARE_FRAMES, len(recordings[i])))
        return list(label(frames, logits_of, settings[i], first))


def _label_share(place):
    return _share(*place)
