"""Processes of the generators: one at a time in a folder, and workers that end when their parent does.

    with locked(folder):                                            # a second process is told so
        with interrupts_ignored():
            pool = multiprocessing.get_context("spawn").Pool(8, partial(as_worker, os.getpid()))

Standard library only.
"""

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data import DataError

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that comes when the parent ends


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold a folder or file that exists, until the block or the process ends. DataError: another process holds it."""
    handle = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{place}: another process is writing it; wait until it has finished") from None
        yield
    finally:
        os.close(handle)


def as_worker(parent: int) -> None:
    """Prepare a worker process: its parent handles Ctrl-C, and without its parent (SIGKILL) it ends at once.

    Otherwise a killed generator's workers would go on writing while the next call already does the same work.

    Args: parent, its process number.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed while this process was importing
        os._exit(1)


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Ctrl-C is ignored by this process and, for good, by those that it starts meanwhile: they are still importing."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
