"""Bands of columns: found, cut at gaps, fitted with standard channels.   pytest tests/test_bands.py"""

from functools import cache

import numpy as np
import pytest
import torch

from data import augment
from data.bands import find_bands, fit_channels, gaps, lines, predictor, unclaimed, whole_bands, widest_peak
from data.lte_nr import standard_channels
from data.spectrogram import FRAME_SAMPLES, HZ_PER_PIXEL, PARULA, SAMPLE_RATE, channel_mask, spectrogram_levels

CLASSES = ("noise", "NR", "LTE")
CHANNELS = standard_channels(CLASSES, HZ_PER_PIXEL)
GREY = {0: 0, 127: 1, 255: 2}


# ---- columns become bands -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "bands"),
    [
        ("..LLLLLL..", [("L", 2, 8)]),
        ("LLLL...LLLL", [("L", 0, 4), ("L", 7, 11)]),  # .72 MHz apart: two carriers
        ("LLLL..LLLL.", [("L", 0, 10)]),
        ("LLLLNNNLLLL", [("L", 0, 11)]),  # a sliver of the other technology
        ("LLLL.N.LLLL", [("L", 0, 11)]),
        ("LLLLLNNNNNN", [("L", 0, 5), ("N", 5, 11)]),
        ("LLLLLNNNN.LLLLL", [("L", 0, 5), ("N", 5, 9), ("L", 10, 15)]),
        ("..NLLLLLLNN.", [("L", 2, 11)]),
        (".LLL...NNN.", []),
        ("LL.LL", [("L", 0, 5)]),
        ("...........", []),
        ("LLLLLLLLLLL", [("L", 0, 11)]),
    ],
)
def test_columns_become_carriers(columns, bands):
    label = np.array([".NL".index(letter) for letter in columns])
    assert find_bands(label) == [(".NL".index(kind), first, stop) for kind, first, stop in bands]


SOME_CHANNELS = [
    (kind, width / HZ_PER_PIXEL, occupied / HZ_PER_PIXEL)
    for kind, width, occupied in ((2, 10e6, 9.015e6), (2, 5e6, 4.515e6), (1, 20e6, 18.36e6))
]


def power_of(text, db=15.0):
    """A column a letter: "." noise, "s" half of the rise, else `db` above it."""
    return np.array([1.0 if letter == "." else 10 ** (db / (20 if letter == "s" else 10)) for letter in text])


def test_a_band_is_cut_at_a_gap_between_two_standard_channels():
    text = "." * 10 + "L" * 38 + "." * 4 + "L" * 38 + "." * 10
    power = power_of(text)
    assert gaps(10 * np.log10(power), 10, 90) == [(48, 52)]
    (_, first, end), (_, start, last) = whole_bands([(1, 10, 90)], power, 1.0, SOME_CHANNELS)
    assert (first, last) == (10, 90) and abs(end - 48) <= 1 and abs(start - 52) <= 1


def test_a_selective_fade_is_no_gap_although_it_reaches_the_floor():
    fall = np.array([20, 19, 17, 15, 12, 9, 6, 3, 1, 0])
    rise = np.concatenate([np.full(28, 20), fall, fall[::-1], np.full(28, 20)]).astype(float)
    assert gaps(rise, 0, len(rise)) == []
    guard = np.concatenate([np.full(38, 20), [13, 0, 0, 13], np.full(38, 20)]).astype(float)
    assert len(gaps(guard, 0, len(guard))) == 1


def test_carriers_of_200_khz_are_told_from_a_wide_one_with_a_fade():
    narrow = power_of("." * 4 + "LL" + "." * 3 + "LLL" + "." * 2 + "L" + ".." + "LLL" + "." * 4, 25.0)
    assert widest_peak(narrow, 1.0) == 3
    assert widest_peak(power_of("." + "L" * 10 + "ssss" + "L" * 10 + ".", 25.0), 1.0) == 24
    assert widest_peak(power_of("." + "L" * 3 + ".", 8.0), 1.0) is None  # too weak to tell its edges


@pytest.mark.parametrize(
    "text",
    [
        "." * 10 + "N" * 20 + "." * 4 + "N" * 50 + "." * 10,  # no channel is 4.8 and 12 MHz wide: scheduling
        "." * 10 + "L" * 38 + "s" * 4 + "L" * 38 + "." * 10,  # a fade, no gap
        "." * 10 + "L" * 38 + "." + "L" * 38 + "." * 10,  # a single column is a notch
    ],
)
def test_what_is_no_gap_between_channels_is_left_whole(text):
    band = (1, 10, len(text) - 10)
    assert whole_bands([band], power_of(text), 1.0, SOME_CHANNELS) == [band]


def test_touching_pieces_of_one_carrier_are_one_band_and_neighbours_stay_two():
    one = power_of("." * 10 + "L" * 40 + "." * 10)
    assert whole_bands([(1, 10, 22), (2, 22, 50)], one, 1.0, SOME_CHANNELS) == [(2, 10, 50)]
    two = power_of("." * 10 + "L" * 20) * np.r_[np.ones(30)]
    two = np.concatenate([two, 10 * power_of("N" * 40 + "." * 10)])  # 10 dB stronger
    assert len(whole_bands([(2, 10, 30), (1, 30, 70)], two, 1.0, SOME_CHANNELS)) == 2


def test_strong_bands_that_the_network_calls_noise_are_found_but_neither_lines_nor_skirts():
    power = power_of("." * 20 + "X" * 12 + "." * 20 + "X" + "." * 20 + "L" * 20 + "s" * 2 + "." * 20)
    label = np.zeros(len(power), int)
    label[73:93] = 2
    ((first, stop),) = unclaimed(label, power, 1.0)
    assert abs(first - 20) <= 1 and abs(stop - 32) <= 1
    leaking = power_of("." * 20 + "L" * 40 + "." * 40, 60)
    leaking[62:75] = 1e2  # 40 dB below the carrier, 20 dB above the noise
    assert not unclaimed((leaking > 1e5).astype(int), leaking, 1.0)
    assert np.flatnonzero(lines(power)).tolist() == [52]


# ---- channels fitted to noise that is filtered to known widths ------------------------------------------------------


@cache
def noise_spectrum() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((FRAME_SAMPLES, 2), np.float32).view(np.complex64)[:, 0]


def frame(bands: list[tuple[float, float]], snr_db: float = 20) -> torch.Tensor:
    """Levels uint8 (256, 256) of Gaussian noise that is snr_db stronger in the bands, (lower, upper edge) in Hz."""
    spectrum = noise_spectrum().copy()
    hz = (np.arange(FRAME_SAMPLES) / FRAME_SAMPLES - 0.5) * SAMPLE_RATE
    for low, high in bands:
        spectrum[(low <= hz) & (hz < high)] *= 10 ** (snr_db / 20)
    iq = torch.fft.ifft(torch.fft.ifftshift(torch.from_numpy(spectrum))).numpy()
    return torch.from_numpy(spectrogram_levels(iq).copy())


def network(*bands: tuple[int, int, int, float]) -> torch.Tensor:
    """Logits (3, 256, 256) that call columns first .. end - 1 a class, by `odds` more likely than the other one."""
    logits = torch.tensor([8.0, 0.0, 0.0]).view(3, 1, 1).repeat(1, 256, 256)
    for kind, first, end, odds in bands:
        logits[:, :, first:end] = torch.tensor([0.0, 8.0, 8.0]).view(3, 1, 1)
        logits[kind, :, first:end] += odds
    return logits


def mask(technology: str, center_hz: float, bandwidth_hz: float) -> torch.Tensor:
    grey = channel_mask([{"technology": technology, "center_hz": center_hz, "bandwidth_hz": bandwidth_hz}])
    return torch.from_numpy(np.vectorize(GREY.get)(grey))


def test_standard_channels_hold_what_the_specifications_say():
    """TS 36.104 table 5.6-1 and TS 38.104 table 5.3.2-1, some rows."""
    in_hz = {(kind, round(width * 240e3), round(used * 240e3)) for kind, width, used in CHANNELS}
    assert {(2, 20_000_000, 18_015_000), (1, 20_000_000, 18_360_000), (1, 20_000_000, 19_080_000)} < in_hz
    assert {(2, 1_400_000, 1_095_000), (1, 50_000_000, 48_600_000), (1, 5_000_000, 3_960_000)} < in_hz
    assert len(in_hz) == 6 + 8 + 8


@pytest.mark.parametrize(
    ("technology", "bandwidth", "occupied"),
    [
        ("LTE", 20e6, 18.015e6),
        ("NR", 20e6, 18.36e6),
        ("NR", 20e6, 19.08e6),
        ("NR", 15e6, 14.22e6),
        ("LTE", 10e6, 9.015e6),
        ("NR", 10e6, 8.64e6),
        ("NR", 10e6, 9.36e6),
        ("NR", 5e6, 3.96e6),
    ],
)
def test_the_width_tells_technology_and_edges_where_the_network_is_unsure(technology, bandwidth, occupied):
    center = 3.21e6
    levels = frame([(center - occupied / 2, center + occupied / 2)])
    truth = mask(technology, center, bandwidth)
    columns = truth[0].nonzero().flatten()
    wrong = 3 - CLASSES.index(technology)
    guess = network((wrong, int(columns[0]) + 2, int(columns[-1]) + 3, 0.4))  # two columns too high, a little wrong
    assert (guess.argmax(0) == truth).float().mean() < 0.95
    assert (fit_channels(guess, levels, CHANNELS) == truth).float().mean() > 0.99


@pytest.mark.parametrize("snr_db", [3, 10, 30])
def test_edges_hold_for_weak_and_strong_carriers(snr_db):
    levels = frame([(-9e6, 9.015e6)], snr_db)
    labels = fit_channels(network((2, 84, 172, 1.0)), levels, CHANNELS)
    assert (labels == mask("LTE", 0, 20e6)).float().mean() > 0.99


def test_a_sure_network_keeps_its_technology():
    levels = frame([(-9.54e6, 9.54e6)])  # as wide as NR
    labels = fit_channels(network((2, 86, 170, 12.0)), levels, CHANNELS)
    assert set(labels.unique().tolist()) == {0, 2}


def test_a_carrier_wider_than_its_technology_can_be_is_the_other_one():
    """18.015 MHz are the most of one LTE channel; noise and fading make a band narrower, not wider."""
    for half, width in ((9.54e6, 20e6), (11.97e6, 25e6)):
        columns = mask("NR", 0, width)[0].nonzero().flatten()
        guess = network((2, int(columns[0]), int(columns[-1]) + 1, 3.0))
        labels = fit_channels(guess, frame([(-half, half)]), CHANNELS)
        assert (labels == mask("NR", 0, width)).float().mean() > 0.99


def test_a_carrier_that_fading_has_narrowed_is_not_taken_for_a_narrower_one():
    levels = frame([(-9e6, 8e6)])  # LTE of 20 MHz without its uppermost MHz; NR of 20 MHz lacks more, of 15 MHz is less
    guess = network((2, 86, 170, 0.4))
    assert torch.equal(fit_channels(guess, levels, CHANNELS), guess.argmax(0))


@pytest.mark.parametrize(
    ("bands", "guess"),
    [
        ([(-4e6, 2.5e6)], (1, 86, 170, 1.0)),  # a sparsely scheduled carrier: no edge where the network has it
        ([(-4e6, 2.5e6)], (1, 111, 139, 1.0)),  # 6.5 MHz are no channel's width
        ([(-20e6, -11e6), (-10e6, -1e6), (0, 9e6)], (2, 43, 168, 3.0)),  # three side by side are not one of 30 MHz
        ([(-12e6, 1.5e6), (3e6, 12e6)], (2, 77, 180, 3.0)),  # 15 and 10 MHz of LTE, as wide as 25 MHz of NR
        ([(-29.9e6, -11.885e6)], (1, 0, 83, 0.1)),  # reaches beyond the picture: that is where a filter ends it
        ([], (2, 100, 140, 0.5)),  # nothing there that rises above the noise
    ],
)
def test_what_is_no_single_whole_channel_stays_as_it_was(bands, guess):
    logits = network(guess)
    assert torch.equal(fit_channels(logits, frame(bands), CHANNELS), logits.argmax(0))


def test_a_channel_that_ends_four_columns_before_the_pictures_edge_is_whole_though_the_network_goes_on_to_the_edge():
    low = -30.72e6 + 4 * HZ_PER_PIXEL
    levels = frame([(low + 0.9e6, low + 0.9e6 + 23.4e6)], 40)  # NR of 25 MHz, 65 resource blocks of 30 kHz
    labels = fit_channels(network((1, 0, 111, 3.0)), levels, CHANNELS)
    assert (labels == mask("NR", low + 12.5e6, 25e6)).float().mean() > 0.99


def test_pixels_that_the_network_calls_noise_inside_a_band_stay_noise_where_no_channel_fits():
    logits = network((1, 86, 170, 1.0))
    logits[0, :40] += 20  # the carrier came late
    labels = fit_channels(logits, frame([(-4e6, 2.5e6)]), CHANNELS)
    assert not labels[:40].any() and labels[40:, 100].eq(1).all()


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_neighbour_keeps_its_columns(mirrored):
    """The LTE channel would reach columns 86 to 169, some of which the network is sure are NR's."""
    sign = -1 if mirrored else 1
    levels = frame([(-9.0075e6, 9.0075e6), (sign * 12e6 - 2e6, sign * 12e6 + 2e6)])
    guess = [(1, 42, 91, 12.0), (2, 91, 172, 3.0)] if mirrored else [(2, 84, 165, 3.0), (1, 165, 214, 12.0)]
    labels = fit_channels(network(*guess), levels, CHANNELS)
    (_, low, high, _) = next(band for band in guess if band[0] == 1)
    assert labels[:, low:high].eq(1).all() and labels[0, 92:164].eq(2).all()


def test_channels_side_by_side_each_get_their_edges():
    levels = frame([(-9e6, 9.015e6), (11e6, 20.015e6)])
    logits = network((2, 83, 172, 1.0), (2, 172, 214, 1.0))
    logits[0, :, 170:173] += 20  # the network parts them by a few columns of noise
    labels = fit_channels(logits, levels, CHANNELS)
    truth = mask("LTE", 0, 20e6) + mask("LTE", 15.5e6, 10e6)
    assert (labels == truth.clamp(max=2)).float().mean() > 0.98


def test_a_batch_is_fitted_frame_by_frame_and_only_in_known_colours():
    levels = torch.stack([frame([(-9e6, 9.015e6)]), frame([(-9.54e6, 9.54e6)])])
    logits = torch.stack([network((1, 86, 170, 0.3))] * 2)
    pictures = torch.from_numpy(PARULA)[levels.long()].permute(0, 3, 1, 2)  # (2, 3, 256, 256)

    def levels_of(images):
        return augment.as_levels(images, torch.from_numpy(PARULA))

    predict = predictor(lambda images: logits, levels_of, CHANNELS)
    labels = predict(pictures)
    assert labels.dtype == torch.int64
    assert [int(labels[i, 0, 128]) for i in range(2)] == [2, 1]
    for i in range(2):
        assert torch.equal(labels[i], fit_channels(logits[i], levels[i], CHANNELS))
    assert torch.equal(predict(255 - pictures), logits.argmax(1))
    mixed = predict(torch.stack([pictures[0], 255 - pictures[1]]))  # one in other colours does not decide for the other
    assert torch.equal(mixed, torch.stack([labels[0], logits[1].argmax(0)]))
