"""Which way of pruning the quantised VGG10 leaves the cheapest network at .942 of the baseline's accuracy?

    python -m experiments.magnitude_pruning --data-file FILE.hdf5           # all rows, at most 30 epochs each
    python -m experiments.magnitude_pruning --data-file FILE.hdf5 --rows fmp-4bit-moves --seeds 0 1 2
    python -m experiments.magnitude_pruning --table                         # what is there already

FILE.hdf5 is a generated set (python -m data.modulations FILE.hdf5 --frames-per-cell 400) or RadioML 2018.01A. The
baseline of a seed is one command line of train_amc.py, every row one of feedback_magnitude_pruning.py. All rows of a
seed start from its baseline, hold the same accuracy on validation and may spend the same number of epochs. An epoch of
212,000 frames takes some six minutes of one core, or ten seconds of an H200. After an interruption the same command
goes on. A finished row is a small JSON file in --results; delete it to repeat the row.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from utils import checkpoint, runs
from utils.evaluation import standard_error
from utils.runs import RunError, run, write_json

REPOSITORY = Path(__file__).parents[1]
STANDARD_WEIGHTS = 159_104  # of the 64-filter network: true compression is counted from there in every row
FMP = ["--preset", "fmp-4bit"]
ROWS = {
    "imp-4bit": ["--preset", "imp-4bit"],
    "fmp-4bit-replay": [*FMP, "--replay-faults"],  # the published schedule with its faults
    "fmp-4bit": FMP,  # as the paper describes it
    "fmp-4bit-lamp-cost": [*FMP, "--score", "lamp-cost", "--p", "0.3"],
    "fmp-4bit-moves": [*FMP, "--moves", "--p", "0.3"],  # lamp-cost, too, and feedback chooses each cut
}
COLUMNS = {  # of the table: key of a row, title, digits
    "test_accuracy": ("test accuracy", 4),
    "standard_error": ("its standard error over frames", 4),
    "nonzero": ("non-zero weights", 0),
    "compression": ("true compression", 2),
    "bops": ("bops", 0),
    "weight_bits": ("weight bits", 0),
    "score": ("score", 5),
    "pruning_epochs": ("epochs of pruning", 0),
}


def one_of_the_rows(value, name: str) -> str | None:
    """A form for checkpoint.misfit."""
    return None if value in ("baseline", *ROWS) else f"{name} is {str(value)[:40]}, not baseline, {', '.join(ROWS)}"


def with_a_budget(value, name: str) -> str | None:
    """A form for checkpoint.misfit: options, with a number after --budget if that is among them."""
    after = value[value.index("--budget") + 1 :][:1] if "--budget" in value else ["0"]
    return None if after and after[0].isdecimal() and len(after[0]) < 10 else f"{name} has a --budget without a number"


# What the file of a row must hold, as checkpoint.misfit takes it
ROW = {"row": one_of_the_rows, "seed": int, "hardware": str, "options": (list[str], with_a_budget)}
ROW |= dict.fromkeys(COLUMNS, checkpoint.within(0, 1e15)) | {"pruning_epochs": int}
REMEDY = "delete it to repeat the row, or choose another --results"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-file", type=runs.path, help="one set for all rows")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", type=runs.seed, nargs="+", default=[0])
    parser.add_argument(
        "--baseline", type=runs.path, help="w8a8 network for all seeds; default: one is trained for each"
    )
    parser.add_argument(
        "--epochs", type=runs.count, default=20, help="of a baseline, each over the whole training part"
    )
    parser.add_argument(
        "--epoch-frames", type=runs.count, help="frames of a pruning epoch, default the whole training part"
    )
    parser.add_argument("--step-epochs", type=runs.count, default=6, help="most epochs to recover from one cut")
    parser.add_argument("--budget", type=runs.count, default=30, help="most epochs of all steps of a row")
    parser.add_argument(
        "--keep", type=runs.real(above=0, most=1), default=0.942, help="of the baseline's accuracy on validation"
    )
    parser.add_argument("--batch-size", type=runs.count, default=512)
    parser.add_argument("--lr", type=runs.positive, default=2e-3)
    parser.add_argument("--out", type=runs.path, default=Path("runs/magnitude_pruning"), help="folder of the runs")
    parser.add_argument(
        "--results", type=runs.path, default=REPOSITORY / "experiments" / "results" / "magnitude_pruning"
    )
    parser.add_argument("--table", action="store_true", help="only print what is in --results")
    args = parser.parse_args(argv)
    if not args.table and not args.data_file:
        parser.error("--data-file names the set for all rows; python -m data.modulations FILE.hdf5 makes one")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    for seed in [] if args.table else args.seeds:
        common = ["--data-file", str(args.data_file), "--batch-size", str(args.batch_size), "--seed", str(seed)]
        common += ["--schedule", "cosine", "--lr", str(args.lr)]
        train = ["train_amc.py", *common, "--epochs", str(args.epochs)]
        limits = {"--epoch-frames": args.epoch_frames, "--step-epochs": args.step_epochs, "--budget": args.budget}
        prune = ["feedback_magnitude_pruning.py", *common]
        prune += [text for name, value in limits.items() if value for text in (name, str(value))]

        # The shared baseline
        baseline = args.baseline
        if baseline is None:
            baseline = args.out / f"baseline_seed{seed}" / "best.pt"
            finish(args.out, args.results, "baseline", seed, train)

        for row in args.rows:
            begin = ["--checkpoint", str(baseline), "--keep", str(args.keep)]
            finish(args.out, args.results, row, seed, [*prune, *begin, *ROWS[row]])
    print(table(args.results))
    return 0


def finish(out: Path, results: Path, row: str, seed: int, command: list[str]) -> None:
    """Do a row, or go on with it, unless its file is there.

    Args:
        command: script and options, without --out and --resume.
    """
    path, folder = results / f"{row}_seed{seed}.json", out / f"{row}_seed{seed}"
    script, *options = command
    plain = [Path(text).name if "/" in text else text for text in options]
    trains = script == "train_amc.py"

    # What is finished already
    if path.exists():
        before = checkpoint.read_facts(path, ROW, REMEDY)
        if not same_run(before["options"], plain, before["pruning_epochs"]):
            raise RunError(f"{path} was made with other options: delete it, or choose another --results")
        if not trains or (folder / "best.pt").exists():  # other rows start from a baseline's file
            return

    # The run
    print(f"== {row}, seed {seed}: {script} {' '.join(options)}", flush=True)
    began = time.time()
    done = subprocess.run([sys.executable, str(REPOSITORY / script), *options, "--out", str(folder), "--resume"])
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise RunError(f"{row}, seed {seed} stopped with exit code {done.returncode}; the same command goes on")

    # Its file
    result = json.loads((folder / "result.json").read_text())
    test = result["sets"]["test"]
    facts = {"row": row, "seed": seed, **result["cost"], "compression": STANDARD_WEIGHTS / result["cost"]["nonzero"]}
    facts |= {"test_accuracy": test["accuracy"], "test_frames": test["frames"], "by_snr": test["by_snr"]}
    facts["standard_error"] = standard_error(test["accuracy"], test["frames"])
    facts |= {"validation": result["validation"], "goal": result.get("goal"), "epochs": result["epochs"]}
    facts |= {"pruning_epochs": 0 if trains else result["epochs"], "steps": len(result.get("steps", [0])) - 1}
    facts |= {"papers_formula": result.get("compression_by_the_papers_formula"), "options": plain}
    facts |= {"minutes_since_last_start": (time.time() - began) / 60, "data": result["data"]}
    facts |= {"hardware": result["hardware"], "torch": result["torch"]}
    write_json(path, facts)


def same_run(before: list[str], now: list[str], used: int) -> bool:
    """Whether a row would come out the same: equal options, or another --budget that its epochs don't reach either."""
    if "--budget" in before and "--budget" in now:
        before, now = before.copy(), now.copy()
        budgets = [int(options.pop(options.index("--budget") + 1)) for options in (before, now)]
        return before == now and (budgets[0] == budgets[1] or used < min(budgets))
    return before == now


def table(folder: Path) -> str:
    """All rows that are finished, means over their seeds, the cheapest last, as Markdown."""
    groups: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*_seed*.json")):
        row = checkpoint.read_facts(path, ROW, REMEDY)
        groups.setdefault(row["row"], []).append(row)

    def over_seeds(rows: list[dict], key: str, digits: int) -> str:
        values = [row[key] for row in rows]
        spread = f" ± {statistics.stdev(values):,.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):,.{digits}f}{spread}"

    lines = ["| row | seeds | " + " | ".join(title for title, _ in COLUMNS.values()) + " | hardware |"]
    lines += ["|---" * (3 + len(COLUMNS)) + "|"]
    for name, rows in sorted(groups.items(), key=lambda item: -statistics.mean(row["score"] for row in item[1])):
        cells = [over_seeds(rows, key, digits) for key, (_, digits) in COLUMNS.items()]
        cells.append("; ".join(sorted({row["hardware"] for row in rows})))
        lines.append(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Means ± deviations over seeds."])


if __name__ == "__main__":
    sys.exit(run(main))
