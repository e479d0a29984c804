"""Class weights of generated single-signal frames beside the published ones. Seconds: no spectrogram is drawn.

    python -m experiments.class_weights --frames 900

median(count) / count of the pixels of each class in --frames NR and as many LTE frames, those that
`python -m data.synthetic DIR --nr 900 --lte 900 --seed 0` writes. The archive's are about .29, 1.0 and 2.02; they tell
whether generated carriers are as wide as the published ones.
"""

import argparse
import sys

import numpy as np
import torch

from data.frames import frame_rng
from data.mathworks_frames import mathworks_scene
from data.spectrogram import channel_mask
from data.spectrum_sensing import CLASSES, LABEL_VALUES, class_weights
from utils import runs
from utils.runs import run

PUBLISHED = (0.29, 1.0, 2.02)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=runs.count, default=900, help="NR frames, and as many LTE frames")
    parser.add_argument("--seed", type=runs.seed, default=0)
    return parser.parse_args(argv)


def single_frame_masks(frames, seed):
    """One row of each mask, all rows being equal: class numbers, uint8 (2 * frames, 1, 256)."""
    classes = np.zeros(256, np.uint8)
    classes[list(LABEL_VALUES["three"])] = list(LABEL_VALUES["three"].values())
    rows = [
        channel_mask(mathworks_scene(family, frame_rng(family, index, seed)).carriers)[:1]
        for family in ("NR", "LTE")
        for index in range(1, frames + 1)
    ]
    return torch.from_numpy(classes[np.stack(rows)])


def main(argv=None):
    args = parse_args(argv)
    masks = single_frame_masks(args.frames, args.seed)
    weights = class_weights(masks)
    print(f"{'':10}" + "".join(f"{name:>8}" for name in CLASSES))
    print(f"{'generated':10}" + "".join(f"{weight:8.3f}" for weight in weights))
    print(f"{'published':10}" + "".join(f"{weight:8.3f}" for weight in PUBLISHED))
    columns = [(masks[part] > 0).sum((1, 2)).double().mean() for part in (slice(args.frames), slice(args.frames, None))]
    print(f"mean width: NR {columns[0]:.1f} columns, LTE {columns[1]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
