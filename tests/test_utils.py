"""Checkpoints, metrics, augmentation, pictures, run folders. Run: python -m pytest tests/test_utils.py"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data import augment
from data.spectrum_sensing import Frame
from utils import checkpoint, metrics, pictures, release, runs
from utils.checkpoint import CheckpointError
from utils.runs import RunError, StopSignal
from utils.training import TrainingSet

# ---- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_equal(tmp_path):
    data = {"t": torch.arange(3.0), "list": [1, (2.5, None)], "text": "a", 7: {"flag": True, "raw": b"x"}}
    checkpoint.save(tmp_path / "new" / "a.pt", data)
    again = checkpoint.load(tmp_path / "new" / "a.pt")
    assert torch.equal(again.pop("t"), data.pop("t")) and again == data
    assert os.listdir(tmp_path / "new") == ["a.pt"]


def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"x": 1})

    def full(data, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save(path, {"x": 2})
    monkeypatch.undo()
    assert checkpoint.load(path) == {"x": 1} and os.listdir(tmp_path) == ["a.pt"]


def test_objects_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(CheckpointError, match=r"data\['a'\]\[1\]"):
        checkpoint.save(tmp_path / "a.pt", {"a": [1, object()]})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short", None])
def test_files_that_are_no_checkpoints_give_one_sentence(tmp_path, content):
    path = tmp_path / "a.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="a.pt") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_every_cut_of_a_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save(path, {"x": torch.randn(100)})
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


def test_weights_are_half_precision_but_for_vectors_and_their_sum_is_checked(tmp_path):
    path = tmp_path / "w.pt"
    state = {"kernel": torch.randn(2, 2), "bias": torch.tensor([1e6, 1.0]), "count": torch.tensor(3)}
    checkpoint.save_weights(path, {"state_dict": state}, {"seed": 4})
    facts = json.loads((tmp_path / "w.json").read_text())
    assert facts["seed"] == 4 and facts["bytes"] == path.stat().st_size
    again = checkpoint.load(path)["state_dict"]
    assert again["kernel"].dtype == torch.float16 and torch.equal(again["bias"], state["bias"])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match="SHA-256"):
        checkpoint.load(path)
    (tmp_path / "w.json").write_text("{}")
    with pytest.raises(CheckpointError, match="w.json"):
        checkpoint.load(path)


def test_random_numbers_go_on_where_they_were(tmp_path):
    checkpoint.save(tmp_path / "r.pt", checkpoint.rng_state())
    draw = lambda: (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: E731
    first = draw()
    checkpoint.set_rng_state(checkpoint.load(tmp_path / "r.pt"))
    assert draw() == first != draw()


# ---- metrics -------------------------------------------------------------------------------------------------------


def test_scores_equal_their_definition_by_sets_of_pixels():
    torch.manual_seed(0)
    truth, guess = torch.randint(3, (4, 20, 20)), torch.randint(3, (4, 20, 20))
    truth[0, :5] = 255
    matrix = sum(metrics.confusion_matrix(g, t) for g, t in zip(guess, truth, strict=True))
    found = metrics.scores(matrix)
    counted = {i for i, t in enumerate(truth.flatten().tolist()) if t != 255}
    where = [{i for i in counted if values[i] == c} for values in (truth.flatten(), guess.flatten()) for c in range(3)]
    for c, name in enumerate(("noise", "NR", "LTE")):
        true, predicted = where[c], where[c + 3]
        both = len(true & predicted)
        precision, recall = both / len(predicted), both / len(true)
        expected = {"iou": both / len(true | predicted), "precision": precision, "recall": recall}
        expected["f1"] = 2 * precision * recall / (precision + recall)
        assert found["classes"][name] == pytest.approx(expected)
    assert found["accuracy"] == sum(len(where[c] & where[c + 3]) for c in range(3)) / len(counted)
    assert found["mean_iou"] == pytest.approx(sum(found["classes"][n]["iou"] for n in found["classes"]) / 3)
    assert found["pixels"] == len(counted) and found["absent"] == []


def test_an_absent_class_is_named_and_left_out_of_the_means():
    truth, guess = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 1, 1])
    found = metrics.scores(metrics.confusion_matrix(guess, truth))
    assert found["absent"] == ["LTE"] and found["classes"]["LTE"] is None
    assert found["mean_iou"] == pytest.approx((0.5 + 1) / 2) and found["accuracy"] == 0.75
    assert metrics.scores(torch.zeros(3, 3, dtype=torch.int64))["mean_iou"] is None
    lines = metrics.table({"some": {"frames": 1, **found}}).splitlines()
    assert lines[1].split()[-1] == "-" and "left out" in lines[-1]


def test_confusion_matrix_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="shape"):
        metrics.confusion_matrix(torch.zeros(2), torch.zeros(3))
    for prediction, target in [([0, 3], [0, 1]), ([0, 1], [0, 4]), ([-1, 0], [0, 0])]:
        with pytest.raises(ValueError, match="outside"):
            metrics.confusion_matrix(torch.tensor(prediction), torch.tensor(target))


def test_frame_matrices_of_shares_add_up_to_the_whole():
    images = torch.randint(3, (5, 3, 4, 4), dtype=torch.uint8)
    labels = torch.randint(3, (5, 4, 4), dtype=torch.uint8)
    whole = metrics.frame_matrices(lambda x: x[:, 0], images, labels, batch_size=2)
    for i in range(5):
        assert torch.equal(whole[i], metrics.confusion_matrix(images[i, 0], labels[i]))
    shares = [metrics.frame_matrices(lambda x: x[:, 0], images, labels, range(rank, 5, 2)) for rank in (0, 1)]
    assert torch.equal(sum(shares), whole)


def test_class_weights_are_undone_by_the_share_that_scores_best():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (5, 8, 8), dtype=torch.uint8)
    labels[0, 0] = 255
    weights = torch.tensor([0.3, 1.0, 2.0])
    right = torch.nn.functional.one_hot(labels.long().clamp(max=2), 3).permute(0, 3, 1, 2).float()  # (5, 3, 8, 8)
    logits = 0.02 * right + weights.log().view(3, 1, 1)  # so nothing but the whole of log w may be in the way

    def best(logits, weights=weights):
        return release.best_shift(lambda part: part, logits, labels, weights, batch_size=2)

    assert best(logits)[0] == 1
    assert best(9 * right)[0] == 0  # all shares are right: the smallest
    noisy = logits + 0.8 * torch.randn_like(logits)
    ious = []
    for share in release.SHARES:
        guess, truth = (noisy - share * weights.log().view(3, 1, 1)).argmax(1)[labels < 3], labels[labels < 3]
        both = [((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum() for c in range(3)]
        ious.append(sum(both).item())
    share, shift = best(noisy)
    assert ious[release.SHARES.index(share)] == max(ious) and torch.allclose(shift, -share * weights.log())
    _, shift = best(logits, weights * torch.tensor([1, 0, 1]))  # a class that the loss never saw
    assert shift[1] == 0 and shift.isfinite().all()


def test_frames_of_other_emissions_do_not_tell_how_much_of_the_class_weights_is_undone():
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(4, 8, 8)
    training = TrainingSet(images, labels, None, torch.ones(3))
    frames = [
        Frame(f"{family}_{k}", family, Path(), Path()) for k, family in enumerate(["NR", "OTHER", "FIELD", "OTHER"])
    ]
    rest = release.usual(training, frames)
    assert torch.equal(rest.images, images[[0, 2]]) and torch.equal(rest.labels, labels[[0, 2]])
    assert torch.equal(rest.weights, training.weights)
    others = training._replace(images=images[[1, 3]], labels=labels[[1, 3]])
    assert len(release.usual(others, [frames[1], frames[3]]).images) == 2  # there is nothing else to ask


def test_frames_are_grouped_by_family_and_snr():
    groups = metrics.frame_groups("test", ["NR", "LTE", "FIELD", "FIELD"], [3.0, 40.0, None, -0.5])
    assert groups == {
        "test": [0, 1, 2, 3],
        "test, single-signal": [0, 1],
        "test, FIELD": [2, 3],
        "test, LTE": [1],
        "test, NR": [0],
        "test, -10 to 0 dB": [3],
        "test, 0 to 10 dB": [0],
        "test, 40 to 50 dB": [1],
    }
    assert metrics.frame_groups("all", ["OWN", "OWN"], [None, None]) == {"all": [0, 1]}


def test_false_alarms_are_the_share_of_noise_that_is_called_anything_else():
    truth, guess = torch.tensor([[0, 0, 0, 0, 1, 2]]), torch.tensor([[0, 0, 2, 0, 0, 1]])
    assert metrics.false_alarms(metrics.confusion_matrix(guess, truth, 3, 255)) == 0.25
    assert metrics.false_alarms(torch.zeros(3, 3, dtype=torch.int64)) == 0


# ---- augmentation --------------------------------------------------------------------------------------------------


def test_colours_become_levels_and_back():
    palette = torch.stack((torch.arange(256), 255 - torch.arange(256), torch.arange(256) // 2), 1).to(torch.uint8)
    levels = torch.randint(256, (3, 16, 16), dtype=torch.uint8)
    images = palette[levels.long()].permute(0, 3, 1, 2)
    found, error = augment.colormap_index(images, palette)
    assert error == 0 and torch.equal(found, levels)
    off = images.clone()
    off[0, 2, 0, 0] ^= 1
    found, error = augment.colormap_index(off, palette)
    assert error == 1 and torch.equal(found, levels)
    assert augment.colormap_index(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8), palette)[1] > 50


def test_added_carriers_meet_no_other_and_lie_as_high_above_noise_as_before():
    torch.manual_seed(0)
    n, width, level = 40, 32, torch.randint(60, 80, (40, 1, 1))
    left, size = torch.randint(width, (n,)), torch.randint(3, 14, (n,))
    taken = (torch.arange(width) - left[:, None]) % width < size[:, None]  # (N, W), round the edge as well
    taken[7], level[9:12] = True, 120
    masks = taken[:, None].expand(-1, 6, -1) * torch.randint(1, 3, (n, 1, 1))
    levels = (level + masks * 50 + torch.arange(6)[:, None]).to(torch.uint8)
    logits = torch.stack((masks, levels), 1).float()
    moved, classes, along = augment.add_carriers(levels, masks, logits)
    assert moved.dtype == torch.uint8 and torch.equal(along[:, 0], classes.float())
    guests = (classes != masks).any(1)  # (N, W)
    fits = size + size.roll(1) < width
    for i in range(n):
        stays = i in (7, 8, 9, 12) or not fits[i]  # full, no noise to compare, other noise
        assert guests[i].sum() == (0 if stays else size[i - 1]) and not (guests[i] & taken[i]).any()
        shifts = [s for s in range(width) if torch.equal(guests[i], taken[i - 1].roll(s))]
        assert stays or any(
            torch.equal(classes[i][:, guests[i]], masks[i - 1].roll(s, 1)[:, guests[i]]) for s in shifts
        )
    assert torch.equal(moved.long(), (level + classes * 50 + torch.arange(6)[:, None]).long())
    assert len({int((guests[i].long().argmax() - taken[i].long().argmax()) % width) for i in range(n)}) > 5


@pytest.mark.parametrize("mirror", [False, True])
def test_shifts_and_flips_equal_roll_and_flip_and_the_mask_moves_along(mirror):
    torch.manual_seed(3)
    levels = torch.randint(256, (32, 6, 10), dtype=torch.uint8)
    geometry = augment.draw_geometry(32, 6, 10, mirror)
    moved, mask = augment.shift_and_flip(levels, levels.clone(), geometry)
    assert torch.equal(moved, mask)
    seen = set()
    for i in range(32):
        choices = {
            (flip_rows, flip_columns, down, right): torch.roll(
                levels[i].flip([d for d, flip in ((0, flip_rows), (1, flip_columns)) if flip]), (down, right), (0, 1)
            )
            for flip_rows in (False, True)
            for flip_columns in (False, True)
            for down in range(6)
            for right in range(10)
        }
        which = [name for name, choice in choices.items() if torch.equal(choice, moved[i])]
        assert len(which) == 1
        seen.add(which[0][:2])
    assert seen == {(rows, columns) for rows in (False, True) for columns in {False, mirror}}  # every kind
    pictures_too, _ = augment.shift_and_flip(levels[:, None].expand(-1, 3, -1, -1), levels, geometry)
    assert torch.equal(pictures_too[:, 1], moved)


def test_level_jitter_is_a_clipped_line_and_leaves_some_frames_alone():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).repeat(2, 1, 1)
    moved = augment.jitter_levels(levels, torch.tensor([1.2, 1.0]), torch.tensor([-40.0, 0.0]))
    expected = np.clip(np.rint(np.float32(1.2) * np.arange(256, dtype=np.float32) - 40), 0, 255)
    assert np.array_equal(moved[0].flatten().numpy(), expected) and torch.equal(moved[1], levels[1])
    gain, offset = augment.draw_levels(1000, torch.Generator().manual_seed(0))
    same = (gain == 1) & (offset == 0)
    assert 450 < same.sum() < 550
    highest = gain * 255 + offset  # where the strongest level goes: never beyond the scale
    assert 0.8 * 255 - 0.01 <= highest.min() and highest.max() <= 255.01


# ---- pictures ------------------------------------------------------------------------------------------------------


def test_pictures_show_spectrogram_truth_and_prediction_in_this_order(tmp_path):
    image = torch.randint(256, (3, 40, 50), dtype=torch.uint8)
    truth, guess = torch.full((40, 50), 1), torch.full((40, 50), 2, dtype=torch.uint8)
    picture = np.asarray(pictures.side_by_side(image, truth, guess, "name"))[-40:]
    assert np.array_equal(picture[:, :50], image.permute(1, 2, 0).numpy())
    assert (picture[:, 54:104] == pictures.COLOURS[1].numpy()).all()
    assert (picture[:, 108:] == pictures.COLOURS[2].numpy()).all()
    assert (pictures.paint(torch.full((1, 1), 255)).flatten() == pictures.IGNORED).all()


def test_confusion_picture_is_darkest_where_all_pixels_are(tmp_path):
    matrix = torch.tensor([[9, 0, 0], [0, 0, 9], [0, 0, 0]])
    pictures.save(pictures.confusion_picture(matrix, ("noise", "NR", "LTE"), "test"), tmp_path / "new" / "c.png")
    assert (tmp_path / "new" / "c.png").read_bytes().startswith(b"\x89PNG")
    pixels = np.asarray(pictures.confusion_picture(matrix, ("noise", "NR", "LTE"))).astype(int).sum(2)
    shade = [[pixels[56 + 96 * i + 10, 80 + 96 * j + 10] for j in range(3)] for i in range(3)]
    assert shade[0][0] == shade[1][2] < shade[0][1] == shade[2][0]


def test_bars_are_as_long_as_their_values():
    picture = np.asarray(pictures.bars(["a", "bb"], {"one": [0.5, 1.0], "two": [0.0, 0.25]})).astype(int)
    blue = (picture == (70, 130, 180)).all(2).any(0)
    assert picture.shape[0] == 3 * 16 + 8
    for row, shares in ((16, (0.5, 0.0)), (32, (1.0, 0.25))):
        found = (picture[row + 4] == (70, 130, 180)).all(1)
        assert [found[32:240].sum(), found[244:].sum()] == [round(200 * share) + 1 for share in shares]
    assert blue.any()


# ---- run folders ---------------------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten_and_not_resumed_with_other_values(tmp_path):
    runs.start(tmp_path / "r", {"lr": 7}, False, ("lr",))  # got no further
    folder = runs.start(tmp_path / "r", {"lr": 0.1, "device": "cpu"}, False, ("lr",))
    (folder / "last.pt").write_text("")
    with pytest.raises(RunError, match="--resume"):
        runs.start(folder, {"lr": 0.1}, False, ("lr",))
    runs.start(folder, {"lr": 0.1, "device": "cuda"}, True, ("lr",))
    with pytest.raises(RunError, match="lr = 0.1, not 0.2"):
        runs.start(folder, {"lr": 0.2}, True, ("lr",))
    (folder / "config.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        runs.start(folder, {"lr": 0.1}, True, ("lr",))


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/r: can't be written"):
        runs.start(tmp_path / "file" / "r", {}, False, ())


def test_a_part_of_torchruns_variables_is_told(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as some clusters set it
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RunError, match="RANK is not set: start it with torchrun, or unset WORLD_SIZE"):
        runs.join_processes("cpu")


def test_the_log_loses_what_will_be_done_again_and_half_lines(tmp_path):
    for epoch in (1, 2, 3):
        runs.log(tmp_path, epoch=epoch, loss=0.5)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"epoch": 4, "lo')
    runs.cut_log(tmp_path, 2)
    assert [json.loads(line)["epoch"] for line in open(tmp_path / "log.jsonl")] == [1, 2]


def test_known_errors_are_one_sentence_and_code_2_and_others_are_not_hidden(capsys):
    def fail(error):
        raise error

    assert runs.run(lambda: None) == 0
    assert runs.run(lambda: fail(CheckpointError("no such file")), CheckpointError) == 2
    assert capsys.readouterr().err == "error: no such file\n"
    assert runs.run(lambda: os.mkdir("/proc/nothing/here")) == 2
    assert "error: /proc/nothing/here: No such file" in capsys.readouterr().err
    assert runs.run(lambda: fail(KeyboardInterrupt())) == 130
    assert runs.run(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 130
    with pytest.raises(ZeroDivisionError):
        runs.run(lambda: 1 // 0, CheckpointError)


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_ends_a_script_without_a_word():
    code = "import sys; from utils.runs import run; sys.exit(run(lambda: [print(90 * '.') for _ in range(9999)]))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as script:
        assert script.stdout.readline() == 90 * "." + "\n"
        script.stdout.close()
        assert script.stderr.read() == "" and script.wait() == 141


def test_the_first_signal_is_a_wish_and_the_second_an_order():
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "option",
    ["--count=0", "--count=1.5", "--positive=0", "--positive=nan", "--positive=inf", "--share=1.1", "--share=x"]
    + ["--bits=9", "--count=9999999999999", "--file=weights.pth"],
)
def test_an_option_out_of_range_is_named_and_ends_with_exit_code_2(option, capsys):
    parser = argparse.ArgumentParser()
    kinds = {"count": runs.count, "positive": runs.positive, "share": runs.real(0, 1), "bits": runs.whole(2, 8)}
    for name, kind in (kinds | {"file": runs.weights_file}).items():
        parser.add_argument(f"--{name}", type=kind)
    good = parser.parse_args(["--count=3", "--positive=.5", "--share=1", "--bits=2", "--file=a.pt"])
    assert good == argparse.Namespace(count=3, positive=0.5, share=1.0, bits=2, file=Path("a.pt"))
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([option])
    assert stop.value.code == 2 and f"argument {option.partition('=')[0]}: " in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_is_one_that_can_be_given_again(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from utils.runs import command; print(command())")
    for arguments, expected in (([str(script), "--n", "a b"], "python script.py --n 'a b'"), (["-m", "script"], None)):
        environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{tmp_path}"}
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.strip() == (expected or "python -m script")


def test_a_config_has_plain_options_facts_and_the_command_and_a_resumed_run_may_change_some():
    args = argparse.Namespace(lr=0.1, out=Path("runs/x"), more_frames=[Path("a"), Path("b")], student=None)
    config = runs.config_of(args, training_frames=7)
    assert config == {
        "lr": 0.1, "out": "runs/x", "more_frames": ["a", "b"], "student": None, "training_frames": 7,
        "command": runs.command(),
    }  # fmt: skip
    assert runs.decisive(config, "student") == ("lr", "training_frames")


def test_default_networks_are_the_users_own_or_the_shipped_ones_from_any_folder(tmp_path, monkeypatch):
    for folder in (Path(release.__file__).parents[1], tmp_path):
        monkeypatch.chdir(folder)
        shipped = release.shipped("seg_teacher.pt")
        assert shipped.exists() and shipped.is_absolute() == (folder == tmp_path)
    assert release.default_teacher() == shipped and release.default_pruned() is None
    for own in (release.OWN_TEACHER, release.OWN_PRUNED):
        own.parent.mkdir(parents=True)
        own.write_text("")
    assert release.default_teacher() == release.OWN_TEACHER and release.default_pruned() == release.OWN_PRUNED


def test_the_recorded_command_has_no_folders_of_this_machine(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/train_seg.py", "--out", "runs/a b"])
    assert runs.command() == "python train_seg.py --out 'runs/a b'"
    monkeypatch.setattr(runs, "rank_and_world", lambda: (0, 8))  # torchrun tells a script these two counts
    for machines, processes, options in ((1, 8, "--nproc-per-node=8"), (2, 4, "--nnodes=2 --nproc-per-node=4")):
        monkeypatch.setenv("GROUP_WORLD_SIZE", str(machines))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert runs.command() == f"torchrun {options} train_seg.py --out 'runs/a b'"
