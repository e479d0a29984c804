"""A receiver's faults are found and mended, what transmitters do is left.   pytest tests/test_receiver_events.py"""

import numpy as np
import pytest

from data.receiver_events import Event, fill_gaps, find_events, mend, notes, within, without_gaps
from tests.conftest import lte_carrier, nr_carrier, resampled

RATE = 15.36e6
COUNT = round(RATE * 0.04)


def noise(count=COUNT, seed=0, power=1.0):
    """complex64 (count,)."""
    pairs = np.random.default_rng(seed).standard_normal((count, 2), np.float32) * np.float32((power / 2) ** 0.5)
    return pairs.view(np.complex64)[:, 0]


def lte(tdd=None, load=0.7, bandwidth=5e6):
    """40 ms of an LTE carrier at 15.36 MS/s, complex64, power 1 where it sends."""
    return to_rate(lte_carrier(bandwidth, 7, load, seed=1, tdd=tdd))


def to_rate(wave):
    samples = resampled(wave.samples, COUNT)
    return (samples / np.sqrt(np.mean(np.abs(samples) ** 2))).astype(np.complex64)


SIGNALS = {"noise": noise(), "lte": lte() + noise(power=0.01), "tdd": lte(tdd=2) + noise(power=0.01)}


def kinds(samples, rate=RATE):
    return [event.kind for event in find_events(samples, rate)]


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("step", [None, 2**-3, 2**-5])  # of a converter
def test_ordinary_samples_have_no_events(signal, step):
    x = SIGNALS[signal]
    if step:
        x = (np.round(x.real / step) + 1j * np.round(x.imag / step)).astype(np.complex64) * np.float32(step)
    assert kinds(x) == []


def emissions():
    time = np.arange(COUNT) / RATE
    rng, faint = np.random.default_rng(3), noise(power=1e-3)
    on = np.repeat(rng.random(100) < 0.4, COUNT // 100 + 1)[:COUNT]
    inner = np.abs(np.fft.fftfreq(COUNT, 1 / RATE)) < 5e6
    bursts = np.fft.ifft(np.fft.fft(noise(seed=4)) * inner) * on
    pulses = np.zeros(COUNT)
    for start in rng.integers(0, COUNT - 2000, 60):  # Mode S: pulses of .5 microseconds in messages of 112
        for bit in range(112):
            pulses[start + 15 * bit : start + 15 * bit + 8] = rng.random() < 0.5
    slots = np.repeat([1.0, 1, 1, 0.3, 0], COUNT // 80)  # DDDSU of 2.5 ms, wider than the capture
    nr_tdd = noise(seed=5) * np.tile(slots, 16) if COUNT % 80 == 0 else None
    blocks = nr_carrier(20e6, 30e3, 3, load=0.0, ssb_case="C")
    return {
        "tone": np.exp(2j * np.pi * 3e6 * time) + faint,
        "chirp": np.exp(2j * np.pi * np.cumsum((time * 1e3 % 1 - 0.5) * 8e6) / RATE) + faint,
        "bursts in a part of the band": bursts + faint,
        "pulses": pulses + faint,
        "TDD wider than the capture": nr_tdd + faint,
        "NR that sends nothing but blocks": to_rate(blocks) + faint,
    }


EMISSIONS = emissions()


@pytest.mark.parametrize("name", EMISSIONS)
def test_what_transmitters_do_is_no_event(name):
    found = kinds(EMISSIONS[name].astype(np.complex64))
    assert not set(found) - ({"burst"} if name == "pulses" else set())  # where they crowd they fill the capture


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize(("start", "count"), [(200_000, 6000), (0, 6000), (COUNT - 6000, 6000), (3, 40)])
@pytest.mark.parametrize("value", [0, "last"])
def test_dropped_samples_are_found_to_the_sample_and_filled_with_noise(signal, start, count, value):
    x = SIGNALS[signal].copy()
    x[start : start + count] = x[start - 1] if value == "last" and start else 0
    (event,) = find_events(x, RATE)
    assert event.kind == "dropped" and abs(event.start - start) <= 1 and abs(event.count - count) <= 1
    kept = without_gaps(x, [event])
    assert abs(len(kept) - (COUNT - count)) <= 1
    mended = mend(x, [event])
    fill_gaps(mended, [event], 0.01, np.random.default_rng(0))
    gap = mended[event.start : event.start + event.count]
    assert np.mean(np.abs(gap) ** 2) == pytest.approx(0.01, rel=0.6 if count < 100 else 0.1)
    assert np.array_equal(
        np.delete(mended, np.s_[start - (start > 0) : start + count]),
        np.delete(x, np.s_[start - (start > 0) : start + count]),
    )


@pytest.mark.parametrize("value", [-1 - 1j, 127 / 128 * (1 + 1j)])
def test_a_gap_at_the_converters_end_is_no_saturation(value):
    x = SIGNALS["lte"] * 0.1
    x = ((np.round(x.real * 128) + 1j * np.round(x.imag * 128)) / 128).astype(np.complex64)
    x[200_000:230_000] = value
    assert kinds(x) == ["dropped"]


def test_silence_between_bursts_below_the_converters_step_is_not_dropped():
    x = np.round(8 * noise() * np.repeat([1, 0.01, 1, 0.01], COUNT // 4)) / 8
    x = (np.round(8 * x.real) + 1j * np.round(8 * x.imag)).astype(np.complex64) / 8
    quiet = np.abs(x) < 1e-9
    assert quiet.mean() > 0.4
    x[COUNT // 4 : COUNT // 2 : 50] += 0.125  # now and then one step
    assert "dropped" not in kinds(x[: COUNT // 2])


@pytest.mark.parametrize("places", [[100_001], [50_000, 50_001, 300_000], [0], [COUNT - 1]])
@pytest.mark.parametrize("size", [20, 1e6])
def test_a_glitch_is_found_and_replaced_by_its_neighbours(places, size):
    x = SIGNALS["lte"].copy()
    good = x.copy()
    x[places] = size * 1j
    events = find_events(x, RATE)
    assert [event.kind for event in events] == ["glitch"] * len([p for p in places if p - 1 not in places])
    mended = mend(x, events)
    assert np.abs(mended).max() == np.abs(good).max()
    assert (mended != good).sum() == len(places) and x[places[0]] == size * 1j


@pytest.mark.parametrize("bits", [8, 12, None])
def test_saturation_is_told_from_weak_and_from_constant_signals(bits):
    def converted(x, rms):
        x = x / np.sqrt(np.mean(np.abs(x) ** 2)) * rms
        pairs = np.stack([x.real, x.imag], 1)
        pairs = (
            np.clip(np.round(pairs * 2 ** (bits - 1)), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) / 2 ** (bits - 1)
            if bits
            else np.clip(pairs, -1, 1)
        )
        return np.ascontiguousarray(pairs, np.float32).view(np.complex64)[:, 0]

    for rms in (0.6, 1.5):
        (event,) = find_events(converted(SIGNALS["lte"], rms), RATE)
        assert event.kind == "saturated" and event.count > 0.01 * COUNT
    for rms in (0.02, 0.15):
        assert kinds(converted(SIGNALS["lte"], rms)) == []
    tone = np.exp(2j * np.pi * 1.2345e6 * np.arange(COUNT) / RATE)
    assert kinds(converted(tone + noise(power=1e-4), 0.9)) == []


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("db", [-9, -3, 3, 6])
@pytest.mark.parametrize("cuts", [(307_201,), (100_000, 400_000)])
def test_gain_steps_are_found_and_levelled(signal, db, cuts):
    x, gain = SIGNALS[signal], np.zeros(COUNT)
    gain[cuts[0] : cuts[1] if len(cuts) > 1 else COUNT] = db
    events = find_events(x * (10 ** (gain / 20)).astype(np.float32), RATE)
    assert {event.kind for event in events} == {"gain"}
    mended = mend(x * (10 ** (gain / 20)).astype(np.float32), events)
    error = 20 * np.log10(np.abs(mended / x))  # one gain throughout, whichever
    assert np.abs(error - np.median(error)).mean() < 0.3


def test_a_step_of_the_carriers_alone_is_no_gain_step():
    louder = np.where(np.arange(COUNT) < COUNT // 2, 1, 2).astype(np.float32)
    assert kinds(lte() * louder + noise(power=0.01)) == []
    wide = lte(bandwidth=10e6, load=1.0) * (louder - 1) + noise(power=0.01)
    assert kinds(wide.astype(np.complex64)) == []


def test_a_burst_over_the_whole_capture_is_told_and_left():
    x = noise()
    x[300_000:315_000] *= 5
    (event,) = find_events(x, RATE)
    assert event.kind == "burst" and event.db == pytest.approx(14, abs=0.5)
    assert abs(event.start - 300_000) < 50 and abs(event.count - 15_000) < 100
    assert np.array_equal(mend(x, [event]), x)


@pytest.mark.parametrize("value", [0, 0.5 - 1j])
def test_one_value_throughout_is_silence(value):
    assert find_events(np.full(COUNT, value, np.complex64), RATE) == [Event("silent", 0, COUNT)]


@pytest.mark.parametrize("count", [1, 100, 257, 5000])
def test_short_recordings_are_looked_at_too(count):
    assert find_events(noise(count), RATE) in ([], [Event("silent", 0, 1)])


def test_notes_have_a_line_for_each_kind_and_tell_every_event_once():
    gap, glitch, step = (
        Event("dropped", 1_050_000, 24_576),
        Event("glitch", 1_000_500, 1),
        Event("gain", 1_000_000, 500, -6),
    )
    frames = [within([gap, glitch, step], 1_000_000, 60_000), within([gap, glitch], 1_060_000, 40_000)]
    assert [[event.kind for event in events] for events in frames] == [["dropped", "glitch", "gain"], ["dropped"]]
    lines = notes(frames, 1e6, offset=1_000_000)
    assert len(lines) == 3
    assert lines[0].startswith("dropped samples: 24,576 samples at 50.00 ms") and "in 2 frames" in lines[0]
    assert lines[1].startswith("glitches: 1 sample at 0.50 ms") and "-6.0 dB from 0.00 to 0.50 ms" in lines[2]
    assert notes([], 1e6) == []
