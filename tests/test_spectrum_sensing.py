"""The data set on disk: pairing, labels, split, weights, bad input, download.  pytest tests/test_spectrum_sensing.py"""

import csv
import shutil
import struct
import zlib
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DataError, download, png, spectrum_sensing, writing
from data.hdf4 import read_raster, write_raster
from data.spectrum_sensing import (
    IGNORE,
    OWN,
    Frame,
    SpectrumSensing,
    class_counts,
    class_weights,
    find_frames,
    main,
    read_frame,
    read_mask,
    read_tensors,
    split,
)
from data.unlabelled import find_pictures, with_release
from tests.conftest import packed, serving, write_frames


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small set to damage."""
    return write_frames(tmp_path / "set", {"NR": 2, "LTE": 2, "LTE_NR": 1, "FIELD": 1}, size=32)


def named(families: dict[str, int]) -> list[Frame]:
    """Frames without files, as many of each family as told."""
    return [
        Frame(f"{family}_frame_{n}", family, Path(f"{family}_frame_{n}.png"), Path(f"{family}_frame_{n}.hdf"))
        for family, count in families.items()
        for n in range(1, count + 1)
    ]


# reading


def test_finds_every_frame_in_lexicographic_order_of_its_path(frames_dir):
    frames = find_frames(frames_dir)
    paths = [frame.png.relative_to(frames_dir).as_posix() for frame in frames]
    assert paths == sorted(path.relative_to(frames_dir).as_posix() for path in frames_dir.rglob("*.png"))
    assert Counter(frame.family for frame in frames) == {"NR": 6, "LTE": 6, "LTE_NR": 4, "FIELD": 4}
    assert frames[0].name == "FIELD/FIELD_frame_1" and frames[4].name == "LTE_NR/LTE_NR_frame_1"
    assert all(frame.png.with_suffix("") == frame.hdf.with_suffix("") == frames_dir / frame.name for frame in frames)


def test_frame_10_comes_before_frame_2_and_after_frame_1(tmp_path):
    write_frames(tmp_path, {"NR": 10}, size=8)
    assert [frame.name.split("_")[-1] for frame in find_frames(tmp_path)][:3] == ["1", "10", "2"]


def test_names_do_not_depend_on_the_archives_outer_folder(folder):
    names = [(frame.name, frame.family) for frame in find_frames(folder)]
    inner = folder.parent / "outer" / "TrainingData"
    shutil.copytree(folder, inner)
    assert [(frame.name, frame.family) for frame in find_frames(inner.parent)] == names
    assert [(frame.name, frame.family) for frame in find_frames(inner)] == names


def test_frames_of_no_known_family_are_own_and_hidden_files_are_no_frames(folder):
    for place in ("captured/NR_frame_1", "LTE_NR_frame_1", "recording_7", "captured/x"):
        (folder / place).parent.mkdir(exist_ok=True)
        for suffix in (".png", ".hdf"):
            shutil.copy(folder / f"NR_frame_1{suffix}", folder / f"{place}{suffix}")
    (folder / ".download").mkdir()
    for hidden in (".download/NR_frame_9.png", "._NR_frame_1.png"):
        (folder / hidden).write_bytes(b"")
    own = [frame.name for frame in find_frames(folder) if frame.family == OWN]
    assert own == ["LTE_NR_frame_1", "captured/NR_frame_1", "captured/x", "recording_7"]


@pytest.mark.parametrize("fixture, size", [("frames_dir", 256), ("small_frames_dir", 128)])
def test_an_item_is_the_picture_and_its_classes(request, fixture, size):
    root = request.getfixturevalue(fixture)
    dataset = SpectrumSensing(root)
    assert len(dataset) == 20
    for i in (0, 3, 7, 12, 19):
        image, mask = dataset[i]
        assert image.dtype == torch.uint8 and image.shape == (3, size, size)
        assert mask.dtype == torch.int64 and mask.shape == (size, size)
        picture = np.asarray(Image.open(dataset.frames[i].png))
        np.testing.assert_array_equal(image.numpy(), np.moveaxis(picture, 2, 0))
        values = {0: 0, 1: 127, 2: 255}
        np.testing.assert_array_equal(np.vectorize(values.get)(mask.numpy()), read_raster(dataset.frames[i].hdf))


def test_width_and_height_are_not_swapped(tmp_path):
    mask = np.zeros((20, 50), np.uint8)
    mask[:, 30:] = 127
    mask[15:] = 0
    write_raster(tmp_path / "NR_frame_1.hdf", mask)
    Image.fromarray(np.stack([mask] * 3, axis=2)).save(tmp_path / "NR_frame_1.png")
    image, classes = SpectrumSensing(tmp_path)[0]
    assert image.shape == (3, 20, 50) and torch.equal(classes, (image[0] == 127).long())


def test_transforms_move_picture_and_mask_together(frames_dir):
    plain, part = SpectrumSensing(frames_dir), find_frames(frames_dir)[4:6]
    flipped = SpectrumSensing(frames_dir, part, transforms=lambda image, mask: (image.flip(-1), mask.flip(-1)))
    assert len(flipped) == 2
    assert torch.equal(flipped[1][0], plain[5][0].flip(-1)) and torch.equal(flipped[1][1], plain[5][1].flip(-1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_pictures_of_other_modes_become_rgb(folder, mode):
    Image.open(folder / "LTE_frame_1.png").convert(mode).save(folder / "LTE_frame_1.png")
    frame = next(frame for frame in find_frames(folder) if frame.name == "LTE_frame_1")
    image, _ = SpectrumSensing(folder, [frame])[0]
    expected = np.asarray(Image.open(frame.png).convert("RGB"))
    assert image.shape[0] == 3 and np.array_equal(image.permute(1, 2, 0), expected)


def test_the_whole_list_decoded_at_once_equals_the_data_set(frames_dir):
    frames = find_frames(frames_dir)[::-1]
    images, masks = read_tensors(frames, progress=False)
    dataset = SpectrumSensing(frames_dir, frames)
    assert images.dtype == masks.dtype == torch.uint8
    assert torch.equal(images, torch.stack([image for image, _ in dataset]))
    assert torch.equal(masks.long(), torch.stack([mask for _, mask in dataset]))


# labels


def relabel(root: Path, table: dict[int, int]) -> None:
    for path in root.rglob("*.hdf"):
        write_raster(path, np.vectorize(table.get)(read_raster(path)).astype(np.uint8))


def test_the_release_with_unknown_reads_as_the_other_one(folder):
    expected = [mask for _, mask in SpectrumSensing(folder)]
    relabel(folder, {0: 0, 127: 85, 255: 170})
    assert all(torch.equal(mask, truth) for (_, mask), truth in zip(SpectrumSensing(folder), expected, strict=True))


def test_255_is_unknown_only_in_the_release_that_has_it(tmp_path):
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    for release, nr, expected in (("three", 127, 2), ("four", 85, IGNORE)):
        root = write_frames(tmp_path / release, {"NR": 1, "LTE": 1}, size=8)
        relabel(root, {0: 0, 127: nr, 255: 255})
        write_raster(root / "LTE_frame_1.hdf", mask)  # 0 and 255 alone do not tell
        frames = find_frames(root)
        assert frames[0].family == "LTE" and set(np.unique(read_mask(frames[0]))) == {0, expected}
        assert set(np.unique(read_tensors(frames, progress=False)[1])) == {0, 1, expected}


def test_unknown_pixels_are_not_counted():
    masks = torch.tensor([[[0, 1, 2, 255], [0, 0, 255, 255]]], dtype=torch.uint8)
    assert class_counts(masks).tolist() == [3, 1, 1]
    assert class_weights(masks).tolist() == pytest.approx([1 / 3, 1, 1])


@pytest.mark.parametrize("values", [(0, 17), (0, 127, 85), (0, 127, 170, 255)])
def test_an_unknown_label_value_is_named_with_its_file(folder, values):
    mask = np.zeros((32, 32), np.uint8)
    mask[0, : len(values)] = values
    write_raster(folder / "LTE_frame_1.hdf", mask)
    with pytest.raises(DataError, match=r"LTE_frame_1.hdf has the label value (17|85|170), and this set knows 0, 127"):
        read_tensors(find_frames(folder), progress=False)


# bad input


def complaint(call, *arguments) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("lost, left", [("NR_frame_2.hdf", "NR_frame_2.png"), ("NR_frame_2.png", "NR_frame_2.hdf")])
def test_a_picture_without_mask_or_mask_without_picture_is_named(folder, lost, left):
    (folder / lost).unlink()
    assert f"{folder / left} has no {lost} beside it" in complaint(find_frames, folder)


def test_an_empty_or_missing_folder_is_named_with_both_remedies(tmp_path):
    for root in (tmp_path, tmp_path / "missing"):
        message = complaint(find_frames, root)
        assert message.startswith(f"{root} holds no frames") and f"python -m data.synthetic {root}" in message
        assert f"python -m data.spectrum_sensing download {root}" in message


def test_a_mask_of_another_size_is_named(folder):
    write_raster(folder / "LTE_frame_2.hdf", np.zeros((32, 16), np.uint8))
    frames = find_frames(folder)
    message = complaint(read_tensors, frames, False)
    assert f"{folder / 'LTE_frame_2.png'} is 32x32 and its mask LTE_frame_2.hdf 16x32" in message


def test_frames_of_different_sizes_are_named(folder):
    write_frames(folder, {"NR": 1}, size=16)
    message = complaint(read_tensors, find_frames(folder), False)
    assert f"{folder / 'NR_frame_1.png'} is 16x16" in message and "FIELD_frame_1.png 32x32" in message


@pytest.mark.parametrize("content", [b"", b"hello", "half", "flipped", "huge"])
def test_a_damaged_picture_is_named(folder, content):
    path = folder / "NR_frame_1.png"
    data = path.read_bytes()
    size = struct.pack(">II", 60_000, 60_000) + data[24:29]  # the header, with a right checksum
    changed = {
        "half": data[: len(data) // 2],
        "flipped": data[:60] + b"\0\0\0\0" + data[64:],
        "huge": data[:16] + size + struct.pack(">I", zlib.crc32(b"IHDR" + size)) + data[33:],
    }
    path.write_bytes(changed.get(content, content))
    assert f"{path} cannot be read as a picture" in complaint(read_tensors, find_frames(folder), False)


def test_a_damaged_mask_is_named(folder):
    path = folder / "LTE_frame_1.hdf"
    path.write_bytes(path.read_bytes()[:200])
    frames = find_frames(folder)
    assert f"{path} is truncated" in complaint(lambda: SpectrumSensing(folder, frames)[2])
    assert f"{path} is truncated" in complaint(read_tensors, frames, False)


def test_two_sets_with_the_same_names_are_refused(folder):
    shutil.copytree(folder, folder / "TrainingData")
    assert "keep one of the two sets" in complaint(find_frames, folder)


def test_no_frames_cannot_be_read():
    assert "no frames to read" in complaint(read_tensors, [])


# split


@pytest.mark.parametrize("counts", [{"NR": 900, "LTE": 900}, {"NR": 7, "LTE": 6, "FIELD": 10}, {"NR": 1}])
def test_the_split_is_the_references(counts):
    frames = named(counts)
    ordered = sorted(frames, key=lambda frame: frame.png.as_posix())
    first = int(0.8 * len(frames))
    with pytest.warns(UserWarning) if len(frames) == 1 else nullcontext():
        train, rest = torch.utils.data.random_split(
            ordered, [first, len(frames) - first], generator=torch.Generator().manual_seed(42)
        )
    rest = list(rest)
    parts = split(frames[::-1])  # whatever order they come in
    assert parts["train"] == list(train)
    assert parts["validation"] == rest[: len(rest) // 2] and parts["test"] == rest[len(rest) // 2 :]
    assert parts["combined"] == [] and "own" not in parts


def test_the_archives_split_is_1440_180_180_and_leaves_the_challenge_alone():
    parts = split(named({"NR": 900, "LTE": 900, "LTE_NR": 900, OWN: 5}))
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 1440, "validation": 180, "test": 180, "combined": 900, "own": 5,
    }  # fmt: skip
    assert {frame.family for frame in parts["combined"]} == {"LTE_NR"}
    assert {frame.family for frame in parts["own"]} == {OWN}


def test_every_frame_is_in_exactly_one_part_whatever_is_added_of_the_challenge():
    frames = named({"NR": 33, "LTE": 40, "LTE_NR": 50, "FIELD": 21, "OTHER": 30, OWN: 3})
    for share in (0.0, 0.1, 0.5, 1.0):
        parts = split(frames, train_on_combined=share)
        assert sorted(frame.name for part in parts.values() for frame in part) == sorted(f.name for f in frames)
        moved = [frame for frame in parts["train"] if frame.family == "LTE_NR"]
        assert len(moved) == 50 * share and len(parts["combined"]) == 50 - len(moved)
        assert not any(frame.family in ("LTE_NR", OWN) for frame in parts["validation"] + parts["test"])


def test_other_frames_join_all_parts_and_leave_the_rest_of_the_split_as_it_is():
    counts = {"NR": 30, "FIELD": 20}
    before, parts = split(named(counts)), split(named(counts | {"OTHER": 20}))
    for name, share in {"train": 16, "validation": 2, "test": 2}.items():
        assert [frame for frame in parts[name] if frame.family != "OTHER"] == before[name]
        assert len(parts[name]) == len(before[name]) + share


def test_255_is_unknown_in_an_other_frame_whatever_the_rest_of_the_set_holds(tmp_path):
    mask = np.zeros((16, 16), np.uint8)
    mask[4:8] = 255
    for name in ("LTE_frame_1", "NR_frame_1", "OTHER/OTHER_frame_1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_raster(tmp_path / f"{name}.hdf", np.full_like(mask, 127) if "NR" in name else mask)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / f"{name}.png")
    for frames in (find_frames(tmp_path), with_release(find_pictures(tmp_path))):
        values = {frame.family: set(np.unique(read_mask(frame))) for frame in frames}
        assert values == {"LTE": {0, 2}, "NR": {1}, "OTHER": {0, 255}}


def test_the_share_of_the_challenge_is_drawn_by_the_seed():
    frames = named({"LTE_NR": 50})
    drawn = [split(frames, seed, train_on_combined=0.2)["train"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert "a share from 0 to 1, not 1.5" in complaint(split, frames, 42, 1.5)


# weights and SNR


def test_class_weights_are_median_over_count_of_the_masks_given(frames_dir):
    _, masks = read_tensors(split(find_frames(frames_dir))["train"], progress=False)
    counts = [sum(int((mask == c).sum()) for mask in masks) for c in range(3)]
    expected = [sorted(counts)[1] / count for count in counts]
    assert class_weights(masks).dtype == torch.float32
    assert class_weights(masks).tolist() == pytest.approx(expected)
    assert class_weights(masks.long()).tolist() == pytest.approx(expected)


def test_an_absent_class_has_weight_zero_and_stays_out_of_the_median():
    assert class_weights(torch.tensor([[[0, 0, 0, 1]]])).tolist() == pytest.approx([2 / 3, 2, 0])


def snrs_of(frames):
    return [frame.snr_db for frame in frames]


def test_snr_comes_from_frames_csv(frames_dir):
    with open(frames_dir / "frames.csv", newline="") as file:
        table = {row["frame"]: row["snr_db"] for row in csv.DictReader(file)}
    for frames in (find_frames(frames_dir), find_pictures(frames_dir)):
        snr = snrs_of(frames)
        assert snr == [float(table[frame.name]) if table[frame.name] else None for frame in frames]
        assert snr[0] is None and 10.0 in snr  # FIELD_frame_1 is empty


@pytest.mark.parametrize("packed", [False, True])
def test_snr_comes_from_the_mat_as_scipy_wrote_it(folder, packed):
    savemat = pytest.importorskip("scipy.io").savemat
    (folder / "frames.csv").unlink()
    assert snrs_of(find_frames(folder)) == [None] * len(find_frames(folder))
    deep = {"SNRdB": np.int16([40, -3]), "Doppler": 10.0, "name": "flat", "inner": {"x": [1, 2], "SNRdB": 99}}
    savemat(folder / "NR_frame_1.mat", {"params": deep, "rx": np.zeros(4)}, do_compression=packed)
    two = np.array([{"SNRdB": 20.0}, {"SNRdB": 50.0}])
    savemat(folder / "NR_frame_2.mat", {"rx": 1, "params": two}, do_compression=packed)
    savemat(folder / "LTE_frame_1.mat", {"params": {"Doppler": 10.0}}, do_compression=packed)
    expected = {"NR_frame_1": 40.0, "NR_frame_2": 50.0}
    frames = find_frames(folder)
    assert snrs_of(frames) == [expected.get(frame.name) for frame in frames]


@pytest.mark.parametrize("value", [np.nan, np.inf, "40", {"x": 1.0}])
def test_a_mat_without_a_number_as_its_snr_is_told_when_frames_are_found(folder, value):
    savemat = pytest.importorskip("scipy.io").savemat
    (folder / "frames.csv").unlink()
    savemat(folder / "NR_frame_1.mat", {"params": {"SNRdB": value}})
    assert f"{folder / 'NR_frame_1.mat'}" in complaint(find_frames, folder)


def test_a_damaged_mat_is_told_when_frames_are_found(folder):
    savemat = pytest.importorskip("scipy.io").savemat
    (folder / "frames.csv").unlink()
    path = folder / "NR_frame_1.mat"
    path.write_bytes(b"no MATLAB")
    assert "NR_frame_1.mat cannot be read as a MATLAB file" in complaint(find_frames, folder)
    savemat(path, {"params": {"SNRdB": 40.0}}, do_compression=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    assert "it is truncated" in complaint(find_frames, folder)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # of zlib's checksum
    assert "it is damaged" in complaint(find_frames, folder)


@pytest.mark.parametrize("cell", ["high", "nan", "inf", "1e999", "x" * 131_073, "1001"])
def test_an_snr_that_is_no_number_is_told_when_frames_are_found(folder, cell):
    (folder / "frames.csv").write_text(f"frame,snr_db\nNR_frame_1,{cell}\n")
    for find in (find_frames, find_pictures):
        assert f"{folder / 'frames.csv'}" in complaint(find, folder)


@pytest.mark.parametrize("text", [b"frame,snr\nNR_frame_1,3\n", b"frame,snr_db\n\xff,3\n", b'frame,snr_db\n"NR,3\n'])
def test_a_strange_frames_csv_is_named(folder, text):
    (folder / "frames.csv").write_bytes(text)
    assert f"{folder / 'frames.csv'} cannot be understood" in complaint(find_frames, folder)


def test_an_unfinished_set_tells_the_command_that_finishes_it(folder):
    writing.begin(folder, ["python", "-m", "data.synthetic", writing.FOLDER, "--nr", "7"], {"NR": 7})
    (folder / "NR_frame_1.png").unlink()  # as a kill may leave it
    for find, place in ((find_frames, folder), (find_pictures, folder.parent)):
        told = complaint(find, place)
        assert "interrupted" in told and f"python -m data.synthetic {folder} --nr 7" in told
    (folder / writing.MARKER).write_bytes(b"\xff")
    assert "interrupted; the same command finishes it" in complaint(find_frames, folder)


def test_sizes_and_checksums_are_looked_at_before_pixels(folder, monkeypatch):
    frame = find_frames(folder)[0]
    good = frame.png.read_bytes()
    monkeypatch.setattr(png.Image, "open", None)  # whoever decodes fails
    header = struct.pack(">II", 13_300, 13_300) + good[24:29]
    large = good[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + good[33:]
    frame.png.write_bytes(large)
    assert "13300 x 13300 pixels" in complaint(read_frame, frame)
    header = struct.pack(">II", 300, 300) + good[24:29]
    frame.png.write_bytes(good[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + good[33:])
    assert "is 300x300 and its mask" in complaint(read_frame, frame)
    middle = len(good) // 2
    frame.png.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    assert "differs from its checksum" in complaint(read_frame, frame)


# commands


@pytest.fixture
def server(folder, monkeypatch):
    """An archive of `folder` below TrainingData/, served by HTTP."""
    files = {
        f"TrainingData/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with serving(packed(files)) as server:
        yield server


def test_download_survives_a_break_and_leaves_only_the_set(server, folder, tmp_path, capsys):
    server.breaks = [len(server.content) // 3] * 2
    target = tmp_path / "new" / "set"
    assert main(["download", str(target), "--url", server.url]) == 0
    assert capsys.readouterr().out == f"{target} holds 6 frames\n"
    assert [path.name for path in target.iterdir()] == ["TrainingData"]
    assert [frame.name for frame in find_frames(target)] == [frame.name for frame in find_frames(folder)]
    assert main(["download", str(target), "--url", server.url]) == 0 and len(server.asked) == 3  # already there


def test_a_download_given_up_is_finished_by_the_next_one(server, tmp_path, capsys):
    server.breaks = [1000] + [0] * 10
    arguments = ["download", str(tmp_path / "new"), "--url", server.url]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and f"`python -m data.synthetic {tmp_path / 'new'}`" in error
    server.breaks, server.asked = [], []
    assert main(arguments) == 0 and server.asked == ["bytes=1000-"]


def test_a_stop_between_unpacking_and_renaming_needs_no_second_download(server, tmp_path, monkeypatch):
    def stopped(path, root, most):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", interrupt)
            download.extract(path, root, most)

    def interrupt(*args):
        raise KeyboardInterrupt

    arguments = ["download", str(tmp_path / "new"), "--url", server.url]
    with monkeypatch.context() as patch:
        patch.setattr(spectrum_sensing, "extract", stopped)
        assert main(arguments) == 130
    assert [path.name for path in (tmp_path / "new" / ".download").iterdir()] == ["extracted"]
    assert main(arguments) == 0 and len(server.asked) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["TrainingData"]


def test_offline_the_download_fails_in_one_sentence_offering_the_synthetic_set(tmp_path, capsys):
    target = tmp_path / "new"
    assert main(["download", str(target), "--url", "http://no-such-host.invalid/a.tar.gz"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: http://no-such-host.invalid/a.tar.gz cannot be fetched")
    assert f"make a synthetic set: `python -m data.synthetic {target}`" in error and not target.exists()


def test_the_published_archive_asks_for_ten_free_gigabytes_before_any_connection(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 9e9))
    monkeypatch.setattr(download, "urlopen", None)
    assert main(["download", str(tmp_path / "new")]) == 2
    assert "has 9.0 GB free, and 10.0 GB more are needed" in capsys.readouterr().err


def test_check_counts_frames_and_pixels(folder, capsys):
    assert main(["check", str(folder)]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["FIELD"] == ["1", "1.000", "0.000", "0.000"]  # the empty frame
    share = np.mean([read_raster(folder / f"NR_frame_{n}.hdf") == 127 for n in (1, 2)])
    assert lines["NR"] == ["2", f"{1 - share:.3f}", f"{share:.3f}", "0.000"]
    (folder / "NR_frame_1.png").unlink()
    assert main(["check", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {folder / 'NR_frame_1.hdf'} has no")
