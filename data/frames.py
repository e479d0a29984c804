"""Generate frames of 40 ms with LTE and 5G NR carriers, as samples at 61.44 MS/s.

    iq, carriers = make_frame("FIELD", index=1, seed=0)

There are three kinds of frames. The families "NR", "LTE" and "LTE_NR" repeat the settings of the published MathWorks
generator, with its weak points. The family "FIELD" holds what a receiver meets outside a laboratory: any load and
scheduling, FDD and TDD, up to four carriers at unequal levels, multipath, imperfect radios, and empty bands. "OTHER"
adds what is neither LTE nor NR (data/others.py): alone, beside carriers and across them, and events in the receiver.

`carriers` describes the frame: a list of dicts with "technology", "center_hz" (baseband), "bandwidth_hz", "snr_db" and
more. A carrier that sends nothing in the frame is not listed. Emissions and events have the technology "other", and
their "kind"; the band of an event is the whole frame's.

    iq, carriers, mask = labelled_frame("OTHER", index=1, seed=0)

gives the labels as well. Those of OTHER frames can't be told from the list of carriers: where an emission covers a
carrier and is stronger than 10 dB below it, the label is "unknown", pixel by pixel.
"""

from dataclasses import dataclass

import numpy as np
import torch

from data.emission import active_power
from data.lte_nr import (
    FRAME_MS,
    LTE_RB,
    LTE_TDD,
    NR_RB,
    LteConfig,
    NrConfig,
    lte_waveform,
    nr_waveform,
    pdcch_bundles,
)
from data.others import EMISSIONS, EVENTS, TRAINED
from data.radio import FRAME_SECONDS, GAIN_BLOCKS, PROFILES, Band, multipath, receive, snr_amplitude, soft_limiter
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

FAMILY_NUMBER = {"NR": 1, "LTE": 2, "LTE_NR": 3, "FIELD": 4, "OTHER": 5}  # part of each frame's seed


def make_frame(family, index, seed):
    """Make one frame. The same arguments always give the same frame.

    Args: family, a key of FAMILY_NUMBER; index, number of the frame within its family; seed, of the whole set.
    Returns: iq, complex64 (2457600,), and carriers, a list of dicts (see the top of this file).
    """
    return labelled_frame(family, index, seed)[:2]


def labelled_frame(family, index, seed):
    """The same frame with its labels: (iq, carriers, mask), mask uint8 (256, 256) as data.spectrogram.channel_mask.

    The mask of an OTHER frame has the later release's values: 0 noise, 85 NR, 170 LTE, 255 unknown.
    """
    rng = frame_rng(family, index, seed)
    if family == "OTHER":
        frame = other_frame(rng)
        return frame.iq, frame.carriers, frame.mask
    iq, carriers = field_frame(rng) if family == "FIELD" else mathworks_frame(family, rng)
    return iq, carriers, channel_mask(carriers)


def frame_rng(family, index, seed):
    """The numpy Generator that all random choices of one frame are drawn from."""
    return np.random.default_rng([seed, FAMILY_NUMBER[family], index])


def _describe(technology, config, center, snr_db):
    """One entry of `carriers`: plain values that can be written as JSON."""
    about = {
        "technology": technology,
        "center_hz": round(float(center), 1),
        "bandwidth_hz": config.bandwidth_hz,
        "snr_db": round(float(snr_db), 2),
        "cell_id": config.cell_id,
        "load": round(float((config.allocation > 0).mean()), 3),
    }
    if technology == "NR":
        about["scs_hz"] = config.scs
    elif config.tdd is not None:
        about["tdd"] = config.tdd
    return about


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


# ---- the published generator's frames -------------------------------------------------------------------------------


def _random_parts(rng, parts, total):
    """Split total into the given number of random positive parts."""
    cuts = np.sort(rng.permutation(np.arange(1, total))[: parts - 1])
    return np.diff(np.concatenate([[0], cuts, [total]]))


def _random_groups(rng, start, end, total, most=3):
    """Place one to three groups of used places after `start`: bool (end,), as the published generator does.

    `total` is divided among the groups at random. A group covers one place more than its share.
    """
    groups = rng.integers(1, most + 1)
    sizes = _random_parts(rng, groups, max(groups, total))
    taken = np.zeros(end, bool)
    for i, size in enumerate(sizes):
        slack = end - start - int(sizes[i:].sum())
        start += int(rng.integers(1, slack + 1)) if slack > 0 else 1
        taken[start : start + size + 1] = True
        start += int(size)
    return taken


MATHWORKS_NR_HZ = (10e6, 15e6, 20e6, 25e6, 30e6, 40e6, 50e6)
MATHWORKS_LTE_HZ = (5e6, 10e6, 15e6, 20e6)


def mathworks_bandwidths(rng):
    """Draw the channel bandwidths in Hz for one index of the published set: {"NR": ..., "LTE": ...}.

    For each index the published loop draws one NR and one LTE carrier. It writes a frame of NR alone, one of LTE alone,
    and one of both side by side. Where both do not fit into the band, it draws the index again. So frames with a single
    carrier also have the widths of pairs that fit.
    """
    while True:
        widths = {"NR": float(rng.choice(MATHWORKS_NR_HZ)), "LTE": float(rng.choice(MATHWORKS_LTE_HZ))}
        if sum(widths.values()) <= SAMPLE_RATE:
            return widths


def mathworks_nr(rng, bandwidth):
    """Draw an NrConfig as the published generator does."""
    scs = float(rng.choice([15e3, 30e3]))
    n_rb, slots = NR_RB[scs][bandwidth], round(FRAME_MS * scs / 15e3)
    in_period = np.zeros(20, bool)
    in_period[:11] = _random_groups(rng, 2, 11, round(8 * rng.uniform(0.1, 0.8)))
    blocks = _random_groups(rng, 0, n_rb, round(n_rb * rng.uniform(0.2, 0.7)))
    return NrConfig(
        bandwidth_hz=bandwidth,
        scs=scs,
        cell_id=1,
        allocation=(in_period[np.arange(slots) % 20][:, None] & blocks).astype(np.float32),
        ssb_case="A" if scs == 15e3 else "B",
        ssb_blocks=tuple(rng.integers(0, 2, rng.choice([4, 8]))),
        control=np.tile(pdcch_bundles(n_rb, slots // 4), (4, 1)),  # slots are numbered anew in each 10 ms
        dmrs_symbols=(3,),
    )


def mathworks_lte(rng, bandwidth):
    """Draw an LteConfig as the published generator does: reference channels R.6, R.2, R.8 and R.9 of TS 36.101."""
    n_rb = LTE_RB[bandwidth]
    allocation = np.ones((10, n_rb), np.float32)
    if rng.random() < 0.5:
        allocation[:] = 0
        for subframe in range(10):
            allocation[subframe, [0, 1, *rng.integers(4, 9, rng.integers(0, 3))]] = 1
    else:
        allocation[rng.integers(0, 10, rng.integers(1, 9))] = 0
    allocation[5] = 0  # the reference channels send no data in subframe 5
    return LteConfig(
        bandwidth_hz=bandwidth,
        cell_id=0,
        allocation=np.tile(allocation, (4, 1)),
        order=4 if bandwidth == 10e6 else 64,
        cfi=3 if bandwidth == 5e6 else 2,
        control_load=36 / (4.5 * n_rb),  # one PDCCH of four control channel elements; nothing else is sent
        window=round(0.005 * 2048 * n_rb / 100),
    )


@dataclass
class MathworksScene:
    """What one frame of the published generator contains, drawn before any waveform is made."""

    snr_db: float
    doppler_hz: float
    configs: list  # NrConfig or LteConfig of each carrier
    centers_hz: list

    @property
    def carriers(self):
        """The list of dicts that make_frame returns for this scene."""
        return [
            _describe("NR" if isinstance(config, NrConfig) else "LTE", config, center, self.snr_db)
            for config, center in zip(self.configs, self.centers_hz, strict=True)
        ]


def mathworks_scene(family, rng):
    """Draw a MathworksScene of family "NR", "LTE" or "LTE_NR"."""
    snr_db, doppler_hz = float(rng.choice([40, 50, 100])), float(rng.choice([0, 10, 500]))
    widths = mathworks_bandwidths(rng)
    if family != "LTE_NR":
        configs = [(mathworks_nr if family == "NR" else mathworks_lte)(rng, widths[family])]
        limit = (SAMPLE_RATE - widths[family]) / 2 - HZ_PER_PIXEL
        return MathworksScene(snr_db, doppler_hz, configs, [float(rng.uniform(-limit, limit))])
    configs = [mathworks_nr(rng, widths["NR"]), mathworks_lte(rng, widths["LTE"])]
    if rng.random() < 0.5:
        configs.reverse()
    first, second = (config.bandwidth_hz for config in configs)
    room = SAMPLE_RATE - first - second
    gap = round(rng.uniform(0, room) / 1e6) * 1e6
    start = round(rng.uniform(0, max(0, room - gap - HZ_PER_PIXEL)) / 1e6) * 1e6 - SAMPLE_RATE / 2
    return MathworksScene(snr_db, doppler_hz, configs, [start + first / 2, start + first + gap + second / 2])


def mathworks_frame(family, rng):
    """Make one frame as the published generator does.

    Its noise level assumes a signal power of 0 dBW. The true signal is much weaker: a resource element has amplitude
    1/4096 (at 15 kHz) or 1/2048 (at 30 kHz) at 61.44 MS/s. So a label of "40 dB" means about 4 dB for each resource
    element, and at "100 dB" the noise is below the eps that the spectrogram adds.

    Args: family, "NR", "LTE" or "LTE_NR"; rng, of `frame_rng`.
    Returns: iq, complex64 (2457600,), and carriers.
    """
    scene, band = mathworks_scene(family, rng), Band()
    # The published generator uses a channel of narrow angular spread for NR and combined frames, Clarke's for LTE.
    spread = np.pi if family == "LTE" else np.deg2rad(20)
    seed = int(rng.integers(2**63))
    for config, center in zip(scene.configs, scene.centers_hz, strict=True):
        is_nr = isinstance(config, NrConfig)
        wave = (nr_waveform if is_nr else lte_waveform)(config, rng)
        samples = np.roll(wave.samples, int(rng.integers(len(wave.samples))))
        fading_rng = np.random.default_rng(seed)  # anew for each carrier: all carriers of a frame fade alike
        samples = multipath(samples, wave.sample_rate, "flat", scene.doppler_hz, fading_rng, spread)
        band.add(samples, wave.sample_rate, center, 1 / 2048 if is_nr and config.scs == 30e3 else 1 / 4096)
    band.add_noise(10 ** (-scene.snr_db / 10), rng)
    return band.samples(), scene.carriers


# ---- what a receiver meets ------------------------------------------------------------------------------------------


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


def field_nr(rng, bandwidth, scs):
    """Draw an NR carrier and make its waveform: (NrConfig, Waveform)."""
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
    data_only = rng.random() < 0.3
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
        allocation=random_schedule(rng, slots, n_rb, "full" if data_only and rng.random() < 0.5 else None),
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
        downlink_symbols=downlink,
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
    band, carriers = _field_scene(rng, FIELD_COUNTS)
    return _field_receiver(rng, [band], carriers)


def _field_scene(rng, counts):
    """Draw carriers and add their waveforms to an empty band: (Band, carriers).

    Args: counts, shares of the frames with 0, 1, ... 4 carriers.
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
        config, wave = field_lte(rng, bandwidth) if technology == "LTE" else field_nr(rng, bandwidth, scs)
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
        carriers.append(_describe(technology, config, center, snr_db))
    return band, carriers


def _field_receiver(rng, bands, carriers):
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


# ---- what else is on the air ----------------------------------------------------------------------------------------


OTHER_COUNTS = (0.5, 0.35, 0.12, 0.03, 0.0)  # shares of the OTHER frames with no, one, ... four carriers
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
    band, carriers = _field_scene(rng, OTHER_COUNTS)
    others, described = Band(), []
    for kind in kinds:
        if kind in EMISSIONS:
            described.append(_add_emission(rng, others, str(kind), carriers))
    band.spectrum += others.spectrum
    iq, seen = _field_receiver(rng, [band, others], carriers + described)
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
