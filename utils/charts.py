"""Line charts and matrices of many classes as pictures. Torch and Pillow; no plotting library.

lines({"before": [(-20, .04), (30, .93)], "after": ...}, "SNR (dB)", "accuracy").save("accuracy.png")
matrix(counts, MODULATIONS, "test").save("confusion.png")
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

COLOURS = ("#1f6fb4", "#d9541a", "#3a9a4a", "#8a4fb0", "#8c6a3f", "#555555")


def _marks(low: float, high: float) -> list[float]:
    """Five to ten round numbers from `low` to `high`."""
    step = 10.0 ** torch.tensor((high - low) / 5).log10().floor().item()
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 8)
    first = -(-low // step)
    return [(first + i) * step for i in range(int((high - first * step) / step + 1e-9) + 1)]


def lines(
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
        colour = COLOURS[number % len(COLOURS)]
        path = [place(*point) for point in values]
        draw.line(path, fill=colour, width=2)
        for x, y in path:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((x0 + width - 4, y0 + height - 14 * (len(series) - number)), name, fill=colour, anchor="rm")
    return canvas


def matrix(counts: torch.Tensor, names: Sequence[str], title: str = "") -> Image.Image:
    """Rows of an int (C, C) confusion matrix as percentages of the true class; shares below 1 % have no number."""
    cell, left, top = 30, 80, 100
    size = len(names) * cell
    canvas = Image.new("RGB", (left + size + 8, top + size + 8), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((4, 4), title, fill="black")
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


def draw_scores(
    folder: str | Path, sets: dict[str, dict], counts: torch.Tensor, classes: Sequence[str], snrs: Sequence[int]
) -> None:
    """Write accuracy_by_snr.png, confusion.png and confusion_high.png (upper half of the SNRs).

    Args:
        folder: made if it isn't there.
        sets: {name: result of snr_scores.scores}, a curve each.
        counts: int64 (SNRs, C, C) of the set whose confusions are wanted.
    """
    folder, half = Path(folder), len(snrs) // 2
    folder.mkdir(parents=True, exist_ok=True)
    curves = {
        name: [(int(snr), value) for snr, value in values["by_snr"].items() if value is not None]
        for name, values in sets.items()
    }
    lines(curves, "SNR (dB)", "accuracy").save(folder / "accuracy_by_snr.png")
    matrix(counts.sum(0), classes, "all SNRs").save(folder / "confusion.png")
    matrix(counts[half:].sum(0), classes, f"{snrs[half]} dB and above").save(folder / "confusion_high.png")


def draw_steps(path: str | Path, rows: Sequence[dict]) -> None:
    """Score against accuracy, kept steps and failed ones; rows have "score", "validation" and "good"."""
    kinds = {"kept": True, "failed": False}
    series = {name: [(row["score"], row["validation"]) for row in rows if row["good"] == good]
              for name, good in kinds.items()}  # fmt: skip
    lines({name: points for name, points in series.items() if points}, "score", "accuracy", zero=False).save(path)
