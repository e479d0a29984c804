"""segment.py from file to table; a stand-in for the network labels by level.   pytest tests/test_segment.py"""

import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segment
from data.recording import Frame, noise_floor
from data.recording_formats import open_recording
from data.spectrogram import FRAME_SAMPLES, SAMPLE_RATE, spectrogram_image
from models import segmentation
from models.rebuild import rebuild
from tests.conftest import label_by_level, lte_capture
from utils import checkpoint, labelling, pictures, release
from utils.carriers import Carrier, find_carriers
from utils.runs import run

CENTER = 1.8e9


def band(rate, count, carriers, seed=0):
    """Noise of power 1 per sample, plus flat bands (low_hz, high_hz, dB above the noise[, share of the time])."""
    rng = np.random.default_rng(seed)

    def noise():
        return rng.standard_normal((count, 2), np.float32).view(np.complex64)[:, 0] * np.float32(0.5**0.5)

    total, hz = noise(), np.fft.fftfreq(count, 1 / rate)
    for low, high, db, *share in carriers:
        inside = (hz >= low) & (hz < high)
        signal = np.fft.ifft(np.fft.fft(noise()) * inside).astype(np.complex64) * np.float32(10 ** (db / 20))
        total[: int(count * share[0]) if share else count] += signal[: int(count * share[0]) if share else count]
    return total


def write_sigmf(folder, iq, rate, annotations=(), name="rec", center=CENTER, **general):
    fields = {"core:version": "1.0.0", "core:datatype": "cf32_le", "core:sample_rate": rate} | general
    capture = {"core:sample_start": fields.get("core:offset", 0)} | ({"core:frequency": center} if center else {})
    meta = {"global": fields, "captures": [capture], "annotations": list(annotations)}
    (folder / f"{name}.sigmf-meta").write_text(json.dumps(meta))
    (folder / f"{name}.sigmf-data").write_bytes(iq.astype("<c8").tobytes())
    return folder / f"{name}.sigmf-meta"


@pytest.fixture
def find(monkeypatch, tmp_path, untrained):
    """Run segment.py with the stand-in, which bands of noise satisfy but no evidence; returns result.json."""
    monkeypatch.setattr(labelling, "class_probabilities", label_by_level)

    def call(*arguments):
        out = tmp_path / "out"
        known = ["--no-evidence", "--checkpoint", str(untrained), "--device", "cpu", "--out", str(out)]
        assert segment.main([str(argument) for argument in [*arguments, *known]]) in (0, segment.NOTHING_FOUND)
        return json.loads((out / "result.json").read_text())

    return call


def edges(result):
    return [(c["technology"], c["lower_hz"] - CENTER, c["upper_hz"] - CENTER) for c in result["carriers"]]


def test_carriers_of_a_narrow_capture_are_found_at_their_edges_and_nothing_outside_it(find, tmp_path, capsys):
    rate = 19.2e6
    iq = band(rate, round(0.05 * rate), [(-7e6, -2e6, 12), (1e6, 5e6, 35, 0.5)])  # the last frame is cut short
    result = find(write_sigmf(tmp_path, iq, rate))
    assert result["frames"] == 2
    lte, nr = edges(result)[0], edges(result)[1:]
    assert lte == ("LTE", pytest.approx(-7e6, abs=0.25e6), pytest.approx(-2e6, abs=0.25e6))
    assert {row[0] for row in nr} == {"NR"}
    # 5 MHz filled are no channel's; 4 are those of NR at 30 kHz in one of 5 MHz.
    assert nr[0][1:] == (pytest.approx(0.5e6, abs=0.25e6), pytest.approx(5.5e6, abs=0.25e6))
    assert all(not c["reaches_lower_edge"] and not c["reaches_upper_edge"] for c in result["carriers"])
    assert result["carriers"][0]["active"] > 0.95 and result["carriers"][0]["confidence"] == pytest.approx(0.8)
    assert result["carriers"][0]["runs"] == [{"sample_start": 0, "sample_count": len(iq)}]
    printed = capsys.readouterr().out
    assert "LTE" in printed and f" {result['carriers'][0]['lower_hz'] / 1e6:.2f} " in printed
    pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert pictures == ["waterfall.png"]


def test_a_carrier_that_fills_the_capture_is_said_to_reach_its_edges(find, tmp_path, capsys):
    iq = band(8e6, 320_000, [(-4e6, 4e6, 15)])
    iq[:32000] = band(8e6, 32_000, [])  # a gap in which the floor shows
    result = find(write_sigmf(tmp_path, iq, 8e6))
    (carrier,) = result["carriers"]
    assert carrier["reaches_lower_edge"] and carrier["reaches_upper_edge"]
    assert (carrier["lower_hz"], carrier["upper_hz"]) == (CENTER - 4e6, CENTER + 4e6)
    assert carrier["active"] == pytest.approx(0.9, abs=0.03)
    printed = capsys.readouterr().out
    assert "<=1796.00" in printed and ">=1804.00" in printed and "reaches the capture's edge" in printed


@pytest.mark.slow
def test_carriers_of_a_wide_capture_are_whole_where_its_pieces_meet(find, tmp_path):
    iq = band(70e6, 2_800_000, [(-34e6, -16e6, 12), (-6e6, 12e6, 12), (18e6, 32e6, 35)])
    got = edges(find(write_sigmf(tmp_path, iq, 70e6)))
    wanted = [("LTE", -35e6, -15e6), ("LTE", -7e6, 13e6), ("NR", 17.5e6, 32.5e6)]  # the channels of these widths
    assert [row[0] for row in got] == [row[0] for row in wanted]
    assert np.allclose([row[1:] for row in got], [row[1:] for row in wanted], atol=0.2e6)


def test_active_counts_the_time_in_which_the_band_is_above_the_noise(untrained, monkeypatch, tmp_path):
    monkeypatch.setattr(labelling, "class_probabilities", label_by_level)
    model = labelling.load_network(untrained, "cpu")
    iq = band(10e6, 400_000, [(-2e6, 2e6, 15, 0.3)])
    meta = write_sigmf(tmp_path, iq, 10e6)
    (carrier,) = find_carriers(labelling.label_frame(next(open_recording(meta).frames()), model))
    assert carrier.active == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("rate", [9e6, 10e6, 23.04e6, 100e6])
def test_the_shipped_network_finds_one_carrier_at_any_rate(rate):
    model = labelling.load_network(release.shipped("seg_student.pt"), "cpu")
    iq = lte_capture(rate, 0.7)
    floor, kind = noise_floor(iq, rate)
    (row,) = find_carriers(labelling.label_frame(Frame(0, iq, rate, CENTER, floor, floor_kind=kind), model))
    assert row.technology == "LTE"
    assert abs(row.lower_hz - CENTER + 5e6) <= 5e5 and abs(row.upper_hz - CENTER - 5e6) <= 5e5


@pytest.mark.parametrize("milliseconds", [10, 41, 80])
def test_recordings_of_any_length_give_the_same_row_and_count_each_sample_once(find, tmp_path, milliseconds):
    iq = band(10e6, round(10e3 * milliseconds), [(-2e6, 2e6, 15)])
    iq[: len(iq) // 4] = band(10e6, len(iq) // 4, [])
    result = find(write_sigmf(tmp_path, iq, 10e6))
    (row,) = result["carriers"]
    assert row["samples"] == len(iq) and row["runs"] == [{"sample_start": 0, "sample_count": len(iq)}]
    assert row["active"] == pytest.approx(0.75, abs=0.03)
    assert abs(row["lower_hz"] - CENTER + 2e6) < 6e5 and abs(row["upper_hz"] - CENTER - 2e6) < 6e5  # a 5 MHz channel
    assert any("repeated for the picture" in note for note in result["notes"]) == (milliseconds < 40)


def test_a_receivers_faults_are_noted_and_change_no_row(find, tmp_path, capsys):
    rate = 19.2e6
    iq = band(rate, 768_000, [(-7e6, -2e6, 15), (1e6, 5e6, 30)])
    wanted = edges(find(write_sigmf(tmp_path, iq, rate)))
    iq[400_000:] *= 0.5
    iq[100_000:104_000], iq[300_000] = 0, 1e6
    result = find(write_sigmf(tmp_path, iq, rate))
    got = edges(result)
    assert [row[0] for row in got] == [row[0] for row in wanted]
    assert np.allclose([row[1:] for row in got], [row[1:] for row in wanted], atol=0.25e6)
    assert [note.split(":")[0] for note in result["notes"]] == ["dropped samples", "glitches", "gain steps"]
    printed = capsys.readouterr().out
    assert all(f"note: {note}" in printed for note in result["notes"])


@pytest.fixture(scope="module")
def grid_frame(tmp_path_factory):
    """A frame at 61.44 MS/s: SigMF metadata, and the picture that the generator writes of it."""
    folder = tmp_path_factory.mktemp("grid")
    iq = band(SAMPLE_RATE, FRAME_SAMPLES, [(-20e6, -10e6, 30, 0.6), (3e6, 23e6, 8)])
    Image.fromarray(spectrogram_image(iq)).save(folder / "rec.png")
    return write_sigmf(folder, iq, SAMPLE_RATE, center=None)


def test_a_recording_on_the_grid_shows_the_network_the_picture_of_the_data_set(grid_frame, untrained):
    model = labelling.load_network(untrained, "cpu")
    view = labelling.label_frame(next(open_recording(grid_frame).frames()), model)
    picture = np.asarray(Image.open(grid_frame.with_suffix(".png")))
    assert np.array_equal(view.picture, picture)
    network = rebuild(checkpoint.load(untrained)).eval()
    with torch.no_grad():
        x = segmentation.normalise(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])
        assert np.allclose(view.probability, network(x)["out"].softmax(1)[0], atol=1e-4)


def test_a_picture_gives_the_table_of_the_recording_it_shows(find, grid_frame, tmp_path):
    of_samples = find(grid_frame)["carriers"]
    of_picture = find(grid_frame.with_suffix(".png"))["carriers"]
    assert len(of_samples) == 2
    for a, b in zip(of_samples, of_picture, strict=True):
        assert (a["technology"], a["lower_hz"], a["upper_hz"]) == (b["technology"], b["lower_hz"], b["upper_hz"])
        assert a["active"] == pytest.approx(b["active"], abs=0.05) and not b["absolute"]
    large = tmp_path / "large.png"
    Image.open(grid_frame.with_suffix(".png")).resize((512, 512), Image.Resampling.NEAREST).save(large)
    result = find(large)
    assert result["carriers"] == of_picture and "512x512" in result["notes"][0]


def test_a_network_of_small_frames_is_shown_small_frames(tmp_path, untrained, monkeypatch):
    data = checkpoint.load(untrained) | {"frame_size": [128, 128]}
    checkpoint.save(tmp_path / "small.pt", data)
    shapes, build = [], labelling.rebuild

    def watched(data):
        network = build(data)
        network.register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape[-2:]))
        return network

    monkeypatch.setattr(labelling, "rebuild", watched)
    logits_of = labelling.load_network(tmp_path / "small.pt", "cpu")
    assert labelling.class_probabilities(logits_of, np.zeros((256, 256, 3), np.uint8)).shape == (3, 256, 256)
    assert shapes == [(128, 128)]


@pytest.mark.filterwarnings("ignore:Data source ends before")  # the package does not count core:offset
def test_annotations_keep_what_was_there_replace_our_own_and_satisfy_sigmf(find, tmp_path):
    theirs = {"core:sample_start": 140_000, "core:sample_count": 5, "core:label": "mine", "core:generator": "me"}
    iq = band(5e6, 150_000, [(-1e6, 1e6, 15)])
    meta = write_sigmf(tmp_path, iq, 5e6, [theirs], **{"core:offset": 1000, "core:author": "me"})
    texts = []
    for _ in range(2):
        find(meta, "--annotate")
        texts.append(meta.read_text())
    assert texts[0] == texts[1]
    written = json.loads(texts[0])
    assert written["global"]["core:author"] == "me" and theirs in written["annotations"]
    ours = [entry for entry in written["annotations"] if entry["core:generator"] == segment.GENERATOR]
    assert [(a["core:sample_start"], a["core:sample_count"], a["core:label"]) for a in ours] == [(1000, 150_000, "LTE")]
    assert ours[0]["core:freq_lower_edge"] == pytest.approx(CENTER - 1e6, abs=0.25e6)
    assert ours[0]["core:freq_upper_edge"] == pytest.approx(CENTER + 1e6, abs=0.25e6)
    starts = [entry["core:sample_start"] for entry in written["annotations"]]
    assert starts == sorted(starts)
    sigmf = pytest.importorskip("sigmf")
    sigmf.fromfile(str(meta)).validate()


def test_annotating_bare_samples_writes_metadata_that_sigmf_can_read(find, tmp_path):
    iq = band(5e6, 200_000, [(-1e6, 1e6, 15)])
    file = tmp_path / "bare.1.bin"
    file.write_bytes((iq / np.abs(iq).max() * 127).view(np.float32).round().astype(np.int8).tobytes())
    find(file, "--datatype", "ci8", "--sample-rate", 5e6, "--center-frequency", CENTER, "--annotate")
    meta = tmp_path / "bare.1.bin.sigmf-meta"
    (entry,) = json.loads(meta.read_text())["annotations"]
    assert entry["core:label"] == "LTE"
    assert len(open_recording(meta)) == 1 and open_recording(meta).path == file
    sigmf = pytest.importorskip("sigmf")
    opened = sigmf.fromfile(str(meta))
    opened.validate()
    assert opened.sample_count == 200_000


def test_bad_input_is_one_sentence_exit_code_2_and_leaves_nothing_behind(tmp_path, untrained, capsys, monkeypatch):
    def fails(*arguments):
        out = tmp_path / "never"
        errors = (segment.DataError, segment.ModelError)
        known = ["--out", str(out), "--device", "cpu"]
        assert run(lambda: segment.main([str(argument) for argument in [*known, *arguments]]), *errors) == 2
        assert not out.exists()
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
        return printed.err

    use = ("--checkpoint", untrained)
    bare = tmp_path / "bare.bin"
    bare.write_bytes(bytes(1000))
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (256, 256)).save(tmp_path / "flat.png")
    other = tmp_path / "other.pt"
    checkpoint.save(other, checkpoint.load(untrained) | {"kind": "modulation"})
    assert "add --datatype (ci8, cu8, ci16_le or cf32_le) and --sample-rate HZ" in fails(bare, *use)
    assert "add --sample-rate" in fails(bare, "--datatype", "ci8", *use)
    assert "no such file" in fails(tmp_path / "missing.bin", *use)
    assert "cannot be read as a picture" in fails(tmp_path / "text.png", *use)
    assert "can't be annotated" in fails(tmp_path / "flat.png", "--annotate", *use)
    assert "no such checkpoint" in fails(tmp_path / "flat.png", "--checkpoint", tmp_path / "missing.pt")
    assert "not a checkpoint" in fails(tmp_path / "flat.png", "--checkpoint", bare)
    assert "modulation" in fails(tmp_path / "flat.png", "--checkpoint", other)
    damaged = tmp_path / "damaged.pt"
    checkpoint.save(damaged, checkpoint.load(untrained))
    (tmp_path / "damaged.calibration.json").write_text('{"curves": {"cell": [1]}}')
    assert "damaged.calibration.json: damaged" in fails(tmp_path / "flat.png", "--checkpoint", damaged)
    monkeypatch.setattr(segment, "STUDENT", tmp_path / "seg_student.pt")
    assert "seg_student.pt: no such checkpoint; train one" in fails(tmp_path / "flat.png")
    for value in ("nan", "inf"):
        with pytest.raises(SystemExit):
            segment.parse_args([str(bare), "--center-frequency", value])
    capsys.readouterr()


def test_silence_and_a_flat_picture_hold_no_carrier(find, tmp_path):
    meta = write_sigmf(tmp_path, np.zeros(50_000, np.complex64), 2e6, center=None)
    assert find(meta)["carriers"] == []
    Image.new("RGB", (256, 256)).save(tmp_path / "flat.png")
    assert find(tmp_path / "flat.png")["carriers"] == []


def test_the_number_of_pictures_is_limited_and_those_of_an_earlier_recording_go(find, tmp_path, grid_frame):
    for wanted in (1, 0):
        find(grid_frame.with_suffix(".png"), "--pictures", wanted)
        assert len(list((tmp_path / "out").glob("*.png"))) == wanted


def test_stdout_is_json_or_csv_and_the_exit_code_tells_what_was_found(tmp_path, untrained, monkeypatch, capsys):
    monkeypatch.setattr(labelling, "class_probabilities", label_by_level)
    known = ["--no-evidence", "--checkpoint", str(untrained), "--device", "cpu", "--out", str(tmp_path / "out")]
    meta = write_sigmf(tmp_path, band(10e6, 400_000, [(-2e6, 2e6, 15)]), 10e6)
    assert segment.main([str(meta), *known, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "out/result.json").read_text())
    assert segment.main([str(meta), *known, "--csv", "--annotate"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    (carrier,) = printed["carriers"]
    assert row["technology"] == carrier["technology"] and float(row["lower_hz"]) == carrier["lower_hz"]
    assert "cells" not in row
    noise = write_sigmf(tmp_path, band(10e6, 400_000, []), 10e6, name="noise")
    for form, empty in (("--json", None), ("--csv", []), (None, None)):
        assert segment.main([str(noise), *known, *([form] if form else [])]) == segment.NOTHING_FOUND
        out = capsys.readouterr().out
        assert empty is None or list(csv.DictReader(io.StringIO(out))) == empty


def test_annotations_tell_cut_edges_evidence_and_the_standard_in_sigmfs_words():
    row = Carrier("LTE", 1e9, 1.01e9, True, 0.5, 0.95, cut_above=True, evidence="cell 7 TDD")
    row.cells = {"LTE 7": {"cell_id": 7, "duplex": "TDD"}}
    row.runs = [[0, 10], [20, 5]]
    first, second = segment.annotations([row])
    assert (first["core:sample_start"], second["core:sample_count"]) == (0, 5)
    assert first["core:comment"].endswith("goes on beyond the capture's upper edge, evidence: cell 7 TDD")
    detail = first["signal:detail"]
    assert detail["standard"] == "LTE" and detail["duplexing"] == "tdd" and detail["multiplexing"] == "ofdm"
    assert "channel_bw" not in detail  # its edge is not known
    whole = Carrier("NR", 1e9, 1.01e9, True, 0.5, 0.95, runs=[[0, 10]])
    assert segment.annotations([whole])[0]["signal:detail"]["channel_bw"] == 10e6
    assert "signal:detail" not in segment.annotations([Carrier("other", 0, 1, True, 0.5, 0.9, runs=[[0, 1]])])[0]


def test_options_that_contradict_the_metadata_are_refused_before_any_frame(tmp_path, untrained, monkeypatch):
    monkeypatch.setattr(labelling, "label_frame", None)
    meta = write_sigmf(tmp_path, band(5e6, 1000, []), 5e6)
    arguments = [str(meta), "--annotate", "--center-frequency", "1e9", "--checkpoint", str(untrained)]
    with pytest.raises(segment.DataError, match="--center-frequency is 1e.09 and the metadata say 1.8e.09"):
        segment.main(arguments)


def test_a_folder_that_can_not_be_written_is_told_before_any_frame(tmp_path, untrained, monkeypatch):
    monkeypatch.setattr(labelling, "label_frame", None)
    meta = write_sigmf(tmp_path, band(5e6, 1000, []), 5e6)
    with pytest.raises(segment.RunError, match="choose another folder with --out"):
        segment.main([str(meta), "--checkpoint", str(untrained), "--device", "cpu", "--out", str(meta)])


def test_overlays_of_a_wide_capture_have_one_scale_of_colours(untrained):
    model = labelling.load_network(untrained, "cpu")
    iq = band(122.88e6, 200_000, [(20e6, 40e6, 40)])
    picture = labelling.label_frame(Frame(0, iq, 122.88e6, CENTER, 1 / 122.88e6), model).picture
    quiet = picture[:, np.r_[10:200, 460:500]].astype(float).mean(0)  # columns of noise in all pieces, RGB
    assert np.abs(quiet - quiet.mean(0)).max() < 12


@pytest.mark.slow
def test_workers_give_the_results_of_one_process(tmp_path, capsys):
    rate = 5e6
    iq = np.concatenate([band(rate, 200_000, [(-2e6, -0.6e6, 12), (0.5e6, 2e6, 25, 0.5)], seed) for seed in range(60)])
    meta = write_sigmf(tmp_path, iq, rate)
    results = []
    for workers in (1, 3):
        assert segment.main([str(meta), "--json", "--workers", str(workers), "--out", str(tmp_path / "out")]) in (0, 3)
        results.append(json.loads(capsys.readouterr().out))
    for result in results:
        del result["command"]
    assert results[0] == results[1] and results[0]["frames"] == 60


def several(folder: Path) -> list[Path]:
    """Two recordings with carriers and one with noise alone."""
    rate = 5e6
    bands = [[(-2e6, -0.6e6, 12)], [(0.5e6, 2e6, 25, 0.5)], []]
    return [write_sigmf(folder, band(rate, 200_000, own), rate, name=f"rec{i}") for i, own in enumerate(bands)]


def test_several_recordings_give_one_table_and_each_the_rows_that_it_has_alone(find, tmp_path, capsys):
    paths = several(tmp_path)
    alone = [find(path)["carriers"] for path in paths]
    capsys.readouterr()
    together = find(*paths)["recordings"]
    printed = capsys.readouterr().out
    assert [one["carriers"] for one in together] == alone and [len(rows) for rows in alone] == [1, 1, 0]
    assert [line.split()[0] for line in printed.splitlines()[1:4]] == [f"rec{i}.sigmf-meta" for i in range(3)]
    assert "rec2.sigmf-meta  no LTE or NR" in printed
    for i, rows in enumerate(alone):
        assert json.loads((tmp_path / f"out/rec{i}/result.json").read_text())["carriers"] == rows
    find(*paths, "--csv")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("recording,technology") and len(lines) == 3 and lines[2].startswith("rec1.sigmf-meta,")
    with pytest.raises(segment.RunError, match="named alone"):
        segment.main([str(paths[0]), str(tmp_path / "frame.png")])
    again = find(paths[0], paths[0])  # of one name: a folder each
    assert len(again["recordings"]) == 2 and (tmp_path / "out/rec0_2/result.json").exists()


@pytest.mark.slow
def test_several_recordings_give_the_same_with_several_processes(tmp_path, capsys):
    paths = [str(path) for path in several(tmp_path)]
    results = []
    for workers in ("1", "3"):
        assert segment.main([*paths, "--json", "--workers", workers, "--out", str(tmp_path / "out")]) in (0, 3)
        results.append(json.loads(capsys.readouterr().out)["recordings"])
    for result in results[0] + results[1]:
        del result["command"]
    assert results[0] == results[1]


@pytest.mark.parametrize("delay", [0.2, *(pytest.param(delay, marks=pytest.mark.slow) for delay in (0.6, 2.0))])
def test_ctrl_c_never_shows_a_traceback(tmp_path, delay):
    meta = write_sigmf(tmp_path, band(5e6, 2_000_000, []), 5e6)
    code = f"""import os, runpy, sys, threading
sys.argv = ["segment.py", {str(meta)!r}, "--out", {str(tmp_path / "out")!r}]
threading.Timer({delay}, os.kill, (os.getpid(), 2)).start()
runpy.run_path("segment.py", run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_full_disk_leaves_the_old_picture_or_none_and_never_half_of_one(tmp_path, monkeypatch):
    picture = Image.new("RGB", (8, 8))
    pictures.save(picture, tmp_path / "old.png")
    before = (tmp_path / "old.png").read_bytes()

    def full(self, file, **options):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    for name in ("old.png", "new.png"):
        with pytest.raises(OSError, match="No space left"):
            pictures.save(picture, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"] and (tmp_path / "old.png").read_bytes() == before
