"""Did a network get better or worse? Networks side by side on frames that no training has seen, frame by frame.

    OMP_NUM_THREADS=1 python -m experiments.fresh_frames weights/seg_student.pt runs/student/weights.pt

The first network is the one to compare with. The frames are 1,000 FIELD ones, 600 of single signals and 600 combined
ones, of a seed of their own: datasets/fresh, made by the first call (ten minutes on two cores). Two minutes a student,
four a teacher. All networks see the same frames, with standard channels fitted to their bands, and alone. The
difference of mIoU to the first network has an interval of 95%, from 1,000 draws of frames with replacement (paired
bootstrap, Efron 1979). Of FIELD carriers that fill their channel all the time, recall is told as well: they are the
easiest to take for something else. --more names further folders of frames in the layout. Each network's numbers go to
experiments/results/fresh_frames/.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from data import DataError
from data.spectrogram import HZ_PER_PIXEL, SIZE
from data.spectrum_sensing import CLASSES, IGNORE, find_frames, read_tensors
from experiments.open_world import predictor
from models import ModelError
from utils import checkpoint, metrics, release, runs
from utils.runs import command, hardware, run, write_json

ERRORS = (DataError, ModelError, checkpoint.CheckpointError)
SETS = {"FIELD": ("FIELD",), "single-signal": ("NR", "LTE"), "combined": ("LTE_NR",)}
MAKE = "--nr 300 --lte 300 --combined 600 --field 1000"
DRAWS = 1000
FULL = 0.95  # load of a carrier


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", type=runs.path, metavar="CHECKPOINT", help="the first is compared with")
    parser.add_argument("--data-dir", type=runs.path, default=Path("datasets/fresh"), help="made if it is not there")
    parser.add_argument("--more", type=runs.path, nargs="+", default=[], metavar="DIR", help="folders of more frames")
    parser.add_argument("--seed", type=runs.seed, default=41, help="of the frames; no training may have it")
    parser.add_argument("--out", type=runs.path, default=Path("experiments/results/fresh_frames"))
    return parser.parse_args()


def find_sets(folder, more):
    """{title: frames}: the families of the folder, and each further folder as a whole."""
    frames = find_frames(folder)
    sets = {title: [frame for frame in frames if frame.family in families] for title, families in SETS.items()}
    sets |= {other.name: find_frames(other) for other in more}
    return {title: frames for title, frames in sets.items() if frames}


def labels_at_full_load(folder, frames, labels):
    """Labels in the channels of fully loaded carriers alone, all others ignored: uint8 (N, 256, 256)."""
    with open(folder / "frames.csv", encoding="utf-8") as file:
        carriers = {row["frame"]: json.loads(row["carriers"]) for row in csv.DictReader(file)}
    alone = torch.full_like(labels, IGNORE)
    for kept, label, frame in zip(alone, labels, frames, strict=True):
        for carrier in carriers[frame.name]:
            if (carrier.get("load") or 0) >= FULL:
                edges = (carrier["center_hz"] + side * carrier["bandwidth_hz"] / 2 for side in (-1, 1))
                low, high = (min(max(round(edge / HZ_PER_PIXEL) + SIZE // 2, 0), SIZE) for edge in edges)
                kept[:, low:high] = label[:, low:high]
    return alone


def recall_at_full_load(saved, images, labels):
    """{network: {"frames", "NR", "LTE"}}: recall of the network alone on the pixels that are not ignored."""
    numbers = [i for i, label in enumerate(labels) if (label != IGNORE).any()]
    found = {}
    for path, data in saved.items():
        matrices = metrics.frame_matrices(predictor(data, False), images, labels, numbers, num_classes=len(CLASSES))
        scores = metrics.scores(matrices.sum(0), CLASSES)["classes"]
        found[path] = {"frames": len(numbers)} | {name: scores[name]["recall"] for name in ("NR", "LTE")}
        print(f"{str(path):40} fully loaded: " + ", ".join(f"{key} {value:.4g}" for key, value in found[path].items()))
    return found


def miou(matrices):
    """Mean IoU of the classes that are there: int64 (..., C, C) -> float64 (...)."""
    hit, truth, predicted = matrices.diagonal(dim1=-2, dim2=-1), matrices.sum(-1), matrices.sum(-2)
    iou = hit / (truth + predicted - hit).clamp(min=1)
    present = truth > 0
    return (iou * present).sum(-1) / present.sum(-1)


def interval(matrices, reference, seed=0):
    """Middle 95% of the difference of mIoU, when the frames are drawn anew: of two int64 (N, C, C), two floats."""
    chosen = torch.randint(len(matrices), (DRAWS, len(matrices)), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(DRAWS, len(matrices), dtype=torch.float64)
    times.scatter_add_(1, chosen, torch.ones_like(times))  # how often each frame is drawn

    def drawn(values):
        return miou((times @ values.double().flatten(1)).unflatten(1, values.shape[1:]))

    return torch.quantile(drawn(matrices) - drawn(reference), torch.tensor([0.025, 0.975]).double()).tolist()


def main():
    args = parse_args()
    torch.set_num_threads(1)
    saved = {path: release.load_segmentation(path) for path in args.networks}
    made = [sys.executable, "-m", "data.synthetic", args.data_dir, *MAKE.split(), "--seed", args.seed]
    if not (args.data_dir / "frames.csv").exists() and subprocess.run(list(map(str, made))).returncode:
        return 1  # it has said why

    # Confusion matrices of every frame: {way: {network: int64 (N, C, C)}}
    facts = {path: {"sets": {}, "network_alone": {}} for path in saved}
    for title, frames in find_sets(args.data_dir, args.more).items():
        images, labels = read_tensors(frames)
        lines = [f"\n{title}, {len(frames)} frames", f"{'network':40}  mIoU {'against the first':>24}  alone"]
        for fitted, key in ((False, "network_alone"), (True, "sets")):
            matrices = {}
            for path, data in tqdm(saved.items(), f"{title}, {key}", unit="network", file=sys.stderr):
                predict = predictor(data, fitted)
                matrices[path] = metrics.frame_matrices(predict, images, labels, num_classes=len(CLASSES))
                score = metrics.scores(matrices[path].sum(0), CLASSES) | {"frames": len(frames)}
                if path != args.networks[0]:
                    score["against"] = str(args.networks[0])
                    score["difference"] = interval(matrices[path], matrices[args.networks[0]])
                facts[path][key][title] = score
        for path in saved:
            score, alone = facts[path]["sets"][title], facts[path]["network_alone"][title]
            low_high = "".join(f" {value:+.4f}" for value in score.get("difference", []))
            lines.append(f"{str(path):40} {score['mean_iou']:.4f} {low_high:>24} {alone['mean_iou']:.4f}")
        print("\n".join(lines), flush=True)
        if title == "FIELD":
            full = recall_at_full_load(saved, images, labels_at_full_load(args.data_dir, frames, labels))
            for path in saved:
                facts[path]["full_load"] = full[path]
    for path, values in facts.items():
        values |= {"network": str(path), "seed": args.seed, "command": command(), "hardware": hardware()}
        values["torch"] = torch.__version__
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / f"{'_'.join(path.with_suffix('').parts[-3:]).strip('/._')}.json", values)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
