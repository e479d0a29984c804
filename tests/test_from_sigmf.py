"""From corrected annotations to frames that teach: data/from_sigmf.py.   pytest tests/test_from_sigmf.py"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import segment
import train_seg
from data import DataError
from data.from_sigmf import main, mask_of
from data.hdf4 import read_raster
from data.recording_formats import open_recording
from data.spectrum_sensing import IGNORE, find_frames, read_frame, split
from tests.conftest import write_frames
from utils import checkpoint, labelling

RATE, CENTER = 5e6, 1.8e9


def record(folder, annotations, seconds=0.08, rate=RATE, center=CENTER, name="mine"):
    """White noise with SigMF metadata; annotations as (label, first, last in s, lower, upper in MHz)."""
    rng = np.random.default_rng(0)
    iq = rng.standard_normal((round(seconds * rate), 2), np.float32)
    entries = [
        {
            "core:sample_start": round(first * rate),
            "core:sample_count": round((last - first) * rate),
            "core:freq_lower_edge": (center or 0) + low * 1e6,
            "core:freq_upper_edge": (center or 0) + high * 1e6,
            "core:label": label,
        }
        for label, first, last, low, high in annotations
    ]
    capture = {"core:sample_start": 0} | ({"core:frequency": center} if center else {})
    fields = {"core:version": "1.0.0", "core:datatype": "cf32_le", "core:sample_rate": rate}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.sigmf-data").write_bytes(iq.tobytes())
    meta = folder / f"{name}.sigmf-meta"
    meta.write_text(json.dumps({"global": fields, "captures": [capture], "annotations": entries}))
    return meta


def classes(folder):
    """{picture's name: classes (256, 256)} as training reads them."""
    return {frame.name: read_frame(frame)[1] for frame in find_frames(folder)}


def test_annotations_become_classes_where_and_when_they_are(tmp_path):
    rows = [("LTE", 0.0, 0.08, -2, -1), ("5G NR", 0.0, 0.06, 0, 1), ("unknown", 0.0, 0.08, 1.5, 9)]
    meta = record(tmp_path, [*rows, ("other", 0, 0.08, -1, -0.5)])
    assert main([str(meta), str(tmp_path / "frames")]) == 0
    first, second = classes(tmp_path / "frames").values()
    column = np.floor(128 + np.array([-1.5, -0.75, 0.5, 2.0, 3.0]) / 0.24).astype(int)
    assert first[:, column].T.tolist() == [[2] * 256, [0] * 256, [1] * 256, [IGNORE] * 256, [0] * 256]  # 2.5 MHz: edge
    # NR ends in the middle of the second frame; the picture's first row is the frame's end.
    assert second[:, column[2]].tolist() == [0] * 128 + [1] * 128
    widths = [(first == value).any(0).sum() for value in (2, 1)]
    assert all(1 / 0.24 - 1 <= width <= 1 / 0.24 + 2 for width in widths)


def test_a_frame_that_is_repeated_repeats_its_labels_and_pieces_of_a_wide_capture_agree(tmp_path):
    meta = record(tmp_path, [("NR", 0.0, 0.005, -1, 1)], seconds=0.01)
    recording = open_recording(meta)
    (frame,) = recording.frames()
    mask = mask_of(frame, -128, [(0, 25_000, CENTER - 1e6, CENTER + 1e6, 85)])
    assert (mask[:, 128].reshape(4, 64) == [[0] * 32 + [85] * 32] * 4).all()
    wide = record(tmp_path, [("LTE", 0, 0.01, -9, 21)], 0.01, rate=92.16e6, name="wide")
    assert main([str(wide), str(tmp_path / "wide_frames")]) == 0
    seen = classes(tmp_path / "wide_frames")
    shown = {int(name[-5:]) - 128: np.flatnonzero((mask == 2).all(0)) for name, mask in seen.items()}
    assert len(shown) == 2
    edges = {(first + columns[0], first + columns[-1]) for first, columns in shown.items() if 0 < columns[0]}
    assert {low for low, _ in edges} == {-38}  # floor(-9 / .24)
    assert max(first + columns[-1] for first, columns in shown.items()) == 87


def test_what_can_not_be_taught_is_refused_in_a_sentence(tmp_path, capsys):
    def fails(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ")
        return error

    out = tmp_path / "frames"
    foreign = record(tmp_path, [("Wi-Fi", 0, 1, 0, 1)])
    assert "'Wi-Fi' is unknown; call it LTE, NR, other or unknown" in fails(foreign, out)
    assert not out.exists()
    assert "255 would be LTE" in fails(record(tmp_path, [("unknown", 0, 1, 0, 1)]), out)
    other = record(tmp_path / "other", [("LTE", 0, 1, 0, 1)])
    assert "another recording has this name" in fails(record(tmp_path, []), other, out)
    write_frames(tmp_path / "set", {"NR": 1, "LTE": 1}, size=256)
    assert "another set" in fails(other, tmp_path / "set")


def test_frames_of_an_earlier_call_go_and_many_are_thinned_out(tmp_path, capsys):
    meta = record(tmp_path, [("LTE", 0, 1, 0, 1)], seconds=0.2)
    assert main([str(meta), str(tmp_path / "frames")]) == 0
    assert len(classes(tmp_path / "frames")) == 5
    assert main([str(meta), str(tmp_path / "frames"), "--most", "3"]) == 0
    assert [name.split("_")[2] for name in classes(tmp_path / "frames")] == ["00000", "00002", "00004"]
    assert "3 pictures" in capsys.readouterr().out
    quiet = record(tmp_path, [], name="quiet")
    assert main([str(quiet), str(tmp_path / "frames")]) == 0
    assert "taught as noise" in capsys.readouterr().out
    frames = find_frames(tmp_path / "frames")
    assert split(find_frames(write_frames(tmp_path / "set", {"NR": 8, "LTE": 8})), more=frames)["train"][-5:] == frames


@pytest.mark.slow
def test_round_trip_segment_correct_train_segment(tmp_path, small_frames_dir, untrained, monkeypatch):
    """What the network calls NR is corrected to LTE by hand; the network trained on that calls it LTE."""
    meta = record(tmp_path, [], seconds=0.12)
    half = np.zeros((3, 256, 256), np.float32)
    half[0], half[:, :, 123:133] = 1, np.float32([0.05, 0.9, 0.05])[:, None, None]
    with monkeypatch.context() as patch:
        patch.setattr(labelling, "class_probabilities", lambda logits_of, picture: half)
        known = ["--no-evidence", "--device", "cpu", "--out", str(tmp_path / "out")]
        assert segment.main([str(meta), "--annotate", "--checkpoint", str(untrained), *known]) == 0
    written = json.loads(meta.read_text())
    assert [entry["core:label"] for entry in written["annotations"]] == ["NR"]
    written["annotations"][0]["core:label"] = "LTE"
    meta.write_text(json.dumps(written))
    assert main([str(meta), str(tmp_path / "frames")]) == 0
    images = [np.array(Image.open(path)) for path in sorted((tmp_path / "frames").glob("*.png"))]
    assert len(images) == 3 and all((read_raster(path) == 170).any() for path in (tmp_path / "frames").glob("*.hdf"))

    train = ["--data-dir", str(tmp_path / "set"), "--more-frames", str(tmp_path / "frames"), "--device", "cpu"]
    train += ["--checkpoint", str(untrained), "--epochs", "1", "--batch-size", "2", "--lr", "1e-2"]
    train += ["--model", "lraspp_mobilenet_v3_large", "--out", str(tmp_path / "run")]
    write_frames(tmp_path / "set", {"NR": 5, "LTE": 5})
    assert train_seg.main(train) == 0
    before, after = (labelling.load_network(path, "cpu") for path in (untrained, tmp_path / "run/best.pt"))

    def of_lte(network):
        return labelling.class_probabilities(network, images[0])[2, :, 123:133].mean()

    assert of_lte(after) > of_lte(before)
    assert segment.main([str(meta), "--checkpoint", str(tmp_path / "run/best.pt"), *known]) in (0, 3)
    assert checkpoint.load(tmp_path / "run/best.pt")["kind"] == "segmentation" and torch.get_num_threads() == 1


def test_numbers_in_annotations_that_are_none_are_told(tmp_path):
    meta = record(tmp_path, [("LTE", 0, 1, 0, 1)])
    written = json.loads(meta.read_text())
    written["annotations"][0]["core:freq_lower_edge"] = "low"
    meta.write_text(json.dumps(written))
    with pytest.raises(DataError, match="core:freq_lower_edge is 'low', not a number"):
        from data.from_sigmf import annotations_of

        annotations_of(open_recording(meta))
