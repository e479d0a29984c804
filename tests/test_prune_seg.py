"""prune_seg.py on frames of 64 x 64 pixels. Run: python -m pytest tests/test_prune_seg.py"""

import csv
import functools
import json
import math
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
from prune_seg import Entry, main, parse_args
from utils import checkpoint, cost
from utils.dependency_graph import DependencyGraph, Group, Plan, prune
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


@pytest.fixture(scope="module", autouse=True)
def short_timing():
    """Two threads on a busy machine may wait for each other for minutes; how latency is taken: tests/test_cost.py."""
    few = functools.partial(cost.latency, warm_up=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "latency", lambda models, x, threads, **_: few(models, x, threads, runs=2))
        yield


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


def test_a_run_repeats_bit_for_bit_and_never_looks_at_validation_frames(default, options, frames, tmp_path):
    """The same frames, but validation and test masks say the opposite: what is cut must not change."""
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


def test_two_steps_with_recovery_meet_a_target_of_macs(options, tmp_path):
    more = [
        "--steps",
        "2",
        "--recovery",
        "2",
        "--target-macs",
        "6e6",
        "--criterion",
        "l2",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main([*options, *more]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert abs(result["pruned"]["macs"] - 6e6) <= 0.02 * 6e6
    assert len(json.loads((tmp_path / "run" / "plan.json").read_text())["steps"]) == 2


def test_resume_leaves_a_finished_run_alone(default, options, capsys):
    before = (default / "result.json").read_bytes()
    assert main([*options, "--target-params", "300e3", "--out", str(default), "--resume"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    fails([*options, "--target-params", "400e3", "--out", str(default), "--resume"], capsys, "target_params", "--out")
    assert (default / "result.json").read_bytes() == before


# ---- the formulas --------------------------------------------------------------------------------------------------


def entries_for(values: list[dict]) -> list[Entry]:
    return [Entry(f"e{i}", [Group(f"e{i}", 100, [], [])], **value) for i, value in enumerate(values)]


@pytest.mark.parametrize("variant", ["coded", "written"])
def test_published_ratios_follow_the_formula(variant):
    args = parse_args(["--preset", "published", "--variant", variant])
    f1, p, m = [-0.3, 0.1, 0.0], [10.0, 30.0, 60.0], [20.0, 5.0, 75.0]
    entries = entries_for([{"f1": a, "parameters": b, "macs": c} for a, b, c in zip(f1, p, m, strict=True)])
    prune_seg.set_importance(args, entries)
    if variant == "coded":
        imp = [0.5 * 75 + 0.3 * 90 + 0.2 * 80, 0.5 * 25 + 0.3 * 70 + 0.2 * 95, 0.3 * 40 + 0.2 * 25]
    else:
        imp = [0.5 * 0.75 + 0.3 * 0.9 + 0.2 * 0.8, 0.5 * 0.25 + 0.3 * 0.7 + 0.2 * 0.95, 0.3 * 0.4 + 0.2 * 0.25]
    f = [math.exp(-5 * value / sum(imp)) for value in imp]
    want = {f"e{i}": round(0.99 * value / max(f), 2) for i, value in enumerate(f)}
    assert prune_seg.ratios_at(args, entries, 1 - 0.99) == want


def test_default_keeps_more_of_what_hurts_more_for_what_it_saves():
    args = parse_args(["--target-params", "1000", "--k", "2"])
    rows = [(0.4, 10.0), (0.1, 10.0), (0.1, 40.0), (-0.2, 40.0)]
    entries = entries_for([{"loss": loss, "parameters": saved, "macs": 1.0} for loss, saved in rows])
    prune_seg.set_importance(args, entries)
    value = [entry.importance for entry in entries]
    assert value[0] == 1.0 and value[3] == 0.0 and value[0] > value[1] > value[2] > value[3]
    assert value[1] == pytest.approx(math.log(0.01 / 0.0001) / math.log(0.04 / 0.0001))
    kept = [1 - ratio for ratio in prune_seg.ratios_at(args, entries, 0.5).values()]
    assert kept[0] == pytest.approx(0.5) and kept[3] == pytest.approx(0.5 * math.exp(-2))


def test_published_entries_are_blocks_1_to_16_and_aspp_without_residual_widths():
    network = segmentation.build("deeplabv3_mobilenet_v3_large").eval()
    graph = DependencyGraph(network, torch.randn(2, 3, 64, 64))
    published = prune_seg.find_entries(network, graph, "published")
    assert [entry.name for entry in published] == [f"backbone.{i}" for i in range(2, 17)] + ["classifier.0"]
    default = prune_seg.find_entries(network, graph, "default")
    assert {group.name for entry in default for group in entry.groups} == {group.name for group in graph.groups}
    assert "backbone.0 + backbone.1" in {entry.name for entry in default}


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


def test_a_target_out_of_reach_is_refused_with_the_range(capsys):
    args = parse_args(["--target-params", "10"])
    network = segmentation.build("lraspp_mobilenet_v3_large").eval()
    x = torch.randn(2, 3, 64, 64)
    graph, whole = DependencyGraph(network, x), cost.count(network, x)
    entries = prune_seg.find_entries(network, graph, "default")
    scores = {group.name: torch.arange(float(group.size)) for group in graph.groups}

    def left(plan):
        return cost.after(plan, network, whole)

    with pytest.raises(prune_seg.RunError, match="out of reach.*choose a target in between"):
        prune_seg.choose_plan(args, graph, entries, scores, left, whole, 1)


@pytest.mark.parametrize(
    "arguments", [["--steps", "0"], ["--max-ratio", "2"], ["--target-params", "1", "--target-macs", "1"]]
)
def test_senseless_options_are_refused(arguments):
    with pytest.raises(SystemExit) as stop:
        parse_args(arguments)
    assert stop.value.code == 2
