"""HDF4 8-bit raster images (RIS8), read and written with numpy alone.

The MathWorks spectrum sensing archive keeps its masks in this format, which PIL, torchvision and h5py do not know.
A file is the magic number, then linked blocks of data descriptors, each descriptor telling the tag, reference
number, offset and length of one element; all numbers are big-endian. A raster image is a group (RIG) of elements: its
dimensions (ID), its number type (NT), its pixels (RI, or CI when compressed) and possibly a palette, which is ignored
because the pixels are labels. Old readers look for ID8 and RI8 or CI8 instead, so both names point at the same bytes.
After the NCSA "HDF Specification and Developer's Guide", version 4.

    mask = read_raster("TrainingData/NR_frame_1.hdf")      # numpy uint8 (H, W)
    write_raster("copy.hdf", mask)                         # run-length encoded

To take it along: copy this file and replace DataError by any exception of your own.
"""

import os
import struct
from pathlib import Path

import numpy as np

from data import DataError

MAGIC = b"\x0e\x03\x13\x01"
ID8, RI8, CI8 = 200, 202, 203
NULL, UNSET = 1, 0xFFFFFFFF  # an unused descriptor; the length of an element never written
NT, ID, RI, CI, RIG = 106, 300, 302, 303, 306
RLE = 11  # compression "tag" inside ID; 0 is none
UNSIGNED_CHAR = bytes([1, 3, 8, 0])  # NT element: version, type, bits, class


def read_raster(path) -> np.ndarray:
    """The first 8-bit raster image of an HDF4 file, uncompressed or run-length encoded, as uint8 (H, W).

    Raises DataError for a file that cannot be opened, is not HDF4, is truncated, contradicts itself, or holds no
    raster of one 8-bit component.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(4)
            if data == MAGIC:  # anything else may be a huge file named by mistake
                data += file.read()
        return _raster(data)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except DataError as fault:
        raise DataError(f"{path} {fault}; replace it: download or generate it again") from None


def write_raster(path, array, compression="rle") -> None:
    """Write `array`, uint8 (H, W), as an HDF4 raster image; compression "rle" or None.

    The file appears complete or not at all. Raises DataError for another dtype, shape or compression, and where the
    file cannot be written.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != 2 or not 0 < min(array.shape) <= max(array.shape) <= 0xFFFF:
        raise DataError(f"{path} needs uint8 (H, W) of 1 to 65535 pixels a side, not {array.dtype} {array.shape}")
    if compression not in ("rle", None):
        raise DataError(f'{path} cannot be compressed by {compression!r}; choose "rle" or None')
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
    count = sum(map(len, contents))
    offset = len(MAGIC) + 6 + 12 * count
    block = struct.pack(">HI", count, 0)  # one block of descriptors, none follows
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
    if width <= 0 or height <= 0:
        raise DataError(f"claims {width}x{height} pixels")
    tags = {0: (RI, RI8), RLE: (CI, CI8)}.get(code)
    if tags is None:
        raise DataError(f"uses compression {code}, and only run-length encoding (11) or none is read")
    pixels = next((members[tag] for tag in tags if tag in members), None)
    if pixels is None:
        raise DataError(f"says compression {code}, but its pixels are stored otherwise")
    if code == RLE:
        pixels = _decode(pixels)
    if len(pixels) != width * height:
        raise DataError(f"holds {len(pixels)} pixels where {width}x{height} are promised")
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
                _cut(data, offset, length)  # what is cut off need not be what we want, but the file is not whole
                elements.setdefault((tag, ref), (offset, length))
        position = following
    return elements


def _members(data: bytes, elements: dict) -> dict[int, bytes]:
    """The elements of the first raster image, {tag: bytes}: as its group lists them, else those of its number."""
    group = next((key for key in elements if key[0] == RIG), None)
    image = next((key for key in elements if key[0] in (RI8, CI8, RI, CI)), None)
    if group:
        listed = _cut(data, *elements[group])
        keys = list(struct.iter_unpack(">HH", listed[: len(listed) // 4 * 4]))
    elif image:
        keys = [key for key in elements if key[1] == image[1]]
    else:
        raise DataError("holds no 8-bit raster image")
    keys = [key for key in keys if key[0] in (ID, RI, CI, ID8, RI8, CI8)]  # a palette is not even looked at
    if not set(keys) <= set(elements):
        raise DataError("lists elements that it does not hold")
    return {tag: _cut(data, *elements[tag, ref]) for tag, ref in keys}


def _cut(data: bytes, offset: int, length: int) -> bytes:
    if offset + length > len(data):
        raise DataError(f"is truncated: it points at byte {offset + length} and has {len(data)}")
    return data[offset : offset + length]


def _unpack(layout: str, element: bytes) -> tuple:
    if len(element) != struct.calcsize(layout):
        raise DataError(f"has an element of {len(element)} bytes where {struct.calcsize(layout)} are due")
    return struct.unpack(layout, element)


def _decode(packed: bytes) -> bytes:
    """Runs: a byte with the top bit set repeats the next byte (its low 7 bits) times, without it copies that many."""
    pieces, position = [], 0
    while position < len(packed):
        head, position = packed[position], position + 1
        count = head & 0x7F
        if head & 0x80:
            pieces.append(packed[position : position + 1] * count)
            position += 1
        else:
            pieces.append(packed[position : position + count])
            position += count
    return b"".join(pieces)  # a stream cut short gives too few pixels, which the caller sees


def _encode(array: np.ndarray) -> bytes:
    rows = [row.tobytes() for row in array]  # the C library begins each row anew
    packed = {row: _encode_row(row) for row in set(rows)}  # a mask repeats a few distinct rows
    return b"".join(packed[row] for row in rows)


def _encode_row(row: bytes) -> bytes:
    values = np.frombuffer(row, np.uint8)
    edges = np.r_[0, np.flatnonzero(np.diff(values)) + 1, len(values)]
    packed, literal = bytearray(), bytearray()

    def flush():
        for start in range(0, len(literal), 120):  # 120 is the C library's longest piece
            piece = literal[start : start + 120]
            packed.extend(bytes([len(piece)]) + piece)
        literal.clear()

    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if end - start < 3:  # a run of two costs no less than two copied bytes
            literal += row[start:end]
            continue
        flush()
        for at in range(start, end, 120):
            packed += bytes([0x80 | min(120, end - at), row[start]])
    flush()
    return bytes(packed)
