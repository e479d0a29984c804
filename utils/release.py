"""Undo part of what class weights do to a segmentation network's decisions.

    share, shift = best_shift(logits_of, images, masks, weights)
    last_layer.bias.data += shift

Cross entropy with class weights w teaches a network the posterior of classes made w times as frequent (Saerens 2002,
Menon 2021, arXiv:2007.07314): log p + log w. It then calls rare classes too often for accuracy; with all of log w taken
back it calls them too seldom for mean IoU, which looks at each class alone. In between is a share to be measured.

Torch only.
"""

from collections.abc import Callable

import torch

SHARES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)


def best_shift(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    masks: torch.Tensor,
    weights: torch.Tensor,
    frames: int = 512,
    batch_size: int = 8,
    ignore: int = 255,
) -> tuple[float, torch.Tensor]:
    """The share of log w whose subtraction from the logits gives the highest mean IoU, and -share * log w.

    Args:
        logits_of: a batch of images -> float (B, C, H, W), by a network in evaluation mode.
        images, masks: N frames of the training part (validation has to judge), and class numbers (N, H, W) of any
            integer type; pixels equal to `ignore` don't count.
        weights: of the loss, float (C,); where one is 0, the loss never saw that class, and its logit stays.
        frames: about as many are looked at, evenly spaced.

    Returns:
        One of SHARES, the smallest of equals; float (C,).
    """
    classes = len(weights)
    excess = torch.where(weights > 0, weights, 1.0).log()  # (C,)
    pairs = torch.zeros(len(SHARES), classes**2, dtype=torch.int64)  # truth and guess, counted
    some = slice(None, None, max(1, len(images) // frames))
    for part, truth in zip(images[some].split(batch_size), masks[some].split(batch_size), strict=True):
        with torch.no_grad():
            logits = logits_of(part).float().cpu()  # (B, C, H, W)
        truth = truth.cpu().long()
        counted = truth != ignore
        for i, share in enumerate(SHARES):
            guess = (logits - share * excess.view(1, -1, 1, 1)).argmax(1)  # (B, H, W)
            pairs[i] += torch.bincount((truth * classes + guess)[counted], minlength=classes**2)
    matrices = pairs.view(-1, classes, classes)
    hit, of_truth, of_guess = matrices.diagonal(dim1=1, dim2=2), matrices.sum(2), matrices.sum(1)  # each (shares, C)
    iou = hit / (of_truth + of_guess - hit)
    present = of_truth[0] > 0  # an absent class says nothing
    share = SHARES[int(iou[:, present].mean(1).argmax())]
    return share, -share * excess
