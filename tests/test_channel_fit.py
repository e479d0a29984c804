"""Standard channels fitted to a network's bands, on noise filtered to known widths. Seconds."""

import numpy as np
import pytest
import torch

from data import augment
from data.lte_nr import standard_channels
from data.spectrogram import FRAME_SAMPLES, HZ_PER_PIXEL, PARULA, SAMPLE_RATE, channel_mask, spectrogram_levels
from utils.bands import fit_channels, predictor

CLASSES = ("noise", "NR", "LTE")
CHANNELS = standard_channels(CLASSES, HZ_PER_PIXEL)
GREY = {0: 0, 127: 1, 255: 2}


def frame(bands: list[tuple[float, float]], snr_db: float = 20, seed: int = 0) -> torch.Tensor:
    """Levels uint8 (256, 256) of Gaussian noise that is snr_db stronger in the bands, (lower, upper edge) in Hz."""
    rng = np.random.default_rng(seed)
    spectrum = rng.standard_normal((FRAME_SAMPLES, 2), np.float32).view(np.complex64)[:, 0]
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
