"""Emissions of cellular systems that are neither LTE nor NR, and of broadcast: WCDMA, GSM, NB-IoT, DVB, DAB, ATSC, FM,
AM, television.

    emission = wcdma(np.random.default_rng(0))         # a data.emission.Emission: 40 ms

Each call draws anew within what the standard allows and operators do. All are registered in data/others.py.
"""

import numpy as np

from data.emission import (
    Emission,
    combine,
    count_at,
    cut,
    db,
    gate,
    held,
    keyed,
    log_uniform,
    low_passed,
    ofdm,
    phasor,
    qam,
    roomy_rate,
    root_raised_cosine,
    single_carrier,
    smooth,
    spectrum_of,
)
from data.lte_nr import ofdm_modulate
from data.radio import FRAME_SECONDS

# ---- cellular --------------------------------------------------------------------------------------------------------


def wcdma(rng):
    """UMTS: one to four carriers of 3.84 Mchip/s, 5 MHz apart, roll-off .22; pilot, SCH, users under power control.

    3GPP TS 25.104 clause 6.8.1 (pulse), TS 25.211 clause 5.3 (slots of 2560 chips, SCH in the first 256), TS 25.214
    clause 5.2 (1500 steps of power a second), HS-DSCH in subframes of 2 ms.
    """
    count, n = int(rng.integers(1, 5)), count_at(3.84e6)
    parts = []
    for i in range(count):
        pilot = db(-10) * qam(rng, 4, n)
        synchronisation = np.tile(np.r_[np.resize(qam(rng, 4, 16), 256), np.zeros(2304)], n // 2560) * db(-11)
        walk = np.cumsum(rng.choice([-1, 1], (6, 60)) * rng.choice([0.5, 1, 2]), 1) + rng.uniform(-20, -8, (6, 1))
        users = rng.random(6) < rng.uniform(0, 1)
        power = (10 ** (np.clip(walk, -35, -5) / 10) * users[:, None]).sum(0)  # of 60 slots
        if rng.random() < 0.5:  # HSDPA takes what is left, in some subframes
            power = power + 0.5 * np.repeat(rng.random(20) < rng.uniform(0, 1), 3)
        data = qam(rng, 4, n) * np.repeat(np.sqrt(power), 2560)
        chips = pilot + synchronisation + data
        parts.append((single_carrier(chips * db(rng.uniform(-10, 0)), 0.22), 5e6 * (i - (count - 1) / 2)))
    half = 2.5e6 * (count - 1) + 1.22 * 3.84e6 / 2
    facts = {"carriers": count, "chip_rate": 3.84e6, "slot_s": 1 / 1500}
    return Emission(combine(parts, roomy_rate(2 * half)), -half, half, 5e6, facts)


def gsm(rng):
    """GSM: a BCCH carrier that never stops, and traffic carriers with idle and full slots, with or without hopping.

    3GPP TS 45.002 clause 5.2 (148 bits in 156.25), clause 6.2.3 (hopping each TDMA frame of 4.615 ms), TS 45.004
    clause 2 (GMSK, BT .3, 270.833 kbit/s), TS 45.005 annex B (ramps).
    """
    bit, slot = 48 / 13e6, 156.25 * 48 / 13e6
    rate = 4 / bit
    n, frames = count_at(rate), 10
    channels, radios = int(rng.integers(1, 21)), int(rng.integers(1, 7))
    apart = 200e3 * int(rng.choice([1, 2, 3, 4]))
    busy = rng.random((radios, 8)) < rng.uniform(0.1, 1)  # slots with a call
    busy[0] = True  # the BCCH
    hopping = rng.random() < 0.5
    spans = [[] for _ in range(channels)]
    offset = rng.uniform(0, slot)
    order = np.array([rng.permutation(channels) for _ in range(frames)])
    for radio, frame, number in np.ndindex(min(radios, channels), frames, 8):
        if not busy[radio, number] or (radio and rng.random() < 0.1):  # silence in a call: DTX
            continue
        channel = order[frame, radio] if hopping and radio else radio
        start = (8 * frame + number) * slot - offset
        level = 1.0 if radio == 0 else db(-2.0 * ((radio + number) % 6))
        spans[channel].append((start, start + (slot if radio == 0 else 148 * bit), level))
    parts, facts = [], {"slot_s": slot, "burst_s": 148 * bit, "channel_hz": 200e3, "hopping": hopping}
    for channel, of_channel in enumerate(spans):
        if of_channel:
            wave = keyed(rng.choice([-1, 1], int(FRAME_SECONDS / bit) + 4), bit, 0.25 / bit, rate, 0.3)[:n]
            place = apart * (channel - (channels - 1) / 2)
            parts.append((spectrum_of(wave * gate(of_channel, n, rate, 20e-6) * db(rng.uniform(-6, 0))), place))
    facts["used_hz"] = [apart * (channel - (channels - 1) / 2) for channel in range(channels) if spans[channel]]
    half = apart * (channels - 1) / 2 + 130e3
    samples = combine(parts, roomy_rate(max(2 * half, 1e6)))
    return Emission(samples, -half, half, 200e3, facts)


def nb_iot(rng):
    """Standalone NB-IoT: one carrier of 12 subcarriers, 180 kHz; NPBCH, NPSS, NSSS and data in some subframes.

    3GPP TS 36.211 clause 10.2; TS 36.802 for standalone operation. Symbols and prefix are LTE's.
    """
    sent = rng.random(40) < rng.uniform(0.05, 1)
    number = (np.arange(40) + rng.integers(10)) % 10
    sent |= (number == 0) | (number == 5) | ((number == 9) & (np.arange(40) // 10 % 2 == 0))
    grid = qam(rng, 4, (40, 14, 12)) * sent[:, None, None]
    reference = qam(rng, 4, (40, 4, 4))  # NRS of two ports is in every subframe
    for i, symbol in enumerate((5, 6, 12, 13)):
        grid[:, symbol, rng.integers(3) :: 3] = reference[:, i]
    samples = ofdm_modulate(grid.reshape(560, 12), 128, 15e3, skip_dc=False, window=9)
    return Emission(samples, -110e3, 110e3, None, {"symbol_s": 1 / 15e3, "subframes": int(sent.sum())})


def drone(rng):
    """A drone's downlink: OFDM of 15 kHz in 9, 10, 18 or 20 MHz, in frames of bursts; or its identification alone.

    Schiller et al., "Drone Security and the Mysterious Case of DJI's DroneID" (NDSS 2023): 601 subcarriers of 15 kHz,
    prefixes of LTE, bursts of 9 symbols (643 us), one of them a Zadoff-Chu sequence. The identification repeats each
    600 ms; the video link sends in frames of 2 to 10 ms.
    """
    carriers, size = ((600, 1024), (540, 1024), (1200, 2048), (1080, 2048))[rng.integers(4)]
    period = float(rng.choice([2e-3, 4e-3, 5e-3, 10e-3]))
    symbols = int(rng.integers(9, max(10, int(period / 71.4e-6))))
    if rng.random() < 0.3:
        symbols, period = 9, 600e-3
    sent = np.zeros(560, bool)
    step, first = max(1, round(period / FRAME_SECONDS * 560)), int(rng.integers(0, 540))
    for start in range(first % step if period < FRAME_SECONDS else first, 560, step):
        sent[start : start + symbols] = True
    grid = qam(rng, int(rng.choice([4, 16, 64])), (560, carriers)) * sent[:, None]
    samples = ofdm_modulate(grid, size, 15e3, skip_dc=True)
    half = carriers / 2 * 15e3 + 15e3
    return Emission(samples, -half, half, None, {"burst_s": symbols * 71.4e-6, "period_s": period})


# ---- digital broadcast -----------------------------------------------------------------------------------------------


def dvb_t(rng):
    """DVB-T and T2: OFDM of 2K to 32K in 6, 7 or 8 MHz, boosted pilots; one to three channels side by side.

    ETSI EN 300 744 clause 4.4 (elementary period 7/64 us in 8 MHz; 1705 and 6817 carriers; guards 1/32 to 1/4), EN 302
    755 clause 9.5 (1K, 4K, 16K, 32K). P1 symbols, one in 250 ms, are left out.
    """
    width = float(rng.choice([6e6, 7e6, 8e6], p=[0.2, 0.2, 0.6]))
    size = int(rng.choice([1024, 2048, 4096, 8192, 16384, 32768], p=[0.05, 0.25, 0.1, 0.4, 0.1, 0.1]))
    guard = size // int(rng.choice([4, 8, 16, 32]))
    used = np.arange(-round(size * 0.4161), round(size * 0.4161) + 1)
    rate, parts = width * 8 / 7, []
    places = width * (np.arange(rng.choice([1, 1, 1, 2, 3])))
    places = places - places.mean()
    for place in places:
        count = count_at(rate) // (size + guard) + 2
        bins = qam(rng, int(rng.choice([4, 16, 64, 256])), (count, len(used)))
        start = 3 * (np.arange(count) % 4)
        for symbol, shift in enumerate(start):  # scattered pilots on each twelfth carrier, moving by three
            bins[symbol, shift::12] = 4 / 3 * np.sign(bins[0, shift::12].real)
        stream = cut(rng, ofdm(bins, used, size, guard), rate)
        parts.append((spectrum_of(stream * db(rng.uniform(-15, 0))), place))
    half = places[-1] + 0.8323 / 2 * rate
    facts = {"symbol_s": (size + guard) / rate, "useful_s": size / rate, "guard_s": guard / rate, "width_hz": width}
    return Emission(combine(parts, roomy_rate(2 * half)), -half, half, None, facts)


def dab(rng):
    """DAB: 1536 carriers of 1 kHz, null symbol of 1.297 ms each 96 ms; one to four ensembles 1.712 MHz apart.

    ETSI EN 300 401 clause 14.2, transmission mode I.
    """
    rate, count, parts = 2.048e6, int(rng.integers(1, 5)), []
    used = np.r_[-768:0, 1:769]
    for i in range(count):
        stream = ofdm(qam(rng, 4, (76, 1536)), used, 2048, 504)
        stream = np.concatenate([np.zeros(2656, np.complex64), stream])  # 96 ms: the null symbol comes first
        start = int(rng.integers(len(stream)))
        stream = np.roll(stream, start)[: count_at(rate)]
        parts.append((spectrum_of(stream * db(rng.uniform(-20, 0))), 1.712e6 * i))
    middle = 1.712e6 * (count - 1) / 2
    samples = combine([(part, place - middle) for part, place in parts], roomy_rate(2 * middle + 2e6))
    half = middle + 0.775e6
    facts = {"symbol_s": 2552 / rate, "useful_s": 1e-3, "null_s": 2656 / rate}
    return Emission(samples, -half, half, None, facts)


def atsc(rng):
    """ATSC: 8-VSB of 10.762 million symbols a second in 6 MHz, with its pilot; one to three channels side by side.

    ATSC A/53 part 2 clause 5: eight levels, roll-off .1152, pilot 1.25 of levels +-1 to +-7, segments of 832 symbols.
    """
    parts, n = [], 430_500  # of 430,489.5: transforms of that length are slow
    symbol_rate = n / FRAME_SECONDS
    count = int(rng.choice([1, 1, 2, 3]))
    for i in range(count):
        levels = rng.choice(np.arange(-7, 8, 2), n).astype(np.float32)
        segment = (np.arange(n) + rng.integers(832)) % 832
        levels[segment < 4] = np.array([5, -5, -5, 5], np.float32)[segment[segment < 4]]
        share = np.arange(-(n // 2), n // 2) / (n / 2)  # one sideband: 0 to 1
        spectrum = spectrum_of(levels + 1.25) * root_raised_cosine(share - 0.5, 0.1152)
        parts.append((spectrum * db(rng.uniform(-15, 0)), 6e6 * (i - (count - 1) / 2) - symbol_rate / 4))
    half = 3e6 * (count - 1) + 3e6
    facts = {"segment_s": 832 / symbol_rate, "pilot_hz": -symbol_rate / 4 - 3e6 * (count - 1)}
    return Emission(combine(parts, roomy_rate(2 * half)), -half, half, None, facts)


def dvb_c(rng):
    """DVB-C: 16- to 256-QAM of 6.9 million symbols a second, roll-off .15, in one to six channels of 8 MHz.

    ETSI EN 300 429 clauses 8 and 9. Cable is seen through leaks, or by an analyser at the socket.
    """
    symbol_rate, count = float(rng.choice([5.36e6, 6.875e6, 6.9e6, 6.95e6])), int(rng.integers(1, 7))
    apart = 8e6 if symbol_rate > 6e6 else 6e6
    parts = [
        (single_carrier(qam(rng, int(rng.choice([16, 64, 256])), count_at(symbol_rate)), 0.15), apart * i)
        for i in range(count)
    ]
    middle = apart * (count - 1) / 2
    half = middle + 1.15 * symbol_rate / 2
    samples = combine([(part * db(rng.uniform(-6, 0)), place - middle) for part, place in parts], roomy_rate(2 * half))
    return Emission(samples, -half, half, None, {"symbol_rate": symbol_rate, "carriers": count})


def dvb_s(rng):
    """DVB-S and S2: QPSK or 8PSK of 1 to 30 million symbols a second, roll-off .2, .25 or .35; one or two carriers.

    ETSI EN 300 421 clause 4.5, EN 302 307-1 clause 5.6.
    """
    parts, edge = [], 0.0
    rolloff = float(rng.choice([0.2, 0.25, 0.35]))
    symbol_rates = [25e3 * smooth(log_uniform(rng, 40, 1200)) for _ in range(rng.choice([1, 1, 2]))]
    for symbol_rate in symbol_rates:
        order = int(rng.choice([4, 8]))
        values = np.exp(2j * np.pi / order * (rng.integers(0, order, count_at(symbol_rate)) + 0.5))
        occupied = (1 + rolloff) * symbol_rate
        parts.append((single_carrier(values, rolloff) * db(rng.uniform(-10, 0)), edge + occupied / 2))
        edge += 1.05 * occupied
    samples = combine([(part, place - edge / 2) for part, place in parts], roomy_rate(edge))
    return Emission(samples, -edge / 2, edge / 2, None, {"symbol_rates": symbol_rates, "rolloff": rolloff})


# ---- analogue --------------------------------------------------------------------------------------------------------


def _audio(rng, n, rate, highest):
    """A programme: noise as of speech or music that swells, sometimes silence; rms at most 1, float32 (n,)."""
    loud = np.abs(low_passed(rng, n, rate, 40)) * rng.choice([0, 1, 1, 1])
    return np.clip(low_passed(rng, n, rate, highest, 100) * loud, -3, 3) / 3


def fm(rng):
    """FM: broadcast stations (+-75 kHz, pilot of 19 kHz) 200 kHz or more apart, or narrow speech (+-2.5 or 5 kHz).

    ITU-R BS.450-4; ETSI EN 300 086 for land mobile radio of 12.5 and 25 kHz.
    """
    broadcast = rng.random() < 0.6
    rate, raster = (480e3, 100e3) if broadcast else (60e3, 12.5e3)
    deviation = 75e3 if broadcast else float(rng.choice([2.5e3, 5e3]))
    span = float(rng.uniform(1e6, 20e6))
    count = int(rng.integers(1, 13))
    n, parts = count_at(rate), []
    for _ in range(count):
        audio = _audio(rng, n, rate, 15e3 if broadcast else 3e3)
        clock = np.arange(n) / rate
        if broadcast:
            stereo = _audio(rng, n, rate, 15e3) * np.cos(2 * np.pi * 38e3 * clock)
            audio = 0.45 * audio + 0.45 * stereo + 0.09 * np.cos(2 * np.pi * 19e3 * clock)
        place = round(rng.uniform(-span / 2, span / 2) / raster) * raster
        parts.append((spectrum_of(phasor(deviation * audio, rate) * db(rng.uniform(-30, 0))), place))
    edge = max(abs(place) for _, place in parts) + (130e3 if broadcast else 12.5e3)
    samples = combine(parts, roomy_rate(2 * edge + 500e3))
    return Emission(samples, -edge, edge, 200e3, {"deviation_hz": deviation, "carriers": count})


def am(rng):
    """AM: carriers with two sidebands of speech, 8.33 or 25 kHz apart (airband) or 9 kHz (broadcast).

    ICAO annex 10 volume III part II; ITU-R BS.639. Modulation up to 85%.
    """
    rate, raster = 60e3, float(rng.choice([25e3 / 3, 9e3, 25e3]))
    span, n, parts = float(rng.uniform(0.5e6, 15e6)), count_at(60e3), []
    for _ in range(rng.integers(1, 13)):
        audio = _audio(rng, n, rate, 3.4e3 if raster != 9e3 else 4.5e3)
        place = round(rng.uniform(-span / 2, span / 2) / raster) * raster
        parts.append((spectrum_of((1 + 0.85 * np.clip(audio, -1, 1)) * db(rng.uniform(-30, 0))), place))
    edge = max(abs(place) for _, place in parts) + 5e3
    return Emission(combine(parts, roomy_rate(2 * edge + 200e3)), -edge, edge, 240e3, {"carriers": len(parts)})


def _picture(rng, rate):
    """A television signal, 0 to 1 with sync at 0 and black at .3, and the line time: float32 (n,), seconds.

    ITU-R BT.1700: 625 lines of 64 us or 525 of 63.556 us, sync of 4.7 us, blanking of 12 us; colour at 4.43 or 3.58
    MHz.
    """
    line, colour = ((64e-6, 4.43361875e6), (63.556e-6, 3.579545e6))[rng.integers(2)]
    n = count_at(rate)
    clock = np.arange(n) / rate + rng.uniform(0, 20e-3)
    within = clock % line
    places = np.linspace(0, line, 400)
    scene = np.clip(0.3 + 0.65 * np.abs(np.cumsum(rng.normal(0, 0.08, 400)) % 2 - 1), 0.3, 1)  # what all lines share
    level = np.interp(within, places, scene).astype(np.float32)
    level *= held(rng.uniform(0.7, 1, 700), line, n, rate).astype(np.float32)
    level = np.maximum(level, 0.3)
    level += np.float32(rng.uniform(0, 0.15)) * np.cos(2 * np.pi * (colour * clock % 1)).astype(np.float32)
    number = (clock / line).astype(int) % 312
    level[(within < 12e-6) | (number < 20)] = 0.3
    level[within < 4.7e-6] = 0.0
    level[(number < 3) & (within < 27e-6)] = 0.0  # broad pulses of the vertical sync
    return level, line


def television(rng):
    """Analogue television: vision AM with a vestigial sideband of .75 MHz, sound FM 5.5 or 4.5 MHz above.

    ITU-R BT.470 (systems B, G and M): negative modulation, 10% carrier at white; sound 10 to 13 dB below.
    """
    rate = 15e6
    level, line = _picture(rng, rate)
    n, pal = len(level), line == 64e-6
    vision = np.float32(1) - np.float32(0.9) * level
    hz = np.arange(-(n // 2), n - n // 2) / FRAME_SECONDS
    top = 5.0e6 if pal else 4.2e6
    shape = np.clip((hz + 1.25e6) / 0.5e6, 0, 1) * np.clip((top + 0.3e6 - hz) / 0.3e6, 0, 1)
    vision = spectrum_of(vision) * shape
    sound_hz = 5.5e6 if pal else 4.5e6
    sound = phasor(50e3 * _audio(rng, count_at(480e3), 480e3, 15e3), 480e3)
    samples = combine([(vision, -2.25e6), (spectrum_of(sound * 0.25), sound_hz - 2.25e6)], roomy_rate(9e6))
    facts = {"line_s": line, "vision_hz": -2.25e6, "sound_hz": sound_hz - 2.25e6}
    return Emission(samples, -3.55e6, 3.6e6, None, facts)


def fm_video(rng):
    """Video transmitters of model aircraft at 5.8 GHz: a television signal, frequency modulated, 17 to 27 MHz wide.

    Carson's rule with +-3 to 6 MHz and 5 MHz of video; ITU-R F.405 (pre-emphasis) left out; sound at 6.5 MHz.
    """
    rate = 60e6
    level, line = _picture(rng, rate / 3)
    deviation = rng.uniform(3e6, 6e6)
    frequency = np.repeat((level - 0.45) * 2 * deviation, 3)
    half = 1.1 * deviation + 2.5e6
    return Emission(phasor(frequency, rate), -half, half, None, {"line_s": line, "deviation_hz": deviation})
