"""Optimizer, learning rate and order of frames: equal in the segmentation scripts, so that their results compare.

    optimizer, scheduler = make_optimizer(network, lr=1e-3, epochs=11, steps=360)
    for epoch in range(11):
        for batch in epoch_order(2880, 2880, seed=0, epoch=epoch).split(8): ...; optimizer.step(); scheduler.step()

Torch only.
"""

import math

import torch
from torch import nn


def make_optimizer(
    network: nn.Module, lr: float, epochs: int, steps: int, published: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW, its rate after a warm-up on a cosine down to 0; the scheduler's step follows each of the optimizer's.

    Args:
        lr: highest learning rate.
        epochs, steps: of the training, and of an epoch.
        published: SGD with momentum .9, a tenth of the rate after every 10 epochs (the reference notebooks' recipe).
    """
    fused = next(network.parameters()).device.type in ("cpu", "cuda")
    if published:
        optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=1e-4, fused=fused)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 ** (step // steps // 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.01, fused=fused)
    total, warm_up = epochs * steps, max(1, epochs * steps // 20)

    def rate(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / total))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def epoch_order(n: int, needed: int, seed: int, epoch: int) -> torch.Tensor:
    """int64 (needed,): the frames 0 .. n - 1 of an epoch, a function of seed and epoch; repeated where too few."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch))
    return order.repeat(-(-needed // n))[:needed]
