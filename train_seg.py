"""Train a spectrogram segmentation network: which pixels are noise, 5G NR, LTE.

    python train_seg.py                                                  # makes 270 frames, trains on them
    python train_seg.py --data-dir datasets/spectrum_sensing --out runs/teacher          # the full set: an hour
    python train_seg.py --data-dir datasets/spectrum_sensing --out runs/teacher --resume # after an interruption
    python train_seg.py --checkpoint weights/seg_teacher.pt --lr 3e-4 --data-dir MY_FRAMES          # train it further
    torchrun --nproc-per-node=2 train_seg.py --data-dir datasets/spectrum_sensing        # several devices

DeepLabV3 on MobileNetV3-Large (Chen 2017, Howard 2019) as torchvision has it, from scratch: 11.02 M parameters, 7.09 M
of them live (the others meet only padding, models/fast_layers.py). The best epoch is chosen on the validation part.
Test, combined and own frames are scored once, at the end, with standard channels fitted to the network's bands
(data/bands.py) and without. `python evaluate.py runs/seg/best.pt` scores the network on other frames. The run's folder
(runs/seg unless --out names another) gets config.json, log.jsonl, last.pt, best.pt, result.json and pictures/.

Several processes compute a step as one process with their joint batch does, up to rounding: batch norm's statistics,
the class-weighted mean of the loss, and gradients are those of all frames. What differs: each process draws its own
augmentation and dropout and takes the carriers that it adds from its own frames; steps are not CUDA graphs. The files
are written by the first process; the other machines need the same input files and no run's folder. --resume needs as
many processes as before.
"""

import argparse
import hashlib
import sys
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from data import DataError, augment
from data.on_device import gathered, on_device
from data.spectrogram import PARULA
from data.spectrum_sensing import CLASSES, IGNORE, class_weights, find_frames, read_tensors, split
from data.synthetic import default_set
from models import ModelError, segmentation
from models.fast_layers import speed_up
from models.joint_norm import join_batch_norm
from models.rebuild import rebuild
from utils import checkpoint, release, runs
from utils.evaluation import evaluate, recalibrate, report
from utils.runs import (
    RunError,
    StopSignal,
    check_loss,
    config_of,
    cut_log,
    decisive,
    first_process,
    gather,
    in_turn,
    join_processes,
    mean_over_processes,
    path,
    run,
    say,
    start,
)
from utils.training import (
    Batch,
    CapturedStep,
    LossReader,
    TrainingSet,
    bf16_autocast,
    distributed,
    epoch_order,
    joint_cross_entropy,
    make_optimizer,
)

ERRORS = (DataError, ModelError, checkpoint.CheckpointError)  # faults that a user can mend: one sentence, exit code 2
PRESETS = {
    "default": {"epochs": 11, "batch_size": 8, "lr": 1e-3},
    "published": {"epochs": 10, "batch_size": 4, "lr": 0.02},
}
ON_CUDA = {"batch_size": 32, "lr": 2e-3}  # of the default preset there


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=path, help="frames; default datasets/spectrum_sensing if there, else made")
    parser.add_argument("--more-frames", type=path, nargs="+", default=[], metavar="DIR", help="train on these as well")
    parser.add_argument("--out", type=path, default=Path("runs/seg"), help="run folder, default runs/seg")
    parser.add_argument("--model", choices=segmentation.FACTORIES, default="deeplabv3_mobilenet_v3_large")
    parser.add_argument("--checkpoint", type=path, help="start from this network instead of new weights")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="recipe; published: SGD, no augmentation")
    parser.add_argument("--mirror", action="store_true", help="augment by flips in frequency, add no carriers")
    parser.add_argument("--epochs", type=runs.count, help=f"default {_defaults('epochs')}")
    parser.add_argument("--batch-size", type=runs.count, help=f"for each process, default {_defaults('batch_size')}")
    parser.add_argument("--lr", type=runs.positive, help=f"highest learning rate, default {_defaults('lr')}")
    parser.add_argument(
        "--seed", type=runs.seed, default=0, help="of weights, order and augmentation; the split is fixed"
    )
    parser.add_argument("--pretrained-backbone", action="store_true", help="torchvision's ImageNet weights")
    parser.add_argument("--aux-loss", action="store_true", help="DeepLabV3's second head, its loss weighted .5")
    parser.add_argument(
        "--train-on-combined", type=runs.real(0, 1), default=0.0, metavar="SHARE", help="of LTE_NR, 0 to 1"
    )
    parser.add_argument(
        "--save-every", type=runs.count, metavar="N", help="steps between two last.pt, default 200, CUDA 1000"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument(
        "--save-weights", type=runs.weights_file, metavar="FILE.pt", help="also write these, half precision, + JSON"
    )
    parser.add_argument("--device", type=runs.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=runs.processes, help="processes that generate frames, default all cores")
    args = parser.parse_args(argv)
    on_cuda = args.device.startswith("cuda")
    defaults = PRESETS[args.preset] | {"save_every": 1000 if on_cuda else 200}
    if on_cuda and args.preset == "default":
        defaults |= ON_CUDA
    runs.fill_in(args, defaults)
    if args.batch_size == 1 and args.model.startswith("deeplabv3"):
        parser.error("--batch-size must be 2 or more: batch norm behind DeepLabV3's image pooling needs two frames")
    return args


def _defaults(name: str) -> str:
    values = [f"{values[name]} ({preset})" for preset, values in PRESETS.items()]
    return ", ".join([*values, f"{ON_CUDA[name]} (default on CUDA)"] if name in ON_CUDA else values)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    processes = join_processes(args.device)
    rank, world, device = processes

    # Data: the training and validation parts in memory, pictures as levels of the colormap
    if args.data_dir is None:
        args.data_dir = in_turn(lambda: default_set(args.workers), DataError)
    frames = find_frames(args.data_dir)
    more = [frame for folder in args.more_frames for frame in find_frames(folder)]
    parts = split(frames, train_on_combined=args.train_on_combined, more=more)
    if not parts["validation"] or not parts["test"]:
        raise RunError(f"{args.data_dir}: {len(frames)} frames are too few to split, 6 single-signal ones are needed")
    images, labels = read_tensors(parts["train"], progress=rank == 0)
    args.batch_size = max(2, min(args.batch_size, len(images) // world))  # more would be the same frames again
    palette = None
    if args.preset == "default":
        images, palette = augment.as_levels(images, torch.from_numpy(PARULA))
        if palette is None:
            say("training pictures are not all in parula colours: no level jitter")
    training = TrainingSet(images, labels, palette, class_weights(labels))
    validation = Batch(*on_device(read_tensors(parts["validation"], progress=rank == 0), device))

    # Model, and the state of the run if it goes on
    torch.manual_seed(args.seed)
    form = release.TRAINING | {"epoch": range(args.epochs + 1), "loss_sum": float}
    state = checkpoint.resumed(args.out / "last.pt", args.resume, form, rebuild, "segmentation")
    if state:
        network = rebuild(state)
    elif args.checkpoint:
        network = given_network(args.checkpoint, segmentation.factory(args.model, len(CLASSES), args.aux_loss))
    else:
        network = new_network(args.model, args.preset, args.pretrained_backbone, args.aux_loss)

    # The run's folder: written only now that everything could be read and built
    digest = hashlib.sha256(images.numpy()).hexdigest()
    config = config_of(args, processes=world, training_frames=len(images), training_pictures_sha256=digest)
    first_process(lambda: start(args.out, config, args.resume, decisive(config)), RunError)
    if state and len(state["rng"]) != world:
        raise RunError(f"{args.out}/last.pt: is of {len(state['rng'])} processes, not {world}; choose another --out")

    # Train
    with StopSignal() as stop:
        finished = train(args, network, state, training, validation, processes, stop)
    if not finished:
        say(f"stopped; {args.out}/last.pt holds everything, go on with --resume", sys.stderr)
        return 130

    # Report the best epoch, once: as it is, or as it is handed on
    best = checkpoint.load_shared(args.out / "best.pt", kind="segmentation")
    sets = {name: parts[name] for name in ("test", "combined", "own") if parts.get(name)}
    if args.save_weights:
        best = release.released(best, release.usual(training, parts["train"]), device)
    facts = report(best, sets, args.out, device)
    if args.save_weights:
        release.write(args.save_weights, best, facts)
    return 0


def train(args, network, state: dict | None, training: TrainingSet, validation: Batch, processes, stop) -> bool:
    """The training loop. False if `stop` was requested; last.pt then has everything that going on needs."""
    rank, world, device = processes
    images, labels = on_device((training.images, training.labels), device)  # uint8
    weights = training.weights.to(device)
    steps = max(1, len(images) // (args.batch_size * world))  # of an epoch
    augmented = args.preset == "default"
    name, arguments = segmentation.factory(args.model, len(CLASSES), args.aux_loss)

    # Network and optimizer; a resumed run goes on with their state
    network = join_batch_norm(speed_up(network).to(device, memory_format=torch.channels_last))
    optimizer, scheduler = make_optimizer(network, args.lr, args.epochs, steps, args.preset == "published")
    first_epoch, first_step, loss_sum, best = 0, 0, 0.0, -1.0
    torch.manual_seed(args.seed + rank)  # augmentation and dropout differ between processes
    if state:
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        first_epoch, first_step, loss_sum, best = (state[key] for key in ("epoch", "step", "loss_sum", "best"))
        checkpoint.set_rng_state(state["rng"][rank])
    model = distributed(network)
    autocast = bf16_autocast(device, wanted=augmented)
    cut_log(args.out, first_epoch)

    def update(x, y):  # all that a step changes on the device
        with autocast:
            loss = loss_of(model(x), y, weights)
        optimizer.zero_grad()
        loss.backward()
        if augmented:
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    train_step, losses = CapturedStep(update, optimizer), LossReader(device)

    def save(name_of_file: str, **more) -> None:
        data = release.saved(network, name, arguments, args.seed, labels.shape[1:])
        checkpoint.save(args.out / name_of_file, data | more)

    def save_last(epoch: int, step: int, loss_sum: float) -> None:
        inner = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        inner["rng"] = gather(checkpoint.rng_state())
        save("last.pt", epoch=epoch, step=step, loss_sum=loss_sum, best=best, **inner)

    for epoch in range(first_epoch, args.epochs):
        order = epoch_order(len(images), steps * args.batch_size * world, args.seed, epoch).to(images.device)
        # Half of the time axis costs less than half of the work: ASPP's dilated taps above and below then meet only
        # padding and are left out. The last epochs see whole frames.
        cropped = augmented and epoch < args.epochs * 5 // 6
        rows = labels.shape[1] // 2 if cropped else labels.shape[1]
        model.train()
        began = time.perf_counter()
        todo = range(first_step, steps)
        chosen = (order[step * world + rank :: steps * world] for step in todo)  # each step and process takes its own
        bar = tqdm(todo, f"epoch {epoch + 1}/{args.epochs}", unit="step", disable=rank > 0, file=sys.stderr)
        for step, batch in zip(bar, gathered((images, labels), chosen, device), strict=True):
            x, y, _ = prepare(Batch(*batch), training.palette, augmented, rows, args.mirror)
            loss = train_step(x, y)
            scheduler.step()
            stopping, due = stop.requested, (step + 1) % args.save_every == 0
            read = losses.add(loss, now=stopping or due or step + 1 == steps)
            for at, value in enumerate(read, step + 1 - len(read)):
                value, stopping = mean_over_processes([value, float(stopping)])
                check_loss(value, epoch, at, args.out)
                loss_sum += value
            if stopping or due:
                save_last(epoch, step + 1, loss_sum)
            if stopping:
                return False
        trained = (steps - first_step) * args.batch_size * world / (time.perf_counter() - began)

        # Choose on the validation part
        if augmented:
            recalibrate(network, training)
        result = evaluate(network, validation.images, validation.labels)
        if result["mean_iou"] > best:
            best = result["mean_iou"]
            save("best.pt", epoch=epoch + 1, validation=result)
        line = {"epoch": epoch + 1, "loss": loss_sum / steps, "lr": scheduler.get_last_lr()[0]}
        line |= {"validation_miou": result["mean_iou"], "images_per_second": round(trained, 2)}
        runs.tell(args.out, line)
        first_step, loss_sum = 0, 0.0
        save_last(epoch + 1, 0, 0.0)
    return True


def given_network(path: Path, expected: tuple[str, dict]) -> nn.Module:
    """The network of --checkpoint; `expected` are its factory and arguments, as --model and --aux-loss name them."""
    data = release.load_segmentation(path)
    if (data["factory"], data["arguments"]) != expected:
        name = expected[0].rpartition(".")[2]
        raise RunError(f"{path}: not a {name} of train_seg.py; name the network with --model")
    return rebuild(data)


def new_network(model: str, preset: str, pretrained_backbone: bool = False, aux_loss: bool = False) -> nn.Module:
    """A network with new weights, from torch's random state."""
    network = segmentation.build(model, len(CLASSES), pretrained_backbone, aux_loss)
    if preset == "default":
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.1  # torchvision's MobileNetV3 has .01: statistics lag in a training this short
        segmentation.zero_outer_taps(network)
    return network


def loss_of(logits: dict, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Class-weighted cross entropy of {"out": (B, 3, H, W)} with labels (B, H, W), and half of that of "aux"."""
    loss = joint_cross_entropy(logits["out"].float(), y, weights, ignore_index=IGNORE)
    if "aux" in logits:
        loss = loss + 0.5 * joint_cross_entropy(logits["aux"].float(), y, weights, ignore_index=IGNORE)
    return loss


def prepare(batch: Batch, palette: torch.Tensor | None, augmented: bool, rows: int, mirror: bool = False) -> Batch:
    """What the network is trained on: frames augmented, cut to their first `rows` rows (the time axis) and normalised.

    Images uint8 (B, H, W) or (B, 3, H, W) become float (B, 3, rows, W), labels int64 (B, rows, W).
    """
    images, labels, _ = batch
    if augmented:
        levels = palette is not None
        images, labels = augment.augment_batch(images, labels, rows=rows, are_levels=levels, mirror=mirror)
    return Batch(segmentation.as_input(images, palette), labels.long())


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
