"""evaluate.py on small frames of both kinds: seconds. Run: python -m pytest tests/test_evaluate.py"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from data.hdf4 import write_raster
from data.radioml import MODULATIONS, SNRS, open_frames, split
from data.spectrogram import PARULA
from models import segmentation
from models.rebuild import describe, rebuild
from models.vgg10 import to_brevitas
from tests.conftest import write_levels
from utils import checkpoint, cost, runs
from utils.cost import challenge_score, inference_cost

MODEL = "lraspp_mobilenet_v3_large"
pytestmark = pytest.mark.usefixtures("short_timing")


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """10 single-signal frames of 64 x 64 pixels, and a combined one."""
    names = [f"{family}_frame_{i}" for family in ("NR", "LTE") for i in range(5)]
    return write_levels(tmp_path_factory.mktemp("levels"), [*names, "LTE_NR/LTE_NR_frame_1"])


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """A segmentation network for frames of 64 x 64 pixels that was never trained."""
    torch.manual_seed(0)
    data = describe(segmentation.build(MODEL), *segmentation.factory(MODEL)) | {"kind": "segmentation"}
    path = tmp_path_factory.mktemp("network") / "one.pt"
    checkpoint.save(path, data | {"frame_size": [64, 64]})
    return path


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


# ---- segmentation ----------------------------------------------------------------------------------------------------


def test_frames_of_no_known_family_are_scored(network, tmp_path, capsys):
    write_levels(tmp_path / "set", ["mine_1", "deep/er/mine_LTE_2", "third"])
    argv = [str(network), "--data-dir", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert evaluate.main(argv) == 0
    sets = result_of(tmp_path / "out")["sets"]
    assert list(sets) == ["all"] and sets["all"]["frames"] == 3
    assert len(list((tmp_path / "out/pictures").iterdir())) == 4
    assert "mIoU" in capsys.readouterr().out


def test_of_other_frames_the_share_that_is_called_a_carrier_is_told(network, tmp_path, monkeypatch, capsys):
    """A stand-in for the network calls a quarter of each picture NR."""
    write_levels(tmp_path / "set", ["NR_frame_1", "OTHER/OTHER_frame_1", "OTHER/OTHER_frame_2"])
    for number in (1, 2):
        write_raster(tmp_path / f"set/OTHER/OTHER_frame_{number}.hdf", np.zeros((64, 64), np.uint8))
    answer = torch.tensor([8.0, 0.0, 0.0]).view(1, 3, 1, 1).repeat(1, 1, 64, 64)
    answer[:, 1, :, :16] = 9.0

    def logits(network, images, palette=None, size=None):
        return answer.expand(len(images), -1, -1, -1)

    monkeypatch.setattr(segmentation, "logits", logits)
    argv = [str(network), "--data-dir", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert evaluate.main(argv) == 0
    assert result_of(tmp_path / "out")["false_alarms"] == {"all, OTHER": {"fitted": 0.25, "alone": 0.25}}
    assert "all, OTHER: 25.00% of the pixels without a carrier called LTE or NR (25.00% by" in capsys.readouterr().out


def test_channels_are_fitted_and_the_network_alone_is_reported_beside_them(network, tmp_path, monkeypatch):
    """A stand-in for the network sees 75 columns of LTE three columns too high and takes them for NR."""
    levels, labels = np.random.default_rng(0).normal(60, 15, (256, 256)), np.zeros((256, 256), np.uint8)
    levels[:, 90:165] += 100  # 18 MHz, in a channel of 20
    labels[:, 85:169] = 255
    (tmp_path / "set").mkdir()
    Image.fromarray(PARULA[levels.clip(0, 255).astype(np.uint8)]).save(tmp_path / "set/one.png")
    write_raster(tmp_path / "set/one.hdf", labels)
    answer = torch.tensor([8.0, 0.0, 0.0]).view(1, 3, 1, 1).repeat(1, 1, 256, 256)
    answer[..., 88:172] = torch.tensor([0.0, 8.2, 8.0]).view(1, 3, 1, 1)
    monkeypatch.setattr(segmentation, "logits", lambda network, images, palette=None, size=None: answer)
    data = checkpoint.load(network)
    del data["frame_size"]
    checkpoint.save(tmp_path / "net.pt", data)
    argv = [str(tmp_path / "net.pt"), "--data-dir", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    assert evaluate.main(argv) == 0
    result = result_of(tmp_path / "out")
    _, nr, lte = result["sets"]["all"]["confusion_matrix"]
    assert lte[2] / sum(lte) > 0.97 and sum(nr) == 0
    assert result["network_alone"]["all"]["confusion_matrix"][2] == [3 * 256, 81 * 256, 0]


def test_frames_of_another_size_are_shown_at_the_trained_one(network, tmp_path, capsys):
    write_levels(tmp_path / "set", ["NR_frame_1", "LTE_frame_1"], size=96)
    assert evaluate.main([str(network), "--data-dir", str(tmp_path / "set")]) == 0
    assert "96 x 96 pixels, shown to a network of 64 x 64" in capsys.readouterr().out


def test_every_family_is_reported_and_nothing_is_written_unasked(frames, network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert evaluate.main([str(network), "--data-dir", str(frames)]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("all "))
    titles = [line[:18].strip() for line in lines[first : first + 5]]
    assert titles == ["all", "all, single-signal", "all, LTE", "all, LTE_NR", "all, NR"]
    assert not os.listdir(tmp_path)


def test_several_networks_stand_side_by_side_with_their_size(frames, network, tmp_path, capsys):
    torch.manual_seed(1)
    small = describe(segmentation.build(MODEL), *segmentation.factory(MODEL))
    checkpoint.save(tmp_path / "two.pt", small | {"kind": "segmentation", "frame_size": [64, 64]})
    paths = [str(network), str(tmp_path / "two.pt")]
    argv = [*paths, "--data-dir", str(frames), "--part", "test", "--out", str(tmp_path / "out")]
    assert evaluate.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()[-3:]
    folders = sorted(path.parent for path in (tmp_path / "out").glob("*/result.json"))
    results = {folder.name.rpartition("_")[2]: result_of(folder) for folder in folders}
    macs = cost.count(rebuild(checkpoint.load(network)), torch.zeros(1, 3, 64, 64)).macs
    for path, name, line in zip(paths, ("one", "two"), lines, strict=False):
        assert line.startswith(path) and f" 3218478 {macs / 1e6:7.1f}" in line
        assert f"{results[name]['sets']['test']['mean_iou']:.3f}" in line
        assert results[name]["macs"] == macs and results[name]["latency"]["median_ms"] > 0
    assert "1 frames of" in lines[-1]  # 8 to train on, 1 to choose by, 1 to report


# ---- modulations -----------------------------------------------------------------------------------------------------


def test_scores_of_modulations_equal_an_independent_count(radioml_file, untrained_classifier, tmp_path, capsys):
    argv = [str(untrained_classifier), "--data-file", str(radioml_file), "--out", str(tmp_path / "out")]
    assert evaluate.main(argv) == 0
    result, frames = result_of(tmp_path / "out"), open_frames(radioml_file)
    rows, model = split(frames)["test"], rebuild(checkpoint.load(untrained_classifier)).eval()
    with torch.no_grad():
        guess = model(frames.samples(rows)).argmax(1).numpy()
    right = guess == frames.labels[rows]
    assert result["sets"]["test"]["accuracy"] == right.mean()
    for snr in SNRS:
        assert result["sets"]["test"]["by_snr"][str(snr)] == right[frames.snrs[rows] == snr].mean()
    for label, name in enumerate(MODULATIONS):
        assert result["sets"]["test"]["by_class"][name] == right[frames.labels[rows] == label].mean()
    layers = inference_cost(model, torch.zeros(1, 2, 1024))
    total = challenge_score(layers)
    assert result["cost"] == total
    assert f"bops {total['bops']}, weight bits {total['weight_bits']}" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out/pictures").iterdir()} == {
        "accuracy_by_snr.png", "confusion.png", "confusion_high.png"
    }  # fmt: skip


def test_a_network_of_the_challenge_stands_beside_ours(radioml_file, untrained_classifier, tmp_path, capsys):
    model = rebuild(checkpoint.load(untrained_classifier))
    checkpoint.save(tmp_path / "theirs.pt", to_brevitas(model))
    argv = [str(untrained_classifier), str(tmp_path / "theirs.pt"), "--data-file", str(radioml_file), "--part", "all"]
    assert evaluate.main(argv) == 0
    ours, theirs, last = capsys.readouterr().out.splitlines()[-3:]
    assert ours.startswith(str(untrained_classifier)) and theirs.startswith(str(tmp_path / "theirs.pt"))
    assert ours.split()[1:] == theirs.split()[1:] and last.startswith("1872 frames")


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence_and_exit_code_2(
    frames, network, radioml_file, untrained_classifier, tmp_path, capsys
):
    (tmp_path / "text.pt").write_text("hello")
    checkpoint.save(tmp_path / "other.pt", {"kind": "weather"})
    checkpoint.save(tmp_path / "odd.pt", {"1.weight": torch.zeros(1)})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last.pt").write_text("")
    folder, file = ["--data-dir", str(frames)], ["--data-file", str(radioml_file)]
    for argv, words in [
        ([str(tmp_path / "missing.pt"), *folder], "missing.pt: no such checkpoint"),
        ([str(tmp_path / "text.pt"), *folder], "text.pt: not a checkpoint"),
        ([str(tmp_path / "other.pt"), *folder], "a network for weather"),
        ([str(tmp_path / "odd.pt"), *file], "not a VGG10 checkpoint"),
        ([str(network), str(untrained_classifier)], "two kinds"),
        ([str(network), *file], "--data-dir, not --data-file"),
        ([str(untrained_classifier), *folder], "--data-file, not --data-dir"),
        ([str(untrained_classifier), "--data-file", str(tmp_path / "none.hdf5")], "no such file"),
        ([str(network), *folder, "--out", str(tmp_path / "run")], "holds a training run"),
    ]:
        assert runs.run(lambda argv=argv: evaluate.main(argv), *evaluate.ERRORS) == 2, argv
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and words in error, error
