"""prune_seg.py on frames of 64 x 64 pixels. Run: python -m pytest tests/test_prune_seg.py"""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prune_seg
from data.hdf4 import write_raster
from data.spectrum_sensing import find_frames, split
from models import segmentation
from models.rebuild import describe, rebuild
from prune_seg import main, parse_args
from utils import checkpoint, cost
from utils.dependency_graph import Plan, prune
from utils.runs import run

KEYS = {"kind": "segmentation", "classes": ["noise", "NR", "LTE"], "seed": 0, "command": "none"}


def write_frames(root: Path, seed: int = 0) -> Path:
    """20 frames of 64 x 64 pixels: one bright band each, whose left third decides the class."""
    for number in range(20):
        rng, lte = np.random.default_rng([seed, number]), number % 2
        image, mask = rng.normal(60, 15, (64, 64, 3)), np.zeros((64, 64), np.uint8)
        left = int(rng.integers(30))
        image[:, left : left + 24] += (150, 60, 0) if lte else (0, 60, 150)
        mask[:, left : left + 24] = 255 if lte else 127
        name = f"{'LTE' if lte else 'NR'}_frame_{number}"
        root.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"{name}.png")
        write_raster(root / f"{name}.hdf", mask)
    return root


def write_teacher(path: Path, model: str) -> Path:
    torch.manual_seed(0)
    network = segmentation.build(model)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            torch.nn.init.uniform_(layer.running_var, 0.5, 1.5)
    checkpoint.save(path, describe(network, *segmentation.factory(model)) | KEYS)
    return path


pytestmark = pytest.mark.usefixtures("short_timing")


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    return write_frames(tmp_path_factory.mktemp("frames"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "lraspp.pt", "lraspp_mobilenet_v3_large")


@pytest.fixture(scope="module")
def options(frames, teacher) -> list[str]:
    return ["--teacher", str(teacher), "--data-dir", str(frames), "--probe-frames", "4"]


@pytest.fixture(scope="module")
def default(options, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "default"
    assert main([*options, "--target-params", "300e3", "--out", str(folder)]) == 0
    return folder


# ---- a run ---------------------------------------------------------------------------------------------------------


def test_the_target_is_met_and_every_figure_is_that_of_the_saved_network(default):
    result = json.loads((default / "result.json").read_text())
    saved = checkpoint.load(default / "pruned.pt")
    network = rebuild(saved)
    assert saved["frame_size"] == [64, 64]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert abs(parameters - 300e3) <= 0.02 * 300e3 and result["pruned"]["parameters"] == parameters
    assert result["pruned"]["macs"] == cost.count(network, torch.zeros(1, 3, 64, 64)).macs
    assert result["pruned"]["bytes"] == pytest.approx((default / "pruned.pt").stat().st_size, abs=1000)
    assert result["nominal"]["parameters"] == 3218478
    assert result["pruned"]["nominal_parameters_ratio"] == pytest.approx(3218478 / parameters)
    assert [times["conditions"]["threads"] for times in result["latency"]] == [1, 2]
    assert result["verify_error"] < 1e-9
    assert all(0 <= result["validation"][key]["miou"] <= 1 for key in ("dense", "pruned", "recalibrated"))


def test_the_plan_replayed_on_the_teacher_gives_the_saved_weights(default, teacher):
    steps = json.loads((default / "plan.json").read_text())["steps"]
    again = prune(rebuild(checkpoint.load(teacher)), Plan(**steps[0])).state_dict()
    saved = checkpoint.load(default / "pruned.pt")["state_dict"]
    assert again.keys() == saved.keys()
    for name, tensor in again.items():
        if "running" not in name and "tracked" not in name:  # statistics were measured anew
            assert torch.equal(tensor, saved[name]), name


def test_widths_are_multiples_of_8_with_a_floor_and_residual_widths_shrink_too(default):
    groups = json.loads((default / "plan.json").read_text())["steps"][0]["groups"]
    assert all(group["kept"] % 8 == 0 and group["kept"] >= 8 for group in groups)
    widths = {group["name"]: (group["size"], group["kept"]) for group in groups}
    assert widths["backbone.13.block.3.0"][0] == 160 and widths["backbone.13.block.3.0"][1] < 160


def test_the_table_lists_every_entry_with_the_ratio_that_was_carried_out(default):
    with open(default / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = {g["name"]: g for g in json.loads((default / "plan.json").read_text())["steps"][0]["groups"]}
    width = next(row for row in rows if row["block"] == "backbone.13 + backbone.14 + backbone.15")
    assert float(width["ratio"]) == pytest.approx(1 - kept["backbone.13.block.3.0"]["kept"] / 160)
    assert sum(int(row["channels"]) for row in rows) == sum(group["size"] for group in kept.values())
    assert {"backbone.16", "backbone.0 + backbone.1"} <= {row["block"] for row in rows}
    picture = Image.open(default / "table.png")
    assert picture.size[1] > 16 * len(rows)


@pytest.mark.slow
def test_a_run_repeats_bit_for_bit_and_never_looks_at_validation_frames(default, options, frames, tmp_path):
    """The same frames, but validation and test labels say the opposite: what is cut must not change."""
    other = write_frames(tmp_path / "frames")
    parts = split(find_frames(other))
    for frame in parts["validation"] + parts["test"]:
        write_raster(frame.hdf, np.full((64, 64), 127, np.uint8))
    folder = tmp_path / "again"
    more = ["--data-dir", str(other), "--target-params", "300e3", "--out", str(folder)]
    assert main([*options, *more]) == 0
    assert (folder / "plan.json").read_text() == (default / "plan.json").read_text()
    first, second = (checkpoint.load(path / "pruned.pt")["state_dict"] for path in (default, folder))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_two_steps_with_recovery_meet_a_target_of_macs(options, tmp_path):
    more = "--steps 2 --recovery 2 --target-macs 6e6 --criterion l2".split()
    assert main([*options, *more, "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert abs(result["pruned"]["macs"] - 6e6) <= 0.02 * 6e6
    assert len(json.loads((tmp_path / "run" / "plan.json").read_text())["steps"]) == 2


def test_resume_leaves_a_finished_run_alone(default, options, capsys):
    before = (default / "result.json").read_bytes()
    assert main([*options, "--target-params", "300e3", "--out", str(default), "--resume"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    fails([*options, "--target-params", "400e3", "--out", str(default), "--resume"], capsys, "target_params", "--out")
    assert (default / "result.json").read_bytes() == before


# ---- bad input -----------------------------------------------------------------------------------------------------


def fails(arguments: list[str], capsys, *words: str):
    assert run(lambda: main(arguments), *prune_seg.ERRORS) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ") and all(word in message for word in words), message


def test_bad_input_is_one_sentence_and_exit_code_2(default, options, frames, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    fails(["--teacher", str(tmp_path / "none.pt"), "--data-dir", str(frames), *out], capsys, "none.pt", "no such")
    checkpoint.save(tmp_path / "other.pt", {"kind": "modulation"})
    fails(["--teacher", str(tmp_path / "other.pt"), *out], capsys, "other.pt", "not a segmentation network")
    fails([*options[:2], "--data-dir", str(tmp_path / "nowhere"), *out], capsys, "nowhere")
    fails([*options, "--out", str(default)], capsys, "holds a run", "--out")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_target_out_of_reach_is_refused_with_the_range(options, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    fails([*options, "--target-params", "10", *out], capsys, "out of reach", "choose a target in between")


@pytest.mark.parametrize(
    "arguments", [["--steps", "0"], ["--max-ratio", "2"], ["--target-params", "1", "--target-macs", "1"]]
)
def test_senseless_options_are_refused(arguments):
    with pytest.raises(SystemExit) as stop:
        parse_args(arguments)
    assert stop.value.code == 2
