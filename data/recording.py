"""Samples of radio recordings, 40 ms at a time, on the 61.44 MS/s grid of the spectrograms.

    recording = open_recording("capture.bin", datatype="ci8", sample_rate=19.2e6, center_frequency=1815.3e6)
    for frame in recording.frames():
        for first_column, levels, power in frame.spectrograms():
            picture = PARULA[levels]

Which recordings can be read: data/recording_formats.py. A frame is 40 ms; one is in memory at a time. Its spectrum
is cut or widened to 61.44 MHz. A narrower capture gets white noise beside it, as strong as its own noise floor. A wider
capture is cut in pieces that overlap by half. The last frame is the last 40 ms, so it may overlap the frame before. A
recording of less than 40 ms is repeated for the picture. A line is a bin of an FFT.
A receiver's faults are mended for the picture (data/receiver_events.py); `Frame.samples` stay as received. Needs numpy,
torch, data/recording_formats.py, data/spectrogram.py and data/receiver_events.py.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from data import DataError
from data.receiver_events import MENDED, Event, fill_gaps, find_events, mend, notes, within, without_gaps
from data.recording_formats import FRAME_SECONDS, SIGMF_DATATYPE, Recording, sample_bytes
from data.spectrogram import (
    FRAME_SAMPLES,
    HZ_PER_PIXEL,
    SAMPLE_RATE,
    SIZE,
    middle_levels,
    shown_power,
    spectrogram_levels,
)
from data.values import LARGEST, no_numbers
from data.wav import WAV_24

LEVELS = (0.003, 100)  # samples with a root mean square between these are used as they are; others are scaled to 1
SHIFT_BINS = round(HZ_PER_PIXEL * FRAME_SECONDS)  # 9600: lines of a 40 ms spectrum, 25 Hz apart, in a column
EDGE_HZ = HZ_PER_PIXEL / 2  # width of the raised cosine between the capture's spectrum and the noise beside it
CUT_HZ = 4 * HZ_PER_PIXEL  # its width at a piece's edge inside the capture, where a neighbour piece shows the rest
LEAKAGE_HZ = 4 * HZ_PER_PIXEL  # a Hann window's main lobe is four columns wide: two on each side of the capture
# Numbers of columns, even and products of 2, 3 and 5, whose FFTs are quick
MIDDLE = (8, 12, 16, 20, 24, 32, 36, 40, 48, 60, 64, 72, 80, 90, 96, 108, 120, 128, 144, 160, 180, 192, 216)
FLOOR_SAMPLES = 800_000  # the noise floor is measured on so many samples, evenly spread over the frame
GUESS_DB = 15.0  # dB from a carrier that fills the capture down to a guessed floor; any 10 to 20 find LTE at any load
# What `noise_floor` says of a floor that it can't measure.
FLOOR_NOTES = {
    "even": "the capture is filled evenly, by noise alone or by a carrier at least as wide",
    "guessed": f"a carrier leaves nothing free; it is taken to lie {GUESS_DB:g} dB below",
}


@dataclass(frozen=True)
class Frame:
    """Up to 40 ms of samples as received. The first `overlap` of them are also the last ones of the frame before."""

    start: int  # number of the first sample; the recording's first has the number `Recording.offset`
    samples: np.ndarray  # complex64 (count,)
    sample_rate: float
    center_hz: float | None
    floor: float  # power per Hz of the noise, see `noise_floor`
    damaged: int = 0  # new samples that were no numbers (data/values.py) and count as 0
    seed: int = 0  # of the noise beside a narrow capture
    overlap: int = 0  # samples that the frame before has too; they are counted there
    mended: np.ndarray | None = None  # complex64 (count,): what the picture shows in place of `samples`
    events: tuple[Event, ...] = ()  # the receiver's faults, numbered as `start` is
    floor_kind: str = "measured"  # or "even", "guessed", see `noise_floor`
    unit: float = 1.0  # samples as stored, integers within -1 .. 1, are so many times larger than `samples`

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
        half = SIZE // 2
        reach = columns(self.sample_rate) // 2 - half  # columns from 0 to the centre of the outermost piece
        if self.sample_rate == SAMPLE_RATE:
            yield -half, self._whole()
            return
        rng = np.random.default_rng([self.seed, self.start])
        spectrum = self._spectrum()
        count = 1 if reach <= 0 else 1 + math.ceil(2 * reach / half)
        for center in np.round(np.linspace(-reach, reach, count)).astype(int) if reach > 0 else [0]:
            yield int(center) - half, self._piece(spectrum, int(center) * SHIFT_BINS, FRAME_SAMPLES, rng)

    def spectrograms(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(column, levels, power) of each 61.44 MHz wide piece, ascending.

        column: as for `pieces`. levels: uint8 (256, 256), colormap indices, the last row first, see data.spectrogram.
        power: float32 (256, C) of the same rows, per Hz, of the C columns in the piece's middle that hold the capture;
        the others are noise.

        A capture of less than 50 MHz is not widened to 61.44 MHz: only a few columns more are computed.
        """
        robust = self.mended is not None
        wide = SIZE
        if self.sample_rate <= SAMPLE_RATE * MIDDLE[-1] / SIZE:
            wide = next((m for m in MIDDLE if m * HZ_PER_PIXEL >= self.sample_rate + LEAKAGE_HZ), SIZE)
        if wide < SIZE:
            rng = np.random.default_rng([self.seed, self.start])
            iq = self._piece(self._spectrum(), 0, wide * SHIFT_BINS, rng)
            yield -SIZE // 2, *middle_levels(iq, self.floor, robust)
            return
        for column, iq in self.pieces():
            yield column, spectrogram_levels(iq, robust=robust), shown_power(iq)[::-1]

    def _whole(self):
        """The samples of the picture, complex64; less than 40 ms are repeated up to 40 ms."""
        samples = self.samples if self.mended is None else self.mended
        whole = max(round(self.sample_rate * FRAME_SECONDS), len(samples))
        return samples if len(samples) == whole else np.resize(samples, whole)

    def _spectrum(self):
        """Their centred spectrum, complex64 (count,); divided by the number of lines of a piece it has its units."""
        samples = self._whole()
        spectrum = torch.fft.fftshift(torch.fft.fft(torch.from_numpy(samples))).numpy()
        spectrum /= np.float32(len(samples))
        return spectrum

    def _piece(self, spectrum, shift, lines, rng):
        """`lines` of a centred 40 ms spectrum (whole,) around line `shift`, as samples: complex64 (lines,)."""
        whole = len(spectrum)
        first = shift - lines // 2 + whole // 2  # line of `spectrum` that becomes the piece's first
        inside = slice(max(first, 0), min(first + lines, whole))
        placed = slice(inside.start - first, inside.stop - first)

        # Noise beside the capture, and under its edges
        soft = min(math.ceil(EDGE_HZ * FRAME_SECONDS) + 1, placed.stop - placed.start)
        piece = np.zeros(lines, np.complex64)
        piece[: placed.start + soft] = _noise(rng, placed.start + soft)
        piece[placed.stop - soft :] = _noise(rng, lines - placed.stop + soft)
        piece *= np.float32(math.sqrt(self.floor / FRAME_SECONDS))

        # Signal and noise share the power at the edges, so that the floor has no step there. A cut inside the capture
        # is softer: both ends of a sampled spectrum are neighbours and would leak into each other.
        line = np.arange(inside.start, inside.stop, dtype=np.float32) + 0.5
        share = np.minimum(line, whole - line) / (EDGE_HZ * FRAME_SECONDS)
        if first > 0:
            share = np.minimum(share, (line - first) / (CUT_HZ * FRAME_SECONDS))
        if first + lines < whole:
            share = np.minimum(share, (first + lines - line) / (CUT_HZ * FRAME_SECONDS))
        edges = np.flatnonzero(share < 1)
        angle = np.pi / 2 * share[edges]
        shared = np.sin(angle) * spectrum[inside][edges] + np.cos(angle) * piece[placed][edges]
        piece[placed] = spectrum[inside]
        piece[placed][edges] = shared
        piece *= np.float32(lines)
        return torch.fft.ifft(torch.fft.ifftshift(torch.from_numpy(piece))).numpy()


class FrameNotes:
    """What a reader of the results should know about the frames, one line for each kind of event.

    frame_notes = FrameNotes()
    for frame in recording.frames(): frame_notes.add(frame)          # or += the notes of other frames
    print("\\n".join(frame_notes.lines(recording)))
    """

    def __init__(self):
        self.frames, self.damaged, self.short, self.floors = 0, 0, 0, Counter()
        self.events = []  # of each frame that has any

    def add(self, frame: Frame) -> "FrameNotes":
        """Returns itself."""
        self.frames += 1
        self.damaged += frame.damaged
        self.short += len(frame.samples) < round(frame.sample_rate * FRAME_SECONDS)
        self.floors[frame.floor_kind] += 1
        events = within(frame.events, frame.new_start, frame.new_count)
        if events:
            self.events.append(events)
        return self

    def __iadd__(self, other: "FrameNotes") -> "FrameNotes":
        self.frames += other.frames
        self.damaged += other.damaged
        self.short += other.short
        self.floors += other.floors
        self.events += other.events
        return self

    def lines(self, recording: Recording) -> list[str]:
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


# ---- from a file to frames ------------------------------------------------------------------------------------------


def frames_of(recording: Recording, first: int, stop: int) -> Iterator[Frame]:
    """Frames `first` to `stop` - 1 of a recording; raises DataError when the file can't be read to its end."""
    width = sample_bytes(recording.datatype) * recording.channels
    length = recording.sample_rate * FRAME_SECONDS
    number = 0  # of the capture's first frame
    try:
        with open(recording.path, "rb") as file:
            for capture in recording.captures:
                count = recording.frame_count(capture)
                for i in range(max(0, first - number), min(count, stop - number)):
                    new, end = round(i * length), round((i + 1) * length)
                    begin = new
                    if i == count - 1:  # the capture's last 40 ms, or all of a shorter one
                        end = capture.count
                        begin = max(0, min(new, end - round(length)))
                    data = np.empty((end - begin) * width, np.uint8)
                    file.seek(capture.byte + begin * width)
                    if file.readinto(data) < data.nbytes:
                        raise DataError(f"{recording.path}: became shorter while it was read; run again")
                    pairs = stored_pairs(data, recording.datatype, recording.channels)[:, recording.channel]
                    start = recording.offset + capture.start + begin
                    yield frame_of(pairs, recording.sample_rate, capture.center_hz, start, new - begin)
                number += count
    except OSError as error:
        raise DataError(f"{recording.path}: can't be read ({error.strerror}); check disk and rights") from error


def stored_pairs(data: np.ndarray, datatype: str, channels: int = 1) -> np.ndarray:
    """Bytes uint8 (n,) of whole samples -> numbers as stored (count, channels, 2); 24 bits become 32."""
    if datatype == WAV_24:
        wide = np.zeros((data.size // 3, 4), np.uint8)
        wide[:, 1:] = data.reshape(-1, 3)
        data, datatype = wide.reshape(-1), "ci32_le"
    return data.view(_numbers(datatype)).reshape(-1, channels, 2)


def _numbers(datatype):
    """numpy type of one I or Q value of a complex SigMF datatype, ci8 to cf64_be."""
    match = SIGMF_DATATYPE.fullmatch(datatype)
    kind, size = (match[1], match[2]) if match[1] else (match[3], match[4])
    bits, _, order = size.partition("_")
    return np.dtype(f"{'>' if order == 'be' else '<'}{kind}{int(bits) // 8}")


def frame_of(pairs: np.ndarray, sample_rate: float, center_hz: float | None, start: int, overlap: int = 0) -> Frame:
    """Numbers (count, 2) as stored, up to 40 ms -> Frame; start and overlap are those of Frame."""
    pairs, damaged = _to_floats(pairs)
    level, unit = _level(pairs), 1.0
    # Scale the samples if needed. The picture's logarithm has a lower limit of -156 dB per Hz, which the units of
    # some recordings would reach. The generator's frames have levels of .003 to 3.
    if level > 0 and not LEVELS[0] < level < LEVELS[1]:
        pairs /= level
        unit = level
    samples = np.ascontiguousarray(pairs, np.float32).view(np.complex64)[:, 0]

    # Mend the receiver's faults, and measure the floor without them
    events = find_events(samples, sample_rate)
    mended = None
    if any(event.kind in MENDED for event in events):
        mended = mend(samples, events)
        level = _level(without_gaps(mended, events).view(np.float32))
        if level > 0 and not LEVELS[0] < level < LEVELS[1]:  # an outlier had set it
            samples, mended = samples / np.float32(level), mended / np.float32(level)
            unit *= level
    kept = samples if mended is None else without_gaps(mended, events)
    floor, floor_kind = noise_floor(kept, sample_rate)
    if mended is not None:
        fill_gaps(mended, events, floor * sample_rate, np.random.default_rng([start, 1]))
    return Frame(
        start,
        samples,
        sample_rate,
        center_hz,
        floor,
        damaged=int(damaged[overlap:].sum()),
        overlap=overlap,
        mended=mended,
        events=tuple(replace(event, start=start + event.start) for event in events),
        floor_kind=floor_kind,
        unit=unit,
    )


def _to_floats(pairs):
    """Numbers (count, 2) as stored -> float32 or float64 (count, 2), integers within -1 .. 1; bool, no number."""
    kind, size = pairs.dtype.kind, pairs.dtype.itemsize
    floats = np.ascontiguousarray(pairs, np.float32 if size < 8 else np.float64)
    if kind != "f":
        half = 2.0 ** (8 * size - 1)
        if kind == "u":
            floats -= half
        floats /= half
    damaged = np.zeros(len(floats), bool)
    if not _level(floats) * math.sqrt(len(floats)) <= LARGEST:  # seldom: this is at least the largest sample's size
        damaged = no_numbers(floats).any(1)
        floats[damaged] = 0
    return floats, damaged


def _level(floats):
    """Root mean square of complex samples, given as floats (count, 2) or (2 count,)."""
    flat = floats.reshape(-1)
    with np.errstate(over="ignore"):  # told by an infinite total
        total = float(np.dot(flat, flat))
    if not 1e-30 < total < 1e30:  # beyond what float32 can add up
        total = float(np.sum(np.square(flat, dtype=np.float64)))
    return math.sqrt(2 * total / len(flat))


def _noise(rng, count):
    """complex64 (count,) white noise of power 1."""
    pairs = rng.standard_normal((count, 2), np.float32)
    pairs *= np.float32(math.sqrt(0.5))
    return pairs.view(np.complex64)[:, 0]
