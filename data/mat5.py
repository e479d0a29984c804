"""Read plain values of MATLAB files (.mat, version 5 to 7) with the standard library alone.

    read_mat("NR_frame_1.mat", "params")        # [{"SNRdB": [40.0], "Doppler": [10.0]}]; None if it isn't there

Numeric arrays become lists of floats (real parts, column by column), structs lists of dictionaries, one for each
element, and cells lists. Text, objects and everything else become None. Only the wanted variable is unpacked. Source:
MathWorks, "MAT-File Format", level 5. A damaged file is refused and can do no more: compiled readers may crash.

To use it elsewhere, copy this file and replace DataError by an exception of your own.
"""

import math
import struct
import zlib
from pathlib import Path

from data import DataError

HEADER = 128  # bytes
MOST_BYTES = 1 << 26  # of a variable; parameters of a frame have a few hundred
MOST_FILE = 1 << 28  # waveforms may lie beside them
MOST_DEPTH = 16  # of structs and cells in one another
COMPRESSED, MATRIX = 15, 14  # types of elements
NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
CELL, STRUCT, DOUBLE, UINT64 = 1, 2, 6, 15  # classes of arrays; the numeric ones are from DOUBLE to UINT64


def read_mat(path, name: str) -> list | None:
    """The value of one variable; see the top of this file. None if the file has no such variable, or if it is text.

    Raises DataError for a file that cannot be read, is of another version, or contradicts itself.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_FILE:
            raise DataError(f"has more than {MOST_FILE:,} bytes")
        return _variable(path.read_bytes(), name)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except DataError as fault:
        raise DataError(f"{path} cannot be read as a MATLAB file: it {fault}; replace or remove it") from None


def _variable(data: bytes, name: str) -> list | None:
    """The value of a variable in a file's bytes. The text of its DataErrors continues "FILE ... it"."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or sorted(data[124:126]) != [0, 1]:  # the version is 0x0100, in either order of bytes
        raise DataError('is not of version 5 to 7 (save it with the option "-v7")')
    elements = _Elements(data[HEADER:], order)
    while elements.left:
        kind, content = elements.take(padded=False)
        if kind == COMPRESSED:
            wanted, kind, content = _unpacked(content, order, name)
            if not wanted:
                continue
        if kind == MATRIX:
            found, value = _matrix(content, order)
            if found == name:
                return value
    return None


def _unpacked(packed: bytes, order: str, name: str) -> tuple[bool, int, bytes]:
    """(whether it is the wanted one, type, content) of the element in a compressed one."""
    unpacker = zlib.decompressobj()
    try:
        start = unpacker.decompress(packed, 256)  # flags, dimensions and name are at the beginning
        if len(start) >= 8 and struct.unpack_from(order + "I", start)[0] == MATRIX:
            head = _Elements(start[8:], order)
            head.take(), head.take()
            if head.take()[1] != name.encode():
                return False, 0, b""
        data = start + unpacker.decompress(unpacker.unconsumed_tail, MOST_BYTES)
    except zlib.error as error:
        raise DataError(f"is damaged ({error})") from None
    if not unpacker.eof:  # also where zlib's checksum is missing
        raise DataError(f"is truncated, or unpacks to more than {MOST_BYTES:,} bytes")
    return True, *_Elements(data, order).take(padded=False)


class _Elements:
    """Reads the elements of a file, or of an array in it, one after the other."""

    def __init__(self, data: bytes, order: str):
        self.data, self.order, self.position = data, order, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, padded: bool = True) -> tuple[int, bytes]:
        """(type, content) of the next element; behind it, up to 7 bytes may be left out."""
        if self.left < 8:
            raise DataError("is truncated")
        kind, size = struct.unpack_from(self.order + "II", self.data, self.position)
        first = self.position + 8
        if kind >> 16:  # a small element: its size is in the upper half, its content follows at once
            kind, size, first = kind & 0xFFFF, kind >> 16, self.position + 4
            if size > 4:
                raise DataError("has a small element of more than 4 bytes")
            self.position += 8
        else:
            if size > self.left - 8:
                raise DataError("is truncated")
            self.position = min(first + size + (-size % 8 if padded else 0), len(self.data))
        return kind, self.data[first : first + size]

    def numbers(self) -> tuple:
        kind, content = self.take()
        if kind not in NUMBERS or len(content) % struct.calcsize(NUMBERS[kind]):
            raise DataError("has numbers of an unknown type")
        return struct.unpack(f"{self.order}{len(content) // struct.calcsize(NUMBERS[kind])}{NUMBERS[kind]}", content)

    def integers(self) -> tuple[int, ...]:
        values = self.numbers()
        if not all(isinstance(value, int) for value in values):
            raise DataError("has a size that is no integer")
        return values


def _matrix(data: bytes, order: str, depth: int = 0) -> tuple[str, list | None]:
    """Name and value of an array; an empty element, which MATLAB writes for an empty field, has none."""
    if not data:
        return "", None
    if depth > MOST_DEPTH:
        raise DataError(f"holds structs and cells more than {MOST_DEPTH} deep")
    elements = _Elements(data, order)
    flags, dimensions = elements.integers(), elements.integers()
    name = elements.take()[1].decode("latin-1")
    if len(flags) != 2 or len(dimensions) < 2 or min(dimensions) < 0:
        raise DataError("has an array without flags or dimensions")
    kind, count = flags[0] & 0xFF, math.prod(dimensions)
    if kind == STRUCT:
        return name, _struct(elements, count, depth)
    if kind == CELL:
        return name, [_member(elements, depth) for _ in range(count)]
    if not DOUBLE <= kind <= UINT64:
        return name, None
    values = elements.numbers()
    if len(values) != count:
        raise DataError(f"has {len(values)} numbers where its dimensions say {count}")
    return name, list(map(float, values))


def _member(elements: _Elements, depth: int) -> list | None:
    """A member of a cell or struct. There is one in the data for each that the dimensions promise, or it is refused."""
    kind, content = elements.take()
    if kind != MATRIX:
        raise DataError("has a cell or field that is no array")
    return _matrix(content, elements.order, depth + 1)[1]


def _struct(elements: _Elements, count: int, depth: int) -> list[dict]:
    lengths, names = elements.integers(), elements.take()[1]
    length = lengths[0] if len(lengths) == 1 else 0
    if length < 1 or len(names) % length:
        raise DataError("has a struct with damaged names of fields")
    fields = [names[i : i + length].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), length)]
    if not fields:
        return []
    return [{field: _member(elements, depth) for field in fields} for _ in range(count)]
