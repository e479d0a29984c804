"""Scores from integer counts: count over the whole set, divide once.

    matrix = sum(confusion_matrix(prediction, target) for prediction, target in batches)      # segmentation
    scores(matrix, ("noise", "NR", "LTE"))["mean_iou"]
    counts = sum(count_by_snr(prediction, label, place, 24, 26) for ... in batches)           # classification
    snr_scores(counts, MODULATIONS, SNRS)["accuracy"]          # place: index of the frame's SNR in SNRS

Torch only.
"""

from collections.abc import Callable, Iterable, Sequence

import torch

# ---- segmentation: a label for each pixel ---------------------------------------------------------------------------


def confusion_matrix(
    prediction: torch.Tensor, target: torch.Tensor, num_classes: int = 3, ignore: int = 255
) -> torch.Tensor:
    """Count pixels by true and predicted class.

    Args:
        prediction: class numbers of any integer type, any shape.
        target: the same shape; pixels equal to `ignore` are not counted.

    Returns:
        int64 (num_classes, num_classes), rows are the truth, columns the prediction.

    Raises:
        ValueError: shapes differ, or a class is not in 0..num_classes - 1.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    counted = target != ignore
    truth, guess = target[counted].long(), prediction[counted].long()
    for name, classes in (("target", truth), ("prediction", guess)):
        if classes.numel() and not 0 <= classes.min() <= classes.max() < num_classes:
            raise ValueError(f"{name} has classes outside 0..{num_classes - 1}")
    pairs = torch.bincount(truth * num_classes + guess, minlength=num_classes**2)  # (classes * classes,)
    return pairs.view(num_classes, num_classes)


def scores(matrix: torch.Tensor, names: Sequence[str] = ("noise", "NR", "LTE")) -> dict:
    """Accuracy and, for each class and in the mean, recall, precision, F1 and IoU.

    A class without a true pixel is absent: no mean contains it, and "absent" names it. Pixels that are wrongly given
    this class still lower the accuracy and the other classes' recall. Precision is 0 where a class is never predicted.

    Args:
        matrix: int64 (C, C) of `confusion_matrix`.
        names: of the C classes.

    Returns:
        Plain values: {"accuracy", "mean_recall", "mean_precision", "mean_f1", "mean_iou": float or None without any
        pixel, "absent": list of names, "classes": {name: {"recall", "precision", "f1", "iou"} or None if absent},
        "pixels": int}.
    """
    matrix = matrix.double().cpu()
    hit, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)  # each (C,)
    per_class, absent = {}, []
    for i, name in enumerate(names):
        if truth[i] == 0:
            per_class[name] = None
            absent.append(name)
            continue
        per_class[name] = {
            "recall": (hit[i] / truth[i]).item(),
            "precision": (hit[i] / predicted[i].clamp(min=1)).item(),
            "f1": (2 * hit[i] / (truth[i] + predicted[i])).item(),
            "iou": (hit[i] / (truth[i] + predicted[i] - hit[i])).item(),
        }
    present = [values for values in per_class.values() if values is not None]
    means = {
        f"mean_{kind}": sum(values[kind] for values in present) / len(present) if present else None
        for kind in ("recall", "precision", "f1", "iou")
    }
    pixels = int(matrix.sum())
    accuracy = (hit.sum() / pixels).item() if pixels else None
    return {"accuracy": accuracy, **means, "absent": absent, "classes": per_class, "pixels": pixels}


def frame_matrices(
    predict: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    numbers: Iterable[int] | None = None,
    batch_size: int = 16,
    num_classes: int = 3,
    ignore: int = 255,
) -> torch.Tensor:
    """The confusion matrix of every frame; any sum over frames is the matrix of that group.

    Args:
        predict: images uint8 (B, 3, H, W) -> class numbers (B, H, W).
        images: uint8 (N, 3, H, W).
        labels: class numbers (N, H, W).
        numbers: frames to look at, all of them if None; the matrices of the others stay 0.

    Returns:
        int64 (N, num_classes, num_classes).
    """
    matrices = torch.zeros(len(images), num_classes, num_classes, dtype=torch.int64)
    numbers = torch.tensor(list(range(len(images)) if numbers is None else numbers), dtype=torch.int64)
    for chunk in numbers.split(batch_size):
        for i, prediction in zip(chunk.tolist(), predict(images[chunk]).to(labels.device), strict=True):
            matrices[i] = confusion_matrix(prediction, labels[i], num_classes, ignore)
    return matrices


def frame_groups(title: str, families: Sequence[str], snr_db: Sequence[float | None]) -> dict[str, list[int]]:
    """Which frames to score together: {name: indices}.

    The groups are all frames, single-signal frames (NR and LTE), each family, and each 10 dB of SNR. Frames whose SNR
    is None are in no SNR group. Where there is one family only, it gets no group of its own.
    """
    groups = {title: list(range(len(families)))}
    single = [i for i, family in enumerate(families) if family in ("NR", "LTE")]
    kinds = sorted(set(families))
    if len(kinds) > 1:
        if set(kinds) > {"NR", "LTE"}:
            groups[f"{title}, single-signal"] = single
        groups |= {f"{title}, {kind}": [i for i, family in enumerate(families) if family == kind] for kind in kinds}
    bins: dict[int, list[int]] = {}
    for i, value in enumerate(snr_db):
        if value is not None:
            bins.setdefault(int(value // 10), []).append(i)
    return groups | {f"{title}, {10 * b} to {10 * b + 10} dB": bins[b] for b in sorted(bins)}


def false_alarms(matrix: torch.Tensor) -> float:
    """Share of the pixels of class 0, noise, that are given another class; 0 without any. Matrix int64 (C, C)."""
    return (matrix[0, 1:].sum() / matrix[0].sum().clamp(min=1)).item()


def score_groups(
    matrices: torch.Tensor, groups: dict[str, list[int]], names: Sequence[str] = ("noise", "NR", "LTE")
) -> dict[str, dict]:
    """Score groups of frames: int64 (N, C, C) of `frame_matrices`, {name: indices} of `frame_groups`.

    Returns:
        Plain values: {name: {"frames": int, what `scores` gives, "confusion_matrix": C lists of C counts}}.
    """
    scored = {}
    for name, members in groups.items():
        whole = matrices[members].sum(0)
        scored[name] = {"frames": len(members), **scores(whole, names), "confusion_matrix": whole.tolist()}
    return scored


def table(rows: dict[str, dict], names: Sequence[str] = ("noise", "NR", "LTE")) -> str:
    """Readable lines of what `score_groups` gives; a dash stands for an absent class."""

    def number(value: float | None) -> str:
        return f"{value:8.3f}" if value is not None else f"{'-':>8}"

    width = max([len(title) for title in rows] + [3])
    head = f"{'set':{width}} {'frames':>6} {'accuracy':>8} {'recall':>8} {'F1':>8} {'mIoU':>8}"
    lines = [head + "".join(f" {name:>8}" for name in names) + "  (IoU of each class)"]
    for title, values in rows.items():
        means = [values["accuracy"], values["mean_recall"], values["mean_f1"], values["mean_iou"]]
        ious = [None if values["classes"][name] is None else values["classes"][name]["iou"] for name in names]
        lines.append(f"{title:{width}} {values['frames']:6d} " + " ".join(map(number, means + ious)))
    if any(values["absent"] for values in rows.values()):
        lines.append("-: no true pixel of that class, so it is left out of the set's means")
    return "\n".join(lines)


# ---- classification: a label for each frame, scored by signal-to-noise ratio ----------------------------------------


def count_by_snr(
    prediction: torch.Tensor, label: torch.Tensor, place: torch.Tensor, classes: int, snrs: int
) -> torch.Tensor:
    """Count frames by SNR, true class and predicted class.

    Args:
        prediction, label, place: integers (N,): class numbers, and the index of each frame's SNR.
        classes, snrs: how many there are.

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


def accuracy(counts: torch.Tensor) -> float | None:
    """Share of right frames in counts (..., C, C); None without any frame."""
    total = int(counts.sum())
    return int(counts.diagonal(dim1=-2, dim2=-1).sum()) / total if total else None


def snr_scores(counts: torch.Tensor, classes: Sequence[str], snrs: Sequence[int]) -> dict:
    """Plain values of the result of `count_by_snr`; None where there is no frame.

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


def snr_table(values: dict, snrs: Sequence[int]) -> str:
    """Readable lines of the result of `snr_scores`."""

    def number(value: float | None) -> str:
        return f"{value:7.3f}" if value is not None else f"{'-':>7}"

    half = f">= {snrs[len(snrs) // 2]} dB"
    lines = [f"accuracy {number(values['accuracy']).strip()} of {values['frames']} frames", f"{'SNR dB':>9}  accuracy"]
    lines += [f"{snr:>9}  {number(value)}" for snr, value in values["by_snr"].items()]
    lines.append(f"{'class':>11}  {'all SNRs':>8}  {half:>8}")
    high = values["by_class_high"]
    return "\n".join(lines + [f"{k:>11}  {number(v):>8}  {number(high[k]):>8}" for k, v in values["by_class"].items()])
