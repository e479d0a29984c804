"""What a classifier trained on RadioML's conventions makes of another library's modulations.

    pip install scikit-commpy
    OMP_NUM_THREADS=1 python -m experiments.other_modulations                        # three minutes on one core

scikit-commpy (github.com/veeresht/CommPy, BSD) maps random symbols to PSK and QAM points and has its own root-raised-
cosine filter. From there on, frames of 1024 samples are cut and noise is added here, without data/modulators.py.
Each row changes one convention of the set that the network was trained on: eight samples a symbol, the pulse after the
receiver's filter, the symbols' place between the samples, the receiver's frequency error. The row "generated" has
frames of data/modulators.py of the same classes.

Writes experiments/results/other_modulations/result.json, which `python -m experiments.report` reads.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from data.modulators import make_frames
from data.radioml import MODULATIONS, SAMPLES
from models.vgg10 import from_checkpoint
from utils import checkpoint, release, runs
from utils.runs import RunError, command, hardware, run, write_json

ORDERS = {"BPSK": 2, "QPSK": 4, "8PSK": 8, "16PSK": 16, "32PSK": 32, "16QAM": 16, "64QAM": 64, "256QAM": 256}
LIKE_THE_SET = {"samples_a_symbol": 8, "roll_off": 0.4, "filters": 2, "late": 0.5, "turn": 0.0}
ROWS = {  # what differs from LIKE_THE_SET
    "8 samples a symbol, two filters": {},
    "symbols at any time": {"late": None},
    "one filter": {"filters": 1},
    "roll-off .2": {"roll_off": 0.2},
    "4 samples a symbol": {"samples_a_symbol": 4},
    "10 samples a symbol": {"samples_a_symbol": 10},
    "frequency off by .001 of the rate": {"turn": 0.001},
}
SPAN = 12  # symbols that the filter is long


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=runs.path, default=release.shipped("amc_baseline.pt"))
    parser.add_argument("--frames", type=runs.count, default=100, help="of each class and SNR")
    parser.add_argument(
        "--snr", type=runs.real(-200, 200), nargs="+", default=[10.0, 20.0, 30.0], help="in dB, over the whole rate"
    )
    parser.add_argument("--seed", type=runs.seed, default=5)
    parser.add_argument("--out", type=runs.path, default=Path("experiments/results/other_modulations"))
    return parser.parse_args()


def library():
    """The modulators and the filter of scikit-commpy; RunError where it is missing."""
    try:
        from commpy.filters import rrcosfilter
        from commpy.modulation import PSKModem, QAMModem
    except ImportError as error:
        raise RunError(
            f"{error.name} is missing: pip install scikit-commpy, which is used by this command only"
        ) from error
    return PSKModem, QAMModem, rrcosfilter


def commpy_frames(modulation: str, snr_db: float, count: int, rng: np.random.Generator, **signal) -> np.ndarray:
    """Frames float32 (count, 2, 1024) of one class; signal: the keys of LIKE_THE_SET."""
    psk, qam, rrcosfilter = library()
    rate, order = signal["samples_a_symbol"], ORDERS[modulation]
    modem = qam(order) if "QAM" in modulation else psk(order)
    fine = 8  # steps between samples at which a symbol may lie
    length = rate * fine
    _, taps = rrcosfilter(SPAN * length + 1, signal["roll_off"], 1.0, length)
    frames = np.empty((count, SAMPLES), complex)
    for i in range(count):
        symbols = np.asarray(modem.constellation)[rng.integers(order, size=SAMPLES // rate + 2 * SPAN)]
        x = np.zeros(len(symbols) * length, complex)
        x[::length] = symbols
        for _ in range(signal["filters"]):
            x = np.convolve(x, taps, "same")
        late = rng.integers(fine) if signal["late"] is None else round(signal["late"] * fine)
        x = x[SPAN * length // 2 + late :: fine][:SAMPLES]
        x = x / np.sqrt(np.mean(np.abs(x) ** 2))
        turn = 2 * np.pi * (rng.random() + signal["turn"] * np.arange(SAMPLES))
        noise = rng.standard_normal((SAMPLES, 2)).view(complex)[:, 0] * np.sqrt(0.5 / 10 ** (snr_db / 10))
        x = x * np.exp(1j * turn) + noise
        frames[i] = x / np.sqrt(np.mean(np.abs(x) ** 2))
    return np.stack([frames.real, frames.imag], 1).astype(np.float32)


def generated_frames(modulation: str, snr_db: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """The same of data/modulators.py."""
    return np.ascontiguousarray(make_frames(modulation, snr_db, count, rng).transpose(0, 2, 1))


@torch.inference_mode()
def recall(network: torch.nn.Module, make, args: argparse.Namespace) -> dict[str, float]:
    """Share of right answers by class, and their mean; make(modulation, snr_db, count, rng) gives frames."""
    shares = {}
    for number, modulation in enumerate(ORDERS):
        right = 0
        for snr_db in args.snr:
            rng = np.random.default_rng([args.seed, number, round(snr_db)])
            x = torch.from_numpy(make(modulation, snr_db, args.frames, rng))  # (N, 2, 1024)
            answers = torch.cat([network(part).argmax(1) for part in x.split(64)])
            right += int((answers == MODULATIONS.index(modulation)).sum())
        shares[modulation] = round(right / (args.frames * len(args.snr)), 3)
    return shares | {"mean": round(sum(shares.values()) / len(shares), 3)}


def main() -> int:
    args = parse_args()
    library()
    network = from_checkpoint(checkpoint.load(args.checkpoint)).eval()
    rows = {"generated": recall(network, generated_frames, args)}
    for name, different in ROWS.items():
        signal = LIKE_THE_SET | different

        def make(modulation, snr_db, count, rng, signal=signal):
            return commpy_frames(modulation, snr_db, count, rng, **signal)

        rows[name] = recall(network, make, args)
        print(f"{name:36}" + "".join(f"{cls:>8} {share:.2f}" for cls, share in rows[name].items()), flush=True)
    print(f"{'generated':36}" + "".join(f"{cls:>8} {share:.2f}" for cls, share in rows["generated"].items()))
    facts = {"command": command(), "hardware": hardware(), "checkpoint": str(args.checkpoint), "seed": args.seed}
    facts |= {"snr_db": args.snr, "frames_per_class": args.frames * len(args.snr), "recall": rows}
    write_json(args.out / "result.json", facts)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
