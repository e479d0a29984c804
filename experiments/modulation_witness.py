"""Are generated modulations like the genuine ones? Ask networks that have seen nothing but the genuine set.

    python -m experiments.modulation_witness --witness pretrained_VGG10_w8a8_20.pth
    python -m experiments.modulation_witness --witness pretrained_VGG10_w8a8_20.pth vgg_float_radioml.npz \
        --recall vgg_float_radioml_real_recall.npz --network weights/amc_baseline.pt

A witness is the public 8-bit baseline of ITU's "lightning-fast modulation" challenge (.595 on the genuine test part),
or a 32-bit VGG as an .npz of Keras kernels (leena201818/radioml; .580). On generated frames each should have its
genuine accuracy at every SNR: less means strange frames, more means frames that are too easy. --recall is the 32-bit
network's recall on genuine frames, class by SNR. --network puts one of our own checkpoints beside them, on the same
frames.

Frames are made on the way, 100 of each class and SNR. Settings were chosen on even seeds; report on an odd one. Writes
result.json, accuracy_by_snr.png and a confusion matrix (PNG) of each network. Three minutes a network for 62,400 frames
on one core.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from data.modulations import make_frames
from data.radioml import MODULATIONS, SNRS
from models import ModelError
from models.rebuild import rebuild
from models.vgg10 import from_brevitas
from utils import checkpoint, pictures
from utils.metrics import confusion_matrix
from utils.runs import RunError, command, hardware, run, write_json

# The 8-bit witness's accuracy on the genuine test split, by SNR from -20 to +30 dB.
GENUINE_W8 = (
    *(0.043, 0.045, 0.053, 0.063, 0.09, 0.14, 0.20, 0.27, 0.34, 0.43),  # to -2 dB
    *(0.53, 0.62, 0.73, 0.825, 0.89, 0.91, 0.92, 0.925),  # to +14 dB
    *(0.93,) * 8,
)
GOOD_SNR = 10  # dB; recall by class is compared from here on
Network = Callable[[torch.Tensor], torch.Tensor]  # float32 (N, 2, 1024) -> logits (N, 24)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--witness", type=Path, nargs="+", required=True, help="the challenge's .pth, a VGG's .npz")
    parser.add_argument("--recall", type=Path, help="recall of the .npz network on genuine frames")
    parser.add_argument("--network", type=Path, help="one more network: a checkpoint of this repository")
    parser.add_argument("--bits", type=int, default=8, help="of the challenge's checkpoint, which does not say")
    parser.add_argument("--frames-per-cell", type=int, default=100, help="of each class and SNR")
    parser.add_argument("--seed", type=int, default=2027)
    parser.add_argument("--out", type=Path, default=Path("runs/modulation_witness"))
    return parser.parse_args()


def keras_vgg(path: Path) -> Network:
    """Seven convolutions of 8 taps, each with ReLU and max-pool 2, then three dense layers with SELU between."""
    try:
        with np.load(path) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        convolutions = [(arrays[f"conv{i}.kernel"].permute(2, 1, 0), arrays[f"conv{i}.bias"]) for i in range(1, 8)]
        dense = [(arrays[f"dense{i}.kernel"].T, arrays[f"dense{i}.bias"]) for i in range(1, 4)]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path}: no weights of the 32-bit VGG ({error}); name vgg_float_radioml.npz") from error

    def network(x: torch.Tensor) -> torch.Tensor:
        for kernel, bias in convolutions:  # Keras pads an even kernel with 3 zeros on the left and 4 on the right
            x = F.max_pool1d(F.relu(F.conv1d(F.pad(x, (3, 4)), kernel, bias)), 2)  # (N, 64, L) -> (N, 64, L / 2)
        x = x.transpose(1, 2).flatten(1)  # (N, 512), time-major
        for weight, bias in dense[:2]:
            x = F.selu(F.linear(x, weight, bias))
        return F.linear(x, *dense[2])

    return network


def load_network(path: Path, bits: int) -> Network:
    """A network in eval mode: a Keras VGG's .npz, the challenge's checkpoint or one of ours."""
    if path.suffix == ".npz":
        return keras_vgg(path)
    data = checkpoint.load(path)
    if "factory" not in data:
        return from_brevitas(data, bits)
    if tuple(data.get("classes", ())) != MODULATIONS:
        raise ModelError(f"{path}: its classes are not RadioML 2018.01A's 24; train one on the generated set")
    return rebuild(data).eval()


def genuine(args: argparse.Namespace) -> dict[str, np.ndarray]:
    """What the witnesses have on genuine frames, by name: accuracy (26,), or recall (24, 26) where that is known."""
    known = {path.stem: np.array(GENUINE_W8) for path in args.witness if path.suffix != ".npz"}
    if args.recall:
        with np.load(args.recall) as file:
            recall = file["recall"].astype(float)
        known |= {path.stem: recall for path in args.witness if path.suffix == ".npz"}
    return known


@torch.inference_mode()
def confusions(networks: dict[str, Network], frames_per_cell: int, seed: int) -> dict[str, torch.Tensor]:
    """Each network's int64 (26 SNRs, 24 true, 24 predicted) on the same fresh frames."""
    size = len(MODULATIONS)
    counts = {name: torch.zeros(len(SNRS), size, size, dtype=torch.int64) for name in networks}
    with tqdm(total=len(SNRS) * size * frames_per_cell, unit="frame") as bar:
        for i, snr in enumerate(SNRS):
            for label, modulation in enumerate(MODULATIONS):
                rng = np.random.default_rng([seed, i, label])
                x = torch.from_numpy(make_frames(modulation, snr, frames_per_cell, rng)).transpose(1, 2).contiguous()
                truth = torch.full((frames_per_cell,), label)
                for name, network in networks.items():
                    prediction = torch.cat([network(part).argmax(1) for part in x.split(64)])  # (N, 2, 1024) -> (N,)
                    counts[name][i] += confusion_matrix(prediction, truth, size)
                bar.update(frames_per_cell)
    return counts


def accuracy(counts: torch.Tensor) -> torch.Tensor:
    """Share on the diagonal of (..., C, C)."""
    return counts.diagonal(dim1=-2, dim2=-1).sum(-1) / counts.sum((-2, -1))


def summary(counts: torch.Tensor, known: np.ndarray | None) -> dict:
    """Plain values of one network, with its genuine figures beside them where they are known.

    Args: counts (26, 24, 24); known, accuracy on genuine frames (26,) or recall (24, 26).
    """
    good = torch.tensor([snr >= GOOD_SNR for snr in SNRS])
    best = counts[good].sum(0).double()
    recall = best.diagonal() / best.sum(1)
    facts = {
        "accuracy": round(float(accuracy(counts.sum(0))), 4),
        f"accuracy_from_{GOOD_SNR}_db": round(float(accuracy(counts[good].sum(0))), 4),
        "accuracy_by_snr": {snr: round(float(a), 4) for snr, a in zip(SNRS, accuracy(counts), strict=True)},
        f"recall_from_{GOOD_SNR}_db": {name: round(float(r), 3) for name, r in zip(MODULATIONS, recall, strict=True)},
    }
    if known is not None:
        by_snr = known.mean(0) if known.ndim == 2 else known
        facts["genuine_accuracy"] = round(float(by_snr.mean()), 4)
        facts[f"genuine_accuracy_from_{GOOD_SNR}_db"] = round(float(by_snr[good.numpy()].mean()), 4)
        facts["genuine_accuracy_by_snr"] = {snr: round(float(a), 4) for snr, a in zip(SNRS, by_snr, strict=True)}
        if known.ndim == 2:
            values = known[:, good.numpy()].mean(1)
            names = zip(MODULATIONS, values, strict=True)
            facts[f"genuine_recall_from_{GOOD_SNR}_db"] = {name: round(float(value), 3) for name, value in names}
    return facts


def taken_for(row: torch.Tensor, own: int) -> str:
    """The two most frequent wrong answers of a row of counts, in percent."""
    shares = 100 * row.double() / row.sum()
    shares[own] = 0
    named = [f"{MODULATIONS[j]} {shares[j]:.0f}" for j in shares.argsort(descending=True)[:2] if shares[j] >= 1]
    return ", ".join(named) or "-"


def print_tables(counts: dict[str, torch.Tensor], results: dict[str, dict]) -> None:
    """Accuracy by SNR, then recall by class from GOOD_SNR on; genuine figures in brackets where they are known."""

    def both(facts: dict, key: str, of: int | str) -> str:
        real = facts.get(f"genuine_{key}", {}).get(of)
        return f"{facts[key][of]:12.3f}" + (f" ({real:.3f})" if real is not None else " " * 8)

    print("accuracy by SNR; in brackets on genuine frames")
    print("  dB" + "".join(f"{name[:19]:>20s}" for name in results))
    for snr in SNRS:
        print(f"{snr:4d}" + "".join(both(facts, "accuracy_by_snr", snr) for facts in results.values()))
    for name, facts in results.items():
        for key in ("accuracy", f"accuracy_from_{GOOD_SNR}_db"):
            real = facts.get(f"genuine_{key}")
            print(f"{name}: {key} {facts[key]:.4f}" + (f", on genuine frames {real:.4f}" if real is not None else ""))
    good = [i for i, snr in enumerate(SNRS) if snr >= GOOD_SNR]
    print(f"\nrecall from {GOOD_SNR} dB on, in brackets on genuine frames, and what frames are taken for in percent")
    for label, modulation in enumerate(MODULATIONS):
        cells = []
        for name, facts in results.items():
            row = counts[name][good, label].sum(0)  # (24,)
            cells.append(f"{both(facts, f'recall_from_{GOOD_SNR}_db', modulation)}  {taken_for(row, label):24s}")
        print(f"{modulation:10s}" + "".join(cells).rstrip())


def main() -> None:
    args = parse_args()
    if args.frames_per_cell < 1 or args.seed < 0:
        raise RunError("--frames-per-cell must be 1 or more, --seed 0 or more")
    torch.set_num_threads(1)
    paths = [*args.witness, *([args.network] if args.network else [])]
    networks = {path.stem: load_network(path, args.bits) for path in paths}
    known = genuine(args)
    counts = confusions(networks, args.frames_per_cell, args.seed)
    results = {name: summary(count, known.get(name)) for name, count in counts.items()}
    print_tables(counts, results)
    facts = {"command": command(), "hardware": hardware(), "seed": args.seed, "frames_per_cell": args.frames_per_cell}
    facts |= results | {"confusion_at_30_db": {name: count[-1].tolist() for name, count in counts.items()}}
    write_json(args.out / "result.json", facts)
    curves = {name: accuracy(count).tolist() for name, count in counts.items()}
    curves |= {f"{name}, genuine": (v.mean(0) if v.ndim == 2 else v).tolist() for name, v in known.items()}
    series = {name: list(zip(SNRS, values, strict=True)) for name, values in curves.items()}
    pictures.line_chart(series, "SNR (dB)", "accuracy").save(args.out / "accuracy_by_snr.png")
    for name, count in counts.items():
        picture = pictures.percent_matrix(count[-1], MODULATIONS, f"{name}, generated frames at +30 dB")
        picture.save(args.out / f"confusion_{name}.png")


if __name__ == "__main__":
    sys.exit(run(main, ModelError, checkpoint.CheckpointError))
