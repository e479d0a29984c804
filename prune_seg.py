"""Prune a segmentation network: find out what each block is worth, cut channels to a target, prove the cut exact.

    python prune_seg.py                                          # the shipped teacher to 1/36.9 of its parameters
    python prune_seg.py --teacher runs/teacher/best.pt --target-macs 150e6 --out runs/half
    python prune_seg.py --preset published                       # the published formula, for MobileNetV3
    python prune_seg.py --steps 3 --recovery 200                 # three cuts, 200 training steps between them

Three to five minutes on one core, frames generated first where there is no set. Blocks are the children of backbone and
head; channels that several blocks make together (residual widths) are entries of their own. Every entry is probed: half
of it is cut, the loss on training frames is compared. Scores, statistics and probes use the training part only, the
validation part tells what is left. ASPP taps that only meet padding at this frame size are removed first, exactly.

- default: value = loss increase / what the cut saves of the target; its logarithm is scaled to n = 0 .. 1 and the share
  exp(k (n - 1)) t of an entry's channels stays, with the t that meets the target. At least `--floor` channels stay.
- published (block-wise; ASPP is one block; residual widths, stem and last layers stay): value = .5 d + .3 P + .2 M,
  n = value / sum, the share max_ratio f / max(f) leaves with f = exp(-k n). As coded, d is 100 times the block's share
  of all changes of F1, P and M are 100 less the percentages of parameters and MACs saved; as written, d is that share,
  P and M are 1 less the block's share of all savings. A target is met by changing max_ratio.

The folder (runs/pruned) gets pruned.pt, plan.json (replays on the teacher after cut_dead_taps), table.csv, table.png,
result.json. Fine-tune with distill_seg.py.
"""

import argparse
import csv
import functools
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from data import DataError
from data.spectrum_sensing import CLASSES, IGNORE, class_weights, find_frames, read_tensors, split
from data.synthetic import default_set
from models import ModelError, segmentation
from models.fast_layers import cut_dead_taps, speed_up
from models.rebuild import build, describe, rebuild
from utils import checkpoint, cost, importance, metrics, pictures
from utils.dependency_graph import DependencyGraph, Group, PruneError, prune, verify
from utils.runs import RunError, command, hardware, join_processes, log, run, start, write_json
from utils.training import recalibrate_batch_norm

ERRORS = (DataError, ModelError, PruneError, checkpoint.CheckpointError)  # one sentence, exit code 2
PRESETS = {
    "default": {"criterion": "taylor", "k": 2.0, "floor": 8, "multiple": 8},
    "published": {"criterion": "taylor_abs", "k": 5.0, "floor": 1, "multiple": 1},
}
COMPRESSION = 36.9  # of the published network: 11.02 M parameters to 299 K
TOLERANCE = 0.02  # of a target
BATCH = 8  # frames of a forward


@dataclass
class Entry:
    """Channels that get one ratio: those that a block makes alone, or those that several blocks make together."""

    name: str
    groups: list[Group]
    loss: float = 0.0  # change by the probe
    miou: float = 0.0
    f1: float = 0.0
    parameters: float = 0.0  # percent of the network's that the probe's cut saves
    macs: float = 0.0
    importance: float = 0.0  # n of the docstring above
    ratio: float = 0.0  # of its channels that left

    @property
    def channels(self) -> int:
        return sum(group.size for group in self.groups)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="default runs/seg/best.pt if there, else weights/seg_teacher.pt")
    parser.add_argument("--data-dir", type=Path, help="frames; default datasets/spectrum_sensing if there, else made")
    parser.add_argument("--out", type=Path, default=Path("runs/pruned"), help="run folder, default runs/pruned")
    parser.add_argument("--preset", choices=PRESETS, default="default")
    parser.add_argument("--variant", choices=("coded", "written"), default="coded", help="of the published formula")
    parser.add_argument(
        "--target-params", type=float, help=f"default for the default preset: 1/{COMPRESSION} of nominal"
    )
    parser.add_argument("--target-macs", type=float, help="multiply-accumulates of a frame, instead of --target-params")
    parser.add_argument("--max-ratio", type=float, default=0.99, help="published preset without a target, default .99")
    parser.add_argument("--k", type=float, help=f"how much the value decides, default {_defaults('k')}")
    parser.add_argument("--criterion", choices=importance.CRITERIA, help=f"default {_defaults('criterion')}")
    parser.add_argument("--multiple", type=int, help=f"of which widths are, default {_defaults('multiple')}")
    parser.add_argument("--floor", type=int, help=f"channels of a layer that stay, default {_defaults('floor')}")
    parser.add_argument("--probe-frames", type=int, default=32, help="to score by, and others to probe by, default 32")
    parser.add_argument("--steps", type=int, default=1, help="cuts until the target, default 1")
    parser.add_argument("--recovery", type=int, default=100, help="training steps between two cuts, default 100")
    parser.add_argument("--seed", type=int, default=0, help="of the frames chosen, of recovery and random scores")
    parser.add_argument("--resume", action="store_true", help="nothing to do if --out holds the finished run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="processes that generate frames, default all cores")
    args = parser.parse_args(argv)
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.target_params and args.target_macs:
        parser.error("--target-params or --target-macs, not both")
    if min(args.multiple, args.floor, args.steps, args.recovery) < 1 or args.probe_frames < 2 or args.k < 0:
        parser.error("--multiple, --floor, --steps and --recovery must be positive, --probe-frames at least 2")
    if not 0 < args.max_ratio <= 1 or min(args.target_params or 1, args.target_macs or 1) <= 0:
        parser.error("--max-ratio is a share from 0 to 1, targets are positive")
    return args


def _defaults(name: str) -> str:
    return ", ".join(f"{values[name]} ({preset})" for preset, values in PRESETS.items())


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    _, _, device = join_processes(args.device)
    args.device = str(device)
    own = Path("runs/seg/best.pt")
    teacher = args.teacher or (own if own.exists() else Path("weights/seg_teacher.pt"))
    data = checkpoint.load(teacher)
    if data.get("kind") != "segmentation":
        raise RunError(f"{teacher}: not a segmentation network; name a file of train_seg.py, or train one")
    config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    config |= {"teacher": str(teacher), "teacher_sha256": checkpoint.sha256(teacher), "command": command()}
    same = config.keys() - {"data_dir", "out", "resume", "device", "workers", "teacher", "command"}
    if args.resume and (args.out / "result.json").exists():
        start(args.out, config, args.resume, tuple(same))
        print(f"{args.out} holds a finished run, nothing to do")
        return 0

    # Data: a part of the training frames to score by, another to probe by, and the validation part
    args.data_dir = args.data_dir or default_set(args.workers)
    parts = split(find_frames(args.data_dir))
    frames, n = parts["train"], min(args.probe_frames, len(parts["train"]) // 2)
    if n < 2 or not parts["validation"]:
        raise RunError(f"{args.data_dir}: too few frames, 10 single-signal ones are needed")
    order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(args.seed)).tolist()
    images, masks = read_tensors([frames[i] for i in order[: 2 * n]])
    validation = read_tensors(parts["validation"])
    weights = class_weights(masks).to(args.device)
    scoring, probing = (images[:n], masks[:n]), (images[n:], masks[n:])
    size = tuple(masks.shape[1:])

    # Networks: nominal as torchvision builds it, live without dead taps
    dense = rebuild(data)
    nominal = build(data["factory"], data["arguments"]).eval()
    dead = cut_dead_taps(dense, size)
    live = speed_up(dense).to(args.device, memory_format=torch.channels_last).eval()
    x = segmentation.normalise(images[:1])
    costs = {"nominal": cost.count(nominal, x), "live": cost.count(live, x.to(args.device))}
    if args.preset == "default" and not args.target_macs:
        args.target_params = args.target_params or costs["nominal"].parameters / COMPRESSION
    start(args.out, config, args.resume, tuple(same))
    (args.out / "log.jsonl").unlink(missing_ok=True)  # of a run that was stopped: this one starts anew
    before = judge(live, *validation, weights)

    # Probe, then cut
    torch.manual_seed(args.seed)
    entries = probe(args, live, costs["live"], scoring, probing, weights)
    network, plans, error = live, [], 0.0
    for step in range(1, args.steps + 1):
        graph = DependencyGraph(network, x.to(args.device))
        scores = group_scores(args, network, graph, scoring, weights)
        now = cost.count(network, x.to(args.device))
        left = functools.partial(cost.after, model=network, whole=now)
        plan = choose_plan(args, graph, entries, scores, left, costs["live"], step)
        pruned = prune(network, plan)
        error = max(error, verify(network, pruned, plan, x.to(args.device)))
        raw = judge(pruned, *validation, weights)
        network = recalibrate_batch_norm(pruned, batches_of(scoring[0], args.device))
        plans.append(plan)
        if step < args.steps:
            recover(args, network, read_tensors(frames), weights, step)

    # Report
    after = judge(network, *validation, weights)
    costs["pruned"] = cost.count(network, x.to(args.device))
    kept = {}
    for plan in plans:
        kept |= {group["name"]: group["kept"] for group in plan.groups}
    for entry in entries:
        entry.ratio = 1 - sum(kept[group.name] for group in entry.groups) / entry.channels
    origin = {"kind": "segmentation", "classes": list(CLASSES), "seed": args.seed, "command": command()}
    origin["frame_size"] = list(size)
    saved = describe(network.cpu(), data["factory"], data["arguments"]) | origin
    checkpoint.save(args.out / "pruned.pt", saved)
    first = {"input_size": list(size), "dead_taps": dead, "steps": [asdict(plan) for plan in plans]}
    write_json(args.out / "plan.json", first)
    result = {"teacher": str(teacher), "verify_error": error, "validation_frames": len(validation[0])}
    result |= {"validation": {"dense": before, "pruned": raw, "recalibrated": after}, "notes": plans[-1].notes}
    result |= sizes_and_speed(costs, nominal, network, describe(nominal, data["factory"], data["arguments"]), saved, x)
    write_table(args.out, entries)
    write_json(args.out / "result.json", result | {"command": command(), "torch": torch.__version__})
    print(summary(result, args.out))
    return 0


# ---- judging -------------------------------------------------------------------------------------------------------


def batches_of(images: torch.Tensor, device) -> list[torch.Tensor]:
    """uint8 (N, 3, H, W) -> normalised batches; a last one of a single frame is left out: batch norm wants two."""
    parts = [part for part in images.split(BATCH) if len(part) > 1]
    return [segmentation.normalise(part.to(device)).contiguous(memory_format=torch.channels_last) for part in parts]


def weighted_loss(network: nn.Module, images, masks, weights) -> torch.Tensor:
    """Class-weighted cross entropy of a batch, uint8 images and masks, averaged over pixels."""
    x = segmentation.normalise(images.to(weights.device)).contiguous(memory_format=torch.channels_last)
    return F.cross_entropy(network(x)["out"], masks.to(weights.device).long(), weights, ignore_index=IGNORE)


def judge(network: nn.Module, images, masks, weights) -> dict:
    """{"loss", "miou", "f1"} of frames in eval mode; the loss is averaged over frames."""
    network.eval()
    matrix, loss = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64), 0.0
    with torch.no_grad():
        for x, y in zip(images.split(BATCH), masks.split(BATCH), strict=True):
            x = segmentation.normalise(x.to(weights.device)).contiguous(memory_format=torch.channels_last)
            y = y.to(weights.device).long()
            logits = network(x)["out"]
            loss += F.cross_entropy(logits, y, weights, ignore_index=IGNORE).item() * len(y) / len(images)
            matrix += metrics.confusion_matrix(logits.argmax(1), y, len(CLASSES), IGNORE).cpu()
    values = metrics.scores(matrix, CLASSES)
    return {"loss": loss, "miou": values["mean_iou"], "f1": values["mean_f1"]}


def group_scores(args, network: nn.Module, graph: DependencyGraph, scoring, weights) -> dict:
    """What each unit is worth, by the training frames kept for it."""
    network.eval()
    losses = (weighted_loss(network, x, y, weights) for x, y in zip(*(t.split(BATCH) for t in scoring), strict=True))
    return importance.group_scores(network, graph.groups, args.criterion, losses, args.seed)


def probe(args, network: nn.Module, whole: cost.Cost, scoring, probing, weights) -> list[Entry]:
    """Cut each entry alone and see what it saves and what it costs; the network stays as it is."""
    graph = DependencyGraph(network, segmentation.normalise(probing[0][:1].to(args.device)))
    scores = group_scores(args, network, graph, scoring, weights)
    entries = find_entries(network, graph, args.preset)
    base = judge(network, *probing, weights)
    for entry in tqdm(entries, "probing", unit="entry", file=sys.stderr):
        # Published: 80%, repeated until nothing falls, then 50%, which ends at one channel of each group.
        ratio, multiple = (0.5, args.multiple) if args.preset == "default" else (1.0, 1)
        plan = graph.plan(0, scores, {group.name: ratio for group in entry.groups}, multiple, args.floor)
        pruned = prune(network, plan)
        if args.preset == "default":
            recalibrate_batch_norm(pruned, batches_of(scoring[0], args.device))
        now = judge(pruned, *probing, weights)
        entry.loss, entry.miou, entry.f1 = (now[key] - base[key] for key in ("loss", "miou", "f1"))
        left = cost.after(plan, network, whole)
        entry.parameters, entry.macs = (100 * (1 - a / b) for a, b in zip(left, whole[:2], strict=True))
        log(args.out, entry=entry.name, loss=entry.loss, miou=entry.miou, parameters=entry.parameters, macs=entry.macs)
    set_importance(args, entries)
    return entries


def find_entries(network: nn.Module, graph: DependencyGraph, preset: str) -> list[Entry]:
    """Groups by the blocks whose layers make their channels, in the order of the network."""
    blocks = [f"{part}.{name}" for part, module in network.named_children() for name, _ in module.named_children()]
    heads = [part for part, _ in network.named_children() if part != "backbone"]
    fixed = {blocks[0]} | {block for block in blocks if block.partition(".")[0] in heads and not block.endswith(".0")}
    members = {}
    for group in graph.groups:
        tensors = [member.tensor for member in group.members if member.role == "out"] or [group.members[0].tensor]
        makers = [block for block in blocks if any(tensor.startswith(f"{block}.") for tensor in tensors)]
        if preset == "default" or (len(makers) == 1 and makers[0] not in fixed):
            members.setdefault(tuple(makers), []).append(group)
    entries = [Entry(" + ".join(makers), groups) for makers, groups in members.items()]
    if not entries:
        raise RunError("no channel of this network can be cut; python -m utils.dependency_graph MODEL tells why")
    return entries


# ---- choosing ------------------------------------------------------------------------------------------------------


def set_importance(args, entries: list[Entry]) -> None:
    """The n of each entry; see the docstring of this file."""
    if args.preset == "default":
        most = max(max(entry.loss for entry in entries), 1e-6)
        saved = [max(entry.macs if args.target_macs else entry.parameters, 1e-6) for entry in entries]
        values = [math.log(max(e.loss, 0.01 * most) / s) for e, s in zip(entries, saved, strict=True)]
        low, high = min(values), max(values)
        for entry, value in zip(entries, values, strict=True):
            entry.importance = (value - low) / max(high - low, 1e-9)
        return
    change = sum(abs(entry.f1) for entry in entries) or 1.0
    parameters, macs = sum(entry.parameters for entry in entries), sum(entry.macs for entry in entries)
    values = []
    for entry in entries:
        if args.variant == "coded":
            terms = 100 * abs(entry.f1) / change, 100 - entry.parameters, 100 - entry.macs
        else:
            terms = abs(entry.f1) / change, 1 - entry.parameters / parameters, 1 - entry.macs / macs
        values.append(sum(weight * term for weight, term in zip((0.5, 0.3, 0.2), terms, strict=True)))
    for entry, value in zip(entries, values, strict=True):
        entry.importance = value / sum(values)


def ratios_at(args, entries: list[Entry], t: float) -> dict[str, float]:
    """{group: share of its channels to remove}. t is what grows the network, from 0 to `largest(args)`."""
    if args.preset == "default":
        ratios = [1 - min(1.0, t * math.exp(args.k * (entry.importance - 1))) for entry in entries]
    else:
        factors = [math.exp(-args.k * entry.importance) for entry in entries]
        ratios = [round((1 - t) * factor / max(factors), 2) for factor in factors]
    return {group.name: ratio for entry, ratio in zip(entries, ratios, strict=True) for group in entry.groups}


def choose_plan(args, graph: DependencyGraph, entries: list[Entry], scores: dict, left, whole: cost.Cost, step: int):
    """The plan of this step: by max_ratio, or by search for the t that meets the target within 2%.

    left: function of a plan -> (parameters, MACs) that it leaves. whole: of the network before the first step.
    """
    macs, goal = bool(args.target_macs), args.target_macs or args.target_params
    before = {group.name: group.size for entry in entries for group in entry.groups}
    sizes = {
        group.name: group.size for group in graph.groups
    }  # smaller after the first step; what has one channel left

    def plan_at(t: float, more: dict):
        """Ratios are of the first network's widths, the plan is for the present one; `more`: widths of some groups."""
        widths = {name: before[name] * (1 - ratio) for name, ratio in ratios_at(args, entries, t).items()} | more
        ratios = {name: max(0.0, 1 - width / sizes[name]) for name, width in widths.items() if name in sizes}
        return graph.plan(0, scores, ratios, args.multiple, args.floor)

    if not goal:
        return plan_at(1 - args.max_ratio, {})
    goal = whole[macs] * (goal / whole[macs]) ** (step / args.steps)  # equal factors, if there are several steps
    low, high, unit = 0.0, math.exp(args.k) if args.preset == "default" else 1.0, "MACs" if macs else "parameters"
    least, most = (left(plan_at(t, {}))[macs] for t in (low, high))
    if not least * (1 - TOLERANCE) <= goal <= most * (1 + TOLERANCE):
        raise RunError(
            f"a target of {goal:.4g} {unit} is out of reach: with this preset the network can have {least} to {most}; "
            "choose a target in between, or change --floor and --multiple"
        )
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if left(plan_at(middle, {}))[macs] <= goal else (low, middle)
    # Widths move in steps, so give single groups one step more, the most valuable first, while the target allows.
    more, plan = {}, plan_at(low, {})
    for group in (g for entry in sorted(entries, key=lambda entry: -entry.importance) for g in entry.groups):
        kept = next((row["kept"] for row in plan.groups if row["name"] == group.name), math.inf) + args.multiple
        if kept <= sizes.get(group.name, 0) and left(plan)[macs] < goal * (1 - TOLERANCE / 4):
            wider = plan_at(low, more | {group.name: kept})
            if left(wider)[macs] <= goal * (1 + TOLERANCE / 4):
                more, plan = more | {group.name: kept}, wider
    if abs(left(plan)[macs] - goal) > TOLERANCE * goal:
        raise RunError(f"{left(plan)[macs]} is the nearest to {goal:.4g} {unit} in steps of {args.multiple} channels: "
                       "choose a smaller --multiple")  # fmt: skip
    return plan


def recover(args, network: nn.Module, training, weights, step: int) -> None:
    """A short training between two cuts, in place: AdamW, a learning rate that falls to 0, flips in frequency."""
    images, masks = training
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: 0.5 + 0.5 * math.cos(math.pi * i / args.recovery)
    )
    generator = torch.Generator().manual_seed(1000 * args.seed + step)
    network.train()
    for _ in tqdm(range(args.recovery), f"recovery {step}", unit="step", file=sys.stderr):
        batch = torch.randint(len(images), (BATCH,), generator=generator)
        x, y = images[batch], masks[batch]
        if torch.rand((), generator=generator) < 0.5:
            x, y = x.flip(-1), y.flip(-1)
        loss = weighted_loss(network, x, y, weights)
        if not loss.isfinite():
            raise RunError(f"the loss is {loss.item()} in the training after cut {step}: try more --steps")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    log(args.out, step=step, loss=loss.item())
    network.eval()


# ---- reporting -----------------------------------------------------------------------------------------------------


def sizes_and_speed(costs: dict, nominal, pruned, dense_data: dict, pruned_data: dict, x) -> dict:
    """Parameters, MACs, bytes and latency, with every ratio against the nominal and the live network."""
    result = {name: {"parameters": value.parameters, "macs": value.macs} for name, value in costs.items()}
    result["nominal"]["bytes"], result["pruned"]["bytes"] = map(cost.saved_bytes, (dense_data, pruned_data))
    for name in ("nominal", "live"):
        for key in ("parameters", "macs"):
            result["pruned"][f"{name}_{key}_ratio"] = result[name][key] / result["pruned"][key]
    models = {"nominal": nominal, "pruned": pruned}
    result["latency"] = [cost.latency(models, x, threads, runs=15, limit=10) for threads in (1, 2)]
    return result | {"hardware": hardware()}


def write_table(folder: Path, entries: list[Entry]) -> None:
    """table.csv, the same on stdout, and bars of importance and ratio as table.png."""
    head = ["block", "channels", "parameters %", "MACs %", "loss", "mIoU", "importance", "ratio"]
    rows = [[e.name, e.channels, e.parameters, e.macs, e.loss, e.miou, e.importance, e.ratio] for e in entries]
    with open(folder / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    width = max(len(entry.name) for entry in entries)
    print(f"{head[0]:{width}}" + "".join(f"{title:>13}" for title in head[1:]))
    for name, channels, *values in rows:
        print(f"{name:{width}}{channels:13d}" + "".join(f"{value:13.4f}" for value in values))

    line, left, bar = 16, 8 * width + 16, 200
    picture = Image.new("RGB", (left + 2 * bar + 24, (len(entries) + 1) * line + 8), "white")
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(("importance", "ratio removed")):
        draw.text((left + column * (bar + 12), 2), title, fill="black")
    largest = max(entry.importance for entry in entries) or 1.0
    for row, entry in enumerate(entries, 1):
        draw.text((4, row * line), entry.name, fill="black")
        for column, share in enumerate((entry.importance / largest, entry.ratio)):
            corner = left + column * (bar + 12), row * line
            draw.rectangle((*corner, corner[0] + round(share * bar), corner[1] + line - 4), fill=(70, 130, 180))
    pictures.save(picture, folder / "table.png")


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
