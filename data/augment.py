"""What may be done to a spectrogram and its mask without leaving the physics, on whole batches on any device.

    index, error = colour_index(images, palette)                         # once: pictures -> levels
    index, masks = shift_and_flip(index, masks, draw_geometry(8, 256, 256))
    index, masks = add_carriers(index, masks)
    index = jitter_levels(index, *draw_levels(8))

A frame may start at any time and lie at any place in the band (circular shifts), may be played backwards or mirrored in
frequency (the conjugate signal), and its levels are arbitrary because every picture is rescaled to its own minimum
and maximum. Random numbers are drawn on the CPU from torch's global generator unless another one is given.
Torch only.
"""

import torch

NOISE_STEP = 30  # of 255 levels: carriers of a frame whose noise differs by more would leave its colours


def colour_index(images: torch.Tensor, palette: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Undo a colour map: the number of the nearest colour for each pixel.

    Args:
        images: uint8 (N, 3, H, W), RGB.
        palette: uint8 (256, 3), RGB.

    Returns:
        index uint8 (N, H, W), and the largest difference of a colour value between a pixel and its palette colour:
        0 where palette[index] is the image exactly, 1 or 2 from another edition of the map, more for another map.
    """
    seen = torch.zeros(1 << 24, dtype=torch.bool)
    for image in images:
        seen[_packed(image)] = True
    colours = seen.nonzero().squeeze(1)  # (K,), a few hundred where one colour map was used
    nearest = torch.zeros(1 << 24, dtype=torch.uint8)
    largest = 0
    for part in colours.split(65536):
        rgb = torch.stack((part >> 16, part >> 8 & 255, part & 255), 1).float()  # (K, 3)
        choice = torch.cdist(rgb, palette.float()).argmin(1)
        nearest[part] = choice.to(torch.uint8)
        largest = max(largest, int((rgb - palette[choice].float()).abs().max()))
    index = torch.empty(images.shape[0], *images.shape[2:], dtype=torch.uint8)
    for i, image in enumerate(images):
        index[i] = nearest[_packed(image)]
    return index, largest


def as_levels(
    images: torch.Tensor, palette: torch.Tensor, tolerance: int = 4
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pictures uint8 (N, 3, H, W) -> levels (N, H, W) and the palette; (pictures, None) if painted in other colours.

    tolerance: of colour values; MATLAB's releases differ by less in parula, other colour maps by more.
    """
    levels, difference = colour_index(images, palette)
    return (levels, palette) if difference <= tolerance else (images, None)


def draw_geometry(
    n: int, height: int, width: int, mirror: bool = False, generator: torch.Generator | None = None
) -> dict[str, torch.Tensor]:
    """Random shifts and flips of n frames: {"rows": (n, H), "columns": (n, W)}, where each pixel comes from, int64.

    mirror: flip not only the time axis of half of the frames, but the frequency axis, too. A network that has seen
    mirrored carriers cannot tell which way a sparsely used one extends from its control channel.
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
    """Circular shifts and flips of images (N, H, W) or (N, 3, H, W) and masks (N, H, W) together, in one gather."""
    rows = geometry["rows"].to(images.device)[:, :, None]  # (N, H, 1)
    columns = geometry["columns"].to(images.device)[:, None, :]  # (N, 1, W)
    frame = torch.arange(len(images), device=images.device)[:, None, None]
    if images.dim() == 3:
        return images[frame, rows, columns], masks[frame, rows, columns]
    moved = images.permute(0, 2, 3, 1)[frame, rows, columns]  # (N, H, W, 3)
    return moved.permute(0, 3, 1, 2), masks[frame, rows, columns]


def add_carriers(
    levels: torch.Tensor, masks: torch.Tensor, *along: torch.Tensor, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, ...]:
    """Put the carriers of the batch's previous frame into a frame's free columns, at a random place with room for all.

    Signals on the air add, and beside each other they do so without touching. The guests' levels move so that both
    frames' noise is equal; where it differs by more than NOISE_STEP, or there is no room, the frame stays as it is.
    A network that has met a single carrier in all frames of some look stops searching after the first.

    Args:
        levels: uint8 (N, H, W).
        masks: classes (N, H, W) of any integer type, 0 noise, each carrier over the whole height.
        along: float (N, C, H, W), such as a teacher's logits, moved as the masks are.

    Returns:
        levels, masks and all of `along`, shapes and dtypes as they were.
    """
    n, height, width = levels.shape
    taken = (masks != 0).any(1)  # (N, W)
    free = (~taken).float()[:, None]  # (N, 1, W)
    noise = (levels * free).sum((1, 2)) / (free.sum((1, 2)) * height)  # (N,), nan where all columns are taken
    change = noise - noise.roll(1)
    # How many taken columns meet for every shift of the guests: a circular correlation.
    spectrum = torch.fft.rfft(taken.float())
    meet = torch.fft.irfft(spectrum * spectrum.roll(1, 0).conj(), width)  # (N, W)
    room = (meet < 0.5) & (change.abs() <= NOISE_STEP)[:, None]
    shift = (torch.rand(n, width, generator=generator).to(levels.device) * room).argmax(1)  # (N,)
    column = (torch.arange(width, device=levels.device) - shift[:, None]) % width  # (N, W): where a guest's comes from
    guest = taken.roll(1, 0).gather(1, column) & room.any(1)[:, None]  # (N, W)
    geometry = {"rows": torch.arange(height).expand(n, -1), "columns": column}
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
    """Random level changes of n frames as gain and offset, float (n,): level -> ceiling (255 - stretch (255 - level)).

    A picture runs from its own minimum to its own maximum. A deeper or higher minimum stretches or compresses it below
    the strongest value, a stronger value elsewhere lowers all others: no signal is ever driven into saturation. Each
    frame keeps its levels with 1 - probability.
    """
    changed = (torch.rand(n, generator=generator) < probability).float()
    g = 1 + changed * (stretch[0] - 1 + (stretch[1] - stretch[0]) * torch.rand(n, generator=generator))
    top = 1 + changed * (ceiling[0] - 1 + (ceiling[1] - ceiling[0]) * torch.rand(n, generator=generator))
    return top * g, top * 255 * (1 - g)


def jitter_levels(index: torch.Tensor, gain: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """uint8 levels (N, H, W) -> round(gain * level + offset), clipped to 0..255, uint8; gain and offset are (N,)."""
    gain, offset = (values.to(index.device)[:, None, None] for values in (gain, offset))
    return (index * gain + offset).round_().clamp_(0, 255).to(torch.uint8)


def _packed(image: torch.Tensor) -> torch.Tensor:
    """uint8 (3, H, W) -> int64 (H, W), the colour as one number."""
    red, green, blue = image.long()
    return red << 16 | green << 8 | blue
