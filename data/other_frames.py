"""Frames with what is neither LTE nor NR: the family "OTHER".

    frame = other_frame(rng)                                                 # see data/frames.py

Emissions of data/others.py alone, beside carriers and across them, and events in the receiver. Where an emission
covers a carrier and is stronger than 10 dB below it, the label is "unknown", pixel by pixel. Numpy, torch and modules
of data/ only.
"""

from dataclasses import dataclass

import numpy as np
import torch

from data.emission import active_power
from data.field_frames import field_receiver, field_scene
from data.others import EMISSIONS, EVENTS, TRAINED
from data.radio import FRAME_SECONDS, GAIN_BLOCKS, PROFILES, Band, multipath, soft_limiter
from data.spectrogram import (
    FRAME_SAMPLES,
    HOP,
    HZ_PER_PIXEL,
    LABELS_WITH_UNKNOWN,
    SAMPLE_RATE,
    SIZE,
    SNAPSHOTS,
    WINDOW,
    channel_mask,
    mask_columns,
)

OTHER_COUNTS = (0.3, 0.5, 0.16, 0.04, 0.0)  # shares of the OTHER frames with no, one, ... four carriers
# Shares of their NR carriers that send data alone, and of those that fill their channel all the time. Flat bursts
# and steady flat blocks are not noise: Wi-Fi has bursts, and a gain step makes a block of the receiver's noise.
NR_SHARES = {"data_only_share": 0.85, "steady_share": 0.5}
KIND_WEIGHTS = np.array([3.0 if kind == "Wi-Fi" else 1.0 for kind in TRAINED])  # what receivers meet most
COVERS_DB = -10  # an emission that is this much weaker than a carrier leaves its label


@dataclass
class OtherFrame:
    """A frame with emissions that are neither LTE nor NR."""

    iq: np.ndarray  # complex64 (2457600,)
    carriers: list  # as make_frame returns it
    mask: np.ndarray  # uint8 (256, 256), values of LABELS_WITH_UNKNOWN
    emissions: Band  # without carriers and noise


def other_frame(rng, kinds=None):
    """Make one frame with other emissions and events, and with LTE and NR carriers in most.

    Args: rng, of `frame_rng`; kinds, of data.others.KINDS, each once; one to four of TRAINED are drawn if None.
    Returns: an OtherFrame.
    """
    if kinds is None:
        count = rng.choice([1, 2, 3, 4], p=[0.55, 0.3, 0.1, 0.05])
        kinds = rng.choice(TRAINED, count, p=KIND_WEIGHTS / KIND_WEIGHTS.sum())
    band, carriers = field_scene(rng, OTHER_COUNTS, **NR_SHARES)
    others, described = Band(), []
    for kind in kinds:
        if kind in EMISSIONS:
            described.append(_add_emission(rng, others, str(kind), carriers))
    band.spectrum += others.spectrum
    iq, seen = field_receiver(rng, [band, others], carriers + described)
    for kind in kinds:
        if kind in EVENTS:
            iq = EVENTS[kind](iq, rng)
            whole = {"technology": "other", "kind": str(kind), "center_hz": 0.0, "bandwidth_hz": SAMPLE_RATE}
            seen.append(whole)
    return OtherFrame(iq, seen, _other_mask(seen, others), others)


def _add_emission(rng, band, kind, carriers):
    """Draw an emission of a kind and add it to a band that is drawn around the carriers; returns its description."""
    emission = EMISSIONS[kind](rng)
    samples, rate = np.roll(emission.samples, int(rng.integers(len(emission.samples)))), emission.sample_rate
    active = active_power(samples)
    if rng.random() < 0.25:
        idle_db = 10 * np.log10(active / np.mean(np.abs(samples) ** 2))
        samples = soft_limiter(samples, rng.uniform(6, 12) + idle_db)
    # Doppler as for carriers where the length allows it. Long emissions fade as a whole, which is quick.
    doppler = float(rng.choice([0, 0, rng.uniform(1, 100)])) if len(samples) % GAIN_BLOCKS == 0 else 0.0
    profile = "flat" if len(samples) > 1e6 else str(rng.choice(list(PROFILES)))
    samples = multipath(samples, rate, profile, doppler, rng)
    # Its level is that of a carrier of the same width; a narrow one's is that within a pixel.
    width = emission.high_hz - emission.low_hz
    instant = max(emission.instant_hz or width, HZ_PER_PIXEL)
    snr_db = rng.uniform(-5, 45)
    if carriers and rng.random() < 0.5:
        snr_db = carriers[rng.integers(len(carriers))]["snr_db"] + rng.uniform(-15, 15)
    middle = _other_center(rng, width, carriers)
    center = middle - (emission.low_hz + emission.high_hz) / 2
    band.add(samples, rate, center, np.sqrt(10 ** (snr_db / 10) * instant / SAMPLE_RATE / active))
    about = {"technology": "other", "kind": kind, "center_hz": round(float(middle), 1)}
    return about | {"bandwidth_hz": round(float(width), 1), "snr_db": round(float(snr_db), 2)}


def _other_center(rng, width, carriers):
    """Draw where the middle of an emission lies, in Hz: anywhere, beside, touching or inside a carrier."""
    limit = max(0.0, (SAMPLE_RATE - width) / 2)
    way = str(rng.choice(["anywhere", "beside", "touching", "inside"])) if carriers else "anywhere"
    if way == "anywhere":
        limit = SAMPLE_RATE / 2 if rng.random() < 0.15 else limit  # some reach over the edge of the band
        return rng.uniform(-limit, limit)
    carrier = carriers[rng.integers(len(carriers))]
    if way == "inside":
        return carrier["center_hz"] + rng.uniform(-0.5, 0.5) * carrier["bandwidth_hz"]
    if way == "touching":
        apart = (carrier["bandwidth_hz"] + width) / 2 + rng.uniform(0, 0.5e6)
        return np.clip(carrier["center_hz"] + rng.choice([-1, 1]) * apart, -SAMPLE_RATE / 2, SAMPLE_RATE / 2)

    def overlap(center):
        return sum(
            max(0.0, (width + other["bandwidth_hz"]) / 2 - abs(center - other["center_hz"])) for other in carriers
        )

    return min(rng.uniform(-limit, limit, 10), key=overlap)


def pixel_power(band):
    """Power per Hz of a band at the pixels of the picture, float32 (256, 256), row 0 the END of the frame.

    A column's 240 kHz of the spectrum, with soft edges beyond them, are transformed back; the mean of the three samples
    nearest to a snapshot counts. That costs half of a transform of the whole band, and its noise is less.
    """
    bins = FRAME_SAMPLES // SIZE  # of a column
    edge = bins // 4
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)
    taper = np.concatenate([rise, np.ones(bins), rise[::-1]]).astype(np.float32)
    columns = np.lib.stride_tricks.sliding_window_view(np.pad(band.spectrum, edge), len(taper))[::bins] * taper
    samples = torch.fft.ifft(torch.from_numpy(columns)).numpy()[:, _snapshot_places(len(taper))]
    scale = (len(taper) / FRAME_SAMPLES) ** 2 / (np.sum(taper**2) / FRAME_SECONDS)
    power = (samples.real**2 + samples.imag**2).mean(-1) * np.float32(scale)  # (columns, rows)
    return power.T[::-1]


def _of_three(power, pick):
    """The mean or maximum of each pixel and its two neighbours in frequency: (256, 256) -> the same."""
    padded = np.pad(power, ((0, 0), (1, 1)), mode="edge")
    return pick(np.stack([padded[:, :-2], padded[:, 1:-1], padded[:, 2:]]), axis=0)


def _snapshot_places(count):
    """Which of `count` samples of a frame are nearest to the middle of each shown snapshot: (256, 3)."""
    middle = np.floor((np.arange(SIZE) + 0.5) * SNAPSHOTS / SIZE) * HOP + WINDOW / 2
    return np.round(middle * count / FRAME_SAMPLES).astype(int)[:, None] + [-1, 0, 1]


def _other_mask(carriers, others):
    """Labels of an OTHER frame, uint8 (256, 256): carriers, and "unknown" where an emission covers them.

    Args: carriers, with or without those of technology "other"; others, the Band of the emissions, for a receiver whose
    noise has power 1 in 61.44 MHz.
    """
    known = [carrier for carrier in carriers if carrier["technology"] != "other"]
    mask = channel_mask(known, LABELS_WITH_UNKNOWN)
    if len(known) in (0, len(carriers)):
        return mask
    level = np.zeros(SIZE)  # of the strongest carrier in each column
    for carrier in known:
        half = carrier["bandwidth_hz"] / 2
        first, last = mask_columns(carrier["center_hz"] - half, carrier["center_hz"] + half)
        part = level[first : last + 1]
        np.maximum(part, 10 ** (carrier["snr_db"] / 10) / SAMPLE_RATE, out=part)
    near = _of_three(_of_three(pixel_power(others), np.mean), np.max)  # of columns: single looks at noise have dips
    mask[(mask > 0) & (near > level * 10 ** (COVERS_DB / 10))] = LABELS_WITH_UNKNOWN["unknown"]
    return mask
