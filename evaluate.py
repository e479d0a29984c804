"""Score one or several networks of one kind on the same frames, side by side.

    python evaluate.py weights/seg_teacher.pt weights/seg_student.pt               # segmentation, frames made if needed
    python evaluate.py runs/seg/best.pt --data-dir MY_FRAMES --out runs/scored      # any folder of frames in the layout
    python evaluate.py weights/amc_baseline.pt weights/amc_fmp.pt --data-file FILE.hdf5              # modulations

Segmentation networks are scored with standard channels fitted to their bands, and alone. Then come their parameters,
multiply-accumulates of a frame, and latency: one frame, one thread, eager, in turns. All frames of the folder are used,
whatever family they are of; `--part test` takes those that no training of this repository sees. 900 frames take three
minutes a network on one core. Modulation networks, ours or the challenge's, are scored on the test part of the file by
SNR, with the challenge's inference cost by layer. --out gets result.json and pictures/, in a folder for each network if
there are several. Without --out nothing is written.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from data import DataError
from data.modulations import default_file
from data.radioml import open_frames
from data.radioml import split as split_rows
from data.spectrogram import SIZE
from data.spectrum_sensing import CLASSES, find_frames, split
from data.synthetic import default_set
from models import ModelError
from models.rebuild import rebuild
from models.vgg10 import from_checkpoint
from utils import checkpoint, cost, release, runs
from utils.evaluation import report, report_amc
from utils.runs import RunError, hardware, run, single_process, write_json

ERRORS = (DataError, ModelError, checkpoint.CheckpointError)  # faults that a user can mend: one sentence, exit code 2


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=runs.path, nargs="+", metavar="CHECKPOINT", help="networks of one kind")
    parser.add_argument(
        "--data-dir", type=runs.path, help="frames; default datasets/spectrum_sensing if there, else made"
    )
    parser.add_argument(
        "--data-file", type=runs.path, help="modulations, HDF5; default a known file if there, else made"
    )
    parser.add_argument("--part", choices=["test", "all"], help="default all frames of a folder, test of a file")
    parser.add_argument(
        "--bits", type=runs.whole(2, 8), default=8, help="of the challenge's networks, whose files don't hold it"
    )
    parser.add_argument("--out", type=runs.path, help="folder for result.json and pictures, default none")
    parser.add_argument("--device", type=runs.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=runs.processes, help="processes that generate frames, default all cores")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = single_process(args.device)
    folders = folders_of(args.checkpoints, args.out)
    of_modulations = [is_modulation(path) for path in args.checkpoints]
    if len(set(of_modulations)) > 1:
        raise RunError("the networks are of two kinds: name those of segmentation or those of modulations")
    if of_modulations[0]:
        if args.data_dir:
            raise RunError(f"{args.checkpoints[0]} names modulations: give it frames with --data-file, not --data-dir")
        networks = {path: from_checkpoint(checkpoint.load(path), args.bits) for path in folders}
        runs.lock(args.out)
        file = args.data_file or default_file(args.workers)
        print(compare_modulations(networks, file, args.part or "test", folders, device))
    else:
        if args.data_file:
            raise RunError(
                f"{args.checkpoints[0]} is for spectrograms: give it frames with --data-dir, not --data-file"
            )
        saved = {path: release.load_segmentation(path) for path in folders}
        runs.lock(args.out)
        root = args.data_dir or default_set(args.workers)
        print(compare_segmentation(saved, root, args.part or "all", folders, device))
    return 0


def is_modulation(path: Path) -> bool:
    """Whether a checkpoint holds a modulation network; the challenge's files have no "kind"."""
    kind = checkpoint.load(path).get("kind", "modulation")
    if kind not in ("modulation", "segmentation"):
        raise RunError(
            f"{path}: a network for {kind}; name a file of train_seg.py, train_amc.py or a script after them"
        )
    return kind == "modulation"


def folders_of(paths: list[Path], out: Path | None) -> dict[Path, Path | None]:
    """Where each network's results go: `out` itself for a single one, else a folder in it named after the file."""
    if out and (out / "last.pt").exists():
        raise RunError(f"{out} holds a training run, its result.json is its own: choose another folder with --out")
    if out is None or len(paths) == 1:
        return dict.fromkeys(paths, out)
    return {path: out / "_".join(path.with_suffix("").parts[-3:]).strip("/._") for path in paths}


# ---- segmentation ----------------------------------------------------------------------------------------------------


def compare_segmentation(saved: dict, root: Path, part: str, folders: dict, device: torch.device) -> str:
    """Score checkpoints {path: data} on a folder of frames; a table with a line for each network."""
    frames = find_frames(root)
    frames = split(frames)["test"] if part == "test" else frames
    if not frames:
        raise RunError(f"{root}: no {part} frames; choose another --part")
    facts = {}
    for path, data in saved.items():
        print(f"\n{path}")
        facts[path] = report(data, {part: frames}, folders[path], device)

    # Size and speed, on the CPU
    networks = {path: rebuild(data).eval() for path, data in saved.items()}
    height, width = next(iter(saved.values())).get("frame_size", (SIZE, SIZE))
    times = cost.latency(networks, torch.zeros(1, 3, height, width), threads=1, runs=15, limit=10)
    length = max(len(str(path)) for path in saved)
    lines = ["", f"{'network':{length}} {'parameters':>10} {'MMAC':>7} {'ms':>7} {'mIoU':>6} {'alone':>6}"]
    lines[-1] += "".join(f"{name:>7}" for name in CLASSES) + "  (IoU of each class)"
    for path, network in networks.items():
        size = saved[path].get("frame_size", (SIZE, SIZE))
        macs = cost.count(network, torch.zeros(1, 3, *size)).macs
        facts[path] |= {"macs": macs, "latency": times[path] | {"conditions": times["conditions"]}}
        if folders[path]:
            write_json(folders[path] / "result.json", facts[path])
        values, alone = (facts[path][key][part] for key in ("sets", "network_alone"))
        ious = [None if of_class is None else of_class["iou"] for of_class in values["classes"].values()]
        line = f"{str(path):{length}} {facts[path]['parameters']:10d} {macs / 1e6:7.1f} {times[path]['median_ms']:7.1f}"
        scores = [values["mean_iou"], alone["mean_iou"], *ious]
        lines.append(line + " " + " ".join(f"{'-':>6}" if value is None else f"{value:6.3f}" for value in scores))
    lines.append(f"{len(frames)} frames of {root}, {part}; ms: one frame, one thread, eager, {hardware()}")
    return "\n".join(lines)


# ---- modulations -----------------------------------------------------------------------------------------------------


def compare_modulations(networks: dict, file: Path, part: str, folders: dict, device: torch.device) -> str:
    """Score networks {path: VGG10} on a file of frames; a table with a line for each of them."""
    frames = open_frames(file)
    rows = split_rows(frames)["test"] if part == "test" else np.arange(len(frames))
    length = max(len(str(path)) for path in networks)
    lines = ["", f"{'network':{length}} {'accuracy':>8} {'non-zero':>9} {'bops':>12} {'weight bits':>11} {'score':>8}"]
    for path, network in networks.items():
        print(f"\n{path}")
        facts = report_amc({part: network.to(device)}, frames, rows, device, {}, folders[path])
        total = facts["cost"]
        line = f"{str(path):{length}} {facts['sets'][part]['accuracy']:8.4f} {total['nonzero']:9d} {total['bops']:12d}"
        lines.append(f"{line} {total['weight_bits']:11d} {total['score']:8.5f}")
    lines.append(f"{len(rows)} frames of {file}, {part}; score: 1 is the challenge's 8-bit baseline")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
