"""Data sets: readers of the published files, and generators that write files of the same layouts.

In this folder a frame is one example of a data set: 40 ms of samples and the spectrogram made of them, or the 1024
samples of one modulation. The frame of 10 ms that LTE and 5G NR are built of is always called a radio frame.
"""

import argparse
import math
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path


class DataError(ValueError):
    """A file or folder that cannot be used; the message names the file, the fault and the remedy."""


def exit_code(work: Callable[[], None]) -> int:
    """Do the work of a command of this folder: 0, 2 after a known fault (one sentence), 130 after Ctrl-C or SIGTERM."""

    def stop(number, frame):
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if in_main else None
    try:
        work()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or error
        print(f"error: {place}{reason}; free some space, or check the folder and its permissions", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)
    return 0


# ---- what an option may be, as in utils/runs.py ----------------------------------------------------------------------


def ranged(kind: type, least: float, most: float) -> Callable[[str], float]:
    """A type for argparse: int or float, from `least` to `most`."""

    def parse(text: str):
        value = kind(text)  # argparse says which option has no number
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"{text} is not from {least:g} to {most:g}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"
    return parse


SEED, WORKERS = ranged(int, 0, 2**31 - 1), ranged(int, 1, 1024)


def place(text: str) -> Path:
    """A type for argparse: a file or folder. An empty text would name the present folder."""
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} names no file or folder")
    return Path(text)
