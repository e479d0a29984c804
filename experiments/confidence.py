"""How often are rows of segment.py right? Calibrates their confidence on generated I/Q. 15 minutes on one core.

    OMP_NUM_THREADS=1 python -m experiments.confidence                     # writes weights/seg_student.calibration.json
    python -m experiments.confidence --points experiments/results/confidence/points_seg_student.json       # fits anew

Half of the recordings are field frames (data/frames.py): LTE and NR of any load and level, imperfect radios, empty
bands. The other half hold one emission or receiver event of experiments/prefix_emissions.py, which is neither. A row is
right if a carrier of its technology covers most of it; a row "other" is right if no carrier does. Curves of the even
recordings are tried on the odd ones and the other way round: reliability.png and the printed table. The curves that are
written come from both. See utils/carriers.py.
"""

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.evidence import Proofs
from data.frames import make_frame
from data.recording_formats import open_recording
from data.spectrogram import SAMPLE_RATE
from experiments.prefix_emissions import EMISSIONS, white
from utils import pictures, runs
from utils.carriers import Calibration, find_carriers, logit
from utils.labelling import label_frame, load_network
from utils.release import shipped
from utils.runs import RunError, command, hardware, run, write_json

RATES = (15.36e6, 20e6, 30.72e6)  # of the emissions
CENTER_HZ = 2.6e9
PRIOR = 0.1
BINS = np.linspace(0, 1, 6)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoint",
        type=runs.path,
        default=shipped("seg_student.pt"),
        help="the network, default the shipped student",
    )
    parser.add_argument("--draws", type=runs.whole(4), default=200, help="recordings of each half")
    parser.add_argument("--seed", type=runs.seed, default=60)
    parser.add_argument(
        "--points", type=runs.path, metavar="FILE", help="fit to an earlier call's rows, make no recordings"
    )
    parser.add_argument("--out", type=runs.path, default=Path("experiments/results/confidence"))
    return parser.parse_args()


def draws(count, seed):
    """(samples complex64, sample rate, carriers as data.frames has them) of each recording, both halves in turn."""
    names = list(EMISSIONS)
    for i in range(count):
        samples, carriers = make_frame("FIELD", i, seed)
        yield samples, SAMPLE_RATE, carriers
        rng = np.random.default_rng([seed, 9, i])
        rate = float(rng.choice(RATES))
        n = round(0.04 * rate)
        samples = EMISSIONS[names[i % len(names)]](rng, rate, n)
        samples = samples / np.sqrt(np.mean(np.abs(samples) ** 2) + 1e-30) * 10 ** (rng.uniform(-5, 30) / 20)
        yield (0.1 * (samples + white(rng, n))).astype(np.complex64), rate, []


def rows_of(samples, rate, logits_of, proofs):
    """segment.py's rows of a recording, before calibration."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "draw.cf32"
        samples.tofile(path)
        recording = open_recording(path, "cf32_le", rate, CENTER_HZ)
        (view,) = (label_frame(frame, logits_of) for frame in recording.frames())
    return find_carriers(view, proofs)


def is_right(row, carriers):
    """Whether most of a row is covered by a carrier of its technology; for "other", by none."""
    covering = set()
    for carrier in carriers:
        low, high = (CENTER_HZ + carrier["center_hz"] + side * carrier["bandwidth_hz"] / 2 for side in (-1, 1))
        if min(high, row.upper_hz) - max(low, row.lower_hz) > (row.upper_hz - row.lower_hz) / 2:
            covering.add(carrier["technology"])
    return row.technology in covering if row.technology != "other" else not covering


def fit(points):
    """(offset, slope) of a logistic curve through (probability, right) points.

    Newton's method on the likelihood with a weak prior around the network's own probability, (0, 1); a step that does
    not raise it is halved, since few or separable points make whole steps diverge.
    """
    x = np.array([[1.0, logit(p)] for p, _ in points])
    y = np.array([float(right) for _, right in points])
    curve, centre = np.array([0.0, 1.0]), np.array([0.0, 1.0])

    def value(at):
        z = x @ at
        return float(y @ z - np.logaddexp(0, z).sum() - 0.5 * PRIOR * np.square(at - centre).sum())

    for _ in range(100):
        p = 0.5 * (1 + np.tanh(x @ curve / 2))  # the logistic function, without overflow
        gradient = x.T @ (y - p) - PRIOR * (curve - centre)
        step = np.linalg.solve((x.T * (p * (1 - p))) @ x + PRIOR * np.eye(2), gradient)
        while value(curve + step) < value(curve) and np.abs(step).max() > 1e-9:
            step = step / 2
        curve = curve + step
        if np.abs(step).max() < 1e-6:
            break
    return [round(float(number), 4) for number in curve]


def share(points):
    """The same for a ground whose rows are right at one rate, whatever the network says: Laplace's estimate."""
    right = sum(right for _, right in points)
    return [round(logit((right + 1) / (len(points) + 2)), 4), 0.0]


def reliability(told):
    """[(mean confidence, share right, rows)] by bins of confidence; told (n, 2): confidence, right."""
    rows = []
    for low, high in zip(BINS, BINS[1:], strict=False):
        inside = told[(told[:, 0] >= low) & (told[:, 0] < high + (high == 1))]
        if len(inside):
            rows.append((float(inside[:, 0].mean()), float(inside[:, 1].mean()), len(inside)))
    return rows


def collect(args, logits_of):
    """{"even": {ground: [(probability, right)]}, "odd": ...} of recordings that are made on the way."""
    halves = {"even": defaultdict(list), "odd": defaultdict(list)}
    found = draws(args.draws, args.seed)
    for number, (samples, rate, carriers) in enumerate(tqdm(found, total=2 * args.draws, unit="recording")):
        points = halves["odd" if number // 2 % 2 else "even"]
        for row in rows_of(samples, rate, logits_of, Proofs()):
            points[row.calibration_ground].append((round(row.confidence, 4), is_right(row, carriers)))
        for row in rows_of(samples, rate, logits_of, None):
            points["picture"].append((round(row.confidence, 4), is_right(row, carriers)))
    return halves


def curves_of(points):
    return {g: (fit if g in ("unproven", "picture") else share)(found) for g, found in points.items() if found}


def main():
    args = parse_args()
    torch.set_num_threads(1)
    logits_of = load_network(args.checkpoint, "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.points:
        facts = json.loads(args.points.read_text())
        halves = facts["points"]
    else:
        halves = collect(args, logits_of)
        facts = {"command": command(), "hardware": hardware(), "seed": args.seed, "draws": args.draws, "points": halves}
        write_json(args.out / f"points_{args.checkpoint.stem}.json", facts)

    # Rows by ground, of both halves together
    both = {g: halves["even"].get(g, []) + halves["odd"].get(g, []) for g in {**halves["even"], **halves["odd"]}}
    if not both.get("picture"):
        raise RunError("the network found no carrier at all: name another --checkpoint, or more --draws")

    # Reliability: each half gets its confidence from the other half's curves
    told = {"samples": [], "picture": []}
    for half, other in (("even", "odd"), ("odd", "even")):
        calibration = Calibration({g: tuple(curve) for g, curve in curves_of(halves[other]).items()})
        for ground, found in halves[half].items():
            kind = "picture" if ground == "picture" else "samples"
            told[kind] += [(calibration.confidence(ground, p), right) for p, right in found]

    # Table, calibration file, chart
    tables = {name: reliability(np.array(found)) for name, found in told.items() if found}
    counts = {g: [len(found), sum(right for _, right in found)] for g, found in both.items()}
    print("rows and right ones by ground: " + ", ".join(f"{g} {n}, {r}" for g, (n, r) in counts.items()))
    for name, table in tables.items():
        print(f"{name}: confidence, share right, rows")
        for confidence, true, rows in table:
            print(f"  {confidence:.2f}  {true:.2f}  {rows}")
    origin = {name: facts[name] for name in ("command", "hardware", "seed", "draws")}
    result = origin | {"curves": curves_of(both), "rows_and_right": counts, "reliability": tables}
    write_json(args.checkpoint.with_suffix(".calibration.json"), result)
    series = {name: [(confidence, true) for confidence, true, _ in table] for name, table in tables.items()}
    picture = pictures.line_chart(series | {"ideal": [(0.0, 0.0), (1.0, 1.0)]}, "confidence", "share right")
    pictures.save(picture, args.out / f"reliability_{args.checkpoint.stem}.png")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
