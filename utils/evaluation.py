"""A network on a set of frames: the scores that every script reports, counted in one way.

    evaluate(network, images, labels)["mean_iou"]                    # segmentation, as after each epoch
    facts = report(data, {"test": frames}, out, device)              # a saved network: tables, result.json, pictures
    amc_accuracy(network, frames, rows, device)                      # modulations

Models and data meet here: utils/metrics.py counts and divides, this file shows the frames to a network. Several
processes of torchrun share the frames and add their counts up.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from data import augment, bands
from data.lte_nr import standard_channels
from data.radioml import MODULATIONS, SNRS, Frames, batches
from data.spectrogram import HZ_PER_PIXEL, PARULA, SIZE
from data.spectrum_sensing import CLASSES, IGNORE, Frame, class_weights, read_tensors
from data.unlabelled import read_pictures
from models import segmentation
from models.rebuild import rebuild
from models.vgg10 import to_checkpoint
from utils import checkpoint, metrics, pictures
from utils.cost import challenge_score, cost_table, inference_cost
from utils.metrics import accuracy, count_by_snr, snr_scores, snr_table
from utils.runs import command, gather, hardware, provenance, rank_and_world, sum_over_processes, write_json
from utils.training import Batch, TrainingSet, recalibrate_batch_norm

RECALIBRATION_FRAMES = 512  # training frames that batch norm's statistics are measured on before a judgement
# Frames of a forward. On a CPU they stay in its caches; on CUDA they fill the card.
BATCH = {"cpu": 16, "cuda": 128}  # spectrograms
AMC_BATCH = {"cpu": 64, "cuda": 8192}  # of 1024 samples
PROBE_FRAMES = 4096  # of modulations: validation frames of a probe, see Judge
PROBE_RECALIBRATION = 1024  # and training frames that it measures batch norm's statistics on
JUDGE_RECALIBRATION = 6400  # those of a judgement

Predict = Callable[[torch.Tensor], torch.Tensor]  # pictures uint8 (B, 3, H, W) -> class numbers (B, H, W)


# ---- segmentation ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    batch_size: int | None = None,
) -> dict:
    """Scores of a network on frames, in float32; it is left in eval mode.

    Args:
        images: uint8 (N, 3, H, W), on any device.
        labels: class numbers (N, H, W); IGNORE is not counted.
        weights: float (C,) on the network's device. With them "loss" is reported as well: cross entropy with these
            class weights, in the mean over frames.
        batch_size: frames of a forward; default BATCH.

    Returns:
        Plain values: what utils.metrics.scores gives, and "loss".
    """
    network.eval()
    rank, world = rank_and_world()
    matrix = torch.zeros(len(CLASSES), len(CLASSES), dtype=torch.int64)
    loss = torch.zeros((), dtype=torch.float64)
    mine = slice(rank, None, world)
    batch_size = batch_size or of_device(BATCH, next(network.parameters()).device)
    for x, y in zip(images[mine].split(batch_size), labels[mine].split(batch_size), strict=True):
        logits = segmentation.logits(network, x)  # (B, C, H, W)
        y = y.to(logits.device)
        matrix += metrics.confusion_matrix(logits.argmax(1), y, len(CLASSES), IGNORE).cpu()
        if weights is not None:
            y = y.long()
            loss += F.cross_entropy(logits, y, weights, ignore_index=IGNORE).item() * len(y) / len(images)
    values = metrics.scores(sum_over_processes(matrix), CLASSES)
    return values if weights is None else values | {"loss": sum_over_processes(loss).item()}


def of_device(sizes: dict[str, int], device: torch.device) -> int:
    """The batch size for a device: CUDA's, or the CPU's."""
    return sizes["cuda" if device.type == "cuda" else "cpu"]


def recalibrate(network: nn.Module, training: TrainingSet) -> None:
    """Measure batch norm's statistics on training frames as they are, in place.

    Statistics from training remember the last ten batches, and those were shifted and jittered.
    """
    images = training.images
    some = images[:: max(1, len(images) // RECALIBRATION_FRAMES)][:RECALIBRATION_FRAMES]
    device = next(network.parameters()).device
    parts = some.split(of_device(BATCH, device))
    parts = (part.to(device) for part in parts if len(part) > 1)  # batch norm needs two frames
    recalibrate_batch_norm(network, (segmentation.as_input(part, training.palette) for part in parts))


def report(data: dict, sets: dict[str, list[Frame]], out: Path | None, device: torch.device) -> dict:
    """Score a saved network on sets of frames: tables on stdout, result.json and pictures in a folder.

    Each set is scored twice: with standard channels fitted to the network's bands (data/bands.py), and the network
    alone. Channels are fitted to frames of the generator's size only. Of OTHER frames the share of the pixels without
    a carrier that are called LTE or NR is told, too: "false_alarms".

    Args:
        data: a checkpoint of a segmentation network.
        sets: {title: frames}.
        out: the folder to write to, if any.

    Returns:
        The plain values of result.json; in other processes than the first an empty dictionary.
    """
    rank, _ = rank_and_world()
    network = rebuild(data).eval().to(device, memory_format=torch.channels_last)
    size = data.get("frame_size")
    alone = partial(segmentation.predict, network, size=size)
    levels_of = partial(augment.as_levels, palette=torch.from_numpy(PARULA))
    logits_of = partial(segmentation.logits, network)
    fitted = bands.predictor(logits_of, levels_of, standard_channels(CLASSES, HZ_PER_PIXEL))

    scored, without_fit, false_alarms = {}, {}, {}
    for title, frames in sets.items():
        images, labels = read_tensors(frames, progress=rank == 0)
        shape = list(labels.shape[1:])
        if rank == 0 and size and size != shape:
            print(f"{title}: {shape[0]} x {shape[1]} pixels, shown to a network of {size[0]} x {size[1]}")
        groups = metrics.frame_groups(title, [frame.family for frame in frames], [frame.snr_db for frame in frames])
        own = matrices = _matrices(alone, images, labels)
        predict = alone
        if shape == [SIZE, SIZE] == (size or shape):
            predict = fitted
            matrices = _matrices(fitted, images, labels)
        without_fit |= metrics.score_groups(own, groups, CLASSES)
        scored |= metrics.score_groups(matrices, groups, CLASSES)
        others = [i for i, frame in enumerate(frames) if frame.family == "OTHER"]
        if others:
            shares = (metrics.false_alarms(of_way[others].sum(0)) for of_way in (matrices, own))
            false_alarms[f"{title}, OTHER"] = dict(zip(("fitted", "alone"), shares, strict=True))
        if rank == 0 and out:
            some = pictures.spread(len(frames))
            examples = images[some], labels[some], predict(images[some]).cpu()
            pictures.draw_frames(out / "pictures", title, [frames[i].name for i in some], *examples)
            matrix = pictures.confusion_picture(matrices.sum(0), CLASSES, title)
            pictures.save(matrix, out / "pictures" / f"{title}_confusion.png")
    if rank > 0:
        return {}

    print(metrics.table(scored, CLASSES))
    if without_fit != scored:
        print("network alone, no channel fitted:", metrics.table(without_fit, CLASSES), sep="\n")
    for name, share in false_alarms.items():
        fitted, own = (f"{share[way]:.2%}" for way in ("fitted", "alone"))
        print(f"{name}: {fitted} of the pixels without a carrier called LTE or NR ({own} by the network alone)")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    facts = provenance(data, device) | {"parameters": parameters, "sets": scored, "network_alone": without_fit}
    facts |= {"false_alarms": false_alarms} if false_alarms else {}
    if out:
        write_json(out / "result.json", facts)
        print(f"{out}/result.json has all of it, {out}/pictures some frames")
    return facts


def _matrices(predict: Predict, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Confusion matrices of all frames, int64 (N, C, C); each process looks at its share of the frames."""
    rank, world = rank_and_world()
    mine = range(rank, len(images), world)
    return sum_over_processes(metrics.frame_matrices(predict, images, labels, mine, num_classes=len(CLASSES)))


def labelled_by(network: nn.Module, images: torch.Tensor) -> Batch:
    """Images uint8 (N, 3, H, W) with the labels uint8 (N, H, W) that a network in evaluation mode gives them."""
    parts = images.split(of_device(BATCH, next(network.parameters()).device))
    labels = [segmentation.predict(network, part).to(torch.uint8).cpu() for part in parts]
    return Batch(images, torch.cat(labels))


def read_training(frames: list[Frame], augmented: bool, labeller: nn.Module | None) -> tuple[TrainingSet, str]:
    """The training part of a distillation, and the SHA-256 of its pictures.

    Args:
        augmented: as levels of the colormap where the pictures have its colours, so that levels can be jittered.
        labeller: the teacher where no labels are read. Without augmentation the classes have weights all the same, as
            in the published KD: its labels of some frames tell their shares.
    """
    first = rank_and_world()[0] == 0
    if labeller is None:
        images, labels = read_tensors(frames, progress=first)
        weights = class_weights(labels)
    else:
        images = read_pictures(frames, progress=first)
        labels = torch.zeros(1, 1, 1, dtype=torch.uint8).expand(len(images), *images.shape[-2:])  # takes no memory
        weights = None if augmented else class_weights(labelled_by(labeller, images[:256]).labels)
    levels, palette = images, None
    if augmented:
        levels, palette = augment.as_levels(images, torch.from_numpy(PARULA))
        if palette is None and first:
            print("training pictures are not all in parula colours: no level jitter")
    return TrainingSet(levels, labels, palette, weights), hashlib.sha256(images.numpy()).hexdigest()


@torch.no_grad()
def keep_logits(teacher: nn.Module, training: TrainingSet, folder: str | Path) -> torch.Tensor:
    """The teacher's logits of all training frames as they are: float (N, C, h, w), before they are scaled up.

    Args:
        teacher: a torchvision segmentation network, frozen.
        training: its images and palette are looked at.
        folder: where the file lies, named after the teacher's weights and the images. If an earlier call has written
            it, the teacher is not asked again. Of several processes each asks for its share of the frames, and the
            first one writes the file.
    """
    digest = hashlib.sha256(training.images.numpy())
    for tensor in teacher.state_dict().values():
        digest.update(tensor.cpu().contiguous().numpy())
    path = Path(folder) / f"logits_{digest.hexdigest()[:16]}.pt"
    if all(gather(path.exists())):
        return checkpoint.load(path, form={"logits": torch.Tensor})["logits"]
    rank, world = rank_and_world()
    mine, kept, device = slice(rank, None, world), [], next(teacher.parameters()).device
    hook = teacher.classifier.register_forward_hook(lambda layer, inputs, output: kept.append(output.cpu()))
    try:
        parts = training.images[mine].split(of_device(BATCH, device))
        for part in tqdm(parts, "teacher", unit="batch", disable=rank > 0, file=sys.stderr):
            teacher(segmentation.as_input(part.to(device), training.palette))
    finally:
        hook.remove()
    own = torch.cat(kept)
    logits = own.new_zeros(len(training.images), *own.shape[1:])
    logits[mine] = own
    sum_over_processes(logits)
    checkpoint.save(path, {"logits": logits})
    return logits


# ---- classification by SNR -------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate_by_snr(
    network: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    place: torch.Tensor,
    classes: int,
    snrs: int,
) -> torch.Tensor:
    """The counts of a network over batches of (frames, labels); it is left in eval mode.

    Args:
        place: integers (N,), index of each frame's SNR, 0 to snrs - 1, in the order of the batches.
        classes, snrs: how many there are.

    Returns:
        int64 (snrs, classes, classes): SNR, true class, predicted class.
    """
    counts, start = torch.zeros(snrs, classes, classes, dtype=torch.int64), 0
    network.eval()
    for x, label in batches:
        counts += count_by_snr(network(x).argmax(1), label, place[start : start + len(x)], classes, snrs)
        start += len(x)
    return counts


def evaluate_amc(network: nn.Module, frames: Frames, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """Counts int64 (SNRs, classes, classes) of some frames by SNR, true and predicted class; no autocast."""
    rank, world = rank_and_world()
    mine = rows[rank::world]
    place = torch.from_numpy(np.searchsorted(SNRS, frames.snrs[mine]))
    todo = batches(frames, mine, of_device(AMC_BATCH, device), device=device)
    return sum_over_processes(evaluate_by_snr(network, todo, place, len(MODULATIONS), len(SNRS)))


def amc_accuracy(network: nn.Module, frames: Frames, rows: np.ndarray, device: torch.device) -> float:
    """Share of frames whose modulation the network names rightly, over all SNRs."""
    return accuracy(evaluate_amc(network, frames, rows, device))


def describe_amc(network: nn.Module, seed: int) -> dict:
    """A VGG10 as models.vgg10.from_checkpoint reads it, and where it comes from: the command line that runs."""
    return to_checkpoint(network) | {"classes": list(MODULATIONS), "seed": seed, "command": command()}


def standard_error(share: float, frames: int) -> float:
    """Of an accuracy on so many frames, from the binomial distribution: an upper bound where SNRs are mixed evenly."""
    return (share * (1 - share) / frames) ** 0.5


@dataclass
class Judge:
    """Whether a modulation network holds an accuracy, told from validation frames alone.

        accuracy, held = judge(network)

    As published, a look is at the whole validation part, and the goal is taken as it is. With a `first_goal` the noise
    is thought of: the first look is at half of the part; the goal of each look lies a standard error higher; and a
    failure by less than two standard errors gets a second look, at the whole part, which decides.
    Each goal belongs to the frames of its look, so that what is hard in them counts on both sides.

    Before a judgement batch norm's statistics are measured anew, in place: those of training lag behind. Weights of two
    or three bits jump from code to code, so a network may seem to have lost accuracy that it still has.
    """

    frames: Frames
    parts: dict[str, np.ndarray]  # rows, by data.radioml.split
    device: torch.device
    goal: float
    first_goal: float | None = None
    recalibrates: bool = True  # not with --replay-faults: the published code keeps the statistics of training

    FIRST = slice(None, None, 2)  # of the rows, which ascend: about half of each class and SNR

    @classmethod
    def references(cls, network: nn.Module, frames: Frames, rows: np.ndarray, device: torch.device) -> list[float]:
        """Accuracies of a network, to set goals by: on all rows, and on those of a first look."""
        return [amc_accuracy(network, frames, look, device) for look in (rows, rows[cls.FIRST])]

    def __call__(self, network: nn.Module) -> tuple[float, bool]:
        """The accuracy of the look that decided, and whether it is high enough."""
        rows, goal = self.parts["validation"], self.goal
        if self.recalibrates:
            self._recalibrate(network, JUDGE_RECALIBRATION)
        if self.first_goal is not None:
            first = rows[self.FIRST]
            accuracy, error = self._accuracy(network, first), standard_error(self.first_goal, len(first))
            missing = self.first_goal + error - accuracy
            if missing <= 0 or missing > 2 * error:
                return accuracy, missing <= 0
            goal += standard_error(goal, len(rows))
        accuracy = self._accuracy(network, rows)
        return accuracy, accuracy >= goal

    def probe(self, network: nn.Module) -> tuple[float, float]:
        """Accuracy before any training, and its standard error; batch norm's statistics are measured anew, in place."""
        self._recalibrate(network, PROBE_RECALIBRATION)
        rows = thinned(self.parts["validation"], PROBE_FRAMES)
        accuracy = self._accuracy(network, rows)
        return accuracy, max(standard_error(accuracy, len(rows)), 1 / len(rows))

    def _recalibrate(self, network: nn.Module, count: int) -> None:
        """Measure batch norm's statistics anew on training frames, in place."""
        rows = np.random.RandomState(0).permutation(thinned(self.parts["train"], count))
        todo = batches(self.frames, rows, AMC_BATCH["cpu"], device=self.device)
        recalibrate_batch_norm(network, (x for x, _ in todo if len(x) > 1))  # a dense layer's norm needs two frames

    def _accuracy(self, network: nn.Module, rows: np.ndarray) -> float:
        return amc_accuracy(network, self.frames, rows, self.device)


def thinned(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, evenly spaced."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


@dataclass
class KeptLogits:
    """A teacher's logits of all training frames. They are asked for once: no frame is altered from epoch to epoch."""

    rows: np.ndarray  # int64 (N,), ascending
    logits: torch.Tensor  # float16 (N, classes), on the device of the training

    @classmethod
    @torch.no_grad()
    def of(cls, teacher: nn.Module, frames: Frames, rows: np.ndarray, device: torch.device) -> "KeptLogits":
        """Ask a teacher on `device`, without autocast; `frames` has as many bits as its input."""
        teacher.eval()
        rank, world = rank_and_world()
        mine = slice(rank, None, world)
        todo = batches(frames, rows[mine], of_device(AMC_BATCH, device), device=device)
        total = -(-len(rows[mine]) // of_device(AMC_BATCH, device))
        bar = tqdm(todo, "teacher", total, unit="batch", leave=False, disable=rank > 0, file=sys.stderr)
        own = torch.cat([teacher(x).half() for x, _ in bar])
        logits = own.new_zeros(len(rows), own.shape[1])
        logits[mine] = own
        return cls(rows, sum_over_processes(logits))

    def beside(self, pairs: Iterable, order: np.ndarray, batch_size: int) -> Iterable:
        """Batches (frames, labels) with the teacher's logits, float32 (B, classes), in third place.

        Args:
            order: rows of the frames in these batches, in their order.
        """
        places = torch.from_numpy(np.searchsorted(self.rows, order)).to(self.logits.device)
        parts = places.split(batch_size) if len(order) else ()  # none is left where a run goes on at an epoch's end
        for (x, label), place in zip(pairs, parts, strict=True):
            yield x, label, self.logits[place].float()


def report_amc(
    networks: dict[str, nn.Module],
    frames: Frames,
    rows: np.ndarray,
    device: torch.device,
    facts: dict,
    out: Path | None = None,
) -> dict:
    """Score modulation networks on the same frames, and print tables of the first one: its cost and its accuracies.

    Args:
        networks: {name: quantised network on `device`}.
        rows: int64 (N,), frames to score.
        facts: plain values that belong beside the scores, such as seed and commands.
        out: a run's folder; it gets result.json and pictures/.

    Returns:
        `facts` and all results, plain values, as in result.json: "sets" has metrics.snr_scores of each network, "cost"
        and "layers" the challenge's cost of the first. In other processes than the first an empty dictionary.
    """
    # Scores of every network, and the cost of the first
    counts = {name: evaluate_amc(network, frames, rows, device) for name, network in networks.items()}
    if rank_and_world()[0] > 0:
        return {}
    sets = {name: snr_scores(values, MODULATIONS, SNRS) for name, values in counts.items()}
    first, network = next(iter(networks.items()))
    layers = inference_cost(network, torch.zeros(1, 2, network.samples, device=device))

    # Tables
    print(cost_table(layers))
    print(snr_table(sets[first], SNRS))
    print(", ".join(f"accuracy of {name} {values['accuracy']:.4f}" for name, values in sets.items()))

    # Files
    facts = facts | {"data": frames.path.name, "scored_by": command(), "hardware": hardware(device)}
    facts |= {"torch": torch.__version__, "cost": challenge_score(layers), "sets": sets}
    facts |= {"layers": {name: layer._asdict() for name, layer in layers.items()}}
    if out:
        pictures.draw_snr_scores(out / "pictures", sets, counts[first], MODULATIONS, SNRS)
        write_json(out / "result.json", facts)
        print(f"{out}/result.json holds all results, {out}/pictures the charts")
    return facts
