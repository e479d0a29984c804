"""distill_seg.py on frames of 64 x 64 pixels, and what it needs. Run: python -m pytest tests/test_distill_seg.py"""

import copy
import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import data.synthetic
import distill_seg
from data.spectrogram import PARULA
from data.spectrum_sensing import find_frames, read_tensors, split
from data.unlabelled import find_pictures, read_pictures
from models import segmentation
from models.rebuild import describe, rebuild
from tests.test_train_seg import assert_equal, write_levels
from utils import checkpoint, kd_losses, runs
from utils.evaluation import keep_logits
from utils.export import (
    Deployed,
    ExportError,
    different_labels,
    export,
    export_and_compare,
    fold_batch_norm,
    load_exported,
    streamline,
)
from utils.training import recalibrate_batch_norm

MODEL = "lraspp_mobilenet_v3_large"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """20 single-signal frames, so 16 to train on, 2 to choose by, 2 to report; 2 combined ones."""
    names = [f"{family}_frame_{i}" for family in ("NR", "LTE") for i in range(10)]
    return write_levels(tmp_path_factory.mktemp("levels"), names + ["LTE_NR/LTE_NR_frame_1", "LTE_NR/LTE_NR_frame_2"])


def normal_frames(folder: Path) -> torch.Tensor:
    return segmentation.normalise(read_tensors(find_frames(folder), progress=False)[0])


@pytest.fixture(scope="module")
def teacher(frames, tmp_path_factory) -> Path:
    """A network that was never trained; with statistics of real frames it has an opinion all the same."""
    torch.manual_seed(0)
    network = recalibrate_batch_norm(segmentation.build(MODEL), [normal_frames(frames)])
    data = describe(network, *segmentation.factory(MODEL))
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    checkpoint.save(path, data | {"kind": "segmentation", "classes": ["noise", "NR", "LTE"]})
    return path


@pytest.fixture(scope="module")
def student(frames, teacher, tmp_path_factory) -> Path:
    """The teacher cut to an eightieth."""
    args = distill_seg.parse_args(["--teacher", str(teacher), "--target-params", "40000"])
    data = distill_seg.cut_teacher(checkpoint.load(teacher), args)
    network = recalibrate_batch_norm(rebuild(data), [normal_frames(frames)])
    data = describe(network, data["factory"], data["arguments"]) | {"kind": "segmentation"}
    path = tmp_path_factory.mktemp("student") / "pruned.pt"
    checkpoint.save(path, data)
    return path


@pytest.fixture(scope="module")
def options(frames, teacher, student) -> list[str]:
    networks = ["--teacher", str(teacher), "--student", str(student)]
    return ["--data-dir", str(frames), *networks, "--batch-size", "8", "--epochs", "1"]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_student_learns_from_teacher_masks_and_itself_and_the_teacher_does_not_move(options, tmp_path, monkeypatch):
    frozen = []

    def freeze(network, device, inner=distill_seg.freeze):
        frozen.append((inner(network, device), copy.deepcopy(network.state_dict())))
        return frozen[-1][0]

    monkeypatch.setattr(distill_seg, "freeze", freeze)
    more = ["--preset", "published", "--epochs", "5", "--lr", "0.05"]
    assert distill_seg.main([*options, *more, "--out", str(tmp_path), "--save-weights", str(tmp_path / "w/s.pt")]) == 0
    (network, before), _ = frozen  # the other one is the average
    assert_equal(dict(network.state_dict()), dict(before))  # batch-norm statistics too
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    assert not any(layer.training for layer in network.modules())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in network.modules())
    log = log_of(tmp_path)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"] and all(line["kd"] and line["ce"] and line["self"] for line in log)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["validation"]["mean_iou"] == max(line["validation_miou"] for line in log)
    assert result["sets"]["test"]["frames"] == 2 and (tmp_path / "pictures/test_confusion.png").exists()
    shipped = checkpoint.load(tmp_path / "w/s.pt")  # its SHA-256 is checked
    small = rebuild(shipped)
    assert shipped["frame_size"] == [64, 64]
    assert sum(p.numel() for p in small.parameters()) == result["parameters"] < 40_000


def test_the_loss_is_the_weighted_sum_of_its_terms_and_each_chosen_distillation_has_its_factor(options, tmp_path):
    more = "--epochs 1 --alpha 0.5 --beta 2 --gamma 0.25 --kd pixel cwd dist pairwise".split()
    assert distill_seg.main([*options, *more, "--out", str(tmp_path)]) == 0
    line = log_of(tmp_path)[0]
    assert line["loss"] == pytest.approx(0.5 * line["kd"] + 2 * line["ce"] + 0.25 * line["self"], rel=1e-5)
    torch.manual_seed(0)
    logits, wanted = torch.randn(2, 2, 3, 8, 8)
    features, wanted_features = torch.randn(2, 2, 5, 4, 4)
    args = distill_seg.parse_args(["--kd", "pixel", "cwd", "dist", "pairwise"])
    total = distill_seg.teacher_loss(args, logits, wanted, features, wanted_features, None)
    factor = kd_losses.WEIGHT
    by_hand = factor["pixel"] * kd_losses.pixel_kd(logits, wanted, 1.0)
    by_hand += factor["cwd"] * kd_losses.channel_wise(logits, wanted) + factor["dist"] * kd_losses.dist(logits, wanted)
    by_hand += factor["pairwise"] * kd_losses.pairwise(features, wanted_features)
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_without_labels_no_training_or_validation_mask_is_read(frames, options, tmp_path, capsys):
    shutil.copytree(frames, tmp_path / "set")
    parts = split(find_frames(tmp_path / "set"))
    for frame in parts["train"][:8] + parts["validation"]:
        frame.hdf.unlink()
    for frame in parts["train"][8:]:
        frame.hdf.write_bytes(b"no mask at all")
    argv = [*options, "--data-dir", str(tmp_path / "set"), "--beta", "0", "--out", str(tmp_path / "run")]
    argv += ["--keep-logits"]
    assert distill_seg.main(argv) == 0
    log = log_of(tmp_path / "run")
    assert all(line["ce"] == 0 < line["kd"] and line["validation_agreement"] > 0 for line in log)
    assert json.loads((tmp_path / "run/result.json").read_text())["sets"]["test"]["frames"] == 2
    assert runs.run(lambda: distill_seg.main([*argv, "--beta", "1"]), *distill_seg.ERRORS) == 2  # they are needed there
    for frame in parts["test"] + parts["combined"]:
        frame.hdf.unlink()
    argv += ["--out", str(tmp_path / "none"), "--preset", "published"]
    assert distill_seg.main(argv) == 0 and "no masks" in capsys.readouterr().out
    argv += ["--save-weights", str(tmp_path / "w.pt")]
    assert runs.run(lambda: distill_seg.main([*argv, "--out", str(tmp_path / "x")]), *distill_seg.ERRORS) == 2


def kill_inside(module, name: str, count: int, argv: list[str]) -> int:
    """Run the script in a child that is killed at the count-th call of module.name; the signal that ended it."""
    child = os.fork()
    if child:
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    try:
        inner, left = getattr(module, name), [count]

        def counting(*args, **values):
            left[0] -= 1
            return inner(*args, **values) if left[0] else os.kill(os.getpid(), signal.SIGKILL)

        setattr(module, name, counting)
        distill_seg.main(argv)
    finally:
        os._exit(1)


def test_a_run_killed_in_both_generations_ends_like_one_that_was_not(options, tmp_path, monkeypatch):
    monkeypatch.setattr(distill_seg, "report", lambda *args: None)  # best.pt is what it reports
    argv = [*options, "--generations", "2", "--gamma", "1", "--save-every", "1", "--resume"]
    argv += ["--kd", "pixel", "cwd", "dist", "pairwise", "attention"]
    assert distill_seg.main([*argv, "--out", str(tmp_path / "whole")]) == 0
    argv += ["--out", str(tmp_path / "run")]
    # with epoch 1 validated but not logged; and in the second step of the second generation
    for place, reached in (((distill_seg, "log", 1), (0, 2)), ((nn.utils, "clip_grad_norm_", 2), (1, 1))):
        assert kill_inside(*place, argv) == signal.SIGKILL
        state = checkpoint.load(tmp_path / "run/last.pt")
        assert (state["epoch"], state["step"]) == reached
    assert distill_seg.main(argv) == 0
    for name in ("last.pt", "best.pt", "generation_1.pt"):
        states = [checkpoint.load(tmp_path / folder / name) for folder in ("run", "whole")]
        for state in states:
            state.pop("rng", None)
        assert_equal(*states)
    logs = [[{**line, "images_per_second": 0} for line in log_of(tmp_path / folder)] for folder in ("run", "whole")]
    assert logs[0] == logs[1] and len(logs[0]) == 2


def test_more_frames_teach_without_masks_as_well(options, tmp_path):
    other = write_levels(tmp_path / "other", ["mine_1"], seed=5)
    (other / "mine_1.hdf").unlink()
    more = ["--beta", "0", "--more-frames", str(other), "--out", str(tmp_path / "run")]
    assert distill_seg.main([*options, *more]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["training_frames"] == 16 + 1


def test_the_second_generation_starts_anew_and_is_taught_by_the_first(options, tmp_path, monkeypatch):
    seen = []

    def train(args, generation, student, teacher, *rest):
        seen.append((copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())))
        moved = copy.deepcopy(student)
        nn.init.ones_(next(moved.parameters()))
        data = distill_seg.saved(moved, rest[-1], args, torch.Size((64, 64)))
        for name in (f"generation_{generation + 1}.pt", "best.pt"):
            checkpoint.save(args.out / name, data)
        return True

    monkeypatch.setattr(distill_seg, "train", train)
    assert distill_seg.main([*options, "--generations", "2", "--out", str(tmp_path)]) == 0
    (first, teacher), (second, then) = seen
    assert_equal(dict(first), dict(second))
    assert then.keys() == first.keys() and (next(iter(then.values())) == 1).all()
    assert next(iter(teacher.values())).shape != next(iter(then.values())).shape


def test_without_networks_or_data_the_shipped_teacher_is_cut_and_says_so(
    frames, teacher, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(data.synthetic, "generate", lambda folder, counts, workers: shutil.copytree(frames, folder))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    shutil.copy(teacher, "weights/seg_teacher.pt")
    assert distill_seg.main(["--epochs", "1", "--alpha", "0", "--from-scratch", "--target-params", "90000"]) == 0
    out = capsys.readouterr().out
    assert "cut evenly from 3218478 to" in out and "datasets/small" in out
    assert 60_000 < json.loads(Path("runs/distill/result.json").read_text())["parameters"] <= 90_000


# ---- definitions -----------------------------------------------------------------------------------------------------


def test_the_published_loss_is_its_formula(student, teacher):
    argv = ["--preset", "published"]
    args = distill_seg.parse_args(argv)
    assert (args.epochs, args.batch_size, args.lr, args.alpha, args.beta, args.gamma) == (30, 3, 1e-3, 1, 1, 1)
    networks = [rebuild(checkpoint.load(path)).eval() for path in (student, teacher, student)]
    nn.init.normal_(networks[2].classifier.high_classifier.bias)
    x, y, w = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.tensor([0.3, 1.0, 2.0])
    terms = distill_seg.losses(args, *networks, x, y, None, w, torch.no_grad())
    q, p, own = (network(x)["out"].detach().double() for network in networks)

    def divergence(p: torch.Tensor) -> float:
        p, r = (p / 2).softmax(1), (q / 2).softmax(1)
        return 4 * sum((w[c] * p[:, c] * (p[:, c] / r[:, c]).log()).mean().item() for c in range(3))

    ce = sum(w[c] * -q.log_softmax(1)[:, c][y == c].sum() for c in range(3)) / sum(
        w[c] * (y == c).sum() for c in range(3)
    )
    assert [t.item() for t in terms] == pytest.approx([divergence(p), ce.item(), divergence(own)], rel=1e-4)


def test_kept_logits_are_the_teachers_own_where_nothing_is_augmented_and_move_with_the_masks_where_it_is(
    frames, teacher, tmp_path
):
    network = distill_seg.freeze(rebuild(checkpoint.load(teacher)), CPU)
    images, masks = read_tensors(find_frames(frames)[:4], progress=False)
    kept = keep_logits(network, images, lambda part: network(segmentation.as_input(part)), tmp_path)
    x, _, asked = distill_seg.prepare(images, masks, kept, None, False, 64)
    assert torch.allclose(asked, distill_seg.with_features(network, x)[0], atol=1e-5)
    assert distill_seg.parse_args(["--preset", "published"]).keep_logits
    assert torch.equal(keep_logits(network, images, None, tmp_path), kept)  # a second run asks nobody, other frames do
    with pytest.raises(TypeError):
        keep_logits(network, images[:3], None, tmp_path)
    levels = asked[:, 0].mul(10).round().clamp(0, 254).to(torch.uint8)  # masks that can be told from logits
    torch.manual_seed(0)
    _, y, asked = distill_seg.prepare(images, levels, kept, None, True, 32)
    assert torch.equal(asked[:, 0].mul(10).round().clamp(0, 254).long(), y) and y.shape == (4, 32, 64)
    assert levels.unique().numel() > 2 and not torch.equal(y, levels[:, :32].long())


def test_kept_logits_move_with_the_carriers_that_are_added():
    torch.manual_seed(0)
    masks = torch.zeros(6, 64, 64, dtype=torch.uint8)
    masks[:, :, 3:19] = torch.randint(1, 3, (6, 1, 1))
    kept = nn.functional.one_hot(masks.long(), 3).permute(0, 3, 1, 2).half()  # (N, 3, 64, 64)
    _, y, asked = distill_seg.prepare(masks * 50 + 70, masks, kept, torch.from_numpy(PARULA), True, 32)
    assert torch.equal(asked.argmax(1), y) and (y != 0).any(1).sum(1).tolist() == 6 * [32]


def test_the_average_moves_parameters_and_buffers_and_copies_counters():
    torch.manual_seed(0)
    average, network = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
    network(torch.randn(5, 3, 2, 2))
    before = copy.deepcopy(average.state_dict())
    kd_losses.update_average(average, network, 0.75)
    for name, tensor in average.state_dict().items():
        theirs = network.state_dict()[name]
        expected = theirs if name.endswith("tracked") else 0.75 * before[name] + 0.25 * theirs
        assert torch.allclose(tensor, expected, atol=1e-6), name
    assert not torch.equal(average[1].running_mean, before["1.running_mean"])


def test_from_scratch_keeps_the_shape_and_nothing_else(student):
    args = distill_seg.parse_args(["--from-scratch", "--seed", "3"])
    data = checkpoint.load(student)
    ours, again = distill_seg.new_student(args, data).state_dict(), distill_seg.new_student(args, data).state_dict()
    assert_equal(dict(ours), dict(again))
    for name, tensor in data["state_dict"].items():
        assert ours[name].shape == tensor.shape
        if tensor.dim() == 4:
            assert not torch.equal(ours[name], tensor), name


def test_pictures_are_found_and_read_as_frames_are(frames_dir):
    frames, pictures = find_frames(frames_dir), find_pictures(frames_dir)
    assert [(f.name, f.family, f.png, f.hdf) for f in frames] == [(f.name, f.family, f.png, f.hdf) for f in pictures]
    assert torch.equal(read_pictures(pictures[:3], progress=False), read_tensors(frames[:3], progress=False)[0])


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence_and_exit_code_2(options, tmp_path, capsys):
    checkpoint.save(tmp_path / "other.pt", {"kind": "modulation"})
    (tmp_path / "empty").mkdir()
    out = ["--out", str(tmp_path / "out")]
    cases = [
        ([*options, *out, "--student", str(tmp_path / "nowhere.pt")], "nowhere.pt"),
        ([*options, *out, "--teacher", str(tmp_path / "other.pt")], "not a segmentation network"),
        ([*options, *out, "--data-dir", str(tmp_path / "empty")], "no frames"),
        ([*options, *out, "--data-dir", str(tmp_path / "empty"), "--beta", "0"], "no frame"),
        (["--export", str(tmp_path / "x.pt2"), "--student", str(tmp_path / "nowhere.pt")], "no such network"),
    ]
    for argv, words in cases:
        assert runs.run(lambda argv=argv: distill_seg.main(argv), *distill_seg.ERRORS) == 2, argv
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and words in error
        assert not (tmp_path / "out").exists()
    for options in ("--alpha 0 --beta 0", "--beta 0 --kd pairwise", "--export x.pth", "--batch-size 1"):
        with pytest.raises(SystemExit):
            distill_seg.parse_args(options.split())


# ---- export ----------------------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """A convolution whose result is used with and without its batch norm, if `twice`."""

    def __init__(self, twice: bool):
        super().__init__()
        self.conv, self.norm, self.twice = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), twice
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.weight)

    def forward(self, x):
        maps = self.conv(x)
        return self.norm(maps).relu() + (maps if self.twice else x.mean())


def test_batch_norms_fold_exactly_or_not_at_all():
    torch.manual_seed(0)
    model, x = Shared(False).eval().double(), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    folded = fold_batch_norm(model, x, tolerance=1e-12)
    assert isinstance(folded.norm, nn.Identity) and isinstance(model.norm, nn.BatchNorm2d)
    assert torch.allclose(folded(x), model(x), atol=1e-12)
    with pytest.raises(ExportError, match="can't be folded"):
        fold_batch_norm(Shared(True).eval(), x.float())


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_a_streamlined_network_computes_the_same(name):
    torch.manual_seed(0)
    model = Deployed(segmentation.build(name), segmentation.MEAN, segmentation.STD).eval()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    light, wanted = streamline(model, images), model(images)
    assert (light(images[:1]) - wanted[:1]).abs().max() < 1e-5 * wanted.abs().max()
    assert not any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in light.modules())
    twice = copy.deepcopy(model)
    twice.__class__ = type("Twice", (Deployed,), {"forward": lambda self, x: 2 * Deployed.forward(self, x)})
    with pytest.raises(ExportError, match="can't be streamlined"):
        streamline(twice, images)


def test_an_exported_network_gives_the_same_labels_for_any_batch(student, frames, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distill_seg, "export_and_compare", partial(export_and_compare, runs=2))
    file = tmp_path / "s.pt2"
    assert distill_seg.main(["--export", str(file), "--student", str(student), "--data-dir", str(frames)]) == 0
    assert "0 labels differ" in capsys.readouterr().out
    images, _ = read_tensors(find_frames(frames)[:5], progress=False)
    network = rebuild(checkpoint.load(student)).eval()
    ours, theirs = segmentation.predict(network, images), load_exported(file)(images).argmax(1)
    assert (ours != theirs).float().mean() < 1e-4 and len(np.unique(ours)) > 1
    facts = json.loads((tmp_path / "s.pt2.json").read_text())
    assert facts["latency"]["s.pt2"]["median_ms"] > 0 and facts["images"] == 20


def test_an_export_without_data_makes_the_few_frames_that_it_compares_on(student, frames, tmp_path, monkeypatch):
    made, compared = [], []

    def generate(folder, counts, workers):
        made.append(counts)
        shutil.copytree(frames, folder)

    def compare(model, light, images, path, others):
        compared.append(len(images))
        raise ExportError("enough")

    monkeypatch.setattr(data.synthetic, "generate", generate)
    monkeypatch.setattr(distill_seg, "export_and_compare", compare)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="enough"):
        distill_seg.main(["--export", "s.pt2", "--student", str(student)])
    assert [sum(counts.values()) for counts in made] == compared == [20]


def test_onnx_without_its_packages_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match="pip install onnx onnxscript onnxruntime"):
        export(nn.Conv2d(3, 3, 1), torch.randn(1, 3, 4, 4), tmp_path / "x.onnx")
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_gives_the_same_labels_for_any_batch(tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    torch.manual_seed(0)
    model, x = Shared(False).eval(), torch.randn(6, 3, 8, 8)
    export(fold_batch_norm(model, x), x, tmp_path / "m.onnx")
    assert different_labels(model, load_exported(tmp_path / "m.onnx"), x)[0] == 0


def test_other_labels_are_counted_and_ties_told_apart():
    logits = F.one_hot(torch.randint(3, (4, 5, 5)), 3).permute(0, 3, 1, 2).float()  # (4, 3, 5, 5)
    changed = logits.clone()
    changed[0, :, 0, 0], changed[3, :, 4, 4] = logits[0, :, 0, 0].roll(1), logits[3, :, 4, 4].roll(1)
    logits[3, :, 4, 4] *= 1e-4
    table = {"ours": logits, "theirs": changed}

    def lookup(name):
        return lambda numbers: table[name][numbers]

    assert different_labels(lookup("ours"), lookup("theirs"), torch.arange(4)) == (1, 1)
