"""Samples that arrive on a pipe, 40 ms at a time, while others are processed.

    stream = SampleStream(sys.stdin.buffer, "cu8", sample_rate=1.92e6, center_hz=1815.3e6)
    stream.start()                                    # from now on a thread reads
    for frame in stream.frames():                     # data.recording.Frame, until the pipe ends
        ...
    print(stream.dropped)                             # samples that came too fast

The thread keeps up to two seconds. A radio does not wait: when more has come, the oldest frame is dropped and counted,
and the numbers of the samples go on. A file on the other end does wait, and nothing is dropped; it is known by samples
that come faster than their rate. Standard library only; the frames need data/recording.py.
"""

import contextlib
import fcntl
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from data import DataError
from data.recording_formats import FRAME_SECONDS, RATES, Recording, known_datatype, sample_bytes

AHEAD_SECONDS = 0.5  # no radio is so far ahead of its clock
PIPE_BYTES = 1 << 20  # asked of Linux; 64 KB are usual


class SampleStream:
    """A pipe of bare I/Q samples."""

    def __init__(
        self,
        file: BinaryIO,
        datatype: str | None,
        sample_rate: float | None,
        center_hz: float | None,
        buffer_seconds: float = 2.0,
    ):
        """
        Args:
            file: with a file number.
            datatype, sample_rate, center_hz: as in open_recording.
            buffer_seconds: how much of the recording is kept until it is asked for; more than AHEAD_SECONDS.

        Raises:
            DataError: datatype or rate are missing or can't be used, or the file is a terminal.
        """
        missing = {"--datatype (ci8, cu8, ci16_le or cf32_le)": datatype, "--sample-rate HZ": sample_rate}
        missing = [flag for flag, value in missing.items() if value is None]
        if missing:
            raise DataError(f"-: samples from a pipe have no header; add {' and '.join(missing)}")
        if not RATES[0] <= sample_rate <= RATES[1]:
            raise DataError(f"-: a sample rate of {sample_rate:g} Hz can't be used, 1 MHz to 1 GHz can")
        if file.isatty():
            raise DataError("-: is a terminal, not a pipe; try rtl_sdr ... - | python segment.py - ...")
        self.recording = Recording(Path("-"), known_datatype(datatype, "-"), float(sample_rate), ())
        self.center_hz = center_hz
        self.frame_samples = round(sample_rate * FRAME_SECONDS)
        self.dropped = 0  # samples
        self.dropped_at_start = 0  # those of them that came before anyone asked for a frame
        self._file, self._descriptor = file, file.fileno()  # kept, so that it stays open
        self._most = max(2, round(buffer_seconds / FRAME_SECONDS))
        self._waits = stat.S_ISREG(os.fstat(self._descriptor).st_mode)  # the other end can wait
        self._ready = deque()  # (number of the first sample, bytes)
        self._change = threading.Condition()
        self._ended, self._error = False, None
        with contextlib.suppress(OSError, AttributeError):  # not a pipe, or not Linux
            fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, daemon=True).start()

    def frames(self, stopped: Callable[[], bool] = lambda: False) -> Iterator:
        """Frames until the pipe ends or `stopped` returns True. The last frame is the last 40 ms, as in recordings."""
        import numpy as np

        from data.recording import frame_of, stored_pairs  # numpy and torch, which reading doesn't need

        def frame(data, start, overlap=0):
            pairs = stored_pairs(np.frombuffer(data, np.uint8).copy(), self.recording.datatype)[:, 0]
            return frame_of(pairs, self.recording.sample_rate, self.center_hz, start, overlap)

        width = sample_bytes(self.recording.datatype)
        with self._change:
            self.dropped_at_start = self.dropped
        before, expected = b"", 0  # the frame before, and the number of the sample behind it
        while (piece := self._next(stopped)) is not None:
            start, data = piece
            count = len(data) // width
            overlap = 0
            if count < self.frame_samples and before and start == expected:
                overlap = self.frame_samples - count
                data = before[len(before) - overlap * width :] + data
            if count:
                yield frame(data[: (count + overlap) * width], start - overlap, overlap)
            before, expected = data, start + count
        if self._error:
            raise DataError(f"-: can't be read ({self._error.strerror}); check what writes into the pipe")
        if not expected and not self.dropped and not stopped():
            raise DataError("-: no samples arrived; check what writes into the pipe")

    def _next(self, stopped):
        with self._change:
            while not self._ready and not self._ended and not stopped():
                self._change.wait(0.1)
            if not self._ready or stopped():
                return None
            piece = self._ready.popleft()
            self._change.notify_all()
            return piece

    def _read(self):
        """The thread: whole frames into the buffer, and at the end what is left."""
        size = self.frame_samples * sample_bytes(self.recording.datatype)
        number, begun = 0, None
        try:
            while True:
                data, filled = bytearray(size), 0
                view = memoryview(data)
                while filled < size and (got := os.readv(self._descriptor, [view[filled:]])):
                    filled += got
                    begun = begun or time.monotonic()
                if filled:
                    self._keep(number, data if filled == size else data[:filled])
                number += self.frame_samples
                if filled < size:
                    break
                if number / self.recording.sample_rate > time.monotonic() - begun + AHEAD_SECONDS:
                    self._waits = True
        except OSError as error:
            self._error = error
        with self._change:
            self._ended = True
            self._change.notify_all()

    def _keep(self, number, data):
        with self._change:
            while self._waits and len(self._ready) >= self._most:
                self._change.wait()
            if len(self._ready) >= self._most:
                self._ready.popleft()
                self.dropped += self.frame_samples
            self._ready.append((number, data))
            self._change.notify_all()
