"""What is handed on to others, and which networks the scripts start from where none is named.

    data = load_segmentation(path or default_teacher())
    data = released(checkpoint.load("runs/seg/best.pt"), training, device)    # ready to be handed on
    write("weights/seg_teacher.pt", data, facts)                              # the file, and its JSON beside it

A released network differs from best.pt of its run in three ways: part of the class weights is undone (below), kernel
taps that only ever meet padding are cut off, and its kernels are in half precision.

Logit adjustment (Menon 2021, arXiv:2007.07314; Saerens 2002): cross entropy with class weights w teaches a network the
posterior of classes that are w times as frequent, so its logits are those of the true frequencies plus log w. Such a
network names rare classes too often for the best accuracy. With all of log w subtracted it names them too seldom for
the best mean IoU, which looks at each class alone. So a share s of log w is subtracted, and s is measured on training
frames.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from data.spectrogram import SIZE
from data.spectrum_sensing import CLASSES, IGNORE, Frame
from models import segmentation
from models.fast_layers import cut_dead_taps
from models.rebuild import describe, rebuild
from utils import checkpoint
from utils.importance import cut_evenly, parameters
from utils.runs import command
from utils.training import TrainingSet

OWN_TEACHER = Path("runs/seg/best.pt")  # of train_seg.py, below the working directory
OWN_PRUNED = Path("runs/pruned/pruned.pt")  # of prune_seg.py
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"  # shipped with this repository
# What a released file keeps of best.pt. chosen_by: "masks" are the labels of validation, "teacher" its agreement.
HANDED_ON = ("kind", "classes", "frame_size", "seed", "command", "epoch", "validation", "chosen_by")
TRAINING = {  # what last.pt of a training holds beside network and optimizer, as checkpoint.misfit takes it
    "scheduler": checkpoint.schedule,
    "epoch": int,
    "step": int,
    "best": float,
    "rng": checkpoint.random_state,
}
SHARES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # of log w


# ---- networks to start from ------------------------------------------------------------------------------------------


def default_teacher() -> Path:
    """The user's own teacher if there is one, else the shipped one, from any working directory."""
    return OWN_TEACHER if OWN_TEACHER.exists() else shipped("seg_teacher.pt")


def default_pruned() -> Path | None:
    """The network that prune_seg.py has left in the working directory, if any."""
    return OWN_PRUNED if OWN_PRUNED.exists() else None


def shipped(name: str) -> Path:
    """A file of weights/, relative to the working directory where that is possible."""
    path = WEIGHTS / name
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def load_segmentation(path: str | Path) -> dict:
    """A checkpoint of train_seg.py, prune_seg.py or distill_seg.py.

    Raises:
        CheckpointError: it can't be read, holds another kind of network, or one of other classes.
    """
    data = checkpoint.load(path, kind="segmentation")
    if list(data.get("classes", CLASSES)) != list(CLASSES):
        raise checkpoint.CheckpointError(
            f"{path}: its classes are {', '.join(data['classes'])}, not {', '.join(CLASSES)}; name another file"
        )
    network, arguments = data.get("factory"), data.get("arguments")
    known = isinstance(network, str) and network.startswith("torchvision.models.segmentation.")
    if not known or not isinstance(arguments, dict) or arguments.get("num_classes") != len(CLASSES):
        raise checkpoint.CheckpointError(
            f"{path}: {str(network)[:80]} with {str(arguments)[:80]} does not tell noise, NR and LTE; name another file"
        )
    return data


def cut_student(of_teacher: dict, target: int) -> dict:
    """A student where none is given: the teacher with at most `target` parameters, cut evenly. PruneError: too few."""
    dense = rebuild(of_teacher)
    student = cut_evenly(dense, target, torch.zeros(1, 3, 64, 64))
    print(
        f"no {OWN_PRUNED}, so the teacher is cut evenly from {parameters(dense)} to {parameters(student)} parameters; "
        "prune_seg.py chooses better which channels leave"
    )
    return describe(student, of_teacher["factory"], of_teacher["arguments"])


def saved(network: nn.Module, factory: str, arguments: dict, seed: int, frame_size) -> dict:
    """What a checkpoint of a segmentation network holds: models.rebuild.describe, and where the network comes from.

    frame_size: (height, width) of the frames that it was trained on.
    """
    origin = {"kind": "segmentation", "classes": list(CLASSES), "seed": seed, "command": command()}
    return describe(network, factory, arguments) | origin | {"frame_size": list(frame_size)}


# ---- networks to hand on ---------------------------------------------------------------------------------------------


def released(data: dict, training: TrainingSet | None, device: torch.device) -> dict:
    """A copy of a checkpoint, ready to be handed on: class weights undone, dead taps cut, kernels in half precision.

    Args:
        data: best.pt of a run; optimizer and other state are left out.
        training: the frames that tell which share of log w to subtract. None for a network that learned without class
            weights: then its logits stay.
        device: where the network looks at them.

    Returns:
        As `saved`, with "class_weights_undone": the share, one of SHARES, or None.
    """
    network, share = rebuild(data), None
    if training is not None:
        judged = rebuild(data).eval().to(device, memory_format=torch.channels_last)
        logits_of = partial(segmentation.logits, judged, palette=training.palette)
        share, shift = best_shift(logits_of, training.images, training.labels, training.weights)
        segmentation.add_to_logits(network, shift)
    cut_dead_taps(network, tuple(data.get("frame_size", (SIZE, SIZE))))
    kept = {key: data[key] for key in HANDED_ON if key in data}
    ready = kept | {"class_weights_undone": share} | describe(network, data["factory"], data["arguments"])
    return ready | {"state_dict": checkpoint.halve(ready["state_dict"])}


def usual(training: TrainingSet, frames: list[Frame]) -> TrainingSet:
    """The training part without the frames of OTHER, if there are others: those that tell the share of `released`.

    Frames of OTHER show other emissions much more often than the air does, all of them labelled noise. A share that is
    best there makes noise of weak carriers elsewhere.

    Args: frames, those of the training part, in its order.
    """
    rows = [k for k, frame in enumerate(frames) if frame.family != "OTHER"]
    if len(rows) in (0, len(frames)):
        return training
    return training._replace(images=training.images[rows], labels=training.labels[rows])


def write(path: Path, data: dict, facts: dict) -> None:
    """Write a released network as FILE.pt, and `facts` (empty: this is not the first process) as JSON beside it."""
    if facts:
        checkpoint.save_weights(path, data, facts)
        print(f"{path} written, {path.stat().st_size / 1e6:.2f} MB")


def best_shift(
    logits_of: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    frames: int = 512,
    batch_size: int = 8,
    ignore: int = IGNORE,
) -> tuple[float, torch.Tensor]:
    """The share of log w whose subtraction from the logits gives the highest mean IoU, and -share * log w.

    Args:
        logits_of: a batch of images -> float (B, C, H, W), by a network in evaluation mode.
        images, labels: N frames of the training part (validation is needed to judge), and their class numbers
            (N, H, W) of any integer type; pixels equal to `ignore` don't count.
        weights: of the loss, float (C,). Where one is 0, the loss never saw that class, and its logit stays.
        frames: about as many are looked at, evenly spaced.

    Returns:
        One of SHARES, the smallest of equals; float (C,).
    """
    classes = len(weights)
    excess = torch.where(weights > 0, weights, 1.0).log()  # (C,)
    pairs = torch.zeros(len(SHARES), classes**2, dtype=torch.int64)  # truth and guess, counted
    some = slice(None, None, max(1, len(images) // frames))
    for part, truth in zip(images[some].split(batch_size), labels[some].split(batch_size), strict=True):
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
