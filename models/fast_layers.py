"""Two layers of DeepLabV3-MobileNetV3 that train faster and compute the same.

    model = speed_up(model).to(memory_format=torch.channels_last)

`speed_up` changes the class of some convolutions, in place. Parameters, their names and every attribute stay, so
checkpoints, optimizers and pruners find the same network as before. `slow_down` undoes it.
- `DepthwiseConv2d`: at stride 1 the gradient of the input is a convolution with the flipped kernel. The gradient of a
  dilated kernel is a convolution of the input with the output's gradient. Both run in the fast forward code. On a CPU
  PyTorch's general backward of a dilated kernel takes three to twenty times as long.
- `DilatedConv2d`: where the feature map is no larger than the dilation, taps beside the centre only ever meet padding
  (DeepLabV3's rates 24 and 36 on a map of 16 x 16). These dead taps are left out while the map is that small.
Both equal nn.Conv2d up to rounding, gradients too. Needs torch only.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d with one kernel per channel, (N, C, H, W) -> (N, C, H', W'), and a backward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight, self.bias
        if x.device.type != "cpu" or not torch.is_grad_enabled():  # CUDA has kernels of its own for all of it
            return super().forward(x)
        if torch.is_autocast_enabled(x.device.type):  # cast here: autograd then casts the gradients back
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return _Depthwise.apply(x, weight, bias, self.stride, self.padding, self.dilation)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation):
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, dilation
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups=weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # grad (N, C, H', W')
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        channels = weight.shape[0]
        kind = torch.promote_types(x.dtype, torch.float32)  # weight gradients sum over whole maps
        flipped_padding = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
        own_x = stride == (1, 1) and min(flipped_padding) >= 0
        own_weight = max(dilation) > 1
        mask = [ctx.needs_input_grad[0] and not own_x, ctx.needs_input_grad[1] and not own_weight, False]
        grad_x = grad_weight = grad_bias = None
        if any(mask):
            three = grad.to(kind), x.to(kind), weight.to(kind)
            grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
                *three, None, stride, padding, dilation, False, [0, 0], channels, mask
            )
            grad_x = None if grad_x is None else grad_x.to(x.dtype)
        if ctx.needs_input_grad[0] and own_x:
            grad_x = F.conv2d(grad, weight.flip(2, 3), None, 1, flipped_padding, dilation, channels)
        if ctx.needs_input_grad[1] and own_weight:
            grad_weight = _weight_gradient(x.to(kind), grad.to(kind), weight.shape[2:], stride, padding, dilation)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None, None


def _weight_gradient(x, grad, kernel, stride, padding, dilation):
    """The input convolved with the output's gradient, map by map; stride and dilation change places."""
    n, c = x.shape[:2]
    x, grad = x.reshape(1, n * c, *x.shape[2:]), grad.reshape(n * c, 1, *grad.shape[2:])
    maps = F.conv2d(x, grad, None, dilation, padding, stride, n * c)[:, :, : kernel[0], : kernel[1]]  # (1, N C, k, k)
    return maps.reshape(n, c, 1, *kernel).sum(0)


class DilatedConv2d(nn.Conv2d):
    """nn.Conv2d of kernel 3 with padding equal to dilation, which leaves out taps that only meet padding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        live = [slice(1, 2) if size <= d else slice(None) for size, d in zip(x.shape[2:], self.dilation, strict=True)]
        padding = [0 if size <= d else d for size, d in zip(x.shape[2:], self.dilation, strict=True)]
        return F.conv2d(x, self.weight[:, :, *live], self.bias, 1, padding, self.dilation, self.groups)


def speed_up(model: nn.Module) -> nn.Module:
    """Give every fitting convolution its faster class, in place, and return the model. A second call does nothing."""
    for layer in model.modules():
        if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            if layer.groups == layer.in_channels == layer.out_channels > 1:
                layer.__class__ = DepthwiseConv2d
            elif _is_dilated(layer):
                layer.__class__ = DilatedConv2d
    return model


def slow_down(model: nn.Module) -> nn.Module:
    """Undo `speed_up`, in place, and return the model."""
    for layer in model.modules():
        if type(layer) in (DepthwiseConv2d, DilatedConv2d):
            layer.__class__ = nn.Conv2d
    return model


def cut_dead_taps(model: nn.Module, size: tuple[int, int] = (256, 256)) -> list[str]:
    """Shrink kernels whose outer taps are dead for images of this size to 1 x 1, in place, exactly.

    DeepLabV3-MobileNetV3-Large at 256 x 256 goes from 11.02 M to 7.09 M parameters. Larger images then get another
    result than before, because they would have met the taps that are gone. These were never trained.

    Args:
        model: takes float (N, 3, H, W).
        size: (H, W) of all images to come.

    Returns:
        Names of the layers that were cut.
    """
    maps, hooks = {}, []
    for name, layer in model.named_modules():
        if type(layer) in (nn.Conv2d, DilatedConv2d) and _is_dilated(layer):
            hooks.append(layer.register_forward_pre_hook(lambda _, args, name=name: maps.update({name: args[0].shape})))
    training = [layer for layer in model.modules() if layer.training]
    parameter = next(model.parameters())
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, *size, dtype=parameter.dtype, device=parameter.device))
    for hook in hooks:
        hook.remove()
    for layer in training:
        layer.training = True
    cut = [name for name, shape in maps.items() if max(shape[2:]) <= min(model.get_submodule(name).dilation)]
    for name in cut:
        layer = model.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight.detach()[:, :, 1:2, 1:2].clone(), layer.weight.requires_grad)
        layer.kernel_size, layer.padding, layer.dilation, layer.__class__ = (1, 1), (0, 0), (1, 1), nn.Conv2d
    return cut


def _is_dilated(layer: nn.Conv2d) -> bool:
    shape = layer.kernel_size, layer.stride, layer.padding
    return shape == ((3, 3), (1, 1), layer.dilation) and layer.padding_mode == "zeros" and min(layer.dilation) > 1
