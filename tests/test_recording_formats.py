"""What files, names and headers say of a recording.   pytest tests/test_recording_formats.py"""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import wave
from typing import NamedTuple

import numpy as np
import pytest

from data import DataError
from data.recording_formats import open_recording
from data.sigmf import annotated_metadata, check_annotatable, metadata_path
from tests.test_recording import noise, samples, write_sigmf

RATE, CENTER = 2e6, 1815.3e6
VALUES = np.array([[-1, 0.5], [0.25, 0], [0.125, -0.5], [0.75, -0.25]])  # I, Q


def told(recording):
    return recording.datatype, recording.sample_rate, recording.captures[0].center_hz


def chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


class Form(NamedTuple):
    """What a WAV says of its samples."""

    code: int = 1
    bits: int = 16
    channels: int = 2
    rate: float = RATE


def write_wav(path, form=Form(), more=b"", data=None, riff=b"RIFF"):  # noqa: B008, a tuple never changes
    """A WAV of VALUES; `more` are chunks before the samples."""
    code, bits, channels, rate = form
    if data is None:
        scale = 1 if code == 3 else 2 ** (bits - 1)
        numbers = VALUES * scale
        if bits == 8:
            data = (numbers + 128).astype("u1").tobytes()
        elif bits == 24:
            data = numbers.astype("<i4").reshape(-1, 1).view("u1")[:, :3].tobytes()
        else:
            data = numbers.astype(f"<{'f' if code == 3 else 'i'}{bits // 8}").tobytes()
    width = channels * bits // 8
    header = struct.pack("<HHIIHH", code, channels, int(rate), int(rate) * width, width, bits)
    content = b"WAVE" + more + chunk(b"fmt ", header) + chunk(b"data", data) + chunk(b"LIST", b"after")
    path.write_bytes(riff + struct.pack("<I", len(content)) + content)
    return path


def auxi(size, center=CENTER):
    return chunk(b"auxi", (bytes(32) + struct.pack("<I", int(center)) + bytes(200))[:size])


@pytest.mark.parametrize(
    ("ending", "datatype"),
    [(".cs8", "ci8"), (".cu8", "cu8"), (".cs16", "ci16_le"), (".sc16", "ci16_le"), (".ci32", "ci32_le")]
    + [(".cf32", "cf32_le"), (".fc32", "cf32_le"), (".cfile", "cf32_le"), (".CU8", "cu8")],
)
def test_endings_tell_the_datatype_and_an_option_overrules_them(tmp_path, ending, datatype):
    path = tmp_path / f"capture{ending}"
    path.write_bytes(bytes(160))
    assert told(open_recording(path, sample_rate=RATE)) == (datatype, RATE, None)
    assert open_recording(path, "ci16_be", RATE).datatype == "ci16_be"
    assert open_recording(path, ending[1:].lower().replace("cfile", "fc32"), RATE).datatype == datatype
    with pytest.raises(DataError, match="does not say its sample rate; add --sample-rate HZ$"):
        open_recording(path)


def test_names_of_gqrx_and_of_uhds_files_tell_what_they_hold(tmp_path):
    path = tmp_path / "gqrx_20260101_120000_1815300000_19200000_fc.raw"
    path.write_bytes(bytes(160))
    assert told(open_recording(path)) == ("cf32_le", 19.2e6, CENTER)
    x = noise(2000)
    (tmp_path / "usrp_samples.dat").write_bytes((x.view(np.float32) * 500).astype("<i2").tobytes())
    (tmp_path / "floats.dat").write_bytes(x.tobytes())
    for name, datatype in (("usrp_samples.dat", "ci16_le"), ("floats.dat", "cf32_le")):
        recording = open_recording(tmp_path / name, sample_rate=RATE)
        assert recording.datatype == datatype and "by its values" in recording.notes[0]


@pytest.mark.parametrize(("code", "bits"), [(1, 8), (1, 16), (1, 24), (1, 32), (3, 32)])
def test_a_wav_holds_i_and_q(tmp_path, code, bits):
    recording = open_recording(write_wav(tmp_path / "iq.wav", Form(code, bits)))
    assert recording.sample_rate == RATE
    assert np.array_equal(samples(recording), (VALUES @ [1, 1j]).astype(np.complex64))  # of nothing but the samples


def test_a_wav_by_pythons_own_module_is_read_alike(tmp_path):
    with wave.open(str(tmp_path / "iq.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(int(RATE))
        file.writeframes((VALUES * 2**15).astype("<i2").tobytes())
    assert np.array_equal(samples(open_recording(tmp_path / "iq.wav")), (VALUES @ [1, 1j]).astype(np.complex64))


@pytest.mark.parametrize(
    ("name", "more", "center"),
    [
        ("iq.wav", auxi(164), CENTER),  # HDSDR
        ("iq.wav", auxi(68), CENTER),
        ("iq.wav", auxi(36), CENTER),
        ("iq.wav", auxi(20), None),
        ("iq.wav", chunk(b"auxi", '<?xml?><Definition RadioCenterFreq="1815300000"/>'.encode("utf-16")), CENTER),
        ("SDRSharp_20260101_231914Z_1815300000Hz_IQ.wav", b"", CENTER),
        ("HDSDR_20260101_120000Z_1815300kHz_RF.wav", b"", CENTER),
        ("HDSDR_20260101_120000Z_7kHz_RF.wav", auxi(164), CENTER),  # the header knows it to 1 Hz
    ],
)
def test_header_and_name_of_a_wav_tell_its_frequency(tmp_path, name, more, center):
    assert told(open_recording(write_wav(tmp_path / name, more=more))) == ("ci16_le", RATE, center)


def test_a_wav_of_more_than_4_gb_and_one_that_was_never_closed_are_read_to_their_end(tmp_path):
    path = write_wav(tmp_path / "large.wav", riff=b"RF64", more=chunk(b"ds64", struct.pack("<QQQ", 99, 16, 0)))
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff" * 4
    path.write_bytes(content)
    assert open_recording(path).captures[0].count == 4
    killed = tmp_path / "killed.wav"
    content = write_wav(tmp_path / "iq.wav").read_bytes()
    killed.write_bytes(b"RIFF" + bytes(4) + content[8 : content.index(b"data") + 4] + bytes(4 + 40))
    assert open_recording(killed).captures[0].count == 10


def archive(path, members):
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def test_a_sigmf_archive_is_read_where_it_lies(tmp_path):
    data = np.arange(100, dtype=np.int8).tobytes()
    meta = write_sigmf(tmp_path, data, [{"core:sample_start": 0, "core:frequency": CENTER}])
    members = {"a/rec.sigmf-meta": meta.read_bytes(), "a/rec.sigmf-data": data}
    packed = archive(tmp_path / "packed.sigmf", members | {"a/readme": b"x"})
    assert np.array_equal(samples(open_recording(packed)), samples(open_recording(meta)))
    assert told(open_recording(packed)) == ("ci8", RATE, CENTER)
    with pytest.raises(DataError, match="unpack it"):
        check_annotatable(open_recording(packed))
    with pytest.raises(DataError, match="holds 2 recordings"):
        open_recording(archive(tmp_path / "two.sigmf", members | {"b.sigmf-meta": b"{}"}))
    sigmf = pytest.importorskip("sigmf")
    sigmf.fromfile(str(meta)).archive(str(tmp_path / "theirs.sigmf"))
    assert np.array_equal(samples(open_recording(tmp_path / "theirs.sigmf")), samples(open_recording(meta)))


def test_metadata_with_a_bom_whole_floats_and_odd_annotations_of_others_are_read(tmp_path):
    meta = write_sigmf(tmp_path, bytes(200), [{"core:sample_start": 0.0, "core:header_bytes": 4.0}])
    values = json.loads(meta.read_text())
    values["annotations"] = [{"core:sample_start": "late", "core:generator": "theirs"}, {"core:sample_start": -3}]
    meta.write_text("\ufeff" + json.dumps(values), encoding="utf-8")
    recording = open_recording(meta)
    assert recording.captures[0].count == 98
    written = annotated_metadata(recording, [{"core:sample_start": 5, "core:generator": "ours"}], "ours")
    assert len(written["annotations"]) == 3
    with pytest.raises(DataError, match="core:sample_start is 0.5"):
        open_recording(write_sigmf(tmp_path, bytes(200), [{"core:sample_start": 0.5}]))


def test_captures_that_follow_each_other_at_one_frequency_are_one(tmp_path):
    def of(*captures):
        keys = ("core:sample_start", "core:frequency", "core:header_bytes")
        entries = [dict(zip(keys, values, strict=False)) for values in captures]
        return [(c.start, c.count) for c in open_recording(write_sigmf(tmp_path, bytes(2000), entries)).captures]

    assert of(*((100 * i, CENTER) for i in range(9))) == [(0, 1000)]
    assert of((0, CENTER), (100, CENTER), (200, 1e9), (300, CENTER)) == [(0, 200), (200, 100), (300, 700)]
    assert of((0, CENTER), (100, CENTER, 8)) == [(0, 100), (100, 896)]  # bytes lie between


def test_metadata_beside_a_bare_file_describe_it(tmp_path):
    meta = write_sigmf(tmp_path, bytes(200), [{"core:sample_start": 0, "core:frequency": CENTER}])
    bare = (tmp_path / "rec.sigmf-data").rename(tmp_path / "rec.bin")
    recording = open_recording(bare)
    assert told(recording) == ("ci8", RATE, CENTER) and recording.meta_path == meta
    assert "rec.sigmf-meta" in recording.notes[0]
    (tmp_path / "rec.sigmf-data").write_bytes(bytes(200))  # the metadata's own samples: they do not describe rec.bin
    with pytest.raises(DataError, match="does not say its datatype and sample rate"):
        open_recording(bare)
    (tmp_path / "rec.bin.sigmf-meta").write_text(meta.read_text().replace('"ci8"', '"cu8", "core:dataset": "rec.bin"'))
    assert open_recording(bare).datatype == "cu8"


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\x1f\x8b\x08\0", "compressed with gzip; unpack it with gunzip"),
        (b"\x93NUMPY\1\0", 'np.load(NAME).astype("complex64").tofile("NAME.cf32")'),
        (b"PK\x03\x04", "is a zip archive; unpack it"),
        (b"\xff\xd8\xff\xe0", "is a JPEG, whose compression changes the colours; name a .png"),
        (b"\xfd7zXZ\0", "unpack it with unxz"),
    ],
)
def test_files_of_other_kinds_get_the_sentence_that_helps_whatever_the_options_say(tmp_path, start, words):
    path = tmp_path / "capture.bin"
    path.write_bytes(start + bytes(1000))
    with pytest.raises(DataError) as caught:
        open_recording(path, "ci8", RATE)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_real_samples_mono_wavs_folders_and_pipes_are_refused_in_a_sentence(tmp_path):
    def fault(path, *arguments):
        with pytest.raises(DataError) as caught:
            open_recording(path, *arguments)
        return str(caught.value)

    (tmp_path / "x.bin").write_bytes(bytes(100))
    assert "has real samples; I/Q is needed" in fault(tmp_path / "x.bin", "rf32_le", RATE)
    assert "WAV of 1 channel(s); I/Q has two" in fault(write_wav(tmp_path / "mono.wav", Form(channels=1)))
    assert "WAV of 12 bits in format 2" in fault(write_wav(tmp_path / "odd.wav", Form(code=2, bits=12), data=bytes(9)))
    assert "48000 Hz can't be used" in fault(write_wav(tmp_path / "audio.wav", Form(rate=48e3)))
    assert "holds no sample" in fault(write_wav(tmp_path / "empty.wav", data=b""))
    (tmp_path / "cut.wav").write_bytes((tmp_path / "mono.wav").read_bytes()[:20])
    assert "without a header or without samples" in fault(tmp_path / "cut.wav")
    assert "is a folder" in fault(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "to read from a pipe name -" in fault(tmp_path / "pipe")


def test_annotating_is_refused_before_any_work_where_it_would_contradict_or_fail(tmp_path):
    meta = write_sigmf(tmp_path, bytes(200), [{"core:sample_start": 0, "core:frequency": CENTER}])

    def fault(*arguments, path=meta):
        with pytest.raises(DataError) as caught:
            check_annotatable(open_recording(path, *arguments))
        return str(caught.value)

    check_annotatable(open_recording(meta, None, RATE, CENTER))
    assert "--center-frequency is 1e+09 and the metadata say 1.8153e+09" in fault(None, None, 1e9)
    assert "--sample-rate is 4e+06" in fault(None, 4e6)
    assert "SigMF has no 24-bit samples" in fault(path=write_wav(tmp_path / "iq.wav", Form(bits=24)))
    (tmp_path / "bare.cu8.sigmf-meta").mkdir()
    (tmp_path / "bare.cu8").write_bytes(bytes(100))
    assert "can't be written" in fault(None, RATE, path=tmp_path / "bare.cu8")
    assert not list(tmp_path.glob(".*.probe"))


def test_annotated_metadata_hold_what_options_and_headers_told_and_sigmf_reads_them(tmp_path):
    ours = {"core:sample_start": 0, "core:sample_count": 4, "core:generator": "g", "signal:detail": {"standard": "LTE"}}
    path = write_wav(tmp_path / "iq.wav", more=auxi(164))
    recording = open_recording(path)
    written = annotated_metadata(recording, [ours], "g")
    metadata_path(recording).write_text(json.dumps(written))
    assert told(open_recording(path)) == told(open_recording(metadata_path(recording))) == ("ci16_le", RATE, CENTER)
    assert written["global"]["core:extensions"] == [{"name": "signal", "version": "1.0.0", "optional": True}]
    again = annotated_metadata(open_recording(path), [ours], "g")
    assert again == written
    bare = write_sigmf(tmp_path, bytes(200), [{"core:sample_start": 0}], core_sample_rate=None)
    completed = annotated_metadata(open_recording(bare, None, RATE, CENTER), [], "g")
    assert completed["captures"] == [{"core:frequency": CENTER, "core:sample_start": 0}]
    assert completed["global"]["core:sample_rate"] == RATE
    sigmf = pytest.importorskip("sigmf")
    opened = sigmf.fromfile(str(metadata_path(recording)))
    opened.validate()
    assert np.array_equal(opened.read_samples(), (VALUES @ [1, 1j]).astype(np.complex64))


def test_opening_imports_neither_numpy_nor_torch():
    code = "import sys, segment; print([name for name in ('numpy', 'torch', 'PIL') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
