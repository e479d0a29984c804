"""Is a cell that data/cell_search.py finds there, and from which SNR does it find one?

    python -m experiments.cell_search_trials                 # over an hour on one core
    python -m experiments.cell_search_trials --draws 20      # a look, seconds

False alarms: random draws of each kind of experiments/cell_search_emissions.py that is no cell, at 3.84 MS/s, 10 ms or,
one in ten, 40 ms. A Gumbel distribution is fitted to each kind's highest statistics. Its tail gives the rate above
THRESHOLD.
Results are written after each round of 50 draws of all kinds. Detection: carriers of 5 MHz (NR at 30 kHz: 10 MHz, one
block in 20 ms) in noise, payload in half of the resource blocks, multipath of the EPA profile without Doppler, its gain
set to 1. Recordings begin anywhere, so half of the 10 ms recordings hold no NR block.

The aligned searches are those for bands whose prefix is known. They get the timings that the prefix's correlation
gives, or, where it has no peak, a random one.

The threshold was chosen with --seed 0; the results kept in experiments/results/cell_search are of other seeds.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from data.cell_search import THRESHOLD, lte_cells, lte_cells_aligned, nr_cells, nr_cells_aligned
from data.cyclic_prefix import SymbolTiming, symbol_timings
from data.evidence import FrameEvidence
from data.lte_nr import LTE_RB, NR_RB, LteConfig, NrConfig, lte_waveform, nr_waveform
from data.radio import multipath
from data.sync_signals import nr_raster
from experiments.cell_search_emissions import (
    KINDS,
    NR_CASE,
    RATE,
    at_rate,
    cut,
    in_noise,
    lte_carrier,
    noise,
    nr_carrier,
    shift,
)
from utils import pictures, runs
from utils.pictures import line_chart

FLOOR = 6.0  # statistics below count as this; nearly every search has some word above
ROUND = 50
SEARCHES = ("LTE", "NR", "aligned LTE", "aligned NR")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", nargs="+", default=list(SEARCHES), choices=list(SEARCHES), metavar="SEARCH")
    parser.add_argument("--draws", type=runs.whole(0), default=1000, help="searches of each kind, 0: none")
    parser.add_argument("--detection-draws", type=runs.whole(0), default=25, help="searches at each SNR, 0: none")
    parser.add_argument("--seed", type=runs.seed, default=1)
    parser.add_argument("--out", type=runs.path, default=Path("experiments/results/cell_search"))
    return parser.parse_args()


# ---- false alarms ---------------------------------------------------------------------------------------------------


def samples_of(kind, rng, n):
    """(complex64 (n,), numbers of the cells that are there)."""
    if kind in KINDS:
        return KINDS[kind](rng, n).astype(np.complex64), ()
    carrier, config = lte_carrier(rng) if kind.startswith("LTE") else nr_carrier(rng)
    samples = in_noise(rng, shift(cut(rng, carrier, n), rng.uniform(-4e4, 4e4)), -5, 40)
    return samples.astype(np.complex64), (config.cell_id,) if kind.endswith("another cell") else ()


def highest(search, kind, rng):
    """Highest statistic of a search in a draw of the kind, cells that are there left out, and its seconds."""
    samples, true = samples_of(kind, rng, round(RATE * (0.01 if rng.random() < 0.9 else 0.04)))
    if search.startswith("aligned"):
        start = time.process_time()
        cells = aligned(search, samples, rng)
    elif search == "LTE":
        start = time.process_time()
        cells = lte_cells(samples, RATE, 0.0, 10 ** rng.uniform(8.8, 9.6), least=FLOOR)
    else:
        spacing = float(rng.choice([15e3, 30e3]))
        on_air = float(rng.choice(nr_raster(0.7e9, 2.9e9 if spacing == 15e3 else 4e9)))
        start = time.process_time()
        cells = nr_cells(samples, RATE, near(spacing), on_air, spacing_hz=spacing, least=FLOOR)
    seconds = time.process_time() - start
    return max([cell.statistic for cell in cells if cell.cell_id not in true], default=FLOOR), seconds


def aligned(search, samples, rng):
    """Cells that an aligned search finds around the middle."""
    spacing = 15e3 if search.endswith("LTE") else float(rng.choice([15e3, 30e3]))
    look = FrameEvidence(samples, RATE, None, None)
    half = RATE / 2
    timings = symbol_timings(look.spectrum, -half, half, spacing)
    if not timings:
        start, offset = rng.uniform(0, 0.5e-3), rng.uniform(0, spacing)
        timings = [SymbolTiming(spacing, start, offset, 0.0, False, -half, half, 0.0)]
    part = look.part(-half, half)
    if search.endswith("LTE"):
        return lte_cells_aligned(part, [0.0], 10 ** rng.uniform(8.8, 9.6), timings, least=FLOOR)
    on_air = float(rng.choice(nr_raster(0.7e9, 2.9e9 if spacing == 15e3 else 4e9)))
    part = part._replace(seconds=min(part.seconds, 0.0204))
    return nr_cells_aligned(part, near(spacing), on_air, timings, least=FLOOR)


def near(spacing):
    """Band with a block of the spacing and the points of the raster beside it."""
    return (-64 * spacing - 1.1e5, 64 * spacing + 1.1e5)


def figures(found):
    """Of [(statistic, seconds)], with the Gumbel fit by moments."""
    values = np.array([value for value, _ in found])
    scale = max(values.std() * np.sqrt(6) / np.pi, 1e-3)
    location = values.mean() - 0.5772 * scale
    return {
        "draws": len(values),
        "above_threshold": int((values > THRESHOLD).sum()),
        "highest": round(float(values.max()), 2),
        "gumbel_location": round(float(location), 3),
        "gumbel_scale": round(float(scale), 3),
        "rate_at_threshold": float(-np.expm1(-np.exp((location - THRESHOLD) / scale))),
        "ms_a_search": round(1e3 * float(np.median([seconds for _, seconds in found])), 1),
    }


def false_alarms(draws, seed, searches):
    """{search: {kind: figures}} after each round of draws of all kinds, so that a run cut short has them as well."""
    kinds = {"LTE": [*KINDS, "NR", "LTE, another cell"], "NR": [*KINDS, "LTE", "NR, another cell"]}
    found = {search: {kind: [] for kind in kinds[search.split()[-1]]} for search in searches}
    for first in range(0, draws, ROUND):
        for search, table in found.items():
            for number, (kind, values) in enumerate(table.items()):
                for i in range(first, min(first + ROUND, draws)):
                    values.append(highest(search, kind, np.random.default_rng([seed, len(search), number, i])))
        yield {search: {kind: figures(values) for kind, values in table.items()} for search, table in found.items()}


# ---- detection ------------------------------------------------------------------------------------------------------

SNRS = range(-12, 5, 2)  # dB, of a resource element
CASES = {
    "LTE FDD": lambda rng: lte_detection(rng, None),
    "LTE TDD": lambda rng: lte_detection(rng, int(rng.integers(7))),
    "NR 15 kHz": lambda rng: nr_detection(rng, 15e3),
    "NR 30 kHz": lambda rng: nr_detection(rng, 30e3),
}


def lte_detection(rng, tdd):
    allocation = (rng.random((40, LTE_RB[5e6])) < 0.5).astype(np.float32)
    config = LteConfig(5e6, int(rng.integers(504)), allocation, tdd=tdd)
    return at_rate(lte_waveform(config, rng)), config, 15e3


def nr_detection(rng, spacing):
    """One SS/PBCH block every 20 ms."""
    width = 5e6 if spacing == 15e3 else 10e6
    allocation = (rng.random((round(40 * spacing / 15e3), NR_RB[spacing][width])) < 0.5).astype(np.float32)
    config = NrConfig(width, spacing, int(rng.integers(1008)), allocation, 4, NR_CASE[spacing], (1, 0, 0, 0))
    return at_rate(nr_waveform(config, rng)), config, spacing


def detection(case, milliseconds, draws, seed):
    """[(SNR, share of the draws in which the cell was found)]; a cell of another number counts as not found."""
    found = {snr: 0 for snr in SNRS}
    for i in range(draws):
        rng = np.random.default_rng([seed, 7, list(CASES).index(case), milliseconds, i])
        samples, config, spacing = CASES[case](rng)
        faded = multipath(samples.astype(np.complex64), RATE, "EPA", 0.0, rng)
        samples = faded * np.linalg.norm(samples) / np.linalg.norm(faded)
        samples = shift(cut(rng, samples, round(RATE * milliseconds / 1e3)), rng.uniform(-1e4, 1e4))
        dirt = noise(rng, len(samples)) * np.sqrt(RATE / spacing)  # 0 dB against a resource element of amplitude 1
        point = float(rng.choice(nr_raster(1.8e9, 2.7e9)))
        for snr in SNRS:
            capture = (samples + dirt * 10 ** (-snr / 20)).astype(np.complex64)
            if case.startswith("LTE"):
                cells = lte_cells(capture, RATE, 0.0, 2e9)
                good = [cell for cell in cells if cell.duplex == case[4:]]
            else:
                good = nr_cells(capture, RATE, near(spacing), point, spacing_hz=spacing)
            found[snr] += config.cell_id in [cell.cell_id for cell in good]
    return [(snr, found[snr] / draws) for snr in SNRS]


def draw(shares, folder):
    """detection_lte.png and detection_nr.png of {name: [(SNR, share)]}."""
    for technology in ("LTE", "NR"):
        series = {name: points for name, points in shares.items() if name.startswith(technology)}
        picture = line_chart(series, "SNR of a resource element (dB)", "share found", f"{technology} cells found")
        pictures.save(picture, folder / f"detection_{technology.lower()}.png")


def main():
    args = parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    path = args.out / "trials.json"
    result = json.loads(path.read_text()) if path.exists() else {}  # a part with no draws stays as it was

    def save(part, values):
        result.update({"threshold": THRESHOLD, "seed": args.seed, part: values})
        result[f"{part}_cpu_minutes"] = round((time.process_time() - start) / 60, 1)
        text = json.dumps(result, indent=1) + "\n"
        runs.write_whole(path, lambda file: file.write(text.encode()))

    shares = {}
    for case in CASES if args.detection_draws else ():
        for milliseconds in (10, 40):
            name = f"{case}, {milliseconds} ms"
            shares[name] = detection(case, milliseconds, args.detection_draws, args.seed)
            print(f"{name:18}", *(f"{snr:+d}:{share:.2f}" for snr, share in shares[name]), flush=True)
            save("detection", {"draws": args.detection_draws, "share_found_by_snr": shares})
            draw(shares, args.out)
    start = time.process_time()
    for tables in false_alarms(args.draws, args.seed, args.searches):
        save("false_alarms", tables)
    for search, table in result.get("false_alarms", {}).items():
        print(f"\n{search + ' search':22}", *list(next(iter(table.values()))), sep="  ")
        for kind, row in table.items():
            print(f"{kind:22}", *(f"{value:{len(key)}.3g}" for key, value in row.items()), sep="  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
