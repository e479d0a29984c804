"""Recordings on disk and on the 61.44 MS/s grid.   pytest tests/test_recording.py"""

import json
import tracemalloc

import numpy as np
import pytest

from data import DataError
from data.recording import Frame, FrameNotes, columns, noise_floor
from data.recording_formats import open_recording
from data.spectrogram import FRAME_SAMPLES, SAMPLE_RATE, SIZE, shown_power, spectrogram_levels
from tests.conftest import lte_capture


def noise(count, seed=0):
    """complex64 (count,), power 1."""
    pairs = np.random.default_rng(seed).standard_normal((count, 2), np.float32) * np.float32(0.5**0.5)
    return pairs.view(np.complex64)[:, 0]


def write_sigmf(folder, data: bytes, captures=({"core:sample_start": 0},), name="rec", **general):
    """A recording NAME.sigmf-meta + NAME.sigmf-data; keywords are global fields, core_ standing for core:."""
    fields = {"core:version": "1.0.0", "core:datatype": "ci8", "core:sample_rate": 2e6}
    fields |= {key.replace("core_", "core:", 1): value for key, value in general.items()}
    fields = {key: value for key, value in fields.items() if value is not None}
    meta = {"global": fields, "captures": list(captures), "annotations": []}
    (folder / f"{name}.sigmf-meta").write_text(json.dumps(meta))
    (folder / f"{name}.sigmf-data").write_bytes(data)
    return folder / f"{name}.sigmf-meta"


def samples(recording):
    return np.concatenate([frame.samples for frame in recording.frames()])


def levels(iq):
    """Mean power per Hz of each of the 256 columns, columns ascending."""
    return (np.abs(np.fft.fftshift(np.fft.fft(iq))) ** 2).reshape(SIZE, -1).mean(1) / len(iq) / SAMPLE_RATE


@pytest.mark.parametrize(
    ("datatype", "stored", "values"),
    [
        ("ci8", np.array([-128, 127, 64, 0], "i1"), [-1 + 127j / 128, 0.5]),
        ("cu8", np.array([0, 255, 192, 128], "u1"), [-1 + 127j / 128, 0.5]),
        ("ci16_le", np.array([-32768, 16384, 1, 0], "<i2"), [-1 + 0.5j, 2**-15]),
        ("ci16_be", np.array([-32768, 16384, 1, 0], ">i2"), [-1 + 0.5j, 2**-15]),
        ("cf32_le", np.array([-1, 0.25, 3, 0], "<f4"), [-1 + 0.25j, 3]),
        ("cf64_be", np.array([-1, 0.25, 3, 0], ">f8"), [-1 + 0.25j, 3]),
    ],
)
def test_every_datatype_reads_as_sigmf_defines_it(tmp_path, datatype, stored, values):
    bare = tmp_path / "bare.bin"
    bare.write_bytes(stored.tobytes())
    assert np.array_equal(samples(open_recording(bare, datatype, 2e6)), np.array(values, np.complex64))


@pytest.mark.parametrize("datatype", ["ci8", "cu8", "ci16_le", "cf32_le"])
def test_samples_equal_those_of_the_sigmf_package(tmp_path, datatype):
    sigmf = pytest.importorskip("sigmf")
    data = np.random.default_rng(1).integers(0, 256, 3000, np.uint8).tobytes()
    if datatype == "cf32_le":
        data = noise(400).tobytes()
    meta = write_sigmf(tmp_path, data, core_datatype=datatype, core_num_channels=1)
    expected = sigmf.fromfile(str(meta)).read_samples()
    for name in (meta, meta.with_suffix(".sigmf-data"), tmp_path / "rec"):
        assert np.array_equal(samples(open_recording(name)), expected.astype(np.complex64))


def test_frames_follow_each_other_without_gap_at_any_rate(tmp_path):
    file = tmp_path / "bare.bin"
    file.write_bytes(np.arange(2 * 111_111, dtype=np.uint8).tobytes())
    for rate in (1e6, 1234567.8, 5e6):
        frames = list(open_recording(file, "cu8", rate).frames())
        assert frames[0].start == 0 and len(frames) == len(open_recording(file, "cu8", rate))
        assert all(a.new_start + a.new_count == b.new_start for a, b in zip(frames, frames[1:], strict=False))
        assert frames[-1].start + len(frames[-1].samples) == 111_111 == sum(frame.new_count for frame in frames)
        assert all(abs(len(frame.samples) - min(111_111, rate * 0.04)) <= 1 for frame in frames)


def test_channels_headers_offsets_and_captures_are_respected(tmp_path):
    values = np.arange(1, 41, dtype=np.int8)  # ten samples of two channels: (I, Q), (I, Q)
    data = b"head" + values[:24].tobytes() + b"more!!" + values[24:].tobytes() + b"tail"
    captures = [
        {"core:sample_start": 100, "core:header_bytes": 4, "core:frequency": 1e9},
        {"core:sample_start": 106, "core:header_bytes": 6},
    ]
    meta = write_sigmf(tmp_path, data, captures, core_num_channels=2, core_offset=100, core_trailing_bytes=4)
    for channel in (0, 1):
        frames = list(open_recording(meta, channel=channel).frames())
        assert [(frame.start, len(frame.samples), frame.center_hz) for frame in frames] == [
            (100, 6, 1e9),
            (106, 4, None),
        ]
        expected = values.reshape(10, 2, 2)[:, channel] / np.float32(128)
        assert np.array_equal(np.concatenate([f.samples for f in frames]), expected[:, 0] + 1j * expected[:, 1])
    assert next(open_recording(meta, center_frequency=2e9).frames()).center_hz == 2e9


def test_a_sample_cut_off_at_the_end_is_left_out_with_a_note(tmp_path):
    recording = open_recording(write_sigmf(tmp_path, bytes(2 * 50 + 1)))
    assert sum(len(frame.samples) for frame in recording.frames()) == 50
    assert any("no whole sample" in note for note in recording.notes)


def test_values_that_are_no_numbers_are_counted_and_units_do_not_matter(tmp_path):
    x = noise(4000) * np.float32(1e-9)
    x[[7, 9, 11, 13]] = np.nan, np.inf, 1e38, -1j * 2.0**32  # more than 32-bit integers reach is a flipped bit
    meta = write_sigmf(tmp_path, x.tobytes(), core_datatype="cf32_le")
    frame = next(open_recording(meta).frames())
    assert frame.damaged == 4 and not frame.samples[[7, 9, 11, 13]].any()
    assert np.mean(np.abs(frame.samples) ** 2) == pytest.approx(1, rel=1e-3)


def _not_json(folder):
    (folder / "rec.sigmf-meta").write_text("{")
    return {"path": folder / "rec.sigmf-meta"}


FAULTS = {
    "no such file": lambda f: {"path": f / "missing.bin"},
    "missing.sigmf-meta: no such file": lambda f: {"path": f / "missing.sigmf-data"},
    "no readable SigMF metadata": _not_json,
    "add --sample-rate": lambda f: {"path": write_sigmf(f, bytes(8), core_sample_rate=None)},
    "add --datatype": lambda f: {"path": write_sigmf(f, bytes(8), core_datatype=None)},
    "has real samples": lambda f: {"path": write_sigmf(f, bytes(8), core_datatype="ri8")},
    "holds no sample": lambda f: {"path": write_sigmf(f, b"")},
    "no --channel 2": lambda f: {"path": write_sigmf(f, bytes(8), core_num_channels=2), "channel": 2},
    "1 MHz to 1 GHz": lambda f: {"path": write_sigmf(f, bytes(8)), "sample_rate": 48e3},
    "core:frequency is 'high'": lambda f: {"path": write_sigmf(f, bytes(8), [{"core:frequency": "high"}])},
    "core:sample_start is -1": lambda f: {"path": write_sigmf(f, bytes(8), [{"core:sample_start": -1}])},
    "not in order": lambda f: {"path": write_sigmf(f, bytes(8), [{"core:sample_start": 2}, {"core:sample_start": 1}])},
    "core:dataset must name a file beside": lambda f: {"path": write_sigmf(f, bytes(8), core_dataset="../x")},
    "core:dataset must name a file beside it, not 'a\\x00'": lambda f: {
        "path": write_sigmf(f, bytes(8), core_dataset="a\0")
    },
    "core:sample_rate is 1000": lambda f: {"path": write_sigmf(f, bytes(8), core_sample_rate=10**400)},
    "core:metadata_only": lambda f: {"path": write_sigmf(f, bytes(8), core_metadata_only=True)},
    "name one .sigmf-meta": lambda f: {"path": f / "rec.sigmf-collection"},
    "datatype and sample rate; add --datatype (ci8, cu8, ci16_le or cf32_le) and --sample-rate": lambda f: {
        "path": write_sigmf(f, bytes(8)).with_suffix(".sigmf-data").rename(f / "bare.bin")
    },
}


@pytest.mark.parametrize("text", ['{"global": ' + "9" * 5000 + "}", "[" * 100_000])
def test_metadata_that_python_cannot_hold_is_refused_in_a_sentence(tmp_path, text):
    (tmp_path / "rec.sigmf-meta").write_text(text)
    with pytest.raises(DataError, match="no readable SigMF metadata"):
        open_recording(tmp_path / "rec.sigmf-meta")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_recording_is_refused_in_a_sentence(tmp_path, fault):
    arguments = FAULTS[fault](tmp_path)
    with pytest.raises(DataError) as caught:
        open_recording(**arguments)
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_memory_does_not_grow_with_the_recording(tmp_path):
    peaks = []
    for frames in (3, 300):
        file = tmp_path / "sparse.bin"
        with open(file, "wb") as handle:
            handle.truncate(frames * 40_000 * 8)  # 96 MB of a hole
        tracemalloc.start()
        assert sum(len(frame.samples) for frame in open_recording(file, "cf32_le", 1e6).frames()) == frames * 40_000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 8e6


def test_a_recording_on_the_grid_passes_untouched():
    x = noise(FRAME_SAMPLES)
    ((column, iq),) = Frame(0, x, SAMPLE_RATE, None, 1.0).pieces()
    assert column == -128 and np.array_equal(iq, x)


@pytest.mark.parametrize(("rate", "tone_hz"), [(19.2e6, 5e6), (1234567.8, -300e3), (56e6, 27e6)])
def test_a_tone_keeps_its_power_and_frequency_on_the_grid(rate, tone_hz):
    count = round(rate * 0.04)
    tone_hz = round(tone_hz * 0.04) / 0.04
    x = np.exp(2j * np.pi * tone_hz / rate * np.arange(count)).astype(np.complex64)
    ((_, iq),) = Frame(0, x, rate, None, 0.0).pieces()
    assert np.mean(np.abs(iq) ** 2) == pytest.approx(1, rel=1e-3)
    assert np.argmax(np.abs(np.fft.fft(iq))) == round(tone_hz * 0.04) % FRAME_SAMPLES
    drift = tone_hz * (0.04 - count / rate)  # cycles: a rate that has no whole sample number in 40 ms
    expected = np.exp(2j * np.pi * tone_hz / SAMPLE_RATE * np.arange(0, FRAME_SAMPLES, 4097))
    assert np.abs(iq[::4097] - expected)[5:-5].max() < 0.03 + 2 * np.pi * abs(drift)


@pytest.mark.parametrize("rate", [1.92e6, 19.2e6])
def test_missing_columns_hold_noise_at_the_captures_own_floor_without_a_step(rate):
    x = noise(round(rate * 0.04))
    floor, _ = noise_floor(x, rate)
    assert abs(10 * np.log10(floor * rate)) < 1
    ((_, iq),) = Frame(0, x, rate, None, 1 / rate).pieces()
    assert np.abs(10 * np.log10(levels(iq) * rate)).max() < 0.4
    assert columns(rate) == round(rate / 240e3)


@pytest.mark.parametrize("rate", [1.92e6, 15.36e6, 50e6])
def test_a_picture_of_the_captures_columns_alone_equals_that_of_the_widened_capture(rate):
    x = noise(round(rate * 0.04)) * np.float32(0.1)
    x += np.fft.ifft(np.fft.fft(noise(len(x), 1)) * (np.abs(np.fft.fftfreq(len(x))) < 0.2)).astype(np.complex64)
    frame = Frame(7, x, rate, None, 0.01 / rate)
    ((column, levels, power),) = frame.spectrograms()
    ((_, iq),) = frame.pieces()
    expected, whole = shown_power(iq)[::-1], spectrogram_levels(iq)
    beside = (SIZE - power.shape[1]) // 2
    assert column == -128 and beside > 0
    inner = slice(128 - columns(rate) // 2 + 1, 128 + columns(rate) // 2 - 1)
    ratio = power[:, inner.start - beside : inner.stop - beside] / expected[:, inner]
    assert np.median(np.abs(np.log(ratio))) < 0.2  # a window that starts up to half a sample earlier or later
    assert power.mean() / expected[:, beside : SIZE - beside].mean() == pytest.approx(1, rel=0.03)
    # The lowest of 41 million levels is random, and with it the scale; the spread of the noise tells the scale
    scale = np.polyfit(whole[:, inner].mean(0), levels[:, inner].mean(0), 1)
    assert abs(levels[:, :20].mean() - np.polyval(scale, whole[:, :20].mean())) < 8
    assert levels.max() == 255 or whole.max() < 255


def test_the_floor_is_found_below_carriers_and_beside_a_filters_slope():
    rate, count = 20e6, 800_000
    hz = np.fft.fftfreq(count, 1 / rate)
    spectrum = np.fft.fft(noise(count))
    spectrum[np.abs(hz) > 0.46 * rate] *= 0.01  # the receiver's filter
    spectrum[np.abs(hz) < 0.35 * rate] *= 30  # a carrier over 70% of the band
    floor, kind = noise_floor(np.fft.ifft(spectrum).astype(np.complex64), rate)
    assert abs(10 * np.log10(floor * rate)) < 1 and kind == "measured"
    assert noise_floor(np.zeros(count, np.complex64), rate)[0] == 0


def test_a_wide_capture_comes_in_pieces_that_agree_on_every_frequency():
    rate = 75e6
    tones = np.array([-30e6, -10e6, 13e6, 35e6])
    spectrum = np.zeros(round(rate * 0.04), np.complex64)
    spectrum[np.round(tones * 0.04).astype(int)] = len(spectrum)
    x = np.fft.ifft(spectrum).astype(np.complex64)
    seen, covered = {hz: [] for hz in tones}, np.zeros(columns(rate), int)
    for first, iq in Frame(0, x, rate, None, 0.0).pieces():
        strong = first + np.flatnonzero(levels(iq) > 1e-9 * SIZE)
        inside = [hz for hz in tones if first <= hz // 240e3 < first + SIZE]
        assert sorted(strong) == [hz // 240e3 for hz in inside]
        for hz in inside:
            seen[hz].append(first)
        where = np.arange(first, first + SIZE) + columns(rate) // 2
        covered[where[(where >= 0) & (where < len(covered))]] += 1
    assert all(seen.values()) and covered.min() >= 1
    assert (covered >= 2).mean() > 0.5


def test_a_frame_of_less_than_40_ms_is_repeated_and_knows_its_rows():
    rate = 5e6
    x = noise(50_000)  # 10 ms
    frame = Frame(0, x, rate, None, 1 / rate)
    assert frame.new_rows == slice(192, SIZE)
    ((_, iq),) = frame.pieces()
    inner = np.fft.ifft(np.fft.fft(iq) * (np.abs(np.fft.fftfreq(FRAME_SAMPLES, 1 / SAMPLE_RATE)) < 0.45 * rate))
    first, *others = inner.reshape(4, -1)
    assert all(np.abs(first - other).max() < 1e-3 for other in others)
    assert Frame(0, noise(200_000), rate, None, 1.0).new_rows == slice(0, SIZE)


def test_the_last_frame_is_the_recordings_last_40_ms_and_counts_its_samples_once(tmp_path):
    x = noise(130_000)  # 65 ms
    meta = write_sigmf(tmp_path, x.tobytes(), core_datatype="cf32_le", core_offset=1000)
    first, last = open_recording(meta).frames()
    assert (first.start, first.new_start, first.new_count, first.new_rows) == (1000, 1000, 80_000, slice(0, SIZE))
    assert np.array_equal(last.samples, x[50_000:])
    assert (last.start, last.new_start, last.new_count, last.overlap) == (51_000, 81_000, 50_000, 30_000)
    assert last.new_rows == slice(0, SIZE * 5 // 8)  # the first row is the frame's end
    x[100] = x[70_000] = np.nan  # the second is in both frames
    meta = write_sigmf(tmp_path, x.tobytes(), core_datatype="cf32_le")
    assert [frame.damaged for frame in open_recording(meta).frames()] == [2, 0]


@pytest.mark.parametrize(
    ("rate", "load", "kind"),
    [
        (9e6, 0.7, "guessed"),  # the carrier fills the capture
        (9e6, 1.0, "guessed"),
        (10e6, 1.0, "guessed"),
        (10e6, 0.1, "measured"),  # in what it does not send
        (15.36e6, 1.0, "measured"),
        (30.72e6, 0.7, "measured"),
    ],
)
def test_a_floor_that_can_not_be_measured_is_said_to_be_a_guess_below_the_carrier(rate, load, kind):
    x = lte_capture(rate, load)
    floor, how = noise_floor(x, rate)
    assert how == kind
    if kind == "measured":
        assert abs(10 * np.log10(floor * rate)) < 2
    else:
        assert 10 * np.log10(floor * rate / np.mean(np.abs(x) ** 2)) == pytest.approx(-15, abs=0.5)


@pytest.mark.parametrize("rate", [1.92e6, 10e6, 61.44e6])
def test_noise_alone_and_noise_behind_a_filter_are_no_carriers_that_fill_the_capture(rate):
    count = round(rate * 0.04)
    x = noise(count)
    assert noise_floor(x, rate)[1] == "even"
    share = np.abs(np.fft.fftfreq(count))
    x = np.fft.ifft(np.fft.fft(x) * 10 ** (-0.3 * np.maximum(0, (share - 0.4) / 0.1))).astype(np.complex64)
    assert noise_floor(x, rate)[1] != "guessed"


def test_faults_are_mended_for_the_picture_and_the_samples_stay(tmp_path):
    rate = 5e6
    x = noise(200_000) * np.float32(10)
    x[50_000:60_000], x[123_456] = 0, 1e7
    meta = write_sigmf(tmp_path, x.tobytes(), core_datatype="cf32_le", core_sample_rate=rate)
    frame = next(open_recording(meta).frames())
    scale = np.median(np.abs(frame.samples)) / np.median(np.abs(x))
    assert np.allclose(frame.samples, x * scale, rtol=1e-4)
    assert [event.kind for event in frame.events] == ["dropped", "glitch"]
    assert abs(10 * np.log10(frame.floor * rate / np.mean(np.abs(frame.mended) ** 2))) < 1
    assert np.mean(np.abs(frame.mended[50_000:60_000]) ** 2) == pytest.approx(
        np.mean(np.abs(frame.mended) ** 2), rel=0.2
    )
    assert 0.003 < np.sqrt(np.mean(np.abs(frame.mended) ** 2)) < 100  # the glitch does not set the scale either
    told = FrameNotes()
    told.add(frame)
    assert [line.split(":")[0] for line in told.lines(open_recording(meta))][:2] == ["dropped samples", "glitches"]
