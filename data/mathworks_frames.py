"""Frames as the published MathWorks generator draws them, with its weak points: families "NR", "LTE" and "LTE_NR".

    iq, carriers = mathworks_frame("LTE_NR", rng)                            # see data/frames.py

Numpy, torch and modules of data/ only.
"""

from dataclasses import dataclass

import numpy as np

from data.lte_nr import FRAME_MS, LTE_RB, NR_RB, LteConfig, NrConfig, describe, lte_waveform, nr_waveform, pdcch_bundles
from data.radio import Band, multipath
from data.spectrogram import HZ_PER_PIXEL, SAMPLE_RATE


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
            describe("NR" if isinstance(config, NrConfig) else "LTE", config, center, self.snr_db)
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
