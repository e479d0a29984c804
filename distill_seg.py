"""Retrain a pruned segmentation network: distillation from a teacher, fine-tuning, self-distillation, or all of them.

    python distill_seg.py                                                          # cuts the shipped teacher itself
    python distill_seg.py --student runs/pruned/pruned.pt --data-dir datasets/spectrum_sensing --out runs/student
    python distill_seg.py --student runs/pruned/pruned.pt --alpha 0                # fine-tuning: labels only
    python distill_seg.py --student runs/pruned/pruned.pt --beta 0                 # label-free: reads no label
    python distill_seg.py --student runs/pruned/pruned.pt --from-scratch --alpha 0 # the control: new weights
    torchrun --nproc-per-node=2 distill_seg.py --student runs/pruned/pruned.pt     # several devices

The loss is alpha * KD(teacher) + beta * class-weighted cross entropy + gamma * KD(EMA). KD, knowledge distillation, has
a factor for each --kd (WEIGHT in utils/kd_losses.py); EMA is the moving average of the student's weights. The teacher
is frozen and sees the same augmented frames. With --keep-logits it sees each frame once, as it is, and its logits are
moved with the labels. 20 epochs of the default set take 70 minutes on one core, or 35 with --keep-logits. With --beta 0
neither training nor validation labels are read: the epoch is chosen by agreement with the teacher on the validation
part, and frames without labels will do. --generations trains born-again networks (Furlanello 2018, arXiv:1805.04770):
each starts anew and is taught by the best student of the one before. Folder, log, pictures, --resume and several
devices are as in train_seg.py. evaluate.py scores the result on other frames, export.py writes it as .pt2 or .onnx.
"""

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from data import DataError, augment
from data.on_device import gathered, on_device
from data.spectrum_sensing import read_tensors
from data.synthetic import default_set
from data.unlabelled import find_parts, read_pictures
from models import ModelError, segmentation
from models.fast_layers import speed_up
from models.joint_norm import join_batch_norm
from models.rebuild import rebuild
from utils import checkpoint, kd_losses, release, runs
from utils.dependency_graph import PruneError
from utils.evaluation import evaluate, keep_logits, labelled_by, read_training, recalibrate, report
from utils.runs import (
    RunError,
    StopSignal,
    check_loss,
    first_process,
    gather,
    in_turn,
    join_processes,
    mean_over_processes,
    path,
    run,
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

ERRORS = (DataError, ModelError, checkpoint.CheckpointError, PruneError, kd_losses.DistillationError)
PRESETS = {
    "default": {"epochs": 20, "batch_size": 8, "lr": 1e-3, "gamma": 0.0, "temperature": 1.0},
    "published": {"epochs": 30, "batch_size": 3, "lr": 1e-3, "gamma": 1.0, "temperature": 2.0},
}
ON_CUDA = {"batch_size": 32, "lr": 2e-3}  # of the default preset there


class Generation(NamedTuple):
    """What a generation starts with. Number 0 is taught by the teacher, each later one by the one before."""

    number: int  # from 0; its best student is kept as generation_{number + 1}.pt
    student: nn.Module
    teacher: nn.Module  # frozen
    teacher_logits: torch.Tensor | None  # of all training frames, with --keep-logits
    origin: dict  # the checkpoint that the student's shape comes from
    state: dict | None  # last.pt, where a resumed run had begun this generation


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=path, help=f"pruned network; default {release.OWN_PRUNED}, else cut here")
    parser.add_argument("--teacher", type=path, help=f"default {release.OWN_TEACHER}, else weights/seg_teacher.pt")
    parser.add_argument("--data-dir", type=path, help="frames; default datasets/spectrum_sensing if there, else made")
    parser.add_argument("--more-frames", type=path, nargs="+", default=[], metavar="DIR", help="train on these as well")
    parser.add_argument("--out", type=path, default=Path("runs/distill"), help="run folder, default runs/distill")
    parser.add_argument("--preset", choices=PRESETS, default="default", help="recipe; published: SGD, no augmentation")
    parser.add_argument("--kd", nargs="+", choices=kd_losses.WEIGHT, default=["pixel"], help="added up")
    parser.add_argument("--alpha", type=runs.weight, default=1.0, help="of the teacher, default 1")
    parser.add_argument("--beta", type=runs.weight, default=1.0, help="of the labels, default 1; 0 reads none")
    parser.add_argument("--gamma", type=runs.weight, help=f"of the student's EMA, default {_defaults('gamma')}")
    parser.add_argument("--temperature", type=runs.positive, help=f"of pixel KD, default {_defaults('temperature')}")
    parser.add_argument("--conditional", action="store_true", help="believe the teacher only where labels agree")
    parser.add_argument("--keep-logits", action="store_true", help="ask the teacher once a frame, before augmentation")
    parser.add_argument(
        "--generations", type=runs.count, default=1, help="born-again: each is taught by the one before"
    )
    parser.add_argument("--from-scratch", action="store_true", help="new weights in the student's shape")
    parser.add_argument("--target-params", type=runs.count, default=299_000, help="of a student that is cut here")
    parser.add_argument("--mirror", action="store_true", help="augment by flips in frequency, add no carriers")
    parser.add_argument("--epochs", type=runs.count, help=f"of a generation, default {_defaults('epochs')}")
    parser.add_argument("--batch-size", type=runs.count, help=f"for each process, default {_defaults('batch_size')}")
    parser.add_argument("--lr", type=runs.positive, help=f"highest learning rate, default {_defaults('lr')}")
    parser.add_argument("--seed", type=runs.seed, default=0, help="of order, augmentation, new weights")
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
    if args.batch_size == 1:
        parser.error("--batch-size must be 2 or more: batch norm behind DeepLabV3's image pooling needs two frames")
    if args.alpha == args.beta == 0:
        parser.error("--alpha or --beta must teach the student something: both are 0")
    if args.beta == 0 and (args.conditional or not set(args.kd) & kd_losses.LOGIT_LOSSES.keys()):
        parser.error("--beta 0 reads no labels, so leave out --conditional; its --kd needs pixel, cwd or dist")
    if args.keep_logits and set(args.kd) & kd_losses.FEATURE_LOSSES.keys():
        parser.error("--keep-logits keeps no features: choose --kd pixel, cwd or dist")
    if args.preset == "published" and not set(args.kd) & kd_losses.FEATURE_LOSSES.keys():
        args.keep_logits = True  # nothing is augmented, so it is the same, and faster
    return args


def _defaults(name: str) -> str:
    values = [f"{values[name]:g} ({preset})" for preset, values in PRESETS.items()]
    return ", ".join([*values, f"{ON_CUDA[name]:g} (default on CUDA)"] if name in ON_CUDA else values)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    processes = join_processes(args.device)
    _, world, device = processes

    # Networks
    args.teacher = args.teacher or release.default_teacher()
    args.student = args.student or release.default_pruned()
    of_teacher = release.load_segmentation(args.teacher)
    if args.student:
        of_student = release.load_segmentation(args.student)
    else:
        of_student = first_process(lambda: release.cut_student(of_teacher, args.target_params), PruneError)
    teacher = freeze(rebuild(of_teacher), device)

    # Data: with --beta 0 labels are read of those frames only that are scored at the end
    args.data_dir = args.data_dir or in_turn(lambda: default_set(args.workers), DataError)
    label_free = args.beta == 0
    parts, sets = find_parts(args.data_dir, args.more_frames, label_free)
    if args.save_weights and not sets:
        raise RunError(f"{args.data_dir} has no labels to score by: leave --save-weights out and take best.pt")
    training, digest = read_training(parts["train"], args.preset == "default", teacher if label_free else None)
    args.batch_size = max(2, min(args.batch_size, len(training.images)))  # more would be the same frames again
    shown = parts["validation"]
    validation = labelled_by(teacher, read_pictures(shown)) if label_free else Batch(*read_tensors(shown))
    validation = Batch(*on_device(validation[:2], device))

    # The run's folder: written only now that everything could be read and built
    form = release.TRAINING | {"epoch": range(args.epochs * args.generations + 1), "sums": [float] * 4}
    form |= {"average": dict[str, torch.Tensor]} if args.gamma else {}
    state = checkpoint.resumed(args.out / "last.pt", args.resume, form, rebuild, "segmentation")
    checksums = {"training_pictures_sha256": digest, "teacher_sha256": checkpoint.sha256(args.teacher)}
    checksums |= {"student_sha256": checkpoint.sha256(args.student) if args.student else None}
    config = runs.config_of(args, processes=world, training_frames=len(training.images), **checksums)
    must_match = runs.decisive(config, "student", "teacher")
    first_process(lambda: runs.start(args.out, config, args.resume, must_match), RunError)

    # Train one generation after the other
    done = state["epoch"] // args.epochs if state else 0
    for number in range(done, args.generations):
        if number:
            teacher = freeze(rebuild(checkpoint.load_shared(args.out / f"generation_{number}.pt")), device)
            runs.say(f"generation {number + 1}: taught by the best student of generation {number}")
        begun = state and number == done and state["epoch"] + state["step"] > done * args.epochs
        student = rebuild(state) if begun else new_student(of_student, args.from_scratch, args.seed)
        kept = keep_logits(teacher, training, args.out.parent) if args.alpha and args.keep_logits else None
        generation = Generation(number, student, teacher, kept, of_student, state if begun else None)
        with StopSignal() as stop:
            finished = train(args, generation, training, validation, processes, stop)
        if not finished:
            runs.say(f"stopped; {args.out}/last.pt holds everything, go on with --resume", sys.stderr)
            return 130

    # Report the best epoch, once: as it is, or as it is handed on
    best = checkpoint.load_shared(args.out / "best.pt", kind="segmentation")
    if args.save_weights:
        best = release.released(best, None if label_free else release.usual(training, parts["train"]), device)
    facts = report(best, sets, args.out, device)
    if args.save_weights:
        release.write(args.save_weights, best, facts)
    if not sets:
        runs.say("no labels, so nothing was scored: log.jsonl has the agreement with the teacher")
    return 0


def train(args, generation: Generation, training: TrainingSet, validation: Batch, processes, stop: StopSignal) -> bool:
    """The training loop of one generation. False if `stop` was requested; last.pt then has all that going on needs."""
    rank, world, device = processes
    number, _, _, kept, origin, state = generation
    taught = on_device([training.images, training.labels] + ([] if kept is None else [kept]), device)
    images, labels, *_ = taught  # (N, H, W) uint8, and (N, C, h, w) float
    steps = max(1, len(images) // (args.batch_size * world))  # of an epoch
    augmented = args.preset == "default"
    student, losses = learner(args, generation, training, device)

    # Optimizer; a resumed run goes on with its state
    optimizer, scheduler = make_optimizer(student, args.lr, args.epochs, steps, args.preset == "published")
    moving = {"optimizer": optimizer, "scheduler": scheduler, "average": losses.ema}
    first_epoch, first_step, sums, best = number * args.epochs, 0, [0.0] * 4, -1.0
    torch.manual_seed(args.seed + 1000 * number + rank)  # augmentation differs between processes
    if state:
        first_epoch, first_step, sums, best = (state[key] for key in ("epoch", "step", "sums", "best"))
        restore(state, moving, rank)
    model = distributed(student)
    runs.cut_log(args.out, first_epoch)

    def update(decay, x, y, wanted=None):  # all that a step changes on the device
        terms = losses.terms(model, x, y, wanted)
        loss = args.alpha * terms.kd + args.beta * terms.ce + args.gamma * terms.own
        optimizer.zero_grad()
        loss.backward()
        if augmented:
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if losses.ema:
            kd_losses.update_ema(losses.ema, student, decay)
        return torch.stack((loss, *terms)).detach()

    train_step, reader = CapturedStep(update, optimizer), LossReader(device)

    def save(name: str, **more) -> None:
        data = release.saved(student, origin["factory"], origin["arguments"], args.seed, labels.shape[1:])
        checkpoint.save(args.out / name, data | more)

    def save_last(epoch: int, step: int, sums: list[float]) -> None:
        inner = {name: part.state_dict() for name, part in moving.items() if part}
        rng = gather(checkpoint.rng_state())
        save("last.pt", epoch=epoch, step=step, sums=sums, best=best, rng=rng, **inner)

    last_epoch = (number + 1) * args.epochs
    for epoch in range(first_epoch, last_epoch):
        order = epoch_order(len(images), steps * args.batch_size * world, args.seed, epoch).to(images.device)
        half = augmented and epoch % args.epochs < args.epochs * 5 // 6  # as train_seg.py: whole frames at the end
        rows = labels.shape[1] // 2 if half else labels.shape[1]
        student.train()
        began = time.perf_counter()
        todo = range(first_step, steps)
        chosen = (order[step * world + rank :: steps * world] for step in todo)  # each step and process takes its own
        title = f"epoch {epoch + 1}/{args.generations * args.epochs}"
        bar = tqdm(todo, title, unit="step", disable=rank > 0, file=sys.stderr)
        for step, batch in zip(bar, gathered(taught, chosen, device), strict=True):
            x, y, wanted = prepare(Batch(*batch), training.palette, augmented, rows, args.mirror)
            decay = kd_losses.ema_decay(scheduler.last_epoch + 1) if augmented else 0.999  # steps with this one
            values = train_step(decay, x, y) if wanted is None else train_step(decay, x, y, wanted)
            scheduler.step()
            stopping, due = stop.requested, (step + 1) % args.save_every == 0
            read = reader.add(values, now=stopping or due or step + 1 == steps)
            for at, values in enumerate(read, step + 1 - len(read)):
                *values, stopping = mean_over_processes([*values, float(stopping)])
                check_loss(values[0], epoch, at, args.out)
                sums = [total + value for total, value in zip(sums, values, strict=True)]
            if stopping or due:
                save_last(epoch, step + 1, sums)
            if stopping:
                return False
        trained = (steps - first_step) * args.batch_size * world / (time.perf_counter() - began)

        # Choose on the validation part
        if augmented:
            recalibrate(student, training)
        result = evaluate(student, validation.images, validation.labels)
        if result["mean_iou"] > best:
            best = result["mean_iou"]
            save("best.pt", epoch=epoch + 1, validation=result, chosen_by="masks" if args.beta else "teacher")
        means = dict(zip(("loss", "kd", "ce", "self"), (total / steps for total in sums), strict=True))
        judged = "validation_miou" if args.beta else "validation_agreement"
        line = {"epoch": epoch + 1, **means, "lr": scheduler.get_last_lr()[0], judged: result["mean_iou"]}
        line |= {"images_per_second": round(trained, 2)}
        runs.tell(args.out, line)
        first_step, sums = 0, [0.0] * 4
        if epoch + 1 == last_epoch < args.generations * args.epochs:
            checkpoint.save(args.out / f"generation_{number + 1}.pt", checkpoint.load_shared(args.out / "best.pt"))
        save_last(epoch + 1, 0, sums)
    return True


def restore(state: dict, parts: dict, rank: int) -> None:
    """Put back what last.pt holds of optimizer, scheduler and EMA, and this process's random state."""
    for name, part in parts.items():
        if part:
            part.load_state_dict(state[name])
    checkpoint.set_rng_state(state["rng"][rank])


def learner(args, generation: Generation, training: TrainingSet, device) -> tuple[nn.Module, kd_losses.Losses]:
    """The student on its device, and the losses that it learns from, with its EMA if that is asked for."""
    student = speed_up(generation.student).to(device, memory_format=torch.channels_last)
    ema = freeze(copy.deepcopy(student), device) if args.gamma else None
    join_batch_norm(student)
    losses = kd_losses.Losses(generation.teacher, ema, args.alpha, args.beta, args.kd, args.temperature)
    losses.weights = None if training.weights is None else training.weights.to(device)
    losses.weighted_kd, losses.conditional = args.preset == "published", args.conditional
    losses.cross_entropy = joint_cross_entropy
    losses.autocast = bf16_autocast(device, wanted=args.preset == "default")
    return student, losses


def prepare(batch: Batch, palette: torch.Tensor | None, augmented: bool, rows: int, mirror: bool = False) -> Batch:
    """As train_seg.py prepares a batch, with the teacher's logits moved as the labels are.

    Images uint8 (B, H, W) or (B, 3, H, W) become float (B, 3, rows, W), labels int64 (B, rows, W), logits (B, 3, h, w)
    float (B, 3, rows, W).
    """
    images, labels, logits = batch
    along = []
    if logits is not None:
        along = [F.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)]
    if augmented:
        levels = palette is not None
        images, labels, *along = augment.augment_batch(
            images, labels, *along, rows=rows, are_levels=levels, mirror=mirror
        )
    return Batch(segmentation.as_input(images, palette), labels.long(), *along)


# ---- networks and data -----------------------------------------------------------------------------------------------


def freeze(network: nn.Module, device: torch.device) -> nn.Module:
    """Evaluation mode for good and no gradients, on the device."""
    network = speed_up(network).to(device, memory_format=torch.channels_last)
    return network.eval().requires_grad_(False)


def new_student(of_student: dict, from_scratch: bool, seed: int) -> nn.Module:
    """The student as it starts: pruned weights, or new ones as torchvision and train_seg.py initialise them."""
    network = rebuild(of_student)
    if from_scratch:
        torch.manual_seed(seed)
        segmentation.initialise(network)
        segmentation.zero_outer_taps(network)
    return network


if __name__ == "__main__":
    sys.exit(run(main, *ERRORS))
