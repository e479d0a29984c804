"""Pictures of results, PNG: spectrograms with truth and prediction, waterfalls, confusion matrices, line charts.

    save(side_by_side(image, truth, prediction), "frame.png")
    waterfall.add(levels_over_time(samples, rows=16), start_s, seconds, low_hz, span_hz)     # frame by frame
    save(waterfall.draw(boxes, palette, "a recording"), "waterfall.png")
    save(bars(("stem", "head"), {"importance": (.2, 1.), "ratio": (.5, .9)}), "table.png")
    save(line_chart({"before": [(-20, .04), (30, .93)], "after": ...}, "SNR (dB)", "accuracy"), "accuracy.png")
    save(percent_matrix(counts, MODULATIONS, "test"), "confusion.png")

Numpy, torch, Pillow and runs.py, which writes files whole; no plotting library.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from utils import runs

# ---- segmentation ---------------------------------------------------------------------------------------------------

COLOURS = torch.tensor([[24, 24, 32], [230, 97, 0], [64, 176, 166]], dtype=torch.uint8)  # noise, NR, LTE
IGNORED = torch.tensor([128, 128, 128], dtype=torch.uint8)
NO_CLASS = (120, 120, 120)  # of a bar


def paint(labels: torch.Tensor) -> torch.Tensor:
    """Class numbers (H, W) of any integer type -> uint8 (3, H, W) in COLOURS; numbers beyond them are grey."""
    table = IGNORED.repeat(256, 1)
    table[: len(COLOURS)] = COLOURS
    return table[labels.long()].permute(2, 0, 1)


def side_by_side(image: torch.Tensor, truth: torch.Tensor, prediction: torch.Tensor, title: str = "") -> Image.Image:
    """A spectrogram uint8 (3, H, W), its true and its predicted classes (H, W), with captions."""
    parts = {"spectrogram": image, "truth": paint(truth), "prediction": paint(prediction)}
    height, width = image.shape[1:]
    top, gap = 28, 4
    canvas = Image.new("RGB", (3 * width + 2 * gap, height + top), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((2, 2), title, fill="black")
    for i, (name, pixels) in enumerate(parts.items()):
        left = i * (width + gap)
        draw.text((left + 2, 15), name, fill="black")
        canvas.paste(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), (left, top))
    return canvas


class Bar(NamedTuple):
    """A stretch of the frequency axis, drawn above a spectrogram."""

    low_hz: float
    high_hz: float
    kind: int | None  # class number, or None for no class
    text: str


def labelled_spectrogram(
    image: torch.Tensor, labels: torch.Tensor, low_hz: float, span_hz: float, bars: Sequence[Bar], title: str = ""
) -> Image.Image:
    """A spectrogram, and beside it the same in grey with labels in colour and bars above; the axis in MHz below.

    Args:
        image: uint8 (3, H, W), rows are time.
        labels: class numbers int (H, W).
        low_hz, span_hz: frequency of the left edge, and width of the picture.
    """
    # Colour over grey
    grey = image.double().mean(0).expand(3, -1, -1)  # (3, H, W)
    colour = COLOURS[labels].permute(2, 0, 1)
    painted = torch.where(labels > 0, 0.5 * grey + 0.5 * colour, grey).to(torch.uint8)

    # Two panels with five ticks each
    rows, columns = labels.shape
    wide, high, top, gap = columns * math.ceil(400 / columns), rows * 2, 24, 12
    canvas = Image.new("RGB", (2 * wide + 3 * gap, top + high + 20), "white")
    draw = ImageDraw.Draw(canvas)
    for left, part in ((gap, image), (wide + 2 * gap, painted)):
        panel = Image.fromarray(part.permute(1, 2, 0).contiguous().numpy())
        canvas.paste(panel.resize((wide, high), Image.Resampling.NEAREST), (left, top))
        for tick, anchor in enumerate(("la", "ma", "ma", "ma", "ra")):
            x, hz = left + round(tick / 4 * (wide - 1)), low_hz + tick / 4 * span_hz
            draw.line((x, top + high, x, top + high + 4), fill="black")
            draw.text((x, top + high + 6), f"{hz / 1e6:.2f}", fill="black", anchor=anchor)

    # Bars above the right panel
    for bar in bars:
        first, last = (wide + 2 * gap + (hz - low_hz) / span_hz * wide for hz in (bar.low_hz, bar.high_hz))
        fill = NO_CLASS if bar.kind is None else tuple(COLOURS[bar.kind].tolist())
        draw.rectangle((first, top - 6, last, top - 2), fill=fill)
        draw.text(((first + last) / 2, 3), bar.text, fill="black", anchor="ma")
    draw.text((gap, 3), title, fill="black")
    return canvas


# ---- a whole recording over time ------------------------------------------------------------------------------------

WATERFALL_COLUMNS = 512  # frequencies
LOOKS = 512  # FFTs of a frame at the most
WATERFALL_ROWS = 700  # of the picture
WATERFALL_SIZE = (900, WATERFALL_ROWS)  # pixels
TEXT_HIGH = 12  # pixels of a line of text


def levels_over_time(samples: np.ndarray, rows: int) -> np.ndarray:
    """Power in `rows` equal stretches of complex64 (count,) samples at 512 frequencies: float32 (rows, 512).

    Both axes ascend; a row is the mean of some FFTs with a Hann window, evenly spread over its time. The sum of white
    noise's mean power over all frequencies is 512 times its power, so a value divided by the sample rate is per Hz.
    Fewer than 512 samples are taken with zeros behind them; rows have at least 512 samples.
    """
    size = WATERFALL_COLUMNS
    if len(samples) < size:
        samples = np.concatenate([samples, np.zeros(size - len(samples), np.complex64)])
    rows = max(1, min(rows, len(samples) // size))
    looks = max(1, min(LOOKS, 2 * len(samples) // size) // rows)  # more would overlap by more than half
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    edges = np.linspace(0, len(samples), rows + 1).astype(int)
    first = np.linspace(edges[:-1], edges[1:] - size, looks, axis=1).astype(int).ravel()  # (rows * looks,)
    parts = np.lib.stride_tricks.sliding_window_view(samples, size)[first] * window
    spectrum = torch.fft.fftshift(torch.fft.fft(torch.from_numpy(parts)), dim=1)
    power = spectrum.abs().square_().view(rows, looks, size).mean(1)
    return (power / float(np.sum(window**2))).numpy()


class Box(NamedTuple):
    """A carrier in a waterfall."""

    low_hz: float
    high_hz: float
    times_s: list  # (first, last) of each appearance
    kind: int | None  # class number, or None for no class
    text: str


class Spectrum(NamedTuple):
    """A row of a waterfall."""

    start_s: float
    seconds: float
    low_hz: float
    span_hz: float
    power: np.ndarray  # float32 (512,), per Hz


class Waterfall:
    """Spectra of a recording of any length, summed up so that some thousand rows stay."""

    def __init__(self):
        self.rows: list[Spectrum] = []  # ascending in time
        self.longest_s = 0.0  # of rows that were put together

    def add(self, levels: np.ndarray, start_s: float, seconds: float, low_hz: float, span_hz: float) -> None:
        """The spectra float32 (rows, 512) of `seconds` from `start_s` on, from `low_hz` to `low_hz` + `span_hz`."""
        each = seconds / len(levels)
        self.rows += [Spectrum(start_s + i * each, each, low_hz, span_hz, row) for i, row in enumerate(levels)]
        if len(self.rows) > 4 * WATERFALL_ROWS:
            self._shorten()

    def _shorten(self):
        """Put rows together that follow each other at one frequency, until half of what is allowed is left."""
        self.rows = self._joined()
        while len(self.rows) > 2 * WATERFALL_ROWS:
            self.longest_s = 2 * max(self.longest_s, min(row.seconds for row in self.rows))
            joined = self._joined()
            few = len(joined) > 0.9 * len(self.rows) and len(self.rows) > 3 * WATERFALL_ROWS
            self.rows = joined[::2] if few else joined  # of captures that are short and never at one frequency twice
            if few:
                break

    def _joined(self):
        rows = []
        for row in self.rows:
            last = rows[-1] if rows else None
            if (
                last
                and last.seconds + row.seconds <= 1.01 * self.longest_s
                and (last.low_hz, last.span_hz) == (row.low_hz, row.span_hz)
                and abs(last.start_s + last.seconds - row.start_s) < 0.5 * row.seconds
            ):
                seconds = last.seconds + row.seconds
                power = (last.seconds * last.power + row.seconds * row.power) / seconds
                rows[-1] = last._replace(seconds=seconds, power=power)
            else:
                rows.append(row)
        return rows

    def draw(self, boxes: Sequence[Box], palette: np.ndarray, names: Sequence[str], title: str = "") -> Image.Image:
        """The waterfall with its carriers: frequency in MHz, time in s downwards, one scale of dB for all of it.

        Args:
            boxes: are outlined where and when they are there; their texts stand above, none over another.
            palette: uint8 (256, 3), colours from weak to strong.
            names: of the classes, for the legend, as COLOURS has them.
        """
        wide, high = WATERFALL_SIZE
        low_hz = min(row.low_hz for row in self.rows)
        high_hz = max(row.low_hz + row.span_hz for row in self.rows)
        start_s, end_s = self.rows[0].start_s, max(row.start_s + row.seconds for row in self.rows)
        pixels, scale = self._pixels(low_hz, high_hz, start_s, end_s)

        def x_of(hz: float) -> float:
            return left + (hz - low_hz) / (high_hz - low_hz) * (wide - 1)

        def y_of(seconds: float) -> float:
            return top + (seconds - start_s) / (end_s - start_s) * (high - 1)

        left = 64
        lanes, hidden = _lanes([(x_of((box.low_hz + box.high_hz) / 2), box.text) for box in boxes], left, left + wide)
        top = 54 + TEXT_HIGH * (1 + max(lanes.values(), default=0))
        canvas = Image.new("RGB", (left + wide + 100, top + high + 44), "white")
        draw = ImageDraw.Draw(canvas)
        shown = np.where(np.isnan(pixels), 0, np.clip((pixels - scale[0]) / (scale[1] - scale[0]), 0, 1))
        coloured = palette[np.round(255 * shown).astype(np.uint8)]
        coloured[np.isnan(pixels)] = 255
        canvas.paste(Image.fromarray(coloured), (left, top))
        title += f" ({hidden} more rows have no room for a label)" if hidden else ""
        draw.text((left, 3), title, fill="black")
        _legend(draw, names, left)
        _axes(draw, (left, top), (low_hz, high_hz), (start_s, end_s))
        _scale_bar(canvas, draw, palette, scale, (left + wide + 16, top))
        for number, box in enumerate(boxes):
            colour = NO_CLASS if box.kind is None else tuple(COLOURS[box.kind].tolist())
            edges = max(x_of(box.low_hz), left), min(x_of(box.high_hz), left + wide - 1)
            for first, last in _joined(box.times_s, (end_s - start_s) / high):
                outline = (edges[0], y_of(first), max(edges[1], edges[0] + 1), min(y_of(last), top + high - 1))
                for grown, ink in ((2, "black"), (1, colour), (0, colour), (-1, "black")):
                    x0, y0, x1, y1 = outline
                    if x1 - x0 > 2 and y1 - y0 > 2:
                        draw.rectangle((x0 - grown, y0 - grown, x1 + grown, y1 + grown), outline=ink)
            if number in lanes:
                x, y = (edges[0] + edges[1]) / 2, 46 + TEXT_HIGH * lanes[number]
                draw.line((x, y + TEXT_HIGH, x, top - 2), fill=colour)
                draw.rectangle((edges[0], top - 5, edges[1], top - 2), fill=colour)
                centre, _ = _text_at(x, box.text, left, left + wide)
                draw.text((centre, y), box.text, fill="black", anchor="ma")
        return canvas

    def _pixels(self, low_hz, high_hz, start_s, end_s):
        """Mean levels in dB, float (high, wide), nan where nothing was recorded; and the scale's ends in dB."""
        wide, high = WATERFALL_SIZE
        total, count = np.zeros((high, wide), np.float64), np.zeros((high, wide), np.int32)
        hz = low_hz + (np.arange(wide) + 0.5) / wide * (high_hz - low_hz)
        for start, seconds, low, span, power in self.rows:
            inside = np.flatnonzero((hz >= low) & (hz < low + span))
            column = ((hz[inside] - low) / span * WATERFALL_COLUMNS).astype(int)
            first = int((start - start_s) / (end_s - start_s) * high)
            stop = max(first + 1, math.ceil((start + seconds - start_s) / (end_s - start_s) * high - 1e-6))
            total[first:stop, inside] += power[column]
            count[first:stop, inside] += 1
        with np.errstate(divide="ignore", invalid="ignore"):
            db = 10 * np.log10(np.maximum(total / count, 1e-30))
        seen = db[count > 0]
        low, high = (float(value) for value in np.percentile(seen, (2, 99.9)))
        return db, (math.floor(low), max(math.ceil(high), math.floor(low) + 3))


def _text_at(x, text, left, right):
    """Where a text around x is centred so that it stays inside, and half its width in pixels."""
    half = ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(text) / 2 + 4
    return min(max(x, left + half), max(right - half, left + half)), half


def _lanes(labels, left, right, most=12):
    """{number: line} of texts (x, text) such that none covers another, and how many found no place in `most` lines."""
    lanes, ends = {}, [[] for _ in range(most)]
    for number, (x, text) in enumerate(labels):
        centre, half = _text_at(x, text, left, right)
        free = (i for i in range(most) if all(centre + half <= a or centre - half >= b for a, b in ends[i]))
        lane = next(free, None)
        if lane is not None:
            ends[lane].append((centre - half, centre + half))
            lanes[number] = lane
    return lanes, len(labels) - len(lanes)


def _joined(times, apart):
    """Stretches (first, last) with those joined that lie closer than `apart`."""
    joined = []
    for first, last in sorted(times):
        if joined and first - joined[-1][1] < apart:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _legend(draw, names, left):
    for number, name in enumerate((*names[1:], "other")):
        colour = tuple(COLOURS[number + 1].tolist()) if number + 1 < len(names) else NO_CLASS
        x = left + 70 * number
        draw.rectangle((x, 24, x + 14, 34), outline=colour, width=3)
        draw.text((x + 20, 23), name, fill="black")


def _axes(draw, corner, hz, seconds):
    (left, top), (wide, high) = corner, WATERFALL_SIZE
    places = max(1, math.ceil(1 - math.log10(max((hz[1] - hz[0]) / 1e6, 1e-3))))
    for tick in range(7):
        x, mhz = left + round(tick / 6 * (wide - 1)), (hz[0] + tick / 6 * (hz[1] - hz[0])) / 1e6
        draw.line((x, top + high, x, top + high + 4), fill="black")
        draw.text((x, top + high + 6), f"{mhz:.{places}f}", fill="black", anchor="ma")
    draw.text((left + wide / 2, top + high + 24), "frequency (MHz)", fill="black", anchor="ma")
    places = max(1, math.ceil(1 - math.log10(max(seconds[1] - seconds[0], 1e-4))))
    for tick in range(9):
        y, value = top + round(tick / 8 * (high - 1)), seconds[0] + tick / 8 * (seconds[1] - seconds[0])
        draw.line((left - 5, y, left - 1, y), fill="black")
        draw.text((left - 6, y), f"{value:.{places}f}", fill="black", anchor="rm")
    draw.text((4, top - 16), "time (s)", fill="black")


def _scale_bar(canvas, draw, palette, scale, corner):
    """The colours' scale beside the picture; dB against full scale for integers, against 1 for floats."""
    (x, top), high = corner, WATERFALL_ROWS
    ramp = np.repeat(palette[np.linspace(255, 0, high).round().astype(int)][:, None], 16, 1)
    canvas.paste(Image.fromarray(np.ascontiguousarray(ramp)), (x, top))
    for tick in range(6):
        y = top + round(tick / 5 * (high - 1))
        draw.text((x + 22, y), f"{scale[1] - tick / 5 * (scale[1] - scale[0]):.0f}", fill="black", anchor="lm")
    draw.text((x - 6, top - 16), "dB per Hz", fill="black")


# ---- charts and tables ----------------------------------------------------------------------------------------------


def _canvas(width, height, title):
    """A white picture with a margin of 8 pixels and a title, and the pen for it."""
    canvas = Image.new("RGB", (width + 8, height + 8), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((4, 4), title, fill="black")
    return canvas, draw


def confusion_picture(matrix: torch.Tensor, names: Sequence[str], title: str = "") -> Image.Image:
    """Rows of an int (C, C) matrix as percentages of the true class; an absent class has dashes."""
    cell, left, top = 96, 80, 56
    canvas, draw = _canvas(left + len(names) * cell, top + len(names) * cell, title)
    draw.text((left, 22), "predicted", fill="black")
    draw.text((4, top - 18), "true", fill="black")
    for i, name in enumerate(names):
        draw.text((left + i * cell + cell // 2, top - 10), name, fill="black", anchor="mm")
        draw.text((left - 6, top + i * cell + cell // 2), name, fill="black", anchor="rm")
        total = int(matrix[i].sum())
        for j in range(len(names)):
            share = int(matrix[i, j]) / total if total else 0.0
            x, y = left + j * cell, top + i * cell
            shade = (round(255 - 215 * share), round(255 - 145 * share), round(255 - 75 * share))
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), fill=shade, outline="grey")
            text = f"{100 * share:.1f} %" if total else "-"
            draw.text((x + cell // 2, y + cell // 2), text, fill="white" if share > 0.5 else "black", anchor="mm")
    return canvas


def spread(count: int, wanted: int = 6) -> list[int]:
    """Some of the numbers 0 .. count - 1, evenly spread, the first and the last among them."""
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


def draw_frames(
    folder: str | Path,
    title: str,
    names: Sequence[str],
    images: torch.Tensor,
    labels: torch.Tensor,
    predictions: torch.Tensor,
) -> None:
    """Frames side by side with their true and predicted classes, a PNG each.

    Args:
        folder, title: where the files go, and how their names begin.
        names: N, as title of each picture.
        images: uint8 (N, 3, H, W).
        labels, predictions: class numbers (N, H, W).
    """
    for name, *parts in zip(names, images, labels, predictions, strict=True):
        save(side_by_side(*parts, name), Path(folder) / f"{title}_{name.replace('/', '_')}.png")


def save(picture: Image.Image, path: str | Path) -> None:
    """Write a PNG, whole or not at all, and make its folder. Light compression: quick, and a tenth larger."""
    runs.write_whole(path, lambda file: picture.save(file, format="PNG", compress_level=1))


# ---- charts ---------------------------------------------------------------------------------------------------------

LINE_COLOURS = ("#1f6fb4", "#d9541a", "#3a9a4a", "#8a4fb0", "#8c6a3f", "#555555")


def _marks(low: float, high: float) -> list[float]:
    """Five to ten round numbers from `low` to `high`."""
    step = 10.0 ** torch.tensor((high - low) / 5).log10().floor().item()
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 8)
    first = -(-low // step)
    return [(first + i) * step for i in range(int((high - first * step) / step + 1e-9) + 1)]


def line_chart(
    series: dict[str, Sequence[tuple[float, float]]], x_title: str, y_title: str, title: str = "", zero: bool = True
) -> Image.Image:
    """One line of dots for each name; with `zero` the vertical axis starts at 0."""
    points = [point for values in series.values() for point in values] or [(0, 0)]
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    low = min(low, 0) if zero else low
    right, high = right if right > left else left + 1, high if high > low else low + 1
    width, height, x0, y0 = 640, 400, 60, 40
    canvas = Image.new("RGB", (x0 + width + 30, y0 + height + 50), "white")
    draw = ImageDraw.Draw(canvas)

    def place(x: float, y: float) -> tuple[float, float]:
        return x0 + (x - left) / (right - left) * width, y0 + height - (y - low) / (high - low) * height

    draw.text((x0, 4), title, fill="black")
    draw.text((x0, 22), y_title, fill="black")
    draw.text((x0 + width // 2, y0 + height + 36), x_title, fill="black", anchor="mm")
    for mark in _marks(left, right):
        x, y = place(mark, low)
        draw.line((x, y0, x, y), fill="#dddddd")
        draw.text((x, y + 12), f"{mark:.4g}", fill="black", anchor="mm")
    for mark in _marks(low, high):
        x, y = place(left, mark)
        draw.line((x, y, x + width, y), fill="#dddddd")
        draw.text((x - 6, y), f"{mark:.4g}", fill="black", anchor="rm")
    for number, (name, values) in enumerate(series.items()):
        colour = LINE_COLOURS[number % len(LINE_COLOURS)]
        path = [place(*point) for point in values]
        draw.line(path, fill=colour, width=2)
        for x, y in path:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((x0 + width - 4, y0 + height - 14 * (len(series) - number)), name, fill=colour, anchor="rm")
    return canvas


def bars(names: Sequence[str], columns: dict[str, Sequence[float]]) -> Image.Image:
    """A line of bars for each name, one bar of a value from 0 to 1 in each titled column."""
    line, left, length = 16, 8 * max(map(len, names)) + 16, 200
    picture = Image.new("RGB", (left + len(columns) * (length + 12), (len(names) + 1) * line + 8), "white")
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(names, 1):
        draw.text((4, row * line), name, fill="black")
    for column, (title, values) in enumerate(columns.items()):
        x = left + column * (length + 12)
        draw.text((x, 2), title, fill="black")
        for row, value in enumerate(values, 1):
            y = row * line
            draw.rectangle((x, y, x + round(value * length), y + line - 4), fill=(70, 130, 180))
    return picture


def percent_matrix(counts: torch.Tensor, names: Sequence[str], title: str = "") -> Image.Image:
    """Rows of an int (C, C) confusion matrix as percentages of the true class; shares below 1 % have no number."""
    cell, left, top = 30, 80, 100
    canvas, draw = _canvas(left + len(names) * cell, top + len(names) * cell, title)
    draw.text((4, 20), "rows true, columns predicted, % of the row", fill="black")
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)  # (C, C)
    for i, name in enumerate(names):
        draw.text((left - 6, top + i * cell + cell // 2), name, fill="black", anchor="rm")
        label = Image.new("RGB", (60, 12), "white")
        ImageDraw.Draw(label).text((0, 6), name, fill="black", anchor="lm")
        canvas.paste(label.rotate(90, expand=True), (left + i * cell + cell // 2 - 6, top - 64))
        for j, share in enumerate(shares[i].tolist()):
            x, y = left + j * cell, top + i * cell
            shade = (round(255 - 215 * share), round(255 - 145 * share), round(255 - 75 * share))
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=shade, outline="#cccccc")
            if share >= 0.01:
                colour = "white" if share > 0.5 else "black"
                draw.text((x + cell // 2, y + cell // 2), f"{100 * share:.0f}", fill=colour, anchor="mm")
    return canvas


def draw_snr_scores(
    folder: str | Path, sets: dict[str, dict], counts: torch.Tensor, classes: Sequence[str], snrs: Sequence[int]
) -> None:
    """Write accuracy_by_snr.png, confusion.png and confusion_high.png (upper half of the SNRs).

    Args:
        folder: made if it isn't there.
        sets: {name: result of metrics.snr_scores}, a curve each.
        counts: int64 (SNRs, C, C) of the set whose confusions are wanted.
    """
    folder, half = Path(folder), len(snrs) // 2
    curves = {
        name: [(int(snr), value) for snr, value in values["by_snr"].items() if value is not None]
        for name, values in sets.items()
    }
    save(line_chart(curves, "SNR (dB)", "accuracy"), folder / "accuracy_by_snr.png")
    save(percent_matrix(counts.sum(0), classes, "all SNRs"), folder / "confusion.png")
    save(percent_matrix(counts[half:].sum(0), classes, f"{snrs[half]} dB and above"), folder / "confusion_high.png")


def draw_steps(path: str | Path, rows: Sequence[dict]) -> None:
    """Score against accuracy, kept steps and failed ones; rows have "score", "validation" and "good"."""
    kinds = {"kept": True, "failed": False}
    series = {name: [(row["score"], row["validation"]) for row in rows if row["good"] == good]
              for name, good in kinds.items()}  # fmt: skip
    save(line_chart({name: dots for name, dots in series.items() if dots}, "score", "accuracy", zero=False), path)
