"""Data sets: readers of the published files, and generators that write files of the same layouts.

In this folder a frame is one example of a data set: 40 ms of samples and the spectrogram made of them, or the 1024
samples of one modulation. The frame of 10 ms that LTE and 5G NR are built of is always called a radio frame.
"""

import sys
from collections.abc import Callable


class DataError(ValueError):
    """A file or folder that cannot be used; the message names the file, the fault and the remedy."""


def exit_code(work: Callable[[], None]) -> int:
    """Do the work of a command of this folder: 0, 2 after a known fault (one sentence), 130 after Ctrl-C."""
    try:
        work()
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
