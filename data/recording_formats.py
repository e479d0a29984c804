"""What files, names and headers say of a recording: where its samples lie, their datatype, rate and centre frequency.

    recording = open_recording("capture.bin", datatype="ci8", sample_rate=19.2e6, center_frequency=1815.3e6)
    for frame in recording.frames():                                  # data/recording.py reads the samples

Known are SigMF (a NAME.sigmf-meta beside its samples, or an archive NAME.sigmf; https://sigmf.org), WAV with I and Q as
its two channels, and bare I/Q samples. Of bare samples the datatype may follow from the ending, and gqrx's names also
tell rate and frequency. This file, data/sigmf.py and data/wav.py need the standard library only: a mistyped name is
refused before numpy and torch, whose import takes seconds, are needed.
"""

import math
import re
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from data import DataError
from data.sigmf import checked_meta, number, read_meta
from data.wav import WAV_24, wav_header

FRAME_SECONDS = 0.04
RATES = (1e6, 1e9)  # Hz; no carrier fits in less, and a frame of more takes several GB

# Names of datatypes, as endings and as UHD, GNU Radio, SoapySDR and SDR programs write them: SigMF's name
DATATYPES = {"cs8": "ci8", "sc8": "ci8", "s8": "ci8", "u8": "cu8", "uc8": "cu8"}
DATATYPES |= {"ci16": "ci16_le", "cs16": "ci16_le", "sc16": "ci16_le", "cu16": "cu16_le"}
DATATYPES |= {"ci32": "ci32_le", "cs32": "ci32_le", "cf32": "cf32_le", "fc32": "cf32_le", "cfile": "cf32_le"}
DATATYPES |= {"cf64": "cf64_le", "fc64": "cf64_le"}
DATATYPES |= {name: name for name in ("ci8", "cu8", "ci16_le", "ci16_be", "cf32_le", "cf32_be")}
SIGMF_DATATYPE = re.compile(r"c(?:([iu])(8|16_le|16_be|32_le|32_be)|(f)(32_le|32_be|64_le|64_be))")
GQRX_NAME = re.compile(r"gqrx_\d{8}_\d{6}_(?P<center>\d+)_(?P<rate>\d+)_fc")
FOREIGN = (  # how other files begin; what they are; what to do
    (b"\x1f\x8b\x08", "is compressed with gzip", "unpack it with gunzip and name what comes out"),
    (b"BZh", "is compressed with bzip2", "unpack it with bunzip2 and name what comes out"),
    (b"\xfd7zXZ\0", "is compressed with xz", "unpack it with unxz and name what comes out"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "unpack it with unzstd and name what comes out"),
    (b"PK\x03\x04", "is a zip archive", "unpack it and name what comes out"),
    (b"\x93NUMPY", "is a numpy array", 'write its samples with np.load(NAME).astype("complex64").tofile("NAME.cf32")'),
    (b"\x89HDF\r\n", "is an HDF5 file", "write its samples as complex float32 to a file NAME.cf32"),
    (b"MATLAB 5.0", "is a MATLAB file", "write its samples as complex float32 to a file NAME.cf32"),
    (b"fLaC", "is compressed with FLAC", "unpack it with flac -d and name the WAV"),
    (b"\xff\xd8\xff", "is a JPEG, whose compression changes the colours", "name a .png or a recording"),
    (b"\x89PNG\r\n", "is a picture", "give it the ending .png"),
)


@dataclass(frozen=True)
class Capture:
    """A stretch of a recording at one centre frequency."""

    start: int  # number of the first sample in the file
    count: int  # samples
    byte: int  # where they begin in the file
    center_hz: float | None


@dataclass(frozen=True)
class Recording:
    """A recording on disk; `open_recording` makes it."""

    path: Path  # the file with the samples
    datatype: str
    sample_rate: float  # Hz
    captures: tuple[Capture, ...]
    channel: int = 0
    channels: int = 1
    offset: int = 0  # core:offset, the number of the first sample
    meta_path: Path | None = None
    meta: dict = field(default_factory=dict)  # what the metadata say, or a WAV header in SigMF's words
    notes: tuple[str, ...] = ()  # what a reader of the results should know
    contradictions: tuple[str, ...] = ()  # options that say other than the metadata

    def __len__(self) -> int:
        """Number of frames."""
        return sum(self.frame_count(capture) for capture in self.captures)

    def frame_count(self, capture: Capture) -> int:
        return max(1, math.ceil((capture.count - 0.5) / (self.sample_rate * FRAME_SECONDS)))

    def frames(self, first: int = 0, stop: int | None = None) -> Iterator:
        """Frames `first` to `stop` - 1 in steps of 40 ms, as data.recording.Frame; by default all of them.

        Raises DataError when the file can't be read to its end.
        """
        from data.recording import frames_of  # numpy and torch, which opening doesn't need

        return frames_of(self, first, len(self) if stop is None else stop)


@dataclass(frozen=True)
class _Found:
    """What a file says of itself; None and {} for what it does not say."""

    path: Path  # with the samples
    meta: dict = field(default_factory=lambda: {"global": {}, "captures": [], "annotations": []})
    meta_path: Path | None = None
    first: int = 0  # byte at which the samples' file begins, in an archive
    size: int | None = None  # bytes from there on; None: to the end
    notes: tuple[str, ...] = ()

    @property
    def named(self) -> Path:
        """The file to correct where something is wrong."""
        return self.meta_path or self.path


def open_recording(
    path: str | Path,
    datatype: str | None = None,
    sample_rate: float | None = None,
    center_frequency: float | None = None,
    channel: int = 0,
) -> Recording:
    """Look at a recording without reading its samples.

    Args:
        path: NAME.sigmf-meta, NAME.sigmf-data, NAME of such a pair, an archive NAME.sigmf, a WAV, or bare I/Q samples.
        datatype: of bare samples, in SigMF's names (ci8, cu8, ci16_le, cf32_le) or others of DATATYPES.
        sample_rate: Hz; for bare samples, and for metadata that lack it or have it wrong.
        center_frequency: Hz, likewise; left out, frequencies count from the centre of the capture.
        channel: which one, from 0, of a recording with several.

    Raises:
        DataError: missing, empty, unreadable or contradictory files, metadata without sample rate, unknown datatype.
    """
    path = Path(path)
    found = _sigmf(path) or _archive(path) or _wav(path) or _bare(path)
    general, captures = found.meta["global"], found.meta["captures"]
    told_rate = number(found.named, general, "core:sample_rate")
    rate = told_rate if sample_rate is None else sample_rate
    datatype = datatype or general.get("core:datatype")
    missing = [(datatype, "datatype", "--datatype (ci8, cu8, ci16_le or cf32_le)"),
               (rate, "sample rate", "--sample-rate HZ")]  # fmt: skip
    words, flags = ([row[i] for row in missing if row[0] is None] for i in (1, 2))
    if words:
        raise DataError(f"{found.named}: does not say its {' and '.join(words)}; add {' and '.join(flags)}")
    datatype = known_datatype(datatype, found.named)
    if not RATES[0] <= rate <= RATES[1]:
        raise DataError(f"{found.named}: a sample rate of {rate:g} Hz can't be used, 1 MHz to 1 GHz can")
    channels = number(found.named, general, "core:num_channels", 1, whole=True)
    if channels < 1 or not 0 <= channel < channels:
        raise DataError(f"{found.named}: has {channels} channel(s), so there is no --channel {channel}")
    told_centers = {number(found.named, entry, "core:frequency") for entry in captures} - {None}
    contradictions = []
    for name, asked, told in (
        ("--sample-rate", sample_rate, {told_rate} - {None}),
        ("--center-frequency", center_frequency, told_centers),
    ):
        if asked is not None and told - {asked}:
            contradictions.append(f"{name} is {asked:g} and the metadata say {', '.join(f'{hz:g}' for hz in told)}")
    recording = Recording(
        found.path,
        datatype,
        float(rate),
        (),
        channel,
        channels,
        meta_path=found.meta_path,
        meta=found.meta,
        notes=found.notes,
        contradictions=tuple(contradictions),
    )
    return _with_captures(recording, found, center_frequency)


def known_datatype(datatype: str, path: Path | str = "--datatype") -> str:
    """SigMF's name of a complex datatype. DataError: real samples, or an unknown name."""
    name = DATATYPES.get(str(datatype), str(datatype))
    if re.fullmatch(r"r[iuf]\d+(_[lb]e)?", name):
        raise DataError(f"{path}: datatype {name!r} has real samples; I/Q is needed, so record I and Q")
    if name != WAV_24 and not SIGMF_DATATYPE.fullmatch(name):
        raise DataError(f"{path}: datatype {name!r} is unknown; use ci8, cu8, ci16_le or cf32_le")
    return name


def sample_bytes(datatype: str) -> int:
    """Bytes of one complex sample of a known datatype."""
    return 2 * int(re.search(r"\d+", datatype)[0]) // 8


# ---- where the samples lie ------------------------------------------------------------------------------------------


def _with_captures(recording, found, center_frequency):
    """Find out where each capture lies in the file; captures that follow each other at one frequency become one."""
    general, named = recording.meta["global"], found.named
    try:
        size = recording.path.stat().st_size - found.first
    except OSError as error:
        raise DataError(f"{recording.path}: can't be read ({error.strerror}); check name and rights") from error
    size = size if found.size is None else min(found.size, size)
    offset = number(named, general, "core:offset", 0, whole=True)
    size -= number(named, general, "core:trailing_bytes", 0, whole=True)
    width = sample_bytes(recording.datatype) * recording.channels
    entries, header = [], 0
    for entry in recording.meta["captures"] or [{"core:sample_start": 0}]:
        header += number(named, entry, "core:header_bytes", 0, whole=True)
        start = number(named, entry, "core:sample_start", 0, whole=True) - offset
        center = center_frequency if center_frequency is not None else number(named, entry, "core:frequency")
        entries.append((start, header, center))
    total, rest = divmod(max(0, size - header), width)
    notes = [f"the last {rest} byte(s) are no whole sample and were left out"] if rest else []
    starts = [max(start, 0) for start, _, _ in entries]
    if starts[0] > 0:
        notes.append(f"the first {starts[0]} samples belong to no capture and were left out")
    if starts != sorted(starts):
        raise DataError(f"{named}: captures are not in order of core:sample_start; put them in order")
    captures = []
    for (_, skip, center), start, end in zip(entries, starts, [*starts[1:], total], strict=True):
        count = min(end, total) - start
        if count <= 0:
            continue
        new = Capture(start, count, found.first + skip + start * width, center)
        last = captures[-1] if captures else None
        if last and last.center_hz == center and last.byte + last.count * width == new.byte:
            captures[-1] = replace(last, count=last.count + count)
        else:
            captures.append(new)
    if not captures:
        raise DataError(f"{recording.path}: holds no sample; record again, or check the datatype and header sizes")
    return replace(recording, captures=tuple(captures), offset=offset, notes=(*recording.notes, *notes))


def _sigmf(path):
    """Metadata and samples of a SigMF recording, or of bare samples with metadata beside them; None for others."""
    if path.suffix == ".sigmf-collection":
        raise DataError(f"{path}: bundles recordings; name one .sigmf-meta")
    if path.suffix in (".sigmf-meta", ".sigmf-data"):
        meta_path = path.with_suffix(".sigmf-meta")
        if not meta_path.is_file():
            raise DataError(f"{meta_path}: no such file; name a .sigmf-meta with its .sigmf-data beside it")
    elif path.is_file():
        return _metadata_beside(path)
    else:
        meta_path = path.with_name(path.name + ".sigmf-meta")
        if not meta_path.is_file():
            return None
    meta = read_meta(meta_path)
    if meta["global"].get("core:metadata_only"):
        raise DataError(f"{meta_path}: has no samples (core:metadata_only); name a recording that has")
    name = meta["global"].get("core:dataset", meta_path.with_suffix(".sigmf-data").name)
    if not isinstance(name, str) or not name or Path(name).name != name or "\0" in name:
        raise DataError(f"{meta_path}: core:dataset must name a file beside it, not {name!r}")
    return _Found(meta_path.with_name(name), meta, meta_path)


def _metadata_beside(path):
    """NAME.bin.sigmf-meta or NAME.sigmf-meta beside NAME.bin, if it describes this file."""
    for meta_path in (path.with_name(path.name + ".sigmf-meta"), path.with_suffix(".sigmf-meta")):
        if meta_path.is_file() and not meta_path.samefile(path):
            meta = read_meta(meta_path)
            dataset = meta["global"].get("core:dataset")
            alone = dataset is None and not meta_path.with_suffix(".sigmf-data").exists()
            if dataset == path.name or alone:
                note = f"{meta_path.name}, which lies beside it, describes it"
                return _Found(path, meta, meta_path, notes=(note,))
    return None


def _archive(path):
    """A SigMF archive, a tar with one recording; its samples are read where they lie."""
    if path.suffix != ".sigmf" or not path.is_file():
        return None
    try:
        with tarfile.open(path, "r:") as archive:
            members = {member.name: member for member in archive.getmembers() if member.isfile()}
            metas = [name for name in members if name.endswith(".sigmf-meta")]
            if len(metas) != 1:
                raise DataError(f"{path}: holds {len(metas)} recordings, not one; unpack it and name one .sigmf-meta")
            meta = checked_meta(archive.extractfile(metas[0]).read(), path)
    except (OSError, tarfile.TarError) as error:
        raise DataError(f"{path}: is no readable SigMF archive ({error}); unpack it, name a .sigmf-meta") from error
    data = members.get(metas[0].removesuffix("meta") + "data")
    if data is None:
        raise DataError(f"{path}: has no samples beside {metas[0]}; pack it again")
    return _Found(path, meta, first=data.offset_data, size=data.size)


def _wav(path):
    """I and Q as the two channels of a WAV; None if it is none."""
    header = wav_header(path)
    return header and _Found(path, {"global": header[0], "captures": [header[1]], "annotations": []})


def _bare(path):
    """Bare I/Q samples: what ending and name say."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name one recording in it")
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is no file; to read from a pipe name - and redirect it: segment.py - < {path}")
    try:
        with path.open("rb") as file:
            start = file.read(16384)
    except FileNotFoundError as error:
        advice = "name a .sigmf-meta with its .sigmf-data beside it, or bare samples"
        raise DataError(f"{path}: no such file; {advice}") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror}); check name and rights") from error
    for magic, what, remedy in FOREIGN:
        if start.startswith(magic):
            raise DataError(f"{path}: {what}; {remedy}")
    general, capture, notes = {}, {"core:sample_start": 0}, []
    ending, gqrx = path.suffix.lower()[1:], GQRX_NAME.fullmatch(path.stem)
    if gqrx:
        general = {"core:datatype": "cf32_le", "core:sample_rate": float(gqrx["rate"])}
        capture["core:frequency"] = float(gqrx["center"])
    elif ending in DATATYPES:
        general = {"core:datatype": DATATYPES[ending]}
    elif ending == "dat" and len(start) >= 64:
        general = {"core:datatype": _guess_dat(start)}
        notes.append(f"taken for {general['core:datatype']}, by its values; --datatype tells otherwise")
    return _Found(path, {"global": general, "captures": [capture], "annotations": []}, notes=tuple(notes))


def _guess_dat(start):
    """Datatype of a .dat, which UHD's rx_samples_to_file writes as sc16 and others as floats.

    Bytes of integers read as floats are of any size between 1e-38 and 1e38, or no numbers.
    """
    values = struct.unpack(f"<{len(start) // 4}f", start[: len(start) // 4 * 4])
    usual = sum(value == 0 or 1e-9 < abs(value) < 1e6 for value in values)  # False for nan
    return "cf32_le" if usual > 0.95 * len(values) else "ci16_le"
