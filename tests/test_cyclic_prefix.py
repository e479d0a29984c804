"""A prefix is found where there is one, and nowhere else.  Run: pytest tests/test_cyclic_prefix.py"""

from pathlib import Path

import numpy as np
import pytest

from data.cyclic_prefix import ENOUGH, FrameSpectrum, band_samples, cyclic_prefix, frame_spectrum
from data.radio import multipath
from experiments.prefix_emissions import EMISSIONS, white
from tests.conftest import lte_carrier, nr_carrier, resampled

CAPTURES = Path(__file__).resolve().parents[2] / "shared" / "data" / "captures"
LAGS = (1 / 15e3, 1 / 30e3, 1 / 60e3)


def evidence(samples, rate, snr_db=20.0, low=None, high=None, rng=None):
    """cyclic_prefix of samples with noise; the SNR is the mean power's against the noise in the whole capture."""
    rng = rng or np.random.default_rng(0)
    samples = samples / np.sqrt(np.mean(np.abs(samples) ** 2))
    noise = 10 ** (-snr_db / 10)
    spectrum = frame_spectrum(samples + white(rng, len(samples)) * np.sqrt(noise), rate)
    return cyclic_prefix(band_samples(spectrum, low or -rate / 2, high or rate / 2), noise / rate)


def ofdm(rng, spacing, prefixes, symbols, n_fft=256, used=200):
    """Random QPSK on `used` subcarriers; prefixes: samples of the prefix of each symbol, again and again."""
    bins = np.zeros((symbols, n_fft), complex)
    bins[:, 1 : used + 1] = rng.choice([-1, 1], (symbols, used)) + 1j * rng.choice([-1, 1], (symbols, used))
    bodies = np.fft.ifft(bins, axis=1)
    lengths = np.resize(prefixes, symbols)
    parts = [np.r_[body[n_fft - length :], body] for body, length in zip(bodies, lengths, strict=True)]
    return np.concatenate(parts), n_fft * spacing


def lte(load=0.0, bandwidth=5e6, **options):
    wave = lte_carrier(bandwidth, 7, load, seed=1, control_load=0.1, **options)
    return wave.samples, wave.sample_rate


def nr(scs, load=0.0, bandwidth=10e6, **options):
    wave = nr_carrier(bandwidth, scs, 7, load, seed=2, ssb_case="A" if scs == 15e3 else "C", **options)
    return wave.samples, wave.sample_rate


CARRIERS = {
    "LTE idle": (15e3, lambda: lte()),
    "LTE half loaded": (15e3, lambda: lte(0.5)),
    "LTE full": (15e3, lambda: lte(1.0)),
    "LTE MBSFN": (15e3, lambda: lte(mbsfn=(1, 2, 3, 6, 7, 8), cfi=1)),
    "LTE two antenna ports": (15e3, lambda: lte(0.3, ports=2)),
    "NR 15 kHz idle": (15e3, lambda: nr(15e3)),
    "NR 15 kHz full, DM-RS": (15e3, lambda: nr(15e3, 1.0, dmrs_symbols=(2, 5, 8, 11))),
    "NR 30 kHz idle": (30e3, lambda: nr(30e3)),
    "NR 30 kHz full, DM-RS": (30e3, lambda: nr(30e3, 1.0, dmrs_symbols=(2, 5, 8, 11))),
    "NR 30 kHz TDD": (30e3, lambda: nr(30e3, 0.5, downlink_symbols=np.resize([14, 14, 14, 6, 0], 80))),
} | {f"LTE TDD {i}": (15e3, lambda i=i: lte(bandwidth=1.4e6, tdd=i, cfi=2)) for i in range(7)}


@pytest.mark.parametrize("name", CARRIERS)
def test_every_kind_of_carrier_shows_its_subcarrier_spacing(name):
    spacing, make = CARRIERS[name]
    found = evidence(*make())
    assert (found.outcome, found.spacing_hz, found.extended) == ("prefix", spacing, False)


@pytest.mark.parametrize("spacing", [15e3, 30e3, 60e3])
def test_a_plain_ofdm_signal_shows_its_spacing(spacing):
    per_block = round(7 * spacing / 15e3)
    prefixes = [18 + round(256 * spacing / 1.92e6), *[18] * (per_block - 1)]  # 16/30.72 microseconds more
    found = evidence(*ofdm(np.random.default_rng(0), spacing, prefixes, 20 * per_block))
    assert (found.outcome, found.spacing_hz, found.extended) == ("prefix", spacing, False)


def test_an_extended_prefix_is_found_and_told_from_a_normal_one():
    found = evidence(*ofdm(np.random.default_rng(0), 15e3, [64], 240))
    assert (found.outcome, found.spacing_hz, found.extended) == ("prefix", 15e3, True)


@pytest.mark.parametrize("symbol", [0.9, 0.97, 1.03, 1.1])
def test_ofdm_with_other_symbols_shows_no_prefix(symbol):
    found = evidence(*ofdm(np.random.default_rng(0), 15e3 / symbol, [18], 280))
    assert (found.outcome, found.spacing_hz) == ("none", None)


@pytest.mark.parametrize("profile", ["EVA", "ETU"])
def test_fading_and_a_wrong_clock_do_not_hide_a_prefix(profile):
    samples, rate = lte(0.3)
    faded = multipath(samples, rate, profile, 70.0, np.random.default_rng(3))
    for error in (-50e-6, 50e-6):
        assert evidence(faded, rate * (1 + error), snr_db=10).spacing_hz == 15e3


def test_the_middle_of_a_wide_carrier_is_enough_and_a_strong_dc_line_does_not_hide_it():
    samples, rate = lte(0.3, 20e6)
    keep = round(1.92e6 * 0.04)
    slice_ = resampled(samples, keep)
    slice_ = slice_ / slice_.std()
    drift = 10 * np.exp(1j * np.linspace(0, 3, keep))  # 20 dB above the carrier
    assert evidence(slice_ + drift, 1.92e6, snr_db=40).spacing_hz == 15e3


def test_two_carriers_whose_bands_touch_show_their_own_spacing():
    (first, rate), (second, _) = lte(0.5, 10e6), nr(30e3, 0.5)
    clock = np.arange(len(first)) / rate
    turn = np.exp(2j * np.pi * 3.5e6 * clock)
    both = first / first.std() / turn + second / second.std() * turn
    assert evidence(both, rate, low=-7.5e6, high=-0.5e6).spacing_hz == 15e3
    assert evidence(both, rate, low=0.5e6, high=7.5e6).spacing_hz == 30e3


def test_subcarrier_offset_and_slot_start_are_measured():
    samples, rate = lte(0.5)
    clock = np.arange(len(samples)) / rate
    moved = np.roll(samples, round(123e-6 * rate)) * np.exp(2j * np.pi * (1.2e6 + 4e3) * clock)
    found = evidence(moved, rate, low=-1e6, high=3e6)
    assert found.offset_hz == pytest.approx(4e3, abs=100)  # 1.2 MHz is a multiple of 15 kHz
    assert found.slot_start_s == pytest.approx(123e-6, abs=1e-6)


@pytest.mark.parametrize("name", EMISSIONS)
def test_other_emissions_and_receiver_events_show_no_prefix(name):
    for draw in range(3):
        rng = np.random.default_rng([7, draw])
        found = evidence(EMISSIONS[name](rng, 5e6, 60_000), 5e6, snr_db=rng.uniform(5, 30), rng=rng)
        assert found.spacing_hz is None


@pytest.mark.parametrize("period", [*LAGS, 1 / 14e3, 1 / 28e3, 0.5e-3, 1e-3, 64e-6, 63.556e-6])
def test_signals_with_the_period_of_lag_symbol_or_slot_show_no_prefix(period):
    rate, n = 5e6, 100_000
    phase = np.arange(n) / rate / period % 1
    noise = white(np.random.default_rng(4), 4096)[(phase * 4096).astype(int)]
    signals = {
        "chirp": np.exp(2j * np.pi * np.cumsum((phase - 0.5) * 4e6) / rate),
        "slow chirp": np.exp(2j * np.pi * np.cumsum((phase - 0.5) * 1e6) / rate),
        "pulses": (phase < 0.07).astype(complex),
        "short pulses": (phase * period < 1e-6).astype(complex),
        "the same noise again and again": noise,
        "noise, gated": white(np.random.default_rng(5), n) * (phase < 0.5),
    }
    claims = {name: found for name, x in signals.items() if (found := evidence(x, rate)).spacing_hz}
    assert not claims


def test_no_prefix_is_proof_only_with_enough_energy_and_a_known_floor():
    rng = np.random.default_rng(6)
    wifi = EMISSIONS["other OFDM"](rng, 10e6, 400_000)
    assert evidence(wifi, 10e6).outcome == "none" and evidence(wifi, 10e6).energy > ENOUGH
    assert evidence(wifi[:5000], 10e6).outcome == "unknown"  # half a millisecond
    assert evidence(wifi[:9000], 10e6).outcome == "unknown"
    assert evidence(wifi, 10e6, snr_db=-10).outcome == "unknown"
    band = band_samples(frame_spectrum(wifi, 10e6), -5e6, 5e6)
    assert cyclic_prefix(band).outcome == "unknown"


@pytest.mark.parametrize("snr_db", [0, 10, 30])
def test_a_carrier_that_sends_one_block_in_20_ms_is_never_taken_for_something_else(snr_db):
    wave = nr(30e3, bandwidth=20e6, ssb_blocks=(1,))
    assert evidence(*wave, snr_db=snr_db).outcome in ("prefix", "unknown")


def test_zeros_and_silence_prove_nothing():
    silent = band_samples(frame_spectrum(np.zeros(200_000), 10e6), -4e6, 4e6)
    assert cyclic_prefix(silent, 0.0).outcome == "unknown"
    brief = band_samples(frame_spectrum(np.ones(100), 10e6), -4e6, 4e6)
    assert cyclic_prefix(brief, 0.0).outcome == "unknown"
    samples, rate = lte(0.5)
    samples = samples.copy()
    samples[50_000:90_000] = 0
    assert evidence(samples, rate).spacing_hz == 15e3


def test_a_glitch_a_gain_step_and_a_spur_change_little():
    samples, rate = lte(0.5)
    clean = evidence(samples, rate).contrast[15e3]
    events = [samples.copy() for _ in range(3)]
    events[0][12345] = 1e6
    events[1][len(samples) // 2 :] *= 4
    events[2] += 30 * samples.std() * np.exp(2j * np.pi * 1.0007e6 / rate * np.arange(len(samples)))
    for event in events:
        band = band_samples(frame_spectrum(event, rate), -2.25e6, 2.25e6)
        assert cyclic_prefix(band).contrast[15e3] > 0.6 * clean


def test_sub_bands_hold_what_lies_in_their_part_of_the_spectrum():
    rate, n = 15.36e6, 614_400
    tone = 3 * np.exp(2j * np.pi * 4.02e6 / rate * np.arange(n))
    noise = 0.1 * white(np.random.default_rng(8), n)
    band = band_samples(frame_spectrum(tone + noise, rate), -6e6, 6e6)
    assert band.rate % 60e3 == 0 and band.samples.shape == (6, round(band.rate * 0.04))
    power = np.mean(np.abs(band.samples) ** 2, 1)
    np.testing.assert_allclose(power[:5], 0.01 * band.rate / rate, rtol=0.05)  # a sixth of the noise each
    # The tone, 39 dB above all that noise, is pressed down to the noise of its cell of 20 kHz and 3 dB more.
    assert power[5] < 1.1 * power[0]


def test_bands_over_the_capture_s_middle_and_edges_are_cut_where_they_should_be():
    lines = np.full(400_000, 0.1, np.complex64)  # 40 ms: 25 Hz a line
    lines[[12_000, -12_000]] = 2  # +-300 kHz
    band = band_samples(FrameSpectrum(lines, 10e6), -480e3, 480e3)
    rows = np.abs(np.fft.fft(band.samples[0]))
    assert np.flatnonzero(rows > 5 * np.median(rows)).tolist() == [180e3 / 25, 780e3 / 25]


def test_a_band_outside_the_capture_and_bad_samples_are_refused():
    spectrum = frame_spectrum(white(np.random.default_rng(0), 100_000), 10e6)
    with pytest.raises(ValueError, match="480000 Hz"):
        band_samples(spectrum, 4.8e6, 9e6)
    with pytest.raises(ValueError, match="NaN"):
        frame_spectrum(np.array([1, np.nan, 2]), 10e6)
    with pytest.raises(ValueError, match="no samples"):
        frame_spectrum(np.array([]), 10e6)


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="other people's captures are not here")
@pytest.mark.parametrize(
    "name, rate, kind, band, outcome",
    [
        ("lte_1815.3MHz_19.2Msps_ci8.bin", 19.2e6, "i1", (-9e6, 9e6), "prefix"),
        ("lte_1871.75MHz_19.2Msps_ci8.bin", 19.2e6, "i1", (-9.6e6, 3.28e6), "prefix"),
        ("lte_tdd_2565MHz_1.92Msps_cu8.bin", 1.92e6, "u1", (-0.96e6, 0.96e6), "prefix"),
        ("lte_fdd_1860MHz_1.92Msps_cu8.bin", 1.92e6, "u1", (-0.96e6, 0.96e6), "unknown"),
        ("wifi_11a_6mbps_20Msps_ci16_le.bin", 20e6, "<i2", (-8.5e6, 8.5e6), "none"),
        ("wifi_11n_6.5mbps_20Msps_ci16_le.bin", 20e6, "<i2", (-8.5e6, 8.5e6), "none"),
        ("adsb_1090MHz_2Msps_cu8.bin", 2e6, "u1", (-1e6, 1e6), "none"),
    ],
)
def test_captures_of_other_receivers(name, rate, kind, band, outcome):
    from data.recording import noise_floor

    numbers = np.fromfile(CAPTURES / name, kind, count=round(0.08 * rate)).astype(np.float32)
    samples = (numbers - (127.5 if kind == "u1" else 0)).view(np.complex64)
    found = cyclic_prefix(band_samples(frame_spectrum(samples, rate), *band), noise_floor(samples, rate)[0])
    assert (found.outcome, found.spacing_hz) == (outcome, 15e3 if outcome == "prefix" else None)
