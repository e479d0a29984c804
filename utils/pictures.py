"""Pictures of results: spectrogram, truth and prediction side by side, and the confusion matrix. Torch and Pillow."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

COLOURS = torch.tensor([[24, 24, 32], [230, 97, 0], [64, 176, 166]], dtype=torch.uint8)  # noise, NR, LTE
IGNORED = torch.tensor([128, 128, 128], dtype=torch.uint8)


def paint(mask: torch.Tensor) -> torch.Tensor:
    """Class numbers (H, W) of any integer type -> uint8 (3, H, W) in COLOURS; numbers beyond them are grey."""
    table = IGNORED.repeat(256, 1)
    table[: len(COLOURS)] = COLOURS
    return table[mask.long()].permute(2, 0, 1)


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


def confusion_picture(matrix: torch.Tensor, names: Sequence[str], title: str = "") -> Image.Image:
    """Rows of an int (C, C) matrix as percentages of the true class; an absent class has dashes."""
    cell, left, top = 96, 80, 56
    size = len(names) * cell
    canvas = Image.new("RGB", (left + size + 8, top + size + 8), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((4, 4), title, fill="black")
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


def draw_set(
    folder: str | Path,
    title: str,
    names: Sequence[str],
    images: torch.Tensor,
    masks: torch.Tensor,
    predict: Callable[[torch.Tensor], torch.Tensor],
    matrix: Sequence,
    classes: Sequence[str],
) -> None:
    """A set's confusion matrix, and six of its frames, spread evenly, side by side with truth and prediction.

    Args:
        folder, title: where to, and how the files' names begin.
        names, images, masks: of all frames: uint8 (N, 3, H, W), classes (N, H, W).
        predict: images -> classes.
        matrix: int (C, C), rows are the true class.
        classes: C names.
    """
    save(confusion_picture(torch.as_tensor(matrix), classes, title), Path(folder) / f"{title}_confusion.png")
    some = sorted({round(i * (len(names) - 1) / 5) for i in range(6)})  # the first and the last among them
    for i, *parts in zip(some, images[some], masks[some], predict(images[some]).cpu(), strict=True):
        save(side_by_side(*parts, names[i]), Path(folder) / f"{title}_{names[i].replace('/', '_')}.png")


def save(picture: Image.Image, path: str | Path) -> None:
    """Write a PNG, making the folder; quickly, a tenth larger than it could be."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, format="PNG", compress_level=1)
