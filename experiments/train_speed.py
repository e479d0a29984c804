"""How many images a second train_seg.py trains on, beside the notebook-style loop it replaces. A minute or three.

    python -m experiments.train_speed                 # both ends, in turns
    python -m experiments.train_speed --all           # each means added one by one

The last row is what train_seg.py does in five sixths of its epochs: half of each frame, so not the same work. Each row
trains DeepLabV3-MobileNetV3-Large on 256 x 256 frames. They take turns of a few steps, so that a change of the
machine's clock or load meets all of them, and the medians are compared. With AMX the ratio is above 2. Without bfloat16
units it is less.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from data import DataError, augment
from data.hdf4 import write_raster
from data.spectrogram import PARULA
from data.spectrum_sensing import SpectrumSensing, find_frames, read_tensors
from models import segmentation
from models.fast_layers import DepthwiseConv2d, DilatedConv2d, speed_up
from utils import runs
from utils.runs import RunError, hardware, run
from utils.training import native_bf16

# Each row adds one means to the row before it.
MEANS = {
    "notebook loop: PIL, batch 4, NCHW, fp32": {},
    "+ one uint8 tensor in memory": {"memory": True},
    "+ channels_last": {"channels_last": True},
    "+ batch 8": {"batch_size": 8},
    "+ bfloat16 where the processor has it": {"half": True},
    "+ fused optimizer": {"fused": True},
    "+ own backward of depthwise layers": {"fast": (DepthwiseConv2d,)},
    "+ dead taps left out": {"fast": (DepthwiseConv2d, DilatedConv2d)},
    "train_seg.py: all, AdamW, augmentation": {"augmented": True},
    "train_seg.py: frames of half height": {"share": 0.5},
}
ENDS = (list(MEANS)[0], *list(MEANS)[-2:])
WEIGHTS = torch.tensor([0.29, 1.0, 2.02])  # class weights of the published set


@dataclass(frozen=True)
class Means:
    """What a loop uses of the means above; the defaults are the notebook's."""

    memory: bool = False  # frames are one uint8 tensor in memory, not decoded for each batch
    channels_last: bool = False
    batch_size: int = 4
    half: bool = False  # bfloat16 where it is fast
    fused: bool = False  # optimizer
    fast: tuple = ()  # classes of models/fast_layers.py
    augmented: bool = False  # AdamW and augmentation of train_seg.py
    share: float = 1.0  # of each frame's rows


class Source(NamedTuple):
    """The frames: on disk below root, and decoded."""

    root: Path
    frames: list
    images: torch.Tensor
    labels: torch.Tensor


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", type=runs.path, help="frames to read; default: 64 random ones, made for the purpose"
    )
    parser.add_argument("--all", action="store_true", help="every row, not only the ends")
    parser.add_argument("--rounds", type=runs.count, default=5, help="turns of each row")
    parser.add_argument("--steps", type=runs.count, default=3, help="training steps in a turn")
    parser.add_argument("--device", type=runs.device, default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as made:
        root = args.data_dir or random_frames(Path(made), 64)
        frames = find_frames(root)[:64]
        source = Source(root, frames, *read_tensors(frames))
        means, loops = Means(), {}
        for name, added in MEANS.items():
            means = replace(means, **added)
            if args.all or name in ENDS:
                loops[name] = training(source, args.device, means)
        rows = list(loops)
        speeds = {name: [] for name in rows}
        for turn, name in tqdm(list(itertools.product(range(-1, args.rounds), rows)), unit="turn", file=sys.stderr):
            began, images = time.perf_counter(), 0
            for _ in range(args.steps if turn >= 0 else 1):
                images += next(loops[name])
            if turn >= 0:  # the turn before the first warms up
                speeds[name].append(images / (time.perf_counter() - began))
    first = statistics.median(speeds[rows[0]])
    print(f"{'':42}{'images/s':>10}{'lowest':>8}{'highest':>9}{'ratio':>7}")
    for name, values in speeds.items():
        middle = statistics.median(values)
        print(f"{name:42}{middle:10.2f}{min(values):8.2f}{max(values):9.2f}{middle / first:7.2f}")
    precision = "bfloat16" if native_bf16(args.device) else "float32, no bfloat16 units"
    print(f"{hardware(args.device)}, {precision}, torch {torch.__version__}; medians of {args.rounds} turns")
    return 0


def training(source: Source, device: str, means: Means):
    """Train without end; each `next` is one step and gives its number of images."""
    torch.manual_seed(0)
    model = speed_up(segmentation.build("deeplabv3_mobilenet_v3_large"))
    for layer in model.modules():
        if isinstance(layer, (DepthwiseConv2d, DilatedConv2d)) and not isinstance(layer, means.fast):
            layer.__class__ = nn.Conv2d
    memory_format = torch.channels_last if means.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=memory_format).train()
    if means.augmented:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=means.fused)
    else:
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=1e-4, fused=means.fused)
    autocast = torch.autocast(device, torch.bfloat16) if means.half and native_bf16(device) else nullcontext()
    weights = WEIGHTS.to(device)
    if means.augmented:
        batches = levels_in_memory(source, means.batch_size, device)
    elif means.memory:
        batches = pictures_in_memory(source, means.batch_size, device, memory_format)
    else:
        batches = pictures_from_disk(source, means.batch_size, device)
    for x, y in batches:
        rows = round(means.share * y.shape[1])
        x, y = x[:, :, :rows], y[:, :rows]  # (B, 3, rows, W), (B, rows, W)
        with autocast:
            loss = F.cross_entropy(model(x)["out"].float(), y, weights, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        if means.augmented:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()  # as a progress bar does; a GPU is then done
        yield len(x)


def pictures_from_disk(source, batch_size, device):
    """float (B, 3, H, W) and int64 (B, H, W), decoded by PIL for each batch, as the published notebooks do."""

    def transform(image, mask):
        return segmentation.normalise(image[None])[0], mask

    loader = DataLoader(
        SpectrumSensing(source.root, source.frames, transform), batch_size, shuffle=True, drop_last=True
    )
    while True:
        for images, labels in loader:
            yield images.to(device), labels.to(device)


def pictures_in_memory(source, batch_size, device, memory_format):
    """The same batches from uint8 tensors, normalised on the device."""
    images, labels = source.images.to(device), source.labels.to(device)
    while True:
        batch = torch.randint(len(images), (batch_size,), device=device)
        yield segmentation.normalise(images[batch]).contiguous(memory_format=memory_format), labels[batch].long()


def levels_in_memory(source, batch_size, device):
    """Levels instead of colours, shifted, flipped and jittered, as train_seg.py does."""
    palette = torch.from_numpy(PARULA)
    levels = augment.colormap_index(source.images, palette)[0].to(device)
    labels, palette = source.labels.to(device), palette.to(device)
    while True:
        batch = torch.randint(len(levels), (batch_size,), device=device)
        x, y = augment.shift_and_flip(
            levels[batch], labels[batch], augment.draw_geometry(batch_size, *labels.shape[1:])
        )
        x = augment.jitter_levels(x, *augment.draw_levels(batch_size))
        yield segmentation.colourise(x, palette), y.long()


def random_frames(root: Path, count: int) -> Path:
    """Frames of noise with one band each: their content does not change the speed, and PNG can't shrink them."""
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(PARULA[rng.integers(256, size=(256, 256))]).save(root / f"NR_frame_{i}.png")
        mask = np.zeros((256, 256), np.uint8)
        mask[:, 60:160] = 127
        write_raster(root / f"NR_frame_{i}.hdf", mask)
    return root


if __name__ == "__main__":
    sys.exit(run(main, DataError, RunError))
