"""Radio recordings of any rate and length, 40 ms at a time, on the 61.44 MS/s grid of the spectrograms.

    recording = open_recording("capture.bin", datatype="ci8", sample_rate=19.2e6, center_frequency=1815.3e6)
    for frame in recording.frames():
        for first_column, iq in frame.pieces():
            picture = spectrogram_image(iq)

A recording is SigMF (NAME.sigmf-meta beside NAME.sigmf-data, https://sigmf.org) or bare I/Q samples. A frame is 40 ms
of it; one frame is in memory at a time. Its spectrum is cut or widened to 61.44 MHz. A narrower capture gets white
noise beside it, as strong as its own noise floor. A wider capture is cut in pieces that overlap by half. The last frame
is the last 40 ms, so it may overlap the frame before. A recording of less than 40 ms is repeated for the picture. A
line is a bin of an FFT.
A receiver's faults are mended for the picture (data/receiver_events.py); `Frame.samples` stay as received. Needs numpy,
torch, data/spectrogram.py and data/receiver_events.py.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from data import DataError
from data.receiver_events import MENDED, Event, fill_gaps, find_events, mend, notes, within, without_gaps
from data.spectrogram import FRAME_SAMPLES, HZ_PER_PIXEL, SAMPLE_RATE, SIZE

FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE  # 40 ms
LEVELS = (0.003, 100)  # samples with a root mean square between these are used as they are; others are scaled to 1
RATES = (1e6, 1e9)  # Hz; no carrier fits in less, and a frame of more takes several GB
SHIFT_BINS = round(HZ_PER_PIXEL * FRAME_SECONDS)  # 9600: lines of a 40 ms spectrum, 25 Hz apart, in a column
EDGE_HZ = HZ_PER_PIXEL / 2  # width of the raised cosine between the capture's spectrum and the noise beside it
CUT_HZ = 4 * HZ_PER_PIXEL  # its width at a piece's edge inside the capture, where a neighbour piece shows the rest
FLOOR_SAMPLES = 800_000  # the noise floor is measured on so many samples, evenly spread over the frame
GUESS_DB = 15.0  # dB from a carrier that fills the capture down to a guessed floor; any 10 to 20 find LTE at any load
# What `noise_floor` says of a floor that it can't measure.
FLOOR_NOTES = {
    "even": "the capture is filled evenly, by noise alone or by a carrier at least as wide",
    "guessed": f"a carrier leaves nothing free; it is taken to lie {GUESS_DB:g} dB below",
}


@dataclass(frozen=True)
class Capture:
    """A stretch of a recording at one centre frequency."""

    start: int  # number of the first sample in the file
    count: int  # samples
    byte: int  # where they begin in the file
    center_hz: float | None


@dataclass(frozen=True)
class Frame:
    """Up to 40 ms of samples as received. The first `overlap` of them are also the last ones of the frame before."""

    start: int  # number of the first sample; the recording's first has the number `Recording.offset`
    samples: np.ndarray  # complex64 (count,)
    sample_rate: float
    center_hz: float | None
    floor: float  # power per Hz of the noise, see `noise_floor`
    damaged: int = 0  # new samples that were NaN or infinite and count as 0
    seed: int = 0  # of the noise beside a narrow capture
    overlap: int = 0  # samples that the frame before has too; they are counted there
    mended: np.ndarray | None = None  # complex64 (count,): what the picture shows in place of `samples`
    events: tuple[Event, ...] = ()  # the receiver's faults, numbered as `start` is
    floor_kind: str = "measured"  # or "even", "guessed", see `noise_floor`

    @property
    def new_start(self) -> int:
        """Number of the first sample that no frame before has had."""
        return self.start + self.overlap

    @property
    def new_count(self) -> int:
        """Samples that no frame before has had. Their sum over all frames is the recording's length."""
        return len(self.samples) - self.overlap

    @property
    def new_rows(self) -> slice:
        """Rows of the picture that hold the new samples, each once. The picture's first row is the frame's end."""
        row = self.sample_rate * FRAME_SECONDS / SIZE  # samples
        stop = min(SIZE, max(1, int(len(self.samples) / row + 1e-6)))
        first = min(math.ceil(self.overlap / row - 1e-6), stop - 1)
        return slice(SIZE - stop, SIZE - first)

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """(column, iq) of each 61.44 MHz wide piece, ascending.

        iq: complex64 (2457600,), 40 ms at 61.44 MS/s, the input of data.spectrogram. column: number of the picture's
        first column, where column c holds the baseband frequencies from 240 kHz * c to 240 kHz * (c + 1). A frame of
        less than 40 ms is repeated until these are full.
        """
        # The frame's samples, repeated up to 40 ms
        half = SIZE // 2
        reach = columns(self.sample_rate) // 2 - half  # columns from 0 to the centre of the outermost piece
        whole = max(round(self.sample_rate * FRAME_SECONDS), len(self.samples))
        rng = np.random.default_rng([self.seed, self.start])
        samples = self.samples if self.mended is None else self.mended
        if len(samples) < whole:
            samples = np.resize(samples, whole)
        if self.sample_rate == SAMPLE_RATE:
            yield -half, samples
            return

        # Pieces of its spectrum
        spectrum = torch.fft.fftshift(torch.fft.fft(torch.from_numpy(samples))).numpy()
        spectrum *= np.float32(FRAME_SAMPLES / whole)
        count = 1 if reach <= 0 else 1 + math.ceil(2 * reach / half)
        for center in np.round(np.linspace(-reach, reach, count)).astype(int) if reach > 0 else [0]:
            yield int(center) - half, self._piece(spectrum, int(center) * SHIFT_BINS, rng)

    def _piece(self, spectrum, shift, rng):
        """61.44 MHz of a centred 40 ms spectrum (whole,) around line `shift` -> complex64 (2457600,)."""
        whole = len(spectrum)
        first = shift - FRAME_SAMPLES // 2 + whole // 2  # line of `spectrum` that becomes the piece's first
        inside = slice(max(first, 0), min(first + FRAME_SAMPLES, whole))
        placed = slice(inside.start - first, inside.stop - first)
        piece = _noise(rng, FRAME_SAMPLES)
        piece *= np.float32(math.sqrt(self.floor * SAMPLE_RATE * FRAME_SAMPLES))

        # Signal and noise share the power at the edges, so that the floor has no step there. A cut inside the capture
        # is softer: both ends of a sampled spectrum are neighbours and would leak into each other.
        line = np.arange(inside.start, inside.stop, dtype=np.float32) + 0.5
        share = np.minimum(line, whole - line) / (EDGE_HZ * FRAME_SECONDS)
        if first > 0:
            share = np.minimum(share, (line - first) / (CUT_HZ * FRAME_SECONDS))
        if first + FRAME_SAMPLES < whole:
            share = np.minimum(share, (first + FRAME_SAMPLES - line) / (CUT_HZ * FRAME_SECONDS))
        edges = np.flatnonzero(share < 1)
        angle = np.pi / 2 * share[edges]
        shared = np.sin(angle) * spectrum[inside][edges] + np.cos(angle) * piece[placed][edges]
        piece[placed] = spectrum[inside]
        piece[placed][edges] = shared
        return torch.fft.ifft(torch.fft.ifftshift(torch.from_numpy(piece))).numpy()


class FrameNotes:
    """What a reader of the results should know about the frames, one line for each kind of event.

    frame_notes = FrameNotes()
    for frame in recording.frames(): frame_notes.add(frame)
    print("\\n".join(frame_notes.lines(recording)))
    """

    def __init__(self):
        self.frames, self.damaged, self.short, self.floors = 0, 0, 0, Counter()
        self.events = []  # of each frame that has any

    def add(self, frame: Frame) -> Frame:
        """Returns the frame."""
        self.frames += 1
        self.damaged += frame.damaged
        self.short += len(frame.samples) < round(frame.sample_rate * FRAME_SECONDS)
        self.floors[frame.floor_kind] += 1
        events = within(frame.events, frame.new_start, frame.new_count)
        if events:
            self.events.append(events)
        return frame

    def lines(self, recording: "Recording") -> list[str]:
        lines = notes(self.events, recording.sample_rate, recording.offset)
        if self.damaged:
            lines.append(f"{self.damaged} samples were no numbers and were taken as 0")
        if self.short:
            lines.append(f"{self.short} of {self.frames} frames have less than 40 ms, repeated for the picture")
        for kind, why in FLOOR_NOTES.items():
            if self.floors[kind]:
                number = f"{self.floors[kind]} of {self.frames} frames"
                lines.append(f"the noise floor can't be measured in {number}: {why}")
        return lines


def columns(sample_rate: float) -> int:
    """Columns of 240 kHz that a capture fills (their centre lies in it), as many below its centre as above."""
    return 2 * int(sample_rate / HZ_PER_PIXEL / 2 + 0.5)


def noise_floor(samples: np.ndarray, sample_rate: float) -> tuple[float, str]:
    """Power per Hz of the noise in complex64 (count,) samples, and how it is known; 0 for silence.

    "measured": right within 1 dB if a twentieth of the area is free. The area is divided into cells of 480 kHz and 67
    microseconds, and the lowest 5% of them decide; gaps in a carrier's time grid are enough. The outer 5% of the band
    on each side are left out, since receivers' filters fall off there. "even": nothing stands above the floor.
    "guessed": the lowest cells are not spread as noise is, so a carrier fills the capture. The floor is then taken to
    lie GUESS_DB below the mean.
    """
    cells = _cells(samples, sample_rate)  # (time, frequency)
    cells = cells[(cells > 0).all(1)]  # without the zeros of a receiver that stopped for a while
    if cells.size == 0:
        return 0.0, "measured"
    mean = float(cells.mean())
    lowest, lower, low = _low_quantiles(cells)
    # Estimates that differ, by 19% or more, show that the lowest cells are not noise alone. A receiver's filter spreads
    # the cells too, but not in time: the spread must be there after each frequency is divided by its mean, too.
    _, lower_in_time, low_in_time = _low_quantiles(cells / cells.mean(0))
    spread = min(low / lower, low_in_time / lower_in_time)
    if spread > 1.19 and low > mean / 4:
        if lower < 1.15 * lowest and lowest < mean / 4:  # less than a twentieth is free
            return lowest, "measured"
        return mean * 10 ** (-GUESS_DB / 10), "guessed"
    # The 5% quantile lies at .64 of the noise's mean if all cells are noise, at .71 if carriers take half of them. How
    # many they take is not known: .68 lies between.
    return low * 0.64 / 0.68, "even" if mean < 1.2 * low else "measured"


def _low_quantiles(cells):
    """Three estimates of the noise's mean from the lowest .2, .5 and 5% of the cells; the same if these are noise."""
    quantiles = np.quantile(cells, (0.002, 0.005, 0.05))
    # Where these quantiles lie against the mean if the cells are noise: a cell has some 18 independent values.
    return (quantiles / (0.44, 0.49, 0.64)).tolist()


def _cells(samples, sample_rate):
    """Mean power per Hz in cells of 480 kHz and 67 microseconds, float (time, frequency).

    A cell is the mean of 8 lines of 4 FFTs. Of a long or wide frame only a part of the time is taken, evenly spread.
    """
    size = 2 * max(8, int(sample_rate / 120e3))  # lines some 60 kHz apart
    blocks = samples[: len(samples) // (4 * size) * 4 * size].reshape(-1, 4, size)
    if not len(blocks):
        return np.full((1, 1), np.mean(np.abs(samples) ** 2) / sample_rate)
    blocks = blocks[:: max(1, blocks.size // FLOOR_SAMPLES)]
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    lines = torch.view_as_real(torch.fft.fft(torch.from_numpy(blocks * window))).numpy()  # (blocks, 4, size, 2)
    lines *= lines
    power = lines.reshape(len(lines), 4, 2 * size).sum(1)  # two numbers a line: squares of real and imaginary part
    keep = int(0.45 * size)  # lines on each side of the centre; the outer 5% of the band are left out
    wide = min(8, 2 * keep)  # lines of a cell
    inner = np.concatenate([power[:, -2 * keep :], power[:, : 2 * keep]], 1)[:, : 2 * keep // wide * wide * 2]
    cells = inner.reshape(len(power), -1, 2 * wide).sum(2)
    return cells / (4 * wide * sample_rate * float(np.sum(window**2)))


@dataclass(frozen=True)
class Recording:
    """A recording on disk; `open_recording` makes it."""

    path: Path  # the file with the samples
    datatype: str
    sample_rate: float  # Hz
    captures: tuple[Capture, ...]
    channel: int = 0
    channels: int = 1
    offset: int = 0  # core:offset, the number of the first sample
    meta_path: Path | None = None
    meta: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a reader of the results should know

    def __len__(self) -> int:
        """Number of frames."""
        return sum(self._frame_count(capture) for capture in self.captures)

    def _frame_count(self, capture):
        return max(1, math.ceil((capture.count - 0.5) / (self.sample_rate * FRAME_SECONDS)))

    def frames(self) -> Iterator[Frame]:
        """The recording in steps of 40 ms; raises DataError when the file can't be read to its end."""
        numbers = _numbers(self.datatype)
        width = 2 * numbers.itemsize * self.channels  # bytes of one sample
        length = self.sample_rate * FRAME_SECONDS
        try:
            with open(self.path, "rb") as file:
                for capture in self.captures:
                    last = self._frame_count(capture) - 1
                    for i in range(last + 1):
                        new, end = round(i * length), round((i + 1) * length)
                        first = new
                        if i == last:  # the capture's last 40 ms, or all of a shorter one
                            end = capture.count
                            first = max(0, min(new, end - round(length)))
                        pairs = np.empty((end - first, self.channels, 2), numbers)
                        file.seek(capture.byte + first * width)
                        if file.readinto(pairs.reshape(-1).view(np.uint8)) < pairs.nbytes:
                            raise DataError(f"{self.path}: became shorter while it was read; run again")
                        start = self.offset + capture.start + first
                        yield self._frame(pairs[:, self.channel], start, new - first, capture.center_hz)
        except OSError as error:
            raise DataError(f"{self.path}: can't be read ({error.strerror}); check the disk and the rights") from error

    def _frame(self, pairs, start, overlap, center_hz):
        """Numbers (count, 2) as stored -> Frame."""
        pairs, damaged = _to_floats(pairs)
        level = _level(pairs)
        # Scale the samples if needed. The picture's logarithm has a lower limit of -156 dB per Hz, which the units of
        # some recordings would reach. The generator's frames have levels of .003 to 3.
        if level > 0 and not LEVELS[0] < level < LEVELS[1]:
            pairs /= level
        samples = np.ascontiguousarray(pairs, np.float32).view(np.complex64)[:, 0]

        # Mend the receiver's faults, and measure the floor without them
        events = find_events(samples, self.sample_rate)
        mended = None
        if any(event.kind in MENDED for event in events):
            mended = mend(samples, events)
            level = _level(without_gaps(mended, events).view(np.float32))
            if level > 0 and not LEVELS[0] < level < LEVELS[1]:  # an outlier had set it
                samples, mended = samples / np.float32(level), mended / np.float32(level)
        kept = samples if mended is None else without_gaps(mended, events)
        floor, floor_kind = noise_floor(kept, self.sample_rate)
        if mended is not None:
            fill_gaps(mended, events, floor * self.sample_rate, np.random.default_rng([start, 1]))
        return Frame(
            start,
            samples,
            self.sample_rate,
            center_hz,
            floor,
            damaged=int(damaged[overlap:].sum()),
            overlap=overlap,
            mended=mended,
            events=tuple(replace(event, start=start + event.start) for event in events),
            floor_kind=floor_kind,
        )


def _to_floats(pairs):
    """Numbers (count, 2) as stored -> float32 or float64 (count, 2), integers within -1 .. 1; bool, not finite."""
    kind, size = pairs.dtype.kind, pairs.dtype.itemsize
    floats = np.ascontiguousarray(pairs, np.float32 if size < 8 else np.float64)
    if kind != "f":
        half = 2.0 ** (8 * size - 1)
        if kind == "u":
            floats -= half
        floats /= half
    damaged = np.zeros(len(floats), bool)
    if not math.isfinite(_level(floats)):
        damaged = ~np.isfinite(floats).all(1)
        floats[damaged] = 0
    return floats, damaged


def _level(floats):
    """Root mean square of complex samples, given as floats (count, 2) or (2 count,)."""
    flat = floats.reshape(-1)
    total = float(np.dot(flat, flat))
    if not 1e-30 < total < 1e30:  # beyond what float32 can add up
        total = float(np.sum(np.square(flat, dtype=np.float64)))
    return math.sqrt(2 * total / len(flat))


def open_recording(
    path: str | Path,
    datatype: str | None = None,
    sample_rate: float | None = None,
    center_frequency: float | None = None,
    channel: int = 0,
) -> Recording:
    """Look at a recording without reading its samples.

    Args:
        path: NAME.sigmf-meta, NAME.sigmf-data, NAME of such a pair, or a file of bare I/Q samples.
        datatype: of bare samples, in SigMF's names: ci8, cu8, ci16_le, cf32_le and the like.
        sample_rate: Hz; for bare samples, and for metadata that lack it or have it wrong.
        center_frequency: Hz, likewise; left out, frequencies count from the centre of the capture.
        channel: which one, from 0, of a recording with several.

    Raises:
        DataError: missing, empty, unreadable or contradictory files, metadata without sample rate, unknown datatype.
    """
    path = Path(path)
    meta_path = next((p for p in _meta_paths(path) if p.is_file()), None)
    if path.suffix in (".sigmf", ".sigmf-collection"):
        raise DataError(f"{path}: bundles recordings; unpack it and name one .sigmf-meta")
    if meta_path is None and (not path.is_file() or path.suffix in (".sigmf-meta", ".sigmf-data")):
        wanted = path.with_suffix(".sigmf-meta") if path.suffix == ".sigmf-data" else path
        raise DataError(f"{wanted}: no such file; name a .sigmf-meta with its .sigmf-data beside it, or bare samples")
    meta = read_meta(meta_path) if meta_path else {"global": {}, "captures": [], "annotations": []}
    general = meta["global"]
    if meta_path:
        if general.get("core:metadata_only"):
            raise DataError(f"{meta_path}: has no samples (core:metadata_only); name a recording that has")
        name = general.get("core:dataset", meta_path.with_suffix(".sigmf-data").name)
        if not isinstance(name, str) or not name or Path(name).name != name or "\0" in name:
            raise DataError(f"{meta_path}: core:dataset must name a file beside it, not {name!r}")
        path = meta_path.with_name(name)
    datatype = datatype or general.get("core:datatype")
    rate = sample_rate if sample_rate is not None else _number(meta_path, general, "core:sample_rate")
    for value, flag in ((datatype, "--datatype"), (rate, "--sample-rate")):
        if value is None:
            raise DataError(f"{meta_path or path}: does not say its {flag[2:].replace('-', ' ')}; add {flag}")
    _numbers(datatype, meta_path or path)
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{meta_path or path}: a sample rate of {rate:g} Hz can't be used, 1 MHz to 1 GHz can")
    channels = _number(meta_path, general, "core:num_channels", 1, whole=True)
    if channels < 1 or not 0 <= channel < channels:
        raise DataError(f"{meta_path or path}: has {channels} channel(s), so there is no --channel {channel}")
    recording = Recording(path, datatype, float(rate), (), channel, channels, meta_path=meta_path, meta=meta)
    return _with_captures(recording, center_frequency)


def _with_captures(recording, center_frequency):
    """Find out where each capture lies in the file."""
    general, named = recording.meta["global"], recording.meta_path
    try:
        size = recording.path.stat().st_size
    except OSError as error:
        raise DataError(f"{recording.path}: can't be read ({error.strerror}); check name and rights") from error
    offset = _number(named, general, "core:offset", 0, whole=True)
    size -= _number(named, general, "core:trailing_bytes", 0, whole=True)
    width = 2 * _numbers(recording.datatype).itemsize * recording.channels
    entries, header = [], 0
    for entry in recording.meta["captures"] or [{"core:sample_start": 0}]:
        header += _number(named, entry, "core:header_bytes", 0, whole=True)
        start = _number(named, entry, "core:sample_start", 0, whole=True) - offset
        center = center_frequency if center_frequency is not None else _number(named, entry, "core:frequency")
        entries.append((start, header, center))
    total, rest = divmod(max(0, size - header), width)
    notes = [f"the last {rest} byte(s) are no whole sample and were left out"] if rest else []
    starts = [max(start, 0) for start, _, _ in entries]
    if starts[0] > 0:
        notes.append(f"the first {starts[0]} samples belong to no capture and were left out")
    if starts != sorted(starts):
        raise DataError(f"{named}: captures are not in order of core:sample_start; put them in order")
    captures = []
    for (_, skip, center), start, end in zip(entries, starts, [*starts[1:], total], strict=True):
        count = min(end, total) - start
        if count > 0:
            captures.append(Capture(start, count, skip + start * width, center))
    if not captures:
        raise DataError(f"{recording.path}: holds no sample; record again, or check the datatype and header sizes")
    return replace(recording, captures=tuple(captures), offset=offset, notes=tuple(notes))


def _meta_paths(path):
    """Where the metadata of a recording that is called `path` may lie."""
    if path.suffix in (".sigmf-meta", ".sigmf-data"):
        return [path.with_suffix(".sigmf-meta")]
    return [] if path.is_file() else [path.with_name(path.name + ".sigmf-meta")]


def read_meta(path: Path) -> dict:
    """The JSON of a .sigmf-meta with its three parts, global, captures and annotations; DataError if they are not."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, numbers of 5,000 digits
        raise DataError(f"{path}: is no readable SigMF metadata ({error}); write it again") from error
    parts = {"global": dict, "captures": list, "annotations": list}
    meta = {part: kind() for part, kind in parts.items()} | meta if isinstance(meta, dict) else None
    if meta is None or not all(isinstance(meta[part], kind) for part, kind in parts.items()):
        raise DataError(f"{path}: is no SigMF metadata: global, captures and annotations are expected; write it again")
    for entry in meta["captures"] + meta["annotations"]:
        if not isinstance(entry, dict):
            raise DataError(f"{path}: captures and annotations must hold objects, not {entry!r}; write it again")
        _number(path, entry, "core:sample_start", 0, whole=True)
    return meta


def _number(path, entry, key, default=None, whole=False):
    """A number of the metadata; a missing one is `default`."""
    value = entry.get(key, default)
    if value is default:
        return default
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not abs(value) < 1e18 or (whole and value < 0):
        raise DataError(f"{path}: {key} is {value!r}, not a {'count' if whole else 'number'}; correct it")
    return value


def _numbers(datatype, path=None):
    """numpy type of one I or Q value of a complex SigMF datatype, ci8 to cf64_be."""
    match = re.fullmatch(r"c(?:([iu])(8|16_le|16_be|32_le|32_be)|(f)(32_le|32_be|64_le|64_be))", str(datatype))
    if not match:
        raise DataError(f"{path}: datatype {datatype!r} is unknown; use ci8, cu8, ci16_le or cf32_le")
    kind, size = (match[1], match[2]) if match[1] else (match[3], match[4])
    bits, _, order = size.partition("_")
    return np.dtype(f"{'>' if order == 'be' else '<'}{kind}{int(bits) // 8}")


def _noise(rng, count):
    """complex64 (count,) white noise of power 1."""
    pairs = rng.standard_normal((count, 2), np.float32)
    pairs *= np.float32(math.sqrt(0.5))
    return pairs.view(np.complex64)[:, 0]
