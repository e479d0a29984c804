"""Train a spectrogram segmentation network: which pixels are noise, 5G NR, LTE.

    python train_seg.py                                                  # makes 270 frames, trains on them
    python train_seg.py --data-dir datasets/spectrum_sensing --out runs/teacher          # the full set
    python train_seg.py --data-dir datasets/spectrum_sensing --out runs/teacher --resume # after an interruption
    python train_seg.py --checkpoint weights/seg_teacher.pt --lr 3e-4 --data-dir MY_FRAMES          # train it further
    python train_seg.py --eval-only weights/seg_teacher.pt --data-dir MY_FRAMES          # score any folder of frames
    torchrun --nproc-per-node=2 train_seg.py --data-dir datasets/spectrum_sensing        # several devices

DeepLabV3 on MobileNetV3-Large (Chen 2017, Howard 2019) as torchvision has it, 11.02 M parameters, from scratch. The
best epoch is chosen on the validation part; test, combined and other frames are scored once, at the end, with standard
channels fitted to the network's bands (utils/bands.py) and without. The run's folder (runs/seg unless --out names
another) gets config.json, log.jsonl, last.pt, best.pt, result.json and pictures/.
"""

import argparse
import hashlib
import math
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from data import DataError, augment
from data.lte_nr import standard_channels
from data.spectrogram import HZ_PER_PIXEL, PARULA, SIZE
from data.spectrum_sensing import CLASSES, IGNORE, class_weights, find_frames, frame_snr, read_tensors, split
from data.synthetic import default_set
from models import ModelError, segmentation
from models.fast_layers import cut_dead_taps, speed_up
from models.rebuild import describe, rebuild
from utils import bands, checkpoint, metrics, pictures, release
from utils.runs import (
    RunError,
    StopSignal,
    command,
    cut_log,
    first_process,
    gather,
    join_processes,
    log,
    mean_over_processes,
    provenance,
    run,
    start,
    sum_over_processes,
    write_json,
)
from utils.training import bf16_autocast, epoch_order, make_optimizer, recalibrate_batch_norm

ERRORS = (DataError, ModelError, checkpoint.CheckpointError)  # what a user can mend: one sentence, exit code 2
PRESETS = {
    "default": {"epochs": 11, "batch_size": 8, "lr": 1e-3},
    "published": {"epochs": 10, "batch_size": 4, "lr": 0.02},
}
RECALIBRATION_FRAMES = 512  # training frames that batch norm's statistics are measured on after each epoch
HANDED_ON = ("kind", "classes", "frame_size", "seed", "command", "epoch", "validation")  # beside the network


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="frames; default datasets/spectrum_sensing if there, else made")
    parser.add_argument(
        "--more-frames", type=Path, nargs="+", default=[], metavar="DIR", help="train on all frames of these as well"
    )
    parser.add_argument("--out", type=Path, help="run folder, default runs/seg; with --eval-only default none")
    parser.add_argument("--model", choices=segmentation.FACTORIES, default="deeplabv3_mobilenet_v3_large")
    parser.add_argument("--checkpoint", type=Path, help="start from this network instead of new weights")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="recipe; published: SGD, no augmentation")
    parser.add_argument(
        "--mirror", action="store_true", help="augment by flips in frequency, not by other frames' carriers"
    )
    parser.add_argument("--epochs", type=int, help=f"default {_defaults('epochs')}")
    parser.add_argument("--batch-size", type=int, help=f"for each process, default {_defaults('batch_size')}")
    parser.add_argument("--lr", type=float, help=f"highest learning rate, default {_defaults('lr')}")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation; the split is fixed")
    parser.add_argument("--pretrained-backbone", action="store_true", help="torchvision's ImageNet weights")
    parser.add_argument("--aux-loss", action="store_true", help="DeepLabV3's second head, its loss weighted .5")
    parser.add_argument("--train-on-combined", type=float, default=0.0, metavar="SHARE", help="of LTE_NR, 0 to 1")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS", help="a kill loses at most these")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--eval-only", type=Path, metavar="CHECKPOINT", help="score it on all frames of --data-dir")
    parser.add_argument("--save-weights", type=Path, metavar="FILE.pt", help="also write half precision weights + JSON")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="processes that generate frames, default all cores")
    args = parser.parse_args(argv)
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(args.epochs, args.batch_size, args.save_every) < 1 or args.lr <= 0:
        parser.error("--epochs, --batch-size, --save-every and --lr must be positive")
    if args.batch_size == 1 and args.model.startswith("deeplabv3"):
        parser.error("--batch-size must be 2 or more: batch norm behind DeepLabV3's image pooling needs two frames")
    if args.save_weights and args.save_weights.suffix != ".pt":
        parser.error("--save-weights takes a name that ends in .pt; the JSON is written beside it")
    return args


def _defaults(name: str) -> str:
    return ", ".join(f"{values[name]} ({preset})" for preset, values in PRESETS.items())


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    rank, world, device = join_processes(args.device)
    if args.eval_only:
        return score_folder(args, device, rank, world)

    # Data
    if args.data_dir is None:
        args.data_dir = first_process(lambda: default_set(args.workers), DataError)
    frames = find_frames(args.data_dir)
    more = [frame for folder in args.more_frames for frame in find_frames(folder)]
    parts = split(frames, train_on_combined=args.train_on_combined, more=more)
    if not parts["validation"] or not parts["test"]:
        raise RunError(f"{args.data_dir}: {len(frames)} frames are too few to split, 10 single-signal ones are needed")

    images, masks = read_tensors(parts["train"], progress=rank == 0)
    palette = None
    if args.preset == "default":
        images, palette = augment.as_levels(images, torch.from_numpy(PARULA))
        if palette is None and rank == 0:
            print("training pictures are not all in parula colours: no level jitter")
    validation = read_tensors(parts["validation"], progress=rank == 0)

    # Model; where the run was, if it goes on
    args.out = args.out or Path("runs/seg")
    torch.manual_seed(args.seed)
    state = checkpoint.load(args.out / "last.pt") if args.resume and (args.out / "last.pt").exists() else None
    network = rebuild(state) if state else first_network(args)

    # The run's folder: written only now that everything could be read and built
    config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    config["more_frames"] = [str(folder) for folder in args.more_frames]
    config |= {"processes": world, "training_frames": len(parts["train"]), "command": command()}
    config["training_pictures_sha256"] = hashlib.sha256(images.numpy()).hexdigest()
    same = ("model", "preset", "epochs", "batch_size", "lr", "seed", "mirror", "pretrained_backbone", "aux_loss")
    same += ("processes", "checkpoint", "train_on_combined", "training_frames", "training_pictures_sha256")
    first_process(lambda: start(args.out, config, args.resume, same), RunError)

    with StopSignal() as stop:
        finished = train(args, network, state, (images, masks, palette), validation, device, rank, world, stop)
    if not finished:
        if rank == 0:
            print(f"stopped; {args.out}/last.pt holds everything, go on with --resume", file=sys.stderr)
        return 130

    # Report the best epoch, once
    best = checkpoint.load(args.out / "best.pt")
    sets = {name: parts[name] for name in ("test", "combined", "other") if parts.get(name)}
    report(args, best, sets, device, rank, world, (images, masks, palette))
    return 0


def train(args, network, state, training, validation, device, rank: int, world: int, stop: StopSignal) -> bool:
    """The training loop; False if `stop` was requested, with everything saved in last.pt."""
    images, masks, palette = training
    weights = class_weights(masks).to(device)
    images, masks = images.to(device), masks.to(device)  # uint8: the whole set fits
    size = masks.shape[1:]
    as_they_are = images[:: max(1, len(images) // RECALIBRATION_FRAMES)][:RECALIBRATION_FRAMES]
    steps = max(1, len(images) // (args.batch_size * world))
    augmented = args.preset == "default"

    network = speed_up(network).to(device, memory_format=torch.channels_last)
    optimizer, scheduler = make_optimizer(network, args.lr, args.epochs, steps, args.preset == "published")
    first_epoch, first_step, loss_sum, best = 0, 0, 0.0, -1.0
    torch.manual_seed(args.seed + rank)  # augmentation and dropout differ between processes
    if state:
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        first_epoch, first_step, loss_sum, best = (state[key] for key in ("epoch", "step", "loss_sum", "best"))
        checkpoint.set_rng_state(state["rng"][rank])
    model = DistributedDataParallel(network) if world > 1 else network  # batch norm sees each process's batch only
    autocast = bf16_autocast(device, wanted=augmented)
    if rank == 0:
        cut_log(args.out, first_epoch)

    def save_last(epoch: int, step: int, loss_sum: float) -> None:
        rng = gather(checkpoint.rng_state())
        if rank == 0:
            place = {"epoch": epoch, "step": step, "loss_sum": loss_sum, "best": best, "rng": rng}
            inner = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
            checkpoint.save(args.out / "last.pt", saved(network, args, size) | place | inner)

    for epoch in range(first_epoch, args.epochs):
        order = epoch_order(len(images), steps * args.batch_size * world, args.seed, epoch)
        # Half of the time axis costs less than half of the work; the last epochs see whole frames.
        cropped = augmented and epoch < args.epochs * 5 // 6
        rows = masks.shape[1] // 2 if cropped else masks.shape[1]
        model.train()
        began = time.perf_counter()
        for step in tqdm(
            range(first_step, steps), f"epoch {epoch + 1}/{args.epochs}", unit="step", disable=rank > 0, file=sys.stderr
        ):
            batch = order[step * world + rank :: steps * world].to(device)
            x, y = prepare(images[batch], masks[batch], palette, augmented, rows, args.mirror)
            with autocast:
                logits = model(x)
                loss = F.cross_entropy(logits["out"].float(), y, weights, ignore_index=IGNORE)
                if "aux" in logits:
                    loss = loss + 0.5 * F.cross_entropy(logits["aux"].float(), y, weights, ignore_index=IGNORE)
            optimizer.zero_grad()
            loss.backward()
            if augmented:
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            value, asked = mean_over_processes([loss.item(), float(stop.requested)])
            if not math.isfinite(value):
                raise RunError(
                    f"the loss is {value} in epoch {epoch + 1}, step {step + 1}: try a smaller --lr; "
                    f"{args.out}/last.pt, if there, is from before"
                )
            optimizer.step()
            scheduler.step()
            loss_sum += value
            if asked or (step + 1) % args.save_every == 0:
                save_last(epoch, step + 1, loss_sum)
            if asked:
                return False
        trained = (steps - first_step) * args.batch_size * world / (time.perf_counter() - began)

        # Choose on the validation part
        if augmented:  # batch norm's own statistics remember the last ten batches, of shifted and jittered frames
            shown = (segmentation.as_input(part, palette) for part in as_they_are.split(16) if len(part) > 1)
            recalibrate_batch_norm(network, shown)
        predict = partial(segmentation.predict, network.eval())
        result = metrics.scores(frame_matrices(predict, *validation, rank, world).sum(0), CLASSES)
        if result["mean_iou"] > best:
            best = result["mean_iou"]
            if rank == 0:
                chosen = {"epoch": epoch + 1, "validation": result}
                checkpoint.save(args.out / "best.pt", saved(network, args, size) | chosen)
        if rank == 0:
            line = {"epoch": epoch + 1, "loss": loss_sum / steps, "lr": scheduler.get_last_lr()[0]}
            line |= {"validation_miou": result["mean_iou"], "images_per_second": round(trained, 2)}
            log(args.out, **line)
            print("  ".join(f"{key} {value:.4g}" for key, value in line.items()), flush=True)
        first_step, loss_sum = 0, 0.0
        save_last(epoch + 1, 0, 0.0)
    return True


def first_network(args) -> nn.Module:
    if args.checkpoint:
        data = checkpoint.load(args.checkpoint)
        expected = segmentation.factory(args.model, len(CLASSES), args.aux_loss)
        if data.get("kind") != "segmentation" or (data["factory"], data["arguments"]) != expected:
            raise RunError(f"{args.checkpoint}: not a {args.model} of train_seg.py; name the network with --model")
        return rebuild(data)
    network = segmentation.build(args.model, len(CLASSES), args.pretrained_backbone, args.aux_loss)
    if args.preset == "default":
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 0.1  # torchvision's MobileNetV3 has .01: statistics lag in a training this short
        segmentation.zero_outer_taps(network)
    return network


def saved(network: nn.Module, args, size: torch.Size) -> dict:
    """A network as models.rebuild reads it, where it comes from, and the (height, width) of its frames."""
    name, arguments = segmentation.factory(args.model, len(CLASSES), args.aux_loss)
    origin = {"kind": "segmentation", "classes": list(CLASSES), "seed": args.seed, "command": command()}
    origin["frame_size"] = list(size)
    return describe(network, name, arguments) | origin


def prepare(images, masks, palette: torch.Tensor | None, augmented: bool, rows: int, mirror: bool = False):
    """uint8 levels (B, H, W) or pictures (B, 3, H, W), and masks -> float (B, 3, rows, W), int64 masks (B, rows, W)."""
    if augmented:
        images, masks = augment.shift_and_flip(images, masks, augment.draw_geometry(*masks.shape, mirror))
        images, masks = images[..., :rows, :], masks[:, :rows]
    if palette is not None:
        if not mirror:
            images, masks = augment.add_carriers(images, masks)
        images = augment.jitter_levels(images, *augment.draw_levels(len(images)))
    return segmentation.as_input(images, palette), masks.long()


def frame_matrices(predict, images, masks, rank: int, world: int):
    """Confusion matrices int64 (N, 3, 3) of all frames in float32; each process looks at its share."""
    return sum_over_processes(metrics.frame_matrices(predict, images, masks, range(rank, len(images), world)))


def report(args, data: dict, sets: dict, device: torch.device, rank: int, world: int, training=None) -> None:
    """Score a saved network on sets of frames: table on stdout, result.json and pictures in --out, --save-weights."""
    undone = None
    if args.save_weights:  # what is reported is then what that file holds: no dead taps, half precision
        network = rebuild(data)
        if training:
            images, masks, palette = training
            judged = rebuild(data).eval().to(device, memory_format=torch.channels_last)
            looked_at = partial(segmentation.logits, judged, palette=palette)
            undone, shift = release.best_shift(looked_at, images, masks, class_weights(masks))
            segmentation.add_to_logits(network, shift)
        cut_dead_taps(network, tuple(data.get("frame_size", (SIZE, SIZE))))
        kept = {key: data[key] for key in HANDED_ON if key in data}
        data = kept | describe(network, data["factory"], data["arguments"])
        data["state_dict"] = checkpoint.halve(data["state_dict"])
    network = rebuild(data).eval().to(device, memory_format=torch.channels_last)
    size = data.get("frame_size")
    alone = partial(segmentation.predict, network, size=size)
    levels_of = partial(augment.as_levels, palette=torch.from_numpy(PARULA))
    looked_at = partial(segmentation.logits, network)
    fitted = bands.predictor(looked_at, levels_of, standard_channels(CLASSES, HZ_PER_PIXEL))
    scored, without_fit = {}, {}
    for title, frames in sets.items():
        images, masks = read_tensors(frames, progress=rank == 0)
        if rank == 0 and size and size != list(masks.shape[1:]):
            print(f"{title}: {masks.shape[1]} x {masks.shape[2]} pixels, shown to a network of {size[0]} x {size[1]}")
        predict = fitted if [*masks.shape[1:]] == [SIZE, SIZE] == (size or [SIZE, SIZE]) else alone
        groups = metrics.frame_groups(title, [frame.family for frame in frames], frame_snr(args.data_dir, frames))
        for way, result in ((predict, scored), (alone, without_fit)):
            by_frame = frame_matrices(way, images, masks, rank, world)
            result |= metrics.score_groups(by_frame, groups, CLASSES)
        if rank == 0 and args.out:
            everything = [frame.name for frame in frames], images, masks, predict
            pictures.draw_set(args.out / "pictures", title, *everything, scored[title]["confusion_matrix"], CLASSES)
    if rank > 0:
        return
    print(metrics.table(scored, CLASSES))
    if without_fit != scored:
        print("network alone, no channel fitted:", metrics.table(without_fit, CLASSES), sep="\n")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    facts = provenance(data, device) | {"parameters": parameters, "class_weights_undone": undone}
    facts |= {"sets": scored, "network_alone": without_fit}
    if args.out:
        write_json(args.out / "result.json", facts)
        print(f"{args.out}/result.json has all of it, {args.out}/pictures some frames")
    if args.save_weights:
        checkpoint.save_weights(args.save_weights, data, facts)
        print(f"{args.save_weights} written, {args.save_weights.stat().st_size / 1e6:.1f} MB")


def score_folder(args, device: torch.device, rank: int, world: int) -> int:
    """--eval-only: every frame of a folder, whatever family it is of; nothing is split."""
    if args.data_dir is None:
        args.data_dir = first_process(lambda: default_set(args.workers), DataError)
    if args.out and (args.out / "last.pt").exists():
        raise RunError(f"{args.out} holds a training run, its result.json is its own: choose another folder with --out")
    data = checkpoint.load(args.eval_only)
    if data.get("kind") != "segmentation":
        raise RunError(f"{args.eval_only}: not a segmentation network; name a file of train_seg.py, or train one")
    report(args, data, {"all": find_frames(args.data_dir)}, device, rank, world)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
