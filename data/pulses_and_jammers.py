"""Emissions of pulses, chirps and tones: radar, secondary radar, jammers, spurs.

    emission = radar_pulses(np.random.default_rng(0))  # a data.emission.Emission: 40 ms

All are registered in data/others.py.
"""

import numpy as np

from data.emission import (
    Emission,
    add_burst,
    combine,
    count_at,
    db,
    gate,
    log_uniform,
    phasor,
    roomy_rate,
    samples_of,
    spectrum_of,
)
from data.radio import FRAME_SECONDS
from data.spectrogram import SAMPLE_RATE


def radar_pulses(rng):
    """Radar without pulse compression: pulses of .5 to 100 us, 250 to 10,000 a second, staggered or agile.

    ITU-R M.1464-2 (2.7 to 2.9 GHz) and M.1638-1 (5 GHz) annexes: pulse widths, rates, rise times.
    """
    width, period = log_uniform(rng, 0.5e-6, 100e-6), log_uniform(rng, 100e-6, 4e-3)
    period = max(period, 5 * width)
    stagger = rng.choice([0, 0, 0.1]) * period
    agile = rng.uniform(0, 10e6) if rng.random() < 0.3 else 0.0
    rate = roomy_rate(agile + min(40e6, 8 / width))
    out, starts = np.zeros(count_at(rate), np.complex64), []
    n = max(4, round(width * rate))
    time = -rng.uniform(0, period)
    beam = rng.uniform(-0.2, 1.2) * FRAME_SECONDS, rng.uniform(5e-3, 100e-3)  # the antenna turns
    while time < FRAME_SECONDS:
        offset = rng.uniform(-agile / 2, agile / 2)
        pulse = np.exp(2j * np.pi * offset / rate * np.arange(n)).astype(np.complex64)
        level = np.exp(-(((time - beam[0]) / beam[1]) ** 2))
        add_burst(out, rate, time, pulse * np.float32(max(level, 0.03)), 0.2 * width)
        starts.append(time)
        time += period + rng.uniform(-0.5, 0.5) * stagger
    half = agile / 2 + min(4 / width, 15e6)
    facts = {"pulse_s": n / rate, "period_s": period, "staggered": bool(stagger), "starts": starts}
    return Emission(out, -half, half, min(2 / width, 10e6), facts)


def _sweep(seconds, rate, width_hz, shape):
    """A sweep over width_hz in `seconds`, up, down, or up and down, complex64."""
    n = max(4, round(seconds * rate))
    saw = (np.arange(n) + 0.5) / n
    saw = {"up": saw, "down": 1 - saw, "both": 1 - np.abs(2 * saw - 1)}[shape]
    return phasor((saw - 0.5) * width_hz, rate)


def radar_chirps(rng):
    """Radar with pulse compression, or slow FMCW: chirps of 1 us to 40 ms over 1 to 60 MHz, 500 us or more apart.

    Skolnik, Radar Handbook (3rd ed.) chapter 8; ITU-R M.1638-1 (pulse compression), M.2057 (FMCW).
    """
    return _chirps(rng, log_uniform(rng, 1e-6, 40e-3), 500e-6, 40e-3)


def fast_chirps(rng):
    """FMCW radar of short range: the same chirps, 1 to 100 us long and 20 to 150 us apart, so a row of pixels has many.

    ITU-R M.2057.
    """
    return _chirps(rng, log_uniform(rng, 1e-6, 100e-6), 20e-6, 150e-6)


def _chirps(rng, seconds, least_apart, most_apart):
    """Chirps of `seconds` each; their distance, from start to start, lies between two limits, in seconds."""
    width = log_uniform(rng, 1e6, 60e6)
    if seconds * width < 10:
        width = 10 / seconds
    shape = str(rng.choice(["up", "down", "both"]))
    duty = float(rng.choice([1.0, rng.uniform(0.5, 1), log_uniform(rng, 0.01, 0.5)]))
    rate = roomy_rate(width + 2 / seconds)
    period = min(max(seconds / duty, least_apart), most_apart)
    chirp = _sweep(seconds, rate, width, shape)
    out, time = np.zeros(count_at(rate), np.complex64), -rng.uniform(0, period)
    while time < FRAME_SECONDS:
        add_burst(out, rate, time, chirp, 0.02 * seconds)
        time += period
    half = min(width / 2 * 1.05 + 1 / seconds, SAMPLE_RATE / 2)
    facts = {"chirp_s": seconds, "width_hz": width, "period_s": period, "shape": shape}
    return Emission(out, -half, half, width if seconds < 10e-6 else max(width * 4e-6 / seconds, 240e3), facts)


def adsb(rng):
    """Secondary radar at 1090 MHz: Mode S squitters of 56 or 112 us after 8 us of preamble, and Mode A/C replies.

    ICAO annex 10 volume IV clause 3.1: pulses of .5 us (.45 in Mode A/C, 1.45 apart), rise .05 to .1 us.
    """
    rate = 24e6
    out, messages = np.zeros(count_at(rate), np.float32), []
    for _ in range(rng.integers(3, 120)):
        start, level = rng.uniform(0, FRAME_SECONDS), db(rng.uniform(-30, 0))
        if rng.random() < 0.5:
            bits = rng.integers(0, 2, int(rng.choice([56, 112])))
            times = np.r_[0, 1, 3.5, 4.5, 8 + np.arange(len(bits)) + 0.5 * (1 - bits)] * 1e-6
            width = 0.5e-6
        else:
            times = np.flatnonzero(np.r_[1, rng.integers(0, 2, 13), 1]) * 1.45e-6
            width = 0.45e-6
        messages.append((start, float(times[-1] + width)))
        for time in times:
            first = int((start + time) * rate)
            out[first : first + round(width * rate)] = level
    out = np.convolve(out, np.hanning(5)[1:-1] / 2, "same")  # rise of .1 us
    drift = phasor(np.full(len(out), rng.uniform(-1e6, 1e6)), rate)  # transponders may be 1 MHz off
    return Emission((out * drift).astype(np.complex64), -6e6, 6e6, 3e6, {"messages": messages})


def jammer(rng):
    """A jammer that sweeps 5 to 60 MHz in 5 to 100 us again and again, as those against GPS do; or a slow one.

    Mitch et al., "Signal Characteristics of Civil GPS Jammers" (ION GNSS 2011): sweeps of 9 to 26 us over 10 to 20 MHz
    and more.
    """
    width = rng.uniform(5e6, 58e6)
    period = log_uniform(rng, 5e-6, 100e-6) if rng.random() < 0.7 else log_uniform(rng, 100e-6, 10e-3)
    rate = roomy_rate(width)
    sweep = _sweep(period, rate, width, str(rng.choice(["up", "down", "both"])))
    samples = np.resize(sweep, count_at(rate))
    return Emission(samples, -0.55 * width, 0.55 * width, width * min(1, 4e-6 / period), {"period_s": period})


def noise_pulses(rng):
    """Sparks, ignitions, switching supplies and pulsed jammers: noise over much of the band, 2 us to 3 ms each.

    ITU-R P.372 (impulsive noise). Steady ones repeat with mains, supply or USB.
    """
    width, seconds = rng.uniform(15e6, 47e6), log_uniform(rng, 2e-6, 3e-3)
    rate = roomy_rate(width)
    n = count_at(rate)
    if rng.random() < 0.5:
        starts = np.arange(rng.uniform(0, 5e-3), FRAME_SECONDS, max(2 * seconds, log_uniform(rng, 125e-6, 20e-3)))
    else:
        starts = rng.uniform(0, FRAME_SECONDS, rng.integers(1, 12))
    out = np.zeros(n, np.complex64)
    for start in starts:
        noise = rng.standard_normal((max(8, round(seconds * rate)), 2), np.float32).view(np.complex64)[:, 0]
        add_burst(out, rate, start, noise, 0.5e-6)
    hz = np.abs(np.arange(-(n // 2), n // 2) / FRAME_SECONDS)
    edge = rng.uniform(0.05, 0.3) * width  # it has no channel: its spectrum falls off slowly
    samples = samples_of(spectrum_of(out) * np.clip((width / 2 - hz) / edge, 0, 1))
    return Emission(samples, -width / 2, width / 2, None, {"pulse_s": seconds, "starts": starts.tolist()})


def tones(rng):
    """Carriers without modulation, steady or drifting by up to 1 MHz in 40 ms, one to ten of them."""
    span, parts = rng.uniform(0.5e6, 55e6), []
    rate, n = 3e6, count_at(3e6)
    for _ in range(rng.integers(1, 11)):
        drift = rng.choice([0, 0, 1]) * rng.uniform(-0.5e6, 0.5e6)
        wobble = rng.choice([0, 0, 0, 1]) * rng.uniform(0, 0.2e6)
        clock = np.linspace(-1, 1, n)
        frequency = drift * clock + wobble * np.sin(2 * np.pi * rng.uniform(1, 20) * clock)
        wave = phasor(frequency, rate) * db(rng.uniform(-30, 0))
        parts.append((spectrum_of(wave), rng.uniform(-span / 2, span / 2)))
    edge = max(abs(place) for _, place in parts) + 0.8e6
    return Emission(combine(parts, roomy_rate(2 * edge)), -edge, edge, 240e3, {"tones": len(parts)})


def comb(rng):
    """Harmonics of a clock or a supply: lines 50 kHz to 5 MHz apart, whose levels fall and ripple, sometimes gated."""
    spacing, count = log_uniform(rng, 50e3, 5e6), int(rng.integers(3, 100))
    count = min(count, max(3, int(55e6 / spacing)))
    width = spacing * (count - 1)
    rate = roomy_rate(width + 200e3)
    n = count_at(rate)
    bins = np.zeros(n, np.complex64)
    step = round(spacing * FRAME_SECONDS)
    index = step * np.arange(count) - step * (count - 1) // 2
    levels = db(rng.uniform(-20, 0) * np.linspace(0, 1, count) + rng.normal(0, rng.uniform(0, 4), count))
    bins[n // 2 + index] = levels * np.exp(2j * np.pi * rng.random(count))
    samples = samples_of(bins * np.float32(n))
    gated = bool(rng.random() < 0.25)
    if gated:
        period = log_uniform(rng, 1e-3, 20e-3)
        starts = np.arange(0, FRAME_SECONDS, period)
        samples *= gate([(start, start + rng.uniform(0.2, 0.8) * period, 1.0) for start in starts], n, rate, 20e-6)
    return Emission(
        samples, -width / 2 - 60e3, width / 2 + 60e3, width, {"spacing_hz": step / FRAME_SECONDS, "gated": gated}
    )
