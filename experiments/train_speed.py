"""How many images a second train_seg.py trains on, beside the notebook-style loop it replaces. A minute or three.

    python -m experiments.train_speed                 # both ends, in turns
    python -m experiments.train_speed --all           # each means added one by one

The last row is what train_seg.py does in five sixths of its epochs: half of each frame, so not the same work.
All train DeepLabV3-MobileNetV3-Large on 256 x 256 frames in turns of a few steps, so that a change of the machine's
clock or load meets both; the medians are compared. With AMX the ratio is above 2; without bfloat16 units it is less.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

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
START = {"memory": False, "channels_last": False, "batch_size": 4, "half": False, "fused": False, "fast": ()}
WEIGHTS = torch.tensor([0.29, 1.0, 2.02])  # class weights of the published set


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="frames to read; default: 64 random ones, made for the purpose")
    parser.add_argument("--all", action="store_true", help="every row, not only the ends")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each row")
    parser.add_argument("--steps", type=int, default=3, help="training steps in a turn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as made:
        root = args.data_dir or random_frames(Path(made), 64)
        frames = find_frames(root)[:64]
        tensors = read_tensors(frames)
        options = dict(itertools.accumulate(MEANS.items(), lambda a, b: (b[0], a[1] | b[1]), initial=("", START)))
        rows = [name for name in MEANS if args.all or name in ENDS]
        loops = {name: training(root, frames, tensors, args.device, **options[name]) for name in rows}
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


def training(
    root, frames, tensors, device, memory, channels_last, batch_size, half, fused, fast, augmented=False, share=1
):
    """Train without end; each `next` is one step and gives its number of images."""
    torch.manual_seed(0)
    model = speed_up(segmentation.build("deeplabv3_mobilenet_v3_large"))
    for layer in model.modules():
        if isinstance(layer, (DepthwiseConv2d, DilatedConv2d)) and not isinstance(layer, fast):
            layer.__class__ = nn.Conv2d
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device, memory_format=memory_format).train()
    if augmented:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=fused)
    else:
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=1e-4, fused=fused)
    autocast = torch.autocast(device, torch.bfloat16) if half and native_bf16(device) else nullcontext()
    weights = WEIGHTS.to(device)
    if augmented:
        batches = levels_in_memory(*tensors, batch_size, device)
    elif memory:
        batches = pictures_in_memory(*tensors, batch_size, device, memory_format)
    else:
        batches = pictures_from_disk(root, frames, batch_size, device)
    for x, y in batches:
        rows = round(share * y.shape[1])
        x, y = x[:, :, :rows], y[:, :rows]  # (B, 3, rows, W), (B, rows, W)
        with autocast:
            loss = F.cross_entropy(model(x)["out"].float(), y, weights, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        if augmented:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()  # as a progress bar does; a GPU is then done
        yield len(x)


def pictures_from_disk(root, frames, batch_size, device):
    """float (B, 3, H, W) and int64 (B, H, W), decoded by PIL for each batch, as the published notebooks do."""

    def transform(image, mask):
        return segmentation.normalise(image[None])[0], mask

    loader = DataLoader(SpectrumSensing(root, frames, transform), batch_size, shuffle=True, drop_last=True)
    while True:
        for images, masks in loader:
            yield images.to(device), masks.to(device)


def pictures_in_memory(images, masks, batch_size, device, memory_format):
    """The same batches from uint8 tensors, normalised on the device."""
    images, masks = images.to(device), masks.to(device)
    while True:
        batch = torch.randint(len(images), (batch_size,), device=device)
        yield segmentation.normalise(images[batch]).contiguous(memory_format=memory_format), masks[batch].long()


def levels_in_memory(images, masks, batch_size, device):
    """Levels instead of colours, shifted, flipped and jittered, as train_seg.py does."""
    palette = torch.from_numpy(PARULA)
    levels, masks, palette = augment.colour_index(images, palette)[0].to(device), masks.to(device), palette.to(device)
    while True:
        batch = torch.randint(len(levels), (batch_size,), device=device)
        x, y = augment.shift_and_flip(levels[batch], masks[batch], augment.draw_geometry(batch_size, *masks.shape[1:]))
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
