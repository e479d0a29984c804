"""Distillation losses for dense prediction: what a student may copy from a teacher of the same map size.

    loss = WEIGHT["pixel"] * pixel_kd(student_logits, teacher_logits.detach())

Each is a function of the student's and the teacher's float maps (N, C, H, W) and gives a scalar whose size does not
depend on the number of pixels or images: a larger picture of the same content gives the same value. Gradients flow
into both arguments, so detach the teacher. WEIGHT has the default factor of each. Torch only.
"""

import torch
from torch import nn
from torch.nn import functional as F

# pixel: Hinton. cwd, pairwise, dist: their authors' segmentation code. attention: 1e4 for a mean over the pixels of a
# map, as published; the sum over pixels used here makes that 39 on a map of 16 x 16.
WEIGHT = {"pixel": 1.0, "cwd": 3.0, "dist": 1.0, "pairwise": 10.0, "attention": 39.0}


class DistillationError(ValueError):
    """Maps that can't be compared; the message names the sizes and the remedy."""


def pixel_kd(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Divergence of the class distributions, pixel by pixel (Hinton 2015, arXiv:1503.02531).

    T^2 mean_pixels sum_c w_c p_c (log p_c - log q_c), p and q the softmax of the teacher's and student's logits over T.
    With unequal weights it is 0 for equal logits, as without, but its minimum lies elsewhere (q proportional to w p).

    Args:
        student, teacher: logits (N, C, H, W).
        temperature: T; 1, and 2 in the published pruning study.
        class_weights: w, float (C,), ones if None.
    """
    _check(student, teacher, channels=True)
    log_p, log_q = ((logits / temperature).log_softmax(1) for logits in (teacher, student))  # (N, C, H, W)
    divergence = log_p.exp() * (log_p - log_q)
    if class_weights is not None:
        divergence = divergence * class_weights.view(-1, 1, 1)
    return temperature**2 * divergence.sum(1).mean()


def channel_wise(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 4.0) -> torch.Tensor:
    """CWD: divergence of where each channel is strong (Shu, ICCV 2021, arXiv:2011.13256).

    T^2 / (N C) sum KL over softmax over the H W pixels of a channel. Zero also if channels differ by a constant.

    Args:
        student, teacher: logits or features of equally many channels (N, C, H, W).
        temperature: T.
    """
    _check(student, teacher, channels=True)
    log_q, log_p = (logits.flatten(2).div(temperature).log_softmax(2) for logits in (student, teacher))  # (N, C, H W)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(2).mean()


def dist(student: torch.Tensor, teacher: torch.Tensor, beta: float = 1.0, gamma: float = 1.0) -> torch.Tensor:
    """DIST: the correlation matters, not the value (Huang, NeurIPS 2022, arXiv:2205.10536).

    beta (1 - mean over pixels of rho over classes) + gamma (1 - mean over classes of rho over pixels), rho Pearson's
    correlation of softmax probabilities, pixels those of the whole batch. With three classes the first term has one
    degree of freedom. A class whose probability is the same everywhere has rho 0, so it counts 1 even between equals.

    Args:
        student, teacher: logits (N, C, H, W).
    """
    _check(student, teacher, channels=True)
    q, p = (logits.softmax(1).transpose(0, 1).flatten(1) for logits in (student, teacher))  # (C, N H W)
    return beta * (1 - _pearson(q, p, 0).mean()) + gamma * (1 - _pearson(q, p, 1).mean())


def pairwise(student: torch.Tensor, teacher: torch.Tensor, pool: int = 2) -> torch.Tensor:
    """Pairwise similarity of places, as in structured knowledge distillation (Liu, CVPR 2019, arXiv:1903.04197).

    mean((A_s - A_t)^2), A the cosines between all pairs of places of an image after max-pooling by `pool`. Needs
    memory for (H W / pool^2)^2 numbers an image: meant for features, not for logits of full size.

    Args:
        student, teacher: features of any channel numbers (N, C, H, W), (N, C', H, W).
    """
    _check(student, teacher)

    def similarity(features: torch.Tensor) -> torch.Tensor:
        f = F.normalize(F.max_pool2d(features, pool).flatten(2), dim=1)  # (N, C, H W / pool^2)
        return f.transpose(1, 2) @ f

    return (similarity(student) - similarity(teacher)).square().mean()


def attention(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
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
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay average + (1 - decay) network, in place: parameters and buffers; counters are copied.

    For self-distillation, the average being the teacher (as in Tarvainen 2017, arXiv:1703.01780). Without the buffers
    its batch norms would keep the statistics of the first network.
    """
    theirs = network.state_dict()
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(theirs[name], 1 - decay)
        else:
            tensor.copy_(theirs[name])


def _pearson(a: torch.Tensor, b: torch.Tensor, dim: int) -> torch.Tensor:
    return F.cosine_similarity(a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True), dim)


def _check(student: torch.Tensor, teacher: torch.Tensor, channels: bool = False) -> None:
    first = 1 if channels else 2
    if student.shape[first:] != teacher.shape[first:] or len(student) != len(teacher):
        raise DistillationError(
            f"the student's map {tuple(student.shape)} and the teacher's {tuple(teacher.shape)} differ in size: "
            "choose a student pruned from this teacher, or a loss on logits of one set of classes"
        )
