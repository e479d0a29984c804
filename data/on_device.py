"""Where a training's data lie: on the GPU if they fit, else on the CPU, read ahead into pinned memory.

    images, labels = on_device((images, labels), device)          # moved where they fit
    for x, y in gathered((images, labels), rows_of_batches, device):
        ...                                                       # on the device, either way

A copy from ordinary memory makes Python wait until the GPU has done all earlier work. A copy from pinned memory doesn't
(pages that the system never moves; `sent`), so Python can prepare the next step meanwhile. On a CPU nothing is moved or
copied. Torch only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

SHARE = 0.5  # of a GPU's free memory that data may take; the rest is for the network and its activations


def fits(count: int, device: torch.device) -> bool:
    """Whether data of `count` bytes may lie on the device: on CUDA up to half of what is free, on a CPU any."""
    return device.type != "cuda" or count <= SHARE * torch.cuda.mem_get_info(device)[0]


def on_device(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """All tensors on the device if they fit together, else as they are."""
    if fits(sum(tensor.numel() * tensor.element_size() for tensor in tensors), device):
        return tuple(tensor.to(device) for tensor in tensors)
    return tuple(tensors)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. A copy to CUDA is queued behind earlier work, and Python goes on at once."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def gathered(tensors: Sequence[Tensor], batches: Iterable[Tensor], device: torch.device) -> Iterator[tuple]:
    """Rows of all tensors, one batch after the other, on the device.

    Args:
        tensors: (N, ...), all on the device or all on the CPU.
        batches: int64 (B,), the rows of each batch, where the tensors are.
    """

    def rows_of(batch: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor[batch] for tensor in tensors)

    if tensors[0].device.type == device.type:
        yield from map(rows_of, batches)
    else:
        yield from read_ahead(rows_of, batches, device)


def read_ahead(read: Callable[..., tuple[Tensor, ...]], parts: Iterable, device: torch.device) -> Iterator[tuple]:
    """read(part) of each part, on the device. A thread reads the next part while the caller uses the present one.

    On the way to CUDA the thread writes into pinned memory. It makes no CUDA call itself, because a call of another
    thread would end the capture of a CUDA graph.

    Args:
        read: part -> tensors (B, ...) on the CPU; the trailing shapes and dtypes are the same for all parts.
    """
    parts, pinned = iter(parts), device.type == "cuda"

    def fill(part, buffers: list[Tensor]) -> tuple[Tensor, ...]:
        values = read(part)
        if not buffers or len(values[0]) != len(buffers[0]):  # the first part, and a smaller one at the end
            return values
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)
        return tuple(buffers)

    with ThreadPoolExecutor(1) as pool:

        def begin(like: tuple[Tensor, ...] = ()) -> Future | None:
            # torch gives pinned memory out again only when the copies from it are done
            buffers = [torch.empty_like(tensor, pin_memory=True) for tensor in like if pinned]
            return next((pool.submit(fill, part, buffers) for part in parts), None)

        ahead = begin()
        while ahead is not None:
            values = ahead.result()
            ahead = begin(values)
            yield tuple(sent(value, device) for value in values)
