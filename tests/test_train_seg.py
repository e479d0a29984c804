"""train_seg.py on frames of 64 x 64 pixels: seconds. Run: python -m pytest tests/test_train_seg.py"""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import train_seg
from data import augment
from data.hdf4 import read_raster
from data.spectrogram import PARULA
from data.spectrum_sensing import class_weights, find_frames, read_tensors, split
from models import segmentation
from models.rebuild import rebuild
from tests.conftest import assert_equal, write_levels
from utils import checkpoint, evaluation, release, runs
from utils.training import Batch, epoch_order, make_optimizer

REPOSITORY = Path(__file__).parents[1]
FAST = ["--model", "lraspp_mobilenet_v3_large", "--batch-size", "4"]


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """20 single-signal frames, so 16 to train on, 2 to choose by, 2 to report; 2 combined ones."""
    names = [f"{family}_frame_{i}" for family in ("NR", "LTE") for i in range(10)]
    return write_levels(tmp_path_factory.mktemp("levels"), names + ["LTE_NR/LTE_NR_frame_1", "LTE_NR/LTE_NR_frame_2"])


@pytest.fixture(scope="module")
def options(frames) -> list[str]:
    return ["--data-dir", str(frames), *FAST, "--epochs", "2"]


@pytest.fixture(scope="module")
def whole(options, tmp_path_factory) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train_seg.main([*options, "--out", str(folder)]) == 0
    return folder


def assert_same_run(folder: Path, whole: Path):
    for name in ("last.pt", "best.pt"):
        states = [checkpoint.load(path / name) for path in (folder, whole)]
        for state in states:
            state["rng"] = [rng["torch"] for rng in state.get("rng", [])]  # nothing here draws from another one
        assert_equal(*states)
    results = [json.loads((path / "result.json").read_text())["sets"] for path in (folder, whole)]
    assert results[0] == results[1]
    logs = [[json.loads(line) for line in open(path / "log.jsonl")] for path in (folder, whole)]
    for line in logs[0] + logs[1]:
        line.pop("images_per_second")
    assert logs[0] == logs[1]


# ---- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_files_that_load(frames, tmp_path):
    folder = tmp_path / "run"
    more = ["--preset", "published", "--epochs", "6", "--save-weights", str(tmp_path / "w.pt")]
    assert train_seg.main(["--data-dir", str(frames), *FAST, *more, "--out", str(folder)]) == 0
    log = [json.loads(line) for line in open(folder / "log.jsonl")]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]
    result = json.loads((folder / "result.json").read_text())
    assert result["validation"]["mean_iou"] == max(line["validation_miou"] for line in log)
    assert log[result["epoch"] - 1]["validation_miou"] == result["validation"]["mean_iou"]
    assert result["sets"]["test"]["frames"] == 2 and result["sets"]["combined"]["pixels"] == 2 * 64 * 64
    assert {path.name for path in (folder / "pictures").iterdir()} >= {"test_confusion.png", "combined_confusion.png"}
    shipped = checkpoint.load(tmp_path / "w.pt")  # its SHA-256 is checked
    assert shipped["kind"] == "segmentation" and "optimizer" not in shipped and shipped["frame_size"] == [64, 64]
    facts = json.loads((tmp_path / "w.json").read_text())
    assert facts["sets"] == result["sets"] and facts["seed"] == 0
    network, best = rebuild(shipped), rebuild(checkpoint.load(folder / "best.pt")).eval()
    assert network.training
    x = torch.randn(2, 3, 64, 64)
    weights = class_weights(read_tensors(split(find_frames(frames))["train"])[1])
    with torch.no_grad():
        wanted = best(x)["out"] - facts["class_weights_undone"] * weights.log().view(3, 1, 1)
        assert torch.allclose(network.eval()(x)["out"], wanted, atol=0.02)  # half precision
    assert result["class_weights_undone"] == facts["class_weights_undone"] in release.SHARES


def test_scores_of_a_run_equal_an_independent_count(frames, whole):
    network = rebuild(checkpoint.load(whole / "best.pt")).eval()
    matrix = np.zeros((3, 3), int)
    for frame in split(find_frames(frames))["test"]:
        image = torch.from_numpy(np.array(Image.open(frame.png))).permute(2, 0, 1)[None]
        with torch.no_grad():
            guess = network(segmentation.normalise(image))["out"][0].argmax(0).numpy()
        truth = {0: 0, 127: 1, 255: 2}
        truth = np.vectorize(truth.get)(read_raster(frame.hdf))
        np.add.at(matrix, (truth.ravel(), guess.ravel()), 1)
    assert json.loads((whole / "result.json").read_text())["sets"]["test"]["confusion_matrix"] == matrix.tolist()


KILL = """
import json, os, signal, sys
import torch
import train_seg
from utils import checkpoint
torch.set_num_threads(1)

def die_at(module, name, count):
    inner, left = getattr(module, name), [count]
    def counting(*args, **values):
        left[0] -= 1
        return inner(*args, **values) if left[0] else os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, counting)

places = (train_seg.nn.utils, "clip_grad_norm_", 4), (train_seg, "cut_log", 1), (train_seg.runs, "log", 1)
for module, name, count in places:
    child = os.fork()
    if not child:
        die_at(module, name, count)
        train_seg.main(sys.argv[2:])
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    state = checkpoint.load(sys.argv[1] + "/last.pt")
    print(json.dumps([os.WTERMSIG(status), state["epoch"], state["step"]]))
"""


@pytest.mark.slow
def test_a_run_killed_inside_and_between_epochs_ends_like_one_that_was_not(options, whole, tmp_path):
    folder = tmp_path / "run"
    argv = [*options, "--out", str(folder), "--resume", "--save-every", "2"]
    call = [sys.executable, "-c", KILL, str(folder), *argv]
    done = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    # in the 4th step; again before the first; and with epoch 1 validated but not yet logged or marked as finished
    assert kills == [[9, 0, 2], [9, 0, 2], [9, 0, 4]], done.stderr
    assert train_seg.main(argv) == 0
    assert_same_run(folder, whole)


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_can_be_resumed(options, whole, tmp_path, monkeypatch, capsys):
    argv = [*options, "--out", str(tmp_path / "run"), "--resume"]
    inner, calls = nn.utils.clip_grad_norm_, []

    def interrupt(*args):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), 2)
        return inner(*args)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", interrupt)
    assert runs.run(lambda: train_seg.main(argv), *train_seg.ERRORS) == 130
    assert "--resume" in capsys.readouterr().err
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert (state["epoch"], state["step"]) == (1, 2)
    assert train_seg.main(argv) == 0
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_two_processes_of_torchrun_give_the_metrics_of_the_whole_set(frames, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    argv = ["--data-dir", str(frames), *FAST, "--epochs", "1", "--device", "cpu"]
    done = subprocess.run(
        [*launch, f"--master-port={port}", "train_seg.py", *argv, "--out", str(tmp_path / "run")],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("combined") == 1  # one process speaks
    together = json.loads((tmp_path / "run" / "result.json").read_text())["sets"]
    assert together["test"]["pixels"] == 2 * 64 * 64
    shutil.rmtree(tmp_path / "run" / "pictures")
    parts = split(find_frames(frames))
    sets = {name: parts[name] for name in ("test", "combined")}
    best = checkpoint.load(tmp_path / "run" / "best.pt")
    assert evaluation.report(best, sets, None, torch.device("cpu"))["sets"] == together
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert len(state["rng"]) == 2 and not torch.equal(state["rng"][0]["torch"], state["rng"][1]["torch"])


# ---- recipes -------------------------------------------------------------------------------------------------------


def test_the_published_preset_is_the_published_recipe():
    args = train_seg.parse_args(["--preset", "published"])
    assert (args.epochs, args.batch_size, args.lr, args.model) == (10, 4, 0.02, "deeplabv3_mobilenet_v3_large")
    network = train_seg.new_network("lraspp_mobilenet_v3_large", "published")
    assert {layer.momentum for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.01, 0.1}
    optimizer, scheduler = make_optimizer(network, args.lr, args.epochs, 3, published=True)
    group = optimizer.param_groups[0]
    assert (type(optimizer), group["momentum"], group["weight_decay"]) == (torch.optim.SGD, 0.9, 1e-4)
    reference = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], 0.02), 10, 0.1)
    for _ in range(21):
        for _ in range(3):
            assert scheduler.get_last_lr()[0] == pytest.approx(reference.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        reference.optimizer.step()
        reference.step()


def test_the_default_recipe_warms_up_and_ends_at_zero_with_fast_batch_norm():
    args = train_seg.parse_args([*FAST, "--epochs", "10"])
    network = train_seg.new_network(args.model, args.preset)
    assert {layer.momentum for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)} == {0.1}
    optimizer, scheduler = make_optimizer(network, args.lr, args.epochs, 20)
    rates = []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(args.lr / 10) and max(rates) == pytest.approx(args.lr, rel=0.01)
    assert rates[-1] < 1e-3 * args.lr and rates[10:] == sorted(rates[10:], reverse=True)


def test_an_epoch_takes_every_frame_once_and_differs_from_the_next():
    order = epoch_order(12, 12, 0, 0)
    assert sorted(order.tolist()) == list(range(12)) and torch.equal(order, epoch_order(12, 12, 0, 0))
    assert not torch.equal(order, epoch_order(12, 12, 0, 1))
    assert not torch.equal(order, epoch_order(12, 12, 1, 0))
    assert len(epoch_order(3, 8, 0, 0)) == 8  # fewer frames than a batch


def test_pictures_in_other_colours_are_trained_on_without_level_jitter():
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    same, palette = augment.as_levels(images, torch.from_numpy(PARULA))
    assert same is images and palette is None
    torch.manual_seed(0)
    x, y, _ = train_seg.prepare(Batch(images, images[:, 0]), None, augmented=True, rows=4)
    assert x.shape == (2, 3, 4, 8) and y.shape == (2, 4, 8)
    assert x.is_contiguous(memory_format=torch.channels_last) and y.dtype == torch.int64
    assert torch.allclose(x[:, 0], (y / 255 - 0.485) / 0.229, atol=1e-6)  # red and labels moved alike


def test_carriers_of_other_frames_are_added_unless_mirror_is_asked_for():
    torch.manual_seed(0)
    labels = torch.zeros(16, 8, 32, dtype=torch.uint8)
    labels[:, :, 3:9] = 1  # six of 32 columns, so that twelve are taken where a guest fits in
    levels = labels * 90 + 70
    for mirror, columns in ((False, {12}), (True, {6})):
        x, y, _ = train_seg.prepare(Batch(levels, labels), torch.from_numpy(PARULA), True, 4, mirror)
        assert x.shape == (16, 3, 4, 32) and set((y == 1).any(1).sum(1).tolist()) == columns


def test_more_frames_join_the_training_part_only(frames, tmp_path):
    other = write_levels(tmp_path / "other", ["mine_1", "LTE_NR/LTE_NR_frame_9"], seed=5)
    third = write_levels(tmp_path / "third", ["mine_1"], seed=6)
    more = ["--more-frames", str(other), str(third), "--out", str(tmp_path / "run")]
    assert train_seg.main(["--data-dir", str(frames), *FAST, "--epochs", "1", *more]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["training_frames"] == 16 + 2 + 1
    sets = json.loads((tmp_path / "run/result.json").read_text())["sets"]
    assert (sets["test"]["frames"], sets["combined"]["frames"]) == (2, 2) and "own" not in sets
    argv = ["--data-dir", str(frames), *FAST, "--more-frames", str(frames), "--out", str(tmp_path / "none")]
    with pytest.raises(train_seg.DataError, match="of the set itself; name another folder"):
        train_seg.main(argv)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_without_data_a_small_set_is_made_and_said_so(frames, tmp_path, monkeypatch, capsys):
    import data.synthetic

    def generate(directory, counts, workers=None):
        shutil.copytree(frames, directory)

    monkeypatch.setattr(data.synthetic, "generate", generate)
    monkeypatch.chdir(tmp_path)
    assert train_seg.main([*FAST, "--epochs", "1"]) == 0
    assert "datasets/small" in capsys.readouterr().out
    assert (tmp_path / "runs/seg/result.json").exists()


# ---- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_goes_on_from_a_given_network(options, whole, tmp_path, capsys):
    start = rebuild(checkpoint.load(whole / "best.pt")).state_dict()
    args = [*options, "--checkpoint", str(whole / "best.pt"), "--lr", "1e-12", "--epochs", "1"]
    assert train_seg.main([*args, "--out", str(tmp_path / "more")]) == 0
    after = rebuild(checkpoint.load(tmp_path / "more" / "last.pt"))
    for name, value in after.named_parameters():  # the rate is next to nothing
        assert torch.allclose(value, start[name], atol=1e-9)


def test_bad_input_is_one_sentence_and_exit_code_2(options, whole, tmp_path, capsys):
    (tmp_path / "text.pt").write_text("hello")
    checkpoint.save(tmp_path / "other.pt", {"kind": "modulation"})
    checkpoint.save(tmp_path / "four.pt", {"kind": "segmentation", "classes": ["noise", "NR", "LTE", "radar"]})
    write_levels(tmp_path / "few", ["NR_frame_1", "NR_frame_2"])
    out = ["--out", str(tmp_path / "out")]
    further = [*options, *out, "--checkpoint"]
    cases = [
        (["--data-dir", str(tmp_path / "nowhere"), *out], "nowhere"),
        (["--data-dir", str(tmp_path / "few"), *out], "too few"),
        ([*options, "--out", str(whole)], "--resume"),
        ([*options, "--out", str(whole), "--resume", "--lr", "0.5"], "lr ="),
        ([*options, *out, "--aux-loss"], "auxiliary head"),
        ([*options, *out, "--model", "deeplabv3_resnet50", "--checkpoint", str(whole / "best.pt")], "not a deeplab"),
        ([*further, str(tmp_path / "missing.pt")], "missing.pt"),
        ([*further, str(tmp_path / "text.pt")], "text.pt"),
        ([*further, str(tmp_path / "other.pt")], "not a segmentation network"),
        ([*further, str(tmp_path / "four.pt")], "its classes are"),
    ]
    for argv, words in cases:
        assert runs.run(lambda argv=argv: train_seg.main(argv), *train_seg.ERRORS) == 2, argv
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and words in error
        assert not (tmp_path / "out").exists()


def test_a_run_goes_on_only_with_the_pictures_that_it_began_with(frames, tmp_path, capsys):
    for name, seed in (("one", 5), ("two", 6)):  # the same names, other pictures
        write_levels(tmp_path / name, [f"{kind}_frame_{i}" for kind in ("NR", "LTE") for i in range(10)], seed=seed)
    argv = [*FAST, "--epochs", "1", "--out", str(tmp_path / "run"), "--resume", "--data-dir"]
    assert train_seg.main([*argv, str(tmp_path / "one")]) == 0
    assert runs.run(lambda: train_seg.main([*argv, str(tmp_path / "two")]), *train_seg.ERRORS) == 2
    assert "training_pictures_sha256" in capsys.readouterr().err


def test_a_batch_of_one_frame_is_refused_where_batch_norm_needs_two():
    with pytest.raises(SystemExit):
        train_seg.parse_args(["--batch-size", "1"])
    assert train_seg.parse_args(["--batch-size", "1", "--model", "lraspp_mobilenet_v3_large"]).batch_size == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(options, tmp_path, monkeypatch, capsys):
    inner, calls = nn.functional.cross_entropy, []

    def poisoned(*args, **kwargs):
        calls.append(1)
        return inner(*args, **kwargs) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(nn.functional, "cross_entropy", poisoned)
    argv = [*options, "--out", str(tmp_path / "run"), "--save-every", "3"]
    assert runs.run(lambda: train_seg.main(argv), *train_seg.ERRORS) == 2
    assert "loss is nan in epoch 1, step 4" in capsys.readouterr().err.splitlines()[-1]
    state = checkpoint.load(tmp_path / "run" / "last.pt")
    assert state["step"] == 3 and all(t.isfinite().all() for t in state["state_dict"].values())


def test_a_batch_is_never_larger_than_the_training_part(options, tmp_path, monkeypatch):
    monkeypatch.setattr(train_seg, "train", lambda *args: False)
    for size, expected in (("100000", 16), ("3", 3)):
        folder = tmp_path / size
        assert train_seg.main([*options, "--batch-size", size, "--out", str(folder)]) == 130
        assert json.loads((folder / "config.json").read_text())["batch_size"] == expected
