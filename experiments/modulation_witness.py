"""Are generated modulations like the real ones? Ask a network that has seen nothing but the real set.

    python -m experiments.modulation_witness --witness pretrained_VGG10_w8a8_20.pth
    python -m experiments.modulation_witness --witness pretrained_VGG10_w8a8_20.pth --network weights/amc_baseline.pt

The witness is the public 8-bit baseline of ITU's "lightning-fast modulation" challenge, .595 on the real test split.
On generated frames it should have the same accuracy at every SNR: less means strange frames, more means frames that are
too easy. --network puts one of our own checkpoints beside it, on the same frames, and compares the confusions class by
class. Frames are made on the way, 100 of each class and SNR, with a seed that no search has used. Writes result.json,
accuracy_by_snr.png and a confusion matrix (PNG) of each network. Six minutes for 62,400 frames on one core that others
share, with one network.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.modulations import make_frames
from data.radioml import MODULATIONS, SNRS
from models import ModelError
from models.rebuild import rebuild
from models.vgg10 import VGG10, from_brevitas
from utils import charts, checkpoint
from utils.metrics import confusion_matrix
from utils.runs import RunError, command, hardware, run, write_json

# The witness's accuracy on the real test split, by SNR from -20 to +30 dB.
REAL = (
    *(0.043, 0.045, 0.053, 0.063, 0.09, 0.14, 0.20, 0.27, 0.34, 0.43),  # to -2 dB
    *(0.53, 0.62, 0.73, 0.825, 0.89, 0.91, 0.92, 0.925),  # to +14 dB
    *(0.93,) * 8,
)
GOOD_SNR = 16  # dB; from here on the real curve is flat
SAME = 0.1  # largest difference that passes for the same


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--witness", type=Path, required=True, help="the challenge's checkpoint")
    parser.add_argument("--network", type=Path, help="a second network: a checkpoint of this repository")
    parser.add_argument("--bits", type=int, default=8, help="of the challenge's checkpoint, which does not say")
    parser.add_argument("--frames-per-cell", type=int, default=100, help="of each class and SNR")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--out", type=Path, default=Path("runs/modulation_witness"))
    return parser.parse_args()


def load_network(path: Path, bits: int) -> VGG10:
    """A VGG10 in eval mode, from the challenge's checkpoint or one of ours."""
    data = checkpoint.load(path)
    if "factory" not in data:
        return from_brevitas(data, bits)
    if tuple(data.get("classes", ())) != MODULATIONS:
        raise ModelError(f"{path}: its classes are not RadioML 2018.01A's 24; train one on the generated set")
    return rebuild(data).eval()


@torch.no_grad()
def confusions(networks: dict[str, VGG10], frames_per_cell: int, seed: int) -> dict[str, torch.Tensor]:
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


def summary(counts: torch.Tensor) -> dict:
    """Plain values of one network: accuracy, its largest difference to the real curve, recall by class at +30 dB."""
    by_snr = accuracy(counts).tolist()
    good = torch.tensor([snr >= GOOD_SNR for snr in SNRS])
    best = counts[-1].double()
    recall = best.diagonal() / best.sum(1)
    return {
        "accuracy": round(float(accuracy(counts.sum(0))), 4),
        f"accuracy_from_{GOOD_SNR}_db": round(float(accuracy(counts[good].sum(0))), 4),
        "largest_difference_to_real": round(max(abs(a - b) for a, b in zip(by_snr, REAL, strict=True)), 4),
        "accuracy_by_snr": {snr: round(value, 4) for snr, value in zip(SNRS, by_snr, strict=True)},
        "recall_at_30_db": {name: round(float(value), 3) for name, value in zip(MODULATIONS, recall, strict=True)},
        "classes_above_70_percent": int((recall > 0.7).sum()),
    }


def taken_for(row: torch.Tensor, own: int) -> str:
    """The two most frequent wrong answers of a row of counts, in percent."""
    shares = 100 * row.double() / row.sum()
    shares[own] = 0
    named = [f"{MODULATIONS[j]} {shares[j]:.0f}" for j in shares.argsort(descending=True)[:2] if shares[j] >= 1]
    return ", ".join(named) or "-"


def print_tables(counts: dict[str, torch.Tensor], results: dict[str, dict]) -> None:
    print("accuracy by SNR")
    print("  dB   real " + "".join(f"{name:>9s}" for name in counts))
    for snr, real in zip(SNRS, REAL, strict=True):
        print(f"{snr:4d}   {real:.3f}" + "".join(f"{r['accuracy_by_snr'][snr]:9.3f}" for r in results.values()))
    for name, result in results.items():
        print(
            f"{name}: {result['accuracy']:.3f} overall (real .595), {result[f'accuracy_from_{GOOD_SNR}_db']:.3f} from "
            f"{GOOD_SNR} dB on (real .93), {result['classes_above_70_percent']} of 24 classes above .7 at +30 dB"
        )
        worst = result["largest_difference_to_real"]
        print(f"  within {SAME} of the real curve: {'yes' if worst <= SAME else 'NO'}, largest difference {worst:.3f}")
    good = [i for i, snr in enumerate(SNRS) if snr >= GOOD_SNR]
    for title, rows in (("+30 dB", [-1]), (f"{GOOD_SNR} dB and up", good), ("0 to 8 dB", range(10, 15))):
        print(f"\nrecall and what frames are taken for, in percent, {title}")
        for label, modulation in enumerate(MODULATIONS):
            parts = [count[list(rows), label].sum(0) for count in counts.values()]  # (24,) each
            cells = [f"{100 * int(p[label]) / int(p.sum()):5.0f}  {taken_for(p, label):32s}" for p in parts]
            print(f"{modulation:10s}" + "  ".join(cells).rstrip())


def main() -> None:
    args = parse_args()
    if args.frames_per_cell < 1 or args.seed < 0:
        raise RunError("--frames-per-cell must be 1 or more, --seed 0 or more")
    torch.set_num_threads(1)
    networks = {"witness": load_network(args.witness, args.bits)}
    if args.network:
        networks["network"] = load_network(args.network, args.bits)
    counts = confusions(networks, args.frames_per_cell, args.seed)
    results = {name: summary(count) for name, count in counts.items()}
    print_tables(counts, results)
    facts = {"command": command(), "hardware": hardware(), "seed": args.seed, "frames_per_cell": args.frames_per_cell}
    facts |= results | {"confusion_at_30_db": {name: count[-1].tolist() for name, count in counts.items()}}
    write_json(args.out / "result.json", facts)
    curves = {"real": REAL} | {name: accuracy(count).tolist() for name, count in counts.items()}
    series = {name: list(zip(SNRS, values, strict=True)) for name, values in curves.items()}
    charts.lines(series, "SNR (dB)", "accuracy").save(args.out / "accuracy_by_snr.png")
    for name, count in counts.items():
        picture = charts.matrix(count[-1], MODULATIONS, f"{name}, generated frames at +30 dB")
        picture.save(args.out / f"confusion_{name}.png")


if __name__ == "__main__":
    sys.exit(run(main, ModelError, checkpoint.CheckpointError))
