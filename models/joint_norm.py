"""Batch norm over the joint batch of several processes, with DistributedDataParallel.

    network = join_batch_norm(network.to(device))                        # in place; one process: nothing changes
    model = DistributedDataParallel(network, broadcast_buffers=False)    # the statistics are equal everywhere

A process that normalises by the statistics of its own share of a batch computes something else than one process with
the whole batch. Here mean and variance are those of all shares, in the forward and in the gradient, so both compute the
same up to rounding. On CUDA nn.SyncBatchNorm does it, which knows no other device. For CPUs JointBatchNorm does the
same arithmetic with PyTorch's fast kernels and two small collectives a layer. Needs torch only.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class JointBatchNorm(_BatchNorm):
    """nn.BatchNorm1d or 2d on a CPU, (N, C, ...) -> the same, with the statistics of all processes.

    Only training forwards with gradients are joint. Evaluation, and passes that measure statistics under no_grad, stay
    within the process. All processes must have equally large batches.
    """

    def _check_input_dim(self, x: torch.Tensor) -> None:
        """Any number of dimensions from two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not torch.is_grad_enabled():
            return super().forward(x)
        y, mean, variance = _Joint.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            count = x.numel() // x.shape[1] * dist.get_world_size()
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1), share)  # unbiased, as nn.BatchNorm2d keeps it
        return y


class _Joint(torch.autograd.Function):
    """(x, weight, bias, eps) -> normalised x, and the joint mean and biased variance (C,)."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        channels = torch.zeros_like(weight), torch.ones_like(weight)  # float32, so bfloat16 is summed in float32
        own = torch.stack(torch.batch_norm_update_stats(x, *channels, 0.0))  # (2, C): mean, biased variance
        all_of_them = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(all_of_them, own)
        means, variances = torch.stack(all_of_them).unbind(1)  # each (processes, C)
        mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        x, weight, mean, variance = ctx.saved_tensors
        fixed = None, None, False, ctx.eps, [True, True, True]  # as if the statistics were constants
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, *fixed
        )
        # What flows through the statistics: minus the means, over the joint batch, of grad and of grad * x-hat
        sums = torch.stack((grad_weight, grad_bias))  # (2, C): of grad * x-hat, of grad
        dist.all_reduce(sums)
        factor = weight * (variance + ctx.eps).rsqrt() / (x.numel() // x.shape[1] * dist.get_world_size())
        along, constant = -factor * sums
        return grad_x + F.batch_norm(x, mean, variance, along, constant, eps=ctx.eps), grad_weight, grad_bias, None


def join_batch_norm(network: nn.Module) -> nn.Module:
    """Make every nn.BatchNorm1d and 2d joint, in place, and return the network; without other processes do nothing.

    Only the class of the layers changes. Parameters, names and attributes stay, so checkpoints fit as before. The
    network must be on its device.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        for layer in network.modules():
            if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d):
                layer.__class__ = nn.SyncBatchNorm if layer.running_mean.is_cuda else JointBatchNorm
                layer.process_group = None  # all processes
    return network
