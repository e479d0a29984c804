"""Emissions of short-range devices: Wi-Fi, Bluetooth, 802.15.4, LoRa, remote controls.

    emission = wifi(np.random.default_rng(0))          # a data.emission.Emission: 40 ms

Each call draws anew within what the standard allows and devices do. All are registered in data/others.py.
"""

from functools import lru_cache

import numpy as np

from data.emission import (
    Emission,
    add_burst,
    combine,
    count_at,
    db,
    held,
    keyed,
    log_uniform,
    ofdm,
    phasor,
    qam,
    roomy_rate,
    spectrum_of,
)
from data.radio import FRAME_SECONDS
from data.spectrogram import SAMPLE_RATE

# ---- Wi-Fi ----------------------------------------------------------------------------------------------------------

# IEEE 802.11-2020 clause 17.3.3: short training on each fourth subcarrier, long training on -26 to 26.
SHORT = dict(zip([*range(-24, 0, 4), *range(4, 25, 4)], (1, -1, 1, -1, -1, 1, -1, -1, 1, 1, 1, 1), strict=True))
LONG = "++--++-+-++++++--++-+-++++0+--++-+-+-----++--+-+-++++"
WIFI = {  # data subcarriers (lowest and highest used of each half), transform size for 20 MHz, guards in microseconds
    "a": ({20: (1, 26)}, 64, (0.8,)),  # clause 17
    "n": ({20: (1, 28), 40: (2, 58)}, 64, (0.4, 0.8)),  # clause 19
    "ac": ({20: (1, 28), 40: (2, 58), 80: (2, 122)}, 64, (0.4, 0.8)),  # clause 21
    "ax": ({20: (2, 122), 40: (3, 244), 80: (3, 500)}, 256, (0.8, 1.6, 3.2)),  # 802.11ax-2021 clause 27
}


def _duplicated(width):
    """Subcarriers -26 to 26 of each 20 MHz of a channel of `width` MHz: (places (parts, 53), transform size)."""
    parts = width // 20
    return np.arange(-26, 27) + 64 * np.arange(parts)[:, None] - 32 * (parts - 1), 64 * parts


@lru_cache(maxsize=3)
def _training(width):
    """The first 16 microseconds of each frame, short and long training, complex64 at `width` MS/s."""
    places, size = _duplicated(width)
    short = np.array([(1 + 1j) * SHORT.get(k, 0) for k in range(-26, 27)])
    long = np.array(["-0+".index(sign) - 1.0 for sign in LONG])
    fields = [ofdm(np.tile(v, len(places))[None], places.ravel(), size, 0) for v in (short * np.sqrt(13 / 6), long)]
    return np.concatenate([np.tile(fields[0], 3)[: 5 * size // 2], fields[1][size // 2 :], fields[1], fields[1]])


def _legacy(rng, width, symbols):
    """Symbols of 4 microseconds that repeat in each 20 MHz: SIGNAL fields, and data of 802.11a."""
    places, size = _duplicated(width)
    bins = qam(rng, 4, (symbols, 53))
    bins[:, 26] = 0
    return ofdm(np.tile(bins, len(places)), places.ravel(), size, size // 4)


def _ppdu(rng, standard, width, seconds):
    """A frame of about this duration with its preamble, complex64 at `width` MS/s."""
    carriers, base, guards = WIFI[standard]
    low, high = carriers[width]
    size = base * width // 20
    guard = round(float(rng.choice(guards)) * width)
    symbols = max(1, round((seconds - 20e-6) * width * 1e6 / (size + guard)))
    used = np.r_[-high : 1 - low, low : high + 1]
    data = ofdm(qam(rng, int(rng.choice([4, 16, 64, 256])), (symbols, len(used))), used, size, guard)
    signal = _legacy(rng, width, {"a": 1, "n": 3, "ac": 3, "ax": 4}[standard])
    return np.concatenate([_training(width), signal, data])


def wifi(rng):
    """802.11a, g, n, ac or ax: several stations take turns by DIFS and backoff; most frames are acknowledged.

    IEEE 802.11-2020 clauses 10.3 (DCF), 17, 19, 21; 802.11ax-2021 clause 27. A frame lasts at most 5.484 ms.
    """
    standard = str(rng.choice(list(WIFI)))
    width = int(rng.choice(list(WIFI[standard][0])))
    rate = width * 1e6
    sifs = float(rng.choice([10e-6, 16e-6]))  # at 2.4 and 5 GHz
    idle = 0.0 if rng.random() < 0.3 else log_uniform(rng, 50e-6, 8e-3)
    usual = log_uniform(rng, 60e-6, 3e-3)
    levels = db(rng.uniform(-20, 0, rng.integers(1, 5)))
    out, time, frames, contention = np.zeros(count_at(rate), np.complex64), 0.0, [], int(rng.choice([3, 7, 15, 31, 63]))
    while time < FRAME_SECONDS:
        time += sifs + 9e-6 * (2 + int(rng.integers(contention + 1))) + (rng.exponential(idle) if idle else 0)
        station = int(rng.integers(len(levels)))
        burst = _ppdu(rng, standard, width, float(np.clip(rng.exponential(usual), 40e-6, 5.4e-3)))
        add_burst(out, rate, time, burst * np.float32(levels[station]))
        frames.append((time, len(burst) / rate))
        time += len(burst) / rate
        if rng.random() < 0.85:
            answer = np.concatenate([_training(width), _legacy(rng, width, int(rng.choice([2, 3, 7])))])
            time += sifs
            add_burst(out, rate, time, answer * np.float32(levels[station - 1]))
            time += len(answer) / rate
    low, high = WIFI[standard][0][width]
    half = max(high / WIFI[standard][1] * 20e6, width / 2 * 1e6 - 1.72e6) + 0.4e6  # of the data; of the preamble
    facts = {"standard": f"802.11{standard}", "width_hz": rate, "sifs_s": sifs, "frames": frames}
    return Emission(out, -half, half, None, facts)


# ---- hops in the band of 2.4 GHz -------------------------------------------------------------------------------------


def _hops(rng, packets, channels_hz, hop):
    """Sum of packets on channels around a receiver tuned somewhere in their band, at 61.44 MS/s.

    Args: packets, [(start, seconds, channel, level)]; channels_hz; hop(seconds, offset_hz) -> samples of a packet.
    """
    heard = [channel for start, _, channel, _ in packets if -60e-6 < start < FRAME_SECONDS - 60e-6]
    middle = channels_hz[rng.choice(heard)] + rng.uniform(-25e6, 25e6)
    out, seen = np.zeros(count_at(SAMPLE_RATE), np.complex64), []
    for start, seconds, channel, level in packets:
        offset = channels_hz[channel] - middle
        if abs(offset) < SAMPLE_RATE / 2 - 1e6 and start < FRAME_SECONDS:
            add_burst(out, SAMPLE_RATE, start, hop(seconds, offset) * np.float32(level), 2e-6)
            seen.append((float(start), float(seconds), float(offset)))
    offsets = [offset for _, _, offset in seen] or [0.0]
    return Emission(out, min(offsets) - 0.75e6, max(offsets) + 0.75e6, 1e6, {"packets": seen})


def bluetooth(rng):
    """Bluetooth BR: packets of 1, 3 or 5 slots of 625 microseconds on 79 channels, GFSK, adaptive hopping.

    Bluetooth Core 5.4, volume 2 part A clause 3.1 (1 MS/s, BT .5, index .28 to .35), part B clauses 2 and 6.5.
    """
    used = np.sort(rng.permutation(79)[: int(rng.choice([79, 79, rng.integers(20, 79)]))])
    levels, load = db([0, rng.uniform(-25, 0)]), rng.uniform(0.3, 1)
    lengths = [(1, 366e-6)] if rng.random() < 0.5 else [(1, 366e-6), (3, 1622e-6), (5, 2870e-6)]
    packets, slot = [], -int(rng.integers(5))
    while slot < 64:
        slots, seconds = lengths[rng.integers(len(lengths))]
        slots, seconds = (slots, seconds) if slot % 2 == 0 else lengths[0]  # the peripheral's answers are short
        if rng.random() < load:
            packets.append((slot * 625e-6, seconds, int(rng.choice(used)), levels[slot % 2]))
        slot += slots
    packets.append((30e-3, 366e-6, int(rng.choice(used)), 1.0))
    index = rng.uniform(0.28, 0.35)

    def hop(seconds, offset):
        bits = rng.choice([-1, 1], round(seconds * 1e6))
        return keyed(bits, 1e-6, index / 2 * 1e6, SAMPLE_RATE, 0.5, offset)

    return _hops(rng, packets, (2402 + np.arange(79)) * 1e6, hop)


def bluetooth_le(rng):
    """Bluetooth LE: advertising on three channels, or connections whose packets are 150 microseconds apart.

    Bluetooth Core 5.4, volume 6 part A clause 3.1 (1 or 2 MS/s, BT .5, index .45 to .55), part B clauses 2.1, 4.4, 4.5.
    """
    packets = []
    for _ in range(rng.integers(1, 7)):
        level = db(rng.uniform(-25, 0))
        time = rng.uniform(0, 30e-3)
        if rng.random() < 0.5:  # an advertising event: one packet on each of the channels 37, 38 and 39
            seconds, apart = rng.uniform(128e-6, 376e-6), rng.uniform(0.5e-3, 10e-3)
            packets += [(time + i * apart, seconds, channel, level) for i, channel in enumerate((0, 12, 39))]
            continue
        interval = 7.5e-3 if rng.random() < 0.5 else 15e-3
        for start in np.arange(time % interval, FRAME_SECONDS, interval):
            channel = int(rng.integers(1, 39))
            for _ in range(rng.integers(1, 6)):
                for seconds in (rng.uniform(80e-6, 2120e-6), 80e-6):
                    packets.append((start, seconds, channel, level))
                    start += seconds + 150e-6
    bit = float(rng.choice([1e-6, 0.5e-6]))
    index = rng.uniform(0.45, 0.55)

    def hop(seconds, offset):
        bits = rng.choice([-1, 1], round(seconds / bit))
        return keyed(bits, bit, index / 2 / bit, SAMPLE_RATE, 0.5, offset)

    emission = _hops(rng, packets, (2402 + 2 * np.arange(40)) * 1e6, hop)
    emission.instant_hz = 1 / bit
    emission.low_hz, emission.high_hz = emission.low_hz - 0.25 / bit, emission.high_hz + 0.25 / bit
    return emission


def ieee_802_15_4(rng):
    """802.15.4 (Zigbee, Thread): O-QPSK of 2 Mchip/s with half-sine pulses, which is MSK; up to 4.256 ms a frame.

    IEEE 802.15.4-2020 clause 12: 62.5 k symbols a second of 32 chips; clause 6.2.5: backoff in periods of 320 us; an
    acknowledgement of 352 us follows after 192 us.
    """
    rate, n = 6e6, count_at(6e6)
    out, time, frames = np.zeros(n, np.complex64), -rng.uniform(0, 4e-3), []
    while time < FRAME_SECONDS:
        for seconds in (32e-6 * int(rng.integers(11, 134)), 352e-6):
            burst = keyed(rng.choice([-1, 1], round(seconds * 2e6)), 0.5e-6, 0.5e6, rate)
            add_burst(out, rate, time, burst, 1e-6)
            frames.append((time, seconds))
            time += seconds + 192e-6
        time += 320e-6 * rng.integers(1, 8) + rng.exponential(3e-3)
    return Emission(out, -1.5e6, 1.5e6, None, {"frames": frames})


# ---- long symbols ----------------------------------------------------------------------------------------------------


def lora(rng):
    """LoRa: chirps of one bandwidth and spreading factor; preamble, two sync words, 2.25 down-chirps, data.

    Semtech AN1200.22 and SX1280 data sheet: symbols of 2^SF / bandwidth. One to five transmitters in 125 kHz to 1.6
    MHz.
    """
    width = float(rng.choice([125e3, 250e3, 500e3, 203.125e3, 406.25e3, 812.5e3, 1625e3]))
    factor, devices = int(rng.integers(7, 13)), int(rng.integers(1, 6))
    places = (np.arange(devices) - (devices - 1) / 2) * width * float(rng.choice([1.6, 2.4, 4]))
    own, symbol = 4 * width, 2**factor / width
    n, parts = count_at(own), []
    for place in places:
        count = int(FRAME_SECONDS / symbol) + 3
        shift, slope = rng.integers(0, 2**factor, count) / 2**factor, np.ones(count)
        preamble = min(count, int(rng.integers(0, 13)))  # what of it lies in the frame
        shift[:preamble] = 0
        slope[preamble : preamble + 2 * (preamble > 0)] = -1
        clock = np.arange(n) / own / symbol
        saw = (clock % 1 + held(shift, symbol, n, own)) % 1 - 0.5
        samples = phasor(saw * held(slope, symbol, n, own) * width, own)
        if rng.random() < 0.4:  # the packet begins or ends in the frame
            samples = samples * ((np.arange(n) / n < rng.uniform(0.2, 1)) ^ (rng.random() < 0.5))
        parts.append((spectrum_of(samples * db(rng.uniform(-15, 0))), place))
    half = places[-1] + width / 2
    samples = combine(parts, roomy_rate(2 * half + width))
    return Emission(samples, -1.1 * half, 1.1 * half, width, {"symbol_s": symbol, "width_hz": width})


def ook_remote(rng):
    """Remote controls and sensors: carriers switched on and off in bits of 200 us to 2 ms, in telegrams.

    ETSI EN 300 220-2: 433 and 868 MHz. Encoders such as PT2262 send pulses of one or three quarters of a bit.
    """
    rate, n = 600e3, count_at(600e3)
    parts, bits = [], []
    for _ in range(rng.integers(1, 5)):
        bit = log_uniform(rng, 200e-6, 2e-3)
        share = rng.choice([0.25, 0.75], int(FRAME_SECONDS / bit) + 2)
        clock = (np.arange(n) / rate + rng.uniform(0, bit)) / bit
        keyed_on = (clock % 1) < share[clock.astype(int)]
        if rng.random() < 0.4:
            keyed_on = keyed_on & (np.arange(n) / n > rng.uniform(0, 0.8))
        smooth = np.convolve(keyed_on, np.ones(12) / 12, "same")
        parts.append((spectrum_of(smooth * db(rng.uniform(-20, 0))), rng.uniform(-0.9e6, 0.9e6)))
        bits.append(bit)
    return Emission(combine(parts, 2.4e6), -0.95e6, 0.95e6, 20e3, {"bit_s": bits})


def fsk_remote(rng):
    """FSK telegrams of meters, alarms, tyre sensors: 2.4 to 100 kbit/s, deviation 5 to 100 kHz, 3 to 30 ms.

    ETSI EN 300 220-2; wireless M-Bus EN 13757-4 (32.768 and 100 kchip/s, +-50 kHz).
    """
    rate, parts, telegrams, edge = 600e3, [], [], 0.0
    for _ in range(rng.integers(1, 4)):
        bit, deviation = 1 / log_uniform(rng, 2.4e3, 100e3), log_uniform(rng, 5e3, 100e3)
        seconds, place = rng.uniform(3e-3, 30e-3), rng.uniform(-1e6, 1e6)
        start = rng.uniform(-seconds / 2, FRAME_SECONDS - 2e-3)
        out = np.zeros(count_at(rate), np.complex64)
        gaussian = 0.5 if rng.random() < 0.5 else None
        burst = keyed(rng.choice([-1, 1], round(seconds / bit)), bit, deviation, rate, gaussian)
        add_burst(out, rate, start, burst, 50e-6)
        parts.append((spectrum_of(out * db(rng.uniform(-20, 0))), place))
        telegrams.append((start, seconds, bit, deviation))
        edge = max(edge, abs(place) + deviation + 1.5 / bit)
    return Emission(combine(parts, 3e6), -edge, edge, 200e3, {"telegrams": telegrams})
