"""Undo part of what class weights do to a network's decisions.

    share, shift = best_shift(logits_of, images, masks, weights)
    layer.bias.data += shift           # layer: the last one, which makes the logits

Cross entropy with class weights w teaches a network the posterior of classes made w times as frequent (Saerens 2002,
Menon 2021, arXiv:2007.07314): log p + log w. It then calls rare classes too often for accuracy; with all of log w taken
back it calls them too seldom for mean IoU, which looks at each class alone. In between is a share to be measured.

Torch and utils/metrics.py only.
"""

from collections.abc import Callable, Sequence

import torch

from utils.metrics import confusion_matrix, scores

SHARES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


def best_shift(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    masks: torch.Tensor,
    weights: torch.Tensor,
    shares: Sequence[float] = SHARES,
    batch_size: int = 8,
    ignore: int = 255,
) -> tuple[float, torch.Tensor]:
    """The share of log w whose subtraction gives the highest mean IoU (the smallest of equals), and -share * log w.

    Args:
        logits_of: a batch of images -> logits float (B, C, H, W).
        images: anything that slices along frames, N of them; of the training part, validation has to judge.
        masks: class numbers (N, H, W), any integer type; pixels equal to `ignore` don't count.
        weights: of the loss, float (C,); where one is 0, the loss never saw that class, and its logit stays.
    """
    excess = torch.where(weights > 0, weights, 1.0).log()  # (C,)
    matrices = torch.zeros(len(shares), len(weights), len(weights), dtype=torch.int64)
    for part, truth in zip(images.split(batch_size), masks.split(batch_size), strict=True):
        with torch.no_grad():
            logits = logits_of(part).float()  # (B, C, H, W)
        for i, share in enumerate(shares):
            shifted = logits - share * excess.to(logits.device).view(1, -1, 1, 1)
            guess = shifted.argmax(1).to(truth.device)  # (B, H, W)
            matrices[i] += confusion_matrix(guess, truth, len(weights), ignore).cpu()
    ious = [scores(matrix, range(len(weights)))["mean_iou"] or 0.0 for matrix in matrices]
    share = shares[ious.index(max(ious))]
    return share, -share * excess
