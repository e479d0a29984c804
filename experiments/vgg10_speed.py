"""How fast the quantised VGG10 trains, step against step with Brevitas, and whether what makes it fast costs accuracy.

    python -m experiments.vgg10_speed --bits 4                     # 2 minutes: samples/s, in turn, medians
    python -m experiments.vgg10_speed --bits 4 --data-file FILE    # and: accuracy of each after --steps steps, an hour
    python -m experiments.vgg10_speed --reference DIR              # only: logits of the public checkpoint, seconds

Brevitas 0.6.0 is no requirement of this repository. Where it can be imported, it is the first row; else that row says
"-". It can be imported with PYTHONPATH=FOLDER after `pip install --no-deps --target FOLDER brevitas==0.6.0
dependencies==2.0.1 "setuptools<80"`. All rows train the same network from the same weights on the same batches with
Adam. "pool first" and bfloat16 are each added to the row before. DIR holds the challenge's
pretrained_VGG10_w8a8_20.pth, and Brevitas' logits for it in vgg10_reference.npz. With one thread our logits are equal
bit for bit; with more threads the labels are equal.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from data import DataError
from data.radioml import SNRS, Frames, batches, open_frames, select, split
from models import ModelError
from models.vgg10 import VGG10, from_brevitas, to_brevitas
from utils import runs
from utils.checkpoint import CheckpointError, load
from utils.training import native_bf16

GOOD_SNRS = [snr for snr in SNRS if snr >= 0]  # dB; below, a short training learns nothing


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=runs.whole(2, 8), default=4)
    parser.add_argument("--batch-size", type=runs.count, default=256)
    parser.add_argument("--rounds", type=runs.count, default=5, help="steps measured of each row")
    parser.add_argument(
        "--data-file", type=runs.path, help="RadioML 2018.01A or python -m data.modulations FILE: compare accuracy too"
    )
    parser.add_argument("--reference", type=runs.path, help="folder: only compare logits with Brevitas'")
    parser.add_argument("--steps", type=runs.count, default=1000, help="training steps of the comparison of accuracy")
    parser.add_argument("--lr", type=runs.positive, default=0.001)
    parser.add_argument("--seed", type=runs.seed, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.reference:
        compare_logits(args.reference)
        return
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    start = VGG10(args.bits, pool_first=False)
    rows = {
        "Brevitas 0.6.0": (brevitas_vgg10(start), False),
        "models.vgg10": (copy.deepcopy(start), False),
        "  + pool first": (with_pool_first(start), False),
        "  + bfloat16": (with_pool_first(start) if native_bf16("cpu") else None, True),
    }
    print(f"torch {torch.__version__}, one thread, {args.bits} bits, batch {args.batch_size}")
    speeds = measure(rows, args.batch_size, args.rounds, args.lr)
    print(f"{'training step':16s} {'samples/s':>10s} {'times':>6s}")
    first = next(iter(speeds.values()))
    for name, speed in speeds.items():
        ratio = f"{speed / first:.2f}" if speed and first else "-"
        print(f"{name:16s} {f'{speed:.0f}' if speed else '-':>10s} {ratio:>6s}", flush=True)
    if args.data_file:
        frames = open_frames(args.data_file)
        parts = {name: select(frames, rows, snrs=GOOD_SNRS) for name, rows in split(frames, validation=0.2).items()}
        print(f"\naccuracy on {len(parts['validation'])} frames after {args.steps} steps, seed {args.seed}")
        for name, (model, bf16) in rows.items():
            score = "-" if model is None else f"{train(model, bf16, frames, parts, args):.4f}"
            print(f"{name:16s} {score:>10s}", flush=True)


def measure(rows: dict, batch_size: int, rounds: int, lr: float) -> dict[str, float | None]:
    """Samples per second of processor time of each row: one step of each in turn, the median.

    Processor time and turns, because other programs may use the machine; on an idle one it is the time on the clock.
    """
    x, label = torch.randn(batch_size, 2, 1024), torch.randint(24, (batch_size,))
    models = {name: (past_initial_steps(model), bf16) for name, (model, bf16) in rows.items() if model is not None}
    optimizers = {name: torch.optim.Adam(model.parameters(), lr) for name, (model, _) in models.items()}
    seconds = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, (model, bf16) in models.items():
            begin = time.process_time()
            step(model, optimizers[name], x, label, bf16)
            if number > 0:  # the first one warms up
                seconds[name].append(time.process_time() - begin)
    return {name: batch_size / statistics.median(seconds[name]) if name in seconds else None for name in rows}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, label: torch.Tensor, bf16: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        loss = F.cross_entropy(model(x), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(model: nn.Module, bf16: bool, frames: Frames, parts: dict, args: argparse.Namespace) -> float:
    """Accuracy on validation, float32, after training from the row's starting weights."""
    generator = torch.Generator().manual_seed(args.seed)
    model, done = copy.deepcopy(model).train(), 0
    optimizer = torch.optim.Adam(model.parameters(), args.lr)
    with tqdm(total=args.steps, leave=False) as bar:
        while done < args.steps:
            for x, label in batches(frames, parts["train"], args.batch_size, shuffle=True, generator=generator):
                step(model, optimizer, x, label, bf16)
                done += 1
                bar.update()
                if done == args.steps:
                    break
    model.eval()
    with torch.no_grad():
        right = sum(
            (model(x).argmax(1) == label).sum().item() for x, label in batches(frames, parts["validation"], 1024)
        )
    return right / len(parts["validation"])


def compare_logits(folder: Path) -> None:
    """Print how far the public checkpoint's logits are from those that Brevitas 0.6.0 gave."""
    model = from_brevitas(load(folder / "pretrained_VGG10_w8a8_20.pth"), bits=8)
    reference = np.load(folder / "vgg10_reference.npz")
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        for inputs in ("normal", "uniform"):
            expected = torch.from_numpy(reference[f"logits_base_{inputs}"])
            with torch.no_grad():
                logits = model(torch.from_numpy(reference[f"x_{inputs}"]))
            labels = torch.equal(logits.argmax(1), expected.argmax(1))
            print(
                f"{threads} thread(s), {inputs} inputs: equal {torch.equal(logits, expected)}, "
                f"largest difference {(logits - expected).abs().max():.2g}, same labels {labels}"
            )


def with_pool_first(model: VGG10) -> VGG10:
    other = VGG10(**{**model.arguments(), "pool_first": True})
    other.load_state_dict(model.state_dict())
    return other


def past_initial_steps(model: nn.Module) -> nn.Module:
    """A copy in train mode whose thresholds are learned already, as in all but the first 30 steps."""
    model = copy.deepcopy(model)
    if isinstance(model, VGG10):
        for block in [*model.features, *model.dense]:
            block.activation.steps.fill_(block.activation.initial_steps)
            block.activation.threshold.data.fill_(3.0)
    else:
        state = to_brevitas(VGG10(8))  # any complete state: Brevitas then takes the thresholds for learned ones
        state = {name: tensor * 3 if "act_quant" in name else tensor for name, tensor in state.items()}
        model.load_state_dict(state)
    return model.train()


def brevitas_vgg10(start: VGG10) -> nn.Module | None:
    """The challenge's network, built of Brevitas' layers and with the weights of `start`; None where it is missing."""
    try:
        warnings.simplefilter("ignore")
        from brevitas import nn as qnn
        from brevitas.core.scaling import ScalingImplType
        from brevitas.quant import Int8ActPerTensorFloatMinMaxInit, IntBias
    except ImportError:
        return None
    bits = start.bits

    class InputQuantizer(Int8ActPerTensorFloatMinMaxInit):
        bit_width, min_val, max_val = bits, -2.0, 2.0
        scaling_impl_type = ScalingImplType.CONST

    def norm_and_relu(channels: int, last: bool = False) -> list[nn.Module]:
        return [nn.BatchNorm1d(channels), qnn.QuantReLU(bit_width=bits, return_quant_tensor=last)]

    layers, channels = [qnn.QuantHardTanh(act_quant=InputQuantizer)], 2
    for _ in range(7):
        layers.append(qnn.QuantConv1d(channels, 64, 3, padding=1, bias=False, weight_bit_width=bits))
        layers += [*norm_and_relu(64), nn.MaxPool1d(2)]
        channels = 64
    layers += [nn.Flatten(), qnn.QuantLinear(512, 128, bias=False, weight_bit_width=bits), *norm_and_relu(128)]
    layers += [qnn.QuantLinear(128, 128, bias=False, weight_bit_width=bits), *norm_and_relu(128, last=True)]
    layers.append(qnn.QuantLinear(128, 24, bias=True, weight_bit_width=bits, bias_quant=IntBias))
    model = nn.Sequential(*layers)
    weights = {name: tensor for name, tensor in to_brevitas(start).items() if "act_quant" not in name}
    model.load_state_dict(weights, strict=False)  # thresholds left out: Brevitas collects them, as at any start
    return model


if __name__ == "__main__":
    try:
        main()
    except (CheckpointError, DataError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
