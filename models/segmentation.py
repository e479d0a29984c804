"""The segmentation networks of this repository, torchvision's own, and what goes into them.

Sources: DeepLabV3, Chen 2017 (arXiv:1706.05587); MobileNetV3 and LR-ASPP, Howard 2019 (arXiv:1905.02244).
Needs torch and torchvision, and ModelError of models/__init__.py.
"""

from urllib.error import URLError

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation
from torchvision.models.mobilenetv3 import MobileNet_V3_Large_Weights
from torchvision.models.resnet import ResNet50_Weights, ResNet101_Weights

from models import ModelError

# name: (torchvision's function, the ImageNet weights of its backbone); models.rebuild has another FACTORIES
FACTORIES = {
    "deeplabv3_mobilenet_v3_large": (
        segmentation.deeplabv3_mobilenet_v3_large,
        MobileNet_V3_Large_Weights.IMAGENET1K_V1,
    ),
    "deeplabv3_resnet50": (segmentation.deeplabv3_resnet50, ResNet50_Weights.IMAGENET1K_V1),
    "deeplabv3_resnet101": (segmentation.deeplabv3_resnet101, ResNet101_Weights.IMAGENET1K_V1),
    "lraspp_mobilenet_v3_large": (segmentation.lraspp_mobilenet_v3_large, MobileNet_V3_Large_Weights.IMAGENET1K_V1),
}
MEAN = (0.485, 0.456, 0.406)  # ImageNet, per colour, of values in 0..1
STD = (0.229, 0.224, 0.225)


def build(name: str, num_classes: int = 3, pretrained_backbone: bool = False, aux_loss: bool = False) -> nn.Module:
    """A network from float (N, 3, H, W) to {"out": float (N, num_classes, H, W)}, logits at the input's size.

    Args:
        name: a key of FACTORIES.
        num_classes: channels of the output.
        pretrained_backbone: load torchvision's ImageNet weights of the backbone (downloaded once by torch.hub).
        aux_loss: add DeepLabV3's second head, output "aux".

    Raises:
        ModelError: unknown name, no auxiliary head for this network, or the weights can't be downloaded.
    """
    if name not in FACTORIES:
        raise ModelError(f"unknown model {name!r}: choose one of {', '.join(FACTORIES)}")
    function, imagenet = FACTORIES[name]
    _, arguments = factory(name, num_classes, aux_loss)
    try:
        return function(weights=None, weights_backbone=imagenet if pretrained_backbone else None, **arguments)
    except (URLError, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(
            f"torchvision's ImageNet weights can't be downloaded ({reason}): "
            "leave --pretrained-backbone out to train from scratch, or connect once so that torch.hub keeps them"
        ) from error


def factory(name: str, num_classes: int = 3, aux_loss: bool = False) -> tuple[str, dict]:
    """What models.rebuild.describe needs to know of `build`: torchvision's function by name, and its arguments."""
    if name.startswith("lraspp"):
        if aux_loss:
            raise ModelError(f"{name} has no auxiliary head: leave --aux-loss out")
        return f"torchvision.models.segmentation.{name}", {"num_classes": num_classes}
    return f"torchvision.models.segmentation.{name}", {"num_classes": num_classes, "aux_loss": aux_loss}


def initialise(network: nn.Module) -> None:
    """New random weights in place, as torchvision draws them for its own networks. Shapes stay, also pruned ones."""
    for name, layer in network.named_modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
        if isinstance(layer, nn.Conv2d) and name.startswith("backbone"):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def zero_outer_taps(network: nn.Module) -> None:
    """Set ASPP's taps above and below the centre to 0, in place.

    Training begins with frames of half height, in which these taps only meet padding. Random values would disturb the
    first frames of whole height; zeros do not. ASPP's three dilated convolutions are all that dilate by 8 or more.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.dilation[0] >= 8:
            nn.init.zeros_(layer.weight[:, :, ::2])


def add_to_logits(network: nn.Module, shift: torch.Tensor) -> None:
    """Add `shift`, float (num_classes,), to the output "out" of a network: the last layer's bias moves, in place."""
    head = network.classifier
    last = head.low_classifier if hasattr(head, "low_classifier") else head[-1]  # LR-ASPP adds two, DeepLabV3 has one
    with torch.no_grad():
        last.bias += shift.to(last.bias)


def normalise(images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 (N, 3, H, W) RGB -> float of the same shape and memory format, scaled as torchvision's networks expect.

    In this scale ImageNet's pixels have mean 0 and standard deviation 1 in each colour.
    """
    mean, std = (_sent(torch.tensor(values, dtype=dtype), images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images.to(dtype) / 255 - mean) / std


def colourise(index: torch.Tensor, palette: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Colormap indices uint8 (N, H, W) and a palette uint8 (256, 3) -> normalise(image), float (N, 3, H, W).

    The palette is normalised instead of the pixels. The result is channels_last in memory.
    """
    table = normalise(palette.view(-1, 3, 1, 1), dtype).view(-1, 3)  # (256, 3)
    pixels = _sent(table, index.device)[index.int()]  # (N, H, W, 3)
    return pixels.permute(0, 3, 1, 2)


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; a copy from pinned memory to CUDA doesn't make Python wait for the GPU."""
    if tensor.is_cpu and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def as_input(images: torch.Tensor, palette: torch.Tensor | None = None) -> torch.Tensor:
    """uint8 pictures (N, 3, H, W), or colormap indices (N, H, W) of a palette -> float (N, 3, H, W), channels_last."""
    if palette is None:
        return normalise(images).contiguous(memory_format=torch.channels_last)
    return colourise(images, palette)


def logits(
    model: nn.Module,
    images: torch.Tensor,
    palette: torch.Tensor | None = None,
    size: list[int] | None = None,
) -> torch.Tensor:
    """Logits float (N, num_classes, H, W) on the model's device; set eval mode before.

    Args:
        images: as as_input takes them, on any device.
        palette: of colormap indices.
        size: (height, width) of the frames that the model was trained on. Pictures of another size are scaled to it,
            since a column must be as many kHz wide, and a row as many microseconds long, as the model has learned.
    """
    images, own = images.to(next(model.parameters()).device), list(images.shape[-2:])
    other = size is not None and own != list(size)
    with torch.no_grad():
        if not other:
            return model(as_input(images, palette))["out"]
        shown = F.interpolate(images.float(), size=list(size), mode="bilinear", align_corners=False)
        answer = model(as_input(shown.round_().to(torch.uint8)))["out"]
        return F.interpolate(answer, size=own, mode="bilinear", align_corners=False)


def predict(model: nn.Module, images: torch.Tensor, size: list[int] | None = None) -> torch.Tensor:
    """uint8 images (N, 3, H, W) -> class numbers int64 (N, H, W) on the model's device; see logits."""
    return logits(model, images, size=size).argmax(1)
