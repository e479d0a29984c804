"""Read PNG pictures that may be damaged: sizes and checksums first, and only then the pixels.

    picture = read_png("NR_frame_1.png")        # numpy uint8 (H, W, 3), RGB
    png_size("NR_frame_1.png")                  # (H, W), from the header alone

PIL decodes what claims any size, and looks neither at the checksums of the pixels' chunks nor at what lies behind them.
So the chunks are checked here, and PIL gets those that hold size, palette, transparency and pixels. Source: W3C,
"Portable Network Graphics (PNG) Specification", third edition. Needs numpy and PIL.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from data import DataError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_PIXELS = 1 << 24  # 4096 x 4096; a spectrogram of 40 ms has 256 x 256
MOST_BYTES = 1 << 28  # of a file, before anything is read of it
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # bits of each colour type
KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def png_size(path) -> tuple[int, int]:
    """(H, W) of a PNG, from its header. Raises DataError as read_png does, for faults of the header alone."""
    return _guarded(path, lambda file: _size(file.read(33)))


def read_png(path) -> np.ndarray:
    """The pixels of a PNG, uint8 (H, W, 3), RGB.

    Raises DataError for a file that cannot be read, is no PNG, has more than MOST_PIXELS pixels, is truncated, or
    differs from its checksums.
    """
    return _guarded(path, _pixels)


def _guarded(path, work):
    try:
        with open(path, "rb") as file:
            return work(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except DataError as fault:
        raise DataError(f"{path} cannot be read as a picture ({fault}); replace it") from None


def _pixels(file) -> np.ndarray:
    height, width = _size(file.read(33))
    file.seek(0)
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise DataError(f"it has more than {MOST_BYTES:,} bytes")
    try:
        with Image.open(io.BytesIO(_kept(data)), formats=["PNG"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL raises
        raise DataError(str(error)) from None
    if pixels.shape != (height, width, 3):
        raise DataError(f"it holds {pixels.shape} instead of {height} x {width} pixels")
    return pixels


def _size(head: bytes) -> tuple[int, int]:
    """(H, W) of the first 33 bytes. The text of the DataErrors in this file stands in brackets."""
    if head[:8] != SIGNATURE:
        raise DataError("it is no PNG")
    if len(head) < 33 or head[8:16] != b"\0\0\0\rIHDR":
        raise DataError("it has no header")
    width, height, bits, colour, packing, filters, interlace = struct.unpack(">IIBBBBB", head[16:29])
    if zlib.crc32(head[12:29]) != int.from_bytes(head[29:33]):
        raise DataError("its header differs from its checksum")
    if not 0 < width * height <= MOST_PIXELS:
        raise DataError(f"it claims {width} x {height} pixels, and at most {MOST_PIXELS:,} are read")
    if bits not in DEPTHS.get(colour, ()) or packing or filters or interlace > 1:
        raise DataError(f"its header has {bits} bits of colour type {colour}, packed as {packing}")
    return height, width


def _kept(data: bytes) -> bytes:
    """The chunks in KEPT, after the checksums of all chunks were compared."""
    kept, position, name = [SIGNATURE], len(SIGNATURE), b""
    while name != b"IEND":
        if position + 12 > len(data):
            raise DataError("it is truncated")
        size, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + size
        if end > len(data):
            raise DataError("it is truncated")
        if zlib.crc32(data[position + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise DataError(f"its chunk {name.decode('latin-1')!r} differs from its checksum")
        if name in KEPT:
            kept.append(data[position:end])
        position = end
    return b"".join(kept)
