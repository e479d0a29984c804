"""Is prune_seg.py's default better than the published formula? Both to 299 K parameters, then the same fine-tuning.

    python -m experiments.prune_presets --data-dir datasets/spectrum_sensing --epochs 3 --budget 60
    python -m experiments.prune_presets                                # goes on; prints the table so far

For each seed and preset it calls prune_seg.py, then distill_seg.py with labels only (--alpha 0), and notes the mIoU of
the validation part. What is finished is not done again. After --budget minutes the running command is stopped; it saves
its state first. Each pair of runs takes about four minutes of pruning, and the training, on one core.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from utils import release, runs
from utils.runs import RunError, run, write_json

PRESETS = {
    "default": [],
    "published, as coded": ["--preset", "published"],
    "published, as written": ["--preset", "published", "--variant", "written"],
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=runs.path, default=release.shipped("seg_teacher.pt"))
    parser.add_argument("--data-dir", type=runs.path, help="frames; default as prune_seg.py chooses")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS)[:2])
    parser.add_argument("--seeds", type=runs.seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--target-params", type=runs.positive, default=299e3)
    parser.add_argument("--epochs", type=runs.count, default=3, help="of fine-tuning, default 3")
    parser.add_argument("--lr", type=runs.positive, help="of fine-tuning; default that of distill_seg.py")
    parser.add_argument(
        "--budget", type=runs.positive, default=120.0, help="minutes after which nothing goes on, default 120"
    )
    parser.add_argument("--out", type=runs.path, default=Path("runs/prune_presets"))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    deadline, data = time.monotonic() + 60 * args.budget, ["--data-dir", str(args.data_dir)] if args.data_dir else []
    rows, finished = [], True
    for seed in args.seeds:  # seed by seed, so that an early stop leaves whole pairs
        for preset in args.presets:
            folder = args.out / f"{preset.replace(', ', '_').replace(' ', '_')}_{seed}"
            common = ["--teacher", str(args.teacher), *data, "--seed", str(seed), "--resume"]
            prune = ["prune_seg.py", *PRESETS[preset], "--target-params", str(args.target_params)]
            tune = ["distill_seg.py", "--student", str(folder / "pruned" / "pruned.pt"), "--alpha", "0", "--beta", "1"]
            tune += ["--gamma", "0", "--epochs", str(args.epochs), *(["--lr", str(args.lr)] if args.lr else [])]
            for name, command in (("pruned", prune), ("tuned", tune)):
                if finished and (name == "pruned" or not (folder / name / "result.json").exists()):
                    # a finished cut is quick, and refused if it was another teacher's
                    finished = call([*command, *common, "--out", str(folder / name)], deadline)
            if (folder / "tuned" / "result.json").exists():
                rows.append(read_row(folder, preset, seed))
                write_json(args.out / "result.json", {"epochs": args.epochs, "rows": rows})
    print(table(rows))
    if not finished:
        print(f"the budget of {args.budget:g} minutes is spent: the same command goes on", file=sys.stderr)
    return 0


def call(command: list[str], deadline: float) -> bool:
    """Run a script; False if the deadline came first. RunError: it failed, and has said why."""
    if time.monotonic() > deadline:
        return False
    print("python", *command, file=sys.stderr, flush=True)
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    try:
        code = process.wait(timeout=deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
        return False
    if code:
        raise RunError(f"`python {' '.join(command)}` ended with exit code {code}; see what it printed above")
    return True


def read_row(folder: Path, preset: str, seed: int) -> dict:
    pruned, tuned = (json.loads((folder / name / "result.json").read_text()) for name in ("pruned", "tuned"))
    return {
        "preset": preset,
        "seed": seed,
        "parameters": pruned["pruned"]["parameters"],
        "macs": pruned["pruned"]["macs"],
        "recalibrated_miou": pruned["validation"]["recalibrated"]["miou"],
        "validation_miou": tuned["validation"]["mean_iou"],
    }


def table(rows: list[dict]) -> str:
    """Mean and spread over seeds of each preset."""
    head = f"{'preset':24}{'seeds':>6}{'parameters':>12}{'MMAC':>8}{'cut':>8}{'tuned':>8}{'lowest':>8}{'highest':>8}"
    lines = [f"{head}   (mIoU of the validation part)"]
    for preset in dict.fromkeys(row["preset"] for row in rows):
        mine = [row for row in rows if row["preset"] == preset]
        sizes = [statistics.mean(row[key] for row in mine) for key in ("parameters", "macs")]
        cut, tuned = ([row[key] for row in mine] for key in ("recalibrated_miou", "validation_miou"))
        values = statistics.mean(cut), statistics.mean(tuned), min(tuned), max(tuned)
        numbers = "".join(f"{value:8.3f}" for value in values)
        lines.append(f"{preset:24}{len(mine):6d}{sizes[0]:12.0f}{sizes[1] / 1e6:8.1f}{numbers}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
