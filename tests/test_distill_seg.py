"""distill_seg.py on frames of 64 x 64 pixels, and what it needs. Run: python -m pytest tests/test_distill_seg.py"""

import copy
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import data.synthetic
import distill_seg
from data.spectrogram import PARULA
from data.spectrum_sensing import find_frames, read_tensors, split
from data.unlabelled import find_pictures, read_pictures
from models import segmentation
from models.rebuild import describe, rebuild
from tests.conftest import assert_equal, kill_inside, signalled, two_processes, write_levels
from utils import checkpoint, kd_losses, release, runs
from utils.evaluation import keep_logits
from utils.training import Batch, TrainingSet, recalibrate_batch_norm

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
    data = release.cut_student(checkpoint.load(teacher), 40_000)
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


def test_a_student_learns_from_teacher_labels_and_itself_and_the_teacher_does_not_move(options, tmp_path, monkeypatch):
    frozen = []

    def freeze(network, device, inner=distill_seg.freeze):
        frozen.append((inner(network, device), copy.deepcopy(network.state_dict())))
        return frozen[-1][0]

    monkeypatch.setattr(distill_seg, "freeze", freeze)
    more = ["--preset", "published", "--epochs", "5", "--lr", "0.05"]
    assert distill_seg.main([*options, *more, "--out", str(tmp_path), "--save-weights", str(tmp_path / "w/s.pt")]) == 0
    (network, before), _ = frozen  # the other one is the EMA
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
    losses = kd_losses.Losses(None, None, 0.5, 2, ["pixel", "cwd", "dist", "pairwise"], 1.0)
    total = losses.from_teacher(logits, wanted, features, wanted_features)
    factor = kd_losses.WEIGHT
    by_hand = factor["pixel"] * kd_losses.pixel_kd(logits, wanted, 1.0)
    by_hand += factor["cwd"] * kd_losses.channel_wise(logits, wanted) + factor["dist"] * kd_losses.dist(logits, wanted)
    by_hand += factor["pairwise"] * kd_losses.pairwise(features, wanted_features)
    assert total.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_a_conditional_distillation_learns_nothing_from_a_teacher_that_is_wrong_everywhere():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))
    right = nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    losses = kd_losses.Losses(None, None, 1.0, 1.0, ["pixel"], 1.0, conditional=True)
    assert losses.from_teacher(logits, -right, None, None, labels) == 0
    everywhere = kd_losses.Losses(None, None, 1.0, 1.0, ["pixel"], 1.0)
    both = [both.from_teacher(logits, right, None, None, labels).item() for both in (losses, everywhere)]
    assert both[0] == pytest.approx(both[1]) and both[0] > 0
    args = distill_seg.parse_args(["--conditional"])
    assert args.conditional and not distill_seg.parse_args([]).conditional


def test_label_free_reads_no_training_or_validation_label(frames, options, tmp_path, capsys):
    shutil.copytree(frames, tmp_path / "set")
    parts = split(find_frames(tmp_path / "set"))
    for frame in parts["train"][:8] + parts["validation"]:
        frame.hdf.unlink()
    for frame in parts["train"][8:]:
        frame.hdf.write_bytes(b"no labels at all")
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
    assert distill_seg.main(argv) == 0 and "no labels" in capsys.readouterr().out
    argv += ["--save-weights", str(tmp_path / "w.pt")]
    assert runs.run(lambda: distill_seg.main([*argv, "--out", str(tmp_path / "x")]), *distill_seg.ERRORS) == 2


@pytest.mark.slow
def test_a_run_killed_in_both_generations_ends_like_one_that_was_not(options, tmp_path, monkeypatch):
    monkeypatch.setattr(distill_seg, "report", lambda *args: None)  # best.pt is what it reports
    argv = [*options, "--generations", "2", "--gamma", "1", "--save-every", "1", "--resume"]
    argv += ["--kd", "pixel", "cwd", "dist", "pairwise", "attention"]
    assert distill_seg.main([*argv, "--out", str(tmp_path / "whole")]) == 0
    argv += ["--out", str(tmp_path / "run")]
    # with epoch 1 validated but not logged; and in the second step of the second generation
    for place, reached in (((distill_seg.runs, "log", 1), (0, 2)), ((nn.utils, "clip_grad_norm_", 2), (1, 1))):
        assert kill_inside(*place, distill_seg.main, argv) == signal.SIGKILL
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


@pytest.mark.slow
def test_two_processes_share_frames_stop_together_and_go_on_bit_for_bit(options, tmp_path):
    argv = [*options, "--batch-size", "4", "--generations", "2", "--gamma", "1", "--keep-logits", "--resume"]
    argv += ["--device", "cpu", "--out"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert two_processes(lambda: distill_seg.main([*argv, str(whole)])) == [0, 0]
    assert [line["epoch"] for line in log_of(whole)] == [1, 2]  # one process writes
    result = json.loads((whole / "result.json").read_text())
    assert result["sets"]["test"]["pixels"] == 2 * 64 * 64
    state = checkpoint.load(whole / "last.pt")
    assert len(state["rng"]) == 2 and not torch.equal(state["rng"][0]["torch"], state["rng"][1]["torch"])
    kept = [len(checkpoint.load(path)["logits"]) for path in tmp_path.glob("logits_*.pt")]
    assert kept == [16, 16]  # of the two generations' teachers

    def interrupted() -> int:  # Ctrl-C reaches the second process only, in the first step of the second generation
        nn.utils.clip_grad_norm_ = signalled(nn.utils.clip_grad_norm_, 3, signal.SIGINT, rank=1)
        return distill_seg.main([*argv, str(run)])

    assert two_processes(interrupted) == [130, 130]
    assert [checkpoint.load(run / "last.pt")[key] for key in ("epoch", "step")] == [1, 1]
    assert runs.run(lambda: distill_seg.main([*argv, str(run)]), *distill_seg.ERRORS) == 2  # another number of them
    assert two_processes(lambda: distill_seg.main([*argv, str(run)])) == [0, 0]
    for name in ("last.pt", "best.pt", "generation_1.pt"):
        states = [checkpoint.load(folder / name) for folder in (run, whole)]
        for state in states:
            state["rng"] = [rng["torch"] for rng in state.get("rng", [])]
        assert_equal(*states)
    logs = [[{**line, "images_per_second": 0} for line in log_of(folder)] for folder in (run, whole)]
    assert logs[0] == logs[1]


def test_more_frames_teach_without_labels_as_well(options, tmp_path):
    other = write_levels(tmp_path / "other", ["mine_1"], seed=5)
    (other / "mine_1.hdf").unlink()
    more = ["--beta", "0", "--more-frames", str(other), "--out", str(tmp_path / "run")]
    assert distill_seg.main([*options, *more]) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["training_frames"] == 16 + 1


@pytest.mark.slow
def test_the_second_generation_starts_anew_and_is_taught_by_the_first(options, tmp_path, monkeypatch):
    taught_by, started_as = [], []

    def freeze(network, device, inner=distill_seg.freeze):
        taught_by.append(copy.deepcopy(network.state_dict()))
        return inner(network, device)

    def new_student(*args, inner=distill_seg.new_student):
        started_as.append(copy.deepcopy((network := inner(*args)).state_dict()))
        return network

    monkeypatch.setattr(distill_seg, "freeze", freeze)
    monkeypatch.setattr(distill_seg, "new_student", new_student)
    assert distill_seg.main([*options, "--generations", "2", "--out", str(tmp_path)]) == 0
    given, pruned = (checkpoint.load(options[options.index(name) + 1]) for name in ("--teacher", "--student"))
    first = checkpoint.load(tmp_path / "generation_1.pt")
    assert_equal(dict(taught_by[0]), given["state_dict"])
    assert_equal(dict(taught_by[1]), first["state_dict"])
    assert len(started_as) == 2 and not torch.equal(*(next(iter(d["state_dict"].values())) for d in (first, pruned)))
    for state in started_as:
        assert_equal(dict(state), pruned["state_dict"])
    assert [line["epoch"] for line in log_of(tmp_path)] == [1, 2]


@pytest.mark.slow
def test_without_networks_or_data_the_shipped_teacher_is_cut_and_says_so(
    frames, teacher, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(data.synthetic, "generate", lambda folder, counts, workers: shutil.copytree(frames, folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(release, "WEIGHTS", tmp_path / "weights")
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
    losses = kd_losses.Losses(networks[1], networks[2], args.alpha, args.beta, args.kd, args.temperature)
    losses.weights, losses.weighted_kd = w, True
    with torch.no_grad():
        terms = losses.terms(networks[0], x, y)
    q, p, own = (network(x)["out"].detach().double() for network in networks)

    def divergence(p: torch.Tensor) -> float:
        p, r = (p / 2).softmax(1), (q / 2).softmax(1)
        return 4 * sum((w[c] * p[:, c] * (p[:, c] / r[:, c]).log()).mean().item() for c in range(3))

    ce = sum(w[c] * -q.log_softmax(1)[:, c][y == c].sum() for c in range(3)) / sum(
        w[c] * (y == c).sum() for c in range(3)
    )
    assert [t.item() for t in terms] == pytest.approx([divergence(p), ce.item(), divergence(own)], rel=1e-4)


def test_kept_logits_are_the_teachers_own_where_nothing_is_augmented_and_move_with_the_labels_where_it_is(
    frames, teacher, tmp_path
):
    network = distill_seg.freeze(rebuild(checkpoint.load(teacher)), CPU)
    images, labels = read_tensors(find_frames(frames)[:4], progress=False)
    training = TrainingSet(images, labels, None, None)
    kept = keep_logits(network, training, tmp_path)
    x, _, asked = distill_seg.prepare(Batch(images, labels, kept), None, False, 64)
    assert torch.allclose(asked, kd_losses.with_features(network, x)[0], atol=1e-5)
    assert distill_seg.parse_args(["--preset", "published"]).keep_logits
    network.forward = None  # a second run asks nobody, other frames do
    assert torch.equal(keep_logits(network, training, tmp_path), kept)
    with pytest.raises(TypeError):
        keep_logits(network, training._replace(images=images[:3]), tmp_path)
    levels = asked[:, 0].mul(10).round().clamp(0, 254).to(torch.uint8)  # labels that can be told from logits
    torch.manual_seed(0)
    _, y, asked = distill_seg.prepare(Batch(images, levels, kept), None, True, 32)
    assert torch.equal(asked[:, 0].mul(10).round().clamp(0, 254).long(), y) and y.shape == (4, 32, 64)
    assert levels.unique().numel() > 2 and not torch.equal(y, levels[:, :32].long())


def test_kept_logits_move_with_the_carriers_that_are_added():
    torch.manual_seed(0)
    labels = torch.zeros(6, 64, 64, dtype=torch.uint8)
    labels[:, :, 3:19] = torch.randint(1, 3, (6, 1, 1))
    kept = nn.functional.one_hot(labels.long(), 3).permute(0, 3, 1, 2).half()  # (N, 3, 64, 64)
    batch = Batch(labels * 50 + 70, labels, kept)
    _, y, asked = distill_seg.prepare(batch, torch.from_numpy(PARULA), True, 32)
    assert torch.equal(asked.argmax(1), y) and (y != 0).any(1).sum(1).tolist() == 6 * [32]


def test_the_ema_moves_parameters_and_buffers_and_copies_counters():
    torch.manual_seed(0)
    ema, network = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2))
    network(torch.randn(5, 3, 2, 2))
    before = copy.deepcopy(ema.state_dict())
    kd_losses.update_ema(ema, network, 0.75)
    for name, tensor in ema.state_dict().items():
        theirs = network.state_dict()[name]
        expected = theirs if name.endswith("tracked") else 0.75 * before[name] + 0.25 * theirs
        assert torch.allclose(tensor, expected, atol=1e-6), name
    assert not torch.equal(ema[1].running_mean, before["1.running_mean"])


def test_from_scratch_keeps_the_shape_and_nothing_else(student):
    data = checkpoint.load(student)
    ours, again = (distill_seg.new_student(data, from_scratch=True, seed=3).state_dict() for _ in range(2))
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
    ]
    for argv, words in cases:
        assert runs.run(lambda argv=argv: distill_seg.main(argv), *distill_seg.ERRORS) == 2, argv
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and words in error
        assert not (tmp_path / "out").exists()
    for options in ("--alpha 0 --beta 0", "--beta 0 --kd pairwise", "--beta 0 --conditional", "--batch-size 1"):
        with pytest.raises(SystemExit):
            distill_seg.parse_args(options.split())
