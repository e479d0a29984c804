"""A script that torchrun may start several times: what the processes tell each other. One process needs none of it.

    rank, world, device = join_processes("cpu")          # gloo on CPUs, nccl on CUDA devices

Torch, and RunError of utils/runs.py.
"""

import atexit
import os
from collections.abc import Callable

import torch
import torch.distributed as dist

from utils.runs import RunError


def join_processes(device: str) -> tuple[int, int, torch.device]:
    """Rank, number of processes and device of this one; RunError: no such device here."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"--device {device} can't be used here ({reason}): try --device cpu") from error
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False  # scores are float32's; training has bfloat16
    if world == 1:
        return 0, 1, torch.device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    atexit.register(dist.destroy_process_group)
    return dist.get_rank(), world, torch.device(device)


def first_process(action: Callable[[], object], *errors: type[Exception]) -> object:
    """Let rank 0 do something while the others wait; all return its value, or raise one of `errors` as RunError."""
    value, fault = None, None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            value = action()
        except errors as error:
            fault = str(error)
    if dist.is_initialized():
        told = [value, fault]
        dist.broadcast_object_list(told)
        value, fault = told
    if fault:
        raise RunError(fault)
    return value


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Add up a tensor of all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def mean_over_processes(values: list[float]) -> list[float]:
    """Means of some numbers, so that all processes see the same loss, and stop together."""
    if not dist.is_initialized():
        return values
    return (sum_over_processes(torch.tensor(values, dtype=torch.float64)) / dist.get_world_size()).tolist()


def gather(value) -> list:
    """The plain values of all processes, by rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
