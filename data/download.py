"""Download a large archive over an unreliable line, and unpack it without trusting its contents.

    fetch(url, "set/.download/archive.tar.gz")       # continues where an earlier call or a killed process stopped
    extract("set/.download/archive.tar.gz", "set")   # writes regular files below set/ only; all of them or none

Needs the standard library and tqdm. To use it elsewhere, copy this file and replace DataError by an exception of yours.
"""

import errno
import gzip
import json
import os
import re
import shutil
import sys
import tarfile
import time
import zlib
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from data import DataError

TIMEOUT = 30  # seconds without a byte
RETRIES = 4  # in a row without a new byte; before the first byte arrives there are none
MOST_BYTES, MOST_RATIO = 1e9, 20  # of what an archive unpacks to, where the caller doesn't say: the larger of both
MOST_AT_ONCE = 1 << 22  # bytes of a header in an archive; a file's contents are read in smaller pieces
OF_NAMES = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.ELOOP, errno.ENOENT}
ELSEWHERE = "fetch it from a source that you trust"
PAUSE = 1.0  # seconds before a retry, doubled after each that brought no new byte


def fetch(url: str, path, space: float | None = None) -> None:
    """Download `url` to `path`, which exists only when it is complete.

    Until then PATH.part holds what has arrived, and PATH.json describes it. After a broken connection an HTTP range
    request fetches the rest, in this call or in a later one. The download starts anew if the server ignores ranges, or
    if its file has changed.

    Args: space, bytes that must be free, less what has arrived, and more than the file may have; if None, twice the
    length that the server announces, for the archive and its contents.
    Raises: DataError if retries do not help, or the disk is too full. What has arrived is kept.
    """
    path = Path(path)
    part, notes = path.with_name(path.name + ".part"), path.with_name(path.name + ".json")
    if path.exists():
        notes.unlink(missing_ok=True)
        return
    if space:
        check_space(path, space - _size(part))
    most, failures, under_way = _size(part), 0, False
    while True:
        try:
            _fetch_rest(url, part, notes, space)
            break
        except DataError:
            raise
        except (OSError, HTTPException, ValueError) as error:  # ValueError: not an address
            got_more = _size(part) > most
            most, under_way = max(most, _size(part)), under_way or got_more
            failures = 0 if got_more else failures + 1
            refused = isinstance(error, HTTPError)
            if (refused and error.code < 500) or not under_way or failures > RETRIES:
                kept = f" after {_size(part):,} bytes, which are kept" if _size(part) else ""
                raise DataError(
                    f"{url} cannot be fetched ({error if refused else getattr(error, 'reason', error)}){kept}; "
                    "check address and network and run the same command again"
                ) from None
            time.sleep(PAUSE * 2**failures)
    os.replace(part, path)
    notes.unlink()


def _fetch_rest(url: str, part: Path, notes: Path, space: float | None) -> None:
    """Open one connection, ask for the bytes that `part` lacks and append them.

    Raises OSError or HTTPException if the connection breaks.
    """
    # Ask for what is missing.
    known = _known(notes, url)
    have = _size(part) if known else 0
    if have and have == known["length"]:
        return
    request = Request(url, headers={"User-Agent": "python"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if known["version"]:
            request.add_header("If-Range", known["version"])  # a changed file then comes whole, with status 200
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416 or not have:  # 416: the file ends before the bytes asked for, so it is another one
            raise
        part.unlink()
        return _fetch_rest(url, part, notes, space)
    # Is it the rest of what we have?
    with response:
        etag = response.headers.get("ETag", "W/")
        version = response.headers.get("Last-Modified") if etag.startswith("W/") else etag  # W/: bytes may differ
        if have and response.status == 206:
            begun = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            length = known["length"]
            if not begun or (*map(int, begun.groups()), version) != (have, length, known["version"]):
                part.unlink()
                return _fetch_rest(url, part, notes, space)
        else:
            have, length = 0, response.headers.get("Content-Length")
            length = None if length is None else int(length)
        announced = max(length or 0, have)
        if space and announced > space:
            raise DataError(f"{url} has {announced:,} bytes, more than the {space:,.0f} that it may have; {ELSEWHERE}")
        check_space(part, (space or 2 * (length or 0)) - have)

        # Write it.
        with _writing(part):
            part.parent.mkdir(parents=True, exist_ok=True)
            file = open(part, "ab" if have else "wb")  # empty before the notes change
        with file, tqdm(desc=part.stem, total=length, initial=have, unit="B", unit_scale=True, file=sys.stderr) as bar:
            with _writing(notes):
                draft = notes.with_suffix(".tmp")
                draft.write_text(json.dumps({"url": url, "length": length, "version": version}))
                os.replace(draft, notes)
            while chunk := response.read(1 << 16):
                with _writing(part):
                    file.write(chunk)
                    file.flush()
                if space and length is None and file.tell() > space:
                    raise DataError(f"{url} sends more than the {space:,.0f} bytes that it may have; {ELSEWHERE}")
                bar.update(len(chunk))
    if length is not None and _size(part) != length:
        raise ConnectionError(f"the connection broke off at {_size(part):,} of {length:,} bytes")


def _known(notes: Path, url: str) -> dict:
    """What is noted of an unfinished download of `url`: its length and version. Empty: nothing, or damaged notes."""
    try:
        known = json.loads(notes.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    kinds = {"url": str, "length": int | None, "version": str | None}
    if not isinstance(known, dict) or not kinds.keys() <= known.keys():
        return {}
    if not all(isinstance(known[key], kind) for key, kind in kinds.items()):
        return {}
    return known if known["url"] == url else {}


def extract(path, directory, most: float | None = None) -> None:
    """Unpack a .tar.gz into `directory`, then remove it. A damaged archive adds nothing.

    The archive is unpacked completely, and its checksum compared, in a folder beside it. Then the files are moved by
    renaming. If the process is killed while renaming, the next call continues, even without the archive.

    Args: most, bytes that the contents may take; MOST_BYTES or MOST_RATIO times the archive, the larger, if None.
    Raises: DataError for a damaged archive, for one with a member that is neither file nor folder (a link, a device),
    that is outside the archive's folder or in the way of another, and for one that unpacks to more than `most` bytes
    (in these cases the archive is removed); for a full disk, and for an entry of the same name that exists already.
    """
    # Unpack, and compare the checksum.
    path, directory = Path(path), Path(directory)
    unfinished, finished = path.parent / "extracting", path.parent / "extracted"
    if not finished.exists():  # otherwise a process was killed while renaming
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            _unpack(path, unfinished.resolve(), most or max(MOST_BYTES, MOST_RATIO * _size(path)))
            os.replace(unfinished, finished)
        except DataError:
            path.unlink()
            raise
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
            path.unlink()
            raise DataError(f"{path} was damaged ({error}) and is removed; run the same command again") from None
        except OSError as error:
            if error.errno in OF_NAMES:
                path.unlink()
                raise DataError(f"{path} holds names that no disk can ({error}) and is removed; {ELSEWHERE}") from None
            raise DataError(f"{path} cannot be unpacked ({error}); free some space and run the command again") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    path.unlink(missing_ok=True)

    # Rename.
    entries = sorted(finished.iterdir())
    for entry in entries:
        if (directory / entry.name).exists():
            raise DataError(f"{directory / entry.name} is in the way of the archive's contents; move it elsewhere")
    for entry in entries:
        os.replace(entry, directory / entry.name)
    finished.rmdir()


class _Bounded:
    """Reads of a file, together at most `most` bytes, and never many at once: what tarfile reads at once are names."""

    def __init__(self, file, most: float, path: Path):
        self.file, self.most, self.path = file, most, path

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int) -> int:
        self.check(offset)
        return self.file.seek(offset)

    def read(self, count: int) -> bytes:
        if count > MOST_AT_ONCE:
            raise DataError(f"{self.path} has a header of {count:,} bytes and is removed; {ELSEWHERE}")
        self.check(self.file.tell() + count - tarfile.RECORDSIZE)  # tarfile may ask for more than there is
        return self.file.read(count)

    def check(self, position: int) -> None:
        if position > self.most:
            most = f"more than the {self.most:,.0f} bytes that it may hold"
            raise DataError(f"{self.path} unpacks to {most} and is removed; {ELSEWHERE}")


def _unpack(path: Path, target: Path, most: float) -> None:
    """Unpack all members into a new folder. Raises DataError for a dangerous one, and what tarfile and gzip raise."""
    target.mkdir()
    written = 0
    with (
        open(path, "rb") as packed,
        gzip.open(packed) as stream,
        tarfile.open(fileobj=(unpacked := _Bounded(stream, most, path)), mode="r:") as archive,
        tqdm(desc="unpacking", total=_size(path), unit="B", unit_scale=True, file=sys.stderr) as bar,
    ):
        for member in archive:
            place = (target / member.name).resolve()
            if not place.is_relative_to(target) or not (member.isreg() or member.isdir()):
                raise DataError(
                    f"{path} holds {member.name!r}, a link or device or outside its folder; nothing was unpacked and "
                    f"the archive is removed; {ELSEWHERE}"
                )
            written += member.size  # of a sparse file more than the archive holds
            unpacked.check(written)
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "wb") as file:
                shutil.copyfileobj(archive.extractfile(member), file, 1 << 20)
            bar.update(packed.tell() - bar.n)
        while rest := unpacked.read(1 << 20):  # read to the end, where gzip compares its checksum
            if rest.strip(b"\0"):
                raise tarfile.ReadError("something else follows the last member")


def check_space(path, needed: float) -> None:
    """Raise DataError if the disk that holds, or will hold, `path` has fewer than `needed` bytes free."""
    place = next(folder for folder in Path(path).absolute().parents if folder.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise DataError(
            f"{place} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB more are needed; "
            "free some space or choose another disk"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@contextmanager
def _writing(path: Path):
    """Turn an OSError into a DataError that names the file: such an error is the disk's, not the connection's."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); check the folder and its free space") from None
