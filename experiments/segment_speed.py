"""How long does segment.py take for a frame, and for which of its parts? Two minutes on one core.

    OMP_NUM_THREADS=1 python -m experiments.segment_speed
    OMP_NUM_THREADS=1 python -m experiments.segment_speed --rates 61.44e6 --frames 5

A recording of each sample rate is made from FIELD frames, one after the other: LTE and NR of any load and level, or an
empty band. A narrower capture is the middle of the same frames' strongest carrier. `segment.py` itself then runs on it,
on one thread, evidence and waterfall included; importing torch and loading the network are not counted. Printed are the
first frame's seconds, the mean over all frames and the parts of the mean, in milliseconds; all in processor time, so
that other programs on the machine don't count.
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
from utils import labelling, pictures
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


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[61.44e6, 15.36e6, 1.92e6], metavar="HZ")
    parser.add_argument("--frames", type=int, default=25, help="frames of 40 ms a recording")
    parser.add_argument("--seed", type=int, default=61)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/segment_speed.json"))
    args = parser.parse_args()
    if args.frames < 1 or args.seed < 0 or not all(1e6 <= rate <= SAMPLE_RATE for rate in args.rates):
        parser.error("--frames must be 1 or more, --seed 0 or more, --rates from 1e6 to 61.44e6")
    return args


def write_recording(path, rate, frames, seed):
    """`frames` FIELD frames of 40 ms in a row at `rate`, as ci16_le."""
    with path.open("wb") as file:
        for i in tqdm(range(frames), desc=f"{rate / 1e6:g} MS/s", unit="frame"):
            samples, carriers = make_frame("FIELD", i, seed)
            if rate < SAMPLE_RATE:
                center = max(carriers, key=lambda carrier: carrier["snr_db"])["center_hz"] if carriers else 0.0
                spectrum = np.roll(np.fft.fft(samples), -round(center * 0.04))
                kept = round(rate * 0.04) // 2
                samples = np.fft.ifft(np.concatenate([spectrum[:kept], spectrum[-kept:]]))
            samples = samples * (8000 / np.sqrt(np.mean(np.abs(samples) ** 2)))
            pairs = np.stack([samples.real, samples.imag], 1)  # (n, 2)
            file.write(np.clip(np.round(pairs), -32768, 32767).astype("<i2").tobytes())


@contextlib.contextmanager
def timed_parts():
    """Counts the seconds spent in each of PARTS while the block runs, and the time at which each frame was done."""
    seconds, ends = Counter(), []
    with contextlib.ExitStack() as stack:
        for name, owner, function in PARTS:
            original = getattr(owner, function)

            def timed(*args, name=name, original=original, **options):
                start = time.process_time()
                try:
                    return original(*args, **options)
                finally:
                    seconds[name] += time.process_time() - start
                    if name == "merging":  # the last thing that segment.py does with a frame
                        ends.append(time.process_time())

            setattr(owner, function, timed)
            stack.callback(setattr, owner, function, original)
        yield seconds, ends


def main():
    args = parse_args()
    torch.set_num_threads(1)
    rows = []
    for rate in args.rates:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "field.ci16"
            write_recording(path, rate, args.frames, args.seed)
            options = ["--datatype", "ci16_le", "--sample-rate", str(rate), "--center-frequency", "2.6e9"]
            original, starts = labelling.load_network, []

            def load(*arguments, original=original, starts=starts):
                network = original(*arguments)
                starts.append(time.process_time())
                return network

            labelling.load_network = load
            try:
                with timed_parts() as (seconds, ends), contextlib.redirect_stdout(io.StringIO()):
                    segment.main([str(path), *options, "--out", folder + "/out"])
            finally:
                labelling.load_network = original
        spans = np.diff([starts[0], *ends])
        parts = {name: round(1000 * total / args.frames, 1) for name, total in seconds.items()}
        parts["all else"] = round(1000 * float(spans.mean()) - sum(parts.values()), 1)
        rows.append({"rate": rate, "first": round(float(spans[0]), 3), "mean": round(float(spans.mean()), 3)} | parts)
        print(f"{rate / 1e6:g} MS/s: first frame {spans[0]:.2f} s, mean of {args.frames} {spans.mean():.3f} s")
        print("  ms: " + ", ".join(f"{name} {value:g}" for name, value in parts.items()))
    facts = {"command": command(), "hardware": hardware(), "frames": args.frames, "seed": args.seed, "rows": rows}
    write_json(args.out, facts)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
