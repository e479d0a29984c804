"""How fast do the training loops run on a GPU: step by step, as one CUDA graph, and as a share of what the card can do?

    python -m experiments.gpu_speed                           # two minutes on a card; on a CPU it says what it would do

Three trainings on random frames: VGG10 (8 bits), DeepLabV3-MobileNetV3-Large (frames of 256 x 256), and distillation of
weights/seg_student.pt from weights/seg_teacher.pt. Batches are gathered and augmented on the card as in the scripts.
"eager" launches kernel by kernel and reads each loss; "captured" is what the scripts do (utils/training.py). Both take
turns, and medians are compared. The ceiling is the captured step at a batch that fills the card. The losses of both
after the same 40 steps show whether they compute the same: they differ by roundings only (atomic additions, bfloat16).
The table is also written to experiments/results/gpu_speed.json.

Do the scripts reach it? Their own logs show it after these commands, with the defaults on CUDA (VGG10 batch 512, else
32): frames_per_second or images_per_second of the last line of log.jsonl. Epochs in which a graph is captured are
slower: the first one, and for spectrograms the first with whole frames (the last sixth of all epochs).

    python -m data.modulations /tmp/m.hdf5 --frames-per-cell 400 --seed 31
    python -m data.synthetic /tmp/frames --nr 640 --lte 640 --combined 64 --field 0       # or a set that is there
    python train_amc.py --data-file /tmp/m.hdf5 --epochs 4 --out /tmp/amc                 # 100,000 frames
    python train_seg.py --data-dir /tmp/frames --epochs 12 --out /tmp/seg                 # 1,900 images; H100 1,400
    python distill_seg.py --data-dir /tmp/frames --student weights/seg_student.pt --epochs 12 --out /tmp/d    # 1,000
    python feedback_magnitude_pruning.py --data-file /tmp/m.hdf5 --checkpoint /tmp/amc/best.pt --budget 4 --out /tmp/fmp
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import distill_seg
import train_seg
from data.on_device import gathered
from data.spectrogram import PARULA
from models.fast_layers import speed_up
from models.rebuild import rebuild
from models.vgg10 import VGG10
from utils import kd_losses, release, runs
from utils.runs import RunError, command, hardware, join_processes, run, write_json
from utils.training import Batch, CapturedStep, LossReader, bf16_autocast, make_optimizer

FRAMES, SIGNALS = 1024, 16384  # random spectrograms, and signals of VGG10, that batches are drawn from
COMPARED = 40  # steps after which the losses of eager and captured are compared
WEIGHTS = (0.29, 1.0, 2.02)  # class weights of the published set


class Training(NamedTuple):
    """One row of the table."""

    name: str
    loop: Callable[[int, bool, torch.device], Iterator[float]]  # batch, captured, device -> the latest loss, each step
    batch: int
    large: int  # batch that fills the card


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=runs.count, default=5, help="turns of each row")
    parser.add_argument("--seconds", type=runs.positive, default=1.0, help="of a turn, about")
    parser.add_argument("--out", type=runs.path, default=Path("experiments/results/gpu_speed.json"))
    parser.add_argument("--device", type=runs.device, default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    _, _, device = join_processes(args.device)
    if device.type != "cuda":
        print("no CUDA device is in use: there, this would train three networks eagerly and as a CUDA graph in turns")
        return 0
    trainings = [
        Training("VGG10, 8 bits", vgg10, 512, 8192),
        Training("DeepLabV3-MobileNetV3", deeplab, 32, 128),
        Training("distillation", distillation, 32, 128),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # each loop that can't be captured says so
        rows = [compare(training, args, device) for training in trainings]
    print(f"{'samples or images a second':28}{'batch':>6}{'eager':>10}{'captured':>10}{'ratio':>7}", end="")
    print(f"{'ceiling':>10}{'at batch':>9}{'share':>7}  loss after {COMPARED} steps, eager and captured")
    for row in rows:
        print(f"{row['name']:28}{row['batch']:6}{row['eager']:10.0f}{row['captured']:10.0f}{row['ratio']:7.2f}", end="")
        eager, captured = row["losses"]
        print(f"{row['ceiling']:10.0f}{row['large']:9}{row['share']:7.0%}  {eager:.5f} {captured:.5f}")
    print(f"{hardware(device)}, torch {torch.__version__}; medians of {args.rounds} turns")
    facts = {"command": command(), "hardware": hardware(device), "torch": torch.__version__, "rounds": args.rounds}
    write_json(args.out, facts | {"rows": rows})
    return 0


def compare(training: Training, args: argparse.Namespace, device: torch.device) -> dict:
    """A row of the table: plain values."""
    loops = {
        "eager": (training.batch, training.loop(training.batch, False, device)),
        "captured": (training.batch, training.loop(training.batch, True, device)),
        "ceiling": (training.large, training.loop(training.large, True, device)),
    }
    losses, steps = {}, {}
    for name, (_, loop) in loops.items():  # warm up, capture, and see how long a step takes
        losses[name] = [next(loop) for _ in range(COMPARED)][-1]
        began = finish(device)
        for _ in range(10):
            next(loop)
        steps[name] = max(1, round(args.seconds * 10 / (finish(device) - began)))
    speeds = {name: [] for name in loops}
    for _ in tqdm(range(args.rounds), training.name, unit="round", file=sys.stderr):
        for name, (batch, loop) in loops.items():
            began = finish(device)
            for _ in range(steps[name]):
                next(loop)
            speeds[name].append(steps[name] * batch / (finish(device) - began))
    row = {"name": training.name, "batch": training.batch, "large": training.large}
    row |= {name: statistics.median(values) for name, values in speeds.items()}
    row |= {"ratio": row["captured"] / row["eager"], "share": row["captured"] / row["ceiling"]}
    return row | {"turns": speeds, "losses": [losses["eager"], losses["captured"]]}


def finish(device: torch.device) -> float:
    """The time at which the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ---- the three trainings: endless loops, written as those of the scripts ---------------------------------------------


def vgg10(batch: int, captured: bool, device: torch.device) -> Iterator[float]:
    """As train_amc.py trains, past the thresholds' initial steps."""
    torch.manual_seed(0)
    network = VGG10(8).to(device).train()
    for block in (*network.features, *network.dense):
        block.activation.steps.fill_(block.activation.initial_steps)
        nn.init.constant_(block.activation.threshold, 3.0)
    codes = torch.randint(-64, 64, (SIGNALS, 2, 1024), dtype=torch.int8).to(device)
    labels = torch.randint(24, (SIGNALS,)).to(device)
    optimizer, autocast = torch.optim.Adam(network.parameters(), 2e-3, fused=True), bf16_autocast(device)

    def update(x, label):
        with autocast:
            loss = F.cross_entropy(network(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def prepare(rows):
        return codes[rows].float().mul_(2.0**-6), labels[rows]

    step = CapturedStep(update, optimizer, lambda: network.learning, None if captured else False)
    yield from endless(step, prepare, batch, len(labels), captured)


def deeplab(batch: int, captured: bool, device: torch.device) -> Iterator[float]:
    """As train_seg.py trains on whole frames."""
    torch.manual_seed(0)
    network = speed_up(train_seg.new_network("deeplabv3_mobilenet_v3_large", "default"))
    network = network.to(device, memory_format=torch.channels_last).train()
    weights, autocast = torch.tensor(WEIGHTS, device=device), bf16_autocast(device)

    def loss_of(x, y):
        with autocast:
            return train_seg.loss_of(network(x), y, weights)

    yield from segmentation(network, loss_of, batch, captured, device)


def distillation(batch: int, captured: bool, device: torch.device) -> Iterator[float]:
    """As distill_seg.py trains on whole frames, asking the teacher each time."""
    torch.manual_seed(0)
    teacher = rebuild(release.load_segmentation(release.shipped("seg_teacher.pt")))
    student = rebuild(release.load_segmentation(release.shipped("seg_student.pt")))
    student = speed_up(student).to(device, memory_format=torch.channels_last).train()
    losses = kd_losses.Losses(distill_seg.freeze(teacher, device), None, 1.0, 1.0, ["pixel"], 1.0)
    losses.weights, losses.autocast = torch.tensor(WEIGHTS, device=device), bf16_autocast(device)

    def loss_of(x, y):
        terms = losses.terms(student, x, y)
        return terms.kd + terms.ce

    yield from segmentation(student, loss_of, batch, captured, device)


def segmentation(
    network: nn.Module, loss_of: Callable, batch: int, captured: bool, device: torch.device
) -> Iterator[float]:
    """The loop of both scripts: loss_of(x, y), gradients clipped, AdamW."""
    optimizer, _ = make_optimizer(network, 2e-3, 10, 100)

    def update(x, y):
        loss = loss_of(x, y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    step = CapturedStep(update, optimizer, capture=None if captured else False)
    yield from endless(step, spectrograms(device), batch, FRAMES, captured)


def spectrograms(device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Rows -> frames float (B, 3, 256, 256) and labels int64 (B, 256, 256): noise and one carrier, augmented."""
    levels = torch.randint(40, 80, (FRAMES, 256, 256), dtype=torch.uint8)
    labels = torch.zeros_like(levels)
    labels[::2, :, 32:96], labels[1::2, :, 128:192] = 1, 2
    data = (levels + 60 * labels).to(device), labels.to(device)
    palette = torch.from_numpy(PARULA)

    def prepare(rows):
        (batch,) = gathered(data, [rows], device)
        return train_seg.prepare(Batch(*batch), palette, True, 256)[:2]

    return prepare


def endless(step: CapturedStep, prepare: Callable, batch: int, frames: int, captured: bool) -> Iterator[float]:
    """Train without end on the same shuffled rows; yields the last loss that was read."""
    order = torch.randperm(frames, generator=torch.Generator().manual_seed(0)).to(step.device)
    losses, value = LossReader(step.device, every=None if captured else 1), float("nan")
    number = 0
    while True:
        for rows in order.split(batch):
            number += 1
            read = losses.add(step(*prepare(rows)), now=number == COMPARED)
            value = read[-1] if read else value
            yield value


if __name__ == "__main__":
    sys.exit(run(main, RunError))
