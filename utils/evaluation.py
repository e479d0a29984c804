"""A network over a set of frames: its confusion matrices by frame or by SNR, and a teacher's logits kept in a file."""

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.radioml import MODULATIONS, SNRS, Frames, batches
from utils import checkpoint, pictures
from utils.cost import challenge_score, cost_table, inference_cost
from utils.metrics import accuracy, count_by_snr, snr_scores, snr_table
from utils.runs import command, hardware, write_json

AMC_BATCH = 128  # frames of a forward


@torch.no_grad()
def evaluate_by_snr(
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
        counts += count_by_snr(network(x).argmax(1), label, place[start : start + len(x)], classes, snrs)
        start += len(x)
    return counts


def evaluate_amc(network: nn.Module, frames: Frames, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Counts int64 (SNRs, classes, classes) of some frames by SNR, true and predicted class; exact float32."""
    place = torch.from_numpy(np.searchsorted(SNRS, frames.snrs[rows]))
    todo = batches(frames, rows, AMC_BATCH, device=device)
    return evaluate_by_snr(network, todo, place, len(MODULATIONS), len(SNRS))


def amc_accuracy(network: nn.Module, frames: Frames, rows: np.ndarray, device: torch.device) -> float:
    """Share of frames whose modulation the network names rightly, over all SNRs."""
    return accuracy(evaluate_amc(network, frames, rows, device))


@torch.no_grad()
def keep_logits(
    teacher: nn.Module, images: torch.Tensor, ask: Callable[[torch.Tensor], object], folder: str | Path
) -> torch.Tensor:
    """Logits float (N, C, h, w) as they leave `teacher.classifier`, before they are scaled up to the frames' size.

    Args:
        teacher: a torchvision segmentation network, frozen.
        images: uint8 (N, ...), part of what names the file.
        ask: shows the teacher a part of the images, uint8 (B, ...).
        folder: where logits of the same teacher and images may lie from before; else they are written there.
    """
    digest = hashlib.sha256(images.cpu().numpy())
    for tensor in teacher.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy())
    path = Path(folder) / f"logits_{digest.hexdigest()[:16]}.pt"
    if path.exists():
        return checkpoint.load(path)["logits"]
    kept = []
    hook = teacher.classifier.register_forward_hook(lambda layer, inputs, output: kept.append(output.cpu()))
    try:
        for part in tqdm(images.split(16), "teacher", unit="batch", file=sys.stderr):
            ask(part)
    finally:
        hook.remove()
    checkpoint.save(path, {"logits": torch.cat(kept)})
    return torch.cat(kept)


# ---- modulations


def report_amc(
    networks: dict[str, nn.Module],
    frames: Frames,
    rows: np.ndarray,
    device: torch.device,
    facts: dict,
    out: Path | None = None,
) -> dict:
    """Score modulation networks on the same frames, and print tables of the first one: its cost and its accuracies.

    Args:
        networks: {name: quantised network on `device`}.
        rows: int64 (N,), frames to score.
        facts: plain values that belong beside the scores, such as seed and commands.
        out: a run's folder; it gets result.json and pictures/.

    Returns:
        `facts` and all results, plain values, as in result.json: "sets" has metrics.snr_scores of each network, "cost"
        and "layers" the challenge's cost of the first.
    """
    # Scores of every network, and the cost of the first
    counts = {name: evaluate_amc(network, frames, rows, device) for name, network in networks.items()}
    sets = {name: snr_scores(values, MODULATIONS, SNRS) for name, values in counts.items()}
    first, network = next(iter(networks.items()))
    layers = inference_cost(network, torch.zeros(1, 2, network.samples, device=device))

    # Tables
    print(cost_table(layers))
    print(snr_table(sets[first], SNRS))
    print(", ".join(f"accuracy of {name} {values['accuracy']:.4f}" for name, values in sets.items()))

    # Files
    facts = facts | {"data": frames.path.name, "scored_by": command(), "hardware": hardware(device)}
    facts |= {"torch": torch.__version__, "cost": challenge_score(layers), "sets": sets}
    facts |= {"layers": {name: layer._asdict() for name, layer in layers.items()}}
    if out:
        pictures.draw_snr_scores(out / "pictures", sets, counts[first], MODULATIONS, SNRS)
        write_json(out / "result.json", facts)
        print(f"{out}/result.json holds all results, {out}/pictures the charts")
    return facts
