"""Does the quick search for a spectrogram's minimum and maximum change the pictures? Five minutes on one core.

    python -m experiments.spectrogram_shortcut --frames 100

For generated frames of all families: the difference of minimum and maximum in dB, of each pixel's colormap index, and
of the distributions of all indices (largest gap between the two cumulative ones).
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.frames import make_frame
from data.spectrogram import level_range, spectrogram_levels
from utils import runs
from utils.runs import command, hardware, run, write_json


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=runs.count, default=100)
    parser.add_argument("--seed", type=runs.seed, default=1)
    parser.add_argument("--out", type=runs.path, default=Path("runs/spectrogram_shortcut"))
    return parser.parse_args()


def main():
    args = parse_args()
    torch.set_num_threads(1)
    gap, difference, seconds, counts = [], [], [0.0, 0.0], np.zeros((2, 256), np.int64)
    families = ("NR", "LTE", "LTE_NR", "FIELD", "FIELD")
    for index in tqdm(range(args.frames), unit="frame", file=sys.stderr):
        iq, _ = make_frame(families[index % len(families)], index, args.seed)
        ranges, levels = [], []
        for exact in (False, True):
            began = time.process_time()
            ranges.append(level_range(iq, exact))
            seconds[int(exact)] += time.process_time() - began
            levels.append(spectrogram_levels(iq, exact).astype(int))
            counts[int(exact)] += np.bincount(levels[-1].ravel(), minlength=256)
        gap.append(np.subtract(*ranges))
        difference.append(np.abs(levels[0] - levels[1]).mean())
    gap, cumulative = np.array(gap), counts.cumsum(1) / counts.sum(1, keepdims=True)
    facts = {
        "command": command(),
        "hardware": hardware(),
        "frames": args.frames,
        "minimum_db": {"mean": float(gap[:, 0].mean()), "deviation": float(gap[:, 0].std())},
        "maximum_db": {"mean": float(gap[:, 1].mean()), "largest": float(np.abs(gap[:, 1]).max())},
        "colormap_index": {"mean_difference": float(np.mean(difference)), "median": float(np.median(difference))},
        "largest_gap_of_distributions": float(np.abs(cumulative[0] - cumulative[1]).max()),
        "seconds": {"quick": seconds[0] / args.frames, "full": seconds[1] / args.frames},
    }
    for name, value in facts.items():
        print(f"{name:30s} {value}")
    write_json(args.out / "result.json", facts)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
