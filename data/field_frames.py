"""Frames as a receiver meets them outside a laboratory: the family "FIELD".

    iq, carriers = field_frame(rng)                                          # see data/frames.py

Any load and scheduling, FDD and TDD, up to four carriers at unequal levels, multipath, imperfect radios, empty bands,
and captures of a lower sample rate. Numpy, torch and modules of data/ only.
"""

import numpy as np

from data.lte_nr import FRAME_MS, LTE_RB, LTE_TDD, NR_RB, LteConfig, NrConfig, describe, lte_waveform, nr_waveform
from data.radio import PROFILES, Band, multipath, receive, snr_amplitude, soft_limiter
from data.spectrogram import HZ_PER_PIXEL, SAMPLE_RATE


def _clip(carriers, low_hz, high_hz, shift_hz=0.0):
    """Cut the carriers to low_hz .. high_hz and move them by shift_hz. Parts narrower than a pixel are left out."""
    clipped = []
    for carrier in carriers:
        half = carrier["bandwidth_hz"] / 2
        low, high = max(low_hz, carrier["center_hz"] - half), min(high_hz, carrier["center_hz"] + half)
        if high - low > HZ_PER_PIXEL:
            center = round((low + high) / 2 + shift_hz, 1)
            clipped.append({**carrier, "center_hz": center, "bandwidth_hz": round(high - low, 1)})
    return clipped


SCHEDULES = {"full": 0.28, "idle": 0.12, "bursty": 0.21, "random": 0.15, "blocks": 0.1, "periodic": 0.08, "split": 0.06}


def random_schedule(rng, intervals, n_rb, style=None):
    """Draw how a scheduler fills a carrier: amplitude of the PDSCH, float32 (intervals, n_rb), 0 where nothing is sent.

    Args: intervals, subframes or slots in 40 ms; n_rb, resource blocks; style, a key of SCHEDULES (default: drawn).
    """
    # Which groups of resource blocks are in use when.
    group = int(rng.choice([1, 2, 3, 4, 8]))
    groups = -(-n_rb // group)
    style = style or rng.choice(list(SCHEDULES), p=list(SCHEDULES.values()))
    on = np.zeros((intervals, groups), bool)
    if style == "full":
        on[:] = True
    elif style == "bursty":  # users come and go; each gets a part of the band for some intervals
        time = int(rng.geometric(1 / rng.uniform(1, 10)))
        duty, width, mean_length = rng.uniform(0.1, 0.95), rng.uniform(0.1, 1), rng.uniform(1, 12)
        while time < intervals:
            length = int(rng.geometric(1 / mean_length))
            size = max(1, round(groups * min(1, rng.exponential(width))))
            start = rng.integers(0, max(1, groups - size + 1))
            on[time : time + length, start : start + size] = True
            time += length + int(rng.exponential(mean_length / duty - mean_length))
    elif style == "random":
        on = rng.random((intervals, groups)) < rng.uniform(0.05, 1)
    elif style == "blocks":
        for _ in range(rng.integers(1, 4)):
            low, high = np.sort(rng.integers(0, groups + 1, 2))
            begin, end = np.sort(rng.integers(0, intervals + 1, 2))
            on[begin : end + 1, low : high + 1] = True
    elif style == "periodic":
        period = int(rng.choice([2, 4, 5, 10, 20]))
        when = rng.random((period, 1)) < rng.uniform(0.2, 1)
        pattern = when & (rng.random((1, groups)) < rng.choice([0.5, 0.8, 1]))
        on = np.tile(pattern, (-(-intervals // period), 1))[:intervals]
    elif style == "split":  # a fixed part of the band, always
        low, high = np.sort(rng.integers(0, groups + 1, 2))
        on[:, low : high + 1] = True

    # Levels.
    amplitude = np.repeat(on, group, 1)[:, :n_rb].astype(np.float32)
    if rng.random() < 0.4:  # users at unequal power
        user = rng.normal(0, rng.uniform(0.5, 3), (rng.choice([1, intervals]), groups))
        amplitude *= 10 ** (np.repeat(user, group, 1)[:, :n_rb] / 20)
    return amplitude * np.float32(10 ** (rng.choice([0, 0, 0, -3, -3, -4.77, -6, 1, 3]) / 20))


def _random_order(rng, intervals):
    """Draw the QAM order of the data: one for the carrier, or one for each interval, int (intervals, 1, 1)."""
    if rng.random() < 0.5:
        return int(rng.choice([4, 16, 64, 256]))
    return rng.choice([4, 16, 64, 256], (intervals, 1, 1))


def field_lte(rng, bandwidth):
    """Draw an LTE carrier and make its waveform: (LteConfig, Waveform)."""
    n_rb = LTE_RB[bandwidth]
    tdd = rng.random() < 0.3
    config = LteConfig(
        bandwidth_hz=bandwidth,
        cell_id=int(rng.integers(504)),
        allocation=random_schedule(rng, FRAME_MS, n_rb),
        order=_random_order(rng, FRAME_MS),
        ports=int(rng.choice([1, 2, 2, 4])),
        cfi=int(rng.integers(1, 4)) + (n_rb <= 10),
        control_load=float(rng.choice([rng.uniform(0, 1), 0.1, 1.0])),
        tdd=int(rng.integers(len(LTE_TDD))) if tdd else None,
        dwpts=int(rng.choice([3, 9, 10, 11, 12])),
        mbsfn=tuple(rng.choice([1, 2, 3, 6, 7, 8], rng.integers(1, 5))) if not tdd and rng.random() < 0.06 else (),
        window=int(rng.uniform(0, 0.06) * 128 * n_rb / 6) if rng.random() < 0.7 else 0,
        subframe_offset=int(rng.integers(10)),
    )
    return config, lte_waveform(config, rng)


# TDD uplink-downlink patterns in use, slots of 30 kHz (at 15 kHz the same letters last twice as long).
NR_TDD = ("DDDSU", "DDDSUUDDDD", "DDDDDDDSUU", "DSUU", "DDSU", "DDDSUDDSUU", "DDDDDDDDSU")


DATA_ONLY_SHARE = 0.3  # share of the NR carriers that send data alone


def field_nr(rng, bandwidth, scs, data_only_share=DATA_ONLY_SHARE, steady_share=0.0):
    """Draw an NR carrier and make its waveform: (NrConfig, Waveform).

    Args: data_only_share, of the carriers that send data alone; steady_share, of those that fill their whole channel
    all the time. The others do so by chance.
    """
    n_rb, slots = NR_RB[scs][bandwidth], round(FRAME_MS * scs / 15e3)
    # TDD: how many symbols of each slot are downlink.
    downlink = None
    if rng.random() < 0.4:
        kinds = {"D": 14, "S": int(rng.choice([4, 6, 8, 10, 12])), "U": 0}
        pattern = [kinds[letter] for letter in NR_TDD[rng.integers(len(NR_TDD))]]
        downlink = np.tile(pattern, -(-slots // len(pattern)))[:slots]  # blocks come in the first slots: downlink
    # SS/PBCH blocks. The order of the draws below must stay, since it decides every generated frame.
    case = "A" if scs == 15e3 else str(rng.choice(["B", "C"]))
    blocks = int(rng.choice([4, 8]))
    sent = np.zeros(blocks, int)
    sent[: rng.choice([1, 1, 2, 4, blocks])] = 1
    if rng.random() < 0.3:
        sent = rng.integers(0, 2, blocks)
    period = int(rng.choice([5, 10, 20, 20, 20, 20, 40, 80, 160]))
    # Some carriers send data alone: secondary carriers, test transmitters, the uplink. A full one is a flat block.
    data_only = rng.random() < data_only_share
    steady = steady_share > 0 and data_only and rng.random() < steady_share
    if data_only:
        sent[:] = 0
    # Control channel: which bundles of three resource blocks are in use in each slot.
    control = np.zeros((slots, n_rb // 3), bool)
    chances = [0.6, 0.2, 0.1, 0.1] if data_only else [0.15, 0.5, 0.2, 0.15]
    control_style = rng.choice(["none", "random", "fixed", "full"], p=chances)
    if control_style == "random":
        control = rng.random(control.shape) < rng.uniform(0, 0.8) * (rng.random((slots, 1)) < rng.uniform(0.2, 1))
    elif control_style == "fixed":
        control[:] = rng.random(control.shape[1]) < rng.uniform(0.05, 0.6)
    elif control_style == "full":
        control[:] = True
    # Tracking reference signal, and the place of data and DM-RS within a slot.
    tracking = None
    if rng.random() < 0.4 and not data_only:
        every = int(rng.choice([10, 20, 40])) * slots // FRAME_MS
        tracking = (np.arange(slots) - rng.integers(every)) % every < 2
    coreset = int(rng.integers(1, 4))
    first = int(rng.choice([0, coreset, coreset, 2] if not data_only else [0, 0, 0, coreset]))
    front = max(int(rng.choice([2, 3])), first)
    extra = [(), (11,), (7, 11), (5, 8, 11)][rng.choice(4, p=[0.35, 0.35, 0.2, 0.1])]
    dmrs_only = bool(rng.random() < 0.6)
    config = NrConfig(
        bandwidth_hz=bandwidth,
        scs=scs,
        cell_id=int(rng.integers(1008)),
        allocation=random_schedule(rng, slots, n_rb, "full" if steady or data_only and rng.random() < 0.5 else None),
        order=_random_order(rng, slots),
        ssb_case=case,
        ssb_blocks=tuple(sent),
        ssb_period_ms=period,
        ssb_start_ms=int(rng.integers(period // 5) * 5),
        ssb_subcarrier=None if rng.random() < 0.4 else int(rng.integers(max(1, 12 * n_rb - 240 + 1))),
        ssb_amplitude=float(10 ** (rng.choice([0, 0, 0, 3, 6, -3]) / 20)),
        coreset_symbols=coreset,
        control=control,
        pdsch_symbols=(first, int(rng.choice([14 - first, 14 - first, 14 - first, rng.integers(4, 15 - first)]))),
        dmrs_symbols=(front, *extra),
        dmrs_boost=float(np.sqrt(2)) if dmrs_only and rng.random() < 0.7 else 1.0,
        dmrs_only=dmrs_only,
        csi_rs_slots=tracking,
        downlink_symbols=None if steady else downlink,
        window=int(rng.uniform(0, 0.06) * 4096 * n_rb / 300) if rng.random() < 0.5 else 0,
    )
    return config, nr_waveform(config, rng)


def _random_carrier_kind(rng):
    """Draw (technology, bandwidth in Hz, subcarrier spacing in Hz); wide carriers more often than narrow ones."""
    if rng.random() < 0.5:
        return "LTE", float(rng.choice(list(LTE_RB), p=[0.06, 0.08, 0.2, 0.24, 0.18, 0.24])), 15e3
    scs = float(rng.choice([15e3, 30e3]))
    share = [0.1, 0.16, 0.14, 0.18, 0.1, 0.1, 0.12, 0.1]
    return "NR", float(rng.choice(list(NR_RB[scs]), p=share)), scs


def _place(rng, widths):
    """Draw centres in Hz for channels of these widths, (N,), inside the band and without overlap; None if too wide.

    In one frame of five the channels touch, as neighbouring channels of real bands do.
    """
    room = SAMPLE_RATE - 2 * HZ_PER_PIXEL - sum(widths)
    if room < 0:
        return None
    gaps = np.sort(rng.uniform(0, room, len(widths)))
    if rng.random() < 0.2:
        gaps[:] = gaps[0]
    starts = gaps + np.concatenate([[0], np.cumsum(widths)[:-1]]) - SAMPLE_RATE / 2 + HZ_PER_PIXEL
    return starts + np.array(widths) / 2


def _floor_shape(rng):
    """Draw the receiver's noise floor over the band in dB, float (4096,): tilt, ripple, sometimes a filter's edges.

    There is never a block of higher noise inside the band, because a fully loaded carrier looks like that.
    """
    x = np.linspace(-1, 1, 4096)
    shape = rng.normal(0, 0.7) * x + rng.normal(0, 0.7) * x**2
    shape += rng.uniform(0, 0.5) * np.sin(np.pi * x * rng.uniform(1, 6) + rng.uniform(0, 6))
    if rng.random() < 0.3:
        shape += rng.uniform(-20, 0) * np.clip((np.abs(x) - rng.uniform(0.85, 0.99)) / rng.uniform(0.01, 0.1), 0, 1)
    return shape


# Sample rates in use: those of 3GPP, and round numbers. Half of the captures have one of these, half any rate.
CAPTURE_RATES = (1.92e6, 3.84e6, 7.68e6, 10e6, 15.36e6, 19.2e6, 20e6)
CAPTURE_RATES += (23.04e6, 25e6, 30.72e6, 40e6, 46.08e6, 50e6, 56e6)


def _narrow_capture(bands, carriers, rng):
    """Cut the band to that of a receiver with a lower sample rate.

    Half of these receivers lack a steep anti-alias filter, so signals beyond the edges fold back. Outside the received
    part there is noise at about the receiver's floor; in one capture of twenty it is 3 to 60 dB lower.

    Args: bands, Bands of the same frame, changed in place; carriers, of the whole band.
    Returns: the carriers that the receiver sees, and what to add to the noise floor in dB, float (4096,).
    """
    rate = float(rng.choice(CAPTURE_RATES)) if rng.random() < 0.5 else rng.uniform(7e6, 58e6)
    center = 0.0
    if carriers and (rate < 7e6 or rng.random() < 0.4):  # tuned to a carrier
        center = carriers[rng.integers(len(carriers))]["center_hz"] + rng.choice([0.0, rng.uniform(-0.2, 0.2) * rate])
    elif rng.random() < 0.3:
        center = rng.uniform(-2e6, 2e6)
    limit = (SAMPLE_RATE - rate) / 2
    low, high = np.clip(center, -limit, limit) + np.array([-rate / 2, rate / 2])
    reach = rng.uniform(0, 0.25) * rate if rng.random() < 0.5 else 0.0
    for band in bands:
        band.narrow(low, high, reach)
    seen = _clip(carriers, low, high)
    # A carrier that folds back still looks like a carrier. Beyond the frame's own band nothing was generated.
    seen += _clip(carriers, max(low - reach, -SAMPLE_RATE / 2), low, high - low)
    seen += _clip(carriers, high, min(high + reach, SAMPLE_RATE / 2), low - high)
    hz = (np.arange(4096) + 0.5) / 4096 * SAMPLE_RATE - SAMPLE_RATE / 2
    filled = rng.uniform(-60, -3) if rng.random() < 0.05 else rng.normal(0, 0.5)
    return seen, np.where((hz < low) | (hz > high), filled, 0.0)


FIELD_COUNTS = (0.05, 0.4, 0.3, 0.17, 0.08)  # shares of the frames with no, one, ... four carriers


def field_frame(rng):
    """Make one frame as a receiver may meet it outside a laboratory.

    Args: rng, of `frame_rng`.
    Returns: iq, complex64 (2457600,), and carriers.
    """
    band, carriers = field_scene(rng, FIELD_COUNTS)
    return field_receiver(rng, [band], carriers)


def field_scene(rng, counts, **nr_shares):
    """Draw carriers and add their waveforms to an empty band: (Band, carriers).

    Args: counts, shares of the frames with 0, 1, ... 4 carriers; nr_shares, as field_nr takes them.
    """
    # Which carriers, and where.
    count = int(rng.choice([0, 1, 2, 3, 4], p=counts))
    kinds, centers = [], None
    while centers is None:
        kinds = [_random_carrier_kind(rng) for _ in range(count)]
        centers = _place(rng, [width for _, width, _ in kinds]) if kinds else ()
    if count == 1 and rng.random() < 0.1:  # a carrier that reaches over the edge of the receiver's band
        centers = [float(rng.choice([-1, 1]) * (SAMPLE_RATE / 2 - rng.uniform(-0.2, 0.4) * kinds[0][1]))]

    for kind, center in list(zip(kinds, centers, strict=True)):  # another LTE cell that overlaps with this one
        if kind[0] == "LTE" and rng.random() < 0.1:
            kinds.append(("LTE", float(rng.choice(list(LTE_RB))), 15e3))
            centers = [*centers, center + rng.uniform(-0.5, 0.5) * kind[1]]

    # Each carrier's waveform passes amplifier, channel and transmit filter.
    band, carriers = Band(), []
    strongest = rng.uniform(0, 40) if rng.random() < 0.8 else rng.uniform(0, 10)
    for i, ((technology, bandwidth, scs), center) in enumerate(zip(kinds, centers, strict=True)):
        config, wave = field_lte(rng, bandwidth) if technology == "LTE" else field_nr(rng, bandwidth, scs, **nr_shares)
        if wave.active_share == 0:
            continue
        samples = np.roll(wave.samples, int(rng.integers(len(wave.samples))))
        if rng.random() < 0.25:
            samples = soft_limiter(samples, rng.uniform(6, 12))
        doppler = float(rng.choice([0, rng.uniform(1, 10), rng.uniform(10, 100), rng.uniform(100, 500)]))
        profile = str(rng.choice(list(PROFILES)))
        samples = multipath(samples, wave.sample_rate, profile, doppler, rng)
        snr_db = strongest if i == 0 else max(strongest - rng.exponential(8), rng.uniform(0, strongest))
        amplitude = snr_amplitude(samples, wave.active_share, wave.occupied_hz, snr_db)
        stopband = rng.uniform(0, 40) if rng.random() < 0.6 else 0.0
        band.add(samples, wave.sample_rate, center, amplitude, bandwidth, stopband)
        carriers.append(describe(technology, config, center, snr_db))
    return band, carriers


def field_receiver(rng, bands, carriers):
    """Receive the first of the bands: (iq complex64 (2457600,), carriers seen).

    Args: bands, Bands of one frame; a narrow capture cuts all of them.
    """
    # Its noise floor, its bandwidth, spurs, and the faults of its samples.
    band = bands[0]
    floor = _floor_shape(rng) if rng.random() < 0.5 else np.zeros(4096)
    if rng.random() < 0.2:  # a capture of lower sample rate, placed within 61.44 MHz
        carriers, step = _narrow_capture(bands, carriers, rng)
        floor = floor + step
    for _ in range(rng.integers(1, 11) if rng.random() < 0.25 else 0):
        band.add_tone(rng.uniform(-0.499, 0.499) * SAMPLE_RATE, rng.uniform(-5, 25))
    band.add_noise(1.0, rng, floor)
    iq = receive(
        band.samples(),
        rng,
        dc_db=rng.uniform(-40, 0) if rng.random() < 0.45 else None,
        image_db=rng.uniform(-55, -25) if rng.random() < 0.3 else None,
        phase_noise_deg=rng.uniform(0.2, 3) if rng.random() < 0.3 else 0.0,
        bits=int(rng.choice([8, 10, 12])) if rng.random() < 0.35 else None,
    )
    # The spectrogram adds an eps in absolute units, so the contrast of the picture depends on the receiver's gain.
    return iq * np.float32(10 ** (rng.uniform(-50, 10) / 20) / np.sqrt(np.mean(np.abs(iq) ** 2))), carriers
