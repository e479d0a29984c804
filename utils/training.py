"""What training scripts do in the same way, so that their results compare: optimizer, learning rate, order of frames,
bfloat16, the step as one CUDA graph, the loss of several processes, and batch norm's statistics.

    optimizer, scheduler = make_optimizer(network, lr=1e-3, epochs=11, steps=360)
    autocast = bf16_autocast(device)

    def update(x, y):                                        # what a GPU does in a step
        with autocast: loss = ...
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        return loss.detach()

    train_step, losses = CapturedStep(update, optimizer), LossReader(device)
    for epoch in range(11):
        for batch in epoch_order(2880, 2880, seed=0, epoch=epoch).split(8):
            loss = train_step(images[batch], labels[batch])
            scheduler.step()
            for value in losses.add(loss): ...               # as a number: on CUDA 50 at a time
    recalibrate_batch_norm(network, batches_of_images)       # before a pruned network is judged or trained

Torch, numpy and utils/runs.py only.
"""

import gc
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from utils.runs import rank_and_world, sum_over_processes

WARM_UP = 3  # eager steps before a capture: they choose kernels and make the optimizer's state
READ_EVERY = {"cuda": 50}  # steps between two readings of the losses; on other devices each step is read
DROP_AFTER = 5  # epochs without improvement after which a plateau schedule divides the learning rate by ten


class Batch(NamedTuple):
    """Frames that belong together: those of a step, or of a whole part of the set."""

    # Levels are places in the palette, 0 to 255: one number for each pixel instead of a colour.
    images: Tensor  # uint8 pictures (B, 3, H, W) or levels (B, H, W); as a network's input float (B, 3, H, W)
    labels: Tensor  # the class of each pixel, (B, H, W)
    teacher_logits: Tensor | None = None  # float (B, C, h, w), before they are scaled up to H x W


class TrainingSet(NamedTuple):
    """The training part in memory."""

    images: Tensor  # uint8 levels (N, H, W) of a palette, or pictures (N, 3, H, W)
    labels: Tensor  # uint8 (N, H, W); blank where a training is label-free
    palette: Tensor | None  # uint8 (256, 3): the colour of each level
    weights: Tensor | None  # float (C,): of the classes in the loss


def make_optimizer(
    network: nn.Module, lr: float, epochs: int, steps: int, published: bool = False
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with a warm-up and a cosine down to 0. Call the scheduler's step after each of the optimizer's.

    Args:
        lr: highest learning rate.
        epochs, steps: of the training, and of an epoch.
        published: SGD with momentum .9, a tenth of the rate after every 10 epochs (the reference notebooks' recipe).
    """
    fused = next(network.parameters()).device.type in ("cpu", "cuda")
    if published:
        optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=1e-4, fused=fused)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1 ** (step // steps // 10))
    optimizer = torch.optim.AdamW(network.parameters(), lr, weight_decay=0.01, fused=fused)
    total, warm_up = epochs * steps, max(1, epochs * steps // 20)  # the rate rises during the first 5 % of all steps

    def rate(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / total))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def epoch_order(n: int, needed: int, seed: int, epoch: int) -> torch.Tensor:
    """int64 (needed,): a shuffled order of frames 0 .. n - 1, repeated where n is less. Seed and epoch decide it."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1000 * seed + epoch))
    return order.repeat(-(-needed // n))[:needed]


def epoch_rows(rows: np.ndarray, steps: int, batch_size: int, seed: int, epoch: int) -> np.ndarray:
    """int64 (steps * batch_size,): the rows of a large file that an epoch reads, batch after batch.

    A function of seed and epoch. Rows ascend within a batch, because a disk reads them faster in that order.

    Args:
        rows: int64 (N,), the training part; repeated where it is too short.
    """
    order = epoch_order(len(rows), steps * batch_size, seed, epoch).numpy()
    return np.sort(rows[order].reshape(steps, batch_size), axis=1).ravel()


def falling_rate(lr: float, schedule: str, done: int, total: int, drops: int = 0) -> float:
    """The learning rate of the next optimizer step.

    Args:
        lr: at the start.
        schedule: "cosine" falls to 0 along a cosine; "plateau" divides the rate by ten at each drop.
        done, total: optimizer steps so far, and of the whole training; for the cosine.
        drops: for the plateau.
    """
    if schedule == "cosine":
        return lr * (0.5 + 0.5 * math.cos(math.pi * done / total))
    return lr * 0.1**drops


@dataclass
class Progress:
    """How far a training with one validation after each epoch has come; plain values, for a checkpoint."""

    epochs: int = 0  # complete ones
    batch: int = 0  # batches done in the present epoch
    loss_sum: float = 0.0  # over these batches
    accuracy: float | None = None  # latest on validation
    best: float = -1.0  # highest accuracy of an epoch
    waited: int = 0  # epochs since then
    drops: int = 0  # how often a plateau schedule has lowered the learning rate

    def end_epoch(self, accuracy: float) -> bool:
        """Note an epoch's accuracy on validation and begin the next epoch; whether it is the best so far."""
        self.accuracy = accuracy
        self.epochs, self.batch, self.loss_sum = self.epochs + 1, 0, 0.0
        if accuracy > self.best:
            self.best, self.waited = accuracy, 0
            return True
        self.waited += 1
        self.drops += self.waited % DROP_AFTER == 0
        return False


AMC_DEFAULTS = {  # of scripts that train modulation networks, by --device
    "cpu": {"batch_size": 128, "lr": 1e-3, "save_every": 200},
    "cuda": {"batch_size": 512, "lr": 2e-3, "save_every": 1000},
}


def amc_defaults(device: str) -> dict:
    """The options of AMC_DEFAULTS for --device."""
    return AMC_DEFAULTS["cuda" if device.startswith("cuda") else "cpu"]


def native_bf16(device: str | torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: CUDA of compute capability 8, or a CPU with AMX or AVX512-BF16."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if torch.device(device).type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return False


def bf16_autocast(device: torch.device, wanted: bool = True) -> AbstractContextManager:
    """Autocast to bfloat16 where it is wanted and faster than float32, else a context that changes nothing."""
    if not wanted or not native_bf16(device):
        return nullcontext()
    # Weights that were cast in a CUDA graph must not be kept beyond it. Each is used once a step anyway.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=device.type != "cuda")


# ---- the step as one CUDA graph --------------------------------------------------------------------------------------

Capture = Callable[[Callable[..., Tensor], list[Tensor]], tuple[Callable[[], None], Tensor]]
FAILED_GRAPHS: list = []  # after one that couldn't be captured this process tries no other


class CapturedStep:
    """A training step: plain Python on a CPU; on CUDA recorded once, and from then on launched as one CUDA graph.

        train_step = CapturedStep(update, optimizer)
        loss = train_step(x, y)

    A step is some thousand kernels. Python launches them one by one, more slowly than a GPU computes those of a usual
    batch; a graph launches all at once. Every call is one step of the training, with the same arithmetic. On CUDA the
    first three run as they are, on a stream of their own. The fourth is captured (Python runs, the GPU only notes) and
    launched. Inputs are copied into the graph's own tensors. The optimizer's learning rate is written into a tensor
    that the graph reads, so scheduler and checkpoints see numbers as ever, and a state loads on any device.
    An input of another shape or order in memory is warmed up and captured anew. Where capturing fails, one warning says
    so, and all steps run as they are.

    Args:
        function: (*inputs) -> float tensor without gradient, of any fixed shape: the losses. It does all that a step
            changes on the device: zero_grad to None, forward, backward, clipping, optimizer, masks, EMA. It must not
            ask the GPU for a number (.item(), int(), if), and what it changes must stay where it is in memory.
        optimizer: fused; its parameters tell the device.
        ready: whether a step may be captured; asked before each one. Until then steps run as they are.
        capture: (function, inputs) -> (launch, losses that each launch overwrites); None: cuda_graph on CUDA in a
            single process, else no capture. False keeps every step as it is.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        ready: Callable[[], bool] = lambda: True,
        capture: Capture | bool | None = None,
    ):
        self.function, self.optimizer, self.ready = function, optimizer, ready
        self.device = optimizer.param_groups[0]["params"][0].device
        alone = rank_and_world()[1] == 1  # DistributedDataParallel's collectives are not captured
        if capture is None and self.device.type == "cuda" and alone and not FAILED_GRAPHS:
            capture = cuda_graph
        self.capture = capture or None
        self.stream = torch.cuda.Stream(self.device) if self.capture and self.device.type == "cuda" else None
        self.rates = [torch.zeros((), device=self.device) for _ in optimizer.param_groups]
        self.layout: list | None = None  # shapes and strides of the inputs that the rest is for
        self.warm, self.launch, self.inputs, self.losses = 0, None, [], torch.empty(0)

    def __call__(self, *inputs: Tensor | float) -> Tensor:
        """One step. Numbers among the inputs, which change from step to step, reach a graph as tensors."""
        if not self.capture or not self.ready():
            return self.function(*inputs)
        inputs = [self._as_tensor(value) for value in inputs]
        layout = [(value.shape, value.stride(), value.dtype) for value in inputs]
        if layout != self.layout:
            self.layout, self.warm, self.launch, self.inputs, self.losses = layout, 0, None, [], torch.empty(0)
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        if self.warm < WARM_UP:
            self.warm += 1
            with self._rates_on_device():
                return self._beside(inputs)
        if not self.launch:
            self.inputs = [value.clone() for value in inputs]
            try:
                with self._rates_on_device(capturable=True):
                    self.launch, self.losses = self.capture(self.function, self.inputs)
            except RuntimeError as error:
                fault = (str(error.__context__ or error).strip() or repr(error)).splitlines()[0]
                warnings.warn(
                    f"the training step can't be captured in a CUDA graph ({fault}): "
                    "every step runs kernel by kernel, which takes longer at small batches",
                    stacklevel=2,
                )
                self.capture = None
                return self.function(*inputs)
        for own, value in zip(self.inputs, inputs, strict=True):
            own.copy_(value)
        self.launch()
        return self.losses.clone()  # the next launch writes over them

    def _as_tensor(self, value: Tensor | float) -> Tensor:
        return value if isinstance(value, Tensor) else torch.full((), value, device=self.device)

    def _beside(self, inputs: list[Tensor]) -> Tensor:
        """A step on the side stream, as it must be before a capture; the present stream waits for it."""
        if not self.stream:
            return self.function(*inputs)
        present = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(present)
        with torch.cuda.stream(self.stream):
            losses = self.function(*inputs)
        present.wait_stream(self.stream)
        return losses

    @contextmanager
    def _rates_on_device(self, capturable: bool = False) -> Iterator[None]:
        """Within it, the optimizer reads its learning rates from tensors and may be captured."""
        kept = [dict(group) for group in self.optimizer.param_groups]
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            group["lr"] = rate
            if capturable and "capturable" in group:
                group["capturable"] = True
        try:
            yield
        finally:
            for group, before in zip(self.optimizer.param_groups, kept, strict=True):
                group.update(before)


def cuda_graph(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Capture function(*inputs); see CapturedStep. RuntimeError: it asked the GPU for something in between."""
    graph, present = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    gc.collect()  # an old graph that Python destroyed during the capture could end it
    try:
        with torch.cuda.graph(graph):
            losses = function(*inputs)
    except RuntimeError:
        # A capture that failed leaves its stream as the present one, a random generator that still believes in it, and
        # an allocator that may still ask the graph.
        FAILED_GRAPHS.append(graph)
        torch.cuda.set_stream(present)
        generator = torch.cuda.default_generators[present.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        raise
    return graph.replay, losses


class LossReader:
    """Losses of the steps as numbers. Reading makes Python wait for the GPU, so on CUDA 50 are read at a time.

    Several processes read each step, because they must agree on it.

    every: another number than that.
    """

    def __init__(self, device: torch.device, every: int | None = None):
        alone = rank_and_world()[1] == 1
        self.every, self.waiting = every or (READ_EVERY.get(device.type, 1) if alone else 1), []

    def add(self, losses: Tensor, now: bool = False) -> list:
        """Note a step's losses, without gradient. The numbers of all steps that weren't read yet, or an empty list.

        Args:
            now: read at once: before a checkpoint, which must not hold what came after a loss that isn't finite, and at
                an epoch's end.

        Returns:
            For each step a float, or lists of floats as `losses` is shaped; in the order of the steps.
        """
        self.waiting.append(losses)
        if not now and len(self.waiting) < self.every:
            return []
        values, self.waiting = torch.stack(self.waiting).tolist(), []
        return values


# ---- several processes ----------------------------------------------------------------------------------------------


def distributed(network: nn.Module, unused: bool = False) -> nn.Module:
    """The network for a training step: with several processes its gradients are their means, with one it is itself.

    Buffers are not sent around: batch norm must be joint (models/joint_norm.py), so that they are equal everywhere.

    Args:
        unused: a step may leave out some parameters; they get no gradient then, as with one process.
    """
    if rank_and_world()[1] == 1:
        return network
    return DistributedDataParallel(network, broadcast_buffers=False, find_unused_parameters=unused)


def joint_cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None = None, ignore_index: int = -100):
    """Cross entropy whose mean over the processes is the class-weighted mean over their joint batch.

    With one process it is F.cross_entropy(...). With several, each divides its weighted sum by the mean of the
    processes' sums of weights; with its own sum, a process whose frames have few weighty pixels would count too much.

    Args:
        logits: float (B, C, ...).
        labels: int64 (B, ...).
        weight: of the classes, float (C,).
        ignore_index: the label that doesn't count.
    """
    world = rank_and_world()[1]
    if world == 1:
        return F.cross_entropy(logits, labels, weight, ignore_index=ignore_index)
    total = F.cross_entropy(logits, labels, weight, ignore_index=ignore_index, reduction="sum")
    counted = labels[labels != ignore_index]
    own = counted.new_tensor(len(counted), dtype=torch.float32) if weight is None else weight[counted].sum()
    return total / (sum_over_processes(own) / world)


# ---- batch norm ------------------------------------------------------------------------------------------------------


def recalibrate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Measure the statistics of batch norm anew, as plain means over the batches, in place. Returns the model.

    Without it a pruned network is judged by statistics of channels that are gone (EagleEye, Li 2020,
    arXiv:2007.02491). No weight moves, and every other layer stays in eval mode.

    Args:
        model: left in eval mode.
        batches: inputs of the model; two at least in each batch where a norm sees a single position.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    with torch.no_grad():
        for x in batches:
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model
