"""Emissions and receiver events in which a search must find no cell, and carriers with one, for cell_search_trials.

    samples = KINDS["DVB-T"](rng, count)          # (rng, samples at RATE) -> complex (n,), in noise, about unit power

They are apart from data/others.py, on which networks are trained, so that trials stay independent of training.
"""

import numpy as np

from data.lte_nr import LTE_RB, NR_RB, LteConfig, NrConfig, lte_waveform, nr_waveform

RATE = 3.84e6
NR_CASE = {15e3: "A", 30e3: "C"}


def noise(rng, n):
    return (rng.standard_normal(n) + 1j * rng.standard_normal(n)) / np.sqrt(2)


def resample(samples, rate, n):
    """n samples at RATE of the middle of a spectrum at `rate`; samples must last as long."""
    spectrum, out = np.fft.fft(samples), np.zeros(n, complex)
    half = min(len(samples), n) // 2
    out[:half], out[-half:] = spectrum[:half], spectrum[-half:]
    return np.fft.ifft(out) * (n / len(samples))


def shift(samples, hz):
    return samples * np.exp(2j * np.pi * hz / RATE * np.arange(len(samples)))


def in_noise(rng, samples, low_db=0, high_db=40):
    """The emission in noise, low_db to high_db below its mean power in the whole band."""
    level = 10 ** (-rng.uniform(low_db, high_db) / 20)
    return samples / (np.sqrt(np.mean(np.abs(samples) ** 2)) + 1e-30) + level * noise(rng, len(samples))


def tones(rng, n):
    return in_noise(rng, sum(shift(np.ones(n), hz) for hz in rng.uniform(-RATE / 4, RATE / 4, rng.integers(1, 6))))


def comb(rng, n):
    """Lines at one distance, in phase (pulses) or not; distances of a whole number of subcarriers among them."""
    step = rng.choice([15e3, 30e3, 1e3, 200.0, rng.uniform(500, 200e3)])
    count = int(min(2e6 / step, 400))
    spectrum = np.zeros(n, complex)
    spectrum[np.round(step * np.arange(-count, count + 1) * n / RATE).astype(int)] = 1
    if rng.random() < 0.5:
        spectrum *= np.exp(2j * np.pi * rng.random(n))
    return shift(in_noise(rng, np.fft.ifft(spectrum)), rng.uniform(-1e5, 1e5))


def chirps(rng, n):
    """Linear sweeps, of the slopes of Zadoff-Chu sequences and the periods of frames among others."""
    period = rng.choice([5e-3, 1e-3, 66.67e-6, 71.35e-6, 1e-2, 10 ** rng.uniform(-5, -2)])
    width = rng.choice([0.93e6, 0.945e6, rng.uniform(1e4, 6e6)])
    length = period if rng.random() < 0.5 else min(period, 66.67e-6)
    at = np.arange(n) / RATE % period
    cycles = rng.choice([-1, 1]) * width * (at**2 / (2 * length) - at / 2)
    return in_noise(rng, shift(np.exp(2j * np.pi * cycles) * (at < length), rng.uniform(-2e5, 2e5)))


def ofdm(rng, count, size, used, prefix, order=4):
    """`count` symbols of plain OFDM, QPSK or 16-QAM on `used` of `size` subcarriers but DC."""
    levels = np.array([-3, -1, 1, 3]) if order == 16 else np.array([-1, 1])
    bins = np.zeros((count, size), complex)
    at = np.r_[-(used // 2) : 0, 1 : used // 2 + 1]
    bins[:, at] = rng.choice(levels, (count, len(at))) + 1j * rng.choice(levels, (count, len(at)))
    symbols = np.fft.ifft(bins) * np.sqrt(size)
    return np.concatenate([symbols[:, size - prefix :], symbols], 1)


def wifi(rng, n):
    """802.11a/n: frames of 20 MHz with preambles and gaps."""
    whole = round(n * 20e6 / RATE)
    out, at = np.zeros(whole, complex), int(rng.integers(2000))
    short = np.tile(ofdm(rng, 1, 64, 52, 0)[0, :16], 10)
    while at < whole:
        frame = np.concatenate([short, ofdm(rng, int(rng.integers(4, 300)), 64, 52, 16, 16).ravel()])[: whole - at]
        out[at : at + len(frame)] = frame
        at += len(frame) + int(rng.choice([320, 680, rng.integers(300, 30000)]))
    return in_noise(rng, shift(resample(out, 20e6, n), rng.uniform(-3e6, 3e6)))


def dvbt(rng, n):
    """DVB-T, 2k or 8k mode, 7 MHz, with its pilots."""
    rate, size, used = 8e6, *((2048, 1704) if rng.random() < 0.5 else (8192, 6816))
    prefix = size // int(rng.choice([4, 8, 16, 32]))
    whole = round(n * rate / RATE)
    symbols = ofdm(rng, whole // (size + prefix) + 1, size, used, prefix, 16)
    pilots = np.zeros(size, complex)
    pilots[np.arange(-used // 2, used // 2, 12)] = 4
    pilots = np.fft.ifft(pilots) * np.sqrt(size)
    symbols += np.concatenate([pilots[size - prefix :], pilots])
    return in_noise(rng, shift(resample(symbols.ravel()[:whole], rate, n), rng.uniform(-1e6, 1e6)))


def wcdma(rng, n):
    """WCDMA's slots: 3.84 Mchip/s, a fixed synchronisation code each slot, a code of 15 slots, a pilot, data."""
    count = round(n * 3.84e6 / RATE)
    slots = count // 2560 + 1
    sync, second, pilot = (rng.choice([-1, 1], count) for count in (256, (15, 256), 38400))
    chips = rng.uniform(0.3, 2) * noise(rng, slots * 2560).reshape(slots, 2560)
    for slot in range(slots):
        chips[slot, :256] += (1 + 1j) * (sync + second[slot % 15])
        chips[slot] += (1 + 1j) * 0.5 * pilot[slot % 15 * 2560 :][:2560]
    return in_noise(rng, shift(resample(chips.ravel()[:count], 3.84e6, n), rng.uniform(-2e5, 2e5)))


def bluetooth(rng, n):
    """Packets of GFSK, 366 of 625 microseconds, on changing channels of 1 MHz."""
    out, slot, bit = np.zeros(n, complex), round(625e-6 * RATE), RATE / 1e6
    for start in range(0, n, slot):
        length = min(round(366e-6 * RATE), n - start)
        bits = rng.choice([-1.0, 1.0], round(length / bit) + 2)
        wave = np.convolve(bits[(np.arange(length) / bit).astype(int)], np.hanning(9) / 4, "same")
        packet = np.exp(2j * np.pi * np.cumsum(160e3 * wave) / RATE)
        out[start : start + length] = packet * np.exp(2j * np.pi * rng.integers(-1, 2) * 1e6 / RATE * np.arange(length))
    return in_noise(rng, out)


def adsb(rng, n):
    """Mode S replies: pulses of .5 microseconds in frames of 56 or 112, at random."""
    out, half = np.zeros(n, complex), round(RATE * 0.5e-6)
    for start in rng.integers(0, n - 1000, rng.integers(2, 40)):
        bits = rng.integers(0, 2, int(rng.choice([56, 112])))
        halves = np.concatenate([[1, 0, 1, 0, 0, 0, 0, 1, 0, 1], np.zeros(6), np.stack([bits, 1 - bits], 1).ravel()])
        level = np.repeat(halves, half)
        level = level[: n - start] * 10 ** rng.uniform(-1, 0.5) * np.exp(2j * np.pi * rng.random())
        out[start : start + len(level)] += level
    return in_noise(rng, shift(out, rng.uniform(-2e5, 2e5)), -10, 20)


def gain_step(rng, n):
    steps = np.ones(n)
    for at in rng.integers(0, n, rng.integers(1, 4)):
        steps[at:] *= 10 ** (rng.uniform(-20, 20) / 20)
    return noise(rng, n) * steps + rng.choice([0, 0.3])


def dropped(rng, n):
    """Samples lost: written as zeros, or left out of a tone in noise."""
    out = in_noise(rng, tones(rng, n)) if rng.random() < 0.5 else noise(rng, n)
    for at in rng.integers(0, n, rng.integers(1, 20)):
        length = int(10 ** rng.uniform(0, 4))
        if rng.random() < 0.5:
            out[at : at + length] = 0
        else:
            out[at:] = np.roll(out[at:], -length)
    return out


def glitches(rng, n):
    out = noise(rng, n)
    where = rng.integers(0, n, rng.integers(1, 30)) if rng.random() < 0.5 else np.arange(0, n, round(5e-3 * RATE))
    out[where] = 10 ** rng.uniform(1, 6)
    return out


def saturation(rng, n):
    """Noise, tones or OFDM far beyond full scale of a converter of few bits."""
    out = (noise, tones, wifi)[rng.integers(3)](rng, n)
    steps = 2 ** rng.integers(1, 8) - 1
    out = out / np.std(out) * rng.uniform(0.5, 10)
    return (np.round(out.real.clip(-1, 1) * steps) + 1j * np.round(out.imag.clip(-1, 1) * steps)) / steps


def filter_shape(rng, n):
    hz = np.fft.fftfreq(n, 1 / RATE)
    edge = 1 / (1 + np.exp((np.abs(hz - rng.uniform(-5e5, 5e5)) - rng.uniform(2e5, 2e6)) / rng.uniform(5e3, 2e5)))
    return np.fft.ifft(np.fft.fft(noise(rng, n)) * (10 ** (-rng.uniform(6, 60) / 20) + edge))


def drone(rng, n):
    """A drone's downlink: OFDM with LTE's symbols, 600 subcarriers, and Zadoff-Chu symbols of length 601 each 10 ms."""
    count = round(n / RATE / 0.5e-3) * 7
    symbols = ofdm(rng, count, 1024, 600, 72, rng.choice([4, 16]))
    k = np.arange(601)
    for first, root in ((3, 600), (5, 147)):
        bins = np.zeros(1024, complex)
        bins[k - 300] = np.exp(-1j * np.pi * root * k * (k + 1) / 601) * (k != 300)
        symbol = np.fft.ifft(bins) * np.sqrt(2 * 1024)
        symbols[first :: 7 * int(rng.choice([10, 20, 2]))] = np.concatenate([symbol[-72:], symbol])
    samples = np.concatenate([np.concatenate([half[0, :8], half.ravel()]) for half in symbols.reshape(-1, 7, 1096)])
    return in_noise(rng, shift(resample(samples, 15.36e6, n), rng.uniform(-3e6, 3e6)))


def uplink(rng, n):
    """LTE's uplink: DFT-spread QPSK, Zadoff-Chu reference in the middle of each slot, some resource blocks."""
    slots, blocks = round(n / RATE / 0.5e-3), int(rng.integers(1, 16))
    size, k = 12 * blocks, np.arange(12 * blocks)
    prime = max(p for p in range(2, size) if all(p % d for d in range(2, int(p**0.5) + 1)))
    data = np.fft.fft(rng.choice([1, 1j, -1, -1j], (slots, 7, size)), axis=2) / np.sqrt(size)
    root = rng.integers(1, prime)
    data[:, 3] = np.exp(-1j * np.pi * root * (k % prime) * (k % prime + 1) / prime)
    data *= (rng.random(slots) < rng.choice([1, 0.3]))[:, None, None]
    bins = np.zeros((slots, 7, round(RATE / 15e3)), complex)
    bins[..., int(rng.integers(-100, 101 - size)) + k] = data
    symbols = np.fft.ifft(bins)
    symbols = np.concatenate([symbols[..., -18:], symbols], 2).reshape(slots, -1)
    return in_noise(rng, shift(np.concatenate([symbols[:, -2:], symbols], 1).ravel()[:n], rng.uniform(-2e5, 2e5)))


def looped(rng, n):
    """Noise that repeats, as a signal generator's memory does: each 5, 10, 20 ms or at random."""
    length = round(RATE * rng.choice([5e-3, 10e-3, 20e-3, rng.uniform(1e-5, 5e-3)]))
    return in_noise(rng, np.tile(noise(rng, length), n // length + 1)[:n], 0, 60)


def lte_carrier(rng):
    """40 ms of LTE at RATE with its cell, FDD or TDD, of any load."""
    loads = rng.choice([0, 0.3, 1]), rng.uniform(0.5, 1.5)
    config = LteConfig(
        bandwidth_hz=5e6,
        cell_id=int(rng.integers(504)),
        allocation=(rng.random((40, LTE_RB[5e6])) < loads[0]).astype(np.float32) * np.float32(loads[1]),
        tdd=None if rng.random() < 0.5 else int(rng.integers(7)),
        ports=int(rng.choice([1, 2, 4])),
        mbsfn=(1, 2, 3, 6, 7, 8) if rng.random() < 0.2 else (),
    )
    return at_rate(lte_waveform(config, rng)), config


def at_rate(wave):
    """The middle of a carrier of 40 ms, at RATE."""
    return resample(wave.samples, wave.sample_rate, round(0.04 * RATE))


def nr_carrier(rng):
    """40 ms of NR at RATE, 5 MHz of 15 kHz or 10 MHz of 30 kHz, with SS/PBCH blocks in its middle, of any load."""
    spacing = float(rng.choice([15e3, 30e3]))
    width = 5e6 if spacing == 15e3 else 10e6
    slots, blocks = round(40 * spacing / 15e3), NR_RB[spacing][width]
    allocation = (rng.random((slots, blocks)) < rng.choice([0, 0.5, 1])).astype(np.float32)
    sent = tuple(int(i == 0 or rng.random() < 0.3) for i in range(4))
    config = NrConfig(width, spacing, int(rng.integers(1008)), allocation, 4, NR_CASE[spacing], sent)
    return at_rate(nr_waveform(config, rng)), config


def cut(rng, samples, n):
    """n samples of a recording from anywhere in a carrier's 40 ms, which repeat."""
    return np.roll(samples, -int(rng.integers(len(samples))))[:n]


KINDS = {
    "white noise": noise,
    "tones": tones,
    "combs": comb,
    "chirps": chirps,
    "802.11": wifi,
    "DVB-T": dvbt,
    "WCDMA": wcdma,
    "Bluetooth": bluetooth,
    "ADS-B": adsb,
    "gain step": gain_step,
    "dropped samples": dropped,
    "glitches": glitches,
    "saturation": saturation,
    "filter shape": filter_shape,
    "drone, 15 kHz OFDM": drone,
    "LTE uplink": uplink,
    "looped noise": looped,
}
