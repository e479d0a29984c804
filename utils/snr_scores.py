"""Scores of a classifier at every signal-to-noise ratio, from integer counts: count over the whole set, divide once.

    counts = sum(count(prediction, label, place, 24, 26) for ... in batches)    # place: of the frame's SNR in `snrs`
    scores(counts, MODULATIONS, SNRS)["accuracy"]

Torch only.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn


def count(prediction: torch.Tensor, label: torch.Tensor, place: torch.Tensor, classes: int, snrs: int) -> torch.Tensor:
    """Count frames by SNR, true class and predicted class.

    Args:
        prediction, label, place: integers (N,): class numbers, and which SNR a frame has.

    Returns:
        int64 (snrs, classes, classes) on the CPU; of each matrix rows are the truth, columns the prediction.

    Raises:
        ValueError: a number outside its range.
    """
    for name, values, limit in (("prediction", prediction, classes), ("label", label, classes), ("place", place, snrs)):
        if values.numel() and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(f"{name} has numbers outside 0..{limit - 1}")
    triples = ((place.cpu() * classes + label.cpu()) * classes + prediction.cpu()).long()
    return torch.bincount(triples, minlength=snrs * classes**2).view(snrs, classes, classes)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    place: torch.Tensor,
    classes: int,
    snrs: int,
) -> torch.Tensor:
    """The counts of a network over batches of (frames, labels); it is left in eval mode.

    Args:
        place: integers (N,), which SNR each frame has, in the order of the batches.
    """
    counts, start = torch.zeros(snrs, classes, classes, dtype=torch.int64), 0
    network.eval()
    for x, label in batches:
        counts += count(network(x).argmax(1), label, place[start : start + len(x)], classes, snrs)
        start += len(x)
    return counts


def accuracy(counts: torch.Tensor) -> float | None:
    """Share of right frames in counts (..., C, C); None without any frame."""
    total = int(counts.sum())
    return int(counts.diagonal(dim1=-2, dim2=-1).sum()) / total if total else None


def scores(counts: torch.Tensor, classes: Sequence[str], snrs: Sequence[int]) -> dict:
    """Plain values of the result of `count`; None where there is no frame.

    Returns:
        {"frames", "accuracy", "by_snr": {"-20": ...}, "by_class": {name: ...}, "by_class_high": the same over the
        upper half of the SNRs, "confusion_matrix": nested lists (C, C), rows are the truth}.
    """

    def by_class(matrix: torch.Tensor) -> dict:
        right, total = matrix.diagonal().tolist(), matrix.sum(1).tolist()
        return {name: r / t if t else None for name, r, t in zip(classes, right, total, strict=True)}

    return {
        "frames": int(counts.sum()),
        "accuracy": accuracy(counts),
        "by_snr": {str(snr): accuracy(matrix) for snr, matrix in zip(snrs, counts, strict=True)},
        "by_class": by_class(counts.sum(0)),
        "by_class_high": by_class(counts[len(snrs) // 2 :].sum(0)),
        "confusion_matrix": counts.sum(0).tolist(),
    }


def table(values: dict, snrs: Sequence[int]) -> str:
    """Readable lines of the result of `scores`."""

    def number(value: float | None) -> str:
        return f"{value:7.3f}" if value is not None else f"{'-':>7}"

    half = f">= {snrs[len(snrs) // 2]} dB"
    lines = [f"accuracy {number(values['accuracy']).strip()} of {values['frames']} frames", f"{'SNR dB':>9}  accuracy"]
    lines += [f"{snr:>9}  {number(value)}" for snr, value in values["by_snr"].items()]
    lines.append(f"{'class':>11}  {'all SNRs':>8}  {half:>8}")
    high = values["by_class_high"]
    return "\n".join(lines + [f"{k:>11}  {number(v):>8}  {number(high[k]):>8}" for k, v in values["by_class"].items()])
