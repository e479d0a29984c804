"""Distillation losses for dense prediction: what a student can copy from a teacher whose maps have the same size.

pixel_kd also takes logits (N, C) of networks that give one label a frame.

    loss = WEIGHT["pixel"] * pixel_kd(student_logits, teacher_logits.detach())

Each is a function of the student's and the teacher's float maps (N, C, H, W) and gives a scalar. It is a mean, so a
larger picture of the same content gives the same value. Gradients flow into both arguments, so detach the teacher.
WEIGHT has the default factor of each loss. `Losses` puts a student's whole loss together. Torch only.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

# The factors of pixel, cwd, pairwise and dist are those of their authors' code for segmentation (pixel: of the paper).
# Attention's is published as 1e4 for a mean over the pixels of a map. Here it is a sum: 1e4 / 256 = 39 on 16 x 16.
WEIGHT = {"pixel": 1.0, "cwd": 3.0, "dist": 1.0, "pairwise": 10.0, "attention": 39.0}


class DistillationError(ValueError):
    """Maps that can't be compared; the message names the sizes and the remedy."""


def pixel_kd(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    class_weights: Tensor | None = None,
    labels: Tensor | None = None,
) -> Tensor:
    """Divergence of the class distributions, pixel by pixel (Hinton 2015, arXiv:1503.02531).

    T^2 mean_pixels sum_c w_c p_c (log p_c - log q_c), p and q the softmax of the teacher's and student's logits over T.
    It is 0 for equal logits. With unequal weights its minimum lies elsewhere, where q is proportional to w p.

    Args:
        student, teacher: logits (N, C, H, W); or (N, C), where the mean is over frames.
        temperature: T; 1, and 2 in the published pruning study.
        class_weights: w, float (C,), ones if None.
        labels: int64 (N, H, W) or (N,). Pixels where the teacher names another class add 0 (conditional distillation,
            Meng 2019, arXiv:1904.12399). None: the teacher is believed everywhere.
    """
    _check(student, teacher, channels=True)
    log_p, log_q = ((logits / temperature).log_softmax(1) for logits in (teacher, student))  # (N, C, H, W)
    divergence = log_p.exp() * (log_p - log_q)
    if class_weights is not None:
        divergence = divergence * class_weights.view(-1, 1, 1)
    divergence = divergence.sum(1)  # (N, H, W) or (N,)
    if labels is not None:
        divergence = divergence * (teacher.argmax(1) == labels)
    return temperature**2 * divergence.mean()


def channel_wise(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """CWD: divergence of where each channel is strong (Shu, ICCV 2021, arXiv:2011.13256).

    T^2 / (N C) sum KL over softmax over the H W pixels of a channel. It is 0 also where channels differ by a constant.

    Args:
        student, teacher: logits or features of equally many channels (N, C, H, W).
        temperature: T.
    """
    _check(student, teacher, channels=True)
    log_q, log_p = (logits.flatten(2).div(temperature).log_softmax(2) for logits in (student, teacher))  # (N, C, H W)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(2).mean()


def dist(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """DIST: correlation instead of equal values (Huang, NeurIPS 2022, arXiv:2205.10536).

    beta (1 - mean over pixels of rho over classes) + gamma (1 - mean over classes of rho over pixels). rho is Pearson's
    correlation of softmax probabilities; the pixels are those of the whole batch. With three classes the first term has
    one degree of freedom. A class with the same probability everywhere has rho 0 and counts 1, even between equals.

    Args:
        student, teacher: logits (N, C, H, W).
    """
    _check(student, teacher, channels=True)
    q, p = (logits.softmax(1).transpose(0, 1).flatten(1) for logits in (student, teacher))  # (C, N H W)
    return beta * (1 - _pearson(q, p, 0).mean()) + gamma * (1 - _pearson(q, p, 1).mean())


def pairwise(student: Tensor, teacher: Tensor, pool: int = 2) -> Tensor:
    """Pairwise similarity of places, as in structured knowledge distillation (Liu, CVPR 2019, arXiv:1903.04197).

    mean((A_s - A_t)^2), where A has the cosines between all pairs of places of an image after max-pooling by `pool`.
    It needs memory for (H W / pool^2)^2 numbers an image, so it is meant for features, not for logits of full size.

    Args:
        student, teacher: features of any channel numbers (N, C, H, W), (N, C', H, W).
    """
    _check(student, teacher)

    def similarity(features: Tensor) -> Tensor:
        f = F.normalize(F.max_pool2d(features, pool).flatten(2), dim=1)  # (N, C, H W / pool^2)
        return f.transpose(1, 2) @ f

    return (similarity(student) - similarity(teacher)).square().mean()


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Attention transfer: the same energy at the same place (Zagoruyko 2017, arXiv:1612.03928).

    Squared distance, mean over images, of the maps mean_c F^2, each divided by its length. (The published mean over
    pixels as well would shrink with the map's area.)

    Args:
        student, teacher: features of any channel numbers (N, C, H, W), (N, C', H, W).
    """
    _check(student, teacher)
    ours, theirs = (F.normalize(features.square().mean(1).flatten(1), dim=1) for features in (student, teacher))
    return (ours - theirs).square().sum(1).mean()  # of (N, H W)


@torch.no_grad()
def update_ema(ema: nn.Module, network: nn.Module, decay: float | Tensor) -> None:
    """EMA, exponential moving average: ema <- decay ema + (1 - decay) network, in place.

    decay is a number, or a float32 tensor () where it changes from step to step in a CUDA graph. Parameters and buffers
    are averaged, counters are copied. For self-distillation, where the EMA is the teacher
    (Tarvainen 2017, arXiv:1703.01780). Without the buffers its batch norms would keep the statistics of the first
    network.
    """
    theirs, share = network.state_dict(), 1 - decay
    for name, tensor in ema.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[name], share)
        else:
            tensor.copy_(theirs[name])


def ema_decay(steps: int) -> float:
    """The decay after so many training steps: a young average must forget its start. It rises from .1 to .999."""
    return min(0.999, steps / (9 + steps))


# ---- all parts of a student's loss -----------------------------------------------------------------------------------


class Terms(NamedTuple):
    """The parts of the loss, unweighted scalars; 0 where a part is not asked for."""

    kd: Tensor  # distillation from the teacher
    ce: Tensor  # cross entropy with the labels
    own: Tensor  # distillation from the EMA of the student; "self" in log.jsonl


LOGIT_LOSSES = {"pixel": pixel_kd, "cwd": channel_wise, "dist": dist}
FEATURE_LOSSES = {"pairwise": pairwise, "attention": attention}  # of the backbone's output


@dataclass
class Losses:
    """What a student learns from. A training loop adds up alpha kd + beta ce + gamma own of `terms`.

    With alpha or beta 0, or without an EMA, that part is not computed.
    """

    teacher: nn.Module
    ema: nn.Module | None
    alpha: float
    beta: float
    names: list[str]  # of the distillation losses: keys of LOGIT_LOSSES and FEATURE_LOSSES
    temperature: float
    weights: Tensor | None = None  # float (C,): of the classes in cross entropy
    weighted_kd: bool = False  # and in pixel KD, as published
    conditional: bool = False  # pixel KD only where the teacher's class is the label's
    autocast: AbstractContextManager = nullcontext()
    ignore: int = 255  # pixels of this class number don't count
    cross_entropy: Callable[..., Tensor] = F.cross_entropy  # or one with the same arguments, over several processes

    def terms(self, student: nn.Module, x: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> Terms:
        """Forward of student and teachers. Of several processes each sees its own frames: means over their terms are
        those of the joint batch, but for "dist", whose correlation over pixels is one of the process's own.

        Args:
            student: a torchvision segmentation network, as teacher and EMA are.
            x: its input, float (B, 3, H, W).
            labels: int64 (B, H, W).
            teacher_logits: float (B, C, H, W) if they were kept; the teacher is not asked then.
        """
        wanted, wanted_features = teacher_logits, None
        with self.autocast:
            logits, features = with_features(student, x)  # (B, C, H, W), (B, F, h, w)
            with torch.no_grad():
                if wanted is None and self.alpha:
                    wanted, wanted_features = with_features(self.teacher, x)
                ema_logits = with_features(self.ema, x)[0] if self.ema else None
        kd = ce = own = logits.new_zeros(())
        if self.alpha:
            kd = self.from_teacher(logits, wanted, features, wanted_features, labels if self.conditional else None)
        if self.beta:
            ce = self.cross_entropy(logits, labels, self.weights, ignore_index=self.ignore)
        if self.ema:
            own = self.pixel_kd(logits, ema_logits)
        return Terms(kd, ce, own)

    def from_teacher(self, logits, wanted, features, wanted_features, labels=None) -> Tensor:
        """The sum of the chosen distillation losses, each with its default factor. wanted: the teacher's maps."""
        total = logits.new_zeros(())
        for name in self.names:
            if name in FEATURE_LOSSES:
                value = FEATURE_LOSSES[name](features, wanted_features)
            elif name == "pixel":
                value = self.pixel_kd(logits, wanted, labels)
            else:
                value = LOGIT_LOSSES[name](logits, wanted)
            total = total + WEIGHT[name] * value
        return total

    def pixel_kd(self, logits: Tensor, wanted: Tensor, labels: Tensor | None = None) -> Tensor:
        return pixel_kd(logits, wanted, self.temperature, self.weights if self.weighted_kd else None, labels)


def with_features(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits float32 (B, C, H, W), and the backbone's output float32 (B, F, h, w). No hook stays.

    The network may be wrapped in DistributedDataParallel.
    """
    kept = {}
    inner = network.module if isinstance(network, DistributedDataParallel) else network
    hook = inner.backbone.register_forward_hook(lambda layer, inputs, outputs: kept.update(outputs))
    try:
        logits = network(x)["out"]
    finally:
        hook.remove()
    return logits.float(), (kept["out"] if "out" in kept else kept["high"]).float()  # LR-ASPP's backbone says "high"


# ---- helpers ---------------------------------------------------------------------------------------------------------


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    return F.cosine_similarity(a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True), dim)


def _check(student: Tensor, teacher: Tensor, channels: bool = False) -> None:
    first = 1 if channels else 2
    if student.shape[first:] != teacher.shape[first:] or len(student) != len(teacher):
        raise DistillationError(
            f"the student's map {tuple(student.shape)} and the teacher's {tuple(teacher.shape)} differ in size: "
            "choose a student pruned from this teacher, or a loss on logits of one set of classes"
        )
