"""Read and write 8-bit raster images (RIS8) in HDF4 files, with numpy alone.

    mask = read_raster("TrainingData/NR_frame_1.hdf")      # numpy uint8 (H, W)
    write_raster("copy.hdf", mask)                         # run-length encoded

The MathWorks spectrum sensing archive keeps its labels in this format, which PIL, torchvision and h5py cannot read.

An HDF4 file begins with a magic number. Linked blocks of data descriptors follow. Each descriptor holds tag, reference
number, offset and length of one element; all numbers are big-endian. A raster image is a group (RIG) of elements: its
dimensions (ID), its number type (NT), and its pixels (RI, or CI if compressed). A palette is ignored, because the
pixels are labels. Old readers look for ID8, and RI8 or CI8; therefore these tags point at the same bytes. Source: NCSA,
"HDF Specification and Developer's Guide", version 4.

To use it elsewhere, copy this file and replace DataError by an exception of your own.
"""

import os
import struct
from pathlib import Path

import numpy as np

from data import DataError

MAGIC = b"\x0e\x03\x13\x01"
ID8, RI8, CI8 = 200, 202, 203
NULL, UNSET = 1, 0xFFFFFFFF  # tag of an unused descriptor; length of an element that was never written
NT, ID, RI, CI, RIG = 106, 300, 302, 303, 306
RLE = 11  # compression "tag" inside ID; 0 is none
MOST_PIXELS, MOST_BYTES = 1 << 24, 1 << 28  # of an image; of a file, all of which is read
UNSIGNED_CHAR = bytes([1, 3, 8, 0])  # the NT element: version, type, bits, class


def read_raster(path) -> np.ndarray:
    """The first 8-bit raster image of an HDF4 file, uncompressed or run-length encoded, as uint8 (H, W).

    Raises DataError for a file that cannot be opened, is not HDF4, is truncated, contradicts itself, or holds no
    raster image of one 8-bit component and at most MOST_PIXELS.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(4)
            if data == MAGIC:  # do not read a huge file that is something else
                data += file.read(MOST_BYTES)
        if len(data) > MOST_BYTES:
            raise DataError(f"has more than {MOST_BYTES:,} bytes")
        return _raster(data)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except DataError as fault:
        raise DataError(f"{path} {fault}; replace it: download or generate it again") from None


def write_raster(path, array, compression="rle") -> None:
    """Write `array`, uint8 (H, W), as an HDF4 raster image; compression "rle" or None.

    The file exists either completely or not at all. Raises DataError for another dtype, shape or compression, and if
    the file cannot be written.
    """
    array = np.asarray(array)
    sides = array.shape if array.ndim == 2 else (0,)
    if array.dtype != np.uint8 or not 0 < min(sides) <= max(sides) <= 0xFFFF or array.size > MOST_PIXELS:
        limits = f"uint8 (H, W) of 1 to 65535 pixels a side and {MOST_PIXELS:,} in all"
        raise DataError(f"{path} needs {limits}, not {array.dtype} {array.shape}")
    if compression not in ("rle", None):
        raise DataError(f'{path} cannot be compressed by {compression!r}; choose "rle" or None')
    # The elements of the image.
    height, width = array.shape
    pixels = _encode(array) if compression else array.tobytes()
    image, image8, code = (CI, CI8, RLE) if compression else (RI, RI8, 0)
    ref = 2
    dimensions = struct.pack(">iiHHhhHH", width, height, NT, ref, 1, 0, code, ref)
    group = struct.pack(">HHHH", ID, ref, image, ref)
    contents = {
        (image, image8): pixels,
        (NT,): UNSIGNED_CHAR,
        (ID,): dimensions,
        (ID8,): struct.pack(">HH", width, height),
        (RIG,): group,
    }
    # A block of descriptors, then the elements.
    count = sum(map(len, contents))
    offset = len(MAGIC) + 6 + 12 * count
    block = struct.pack(">HI", count, 0)  # 0: no other block follows
    for tags, element in contents.items():
        for tag in tags:
            block += struct.pack(">HHII", tag, ref, offset, len(element))
        offset += len(element)
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(MAGIC + block + b"".join(contents.values()))
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path} cannot be written ({error.strerror}); check the folder and its free space") from None


def _raster(data: bytes) -> np.ndarray:
    """The first raster image of a file's bytes, uint8 (H, W). The text of its DataErrors continues "FILE ..."."""
    if data[:4] != MAGIC:
        raise DataError("is not an HDF4 file")
    members = _members(data, _descriptors(data))
    if ID in members:
        width, height, _, _, components, _, code, _ = _unpack(">iiHHhhHH", members[ID])
    elif ID8 in members:
        (width, height), components, code = _unpack(">HH", members[ID8]), 1, RLE if CI8 in members else 0
    else:
        raise DataError("gives no dimensions for its raster image")
    if components != 1:
        raise DataError(f"holds pixels of {components} components, not one")
    if width <= 0 or height <= 0 or width * height > MOST_PIXELS:
        raise DataError(f"claims {width}x{height} pixels, and 1 to {MOST_PIXELS:,} are read")
    tags = {0: (RI, RI8), RLE: (CI, CI8)}.get(code)
    if tags is None:
        raise DataError(f"uses compression {code}, and only run-length encoding (11) or none is read")
    pixels = next((members[tag] for tag in tags if tag in members), None)
    if pixels is None:
        raise DataError(f"states compression {code}, but its pixels are stored in another way")
    if code == RLE:
        pixels = _decode(pixels, width * height)
    if len(pixels) != width * height:
        raise DataError(f"holds {len(pixels)} pixels instead of {width}x{height}")
    return np.frombuffer(pixels, np.uint8).reshape(height, width).copy()  # a copy, because bytes are read-only


def _descriptors(data: bytes) -> dict[tuple[int, int], tuple[int, int]]:
    """Follow the linked descriptor blocks: {(tag, ref): (offset, length)}."""
    elements, position, seen = {}, len(MAGIC), set()
    while position:
        if position in seen:
            raise DataError("has descriptor blocks that link in a circle")
        seen.add(position)
        count, following = _unpack(">HI", _cut(data, position, 6))
        for tag, ref, offset, length in struct.iter_unpack(">HHII", _cut(data, position + 6, 12 * count)):
            if tag != NULL and length != UNSET:
                _cut(data, offset, length)  # raises if the file is truncated, even where we do not need the element
                elements.setdefault((tag, ref), (offset, length))
        position = following
    return elements


def _members(data: bytes, elements: dict) -> dict[int, bytes]:
    """The elements of the first raster image, {tag: bytes}.

    They are those that its group lists, or without a group those with the image's reference number.
    """
    group = next((key for key in elements if key[0] == RIG), None)
    image = next((key for key in elements if key[0] in (RI8, CI8, RI, CI)), None)
    if group:
        listed = _cut(data, *elements[group])
        keys = list(struct.iter_unpack(">HH", listed[: len(listed) // 4 * 4]))
    elif image:
        keys = [key for key in elements if key[1] == image[1]]
    else:
        raise DataError("holds no 8-bit raster image")
    keys = [key for key in keys if key[0] in (ID, RI, CI, ID8, RI8, CI8)]  # not the palette
    if not set(keys) <= set(elements):
        raise DataError("lists elements that it does not hold")
    return {tag: _cut(data, *elements[tag, ref]) for tag, ref in keys}


def _cut(data: bytes, offset: int, length: int) -> bytes:
    """Bytes of one element. Raises DataError if the file ends before them."""
    if offset + length > len(data):
        raise DataError(f"is truncated: it points at byte {offset + length} and has {len(data)}")
    return data[offset : offset + length]


def _unpack(layout: str, element: bytes) -> tuple:
    """struct.unpack with a DataError for an element of another length."""
    if len(element) != struct.calcsize(layout):
        raise DataError(f"has an element of {len(element)} bytes instead of {struct.calcsize(layout)}")
    return struct.unpack(layout, element)


def _decode(packed: bytes, most: int) -> bytes:
    """Undo the run-length encoding; it ends behind `most` pixels.

    The low 7 bits of a head byte are a count n. If its top bit is set, the next byte is repeated n times; if not, the
    next n bytes are copied.
    """
    pieces, position, total = [], 0, 0
    while position < len(packed) and total <= most:
        head, position = packed[position], position + 1
        count = head & 0x7F
        if head & 0x80:
            pieces.append(packed[position : position + 1] * count)
            position += 1
        else:
            pieces.append(packed[position : position + count])
            position += count
        total += count
    return b"".join(pieces)  # too few pixels if the stream is truncated: the caller compares


def _encode(array: np.ndarray) -> bytes:
    """Run-length encode uint8 (H, W), each row for itself, as the C library does."""
    rows = [row.tobytes() for row in array]
    packed = {row: _encode_row(row) for row in set(rows)}  # labels have few different rows
    return b"".join(packed[row] for row in rows)


def _encode_row(row: bytes) -> bytes:
    """Run-length encode one row."""
    values = np.frombuffer(row, np.uint8)
    edges = np.r_[0, np.flatnonzero(np.diff(values)) + 1, len(values)]
    packed, literal = bytearray(), bytearray()

    def flush():
        for start in range(0, len(literal), 120):  # 120 is the C library's longest piece
            piece = literal[start : start + 120]
            packed.extend(bytes([len(piece)]) + piece)
        literal.clear()

    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if end - start < 3:  # two repeated bytes are no shorter than two copied ones
            literal += row[start:end]
            continue
        flush()
        for at in range(start, end, 120):
            packed += bytes([0x80 | min(120, end - at), row[start]])
    flush()
    return bytes(packed)
