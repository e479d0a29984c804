"""experiments/compression.py, its rows made up: seconds. Run: python -m pytest tests/test_compression.py"""

import shutil
from pathlib import Path

import distill_seg
from experiments import compression
from models import segmentation
from models.rebuild import describe
from utils import checkpoint, release, runs


def finished_row(args, size: str, way: str, seed: int) -> dict:
    """A row as run_row gives it, without the hours."""
    miou = {"ours 299 K": 0.7, "ours 172 K": 0.6}.get(size, 0.8) + 0.02 * seed
    values = {"frames": 2, "mean_iou": miou, "mean_recall": 0.9, "accuracy": 0.9}
    costs = {"parameters": 2e5, "parameters_dense": 8e6, "macs": 7e7, "macs_live": 7e7, "macs_dense": 2e9, "bytes": 8e5}
    where = {"hardware": "a machine", "latency": {"this": {"speed_up": 4.0}}, "epochs": args.epochs, "seed": seed}
    where["batch_size"] = args.batch_size
    return {"size": size, "way": way, "sets": {"test": values, "test, 0 to 10 dB": values}, **costs, **where}


def test_the_compression_table_goes_on_where_it_stopped_and_averages_seeds(tmp_path, monkeypatch, capsys):
    made = []

    def run_row(args, size, way, seed):
        if len(made) == 3:
            raise runs.RunError("the power failed")
        made.append((size, way, seed))
        return finished_row(args, size, way, seed)

    monkeypatch.setattr(compression, "run_row", run_row)
    monkeypatch.setattr(compression, "score_teacher", lambda args: finished_row(args, "dense teacher", "", 0))
    monkeypatch.setattr(release, "load_segmentation", lambda path: None)
    argv = ["--data-dir", str(tmp_path), "--results", str(tmp_path / "rows"), "--rows", "K, KD", "--seeds", "0", "1"]
    assert runs.run(lambda: compression.main(argv)) == 2
    rest = len(list((tmp_path / "rows").glob("*.json")))
    assert rest == 4  # the teacher and three rows
    made.clear()
    monkeypatch.setattr(compression, "run_row", lambda *args: made.append(args[1:]) or finished_row(*args))
    assert compression.main(argv) == 0
    names = [f"{size}, {way}" for size, ways in compression.ROWS for way in ways if "K, KD" in f"{size}, {way}"]
    assert len(made) == 2 * len(names) - 3
    # Rows of another batch size would be averaged with these.
    assert runs.run(lambda: compression.main([*argv, "--batch-size", "9"])) == 2
    assert compression.main([*argv, "--table"]) == 0 and len(made) == 2 * len(names) - 3
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| ours 299 K | KD |"))
    assert "| 3, 2 | 200 K (40.0x) |" in line and "| 88.8 % | .710 ± .014 |" in line  # (.70 + .72) / 2 of .80
    assert (tmp_path / "rows/miou_macs.png").stat().st_size > 1000


def test_rows_of_another_teacher_are_left_alone(tmp_path, monkeypatch, capsys):
    """By default they get a folder of their own; asked for in the same one, they are refused before frames are made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compression, "default_set", lambda workers: Path("made"))
    monkeypatch.setattr(compression, "run_row", finished_row)
    monkeypatch.setattr(compression, "score_teacher", lambda setup: finished_row(setup, "dense teacher", "", 0))
    shutil.copytree(Path(release.WEIGHTS).parent / compression.RESULTS, compression.RESULTS)
    before = {path.name: path.read_bytes() for path in compression.RESULTS.iterdir()}
    name = "lraspp_mobilenet_v3_large"
    data = describe(segmentation.build(name), *segmentation.factory(name)) | {"kind": "segmentation"}
    checkpoint.save("teacher.pt", data)
    argv = ["--teacher", "teacher.pt", "--rows", "ours 299 K, KD", "--seeds", "0"]
    assert compression.main(argv) == 0
    own = compression.RESULTS.with_name(f"compression_{checkpoint.sha256('teacher.pt')[:8]}")
    assert len(list(own.glob("*.json"))) == 2 and str(own) in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in compression.RESULTS.iterdir()} == before

    monkeypatch.setattr(compression, "default_set", None)
    argv += ["--results", str(compression.RESULTS)]
    assert runs.run(lambda: compression.main(argv), checkpoint.CheckpointError) == 2
    assert "another teacher" in capsys.readouterr().err


def test_every_row_of_the_compression_table_is_a_valid_command():
    for size, ways in compression.ROWS:
        preset = ["--preset", "published"] if size.startswith("published") else []
        for way in ways:
            args = distill_seg.parse_args([*preset, *compression.WAYS[way]])
            assert (args.alpha == 0) == (way in ("fine-tuning", "self-KD", "from scratch"))
            assert (args.beta == 0) == (way == "label-free") and (args.gamma > 0) == (way in ("self-KD", "all"))
