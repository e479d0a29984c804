"""What is on the air and is neither LTE nor 5G NR, and what receivers do to their samples.

    emission = EMISSIONS["Wi-Fi"](np.random.default_rng(0))      # a data.emission.Emission: 40 ms, parameters drawn
    iq = EVENTS["gain step"](iq, np.random.default_rng(0))       # complex64 (2457600,) -> the same, with the fault

Frames of the family OTHER (data/frames.py) have both. The kinds in MEASURED_ONLY are never trained on: at the size of a
pixel they are what LTE or NR may be, too, and only samples tell them apart (data/evidence.py). Training on them would
call the same picture noise here and a carrier there:

- "drone": OFDM of 15 kHz with LTE's widths and schedules; nothing but missing synchronisation signals differs.
- "plateau": noise in a tuner's filter with steep edges, as flat and steady as a fully loaded carrier.
- "WCDMA", "DVB-T", "ATSC", "DVB-C", "DVB-S", "DAB": steady and flat as well. A network that learned them lost a tenth
  of the pixels of fully loaded LTE (docs/LOG.md, 2026-11-28).
- "FM video", "shoulders": steady blocks of 17 to 27 MHz, and of up to the whole band, that only their edges tell from
  fully loaded NR. A network that learned them beside it called steady blocks of another program's NR noise.
- "jammer", "fast chirps": a sweep that is faster than a row of pixels is a flat block as well; "noise pulses": bursts
  of one, as NR sends them without control channels. A network that learned all three called half of another program's
  NR noise (docs/LOG.md, 2026-11-28).
"""

import numpy as np

from data import cellular_and_broadcast, pulses_and_jammers, short_range
from data.emission import db, log_uniform, samples_of, spectrum_of
from data.spectrogram import FRAME_SAMPLES, SAMPLE_RATE

EMISSIONS = {
    "Wi-Fi": short_range.wifi,
    "Bluetooth": short_range.bluetooth,
    "Bluetooth LE": short_range.bluetooth_le,
    "802.15.4": short_range.ieee_802_15_4,
    "LoRa": short_range.lora,
    "OOK remote": short_range.ook_remote,
    "FSK remote": short_range.fsk_remote,
    "WCDMA": cellular_and_broadcast.wcdma,
    "GSM": cellular_and_broadcast.gsm,
    "NB-IoT": cellular_and_broadcast.nb_iot,
    "DVB-T": cellular_and_broadcast.dvb_t,
    "DAB": cellular_and_broadcast.dab,
    "ATSC": cellular_and_broadcast.atsc,
    "DVB-C": cellular_and_broadcast.dvb_c,
    "DVB-S": cellular_and_broadcast.dvb_s,
    "FM": cellular_and_broadcast.fm,
    "AM": cellular_and_broadcast.am,
    "television": cellular_and_broadcast.television,
    "FM video": cellular_and_broadcast.fm_video,
    "radar pulses": pulses_and_jammers.radar_pulses,
    "radar chirps": pulses_and_jammers.radar_chirps,
    "ADS-B": pulses_and_jammers.adsb,
    "jammer": pulses_and_jammers.jammer,
    "noise pulses": pulses_and_jammers.noise_pulses,
    "tones": pulses_and_jammers.tones,
    "comb": pulses_and_jammers.comb,
    "drone": cellular_and_broadcast.drone,
    "fast chirps": pulses_and_jammers.fast_chirps,
}

# ---- events in the receiver ------------------------------------------------------------------------------------------


def gain_step(iq, rng):
    """An automatic gain control that changes the gain in one to three steps of 1.5 to 20 dB each."""
    out = iq.copy()
    for start in rng.integers(0, FRAME_SAMPLES, rng.integers(1, 4)):
        out[start:] *= np.float32(db(rng.choice([-1, 1]) * rng.uniform(1.5, 20)))
    return out


def gain_ramp(iq, rng):
    """A gain that drifts by 3 to 30 dB, over the whole frame or again and again, as after a burst."""
    turns = float(rng.choice([1, rng.uniform(1, 8)]))
    ramp = (np.linspace(0, turns, FRAME_SAMPLES // 512) + rng.random()) % 1
    return iq * np.repeat(db(ramp * rng.choice([-1, 1]) * rng.uniform(3, 30)).astype(np.float32), 512)


def dropped_samples(iq, rng):
    """Overruns of the USB or of the disk: one to twenty gaps of 10 us to 5 ms, of zeros or of the last value."""
    out, zeros = iq.copy(), rng.random() < 0.7
    for start in rng.integers(1, FRAME_SAMPLES, rng.integers(1, 21)):
        out[start : start + int(log_uniform(rng, 10e-6, 5e-3) * SAMPLE_RATE)] = 0 if zeros else out[start - 1]
    return out


def glitches(iq, rng):
    """One to thirty samples that are 20 to 120 dB too large: flipped bits."""
    out = iq.copy()
    out[rng.integers(0, FRAME_SAMPLES, rng.integers(1, 31))] *= np.float32(db(rng.uniform(20, 120)))
    return out


def saturation(iq, rng):
    """A converter that clips at .3 to 2.5 times the rms: I and Q each, so that distortion fills the band."""
    limit = np.float32(np.sqrt(np.mean(np.abs(iq) ** 2)) * rng.uniform(0.3, 2.5))
    parts = np.clip(iq.view(np.float32), -limit, limit)
    return parts.view(np.complex64)


def _filtered(iq, gain_db):
    """Change the levels over frequency: gain_db float (4096,), ascending frequency."""
    spectrum = spectrum_of(iq)
    spectrum.reshape(4096, -1)[:] *= db(gain_db).astype(np.float32)[:, None]
    return samples_of(spectrum)


def shoulders(iq, rng):
    """A receiver's filter whose edges fall slowly, by 6 to 40 dB within 4 to 15 MHz, anywhere in the band.

    No carrier has such edges. What lies beyond them keeps its shape and loses its level.
    """
    hz = np.linspace(-SAMPLE_RATE / 2, SAMPLE_RATE / 2, 4096)
    middle, half = rng.uniform(-8e6, 8e6), rng.uniform(5e6, 28e6)
    fall = np.clip((np.abs(hz - middle) - half) / rng.uniform(4e6, 15e6), 0, 1)
    return _filtered(iq, -rng.uniform(6, 40) * (0.5 - 0.5 * np.cos(np.pi * fall)))


def plateau(iq, rng):
    """A tuner's filter of 5 to 50 MHz with steep edges: noise inside is 3 to 15 dB higher. Never trained on."""
    hz = np.linspace(-SAMPLE_RATE / 2, SAMPLE_RATE / 2, 4096)
    half = rng.uniform(2.5e6, 25e6)
    middle = rng.uniform(half - SAMPLE_RATE / 2, SAMPLE_RATE / 2 - half)
    return _filtered(iq, -rng.uniform(3, 15) * np.clip((np.abs(hz - middle) - half) / 0.3e6, 0, 1))


EVENTS = {
    "gain step": gain_step,
    "gain ramp": gain_ramp,
    "dropped samples": dropped_samples,
    "glitches": glitches,
    "saturation": saturation,
    "shoulders": shoulders,
    "plateau": plateau,
}
MEASURED_ONLY = {
    *("drone", "plateau", "WCDMA", "DVB-T", "ATSC", "DVB-C", "DVB-S", "DAB"),
    *("jammer", "fast chirps", "noise pulses", "FM video", "shoulders"),
}
KINDS = [*EMISSIONS, *EVENTS]
TRAINED = [kind for kind in KINDS if kind not in MEASURED_ONLY]
