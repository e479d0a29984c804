"""Are generated spectrograms like the real ones? Ask a network that has seen nothing but the real set.

    python -m experiments.segmentation_reference --data-dir datasets/spectrum_sensing --reference STATE.pt --frames 300

The real-data reference is the state dict of a channel-pruned DeepLabV3-MobileNetV3-Large that was trained on MathWorks'
real frames. On real single-signal frames the published one has macro recall .90 and mIoU .74. Generated `mathworks`
frames should give about the same. Lower scores mean strange frames, higher ones mean frames that are too easy. Any
checkpoint of this repository can be asked as well. It takes three minutes for 900 frames on one core.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import torch

from data import DataError
from data.spectrogram import mask_columns
from data.spectrum_sensing import CLASSES, find_frames, read_tensors
from models import ModelError, segmentation
from models.rebuild import build, rebuild
from utils import checkpoint, metrics, runs
from utils.runs import command, hardware, run, write_json


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=runs.path, default=Path("datasets/spectrum_sensing"))
    parser.add_argument(
        "--reference", type=runs.path, required=True, help="state dict, or a checkpoint of this repository"
    )
    parser.add_argument("--frames", type=runs.count, default=300, help="single-signal, combined and field frames each")
    parser.add_argument("--out", type=runs.path, default=Path("runs/segmentation_reference"))
    return parser.parse_args()


def load_reference(path):
    """The network in eval mode, from one of our checkpoints or a bare state dict with any numbers of channels."""
    data = checkpoint.load(path)
    if "state_dict" not in data:
        name, arguments = segmentation.factory("deeplabv3_mobilenet_v3_large", len(CLASSES))
        network = build(name, arguments)
        if data.keys() != network.state_dict().keys():
            raise ModelError(f"{path}: not a state dict of {name}; name the published student's file")
        shapes = {key: list(tensor.shape) for key, tensor in data.items()}
        attributes = {}
        for layer_name, layer in network.named_modules():
            shape = shapes.get(f"{layer_name}.weight")
            if isinstance(layer, torch.nn.Conv2d):
                depthwise = layer.groups > 1
                inputs = shape[0] if depthwise else shape[1]
                groups = shape[0] if depthwise else 1
                attributes[layer_name] = {"in_channels": inputs, "out_channels": shape[0], "groups": groups}
            elif isinstance(layer, torch.nn.BatchNorm2d):
                attributes[layer_name] = {"num_features": shape[0]}
        parts = {"shapes": shapes, "attributes": attributes, "state_dict": data}
        data = {"factory": name, "arguments": arguments, **parts}
    return rebuild(data).eval().to(memory_format=torch.channels_last)


def carriers_by_frame(folder):
    """{frame name: list of carriers} from frames.csv; the real archive has none."""
    if not (folder / "frames.csv").exists():
        return {}
    with (folder / "frames.csv").open(newline="") as file:
        return {row["frame"]: json.loads(row["carriers"]) for row in csv.DictReader(file)}


def carrier_recalls(carriers, prediction, label):
    """(carrier, recall of its own pixels) for each carrier of a frame that is not hidden by another one."""
    for carrier in carriers:
        half = carrier["bandwidth_hz"] / 2
        first, last = mask_columns(carrier["center_hz"] - half, carrier["center_hz"] + half)
        number = CLASSES.index(carrier["technology"])
        own = label[:, first : last + 1] == number
        if own.any():
            yield carrier, float((prediction[:, first : last + 1][own] == number).float().mean())


def main():
    args = parse_args()
    network = load_reference(args.reference)
    frames = find_frames(args.data_dir)
    carriers = carriers_by_frame(args.data_dir)
    some = {"mathworks single-signal": [f for f in frames if f.family in ("NR", "LTE")]}
    some |= {"mathworks combined": [f for f in frames if f.family == "LTE_NR"]}
    some |= {"field": [f for f in frames if f.family == "FIELD"]}
    scored, hits = {}, {}
    for title, members in some.items():
        members = members[:: max(1, len(members) // args.frames)][: args.frames]
        if not members:
            continue
        images, labels = read_tensors(members)
        predictions = torch.cat([segmentation.predict(network, part) for part in images.split(8)])  # (N, H, W)
        matrices = torch.stack([metrics.confusion_matrix(p, m) for p, m in zip(predictions, labels, strict=True)])
        groups = metrics.frame_groups(title, [f.family for f in members], [f.snr_db for f in members])
        scored |= metrics.score_groups(matrices, groups, CLASSES)
        for frame, prediction, label in zip(members, predictions, labels, strict=True):
            for carrier, recall in carrier_recalls(carriers.get(frame.name, []), prediction, label):
                key = title, carrier["technology"], carrier["bandwidth_hz"] / 1e6
                hits.setdefault(key, []).append(recall)
    print(metrics.table(scored, CLASSES))
    print("\nmean recall of a carrier, by bandwidth")
    by_bandwidth = {}
    for (title, technology, mhz), values in sorted(hits.items()):
        if len(values) >= 5:
            mean = sum(values) / len(values)
            by_bandwidth[f"{title}, {technology}, {mhz:g} MHz"] = [len(values), round(mean, 3)]
            print(f"{title:24s} {technology:4s} {mhz:5g} MHz  {mean:.3f}  ({len(values)} carriers)")
    facts = {"command": command(), "hardware": hardware(), "sets": scored, "recall_by_bandwidth": by_bandwidth}
    write_json(args.out / "result.json", facts)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, DataError, ModelError, checkpoint.CheckpointError))
