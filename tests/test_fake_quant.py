"""The quantised layers and VGG10 against Brevitas 0.6.0's own values and against definitions written out again.

    pytest tests/test_fake_quant.py

data/vgg10_small_brevitas060.npz: networks of 8 filters and 16 neurons, trained by Brevitas for 320 steps at 4 and 8
bits; its logits and eval-mode gradients of cross entropy with labels 0..3.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models import ModelError
from models.fake_quant import QuantConv1d, QuantConv2d, QuantInput, QuantLinear, QuantReLU
from models.rebuild import describe, rebuild
from models.vgg10 import VGG10, from_brevitas, from_checkpoint, key_map, to_brevitas, to_checkpoint
from utils import checkpoint

BREVITAS = np.load(Path(__file__).parent / "data" / "vgg10_small_brevitas060.npz")
ALL_BITS = range(2, 9)


def brevitas(bits: int, what: str = "state"):
    """Brevitas' state, {name: gradient} or logits of the network with so many bits."""
    first = f"w{bits}/"
    if what == "logits":
        return torch.from_numpy(BREVITAS[first + "logits"])
    if what == "grad":
        first += "grad/"
    names = [name for name in BREVITAS.files if name.startswith(first)]
    names = [name for name in names if what == "grad" or not name.startswith((first + "grad", first + "logits"))]
    return {name.removeprefix(first): torch.from_numpy(BREVITAS[name]) for name in names}


X = torch.from_numpy(BREVITAS["x"])


def small(bits: int = 4, **arguments) -> VGG10:
    torch.manual_seed(bits)
    return VGG10(bits, filters=8, dense=16, samples=128, **arguments)


def signals(count: int = 8, samples: int = 128, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, samples, generator=torch.Generator().manual_seed(seed))


# ---- equal to Brevitas


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("gradients", [False, True])
def test_logits_equal_brevitas_bit_for_bit(bits, gradients):
    model = from_brevitas(brevitas(bits), bits)
    with torch.set_grad_enabled(gradients):
        assert torch.equal(model(X), brevitas(bits, "logits"))
        other_strides = X.transpose(1, 2).contiguous().transpose(1, 2)  # as frames lie in the file
        assert torch.equal(model(other_strides), brevitas(bits, "logits"))


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_of_all_38_parameters_equal_brevitas(bits):
    model = from_brevitas(brevitas(bits), bits)
    F.cross_entropy(model(X), torch.arange(4)).backward()
    parameters, gradients = dict(model.named_parameters()), brevitas(bits, "grad")
    assert len(gradients) == len(parameters) == 38
    for name, expected in gradients.items():
        found = parameters[key_map()[name]].grad.reshape(expected.shape)
        assert (found - expected).norm() <= 2e-5 * expected.norm(), name


def test_two_threads_give_the_same_labels():
    model = from_brevitas(brevitas(8), 8)
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            labels = model(X).argmax(1)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(labels, brevitas(8, "logits").argmax(1))


def test_key_map_turns_round_and_every_tensor_comes_back():
    state = brevitas(4)
    assert state.keys() == key_map().keys() and len(set(key_map().values())) == 65
    back = to_brevitas(from_brevitas(state, 4))
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


def test_other_checkpoints_are_refused_with_the_key_named():
    state = brevitas(4)
    missing = {name: tensor for name, tensor in state.items() if name != "36.bias"}
    for wrong, text in [
        (missing, "'36.bias' is missing"),
        ({**state, "40.weight": X}, "'40.weight' is unknown"),
        ({**state, "5.weight": state["1.weight"]}, "'5.weight' is"),
        ({**state, "30.weight": state["36.bias"]}, "wrong shape"),
    ]:
        with pytest.raises(ModelError, match=text):
            from_brevitas(wrong, 4)
    model = from_brevitas(state, 4)
    model.learn_weight_steps()
    with pytest.raises(ModelError, match="learned weight steps"):
        to_brevitas(model)


# ---- the quantisers, against their definitions


@pytest.mark.parametrize("bits", ALL_BITS)
def test_weight_codes_are_the_rounded_multiples_of_the_largest_weight(bits):
    layer = QuantLinear(20, 30, weight_bits=bits)
    w, top = layer.weight.detach().numpy(), 2 ** (bits - 1) - 1
    scale = np.abs(w).max() / np.float32(top)
    codes = np.rint(w / scale)
    assert np.array_equal(layer.weight_codes().numpy(), codes) and np.abs(codes).max() == top
    assert np.array_equal(layer.quantised_weight().detach().numpy(), codes.astype(np.float32) * scale)


@pytest.mark.parametrize("bits", ALL_BITS)
def test_input_codes_span_plus_minus_two_and_round_half_to_even(bits):
    n, quantise = 2 ** (bits - 1), QuantInput(bits)
    x = torch.linspace(-3, 3, 24 * n + 1)  # hits every half step exactly
    codes = quantise(x).double() * n / 2
    expected = [min(max(round(value * n / 2), -n), n - 1) for value in x.double().tolist()]  # to even too
    assert codes.tolist() == expected


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 1, 8), (3, 4, 8)])
def test_activations_own_backward_equals_autograds(bits, shape):
    torch.manual_seed(0)
    layer = QuantReLU(bits).double().eval()
    layer.threshold.data.fill_(0.75)
    x = torch.randn(shape, dtype=torch.float64)
    x.view(-1)[:3] = torch.tensor([0.0, 0.75, -0.75])  # the bounds themselves
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(shape, dtype=torch.float64)
    results = []
    for written_out in (False, True):
        leaf, threshold = x.clone().requires_grad_(), layer.threshold
        threshold.grad = None
        if written_out:
            top = 2**bits - 1
            ratio = F.relu(leaf) / (threshold.abs() / top)
            ratio = torch.where(ratio < top, ratio, top)
            y = (ratio + (ratio.round() - ratio).detach()) * (threshold.abs() / top)
        else:
            y = layer(leaf)
        y.backward(gradient)
        results.append((y.detach(), leaf.grad, threshold.grad.clone()))
    for own, autograds in zip(*results, strict=True):
        assert torch.allclose(own, autograds, rtol=1e-12, atol=1e-14)


def test_the_gradient_flows_through_the_largest_weight_too():
    for seed in range(20):
        torch.manual_seed(seed)
        layer = QuantLinear(8, 8, bias=False, weight_bits=4)
        y = layer(torch.randn(2, 8)).sum()
        y.backward()
        # y grows in proportion to all weights together, scale and rounding included: sum of w * dy/dw is y (Euler).
        assert abs((layer.weight.detach() * layer.weight.grad).sum() - y.item()) < 1e-4


def test_convolution_in_one_dimension_equals_two_dimensions_one_high():
    torch.manual_seed(0)
    one = QuantConv1d(3, 5, 3, padding=1, weight_bits=3)
    two = QuantConv2d(3, 5, (1, 3), padding=(0, 1), weight_bits=3)
    two.load_state_dict({"weight": one.weight.unsqueeze(2), "bias": one.bias})
    x, scale = torch.randn(2, 3, 16), torch.tensor(0.125)
    assert torch.equal(one(x, scale), two(x.unsqueeze(2), scale).squeeze(2))
    assert torch.equal(one(x), F.conv1d(x, one.quantised_weight(), one.bias, padding=1))


def test_bias_is_a_whole_number_of_input_scale_times_weight_scale():
    torch.manual_seed(0)
    layer, scale = QuantLinear(4, 6, weight_bits=4), torch.tensor(0.25)
    bias = layer(torch.zeros(1, 4), scale)[0].detach()
    step = scale * layer.weight.detach().abs().max() / 7
    assert torch.equal(bias, torch.round(layer.bias.detach() / step) * step)
    assert not torch.equal(bias, layer.bias) and torch.equal(layer(torch.zeros(1, 4))[0], layer.bias)


def test_widths_outside_two_to_eight_and_odd_sizes_are_refused():
    for bits in (1, 9, 4.0, True):
        with pytest.raises(ModelError, match="2 to 8"):
            VGG10(bits)
    for arguments in ({"filters": (8, 8)}, {"dense": 0}, {"samples": 1000}):
        with pytest.raises(ModelError):
            VGG10(4, **arguments)
    with pytest.raises(ModelError, match="I and Q"):
        small()(torch.zeros(1, 128, 2))


# ---- another width in each layer


MIXED, READ = (4, 2, 3, 8, 5, 2, 6, 3, 7, 4), (5, 4, 8, 2, 3, 6, 7, 2, 3, 8)


def test_each_layer_computes_at_its_own_widths():
    torch.manual_seed(0)
    model = VGG10(MIXED, READ, filters=8, dense=16, samples=128).eval()
    x = signals()
    levels = 2 ** READ[0] / 4  # of the input, a unit
    codes, scale = (x * levels).round().clamp(-2 * levels, 2 * levels - 1) / levels, 1 / levels
    with torch.no_grad():
        expected = codes.unsqueeze(2)
        for i, block in enumerate([*model.features, *model.dense, model.output]):
            layer = block if i == 9 else block.layer
            top = 2 ** (MIXED[i] - 1) - 1
            step = layer.weight.abs().max() / top
            weight = (layer.weight / step).round() * step
            if i == 9:
                expected = expected @ weight.T + (layer.bias / (scale * step)).round() * (scale * step)
                break
            expected = F.conv2d(expected, weight, padding=(0, 1)) if i < 7 else expected.flatten(1) @ weight.T
            scale = block.activation.threshold / (2 ** READ[i + 1] - 1)
            expected = (block.norm(expected) / scale).clamp(0, 2 ** READ[i + 1] - 1).round() * scale
            expected = F.max_pool2d(expected, (1, 2)) if i < 7 else expected
        assert torch.allclose(model(x), expected, atol=1e-5)


def test_mixed_widths_survive_a_checkpoint_and_equal_ones_are_stored_as_ever():
    model = VGG10(MIXED, READ, filters=8, dense=16, samples=128).eval()
    again = from_checkpoint(to_checkpoint(model)).eval()
    assert (again.bits, again.activation_bits) == (MIXED, READ)
    assert torch.equal(again(signals()), model(signals()))
    assert [layer.input_bits for layer in again.layers().values()] == list(READ)
    equal = VGG10((4,) * 10, [6] * 10, filters=8, dense=16, samples=128)
    assert equal.arguments() == small(4, activation_bits=6).arguments()
    assert (equal.arguments()["bits"], equal.arguments()["activation_bits"]) == (4, 6)


@pytest.mark.parametrize(
    ("name", "one_width"), [("amc_baseline", True), ("h200/amc_fmp_w4a4_lampcost", True), ("amc_fmp", False)]
)
def test_shipped_files_of_one_width_and_of_several_load_unchanged(name, one_width):
    data = torch.load(Path(__file__).parent.parent / f"weights/{name}.pt", weights_only=True)
    again = to_checkpoint(from_checkpoint(data))
    assert isinstance(data["arguments"]["bits"], int) == one_width and again["arguments"] == data["arguments"]
    assert (again["shapes"], again["attributes"]) == (data["shapes"], data["attributes"])
    assert all(torch.equal(again["state_dict"][key], tensor.float()) for key, tensor in data["state_dict"].items())


def test_a_bit_taken_from_one_layer_leaves_the_others_as_they_are():
    model = small(4, learned_steps=True)
    other = model.requantised((4, 4, 3, *(4,) * 7), (4, 4, 4, 3, *(4,) * 6))
    assert other.features[2].activation.bits == other.features[3].layer.input_bits == 3
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]) == (name != "features.2.layer.weight_step")


def test_another_number_of_widths_is_refused():
    for arguments in ({"bits": (4, 4, 4)}, {"bits": 4, "activation_bits": (4,) * 9}):
        with pytest.raises(ModelError, match="one number, or 10"):
            VGG10(**arguments)


# ---- thresholds


def test_threshold_follows_the_percentile_for_thirty_steps_and_is_learned_then():
    layer, running = QuantReLU(4).train(), None
    for step in range(33):
        x = torch.randn(1000, 7, generator=torch.Generator().manual_seed(step)).requires_grad_()
        y = layer(x)
        ordered = np.sort(np.maximum(x.detach().numpy(), 0).ravel())
        percentile = ordered[int(np.floor(0.99999 * ordered.size + 0.5)) - 1]
        if step < 30:
            running = percentile if step == 0 else 0.9 * running + 0.1 * percentile
            assert float(y.detach().max()) == pytest.approx(percentile, rel=1e-6)
        else:
            assert float(y.detach().max()) == pytest.approx(min(running, ordered[-1]), rel=0.05)
        assert layer.threshold.item() == pytest.approx(running, rel=1e-5)
        y.sum().backward()
        assert (layer.threshold.grad is None) == (step < 30)
    assert int(layer.steps) == 30


def test_initialisation_goes_on_where_a_checkpoint_of_any_step_stopped():
    def network():
        torch.manual_seed(0)
        layers = QuantInput(4), QuantLinear(8, 16, weight_bits=4), torch.nn.BatchNorm1d(16), QuantReLU(4)
        return torch.nn.Sequential(*layers, QuantLinear(16, 3, weight_bits=4))

    def run(model, steps):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in steps:
            optimizer.zero_grad()
            model(torch.randn(32, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
        return copy.deepcopy(model.state_dict())

    whole = run(network(), range(35))
    for stop in (1, 17, 30):
        first = run(network(), range(stop))
        assert first["3.threshold"] != 1 and first["3.steps"] == min(stop, 30)
        second = network()
        second.load_state_dict(first)
        resumed = run(second, range(stop, 35))
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_an_earlier_state_loaded_into_a_later_model_is_initialised_again():
    model = small().train()
    early = copy.deepcopy(model.state_dict())
    for _ in range(31):
        model(signals(4))
    assert model.dense[0].activation.learning
    model.load_state_dict(early)
    assert not model.dense[0].activation.learning


# ---- learned weight steps


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradient_of_a_learned_step_is_that_of_the_lsq_paper(bits):
    torch.manual_seed(0)
    layer = QuantLinear(16, 16, bias=False, weight_bits=bits, learned_step=True)
    top, weight = 2 ** (bits - 1) - 1, layer.weight.detach()
    assert layer.weight_step.item() == pytest.approx(2 * weight.abs().mean().item() / top**0.5, rel=1e-6)
    step = 0.6 * weight.abs().max() / top  # so that some weights are outside
    layer.weight_step.data.copy_(step)
    x = torch.randn(5, 16)
    layer(x).sum().backward()
    upstream = x.sum(0).expand(16, 16)
    ratio = weight / step
    inner = ratio.abs() < top
    per_weight = torch.where(inner, ratio.round() - ratio, ratio.sign() * top)  # equation 3
    expected = (upstream * per_weight).sum() / (weight.numel() * top) ** 0.5  # section 2.2
    assert inner.any() and not inner.all() and torch.allclose(layer.weight_step.grad, expected, rtol=1e-4)
    assert torch.allclose(layer.weight.grad, torch.where(inner, upstream, 0), atol=1e-6)


def test_a_network_goes_over_to_learned_steps_and_is_rebuilt_from_its_arguments():
    model = small(4).eval()
    model.learn_weight_steps()
    again = VGG10(**model.arguments()).eval()
    again.load_state_dict(model.state_dict())
    assert model.arguments()["learned_steps"] and "output.weight_step" in model.state_dict()
    assert torch.equal(again(signals()), model(signals()))


# ---- training


def test_pooling_first_gives_equal_values_and_gradients_but_for_ties():
    for bits in (4, 8):
        results = []
        for pool_first in (False, True):
            model = small(bits, pool_first=pool_first).train()
            for block in [*model.features, *model.dense]:
                block.activation.steps.fill_(30)
                block.activation.threshold.data.fill_(2.0)
            logits = model(signals(32))
            F.cross_entropy(logits, torch.arange(32) % 24).backward()
            results.append((logits.detach(), model.features[0].layer.weight.grad.flatten()))
        assert torch.equal(results[0][0], results[1][0])
        assert F.cosine_similarity(results[0][1], results[1][1], dim=0) > (0.9 if bits == 8 else 0.3)


@pytest.mark.parametrize(
    "bits, arguments, autocast",
    [(2, {}, False), (8, {"pool_first": False}, True), (4, {"learned_steps": True, "activation_bits": 5}, False)],
)
def test_training_lowers_the_loss(bits, arguments, autocast):
    model = small(bits, **arguments).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    label = torch.arange(16) % 4
    time = torch.arange(128) * (0.1 + 0.4 * label[:, None])
    x = torch.stack([time.cos(), time.sin()], 1) + 0.3 * signals(16)  # four tones
    losses = []
    for _ in range(35):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])


def test_a_layer_without_weights_gives_numbers_and_gradients():
    for arguments in ({}, {"learned_steps": True}):
        model = small(4, **arguments).train()
        torch.nn.init.zeros_(model.features[2].layer.weight)
        model(signals()).sum().backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
        assert torch.isfinite(model.eval()(signals())).all() and not model.features[2].layer.weight_codes().any()


def test_layers_tell_a_cost_counter_codes_and_widths():
    layers = small(4, activation_bits=6).layers()
    names = [f"features.{i}.layer" for i in range(7)] + ["dense.0.layer", "dense.1.layer", "output"]
    assert list(layers) == names
    for layer in layers.values():
        assert (layer.weight_bits, layer.input_bits) == (4, 6)
        assert torch.equal(layer.weight_codes() != 0, layer.quantised_weight() != 0)


def test_a_network_cut_in_place_is_rebuilt_both_ways():
    model = small(4).eval()
    conv, norm, after = model.features[2].layer, model.features[2].norm, model.features[3].layer
    conv.weight = torch.nn.Parameter(conv.weight.detach()[:5])
    after.weight = torch.nn.Parameter(after.weight.detach()[:, :5])
    for name in ("weight", "bias"):
        setattr(norm, name, torch.nn.Parameter(getattr(norm, name).detach()[:5]))
    norm.running_mean, norm.running_var = norm.running_mean[:5], norm.running_var[:5]
    conv.out_channels = after.in_channels = norm.num_features = 5
    arguments = model.arguments()
    assert arguments["filters"] == (8, 8, 5, 8, 8, 8, 8)
    again = VGG10(**arguments)
    again.load_state_dict(model.state_dict())
    data = describe(model, "models.vgg10.VGG10", {"bits": 4, "filters": 8, "dense": 16, "samples": 128})
    for other in (again.eval(), rebuild(data).eval()):
        assert torch.equal(other(signals()), model(signals()))


def test_learned_steps_are_learned_anew_at_another_width():
    torch.manual_seed(0)
    network = VGG10(8, filters=4, dense=8, samples=128, learned_steps=True)
    for name, layer in network.requantised(4).layers().items():
        before = network.layers()[name]
        assert torch.equal(layer.weight, before.weight)
        assert layer.weight_scale() > 3 * before.weight_scale()
        assert (layer.weight_codes().abs() == 7).float().mean() < 0.25  # few saturate


def test_on_codes_a_network_survives_half_precision():
    torch.manual_seed(0)
    network = VGG10((4, 3, 2, 3, 8, 2, 2, 2, 3, 5), filters=8, dense=16, samples=128).eval()
    layers = network.layers()
    with torch.no_grad():  # weights just beside the middle between two codes, and one that sets the scale
        for layer in layers.values():
            top = 2 ** (layer.weight_bits - 1) - 1
            layer.weight.copy_(torch.randint(1 - top, top, layer.weight.shape) + 0.4999 * torch.sign(layer.weight))
            layer.weight.view(-1)[0] = top
    codes = {name: layer.weight_codes() for name, layer in layers.items()}

    def changed(state):
        other = VGG10(**network.arguments()).eval()
        other.load_state_dict(state)
        return sum(int((layer.weight_codes() != codes[name]).sum()) for name, layer in other.layers().items())

    assert changed(checkpoint.halve(network.state_dict())) > 100
    x = torch.randn(4, 2, 128)
    before = network(x)
    assert changed(checkpoint.halve(network.on_codes().state_dict())) == 0
    torch.testing.assert_close(network(x), before)
