"""What pruning and each way of retraining bring at equal budget: the README's compression table and its picture.

    python -m experiments.compression                                   # every row that is not there yet
    python -m experiments.compression --rows "ours 299 K" --seeds 0 1   # some of them; rows whose name has these words
    python -m experiments.compression --table                           # only print what is there

Each row prunes the teacher (prune_seg.py), retrains the result (distill_seg.py) and scores it on test, combined and
field frames. All rows see the same number of frames in batches of the same size, so they have equally many steps. The
published recipe is therefore run with batch 8 and fewer epochs than the 30 of the study. A finished row is one JSON in
experiments/results/compression, with its hardware and commands. If that folder has rows of another teacher, the new
ones go to a folder beside it, with the beginning of the teacher's SHA-256 in its name. The same command goes on after
an interruption, also on another machine. At 3 epochs of the default set's 2,880 frames a row takes 4 to 22 minutes on
one core, and all rows with three seeds take seven hours. On two cores start two processes with different --rows: three
and a half hours. Give each process sizes of its own, since both would prune a size that they share.
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw

from data import DataError
from data.spectrum_sensing import find_frames, split
from data.synthetic import default_set
from models import ModelError, segmentation
from models.fast_layers import cut_dead_taps
from models.rebuild import build, describe, rebuild
from utils import checkpoint, pictures, release, runs
from utils.cost import count, latency, saved_bytes
from utils.evaluation import report
from utils.runs import RunError, command, hardware, run, write_json

PRUNED = {  # what prune_seg.py is asked for
    "published 299 K": ["--preset", "published", "--target-params", "299000"],
    "ours 299 K": ["--target-params", "299000"],
    "ours 172 K": ["--target-params", "172000"],
    "ours 110 K": ["--target-params", "110000"],
    "ours 600 K": ["--target-params", "600000"],
}
WAYS = {  # what distill_seg.py is asked for; kept logits halve the time
    "fine-tuning": ["--alpha", "0", "--gamma", "0"],
    "KD": ["--gamma", "0", "--keep-logits"],
    "self-KD": ["--alpha", "0", "--gamma", "1"],
    "all": ["--gamma", "1", "--keep-logits"],
    "label-free": ["--beta", "0", "--gamma", "0", "--keep-logits"],
    "from scratch": ["--alpha", "0", "--gamma", "0", "--from-scratch"],
}
ROWS = [
    ("ours 299 K", ("fine-tuning", "KD", "label-free", "from scratch", "self-KD", "all")),
    ("published 299 K", ("fine-tuning", "label-free", "all")),
    ("ours 600 K", ("KD",)),
    ("ours 172 K", ("fine-tuning", "KD", "label-free", "from scratch")),
    ("ours 110 K", ("fine-tuning", "KD", "label-free", "from scratch")),
]
SETS = {"test": "test", "test, single-signal": "single", "test, FIELD": "field", "combined": "combined"}
RESULTS = Path("experiments/results/compression")
COLOURS = ["#1f6fb4", "#d9541a", "#3a9a4a", "#8a4fb0", "#8c6a3f", "#20a0a0"]  # of the ways, in turn


def one_of_the_ways(value, name: str) -> str | None:
    """A form for checkpoint.misfit."""
    return None if value in tuple(WAYS) else f"{name} is {str(value)[:40]}, not one of {', '.join(WAYS)}"


def no_way(value, name: str) -> str | None:
    """A form for checkpoint.misfit: the teacher was not retrained."""
    return None if value == "" else f"{name} is {str(value)[:40]}, not an empty text, as that of a teacher"


def mean_ious(value, name: str) -> str | None:
    """A form for checkpoint.misfit: of every set the mIoU, from 0 to 1, or None where there is none."""
    if bare := [key for key, inner in value.items() if "mean_iou" not in inner]:
        return f"{name}.{bare[0]} has no mean_iou"
    values = ((key, inner["mean_iou"]) for key, inner in value.items())
    faults = (checkpoint.within(0, 1)(iou, f"{name}.{key}.mean_iou") for key, iou in values if iou is not None)
    return next(filter(None, faults), None)


# What a row must hold, as checkpoint.misfit takes it
COUNTED = checkpoint.within(1, 1e15)
TEACHER = {
    "size": str,
    "way": no_way,
    "hardware": str,
    **dict.fromkeys(("parameters", "parameters_dense", "macs", "macs_live", "bytes"), COUNTED),
    "latency": {"this": {"speed_up": checkpoint.within(0, 1e6)}},
    "sets": (dict[str, dict], {"test": {"mean_iou": checkpoint.within(1e-6, 1)}}, mean_ious),
}
ROW = TEACHER | {"way": one_of_the_ways, "seed": int, "epochs": COUNTED, "batch_size": COUNTED}
REMEDY = "delete it to repeat the row, or choose another --results"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", type=runs.path, help="frames; default datasets/spectrum_sensing if there, else made"
    )
    parser.add_argument("--teacher", type=runs.path, default=release.shipped("seg_teacher.pt"))
    parser.add_argument("--rows", default="", metavar="WORDS", help="only rows whose name has these words")
    parser.add_argument("--seeds", type=runs.seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=runs.count, default=3, help="of every row, default 3")
    parser.add_argument("--batch-size", type=runs.count, default=8, help="of every row, default 8")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--results", type=runs.path, help=f"folder of the rows, default {RESULTS} or one beside it")
    parser.add_argument("--out", type=runs.path, help="the runs' folders, default runs/ and the name of --results")
    parser.add_argument("--device", type=runs.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=runs.processes, help="processes that generate frames, default all cores")
    return parser.parse_args(argv)


class Setup(NamedTuple):
    """What all rows have in common."""

    data_dir: Path
    teacher: Path
    device: str
    epochs: int
    batch_size: int
    out: Path


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    names = [(size, way) for size, ways in ROWS for way in ways if args.rows in f"{size}, {way}"]
    if not names:
        raise RunError(f"no row has {args.rows!r} in its name: see PRUNED and WAYS in experiments/compression.py")

    # Where the rows go: everything that can be refused is refused before frames are made
    digest = checkpoint.sha256(args.teacher)
    results = args.results or results_of(digest)
    if args.table and not args.results and teacher_of(results) is None:
        results = RESULTS
    if not args.table:
        release.load_segmentation(args.teacher)
        if teacher_of(results) not in (None, digest):
            raise RunError(f"{results} has rows of another teacher than {args.teacher}: choose another --results")
        print(f"rows go to {results}", flush=True)

    # Rows that are not there yet
    if not args.table:
        data_dir, out = args.data_dir or default_set(args.workers), args.out or Path("runs") / results.name
        setup = Setup(data_dir, args.teacher, args.device, args.epochs, args.batch_size, out)
        if teacher_of(results) is None:
            print(f"scoring {args.teacher}", flush=True)
            write_json(results / "teacher.json", score_teacher(setup) | {"sha256": digest})
        for seed in args.seeds:  # a first figure for every row before the second of any
            for size, way in names:
                path = results / f"{slug(size)}_{slug(way)}_epochs{args.epochs}_seed{seed}.json"
                if not path.exists():
                    print(f"{size}, {way}, seed {seed}", flush=True)
                    write_json(path, run_row(setup, size, way, seed))
                elif checkpoint.read_facts(path, ROW, REMEDY)["batch_size"] != args.batch_size:
                    raise RunError(f"{path} is of another --batch-size: choose another --results and --out")

    # The tables
    if teacher_of(results) is None:
        raise RunError(f"{results} has no rows yet: leave --table out")
    rows = [checkpoint.read_facts(path, ROW, REMEDY) for path in sorted(results.glob("*_seed*.json"))]
    teacher = checkpoint.read_facts(results / "teacher.json", TEACHER, REMEDY)
    print(table(teacher, rows))
    print(snr_table(teacher, rows))
    pictures.save(picture(teacher, rows), results / "miou_macs.png")
    print(f"{results}/miou_macs.png: mIoU against MACs")
    return 0


def teacher_of(results: Path) -> str | None:
    """SHA-256 of the teacher that the rows in a folder are of; None if there are no rows."""
    path = results / "teacher.json"
    return checkpoint.read_facts(path, {"sha256": str}, REMEDY)["sha256"] if path.exists() else None


def results_of(digest: str) -> Path:
    """The default folder of a teacher's rows."""
    return RESULTS if teacher_of(RESULTS) in (None, digest) else RESULTS.with_name(f"{RESULTS.name}_{digest[:8]}")


def slug(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text.lower()).replace("__", "_")


def run_row(setup: Setup, size: str, way: str, seed: int) -> dict:
    """Prune if that is not done yet, retrain, and gather what the table needs."""
    common = ["--data-dir", str(setup.data_dir), "--teacher", str(setup.teacher), "--device", setup.device, "--resume"]
    pruned = setup.out / slug(size)
    prune = ["prune_seg.py", *PRUNED[size], "--out", str(pruned), *common]
    call(prune)  # nothing to do if it is done; refused if it was another teacher's
    out = setup.out / f"{slug(size)}_{slug(way)}_epochs{setup.epochs}_seed{seed}"
    preset = ["--preset", "published"] if size.startswith("published") else ["--mirror"]  # one recipe for all rows
    budget = ["--epochs", str(setup.epochs), "--batch-size", str(setup.batch_size), "--seed", str(seed)]
    student = ["--student", str(pruned / "pruned.pt"), "--out", str(out)]
    distill = ["distill_seg.py", *preset, *WAYS[way], *budget, *student, *common]
    begun, began = (out / "last.pt").exists(), time.perf_counter()
    call(distill)  # a finished run is scored again; one of other settings is refused
    minutes = None if begun else round((time.perf_counter() - began) / 60, 1)  # nobody knows what was spent before
    data = checkpoint.load(out / "best.pt")
    result = json.loads((out / "result.json").read_text())
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    facts = {"size": size, "way": way, "seed": seed, "epochs": setup.epochs, "batch_size": setup.batch_size}
    facts |= {"frames": json.loads((out / "config.json").read_text())["training_frames"], "minutes": minutes}
    facts |= {"before_retraining": json.loads((pruned / "result.json").read_text()).get("validation")}
    facts |= {"log": log, **costs(data), "sets": short(result["network_alone"])}
    commands = [checkpoint.load(pruned / "pruned.pt")["command"], data["command"]]
    return facts | {"commands": commands, "hardware": hardware(setup.device), "torch": torch.__version__}


def call(script: list[str]) -> None:
    done = subprocess.run([sys.executable, *script])
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise RunError(f"{script[0]} ended with exit code {done.returncode}: mend what it says above, then start again")


def score_teacher(setup: Setup) -> dict:
    """The teacher on the same sets as every row."""
    parts = split(find_frames(setup.data_dir))
    sets = {name: parts[name] for name in ("test", "combined", "own") if parts.get(name)}
    data = checkpoint.load(setup.teacher)
    scored = report(data, sets, None, torch.device(setup.device))["network_alone"]
    facts = {"size": "dense teacher", "way": "", **costs(data), "sets": short(scored), "commands": [command()]}
    return facts | {"hardware": hardware(setup.device), "torch": torch.__version__}


def costs(data: dict) -> dict:
    """Parameters, MACs, bytes and latency against the network as torchvision builds it, both eager on one thread."""
    dense, network = build(data["factory"], data["arguments"]).eval(), rebuild(data).eval()
    x = torch.zeros(1, 3, 256, 256)
    live = copy.deepcopy(network)
    cut_dead_taps(live)
    light = describe(live, data["factory"], data["arguments"])
    light["state_dict"] = checkpoint.halve(light["state_dict"])
    times = latency({"dense": dense, "this": network}, segmentation.normalise(x), threads=1, runs=15)
    return {
        "parameters": count(live, x).parameters,
        "parameters_dense": count(dense, x).parameters,
        "macs": count(network, x).macs,
        "macs_live": count(live, x).macs,
        "macs_dense": count(dense, x).macs,
        "bytes": saved_bytes(light),
        "latency": times,
    }


def short(sets: dict) -> dict:
    """Of every set what the table shows; whole confusion matrices stay in the run's folder."""
    kept = ("frames", "mean_iou", "mean_recall", "accuracy")
    return {name: {key: values[key] for key in kept} for name, values in sets.items()}


# ---- the table -------------------------------------------------------------------------------------------------------


def grouped(rows: list[dict]) -> dict[tuple, list[dict]]:
    """Rows that differ in the seed only."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["size"], row["way"], row["epochs"]), []).append(row)
    order = {(size, way): i for i, (size, way) in enumerate((s, w) for s, ways in ROWS for w in ways)}
    return dict(sorted(groups.items(), key=lambda item: (order.get(item[0][:2], len(order)), item[0][2])))


def spread(rows: list[dict], name: str) -> str:
    """Mean and standard deviation of a set's mIoU over the seeds."""
    values = [row["sets"][name]["mean_iou"] for row in rows if name in row["sets"]]
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.3f}".removeprefix("0")
    return mean if len(values) == 1 else mean + f" ± {statistics.stdev(values):.3f}".replace("0.", ".")


def table(teacher: dict, rows: list[dict]) -> str:
    """Markdown: costs and mIoU of every row; "kept" is the share of the teacher's mIoU on test frames."""
    titles = "| network | retrained by | epochs, seeds | parameters | MMACs (live) | MB | x faster | kept | "
    lines = [titles + " | ".join(SETS.values()) + " |", "|---" * (8 + len(SETS)) + "|"]
    whole = teacher["sets"]["test"]["mean_iou"]
    for (size, way, epochs), group in {("dense teacher", "", 0): [teacher], **grouped(rows)}.items():
        first = group[0]
        times = statistics.median(row["latency"]["this"]["speed_up"] for row in group)
        kept = statistics.mean(row["sets"]["test"]["mean_iou"] for row in group) / whole
        ratio = first["parameters_dense"] / first["parameters"]
        cells = [size, way or "-", f"{epochs}, {len(group)}" if epochs else "-"]
        cells += [f"{first['parameters'] / 1e3:,.0f} K ({ratio:.1f}x)"]
        cells += [f"{first['macs'] / 1e6:,.0f} ({first['macs_live'] / 1e6:,.0f})", f"{first['bytes'] / 1e6:.2f}"]
        cells += [f"{times:.1f}", f"{100 * kept:.1f} %", *(spread(group, name) for name in SETS)]
        lines.append("| " + " | ".join(cells) + " |")
    machines = sorted({row["hardware"] for row in rows})
    return "\n".join([*lines, "", f"mIoU, mean ± deviation over seeds. Trained on: {'; '.join(machines) or '-'}", ""])


def snr_table(teacher: dict, rows: list[dict]) -> str:
    """Markdown: mIoU on test frames by SNR."""
    names = [name for name in teacher["sets"] if name.startswith("test, ") and name.endswith("dB")]
    lines = ["| network | retrained by | epochs | " + " | ".join(name.removeprefix("test, ") for name in names) + " |"]
    lines += ["|---" * (3 + len(names)) + "|"]
    for (size, way, epochs), group in {("dense teacher", "", 0): [teacher], **grouped(rows)}.items():
        cells = [size, way or "-", str(epochs or "-"), *(spread(group, name) for name in names)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def picture(teacher: dict, rows: list[dict]) -> Image.Image:
    """Test mIoU against live MACs, a dot for each run, a colour for each way of retraining."""
    everything = [teacher, *rows]
    scores = [row["sets"]["test"]["mean_iou"] for row in everything]
    scale = [torch.tensor(row["macs_live"] / 1e6).log10().item() for row in everything]
    left, right = min(scale) - 0.15, max(scale) + 0.15
    low, high = min(scores) - 0.02, max(scores) + 0.02
    width, height, x0, y0 = 640, 400, 60, 30
    canvas = Image.new("RGB", (x0 + width + 190, y0 + height + 50), "white")
    draw = ImageDraw.Draw(canvas)

    def place(x: float, y: float) -> tuple[float, float]:
        return x0 + (x - left) / (right - left) * width, y0 + height - (y - low) / (high - low) * height

    draw.text((x0, 8), "mIoU on test frames", fill="black")
    draw.text((x0 + width // 2, y0 + height + 34), "million multiply-accumulates a frame", fill="black", anchor="mm")
    for macs in (20, 50, 100, 200, 500, 1000, 2000):
        x = place(torch.tensor(float(macs)).log10().item(), low)[0]
        if x0 <= x <= x0 + width:
            draw.line((x, y0, x, y0 + height), fill="#dddddd")
            draw.text((x, y0 + height + 12), str(macs), fill="black", anchor="mm")
    step = 0.02 if high - low < 0.2 else 0.1
    for mark in range(int(low / step) + 1, int(high / step) + 1):
        y = place(left, mark * step)[1]
        draw.line((x0, y, x0 + width, y), fill="#dddddd")
        draw.text((x0 - 6, y), f"{mark * step:.2f}", fill="black", anchor="rm")
    ways = {"": "black"} | dict(zip(WAYS, COLOURS, strict=True))
    for row, x, y in zip(everything, scale, scores, strict=True):
        (a, b), colour = place(x, y), ways[row["way"]]
        if row["size"].startswith("published"):
            draw.rectangle((a - 4, b - 4, a + 4, b + 4), outline=colour, width=2)
        else:
            draw.ellipse((a - 4, b - 4, a + 4, b + 4), fill=colour)
    shown = dict.fromkeys(row["way"] for row in everything)
    for i, way in enumerate(shown):
        draw.text((x0 + width + 16, y0 + 16 * i), way or "dense teacher", fill=ways[way])
    draw.text((x0 + width + 16, y0 + 16 * len(shown) + 8), "squares: published pruning", fill="black")
    return canvas


if __name__ == "__main__":
    sys.exit(run(main, DataError, ModelError, checkpoint.CheckpointError))
