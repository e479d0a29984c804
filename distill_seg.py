"""Retrain a pruned segmentation network: distillation from a teacher, fine-tuning, self-distillation, or all of them.

    python distill_seg.py                                                          # cuts the shipped teacher itself
    python distill_seg.py --student runs/pruned/pruned.pt --data-dir datasets/spectrum_sensing --out runs/student
    python distill_seg.py --student runs/pruned/pruned.pt --alpha 0                # fine-tuning: masks only
    python distill_seg.py --student runs/pruned/pruned.pt --beta 0                 # label-free: reads no mask
    python distill_seg.py --student runs/pruned/pruned.pt --from-scratch --alpha 0 # the control: new weights
    python distill_seg.py --export student.onnx --student runs/student/best.pt     # or student.pt2; trains nothing

The loss is alpha * KD(teacher) + beta * class-weighted cross entropy + gamma * KD(moving average of the student); alpha
also multiplies the factors in utils/kd_losses.py. The teacher is frozen and sees the same augmented frames, or, with
--keep-logits, each frame once as it is, and its logits are moved with the masks: 70 or 35 minutes for the default set's
20 epochs on one core. With --beta 0 neither training nor validation masks are read: the epoch is chosen by agreement
with the teacher on the validation part, and frames without masks will do. Folder, log, pictures and --resume as in
train_seg.py; score the result on other frames with `train_seg.py --eval-only runs/distill/best.pt`.
"""

import argparse
import copy
import hashlib
import math
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from data import DataError, augment
from data.lte_nr import standard_channels
from data.spectrogram import HZ_PER_PIXEL, PARULA, SIZE
from data.spectrum_sensing import CLASSES, IGNORE, class_weights, find_frames, frame_snr, read_tensors, split
from data.synthetic import FEW_COUNTS, default_set
from data.unlabelled import find_pictures, read_pictures, with_release
from models import ModelError, segmentation
from models.fast_layers import cut_dead_taps, speed_up
from models.rebuild import build, describe, rebuild
from utils import bands, checkpoint, kd_losses, metrics, pictures, release
from utils.dependency_graph import PruneError
from utils.evaluation import keep_logits
from utils.export import Deployed, ExportError, export_and_compare, fold_batch_norm, streamline
from utils.runs import (
    RunError,
    StopSignal,
    command,
    cut_log,
    hardware,
    join_processes,
    log,
    provenance,
    run,
    start,
    write_json,
)
from utils.training import bf16_autocast, epoch_order, make_optimizer, recalibrate_batch_norm
from utils.widths import cut_evenly, parameters, zero_pad_channels

ERRORS = (DataError, ModelError, checkpoint.CheckpointError, PruneError, kd_losses.DistillationError, ExportError)
PRESETS = {
    "default": {"epochs": 20, "batch_size": 8, "lr": 1e-3, "gamma": 0.0, "temperature": 1.0},
    "published": {"epochs": 30, "batch_size": 3, "lr": 1e-3, "gamma": 1.0, "temperature": 2.0},
}
LOGIT_LOSSES = {"pixel": kd_losses.pixel_kd, "cwd": kd_losses.channel_wise, "dist": kd_losses.dist}
FEATURE_LOSSES = {"pairwise": kd_losses.pairwise, "attention": kd_losses.attention}  # of what the backbone hands on
TEACHERS = Path("runs/seg/best.pt"), Path("weights/seg_teacher.pt")  # the user's own first
STUDENT = Path("runs/pruned/pruned.pt")
RECALIBRATION_FRAMES = 512  # training frames that batch norm's statistics are measured on after each epoch
HANDED_ON = ("kind", "classes", "frame_size", "seed", "command", "epoch", "validation", "chosen_by")
EXPORTED = Path("weights/seg_student.pt")  # where --export is given no --student


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, help=f"pruned network; default {STUDENT} if there, else cut here")
    parser.add_argument("--teacher", type=Path, help=f"default {TEACHERS[0]} if there, else {TEACHERS[1]}")
    parser.add_argument("--data-dir", type=Path, help="frames; default datasets/spectrum_sensing if there, else made")
    parser.add_argument(
        "--more-frames", type=Path, nargs="+", default=[], metavar="DIR", help="train on all frames of these as well"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/distill"), help="run folder, default runs/distill")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="recipe; published: SGD, no augmentation")
    parser.add_argument("--kd", nargs="+", choices=LOGIT_LOSSES | FEATURE_LOSSES, default=["pixel"], help="added up")
    parser.add_argument("--alpha", type=float, default=1.0, help="of the teacher, default 1")
    parser.add_argument("--beta", type=float, default=1.0, help="of the masks, default 1; 0 reads none")
    parser.add_argument("--gamma", type=float, help=f"of the student's own average, default {_defaults('gamma')}")
    parser.add_argument("--temperature", type=float, help=f"of pixel KD, default {_defaults('temperature')}")
    parser.add_argument("--keep-logits", action="store_true", help="ask the teacher once a frame, before augmentation")
    parser.add_argument("--generations", type=int, default=1, help="each is taught by the one before")
    parser.add_argument("--from-scratch", action="store_true", help="new weights in the student's shape")
    parser.add_argument("--target-params", type=int, default=299_000, help="of a student that is cut here")
    parser.add_argument(
        "--mirror", action="store_true", help="augment by flips in frequency, not by other frames' carriers"
    )
    parser.add_argument("--epochs", type=int, help=f"of a generation, default {_defaults('epochs')}")
    parser.add_argument("--batch-size", type=int, help=f"default {_defaults('batch_size')}")
    parser.add_argument("--lr", type=float, help=f"highest learning rate, default {_defaults('lr')}")
    parser.add_argument("--seed", type=int, default=0, help="of order, augmentation, new weights; not of the split")
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS", help="a kill loses at most these")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--save-weights", type=Path, metavar="FILE.pt", help="also write half precision weights + JSON")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write --student as .pt2 or .onnx; no training")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="processes that generate frames, default all cores")
    args = parser.parse_args(argv)
    for name, value in PRESETS[args.preset].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("epochs", "batch_size", "save_every", "lr", "generations", "temperature", "target_params"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if args.batch_size == 1:
        parser.error("--batch-size must be 2 or more: batch norm behind DeepLabV3's image pooling needs two frames")
    if min(args.alpha, args.beta, args.gamma) < 0 or args.alpha == args.beta == 0:
        parser.error("--alpha, --beta and --gamma are 0 or more, and alpha or beta must teach the student something")
    if args.beta == 0 and not set(args.kd) & LOGIT_LOSSES.keys():
        parser.error(f"--kd {' '.join(args.kd)} reaches the backbone only: with --beta 0 add pixel, cwd or dist")
    if args.keep_logits and set(args.kd) & FEATURE_LOSSES.keys():
        parser.error("--keep-logits keeps no features: choose --kd pixel, cwd or dist")
    if args.preset == "published" and not set(args.kd) & FEATURE_LOSSES.keys():
        args.keep_logits = True  # nothing is augmented, so it is the same, and faster
    if args.save_weights and args.save_weights.suffix != ".pt":
        parser.error("--save-weights takes a name that ends in .pt; the JSON is written beside it")
    if args.export and args.export.suffix not in (".pt2", ".onnx"):
        parser.error("--export takes a name that ends in .pt2 or .onnx")
    return args


def _defaults(name: str) -> str:
    return ", ".join(f"{values[name]:g} ({preset})" for preset, values in PRESETS.items())


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    _, world, device = join_processes(args.device)
    if world > 1:
        raise RunError("distill_seg.py runs as one process: start it with python, not torchrun")
    if args.export:
        return export_student(args)

    # Networks
    args.teacher = args.teacher or next((path for path in TEACHERS if path.exists()), TEACHERS[-1])
    args.student = args.student or (STUDENT if STUDENT.exists() else None)
    origin = {"teacher": load(args.teacher)}
    origin["student"] = load(args.student) if args.student else cut_teacher(origin["teacher"], args)

    # Data
    args.data_dir = args.data_dir or default_set(args.workers)
    label_free = args.beta == 0
    find = find_pictures if label_free else find_frames
    parts = split(find(args.data_dir), more=[frame for folder in args.more_frames for frame in find(folder)])
    if not parts["validation"] or not parts["test"]:
        raise RunError(f"{args.data_dir}: too few frames to split, 10 single-signal ones are needed")
    sets = {name: parts[name] for name in ("test", "combined", "other") if parts.get(name)}
    if label_free:
        sets = {name: some for name, frames in sets.items() if (some := [f for f in frames if f.hdf.exists()])}
        if args.save_weights and not sets:
            raise RunError(f"{args.data_dir} has no mask to score by: leave --save-weights out and take best.pt")
    images, masks = (read_pictures(parts["train"]), None) if label_free else read_tensors(parts["train"])
    levels, palette = images, None
    if args.preset == "default":
        levels, palette = augment.as_levels(images, torch.from_numpy(PARULA))
        if palette is None:
            print("training pictures are not all in parula colours: no level jitter")

    # The first teacher's opinion: class weights and validation targets where there are no masks
    teacher = freeze(rebuild(origin["teacher"]), device)
    weights = None
    if label_free:
        pictures = read_pictures(parts["validation"])
        validation = pictures, labels_of(teacher, pictures)
        if args.preset == "published":  # its KD weights the classes; some frames tell their shares
            weights = class_weights(labels_of(teacher, images[:256]))
    else:
        validation = read_tensors(parts["validation"])
        weights = class_weights(masks)

    # The run's folder: written only now that everything could be read and built
    state = checkpoint.load(args.out / "last.pt") if args.resume and (args.out / "last.pt").exists() else None
    start(args.out, *configuration(args, images))
    done = state["epoch"] // args.epochs if state else 0
    for generation in range(done, args.generations):
        if generation:
            teacher = freeze(rebuild(checkpoint.load(args.out / f"generation_{generation}.pt")), device)
            print(f"generation {generation + 1}: taught by the best student of generation {generation}", flush=True)
        inside = state if generation == done and state and state["epoch"] + state["step"] > done * args.epochs else None
        student = rebuild(inside) if inside else new_student(args, origin["student"])
        training = levels, masks, palette, weights
        with StopSignal() as stop:
            finished = train(args, generation, student, teacher, inside, training, validation, device, stop, origin)
        if not finished:
            print(f"stopped; {args.out}/last.pt holds everything, go on with --resume", file=sys.stderr)
            return 130

    # Report the best epoch, once
    if label_free:
        sets = {name: with_release(frames) for name, frames in sets.items()}
    report(args, checkpoint.load(args.out / "best.pt"), sets, device, None if label_free else (levels, masks, palette))
    if not sets:
        print("no masks, so nothing was scored: log.jsonl has the agreement with the teacher")
    return 0


def train(args, generation, student, teacher, state, training, validation, device, stop: StopSignal, origin) -> bool:
    """The training loop of one generation; False if `stop` was requested, with everything saved in last.pt."""
    images, masks, palette, weights = training
    weights = None if weights is None else weights.to(device)
    # Blank masks take no memory, and nothing looks at them.
    masks = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(len(images), *images.shape[-2:]) if masks is None else masks
    images, masks = images.to(device), masks.to(device)
    size = masks.shape[1:]
    asking = teacher, images, lambda part: teacher(segmentation.as_input(part, palette)), args.out.parent
    kept = keep_logits(*asking) if args.alpha and args.keep_logits else None
    as_they_are = images[:: max(1, len(images) // RECALIBRATION_FRAMES)][:RECALIBRATION_FRAMES]
    steps = max(1, len(images) // args.batch_size)
    augmented = args.preset == "default"

    student = speed_up(student).to(device, memory_format=torch.channels_last)
    average = freeze(copy.deepcopy(student), device) if args.gamma else None
    optimizer, scheduler = make_optimizer(student, args.lr, args.epochs, steps, args.preset == "published")
    first_epoch, first_step, sums, best = generation * args.epochs, 0, [0.0] * 4, -1.0
    torch.manual_seed(args.seed + 1000 * generation)
    if state:
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        first_epoch, first_step, sums, best = (state[key] for key in ("epoch", "step", "sums", "best"))
        if average:
            average.load_state_dict(state["average"])
        checkpoint.set_rng_state(state["rng"])
    autocast = bf16_autocast(device, wanted=augmented)
    cut_log(args.out, first_epoch)

    def save_last(epoch: int, step: int, sums: list[float]) -> None:
        place = {"epoch": epoch, "step": step, "sums": sums, "best": best, "rng": checkpoint.rng_state()}
        inner = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        inner |= {"average": average.state_dict()} if average else {}
        checkpoint.save(args.out / "last.pt", saved(student, origin, args, size) | place | inner)

    last_epoch = (generation + 1) * args.epochs
    for epoch in range(first_epoch, last_epoch):
        order = epoch_order(len(images), steps * args.batch_size, args.seed, epoch)
        half = augmented and epoch % args.epochs < args.epochs * 5 // 6  # as train_seg.py: whole frames at the end
        rows = images.shape[-2] // 2 if half else images.shape[-2]
        student.train()
        began = time.perf_counter()
        name = f"epoch {epoch + 1}/{args.generations * args.epochs}"
        for step in tqdm(range(first_step, steps), name, unit="step", file=sys.stderr):
            batch = order[step::steps].to(device)
            asked = None if kept is None else kept[batch.cpu()].to(device)
            x, y, asked = prepare(images[batch], masks[batch], asked, palette, augmented, rows, args.mirror)
            terms = losses(args, student, teacher, average, x, y, asked, weights, autocast)
            loss = args.alpha * terms[0] + args.beta * terms[1] + args.gamma * terms[2]
            optimizer.zero_grad()
            loss.backward()
            if augmented:
                nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            values = [term.item() for term in (loss, *terms)]
            if not math.isfinite(values[0]):
                raise RunError(
                    f"the loss is {values[0]} in epoch {epoch + 1}, step {step + 1}: try a smaller --lr; "
                    f"{args.out}/last.pt, if there, is from before"
                )
            optimizer.step()
            scheduler.step()
            if average:
                warm = scheduler.last_epoch  # steps so far; a young average must forget its start
                kd_losses.update_average(average, student, min(0.999, warm / (9 + warm)) if augmented else 0.999)
            sums = [total + value for total, value in zip(sums, values, strict=True)]
            if stop.requested or (step + 1) % args.save_every == 0:
                save_last(epoch, step + 1, sums)
            if stop.requested:
                return False
        trained = (steps - first_step) * args.batch_size / (time.perf_counter() - began)

        # Choose on the validation part
        if augmented:  # as train_seg.py: batch norm's own statistics remember the last ten batches
            shown = (segmentation.as_input(part, palette) for part in as_they_are.split(16) if len(part) > 1)
            recalibrate_batch_norm(student, shown)
        predict = partial(segmentation.predict, student.eval())
        result = metrics.scores(metrics.frame_matrices(predict, *validation).sum(0), CLASSES)
        if result["mean_iou"] > best:
            best = result["mean_iou"]
            chosen = {"epoch": epoch + 1, "validation": result, "chosen_by": "masks" if args.beta else "teacher"}
            checkpoint.save(args.out / "best.pt", saved(student, origin, args, size) | chosen)
        line = {"epoch": epoch + 1} | dict(zip(("loss", "kd", "ce", "self"), (s / steps for s in sums), strict=True))
        line |= {"lr": scheduler.get_last_lr()[0]}
        line |= {"validation_miou" if args.beta else "validation_agreement": result["mean_iou"]}
        line |= {"images_per_second": round(trained, 2)}
        log(args.out, **line)
        print("  ".join(f"{key} {value:.4g}" for key, value in line.items()), flush=True)
        first_step, sums = 0, [0.0] * 4
        if epoch + 1 == last_epoch < args.generations * args.epochs:
            checkpoint.save(args.out / f"generation_{generation + 1}.pt", checkpoint.load(args.out / "best.pt"))
        save_last(epoch + 1, 0, sums)
    return True


def prepare(images, masks, asked, palette, augmented: bool, rows: int, mirror: bool = False):
    """A batch as the networks take it, its masks and kept logits moved with it; see train_seg.py's.

    uint8 levels (B, H, W) or pictures (B, 3, H, W), masks (B, H, W), logits (B, 3, h, w) or None -> float
    (B, 3, rows, W), int64 (B, rows, W), float (B, 3, rows, W) or None.
    """
    if asked is not None:
        asked = F.interpolate(asked.float(), size=masks.shape[1:], mode="bilinear", align_corners=False)
    if augmented:
        geometry = augment.draw_geometry(*masks.shape, mirror)
        geometry["rows"] = geometry["rows"][:, :rows]  # the others would be thrown away
        if asked is not None:
            asked, _ = augment.shift_and_flip(asked, masks, geometry)
        images, masks = augment.shift_and_flip(images, masks, geometry)
    if palette is not None:
        if not mirror:
            images, masks, *kept = augment.add_carriers(images, masks, *(() if asked is None else (asked,)))
            asked = kept[0] if kept else None
        images = augment.jitter_levels(images, *augment.draw_levels(len(images)))
    return segmentation.as_input(images, palette), masks.long(), asked


# ---- losses ----------------------------------------------------------------------------------------------------------


def with_features(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 (B, 3, H, W) and what the backbone hands on, float32 (B, C, h, w); nothing stays hooked."""
    kept = {}
    hook = network.backbone.register_forward_hook(lambda layer, inputs, outputs: kept.update(outputs))
    try:
        logits = network(x)["out"]
    finally:
        hook.remove()
    return logits.float(), (kept["out"] if "out" in kept else kept["high"]).float()  # LR-ASPP's backbone says "high"


def losses(args, student, teacher, average, x, y, asked, weights, autocast) -> tuple[torch.Tensor, ...]:
    """Unweighted: distillation from the teacher, cross entropy with the masks, distillation from the average; or 0.

    x (B, 3, rows, W), y (B, rows, W); `asked` are the teacher's logits, float (B, 3, rows, W), if they were kept.
    """
    with autocast:
        logits, features = with_features(student, x)  # (B, 3, rows, W), (B, C, h, w)
        with torch.no_grad():
            wanted, wanted_features = (
                (asked, None) if asked is not None or not args.alpha else with_features(teacher, x)
            )
            before, _ = with_features(average, x) if average else (None, None)
    kd = ce = own = logits.new_zeros(())
    kd_weights = weights if args.preset == "published" else None
    if args.alpha:
        kd = teacher_loss(args, logits, wanted, features, wanted_features, kd_weights)
    if args.beta:
        ce = F.cross_entropy(logits, y, weights, ignore_index=IGNORE)
    if average:
        own = kd_losses.pixel_kd(logits, before, args.temperature, kd_weights)
    return kd, ce, own


def teacher_loss(args, logits, wanted, features, wanted_features, class_weights) -> torch.Tensor:
    """The chosen distillation losses, each with its default factor."""
    total = logits.new_zeros(())
    for name in args.kd:
        if name in FEATURE_LOSSES:
            value = FEATURE_LOSSES[name](features, wanted_features)
        elif name == "pixel":
            value = kd_losses.pixel_kd(logits, wanted, args.temperature, class_weights)
        else:
            value = LOGIT_LOSSES[name](logits, wanted)
        total = total + kd_losses.WEIGHT[name] * value
    return total


def freeze(network: nn.Module, device: torch.device) -> nn.Module:
    """Evaluation mode for good, no gradients; its own fast layers."""
    network = speed_up(network).to(device, memory_format=torch.channels_last)
    return network.eval().requires_grad_(False)


# ---- networks --------------------------------------------------------------------------------------------------------


def load(path: Path) -> dict:
    data = checkpoint.load(path)
    if data.get("kind") != "segmentation" or list(data.get("classes", CLASSES)) != list(CLASSES):
        raise RunError(f"{path}: not a segmentation network of these classes; name a file of train_seg or prune_seg.py")
    return data


def cut_teacher(data: dict, args) -> dict:
    """A student where none is given."""
    dense = rebuild(data)
    student = cut_evenly(dense, args.target_params, torch.zeros(1, 3, 64, 64))
    print(
        f"no {STUDENT}, so {args.teacher} is cut evenly from {parameters(dense)} to {parameters(student)} parameters; "
        "prune_seg.py chooses better which channels leave"
    )
    return describe(student, data["factory"], data["arguments"])


def new_student(args, data: dict) -> nn.Module:
    """The student as it starts: pruned weights, or --from-scratch, as torchvision and train_seg.py initialise."""
    network = rebuild(data)
    if args.from_scratch:
        torch.manual_seed(args.seed)
        segmentation.initialise(network)
        segmentation.zero_outer_taps(network)
    return network


def saved(network: nn.Module, origin: dict, args, size: torch.Size) -> dict:
    """A network as models.rebuild reads it, where it comes from, and the (height, width) of its frames."""
    where = {"kind": "segmentation", "classes": list(CLASSES), "seed": args.seed, "command": command()}
    where["frame_size"] = list(size)
    return describe(network, origin["student"]["factory"], origin["student"]["arguments"]) | where


def configuration(args, images: torch.Tensor) -> tuple[dict, bool, tuple[str, ...]]:
    """config.json, and what a resumed run must have in common with it."""
    config = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    config["more_frames"] = [str(folder) for folder in args.more_frames]
    config |= {"training_frames": len(images)}
    config |= {"training_pictures_sha256": hashlib.sha256(images.numpy()).hexdigest()}
    config |= {"teacher_sha256": checkpoint.sha256(args.teacher)}
    config |= {"student_sha256": checkpoint.sha256(args.student) if args.student else None}
    free = {"data_dir", "more_frames", "out", "student", "teacher", "resume", "save_every", "save_weights", "export"}
    same = tuple(key for key in config if key not in free | {"device", "workers"})
    return config | {"command": command()}, args.resume, same


def labels_of(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a network makes of images uint8 (N, 3, H, W): uint8 (N, H, W)."""
    return torch.cat([segmentation.predict(network, part).to(torch.uint8).cpu() for part in images.split(16)])


# ---- report ----------------------------------------------------------------------------------------------------------


def report(args, data: dict, sets: dict, device: torch.device, training=None) -> None:
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
        images, masks = read_tensors(frames)
        predict = fitted if [*masks.shape[1:]] == [SIZE, SIZE] == (size or [SIZE, SIZE]) else alone
        groups = metrics.frame_groups(title, [frame.family for frame in frames], frame_snr(args.data_dir, frames))
        for way, result in ((predict, scored), (alone, without_fit)):
            result |= metrics.score_groups(metrics.frame_matrices(way, images, masks), groups, CLASSES)
        everything = [frame.name for frame in frames], images, masks, predict
        pictures.draw_set(args.out / "pictures", title, *everything, scored[title]["confusion_matrix"], CLASSES)
    print(metrics.table(scored, CLASSES))
    if without_fit != scored:
        print("network alone, no channel fitted:", metrics.table(without_fit, CLASSES), sep="\n")
    facts = provenance(data, device) | {"parameters": parameters(network), "class_weights_undone": undone}
    facts |= {"sets": scored, "network_alone": without_fit}
    write_json(args.out / "result.json", facts)
    print(f"{args.out}/result.json has all of it, {args.out}/pictures some frames")
    if args.save_weights:
        checkpoint.save_weights(args.save_weights, data, facts)
        print(f"{args.save_weights} written, {args.save_weights.stat().st_size / 1e6:.2f} MB")


# ---- export ----------------------------------------------------------------------------------------------------------


def export_student(args) -> int:
    """--export: write the file, then compare labels and speed with those of the network it was made from."""
    path = args.student or EXPORTED
    if not path.exists():
        raise RunError(f"{path}: no such network; train one first, and name it with --student")
    data = load(path)
    args.data_dir = args.data_dir or default_set(args.workers, FEW_COUNTS)
    frames = find_frames(args.data_dir)
    images, _ = read_tensors(frames[:: max(1, len(frames) // 20)][:20])
    torch.set_num_threads(1)
    networks = build(data["factory"], data["arguments"]), rebuild(data)  # the dense one's weights don't matter
    dense, student = (Deployed(network, segmentation.MEAN, segmentation.STD).eval() for network in networks)
    padded = zero_pad_channels(student.network, torch.zeros(1, 3, 64, 64))
    wide = Deployed(padded, segmentation.MEAN, segmentation.STD).eval()
    light = fold_batch_norm(streamline(wide, images[:2]), images[:2])
    facts = export_and_compare(student, light, images, args.export, {"dense, eager": dense})
    pixels, wrong, ties = (facts[key] for key in ("pixels", "different", "different_ties"))
    print(f"{len(images)} frames, {pixels} pixels: {wrong} labels differ from {path}, and {ties} that are ties")
    for name, times in facts["latency"].items():
        print(f"{name:28}{times['median_ms']:8.2f} ms  {times['speed_up']:6.1f}x")
    print(f"one picture, one thread, medians in turns; {hardware()}, torch {torch.__version__}")
    facts |= {"from": str(path), "command": command(), "hardware": hardware(), "torch": torch.__version__}
    write_json(args.export.with_name(f"{args.export.name}.json"), facts)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
