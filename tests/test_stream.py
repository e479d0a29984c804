"""Samples from a pipe, dropped or not, and segment.py on them.   pytest tests/test_stream.py"""

import csv
import io
import json
import os
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

import segment
from data import DataError
from data.recording_formats import open_recording
from data.stream import SampleStream
from tests.conftest import label_by_level
from tests.test_segment import band
from utils import carriers, labelling
from utils.runs import run

RATE = 1e6
FRAME = 40_000  # samples


def piped(chunks, pause=0.0):
    """A file that reads what a thread writes: byte strings, each `pause` seconds after the one before."""
    read_end, write_end = os.pipe()

    def write():
        with os.fdopen(write_end, "wb", buffering=0) as file:
            begun = time.monotonic()
            for i, data in enumerate(chunks):
                time.sleep(max(0.0, begun + i * pause - time.monotonic()))
                file.write(data)

    threading.Thread(target=write, daemon=True).start()
    return os.fdopen(read_end, "rb")


def started(file, **options):
    stream = SampleStream(file, "ci16_le", RATE, 1.8e9, **options)
    stream.start()
    return stream


def numbers(count):
    return np.arange(2 * count, dtype="<i2").tobytes()


@pytest.mark.parametrize("count", [90_000, 80_000, 12_345])
def test_a_pipe_gives_the_frames_of_the_same_samples_on_disk(tmp_path, count):
    data = numbers(count)
    (tmp_path / "x.cs16").write_bytes(data)
    wanted = list(open_recording(tmp_path / "x.cs16", sample_rate=RATE, center_frequency=1.8e9).frames())
    odd = [data[i : i + 7777] for i in range(0, len(data), 7777)]  # pieces that end within a sample
    found = list(started(piped([*odd, b"\1"])).frames())
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a.start, a.overlap, a.center_hz, a.floor) == (b.start, b.overlap, b.center_hz, b.floor)
        assert np.array_equal(a.samples, b.samples)


def test_a_radio_does_not_wait_so_the_oldest_frames_are_dropped_counted_and_numbered(monkeypatch):
    data = [numbers(FRAME) for _ in range(20)]
    stream = started(piped(data, pause=0.04), buffer_seconds=0.12)
    time.sleep(0.4)
    frames = list(stream.frames())
    starts = [frame.start for frame in frames]
    assert starts == sorted(starts) and all(start % FRAME == 0 for start in starts)
    assert stream.dropped == stream.dropped_at_start == 20 * FRAME - sum(len(frame.samples) for frame in frames) > 0
    assert starts[0] == stream.dropped and starts[-1] == 19 * FRAME


def test_a_file_behind_the_pipe_waits_and_nothing_is_dropped():
    stream = started(piped([numbers(FRAME)] * 40), buffer_seconds=0.8)
    time.sleep(0.3)
    assert [frame.start for frame in stream.frames()] == [FRAME * i for i in range(40)] and stream.dropped == 0


def test_what_can_not_be_read_is_told_in_a_sentence():
    with pytest.raises(DataError, match="add --datatype .* and --sample-rate HZ"):
        SampleStream(piped([]), None, None, None)
    with pytest.raises(DataError, match="1 MHz to 1 GHz"):
        SampleStream(piped([]), "cu8", 48e3, None)
    with pytest.raises(DataError, match="no samples arrived"):
        list(started(piped([])).frames())


@pytest.fixture
def stream_of(monkeypatch, tmp_path, untrained):
    """Run segment.py - on samples at 5 MS/s; a stand-in labels by level. Returns its exit code."""
    monkeypatch.setattr(labelling, "class_probabilities", label_by_level)
    monkeypatch.setattr(carriers, "LOST_SECONDS", 0.2)

    def call(iq, *arguments):
        data = np.asarray(iq, np.complex64).tobytes()
        pieces = piped([data[i : i + 1_600_000] for i in range(0, len(data), 1_600_000)])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pieces))
        known = ["--datatype", "cf32", "--sample-rate", "5e6", "--center-frequency", "1.8e9", "--no-evidence"]
        known += ["--checkpoint", str(untrained), "--device", "cpu", "--out", str(tmp_path / "out")]
        return run(lambda: segment.main(["-", *known, *arguments]), DataError)

    return call


def coming_and_going():
    """.16 s of a 2 MHz carrier between .08 and .24 s of noise."""
    carrier, noise = band(5e6, 200_000, [(-1e6, 1e6, 15)]), band(5e6, 200_000, [])
    return np.concatenate([noise] * 2 + [carrier] * 4 + [noise] * 6)


def test_carriers_are_printed_when_they_come_and_go(stream_of, tmp_path, capsys):
    assert stream_of(coming_and_going(), "--json") == 0
    *events, end = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(event["event"], event["technology"]) for event in events] == [("confirmed", "LTE"), ("lost", "LTE")]
    assert events[0]["time_s"] == pytest.approx(0.08 + 3 * 0.04) and events[1]["time_s"] == pytest.approx(0.24 + 0.2)
    assert end["event"] == "end" and end["dropped_samples"] == 0 and end["seconds"] == pytest.approx(0.48)
    assert [row["technology"] for row in end["carriers"]] == ["LTE"]
    assert json.loads((tmp_path / "out/result.json").read_text())["carriers"] == end["carriers"]
    assert (tmp_path / "out/waterfall.png").exists()


@pytest.mark.slow
def test_a_pipe_prints_a_table_or_csv_and_says_when_nothing_was_found(stream_of, capsys):
    assert stream_of(coming_and_going()[: 7 * 200_000]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["time", "event"] and lines[1].split()[1:4] == ["s", "confirmed", "LTE"]
    assert lines[3].startswith("LTE")
    assert stream_of(coming_and_going(), "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["event"], row["technology"]) for row in rows] == [("confirmed", "LTE"), ("lost", "LTE")]
    assert stream_of(band(5e6, 200_000, [])) == segment.NOTHING_FOUND
    assert stream_of([]) == 2
