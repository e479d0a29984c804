"""Average a network and what further training made of it: most of what each knows, without any training.

    python -m experiments.average_weights weights/seg_student.pt runs/student/weights.pt --data-dir DIR
    python -m experiments.average_weights BEFORE.pt AFTER.pt --data-dir DIR --share 0.5 --out runs/average.pt

A network that learns something new forgets some of what it knew. Networks on the straight line between the weights
before and after know most of both (Wortsman et al. 2022, arXiv:2109.01903). The first command scores some of them on
the validation part of DIR, seconds each. The second writes one, with its scores on the test part in a JSON file beside
it; --share is the share of AFTER. Biases, and statistics of batch norm, are averaged like weights. Networks that were
trained apart from the start have nothing to average.
"""

import argparse
import sys

import torch

from data import DataError
from data.spectrum_sensing import find_frames, read_tensors, split
from models import ModelError
from models.rebuild import rebuild
from utils import checkpoint, evaluation, release, runs
from utils.runs import RunError, command, run

ERRORS = (DataError, ModelError, checkpoint.CheckpointError)
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=runs.path, metavar="BEFORE.pt")
    parser.add_argument("after", type=runs.path, metavar="AFTER.pt")
    parser.add_argument("--data-dir", type=runs.path, required=True, help="frames to score networks on")
    parser.add_argument("--share", type=runs.real(0, 1), help="of AFTER; without it some are compared")
    parser.add_argument("--out", type=runs.weights_file, metavar="FILE.pt", help="write the network of --share")
    args = parser.parse_args()
    if (args.share is None) != (args.out is None):
        parser.error("--share and --out go together: give both, or none")
    return args


def average(before: dict, after: dict, share: float) -> dict:
    """A checkpoint between two others of equal tensors; half precision where AFTER has it. RunError: they differ."""
    old, new = before["state_dict"], after["state_dict"]
    if old.keys() != new.keys() or any(old[name].shape != new[name].shape for name in old):
        raise RunError("the two networks have other layers or widths: name a network and what it was trained to")
    mixed = {}
    for name, tensor in new.items():
        if tensor.is_floating_point():
            tensor = torch.lerp(old[name].double(), tensor.double(), share).to(tensor.dtype)
        mixed[name] = tensor
    return after | {"state_dict": mixed}


def main() -> int:
    args = parse_args()
    torch.set_num_threads(1)
    before, after = (release.load_segmentation(path) for path in (args.before, args.after))
    parts = split(find_frames(args.data_dir))
    images, labels = read_tensors(parts["validation"], progress=True)
    for share in SHARES if args.share is None else (args.share,):
        data = average(before, after, share)
        scores = evaluation.evaluate(rebuild(data).to(memory_format=torch.channels_last), images, labels)
        print(f"share {share:g}: validation mIoU of the network alone {scores['mean_iou']:.4f}", flush=True)
    if args.out:
        data |= {"command": command(), "validation": scores, "class_weights_undone": None}
        sets = {name: parts[name] for name in ("test", "combined") if parts.get(name)}
        facts = evaluation.report(data, sets, None, torch.device("cpu"))
        release.write(args.out, data, facts | {"commands": [after["command"], command()]})
    return 0


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
