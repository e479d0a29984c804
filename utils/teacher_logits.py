"""A teacher's logits of all frames, asked for once and kept in a file: asking takes minutes, reading does not.

    ask = lambda part: teacher(segmentation.as_input(part, palette))
    kept = keep_logits(teacher, images, ask, "runs")                   # float (N, C, h, w)

Torch and tqdm; checkpoint.py beside it writes the file.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from utils import checkpoint


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
