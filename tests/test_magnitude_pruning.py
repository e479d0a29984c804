"""experiments/magnitude_pruning.py with both scripts replaced. Run: python -m pytest tests/test_magnitude_pruning.py"""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import feedback_magnitude_pruning
from experiments import magnitude_pruning
from utils import runs


@pytest.fixture
def calls(monkeypatch):
    """Command lines of the scripts; instead of a run there is only its result."""
    seen = []

    def script(argv):
        options = dict(zip(argv, argv[1:], strict=False))
        folder, seed = Path(options["--out"]), int(options["--seed"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "best.pt").touch()
        prunes = Path(argv[1]).name == "feedback_magnitude_pruning.py"
        assert prunes or Path(argv[1]).name == "train_amc.py"
        score = 0.04 - 0.01 * seed if prunes else 1.0
        cost = {"nonzero": 1000, "bops": 10, "weight_bits": 4000, "score": score}
        test = {"accuracy": 0.5, "frames": 9, "by_snr": {}}
        facts = {"cost": cost, "sets": {"test": test}, "validation": 0.6, "epochs": 2}
        facts |= {"data": "set.hdf5", "hardware": "a machine", "torch": "2"}
        facts |= {"goal": 0.5, "steps": [1, 2]} if prunes else {}
        (folder / "result.json").write_text(json.dumps(facts))
        seen.append(argv)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(magnitude_pruning.subprocess, "run", script)
    return seen


def test_rows_share_a_baseline_and_are_done_once_and_averaged(calls, tmp_path, capsys):
    argv = ["--data-file", "set.hdf5", "--rows", "fmp-4bit", "--out", str(tmp_path / "runs")]
    argv += ["--results", str(tmp_path / "rows")]
    assert magnitude_pruning.main([*argv, "--seeds", "0", "1"]) == 0
    baselines = [call for call in calls if call[1].endswith("train_amc.py")]
    assert [len(calls), len(baselines)] == [4, 2]
    pruned = next(call for call in calls if "fmp-4bit" in call)
    assert str(tmp_path / "runs/baseline_seed0/best.pt") in pruned and "--keep" in pruned
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("| fmp-4bit"))
    cells = [
        "0.5000 ± 0.0000",
        "0.1667 ± 0.0000",
        "1,000 ± 0",
        "159.10 ± 0.00",
        "10 ± 0",
        "4,000 ± 0",
        "0.03500 ± 0.00707",
        "2 ± 0",
    ]
    assert row.split(" | ")[2:] == [*cells, "a machine |"]
    assert magnitude_pruning.main([*argv, "--seeds", "0", "1"]) == 0 and len(calls) == 4
    assert magnitude_pruning.main(["--table", "--results", str(tmp_path / "rows")]) == 0 and len(calls) == 4


def test_all_rows_may_spend_the_same_epochs_from_one_baseline(calls, tmp_path):
    argv = ["--data-file", "set.hdf5", "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "rows")]
    assert magnitude_pruning.main([*argv, "--baseline", str(tmp_path / "shared.pt"), "--keep", ".8"]) == 0
    assert len(calls) == len(magnitude_pruning.ROWS) == 5
    for call in calls:
        args = parsed(call)
        assert (str(args.checkpoint), args.keep, args.bits) == (str(tmp_path / "shared.pt"), 0.8, [4])
        assert (args.budget, args.step_epochs, args.epoch_frames) == (30, 6, None)
    told = [(args.method, args.score, args.moves is not None) for args in map(parsed, calls)]
    assert told == [
        ("imp", "magnitude", False),
        ("fmp", "magnitude", False),
        ("fmp", "magnitude", False),
        ("fmp", "lamp-cost", False),
        ("fmp", "lamp-cost", True),
    ]
    assert [parsed(call).replay_faults for call in calls] == [False, True, False, False, False]
    row = json.loads((tmp_path / "rows/fmp-4bit-moves_seed0.json").read_text())
    assert (row["pruning_epochs"], row["steps"], row["goal"]) == (2, 1, 0.5)
    assert row["standard_error"] == pytest.approx((0.5 * 0.5 / 9) ** 0.5)


def parsed(call):
    return feedback_magnitude_pruning.parse_args(call[2:])


def test_another_budget_a_fault_and_an_interrupt_end_it(calls, tmp_path, monkeypatch, capsys):
    argv = ["--data-file", "set.hdf5", "--rows", "imp-4bit", "--out", str(tmp_path / "runs")]
    argv += ["--results", str(tmp_path / "rows")]
    assert magnitude_pruning.main(argv) == 0
    assert magnitude_pruning.main([*argv, "--budget", "3"]) == 0 and len(calls) == 2  # the row took 2: it stays
    capsys.readouterr()
    assert runs.run(lambda: magnitude_pruning.main([*argv, "--budget", "2"])) == 2
    assert "other options" in capsys.readouterr().err
    for code, exit_code in ((2, 2), (130, 130)):
        monkeypatch.setattr(subprocess, "run", lambda *_, code=code: SimpleNamespace(returncode=code))
        assert runs.run(lambda: magnitude_pruning.main([*argv, "--seeds", "5"])) == exit_code
    assert not list((tmp_path / "rows").glob("*seed5*"))
