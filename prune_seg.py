"""Prune a segmentation network: find out what each block is worth, cut channels to a target, prove the cut exact.

    python prune_seg.py                                          # the shipped teacher to 1/36.9 of its parameters
    python prune_seg.py --teacher runs/teacher/best.pt --target-macs 150e6 --out runs/half
    python prune_seg.py --preset published                       # the published formula, for MobileNetV3
    python prune_seg.py --steps 3 --recovery 200                 # three cuts, 200 training steps between them

It takes three to five minutes on one core; where there is no set, frames are generated first. Blocks are the children
of backbone and head. An entry is the channels that one block makes alone, or that several make together (residual
widths). Every entry is probed: half of its channels are cut, and the loss on training frames is compared. Scores,
statistics and probes use the training part only; the validation part tells how good the result is. ASPP taps that only
meet padding at this frame size are removed first, which changes no output.

- default: an entry's value is its loss increase / the percentage of parameters (or MACs) saved. The logarithm of the
  value is scaled to n = 0 .. 1. The share exp(k (n - 1)) t of the entry's channels stays, with the t that meets the
  target, and at least `--floor` channels.
- published (block by block; ASPP is one block; residual widths, stem and last layers stay): value = .5 d + .3 P + .2 M,
  n = value / sum of values. The share max_ratio f / max(f) leaves, with f = exp(-k n). As coded, d is 100 times the
  block's share of all changes of F1, P and M are 100 minus the percentages of parameters and MACs saved. As written, d
  is that share, and P and M are 1 minus the block's share of all savings. max_ratio changes until a target is met.

The folder (runs/pruned) gets pruned.pt, plan.json (channel numbers of the teacher without dead taps), table.csv,
table.png and result.json. Fine-tune with distill_seg.py.
"""

import argparse
import csv
import io
import math
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from data import DataError
from data.spectrum_sensing import IGNORE, Frame, class_weights, find_frames, read_tensors, split
from data.synthetic import default_set
from models import ModelError, segmentation
from models.fast_layers import cut_dead_taps, speed_up
from models.rebuild import build, describe, rebuild
from utils import checkpoint, cost, importance, pictures, release, runs
from utils.dependency_graph import DependencyGraph, Plan, PruneError, prune, verify
from utils.evaluation import evaluate
from utils.importance import Entry, Recipe, choose_plan, find_entries, set_importance
from utils.runs import RunError, command, config_of, decisive, log, path, run, single_process, start, write_json
from utils.training import Batch, recalibrate_batch_norm

ERRORS = (DataError, ModelError, PruneError, checkpoint.CheckpointError)  # one sentence, exit code 2
PRESETS = {
    "default": {"criterion": "taylor", "k": 2.0, "floor": 8, "multiple": 8},
    "published": {"criterion": "taylor_abs", "k": 5.0, "floor": 1, "multiple": 1},
}
COMPRESSION = 36.9  # of the published network: 11.02 M parameters to 299 K
BATCH = 8  # frames of a forward


class Parts(NamedTuple):
    """The frames that pruning looks at."""

    training: list[Frame]
    scoring: Batch  # training frames that tell what each channel is worth
    probing: Batch  # other ones, that tell what each block is worth
    validation: Batch
    weights: torch.Tensor  # float (3,): of the classes in the loss, on the device


class Scorer(NamedTuple):
    """How single channels are scored: a key of importance.CRITERIA, and the seed of random scores."""

    criterion: str
    seed: int

    def __call__(self, network: nn.Module, graph: DependencyGraph, parts: Parts) -> dict:
        network.eval()
        batches = zip(*(tensor.split(BATCH) for tensor in parts.scoring[:2]), strict=True)
        losses = (weighted_loss(network, Batch(*batch), parts.weights) for batch in batches)
        return importance.group_scores(network, graph.groups, self.criterion, losses, self.seed)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=path, help=f"default {release.OWN_TEACHER}, else weights/seg_teacher.pt")
    parser.add_argument("--data-dir", type=path, help="frames; default datasets/spectrum_sensing if there, else made")
    parser.add_argument("--out", type=path, default=Path("runs/pruned"), help="run folder, default runs/pruned")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--variant", choices=("coded", "written"), default="coded", help="of the published formula")
    parser.add_argument(
        "--target-params", type=runs.positive, help=f"default for the default preset: 1/{COMPRESSION} of nominal"
    )
    parser.add_argument(
        "--target-macs", type=runs.positive, help="multiply-accumulates of a frame, instead of --target-params"
    )
    parser.add_argument(
        "--max-ratio",
        type=runs.real(above=0, most=1),
        default=0.99,
        help="published preset without a target, default .99",
    )
    parser.add_argument("--k", type=runs.real(0, 1000), help=f"how much the value decides, default {_defaults('k')}")
    parser.add_argument("--criterion", choices=importance.CRITERIA, help=f"default {_defaults('criterion')}")
    parser.add_argument(
        "--multiple", type=runs.count, help=f"widths are multiples of it, default {_defaults('multiple')}"
    )
    parser.add_argument("--floor", type=runs.count, help=f"channels of a layer that stay, default {_defaults('floor')}")
    parser.add_argument(
        "--probe-frames", type=runs.whole(2), default=32, help="to score by, and others to probe by, default 32"
    )
    parser.add_argument("--steps", type=runs.count, default=1, help="cuts until the target, default 1")
    parser.add_argument("--recovery", type=runs.count, default=100, help="training steps between two cuts, default 100")
    parser.add_argument("--seed", type=runs.seed, default=0, help="of the frames chosen, of recovery and random scores")
    parser.add_argument("--resume", action="store_true", help="nothing to do if --out holds the finished run")
    parser.add_argument("--device", type=runs.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=runs.processes, help="processes that generate frames, default all cores")
    args = parser.parse_args(argv)
    runs.fill_in(args, PRESETS[args.preset])
    if args.target_params and args.target_macs:
        parser.error("--target-params or --target-macs, not both")
    return args


def _defaults(name: str) -> str:
    return ", ".join(f"{values[name]} ({preset})" for preset, values in PRESETS.items())


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = single_process(args.device)
    args.teacher = args.teacher or release.default_teacher()
    data = release.load_segmentation(args.teacher)
    config = config_of(args, teacher_sha256=checkpoint.sha256(args.teacher))
    if args.resume and (args.out / "result.json").exists():
        start(args.out, config, args.resume, decisive(config, "teacher"))
        print(f"{args.out} holds a finished run, nothing to do")
        return 0

    # Data
    args.data_dir = args.data_dir or default_set(args.workers)
    parts = read_parts(args.data_dir, args.probe_frames, args.seed, device)
    size = tuple(parts.scoring.labels.shape[1:])

    # Networks: "nominal" is as torchvision builds it, "live" has no taps that only meet padding
    dense = rebuild(data)
    nominal = build(data["factory"], data["arguments"]).eval()
    dead = cut_dead_taps(dense, size)
    live = speed_up(dense).to(device, memory_format=torch.channels_last).eval()
    picture = segmentation.normalise(parts.scoring.images[:1])
    x = picture.to(device)
    costs = {"nominal": cost.count(nominal, picture), "live": cost.count(live, x)}
    if args.preset == "default" and not args.target_macs:
        args.target_params = args.target_params or costs["nominal"].parameters / COMPRESSION
    start(args.out, config, args.resume, decisive(config, "teacher"))
    (args.out / "log.jsonl").unlink(missing_ok=True)  # of a run that was stopped: this one starts anew
    before = judge(live, parts.validation, parts.weights)

    # What each block is worth
    torch.manual_seed(args.seed)
    widths = {"multiple": args.multiple, "floor": args.floor}
    recipe = Recipe(args.preset, args.variant, args.k, args.max_ratio, **widths, of_macs=bool(args.target_macs))
    score = Scorer(args.criterion, args.seed)
    entries = probe(live, costs["live"], parts, recipe, score)

    # Cut; if there are several steps, by equal factors, with a short training in between
    network, plans, error = live, [], 0.0
    whole, target = costs["live"][recipe.of_macs], args.target_macs or args.target_params
    for step in range(1, args.steps + 1):
        graph = DependencyGraph(network, x)
        scores = score(network, graph, parts)
        left = partial(what_is_left, network=network, whole=cost.count(network, x), of_macs=recipe.of_macs)
        goal = whole * (target / whole) ** (step / args.steps) if target else None
        plan = choose_plan(recipe, graph, entries, scores, left, goal)
        pruned = prune(network, plan)
        error = max(error, verify(network, pruned, plan, x))
        raw = judge(pruned, parts.validation, parts.weights)
        network = recalibrate_batch_norm(pruned, batches_of(parts.scoring.images, device))
        plans.append(plan)
        if step < args.steps:
            loss = recover(network, parts, args.recovery, 1000 * args.seed + step)
            log(args.out, step=step, loss=loss)

    # Report
    after = judge(network, parts.validation, parts.weights)
    costs["pruned"] = cost.count(network, x)
    importance.note_ratios(entries, plans)
    saved = release.saved(network.cpu(), data["factory"], data["arguments"], args.seed, size)
    checkpoint.save(args.out / "pruned.pt", saved)
    steps = [asdict(plan) for plan in plans]
    write_json(args.out / "plan.json", {"input_size": list(size), "dead_taps": dead, "steps": steps})
    result = {"teacher": str(args.teacher), "verify_error": error, "validation_frames": len(parts.validation.images)}
    result |= {"validation": {"dense": before, "pruned": raw, "recalibrated": after}, "notes": plans[-1].notes}
    result |= sizes_and_speed(costs, nominal, network, saved, picture)
    write_table(args.out, entries)
    write_json(args.out / "result.json", result | {"command": command(), "torch": torch.__version__})
    print(summary(result, args.out))
    return 0


def read_parts(folder: Path, probe_frames: int, seed: int, device: torch.device) -> Parts:
    """Some training frames to score by, others to probe by, and the validation part."""
    parts = split(find_frames(folder))
    frames = parts["train"]
    n = min(probe_frames, len(frames) // 2)
    if n < 2 or not parts["validation"]:
        raise RunError(f"{folder}: too few frames, 6 single-signal ones are needed")
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed)).tolist()
    images, labels = read_tensors([frames[i] for i in order[: 2 * n]])
    scoring, probing = Batch(images[:n], labels[:n]), Batch(images[n:], labels[n:])
    validation = Batch(*read_tensors(parts["validation"]))
    return Parts(frames, scoring, probing, validation, class_weights(labels).to(device))


# ---- judging -------------------------------------------------------------------------------------------------------


def batches_of(images: torch.Tensor, device: torch.device) -> list[torch.Tensor]:
    """uint8 (N, 3, H, W) -> normalised batches. A last one of a single frame is left out: batch norm needs two."""
    return [segmentation.as_input(part.to(device)) for part in images.split(BATCH) if len(part) > 1]


def weighted_loss(network: nn.Module, batch: Batch, weights: torch.Tensor) -> torch.Tensor:
    """Class-weighted cross entropy of a batch, uint8 images and labels, averaged over pixels."""
    x, y = segmentation.as_input(batch.images.to(weights.device)), batch.labels.to(weights.device).long()
    return F.cross_entropy(network(x)["out"], y, weights, ignore_index=IGNORE)


def judge(network: nn.Module, batch: Batch, weights: torch.Tensor) -> dict:
    """{"loss", "miou", "f1"} of frames in eval mode."""
    values = evaluate(network, batch.images, batch.labels, weights, BATCH)
    return {"loss": values["loss"], "miou": values["mean_iou"], "f1": values["mean_f1"]}


def what_is_left(plan: Plan, network: nn.Module, whole: cost.Cost, of_macs: bool) -> int:
    """Parameters or MACs that a plan leaves of a network."""
    return cost.after(plan, network, whole)[of_macs]


def probe(network: nn.Module, whole: cost.Cost, parts: Parts, recipe: Recipe, score: Scorer) -> list[Entry]:
    """Cut each entry alone and note what that saves and what it costs; the network stays as it is."""
    device = parts.weights.device
    graph = DependencyGraph(network, segmentation.normalise(parts.probing.images[:1].to(device)))
    scores = score(network, graph, parts)
    entries = find_entries(network, graph, recipe.preset)
    base = judge(network, parts.probing, parts.weights)
    for entry in tqdm(entries, "probing", unit="entry", file=sys.stderr):
        # Published: 80% again and again, then 50%, until one channel of each group is left: here at once, by ratio 1.
        ratio, multiple = (0.5, recipe.multiple) if recipe.preset == "default" else (1.0, 1)
        plan = graph.plan(0, scores, {group.name: ratio for group in entry.groups}, multiple, recipe.floor)
        pruned = prune(network, plan)
        if recipe.preset == "default":
            recalibrate_batch_norm(pruned, batches_of(parts.scoring.images, device))
        now = judge(pruned, parts.probing, parts.weights)
        entry.loss, entry.miou, entry.f1 = (now[key] - base[key] for key in ("loss", "miou", "f1"))
        left = cost.after(plan, network, whole)
        entry.parameters, entry.macs = (100 * (1 - a / b) for a, b in zip(left, whole[:2], strict=True))
    set_importance(recipe, entries)
    return entries


def recover(network: nn.Module, parts: Parts, steps: int, seed: int) -> float:
    """A short training between two cuts, in place: AdamW, a rate that falls to 0, flips in frequency; the last loss."""
    images, labels = read_tensors(parts.training)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 0.5 + 0.5 * math.cos(math.pi * i / steps))
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in tqdm(range(steps), "recovery", unit="step", file=sys.stderr):
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        x, y = images[batch], labels[batch]
        if torch.rand((), generator=generator) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        loss = weighted_loss(network, Batch(x, y), parts.weights)
        if not loss.isfinite():
            raise RunError(f"the loss is {loss.item()} in the training between two cuts: try more --steps")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    network.eval()
    return loss.item()


# ---- reporting -----------------------------------------------------------------------------------------------------


def sizes_and_speed(costs: dict, nominal: nn.Module, pruned: nn.Module, saved: dict, x: torch.Tensor) -> dict:
    """Parameters, MACs, bytes and latency, with every ratio against the nominal and the live network."""
    result = {name: {"parameters": value.parameters, "macs": value.macs} for name, value in costs.items()}
    dense = describe(nominal, saved["factory"], saved["arguments"])
    result["nominal"]["bytes"], result["pruned"]["bytes"] = cost.saved_bytes(dense), cost.saved_bytes(saved)
    for name in ("nominal", "live"):
        for key in ("parameters", "macs"):
            result["pruned"][f"{name}_{key}_ratio"] = result[name][key] / result["pruned"][key]
    models = {"nominal": nominal, "pruned": pruned}
    result["latency"] = [cost.latency(models, x, threads, runs=15, limit=10) for threads in (1, 2)]
    return result | {"hardware": runs.hardware()}


def write_table(folder: Path, entries: list[Entry]) -> None:
    """table.csv, the same on stdout, and bars of importance and ratio as table.png."""
    head = ["block", "channels", "parameters %", "MACs %", "loss", "mIoU", "importance", "ratio"]
    rows = [[e.name, e.channels, e.parameters, e.macs, e.loss, e.miou, e.importance, e.ratio] for e in entries]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([head, *rows])
    runs.write_whole(folder / "table.csv", lambda file: file.write(text.getvalue().encode()))
    width = max(len(entry.name) for entry in entries)
    print(f"{head[0]:{width}}" + "".join(f"{title:>13}" for title in head[1:]))
    for name, channels, *values in rows:
        print(f"{name:{width}}{channels:13d}" + "".join(f"{value:13.4f}" for value in values))
    largest = max(entry.importance for entry in entries) or 1.0
    columns = {"importance": [entry.importance / largest for entry in entries]}
    columns["ratio removed"] = [entry.ratio for entry in entries]
    pictures.save(pictures.bars([entry.name for entry in entries], columns), folder / "table.png")


def summary(result: dict, folder: Path) -> str:
    """What a reader wants to know first."""
    nominal, live, pruned, valid = (result[key] for key in ("nominal", "live", "pruned", "validation"))
    lines = [
        f"parameters {nominal['parameters']} nominal, {live['parameters']} live, {pruned['parameters']} pruned: "
        f"{pruned['nominal_parameters_ratio']:.1f}x, {pruned['live_parameters_ratio']:.1f}x",
        f"MACs {nominal['macs'] / 1e6:.0f} M nominal, {live['macs'] / 1e6:.0f} M live, {pruned['macs'] / 1e6:.1f} M "
        f"pruned: {pruned['nominal_macs_ratio']:.1f}x, {pruned['live_macs_ratio']:.1f}x",
        f"bytes {nominal['bytes']} nominal, {pruned['bytes']} pruned",
        *(
            f"latency, batch 1, {times['conditions']['threads']} thread(s), channels_last, in turn: nominal "
            f"{times['nominal']['median_ms']:.1f} ms, pruned {times['pruned']['median_ms']:.1f} ms, "
            f"{times['pruned']['speed_up']:.1f}x ({result['hardware']})"
            for times in result["latency"]
        ),
        f"mIoU of {result['validation_frames']} validation frames: dense {valid['dense']['miou']:.3f}, pruned "
        f"{valid['pruned']['miou']:.3f}, recalibrated {valid['recalibrated']['miou']:.3f}, before any retraining",
        f"verified: equals the dense network with those channels zeroed, error {result['verify_error']:.0e}",
        *(f"note: {note}" for note in result["notes"]),
        f"{folder} has pruned.pt, plan.json, table.csv, table.png and result.json",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
