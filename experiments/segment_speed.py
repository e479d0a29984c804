"""How long does segment.py take for a frame, and for which of its parts? Two minutes on one core.

    OMP_NUM_THREADS=1 python -m experiments.segment_speed
    OMP_NUM_THREADS=1 python -m experiments.segment_speed --rates 61.44e6 --scenes 3 --frames 5

Each recording repeats one scene, a FIELD or an LTE_NR frame, as carriers stay on the air for longer than 40 ms. A
narrower capture is the middle of the scene's strongest carrier. `segment.py` itself runs on it, on one thread, evidence
and waterfall included; importing torch and loading the network are not counted. Printed are the seconds of the first
frame and the mean over all frames of each scene, and their median and worst. Seconds are CPU time, which another
process on the machine stretches less than wall time; wall seconds follow in brackets.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import segment
from data import recording
from data.evidence import Proofs
from data.frames import make_frame
from data.spectrogram import SAMPLE_RATE
from utils import labelling, pictures, runs
from utils.runs import command, hardware, run, write_json

PARTS = (  # of a frame: (name in the table, where the function stands, its name)
    ("picture", recording, "spectrogram_levels"),
    ("picture", recording, "middle_levels"),
    ("network", labelling, "class_probabilities"),
    ("floats", recording, "_to_floats"),
    ("faults", recording, "find_events"),
    ("noise floor", recording, "noise_floor"),
    ("spectrum", recording.Frame, "_spectrum"),
    ("widening", recording.Frame, "_piece"),
    ("evidence", Proofs, "of"),
    ("waterfall", pictures, "levels_over_time"),
    ("merging", segment.Survey, "add"),
)
NAMES = list(dict.fromkeys(name for name, *_ in PARTS))


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rates", type=runs.real(1e6, SAMPLE_RATE), nargs="+", default=[61.44e6, 15.36e6, 1.92e6], metavar="HZ"
    )
    parser.add_argument("--scenes", type=runs.whole(1, 10**6), default=8, help="of each of FIELD and LTE_NR")
    parser.add_argument("--frames", type=runs.count, default=25, help="frames of 40 ms a recording")
    parser.add_argument("--seed", type=runs.seed, default=61)
    parser.add_argument("--out", type=runs.path, default=Path("experiments/results/segment_speed.json"))
    return parser.parse_args()


def write_recording(path, rate, scene, frames):
    """The scene, (family, index, seed) of make_frame, `frames` times in a row at `rate`, as ci16_le."""
    samples, carriers = make_frame(*scene)
    if rate < SAMPLE_RATE:
        center = max(carriers, key=lambda carrier: carrier["snr_db"])["center_hz"] if carriers else 0.0
        spectrum = np.roll(np.fft.fft(samples), -round(center * 0.04))
        kept = round(rate * 0.04) // 2
        samples = np.fft.ifft(np.concatenate([spectrum[:kept], spectrum[-kept:]]))
    pairs = np.stack([samples.real, samples.imag], 1)  # (n, 2)
    data = np.round(pairs * (30000 / np.abs(pairs).max())).astype("<i2").tobytes()
    with path.open("wb") as file:
        for _ in range(frames):
            file.write(data)


@contextlib.contextmanager
def timed_parts():
    """Counts the CPU seconds spent in each of PARTS while the block runs, and the clocks when each frame was done.

    Yields: Counter of seconds; list of (CPU, wall) seconds, the first of which is when the network had been loaded.
    """
    seconds, clocks = Counter(), []
    with contextlib.ExitStack() as stack:
        for name, owner, function in (*PARTS, ("load", labelling, "load_network")):
            original = getattr(owner, function)

            def timed(*args, name=name, original=original, **options):
                start = time.process_time()
                try:
                    return original(*args, **options)
                finally:
                    seconds[name] += time.process_time() - start
                    if name in ("merging", "load"):  # merging is the last thing that segment.py does with a frame
                        clocks.append((time.process_time(), time.perf_counter()))

            setattr(owner, function, timed)
            stack.callback(setattr, owner, function, original)
        yield seconds, clocks


def measure(rate, scene, frames):
    """{"first", "mean": seconds of CPU; the same with "_wall"; and each of the parts of the mean, in seconds}."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.ci16"
        write_recording(path, rate, scene, frames)
        options = ["--datatype", "ci16_le", "--sample-rate", str(rate), "--center-frequency", "2.6e9"]
        silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with timed_parts() as (seconds, clocks), silent[0], silent[1]:
            segment.main([str(path), *options, "--out", folder + "/out"])
    cpu, wall = np.diff(np.array(clocks), axis=0).T  # (frames,) each
    parts = {name: seconds[name] / frames for name in NAMES}
    parts["all else"] = cpu.mean() - sum(parts.values())
    return {"first": cpu[0], "mean": cpu.mean(), "first_wall": wall[0], "mean_wall": wall.mean()} | parts


def main():
    args = parse_args()
    torch.set_num_threads(1)
    scenes = [(family, i, args.seed) for family in ("FIELD", "LTE_NR") for i in range(args.scenes)]
    rows = []
    for rate in args.rates:
        found = []
        for scene in tqdm(scenes, desc=f"{rate / 1e6:g} MS/s", unit="scene"):
            found.append(measure(rate, scene, args.frames))
            line = "{first:.2f} ({first_wall:.2f}), {mean:.3f} ({mean_wall:.3f})".format(**found[-1])
            tqdm.write(f"{rate / 1e6:g} MS/s, {scene[0]} {scene[1]}: first frame and mean {line} s")
        columns = {name: np.array([row[name] for row in found]) for name in found[0]}
        row = {"rate": rate, "first_of_each_scene": columns["first"].round(2).tolist()}
        for name in ("first", "first_wall", "mean", "mean_wall"):
            row[name] = {"median": round(float(np.median(columns[name])), 3), "worst": round(columns[name].max(), 3)}
            print(f"{rate / 1e6:g} MS/s, {name}: median {row[name]['median']} s, worst {row[name]['worst']} s")
        names = [*NAMES, "all else"]
        row["parts_ms"] = {name: round(1000 * float(columns[name].mean()), 1) for name in names}
        print("  ms of the mean: " + ", ".join(f"{name} {value:g}" for name, value in row["parts_ms"].items()))
        rows.append(row)
    facts = {"command": command(), "hardware": hardware(), "frames": args.frames, "seed": args.seed}
    write_json(args.out, facts | {"scenes": args.scenes, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
