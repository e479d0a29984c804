"""Segmentation networks side by side: size, arithmetic, and scores on the same frames.

    python -m experiments.side_by_side runs/teacher/best.pt runs/pruned/pruned.pt runs/student/best.pt
    python -m experiments.side_by_side weights/seg_teacher.pt --data-dir MY_FRAMES --part all

A line a network: parameters, multiply-accumulates of a frame, mIoU and the IoU of each class. Seconds a network on
small sets; --part chooses which frames: test (default), validation, combined, or all of a folder.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from data import DataError
from data.spectrum_sensing import CLASSES, find_frames, read_tensors, split
from models import ModelError, segmentation
from models.rebuild import rebuild
from utils import checkpoint, cost, metrics
from utils.runs import RunError, join_processes, run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", type=Path, nargs="+", help="files of train_seg, prune_seg or distill_seg.py")
    parser.add_argument("--data-dir", type=Path, default=Path("datasets/spectrum_sensing"))
    parser.add_argument("--part", choices=["test", "validation", "combined", "all"], default="test")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    _, _, device = join_processes(args.device)
    frames = find_frames(args.data_dir)
    frames = frames if args.part == "all" else split(frames)[args.part]
    if not frames:
        raise RunError(f"{args.data_dir}: no {args.part} frames; choose another --part")
    images, masks = read_tensors(frames)
    width = max(len(str(path)) for path in args.networks)
    print(f"{'network':{width}} {'parameters':>11} {'MMAC':>8} {'mIoU':>6}" + "".join(f"{name:>7}" for name in CLASSES))
    for path in args.networks:
        data = checkpoint.load(path)
        if data.get("kind") != "segmentation":
            raise RunError(f"{path}: not a segmentation network; name a file of train_seg, prune_seg or distill_seg.py")
        network = rebuild(data).eval().to(device, memory_format=torch.channels_last)
        size = cost.count(network, segmentation.normalise(images[:1].to(device)))
        matrices = metrics.frame_matrices(partial(segmentation.predict, network), images, masks)
        values = metrics.scores(matrices.sum(0), CLASSES)
        found = values["classes"]
        iou = "".join(f"{found[name]['iou']:7.3f}" if found[name] else f"{'-':>7}" for name in CLASSES)
        print(f"{str(path):{width}} {size.parameters:11d} {size.macs / 1e6:8.1f} {values['mean_iou'] or 0:6.3f}{iou}")
    print(f"{len(frames)} frames of {args.data_dir}, part {args.part}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main, DataError, ModelError, checkpoint.CheckpointError))
