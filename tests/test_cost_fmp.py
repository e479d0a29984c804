"""The challenge's inference cost, and which weights go first, against counts and definitions written out again.

pytest tests/test_cost_fmp.py
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.vgg10 import VGG10, from_brevitas
from utils import pruning_masks
from utils.cost import challenge_score, cost_table, inference_cost

BREVITAS = np.load(Path(__file__).parent / "data" / "vgg10_small_brevitas060.npz")


def small(bits=4, **arguments) -> VGG10:
    torch.manual_seed(4)
    return VGG10(bits, filters=6, dense=8, samples=128, **arguments)


def cost(network: VGG10) -> dict:
    return inference_cost(network, torch.zeros(1, 2, network.samples))


def random_weights(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(4, 5, generator=generator), "b": 1.5 * torch.randn(6, 2, 3, generator=generator)}


# ---- inference cost


@pytest.mark.parametrize("bits", [4, 8])
def test_cost_of_a_brevitas_checkpoint_equals_a_count_in_numpy(bits):
    names = [name for name in BREVITAS.files if name.startswith(f"w{bits}/") and name.count("/") == 1]
    state = {name.split("/")[1]: BREVITAS[name] for name in names if not name.endswith("logits")}
    network = from_brevitas({name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}, bits)
    layers = cost(network)
    places = [1, 5, 9, 13, 17, 21, 25, 30, 33, 36]
    macs = memory = 0
    for number, (place, layer) in enumerate(zip(places, layers.values(), strict=True)):
        weight = state[f"{place}.weight"]
        top = 2 ** (bits - 1) - 1
        nonzero = np.count_nonzero(np.rint(weight / np.float32(np.abs(weight).max() / np.float32(top))))
        positions = 1024 >> number if number < 7 else 1
        assert (layer.nonzero, layer.positions, layer.weights) == (nonzero, positions, weight.size)
        macs += nonzero * positions
        memory += nonzero * bits
    total = challenge_score(layers)
    assert (total["macs"], total["bops"], total["weight_bits"]) == (macs, macs * bits * bits, memory)
    assert total["score"] == pytest.approx(macs * bits**2 / 2 / 807_699_904 + memory / 2 / 1_244_936)


def test_cost_of_mixed_widths_equals_a_count_in_numpy():
    widths, read = (4, 2, 3, 8, 5, 2, 6, 3, 7, 4), (5, 4, 8, 2, 3, 6, 7, 2, 3, 8)
    network = small(widths, activation_bits=read)
    bops = memory = 0
    for number, (name, tensor) in enumerate(network.weights().items()):
        weight, top = tensor.detach().numpy(), 2 ** (widths[number] - 1) - 1
        nonzero = np.count_nonzero(np.rint(weight / np.float32(np.abs(weight).max() / np.float32(top))))
        positions = 128 >> number if number < 7 else 1
        bops += nonzero * positions * widths[number] * read[number]
        memory += nonzero * widths[number]
        layer = cost(network)[name.removesuffix(".weight")]
        assert (layer.nonzero, layer.weight_bits, layer.input_bits) == (nonzero, widths[number], read[number])
    total = challenge_score(cost(network))
    assert (total["bops"], total["weight_bits"]) == (bops, memory)
    assert total["score"] == pytest.approx(bops / 2 / 807_699_904 + memory / 2 / 1_244_936)
    assert " 2x4 " in cost_table(cost(network)).splitlines()[2]


def test_the_standard_network_with_the_published_counts_scores_one():
    network = VGG10(8)
    counts = [379, 12120, 12080, 11885, 11837, 11866, 12019, 64333, 16060, 3038]  # of the public 8-bit baseline
    for layer, nonzero in zip(network.layers().values(), counts, strict=True):
        with torch.no_grad():
            layer.weight.fill_(1).view(-1)[nonzero:] = 0
    total = challenge_score(cost(network))
    assert (total["bops"], total["weight_bits"], total["score"]) == (807_699_904, 1_244_936, 1.0)
    assert "bops 807699904, weight bits 1244936, score 1" in cost_table(cost(network))


def test_weights_that_round_to_zero_cost_nothing_until_they_are_revived():
    network = small()
    weight = network.output.weight
    with torch.no_grad():
        weight.fill_(1.0)
        weight[0] = 0.07  # half a step is 1 / 14
        assert cost(network)["output"].nonzero == weight.numel() - weight.shape[1]
        weight[0] = 0.08
        assert cost(network)["output"].nonzero == weight.numel()
        for layer in network.layers().values():
            layer.weight.zero_()
    assert challenge_score(cost(network))["score"] == 0


def test_counting_leaves_mode_and_statistics_alone():
    network = small().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    layers = cost(network)
    assert network.training and all(module.training for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert [layer.positions for layer in layers.values()] == [128, 64, 32, 16, 8, 4, 2, 1, 1, 1]


def test_a_weight_costs_its_share_of_the_score():
    network = small()
    before, layers = challenge_score(cost(network))["score"], cost(network)
    codes = network.features[2].layer.weight_codes()
    with torch.no_grad():
        smallest = torch.where(codes != 0, codes.abs().float(), torch.inf).argmin()
        network.features[2].layer.weight.view(-1)[smallest] = 0
    after = challenge_score(cost(network))["score"]
    assert before - after == pytest.approx(layers["features.2.layer"].of_one_weight, rel=1e-6)


# ---- which weights go first


@pytest.mark.parametrize("kind", pruning_masks.SCORES)
def test_scores_equal_their_definitions(kind):
    weights, costs = random_weights(), {"a": 2.0, "b": 5.0}
    kept = {name: weight.abs() > 0.3 for name, weight in weights.items()}
    scored = pruning_masks.scores(weights, kept, kind, costs)
    for name, weight in weights.items():
        square = {place: float(weight[place]) ** 2 for place in np.ndindex(*weight.shape) if kept[name][place]}
        for place, value in square.items():
            expected = {
                "magnitude": value**0.5,
                "cost": value / costs[name],
                "lamp": value / sum(other for other in square.values() if other >= value),
            }
            expected["lamp-cost"] = expected["lamp"] / costs[name]
            assert float(scored[name][place]) == pytest.approx(expected[kind], rel=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8])
def test_exactly_the_share_with_the_lowest_scores_goes(share):
    weights = random_weights()
    kept = pruning_masks.alive(weights, pruning_masks.ones(weights))
    scored = pruning_masks.scores(weights, kept, "magnitude")
    masks = pruning_masks.remove(scored, kept, share)
    flat = np.concatenate([weight.abs().flatten() for weight in weights.values()])
    stays = np.concatenate([mask.flatten() for mask in masks.values()])
    assert (~stays).sum() == round(share * len(flat))
    assert share == 0 or flat[~stays].max() < flat[stays].min()


def test_every_tensor_keeps_its_best_weight():
    weights = {"a": torch.rand(10) / 1000, "b": 1 + torch.rand(10)}
    kept = pruning_masks.ones(weights)
    masks = pruning_masks.remove(pruning_masks.scores(weights, kept, "magnitude"), kept, 0.9)
    assert masks["a"].sum() == 1 and masks["a"][weights["a"].argmax()] and masks["b"].sum() == 1


def test_what_rounds_to_zero_is_masked_first_and_not_counted_as_left():
    weights = {"a": torch.tensor([0.01, 1.0, 2.0, 3.0, 4.0])}
    codes = {"a": torch.tensor([0, 2, 4, 5, 7])}
    kept = pruning_masks.alive(codes, pruning_masks.ones(weights))
    masks = pruning_masks.remove(pruning_masks.scores(weights, kept, "magnitude"), kept, 0.5)
    assert masks["a"].tolist() == [False, False, False, True, True]
    revived = pruning_masks.alive({"a": torch.tensor([3, 2, 4, 5, 7])}, pruning_masks.ones(weights))
    assert revived["a"].all()


def test_holding_masks_zeroes_what_they_hide_and_nothing_else():
    weights = random_weights()
    masks = {name: weight > 0 for name, weight in weights.items()}
    expected = {name: weight.clamp(min=0) for name, weight in weights.items()}
    pruning_masks.apply_masks(weights, masks)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_scores_refuse_unknown_kinds_and_missing_costs():
    weights = random_weights()
    for kind in ("gradient", "cost"):
        with pytest.raises(ValueError, match="choose among magnitude"):
            pruning_masks.scores(weights, pruning_masks.ones(weights), kind)


def test_units_go_over_all_groups_but_the_last_of_a_group_stays():
    worth = {"first": torch.tensor([0.1, 0.2, 0.3]), "second": torch.tensor([5.0, 0.15, 6.0, 7.0])}
    assert pruning_masks.lowest_units(worth, 3 / 7) == {"first": [0, 1], "second": [1]}
    assert pruning_masks.lowest_units(worth, 1.0) == {"first": [0, 1], "second": [1, 0, 2]}
    assert pruning_masks.lowest_units(worth, 0.05) == {}
    one_sided = {"first": torch.arange(10) + 1.0, "second": torch.arange(10) + 100.0}
    assert pruning_masks.lowest_units(one_sided, 0.25) == {"first": [0, 1, 2, 3, 4]}
    assert pruning_masks.lowest_units(one_sided, 0.1) == {"first": [0, 1]}
    one_sided["second"] = torch.arange(30) + 100.0
    assert pruning_masks.lowest_units(one_sided, 0.2) == {"first": [0, 1, 2, 3], "second": [0, 1, 2, 3]}


def test_a_network_of_one_filter_a_layer_has_nothing_to_cut():
    network = VGG10(4, filters=1, dense=1, samples=128)
    model = pruning_masks.Pruned(network, pruning_masks.nonzero_masks(network.weights()))
    assert pruning_masks.cut_filters(model, 0.5, "magnitude") is None
