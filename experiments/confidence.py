"""How often are rows of segment.py right? Calibrates their confidence on generated I/Q. 15 minutes on one core.

    OMP_NUM_THREADS=1 python -m experiments.confidence                     # writes weights/seg_student.calibration.json

Half of the recordings are field frames (data/frames.py): LTE and NR of any load and level, imperfect radios, empty
bands. The other half hold one emission or receiver event of experiments/prefix_emissions.py, which is neither. A row is
right if a carrier of its technology covers most of it; a row "other" is right if no carrier does. Even recordings fit
the curves, odd ones show how well they hold: reliability.png and the printed table. See utils/confidence.py.
"""

import argparse
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import segment
from data.frames import make_frame
from data.recording import open_recording
from data.spectrogram import SAMPLE_RATE
from experiments.prefix_emissions import EMISSIONS, white
from utils import charts
from utils.confidence import Calibration, logit
from utils.evidence import Proofs
from utils.runs import RunError, command, hardware, run, write_json

RATES = (15.36e6, 20e6, 30.72e6)  # of the emissions
CENTER_HZ = 2.6e9
PRIOR = 0.1
BINS = np.linspace(0, 1, 6)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="the network, default the shipped student")
    parser.add_argument("--draws", type=int, default=200, help="recordings of each half")
    parser.add_argument("--seed", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/confidence"))
    args = parser.parse_args()
    if args.draws < 4 or args.seed < 0:
        parser.error("--draws must be 4 or more, --seed 0 or more")
    return args


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
        (view,) = (segment.look_at(frame, logits_of) for frame in recording.frames())
    return segment.find_carriers(view, proofs)


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


def reliability(points, curves):
    """[(mean confidence, share right, rows)] of bins of confidence; points: {ground: [(probability, right)]}."""
    calibration = Calibration({ground: tuple(curve) for ground, curve in curves.items()})
    told = np.array([(calibration.confidence(g, p), right) for g, found in points.items() for p, right in found])
    rows = []
    for low, high in zip(BINS, BINS[1:], strict=False):
        inside = told[(told[:, 0] >= low) & (told[:, 0] < high + (high == 1))] if len(told) else told
        if len(inside):
            rows.append((float(inside[:, 0].mean()), float(inside[:, 1].mean()), len(inside)))
    return rows


def main():
    args = parse_args()
    torch.set_num_threads(1)
    logits_of, weights = segment.load_network(args.checkpoint, "cpu")
    halves = defaultdict(list), defaultdict(list)  # {ground: [(probability, right)]} of even and of odd recordings
    found = draws(args.draws, args.seed)
    for number, (samples, rate, carriers) in enumerate(tqdm(found, total=2 * args.draws, unit="recording")):
        points = halves[number // 2 % 2]
        for row in rows_of(samples, rate, logits_of, Proofs()):
            points[row.calibration_ground].append((row.confidence, is_right(row, carriers)))
        for row in rows_of(samples, rate, logits_of, None):
            points["picture"].append((row.confidence, is_right(row, carriers)))
    points = [{ground: [(round(p, 4), bool(r)) for p, r in found] for ground, found in h.items()} for h in halves]
    write_json(args.out / f"points_{weights.stem}.json", {"even": points[0], "odd": points[1]})
    if not halves[0]["picture"]:
        raise RunError("the network found no carrier at all: name another --checkpoint, or more --draws")
    curves = {g: (fit if g in ("unproven", "picture") else share)(points) for g, points in halves[0].items() if points}
    with_samples = {ground: points for ground, points in halves[1].items() if ground != "picture"}
    tables = {"samples": reliability(with_samples, curves)}
    tables["picture"] = reliability({"picture": halves[1]["picture"]}, curves)
    counts = {g: [len(points), sum(r for _, r in points)] for g, points in halves[1].items()}

    print("odd recordings: rows and right ones by ground")
    for ground, (rows, right) in counts.items():
        print(f"  {ground:10s} {rows:5d} {right:5d}")
    for name, table in tables.items():
        print(f"{name}: confidence, share right, rows")
        for told, true, rows in table:
            print(f"  {told:.2f}  {true:.2f}  {rows}")
    facts = {"command": command(), "hardware": hardware(), "seed": args.seed, "draws": args.draws}
    facts |= {"curves": curves, "rows_and_right": counts, "reliability": tables}
    write_json(weights.with_suffix(".calibration.json"), facts)
    series = {name: [(told, true) for told, true, _ in table] for name, table in tables.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    charts.lines(series | {"ideal": [(0.0, 0.0), (1.0, 1.0)]}, "confidence", "share right").save(
        args.out / f"reliability_{weights.stem}.png"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
