"""The downloader against a local HTTP server that misbehaves.  pytest tests/test_download.py"""

import gzip
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from data import DataError, download
from data.download import extract, fetch
from tests.conftest import packed, serving

CONTENT = np.random.default_rng(0).bytes(1_000_000)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with serving(CONTENT) as server:
        yield server


def test_a_connection_that_breaks_off_is_taken_up_where_it_was(server, tmp_path):
    server.breaks = [300_000, 1, 250_000]
    fetch(server.url, tmp_path / "new" / "a")
    assert (tmp_path / "new" / "a").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=300000-", "bytes=300001-", "bytes=550001-"]
    assert server.sent == len(CONTENT)  # nothing was sent twice
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


def test_a_later_call_asks_only_for_the_rest(server, tmp_path):
    server.breaks = [400_000, 0, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"cannot be fetched .*broke off at 400,000 of 1,000,000.*400,000 bytes.* kept"):
        fetch(server.url, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    server.breaks, server.asked = [], []
    fetch(server.url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT and server.asked == ["bytes=400000-"]
    fetch(server.url, tmp_path / "a")
    assert len(server.asked) == 1  # a complete file is not asked for again


def test_a_killed_download_is_taken_up_where_it_was(server, tmp_path):
    server.breaks = [600_000]
    server.flowing.clear()
    code = f"from data.download import fetch; fetch({server.url!r}, {str(tmp_path / 'a')!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(download.__file__).parents[1], stderr=subprocess.DEVNULL
    )
    part, deadline = tmp_path / "a.part", time.time() + 60
    while not (part.exists() and part.stat().st_size > 500_000) and time.time() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    server.flowing.set()
    have = part.stat().st_size
    fetch(server.url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert have > 500_000 and server.asked == [None, f"bytes={have}-"]


@pytest.mark.parametrize("breaks", [[500_000], [200_000, 500_000, 700_000]])
def test_a_server_that_ignores_ranges_is_read_from_the_start(server, tmp_path, breaks):
    server.breaks, server.ranges = breaks, False
    fetch(server.url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_and_always_breaks_off_is_given_up(server, tmp_path):
    server.breaks, server.ranges = [500_000] * 20, False
    with pytest.raises(DataError, match="broke off at 500,000 of 1,000,000"):
        fetch(server.url, tmp_path / "a")
    assert len(server.asked) == 2 + download.RETRIES


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("length", [1_000_000, 1_200_000, 100_000])
@pytest.mark.parametrize("etag", ['"two"', None])
def test_a_file_that_changed_meanwhile_is_never_mixed(server, tmp_path, length, if_range, etag):
    server.breaks = [400_000] + [0] * 5
    with pytest.raises(DataError):
        fetch(server.url, tmp_path / "a")
    server.content = np.random.default_rng(1).bytes(length)
    server.breaks, server.etag, server.if_range = [], etag, if_range
    fetch(server.url, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == server.content


def test_the_part_of_another_address_is_not_continued(server, tmp_path):
    server.breaks = [400_000] + [0] * 5
    with pytest.raises(DataError):
        fetch(server.url, tmp_path / "a")
    server.asked = []
    fetch(server.url + "?mirror", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == CONTENT and server.asked == [None]


@pytest.mark.parametrize("status, sentence", [(404, "HTTP Error 404"), (503, "HTTP Error 503")])
def test_a_refusal_is_one_sentence_and_leaves_nothing(server, tmp_path, status, sentence):
    server.status = status
    with pytest.raises(DataError, match=f"archive.tar.gz cannot be fetched .{sentence}") as caught:
        fetch(server.url, tmp_path / "new" / "a")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir()) and len(server.asked) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/a", "http://no-such-host.invalid/a", "no address"])
def test_without_a_network_it_fails_at_once_and_leaves_nothing(tmp_path, monkeypatch, url):
    monkeypatch.setattr(time, "sleep", None)  # no waiting, no second try
    with socket.socket() as closed:  # a port that nobody listens to
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(url.format(port=port), tmp_path / "new" / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("space, asked", [(None, 1), (10e9, 0)])
def test_too_little_free_space_is_found_before_anything_is_written(server, tmp_path, monkeypatch, space, asked):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1_900_000))
    with pytest.raises(DataError, match="GB free, and .* GB more are needed"):
        fetch(server.url, tmp_path / "new" / "a", space)
    assert not list(tmp_path.iterdir()) and len(server.asked) == asked


def unpacked(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "set" / "work").mkdir(parents=True)
    (tmp_path / "set" / "work" / "a.tar.gz").write_bytes(content)
    extract(tmp_path / "set" / "work" / "a.tar.gz", tmp_path / "set")
    return tmp_path / "set"


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folder_member(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


GOOD = {"T/a.png": CONTENT[:70_000], "T/sub/b.hdf": b"b", "read.me": b""}


def test_a_sound_archive_is_unpacked_and_removed(tmp_path):
    folder = unpacked(tmp_path, packed({"./": folder_member("./"), "T": folder_member("T"), **GOOD}))
    assert files(folder) == GOOD and not list((folder / "work").iterdir())


EVIL = {
    "absolute": {"{}/evil": b"x"},
    "above": {"../evil": b"x"},
    "above by a detour": {"T/../../../evil": b"x"},
    "symbolic link": {"T/link": special("T/link", tarfile.SYMTYPE, "/etc")},
    "through a link": {"link": special("link", tarfile.SYMTYPE, ".."), "link/evil": b"x"},
    "hard link": {"T/link": special("T/link", tarfile.LNKTYPE, "../../evil")},
    "device": {"T/null": special("T/null", tarfile.CHRTYPE)},
    "pipe": {"T/pipe": special("T/pipe", tarfile.FIFOTYPE)},
}


@pytest.mark.parametrize("evil", EVIL)
def test_a_member_that_could_leave_the_folder_condemns_the_archive(tmp_path, evil):
    with pytest.raises(DataError, match="link or device or outside"):
        unpacked(tmp_path, packed({**GOOD, **{name.format(tmp_path): member for name, member in EVIL[evil].items()}}))
    assert files(tmp_path) == {}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGED = {
    "cut short": packed(GOOD)[:-30_000],
    "without checksum": packed(GOOD)[:-4],
    "of a wrong bit": flipped(packed(GOOD)),
    "with a wrong header inside": gzip.compress(gzip.decompress(packed(GOOD)).replace(b"T/sub/b.hdf", b"T/sub/c.hdf")),
    "an HTML page": b"<html>Please log in</html>",
    "no tar": gzip.compress(b"hello" * 1000),
    "empty": b"",
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_archive_is_removed_and_leaves_nothing(tmp_path, damage):
    with pytest.raises(DataError, match="was damaged .* is removed; run the same command again"):
        unpacked(tmp_path, DAMAGED[damage])
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    "notes", [b"[]", b"no JSON", b"\xff", b'{"url": 3}', b'{"url": "?", "length": "x"}', b'{"url": "?"}', b"1e999"]
)
def test_damaged_notes_of_a_download_count_as_none(server, tmp_path, notes):
    (tmp_path / "a.part").write_bytes(b"of something else")
    (tmp_path / "a.json").write_bytes(notes.replace(b'"?"', f'"{server.url}"'.encode()))
    fetch(server.url, tmp_path / "a")
    assert files(tmp_path) == {"a": CONTENT} and server.asked == [None]


IMPOSSIBLE = {"a file that is a folder, too": {"a": b"x", "a/b": b"y"}, "a name too long": {"n" * 300: b"x"}}


@pytest.mark.parametrize("fault", IMPOSSIBLE)
def test_an_archive_whose_names_no_disk_can_hold_is_not_kept(tmp_path, fault):
    with pytest.raises(DataError, match="names that no disk can .* is removed; fetch it from a source that you trust"):
        unpacked(tmp_path, packed({**GOOD, **IMPOSSIBLE[fault]}))
    assert files(tmp_path) == {}


def long_header(size: int) -> bytes:
    """An archive whose first header is so long."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, size
    return gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + b"\0" * size, 1)


BOMBS = {
    "a large member": lambda: packed({"zeros": b"\0" * 3_000_000}),
    "many members": lambda: packed({f"{i}": b"\0" * 400_000 for i in range(6)}),
    "zeros behind the last": lambda: gzip.compress(gzip.decompress(packed(GOOD)) + b"\0" * 3_000_000, 1),
    "a long header": lambda: long_header(5_000_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_archive_that_unpacks_to_more_than_it_may_hold_is_not_kept(tmp_path, monkeypatch, bomb):
    monkeypatch.setattr(download, "MOST_BYTES", 2e6)
    monkeypatch.setattr(download, "MOST_RATIO", 1)
    with pytest.raises(DataError, match="and is removed; fetch it from a source that you trust"):
        unpacked(tmp_path, BOMBS[bomb]())
    assert files(tmp_path) == {}


def test_a_download_larger_than_what_it_may_be_is_refused_before_it_begins(server, tmp_path):
    with pytest.raises(DataError, match="more than the 900,000 that it may have"):
        fetch(server.url, tmp_path / "a", space=900_000)
    assert files(tmp_path) == {}


def test_a_full_disk_keeps_the_archive_and_no_half_contents(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(DataError, match="No space left"):
            unpacked(tmp_path, packed(GOOD))
    archive = tmp_path / "set" / "work" / "a.tar.gz"
    assert list(files(tmp_path)) == [archive.relative_to(tmp_path).as_posix()]
    extract(archive, tmp_path / "set")
    assert files(tmp_path / "set") == GOOD


@pytest.mark.parametrize("kill_at", [1, 2, 3])  # before the contents are declared complete, and before each rename
def test_a_kill_while_unpacking_is_repaired_by_the_next_call(tmp_path, monkeypatch, kill_at):
    calls, replace = [], download.os.replace

    def killed(source, target):
        calls.append(source)
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(download.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            unpacked(tmp_path, packed(GOOD))
    (tmp_path / "set" / "work" / "extracting").mkdir()  # what a harder kill would have left
    extract(tmp_path / "set" / "work" / "a.tar.gz", tmp_path / "set")
    assert {name: data for name, data in files(tmp_path / "set").items() if "work" not in name} == GOOD


def test_what_is_there_is_never_overwritten(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "T").write_bytes(b"mine")
    with pytest.raises(DataError, match="set/T is in the way"):
        unpacked(tmp_path, packed(GOOD))
    assert (tmp_path / "set" / "T").read_bytes() == b"mine"
    (tmp_path / "set" / "T").unlink()
    extract(tmp_path / "set" / "work" / "a.tar.gz", tmp_path / "set")
    assert files(tmp_path / "set") == GOOD
