"""What is neither LTE nor NR: bandwidth and timing after the standards, faults of receivers, labels of OTHER frames.

Run: python -m pytest tests/test_others.py
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from data import other_frames
from data.emission import Emission, active_power
from data.frames import labelled_frame
from data.other_frames import other_frame, pixel_power
from data.others import EMISSIONS, EVENTS, KINDS, MEASURED_ONLY, TRAINED
from data.radio import Band
from data.receiver_events import find_events
from data.spectrogram import FRAME_SAMPLES, SAMPLE_RATE, channel_mask, shown_power


def drawn(kind, wanted=lambda facts: True, **given):
    """The first emission of a kind whose facts are as wanted and equal to those given."""
    for seed in range(200):
        emission = EMISSIONS[kind](np.random.default_rng([seed, 77]))
        facts = emission.facts
        if wanted(facts) and all(facts[name] == value for name, value in given.items()):
            return emission
    raise AssertionError(f"no {kind} with {given}")


def share_within(emission, low_hz, high_hz):
    power = np.abs(np.fft.fft(emission.samples)) ** 2
    hz = np.fft.fftfreq(len(power), 1 / emission.sample_rate)
    return power[(hz >= low_hz) & (hz <= high_hz)].sum() / power.sum()


def envelope(emission, seconds=2e-6):
    width = max(1, round(seconds * emission.sample_rate))
    return np.sqrt(np.convolve(np.abs(emission.samples) ** 2, np.ones(width) / width, "same"))


def runs(on, rate):
    """Start and length in seconds of each stretch of True that begins and ends inside."""
    edges = np.flatnonzero(np.diff(on.astype(np.int8)))
    if on[0]:
        edges = edges[1:]
    pairs = edges[: len(edges) // 2 * 2].reshape(-1, 2)
    return [(start / rate, (stop - start) / rate) for start, stop in pairs]


def likeness(samples, lag):
    """Correlation of a signal with itself `lag` samples later, 0 to 1."""
    first, second = samples[:-lag], samples[lag:]
    return np.abs(np.vdot(first, second)) / np.sqrt(np.vdot(first, first).real * np.vdot(second, second).real)


# bandwidth


QUICK = ("Wi-Fi", "802.15.4", "LoRa", "FSK remote", "GSM", "NB-IoT", "DAB", "AM", "radar pulses", "radar chirps",
         "ADS-B", "jammer", "drone")  # fmt: skip
FLAT = ("Wi-Fi", "WCDMA", "DVB-T", "DAB", "DVB-C", "ATSC", "NB-IoT", "drone", "jammer")


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in EMISSIONS])
def test_an_emission_is_40_ms_long_and_fills_the_band_that_it_states(kind):
    emission = EMISSIONS[kind](np.random.default_rng(1))
    assert emission.samples.dtype == np.complex64 and np.isfinite(emission.samples).all()
    assert emission.sample_rate * 0.04 == pytest.approx(len(emission.samples))
    assert share_within(emission, emission.low_hz, emission.high_hz) > 0.985
    if kind in FLAT:  # the band is no wider than needed
        middle, half = (emission.low_hz + emission.high_hz) / 2, (emission.high_hz - emission.low_hz) / 2
        assert share_within(emission, middle - 0.8 * half, middle + 0.8 * half) < 0.985


def test_the_same_random_numbers_give_the_same_emission():
    for kind in ("Wi-Fi", "GSM"):
        first, second = (EMISSIONS[kind](np.random.default_rng(1)) for _ in range(2))
        assert np.array_equal(first.samples, second.samples) and first.facts == second.facts


@pytest.mark.slow
def test_at_the_frames_rate_the_band_is_the_same_and_61_mhz_at_most():
    for kind in ("DAB", "Bluetooth"):
        emission = EMISSIONS[kind](np.random.default_rng(3))
        wide = Emission(emission.at_frame_rate(), emission.low_hz, emission.high_hz)
        assert wide.samples.shape == (FRAME_SAMPLES,) and wide.sample_rate == SAMPLE_RATE
        assert share_within(wide, wide.low_hz, wide.high_hz) > 0.985
    wifi = drawn("Wi-Fi", width_hz=80e6)
    assert wifi.sample_rate == pytest.approx(80e6) and wifi.at_frame_rate().shape == (FRAME_SAMPLES,)


# timing, measured on the samples


def test_wifi_begins_with_ten_short_symbols_and_waits_for_sifs_at_least():
    emission = drawn("Wi-Fi", lambda facts: facts["frames"][0][1] > 100e-6, width_hz=20e6)
    rate = emission.sample_rate
    start, seconds = emission.facts["frames"][0]
    first = round(start * rate)
    assert not emission.samples[:first].any() and emission.samples[first : first + 5].any()
    short = emission.samples[first : first + 160]  # 8 us, period .8 us
    assert likeness(short, 16) > 0.999 and likeness(emission.samples[first + 400 : first + 560], 16) < 0.9
    long = emission.samples[first + 192 : first + 320]  # two symbols of 3.2 us
    assert np.allclose(long[:64], long[64:], atol=1e-5) and abs(np.corrcoef(short[:64], long[:64])[0, 1]) < 0.5
    gaps = runs(emission.samples == 0, rate)
    assert min(length for _, length in gaps if length > 1e-6) >= emission.facts["sifs_s"] - 1 / rate
    busy = runs(np.convolve(np.abs(emission.samples), np.ones(20), "same") > 0, rate)  # some single samples are 0
    assert busy[0][1] == pytest.approx(seconds, abs=1.5e-6) and max(length for _, length in busy) < 5.484e-3


def test_bluetooth_sends_in_slots_of_625_microseconds_one_megahertz_wide():
    emission = drawn("Bluetooth", lambda facts: len(facts["packets"]) > 10)
    busy = runs(envelope(emission) > 0.03, SAMPLE_RATE)
    lengths = np.array([length for _, length in busy])
    assert len(lengths) > 5 and (np.abs(lengths[:, None] - [366e-6, 1622e-6, 2870e-6]).min(1) < 6e-6).mean() > 0.8
    starts = np.array([start for start, _ in busy]) % 625e-6
    assert (np.minimum(starts, 625e-6 - starts) < 6e-6).mean() > 0.8
    start, seconds, offset = emission.facts["packets"][3]
    part = emission.samples[round(start * SAMPLE_RATE) :][: round(seconds * SAMPLE_RATE)]
    part = Emission(part, 0, 0)
    hz = np.fft.fftfreq(len(part.samples), 1 / SAMPLE_RATE)
    power = np.abs(np.fft.fft(part.samples)) ** 2
    assert power[np.abs(hz - offset) < 0.5e6].sum() > 0.9 * power.sum()


def test_gsm_bursts_last_546_of_577_microseconds():
    emission = drawn("GSM", lambda facts: not facts["hopping"] and facts["used_hz"][1:])
    rate, lengths = emission.sample_rate, []
    for place in emission.facts["used_hz"]:
        spectrum = np.fft.fft(emission.samples)
        hz = np.fft.fftfreq(len(spectrum), 1 / rate)
        level = np.abs(np.fft.ifft(spectrum * (np.abs(hz - place) < 90e3)))
        level = np.convolve(level, np.ones(round(8e-6 * rate)), "same")
        lengths += [length for _, length in runs(level > level.max() / 5, rate) if length > 100e-6]
    single = [length for length in lengths if length < 700e-6]
    assert emission.facts["slot_s"] == pytest.approx(15 / 26e3) and len(single) > 3
    assert np.median(single) == pytest.approx(148 * 48 / 13e6, abs=25e-6)


@pytest.mark.parametrize("kind", ["DVB-T", "DAB"])
def test_ofdm_symbols_end_as_they_begin(kind):
    emission = drawn(kind, lambda facts: facts.get("guard_s", 1) > 20e-6 or facts.get("null_s"))
    useful, whole = emission.facts["useful_s"], emission.facts["symbol_s"]
    lag = round(useful * emission.sample_rate)
    expected = (whole - useful) / whole
    assert likeness(emission.samples, lag) == pytest.approx(expected, abs=0.06)
    assert likeness(emission.samples, round(0.9 * lag)) < 0.05
    product = emission.samples[:-lag] * emission.samples[lag:].conj()  # its strength repeats with the symbols
    strength = np.abs(np.fft.fft(product - product.mean()))[1 : int(0.04 / whole * 1.5)]
    assert np.abs(1 + np.argmax(strength) - 0.04 / whole) < 1.5


def test_dab_is_silent_for_1297_microseconds():
    emission = EMISSIONS["DAB"](np.random.default_rng(38))
    silent = [length for _, length in runs(envelope(emission, 20e-6) < 0.02, emission.sample_rate)]
    assert silent == [pytest.approx(1.297e-3, abs=30e-6)]


def test_wcdma_repeats_its_synchronisation_in_each_slot_and_keeps_its_pilot():
    emission = drawn("WCDMA", carriers=1)
    slot = emission.sample_rate / 1500
    assert slot == pytest.approx(round(slot))
    at_slot, beside = (likeness(emission.samples, round(slot) + more) for more in (0, 40))
    assert at_slot > 3 * beside
    assert (envelope(emission, 100e-6)[2000:-2000] > 0.1 * np.abs(emission.samples).mean()).all()


def test_lora_chirps_with_the_slope_of_its_spreading_factor():
    emission = drawn("LoRa", lambda facts: facts["width_hz"] == 125e3)
    width, symbol = emission.facts["width_hz"], emission.facts["symbol_s"]
    # Several devices overlap: a slope is found by multiplying with the opposite chirp.
    clock = np.arange(round(symbol * emission.sample_rate)) / emission.sample_rate

    def sharpness(slope):
        part = emission.samples[: len(clock)] * np.exp(-1j * np.pi * slope * clock**2)
        power = np.abs(np.fft.fft(part)) ** 2
        return power.max() / power.mean()

    assert sharpness(width / symbol) > 5 * sharpness(2 * width / symbol)
    assert sharpness(width / symbol) > 5 * sharpness(0)


def test_radar_pulses_and_chirps_have_their_length_period_and_slope():
    emission = drawn("radar pulses", lambda facts: 5e-6 < facts["pulse_s"] and not facts["staggered"])
    amplitude = np.abs(emission.samples)
    measured = runs(amplitude > 0.02, emission.sample_rate)
    assert np.median([length for _, length in measured]) == pytest.approx(emission.facts["pulse_s"], rel=0.3)
    periods = np.diff([start for start, _ in measured])
    assert np.median(periods) == pytest.approx(emission.facts["period_s"], rel=0.01)

    for kind, least, most in (("radar chirps", 500e-6, 40e-3), ("fast chirps", 20e-6, 150e-6)):
        assert all(least <= EMISSIONS[kind](np.random.default_rng(i)).facts["period_s"] <= most for i in range(5))
    emission = drawn("radar chirps", lambda facts: 1e-4 < facts["chirp_s"] < 5e-3, shape="up")
    turns = np.angle(emission.samples[1:] * emission.samples[:-1].conj()) / 2 / np.pi * emission.sample_rate
    slope = np.median(np.diff(turns[np.abs(emission.samples[1:]) > 0.9])) * emission.sample_rate
    assert slope == pytest.approx(emission.facts["width_hz"] / emission.facts["chirp_s"], rel=0.02)


def test_what_repeats_has_the_stated_period():
    emission = drawn("jammer", lambda facts: facts["period_s"] < 50e-6)
    assert likeness(emission.samples, round(emission.facts["period_s"] * emission.sample_rate)) > 0.9
    emission = drawn("comb", gated=False)
    lines = np.abs(np.fft.fft(emission.samples))
    lines = np.sort(np.fft.fftfreq(len(lines), 1 / emission.sample_rate)[lines > 1e-2 * lines.max()])
    assert np.diff(lines) == pytest.approx(emission.facts["spacing_hz"])
    emission = EMISSIONS["television"](np.random.default_rng(0))
    level = np.abs(emission.samples)
    level = level - level.mean()
    lags = np.arange(round(610e-6 * emission.sample_rate), round(660e-6 * emission.sample_rate))  # ten lines
    best = lags[np.argmax([np.dot(level[:-lag], level[lag:]) for lag in lags])]
    assert best / emission.sample_rate / 10 == pytest.approx(emission.facts["line_s"], abs=0.1e-6)
    emission = EMISSIONS["NB-IoT"](np.random.default_rng(0))
    assert likeness(emission.samples, 128) > 0.04 > likeness(emission.samples, 100)  # of 15 kHz, prefix of 7%


def test_messages_of_aircraft_and_bursts_of_a_drone_last_as_long_as_they_do():
    emission = EMISSIONS["ADS-B"](np.random.default_rng(0))
    messages = emission.facts["messages"]
    alone = [m for m in messages if sum(abs(other[0] - m[0]) < 200e-6 for other in messages) == 1]
    start, seconds = next(m for m in alone if m[1] > 100e-6 and m[0] < 39e-3)
    assert seconds == pytest.approx(120e-6, abs=1e-6)
    rate = emission.sample_rate
    first = np.abs(emission.samples[round((start - 0.2e-6) * rate) : round((start + 8e-6) * rate)])
    centres = [np.mean(np.array(run)[0] + run[1] / 2) for run in runs(first > first.max() / 2, rate)]
    assert np.diff(centres[:4]) == pytest.approx([1e-6, 2.5e-6, 1e-6], abs=0.1e-6)  # the preamble
    emission = drawn("drone", period_s=600e-3)
    measured = [length for _, length in runs(emission.samples != 0, emission.sample_rate)]
    assert measured == [pytest.approx(643e-6, abs=10e-6)]


# events in the receiver: what data.receiver_events, written for recordings, makes of them


@pytest.mark.parametrize("kind, found", [("gain step", "gain"), ("dropped samples", "dropped"),
                                         ("glitches", "glitch"), ("saturation", "saturated")])  # fmt: skip
def test_events_are_what_the_detector_of_recordings_finds(kind, found):
    rng = np.random.default_rng(4)
    noise = rng.standard_normal((FRAME_SAMPLES, 2), np.float32).view(np.complex64)[:, 0]
    kept = noise.copy()
    changed = EVENTS[kind](noise, np.random.default_rng(3 if kind == "gain step" else 6))
    assert np.array_equal(noise, kept) and changed.dtype == np.complex64 and changed.shape == noise.shape
    assert {event.kind for event in find_events(changed, SAMPLE_RATE)} == {found}


def test_shoulders_fall_slowly_and_ramps_drift():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((FRAME_SAMPLES, 2), np.float32).view(np.complex64)[:, 0]
    shaped = EVENTS["shoulders"](noise, np.random.default_rng(1))
    level = 10 * np.log10((np.abs(np.fft.fftshift(np.fft.fft(shaped))) ** 2).reshape(256, -1).mean(1))
    assert level.max() - level.min() > 5 and np.abs(np.diff(level)).max() < 3  # dB in a column of 240 kHz
    ramp = EVENTS["gain ramp"](noise, np.random.default_rng(1))
    level = 10 * np.log10((np.abs(ramp) ** 2).reshape(400, -1).mean(1))
    assert 2 < level.max() - level.min() < 31


def test_power_while_active_is_that_of_the_bursts():
    samples = np.zeros(32_000, np.complex64)
    samples[3200:6400] = 3
    assert active_power(samples) == pytest.approx(9)


# frames


def test_contradictions_are_measured_and_never_drawn(monkeypatch):
    steady_and_flat = {"plateau", "WCDMA", "DVB-T", "ATSC", "DVB-C", "DVB-S", "DAB", "jammer", "fast chirps"}
    steady_and_flat |= {"FM video", "shoulders"}
    assert {"drone", "noise pulses"} | steady_and_flat == MEASURED_ONLY and set(TRAINED) | MEASURED_ONLY == set(KINDS)
    asked = []
    monkeypatch.setattr(other_frames, "_add_emission", lambda rng, band, kind, carriers: asked.append(kind) or {})
    monkeypatch.setattr(
        other_frames, "EVENTS", {kind: lambda iq, rng, kind=kind: asked.append(kind) or iq for kind in EVENTS}
    )
    monkeypatch.setattr(other_frames, "Band", lambda: SimpleNamespace(spectrum=0))
    monkeypatch.setattr(other_frames, "field_scene", lambda rng, counts, **shares: (other_frames.Band(), []))
    monkeypatch.setattr(other_frames, "field_receiver", lambda rng, bands, carriers: (None, []))
    monkeypatch.setattr(other_frames, "_other_mask", lambda carriers, others: None)
    for seed in range(150):
        other_frame(np.random.default_rng(seed))
    assert set(asked) == set(TRAINED)


@pytest.fixture(scope="module")
def television():
    """An OTHER frame with DVB-T alone."""
    return other_frame(np.random.default_rng(2), ["DVB-T"])


def test_an_emission_alone_is_noise_to_the_labels(television):
    frame = television
    assert len(frame.carriers) == 1
    assert frame.carriers[0]["kind"] == "DVB-T" and not frame.mask.any()
    assert frame.iq.shape == (FRAME_SAMPLES,) and frame.iq.dtype == np.complex64
    json.dumps(frame.carriers)


@pytest.mark.parametrize("snr_db, covered", [(13.0, False), (27.0, True)])
def test_a_carrier_is_unknown_where_an_emission_within_10_db_covers_it(snr_db, covered):
    rng = np.random.default_rng(0)
    carriers = [{"technology": "NR", "center_hz": -5e6, "bandwidth_hz": 20e6, "snr_db": 30.0},
                {"technology": "other", "center_hz": 0.0, "bandwidth_hz": 8e6, "snr_db": snr_db}]  # fmt: skip
    wave = rng.standard_normal((320_000, 2), np.float32).view(np.complex64)[:, 0]  # noise at 8 MS/s
    wave[160_000:] = 0  # of which the second half is silent
    band = Band()
    band.add(wave, 8e6, 0.0, np.sqrt(10 ** (snr_db / 10) * 8e6 / SAMPLE_RATE / 2))
    mask = other_frames._other_mask(carriers, band)
    known = channel_mask(carriers[:1], {"NR": 85, "LTE": 170, "unknown": 255})
    inside = np.zeros((256, 256), bool)
    inside[130:, 116:134] = True  # the first half of the frame is below, -3 to 1.5 MHz of 4
    assert (known == 85)[inside].all()
    assert (mask[inside] == 255).mean() > 0.97 if covered else (mask[inside] == 85).mean() > 0.97
    far = np.zeros((256, 256), bool)
    far[:, :105], far[:126] = True, True
    assert np.array_equal(mask[far], known[far])


def test_the_power_of_a_pixel_is_that_of_the_picture(television):
    ours, shown = pixel_power(television.emissions), shown_power(television.emissions.samples())[::-1]
    strong = shown > shown.max() / 100
    assert strong.mean() > 0.02 and abs(np.median(10 * np.log10(ours[strong] / shown[strong]))) < 1.5
    assert (ours[shown < shown.max() / 1e5] < shown.max() / 1e3).mean() > 0.95


BEFORE = {  # family, index: mean power, one sample, carriers
    ("FIELD", 2): (
        0.00184105,
        -0.0232632 - 0.000377794j,
        [("LTE", -20383674.5), ("LTE", -5586492.5), ("NR", 16106947.7)],
    ),
    ("LTE_NR", 1): (3.63691e-05, -0.00124162 + 8.05318e-06j, [("NR", -11720000.0), ("LTE", 8780000.0)]),
}


@pytest.mark.parametrize("family, index", [("LTE_NR", 1), pytest.param("FIELD", 2, marks=pytest.mark.slow)])
def test_field_and_published_frames_are_what_they_were_before_there_were_others(family, index):
    """Values of commit 8429484."""
    power, sample, names = BEFORE[family, index]
    iq, carriers, mask = labelled_frame(family, index, 3)
    assert np.mean(np.abs(iq) ** 2) == pytest.approx(power, rel=1e-4)
    assert iq[123_456] == pytest.approx(sample, rel=1e-3)
    assert [(carrier["technology"], carrier["center_hz"]) for carrier in carriers] == names
    assert np.array_equal(mask, channel_mask(carriers))
