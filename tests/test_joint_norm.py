"""Two processes and one with the joint batch compute the same step. Run: python -m pytest tests/test_joint_norm.py"""

import copy

import pytest
import torch
from torch import nn

from models.fake_quant import QuantReLU
from models.joint_norm import JointBatchNorm, join_batch_norm
from models.vgg10 import VGG10
from tests.conftest import two_processes
from utils.runs import RunError, in_turn, join_processes, rank_and_world
from utils.training import distributed, joint_cross_entropy, recalibrate_batch_norm

WEIGHTS = torch.tensor([0.2, 1.0, 5.0])


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 3, 1), nn.BatchNorm2d(3)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight frames; the second process's half is brighter, and most of its pixels are of the weightiest class."""
    x, y = torch.randn(8, 3, 9, 9), torch.randint(0, 2, (8, 7, 7))
    x[4:] = 3 * x[4:] + 2
    y[4:, :, :5] = 2
    y[0] = 255  # does not count
    return x, y


def stepped(network: nn.Module, x: torch.Tensor, y: torch.Tensor, training: bool) -> dict:
    """A loss, its gradients, and the network's buffers after the step."""
    network = join_batch_norm(copy.deepcopy(network)).train(training)
    model = distributed(network)
    loss = joint_cross_entropy(model(x), y, WEIGHTS, ignore_index=255)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    return gradients | dict(network.named_buffers()) | {"loss": loss.detach()}


@pytest.mark.parametrize("training", [False, True], ids=["frozen statistics", "statistics of the batch"])
def test_two_processes_have_the_gradients_of_one_with_the_joint_batch(network, batch, training):
    def half() -> dict:
        rank = join_processes("cpu").rank
        return stepped(network, *(part[4 * rank : 4 * rank + 4] for part in batch), training)

    first, second = two_processes(half)
    whole = stepped(network, *batch, training)
    first["loss"] = second["loss"] = (first["loss"] + second["loss"]) / 2
    for name, value in whole.items():
        assert torch.allclose(first[name], value, rtol=1e-5, atol=1e-6), name
        assert torch.equal(first[name], second[name]), name


def test_measuring_statistics_stays_within_a_process_and_bfloat16_is_summed_in_float32(network, batch):
    def measured() -> dict:
        rank = join_processes("cpu").rank
        layers = join_batch_norm(copy.deepcopy(network))
        assert type(layers[1]) is JointBatchNorm
        recalibrate_batch_norm(layers, [batch[0][:3]] * (rank + 1))  # of unequal length
        statistics = copy.deepcopy(dict(layers.named_buffers()))
        norm = JointBatchNorm(4).train()
        norm(torch.full((2, 4, 64, 64), 1.0078125 + rank / 2, dtype=torch.bfloat16).requires_grad_())
        return {"statistics": statistics, "mean": norm.running_mean}

    first, second = two_processes(measured)
    alone = dict(recalibrate_batch_norm(copy.deepcopy(network), [batch[0][:3]]).named_buffers())
    for name, value in alone.items():
        if not name.endswith("tracked"):
            assert torch.equal(first["statistics"][name], value)
            assert torch.allclose(second["statistics"][name], value, atol=1e-6)
    for told in (first, second):
        assert torch.allclose(told["mean"], torch.full((4,), 0.12578125), atol=1e-6)


def test_what_writes_a_file_is_done_by_one_process_and_then_by_the_others(tmp_path):
    def find_or_make() -> bool:
        found = (tmp_path / "file").exists()
        (tmp_path / "file").touch()
        return found

    def refuse():
        if rank_and_world()[0] == 1:
            raise ValueError("no room")

    def work() -> list:
        join_processes("cpu")
        values = [in_turn(find_or_make)]
        try:
            in_turn(refuse, ValueError)
        except RunError as error:
            values.append(str(error))
        return values

    assert two_processes(work) == [[False, "no room"], [True, "no room"]]
    assert in_turn(lambda: 3) == 3


def test_one_process_keeps_its_layers_and_its_loss(network, batch):
    same = join_batch_norm(network)
    assert type(same[1]) is nn.BatchNorm2d and distributed(same) is network
    logits = network(batch[0])
    ours = joint_cross_entropy(logits, batch[1], WEIGHTS, ignore_index=255)
    assert torch.equal(ours, nn.functional.cross_entropy(logits, batch[1], WEIGHTS, ignore_index=255))


def test_thresholds_follow_the_percentile_of_the_joint_batch():
    torch.manual_seed(0)
    x = torch.randn(2, 5000)
    x[1] *= 3

    def observed(x: torch.Tensor) -> dict:
        activation, x = QuantReLU(4, percentile=99.0).train(), x.clone().requires_grad_()
        y = activation(x)
        y.square().mean().backward()
        return {"threshold": activation.threshold.detach(), "y": y.detach(), "gradient": x.grad}

    told = two_processes(lambda: observed(x[join_processes("cpu").rank]))
    whole = observed(x)
    for i, ours in enumerate(told):
        assert torch.equal(ours["threshold"], whole["threshold"]) and torch.equal(ours["y"], whole["y"][i])
        assert torch.allclose(ours["gradient"] / 2, whole["gradient"][i], atol=1e-7)
    assert whole["gradient"].abs().max() > 0.01  # the one value that is the threshold bears the gradient of all clipped


def test_a_quantised_network_with_frozen_statistics_has_the_gradients_of_the_joint_batch():
    torch.manual_seed(0)
    network, x, label = VGG10(4, filters=4, dense=8).eval(), torch.randn(8, 2, 1024), torch.arange(8)

    def gradients(x: torch.Tensor, label: torch.Tensor) -> dict:
        own = join_batch_norm(copy.deepcopy(network))
        model = distributed(own, unused=True)
        nn.functional.cross_entropy(model(x), label).backward()
        return {name: parameter.grad for name, parameter in own.named_parameters()}

    def half() -> dict:
        rank = join_processes("cpu").rank
        return gradients(x[4 * rank : 4 * rank + 4], label[4 * rank : 4 * rank + 4])

    whole = gradients(x, label)
    for ours in two_processes(half):
        for name, value in whole.items():
            assert torch.allclose(ours[name], value, rtol=1e-4, atol=1e-7), name
