"""What training scripts do in the same way, so that their results compare: optimizer, learning rate, order of frames,
bfloat16, and batch norm's statistics.

    optimizer, scheduler = make_optimizer(network, lr=1e-3, epochs=11, steps=360)
    autocast = bf16_autocast(device)
    for epoch in range(11):
        for batch in epoch_order(2880, 2880, seed=0, epoch=epoch).split(8):
            with autocast: loss = ...
            optimizer.step(); scheduler.step()
    recalibrate_batch_norm(network, batches_of_images)       # before a pruned network is judged or trained

Torch and numpy only.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

DROP_AFTER = 5  # epochs without improvement after which a plateau schedule divides the learning rate by ten


class Batch(NamedTuple):
    """Frames that belong together: those of a step, or of a whole part of the set."""

    # Levels are places in the palette, 0 to 255: one number for each pixel instead of a colour.
    images: Tensor  # uint8 pictures (B, 3, H, W) or levels (B, H, W); as a network's input float (B, 3, H, W)
    labels: Tensor  # the class of each pixel, (B, H, W)
    teacher_logits: Tensor | None = None  # float (B, C, h, w), before they are scaled up to H x W


class TrainingSet(NamedTuple):
    """The training part in memory."""

    images: Tensor  # uint8 levels (N, H, W) of a palette, or pictures (N, 3, H, W)
    labels: Tensor  # uint8 (N, H, W); blank where a training is label-free
    palette: Tensor | None  # uint8 (256, 3): the colour of each level
    weights: Tensor | None  # float (C,): of the classes in the loss


def make_optimizer(
    network: nn.Module, lr: float, epochs: int, steps: int, published: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with a warm-up and a cosine down to 0. Call the scheduler's step after each of the optimizer's.

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
    total, warm_up = epochs * steps, max(1, epochs * steps // 20)  # the rate rises during the first 5 % of all steps

    def rate(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / total))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def epoch_order(n: int, needed: int, seed: int, epoch: int) -> torch.Tensor:
    """int64 (needed,): a shuffled order of frames 0 .. n - 1, repeated where n is less. Seed and epoch decide it."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch))
    return order.repeat(-(-needed // n))[:needed]


def epoch_rows(rows: np.ndarray, steps: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (steps * batch_size,): the rows of a large file that an epoch reads, batch after batch.

    A function of seed and epoch. Rows ascend within a batch, because a disk reads them faster in that order.

    Args:
        rows: int64 (N,), the training part; repeated where it is too short.
    """
    order = epoch_order(len(rows), steps * batch_size, seed, epoch).numpy()
    return np.sort(rows[order].reshape(steps, batch_size), axis=1).ravel()


def falling_rate(lr: float, schedule: str, done: int, total: int, drops: int = 0) -> float:
    """The learning rate of the next optimizer step.

    Args:
        lr: at the start.
        schedule: "cosine" falls to 0 along a cosine; "plateau" divides the rate by ten at each drop.
        done, total: optimizer steps so far, and of the whole training; for the cosine.
        drops: for the plateau.
    """
    if schedule == "cosine":
        return lr * (0.5 + 0.5 * math.cos(math.pi * done / total))
    return lr * 0.1**drops


@dataclass
class Progress:
    """How far a training with one validation after each epoch has come; plain values, for a checkpoint."""

    epochs: int = 0  # complete ones
    batch: int = 0  # batches done in the present epoch
    loss_sum: float = 0.0  # over these batches
    accuracy: float | None = None  # latest on validation
    best: float = -1.0  # highest accuracy of an epoch
    waited: int = 0  # epochs since then
    drops: int = 0  # how often a plateau schedule has lowered the learning rate

    def end_epoch(self, accuracy: float) -> bool:
        """Note an epoch's accuracy on validation and begin the next epoch; whether it is the best so far."""
        self.accuracy = accuracy
        self.epochs, self.batch, self.loss_sum = self.epochs + 1, 0, 0.0
        if accuracy > self.best:
            self.best, self.waited = accuracy, 0
            return True
        self.waited += 1
        self.drops += self.waited % DROP_AFTER == 0
        return False


def native_bf16(device: str | torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: CUDA of compute capability 8, or a CPU with AMX or AVX512-BF16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if torch.device(device).type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False


def bf16_autocast(device: torch.device, wanted: bool = True) -> AbstractContextManager:
    """Autocast to bfloat16 where it is wanted and faster than float32, else a context that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16) if wanted and native_bf16(device) else nullcontext()


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Measure the statistics of batch norm anew, as plain means over the batches, in place. Returns the model.

    Without it a pruned network is judged by statistics of channels that are gone (EagleEye, Li 2020,
    arXiv:2007.02491). No weight moves, and every other layer stays in eval mode.

    Args:
        model: left in eval mode.
        batches: inputs of the model; two at least in each batch where a norm sees a single position.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    with torch.no_grad():
        for x in batches:
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model
