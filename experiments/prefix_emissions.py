"""What is on the air and is neither LTE nor 5G NR, as samples, with random parameters. NumPy only.

    samples = EMISSIONS["802.11"](rng, 10e6, 200_000)    # complex (n,), any power; parameters are drawn anew each time

Made to look for false alarms of data/cyclic_prefix.py: where an emission has a period or a pause that could mimic an
OFDM symbol of 15, 30 or 60 kHz, or its lag, it takes it in half of the draws.
"""

from typing import NamedTuple

import numpy as np

# Seconds: lags; symbols with prefix; half a millisecond.
MIMICS = (1 / 15e3, 1 / 30e3, 1 / 60e3, 0.5e-3 / 7, 0.5e-3 / 14, 0.5e-3 / 28, 0.5e-3 / 6, 0.5e-3, 1e-3)


def white(rng, n):
    return rng.standard_normal((n, 2)).view(complex)[:, 0] / np.sqrt(2)


def _period(rng, low=5e-6, high=2e-3):
    return float(rng.choice(MIMICS)) if rng.random() < 0.5 else float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _phase(frequency, rate):
    """exp(j 2 pi integral of frequency), frequency (n,) in Hz."""
    return np.exp(2j * np.pi * np.cumsum(frequency) / rate)


def _held(values, seconds, rate, n):
    """Values held for `seconds` each, which need not be whole samples: (n,)."""
    return values[np.minimum((np.arange(n) / rate / seconds).astype(int), len(values) - 1)]


def _bursts(rng, rate, n, shortest=50e-6, longest=3e-3):
    """On and off at random, (n,) of 0 and 1."""
    mask, place = np.zeros(n), 0
    while place < n:
        length = int(np.exp(rng.uniform(np.log(shortest), np.log(longest))) * rate) + 1
        mask[place : place + length] = 1
        place += length + int(np.exp(rng.uniform(np.log(shortest), np.log(longest))) * rate)
    return mask


def _filtered(samples, rate, low, high, roll):
    hz = np.fft.fftfreq(len(samples), 1 / rate)
    gain = 1 / (1 + np.exp(np.clip((np.abs(hz - (low + high) / 2) - (high - low) / 2) / roll, -50, 50)))
    return np.fft.ifft(np.fft.fft(samples) * gain)


def _ofdm(rng, rate, n, symbol, prefix, width, pilots=0):
    """OFDM of any symbol time at any rate: random QPSK over `width` Hz, every `pilots`-th subcarrier constant."""
    size = 2 * round(symbol * width / 0.8 / 2)
    own, guard = size / symbol, round(prefix * size / symbol)
    count = int(n / rate * own / (size + guard)) + 2
    bins = np.zeros((count, size), complex)
    used = np.r_[1 : int(0.4 * size), -int(0.4 * size) : 0]
    bins[:, used] = rng.choice([-1, 1], (count, len(used))) + 1j * rng.choice([-1, 1], (count, len(used)))
    if pilots:
        bins[:, used[::pilots]] = 1.5 * bins[0, used[::pilots]]
    symbols = np.fft.ifft(bins, axis=1)
    stream = np.concatenate([symbols[:, size - guard :], symbols], 1).ravel()
    return _resampled(stream, own, rate, n, rng)


def _resampled(stream, own, rate, n, rng):
    """A stream at rate `own` to n samples at `rate`, through its spectrum."""
    stream = np.roll(stream, rng.integers(len(stream)))[: int(n / rate * own)]
    spectrum, out = np.fft.fft(stream), np.zeros(n, complex)
    half = min(len(stream), n) // 2
    out[:half], out[-half:] = spectrum[:half], spectrum[-half:]
    return np.fft.ifft(out)


def white_noise(rng, rate, n):
    return white(rng, n)


def filtered_noise(rng, rate, n):
    low, high = np.sort(rng.uniform(-0.5, 0.5, 2)) * rate
    return _filtered(white(rng, n), rate, low, max(high, low + 0.05 * rate), 10 ** rng.uniform(2, 5.5))


def noise_bursts(rng, rate, n):
    return white(rng, n) * _bursts(rng, rate, n)


def gated_noise(rng, rate, n):
    """Noise switched with a period that mimics symbols, slots or lags."""
    period = _period(rng)
    return white(rng, n) * (np.arange(n) / rate / period % 1 < rng.uniform(0.03, 0.9))


def wifi(rng, rate, n):
    guard = float(rng.choice([0.4e-6, 0.8e-6]))
    return _ofdm(rng, rate, n, 3.2e-6, guard, rng.uniform(0.5, 0.95) * rate, 13) * _bursts(rng, rate, n)


def other_ofdm(rng, rate, n):
    """Symbols of 802.11ax and ah, WiMAX, DVB-T and T2, DAB, and any that is 3% or more off the three lags."""
    symbol = float(rng.choice([12.8, 32, 64, 74.67, 85.33, 91.43, 102.4, 112, 125, 224, 256, 448, 896, 1000])) * 1e-6
    if rng.random() < 0.4:
        symbol = float(rng.choice([1 / 15e3, 1 / 30e3])) * (1 + rng.choice([-1, 1]) * rng.uniform(0.03, 0.3))
    share = float(rng.choice([1 / 32, 1 / 16, 1 / 8, 1 / 4, 144 / 2048]))
    stream = _ofdm(rng, rate, n, symbol, symbol * share, rng.uniform(0.3, 0.95) * rate, int(rng.choice([0, 6, 12])))
    return stream * (_bursts(rng, rate, n) if rng.random() < 0.3 else 1)


def chirps(rng, rate, n):
    period, width = _period(rng), rng.uniform(0.05, 1) * rate
    phase = np.arange(n) / rate / period + rng.random()
    saw = phase % 1
    if rng.random() < 0.3:
        saw = 1 - np.abs(2 * saw - 1)  # up and down
    gate = 1  # pulsed chirps have pauses; a group of them may have longer ones
    if rng.random() < 0.5:
        gate = (phase if rng.random() < 0.5 else phase * rng.uniform(0.02, 1)) % 1 < rng.uniform(0.1, 1)
    return _phase((saw - 0.5) * width * rng.choice([-1, 1]), rate) * gate


def stepped_chirps(rng, rate, n):
    """Each lag one or a few steps of frequency later: slopes that mimic the lags."""
    step = float(rng.choice([15e3, 30e3, 60e3])) * rng.integers(1, 8)
    slope = step * float(rng.choice([15e3, 30e3, 60e3])) * rng.choice([-1, 1])  # Hz a second
    frequency = (slope * np.arange(n) / rate + rng.uniform(-0.5, 0.5) * rate) % rate
    return _phase(frequency, rate)


def tone_comb(rng, rate, n):
    """Tones at equal distances, through the spectrum of a period that is filled again and again."""
    spacing, count = 1 / _period(rng, 10e-6, 1e-3), int(rng.integers(2, 60))
    clock = np.arange(4096) / 4096 / spacing
    one = np.exp(2j * np.pi * (spacing * np.arange(count) * clock[:, None] + rng.random(count))).sum(1)
    samples = one[(np.arange(n) / rate * spacing % 1 * 4096).astype(int)]
    envelope = _bursts(rng, rate, n) if rng.random() < 0.3 else 1
    return samples * _phase(np.full(n, rng.uniform(-0.5, 0.3) * rate), rate) * envelope


def tones(rng, rate, n):
    return sum(10 ** rng.uniform(-1, 0) * _phase(np.full(n, rng.uniform(-0.5, 0.5) * rate), rate) for _ in range(3))


def pulses(rng, rate, n):
    """A pulse train, now and then with jitter, or in pairs as of DME and secondary radar."""
    period, width = _period(rng), 10 ** rng.uniform(-6.5, -5)
    jitter = rng.choice([0, 0, 0.02, 0.3]) * period
    times = np.arange(0, n / rate, period)
    times = times + rng.uniform(0, 1) * jitter * rng.standard_normal(len(times))
    if period not in MIMICS and rng.random() < 0.7:
        times = np.r_[times, times + 10 ** rng.uniform(-5.5, -3.8)]
    clock = np.arange(n) / rate
    nearest = np.sort(times)[np.clip(np.searchsorted(np.sort(times), clock) - 1, 0, len(times) - 1)]
    return ((clock >= nearest) & (clock < nearest + width)) * _phase(np.full(n, rng.uniform(-0.3, 0.3) * rate), rate)


def periodic(rng, rate, n):
    """The same noise again and again, all the time or switched on and off."""
    period = _period(rng, 10e-6, 1e-3)
    size = max(2, round(period * rate))
    gate = 1
    if rng.random() < 0.5:
        gate = np.arange(n) / rate / float(rng.choice([0.5e-3, 1e-3, 2e-3])) % 1 < rng.uniform(0.05, 0.95)
    elif rng.random() < 0.5:
        gate = _bursts(rng, rate, n)
    return np.resize(white(rng, size), n) * gate


def single_carrier(rng, rate, n):
    """QPSK or 16QAM, root raised cosine; WCDMA among them, with pilot and codes of 256 chips."""
    chips = 3.84e6 if rng.random() < 0.3 and rate > 5e6 else rng.uniform(0.05, 0.7) * rate
    count = int(n / rate * chips) + 2
    levels = np.array([-1, 1]) if rng.random() < 0.7 else np.array([-3, -1, 1, 3])
    values = rng.choice(levels, count) + 1j * rng.choice(levels, count)
    if chips == 3.84e6:
        slot = np.resize(np.r_[np.resize(rng.choice([-1, 1], 256), 256), np.zeros(2304)], count)  # P-SCH
        values = values + 1.5 * slot
    upsampled = np.zeros(2 * count, complex)
    upsampled[::2] = values
    return _resampled(_filtered(upsampled, 2 * chips, -chips / 2, chips / 2, 0.03 * chips), 2 * chips, rate, n, rng)


def gsm(rng, rate, n):
    """GMSK bursts of 546 in slots of 577 microseconds, on one to ten carriers of 200 kHz."""
    out = np.zeros(n, complex)
    for _ in range(rng.integers(1, 11)):
        out += 10 ** rng.uniform(-1, 0) * _keyed(rng, rate, n, Keying(1 / 270833, 67.7e3, 576.9e-6, 546e-6, False))
    return out


def bluetooth(rng, rate, n):
    return _keyed(rng, rate, n, Keying(1e-6, 160e3, 625e-6, 366e-6, True))


def dect(rng, rate, n):
    return _keyed(rng, rate, n, Keying(1 / 1.152e6, 288e3, 10e-3 / 24, 368e-6, rng.random() < 0.5))


def fsk(rng, rate, n):
    bit = _period(rng, 1e-6, 1e-3)
    return _keyed(rng, rate, n, Keying(bit, rng.uniform(0.2, 2) / bit, 1.0, 1.0, False))


class Keying(NamedTuple):
    """Frequency shift keying in bursts, one in each slot of time that is used."""

    bit_s: float
    deviation_hz: float
    slot_s: float
    burst_s: float
    hops: bool  # to a new frequency in each slot


def _keyed(rng, rate, n, keying):
    clock = np.arange(n) / rate + rng.uniform(0, keying.slot_s)
    number = (clock / keying.slot_s).astype(int)
    places = rng.uniform(-0.45, 0.45, number[-1] + 1) * rate
    centre = places[number] if keying.hops else places[0]
    bits = _held(rng.choice([-1.0, 1.0], int(n / rate / keying.bit_s) + 2), keying.bit_s, rate, n)
    smooth = max(1, int(keying.bit_s * rate * 0.5))
    bits = np.convolve(bits, np.ones(smooth) / smooth, "same")
    used = rng.random(number[-1] + 1) < rng.uniform(0.3, 1)
    used[rng.integers(len(used))] = True
    frequency = np.clip(keying.deviation_hz, 0, 0.4 * rate) * bits + centre
    return _phase(frequency, rate) * (clock % keying.slot_s < keying.burst_s) * used[number]


def adsb(rng, rate, n):
    """Pulse positions of .5 microseconds, messages of 120 microseconds at random."""
    out, clock = np.zeros(n), np.arange(int(120e-6 * rate)) / rate
    for start in rng.integers(0, max(1, n - len(clock)), rng.integers(3, 60)):
        bits = rng.integers(0, 2, 121)
        first = clock % 1e-6 < 0.5e-6
        out[start : start + len(clock)] = np.where(bits[(clock * 1e6).astype(int)] == 1, first, ~first)
    return out * _phase(np.full(n, rng.uniform(-0.2, 0.2) * rate), rate)


def video(rng, rate, n):
    """Analogue television: lines of 64 or 63.56 microseconds that resemble each other, AM or FM, colour carrier."""
    line = float(rng.choice([64e-6, 63.556e-6]))
    size = round(line * 20e6)
    walk = np.cumsum(rng.standard_normal(size)) * 0.02
    picture = np.clip(0.3 + np.abs(walk), 0, 1)
    picture[: int(4.7e-6 * 20e6)], picture[int(4.7e-6 * 20e6) : int(10e-6 * 20e6)] = -0.3, 0
    clock = np.arange(n) / rate
    drift = np.repeat(rng.standard_normal(int(n / rate / line) + 2).cumsum() * 0.05, 1)
    level = picture[(clock % line * 20e6).astype(int) % size] + drift[(clock / line).astype(int)]
    level = level + 0.2 * np.cos(2 * np.pi * 4.43e6 * clock)
    if rng.random() < 0.5:
        return (1 - 0.7 * level) * _phase(np.full(n, -0.25 * rate), rate)
    return _phase((level - 0.3) * 0.3 * rate, rate)


def on_off_keying(rng, rate, n):
    bit = _period(rng, 20e-6, 2e-3)
    keyed = _held(rng.integers(0, 2, int(n / rate / bit) + 2), bit, rate, n)
    return keyed * _phase(np.full(n, rng.uniform(-0.4, 0.4) * rate), rate)


def lora(rng, rate, n):
    width, factor = float(rng.choice([125e3, 250e3, 500e3, 1625e3])), int(rng.integers(5, 13))
    symbol = 2**factor / width
    clock = np.arange(n) / rate
    shift = _held(rng.random(int(n / rate / symbol) + 2), symbol, rate, n)
    frequency = ((clock / symbol + shift) % 1 - 0.5) * width + rng.uniform(-0.3, 0.3) * rate
    return _phase(frequency, rate)


# ---- events in the receiver, on noise --------------------------------------------------------------------------------


def gain_steps(rng, rate, n):
    steps = 10 ** (rng.choice([-1, 1], 400) * rng.uniform(0, 1) / 2)
    return white(rng, n) * _held(steps, max(_period(rng, 1e-4, 2e-2), n / rate / 398), rate, n)


def dropped_samples(rng, rate, n):
    samples = white(rng, n)
    for start in rng.integers(0, n, rng.integers(1, 40)):
        samples[start : start + int(10 ** rng.uniform(-5, -3) * rate)] = 0
    return samples


def glitches(rng, rate, n):
    samples = white(rng, n)
    samples[rng.integers(0, n, rng.integers(1, 30))] *= 10 ** rng.uniform(1, 6)
    return samples


def saturation(rng, rate, n):
    strong = sum(_phase(np.full(n, rng.uniform(-0.5, 0.5) * rate), rate) for _ in range(2)) + white(rng, n)
    limit = rng.uniform(0.2, 1)
    return np.clip(strong.real, -limit, limit) + 1j * np.clip(strong.imag, -limit, limit)


def repeating_spurs(rng, rate, n):
    """A switching supply's or a USB frame's bursts of noise: .125, .5 or 1 ms apart, or any other period."""
    period = float(rng.choice([0.125e-3, 0.5e-3, 1e-3])) if rng.random() < 0.5 else _period(rng)
    burst = np.arange(n) / rate % period < 10 ** rng.uniform(-6, -4.5)
    pattern = np.resize(white(rng, max(2, round(period * rate))), n)
    return burst * pattern + 0.1 * white(rng, n)


EMISSIONS = {
    "white noise": white_noise,
    "filtered noise": filtered_noise,
    "noise bursts": noise_bursts,
    "gated noise": gated_noise,
    "802.11": wifi,
    "other OFDM": other_ofdm,
    "chirps": chirps,
    "stepped chirps": stepped_chirps,
    "comb of tones": tone_comb,
    "tones": tones,
    "pulses": pulses,
    "periodic": periodic,
    "single carrier, WCDMA": single_carrier,
    "GSM": gsm,
    "Bluetooth": bluetooth,
    "DECT": dect,
    "FSK": fsk,
    "ADS-B": adsb,
    "video": video,
    "OOK": on_off_keying,
    "LoRa": lora,
    "gain steps": gain_steps,
    "dropped samples": dropped_samples,
    "glitches": glitches,
    "saturation": saturation,
    "repeating spurs": repeating_spurs,
}
