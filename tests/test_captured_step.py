"""The training step as one CUDA graph, and data on the device, as far as a CPU can tell: seconds.

python -m pytest tests/test_captured_step.py

No graph is captured here. `recorded` stands in for one: it runs the function once without effect, as a capture does.
Then it computes from the tensors that it saw, never from the caller's.
"""

import copy
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import distill_seg
import feedback_magnitude_pruning
import train_amc
import train_seg
from data import on_device
from data.code_cache import encode
from data.radioml import batches, from_arrays, loaded, resident
from experiments import gpu_speed
from models.vgg10 import VGG10
from tests.conftest import AMC_SMALL, assert_equal, contents, write_levels
from utils import checkpoint, runs, training
from utils.kd_losses import update_ema
from utils.training import WARM_UP, CapturedStep, LossReader

CPU = torch.device("cpu")


class Trainee:
    """A small network with all that the scripts' steps have: batch norm, clipping, fused AdamW, masks and an EMA."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
        self.network(torch.zeros(2, 2, 8))
        self.ema = copy.deepcopy(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 2.0**-6, fused=True)
        self.mask = torch.rand(self.network[0].weight.shape) < 0.5

    def update(self, decay, x, y):
        loss = F.cross_entropy(self.network(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            self.network[0].weight.mul_(self.mask)
        update_ema(self.ema, self.network, decay)
        return loss.detach()

    def train(self, step, count=12, small_from=12):
        """Losses of some steps, whose rate, decay and, from one of them on, batch size change."""
        generator = torch.Generator().manual_seed(1)
        losses = []
        for number in range(count):
            self.optimizer.param_groups[0]["lr"] = 2.0 ** -(6 + number % 3)  # float32 holds it exactly
            size = 6 if number < small_from else 4
            x = torch.randn(size, 2, 8, generator=generator)
            y = torch.randint(3, (size,), generator=generator)
            losses.append(step(1 - 2.0 ** -(number % 4), x, y))
        return torch.stack(losses)

    def state(self) -> dict:
        return {"network": self.network.state_dict(), "ema": self.ema.state_dict()} | self.optimizer.state_dict()


def recorded(trainee, calls, function, inputs):
    """What cuda_graph does, without a GPU; `calls` counts captures and launches."""
    kept = copy.deepcopy(trainee.state())
    groups = trainee.optimizer.param_groups
    assert all(group["capturable"] for group in groups)  # else torch refuses to capture the optimizer
    rate = groups[0]["lr"]
    losses = function(*inputs)
    for name in ("network", "ema"):
        getattr(trainee, name).load_state_dict(kept[name])
    trainee.optimizer.load_state_dict({key: kept[key] for key in ("state", "param_groups")})
    groups[0]["lr"] = rate
    calls.append("capture")

    def launch():
        number, groups[0]["lr"] = groups[0]["lr"], rate
        losses.copy_(function(*inputs))
        groups[0]["lr"] = number
        calls.append("launch")

    return launch, losses


# ---- the step --------------------------------------------------------------------------------------------------------


def test_on_a_cpu_a_step_is_the_plain_function():
    plain, stepped = Trainee(), Trainee()
    ours = stepped.train(CapturedStep(stepped.update, stepped.optimizer))
    assert torch.equal(ours, plain.train(plain.update)) and len(ours.unique()) == 12
    assert_equal(stepped.state(), plain.state())


def test_a_captured_step_computes_from_its_own_tensors_what_the_plain_loop_computes():
    plain, captured, calls = Trainee(), Trainee(), []
    step = CapturedStep(captured.update, captured.optimizer, capture=partial(recorded, captured, calls))
    ours, theirs = captured.train(step, small_from=7), plain.train(plain.update, small_from=7)
    assert torch.equal(ours, theirs)  # a loss is not overwritten by the next step either
    # Three steps as they are, then a graph; and the same again for the smaller batch
    first, second = 7 - WARM_UP, 5 - WARM_UP
    assert calls == ["capture"] + ["launch"] * first + ["capture"] + ["launch"] * second
    for name in ("network", "optimizer"):
        assert_equal(getattr(captured, name).state_dict(), getattr(plain, name).state_dict(), name)
    for name, tensor in captured.ema.state_dict().items():  # lerp with a tensor may round otherwise
        assert torch.allclose(tensor, plain.ema.state_dict()[name], atol=1e-6), name
    group = captured.optimizer.param_groups[0]
    assert type(group["lr"]) is float and not group["capturable"]  # so a checkpoint loads on any device


def test_nothing_is_captured_before_the_step_is_ready():
    trainee, calls = Trainee(), []
    asked = iter([False] * 5 + [True] * 7)
    step = CapturedStep(trainee.update, trainee.optimizer, lambda: next(asked), partial(recorded, trainee, calls))
    trainee.train(step)
    assert calls == ["capture"] + ["launch"] * (7 - WARM_UP)


def test_vgg10_is_ready_once_all_thresholds_are_past_their_initial_steps():
    network = VGG10(4, filters=4, dense=8).train()
    blocks = [*network.features, *network.dense]
    for block in blocks:
        block.activation.steps.fill_(block.activation.initial_steps - 1)
    assert not network.learning
    network(torch.randn(8, 2, 1024))
    assert network.learning
    blocks[-1].activation.steps.fill_(3)
    assert not network.learning


def test_where_capturing_fails_one_warning_says_so_and_training_goes_on_step_by_step():
    plain, fallen, tries = Trainee(), Trainee(), []

    def failing(function, inputs):
        tries.append(1)
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        except RuntimeError:
            raise RuntimeError("a later consequence")  # noqa: B904, as torch.cuda.graph does when it ends

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = fallen.train(CapturedStep(fallen.update, fallen.optimizer, capture=failing))
    assert torch.equal(ours, plain.train(plain.update)) and tries == [1]
    assert [str(w.message).count("can't be captured") for w in caught] == [1]
    assert "(operation not permitted when stream is capturing)" in str(caught[0].message)
    assert_equal(fallen.optimizer.state_dict(), plain.optimizer.state_dict())
    assert_equal(fallen.network.state_dict(), plain.network.state_dict())


def test_false_keeps_every_step_as_it_is():
    trainee = Trainee()
    step = CapturedStep(trainee.update, trainee.optimizer, capture=False)
    assert not step.capture and len(trainee.train(step)) == 12


# ---- losses ----------------------------------------------------------------------------------------------------------


def test_losses_are_read_in_order_every_so_many_steps_and_at_once_when_asked():
    reader = LossReader(CPU, every=3)
    read = [reader.add(torch.tensor(float(number)), now=number == 4) for number in range(9)]
    assert read == [[], [], [0, 1, 2], [], [3, 4], [], [], [5, 6, 7], []]
    assert LossReader(CPU, every=2).add(torch.tensor([1.0, 2.0]), now=True) == [[1.0, 2.0]]
    assert LossReader(CPU).every == 1 and LossReader(torch.device("cuda")).every > 1


@pytest.fixture(scope="module")
def amc_options(radioml_file) -> list[str]:
    """Of the run that the fixture amc_baseline is."""
    argv = ["--data-file", str(radioml_file), *AMC_SMALL, "--filters", "8", "--dense", "16", "--epochs", "2"]
    return [*argv, "--schedule", "cosine", "--save-every", "30"]


def test_a_run_is_the_same_with_losses_read_rarely_and_data_on_the_device(
    amc_options, amc_baseline, tmp_path, monkeypatch
):
    monkeypatch.setitem(training.READ_EVERY, "cpu", 7)
    monkeypatch.setattr(train_amc, "resident", loaded)
    assert train_amc.main([*amc_options, "--out", str(tmp_path / "run")]) == 0
    assert_equal(contents(tmp_path / "run"), contents(amc_baseline))


def poisoned_at(call):
    """Cross entropy whose value and gradient are not numbers at one call and every one after it."""
    inner, calls = F.cross_entropy, []

    def poisoned(*args, **kwargs):
        calls.append(1)
        return inner(*args, **kwargs) * (float("nan") if len(calls) >= call else 1)

    return poisoned


def test_a_loss_that_is_read_late_still_stops_the_run_and_keeps_the_last_good_checkpoint(
    amc_options, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(training.READ_EVERY, "cpu", 50)
    levels = write_levels(tmp_path / "levels", [f"{kind}_frame_{i}" for kind in ("NR", "LTE") for i in range(10)])
    seg = ["--data-dir", str(levels), "--model", "lraspp_mobilenet_v3_large", "--batch-size", "2", "--epochs", "1"]
    # Not a number from the 5th step on; the checkpoint is due after the 3rd, and again after the 6th
    for script, argv, step in ((train_amc, amc_options, "batch"), (train_seg, seg, "step")):
        with monkeypatch.context() as patch:
            patch.setattr(F, "cross_entropy", poisoned_at(5))
            argv = [*argv, "--save-every", "3", "--out", str(tmp_path / script.__name__)]
            assert runs.run(lambda script=script, argv=argv: script.main(argv), *script.ERRORS) == 2
        assert "loss is nan in epoch 1" in capsys.readouterr().err.splitlines()[-1]
        state = checkpoint.load(tmp_path / script.__name__ / "last.pt")
        assert (state["progress"] if "progress" in state else state)[step] == 3
        assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["samples", "samples first", "codes"])
def test_frames_on_the_device_come_in_the_same_batches_as_frames_that_are_read(layout):
    x = np.random.default_rng(0).standard_normal((53, 8, 2), np.float32)
    frames = from_arrays(x if layout == "samples" else np.ascontiguousarray(x.transpose(0, 2, 1)), np.arange(53) % 24)
    if layout == "codes":
        frames = replace(frames, x=encode(frames.x, 8), scale=2.0**-6)
    moved = loaded(frames, CPU)
    assert isinstance(moved.x, torch.Tensor)
    rows = np.array([50, 3, 3, 17, 0, 52, 21])
    for order in (rows, rows[:0]):
        read, gathered = (list(batches(f, order, 3)) for f in (frames, moved))
        assert len(read) == len(gathered) == -(-len(order) // 3)
        for (x, label), (y, other) in zip(read, gathered, strict=True):
            assert torch.equal(x, y) and torch.equal(label, other) and x.dtype == torch.float32
    shuffled = [batches(f, rows, 3, True, torch.Generator().manual_seed(4)) for f in (frames, moved)]
    for (x, label), (y, other) in zip(*shuffled, strict=True):
        assert torch.equal(x, y) and torch.equal(label, other)
    assert torch.equal(moved.samples(rows), frames.samples(rows))
    assert resident(frames, CPU) is frames


def test_what_is_read_ahead_equals_what_is_gathered_and_keeps_the_order():
    images, labels = torch.randint(255, (20, 4, 4), dtype=torch.uint8), torch.arange(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    parts = list(order.split(6))  # the last one is smaller
    gathered = list(on_device.gathered((images, labels), iter(parts), CPU))
    ahead = list(on_device.read_ahead(lambda rows: (images[rows], labels[rows]), parts, CPU))
    assert [label.tolist() for _, label in gathered] == [part.tolist() for part in parts]
    for one, other in zip(gathered, ahead, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert list(on_device.read_ahead(lambda rows: (rows,), [], CPU)) == []


def test_half_of_the_free_memory_of_a_card_may_be_data(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    cuda = torch.device("cuda")
    assert on_device.fits(500, cuda) and not on_device.fits(501, cuda) and on_device.fits(10**15, CPU)
    kept = torch.zeros(300, dtype=torch.uint8), torch.zeros(201, dtype=torch.uint8)
    assert all(
        a is b for a, b in zip(on_device.on_device(kept, cuda), kept, strict=True)
    )  # together they are too large
    assert resident(from_arrays(np.zeros((30, 8, 2), np.float32), np.zeros(30, int)), cuda).x.dtype == np.float32


# ---- defaults --------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_gpu(monkeypatch):
    """A machine that says it has a CUDA device."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("script", "on_cpu", "on_cuda"),
    [
        (train_amc, (128, 1e-3), (512, 2e-3)),
        (feedback_magnitude_pruning, (128, 1e-3), (512, 2e-3)),
        (train_seg, (8, 1e-3), (32, 2e-3)),
        (distill_seg, (8, 1e-3), (32, 2e-3)),
    ],
)
def test_batch_and_rate_have_defaults_for_cuda_that_flags_overrule(script, on_cpu, on_cuda):
    for device, expected in (("cpu", on_cpu), ("cuda", on_cuda), ("cuda:0", on_cuda)):
        args = script.parse_args(["--device", device])
        assert (args.batch_size, args.lr) == expected
    args = script.parse_args(["--device", "cuda", "--batch-size", "6", "--lr", ".5", "--save-every", "9"])
    assert (args.batch_size, args.lr, args.save_every) == (6, 0.5, 9)
    assert script.parse_args(["--device", "cpu"]).save_every == 200


@pytest.mark.usefixtures("one_gpu")
def test_the_published_recipes_are_the_same_on_every_device():
    for script, expected in ((train_seg, (4, 0.02)), (distill_seg, (3, 1e-3))):
        args = script.parse_args(["--preset", "published", "--device", "cuda"])
        assert (args.batch_size, args.lr) == expected


# ---- the experiment --------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_experiment_says_what_it_would_do(tmp_path, capsys):
    assert gpu_speed.main(["--device", "cpu", "--out", str(tmp_path / "x.json")]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 and "CUDA" in said and not (tmp_path / "x.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg10", "deeplab", "distillation"])
def test_the_loops_of_the_experiment_train_and_are_measured(name, monkeypatch):
    for size, value in (("FRAMES", 4), ("SIGNALS", 8), ("COMPARED", 2)):
        monkeypatch.setattr(gpu_speed, size, value)
    args = gpu_speed.parse_args(["--rounds", "2", "--seconds", "0.01"])
    row = gpu_speed.compare(gpu_speed.Training(name, getattr(gpu_speed, name), 2, 4), args, CPU)
    assert row["losses"][0] == row["losses"][1] > 0  # nothing is captured on a CPU
    assert row["ratio"] == row["captured"] / row["eager"] > 0 and row["share"] == row["captured"] / row["ceiling"]
    assert {len(turns) for turns in row["turns"].values()} == {2}
