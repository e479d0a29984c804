"""How sure is data/cyclic_prefix.py? False alarms, detection by SNR, the energy that is enough. 20 minutes on one core.

    OMP_NUM_THREADS=1 python -m experiments.prefix_trials    # thresholds were chosen with other seeds (1 and 3)
    OMP_NUM_THREADS=1 python -m experiments.prefix_trials --draws 50 --carriers 2 --out runs/prefix_trials  # 2 minutes

False alarms: emissions and receiver events of experiments/prefix_emissions.py with random parameters, band, level and
length; how often a subcarrier spacing is claimed, and how often it would be by a Pareto fit of the highest tenth.
Detection: LTE and NR of many kinds over fading channels, clock and frequency off, by SNR a resource element. Writes
result.json, detection_lte.png and detection_nr.png.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.cyclic_prefix import ENOUGH, THRESHOLD, band_samples, cyclic_prefix, frame_spectrum
from data.field_frames import field_lte, field_nr, random_schedule
from data.lte_nr import LTE_RB, NR_RB, LteConfig, NrConfig, Waveform, lte_waveform, nr_waveform, random_qam
from data.radio import PROFILES, multipath, snr_amplitude
from data.spectrogram import SAMPLE_RATE
from experiments.prefix_emissions import EMISSIONS, white
from utils import pictures, runs
from utils.pictures import line_chart
from utils.runs import command, hardware, run, write_json

RATES, MILLISECONDS = (3e6, 5e6, 7e6), (10, 20)
SNRS = np.arange(-6, 31, 4.0)  # dB
WANTED_RATE = 1e-4


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=runs.whole(0), default=1000, help="of each kind of emission")
    parser.add_argument("--carriers", type=runs.whole(0), default=12, help="of each kind of carrier")
    parser.add_argument("--seed", type=runs.seed, default=2)
    parser.add_argument("--out", type=runs.path, default=Path("experiments/results/cyclic_prefix"))
    return parser.parse_args()


# ---- false alarms ----------------------------------------------------------------------------------------------------


def emission_draw(make, rng):
    """Evidence on one random emission with noise, in the middle of its capture."""
    rate = float(rng.choice(RATES))
    n = round(rng.choice(MILLISECONDS, p=[0.7, 0.3]) * 1e-3 * rate)
    samples = make(rng, rate, n)
    snr = 10 ** (rng.uniform(-5, 30) / 10)
    samples = samples / np.sqrt(np.mean(np.abs(samples) ** 2) + 1e-30) + white(rng, n) / np.sqrt(snr)
    floor = 10 ** (rng.normal(0, 0.5) / 10) / snr / rate  # known within a dB
    low, high = rng.uniform(-0.48, -0.3) * rate, rng.uniform(0.3, 0.48) * rate
    return cyclic_prefix(band_samples(frame_spectrum(samples, rate), low, high), floor)


def exceedance(values, threshold):
    """Probability of a value above threshold, from a generalised Pareto distribution fitted to the highest tenth.

    Probability-weighted moments: Hosking and Wallis, Technometrics 29 (1987), 339-349.
    """
    ordered = np.sort(values)
    start = ordered[int(0.9 * len(ordered))]
    beyond = ordered[ordered > start] - start
    if len(beyond) < 10:
        return float(np.mean(ordered > threshold))
    first = beyond.mean()
    second = np.mean(beyond * (1 - (np.arange(1, len(beyond) + 1) - 0.35) / len(beyond)))
    shape = 2 - first / (first - 2 * second)
    scale = 2 * first * second / (first - 2 * second)
    if abs(shape) < 1e-6:
        tail = np.exp(-(threshold - start) / scale)
    else:
        tail = max(0.0, 1 + shape * (threshold - start) / scale) ** (-1 / shape)
    return float(tail * len(beyond) / len(ordered))


def false_alarms(name, draws, seed):
    """Facts on one kind of emission."""
    number = list(EMISSIONS).index(name)
    evidence = [emission_draw(EMISSIONS[name], np.random.default_rng([seed, 1, number, i])) for i in range(draws)]
    height = [max(e.contrast.values()) for e in evidence]
    return {
        "claims": sum(e.outcome == "prefix" for e in evidence),
        "none": sum(e.outcome == "none" for e in evidence),
        "unknown": sum(e.outcome == "unknown" for e in evidence),
        "highest": round(max(height), 2),
        "median": round(float(np.median(height)), 2),
        "fitted_rate": exceedance(height, THRESHOLD),
    }


# ---- detection -------------------------------------------------------------------------------------------------------


def extended_prefix_carrier(rng, load=0.5):
    """LTE-like OFDM of 5 MHz with the extended prefix: 12 symbols a millisecond, reference signals in every third."""
    n_sc, n_fft, symbols = 300, 512, 480
    grid = random_qam(rng, 4, (symbols, n_sc)) * np.repeat(rng.random((symbols // 6, 1)) < load, 6, 0)
    grid[::3, ::6] = random_qam(rng, 4, (symbols // 3, n_sc // 6))
    bins = np.zeros((symbols, n_fft), np.complex64)
    bins[:, -150:], bins[:, 1:151] = grid[:, :150], grid[:, 150:]
    waves = np.fft.ifft(bins, axis=1, norm="forward")
    samples = np.concatenate([waves[:, -128:], waves], 1).astype(np.complex64).ravel()
    return Waveform(samples, n_fft * 15e3, float((np.abs(grid) > 0).any(1).mean()), n_sc * 15e3, grid)


def lte(rng, bandwidth=5e6, load=0.0, **options):
    on = (rng.random((40, LTE_RB[bandwidth])) < load).astype(np.float32)
    options = {"cell_id": int(rng.integers(504)), "ports": int(rng.choice([1, 2])), "control_load": 0.1, **options}
    return lte_waveform(LteConfig(bandwidth, allocation=on, **options), rng)


def nr(rng, bandwidth, scs, style=None, **options):
    slots = round(40 * scs / 15e3)
    on = np.zeros((slots, NR_RB[scs][bandwidth]), np.float32)
    if style:
        on = random_schedule(rng, slots, NR_RB[scs][bandwidth], style)
    blocks = (1, 0, 0, 0) if style is None else (1, 1, 1, 1)
    case = "A" if scs == 15e3 else "C"
    options = {"ssb_blocks": blocks, "ssb_case": case, **options}
    return nr_waveform(NrConfig(bandwidth, scs, int(rng.integers(1008)), on, **options), rng)


def two_cells(rng):
    """Two idle cells of equal level on one frequency, not synchronised."""
    first, second = lte(rng), lte(rng)
    first.samples = first.samples + np.roll(second.samples, int(rng.integers(len(second.samples))))
    return first


def uplink_like(rng):
    """NR TDD, data alone, DM-RS in several symbols."""
    pattern = np.resize([14, 14, 14, 6, 0], 80)
    return nr(rng, 10e6, 30e3, "bursty", ssb_blocks=(0,), dmrs_symbols=(2, 7, 11), downlink_symbols=pattern)


CARRIERS = {  # name: (subcarrier spacing, function of rng)
    "LTE idle": (15e3, lte),
    "LTE half loaded": (15e3, lambda rng: lte(rng, load=0.5)),
    "LTE full": (15e3, lambda rng: lte(rng, load=1.0, control_load=1.0)),
    "LTE 1.4 MHz": (15e3, lambda rng: lte(rng, 1.4e6, cfi=3)),
    "LTE MBSFN": (15e3, lambda rng: lte(rng, mbsfn=(1, 2, 3, 6, 7, 8), cfi=1)),
    "LTE TDD": (15e3, lambda rng: lte(rng, tdd=int(rng.integers(7)), dwpts=int(rng.choice([3, 9, 12])))),
    "LTE extended prefix": (15e3, extended_prefix_carrier),
    "LTE two cells": (15e3, two_cells),
    "LTE any": (15e3, lambda rng: field_lte(rng, float(rng.choice([1.4e6, 3e6, 5e6, 10e6])))[1]),
    "NR 15 kHz idle": (15e3, lambda rng: nr(rng, 5e6, 15e3)),
    "NR 15 kHz full, DM-RS": (15e3, lambda rng: nr(rng, 5e6, 15e3, "full", dmrs_symbols=(2, 5, 8, 11))),
    "NR 15 kHz any": (15e3, lambda rng: field_nr(rng, float(rng.choice([5e6, 10e6])), 15e3)[1]),
    "NR 30 kHz idle": (30e3, lambda rng: nr(rng, 20e6, 30e3)),
    "NR 30 kHz full, DM-RS": (30e3, lambda rng: nr(rng, 10e6, 30e3, "full", dmrs_symbols=(2, 5, 8, 11))),
    "NR 30 kHz TDD data": (30e3, uplink_like),
    "NR 30 kHz any": (30e3, lambda rng: field_nr(rng, float(rng.choice([5e6, 10e6])), 30e3)[1]),
}


def carrier_draws(make, rng):
    """Evidence on one random carrier at all SNRs: [(dB, PrefixEvidence)], or [] for a carrier that sends nothing."""
    wave = make(rng)
    if wave.active_share == 0:
        return []
    samples, rate = np.roll(wave.samples, int(rng.integers(len(wave.samples)))), wave.sample_rate
    samples = multipath(samples, rate, str(rng.choice(list(PROFILES))), float(rng.choice([0, 5, 70, 300])), rng)
    n, share = len(samples), 1.0
    if rng.random() < 0.3:  # the receiver hears 1.92 MHz of it
        keep = round(1.92e6 * n / rate)
        spectrum = np.fft.fft(samples)
        samples = np.fft.ifft(np.r_[spectrum[: keep // 2], spectrum[-keep // 2 :]]) * keep / n
        share, n, rate = min(1, 1.92e6 / wave.occupied_hz), keep, 1.92e6
    width = min(0.95 * rate, wave.occupied_hz)
    samples = samples * np.exp(2j * np.pi * rng.uniform(-30e3, 30e3) / rate * np.arange(n))
    amplitude = snr_amplitude(samples, wave.active_share, share * wave.occupied_hz, 0.0)
    noise = white(rng, n) * np.sqrt(rate / SAMPLE_RATE)
    error = 1 + rng.uniform(-25e-6, 25e-6)  # of the receiver's clock
    floor = 10 ** (rng.normal(0, 0.5) / 10) / SAMPLE_RATE
    found = []
    for snr in SNRS:
        received = samples * (amplitude * 10 ** (snr / 20)) + noise
        band = band_samples(frame_spectrum(received, rate * error), -width / 2, width / 2)
        found.append((float(snr), cyclic_prefix(band, floor)))
    return found


def detection(carriers, seed):
    """({kind: {dB: [share found with the right spacing, with a wrong one]}}, [(energy, contrast, right)])."""
    table, points = {}, []
    for number, (name, (spacing, make)) in enumerate(tqdm(CARRIERS.items(), unit="kind", file=sys.stderr)):
        found = [pair for i in range(carriers)
                 for pair in carrier_draws(make, np.random.default_rng([seed, 2, number, i]))]  # fmt: skip
        points += [(e.energy, e.contrast.get(spacing, 0.0), e.spacing_hz == spacing, name, snr) for snr, e in found]
        table[name] = {
            snr: [float(np.mean([e.spacing_hz == spacing for s, e in found if s == snr])),
                  float(np.mean([e.spacing_hz not in (None, spacing) for s, e in found if s == snr]))]
            for snr in SNRS.tolist()
        }  # fmt: skip
    return table, points


def enough_energy(points):
    """What the points say of the energy from which on a prefix is found."""
    missed = sorted((point for point in points if not point[2]), reverse=True)
    found = sum(point[2] for point in points)
    above = [point for point in points if point[0] >= ENOUGH]
    return {
        "points": len(points),
        "found": found,
        "highest_energy_missed": [list(point) for point in missed[:10]],
        "points_with_enough": len(above),
        "found_with_enough": sum(point[2] for point in above),
        "lowest_contrast_with_enough": sorted([list(point) for point in above], key=lambda point: point[1])[:10],
    }


def main():
    args = parse_args()
    torch.set_num_threads(1)
    table, points = detection(args.carriers, args.seed)
    facts = {
        "command": command(),
        "hardware": hardware(),
        "seed": args.seed,
        "draws": args.draws,
        "carriers": args.carriers,
        "threshold": THRESHOLD,
        "enough": ENOUGH,
        "energy": enough_energy(points),
        "detection": table,
        "false_alarms": {},
    }
    curves = {name: [(snr, share[0]) for snr, share in row.items()] for name, row in table.items()}
    args.out.mkdir(parents=True, exist_ok=True)
    for part, prefix in (("lte", "LTE"), ("nr", "NR")):
        chosen = {name: curve for name, curve in curves.items() if name.startswith(prefix)}
        chart = line_chart(chosen, "SNR a resource element (dB)", "share found, 40 ms")
        pictures.save(chart, args.out / f"detection_{part}.png")

    for name in tqdm(EMISSIONS, unit="kind", file=sys.stderr):
        facts["false_alarms"][name] = false_alarms(name, args.draws, args.seed)
        write_json(args.out / "result.json", facts)  # a run that is stopped leaves what it has

    print(f"{'emission':24s} claims  none unknown  highest  fitted rate")
    for name, row in facts["false_alarms"].items():
        print(f"{name:24s} {row['claims']:6d} {row['none']:5d} {row['unknown']:7d} {row['highest']:8.2f}"
              f"  {row['fitted_rate']:.1e}{'  too often' if row['fitted_rate'] > WANTED_RATE else ''}")  # fmt: skip
    print(f"\n{'found, % at dB':24s}" + "".join(f"{snr:5.0f}" for snr in SNRS) + "  wrong spacing, %")
    for name, row in table.items():
        wrong = 100 * np.mean([share[1] for share in row.values()])
        print(f"{name:24s}" + "".join(f"{100 * share[0]:5.0f}" for share in row.values()) + f"  {wrong:.1f}")
    for name, value in facts["energy"].items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
