"""Run folders, plans and result rows that are damaged or in use.  pytest tests/test_run_folders.py"""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import evaluate
import export
import prune_seg
import segment
from data import DataError
from data.spectrum_sensing import class_weights
from experiments import compression, magnitude_pruning
from models import ModelError
from models.rebuild import build, describe, rebuild
from tests.conftest import changed
from utils import checkpoint, pictures, runs
from utils.dependency_graph import DependencyGraph, Plan, PruneError, prune
from utils.runs import RunError

ROOT = Path(__file__).parent.parent


# ---- a run's folder -------------------------------------------------------------------------------------------------


def test_a_folder_has_one_run_until_that_one_is_dead_and_what_it_left_is_removed(tmp_path):
    folder = tmp_path / "run"
    readable, pipe = os.pipe()
    child = os.fork()
    if not child:
        runs.start(folder, {}, False, ())
        for name in (".last.pt.abcdefgh", ".config.json.1234", ".notes.txt.abcdefgh", ".log.jsonl.a_c12345"):
            (folder / name).write_text("half")
        (folder / "pictures").mkdir()
        (folder / "pictures" / ".a.png.zzzzzzzz").write_text("half")
        os.write(pipe, b"x")
        signal.pause()
    os.read(readable, 1)
    with pytest.raises(RunError, match="another process works in it"):
        runs.start(folder, {}, False, ())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    runs.start(folder, {}, False, ())
    runs.start(folder, {}, False, ())  # the same process may
    assert {path.name for path in folder.iterdir()} == {".lock", ".notes.txt.abcdefgh", "config.json", "pictures"}
    assert not list((folder / "pictures").iterdir())


def test_one_damaged_line_of_a_log_drops_only_itself(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    good = [json.dumps({"epoch": epoch, "loss": 0.5}).encode() for epoch in range(1, 10)]
    bad = [b"\xff\xfe", b"[1]", b'{"epoch": "3"}', b'{"epoch": NaN}', b'{"epoch": 2, "loss": 1e999}', b"", b"1" * 5000]
    bad += [b'{"epoch ": 7}']
    path.write_bytes(b"\n".join(line for pair in zip(good, [*bad, b"{"], strict=True) for line in pair) + b"\n")
    runs.cut_log(tmp_path, 7)
    assert path.read_bytes() == b"".join(line + b"\n" for line in good[:7])
    assert "damaged lines are left out" in capsys.readouterr().err
    path.write_bytes(good[0] + b"\n{\n" + good[1] + b"\n" + good[2] + b'\n{"epo')
    assert runs.keep_lines(tmp_path, 3) == 2
    assert path.read_bytes() == good[0] + b"\n" + good[1] + b"\n"


def test_a_log_is_at_no_moment_half_a_file(tmp_path, monkeypatch):
    for epoch in (1, 2, 3):
        runs.log(tmp_path, epoch=epoch)
    content = (tmp_path / "log.jsonl").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for change in (lambda: runs.cut_log(tmp_path, 1), lambda: runs.keep_lines(tmp_path, 1), lambda: runs.log(tmp_path)):
        with pytest.raises(OSError, match="No space"):
            change()
    picture = pictures.bars(["a"], {"b": [1.0]})
    with pytest.raises(OSError, match="No space"):
        pictures.save(picture, tmp_path / "a.png")
    assert (tmp_path / "log.jsonl").read_bytes() == content and os.listdir(tmp_path) == ["log.jsonl"]


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"{", b"7", b"[" * 99999, b'{"lr": ' + b"9" * 5000 + b"}", None])
def test_a_config_that_is_none_is_one_sentence(content, tmp_path):
    (tmp_path / "last.pt").write_text("")
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match="config.json: .*start again with another --out") as caught:
        runs.start(tmp_path, {"lr": 1}, True, ("lr",))
    assert "\n" not in str(caught.value)


# ---- scripts, plans, rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (prune_seg, []),
        (evaluate, ["a.pt"]),
        (export, ["a.pt", "b.onnx"]),
        (segment, ["a.png"]),
    ],
)
def test_a_script_of_one_process_says_so_to_torchrun(script, arguments, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "argv", ["name.py"])
    with pytest.raises(RunError, match="name.py runs as one process: start it with python, not torchrun"):
        script.main(arguments)


def test_labels_that_say_nothing_are_told_as_such():
    with pytest.raises(DataError, match="unknown"):
        class_weights(torch.full((2, 4, 4), 255, dtype=torch.uint8))


def test_a_plan_is_checked_when_it_is_read(tmp_path):
    path = tmp_path / "plan.json"
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1))
    DependencyGraph(network, torch.zeros(1, 3, 8, 8)).plan(0.5).save(path)
    good = json.loads(path.read_text())
    assert Plan.load(path) == Plan(**good)
    tensor, axis, indices = good["remove"][0]
    group = good["groups"][0]
    faults = [{"remove": [[tensor, axis, value]]} for value in ([99], [-1], [0, 0], [0.5], 3, list(range(8)))]
    faults += [{"remove": value} for value in (7, [[tensor, 9, indices]], [["x", 0, [0]]], good["remove"] * 2)]
    faults += [{"shapes": value} for value in (None, {tensor: 8}, {tensor: ["8"]})]
    faults += [{"groups": [group | value]} for value in ({"kept": 99}, {"asked": None}, {"size": 1e308})]
    faults += [{"groups": [7]}, {"notes": [7]}, {"notes": None}, {"inexact": 7}, {"inexact": [None]}]
    faults += [{"attributes": value} for value in (7, [7], [["0"]], [["0", "groups", "x"]], [["0", "groups", 0]])]
    for text in (*(json.dumps(good | fault) for fault in faults), "[]", "{}", "[" * 99999, "\0"):
        path.write_text(text)
        with pytest.raises(PruneError, match="plan.json is not a pruning plan") as caught:
            Plan.load(path)
        assert "\n" not in str(caught.value)
    for place in (["nowhere", "groups"], ["0", "num_heads"]):
        path.write_text(json.dumps(good | {"attributes": [[*place, 1]]}))
        with pytest.raises(PruneError, match="for another model"):
            prune(network, Plan.load(path))


def test_a_damaged_row_of_a_table_is_one_sentence_that_names_its_file(tmp_path):
    row = dict.fromkeys(magnitude_pruning.COLUMNS, 0.5) | {"pruning_epochs": 3, "row": "imp-4bit", "seed": 0}
    row |= {"hardware": "a machine", "options": ["--budget", "30"]}
    path = tmp_path / "imp-4bit_seed0.json"
    path.write_text(json.dumps(row))
    assert "| imp-4bit | 1 |" in magnitude_pruning.table(tmp_path)
    damaged = [{"score": None}, {"score": torch.inf}, {"options": ["--budget"]}, {"seed": "x"}, {"row": 1}]
    damaged += [{"row": "nan"}]
    for text in ("{\n7", "[]", *(json.dumps(row | fault) for fault in damaged)):
        path.write_text(text)
        with pytest.raises(RunError, match="imp-4bit_seed0.json: .*delete it to repeat the row"):
            magnitude_pruning.table(tmp_path)
    path.write_text("{\n7")
    with pytest.raises(RunError, match="line 2"):
        magnitude_pruning.table(tmp_path)
    teacher = json.loads((ROOT / "experiments/results/compression/teacher.json").read_text())
    assert checkpoint.misfit(teacher, compression.TEACHER, "") is None
    bad = (("sets", "test", "mean_iou"), 7), (("sets", "test"), {}), (("parameters",), 0), (("way",), "../..")
    for place, value in bad:
        assert checkpoint.misfit(changed(teacher, place, value), compression.TEACHER, "")


def test_a_network_of_torchvision_whose_width_is_a_lie_is_refused_at_once():
    name = "torchvision.models.mobilenet_v3_small"
    data = describe(build(name, {}), name, {})
    with pytest.raises(ModelError, match="classifier"):
        rebuild(data | {"arguments": {"num_classes": 2**40}})
