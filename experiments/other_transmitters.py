"""Does it know 5G NR by other people's code? Frames of Sionna's PUSCH transmitter, scored by evaluate.py.

    pip install sionna-no-rt                                                        # Apache-2.0; not needed elsewhere
    python -m experiments.other_transmitters weights/seg_teacher.pt weights/seg_student.pt

Writes 100 frames in the archive's layout to datasets/sionna (five minutes on one core, once), then runs evaluate.py on
them for all networks. A frame has one or two NR carriers that use their whole channel in some or all slots, at 3 to 35
dB, over the field frames' multipath. They send data and DM-RS, and neither synchronisation signals nor a control
region. That is the uplink, and the hardest NR to tell from a fully loaded LTE downlink. No training ever sees it.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data import DataError
from data.field_frames import NR_TDD
from data.hdf4 import write_raster
from data.lte_nr import FRAME_MS, NR_RB
from data.radio import PROFILES, Band, multipath, snr_amplitude
from data.spectrogram import FRAME_SAMPLES, HZ_PER_PIXEL, SAMPLE_RATE, channel_mask, spectrogram_image
from data.synthetic import COLUMNS
from utils import runs
from utils.runs import RunError, run


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", type=runs.path, help="checkpoints of train_seg.py or distill_seg.py")
    parser.add_argument(
        "--data-dir", type=runs.path, default=Path("datasets/sionna"), help="written if it is not there"
    )
    parser.add_argument("--frames", type=runs.count, default=100)
    parser.add_argument("--seed", type=runs.seed, default=0)
    return parser.parse_args()


def pusch(n_rb, scs, rng):
    """40 ms of Sionna's uplink, and the share of it that is sent: (complex64 (samples,), float).

    Its OFDM has no guard subcarriers: the sample rate is that of the carrier's subcarriers. Its slots are .7% too long.
    """
    try:
        from sionna.phy import config
        from sionna.phy.nr import CarrierConfig, PUSCHConfig, PUSCHDMRSConfig, PUSCHTransmitter, TBConfig
    except ImportError as error:
        raise RunError(f"{error}: pip install sionna-no-rt") from error
    config.seed = int(rng.integers(2**31))
    pusch_config = PUSCHConfig(
        carrier_config=CarrierConfig(n_size_grid=n_rb, subcarrier_spacing=scs / 1e3, n_cell_id=int(rng.integers(1008))),
        pusch_dmrs_config=PUSCHDMRSConfig(additional_position=int(rng.integers(0, 3))),
        tb_config=TBConfig(mcs_index=int(rng.choice([5, 7, 9, 12, 15, 18, 22, 27])), mcs_table=1),
    )
    slots = round(FRAME_MS * scs / 15e3)
    sent = np.ones(slots, bool)
    style = rng.choice(["full", "random", "tdd"], p=[0.5, 0.25, 0.25])
    if style == "random":
        sent = rng.random(slots) < rng.uniform(0.1, 0.95)
        sent[rng.integers(slots)] = True
    elif style == "tdd":
        pattern = NR_TDD[rng.integers(len(NR_TDD))]
        sent = np.array([pattern[i % len(pattern)] == "D" for i in range(slots)])
    transmit = PUSCHTransmitter(pusch_config, output_domain="time")
    waveform, _ = transmit(slots)
    waveform = waveform.numpy().reshape(slots, -1)  # one transmitter, one antenna
    samples = (waveform * sent[:, None]).ravel()[: round(FRAME_MS / 1e3 * 12 * n_rb * scs)]
    return samples.astype(np.complex64), float(sent.mean())


def make_frame(rng):
    """(iq complex64 (2457600,), carriers) as data.frames makes them."""
    carriers, band, free = [], Band(), [(-SAMPLE_RATE / 2 + HZ_PER_PIXEL, SAMPLE_RATE / 2 - HZ_PER_PIXEL)]
    for _ in range(rng.integers(1, 3)):
        scs = float(rng.choice([15e3, 30e3]))
        bandwidth, n_rb = list(NR_RB[scs].items())[rng.integers(len(NR_RB[scs]))]
        room = [(low, high) for low, high in free if high - low > bandwidth]
        if not room:
            continue
        low, high = room[rng.integers(len(room))]
        center = rng.uniform(low + bandwidth / 2, high - bandwidth / 2)
        free.remove((low, high))
        free += [(low, center - bandwidth / 2), (center + bandwidth / 2, high)]

        samples, share = pusch(n_rb, scs, rng)
        n, rate = len(samples), 12 * n_rb * scs
        samples = np.roll(samples, int(rng.integers(n)))
        samples = multipath(samples, rate, str(rng.choice(list(PROFILES))), 0.0, rng)
        snr_db = rng.uniform(3, 35)
        spectrum = np.fft.fftshift(np.fft.fft(samples)) * snr_amplitude(samples, share, rate, snr_db)
        start = FRAME_SAMPLES // 2 + round(center * FRAME_MS / 1e3) - n // 2
        band.spectrum[start : start + n] += (spectrum * FRAME_SAMPLES / n).astype(np.complex64)
        about = {"technology": "NR", "center_hz": center, "bandwidth_hz": bandwidth, "scs_hz": scs, "snr_db": snr_db}
        carriers.append(about | {"sent": share})
    band.add_noise(1.0, rng)
    return band.samples(), carriers


def write_frames(folder, count, seed):
    (folder / "FIELD").mkdir(parents=True)
    rows = [COLUMNS]
    for index in tqdm(range(1, count + 1), unit="frame", file=sys.stderr):
        iq, carriers = make_frame(np.random.default_rng([seed, index]))
        name = f"FIELD/FIELD_frame_{index}"
        Image.fromarray(spectrogram_image(iq)).save(folder / f"{name}.png")
        write_raster(folder / f"{name}.hdf", channel_mask(carriers), compression="rle")
        rows.append([name, "FIELD", seed, max(c["snr_db"] for c in carriers), json.dumps(carriers)])
    with (folder / "frames.csv").open("w", newline="") as file:  # last: what is there without it was interrupted
        csv.writer(file).writerows(rows)


def main():
    args = parse_args()
    torch.set_num_threads(1)
    if not (args.data_dir / "frames.csv").exists():
        if args.data_dir.exists():
            raise RunError(f"{args.data_dir} is there without a frames.csv: an interrupted call's? Remove it")
        write_frames(args.data_dir, args.frames, args.seed)
    command = ["evaluate.py", *args.networks, "--data-dir", args.data_dir, "--out", "runs/other_transmitters"]
    return subprocess.run([sys.executable, *map(str, command)]).returncode


if __name__ == "__main__":
    sys.exit(run(main, DataError))
