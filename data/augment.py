"""Augment spectrograms and their labels in ways that radio signals allow, on whole batches and on any device.

    levels, error = colormap_index(images, palette)                        # once: pictures -> colormap indices
    levels, masks = augment_batch(levels, masks, rows=256, are_levels=True)

It calls, one after the other:

    levels, masks = shift_and_flip(levels, masks, draw_geometry(8, 256, 256))
    levels, masks = add_carriers(levels, masks)
    levels = jitter_levels(levels, *draw_levels(8))

The levels of a picture are its colormap indices, uint8 from 0 (weakest) to 255 (strongest). Its masks are the class of
each pixel. A receiver may begin at any time and be tuned to any frequency: circular shifts. A signal may be played
backwards, or mirrored in frequency (the conjugate signal): flips. Levels have no absolute meaning, because each picture
is scaled to its own minimum and maximum: jitter. Random numbers are drawn on the CPU, from torch's global generator
unless another one is given, and sent to the device of the frames. Needs torch, and on_device.py.
"""

import torch

from data.on_device import sent

NOISE_STEP = 30  # of 255 levels: where two frames' noise differs by more, moved carriers would be clipped


def colormap_index(images: torch.Tensor, palette: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Undo a colormap: the colormap index of each pixel, which is the place of the nearest colour in the palette.

    Args:
        images: uint8 (N, 3, H, W), RGB.
        palette: uint8 (256, 3), RGB.

    Returns:
        index, uint8 (N, H, W), and the largest difference between a colour value of a pixel and of its palette colour:
        0 if palette[index] is exactly the image, 1 or 2 for another edition of the colormap, more for another one.
    """
    # Which colours there are.
    seen = torch.zeros(1 << 24, dtype=torch.bool)
    for image in images:
        seen[_packed(image)] = True
    colours = seen.nonzero().squeeze(1)  # (K,), a few hundred for pictures of one colormap

    # The nearest palette colour of each.
    nearest = torch.zeros(1 << 24, dtype=torch.uint8)
    largest = 0
    for part in colours.split(65536):
        rgb = torch.stack((part >> 16, part >> 8 & 255, part & 255), 1).float()  # (K, 3)
        choice = torch.cdist(rgb, palette.float()).argmin(1)
        nearest[part] = choice.to(torch.uint8)
        largest = max(largest, int((rgb - palette[choice].float()).abs().max()))

    # Look up each pixel.
    index = torch.empty(images.shape[0], *images.shape[2:], dtype=torch.uint8)
    for i, image in enumerate(images):
        index[i] = nearest[_packed(image)]
    return index, largest


def as_levels(
    images: torch.Tensor, palette: torch.Tensor, tolerance: int = 4
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pictures uint8 (N, 3, H, W) -> levels (N, H, W) and the palette, or the pictures and None.

    None means that the pictures have another colormap: a colour value differs by more than `tolerance`. The parulas of
    MATLAB's releases differ by less, other colormaps by more.
    """
    levels, difference = colormap_index(images, palette)
    return (levels, palette) if difference <= tolerance else (images, None)


def draw_geometry(
    n: int, height: int, width: int, mirror: bool = False, generator: torch.Generator | None = None
) -> dict[str, torch.Tensor]:
    """Draw shifts and flips of n frames: {"rows": int64 (n, H), "columns": int64 (n, W)}, where each pixel comes from.

    The time axis of half of the frames is flipped. With `mirror`, the frequency axis of half of the frames is, too.

    Off by default, for a reason that is partly out of date. When the choice was measured (docs/LOG.md, 2026-11-23), a
    generated NR carrier had its control channel always in the same place, at its lower end and in its middle. After
    flips a network could not tell to which side a sparsely used carrier extends. Now the PDCCH moves from slot to slot
    and reaches both ends: it begins at the lowest resource block, and on average 5% of the carrier remain unused at
    the upper end. Whether flips still hurt has not been measured.
    """
    axes = {}
    for name, size in (("rows", height), ("columns", width)):
        shift = torch.randint(size, (n, 1), generator=generator)
        sign = torch.randint(2, (n, 1), generator=generator) * 2 - 1
        if name == "columns" and not mirror:
            sign = sign.abs()
        axes[name] = (torch.arange(size) * sign + shift) % size
    return axes


def shift_and_flip(
    images: torch.Tensor, masks: torch.Tensor, geometry: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move images (N, H, W) or (N, 3, H, W) and masks (N, H, W) together, in one gather.

    Args: geometry, of `draw_geometry`.  Returns: images and masks of the same shapes and dtypes.
    """
    rows = sent(geometry["rows"], images.device)[:, :, None]  # (N, H, 1)
    columns = sent(geometry["columns"], images.device)[:, None, :]  # (N, 1, W)
    frame = torch.arange(len(images), device=images.device)[:, None, None]
    if images.dim() == 3:
        return images[frame, rows, columns], masks[frame, rows, columns]
    moved = images.permute(0, 2, 3, 1)[frame, rows, columns]  # (N, H, W, 3)
    return moved.permute(0, 3, 1, 2), masks[frame, rows, columns]  # (N, 3, H, W)


def add_carriers(
    levels: torch.Tensor, masks: torch.Tensor, *along: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, ...]:
    """Copy the carriers of the previous frame of the batch into the free columns of each frame.

    All carriers of a frame move together, to a random place where none overlaps with another. Their levels are changed
    so that the noise of both frames is equal. A frame stays as it is if there is no room, or if the noise differs by
    more than NOISE_STEP.

    Why: a network that sees only one carrier in all frames of a kind does not look for a second one.

    Args:
        levels: uint8 (N, H, W).
        masks: classes (N, H, W) of any integer type, 0 noise, each carrier over the whole height.
        along: float (N, C, H, W), such as a teacher's logits, which move as the masks do.

    Returns:
        levels, masks and all of `along`, with the same shapes and dtypes.
    """
    # By how much the noise differs.
    n, height, width = levels.shape
    taken = (masks != 0).any(1)  # (N, W)
    free = (~taken).float()[:, None]  # (N, 1, W)
    noise = (levels * free).sum((1, 2)) / (free.sum((1, 2)) * height)  # (N,), nan where all columns are taken
    change = noise - noise.roll(1)

    # A shift without overlap. How many columns overlap at each shift of the guests is a circular correlation.
    spectrum = torch.fft.rfft(taken.float())
    meet = torch.fft.irfft(spectrum * spectrum.roll(1, 0).conj(), width)  # (N, W)
    room = (meet < 0.5) & (change.abs() <= NOISE_STEP)[:, None]
    shift = (sent(torch.rand(n, width, generator=generator), levels.device) * room).argmax(1)  # (N,)
    column = (torch.arange(width, device=levels.device) - shift[:, None]) % width  # (N, W): where a guest's comes from

    # Copy.
    guest = taken.roll(1, 0).gather(1, column) & room.any(1)[:, None]  # (N, W)
    geometry = {"rows": torch.arange(height, device=levels.device).expand(n, -1), "columns": column}
    guests, theirs = shift_and_flip(levels.roll(1, 0), masks.roll(1, 0), geometry)
    guests = (guests + change.nan_to_num()[:, None, None]).round_().clamp_(0, 255).to(levels.dtype)
    moved = [torch.where(guest[:, None], guests, levels), torch.where(guest[:, None], theirs, masks)]
    for values in along:
        theirs, _ = shift_and_flip(values.roll(1, 0), masks, geometry)  # (N, C, H, W)
        moved.append(torch.where(guest[:, None, None], theirs, values))
    return tuple(moved)


def draw_levels(
    n: int,
    generator: torch.Generator | None = None,
    stretch: tuple[float, float] = (0.7, 1.4),
    ceiling: tuple[float, float] = (0.8, 1.0),
    probability: float = 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw level changes of n frames: gain and offset, float (n,), of level -> ceiling (255 - stretch (255 - level)).

    A picture is scaled from its own minimum to its own maximum. Another minimum stretches or compresses the levels
    below the strongest one (stretch). A stronger value elsewhere lowers all levels (ceiling). So no level is ever
    raised above 255. A frame keeps its levels with 1 - probability.
    """
    changed = (torch.rand(n, generator=generator) < probability).float()
    g = 1 + changed * (stretch[0] - 1 + (stretch[1] - stretch[0]) * torch.rand(n, generator=generator))
    top = 1 + changed * (ceiling[0] - 1 + (ceiling[1] - ceiling[0]) * torch.rand(n, generator=generator))
    return top * g, top * 255 * (1 - g)


def jitter_levels(index: torch.Tensor, gain: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Levels uint8 (N, H, W) -> round(gain * level + offset), clipped to 0..255, uint8. Gain and offset are (N,)."""
    gain, offset = (sent(values, index.device)[:, None, None] for values in (gain, offset))
    return (index * gain + offset).round_().clamp_(0, 255).to(torch.uint8)


def _packed(image: torch.Tensor) -> torch.Tensor:
    """The colour of each pixel as one number: uint8 (3, H, W) -> int64 (H, W)."""
    red, green, blue = image.long()
    return red << 16 | green << 8 | blue


def augment_batch(
    images: torch.Tensor, masks: torch.Tensor, *along: torch.Tensor, rows: int, are_levels: bool, mirror: bool = False
) -> tuple[torch.Tensor, ...]:
    """All of the above for the frames of one training step, cut to their first rows.

    Args:
        images: uint8 levels (N, H, W), or pictures (N, 3, H, W), whose levels are not known and stay.
        masks: classes (N, H, W).
        along: float (N, C, H, W), such as a teacher's logits, which move as the masks do.
        rows: of the time axis that stay.
        are_levels: whether `images` are levels.
        mirror: flip in frequency as well. No carriers are added then.

    Returns:
        images, masks and all of `along`, (..., rows, W).
    """
    geometry = draw_geometry(*masks.shape, mirror)
    geometry["rows"] = geometry["rows"][:, :rows]
    moved = [shift_and_flip(values, masks, geometry)[0] for values in along]
    images, masks = shift_and_flip(images, masks, geometry)
    if are_levels:
        if not mirror:
            images, masks, *moved = add_carriers(images, masks, *moved)
        images = jitter_levels(images, *draw_levels(len(images)))
    return images, masks, *moved
