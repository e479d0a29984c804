"""What do networks call what is neither LTE nor NR? Shares of pixels by kind, on OTHER frames of a fresh seed.

    OMP_NUM_THREADS=1 python -m experiments.open_world weights/seg_student.pt --frames 12            # five minutes
    python -m experiments.open_world weights/seg_teacher.pt runs/seg/best.pt --frames 32             # 1,000 frames

Each frame has one kind of data/others.py, with LTE and NR carriers beside it in half of the frames. All networks see
the same frames. Counted are the pixels whose label is noise and which are more than two columns away from any carrier:
the share called LTE or NR, of all such pixels of the frame (share) and of those where the emission is stronger than the
noise (visible). Wanted of the kinds that are trained on: below 2% in the mean, none above 10%. The kinds measured only
are those that the picture can't tell from carriers (data/others.py): a drone's OFDM, and steady, flat bands. Each
network's numbers go to experiments/results/open_world/, by default of the network alone.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import DataError, augment, bands
from data.lte_nr import standard_channels
from data.other_frames import other_frame, pixel_power
from data.others import EVENTS, KINDS, TRAINED
from data.spectrogram import HZ_PER_PIXEL, PARULA, SAMPLE_RATE, spectrogram_image
from data.spectrum_sensing import CLASSES
from models import ModelError, segmentation
from models.rebuild import rebuild
from utils import checkpoint, release, runs
from utils.runs import command as this_command
from utils.runs import hardware, run, write_json

ERRORS = (DataError, ModelError, checkpoint.CheckpointError)
AWAY = 2  # columns
WANTED = {"mean": 0.02, "worst": 0.10}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "networks", nargs="+", type=runs.path, metavar="CHECKPOINT", help="of train_seg.py or distill_seg.py"
    )
    parser.add_argument("--frames", type=runs.count, default=12, help="of each kind")
    parser.add_argument("--seed", type=runs.seed, default=3000, help="of the frames; no training may have it")
    parser.add_argument("--fitted", action="store_true", help="fit standard channels to the bands, as evaluate.py does")
    parser.add_argument("--out", type=runs.path, default=Path("experiments/results/open_world"))
    return parser.parse_args()


def counted_pixels(mask):
    """Noise pixels more than AWAY columns from any carrier: bool (256, 256)."""
    taken = (mask != 0).any(0).astype(float)
    near = np.convolve(taken, np.ones(2 * AWAY + 1), "same") > 0
    return np.broadcast_to(~near, mask.shape)


def make(kind, count, seed):
    """Frames of one kind: pictures uint8 (N, 3, 256, 256), counted and visible pixels, each bool (N, 256, 256)."""
    pictures, counted, visible = [], [], []
    for index in range(count):
        frame = other_frame(np.random.default_rng([seed, KINDS.index(kind), index]), [kind])
        pictures.append(spectrogram_image(frame.iq).transpose(2, 0, 1))
        counted.append(counted_pixels(frame.mask))
        visible.append(counted[-1] & (pixel_power(frame.emissions) > 1 / SAMPLE_RATE))
    return torch.from_numpy(np.stack(pictures)), np.stack(counted), np.stack(visible)


def predictor(data, fitted):
    """Pictures (N, 3, 256, 256) -> classes (N, 256, 256) of a saved network."""
    network = rebuild(data).eval()
    if not fitted:
        return partial(segmentation.predict, network)
    levels_of = partial(augment.as_levels, palette=torch.from_numpy(PARULA))
    channels = standard_channels(CLASSES, HZ_PER_PIXEL)
    return bands.predictor(partial(segmentation.logits, network), levels_of, channels)


def shares(classes, counted, visible):
    """Of one kind: how much is called LTE or NR, and each of the two; None where nothing is counted."""
    nr, lte = (classes == CLASSES.index(name) for name in ("NR", "LTE"))
    called = nr | lte
    found = {"share": called[counted], "NR": nr[counted], "LTE": lte[counted], "visible": called[visible]}
    return {name: round(float(values.mean()), 5) if len(values) else None for name, values in found.items()}


def table(kinds):
    """Lines of a table, the worst kinds first, and the facts of the kinds that are trained on."""
    lines = [f"{'kind':16} {'share':>7} {'NR':>7} {'LTE':>7} {'visible':>8}"]
    for kind, values in sorted(kinds.items(), key=lambda item: -(item[1]["share"] or 0)):
        cells = [f"{values[name]:7.2%}" if values[name] is not None else "      -" for name in ("share", "NR", "LTE")]
        seen = f"{values['visible']:8.2%}" if values["visible"] is not None else "       -"
        lines.append(f"{kind:16} {' '.join(cells)} {seen}{'' if kind in TRAINED else '  measured only'}")
    known = {kind: kinds[kind]["share"] or 0.0 for kind in TRAINED}
    worst = max(known, key=known.get)
    mean = sum(known.values()) / len(known)
    lines.append(f"{'mean':16} {mean:7.2%}  of the {len(known)} kinds to train on; worst: {worst}, {known[worst]:.2%}")
    lines.append(f"wanted: mean below {WANTED['mean']:.0%}, no kind above {WANTED['worst']:.0%}")
    return lines, {"mean": round(mean, 5), "worst": [worst, known[worst]], "wanted": WANTED}


def main():
    args = parse_args()
    torch.set_num_threads(1)
    networks = {path: predictor(release.load_segmentation(path), args.fitted) for path in args.networks}
    kinds = {path: {} for path in networks}
    for kind in tqdm(KINDS, "kinds", unit="kind", file=sys.stderr):
        pictures, counted, visible = make(kind, args.frames, args.seed)
        for path, predict in networks.items():
            classes = torch.cat([predict(part).cpu() for part in pictures.split(16)]).numpy()
            kinds[path][kind] = shares(classes, counted, visible)
            if kind in EVENTS:  # they have no pixels of their own
                kinds[path][kind]["visible"] = None

    # Tables, and a file for each network
    for path, of_kinds in kinds.items():
        lines, facts = table(of_kinds)
        print(f"\n{path}, {args.frames} frames of each kind", *lines, sep="\n")
        facts |= {"kinds": of_kinds, "frames": args.frames, "seed": args.seed, "fitted": args.fitted}
        facts |= {"command": this_command(), "hardware": hardware(), "torch": torch.__version__}
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / f"{'_'.join(path.with_suffix('').parts[-3:]).strip('/._')}.json", facts)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
