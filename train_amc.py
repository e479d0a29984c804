"""Train the quantised baseline: a VGG10 of 8 bits that tells 24 modulations apart from 1024 samples of I and Q.

    python train_amc.py                                                    # makes a small file, 8 epochs: 10 minutes
    python train_amc.py --data-file FILE.hdf5 --out runs/amc               # 20 epochs; --resume after an interruption
    python train_amc.py --data-file FILE.hdf5 --checkpoint weights/amc_baseline.pt --lr 3e-4 --out runs/amc_further
    python train_amc.py --filters 16 --dense 32 --epoch-frames 2560        # a small network, a minute
    torchrun --nproc-per-node=2 train_amc.py --data-file FILE.hdf5         # several devices

FILE.hdf5 is RadioML 2018.01A, or python -m data.modulations FILE.hdf5. The network is that of ITU's lightning-fast
modulation challenge (models/vgg10.py), trained by Adam. The best epoch is chosen on the validation part; the test part
is scored once, at the end. The shipped weights/amc_baseline.pt has an accuracy of .589 on the test part of a generated
file, over all signal-to-noise ratios from -20 to +30 dB. One core without AMX (the matrix unit of newer Xeons) trains
300 frames a second. On CUDA a step is one CUDA graph (utils/training.py), data that fit lie on the GPU, and batch size
and learning rate have defaults of their own. Several devices compute what one does with their joint batch, statistics
and percentiles included. feedback_magnitude_pruning.py prunes the result. The run's folder gets config.json, log.jsonl,
last.pt, best.pt, result.json and pictures/.

"Frame" means one example here: 1024 samples with one modulation and one signal-to-noise ratio.
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from data import DataError
from data.code_cache import open_cache
from data.modulations import KNOWN_FILES, SMALL_FILE, default_file
from data.radioml import batches, fingerprint, open_frames, resident, split
from models import ModelError
from models.joint_norm import join_batch_norm
from models.rebuild import rebuild
from models.vgg10 import VGG10, from_checkpoint
from utils import checkpoint, release, runs
from utils.evaluation import amc_accuracy, describe_amc, report_amc
from utils.pruning_masks import Pruned, apply_masks, nonzero_masks
from utils.runs import (
    RunError,
    StopSignal,
    command,
    config_of,
    cut_log,
    decisive,
    first_process,
    in_turn,
    join_processes,
    mean_over_processes,
    path,
    rank_and_world,
    run,
    say,
    start,
)
from utils.training import (
    CapturedStep,
    LossReader,
    Progress,
    amc_defaults,
    bf16_autocast,
    distributed,
    epoch_rows,
    falling_rate,
)

ERRORS = (DataError, ModelError, checkpoint.CheckpointError)  # what a user can mend: one sentence, exit code 2
EPOCHS, SMALL_EPOCHS = 20, 8  # default of --epochs: for a file of the user's, and for the small generated one
FILTERS, DENSE = 64, 128  # the challenge's network
# What last.pt and best.pt hold beside network and optimizer, as checkpoint.misfit takes it
STATE = {"masks": dict[str, torch.Tensor], "history": list[str], "progress": Progress}
BEST = {"command": str, "history": list[str], "validation": float, "epoch": int}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-file", type=path, help=f"HDF5; default {' or '.join(KNOWN_FILES)} if there, else made")
    parser.add_argument("--out", type=path, default=Path("runs/amc"), help="run folder, default runs/amc")
    parser.add_argument("--checkpoint", type=path, help="start from this network; weights that are zero stay zero")
    parser.add_argument(
        "--bits", type=runs.whole(2, 8), help="of weights and activations; default those of --checkpoint, or 8"
    )
    parser.add_argument(
        "--filters",
        type=runs.whole(1, 1024),
        nargs="+",
        help=f"of the convolutions, one number or seven, default {FILTERS}",
    )
    parser.add_argument(
        "--dense", type=runs.whole(1, 4096), nargs="+", help=f"hidden neurons, one number or two, default {DENSE}"
    )
    parser.add_argument(
        "--epochs", type=runs.count, help=f"default {EPOCHS}; with the small generated file {SMALL_EPOCHS}"
    )
    parser.add_argument("--epoch-frames", type=runs.count, help="frames of an epoch, default the whole training part")
    parser.add_argument("--batch-size", type=runs.whole(2), help="for each process, default 128, on CUDA 512")
    parser.add_argument(
        "--lr", type=runs.positive, help="learning rate of Adam at the start, default 1e-3, on CUDA 2e-3"
    )
    parser.add_argument("--schedule", choices=["plateau", "cosine"], default="plateau", help="how the rate falls")
    parser.add_argument("--learned-steps", action="store_true", help="learn the quantiser steps of weights (LSQ)")
    parser.add_argument("--seed", type=runs.seed, default=0, help="of weights and order; the split is fixed")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument(
        "--save-every", type=runs.count, metavar="N", help="steps between two last.pt, default 200, CUDA 1000"
    )
    parser.add_argument("--device", type=runs.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=runs.processes, help="processes that generate frames, default all cores")
    parser.add_argument(
        "--save-weights", type=runs.weights_file, metavar="FILE.pt", help="also write these, half precision, + JSON"
    )
    args = parser.parse_args(argv)
    runs.fill_in(args, amc_defaults(args.device))
    if args.checkpoint and (args.filters or args.dense):
        parser.error("the network of --checkpoint has its own widths: leave out --filters and --dense")
    args.filters, args.dense = (w[0] if w and len(w) == 1 else w for w in (args.filters, args.dense))
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    _, world, device = join_processes(args.device)

    # Network with the masks of its zeros, and progress: from last.pt if the run goes on
    args.data_file = args.data_file or in_turn(lambda: default_file(args.workers), DataError)
    args.epochs = args.epochs or (SMALL_EPOCHS if args.data_file == SMALL_FILE else EPOCHS)
    source = open_frames(args.data_file)
    torch.manual_seed(args.seed)
    last = args.out / "last.pt"
    before = checkpoint.resumed(last, args.resume, STATE, from_checkpoint, "modulation")
    if before:
        model, history = Pruned(rebuild(before), before["masks"]), before["history"]
        progress = checkpoint.restored(Progress, before["progress"])
    else:
        network, history = new_network(args)
        model, progress = Pruned(network, nonzero_masks(network.weights())), Progress()
    model = model.to(device)
    join_batch_norm(model.network)
    optimizer = torch.optim.Adam(model.network.parameters(), args.lr, fused=device.type in ("cpu", "cuda"))
    if before:
        optimizer.load_state_dict(before["optimizer"])

    # Data: the input layer rounds samples to codes of its bits, so a cache beside the file holds the codes already
    frames = in_turn(lambda: open_cache(source, model.network.input.bits), DataError)
    parts = split(frames)
    counts = ", ".join(f"{len(rows)} of {name}" for name, rows in parts.items())
    say(f"{args.data_file}: {counts} frames; {args.epochs} epochs at {model.network.bits} bits")

    # The run's folder: written only now that everything could be read and built
    config = config_of(args, processes=world, training_frames=len(parts["train"]), data=fingerprint(frames))
    first_process(lambda: start(args.out, config, args.resume, decisive(config, "checkpoint")), RunError)
    cut_log(args.out, progress.epochs)
    frames = resident(frames, device)

    if not train(args, model, history, optimizer, progress, frames, parts):
        say(f"stopped; {last} holds everything, go on with --resume", sys.stderr)
        return 130

    # Score the best epoch on the test part, once
    best = checkpoint.load_shared(args.out / "best.pt", "cpu", "modulation", BEST)
    if args.save_weights:  # what is reported is then what that file holds
        best["state_dict"] = checkpoint.halve(rebuild(best).on_codes().state_dict())
    facts = {"trained_by": best["command"], "commands": best["history"], "bits": model.network.bits, "seed": args.seed}
    facts |= {"validation": best["validation"], "epoch": best["epoch"], "epochs": args.epochs}
    facts = report_amc({"test": rebuild(best).to(device)}, frames, parts["test"], device, facts, args.out)
    if args.save_weights:
        release.write(args.save_weights, best, facts)
    return 0


def new_network(args: argparse.Namespace) -> tuple[VGG10, list[str]]:
    """The network to train, and the commands that made it: new, or that of --checkpoint, which keeps its widths."""
    if args.checkpoint:
        data = checkpoint.load(args.checkpoint)
        network = from_checkpoint(data)
        network = network.requantised(args.bits) if args.bits else network.train()
        history = data.get("history", [data["command"]] if "command" in data else [])
    else:
        network, history = VGG10(args.bits or 8, filters=args.filters or FILTERS, dense=args.dense or DENSE), []
    if args.learned_steps:
        network.learn_weight_steps()
    return network, history


def train(args, model: Pruned, history: list[str], optimizer, progress: Progress, frames, parts: dict) -> bool:
    """The training loop; False if the user stopped it, with everything saved in last.pt."""
    network, masks = model
    (rank, world), device = rank_and_world(), next(network.parameters()).device
    batch_size = min(args.batch_size, len(parts["train"]))
    steps = max(1, min(args.epoch_frames or len(parts["train"]), len(parts["train"])) // (batch_size * world))
    trained = distributed(network, unused=True)  # thresholds have no gradient in their initial steps
    weights, autocast = network.weights(), bf16_autocast(device)

    def update(x, label):  # all that a step changes on the device
        with autocast:
            loss = F.cross_entropy(trained(x), label)  # (B, 24), (B,)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        apply_masks(weights, masks)
        return loss.detach()

    # A graph can be captured once the thresholds are learned
    train_step, losses = CapturedStep(update, optimizer, ready=lambda: network.learning), LossReader(device)

    def save_last() -> None:  # the order of frames follows from seed and epoch; nothing else is random
        inner = {"masks": masks, "history": history}
        inner |= {"optimizer": optimizer.state_dict(), "progress": asdict(progress)}
        checkpoint.save(args.out / "last.pt", describe_amc(network, args.seed) | inner)

    with StopSignal() as stop:
        while progress.epochs < args.epochs:
            # Rows of this epoch, batch after batch; a resumed epoch goes on where it stopped
            order = epoch_rows(parts["train"], steps, batch_size * world, args.seed, progress.epochs)
            order = order[rank::world]  # each process takes its own
            left = batches(frames, order[progress.batch * batch_size :], batch_size, device=device)
            title, first = f"epoch {progress.epochs + 1}/{args.epochs}", progress.batch
            began = time.perf_counter()
            network.train()
            bar = {"initial": first, "unit": "step", "leave": False, "disable": rank > 0, "file": sys.stderr}
            for x, label in tqdm(left, title, steps, **bar):
                done, total = progress.epochs * steps + progress.batch, args.epochs * steps
                rate = falling_rate(args.lr, args.schedule, done, total, progress.drops)
                optimizer.param_groups[0]["lr"] = rate
                loss = train_step(x, label)
                progress.batch += 1
                stopping, due = stop.requested, progress.batch % args.save_every == 0
                read = losses.add(loss, now=stopping or due or progress.batch == steps)
                for at, value in enumerate(read, progress.batch - len(read)):
                    value, stopping = mean_over_processes([value, float(stopping)])
                    runs.check_loss(value, progress.epochs, at, args.out)
                    progress.loss_sum += value
                if stopping or due:
                    save_last()
                if stopping:
                    return False
            speed = (steps - first) * batch_size * world / (time.perf_counter() - began)

            # Choose on the validation part
            mean_loss = progress.loss_sum / steps
            accuracy = amc_accuracy(network, frames, parts["validation"], device)
            if progress.end_epoch(accuracy):
                chosen = {"epoch": progress.epochs, "validation": accuracy, "history": [*history, command()]}
                checkpoint.save(args.out / "best.pt", describe_amc(network, args.seed) | chosen)
            line = {"epoch": progress.epochs, "loss": mean_loss}
            line |= {"lr": optimizer.param_groups[0]["lr"], "validation": accuracy}
            runs.tell(args.out, line, frames_per_second=round(speed, 1))
            save_last()
    return True


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
