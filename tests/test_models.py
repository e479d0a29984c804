"""Networks as data, and the faster layers. Run: python -m pytest tests/test_models.py"""

import copy
from urllib.error import URLError

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models
from torchvision.transforms.functional import normalize

from models import ModelError, segmentation
from models.fast_layers import DepthwiseConv2d, DilatedConv2d, cut_dead_taps, slow_down, speed_up
from models.rebuild import FACTORIES, build, describe, find_factory, rebuild, register
from utils import checkpoint
from utils.dependency_graph import DependencyGraph, prune
from utils.training import native_bf16

MOBILENET = "deeplabv3_mobilenet_v3_large"


def results(layer, x):
    """Output, and gradients of a fixed sum of squares with respect to input and parameters."""
    x = x.clone().requires_grad_()
    y = layer(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((weight * y * y).sum(), [x, *layer.parameters()])]


def difference(ours, theirs):
    return max((a - b).abs().max().item() / max(1, b.abs().max().item()) for a, b in zip(ours, theirs, strict=True))


# ---- faster layers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [3, 5, (3, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [0, 2, 7])
def test_depthwise_layer_equals_pytorch_with_gradients(kernel, stride, dilation, padding):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 6, kernel, stride, padding, dilation, groups=6, bias=stride == 1, dtype=torch.float64)
    fast = speed_up(copy.deepcopy(plain))
    assert type(fast) is DepthwiseConv2d
    x = torch.randn(2, 6, 13, 10, dtype=torch.float64)
    for format in (torch.contiguous_format, torch.channels_last):
        arranged = x.to(memory_format=format)
        assert difference(results(fast, arranged), results(plain, arranged)) < 1e-12


def test_depthwise_layer_gives_only_the_gradients_that_are_asked_for():
    layer = speed_up(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    layer(torch.randn(1, 4, 8, 8)).sum().backward()  # the input needs none
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None


def test_depthwise_layer_under_bfloat16_autocast_is_near_float32_and_keeps_float32_gradients():
    torch.manual_seed(0)
    layer = speed_up(nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8))
    x = torch.randn(2, 8, 16, 16)
    exact = results(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = results(layer, x)
    assert rough[0].dtype == torch.bfloat16 and rough[2].dtype == torch.float32
    assert difference([tensor.float() for tensor in rough], exact) < 0.05


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (25, 24), (8, 40), (37, 37)])
@pytest.mark.parametrize("rate", [12, 24, 36])
def test_dilated_layer_equals_pytorch_with_gradients_on_every_side_of_its_guard(size, rate):
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3, padding=rate, dilation=rate, dtype=torch.float64)
    fast = speed_up(copy.deepcopy(plain))
    assert type(fast) is DilatedConv2d
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert difference(results(fast, x), results(plain, x)) < 1e-12


@pytest.mark.parametrize("name", [MOBILENET, pytest.param("lraspp_mobilenet_v3_large", marks=pytest.mark.slow)])
def test_speed_up_changes_neither_names_nor_output_nor_gradients_of_a_whole_network(name):
    plain = segmentation.build(name).double()
    fast = speed_up(copy.deepcopy(plain))
    changed = {type(layer) for layer in fast.modules()} & {DepthwiseConv2d, DilatedConv2d}
    assert len(changed) == (2 if name == MOBILENET else 1)
    assert list(fast.state_dict()) == list(plain.state_dict())
    x, found = torch.randn(2, 3, 64, 64, dtype=torch.float64), []
    for model in (plain, fast):
        torch.manual_seed(1)  # the same dropout
        y = model(x)["out"]
        found.append([y, *torch.autograd.grad(y.square().mean(), list(model.parameters()))])
    assert difference(*reversed(found)) < 1e-9
    assert all(type(layer) not in (DepthwiseConv2d, DilatedConv2d) for layer in slow_down(fast).modules())


def test_cutting_dead_taps_leaves_7_million_parameters_and_the_same_output():
    model = segmentation.build(MOBILENET).double()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(11.02e6, rel=1e-3)
    model.backbone.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    small = copy.deepcopy(model)
    assert cut_dead_taps(small, (256, 256)) == ["classifier.0.convs.2.0", "classifier.0.convs.3.0"]
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(7.09e6, rel=1e-3)
    assert [layer.training for layer in small.modules()] == [layer.training for layer in model.modules()]
    assert all(torch.equal(buffer, before[name]) for name, buffer in small.named_buffers())
    x = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    with torch.no_grad():
        assert (small.eval()(x)["out"] - model.eval()(x)["out"]).abs().max() < 1e-9


def test_native_bf16_on_a_cpu_is_what_the_kernel_reports():
    try:
        flags = open("/proc/cpuinfo").read().split()
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    expected = "amx_tile" in flags or "avx512_bf16" in flags
    assert native_bf16("cpu") == expected


# ---- networks as data ----------------------------------------------------------------------------------------------


def shrink(model):
    """Cut channels of a MobileNetV2 block by hand: an expansion with its depthwise layer."""
    block = model.features[2].conv
    keep = torch.arange(0, 96, 3)  # 32 of 96
    for layer in (block[0][0], block[1][0], block[0][1], block[1][1]):
        for name, tensor in list(layer.named_parameters()) + list(layer.named_buffers()):
            if tensor.dim() > 0:
                new = tensor.detach()[keep]
                setattr(layer, name, nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new)
    block[0][0].out_channels = block[0][1].num_features = block[1][1].num_features = len(keep)
    block[1][0].in_channels = block[1][0].out_channels = block[1][0].groups = len(keep)
    block[2].weight = nn.Parameter(block[2].weight.detach()[:, keep])
    block[2].in_channels = len(keep)
    return model


def test_a_shrunk_network_survives_the_file_without_its_pruner(tmp_path):
    model = shrink(torchvision_models.mobilenet_v2(num_classes=10)).eval()
    data = describe(model, "torchvision.models.mobilenet_v2", {"num_classes": 10})
    checkpoint.save(tmp_path / "m.pt", data)
    again = rebuild(checkpoint.load(tmp_path / "m.pt")).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(x), model(x))
    assert str(again) == str(model)  # prints every layer's sizes, groups included
    assert data["attributes"]["features.2.conv.1.0"] == {"in_channels": 32, "out_channels": 32, "groups": 32}


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LIBRARIES = {  # factory: its arguments and an input
    "timm.resnet18": ({"num_classes": 5}, torch.randn(1, 3, 64, 64)),
    "timm.vit_tiny_patch16_224": ({"num_classes": 5, "img_size": 32, "depth": 2}, torch.randn(1, 3, 32, 32)),
    "transformers.BertModel": ({**TINY, "vocab_size": 50}, torch.arange(12).view(1, 12)),
    "transformers.ViTModel": ({**TINY, "image_size": 32}, torch.randn(1, 3, 32, 32)),
}


@pytest.mark.parametrize("factory", LIBRARIES)
def test_a_pruned_network_of_another_library_reloads_from_plain_values(factory, tmp_path):
    pytest.importorskip(factory.partition(".")[0])
    arguments, x = LIBRARIES[factory]
    model = build(factory, arguments).eval()
    pruned = prune(model, DependencyGraph(model, x).plan(0.5)).eval()
    checkpoint.save(tmp_path / "m.pt", describe(pruned, factory, arguments))
    assert torch.load(tmp_path / "m.pt", weights_only=True)["factory"] == factory
    again = rebuild(checkpoint.load(tmp_path / "m.pt")).eval()
    ours, theirs = (out if torch.is_tensor(out) else out[0] for out in (again(x), pruned(x)))
    assert torch.equal(ours, theirs)
    assert sum(p.numel() for p in again.parameters()) < 0.9 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["mnasnet0_5", "shufflenet_v2_x0_5", "segmentation.lraspp_mobilenet_v3_large"])
def test_an_untouched_network_needs_no_shapes_and_rebuilds_equal(name):
    factory = f"torchvision.models.{name}"
    model = build(factory, {"num_classes": 5})
    data = describe(model, factory, {"num_classes": 5})
    assert data["shapes"] == {} and data["attributes"] == {}
    again = rebuild(data).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())


def test_rebuild_keeps_float64_makes_all_else_float32_and_leaves_random_numbers_alone():
    model = build("torchvision.models.mobilenet_v3_small", {}).double()
    data = describe(model, "torchvision.models.mobilenet_v3_small", {})
    state = torch.get_rng_state()
    assert rebuild(data).features[0][0].weight.dtype == torch.float64
    assert torch.equal(torch.get_rng_state(), state)
    name = "features.0.0.weight"
    single = {
        key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in model.state_dict().items()
    }
    for state in (checkpoint.halve(data["state_dict"]), {**single, name: model.state_dict()[name]}):  # mixed types
        mixed = rebuild({**data, "state_dict": state}).eval()
        assert mixed(torch.zeros(1, 3, 32, 32)).dtype == mixed.state_dict()[name].dtype == torch.float32


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.b.weight = self.a.weight


@register
def tied():
    return Tied()


def test_a_registered_network_with_a_shared_weight_keeps_sharing_it():
    name = f"{tied.__module__}.tied"
    try:
        model = Tied()
        model.a.weight = model.b.weight = nn.Parameter(torch.randn(4, 4))
        again = rebuild(describe(model, name, {}))
        assert again.a.weight is again.b.weight and torch.equal(again.a.weight, model.a.weight)
    finally:
        del FACTORIES[name]


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "torchvision.models.os",
        "models.nothing.at",
        "models..x",
        "",
        "torch",
        "timm.os",
        "transformers.pipeline",
    ],
)
def test_only_known_functions_are_called(name):
    with pytest.raises(ModelError):
        find_factory(name)


def test_files_that_do_not_fit_together_are_refused():
    name = "torchvision.models.mobilenet_v3_small"
    data = describe(build(name, {}), name, {})
    first = "features.0.0.weight"
    faults = [
        ({"factory": name}, "missing"),
        ({**data, "arguments": {"num_classes": "three"}}, "can't be built"),
        ({**data, "state_dict": {first: data["state_dict"][first]}}, "belongs to"),
        ({**data, "state_dict": {**data["state_dict"], first: torch.zeros(2, 2)}}, "not"),
        ({**data, "shapes": {first: [1, 2, 3, 4]}}, "damaged"),
        ({**data, "attributes": {"features.0.0": {"forward": 1}}}, "another version"),
    ]
    for fault, words in faults:
        with pytest.raises(ModelError, match=words):
            rebuild(fault)
    with pytest.raises(ModelError, match="not what"):
        describe(torchvision_models.mobilenet_v2(), name, {})


# ---- what goes in --------------------------------------------------------------------------------------------------


def test_normalise_equals_torchvision_and_colourise_equals_colouring_first():
    index = torch.randint(256, (2, 8, 8), dtype=torch.uint8)
    palette = torch.randint(256, (256, 3), dtype=torch.uint8)
    images = palette[index.long()].permute(0, 3, 1, 2)
    expected = normalize(images.double() / 255, segmentation.MEAN, segmentation.STD)
    assert torch.allclose(segmentation.normalise(images, torch.float64), expected, atol=1e-14)
    assert torch.allclose(segmentation.colourise(index, palette, torch.float64), expected, atol=1e-14)
    assert segmentation.colourise(index, palette).is_contiguous(memory_format=torch.channels_last)


def test_predict_gives_the_most_likely_class_at_the_pictures_size():
    model = segmentation.build("lraspp_mobilenet_v3_large").eval()
    images = torch.randint(256, (2, 3, 48, 64), dtype=torch.uint8)
    with torch.no_grad():
        logits = model(segmentation.normalise(images))["out"]
    assert torch.equal(segmentation.predict(model, images), logits.argmax(1))


def test_pictures_of_another_size_are_shown_at_the_one_the_network_knows():
    class SecondQuarter(torch.nn.Module):
        """Class 1 in the second quarter of the columns of a 32 x 32 picture, else 0."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            assert x.shape == (2, 3, 32, 32)
            logits = torch.tensor([0.0, -1.0, -1.0]).view(1, 3, 1, 1).repeat(2, 1, 32, 32)
            logits[:, 1, :, 8:16] = 1
            return {"out": logits}

    for height, width in ((16, 16), (32, 32), (64, 48)):
        images = torch.randint(256, (2, 3, height, width), dtype=torch.uint8)
        prediction = segmentation.predict(SecondQuarter(), images, size=[32, 32])
        expected = torch.zeros(2, height, width, dtype=torch.int64)
        expected[:, :, width // 4 : width // 2] = 1
        assert torch.equal(prediction, expected)


def test_networks_that_do_not_exist_are_named(monkeypatch):
    with pytest.raises(ModelError, match="unet"):
        segmentation.build("unet")
    with pytest.raises(ModelError, match="aux-loss"):
        segmentation.build("lraspp_mobilenet_v3_large", aux_loss=True)

    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ModelError, match="--pretrained-backbone out"):
        segmentation.build("lraspp_mobilenet_v3_large", pretrained_backbone=True)


@pytest.mark.parametrize("name", [MOBILENET, "lraspp_mobilenet_v3_large"])
def test_logits_are_shifted_class_by_class(name):
    network, shift, x = segmentation.build(name).eval(), torch.tensor([1.0, -2.0, 0.5]), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = network(x)["out"]
        segmentation.add_to_logits(network, shift)
        assert torch.allclose(network(x)["out"], before + shift.view(3, 1, 1), atol=1e-5)
