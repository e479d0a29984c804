"""How generators write: whole files, pairs that appear together, folders that say that they are unfinished.

    begin(folder, ["python", "-m", "data.synthetic", FOLDER, "--nr", "60"], {"NR": 60})
    write_pair(folder / "NR_frame_1", picture, mask)        # .png and .hdf, both or none
    finish(folder)

A file is written beside its place, as .NAME.PID.part, and renamed. While a set is unfinished its folder holds
unfinished.json: the counts that are wanted, and the command that finishes it, which readers of the set then tell.
"""

import argparse
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data import DataError
from data.hdf4 import write_raster

MARKER = "unfinished.json"
FOLDER = "{folder}"  # in a marker's command, for the folder wherever it is


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then rename, so that the file exists either completely or not at all.

    Raises DataError if the disk refuses.
    """
    with _parts(path) as (temporary,):
        write(temporary)
        os.replace(temporary, path)


def write_pair(stem: Path, picture: np.ndarray, mask: np.ndarray) -> None:
    """Write STEM.png, uint8 (H, W, 3), and STEM.hdf, uint8 (H, W). Both are written before the first appears.

    Raises DataError if the disk refuses.
    """
    png, hdf = (stem.with_name(stem.name + end) for end in (".png", ".hdf"))
    with _parts(hdf, png) as parts:
        write_raster(parts[0], mask)
        Image.fromarray(picture).save(parts[1], format="PNG")
        os.replace(parts[0], hdf)
        os.replace(parts[1], png)  # the picture is last: if it exists, the pair is complete


@contextmanager
def _parts(*paths: Path) -> Iterator[list[Path]]:
    """Temporary names beside files; removed where writing fails."""
    parts = [path.with_name(f".{path.name}.{os.getpid()}.part") for path in paths]
    try:
        with told(paths[0]):
            yield parts
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn an OSError while `path` is written into a DataError that names it and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be written ({reason}); free some space, or check the folder") from None


def remove_leftovers(folders: Iterable[Path]) -> None:
    """Remove what a killed process has left half written in folders of frames."""
    for folder in folders:
        for names in ("*_frame_", "frames.csv", MARKER):
            for path in folder.glob(f".{names}*.part*"):  # write_raster adds a second ending
                path.unlink(missing_ok=True)


# ---- parts of a set, for several machines ---------------------------------------------------------------------------


class Part(NamedTuple):
    """The number-th of `of` parts of a set, counted from 1. Every of-th item belongs to a part, from number - 1 on."""

    number: int
    of: int

    def taken(self, items: Sequence) -> Sequence:
        return items[self.number - 1 :: self.of]

    def beside(self, path: Path) -> Path:
        """Where the part of what will be NAME.END lies: NAME.part2of3.END."""
        return path.with_name(f"{path.stem}.part{self.number}of{self.of}{path.suffix}")


WHOLE = Part(1, 1)


def part(text: str) -> Part:
    """The option --part: "2/3"."""
    number, slash, of = text.partition("/")
    digits = all(word.isascii() and word.isdigit() and len(word) < 6 for word in (number, of))
    if not slash or not digits or not 1 <= int(number) <= int(of):
        raise argparse.ArgumentTypeError(f"{text} is no part: say 1/3, 2/3 and 3/3")
    return Part(int(number), int(of))


def parts_beside(path: Path) -> list[Path]:
    """All parts of NAME.END that lie where it will be."""
    named = re.compile(re.escape(path.stem) + r"\.part\d+of\d+" + re.escape(path.suffix))
    return sorted(other for other in path.parent.glob("*") if named.fullmatch(other.name))


# ---- unfinished sets ------------------------------------------------------------------------------------------------


def begin(folder: Path, command: Sequence[str], counts: dict) -> None:
    """Note in a folder what it will hold, before its first file. FOLDER in the command stands for the folder."""
    text = json.dumps({"command": list(command), "counts": counts})
    write_whole(folder / MARKER, lambda path: path.write_text(text + "\n"))


def finish(folder: Path) -> None:
    (folder / MARKER).unlink(missing_ok=True)


def refuse_unfinished(marker: Path) -> None:
    """Raise DataError for the folder of a marker: what was interrupted, and the command that finishes it."""
    folder = marker.parent
    command = f"the command that made it with {folder}"
    try:
        words = json.loads(marker.read_bytes())["command"]
        if words and all(isinstance(word, str) for word in words):
            command = shlex.join(word if word != FOLDER else str(folder) for word in words)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass  # the marker is damaged: that it is there says enough
    raise DataError(f"{folder}: its generation was interrupted; the same command finishes it: {command}")
