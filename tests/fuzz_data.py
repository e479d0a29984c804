"""Readers of data/ for tests/fuzz.py."""

import csv
import functools
import json
import struct
import tarfile
import zlib
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from data import DataError, download, modulations, synthetic, writing
from data.code_cache import open_cache
from data.from_sigmf import annotations_of
from data.hdf4 import read_raster, write_raster
from data.radioml import CELLS, create_file, fingerprint, from_arrays, open_frames
from data.recording_formats import open_recording
from data.spectrum_sensing import find_frames, read_frame
from data.unlabelled import find_pictures, read_pictures
from tests.fuzz import Reader, damaged_value, nasty

SHAPE = (24, 32)
LARGEST = 2.0**31  # of a sample, see data/numbers.py

# ---- HDF4 -----------------------------------------------------------------------------------------------------------


def labels() -> np.ndarray:
    """A small mask, uint8 SHAPE, with values of the later release."""
    return np.repeat(np.repeat(np.array([[0, 85, 170, 255]], np.uint8), 8, 1), 24, 0)


def make_hdf4(folder):
    write_raster(folder / "packed.hdf", labels())
    write_raster(folder / "plain.hdf", labels(), compression=None)


def read_hdf4(folder):
    return [read_raster(folder / name) for name in ("packed.hdf", "plain.hdf")]


def wrong_rasters(values, valid):
    for value in values:
        if value.dtype != np.uint8 or value.ndim != 2 or value.size > 1 << 24:
            return f"the raster is {value.dtype} {value.shape}"


# ---- pairs of picture and mask --------------------------------------------------------------------------------------


def make_pairs(folder):
    picture = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    for name in ("NR_frame_1", "LTE_frame_1"):
        Image.fromarray(picture).save(folder / f"{name}.png")
        write_raster(folder / f"{name}.hdf", labels())


def read_pairs(folder):
    frames = find_frames(folder)
    pictures = read_pictures(find_pictures(folder), progress=False).numpy()
    return [(frame.png, *read_frame(frame)) for frame in frames], pictures


def chunks_of(data: bytes) -> list[tuple[bytes, bytes, int]]:
    """(name, content, checksum as written) of each chunk of a PNG up to IEND, with what is there of it."""
    found, position = [], 8
    while position + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        content, end = data[position + 8 : position + 8 + size], position + 8 + size
        found.append((data[position + 4 : position + 8], content, int.from_bytes(data[end : end + 4])))
        position = end + 4
        if found[-1][0] == b"IEND":
            break
    return found


def wrong_pairs(value, valid):
    frames, pictures = value
    for (path, image, mask), other in zip(sorted(frames, key=lambda frame: frame[0].name), pictures, strict=True):
        if any(zlib.crc32(name + content) != told for name, content, told in chunks_of(path.read_bytes())):
            return "a chunk of the PNG differs from its checksum"
        if image.shape != (3, *mask.shape) or image.dtype != np.uint8 or not np.array_equal(image, other):
            return f"picture {image.shape} and mask {mask.shape} differ"
        if set(np.unique(mask).tolist()) - {0, 1, 2, 255}:
            return "the mask has foreign classes"


def other_chunks(folder, rng):
    """A PNG whose checksums are right and whose chunks are not."""
    path = rng.choice(sorted(folder.glob("*.png")))
    found = [(name, content) for name, content, _ in chunks_of(path.read_bytes())]
    kind = rng.choice(("header", "header", "size", "content", "chunk", "order", "lose"))
    if kind == "header" and found:
        content = bytearray(found[0][1])
        at = rng.choice((8, 8, 9, 9, 10, 11, 12, rng.randrange(13)))
        if at < len(content):
            content[at] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255, rng.randrange(256)))
        found[0] = (found[0][0], bytes(content))
    elif kind == "size" and found:
        sizes = struct.pack(">II", *(rng.choice((0, 1, 31, 13_300, 65_536, 2**31 - 1, 2**32 - 1)) for _ in "wh"))
        found[0] = (found[0][0], sizes + found[0][1][8:])
    elif kind == "content":
        number = rng.randrange(len(found))
        pixels = rng.randbytes(rng.choice((0, 1, 2_000))) if rng.random() < 0.8 else b"\0" * 50_000_000
        found[number] = (found[number][0], zlib.compress(pixels, 1) if rng.random() < 0.7 else pixels[:5000])
    elif kind == "chunk":
        name = rng.choice(
            (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"fdAT", b"pHYs")
        )
        content = rng.choice(
            (b"", rng.randbytes(rng.choice((1, 4, 26, 300))), b"x\0\0" + zlib.compress(b"\0" * 10_000_000))
        )
        found.insert(rng.randrange(len(found) + 1), (name, content))
    elif kind == "order":
        rng.shuffle(found)
    else:
        del found[rng.randrange(len(found))]
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in found:
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    path.write_bytes(data)


def other_picture(folder, rng):
    """Another mode, size or format below the same name."""
    path = rng.choice(sorted(folder.glob("*.png")))
    mode, form = (
        rng.choice(("L", "RGBA", "P", "1", "I;16", "CMYK", "RGB")),
        rng.choice(("PNG", "PNG", "GIF", "JPEG", "BMP", "TIFF")),
    )
    size = rng.choice((SHAPE[::-1], (1, 1), (3000, 2)))
    try:
        Image.new(mode, size).save(path, format=form)
    except (OSError, KeyError, ValueError):  # not each format has each mode
        path.write_bytes(b"GIF89a" + rng.randbytes(20))


def lost_file(folder, rng):
    rng.choice(sorted(folder.glob("*.*"))).unlink()


def other_mask(folder, rng):
    path = rng.choice(sorted(folder.glob("*.hdf")))
    shape = rng.choice(((1, 1), (1, 65535), (65535, 1), SHAPE, SHAPE[::-1], (3000, 3000)))
    write_raster(path, np.full(shape, rng.choice((0, 85, 127, 255, 3)), np.uint8))


# ---- frames.csv and .mat --------------------------------------------------------------------------------------------

NAMES = ("LTE_frame_1", "NR_frame_1", "NR_frame_2")


def write_masks(folder):
    """The smallest frames: a pixel each."""
    for name in NAMES:
        Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(folder / f"{name}.png")
        write_raster(folder / f"{name}.hdf", np.zeros((1, 1), np.uint8))


def make_table(folder):
    write_masks(folder)
    with open(folder / "frames.csv", "w", newline="") as file:
        rows = [[name, name.partition("_")[0], 0, 10.5 * number or "", "[]"] for number, name in enumerate(NAMES)]
        csv.writer(file).writerows([["frame", "family", "seed", "snr_db", "carriers"], *rows])


def read_snrs(folder):
    return [frame.snr_db for frame in find_frames(folder)]


def wrong_snrs(values, valid):
    if len(values) != len(NAMES) or not all(v is None or type(v) is float and abs(v) <= 1000 for v in values):
        return f"the SNRs are {values}"


def other_cell(folder, rng):
    """A cell of frames.csv that holds something else, or a row of another length."""
    path = folder / "frames.csv"
    rows = [line.split(",") for line in path.read_bytes().decode("utf-8", "replace").split("\r\n")]
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice((str(nasty(rng)), "1,2", '"', "nan", "-inf", "1e400", "٣", "1_0", " 7 "))
    path.write_bytes("\r\n".join(",".join(row) for row in rows).encode("utf-8", "replace"))


def make_mats(folder):
    from scipy.io import savemat

    write_masks(folder)
    savemat(folder / "NR_frame_1.mat", {"rx": np.zeros(4), "params": {"Doppler": 10.0, "SNRdB": 40.0}})
    two = np.array([{"SNRdB": 20.0}, {"SNRdB": 50.0, "Kind": "LTE"}])
    savemat(folder / "NR_frame_2.mat", {"params": two}, do_compression=True)
    for path in folder.glob("*.mat"):  # the header says when it was written
        path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + path.read_bytes()[124:])


def other_mat(folder, rng):
    """Parameters of other types and values."""
    from scipy.io import savemat

    value = rng.choice((np.nan, np.inf, -np.inf, 1e308, "40", [], [1.0, np.nan], 3 + 4j, {}, np.float32(7), np.int8(-3),
                        np.zeros((3, 0)), True, np.array(["a", 3.0], object), 1e30))  # fmt: skip
    params = rng.choice(({"SNRdB": value}, value, [{"SNRdB": value}] * 2, {"SNRdB": {"SNRdB": value}}, {"x": value}))
    values = {"params": np.array(params, object) if isinstance(params, list) else params}
    try:
        savemat(rng.choice(sorted(folder.glob("*.mat"))), values, do_compression=rng.random() < 0.5)
    except (TypeError, ValueError):  # what scipy doesn't write
        savemat(folder / "NR_frame_1.mat", {"params": {"SNRdB": "nothing"}})


@functools.cache
def bomb() -> bytes:
    """Eighty megabytes of a variable, packed."""
    packed = zlib.compressobj(1)
    data = packed.compress(struct.pack("<II", 14, 80 << 20))
    return data + b"".join(packed.compress(b"\0" * (1 << 22)) for _ in range(20)) + packed.flush()


def bomb_mat(folder, rng):
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\x01IM"
    (folder / "NR_frame_1.mat").write_bytes(head + struct.pack("<II", 15, len(bomb())) + bomb())


# ---- RadioML and its codes ------------------------------------------------------------------------------------------


def make_radioml(folder):
    with create_file(folder / "set.hdf5", 1) as file:
        file["X"][:] = np.random.default_rng(0).standard_normal((624, 1024, 2), np.float32)


def read_radioml(folder):
    frames = open_frames(folder / "set.hdf5")
    fingerprint(frames)
    x = [frames.samples(np.arange(start, start + 104)).numpy() for start in range(0, len(frames), 104)]
    return np.concatenate(x), frames.labels, frames.snrs


def wrong_radioml(value, valid):
    x, *order = value
    if x.shape != (624, 2, 1024) or x.dtype != np.float32:
        return f"the samples are {x.dtype} {x.shape}"
    if not np.isfinite(x).all() or np.abs(x).max() > LARGEST:
        return "a sample is no number"
    if not all(np.array_equal(one, other) for one, other in zip(order, valid[1:], strict=True)):
        return "labels or SNRs are in another order"


def change_hdf5(folder, rng):
    """Other values, shapes, types and links below the same names, written by HDF5 itself."""
    name = rng.choice("XYZ")
    with h5py.File(folder / "set.hdf5", "a") as file:
        kind = rng.choice(("value", "value", "dataset", "packed", "group", "link", "attribute"))
        data = file[name]
        if kind == "value":
            at = tuple(rng.randrange(size) for size in data.shape)
            data[at] = (
                rng.choice((np.nan, np.inf, -np.inf, 1e38, -3e9)) if name == "X" else rng.choice((-1, 2, 1 << 40))
            )
            return
        if kind == "attribute":
            file.attrs["classes"] = rng.choice((["a"], "text", np.zeros(24), [b"\xff"] * 24))
            return
        shape, dtype = data.shape, data.dtype
        del file[name]
        if kind == "dataset":
            shape = rng.choice((shape[:-1], (0, *shape[1:]), (), (1 << 40, *shape[1:]), shape))
            dtype = rng.choice((np.float64, np.int8, h5py.string_dtype(), np.dtype([("a", "i4")]), ">f4", np.uint8))
            file.create_dataset(name, shape, dtype, chunks=True if 1 << 40 in shape else None)
        elif kind == "packed":
            chunks = (rng.choice((1, 624)), *shape[1:])
            file.create_dataset(name, shape, dtype, chunks=chunks, compression=rng.choice(("gzip", "lzf", None)))
        elif kind == "group":
            file.create_group(name)
        else:
            target = rng.choice((f"/{name}", "/Q", "/"))
            file[name] = h5py.ExternalLink("none.hdf5", "X") if rng.random() < 0.5 else h5py.SoftLink(target)


FRAMES, LENGTH = 9000, 8  # three blocks of the cache


def source_of_codes(folder):
    x = np.random.default_rng(1).standard_normal((FRAMES, LENGTH, 2), np.float32)
    return from_arrays(x, np.zeros(FRAMES, int), path=folder / "set")


def make_codes(folder):
    open_cache(source_of_codes(folder), 8)


def read_codes(folder):
    frames = open_cache(source_of_codes(folder), 8)
    some = frames.samples(np.random.default_rng(2).integers(0, FRAMES, 256)).numpy()
    return frames.samples(np.arange(FRAMES)).numpy(), some


def wrong_codes(values, valid):
    if not all(np.array_equal(one, other) for one, other in zip(values, valid, strict=True)):
        return "codes differ from those of the source"


def other_notes(folder, rng):
    path = folder / "set.codes8.json"
    path.write_text(json.dumps(damaged_value(json.loads(path.read_bytes()), rng)))


# ---- recordings -----------------------------------------------------------------------------------------------------

RATE, COUNT = 1_920_000, 3000


def some_samples() -> np.ndarray:
    return np.random.default_rng(0).integers(-3000, 3000, (COUNT, 2)).astype("<i2")


def sigmf_meta() -> dict:
    edges = {"core:freq_lower_edge": -5e5, "core:freq_upper_edge": 5e5}
    return {
        "global": {"core:datatype": "ci16_le", "core:sample_rate": RATE, "core:version": "1.0.0"},
        "captures": [{"core:sample_start": 0, "core:frequency": 8e8}, {"core:sample_start": 2000}],
        "annotations": [{"core:sample_start": 10, "core:sample_count": 99, "core:label": "LTE"} | edges],
    }


def make_sigmf(folder):
    (folder / "a.sigmf-data").write_bytes(some_samples().tobytes())
    (folder / "a.sigmf-meta").write_text(json.dumps(sigmf_meta()))


def make_sigmf_archive(folder):
    make_sigmf(folder)
    with tarfile.open(folder / "b.sigmf", "w", format=tarfile.USTAR_FORMAT) as archive:
        for end in ("meta", "data"):
            member = tarfile.TarInfo(f"a/a.sigmf-{end}")
            member.size = (folder / f"a.sigmf-{end}").stat().st_size
            with open(folder / f"a.sigmf-{end}", "rb") as file:
                archive.addfile(member, file)
            (folder / f"a.sigmf-{end}").unlink()


def make_wav(folder):
    data = some_samples().tobytes()
    form = struct.pack("<HHIIHH", 1, 2, RATE, RATE * 4, 4, 16)
    auxi = b"\0" * 32 + struct.pack("<I", 800_000_000) + b"\0" * 128
    body = b"WAVE" + b"".join(
        name + struct.pack("<I", len(part)) + part for name, part in ((b"fmt ", form), (b"auxi", auxi), (b"data", data))
    )
    (folder / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def read_recording(name):
    def read(folder: Path):
        recording = open_recording(folder / name)
        marks = annotations_of(recording)
        frames = [(frame.samples, frame.new_count) for frame in recording.frames()]
        return recording, marks, frames

    return read


def wrong_recording(value, valid):
    recording, marks, frames = value
    if not 1e6 <= recording.sample_rate <= 1e9:
        return f"the sample rate is {recording.sample_rate}"
    if sum(count for _, count in frames) != sum(capture.count for capture in recording.captures):
        return "frames don't hold each sample once"
    if not all(np.isfinite(samples.view(np.float32)).all() for samples, _ in frames):
        return "a sample is no number"
    if any(np.isnan(low) or np.isnan(high) or not low <= high for _, _, low, high, _ in marks):
        return "an annotation has no edges in order"


def other_meta(folder, rng):
    (folder / "a.sigmf-meta").write_text(json.dumps(damaged_value(sigmf_meta(), rng)))


def float_samples(folder, rng):
    """Samples as float32, with values that are no numbers."""
    x = some_samples().astype("<f4")
    x[rng.randrange(COUNT), rng.randrange(2)] = rng.choice((np.nan, np.inf, -np.inf, 1e38, 1e-42, 3e9))
    (folder / "a.sigmf-data").write_bytes(x.tobytes())
    meta = sigmf_meta()
    meta["global"]["core:datatype"] = "cf32_le"
    (folder / "a.sigmf-meta").write_text(json.dumps(meta))


# ---- what generators and the downloader note ------------------------------------------------------------------------

URL, CELL_LINES = "http://127.0.0.1/a", 40


def make_notes(folder):
    rows = [[name, name.partition("_")[0], 0, 10.5, '[{"snr_db": 10.5}]'] for name in NAMES]
    synthetic._write_rows(folder / "frames.csv", rows)
    (folder / "journal").write_text("\n".join(['{"seed": 0}', *map(str, range(CELL_LINES))]) + "\n")
    (folder / "a.json").write_text(json.dumps({"url": URL, "length": 7, "version": '"one"'}))
    writing.begin(folder, ["python", "-m", "data.synthetic", writing.FOLDER, "--nr", "3"], {"NR": 3})


def read_notes(folder):
    rows = synthetic._read_rows(folder / "frames.csv")
    settings, cells = modulations._read_journal(folder / "journal")
    try:
        writing.refuse_unfinished(folder / writing.MARKER)
    except DataError as told:
        return rows, settings, cells, download._known(folder / "a.json", URL), str(told)


def wrong_notes(value, valid):
    rows, settings, cells, known, told = value
    if any(len(row) != 5 or not abs(float(row[3] or 0)) <= 1000 or row[0] != name for name, row in rows.items()):
        return f"a row is {rows}"
    if not (settings is None or isinstance(settings, dict)) or not cells <= set(range(CELLS)):
        return f"the journal is {settings}, {cells}"
    if known and not (known["url"] == URL and isinstance(known["length"], int | None)):
        return f"the download's notes are {known}"
    if "interrupted" not in told:
        return f"the unfinished set says {told}"


def other_json(folder, rng):
    path = folder / rng.choice(("a.json", writing.MARKER))
    path.write_text(json.dumps(damaged_value(json.loads(path.read_bytes()), rng)))


def other_journal(folder, rng):
    path = folder / "journal"
    lines = path.read_text().split("\n")
    lines[rng.choice((0, 0, rng.randrange(len(lines))))] = str(nasty(rng))
    path.write_text("\n".join(lines))


OURS = (DataError,)
NO_PIXELS = "nothing tells whether pixels are right"
NUMBERS = "each sample is counted once, finite, and at most 2^31; nothing tells whether samples are right"
READERS = (
    Reader("HDF4", make_hdf4, read_hdf4, OURS, f"as many pixels as the header says; {NO_PIXELS}", wrong_rasters),
    Reader(
        "PNG pairs",
        make_pairs,
        read_pairs,
        OURS,
        f"the checksum of each PNG chunk, picture and mask of one size, known classes; of masks {NO_PIXELS}",
        wrong_pairs,
        (other_chunks, other_chunks, other_picture, other_mask, lost_file),
    ),
    Reader(
        "frames.csv",
        make_table,
        read_snrs,
        OURS,
        "an SNR is None or finite, within 1000 dB; nothing tells whether its digits are right",
        wrong_snrs,
        (other_cell,),
        "frames.csv",
    ),
    Reader(
        "mat",
        make_mats,
        read_snrs,
        OURS,
        "an SNR is None or finite, within 1000 dB; compressed elements have zlib's checksum, others none",
        wrong_snrs,
        (other_mat, other_mat, bomb_mat),
        "*.mat",
    ),
    Reader(
        "RadioML HDF5",
        make_radioml,
        read_radioml,
        OURS,
        "shapes, the order of labels and SNRs, finite samples of at most 2^31; nothing tells whether they are right",
        wrong_radioml,
        (change_hdf5,),
    ),
    Reader(
        "codes cache",
        make_codes,
        read_codes,
        OURS,
        "every code equals that of its source, by a checksum for each block",
        wrong_codes,
        (other_notes,),
    ),
    Reader(
        "SigMF", make_sigmf, read_recording("a.sigmf-meta"), OURS, NUMBERS, wrong_recording, (other_meta, float_samples)
    ),
    Reader("SigMF archive", make_sigmf_archive, read_recording("b.sigmf"), OURS, NUMBERS, wrong_recording),
    Reader("WAV", make_wav, read_recording("a.wav"), OURS, NUMBERS, wrong_recording),
    Reader(
        "notes",
        make_notes,
        read_notes,
        OURS,
        "damaged rows, cells and notes of generators and downloads count as none; nothing tells another digit",
        wrong_notes,
        (other_cell, other_json, other_journal),
    ),
)
