"""I/Q in WAV files, as SDR programs write them: header, centre frequency, where the samples lie. Standard library only.

header = wav_header(Path("capture.wav"))                                 # None if it is no WAV
"""

import re
import struct
from pathlib import Path

from data import DataError

WAV_24 = "ci24_le"  # of WAV; SigMF has no such datatype
NAMED_HZ = re.compile(r"(\d+)([kMG]?)Hz")  # in names by SDR#, HDSDR, SDRuno
MULTIPLES = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}


def wav_header(path: Path) -> tuple[dict, dict] | None:
    """Header of a WAV of I and Q, as SigMF's "global" and one of its "captures"; None if it is none.

    DataError: a WAV that has no I and Q.
    """
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        with path.open("rb") as file:
            start = file.read(12)
            if start[:4] not in (b"RIFF", b"RF64") or start[8:] != b"WAVE":
                return None
            chunks = dict(_wav_chunks(file))
    except OSError:
        return None  # told where bare samples are looked for
    (form, _), (data, first) = chunks.get(b"fmt ", (b"", 0)), chunks.get(b"data", (0, 0))
    if len(form) < 16 or not first:
        raise DataError(f"{path}: is a WAV without a header or without samples; record again")
    code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
    if code == 0xFFFE and len(form) >= 26:  # extensible: the format's own code comes later
        (code,) = struct.unpack_from("<H", form, 24)
    if channels != 2:
        raise DataError(f"{path}: is a WAV of {channels} channel(s); I/Q has two, I on the left and Q on the right")
    kinds = {(1, 8): "cu8", (1, 16): "ci16_le", (1, 24): WAV_24, (1, 32): "ci32_le", (3, 32): "cf32_le"}
    if (code, bits) not in kinds:
        raise DataError(f"{path}: is a WAV of {bits} bits in format {code}; write it as 16-bit PCM or 32-bit float")
    in_file = path.stat().st_size - first
    if b"ds64" in chunks and len(chunks[b"ds64"][0]) >= 16:  # RF64 has the size of its samples here
        (data,) = struct.unpack_from("<Q", chunks[b"ds64"][0], 8)
    (whole,) = struct.unpack_from("<I", start, 4)
    open_ended = data == 0xFFFFFFFF or (data == 0 and whole <= first)  # the program that wrote it was killed
    size = in_file if open_ended else min(data, in_file)
    named = NAMED_HZ.search(path.stem)
    center = _auxi_center(chunks[b"auxi"][0]) if b"auxi" in chunks else None
    if center is None and named:
        center = int(named[1]) * MULTIPLES[named[2]]
    general = {"core:datatype": kinds[code, bits], "core:sample_rate": rate}
    general |= {"core:trailing_bytes": in_file - size} if in_file > size else {}
    capture = {"core:sample_start": 0, "core:header_bytes": first}
    capture |= {} if center is None else {"core:frequency": center}
    return general, capture


def _wav_chunks(file):
    """(name, (content, where it begins)) of each chunk; of the samples (size, where they begin)."""
    while len(head := file.read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        first = file.tell()
        if name == b"data":
            yield name, (size, first)
        elif name in (b"fmt ", b"auxi", b"ds64"):
            yield name, (file.read(min(size, 1 << 20)), first)
        file.seek(first + size + size % 2)


def _auxi_center(auxi):
    """Centre in Hz of an auxi chunk; None if it has none.

    HDSDR's 164 bytes, SpectraVue's 68 and SDR#'s: two times of 16 bytes, then the centre as uint32. SDR Console: XML.
    """
    text = auxi.replace(b"\0", b"")
    if text[:1] == b"<" or text[2:3] == b"<":  # in UTF-16 it may begin with a BOM
        match = re.search(rb'RadioCenterFreq="(\d+)"', text)
        return float(match[1]) if match else None
    center = struct.unpack_from("<I", auxi, 32)[0] if len(auxi) >= 36 else 0
    return float(center) if center else None
