"""Data sets: readers of the published files, and generators that write files of the same layouts.

In this folder a frame is one example of a data set: 40 ms of samples and the spectrogram made of them, or the 1024
samples of one modulation. The frame of 10 ms that LTE and 5G NR are built of is always called a radio frame.
"""


class DataError(ValueError):
    """A file or folder that cannot be used; the message names the file, the fault and the remedy."""
