"""The SNR of each frame of a set, from its frames.csv or from the frame's .mat file. Standard library only.

    known_snrs("datasets/spectrum_sensing", ["NR_frame_1"], [Path(".../NR_frame_1.png")])     # [10.5]

They are read when the frames are found, so that a damaged file is told before anything is trained.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from data import DataError
from data.mat5 import read_mat
from data.values import decibels


def known_snrs(root, names: Sequence[str], pictures: Sequence[Path]) -> list[float | None]:
    """SNR in dB of each frame's strongest carrier, None where it is not known.

    It comes from root/frames.csv, or else from the .mat beside the picture. The SNR in a .mat assumes a signal power of
    0 dBW, so the true one is lower.

    Args: names, of the frames; pictures, their .png.
    Raises: DataError for a frames.csv or .mat that cannot be understood, or an SNR that is no number (data/values.py).
    """
    table = Path(root) / "frames.csv"
    listed = snr_table(table) if table.exists() else {}
    return [
        listed[name] if name in listed else mat_snr(picture.with_suffix(".mat"))
        for name, picture in zip(names, pictures, strict=True)
    ]


def snr_table(path: Path) -> dict[str, float | None]:
    """The columns frame and snr_db of a frames.csv; None where a frame has no carrier. DataError: see known_snrs."""
    wanted = "it needs the columns frame and snr_db (a number or nothing): generate the set again or remove the file"
    snrs = {}
    try:
        text = path.read_bytes().decode("utf-8")
        rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)  # strict: a lone quote would swallow rows
        for row in rows:
            if None in row or None in row.values():
                raise ValueError(f"line {rows.line_num} has another number of cells")
            where = f"{path}, line {rows.line_num}"
            snrs[row["frame"]] = decibels(row["snr_db"], where) if row["snr_db"] else None  # empty if without carrier
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except (csv.Error, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be understood ({error!r:.200}); {wanted}") from None
    return snrs


def mat_snr(path: Path) -> float | None:
    """The highest SNRdB in the parameters of a .mat; None without the file or the value. DataError: see known_snrs."""
    if not path.exists():
        return None
    values = []

    def collect(node) -> None:
        if isinstance(node, dict):
            told = node.get("SNRdB", [])
            if told is None or any(not isinstance(value, float) for value in told):
                raise DataError(f"{path}: SNRdB holds something else than numbers; correct or remove the file")
            values.extend(decibels(value, f"{path}, SNRdB") for value in told)
        elif isinstance(node, list):
            for member in node:
                collect(member)

    collect(read_mat(path, "params"))
    return max(values, default=None)
