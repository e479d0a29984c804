"""Pictures, masks and files of the generated set.  Run: pytest tests/test_synthetic.py"""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data import DataError, exit_code, synthetic, writing
from data.frames import frame_rng, labelled_frame, make_frame
from data.hdf4 import read_raster
from data.mathworks_frames import mathworks_bandwidths, mathworks_scene
from data.spectrogram import (
    FRAME_SAMPLES,
    PARULA,
    SAMPLE_RATE,
    channel_mask,
    level_range,
    mask_columns,
    robust_level_range,
    shown_power,
    spectrogram_image,
    spectrogram_levels,
)
from data.spectrum_sensing import IGNORE, find_frames, read_mask
from data.workers import locked
from data.writing import Part
from experiments import class_weights
from tests.kills import environment, left_over


def tone_and_noise(hz, seed=0):
    rng = np.random.default_rng(seed)
    time = np.arange(FRAME_SAMPLES) / SAMPLE_RATE
    noise = rng.normal(0, 1e-3, (FRAME_SAMPLES, 2)) @ [1, 1j]
    return (np.exp(2j * np.pi * hz * time) + noise).astype(np.complex64)


def test_picture_equals_the_published_recipe_in_double_precision():
    iq = tone_and_noise(7e6)
    iq[: FRAME_SAMPLES // 4] *= 0.1
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(256) / 255))
    count = (FRAME_SAMPLES - 10) // 246
    rows = [int(np.floor((i + 0.5) * count / 256)) for i in range(256)]
    scale = SAMPLE_RATE * np.sum(window**2)
    low, high, shown = np.inf, -np.inf, np.empty((256, 256))
    for k in range(count):
        if k % 29 and k not in rows:  # enough to check the picked rows and bound the range
            continue
        spectrum = np.fft.fft(iq[246 * k : 246 * k + 256].astype(complex) * window, 4096)
        level = 10 * np.log10(np.abs(np.roll(spectrum, 2047)) ** 2 / scale + 2.0**-52)  # bins -2047 .. 2048
        low, high = min(low, level.min()), max(high, level.max())
        if k in rows:
            shown[rows.index(k)] = level[8::16]
    ours = spectrogram_levels(iq, exact=True).astype(int)
    exact_low, exact_high = level_range(iq, exact=True)
    assert exact_low <= low + 0.01 and exact_high >= high - 0.01
    expected = np.round(255 * (shown - exact_low) / (exact_high - exact_low))[::-1]
    assert np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize("family", [pytest.param("LTE", marks=pytest.mark.slow), "FIELD"])
def test_the_quick_level_range_agrees_with_the_full_one(family):
    iq, _ = make_frame(family, 5, 0)
    quick, full = level_range(iq), level_range(iq, exact=True)
    assert quick[1] == pytest.approx(full[1], abs=0.05)
    # The minimum of 41 million noise values is itself random, with a spread of 5.6 dB where eps does not bound it.
    assert quick[0] == pytest.approx(full[0], abs=15)


@pytest.mark.slow
def test_the_quick_level_range_is_that_of_zero_padded_transforms():
    iq, _ = make_frame("FIELD", 5, 0)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 255)).astype(np.float32)
    segments = np.lib.stride_tricks.sliding_window_view(iq, 256)[::246] * window
    scale = 1 / (SAMPLE_RATE * np.sum(window.astype(float) ** 2))
    coarse = (np.abs(np.fft.fft(segments, 512)) ** 2).max(1)
    high = (np.abs(np.fft.fft(segments[np.argsort(coarse)[-64:]], 4096)) ** 2).max()
    low = (np.abs(np.fft.fft(segments[::8].astype(complex), 4096)) ** 2).min() / 8
    expected = 10 * np.log10(np.array([low, high]) * scale + 2.0**-52)
    assert np.allclose(level_range(iq), expected, atol=0.01)


def test_no_outlier_and_no_eps_sets_the_robust_range():
    iq = tone_and_noise(7e6)
    low, high = robust_level_range(iq)
    shown = 10 * np.log10(shown_power(iq))
    assert (shown < low).mean() < 1e-4 and (shown > high + 0.1).mean() < 1e-3
    damaged = iq.copy()
    damaged[1_234_567] = 1e6
    damaged[500_000:900_000] = 0
    assert np.allclose(robust_level_range(damaged), (low, high), atol=2)  # dB; a sixth of the snapshots votes for 0
    assert level_range(damaged)[1] > high + 60  # what it is for
    assert np.allclose(robust_level_range(iq * np.float32(1e-3)), np.array([low, high]) - 60, atol=0.01)
    assert robust_level_range(np.zeros(FRAME_SAMPLES, np.complex64)) == robust_level_range(0 * iq)
    assert (spectrogram_levels(0 * iq, robust=True) == 0).all()


@pytest.mark.parametrize("hz", [-30.5e6, 25.1e6] + [pytest.param(hz, marks=pytest.mark.slow) for hz in (-12.36e6, 1e5)])
def test_a_tone_shows_in_its_column_and_the_end_of_the_frame_on_top(hz):
    iq = tone_and_noise(hz)
    iq[FRAME_SAMPLES // 2 :] *= 1e-3  # quiet second half
    levels = spectrogram_levels(iq)
    column = int(np.argmax(levels[200].astype(int)))
    assert column == int((hz + SAMPLE_RATE / 2) // 240e3)
    assert levels[200, column] > levels[50, column] + 50


def test_parula_runs_from_blue_to_yellow_without_two_equal_colours():
    assert PARULA[0].tolist() == [62, 38, 168] and PARULA[255].tolist() == [249, 251, 21]
    assert len({tuple(colour) for colour in PARULA}) == 256


def test_mask_covers_the_nominal_channel_both_ends_included():
    mask = channel_mask([{"technology": "NR", "center_hz": 1e6, "bandwidth_hz": 20e6}])
    # floor((30.72 - 9) / .24) = 90 and floor((30.72 + 11) / .24) = 173
    assert np.flatnonzero(mask[0]).tolist() == list(range(90, 174)) and (mask == mask[0]).all()
    assert set(np.unique(mask)) == {0, 127}
    assert mask_columns(-40e6, 40e6) == (0, 255)


def test_a_channel_outside_the_band_labels_nothing():
    for center in (-40e6, 40e6):
        assert not channel_mask([{"technology": "LTE", "center_hz": center, "bandwidth_hz": 10e6}]).any()


def test_signal_edges_in_the_picture_are_those_of_the_mask():
    frames = (make_frame("LTE", index, 1) for index in range(20))
    iq, (carrier,) = next(f for f in frames if f[1][0]["snr_db"] >= 50 and f[1][0]["load"] > 0.5)
    columns = spectrogram_levels(iq).astype(float).mean(0)
    inside = np.flatnonzero(channel_mask([carrier])[0])
    busy = np.flatnonzero(columns > (columns.min() + columns.max()) / 2)
    # LTE leaves a tenth of the channel as guard bands, a twentieth on each side.
    guard = 0.05 * carrier["bandwidth_hz"] / 240e3
    assert busy.min() == pytest.approx(inside.min() + guard, abs=1.5)
    assert busy.max() == pytest.approx(inside.max() - guard, abs=1.5)


def test_single_frames_have_the_widths_of_pairs_that_fit_into_the_band():
    rng, draws = np.random.default_rng(0), 20_000
    pairs = [mathworks_bandwidths(rng) for _ in range(draws)]
    law = {"NR": {50: 1 / 13} | dict.fromkeys((10, 15, 20, 25, 30, 40), 2 / 13)}
    law["LTE"] = {5: 7 / 26, 10: 7 / 26, 15: 3 / 13, 20: 3 / 13}
    for technology, shares in law.items():
        counts = Counter(pair[technology] / 1e6 for pair in pairs)
        assert counts.keys() == shares.keys()
        for mhz, share in shares.items():  # within four standard deviations of a binomial
            assert abs(counts[mhz] / draws - share) < 4 * np.sqrt(share * (1 - share) / draws)


def test_class_weights_of_generated_single_frames_are_the_published_ones(capsys):
    assert class_weights.main([]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("generated"))
    noise, nr, lte = map(float, line.split()[1:])
    assert abs(noise - 0.29) < 0.03 and nr == 1 and abs(lte - 2.02) < 0.15


@pytest.mark.parametrize("family", ["LTE_NR"] + [pytest.param(name, marks=pytest.mark.slow) for name in ("NR", "LTE")])
def test_what_a_mathworks_frame_holds_is_known_before_its_waveforms_are_made(family):
    _, carriers = make_frame(family, 1, 7)
    assert mathworks_scene(family, frame_rng(family, 1, 7)).carriers == carriers
    for index in range(200):
        carriers = mathworks_scene(family, frame_rng(family, index, 7)).carriers
        edges = [(c["center_hz"] - c["bandwidth_hz"] / 2, c["center_hz"] + c["bandwidth_hz"] / 2) for c in carriers]
        edges = [-SAMPLE_RATE / 2, *np.ravel(sorted(edges)), SAMPLE_RATE / 2]
        assert edges == sorted(edges)  # inside the band, side by side
        assert sorted(c["technology"] for c in carriers) == sorted(family.split("_"))


def check_files(folder, seed, expected_names):
    """Compare every file of a set with what make_frame gives in this process."""
    with (folder / "frames.csv").open() as file:
        rows = {row["frame"]: row for row in csv.DictReader(file)}
    assert list(rows) == expected_names
    for name, row in rows.items():
        iq, carriers = make_frame(row["family"], 1, seed)
        np.testing.assert_array_equal(np.asarray(Image.open(folder / f"{name}.png")), spectrogram_image(iq))
        np.testing.assert_array_equal(read_raster(folder / f"{name}.hdf"), channel_mask(carriers))
        assert json.loads(row["carriers"]) == carriers
    both = json.loads(rows["LTE_NR/LTE_NR_frame_1"]["carriers"])
    assert {carrier["technology"] for carrier in both} == {"NR", "LTE"}
    assert not list(folder.rglob("*.part"))


@pytest.mark.slow
def test_same_seed_same_files_for_any_number_of_workers(tmp_path):
    synthetic.generate(tmp_path, {"NR": 1, "LTE_NR": 1, "FIELD": 1}, seed=7, workers=2)
    check_files(tmp_path, 7, ["NR_frame_1", "LTE_NR/LTE_NR_frame_1", "FIELD/FIELD_frame_1"])


@pytest.fixture
def one_process(monkeypatch):
    """The pool's work, done in this process."""

    class Here:
        def __init__(self, processes, initializer):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def imap(self, work, jobs):
            self.jobs = jobs
            return map(work, jobs)

    monkeypatch.setattr(synthetic.multiprocessing, "get_context", lambda kind: type("C", (), {"Pool": Here}))


def test_files_hold_the_frames_of_the_seed(tmp_path, one_process):
    synthetic.generate(tmp_path, {"LTE_NR": 1}, seed=7)
    check_files(tmp_path, 7, ["LTE_NR/LTE_NR_frame_1"])


def test_the_default_set_grows_with_what_is_asked_for_and_keeps_what_is_there(tmp_path, monkeypatch, one_process):
    monkeypatch.chdir(tmp_path)

    def pictures():
        return {path.name: path.stat().st_mtime_ns for path in Path("datasets/small").rglob("*.png")}

    assert synthetic.default_set(counts={"LTE": 1}) == Path("datasets/small")
    first = pictures()
    assert list(first) == ["LTE_frame_1.png"]
    synthetic.default_set(counts={"LTE": 1})
    assert pictures() == first
    synthetic.default_set(counts={"LTE": 2})
    more = pictures()
    assert len(more) == 2 and more["LTE_frame_1.png"] == first["LTE_frame_1.png"]
    synthetic.default_set(counts={"LTE": 1})  # there are more than are needed now
    assert pictures() == more


def test_an_interrupted_set_is_completed_and_another_seed_refused(tmp_path, one_process):
    synthetic.generate(tmp_path, {"LTE": 1}, seed=3)
    first = (tmp_path / "LTE_frame_1.png").stat().st_mtime_ns
    synthetic.generate(tmp_path, {"LTE": 2}, seed=3)
    assert (tmp_path / "LTE_frame_1.png").stat().st_mtime_ns == first
    assert (tmp_path / "LTE_frame_2.png").exists() and (tmp_path / "frames.csv").read_text().count("\n") == 3
    with pytest.raises(DataError, match="seed 3"):
        synthetic.generate(tmp_path, {"LTE": 2}, seed=4)
    synthetic.generate(tmp_path, {"LTE": 1}, seed=3, keep_iq=True)
    (tmp_path / "LTE_frame_1.sigmf-meta").unlink()  # as a kill between samples and metadata leaves it
    synthetic.generate(tmp_path, {"LTE": 1}, seed=3, keep_iq=True)
    assert (tmp_path / "LTE_frame_1.sigmf-meta").exists()
    for wrong in ({"seed": -1}, {"workers": 0}, {"workers": -1}):
        with pytest.raises(DataError, match="can't be used"):
            synthetic.generate(tmp_path / "none", {"LTE": 1}, **wrong)
    assert not (tmp_path / "none").exists()


def test_parts_of_several_machines_are_the_set_of_one_byte_for_byte(tmp_path, monkeypatch, one_process):
    def quick(family, index, seed):  # stands in for a frame
        level = np.random.default_rng([seed, index, len(family)]).integers(256)
        carriers = [{"technology": "LTE", "snr_db": 0.1 * index, "label": 'a "b", c'}]
        return np.zeros(4), carriers, np.full((256, 256), level, np.uint8)

    monkeypatch.setattr(synthetic, "labelled_frame", quick)
    monkeypatch.setattr(synthetic, "spectrogram_image", lambda iq: np.zeros((256, 256, 3), np.uint8))
    counts = {"NR": 3, "LTE": 2, "FIELD": 3}
    synthetic.generate(tmp_path / "one", counts, seed=2)
    joined = tmp_path / "joined"
    for number in (3, 1):
        synthetic.generate(tmp_path / f"part{number}", counts, seed=2, part=Part(number, 3))
        with pytest.raises(DataError, match="interrupted"):
            find_frames(tmp_path / f"part{number}")
        shutil.copytree(tmp_path / f"part{number}", joined, dirs_exist_ok=True)
    pictures = len(list(joined.rglob("*.png")))
    assert pictures == 5  # of 8: frames 1, 3, 4, 6 and 7 are parts one and three
    synthetic.generate(joined, counts, seed=2)

    def contents(root):
        return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    assert contents(joined) == contents(tmp_path / "one")


def test_other_frames_are_written_read_and_completed(tmp_path, one_process):
    counts = {"NR": 0, "LTE": 0, "LTE_NR": 0, "FIELD": 0, "OTHER": 1}
    synthetic.generate(tmp_path, counts, seed=5)
    (frame,) = find_frames(tmp_path)
    assert (frame.name, frame.family) == ("OTHER/OTHER_frame_1", "OTHER")
    _, carriers, mask = labelled_frame("OTHER", 1, 5)
    classes = np.vectorize({0: 0, 85: 1, 170: 2, 255: IGNORE}.get)(mask)
    assert np.array_equal(read_mask(frame), classes)
    row = (tmp_path / "frames.csv").read_text().splitlines()[1]
    assert row.startswith("OTHER/OTHER_frame_1,OTHER,5,") and json.dumps(carriers[0])[1:9].strip('"') in row
    written = frame.png.stat().st_mtime_ns
    synthetic.generate(tmp_path, counts, seed=5)
    assert frame.png.stat().st_mtime_ns == written


# ---- interruptions --------------------------------------------------------------------------------------------------


def tiny_frame(family, index, seed):
    """In place of labelled_frame: quick, and of the seed."""
    rng = np.random.default_rng([seed, len(family), index])
    carriers = [{"technology": "LTE", "center_hz": 0.0, "bandwidth_hz": 1e7, "snr_db": round(rng.uniform(0, 30), 2)}]
    return rng.integers(0, 255, (4, 4, 3)).astype(np.uint8), carriers, np.full((4, 4), 255, np.uint8)


@pytest.fixture
def tiny_frames(monkeypatch, one_process):
    monkeypatch.setattr(synthetic, "labelled_frame", tiny_frame)
    monkeypatch.setattr(synthetic, "spectrogram_image", lambda picture: picture)


def everything(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stop_at", ["write_raster", "save", "first replace", "second replace"])
def test_picture_and_mask_appear_together_and_an_unfinished_set_says_so(tmp_path, monkeypatch, tiny_frames, stop_at):
    counts = {"NR": 2, "LTE": 2}
    synthetic.generate(tmp_path / "whole", counts)
    left = [{"write_raster": 3, "save": 3, "first replace": 5, "second replace": 6}[stop_at]]  # of the third frame

    def stopping(inner):
        def call(*arguments, **values):
            left[0] -= "_frame_" in str(arguments)
            if left[0] == 0:
                raise KeyboardInterrupt
            return inner(*arguments, **values)

        return call

    with monkeypatch.context() as patch:
        if stop_at == "write_raster":
            patch.setattr(writing, "write_raster", stopping(writing.write_raster))
        elif stop_at == "save":
            patch.setattr(Image.Image, "save", stopping(Image.Image.save))
        else:
            replace = stopping(os.replace)
            patch.setattr(writing, "os", SimpleNamespace(replace=replace, getpid=os.getpid))
        with pytest.raises(KeyboardInterrupt):
            synthetic.generate(tmp_path / "parts", counts)
    found = everything(tmp_path / "parts")
    assert json.loads(found["unfinished.json"])["counts"] == counts
    lone = {name[:-4] for name in found if name.endswith(".hdf")} - {n[:-4] for n in found if n.endswith(".png")}
    assert not lone or stop_at == "second replace"  # a moment between two renames, which the marker covers
    with pytest.raises(DataError, match=f"interrupted.* data.synthetic {tmp_path / 'parts'} --nr 2 --lte 2 --comb"):
        find_frames(tmp_path / "parts")
    (tmp_path / "parts" / ".NR_frame_1.png.77.part").touch()  # as a kill leaves them
    (tmp_path / "parts" / ".NR_frame_1.hdf.77.part.77.tmp").touch()
    synthetic.generate(tmp_path / "parts", counts)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")
    assert len(find_frames(tmp_path / "parts")) == 4


def test_a_damaged_row_of_frames_csv_is_made_again(tmp_path, tiny_frames):
    synthetic.generate(tmp_path, {"NR": 4})
    whole, path = everything(tmp_path), tmp_path / "frames.csv"
    for old, new in (
        (b"NR_frame_2,", b"NR_fr\xffme_2,"),
        (b"LTE", b"L\0E"),
        (b"}]", b"}"),
        (b"snr_db", b"x" * 140_000),
    ):
        path.write_bytes(whole["frames.csv"].replace(old, new, 3))
        synthetic.generate(tmp_path, {"NR": 4})
        assert everything(tmp_path) == whole


def test_a_full_disk_is_told_with_the_file_and_the_remedy(tmp_path, monkeypatch, tiny_frames, capsys):
    def full(self, path, **options):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert synthetic.main([str(tmp_path), "--nr", "1", *"--lte 0 --combined 0 --field 0".split()]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "NR_frame_1.hdf cannot be written (No space left on device); free some space" in told
    assert not list(tmp_path.glob("*.png")) + list(tmp_path.glob("*.hdf")) + list(tmp_path.glob("*.part"))


def test_one_generator_at_a_time(tmp_path, tiny_frames):
    with locked(tmp_path), pytest.raises(DataError, match="another process is writing"):
        synthetic.generate(tmp_path, {"NR": 1})
    synthetic.generate(tmp_path, {"NR": 1})


def test_sigterm_stops_a_command_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 130
    assert "run the same command again" in capsys.readouterr().err and signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_generator_says_one_sentence_and_leaves_no_worker(tmp_path, number):
    command = [sys.executable, "-m", "data.synthetic", str(tmp_path / "set"), "--nr", "50", "--workers", "2"]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    pipes["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), start_new_session=True, **pipes)
    try:
        while not list((tmp_path / "set").glob("*.png")):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        told = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in told
    assert told.splitlines()[-1] == "stopped; run the same command again to go on"
    assert left_over(tmp_path) == 0
