"""feedback_magnitude_pruning.py on a tiny file, from a network of eight filters, to the end: seconds.

python -m pytest tests/test_fmp.py
"""

import json
import signal

import pytest
import torch

import feedback_magnitude_pruning as fmp
import train_amc
from models.rebuild import rebuild
from tests.conftest import AMC_SMALL, assert_equal, contents, kill_inside, log_of, signalled, two_processes
from utils import checkpoint, evaluation, pruning_masks, runs
from utils.cost import challenge_score
from utils.pruning_masks import cost_of


@pytest.fixture(scope="module")
def options(radioml_file, amc_baseline) -> list[str]:
    """Of a pruning run that fails soon enough for a test."""
    argv = ["--data-file", str(radioml_file), "--checkpoint", str(amc_baseline / "best.pt"), *AMC_SMALL]
    return [*argv, "--step-epochs", "2", "--epoch-frames", "96", "--p", ".5", "--min-p", ".2", "--keep", ".6"]


def steps_of(folder) -> list[dict]:
    return json.loads((folder / "result.json").read_text())["steps"]


def share_left(network, *_) -> float:
    """Stands in for the accuracy, so that the course of a run is the same on every processor."""
    weights = torch.cat([weight.flatten() for weight in network.weights().values()])
    return int(weights.count_nonzero()) / len(weights)


@pytest.mark.slow
def test_imp_stops_at_its_first_failure_and_keeps_the_network_before_it(options, tmp_path):
    folder = tmp_path / "imp"
    weights = tmp_path / "w.pt"
    # Small steps: on whatever processor, the first of them holds the accuracy that the last one loses.
    argv = [*options, "--preset", "imp-4bit", "--p", ".3", "--out", str(folder), "--save-weights", str(weights)]
    assert fmp.main(argv) == 0
    steps, state = steps_of(folder), checkpoint.load(folder / "best.pt")
    assert [row["good"] for row in steps] == [True] * (len(steps) - 1) + [False] and len(steps) > 2
    for before, row in zip(steps, steps[1:], strict=False):
        assert row["nonzero"] <= round(before["nonzero"] * 0.7) + 5  # each of ten layers may have kept its last one
    network = rebuild(state)
    for name, layer in network.layers().items():
        assert layer.weight[~state["masks"][f"{name}.weight"]].eq(0).all()
    last = steps[-2]
    assert state["validation"] == last["validation"] and challenge_score(cost_of(network))["score"] == last["score"]
    result = json.loads((folder / "result.json").read_text())
    shipped = rebuild(checkpoint.load(weights)).layers().values()
    nonzero = sum(int((layer.weight_codes() != 0).sum()) for layer in shipped)
    assert result["true_compression"] == pytest.approx(steps[0]["nonzero"] * steps[0]["compression"] / nonzero)
    assert result["compression_by_the_papers_formula"] == pytest.approx((1 / 0.7) ** (len(steps) - 2))
    assert result["sets"].keys() == {"test", "unpruned"} and "masks" not in checkpoint.load(weights)
    assert len(result["commands"]) == 2  # of train_amc.py and of this run


def test_fmp_in_series_goes_back_and_divides_p_and_ends_the_same_after_kills(options, tmp_path, monkeypatch):
    def by_size(network, *_):  # so that the course doesn't depend on the processor: good down to 500 weights
        return min(1.0, challenge_score(cost_of(network))["nonzero"] / 850)

    monkeypatch.setattr(evaluation, "amc_accuracy", by_size)
    argv = [*options, "--preset", "fmp-4bit", "--p-methods", "structured", "unstructured", "--save-every", "3"]
    assert fmp.main([*argv, "--out", str(tmp_path / "whole")]) == 0
    steps = steps_of(tmp_path / "whole")
    structured = [row for row in steps if row["method"] == "structured"]
    unstructured = [row for row in steps if row["method"] == "unstructured"]
    assert structured[0]["p"] == 0.25 and unstructured[0]["p"] == 0.5  # whole filters start at p / n; p is restored
    for row, after in zip(steps, steps[1:], strict=False):
        if row["method"] == after["method"] != "-":
            assert after["p"] == row["p"] if row["good"] else after["p"] == row["p"] / 2
    unpruned, best = (rebuild(checkpoint.load(tmp_path / f"whole/{name}.pt")) for name in ("unpruned", "best"))
    assert structured[0]["good"] and not all(row["good"] for row in steps)
    assert sum(layer.weight.numel() for layer in best.layers().values()) < steps[0]["nonzero"]  # it really shrank
    assert min(best.arguments()["filters"]) < min(unpruned.arguments()["filters"])
    rates = {line["lr"] for line in log_of(tmp_path / "whole") if "loss" in line}
    assert rates == {0.01}  # rewound after each cut

    argv += ["--resume", "--out", str(tmp_path / "run")]
    assert kill_inside(runs, "log", 3, fmp.main, argv) == signal.SIGKILL
    for place in (("keep_or_go_back", 1), ("add_row", 2), ("save_last", 4)):
        assert kill_inside(fmp, *place, fmp.main, argv) == signal.SIGKILL
    assert kill_inside(pruning_masks, "cut_weights", 1, fmp.main, argv) == signal.SIGKILL
    assert fmp.main(argv) == 0
    assert_equal(contents(tmp_path / "run"), contents(tmp_path / "whole"))


@pytest.mark.slow
def test_two_processes_prune_as_one_command_and_go_on_bit_for_bit(options, tmp_path):
    argv = [*options, "--moves", "prune", "--p", "0.5", "--min-p", "0.3", "--budget", "2", "--alpha", "1", "--resume"]
    argv += ["--device", "cpu", "--keep", "0.2", "--out"]

    def interrupted() -> int:
        fmp.apply_masks = signalled(fmp.apply_masks, 3, signal.SIGTERM, rank=1)
        return fmp.main([*argv, str(tmp_path / "run")])

    assert two_processes(interrupted) == [130, 130]
    for name in ("run", "whole"):
        assert two_processes(lambda name=name: fmp.main([*argv, str(tmp_path / name)])) == [0, 0]
    assert_equal(contents(tmp_path / "run"), contents(tmp_path / "whole"))
    assert any(row["good"] and row["step"] for row in steps_of(tmp_path / "whole"))  # it has cut something


def test_masks_hold_after_every_optimizer_step(options, tmp_path, monkeypatch):
    inner, checked = pruning_masks.apply_masks, []

    def checking(weights, masks):
        inner(weights, masks)
        checked.append(all(weight[~masks[name]].eq(0).all() for name, weight in weights.items()))
        checked[-1] &= any(not mask.all() for mask in masks.values())

    monkeypatch.setattr(fmp, "apply_masks", checking)
    steps = []
    real = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (real(self), steps.append(len(checked)))[0])
    argv = [*options, "--score", "lamp-cost", "--learned-steps", "--budget", "2", "--keep", ".5", "--p", ".97"]
    assert fmp.main([*argv, "--method", "imp", "--out", str(tmp_path / "run")]) == 0
    assert len(steps) == 12  # each of two epochs has six steps
    assert steps == list(range(12)) and checked == [True] * 12  # what the step moved was set back at once


@pytest.mark.parametrize("faults", [False, True])
def test_going_back_restores_everything_and_trains_again_unless_the_faults_are_replayed(
    options, tmp_path, monkeypatch, faults
):
    monkeypatch.setattr(evaluation, "amc_accuracy", share_left)  # every cut loses too much
    folder = tmp_path / "run"
    argv = [*options, "--preset", "fmp-4bit", "--p", ".4", "--keep", ".9", *["--replay-faults"] * faults]
    argv += ["--step-epochs", "1", "--budget", "2", "--resume", "--out", str(folder)]
    # Killed twice: when step 2 has been cut, and when its epoch has been trained
    assert kill_inside(fmp, "save_last", 4, fmp.main, argv) == signal.SIGKILL
    before = checkpoint.load(folder / "last.pt")
    assert kill_inside(fmp, "save_last", 2, fmp.main, argv) == signal.SIGKILL
    trained = checkpoint.load(folder / "last.pt")
    assert (before["state"]["step"], before["state"]["epoch"]) == (trained["state"]["step"], 1) == (2, 1)
    assert trained["state"]["epoch"] == 2

    masks, after = before["masks"], before["state_dict"]
    good = checkpoint.load(folder / "unpruned.pt")["state_dict"]
    for name, tensor in after.items():  # weights, norms and thresholds of the good network, but for the new cut
        assert torch.equal(tensor, good[name] * masks[name] if name in masks else good[name]), name
    moved = {name for name in masks if not torch.equal(trained["state_dict"][name], after[name])}
    total = sum(mask.numel() for mask in masks.values())
    if faults:
        assert not moved and not trained["optimizer"]["state"]
        assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.2 * total)  # of the full net
    else:
        assert moved == masks.keys() and trained["optimizer"]["state"]


@pytest.mark.slow
def test_patience_and_budget_end_a_step_and_fine_tuning_has_a_tenth_of_the_rate(radioml_file, tmp_path, monkeypatch):
    argv = ["--data-file", str(radioml_file), "--batch-size", "64", "--epoch-frames", "128"]
    widths = ["--filters", "4", "3", "3", "3", "3", "3", "4", "--dense", "8", "6"]
    assert train_amc.main([*argv, *widths, "--epochs", "1", "--out", str(tmp_path / "amc")]) == 0
    monkeypatch.setattr(evaluation, "amc_accuracy", share_left)
    argv += ["--checkpoint", str(tmp_path / "amc/best.pt"), "--bits", "8", "--out", str(tmp_path / "run")]
    argv += ["--p", ".3", "--keep", ".45", "--score", "cost", "--fine-tune"]
    argv += ["--step-epochs", "9", "--patience", "2", "--budget", "5"]
    assert fmp.main(argv) == 0
    rows = steps_of(tmp_path / "run")
    # .7 and .49 of the weights hold the goal at once, .34 and .42 never; the third epoch is the second without a gain
    assert [row["good"] for row in rows] == [True, True, True, False, False]
    assert [row["p"] for row in rows] == [0, 0.3, 0.3, 0.3, 0.15]
    assert [row["epochs"] for row in rows] == [0, 0, 0, 3, 2]
    assert [line["lr"] for line in log_of(tmp_path / "run") if "loss" in line] == pytest.approx([1e-4] * 5)
    best = checkpoint.load(tmp_path / "run/best.pt")
    assert best["arguments"]["filters"] == (4, 3, 3, 3, 3, 3, 4) and best["step"] == 2


def test_the_default_network_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = rebuild(checkpoint.load(fmp.parse_args([]).checkpoint))
    assert network.arguments()["bits"] == 8 and network.arguments()["filters"] == (64,) * 7


def test_presets_are_the_published_ones():
    for bits in range(4, 9):
        args = fmp.parse_args(["--preset", f"fmp-{bits}bit"])
        assert (args.method, args.bits, args.p, args.n) == ("fmp", [bits], 0.2, 2)
    assert (fmp.parse_args(["--preset", "imp-4bit"]).method, fmp.parse_args([]).method) == ("imp", "fmp")
    assert (fmp.parse_args(["--method", "imp"]).bits, fmp.parse_args([]).bits) == ([4], [4])
    assert fmp.parse_args(["--preset", "fmp-6bit", "--bits", "3"]).bits == [3]


def test_faults_are_one_sentence_and_exit_code_2(radioml_file, options, amc_baseline, tmp_path, capsys):
    (tmp_path / "noise.pt").write_bytes(b"noise")
    checkpoint.save(tmp_path / "other.pt", {"kind": "segmentation"})
    checkpoint.save(tmp_path / "odd.pt", {"1.weight": torch.zeros(1)})
    for argv, text in [
        (["--data-file", str(tmp_path / "none.hdf5")], "no such file"),
        (["--checkpoint", str(tmp_path / "none.pt")], "no such checkpoint"),
        (["--checkpoint", str(tmp_path / "noise.pt")], "not a checkpoint"),
        (["--checkpoint", str(tmp_path / "other.pt")], "not a modulation network"),
        (["--checkpoint", str(tmp_path / "odd.pt")], "not a VGG10 checkpoint"),
        (["--out", str(amc_baseline)], "holds a run"),
        (["--threshold", "1", "--step-epochs", "1", "--epoch-frames", "64"], "without any cut"),
    ]:
        whole = [*options, "--out", str(tmp_path / "run"), *argv]
        assert runs.run(lambda whole=whole: fmp.main(whole), *fmp.ERRORS) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and text in error, error
    (tmp_path / "older").mkdir()
    data = checkpoint.load(amc_baseline / "best.pt")
    checkpoint.save(tmp_path / "older" / "last.pt", data | {"masks": {}, "state": {"goal": 0.5, "methods": []}})
    older = [*options, "--resume", "--out", str(tmp_path / "older")]
    assert runs.run(lambda: fmp.main(older), *fmp.ERRORS) == 2
    assert "last.pt: holds the state of another version" in capsys.readouterr().err
    again = [*whole, "--threshold", ".9", "--resume", "--out", str(tmp_path / "run")]
    assert runs.run(lambda: fmp.main(again), *fmp.ERRORS) == 2
    assert "was started with threshold = 1.0, not 0.9" in capsys.readouterr().err
    for argv in (
        ["--p", "1.5"],
        ["--bits", "1"],
        ["--input-bits", "9"],
        ["--keep-bits", "--input-bits", "6"],
        ["--keep-bits", "--activation-bits", "4"],
        ["--n", "1"],
        ["--budget", "0"],
        ["--save-weights", "x"],
    ):
        with pytest.raises(SystemExit, match="2"):
            fmp.parse_args(argv)


def test_samples_and_activations_may_have_another_width_than_the_weights(options, tmp_path):
    widths = ["--bits", "3", "--activation-bits", "4", "--input-bits", "6"]
    assert fmp.main([*options, *widths, "--keep", ".01", "--budget", "1", "--out", str(tmp_path)]) == 0
    layers = list(rebuild(checkpoint.load(tmp_path / "best.pt")).layers().values())
    assert [layer.input_bits for layer in layers] == [6] + [4] * 9 and {layer.weight_bits for layer in layers} == {3}


def test_each_layer_may_have_widths_of_its_own(options, tmp_path, capsys):
    bits, read = "4 3 3 4 8 3 2 2 2 5", "8 4 3 4 5 6 7 8 2 4"
    widths = ["--bits", *bits.split(), "--activation-bits", *read.split(), "--keep", ".01", "--budget", "1"]
    assert fmp.main([*options, *widths, "--out", str(tmp_path / "run")]) == 0
    network = rebuild(checkpoint.load(tmp_path / "run/best.pt"))
    assert (network.bits, network.activation_bits) == tuple(tuple(map(int, w.split())) for w in (bits, read))
    three = [*options, "--bits", "4", "3", "2", "--out", str(tmp_path / "three")]
    assert runs.run(lambda: fmp.main(three), *fmp.ERRORS) == 2
    assert "3 bit widths: give one number, or 10" in capsys.readouterr().err and not (tmp_path / "three").exists()
