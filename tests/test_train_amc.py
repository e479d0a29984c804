"""train_amc.py on a tiny file in the original layout, to the end: seconds.

python -m pytest tests/test_train_amc.py
"""

import json
import signal

import pytest
import torch

import train_amc
from data.code_cache import open_cache
from data.radioml import MODULATIONS, SNRS, open_frames, split
from models.rebuild import rebuild
from tests.conftest import AMC_SMALL, assert_equal, contents, kill_inside, log_of, signalled, two_processes
from utils import checkpoint, runs
from utils.evaluation import amc_accuracy, describe_amc
from utils.training import Progress, falling_rate


@pytest.fixture(scope="module")
def options(radioml_file) -> list[str]:
    """Of the run that the fixture amc_baseline is."""
    argv = ["--data-file", str(radioml_file), *AMC_SMALL, "--filters", "8", "--dense", "16", "--epochs", "2"]
    return [*argv, "--schedule", "cosine", "--save-every", "30"]


def test_the_baseline_learns_and_its_scores_equal_an_independent_count(radioml_file, amc_baseline):
    log = log_of(amc_baseline)
    assert log[-1]["loss"] < 0.95 * log[0]["loss"]
    result = json.loads((amc_baseline / "result.json").read_text())
    data, frames = checkpoint.load(amc_baseline / "best.pt"), open_frames(radioml_file)
    assert result["validation"] == max(line["validation"] for line in log) == data["validation"]
    rows = split(frames)["test"]
    with torch.no_grad():
        guess = rebuild(data).eval()(frames.samples(rows)).argmax(1).numpy()  # float samples, not the cache's codes
    right = guess == frames.labels[rows]
    assert result["sets"]["test"]["accuracy"] == right.mean() > 0.1
    for snr in SNRS:
        assert result["sets"]["test"]["by_snr"][str(snr)] == right[frames.snrs[rows] == snr].mean()
    for label, name in enumerate(MODULATIONS):
        assert result["sets"]["test"]["by_class"][name] == right[frames.labels[rows] == label].mean()
    pictures = {path.name for path in (amc_baseline / "pictures").iterdir()}
    assert pictures == {"accuracy_by_snr.png", "confusion.png", "confusion_high.png"}


@pytest.mark.slow
def test_a_run_that_was_killed_again_and_again_ends_like_one_that_was_not(options, amc_baseline, tmp_path):
    argv = [*options, "--resume", "--out", str(tmp_path / "run")]
    # in an epoch, before and after the first epoch's line in the log, and before the result
    epochs_end = (train_amc, "amc_accuracy"), (runs, "log")
    for place in ((train_amc, "apply_masks", 35), *((*end, 1) for end in epochs_end), (*epochs_end[0], 2)):
        assert kill_inside(*place, train_amc.main, argv) == signal.SIGKILL
    assert kill_inside(train_amc, "report_amc", 1, train_amc.main, argv) == signal.SIGKILL
    assert train_amc.main(argv) == 0
    assert_equal(contents(tmp_path / "run"), contents(amc_baseline))


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_bit_for_bit(radioml_file, tmp_path):
    argv = ["--data-file", str(radioml_file), *AMC_SMALL, "--filters", "8", "--dense", "16", "--epochs", "2"]
    argv += ["--device", "cpu", "--resume", "--save-weights", str(tmp_path / "w.pt"), "--out"]

    def interrupted() -> int:
        train_amc.apply_masks = signalled(train_amc.apply_masks, 30, signal.SIGTERM, rank=1)
        return train_amc.main([*argv, str(tmp_path / "run")])

    assert two_processes(interrupted) == [130, 130]
    state = checkpoint.load(tmp_path / "run/last.pt")
    after = state["progress"]["epochs"], state["progress"]["batch"]
    assert after == (1, 11)  # after an epoch of 624 / (16 * 2) = 19 steps
    for name in ("run", "whole"):
        assert two_processes(lambda name=name: train_amc.main([*argv, str(tmp_path / name)])) == [0, 0]
    assert_equal(contents(tmp_path / "run"), contents(tmp_path / "whole"))
    network, frames = rebuild(checkpoint.load(tmp_path / "w.pt")), open_frames(radioml_file)
    alone = amc_accuracy(network, open_cache(frames, 8), split(frames)["test"], torch.device("cpu"))
    assert alone == contents(tmp_path / "whole")["result"]["sets"]["test"]["accuracy"]  # of the whole set
    assert runs.run(lambda: train_amc.main([*argv, str(tmp_path / "run")]), *train_amc.ERRORS) == 2


def test_a_termination_signal_saves_the_run_which_goes_on_later(options, amc_baseline, tmp_path, monkeypatch, capsys):
    terminated = signalled(train_amc.apply_masks, 10, signal.SIGTERM)
    monkeypatch.setattr(train_amc, "apply_masks", terminated)
    argv = [*options, "--out", str(tmp_path / "run")]
    assert train_amc.main(argv) == 130 and len(terminated.calls) == 10
    assert "go on with --resume" in capsys.readouterr().err
    assert train_amc.main([*argv, "--resume"]) == 0
    assert_equal(contents(tmp_path / "run"), contents(amc_baseline))


def test_going_on_from_a_pruned_network_keeps_its_zeros_its_widths_and_its_commands(
    radioml_file, amc_baseline, tmp_path
):
    data = checkpoint.load(amc_baseline / "best.pt")
    network = rebuild(data)
    pruned = {name: weight.abs() < weight.abs().median() for name, weight in network.weights().items()}
    for name, weight in network.weights().items():
        data["state_dict"][name] = torch.where(pruned[name], 0.0, weight.detach())
    checkpoint.save(tmp_path / "pruned.pt", {**data, "history": ["first", "second"]})
    argv = ["--data-file", str(radioml_file), *AMC_SMALL, "--checkpoint", str(tmp_path / "pruned.pt"), "--bits", "5"]
    argv += ["--epochs", "1", "--epoch-frames", "160", "--learned-steps", "--save-weights", str(tmp_path / "w.pt")]
    assert train_amc.main([*argv, "--out", str(tmp_path / "run")]) == 0
    best = checkpoint.load(tmp_path / "run/best.pt")
    after = rebuild(best)
    arguments = {**network.arguments(), "bits": 5, "activation_bits": 5, "learned_steps": True}
    assert after.arguments() == arguments
    for name, weight in after.weights().items():
        assert weight[pruned[name]].eq(0).all() and not torch.equal(weight, data["state_dict"][name])
    assert best["history"][:2] == ["first", "second"] and len(best["history"]) == 3
    # What is handed on is what was scored
    shipped, result = checkpoint.load(tmp_path / "w.pt"), json.loads((tmp_path / "w.json").read_text())
    assert result["commands"] == best["history"] and result["sets"]["test"]["frames"] == 24 * 26
    assert shipped["state_dict"]["output.weight"].dtype == torch.float16
    frames = open_frames(radioml_file)
    rows = split(frames)["test"]
    with torch.no_grad():
        guess = rebuild(shipped).eval()(frames.samples(rows)).argmax(1).numpy()
    assert result["sets"]["test"]["accuracy"] == (guess == frames.labels[rows]).mean()


def test_going_on_keeps_mixed_widths_unless_others_are_asked_for(radioml_file, amc_baseline, tmp_path):
    bits, read = (5, 2, 3, 8, 5, 2, 6, 3, 7, 4), (6, 4, 8, 2, 3, 6, 7, 2, 3, 8)
    network = rebuild(checkpoint.load(amc_baseline / "best.pt")).requantised(bits, read)
    checkpoint.save(tmp_path / "mixed.pt", describe_amc(network, 0))
    argv = ["--data-file", str(radioml_file), *AMC_SMALL, "--checkpoint", str(tmp_path / "mixed.pt")]
    argv += ["--epochs", "1", "--epoch-frames", "32"]
    assert train_amc.main([*argv, "--out", str(tmp_path / "run")]) == 0
    after = rebuild(checkpoint.load(tmp_path / "run/best.pt"))
    assert (after.bits, after.activation_bits) == (bits, read)
    assert json.loads((tmp_path / "run/result.json").read_text())["bits"] == list(bits)
    assert radioml_file.with_name(f"{radioml_file.name}.codes6").exists()  # what its input reads


def test_without_a_data_set_a_small_file_is_made_and_named(radioml_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_amc, "default_file", lambda workers: radioml_file)
    monkeypatch.setattr(train_amc, "SMALL_FILE", radioml_file)
    monkeypatch.setattr(train_amc, "SMALL_EPOCHS", 1)
    argv = [*AMC_SMALL, "--filters", "4", "--dense", "8", "--epoch-frames", "64", "--out", str(tmp_path / "run")]
    assert train_amc.main(argv) == 0
    assert f"{radioml_file}: 624 of train, 624 of validation, 624 of test frames; 1 epochs" in capsys.readouterr().out
    assert len(log_of(tmp_path / "run")) == 1


def test_the_learning_rate_falls_along_a_cosine_or_by_ten_after_five_epochs_without_improvement():
    for done, expected in ((0, 1.0), (5, 0.5), (10, 0.0)):
        assert falling_rate(1.0, "cosine", done, 10) == pytest.approx(expected)
    progress, rates = Progress(), []
    for accuracy in [0.1, 0.2] + [0.2] * 10 + [0.3, 0.1]:
        progress.end_epoch(accuracy)
        rates.append(falling_rate(1.0, "plateau", 0, 1, progress.drops))
    assert rates == pytest.approx([1] * 6 + [0.1] * 5 + [0.01] * 3)
    assert (progress.best, progress.waited, progress.epochs) == (0.3, 1, 14)


def test_faults_are_one_sentence_and_exit_code_2(radioml_file, options, amc_baseline, tmp_path, capsys):
    (tmp_path / "noise.pt").write_bytes(b"noise")
    checkpoint.save(tmp_path / "other.pt", {"kind": "segmentation"})
    data = ["--data-file", str(radioml_file)]
    for argv, text in [
        (["--data-file", str(tmp_path / "none.hdf5")], "no such file"),
        ([*data, "--checkpoint", str(tmp_path / "noise.pt")], "not a checkpoint"),
        ([*data, "--checkpoint", str(tmp_path / "other.pt")], "not a modulation network"),
        ([*options, "--out", str(amc_baseline)], "holds a run"),
        ([*options, "--epochs", "3", "--resume", "--out", str(amc_baseline)], "started with epochs"),
    ]:
        argv = argv if "--out" in argv else [*argv, "--out", str(tmp_path / "run")]
        assert runs.run(lambda argv=argv: train_amc.main(argv), *train_amc.ERRORS) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and text in error, error
    assert not (tmp_path / "run").exists()
    for argv in (
        ["--epochs", "0"],
        ["--bits", "9"],
        ["--save-weights", "x"],
        ["--checkpoint", "x.pt", "--filters", "8"],
    ):
        with pytest.raises(SystemExit, match="2"):
            train_amc.parse_args(argv)
