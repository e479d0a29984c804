"""HDF4 rasters against files of the HDF4 C library.  pytest tests/test_hdf4.py

tests/data/*.hdf were written by that library, the .npy beside them hold what was given to it.
"""

import struct
from pathlib import Path

import numpy as np
import pytest

from data import DataError, hdf4
from data.hdf4 import read_raster, write_raster

DATA = Path(__file__).parent / "data"
GENUINE = {path.stem: np.load(DATA / f"{path.stem.split('_')[0]}.npy") for path in sorted(DATA.glob("*.hdf"))}


def descriptors(data: bytes) -> dict[int, int]:
    """{tag: position of its descriptor} of a file with one block."""
    count = struct.unpack_from(">H", data, 4)[0]
    places = [10 + 12 * i for i in range(count)]
    return {struct.unpack_from(">H", data, place)[0]: place for place in reversed(places)}


def element(data: bytes, tag: int) -> tuple[int, int]:
    return struct.unpack_from(">II", data, descriptors(data)[tag] + 4)


def rewritten(data: bytes, keep, following=None) -> bytes:
    """The file with only the descriptors of the tags `keep`, two a block, in linked blocks at its end."""
    places = descriptors(data)
    kept = [data[places[tag] : places[tag] + 12] for tag in keep]
    pairs = [b"".join(kept[i : i + 2]) for i in range(0, len(kept), 2)]
    out = bytearray(data)
    out[4:10] = struct.pack(">HI", 0, len(data))
    for i, pair in enumerate(pairs):
        last = i == len(pairs) - 1
        out += struct.pack(">HI", len(pair) // 12, (following or 0) if last else len(out) + 6 + len(pair)) + pair
    return bytes(out)


@pytest.mark.parametrize("name", GENUINE)
def test_reads_what_the_c_library_wrote(name):
    raster = read_raster(DATA / f"{name}.hdf")
    assert raster.dtype == np.uint8 and raster.flags.writeable
    np.testing.assert_array_equal(raster, GENUINE[name])


def test_all_genuine_files_are_there_and_one_is_not_square():
    assert len(GENUINE) == 4
    assert read_raster(DATA / "rect64x200_rle.hdf").shape == (64, 200)


@pytest.mark.parametrize("compression", ["rle", None])
@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (200, 64), (256, 256)])
def test_reads_back_what_it_wrote(tmp_path, shape, compression):
    rng = np.random.default_rng(1)
    edges = np.repeat(rng.integers(0, 3, shape[1] // 7 + 1), 7)[: shape[1]].astype(np.uint8)
    pictures = {
        "noise": rng.integers(0, 256, shape, dtype=np.uint8),
        "flat": np.full(shape, 127, np.uint8),
        "bands": np.tile(edges, (shape[0], 1)),
        "runs of one to four": np.repeat(rng.integers(0, 256, shape), 4, axis=1)[:, 1 : shape[1] + 1].astype(np.uint8),
    }
    for array in pictures.values():
        write_raster(tmp_path / "a.hdf", array, compression)
        np.testing.assert_array_equal(read_raster(tmp_path / "a.hdf"), array)
    assert [path.name for path in tmp_path.iterdir()] == ["a.hdf"]  # no temporary file stays


@pytest.mark.parametrize("name", ["mask3_rle", "mask3_none", "rect64x200_rle"])
def test_writes_pixels_and_dimensions_byte_for_byte_as_the_c_library(tmp_path, name):
    write_raster(tmp_path / "a.hdf", GENUINE[name], None if name.endswith("none") else "rle")
    ours, theirs = (tmp_path / "a.hdf").read_bytes(), (DATA / f"{name}.hdf").read_bytes()
    pixels = (302, 202) if name.endswith("none") else (303, 203)
    assert set(descriptors(ours)) == {106, 200, 300, 306, *pixels}
    for tag in descriptors(ours):
        (at, length), (there, size) = element(ours, tag), element(theirs, tag)
        assert ours[at : at + length] == theirs[there : there + size], f"element {tag}"


@pytest.mark.parametrize("tags", [(306, 300, 106, 303), (203, 200), (300, 303, 201)])
def test_follows_linked_blocks_with_new_or_old_tags(tmp_path, tags):
    data = (DATA / "mask3_rle_pal.hdf").read_bytes()
    (tmp_path / "a.hdf").write_bytes(rewritten(data, tags))
    np.testing.assert_array_equal(read_raster(tmp_path / "a.hdf"), GENUINE["mask3_rle_pal"])


def patched(data: bytes, tag: int, offset: int, layout: str, value) -> bytes:
    """The file with another value at `offset` of the element `tag`."""
    out = bytearray(data)
    struct.pack_into(layout, out, element(data, tag)[0] + offset, value)
    return bytes(out)


FAULTS = {
    "not HDF4: a PNG": (lambda d: b"\x89PNG\r\n\x1a\n" + d, "is not an HDF4 file"),
    "not HDF4: HDF5": (lambda d: b"\x89HDF\r\n\x1a\n" + d, "is not an HDF4 file"),
    "empty": (lambda d: b"", "is not an HDF4 file"),
    "cut in the descriptors": (lambda d: d[:60], "is truncated"),
    "cut after the magic number": (lambda d: d[:4], "is truncated"),
    "cut in the pixels": (lambda d: d[:1000], "is truncated"),
    "cut in the last element": (lambda d: d[:-2], "is truncated"),  # the library ends a file with a spare byte
    "linked in a circle": (lambda d: rewritten(d, (303, 300), following=4), "in a circle"),
    "without raster": (lambda d: rewritten(d, (30, 106)), "holds no 8-bit raster"),
    "without dimensions": (lambda d: rewritten(d, (303, 203)), "gives no dimensions"),
    "group of absent elements": (lambda d: rewritten(d, (306, 300)), "lists elements that it does not hold"),
    "wider than its pixels": (lambda d: patched(d, 300, 0, ">i", 257), "65536 pixels instead of 257x256"),
    "of negative height": (lambda d: patched(d, 300, 4, ">i", -256), "claims 256x-256"),
    "of three components": (lambda d: patched(d, 300, 12, ">h", 3), "of 3 components"),
    "called uncompressed": (lambda d: patched(d, 300, 16, ">H", 0), "stored in another way"),
    "JPEG": (lambda d: patched(d, 300, 16, ">H", 13), "uses compression 13"),
    "a run too long": (lambda d: patched(d, 303, 0, ">B", 0xFF), "pixels instead of 256x256"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_raises_one_sentence_naming_it(tmp_path, fault):
    change, message = FAULTS[fault]
    path = tmp_path / "mask.hdf"
    path.write_bytes(change((DATA / "mask3_rle.hdf").read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        read_raster(path)
    assert str(caught.value).startswith(str(path)) and "replace it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_any_damage_is_read_or_refused_but_never_anything_else(tmp_path):
    data = (DATA / "rect64x200_rle.hdf").read_bytes()
    rng, path, refused = np.random.default_rng(0), tmp_path / "mask.hdf", 0
    for _ in range(300):
        broken = bytearray(data[: rng.integers(4, len(data) + 1)] if rng.random() < 0.2 else data)
        for place in rng.integers(0, min(300, len(broken)), 3):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            assert read_raster(path).dtype == np.uint8
        except DataError:
            refused += 1
    assert refused > 100


def test_a_missing_file_and_a_folder_raise_one_sentence(tmp_path):
    with pytest.raises(DataError, match="none.hdf cannot be read .No such file"):
        read_raster(tmp_path / "none.hdf")
    with pytest.raises(DataError, match="cannot be read .Is a directory"):
        read_raster(tmp_path)


@pytest.mark.parametrize("array", [np.zeros((2, 2)), np.zeros(4, np.uint8), np.zeros((0, 3), np.uint8)])
def test_refuses_to_write_what_is_no_8_bit_picture(tmp_path, array):
    with pytest.raises(DataError, match="needs uint8"):
        write_raster(tmp_path / "a.hdf", array)
    with pytest.raises(DataError, match="cannot be compressed by 'jpeg'"):
        write_raster(tmp_path / "a.hdf", np.zeros((2, 2), np.uint8), "jpeg")
    with pytest.raises(DataError, match="cannot be written"):
        write_raster(tmp_path / "no folder" / "a.hdf", np.zeros((2, 2), np.uint8))
    assert not list(tmp_path.iterdir())


def test_an_image_of_a_huge_size_is_refused_before_its_pixels_are_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "mask.hdf"
    write_raster(path, np.zeros((7, 9), np.uint8))
    huge = struct.pack(">ii", 60_000, 60_000)
    path.write_bytes(path.read_bytes().replace(struct.pack(">ii", 9, 7), huge))
    monkeypatch.setattr(hdf4, "_decode", None)
    with pytest.raises(DataError, match="claims 60000x60000 pixels"):
        read_raster(path)
    with pytest.raises(DataError, match="16,777,216 in all"):
        write_raster(path, np.zeros((1, 1), np.uint8).repeat(5000, 0).repeat(5000, 1))
