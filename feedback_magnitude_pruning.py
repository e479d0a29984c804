"""Feedback Magnitude Pruning: prune a quantised VGG10 for 24 modulations as far as its accuracy allows.

    python feedback_magnitude_pruning.py                                   # prunes weights/amc_baseline.pt: 15 minutes
    python feedback_magnitude_pruning.py --data-file FILE.hdf5 --checkpoint runs/amc/best.pt --out runs/fmp
    python feedback_magnitude_pruning.py --data-file FILE.hdf5 --score lamp --p 0.4 --resume   # goes on if interrupted
    python feedback_magnitude_pruning.py --data-file FILE.hdf5 --moves --p .3 --alpha 1 --schedule cosine  # cheapest
    torchrun --nproc-per-node=2 feedback_magnitude_pruning.py --data-file FILE.hdf5                 # several devices

FILE.hdf5 is RadioML 2018.01A, or python -m data.modulations FILE.hdf5; without it a small file is made. train_amc.py
trains networks for --checkpoint. IMP (iterative magnitude pruning, Han 2015, arXiv:1506.02626) prunes a share p of the
remaining weights, trains until the accuracy on validation is back, and repeats this until it fails. FMP (Krzyston,
Rajagopal and Reynolds 2022) then goes back to the last good network, divides p by n, and goes on until p is below
--min-p. The accuracy to reach is .942 of that of --checkpoint: the challenge asks for .56 where its baseline has .595.
With --moves feedback chooses each cut: a share of the weights or filters, or a bit of a layer (utils/pruning_masks.py).
A "step" is one cut and the training that follows it; step 0 has no cut and trains the network at its new widths. A
"frame" is 1024 samples with one modulation. The test part is scored once, at the end. A core does 300 to 800 a second.
The folder gets config.json, log.jsonl, last.pt, unpruned.pt (step 0), best.pt (last good), result.json, pictures/.
"""

import argparse
import copy
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from data import DataError
from data.code_cache import open_cache
from data.modulations import KNOWN_FILES, SMALL_FILE, default_file
from data.radioml import Frames, batches, fingerprint, open_frames, resident, split
from models import ModelError
from models.joint_norm import join_batch_norm
from models.rebuild import rebuild
from models.vgg10 import VGG10, from_checkpoint, per_layer
from utils import checkpoint, evaluation, pictures, pruning_masks, release, runs, training
from utils.cost import challenge_score, papers_compression
from utils.dependency_graph import PruneError
from utils.kd_losses import pixel_kd
from utils.pruning_masks import MOVES, SCORES, Cuts, Moves, Pruned, Series, apply_masks, cost_of
from utils.runs import RunError, StopSignal, command, first_process, in_turn, mean_over_processes, path, rank_and_world
from utils.training import CapturedStep, LossReader, Progress, bf16_autocast, distributed, epoch_rows, falling_rate

ERRORS = (DataError, ModelError, PruneError, checkpoint.CheckpointError)  # what a user can mend: exit code 2
BASELINE = Path(__file__).parent / "weights" / "amc_baseline.pt"
PRESETS = {"imp-4bit": ("imp", 4)} | {f"fmp-{bits}bit": ("fmp", bits) for bits in range(4, 9)}  # method and bits
SMALL_BUDGET = 12  # default of --budget with the small generated file
SHARE, CUT = runs.real(above=0, most=1), runs.real(above=0, most=0.99)  # a cut of 1 would leave nothing
BEST = {"command": str, "history": list[str], "validation": float, "masks": dict[str, torch.Tensor]}  # in best.pt


@dataclass
class State:
    """Where a run is; last.pt holds these values."""

    goal: float  # accuracy on validation that a pruned network has to hold
    weights: int  # of the network before all cuts
    feedback: Series | Moves  # what to cut next
    history: list[str]  # commands that made the network of --checkpoint
    seed: int  # of the order of frames
    first_goal: float | None = None  # with --moves: the same on the frames of a first look
    step: int = 0
    epoch: int = 0  # of all steps together
    lines: int = 0  # of log.jsonl: a resumed run drops later ones, so that none is written twice
    stale: bool = False  # a replayed fault: the optimizer moves a network that has been given up
    finished: bool = False
    rows: list[pruning_masks.Row] = field(default_factory=list)  # one for each step, see add_row
    recovery: Progress = field(default_factory=Progress)  # of the training after the latest cut
    held: bool = False  # whether the latest look saw the accuracy held


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-file", type=path, help=f"HDF5; default {' or '.join(KNOWN_FILES)} if there, else made")
    parser.add_argument("--out", type=path, default=Path("runs/fmp"), help="run folder, default runs/fmp")
    parser.add_argument("--checkpoint", type=path, default=BASELINE, help="prune it; default weights/amc_baseline.pt")
    parser.add_argument("--teacher", type=path, help="sets the accuracy to hold, and teaches; default --checkpoint")
    parser.add_argument("--preset", choices=PRESETS, help="a published run; default fmp-4bit")
    parser.add_argument("--method", choices=["imp", "fmp"], help="default from the preset")
    parser.add_argument("--bits", type=runs.whole(2, 8), nargs="+", help="of weights, one or ten; else the preset's")
    parser.add_argument("--activation-bits", type=runs.whole(2, 8), nargs="+", help="of what layers read; else --bits")
    parser.add_argument("--input-bits", type=runs.whole(2, 8), help="of what the first one reads, default the same")
    parser.add_argument("--keep-bits", action="store_true", help="keep the widths of --checkpoint instead")
    parser.add_argument("--learned-steps", action="store_true", help="learn the quantiser steps of weights (LSQ)")
    parser.add_argument("--seed", type=runs.seed, default=0, help="of the order of frames; the split is fixed")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--save-every", type=runs.count, metavar="N", help="steps a last.pt, default 200, CUDA 1000")
    parser.add_argument("--device", type=runs.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=runs.processes, help="processes that generate frames, default all cores")
    parser.add_argument("--save-weights", type=runs.weights_file, metavar="FILE.pt", help="also write these, + JSON")
    cuts = parser.add_argument_group("cuts")
    cuts.add_argument("--p", type=CUT, default=0.2, help="share of remaining weights to prune, default .2")
    cuts.add_argument("--n", type=runs.real(above=1, most=99), default=2.0, help="divides p after a failure, default 2")
    cuts.add_argument("--min-p", type=SHARE, help="least p; default .05, structured .01, prune .02")
    ways, tells = ["structured", "unstructured"], "whole filters, or single weights (default); several in turn"
    cuts.add_argument("--p-methods", nargs="+", choices=ways, default=["unstructured"], help=tells)
    tells = f"feedback chooses among these instead, default all: {', '.join(MOVES)}"
    cuts.add_argument("--moves", nargs="*", choices=MOVES, metavar="MOVE", help=tells)
    cuts.add_argument("--score", choices=SCORES, help="the lowest go first; default magnitude, with --moves lamp-cost")
    cuts.add_argument("--keep", type=SHARE, default=0.942, help="share of --teacher's accuracy, default .942")
    cuts.add_argument("--threshold", type=SHARE, help="accuracy to hold instead, .56 in the challenge")
    cuts.add_argument("--replay-faults", action="store_true", help="as published: a failure ends all training")
    after = parser.add_argument_group("training after a cut")
    after.add_argument("--step-epochs", type=runs.count, default=50, help="most epochs of one step, default 50")
    after.add_argument("--patience", type=runs.count, default=15, help="epochs without improvement, default 15")
    after.add_argument("--budget", type=runs.count, help=f"most epochs of all; with the small file {SMALL_BUDGET}")
    after.add_argument("--epoch-frames", type=runs.count, help="frames of an epoch, default the whole training part")
    after.add_argument("--batch-size", type=runs.whole(2), help="for each process, default 128, on CUDA 512")
    after.add_argument("--lr", type=runs.positive, help="of Adam after each cut, default 1e-3, on CUDA 2e-3")
    after.add_argument("--schedule", choices=["plateau", "cosine"], default="plateau", help="how the rate falls")
    after.add_argument("--fine-tune", action="store_true", help="recover at a tenth of --lr instead of rewinding it")
    after.add_argument("--alpha", type=runs.weight, default=0.0, help="of the teacher (KD), default 0")
    after.add_argument("--beta", type=runs.weight, default=1.0, help="of the labels, default 1")
    after.add_argument("--temperature", type=runs.positive, default=1.0, help="of KD, default 1")
    args = parser.parse_args(argv)
    method, bits = PRESETS[args.preset or f"{args.method or 'fmp'}-4bit"]
    args.method, args.bits = args.method or method, args.bits or [bits]
    runs.fill_in(args, training.amc_defaults(args.device))
    args.teacher = args.teacher or args.checkpoint
    args.moves = list(MOVES) if args.moves == [] else args.moves
    args.score = args.score or ("lamp-cost" if args.moves else "magnitude")
    if args.moves and (args.method == "imp" or args.replay_faults):
        parser.error("--moves goes back and goes on: leave out --method imp, --preset imp-4bit and --replay-faults")
    if args.alpha == args.beta == 0:
        parser.error("--alpha or --beta must teach the network something: both are 0")
    if args.keep_bits and (args.activation_bits or args.input_bits):
        parser.error("--keep-bits keeps all widths: leave out --activation-bits and --input-bits")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    _, world, device = runs.join_processes(args.device)

    # Network, masks and state: from last.pt if the run goes on
    args.data_file = args.data_file or in_turn(lambda: default_file(args.workers), DataError)
    args.budget = args.budget or (SMALL_BUDGET if args.data_file == SMALL_FILE else None)
    source = open_frames(args.data_file)
    parts = split(source)
    cuts = Cuts(args.method, args.n, args.p, args.min_p, args.score, args.replay_faults)
    last = args.out / "last.pt"
    form = {"masks": dict[str, torch.Tensor], "state": State}
    before = checkpoint.resumed(last, args.resume, form, from_checkpoint, "modulation")
    if before:
        model, state = Pruned(rebuild(before), before["masks"]), checkpoint.restored(State, before["state"])
    else:
        model, state = begin(args, cuts, source, parts["validation"], device)
    model = model.to(device)
    optimizer = new_optimizer(model.network, args.lr, state.stale)
    if before:
        optimizer.load_state_dict(before["optimizer"])

    # Data: the input layer rounds samples to codes of its bits, so a cache beside the file holds the codes already
    frames = in_turn(lambda: open_cache(source, model.network.input.bits), DataError)

    # The run's folder: written only now that everything could be read and built
    config = runs.config_of(args, processes=world, training_frames=len(parts["train"]), data=fingerprint(frames))
    must_match = runs.decisive(config, "checkpoint", "teacher")
    first_process(lambda: runs.start(args.out, config, args.resume, must_match), RunError)
    state.lines = first_process(lambda: runs.keep_lines(args.out, state.lines))
    frames = resident(frames, device)
    judge = evaluation.Judge(frames, parts, device, state.goal, state.first_goal, not args.replay_faults)
    taught = None
    if args.alpha and not state.finished:
        teacher = from_checkpoint(checkpoint.load(args.teacher)).to(device)
        codes = in_turn(lambda: open_cache(source, teacher.input.bits), DataError)
        taught = evaluation.KeptLogits.of(teacher, codes, parts["train"], device)

    # Train until the accuracy is back; keep the network, or go back to the last good one; cut again
    with StopSignal() as stop:
        while not state.finished:
            if not recover(args, model, optimizer, state, judge, taught, stop):
                runs.say(f"stopped; {last} holds everything, go on with --resume", sys.stderr)
                return 130
            model = keep_or_go_back(args.out, model, state, cuts)
            spent = state.epoch >= (args.budget or math.inf)
            smaller = None if spent else state.feedback.next(model, cuts, judge.probe)
            if smaller:
                model, state.recovery, state.step = smaller.to(device), Progress(), state.step + 1
            state.finished = smaller is None
            optimizer = new_optimizer(model.network, args.lr, state.stale)
            save_last(args.out, model, optimizer, state)

    # Score the result, and the network without any cut, on the test part, once
    best = checkpoint.load_shared(args.out / "best.pt", "cpu", "modulation", BEST)
    if args.save_weights:  # what is reported is then what that file holds
        best["state_dict"] = checkpoint.halve(rebuild(best).on_codes().state_dict())
    facts = report(args, best, state, frames, parts["test"], device)
    if args.save_weights:
        release.write(args.save_weights, {key: best[key] for key in best if key != "masks"}, facts)
    return 0


def begin(args, cuts: Cuts, source: Frames, rows, device: torch.device) -> tuple[Pruned, State]:
    """The network to prune, at its new widths, and the accuracy that it has to hold on the validation `rows`."""
    data = checkpoint.load(args.checkpoint)
    teacher = from_checkpoint(checkpoint.load(args.teacher)).to(device)
    codes = in_turn(lambda: open_cache(source, teacher.input.bits), DataError)
    reference, on_first_look = evaluation.Judge.references(teacher, codes, rows, device)
    goal, first_goal = (args.threshold or args.keep * accuracy for accuracy in (reference, on_first_look))
    runs.say(f"{args.teacher}: {reference:.4f} on validation, to be held: {goal:.4f}")
    network = from_checkpoint(data)
    if not args.keep_bits:
        read = per_layer(args.activation_bits or args.bits)
        network = network.requantised(args.bits, (args.input_bits or read[0], *read[1:]))
    if args.learned_steps:
        network.learn_weight_steps()
    weights = sum(weight.numel() for weight in network.weights().values())
    feedback = Moves.begin(args.moves, cuts) if args.moves else Series(list(args.p_methods))
    history = data.get("history", [data["command"]] if "command" in data else [])
    state = State(goal, weights, feedback, history, args.seed, first_goal if args.moves else None)
    return Pruned(network, pruning_masks.nonzero_masks(network.weights())), state  # what was pruned before stays pruned


def recover(args, model: Pruned, optimizer, state: State, judge, taught, stop: StopSignal) -> bool:
    """The training loop of a step, until accuracy, epochs, patience or budget end it; False if the user stopped it."""
    network, masks = model
    rank, world = rank_and_world()
    now, weights, device, rows = state.recovery, network.weights(), judge.device, judge.parts["train"]
    batch_size = min(args.batch_size, len(rows))
    batch_count = max(1, min(args.epoch_frames or len(rows), len(rows)) // (batch_size * world))
    lr = args.lr * (0.1 if args.fine_tune and state.step else 1)  # rewound at each cut (Renda 2020, arXiv:2003.02389)
    longest = args.step_epochs * state.feedback.stretch
    limit = min(longest, now.epochs + (args.budget or math.inf) - state.epoch)
    autocast = bf16_autocast(device)
    trained = distributed(join_batch_norm(network), unused=True)  # thresholds have no gradient in their initial steps

    def update(x, label, wanted=None):  # all that a step changes on the device
        with autocast:
            logits = trained(x)  # (B, 24)
            loss = args.beta * F.cross_entropy(logits, label)
            if wanted is not None:
                loss = loss + args.alpha * pixel_kd(logits, wanted, args.temperature)
        network.zero_grad()  # not the optimizer's: it may hold another network, see new_optimizer
        loss.backward()
        optimizer.step()
        apply_masks(weights, masks)
        return loss.detach()

    # Each cut has a graph of its own; it can be captured once the thresholds are learned
    train_step, losses = CapturedStep(update, optimizer, ready=lambda: network.learning), LossReader(device)
    if now.accuracy is None:
        now.accuracy, state.held = judge(network)

    while not state.held and now.epochs < limit and now.waited < args.patience:
        order = epoch_rows(rows, batch_count, batch_size * world, args.seed, state.epoch)[rank::world]
        order = order[now.batch * batch_size :]
        left = batches(judge.frames, order, batch_size, device=device)
        left = taught.beside(left, order, batch_size) if taught else left
        title, first = f"step {state.step}, epoch {now.epochs + 1} of at most {limit}", now.batch
        began = time.perf_counter()
        network.train()
        for inputs in tqdm(left, title, batch_count, False, sys.stderr, initial=first, unit="batch", disable=rank > 0):
            done, total = now.epochs * batch_count + now.batch, longest * batch_count
            optimizer.param_groups[0]["lr"] = falling_rate(lr, args.schedule, done, total, now.drops)
            loss = train_step(*inputs)
            now.batch += 1
            stopping, due = stop.requested, now.batch % args.save_every == 0
            read = losses.add(loss, now=stopping or due or now.batch == batch_count)
            for at, value in enumerate(read, now.batch - len(read)):
                value, stopping = mean_over_processes([value, float(stopping)])
                runs.check_loss(value, state.epoch, at, args.out)
                now.loss_sum += value
            if stopping or due:
                save_last(args.out, model, optimizer, state)
            if stopping:
                return False
        speed = (batch_count - first) * batch_size * world / (time.perf_counter() - began)

        # Judge on the validation part
        state.epoch += 1
        line = {"epoch": state.epoch, "step": state.step, "loss": now.loss_sum / batch_count}
        accuracy, state.held = judge(network)
        now.end_epoch(accuracy)
        line |= {"lr": optimizer.param_groups[0]["lr"], "validation": now.accuracy}
        runs.tell(args.out, line, frames_per_second=round(speed, 1))
        state.lines += 1
        save_last(args.out, model, optimizer, state)
    return True


def new_optimizer(network: VGG10, lr: float, stale: bool) -> torch.optim.Adam:
    """A fresh Adam; if `stale`, of a network that has been given up, as the published script has it after a failure."""
    fused = next(network.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.Adam((copy.deepcopy(network) if stale else network).parameters(), lr, fused=fused)


def keep_or_go_back(out: Path, model: Pruned, state: State, cuts: Cuts) -> Pruned:
    """Note the step. A network that holds the accuracy is saved; else p falls, and the last good one is returned.

    Raises:
        RunError: the network doesn't hold the accuracy though nothing has been cut.
    """
    cost = challenge_score(cost_of(model.network))
    good = state.held and state.feedback.lowers(cost["score"])
    add_row(out, cost, state, good)
    if good:
        chosen = {"masks": model.masks, "validation": state.recovery.accuracy, "step": state.step}
        chosen |= {"epoch": state.epoch, "history": [*state.history, command()]}
        for name in ("best.pt", "unpruned.pt") if state.step == 0 else ("best.pt",):
            checkpoint.save(out / name, evaluation.describe_amc(model.network, state.seed) | chosen)
    elif state.step == 0:
        raise RunError(
            f"without any cut the network has {state.recovery.accuracy:.4f} on validation, {state.goal:.4f} is to be "
            "held: with another --out allow more training (--step-epochs, --budget), or lower --keep or --threshold"
        )
    state.feedback.note(good, cost["score"], cuts)
    if good:
        return model
    best = checkpoint.load_shared(out / "best.pt", "cpu", "modulation", BEST)
    state.stale = cuts.replay_faults  # as published: the optimizer moves another network, and the masks are lost
    masks = pruning_masks.ones(best["masks"]) if cuts.replay_faults else best["masks"]
    return Pruned(rebuild(best), masks).to(next(model.network.parameters()).device)


def add_row(out: Path, cost: dict, state: State, good: bool) -> None:
    """What a step came to: a line on stdout and in log.jsonl, a row of result.json."""
    cut = state.feedback.facts() if state.step else {"method": "-", "p": 0.0}
    row = {"step": state.step, "method": cut["method"], "p": cut["p"]}
    row |= {"nonzero": cost["nonzero"], "compression": state.weights / cost["nonzero"]}
    row["paper_formula"] = papers_compression([*state.rows, row | {"good": good}])
    row |= {key: cost[key] for key in ("bops", "weight_bits", "score")}
    row |= {"validation": state.recovery.accuracy, "epochs": state.recovery.epochs, "good": good} | cut
    state.rows.append(row)
    runs.log(out, epoch=state.epoch, **row)
    state.lines += 1
    shown = {key: f"{value:.6g}" if type(value) is float else value for key, value in row.items() if key != "probed"}
    runs.say("  ".join(f"{key} {value}" for key, value in shown.items()))


def save_last(out: Path, model: Pruned, optimizer: torch.optim.Adam, state: State) -> None:
    """Everything that going on needs; the order of frames follows from seed and epoch, nothing else is random."""
    inner = {"masks": model.masks, "optimizer": optimizer.state_dict(), "state": asdict(state)}
    checkpoint.save(out / "last.pt", evaluation.describe_amc(model.network, state.seed) | inner)


def report(args, best: dict, state: State, frames, rows, device: torch.device) -> dict:
    """Score the result and the network without any cut; the facts of result.json."""
    out = args.out
    unpruned = checkpoint.load_shared(out / "unpruned.pt")
    networks = {"test": rebuild(best).to(device), "unpruned": rebuild(unpruned).to(device)}
    true = state.weights / challenge_score(cost_of(networks["test"]))["nonzero"]
    formula = papers_compression(state.rows)
    facts = {"method": "moves" if args.moves else args.method, "bits": networks["test"].bits}
    facts |= {"trained_by": best["command"], "commands": best["history"], "seed": state.seed, "goal": state.goal}
    facts |= {"validation": best["validation"], "epochs": state.epoch, "steps": state.rows}
    facts |= {"true_compression": true, "compression_by_the_papers_formula": formula}
    facts = evaluation.report_amc(networks, frames, rows, device, facts, out)
    runs.say(f"true compression {true:.2f}x (the paper's formula, 1 / (1 - p) of each good step: {formula:.2f}x)")
    if facts:
        pictures.draw_steps(out / "pictures" / "score_and_accuracy.png", state.rows)
    return facts


if __name__ == "__main__":
    sys.exit(runs.run(main, *ERRORS))
