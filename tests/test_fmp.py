"""feedback_magnitude_pruning.py on a tiny file in the original layout, to the end: seconds.

    pytest tests/test_fmp.py

The file has all 24 x 26 cells, three frames each: one to train on, one to choose by, one to report. A frame is noise
around a mean that names its class, so that a network of four filters learns something at once.
"""

import copy
import json
import os
import signal

import numpy as np
import pytest
import torch

import feedback_magnitude_pruning as fmp
from data.radioml import MODULATIONS, SNRS, create_file, open_frames, split
from models.rebuild import rebuild
from utils import checkpoint, export, pruning_masks, runs
from utils.cost import challenge_score

SMALL = ["--filters", "8", "--dense", "16", "--batch-size", "16", "--lr", ".01", "--seed", "1"]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("radioml") / "tiny.hdf5"
    with create_file(path, 3) as file:
        rng = np.random.default_rng(0)
        mean = np.stack(np.divmod(np.arange(24), 6), axis=1) * (0.8, 0.5) - (1.2, 1.25)  # (24, 2), I and Q
        noise = rng.standard_normal((24, 26 * 3, 1024, 2), np.float32)
        file["X"][:] = (mean[:, None, None] + 0.1 * noise).reshape(-1, 1024, 2)
    return path


@pytest.fixture(scope="module")
def baseline(data_file, tmp_path_factory):
    """A w8a8 network, trained for a few epochs."""
    folder = tmp_path_factory.mktemp("runs") / "baseline"
    argv = ["--method", "baseline", "--epochs", "2", "--schedule", "cosine", "--out", str(folder)]
    assert fmp.main(["--data-file", str(data_file), *SMALL, *argv]) == 0
    return folder


@pytest.fixture(scope="module")
def options(data_file, baseline):
    """Of a pruning run that fails soon enough for a test."""
    argv = ["--data-file", str(data_file), "--checkpoint", str(baseline / "best.pt"), *SMALL]
    return [*argv, "--step-epochs", "2", "--epoch-frames", "96", "--p", ".5", "--min-p", ".2", "--keep", ".6"]


def assert_equal(ours, theirs, name=""):
    """Same structure, plain values equal, tensors bit for bit."""
    assert type(ours) is type(theirs), name
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"command", "scored_by", "trained_by", "samples_per_second"}:
            assert_equal(ours[key], theirs[key], f"{name}/{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), name
        for a, b in zip(ours, theirs, strict=True):
            assert_equal(a, b, name)
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), name
    else:
        assert ours == theirs, name


def contents(folder) -> dict:
    """Everything that a run leaves and that must not depend on interruptions."""
    states = {path.name: checkpoint.load(path) for path in sorted(folder.glob("*.pt"))}
    return states | {"log": log_of(folder), "result": json.loads((folder / "result.json").read_text())}


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in open(folder / "log.jsonl")]


def steps_of(folder) -> list[dict]:
    return json.loads((folder / "result.json").read_text())["steps"]


def kill_inside(name: str, count: int, argv: list[str]) -> int:
    """Run the script in a child that is killed at the count-th call of fmp.NAME; the signal that ended it."""
    child = os.fork()
    if child:
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    try:
        inner, left = getattr(fmp, name), [count]

        def counting(*args, **values):
            left[0] -= 1
            return inner(*args, **values) if left[0] else os.kill(os.getpid(), signal.SIGKILL)

        setattr(fmp, name, counting)
        fmp.main(argv)
    finally:
        os._exit(1)


# ---- the baseline


def test_the_baseline_learns_and_its_scores_equal_an_independent_count(data_file, baseline, tmp_path, capsys):
    log = [line for line in log_of(baseline) if "loss" in line]
    assert log[-1]["loss"] < 0.95 * log[0]["loss"]
    result = json.loads((baseline / "result.json").read_text())
    data, frames = checkpoint.load(baseline / "best.pt"), open_frames(data_file)
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
    assert {path.name for path in (baseline / "pictures").iterdir()} == {
        "accuracy_by_snr.png", "confusion.png", "confusion_high.png"
    }  # fmt: skip
    argv = ["--eval-only", str(baseline / "best.pt"), "--data-file", str(data_file), "--out", str(tmp_path / "scored")]
    assert fmp.main(argv) == 0
    assert json.loads((tmp_path / "scored/result.json").read_text())["sets"] == result["sets"]
    capsys.readouterr()
    assert fmp.main(["--cost", "--checkpoint", str(baseline / "best.pt")]) == 0
    assert f"bops {result['cost']['bops']}, weight bits {result['cost']['weight_bits']}" in capsys.readouterr().out


# ---- pruning


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
    assert state["validation"] == last["validation"] and challenge_score(fmp.cost_of(network))["score"] == last["score"]
    result = json.loads((folder / "result.json").read_text())
    shipped = rebuild(checkpoint.load(weights)).layers().values()
    nonzero = sum(int((layer.weight_codes() != 0).sum()) for layer in shipped)
    assert result["true_compression"] == pytest.approx(steps[0]["nonzero"] * steps[0]["compression"] / nonzero)
    assert result["compression_by_the_papers_formula"] == pytest.approx((1 / 0.7) ** (len(steps) - 2))
    assert result["sets"].keys() == {"test", "unpruned"} and "masks" not in checkpoint.load(weights)


def test_fmp_in_series_goes_back_and_divides_p_and_ends_the_same_after_kills(options, tmp_path, monkeypatch):
    def by_size(network, *_):  # so that the course doesn't depend on the processor: good down to 500 weights
        return min(1.0, challenge_score(fmp.cost_of(network))["nonzero"] / 850)

    monkeypatch.setattr(fmp, "validate", by_size)
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

    argv += ["--resume", "--out", str(tmp_path / "run")]
    for place in (("validate", 3), ("save_network", 1), ("add_row", 2), ("save_last", 4), ("cut_weights", 1)):
        assert kill_inside(*place, argv) == signal.SIGKILL
    assert fmp.main(argv) == 0
    assert_equal(contents(tmp_path / "run"), contents(tmp_path / "whole"))


def test_masks_hold_after_every_optimizer_step(options, tmp_path, monkeypatch):
    inner, checked = pruning_masks.apply_masks, []

    def checking(weights, masks):
        inner(weights, masks)
        checked.append(all(weight[~masks[name]].eq(0).all() for name, weight in weights.items()))
        checked[-1] &= any(not mask.all() for mask in masks.values())

    monkeypatch.setattr(pruning_masks, "hold", checking)
    steps = []
    real = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (real(self), steps.append(len(checked)))[0])
    argv = [*options, "--score", "lamp-cost", "--learned-steps", "--budget", "2", "--keep", ".5", "--p", ".97"]
    assert fmp.main([*argv, "--method", "imp", "--out", str(tmp_path / "run")]) == 0
    assert len(steps) == 12 and all(checked[1:])  # each of two epochs has six steps
    assert [checked[number] for number in steps] == [True] * 12  # what the step moved was set back at once


def train_without_success(argv, folder, monkeypatch):
    """One epoch of steps 1 and 2, both failing: of every step weights before, masks, weights after, optimizer state."""
    seen, inner = [], fmp.retrain

    def watching(args, network, masks, optimizer, at, *rest):
        before = copy.deepcopy(network.state_dict())
        at["goal"] = 2.0 if at["step"] else at["goal"]
        result = inner(args, network, masks, optimizer, at, *rest)
        seen.append((before, masks, copy.deepcopy(network.state_dict()), optimizer.state_dict()["state"]))
        return result

    monkeypatch.setattr(fmp, "retrain", watching)
    assert fmp.main([*argv, "--step-epochs", "1", "--budget", "2", "--keep", ".4", "--out", str(folder)]) == 0
    return seen


@pytest.mark.parametrize("faults", [False, True])
def test_going_back_restores_everything_and_trains_again_unless_the_faults_are_replayed(
    options, tmp_path, monkeypatch, faults
):
    argv = [*options, "--preset", "fmp-4bit", "--p", ".4", *["--replay-faults"] * faults]
    (_, _, good, _), _, (after, masks, trained, adam) = train_without_success(argv, tmp_path / "run", monkeypatch)
    for name, tensor in after.items():  # weights, norms and thresholds of the good network, but for the new cut
        assert torch.equal(tensor, good[name] * masks[name] if name in masks else good[name]), name
    moved = [name for name in trained if name.endswith("weight") and not torch.equal(trained[name], after[name])]
    total = sum(mask.numel() for mask in masks.values())
    if faults:
        assert not moved and not adam
        assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.2 * total)  # of the full net
    else:
        assert set(masks) <= set(moved) and adam


def test_a_baseline_of_fewer_filters_is_trained_and_pruned_in_one_run(data_file, tmp_path):
    argv = ["--data-file", str(data_file), "--filters", "4", "3", "3", "3", "3", "3", "4", "--dense", "8", "6"]
    argv += ["--epochs", "1", "--epoch-frames", "256", "--batch-size", "64", "--bits", "5", "--p", ".3"]
    argv += ["--step-epochs", "1", "--budget", "1"]
    assert fmp.main([*argv, "--score", "cost", "--fine-tune", "--out", str(tmp_path / "run")]) == 0
    steps = steps_of(tmp_path / "run")
    assert steps[0]["epochs"] == 1 and len(steps) > 1
    assert checkpoint.load(tmp_path / "run/unpruned.pt")["arguments"]["bits"] == 5


# ---- faults of the user's


def test_faults_are_one_sentence_and_exit_code_2(data_file, baseline, tmp_path, capsys):
    (tmp_path / "noise.pt").write_bytes(b"noise")
    checkpoint.save(tmp_path / "other.pt", {"kind": "segmentation"})
    checkpoint.save(tmp_path / "odd.pt", {"1.weight": torch.zeros(1)})
    data = ["--data-file", str(data_file)]
    for argv, text in [
        (["--data-file", str(tmp_path / "none.hdf5")], "no such file"),
        ([*data, "--eval-only", str(tmp_path / "noise.pt")], "not a checkpoint"),
        ([*data, "--eval-only", str(tmp_path / "other.pt")], "not a modulation network"),
        ([*data, "--eval-only", str(tmp_path / "odd.pt")], "not a VGG10 checkpoint"),
        ([*data, "--eval-only", str(baseline / "best.pt"), "--out", str(baseline)], "holds a training run"),
        ([*data, "--out", str(baseline)], "holds a run"),
        ([*data, *SMALL, "--method", "baseline", "--resume", "--out", str(baseline)], "started with"),
        (["--cost", "--checkpoint", str(tmp_path / "none.pt")], "no such checkpoint"),
        ([*data, "--checkpoint", str(baseline / "best.pt"), "--threshold", "1", "--step-epochs", "1",
          "--epoch-frames", "64", "--out", str(tmp_path / "high")], "without any cut"),
    ]:  # fmt: skip
        assert runs.run(lambda argv=argv: fmp.main(argv), *fmp.ERRORS) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and text in error, error
    for argv in (["--p", "1.5"], ["--cost"], ["--epochs", "0"], ["--save-weights", "x"]):
        with pytest.raises(SystemExit, match="2"):
            fmp.parse_args(argv)


def test_the_learning_rate_starts_anew_after_each_cut_or_at_a_tenth():
    for schedule, middle in (("plateau", 0.01), ("cosine", 0.5)):
        rewound, tuned = (
            fmp.parse_args(["--lr", "1", "--schedule", schedule, *more]) for more in ([], ["--fine-tune"])
        )
        for step in (0, 3):
            at = {**fmp.BEGINNING, "step": step}
            assert fmp.learning_rate(rewound, at, 10)(0) == 1
            assert fmp.learning_rate(tuned, at, 10)(0) == (0.1 if step else 1)
            assert fmp.learning_rate(rewound, {**at, "drops": 2}, 10)(5) == pytest.approx(middle)


def test_presets_are_the_published_ones():
    for bits in range(4, 9):
        args = fmp.parse_args(["--preset", f"fmp-{bits}bit"])
        assert (args.method, args.bits, args.p, args.n) == ("fmp", bits, 0.2, 2)
    assert (fmp.parse_args(["--preset", "imp-4bit"]).method, fmp.parse_args([]).method) == ("imp", "fmp")
    assert (fmp.parse_args(["--method", "baseline"]).bits, fmp.parse_args([]).bits) == (8, 4)
    assert fmp.parse_args(["--preset", "fmp-6bit", "--bits", "3"]).bits == 3


# ---- export


def test_onnx_runtime_gives_the_same_answers_from_integer_weights(data_file, baseline, tmp_path, capsys):
    onnx = pytest.importorskip("onnx", reason="optional: pip install onnx onnxruntime")
    pytest.importorskip("onnxruntime", reason="optional: pip install onnx onnxruntime")
    file, frames = tmp_path / "network.onnx", open_frames(data_file)
    argv = ["--export", str(file), "--checkpoint", str(baseline / "best.pt"), "--data-file", str(data_file)]
    assert fmp.main(argv) == 0
    assert "frames are named otherwise" in capsys.readouterr().out
    network, x = rebuild(checkpoint.load(baseline / "best.pt")).eval(), frames.samples(split(frames)["test"][::7])
    with torch.no_grad():
        expected = network(x)
    found = export.run_integer_onnx(file, x)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95  # a value between two codes may go either way
    assert ((found - expected).abs().max(1).values < 1e-4).float().mean() > 0.8
    types = [constant.data_type for constant in onnx.load(file).graph.initializer if len(constant.dims) in (2, 4)]
    assert types == [onnx.TensorProto.INT8] * 10


def test_a_missing_onnx_is_named(baseline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    argv = ["--export", str(tmp_path / "network.onnx"), "--checkpoint", str(baseline / "best.pt")]
    assert runs.run(lambda: fmp.main(argv), *fmp.ERRORS) == 2
    assert "pip install onnx" in capsys.readouterr().err
