"""Feedback Magnitude Pruning: a quantised VGG10 that names 24 modulations, pruned as far as its accuracy allows.

    python feedback_magnitude_pruning.py                                   # makes frames, trains, prunes: half an hour
    python feedback_magnitude_pruning.py --method baseline --bits 8 --data-file FILE.hdf5 --out runs/amc_baseline
    python feedback_magnitude_pruning.py --preset fmp-4bit --data-file FILE.hdf5 \
        --checkpoint runs/amc_baseline/best.pt --out runs/fmp                # --resume after an interruption
    python feedback_magnitude_pruning.py --eval-only runs/fmp/best.pt --data-file FILE.hdf5
    python feedback_magnitude_pruning.py --cost --checkpoint runs/fmp/best.pt

FILE.hdf5 is RadioML 2018.01A, or python -m data.modulations FILE.hdf5. The baseline is the challenge's VGG10 with Adam
and a learning rate that falls on a plateau. IMP prunes a share p of the weights that are left and trains until the
accuracy on validation is back, again and again, until it fails (Han 2015, arXiv:1506.02626). FMP then goes back to the
last good network and divides p by n, down to --min-p (Krzyston, Rajagopal and Reynolds 2022). The test part is scored
once, at the end. One core without AMX trains 300 frames a second. The run's folder (runs/fmp unless --out names
another) gets config.json, log.jsonl, last.pt, unpruned.pt, best.pt, result.json and pictures/.
"""

import argparse
import copy
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from data import DataError
from data.modulations import KNOWN_FILES, SMALL_FILE, default_file
from data.radioml import MODULATIONS, SNRS, Frames, batches, fingerprint, open_cache, open_frames, split
from models import ModelError
from models.rebuild import describe, rebuild
from models.vgg10 import VGG10, from_checkpoint
from utils import checkpoint, evaluation, export, metrics, pictures, pruning_masks, training
from utils.cost import challenge_score, cost_table, inference_cost, weight_costs
from utils.dependency_graph import DependencyGraph, PruneError, prune
from utils.runs import RunError, StopSignal, command, hardware, join_processes, log, run, start, write_json

# what a user can mend: exit code 2
ERRORS = (DataError, ModelError, PruneError, checkpoint.CheckpointError, export.ExportError)
PRESETS = {"baseline": {"method": "baseline", "bits": 8}, "imp-4bit": {"method": "imp", "bits": 4}}
PRESETS |= {f"fmp-{bits}bit": {"method": "fmp", "bits": bits} for bits in range(4, 9)}
PRESET_OF = {"baseline": "baseline", "imp": "imp-4bit", "fmp": "fmp-4bit"}
EPOCHS, SMALL_EPOCHS, SMALL_BUDGET = 20, 8, 12  # of training, and with the small file of training and of pruning
CHALLENGE_BITS = 8  # of the challenge's baseline, whose file doesn't hold it
DROP_AFTER = 5  # epochs without improvement after which the learning rate falls to a tenth
# Of every step: epochs and batches done, falls of the learning rate, epochs without improvement, validation accuracy
BEGINNING = {"spent": 0, "batch": 0, "loss_sum": 0.0, "drops": 0, "waited": 0, "best": -1.0, "accuracy": None}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-file", type=Path, help=f"HDF5; default {' or '.join(KNOWN_FILES)} if there, else made")
    parser.add_argument("--out", type=Path, help="run folder, default runs/fmp; with --eval-only default none")
    parser.add_argument("--preset", choices=PRESETS, help="a published run; default fmp-4bit")
    parser.add_argument("--method", choices=PRESET_OF, help="baseline: train only; default from the preset")
    parser.add_argument("--checkpoint", type=Path, help="start from this network instead of training one")
    parser.add_argument("--bits", type=int, help="of weights and activations, 2 to 8; default from the preset")
    parser.add_argument("--filters", type=int, nargs="+", default=[64], help="of the convolutions, one number or seven")
    parser.add_argument("--dense", type=int, nargs="+", default=[128], help="hidden neurons, one number or two")
    parser.add_argument(
        "--epochs", type=int, help=f"of training without a --checkpoint, default {EPOCHS}, small file {SMALL_EPOCHS}"
    )
    parser.add_argument("--epoch-frames", type=int, help="frames of an epoch, default all of the training part")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam, at the start and after each cut")
    parser.add_argument("--schedule", choices=["plateau", "cosine"], default="plateau", help="how it falls")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order; the split is fixed")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS", help="a kill loses at most these")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="processes that generate frames, default all cores")
    parser.add_argument("--save-weights", type=Path, metavar="FILE.pt", help="also write the result + JSON to hand on")
    pruning = parser.add_argument_group("pruning")
    pruning.add_argument("--p", type=float, default=0.2, help="share of the remaining weights to prune at once")
    pruning.add_argument("--n", type=float, default=2.0, help="FMP divides p by it after a failure")
    pruning.add_argument("--min-p", type=float, help="stop below; default .05, structured .01")
    pruning.add_argument("--p-methods", nargs="+", choices=["structured", "unstructured"], default=["unstructured"])
    pruning.add_argument("--score", choices=pruning_masks.SCORES, default="magnitude", help="the lowest go first")
    pruning.add_argument("--keep", type=float, default=0.942, help="share of the first network's accuracy to hold")
    pruning.add_argument("--threshold", type=float, help="accuracy to hold instead, .56 in the challenge")
    pruning.add_argument("--step-epochs", type=int, default=50, help="most epochs to recover from one cut")
    pruning.add_argument("--patience", type=int, default=15, help="epochs without improvement that end a step")
    pruning.add_argument(
        "--budget", type=int, help=f"most epochs of all steps together, default any, small file {SMALL_BUDGET}"
    )
    pruning.add_argument("--fine-tune", action="store_true", help="recover at a tenth of --lr instead of rewinding it")
    pruning.add_argument("--learned-steps", action="store_true", help="learn the weights' scales (LSQ)")
    pruning.add_argument("--replay-faults", action="store_true", help="as published: a failure ends all training")
    others = parser.add_argument_group("instead of a run")
    others.add_argument("--eval-only", type=Path, metavar="CHECKPOINT", help="score ours or the challenge's network")
    others.add_argument("--part", choices=["test", "all"], default="test", help="what of the file --eval-only scores")
    others.add_argument("--cost", action="store_true", help="print the challenge's cost of --checkpoint, by layer")
    others.add_argument("--export", type=Path, metavar="FILE.onnx", help="write --checkpoint with integer weights")
    args = parser.parse_args(argv)
    file_bits = args.bits or CHALLENGE_BITS
    for name, value in PRESETS[args.preset or PRESET_OF[args.method or "fmp"]].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(args.batch_size, args.save_every, args.step_epochs, args.patience) < 1 or args.lr <= 0:
        parser.error("batch size, learning rate, patience and the like must be positive")
    if not 0 < args.p < 1 or args.n <= 1 or not 0 < args.keep <= 1 or not 0 < (args.threshold or args.keep) <= 1:
        parser.error("--p lies between 0 and 1, --n above 1, --keep and --threshold between 0 and 1")
    if any(value is not None and value <= 0 for value in (args.epochs, args.min_p, args.budget, args.epoch_frames)):
        parser.error("--epochs, --min-p, --budget and --epoch-frames must be positive")
    if args.cost or args.export or args.eval_only:
        args.bits = file_bits
    if (args.cost or args.export) and not args.checkpoint:
        parser.error("--cost and --export take the network from --checkpoint")
    if args.save_weights and args.save_weights.suffix != ".pt":
        parser.error("--save-weights takes a name that ends in .pt; the JSON is written beside it")
    args.filters, args.dense = (values if len(values) > 1 else values[0] for values in (args.filters, args.dense))
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    _, _, device = join_processes(args.device)
    if args.cost or args.export:
        network = from_checkpoint(checkpoint.load(args.checkpoint), args.bits).eval()
        print(cost_table(cost_of(network)))
        if args.export:
            export.export_integer_onnx(network, args.export)
            print(f"{args.export} written, {args.export.stat().st_size / 1e3:.0f} kB")
            compare_export(args, network)
        return 0
    args.data_file = args.data_file or default_file(args.workers)
    small = args.data_file == SMALL_FILE
    args.epochs = args.epochs or (SMALL_EPOCHS if small else EPOCHS)
    args.budget = args.budget or (SMALL_BUDGET if small else None)
    if args.eval_only:
        return score_file(args, device)

    # Data: the network reads integer codes, so those are what is kept
    frames = open_cache(open_frames(args.data_file), args.bits)
    parts = split(frames)
    known = fingerprint(frames)

    # The network; where the run was, if it goes on
    args.out = args.out or Path("runs/fmp")
    state = checkpoint.load(args.out / "last.pt") if args.resume and (args.out / "last.pt").exists() else None
    if state:
        network, masks, at = rebuild(state), state["masks"], state["at"]
    else:
        network, masks, at = first_network(args, parts, device)

    # The run's folder: written only now that everything could be read and built
    config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    config |= {"training_frames": len(parts["train"]), "data": known, "command": command()}
    free = {"out", "resume", "data_file", "save_every", "device", "workers", "save_weights", "command", "checkpoint"}
    start(args.out, config, args.resume, tuple(config.keys() - free))
    keep_lines(args.out / "log.jsonl", at["lines"])

    # Train; prune and train again until that fails
    network.to(device)
    masks = {name: mask.to(device) for name, mask in masks.items()}
    optimizer = new_optimizer(args, network, at)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    with StopSignal() as stop:
        while not at["finished"]:
            if not retrain(args, network, masks, optimizer, at, frames, parts, device, stop):
                print(f"stopped; {args.out}/last.pt holds everything, go on with --resume", file=sys.stderr)
                return 130
            network, masks = next_step(args, network, masks, at)
            optimizer = new_optimizer(args, network, at)
            save_last(args, network, masks, optimizer, at)

    # Report the result, once
    report_run(args, frames, parts["test"], at, device)
    return 0


def first_network(args, parts: dict, device: torch.device) -> tuple[VGG10, dict, dict]:
    """The network of a new run, masks that keep everything, and where the run is."""
    torch.manual_seed(args.seed)
    at = {"step": 0, "epoch": 0, "used": 0, "method": 0, "p": None, "prunes": {}, "rows": [], "lines": 0}
    at |= {"goal": math.inf, "stale": False, "finished": False, "history": [], **BEGINNING}
    if args.checkpoint is None:
        network = VGG10(args.bits, filters=args.filters, dense=args.dense, learned_steps=args.learned_steps)
    else:
        data = checkpoint.load(args.checkpoint)
        at["history"] = data.get("history", [data["command"]] if "command" in data else [])
        before = from_checkpoint(data, CHALLENGE_BITS)
        frames = open_cache(open_frames(args.data_file), before.activation_bits)
        reference = evaluation.amc_accuracy(before.to(device), frames, parts["validation"], device)
        network = before.cpu().requantised(args.bits)
        if args.learned_steps:
            network.learn_weight_steps()
        if args.method != "baseline":
            at["goal"] = args.threshold or args.keep * reference
            print(f"{args.checkpoint}: {reference:.4f} on validation, to be held: {at['goal']:.4f}", flush=True)
    at["weights"] = sum(layer.weight.numel() for layer in network.layers().values())
    return network, pruning_masks.nonzero_masks(network.weights()), at  # a network that was pruned before stays pruned


def retrain(args, network, masks, optimizer, at, frames, parts, device: torch.device, stop: StopSignal) -> bool:
    """Train until at["accuracy"] is at["goal"], or epochs or patience are spent; False if stopped, all is saved then.

    Without a goal (the baseline) all --epochs are trained and the best one is in best.pt.
    """
    limit = args.epochs if at["goal"] == math.inf else args.step_epochs
    batch_size = min(args.batch_size, len(parts["train"]))
    steps = max(1, min(args.epoch_frames or len(parts["train"]), len(parts["train"])) // batch_size)
    autocast = training.bf16_autocast(device)
    weights, rate = network.weights(), learning_rate(args, at, limit * steps)
    if at["accuracy"] is None:
        at["accuracy"] = 0.0
        if at["goal"] < math.inf:
            at["accuracy"] = evaluation.amc_accuracy(network, frames, parts["validation"], device)
    while at["accuracy"] < at["goal"] and at["spent"] < limit and hopeful(args, at):
        order = epoch_order(parts["train"], steps, batch_size, args.seed, at["epoch"])
        network.train()
        began, first = time.perf_counter(), at["batch"]
        title = f"step {at['step']}, epoch {at['spent'] + 1} of at most {limit}"
        todo = batches(frames, order[first * batch_size :], batch_size, device=device)
        for x, label in tqdm(todo, title, steps, initial=first, unit="step", leave=False, file=sys.stderr):
            with autocast:
                loss = F.cross_entropy(network(x), label)  # (B, 24), (B,)
            network.zero_grad()
            loss.backward()
            value = loss.item()
            if not math.isfinite(value):
                raise RunError(f"the loss is {value} in epoch {at['epoch'] + 1}: try a smaller --lr")
            optimizer.param_groups[0]["lr"] = rate(at["spent"] * steps + at["batch"])
            optimizer.step()
            pruning_masks.apply_masks(weights, masks)
            at["batch"] += 1
            at["loss_sum"] += value
            if stop.requested or at["batch"] % args.save_every == 0:
                save_last(args, network, masks, optimizer, at)
            if stop.requested:
                return False
        speed = (steps - first) * batch_size / (time.perf_counter() - began)
        at["accuracy"] = evaluation.amc_accuracy(network, frames, parts["validation"], device)
        line = {"loss": at["loss_sum"] / steps, "lr": optimizer.param_groups[0]["lr"]}
        at.update(epoch=at["epoch"] + 1, spent=at["spent"] + 1, batch=0, loss_sum=0.0)
        at["used"] += at["goal"] < math.inf
        if at["accuracy"] > at["best"]:
            at.update(best=at["accuracy"], waited=0)
            if at["goal"] == math.inf:
                save_network(args, args.out / "best.pt", network, masks, at)
        else:
            at["waited"] += 1
            at["drops"] += args.schedule == "plateau" and at["waited"] % DROP_AFTER == 0
        line = {"epoch": at["epoch"], "step": at["step"], **line, "validation": at["accuracy"]}
        note(args, at, **line, samples_per_second=round(speed, 1))
        print("  ".join(f"{key} {value:.4g}" for key, value in line.items()), flush=True)
        save_last(args, network, masks, optimizer, at)
    return True


def hopeful(args, at: dict) -> bool:
    """Whether patience and budget allow another epoch; training without a goal asks for neither."""
    return at["goal"] == math.inf or (at["waited"] < args.patience and at["used"] < (args.budget or math.inf))


def learning_rate(args, at: dict, total: int):
    """Function of the optimizer steps that are done: rewound after each cut (Renda 2020, arXiv:2003.02389)."""
    first = args.lr * (0.1 if args.fine_tune and at["step"] else 1)
    if args.schedule == "cosine":
        return lambda done: first * (0.5 + 0.5 * math.cos(math.pi * done / total))
    return lambda done: first * 0.1 ** at["drops"]


def new_optimizer(args, network: VGG10, at: dict) -> torch.optim.Optimizer:
    """Adam without a past. After a failure the published script keeps the optimizer of the network that it gave up."""
    parameters = (copy.deepcopy(network) if at["stale"] else network).parameters()
    return torch.optim.Adam(parameters, args.lr, fused=next(network.parameters()).device.type in ("cpu", "cuda"))


def epoch_order(rows: np.ndarray, steps: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch batch after batch, a function of seed and epoch; ascending in a batch, as disks like it."""
    order = training.epoch_order(len(rows), steps * batch_size, seed, epoch).numpy()
    return np.sort(rows[order].reshape(steps, batch_size), axis=1).ravel()


def next_step(args, network: VGG10, masks: dict, at: dict) -> tuple[VGG10, dict]:
    """Judge what was trained: keep it, or go back to the last good network; then cut again, or finish."""
    if at["goal"] == math.inf:  # trained from scratch: its best epoch counts
        network, masks = good_network(args)
        at.update(accuracy=at["best"], goal=args.threshold or args.keep * at["best"])
    good = at["accuracy"] >= at["goal"]
    add_row(args, network, at, good)
    if args.method == "baseline":
        at["finished"] = True
        return network, masks
    if good:
        save_network(args, args.out / "best.pt", network, masks, at)
        if at["step"] == 0:
            save_network(args, args.out / "unpruned.pt", network, masks, at)
    elif at["step"] == 0:
        raise RunError(
            f"without any cut the network has {at['accuracy']:.4f} on validation, {at['goal']:.4f} is to be held: "
            "with another --out, train it longer (--epochs, --step-epochs), or lower --keep or --threshold"
        )
    else:
        network, masks = good_network(args)
        at["p"] = at["p"] / args.n if args.method == "fmp" else 0.0
        if args.replay_faults:  # the file it goes back to holds no masks, and the optimizer moves another network
            masks, at["stale"] = pruning_masks.ones(masks), True
    device = next(network.parameters()).device
    while at["method"] < len(args.p_methods) and at["used"] < (args.budget or math.inf):
        structured = args.p_methods[at["method"]] == "structured"
        if at["p"] is None:  # a method begins; whole filters go in smaller shares, as published
            at["p"] = args.p / args.n if structured else args.p
        if at["p"] >= (args.min_p or (0.01 if structured else 0.05)):
            smaller = (cut_filters if structured else cut_weights)(args, network, masks, at["p"])
            if smaller:
                at["step"] += 1
                at.update(BEGINNING)
                return smaller[0].to(device), {name: mask.to(device) for name, mask in smaller[1].items()}
        at.update(method=at["method"] + 1, p=None)
    at["finished"] = True
    return network, masks


def cut_weights(args, network: VGG10, masks: dict, p: float) -> tuple[VGG10, dict] | None:
    """Set a share p of the weights that are left to zero, the lowest scores of all layers; None if none can go.

    What rounds to zero at a cut goes with it; what comes back between two cuts is left, and counted, again.
    """
    weights = network.weights()
    codes = {f"{name}.weight": layer.weight_codes() for name, layer in network.layers().items()}
    kept = masks if args.replay_faults else pruning_masks.alive(codes, masks)  # published: what rounds to zero counts
    scored = pruning_masks.scores(weights, kept, args.score, weight_costs(cost_of(network)))
    masks = pruning_masks.remove(scored, kept, p)
    if all(torch.equal(masks[name], kept[name]) for name in masks):
        return None
    pruning_masks.apply_masks(weights, masks)
    return network, masks


def cut_filters(args, network: VGG10, masks: dict, p: float) -> tuple[VGG10, dict] | None:
    """Take a share p of all filters and hidden neurons out of the network; the other weights stay as they are."""
    network, masks = copy.deepcopy(network).cpu(), {name: mask.cpu() for name, mask in masks.items()}
    weights, costs = network.weights(), weight_costs(cost_of(network))
    graph = DependencyGraph(network, torch.zeros(2, 2, network.samples))
    costs = costs if "cost" in args.score else None
    worth = {group.name: pruning_masks.unit_scores(group, weights, masks, costs) for group in graph.groups}
    units = pruning_masks.lowest_units(worth, p)
    if not units:
        return None
    plan = graph.make_plan(units)
    return prune(network, plan), pruning_masks.cut(masks, plan.remove)


def cost_of(network: VGG10) -> dict:
    return inference_cost(network, torch.zeros(1, 2, network.samples, device=network.output.weight.device))


def add_row(args, network: VGG10, at: dict, good: bool) -> None:
    """What a step came to: a line on stdout and in log.jsonl, a row of the result."""
    cost = challenge_score(cost_of(network))
    method = args.p_methods[at["method"]] if at["step"] else "-"
    if good and at["step"]:
        at["prunes"][str(at["p"])] = at["prunes"].get(str(at["p"]), 0) + 1
    paper = math.prod((1 - float(p)) ** -count for p, count in at["prunes"].items())
    row = {"step": at["step"], "method": method, "p": at["p"] or 0.0, "nonzero": cost["nonzero"]}
    row |= {"compression": at["weights"] / cost["nonzero"], "paper_formula": paper}
    row |= {key: cost[key] for key in ("bops", "weight_bits", "score")}
    row |= {"validation": at["accuracy"], "epochs": at["spent"], "good": good}
    at["rows"].append(row)
    note(args, at, epoch=at["epoch"], **row)
    print("  ".join(f"{key} {value:.6g}" if type(value) is float else f"{key} {value}" for key, value in row.items()))


def note(args, at: dict, **values) -> None:
    """A line of log.jsonl; last.pt knows how many there are, so that a resumed run writes none twice."""
    at["lines"] += 1
    log(args.out, **values)


def keep_lines(path: Path, count: int) -> None:
    """Drop what was logged after the state that a resumed run goes on from."""
    if path.exists():
        path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:count]))


def save_last(args, network: VGG10, masks: dict, optimizer: torch.optim.Optimizer, at: dict) -> None:
    """Everything that going on needs; the order of frames follows from seed and epoch, nothing else is random."""
    inner = {"masks": masks, "optimizer": optimizer.state_dict(), "at": at}
    checkpoint.save(args.out / "last.pt", saved(network, args) | inner)


def save_network(args, path: Path, network: VGG10, masks: dict, at: dict) -> None:
    place = {"masks": masks, "validation": at["accuracy"], "step": at["step"], "epoch": at["epoch"]}
    place["history"] = [*at["history"], command()]
    checkpoint.save(path, saved(network, args) | place)


def saved(network: VGG10, args) -> dict:
    """A network as models.rebuild reads it, and where it comes from."""
    origin = {"kind": "modulation", "classes": list(MODULATIONS), "seed": args.seed, "command": command()}
    return describe(network, "models.vgg10.VGG10", network.arguments()) | origin


def good_network(args) -> tuple[VGG10, dict]:
    """The last good network with weights, quantiser state and masks."""
    data = checkpoint.load(args.out / "best.pt", args.device)
    return rebuild(data).to(args.device), data["masks"]


def report_run(args, frames: Frames, rows: np.ndarray, at: dict, device: torch.device) -> None:
    """Score the result, and what it was pruned from, on the test part; --save-weights."""
    data = checkpoint.load(args.out / "best.pt")
    if args.save_weights:  # what is reported is then what that file holds
        data["state_dict"] = checkpoint.halve(data["state_dict"])
    networks = {"test": rebuild(data).to(device)}
    facts = {"trained_by": data["command"], "commands": data["history"]}
    facts |= {"method": args.method, "bits": args.bits, "seed": args.seed}
    facts |= {"goal": at["goal"], "validation": data["validation"], "epochs": at["epoch"], "pruning_epochs": at["used"]}
    if at["step"]:
        networks["unpruned"] = rebuild(checkpoint.load(args.out / "unpruned.pt")).to(device)
        true = at["weights"] / challenge_score(cost_of(networks["test"]))["nonzero"]
        formula = at["rows"][-1]["paper_formula"]
        facts |= {"true_compression": true, "compression_by_the_papers_formula": formula}
    facts = report(args, networks, frames, rows, device, facts | {"steps": at["rows"]})
    if at["step"]:
        print(f"true compression {true:.2f}x (the paper's formula, 1 / (1 - p) of each good step: {formula:.2f}x)")
        pictures.draw_steps(args.out / "pictures" / "score_and_accuracy.png", at["rows"])
    if args.save_weights:
        kept = {key: value for key, value in data.items() if key != "masks"}
        checkpoint.save_weights(args.save_weights, kept, facts)
        print(f"{args.save_weights} written, {args.save_weights.stat().st_size / 1e3:.0f} kB")


def report(args, networks: dict, frames: Frames, rows: np.ndarray, device: torch.device, facts: dict) -> dict:
    """Score networks on some rows: tables of the first on stdout, result.json and pictures in --out; all facts."""
    counts = {name: evaluation.evaluate_amc(network, frames, rows, device) for name, network in networks.items()}
    sets = {name: metrics.snr_scores(values, MODULATIONS, SNRS) for name, values in counts.items()}
    first = next(iter(networks))
    layers = cost_of(networks[first])
    print(cost_table(layers))
    print(metrics.snr_table(sets[first], SNRS))
    print(", ".join(f"accuracy of {name} {values['accuracy']:.4f}" for name, values in sets.items()))
    facts |= {"data": frames.path.name, "scored_by": command(), "hardware": hardware(device)}
    facts |= {"torch": torch.__version__, "cost": challenge_score(layers), "sets": sets}
    facts |= {"layers": {name: layer._asdict() for name, layer in layers.items()}}
    if args.out:
        pictures.draw_snr_scores(args.out / "pictures", sets, counts[first], MODULATIONS, SNRS)
        write_json(args.out / "result.json", facts)
        print(f"{args.out}/result.json has all of it, {args.out}/pictures the curves")
    return facts


def score_file(args, device: torch.device) -> int:
    """--eval-only: the test part of a file, or all of it."""
    if args.out and (args.out / "last.pt").exists():
        raise RunError(f"{args.out} holds a training run, its result.json is its own: choose another folder with --out")
    network = from_checkpoint(checkpoint.load(args.eval_only), args.bits).to(device)
    frames = open_frames(args.data_file)
    rows = split(frames)["test"] if args.part == "test" else np.arange(len(frames))
    report(args, {args.part: network}, frames, rows, device, {})
    return 0


def compare_export(args, network: VGG10) -> None:
    """Tell how many answers of ONNX Runtime differ from the network's, on up to 500 test frames."""
    frames = open_frames(args.data_file or default_file(args.workers, few=True))
    rows = split(frames)["test"]
    x = frames.samples(rows[:: -(-len(rows) // 500)])
    try:
        wrong = export.different_answers(network, args.export, x)
    except export.ExportError as error:
        print(f"not compared with the network: {error}")
    else:
        print(f"{wrong} of {len(x)} frames are named otherwise than by the network")


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
